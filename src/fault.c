/* SPDX-License-Identifier: MIT
 * fault.c - owns what a heap tells of a fault: what a refused pointer is, what was found late, which
 * page is broken.
 * Rank: 5.  Runs: any CPU, any level, no zone entered; reads descriptors only.
 */
#include "debug.h"
#include "heap.h"
#include "report.h"

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
	/* Or since it was looked up: a descriptor that was a page's, and is nobody's. */
	if (page == &kslab_page_released || page == &kslab_page_under_way ||
	    (owner == KSLAB_TAG_FULL && sc != NULL)) {
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
