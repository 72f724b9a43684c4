/* SPDX-License-Identifier: MIT
 * heap_image.h - owns the picture of a whole heap, and the proof that a refused call left it bit
 * for bit as it was.
 * Rank: test helper.  Runs: one thread, on a quiet heap; may run inside a report hook.
 *
 * In the picture: struct kslab_heap, every page that the map knows (object pages with their
 * contents, large blocks, and metadata, which is where zones, descriptors and leaves lie), metadata
 * that the map does not know yet, the bit trees of regions, emergency pages, the four descriptors
 * that stand for no page, and the zone of CPUs that are not online. Left out, because a refusal is
 * allowed to write them: last_error, failures, slow_frees, lock_acquisitions and the lock's
 * tickets.
 */
#ifndef HEAP_IMAGE_H
#define HEAP_IMAGE_H

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "chunk_tree.h"
#include "heap.h"

#define HEAP_IMAGE_SKIPS (5 * KSLAB_CFG_CPUS * KSLAB_CFG_LEVELS + 8)

struct heap_image_piece {
	const unsigned char *from;
	unsigned char *copy;
	size_t bytes;
};

struct heap_image {
	struct kslab_heap *heap;
	struct heap_image_piece *pieces;
	size_t count, room;
	struct {
		const unsigned char *from;
		size_t bytes;
	} skips[HEAP_IMAGE_SKIPS];
	size_t skip_count;
};

static inline void heap_image_add(struct heap_image *image, const void *from, size_t bytes)
{
	struct heap_image_piece *piece;

	if (image->count == image->room) {
		image->room = image->room != 0 ? 2 * image->room : 64;
		image->pieces = realloc(image->pieces, image->room * sizeof(*piece));
		if (image->pieces == NULL)
			abort();
	}
	piece = &image->pieces[image->count++];
	piece->from = from;
	piece->bytes = bytes;
	piece->copy = malloc(bytes);
	if (piece->copy == NULL)
		abort();
	memcpy(piece->copy, from, bytes);
}

static inline void heap_image_skip(struct heap_image *image, const void *from, size_t bytes)
{
	if (image->skip_count == HEAP_IMAGE_SKIPS)
		abort();
	image->skips[image->skip_count].from = from;
	image->skips[image->skip_count++].bytes = bytes;
}

static inline void heap_image_skip_zone(void *ctx, struct kslab_zone *zone)
{
	struct heap_image *image = ctx;

	heap_image_skip(image, &zone->last_error, sizeof(zone->last_error));
	heap_image_skip(image, &zone->counters.failures, sizeof(zone->counters.failures));
	heap_image_skip(image, &zone->counters.slow_frees, sizeof(zone->counters.slow_frees));
}

static inline void heap_image_add_window(struct heap_image *image, const struct kslab_heap *heap,
					 uintptr_t base, const uintptr_t top[], size_t count)
{
	const size_t grain = (size_t)1 << KSLAB_CFG_GRAIN_SHIFT;
	const void *last = NULL;

	for (size_t k = 0; k < count; k++) {
		uintptr_t first = base + ((uintptr_t)k << KSLAB_CFG_LEAF_SHIFT);
		const void *leaf = kslab_page_map_entry(top[k], first);

		if (leaf == last)
			continue; /* only the leaf of nobody serves two entries */
		last = leaf;
		for (size_t i = 0; i < KSLAB_LEAF_ENTRIES; i++) {
			uintptr_t address = first + i * grain;
			const struct kslab_page *page = kslab_page_map_find(&heap->map, address);

			if (!kslab_page_is_none(page) || page == &kslab_page_metadata)
				heap_image_add(image, (const void *)address, grain);
		}
	}
}

static inline void heap_image_add_map(struct heap_image *image, const struct kslab_heap *heap)
{
	const struct kslab_page_map *map = &heap->map;

	if (heap->window_placed)
		heap_image_add_window(image, heap, map->base, map->top, map->limit);
	if (map->side[0] != 0)
		heap_image_add_window(image, heap, map->side_base, map->side, KSLAB_SIDE_ENTRIES);
}

/* Take the picture. MUST be released by heap_image_release. */
static inline void heap_image_take(struct heap_image *image, struct kslab_heap *heap)
{
	memset(image, 0, sizeof(*image));
	image->heap = heap;
	heap_image_add(image, heap, sizeof(*heap));
	heap_image_add(image, &kslab_page_nobody, sizeof(kslab_page_nobody));
	heap_image_add(image, &kslab_page_released, sizeof(kslab_page_released));
	heap_image_add(image, &kslab_page_metadata, sizeof(kslab_page_metadata));
	heap_image_add(image, &kslab_page_under_way, sizeof(kslab_page_under_way));
	heap_image_add(image, &kslab_zone_none, sizeof(kslab_zone_none));
	heap_image_skip(image, &heap->lock_acquisitions, sizeof(heap->lock_acquisitions));
	heap_image_skip(image, &heap->lock, sizeof(heap->lock));
	heap_image_skip(image, heap->tally.failed, sizeof(heap->tally.failed));
	heap_image_skip_zone(image, &kslab_zone_none);
	if (heap->state != KSLAB_HEAP_READY)
		return;
	heap_image_add_map(image, heap);
	for (const struct kslab_chunk *chunk = heap->meta.chunks; chunk != NULL;
	     chunk = chunk->next)
		if (!chunk->marked)
			heap_image_add(image, (const void *)chunk->address,
				       chunk->pages * heap->page_bytes);
	for (unsigned i = 0; i < heap->regions; i++)
		heap_image_add(image, (const void *)heap->region[i].start,
			       heap->region[i].base - heap->region[i].start);
	for (const struct kslab_chunk *page = kslab_chunk_tree_floor(&heap->emergency, UINTPTR_MAX);
	     page != NULL; page = kslab_chunk_tree_floor(&heap->emergency, page->address - 1))
		heap_image_add(image, page, heap->page_bytes);
	kslab_heap_each_zone(heap, heap_image_skip_zone, image);
}

static inline void heap_image_release(struct heap_image *image)
{
	for (size_t i = 0; i < image->count; i++)
		free(image->pieces[i].copy);
	free(image->pieces);
	memset(image, 0, sizeof(*image));
}

static inline bool heap_image_is_skipped(const struct heap_image *image, const unsigned char *at)
{
	for (size_t i = 0; i < image->skip_count; i++)
		if ((uintptr_t)at - (uintptr_t)image->skips[i].from < image->skips[i].bytes)
			return true;
	return false;
}

/*
 * Address of the first byte that differs from the picture, or NULL; says on standard error what it
 * is.
 */
static inline const void *heap_image_difference(const struct heap_image *image)
{
	for (size_t i = 0; i < image->count; i++) {
		const struct heap_image_piece *piece = &image->pieces[i];

		if (memcmp(piece->from, piece->copy, piece->bytes) == 0)
			continue;
		for (size_t k = 0; k < piece->bytes; k++) {
			if (piece->from[k] == piece->copy[k] ||
			    heap_image_is_skipped(image, piece->from + k))
				continue;
			fprintf(stderr,
				"heap image: byte %zu of %p (%zu bytes, %s): %02x, was %02x\n", k,
				(const void *)piece->from, piece->bytes,
				(const void *)piece->from == (const void *)image->heap
					? "struct kslab_heap"
					: "a page or metadata",
				piece->from[k], piece->copy[k]);
			return piece->from + k;
		}
	}
	return NULL;
}

/* The same, and the picture is released. True if nothing has changed. */
static inline bool heap_image_is_unchanged(struct heap_image *image)
{
	bool unchanged = heap_image_difference(image) == NULL;

	heap_image_release(image);
	return unchanged;
}

#endif
