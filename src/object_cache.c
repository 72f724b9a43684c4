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
	cache->first_page = UINTPTR_MAX;
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

/*
 * A walk along the page map for pages of the cache that have live objects. Lists belong to CPUs that
 * go on; but under the lock no descriptor that the map leads to gets another life, and a page with
 * live objects stays where it is without it, too.
 */
struct walk {
	const struct kslab_cache *cache;
	uintptr_t at; /* what comes next; 0: it is over */
};

/* Entries that are looked at under the lock at a time, up to the first page of the cache. */
#define ENTRIES_A_STEP 16u

/* What is in quarantine is not live, and nobody's but of who takes it out, another CPU perhaps. */
static kslab_word live_word(const struct walk *walk, const struct kslab_page *page, unsigned i)
{
	kslab_word live = kslab_page_live_word(page, i);

	return live == 0 ? 0 : live & ~kslab_debug_held(walk->cache->heap, page, i);
}

static uint32_t count_live(const struct walk *walk, const struct kslab_page *page)
{
	uint32_t live = 0;

	for (unsigned i = 0; i < kslab_page_words(page); i++)
		live += kslab_popcount(live_word(walk, page, i));
	return live;
}

/* A page of the cache that begins at the address. Under the lock. */
static bool is_own_page(const struct walk *walk, const struct kslab_page *page, uintptr_t address)
{
	if (kslab_page_is_none(page))
		return false;
	/* Pairs with the release of kslab_sc_insert: address, slots and class are there. */
	if (!(KSLAB_LOAD_ACQUIRE(&page->owner) & KSLAB_TAG_CACHE) || page->data != address)
		return false;
	return KSLAB_LOAD_RELAXED(&((const struct kslab_cache_zone *)page->sc)->cache) ==
	       walk->cache;
}

/* The next few entries of the map. Under the lock. Return: a page with live objects, or NULL. */
static struct kslab_page *walk_step(struct walk *walk)
{
	const struct kslab_page_map *map = &walk->cache->heap->map;
	const uintptr_t leaf = (uintptr_t)1 << KSLAB_CFG_LEAF_SHIFT;
	uintptr_t last = KSLAB_LOAD_RELAXED(&walk->cache->last_page), missing;

	if (kslab_page_map_lacks_leaf(map, walk->at, 1, &missing)) {
		walk->at = (walk->at & ~(leaf - 1)) + leaf;
		return NULL;
	}
	for (unsigned n = ENTRIES_A_STEP; n != 0 && walk->at != 0 && walk->at <= last; n--) {
		uintptr_t address = walk->at;
		struct kslab_page *page = kslab_page_map_look(map, address);

		walk->at += (uintptr_t)1 << KSLAB_CFG_GRAIN_SHIFT;
		if (is_own_page(walk, page, address))
			return count_live(walk, page) != 0 ? page : NULL;
		if ((walk->at & (leaf - 1)) == 0)
			break;
	}
	return NULL;
}

static struct kslab_page *next_live_page(struct walk *walk)
{
	struct kslab_heap *heap = walk->cache->heap;
	struct kslab_page *page = NULL;

	while (page == NULL && walk->at != 0 &&
	       walk->at <= KSLAB_LOAD_RELAXED(&walk->cache->last_page)) {
		struct kslab_lock_state state;

		if (!kslab_heap_lock(heap, &state))
			break;
		page = walk_step(walk);
		kslab_heap_unlock(heap, &state);
	}
	return page;
}

/* Count the live objects, and describe the first one. */
static void judge(const struct kslab_cache *cache, struct kslab_report *report)
{
	struct walk walk = { cache, KSLAB_LOAD_RELAXED(&cache->first_page) };
	const struct kslab_page *page;

	while ((page = next_live_page(&walk)) != NULL) {
		if (report->count == 0) {
			unsigned i = 0;

			while (live_word(&walk, page, i) == 0)
				i++;
			report->object_bytes = page->sc->size;
			report->object =
				(const void *)(page->data + ((uintptr_t)i * KSLAB_WORD_BITS +
							     kslab_ctz(live_word(&walk, page, i))) *
								    report->object_bytes);
			report->page = (const void *)page->data;
			report->page_bytes = (size_t)page->pages << cache->heap->page_shift;
		}
		report->count += count_live(&walk, page);
	}
}

/* Free what lives in a page, whatever it is. With the last one the page may be gone. */
static void drop_objects(const struct walk *walk, struct kslab_page *page, const void *caller)
{
	struct kslab_heap *heap = walk->cache->heap;
	uint32_t live = count_live(walk, page);

	for (unsigned i = 0; live != 0; i++) {
		for (kslab_word word = live_word(walk, page, i); word != 0; word &= word - 1) {
			uint32_t index = i * KSLAB_WORD_BITS + kslab_ctz(word);

			if (heap->debug_level != 0)
				kslab_debug_drop(heap, page, index);
			kslab_heap_set_free(heap, page, index, NULL, caller);
			live--;
		}
	}
}

bool kslab_caches_enter(struct kslab_heap *heap, bool waits)
{
	struct kslab_lock_state state;

	if (!(waits ? kslab_heap_lock : kslab_heap_try_lock)(heap, &state))
		return false;
	KSLAB_FETCH_ADD_RELAXED(&heap->lookers, 1u);
	kslab_heap_unlock(heap, &state);
	return true;
}

void kslab_caches_leave(struct kslab_heap *heap)
{
	/* Pairs with the look of unlink_cache: what was read of a cache was read before. */
	KSLAB_FETCH_ADD_RELEASE(&heap->lookers, ~(uint32_t)0);
}

/* Return: false: somebody walks the list. */
static bool unlink_cache(struct kslab_cache *cache)
{
	struct kslab_heap *heap = cache->heap;
	struct kslab_cache **link = &heap->caches;
	struct kslab_lock_state state;
	bool is_quiet;

	if (!kslab_heap_lock(heap, &state))
		return false;
	is_quiet = KSLAB_LOAD_ACQUIRE(&heap->lookers) == 0;
	while (is_quiet && *link != NULL && *link != cache)
		link = &(*link)->next;
	if (is_quiet && *link != NULL)
		*link = cache->next;
	kslab_heap_unlock(heap, &state);
	return is_quiet;
}

/* Return: false: other CPUs still have pages of it, or look at it. */
static bool end(struct kslab_cache *cache)
{
	return kslab_cache_end_zones(cache) && unlink_cache(cache);
}

enum kslab_reason kslab_cache_destroy(struct kslab_cache *cache)
{
	struct kslab_report report = { .fault = KSLAB_FAULT_LIVE_OBJECTS,
				       .caller = KSLAB_CALLER() };

	judge(cache, &report);
	if (report.count != 0) {
		kslab_report_fault(cache->heap, &report);
		return KSLAB_BAD_ARGUMENT;
	}
	if (cache->heap->debug_level >= 2)
		kslab_debug_flush(cache->heap);
	return end(cache) ? KSLAB_OK : KSLAB_BUSY;
}

size_t kslab_cache_destroy_forced(struct kslab_cache *cache)
{
	struct kslab_report report = { .fault = KSLAB_FAULT_LIVE_OBJECTS };
	struct walk walk = { cache, KSLAB_LOAD_RELAXED(&cache->first_page) };
	const void *caller = KSLAB_CALLER();
	struct kslab_page *page;

	judge(cache, &report);
	if (cache->heap->debug_level >= 2)
		kslab_debug_flush(cache->heap);
	while ((page = next_live_page(&walk)) != NULL)
		drop_objects(&walk, page, caller);
	end(cache);
	return report.count;
}

enum kslab_reason kslab_cache_init(struct kslab_cache *cache, const char *name, size_t size,
				   size_t align, void (*constructor)(void *, void *), void *ctx)
{
	return kslab_heap_cache_init(&kslab_default_heap, cache, name, size, align, constructor,
				     ctx);
}
