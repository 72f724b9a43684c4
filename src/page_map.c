/* SPDX-License-Identifier: MIT
 * page_map.c - owns the changes to the page map; see page_map.h.
 * Rank: 2.
 */
#include "page_map.h"

#define LEAF_SPAN ((uintptr_t)1 << KSLAB_CFG_LEAF_SHIFT)

/* Owner 1 (the tag FULL without an owner) equals no key, idle or busy. */
struct kslab_page kslab_page_nobody = { .owner = KSLAB_TAG_FULL };
struct kslab_page kslab_page_released = { .owner = KSLAB_TAG_FULL };
struct kslab_page kslab_page_metadata = { .owner = KSLAB_TAG_FULL };
struct kslab_page kslab_page_under_way = { .owner = KSLAB_TAG_FULL };

/* What top entries without a leaf point at, biased for each. */
static struct kslab_page *nobody_leaf[KSLAB_LEAF_ENTRIES];

/* The top entry for a leaf that begins at the leaf boundary below an address. */
static uintptr_t biased(uintptr_t address, struct kslab_page **leaf)
{
	uintptr_t first = address & ~(LEAF_SPAN - 1);

	return (uintptr_t)leaf - (first >> KSLAB_CFG_GRAIN_SHIFT) * sizeof(struct kslab_page *);
}

static uintptr_t *top_of(struct kslab_page_map *map, uintptr_t address)
{
	return (uintptr_t *)(uintptr_t)kslab_page_map_top(map, address);
}

size_t kslab_page_map_leaves(uintptr_t base, size_t flat_bytes)
{
	size_t leaves = KSLAB_CFG_TOP_ENTRIES, behind = (0 - base) >> KSLAB_CFG_LEAF_SHIFT;

	if (base != 0 && behind < leaves)
		leaves = behind;
	if (KSLAB_CFG_FLAT_MAP && flat_bytes / KSLAB_LEAF_BYTES < leaves)
		leaves = flat_bytes / KSLAB_LEAF_BYTES;
	return leaves;
}

void kslab_page_map_init(struct kslab_page_map *map, uintptr_t base, void *flat, size_t bytes)
{
	map->base = base;
	map->flat = biased(base, flat);
	for (size_t i = 0; i < KSLAB_LEAF_ENTRIES; i++)
		KSLAB_STORE_RELAXED(&nobody_leaf[i], &kslab_page_nobody);
	for (size_t top = 0; top < KSLAB_CFG_TOP_ENTRIES; top++)
		KSLAB_STORE_RELAXED(&map->top[top],
				    biased(base + (uintptr_t)top * LEAF_SPAN, nobody_leaf));
	map->limit = kslab_page_map_leaves(base, bytes);
}

/*
 * First and last top entry that has a leaf or is to lie in the side window; false: they are too far
 * apart for it, or it is taken.
 */
static bool fits_aside(const struct kslab_page_map *map, uintptr_t low, uintptr_t high,
		       size_t *first, size_t *last)
{
	*first = low <= high ? kslab_page_map_top_index(map, low) : map->limit;
	*last = low <= high ? kslab_page_map_top_index(map, high) : 0;
	for (size_t top = 0; top < map->limit; top++) {
		if (map->top[top] == biased(map->base + (uintptr_t)top * LEAF_SPAN, nobody_leaf))
			continue;
		*first = top < *first ? top : *first;
		*last = top > *last ? top : *last;
	}
	return !KSLAB_CFG_FLAT_MAP && map->side[0] == 0 && *first <= *last &&
	       *last - *first < KSLAB_SIDE_ENTRIES;
}

bool kslab_page_map_can_step_aside(const struct kslab_page_map *map, uintptr_t low, uintptr_t high)
{
	size_t first, last;

	return fits_aside(map, low, high, &first, &last);
}

void kslab_page_map_step_aside(struct kslab_page_map *map, uintptr_t low, uintptr_t high)
{
	size_t first, last;

	if (!fits_aside(map, low, high, &first, &last))
		return;
	map->side_base = map->base + (uintptr_t)first * LEAF_SPAN;
	for (size_t i = 0; i < KSLAB_SIDE_ENTRIES; i++)
		map->side[i] = first + i <= last ? map->top[first + i]
						 : biased(map->side_base + (uintptr_t)i * LEAF_SPAN,
							  nobody_leaf);
}

void kslab_page_map_join_side(struct kslab_page_map *map)
{
	for (size_t i = 0; i < KSLAB_SIDE_ENTRIES; i++) {
		size_t top =
			kslab_page_map_top_index(map, map->side_base + (uintptr_t)i * LEAF_SPAN);

		if (top < map->limit)
			KSLAB_STORE_RELEASE(&map->top[top], map->side[i]);
	}
}

uint64_t kslab_page_map_bytes(const struct kslab_page_map *map)
{
	return (uint64_t)map->limit << KSLAB_CFG_LEAF_SHIFT;
}

bool kslab_page_map_covers(const struct kslab_page_map *map, uintptr_t start, size_t bytes)
{
	uint64_t offset = start - map->base, window = kslab_page_map_bytes(map);

	if (bytes == 0 || start + (bytes - 1) < start)
		return false;
	if (start >= map->base && offset < window && bytes <= window - offset)
		return true;
	offset = start - map->side_base;
	return map->side[0] != 0 && offset < KSLAB_SIDE_ENTRIES * (uint64_t)LEAF_SPAN &&
	       bytes <= KSLAB_SIDE_ENTRIES * (uint64_t)LEAF_SPAN - offset;
}

bool kslab_page_map_lacks_leaf(const struct kslab_page_map *map, uintptr_t start, size_t bytes,
			       uintptr_t *address)
{
	uintptr_t last = (start + (bytes - 1)) & ~(LEAF_SPAN - 1);

	for (uintptr_t a = start & ~(LEAF_SPAN - 1);; a += LEAF_SPAN) {
		const uintptr_t *top = kslab_page_map_top(map, a);

		if (top == NULL || KSLAB_LOAD_ACQUIRE(top) == biased(a, nobody_leaf)) {
			*address = a;
			return true;
		}
		if (a == last)
			return false;
	}
}

void kslab_page_map_add_leaf(struct kslab_page_map *map, uintptr_t address, void *mem)
{
	struct kslab_page **leaf = mem;

	if (KSLAB_CFG_FLAT_MAP)
		leaf = kslab_page_map_entry(map->flat, address & ~(LEAF_SPAN - 1));
	for (size_t i = 0; i < KSLAB_LEAF_ENTRIES; i++)
		leaf[i] = &kslab_page_nobody;
	/* The leaf's entries before the leaf: pairs with the dependent loads of a look-up. */
	KSLAB_STORE_RELEASE(top_of(map, address), biased(address, leaf));
}

void kslab_page_map_set(struct kslab_page_map *map, uintptr_t start, size_t bytes,
			struct kslab_page *page)
{
	while (bytes != 0) {
		struct kslab_page **entry =
			kslab_page_map_entry(KSLAB_LOAD_RELAXED(top_of(map, start)), start);
		size_t span = LEAF_SPAN - (start & (LEAF_SPAN - 1)), n;

		if (span > bytes)
			span = bytes;
		for (n = span >> KSLAB_CFG_GRAIN_SHIFT; n >= 4; n -= 4, entry += 4) {
			KSLAB_STORE_RELEASE(&entry[0], page);
			KSLAB_STORE_RELEASE(&entry[1], page);
			KSLAB_STORE_RELEASE(&entry[2], page);
			KSLAB_STORE_RELEASE(&entry[3], page);
		}
		for (; n != 0; n--)
			KSLAB_STORE_RELEASE(entry++, page);
		start += span;
		bytes -= span;
	}
}

bool kslab_page_map_is_free(const struct kslab_page_map *map, uintptr_t start, size_t bytes)
{
	const uintptr_t grain = (uintptr_t)1 << KSLAB_CFG_GRAIN_SHIFT;
	size_t span, n;

	/*
	 * Where there is no leaf, all of its span is free: a region may be far larger than what is
	 * in use.
	 */
	for (size_t done = 0; done < bytes; done += span) {
		uintptr_t a = start + done, leafless;
		struct kslab_page **entry;

		span = LEAF_SPAN - (a & (LEAF_SPAN - 1));
		if (span > bytes - done)
			span = bytes - done;
		if (kslab_page_map_lacks_leaf(map, a, 1, &leafless))
			continue;
		entry = kslab_page_map_entry(KSLAB_LOAD_RELAXED(kslab_page_map_top(map, a)), a);
		n = ((a & (grain - 1)) + span + grain - 1) >> KSLAB_CFG_GRAIN_SHIFT;
		for (; n != 0; n--, entry++) {
			const struct kslab_page *page = KSLAB_LOAD_RELAXED(entry);

			if (page != &kslab_page_nobody && page != &kslab_page_released)
				return false;
		}
	}
	return true;
}
