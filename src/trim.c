/* SPDX-License-Identifier: MIT
 * trim.c - owns what a zone gives back: which pages are empty, which of them are too many or asked
 * for, and how many go at a time.
 * Rank: 5.  Runs: the functions with a zone for whoever has entered it; the others on any CPU, no
 * zone entered.
 */
#include "debug.h"
#include "heap.h"

/*
 * What a slow path gives back at most, of a surplus or for a request, and the partial pages and mail
 * that it looks at for it. The rest is left to the next ones.
 */
#define TRIM_MOST 4u
#define SWEEP_MOST 4u

/* ---- empty pages of a zone ------------------------------------------------------------------- */

struct kslab_page *kslab_zone_take_empty_of(struct kslab_heap *heap, struct kslab_zone *zone,
					    struct kslab_sc *sc)
{
	struct kslab_page *page = sc->empty.head;

	if (page == NULL)
		return NULL;
	if (heap->debug_level != 0) {
		kslab_fence_empty(heap, zone, sc);
		page = sc->empty.head;
		if (page == NULL)
			return NULL;
	}
	page = page->prev; /* the tail: longest empty */
	if (!kslab_sc_remove_empty(&zone->owner, page))
		return NULL;
	zone->counters.pages_released++;
	return page;
}

/* Other classes' empty pages go before its own. */
static bool is_kept(const struct kslab_owner *owner, const struct kslab_sc *sc)
{
	return owner->reserve_run != 0 && sc->is_reserved;
}

/* There are no others: of the class that has got one last, or of any. */
static struct kslab_page *take_kept(struct kslab_heap *heap, struct kslab_zone *zone, size_t looks)
{
	struct kslab_sc *sc = zone->owner.emptied;
	struct kslab_page *page = NULL;

	if (sc != NULL)
		page = kslab_zone_take_empty_of(heap, zone, sc);
	for (sc = NULL; page == NULL && looks != 0; looks--) {
		sc = kslab_zone_next_sc(zone, sc);
		if (sc == NULL)
			break;
		page = kslab_zone_take_empty_of(heap, zone, sc);
	}
	return page;
}

struct kslab_page *kslab_zone_take_empty(struct kslab_heap *heap, struct kslab_zone *zone,
					 size_t looks)
{
	struct kslab_owner *owner = &zone->owner;
	struct kslab_sc *sc = owner->looked;
	struct kslab_page *page = NULL;
	size_t left = looks;

	if (owner->empty_run == 0)
		return NULL;
	if (sc == NULL)
		sc = kslab_zone_next_sc(zone, NULL);
	for (unsigned rounds = 0; rounds < 2; left--) {
		if (left == 0 || (sc->empty.head != NULL && !is_kept(owner, sc) &&
				  (page = kslab_zone_take_empty_of(heap, zone, sc)) != NULL)) {
			owner->looked = sc;
			break;
		}
		sc = kslab_zone_next_sc(zone, sc);
		if (sc == NULL) {
			sc = kslab_zone_next_sc(zone, NULL);
			rounds++;
		}
	}
	return page == NULL && owner->reserve_run != 0 ? take_kept(heap, zone, looks) : page;
}

/* Find all empty pages of an entered zone: mail, remote frees on partial pages, current pages. */
void kslab_zone_collect(struct kslab_heap *heap, struct kslab_zone *zone)
{
	struct kslab_sc *sc = NULL;

	if (heap->debug_level != 0)
		kslab_fence_zone(heap, zone);
	kslab_sc_drain(&zone->owner, KSLAB_ALL);
	while ((sc = kslab_zone_next_sc(zone, sc)) != NULL) {
		if (sc->page != NULL) {
			kslab_page_harvest(&zone->owner, sc->page);
			kslab_sc_retire(&zone->owner, sc);
		}
		kslab_sc_sweep(&zone->owner, sc);
	}
}

/* A sweep comes to the next class. Return: false: there is none. */
static bool sweep_next_class(struct kslab_heap *heap, struct kslab_zone *zone, size_t *pages)
{
	struct kslab_sc *sc = kslab_zone_next_sc(zone, zone->owner.swept);

	while ((uintptr_t)sc - (uintptr_t)zone->sc < sizeof(zone->sc) - sizeof(*sc) &&
	       sc->pages == 0)
		sc++;
	if (sc != NULL && sc->pages == 0)
		sc = kslab_zone_next_sc(zone, sc);
	if (sc == NULL)
		return false;
	if (heap->debug_level != 0)
		kslab_fence_issue(heap, zone, sc);
	if (sc->page != NULL) {
		kslab_page_harvest(&zone->owner, sc->page);
		kslab_sc_retire(&zone->owner, sc);
		--*pages;
	}
	kslab_sc_sweep_begin(&zone->owner, sc);
	return true;
}

bool kslab_zone_sweep(struct kslab_heap *heap, struct kslab_zone *zone, size_t pages)
{
	struct kslab_owner *owner = &zone->owner;
	size_t looks = pages == KSLAB_ALL ? KSLAB_ALL : 2 * pages;

	pages -= kslab_sc_drain(owner, pages);
	for (; pages != 0 && looks != 0; looks--) {
		size_t one = 1;
		bool is_done;

		if (heap->debug_level != 0 && owner->swept != NULL) { /* each is looked at before */
			kslab_fence_issue(heap, zone, owner->swept);
			is_done = kslab_sc_sweep_some(owner, &one);
			pages -= one == 0;
		} else {
			is_done = owner->swept == NULL || kslab_sc_sweep_some(owner, &pages);
		}
		if (is_done && !sweep_next_class(heap, zone, &pages))
			return true;
	}
	return false;
}

/* ---- what is too much, or asked for ---------------------------------------------------------- */

/* What one trim may do. */
struct trimming {
	size_t pages; /* object pages and spare blocks that may still go */
	size_t looks; /* classes that may be looked at for each */
	size_t sweep; /* pages that may be looked at for empty ones */
	const struct kslab_zone *swept; /* of it all have been ... */
	uint32_t swept_for; /* ... for that request; another one may have come since */
};

/* A page for a reclaim request: all that is empty goes, and what is found to be by a sweep. */
static struct kslab_page *take_requested(struct kslab_heap *heap, struct kslab_zone *zone,
					 uint32_t epoch, struct trimming *trimming)
{
	struct kslab_owner *owner = &zone->owner;
	struct kslab_page *page = kslab_zone_take_spare(zone);

	if (page != NULL)
		return page;
	owner->reserve_run = 0;
	page = kslab_zone_take_empty(heap, zone, trimming->looks);
	if (page == NULL && trimming->sweep != 0) {
		if (owner->swept == NULL || trimming->sweep == KSLAB_ALL) {
			kslab_sc_sweep_end(
				owner); /* one for an older request has seen too little */
			owner->sweep_epoch = epoch;
		}
		if (kslab_zone_sweep(heap, zone, trimming->sweep)) {
			trimming->swept = zone;
			trimming->swept_for = owner->sweep_epoch;
		}
		trimming->sweep = 0;
		page = kslab_zone_take_empty(heap, zone, trimming->looks);
	}
	/* A sweep that is through stays so until the last empty page has gone. */
	if (page == NULL && trimming->swept == zone && trimming->swept_for == owner->sweep_epoch &&
	    (owner->empty_run == 0 || trimming->looks == KSLAB_ALL)) {
		KSLAB_STORE_RELAXED(&zone->reclaim_epoch, owner->sweep_epoch);
		kslab_sc_sweep_end(owner);
	}
	return page;
}

/* What a zone has to give back: see take_requested; else what is above the retention. */
static struct kslab_page *take_surplus(struct kslab_heap *heap, struct kslab_zone *zone,
				       struct trimming *trimming)
{
	struct kslab_owner *owner = &zone->owner;
	uint32_t epoch = KSLAB_LOAD_RELAXED(&heap->reclaim_epoch);
	size_t retain = KSLAB_LOAD_RELAXED(&heap->retain_run);
	struct kslab_page *page = NULL;

	if (zone->reclaim_epoch != epoch)
		return take_requested(heap, zone, epoch, trimming);
	if (zone->spare_run > retain && (page = kslab_zone_take_spare(zone)) != NULL)
		return page;
	if (owner->empty_run <= retain + owner->reserve_run)
		return NULL;
	/*
	 * The last one from the class that had a page become empty: as much goes as came, however
	 * short the pages of the other classes are.
	 */
	if (trimming->pages == 1 && owner->emptied != NULL && !is_kept(owner, owner->emptied))
		page = kslab_zone_take_empty_of(heap, zone, owner->emptied);
	if (page == NULL)
		page = kslab_zone_take_empty(heap, zone, trimming->looks);
	if (page == NULL && kslab_sc_has_mail(owner) && trimming->sweep != 0) { /* QUEUED ones */
		kslab_sc_drain(owner, trimming->sweep);
		trimming->sweep = 0;
		page = kslab_zone_take_empty(heap, zone, trimming->looks);
	}
	return page;
}

static void trim(struct kslab_heap *heap, unsigned level, struct trimming trimming)
{
	if (KSLAB_PORT_IN_NMI())
		return; /* pages go back at the next slow path outside */
	for (; trimming.pages != 0; trimming.pages--) {
		struct kslab_page *page = NULL;
		struct kslab_zone *zone;

		zone = kslab_heap_pin_level(heap, level);
		if (zone != NULL) {
			page = take_surplus(heap, zone, &trimming);
			kslab_zone_leave(zone);
			KSLAB_PORT_UNPIN();
		}
		if (page == NULL)
			return;
		kslab_heap_release(heap, page);
	}
}

/*
 * The level whose turn it is: a request is served from the innermost zone out, so that the zones of
 * handlers, which seldom come by a slow path, serve it, too.
 */
static unsigned next_level(struct kslab_heap *heap, unsigned level)
{
	uint32_t epoch = KSLAB_LOAD_RELAXED(&heap->reclaim_epoch);
	struct kslab_zone *zone;

	if (KSLAB_CFG_LEVELS == 1)
		return level;
	KSLAB_PORT_PIN();
	zone = kslab_heap_zone(heap);
	while (zone != NULL && zone->level != level)
		zone = KSLAB_LOAD_ACQUIRE(&zone->inner);
	if (zone != NULL && zone->reclaim_epoch != epoch)
		while ((zone = KSLAB_LOAD_ACQUIRE(&zone->inner)) != NULL)
			if (zone->reclaim_epoch != epoch)
				level = zone->level;
	KSLAB_PORT_UNPIN();
	return level;
}

void kslab_heap_trim(struct kslab_heap *heap, unsigned level)
{
	trim(heap, next_level(heap, level),
	     (struct trimming){ TRIM_MOST, KSLAB_LOOKS_MOST, SWEEP_MOST, NULL, 0 });
}

void kslab_heap_trim_all(struct kslab_heap *heap, unsigned level)
{
	trim(heap, level, (struct trimming){ KSLAB_ALL, KSLAB_ALL, KSLAB_ALL, NULL, 0 });
}
