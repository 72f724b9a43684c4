/* SPDX-License-Identifier: MIT
 * heap_page.c - owns the birth and the end of an object page: from the page source, and back to it.
 * Rank: 5.  Runs: any CPU, any level, no zone entered.
 */
#include "debug.h"
#include "heap.h"
#include "inject.h"
#include "tally.h"

/*
 * Object pages of a class at each length before longer ones are made: its newest page wastes at
 * most about 1/8.
 */
#define PAGES_PER_LENGTH 8u

/* Slots that the longest descriptor has bits for. */
#define SLOTS_MAX (512u * KSLAB_WORD_BITS)

/* ---- making pages ---------------------------------------------------------------------------- */

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
		kslab_source_forget(heap, &run);
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

/* ---- giving pages back ----------------------------------------------------------------------- */

void kslab_heap_release_page(struct kslab_heap *heap, struct kslab_page *page)
{
	uintptr_t address = page->data;
	size_t run = page->pages;

	if (heap->debug_level != 0)
		kslab_debug_release(heap, page);
	kslab_page_map_set(&heap->map, address, run << heap->page_shift, &kslab_page_released);
	if (kslab_page_owner(page) != NULL) /* was in use */
		kslab_tally_remove(heap, page);
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
