/* SPDX-License-Identifier: MIT
 * bitfield.h - owns trees of bits: find the lowest set bit of millions in a few steps.
 * Rank: 1.  Runs anywhere; the caller serialises.
 * Source: own; the idea is that of van Emde Boas trees with machine-word fan-out.
 *
 * Level 0 holds the bits. A bit of level k + 1 says that a word of level k is not zero; the last
 * level is one word. The levels lie behind one another:
 *
 *     [ level 0: ceil(n/64) words ][ level 1: ceil(./64) words ] ... [ 1 word ]
 */
#ifndef KSLAB_BITFIELD_H
#define KSLAB_BITFIELD_H

#include <kslab/object_page.h>

#include "compiler.h"

#define KSLAB_BITTREE_LEVELS 8
#define KSLAB_BITTREE_NONE ((size_t)-1)

/* Words that a tree of n bits takes. */
size_t kslab_bittree_words(size_t bits);

KSLAB_INLINE bool kslab_bittree_test(const kslab_word *tree, size_t bit)
{
	return (tree[bit / KSLAB_WORD_BITS] >> (bit % KSLAB_WORD_BITS)) & 1;
}

/* The levels above, after word `i` of level 0 became nonzero, or zero. */
void kslab_bittree_raise(kslab_word *tree, size_t bits, size_t i);
void kslab_bittree_lower(kslab_word *tree, size_t bits, size_t i);

KSLAB_INLINE void kslab_bittree_set(kslab_word *tree, size_t bits, size_t bit)
{
	size_t i = bit / KSLAB_WORD_BITS;
	kslab_word had = tree[i];

	tree[i] = had | (kslab_word)1 << (bit % KSLAB_WORD_BITS);
	if (had == 0)
		kslab_bittree_raise(tree, bits, i);
}

KSLAB_INLINE void kslab_bittree_clear(kslab_word *tree, size_t bits, size_t bit)
{
	size_t i = bit / KSLAB_WORD_BITS;

	tree[i] &= ~((kslab_word)1 << (bit % KSLAB_WORD_BITS));
	if (tree[i] == 0)
		kslab_bittree_lower(tree, bits, i);
}

/* The same for bits [first, first + n). Return of clear: how many were set. O(n / word). */
void kslab_bittree_set_range(kslab_word *tree, size_t bits, size_t first, size_t n);
size_t kslab_bittree_clear_range(kslab_word *tree, size_t bits, size_t first, size_t n);
/* Lowest set bit, or KSLAB_BITTREE_NONE. */
size_t kslab_bittree_first(const kslab_word *tree, size_t bits);

#endif
