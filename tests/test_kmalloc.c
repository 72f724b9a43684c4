/* SPDX-License-Identifier: MIT
 * test_kmalloc.c - owns the tests of the malloc-shaped interface.
 */
#include "testing.h"

#include <kslab/kmalloc.h>

#include "page_map.h"
#include "size_class.h"

static struct testing t;
static const struct kslab_config defaults = { 0 };
static const struct kslab_config frames = { .max_page_bytes = 4096 };

/* Dirt for the next allocation: what a slot holds must not matter. */
static void dirty(size_t n)
{
	void *object = kslab_heap_malloc(&t.heap, n);

	memset(object, 0xff, kslab_heap_usable_size(&t.heap, object));
	kslab_heap_free(&t.heap, object);
}

static bool is_filled(const unsigned char *mem, unsigned char byte, size_t n)
{
	for (size_t i = 0; i < n; i++)
		if (mem[i] != byte)
			return false;
	return true;
}

/* ---- sizes ----------------------------------------------------------------------------------- */

static void test_size_0_gives_distinct_objects_that_can_be_freed(void **state)
{
	void *objects[100];

	(void)state;
	testing_begin(&t, &defaults);
	for (unsigned i = 0; i < 100; i++) {
		objects[i] = kslab_heap_malloc(&t.heap, 0);
		assert_non_null(objects[i]);
		for (unsigned k = 0; k < i; k++)
			assert_ptr_not_equal(objects[i], objects[k]);
	}
	for (unsigned i = 0; i < 100; i++)
		kslab_heap_free(&t.heap, objects[i]);
	kslab_heap_free(&t.heap, NULL);
	testing_end(&t);
}

static void test_usable_size_is_good_size_for_every_size_and_all_of_it_can_be_used(void **state)
{
	static const struct kslab_config configs[] = { { 0 },
						       { .max_page_bytes = 4096 },
						       { .min_align = 16 } };

	(void)state;
	for (size_t c = 0; c < TESTING_COUNT(configs); c++) {
		testing_begin(&t, &configs[c]);
		for (size_t n = 0; n <= 70000; n += n < 5000 ? 1 : 997) {
			unsigned char *object = kslab_heap_malloc(&t.heap, n);
			unsigned char *other = kslab_heap_malloc(&t.heap, n);
			size_t usable = kslab_heap_usable_size(&t.heap, object);

			assert_true(usable >= n && usable != 0);
			if (usable != kslab_heap_good_size(&t.heap, n))
				fail_msg("size %zu: usable %zu, good %zu", n, usable,
					 kslab_heap_good_size(&t.heap, n));
			/* A good size is a fixed point. */
			assert_int_equal(kslab_heap_good_size(&t.heap, usable), usable);
			memset(other, 0x11, usable);
			memset(object, 0x22, usable);
			assert_true(is_filled(other, 0x11, usable));
			kslab_heap_free(&t.heap, object);
			kslab_heap_free(&t.heap, other);
		}
		assert_int_equal(kslab_heap_good_size(&t.heap, SIZE_MAX), 0);
		assert_int_equal(kslab_heap_usable_size(&t.heap, NULL), 0);
		testing_end(&t);
	}
}

static void test_sizes_up_to_the_end_of_the_address_space_fail_with_too_large(void **state)
{
	(void)state;
	testing_begin(&t, &defaults);
	for (unsigned bit = 34; bit < 8 * sizeof(size_t); bit++) {
		size_t n = (size_t)1 << bit;

		for (size_t d = 0; d < 3; d++) {
			assert_null(kslab_heap_malloc(&t.heap, n - 1 + d));
			assert_int_equal(kslab_heap_last_error(&t.heap), KSLAB_TOO_LARGE);
		}
	}
	for (size_t d = 0; d < 9000; d += d < 20 ? 1 : 997) {
		assert_null(kslab_heap_malloc(&t.heap, SIZE_MAX - d));
		assert_int_equal(kslab_heap_last_error(&t.heap), KSLAB_TOO_LARGE);
		assert_null(kslab_heap_zalloc(&t.heap, SIZE_MAX - d));
		assert_null(kslab_heap_aligned_alloc(&t.heap, 65536, SIZE_MAX - d));
		assert_int_equal(kslab_heap_last_error(&t.heap), KSLAB_TOO_LARGE);
		assert_null(kslab_heap_realloc(&t.heap, NULL, SIZE_MAX - d));
		assert_int_equal(kslab_heap_last_error(&t.heap), KSLAB_TOO_LARGE);
		assert_int_equal(kslab_heap_good_size(&t.heap, SIZE_MAX - d), 0);
	}
	assert_int_equal(t.source.alloc_calls, 0);
	testing_end(&t);
}

/* ---- alignment ------------------------------------------------------------------------------- */

static void test_every_size_is_aligned_as_promised(void **state)
{
	static const size_t page_sizes[] = { 4096, 16384, 65536 };

	(void)state;
	for (size_t p = 0; p < TESTING_COUNT(page_sizes); p++) {
		for (size_t align = 8; align <= 16; align *= 2) {
			struct kslab_config config = { .page_bytes = page_sizes[p],
						       .min_align = align };
			void *objects[7];

			testing_begin_with(&t, &config, 1024, true);
			for (size_t n = 1; n <= 140000; n += n < 4200 ? 1 : n / 3) {
				for (unsigned i = 0; i < 7; i++) {
					objects[i] = kslab_heap_malloc(&t.heap, n);
					assert_non_null(objects[i]);
					if (n >= align && (uintptr_t)objects[i] % align != 0)
						fail_msg("%zu bytes at %p", n, objects[i]);
					if (n > page_sizes[p] &&
					    (uintptr_t)objects[i] % page_sizes[p] != 0)
						fail_msg("%zu bytes, not page aligned", n);
				}
				for (unsigned i = 0; i < 7; i++)
					kslab_heap_free(&t.heap, objects[i]);
			}
			/* Powers of two are naturally aligned, and cross no page bound. */
			for (size_t n = 1; n <= 2 * page_sizes[p]; n *= 2) {
				size_t natural = n < page_sizes[p] ? n : page_sizes[p];

				for (unsigned i = 0; i < 7; i++) {
					objects[i] = kslab_heap_malloc(&t.heap, n);
					assert_int_equal((uintptr_t)objects[i] % natural, 0);
				}
				for (unsigned i = 0; i < 7; i++)
					kslab_heap_free(&t.heap, objects[i]);
			}
			testing_end(&t);
		}
	}
}

/* What is promised for a request, whatever the debug level is. */
static size_t promised(const struct kslab_config *config, size_t n)
{
	size_t min_align = config->min_align != 0 ? config->min_align : 8;

	if (n > t.heap.page_bytes && !config->packs)
		return t.heap.page_bytes;
	if ((n & (n - 1)) == 0)
		return n < t.heap.page_bytes ? n : t.heap.page_bytes;
	/* a type of alignment 16 is a multiple of 16 long */
	return n % 16 == 0 ? 16 : n < min_align ? 1 : min_align;
}

/* Neighbours: the first slot of a page is aligned in any case. */
#define NEIGHBOURS 3u

enum way { MALLOC, ZALLOC, ALIGNED_1, ALIGNED_8, GROWN, SHRUNK, WAYS };

static void *get_by(enum way way, size_t n)
{
	switch (way) {
	case MALLOC:
		return kslab_heap_malloc(&t.heap, n);
	case ZALLOC:
		return kslab_heap_zalloc(&t.heap, n);
	case ALIGNED_1:
		return kslab_heap_aligned_alloc(&t.heap, 1, n);
	case ALIGNED_8:
		return kslab_heap_aligned_alloc(&t.heap, 8, n);
	case GROWN:
		return kslab_heap_realloc(&t.heap, kslab_heap_malloc(&t.heap, n - 1), n);
	default:
		return kslab_heap_realloc(&t.heap, kslab_heap_malloc(&t.heap, 2 * n), n);
	}
}

/* Whichever way a size takes, it leads to the same class. */
static void aligned_by_every_way(const struct kslab_config *config, size_t n)
{
	uint32_t slot = 0;

	for (enum way way = MALLOC; way < WAYS; way++) {
		void *objects[NEIGHBOURS];

		for (unsigned i = 0; i < NEIGHBOURS; i++) {
			const struct kslab_page *page;

			objects[i] = get_by(way, n);
			assert_non_null(objects[i]);
			if ((uintptr_t)objects[i] % promised(config, n) != 0)
				fail_msg("level %u, way %u: %zu bytes at %p", t.heap.debug_level,
					 way, n, objects[i]);
			page = kslab_page_map_find(&t.heap.map, (uintptr_t)objects[i]);
			if (page->state == KSLAB_PAGE_LARGE)
				continue;
			assert_true(slot == 0 || page->sc->size == slot);
			slot = page->sc->size;
		}
		for (unsigned i = 0; i < NEIGHBOURS; i++)
			kslab_heap_free_aligned_sized(&t.heap, objects[i], way == ALIGNED_8 ? 8 : 1,
						      n);
	}
	if (t.heap.debug_level != 0)
		assert_int_equal(kslab_heap_good_size(&t.heap, n), n);
}

static void test_no_debug_level_takes_alignment_away(void **state)
{
	static const struct kslab_config configs[] = {
		{ 0 },
		{ .min_align = 16 },
		{ .packs = true },
		{ .min_align = 16, .packs = true },
		{ .max_page_bytes = 4096 },
	};

	(void)state;
	for (size_t c = 0; c < TESTING_COUNT(configs); c++) {
		for (unsigned level = 0; level <= 2; level++) {
			struct kslab_config config = configs[c];

			config.debug_level = level;
			testing_begin(&t, &config);
			for (size_t n = 1; n <= 20000; n += n < 4097 ? 1 : n % 16 == 0 ? 1 : 495) {
				aligned_by_every_way(&config, n);
				if (n % 64 == 0)
					testing_step(&t);
			}
			testing_end(&t);
		}
	}
}

static void test_aligned_alloc_serves_every_power_of_two_and_no_other(void **state)
{
	(void)state;
	for (unsigned c = 0; c < 4; c++) {
		struct kslab_config config = { .max_page_bytes = c & 1 ? 4096 : 65536 };

		testing_begin(&t, &config);
		t.source.unaligned = c & 2; /* the heap must not rely on the source for it */
		for (size_t align = 1; align <= 1 << 20; align *= 2) {
			for (size_t n = 0; n <= 70000; n = n * 2 + 1) {
				void *objects[3];

				for (unsigned i = 0; i < 3; i++) {
					objects[i] = kslab_heap_aligned_alloc(&t.heap, align, n);
					assert_non_null(objects[i]);
					assert_int_equal((uintptr_t)objects[i] % align, 0);
					memset(objects[i], 0x33, n);
				}
				testing_step(&t);
				for (unsigned i = 0; i < 3; i++) {
					if (i == 1)
						kslab_heap_free_aligned_sized(&t.heap, objects[i],
									      align, n);
					else
						kslab_heap_free(&t.heap, objects[i]);
				}
				testing_step(&t);
			}
		}
		for (size_t align = 0; align < 5000; align++) {
			if (align != 0 && (align & (align - 1)) == 0)
				continue;
			assert_null(kslab_heap_aligned_alloc(&t.heap, align, 64));
			assert_int_equal(kslab_heap_last_error(&t.heap), KSLAB_BAD_ALIGNMENT);
		}
		assert_null(kslab_heap_aligned_alloc(&t.heap, SIZE_MAX, 64));
		assert_int_equal(kslab_heap_last_error(&t.heap), KSLAB_BAD_ALIGNMENT);
		/* The largest powers of two: no wrap, a reason. */
		for (unsigned bit = 8 * sizeof(size_t) - 4; bit < 8 * sizeof(size_t); bit++) {
			assert_null(kslab_heap_aligned_alloc(&t.heap, (size_t)1 << bit, 64));
			assert_true(kslab_heap_last_error(&t.heap) == KSLAB_TOO_LARGE ||
				    kslab_heap_last_error(&t.heap) == KSLAB_NO_PAGES);
		}
		testing_end(&t);
	}
}

/* ---- zero ------------------------------------------------------------------------------------ */

static void test_zalloc_and_calloc_clear_whatever_was_there(void **state)
{
	(void)state;
	testing_begin(&t, &defaults);
	for (size_t n = 1; n <= 40000; n += n < 600 ? 1 : 331) {
		unsigned char *object;

		dirty(n);
		object = kslab_heap_zalloc(&t.heap, n);
		assert_true(is_filled(object, 0, n));
		memset(object, 0xff, n);
		kslab_heap_free(&t.heap, object);
		object = kslab_heap_calloc(&t.heap, n, 1);
		assert_true(is_filled(object, 0, n));
		memset(object, 0xff, n);
		kslab_heap_free(&t.heap, object);
		/* The flag clears all usable bytes. */
		object = kslab_heap_alloc(&t.heap, n, 1, KSLAB_ZERO);
		if (!is_filled(object, 0, kslab_heap_usable_size(&t.heap, object)))
			fail_msg("KSLAB_ZERO left bytes of %zu", n);
		kslab_heap_free(&t.heap, object);
	}
	testing_end(&t);
}

static void test_calloc_and_reallocarray_see_every_overflow(void **state)
{
	void *object;

	(void)state;
	testing_begin(&t, &defaults);
	object = kslab_heap_malloc(&t.heap, 40);
	memset(object, 0x44, 40);
	for (unsigned bit = 1; bit < 8 * sizeof(size_t); bit++) {
		/* the product is 2^N: 0 */
		size_t count = (size_t)1 << bit, size = (SIZE_MAX >> bit) + 1;

		assert_null(kslab_heap_calloc(&t.heap, count, size));
		assert_int_equal(kslab_heap_last_error(&t.heap), KSLAB_OVERFLOW);
		assert_null(kslab_heap_reallocarray(&t.heap, object, count, size));
		assert_int_equal(kslab_heap_last_error(&t.heap), KSLAB_OVERFLOW);
		assert_null(kslab_heap_calloc(&t.heap, count + 1, size));
		assert_int_equal(kslab_heap_last_error(&t.heap), KSLAB_OVERFLOW);
		/* Just below: too large, but no overflow. */
		assert_null(kslab_heap_calloc(&t.heap, count, size - 1));
		assert_int_equal(kslab_heap_last_error(&t.heap), KSLAB_TOO_LARGE);
	}
	assert_true(is_filled(object, 0x44, 40));
	kslab_heap_free(&t.heap, object);
	object = kslab_heap_calloc(&t.heap, 0, SIZE_MAX);
	assert_non_null(object);
	kslab_heap_free(&t.heap, object);
	testing_end(&t);
}

/* ---- realloc --------------------------------------------------------------------------------- */

static void test_realloc_keeps_the_contents_for_every_pair_of_sizes(void **state)
{
	static const size_t sizes[] = { 1,    7,     8,	    9,	   16,	  33,	 64,	100,
					128,  129,   500,   1024,  2048,  2049,	 4096,	4097,
					8192, 12000, 16384, 16385, 20000, 40960, 70000, 200000 };

	(void)state;
	for (unsigned c = 0; c < 2; c++) {
		testing_begin(&t, c ? &frames : &defaults);
		for (size_t a = 0; a < TESTING_COUNT(sizes); a++) {
			for (size_t b = 0; b < TESTING_COUNT(sizes); b++) {
				size_t kept = sizes[a] < sizes[b] ? sizes[a] : sizes[b];
				unsigned char *object = kslab_heap_malloc(&t.heap, sizes[a]),
					      *moved;

				memset(object, 0x55, sizes[a]);
				moved = kslab_heap_realloc(&t.heap, object, sizes[b]);
				assert_non_null(moved);
				assert_true(is_filled(moved, 0x55, kept));
				assert_true(kslab_heap_usable_size(&t.heap, moved) >= sizes[b]);
				memset(moved, 0x66, sizes[b]);
				testing_step(&t);
				/* A block that moved is gone from where it was. */
				if (moved != object) {
					assert_int_equal(kslab_heap_usable_size(&t.heap, object),
							 0);
					t.faults++;
				}
				kslab_heap_free(&t.heap, moved);
				testing_step(&t);
			}
		}
		testing_end(&t);
	}
}

static void test_realloc_stays_in_place_where_class_or_page_run_allow(void **state)
{
	(void)state;
	for (unsigned c = 0; c < 2; c++) {
		testing_begin(&t, c ? &frames : &defaults);
		for (size_t n = 1; n <= 40000; n += n < 5000 ? 13 : 1111) {
			size_t usable = kslab_heap_good_size(&t.heap, n);
			void *object = kslab_heap_malloc(&t.heap, n);

			/* Not even a source that is out of memory may show. */
			fake_source_fail_from(&t.source, 1);
			for (size_t m = usable;
			     kslab_heap_good_size(&t.heap, m) == usable && m != 0;
			     m -= m > 32 ? m / 16 : 1)
				if (kslab_heap_realloc(&t.heap, object, m) != object)
					fail_msg("%zu of %zu bytes: not in place", m, usable);
			fake_source_fail_from(&t.source, 0);
			testing_step(&t);
			kslab_heap_free(&t.heap, object);
		}
		testing_end(&t);
	}
}

/* What has changed its size has changed its class: a sized free takes it, with that size only. */
static void test_realloc_leads_where_malloc_of_the_size_would(void **state)
{
	static const struct kslab_config configs[] = {
		{ 0 },
		{ .max_page_bytes = 4096 },
		{ .min_align = 16, .packs = true },
	};

	(void)state;
	for (size_t c = 0; c < TESTING_COUNT(configs); c++) {
		testing_begin(&t, &configs[c]);
		for (size_t n = 1; n < 17000; n = kslab_heap_good_size(&t.heap, n) + 1) {
			size_t good = kslab_heap_good_size(&t.heap, n);
			/* the smallest and the largest of the class, and beyond them */
			const size_t sizes[] = { n, good, n - 1, good + 1, 1, 17000 };

			for (size_t from = 0; from < 2; from++) {
				for (size_t to = 0; to < TESTING_COUNT(sizes); to++) {
					void *p = kslab_heap_malloc(&t.heap, sizes[from]);

					p = kslab_heap_realloc(&t.heap, p, sizes[to]);
					testing_step(&t);
					if (sizes[to] == 0)
						continue;
					assert_int_equal(kslab_heap_usable_size(&t.heap, p),
							 kslab_heap_good_size(&t.heap, sizes[to]));
					kslab_heap_free_sized(&t.heap, p, sizes[to]);
					testing_step(&t);
				}
			}
		}
		testing_end(&t);
	}
}

static void test_realloc_of_null_allocates_and_to_0_frees(void **state)
{
	void *object;

	(void)state;
	testing_begin(&t, &defaults);
	for (size_t n = 0; n < 50000; n = n * 2 + 1) {
		object = kslab_heap_realloc(&t.heap, NULL, n);
		assert_non_null(object);
		testing_step(&t);
		assert_null(kslab_heap_realloc(&t.heap, object, 0));
		testing_step(&t);
		assert_int_equal(kslab_heap_usable_size(&t.heap, object), 0);
		t.faults++;
	}
	testing_end(&t);
}

static void test_a_failed_realloc_leaves_the_object_as_it_was(void **state)
{
	static const size_t sizes[] = { 10, 100, 2000, 4096, 16384, 20000, 100000 };

	(void)state;
	for (size_t s = 0; s < TESTING_COUNT(sizes); s++) {
		unsigned char *object;
		size_t usable;

		testing_begin(&t, &frames);
		object = kslab_heap_malloc(&t.heap, sizes[s]);
		usable = kslab_heap_usable_size(&t.heap, object);
		memset(object, 0x77, usable);
		fake_source_fail_from(&t.source, 1);
		assert_null(kslab_heap_realloc(&t.heap, object, 300000));
		assert_int_equal(kslab_heap_last_error(&t.heap), KSLAB_NO_PAGES);
		assert_null(kslab_heap_realloc(&t.heap, object, SIZE_MAX / 2));
		assert_int_equal(kslab_heap_last_error(&t.heap), KSLAB_TOO_LARGE);
		testing_step(&t);
		assert_int_equal(kslab_heap_usable_size(&t.heap, object), usable);
		assert_true(is_filled(object, 0x77, usable));
		fake_source_fail_from(&t.source, 0);
		object = kslab_heap_realloc(&t.heap, object, 300000);
		assert_true(is_filled(object, 0x77, usable));
		kslab_heap_free(&t.heap, object);
		testing_end(&t);
	}
}

static struct kslab_heap region_heap;

static void test_a_large_block_of_a_region_grows_and_shrinks_in_place(void **state)
{
	const size_t bytes = (size_t)4 << 20;
	void *memory = NULL;
	unsigned char *block, *fence;
	struct kslab_stats stats;

	(void)state;
	/* the same layout in every run */
	assert_int_equal(posix_memalign(&memory, bytes, bytes), 0);
	assert_int_equal(kslab_heap_init_region(&region_heap, memory, bytes), KSLAB_OK);
	assert_non_null(kslab_heap_malloc(&region_heap, 5 * 4096)); /* metadata is where it stays */
	block = kslab_heap_malloc(&region_heap, 5 * 4096);
	memset(block, 0x21, 5 * 4096);
	for (size_t pages = 6; pages <= 40; pages++) {
		assert_ptr_equal(kslab_heap_realloc(&region_heap, block, pages * 4096 - 100),
				 block);
		assert_true(kslab_heap_check(&region_heap, NULL));
		assert_true(is_filled(block, 0x21, 5 * 4096));
		assert_int_equal(kslab_heap_usable_size(&region_heap, block), pages * 4096);
	}
	/* Shrunk, the tail can be had by others. */
	kslab_heap_stats(&region_heap, &stats);
	assert_ptr_equal(kslab_heap_realloc(&region_heap, block, 15 * 4096), block);
	assert_int_equal(kslab_heap_usable_size(&region_heap, block), 15 * 4096);
	assert_int_equal(region_heap.pages_in_use, stats.pages_in_use - 25);
	assert_true(kslab_heap_check(&region_heap, NULL));
	/* A neighbour in the way: the block moves, and its contents with it. */
	do
		fence = kslab_heap_malloc(&region_heap, 5 * 4096);
	while (fence != NULL && fence != block + 16 * 4096 && fence != block + 15 * 4096);
	assert_non_null(fence);
	memset(fence, 0x22, 5 * 4096);
	{
		unsigned char *moved = kslab_heap_realloc(&region_heap, block, 60 * 4096);

		assert_non_null(moved);
		assert_ptr_not_equal(moved, block);
		assert_true(is_filled(moved, 0x21, 5 * 4096));
	}
	assert_true(is_filled(fence, 0x22, 5 * 4096));
	assert_true(kslab_heap_check(&region_heap, NULL));
	testing_forget(&region_heap);
	free(memory);
}

/* ---- growing large blocks -------------------------------------------------------------------- */

static void *region_memory;

/* A heap over `pages` pages of a region: the same layout in every run. */
static void region_begin(const struct kslab_config *config, size_t pages)
{
	const size_t bytes = pages * 4096;
	struct kslab_config filled = *config;

	filled.report = recorder_report;
	filled.report_ctx = &t.recorder;
	memset(&t.recorder, 0, sizeof(t.recorder));
	assert_int_equal(posix_memalign(&region_memory, (size_t)4 << 20, bytes), 0);
	testing_forget(&region_heap);
	memset(&region_heap, 0xa5, sizeof(region_heap));
	assert_int_equal(kslab_heap_init(&region_heap, &filled), KSLAB_OK);
	assert_int_equal(kslab_heap_add_region(&region_heap, region_memory, bytes), KSLAB_OK);
}

static void region_step(void)
{
	struct kslab_check_result check;

	if (!kslab_heap_check(&region_heap, &check))
		fail_msg("%s", check.what);
	assert_int_equal(t.recorder.count, 0);
}

static void region_end(void)
{
	(void)kslab_heap_reclaim(&region_heap, SIZE_MAX);
	region_step();
	assert_int_equal(region_heap.pages_in_use, region_heap.meta.pages);
	assert_int_equal(kslab_heap_fini(&region_heap), KSLAB_OK);
	free(region_memory);
}

static unsigned char *region_malloc(size_t n)
{
	unsigned char *p = kslab_heap_malloc(&region_heap, n);

	assert_non_null(p);
	memset(p, 0x31, n);
	return p;
}

/* What was there is there, and what was gained can be used. */
static unsigned char *region_grow(unsigned char *p, size_t old, size_t n)
{
	p = kslab_heap_realloc(&region_heap, p, n);
	assert_non_null(p);
	assert_true(is_filled(p, 0x31, old));
	assert_true(kslab_heap_usable_size(&region_heap, p) >= n);
	memset(p + old, 0x31, n - old);
	region_step();
	return p;
}

/* A spare block of so many pages at the address that is returned. */
static unsigned char *region_spare(size_t pages)
{
	unsigned char *p = region_malloc(pages * 4096);

	kslab_heap_free(&region_heap, p);
	return p;
}

static void test_a_growing_object_takes_a_spare_block_and_then_the_rest_of_it(void **state)
{
	unsigned char *spare, *p;
	uint64_t locked;
	size_t in_use, n;

	(void)state;
	region_begin(&defaults, 1024);
	kslab_heap_free(&region_heap, region_malloc(16384)); /* its object page is there */
	spare = region_spare(100);
	in_use = region_heap.pages_in_use;
	p = region_grow(region_malloc(16384), 16384, n = 5 * 4096);
	assert_ptr_equal(p, spare);
	locked = region_heap.lock_acquisitions;
	for (; n + 4096 <= (size_t)99 * 4096; n += 4096 - 7)
		assert_ptr_equal(region_grow(p, n, n + 4096 - 7), spare);
	assert_int_equal(region_heap.lock_acquisitions, locked);
	/* All of it, and nothing was taken from the region for any step. */
	assert_ptr_equal(region_grow(p, n, (size_t)100 * 4096), spare);
	assert_int_equal(region_heap.boot_zone.spare_run, 0);
	assert_int_equal(region_heap.pages_in_use, in_use);
	/* And on into the region. */
	assert_ptr_equal(region_grow(p, (size_t)100 * 4096, (size_t)111 * 4096), spare);
	assert_int_equal(region_heap.pages_in_use, in_use + 11);
	kslab_heap_free_sized(&region_heap, p, (size_t)111 * 4096);
	region_step();
	/* The shorter part gets the new descriptor: the other way round, too. */
	p = region_grow(region_malloc(16384), 16384, (size_t)90 * 4096);
	assert_ptr_equal(p, spare);
	kslab_heap_free(&region_heap, p);
	region_end();
}

/* The descriptor of a room that is used up serves the next cut, and nobody else. */
static void test_a_second_growth_into_the_same_block_takes_no_lock(void **state)
{
	const size_t whole = (size_t)100 * 4096;
	unsigned char *spare, *p, *block[KSLAB_SPARE_BLOCKS];
	uint64_t locked = 0;

	(void)state;
	region_begin(&defaults, 1024);
	kslab_heap_free(&region_heap, region_malloc(16384));
	spare = region_spare(100);
	for (unsigned round = 0; round < 4; round++) {
		/* The one or the other part gets the new descriptor. */
		const size_t first = (size_t)(round % 2 ? 7 : 70) * 4096;

		if (round == 1)
			locked = region_heap.lock_acquisitions;
		p = region_grow(region_malloc(16384), 16384, first);
		assert_ptr_equal(p, spare);
		assert_ptr_equal(region_grow(p, first, whole), spare);
		/* It is not taken for a block, whatever size wraps. */
		for (size_t n = 0; n < 3 * 4096; n += 1023)
			assert_null(kslab_heap_malloc(&region_heap, SIZE_MAX - n));
		kslab_heap_free_sized(&region_heap, p, whole);
		region_step();
	}
	assert_int_equal(region_heap.lock_acquisitions, locked);
	/* Where spare blocks are too many, it goes first. */
	p = region_grow(region_grow(region_malloc(16384), 16384, 5 * 4096), 5 * 4096, whole);
	assert_int_equal(region_heap.boot_zone.spares, 1);
	for (size_t i = 0; i < KSLAB_SPARE_BLOCKS; i++)
		block[i] = region_malloc((20 + i) * 4096);
	for (size_t i = 0; i < KSLAB_SPARE_BLOCKS; i++)
		kslab_heap_free(&region_heap, block[i]);
	region_step();
	assert_int_equal(region_heap.boot_zone.spares, KSLAB_SPARE_BLOCKS);
	assert_int_equal(region_heap.boot_zone.spare_run, 20 + 21 + 22 + 23);
	kslab_heap_free(&region_heap, p);
	region_end();
}

/* Several blocks that grow in turn: each has moved to where it can grow once more. */
static void test_blocks_that_double_by_turns_never_move_twice_in_a_row(void **state)
{
	unsigned char *block[4], *other[8];
	bool has_moved[4] = { false };

	(void)state;
	region_begin(&(struct kslab_config){ .retain_bytes = KSLAB_RETAIN_NONE }, 1024);
	/* Descriptors and object pages are there. */
	for (size_t i = 0; i < TESTING_COUNT(other); i++)
		other[i] = region_malloc(5 * 4096);
	for (size_t i = 0; i < TESTING_COUNT(other); i++)
		kslab_heap_free(&region_heap, other[i]);
	for (size_t i = 0; i < TESTING_COUNT(block); i++)
		block[i] = region_malloc(16384);
	for (size_t n = 16384; n < (size_t)64 * 4096; n *= 2) {
		for (size_t i = 0; i < TESTING_COUNT(block); i++) {
			unsigned char *p = region_grow(block[i], n, 2 * n);

			assert_false(p != block[i] && has_moved[i]);
			has_moved[i] = p != block[i];
			block[i] = p;
		}
	}
	for (size_t i = 0; i < TESTING_COUNT(block); i++)
		kslab_heap_free(&region_heap, block[i]);
	/* Where there is no such place, wherever there is one. */
	block[0] = region_malloc((size_t)400 * 4096);
	block[1] = region_grow(region_malloc(16384), 16384, (size_t)200 * 4096);
	kslab_heap_free(&region_heap, block[0]);
	kslab_heap_free(&region_heap, block[1]);
	region_end();
	/* A spare block of just the length comes first. */
	region_begin(&defaults, 1024);
	block[0] = region_malloc(16384);
	block[1] = region_spare(16);
	assert_ptr_equal(region_grow(block[0], 16384, (size_t)16 * 4096), block[1]);
	kslab_heap_free(&region_heap, block[1]);
	region_end();
}

static void test_what_a_block_grows_into_goes_back_under_pressure(void **state)
{
	unsigned char *p;
	struct kslab_stats stats;

	(void)state;
	region_begin(&defaults, 1024);
	region_spare(100);
	p = region_grow(region_malloc(16384), 16384, 6 * 4096);
	kslab_heap_stats(&region_heap, &stats);
	assert_int_equal(stats.large_pages, 6);
	assert_true(stats.empty_pages >= 94); /* idle, as the retention allows */
	assert_true(kslab_heap_reclaim(&region_heap, SIZE_MAX) >= 94);
	region_step();
	kslab_heap_stats(&region_heap, &stats);
	assert_int_equal(stats.empty_pages, 0);
	assert_ptr_equal(region_grow(p, 6 * 4096, (size_t)50 * 4096), p);
	kslab_heap_free(&region_heap, p);
	region_end();
}

static void test_a_block_whose_room_is_too_short_takes_more_or_moves(void **state)
{
	unsigned char *spare, *p, *fence, *moved;

	(void)state;
	for (unsigned blocked = 0; blocked < 2; blocked++) {
		region_begin(&defaults, 1024);
		spare = region_malloc((size_t)40 * 4096);
		/* Whatever lies behind it: taken, or free. */
		fence = kslab_heap_realloc(&region_heap, spare, (size_t)41 * 4096);
		assert_ptr_equal(fence, spare);
		fence = spare + (size_t)40 * 4096;
		assert_ptr_equal(kslab_heap_realloc(&region_heap, spare, (size_t)40 * 4096), spare);
		if (blocked)
			while (region_malloc(5 * 4096) < fence)
				;
		kslab_heap_free(&region_heap, spare);
		p = region_grow(region_malloc(16384), 16384, 10 * 4096);
		assert_ptr_equal(p, spare);
		moved = region_grow(p, 10 * 4096, (size_t)60 * 4096);
		if (!blocked)
			assert_ptr_equal(moved, spare);
		else
			assert_ptr_not_equal(moved, spare);
		kslab_heap_free_sized(&region_heap, moved, (size_t)60 * 4096);
		region_step();
		if (!blocked) {
			region_end();
			continue;
		}
		testing_forget(&region_heap);
		free(region_memory);
	}
}

static void test_a_growth_that_fails_leaves_block_and_room_as_they_were(void **state)
{
	static const struct kslab_config quota = { .max_pages = 120 };
	unsigned char *p;
	size_t in_use;

	(void)state;
	region_begin(&quota, 1024);
	region_spare(60);
	p = region_grow(region_malloc(16384), 16384, 20 * 4096);
	in_use = region_heap.pages_in_use;
	for (size_t i = 0; i < 3; i++) {
		assert_null(kslab_heap_realloc(&region_heap, p, (size_t)(118 + i) * 4096));
		assert_int_equal(kslab_heap_last_error(&region_heap), KSLAB_QUOTA);
		region_step();
		assert_true(is_filled(p, 0x31, 20 * 4096));
		assert_int_equal(kslab_heap_usable_size(&region_heap, p), 20 * 4096);
		assert_true(region_heap.pages_in_use <= in_use);
	}
	/* The room that the moves left is one to cut from: no size may wrap. */
	kslab_heap_free(&region_heap, region_malloc((size_t)10 * 4096));
	for (size_t n = SIZE_MAX; n > SIZE_MAX - 20000; n -= 1111) {
		assert_null(kslab_heap_realloc(&region_heap, p, n));
		assert_int_equal(kslab_heap_last_error(&region_heap), KSLAB_TOO_LARGE);
	}
	region_step();
	p = region_grow(p, 20 * 4096, (size_t)60 * 4096);
	kslab_heap_free(&region_heap, p);
	region_end();
}

/* A block in a run of pages, though its size is that of a class: the sized free knows. */
static void test_a_size_of_a_class_may_lie_in_a_run_after_growth(void **state)
{
	static const size_t sizes[] = { 8192, 12000, 16384 };
	unsigned char *p, *q;

	(void)state;
	for (size_t i = 0; i < TESTING_COUNT(sizes); i++) {
		size_t pages = (sizes[i] + 4095) / 4096;

		region_begin(&(struct kslab_config){ .packs = true }, 1024);
		region_spare(30);
		p = region_grow(region_malloc(4096), 4096, sizes[i]);
		assert_int_equal(kslab_heap_usable_size(&region_heap, p), pages * 4096);
		/* Where none is spare, the class. */
		kslab_heap_reclaim(&region_heap, SIZE_MAX);
		q = region_grow(region_malloc(4096), 4096, sizes[i]);
		assert_int_equal(kslab_heap_usable_size(&region_heap, q),
				 kslab_heap_good_size(&region_heap, sizes[i]));
		assert_non_null(kslab_page_map_find(&region_heap.map, (uintptr_t)q)->sc);
		kslab_heap_free_sized(&region_heap, q, sizes[i]);
		for (size_t n = sizes[i] - 8192; n < sizes[i] + 8192; n += 97) {
			if ((n + 4095) / 4096 == pages)
				continue;
			kslab_heap_free_sized(&region_heap, p, n);
			assert_int_equal(t.recorder.count, 1);
			assert_int_equal(t.recorder.last.fault, KSLAB_FAULT_WRONG_SIZE);
			memset(&t.recorder, 0, sizeof(t.recorder));
		}
		/* It stays where a quarter of the run is lost at most, and leaves it below that. */
		assert_ptr_equal(kslab_heap_realloc(&region_heap, p, pages * 3072), p);
		region_step();
		assert_int_equal(kslab_heap_usable_size(&region_heap, p),
				 (pages * 3072 + 4095) / 4096 * 4096);
		p = kslab_heap_realloc(&region_heap, p, 4097);
		assert_int_equal(kslab_heap_usable_size(&region_heap, p), 5120);
		region_step();
		kslab_heap_free_sized(&region_heap, p, 4097);
		region_end();
	}
}

/* Spare blocks of a callback are whole runs, and filled ones at a debug level are not cut. */
static void test_spare_blocks_that_must_stay_whole_are_not_cut(void **state)
{
	static const struct kslab_config debugs = { .debug_level = 1 };
	unsigned char *spare, *p;

	(void)state;
	testing_begin(&t, &defaults);
	spare = kslab_heap_malloc(&t.heap, 100 * 4096);
	kslab_heap_free(&t.heap, spare);
	p = kslab_heap_malloc(&t.heap, 16384);
	p = kslab_heap_realloc(&t.heap, p, 5 * 4096);
	assert_non_null(p);
	testing_step(&t);
	assert_int_equal(t.heap.boot_zone.spare_run, 100);
	kslab_heap_free(&t.heap, p);
	testing_end(&t);

	region_begin(&debugs, 1024);
	region_spare(100);
	p = region_grow(region_malloc(16384), 16384, 5 * 4096 - 9);
	assert_int_equal(region_heap.boot_zone.spare_run, 100);
	p = region_grow(p, 5 * 4096 - 9, (size_t)20 * 4096);
	kslab_heap_free(&region_heap, p);
	region_end();
}

/* Blocks that grow, shrink, move and go, in a region that is too small for them at times. */
static void test_random_growth_keeps_contents_and_the_region_whole(void **state)
{
	struct testing_random random = testing_seed(__func__, 20);
	struct {
		unsigned char *p, mark;
		size_t n;
	} block[24] = { 0 };

	(void)state;
	region_begin(&(struct kslab_config){ .packs = true }, 512);
	for (unsigned step = 0; step < 6000; step++) {
		unsigned i = (unsigned)testing_random_below(&random, TESTING_COUNT(block));
		size_t shift = testing_random_below(&random, 9), n, kept;
		unsigned char *p;

		n = testing_random_below(&random, 2) != 0
			    ? block[i].n + block[i].n / 2 + 1
			    : 1 + testing_random_below(&random, (size_t)2048 << shift);
		if (block[i].p != NULL && testing_random_below(&random, 5) == 0) {
			kslab_heap_free_sized(&region_heap, block[i].p, block[i].n);
			block[i].p = NULL;
			block[i].n = 0;
			region_step();
			continue;
		}
		p = kslab_heap_realloc(&region_heap, block[i].p, n);
		region_step();
		kept = p != NULL && n < block[i].n ? n : block[i].n;
		assert_true(is_filled(p != NULL ? p : block[i].p, block[i].mark, kept));
		if (p == NULL)
			continue;
		block[i].p = p;
		block[i].n = n;
		block[i].mark = (unsigned char)testing_random_next(&random);
		memset(p, block[i].mark, n);
	}
	for (unsigned i = 0; i < TESTING_COUNT(block); i++)
		kslab_heap_free(&region_heap, block[i].p);
	region_end();
}

/* Where there is a descriptor: the run, its place in the list and the counts at once. */
static void test_a_large_block_of_a_region_takes_the_lock_once_each_way(void **state)
{
	unsigned char *block[8], *p;
	uint64_t locked;

	(void)state;
	region_begin(&(struct kslab_config){ .retain_bytes = KSLAB_RETAIN_NONE }, 2048);
	/* Descriptors are free again, and the map has its leaves. */
	for (size_t i = 0; i < TESTING_COUNT(block); i++)
		block[i] = region_malloc((size_t)4096 << (10 - i));
	for (size_t i = 0; i < TESTING_COUNT(block); i++)
		kslab_heap_free(&region_heap, block[i]);
	for (size_t pages = 5; pages <= 512; pages += 39) {
		size_t in_use = region_heap.pages_in_use;

		locked = region_heap.lock_acquisitions;
		p = region_malloc(pages * 4096);
		assert_int_equal(region_heap.lock_acquisitions, locked + 1);
		assert_int_equal(region_heap.pages_in_use, in_use + pages);
		region_step();
		kslab_heap_free(&region_heap, p);
		assert_int_equal(region_heap.lock_acquisitions, locked + 2);
		assert_int_equal(region_heap.pages_in_use, in_use);
		region_step();
	}
	/* The map of a long block is written outside the lock. */
	p = region_malloc((size_t)600 * 4096);
	locked = region_heap.lock_acquisitions;
	kslab_heap_free(&region_heap, p);
	assert_int_equal(region_heap.lock_acquisitions, locked + 2);
	region_end();
}

/* A freed large block is the next one of its length: newest first, and without the heap lock. */
static void test_freed_large_blocks_are_taken_again_newest_first(void **state)
{
	static const size_t pages[] = { 5, 9, 5, 5 };
	unsigned char *block[TESTING_COUNT(pages)];
	uint64_t locked;

	(void)state;
	testing_begin(&t, &defaults);
	for (size_t i = 0; i < TESTING_COUNT(pages); i++)
		block[i] = kslab_heap_malloc(&t.heap, pages[i] * 4096 - 1);
	locked = t.heap.lock_acquisitions;
	for (size_t i = 0; i < TESTING_COUNT(pages); i++) {
		kslab_heap_free(&t.heap, block[i]);
		assert_true(kslab_heap_check(&t.heap, NULL));
	}
	for (size_t i = TESTING_COUNT(pages); i-- > 0;) {
		assert_ptr_equal(kslab_heap_malloc(&t.heap, pages[i] * 4096), block[i]);
		assert_true(kslab_heap_check(&t.heap, NULL));
		assert_int_equal(kslab_heap_usable_size(&t.heap, block[i]), pages[i] * 4096);
	}
	assert_int_equal(t.heap.lock_acquisitions, locked);
	for (size_t i = 0; i < TESTING_COUNT(pages); i++)
		kslab_heap_free(&t.heap, block[i]);
	testing_end(&t);
}

/* ---- bulk ------------------------------------------------------------------------------------ */

static void test_bulk_gives_as_many_as_asked_and_each_only_once(void **state)
{
	static void *objects[3000];
	static unsigned char *sorted[3000];

	(void)state;
	for (size_t n = 0; n <= 20000; n = n * 4 + 8) {
		for (size_t count = 0; count <= (n < 3000 ? 3000 : 50); count = count * 5 + 1) {
			testing_begin_with(&t, &defaults, 16384, false);
			assert_int_equal(kslab_heap_malloc_bulk(&t.heap, n, count, objects), count);
			testing_step(&t);
			for (size_t i = 0; i < count; i++) {
				assert_int_equal(kslab_heap_usable_size(&t.heap, objects[i]),
						 kslab_heap_good_size(&t.heap, n));
				memset(objects[i], (int)(i & 0xff), n);
				sorted[i] = objects[i];
			}
			for (size_t i = 0; i < count; i++)
				assert_true(is_filled(sorted[i], (unsigned char)(i & 0xff), n));
			kslab_heap_free_bulk(&t.heap, count, objects);
			testing_end(&t);
		}
	}
}

static void test_bulk_stops_where_memory_ends_and_says_why(void **state)
{
	static void *objects[2000];

	(void)state;
	for (size_t pages = 4; pages <= 32; pages *= 2) {
		size_t got;

		testing_begin_with(&t, &frames, pages, true);
		got = kslab_heap_malloc_bulk(&t.heap, 100, 2000, objects);
		assert_true(got < 2000 && got >= (pages - 3) * 36);
		assert_int_equal(kslab_heap_last_error(&t.heap), KSLAB_NO_PAGES);
		testing_step(&t);
		assert_null(kslab_heap_malloc(&t.heap, 100));
		kslab_heap_free_bulk(&t.heap, got, objects);
		testing_end(&t);
	}
}

static void test_free_bulk_frees_the_good_ones_around_a_bad_one(void **state)
{
	void *objects[21];
	struct kslab_stats stats;

	(void)state;
	testing_begin(&t, &defaults);
	assert_int_equal(kslab_heap_malloc_bulk(&t.heap, 64, 20, objects), 20);
	memmove(objects + 11, objects + 10, 10 * sizeof(objects[0]));
	objects[10] = (char *)objects[3] + 1;
	kslab_heap_free_bulk(&t.heap, 21, objects);
	assert_int_equal(t.recorder.count, 1);
	assert_true(t.recorder.last.pointer == objects[10]);
	t.faults++;
	testing_step(&t);
	kslab_heap_stats(&t.heap, &stats);
	assert_int_equal(stats.live_objects, 0);
	testing_end(&t);
}

static void shuffle(struct testing_random *random, void *objects[], size_t count)
{
	for (size_t i = count; i > 1; i--) {
		size_t k = testing_random_below(random, i);
		void *p = objects[k];

		objects[k] = objects[i - 1];
		objects[i - 1] = p;
	}
}

/* Full pages, partly freed ones, several classes, large blocks; some pointers come twice. */
static void test_free_bulk_judges_each_pointer_as_free_does(void **state)
{
	static const size_t sizes[] = { 8, 64, 64, 64, 256, 2048, 20000 };
	struct testing_random random = testing_seed("free_bulk", 29);
	static void *objects[1200];
	struct kslab_stats stats;

	(void)state;
	for (unsigned round = 0; round < 60; round++) {
		size_t count = 1 + testing_random_below(&random, round % 2 != 0 ? 1000 : 30),
		       twice = testing_random_below(&random, 4), given = count + twice;

		testing_begin(&t, &defaults);
		for (size_t i = 0; i < count; i++) {
			size_t n = sizes[testing_random_below(&random, TESTING_COUNT(sizes))];

			objects[i] = kslab_heap_malloc(&t.heap, n);
			assert_non_null(objects[i]);
		}
		for (size_t i = 0; i < twice; i++)
			objects[count + i] = objects[i % count];
		if (round % 3 != 0)
			shuffle(&random, objects, given);
		for (size_t from = 0; from < given;) {
			size_t n = 1 + testing_random_below(&random, given - from);

			kslab_heap_free_bulk(&t.heap, n, objects + from);
			from += n;
			t.faults = t.recorder.count;
			testing_step(&t);
		}
		assert_int_equal(t.recorder.count, twice);
		assert_int_equal(t.recorder.kinds[KSLAB_FAULT_DOUBLE_FREE], twice);
		kslab_heap_stats(&t.heap, &stats);
		assert_int_equal(stats.live_objects + stats.large_blocks, 0);
		testing_end(&t);
	}
}

/* ---- pressure -------------------------------------------------------------------------------- */

static void test_after_a_reserve_allocations_need_no_page_source(void **state)
{
	static void *objects[1000];
	static const size_t sizes[] = { 8, 100, 256, 1000, 2048, 4096 };

	(void)state;
	for (size_t s = 0; s < TESTING_COUNT(sizes); s++) {
		for (size_t count = 1; count <= 1000; count = count * 3 + 7) {
			size_t calls;

			testing_begin(&t, &defaults);
			assert_true(kslab_heap_reserve(&t.heap, sizes[s], count));
			testing_step(&t);
			calls = t.source.alloc_calls;
			fake_source_fail_from(&t.source, 1);
			for (size_t i = 0; i < count; i++) {
				objects[i] = kslab_heap_malloc(&t.heap, sizes[s]);
				assert_non_null(objects[i]);
			}
			assert_int_equal(t.source.alloc_calls, calls);
			testing_step(&t);
			kslab_heap_free_bulk(&t.heap, count, objects);
			testing_end(&t);
		}
	}
}

/* Pages of other classes become empty and go, also those that lay there before the reserve. */
static void test_what_was_reserved_stays_while_others_go(void **state)
{
	const size_t retained[] = { KSLAB_RETAIN_NONE, 8 * 4096, 16 * 4096 };
	static void *objects[400], *others[200];

	(void)state;
	for (size_t r = 0; r < TESTING_COUNT(retained); r++) {
		const struct kslab_config config = { .max_page_bytes = 4096,
						     .retain_bytes = retained[r] };
		size_t calls;

		testing_begin(&t, &config);
		for (size_t i = 0; i < 20; i++)
			assert_non_null(objects[i] = kslab_heap_malloc(&t.heap, 1024));
		kslab_heap_free_bulk(&t.heap, 20, objects);
		assert_true(kslab_heap_reserve(&t.heap, 1024, 400));
		for (size_t round = 0; round < 10; round++) {
			for (size_t i = 0; i < TESTING_COUNT(others); i++)
				assert_non_null(others[i] = kslab_heap_malloc(&t.heap, 2048));
			kslab_heap_free_bulk(&t.heap, TESTING_COUNT(others), others);
			testing_step(&t);
		}
		kslab_heap_idle(&t.heap);
		calls = t.source.alloc_calls;
		fake_source_fail_from(&t.source, 1);
		for (size_t i = 0; i < TESTING_COUNT(objects); i++)
			assert_non_null(objects[i] = kslab_heap_malloc(&t.heap, 1024));
		assert_int_equal(t.source.alloc_calls, calls);
		kslab_heap_free_bulk(&t.heap, TESTING_COUNT(objects), objects);
		testing_end(&t);
	}
}

static void test_a_reserve_beyond_memory_is_refused_with_a_reason(void **state)
{
	(void)state;
	testing_begin_with(&t, &frames, 64, true);
	assert_false(kslab_heap_reserve(&t.heap, 1000, 100000));
	assert_int_equal(kslab_heap_last_error(&t.heap), KSLAB_NO_PAGES);
	testing_step(&t);
	/* What was gathered for it lies idle, and is had again. */
	assert_true(kslab_heap_reclaim(&t.heap, SIZE_MAX) > 40);
	assert_true(kslab_heap_reserve(&t.heap, 1000, 100));
	assert_false(kslab_heap_reserve(&t.heap, 1 << 20, 1));
	testing_end(&t);
}

static void test_nowait_does_not_call_the_source(void **state)
{
	void *object, *more[40];
	size_t calls, got = 0;

	(void)state;
	testing_begin(&t, &frames);
	assert_null(kslab_heap_alloc(&t.heap, 100, 1, KSLAB_NOWAIT));
	assert_int_equal(kslab_heap_last_error(&t.heap), KSLAB_NO_PAGES);
	assert_null(kslab_heap_alloc(&t.heap, 100000, 1, KSLAB_NOWAIT));
	assert_int_equal(t.source.alloc_calls, 0);
	object = kslab_heap_malloc(&t.heap, 100);
	calls = t.source.alloc_calls;
	while (got < 40 && (more[got] = kslab_heap_alloc(&t.heap, 100, 1, KSLAB_NOWAIT)) != NULL)
		got++;
	assert_true(got >= 35 && got < 40); /* the rest of the page */
	assert_int_equal(t.source.alloc_calls, calls);
	testing_step(&t);
	kslab_heap_free(&t.heap, object);
	kslab_heap_free_bulk(&t.heap, got, more);
	testing_end(&t);
}

/* Under the lock of the frame allocator itself, say: pages wait until a call that may give them. */
static void test_nowait_does_not_give_pages_to_the_source(void **state)
{
	void *objects[256];
	size_t calls;

	(void)state;
	testing_begin(&t, &frames);
	for (size_t i = 0; i < TESTING_COUNT(objects); i++)
		objects[i] = kslab_heap_malloc(&t.heap, i % 2 != 0 ? 1000 : 3000);
	kslab_heap_free_bulk(&t.heap, TESTING_COUNT(objects), objects);
	testing_step(&t);
	calls = t.source.free_calls;
	/* Nothing to be had, however much lies idle. */
	assert_null(kslab_heap_alloc(&t.heap, 96, 1, KSLAB_NOWAIT));
	assert_int_equal(kslab_heap_last_error(&t.heap), KSLAB_NO_PAGES);
	assert_null(kslab_heap_alloc(&t.heap, 100000, 1, KSLAB_NOWAIT));
	/* Too much lies idle: others give it back. */
	kslab_heap_set_retention(&t.heap, KSLAB_RETAIN_NONE);
	for (size_t i = 0; i < 64; i++) {
		objects[i] = kslab_heap_alloc(&t.heap, 1000, 1, KSLAB_NOWAIT);
		assert_non_null(objects[i]);
	}
	assert_int_equal(t.source.free_calls, calls);
	testing_step(&t);
	kslab_heap_free_bulk(&t.heap, 64, objects);
	assert_true(t.source.free_calls > calls);
	testing_end(&t);
}

/* Where giving back calls nobody, as into a region, nothing speaks against it. */
static void test_nowait_finds_what_lies_idle_in_regions(void **state)
{
	enum { PAGES = 64 };
	static const struct kslab_config config = { .max_page_bytes = 4096 };
	static unsigned char memory[PAGES * 4096] __attribute__((aligned(4096)));
	static struct kslab_heap heap;
	void *objects[PAGES], *large;
	size_t got = 0;

	(void)state;
	memset(&heap, 0, sizeof(heap));
	assert_int_equal(kslab_heap_init(&heap, &config), KSLAB_OK);
	assert_int_equal(kslab_heap_add_region(&heap, memory, sizeof(memory)), KSLAB_OK);
	while (got < PAGES && (objects[got] = kslab_heap_malloc(&heap, 4096)) != NULL)
		got++;
	kslab_heap_free_bulk(&heap, got, objects);
	large = kslab_heap_alloc(&heap, 8 * 4096, 1, KSLAB_NOWAIT);
	assert_non_null(large);
	kslab_heap_free(&heap, large);
	assert_true(kslab_heap_check(&heap, NULL));
	assert_int_equal(kslab_heap_fini(&heap), KSLAB_OK);
}

static void test_unknown_flags_are_refused(void **state)
{
	(void)state;
	testing_begin(&t, &defaults);
	for (unsigned bit = 3; bit < 32; bit++) {
		assert_null(kslab_heap_alloc(&t.heap, 8, 8, 1u << bit));
		assert_int_equal(kslab_heap_last_error(&t.heap), KSLAB_BAD_ARGUMENT);
	}
	testing_end(&t);
}

static void test_emergency_pages_serve_reserve_requests_only(void **state)
{
	(void)state;
	for (size_t set_aside = 1; set_aside <= 6; set_aside++) {
		struct kslab_config config = { .max_page_bytes = 4096,
					       .emergency_pages = set_aside };
		void *normal[400], *special[8];
		size_t got = 0, gained = 0;

		testing_begin(&t, &config);
		assert_int_equal(t.source.pages_out, set_aside);
		/* Descriptors and map are there after the first page. */
		normal[got++] = kslab_heap_malloc(&t.heap, 4096);
		fake_source_fail_from(&t.source, 1);
		while (got < 400 && (normal[got] = kslab_heap_malloc(&t.heap, 4096)) != NULL)
			got++;
		assert_int_equal(got, 1);
		assert_null(kslab_heap_alloc(&t.heap, 4096, 1, KSLAB_ZERO));
		while (gained < 8 && (special[gained] = kslab_heap_alloc(&t.heap, 4096, 1,
									 KSLAB_RESERVE)) != NULL) {
			memset(special[gained++], 0x88, 4096);
			testing_step(&t);
		}
		assert_int_equal(gained, set_aside);
		assert_int_equal(kslab_heap_last_error(&t.heap), KSLAB_NO_PAGES);
		/* Freed pages fill the store again. */
		for (size_t i = 0; i < gained; i++)
			kslab_heap_free(&t.heap, special[i]);
		kslab_heap_reclaim(&t.heap, SIZE_MAX);
		assert_null(kslab_heap_malloc(&t.heap, 2048));
		for (size_t i = 0; i < set_aside; i++) {
			special[i] =
				kslab_heap_alloc(&t.heap, 4096, 1, KSLAB_RESERVE | KSLAB_NOWAIT);
			assert_non_null(special[i]);
		}
		testing_step(&t);
		kslab_heap_free_bulk(&t.heap, gained, special);
		kslab_heap_free_bulk(&t.heap, got, normal);
		testing_end(&t);
	}
}

/* A page that was set aside serves no alignment above a page: it lies where it lies. */
static void test_emergency_pages_do_not_serve_what_they_are_not_aligned_for(void **state)
{
	const struct kslab_config config = { .emergency_pages = 8, .debug_level = 1 };

	(void)state;
	testing_begin(&t, &config);
	for (size_t align = 8192; align <= 65536; align *= 2) {
		for (size_t n = 8; n <= 4096; n *= 8) {
			void *object;

			fake_source_fail_from(&t.source, 1);
			object = kslab_heap_alloc(&t.heap, n, align, KSLAB_RESERVE);
			assert_null(object);
			testing_step(&t);
			fake_source_fail_from(&t.source, 0);
			object = kslab_heap_alloc(&t.heap, n, align, KSLAB_RESERVE);
			assert_non_null(object);
			assert_int_equal((uintptr_t)object % align, 0);
			memset(object, 0x11, n);
			testing_step(&t);
			kslab_heap_free(&t.heap, object);
			kslab_heap_reclaim(&t.heap, SIZE_MAX);
		}
	}
	testing_end(&t);
}

/* They were counted when they were set aside. */
static void test_emergency_pages_are_there_when_the_quota_is_used_up(void **state)
{
	const struct kslab_config config = { .max_page_bytes = 4096,
					     .max_pages = 24,
					     .emergency_pages = 4 };
	void *objects[32], *special[8];
	size_t got = 0, gained = 0;
	struct kslab_stats stats;

	(void)state;
	testing_begin(&t, &config);
	while (got < 32 && (objects[got] = kslab_heap_malloc(&t.heap, 4096)) != NULL)
		got++;
	assert_int_equal(kslab_heap_last_error(&t.heap), KSLAB_QUOTA);
	while (gained < 8 &&
	       (special[gained] = kslab_heap_alloc(&t.heap, 4096, 1, KSLAB_RESERVE)) != NULL)
		gained++;
	assert_int_equal(gained, 4);
	assert_int_equal(kslab_heap_last_error(&t.heap), KSLAB_QUOTA);
	kslab_heap_stats(&t.heap, &stats);
	assert_true(stats.pages_in_use <= config.max_pages);
	testing_step(&t);
	kslab_heap_free_bulk(&t.heap, gained, special);
	kslab_heap_free_bulk(&t.heap, got, objects);
	testing_end(&t);
}

static void test_the_last_error_stays_until_the_next_failure(void **state)
{
	void *object;

	(void)state;
	testing_begin(&t, &defaults);
	assert_null(kslab_heap_aligned_alloc(&t.heap, 3, 8));
	object = kslab_heap_malloc(&t.heap, 8);
	kslab_heap_free(&t.heap, object);
	assert_int_equal(kslab_heap_last_error(&t.heap), KSLAB_BAD_ALIGNMENT);
	kslab_heap_free(&t.heap, object);
	testing_fault(&t, KSLAB_FAULT_DOUBLE_FREE);
	assert_int_equal(kslab_heap_last_error(&t.heap), KSLAB_BAD_FREE);
	assert_null(kslab_heap_malloc(&t.heap, SIZE_MAX));
	assert_int_equal(kslab_heap_last_error(&t.heap), KSLAB_TOO_LARGE);
	testing_end(&t);
}

static void test_every_fault_and_reason_has_a_name_of_its_own(void **state)
{
	(void)state;
	for (unsigned i = 0; i < KSLAB_FAULT_COUNT; i++) {
		assert_string_not_equal(kslab_fault_name((enum kslab_fault)i), "unknown");
		for (unsigned k = 0; k < i; k++)
			assert_string_not_equal(kslab_fault_name((enum kslab_fault)i),
						kslab_fault_name((enum kslab_fault)k));
	}
	for (unsigned i = 0; i < KSLAB_REASON_COUNT; i++) {
		assert_string_not_equal(kslab_reason_name((enum kslab_reason)i), "unknown");
		for (unsigned k = 0; k < i; k++)
			assert_string_not_equal(kslab_reason_name((enum kslab_reason)i),
						kslab_reason_name((enum kslab_reason)k));
	}
	assert_string_equal(kslab_fault_name((enum kslab_fault)1000), "unknown");
	assert_string_equal(kslab_reason_name((enum kslab_reason)1000), "unknown");
}

/* ---- sized frees ----------------------------------------------------------------------------- */

static void test_sized_free_takes_every_size_that_leads_to_the_class(void **state)
{
	(void)state;
	testing_begin(&t, &defaults);
	for (size_t n = 1; n <= 20000; n += n < 2100 ? 1 : 509) {
		void *object = kslab_heap_malloc(&t.heap, n);
		size_t good = kslab_heap_good_size(&t.heap, n);

		/* The largest size that leads there, and one more, that does not. */
		kslab_heap_free_sized(&t.heap, object, good + 1);
		testing_fault(&t, KSLAB_FAULT_WRONG_SIZE);
		assert_int_equal(t.recorder.last.count, good + 1);
		kslab_heap_free_sized(&t.heap, object, n % 2 != 0 ? n : good);
		testing_step(&t);
	}
	kslab_heap_free_sized(&t.heap, NULL, 8);
	testing_end(&t);
}

/* ---- the names for kernels, on the default heap ---------------------------------------------- */

/* As a kernel would that includes the headers with a knob that the library does not know of. */
static void test_a_caller_compiled_with_another_configuration_is_refused(void **state)
{
	static struct kslab_heap heap;
	static unsigned char memory[16 * 4096] __attribute__((aligned(4096)));
	const struct kslab_config config = { .page_bytes = 4096 };

	(void)state;
#pragma push_macro("KSLAB_CFG_LEVELS")
#undef KSLAB_CFG_LEVELS
#define KSLAB_CFG_LEVELS 7
	assert_int_equal(kslab_heap_init(&heap, &config), KSLAB_BAD_ARGUMENT);
	assert_int_equal(kslab_heap_init_region(&heap, memory, sizeof(memory)), KSLAB_BAD_ARGUMENT);
	assert_int_equal(kslab_init(&config), KSLAB_BAD_ARGUMENT);
	assert_int_equal(kslab_init_region(memory, sizeof(memory)), KSLAB_BAD_ARGUMENT);
#pragma pop_macro("KSLAB_CFG_LEVELS")
	for (size_t i = 0; i < sizeof(heap); i++)
		assert_int_equal(((unsigned char *)&heap)[i], 0);
	assert_int_equal(kslab_heap_init_region(&heap, memory, sizeof(memory)), KSLAB_OK);
	assert_int_equal(kslab_heap_fini(&heap), KSLAB_OK);
}

static void test_the_kmalloc_names_work_on_the_default_heap(void **state)
{
	struct kslab_config config = { 0 };
	static struct recorder recorder;
	static struct fake_source source;
	unsigned char *object;
	void *bulk[10];
	struct kslab_stats stats;
	const char *text;

	(void)state;
	fake_source_init(&source, 4096, 1024, true);
	config.alloc_pages = fake_source_alloc;
	config.free_pages = fake_source_free;
	config.source_ctx = &source;
	config.report = recorder_report;
	config.report_ctx = &recorder;
	assert_null(kslab_malloc(10)); /* not yet */
	assert_int_equal(kslab_last_error(), KSLAB_NOT_INITIALISED);
	assert_int_equal(kslab_init(&config), KSLAB_OK);
	text = kmalloc(100);
	kfree(text); /* whatever it points to */
	object = kmalloc(100);
	assert_true(ksize(object) >= 100);
	object = krealloc(object, 1000);
	assert_true(kslab_usable_size(object) >= 1000);
	kfree(object);
	object = kzalloc(300);
	assert_true(is_filled(object, 0, 300));
	kfree_sized(object, 300);
	object = kcalloc(30, 10);
	assert_true(is_filled(object, 0, 300));
	kfree(object);
	assert_null(kcalloc(SIZE_MAX, 2));
	assert_int_equal(kslab_last_error(), KSLAB_OVERFLOW);
	assert_null(kmalloc_array(SIZE_MAX, 2));
	object = kmalloc_array(30, 10);
	kslab_free(object);
	object = kmalloc_aligned(100, 8192);
	assert_int_equal((uintptr_t)object % 8192, 0);
	kslab_free_aligned_sized(object, 8192, 100);
	object = kslab_alloc(100, 64, KSLAB_ZERO);
	assert_int_equal((uintptr_t)object % 64, 0);
	object = kslab_reallocarray(object, 20, 30);
	kfree(object);
	assert_int_equal(kslab_malloc_bulk(40, 10, bulk), 10);
	kslab_free_bulk(10, bulk);
	assert_true(kslab_reserve(100, 10));
	assert_true(kslab_good_size(100) >= 100);
	kslab_set_retention(KSLAB_RETAIN_NONE);
	kslab_idle();
	assert_true(kslab_quiesce());
	assert_true(kslab_check(NULL));
	kslab_reclaim(SIZE_MAX);
	kslab_stats(&stats);
	assert_int_equal(stats.live_objects, 0);
	assert_int_equal(stats.pages_in_use, source.pages_out);
	assert_int_equal(recorder.count, 0);
	assert_int_equal(kslab_fini(), KSLAB_OK);
	assert_int_equal(source.pages_out, 0);
	assert_int_equal(source.errors, 0);
	fake_source_fini(&source);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(test_size_0_gives_distinct_objects_that_can_be_freed),
		cmocka_unit_test(
			test_usable_size_is_good_size_for_every_size_and_all_of_it_can_be_used),
		cmocka_unit_test(test_sizes_up_to_the_end_of_the_address_space_fail_with_too_large),
		cmocka_unit_test(test_every_size_is_aligned_as_promised),
		cmocka_unit_test(test_no_debug_level_takes_alignment_away),
		cmocka_unit_test(test_aligned_alloc_serves_every_power_of_two_and_no_other),
		cmocka_unit_test(test_zalloc_and_calloc_clear_whatever_was_there),
		cmocka_unit_test(test_calloc_and_reallocarray_see_every_overflow),
		cmocka_unit_test(test_realloc_keeps_the_contents_for_every_pair_of_sizes),
		cmocka_unit_test(test_realloc_stays_in_place_where_class_or_page_run_allow),
		cmocka_unit_test(test_realloc_leads_where_malloc_of_the_size_would),
		cmocka_unit_test(test_realloc_of_null_allocates_and_to_0_frees),
		cmocka_unit_test(test_a_failed_realloc_leaves_the_object_as_it_was),
		cmocka_unit_test(test_a_large_block_of_a_region_grows_and_shrinks_in_place),
		cmocka_unit_test(test_a_growing_object_takes_a_spare_block_and_then_the_rest_of_it),
		cmocka_unit_test(test_a_second_growth_into_the_same_block_takes_no_lock),
		cmocka_unit_test(test_blocks_that_double_by_turns_never_move_twice_in_a_row),
		cmocka_unit_test(test_what_a_block_grows_into_goes_back_under_pressure),
		cmocka_unit_test(test_a_block_whose_room_is_too_short_takes_more_or_moves),
		cmocka_unit_test(test_a_growth_that_fails_leaves_block_and_room_as_they_were),
		cmocka_unit_test(test_a_size_of_a_class_may_lie_in_a_run_after_growth),
		cmocka_unit_test(test_spare_blocks_that_must_stay_whole_are_not_cut),
		cmocka_unit_test(test_random_growth_keeps_contents_and_the_region_whole),
		cmocka_unit_test(test_a_large_block_of_a_region_takes_the_lock_once_each_way),
		cmocka_unit_test(test_freed_large_blocks_are_taken_again_newest_first),
		cmocka_unit_test(test_bulk_gives_as_many_as_asked_and_each_only_once),
		cmocka_unit_test(test_bulk_stops_where_memory_ends_and_says_why),
		cmocka_unit_test(test_free_bulk_frees_the_good_ones_around_a_bad_one),
		cmocka_unit_test(test_free_bulk_judges_each_pointer_as_free_does),
		cmocka_unit_test(test_after_a_reserve_allocations_need_no_page_source),
		cmocka_unit_test(test_what_was_reserved_stays_while_others_go),
		cmocka_unit_test(test_a_reserve_beyond_memory_is_refused_with_a_reason),
		cmocka_unit_test(test_nowait_does_not_call_the_source),
		cmocka_unit_test(test_nowait_does_not_give_pages_to_the_source),
		cmocka_unit_test(test_nowait_finds_what_lies_idle_in_regions),
		cmocka_unit_test(test_unknown_flags_are_refused),
		cmocka_unit_test(test_emergency_pages_serve_reserve_requests_only),
		cmocka_unit_test(test_emergency_pages_do_not_serve_what_they_are_not_aligned_for),
		cmocka_unit_test(test_emergency_pages_are_there_when_the_quota_is_used_up),
		cmocka_unit_test(test_the_last_error_stays_until_the_next_failure),
		cmocka_unit_test(test_every_fault_and_reason_has_a_name_of_its_own),
		cmocka_unit_test(test_sized_free_takes_every_size_that_leads_to_the_class),
		cmocka_unit_test(test_a_caller_compiled_with_another_configuration_is_refused),
		cmocka_unit_test(test_the_kmalloc_names_work_on_the_default_heap),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
