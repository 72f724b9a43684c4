/* SPDX-License-Identifier: MIT
 * heap.c - owns the theory of the heap, and its zones: how they are made, entered and left.
 * Rank: 5.  Runs: any CPU, any level; each function says what it may call.
 *
 * ---- Rooms --------------------------------------------------------------------------------------
 *
 * From top to bottom; a room includes only what lies below it, or beside it in its own rank.
 *
 *  6  kmalloc                the malloc-shaped calls: overflow, alignment, realloc, bulk
 *     object_cache           typed caches with a constructor
 *     check snapshot stats   read-only observers: consistency, leaks, figures, pictures
 *     print_map selftest inject
 *  5  heap                   this theory; zones; the fast path is in heap.h
 *     alloc_slow free_slow   what is behind the fast path
 *     heap_page              an object page is made from the page source, and goes back
 *     cache_zone             a cache's parts of zones, and their end
 *     trim                   what a zone gives back: the retention, requests
 *     reclaim                memory pressure, CPUs that come and go, quiesce
 *     large_block            page runs above the size classes
 *     purge                  memory of free slots inside pages that stay
 *     fault                  what is told of a fault
 *     debug debug_quick fence   levels 1 and 2: contents of slots, the fence round bad pages
 *     init                   start and end of a heap
 *  4  page_source            regions, callback, emergency pages; metadata; the heap lock
 *     zone_allocator         the bare ZoneAllocator: all sizes, pages handed in
 *  3  sc_allocator           one size: lists of empty, partial and full pages, the current word
 *  2  object_page            one page: slots and their three bits
 *     page_map               any address to its page
 *     region                 page runs over plain memory
 *     chunk_tree             page runs by address, that the map does not know
 *  1  bitfield page_list size_class report
 *  0  compiler.h port.h      builtins and atomics; what the kernel supplies
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
 * first; an empty page; a page that a CPU which is offline has left; the page source (two-phase:
 * outside the zone, then everything is looked at again); memory pressure (kslab_heap_relieve); NULL
 * and a reason.
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
 *     they have a free slot shows at their turn. PURGING pages are QUEUED, and in the full list:
 *     none of their free slots is issued. Counts of a class are the lengths of its lists.
 * I5  zone->owner.key is the zone's address while nobody is inside, 0 otherwise. Only the zone's
 *     CPU writes it; an interrupt leaves it as it found it.
 * I6  mail: a page with remote bits that its owner may never look at by itself (FULL) is ARMED,
 *     QUEUED, or about to be harvested. A QUEUED page is in its owner's mailbox, on its way there
 *     (being purged: for as long as that takes), or out of it in owner->mail and not taken in yet;
 *     it does not change hands, and is not released. ARMED goes to QUEUED (by a freer) or IDLE (by
 *     the owner) by compare-and-swap only.
 * I7  Descriptors are type-stable: a freer that has done its fetch_or may still read mail and owner
 *     of one whose page has gone. The worst is a spurious mail to the next owner, which harvests
 *     nothing and arms again.
 * I8  `remote` of a page that nobody owns is all ones, from the end of one page to the beginning of
 *     the next: a second free whose fetch_or comes so late finds its bit set, and is refused.
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
 * after the slot was harvested and issued again, or in the next page of its descriptor; that is a
 * free of the new object (misuse row 3), and debug level 2 catches it.
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
 * is left; of a CPU's zones the innermost first, as handlers seldom come by a slow path. Classes are
 * gone through in a circle, KSLAB_LOOKS_MOST a time; object caches hang on the zone (zone->caches),
 * so that nobody walks the heap's list, whose entries are the kernel's memory. Large blocks and runs
 * that were given up in an NMI go two with each outside; a region with more than purge_bytes of
 * free memory to purge is purged of a few pieces at each free, down to
 * half of that.
 *
 * The source fails. What is known to be empty goes back, as much as is needed, and the source is
 * asked again; then mail is taken in, eight pages and another try; then everything is swept, eight
 * pages and another try. Only when all of that is through does the call fail: O(pages), once.
 *
 * What the map does not know. Metadata where there is no leaf, and pages that are set aside, are kept
 * in trees by address (chunk_tree.h): whether a page that comes from the source is one of them is
 * asked in one way down, of at most as many steps as a page number has bits. So is a run that is
 * under way, from the moment it is judged until the map can know it, so that a source that gives a
 * page twice is found out before anything is made of it; where there are leaves, and the run is
 * short, it is entered in the map at once (kslab_page_under_way). When a leaf is made, four
 * chunks are looked at, in a circle, whether the map can know them now: more than the leaf takes for
 * itself.
 *
 * Limbo. It is brought up to date by steps under the lock, a page each, between which the lock is
 * dropped; a zone that lingers is emptied class by class, a page that is QUEUED goes to the tail of
 * its list, and after as many of them as can be on their way into a mailbox the class is left for
 * the next time. cpu_offline, reclaim and quiesce do all steps, adopt four. Caches' pages stay in the
 * zone that has no CPU; by steps like these it is swept and gives back what is empty, and the cache's
 * parts of other zones adopt from it. When the source fails, KSLAB_LOOKS_MOST of its caches are looked
 * at for pages known to be empty, before everything is swept.
 *
 * ---- Interrupts ---------------------------------------------------------------------------------
 *
 * Entering a zone is a plain store (key = 0). A handler that finds the key 0 uses the zone of the
 * next level and sees the outer zone's pages as another CPU's. A handler that comes before the
 * store is over when we go on; what was read before the store and may have changed (the owner of
 * the page) is compared after it. Nothing is masked. The heap lock saves interrupts and is only
 * tried in an NMI. A free needs no zone: it can always be remote.
 *
 * An NMI that is refused the lock loses nothing: large blocks, runs and descriptors are pushed on
 * stacks without it, which whoever has it pops; other metadata is put to use before the lock that it
 * was cut off under is left, or without it.
 *
 * ---- Locks --------------------------------------------------------------------------------------
 *
 * 1. heap->lock (a ticket lock): regions, metadata, large blocks, limbo, zones of CPUs that are
 *    offline. May be taken inside a zone.
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
 * Taken, and what it gave:
 *  - Class spacing of eight per doubling up to 2 KiB instead of four: costs partly used pages, and
 *    saves about 4 % of memory on kernel-like mixes.
 *  - Object pages start at the shortest useful length with 16 slots. Against none: random
 *    replacement of 1,000 objects 6 % faster, pairs of 2 KiB a third, and less memory.
 *  - They double after every eight, so that a class wastes at most about 1/8 of itself in its newest
 *    page. Sixteen: no less memory from the source, 0.7 % more resident, for more descriptors.
 *  - New partial pages go to the tail; to the head they thrash.
 *  - A used-up page goes behind the waiting ones instead of being filed as full: random replacement
 *    of 100,000 objects takes 153 instructions instead of 203, for no arming and no first free by
 *    the slow path.
 *  - A word's slots found by shift instead of a branch: a quarter of the mispredictions there.
 *  - Word triples side by side rather than three arrays: a cold or remote free touches two lines,
 *    not three.
 *  - A middle path for frees to other CPUs: 130 instructions instead of 203.
 *  - Large blocks grow into spare ones that the retention bounds: growth to 1 MiB in steps of 1 KiB
 *    in a quarter of the time.
 *  - Retention of 4 MiB a CPU instead of 512 KiB, as the host port has it: 2 KiB batches in half the
 *    time, blocks of 1 MiB in a twentieth.
 *  - Page map with plain loads and a fixed limit: four instructions less than a growing count.
 *  - Key compared after entering: no second check.
 *  - What a pair waits for is not its instructions but the address of the free's store: the next
 *    allocation's load comes after it. So whatever shortens that way counts: two looks at the bits,
 *    of which one may come late, a twentieth; a flat page map and the zone kept by the port
 *    (KSLAB_CFG_FLAT_MAP, KSLAB_PORT_ZONE), a sixth.
 *  - The words of a page that have free slots kept as a mask (kslab_sc.ready) instead of a search: a
 *    tenth fewer mispredictions in random replacement.
 *  - Bulk frees that store a word once for all its objects: two thirds of the time.
 *  - A used-up page is not looked at again while others wait (nine in ten had nothing; what it has
 *    gathered it keeps): random replacement of 100,000 objects takes 127 instructions instead of 148,
 *    and a fifth fewer mispredictions. Of those left two in three are the fast path's: is this the
 *    word's last slot?
 *  - The host's new memory in huge pages (tests/host/port.c): a fault of 1.4 us for 4 KiB becomes
 *    0.2. By MADV_POPULATE_WRITE in pieces of 64 KiB 1.0 to 1.2, and then the unused ends of each
 *    class's newest page are resident, too.
 *  - realloc passes on the descriptor that it looked up, and a large block whose pages stay is
 *    answered without saving a register: steps of 1 KiB to 1 MiB in two thirds of the time, steps of
 *    16 bytes to 4 KiB 4 % faster.
 *  - Whether a block lies in a region stands in its descriptor, and that of a room that is used up
 *    stays for the next one: growth in place looks up no region and takes no lock.
 *  - A block that grows and has no room to be cut from goes to the front of a free block of twice
 *    its length: eight blocks that double by turns in 0.6 of the time, half the bytes copied.
 *  - A large block is taken from the newest spare one, and given there, without a call on the way:
 *    pairs 20 % faster. The atomic of the free is 6 % of what is left.
 *  - Classes above the table of routes look at their cached word first: pairs of 3 to 10 KiB 10 to 30
 *    % faster.
 *  - A run goes back to its region order by order, from both ends: a third fewer instructions there
 *    than piece by piece.
 *  - Debug level 1: the tail of a slot compared as one number, no class looked up, long bodies
 *    compared in pairs of words: 1.51 times level 0 instead of 1.66.
 *
 * Not taken, and why:
 *  - Links and state in another line than what remote freers read: objects exchanged 5 % faster, 0.3
 *    to 1.4 % more memory resident.
 *  - The line of a remote free asked for by PREFETCHW: 2 % at most; what is paid is the line that
 *    comes and goes.
 *  - Remote frees gathered before the atomic: a free that waits is one that the owner can't see, and
 *    a double free would be found too late.
 *  - Larger growth by realloc (a quarter more) of what has a class: a sized free could not be checked.
 *  - Size folded at compile time by a macro: 2 instructions of 17 and the call, for 60 bytes at each
 *    place.
 *  - Free slots kept at hand by address instead of by word: taking one would have to clear its bit,
 *    and each pair would wait for two such chains.
 *  - Words with fewer than two, three, four slots left for later: a tenth fewer issues, but pages turn
 *    so often that it takes 5, 11, 12 % more instructions.
 *  - Always eight looks at a page's words, without a branch: a tenth fewer mispredictions, 7 % more
 *    instructions, and slower where pages are short.
 *  - The next page's bits, or the word's second slot, prefetched: nothing that could be measured.
 *  - The map written by string instructions: growth by half and random replacement of large blocks 5
 *    to 10 % faster, doubling 5 % slower. By vectors of 16 bytes the gain alone, but kernels have none.
 *  - Copies of realloc in words up to 16, 32, 128 bytes instead of 64: no difference. A third of
 *    growth in small steps is the copy, into memory that the first cache does not hold.
 *  - Header and first word of bits in one line: objects exchanged 8 % faster, for 32 bytes a page.
 *  - A page of one's own rather than to follow close behind who frees: producer and consumer 5 %.
 *  - A remote free by plain stores, into a word of each freer: two frees at once, and arming, can only
 *    be told apart by a store that is followed by a load (Attiya et al. 2011), so a fence would stay,
 *    and what it waits for is what the client has stored before.
 *  - Any single check of the hot free left out, to see what it costs: 6 % at most. Of a pair's time more
 *    than half is the loop and two calls, whatever they do (make bench, column "no heap").
 */
#include "heap.h"
#include "debug.h"
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

struct kslab_zone *kslab_heap_pin_level(struct kslab_heap *heap, unsigned level)
{
	struct kslab_zone *zone;

	KSLAB_PORT_PIN();
	zone = kslab_heap_zone(heap);
	while (zone != NULL && zone->level != level)
		zone = KSLAB_LOAD_ACQUIRE(&zone->inner);
	if (zone == NULL || KSLAB_LOAD_RELAXED(&zone->owner.key) == 0) {
		KSLAB_PORT_UNPIN();
		return NULL;
	}
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

		if (zone == &kslab_zone_none) /* offline, or was never online: NULL */
			zone = KSLAB_LOAD_ACQUIRE(&heap->parked[cpu]);
		for (; zone != NULL; zone = KSLAB_LOAD_ACQUIRE(&zone->inner))
			fn(ctx, zone);
	}
	if (limbo != NULL)
		fn(ctx, limbo);
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

void kslab_heap_leave(struct kslab_heap *heap, struct kslab_zone *zone, const void *caller)
{
	bool surplus = kslab_zone_has_surplus(heap, zone);
	unsigned level = zone->level;

	kslab_zone_leave_reporting(heap, zone, caller);
	if (KSLAB_UNLIKELY(surplus))
		kslab_heap_trim(heap, level);
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
