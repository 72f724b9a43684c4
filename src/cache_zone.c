/* SPDX-License-Identifier: MIT
 * cache_zone.c - owns a cache's parts of zones: made when the cache is first used there, emptied
 * and left when it ends.
 * Rank: 5.  Runs: any CPU, any level, no zone entered; the end in a thread.
 *
 * The end. Nobody uses the cache, but its pages lie in the zones of CPUs that go on, and only the
 * owner of a zone may take pages out. So the CPU that ends the cache empties its own zones, and under
 * the lock those of CPUs that are offline; the others are asked as by kslab_reclaim, and give back
 * what is empty on their way (trim.c). The cache is read for a page until kslab_tally_remove, the last
 * thing that is done for it, has taken the page off cache->pages. Pages are made for callers of the
 * cache only, so nothing is added any more: 0 there, read with acquire, means that no CPU will look
 * at the cache again. Then its parts are let go; they stay in their zones for other caches.
 */
#include "debug.h"
#include "heap.h"

/* A part of the zone whose cache has ended, now the new one's; NULL: none among the first few. */
static struct kslab_cache_zone *reuse_cache_zone(struct kslab_zone *zone, struct kslab_cache *cache)
{
	struct kslab_cache_zone *own = KSLAB_LOAD_ACQUIRE(&zone->caches);

	for (unsigned n = KSLAB_LOOKS_MOST; own != NULL && n != 0; own = own->next, n--) {
		struct kslab_cache *none = NULL;

		/* Pairs with the store of the cache's end. */
		if (KSLAB_LOAD_RELAXED(&own->cache) == NULL &&
		    KSLAB_CAS_ACQ_REL(&own->cache, &none, cache))
			return own;
	}
	return NULL;
}

enum kslab_reason kslab_cache_add_zone(struct kslab_heap *heap, const struct kslab_request *request,
				       struct kslab_zone *zone)
{
	const struct kslab_sc core =
		KSLAB_SC_CORE_INIT(request->cache->slot_bytes, KSLAB_CLASS_CACHE);
	struct kslab_cache *cache = request->cache;
	struct kslab_cache_zone *own = reuse_cache_zone(zone, cache), *none = NULL, *head;
	enum kslab_reason reason;

	if (own != NULL) {
		own->sc.size = core.size;
	} else {
		own = kslab_meta_alloc(heap, sizeof(*own), request->flags, &reason);
		if (own == NULL)
			return reason;
		own->sc = core;
		own->cache = cache;
		head = KSLAB_LOAD_RELAXED(&zone->caches);
		do {
			own->next = head;
		} while (!KSLAB_CAS_RELEASE(&zone->caches, &head, own));
	}
	if (!KSLAB_CAS_ACQ_REL(&cache->zones[kslab_zone_index(zone)], &none, own))
		KSLAB_STORE_RELEASE(&own->cache, (struct kslab_cache *)NULL);
	return KSLAB_OK;
}

/* ---- the end --------------------------------------------------------------------------------- */

/* Of a zone of this CPU: an empty page of the cache, taken out; NULL: none. */
static struct kslab_page *take_here(struct kslab_cache *cache, unsigned level, bool looks)
{
	struct kslab_heap *heap = cache->heap;
	struct kslab_cache_zone *own;
	struct kslab_page *page = NULL;
	struct kslab_zone *zone;

	zone = kslab_heap_pin_level(heap, level);
	if (zone == NULL)
		return NULL;
	own = cache->zones[kslab_zone_index(zone)];
	if (own != NULL && looks) {
		if (heap->debug_level != 0)
			kslab_fence_zone(heap, zone);
		kslab_sc_drain(&zone->owner, KSLAB_ALL);
		kslab_sc_retire(&zone->owner, &own->sc);
		kslab_sc_sweep(&zone->owner, &own->sc);
	}
	if (own != NULL)
		page = kslab_zone_take_empty_of(heap, zone, &own->sc);
	kslab_zone_leave_reporting(heap, zone, KSLAB_CALLER());
	return page;
}

static void empty_parked(void *ctx, struct kslab_zone *zone)
{
	struct kslab_cache *cache = ctx;
	struct kslab_cache_zone *own = cache->zones[kslab_zone_index(zone)];

	if (own != NULL && zone != zone->heap->limbo)
		kslab_parked_empty(zone->heap, zone, &own->sc);
}

struct asking {
	const struct kslab_cache *cache;
	bool is_new; /* some zone has pages of it, and no request waits there */
};

static void look_for_unasked(void *ctx, struct kslab_zone *zone)
{
	struct asking *asking = ctx;
	const struct kslab_cache_zone *own = asking->cache->zones[kslab_zone_index(zone)];

	if (own != NULL && zone != zone->heap->limbo && KSLAB_LOAD_RELAXED(&own->sc.pages) != 0 &&
	    KSLAB_LOAD_RELAXED(&zone->reclaim_epoch) ==
		    KSLAB_LOAD_RELAXED(&zone->heap->reclaim_epoch))
		asking->is_new = true;
}

/* Pages behind the fence stay counted: where there are some, what the parts have decides. */
static bool is_empty(const struct kslab_cache *cache)
{
	if (KSLAB_LOAD_ACQUIRE(&cache->pages) == 0)
		return true;
	if (KSLAB_LOAD_RELAXED(&cache->heap->fenced_pages) == 0)
		return false;
	for (unsigned i = 0; i < KSLAB_ARRAY_LENGTH(cache->zones); i++)
		if (cache->zones[i] != NULL && KSLAB_LOAD_RELAXED(&cache->zones[i]->sc.pages) != 0)
			return false;
	return true;
}

bool kslab_cache_end_zones(struct kslab_cache *cache)
{
	struct asking asking = { cache, false };
	struct kslab_page *page;

	for (unsigned level = 0; level < KSLAB_CFG_LEVELS; level++)
		for (bool looks = true; (page = take_here(cache, level, looks)) != NULL;
		     looks = false)
			kslab_heap_release_page(cache->heap, page);
	if (!is_empty(cache))
		kslab_heap_each_zone(cache->heap, empty_parked, cache);
	if (!is_empty(cache)) {
		kslab_heap_each_zone(cache->heap, look_for_unasked, &asking);
		if (asking.is_new)
			KSLAB_FETCH_ADD_RELAXED(&cache->heap->reclaim_epoch, 1u);
		return false;
	}
	for (unsigned i = 0; i < KSLAB_ARRAY_LENGTH(cache->zones); i++) {
		struct kslab_cache_zone *own = cache->zones[i];

		cache->zones[i] = NULL;
		/* It stays in the zone's list, where somebody may be looking at it. */
		if (own != NULL)
			KSLAB_STORE_RELEASE(&own->cache, (struct kslab_cache *)NULL);
	}
	return true;
}
