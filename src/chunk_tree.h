/* SPDX-License-Identifier: MIT
 * chunk_tree.h - owns sets of page runs by address, whose records are the nodes: it asks nobody for
 * memory, and nothing is balanced. Rank: 2.  Runs: under the heap lock. Source: digital search tree
 * (Coffman, Eve 1970), with bits that tell nothing apart left out.
 *
 *     every node is a run; one that has children tells them apart by a bit of their addresses:
 *
 *                    [ 0x5000, bit 14 ]
 *                   /                  \
 *        [ 0x1000, bit 13 ]          [ 0x7000 ]      all below a node agree with it above its bit
 *           /           \
 *      [ 0x0000 ]    [ 0x2000 ]
 *
 * Bits get smaller from a node to its children, so a way down is no longer than a page number has
 * bits: with pages of 4 KiB 53 nodes on a 64-bit machine, 21 on one of 32, whatever the addresses
 * are; about log2 of the runs as a rule. Every operation is one way down, or two.
 */
#ifndef KSLAB_CHUNK_TREE_H
#define KSLAB_CHUNK_TREE_H

#include <kslab/heap.h>

/*
 * Take a run in; its address and pages are set. Runs MUST not overlap. Return: false: one of this
 * address is in the set; nothing changed then.
 */
bool kslab_chunk_tree_insert(struct kslab_chunk_tree *tree, struct kslab_chunk *chunk);

/* Take a run out, which MUST be in the set. */
void kslab_chunk_tree_remove(struct kslab_chunk_tree *tree, struct kslab_chunk *chunk);

/* The last run that begins at the address or before it; NULL: there is none. */
struct kslab_chunk *kslab_chunk_tree_floor(const struct kslab_chunk_tree *tree, uintptr_t address);

/* True if a run of the set has a byte in [address, address + bytes). */
bool kslab_chunk_tree_overlaps(const struct kslab_chunk_tree *tree, unsigned page_shift,
			       uintptr_t address, size_t bytes);

/* Return: what contradicts the above, and *where; NULL: nothing. O(runs). */
const char *kslab_chunk_tree_verify(const struct kslab_chunk_tree *tree, unsigned page_shift,
				    const struct kslab_chunk **where);

#endif
