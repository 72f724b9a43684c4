/* SPDX-License-Identifier: MIT
 * heap.c - owns a heap: its zones, object pages, large blocks, memory pressure.
 * Rank: 5.  Runs: any CPU, any level; each function says what it may call.
 *
@THEORY@
 */
#include "heap.h"
#include "page_list.h"
#include "region.h"
#include "report.h"

_Static_assert(offsetof(struct kslab_zone, sc) == 256, "owner, mailbox, counters: four lines before the classes");
_Static_assert(sizeof(uintptr_t) != 8 || sizeof(struct kslab_zone) == 4096, "a zone is one page");
_Static_assert(offsetof(struct kslab_zone, sc) + KSLAB_CLASSES * sizeof(struct kslab_sc) <= UINT16_MAX,
	       "route entries hold an offset in 16 bits");

struct kslab_heap kslab_default_heap;

#define NO_CLASS KSLAB_SC_CORE_INIT(0, KSLAB_CLASS_CACHE)
struct kslab_zone kslab_zone_none = { .sc = { [0 ... KSLAB_CLASSES - 1] = NO_CLASS } };

#define DEFAULT_PAGE_BYTES 4096u
#define DEFAULT_MAX_PAGE_BYTES 65536u /* 16 KiB is 2 % slower on mixed loads, 4 KiB 50 % */
#define DEFAULT_RETAIN_BYTES (512u * 1024)
#define DEFAULT_PURGE_BYTES (8u * 1024 * 1024)

/* Object pages of a class at each length before longer ones are made: bounds their waste to about 1/8. */
#define PAGES_PER_LENGTH 8u

/* Larger requests can't succeed; below this no sum of sizes wraps. */
#define REQUEST_MAX                                                                                            \
	((size_t)(KSLAB_WINDOW_BYTES - 1 < SIZE_MAX / 4 ? KSLAB_WINDOW_BYTES - 1 : SIZE_MAX / 4))

/* Slots that the longest descriptor has bits for. */
#define SLOTS_MAX (512u * KSLAB_WORD_BITS)

/* ---- zones ---------------------------------------------------------------------------------------------- */

static void zone_init(struct kslab_heap *heap, struct kslab_zone *zone, unsigned cpu, unsigned level)
{
	memset(zone, 0, sizeof(*zone));
	zone->heap = heap;
	zone->cpu = (uint16_t)cpu;
	zone->level = (uint8_t)level;
	zone->reclaim_epoch = KSLAB_LOAD_RELAXED(&heap->reclaim_epoch);
	for (unsigned cls = 0; cls < KSLAB_CLASSES; cls++) {
		zone->sc[cls].word = (kslab_word *)(uintptr_t)&kslab_zero_word;
		zone->sc[cls].size = (uint32_t)kslab_class_bytes(cls);
		zone->sc[cls].cls = (uint16_t)cls;
	}
}

unsigned kslab_zone_index(const struct kslab_zone *zone)
{
	return (unsigned)zone->cpu * KSLAB_CFG_LEVELS + zone->level;
}

struct kslab_zone *kslab_heap_enter(struct kslab_heap *heap)
{
	struct kslab_zone *zone;

	if (heap->state != KSLAB_HEAP_READY)
		return NULL;
	for (zone = kslab_heap_zone(heap); zone != NULL; zone = KSLAB_LOAD_ACQUIRE(&zone->inner)) {
		if (KSLAB_LOAD_RELAXED(&zone->owner.key) != 0) {
			kslab_zone_enter(zone);
			return zone;
		}
	}
	return NULL;
}

/* Every level that this CPU has is busy: make one more. Return: KSLAB_OK: try to enter again. */
static enum kslab_reason add_level(struct kslab_heap *heap, unsigned flags)
{
	struct kslab_zone *last = kslab_heap_zone(heap), *fresh, *none = NULL;
	enum kslab_reason reason;

	if (heap->state != KSLAB_HEAP_READY || last == &kslab_zone_none)
		return KSLAB_NOT_INITIALISED;
	while (KSLAB_LOAD_ACQUIRE(&last->inner) != NULL)
		last = KSLAB_LOAD_ACQUIRE(&last->inner);
	if (last->level + 1u >= KSLAB_CFG_LEVELS)
		return KSLAB_REENTRY;
	fresh = kslab_meta_alloc(heap, sizeof(*fresh), flags, &reason);
	if (fresh == NULL)
		return reason;
	zone_init(heap, fresh, last->cpu, last->level + 1u);
	fresh->owner.key = (uintptr_t)fresh;
	/* An interrupt may have added this level meanwhile: then ours is unused metadata until the heap ends. */
	KSLAB_CAS_ACQ_REL(&last->inner, &none, fresh);
	return KSLAB_OK;
}

struct kslab_sc *kslab_zone_sc(struct kslab_heap *heap, struct kslab_zone *zone, unsigned i)
{
	struct kslab_cache *cache;

	if (i < KSLAB_CLASSES)
		return &zone->sc[i];
	i -= KSLAB_CLASSES;
	for (cache = KSLAB_LOAD_ACQUIRE(&heap->caches); cache != NULL; cache = cache->next) {
		struct kslab_cache_zone *own = KSLAB_LOAD_ACQUIRE(&cache->zones[kslab_zone_index(zone)]);

		if (own != NULL && i-- == 0)
			return &own->sc;
	}
	return NULL;
}

void kslab_heap_each_zone(struct kslab_heap *heap, void (*fn)(void *ctx, struct kslab_zone *zone), void *ctx)
{
	for (unsigned cpu = 0; cpu < KSLAB_CFG_CPUS; cpu++) {
		struct kslab_zone *zone = KSLAB_LOAD_RELAXED(&heap->zone[cpu]);

		if (zone == &kslab_zone_none)
			zone = KSLAB_LOAD_RELAXED(&heap->parked[cpu]);
		for (; zone != NULL; zone = KSLAB_LOAD_ACQUIRE(&zone->inner))
			fn(ctx, zone);
	}
	if (KSLAB_LOAD_ACQUIRE(&heap->limbo) != NULL)
		fn(ctx, heap->limbo);
}

void *kslab_heap_fail(struct kslab_heap *heap, enum kslab_reason reason)
{
	struct kslab_zone *zone;

	KSLAB_PORT_PIN();
	zone = kslab_heap_zone(heap);
	if (zone != NULL) {
		zone->last_error = (uint8_t)reason;
		zone->counters.failures++;
	}
	KSLAB_PORT_UNPIN();
	return NULL;
}

/* ---- giving pages back ---------------------------------------------------------------------------------- */

void kslab_heap_release_page(struct kslab_heap *heap, struct kslab_page *page)
{
	uintptr_t address = page->data;
	size_t run = page->pages;

	kslab_page_map_set(&heap->map, address, run << heap->page_shift, &kslab_page_released);
	kslab_descriptor_free(heap, page, kslab_page_words(page));
	kslab_source_free(heap, address, run);
}

/* Oldest empty page of an entered zone, taken out of it; NULL: none, or all of them QUEUED. */
static struct kslab_page *take_empty(struct kslab_heap *heap, struct kslab_zone *zone)
{
	struct kslab_sc *sc;

	if (zone->owner.empty_run == 0)
		return NULL;
	for (unsigned i = 0; (sc = kslab_zone_sc(heap, zone, i)) != NULL; i++) {
		struct kslab_page *page = sc->empty.head;

		if (page == NULL)
			continue;
		page = page->prev; /* the tail: longest empty */
		if (kslab_sc_remove_empty(&zone->owner, page)) {
			zone->counters.pages_released++;
			return page;
		}
	}
	return NULL;
}

/* Find all empty pages of an entered zone: mail, remote frees on partial pages, current pages. */
static void collect(struct kslab_heap *heap, struct kslab_zone *zone)
{
	struct kslab_sc *sc;

	kslab_sc_drain(&zone->owner);
	for (unsigned i = 0; (sc = kslab_zone_sc(heap, zone, i)) != NULL; i++) {
		if (sc->page != NULL) {
			kslab_page_harvest(&zone->owner, sc->page);
			kslab_sc_retire(&zone->owner, sc);
		}
		kslab_sc_sweep(&zone->owner, sc);
	}
}

static void report_late(struct kslab_heap *heap, uintptr_t object, size_t count, const void *caller)
{
	struct kslab_page *page = kslab_page_map_find(&heap->map, object);
	struct kslab_report report = { .fault = KSLAB_FAULT_DOUBLE_FREE,
				       .pointer = (void *)object,
				       .object = (void *)object,
				       .page = (void *)page->data,
				       .count = count,
				       .caller = caller,
				       .what = "double free, found when remote frees were taken in" };

	if (page->sc != NULL) {
		report.object_bytes = page->sc->size;
		report.page_bytes = (size_t)page->pages << heap->page_shift;
	}
	kslab_report_fault(heap, &report);
}

/* Give back empty pages of this CPU's zone until at most `keep` base pages (or the reserve) are left. */
static void trim(struct kslab_heap *heap)
{
	if (KSLAB_PORT_IN_NMI())
		return; /* pages go back at the next slow path outside */
	for (;;) {
		struct kslab_page *page = NULL;
		struct kslab_zone *zone;

		KSLAB_PORT_PIN();
		zone = kslab_heap_enter(heap);
		if (zone != NULL) {
			uint32_t epoch = KSLAB_LOAD_RELAXED(&heap->reclaim_epoch);

			if (zone->reclaim_epoch != epoch) {
				collect(heap, zone);
				zone->owner.reserve_run = 0;
				if (zone->owner.empty_run == 0)
					zone->reclaim_epoch = epoch;
			}
			if (zone->reclaim_epoch != epoch ||
			    zone->owner.empty_run > KSLAB_LOAD_RELAXED(&heap->retain_run) + zone->owner.reserve_run)
				page = take_empty(heap, zone);
			if (page == NULL)
				zone->reclaim_epoch = epoch;
			kslab_zone_leave(zone);
		}
		KSLAB_PORT_UNPIN();
		if (page == NULL)
			return;
		kslab_heap_release_page(heap, page);
	}
}

void kslab_heap_leave(struct kslab_heap *heap, struct kslab_zone *zone, const void *caller)
{
	uintptr_t late = zone->owner.late;
	size_t late_count = zone->owner.late_count;
	bool has_work = zone->owner.empty_run >
				KSLAB_LOAD_RELAXED(&heap->retain_run) + zone->owner.reserve_run ||
			zone->reclaim_epoch != KSLAB_LOAD_RELAXED(&heap->reclaim_epoch);

	zone->owner.late = 0;
	zone->owner.late_count = 0;
	kslab_zone_leave(zone);
	KSLAB_PORT_UNPIN();
	if (KSLAB_UNLIKELY(late != 0))
		report_late(heap, late, late_count, caller);
	if (KSLAB_UNLIKELY(has_work))
		trim(heap);
}

/* ---- making pages --------------------------------------------------------------------------------------- */

struct kslab_sc *kslab_request_sc(struct kslab_zone *zone, const struct kslab_request *request)
{
	struct kslab_cache_zone *own;

	if (request->cache == NULL)
		return &zone->sc[request->cls];
	own = KSLAB_LOAD_ACQUIRE(&request->cache->zones[kslab_zone_index(zone)]);
	return own != NULL ? &own->sc : NULL;
}

uintptr_t kslab_heap_page_tags(const struct kslab_heap *heap, const struct kslab_request *request)
{
	uintptr_t tags = request->cache != NULL ? KSLAB_TAG_CACHE : 0;

	if (KSLAB_LOAD_RELAXED(&heap->retain_run) == 0)
		tags |= KSLAB_TAG_EAGER;
	if (heap->debug_level != 0)
		tags |= KSLAB_TAG_DEBUG;
	return tags;
}

/* Length of the next page of a class: longer with its use, no longer than the source can give. */
static size_t next_run(const struct kslab_heap *heap, size_t min_run, size_t max_run, uint32_t pages_so_far)
{
	uint32_t limit = KSLAB_LOAD_RELAXED(&heap->run_limit);
	size_t run = min_run;

	for (uint32_t n = pages_so_far / PAGES_PER_LENGTH; n != 0 && run < max_run; n--)
		run *= 2;
	return run > limit && KSLAB_LOAD_RELAXED(&heap->regions) == 0 ? limit : run;
}

/* A run for slots of `bytes`: the wished length, or less if that is not to be had. */
static enum kslab_reason find_run(struct kslab_heap *heap, size_t bytes, size_t wish, unsigned flags,
				  struct kslab_run *run)
{
	enum kslab_reason reason;

	for (;; wish /= 2) {
		reason = kslab_source_alloc(heap, wish, 1, flags, run);
		if (reason == KSLAB_OK || wish == 1 || (wish / 2) << heap->page_shift < bytes)
			return reason;
		if (reason != KSLAB_NO_PAGES && reason != KSLAB_QUOTA)
			return reason;
		if (reason == KSLAB_NO_PAGES && !(flags & KSLAB_NOWAIT) && heap->alloc_pages != NULL)
			KSLAB_STORE_RELAXED(&heap->run_limit, (uint32_t)wish / 2);
	}
}

struct kslab_page *kslab_heap_make_page(struct kslab_heap *heap, const struct kslab_request *request,
					uint32_t pages_so_far, enum kslab_reason *reason)
{
	const struct kslab_cache *cache = request->cache;
	size_t bytes = cache != NULL ? cache->slot_bytes : kslab_class_bytes(request->cls);
	size_t min_run = cache != NULL ? cache->min_run : heap->min_run[request->cls];
	size_t max_run = cache != NULL ? cache->max_run : heap->max_run[request->cls];
	size_t wish = next_run(heap, min_run, max_run, pages_so_far), slots;
	struct kslab_page *page;
	struct kslab_run run;

	if (wish << heap->page_shift < bytes)
		wish = min_run; /* the limit is too small for one slot: ask all the same */
	*reason = find_run(heap, bytes, wish, request->flags, &run);
	if (*reason != KSLAB_OK)
		return NULL;
	slots = (run.pages << heap->page_shift) / bytes;
	if (slots > SLOTS_MAX)
		slots = SLOTS_MAX;
	page = kslab_descriptor_alloc(heap, (unsigned)((slots + KSLAB_WORD_BITS - 1) / KSLAB_WORD_BITS),
				      request->flags, reason);
	if (page == NULL) {
		kslab_source_free(heap, run.address, run.pages);
		return NULL;
	}
	kslab_page_init(page, run.address, run.pages, (uint32_t)bytes, (uint32_t)slots);
	kslab_page_map_set(&heap->map, run.address, run.pages << heap->page_shift, page);
	if (cache != NULL && cache->constructor != NULL)
		for (size_t i = 0; i < slots; i++)
			cache->constructor((void *)(run.address + i * bytes), cache->ctx);
	if (pages_so_far % (8 * PAGES_PER_LENGTH) == 0 && run.pages == 1)
		KSLAB_STORE_RELAXED(&heap->run_limit, UINT16_MAX); /* perhaps there are runs again */
	return page;
}

/* ---- memory pressure ------------------------------------------------------------------------------------ */

static void release_deferred(struct kslab_heap *heap);

/* Give back all empty pages of this CPU, up to `want` base pages. */
static size_t reclaim_here(struct kslab_heap *heap, size_t want)
{
	size_t released = 0;
	struct kslab_zone *zone;

	KSLAB_PORT_PIN();
	for (zone = kslab_heap_zone(heap); zone != NULL; zone = KSLAB_LOAD_ACQUIRE(&zone->inner)) {
		bool collected = false;

		while (released < want) {
			struct kslab_page *page;
			uintptr_t late;
			size_t late_count;

			if (KSLAB_LOAD_RELAXED(&zone->owner.key) == 0)
				break;
			kslab_zone_enter(zone);
			if (!collected)
				collect(heap, zone);
			collected = true;
			zone->owner.reserve_run = 0;
			page = take_empty(heap, zone);
			late = zone->owner.late;
			late_count = zone->owner.late_count;
			zone->owner.late = 0;
			zone->owner.late_count = 0;
			kslab_zone_leave(zone);
			if (late != 0)
				report_late(heap, late, late_count, KSLAB_CALLER());
			if (page == NULL)
				break;
			released += page->pages;
			kslab_heap_release_page(heap, page);
		}
	}
	KSLAB_PORT_UNPIN();
	return released;
}

/* Move what a zone without a CPU holds into limbo. Under the lock. Pages that are QUEUED stay. */
static void move_to_limbo(struct kslab_heap *heap, struct kslab_zone *zone)
{
	struct kslab_sc *sc;

	kslab_sc_drain(&zone->owner);
	for (unsigned i = 0; (sc = kslab_zone_sc(heap, zone, i)) != NULL; i++) {
		struct kslab_page_list *lists[] = { &sc->partial, &sc->full, &sc->empty };

		if (i >= KSLAB_CLASSES)
			break; /* caches: their pages wait for the CPU to come back, or for the cache's end */
		kslab_sc_retire(&zone->owner, sc);
		for (unsigned l = 0; l < KSLAB_ARRAY_LENGTH(lists); l++) {
			struct kslab_page *page = lists[l]->head, *next;

			for (; page != NULL; page = next) {
				next = kslab_page_list_after(lists[l], page);
				kslab_sc_move(&zone->owner, page, &heap->limbo->owner, &heap->limbo->sc[i]);
			}
		}
	}
}

static size_t held_pages(const struct kslab_zone *zone)
{
	size_t pages = 0;

	for (unsigned cls = 0; cls < KSLAB_CLASSES; cls++)
		pages += zone->sc[cls].pages;
	return pages;
}

/* Bring limbo up to date: mail of its own and of parked zones. Under the lock. */
static void tend_limbo(struct kslab_heap *heap)
{
	size_t pages;

	kslab_sc_drain(&heap->limbo->owner);
	pages = 0;
	for (unsigned cpu = 0; cpu < KSLAB_CFG_CPUS; cpu++) {
		struct kslab_zone *zone = heap->parked[cpu];

		for (; zone != NULL; zone = KSLAB_LOAD_ACQUIRE(&zone->inner)) {
			if (held_pages(zone) != 0)
				move_to_limbo(heap, zone);
			pages += held_pages(zone);
		}
	}
	KSLAB_STORE_RELAXED(&heap->limbo_pages, pages + held_pages(heap->limbo));
}

/* Empty pages of limbo go back. Return: base pages. */
static size_t reclaim_limbo(struct kslab_heap *heap, size_t want)
{
	size_t released = 0;

	if (KSLAB_LOAD_RELAXED(&heap->limbo_pages) == 0)
		return 0;
	for (bool first = true; released < want; first = false) {
		struct kslab_page *page;
		struct kslab_lock_state state;

		if (!kslab_heap_lock(heap, &state))
			break;
		if (first) {
			tend_limbo(heap);
			collect(heap, heap->limbo);
		}
		page = take_empty(heap, heap->limbo);
		if (page != NULL)
			KSLAB_STORE_RELAXED(&heap->limbo_pages, heap->limbo_pages - 1);
		kslab_heap_unlock(heap, &state);
		if (page == NULL)
			break;
		released += page->pages;
		kslab_heap_release_page(heap, page);
	}
	return released;
}

/* Take a page of the class with free slots from limbo into an entered zone. */
static bool adopt(struct kslab_heap *heap, struct kslab_zone *zone, unsigned cls)
{
	struct kslab_lock_state state;
	struct kslab_sc *sc;
	struct kslab_page *page;
	bool adopted = false;

	if (!kslab_heap_lock(heap, &state))
		return false;
	tend_limbo(heap);
	sc = &heap->limbo->sc[cls];
	for (page = sc->partial.head; page != NULL && !adopted; page = kslab_page_list_after(&sc->partial, page)) {
		if (kslab_sc_move(&heap->limbo->owner, page, &zone->owner, &zone->sc[cls])) {
			adopted = true;
			break;
		}
	}
	if (!adopted && sc->empty.head != NULL)
		adopted = kslab_sc_move(&heap->limbo->owner, sc->empty.head, &zone->owner, &zone->sc[cls]);
	if (adopted)
		KSLAB_STORE_RELAXED(&heap->limbo_pages, heap->limbo_pages - 1);
	kslab_heap_unlock(heap, &state);
	return adopted;
}

/* The page source has failed: take back what lies idle. Return: true if it is worth trying again. */
static bool relieve(struct kslab_heap *heap)
{
	size_t released;

	if (KSLAB_PORT_IN_NMI())
		return false;
	release_deferred(heap);
	released = reclaim_here(heap, SIZE_MAX) + reclaim_limbo(heap, SIZE_MAX);
	KSLAB_FETCH_ADD_RELAXED(&heap->reclaim_epoch, 1u); /* ask the others; theirs comes too late for this call */
	return released != 0;
}

size_t kslab_heap_reclaim(struct kslab_heap *heap, size_t pages)
{
	size_t released;

	if (heap->state != KSLAB_HEAP_READY)
		return 0;
	release_deferred(heap);
	released = reclaim_here(heap, pages);
	if (released < pages)
		released += reclaim_limbo(heap, pages - released);
	if (released < pages)
		KSLAB_FETCH_ADD_RELAXED(&heap->reclaim_epoch, 1u);
	if (heap->purge != NULL)
		kslab_source_purge(heap, 0);
	return released;
}

/* ---- allocate ------------------------------------------------------------------------------------------- */

/* Put a fresh page into whatever zone this CPU has now, and take its first object. */
static void *insert_and_take(struct kslab_heap *heap, const struct kslab_request *request, struct kslab_page *page)
{
	struct kslab_zone *zone;
	struct kslab_sc *sc = NULL;
	void *object;

	KSLAB_PORT_PIN();
	zone = kslab_heap_enter(heap);
	if (zone != NULL)
		sc = kslab_request_sc(zone, request);
	if (sc == NULL) {
		if (zone != NULL)
			kslab_zone_leave(zone);
		KSLAB_PORT_UNPIN();
		kslab_heap_release_page(heap, page);
		return NULL;
	}
	kslab_sc_insert(&zone->owner, sc, page, kslab_heap_page_tags(heap, request));
	zone->counters.pages_made++;
	object = kslab_sc_pop(sc);
	if (object == NULL)
		object = kslab_sc_next(&zone->owner, sc);
	kslab_heap_leave(heap, zone, request->caller);
	return object;
}

/* A cache gets its part of a zone when it is first used there. */
static enum kslab_reason add_cache_zone(struct kslab_heap *heap, const struct kslab_request *request,
					unsigned index)
{
	const struct kslab_sc core = KSLAB_SC_CORE_INIT(request->cache->slot_bytes, KSLAB_CLASS_CACHE);
	struct kslab_cache_zone *own, *none = NULL;
	enum kslab_reason reason;

	own = kslab_meta_alloc(heap, sizeof(*own), request->flags, &reason);
	if (own == NULL)
		return reason;
	own->sc = core;
	own->cache = request->cache;
	KSLAB_CAS_ACQ_REL(&request->cache->zones[index], &none, own);
	return KSLAB_OK;
}

void *kslab_heap_alloc_slow(struct kslab_heap *heap, const struct kslab_request *request)
{
	enum kslab_reason reason = KSLAB_OK;
	bool relieved = false;

	for (;;) {
		uint32_t pages_so_far;
		unsigned index;
		struct kslab_zone *zone;
		struct kslab_sc *sc;
		struct kslab_page *page;
		void *object;

		KSLAB_PORT_PIN();
		zone = kslab_heap_enter(heap);
		if (zone == NULL) {
			KSLAB_PORT_UNPIN();
			reason = add_level(heap, request->flags);
			if (reason != KSLAB_OK)
				return kslab_heap_fail(heap, reason);
			continue;
		}
		sc = kslab_request_sc(zone, request);
		if (sc == NULL) {
			index = kslab_zone_index(zone);
			kslab_zone_leave(zone);
			KSLAB_PORT_UNPIN();
			reason = add_cache_zone(heap, request, index);
			if (reason != KSLAB_OK)
				return kslab_heap_fail(heap, reason);
			continue;
		}
		zone->counters.slow_allocs++;
		object = kslab_sc_pop(sc);
		if (object == NULL)
			object = kslab_sc_next(&zone->owner, sc);
		if (object == NULL && request->cache == NULL && KSLAB_LOAD_RELAXED(&heap->limbo_pages) != 0 &&
		    adopt(heap, zone, request->cls))
			object = kslab_sc_next(&zone->owner, sc);
		pages_so_far = sc->pages;
		kslab_heap_leave(heap, zone, request->caller);
		if (object != NULL)
			return object;
		page = kslab_heap_make_page(heap, request, pages_so_far, &reason);
		if (page != NULL) {
			object = insert_and_take(heap, request, page);
			if (object != NULL)
				return object;
			continue;
		}
		if (relieved || !relieve(heap))
			return kslab_heap_fail(heap, reason);
		relieved = true;
	}
}

unsigned kslab_heap_class(const struct kslab_heap *heap, size_t n, size_t align)
{
	size_t mask = align - 1;
	unsigned cls;

	if (n > KSLAB_CLASS_MAX_BYTES || align > heap->page_bytes)
		return KSLAB_CLASSES;
	n = (n + mask) & ~mask;
	if (n > KSLAB_CLASS_MAX_BYTES)
		return KSLAB_CLASSES;
	for (cls = kslab_class_of(n); cls < KSLAB_CLASSES; cls++) {
		cls = heap->use_class[cls];
		if (cls >= KSLAB_CLASSES || (kslab_class_bytes(cls) & mask) == 0)
			break;
	}
	return cls;
}

KSLAB_SLOW void *kslab_heap_malloc_slow(struct kslab_heap *heap, size_t n)
{
	struct kslab_request request = { NULL, 0, 0, KSLAB_CALLER() };

	if (KSLAB_UNLIKELY(heap->state != KSLAB_HEAP_READY))
		return kslab_heap_fail(heap, KSLAB_NOT_INITIALISED);
	if (n > KSLAB_CLASS_MAX_BYTES || heap->debug_level != 0)
		return kslab_heap_alloc_any(heap, n, 1, 0, request.caller);
	request.cls = heap->use_class[kslab_class_of(n)];
	if (request.cls == KSLAB_CLASSES)
		return kslab_heap_alloc_any(heap, n, 1, 0, request.caller);
	return kslab_heap_alloc_slow(heap, &request);
}

/* ---- large blocks --------------------------------------------------------------------------------------- */

/*
 * The descriptor of a large block: slots = length in base pages; bits[0] = { run, pages of the run, bytes
 * asked for }. A run may be longer than the block when an alignment above a page was asked of a source that
 * does not align.
 */
static uintptr_t large_tag(const struct kslab_heap *heap)
{
	return (uintptr_t)heap | KSLAB_TAG_LARGE;
}

size_t kslab_heap_large_bytes(const struct kslab_heap *heap, const struct kslab_page *page)
{
	return (size_t)page->slots << heap->page_shift;
}

static void link_large(struct kslab_heap *heap, struct kslab_page *page, const struct kslab_run *run)
{
	kslab_page_map_set(&heap->map, run->address, run->pages << heap->page_shift, page);
	kslab_page_list_insert_tail(&heap->large, page);
	heap->large_blocks++;
	heap->large_pages += run->pages;
}

static void *large_alloc(struct kslab_heap *heap, size_t n, size_t align, unsigned flags)
{
	size_t page_bytes = heap->page_bytes, pages, align_pages = align > page_bytes ? align / page_bytes : 1;
	struct kslab_lock_state state;
	enum kslab_reason reason;
	struct kslab_page *page;
	struct kslab_run run;
	uintptr_t data;

	if (n > REQUEST_MAX || align > REQUEST_MAX)
		return kslab_heap_fail(heap, KSLAB_TOO_LARGE);
	pages = n == 0 ? 1 : (n + page_bytes - 1) >> heap->page_shift;
	if (pages > UINT32_MAX)
		return kslab_heap_fail(heap, KSLAB_TOO_LARGE);
	reason = kslab_source_alloc(heap, pages, align_pages, flags, &run);
	if (reason != KSLAB_OK && relieve(heap))
		reason = kslab_source_alloc(heap, pages, align_pages, flags, &run);
	if (reason == KSLAB_NO_PAGES && align_pages > 1)
		reason = kslab_source_alloc(heap, pages + align_pages - 1, 1, flags, &run);
	if (reason != KSLAB_OK)
		return kslab_heap_fail(heap, reason);
	page = kslab_descriptor_alloc(heap, KSLAB_DESCRIPTOR_LARGE, flags, &reason);
	if (page == NULL || !kslab_heap_lock(heap, &state)) {
		kslab_source_free(heap, run.address, run.pages);
		return kslab_heap_fail(heap, page == NULL ? reason : KSLAB_BUSY);
	}
	data = (run.address + align_pages * page_bytes - 1) & ~(uintptr_t)(align_pages * page_bytes - 1);
	page->data = data;
	page->slots = (uint32_t)pages;
	page->inverse = 0;
	page->sc = NULL;
	page->state = KSLAB_PAGE_LARGE;
	page->bits[0].avail = run.address;
	page->bits[0].freed = run.pages;
	page->bits[0].remote = n;
	KSLAB_STORE_RELAXED(&page->owner, large_tag(heap));
	link_large(heap, page, &run);
	kslab_heap_unlock(heap, &state);
	if ((flags & KSLAB_ZERO) && !run.zeroed)
		memset((void *)data, 0, pages << heap->page_shift);
	return (void *)data;
}

/* A large block that nobody can reach any more. Return: false: the lock can't be had here. */
static bool large_release(struct kslab_heap *heap, struct kslab_page *page)
{
	uintptr_t address = page->bits[0].avail;
	size_t pages = page->bits[0].freed;
	struct kslab_lock_state state;

	if (KSLAB_PORT_IN_NMI() || !kslab_heap_lock(heap, &state))
		return false;
	kslab_page_list_remove(&heap->large, page);
	heap->large_blocks--;
	heap->large_pages -= pages;
	kslab_heap_unlock(heap, &state);
	kslab_page_map_set(&heap->map, address, pages << heap->page_shift, &kslab_page_released);
	kslab_descriptor_free(heap, page, KSLAB_DESCRIPTOR_LARGE);
	kslab_source_free(heap, address, pages);
	return true;
}

static void release_deferred(struct kslab_heap *heap)
{
	struct kslab_page *page, *next;

	if (KSLAB_LIKELY(KSLAB_LOAD_RELAXED(&heap->deferred) == NULL) || KSLAB_PORT_IN_NMI())
		return;
	/* Pairs with the push in large_free. */
	page = KSLAB_EXCHANGE_ACQUIRE(&heap->deferred, (struct kslab_page *)NULL);
	for (; page != NULL; page = next) {
		next = page->mail_next;
		large_release(heap, page);
	}
}

/* Return: false: not the start of a live block. */
static bool large_free(struct kslab_heap *heap, struct kslab_page *page, uintptr_t address)
{
	uintptr_t owner = large_tag(heap);

	if (address != page->data)
		return false;
	/* Of several frees at once exactly one wins. */
	if (!KSLAB_CAS_ACQ_REL(&page->owner, &owner, KSLAB_TAG_FULL))
		return false;
	release_deferred(heap);
	if (!large_release(heap, page)) {
		struct kslab_page *head = KSLAB_LOAD_RELAXED(&heap->deferred);

		do {
			page->mail_next = head;
		} while (!KSLAB_CAS_RELEASE(&heap->deferred, &head, page));
	}
	return true;
}

bool kslab_heap_large_resize(struct kslab_heap *heap, struct kslab_page *page, size_t n)
{
	size_t pages = (n + heap->page_bytes - 1) >> heap->page_shift, old = page->slots;
	struct kslab_lock_state state;
	uintptr_t end = page->data + (old << heap->page_shift);

	if (n > REQUEST_MAX || pages > UINT32_MAX)
		return false;
	if (pages != old && (page->bits[0].avail != page->data || page->bits[0].freed != old ||
			     !kslab_source_is_divisible(heap, page->data)))
		return pages < old; /* a run that can't be divided is kept as it is */
	if (pages > old && !kslab_source_extend(heap, end, pages - old))
		return false;
	if (pages != old) {
		if (!kslab_heap_lock(heap, &state))
			return false;
		page->slots = (uint32_t)pages;
		page->bits[0].freed = pages;
		heap->large_pages += pages - old;
		kslab_heap_unlock(heap, &state);
	}
	page->bits[0].remote = n;
	if (pages > old) {
		kslab_page_map_set(&heap->map, end, (pages - old) << heap->page_shift, page);
	} else if (pages < old) {
		end = page->data + (pages << heap->page_shift);
		kslab_page_map_set(&heap->map, end, (old - pages) << heap->page_shift, &kslab_page_released);
		kslab_source_free(heap, end, old - pages);
	}
	return true;
}

/* Clear without the cost of a call or a string instruction where the piece is small. */
static void clear(void *mem, size_t n)
{
	uintptr_t *word = mem;

	if (n > 256) {
		memset(mem, 0, n);
		return;
	}
	for (size_t i = 0; i < (n + sizeof(*word) - 1) / sizeof(*word); i++) {
		word[i] = 0;
		KSLAB_BARRIER(); /* or the compiler makes it a call of memset */
	}
}

void *kslab_heap_alloc_any(struct kslab_heap *heap, size_t n, size_t align, unsigned flags, const void *caller)
{
	struct kslab_request request = { NULL, 0, flags, caller };
	void *object;

	if (heap->state != KSLAB_HEAP_READY)
		return kslab_heap_fail(heap, KSLAB_NOT_INITIALISED);
	if (!kslab_is_power_of_two(align))
		return kslab_heap_fail(heap, KSLAB_BAD_ALIGNMENT);
	request.cls = kslab_heap_class(heap, n, align);
	if (request.cls == KSLAB_CLASSES)
		return large_alloc(heap, n, align, flags);
	object = kslab_heap_alloc_slow(heap, &request);
	if (object != NULL && (flags & KSLAB_ZERO))
		clear(object, n);
	return object;
}

/* ---- free ----------------------------------------------------------------------------------------------- */

/* Classify a pointer that is refused: what is it? Reads descriptors only. */
static void judge(struct kslab_heap *heap, uintptr_t address, const struct kslab_cache *cache,
		  struct kslab_report *report)
{
	const struct kslab_page *page = kslab_page_map_find(&heap->map, address);
	uintptr_t owner = KSLAB_LOAD_RELAXED(&page->owner), offset = address - page->data;
	const struct kslab_sc *sc = page->sc;

	report->fault = KSLAB_FAULT_FOREIGN_POINTER;
	if (page == &kslab_page_released) {
		report->fault = KSLAB_FAULT_DOUBLE_FREE;
		report->what = "double free: its page has gone back already";
		return;
	}
	if (page == &kslab_page_metadata)
		report->fault = KSLAB_FAULT_BAD_POINTER;
	if (page->state == KSLAB_PAGE_LARGE) {
		report->page = report->object = (void *)page->data;
		report->page_bytes = report->object_bytes = kslab_heap_large_bytes(heap, page);
		report->fault = offset == 0 ? KSLAB_FAULT_DOUBLE_FREE : KSLAB_FAULT_INTERIOR_POINTER;
		if (cache != NULL)
			report->fault = KSLAB_FAULT_WRONG_CACHE;
		return;
	}
	if ((owner & ~KSLAB_TAG_MASK) == 0 || sc == NULL)
		return;
	report->page = (void *)page->data;
	report->page_bytes = (size_t)page->pages << heap->page_shift;
	report->object_bytes = sc->size;
	if (offset / sc->size >= page->slots) {
		report->fault = KSLAB_FAULT_BAD_POINTER;
		report->what = "bad pointer: behind the last object of its page";
		return;
	}
	report->object = (void *)(page->data + offset / sc->size * sc->size);
	if (cache != NULL || (owner & KSLAB_TAG_CACHE)) {
		const struct kslab_cache_zone *own = (const struct kslab_cache_zone *)sc;

		if (!(owner & KSLAB_TAG_CACHE) || cache == NULL || own->cache != cache) {
			report->fault = KSLAB_FAULT_WRONG_CACHE;
			return;
		}
	}
	report->fault = offset % sc->size != 0 ? KSLAB_FAULT_INTERIOR_POINTER : KSLAB_FAULT_DOUBLE_FREE;
}

KSLAB_COLD void kslab_heap_fault_pointer(struct kslab_heap *heap, const void *p, struct kslab_cache *cache,
					 const void *caller)
{
	struct kslab_report report = { .pointer = p, .caller = caller };

	if (heap->state == KSLAB_HEAP_READY)
		judge(heap, (uintptr_t)p, cache, &report);
	else
		report.fault = KSLAB_FAULT_FOREIGN_POINTER;
	kslab_heap_fail(heap, KSLAB_BAD_FREE);
	kslab_report_fault(heap, &report);
}

/* True if the page's objects may be freed through this door: kslab_free, or kslab_cache_free of this cache. */
static bool is_right_door(const struct kslab_page *page, uintptr_t owner, const struct kslab_cache *cache)
{
	if ((owner & ~KSLAB_TAG_MASK) == 0)
		return false;
	if (cache == NULL)
		return !(owner & KSLAB_TAG_CACHE);
	return (owner & KSLAB_TAG_CACHE) && ((const struct kslab_cache_zone *)page->sc)->cache == cache;
}

/* With retention 0 a current page must not stay behind when it is empty. */
static void retire_if_unused(struct kslab_owner *owner, struct kslab_page *page)
{
	if (page->state == KSLAB_PAGE_CURRENT && kslab_page_live(page) == 0)
		kslab_sc_retire(owner, page->sc);
}

KSLAB_SLOW void kslab_heap_free_slow(struct kslab_heap *heap, void *p, struct kslab_cache *cache, const void *caller)
{
	uintptr_t address = (uintptr_t)p, owner;
	struct kslab_page *page;
	struct kslab_zone *zone;
	uint32_t index;
	bool freed;

	if (p == NULL)
		return;
	page = kslab_page_map_find(&heap->map, address);
	owner = KSLAB_LOAD_RELAXED(&page->owner);
	if (owner == large_tag(heap) && cache == NULL) {
		if (!large_free(heap, page, address))
			kslab_heap_fault_pointer(heap, p, cache, caller);
		return;
	}
	if (!is_right_door(page, owner, cache) || (index = kslab_page_index(page, address)) >= page->slots) {
		kslab_heap_fault_pointer(heap, p, cache, caller);
		return;
	}
	KSLAB_PORT_PIN();
	zone = kslab_heap_enter(heap);
	if (zone != NULL && kslab_page_owner(page) == &zone->owner) {
		freed = kslab_sc_free_local(&zone->owner, page, index);
		if (freed && (owner & KSLAB_TAG_EAGER))
			retire_if_unused(&zone->owner, page);
		zone->counters.slow_frees++;
	} else {
		enum kslab_remote result = kslab_page_free_remote(page, index);

		freed = result != KSLAB_REMOTE_DOUBLE;
		if (zone != NULL) {
			zone->counters.remote_frees += freed;
			zone->counters.mails += result == KSLAB_REMOTE_MAILED;
		}
	}
	if (zone != NULL)
		kslab_heap_leave(heap, zone, caller);
	else
		KSLAB_PORT_UNPIN();
	if (KSLAB_UNLIKELY(!freed))
		kslab_heap_fault_pointer(heap, p, cache, caller);
}

KSLAB_SLOW void kslab_heap_free_cold(struct kslab_heap *heap, void *p)
{
	kslab_heap_free_slow(heap, p, NULL, KSLAB_CALLER());
}

KSLAB_SLOW void kslab_heap_word_full(struct kslab_heap *heap, struct kslab_zone *zone, struct kslab_page *page)
{
	kslab_sc_word_full(&zone->owner, page);
	kslab_heap_leave(heap, zone, KSLAB_CALLER());
}

struct kslab_page *kslab_heap_object(struct kslab_heap *heap, const void *p, size_t *bytes, const void *caller)
{
	uintptr_t address = (uintptr_t)p, owner;
	struct kslab_page *page = kslab_page_map_find(&heap->map, address);
	uint32_t index;

	*bytes = 0;
	owner = KSLAB_LOAD_RELAXED(&page->owner);
	if (owner == large_tag(heap)) {
		if (address == page->data) {
			*bytes = kslab_heap_large_bytes(heap, page);
			return page;
		}
	} else if ((owner & ~KSLAB_TAG_MASK) != 0 && page->sc != NULL) {
		index = kslab_page_index(page, address);
		if (index < page->slots) {
			const struct kslab_bits *bits = &page->bits[index / KSLAB_WORD_BITS];
			kslab_word free = KSLAB_LOAD_ACQUIRE(&bits->remote);

			free |= KSLAB_LOAD_ACQUIRE(&bits->freed);
			free |= KSLAB_LOAD_RELAXED(&bits->avail);
			if (!(free & kslab_bit(index))) {
				*bytes = page->sc->size;
				return page;
			}
		}
	}
	kslab_heap_fault_pointer(heap, p, NULL, caller);
	return NULL;
}

/* ---- start and end -------------------------------------------------------------------------------------- */

/* Bytes a slot of the class really costs, in 1/65536: its share of the longest page. */
static uint64_t cost_of(const struct kslab_heap *heap, unsigned cls)
{
	size_t run = (size_t)heap->max_run[cls] << heap->page_shift, slots = run / kslab_class_bytes(cls);
	uint64_t cost = 0, rest = 0;

	if (slots == 0)
		return UINT64_MAX;
	/* Long division of run << 16 by slots, both below 2^31: no libgcc call on 32-bit machines. */
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

	return bytes <= heap->max_page_bytes && (bytes < heap->min_align || bytes % heap->min_align == 0);
}

/*
 * Which class serves which sizes. A class whose slots cost no less than a larger one's is not used: in single
 * 4 KiB frames 1408 bytes cost as much as 2048.
 */
static void init_routes(struct kslab_heap *heap)
{
	uint64_t best_cost = UINT64_MAX;
	uint8_t best = KSLAB_CLASSES;

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
	heap->route_limit = 0;
	for (size_t i = 0; i < KSLAB_ARRAY_LENGTH(heap->route); i++) {
		unsigned cls = heap->use_class[kslab_class_of((i + 1) * 8)];

		if (cls == KSLAB_CLASSES)
			break;
		heap->route[i] = (uint16_t)(offsetof(struct kslab_zone, sc) + cls * sizeof(struct kslab_sc));
		heap->route_limit = i + 1;
	}
	if (heap->debug_level != 0)
		heap->route_limit = 0; /* every call goes the slow way, where the checks are */
}

static bool is_valid_config(const struct kslab_config *config, size_t page_bytes, size_t max_page_bytes,
			    size_t min_align)
{
	return kslab_is_power_of_two(page_bytes) && page_bytes >= (size_t)1 << KSLAB_CFG_GRAIN_SHIFT &&
	       page_bytes <= (size_t)1 << 30 && kslab_is_power_of_two(max_page_bytes) &&
	       max_page_bytes >= page_bytes && max_page_bytes / page_bytes <= 32768 &&
	       max_page_bytes <= (size_t)1 << 30 && (min_align == 8 || min_align == 16) &&
	       (config->alloc_pages == NULL) == (config->free_pages == NULL) && config->debug_level <= 2;
}

/* All heaps hang on the default one, so that a page of one is not taken for a page of another. */
static void link_heap(struct kslab_heap *heap)
{
	struct kslab_lock_state state;

	if (heap == &kslab_default_heap || !kslab_heap_lock(&kslab_default_heap, &state))
		return;
	heap->next_heap = kslab_default_heap.next_heap;
	kslab_default_heap.next_heap = heap;
	kslab_heap_unlock(&kslab_default_heap, &state);
}

static void unlink_heap(struct kslab_heap *heap)
{
	struct kslab_heap *other = &kslab_default_heap;
	struct kslab_lock_state state;

	if (heap == other || !kslab_heap_lock(&kslab_default_heap, &state))
		return;
	for (; other != NULL; other = other->next_heap)
		if (other->next_heap == heap)
			other->next_heap = heap->next_heap;
	kslab_heap_unlock(&kslab_default_heap, &state);
}

static enum kslab_reason fill_emergency(struct kslab_heap *heap)
{
	while (heap->emergency_pages < heap->emergency_target) {
		uintptr_t page;

		page = heap->alloc_pages != NULL ? (uintptr_t)heap->alloc_pages(heap->source_ctx, 1) : 0;
		if (page == 0)
			return KSLAB_NO_PAGES;
		if (page & (heap->page_bytes - 1)) {
			heap->free_pages(heap->source_ctx, (void *)page, 1);
			return KSLAB_NO_PAGES;
		}
		*(uintptr_t *)page = heap->emergency;
		heap->emergency = page;
		heap->emergency_pages++;
		heap->pages_in_use++;
	}
	return KSLAB_OK;
}

enum kslab_reason kslab_heap_init(struct kslab_heap *heap, const struct kslab_config *config)
{
	const size_t retain = config->retain_bytes == 0 ? DEFAULT_RETAIN_BYTES : config->retain_bytes;
	size_t page_bytes = config->page_bytes != 0 ? config->page_bytes : DEFAULT_PAGE_BYTES;
	size_t max_page_bytes = config->max_page_bytes != 0 ? config->max_page_bytes : DEFAULT_MAX_PAGE_BYTES;
	size_t min_align = config->min_align != 0 ? config->min_align : 2 * sizeof(void *);
	struct kslab_heap *next = heap == &kslab_default_heap ? heap->next_heap : NULL;

	if (page_bytes < (size_t)1 << KSLAB_CFG_GRAIN_SHIFT)
		return KSLAB_BAD_ARGUMENT;
	if (max_page_bytes < page_bytes && config->max_page_bytes == 0)
		max_page_bytes = page_bytes;
	if (!is_valid_config(config, page_bytes, max_page_bytes, min_align))
		return KSLAB_BAD_ARGUMENT;
	/* The heap's memory may hold anything; the top of the map is written entry by entry, as it grows. */
	memset(heap, 0, offsetof(struct kslab_heap, map));
	memset(&heap->state, 0, sizeof(*heap) - offsetof(struct kslab_heap, state));
	heap->map.used = 0;
	heap->next_heap = next;
	heap->page_bytes = page_bytes;
	heap->page_shift = kslab_log2(page_bytes);
	heap->max_page_bytes = max_page_bytes;
	heap->min_align = min_align;
	heap->max_pages = config->max_pages;
	heap->purge_bytes = config->purge_bytes != 0 ? config->purge_bytes : DEFAULT_PURGE_BYTES;
	heap->alloc_pages = config->alloc_pages;
	heap->free_pages = config->free_pages;
	heap->purge = config->purge;
	heap->source_ctx = config->source_ctx;
	heap->report = config->report;
	heap->report_ctx = config->report_ctx;
	heap->debug_level = config->debug_level > KSLAB_CFG_DEBUG ? config->debug_level : KSLAB_CFG_DEBUG;
	heap->retain_run = retain == KSLAB_RETAIN_NONE ? 0 : retain >> heap->page_shift;
	heap->run_limit = UINT16_MAX;
	heap->emergency_target = config->emergency_pages;
	if (config->window_base != 0)
		kslab_source_place_window(heap, config->window_base);
	init_routes(heap);
	for (unsigned cpu = 0; cpu < KSLAB_CFG_CPUS; cpu++)
		heap->zone[cpu] = &kslab_zone_none;
	zone_init(heap, &heap->boot_zone, 0, 0);
	heap->zone[0] = &heap->boot_zone;
	if (fill_emergency(heap) != KSLAB_OK) {
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

static enum kslab_reason refuse_region(struct kslab_heap *heap, void *mem, size_t bytes, const char *what)
{
	struct kslab_report report = { .fault = KSLAB_FAULT_BAD_REGION,
				       .pointer = mem,
				       .page = mem,
				       .page_bytes = bytes,
				       .what = what };

	kslab_report_fault(heap, &report);
	return KSLAB_BAD_ARGUMENT;
}

enum kslab_reason kslab_heap_add_region(struct kslab_heap *heap, void *mem, size_t bytes)
{
	uintptr_t start = (uintptr_t)mem;
	struct kslab_region region = { 0 };
	struct kslab_lock_state state;
	const char *what = NULL;

	if (heap->state != KSLAB_HEAP_READY)
		return KSLAB_NOT_INITIALISED;
	if (mem == NULL || bytes < 2 * heap->page_bytes)
		return refuse_region(heap, mem, bytes, "region is too small");
	if (start + (bytes - 1) < start || start + bytes == 0)
		return refuse_region(heap, mem, bytes, "region wraps the address space");
	if (!kslab_heap_lock(heap, &state))
		return KSLAB_BUSY;
	kslab_source_place_window(heap, start);
	if (heap->regions == KSLAB_CFG_REGIONS)
		what = "no region slot is left (KSLAB_CFG_REGIONS)";
	else if (!kslab_page_map_covers(&heap->map, start, bytes))
		what = "region lies outside the window";
	for (unsigned i = 0; i < heap->regions && what == NULL; i++)
		if (start < heap->region[i].end && heap->region[i].start < start + bytes)
			what = "region overlaps an earlier one";
	if (what == NULL && !kslab_page_map_is_free(&heap->map, start & ~(uintptr_t)(heap->page_bytes - 1), bytes))
		what = "region overlaps pages of the heap";
	if (what == NULL && !kslab_region_init(&region, start, bytes, heap->page_shift, heap->purge != NULL))
		what = "region is too small";
	if (what == NULL)
		heap->region[heap->regions] = region;
	if (what == NULL)
		KSLAB_STORE_RELEASE(&heap->regions, heap->regions + 1); /* pairs with region_of */
	kslab_heap_unlock(heap, &state);
	return what == NULL ? KSLAB_OK : refuse_region(heap, mem, bytes, what);
}

enum kslab_reason kslab_heap_init_region(struct kslab_heap *heap, void *mem, size_t bytes)
{
	const struct kslab_config config = { 0 };
	enum kslab_reason reason = kslab_heap_init(heap, &config);

	if (reason != KSLAB_OK)
		return reason;
	reason = kslab_heap_add_region(heap, mem, bytes);
	if (reason != KSLAB_OK) {
		heap->state = 0;
		heap->route_limit = 0;
	}
	return reason;
}

enum kslab_reason kslab_heap_set_page_source(struct kslab_heap *heap, void *(*alloc_pages)(void *, size_t),
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

static void count_live(void *ctx, struct kslab_zone *zone)
{
	struct kslab_report *report = ctx;
	struct kslab_sc *sc;

	for (unsigned i = 0; (sc = kslab_zone_sc(zone->heap, zone, i)) != NULL; i++) {
		const struct kslab_page_list *lists[] = { &sc->partial, &sc->full };

		for (unsigned l = 0; l < KSLAB_ARRAY_LENGTH(lists); l++) {
			const struct kslab_page *page = lists[l]->head;

			for (; page != NULL; page = kslab_page_list_after(lists[l], page)) {
				report->count += kslab_page_live(page);
				report->page = (void *)page->data;
				report->object_bytes = sc->size;
			}
		}
	}
}

static void give_all_back(void *ctx, struct kslab_zone *zone)
{
	struct kslab_page *page;

	(void)ctx;
	while ((page = take_empty(zone->heap, zone)) != NULL)
		kslab_heap_release_page(zone->heap, page);
}

static void collect_zone(void *ctx, struct kslab_zone *zone)
{
	(void)ctx;
	collect(zone->heap, zone);
}

enum kslab_reason kslab_heap_fini(struct kslab_heap *heap)
{
	struct kslab_report report = { .fault = KSLAB_FAULT_LIVE_OBJECTS, .caller = KSLAB_CALLER() };

	if (heap->state != KSLAB_HEAP_READY)
		return KSLAB_NOT_INITIALISED;
	release_deferred(heap);
	kslab_heap_each_zone(heap, collect_zone, NULL);
	kslab_heap_each_zone(heap, count_live, &report);
	report.count += heap->large_blocks;
	if (report.count != 0) {
		kslab_report_fault(heap, &report);
		return KSLAB_BAD_ARGUMENT;
	}
	kslab_heap_each_zone(heap, give_all_back, NULL);
	unlink_heap(heap);
	heap->route_limit = 0;
	heap->state = 0;
	heap->map.used = 0;
	heap->boot_zone.owner.key = 0;
	kslab_source_fini(heap);
	return KSLAB_OK;
}

/* ---- CPUs ----------------------------------------------------------------------------------------------- */

static enum kslab_reason refuse_cpu(struct kslab_heap *heap, unsigned cpu, const char *what)
{
	struct kslab_report report = { .fault = KSLAB_FAULT_BAD_CPU, .count = cpu, .what = what };

	kslab_report_fault(heap, &report);
	return KSLAB_BAD_ARGUMENT;
}

enum kslab_reason kslab_heap_cpu_online(struct kslab_heap *heap, unsigned cpu)
{
	struct kslab_zone *zone;
	enum kslab_reason reason;

	if (heap->state != KSLAB_HEAP_READY)
		return KSLAB_NOT_INITIALISED;
	if (cpu >= KSLAB_CFG_CPUS)
		return refuse_cpu(heap, cpu, "cpu number is out of range");
	if (cpu != KSLAB_PORT_CPU())
		return refuse_cpu(heap, cpu, "kslab_cpu_online must run on the cpu itself");
	if (heap->zone[cpu] != &kslab_zone_none)
		return cpu == 0 ? KSLAB_OK : refuse_cpu(heap, cpu, "cpu is online already");
	zone = heap->parked[cpu];
	if (zone == NULL) {
		zone = kslab_meta_alloc(heap, sizeof(*zone), 0, &reason);
		if (zone == NULL)
			return reason;
		zone_init(heap, zone, cpu, 0);
	} else {
		struct kslab_lock_state state;

		if (!kslab_heap_lock(heap, &state))
			return KSLAB_BUSY;
		heap->parked[cpu] = NULL; /* from here on nobody else operates it */
		kslab_heap_unlock(heap, &state);
	}
	for (struct kslab_zone *z = zone; z != NULL; z = z->inner)
		z->owner.key = (uintptr_t)z;
	KSLAB_STORE_RELEASE(&heap->zone[cpu], zone);
	return KSLAB_OK;
}

enum kslab_reason kslab_heap_cpu_offline(struct kslab_heap *heap, unsigned cpu)
{
	struct kslab_lock_state state;
	struct kslab_zone *zone;
	enum kslab_reason reason;

	if (heap->state != KSLAB_HEAP_READY)
		return KSLAB_NOT_INITIALISED;
	if (cpu == 0 || cpu >= KSLAB_CFG_CPUS)
		return refuse_cpu(heap, cpu, "cpu number is out of range");
	zone = heap->zone[cpu];
	if (zone == &kslab_zone_none)
		return refuse_cpu(heap, cpu, "cpu is not online");
	if (KSLAB_LOAD_ACQUIRE(&heap->limbo) == NULL) {
		struct kslab_zone *limbo = kslab_meta_alloc(heap, sizeof(*limbo), 0, &reason), *none = NULL;

		if (limbo == NULL)
			return reason;
		zone_init(heap, limbo, 0, 0);
		KSLAB_CAS_ACQ_REL(&heap->limbo, &none, limbo);
	}
	KSLAB_STORE_RELEASE(&heap->zone[cpu], &kslab_zone_none);
	for (struct kslab_zone *z = zone; z != NULL; z = z->inner)
		KSLAB_STORE_RELAXED(&z->owner.key, (uintptr_t)0);
	if (!kslab_heap_lock(heap, &state)) {
		KSLAB_STORE_RELEASE(&heap->zone[cpu], zone);
		for (struct kslab_zone *z = zone; z != NULL; z = z->inner)
			KSLAB_STORE_RELAXED(&z->owner.key, (uintptr_t)z);
		return KSLAB_BUSY;
	}
	heap->parked[cpu] = zone;
	tend_limbo(heap);
	kslab_heap_unlock(heap, &state);
	return KSLAB_OK;
}

/* ---- progress ------------------------------------------------------------------------------------------- */

void kslab_heap_idle(struct kslab_heap *heap)
{
	struct kslab_zone *zone;

	if (heap->state != KSLAB_HEAP_READY)
		return;
	release_deferred(heap);
	KSLAB_PORT_PIN();
	for (zone = kslab_heap_zone(heap); zone != NULL; zone = KSLAB_LOAD_ACQUIRE(&zone->inner)) {
		if (KSLAB_LOAD_RELAXED(&zone->owner.key) == 0)
			continue;
		kslab_zone_enter(zone);
		kslab_sc_drain(&zone->owner);
		KSLAB_PORT_PIN(); /* kslab_heap_leave unpins */
		kslab_heap_leave(heap, zone, KSLAB_CALLER());
	}
	KSLAB_PORT_UNPIN();
}

static void find_pending(void *ctx, struct kslab_zone *zone)
{
	bool *pending = ctx;
	struct kslab_sc *sc;

	if (KSLAB_LOAD_ACQUIRE(&zone->owner.mailbox) != NULL)
		*pending = true;
	for (unsigned i = 0; (sc = kslab_zone_sc(zone->heap, zone, i)) != NULL && !*pending; i++) {
		const struct kslab_page_list *lists[] = { &sc->partial, &sc->full };

		for (unsigned l = 0; l < KSLAB_ARRAY_LENGTH(lists); l++) {
			const struct kslab_page *page = lists[l]->head;

			for (; page != NULL; page = kslab_page_list_after(lists[l], page))
				for (unsigned w = 0; w < kslab_page_words(page); w++)
					if (KSLAB_LOAD_ACQUIRE(&page->bits[w].remote) != 0)
						*pending = true;
		}
		if (sc->page != NULL)
			for (unsigned w = 0; w < kslab_page_words(sc->page); w++)
				if (KSLAB_LOAD_ACQUIRE(&sc->page->bits[w].remote) != 0)
					*pending = true;
	}
}

bool kslab_heap_quiesce(struct kslab_heap *heap)
{
	struct kslab_lock_state state;
	struct kslab_zone *zone;
	bool pending = false;

	if (heap->state != KSLAB_HEAP_READY)
		return true;
	release_deferred(heap);
	KSLAB_PORT_PIN();
	for (zone = kslab_heap_zone(heap); zone != NULL; zone = KSLAB_LOAD_ACQUIRE(&zone->inner)) {
		if (KSLAB_LOAD_RELAXED(&zone->owner.key) == 0) {
			pending = pending || zone != &kslab_zone_none;
			continue;
		}
		kslab_zone_enter(zone);
		collect(heap, zone);
		KSLAB_PORT_PIN();
		kslab_heap_leave(heap, zone, KSLAB_CALLER());
	}
	KSLAB_PORT_UNPIN();
	if (KSLAB_LOAD_RELAXED(&heap->limbo_pages) != 0 && kslab_heap_lock(heap, &state)) {
		tend_limbo(heap);
		collect(heap, heap->limbo);
		kslab_heap_unlock(heap, &state);
	}
	kslab_heap_each_zone(heap, find_pending, &pending);
	return !pending && KSLAB_LOAD_ACQUIRE(&heap->deferred) == NULL;
}

void kslab_heap_set_retention(struct kslab_heap *heap, size_t bytes)
{
	KSLAB_STORE_RELAXED(&heap->retain_run, bytes == KSLAB_RETAIN_NONE ? 0 : bytes >> heap->page_shift);
	KSLAB_FETCH_ADD_RELAXED(&heap->reclaim_epoch, 1u);
}

static uint32_t free_slots(struct kslab_owner *owner, const struct kslab_sc *sc)
{
	const struct kslab_page_list *lists[] = { &sc->partial, &sc->empty };
	uint32_t slots = 0;

	(void)owner;
	if (sc->page != NULL)
		slots = sc->page->slots - kslab_page_live(sc->page);
	for (unsigned l = 0; l < KSLAB_ARRAY_LENGTH(lists); l++) {
		const struct kslab_page *page = lists[l]->head;

		for (; page != NULL; page = kslab_page_list_after(lists[l], page))
			slots += page->slots - kslab_page_live(page);
	}
	return slots;
}

bool kslab_heap_reserve_request(struct kslab_heap *heap, const struct kslab_request *request, size_t count)
{
	enum kslab_reason reason;

	for (;;) {
		struct kslab_page *page;
		struct kslab_zone *zone;
		struct kslab_sc *sc = NULL;
		uint32_t pages_so_far;
		bool enough;

		KSLAB_PORT_PIN();
		zone = kslab_heap_enter(heap);
		if (zone != NULL)
			sc = kslab_request_sc(zone, request);
		if (sc == NULL) {
			unsigned index = zone != NULL ? kslab_zone_index(zone) : 0;

			if (zone != NULL)
				kslab_zone_leave(zone);
			KSLAB_PORT_UNPIN();
			reason = zone != NULL ? add_cache_zone(heap, request, index) : add_level(heap, request->flags);
			if (reason == KSLAB_OK)
				continue;
			kslab_heap_fail(heap, reason);
			return false;
		}
		enough = free_slots(&zone->owner, sc) >= count;
		pages_so_far = sc->pages;
		kslab_heap_leave(heap, zone, request->caller);
		if (enough)
			return true;
		page = kslab_heap_make_page(heap, request, pages_so_far, &reason);
		if (page == NULL) {
			kslab_heap_fail(heap, reason);
			return false;
		}
		KSLAB_PORT_PIN();
		zone = kslab_heap_enter(heap);
		sc = zone != NULL ? kslab_request_sc(zone, request) : NULL;
		if (sc == NULL) {
			if (zone != NULL)
				kslab_zone_leave(zone);
			KSLAB_PORT_UNPIN();
			kslab_heap_release_page(heap, page);
			return false;
		}
		kslab_sc_insert(&zone->owner, sc, page, kslab_heap_page_tags(heap, request));
		zone->counters.pages_made++;
		zone->owner.reserve_run += page->pages;
		kslab_heap_leave(heap, zone, request->caller);
	}
}
