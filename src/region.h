/* SPDX-License-Identifier: MIT
 * region.h - owns page runs of plain memory: a page source over base and length.
 * Rank: 2.  Runs: under the heap lock. Every operation is O(log pages) per power-of-two piece of a
 * run. Source: buddy system (Knowlton 1965), kept in bitmaps so that free memory is never touched.
 *
 *     | metadata: bit trees | page 0 | page 1 | ...                    | rest |
 *     start                 base                                              end
 *
 * A bit of order k stands for a free block of 2^k pages at a multiple of 2^k pages from address 0.
 * A run of any length is served: the power-of-two tail goes back at once. The lowest address of the
 * smallest order that fits is taken, so memory stays packed at the low end.
 */
#ifndef KSLAB_REGION_H
#define KSLAB_REGION_H

#include <kslab/heap.h>

/*
 * Set up over [mem, mem + bytes). Return: false: less than two pages behind the metadata. Memory
 * untouched then.
 */
bool kslab_region_init(struct kslab_region *region, uintptr_t mem, size_t bytes,
		       unsigned page_shift, bool track_dirty);

bool kslab_region_contains(const struct kslab_region *region, uintptr_t address);

/*
 * A run of `pages`, aligned to align_pages (power of two) pages. Return: its address, or 0.
 * *zeroed: every page of it reads as zero (only with dirty tracking).
 */
uintptr_t kslab_region_alloc(struct kslab_region *region, unsigned page_shift, size_t pages,
			     size_t align_pages, bool *zeroed);

/* Give a run, or any part of one, back. dirty: its contents are not zero. */
void kslab_region_free(struct kslab_region *region, unsigned page_shift, uintptr_t address,
		       size_t pages, bool dirty);

/* Take exactly these pages. Return: false if one of them is not free; nothing changed then. */
bool kslab_region_extend(struct kslab_region *region, unsigned page_shift, uintptr_t address,
			 size_t pages, bool *zeroed);

/* Take a free run with dirty pages out, for purging. Return: its address and length, or 0. */
uintptr_t kslab_region_take_dirty(struct kslab_region *region, unsigned page_shift, size_t *pages);

#endif
