/* SPDX-License-Identifier: MIT
 * debug_quick.c - owns the quick way of an allocation and of a free at debug levels 1 and 2.
 * Rank: 5.  Runs: any CPU, any level.
 *
 * Most calls: a size class, no cache, no alignment asked for, a word of the zone with free slots; a
 * free on the CPU that owns the page. The looks are those of the long way (debug.c), and so are the
 * bytes that are left behind. Nothing is changed before everything is known to be right; else the
 * long way looks again, and reports.
 *
 * Races. Level 1: a free happens inside the entered zone of the page, so that an interrupt sees a
 * page of another CPU, and nobody but us stores to avail and freed: what was read of freed is still
 * true when the bit is stored. Another CPU's free of the same object meets our bit or our code; if
 * it came too early for both, its remote bit is dropped and reported at the harvest (I1). The code
 * goes first, then the poison, then by a release the bit: who finds a redzone poisoned finds the
 * code, who finds the bit finds the poison.
 * Level 2: state goes from LIVE to BUSY by compare-and-swap; the sum it is compared with was made
 * of fields that nobody changes but who has won that, so the winner may carry it on. An issue owns
 * its slot: its bit is gone from avail, and is nowhere else.
 */
#include "debug.h"
#include "debug_slot.h"

/*
 * What both levels have in common is inline, and made anew for each of them. The functions for most
 * calls call nothing but at their end, so that they have no registers to save.
 */

/* ---- issue ----------------------------------------------------------------------------------- */

/* The body of a free slot becomes that of a new object. Return: false: it was written to. */
KSLAB_INLINE bool renew(uintptr_t start, size_t bytes, uintptr_t old, uintptr_t new)
{
	if (KSLAB_UNLIKELY(!are_words(start, bytes, old)))
		return false;
	if (new != old && bytes <= WORDS_BYTES_MAX)
		set_words(start, bytes, new);
	else if (new != old)
		memset((void *)start, (int)(new & 0xff), bytes);
	return true;
}

KSLAB_INLINE void *issue_1(struct kslab_heap *heap, uintptr_t start, size_t bytes, size_t n,
			   unsigned kind, const void *caller, uintptr_t new)
{
	const uintptr_t old = heap->debug_free_word;
	const uint32_t hash = hash_at(start);

	open_bytes(start, bytes);
	if (KSLAB_UNLIKELY(*tail_at(start + bytes - TAIL_LONG) != free_tail(hash, old)) ||
	    KSLAB_UNLIKELY(!renew(start, bytes - TAIL_LONG, old, new)))
		return kslab_debug_issue_slowly(heap, start, bytes, n, kind, caller);
	set_slack(start, bytes, n, kind & 0xff, hash, wide(new));
	give_bytes(start, bytes, n, is_zeroed(heap, kind >> 8));
	return (void *)start;
}

KSLAB_INLINE void *issue_2(struct kslab_heap *heap, uintptr_t start, size_t bytes, size_t n,
			   unsigned kind, const void *caller, uintptr_t new)
{
	const uintptr_t old = heap->debug_free_word;
	const size_t room = bytes - sizeof(struct trailer);
	struct trailer *trailer = (struct trailer *)(start + room);
	uintptr_t fields = sum_of_fields(trailer);

	open_bytes(start, bytes);
	if (KSLAB_UNLIKELY(KSLAB_LOAD_ACQUIRE(&trailer->state) != sum_with(fields, FREED)) ||
	    KSLAB_UNLIKELY(!renew(start, room, old, new)))
		return kslab_debug_issue_slowly(heap, start, bytes, n, kind, caller);
	trailer->alloc_caller = caller;
	trailer->serial = next_serial(heap);
	trailer->info = info_of(n, kind & 0xff) ^ hash_at(start);
	seal(trailer, LIVE);
	set_whole_redzone(start, n, room, wide(new));
	give_bytes(start, bytes, n, is_zeroed(heap, kind >> 8));
	return (void *)start;
}

KSLAB_SLOW void *kslab_debug_issue_class(struct kslab_heap *heap, uintptr_t start, size_t bytes,
					 size_t n, unsigned kind, const void *caller)
{
	uintptr_t new = fresh_word(heap, kind >> 8);

	return heap->debug_level == 1 ? issue_1(heap, start, bytes, n, kind, caller, new)
				      : issue_2(heap, start, bytes, n, kind, caller, new);
}

/* ---- allocate -------------------------------------------------------------------------------- */

/* The cached word is used up. In the entered zone, which is left. */
static KSLAB_SLOW void *next_word(struct kslab_heap *heap, struct kslab_zone *zone,
				  struct kslab_sc *sc, size_t n, unsigned flags, const void *caller)
{
	size_t bytes = sc->size;
	void *object = NULL;

	if (sc->page != NULL && kslab_fence_is_sound(heap, zone, sc->page))
		object = kslab_sc_next_word(&zone->owner, sc);
	/* Requests of other CPUs are served here, too; without an object the slow path looks. */
	if (KSLAB_UNLIKELY(object != NULL && kslab_zone_has_work(heap, zone))) {
		kslab_heap_leave(heap, zone, caller);
	} else {
		kslab_zone_leave(zone);
		KSLAB_PORT_UNPIN();
	}
	if (object == NULL)
		return kslab_heap_alloc_any(heap, n, 1, flags, caller);
	return kslab_debug_issue_class(heap, (uintptr_t)object, bytes, n, ROUTED | flags << 8,
				       caller);
}

/* Level 2 adds to a multiple of 16 what makes it another one. */
_Static_assert((REDZONE_MIN + sizeof(struct trailer) + 7) / 8 * 8 % TYPE_ALIGN == 0,
	       "a type keeps its alignment");

/*
 * n bytes and so many more, aligned as at level 0: a power of two to itself, a multiple of 16 to
 * that. At level 1 a power of two takes two of it, and an odd index leads to a multiple of 16.
 * Whether n is one is chance: no branch, and at level 2, where there is more to compute, no
 * comparison of which compilers would make one.
 */
KSLAB_INLINE size_t route_index(unsigned level, size_t n)
{
	const size_t more = REDZONE_MIN + sizeof(struct trailer);
	size_t others = n & (n - 1), mask, last = others == 0 ? 2 * n - 1 : n + SLACK_MIN - 1;

	KSLAB_HIDE(last);
	if (level == 1)
		return last / 8 | (n % TYPE_ALIGN == 0);
	mask = (n - 1) & (((others | (0 - others)) >> (8 * sizeof(n) - 1)) - 1);
	return (((n + more + mask) & ~mask) - 1) / 8;
}

size_t kslab_debug_quick_limit(const struct kslab_heap *heap, size_t route_limit)
{
	size_t n, index, cls, mask;

	for (n = 1; n < KSLAB_ROUTE_MAX_BYTES; n++) {
		index = route_index(heap->debug_level, n);
		if (index >= route_limit)
			break;
		cls = (heap->route[index] - offsetof(struct kslab_zone, sc)) /
		      sizeof(struct kslab_sc);
		mask = natural_align(n) - 1;
		if ((kslab_class_bytes((unsigned)cls) & mask) != 0)
			break;
	}
	return n - 1;
}

KSLAB_INLINE void *allocate(unsigned level, struct kslab_heap *heap, size_t n, unsigned flags,
			    const void *caller)
{
	struct kslab_zone *zone;
	struct kslab_sc *sc;
	void *object;
	size_t bytes;

	if (KSLAB_UNLIKELY(n - 1 >= KSLAB_LOAD_RELAXED(&heap->debug_limit)))
		return kslab_heap_alloc_any(heap, n, 1, flags, caller);
	KSLAB_PORT_PIN();
	zone = kslab_heap_zone(heap);
	if (KSLAB_UNLIKELY(KSLAB_LOAD_RELAXED(&zone->owner.key) == 0)) {
		KSLAB_PORT_UNPIN();
		return kslab_heap_alloc_any(heap, n, 1, flags, caller);
	}
	sc = (struct kslab_sc *)((uintptr_t)zone + heap->route[route_index(level, n)]);
	bytes = sc->size;
	kslab_zone_enter(zone);
	if (KSLAB_UNLIKELY(*sc->word == 0))
		return next_word(heap, zone, sc, n, flags, caller);
	object = kslab_sc_pop(sc);
	kslab_zone_leave(zone);
	KSLAB_PORT_UNPIN();
	if (flags != 0 || heap->debug_new_word != heap->debug_free_word)
		return kslab_debug_issue_class(heap, (uintptr_t)object, bytes, n,
					       ROUTED | flags << 8, caller);
	return (level == 1 ? issue_1 : issue_2)(heap, (uintptr_t)object, bytes, n, ROUTED, caller,
						heap->debug_free_word);
}

KSLAB_SLOW void *kslab_debug_malloc_1(size_t n, struct kslab_heap *heap, const void *caller)
{
	return allocate(1, heap, n, 0, caller);
}

KSLAB_SLOW void *kslab_debug_malloc_2(size_t n, struct kslab_heap *heap, const void *caller)
{
	return allocate(2, heap, n, 0, caller);
}

void *kslab_debug_malloc(size_t n, struct kslab_heap *heap, unsigned flags, const void *caller)
{
	if (!(flags & KSLAB_ZERO))
		return heap->debug_level == 1 ? kslab_debug_malloc_1(n, heap, caller)
					      : kslab_debug_malloc_2(n, heap, caller);
	return heap->debug_level == 1 ? allocate(1, heap, n, KSLAB_ZERO, caller)
				      : allocate(2, heap, n, KSLAB_ZERO, caller);
}

/* ---- free at level 1 ------------------------------------------------------------------------- */

/* The slot is poisoned: now it is free. Leaves the zone. */
KSLAB_INLINE void publish(kslab_word *freed, kslab_word word, struct kslab_zone *zone)
{
	KSLAB_STORE_RELEASE(freed, word);
	kslab_zone_leave(zone);
	KSLAB_PORT_UNPIN();
}

static KSLAB_SLOW void poison_large(uintptr_t address, size_t bytes, uintptr_t pattern,
				    kslab_word *freed, kslab_word word, struct kslab_zone *zone)
{
	memset((void *)address, (int)(pattern & 0xff), bytes - TAIL_LONG);
	close_bytes(address, bytes);
	publish(freed, word, zone);
}

KSLAB_SLOW void kslab_debug_free_1(void *p, struct kslab_heap *heap, struct kslab_page *page,
				   const void *caller)
{
	const uintptr_t address = (uintptr_t)p, pattern = heap->debug_free_word;
	const uint32_t hash = hash_at(address);
	struct kslab_zone *zone;
	kslab_word *freed, word;
	size_t bytes, n;
	uint32_t index;

	KSLAB_PORT_PIN();
	zone = kslab_heap_zone(heap);
	if (KSLAB_UNLIKELY(KSLAB_LOAD_RELAXED(&zone->owner.key) == 0))
		goto busy;
	kslab_zone_enter(zone);
	if (KSLAB_UNLIKELY(!is_plain(zone, page)))
		goto slow;
	index = kslab_page_index(page, address);
	bytes = page->sc->size;
	if (KSLAB_UNLIKELY(index >= page->slots))
		goto slow;
	word = quiet_free(page, index, &freed);
	if (KSLAB_UNLIKELY(word == 0) || KSLAB_UNLIKELY(!read_sound_tail(address, bytes, hash, &n)))
		goto slow;
	open_bytes(address, bytes);
	/* Its code is the first to go, as in kslab_debug_retire. */
	if (sizeof(uintptr_t) < sizeof(slot_tail))
		((unsigned char *)address)[bytes - 1] = code_byte(hash, CODE_FREE);
	KSLAB_BARRIER();
	*tail_at(address + bytes - TAIL_LONG) = free_tail(hash, pattern);
	KSLAB_BARRIER();
	if (KSLAB_UNLIKELY(bytes > WORDS_BYTES_MAX)) {
		poison_large(address, bytes, pattern, freed, word, zone);
		return;
	}
	set_words(address, bytes - TAIL_LONG, pattern);
	close_bytes(address, bytes);
	publish(freed, word, zone);
	return;
slow:
	kslab_zone_leave(zone);
	heap = zone->heap; /* the same; but one register less is in use above */
busy:
	KSLAB_PORT_UNPIN();
	kslab_heap_free_slow(heap, p, NULL, caller);
}

/* ---- free at level 2 ------------------------------------------------------------------------- */

static KSLAB_SLOW void poison_and_wait(struct kslab_heap *heap, uintptr_t address, size_t bytes,
				       uintptr_t sum, const void *caller)
{
	const size_t room = bytes - sizeof(struct trailer);

	memset((void *)address, (int)(heap->debug_free_word & 0xff), room);
	KSLAB_STORE_RELEASE(&((struct trailer *)(address + room))->state, sum);
	close_bytes(address, bytes);
	kslab_debug_quarantine(heap, address, bytes, caller);
}

KSLAB_SLOW void kslab_debug_free_2(void *p, struct kslab_heap *heap, struct kslab_page *page,
				   const void *caller)
{
	const uintptr_t address = (uintptr_t)p;
	struct kslab_zone *zone;
	struct trailer *trailer;
	uintptr_t fields, live;
	size_t bytes, room;
	uint32_t index;
	bool is_own;

	KSLAB_PORT_PIN();
	zone = kslab_heap_zone(heap);
	is_own = KSLAB_LOAD_RELAXED(&zone->owner.key) != 0 && is_plain(zone, page);
	KSLAB_PORT_UNPIN();
	if (KSLAB_UNLIKELY(!is_own))
		goto slow;
	index = kslab_page_index(page, address);
	if (KSLAB_UNLIKELY(index >= page->slots || is_free_bit(page, index)))
		goto slow;
	bytes = page->sc->size;
	room = bytes - sizeof(struct trailer);
	trailer = (struct trailer *)(address + room);
	fields = sum_of_fields(trailer);
	live = sum_with(fields, LIVE);
	if (KSLAB_UNLIKELY(KSLAB_LOAD_ACQUIRE(&trailer->state) != live) ||
	    KSLAB_UNLIKELY(!is_whole_redzone(address, (trailer->info ^ hash_at(address)) & 0xffff,
					     room)) ||
	    KSLAB_UNLIKELY(!KSLAB_CAS_ACQ_REL(&trailer->state, &live, busy(trailer))))
		goto slow;
	/* Ours alone from here on; and since state was their sum, fields holds what they hold. */
	fields += ((uintptr_t)caller - (uintptr_t)trailer->free_caller) * FREE_CALLER_FACTOR;
	trailer->free_caller = caller;
	open_bytes(address, bytes);
	if (KSLAB_UNLIKELY(room > WORDS_BYTES_MAX)) {
		poison_and_wait(heap, address, bytes, sum_with(fields, FREED), caller);
		return;
	}
	set_words(address, room, heap->debug_free_word);
	KSLAB_STORE_RELEASE(&trailer->state, sum_with(fields, FREED));
	close_bytes(address, bytes);
	kslab_debug_quarantine(heap, address, bytes, caller);
	return;
slow:
	kslab_heap_free_slow(heap, p, NULL, caller);
}
