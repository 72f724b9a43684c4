/* SPDX-License-Identifier: MIT
 * test_bitfield.c - owns the tests of bit trees and of the bit arithmetic in compiler.h.
 */
#include "testing.h"

#include "bitfield.h"
#include "compiler.h"

#define BITS_MAX 70000u

static kslab_word tree[BITS_MAX / 16];
static unsigned char model[BITS_MAX];

/*
 * The tree is right: every bit, the lowest one, and every upper level says what the one below it
 * holds.
 */
static void check_tree(size_t bits)
{
	const kslab_word *level = tree;
	size_t n = bits, first = KSLAB_BITTREE_NONE, words;

	for (size_t i = bits; i-- > 0;) {
		if (kslab_bittree_test(tree, i) != (model[i] != 0))
			fail_msg("bit %zu of %zu is wrong", i, bits);
		if (model[i])
			first = i;
	}
	assert_true(kslab_bittree_first(tree, bits) == first);
	for (; n > KSLAB_WORD_BITS; n = words) {
		words = (n + KSLAB_WORD_BITS - 1) / KSLAB_WORD_BITS;
		for (size_t i = 0; i < words; i++)
			if (kslab_bittree_test(level + words, i) != (level[i] != 0))
				fail_msg("level above word %zu of %zu bits is wrong", i, bits);
		level += words;
	}
}

static void reset(size_t bits)
{
	memset(tree, 0, kslab_bittree_words(bits) * sizeof(tree[0]));
	tree[kslab_bittree_words(bits)] = 0x5a; /* the word behind it stays as it is */
	memset(model, 0, bits);
}

static void set(size_t bits, size_t bit)
{
	kslab_bittree_set(tree, bits, bit);
	model[bit] = 1;
}

static void clear(size_t bits, size_t bit)
{
	kslab_bittree_clear(tree, bits, bit);
	model[bit] = 0;
}

static void test_words_are_the_levels_one_behind_the_other(void **state)
{
	(void)state;
	assert_int_equal(kslab_bittree_words(1), 1);
	assert_int_equal(kslab_bittree_words(KSLAB_WORD_BITS), 1);
	assert_int_equal(kslab_bittree_words(KSLAB_WORD_BITS + 1), 2 + 1);
	assert_int_equal(kslab_bittree_words(KSLAB_WORD_BITS * KSLAB_WORD_BITS),
			 KSLAB_WORD_BITS + 1);
	assert_int_equal(kslab_bittree_words(KSLAB_WORD_BITS * KSLAB_WORD_BITS + 1),
			 KSLAB_WORD_BITS + 1 + 2 + 1);
}

static void test_every_subset_of_a_small_tree_is_kept_exactly(void **state)
{
	(void)state;
	for (size_t bits = 1; bits <= 10; bits++) {
		for (unsigned subset = 0; subset < 1u << bits; subset++) {
			reset(bits);
			for (size_t i = 0; i < bits; i++)
				if (subset >> i & 1)
					set(bits, i);
			check_tree(bits);
			for (size_t i = 0; i < bits; i++) {
				clear(bits, i);
				check_tree(bits);
			}
		}
	}
	assert_int_equal(tree[1], 0x5a);
}

static void test_every_single_bit_is_found_and_cleared_across_level_bounds(void **state)
{
	static const size_t sizes[] = {
		31,   32,   33,	  63,	64,   65,   127,   128,	  129,
		1023, 1024, 1025, 4095, 4096, 4097, 32768, 32769, BITS_MAX
	};

	(void)state;
	for (size_t s = 0; s < TESTING_COUNT(sizes); s++) {
		size_t bits = sizes[s], step = bits < 2000 ? 1 : 61;

		reset(bits);
		for (size_t i = 0; i < bits; i += step) {
			kslab_bittree_set(tree, bits, i);
			if (kslab_bittree_first(tree, bits) != i)
				fail_msg("bit %zu of %zu is not found", i, bits);
			kslab_bittree_clear(tree, bits, i);
			assert_true(kslab_bittree_first(tree, bits) == KSLAB_BITTREE_NONE);
		}
		check_tree(bits);
		assert_int_equal(tree[kslab_bittree_words(bits)], 0x5a);
	}
}

static void test_setting_twice_and_clearing_twice_change_nothing(void **state)
{
	const size_t bits = 200;

	(void)state;
	reset(bits);
	for (size_t i = 0; i < bits; i += 7) {
		set(bits, i);
		set(bits, i);
		check_tree(bits);
	}
	for (size_t i = 0; i < bits; i++) {
		clear(bits, i);
		clear(bits, i);
		check_tree(bits);
	}
}

static void test_random_operations_agree_with_a_model(void **state)
{
	static const size_t sizes[] = { 1, 5, 64, 65, 300, 4097, BITS_MAX };
	struct testing_random random = testing_seed("bitfield", 1);

	(void)state;
	for (size_t s = 0; s < TESTING_COUNT(sizes); s++) {
		size_t bits = sizes[s];

		reset(bits);
		for (unsigned n = 0; n < 4000; n++) {
			size_t bit = testing_random_below(&random, bits);
			size_t first;

			/* Thin, so that words become empty and full again. */
			if (testing_random_below(&random, 3) == 0) {
				set(bits, bit);
			} else {
				clear(bits, bit);
				first = kslab_bittree_first(tree, bits);
				if (first != KSLAB_BITTREE_NONE)
					clear(bits, first);
			}
			if (n % 500 == 0 || bits < 400)
				check_tree(bits);
		}
		check_tree(bits);
	}
}

static void test_ctz_popcount_and_log2_of_every_bit_position(void **state)
{
	struct testing_random random = testing_seed("bit counting", 2);

	(void)state;
	for (unsigned i = 0; i < KSLAB_WORD_BITS; i++) {
		kslab_word bit = (kslab_word)1 << i;

		assert_int_equal(kslab_ctz(bit), i);
		assert_int_equal(kslab_ctz(~(kslab_word)0 << i), i);
		assert_int_equal(kslab_popcount(bit), 1);
		assert_int_equal(kslab_popcount(bit - 1), i);
		assert_int_equal(kslab_log2(bit), i);
		assert_int_equal(kslab_log2(bit | (bit - 1)), i);
		assert_true(kslab_is_power_of_two(bit));
		assert_int_equal(kslab_is_power_of_two(bit + 1), i == 0);
	}
	assert_int_equal(kslab_popcount(~(kslab_word)0), KSLAB_WORD_BITS);
	assert_int_equal(kslab_popcount(0), 0);
	assert_false(kslab_is_power_of_two(0));
	for (unsigned n = 0; n < 100000; n++) {
		kslab_word w = (kslab_word)testing_random_next(&random);
		unsigned count = 0;

		for (kslab_word rest = w; rest != 0; rest &= rest - 1)
			count++;
		if (kslab_popcount(w) != count)
			fail_msg("popcount of %llx", (unsigned long long)w);
	}
}

static void test_rotate_right_brings_every_bit_round(void **state)
{
	(void)state;
	for (unsigned bit = 0; bit < 32; bit++)
		for (unsigned by = 0; by < 32; by++)
			assert_int_equal(kslab_rotate_right(1u << bit, by),
					 1u << ((bit - by) & 31));
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(test_words_are_the_levels_one_behind_the_other),
		cmocka_unit_test(test_every_subset_of_a_small_tree_is_kept_exactly),
		cmocka_unit_test(test_every_single_bit_is_found_and_cleared_across_level_bounds),
		cmocka_unit_test(test_setting_twice_and_clearing_twice_change_nothing),
		cmocka_unit_test(test_random_operations_agree_with_a_model),
		cmocka_unit_test(test_ctz_popcount_and_log2_of_every_bit_position),
		cmocka_unit_test(test_rotate_right_brings_every_bit_round),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
