/* SPDX-License-Identifier: MIT
 * purge.c - owns the base pages inside object pages that nobody needs: where all slots of one are
 * free, its memory can go while the object page stays.
 * Rank: 5.  Runs: any CPU, thread or interrupt, no zone entered; for pages of this CPU.
 *
 *     object page  | frame 0      | frame 1      | frame 2      | frame 3      |
 *     slots        [live][free][free][free][free][free][free][live][free][free]|
 *                                 '--- purged ---'
 *
 * The callback runs with no zone entered, and the thread may move to another CPU. So a page is set
 * aside meanwhile (KSLAB_PAGE_PURGING): nobody issues slots of it, and it can't go. Its free slots
 * stay marked as such, so a free of one of them is a double free as ever; other slots are freed as
 * ever. When the memory is gone the page comes back to its owner, whoever that is then, by mail.
 */
#include "heap.h"

#define MOST_WORDS (KSLAB_PAGE_SLOTS / KSLAB_WORD_BITS)

/* A page that was set aside, and its slots that were free then; a bit each, as in the page. */
struct purging {
	struct kslab_page *page;
	kslab_word free[MOST_WORDS];
};

/* Slots that a frame (base page) of an object page holds, wholly or in part; false: none. */
static bool slots_of_frame(const struct kslab_heap *heap, const struct kslab_page *page,
			   size_t frame, uint32_t *first, uint32_t *last)
{
	size_t start = frame << heap->page_shift;

	*first = (uint32_t)kslab_divide(start, page->sc->size);
	*last = (uint32_t)kslab_divide(start + heap->page_bytes - 1, page->sc->size);
	if (*last >= page->slots)
		*last = page->slots - 1;
	return *first < page->slots;
}

/* Bits of word i that stand for slots first to last. */
static kslab_word part_of_range(unsigned i, uint32_t first, uint32_t last)
{
	uint32_t from = i * KSLAB_WORD_BITS, to = from + KSLAB_WORD_BITS - 1;
	kslab_word bits = ~(kslab_word)0;

	if (first > from)
		bits &= ~(kslab_word)0 << (first - from);
	if (last < to)
		bits &= ~(kslab_word)0 >> (to - last);
	return bits;
}

static bool has_range(const kslab_word *word, uint32_t first, uint32_t last)
{
	for (unsigned i = first / KSLAB_WORD_BITS; i <= last / KSLAB_WORD_BITS; i++)
		if (~word[i] & part_of_range(i, first, last))
			return false;
	return true;
}

/* A frame has slots, and all of them were free. */
static bool is_unused(const struct kslab_heap *heap, const struct purging *purging, size_t frame)
{
	uint32_t first, last;

	return slots_of_frame(heap, purging->page, frame, &first, &last) &&
	       has_range(purging->free, first, last);
}

/* In the entered zone of the page. Return: it has a frame that is unused. */
static bool look_at_slots(const struct kslab_heap *heap, struct purging *purging)
{
	const struct kslab_page *page = purging->page;

	for (unsigned i = 0; i < kslab_page_words(page); i++)
		purging->free[i] = KSLAB_LOAD_RELAXED(&page->bits[i].freed);
	for (size_t frame = 0; frame < page->pages; frame++)
		if (is_unused(heap, purging, frame))
			return true;
	return false;
}

/* Runs of unused frames. */
static void purge_frames(struct kslab_heap *heap, const struct purging *purging)
{
	const struct kslab_page *page = purging->page;
	size_t frame, run = 0;

	for (frame = 0; frame <= page->pages; frame++) {
		if (frame < page->pages && is_unused(heap, purging, frame)) {
			run++;
			continue;
		}
		if (run != 0)
			heap->purge(heap->source_ctx,
				    (void *)(page->data + ((frame - run) << heap->page_shift)),
				    run << heap->page_shift);
		run = 0;
	}
}

/* In the entered zone of a partial page. Return: it is set aside. */
static bool set_aside(struct kslab_heap *heap, struct kslab_owner *owner, struct purging *purging)
{
	const struct kslab_page *page = purging->page;

	return page->pages > 1 && kslab_page_words(page) <= MOST_WORDS &&
	       kslab_source_is_divisible(heap, page->data) && look_at_slots(heap, purging) &&
	       kslab_sc_set_purging(owner, purging->page);
}

/* The next partial page of a class, which goes to the end of its list. Return: it is set aside. */
static bool set_next_aside(struct kslab_heap *heap, unsigned level, unsigned cls,
			   struct purging *purging)
{
	struct kslab_zone *zone;
	bool is_aside = false;

	zone = kslab_heap_pin_level(heap, level);
	if (zone != NULL) {
		struct kslab_page_list *partial = &zone->sc[cls].partial;

		purging->page = partial->head;
		if (purging->page != NULL) {
			partial->head = purging->page->next;
			is_aside = set_aside(heap, &zone->owner, purging);
		}
		kslab_zone_leave(zone);
		KSLAB_PORT_UNPIN();
	}
	return is_aside;
}

/* This CPU takes the page in, if it is the owner; or whoever is, as any mail. */
static void send_back(struct kslab_heap *heap, unsigned level, struct kslab_page *page,
		      const void *caller)
{
	struct kslab_zone *zone;

	kslab_page_mail(page);
	zone = kslab_heap_pin_level(heap, level);
	if (zone != NULL) {
		kslab_sc_drain(&zone->owner, KSLAB_ALL);
		kslab_zone_leave_reporting(heap, zone, caller);
	}
}

static uint32_t pages_of_class(struct kslab_heap *heap, unsigned level, unsigned cls)
{
	struct kslab_zone *zone;
	uint32_t pages = 0;

	zone = kslab_heap_pin_level(heap, level);
	if (zone != NULL) {
		if (heap->max_run[cls] > 1)
			pages = zone->sc[cls].pages;
		kslab_zone_leave(zone);
		KSLAB_PORT_UNPIN();
	}
	return pages;
}

void kslab_heap_purge_pages(struct kslab_heap *heap, const void *caller)
{
	struct purging purging;

	/* At a debug level free memory holds its poison; in an NMI nobody is called. */
	if (heap->purge == NULL || heap->debug_level != 0 || KSLAB_PORT_IN_NMI())
		return;
	for (unsigned level = 0; level < KSLAB_CFG_LEVELS; level++) {
		for (unsigned cls = 0; cls < KSLAB_CLASSES; cls++) {
			for (uint32_t n = pages_of_class(heap, level, cls); n != 0; n--) {
				if (!set_next_aside(heap, level, cls, &purging))
					continue;
				purge_frames(heap, &purging);
				send_back(heap, level, purging.page, caller);
			}
		}
	}
}
