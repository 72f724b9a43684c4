/* SPDX-License-Identifier: MIT
 * cache_zone.c - owns a cache's part of a zone: made when the cache is first used there.
 * Rank: 5.  Runs: any CPU, any level, no zone entered.
 */
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
