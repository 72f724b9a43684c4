/* SPDX-License-Identifier: MIT
 * page_map.h - owns the way from any address to its descriptor, or to nothing.
 * Rank: 2.  Runs: look-ups anywhere; changes by whoever owns the pages, leaves under the heap lock.
 *
 *     address - base                    top[limit]            leaf: one entry per grain (4 KiB)
 *     [ top index | leaf index | offset ]   |                     |
 *           |            |                  v                     v
 *           +------------|-----------> biased leaf pointer --> descriptor
 *                        +-- (address >> GRAIN_SHIFT) indexes the biased pointer directly
 *
 * Two dependent loads, no mask, one compare for everything outside. An entry is never NULL: memory
 * that was never ours leads to kslab_page_nobody, memory that went back to kslab_page_released,
 * metadata to kslab_page_metadata, and what nothing was made of yet to kslab_page_under_way. None of
 * the four has an owner that a key could equal.
 */
#ifndef KSLAB_PAGE_MAP_H
#define KSLAB_PAGE_MAP_H

#include <kslab/heap.h>

#include "compiler.h"

#define KSLAB_LEAF_ENTRIES ((size_t)1 << (KSLAB_CFG_LEAF_SHIFT - KSLAB_CFG_GRAIN_SHIFT))
#define KSLAB_LEAF_BYTES (KSLAB_LEAF_ENTRIES * sizeof(struct kslab_page *))
#define KSLAB_WINDOW_BYTES ((uint64_t)KSLAB_CFG_TOP_ENTRIES << KSLAB_CFG_LEAF_SHIFT)

extern struct kslab_page kslab_page_nobody, kslab_page_released, kslab_page_metadata,
	kslab_page_under_way;

/* True of these four: no descriptor of a page or a block. */
KSLAB_INLINE bool kslab_page_is_none(const struct kslab_page *page)
{
	return page == &kslab_page_nobody || page == &kslab_page_released ||
	       page == &kslab_page_metadata || page == &kslab_page_under_way;
}

KSLAB_INLINE size_t kslab_page_map_top_index(const struct kslab_page_map *map, uintptr_t address)
{
	return (address - map->base) >> KSLAB_CFG_LEAF_SHIFT;
}

KSLAB_INLINE struct kslab_page **kslab_page_map_entry(uintptr_t biased, uintptr_t address)
{
	return (struct kslab_page **)(biased + (address >> KSLAB_CFG_GRAIN_SHIFT) *
						       sizeof(struct kslab_page *));
}

/*
 * The entry of an address whose top index is below the limit; for the fast path of a free. In a
 * flat map it may be NULL.
 */
KSLAB_INLINE struct kslab_page **kslab_page_map_quick(const struct kslab_page_map *map, size_t top,
						      uintptr_t address)
{
	return kslab_page_map_entry(KSLAB_CFG_FLAT_MAP ? map->flat : map->top[top], address);
}

/* Where the leaf of an address hangs, in the window or the side window; NULL: outside. */
KSLAB_INLINE const uintptr_t *kslab_page_map_top(const struct kslab_page_map *map,
						 uintptr_t address)
{
	size_t top = kslab_page_map_top_index(map, address);

	if (KSLAB_LIKELY(top < map->limit))
		return &map->top[top];
	top = (address - map->side_base) >> KSLAB_CFG_LEAF_SHIFT;
	return top < KSLAB_SIDE_ENTRIES && map->side[0] != 0 ? &map->side[top] : NULL;
}

/*
 * The descriptor of any address; never NULL. Plain loads: whoever holds a pointer of the heap got
 * it by a synchronisation after the entries were written, and a wild address finds one valid entry
 * or another. The fast path of a free looks into the window only; objects of the side window go the
 * slow way.
 */
KSLAB_INLINE struct kslab_page *kslab_page_map_find(const struct kslab_page_map *map,
						    uintptr_t address)
{
	const uintptr_t *top = kslab_page_map_top(map, address);

	return KSLAB_LIKELY(top != NULL) ? *kslab_page_map_entry(*top, address)
					 : &kslab_page_nobody;
}

/* The same for a walk, which holds no pointer: the entry may change meanwhile. */
KSLAB_INLINE struct kslab_page *kslab_page_map_look(const struct kslab_page_map *map,
						    uintptr_t address)
{
	const uintptr_t *top = kslab_page_map_top(map, address);

	/* Pairs with the release of kslab_page_map_set: the descriptor is what it was made. */
	return top != NULL ? KSLAB_LOAD_ACQUIRE(kslab_page_map_entry(*top, address))
			   : &kslab_page_nobody;
}

/*
 * Leaves of a window that begins at base: as configured, what memory there is for them in a flat map,
 * and no more than up to the end of the address space.
 */
size_t kslab_page_map_leaves(uintptr_t base, size_t flat_bytes);

/* flat: memory for all leaves, or NULL. */
void kslab_page_map_init(struct kslab_page_map *map, uintptr_t base, void *flat, size_t bytes);

/*
 * The window turned out to lie in the wrong place: make what it holds the side window, so that it
 * can be placed again. Possible once, and if its leaves, and what lies from low to high (none: low >
 * high), span no more than the side window. While only one CPU is online, under the heap lock.
 */
bool kslab_page_map_can_step_aside(const struct kslab_page_map *map, uintptr_t low, uintptr_t high);
void kslab_page_map_step_aside(struct kslab_page_map *map, uintptr_t low, uintptr_t high);

/* Where the new window overlaps the side window, both lead to the same leaves. */
void kslab_page_map_join_side(struct kslab_page_map *map);

/* Bytes of the window. */
uint64_t kslab_page_map_bytes(const struct kslab_page_map *map);

/* True if [start, start + bytes) lies inside the window, or inside the side window. */
bool kslab_page_map_covers(const struct kslab_page_map *map, uintptr_t start, size_t bytes);

/* First address in the range that has no leaf yet; false if all have. */
bool kslab_page_map_lacks_leaf(const struct kslab_page_map *map, uintptr_t start, size_t bytes,
			       uintptr_t *address);

/*
 * Give KSLAB_LEAF_BYTES of memory as the leaf of an address; a flat map has its own. Under the heap
 * lock.
 */
void kslab_page_map_add_leaf(struct kslab_page_map *map, uintptr_t address, void *leaf);

/* Point a range, whose leaves exist, at a descriptor. */
void kslab_page_map_set(struct kslab_page_map *map, uintptr_t start, size_t bytes,
			struct kslab_page *page);

/* True if no grain of the range belongs to a page, a large block or metadata, or is under way. */
bool kslab_page_map_is_free(const struct kslab_page_map *map, uintptr_t start, size_t bytes);

#endif
