/* SPDX-License-Identifier: MIT
 * alloc_slow.c - owns an allocation behind the fast path: the middle path, which takes the next word
 * of the page, and the slow path with all its turns.
 * Rank: 5.  Runs: any CPU, any level, no zone entered.
 */
#include "debug.h"
#include "heap.h"
#include "inject.h"
#include "tally.h"

/* ---- the slow path --------------------------------------------------------------------------- */

struct kslab_sc *kslab_request_sc(struct kslab_zone *zone, const struct kslab_request *request)
{
	struct kslab_cache_zone *own;

	if (request->cache == NULL)
		return &zone->sc[request->cls];
	own = KSLAB_LOAD_ACQUIRE(&request->cache->zones[kslab_zone_index(zone)]);
	return own != NULL ? &own->sc : NULL;
}

/* Out of the zone; what there is to give back goes, if the request allows it. */
static void leave(struct kslab_heap *heap, struct kslab_zone *zone,
		  const struct kslab_request *request)
{
	if (kslab_heap_may_give(heap, request->flags))
		kslab_heap_leave(heap, zone, request->caller);
	else
		kslab_zone_leave_reporting(heap, zone, request->caller);
}

/* Put a fresh page into whatever zone this CPU has now, and take its first object. */
static void *insert_and_take(struct kslab_heap *heap, const struct kslab_request *request,
			     struct kslab_page *page)
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
	kslab_tally_insert(heap, page);
	object = kslab_sc_pop(sc);
	if (object == NULL)
		object = kslab_sc_next(&zone->owner, sc);
	leave(heap, zone, request);
	return object;
}

/* A page with free slots that a CPU has left behind becomes this one's. */
static bool adopt(struct kslab_heap *heap, const struct kslab_request *request,
		  struct kslab_zone *zone, struct kslab_sc *sc)
{
	if (request->cache == NULL)
		return KSLAB_LOAD_RELAXED(&heap->limbo_pages) != 0 &&
		       kslab_limbo_adopt(heap, zone, request->cls);
	return KSLAB_LOAD_RELAXED(&heap->parked_pages) != 0 &&
	       kslab_parked_adopt(heap, zone, request->cache, sc);
}

/* What this CPU has for a request, and what others have left. */
static void *take_from_zone(struct kslab_heap *heap, const struct kslab_request *request,
			    struct kslab_zone *zone, struct kslab_sc *sc)
{
	void *object;

	zone->counters.slow_allocs++;
	object = kslab_sc_pop(sc);
	if (object == NULL && heap->debug_level != 0)
		kslab_fence_issue(heap, zone, sc);
	if (object == NULL)
		object = kslab_sc_next(&zone->owner, sc);
	if (object == NULL && adopt(heap, request, zone, sc))
		object = kslab_sc_next(&zone->owner, sc);
	return object;
}

struct kslab_sc *kslab_request_enter(struct kslab_heap *heap, const struct kslab_request *request,
				     struct kslab_zone **zone, enum kslab_reason *reason)
{
	struct kslab_sc *sc = NULL;

	KSLAB_PORT_PIN();
	*zone = kslab_heap_enter(heap);
	if (*zone != NULL)
		sc = kslab_request_sc(*zone, request);
	if (sc != NULL)
		return sc;
	if (*zone != NULL)
		kslab_zone_leave(*zone);
	KSLAB_PORT_UNPIN();
	*reason = *zone != NULL ? kslab_cache_add_zone(heap, request, *zone)
				: kslab_heap_add_level(heap, request->flags);
	return NULL;
}

void *kslab_heap_alloc_slow(struct kslab_heap *heap, const struct kslab_request *request)
{
	struct kslab_relief relief = { .want = request->cache != NULL
						       ? request->cache->min_run
						       : heap->min_run[request->cls] };
	enum kslab_reason reason = KSLAB_OK;
	bool gives = kslab_heap_may_give(heap, request->flags), asks = true;

	for (;;) {
		struct kslab_zone *zone;
		struct kslab_sc *sc = kslab_request_enter(heap, request, &zone, &reason);
		uint32_t pages_so_far;
		bool has_more;
		void *object;

		if (sc == NULL && reason != KSLAB_OK)
			return kslab_heap_fail(heap, reason);
		if (sc == NULL)
			continue;
		object = take_from_zone(heap, request, zone, sc);
		pages_so_far = sc->pages;
		has_more = kslab_sc_has_more(&zone->owner, sc);
		if (object != NULL) {
			leave(heap, zone, request);
			return object;
		}
		/* What there is to give back goes when the page is in: a call does that once. */
		kslab_zone_leave_reporting(heap, zone, request->caller);
		if (asks) {
			struct kslab_page *page =
				kslab_heap_make_page(heap, request, pages_so_far, &reason);

			if (page != NULL) {
				object = insert_and_take(heap, request, page);
				if (object != NULL)
					return object;
				continue;
			}
		}
		/* The source has failed: what lies idle, the rest of the mail, what can be found. */
		asks = gives && kslab_heap_take_back(heap, relief.want);
		if (asks || has_more)
			continue;
		if (!gives || relief.is_done)
			return kslab_heap_fail(heap, reason);
		asks = kslab_heap_relieve(heap, &relief);
	}
}

/* ---- the class of a request ------------------------------------------------------------------ */

unsigned kslab_heap_class(const struct kslab_heap *heap, size_t n, size_t align)
{
	if (heap->debug_level != 0)
		kslab_debug_grow(heap, &n, &align);
	return kslab_heap_plain_class(heap, n, align);
}

unsigned kslab_heap_plain_class(const struct kslab_heap *heap, size_t n, size_t align)
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

/* ---- the middle path ------------------------------------------------------------------------- */

/* What the middle path leaves: no page, a busy zone, a large request, debugging. */
static KSLAB_SLOW void *malloc_slower(size_t n, struct kslab_heap *heap, const void *caller)
{
	struct kslab_request request = { NULL, 0, 0, caller };

	if (KSLAB_UNLIKELY(heap->state != KSLAB_HEAP_READY))
		return kslab_heap_fail(heap, KSLAB_NOT_INITIALISED);
	if (n > KSLAB_CLASS_MAX_BYTES || heap->debug_level != 0 || kslab_inject_is_on(heap))
		return kslab_heap_alloc_any(heap, n, 1, 0, request.caller);
	request.cls = heap->use_class[kslab_class_of(n)];
	if (request.cls == KSLAB_CLASSES)
		return kslab_heap_alloc_any(heap, n, 1, 0, request.caller);
	return kslab_heap_alloc_slow(heap, &request);
}

/* The routed class has no word that can be issued from at once. In the entered zone. */
static KSLAB_SLOW void *malloc_turn(size_t n, const void *caller, struct kslab_zone *zone,
				    struct kslab_sc *sc)
{
	struct kslab_heap *heap = zone->heap;
	void *object =
		kslab_sc_pop(sc); /* an interrupt since the fast path may have cached a word */
	bool turns = object == NULL && sc->page != NULL;

	if (turns)
		object = kslab_sc_next(&zone->owner, sc);
	/* Without an object malloc_slower comes by here again, and looks. */
	if (KSLAB_UNLIKELY(turns && object != NULL && kslab_zone_has_work(heap, zone))) {
		kslab_heap_leave(heap, zone, caller);
	} else {
		kslab_zone_leave(zone);
		KSLAB_PORT_UNPIN();
	}
	if (KSLAB_UNLIKELY(object == NULL))
		return malloc_slower(n, heap, caller);
	return object;
}

static KSLAB_COLD void *leave_with(void *object, struct kslab_heap *heap, struct kslab_zone *zone,
				   const void *caller)
{
	kslab_heap_leave(heap, zone, caller);
	return object;
}

/*
 * The middle path; it calls nothing on its way that would make it save registers. It serves requests
 * of other CPUs, too: a CPU that goes round in one page comes by nowhere else.
 */
KSLAB_INLINE void *malloc_middle(size_t n, struct kslab_heap *heap, const void *caller,
				 size_t offset)
{
	struct kslab_zone *zone;
	struct kslab_sc *sc;
	void *object;

	KSLAB_PORT_PIN();
	zone = kslab_heap_quick_zone(heap);
	if (KSLAB_UNLIKELY(zone->owner.key == 0)) {
		KSLAB_PORT_UNPIN();
		return malloc_slower(n, heap, caller);
	}
	kslab_zone_enter(zone);
	zone->counters.slow_allocs++;
	sc = (struct kslab_sc *)((uintptr_t)zone + offset);
	/* An interrupt since the fast path may have cached a word. */
	if (sc->ready == 0 || KSLAB_UNLIKELY(*sc->word != 0))
		return malloc_turn(n, caller, zone, sc);
	object = kslab_sc_issue_ready(sc);
	if (KSLAB_UNLIKELY(object == NULL))
		return malloc_turn(n, caller, zone, sc);
	if (KSLAB_UNLIKELY(zone->reclaim_epoch != KSLAB_LOAD_RELAXED(&heap->reclaim_epoch)))
		return leave_with(object, heap, zone, caller);
	kslab_zone_leave(zone);
	KSLAB_PORT_UNPIN();
	return object;
}

/* What the fast path does, of a class that has no route. NULL: its cached word is used up. */
KSLAB_INLINE void *malloc_quick(struct kslab_heap *heap, unsigned cls)
{
	void *object = NULL;
	struct kslab_zone *zone;

	KSLAB_PORT_PIN();
	zone = kslab_heap_quick_zone(heap);
	if (KSLAB_LIKELY(zone->owner.key != 0)) {
		kslab_zone_enter(zone);
		object = kslab_sc_pop(&zone->sc[cls]);
		kslab_zone_leave(zone);
	}
	KSLAB_PORT_UNPIN();
	return object;
}

/* Longer objects than the table of routes reaches; or it is closed. */
static KSLAB_SLOW void *malloc_long(size_t n, struct kslab_heap *heap, const void *caller)
{
	unsigned cls;
	void *object;

	if (heap->route_limit != 0 && n <= KSLAB_CLASS_MAX_BYTES) {
		cls = heap->use_class[kslab_class_of(n)];
		if (cls != KSLAB_CLASSES) {
			object = malloc_quick(heap, cls);
			if (KSLAB_LIKELY(object != NULL))
				return object;
			return malloc_middle(n, heap, caller,
					     offsetof(struct kslab_zone, sc) +
						     cls * sizeof(struct kslab_sc));
		}
	}
	return malloc_slower(n, heap, caller);
}

/* No route: a large request, size 0, debugging, injection. Saves no registers before it knows. */
KSLAB_SLOW void *kslab_heap_malloc_unrouted(size_t n, struct kslab_heap *heap, const void *caller)
{
	KSLAB_TAKE_CALLER(caller);
	/* The limit is 0 where every call has to go the long way. */
	if (n > KSLAB_CLASS_MAX_BYTES && KSLAB_LIKELY(heap->route_limit != 0))
		return kslab_large_malloc(n, heap, caller);
	if (heap->debug_level == 1)
		return kslab_debug_malloc_1(n, heap, caller);
	if (heap->debug_level != 0)
		return kslab_debug_malloc_2(n, heap, caller);
	return malloc_long(n, heap, caller);
}

/* There was a route when the fast path looked, and an index stays one. */
KSLAB_SLOW void *kslab_heap_malloc_slow(size_t n, struct kslab_heap *heap, const void *caller)
{
	KSLAB_TAKE_CALLER(caller);
	return malloc_middle(n, heap, caller, heap->route[(n - 1) / 8]);
}

/* ---- any request ----------------------------------------------------------------------------- */

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

void *kslab_heap_alloc_any(struct kslab_heap *heap, size_t n, size_t align, unsigned flags,
			   const void *caller)
{
	struct kslab_request request = { NULL, 0, flags, caller };
	void *object;

	if (heap->state != KSLAB_HEAP_READY)
		return kslab_heap_fail(heap, KSLAB_NOT_INITIALISED);
	if (!kslab_is_power_of_two(align))
		return kslab_heap_fail(heap, KSLAB_BAD_ALIGNMENT);
	request.cls = kslab_heap_class(heap, n, align);
	if (kslab_inject_object(heap, request.cls, flags & KSLAB_RESERVE))
		return kslab_heap_fail(heap, KSLAB_INJECTED);
	if (request.cls == KSLAB_CLASSES) {
		object = kslab_large_alloc(heap, n, align, flags);
		if (object != NULL && heap->debug_level != 0)
			kslab_debug_large_issue(heap, object, n, flags);
		return object;
	}
	object = kslab_heap_alloc_slow(heap, &request);
	if (heap->debug_level != 0)
		return kslab_debug_finish(heap, object, &request, n, align);
	if (object != NULL && (flags & KSLAB_ZERO))
		clear(object, kslab_class_bytes(request.cls));
	return object;
}
