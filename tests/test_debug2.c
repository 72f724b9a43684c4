/* SPDX-License-Identifier: MIT
 * test_debug2.c - owns the proof of debug level 2: quarantine (row 3 of the table of misuse),
 * callers, sequence numbers; and everything that level 1 promises.
 * Rank: test.  Runs: one thread that plays two CPUs, in turns.
 *
 * BUILD: -DKSLAB_CFG_DEBUG=2 -DKSLAB_CFG_HEADER='"fake_cpu.h"' -DKSLAB_CFG_CPUS=2
 * -DKSLAB_CFG_LEVELS=4
 */
#include "debug_common.h"

#include <kslab/observe.h>

static const struct kslab_config defaults = { .max_page_bytes = PAGE };

/* Functions whose calls can be told apart in a report. */
#define CODE_BYTES 256u
static __attribute__((noinline)) void *allocate_here(size_t n)
{
	void *p = kslab_heap_malloc(&t.heap, n);

	__asm__ volatile("" ::: "memory");
	return p;
}

static __attribute__((noinline)) void free_here(void *p)
{
	kslab_heap_free(&t.heap, p);
	__asm__ volatile("" ::: "memory");
}

static __attribute__((noinline)) void free_there(void *p)
{
	kslab_heap_free(&t.heap, p);
	__asm__ volatile("" ::: "memory");
}

static bool is_in(const void *caller, uintptr_t function)
{
	return (uintptr_t)caller - function < CODE_BYTES;
}

static void names_both(const struct kslab_report *report)
{
	assert_true(is_in(report->alloc_caller, (uintptr_t)allocate_here));
	assert_true(is_in(report->free_caller, (uintptr_t)free_here));
}

static void a_double_free_within_the_window_is_caught_with_both_callers(void **state)
{
	(void)state;
	testing_begin(&t, &defaults);
	online(1);
	for (size_t n = 0; n <= 2500; n += 1 + n / 2) {
		void *p = allocate_here(n), *other[255];

		free_here(p);
		for (unsigned i = 0; i < 90;
		     i++) /* other work in between; at level 0 the slot would be issued again */
			other[i] = get(n);
		for (unsigned i = 0; i < 90; i++) {
			assert_ptr_not_equal(other[i], p);
			put(other[i]);
		}
		for (fake_cpu = 0; fake_cpu < 2; fake_cpu++) {
			free_there(p);
			testing_fault(&t, KSLAB_FAULT_DOUBLE_FREE);
			names_both(&t.recorder.last);
			assert_true(is_in(t.recorder.last.caller, (uintptr_t)free_there));
		}
		fake_cpu = 0;
		assert_int_equal(kslab_heap_usable_size(&t.heap, p), 0);
		testing_fault(&t, KSLAB_FAULT_DOUBLE_FREE);
		names_both(&t.recorder.last);
		assert_null(kslab_heap_realloc(&t.heap, p, 5));
		testing_fault(&t, KSLAB_FAULT_DOUBLE_FREE);
		kslab_heap_free_sized(&t.heap, p, n);
		testing_fault(&t, KSLAB_FAULT_DOUBLE_FREE);
		(void)kslab_heap_reclaim(&t.heap, 0); /* empties the ring, gives nothing back */
		kslab_heap_free(&t.heap, p);
		testing_fault(&t, KSLAB_FAULT_DOUBLE_FREE); /* by the bits now */
		names_both(&t.recorder.last);
	}
	testing_end(&t);
}

static void the_window_is_as_long_as_was_asked(void **state)
{
	static const size_t lengths[] = { 1, 2, 7, 0, 1000 };
	static void *p[1100];

	(void)state;
	for (size_t l = 0; l < TESTING_COUNT(lengths); l++) {
		struct kslab_config config = defaults;
		size_t length = lengths[l] != 0 ? lengths[l] : 256;

		config.quarantine_objects = lengths[l];
		testing_begin(&t, &config);
		for (size_t i = 0; i < length + 50; i++)
			p[i] = get(20);
		for (size_t i = 0; i < length + 50; i++) {
			put(p[i]);
			assert_int_equal(t.heap.quarantine.count, i < length ? i + 1 : length);
		}
		for (size_t i = 0; i < 50; i++) /* oldest first: their bits say free again */
			assert_true(kslab_page_live(page_of(p[i])) < page_of(p[i])->slots);
		testing_end(&t);
	}
}

static void the_window_is_bounded_in_bytes(void **state)
{
	struct kslab_config config = defaults;
	void *p[100];

	(void)state;
	config.max_page_bytes = 64 * 1024;
	config.quarantine_bytes = 20000;
	testing_begin(&t, &config);
	for (size_t i = 0; i < 100; i++)
		p[i] = get(i % 10 == 0 ? 15000 : 600);
	for (size_t i = 0; i < 100; i++) {
		size_t slot = slot_bytes(p[i]);

		put(p[i]);
		assert_true(t.heap.quarantine.bytes <= 20000 || t.heap.quarantine.count == 1);
		assert_true(t.heap.quarantine.bytes >= slot);
	}
	testing_end(&t);
}

static void without_quarantine_objects_are_free_at_once(void **state)
{
	void *p;

	(void)state;
	testing_begin(&t, &plain);
	p = get(100);
	put(p);
	assert_null(t.heap.quarantine.ring);
	assert_int_equal(kslab_page_live(page_of(p)), 0);
	testing_end(&t);
	/* So it is where there was no memory for the ring, and the ring is made when there is. */
	testing_begin(&t, &defaults);
	p = get(100);
	assert_non_null(t.heap.quarantine.ring);
	put(p);
	testing_end(&t);
}

static bool count_object(void *ctx, void *object, size_t bytes)
{
	(void)object;
	*(size_t *)ctx += bytes;
	return true;
}

static void quarantined_objects_count_as_free(void **state)
{
	struct kslab_check_result result;
	struct kslab_class_stats row;
	struct kslab_stats stats;
	struct kslab_mark mark;
	size_t bytes = 0, live = 0;
	void *p[60];

	(void)state;
	testing_begin(&t, &defaults);
	for (unsigned i = 0; i < 60; i++)
		p[i] = get(100);
	for (unsigned i = 0; i < 60; i += 3)
		put(p[i]);
	assert_int_equal(t.heap.quarantine.count, 20);
	assert_true(kslab_heap_check(&t.heap, &result));
	assert_int_equal(result.live_objects, 40);
	kslab_heap_stats(&t.heap, &stats);
	assert_int_equal(stats.live_objects, 40);
	for (unsigned cls = 0; kslab_heap_class_stats(&t.heap, cls, &row); cls++)
		live += row.live;
	assert_int_equal(live, 40);
	assert_int_equal(kslab_heap_walk(&t.heap, count_object, &bytes), 40);
	assert_int_equal(bytes, 4000);
	assert_int_equal(kslab_heap_mark(&t.heap, &mark), KSLAB_OK);
	assert_int_equal(mark.objects, 40);
	for (unsigned i = 1; i < 60; i += 3)
		put(p[i]);
	assert_int_equal(kslab_diff(&mark, NULL, NULL), 0);
	for (unsigned i = 1; i < 60; i += 3)
		p[i] = get(100);
	assert_int_equal(kslab_diff(&mark, NULL, NULL), 20);
	kslab_unmark(&mark);
	for (unsigned i = 0; i < 60; i++)
		if (i % 3 != 0)
			put(p[i]);
	assert_true(kslab_heap_reclaim(&t.heap, SIZE_MAX) > 0);
	assert_int_equal(t.heap.quarantine.count, 0);
	kslab_heap_stats(&t.heap, &stats);
	assert_int_equal(stats.pages_in_use, stats.metadata_pages);
	testing_end(&t);
}

struct text {
	char bytes[4000];
	size_t used;
};

static void put_char(void *ctx, char c)
{
	struct text *text = ctx;

	assert_true(text->used + 1 < sizeof(text->bytes));
	text->bytes[text->used++] = c;
	text->bytes[text->used] = '\0';
}

/* A page whose objects all wait in the quarantine is drawn as what it is for the client: empty. */
static void quarantined_objects_are_drawn_as_free(void **state)
{
	struct text text = { { 0 }, 0 };
	size_t count, slots;
	void *p[60];

	(void)state;
	testing_begin(&t, &defaults);
	p[0] = get(300);
	slots = page_of(p[0])->slots;
	assert_true(slots < 59);
	for (count = 1; count <= slots; count++) /* one more than the page has */
		p[count] = get(300);
	assert_int_equal(page_of(p[0])->state, KSLAB_PAGE_FULL);
	kslab_heap_print_map(&t.heap, put_char, &text);
	assert_non_null(strchr(text.bytes + strcspn(text.bytes, "\n"), '#'));
	for (size_t i = 0; i < slots; i++)
		put(p[i]);
	assert_int_equal(t.heap.quarantine.count, slots);
	text.used = 0;
	kslab_heap_print_map(&t.heap, put_char, &text);
	assert_null(strchr(text.bytes + strcspn(text.bytes, "\n"), '#'));
	assert_non_null(strchr(text.bytes + strcspn(text.bytes, "\n"), '.'));
	put(p[slots]);
	testing_end(&t);
}

/* An object at the address of an older one is told from it by its number. */
static void marks_are_exact(void **state)
{
	struct kslab_mark mark;
	void *p, *large;

	(void)state;
	testing_begin(&t, &plain);
	p = get(100);
	large = get(5 * PAGE);
	assert_int_equal(kslab_heap_mark(&t.heap, &mark), KSLAB_OK);
	put(p);
	p = again(p, 100);
	assert_int_equal(kslab_diff(&mark, NULL, NULL), 1);
	put(large);
	large = get(5 * PAGE);
	assert_int_equal(kslab_diff(&mark, NULL, NULL), 2);
	put(p);
	put(large);
	assert_int_equal(kslab_diff(&mark, NULL, NULL), 0);
	kslab_unmark(&mark);
	testing_end(&t);
}

static void pressure_empties_the_quarantine(void **state)
{
	static void *p[2000];
	size_t n = 0;

	(void)state;
	testing_begin_with(&t, &defaults, 64, true);
	while (n < TESTING_COUNT(p) && (p[n] = kslab_heap_malloc(&t.heap, 1000)) != NULL)
		n++;
	assert_int_equal(kslab_heap_last_error(&t.heap), KSLAB_NO_PAGES);
	for (size_t i = 0; i < 40; i++)
		put(p[i]);
	assert_true(t.heap.quarantine.count == 40);
	/* pages that only the ring held */
	assert_non_null(p[0] = kslab_heap_malloc(&t.heap, 3000));
	for (size_t i = 40; i < n; i++)
		put(p[i]);
	put(p[0]);
	testing_end(&t);
}

static void caches_go_with_their_quarantined_objects(void **state)
{
	struct kslab_cache cache;
	void *p[30];

	(void)state;
	testing_begin(&t, &defaults);
	assert_int_equal(kslab_heap_cache_init(&t.heap, &cache, "gone", 50, 0, NULL, NULL),
			 KSLAB_OK);
	for (unsigned i = 0; i < 30; i++)
		p[i] = kslab_cache_alloc(&cache);
	for (unsigned i = 0; i < 30; i++) {
		if (i == 29) {
			assert_int_equal(kslab_cache_destroy(&cache), KSLAB_BAD_ARGUMENT);
			testing_fault(&t, KSLAB_FAULT_LIVE_OBJECTS);
			assert_int_equal(t.recorder.last.count, 1);
			assert_ptr_equal(t.recorder.last.object, p[29]);
		}
		kslab_cache_free(&cache, p[i]);
		testing_step(&t);
	}
	kslab_cache_free(&cache, p[0]);
	testing_fault(&t, KSLAB_FAULT_DOUBLE_FREE);
	assert_non_null(t.recorder.last.free_caller);
	assert_int_equal(t.heap.quarantine.count, 30);
	assert_int_equal(kslab_cache_destroy(&cache), KSLAB_OK);
	assert_int_equal(t.heap.quarantine.count, 0);
	testing_end(&t);
}

static void fini_sees_live_objects_beside_quarantined_ones(void **state)
{
	void *p, *q;

	(void)state;
	testing_begin(&t, &defaults);
	p = get(10);
	q = get(10);
	put(p);
	assert_int_equal(kslab_heap_fini(&t.heap), KSLAB_BAD_ARGUMENT);
	testing_fault(&t, KSLAB_FAULT_LIVE_OBJECTS);
	assert_int_equal(t.recorder.last.count, 1);
	kslab_heap_free(&t.heap, p); /* a refused fini has changed nothing */
	testing_fault(&t, KSLAB_FAULT_DOUBLE_FREE);
	put(q);
	testing_end(&t);
}

static void every_fault_of_an_object_names_its_callers(void **state)
{
	unsigned char *p;

	(void)state;
	testing_begin(&t, &plain);
	p = allocate_here(100);
	p[100] ^= 1;
	free_there(p);
	reported(KSLAB_FAULT_REDZONE, p, 100);
	assert_true(is_in(t.recorder.last.alloc_caller, (uintptr_t)allocate_here));
	p[100] ^= 1;
	kslab_heap_free(&t.heap, p + 1);
	testing_fault(&t, KSLAB_FAULT_INTERIOR_POINTER);
	assert_true(is_in(t.recorder.last.alloc_caller, (uintptr_t)allocate_here));
	free_here(p);
	p[50] = 0;
	kslab_heap_reclaim(&t.heap, SIZE_MAX);
	assert_int_equal(t.recorder.count, ++t.faults);
	assert_int_equal(t.recorder.last.fault, KSLAB_FAULT_USE_AFTER_FREE);
	names_both(&t.recorder.last);
	p = allocate_here(100);
	free_here(p);
	p[99] = 0;
	again(p, 100);
	reported(KSLAB_FAULT_USE_AFTER_FREE, p, 99);
	names_both(&t.recorder.last);
	put(p);
	/* Whatever call it was. */
	p = kslab_heap_zalloc(&t.heap, 10);
	kslab_heap_free(&t.heap, p + 1);
	testing_fault(&t, KSLAB_FAULT_INTERIOR_POINTER);
	assert_true(is_in(t.recorder.last.alloc_caller,
			  (uintptr_t)every_fault_of_an_object_names_its_callers) ||
		    (uintptr_t)t.recorder.last.alloc_caller -
				    (uintptr_t)every_fault_of_an_object_names_its_callers <
			    4096);
	p = kslab_heap_realloc(&t.heap, p, 500);
	kslab_heap_free(&t.heap, p + 1);
	testing_fault(&t, KSLAB_FAULT_INTERIOR_POINTER);
	assert_true((uintptr_t)t.recorder.last.alloc_caller -
			    (uintptr_t)every_fault_of_an_object_names_its_callers <
		    4096);
	put(p);
	testing_end(&t);
}

static void a_write_to_a_quarantined_object_is_found_by_the_checker(void **state)
{
	unsigned char *p;

	(void)state;
	testing_begin(&t, &defaults);
	p = get(300);
	put(p);
	for (size_t i = 0; i < room_bytes(p); i += 7) {
		p[i] ^= 4;
		check_finds(p, i);
		p[i] ^= 4;
	}
	p[3] = 0;
	for (unsigned i = 0; i < 300; i++)
		kslab_heap_free(&t.heap, get(300)); /* until the slot is issued again */
	assert_int_equal(t.recorder.count, 1);
	assert_int_equal(t.recorder.last.fault, KSLAB_FAULT_USE_AFTER_FREE);
	assert_ptr_equal(t.recorder.last.object, p);
	assert_int_equal(t.recorder.last.count, 3);
	t.faults = 1;
	testing_end(&t);
}

static void a_free_in_an_nmi_goes_past_a_ring_that_is_locked(void **state)
{
	struct kslab_lock_state lock;
	void *p[3];

	(void)state;
	testing_begin(&t, &defaults);
	for (unsigned i = 0; i < 3; i++)
		p[i] = get(100);
	assert_true(kslab_heap_lock(&t.heap, &lock));
	fake_nmi = 1;
	kslab_heap_free(&t.heap, p[0]);
	fake_nmi = 0;
	kslab_heap_unlock(&t.heap, &lock);
	fake_nmi = 1;
	kslab_heap_free(&t.heap, p[1]);
	fake_nmi = 0;
	assert_int_equal(t.heap.quarantine.count, 1);
	put(p[2]);
	testing_end(&t);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		DEBUG_TESTS,
		TEST(a_double_free_within_the_window_is_caught_with_both_callers),
		TEST(the_window_is_as_long_as_was_asked),
		TEST(the_window_is_bounded_in_bytes),
		TEST(without_quarantine_objects_are_free_at_once),
		TEST(quarantined_objects_count_as_free),
		TEST(quarantined_objects_are_drawn_as_free),
		TEST(marks_are_exact),
		TEST(pressure_empties_the_quarantine),
		TEST(caches_go_with_their_quarantined_objects),
		TEST(fini_sees_live_objects_beside_quarantined_ones),
		TEST(every_fault_of_an_object_names_its_callers),
		TEST(a_write_to_a_quarantined_object_is_found_by_the_checker),
		TEST(a_free_in_an_nmi_goes_past_a_ring_that_is_locked),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
