/* SPDX-License-Identifier: MIT
 * free_slow.c - owns a free behind the fast path: full pages, pages of others, other doors; and what
 * a live object is.
 * Rank: 5.  Runs: any CPU, any level, no zone entered.
 */
#include "debug.h"
#include "heap.h"

/*
 * True if the page's objects may be freed through this door: kslab_free, or kslab_cache_free of
 * this cache.
 */
static bool is_right_door(const struct kslab_page *page, uintptr_t owner,
			  const struct kslab_cache *cache)
{
	if ((owner & ~KSLAB_TAG_MASK) == 0)
		return false;
	if (cache == NULL)
		return !(owner & KSLAB_TAG_CACHE);
	return (owner & KSLAB_TAG_CACHE) &&
	       ((const struct kslab_cache_zone *)kslab_page_sc(page))->cache == cache;
}

/* With retention 0 a current page must not stay behind when it is empty. */
static void retire_if_unused(struct kslab_owner *owner, struct kslab_page *page)
{
	if (page->state == KSLAB_PAGE_CURRENT && kslab_page_live(page) == 0)
		kslab_sc_retire(owner, page->sc);
}

/* What debug levels do first, inside the zone if there is one. Return: true: go on. */
static bool is_ready_to_free(struct kslab_heap *heap, struct kslab_zone *zone,
			     struct kslab_page *page, uint32_t index,
			     struct kslab_retiring *retiring)
{
	if (zone != NULL && kslab_page_owner(page) == &zone->owner &&
	    !kslab_fence_free(heap, zone, page, index)) {
		if (retiring != NULL)
			retiring->is_fenced = true;
		return false;
	}
	return retiring == NULL || kslab_debug_retire(heap, page, index, retiring);
}

static void count_remote(struct kslab_heap *heap, struct kslab_zone *zone, size_t n)
{
	if (zone != NULL)
		KSLAB_STORE_RELAXED(&zone->owner.remote_frees, zone->owner.remote_frees + n);
	else
		KSLAB_FETCH_ADD_RELAXED(&heap->zoneless_frees, n);
}

/* Inside a zone of this CPU, or NULL. Return: false: it was free. */
KSLAB_INLINE bool free_to_other(struct kslab_heap *heap, struct kslab_zone *zone,
				struct kslab_page *page, uint32_t index)
{
	/* Counted before it is done: kslab_quiesce never sees a harvest without its free. */
	count_remote(heap, zone, 1);
	switch (kslab_page_free_remote(page, index)) {
	case KSLAB_REMOTE_DOUBLE:
		count_remote(heap, zone, ~(size_t)0);
		return false;
	case KSLAB_REMOTE_MAILED:
		if (zone != NULL)
			zone->counters.mails++;
		return true;
	default:
		return true;
	}
}

static bool set_free(struct kslab_heap *heap, struct kslab_page *page, uint32_t index,
		     struct kslab_retiring *retiring, const void *caller)
{
	struct kslab_zone *zone;
	bool freed;

	KSLAB_PORT_PIN();
	zone = kslab_heap_enter(heap);
	if (heap->debug_level != 0 && !is_ready_to_free(heap, zone, page, index, retiring)) {
		freed = false;
	} else if (zone != NULL && kslab_page_owner(page) == &zone->owner) {
		freed = kslab_sc_free_local(&zone->owner, page, index);
		if (freed && (KSLAB_LOAD_RELAXED(&page->owner) & KSLAB_TAG_EAGER))
			retire_if_unused(&zone->owner, page);
		zone->counters.slow_frees++;
	} else {
		freed = free_to_other(heap, zone, page, index);
	}
	if (zone != NULL)
		kslab_heap_leave(heap, zone, caller);
	else
		KSLAB_PORT_UNPIN();
	return freed;
}

bool kslab_heap_set_free(struct kslab_heap *heap, struct kslab_page *page, uint32_t index,
			 struct kslab_retiring *retiring, const void *caller)
{
	return set_free(heap, page, index, retiring, caller);
}

KSLAB_SLOW void kslab_heap_free_slow(struct kslab_heap *heap, void *p, struct kslab_cache *cache,
				     const void *caller)
{
	uintptr_t address = (uintptr_t)p, owner;
	struct kslab_page *page;
	uint32_t index;

	if (p == NULL)
		return;
	page = kslab_page_map_find(&heap->map, address);
	owner = KSLAB_LOAD_RELAXED(&page->owner);
	if (owner == kslab_large_tag(heap) && cache == NULL) {
		if (heap->debug_level != 0 && address == page->data &&
		    !kslab_debug_large_measure(heap, page, caller))
			return;
		if (!kslab_large_free(heap, page, address))
			kslab_heap_fault_pointer(heap, p, cache, caller);
		return;
	}
	if (heap->debug_level != 0 && !kslab_fence_is_known(heap, page)) {
		kslab_heap_fault_pointer(heap, p, cache, caller);
		return;
	}
	if (!is_right_door(page, owner, cache) ||
	    (index = kslab_page_index(page, address)) >= page->slots) {
		kslab_heap_fault_pointer(heap, p, cache, caller);
		return;
	}
	if (heap->debug_level != 0)
		kslab_debug_free(heap, page, index, cache, caller);
	else if (KSLAB_UNLIKELY(!set_free(heap, page, index, NULL, caller)))
		kslab_heap_fault_pointer(heap, p, cache, caller);
}

/*
 * The middle path: plain objects of another CPU's pages, and of our own full ones. The slot was
 * found; the verdict, where one is due, is left to kslab_heap_free_slow.
 */
static KSLAB_SLOW void free_plain(void *p, struct kslab_heap *heap, struct kslab_page *page,
				  const void *caller, uint32_t index)
{
	struct kslab_zone *zone;
	bool freed;

	KSLAB_PORT_PIN();
	zone = kslab_heap_quick_zone(heap);
	if (KSLAB_UNLIKELY(KSLAB_LOAD_RELAXED(&zone->owner.key) == 0)) {
		KSLAB_PORT_UNPIN();
		if (zone == &kslab_zone_none)
			KSLAB_PORT_NO_ZONE();
		kslab_heap_free_slow(heap, p, NULL, caller);
		return;
	}
	kslab_zone_enter(zone);
	if (kslab_page_owner(page) == &zone->owner) {
		freed = kslab_sc_free_local(&zone->owner, page, index);
		zone->counters.slow_frees++;
	} else {
		freed = free_to_other(heap, zone, page, index);
	}
	if (KSLAB_UNLIKELY(kslab_zone_has_work(heap, zone))) {
		kslab_heap_leave(heap, zone, caller);
	} else {
		kslab_zone_leave(zone);
		KSLAB_PORT_UNPIN();
	}
	if (KSLAB_UNLIKELY(!freed))
		kslab_heap_fault_pointer(heap, p, NULL, caller);
}

/* Here and below: nothing but jumps, so that no way pays for the registers of another one. */
static KSLAB_SLOW void free_known_0(void *p, struct kslab_heap *heap, struct kslab_page *page,
				    const void *caller)
{
	uintptr_t owner;
	uint32_t index;

	owner = KSLAB_LOAD_RELAXED(&page->owner) & ~KSLAB_TAG_FULL;
	index = kslab_page_index(page, (uintptr_t)p);
	if (KSLAB_UNLIKELY((owner & KSLAB_TAG_MASK) != 0 || owner == 0 || index >= page->slots))
		kslab_heap_free_slow(heap, p, NULL, caller);
	else
		free_plain(p, heap, page, caller, index);
}

KSLAB_SLOW void kslab_heap_free_known(void *p, struct kslab_heap *heap, struct kslab_page *page,
				      const void *caller)
{
	KSLAB_TAKE_CALLER(caller);
	if (KSLAB_LIKELY(heap->debug_level == 0)) {
		if (KSLAB_LOAD_RELAXED(&page->owner) == kslab_large_tag(heap))
			kslab_large_free_plain(p, heap, page, caller);
		else
			free_known_0(p, heap, page, caller);
	} else if (heap->debug_level == 1) {
		kslab_debug_free_1(p, heap, page, caller);
	} else {
		kslab_debug_free_2(p, heap, page, caller);
	}
}

KSLAB_SLOW void kslab_heap_free_cold(void *p, struct kslab_heap *heap, const void *caller)
{
	KSLAB_TAKE_CALLER(caller);
	kslab_heap_free_known(p, heap, kslab_page_map_find(&heap->map, (uintptr_t)p), caller);
}

KSLAB_SLOW void kslab_heap_word_full(struct kslab_zone *zone, const void *caller,
				     struct kslab_page *page)
{
	KSLAB_TAKE_CALLER(caller);
	if (KSLAB_LIKELY(page->state !=
			 KSLAB_PAGE_PARTIAL)) { /* the current page: nothing changes */
		if (KSLAB_CFG_LEVELS > 1)
			kslab_zone_leave(zone);
		KSLAB_PORT_UNPIN();
		return;
	}
	kslab_sc_word_full(&zone->owner, page);
	kslab_heap_leave(zone->heap, zone, caller);
}

struct kslab_page *kslab_heap_object(struct kslab_heap *heap, const void *p, size_t *bytes,
				     const void *caller)
{
	uintptr_t address = (uintptr_t)p, owner;
	struct kslab_page *page = kslab_page_map_find(&heap->map, address);
	uint32_t index;

	*bytes = 0;
	owner = KSLAB_LOAD_RELAXED(&page->owner);
	if (owner == kslab_large_tag(heap)) {
		if (address == page->data) {
			if (heap->debug_level != 0 &&
			    !kslab_debug_large_measure(heap, page, caller))
				return NULL;
			*bytes = heap->debug_level != 0 ? page->bits[0].remote
							: kslab_large_bytes(heap, page);
			return page;
		}
	} else if ((owner & ~KSLAB_TAG_MASK) != 0 && page->sc != NULL &&
		   (heap->debug_level == 0 || kslab_fence_is_known(heap, page))) {
		index = kslab_page_index(page, address);
		if (index < page->slots) {
			const struct kslab_bits *bits = &page->bits[index / KSLAB_WORD_BITS];
			kslab_word free = KSLAB_LOAD_ACQUIRE(&bits->remote);

			free |= KSLAB_LOAD_ACQUIRE(&bits->freed);
			free |= KSLAB_LOAD_RELAXED(&bits->avail);
			if (!(free & kslab_bit(index))) {
				*bytes = kslab_page_sc(page)->size;
				if (heap->debug_level != 0 &&
				    !kslab_debug_measure(heap, page, index, bytes, caller))
					return NULL;
				return page;
			}
		}
	}
	kslab_heap_fault_pointer(heap, p, NULL, caller);
	return NULL;
}
