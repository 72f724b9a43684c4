/* SPDX-License-Identifier: MIT
 * test_size_class.c - owns the tests of size <-> class, of object page lengths, and of a heap's
 * route table.
 */
#include "testing.h"

#include "heap.h"
#include "size_class.h"

static struct testing t;

static const size_t page_sizes[] = { 4096, 16384, 65536 };
static const size_t max_page_sizes[] = { 4096, 8192, 16384, 65536, 262144, 2097152 };

static void test_every_size_goes_to_the_smallest_class_that_holds_it(void **state)
{
	(void)state;
	assert_int_equal(kslab_class_of(0), 0);
	for (size_t n = 1; n <= KSLAB_CLASS_MAX_BYTES; n++) {
		unsigned cls = kslab_class_of(n);

		if (cls >= KSLAB_CLASSES || kslab_class_bytes(cls) < n ||
		    (cls != 0 && kslab_class_bytes(cls - 1) >= n))
			fail_msg("size %zu went to class %u", n, cls);
	}
	assert_int_equal(kslab_class_of(KSLAB_CLASS_MAX_BYTES), KSLAB_CLASSES - 1);
}

static void test_every_class_comes_back_from_its_own_size(void **state)
{
	size_t last = 0;

	(void)state;
	for (unsigned cls = 0; cls < KSLAB_CLASSES; cls++) {
		assert_int_equal(kslab_class_of(kslab_class_bytes(cls)), cls);
		assert_true(kslab_class_bytes(cls) > last);
		assert_int_equal(kslab_class_bytes(cls) % 8, 0);
		last = kslab_class_bytes(cls);
	}
	assert_int_equal(kslab_class_bytes(0), 8);
	assert_int_equal(last, KSLAB_CLASS_MAX_BYTES);
}

static void test_every_power_of_two_is_a_class(void **state)
{
	(void)state;
	for (size_t n = 8; n <= KSLAB_CLASS_MAX_BYTES; n *= 2)
		assert_int_equal(kslab_class_bytes(kslab_class_of(n)), n);
}

static void test_internal_waste_is_at_most_a_fifth_above_128_bytes(void **state)
{
	(void)state;
	for (size_t n = 129; n <= KSLAB_CLASS_MAX_BYTES; n++) {
		size_t slot = kslab_class_bytes(kslab_class_of(n));

		if ((slot - n) * 5 > slot)
			fail_msg("size %zu wastes %zu of %zu", n, slot - n, slot);
		if (n <= 2048 && (slot - n) * 100 > slot * 11 + 100)
			fail_msg("size %zu wastes %zu of %zu", n, slot - n, slot);
	}
	for (size_t n = 1; n <= 128; n++)
		assert_true(kslab_class_bytes(kslab_class_of(n)) - n < 8);
}

static bool is_wasteful(size_t bytes, size_t run)
{
	return run < bytes || run % bytes > run / 16;
}

static void test_object_page_lengths_follow_the_rule_for_every_class(void **state)
{
	(void)state;
	for (size_t p = 0; p < TESTING_COUNT(page_sizes); p++) {
		for (size_t m = 0; m < TESTING_COUNT(max_page_sizes); m++) {
			size_t page = page_sizes[p], max = max_page_sizes[m];

			if (max < page)
				continue;
			for (unsigned cls = 0; cls < KSLAB_CLASSES; cls++) {
				size_t bytes = kslab_class_bytes(cls), min_bytes, max_bytes;
				uint16_t min_run, max_run;

				kslab_class_runs(bytes, page, max, &min_run, &max_run);
				min_bytes = min_run * page;
				max_bytes = max_run * page;
				assert_true(min_run >= 1 && min_run <= max_run);
				assert_true((min_run & (min_run - 1)) == 0);
				assert_true((max_run & (max_run - 1)) == 0);
				assert_true(max_bytes <= max);
				/*
				 * The smallest with 16 slots and little waste, unless the limit
				 * forbids it.
				 */
				assert_true(min_bytes == max || (!is_wasteful(bytes, min_bytes) &&
								 min_bytes / bytes >= 16));
				assert_true(min_run == 1 || is_wasteful(bytes, min_bytes / 2) ||
					    min_bytes / 2 / bytes < 16);
				/*
				 * The longest of at most 512 slots, but never below the smallest.
				 */
				assert_true(max_bytes == min_bytes ||
					    max_bytes / bytes <= KSLAB_PAGE_SLOTS);
				assert_true(max_bytes == max ||
					    max_bytes * 2 / bytes > KSLAB_PAGE_SLOTS);
			}
		}
	}
}

static bool packs; /* the configuration in use */

/* Run bytes a slot of the class costs on its longest pages: numerator and denominator. */
static bool is_cheaper(const struct kslab_heap *heap, unsigned a, unsigned b)
{
	uint64_t run_a = (uint64_t)heap->max_run[a] * heap->page_bytes;
	uint64_t run_b = (uint64_t)heap->max_run[b] * heap->page_bytes;
	uint64_t slots_a = run_a / kslab_class_bytes(a), slots_b = run_b / kslab_class_bytes(b);

	return run_a * slots_b < run_b * slots_a;
}

/* The class for a size by definition: usable, holds it, and no larger one is as cheap. */
static unsigned expected_class(const struct kslab_heap *heap, size_t n)
{
	unsigned best = KSLAB_CLASSES;

	for (unsigned cls = KSLAB_CLASSES; cls-- > 0 && kslab_class_bytes(cls) >= n;) {
		size_t bytes = kslab_class_bytes(cls);

		if (bytes > heap->max_page_bytes ||
		    (bytes >= heap->min_align && bytes % heap->min_align))
			continue;
		/* Above a page: page aligned, unless packing was asked for. */
		if (bytes > heap->page_bytes && bytes % heap->page_bytes != 0 && !packs)
			continue;
		if (bytes > heap->page_bytes && bytes % heap->page_bytes && !heap->packs)
			continue; /* above a page, objects are page aligned */
		if (best == KSLAB_CLASSES || is_cheaper(heap, cls, best))
			best = cls;
	}
	return best;
}

/* Calls fn with a heap of every page size, limit and alignment, packing and not. */
static void with_every_heap(void (*fn)(void))
{
	for (size_t p = 0; p < TESTING_COUNT(page_sizes); p++) {
		for (size_t m = 0; m < TESTING_COUNT(max_page_sizes); m++) {
			for (unsigned way = 0; way < 4; way++) {
				struct kslab_config config = { .page_bytes = page_sizes[p],
							       .max_page_bytes = max_page_sizes[m],
							       .min_align = way & 1 ? 8 : 16,
							       .packs = (way & 2) != 0 };

				packs = config.packs;

				if (max_page_sizes[m] < page_sizes[p])
					continue;
				testing_begin_with(&t, &config, 16, true);
				fn();
				testing_end(&t);
			}
		}
	}
}

static void check_route_table(void)
{
	for (size_t n = 1; n <= KSLAB_CLASS_MAX_BYTES; n++) {
		unsigned cls = kslab_heap_class(&t.heap, n, 1), wanted = expected_class(&t.heap, n);
		size_t index = (n - 1) / 8;

		if (cls != wanted)
			fail_msg("page %zu, max %zu: size %zu has class %u, wanted %u",
				 t.heap.page_bytes, t.heap.max_page_bytes, n, cls, wanted);
		if (n > KSLAB_ROUTE_MAX_BYTES)
			continue;
		/* The table says the same as the arithmetic, and covers every small size. */
		assert_true(index < t.heap.route_limit && cls < KSLAB_CLASSES);
		assert_int_equal(t.heap.route[index],
				 offsetof(struct kslab_zone, sc) + cls * sizeof(struct kslab_sc));
	}
	assert_int_equal(t.heap.route_limit, KSLAB_ROUTE_MAX_BYTES / 8);
}

static void test_route_table_agrees_with_the_arithmetic_for_every_page_size(void **state)
{
	(void)state;
	with_every_heap(check_route_table);
}

/* Every alignment up to a page: the class holds the size, and every slot of it is aligned. */
static void check_alignment_routes(void)
{
	for (size_t align = 1; align <= t.heap.page_bytes; align *= 2) {
		for (size_t n = 1; n <= KSLAB_CLASS_MAX_BYTES; n += n < 300 ? 1 : 61) {
			unsigned cls = kslab_heap_class(&t.heap, n, align);

			if (cls == KSLAB_CLASSES)
				continue;
			if (kslab_class_bytes(cls) < n || kslab_class_bytes(cls) % align != 0)
				fail_msg("size %zu align %zu has class %u", n, align, cls);
			if (n >= t.heap.min_align && kslab_class_bytes(cls) % t.heap.min_align != 0)
				fail_msg("size %zu is not min_align aligned", n);
		}
	}
	assert_int_equal(kslab_heap_class(&t.heap, 8, t.heap.page_bytes * 2), KSLAB_CLASSES);
	assert_int_equal(kslab_heap_class(&t.heap, KSLAB_CLASS_MAX_BYTES + 1, 1), KSLAB_CLASSES);
}

static void test_alignment_is_routed_to_a_class_whose_every_slot_has_it(void **state)
{
	(void)state;
	with_every_heap(check_alignment_routes);
}

/*
 * A power of two up to a page is served by slots of a power of two, or of a multiple: natural
 * alignment.
 */
static void check_natural_alignment(void)
{
	for (size_t n = 8; n <= t.heap.page_bytes && n <= KSLAB_CLASS_MAX_BYTES; n *= 2) {
		unsigned cls = kslab_heap_class(&t.heap, n, 1);

		if (cls < KSLAB_CLASSES && kslab_class_bytes(cls) % n != 0)
			fail_msg("page %zu, max %zu: %zu bytes are in slots of %zu",
				 t.heap.page_bytes, t.heap.max_page_bytes, n,
				 kslab_class_bytes(cls));
	}
}

static void test_powers_of_two_go_to_naturally_aligned_classes(void **state)
{
	(void)state;
	with_every_heap(check_natural_alignment);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(test_every_size_goes_to_the_smallest_class_that_holds_it),
		cmocka_unit_test(test_every_class_comes_back_from_its_own_size),
		cmocka_unit_test(test_every_power_of_two_is_a_class),
		cmocka_unit_test(test_internal_waste_is_at_most_a_fifth_above_128_bytes),
		cmocka_unit_test(test_object_page_lengths_follow_the_rule_for_every_class),
		cmocka_unit_test(test_route_table_agrees_with_the_arithmetic_for_every_page_size),
		cmocka_unit_test(test_alignment_is_routed_to_a_class_whose_every_slot_has_it),
		cmocka_unit_test(test_powers_of_two_go_to_naturally_aligned_classes),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
