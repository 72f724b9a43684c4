/* SPDX-License-Identifier: MIT
 * bitfield.c - owns trees of bits; see bitfield.h.
 * Rank: 1.  Runs anywhere; the caller serialises.
 */
#include "bitfield.h"
#include "compiler.h"

const kslab_word kslab_zero_word;

#ifdef KSLAB_DEBRUIJN
#if UINTPTR_MAX > 0xffffffffu
const uint8_t kslab_debruijn[64] = {
	0,  1,	48, 2,	57, 49, 28, 3,	61, 58, 50, 42, 38, 29, 17, 4,	62, 55, 59, 36, 53, 51,
	43, 22, 45, 39, 33, 30, 24, 18, 12, 5,	63, 47, 56, 27, 60, 41, 37, 16, 54, 35, 52, 21,
	44, 32, 23, 11, 46, 26, 40, 15, 34, 20, 31, 10, 25, 14, 19, 9,	13, 8,	7,  6,
};
#else
const uint8_t kslab_debruijn[32] = {
	0,  1,	28, 2,	29, 14, 24, 3, 30, 22, 20, 15, 25, 17, 4,  8,
	31, 27, 13, 23, 21, 19, 16, 7, 26, 12, 18, 6,  11, 5,  10, 9,
};
#endif
#endif

static size_t words_of(size_t bits)
{
	return (bits + KSLAB_WORD_BITS - 1) / KSLAB_WORD_BITS;
}

size_t kslab_bittree_words(size_t bits)
{
	size_t total = 0;

	do {
		bits = words_of(bits);
		total += bits;
	} while (bits > 1);
	return total;
}

void kslab_bittree_raise(kslab_word *tree, size_t bits, size_t i)
{
	while (bits > KSLAB_WORD_BITS) {
		kslab_word *word;
		bool had;

		bits = words_of(bits);
		tree += bits;
		word = &tree[i / KSLAB_WORD_BITS];
		had = *word != 0;
		*word |= (kslab_word)1 << (i % KSLAB_WORD_BITS);
		if (had)
			return;
		i /= KSLAB_WORD_BITS;
	}
}

void kslab_bittree_lower(kslab_word *tree, size_t bits, size_t i)
{
	while (bits > KSLAB_WORD_BITS) {
		kslab_word *word;

		bits = words_of(bits);
		tree += bits;
		word = &tree[i / KSLAB_WORD_BITS];
		*word &= ~((kslab_word)1 << (i % KSLAB_WORD_BITS));
		if (*word != 0)
			return;
		i /= KSLAB_WORD_BITS;
	}
}

/* Bits of word i that lie in [first, first + n). */
static kslab_word range_mask(size_t i, size_t first, size_t n)
{
	kslab_word mask = ~(kslab_word)0;
	size_t start = i * KSLAB_WORD_BITS;

	if (first > start)
		mask &= ~(kslab_word)0 << (first - start);
	if (first + n < start + KSLAB_WORD_BITS)
		mask &= ~(~(kslab_word)0 << (first + n - start));
	return mask;
}

void kslab_bittree_set_range(kslab_word *tree, size_t bits, size_t first, size_t n)
{
	for (size_t i = first / KSLAB_WORD_BITS; i * KSLAB_WORD_BITS < first + n; i++) {
		bool had = tree[i] != 0;

		tree[i] |= range_mask(i, first, n);
		if (!had)
			kslab_bittree_raise(tree, bits, i);
	}
}

size_t kslab_bittree_clear_range(kslab_word *tree, size_t bits, size_t first, size_t n)
{
	size_t cleared = 0;

	for (size_t i = first / KSLAB_WORD_BITS; i * KSLAB_WORD_BITS < first + n; i++) {
		kslab_word gone = tree[i] & range_mask(i, first, n);

		if (gone == 0)
			continue;
		tree[i] &= ~gone;
		cleared += kslab_popcount(gone);
		if (tree[i] == 0)
			kslab_bittree_lower(tree, bits, i);
	}
	return cleared;
}

size_t kslab_bittree_first(const kslab_word *tree, size_t bits)
{
	const kslab_word *level[KSLAB_BITTREE_LEVELS + 4];
	size_t words = words_of(bits), i = 0;
	unsigned top = 0;

	level[0] = tree;
	while (words > 1) {
		level[top + 1] = level[top] + words;
		top++;
		words = words_of(words);
	}
	if (*level[top] == 0)
		return KSLAB_BITTREE_NONE;
	for (;; top--) {
		i = i * KSLAB_WORD_BITS + kslab_ctz(level[top][i]);
		if (top == 0)
			return i;
	}
}
