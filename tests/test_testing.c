/* SPDX-License-Identifier: MIT
 * test_testing.c - owns the tests of the fake kernel itself: a fake that can't fail would prove
 * nothing.
 */
#include "testing.h"

static struct fake_source source;
static struct testing t;

static void test_source_gives_aligned_disjoint_runs_lowest_first(void **state)
{
	unsigned char *a, *b, *c;

	(void)state;
	fake_source_init(&source, 4096, 16, false);
	a = fake_source_alloc(&source, 1);
	b = fake_source_alloc(&source, 4);
	c = fake_source_alloc(&source, 1);
	assert_ptr_equal(a, source.memory);
	assert_ptr_equal(b, source.memory + 4 * 4096);
	assert_ptr_equal(c, source.memory + 4096);
	assert_int_equal((uintptr_t)source.memory % (16 * 4096), 0);
	assert_int_equal(source.pages_out, 6);
	assert_int_equal(a[0], FAKE_JUNK_ALLOC);
	assert_int_equal(b[4 * 4096 - 1], FAKE_JUNK_ALLOC);
	assert_true(fake_source_is_out(&source, b + 4095));
	assert_false(fake_source_is_out(&source, b - 1));
	assert_false(fake_source_is_out(&source, &source));
	fake_source_free(&source, a, 1);
	fake_source_free(&source, b, 4);
	fake_source_free(&source, c, 1);
	assert_int_equal(source.pages_out, 0);
	assert_int_equal(source.pages_peak, 6);
	assert_int_equal(source.errors, 0);
	assert_int_equal(b[0], FAKE_JUNK_FREE);
	fake_source_fini(&source);
}

static void test_source_serves_exactly_its_pages(void **state)
{
	(void)state;
	fake_source_init(&source, 16384, 8, false);
	assert_null(fake_source_alloc(&source, 9));
	for (unsigned i = 0; i < 8; i++)
		assert_non_null(fake_source_alloc(&source, 1));
	assert_null(fake_source_alloc(&source, 1));
	assert_int_equal(source.refusals, 2);
	assert_int_equal(source.alloc_calls, 10);
	fake_source_free(&source, source.memory + 3 * 16384, 1);
	assert_ptr_equal(fake_source_alloc(&source, 1), source.memory + 3 * 16384);
	fake_source_fini(&source);
}

static void test_source_gives_unaligned_runs_on_demand(void **state)
{
	(void)state;
	fake_source_init(&source, 4096, 16, false);
	source.unaligned = true;
	for (unsigned i = 0; i < 3; i++) {
		unsigned char *run = fake_source_alloc(&source, 2);

		assert_non_null(run);
		assert_int_equal((uintptr_t)run / 4096 % 2, 1);
	}
	assert_ptr_equal(fake_source_alloc(&source, 1), source.memory);
	fake_source_fini(&source);
}

static void test_source_fails_at_the_nth_call_and_from_it(void **state)
{
	(void)state;
	for (size_t n = 1; n <= 6; n++) {
		fake_source_init(&source, 4096, 16, false);
		fake_source_alloc(&source, 1);
		fake_source_fail_at(&source, n);
		for (size_t call = 1; call <= 6; call++)
			assert_int_equal(fake_source_alloc(&source, 1) == NULL, call == n);
		fake_source_fail_from(&source, n);
		for (size_t call = 1; call <= 6; call++)
			assert_int_equal(fake_source_alloc(&source, 1) == NULL, call >= n);
		fake_source_fail_from(&source, 0);
		assert_non_null(fake_source_alloc(&source, 1));
		fake_source_fini(&source);
	}
}

static void test_source_refuses_long_runs_on_demand(void **state)
{
	(void)state;
	fake_source_init(&source, 4096, 16, false);
	source.longest_run = 2;
	assert_null(fake_source_alloc(&source, 3));
	assert_non_null(fake_source_alloc(&source, 2));
	fake_source_fini(&source);
}

static void test_source_notices_every_wrong_return(void **state)
{
	unsigned char *run;
	char elsewhere;

	(void)state;
	fake_source_init(&source, 4096, 16, false);
	run = fake_source_alloc(&source, 4);
	fake_source_free(&source, run + 4096, 3);
	assert_string_equal(source.what, "the middle of a run came back");
	fake_source_free(&source, run, 3);
	assert_int_equal(source.errors, 2);
	fake_source_free(&source, run + 8, 4);
	fake_source_free(&source, &elsewhere, 1);
	fake_source_free(&source, NULL, 1);
	assert_int_equal(source.errors, 5);
	assert_int_equal(source.pages_out, 4);
	fake_source_free(&source, run, 4);
	assert_int_equal(source.errors, 5);
	fake_source_free(&source, run, 4);
	assert_int_equal(source.errors, 6);
	assert_null(fake_source_alloc(&source, 0));
	assert_int_equal(source.errors, 7);
	fake_source_fini(&source);
}

static void test_source_takes_a_forced_answer_back_without_counting_it(void **state)
{
	static char odd[16];

	(void)state;
	fake_source_init(&source, 4096, 16, false);
	source.force = true;
	source.forced = odd;
	assert_ptr_equal(fake_source_alloc(&source, 1), odd);
	assert_ptr_equal(fake_source_alloc(&source, 1), source.memory);
	fake_source_free(&source, odd, 1);
	assert_int_equal(source.forced_returns, 1);
	assert_int_equal(source.errors, 0);
	assert_int_equal(source.pages_out, 1);
	fake_source_fini(&source);
}

static size_t seen_pages;

static void see(struct fake_source *from, size_t pages)
{
	seen_pages = seen_pages * 10 + pages;
	*(size_t *)from->user += 1;
}

static void test_source_calls_its_hooks(void **state)
{
	size_t calls = 0;
	void *run;

	(void)state;
	seen_pages = 0;
	fake_source_init(&source, 4096, 16, false);
	source.on_alloc = source.on_free = see;
	source.user = &calls;
	run = fake_source_alloc(&source, 3);
	fake_source_alloc(&source, 99);
	fake_source_free(&source, run, 3);
	assert_int_equal(calls, 3);
	assert_int_equal(seen_pages, (3 * 10 + 99) * 10 + 3);
	fake_source_fini(&source);
}

/* What the operating system says about a page. */
static bool is_readable(const void *address)
{
	FILE *maps = fopen("/proc/self/maps", "r");
	unsigned long long first, last;
	bool readable = false;
	char line[512], mode;

	assert_non_null(maps);
	while (fgets(line, sizeof(line), maps) != NULL)
		if (sscanf(line, "%llx-%llx %c", &first, &last, &mode) == 3 &&
		    (uintptr_t)address >= first && (uintptr_t)address < last)
			readable = mode == 'r';
	fclose(maps);
	return readable;
}

static void test_guard_makes_memory_that_is_not_out_untouchable(void **state)
{
	unsigned char *run;

	(void)state;
	fake_source_init(&source, 4096, 16, true);
	assert_false(is_readable(source.memory));
	run = fake_source_alloc(&source, 2);
	assert_true(is_readable(run));
	assert_true(is_readable(run + 4096));
	assert_false(is_readable(run + 8192));
	fake_source_free(&source, run, 2);
	assert_false(is_readable(run));
	fake_source_fini(&source);
}

static void test_recorder_counts_every_kind_and_keeps_the_last(void **state)
{
	static struct recorder recorder;

	(void)state;
	for (unsigned i = 0; i < KSLAB_FAULT_COUNT; i++) {
		struct kslab_report report = { .fault = (enum kslab_fault)i, .count = i };

		for (unsigned n = 0; n <= i; n++)
			recorder_report(&recorder, &report);
	}
	for (unsigned i = 0; i < KSLAB_FAULT_COUNT; i++)
		assert_int_equal(recorder.kinds[i], i + 1);
	assert_int_equal(recorder.count, KSLAB_FAULT_COUNT * (KSLAB_FAULT_COUNT + 1) / 2);
	assert_int_equal(recorder.last.count, KSLAB_FAULT_COUNT - 1);
}

static void test_random_repeats_with_its_seed_only(void **state)
{
	struct testing_random a = { 7 }, b = { 7 }, c = { 8 };
	unsigned equal = 0;

	(void)state;
	for (unsigned i = 0; i < 1000; i++) {
		uint64_t next = testing_random_next(&a);

		assert_true(next == testing_random_next(&b));
		equal += next == testing_random_next(&c);
	}
	assert_int_equal(equal, 0);
	for (unsigned i = 0; i < 1000; i++)
		assert_in_range(testing_random_below(&a, 3), 0, 2);
}

static const struct kslab_config small = { .max_page_bytes = 4096 };

static void test_fixture_sees_a_corrupt_heap(void **state)
{
	void *object;

	(void)state;
	testing_begin(&t, &small);
	object = kslab_heap_malloc(&t.heap, 24);
	assert_non_null(object);
	assert_null(testing_wrong(&t));
	t.heap.large_blocks++;
	assert_non_null(testing_wrong(&t));
	t.heap.large_blocks--;
	assert_null(testing_wrong(&t));
	kslab_heap_free(&t.heap, object);
	testing_end(&t);
}

static void test_fixture_sees_faults_missing_wanted_and_unwanted(void **state)
{
	char *object;

	(void)state;
	testing_begin(&t, &small);
	object = kslab_heap_malloc(&t.heap, 24);
	assert_non_null(testing_wrong_fault(&t, KSLAB_FAULT_INTERIOR_POINTER)); /* none yet */
	kslab_heap_free(&t.heap, object + 1);
	assert_non_null(testing_wrong(&t));
	assert_non_null(testing_wrong_fault(&t, KSLAB_FAULT_DOUBLE_FREE)); /* another kind */
	assert_null(testing_wrong_fault(&t, KSLAB_FAULT_INTERIOR_POINTER));
	assert_null(testing_wrong(&t));
	kslab_heap_free(&t.heap, object + 1);
	kslab_heap_free(&t.heap, object + 1);
	assert_non_null(testing_wrong_fault(&t, KSLAB_FAULT_INTERIOR_POINTER)); /* two */
	t.faults += 2;
	kslab_heap_free(&t.heap, object);
	testing_end(&t);
}

static void test_fixture_sees_errors_of_the_source(void **state)
{
	(void)state;
	testing_begin(&t, &small);
	fake_source_free(&t.source, t.source.memory + 1, 1);
	assert_string_equal(testing_wrong(&t), "memory came back that is not ours");
	t.source.errors = 0;
	testing_end(&t);
}

static void test_fixture_sees_pages_that_do_not_come_back(void **state)
{
	void *object;

	(void)state;
	testing_begin(&t, &small);
	object = kslab_heap_malloc(&t.heap, 24);
	assert_string_equal(testing_wrong_end(&t), "kslab_fini refused");
	t.faults++;
	kslab_heap_free(&t.heap, object);
	fake_source_take(&t.source, 1);
	assert_string_equal(testing_wrong_end(&t), "pages did not come back");
	fake_source_fini(&t.source);
}

static void test_digest_changes_with_any_state_and_not_with_counters(void **state)
{
	uint64_t before;
	unsigned char *object;

	(void)state;
	testing_begin(&t, &small);
	object = kslab_heap_malloc(&t.heap, 24);
	before = testing_digest(&t);
	assert_true(testing_digest(&t) == before);
	t.heap.boot_zone.counters.failures++;
	t.heap.lock_acquisitions++;
	assert_true(testing_digest(&t) == before);
	object[3] ^= 1;
	assert_true(testing_digest(&t) != before);
	object[3] ^= 1;
	t.heap.pages_in_use++;
	assert_true(testing_digest(&t) != before);
	t.heap.pages_in_use--;
	kslab_heap_free(&t.heap, object);
	assert_true(testing_digest(&t) != before);
	testing_end(&t);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(test_source_gives_aligned_disjoint_runs_lowest_first),
		cmocka_unit_test(test_source_serves_exactly_its_pages),
		cmocka_unit_test(test_source_gives_unaligned_runs_on_demand),
		cmocka_unit_test(test_source_fails_at_the_nth_call_and_from_it),
		cmocka_unit_test(test_source_refuses_long_runs_on_demand),
		cmocka_unit_test(test_source_notices_every_wrong_return),
		cmocka_unit_test(test_source_takes_a_forced_answer_back_without_counting_it),
		cmocka_unit_test(test_source_calls_its_hooks),
		cmocka_unit_test(test_guard_makes_memory_that_is_not_out_untouchable),
		cmocka_unit_test(test_recorder_counts_every_kind_and_keeps_the_last),
		cmocka_unit_test(test_random_repeats_with_its_seed_only),
		cmocka_unit_test(test_fixture_sees_a_corrupt_heap),
		cmocka_unit_test(test_fixture_sees_faults_missing_wanted_and_unwanted),
		cmocka_unit_test(test_fixture_sees_errors_of_the_source),
		cmocka_unit_test(test_fixture_sees_pages_that_do_not_come_back),
		cmocka_unit_test(test_digest_changes_with_any_state_and_not_with_counters),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
