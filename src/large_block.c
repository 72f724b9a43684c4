/* SPDX-License-Identifier: MIT
 * large_block.c - owns blocks above the size classes: page runs with a descriptor of their own.
 * Rank: 5.  Runs: any CPU, any level, no zone entered.
 */
#include "debug.h"
#include "heap.h"
#include "page_list.h"

/* Blocks that were freed in an NMI and go with one that is freed outside; the rest, with others. */
#define DEFERRED_MOST 2u

/*
 * The descriptor of a large block: slots = length in base pages; pages = 1 if it lies in a region;
 * bits[0] = { run, pages of the run, bytes asked for }. A run may be longer than the block when an
 * alignment above a page was asked of a source that does not align, or when the block was made
 * shorter and the run can't be divided.
 */
size_t kslab_large_bytes(const struct kslab_heap *heap, const struct kslab_page *page)
{
	return (size_t)page->slots << heap->page_shift;
}

/* Where a block, nobody's, lies from now on: all of a run. */
static void place(struct kslab_page *page, uintptr_t address, size_t pages)
{
	page->data = address;
	page->slots = (uint32_t)pages;
	page->bits[0].avail = address;
	page->bits[0].freed = pages;
}

/* A descriptor becomes that of a block, nobody's yet. */
static void describe(struct kslab_page *page, uintptr_t address, size_t pages, bool in_region)
{
	page->inverse = 0;
	page->pages = in_region;
	page->sc = NULL;
	kslab_page_set_state(page, KSLAB_PAGE_LARGE);
	place(page, address, pages);
}

static void set_map(struct kslab_heap *heap, uintptr_t address, size_t pages,
		    struct kslab_page *page)
{
	kslab_page_map_set(&heap->map, address, pages << heap->page_shift, page);
}

/* Under the lock: into the list of all blocks. */
static void link_block(struct kslab_heap *heap, struct kslab_page *page, size_t pages)
{
	kslab_page_list_insert_tail(&heap->large, page);
	heap->large_blocks++;
	heap->large_pages += pages;
}

/* Whose it is from now on. What was written to it and to the map comes before. */
static void bring_to_life(struct kslab_heap *heap, struct kslab_page *page, size_t n)
{
	page->bits[0].remote = n;
	KSLAB_STORE_RELEASE(&page->owner, kslab_large_tag(heap));
}

/* The first page behind a block. */
static uintptr_t end_of(const struct kslab_heap *heap, const struct kslab_page *page)
{
	return page->data + kslab_large_bytes(heap, page);
}

/* ---- spare blocks: a zone keeps a few freed ones whole --------------------------------------- */

/* Take the i-th spare block out of an entered zone. */
static struct kslab_page *take_spare(struct kslab_zone *zone, unsigned i)
{
	struct kslab_page *page = zone->spare[i];

	zone->spares--;
	for (; i < zone->spares; i++)
		zone->spare[i] = zone->spare[i + 1];
	zone->spare[i] = NULL;
	zone->spare_run -= page->slots;
	return page;
}

static void put_spare(struct kslab_zone *zone, struct kslab_page *page)
{
	zone->spare[zone->spares++] = page;
	zone->spare_run += page->slots;
}

struct kslab_page *kslab_zone_take_spare(struct kslab_zone *zone)
{
	return zone->spares != 0 ? take_spare(zone, 0) : NULL;
}

/*
 * A spare block without a page is a descriptor for the next one that is cut off.
 * KSLAB_SPARE_BLOCKS: there is none.
 */
static unsigned find_empty(const struct kslab_zone *zone)
{
	for (unsigned i = 0; i < zone->spares; i++)
		if (zone->spare[i]->slots == 0)
			return i;
	return KSLAB_SPARE_BLOCKS;
}

/* The newest spare block of exactly this length, live again; or NULL. Inside the zone. */
static struct kslab_page *reuse_spare(struct kslab_heap *heap, struct kslab_zone *zone,
				      size_t pages, size_t n)
{
	for (unsigned i = zone->spares; i-- > 0;) {
		struct kslab_page *page = zone->spare[i];

		if (page->slots == pages) {
			take_spare(zone, i);
			bring_to_life(heap, page, n);
			return page;
		}
	}
	return NULL;
}

static struct kslab_page *reuse(struct kslab_heap *heap, size_t pages, size_t n)
{
	struct kslab_page *page = NULL;
	struct kslab_zone *zone;

	KSLAB_PORT_PIN();
	zone = kslab_heap_enter(heap);
	if (zone != NULL) {
		page = reuse_spare(heap, zone, pages, n);
		kslab_zone_leave(zone);
	}
	KSLAB_PORT_UNPIN();
	return page;
}

/*
 * A block out of a region, at a multiple of align_pages pages, by taking the lock once; or NULL: not
 * so simple. n may have been too large, pages too few then.
 */
static KSLAB_SLOW struct kslab_page *take_new(struct kslab_heap *heap, size_t pages, size_t n,
					      size_t align_pages, bool *zeroed)
{
	struct kslab_lock_state state;
	struct kslab_page *page;
	struct kslab_run run;

	if (n > KSLAB_REQUEST_MAX || pages > UINT32_MAX || !kslab_heap_lock(heap, &state))
		return NULL;
	page = kslab_descriptor_take(heap);
	if (page != NULL && !kslab_source_take(heap, pages, align_pages, &run)) {
		kslab_descriptor_free(heap, page, KSLAB_DESCRIPTOR_LARGE);
		page = NULL;
	}
	if (page != NULL) {
		describe(page, run.address, pages, true);
		link_block(heap, page, pages);
	}
	kslab_heap_unlock(heap, &state);
	if (page == NULL)
		return NULL;
	set_map(heap, run.address, pages, page);
	bring_to_life(heap, page, n);
	*zeroed = run.zeroed;
	return page;
}

/* Not the newest spare block. */
static KSLAB_SLOW void *malloc_other(size_t n, struct kslab_heap *heap, const void *caller,
				     size_t pages)
{
	struct kslab_page *page = reuse(heap, pages, n);
	bool zeroed;

	if (page == NULL)
		page = take_new(heap, pages, n, 1, &zeroed);
	if (KSLAB_LIKELY(page != NULL))
		return (void *)page->data;
	return kslab_heap_alloc_any(heap, n, 1, 0, caller);
}

/* Calls nothing on its way, so that it saves no registers. */
KSLAB_SLOW void *kslab_large_malloc(size_t n, struct kslab_heap *heap, const void *caller)
{
	/* of an n that would wrap: more than any block has */
	size_t pages = ((n - 1) >> heap->page_shift) + 1;
	struct kslab_page *page;
	struct kslab_zone *zone;
	unsigned newest;

	KSLAB_PORT_PIN();
	zone = kslab_heap_quick_zone(heap);
	if (KSLAB_UNLIKELY(KSLAB_LOAD_RELAXED(&zone->owner.key) == 0))
		goto other;
	kslab_zone_enter(zone);
	newest = zone->spares - 1u;
	if (newest >= KSLAB_SPARE_BLOCKS || (page = zone->spare[newest])->slots != pages) {
		kslab_zone_leave(zone);
		goto other;
	}
	zone->spares = (uint16_t)newest;
	zone->spare[newest] = NULL;
	zone->spare_run -= (uint32_t)pages;
	bring_to_life(heap, page, n);
	kslab_zone_leave(zone);
	KSLAB_PORT_UNPIN();
	return (void *)page->data;
other:
	KSLAB_PORT_UNPIN();
	return malloc_other(n, heap, caller, pages);
}

/* Keep a freed block in an entered zone, if there is room. */
KSLAB_INLINE bool keep_here(struct kslab_heap *heap, struct kslab_zone *zone,
			    struct kslab_page *page)
{
	if (zone->spares == KSLAB_SPARE_BLOCKS || page->slots > UINT32_MAX - zone->spare_run ||
	    zone->spare_run + page->slots > KSLAB_LOAD_RELAXED(&heap->retain_run))
		return false;
	put_spare(zone, page);
	return true;
}

/*
 * Keep a block that was freed, if it is a plain run within the retention. Return: what has to go
 * instead, older ones or this one, chained through mail_next.
 */
static struct kslab_page *keep(struct kslab_heap *heap, struct kslab_page *page)
{
	struct kslab_page *out = NULL;
	struct kslab_zone *zone;
	bool kept;

	page->mail_next = NULL;
	if (page->slots > KSLAB_LOAD_RELAXED(&heap->retain_run) ||
	    page->bits[0].freed != page->slots)
		return page;
	KSLAB_PORT_PIN();
	zone = kslab_heap_enter(heap);
	if (zone == NULL) {
		KSLAB_PORT_UNPIN();
		return page;
	}
	while (!(kept = keep_here(heap, zone, page)) && zone->spares != 0) {
		unsigned empty = find_empty(zone);
		struct kslab_page *oldest =
			take_spare(zone, empty != KSLAB_SPARE_BLOCKS ? empty : 0);

		oldest->mail_next = out;
		out = oldest;
	}
	if (!kept) { /* the retention was lowered just now */
		page->mail_next = out;
		out = page;
	}
	kslab_zone_leave(zone);
	KSLAB_PORT_UNPIN();
	return out;
}

/*
 * A live block of `pages` at `data` in a run that was just taken. Return: NULL: *reason says why, and
 * the run went back.
 */
static struct kslab_page *make_block(struct kslab_heap *heap, const struct kslab_run *run,
				     uintptr_t data, size_t pages, unsigned flags,
				     enum kslab_reason *reason)
{
	struct kslab_page *page =
		kslab_descriptor_alloc(heap, KSLAB_DESCRIPTOR_LARGE, flags, reason);
	struct kslab_lock_state state;

	if (page == NULL) {
		kslab_source_forget(heap, run);
		return NULL;
	}
	describe(page, data, pages, kslab_source_is_divisible(heap, data));
	page->bits[0].avail = run->address;
	page->bits[0].freed = run->pages;
	set_map(heap, run->address, run->pages, page);
	if (!kslab_heap_lock(heap, &state)) {
		*reason = KSLAB_BUSY;
		set_map(heap, run->address, run->pages, &kslab_page_released);
		kslab_descriptor_free(heap, page, KSLAB_DESCRIPTOR_LARGE);
		kslab_source_free(heap, run->address, run->pages);
		return NULL;
	}
	link_block(heap, page, run->pages);
	kslab_heap_unlock(heap, &state);
	return page;
}

void *kslab_large_alloc(struct kslab_heap *heap, size_t n, size_t align, unsigned flags)
{
	size_t page_bytes = heap->page_bytes, pages,
	       align_pages = align > page_bytes ? align >> heap->page_shift : 1;
	enum kslab_reason reason;
	struct kslab_relief relief = { 0 };
	struct kslab_page *page;
	struct kslab_run run;
	uintptr_t data;

	if (n > KSLAB_REQUEST_MAX || align > KSLAB_REQUEST_MAX)
		return kslab_heap_fail(heap, KSLAB_TOO_LARGE);
	pages = n == 0 ? 1 : (n + page_bytes - 1) >> heap->page_shift;
	if (pages > UINT32_MAX)
		return kslab_heap_fail(heap, KSLAB_TOO_LARGE);
	if (align_pages == 1 && (page = reuse(heap, pages, n)) != NULL) {
		if (heap->debug_level != 0)
			page->inverse = kslab_debug_large_verify(heap, page);
		if (flags & KSLAB_ZERO)
			memset((void *)page->data, 0, pages << heap->page_shift);
		return (void *)page->data;
	}
	if (align_pages == 1 && (page = take_new(heap, pages, n, 1, &run.zeroed)) != NULL) {
		if ((flags & KSLAB_ZERO) && !run.zeroed)
			memset((void *)page->data, 0, pages << heap->page_shift);
		return (void *)page->data;
	}
	relief.want = pages;
	reason = kslab_source_alloc(heap, pages, align_pages, flags, &run);
	while (reason != KSLAB_OK && kslab_heap_may_give(heap, flags) &&
	       (kslab_heap_take_back(heap, pages) ||
		(!relief.is_done && kslab_heap_relieve(heap, &relief))))
		reason = kslab_source_alloc(heap, pages, align_pages, flags, &run);
	if (reason == KSLAB_NO_PAGES && align_pages > 1)
		reason = kslab_source_alloc(heap, pages + align_pages - 1, 1, flags, &run);
	if (reason != KSLAB_OK)
		return kslab_heap_fail(heap, reason);
	data = (run.address + align_pages * page_bytes - 1) &
	       ~(uintptr_t)(align_pages * page_bytes - 1);
	page = make_block(heap, &run, data, pages, flags, &reason);
	if (page == NULL)
		return kslab_heap_fail(heap, reason);
	bring_to_life(heap, page, n);
	if ((flags & KSLAB_ZERO) && !run.zeroed)
		memset((void *)data, 0, pages << heap->page_shift);
	return (void *)data;
}

/*
 * Entries of the map that are written under the lock, when it is not worth leaving and taking
 * again.
 */
#define ENTRIES_LOCKED 512u

/* Not here: whoever frees or reclaims next where the lock can be had releases it. */
static void defer(struct kslab_heap *heap, struct kslab_page *page)
{
	struct kslab_page *head = KSLAB_LOAD_RELAXED(&heap->deferred);

	do {
		page->mail_next = head;
	} while (!KSLAB_CAS_RELEASE(&heap->deferred, &head, page));
}

/* A large block that nobody can reach any more. */
void kslab_large_release(struct kslab_heap *heap, struct kslab_page *page)
{
	uintptr_t address = page->bits[0].avail;
	size_t pages = page->bits[0].freed;
	struct kslab_lock_state state;

	/* Out of the lock: a report may come of it. The block is nobody's meanwhile. */
	if (heap->debug_level != 0 && !KSLAB_PORT_IN_NMI())
		kslab_debug_large_verify(heap, page);
	if (KSLAB_PORT_IN_NMI() || !kslab_heap_lock(heap, &state)) {
		defer(heap, page);
		return;
	}
	if (!kslab_page_list_is_sound(page)) {
		/* No broken link is followed: the block is fenced off. */
		kslab_heap_unlock(heap, &state);
		kslab_page_set_state(page, KSLAB_PAGE_FENCED);
		kslab_heap_report_corrupt(heap, page, KSLAB_CALLER());
		return;
	}
	kslab_page_list_remove(&heap->large, page);
	heap->large_blocks--;
	heap->large_pages -= pages;
	if (pages > ENTRIES_LOCKED)
		kslab_heap_unlock(heap, &state);
	set_map(heap, address, pages, &kslab_page_released);
	if (pages > ENTRIES_LOCKED)
		kslab_heap_lock(heap, &state);
	kslab_descriptor_free(heap, page, KSLAB_DESCRIPTOR_LARGE);
	if (pages != 0)
		kslab_source_give_and_unlock(heap, address, pages, &state);
	else
		kslab_heap_unlock(heap, &state);
}

static bool has_blocks_waiting(const struct kslab_heap *heap)
{
	return KSLAB_LOAD_RELAXED(&heap->deferred) != NULL ||
	       KSLAB_LOAD_RELAXED(&heap->releasing) != NULL;
}

bool kslab_large_has_deferred(const struct kslab_heap *heap)
{
	return has_blocks_waiting(heap) || KSLAB_LOAD_RELAXED(&heap->waiting) != NULL;
}

/* One of the blocks that wait; NULL: none. */
static struct kslab_page *take_deferred(struct kslab_heap *heap)
{
	struct kslab_lock_state state;
	struct kslab_page *page;

	if (!kslab_heap_lock(heap, &state))
		return NULL;
	page = heap->releasing;
	if (page == NULL) /* pairs with the push of defer */
		page = KSLAB_EXCHANGE_ACQUIRE(&heap->deferred, (struct kslab_page *)NULL);
	if (page != NULL)
		KSLAB_STORE_RELAXED(&heap->releasing, page->mail_next);
	kslab_heap_unlock(heap, &state);
	return page;
}

size_t kslab_large_release_deferred(struct kslab_heap *heap, size_t most)
{
	struct kslab_page *page;
	size_t released;

	if (KSLAB_PORT_IN_NMI())
		return 0;
	released = kslab_source_release_waiting(heap, most);
	for (; most != 0 && has_blocks_waiting(heap); most--) {
		page = take_deferred(heap);
		if (page == NULL) /* gone, or the lock can't be had here */
			break;
		released += page->bits[0].freed;
		kslab_large_release(heap, page);
	}
	return released;
}

/* Of several frees at once exactly one wins. Return: false: not the start of a live block. */
KSLAB_INLINE bool end_life(struct kslab_heap *heap, struct kslab_page *page, uintptr_t address)
{
	uintptr_t owner = kslab_large_tag(heap);

	if (address != page->data || !KSLAB_CAS_ACQ_REL(&page->owner, &owner, KSLAB_TAG_FULL))
		return false;
	/* The descriptor may have become another block's since: a late free gives its life back. */
	if (KSLAB_LIKELY(address == page->data))
		return true;
	KSLAB_STORE_RELEASE(&page->owner, kslab_large_tag(heap));
	return false;
}

/* A block that was freed is kept, or goes back. */
static KSLAB_SLOW void retire(struct kslab_heap *heap, struct kslab_page *page)
{
	struct kslab_page *next;

	kslab_large_release_deferred(heap, DEFERRED_MOST);
	for (page = keep(heap, page); page != NULL; page = next) {
		next = page->mail_next;
		kslab_large_release(heap, page);
	}
}

bool kslab_large_free(struct kslab_heap *heap, struct kslab_page *page, uintptr_t address)
{
	if (!end_life(heap, page, address))
		return false;
	if (heap->debug_level != 0)
		kslab_debug_large_retire(heap, page);
	retire(heap, page);
	return true;
}

KSLAB_SLOW void kslab_large_free_plain(void *p, struct kslab_heap *heap, struct kslab_page *page,
				       const void *caller)
{
	struct kslab_zone *zone;
	bool kept = false;

	if (KSLAB_UNLIKELY(!end_life(heap, page, (uintptr_t)p))) {
		kslab_heap_fault_pointer(heap, p, NULL, caller);
		return;
	}
	KSLAB_PORT_PIN();
	zone = kslab_heap_quick_zone(heap);
	if (KSLAB_LIKELY(KSLAB_LOAD_RELAXED(&zone->owner.key) != 0 &&
			 KSLAB_LOAD_RELAXED(&heap->deferred) == NULL &&
			 page->bits[0].freed == page->slots)) {
		kslab_zone_enter(zone);
		kept = keep_here(heap, zone, page);
		kslab_zone_leave(zone);
	}
	KSLAB_PORT_UNPIN();
	if (KSLAB_UNLIKELY(!kept))
		retire(heap, page);
}

/* ---- resize ---------------------------------------------------------------------------------- */

/*
 * A block of a region that grows takes the pages behind it. A spare block of this CPU that lies
 * there is its room: it is taken from page by page, without the lock. So a block that is moved to
 * grow is cut from the longest spare block, and what is left behind it remains a spare block like
 * any other: it counts as retention, goes back under memory pressure, and serves whoever asks for
 * its length. Of a room that is used up the descriptor stays in its place, without a page, for
 * the next one: growth into the same spare block again and again takes no lock. With debugging, where
 * spare blocks are filled and looked at as a whole, none is cut.
 */

/* Base pages from the start of a block to the end of its run. */
static size_t run_behind(const struct kslab_heap *heap, const struct kslab_page *page)
{
	return page->bits[0].freed - ((page->data - page->bits[0].avail) >> heap->page_shift);
}

/* A block that is all of a run of a region can be cut and extended. */
static bool is_divisible(const struct kslab_page *page)
{
	return page->pages != 0 && page->bits[0].freed == page->slots;
}

/* A spare block without a page, by taking the lock; NULL: no descriptor at hand. */
static struct kslab_page *make_empty(struct kslab_heap *heap)
{
	struct kslab_lock_state state;
	struct kslab_page *page;

	if (!kslab_heap_lock(heap, &state))
		return NULL;
	page = kslab_descriptor_take(heap);
	if (page != NULL) {
		describe(page, 0, 0, true);
		link_block(heap, page, 0); /* its pages will have been counted with another's */
	}
	kslab_heap_unlock(heap, &state);
	return page;
}

/* Descriptors come from metadata, which is not asked for inside a zone: have one at hand. */
static bool stock_descriptor(struct kslab_heap *heap)
{
	enum kslab_reason reason;
	struct kslab_page *page =
		kslab_descriptor_alloc(heap, KSLAB_DESCRIPTOR_LARGE, KSLAB_NOWAIT, &reason);

	if (page != NULL)
		kslab_descriptor_free(heap, page, KSLAB_DESCRIPTOR_LARGE);
	return page != NULL;
}

/* The longest spare block above `pages` that is no other block's room; KSLAB_SPARE_BLOCKS: none. */
static unsigned longest_spare(struct kslab_heap *heap, const struct kslab_zone *zone, size_t pages)
{
	unsigned found = KSLAB_SPARE_BLOCKS;

	for (unsigned i = 0; i < zone->spares; i++) {
		const struct kslab_page *page = zone->spare[i];
		const struct kslab_page *before;

		if (page->slots <= pages || !is_divisible(page))
			continue;
		before = kslab_page_map_find(&heap->map, page->data - 1);
		if (KSLAB_LOAD_RELAXED(&before->owner) != kslab_large_tag(heap)) {
			found = i;
			pages = page->slots;
		}
	}
	return found;
}

/*
 * The first pages of a spare block, live, with the rest of it as room. @empty: a descriptor for the
 * shorter part: fewer entries of the map.
 */
static struct kslab_page *cut(struct kslab_heap *heap, struct kslab_zone *zone, unsigned i,
			      struct kslab_page *empty, size_t pages, size_t n)
{
	struct kslab_page *spare = zone->spare[i], *page = spare, *room = empty;
	uintptr_t start = spare->data, middle = start + (pages << heap->page_shift);
	size_t rest = spare->slots - pages;

	if (pages <= rest) {
		page = empty;
		room = spare;
	}
	place(page, start, pages);
	place(room, middle, rest);
	set_map(heap, empty->data, empty->slots, empty);
	zone->spare[i] = room;
	zone->spare_run -= (uint32_t)pages;
	bring_to_life(heap, page, n);
	return page;
}

/* Of the longest spare block. *is_short: no descriptor was at hand. */
static struct kslab_page *cut_longest(struct kslab_heap *heap, struct kslab_zone *zone,
				      size_t pages, size_t n, bool *is_short)
{
	unsigned i = longest_spare(heap, zone, pages), at = find_empty(zone);
	struct kslab_page *empty;

	if (i == KSLAB_SPARE_BLOCKS)
		return NULL;
	if (at != KSLAB_SPARE_BLOCKS) {
		empty = take_spare(zone, at);
		i -= at < i;
	} else {
		empty = make_empty(heap);
	}
	*is_short = empty == NULL;
	if (empty == NULL)
		return NULL;
	return cut(heap, zone, i, empty, pages, n);
}

static struct kslab_page *cut_spare(struct kslab_heap *heap, size_t pages, size_t n)
{
	struct kslab_page *page = NULL;

	for (unsigned tries = 0; tries < 2; tries++) {
		struct kslab_zone *zone;
		bool is_short = false;

		KSLAB_PORT_PIN();
		zone = kslab_heap_enter(heap);
		if (zone != NULL) {
			page = cut_longest(heap, zone, pages, n, &is_short);
			kslab_zone_leave(zone);
		}
		KSLAB_PORT_UNPIN();
		if (!is_short || !stock_descriptor(heap))
			break;
	}
	return page;
}

/* The block ends behind its first pages; the rest goes back. Return: false: not here (NMI). */
static KSLAB_SLOW bool cut_off(struct kslab_heap *heap, struct kslab_page *page, size_t pages)
{
	size_t rest = page->slots - pages;
	struct kslab_lock_state state;

	if (!kslab_heap_lock(heap, &state))
		return false;
	page->slots = (uint32_t)pages;
	page->bits[0].freed = pages;
	heap->large_pages -= rest;
	kslab_heap_unlock(heap, &state);
	set_map(heap, end_of(heap, page), rest, &kslab_page_released);
	kslab_source_free(heap, end_of(heap, page), rest);
	return true;
}

/*
 * The room behind a block turned out to be too short, or just long enough: all of it, and what is
 * missing from the region. Out of any zone. Return: false: nothing changed.
 */
static KSLAB_SLOW bool swallow(struct kslab_heap *heap, struct kslab_page *page,
			       struct kslab_page *room, size_t pages)
{
	size_t more = pages - page->slots - room->slots;
	struct kslab_lock_state state;

	if (more != 0 && !kslab_source_extend(heap, end_of(heap, room), more))
		return false;
	if (!kslab_heap_lock(heap, &state)) {
		if (more != 0)
			kslab_source_free(heap, end_of(heap, room), more);
		return false;
	}
	if (!kslab_page_list_is_sound(room)) { /* its release reports it */
		kslab_heap_unlock(heap, &state);
		if (more != 0)
			kslab_source_free(heap, end_of(heap, room), more);
		return false;
	}
	kslab_page_list_remove(&heap->large, room);
	heap->large_blocks--;
	heap->large_pages += more;
	page->bits[0].freed = pages;
	kslab_heap_unlock(heap, &state);
	set_map(heap, room->data, room->slots + more, page);
	page->slots = (uint32_t)pages;
	kslab_descriptor_free(heap, room, KSLAB_DESCRIPTOR_LARGE);
	return true;
}

/*
 * In an entered zone: so many pages of the room behind a block become its own. A room of which
 * nothing is left stays, as a descriptor for the next one.
 */
static void take_pages(struct kslab_heap *heap, struct kslab_zone *zone, struct kslab_page *page,
		       struct kslab_page *room, size_t extra)
{
	uintptr_t end = room->data;
	size_t rest = room->slots - extra;

	place(room, rest != 0 ? end + (extra << heap->page_shift) : 0, rest);
	zone->spare_run -= (uint32_t)extra;
	set_map(heap, end, extra, page);
	page->slots += (uint32_t)extra;
	page->bits[0].freed = page->slots;
}

/* Grow to `pages` by a spare block that lies behind. */
static bool grow_into_room(struct kslab_heap *heap, struct kslab_page *page, size_t pages)
{
	uintptr_t end = end_of(heap, page);
	size_t extra = pages - page->slots;
	struct kslab_page *room = NULL;
	struct kslab_zone *zone;
	bool fits = false;

	KSLAB_PORT_PIN();
	zone = kslab_heap_enter_quick(heap);
	for (unsigned i = 0; zone != NULL && i < zone->spares; i++) {
		if (zone->spare[i]->data != end || !is_divisible(zone->spare[i]))
			continue;
		room = zone->spare[i];
		fits = room->slots > extra ||
		       (room->slots == extra && find_empty(zone) == KSLAB_SPARE_BLOCKS);
		if (fits)
			take_pages(heap, zone, page, room, extra);
		else
			take_spare(zone, i);
		break;
	}
	if (zone != NULL)
		kslab_zone_leave(zone);
	KSLAB_PORT_UNPIN();
	if (fits || room == NULL)
		return fits;
	if (swallow(heap, page, room, pages))
		return true;
	retire(heap, room);
	return false;
}

/* Grow to `pages` by what is free behind the block. */
static KSLAB_SLOW bool extend(struct kslab_heap *heap, struct kslab_page *page, size_t pages)
{
	uintptr_t end = end_of(heap, page);
	size_t extra = pages - page->slots;
	struct kslab_lock_state state;

	if (!kslab_source_extend(heap, end, extra))
		return false;
	if (!kslab_heap_lock(heap, &state)) {
		kslab_source_free(heap, end, extra);
		return false;
	}
	page->slots = (uint32_t)pages;
	page->bits[0].freed = pages;
	heap->large_pages += extra;
	kslab_heap_unlock(heap, &state);
	set_map(heap, end, extra, page);
	return true;
}

static bool resize_claimed(struct kslab_heap *heap, struct kslab_page *page, size_t n)
{
	size_t pages = (n + heap->page_bytes - 1) >> heap->page_shift;

	if (n > KSLAB_REQUEST_MAX || pages > UINT32_MAX)
		return false;
	if (pages != page->slots && !is_divisible(page)) {
		/* The run stays as it is, and the block ends where it has to. */
		if (pages > run_behind(heap, page))
			return false;
		page->slots = (uint32_t)pages;
	} else if (pages > page->slots) {
		if (!(heap->debug_level == 0 && grow_into_room(heap, page, pages)) &&
		    !extend(heap, page, pages))
			return false;
	} else if (pages < page->slots && !cut_off(heap, page, pages)) {
		return false;
	}
	page->bits[0].remote = n;
	return true;
}

/*
 * The block is claimed while its run changes: a free that comes meanwhile finds no live block, as it
 * would if it came before.
 */
enum kslab_resize kslab_large_resize(struct kslab_heap *heap, struct kslab_page *page,
				     uintptr_t address, size_t n)
{
	uintptr_t live = kslab_large_tag(heap);
	enum kslab_resize result = KSLAB_RESIZE_DEAD;

	if (!KSLAB_CAS_ACQ_REL(&page->owner, &live, live | KSLAB_TAG_FULL))
		return KSLAB_RESIZE_DEAD;
	if (page->data == address) {
		size_t old = page->bits[0].remote;
		bool done;

		if (heap->debug_level != 0)
			kslab_debug_large_open(heap, page);
		done = resize_claimed(heap, page, n);
		if (heap->debug_level != 0)
			kslab_debug_large_resize(heap, page, old, done ? n : old);
		result = done ? KSLAB_RESIZE_DONE : KSLAB_RESIZE_MOVE;
	}
	KSLAB_STORE_RELEASE(&page->owner, kslab_large_tag(heap));
	return result;
}

/* Longer blocks are left where they fit: each would come to lie in memory that was not used yet. */
#define DOUBLED_MOST 128u

/*
 * Where a block that grows is put, in pages: at the front of a free block of twice the length, so that
 * it can grow in place once more.
 */
static size_t growth_align(size_t pages)
{
	return pages <= DOUBLED_MOST ? (size_t)2 << kslab_log2(2 * pages - 1) : 1;
}

void *kslab_large_grow(struct kslab_heap *heap, size_t n, const void *caller)
{
	size_t pages = (n + heap->page_bytes - 1) >> heap->page_shift;
	struct kslab_page *page = NULL;
	bool zeroed;

	if (n <= KSLAB_REQUEST_MAX)
		page = cut_spare(heap, pages, n);
	if (page != NULL)
		return (void *)page->data;
	/* None to cut: what has a class goes there, rather than to the region. */
	if (n > KSLAB_CLASS_MAX_BYTES && n <= KSLAB_REQUEST_MAX) {
		page = reuse(heap, pages, n);
		if (page == NULL)
			page = take_new(heap, pages, n, growth_align(pages), &zeroed);
	}
	return page != NULL ? (void *)page->data : kslab_heap_malloc_unrouted(n, heap, caller);
}
