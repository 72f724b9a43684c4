/* SPDX-License-Identifier: MIT
 * chunk_tree.c - owns the tree of page runs; see chunk_tree.h.
 * Rank: 2.  Runs: under the heap lock.
 */
#include "chunk_tree.h"
#include "compiler.h"

static bool has_children(const struct kslab_chunk *node)
{
	return node->child[0] != NULL || node->child[1] != NULL;
}

/* On which side of a bit an address lies. */
static unsigned side_of(uintptr_t address, unsigned bit)
{
	return (unsigned)(address >> bit) & 1;
}

bool kslab_chunk_tree_insert(struct kslab_chunk_tree *tree, struct kslab_chunk *chunk)
{
	struct kslab_chunk **link = &tree->root, *node, *below = NULL;
	unsigned bit = 0;

	while ((node = *link) != NULL) {
		if (node->address == chunk->address)
			return false;
		bit = kslab_log2(node->address ^ chunk->address);
		if (!has_children(node)) {
			node->bit = (uint8_t)bit;
		} else if (bit > node->bit) { /* outside: what is here goes below it */
			below = node;
			break;
		}
		link = &node->child[side_of(chunk->address, node->bit)];
	}
	chunk->child[0] = chunk->child[1] = NULL;
	if (below != NULL) {
		chunk->bit = (uint8_t)bit;
		chunk->child[side_of(below->address, bit)] = below;
	}
	*link = chunk;
	tree->count++;
	return true;
}

void kslab_chunk_tree_remove(struct kslab_chunk_tree *tree, struct kslab_chunk *chunk)
{
	struct kslab_chunk **link = &tree->root, **last, *leaf;

	while (*link != chunk)
		link = &(*link)->child[side_of(chunk->address, (*link)->bit)];
	/* Any leaf below can take its place. */
	for (last = link; has_children(*last);)
		last = &(*last)->child[(*last)->child[0] == NULL];
	leaf = *last;
	*last = NULL;
	if (leaf != chunk) {
		leaf->child[0] = chunk->child[0];
		leaf->child[1] = chunk->child[1];
		leaf->bit = chunk->bit;
		*link = leaf;
	}
	tree->count--;
}

/* The later one of a run that lies at the address or before it, and the best so far. */
static struct kslab_chunk *later(struct kslab_chunk *best, struct kslab_chunk *node,
				 uintptr_t address)
{
	return node->address <= address && (best == NULL || best->address < node->address) ? node
											   : best;
}

struct kslab_chunk *kslab_chunk_tree_floor(const struct kslab_chunk_tree *tree, uintptr_t address)
{
	struct kslab_chunk *best = NULL, *before = NULL, *node = tree->root;

	while (node != NULL) {
		best = later(best, node, address);
		if (!has_children(node))
			break;
		if ((node->address ^ address) >> node->bit > 1) { /* outside all that is below */
			if (node->address < address)
				before = node;
			break;
		}
		if (side_of(address, node->bit) == 1 && node->child[0] != NULL)
			before = node->child[0];
		node = node->child[side_of(address, node->bit)];
	}
	/* All below `before` lies before the address: the last of them. */
	for (; before != NULL; before = before->child[before->child[1] != NULL])
		best = later(best, before, address);
	return best;
}

bool kslab_chunk_tree_overlaps(const struct kslab_chunk_tree *tree, unsigned page_shift,
			       uintptr_t address, size_t bytes)
{
	/* Runs do not overlap, so none reaches further than the last one that begins in time. */
	const struct kslab_chunk *chunk =
		tree->root != NULL ? kslab_chunk_tree_floor(tree, address + (bytes - 1)) : NULL;

	return chunk != NULL &&
	       (chunk->address >= address || address - chunk->address < chunk->pages << page_shift);
}

/* What is wrong between a node and the child on one side; NULL: nothing. */
static const char *verify_edge(const struct kslab_chunk *node, unsigned side)
{
	const struct kslab_chunk *child = node->child[side];

	if ((child->address ^ node->address) >> node->bit > 1 ||
	    side_of(child->address, node->bit) != side)
		return "a run of pages hangs in the wrong place of its tree";
	if (has_children(child) && child->bit >= node->bit)
		return "the bits of a tree of page runs do not get smaller";
	return NULL;
}

/* Every edge is right, so that a way down has an end; and there are as many nodes as counted. */
static const char *verify_edges(const struct kslab_chunk_tree *tree,
				const struct kslab_chunk **where)
{
	const struct kslab_chunk *open[8 * sizeof(uintptr_t) + 1];
	const char *what = NULL;
	unsigned depth = 0;
	size_t seen = 0;

	if (tree->root != NULL)
		open[depth++] = tree->root;
	while (depth != 0 && what == NULL) {
		const struct kslab_chunk *node = *where = open[--depth];

		if (seen++ == tree->count)
			return "a tree of page runs holds more than it counts";
		if (has_children(node) && node->bit >= 8 * sizeof(uintptr_t))
			return "a tree of page runs branches at no bit";
		for (unsigned side = 0; side < 2 && what == NULL; side++) {
			if (node->child[side] == NULL)
				continue;
			what = verify_edge(node, side);
			open[depth++] = node->child[side];
		}
	}
	if (what == NULL && seen != tree->count)
		what = "a tree of page runs holds fewer than it counts";
	return what;
}

const char *kslab_chunk_tree_verify(const struct kslab_chunk_tree *tree, unsigned page_shift,
				    const struct kslab_chunk **where)
{
	const uintptr_t inside = ((uintptr_t)1 << page_shift) - 1;
	const struct kslab_chunk *node;
	const char *what;
	size_t seen = 0;

	*where = NULL;
	what = verify_edges(tree, where);
	if (what != NULL)
		return what;
	/* From the last one down; each ends before the next begins. */
	for (uintptr_t at = UINTPTR_MAX; (node = kslab_chunk_tree_floor(tree, at)) != NULL;
	     at = node->address - 1) {
		uintptr_t last = node->address + ((node->pages << page_shift) - 1);

		*where = node;
		if (node->pages == 0 || last < node->address || (node->address & inside) != 0)
			return "a run of pages has no such length or place";
		if (last > at)
			return "two runs of pages overlap";
		seen++;
		if (node->address == 0)
			break;
	}
	return seen == tree->count ? NULL : "a run of pages is not found in its tree";
}
