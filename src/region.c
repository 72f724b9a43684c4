/* SPDX-License-Identifier: MIT
 * region.c - owns page runs of plain memory; see region.h.
 * Rank: 2.  Runs: under the heap lock.
 */
#include "region.h"
#include "bitfield.h"
#include "compiler.h"

/* Pieces that are purged in one go: at most 2^10 pages. */
#define PURGE_ORDER 10u

/* Bits of order k: blocks are numbered from the one that holds `base`. */
static size_t order_bits(const struct kslab_region *region, unsigned shift, unsigned order)
{
	uintptr_t first = region->base >> shift, last = first + region->pages - 1;

	return (last >> order) - (first >> order) + 1;
}

static size_t block_bit(const struct kslab_region *region, unsigned shift, uintptr_t frame,
			unsigned order)
{
	return (frame >> order) - ((region->base >> shift) >> order);
}

static bool is_block_inside(const struct kslab_region *region, unsigned shift, uintptr_t frame,
			    unsigned order)
{
	uintptr_t first = region->base >> shift;

	return frame >= first && frame + ((uintptr_t)1 << order) <= first + region->pages;
}

static void clear_block(struct kslab_region *region, unsigned shift, uintptr_t frame,
			unsigned order)
{
	kslab_bittree_clear(region->order[order], order_bits(region, shift, order),
			    block_bit(region, shift, frame, order));
}

/*
 * A run becomes free, order by order: where its first or last block is one half of a pair, it takes
 * the other half along if that is free, or stays behind; what lies between are blocks of the next
 * order.
 */
static void put_run(struct kslab_region *region, unsigned shift, uintptr_t frame, size_t pages)
{
	uintptr_t first = region->base >> shift, last = first + region->pages - 1;
	uintptr_t from = frame, to = frame + pages;

	for (unsigned order = 0; from < to; order++) {
		kslab_word *tree = region->order[order];
		size_t bits = last - first + 1;

		if (order + 1 == region->orders) {
			while (from < to)
				kslab_bittree_set(tree, bits, from++ - first);
			break;
		}
		if (from & 1) {
			if (from > first && kslab_bittree_test(tree, from - 1 - first))
				kslab_bittree_clear(tree, bits, --from - first);
			else
				kslab_bittree_set(tree, bits, from++ - first);
		}
		if (to & 1 && from < to) {
			if (to <= last && kslab_bittree_test(tree, to - first))
				kslab_bittree_clear(tree, bits, to++ - first);
			else
				kslab_bittree_set(tree, bits, --to - first);
		}
		from >>= 1;
		to >>= 1;
		first >>= 1;
		last >>= 1;
	}
}

/* The free block that holds a frame. Return: false: the frame is in use. */
static bool find_block(const struct kslab_region *region, unsigned shift, uintptr_t frame,
		       uintptr_t *start, unsigned *order)
{
	for (unsigned k = 0; k < region->orders; k++) {
		uintptr_t block = frame >> k << k;

		if (is_block_inside(region, shift, block, k) &&
		    kslab_bittree_test(region->order[k], block_bit(region, shift, block, k))) {
			*start = block;
			*order = k;
			return true;
		}
	}
	return false;
}

/* Pages leave the free state: forget that they are dirty. Return: true if none was. */
static bool clean_run(struct kslab_region *region, unsigned shift, uintptr_t frame, size_t pages)
{
	size_t cleared;

	if (region->dirty == NULL)
		return false;
	cleared = kslab_bittree_clear_range(region->dirty, region->pages,
					    frame - (region->base >> shift), pages);
	region->dirty_pages -= cleared;
	return cleared == 0;
}

bool kslab_region_init(struct kslab_region *region, uintptr_t mem, size_t bytes, unsigned shift,
		       bool track_dirty)
{
	const size_t page = (size_t)1 << shift;
	uintptr_t end = (mem + bytes) & ~(uintptr_t)(page - 1);
	uintptr_t trees = (mem + sizeof(kslab_word) - 1) & ~(uintptr_t)(sizeof(kslab_word) - 1);
	size_t words = 0, most;

	if (end <= trees || end - trees < 2 * page)
		return false;
	/* Bitmaps for all the memory, a little more than what is left beside them. */
	most = (end - trees) >> shift;
	region->orders = kslab_log2(most) + 1;
	if (region->orders > KSLAB_REGION_ORDERS)
		region->orders = KSLAB_REGION_ORDERS;
	for (unsigned k = 0; k < region->orders; k++)
		words += kslab_bittree_words((most >> k) + 2);
	if (track_dirty)
		words += kslab_bittree_words(most);
	region->base = (trees + words * sizeof(kslab_word) + page - 1) & ~(uintptr_t)(page - 1);
	if (region->base >= end)
		return false;
	region->start = mem;
	region->end = mem + bytes;
	region->pages = (end - region->base) >> shift;
	region->free_pages = region->pages;
	region->dirty_pages = 0;
	/* a fresh mapping reads as zero, and touching all of it would cost memory */
	if (!track_dirty)
		memset((void *)trees, 0, words * sizeof(kslab_word));
	for (unsigned k = 0; k < region->orders; k++) {
		region->order[k] = (kslab_word *)trees;
		trees += kslab_bittree_words((most >> k) + 2) * sizeof(kslab_word);
	}
	region->dirty = track_dirty ? (kslab_word *)trees : NULL;
	put_run(region, shift, region->base >> shift, region->pages);
	return true;
}

bool kslab_region_contains(const struct kslab_region *region, uintptr_t address)
{
	return address - region->start < region->end - region->start;
}

uintptr_t kslab_region_alloc(struct kslab_region *region, unsigned shift, size_t pages,
			     size_t align_pages, bool *zeroed)
{
	unsigned order;

	if (pages == 0 || pages > region->free_pages || align_pages > region->pages)
		return 0;
	order = kslab_log2(pages);
	if ((size_t)1 << order < pages)
		order++;
	if (order < kslab_log2(align_pages))
		order = kslab_log2(align_pages);
	for (unsigned k = order; k < region->orders; k++) {
		size_t bit = kslab_bittree_first(region->order[k], order_bits(region, shift, k));
		uintptr_t frame;

		if (bit == KSLAB_BITTREE_NONE)
			continue;
		frame = (((region->base >> shift) >> k) + bit) << k;
		clear_block(region, shift, frame, k);
		put_run(region, shift, frame + pages, ((size_t)1 << k) - pages);
		region->free_pages -= pages;
		*zeroed = clean_run(region, shift, frame, pages);
		return frame << shift;
	}
	return 0;
}

void kslab_region_free(struct kslab_region *region, unsigned shift, uintptr_t address, size_t pages,
		       bool dirty)
{
	uintptr_t frame = address >> shift;

	if (region->dirty != NULL && dirty) {
		kslab_bittree_set_range(region->dirty, region->pages,
					frame - (region->base >> shift), pages);
		region->dirty_pages += pages;
	}
	region->free_pages += pages;
	put_run(region, shift, frame, pages);
}

bool kslab_region_extend(struct kslab_region *region, unsigned shift, uintptr_t address,
			 size_t pages, bool *zeroed)
{
	uintptr_t frame = address >> shift, end = frame + pages, block;
	unsigned order;

	if (address < region->base || pages > region->free_pages ||
	    end > (region->base >> shift) + region->pages)
		return false;
	for (uintptr_t f = frame; f < end; f = block + ((uintptr_t)1 << order))
		if (!find_block(region, shift, f, &block, &order))
			return false;
	for (uintptr_t f = frame; f < end; f = block + ((uintptr_t)1 << order)) {
		find_block(region, shift, f, &block, &order);
		clear_block(region, shift, block, order);
		if (block < f)
			put_run(region, shift, block, f - block);
		if (block + ((uintptr_t)1 << order) > end)
			put_run(region, shift, end, block + ((uintptr_t)1 << order) - end);
	}
	region->free_pages -= pages;
	*zeroed = clean_run(region, shift, frame, pages);
	return true;
}

uintptr_t kslab_region_take_dirty(struct kslab_region *region, unsigned shift, size_t *pages)
{
	size_t bit;
	uintptr_t frame, block, piece;
	unsigned order;

	if (region->dirty == NULL)
		return 0;
	bit = kslab_bittree_first(region->dirty, region->pages);
	if (bit == KSLAB_BITTREE_NONE)
		return 0;
	frame = (region->base >> shift) + bit;
	if (!find_block(region, shift, frame, &block, &order))
		return 0;
	clear_block(region, shift, block, order);
	piece = block;
	if (order > PURGE_ORDER) {
		piece = frame >> PURGE_ORDER << PURGE_ORDER;
		put_run(region, shift, block, piece - block);
		put_run(region, shift, piece + ((uintptr_t)1 << PURGE_ORDER),
			block + ((uintptr_t)1 << order) - piece - ((uintptr_t)1 << PURGE_ORDER));
		order = PURGE_ORDER;
	}
	*pages = (size_t)1 << order;
	region->free_pages -= *pages;
	clean_run(region, shift, piece, *pages);
	return piece << shift;
}
