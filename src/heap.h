/* SPDX-License-Identifier: MIT
 * heap.h - owns the fast path, and what the rooms above need of the heap.
 * Rank: 5.  The theory and a map of the rooms are at the top of heap.c.
 * The sections of this file name the room that a function lives in.
 */
#ifndef KSLAB_HEAP_PRIVATE_H
#define KSLAB_HEAP_PRIVATE_H

#include <kslab/kslab.h>

#include "page_map.h"
#include "page_source.h"
#include "report.h"
#include "sc_allocator.h"
#include "size_class.h"

/* What kslab_config.page_bytes = 0 means. */
#define KSLAB_PAGE_BYTES_DEFAULT                                                                   \
	((size_t)1 << (KSLAB_CFG_GRAIN_SHIFT > 12 ? KSLAB_CFG_GRAIN_SHIFT : 12))

/* A cache's objects of one zone; zone->sc has no place for it. */
struct kslab_cache_zone {
	struct kslab_sc sc;
	struct kslab_cache *cache; /* [a] NULL: it has ended, and had no page any more */
	struct kslab_cache_zone *next; /* [I] in zone->caches; nothing leaves that list */
};

/* What an allocation is for. */
struct kslab_request {
	struct kslab_cache *cache; /* NULL: a size class */
	unsigned cls;
	unsigned flags; /* KSLAB_ZERO and so on */
	const void *caller;
};

KSLAB_INLINE struct kslab_zone *kslab_heap_zone(const struct kslab_heap *heap)
{
	if (KSLAB_CFG_CPUS == 1)
		return (struct kslab_zone *)(uintptr_t)&heap->boot_zone;
	return KSLAB_LOAD_RELAXED(&heap->zone[KSLAB_PORT_CPU()]);
}

/* The same where the heap is known to be in use: what the port keeps for the default one. */
KSLAB_INLINE struct kslab_zone *kslab_heap_quick_zone(const struct kslab_heap *heap)
{
#if defined(KSLAB_PORT_ZONE) && KSLAB_CFG_CPUS > 1
	if (heap == &kslab_default_heap)
		return KSLAB_PORT_ZONE();
#endif
	return kslab_heap_zone(heap);
}

/* This CPU's zone is another one from now on. */
KSLAB_INLINE void kslab_heap_set_quick_zone(const struct kslab_heap *heap, struct kslab_zone *zone)
{
#if defined(KSLAB_PORT_ZONE) && KSLAB_CFG_CPUS > 1
	if (heap == &kslab_default_heap)
		KSLAB_PORT_ZONE() = zone;
#else
	(void)heap;
	(void)zone;
#endif
}

/*
 * Enter and leave a zone whose key was seen idle. Between the two an interrupt on this CPU finds
 * the zone busy and uses the next level; one that comes between the look and the entry is over
 * before we go on (I5).
 */
KSLAB_INLINE void kslab_zone_enter(struct kslab_zone *zone)
{
	KSLAB_STORE_RELAXED(&zone->owner.key, (uintptr_t)0);
	KSLAB_BARRIER();
}

KSLAB_INLINE void kslab_zone_leave(struct kslab_zone *zone)
{
	KSLAB_BARRIER();
	KSLAB_STORE_RELAXED(&zone->owner.key, (uintptr_t)zone);
}

/* ---- heap.c: zones --------------------------------------------------------------------------- */

/* Innermost zone of this CPU that is idle, entered; NULL: none. Pinned by the caller. */
struct kslab_zone *kslab_heap_enter(struct kslab_heap *heap);

/* The same where the heap is known to be in use. */
KSLAB_INLINE struct kslab_zone *kslab_heap_enter_quick(struct kslab_heap *heap)
{
	struct kslab_zone *zone = kslab_heap_quick_zone(heap);

	if (KSLAB_UNLIKELY(KSLAB_LOAD_RELAXED(&zone->owner.key) == 0))
		return kslab_heap_enter(heap);
	kslab_zone_enter(zone);
	return zone;
}

/*
 * The zone of one level of this CPU, pinned and entered; NULL: there is none, or it is busy, and
 * nothing is pinned.
 */
struct kslab_zone *kslab_heap_pin_level(struct kslab_heap *heap, unsigned level);

/* Pages to give back, by retention or by request. */
KSLAB_INLINE bool kslab_zone_has_surplus(const struct kslab_heap *heap,
					 const struct kslab_zone *zone)
{
	size_t retain = KSLAB_LOAD_RELAXED(&heap->retain_run);

	return zone->owner.empty_run > retain + zone->owner.reserve_run ||
	       zone->spare_run > retain ||
	       zone->reclaim_epoch != KSLAB_LOAD_RELAXED(&heap->reclaim_epoch);
}

/* Whoever leaves the zone has more to do than to leave. */
KSLAB_INLINE bool kslab_zone_has_work(const struct kslab_heap *heap, const struct kslab_zone *zone)
{
	return zone->owner.late != 0 || zone->owner.corrupt != NULL ||
	       kslab_zone_has_surplus(heap, zone);
}

/* Leave, unpin, and report what was found late. */
void kslab_zone_leave_reporting(struct kslab_heap *heap, struct kslab_zone *zone,
				const void *caller);

/*
 * After anything that may have left work behind: late faults, reclaim requests, too many empty
 * pages.
 */
void kslab_heap_leave(struct kslab_heap *heap, struct kslab_zone *zone, const void *caller);

/* Every level that this CPU has is busy: make one more. Return: KSLAB_OK: try to enter again. */
enum kslab_reason kslab_heap_add_level(struct kslab_heap *heap, unsigned flags);
void kslab_zone_start(struct kslab_heap *heap, struct kslab_zone *zone, unsigned cpu,
		      unsigned level);
unsigned kslab_zone_index(const struct kslab_zone *zone);

/* Every zone of every CPU, parked and limbo zones too. */
void kslab_heap_each_zone(struct kslab_heap *heap, void (*fn)(void *ctx, struct kslab_zone *zone),
			  void *ctx);
/* The class allocator of a zone, caches too, that comes after sc; NULL: the first; the last. */
KSLAB_INLINE struct kslab_sc *kslab_zone_next_sc(struct kslab_zone *zone, struct kslab_sc *sc)
{
	struct kslab_cache_zone *own;

	if (sc == NULL)
		return &zone->sc[0];
	if ((uintptr_t)sc - (uintptr_t)zone->sc < sizeof(zone->sc) - sizeof(zone->sc[0]))
		return sc + 1;
	if (sc == &zone->sc[KSLAB_CLASSES - 1])
		own = KSLAB_LOAD_ACQUIRE(&zone->caches); /* pairs with the push of cache_add_zone */
	else
		own = ((struct kslab_cache_zone *)sc)->next;
	return own != NULL ? &own->sc : NULL;
}

/* A failed call: remember why. Return: NULL. */
void *kslab_heap_fail(struct kslab_heap *heap, enum kslab_reason reason);

/* ---- fault.c --------------------------------------------------------------------------------- */

/* Report that p is no live object of this heap (or cache). */
void kslab_heap_fault_pointer(struct kslab_heap *heap, const void *p, struct kslab_cache *cache,
			      const void *caller);
void kslab_heap_report_late(struct kslab_heap *heap, uintptr_t object, size_t count,
			    const void *caller);
void kslab_heap_report_corrupt(struct kslab_heap *heap, const struct kslab_page *page,
			       const void *caller);

/* ---- alloc_slow.c ---------------------------------------------------------------------------- */

/* What the fast path does not do: of a class or cache; of any size, alignment and flags. */
void *kslab_heap_alloc_slow(struct kslab_heap *heap, const struct kslab_request *request);
void *kslab_heap_alloc_any(struct kslab_heap *heap, size_t n, size_t align, unsigned flags,
			   const void *caller);
/* The cold ends of the fast path; own functions, so that the fast path can tail-call them. */
void *kslab_heap_malloc_unrouted(size_t n, struct kslab_heap *heap, const void *caller);
void *kslab_heap_malloc_slow(size_t n, struct kslab_heap *heap, const void *caller);

/* Class for n bytes at an alignment; KSLAB_CLASSES: none, a page run. */
unsigned kslab_heap_class(const struct kslab_heap *heap, size_t n, size_t align);
/* The same without regard to debugging. */
unsigned kslab_heap_plain_class(const struct kslab_heap *heap, size_t n, size_t align);

/* Pages may go back on the way of such a request: nobody is called who should not be. */
KSLAB_INLINE bool kslab_heap_may_give(const struct kslab_heap *heap, unsigned flags)
{
	return !(flags & KSLAB_NOWAIT) || (heap->free_pages == NULL && heap->purge == NULL);
}

struct kslab_sc *kslab_request_sc(struct kslab_zone *zone, const struct kslab_request *request);
/*
 * The class of a request in a zone of this CPU, entered and pinned; made if it was not there. NULL:
 * try again if *reason is KSLAB_OK.
 */
struct kslab_sc *kslab_request_enter(struct kslab_heap *heap, const struct kslab_request *request,
				     struct kslab_zone **zone, enum kslab_reason *reason);

/* ---- free_slow.c ----------------------------------------------------------------------------- */

/* Any pointer, from a cache or (NULL) not; verdict included. */
void kslab_heap_free_slow(struct kslab_heap *heap, void *p, struct kslab_cache *cache,
			  const void *caller);
/* The cold ends of the fast path. */
void kslab_heap_word_full(struct kslab_zone *zone, const void *caller, struct kslab_page *page);
void kslab_heap_free_cold(void *p, struct kslab_heap *heap, const void *caller);
/* The same if its descriptor was looked up already. */
void kslab_heap_free_known(void *p, struct kslab_heap *heap, struct kslab_page *page,
			   const void *caller);

/* What a live object is; *bytes = 0 after a fault was reported. Return: its descriptor or NULL. */
struct kslab_page *kslab_heap_object(struct kslab_heap *heap, const void *p, size_t *bytes,
				     const void *caller);

/*
 * Set the bit of a slot that was judged. @retiring: at debug level 1, what has to be done before.
 * Return: false: it was free, or retiring says what was wrong.
 */
struct kslab_retiring;
bool kslab_heap_set_free(struct kslab_heap *heap, struct kslab_page *page, uint32_t index,
			 struct kslab_retiring *retiring, const void *caller);

/* ---- heap_page.c ----------------------------------------------------------------------------- */

/* A page of the class or cache, not inserted yet; and back. */
struct kslab_page *kslab_heap_make_page(struct kslab_heap *heap,
					const struct kslab_request *request, uint32_t pages_so_far,
					enum kslab_reason *reason);
void kslab_heap_release_page(struct kslab_heap *heap, struct kslab_page *page);
/* The same for a page or a spare block, out of any list. */
void kslab_heap_release(struct kslab_heap *heap, struct kslab_page *page);
uintptr_t kslab_heap_page_tags(const struct kslab_heap *heap, const struct kslab_request *request);

/* ---- cache_zone.c ---------------------------------------------------------------------------- */

/* A cache gets its part of a zone when it is first used there. */
enum kslab_reason kslab_cache_add_zone(struct kslab_heap *heap, const struct kslab_request *request,
				       struct kslab_zone *zone);
/*
 * Nobody uses the cache any more: give back its empty pages, ask other CPUs for theirs. Return: true:
 * it has no page and no part of a zone any more, and no CPU will look at it.
 */
bool kslab_cache_end_zones(struct kslab_cache *cache);

/* ---- object_cache.c -------------------------------------------------------------------------- */

/*
 * Walk heap->caches between the two: no cache ends meanwhile (its end is BUSY). @waits: for the lock.
 * Return: false: it can't be had here, the caches are left out, and there is nothing to leave.
 */
bool kslab_caches_enter(struct kslab_heap *heap, bool waits);
void kslab_caches_leave(struct kslab_heap *heap);

/* ---- trim.c ---------------------------------------------------------------------------------- */

/* Of an entered zone: find all empty pages. O(pages). */
void kslab_zone_collect(struct kslab_heap *heap, struct kslab_zone *zone);
/*
 * The same in steps that look at so many pages, mail included, from where the last one ended
 * (owner.swept; NULL: begin). Return: true: all are found.
 */
bool kslab_zone_sweep(struct kslab_heap *heap, struct kslab_zone *zone, size_t pages);
/*
 * Take the oldest empty page of a class out, of the first class that has one from where the last
 * look ended. @looks: classes that are looked at; KSLAB_ALL: all. NULL: none, or those are QUEUED.
 */
#define KSLAB_LOOKS_MOST 64u
struct kslab_page *kslab_zone_take_empty(struct kslab_heap *heap, struct kslab_zone *zone,
					 size_t looks);
/* The same of one class or cache. */
struct kslab_page *kslab_zone_take_empty_of(struct kslab_heap *heap, struct kslab_zone *zone,
					    struct kslab_sc *sc);
/*
 * Give back what this CPU's zone of a level has too much of, or was asked for: a few pages; all of it,
 * O(pages).
 */
void kslab_heap_trim(struct kslab_heap *heap, unsigned level);
void kslab_heap_trim_all(struct kslab_heap *heap, unsigned level);

/* ---- reclaim.c ------------------------------------------------------------------------------- */

/*
 * The page source has failed: give back what lies idle, up to `want` base pages. Return: true: it is
 * worth trying again.
 */
bool kslab_heap_take_back(struct kslab_heap *heap, size_t want);
/*
 * Look for what could be given back, until something was; a call that fails has looked at everything
 * (is_done). Begins as { .want }.
 */
struct kslab_relief {
	size_t want; /* base pages */
	unsigned level; /* that is looked through now */
	struct kslab_zone *zone; /* of that level, when it began */
	bool is_done;
};
bool kslab_heap_relieve(struct kslab_heap *heap, struct kslab_relief *relief);

/* Give back the empty pages of a cache in the zone of a CPU that is offline. O(pages), in steps. */
void kslab_parked_empty(struct kslab_heap *heap, struct kslab_zone *zone, struct kslab_sc *sc);
/* Take a page of the class with free slots from limbo into an entered zone. */
bool kslab_limbo_adopt(struct kslab_heap *heap, struct kslab_zone *zone, unsigned cls);
/* The same of a cache, from the zones of CPUs that are offline; sc: its part of the entered zone. */
bool kslab_parked_adopt(struct kslab_heap *heap, struct kslab_zone *zone,
			const struct kslab_cache *cache, struct kslab_sc *sc);

/* Make pages until this CPU has so many free slots. Return: false: it could not. */
bool kslab_heap_reserve_request(struct kslab_heap *heap, const struct kslab_request *request,
				size_t count);

/* ---- purge.c --------------------------------------------------------------------------------- */

/* Purge the base pages inside this CPU's object pages of which all slots are free. O(pages). */
void kslab_heap_purge_pages(struct kslab_heap *heap, const void *caller);

/* ---- large_block.c --------------------------------------------------------------------------- */

/* Larger requests can't succeed; below this no sum of sizes wraps. */
#define KSLAB_REQUEST_MAX                                                                          \
	((size_t)(KSLAB_WINDOW_BYTES - 1 < SIZE_MAX / 4 ? KSLAB_WINDOW_BYTES - 1 : SIZE_MAX / 4))

/* What page->owner holds while a large block is live. */
KSLAB_INLINE uintptr_t kslab_large_tag(const struct kslab_heap *heap)
{
	return (uintptr_t)heap | KSLAB_TAG_LARGE;
}

/*
 * Sizes that may lie in a page run. Among those of the size classes only what grows, or was larger
 * before, does so; and only if it fills three quarters of more than one page.
 */
KSLAB_INLINE bool kslab_large_may_hold(const struct kslab_heap *heap, size_t n)
{
	size_t run = (n + heap->page_bytes - 1) & ~(heap->page_bytes - 1);

	return n > KSLAB_CLASS_MAX_BYTES || (n > heap->page_bytes && run - n <= run / 4);
}

void *kslab_large_alloc(struct kslab_heap *heap, size_t n, size_t align, unsigned flags);
/* The short way at debug level 0, of n above the size classes: a spare block, or kslab_large_alloc. */
void *kslab_large_malloc(size_t n, struct kslab_heap *heap, const void *caller);
/* Return: false: not the start of a live block. */
bool kslab_large_free(struct kslab_heap *heap, struct kslab_page *page, uintptr_t address);
/* The short way at debug level 0: of a block whose owner said it is live; verdict included. */
void kslab_large_free_plain(void *p, struct kslab_heap *heap, struct kslab_page *page,
			    const void *caller);
/* The same as kslab_large_malloc, for a block that will perhaps grow on: with room behind it. */
void *kslab_large_grow(struct kslab_heap *heap, size_t n, const void *caller);
/* In place; MOVE: it can't be; DEAD: it is no live block (any more). */
enum kslab_resize { KSLAB_RESIZE_DONE, KSLAB_RESIZE_MOVE, KSLAB_RESIZE_DEAD };
enum kslab_resize kslab_large_resize(struct kslab_heap *heap, struct kslab_page *page,
				     uintptr_t address, size_t n);
size_t kslab_large_bytes(const struct kslab_heap *heap, const struct kslab_page *page);
/* A block that nobody can reach any more goes back; where the lock can't be had, with others later. */
void kslab_large_release(struct kslab_heap *heap, struct kslab_page *page);
/* Of an entered zone: its oldest spare block, or NULL. */
struct kslab_page *kslab_zone_take_spare(struct kslab_zone *zone);
/* Of the blocks that wait so `most`, and of runs as many. Return: base pages. */
size_t kslab_large_release_deferred(struct kslab_heap *heap, size_t most);
bool kslab_large_has_deferred(const struct kslab_heap *heap);

/* ---- the fast path --------------------------------------------------------------------------- */

/* caller: who is told of in a report; NULL: the caller of the function that ends with this. */
KSLAB_INLINE void *kslab_heap_malloc_fast(struct kslab_heap *heap, size_t n, const void *caller)
{
	size_t index = (n - 1) / 8; /* 0 wraps, and goes the slow way */
	struct kslab_zone *zone;
	struct kslab_sc *sc;
	kslab_word *avail;
	kslab_word word;
	uintptr_t object;

	if (KSLAB_UNLIKELY(index >= heap->route_limit))
		return kslab_heap_malloc_unrouted(n, heap, KSLAB_TAIL_CALLER(caller));
	KSLAB_PORT_PIN();
	zone = kslab_heap_quick_zone(heap);
	sc = (struct kslab_sc *)((uintptr_t)zone + heap->route[index]);
	if (KSLAB_CFG_LEVELS > 1) {
		if (KSLAB_UNLIKELY(zone->owner.key == 0)) {
			KSLAB_PORT_UNPIN();
			return kslab_heap_malloc_slow(n, heap, KSLAB_TAIL_CALLER(caller));
		}
		kslab_zone_enter(zone);
	}
	avail = sc->word;
	word = *avail;
	if (KSLAB_UNLIKELY(word == 0)) {
		if (KSLAB_CFG_LEVELS > 1)
			kslab_zone_leave(zone);
		KSLAB_PORT_UNPIN();
		return kslab_heap_malloc_slow(n, heap, KSLAB_TAIL_CALLER(caller));
	}
	KSLAB_STORE_RELAXED(avail, word & (word - 1));
	/* a word's slots span less than 4 GiB */
	object = sc->base + (uint32_t)(kslab_ctz(word) * sc->size);
	if (KSLAB_CFG_LEVELS > 1)
		kslab_zone_leave(zone);
	KSLAB_PORT_UNPIN();
	return (void *)object;
}

/* Of what the page map said lies at p: a descriptor, whatever has become of it since (I7). */
KSLAB_INLINE void kslab_heap_free_in(struct kslab_heap *heap, void *p, struct kslab_page *page,
				     const void *caller)
{
	uintptr_t address = (uintptr_t)p, key;
	struct kslab_zone *zone;
	kslab_word *bits, freed, bit;
	uint32_t index;

	KSLAB_PORT_PIN();
	zone = kslab_heap_quick_zone(heap);
	/*
	 * Enter, then compare: an interrupt in between might fill the page up. A busy key, 0, owns
	 * nothing. With one level nobody comes in between, and the key is the zone's own address;
	 * kslab_zone_none owns nothing.
	 */
	key = KSLAB_CFG_LEVELS > 1 ? KSLAB_LOAD_RELAXED(&zone->owner.key) : (uintptr_t)zone;
	if (KSLAB_CFG_LEVELS > 1)
		kslab_zone_enter(zone);
	if (KSLAB_UNLIKELY(KSLAB_LOAD_RELAXED(&page->owner) != key))
		goto cold;
	index = kslab_page_index(page, address);
	if (KSLAB_UNLIKELY(index >= page->slots))
		goto cold;
	/* Indexed as words, so that x86 folds the scale. */
	bits = &page->bits[0].avail + (size_t)(index / KSLAB_WORD_BITS) * 3;
	bit = kslab_bit(index);
	KSLAB_HIDE(bit);
	/* Two looks: the store waits for one word, not for three. */
	if (KSLAB_UNLIKELY(kslab_is_bit_set(KSLAB_LOAD_RELAXED(&bits[2]) | bits[0], bit, index)))
		goto cold;
	freed = bits[1];
	if (KSLAB_UNLIKELY(kslab_test_and_set(&freed, bit, index)))
		goto cold;
	KSLAB_STORE_RELAXED(&bits[1], freed);
	if (KSLAB_UNLIKELY(freed == ~(kslab_word)0)) {
		kslab_heap_word_full(zone, KSLAB_TAIL_CALLER(caller), page);
		return;
	}
	if (KSLAB_CFG_LEVELS > 1)
		kslab_zone_leave(zone);
	KSLAB_PORT_UNPIN();
	return;
cold:
	if (KSLAB_CFG_LEVELS > 1) {
		KSLAB_BARRIER();
		KSLAB_STORE_RELAXED(&zone->owner.key, key);
	}
	KSLAB_PORT_UNPIN();
	kslab_heap_free_known(p, heap, page, KSLAB_TAIL_CALLER(caller));
}

KSLAB_INLINE void kslab_heap_free_fast(struct kslab_heap *heap, void *p, const void *caller)
{
	uintptr_t address = (uintptr_t)p;
	size_t top = kslab_page_map_top_index(&heap->map, address);
	struct kslab_page *page;

	if (KSLAB_UNLIKELY(top >= heap->map.limit)) {
		kslab_heap_free_cold(p, heap, KSLAB_TAIL_CALLER(caller));
		return;
	}
	page = *kslab_page_map_quick(&heap->map, top, address);
	if (KSLAB_CFG_FLAT_MAP && KSLAB_UNLIKELY(page == NULL)) {
		kslab_heap_free_cold(p, heap, KSLAB_TAIL_CALLER(caller));
		return;
	}
	kslab_heap_free_in(heap, p, page, caller);
}

#endif
