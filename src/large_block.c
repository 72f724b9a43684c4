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
 * The descriptor of a large block: slots = length in base pages; bits[0] = { run, pages of the run,
 * bytes asked for }. A run may be longer than the block when an alignment above a page was asked of
 * a source that does not align.
 */
size_t kslab_large_bytes(const struct kslab_heap *heap, const struct kslab_page *page)
{
	return (size_t)page->slots << heap->page_shift;
}

static void link_large(struct kslab_heap *heap, struct kslab_page *page,
		       const struct kslab_run *run)
{
	kslab_page_list_insert_tail(&heap->large, page);
	heap->large_blocks++;
	heap->large_pages += run->pages;
}

/* ---- spare blocks: a zone keeps a few freed ones whole --------------------------------------- */

/* Take the i-th spare block out of an entered zone. */
static struct kslab_page *take_spare(struct kslab_zone *zone, unsigned i)
{
	struct kslab_page *page = zone->spare[i];

	for (; i + 1 < KSLAB_SPARE_BLOCKS; i++)
		zone->spare[i] = zone->spare[i + 1];
	zone->spare[i] = NULL;
	zone->spare_run -= page->slots;
	return page;
}

struct kslab_page *kslab_zone_take_spare(struct kslab_zone *zone)
{
	return zone->spare[0] != NULL ? take_spare(zone, 0) : NULL;
}

/* A spare block of exactly this length, live again; or NULL. */
static struct kslab_page *reuse(struct kslab_heap *heap, size_t pages, size_t n)
{
	struct kslab_page *page = NULL;
	struct kslab_zone *zone;

	KSLAB_PORT_PIN();
	zone = kslab_heap_enter(heap);
	if (zone != NULL) {
		for (unsigned i = 0; i < KSLAB_SPARE_BLOCKS && zone->spare[i] != NULL; i++) {
			if (zone->spare[i]->slots == pages) {
				page = take_spare(zone, i);
				page->bits[0].remote = n;
				KSLAB_STORE_RELEASE(&page->owner, kslab_large_tag(heap));
				break;
			}
		}
		kslab_zone_leave(zone);
	}
	KSLAB_PORT_UNPIN();
	return page;
}

/*
 * Keep a block that was freed, if it is a plain run within the retention. Return: what has to go
 * instead, older ones or this one, chained through mail_next.
 */
static struct kslab_page *keep(struct kslab_heap *heap, struct kslab_page *page)
{
	size_t limit = KSLAB_LOAD_RELAXED(&heap->retain_run);
	struct kslab_page *out = NULL;
	struct kslab_zone *zone;
	unsigned i = 0;

	page->mail_next = NULL;
	if (page->slots > limit || page->bits[0].freed != page->slots)
		return page;
	KSLAB_PORT_PIN();
	zone = kslab_heap_enter(heap);
	if (zone == NULL) {
		KSLAB_PORT_UNPIN();
		return page;
	}
	while (zone->spare[KSLAB_SPARE_BLOCKS - 1] != NULL ||
	       zone->spare_run + page->slots > limit) {
		struct kslab_page *oldest = take_spare(zone, 0);

		oldest->mail_next = out;
		out = oldest;
	}
	while (zone->spare[i] != NULL)
		i++;
	zone->spare[i] = page;
	zone->spare_run += page->slots;
	kslab_zone_leave(zone);
	KSLAB_PORT_UNPIN();
	return out;
}

void *kslab_large_alloc(struct kslab_heap *heap, size_t n, size_t align, unsigned flags)
{
	size_t page_bytes = heap->page_bytes, pages,
	       align_pages = align > page_bytes ? align >> heap->page_shift : 1;
	struct kslab_lock_state state;
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
			kslab_debug_large_verify(heap, page);
		if (flags & KSLAB_ZERO)
			memset((void *)page->data, 0, pages << heap->page_shift);
		return (void *)page->data;
	}
	relief.want = pages;
	reason = kslab_source_alloc(heap, pages, align_pages, flags, &run);
	while (reason != KSLAB_OK && (kslab_heap_take_back(heap, pages) ||
				      (!relief.is_done && kslab_heap_relieve(heap, &relief))))
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
	data = (run.address + align_pages * page_bytes - 1) &
	       ~(uintptr_t)(align_pages * page_bytes - 1);
	page->data = data;
	page->slots = (uint32_t)pages;
	page->inverse = 0;
	page->sc = NULL;
	kslab_page_set_state(page, KSLAB_PAGE_LARGE);
	page->bits[0].avail = run.address;
	page->bits[0].freed = run.pages;
	page->bits[0].remote = n;
	KSLAB_STORE_RELAXED(&page->owner, kslab_large_tag(heap));
	link_large(heap, page, &run);
	kslab_heap_unlock(heap, &state);
	/* Out of the lock, as long as it is: nobody knows the block yet. */
	kslab_page_map_set(&heap->map, run.address, run.pages << heap->page_shift, page);
	if ((flags & KSLAB_ZERO) && !run.zeroed)
		memset((void *)data, 0, pages << heap->page_shift);
	return (void *)data;
}

/* A large block that nobody can reach any more. Return: false: the lock can't be had here. */
bool kslab_large_release(struct kslab_heap *heap, struct kslab_page *page)
{
	uintptr_t address = page->bits[0].avail;
	size_t pages = page->bits[0].freed;
	struct kslab_lock_state state;
	bool sound;

	if (KSLAB_PORT_IN_NMI() || !kslab_heap_lock(heap, &state))
		return false;
	if (heap->debug_level != 0) {
		/* Out of the lock: a report may come of it. The block is nobody's meanwhile. */
		kslab_heap_unlock(heap, &state);
		kslab_debug_large_verify(heap, page);
		if (!kslab_heap_lock(heap, &state))
			return false;
	}
	sound = kslab_page_list_is_sound(page);
	if (sound) {
		kslab_page_list_remove(&heap->large, page);
		heap->large_blocks--;
		heap->large_pages -= pages;
	}
	kslab_heap_unlock(heap, &state);
	if (!sound) { /* no broken link is followed: the block is fenced off */
		kslab_page_set_state(page, KSLAB_PAGE_FENCED);
		kslab_heap_report_corrupt(heap, page, KSLAB_CALLER());
		return true;
	}
	kslab_page_map_set(&heap->map, address, pages << heap->page_shift, &kslab_page_released);
	kslab_descriptor_free(heap, page, KSLAB_DESCRIPTOR_LARGE);
	kslab_source_free(heap, address, pages);
	return true;
}

bool kslab_large_has_deferred(const struct kslab_heap *heap)
{
	return KSLAB_LOAD_RELAXED(&heap->deferred) != NULL ||
	       KSLAB_LOAD_RELAXED(&heap->releasing) != NULL;
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
	size_t released = 0;

	if (KSLAB_PORT_IN_NMI())
		return 0;
	for (; most != 0 && kslab_large_has_deferred(heap); most--) {
		page = take_deferred(heap);
		if (page == NULL)
			continue;
		released += page->bits[0].freed;
		kslab_large_release(heap, page);
	}
	return released;
}

/* Not here and now: whoever frees or reclaims next releases it. */
static void defer(struct kslab_heap *heap, struct kslab_page *page)
{
	struct kslab_page *head = KSLAB_LOAD_RELAXED(&heap->deferred);

	do {
		page->mail_next = head;
	} while (!KSLAB_CAS_RELEASE(&heap->deferred, &head, page));
}

/* Return: false: not the start of a live block. */
bool kslab_large_free(struct kslab_heap *heap, struct kslab_page *page, uintptr_t address)
{
	uintptr_t owner = kslab_large_tag(heap);
	struct kslab_page *next;

	if (address != page->data)
		return false;
	/* Of several frees at once exactly one wins. */
	if (!KSLAB_CAS_ACQ_REL(&page->owner, &owner, KSLAB_TAG_FULL))
		return false;
	if (heap->debug_level != 0)
		kslab_debug_large_retire(heap, page);
	kslab_large_release_deferred(heap, DEFERRED_MOST);
	for (page = keep(heap, page); page != NULL; page = next) {
		next = page->mail_next;
		if (!kslab_large_release(heap, page))
			defer(heap, page);
	}
	return true;
}

bool kslab_large_resize(struct kslab_heap *heap, struct kslab_page *page, size_t n)
{
	size_t pages = (n + heap->page_bytes - 1) >> heap->page_shift, old = page->slots;
	struct kslab_lock_state state;
	uintptr_t end = page->data + (old << heap->page_shift);

	if (n > KSLAB_REQUEST_MAX || pages > UINT32_MAX)
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
		kslab_page_map_set(&heap->map, end, (old - pages) << heap->page_shift,
				   &kslab_page_released);
		kslab_source_free(heap, end, old - pages);
	}
	return true;
}
