/* SPDX-License-Identifier: MIT
 * test_purge.c - owns the tests of base pages that go while their object page stays.
 * Rank: test.  Runs: one thread that plays two CPUs.
 *
 * BUILD: -DKSLAB_CFG_HEADER='"fake_cpu.h"' -DKSLAB_CFG_CPUS=2 -DKSLAB_CFG_LEVELS=2
 */
#include "testing.h"

#include "fake_cpu.h"
#include "heap.h"

FAKE_CPU_DEFINE;

#define PAGE 4096u
#define REGION_PAGES 2048u
#define OBJECTS 6000u

static struct kslab_heap heap;
static struct recorder recorder;
static unsigned char *region;
static size_t purged_pages;
static void (*on_purge)(unsigned char *mem, size_t bytes);

static struct object {
	unsigned char *p;
	size_t bytes;
	unsigned char fill;
} object[OBJECTS];
static size_t objects;

static void purge(void *ctx, void *mem, size_t bytes)
{
	unsigned char *at = mem;

	(void)ctx;
	assert_int_equal((uintptr_t)mem % PAGE, 0);
	assert_int_equal(bytes % PAGE, 0);
	assert_true(at >= region && at + bytes <= region + REGION_PAGES * PAGE);
	assert_int_equal(fake_pins, 0);
	assert_int_equal(fake_masked, 0);
	purged_pages += bytes / PAGE;
	if (on_purge != NULL)
		on_purge(at, bytes);
	memset(mem, 0, bytes);
}

static void check(size_t faults)
{
	struct kslab_check_result result;

	assert_true(kslab_heap_check(&heap, &result));
	assert_int_equal(recorder.count, faults);
}

static void begin(unsigned debug_level)
{
	const struct kslab_config config = { .report = recorder_report,
					     .report_ctx = &recorder,
					     .purge = purge,
					     .debug_level = debug_level };

	fake_cpu = 0;
	memset(&recorder, 0, sizeof(recorder));
	purged_pages = objects = 0;
	on_purge = NULL;
	region = mmap(NULL, REGION_PAGES * PAGE, PROT_READ | PROT_WRITE,
		      MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	assert_true(region != MAP_FAILED);
	testing_forget(&heap);
	assert_int_equal(kslab_heap_init(&heap, &config), KSLAB_OK);
	assert_int_equal(kslab_heap_add_region(&heap, region, REGION_PAGES * PAGE), KSLAB_OK);
	fake_cpu = 1;
	assert_int_equal(kslab_heap_cpu_online(&heap, 1), KSLAB_OK);
	fake_cpu = 0;
}

static void make(size_t bytes)
{
	struct object *o = &object[objects];

	assert_true(objects < OBJECTS);
	o->p = kslab_heap_malloc(&heap, bytes);
	assert_non_null(o->p);
	o->bytes = bytes;
	o->fill = (unsigned char)(1 + objects % 255);
	memset(o->p, o->fill, bytes);
	objects++;
}

static void drop(struct object *o)
{
	kslab_heap_free(&heap, o->p);
	o->p = NULL;
}

static void keep_one_in_fifty(void)
{
	for (size_t i = 0; i < 1000; i++)
		make(1000);
	for (size_t i = 0; i < objects; i++)
		if (i % 50 != 0)
			drop(&object[i]);
}

/* Everything that can go, with something done in each purge. */
static void reclaim_with(void (*callback)(unsigned char *mem, size_t bytes))
{
	on_purge = callback;
	(void)kslab_heap_reclaim(&heap, SIZE_MAX);
	on_purge = NULL;
}

static void end(size_t faults)
{
	for (size_t i = 0; i < objects; i++) {
		if (object[i].p == NULL)
			continue;
		for (size_t k = 0; k < object[i].bytes; k++)
			assert_int_equal(object[i].p[k], object[i].fill);
		drop(&object[i]);
	}
	check(faults);
	assert_int_equal(kslab_heap_fini(&heap), KSLAB_OK);
	munmap(region, REGION_PAGES * PAGE);
}

static bool holds_object(const unsigned char *frame)
{
	for (size_t i = 0; i < objects; i++)
		if (object[i].p != NULL && object[i].p < frame + PAGE &&
		    object[i].p + object[i].bytes > frame)
			return true;
	return false;
}

/* Every base page of an object page that holds no live object reads as zero. Return: how many. */
static size_t assert_free_frames_are_gone(void)
{
	size_t gone = 0;

	for (size_t i = 0; i < REGION_PAGES; i++) {
		const unsigned char *frame = region + i * PAGE;
		const struct kslab_page *page = kslab_page_map_find(&heap.map, (uintptr_t)frame);

		if (page->sc == NULL || holds_object(frame))
			continue;
		for (size_t k = 0; k < PAGE; k++)
			assert_int_equal(frame[k], 0);
		gone++;
	}
	return gone;
}

static void test_base_pages_without_a_live_object_go(void **state)
{
	static const size_t most[] = { 64, 300, 1100, 3500 };
	struct testing_random random = testing_seed("purge", 5);

	(void)state;
	for (unsigned round = 0; round < 12; round++) {
		begin(0);
		for (size_t i = 0; i < 4000; i++)
			make(8 + testing_random_below(&random, most[round % 4]));
		for (size_t i = 0; i < objects; i++)
			if (testing_random_below(&random, 10) != 0)
				drop(&object[i]);
		check(0);
		kslab_heap_reclaim(&heap, SIZE_MAX);
		check(0);
		assert_true(assert_free_frames_are_gone() >= (round % 4 < 2 ? 0 : 20));
		/* What is free again can be had again. */
		for (size_t i = 0; i < 500; i++)
			make(8 + testing_random_below(&random, most[round % 4]));
		end(0);
	}
}

static void test_enough_is_enough(void **state)
{
	size_t released;

	(void)state;
	begin(0);
	for (size_t i = 0; i < 1000; i++)
		make(1000);
	for (size_t i = 100; i < 900; i++)
		if (i % 100 != 0)
			drop(&object[i]);
	released = kslab_heap_reclaim(&heap, 1);
	assert_true(released >= 1);
	purged_pages = 0;
	(void)kslab_heap_reclaim(&heap, 0);
	assert_int_equal(purged_pages, 0);
	end(0);
}

/* The thread is moved to another CPU while the callback runs, and that one allocates and frees. */
static struct object *victim;

static void move_and_work(unsigned char *mem, size_t bytes)
{
	void *p;

	(void)mem;
	(void)bytes;
	fake_cpu = 1 - fake_cpu;
	p = kslab_heap_malloc(&heap, 1000);
	assert_non_null(p);
	assert_true((unsigned char *)p < mem || (unsigned char *)p >= mem + bytes);
	kslab_heap_free(&heap, p);
	while (victim < &object[objects] && victim->p == NULL)
		victim++;
	if (victim < &object[objects])
		drop(victim);
}

static void test_the_cpu_may_change_and_the_callback_may_call(void **state)
{
	(void)state;
	begin(0);
	for (size_t i = 0; i < 2000; i++)
		make(1000);
	for (size_t i = 0; i < objects; i++)
		if (i % 12 != 0) /* no page is empty */
			drop(&object[i]);
	victim = object;
	reclaim_with(move_and_work);
	/* It goes on with the pages of the CPU that it finds itself on. */
	assert_true(purged_pages > 0);
	fake_cpu = 0;
	check(0);
	for (unsigned i = 0; i < 2; i++) {
		fake_cpu = i;
		kslab_heap_idle(&heap);
	}
	fake_cpu = 0;
	assert_true(kslab_heap_quiesce(&heap));
	end(0);
}

/* ---- what comes while the callback works ----------------------------------------------------- */

static unsigned char *was[OBJECTS]; /* where the objects lay */
static size_t expected_faults;
static unsigned purges; /* of object pages */

/* Pages of the class on CPU 0, none of them empty, most of them free. */
static void scatter(size_t count)
{
	for (size_t i = 0; i < count; i++) {
		make(1000);
		was[i] = object[i].p;
	}
	for (size_t i = 0; i < objects; i++)
		if (i % 12 != 0)
			drop(&object[i]);
	expected_faults = 0;
	purges = 0;
}

/* A page that goes as a whole is none: there the map tells at once. */
static struct kslab_page *object_page_at(const unsigned char *mem)
{
	struct kslab_page *page = kslab_page_map_find(&heap.map, (uintptr_t)mem);

	return page->sc != NULL ? page : NULL;
}

static bool overlaps(const unsigned char *p, const unsigned char *mem, size_t bytes)
{
	return p < mem + bytes && p + 1000 > mem;
}

static void free_again(unsigned cpu, unsigned char *p)
{
	fake_cpu = cpu;
	kslab_heap_free(&heap, p);
	assert_int_equal(recorder.count, ++expected_faults);
	assert_int_equal(recorder.last.fault, KSLAB_FAULT_DOUBLE_FREE);
	assert_ptr_equal(recorder.last.pointer, p);
	assert_ptr_equal(recorder.last.object, p);
}

/* Each slot of it is freed again: refused at the call; then there is no slot of it to be had. */
static void free_all_again(unsigned char *mem, size_t bytes)
{
	unsigned char *taken[40];

	if (object_page_at(mem) == NULL)
		return;
	purges++;
	for (size_t i = 0; i < objects; i++)
		if (object[i].p == NULL && overlaps(was[i], mem, bytes))
			for (unsigned cpu = 0; cpu < 2; cpu++)
				free_again(cpu, was[i]);
	check(expected_faults);
	for (unsigned cpu = 0; cpu < 2; cpu++) {
		fake_cpu = cpu;
		for (size_t i = 0; i < TESTING_COUNT(taken); i++) {
			assert_non_null(taken[i] = kslab_heap_malloc(&heap, 1000));
			assert_false(overlaps(taken[i], mem, bytes));
		}
		for (size_t i = 0; i < TESTING_COUNT(taken); i++)
			kslab_heap_free(&heap, taken[i]);
	}
	fake_cpu = 0;
	check(expected_faults);
}

static void test_a_double_free_meanwhile_is_refused_at_once(void **state)
{
	(void)state;
	begin(0);
	scatter(300);
	reclaim_with(free_all_again);
	assert_true(purges > 3 && expected_faults > 20);
	check(expected_faults);
	end(expected_faults);
}

/* When all is free, nothing but metadata is in use. */
static void assert_nothing_is_lost(void)
{
	struct kslab_stats stats;

	for (size_t i = 0; i < objects; i++)
		if (object[i].p != NULL)
			drop(&object[i]);
	for (unsigned round = 0; round < 2; round++) {
		for (unsigned cpu = 0; cpu < 2; cpu++) {
			fake_cpu = cpu;
			(void)kslab_heap_reclaim(&heap, SIZE_MAX);
		}
	}
	fake_cpu = 0;
	assert_true(kslab_heap_quiesce(&heap));
	kslab_heap_stats(&heap, &stats);
	assert_int_equal(stats.live_objects, 0);
	assert_int_equal(stats.pages_in_use, stats.metadata_pages);
}

/* The page gets its other slots back, and is empty then. */
static void free_the_others(unsigned char *mem, size_t bytes)
{
	struct kslab_page *page = object_page_at(mem);

	(void)bytes;
	if (page == NULL)
		return;
	purges++;
	for (size_t i = 0; i < objects; i++) {
		if (object[i].p == NULL ||
		    kslab_page_map_find(&heap.map, (uintptr_t)object[i].p) != page)
			continue;
		fake_cpu = purges % 2;
		drop(&object[i]);
	}
	for (unsigned cpu = 0; cpu < 2; cpu++) {
		fake_cpu = cpu;
		kslab_heap_idle(&heap); /* serves the request, too */
	}
	fake_cpu = 0;
	assert_ptr_equal(object_page_at(mem), page);
	check(0);
}

/* What was scattered is purged, and each callback does something else besides: nothing is lost. */
static void purge_scattered_with(size_t count, void (*callback)(unsigned char *mem, size_t bytes))
{
	begin(0);
	scatter(count);
	reclaim_with(callback);
	assert_true(purges > 3);
	check(0);
	assert_nothing_is_lost();
	end(0);
}

static void test_a_page_that_becomes_empty_meanwhile_is_not_lost(void **state)
{
	(void)state;
	purge_scattered_with(300, free_the_others);
}

/* The CPU goes, or goes and comes, while a page of it is being purged by a thread that has moved. */
static bool comes_back;

static void go_away(unsigned char *mem, size_t bytes)
{
	struct kslab_page *page = object_page_at(mem);

	if (page == NULL || heap.zone[1] == &kslab_zone_none)
		return;
	purges++;
	for (size_t i = 0; i < objects; i++) /* to be harvested when the callback is over */
		if (object[i].p != NULL && !overlaps(object[i].p, mem, bytes) &&
		    kslab_page_map_find(&heap.map, (uintptr_t)object[i].p) == page) {
			fake_cpu = 0;
			drop(&object[i]);
			fake_cpu = 1;
			break;
		}
	assert_int_equal(kslab_heap_cpu_offline(&heap, 1), KSLAB_OK);
	fake_cpu = 0;
	(void)kslab_heap_reclaim(&heap, 1000);
	check(0);
	for (size_t i = 0; i < 40; i++) {
		unsigned char *p = kslab_heap_malloc(&heap, 1000);

		assert_false(overlaps(p, mem, bytes));
		kslab_heap_free(&heap, p);
	}
	if (comes_back) {
		fake_cpu = 1;
		assert_int_equal(kslab_heap_cpu_online(&heap, 1), KSLAB_OK);
	}
}

static void test_the_cpu_may_go_meanwhile(void **state)
{
	(void)state;
	for (unsigned i = 0; i < 2; i++) {
		comes_back = i != 0;
		begin(0);
		fake_cpu = 1;
		scatter(300);
		reclaim_with(go_away);
		assert_int_equal(fake_cpu, i);
		fake_cpu = 0;
		check(0);
		(void)kslab_heap_quiesce(&heap);
		assert_null(heap.lingering);
		if (heap.zone[1] == &kslab_zone_none) {
			fake_cpu = 1;
			assert_int_equal(kslab_heap_cpu_online(&heap, 1), KSLAB_OK);
			fake_cpu = 0;
		}
		assert_nothing_is_lost();
		end(0);
	}
}

/* The callback calls reclaim: it purges other pages. */
static struct {
	unsigned char *mem;
	size_t bytes;
} under_way[3];
static size_t depth;

static void reclaim_again(unsigned char *mem, size_t bytes)
{
	if (object_page_at(mem) == NULL)
		return;
	purges++;
	for (size_t i = 0; i < depth; i++)
		assert_true(mem + bytes <= under_way[i].mem ||
			    under_way[i].mem + under_way[i].bytes <= mem);
	if (depth == TESTING_COUNT(under_way))
		return;
	under_way[depth].mem = mem;
	under_way[depth++].bytes = bytes;
	(void)kslab_heap_reclaim(&heap, SIZE_MAX);
	check(0);
	depth--;
}

static void test_reclaim_in_the_callback_purges_other_pages(void **state)
{
	(void)state;
	purge_scattered_with(100, reclaim_again);
}

/* Free memory holds its poison there: it is looked at later. */
static void test_debug_levels_keep_free_memory(void **state)
{
	(void)state;
	for (unsigned level = 1; level <= 2; level++) {
		begin(level);
		keep_one_in_fifty();
		(void)kslab_heap_reclaim(&heap, SIZE_MAX);
		check(0);
		for (size_t i = 0; i < 500; i++)
			make(1000);
		end(0);
	}
}

/* The callback knows regions; pages of the source are none of its business. */
static void test_pages_of_the_source_are_left_alone(void **state)
{
	static struct fake_source source;
	struct kslab_config config = { .alloc_pages = fake_source_alloc,
				       .free_pages = fake_source_free,
				       .source_ctx = &source,
				       .report = recorder_report,
				       .report_ctx = &recorder,
				       .purge = purge };

	(void)state;
	memset(&recorder, 0, sizeof(recorder));
	purged_pages = objects = 0;
	fake_source_init(&source, PAGE, 1024, false);
	testing_forget(&heap);
	assert_int_equal(kslab_heap_init(&heap, &config), KSLAB_OK);
	keep_one_in_fifty();
	(void)kslab_heap_reclaim(&heap, SIZE_MAX);
	assert_int_equal(purged_pages, 0);
	for (size_t i = 0; i < objects; i++)
		if (object[i].p != NULL)
			drop(&object[i]);
	check(0);
	assert_int_equal(kslab_heap_fini(&heap), KSLAB_OK);
	assert_int_equal(source.errors, 0);
	fake_source_fini(&source);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(test_base_pages_without_a_live_object_go),
		cmocka_unit_test(test_enough_is_enough),
		cmocka_unit_test(test_the_cpu_may_change_and_the_callback_may_call),
		cmocka_unit_test(test_a_double_free_meanwhile_is_refused_at_once),
		cmocka_unit_test(test_a_page_that_becomes_empty_meanwhile_is_not_lost),
		cmocka_unit_test(test_the_cpu_may_go_meanwhile),
		cmocka_unit_test(test_reclaim_in_the_callback_purges_other_pages),
		cmocka_unit_test(test_debug_levels_keep_free_memory),
		cmocka_unit_test(test_pages_of_the_source_are_left_alone),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
