/* SPDX-License-Identifier: MIT
 * test_page_map.c - owns the tests of the way from an address to its descriptor.
 *
 * No address here is ever dereferenced: the map only does arithmetic on them.
 */
#include "testing.h"

#include "page_map.h"

#define GRAIN ((uintptr_t)1 << KSLAB_CFG_GRAIN_SHIFT)
#define SPAN ((uintptr_t)1 << KSLAB_CFG_LEAF_SHIFT)

static struct kslab_page_map map;
static struct kslab_page *leaves[4][KSLAB_LEAF_ENTRIES];
static struct kslab_page a, b;
static uintptr_t base;

static void begin(void)
{
	/* The second window of the address space; on 32 bit there is but one. */
	base = (uintptr_t)KSLAB_WINDOW_BYTES;
	memset(&map, 0, sizeof(map));
	memset(leaves, 0x5a, sizeof(leaves));
	kslab_page_map_init(&map, base, NULL, 0);
}

/* The addresses round every bound: of grains, leaves, the window, the address space. */
static size_t bounds(uintptr_t out[128])
{
	const uintptr_t at[] = { base,
				 base + GRAIN,
				 base + 5 * GRAIN,
				 base + SPAN,
				 base + 2 * SPAN,
				 base + (uintptr_t)(KSLAB_WINDOW_BYTES - 1) + 1,
				 0,
				 GRAIN,
				 (uintptr_t)1 << (8 * sizeof(uintptr_t) - 1),
				 base + 7 * SPAN - GRAIN };
	size_t n = 0;

	for (size_t i = 0; i < TESTING_COUNT(at); i++) {
		for (unsigned d = 0; d < 3; d++) {
			out[n++] = at[i] + d - 1;
			out[n++] = at[i] + GRAIN - d;
		}
	}
	return n;
}

static bool is_inside(uintptr_t address)
{
	return address - base <= (uintptr_t)(KSLAB_WINDOW_BYTES - 1);
}

static void test_an_unknown_address_leads_to_nobody(void **state)
{
	uintptr_t addresses[128];
	size_t n;

	(void)state;
	begin();
	n = bounds(addresses);
	for (size_t i = 0; i < n; i++)
		assert_ptr_equal(kslab_page_map_find(&map, addresses[i]), &kslab_page_nobody);
	/* With a leaf, too, until something is set. */
	kslab_page_map_add_leaf(&map, base, leaves[0]);
	kslab_page_map_add_leaf(&map, base + 7 * SPAN, leaves[1]);
	for (size_t i = 0; i < n; i++)
		assert_ptr_equal(kslab_page_map_find(&map, addresses[i]), &kslab_page_nobody);
}

/* Every address of the range leads to the page, the ones next to it do not. */
static void check_range(uintptr_t start, size_t bytes, const struct kslab_page *page)
{
	for (uintptr_t at = start; at - start < bytes; at += GRAIN) {
		assert_ptr_equal(kslab_page_map_find(&map, at), page);
		assert_ptr_equal(kslab_page_map_find(&map, at + 1), page);
		assert_ptr_equal(kslab_page_map_find(&map, at + GRAIN - 1), page);
	}
	assert_ptr_not_equal(kslab_page_map_find(&map, start - 1), page);
	assert_ptr_not_equal(kslab_page_map_find(&map, start + bytes), page);
}

static void test_every_range_leads_exactly_to_its_page(void **state)
{
	(void)state;
	begin();
	for (unsigned i = 0; i < 3; i++)
		kslab_page_map_add_leaf(&map, base + i * SPAN + 12345, leaves[i]);
	for (size_t first = 0; first < 3 * KSLAB_LEAF_ENTRIES; first += 37) {
		for (size_t grains = 1; first + grains <= 3 * KSLAB_LEAF_ENTRIES;
		     grains = grains * 3 + 1) {
			uintptr_t start = base + first * GRAIN;

			kslab_page_map_set(&map, start, grains * GRAIN, &a);
			check_range(start, grains * GRAIN, &a);
			assert_false(kslab_page_map_is_free(&map, start, grains * GRAIN));
			assert_false(kslab_page_map_is_free(&map, start - 1, 2));
			assert_true(kslab_page_map_is_free(&map, start + grains * GRAIN, 1));
			assert_true(first == 0 ||
				    kslab_page_map_is_free(&map, start - GRAIN, GRAIN));
			kslab_page_map_set(&map, start, grains * GRAIN, &kslab_page_released);
			check_range(start, grains * GRAIN, &kslab_page_released);
			assert_true(kslab_page_map_is_free(&map, start, grains * GRAIN));
			kslab_page_map_set(&map, start, grains * GRAIN, &kslab_page_nobody);
		}
	}
}

static void test_neighbours_are_told_apart(void **state)
{
	(void)state;
	begin();
	kslab_page_map_add_leaf(&map, base, leaves[0]);
	for (size_t i = 0; i < KSLAB_LEAF_ENTRIES; i++)
		kslab_page_map_set(&map, base + i * GRAIN, GRAIN, i % 2 != 0 ? &a : &b);
	for (size_t i = 0; i < KSLAB_LEAF_ENTRIES; i++)
		check_range(base + i * GRAIN, GRAIN, i % 2 != 0 ? &a : &b);
}

static void test_missing_leaves_are_named_from_the_front_one_by_one(void **state)
{
	uintptr_t missing;

	(void)state;
	begin();
	for (unsigned n = 0; n < 4; n++) {
		assert_true(
			kslab_page_map_lacks_leaf(&map, base + GRAIN, 4 * SPAN - GRAIN, &missing));
		assert_int_equal(missing, base + n * SPAN);
		assert_true(
			kslab_page_map_lacks_leaf(&map, base + n * SPAN + SPAN - 1, 1, &missing));
		kslab_page_map_add_leaf(&map, missing, leaves[n]);
		assert_false(kslab_page_map_lacks_leaf(&map, base, (n + 1) * SPAN, &missing));
		assert_true(kslab_page_map_lacks_leaf(&map, base, (n + 1) * SPAN + 1, &missing));
		assert_int_equal(missing, base + (n + 1) * SPAN);
	}
}

static void test_leaves_in_any_order_and_far_apart(void **state)
{
	/* the last leaf of the window */
	const uintptr_t far = (uintptr_t)(KSLAB_WINDOW_BYTES - SPAN);
	uintptr_t missing;

	(void)state;
	begin();
	kslab_page_map_add_leaf(&map, base + far, leaves[0]);
	kslab_page_map_set(&map, base + far + SPAN - GRAIN, GRAIN, &a);
	assert_ptr_equal(kslab_page_map_find(&map, base + far + SPAN - 1), &a);
	assert_ptr_equal(kslab_page_map_find(&map, base + far), &kslab_page_nobody);
	assert_ptr_equal(kslab_page_map_find(&map, base), &kslab_page_nobody);
	assert_true(kslab_page_map_lacks_leaf(&map, base + 3 * SPAN, 1, &missing));
	kslab_page_map_add_leaf(&map, base + 3 * SPAN, leaves[1]);
	kslab_page_map_set(&map, base + 3 * SPAN, SPAN, &b);
	check_range(base + 3 * SPAN, SPAN, &b);
	assert_ptr_equal(kslab_page_map_find(&map, base + far + SPAN - 1), &a);
}

static void test_the_window_covers_what_lies_in_it_and_nothing_else(void **state)
{
	uintptr_t addresses[128];
	static const size_t lengths[] = { 1, 2, 4096, 65536 };
	size_t n;

	(void)state;
	begin();
	n = bounds(addresses);
	for (size_t i = 0; i < n; i++) {
		assert_false(kslab_page_map_covers(&map, addresses[i], 0));
		for (size_t l = 0; l < TESTING_COUNT(lengths); l++) {
			uintptr_t last = addresses[i] + (lengths[l] - 1);
			bool wanted =
				last >= addresses[i] && is_inside(addresses[i]) && is_inside(last);

			if (kslab_page_map_covers(&map, addresses[i], lengths[l]) != wanted)
				fail_msg("%#zx + %zu: %d", (size_t)addresses[i], lengths[l],
					 !wanted);
		}
		assert_false(kslab_page_map_covers(&map, addresses[i], SIZE_MAX) &&
			     addresses[i] > 1);
	}
}

/*
 * A heap that began on a static array of the kernel's image, and now gets its memory from
 * elsewhere.
 */
static void test_a_window_can_step_aside_once_and_keeps_its_entries(void **state)
{
	uintptr_t second;

	(void)state;
	if (sizeof(void *) == 4)
		skip(); /* the window is the whole address space */
	begin();
	assert_false(
		kslab_page_map_can_step_aside(&map, 1, 0)); /* nothing in it yet: it just moves */
	kslab_page_map_add_leaf(&map, base + 5 * SPAN, leaves[0]);
	kslab_page_map_set(&map, base + 5 * SPAN + 3 * GRAIN, 2 * GRAIN, &a);
	assert_true(kslab_page_map_can_step_aside(&map, 1, 0));
	kslab_page_map_step_aside(&map, 1, 0);
	second = (uintptr_t)(16 * KSLAB_WINDOW_BYTES);
	kslab_page_map_init(&map, second, NULL, 0);
	kslab_page_map_join_side(&map);
	/* The old entries are found, as before; the new window is empty. */
	check_range(base + 5 * SPAN + 3 * GRAIN, 2 * GRAIN, &a);
	assert_ptr_equal(kslab_page_map_find(&map, base + 4 * SPAN), &kslab_page_nobody);
	assert_ptr_equal(kslab_page_map_find(&map, second + 5 * SPAN + 3 * GRAIN),
			 &kslab_page_nobody);
	assert_true(kslab_page_map_covers(&map, base + 5 * SPAN, SPAN));
	assert_false(kslab_page_map_covers(&map, base + 4 * SPAN, SPAN));
	assert_true(kslab_page_map_covers(&map, second, GRAIN));
	kslab_page_map_add_leaf(&map, second, leaves[1]);
	kslab_page_map_set(&map, second, GRAIN, &b);
	check_range(second, GRAIN, &b);
	kslab_page_map_set(&map, base + 5 * SPAN + 3 * GRAIN, GRAIN, &kslab_page_released);
	assert_ptr_equal(kslab_page_map_find(&map, base + 5 * SPAN + 3 * GRAIN),
			 &kslab_page_released);
	assert_ptr_equal(kslab_page_map_find(&map, base + 5 * SPAN + 4 * GRAIN), &a);
	/* Once only. */
	assert_false(kslab_page_map_can_step_aside(&map, 1, 0));
}

/* Where the new window overlaps the side window both ways lead to one leaf. */
static void test_an_overlapping_side_window_shares_its_leaves(void **state)
{
	uintptr_t old, inner;

	(void)state;
	begin();
	if (sizeof(void *) == 4) {
		skip(); /* one window is all there is */
		return;
	}
	old = base + (KSLAB_CFG_TOP_ENTRIES - 2) * SPAN;
	kslab_page_map_add_leaf(&map, old, leaves[0]);
	kslab_page_map_set(&map, old + 3 * GRAIN, GRAIN, &a);
	kslab_page_map_step_aside(&map, 1, 0);
	/* The new window begins in the middle of the side window. */
	base = old - SPAN;
	kslab_page_map_init(&map, base, NULL, 0);
	kslab_page_map_join_side(&map);
	assert_ptr_equal(kslab_page_map_find(&map, old + 3 * GRAIN), &a);
	assert_true(kslab_page_map_top_index(&map, old) < map.limit);
	/* Through the window, and seen through the side. */
	kslab_page_map_set(&map, old + 4 * GRAIN, GRAIN, &b);
	inner = map.side[0];
	assert_ptr_equal(*kslab_page_map_entry(inner, old + 4 * GRAIN), &b);
	assert_ptr_equal(*kslab_page_map_entry(map.top[1], old + 4 * GRAIN), &b);
	assert_false(kslab_page_map_is_free(&map, old, SPAN));
}

/* The promise: at most 0.3 % of the memory that is managed, the table at the top aside. */
static void test_leaves_cost_at_most_three_thousandths(void **state)
{
	(void)state;
	assert_true(KSLAB_LEAF_BYTES * 1000 <= 3 * SPAN);
	assert_true(sizeof(map) <= 64 * 1024);
	assert_true(KSLAB_WINDOW_BYTES >= (uint64_t)4 << 30);
}

static void test_the_four_nobodies_belong_to_no_owner(void **state)
{
	const struct kslab_page *none[] = { &kslab_page_nobody, &kslab_page_released,
					    &kslab_page_metadata, &kslab_page_under_way };

	(void)state;
	for (size_t i = 0; i < TESTING_COUNT(none); i++) {
		assert_int_equal(none[i]->owner & ~KSLAB_TAG_MASK, 0);
		assert_true(none[i]->owner != 0); /* 0 is the key of a busy zone */
		assert_int_equal(none[i]->slots, 0);
		assert_true(kslab_page_is_none(none[i]));
	}
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(test_an_unknown_address_leads_to_nobody),
		cmocka_unit_test(test_every_range_leads_exactly_to_its_page),
		cmocka_unit_test(test_neighbours_are_told_apart),
		cmocka_unit_test(test_missing_leaves_are_named_from_the_front_one_by_one),
		cmocka_unit_test(test_leaves_in_any_order_and_far_apart),
		cmocka_unit_test(test_the_window_covers_what_lies_in_it_and_nothing_else),
		cmocka_unit_test(test_a_window_can_step_aside_once_and_keeps_its_entries),
		cmocka_unit_test(test_an_overlapping_side_window_shares_its_leaves),
		cmocka_unit_test(test_leaves_cost_at_most_three_thousandths),
		cmocka_unit_test(test_the_four_nobodies_belong_to_no_owner),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
