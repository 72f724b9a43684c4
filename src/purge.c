/* SPDX-License-Identifier: MIT
 * purge.c - owns the base pages inside object pages that nobody needs: where all slots of one are
 * free, its memory can go while the object page stays.
 * Rank: 5.  Runs: any CPU, thread or interrupt, no zone entered; for pages of this CPU.
 *
 *     object page  | frame 0      | frame 1      | frame 2      | frame 3      |
 *     slots        [live][free][free][free][free][free][free][live][free][free]|
 *                                 '--- purged ---'
 *
 * The callback runs with no zone entered, so the slots are taken first, as an allocation would take
 * them, and freed when the memory is gone, on whatever CPU that is. A double free that comes in
 * between is taken for the free of the slot; the free that follows it here finds it out.
 */
#include "heap.h"

#define HELD_WORDS (KSLAB_PAGE_SLOTS / KSLAB_WORD_BITS)

/* Slots of one page; a bit each, as in the page. */
struct held {
	struct kslab_page *page;
	kslab_word word[HELD_WORDS];
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

/* In the entered zone of the page: take the slots of all frames that have free ones only. */
static bool take_slots(const struct kslab_heap *heap, struct kslab_page *page, struct held *held)
{
	kslab_word free[HELD_WORDS] = { 0 };
	uint32_t first, last;
	bool any = false;

	memset(held, 0, sizeof(*held));
	held->page = page;
	for (unsigned i = 0; i < kslab_page_words(page); i++)
		free[i] = KSLAB_LOAD_RELAXED(&page->bits[i].freed);
	for (size_t frame = 0; frame < page->pages; frame++) {
		if (!slots_of_frame(heap, page, frame, &first, &last) ||
		    !has_range(free, first, last))
			continue;
		for (unsigned i = first / KSLAB_WORD_BITS; i <= last / KSLAB_WORD_BITS; i++)
			held->word[i] |= part_of_range(i, first, last);
		any = true;
	}
	for (unsigned i = 0; any && i < kslab_page_words(page); i++)
		KSLAB_STORE_RELEASE(&page->bits[i].freed, free[i] & ~held->word[i]);
	return any;
}

/* Runs of frames whose slots are all held. */
static void purge_frames(struct kslab_heap *heap, const struct held *held)
{
	const struct kslab_page *page = held->page;
	size_t frame, run = 0;

	for (frame = 0; frame <= page->pages; frame++) {
		uint32_t first, last;

		if (frame < page->pages && slots_of_frame(heap, page, frame, &first, &last) &&
		    has_range(held->word, first, last)) {
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

static void free_slots(struct kslab_heap *heap, struct held *held, const void *caller)
{
	struct kslab_page *page = held->page;
	size_t size = page->sc->size; /* the page can't go while slots are held */
	uintptr_t data = page->data;

	for (unsigned i = 0; i < HELD_WORDS; i++) {
		for (kslab_word word = held->word[i]; word != 0; word &= word - 1) {
			uint32_t index = i * KSLAB_WORD_BITS + kslab_ctz(word);

			if (!kslab_heap_set_free(heap, page, index, NULL, caller))
				kslab_heap_report_late(heap, data + index * size, 1, caller);
		}
	}
}

/* The next partial page of a class, which goes to the end of its list. Return: slots are held. */
static bool hold_next(struct kslab_heap *heap, unsigned level, unsigned cls, struct held *held)
{
	struct kslab_page *page = NULL;
	struct kslab_zone *zone;
	bool any = false;

	zone = kslab_heap_pin_level(heap, level);
	if (zone != NULL) {
		struct kslab_page_list *partial = &zone->sc[cls].partial;

		page = partial->head;
		if (page != NULL)
			partial->head = page->next;
		if (page != NULL && page->pages > 1 && kslab_page_words(page) <= HELD_WORDS &&
		    kslab_source_is_divisible(heap, page->data)) {
			/* What a double free has left in `remote` is dropped, not mixed up. */
			kslab_page_harvest(&zone->owner, page);
			any = take_slots(heap, page, held);
		}
		kslab_zone_leave(zone);
		KSLAB_PORT_UNPIN();
	}
	return any;
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
	struct held held;

	/* At a debug level free memory holds its poison; in an NMI nobody is called. */
	if (heap->purge == NULL || heap->debug_level != 0 || KSLAB_PORT_IN_NMI())
		return;
	for (unsigned level = 0; level < KSLAB_CFG_LEVELS; level++) {
		for (unsigned cls = 0; cls < KSLAB_CLASSES; cls++) {
			for (uint32_t n = pages_of_class(heap, level, cls); n != 0; n--) {
				if (!hold_next(heap, level, cls, &held))
					continue;
				purge_frames(heap, &held);
				free_slots(heap, &held, caller);
			}
		}
	}
}
