/* SPDX-License-Identifier: MIT
 * page_map.c - owns the changes to the page map; see page_map.h.
 * Rank: 2.
 */
#include "page_map.h"

/* Owner 1 (the tag FULL without an owner) equals no key, idle or busy. */
struct kslab_page kslab_page_nobody = { .owner = KSLAB_TAG_FULL };
struct kslab_page kslab_page_released = { .owner = KSLAB_TAG_FULL };
struct kslab_page kslab_page_metadata = { .owner = KSLAB_TAG_FULL };

/* What top entries without a leaf point at, biased for each. */
static struct kslab_page *nobody_leaf[KSLAB_LEAF_ENTRIES];

static uintptr_t biased(const struct kslab_page_map *map, size_t top, struct kslab_page **leaf)
{
	uintptr_t first = map->base + ((uintptr_t)top << KSLAB_CFG_LEAF_SHIFT);

	return (uintptr_t)leaf - (first >> KSLAB_CFG_GRAIN_SHIFT) * sizeof(struct kslab_page *);
}

void kslab_page_map_init(struct kslab_page_map *map, uintptr_t base)
{
	map->base = base;
	for (size_t i = 0; i < KSLAB_LEAF_ENTRIES; i++)
		KSLAB_STORE_RELAXED(&nobody_leaf[i], &kslab_page_nobody);
	for (size_t top = 0; top < KSLAB_CFG_TOP_ENTRIES; top++)
		KSLAB_STORE_RELAXED(&map->top[top], biased(map, top, nobody_leaf));
	map->limit = KSLAB_CFG_TOP_ENTRIES;
}

bool kslab_page_map_covers(const struct kslab_page_map *map, uintptr_t start, size_t bytes)
{
	uint64_t offset = start - map->base;

	return start >= map->base && bytes != 0 && start + (bytes - 1) >= start && offset < KSLAB_WINDOW_BYTES &&
	       bytes <= KSLAB_WINDOW_BYTES - offset;
}

static bool has_leaf(const struct kslab_page_map *map, size_t top)
{
	return KSLAB_LOAD_ACQUIRE(&map->top[top]) != biased(map, top, nobody_leaf);
}

bool kslab_page_map_lacks_leaf(const struct kslab_page_map *map, uintptr_t start, size_t bytes,
			       uintptr_t *address)
{
	size_t top = kslab_page_map_top_index(map, start);
	size_t last = kslab_page_map_top_index(map, start + (bytes - 1));

	for (; top <= last; top++) {
		if (!has_leaf(map, top)) {
			*address = map->base + ((uintptr_t)top << KSLAB_CFG_LEAF_SHIFT);
			return true;
		}
	}
	return false;
}

void kslab_page_map_add_leaf(struct kslab_page_map *map, uintptr_t address, void *mem)
{
	size_t top = kslab_page_map_top_index(map, address);
	struct kslab_page **leaf = mem;

	for (size_t i = 0; i < KSLAB_LEAF_ENTRIES; i++)
		leaf[i] = &kslab_page_nobody;
	/* The leaf's entries before the leaf: pairs with the dependent loads of a look-up. */
	KSLAB_STORE_RELEASE(&map->top[top], biased(map, top, leaf));
}

static struct kslab_page **entry_of(const struct kslab_page_map *map, uintptr_t address)
{
	return kslab_page_map_entry(KSLAB_LOAD_RELAXED(&map->top[kslab_page_map_top_index(map, address)]), address);
}

void kslab_page_map_set(struct kslab_page_map *map, uintptr_t start, size_t bytes, struct kslab_page *page)
{
	for (uintptr_t a = start; a - start < bytes; a += (uintptr_t)1 << KSLAB_CFG_GRAIN_SHIFT)
		KSLAB_STORE_RELEASE(entry_of(map, a), page);
}

bool kslab_page_map_is_free(const struct kslab_page_map *map, uintptr_t start, size_t bytes)
{
	for (uintptr_t a = start; a - start < bytes; a += (uintptr_t)1 << KSLAB_CFG_GRAIN_SHIFT) {
		const struct kslab_page *page = kslab_page_map_find(map, a);

		if (page != &kslab_page_nobody && page != &kslab_page_released)
			return false;
	}
	return true;
}
