/* SPDX-License-Identifier: MIT
 * snapshot.c - owns marks: a copy of all live bits, and the difference to it.
 * Rank: 6.  Runs: thread or interrupt; exact on a quiet heap.
 *
 * Both walks go along the page map, not along lists. Other CPUs may go on: what is read of a page is
 * read under the lock, a word of bits at a time; a descriptor that the map leads to gets no other life
 * meanwhile, and its memory does not go. Their order is fixed, side window first, then by address:
 * records come out sorted, and the difference is a merge of two sorted sequences.
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

/* What lies at a place of the map and may hold objects, as it was found. */
struct found {
	const struct kslab_page *page;
	uintptr_t address; /* where the map leads to it from, first of all */
	uintptr_t data; /* first slot, or the large block */
	uint32_t size; /* of a slot; 0: a large block */
	unsigned words; /* of bits */
};

struct look {
	struct kslab_lock_state state;
	bool is_locked;
};

/* The lock; where it can't be had, who has it was interrupted, and stands still. */
static void begin_look(struct kslab_heap *heap, struct look *look)
{
	look->is_locked = kslab_heap_lock(heap, &look->state);
}

static void end_look(struct kslab_heap *heap, struct look *look)
{
	if (look->is_locked)
		kslab_heap_unlock(heap, &look->state);
}

/* Where the map leads to a descriptor from, first of all, and where no more. In a look. */
static uintptr_t start_of(const struct kslab_page *page)
{
	return page->state == KSLAB_PAGE_LARGE ? page->bits[0].avail : page->data;
}

static uintptr_t end_of(const struct kslab_heap *heap, const struct kslab_page *page)
{
	return start_of(page) +
	       ((page->state == KSLAB_PAGE_LARGE ? page->bits[0].freed : (uintptr_t)page->pages)
		<< heap->page_shift);
}

/* Return: false: nothing that could hold an object. In a look. */
static bool judge_page(const struct kslab_heap *heap, const struct kslab_page *page,
		       struct found *found)
{
	uintptr_t owner = KSLAB_LOAD_ACQUIRE(&page->owner); /* pairs with kslab_sc_insert */

	found->page = page;
	found->data = page->data;
	found->size = 0;
	found->words = 0;
	if (page->state == KSLAB_PAGE_LARGE)
		return owner == kslab_large_tag(heap);
	if ((owner & ~KSLAB_TAG_MASK) == 0 || page->sc == NULL || page->state == KSLAB_PAGE_FENCED)
		return false;
	found->size = page->sc->size;
	found->words = kslab_page_words(page);
	return true;
}

/* A place in the page map: the side window comes first, as what it holds is older. */
struct place {
	bool in_window; /* false: in the side window */
	uint64_t offset; /* in it */
};

static bool is_in_side(const struct kslab_page_map *map, uintptr_t address)
{
	return map->side[0] != 0 &&
	       (address - map->side_base) >> KSLAB_CFG_LEAF_SHIFT < KSLAB_SIDE_ENTRIES;
}

/* The walk comes by a before it comes by b. */
static bool is_before(const struct kslab_page_map *map, uintptr_t a, uintptr_t b)
{
	return is_in_side(map, a) != is_in_side(map, b) ? is_in_side(map, a) : a < b;
}

/* Look at what was found once more. Return: false: it has gone. */
static bool look_again(struct kslab_heap *heap, const struct found *found, struct look *look)
{
	struct found now;

	begin_look(heap, look);
	return kslab_page_map_look(&heap->map, found->address) == found->page &&
	       start_of(found->page) == found->address && judge_page(heap, found->page, &now) &&
	       now.data == found->data && now.size == found->size && now.words == found->words;
}

/* What is found at an address. Return: false: nothing. *end: behind the whole of what lies there. */
static bool find(struct kslab_heap *heap, uintptr_t address, struct found *found, uintptr_t *end)
{
	const struct kslab_page *page = kslab_page_map_look(&heap->map, address);
	struct look look;
	bool is_found;

	*end = address;
	if (kslab_page_is_none(page))
		return false;
	begin_look(heap, &look);
	is_found = kslab_page_map_look(&heap->map, address) == page && start_of(page) == address;
	if (is_found) {
		*end = end_of(heap, page);
		found->address = address;
		is_found = judge_page(heap, page, found);
	}
	end_look(heap, &look);
	return is_found;
}

/* What there is at a place of the map or behind it; false: nothing. *at: behind it. */
static bool next_page(struct kslab_heap *heap, struct place *at, struct found *found)
{
	const struct kslab_page_map *map = &heap->map;
	const uint64_t leaf_bytes = (uint64_t)1 << KSLAB_CFG_LEAF_SHIFT;
	size_t side = map->side[0] != 0 ? KSLAB_SIDE_ENTRIES : 0;

	for (;;) {
		uintptr_t base = at->in_window ? map->base : map->side_base, address, end, missing;
		bool is_found;

		if (at->offset >> KSLAB_CFG_LEAF_SHIFT >= (at->in_window ? map->limit : side)) {
			if (at->in_window)
				return false;
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
		is_found = find(heap, address, found, &end);
		at->offset += (uint64_t)1 << KSLAB_CFG_GRAIN_SHIFT;
		/* At the top of the address space the end is 0. */
		if (end - base > (uintptr_t)at->offset)
			at->offset = end - base;
		if (is_found)
			return true;
	}
}

/* In a look. */
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

/* Copy a word of live bits. */
static kslab_word record_word(struct kslab_mark *mark, const struct found *found, unsigned i)
{
	kslab_word live = 0;
	struct look look;

	if (look_again(mark->heap, found, &look))
		live = live_word(mark->heap, found->page, i);
	for (kslab_word w = live; mark->heap->debug_level >= 2 && w != 0; w &= w - 1)
		note_sequence(mark, found->page, i * KSLAB_WORD_BITS + kslab_ctz(w));
	end_look(mark->heap, &look);
	mark->objects += kslab_popcount(live);
	return live;
}

static void record_large(struct kslab_mark *mark, const struct found *found)
{
	struct look look;

	if (look_again(mark->heap, found, &look))
		note_sequence(mark, found->page, 0);
	end_look(mark->heap, &look);
	mark->objects++;
}

/* Copy a page's live bits. Return: false: the blocks are full. */
static bool record_page(struct kslab_mark *mark, struct kslab_mark_block **at,
			const struct found *found)
{
	unsigned first = 0, count;

	do {
		struct kslab_mark_record *record =
			add_record(mark->heap, at, found->words - first, &count);
		kslab_word *copy;

		if (record == NULL)
			return false;
		record->data = found->data;
		record->size = found->size;
		record->first = (uint16_t)first;
		record->count = (uint16_t)count;
		copy = (kslab_word *)record + RECORD_WORDS;
		for (unsigned i = 0; i < count; i++)
			copy[i] = record_word(mark, found, first + i);
		first += count;
	} while (first < found->words);
	if (found->size == 0)
		record_large(mark, found);
	return true;
}

/*
 * Fill the blocks. Return: false: more room is needed. No callback runs in between: it is one
 * moment.
 */
static bool record_all(struct kslab_mark *mark)
{
	struct kslab_mark_block *at = mark->blocks;
	struct place place = { false, 0 };
	struct found found;

	mark->objects = 0;
	mark->sequence = 0;
	for (struct kslab_mark_block *block = at; block != NULL; block = block->next)
		block->words = 0;
	while (next_page(mark->heap, &place, &found))
		if (!record_page(mark, &at, &found))
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
			       const struct found *found, unsigned i)
{
	const struct kslab_mark_record *record = current(cursor);

	while (record != NULL && (is_before(map, record->data, found->data) ||
				  (record->data == found->data &&
				   record->first + record->count <= i && found->size != 0)))
		record = step(cursor);
	if (record == NULL || record->data != found->data || record->size != found->size ||
	    i < record->first)
		return 0;
	return found->size != 0 ? ((const kslab_word *)record)[RECORD_WORDS + i - record->first]
				: 1;
}

struct difference {
	const struct kslab_mark *mark;
	bool (*fn)(void *ctx, void *object, size_t bytes);
	void *ctx;
	size_t seen;
};

/* Return: false: stop. */
static bool tell(struct difference *difference, const struct found *found, uint32_t index)
{
	struct kslab_heap *heap = difference->mark->heap;
	uintptr_t object = found->data + (uintptr_t)index * found->size;
	size_t bytes = found->size;
	struct look look;

	if (look_again(heap, found, &look)) {
		if (bytes == 0)
			bytes = kslab_large_bytes(heap, found->page);
		if (heap->debug_level != 0)
			kslab_debug_walk(heap, found->page, index, &bytes);
	}
	end_look(heap, &look);
	difference->seen++;
	return difference->fn == NULL || difference->fn(difference->ctx, (void *)object, bytes);
}

/* Slots of word i that are live and were not at the mark. Of a large block: bit 0. */
static kslab_word new_in_word(const struct difference *difference, struct cursor *cursor,
			      const struct found *found, unsigned i)
{
	struct kslab_heap *heap = difference->mark->heap;
	kslab_word old = word_at_mark(&heap->map, cursor, found, i), live = 0, stayed;
	struct look look;

	if (look_again(heap, found, &look))
		live = found->size != 0 ? live_word(heap, found->page, i) : 1;
	for (stayed = live & old; heap->debug_level >= 2 && stayed != 0; stayed &= stayed - 1)
		if (is_after(sequence_of(heap, found->page,
					 i * KSLAB_WORD_BITS + kslab_ctz(stayed)),
			     difference->mark->sequence))
			old &= ~(stayed & (0 - stayed));
	end_look(heap, &look);
	return live & ~old;
}

static bool compare_page(struct difference *difference, struct cursor *cursor,
			 const struct found *found)
{
	unsigned words = found->size != 0 ? found->words : 1;

	for (unsigned i = 0; i < words; i++) {
		kslab_word new = new_in_word(difference, cursor, found, i);

		for (; new != 0; new &= new - 1)
			if (!tell(difference, found, i * KSLAB_WORD_BITS + kslab_ctz(new)))
				return false;
	}
	return true;
}

size_t kslab_diff(const struct kslab_mark *mark, bool (*fn)(void *ctx, void *object, size_t bytes),
		  void *ctx)
{
	struct difference difference = { mark, fn, ctx, 0 };
	struct cursor cursor = { mark->blocks, 0 };
	struct kslab_heap *heap = mark->heap;
	struct place place = { false, 0 };
	struct found found;

	if (heap == NULL || heap->state != KSLAB_HEAP_READY)
		return 0;
	while (next_page(heap, &place, &found))
		if (!compare_page(&difference, &cursor, &found))
			break;
	return difference.seen;
}

enum kslab_reason kslab_mark(struct kslab_mark *mark)
{
	return kslab_heap_mark(&kslab_default_heap, mark);
}
