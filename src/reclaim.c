/* SPDX-License-Identifier: MIT
 * reclaim.c - owns memory pressure and progress: reclaim, CPUs that come and go, limbo, idle,
 * quiesce, reserve. Rank: 5.  Runs: any CPU, thread or interrupt, no zone entered.
 *
 * Limbo is a zone without a CPU: it owns the pages of CPUs that went offline, and is operated by
 * whoever holds the heap lock. Pages that are QUEUED when their CPU goes wait in its parked zone
 * until their mail arrives.
 */
#include "debug.h"
#include "heap.h"
#include "page_list.h"
#include "tally.h"

/* ---- memory pressure ------------------------------------------------------------------------- */

/* Take one thing to give back out of the zone of a level; report what was found late. */
static struct kslab_page *take_from_level(struct kslab_heap *heap, unsigned level, bool collect)
{
	struct kslab_page *page;
	struct kslab_zone *zone;

	KSLAB_PORT_PIN();
	zone = kslab_heap_enter_level(heap, level);
	if (zone == NULL) {
		KSLAB_PORT_UNPIN();
		return NULL;
	}
	if (collect)
		kslab_zone_collect(heap, zone);
	zone->owner.reserve_run = 0;
	page = kslab_zone_take_spare(zone);
	if (page == NULL)
		page = kslab_zone_take_empty(heap, zone, KSLAB_ALL);
	kslab_zone_leave_reporting(heap, zone, KSLAB_CALLER());
	return page;
}

/* Give back all empty pages of this CPU, up to `want` base pages. */
static size_t reclaim_here(struct kslab_heap *heap, size_t want)
{
	size_t released = 0;

	for (unsigned level = 0; level < KSLAB_CFG_LEVELS; level++) {
		bool collect = true;

		while (released < want) {
			struct kslab_page *page = take_from_level(heap, level, collect);

			if (page == NULL)
				break;
			collect = false;
			released += page->state == KSLAB_PAGE_LARGE ? page->slots : page->pages;
			kslab_heap_release(heap, page);
		}
	}
	return released;
}

/* Move what a zone without a CPU holds into limbo. Under the lock. Pages that are QUEUED stay. */
static void move_to_limbo(struct kslab_heap *heap, struct kslab_zone *zone)
{
	kslab_sc_drain(&zone->owner, KSLAB_ALL);
	/* Caches' pages wait for the CPU to come back, or for the cache's end. */
	for (unsigned i = 0; i < KSLAB_CLASSES; i++) {
		struct kslab_sc *sc = &zone->sc[i];
		struct kslab_page_list *lists[] = { &sc->partial, &sc->full, &sc->empty };

		kslab_sc_retire(&zone->owner, sc);
		for (unsigned l = 0; l < KSLAB_ARRAY_LENGTH(lists); l++) {
			struct kslab_page *page = lists[l]->head, *next;

			for (; page != NULL; page = next) {
				next = kslab_page_list_after(lists[l], page);
				kslab_sc_move(&zone->owner, page, &heap->limbo->owner,
					      &heap->limbo->sc[i]);
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

/*
 * Note for adopt's quick look whether limbo has pages of the class with free slots. Under the lock.
 */
static void note_class(struct kslab_heap *heap, unsigned cls)
{
	const struct kslab_sc *sc = &heap->limbo->sc[cls];
	kslab_word *word = &heap->limbo_classes[cls / 32], bit = (kslab_word)1 << cls % 32;
	bool has = sc->partial.head != NULL || sc->empty.head != NULL;

	KSLAB_STORE_RELAXED(word, has ? *word | bit : *word & ~bit);
}

/* Leave the lock; then tell of double frees that limbo's harvests have found. */
static void unlock_reporting(struct kslab_heap *heap, struct kslab_lock_state *state)
{
	struct kslab_owner *owner = &heap->limbo->owner;
	uintptr_t late = owner->late;
	size_t late_count = owner->late_count;
	struct kslab_page *corrupt = owner->corrupt;

	owner->late = 0;
	owner->late_count = 0;
	owner->corrupt = NULL;
	kslab_heap_unlock(heap, state);
	if (corrupt != NULL && corrupt->state == KSLAB_PAGE_FENCED)
		kslab_fence_report(heap, corrupt, NULL);
	if (late != 0)
		kslab_heap_report_late(heap, late, late_count, NULL);
}

/* Bring limbo up to date: mail of its own and of zones that linger. Under the lock. */
static void tend_limbo(struct kslab_heap *heap)
{
	struct kslab_zone **link = &heap->lingering;
	size_t pages = 0;

	kslab_sc_drain(&heap->limbo->owner, KSLAB_ALL);
	while (*link != NULL) {
		struct kslab_zone *zone = *link;
		size_t held;

		move_to_limbo(heap, zone);
		if (zone->owner.late != 0)
			heap->limbo->owner.late = zone->owner.late;
		heap->limbo->owner.late_count += zone->owner.late_count;
		zone->owner.late = 0;
		zone->owner.late_count = 0;
		held = held_pages(zone);
		pages += held;
		if (held != 0)
			link = &zone->lingering;
		else
			KSLAB_STORE_RELAXED(link, zone->lingering);
	}
	for (unsigned cls = 0; cls < KSLAB_CLASSES; cls++)
		note_class(heap, cls);
	KSLAB_STORE_RELAXED(&heap->limbo_pages, pages + held_pages(heap->limbo));
}

/* A zone loses or gets its CPU. Under the lock. */
static void linger(struct kslab_heap *heap, struct kslab_zone *zone)
{
	for (; zone != NULL; zone = KSLAB_LOAD_ACQUIRE(&zone->inner)) {
		zone->lingering = heap->lingering;
		KSLAB_STORE_RELAXED(&heap->lingering, zone);
	}
}

static void stop_lingering(struct kslab_heap *heap, struct kslab_zone *zone)
{
	for (; zone != NULL; zone = KSLAB_LOAD_ACQUIRE(&zone->inner)) {
		struct kslab_zone **link = &heap->lingering;

		while (*link != NULL && *link != zone)
			link = &(*link)->lingering;
		if (*link == zone)
			KSLAB_STORE_RELAXED(link, zone->lingering);
	}
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
			kslab_zone_collect(heap, heap->limbo);
		}
		page = kslab_zone_take_empty(heap, heap->limbo, KSLAB_ALL);
		if (page != NULL)
			KSLAB_STORE_RELAXED(&heap->limbo_pages, heap->limbo_pages - 1);
		unlock_reporting(heap, &state);
		if (page == NULL)
			break;
		released += page->pages;
		kslab_heap_release_page(heap, page);
	}
	return released;
}

/* Take a page of the class with free slots from limbo into an entered zone. */
bool kslab_limbo_adopt(struct kslab_heap *heap, struct kslab_zone *zone, unsigned cls)
{
	/* pairs with the CAS of cpu_offline */
	struct kslab_zone *limbo = KSLAB_LOAD_ACQUIRE(&heap->limbo);
	struct kslab_lock_state state;
	struct kslab_sc *sc;
	struct kslab_page *page;
	bool adopted = false;

	/*
	 * A quick look: most slow paths have nothing to find here. Mail may have changed that: then
	 * look closer.
	 */
	if (!(KSLAB_LOAD_RELAXED(&heap->limbo_classes[cls / 32]) >> cls % 32 & 1) &&
	    !kslab_sc_has_mail(&limbo->owner) && KSLAB_LOAD_RELAXED(&heap->lingering) == NULL)
		return false;
	if (!kslab_heap_lock(heap, &state))
		return false;
	if (kslab_sc_has_mail(&heap->limbo->owner) || heap->lingering != NULL)
		tend_limbo(heap);
	sc = &heap->limbo->sc[cls];
	for (page = sc->partial.head; page != NULL && !adopted;
	     page = kslab_page_list_after(&sc->partial, page)) {
		if (kslab_sc_move(&heap->limbo->owner, page, &zone->owner, &zone->sc[cls])) {
			adopted = true;
			break;
		}
	}
	if (!adopted && sc->empty.head != NULL)
		adopted = kslab_sc_move(&heap->limbo->owner, sc->empty.head, &zone->owner,
					&zone->sc[cls]);
	if (adopted)
		KSLAB_STORE_RELAXED(&heap->limbo_pages, heap->limbo_pages - 1);
	note_class(heap, cls);
	kslab_heap_unlock(heap, &state);
	return adopted;
}

/*
 * The page source has failed: take back what lies idle. Return: true if it is worth trying again.
 */
bool kslab_heap_relieve(struct kslab_heap *heap)
{
	size_t released;

	if (KSLAB_PORT_IN_NMI())
		return false;
	kslab_large_release_deferred(heap, KSLAB_ALL);
	if (heap->debug_level >= 2)
		kslab_debug_flush(heap);
	released = reclaim_here(heap, SIZE_MAX) + reclaim_limbo(heap, SIZE_MAX);
	/* ask the others; theirs comes too late for this call */
	KSLAB_FETCH_ADD_RELAXED(&heap->reclaim_epoch, 1u);
	return released != 0;
}

size_t kslab_heap_reclaim(struct kslab_heap *heap, size_t pages)
{
	size_t released;

	if (heap->state != KSLAB_HEAP_READY)
		return 0;
	kslab_large_release_deferred(heap, KSLAB_ALL);
	if (heap->debug_level >= 2)
		kslab_debug_flush(heap);
	released = reclaim_here(heap, pages);
	if (released < pages)
		released += reclaim_limbo(heap, pages - released);
	if (released < pages)
		KSLAB_FETCH_ADD_RELAXED(&heap->reclaim_epoch, 1u);
	if (released < pages)
		kslab_heap_purge_pages(heap, KSLAB_CALLER());
	if (heap->purge != NULL)
		kslab_source_purge(heap, 0);
	return released;
}

/* ---- CPUs ------------------------------------------------------------------------------------ */

static enum kslab_reason refuse_cpu(struct kslab_heap *heap, unsigned cpu, const void *caller,
				    const char *what)
{
	struct kslab_report report = {
		.fault = KSLAB_FAULT_BAD_CPU, .count = cpu, .caller = caller, .what = what
	};

	kslab_report_fault(heap, &report);
	return KSLAB_BAD_ARGUMENT;
}

enum kslab_reason kslab_heap_cpu_online(struct kslab_heap *heap, unsigned cpu)
{
	struct kslab_lock_state state;
	struct kslab_zone *zone;
	enum kslab_reason reason;

	if (heap->state != KSLAB_HEAP_READY)
		return KSLAB_NOT_INITIALISED;
	if (cpu >= KSLAB_CFG_CPUS)
		return refuse_cpu(heap, cpu, KSLAB_CALLER(), "cpu number is out of range");
	if (cpu != KSLAB_PORT_CPU())
		return refuse_cpu(heap, cpu, KSLAB_CALLER(),
				  "kslab_cpu_online must run on the cpu itself");
	if (heap->zone[cpu] != &kslab_zone_none)
		return cpu == 0 ? KSLAB_OK
				: refuse_cpu(heap, cpu, KSLAB_CALLER(), "cpu is online already");
	zone = heap->parked[cpu];
	if (zone == NULL) {
		zone = kslab_meta_alloc(heap, sizeof(*zone), 0, &reason);
		if (zone == NULL)
			return reason;
		kslab_zone_start(heap, zone, cpu, 0);
	}
	if (!kslab_heap_lock(heap, &state))
		return KSLAB_BUSY;
	stop_lingering(heap, zone);
	heap->cpus_online++; /* from here on nobody else operates it */
	kslab_heap_unlock(heap, &state);
	for (struct kslab_zone *z = zone; z != NULL; z = z->inner)
		z->owner.key = (uintptr_t)z;
	/*
	 * In this order: kslab_heap_each_zone finds the zone in one of the two tables at any time.
	 */
	KSLAB_STORE_RELEASE(&heap->zone[cpu], zone);
	KSLAB_STORE_RELEASE(&heap->parked[cpu], (struct kslab_zone *)NULL);
	kslab_heap_set_quick_zone(heap, zone);
	return KSLAB_OK;
}

enum kslab_reason kslab_heap_cpu_offline(struct kslab_heap *heap, unsigned cpu)
{
	struct kslab_lock_state state;
	struct kslab_page *spare = NULL;
	struct kslab_zone *zone;
	enum kslab_reason reason;

	if (heap->state != KSLAB_HEAP_READY)
		return KSLAB_NOT_INITIALISED;
	if (cpu == 0 || cpu >= KSLAB_CFG_CPUS)
		return refuse_cpu(heap, cpu, KSLAB_CALLER(), "cpu number is out of range");
	zone = heap->zone[cpu];
	if (zone == &kslab_zone_none)
		return refuse_cpu(heap, cpu, KSLAB_CALLER(), "cpu is not online");
	if (KSLAB_LOAD_ACQUIRE(&heap->limbo) == NULL) {
		struct kslab_zone *limbo = kslab_meta_alloc(heap, sizeof(*limbo), 0, &reason),
				  *none = NULL;

		if (limbo == NULL)
			return reason;
		kslab_zone_start(heap, limbo, 0, 0);
		KSLAB_CAS_ACQ_REL(&heap->limbo, &none, limbo);
	}
	KSLAB_STORE_RELEASE(&heap->parked[cpu], zone);
	KSLAB_STORE_RELEASE(&heap->zone[cpu], &kslab_zone_none);
	if (cpu == KSLAB_PORT_CPU())
		kslab_heap_set_quick_zone(heap, &kslab_zone_none);
	for (struct kslab_zone *z = zone; z != NULL; z = z->inner)
		KSLAB_STORE_RELAXED(&z->owner.key, (uintptr_t)0);
	if (!kslab_heap_lock(heap, &state)) {
		/* An NMI: as you were. */
		KSLAB_STORE_RELEASE(&heap->zone[cpu], zone);
		KSLAB_STORE_RELEASE(&heap->parked[cpu], (struct kslab_zone *)NULL);
		if (cpu == KSLAB_PORT_CPU())
			kslab_heap_set_quick_zone(heap, zone);
		for (struct kslab_zone *z = zone; z != NULL; z = z->inner)
			KSLAB_STORE_RELAXED(&z->owner.key, (uintptr_t)z);
		return KSLAB_BUSY;
	}
	for (struct kslab_zone *z = zone; z != NULL; z = z->inner) {
		for (struct kslab_page *page; (page = kslab_zone_take_spare(z)) != NULL;
		     spare = page)
			page->mail_next = spare;
	}
	heap->cpus_online--;
	linger(heap, zone);
	tend_limbo(heap);
	kslab_heap_unlock(heap, &state);
	for (struct kslab_page *page; spare != NULL; spare = page) {
		page = spare->mail_next;
		kslab_large_release(heap, spare);
	}
	return KSLAB_OK;
}

/* ---- progress -------------------------------------------------------------------------------- */

/*
 * Remote frees made, and remote bits taken in: equal when none is pending. A free is counted before
 * it is done, and what was taken in is summed up first: so a free that is under way can only make
 * the sums differ.
 */
static void add_harvested(void *ctx, struct kslab_zone *zone)
{
	size_t *harvested = ctx;

	*harvested += KSLAB_LOAD_ACQUIRE(&zone->owner.harvested);
}

static void add_freed(void *ctx, struct kslab_zone *zone)
{
	size_t *freed = ctx;

	*freed += KSLAB_LOAD_RELAXED(&zone->owner.remote_frees);
}

static void look_for_mail(void *ctx, struct kslab_zone *zone)
{
	bool *has_mail = ctx;

	if (KSLAB_LOAD_ACQUIRE(&zone->owner.mailbox) != NULL ||
	    KSLAB_LOAD_RELAXED(&zone->owner.mail) != NULL)
		*has_mail = true;
}

static bool is_balanced(struct kslab_heap *heap)
{
	size_t harvested = 0, freed = 0;

	kslab_heap_each_zone(heap, add_harvested, &harvested);
	kslab_heap_each_zone(heap, add_freed, &freed);
	return freed + KSLAB_LOAD_RELAXED(&heap->zoneless_frees) == harvested;
}

void kslab_heap_idle(struct kslab_heap *heap)
{
	bool pending;

	if (heap->state != KSLAB_HEAP_READY)
		return;
	kslab_large_release_deferred(heap, KSLAB_ALL);
	pending = !is_balanced(heap);
	for (unsigned level = 0; level < KSLAB_CFG_LEVELS; level++) {
		struct kslab_zone *zone;

		KSLAB_PORT_PIN();
		zone = kslab_heap_enter_level(heap, level);
		if (zone == NULL) {
			KSLAB_PORT_UNPIN();
			continue;
		}
		if (heap->debug_level != 0)
			kslab_fence_mail(heap, zone);
		if (pending)
			kslab_zone_collect(heap, zone);
		else
			kslab_sc_drain(&zone->owner, KSLAB_ALL);
		kslab_zone_leave_reporting(heap, zone, KSLAB_CALLER());
		kslab_heap_trim_all(heap, level);
	}
}

bool kslab_heap_quiesce(struct kslab_heap *heap)
{
	struct kslab_lock_state state;
	bool has_mail = false;

	if (heap->state != KSLAB_HEAP_READY)
		return true;
	kslab_large_release_deferred(heap, KSLAB_ALL);
	for (unsigned level = 0; level < KSLAB_CFG_LEVELS; level++) {
		struct kslab_zone *zone;

		KSLAB_PORT_PIN();
		zone = kslab_heap_enter_level(heap, level);
		if (zone == NULL) {
			KSLAB_PORT_UNPIN();
			continue;
		}
		kslab_zone_collect(heap, zone);
		kslab_zone_leave_reporting(heap, zone, KSLAB_CALLER());
		kslab_heap_trim_all(heap, level);
	}
	if (KSLAB_LOAD_RELAXED(&heap->limbo_pages) != 0 && kslab_heap_lock(heap, &state)) {
		tend_limbo(heap);
		kslab_zone_collect(heap, heap->limbo);
		unlock_reporting(heap, &state);
	}
	kslab_heap_each_zone(heap, look_for_mail, &has_mail);
	return !has_mail && is_balanced(heap) && !kslab_large_has_deferred(heap);
}

void kslab_heap_set_retention(struct kslab_heap *heap, size_t bytes)
{
	KSLAB_STORE_RELAXED(&heap->retain_run,
			    bytes == KSLAB_RETAIN_NONE ? 0 : bytes >> heap->page_shift);
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

bool kslab_heap_reserve_request(struct kslab_heap *heap, const struct kslab_request *request,
				size_t count)
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
			if (zone != NULL)
				kslab_zone_leave(zone);
			KSLAB_PORT_UNPIN();
			reason = zone != NULL ? kslab_cache_add_zone(heap, request, zone)
					      : kslab_heap_add_level(heap, request->flags);
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
		kslab_tally_insert(heap, page);
		zone->owner.reserve_run += page->pages;
		kslab_heap_leave(heap, zone, request->caller);
	}
}
