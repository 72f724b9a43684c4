/* SPDX-License-Identifier: MIT
 * reclaim.c - owns memory pressure and progress: reclaim, CPUs that come and go, limbo, idle,
 * quiesce, reserve. Rank: 5.  Runs: any CPU, thread or interrupt, no zone entered.
 *
 * Limbo is a zone without a CPU: it owns the pages of CPUs that went offline, and is operated by
 * whoever holds the heap lock. Pages that are QUEUED when their CPU goes wait in its parked zone
 * until their mail arrives. Caches' pages stay there, as limbo has no parts for caches: until its CPU
 * is back, the zone is operated like limbo.
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

	zone = kslab_heap_pin_level(heap, level);
	if (zone == NULL)
		return NULL;
	if (collect)
		kslab_zone_collect(heap, zone);
	zone->owner.reserve_run = 0;
	page = kslab_zone_take_spare(zone);
	if (page == NULL)
		page = kslab_zone_take_empty(heap, zone, KSLAB_ALL);
	kslab_zone_leave_reporting(heap, zone, KSLAB_CALLER());
	return page;
}

/* Give back empty pages of this CPU, up to `want` base pages; with a look for them, or what is known. */
static size_t reclaim_here(struct kslab_heap *heap, size_t want, bool looks)
{
	size_t released = 0;

	for (unsigned level = 0; level < KSLAB_CFG_LEVELS; level++) {
		bool collect = looks;

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

/* ---- limbo ----------------------------------------------------------------------------------- */

/* Pairs with the CAS of cpu_offline. */
static struct kslab_zone *limbo_of(const struct kslab_heap *heap)
{
	return KSLAB_LOAD_ACQUIRE(&heap->limbo);
}

/* The class of a zone behind which those of its caches come. */
#define LAST_CLASS(zone) (&(zone)->sc[KSLAB_CLASSES - 1])

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
static void note_class(struct kslab_heap *heap, const struct kslab_sc *sc)
{
	kslab_word *word = &heap->limbo_classes[sc->cls / 32], bit = (kslab_word)1 << sc->cls % 32;
	bool has = sc->partial.head != NULL || sc->empty.head != NULL;

	KSLAB_STORE_RELAXED(word, has ? *word | bit : *word & ~bit);
}

/* Leave the lock; then tell of double frees that limbo's harvests have found. */
static void unlock_reporting(struct kslab_heap *heap, struct kslab_lock_state *state)
{
	struct kslab_owner *owner = &limbo_of(heap)->owner;
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

/*
 * Pages of one class of a zone on their way to limbo that may be found QUEUED, before the next class
 * is turned to: as many in each of the three lists as can be on their way into a mailbox at once.
 */
#define REFUSALS_MOST (KSLAB_CFG_CPUS * KSLAB_CFG_LEVELS)
#define CLASSES_A_STEP 16u

/*
 * Hand one page of a class over. One that is QUEUED goes to the tail of its list, and another list
 * has its turn. Return: false: there is none, or too many are QUEUED.
 */
static bool move_page(struct kslab_heap *heap, struct kslab_zone *zone, struct kslab_sc *sc)
{
	struct kslab_page_list *lists[] = { &sc->partial, &sc->full, &sc->empty };
	struct kslab_owner *owner = &zone->owner;
	struct kslab_sc *to = &limbo_of(heap)->sc[sc->cls];

	for (unsigned n = 0; n < KSLAB_ARRAY_LENGTH(lists) && owner->sweep_left != 0; n++) {
		struct kslab_page_list *list = lists[(owner->sweep_left + n) % 3];
		struct kslab_page *page = list->head;

		if (page == NULL)
			continue;
		if (kslab_sc_move(owner, page, &limbo_of(heap)->owner, to)) {
			note_class(heap, to);
		} else {
			list->head = page->next;
			owner->sweep_left--;
			owner->sweep_epoch = 1; /* not all went: for tend_step */
		}
		return true;
	}
	return false;
}

/*
 * One step of moving what a zone without a CPU holds into limbo, but for caches' pages. Under the
 * lock. Return: false: that was it, but for pages that are QUEUED.
 */
static bool move_to_limbo(struct kslab_heap *heap, struct kslab_zone *zone)
{
	struct kslab_owner *owner = &zone->owner;
	struct kslab_sc *sc = owner->swept;

	if (kslab_sc_has_mail(owner)) {
		kslab_sc_drain(owner, 1);
		return true;
	}
	if (sc != NULL && move_page(heap, zone, sc))
		return true;
	do {
		sc = sc != NULL ? sc + 1 : &zone->sc[0];
	} while (sc != &zone->sc[KSLAB_CLASSES] && sc->pages == 0);
	if (sc == &zone->sc[KSLAB_CLASSES])
		return false;
	owner->swept = sc;
	owner->sweep_left = 3 * (sc->pages < REFUSALS_MOST ? sc->pages : REFUSALS_MOST);
	if (sc->page != NULL)
		kslab_sc_retire(owner, sc);
	return move_page(heap, zone, sc);
}

/* What a step in a zone without a CPU found is reported with limbo's. */
static void pass_on_late(struct kslab_owner *owner, struct kslab_owner *limbo)
{
	if (owner == limbo)
		return;
	if (limbo->corrupt == NULL && owner->corrupt != NULL &&
	    owner->corrupt->state == KSLAB_PAGE_FENCED) {
		limbo->corrupt = owner->corrupt;
		owner->corrupt = NULL;
	}
	if (owner->late == 0)
		return;
	limbo->late = owner->late;
	limbo->late_count += owner->late_count;
	owner->late = 0;
	owner->late_count = 0;
}

/*
 * Take in the mail of one page of limbo, and note that its class has something now. Under the lock.
 * Return: false: there is none.
 */
static bool take_limbo_mail(struct kslab_heap *heap)
{
	struct kslab_owner *limbo = &limbo_of(heap)->owner;
	struct kslab_page *page = kslab_sc_next_mail(limbo);
	struct kslab_sc *sc;

	if (page == NULL)
		return false;
	sc = page->sc;
	kslab_sc_drain(limbo, 1);
	note_class(heap, sc);
	return true;
}

/*
 * Whoever holds the lock operates a zone without a CPU. Return: false, and no lock: it is its CPU's,
 * or nobody's yet (see cpu_online and cpu_offline), or the lock can't be had here.
 */
static bool lock_parked(struct kslab_heap *heap, const struct kslab_zone *zone,
			struct kslab_lock_state *state)
{
	if (!kslab_heap_lock(heap, state))
		return false;
	if (zone->is_parked)
		return true;
	kslab_heap_unlock(heap, state);
	return false;
}

static void unlock_parked(struct kslab_heap *heap, struct kslab_zone *zone,
			  struct kslab_lock_state *state)
{
	pass_on_late(&zone->owner, &limbo_of(heap)->owner);
	unlock_reporting(heap, state);
}

/*
 * One step of bringing limbo up to date: mail of its own, then the zones that linger; *zones: of
 * these, already done. Under the lock. Return: false: that was it.
 */
static bool tend_step(struct kslab_heap *heap, unsigned *zones)
{
	struct kslab_owner *limbo = &limbo_of(heap)->owner;
	struct kslab_zone **link = &heap->lingering, *zone, *next;
	bool goes_on;

	if (take_limbo_mail(heap))
		return true;
	for (unsigned n = *zones; *link != NULL && n != 0; n--)
		link = &(*link)->lingering;
	zone = *link;
	if (zone == NULL)
		return false;
	next = zone->lingering;
	goes_on = move_to_limbo(heap, zone);
	pass_on_late(&zone->owner, limbo);
	if (goes_on)
		return true;
	/* A class is left behind when it has no page, or pages that are QUEUED. */
	if (zone->owner.sweep_epoch == 0)
		KSLAB_STORE_RELAXED(link, next);
	else
		++*zones;
	kslab_sc_sweep_end(&zone->owner);
	return next != NULL;
}

/* The lock is dropped after each step. @reports: what is found late is told of; no zone is entered. */
static void tend_limbo(struct kslab_heap *heap, size_t steps, bool reports)
{
	unsigned zones = 0;

	for (; steps != 0; steps--) {
		struct kslab_lock_state state;
		bool goes_on;

		if (!kslab_heap_lock(heap, &state))
			return;
		goes_on = tend_step(heap, &zones);
		if (reports)
			unlock_reporting(heap, &state);
		else
			kslab_heap_unlock(heap, &state);
		if (!goes_on)
			return;
	}
}

/* A zone loses or gets its CPU. Under the lock. */
static void linger(struct kslab_heap *heap, struct kslab_zone *zone, size_t held)
{
	for (; zone != NULL; zone = KSLAB_LOAD_ACQUIRE(&zone->inner)) {
		kslab_sc_sweep_end(&zone->owner);
		zone->is_parked = true;
		zone->lingering = heap->lingering;
		KSLAB_STORE_RELAXED(&heap->lingering, zone);
	}
	KSLAB_STORE_RELAXED(&heap->limbo_pages, heap->limbo_pages + held);
}

static void stop_lingering(struct kslab_heap *heap, struct kslab_zone *zone)
{
	struct kslab_zone **link = &heap->lingering;

	zone->is_parked = false;
	while (*link != NULL && *link != zone)
		link = &(*link)->lingering;
	if (*link == NULL)
		return;
	KSLAB_STORE_RELAXED(link, zone->lingering);
	KSLAB_STORE_RELAXED(&heap->limbo_pages, heap->limbo_pages - held_pages(zone));
	kslab_sc_sweep_end(&zone->owner);
}

/* Look at all of it: mail, zones that linger, pages. */
static void sweep_limbo(struct kslab_heap *heap)
{
	bool is_done = false;

	tend_limbo(heap, KSLAB_ALL, true);
	for (bool first = true; !is_done; first = false) {
		struct kslab_zone *limbo = limbo_of(heap);
		struct kslab_lock_state state;

		if (!kslab_heap_lock(heap, &state))
			return;
		if (first)
			kslab_sc_sweep_end(&limbo->owner);
		/* Here, and not by the sweep, which notes nothing. */
		if (!take_limbo_mail(heap))
			is_done = kslab_zone_sweep(heap, limbo, 1);
		unlock_reporting(heap, &state);
	}
}

/* ---- caches of CPUs that are gone ------------------------------------------------------------ */

static size_t cache_pages(struct kslab_zone *zone)
{
	struct kslab_sc *sc = LAST_CLASS(zone);
	size_t pages = 0;

	while ((sc = kslab_zone_next_sc(zone, sc)) != NULL)
		pages += sc->pages;
	return pages;
}

/* Of caches, so many pages are in the zones of a CPU that is offline. Under the lock. */
static void count_parked(struct kslab_heap *heap, unsigned cpu, size_t pages)
{
	KSLAB_STORE_RELAXED(&heap->parked_pages, heap->parked_pages - heap->parked_of[cpu] + pages);
	KSLAB_STORE_RELAXED(&heap->parked_of[cpu], pages);
}

/* The zone of level 0 of a CPU that is offline and has left pages of caches behind, or NULL. */
static struct kslab_zone *parked_of(const struct kslab_heap *heap, unsigned cpu)
{
	return KSLAB_LOAD_RELAXED(&heap->parked_of[cpu]) != 0
		       ? KSLAB_LOAD_ACQUIRE(&heap->parked[cpu])
		       : NULL;
}

/*
 * A sweep through a cache's part of a parked zone, whose own sweep is left alone: it is
 * move_to_limbo's. First the partly used pages, then the empty ones (why: see kslab_sc_sweep).
 */
struct part_sweep {
	unsigned list; /* that it has come to */
	const struct kslab_page *end; /* its last page then, compared only; NULL: not begun */
	uint32_t left; /* pages to look at there: the end may be gone since */
};

/*
 * One step: mail of a page; or the current page, and one of a list. Under the lock. Return: false:
 * that was it.
 */
static bool sweep_step(struct kslab_zone *zone, struct kslab_sc *sc, struct part_sweep *sweep)
{
	struct kslab_page_list *lists[] = { &sc->partial, &sc->empty };
	struct kslab_owner *owner = &zone->owner;
	struct kslab_page *page;

	if (zone->heap->debug_level != 0)
		kslab_fence_issue(zone->heap, zone, sc);
	if (kslab_sc_has_mail(owner)) {
		kslab_sc_drain(owner, 1);
		return true;
	}
	kslab_sc_retire(owner, sc);
	if (sweep->list == 0 && sc->partial.head == NULL)
		*sweep = (struct part_sweep){ .list = 1 };
	page = lists[sweep->list]->head;
	if (page == NULL)
		return false;
	if (sweep->end == NULL) {
		sweep->end = page->prev;
		sweep->left = sc->pages;
	}
	lists[sweep->list]->head = page->next; /* to the tail, if it stays */
	kslab_page_harvest(owner, page);
	if (page->state == KSLAB_PAGE_PARTIAL)
		kslab_sc_refile(owner, page);
	if (page != sweep->end && --sweep->left != 0)
		return true;
	if (sweep->list == 1)
		return false;
	*sweep = (struct part_sweep){ .list = 1 };
	return sc->empty.head != NULL;
}

/*
 * Harvest all of a cache's part of a parked zone; the lock is dropped after each step. Return: there
 * are empty pages.
 */
static bool sweep_part(struct kslab_heap *heap, struct kslab_zone *zone, struct kslab_sc *sc)
{
	struct part_sweep sweep = { 0, NULL, 0 };
	bool goes_on = true, has_empty = false;

	while (goes_on) {
		struct kslab_lock_state state;

		if (!lock_parked(heap, zone, &state))
			return false;
		goes_on = sweep_step(zone, sc, &sweep);
		has_empty = sc->empty.head != NULL;
		unlock_parked(heap, zone, &state);
	}
	return has_empty;
}

static void sweep_parked(struct kslab_heap *heap)
{
	for (unsigned cpu = 0; cpu < KSLAB_CFG_CPUS; cpu++) {
		struct kslab_zone *zone = parked_of(heap, cpu);

		for (; zone != NULL; zone = KSLAB_LOAD_ACQUIRE(&zone->inner)) {
			struct kslab_sc *sc = LAST_CLASS(zone);

			while ((sc = kslab_zone_next_sc(zone, sc)) != NULL)
				sweep_part(heap, zone, sc);
		}
	}
}

/* ---- what CPUs that are gone have left ------------------------------------------------------- */

/* Bring all of it up to date. */
static void sweep_gone(struct kslab_heap *heap)
{
	if (KSLAB_LOAD_RELAXED(&heap->limbo_pages) != 0)
		sweep_limbo(heap);
	if (KSLAB_LOAD_RELAXED(&heap->parked_pages) != 0)
		sweep_parked(heap);
}

/*
 * One step of taking an empty page out of a zone without a CPU: of one class, or (NULL) of the next
 * few. NULL: none there; *goes_on: there are others.
 */
static struct kslab_page *take_step(struct kslab_heap *heap, struct kslab_zone *zone,
				    struct kslab_sc *sc, bool *goes_on)
{
	struct kslab_lock_state state;
	struct kslab_page *page;

	*goes_on = false;
	if (!lock_parked(heap, zone, &state))
		return NULL;
	page = sc != NULL ? kslab_zone_take_empty_of(heap, zone, sc)
			  : kslab_zone_take_empty(heap, zone, CLASSES_A_STEP);
	if (page != NULL && page->sc->cls == KSLAB_CLASS_CACHE)
		count_parked(heap, zone->cpu, heap->parked_of[zone->cpu] - 1);
	else if (page != NULL)
		KSLAB_STORE_RELAXED(&heap->limbo_pages, heap->limbo_pages - 1);
	if (page != NULL && zone == limbo_of(heap))
		note_class(heap, page->sc);
	*goes_on = sc != NULL ? sc->empty.head != NULL : zone->owner.empty_run != 0;
	unlock_parked(heap, zone, &state);
	return page;
}

/* Look at so many classes for an empty page. */
static struct kslab_page *take_from(struct kslab_heap *heap, struct kslab_zone *zone, size_t looks)
{
	struct kslab_page *page = NULL;
	bool goes_on = true;

	for (size_t n = 0; n <= looks && page == NULL && goes_on; n += CLASSES_A_STEP)
		page = take_step(heap, zone, NULL, &goes_on);
	return page;
}

/* @caches: so many at most are looked at for each page, besides the size classes. */
static size_t reclaim_from(struct kslab_heap *heap, struct kslab_zone *zone, size_t want,
			   size_t caches)
{
	const struct kslab_cache_zone *own = KSLAB_LOAD_ACQUIRE(&zone->caches);
	size_t released = 0, looks = KSLAB_CLASSES;

	for (; own != NULL && caches != 0; own = own->next, caches--)
		looks++;
	while (released < want) {
		struct kslab_page *page = take_from(heap, zone, looks);

		if (page == NULL)
			break;
		released += page->pages;
		kslab_heap_release_page(heap, page);
	}
	return released;
}

/* Give back empty pages of CPUs that are gone; with a look for them, or what is known. */
static size_t reclaim_gone(struct kslab_heap *heap, size_t want, bool looks)
{
	size_t caches = looks ? KSLAB_ALL : KSLAB_LOOKS_MOST, released = 0;

	if (looks)
		sweep_gone(heap);
	if (KSLAB_LOAD_RELAXED(&heap->limbo_pages) != 0)
		released = reclaim_from(heap, limbo_of(heap), want, caches);
	if (KSLAB_LOAD_RELAXED(&heap->parked_pages) == 0)
		return released;
	for (unsigned cpu = 0; cpu < KSLAB_CFG_CPUS; cpu++) {
		struct kslab_zone *zone = parked_of(heap, cpu);

		for (; zone != NULL && released < want; zone = KSLAB_LOAD_ACQUIRE(&zone->inner))
			released += reclaim_from(heap, zone, want - released, caches);
	}
	return released;
}

void kslab_parked_empty(struct kslab_heap *heap, struct kslab_zone *zone, struct kslab_sc *sc)
{
	struct kslab_page *page;
	bool goes_on = sweep_part(heap, zone, sc);

	while (goes_on && (page = take_step(heap, zone, sc, &goes_on)) != NULL)
		kslab_heap_release_page(heap, page);
}

/* ---- pages of CPUs that are gone are used again ---------------------------------------------- */

/* Steps of bringing limbo up to date, and pages tried, in one call of adopt. */
#define ADOPT_STEPS 4u

static bool has_class(const struct kslab_heap *heap, unsigned cls)
{
	return KSLAB_LOAD_RELAXED(&heap->limbo_classes[cls / 32]) >> cls % 32 & 1;
}

/* Take a page of the class with free slots from limbo into an entered zone. */
bool kslab_limbo_adopt(struct kslab_heap *heap, struct kslab_zone *zone, unsigned cls)
{
	struct kslab_zone *limbo = limbo_of(heap);
	struct kslab_lock_state state;
	struct kslab_sc *sc;
	bool adopted = false;

	/*
	 * A quick look: most slow paths have nothing to find here. Mail may change that: then the
	 * next steps of taking it in are done here, those after them by the next call.
	 */
	if (!has_class(heap, cls) &&
	    (kslab_sc_has_mail(&limbo->owner) || KSLAB_LOAD_RELAXED(&heap->lingering) != NULL))
		tend_limbo(heap, ADOPT_STEPS, false);
	if (!has_class(heap, cls))
		return false;
	if (!kslab_heap_lock(heap, &state))
		return false;
	sc = &limbo->sc[cls];
	for (unsigned n = 0; n < ADOPT_STEPS && !adopted; n++) {
		struct kslab_page_list *list = sc->partial.head != NULL ? &sc->partial : &sc->empty;
		struct kslab_page *page = list->head;

		if (page == NULL)
			break;
		adopted = kslab_sc_move(&limbo->owner, page, &zone->owner, &zone->sc[cls]);
		if (!adopted)
			list->head = page->next; /* QUEUED */
	}
	if (adopted)
		KSLAB_STORE_RELAXED(&heap->limbo_pages, heap->limbo_pages - 1);
	note_class(heap, sc);
	kslab_heap_unlock(heap, &state);
	return adopted;
}

/*
 * One step of taking a page with free slots out of a cache's part of a parked zone into its part of
 * an entered one, or of looking for one. Under the lock. Return: false: there is nothing.
 */
static bool adopt_step(struct kslab_zone *parked, struct kslab_sc *from, struct kslab_zone *zone,
		       struct kslab_sc *to, bool *adopted)
{
	struct kslab_page_list *list = from->partial.head != NULL ? &from->partial : &from->empty;
	struct kslab_page *page = list->head;

	if (page == NULL && from->page != NULL) {
		kslab_sc_retire(&parked->owner, from);
		return true;
	}
	if (page == NULL)
		return kslab_sc_drain(&parked->owner, 1) != 0;
	if (!kslab_sc_move(&parked->owner, page, &zone->owner, to)) {
		list->head = page->next; /* QUEUED */
		return true;
	}
	count_parked(parked->heap, parked->cpu, parked->heap->parked_of[parked->cpu] - 1);
	*adopted = page->state != KSLAB_PAGE_FULL; /* a partial one may turn out to be */
	return true;
}

static bool adopt_from(struct kslab_heap *heap, struct kslab_zone *parked, struct kslab_sc *from,
		       struct kslab_zone *zone, struct kslab_sc *to)
{
	bool adopted = false, goes_on = true;

	for (unsigned n = 0; n < ADOPT_STEPS && goes_on && !adopted; n++) {
		struct kslab_lock_state state;

		if (!lock_parked(heap, parked, &state))
			return false;
		goes_on = adopt_step(parked, from, zone, to, &adopted);
		pass_on_late(&parked->owner, &limbo_of(heap)->owner);
		kslab_heap_unlock(heap, &state);
	}
	return adopted;
}

bool kslab_parked_adopt(struct kslab_heap *heap, struct kslab_zone *zone,
			const struct kslab_cache *cache, struct kslab_sc *sc)
{
	for (unsigned cpu = 0; cpu < KSLAB_CFG_CPUS; cpu++) {
		struct kslab_zone *parked = parked_of(heap, cpu);

		for (; parked != NULL; parked = KSLAB_LOAD_ACQUIRE(&parked->inner)) {
			struct kslab_cache_zone *own =
				KSLAB_LOAD_ACQUIRE(&cache->zones[kslab_zone_index(parked)]);

			if (own != NULL && adopt_from(heap, parked, &own->sc, zone, sc))
				return true;
		}
	}
	return false;
}

/* ---- the page source fails, or memory is asked for ------------------------------------------- */

bool kslab_heap_take_back(struct kslab_heap *heap, size_t want)
{
	size_t released;

	if (KSLAB_PORT_IN_NMI())
		return false;
	released = kslab_large_release_deferred(heap, 1);
	if (heap->debug_level >= 2)
		kslab_debug_flush(heap);
	if (released < want)
		released += reclaim_here(heap, want - released, false);
	if (released < want)
		released += reclaim_gone(heap, want - released, false);
	return released != 0;
}

/* Partial pages that are looked at before what was found goes back. */
#define RELIEF_PAGES 8u

/* The next step through the zone of a level. Return: true: it is through. */
static bool look_through(struct kslab_heap *heap, struct kslab_relief *relief)
{
	struct kslab_zone *zone;
	bool is_done;

	zone = kslab_heap_pin_level(heap, relief->level);
	if (zone == NULL)
		return true;
	if (relief->zone != zone) {
		relief->zone = zone;
		kslab_sc_sweep_end(&zone->owner);
		/* That it was asked for, too, may be so. */
		zone->owner.sweep_epoch = KSLAB_LOAD_RELAXED(&heap->reclaim_epoch);
	}
	is_done = kslab_zone_sweep(heap, zone, RELIEF_PAGES);
	if (is_done)
		kslab_sc_sweep_end(&zone->owner);
	kslab_zone_leave_reporting(heap, zone, KSLAB_CALLER());
	return is_done;
}

bool kslab_heap_relieve(struct kslab_heap *heap, struct kslab_relief *relief)
{
	if (KSLAB_PORT_IN_NMI()) {
		relief->is_done = true;
		return false;
	}
	/* ask the others; theirs comes too late for this call */
	if (relief->zone == NULL)
		KSLAB_FETCH_ADD_RELAXED(&heap->reclaim_epoch, 1u);
	while (relief->level < KSLAB_CFG_LEVELS) {
		if (look_through(heap, relief))
			relief->level++;
		if (reclaim_here(heap, relief->want, false) != 0)
			return true;
	}
	relief->is_done = true;
	return reclaim_gone(heap, relief->want, true) != 0;
}

size_t kslab_heap_reclaim(struct kslab_heap *heap, size_t pages)
{
	size_t released;

	if (heap->state != KSLAB_HEAP_READY)
		return 0;
	released = kslab_large_release_deferred(heap, KSLAB_ALL);
	if (heap->debug_level >= 2)
		kslab_debug_flush(heap);
	if (released < pages)
		released += reclaim_here(heap, pages - released, true);
	if (released < pages)
		released += reclaim_gone(heap, pages - released, true);
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
	for (struct kslab_zone *z = zone; z != NULL; z = KSLAB_LOAD_RELAXED(&z->inner)) {
		kslab_heap_lock(heap, &state); /* in a thread: it is waited for */
		stop_lingering(heap, z); /* from here on nobody else operates it */
		if (KSLAB_LOAD_RELAXED(&z->inner) == NULL) /* the last one */
			count_parked(heap, cpu, 0);
		heap->cpus_online += z == zone;
		kslab_heap_unlock(heap, &state);
	}
	for (struct kslab_zone *z = zone; z != NULL; z = z->inner)
		z->owner.key = (uintptr_t)z;
	/*
	 * In this order, and for good: kslab_heap_each_zone finds the zone here or there however often
	 * the CPU comes and goes.
	 */
	KSLAB_STORE_RELEASE(&heap->parked[cpu], zone);
	KSLAB_STORE_RELEASE(&heap->zone[cpu], zone);
	kslab_heap_set_quick_zone(heap, zone);
	return KSLAB_OK;
}

enum kslab_reason kslab_heap_cpu_offline(struct kslab_heap *heap, unsigned cpu)
{
	struct kslab_lock_state state;
	struct kslab_page *spare = NULL;
	struct kslab_zone *zone;
	enum kslab_reason reason;
	size_t held = 0, cached = 0;
	unsigned zones = 0;
	bool goes_on;

	if (heap->state != KSLAB_HEAP_READY)
		return KSLAB_NOT_INITIALISED;
	if (cpu == 0 || cpu >= KSLAB_CFG_CPUS)
		return refuse_cpu(heap, cpu, KSLAB_CALLER(), "cpu number is out of range");
	zone = heap->zone[cpu];
	if (zone == &kslab_zone_none)
		return refuse_cpu(heap, cpu, KSLAB_CALLER(), "cpu is not online");
	if (KSLAB_LOAD_RELAXED(&heap->limbo) == NULL) {
		struct kslab_zone *limbo = kslab_meta_alloc(heap, sizeof(*limbo), 0, &reason),
				  *none = NULL;

		if (limbo == NULL)
			return reason;
		kslab_zone_start(heap, limbo, 0, 0);
		limbo->is_parked = true;
		KSLAB_CAS_RELEASE(&heap->limbo, &none, limbo); /* for limbo_of */
	}
	KSLAB_STORE_RELAXED(&heap->zone[cpu], &kslab_zone_none);
	if (cpu == KSLAB_PORT_CPU())
		kslab_heap_set_quick_zone(heap, &kslab_zone_none);
	for (struct kslab_zone *z = zone; z != NULL; z = z->inner)
		KSLAB_STORE_RELAXED(&z->owner.key, (uintptr_t)0);
	for (struct kslab_zone *z = zone; z != NULL; z = z->inner) {
		held += held_pages(z);
		cached += cache_pages(z);
	}
	if (!kslab_heap_lock(heap, &state)) {
		/* An NMI: as you were. */
		KSLAB_STORE_RELEASE(&heap->zone[cpu], zone);
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
		z->owner.reserve_run = 0;
	}
	heap->cpus_online--;
	linger(heap, zone, held);
	count_parked(heap, cpu, cached);
	goes_on = tend_step(heap, &zones);
	unlock_reporting(heap, &state);
	if (goes_on)
		tend_limbo(heap, KSLAB_ALL, true);
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

		zone = kslab_heap_pin_level(heap, level);
		if (zone == NULL)
			continue;
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
	bool has_mail = false;

	if (heap->state != KSLAB_HEAP_READY)
		return true;
	kslab_large_release_deferred(heap, KSLAB_ALL);
	for (unsigned level = 0; level < KSLAB_CFG_LEVELS; level++) {
		struct kslab_zone *zone;

		zone = kslab_heap_pin_level(heap, level);
		if (zone == NULL)
			continue;
		kslab_zone_collect(heap, zone);
		kslab_zone_leave_reporting(heap, zone, KSLAB_CALLER());
		kslab_heap_trim_all(heap, level);
	}
	sweep_gone(heap);
	kslab_heap_each_zone(heap, look_for_mail, &has_mail);
	return !has_mail && is_balanced(heap) && !kslab_large_has_deferred(heap);
}

void kslab_heap_set_retention(struct kslab_heap *heap, size_t bytes)
{
	size_t run = bytes == KSLAB_RETAIN_NONE ? 0 : bytes >> heap->page_shift;

	KSLAB_STORE_RELAXED(&heap->retain_run, run);
	/* Nothing at all: what is empty and not filed so goes, too, and what was reserved. */
	if (run == 0)
		KSLAB_FETCH_ADD_RELAXED(&heap->reclaim_epoch, 1u);
}

/* Free slots of a class, counted up to `enough`. */
static size_t free_slots(const struct kslab_sc *sc, size_t enough)
{
	const struct kslab_page_list *lists[] = { &sc->empty, &sc->partial };
	size_t slots = 0;

	if (sc->page != NULL)
		slots = sc->page->slots - kslab_page_live(sc->page);
	for (unsigned l = 0; l < KSLAB_ARRAY_LENGTH(lists); l++) {
		const struct kslab_page *page = lists[l]->head;

		for (; page != NULL && slots < enough; page = kslab_page_list_after(lists[l], page))
			slots += page->slots - kslab_page_live(page);
	}
	return slots;
}

/* One page more for a reservation, into whatever zone this CPU has now. Return: its slots; 0: none. */
static size_t reserve_page(struct kslab_heap *heap, const struct kslab_request *request,
			   uint32_t pages_so_far, struct kslab_zone **zone)
{
	enum kslab_reason reason;
	struct kslab_page *page = kslab_heap_make_page(heap, request, pages_so_far, &reason);
	struct kslab_sc *sc;
	size_t slots;

	if (page == NULL) {
		kslab_heap_fail(heap, reason);
		return 0;
	}
	slots = page->slots;
	KSLAB_PORT_PIN();
	*zone = kslab_heap_enter(heap);
	sc = *zone != NULL ? kslab_request_sc(*zone, request) : NULL;
	if (sc == NULL) {
		if (*zone != NULL)
			kslab_zone_leave(*zone);
		KSLAB_PORT_UNPIN();
		kslab_heap_release_page(heap, page);
		return 0;
	}
	kslab_sc_insert(&(*zone)->owner, sc, page, kslab_heap_page_tags(heap, request));
	(*zone)->counters.pages_made++;
	kslab_tally_insert(heap, page);
	(*zone)->owner.reserve_run += page->pages;
	kslab_heap_leave(heap, *zone, request->caller);
	return slots;
}

bool kslab_heap_reserve_request(struct kslab_heap *heap, const struct kslab_request *request,
				size_t count)
{
	struct kslab_zone *counted = NULL, *zone;
	size_t slots = 0, made;

	for (;;) {
		enum kslab_reason reason = KSLAB_OK;
		struct kslab_sc *sc = kslab_request_enter(heap, request, &zone, &reason);
		uint32_t pages_so_far;

		if (sc == NULL && reason != KSLAB_OK) {
			kslab_heap_fail(heap, reason);
			return false;
		}
		if (sc == NULL)
			continue;
		/* Once: a walk for each page that is made would make it quadratic. */
		if (zone != counted)
			slots = free_slots(sc, count);
		counted = zone;
		sc->is_reserved = true;
		pages_so_far = sc->pages;
		kslab_heap_leave(heap, zone, request->caller);
		if (slots >= count)
			return true;
		made = reserve_page(heap, request, pages_so_far, &zone);
		if (made == 0)
			return false;
		if (zone != counted) /* another CPU's, or an inner one: count again */
			counted = NULL;
		slots += made;
	}
}
