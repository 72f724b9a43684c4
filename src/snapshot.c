/* SPDX-License-Identifier: MIT
 * snapshot.c - owns marks: a copy of all live bits, and the difference to it.
 * Rank: 6.  Runs: thread or interrupt, no lock held while it looks; exact on a quiet heap.
 *
 * Both walks go along the page map, not along lists: entries always lead to a descriptor, and
 * descriptors are type-stable (I7), so a walk is safe while other CPUs go on. Their order is fixed,
 * side window first, then by address: records come out sorted, and the difference is a merge of two
 * sorted sequences.
 *
 *     block -> | header | record | live bits ... | record | live bits ... |     -> block -> ...
 *
 * A record is at most what fits a block, so single base pages are enough; a page with many slots
 * has several.
 */
#include <kslab/observe.h>

#include "debug.h"
#include "heap.h"

/* One run from the page source. */
struct kslab_mark_block {
	struct kslab_mark_block *next;
	size_t pages;
	size_t words; /* used, of data */
	kslab_word data[];
};

/* Some words of a page's live bits; `count` words follow. A large block has none. */
struct kslab_mark_record {
	uintptr_t data; /* first slot of the page, or the large block */
	uint32_t size; /* slot size; 0: a large block */
	uint16_t first; /* number of the first word */
	uint16_t count;
};

#define RECORD_WORDS                                                                               \
	((sizeof(struct kslab_mark_record) + sizeof(kslab_word) - 1) / sizeof(kslab_word))
/* Blocks are made of so many base pages if the source has them, else of one. */
#define BLOCK_PAGES 4u

/* ---- along the page map ---------------------------------------------------------------------- */

/* First byte behind what a descriptor stands for. */
static uintptr_t end_of(const struct kslab_heap *heap, const struct kslab_page *page)
{
	if (page->state == KSLAB_PAGE_LARGE)
		return page->bits[0].avail + (page->bits[0].freed << heap->page_shift);
	return page->data + ((uintptr_t)page->pages << heap->page_shift);
}

/* A place in the page map: the side window comes first, as what it holds is older. */
struct place {
	bool in_window; /* false: in the side window */
	uint64_t offset; /* in it */
};

static bool is_in_side(const struct kslab_page_map *map, uintptr_t address)
{
	return map->side[0] != 0 && address - map->side_base < (uintptr_t)KSLAB_SIDE_ENTRIES
								       << KSLAB_CFG_LEAF_SHIFT;
}

/* The walk comes by a before it comes by b. */
static bool is_before(const struct kslab_page_map *map, uintptr_t a, uintptr_t b)
{
	return is_in_side(map, a) != is_in_side(map, b) ? is_in_side(map, a) : a < b;
}

/* The page or large block at a place of the map, or the next one; NULL: none. *at: behind it. */
static const struct kslab_page *next_page(const struct kslab_heap *heap, struct place *at)
{
	const struct kslab_page_map *map = &heap->map;
	const uint64_t leaf_bytes = (uint64_t)1 << KSLAB_CFG_LEAF_SHIFT;
	size_t side = map->side[0] != 0 ? KSLAB_SIDE_ENTRIES : 0;

	for (;;) {
		uintptr_t base = at->in_window ? map->base : map->side_base, address, missing;
		const struct kslab_page *page;

		if (at->offset >> KSLAB_CFG_LEAF_SHIFT >= (at->in_window ? map->limit : side)) {
			if (at->in_window)
				return NULL;
			at->in_window = true;
			at->offset = 0;
			continue;
		}
		address = base + (uintptr_t)at->offset;
		if ((at->offset & (leaf_bytes - 1)) == 0 &&
		    kslab_page_map_lacks_leaf(map, address, 1, &missing)) {
			at->offset += leaf_bytes;
			continue;
		}
		page = kslab_page_map_find(map, address);
		at->offset += (uint64_t)1 << KSLAB_CFG_GRAIN_SHIFT;
		if (kslab_page_is_none(page))
			continue;
		/* Behind the whole of it; at the top of the address space its end is 0. */
		if (end_of(heap, page) - base > (uintptr_t)at->offset)
			at->offset = end_of(heap, page) - base;
		return page;
	}
}

/* Slot size; 0: a large block that is live. Return: false: nothing that could hold an object. */
static bool judge_page(const struct kslab_heap *heap, const struct kslab_page *page, uint32_t *size)
{
	uintptr_t owner = KSLAB_LOAD_RELAXED(&page->owner);
	const struct kslab_sc *sc = page->sc;

	*size = 0;
	if (page->state == KSLAB_PAGE_LARGE)
		return owner == kslab_large_tag(heap);
	if ((owner & ~KSLAB_TAG_MASK) == 0 || sc == NULL || page->state == KSLAB_PAGE_FENCED)
		return false;
	*size = sc->size;
	return true;
}

static kslab_word live_word(const struct kslab_heap *heap, const struct kslab_page *page,
			    unsigned i)
{
	return kslab_page_live_word(page, i) & ~kslab_debug_held(heap, page, i);
}

/* ---- sequence numbers of debug level 2 ------------------------------------------------------- */

/* a is known and comes after b; numbers wrap. */
static bool is_after(uintptr_t a, uintptr_t b)
{
	return a != 0 && (intptr_t)(a - b) > 0;
}

static uintptr_t sequence_of(struct kslab_heap *heap, const struct kslab_page *page, uint32_t index)
{
	return heap->debug_level >= 2 ? kslab_debug_sequence(heap, page, index) : 0;
}

static void note_sequence(struct kslab_mark *mark, const struct kslab_page *page, uint32_t index)
{
	uintptr_t sequence = sequence_of(mark->heap, page, index);

	if (mark->sequence == 0 || is_after(sequence, mark->sequence))
		mark->sequence = sequence;
}

/* ---- take a mark ----------------------------------------------------------------------------- */

/* Words of data that a block has room for. */
static size_t block_room(const struct kslab_heap *heap, const struct kslab_mark_block *block)
{
	return ((block->pages << heap->page_shift) - sizeof(*block)) / sizeof(kslab_word);
}

static enum kslab_reason add_block(struct kslab_mark *mark)
{
	struct kslab_heap *heap = mark->heap;
	struct kslab_mark_block *block;
	enum kslab_reason reason;
	struct kslab_run run;

	reason = kslab_source_alloc(heap, BLOCK_PAGES, 1, 0, &run);
	if (reason == KSLAB_NO_PAGES || reason == KSLAB_QUOTA)
		reason = kslab_source_alloc(heap, 1, 1, 0, &run);
	if (reason != KSLAB_OK)
		return reason;
	kslab_page_map_set(&heap->map, run.address, run.pages << heap->page_shift,
			   &kslab_page_metadata);
	block = (struct kslab_mark_block *)run.address;
	block->next = mark->blocks;
	block->pages = run.pages;
	block->words = 0;
	mark->blocks = block;
	mark->pages += run.pages;
	return KSLAB_OK;
}

/* A record with `count` words behind it, in this block or the next; NULL: there is none. */
static struct kslab_mark_record *add_record(const struct kslab_heap *heap,
					    struct kslab_mark_block **at, unsigned want,
					    unsigned *count)
{
	for (; *at != NULL; *at = (*at)->next) {
		struct kslab_mark_block *block = *at;
		size_t room = block_room(heap, block) - block->words;

		if (room >= RECORD_WORDS + (want != 0)) {
			struct kslab_mark_record *record =
				(struct kslab_mark_record *)&block->data[block->words];

			*count =
				want < room - RECORD_WORDS ? want : (unsigned)(room - RECORD_WORDS);
			block->words += RECORD_WORDS + *count;
			return record;
		}
	}
	return NULL;
}

/* Copy a page's live bits. Return: false: the blocks are full. */
static bool record_page(struct kslab_mark *mark, struct kslab_mark_block **at,
			const struct kslab_page *page, uint32_t size)
{
	unsigned words = size != 0 ? kslab_page_words(page) : 0, first = 0, count;

	do {
		struct kslab_mark_record *record =
			add_record(mark->heap, at, words - first, &count);
		kslab_word *copy;

		if (record == NULL)
			return false;
		record->data = page->data;
		record->size = size;
		record->first = (uint16_t)first;
		record->count = (uint16_t)count;
		copy = (kslab_word *)record + RECORD_WORDS;
		for (unsigned i = 0; i < count; i++) {
			copy[i] = live_word(mark->heap, page, first + i);
			mark->objects += kslab_popcount(copy[i]);
			for (kslab_word w = copy[i]; mark->heap->debug_level >= 2 && w != 0;
			     w &= w - 1)
				note_sequence(mark, page,
					      (first + i) * KSLAB_WORD_BITS + kslab_ctz(w));
		}
		first += count;
	} while (first < words);
	if (size == 0) {
		mark->objects++;
		note_sequence(mark, page, 0);
	}
	return true;
}

/*
 * Fill the blocks. Return: false: more room is needed. No callback runs in between: it is one
 * moment.
 */
static bool record_all(struct kslab_mark *mark)
{
	struct kslab_mark_block *at = mark->blocks;
	const struct kslab_page *page;
	struct place place = { false, 0 };
	uint32_t size;

	mark->objects = 0;
	mark->sequence = 0;
	for (struct kslab_mark_block *block = at; block != NULL; block = block->next)
		block->words = 0;
	while ((page = next_page(mark->heap, &place)) != NULL)
		if (judge_page(mark->heap, page, &size) && !record_page(mark, &at, page, size))
			return false;
	return true;
}

/* Give blocks back from *link on. */
static void free_blocks(struct kslab_mark *mark, struct kslab_mark_block **link)
{
	struct kslab_heap *heap = mark->heap;
	struct kslab_mark_block *block = *link, *next;

	*link = NULL;
	for (; block != NULL; block = next) {
		size_t pages = block->pages;

		next = block->next;
		mark->pages -= pages;
		kslab_page_map_set(&heap->map, (uintptr_t)block, pages << heap->page_shift,
				   &kslab_page_released);
		kslab_source_free(heap, (uintptr_t)block, pages);
	}
}

enum kslab_reason kslab_heap_mark(struct kslab_heap *heap, struct kslab_mark *mark)
{
	struct kslab_mark_block **unused = &mark->blocks;
	enum kslab_reason reason;

	memset(mark, 0, sizeof(*mark));
	if (heap->state != KSLAB_HEAP_READY)
		return KSLAB_NOT_INITIALISED;
	mark->heap = heap;
	for (size_t step = 1; !record_all(mark); step = mark->pages) {
		/* Twice as much each time, so that all walks together cost little more than one. */
		for (size_t pages = mark->pages; mark->pages < pages + step;) {
			reason = add_block(mark);
			if (reason != KSLAB_OK) {
				kslab_unmark(mark);
				kslab_heap_fail(heap, reason);
				return reason;
			}
		}
	}
	while (*unused != NULL && (*unused)->words != 0)
		unused = &(*unused)->next;
	free_blocks(mark, unused);
	return KSLAB_OK;
}

void kslab_unmark(struct kslab_mark *mark)
{
	if (mark->heap != NULL)
		free_blocks(mark, &mark->blocks);
	memset(mark, 0, sizeof(*mark));
}

/* ---- the difference -------------------------------------------------------------------------- */

/* Where the merge stands in the mark's records. */
struct cursor {
	const struct kslab_mark_block *block;
	size_t word;
};

static const struct kslab_mark_record *current(struct cursor *cursor)
{
	while (cursor->block != NULL && cursor->word >= cursor->block->words) {
		cursor->block = cursor->block->next;
		cursor->word = 0;
	}
	return cursor->block != NULL
		       ? (const struct kslab_mark_record *)&cursor->block->data[cursor->word]
		       : NULL;
}

static const struct kslab_mark_record *step(struct cursor *cursor)
{
	const struct kslab_mark_record *record = current(cursor);

	if (record != NULL)
		cursor->word += RECORD_WORDS + record->count;
	return current(cursor);
}

/* The bits that word i of the page had at the mark; the cursor only ever goes forward. */
static kslab_word word_at_mark(const struct kslab_page_map *map, struct cursor *cursor,
			       const struct kslab_page *page, uint32_t size, unsigned i)
{
	const struct kslab_mark_record *record = current(cursor);

	while (record != NULL &&
	       (is_before(map, record->data, page->data) ||
		(record->data == page->data && record->first + record->count <= i && size != 0)))
		record = step(cursor);
	if (record == NULL || record->data != page->data || record->size != size ||
	    i < record->first)
		return 0;
	return size != 0 ? ((const kslab_word *)record)[RECORD_WORDS + i - record->first] : 1;
}

struct difference {
	const struct kslab_mark *mark;
	bool (*fn)(void *ctx, void *object, size_t bytes);
	void *ctx;
	size_t seen;
};

/* Return: false: stop. */
static bool tell(struct difference *difference, const struct kslab_page *page, uint32_t index,
		 size_t size)
{
	uintptr_t object = page->data + (uintptr_t)index * size;
	const struct kslab_heap *heap = difference->mark->heap;

	difference->seen++;
	if (heap->debug_level != 0)
		kslab_debug_walk(heap, page, index, &size);
	return difference->fn == NULL || difference->fn(difference->ctx, (void *)object, size);
}

static bool compare_page(struct difference *difference, struct cursor *cursor,
			 const struct kslab_page *page, uint32_t size)
{
	struct kslab_heap *heap = difference->mark->heap;
	const uintptr_t newest = difference->mark->sequence;

	for (unsigned i = 0; i < kslab_page_words(page); i++) {
		kslab_word live = live_word(heap, page, i),
			   old = word_at_mark(&heap->map, cursor, page, size, i);

		for (; live != 0; live &= live - 1) {
			uint32_t index = i * KSLAB_WORD_BITS + kslab_ctz(live);
			bool is_new = !(old & kslab_bit(index)) ||
				      is_after(sequence_of(heap, page, index), newest);

			if (is_new && !tell(difference, page, index, size))
				return false;
		}
	}
	return true;
}

size_t kslab_diff(const struct kslab_mark *mark, bool (*fn)(void *ctx, void *object, size_t bytes),
		  void *ctx)
{
	struct difference difference = { mark, fn, ctx, 0 };
	struct cursor cursor = { mark->blocks, 0 };
	struct kslab_heap *heap = mark->heap;
	const struct kslab_page *page;
	struct place place = { false, 0 };
	uint32_t size;

	if (heap == NULL || heap->state != KSLAB_HEAP_READY)
		return 0;
	while ((page = next_page(heap, &place)) != NULL) {
		if (!judge_page(heap, page, &size))
			continue;
		if (size != 0) {
			if (!compare_page(&difference, &cursor, page, size))
				break;
		} else if (word_at_mark(&heap->map, &cursor, page, 0, 0) == 0 ||
			   is_after(sequence_of(heap, page, 0), mark->sequence)) {
			if (!tell(&difference, page, 0, kslab_large_bytes(heap, page)))
				break;
		}
	}
	return difference.seen;
}

enum kslab_reason kslab_mark(struct kslab_mark *mark)
{
	return kslab_heap_mark(&kslab_default_heap, mark);
}
