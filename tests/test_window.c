/* SPDX-License-Identifier: MIT
 * test_window.c - owns the tests of where the window of a heap comes to lie, and when it moves. The
 * window is small here, so that machines of 32 bits have an outside, too.
 * Rank: tests.
 *
 * BUILD: -DKSLAB_CFG_TOP_ENTRIES=8 -DKSLAB_CFG_LEAF_SHIFT=16
 */
#include "testing.h"

#include "page_map.h"

#define PAGE ((size_t)4096)
#define SPAN ((size_t)1 << KSLAB_CFG_LEAF_SHIFT)
#define WINDOW ((size_t)KSLAB_WINDOW_BYTES)
#define SIDE (KSLAB_SIDE_ENTRIES * SPAN)
#define PAGES (2 * WINDOW / PAGE) /* more than any heap here has */

static _Alignas(8 << KSLAB_CFG_LEAF_SHIFT) unsigned char memory[4 * WINDOW];
static struct kslab_heap heap;
static struct recorder recorder;

static void begin(uintptr_t window_base)
{
	const struct kslab_config config = { .window_base = window_base,
					     .report = recorder_report,
					     .report_ctx = &recorder };

	memset(&recorder, 0, sizeof(recorder));
	testing_forget(&heap);
	assert_int_equal(kslab_heap_init(&heap, &config), KSLAB_OK);
}

static void add(size_t offset, size_t bytes)
{
	assert_int_equal(kslab_heap_add_region(&heap, memory + offset, bytes), KSLAB_OK);
	assert_true(kslab_heap_check(&heap, NULL));
}

static void is_refused(size_t offset, size_t bytes)
{
	size_t faults = recorder.count;
	struct kslab_page_map map = heap.map;

	assert_int_equal(kslab_heap_add_region(&heap, memory + offset, bytes), KSLAB_BAD_ARGUMENT);
	assert_int_equal(recorder.count, faults + 1);
	assert_int_equal(recorder.last.fault, KSLAB_FAULT_BAD_REGION);
	assert_memory_equal(&map, &heap.map, sizeof(map));
	assert_true(kslab_heap_check(&heap, NULL));
}

/* All pages of all regions can be used, and come back; what is live before stays so. */
static void fill_and_end(void)
{
	static void *object[PAGES];
	size_t faults = recorder.count, n = 0, free = 0;

	while (n < PAGES && (object[n] = kslab_heap_malloc(&heap, PAGE)) != NULL)
		memset(object[n++], 0x77, PAGE);
	for (unsigned i = 0; i < heap.regions; i++)
		free += heap.region[i].free_pages;
	assert_int_equal(free, 0);
	assert_int_equal(recorder.count, faults);
	assert_true(kslab_heap_check(&heap, NULL));
	while (n != 0)
		kslab_heap_free(&heap, object[--n]);
	assert_int_equal(recorder.count, faults);
	assert_true(kslab_heap_check(&heap, NULL));
	assert_int_equal(kslab_heap_fini(&heap), KSLAB_OK);
	for (unsigned i = 0; i < heap.regions; i++)
		assert_int_equal(heap.region[i].free_pages, heap.region[i].pages);
}

static void test_a_region_may_be_as_long_as_the_window(void **state)
{
	(void)state;
	begin(0);
	add(WINDOW, WINDOW);
	fill_and_end();
	begin(0);
	add(WINDOW - 3 * SPAN,
	    WINDOW); /* not at a multiple of it: it begins where the region does */
	fill_and_end();
	begin(0);
	is_refused(WINDOW, WINDOW + 1);
	is_refused(WINDOW - PAGE, WINDOW);
	is_refused(WINDOW + PAGE, WINDOW);
	add(WINDOW + PAGE, WINDOW - PAGE);
	fill_and_end();
}

static void test_a_window_begins_at_a_multiple_of_its_size_where_that_will_do(void **state)
{
	(void)state;
	begin(0);
	add(WINDOW + 5 * SPAN, SPAN);
	assert_ptr_equal(heap.map.base, memory + WINDOW);
	add(WINDOW, SPAN);
	is_refused(WINDOW - SPAN, SPAN);
	fill_and_end();
}

/* A kernel that adds its memory to a static array before anything was allocated. */
static void test_a_window_moves_before_the_first_allocation(void **state)
{
	(void)state;
	begin(0);
	add(WINDOW + 2 * SPAN - PAGE, SIDE - 2 * SPAN);
	add(3 * WINDOW, WINDOW);
	is_refused(0, SPAN); /* once only */
	fill_and_end();
}

static void test_a_window_that_moves_takes_all_of_its_regions_along(void **state)
{
	void *first, *second;

	(void)state;
	begin(0);
	add(2 * WINDOW - SIDE - SPAN, SIDE);
	/* The region's first leaf is not there yet. */
	first = kslab_heap_aligned_alloc(&heap, 2 * SPAN, PAGE);
	assert_non_null(first);
	add(2 * WINDOW, WINDOW);
	second = kslab_heap_malloc(&heap, 2 * WINDOW - SIDE);
	assert_null(second);
	kslab_heap_free(&heap, first);
	fill_and_end();
}

/* Memory of a region that neither window would reach any more. */
static void test_a_window_stays_where_a_region_is_longer_than_the_side_window(void **state)
{
	void *object;

	(void)state;
	for (size_t add_bytes = PAGE; add_bytes <= 3 * SPAN; add_bytes += 3 * SPAN - PAGE) {
		begin(0);
		add(WINDOW, SIDE + add_bytes);
		is_refused(2 * WINDOW, SPAN);
		object = kslab_heap_malloc(&heap, 100);
		assert_non_null(object);
		is_refused(2 * WINDOW, SPAN);
		kslab_heap_free(&heap, object);
		fill_and_end();
	}
	/* Two that lie too far apart. */
	begin(0);
	add(WINDOW, SPAN);
	add(WINDOW + SIDE, SPAN);
	is_refused(2 * WINDOW, SPAN);
	fill_and_end();
}

/* ---- a page source --------------------------------------------------------------------------- */

static const uintptr_t *answers; /* ends in 0 */
static size_t given;

static void *answer(void *ctx, size_t pages)
{
	(void)ctx;
	if (pages != 1 || *answers == 0)
		return NULL;
	given++;
	return (void *)*answers++;
}

static void take_back(void *ctx, void *mem, size_t pages)
{
	(void)ctx;
	(void)mem;
	given -= pages;
}

static void begin_source(uintptr_t window_base, const uintptr_t *list)
{
	given = 0;
	answers = list;
	begin(window_base);
	assert_int_equal(kslab_heap_set_page_source(&heap, answer, take_back, NULL), KSLAB_OK);
}

/* The page lies in the window, its leaf elsewhere: where that goes, the window must not. */
static void test_a_leaf_does_not_move_the_window_away_from_its_page(void **state)
{
	const uintptr_t page = (uintptr_t)memory;
	const uintptr_t list[] = { page,
				   page + PAGE,
				   page + 2 * PAGE,
				   page + 6 * SPAN, /* an object page; its leaf: */
				   page + 2 * WINDOW,
				   page + 2 * WINDOW + PAGE,
				   page + 2 * WINDOW + 2 * PAGE,
				   0 };
	void *first, *second;

	(void)state;
	begin_source(0, list);
	first = kslab_heap_malloc(&heap, PAGE);
	assert_non_null(first);
	while (answers != list + 3)
		take_back(NULL, answer(NULL, 1), 1);
	while (heap.meta.bump_end - heap.meta.bump >= KSLAB_LEAF_BYTES)
		heap.meta.bump += 32; /* metadata is used up */
	second = kslab_heap_malloc(&heap, PAGE);
	assert_true(kslab_heap_check(&heap, NULL));
	kslab_heap_free(&heap, second);
	kslab_heap_free(&heap, first);
	assert_true(kslab_heap_check(&heap, NULL));
	assert_int_equal(kslab_heap_fini(&heap), KSLAB_OK);
	assert_int_equal(given, 0);
}

static void test_the_last_page_of_the_address_space_is_refused(void **state)
{
	const uintptr_t list[] = { (uintptr_t)0 - PAGE, 0 };

	(void)state;
	begin_source((uintptr_t)0 - SPAN, list);
	assert_null(kslab_heap_malloc(&heap, 100));
	assert_int_equal(recorder.count, 1);
	assert_int_equal(recorder.last.fault, KSLAB_FAULT_BAD_PAGE);
	assert_int_equal(given, 0);
	assert_int_equal(kslab_heap_fini(&heap), KSLAB_OK);
}

/* A window at the end of the address space does not go on at its beginning. */
static void test_a_window_does_not_wrap(void **state)
{
	(void)state;
	begin((uintptr_t)0 - 3 * SPAN);
	assert_true(kslab_page_map_bytes(&heap.map) == 3 * SPAN);
	assert_ptr_equal(kslab_page_map_find(&heap.map, 0), &kslab_page_nobody);
	assert_int_equal(kslab_heap_fini(&heap), KSLAB_OK);
}

static void test_an_emergency_page_outside_the_window_is_not_accepted(void **state)
{
	const uintptr_t list[] = { (uintptr_t)memory, (uintptr_t)memory + WINDOW, 0 };
	struct kslab_config config = { .window_base = (uintptr_t)memory,
				       .alloc_pages = answer,
				       .free_pages = take_back,
				       .report = recorder_report,
				       .report_ctx = &recorder,
				       .emergency_pages = 2 };

	(void)state;
	given = 0;
	answers = list;
	recorder.count = 0;
	assert_int_equal(kslab_heap_init(&heap, &config), KSLAB_NO_PAGES);
	assert_int_equal(recorder.count, 1);
	assert_int_equal(recorder.last.fault, KSLAB_FAULT_BAD_PAGE);
	assert_int_equal(given, 0);
	assert_null(kslab_heap_malloc(&heap, 8));
}

/* Nor one that another heap holds: its record would be written into it. */
static void test_an_emergency_page_of_another_heap_is_not_accepted(void **state)
{
	static struct kslab_heap second;
	struct kslab_config config = { .alloc_pages = answer,
				       .free_pages = take_back,
				       .report = recorder_report,
				       .report_ctx = &recorder,
				       .emergency_pages = 1 };
	uintptr_t list[2] = { 0, 0 };
	unsigned char *object;

	(void)state;
	begin_source(0, list);
	add(0, SPAN);
	object = kslab_heap_malloc(&heap, PAGE);
	assert_non_null(object);
	memset(object, 0x33, PAGE);
	list[0] = (uintptr_t)object;
	answers = list;
	recorder.count = 0;
	assert_int_equal(kslab_heap_init(&second, &config), KSLAB_NO_PAGES);
	assert_int_equal(recorder.count, 1);
	assert_int_equal(recorder.last.fault, KSLAB_FAULT_BAD_PAGE);
	recorder.count = 0;
	assert_int_equal(given, 1); /* whoever has it will give it back */
	for (size_t i = 0; i < PAGE; i++)
		assert_int_equal(object[i], 0x33);
	kslab_heap_free(&heap, object);
	fill_and_end();
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(test_a_region_may_be_as_long_as_the_window),
		cmocka_unit_test(test_a_window_begins_at_a_multiple_of_its_size_where_that_will_do),
		cmocka_unit_test(test_a_window_moves_before_the_first_allocation),
		cmocka_unit_test(test_a_window_that_moves_takes_all_of_its_regions_along),
		cmocka_unit_test(test_a_window_stays_where_a_region_is_longer_than_the_side_window),
		cmocka_unit_test(test_a_leaf_does_not_move_the_window_away_from_its_page),
		cmocka_unit_test(test_the_last_page_of_the_address_space_is_refused),
		cmocka_unit_test(test_a_window_does_not_wrap),
		cmocka_unit_test(test_an_emergency_page_outside_the_window_is_not_accepted),
		cmocka_unit_test(test_an_emergency_page_of_another_heap_is_not_accepted),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
