/* SPDX-License-Identifier: MIT
 * test_inject.c - owns the tests of fault injection: exactly the events that were asked for fail,
 * everything is well after them, and nothing is left when it is off.
 */
#include "testing.h"

#include <kslab/inject.h>

static struct testing t;
static const struct kslab_config plain = { 0 };

static void inject(const char *text)
{
	struct kslab_inject rule;

	assert_int_equal(kslab_inject_parse(text, &rule), KSLAB_OK);
	assert_int_equal(kslab_heap_inject(&t.heap, rule.where != 0 ? &rule : NULL), KSLAB_OK);
}

/* One allocation. Return: it was failed by injection. */
static bool hit(size_t n)
{
	void *p = kslab_heap_malloc(&t.heap, n);

	if (p == NULL)
		assert_int_equal(kslab_heap_last_error(&t.heap), KSLAB_INJECTED);
	kslab_heap_free(&t.heap, p);
	return p == NULL;
}

/* ---- text ------------------------------------------------------------------------------------ */

static void test_parse_takes_every_key(void **state)
{
	struct kslab_inject rule;

	(void)state;
	assert_int_equal(kslab_inject_parse("pages:every=7,class=64", &rule), KSLAB_OK);
	assert_int_equal(rule.where, KSLAB_INJECT_PAGES);
	assert_int_equal(rule.fail_every, 7);
	assert_int_equal(rule.fail_nth, 0);
	assert_int_equal(rule.classes[0], 1u << 7);
	assert_int_equal(rule.classes[1], 0);
	assert_int_equal(kslab_inject_parse("allocations:nth=4294967295,share=65536,seed=9", &rule),
			 KSLAB_OK);
	assert_int_equal(rule.where, KSLAB_INJECT_ALLOCATIONS);
	assert_int_equal(rule.fail_nth, 4294967295u);
	assert_int_equal(rule.fail_share, 65536);
	assert_int_equal(rule.seed, 9);
	assert_int_equal(rule.fail_every, 0);
	assert_int_equal(kslab_inject_parse("all:class=large,class=cache,class=16384", &rule),
			 KSLAB_OK);
	assert_int_equal(rule.where, KSLAB_INJECT_PAGES | KSLAB_INJECT_ALLOCATIONS);
	assert_int_equal(rule.classes[0], 0);
	assert_int_equal(rule.classes[1], 7u << 27);
	assert_int_equal(kslab_inject_parse("pages:class=16385", &rule), KSLAB_OK);
	assert_int_equal(rule.classes[1], 1u << (KSLAB_INJECT_LARGE - 32));
	assert_int_equal(kslab_inject_parse("all", &rule), KSLAB_OK);
	assert_int_equal(kslab_inject_parse("off", &rule), KSLAB_OK);
	assert_int_equal(rule.where, 0);
}

static void test_parse_refuses_everything_else_and_changes_nothing(void **state)
{
	static const char *const wrong[] = {
		"",
		"page",
		"pages ",
		"pages:",
		"pages:every",
		"pages:every=",
		"pages:every=x",
		"pages:every=7,",
		"pages:every=-1",
		"pages,every=7",
		"pages:every=7;",
		"Pages",
		"pages:speed=1",
		"pages:every=4294967296",
		"allocations:share=65537",
		"pages:class=",
		"pages:class=huge",
		"off:every=1",
		"alls",
		"off ",
		" all",
	};
	struct kslab_inject rule, before;

	(void)state;
	memset(&rule, 0x5a, sizeof(rule));
	before = rule;
	for (unsigned i = 0; i < TESTING_COUNT(wrong); i++) {
		assert_int_equal(kslab_inject_parse(wrong[i], &rule), KSLAB_BAD_ARGUMENT);
		assert_memory_equal(&rule, &before, sizeof(rule));
	}
	assert_int_equal(kslab_inject_parse(NULL, &rule), KSLAB_BAD_ARGUMENT);
}

static void test_wrong_rules_are_refused(void **state)
{
	struct kslab_inject rule = { .where = 0, .fail_every = 1 };

	(void)state;
	assert_int_equal(kslab_heap_inject(&t.heap, &rule), KSLAB_NOT_INITIALISED);
	testing_begin(&t, &plain);
	assert_int_equal(kslab_heap_inject(&t.heap, &rule), KSLAB_BAD_ARGUMENT);
	rule.where = 4;
	assert_int_equal(kslab_heap_inject(&t.heap, &rule), KSLAB_BAD_ARGUMENT);
	rule.where = KSLAB_INJECT_ALLOCATIONS;
	rule.fail_share = 65537;
	assert_int_equal(kslab_heap_inject(&t.heap, &rule), KSLAB_BAD_ARGUMENT);
	assert_false(hit(8));
	testing_end(&t);
}

/* ---- allocations ----------------------------------------------------------------------------- */

static void test_nth_and_every_hit_exactly_these(void **state)
{
	(void)state;
	testing_begin(&t, &plain);
	inject("allocations:nth=5,every=8");
	for (unsigned i = 1; i <= 40; i++)
		assert_int_equal(hit(i * 100), i == 5 || i % 8 == 0);
	inject("allocations:nth=1");
	assert_true(hit(1));
	assert_false(hit(1));
	testing_step(&t);
	testing_end(&t);
}

static void test_share_is_met_and_the_seed_decides(void **state)
{
	bool first[4000], differs = false;
	size_t hits = 0;

	(void)state;
	testing_begin(&t, &plain);
	inject("allocations:share=16384,seed=1");
	for (unsigned i = 0; i < 4000; i++)
		hits += first[i] = hit(32);
	assert_in_range(hits, 900, 1100);
	inject("allocations:share=16384,seed=1");
	for (unsigned i = 0; i < 4000; i++)
		assert_int_equal(hit(32), first[i]);
	inject("allocations:share=16384,seed=2");
	for (unsigned i = 0; i < 4000; i++)
		differs = differs || hit(32) != first[i];
	assert_true(differs);
	inject("allocations:share=65536");
	assert_true(hit(1) && hit(2) && hit(3));
	testing_end(&t);
}

static void test_only_the_classes_in_the_mask_are_in_question(void **state)
{
	struct kslab_cache cache;
	void *p;

	(void)state;
	testing_begin(&t, &plain);
	assert_int_equal(kslab_heap_cache_init(&t.heap, &cache, "cache", 64, 8, NULL, NULL),
			 KSLAB_OK);
	inject("allocations:every=1,class=64");
	for (size_t n = 0; n < 20000; n += n < 200 ? 1 : 301)
		assert_int_equal(hit(n), n > 56 && n <= 64);
	p = kslab_cache_alloc(&cache);
	assert_non_null(p);
	inject("allocations:every=1,class=large");
	assert_true(hit(16385));
	assert_false(hit(16384));
	inject("allocations:every=2,class=cache");
	assert_false(hit(64));
	for (unsigned i = 1; i < 9; i++) {
		void *q = kslab_cache_alloc(&cache);

		assert_int_equal(q == NULL, i % 2 == 0);
		kslab_cache_free(&cache, q);
	}
	kslab_cache_free(&cache, p);
	assert_int_equal(kslab_cache_destroy(&cache), KSLAB_OK);
	testing_end(&t);
}

/*
 * 1408 bytes cost as much as 2048 in single frames: its requests go to another class, and are hit
 * there.
 */
static void test_a_class_that_another_one_serves_is_hit(void **state)
{
	const struct kslab_config single = { .max_page_bytes = 4096 };

	(void)state;
	testing_begin(&t, &single);
	inject("allocations:every=1,class=1408");
	assert_true(hit(1408));
	assert_false(hit(512));
	testing_end(&t);
}

static void test_every_door_asks(void **state)
{
	void *out[8], *p;

	(void)state;
	testing_begin(&t, &plain);
	p = kslab_heap_malloc(&t.heap, 100);
	memset(p, 7, 100);
	inject("allocations:every=1");
	assert_null(kslab_heap_zalloc(&t.heap, 8));
	assert_null(kslab_heap_calloc(&t.heap, 8, 8));
	assert_null(kslab_heap_alloc(&t.heap, 8, 8, KSLAB_ZERO));
	assert_null(kslab_heap_aligned_alloc(&t.heap, 64, 8));
	assert_null(kslab_heap_realloc(&t.heap, NULL, 8));
	assert_null(kslab_heap_realloc(&t.heap, p, 500));
	assert_int_equal(((unsigned char *)p)[99], 7);
	/* in place: nothing is allocated */
	assert_ptr_equal(kslab_heap_realloc(&t.heap, p, 101), p);
	assert_int_equal(kslab_heap_malloc_bulk(&t.heap, 8, 8, out), 0);
	inject("off");
	assert_int_equal(kslab_heap_malloc_bulk(&t.heap, 8, 8, out), 8);
	kslab_heap_free_bulk(&t.heap, 8, out);
	kslab_heap_free(&t.heap, p);
	testing_end(&t);
}

static void test_off_opens_the_fast_path_again(void **state)
{
	size_t limit;

	(void)state;
	testing_begin(&t, &plain);
	limit = t.heap.route_limit;
	assert_true(limit != 0);
	inject("allocations:nth=1000");
	assert_int_equal(t.heap.route_limit, 0);
	inject("all:nth=1000");
	assert_int_equal(t.heap.route_limit, 0);
	inject("pages:nth=1000");
	assert_int_equal(t.heap.route_limit, limit);
	inject("all:nth=1000");
	inject("off");
	assert_int_equal(t.heap.route_limit, limit);
	testing_end(&t);
}

/* ---- pages ----------------------------------------------------------------------------------- */

static void test_a_page_that_fails_fails_the_allocation_when_nothing_lies_idle(void **state)
{
	struct kslab_stats stats;
	void *p;

	(void)state;
	testing_begin(&t, &plain);
	inject("pages:every=1");
	assert_true(hit(64));
	assert_true(hit(100000));
	assert_int_equal(t.source.alloc_calls, 0);
	kslab_heap_stats(&t.heap, &stats);
	assert_int_equal(stats.failed[KSLAB_INJECTED], 2);
	inject("off");
	p = kslab_heap_malloc(&t.heap, 64);
	assert_non_null(p);
	inject("pages:every=1");
	assert_false(hit(64)); /* the page is there */
	kslab_heap_free(&t.heap, p);
	testing_end(&t);
}

static void test_pages_of_a_class_alone(void **state)
{
	void *p[3000];
	size_t failures = 0;

	(void)state;
	testing_begin(&t, &plain);
	inject("pages:every=2,class=64");
	for (unsigned i = 0; i < 3000; i++) {
		p[i] = kslab_heap_malloc(&t.heap, i % 2 ? 64 : 300);
		assert_true(p[i] != NULL || i % 2);
		failures += p[i] == NULL;
	}
	assert_true(failures != 0);
	assert_int_equal(failures, t.heap.inject.events / 2);
	for (unsigned i = 0; i < 3000; i++)
		kslab_heap_free(&t.heap, p[i]);
	inject("pages:every=1,class=large");
	assert_true(hit(50000));
	assert_false(hit(5000));
	testing_end(&t);
}

static void test_emergency_pages_are_not_failed(void **state)
{
	const struct kslab_config config = { .emergency_pages = 8, .max_page_bytes = 4096 };
	void *p;

	(void)state;
	testing_begin(&t, &config);
	inject("pages:every=1");
	assert_true(hit(64));
	p = kslab_heap_alloc(&t.heap, 64, 8, KSLAB_RESERVE);
	assert_non_null(p);
	kslab_heap_free(&t.heap, p);
	testing_end(&t);
}

/*
 * Fail every single page run of a workload in turn: each time everything is well, and every page
 * comes back.
 */
static void test_each_page_of_a_workload_may_fail(void **state)
{
	size_t events = 1;

	(void)state;
	for (size_t nth = 1; nth <= events; nth++) {
		struct kslab_inject rule = { .where = KSLAB_INJECT_PAGES, .fail_nth = nth };
		void *p[40];

		testing_begin(&t, &plain);
		assert_int_equal(kslab_heap_inject(&t.heap, &rule), KSLAB_OK);
		for (unsigned i = 0; i < 40; i++)
			p[i] = kslab_heap_malloc(&t.heap, (size_t)i * i * 20);
		testing_step(&t);
		events = t.heap.inject.events;
		for (unsigned i = 0; i < 40; i++)
			kslab_heap_free(&t.heap, p[i]);
		testing_end(&t);
	}
	assert_true(events > 20);
}

static void test_random_failures_leave_the_heap_well(void **state)
{
	struct testing_random random = testing_seed("inject", 3);
	static void *p[500];

	(void)state;
	testing_begin(&t, &plain);
	inject("all:share=8000,seed=77");
	for (unsigned step = 0; step < 20000; step++) {
		size_t i = testing_random_below(&random, 500);

		if (p[i] != NULL) {
			kslab_heap_free(&t.heap, p[i]);
			p[i] = NULL;
		} else {
			p[i] = kslab_heap_malloc(&t.heap,
						 testing_random_below(&random,
								      i % 40 ? 3000 : 60000));
		}
		if (step % 500 == 0)
			testing_step(&t);
	}
	for (unsigned i = 0; i < 500; i++) {
		kslab_heap_free(&t.heap, p[i]);
		p[i] = NULL;
	}
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
		cmocka_unit_test_setup(test_parse_takes_every_key, fresh),
		cmocka_unit_test_setup(test_parse_refuses_everything_else_and_changes_nothing,
				       fresh),
		cmocka_unit_test_setup(test_wrong_rules_are_refused, fresh),
		cmocka_unit_test_setup(test_nth_and_every_hit_exactly_these, fresh),
		cmocka_unit_test_setup(test_share_is_met_and_the_seed_decides, fresh),
		cmocka_unit_test_setup(test_only_the_classes_in_the_mask_are_in_question, fresh),
		cmocka_unit_test_setup(test_a_class_that_another_one_serves_is_hit, fresh),
		cmocka_unit_test_setup(test_every_door_asks, fresh),
		cmocka_unit_test_setup(test_off_opens_the_fast_path_again, fresh),
		cmocka_unit_test_setup(
			test_a_page_that_fails_fails_the_allocation_when_nothing_lies_idle, fresh),
		cmocka_unit_test_setup(test_pages_of_a_class_alone, fresh),
		cmocka_unit_test_setup(test_emergency_pages_are_not_failed, fresh),
		cmocka_unit_test_setup(test_each_page_of_a_workload_may_fail, fresh),
		cmocka_unit_test_setup(test_random_failures_leave_the_heap_well, fresh),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
