/* SPDX-License-Identifier: MIT
 * object_cache.c - owns typed caches with a constructor.
 * Rank: 6.  Runs: alloc and free anywhere; init and destroy in a thread.
 * Source: the object caches of Bonwick 1994; here free objects keep their constructed state because
 * the allocator never touches them.
 */
#include "debug.h"
#include "heap.h"
#include "inject.h"

enum kslab_reason kslab_heap_cache_init(struct kslab_heap *heap, struct kslab_cache *cache,
					const char *name, size_t size, size_t align,
					void (*constructor)(void *, void *), void *ctx)
{
	struct kslab_lock_state state;
	size_t slot;

	if (heap->state != KSLAB_HEAP_READY)
		return KSLAB_NOT_INITIALISED;
	if (align == 0)
		align = size < heap->min_align ? 8 : heap->min_align;
	if (!kslab_is_power_of_two(align) || align > heap->page_bytes)
		return KSLAB_BAD_ALIGNMENT;
	if (size == 0 || size > heap->max_page_bytes)
		return KSLAB_BAD_ARGUMENT;
	if (align < 8)
		align = 8;
	slot = (size + align - 1) & ~(align - 1);
	if (slot > heap->max_page_bytes)
		return KSLAB_BAD_ARGUMENT;
	if (heap->debug_level != 0)
		slot = kslab_debug_cache_slot(heap, size, align);
	memset(cache, 0, sizeof(*cache));
	cache->heap = heap;
	cache->name = name;
	cache->size = size;
	cache->align = align;
	cache->slot_bytes = (uint32_t)slot;
	cache->constructor = constructor;
	cache->ctx = ctx;
	kslab_class_runs(slot, heap->page_bytes, heap->max_page_bytes, &cache->min_run,
			 &cache->max_run);
	if (!kslab_heap_lock(heap, &state))
		return KSLAB_BUSY;
	cache->next = heap->caches;
	KSLAB_STORE_RELEASE(&heap->caches, cache);
	kslab_heap_unlock(heap, &state);
	return KSLAB_OK;
}

void *kslab_cache_alloc(struct kslab_cache *cache)
{
	const struct kslab_request request = { cache, 0, 0, KSLAB_CALLER() };
	struct kslab_heap *heap = cache->heap;
	struct kslab_zone *zone;
	struct kslab_cache_zone *own;
	void *object = NULL;

	if (kslab_inject_object(heap, KSLAB_INJECT_CACHE, false))
		return kslab_heap_fail(heap, KSLAB_INJECTED);
	if (KSLAB_UNLIKELY(heap->debug_level != 0)) {
		object = kslab_heap_alloc_slow(heap, &request);
		if (object != NULL)
			kslab_debug_issue(heap, object, &request, cache->size, 1);
		return object;
	}
	KSLAB_PORT_PIN();
	zone = kslab_heap_enter(heap);
	if (KSLAB_LIKELY(zone != NULL)) {
		own = KSLAB_LOAD_ACQUIRE(&cache->zones[kslab_zone_index(zone)]);
		if (KSLAB_LIKELY(own != NULL))
			object = kslab_sc_pop(&own->sc);
		kslab_zone_leave(zone);
	}
	KSLAB_PORT_UNPIN();
	return KSLAB_LIKELY(object != NULL) ? object : kslab_heap_alloc_slow(heap, &request);
}

void kslab_cache_free(struct kslab_cache *cache, void *object)
{
	kslab_heap_free_slow(cache->heap, object, cache, KSLAB_CALLER());
}

bool kslab_cache_reserve(struct kslab_cache *cache, size_t count)
{
	const struct kslab_request request = { cache, 0, 0, KSLAB_CALLER() };

	return kslab_heap_reserve_request(cache->heap, &request, count);
}

/* ---- the end of a cache ---------------------------------------------------------------------- */

struct ending {
	struct kslab_cache *cache;
	struct kslab_report report;
};

static void look_for_live(void *ctx, const struct kslab_page *page)
{
	struct ending *ending = ctx;
	const struct kslab_heap *heap = ending->cache->heap;
	uint32_t live = kslab_page_live(page) - kslab_debug_held_slots(heap, page);

	if (live != 0 && ending->report.count == 0) {
		for (uint32_t i = 0; i < page->slots; i++) {
			const struct kslab_bits *bits = &page->bits[i / KSLAB_WORD_BITS];

			if (!((bits->avail | bits->freed | KSLAB_LOAD_RELAXED(&bits->remote) |
			       kslab_debug_held(heap, page, i / KSLAB_WORD_BITS)) &
			      kslab_bit(i))) {
				ending->report.object =
					(const void *)(page->data + (uintptr_t)i * page->sc->size);
				break;
			}
		}
		ending->report.object_bytes = page->sc->size;
		ending->report.page = (const void *)page->data;
		ending->report.page_bytes = (size_t)page->pages << ending->cache->heap->page_shift;
	}
	ending->report.count += live;
}

static void count_zone(void *ctx, struct kslab_zone *zone)
{
	struct ending *ending = ctx;
	struct kslab_cache_zone *own = ending->cache->zones[kslab_zone_index(zone)];

	if (own != NULL && zone != zone->heap->limbo)
		kslab_sc_each(&own->sc, look_for_live, ending);
}

/* Every page of the cache goes, whatever is in it. */
static void end_zone(void *ctx, struct kslab_zone *zone)
{
	struct ending *ending = ctx;
	struct kslab_cache_zone *own = ending->cache->zones[kslab_zone_index(zone)];

	if (own == NULL || zone == zone->heap->limbo)
		return;
	kslab_sc_drain(&zone->owner, KSLAB_ALL);
	kslab_sc_retire(&zone->owner, &own->sc);
	kslab_sc_sweep(&zone->owner, &own->sc);
	for (;;) {
		struct kslab_page *page = own->sc.partial.head;

		if (page == NULL)
			page = own->sc.full.head;
		if (page != NULL) {
			/* Forced: the live objects are declared free. */
			if (zone->heap->debug_level != 0)
				kslab_debug_prepare(zone->heap, page, own->sc.size, own->cache,
						    KSLAB_NOWAIT);
			for (unsigned i = 0;
			     i < (page->slots + KSLAB_WORD_BITS - 1) / KSLAB_WORD_BITS; i++) {
				kslab_page_harvest_word(&zone->owner, page, i);
				KSLAB_STORE_RELAXED(&page->bits[i].freed, ~(kslab_word)0);
			}
			kslab_sc_drain(&zone->owner, KSLAB_ALL);
			if (page->state == KSLAB_PAGE_FULL)
				kslab_sc_refile(&zone->owner, page);
			kslab_sc_sweep(&zone->owner, &own->sc);
			continue;
		}
		page = own->sc.empty.head;
		if (page == NULL)
			break;
		kslab_sc_drain(&zone->owner, KSLAB_ALL);
		if (kslab_sc_remove_empty(&zone->owner, page))
			kslab_heap_release_page(zone->heap, page);
	}
	ending->cache->zones[kslab_zone_index(zone)] = NULL;
	/* It stays in the zone's list, where somebody may be looking at it, for the next cache. */
	KSLAB_STORE_RELEASE(&own->cache, (struct kslab_cache *)NULL);
}

static void unlink_cache(struct kslab_cache *cache)
{
	struct kslab_heap *heap = cache->heap;
	struct kslab_lock_state state;

	if (!kslab_heap_lock(heap, &state))
		return;
	for (struct kslab_cache **link = &heap->caches; *link != NULL; link = &(*link)->next) {
		if (*link == cache) {
			*link = cache->next;
			break;
		}
	}
	kslab_heap_unlock(heap, &state);
}

enum kslab_reason kslab_cache_destroy(struct kslab_cache *cache)
{
	struct ending ending = { cache,
				 { .fault = KSLAB_FAULT_LIVE_OBJECTS, .caller = KSLAB_CALLER() } };

	kslab_heap_each_zone(cache->heap, count_zone, &ending);
	if (ending.report.count != 0) {
		kslab_report_fault(cache->heap, &ending.report);
		return KSLAB_BAD_ARGUMENT;
	}
	if (cache->heap->debug_level >= 2)
		kslab_debug_flush(cache->heap);
	kslab_heap_each_zone(cache->heap, end_zone, &ending);
	unlink_cache(cache);
	return KSLAB_OK;
}

size_t kslab_cache_destroy_forced(struct kslab_cache *cache)
{
	struct ending ending = { cache, { .fault = KSLAB_FAULT_LIVE_OBJECTS } };

	kslab_heap_each_zone(cache->heap, count_zone, &ending);
	if (cache->heap->debug_level >= 2)
		kslab_debug_flush(cache->heap);
	kslab_heap_each_zone(cache->heap, end_zone, &ending);
	unlink_cache(cache);
	return ending.report.count;
}

enum kslab_reason kslab_cache_init(struct kslab_cache *cache, const char *name, size_t size,
				   size_t align, void (*constructor)(void *, void *), void *ctx)
{
	return kslab_heap_cache_init(&kslab_default_heap, cache, name, size, align, constructor,
				     ctx);
}
