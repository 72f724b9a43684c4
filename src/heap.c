/* SPDX-License-Identifier: MIT
 * heap.c - owns a heap: its zones, object pages, large blocks, memory pressure.
 * Rank: 5.  Runs: any CPU, any level; each function says what it may call.
 *
 * ---- Theory of the heap -------------------------------------------------------------------------
 *
 * Memory. Base pages come from the page source. A run of them becomes an object page: equal slots,
 * and out of line a descriptor with three bits for each slot:
 *
 *     avail   may be issued; the owner pops from it      |  a live slot has none of the three,
 *     freed   freed by the owner, or harvested           |  a free slot exactly one
 *     remote  freed by others, not taken in yet          |
 *
 *             local free          harvest (owner)
 *     live ---------------> freed <-------------- remote <--- live     (free on another CPU)
 *       ^                     |
 *       +------ avail <-------+  issue: 64 slots at once, when a word becomes current
 *
 * They are three words because an allocation that pops from one and a free that sets another do not
 * wait for each other's stores. Free memory itself is never touched.
 *
 * The life of an allocation. n -> route[] -> this CPU's class (struct kslab_sc) -> the cached word
 * `avail` -> lowest bit -> address. No count, no lock. If the word is used up (kslab_sc_next): the
 * next word of the page, harvesting its remote bits first; then mail; the next partial page, oldest
 * first; an empty page; a page out of limbo; the page source (two-phase: outside the zone, then
 * everything is looked at again); memory pressure (kslab_heap_relieve); NULL and a reason.
 *
 * The life of a free. Address -> page_map -> descriptor. If its owner equals this zone's key the
 * page is ours, not full, and nobody of this CPU is inside: exact division gives the slot, or
 * refuses; the three bits give the verdict; one store to `freed`. If that word is now full the page
 * may have become empty. Any other owner value (full page, other CPU, other level, cache, large
 * block, debug, nobody) leads to kslab_heap_free_slow.
 *
 * On another CPU: one fetch_or on `remote`; its old value decides between free and double free. If
 * the page is ARMED, the freer flips it to QUEUED and pushes it on the owner's mailbox.
 *
 * ---- Invariants ---------------------------------------------------------------------------------
 *
 * I1  Each slot has at most one of its bits set (a racing double free may add `remote` until the
 *     next harvest).
 * I2  `avail` is nonzero only in the current word of a current page.
 * I3  Bits of `freed` past the last slot are always set, so "all ones" means "no live slot in this
 *     word".
 * I4  A page is in exactly the list that its state names; CURRENT pages are in none. FULL pages,
 *     and only they, have KSLAB_TAG_FULL in their owner. PARTIAL pages have live objects; whether
 *     they have a free slot shows at their turn. Counts of a class are the lengths of its lists.
 * I5  zone->owner.key is the zone's address while nobody is inside, 0 otherwise. Only the zone's
 *     CPU writes it; an interrupt leaves it as it found it.
 * I6  mail: a page with remote bits that its owner may never look at by itself (FULL) is ARMED,
 *     QUEUED, or about to be harvested. A QUEUED page is in its owner's mailbox, on its way there,
 *     or out of it in owner->mail and not taken in yet; it does not change hands, and is not
 *     released. ARMED goes to QUEUED (by a freer) or IDLE (by the owner) by compare-and-swap only.
 * I7  Descriptors are type-stable: a freer that has done its fetch_or may still read mail and owner
 *     of one whose page has gone. The worst is a spurious mail to the next owner, which harvests
 *     nothing and arms again.
 *
 * ---- Memory order -------------------------------------------------------------------------------
 *
 * fetch_or on remote releases the freer's last writes to the object; the harvest's load acquires
 * them. Arming is Dekker's pattern: the owner stores ARMED, then reads remote; the freer sets its
 * bit, then reads mail; all four are sequentially consistent, so one sees the other. The owner
 * publishes a bit where it goes before it clears it where it was (release), and a remote freer
 * looks in the order of that way (acquire), so a second free finds the bit somewhere. A push to the
 * mailbox releases, the drain acquires. tests/wmm runs this source under a weak-memory checker,
 * with every order weakened in turn. What can't be decided: a second free whose fetch_or lands
 * after the slot was harvested and issued again; that is a free of the new object (misuse row 3),
 * and debug level 2 catches it.
 *
 * ---- Worst case ---------------------------------------------------------------------------------
 *
 * What waits is done in steps: a call does a few, and the next slow paths the rest, so that no call
 * is longer because the heap is larger (tests/worst counts). kslab.h says at each function what is
 * left to whom.
 *
 * Mail. An allocation that has used its page up takes in the mail of KSLAB_MAIL_MOST pages; the
 * others wait, QUEUED, in owner->mail. It makes a page while mail waits only if none of those was of
 * its class, so of M pages with mail it takes in at least as many times KSLAB_MAIL_MOST as it makes
 * pages: at most M / KSLAB_MAIL_MOST pages more than if it took in all, and mail does not pile up: a
 * page gets there once each time it was used up, and each page that is used up takes several out. If
 * no page is to be had, it takes in all before it says so.
 *
 * Pages to give back. A slow path gives back TRIM_MOST pages of what is above the retention or was
 * asked for; the last of them from the class that just emptied one, so that as much goes as comes.
 * For a request it first looks at SWEEP_MOST partial pages for empty ones, from where the last one
 * stopped; a zone has served a request when a sweep that began after it is through and no empty page
 * is left. Classes are gone through in a circle, KSLAB_LOOKS_MOST a time; object caches hang on
 * the zone (zone->caches), so that nobody walks the heap's list, whose entries are the kernel's
 * memory. Large blocks freed in an NMI, and runs given up in one, go two with each outside; a region
 * with more than purge_bytes of free memory to purge is purged of a few pieces at each free, down to
 * half of that.
 *
 * The source fails. What is known to be empty goes back, as much as is needed, and the source is
 * asked again; then mail is taken in, eight pages and another try; then everything is swept, eight
 * pages and another try. Only when all of that is through does the call fail: O(pages), once.
 *
 * What the map does not know. Metadata where there is no leaf, and pages that are set aside, are kept
 * in trees by address (chunk_tree.h): whether a page that comes from the source is one of them is
 * asked in one way down, of at most as many steps as a page number has bits. When a leaf is made, four
 * chunks are looked at, in a circle, whether the map can know them now: more than the leaf takes for
 * itself.
 *
 * Limbo. It is brought up to date by steps under the lock, a page each, between which the lock is
 * dropped; a zone that lingers is emptied class by class, a page that is QUEUED goes to the tail of
 * its list, and after as many of them as can be on their way into a mailbox the class is left for
 * the next time. cpu_offline, reclaim and quiesce do all steps, adopt four.
 *
 * ---- Interrupts ---------------------------------------------------------------------------------
 *
 * Entering a zone is a plain store (key = 0). A handler that finds the key 0 uses the zone of the
 * next level and sees the outer zone's pages as another CPU's. A handler that comes before the
 * store is over when we go on; what was read before the store and may have changed (the owner of
 * the page) is compared after it. Nothing is masked. The heap lock saves interrupts and is only
 * tried in an NMI. A free needs no zone: it can always be remote.
 *
 * ---- Locks --------------------------------------------------------------------------------------
 *
 * 1. heap->lock (a ticket lock): regions, metadata, large blocks, limbo. May be taken inside a
 *    zone.
 * 2. the lock of the default heap, for the list of heaps. No two locks are held at once: other heaps
 *    are asked under theirs, one after the other, before (kslab_source_is_elsewhere).
 * No lock and no zone is held while a callback of the kernel (page source, purge, report,
 * constructor) runs.
 *
 * ---- What we chose not to do --------------------------------------------------------------------
 *
 * No per-object free lists (they touch free memory, and can't tell a double free). No counts on the
 * fast path. No merging of classes between CPUs: pages move when a CPU goes offline, not for
 * balance. No randomisation.
 *
 * ---- Tuning record ------------------------------------------------------------------------------
 *
 * Class spacing: eight per doubling up to 2 KiB instead of four costs partly used pages and saves
 * about 4 % of memory on kernel-like mixes. Object pages start at the shortest useful length with
 * 16 slots (against none: random replacement of 1,000 objects 6 % faster, pairs of 2 KiB a third,
 * and less memory) and double after every eight, so that a class wastes at most about 1/8 of itself
 * in its newest page (sixteen: no less memory from the source, 0.7 % more resident, for more
 * descriptors). Partial pages: new ones to the tail; to the head they thrash. A used-up page goes
 * behind the waiting ones instead of being filed as full: random replacement of 100,000 objects
 * takes 153 instructions instead of 203, for no arming and no first free by the slow path. A word's
 * slots found by shift instead of a branch: a quarter of the mispredictions there. Word triples
 * side by side rather than three arrays: a cold or remote free touches two lines, not three. Links
 * and state in another line than what remote freers read: objects exchanged 5 % faster, 0.3 to 1.4
 * % more memory resident: no. A middle path for frees to other CPUs: 130 instructions instead of
 * 203; asking for the line by PREFETCHW: 2 % at most: what is paid is the line that comes and goes.
 * Gathering remote frees before the atomic: not done, a free that waits is one that the owner can't
 * see, and a double free would be found too late. Larger growth by realloc (a quarter more) of what
 * has a class: not done, a sized free could not be checked; large blocks grow into spare ones that
 * the retention bounds (growth to 1 MiB in steps of 1 KiB in a quarter of the time). Size folded at compile time by a macro: 2 instructions
 * of 17 and the call, for 60 bytes at each place: not done. Retention of 4 MiB a CPU instead of 512
 * KiB, as the host port has it: 2 KiB batches in half the time, blocks of 1 MiB in a twentieth.
 * Page map with plain loads and a fixed limit: four instructions less than a growing count. Key
 * compared after entering: no second check. What a pair waits for is not its instructions but the
 * address of the free's store: the next allocation's load comes after it. So whatever shortens that
 * way counts: two looks at the bits, of which one may come late, a twentieth; a flat page map and
 * the zone kept by the port (KSLAB_CFG_FLAT_MAP, KSLAB_PORT_ZONE), a sixth. Free slots kept at hand
 * by address instead of by word: not done, taking one would have to clear its bit, and each pair
 * would wait for two such chains. The words of a page that have free slots kept as a mask
 * (kslab_sc.ready) instead of a search: a tenth fewer mispredictions in random replacement. Bulk
 * frees that store a word once for all its objects: two thirds of the time.
 */
#include "heap.h"
#include "debug.h"
#include "inject.h"
#include "page_list.h"
#include "region.h"
#include "report.h"
#include "tally.h"

_Static_assert(offsetof(struct kslab_zone, sc) <= 256,
	       "owner, mailbox, counters: four lines before the classes");
_Static_assert(sizeof(uintptr_t) != 8 || sizeof(struct kslab_zone) == 4096, "a zone is one page");
_Static_assert(offsetof(struct kslab_zone, sc) + KSLAB_CLASSES * sizeof(struct kslab_sc) <=
		       UINT16_MAX,
	       "route entries hold an offset in 16 bits");

struct kslab_heap kslab_default_heap;

#define NO_CLASS KSLAB_SC_CORE_INIT(0, KSLAB_CLASS_CACHE)
struct kslab_zone kslab_zone_none = { .last_error = KSLAB_NOT_INITIALISED,
				      .sc = { [0 ... KSLAB_CLASSES - 1] = NO_CLASS } };

/*
 * Object pages of a class at each length before longer ones are made: its newest page wastes at
 * most about 1/8.
 */
#define PAGES_PER_LENGTH 8u

/*
 * What a slow path gives back at most, of a surplus or for a request, and the partial pages and mail
 * that it looks at for it. The rest is left to the next ones.
 */
#define TRIM_MOST 4u
#define SWEEP_MOST 4u

/* Slots that the longest descriptor has bits for. */
#define SLOTS_MAX (512u * KSLAB_WORD_BITS)

/* ---- zones ----------------------------------------------------------------------------------- */

void kslab_zone_start(struct kslab_heap *heap, struct kslab_zone *zone, unsigned cpu,
		      unsigned level)
{
	memset(zone, 0, sizeof(*zone));
	zone->heap = heap;
	zone->cpu = (uint16_t)cpu;
	zone->level = (uint8_t)level;
	zone->reclaim_epoch = KSLAB_LOAD_RELAXED(&heap->reclaim_epoch);
	for (unsigned cls = 0; cls < KSLAB_CLASSES; cls++) {
		zone->sc[cls].word = (kslab_word *)(uintptr_t)&kslab_zero_word;
		zone->sc[cls].size = (uint32_t)kslab_class_bytes(cls);
		zone->sc[cls].cls = (uint8_t)cls;
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

struct kslab_zone *kslab_heap_enter_level(struct kslab_heap *heap, unsigned level)
{
	struct kslab_zone *zone = kslab_heap_zone(heap);

	while (zone != NULL && zone->level != level)
		zone = KSLAB_LOAD_ACQUIRE(&zone->inner);
	if (zone == NULL || KSLAB_LOAD_RELAXED(&zone->owner.key) == 0)
		return NULL;
	kslab_zone_enter(zone);
	return zone;
}

/* Every level that this CPU has is busy: make one more. Return: KSLAB_OK: try to enter again. */
enum kslab_reason kslab_heap_add_level(struct kslab_heap *heap, unsigned flags)
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
	kslab_zone_start(heap, fresh, last->cpu, last->level + 1u);
	fresh->owner.key = (uintptr_t)fresh;
	/*
	 * An interrupt may have added this level meanwhile: then ours is unused metadata until the
	 * heap ends.
	 */
	KSLAB_CAS_RELEASE(&last->inner, &none, fresh);
	return KSLAB_OK;
}

void kslab_heap_each_zone(struct kslab_heap *heap, void (*fn)(void *ctx, struct kslab_zone *zone),
			  void *ctx)
{
	struct kslab_zone *limbo = KSLAB_LOAD_ACQUIRE(&heap->limbo);

	for (unsigned cpu = 0; cpu < KSLAB_CFG_CPUS; cpu++) {
		struct kslab_zone *zone = KSLAB_LOAD_ACQUIRE(&heap->zone[cpu]);

		if (zone == &kslab_zone_none) {
			zone = KSLAB_LOAD_ACQUIRE(&heap->parked[cpu]);
			if (zone == NULL) { /* never online, or online since the first look */
				zone = KSLAB_LOAD_ACQUIRE(&heap->zone[cpu]);
				if (zone == &kslab_zone_none)
					continue;
			}
		}
		for (; zone != NULL; zone = KSLAB_LOAD_ACQUIRE(&zone->inner))
			fn(ctx, zone);
	}
	if (limbo != NULL)
		fn(ctx, limbo);
}

void *kslab_heap_fail(struct kslab_heap *heap, enum kslab_reason reason)
{
	struct kslab_zone *zone;

	kslab_tally_failure(heap, reason);
	KSLAB_PORT_PIN();
	zone = kslab_heap_zone(heap);
	if (zone != NULL && zone != &kslab_zone_none) {
		zone->last_error = (uint8_t)reason;
		zone->counters.failures++;
	}
	KSLAB_PORT_UNPIN();
	return NULL;
}

/* ---- giving pages back ----------------------------------------------------------------------- */

void kslab_heap_release_page(struct kslab_heap *heap, struct kslab_page *page)
{
	uintptr_t address = page->data;
	size_t run = page->pages;

	if (heap->debug_level != 0)
		kslab_debug_release(heap, page);
	kslab_page_map_set(&heap->map, address, run << heap->page_shift, &kslab_page_released);
	kslab_descriptor_free(heap, page, kslab_page_words(page));
	kslab_source_free(heap, address, run);
}

void kslab_heap_release(struct kslab_heap *heap, struct kslab_page *page)
{
	if (page->state == KSLAB_PAGE_LARGE)
		kslab_large_release(heap, page);
	else
		kslab_heap_release_page(heap, page);
}

/* The oldest empty page of a class of an entered zone, taken out; NULL: there is none, or it is QUEUED. */
static struct kslab_page *take_empty_of(struct kslab_heap *heap, struct kslab_zone *zone,
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
	kslab_tally_remove(heap, page);
	return page;
}

struct kslab_page *kslab_zone_take_empty(struct kslab_heap *heap, struct kslab_zone *zone,
					 size_t looks)
{
	struct kslab_owner *owner = &zone->owner;
	struct kslab_sc *sc = owner->looked;
	struct kslab_page *page = NULL;

	if (owner->empty_run == 0)
		return NULL;
	if (sc == NULL)
		sc = kslab_zone_next_sc(zone, NULL);
	for (unsigned rounds = 0; rounds < 2; looks--) {
		if (looks == 0 ||
		    (sc->empty.head != NULL && (page = take_empty_of(heap, zone, sc)) != NULL)) {
			owner->looked = sc;
			break;
		}
		sc = kslab_zone_next_sc(zone, sc);
		if (sc == NULL) {
			sc = kslab_zone_next_sc(zone, NULL);
			rounds++;
		}
	}
	return page;
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

void kslab_heap_report_late(struct kslab_heap *heap, uintptr_t object, size_t count,
			    const void *caller)
{
	struct kslab_page *page = kslab_page_map_find(&heap->map, object);
	struct kslab_report report = {
		.fault = KSLAB_FAULT_DOUBLE_FREE,
		.pointer = (void *)object,
		.object = (void *)object,
		.page = (void *)page->data,
		.count = count,
		.caller = caller,
		.what = "double free, found when remote frees were taken in"
	};

	if (page->sc != NULL) {
		report.object_bytes = page->sc->size;
		report.page_bytes = (size_t)page->pages << heap->page_shift;
	}
	kslab_report_fault(heap, &report);
}

void kslab_heap_report_corrupt(struct kslab_heap *heap, const struct kslab_page *page,
			       const void *caller)
{
	struct kslab_report report = {
		.fault = KSLAB_FAULT_CORRUPT_METADATA,
		.pointer = page,
		.page = (void *)page->data,
		.caller = caller,
		.what = "corrupt metadata: a page's list links are broken; it is fenced off"
	};

	kslab_report_fault(heap, &report);
}

/* What one trim may do. */
struct trimming {
	size_t pages; /* object pages and spare blocks that may still go */
	size_t looks; /* classes that may be looked at for each */
	size_t sweep; /* pages that may be looked at for empty ones */
	bool is_swept; /* all have been */
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
		trimming->is_swept = kslab_zone_sweep(heap, zone, trimming->sweep);
		trimming->sweep = 0;
		page = kslab_zone_take_empty(heap, zone, trimming->looks);
	}
	/* A sweep that is through stays so until the last empty page has gone. */
	if (page == NULL && trimming->is_swept &&
	    (owner->empty_run == 0 || trimming->looks == KSLAB_ALL)) {
		zone->reclaim_epoch = owner->sweep_epoch;
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
	struct kslab_page *page = NULL;

	if (zone->reclaim_epoch != epoch)
		return take_requested(heap, zone, epoch, trimming);
	if (owner->empty_run <= KSLAB_LOAD_RELAXED(&heap->retain_run) + owner->reserve_run)
		return NULL;
	/*
	 * The last one from the class that had a page become empty: as much goes as came, however
	 * short the pages of the other classes are.
	 */
	if (trimming->pages == 1 && owner->emptied != NULL)
		page = take_empty_of(heap, zone, owner->emptied);
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

		KSLAB_PORT_PIN();
		zone = kslab_heap_enter_level(heap, level);
		if (zone != NULL) {
			page = take_surplus(heap, zone, &trimming);
			kslab_zone_leave(zone);
		}
		KSLAB_PORT_UNPIN();
		if (page == NULL)
			return;
		kslab_heap_release(heap, page);
	}
}

void kslab_heap_trim_all(struct kslab_heap *heap, unsigned level)
{
	trim(heap, level, (struct trimming){ KSLAB_ALL, KSLAB_ALL, KSLAB_ALL, false });
}

void kslab_zone_leave_reporting(struct kslab_heap *heap, struct kslab_zone *zone,
				const void *caller)
{
	uintptr_t late = zone->owner.late;
	size_t late_count = zone->owner.late_count;
	struct kslab_page *corrupt = zone->owner.corrupt;

	zone->owner.late = 0;
	zone->owner.late_count = 0;
	zone->owner.corrupt = NULL;
	kslab_zone_leave(zone);
	KSLAB_PORT_UNPIN();
	if (KSLAB_UNLIKELY(late != 0))
		kslab_heap_report_late(heap, late, late_count, caller);
	if (KSLAB_UNLIKELY(corrupt != NULL)) {
		if (corrupt->state == KSLAB_PAGE_FENCED)
			kslab_fence_report(heap, corrupt, caller);
		else
			kslab_heap_report_corrupt(heap, corrupt, caller);
	}
}

/* Pages to give back, by retention or by request. */
KSLAB_INLINE bool has_surplus(const struct kslab_heap *heap, const struct kslab_zone *zone)
{
	return zone->owner.empty_run >
		       KSLAB_LOAD_RELAXED(&heap->retain_run) + zone->owner.reserve_run ||
	       zone->reclaim_epoch != KSLAB_LOAD_RELAXED(&heap->reclaim_epoch);
}

/* Whoever leaves the zone has more to do than to leave. */
KSLAB_INLINE bool has_work(const struct kslab_heap *heap, const struct kslab_zone *zone)
{
	return zone->owner.late != 0 || zone->owner.corrupt != NULL || has_surplus(heap, zone);
}

void kslab_heap_leave(struct kslab_heap *heap, struct kslab_zone *zone, const void *caller)
{
	bool surplus = has_surplus(heap, zone);
	unsigned level = zone->level;

	kslab_zone_leave_reporting(heap, zone, caller);
	if (KSLAB_UNLIKELY(surplus))
		trim(heap, level,
		     (struct trimming){ TRIM_MOST, KSLAB_LOOKS_MOST, SWEEP_MOST, false });
}

/* ---- making pages ---------------------------------------------------------------------------- */

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
static size_t next_run(const struct kslab_heap *heap, size_t min_run, size_t max_run,
		       uint32_t pages_so_far)
{
	uint32_t limit = KSLAB_LOAD_RELAXED(&heap->run_limit);
	size_t run = min_run;

	for (uint32_t n = pages_so_far / PAGES_PER_LENGTH; n != 0 && run < max_run; n--)
		run *= 2;
	return run > limit && KSLAB_LOAD_RELAXED(&heap->regions) == 0 ? limit : run;
}

/* A run for slots of `bytes`: the wished length, or less if that is not to be had. */
static enum kslab_reason find_run(struct kslab_heap *heap, size_t bytes, size_t wish,
				  unsigned flags, struct kslab_run *run)
{
	enum kslab_reason reason;

	for (;; wish /= 2) {
		reason = kslab_source_alloc(heap, wish, 1, flags, run);
		if (reason == KSLAB_OK || wish == 1 || (wish / 2) << heap->page_shift < bytes)
			return reason;
		/* BUSY: an NMI, which can't ask the callback; a region may still have less. */
		if (reason != KSLAB_NO_PAGES && reason != KSLAB_QUOTA && reason != KSLAB_BUSY)
			return reason;
		if (reason == KSLAB_NO_PAGES && !(flags & KSLAB_NOWAIT) &&
		    heap->alloc_pages != NULL)
			KSLAB_STORE_RELAXED(&heap->run_limit, (uint32_t)wish / 2);
	}
}

struct kslab_page *kslab_heap_make_page(struct kslab_heap *heap,
					const struct kslab_request *request, uint32_t pages_so_far,
					enum kslab_reason *reason)
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
	*reason = KSLAB_INJECTED;
	if (kslab_inject_page(heap, cache != NULL ? KSLAB_INJECT_CACHE : request->cls,
			      request->flags & KSLAB_RESERVE))
		return NULL;
	*reason = find_run(heap, bytes, wish, request->flags, &run);
	if (*reason != KSLAB_OK)
		return NULL;
	slots = kslab_divide(run.pages << heap->page_shift, bytes);
	if (slots > SLOTS_MAX)
		slots = SLOTS_MAX;
	page = kslab_descriptor_alloc(heap,
				      (unsigned)((slots + KSLAB_WORD_BITS - 1) / KSLAB_WORD_BITS),
				      request->flags, reason);
	if (page == NULL) {
		kslab_source_free(heap, run.address, run.pages);
		return NULL;
	}
	kslab_page_init(page, run.address, run.pages, (uint32_t)bytes, (uint32_t)slots);
	kslab_page_map_set(&heap->map, run.address, run.pages << heap->page_shift, page);
	if (heap->debug_level != 0)
		kslab_debug_prepare(heap, page, bytes, cache, request->flags);
	if (cache != NULL && cache->constructor != NULL)
		for (size_t i = 0; i < slots; i++)
			cache->constructor((void *)(run.address + i * bytes), cache->ctx);
	if (pages_so_far % (4 * PAGES_PER_LENGTH) == 0 && run.pages == 1)
		/* perhaps there are runs again */
		KSLAB_STORE_RELAXED(&heap->run_limit, UINT16_MAX);
	return page;
}

/* ---- allocate -------------------------------------------------------------------------------- */

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
	kslab_heap_leave(heap, zone, request->caller);
	return object;
}

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

/* What this CPU has for a request, and limbo. */
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
	if (object == NULL && request->cache == NULL &&
	    KSLAB_LOAD_RELAXED(&heap->limbo_pages) != 0 &&
	    kslab_limbo_adopt(heap, zone, request->cls))
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
	bool asks = true;

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
			kslab_heap_leave(heap, zone, request->caller);
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
		asks = kslab_heap_take_back(heap, relief.want);
		if (asks || has_more)
			continue;
		if (relief.is_done)
			return kslab_heap_fail(heap, reason);
		asks = kslab_heap_relieve(heap, &relief);
	}
}

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
	if (KSLAB_UNLIKELY(turns && object != NULL && has_work(heap, zone))) {
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
	void *object = NULL;

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
	if (KSLAB_LIKELY(sc->ready != 0 && *sc->word == 0))
		object = kslab_sc_issue_ready(sc);
	if (KSLAB_UNLIKELY(object == NULL))
		return malloc_turn(n, caller, zone, sc);
	if (KSLAB_UNLIKELY(zone->reclaim_epoch != KSLAB_LOAD_RELAXED(&heap->reclaim_epoch)))
		return leave_with(object, heap, zone, caller);
	kslab_zone_leave(zone);
	KSLAB_PORT_UNPIN();
	return object;
}

/* Longer objects than the table of routes reaches; or it is closed. */
static KSLAB_SLOW void *malloc_long(size_t n, struct kslab_heap *heap, const void *caller)
{
	unsigned cls;

	if (heap->route_limit != 0 && n <= KSLAB_CLASS_MAX_BYTES) {
		cls = heap->use_class[kslab_class_of(n)];
		if (cls != KSLAB_CLASSES)
			return malloc_middle(n, heap, caller,
					     offsetof(struct kslab_zone, sc) +
						     cls * sizeof(struct kslab_sc));
	}
	return malloc_slower(n, heap, caller);
}

/* No route: a large request, size 0, debugging, injection. Saves no registers before it knows. */
KSLAB_SLOW void *kslab_heap_malloc_unrouted(size_t n, struct kslab_heap *heap, const void *caller)
{
	KSLAB_TAKE_CALLER(caller);
	if (heap->debug_level == 1)
		return kslab_debug_malloc_1(n, heap, caller);
	if (heap->debug_level != 0)
		return kslab_debug_malloc_2(n, heap, caller);
	/* The limit is 0 where every call has to go the long way. */
	if (n > KSLAB_CLASS_MAX_BYTES && KSLAB_LIKELY(heap->route_limit != 0))
		return kslab_large_malloc(n, heap, caller);
	return malloc_long(n, heap, caller);
}

/* There was a route when the fast path looked, and an index stays one. */
KSLAB_SLOW void *kslab_heap_malloc_slow(size_t n, struct kslab_heap *heap, const void *caller)
{
	KSLAB_TAKE_CALLER(caller);
	return malloc_middle(n, heap, caller, heap->route[(n - 1) / 8]);
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

/* ---- free ------------------------------------------------------------------------------------ */

/* Metadata that the map does not know: the bit trees at the beginning of regions. */
static bool is_own_memory(struct kslab_heap *heap, uintptr_t address)
{
	for (unsigned i = 0; i < KSLAB_LOAD_ACQUIRE(&heap->regions); i++)
		if (address - heap->region[i].start < heap->region[i].base - heap->region[i].start)
			return true;
	return false;
}

/* Classify a pointer that is refused: what is it? Reads descriptors only. */
static void judge(struct kslab_heap *heap, uintptr_t address, const struct kslab_cache *cache,
		  struct kslab_report *report)
{
	const struct kslab_page *page = kslab_page_map_find(&heap->map, address);
	uintptr_t owner = KSLAB_LOAD_RELAXED(&page->owner), offset = address - page->data;
	const struct kslab_sc *sc = page->sc;
	uintptr_t index;

	if (kslab_page_state(page) == KSLAB_PAGE_FENCED) {
		report->fault = KSLAB_FAULT_CORRUPT_METADATA;
		report->what = "corrupt metadata: the object's page is fenced off";
		report->page = (void *)page->data;
		return;
	}
	report->fault = KSLAB_FAULT_FOREIGN_POINTER;
	if (page == &kslab_page_released) {
		report->fault = KSLAB_FAULT_DOUBLE_FREE;
		report->what = "double free: its page has gone back already";
		return;
	}
	if (page == &kslab_page_metadata || is_own_memory(heap, address))
		report->fault = KSLAB_FAULT_BAD_POINTER;
	if (heap->debug_level != 0 && (report->what = kslab_fence_judge(heap, page)) != NULL) {
		report->fault = KSLAB_FAULT_CORRUPT_METADATA;
		return;
	}
	if (sc == NULL && page->slots != 0) { /* a large block, live or freed */
		report->page = (void *)page->data;
		report->page_bytes = kslab_large_bytes(heap, page);
		/* Beside the block, in the run of an unusual alignment. */
		if (offset >= report->page_bytes) {
			report->fault = KSLAB_FAULT_BAD_POINTER;
			return;
		}
		report->object = report->page;
		report->object_bytes = report->page_bytes;
		report->fault =
			offset == 0 ? KSLAB_FAULT_DOUBLE_FREE : KSLAB_FAULT_INTERIOR_POINTER;
		if (cache != NULL)
			report->fault = KSLAB_FAULT_WRONG_CACHE;
		return;
	}
	if ((owner & ~KSLAB_TAG_MASK) == 0 || sc == NULL)
		return;
	report->page = (void *)page->data;
	report->page_bytes = (size_t)page->pages << heap->page_shift;
	report->object_bytes = sc->size;
	index = kslab_divide(offset, sc->size);
	if (index >= page->slots) {
		report->fault = KSLAB_FAULT_BAD_POINTER;
		report->what = "bad pointer: behind the last object of its page";
		return;
	}
	report->object = (void *)(page->data + index * sc->size);
	if (cache != NULL || (owner & KSLAB_TAG_CACHE)) {
		const struct kslab_cache_zone *own = (const struct kslab_cache_zone *)sc;

		if (!(owner & KSLAB_TAG_CACHE) || cache == NULL || own->cache != cache) {
			report->fault = KSLAB_FAULT_WRONG_CACHE;
			return;
		}
	}
	report->fault =
		offset != index * sc->size ? KSLAB_FAULT_INTERIOR_POINTER : KSLAB_FAULT_DOUBLE_FREE;
	if (heap->debug_level != 0)
		kslab_debug_callers(heap, page, report);
}

KSLAB_COLD void kslab_heap_fault_pointer(struct kslab_heap *heap, const void *p,
					 struct kslab_cache *cache, const void *caller)
{
	struct kslab_report report = { .pointer = p, .caller = caller };

	if (heap->state == KSLAB_HEAP_READY)
		judge(heap, (uintptr_t)p, cache, &report);
	else
		report.fault = KSLAB_FAULT_FOREIGN_POINTER;
	kslab_heap_fail(heap, KSLAB_BAD_FREE);
	kslab_report_fault(heap, &report);
}

/*
 * True if the page's objects may be freed through this door: kslab_free, or kslab_cache_free of
 * this cache.
 */
static bool is_right_door(const struct kslab_page *page, uintptr_t owner,
			  const struct kslab_cache *cache)
{
	if ((owner & ~KSLAB_TAG_MASK) == 0)
		return false;
	if (cache == NULL)
		return !(owner & KSLAB_TAG_CACHE);
	return (owner & KSLAB_TAG_CACHE) &&
	       ((const struct kslab_cache_zone *)page->sc)->cache == cache;
}

/* With retention 0 a current page must not stay behind when it is empty. */
static void retire_if_unused(struct kslab_owner *owner, struct kslab_page *page)
{
	if (page->state == KSLAB_PAGE_CURRENT && kslab_page_live(page) == 0)
		kslab_sc_retire(owner, page->sc);
}

/* What debug levels do first, inside the zone if there is one. Return: true: go on. */
static bool is_ready_to_free(struct kslab_heap *heap, struct kslab_zone *zone,
			     struct kslab_page *page, uint32_t index,
			     struct kslab_retiring *retiring)
{
	if (zone != NULL && kslab_page_owner(page) == &zone->owner &&
	    !kslab_fence_free(heap, zone, page, index)) {
		if (retiring != NULL)
			retiring->is_fenced = true;
		return false;
	}
	return retiring == NULL || kslab_debug_retire(heap, page, index, retiring);
}

static void count_remote(struct kslab_heap *heap, struct kslab_zone *zone, size_t n)
{
	if (zone != NULL)
		KSLAB_STORE_RELAXED(&zone->owner.remote_frees, zone->owner.remote_frees + n);
	else
		KSLAB_FETCH_ADD_RELAXED(&heap->zoneless_frees, n);
}

/* Inside a zone of this CPU, or NULL. Return: false: it was free. */
KSLAB_INLINE bool free_to_other(struct kslab_heap *heap, struct kslab_zone *zone,
				struct kslab_page *page, uint32_t index)
{
	/* Counted before it is done: kslab_quiesce never sees a harvest without its free. */
	count_remote(heap, zone, 1);
	switch (kslab_page_free_remote(page, index)) {
	case KSLAB_REMOTE_DOUBLE:
		count_remote(heap, zone, ~(size_t)0);
		return false;
	case KSLAB_REMOTE_MAILED:
		if (zone != NULL)
			zone->counters.mails++;
		return true;
	default:
		return true;
	}
}

static bool set_free(struct kslab_heap *heap, struct kslab_page *page, uint32_t index,
		     struct kslab_retiring *retiring, const void *caller)
{
	struct kslab_zone *zone;
	bool freed;

	KSLAB_PORT_PIN();
	zone = kslab_heap_enter(heap);
	if (heap->debug_level != 0 && !is_ready_to_free(heap, zone, page, index, retiring)) {
		freed = false;
	} else if (zone != NULL && kslab_page_owner(page) == &zone->owner) {
		freed = kslab_sc_free_local(&zone->owner, page, index);
		if (freed && (KSLAB_LOAD_RELAXED(&page->owner) & KSLAB_TAG_EAGER))
			retire_if_unused(&zone->owner, page);
		zone->counters.slow_frees++;
	} else {
		freed = free_to_other(heap, zone, page, index);
	}
	if (zone != NULL)
		kslab_heap_leave(heap, zone, caller);
	else
		KSLAB_PORT_UNPIN();
	return freed;
}

bool kslab_heap_set_free(struct kslab_heap *heap, struct kslab_page *page, uint32_t index,
			 struct kslab_retiring *retiring, const void *caller)
{
	return set_free(heap, page, index, retiring, caller);
}

KSLAB_SLOW void kslab_heap_free_slow(struct kslab_heap *heap, void *p, struct kslab_cache *cache,
				     const void *caller)
{
	uintptr_t address = (uintptr_t)p, owner;
	struct kslab_page *page;
	uint32_t index;

	if (p == NULL)
		return;
	page = kslab_page_map_find(&heap->map, address);
	owner = KSLAB_LOAD_RELAXED(&page->owner);
	if (owner == kslab_large_tag(heap) && cache == NULL) {
		if (heap->debug_level != 0 && address == page->data &&
		    !kslab_debug_large_measure(heap, page, caller))
			return;
		if (!kslab_large_free(heap, page, address))
			kslab_heap_fault_pointer(heap, p, cache, caller);
		return;
	}
	if (heap->debug_level != 0 && !kslab_fence_is_known(heap, page)) {
		kslab_heap_fault_pointer(heap, p, cache, caller);
		return;
	}
	if (!is_right_door(page, owner, cache) ||
	    (index = kslab_page_index(page, address)) >= page->slots) {
		kslab_heap_fault_pointer(heap, p, cache, caller);
		return;
	}
	if (heap->debug_level != 0)
		kslab_debug_free(heap, page, index, cache, caller);
	else if (KSLAB_UNLIKELY(!set_free(heap, page, index, NULL, caller)))
		kslab_heap_fault_pointer(heap, p, cache, caller);
}

/*
 * The middle path: plain objects of another CPU's pages, and of our own full ones. The slot was
 * found; the verdict, where one is due, is left to kslab_heap_free_slow.
 */
static KSLAB_SLOW void free_plain(void *p, struct kslab_heap *heap, struct kslab_page *page,
				  const void *caller, uint32_t index)
{
	struct kslab_zone *zone;
	bool freed;

	KSLAB_PORT_PIN();
	zone = kslab_heap_quick_zone(heap);
	if (KSLAB_UNLIKELY(KSLAB_LOAD_RELAXED(&zone->owner.key) == 0)) {
		KSLAB_PORT_UNPIN();
		kslab_heap_free_slow(heap, p, NULL, caller);
		return;
	}
	kslab_zone_enter(zone);
	if (kslab_page_owner(page) == &zone->owner) {
		freed = kslab_sc_free_local(&zone->owner, page, index);
		zone->counters.slow_frees++;
	} else {
		freed = free_to_other(heap, zone, page, index);
	}
	if (KSLAB_UNLIKELY(has_work(heap, zone))) {
		kslab_heap_leave(heap, zone, caller);
	} else {
		kslab_zone_leave(zone);
		KSLAB_PORT_UNPIN();
	}
	if (KSLAB_UNLIKELY(!freed))
		kslab_heap_fault_pointer(heap, p, NULL, caller);
}

/* Nothing but jumps to others, so that none of them pays for the registers of another one. */
KSLAB_SLOW void kslab_heap_free_known(void *p, struct kslab_heap *heap, struct kslab_page *page,
				      const void *caller)
{
	uintptr_t owner;
	uint32_t index;

	KSLAB_TAKE_CALLER(caller);
	if (heap->debug_level != 0) {
		(heap->debug_level == 1 ? kslab_debug_free_1 : kslab_debug_free_2)(p, heap, page,
										   caller);
		return;
	}
	owner = KSLAB_LOAD_RELAXED(&page->owner) & ~KSLAB_TAG_FULL;
	index = kslab_page_index(page, (uintptr_t)p);
	if (owner == kslab_large_tag(heap))
		kslab_large_free_plain(p, heap, page, caller);
	else if (KSLAB_UNLIKELY((owner & KSLAB_TAG_MASK) != 0 || owner == 0 ||
				index >= page->slots))
		kslab_heap_free_slow(heap, p, NULL, caller);
	else
		free_plain(p, heap, page, caller, index);
}

KSLAB_SLOW void kslab_heap_free_cold(void *p, struct kslab_heap *heap, const void *caller)
{
	KSLAB_TAKE_CALLER(caller);
	kslab_heap_free_known(p, heap, kslab_page_map_find(&heap->map, (uintptr_t)p), caller);
}

KSLAB_SLOW void kslab_heap_word_full(struct kslab_zone *zone, const void *caller,
				     struct kslab_page *page)
{
	KSLAB_TAKE_CALLER(caller);
	if (KSLAB_LIKELY(page->state !=
			 KSLAB_PAGE_PARTIAL)) { /* the current page: nothing changes */
		if (KSLAB_CFG_LEVELS > 1)
			kslab_zone_leave(zone);
		KSLAB_PORT_UNPIN();
		return;
	}
	kslab_sc_word_full(&zone->owner, page);
	kslab_heap_leave(zone->heap, zone, caller);
}

struct kslab_page *kslab_heap_object(struct kslab_heap *heap, const void *p, size_t *bytes,
				     const void *caller)
{
	uintptr_t address = (uintptr_t)p, owner;
	struct kslab_page *page = kslab_page_map_find(&heap->map, address);
	uint32_t index;

	*bytes = 0;
	owner = KSLAB_LOAD_RELAXED(&page->owner);
	if (owner == kslab_large_tag(heap)) {
		if (address == page->data) {
			if (heap->debug_level != 0 &&
			    !kslab_debug_large_measure(heap, page, caller))
				return NULL;
			*bytes = heap->debug_level != 0 ? page->bits[0].remote
							: kslab_large_bytes(heap, page);
			return page;
		}
	} else if ((owner & ~KSLAB_TAG_MASK) != 0 && page->sc != NULL &&
		   (heap->debug_level == 0 || kslab_fence_is_known(heap, page))) {
		index = kslab_page_index(page, address);
		if (index < page->slots) {
			const struct kslab_bits *bits = &page->bits[index / KSLAB_WORD_BITS];
			kslab_word free = KSLAB_LOAD_ACQUIRE(&bits->remote);

			free |= KSLAB_LOAD_ACQUIRE(&bits->freed);
			free |= KSLAB_LOAD_RELAXED(&bits->avail);
			if (!(free & kslab_bit(index))) {
				*bytes = page->sc->size;
				if (heap->debug_level != 0 &&
				    !kslab_debug_measure(heap, page, index, bytes, caller))
					return NULL;
				return page;
			}
		}
	}
	kslab_heap_fault_pointer(heap, p, NULL, caller);
	return NULL;
}
