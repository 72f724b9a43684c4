/* SPDX-License-Identifier: MIT
 * init.c - owns the start and the end of a heap: configuration, routes, regions, page source.
 * Rank: 5.  Runs: once, or in a thread.
 */
#include "debug.h"
#include "heap.h"
#include "page_list.h"
#include "region.h"

#define DEFAULT_MAX_PAGE_BYTES 65536u /* 16 KiB is 2 % slower on mixed loads, 4 KiB 50 % */
#define DEFAULT_MIN_ALIGN                                                                          \
	8u /* as in Linux: a type aligned to 16 has a size that leads to a slot aligned to 16 */
#define DEFAULT_RETAIN_BYTES (512u * 1024)
#define DEFAULT_QUARANTINE_OBJECTS 256u
#define DEFAULT_QUARANTINE_BYTES (256u * 1024)
#define DEFAULT_PURGE_BYTES (8u * 1024 * 1024)

/* Bytes a slot of the class really costs, in 1/65536: its share of the longest page. */
static uint64_t cost_of(const struct kslab_heap *heap, unsigned cls)
{
	size_t run = (size_t)heap->max_run[cls] << heap->page_shift,
	       slots = kslab_divide(run, kslab_class_bytes(cls));
	uint64_t cost = 0, rest = 0;

	if (slots == 0)
		return UINT64_MAX;
	/*
	 * Long division of run << 16 by slots, both below 2^31: no libgcc call on 32-bit machines.
	 */
	for (unsigned bit = 48; bit-- > 0;) {
		rest = rest << 1 | (bit >= 16 ? (run >> (bit - 16)) & 1 : 0);
		cost <<= 1;
		if (rest >= slots) {
			rest -= slots;
			cost |= 1;
		}
	}
	return cost;
}

static bool is_usable_class(const struct kslab_heap *heap, unsigned cls)
{
	size_t bytes = kslab_class_bytes(cls);

	/* Powers of two: the remainders are masks. Above a page, objects are page aligned. */
	if (bytes > heap->page_bytes && (bytes & (heap->page_bytes - 1)) != 0 && !heap->packs)
		return false;
	return bytes <= heap->max_page_bytes &&
	       (bytes < heap->min_align || (bytes & (heap->min_align - 1)) == 0);
}

/*
 * Which class serves which sizes. A class whose slots cost no less than a larger one's is not used:
 * in single 4 KiB frames 1408 bytes cost as much as 2048.
 */
static void init_routes(struct kslab_heap *heap)
{
	uint64_t best_cost = UINT64_MAX;
	uint8_t best = KSLAB_CLASSES;
	size_t below = 0;

	for (unsigned cls = 0; cls < KSLAB_CLASSES; cls++)
		kslab_class_runs(kslab_class_bytes(cls), heap->page_bytes, heap->max_page_bytes,
				 &heap->min_run[cls], &heap->max_run[cls]);
	for (unsigned cls = KSLAB_CLASSES; cls-- > 0;) {
		if (is_usable_class(heap, cls) && cost_of(heap, cls) < best_cost) {
			best = (uint8_t)cls;
			best_cost = cost_of(heap, cls);
		}
		heap->use_class[cls] = best;
	}
	for (unsigned cls = 0; cls < KSLAB_CLASSES; cls++) {
		heap->size_below[cls] = (uint16_t)below;
		if (heap->use_class[cls] == cls)
			below = kslab_class_bytes(cls);
	}
	heap->route_limit = 0;
	for (size_t i = 0; i < KSLAB_ARRAY_LENGTH(heap->route); i++) {
		unsigned cls = heap->use_class[kslab_class_of((i + 1) * 8)];

		if (cls == KSLAB_CLASSES)
			break;
		heap->route[i] =
			(uint16_t)(offsetof(struct kslab_zone, sc) + cls * sizeof(struct kslab_sc));
		heap->route_limit = i + 1;
	}
	if (heap->debug_level != 0) {
		heap->debug_limit = kslab_debug_quick_limit(heap, heap->route_limit);
		heap->route_limit = 0; /* every call goes the slow way, where the checks are */
	}
}

static bool is_valid_config(const struct kslab_config *config, size_t page_bytes,
			    size_t max_page_bytes, size_t min_align)
{
	return kslab_is_power_of_two(page_bytes) &&
	       page_bytes >= (size_t)1 << KSLAB_CFG_GRAIN_SHIFT && page_bytes <= (size_t)1 << 30 &&
	       kslab_is_power_of_two(max_page_bytes) && max_page_bytes >= page_bytes &&
	       max_page_bytes >> kslab_log2(page_bytes) <= 32768 &&
	       max_page_bytes <= (size_t)1 << 30 && (min_align == 8 || min_align == 16) &&
	       (config->alloc_pages == NULL) == (config->free_pages == NULL) &&
	       (config->emergency_pages == 0 || config->alloc_pages != NULL) &&
	       config->debug_level <= 2 &&
	       (config->debug_flags & ~(KSLAB_DEBUG_ZERO_ON_FREE | KSLAB_DEBUG_ZERO_ON_ALLOC)) ==
		       0 &&
	       (config->quarantine_objects == KSLAB_QUARANTINE_NONE ||
		config->quarantine_objects <= SIZE_MAX / 4 / sizeof(struct kslab_quarantined));
}

/* All heaps hang on the default one, so that a page of one is not taken for a page of another. */
static void link_heap(struct kslab_heap *heap)
{
	struct kslab_lock_state state;

	if (heap == &kslab_default_heap || !kslab_heap_lock(&kslab_default_heap, &state))
		return;
	for (const struct kslab_heap *other = &kslab_default_heap; other != NULL;
	     other = other->next_heap) {
		if (other->next_heap == heap) { /* initialised again */
			kslab_heap_unlock(&kslab_default_heap, &state);
			return;
		}
	}
	heap->next_heap = kslab_default_heap.next_heap;
	KSLAB_STORE_RELEASE(&kslab_default_heap.next_heap, heap);
	kslab_heap_unlock(&kslab_default_heap, &state);
}

/* Its memory may hold anything before kslab_init: the list of all heaps tells. */
static bool is_in_list(const struct kslab_heap *heap)
{
	const struct kslab_heap *other = &kslab_default_heap;
	struct kslab_lock_state state;

	if (heap == other)
		return true;
	if (!kslab_heap_lock(&kslab_default_heap, &state))
		return false;
	while (other != NULL && other != heap)
		other = other->next_heap;
	kslab_heap_unlock(&kslab_default_heap, &state);
	return other != NULL;
}

static void unlink_heap(struct kslab_heap *heap)
{
	struct kslab_heap *other = &kslab_default_heap;
	struct kslab_lock_state state;

	if (heap == other || !kslab_heap_lock(&kslab_default_heap, &state))
		return;
	for (; other != NULL; other = other->next_heap)
		if (other->next_heap == heap)
			KSLAB_STORE_RELEASE(&other->next_heap, heap->next_heap);
	/* Pairs with the end of a walk. Those that begin from now on do not come by here. */
	while (KSLAB_LOAD_ACQUIRE(&kslab_default_heap.askers) != 0) {
		kslab_heap_unlock(&kslab_default_heap, &state);
		KSLAB_PORT_RELAX();
		kslab_heap_lock(&kslab_default_heap, &state);
	}
	kslab_heap_unlock(&kslab_default_heap, &state);
}

/* What the configuration says beside the geometry, which is set; 0 means the default. */
static void take_config(struct kslab_heap *heap, const struct kslab_config *config)
{
	const size_t retain =
		config->retain_bytes == 0 ? DEFAULT_RETAIN_BYTES : config->retain_bytes;

	heap->packs = config->packs;
	heap->max_pages = config->max_pages;
	heap->purge_bytes = config->purge_bytes != 0 ? config->purge_bytes : DEFAULT_PURGE_BYTES;
	heap->alloc_pages = config->alloc_pages;
	heap->free_pages = config->free_pages;
	heap->purge = config->purge;
	heap->source_ctx = config->source_ctx;
	heap->report = config->report;
	heap->report_ctx = config->report_ctx;
	heap->debug_level =
		config->debug_level > KSLAB_CFG_DEBUG ? config->debug_level : KSLAB_CFG_DEBUG;
	heap->debug_flags = config->debug_flags;
	if (heap->debug_level != 0)
		kslab_debug_init(heap);
	heap->quarantine.capacity = config->quarantine_objects == 0 ? DEFAULT_QUARANTINE_OBJECTS
				    : config->quarantine_objects == KSLAB_QUARANTINE_NONE
					    ? 0
					    : config->quarantine_objects;
	heap->quarantine.max_bytes =
		config->quarantine_bytes != 0 ? config->quarantine_bytes : DEFAULT_QUARANTINE_BYTES;
	heap->retain_run = retain == KSLAB_RETAIN_NONE ? 0 : retain >> heap->page_shift;
	heap->emergency_target = config->emergency_pages;
	heap->flat_map = config->flat_map;
	heap->flat_map_bytes = config->flat_map_bytes;
}

bool kslab_is_layout(size_t layout)
{
	return layout == KSLAB_LAYOUT;
}

enum kslab_reason(kslab_heap_init)(struct kslab_heap *heap, const struct kslab_config *config)
{
	size_t page_bytes = config->page_bytes != 0 ? config->page_bytes : KSLAB_PAGE_BYTES_DEFAULT;
	size_t max_page_bytes =
		config->max_page_bytes != 0 ? config->max_page_bytes : DEFAULT_MAX_PAGE_BYTES;
	size_t min_align = config->min_align != 0 ? config->min_align : DEFAULT_MIN_ALIGN;
	bool is_listed = is_in_list(heap);
	struct kslab_heap *next = is_listed ? heap->next_heap : NULL;

	if (is_listed && heap->state == KSLAB_HEAP_READY)
		return KSLAB_BAD_ARGUMENT; /* it is live */
	if (page_bytes < (size_t)1 << KSLAB_CFG_GRAIN_SHIFT)
		return KSLAB_BAD_ARGUMENT;
	if (max_page_bytes < page_bytes && config->max_page_bytes == 0)
		max_page_bytes = page_bytes;
	if (!is_valid_config(config, page_bytes, max_page_bytes, min_align) ||
	    (KSLAB_CFG_FLAT_MAP &&
	     (config->flat_map == NULL || config->flat_map_bytes < KSLAB_LEAF_BYTES)))
		return KSLAB_BAD_ARGUMENT;
	/*
	 * The heap's memory may hold anything; the top of the map is written entry by entry, as it
	 * grows.
	 */
	memset(heap, 0, offsetof(struct kslab_heap, map));
	memset(heap->map.side, 0, sizeof(heap->map.side));
	memset(&heap->state, 0, sizeof(*heap) - offsetof(struct kslab_heap, state));
	heap->map.limit = 0;
	heap->next_heap = next;
	heap->page_bytes = page_bytes;
	heap->page_shift = kslab_log2(page_bytes);
	heap->max_page_bytes = max_page_bytes;
	heap->min_align = min_align;
	heap->grain_shift = KSLAB_CFG_GRAIN_SHIFT;
	heap->leaf_shift = KSLAB_CFG_LEAF_SHIFT;
	heap->levels = KSLAB_CFG_LEVELS;
	heap->run_limit = UINT16_MAX;
	take_config(heap, config);
	if (config->window_base != 0)
		kslab_source_place_window(heap, config->window_base, 0);
	init_routes(heap);
	for (unsigned cpu = 0; cpu < KSLAB_CFG_CPUS; cpu++)
		heap->zone[cpu] = &kslab_zone_none;
	kslab_zone_start(heap, &heap->boot_zone, 0, 0);
	heap->zone[0] = &heap->boot_zone;
	kslab_heap_set_quick_zone(heap, &heap->boot_zone);
	heap->cpus_online = 1;
	if (!kslab_source_fill_emergency(heap)) {
		heap->emergency_target = 0;
		kslab_source_fini(heap);
		heap->route_limit = 0;
		return KSLAB_NO_PAGES;
	}
	heap->boot_zone.owner.key = (uintptr_t)&heap->boot_zone;
	heap->state = KSLAB_HEAP_READY;
	link_heap(heap);
	return KSLAB_OK;
}

static enum kslab_reason refuse_region(struct kslab_heap *heap, void *mem, size_t bytes,
				       const void *caller, const char *what)
{
	struct kslab_report report = { .fault = KSLAB_FAULT_BAD_REGION,
				       .pointer = mem,
				       .page = mem,
				       .page_bytes = bytes,
				       .caller = caller,
				       .what = what };

	kslab_report_fault(heap, &report);
	return KSLAB_BAD_ARGUMENT;
}

static enum kslab_reason add_region(struct kslab_heap *heap, void *mem, size_t bytes,
				    const void *caller)
{
	uintptr_t start = (uintptr_t)mem;
	struct kslab_region region = { 0 };
	struct kslab_lock_state state;
	const char *what = NULL;
	bool is_elsewhere;

	if (heap->state != KSLAB_HEAP_READY)
		return KSLAB_NOT_INITIALISED;
	if (mem == NULL || bytes < 2 * heap->page_bytes)
		return refuse_region(heap, mem, bytes, caller, "region is too small");
	if (start + (bytes - 1) < start || start + bytes == 0)
		return refuse_region(heap, mem, bytes, caller, "region wraps the address space");
	if (bytes - 1 > (size_t)(KSLAB_WINDOW_BYTES - 1))
		return refuse_region(heap, mem, bytes, caller,
				     "region lies outside the window (KSLAB_CFG_TOP_ENTRIES)");
	is_elsewhere = kslab_source_is_elsewhere(heap, start, bytes);
	if (!kslab_heap_lock(heap, &state))
		return KSLAB_BUSY;
	/* All judgements before the window is placed: a refusal leaves the heap as it was. */
	if (heap->regions == KSLAB_CFG_REGIONS)
		what = "no region slot is left (KSLAB_CFG_REGIONS)";
	else if (is_elsewhere || kslab_source_is_known(heap, start, bytes))
		what = "region overlaps memory of a heap";
	else if (!kslab_source_can_cover(heap, start, bytes))
		what = "region lies outside the window (KSLAB_CFG_TOP_ENTRIES)";
	else if (!kslab_region_init(&region, start, bytes, heap->page_shift, heap->purge != NULL))
		what = "region is too small";
	else
		kslab_source_cover(heap, start, bytes);
	if (what == NULL)
		heap->region[heap->regions] = region;
	if (what == NULL)
		KSLAB_STORE_RELEASE(&heap->regions, heap->regions + 1); /* pairs with region_of */
	kslab_heap_unlock(heap, &state);
	return what == NULL ? KSLAB_OK : refuse_region(heap, mem, bytes, caller, what);
}

enum kslab_reason kslab_heap_add_region(struct kslab_heap *heap, void *mem, size_t bytes)
{
	return add_region(heap, mem, bytes, KSLAB_CALLER());
}

enum kslab_reason(kslab_heap_init_region)(struct kslab_heap *heap, void *mem, size_t bytes)
{
	const struct kslab_config config = { 0 };
	enum kslab_reason reason = kslab_heap_init(heap, &config);

	if (reason != KSLAB_OK)
		return reason;
	reason = add_region(heap, mem, bytes, KSLAB_CALLER());
	if (reason != KSLAB_OK) {
		unlink_heap(heap);
		heap->state = 0;
		heap->route_limit = heap->debug_limit = 0;
		heap->boot_zone.owner.key = 0;
	}
	return reason;
}

enum kslab_reason kslab_heap_set_page_source(struct kslab_heap *heap,
					     void *(*alloc_pages)(void *, size_t),
					     void (*free_pages)(void *, void *, size_t), void *ctx)
{
	struct kslab_lock_state state;

	if (heap->state != KSLAB_HEAP_READY)
		return KSLAB_NOT_INITIALISED;
	if (alloc_pages == NULL || free_pages == NULL)
		return KSLAB_BAD_ARGUMENT;
	if (!kslab_heap_lock(heap, &state))
		return KSLAB_BUSY;
	heap->source_ctx = ctx;
	heap->free_pages = free_pages;
	heap->alloc_pages = alloc_pages;
	heap->run_limit = UINT16_MAX;
	kslab_heap_unlock(heap, &state);
	return KSLAB_OK;
}

static void count_page(void *ctx, const struct kslab_page *page)
{
	struct kslab_report *report = ctx;
	const struct kslab_zone *zone = (const struct kslab_zone *)kslab_page_owner(page);
	uint32_t live = kslab_debug_live(zone->heap, page);

	report->count += live;
	if (live != 0) {
		report->page = (void *)page->data;
		report->object_bytes = page->sc->size;
	}
}

/* Looks only: a refusal leaves the heap as it was. */
static void count_live(void *ctx, struct kslab_zone *zone)
{
	struct kslab_report *report = ctx;
	struct kslab_sc *sc = NULL;

	while ((sc = kslab_zone_next_sc(zone, sc)) != NULL)
		kslab_sc_each(sc, count_page, report);
	for (unsigned i = 0; i < KSLAB_SPARE_BLOCKS && zone->spare[i] != NULL; i++)
		report->count--; /* in the list of large blocks, but free */
}

static void give_all_back(void *ctx, struct kslab_zone *zone)
{
	struct kslab_page *page;

	(void)ctx;
	while ((page = kslab_zone_take_empty(zone->heap, zone, KSLAB_ALL)) != NULL)
		kslab_heap_release_page(zone->heap, page);
}

static void collect_zone(void *ctx, struct kslab_zone *zone)
{
	struct kslab_page *spare;

	(void)ctx;
	while ((spare = kslab_zone_take_spare(zone)) != NULL)
		kslab_large_release(zone->heap, spare);
	kslab_zone_collect(zone->heap, zone);
}

enum kslab_reason kslab_heap_fini(struct kslab_heap *heap)
{
	struct kslab_report report = { .fault = KSLAB_FAULT_LIVE_OBJECTS,
				       .caller = KSLAB_CALLER() };

	if (heap->state != KSLAB_HEAP_READY)
		return KSLAB_NOT_INITIALISED;
	kslab_large_release_deferred(heap, KSLAB_ALL);
	report.count = heap->large_blocks;
	kslab_heap_each_zone(heap, count_live, &report);
	if (report.count != 0) {
		kslab_report_fault(heap, &report);
		return KSLAB_BAD_ARGUMENT;
	}
	if (heap->debug_level >= 2)
		kslab_debug_flush(heap);
	kslab_heap_each_zone(heap, collect_zone, NULL);
	kslab_heap_each_zone(heap, give_all_back, NULL);
	if (heap->debug_level != 0)
		kslab_fence_release(heap);
	unlink_heap(heap);
	heap->route_limit = heap->debug_limit = 0;
	heap->state = 0;
	heap->map.limit = 0;
	heap->map.side[0] = 0;
	heap->boot_zone.owner.key = 0;
	for (unsigned cpu = 0; cpu < KSLAB_CFG_CPUS; cpu++) {
		heap->zone[cpu] = &kslab_zone_none;
		heap->parked[cpu] = NULL;
	}
	kslab_heap_set_quick_zone(heap, &kslab_zone_none);
	heap->limbo = heap->lingering = NULL;
	heap->caches = NULL;
	kslab_source_fini(heap);
	return KSLAB_OK;
}
