/* SPDX-License-Identifier: MIT
 * test_zone_allocator.c - owns the tests of the bare ZoneAllocator (kslab_zone_*).
 */
#include "testing.h"

#include <kslab/zone_allocator.h>

#include "size_class.h"

static struct kslab_zone_allocator zone;

/* Pages of two sizes from one stretch; what is handed out is known by its number. */
#define STRETCH ((size_t)8 << 20)
static unsigned char *stretch;
static size_t base_bytes, large_bytes;
static bool base_used[2048], large_used[64];

static int map_stretch(void **state)
{
	unsigned char *raw = mmap(NULL, 4 * STRETCH, PROT_READ | PROT_WRITE,
				  MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);

	(void)state;
	if (raw == MAP_FAILED)
		return -1;
	stretch = raw + (2 * STRETCH - (uintptr_t)raw % (2 * STRETCH)) % (2 * STRETCH);
	return 0;
}

/* Base pages from the lower half, large ones from the upper. */
static void *get_page(size_t bytes)
{
	bool *used = bytes == base_bytes ? base_used : large_used;
	size_t count = bytes == base_bytes ? TESTING_COUNT(base_used) : TESTING_COUNT(large_used);

	for (size_t i = 0; i < count && (i + 1) * bytes <= STRETCH; i++) {
		if (!used[i]) {
			used[i] = true;
			return stretch + (bytes == base_bytes ? 0 : STRETCH) + i * bytes;
		}
	}
	fail_msg("the test has no page of %zu bytes left", bytes);
	return NULL;
}

static size_t pages_back;

static void put_page(void *ctx, void *page, size_t bytes)
{
	size_t offset = (size_t)((unsigned char *)page - stretch);
	bool *used = bytes == base_bytes ? base_used : large_used;

	(void)ctx;
	assert_true(bytes == base_bytes || bytes == large_bytes);
	offset -= bytes == base_bytes ? 0 : STRETCH;
	assert_true(offset < STRETCH && offset % bytes == 0 && used[offset / bytes]);
	used[offset / bytes] = false;
	memset(page, 0x5a, bytes < 65536 ? bytes : 65536); /* it is the caller's again */
	pages_back++;
}

static size_t pages_held(void)
{
	size_t held = 0;

	for (size_t i = 0; i < TESTING_COUNT(base_used); i++)
		held += base_used[i];
	for (size_t i = 0; i < TESTING_COUNT(large_used); i++)
		held += large_used[i];
	return held;
}

static void begin(size_t base, size_t large)
{
	assert_int_equal(kslab_zone_init(&zone, base, large), KSLAB_ALLOCATION_OK);
	base_bytes = base;
	large_bytes = large;
	memset(base_used, 0, sizeof(base_used));
	memset(large_used, 0, sizeof(large_used));
	pages_back = 0;
}

static void step(void)
{
	assert_true(kslab_zone_check(&zone));
	assert_int_equal(kslab_zone_usage(&zone).pages, pages_held());
}

static void end(void)
{
	size_t held = pages_held();

	step();
	pages_back = 0;
	assert_int_equal(kslab_zone_try_reclaim_pages(&zone, SIZE_MAX, put_page, NULL), held);
	assert_int_equal(pages_back, held);
	assert_int_equal(kslab_zone_usage(&zone).pages, 0);
	step();
}

/*
 * The seed's loop: allocate, and on OutOfMemory refill with a page of the right size and try again.
 */
static void *allocate(struct kslab_layout layout)
{
	void *object;
	enum kslab_allocation_error error = kslab_zone_allocate(&zone, layout, &object);

	if (error == KSLAB_OUT_OF_MEMORY) {
		assert_null(object);
		assert_int_equal(kslab_zone_refill(&zone, layout,
						   get_page(kslab_zone_page_bytes(&zone, layout))),
				 KSLAB_ALLOCATION_OK);
		error = kslab_zone_allocate(&zone, layout, &object);
	}
	assert_int_equal(error, KSLAB_ALLOCATION_OK);
	assert_int_equal((uintptr_t)object % layout.align, 0);
	return object;
}

static const struct {
	size_t base, large;
} sizes[] = { { 512, 0 },	  { 512, 4096 },   { 1024, 0 },	      { 4096, 0 },
	      { 4096, 8192 },	  { 4096, 65536 }, { 4096, 2097152 }, { 16384, 0 },
	      { 16384, 2097152 }, { 65536, 0 },	   { 65536, 131072 } };

/* ---- routing --------------------------------------------------------------------------------- */

static void test_every_size_is_served_by_the_smallest_class_on_the_right_page(void **state)
{
	(void)state;
	for (size_t s = 0; s < TESTING_COUNT(sizes); s++) {
		size_t max;

		begin(sizes[s].base, sizes[s].large);
		max = kslab_zone_max_size(&zone);
		assert_true(max >= 128 && max <= KSLAB_CLASS_MAX_BYTES);
		/* The largest page holds the largest class, and no larger one. */
		assert_true(max < (large_bytes != 0 ? large_bytes : base_bytes));
		for (size_t n = 1; n <= KSLAB_CLASS_MAX_BYTES + 1; n++) {
			const struct kslab_layout layout = { n, 1 };
			size_t got = kslab_zone_get_max_size(&zone, layout);
			size_t page = kslab_zone_page_bytes(&zone, layout);

			if (n > max) {
				assert_true(got == 0 && page == 0);
				continue;
			}
			if (got != kslab_class_bytes(kslab_class_of(n)))
				fail_msg("%zu bytes are served by %zu", n, got);
			assert_true(page == base_bytes || (page == large_bytes && page != 0));
			/* Little waste on base pages, where there are large ones to go to. */
			if (large_bytes != 0 && page == base_bytes && n > 128) {
				size_t slots = kslab_sc_slots(&zone.sc[kslab_class_of(n)]);

				assert_true(base_bytes - slots * got <= base_bytes / 8);
			}
		}
	}
}

static void test_alignment_leads_to_a_class_that_has_it_or_to_an_error(void **state)
{
	(void)state;
	for (size_t s = 0; s < TESTING_COUNT(sizes); s++) {
		begin(sizes[s].base, sizes[s].large);
		for (size_t align = 0; align <= 32768; align += align < 70 ? 1 : align) {
			bool power = align != 0 && (align & (align - 1)) == 0;

			for (size_t n = 1; n <= KSLAB_CLASS_MAX_BYTES; n += n < 200 ? 1 : 191) {
				const struct kslab_layout layout = { n, align };
				size_t got = kslab_zone_get_max_size(&zone, layout);
				void *object = &object;

				if (got != 0) {
					assert_true(power && got >= n && got % align == 0);
					continue;
				}
				/* Refused everywhere in the same words. */
				assert_int_equal(kslab_zone_allocate(&zone, layout, &object),
						 KSLAB_INVALID_LAYOUT);
				assert_null(object);
				assert_int_equal(kslab_zone_deallocate(&zone, stretch, layout),
						 KSLAB_INVALID_LAYOUT);
				assert_int_equal(kslab_zone_refill(&zone, layout, stretch),
						 KSLAB_INVALID_LAYOUT);
				assert_int_equal(kslab_zone_page_bytes(&zone, layout), 0);
				/* Nothing is refused that a class could serve. */
				for (unsigned cls = 0; power && cls < zone.classes; cls++)
					assert_false(kslab_class_bytes(cls) >= n &&
						     kslab_class_bytes(cls) % align == 0);
			}
		}
		step();
	}
}

static void test_sizes_beyond_the_address_space_are_refused_without_wrap(void **state)
{
	(void)state;
	begin(4096, 0);
	for (size_t d = 0; d < 40000; d += d < 100 ? 1 : 999) {
		for (size_t align = 1; align != 0; align *= 2) {
			const struct kslab_layout huge = { SIZE_MAX - d, align };

			assert_int_equal(kslab_zone_get_max_size(&zone, huge), 0);
		}
	}
}

static void test_impossible_zones_are_refused_and_answer_to_every_call(void **state)
{
	static const struct {
		size_t base, large;
	} bad[] = { { 0, 0 },	     { 256, 0 },    { 3000, 0 },
		    { 4096, 4096 },  { 4096, 512 }, { 4096, 10000 },
		    { SIZE_MAX, 0 }, { 0, 4096 },   { 4096, (size_t)64 << 20 } };
	const struct kslab_layout layout = { 64, 8 };

	(void)state;
	for (size_t i = 0; i < TESTING_COUNT(bad); i++) {
		void *object = &object;

		assert_int_equal(kslab_zone_init(&zone, bad[i].base, bad[i].large),
				 KSLAB_INVALID_LAYOUT);
		assert_int_equal(kslab_zone_allocate(&zone, layout, &object), KSLAB_INVALID_LAYOUT);
		assert_null(object);
		assert_int_equal(kslab_zone_refill(&zone, layout, stretch), KSLAB_INVALID_LAYOUT);
		assert_int_equal(kslab_zone_max_size(&zone), 0);
		assert_int_equal(kslab_zone_try_reclaim_pages(&zone, 1, put_page, NULL), 0);
		assert_int_equal(kslab_zone_usage(&zone).pages, 0);
		assert_true(kslab_zone_check(&zone));
	}
}

/* ---- refill, allocate, deallocate ------------------------------------------------------------ */

static void test_every_class_fills_its_page_and_empties_it_again(void **state)
{
	(void)state;
	for (size_t s = 0; s < TESTING_COUNT(sizes); s++) {
		for (unsigned cls = 0; cls < KSLAB_CLASSES; cls++) {
			const struct kslab_layout layout = { kslab_class_bytes(cls), 8 };
			static void *objects[8192];
			size_t slots, n = 0;

			begin(sizes[s].base, sizes[s].large);
			if (layout.size > kslab_zone_max_size(&zone))
				continue;
			slots = kslab_sc_slots(&zone.sc[cls]);
			while (n < slots && n < TESTING_COUNT(objects)) {
				objects[n] = allocate(layout);
				memset(objects[n], (int)(n & 0xff), layout.size);
				n++;
			}
			assert_int_equal(pages_held(), 1);
			assert_int_equal(kslab_zone_usage(&zone).used_slots, n);
			assert_int_equal(kslab_zone_usage(&zone).used_bytes, n * layout.size);
			assert_int_equal(kslab_zone_try_reclaim_pages(&zone, 1, put_page, NULL), 0);
			step();
			for (size_t i = 0; i < n; i++) {
				const unsigned char *byte = objects[i];

				assert_true(byte[0] == (i & 0xff) &&
					    byte[layout.size - 1] == (i & 0xff));
				assert_int_equal(kslab_zone_deallocate(&zone, objects[i], layout),
						 KSLAB_ALLOCATION_OK);
				assert_int_equal(kslab_zone_deallocate(&zone, objects[i], layout),
						 KSLAB_INVALID_POINTER);
			}
			assert_int_equal(kslab_zone_usage(&zone).used_slots, 0);
			end();
		}
	}
}

static void test_a_page_of_the_wrong_alignment_is_refused_for_the_larger_size(void **state)
{
	const struct kslab_layout small = { 64, 8 }, large = { 8192, 8 };

	(void)state;
	begin(4096, 65536);
	assert_int_equal(kslab_zone_page_bytes(&zone, small), 4096);
	assert_int_equal(kslab_zone_page_bytes(&zone, large), 65536);
	memset(stretch, 0x5a, 131072);
	assert_int_equal(kslab_zone_refill(&zone, large, stretch + 4096), KSLAB_INVALID_PAGE);
	assert_int_equal(kslab_zone_refill(&zone, small, stretch + 8), KSLAB_INVALID_PAGE);
	assert_int_equal(kslab_zone_refill(&zone, small, NULL), KSLAB_INVALID_PAGE);
	for (size_t i = 0; i < 131072; i++)
		assert_int_equal(stretch[i], 0x5a);
	step();
}

#define HELD 400u

static void random_work(size_t base, size_t large, uint64_t seed)
{
	static struct {
		unsigned char *object;
		struct kslab_layout layout;
		unsigned char mark;
	} held[HELD];
	struct testing_random random = { seed };
	size_t count = 0, max;

	begin(base, large);
	max = kslab_zone_max_size(&zone);
	for (unsigned n = 0; n < 6000; n++) {
		size_t i;

		if (count == HELD || (count != 0 && testing_random_below(&random, 2) == 0)) {
			i = testing_random_below(&random, count);
			assert_int_equal(held[i].object[0], held[i].mark);
			assert_int_equal(held[i].object[held[i].layout.size - 1], held[i].mark);
			assert_int_equal(kslab_zone_deallocate(&zone, held[i].object,
							       held[i].layout),
					 KSLAB_ALLOCATION_OK);
			held[i] = held[--count];
		} else {
			held[count].layout.size = 1 + testing_random_below(&random, max);
			if (testing_random_below(&random, 4) != 0)
				held[count].layout.size %= 300;
			held[count].layout.size += held[count].layout.size == 0;
			held[count].layout.align = (size_t)1 << testing_random_below(&random, 8);
			if (kslab_zone_get_max_size(&zone, held[count].layout) == 0)
				continue;
			held[count].object = allocate(held[count].layout);
			held[count].mark = (unsigned char)n;
			memset(held[count].object, held[count].mark, held[count].layout.size);
			count++;
		}
		if (n % 500 == 499)
			kslab_zone_try_reclaim_pages(&zone, 3, put_page, NULL);
		if (n % 16 == 0)
			step();
	}
	while (count-- != 0)
		assert_int_equal(kslab_zone_deallocate(&zone, held[count].object,
						       held[count].layout),
				 KSLAB_ALLOCATION_OK);
	end();
}

static void test_random_work_on_two_page_sizes(void **state)
{
	struct testing_random random = testing_seed("zone", 41);

	(void)state;
	for (size_t s = 0; s < TESTING_COUNT(sizes); s++)
		if (sizes[s].large != 2097152)
			random_work(sizes[s].base, sizes[s].large, testing_random_next(&random));
}

/* ---- reclaim --------------------------------------------------------------------------------- */

static void test_reclaim_begins_with_another_class_each_time(void **state)
{
	static const size_t classes[] = { 64, 128, 256, 512 };
	size_t before[4];

	(void)state;
	begin(4096, 0);
	/*
	 * Plenty of empty pages in four classes: as many reclaims as there are classes reach each
	 * of them.
	 */
	for (size_t c = 0; c < 4; c++) {
		const struct kslab_layout layout = { classes[c], 8 };

		for (unsigned i = 0; i < 64; i++)
			assert_int_equal(kslab_zone_refill(&zone, layout, get_page(4096)),
					 KSLAB_ALLOCATION_OK);
		before[c] = 64;
	}
	for (unsigned n = 0; n < zone.classes; n++) {
		assert_int_equal(kslab_zone_try_reclaim_pages(&zone, 1, put_page, NULL), 1);
		step();
	}
	for (size_t c = 0; c < 4; c++) {
		size_t left = kslab_sc_usage(&zone.sc[kslab_class_of(classes[c])]).pages;

		assert_true(left < before[c]);
	}
	assert_int_equal(pages_back, zone.classes);
	end();
}

static void test_reclaim_gives_back_exactly_as_many_as_asked_or_as_there_are(void **state)
{
	(void)state;
	for (size_t wanted = 0; wanted <= 14; wanted++) {
		const struct kslab_layout small = { 64, 8 }, large = { 10000, 8 };
		void *live;

		begin(4096, 65536);
		live = allocate(small); /* one page that must stay */
		for (unsigned i = 0; i < 6; i++) {
			assert_int_equal(kslab_zone_refill(&zone, small, get_page(4096)),
					 KSLAB_ALLOCATION_OK);
			assert_int_equal(kslab_zone_refill(&zone, large, get_page(65536)),
					 KSLAB_ALLOCATION_OK);
		}
		assert_int_equal(kslab_zone_try_reclaim_pages(&zone, wanted, put_page, NULL),
				 wanted < 12 ? wanted : 12);
		assert_int_equal(pages_back, wanted < 12 ? wanted : 12);
		step();
		assert_int_equal(kslab_zone_usage(&zone).used_slots, 1);
		assert_int_equal(kslab_zone_deallocate(&zone, live, small), KSLAB_ALLOCATION_OK);
		end();
	}
}

static void test_the_checker_looks_at_every_class(void **state)
{
	(void)state;
	begin(4096, 65536);
	for (unsigned cls = 0; cls < zone.classes; cls++) {
		zone.sc[cls].core.pages++;
		assert_false(kslab_zone_check(&zone));
		zone.sc[cls].core.pages--;
		assert_true(kslab_zone_check(&zone));
	}
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(test_every_size_is_served_by_the_smallest_class_on_the_right_page),
		cmocka_unit_test(test_alignment_leads_to_a_class_that_has_it_or_to_an_error),
		cmocka_unit_test(test_sizes_beyond_the_address_space_are_refused_without_wrap),
		cmocka_unit_test(test_impossible_zones_are_refused_and_answer_to_every_call),
		cmocka_unit_test(test_every_class_fills_its_page_and_empties_it_again),
		cmocka_unit_test(test_a_page_of_the_wrong_alignment_is_refused_for_the_larger_size),
		cmocka_unit_test(test_random_work_on_two_page_sizes),
		cmocka_unit_test(test_reclaim_begins_with_another_class_each_time),
		cmocka_unit_test(test_reclaim_gives_back_exactly_as_many_as_asked_or_as_there_are),
		cmocka_unit_test(test_the_checker_looks_at_every_class),
	};

	return cmocka_run_group_tests(tests, map_stretch, NULL);
}
