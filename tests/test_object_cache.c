/* SPDX-License-Identifier: MIT
 * test_object_cache.c - owns the tests of typed caches with a constructor.
 */
#include "testing.h"

static struct testing t;
static const struct kslab_config frames = { .max_page_bytes = 4096 };
static const struct kslab_config defaults = { 0 };

struct thing {
	uint32_t magic, constructed, used;
	unsigned char payload[];
};

#define MAGIC 0x600df00du

static size_t constructions;

static void construct(void *object, void *ctx)
{
	struct thing *thing = object;

	assert_ptr_equal(ctx, &constructions);
	thing->magic = MAGIC;
	thing->constructed = (uint32_t)++constructions;
	thing->used = 0;
}

static void begin(struct kslab_cache *cache, const struct kslab_config *config, size_t size,
		  size_t align)
{
	testing_begin(&t, config);
	constructions = 0;
	assert_int_equal(kslab_heap_cache_init(&t.heap, cache, "thing", size, align, construct,
					       &constructions),
			 KSLAB_OK);
	testing_step(&t);
}

static void end(struct kslab_cache *cache)
{
	assert_int_equal(kslab_cache_destroy(cache), KSLAB_OK);
	testing_end(&t);
}

/* Statistics of the only cache: they come behind the size classes. */
static struct kslab_class_stats figures(void)
{
	struct kslab_class_stats stats;

	assert_true(kslab_heap_class_stats(&t.heap, KSLAB_CLASSES, &stats));
	return stats;
}

static void test_the_constructor_runs_once_for_each_slot_when_its_page_is_made(void **state)
{
	static const size_t sizes[] = { 12, 16, 40, 100, 700, 1000, 2000, 4000, 4096 };
	const struct kslab_config keeps_all = { .retain_bytes = (size_t)1 << 30 };
	struct kslab_cache cache;

	(void)state;
	for (size_t s = 0; s < TESTING_COUNT(sizes); s++) {
		static void *objects[600];
		size_t made;

		begin(&cache, &keeps_all, sizes[s], 0);
		assert_int_equal(constructions, 0); /* nothing before the first page */
		for (unsigned round = 0; round < 3; round++) {
			for (unsigned i = 0; i < 600; i++) {
				struct thing *thing = objects[i] = kslab_cache_alloc(&cache);

				assert_non_null(thing);
				assert_int_equal(thing->magic, MAGIC);
				assert_int_equal(constructions, figures().slots);
			}
			made = constructions;
			for (unsigned i = 0; i < 600; i++)
				kslab_cache_free(&cache, objects[i]);
			testing_step(&t);
			assert_int_equal(constructions, made);
		}
		end(&cache);
	}
}

static void test_an_object_comes_back_in_the_state_it_was_freed_in(void **state)
{
	enum { COUNT = 300 };
	static struct thing *things[COUNT];
	static uint32_t uses[10000];
	struct kslab_cache cache;
	struct testing_random random = testing_seed("cache state", 21);

	(void)state;
	begin(&cache, &frames, 136, 0);
	memset(things, 0, sizeof(things));
	memset(uses, 0, sizeof(uses));
	for (unsigned n = 0; n < 20000; n++) {
		size_t i = testing_random_below(&random, COUNT);

		if (things[i] != NULL) {
			/* All of the slot is the client's; it leaves its mark there. */
			memset(things[i]->payload, (int)(things[i]->used & 0xff),
			       136 - sizeof(struct thing));
			kslab_cache_free(&cache, things[i]);
			things[i] = NULL;
			continue;
		}
		things[i] = kslab_cache_alloc(&cache);
		assert_int_equal(things[i]->magic, MAGIC);
		assert_true(things[i]->constructed < TESTING_COUNT(uses));
		/* How often it was used before is written in it, and here. */
		assert_int_equal(things[i]->used, uses[things[i]->constructed]++);
		for (size_t k = 0; things[i]->used != 0 && k < 136 - sizeof(struct thing); k++)
			assert_int_equal(things[i]->payload[k], things[i]->used & 0xff);
		things[i]->used++;
		if (n % 64 == 0)
			testing_step(&t);
	}
	for (unsigned i = 0; i < COUNT; i++)
		kslab_cache_free(&cache, things[i]);
	end(&cache);
}

static void test_alignment_and_size_are_as_asked(void **state)
{
	(void)state;
	for (size_t align = 1; align <= 4096; align *= 2) {
		for (size_t size = sizeof(struct thing); size <= 4096; size += 333) {
			struct kslab_cache cache;
			unsigned char *objects[20];

			begin(&cache, &defaults, size, align);
			for (unsigned i = 0; i < 20; i++) {
				objects[i] = kslab_cache_alloc(&cache);
				assert_int_equal((uintptr_t)objects[i] % align, 0);
				memset(objects[i], (int)i, size);
			}
			for (unsigned i = 0; i < 20; i++) {
				assert_int_equal(objects[i][0], i);
				assert_int_equal(objects[i][size - 1], i);
				kslab_cache_free(&cache, objects[i]);
			}
			end(&cache);
		}
	}
}

static void test_impossible_caches_are_refused(void **state)
{
	struct kslab_cache cache;
	static struct kslab_heap none;

	(void)state;
	testing_begin(&t, &frames);
#define TRY(size, align) kslab_heap_cache_init(&t.heap, &cache, "bad", (size), (align), NULL, NULL)
	assert_int_equal(TRY(0, 8), KSLAB_BAD_ARGUMENT);
	assert_int_equal(TRY(4097, 8), KSLAB_BAD_ARGUMENT);
	assert_int_equal(TRY(SIZE_MAX, 8), KSLAB_BAD_ARGUMENT);
	assert_int_equal(TRY(SIZE_MAX, 4096), KSLAB_BAD_ARGUMENT);
	assert_int_equal(TRY(8, 3), KSLAB_BAD_ALIGNMENT);
	assert_int_equal(TRY(8, 8192), KSLAB_BAD_ALIGNMENT);
	assert_int_equal(TRY(8, SIZE_MAX), KSLAB_BAD_ALIGNMENT);
#undef TRY
	assert_int_equal(kslab_heap_cache_init(&none, &cache, "none", 8, 8, NULL, NULL),
			 KSLAB_NOT_INITIALISED);
	assert_null(t.heap.caches);
	testing_end(&t);
}

static void test_an_object_goes_back_to_its_own_cache_only(void **state)
{
	struct kslab_cache cache, other;
	void *object, *plain, *large;

	(void)state;
	begin(&cache, &frames, 100, 0);
	assert_int_equal(kslab_heap_cache_init(&t.heap, &other, "other", 100, 0, NULL, NULL),
			 KSLAB_OK);
	object = kslab_cache_alloc(&cache);
	plain = kslab_heap_malloc(&t.heap, 100);
	large = kslab_heap_malloc(&t.heap, 50000);
	kslab_cache_free(&other, object);
	testing_fault(&t, KSLAB_FAULT_WRONG_CACHE);
	kslab_heap_free(&t.heap, object);
	testing_fault(&t, KSLAB_FAULT_WRONG_CACHE);
	kslab_heap_free_sized(&t.heap, object, 100);
	testing_fault(&t, KSLAB_FAULT_WRONG_CACHE);
	kslab_cache_free(&cache, plain);
	testing_fault(&t, KSLAB_FAULT_WRONG_CACHE);
	kslab_cache_free(&cache, large);
	testing_fault(&t, KSLAB_FAULT_WRONG_CACHE);
	kslab_cache_free(&cache, (char *)object + 1);
	testing_fault(&t, KSLAB_FAULT_INTERIOR_POINTER);
	kslab_cache_free(&cache, &t);
	testing_fault(&t, KSLAB_FAULT_FOREIGN_POINTER);
	assert_null(kslab_heap_realloc(&t.heap, object, 200));
	testing_fault(&t, KSLAB_FAULT_WRONG_CACHE);
	kslab_cache_free(&cache, NULL);
	testing_step(&t);
	kslab_cache_free(&cache, object);
	kslab_cache_free(&cache, object);
	testing_fault(&t, KSLAB_FAULT_DOUBLE_FREE);
	kslab_heap_free(&t.heap, plain);
	kslab_heap_free(&t.heap, large);
	assert_int_equal(kslab_cache_destroy(&other), KSLAB_OK);
	end(&cache);
}

static void test_destroy_is_refused_while_objects_live_and_names_the_first(void **state)
{
	(void)state;
	for (unsigned live = 1; live <= 100; live += 9) {
		struct kslab_class_stats stats;
		struct kslab_cache cache;
		void *objects[100];
		bool found = false;

		begin(&cache, &frames, 200, 0);
		for (unsigned i = 0; i < 100; i++)
			objects[i] = kslab_cache_alloc(&cache);
		for (unsigned i = live; i < 100; i++)
			kslab_cache_free(&cache, objects[i]);
		assert_int_equal(kslab_cache_destroy(&cache), KSLAB_BAD_ARGUMENT);
		testing_fault(&t, KSLAB_FAULT_LIVE_OBJECTS);
		assert_int_equal(t.recorder.last.count, live);
		for (unsigned i = 0; i < live; i++)
			found = found || t.recorder.last.object == objects[i];
		assert_true(found);
		/* The cache goes on. */
		testing_step(&t);
		assert_int_equal(figures().live, live);
		for (unsigned i = 0; i < live; i++)
			kslab_cache_free(&cache, objects[i]);
		assert_int_equal(kslab_cache_destroy(&cache), KSLAB_OK);
		testing_step(&t);
		assert_false(kslab_heap_class_stats(&t.heap, KSLAB_CLASSES, &stats));
		testing_end(&t);
	}
}

static void test_a_forced_destroy_says_how_many_were_lost_and_gives_all_pages_back(void **state)
{
	(void)state;
	for (unsigned live = 0; live <= 60; live += 7) {
		struct kslab_cache cache;
		void *objects[60];
		size_t pages;

		begin(&cache, &frames, 500, 0);
		for (unsigned i = 0; i < 60; i++)
			objects[i] = kslab_cache_alloc(&cache);
		for (unsigned i = 0; i < 60 - live; i++)
			kslab_cache_free(&cache, objects[(i * 7) % 60]);
		pages = figures().base_pages;
		assert_true(pages != 0);
		assert_int_equal(kslab_cache_destroy_forced(&cache), live);
		testing_step(&t);
		assert_int_equal(t.source.pages_out, t.heap.meta.pages);
		testing_end(&t);
	}
}

static void test_after_a_reserve_the_cache_needs_no_page_source(void **state)
{
	static void *objects[500];

	(void)state;
	for (size_t count = 1; count <= 500; count = count * 2 + 3) {
		struct kslab_cache cache;
		size_t calls;

		begin(&cache, &defaults, 300, 0);
		assert_true(kslab_cache_reserve(&cache, count));
		testing_step(&t);
		assert_true(constructions >= count);
		calls = t.source.alloc_calls;
		fake_source_fail_from(&t.source, 1);
		for (size_t i = 0; i < count; i++)
			assert_non_null(objects[i] = kslab_cache_alloc(&cache));
		assert_int_equal(t.source.alloc_calls, calls);
		for (size_t i = 0; i < count; i++)
			kslab_cache_free(&cache, objects[i]);
		fake_source_fail_from(&t.source, 0);
		end(&cache);
	}
}

static void test_a_fault_at_every_call_of_the_source_is_survived(void **state)
{
	bool reached = true;
	size_t failures = 0;

	(void)state;
	for (size_t n = 1; reached; n++) {
		struct kslab_cache cache;
		void *objects[80];
		size_t got = 0;

		begin(&cache, &frames, 400, 0);
		fake_source_fail_at(&t.source, n);
		for (unsigned i = 0; i < 80; i++) {
			objects[got] = kslab_cache_alloc(&cache);
			if (objects[got] == NULL) {
				failures++;
				assert_int_equal(kslab_heap_last_error(&t.heap), KSLAB_NO_PAGES);
				objects[got] = kslab_cache_alloc(&cache); /* the next try */
				assert_non_null(objects[got]);
			}
			assert_int_equal(((struct thing *)objects[got])->magic, MAGIC);
			got++;
			testing_step(&t);
		}
		reached = t.source.alloc_calls >= t.source.fail_at;
		fake_source_fail_from(&t.source, 1);
		while (got != 0)
			kslab_cache_free(&cache, objects[--got]);
		end(&cache);
	}
	assert_true(failures > 5);
}

static void test_empty_pages_of_a_cache_go_back_and_are_constructed_anew(void **state)
{
	struct kslab_cache cache;
	static void *objects[200];
	size_t first;

	(void)state;
	begin(&cache, &frames, 500, 0);
	for (unsigned i = 0; i < 200; i++)
		objects[i] = kslab_cache_alloc(&cache);
	first = constructions;
	for (unsigned i = 0; i < 200; i++)
		kslab_cache_free(&cache, objects[i]);
	assert_true(kslab_heap_reclaim(&t.heap, SIZE_MAX) >= 25);
	testing_step(&t);
	assert_int_equal(figures().base_pages, 0);
	for (unsigned i = 0; i < 200; i++) {
		objects[i] = kslab_cache_alloc(&cache);
		assert_int_equal(((struct thing *)objects[i])->magic, MAGIC);
	}
	assert_int_equal(constructions, 2 * first);
	for (unsigned i = 0; i < 200; i++)
		kslab_cache_free(&cache, objects[i]);
	end(&cache);
}

/* Caches that the statistics know. */
static unsigned caches_listed(void)
{
	struct kslab_class_stats stats;
	unsigned n = 0;

	while (kslab_heap_class_stats(&t.heap, KSLAB_CLASSES + n, &stats))
		n++;
	return n;
}

static void test_a_cache_without_constructor_and_many_caches_work(void **state)
{
	struct kslab_cache caches[12];
	void *objects[12][30];

	(void)state;
	testing_begin(&t, &defaults);
	for (unsigned c = 0; c < 12; c++)
		assert_int_equal(kslab_heap_cache_init(&t.heap, &caches[c], "many", 24 + 50 * c, 0,
						       NULL, NULL),
				 KSLAB_OK);
	for (unsigned i = 0; i < 30; i++) {
		for (unsigned c = 0; c < 12; c++) {
			objects[c][i] = kslab_cache_alloc(&caches[c]);
			memset(objects[c][i], (int)(c * 30 + i), 24 + 50 * c);
		}
	}
	testing_step(&t);
	/* Destroyed in the middle of the list, first and last. */
	for (unsigned n = 0; n < 12; n++) {
		unsigned c = (n * 5 + 3) % 12;

		for (unsigned i = 0; i < 30; i++) {
			const unsigned char *byte = objects[c][i];

			for (unsigned k = 0; k < 24 + 50 * c; k++)
				assert_int_equal(byte[k], (unsigned char)(c * 30 + i));
			kslab_cache_free(&caches[c], objects[c][i]);
		}
		assert_int_equal(caches_listed(), 12 - n);
		assert_int_equal(kslab_cache_destroy(&caches[c]), KSLAB_OK);
		testing_step(&t);
	}
	assert_int_equal(caches_listed(), 0);
	testing_end(&t);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(
			test_the_constructor_runs_once_for_each_slot_when_its_page_is_made),
		cmocka_unit_test(test_an_object_comes_back_in_the_state_it_was_freed_in),
		cmocka_unit_test(test_alignment_and_size_are_as_asked),
		cmocka_unit_test(test_impossible_caches_are_refused),
		cmocka_unit_test(test_an_object_goes_back_to_its_own_cache_only),
		cmocka_unit_test(test_destroy_is_refused_while_objects_live_and_names_the_first),
		cmocka_unit_test(
			test_a_forced_destroy_says_how_many_were_lost_and_gives_all_pages_back),
		cmocka_unit_test(test_after_a_reserve_the_cache_needs_no_page_source),
		cmocka_unit_test(test_a_fault_at_every_call_of_the_source_is_survived),
		cmocka_unit_test(test_empty_pages_of_a_cache_go_back_and_are_constructed_anew),
		cmocka_unit_test(test_a_cache_without_constructor_and_many_caches_work),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
