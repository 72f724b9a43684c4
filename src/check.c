/* SPDX-License-Identifier: MIT
 * check.c - owns the judgement of a whole heap: lists, counts, states, bits, map; and the walk over
 * live objects. Rank: 6.  Runs on a quiet heap; reads only.
 */
#include "chunk_tree.h"
#include "debug.h"
#include "heap.h"
#include "page_list.h"

struct checking {
	struct kslab_heap *heap;
	struct kslab_check_result result;
};

static void wrong(struct checking *checking, const char *what, const struct kslab_page *page)
{
	if (checking->result.errors++ != 0)
		return;
	checking->result.what = what;
	checking->result.descriptor = page;
	checking->result.page = page != NULL ? (const void *)page->data : NULL;
}

/* Debug level 1: redzones of live objects, poison of free ones. */
static void check_contents(struct checking *checking, const struct kslab_page *page)
{
	const char *what;

	for (uint32_t i = 0; i < page->slots; i++) {
		size_t offset = kslab_debug_inspect(checking->heap, page, i, &what);

		if (offset == SIZE_MAX)
			continue;
		wrong(checking, what, page);
		if (checking->result.errors > 1)
			continue;
		checking->result.object =
			(const void *)(page->data + (uintptr_t)i * page->sc->size);
		checking->result.offset = offset;
	}
}

static void check_large_contents(struct checking *checking, const struct kslab_page *page)
{
	size_t offset = kslab_debug_large_inspect(checking->heap, page);

	if (offset == SIZE_MAX)
		return;
	wrong(checking, "a large block, or the redzone behind it, was overwritten", page);
	if (checking->result.errors > 1)
		return;
	checking->result.object = (const void *)page->data;
	checking->result.offset = offset;
}

/* Every grain of a page, and no other, leads to its descriptor. */
static void check_map(struct checking *checking, const struct kslab_page *page, uintptr_t address,
		      size_t bytes)
{
	const size_t grain = (size_t)1 << KSLAB_CFG_GRAIN_SHIFT;

	for (uintptr_t a = address; a - address < bytes; a += grain) {
		if (kslab_page_map_find(&checking->heap->map, a) != page) {
			wrong(checking, "the map does not lead to the page's descriptor", page);
			return;
		}
	}
	if (kslab_page_map_find(&checking->heap->map, address - 1) == page ||
	    kslab_page_map_find(&checking->heap->map, address + bytes) == page)
		wrong(checking, "the map leads to a page from outside it", page);
}

static void check_page(void *ctx, const struct kslab_page *page)
{
	struct checking *checking = ctx;
	uint32_t live = kslab_debug_live(checking->heap, page);
	size_t bytes = (size_t)page->pages << checking->heap->page_shift;

	if ((size_t)page->slots * page->sc->size > bytes ||
	    (page->data & (checking->heap->page_bytes - 1)) != 0)
		wrong(checking, "slots of a page reach past its end", page);
	check_map(checking, page, page->data, bytes);
	if (checking->heap->debug_level != 0 && checking->result.errors == 0)
		check_contents(checking, page);
	checking->result.object_pages++;
	checking->result.live_objects += live;
	checking->result.free_objects += page->slots - live;
}

struct run_sum {
	size_t run;
};

static void add_run(void *ctx, const struct kslab_page *page)
{
	struct run_sum *sum = ctx;

	if (page->state == KSLAB_PAGE_EMPTY)
		sum->run += page->pages;
}

static void check_zone(void *ctx, struct kslab_zone *zone)
{
	struct checking *checking = ctx;
	struct run_sum empty = { 0 };
	const struct kslab_page *where;
	struct kslab_sc *sc = NULL;
	size_t spare_run = 0, pages = 0;
	uint32_t spares = 0;
	const char *mail;

	for (unsigned i = 0; i < KSLAB_SPARE_BLOCKS && zone->spare[i] != NULL; i++) {
		spares++;
		spare_run += zone->spare[i]->slots;
		if (zone->spare[i]->state != KSLAB_PAGE_LARGE ||
		    zone->spare[i]->owner == kslab_large_tag(checking->heap))
			wrong(checking, "a spare block is live, or none", zone->spare[i]);
	}
	if (spare_run != zone->spare_run || spares != zone->spares)
		wrong(checking, "count of spare pages of a zone is wrong", NULL);
	if (zone->heap != checking->heap)
		wrong(checking, "a zone belongs to another heap", NULL);
	while ((sc = kslab_zone_next_sc(zone, sc)) != NULL) {
		const char *what = kslab_sc_verify(&zone->owner, sc, &where);

		if (what != NULL)
			wrong(checking, what, where);
		else
			kslab_sc_each(sc, check_page, checking);
		kslab_sc_each(sc, add_run, &empty);
		pages += sc->pages;
	}
	mail = kslab_sc_verify_mail(&zone->owner, pages + checking->heap->fenced_pages, &where);
	if (mail != NULL)
		wrong(checking, mail, where);
	if (empty.run != zone->owner.empty_run)
		wrong(checking, "count of empty pages of a zone is wrong", NULL);
}

static void check_large(struct checking *checking)
{
	struct kslab_heap *heap = checking->heap;
	const struct kslab_page *page = heap->large.head;
	size_t blocks = 0, live = 0, pages = 0;

	for (; page != NULL; page = kslab_page_list_after(&heap->large, page)) {
		if (!kslab_page_list_is_sound(page) || blocks > heap->large_blocks) {
			wrong(checking, "links of the large blocks are broken", page);
			return;
		}
		if (page->state != KSLAB_PAGE_LARGE)
			wrong(checking, "a page in the list of large blocks is none", page);
		check_map(checking, page, page->bits[0].avail,
			  page->bits[0].freed << heap->page_shift);
		if (heap->debug_level != 0 && page->state == KSLAB_PAGE_LARGE)
			check_large_contents(checking, page);
		blocks++;
		live += page->owner == kslab_large_tag(heap);
		pages += page->bits[0].freed;
	}
	if (blocks != heap->large_blocks || pages != heap->large_pages)
		wrong(checking, "counts of large blocks are wrong", NULL);
	checking->result.large_blocks = live;
}

static void wrong_run(struct checking *checking, const char *what, const struct kslab_chunk *where)
{
	wrong(checking, what, NULL);
	if (checking->result.errors == 1 && where != NULL)
		checking->result.page = (const void *)where->address;
}

/* A tree of runs, none of which the map may know. */
static void check_tree(struct checking *checking, const struct kslab_chunk_tree *tree)
{
	struct kslab_heap *heap = checking->heap;
	const struct kslab_chunk *chunk;
	const char *what = kslab_chunk_tree_verify(tree, heap->page_shift, &chunk);

	if (what != NULL) {
		wrong_run(checking, what, chunk);
		return;
	}
	for (chunk = kslab_chunk_tree_floor(tree, UINTPTR_MAX); chunk != NULL;
	     chunk = kslab_chunk_tree_floor(tree, chunk->address - 1))
		if (!kslab_page_map_is_free(&heap->map, chunk->address,
					    chunk->pages << heap->page_shift))
			wrong_run(checking, "the map knows a run of pages that it should not",
				  chunk);
}

/* Metadata, and what is set aside. */
static void check_chunks(struct checking *checking)
{
	const struct kslab_heap *heap = checking->heap;
	const struct kslab_chunk *chunk = heap->meta.chunks;
	size_t pages = 0, unmarked = 0;

	check_tree(checking, &heap->meta.unmarked);
	check_tree(checking, &heap->emergency);
	check_tree(checking, &heap->under_way);
	for (; chunk != NULL && pages <= heap->meta.pages; chunk = chunk->next) {
		const struct kslab_chunk *found =
			kslab_chunk_tree_floor(&heap->meta.unmarked, chunk->address);

		pages += chunk->pages;
		unmarked += !chunk->marked;
		if (chunk->marked ? kslab_page_map_find(&heap->map, chunk->address) !=
					    &kslab_page_metadata
				  : found != chunk)
			wrong_run(checking, "metadata is neither in the map nor in its tree",
				  chunk);
	}
	if (pages != heap->meta.pages || unmarked != heap->meta.unmarked.count ||
	    heap->emergency.count > heap->emergency_target)
		wrong(checking, "counts of metadata, or of pages set aside, are wrong", NULL);
}

bool kslab_heap_check(struct kslab_heap *heap, struct kslab_check_result *out)
{
	struct checking checking = { .heap = heap };

	if (heap->state == KSLAB_HEAP_READY) {
		kslab_heap_each_zone(heap, check_zone, &checking);
		check_large(&checking);
		check_chunks(&checking);
		if (heap->pages_in_use < heap->meta.pages + heap->large_pages)
			wrong(&checking, "fewer pages in use than metadata and large blocks take",
			      NULL);
	}
	if (out != NULL)
		*out = checking.result;
	return checking.result.errors == 0;
}

/* ---- walk ------------------------------------------------------------------------------------ */

struct walk {
	struct kslab_heap *heap;
	bool (*fn)(void *ctx, void *object, size_t bytes);
	void *ctx;
	size_t seen;
	bool stopped;
};

static void walk_page(void *ctx, const struct kslab_page *page)
{
	struct walk *walk = ctx;

	for (uint32_t i = 0; i < page->slots && !walk->stopped; i++) {
		const struct kslab_bits *bits = &page->bits[i / KSLAB_WORD_BITS];
		size_t bytes = page->sc->size;

		if ((bits->avail | bits->freed | KSLAB_LOAD_RELAXED(&bits->remote)) & kslab_bit(i))
			continue;
		if (walk->heap->debug_level != 0 && !kslab_debug_walk(walk->heap, page, i, &bytes))
			continue;
		walk->seen++;
		walk->stopped =
			!walk->fn(walk->ctx, (void *)(page->data + (uintptr_t)i * page->sc->size),
				  bytes);
	}
}

static void walk_zone(void *ctx, struct kslab_zone *zone)
{
	struct walk *walk = ctx;
	struct kslab_sc *sc = NULL;

	while (!walk->stopped && (sc = kslab_zone_next_sc(zone, sc)) != NULL)
		kslab_sc_each(sc, walk_page, walk);
}

size_t kslab_heap_walk(struct kslab_heap *heap, bool (*fn)(void *ctx, void *object, size_t bytes),
		       void *ctx)
{
	struct walk walk = { heap, fn, ctx, 0, false };
	const struct kslab_page *page;
	size_t bytes;

	if (heap->state != KSLAB_HEAP_READY)
		return 0;
	kslab_heap_each_zone(heap, walk_zone, &walk);
	for (page = heap->large.head; page != NULL && !walk.stopped;
	     page = kslab_page_list_after(&heap->large, page)) {
		if (KSLAB_LOAD_RELAXED(&page->owner) != kslab_large_tag(heap))
			continue; /* freed, a zone's spare */
		walk.seen++;
		bytes = kslab_large_bytes(heap, page);
		if (heap->debug_level != 0)
			kslab_debug_walk(heap, page, 0, &bytes);
		walk.stopped = !fn(ctx, (void *)page->data, bytes);
	}
	return walk.seen;
}

bool kslab_check(struct kslab_check_result *out)
{
	return kslab_heap_check(&kslab_default_heap, out);
}

size_t kslab_walk(bool (*fn)(void *ctx, void *object, size_t bytes), void *ctx)
{
	return kslab_heap_walk(&kslab_default_heap, fn, ctx);
}
