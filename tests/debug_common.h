/* SPDX-License-Identifier: MIT
 * debug_common.h - owns the tests that hold at debug levels 1 and 2 alike: redzones, poison, the
 * fence, and the answers of level 0, which must not change.
 * Rank: test helper.  Runs: one thread that plays two CPUs, in turns. Included by test_debug.c and
 * test_debug2.c.
 */
#ifndef DEBUG_COMMON_H
#define DEBUG_COMMON_H

#include "testing.h"

#include "fake_cpu.h"
#include "heap.h"
#include "heap_image.h"

#define PAGE 4096u
#define LEVEL KSLAB_CFG_DEBUG
#define TRAILER (5 * sizeof(uintptr_t)) /* level 2: at the end of a slot */

FAKE_CPU_DEFINE;

static struct testing t;

/* Without quarantine a freed slot can be issued again at once, as the tests of poison need it. */
static const struct kslab_config plain = { .max_page_bytes = PAGE,
					   .quarantine_objects = KSLAB_QUARANTINE_NONE };

static int setup(void **state)
{
	(void)state;
	if (t.source.memory != NULL)
		fake_source_fini(&t.source);
	memset(&t, 0, sizeof(t));
	fake_cpu = fake_pins = fake_masked = fake_nmi = 0;
	return 0;
}

static int teardown(void **state)
{
	(void)state;
	assert_int_equal(fake_pins, 0);
	assert_int_equal(fake_masked, 0);
	return 0;
}

static void online(unsigned cpu)
{
	fake_cpu = cpu;
	assert_int_equal(kslab_heap_cpu_online(&t.heap, cpu), KSLAB_OK);
	fake_cpu = 0;
}

static struct kslab_page *page_of(const void *p)
{
	return kslab_page_map_find(&t.heap.map, (uintptr_t)p);
}

static size_t slot_bytes(const void *p)
{
	return page_of(p)->sc->size;
}

/* Bytes of a slot that belong to client and redzone. */
static size_t room_bytes(const void *p)
{
	return slot_bytes(p) - (LEVEL >= 2 ? TRAILER : 1);
}

static unsigned char *get(size_t n)
{
	unsigned char *p = kslab_heap_malloc(&t.heap, n);

	assert_non_null(p);
	return p;
}

static void put(void *p)
{
	kslab_heap_free(&t.heap, p);
	testing_step(&t);
}

static void reported(enum kslab_fault fault, const void *object, size_t offset)
{
	const struct kslab_report *last = &t.recorder.last;

	if (t.recorder.count != t.faults + 1)
		print_error("%zu reports, wanted one: %s at %zu\n", t.recorder.count - t.faults,
			    kslab_fault_name(fault), offset);
	assert_int_equal(t.recorder.count, t.faults + 1);
	assert_string_equal(kslab_fault_name(last->fault), kslab_fault_name(fault));
	assert_ptr_equal(last->object, object);
	assert_ptr_equal(last->pointer, object);
	assert_int_equal(last->count, offset);
	assert_non_null(last->page);
	assert_true((uintptr_t)object - (uintptr_t)last->page < last->page_bytes);
	assert_true(last->object_bytes > offset);
	assert_non_null(last->what);
	if (LEVEL >= 2 && page_of(object)->state != KSLAB_PAGE_LARGE &&
	    offset < last->object_bytes - TRAILER)
		assert_non_null(last->alloc_caller);
	t.faults++;
}

static void check_finds(const void *object, size_t offset)
{
	struct kslab_check_result result;

	assert_false(kslab_heap_check(&t.heap, &result));
	assert_int_equal(result.errors, 1);
	assert_ptr_equal(result.object, object);
	assert_int_equal(result.offset, offset);
	assert_non_null(result.what);
}

/* Allocate until the slot comes again; everything else goes back. */
static unsigned char *again(const void *slot, size_t n)
{
	static unsigned char *other[1200];
	unsigned char *p;
	size_t count = 0;

	for (;;) {
		p = get(n);
		if (p == slot)
			break;
		assert_true(count < TESTING_COUNT(other));
		other[count++] = p;
	}
	while (count != 0)
		kslab_heap_free(&t.heap, other[--count]);
	return p;
}

static bool is_all(const unsigned char *p, size_t n, unsigned byte)
{
	for (size_t i = 0; i < n; i++)
		if (p[i] != byte)
			return false;
	return true;
}

/* ---- sizes ----------------------------------------------------------------------------------- */

static void every_size_is_usable_exactly_and_aligned_as_without_debugging(void **state)
{
	(void)state;
	testing_begin(&t, &plain);
	for (size_t n = 0; n <= 20000; n += n < 700 ? 1 : 97) {
		unsigned char *p = get(n);
		size_t natural = n != 0 && (n & (n - 1)) == 0 ? (n < PAGE ? n : PAGE)
				 : n > PAGE		      ? PAGE
							      : 1;

		assert_int_equal(kslab_heap_usable_size(&t.heap, p), n);
		assert_int_equal(kslab_heap_good_size(&t.heap, n), n);
		assert_int_equal((uintptr_t)p % natural, 0);
		memset(p, 0x11, n);
		testing_step(&t);
		put(p);
	}
	for (size_t align = 1; align <= 4 * PAGE; align *= 2) {
		for (size_t n = 0; n <= 9000; n += 1 + n / 3) {
			unsigned char *p = kslab_heap_aligned_alloc(&t.heap, align, n);

			assert_non_null(p);
			assert_int_equal((uintptr_t)p % align, 0);
			assert_int_equal(kslab_heap_usable_size(&t.heap, p), n);
			memset(p, 0x11, n);
			kslab_heap_free_aligned_sized(&t.heap, p, align, n);
			testing_step(&t);
		}
	}
	testing_end(&t);
}

static void single_frames_serve_every_size_up_to_a_page(void **state)
{
	const struct kslab_config config = { 0 };

	(void)state;
	testing_begin(&t, &config);
	t.source.longest_run = 1;
	for (size_t n = PAGE - 100; n <= PAGE; n++) {
		unsigned char *p = get(n);

		assert_int_equal(kslab_heap_usable_size(&t.heap, p), n);
		memset(p, 0x22, n);
		put(p);
	}
	testing_end(&t);
}

/* Row 12: the classes of level 0 decide, at every level. */
static void sized_frees_are_judged_as_without_debugging(void **state)
{
	(void)state;
	testing_begin(&t, &plain);
	for (size_t n = 0; n <= 300; n++) {
		for (size_t align = 1; align <= 64; align *= 8) {
			unsigned cls = kslab_heap_plain_class(&t.heap, n, align);

			for (size_t other = n > 40 ? n - 40 : 0; other <= n + 40; other++) {
				unsigned char *p = kslab_heap_aligned_alloc(&t.heap, align, n);

				assert_non_null(p);
				kslab_heap_free_aligned_sized(&t.heap, p, align, other);
				if (kslab_heap_plain_class(&t.heap, other, align) != cls) {
					assert_int_equal(t.recorder.count, ++t.faults);
					assert_int_equal(t.recorder.last.fault,
							 KSLAB_FAULT_WRONG_SIZE);
					kslab_heap_free_aligned_sized(&t.heap, p, align, n);
				}
				assert_int_equal(t.recorder.count, t.faults);
			}
		}
		testing_step(&t);
	}
	testing_end(&t);
}

/* ---- rows 21 and 22: overflow ---------------------------------------------------------------- */

static void overflow_by_one_is_found_at_free_with_its_offset(void **state)
{
	(void)state;
	testing_begin(&t, &plain);
	for (size_t n = 0; n <= 300; n++) {
		unsigned char *p = get(n), was;

		memset(p, 0x11, n);
		was = p[n];
		for (unsigned byte = 0; byte < 256; byte++) {
			if (byte == was)
				continue;
			p[n] = (unsigned char)byte;
			kslab_heap_free(&t.heap, p);
			reported(KSLAB_FAULT_REDZONE, p, n);
			if (byte % 64 == 0)
				check_finds(p, n);
			assert_null(kslab_heap_realloc(&t.heap, p, n + 1));
			reported(KSLAB_FAULT_REDZONE, p, n);
			assert_int_equal(kslab_heap_last_error(&t.heap), KSLAB_BAD_FREE);
			assert_int_equal(kslab_heap_usable_size(&t.heap, p), 0);
			reported(KSLAB_FAULT_REDZONE, p, n);
		}
		p[n] = was; /* it has stayed live */
		assert_int_equal(kslab_heap_usable_size(&t.heap, p), n);
		put(p);
	}
	testing_end(&t);
}

static void overflow_by_eight_is_found_at_free(void **state)
{
	static const unsigned char bytes[] = { 0, 'A', 0xff, KSLAB_DEBUG_FREE_BYTE, 0xa7, 0x80 };

	(void)state;
	testing_begin(&t, &plain);
	for (size_t n = 1; n <= 300; n++) {
		for (size_t b = 0; b < TESTING_COUNT(bytes); b++) {
			unsigned char *p = get(n), saved[8];
			size_t slot = slot_bytes(p);

			memcpy(saved, p + n, 8);
			memset(p, bytes[b], n + 8);
			kslab_heap_free(&t.heap, p);
			assert_int_equal(t.recorder.count, ++t.faults);
			assert_int_equal(t.recorder.last.fault, KSLAB_FAULT_REDZONE);
			/*
			 * The first bad byte; if the code that says where it begins is gone, too,
			 * one of the slot.
			 */
			if (LEVEL >= 2 || n + 16 <= slot)
				assert_int_equal(t.recorder.last.count, n);
			else
				assert_true(t.recorder.last.count < slot);
			memcpy(p + n, saved, 8);
			put(p);
		}
	}
	testing_end(&t);
}

static void every_byte_of_the_redzone_is_watched(void **state)
{
	(void)state;
	testing_begin(&t, &plain);
	for (size_t n = 0; n <= 2100; n += n < 130 ? 1 : 131) {
		unsigned char *p = get(n);
		size_t end = room_bytes(p), slot = slot_bytes(p);

		memset(p, 0, n);
		for (size_t i = n; i < slot; i++) {
			p[i] ^= 0x10;
			kslab_heap_free(&t.heap, p);
			assert_int_equal(t.recorder.count, ++t.faults);
			assert_int_equal(t.recorder.last.fault, KSLAB_FAULT_REDZONE);
			if (LEVEL >= 2)
				assert_int_equal(t.recorder.last.count, i < end ? i : end);
			else
				assert_true(t.recorder.last.count == i ||
					    (i >= slot - 8 && t.recorder.last.count >= slot - 8));
			p[i] ^= 0x10;
		}
		put(p);
	}
	testing_end(&t);
}

/* What holds n, its code, the trailer: whatever else stands there is found. */
static void every_other_value_of_the_last_bytes_is_found(void **state)
{
	static const size_t size[] = { 0, 1, 5, 6, 7, 8, 15, 16, 24, 40, 55, 64, 100, 256, 1000 };

	(void)state;
	testing_begin(&t, &plain);
	for (size_t k = 0; k < TESTING_COUNT(size); k++) {
		unsigned char *p = get(size[k]), was;
		size_t slot = slot_bytes(p), from = slot - (LEVEL >= 2 ? TRAILER : 8);

		memset(p, 0x11, size[k]);
		for (size_t i = from < size[k] ? size[k] : from; i < slot; i++) {
			was = p[i];
			for (unsigned byte = 0; byte < 256; byte++) {
				if (byte == was)
					continue;
				p[i] = (unsigned char)byte;
				kslab_heap_free(&t.heap, p);
				assert_int_equal(t.recorder.count, ++t.faults);
				assert_int_equal(t.recorder.last.fault, KSLAB_FAULT_REDZONE);
			}
			p[i] = was;
		}
		put(p);
	}
	testing_end(&t);
}

static void overflow_into_a_free_neighbour_is_found_there(void **state)
{
	unsigned char *p[3];

	(void)state;
	testing_begin(&t, &plain);
	for (unsigned i = 0; i < 3; i++)
		p[i] = get(100);
	assert_ptr_equal(p[1] + slot_bytes(p[0]), p[2]);
	put(p[2]);
	p[2][3] = 1; /* skips the redzone of its own slot */
	check_finds(p[2], 3);
	kslab_heap_free(&t.heap, p[1]);
	assert_int_equal(t.recorder.count, t.faults);
	kslab_heap_free(&t.heap, again(p[2], 100));
	reported(KSLAB_FAULT_USE_AFTER_FREE, p[2], 3);
	put(p[0]);
	testing_end(&t);
}

/* ---- rows 24 to 26: use after free, use before init ------------------------------------------ */

static void a_write_after_free_is_found_at_the_next_issue_at_every_offset(void **state)
{
	static const size_t sizes[] = { 0, 1, 7, 8, 15, 100, 127, 500, 1500, 3000 };

	(void)state;
	testing_begin(&t, &plain);
	for (size_t s = 0; s < TESTING_COUNT(sizes); s++) {
		size_t n = sizes[s];
		unsigned char *p = get(n);
		size_t room = room_bytes(p), slot = slot_bytes(p);

		for (size_t i = 0; i < slot; i++) {
			kslab_heap_free(&t.heap, p);
			p[i] ^= i % 2 != 0 ? 0x01 : 0xff;
			if (i % 16 == 0)
				check_finds(p, i < room ? i : room);
			again(p, n);
			reported(KSLAB_FAULT_USE_AFTER_FREE, p, i < room ? i : room);
			/* it is in order again */
			assert_int_equal(kslab_heap_usable_size(&t.heap, p), n);
			assert_true(is_all(p, n, KSLAB_DEBUG_FREE_BYTE));
			assert_int_equal(t.recorder.count, t.faults);
		}
		put(p);
	}
	testing_end(&t);
}

static void a_write_after_free_is_found_when_the_page_goes_back(void **state)
{
	unsigned char *p;

	(void)state;
	testing_begin(&t, &plain);
	p = get(1000);
	put(p);
	p[17] = 0;
	assert_true(kslab_heap_reclaim(&t.heap, SIZE_MAX) != 0);
	assert_int_equal(t.recorder.count, 1);
	assert_int_equal(t.recorder.last.fault, KSLAB_FAULT_USE_AFTER_FREE);
	assert_ptr_equal(t.recorder.last.object, p);
	assert_int_equal(t.recorder.last.count, 17);
	t.faults = 1;
	p = get(1000);
	put(p);
	p[999] = 0;
	assert_int_equal(kslab_heap_fini(&t.heap), KSLAB_OK);
	assert_int_equal(t.recorder.count, 2);
	assert_int_equal(t.recorder.last.fault, KSLAB_FAULT_USE_AFTER_FREE);
	assert_int_equal(t.recorder.last.count, 999);
	assert_int_equal(t.source.pages_out, 0);
}

static void memory_holds_what_the_options_say(void **state)
{
	(void)state;
	for (unsigned flags = 0; flags < 4; flags++) {
		struct kslab_config config = plain;
		unsigned freed = flags & KSLAB_DEBUG_ZERO_ON_FREE ? 0 : KSLAB_DEBUG_FREE_BYTE;
		unsigned fresh = flags & KSLAB_DEBUG_ZERO_ON_ALLOC ? 0 : freed;

		config.debug_flags = flags;
		testing_begin(&t, &config);
		for (size_t n = 0; n <= 9000; n += n < 70 ? 1 : 1 + n / 2) {
			unsigned char *p = get(n), *q;

			assert_true(is_all(p, n, fresh));
			memset(p, 0x33, n);
			p[n > 20 ? 20 : 0] = n == 0 ? p[0] : 0x34;
			q = kslab_heap_zalloc(&t.heap, n);
			assert_true(is_all(q, n, 0));
			memset(q, 0x33, n);
			put(q);
			q = kslab_heap_alloc(&t.heap, n, 64, KSLAB_ZERO);
			assert_true(is_all(q, n, 0));
			put(q);
			put(p);
			if (n <= 3000) /* a page run may have gone */
				assert_true(is_all(p, n, freed));
			/* An overflow by a zero is one with zeroed memory, too. */
			p = kslab_heap_zalloc(&t.heap, n);
			if (n <= 3000 && p[n] != 0) {
				unsigned char was = p[n];

				p[n] = 0;
				kslab_heap_free(&t.heap, p);
				reported(KSLAB_FAULT_REDZONE, p, n);
				p[n] = was;
			}
			put(p);
		}
		testing_end(&t);
	}
	{
		struct kslab_config config = plain;

		config.debug_flags = 4;
		assert_int_equal(kslab_heap_init(&t.heap, &config), KSLAB_BAD_ARGUMENT);
	}
}

/* ---- realloc --------------------------------------------------------------------------------- */

static void realloc_moves_the_redzone(void **state)
{
	struct testing_random random = testing_seed("realloc", 5);
	unsigned char *p;
	size_t n = 10;

	(void)state;
	testing_begin(&t, &plain);
	p = get(n);
	memset(p, 0x44, n);
	for (unsigned i = 0; i < 3000; i++) {
		size_t wish = 1 + testing_random_below(&random, i % 50 == 0 ? 40000 : 300),
		       kept = wish < n ? wish : n;

		p = kslab_heap_realloc(&t.heap, p, wish);
		assert_non_null(p);
		testing_step(&t);
		assert_true(is_all(p, kept, 0x44));
		assert_true(is_all(p + kept, wish - kept, KSLAB_DEBUG_FREE_BYTE));
		assert_int_equal(kslab_heap_usable_size(&t.heap, p), wish);
		if (wish % PAGE != 0) {
			unsigned char was = p[wish];

			p[wish] ^= 0x55;
			assert_null(kslab_heap_realloc(&t.heap, p, 2 * wish));
			reported(KSLAB_FAULT_REDZONE, p, wish);
			p[wish] = was;
		}
		n = wish;
		memset(p, 0x44, n);
	}
	put(p);
	testing_end(&t);
}

/* ---- large blocks ---------------------------------------------------------------------------- */

static void large_blocks_have_redzones_and_poison(void **state)
{
	(void)state;
	testing_begin(&t, &plain);
	for (size_t n = 5 * PAGE - 20; n < 5 * PAGE; n += 3) {
		unsigned char *p = get(n);

		assert_true(is_all(p, n, KSLAB_DEBUG_FREE_BYTE));
		assert_int_equal(kslab_heap_usable_size(&t.heap, p), n);
		for (size_t i = n; i < 5 * PAGE; i++) {
			p[i] ^= 1;
			kslab_heap_free(&t.heap, p);
			reported(KSLAB_FAULT_REDZONE, p, i);
			check_finds(p, i);
			p[i] ^= 1;
		}
		put(p);
		kslab_heap_free(&t.heap, p);
		assert_int_equal(t.recorder.count, ++t.faults);
		assert_int_equal(t.recorder.last.fault, KSLAB_FAULT_DOUBLE_FREE);
		p[n / 2] = 0; /* the zone has kept it */
		check_finds(p, n / 2);
		assert_ptr_equal(get(n), p);
		assert_int_equal(t.recorder.count, ++t.faults);
		assert_int_equal(t.recorder.last.fault, KSLAB_FAULT_USE_AFTER_FREE);
		assert_int_equal(t.recorder.last.count, n / 2);
		put(p);
	}
	testing_end(&t);
}

/* ---- object caches --------------------------------------------------------------------------- */

static size_t constructed;

static void construct(void *object, void *ctx)
{
	memset(object, 0x77, *(const size_t *)ctx);
	constructed++;
}

static void caches_have_redzones_and_keep_what_the_constructor_made(void **state)
{
	(void)state;
	testing_begin(&t, &plain);
	for (size_t size = 1; size <= 200; size += 3) {
		for (unsigned with = 0; with < 2; with++) {
			struct kslab_cache cache;
			unsigned char *p, *q, was;

			assert_int_equal(kslab_heap_cache_init(&t.heap, &cache, "test", size, 0,
							       with != 0 ? construct : NULL, &size),
					 KSLAB_OK);
			p = kslab_cache_alloc(&cache);
			q = kslab_cache_alloc(&cache);
			assert_true(is_all(p, size, with != 0 ? 0x77 : KSLAB_DEBUG_FREE_BYTE));
			was = p[size];
			p[size] = 0;
			kslab_cache_free(&cache, p);
			reported(KSLAB_FAULT_REDZONE, p, size);
			check_finds(p, size);
			p[size] = was;
			testing_step(&t);
			kslab_heap_free(&t.heap, p);
			testing_fault(&t, KSLAB_FAULT_WRONG_CACHE);
			kslab_cache_free(&cache, p);
			testing_step(&t);
			assert_true(is_all(p, size, with != 0 ? 0x77 : KSLAB_DEBUG_FREE_BYTE));
			kslab_cache_free(&cache, p);
			testing_fault(&t, KSLAB_FAULT_DOUBLE_FREE);
			kslab_cache_free(&cache, q);
			if (with == 0) {
				p[size / 2] ^= 1;
				check_finds(p, size / 2);
				p[size / 2] ^= 1;
			}
			testing_step(&t);
			assert_int_equal(kslab_cache_destroy(&cache), KSLAB_OK);
		}
	}
	testing_end(&t);
}

static void a_cache_of_the_largest_size_works_without_a_redzone(void **state)
{
	struct kslab_cache cache;
	void *p;

	(void)state;
	testing_begin(&t, &plain);
	assert_int_equal(kslab_heap_cache_init(&t.heap, &cache, "page", PAGE, 0, NULL, NULL),
			 KSLAB_OK);
	p = kslab_cache_alloc(&cache);
	assert_non_null(p);
	memset(p, 0, PAGE);
	testing_step(&t);
	kslab_cache_free(&cache, p);
	kslab_cache_free(&cache, p);
	testing_fault(&t, KSLAB_FAULT_DOUBLE_FREE);
	assert_int_equal(kslab_cache_destroy(&cache), KSLAB_OK);
	assert_int_equal(kslab_heap_cache_init(&t.heap, &cache, "lost", 50, 0, NULL, NULL),
			 KSLAB_OK);
	for (unsigned i = 0; i < 300; i++)
		memset(kslab_cache_alloc(&cache), 0, 50);
	assert_int_equal(kslab_cache_destroy_forced(&cache), 300);
	testing_end(&t);
}

static bool sum_up(void *ctx, void *object, size_t bytes)
{
	(void)object;
	*(size_t *)ctx += bytes;
	return true;
}

/* A live object of a cache: what is behind it is watched as far as its slot reaches. */
static void is_watched(struct kslab_cache *cache, unsigned char *p)
{
	size_t walked = 0;

	memset(p, 0x77, cache->size);
	assert_int_equal(kslab_heap_usable_size(&t.heap, p), cache->size);
	assert_int_equal(kslab_heap_walk(&t.heap, sum_up, &walked), 1);
	assert_int_equal(walked, cache->size);
	testing_step(&t);
	for (size_t i = cache->size; i < cache->slot_bytes; i++) {
		p[i] ^= 0x10;
		kslab_cache_free(cache, p);
		assert_int_equal(t.recorder.count, ++t.faults);
		assert_int_equal(t.recorder.last.fault, KSLAB_FAULT_REDZONE);
		p[i] ^= 0x10;
	}
	testing_step(&t);
}

/* A free object of a cache that is to be issued next. */
static void is_issued_again(struct kslab_cache *cache, unsigned char *p)
{
	assert_true(
		is_all(p, cache->size, cache->constructor != NULL ? 0x77 : KSLAB_DEBUG_FREE_BYTE));
	kslab_cache_free(cache, p);
	testing_fault(&t, KSLAB_FAULT_DOUBLE_FREE);
	if (cache->constructor == NULL) {
		p[cache->size - 1] ^= 1;
		check_finds(p, cache->size - 1);
		assert_ptr_equal(kslab_cache_alloc(cache), p);
		reported(KSLAB_FAULT_USE_AFTER_FREE, p, cache->size - 1);
	} else {
		assert_ptr_equal(kslab_cache_alloc(cache), p);
	}
	kslab_cache_free(cache, p);
	testing_step(&t);
}

/* With a redzone where it fits the page, without one where only the bare object does. */
static void single_frames_serve_caches_of_every_size_up_to_a_page(void **state)
{
	const struct kslab_config config = { .quarantine_objects = KSLAB_QUARANTINE_NONE };

	(void)state;
	for (size_t align = 0; align <= PAGE; align = align != 0 ? align * 8 : 8) {
		testing_begin(&t, &config);
		t.source.longest_run = 1;
		for (size_t size = PAGE - 100; size <= PAGE; size++) {
			for (unsigned with = 0; with < 2; with++) {
				struct kslab_cache cache;
				unsigned char *p;

				assert_int_equal(kslab_heap_cache_init(&t.heap, &cache, "test",
								       size, align,
								       with != 0 ? construct : NULL,
								       &size),
						 KSLAB_OK);
				assert_true(cache.slot_bytes >= size && cache.slot_bytes <= PAGE);
				p = kslab_cache_alloc(&cache);
				assert_non_null(p);
				is_watched(&cache, p);
				kslab_cache_free(&cache, p);
				testing_step(&t);
				is_issued_again(&cache, p);
				assert_int_equal(kslab_cache_destroy(&cache), KSLAB_OK);
			}
		}
		testing_end(&t);
	}
}

/* As at level 0: the size of a type of alignment 16 is enough to know. */
static void caches_align_what_is_a_multiple_of_16(void **state)
{
	(void)state;
	testing_begin(&t, &plain);
	for (size_t size = 16; size <= PAGE; size += 16) {
		struct kslab_cache cache;
		void *p[3];

		assert_int_equal(kslab_heap_cache_init(&t.heap, &cache, "test", size, 0, NULL,
						       NULL),
				 KSLAB_OK);
		for (size_t i = 0; i < TESTING_COUNT(p); i++) {
			p[i] = kslab_cache_alloc(&cache);
			assert_non_null(p[i]);
			assert_int_equal((uintptr_t)p[i] % 16, 0);
		}
		for (size_t i = 0; i < TESTING_COUNT(p); i++)
			kslab_cache_free(&cache, p[i]);
		assert_int_equal(kslab_cache_destroy(&cache), KSLAB_OK);
	}
	testing_end(&t);
}

/* ---- the answers of level 0 ------------------------------------------------------------------ */

static void refused(void *p, enum kslab_fault fault)
{
	uint64_t before = testing_digest(&t), after;

	kslab_heap_free(&t.heap, p);
	after = testing_digest(&t);
	assert_true(before == after || t.heap.tally.failed[KSLAB_BAD_FREE] != 0);
	testing_fault(&t, fault);
}

static void bad_pointers_are_refused_as_without_debugging(void **state)
{
	static int global;
	unsigned char *p, *q;

	(void)state;
	testing_begin(&t, &plain);
	online(1);
	for (size_t n = 0; n <= 3000; n += 1 + n / 2) {
		p = get(n);
		q = get(n);
		for (size_t i = 1; i < slot_bytes(p); i += 1 + i / 4)
			refused(p + i, KSLAB_FAULT_INTERIOR_POINTER);
		refused(page_of(p), KSLAB_FAULT_BAD_POINTER);
		refused(&global, KSLAB_FAULT_FOREIGN_POINTER);
		refused((void *)16, KSLAB_FAULT_FOREIGN_POINTER);
		put(p);
		refused(p, KSLAB_FAULT_DOUBLE_FREE);
		fake_cpu = 1;
		refused(p, KSLAB_FAULT_DOUBLE_FREE);
		kslab_heap_free(&t.heap, q);
		refused(q, KSLAB_FAULT_DOUBLE_FREE);
		fake_cpu = 0;
		refused(q, KSLAB_FAULT_DOUBLE_FREE);
		assert_int_equal(kslab_heap_usable_size(&t.heap, q), 0);
		testing_fault(&t, KSLAB_FAULT_DOUBLE_FREE);
		assert_null(kslab_heap_realloc(&t.heap, q, 5000));
		testing_fault(&t, KSLAB_FAULT_DOUBLE_FREE);
	}
	kslab_heap_quiesce(&t.heap);
	testing_end(&t);
}

/* ---- a refusal, exactly ---------------------------------------------------------------------- */

/*
 * Each a function of its own, that the report must name as the caller. n: a size that the object
 * could have.
 */
#define DOOR(name, call)                                                                           \
	static __attribute__((noinline)) const void *name(void *p, size_t n)                       \
	{                                                                                          \
		const void *answer = NULL;                                                         \
                                                                                                   \
		(void)n;                                                                           \
		call;                                                                              \
		__asm__ volatile("" : : "r"(answer) : "memory"); /* no tail call */                \
		return answer;                                                                     \
	}
DOOR(by_free, kslab_heap_free(&t.heap, p))
DOOR(by_free_sized, kslab_heap_free_sized(&t.heap, p, n))
DOOR(by_free_bulk, kslab_heap_free_bulk(&t.heap, 1, &p))
DOOR(by_realloc_larger, answer = kslab_heap_realloc(&t.heap, p, 3 * n + 100))
DOOR(by_realloc_same, answer = kslab_heap_realloc(&t.heap, p, n))
DOOR(by_realloc_zero, answer = kslab_heap_realloc(&t.heap, p, 0))
DOOR(by_usable_size, answer = (const void *)kslab_heap_usable_size(&t.heap, p))

static const void *(*const doors[])(void *p, size_t n) = {
	by_free,	 by_free_sized,	  by_free_bulk,	  by_realloc_larger,
	by_realloc_same, by_realloc_zero, by_usable_size,
};

#define DOOR_BYTES 500u

struct want {
	enum kslab_fault fault;
	void *pointer;
	const void *object;
	size_t object_bytes;
	const void *page;
	size_t page_bytes, count;
};

static struct want want_slot(enum kslab_fault fault, void *pointer, void *object, size_t count)
{
	const struct kslab_page *page = page_of(object);
	const struct want want = { fault,
				   pointer,
				   object,
				   page->sc->size,
				   (const void *)page->data,
				   (size_t)page->pages * PAGE,
				   count };

	return want;
}

static struct want want_large(enum kslab_fault fault, void *pointer, void *object, size_t bytes,
			      size_t count)
{
	const struct want want = { fault, pointer, object, bytes, object, bytes, count };

	return want;
}

/*
 * Through every door, by both CPUs: the whole report, and a heap that is bit for bit what it was.
 */
static void refused_everywhere(const struct want *want, size_t n)
{
	const struct kslab_report *last = &t.recorder.last;

	for (fake_cpu = 0; fake_cpu < 2; fake_cpu++) {
		for (size_t d = 0; d < TESTING_COUNT(doors); d++) {
			struct heap_image image;
			const void *answer;

			heap_image_take(&image, &t.heap);
			answer = doors[d](want->pointer, n);
			assert_true(heap_image_is_unchanged(&image));
			assert_null(answer);
			assert_int_equal(t.recorder.count, ++t.faults);
			assert_string_equal(kslab_fault_name(last->fault),
					    kslab_fault_name(want->fault));
			assert_ptr_equal(last->pointer, want->pointer);
			assert_ptr_equal(last->object, want->object);
			assert_int_equal(last->object_bytes, want->object_bytes);
			assert_ptr_equal(last->page, want->page);
			assert_int_equal(last->page_bytes, want->page_bytes);
			assert_int_equal(last->count, want->count);
			assert_int_equal(last->cpu, fake_cpu);
			assert_true((uintptr_t)last->caller - (uintptr_t)doors[d] < DOOR_BYTES);
			assert_true(last->what != NULL && last->what[0] != '\0');
			assert_int_equal(kslab_heap_last_error(&t.heap), KSLAB_BAD_FREE);
		}
	}
	fake_cpu = 0;
}

static void refusals_are_exact_and_change_nothing(void **state)
{
	static const struct kslab_config held = {
		.max_page_bytes = PAGE
	}; /* level 2: freed ones wait in the ring */
	static const struct kslab_config *const configs[] = { &plain, &held };
	static const size_t sizes[] = { 1, 7, 16, 100, 500, 1500 };

	(void)state;
	for (size_t c = 0; c < TESTING_COUNT(configs); c++) {
		testing_begin(&t, configs[c]);
		online(1);
		for (size_t s = 0; s < TESTING_COUNT(sizes); s++) {
			size_t n = sizes[s];
			unsigned char *keep = get(n), *p = get(n);
			struct want want = want_slot(KSLAB_FAULT_INTERIOR_POINTER, p + 1, p, 0);

			refused_everywhere(&want, n);
			p[n] ^= 1;
			want = want_slot(KSLAB_FAULT_REDZONE, p, p, n);
			refused_everywhere(&want, n);
			p[n] ^= 1;
			want = (struct want){
				KSLAB_FAULT_FOREIGN_POINTER, &want, NULL, 0, NULL, 0, 0
			};
			refused_everywhere(&want, n);
			kslab_heap_free(&t.heap, p);
			want = want_slot(KSLAB_FAULT_DOUBLE_FREE, p, p, 0);
			refused_everywhere(&want, n);
			assert_int_equal(kslab_heap_usable_size(&t.heap, keep), n);
			put(keep);
		}
		testing_end(&t);
	}
}

static void refusals_of_large_blocks_are_exact_and_change_nothing(void **state)
{
	const size_t n = 5 * PAGE - 10;
	struct want want;
	unsigned char *p;

	(void)state;
	testing_begin(&t, &plain);
	online(1);
	p = get(n);
	want = want_large(KSLAB_FAULT_INTERIOR_POINTER, p + PAGE, p, 5 * PAGE, 0);
	refused_everywhere(&want, n);
	p[n + 3] ^= 1;
	want = want_large(KSLAB_FAULT_REDZONE, p, p, 5 * PAGE, n + 3);
	refused_everywhere(&want, n);
	p[n + 3] ^= 1;
	kslab_heap_free(&t.heap, p);
	want = want_large(KSLAB_FAULT_DOUBLE_FREE, p, p, 5 * PAGE, 0);
	refused_everywhere(&want, n);
	testing_end(&t);
}

static __attribute__((noinline)) void *allocate_by(void)
{
	void *p = kslab_heap_malloc(&t.heap, 100);

	__asm__ volatile("" : : "r"(p) : "memory");
	return p;
}

/* Row 24: the report of the next issue, whole. */
static void a_write_after_free_names_slot_cpu_and_caller_of_the_next_issue(void **state)
{
	const struct kslab_report *last = &t.recorder.last;
	unsigned char *p, *q = NULL, *other[100];
	struct want want;
	size_t count = 0;

	(void)state;
	testing_begin(&t, &plain);
	p = get(100);
	want = want_slot(KSLAB_FAULT_USE_AFTER_FREE, p, p, 37);
	put(p);
	p[37] ^= 1;
	while (q != p) {
		q = allocate_by();
		assert_true(q != NULL && count < TESTING_COUNT(other));
		other[count++] = q;
	}
	assert_int_equal(t.recorder.count, ++t.faults);
	assert_int_equal(last->fault, KSLAB_FAULT_USE_AFTER_FREE);
	assert_ptr_equal(last->pointer, p);
	assert_ptr_equal(last->object, p);
	assert_int_equal(last->object_bytes, want.object_bytes);
	assert_ptr_equal(last->page, want.page);
	assert_int_equal(last->page_bytes, want.page_bytes);
	assert_int_equal(last->count, 37);
	assert_int_equal(last->cpu, 0);
	assert_true((uintptr_t)last->caller - (uintptr_t)allocate_by < DOOR_BYTES);
	while (count != 0)
		put(other[--count]);
	testing_end(&t);
}

static void remote_frees_are_verified_and_poisoned(void **state)
{
	unsigned char *p[200];

	(void)state;
	testing_begin(&t, &plain);
	online(1);
	for (unsigned i = 0; i < 200; i++) {
		p[i] = get(70);
		memset(p[i], (int)i, 70);
	}
	fake_cpu = 1;
	for (unsigned i = 0; i < 200; i++) {
		unsigned char was = p[i][70];

		p[i][70] = (unsigned char)~was;
		kslab_heap_free(&t.heap, p[i]);
		reported(KSLAB_FAULT_REDZONE, p[i], 70);
		p[i][70] = was;
		put(p[i]);
		assert_true(is_all(p[i], 70, KSLAB_DEBUG_FREE_BYTE));
	}
	p[50][69] = 0;
	fake_cpu = 0;
	again(p[50], 70);
	reported(KSLAB_FAULT_USE_AFTER_FREE, p[50], 69);
	put(p[50]);
	testing_end(&t);
}

/* ---- report hooks that use the heap ---------------------------------------------------------- */

static void allocate_in_report(struct recorder *recorder, const struct kslab_report *report)
{
	void *p = kslab_heap_malloc(&t.heap, 100);

	(void)recorder;
	(void)report;
	assert_non_null(p);
	kslab_heap_free(&t.heap, p);
	assert_int_equal(fake_pins, 0);
	assert_int_equal(fake_masked, 0);
	assert_int_equal(t.heap.lock.next, t.heap.lock.serving);
}

static void a_report_hook_may_use_the_heap(void **state)
{
	unsigned char *p;

	(void)state;
	testing_begin(&t, &plain);
	t.recorder.on_report = allocate_in_report;
	p = get(100);
	p[100] ^= 1;
	kslab_heap_free(&t.heap, p);
	reported(KSLAB_FAULT_REDZONE, p, 100);
	p[100] ^= 1;
	put(p);
	p[5] = 1;
	assert_ptr_equal(again(p, 100), p);
	assert_true(t.recorder.count == 2);
	t.faults = t.recorder.count;
	put(p);
	testing_end(&t);
}

/* ---- work ------------------------------------------------------------------------------------ */

static void random_work_is_checked_at_every_step(void **state)
{
	static struct {
		unsigned char *p;
		size_t n;
	} object[300];
	struct testing_random random = testing_seed("work", 11);
	const struct kslab_config config = { .retain_bytes = 16 * PAGE };

	(void)state;
	testing_begin(&t, &config);
	online(1);
	for (unsigned i = 0; i < 20000; i++) {
		size_t k = testing_random_below(&random, TESTING_COUNT(object));
		size_t n = testing_random_below(&random, i % 20 == 0 ? 20000 : 400);

		fake_cpu = i % 7 == 0;
		if (object[k].p != NULL) {
			assert_true(is_all(object[k].p, object[k].n, (unsigned char)k));
			if (i % 5 == 0 && n != 0) {
				object[k].p = kslab_heap_realloc(&t.heap, object[k].p, n);
			} else {
				kslab_heap_free(&t.heap, object[k].p);
				object[k].p = NULL;
			}
		} else {
			object[k].p = i % 3 == 0 ? kslab_heap_zalloc(&t.heap, n) : get(n);
		}
		object[k].n = n;
		if (object[k].p != NULL)
			memset(object[k].p, (int)(unsigned char)k, n);
		if (i % 64 == 0)
			testing_step(&t);
	}
	for (size_t k = 0; k < TESTING_COUNT(object); k++)
		kslab_heap_free(&t.heap, object[k].p);
	memset(object, 0, sizeof(object));
	for (fake_cpu = 0; fake_cpu < 2; fake_cpu++)
		(void)kslab_heap_quiesce(&t.heap);
	fake_cpu = 0;
	testing_end(&t);
}

/* ---- row 23: metadata ------------------------------------------------------------------------ */

/*
 * Five pages of 1024-byte requests, the middle one damaged by `damage`; the heap goes on without
 * it.
 */
static void fenced_after(void (*damage)(struct kslab_page *page, unsigned kind), unsigned kind,
			 unsigned pages_state)
{
	enum { COUNT = 40 };
	unsigned char *p[COUNT];
	struct kslab_page *bad;
	size_t slots;

	testing_begin(&t, &plain);
	for (unsigned i = 0; i < COUNT; i++)
		p[i] = get(1000);
	slots = page_of(p[0])->slots;
	assert_true(slots >= 3 && slots * 6 < COUNT + 1);
	if (pages_state != KSLAB_PAGE_FULL) /* one free slot in each of the first pages */
		for (size_t page = 0; page < 6; page++) {
			kslab_heap_free(&t.heap, p[page * slots]);
			p[page * slots] = NULL;
		}
	bad = page_of(p[2 * slots + 1]);
	assert_int_equal(bad->state, pages_state);
	damage(bad, kind);
	for (unsigned i = 0; i < COUNT; i++) {
		kslab_heap_free(&t.heap, p[i]);
	}
	for (unsigned i = 0; i < COUNT; i++)
		p[i] = get(1000);
	for (unsigned i = 0; i < COUNT; i++)
		assert_ptr_not_equal(page_of(p[i]), bad);
	for (unsigned i = 0; i < COUNT; i++)
		kslab_heap_free(&t.heap, p[i]);
	kslab_heap_reclaim(&t.heap, SIZE_MAX);
	assert_int_equal(bad->state, KSLAB_PAGE_FENCED);
	assert_true(t.recorder.count >= 1 && t.recorder.count <= slots + 2);
	/* Free bits that were set are believed until the page is looked at: double frees. */
	assert_int_equal(t.recorder.kinds[KSLAB_FAULT_CORRUPT_METADATA] +
				 (kind == 16 ? t.recorder.kinds[KSLAB_FAULT_DOUBLE_FREE] : 0),
			 t.recorder.count);
	assert_true(t.recorder.kinds[KSLAB_FAULT_CORRUPT_METADATA] >= 1);
	t.faults = t.recorder.count;
	testing_step(&t);
	assert_int_equal(t.heap.fenced_pages, 1);
	testing_end(&t); /* its memory comes back, too */
}

static void damage_field(struct kslab_page *page, unsigned kind)
{
	static struct kslab_page elsewhere;

	switch (kind) {
	case 0:
		page->next = (struct kslab_page *)0x41414141;
		break;
	case 1:
		page->prev = (struct kslab_page *)~(uintptr_t)0;
		break;
	case 2:
		page->next = page->prev = NULL;
		break;
	case 3:
		page->next = page->prev = page;
		break;
	case 4:
		page->next = page->prev = &elsewhere;
		break;
	case 5:
		page->inverse ^= 0x100;
		break;
	case 6:
		page->rotate ^= 1;
		break;
	case 7:
		page->slots = 0;
		break;
	case 8:
		page->slots += 1000;
		break;
	case 9:
		page->pages ^= 0x30;
		break;
	case 10:
		page->data += PAGE;
		break;
	case 11:
		page->sc = NULL;
		break;
	case 12:
		page->sc = (struct kslab_sc *)0x1000;
		break;
	case 13:
		page->state = KSLAB_PAGE_EMPTY;
		break;
	case 14:
		page->state = 99;
		break;
	case 15:
		page->bits[0].freed = 0; /* the tail bits, too */
		break;
	case 16:
		page->bits[0].freed = ~(kslab_word)0;
		break;
	case 17:
		page->bits[0].avail = page->bits[0].freed;
		break;
	case 18:
		page->owner = 0;
		break;
	case 19:
		page->owner ^= 0x123456000;
		break;
	default: /* all of it */
		memset(page,
		       (int)(kind == 20	  ? 0
			     : kind == 21 ? 0xff
					  : kind),
		       sizeof(*page) + sizeof(page->bits[0]));
		break;
	}
}

static void damaged_descriptors_are_fenced_off(void **state)
{
	(void)state;
	for (unsigned kind = 0; kind <= 24; kind++) {
		print_message("# kind %u\n", kind);
		fenced_after(damage_field, kind, KSLAB_PAGE_PARTIAL);
		setup(NULL);
		/*
		 * A full page that is not looked at until it gets a free slot: links are needed
		 * only then.
		 */
		fenced_after(damage_field, kind, KSLAB_PAGE_FULL);
		setup(NULL);
	}
}

static void broken_links_lose_no_other_page(void **state)
{
	enum { COUNT = 60 };
	unsigned char *p[COUNT];
	struct kslab_page *first, *second;
	struct kslab_stats stats;
	size_t slots;

	(void)state;
	testing_begin(&t, &plain);
	for (unsigned i = 0; i < COUNT; i++)
		p[i] = get(1000);
	slots = page_of(p[0])->slots;
	for (size_t i = 0; i < COUNT; i += slots) {
		kslab_heap_free(&t.heap, p[i]);
		p[i] = NULL;
	}
	first = page_of(p[1]);
	second = page_of(p[slots + 1]);
	assert_ptr_equal(first->next, second);
	first->next = (struct kslab_page *)0x5555555555; /* the head of the partial list */
	for (unsigned i = 0; i < COUNT; i++)
		if (p[i] != NULL && page_of(p[i]) != first)
			kslab_heap_free(&t.heap, p[i]);
	assert_int_equal(t.recorder.count, 1);
	assert_int_equal(t.recorder.last.fault, KSLAB_FAULT_CORRUPT_METADATA);
	assert_ptr_equal(t.recorder.last.page, (void *)((uintptr_t)p[1] & ~(uintptr_t)(PAGE - 1)));
	assert_int_equal(t.recorder.last.page_bytes, PAGE);
	t.faults = 1;
	kslab_heap_reclaim(&t.heap, SIZE_MAX);
	kslab_heap_stats(&t.heap, &stats);
	assert_int_equal(stats.live_objects, 0); /* its own are behind the fence with it */
	assert_int_equal(stats.pages_in_use, stats.metadata_pages + 1);
	testing_step(&t);
	kslab_heap_free(&t.heap, p[1]);
	testing_fault(&t, KSLAB_FAULT_CORRUPT_METADATA);
	assert_int_equal(kslab_heap_usable_size(&t.heap, p[1]), 0);
	testing_fault(&t, KSLAB_FAULT_CORRUPT_METADATA);
	testing_end(&t);
}

/* A CPU that goes round in one page comes by nowhere else. */
static void a_cpu_that_uses_one_page_serves_requests(void **state)
{
	enum { COUNT = 200 };
	static void *p[COUNT];
	size_t pages;

	(void)state;
	testing_begin(&t, &plain);
	for (unsigned i = 0; i < COUNT; i++)
		p[i] = get(1000);
	for (unsigned i = 0; i < COUNT; i++)
		kslab_heap_free(&t.heap, p[i]);
	fake_cpu = 1;
	assert_int_equal(kslab_heap_cpu_online(&t.heap, 1), KSLAB_OK);
	(void)kslab_heap_reclaim(&t.heap, SIZE_MAX);
	fake_cpu = 0;
	pages = t.source.pages_out;
	for (unsigned i = 0; i < 10000; i++)
		kslab_heap_free(&t.heap, get(100));
	assert_true(t.source.pages_out + 40 < pages);
	testing_step(&t);
	testing_end(&t);
}

#define TEST(name) cmocka_unit_test_setup_teardown(name, setup, teardown)
#define DEBUG_TESTS                                                                                \
	TEST(every_size_is_usable_exactly_and_aligned_as_without_debugging),                       \
		TEST(single_frames_serve_every_size_up_to_a_page),                                 \
		TEST(sized_frees_are_judged_as_without_debugging),                                 \
		TEST(overflow_by_one_is_found_at_free_with_its_offset),                            \
		TEST(overflow_by_eight_is_found_at_free),                                          \
		TEST(every_byte_of_the_redzone_is_watched),                                        \
		TEST(every_other_value_of_the_last_bytes_is_found),                                \
		TEST(overflow_into_a_free_neighbour_is_found_there),                               \
		TEST(a_write_after_free_is_found_at_the_next_issue_at_every_offset),               \
		TEST(a_write_after_free_is_found_when_the_page_goes_back),                         \
		TEST(memory_holds_what_the_options_say), TEST(realloc_moves_the_redzone),          \
		TEST(large_blocks_have_redzones_and_poison),                                       \
		TEST(caches_have_redzones_and_keep_what_the_constructor_made),                     \
		TEST(a_cache_of_the_largest_size_works_without_a_redzone),                         \
		TEST(single_frames_serve_caches_of_every_size_up_to_a_page),                       \
		TEST(caches_align_what_is_a_multiple_of_16),                                       \
		TEST(bad_pointers_are_refused_as_without_debugging),                               \
		TEST(refusals_are_exact_and_change_nothing),                                       \
		TEST(refusals_of_large_blocks_are_exact_and_change_nothing),                       \
		TEST(a_write_after_free_names_slot_cpu_and_caller_of_the_next_issue),              \
		TEST(remote_frees_are_verified_and_poisoned),                                      \
		TEST(a_report_hook_may_use_the_heap), TEST(random_work_is_checked_at_every_step),  \
		TEST(damaged_descriptors_are_fenced_off), TEST(broken_links_lose_no_other_page),   \
		TEST(a_cpu_that_uses_one_page_serves_requests)

#endif
