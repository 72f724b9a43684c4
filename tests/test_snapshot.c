/* SPDX-License-Identifier: MIT
 * test_snapshot.c - owns the tests of marks, the page map as text, and the figures that observers
 * add up.
 */
#include "testing.h"

#include <kslab/observe.h>

static struct testing t;
static struct kslab_mark mark;

#define FOUND_MAX 4096u

struct found {
	size_t count, stop_at;
	void *object[FOUND_MAX];
	size_t bytes[FOUND_MAX];
};

static bool find(void *ctx, void *object, size_t bytes)
{
	struct found *found = ctx;

	assert_true(found->count < FOUND_MAX);
	assert_true(found->count == 0 ||
		    (uintptr_t)object > (uintptr_t)found->object[found->count - 1]);
	found->object[found->count] = object;
	found->bytes[found->count++] = bytes;
	return found->count != found->stop_at;
}

static struct found found;

static size_t diff(void)
{
	size_t seen;

	found.count = 0;
	found.stop_at = 0;
	seen = kslab_diff(&mark, find, &found);
	assert_int_equal(seen, found.count);
	assert_int_equal(kslab_diff(&mark, NULL, NULL), found.count);
	return found.count;
}

static void take_mark(void)
{
	memset(&mark, 0xa5, sizeof(mark));
	assert_int_equal(kslab_heap_mark(&t.heap, &mark), KSLAB_OK);
	testing_step(&t);
}

static void *get(size_t n)
{
	void *p = kslab_heap_malloc(&t.heap, n);

	assert_non_null(p);
	return p;
}

static const struct kslab_config plain = { 0 };

static void test_mark_of_an_empty_heap_takes_nothing_and_finds_everything(void **state)
{
	void *p;

	(void)state;
	testing_begin(&t, &plain);
	take_mark();
	assert_int_equal(mark.objects, 0);
	assert_int_equal(mark.pages, 0);
	assert_int_equal(diff(), 0);
	p = get(100);
	assert_int_equal(diff(), 1);
	assert_ptr_equal(found.object[0], p);
	assert_int_equal(found.bytes[0], kslab_heap_usable_size(&t.heap, p));
	kslab_unmark(&mark);
	kslab_heap_free(&t.heap, p);
	testing_end(&t);
}

static void test_diff_is_exactly_what_was_allocated_since_and_is_live(void **state)
{
	void *before, *freed_before, *since, *freed_since, *large_before, *large_since;

	(void)state;
	testing_begin(&t, &plain);
	before = get(64);
	freed_before = get(64);
	large_before = get(100000);
	take_mark();
	assert_int_equal(mark.objects, 3);
	assert_true(mark.pages != 0);
	since = get(64);
	freed_since = get(5000);
	large_since = get(200000);
	kslab_heap_free(&t.heap, freed_before);
	kslab_heap_free(&t.heap, freed_since);
	assert_int_equal(diff(), 2);
	for (size_t i = 0; i < 2; i++)
		assert_true(found.object[i] == since || found.object[i] == large_since);
	kslab_unmark(&mark);
	kslab_heap_free(&t.heap, before);
	kslab_heap_free(&t.heap, since);
	kslab_heap_free(&t.heap, large_before);
	kslab_heap_free(&t.heap, large_since);
	testing_end(&t);
}

static void test_fn_stops_the_diff(void **state)
{
	void *p[5];

	(void)state;
	testing_begin(&t, &plain);
	take_mark();
	for (unsigned i = 0; i < 5; i++)
		p[i] = get(300);
	found.count = 0;
	found.stop_at = 3;
	assert_int_equal(kslab_diff(&mark, find, &found), 3);
	assert_int_equal(found.count, 3);
	kslab_unmark(&mark);
	for (unsigned i = 0; i < 5; i++)
		kslab_heap_free(&t.heap, p[i]);
	testing_end(&t);
}

static void test_another_class_on_a_released_page_is_new(void **state)
{
	const struct kslab_config config = { .retain_bytes = KSLAB_RETAIN_NONE };
	void *a, *b;

	(void)state;
	testing_begin(&t, &config);
	a = get(64);
	take_mark();
	kslab_heap_free(&t.heap, a);
	kslab_heap_reclaim(&t.heap, SIZE_MAX);
	b = get(128);
	assert_int_equal((uintptr_t)b & ~(uintptr_t)4095, (uintptr_t)a & ~(uintptr_t)4095);
	assert_int_equal(diff(), 1);
	assert_ptr_equal(found.object[0], b);
	kslab_unmark(&mark);
	kslab_heap_free(&t.heap, b);
	testing_end(&t);
}

static void test_unmark_gives_every_page_back_and_may_be_repeated(void **state)
{
	size_t out;
	void *p;

	(void)state;
	testing_begin(&t, &plain);
	p = get(8);
	out = t.source.pages_out;
	take_mark();
	assert_int_equal(t.source.pages_out, out + mark.pages);
	kslab_heap_free(&t.heap, (void *)mark.blocks);
	testing_fault(&t, KSLAB_FAULT_BAD_POINTER);
	kslab_unmark(&mark);
	assert_int_equal(t.source.pages_out, out);
	kslab_unmark(&mark);
	assert_int_equal(kslab_diff(&mark, NULL, NULL), 0);
	kslab_heap_free(&t.heap, p);
	testing_end(&t);
}

static void test_mark_without_memory_says_so_and_keeps_nothing(void **state)
{
	void *p[2000];
	size_t out;

	(void)state;
	testing_begin(&t, &plain);
	for (unsigned i = 0; i < 2000; i++)
		p[i] = get(16 * (i % 256) + 1);
	out = t.source.pages_out;
	for (size_t n = 1; n <= 3; n++) {
		fake_source_fail_from(&t.source, n);
		memset(&mark, 0xa5, sizeof(mark));
		if (kslab_heap_mark(&t.heap, &mark) == KSLAB_OK) {
			kslab_unmark(&mark);
		} else {
			assert_int_equal(kslab_heap_last_error(&t.heap), KSLAB_NO_PAGES);
			assert_null(mark.heap);
		}
		assert_int_equal(t.source.pages_out, out);
		testing_step(&t);
	}
	fake_source_fail_from(&t.source, 0);
	for (unsigned i = 0; i < 2000; i++)
		kslab_heap_free(&t.heap, p[i]);
	testing_end(&t);
}

/* Single frames, and one slot size whose page has more bits than a block has room for. */
static void test_single_frames_are_enough_for_long_records(void **state)
{
	const struct kslab_config config = { .max_page_bytes = 512 * 1024,
					     .retain_bytes = 16 << 20 };
	static void *p[60000];
	size_t count = sizeof(p) / sizeof(p[0]);

	(void)state;
	testing_begin(&t, &config);
	for (size_t i = 0; i < count; i++)
		p[i] = get(8);
	for (size_t i = 0; i < count; i += 3)
		kslab_heap_free(&t.heap, p[i]);
	t.source.longest_run = 1;
	take_mark();
	assert_int_equal(mark.objects, count - count / 3);
	assert_int_equal(kslab_diff(&mark, NULL, NULL), 0);
	for (size_t i = 0; i < 1000; i++)
		p[3 * i] = get(8);
	assert_int_equal(diff(), 1000);
	kslab_unmark(&mark);
	for (size_t i = 0; i < count; i++)
		if (i % 3 != 0 || i < 3000)
			kslab_heap_free(&t.heap, p[i]);
	testing_end(&t);
}

static void test_objects_of_caches_are_found(void **state)
{
	struct kslab_cache cache;
	void *a, *b;

	(void)state;
	testing_begin(&t, &plain);
	assert_int_equal(kslab_heap_cache_init(&t.heap, &cache, "cache", 40, 8, NULL, NULL),
			 KSLAB_OK);
	a = kslab_cache_alloc(&cache);
	take_mark();
	b = kslab_cache_alloc(&cache);
	assert_int_equal(diff(), 1);
	assert_ptr_equal(found.object[0], b);
	kslab_unmark(&mark);
	kslab_cache_free(&cache, a);
	kslab_cache_free(&cache, b);
	assert_int_equal(kslab_cache_destroy(&cache), KSLAB_OK);
	testing_end(&t);
}

/* Against a model: what the diff must and must not hold, whatever happened in between. */
static void test_random_marks_agree_with_a_model(void **state)
{
	struct testing_random random = testing_seed("marks", 1);
	static struct {
		unsigned char *p;
		bool is_old;
	} slot[600];

	(void)state;
	testing_begin(&t, &plain);
	for (unsigned round = 0; round < 30; round++) {
		size_t wrong = 0;

		take_mark();
		for (unsigned i = 0; i < 600; i++)
			slot[i].is_old = slot[i].p != NULL;
		for (unsigned step = 0; step < 800; step++) {
			size_t i = testing_random_below(&random, 600);

			if (slot[i].p != NULL) {
				kslab_heap_free(&t.heap, slot[i].p);
				slot[i].p = NULL;
				continue;
			}
			slot[i].p = get(testing_random_below(&random, i % 50 == 0 ? 40000 : 3000));
			slot[i].is_old = false;
		}
		diff();
		for (size_t n = 0; n < found.count; n++) {
			unsigned i = 0;

			while (i < 600 && (slot[i].p != found.object[n]))
				i++;
			wrong += i == 600 || slot[i].is_old; /* not live, or older than the mark */
		}
		assert_int_equal(wrong, 0);
		testing_step(&t);
		kslab_unmark(&mark);
	}
	for (unsigned i = 0; i < 600; i++) {
		kslab_heap_free(&t.heap, slot[i].p);
		slot[i].p = NULL;
	}
	testing_end(&t);
}

/* ---- debug level 2: by the number of the allocation, not by the place ------------------------ */

static const struct kslab_config level2 = { .debug_level = 2, .quarantine_objects = 1 };

static void test_at_level_2_a_slot_that_was_issued_again_is_new(void **state)
{
	void *stays, *p, *q = NULL;
	size_t other = 0;

	(void)state;
	testing_begin(&t, &level2);
	stays = get(64);
	p = get(64);
	take_mark();
	kslab_heap_free(&t.heap, p);
	kslab_heap_free(&t.heap, get(64)); /* p leaves the quarantine */
	for (; other < 1000 && q != p; other++)
		q = get(64);
	assert_ptr_equal(q, p);
	assert_int_equal(diff(), other);
	for (size_t i = 0; i < found.count; i++)
		assert_ptr_not_equal(found.object[i], stays);
	for (size_t i = 0; i < found.count; i++)
		kslab_heap_free(&t.heap, found.object[i]);
	kslab_unmark(&mark);
	kslab_heap_free(&t.heap, stays);
	testing_end(&t);
}

static void test_at_level_2_a_large_block_that_came_again_is_new(void **state)
{
	void *stays, *p, *q;

	(void)state;
	testing_begin(&t, &level2);
	stays = get(70000);
	p = get(50000);
	take_mark();
	kslab_heap_free(&t.heap, p);
	assert_int_equal(diff(), 0);
	q = get(50000);
	assert_ptr_equal(q, p);
	assert_int_equal(diff(), 1);
	assert_ptr_equal(found.object[0], q);
	kslab_unmark(&mark);
	kslab_heap_free(&t.heap, q);
	kslab_heap_free(&t.heap, stays);
	testing_end(&t);
}

static void test_at_level_2_what_is_in_quarantine_is_not_live(void **state)
{
	const struct kslab_config config = { .debug_level = 2 };
	void *before, *since;

	(void)state;
	testing_begin(&t, &config);
	before = get(64);
	kslab_heap_free(&t.heap, before);
	take_mark();
	assert_int_equal(mark.objects, 0);
	since = get(64);
	assert_int_equal(diff(), 1);
	kslab_heap_free(&t.heap, since);
	assert_int_equal(diff(), 0);
	kslab_unmark(&mark);
	testing_end(&t);
}

/* ---- figures and text ------------------------------------------------------------------------ */

static char text[65536];
static size_t text_used;

static void put(void *ctx, char c)
{
	(void)ctx;
	assert_true(text_used + 1 < sizeof(text));
	text[text_used++] = c;
	text[text_used] = '\0';
}

static void test_class_pages_have_a_high_water_mark(void **state)
{
	struct kslab_class_stats row;
	unsigned cls = 0;
	void *p[200];
	size_t most;

	(void)state;
	testing_begin(&t, &plain);
	for (unsigned i = 0; i < 200; i++)
		p[i] = get(1024);
	while (kslab_heap_class_stats(&t.heap, cls, &row) && row.size != 1024)
		cls++;
	assert_int_equal(row.live, 200);
	assert_int_equal(row.peak_pages, row.base_pages);
	most = row.peak_pages;
	for (unsigned i = 0; i < 200; i++)
		kslab_heap_free(&t.heap, p[i]);
	kslab_heap_reclaim(&t.heap, SIZE_MAX);
	assert_true(kslab_heap_class_stats(&t.heap, cls, &row));
	assert_int_equal(row.base_pages, 0);
	assert_int_equal(row.peak_pages, most);
	assert_int_equal(t.heap.tally.pages[cls], 0);
	p[0] = get(1024);
	assert_true(kslab_heap_class_stats(&t.heap, cls, &row));
	assert_int_equal(row.peak_pages, most);
	kslab_heap_free(&t.heap, p[0]);
	testing_end(&t);
}

static void test_failures_are_counted_by_reason(void **state)
{
	struct kslab_stats stats;
	char on_stack;
	void *p;

	(void)state;
	testing_begin(&t, &plain);
	p = get(8);
	assert_null(kslab_heap_calloc(&t.heap, SIZE_MAX, 2));
	assert_null(kslab_heap_calloc(&t.heap, SIZE_MAX / 2, 3));
	assert_null(kslab_heap_malloc(&t.heap, SIZE_MAX));
	assert_null(kslab_heap_aligned_alloc(&t.heap, 3, 8));
	fake_source_fail_from(&t.source, 1);
	assert_null(kslab_heap_malloc(&t.heap, 100000));
	fake_source_fail_from(&t.source, 0);
	kslab_heap_free(&t.heap, &on_stack);
	testing_fault(&t, KSLAB_FAULT_FOREIGN_POINTER);
	kslab_heap_stats(&t.heap, &stats);
	assert_int_equal(stats.failed[KSLAB_OVERFLOW], 2);
	assert_int_equal(stats.failed[KSLAB_TOO_LARGE], 1);
	assert_int_equal(stats.failed[KSLAB_BAD_ALIGNMENT], 1);
	assert_int_equal(stats.failed[KSLAB_NO_PAGES], 1);
	assert_int_equal(stats.failed[KSLAB_BAD_FREE], 1);
	assert_int_equal(stats.failed[KSLAB_OK], 0);
	text_used = 0;
	kslab_heap_print(&t.heap, put, NULL);
	assert_non_null(strstr(
		text,
		"failed: 1 no pages, 1 too large, 1 bad alignment, 2 overflow, 1 bad free\n"));
	assert_non_null(strstr(text, " slow allocations, "));
	kslab_heap_free(&t.heap, p);
	testing_end(&t);
}

/* Lines of the text, none wider than so many columns. */
static size_t count_lines(size_t columns)
{
	size_t lines = 0, column = 0;

	for (const char *at = text; *at != '\0'; at++) {
		column = *at == '\n' ? 0 : column + 1;
		assert_true(column <= columns);
		lines += *at == '\n';
	}
	assert_int_equal(column, 0);
	return lines;
}

static void test_map_shows_a_character_for_each_page(void **state)
{
	const struct kslab_config single = { .max_page_bytes = 4096 };
	struct kslab_cache cache;
	static void *p[200 * 4];
	const char *row;
	void *large, *other;

	(void)state;
	testing_begin(&t, &single);
	assert_int_equal(kslab_heap_cache_init(&t.heap, &cache, "a rather long name", 64, 8, NULL,
					       NULL),
			 KSLAB_OK);
	for (unsigned i = 0; i < 40; i++)
		p[i] = get(1024); /* four a page */
	for (unsigned page = 0; page < 4; page++)
		for (unsigned k = 0; k < page + 1; k++) {
			kslab_heap_free(&t.heap, p[4 * page + k]);
			p[4 * page + k] = NULL;
		}
	large = get(3 * 4096 + 1 + 16384);
	other = kslab_cache_alloc(&cache);
	text_used = 0;
	kslab_heap_print_map(&t.heap, put, NULL);
	row = strstr(text, "  1024  ");
	assert_non_null(row);
	/* The full ones first, then partly used ones in their order, then the empty one. */
	assert_memory_equal(row + 8, "@#####321.\n", 11);
	assert_non_null(strstr(text, "a rather long     64  @\n"));
	assert_non_null(strstr(text, "large blocks: 1, 8 pages\n"));
	assert_int_equal(count_lines(76), 4);
	for (unsigned i = 0; i < 40; i++)
		kslab_heap_free(&t.heap, p[i]);
	kslab_heap_free(&t.heap, large);
	kslab_cache_free(&cache, other);
	assert_int_equal(kslab_cache_destroy(&cache), KSLAB_OK);
	for (unsigned i = 0; i < 800; i++)
		p[i] = get(1024);
	text_used = 0;
	kslab_heap_print_map(&t.heap, put, NULL);
	assert_true(count_lines(76) >= 2 + 200 / 54);
	for (unsigned i = 0; i < 800; i++)
		kslab_heap_free(&t.heap, p[i]);
	testing_end(&t);
}

static int fresh(void **state)
{
	(void)state;
	memset(&t, 0, sizeof(t));
	memset(&kslab_default_heap, 0, sizeof(kslab_default_heap));
	return 0;
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test_setup(
			test_mark_of_an_empty_heap_takes_nothing_and_finds_everything, fresh),
		cmocka_unit_test_setup(test_diff_is_exactly_what_was_allocated_since_and_is_live,
				       fresh),
		cmocka_unit_test_setup(test_fn_stops_the_diff, fresh),
		cmocka_unit_test_setup(test_another_class_on_a_released_page_is_new, fresh),
		cmocka_unit_test_setup(test_unmark_gives_every_page_back_and_may_be_repeated,
				       fresh),
		cmocka_unit_test_setup(test_mark_without_memory_says_so_and_keeps_nothing, fresh),
		cmocka_unit_test_setup(test_single_frames_are_enough_for_long_records, fresh),
		cmocka_unit_test_setup(test_objects_of_caches_are_found, fresh),
		cmocka_unit_test_setup(test_random_marks_agree_with_a_model, fresh),
		cmocka_unit_test_setup(test_at_level_2_a_slot_that_was_issued_again_is_new, fresh),
		cmocka_unit_test_setup(test_at_level_2_a_large_block_that_came_again_is_new, fresh),
		cmocka_unit_test_setup(test_at_level_2_what_is_in_quarantine_is_not_live, fresh),
		cmocka_unit_test_setup(test_class_pages_have_a_high_water_mark, fresh),
		cmocka_unit_test_setup(test_failures_are_counted_by_reason, fresh),
		cmocka_unit_test_setup(test_map_shows_a_character_for_each_page, fresh),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
