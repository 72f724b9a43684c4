/* SPDX-License-Identifier: MIT
 * debug_quick.c - owns the quick way of an allocation and of a free at debug levels 1 and 2.
 * Rank: 5.  Runs: any CPU, any level.
 *
 * Most calls: a size class, no cache, no alignment asked for, a word of the zone with free slots; a
 * free on the CPU that owns the page. The looks are those of the long way (debug.c), and so are the
 * bytes that are left behind. Nothing is changed before everything is known to be right; else the
 * long way looks again, and reports.
 */
#include "debug.h"
#include "debug_slot.h"
#include "inject.h"

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

/* kind: the class of level 0, and flags of the request above it. */
KSLAB_INLINE void *issue_1(struct kslab_heap *heap, uintptr_t start, size_t bytes, size_t n,
			   unsigned kind, const void *caller, uintptr_t new)
{
	const uintptr_t old = heap->debug_free_word;
	const uint32_t hash = hash_at(start);
	slot_tail *tail = tail_at(start + bytes - TAIL_LONG);

	open_bytes(start, bytes);
	if (KSLAB_UNLIKELY(*tail != free_tail(hash, old)) ||
	    KSLAB_UNLIKELY(!renew(start, bytes - TAIL_LONG, old, new)))
		return kslab_debug_issue_slowly(heap, start, bytes, n, kind, caller);
	*tail = live_tail(hash, bytes - n, info_of(n, kind & 0xff), wide(new));
	set_redzone(start, n, bytes, wide(new));
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
	*tail_at(start + room - 8) = REDZONE_64;
	set_redzone(start, n, room, wide(new));
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

/* Class of level 0 and flags; n != 0. */
KSLAB_INLINE unsigned kind_of(const struct kslab_heap *heap, size_t n, unsigned flags)
{
	return (unsigned)((heap->route[(n - 1) / 8] - offsetof(struct kslab_zone, sc)) /
			  sizeof(struct kslab_sc)) |
	       flags << 8;
}

/* The cached word is used up. In the entered zone, which is left. */
static KSLAB_SLOW void *next_word(struct kslab_heap *heap, struct kslab_zone *zone,
				  struct kslab_sc *sc, size_t n, unsigned flags, const void *caller)
{
	size_t bytes = sc->size;
	void *object = NULL;

	if (sc->page != NULL && kslab_fence_is_sound(heap, zone, sc->page))
		object = kslab_sc_next_word(&zone->owner, sc);
	if (KSLAB_UNLIKELY(zone->owner.late != 0)) {
		kslab_zone_leave_reporting(heap, zone, caller);
	} else {
		kslab_zone_leave(zone);
		KSLAB_PORT_UNPIN();
	}
	if (object == NULL)
		return kslab_heap_alloc_any(heap, n, 1, flags, caller);
	return kslab_debug_issue_class(heap, (uintptr_t)object, bytes, n, kind_of(heap, n, flags),
				       caller);
}

/*
 * n bytes and so many more, aligned as at level 0: a power of two to itself. n = 0 makes a mask of
 * all ones, which leads to no class.
 */
KSLAB_INLINE void *allocate(unsigned level, struct kslab_heap *heap, size_t n, unsigned flags,
			    const void *caller)
{
	const size_t more = level == 1 ? SLACK_MIN : REDZONE_MIN + sizeof(struct trailer);
	const size_t mask = (n - 1) & if_below(n & (n - 1), 1);
	const size_t index = (((n + more + mask) & ~mask) - 1) / 8;
	struct kslab_zone *zone;
	struct kslab_sc *sc;
	void *object;
	size_t bytes;

	if (KSLAB_UNLIKELY(n >= KSLAB_ROUTE_MAX_BYTES || index >= heap->debug_limit ||
			   kslab_inject_is_on(heap)))
		return kslab_heap_alloc_any(heap, n, 1, flags, caller);
	KSLAB_PORT_PIN();
	zone = kslab_heap_zone(heap);
	sc = (struct kslab_sc *)((uintptr_t)zone + heap->route[index]);
	bytes = sc->size;
	if (KSLAB_UNLIKELY(KSLAB_LOAD_RELAXED(&zone->owner.key) == 0 || (bytes & mask) != 0)) {
		KSLAB_PORT_UNPIN();
		return kslab_heap_alloc_any(heap, n, 1, flags, caller);
	}
	kslab_zone_enter(zone);
	object = kslab_sc_pop(sc);
	if (KSLAB_UNLIKELY(object == NULL))
		return next_word(heap, zone, sc, n, flags, caller);
	kslab_zone_leave(zone);
	KSLAB_PORT_UNPIN();
	if (flags != 0 || heap->debug_new_word != heap->debug_free_word)
		return kslab_debug_issue_class(heap, (uintptr_t)object, bytes, n,
					       kind_of(heap, n, flags), caller);
	return (level == 1 ? issue_1 : issue_2)(heap, (uintptr_t)object, bytes, n,
						kind_of(heap, n, 0), caller, heap->debug_free_word);
}

static KSLAB_SLOW void *malloc_1(size_t n, struct kslab_heap *heap, const void *caller)
{
	return allocate(1, heap, n, 0, caller);
}

static KSLAB_SLOW void *malloc_2(size_t n, struct kslab_heap *heap, const void *caller)
{
	return allocate(2, heap, n, 0, caller);
}

static KSLAB_SLOW void *zalloc(size_t n, struct kslab_heap *heap, const void *caller)
{
	return heap->debug_level == 1 ? allocate(1, heap, n, KSLAB_ZERO, caller)
				      : allocate(2, heap, n, KSLAB_ZERO, caller);
}

void *kslab_debug_malloc(size_t n, struct kslab_heap *heap, unsigned flags, const void *caller)
{
	if (flags & KSLAB_ZERO)
		return zalloc(n, heap, caller);
	return heap->debug_level == 1 ? malloc_1(n, heap, caller) : malloc_2(n, heap, caller);
}

/* ---- free at level 1 ------------------------------------------------------------------------- */

/* The slot is poisoned: now it is free. Leaves the zone. */
KSLAB_INLINE void publish(struct kslab_page *page, uint32_t index, struct kslab_zone *zone)
{
	kslab_word *freed = &page->bits[index / KSLAB_WORD_BITS].freed;

	KSLAB_STORE_RELEASE(freed, *freed | kslab_bit(index));
	kslab_zone_leave(zone);
	KSLAB_PORT_UNPIN();
}

static KSLAB_SLOW void poison_large(uintptr_t address, size_t bytes, uintptr_t pattern,
				    struct kslab_page *page, uint32_t index,
				    struct kslab_zone *zone)
{
	memset((void *)address, (int)(pattern & 0xff), bytes - TAIL_LONG);
	close_bytes(address, bytes);
	publish(page, index, zone);
}

static KSLAB_SLOW void free_1(void *p, struct kslab_heap *heap, struct kslab_page *page,
			      const void *caller)
{
	const uintptr_t address = (uintptr_t)p, pattern = heap->debug_free_word;
	const uint32_t hash = hash_at(address);
	struct kslab_zone *zone;
	uint32_t index;
	size_t bytes;
	unsigned cls;

	KSLAB_PORT_PIN();
	zone = kslab_heap_zone(heap);
	if (KSLAB_UNLIKELY(KSLAB_LOAD_RELAXED(&zone->owner.key) == 0))
		goto busy;
	kslab_zone_enter(zone);
	if (KSLAB_UNLIKELY(!is_plain(zone, page)))
		goto slow;
	index = kslab_page_index(page, address);
	bytes = page->sc->size;
	if (KSLAB_UNLIKELY(index >= page->slots || !is_quiet_free(page, index)) ||
	    KSLAB_UNLIKELY(read_sound_tail(address, bytes, hash, &cls) == NONE))
		goto slow;
	open_bytes(address, bytes);
	/* Its code is the first to go, as in kslab_debug_retire. */
	if (sizeof(uintptr_t) < sizeof(slot_tail))
		((unsigned char *)address)[bytes - 1] = code_byte(hash, CODE_FREE);
	KSLAB_BARRIER();
	*tail_at(address + bytes - TAIL_LONG) = free_tail(hash, pattern);
	KSLAB_BARRIER();
	if (KSLAB_UNLIKELY(bytes > WORDS_BYTES_MAX)) {
		poison_large(address, bytes, pattern, page, index, zone);
		return;
	}
	set_words(address, bytes - TAIL_LONG, pattern);
	close_bytes(address, bytes);
	publish(page, index, zone);
	return;
slow:
	kslab_zone_leave(zone);
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

static KSLAB_SLOW void free_2(void *p, struct kslab_heap *heap, struct kslab_page *page,
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

void kslab_debug_free_any(void *p, struct kslab_heap *heap, struct kslab_page *page,
			  const void *caller)
{
	if (heap->debug_level == 1)
		free_1(p, heap, page, caller);
	else
		free_2(p, heap, page, caller);
}
