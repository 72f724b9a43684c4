/* SPDX-License-Identifier: MIT
 * test_seed.c - owns one regression test for each defect of the seed (slabmalloc, as DragonOS took
 * it over). Each would fail on the seed's behaviour; the line above it says how.
 */
#include "testing.h"

#include <pthread.h>

#include <kslab/zone_allocator.h>

#include "heap.h"

#define PAGE 4096u

static struct testing t;
static const struct kslab_config frames = { .max_page_bytes = PAGE };
static struct kslab_sc_allocator sc;
static struct kslab_zone_allocator zone;
static unsigned char *pages; /* aligned to 4 MiB, so that 2 MiB pages can be had from it */
#define PAGES_BYTES ((size_t)4 << 20)

static int map_pages(void **state)
{
	unsigned char *raw = mmap(NULL, 2 * PAGES_BYTES, PROT_READ | PROT_WRITE,
				  MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);

	(void)state;
	if (raw == MAP_FAILED)
		return -1;
	pages = raw + (PAGES_BYTES - (uintptr_t)raw % PAGES_BYTES) % PAGES_BYTES;
	return 0;
}

/* An SCAllocator on so many 4 KiB pages. Return: slots of all of them. */
static size_t make_sc(size_t size, size_t count)
{
	assert_int_equal(kslab_sc_init(&sc, size, PAGE), KSLAB_ALLOCATION_OK);
	for (size_t i = 0; i < count; i++)
		assert_int_equal(kslab_sc_refill(&sc, pages + i * PAGE), KSLAB_ALLOCATION_OK);
	return kslab_sc_slots(&sc) * count;
}

static void *take(size_t size, size_t align)
{
	const struct kslab_layout layout = { size, align };
	void *object;

	kslab_sc_allocate(&sc, layout, &object);
	assert_true(kslab_sc_check(&sc));
	return object;
}

static enum kslab_allocation_error give(void *object, size_t size)
{
	const struct kslab_layout layout = { size, 8 };
	enum kslab_allocation_error error = kslab_sc_deallocate(&sc, object, layout);

	assert_true(kslab_sc_check(&sc));
	return error;
}

static void ignore(void *ctx, void *page)
{
	(void)ctx;
	(void)page;
}

/*
 * Seed: OutOfMemory with 64 empty pages, until 64 further allocations have succeeded, which they
 * can't.
 */
static void test_D1_freed_pages_are_found_by_the_very_next_allocation(void **state)
{
	static void *objects[64 * 2];

	(void)state;
	for (size_t count = 1; count <= 64; count *= 4) {
		size_t slots = make_sc(1500, count);

		for (unsigned round = 0; round < 3; round++) {
			for (size_t i = 0; i < slots; i++)
				assert_non_null(objects[i] = take(1500, 4));
			assert_null(take(1500, 4));
			for (size_t i = 0; i < slots; i++)
				assert_int_equal(give(objects[i], 1500), KSLAB_ALLOCATION_OK);
		}
	}
}

/* Seed: 2 of 63 aligned slots are found, the rest of the page is out of reach. */
static void test_D2_every_slot_of_a_page_serves_the_alignment(void **state)
{
	const struct kslab_layout layout = { 32, 64 };
	size_t taken = 0;
	void *object;

	(void)state;
	assert_int_equal(kslab_zone_init(&zone, PAGE, 0), KSLAB_ALLOCATION_OK);
	assert_int_equal(kslab_zone_refill(&zone, layout, pages), KSLAB_ALLOCATION_OK);
	while (kslab_zone_allocate(&zone, layout, &object) == KSLAB_ALLOCATION_OK) {
		assert_int_equal((uintptr_t)object % 64, 0);
		taken++;
	}
	assert_true(taken >= 61); /* 64 less the descriptor at the end of the page */
	assert_int_equal(kslab_zone_usage(&zone).used_slots, kslab_zone_usage(&zone).slots);
	assert_true(kslab_zone_check(&zone));
}

/* Seed: accepted, never succeeds, and each try strands one more empty page on the partial list. */
static void test_D3_alignment_above_the_page_is_refused_or_served_never_half_accepted(void **state)
{
	const struct kslab_layout layout = { 64, 2 * PAGE }, fine = { 64, 64 };
	void *object = &object;

	(void)state;
	assert_int_equal(kslab_zone_init(&zone, PAGE, 0), KSLAB_ALLOCATION_OK);
	assert_int_equal(kslab_zone_refill(&zone, fine, pages), KSLAB_ALLOCATION_OK);
	for (unsigned i = 0; i < 3; i++) {
		assert_int_equal(kslab_zone_allocate(&zone, layout, &object), KSLAB_INVALID_LAYOUT);
		assert_null(object);
		assert_int_equal(kslab_zone_usage(&zone).empty_pages, 1);
	}
	testing_begin(&t, &frames);
	object = kslab_heap_aligned_alloc(&t.heap, 4 * PAGE, 64);
	assert_non_null(object);
	assert_int_equal((uintptr_t)object % (4 * PAGE), 0);
	kslab_heap_free(&t.heap, object);
	testing_end(&t);
}

/* Seed: 512 slots at most, 12.5 % of a 2 MiB page with 512-byte objects. */
static void test_D4_a_2_mib_page_is_used_to_its_end(void **state)
{
	const size_t page = (size_t)2 << 20;

	(void)state;
	for (size_t size = 512; size <= 2048; size *= 2) {
		size_t taken = 0;

		assert_int_equal(kslab_sc_init(&sc, size, page), KSLAB_ALLOCATION_OK);
		assert_int_equal(kslab_sc_refill(&sc, pages), KSLAB_ALLOCATION_OK);
		for (void *object;; taken++) {
			const struct kslab_layout layout = { size, size };

			if (kslab_sc_allocate(&sc, layout, &object) != KSLAB_ALLOCATION_OK)
				break;
		}
		assert_true(kslab_sc_check(&sc));
		assert_true(taken * size >= page / 100 * 99);
	}
}

/*
 * Seed: one object of 2048 bytes fits a 4 KiB page, three of 1024; 2048 takes and returns a page
 * per call.
 */
static void test_D5_two_of_2048_and_four_of_1024_share_a_frame(void **state)
{
	(void)state;
	for (size_t n = 1024; n <= 2048; n *= 2) {
		void *objects[4];
		size_t calls;

		testing_begin(&t, &frames);
		for (size_t i = 0; i < PAGE / n; i++) {
			objects[i] = kslab_heap_malloc(&t.heap, n);
			assert_int_equal((uintptr_t)objects[i] / PAGE,
					 (uintptr_t)objects[0] / PAGE);
		}
		kslab_heap_free(&t.heap, objects[0]);
		calls = t.source.alloc_calls + t.source.free_calls;
		for (unsigned i = 0; i < 100; i++) {
			objects[0] = kslab_heap_malloc(&t.heap, n);
			kslab_heap_free(&t.heap, objects[0]);
			testing_step(&t);
		}
		assert_int_equal(t.source.alloc_calls + t.source.free_calls, calls);
		for (size_t i = 1; i < PAGE / n; i++)
			kslab_heap_free(&t.heap, objects[i]);
		testing_end(&t);
	}
}

/* Seed: the bytes behind the last object are the next pointer of a page list. */
static void test_D6_overflow_of_any_object_does_not_reach_metadata(void **state)
{
	static const size_t sizes[] = { 8, 16, 24, 48, 100, 512, 1000, 2048, 4096 };

	(void)state;
	for (size_t s = 0; s < TESTING_COUNT(sizes); s++) {
		unsigned char *object, *page;

		testing_begin(&t, &frames);
		object = kslab_heap_malloc(&t.heap, sizes[s]);
		page = object - (uintptr_t)object % PAGE;
		memset(page, 0xff, PAGE); /* from before the first object to behind the last one */
		testing_step(&t);
		kslab_heap_free(&t.heap, object);
		testing_step(&t);
		memset(page, 0xff, PAGE); /* written after free, too */
		kslab_heap_free(&t.heap, kslab_heap_malloc(&t.heap, sizes[s]));
		testing_end(&t);
	}
}

/*
 * Seed: every bitfield lies in its page, all at one offset: each cold free costs a line and a TLB
 * entry.
 */
static void test_D7_descriptors_lie_densely_and_outside_the_object_pages(void **state)
{
	enum { COUNT = 500 };
	static void *objects[COUNT];
	uintptr_t lowest = UINTPTR_MAX, highest = 0;

	(void)state;
	testing_begin(&t, &frames);
	for (unsigned i = 0; i < COUNT; i++) {
		const struct kslab_page *page;

		objects[i] = kslab_heap_malloc(&t.heap, 4096);
		page = kslab_page_map_find(&t.heap.map, (uintptr_t)objects[i]);
		assert_true((uintptr_t)page / PAGE != (uintptr_t)objects[i] / PAGE);
		lowest = (uintptr_t)page < lowest ? (uintptr_t)page : lowest;
		highest = (uintptr_t)page > highest ? (uintptr_t)page : highest;
	}
	/* 500 of them take few pages of memory: these are the metadata pages. */
	assert_true(t.heap.meta.pages * PAGE <= COUNT * 256 + 4 * PAGE);
	assert_true(highest > lowest);
	for (unsigned i = 0; i < COUNT; i++)
		kslab_heap_free(&t.heap, objects[i]);
	testing_end(&t);
}

/* Seed: rebalance walks all pages inside one unlucky call of each 64. */
static void test_D8_an_allocation_touches_no_pages_but_its_own(void **state)
{
	enum { COUNT = 256 };
	size_t slots = make_sc(500, COUNT), taken = 0;
	void *object;

	(void)state;
	for (; taken < slots; taken++)
		assert_int_equal(kslab_sc_allocate(&sc, (struct kslab_layout){ 500, 4 }, &object),
				 KSLAB_ALLOCATION_OK);
	/*
	 * All pages but the current one (refilled first, used last) and its neighbours become
	 * untouchable.
	 */
	assert_true((unsigned char *)object >= pages && (unsigned char *)object < pages + PAGE);
	assert_int_equal(mprotect(pages + 4 * PAGE, (COUNT - 8) * PAGE, PROT_NONE), 0);
	for (unsigned i = 0; i < 1000; i++) {
		const struct kslab_layout layout = { 500, 4 };

		assert_int_equal(kslab_sc_deallocate(&sc, object, layout), KSLAB_ALLOCATION_OK);
		assert_int_equal(kslab_sc_allocate(&sc, layout, &object), KSLAB_ALLOCATION_OK);
	}
	assert_int_equal(mprotect(pages + 4 * PAGE, (COUNT - 8) * PAGE, PROT_READ | PROT_WRITE), 0);
	assert_true(kslab_sc_check(&sc));
}

/* Seed: exactly 32 KiB goes to the 64 KiB class. */
static void test_D9_powers_of_two_get_exactly_what_they_ask_for(void **state)
{
	const struct kslab_config config = { 0 };

	(void)state;
	testing_begin(&t, &config);
	for (size_t n = 8; n <= 1 << 20; n *= 2) {
		void *object = kslab_heap_malloc(&t.heap, n);

		assert_int_equal(kslab_heap_usable_size(&t.heap, object), n);
		kslab_heap_free(&t.heap, object);
	}
	testing_end(&t);
}

/* Seed: powers of two only, 513 bytes take 1024. */
static void test_D10_internal_waste_is_a_fifth_at_most(void **state)
{
	(void)state;
	/*
	 * Above a page, objects are page aligned unless packing is asked for; and in object pages
	 * of 64 KiB four of 14336 bytes cost as much as four of 16384.
	 */
	for (unsigned packs = 0; packs < 2; packs++) {
		const struct kslab_config config = { .packs = packs, .max_page_bytes = 262144 };

		testing_begin(&t, &config);
		for (size_t n = 129; n <= (packs ? KSLAB_CLASS_MAX_BYTES : PAGE); n++) {
			size_t slot = kslab_heap_good_size(&t.heap, n);

			if ((slot - n) * 5 > slot)
				fail_msg("%zu bytes take %zu", n, slot);
		}
		testing_end(&t);
	}
}

/*
 * Seed: the first object of an empty page is cut by the caller's layout; right only while that is
 * slot 0.
 */
static void test_D11_objects_of_an_empty_page_are_cut_by_the_class(void **state)
{
	(void)state;
	for (size_t asked = 1; asked <= 104; asked += 7) {
		size_t slots = make_sc(104, 1);

		for (size_t i = 0; i < slots; i++) {
			unsigned char *object = take(asked, 1);

			assert_int_equal((size_t)(object - pages) % 104, 0);
			memset(object, 0xff, 104);
		}
		assert_null(take(asked, 1));
		assert_int_equal(kslab_sc_usage(&sc).used_slots, slots);
	}
}

/* Seed: a page whose only slot is taken lies on the partial list and is scanned for ever. */
static void test_D12_a_page_with_its_only_slot_taken_is_full(void **state)
{
	void *object;

	(void)state;
	assert_int_equal(make_sc(3000, 3), 3);
	for (unsigned i = 0; i < 3; i++) {
		assert_non_null(object = take(3000, 8));
		assert_null(sc.core.partial.head);
	}
	assert_null(take(3000, 8));
	assert_null(sc.core.partial.head);
	assert_non_null(sc.core.full.head);
	assert_int_equal(give(object, 3000), KSLAB_ALLOCATION_OK);
	assert_ptr_equal(take(3000, 8), object);
}

/* Seed: 100 bytes freed as 60 corrupt another page's bitfield, silently. */
static void test_D13_a_wrong_size_at_free_is_refused(void **state)
{
	const struct kslab_layout as_allocated = { 100, 8 };
	void *object;

	(void)state;
	assert_int_equal(kslab_zone_init(&zone, PAGE, 0), KSLAB_ALLOCATION_OK);
	assert_int_equal(kslab_zone_refill(&zone, as_allocated, pages), KSLAB_ALLOCATION_OK);
	assert_int_equal(kslab_zone_allocate(&zone, as_allocated, &object), KSLAB_ALLOCATION_OK);
	testing_begin(&t, &frames);
	for (size_t wrong = 0; wrong <= 4096; wrong++) {
		const struct kslab_layout layout = { wrong, 8 };

		if (wrong > 96 && wrong <= 104)
			continue;
		assert_int_not_equal(kslab_zone_deallocate(&zone, object, layout),
				     KSLAB_ALLOCATION_OK);
	}
	assert_true(kslab_zone_check(&zone));
	assert_int_equal(kslab_zone_deallocate(&zone, object, as_allocated), KSLAB_ALLOCATION_OK);
	object = kslab_heap_malloc(&t.heap, 100);
	for (size_t wrong = 0; wrong <= 5000; wrong++) {
		if (kslab_heap_good_size(&t.heap, wrong) == kslab_heap_good_size(&t.heap, 100))
			continue;
		kslab_heap_free_sized(&t.heap, object, wrong);
		testing_fault(&t, KSLAB_FAULT_WRONG_SIZE);
	}
	kslab_heap_free_sized(&t.heap, object, 100);
	testing_end(&t);
}

static pthread_barrier_t barrier;
static void *volatile contested;
static unsigned accepted[2];

static void *free_contested(void *arg)
{
	unsigned *count = arg;

	for (unsigned i = 0; i < 2000; i++) {
		pthread_barrier_wait(&barrier);
		*count += kslab_sc_deallocate(&sc, contested, (struct kslab_layout){ 100, 8 }) ==
			  KSLAB_ALLOCATION_OK;
		pthread_barrier_wait(&barrier);
	}
	return NULL;
}

/*
 * Seed: is_allocated, then clear: two CPUs both find the bit set, and the double free goes
 * undetected.
 */
static void test_D14_of_two_frees_at_once_exactly_one_is_accepted(void **state)
{
	pthread_t thread;
	unsigned before = 0;
	void *object;

	(void)state;
	make_sc(100, 1);
	accepted[0] = accepted[1] = 0;
	assert_int_equal(pthread_barrier_init(&barrier, NULL, 2), 0);
	assert_int_equal(pthread_create(&thread, NULL, free_contested, &accepted[1]), 0);
	for (unsigned i = 0; i < 2000; i++) {
		object = take(100, 8);
		assert_non_null(object);
		contested = object;
		pthread_barrier_wait(&barrier);
		accepted[0] += give(object, 100) == KSLAB_ALLOCATION_OK;
		pthread_barrier_wait(&barrier);
		assert_int_equal(accepted[0] + accepted[1], before + 1);
		before = accepted[0] + accepted[1];
		assert_int_equal(kslab_sc_usage(&sc).used_slots, 0);
	}
	pthread_join(thread, NULL);
	pthread_barrier_destroy(&barrier);
}

/* Seed: a late free reads the header of a page that has gone back. */
static void test_D15_a_late_free_into_a_page_that_went_back_touches_nothing(void **state)
{
	const struct kslab_config config = { .max_page_bytes = PAGE,
					     .retain_bytes = KSLAB_RETAIN_NONE };
	void *object;

	(void)state;
	/* with guard: a touch of the page is a fault of the processor */
	testing_begin(&t, &config);
	object = kslab_heap_malloc(&t.heap, 100);
	kslab_heap_free(&t.heap, object);
	assert_false(fake_source_is_out(&t.source, object));
	kslab_heap_free(&t.heap, object);
	testing_fault(&t, KSLAB_FAULT_DOUBLE_FREE);
	assert_int_equal(kslab_heap_usable_size(&t.heap, object), 0);
	testing_fault(&t, KSLAB_FAULT_DOUBLE_FREE);
	testing_end(&t);
}

/* Seed: panics, expects, unimplemented!(). */
static void test_D16_misuse_and_exhaustion_are_answers(void **state)
{
	char elsewhere[64];
	void *object;

	(void)state;
	make_sc(100, 0);
	assert_null(take(100, 8));
	assert_null(take(1000, 8));
	assert_null(take(8, 3));
	assert_int_equal(give(pages, 100), KSLAB_INVALID_POINTER);
	testing_begin(&t, &frames);
	fake_source_fail_from(&t.source, 1);
	assert_null(kslab_heap_malloc(&t.heap, 100));
	assert_int_equal(kslab_heap_last_error(&t.heap), KSLAB_NO_PAGES);
	assert_null(kslab_heap_malloc(&t.heap, SIZE_MAX));
	assert_int_equal(kslab_heap_last_error(&t.heap), KSLAB_TOO_LARGE);
	kslab_heap_free(&t.heap, elsewhere);
	testing_fault(&t, KSLAB_FAULT_FOREIGN_POINTER);
	fake_source_fail_from(&t.source, 0);
	object = kslab_heap_malloc(&t.heap, 100);
	kslab_heap_free(&t.heap, object);
	kslab_heap_free(&t.heap, object);
	testing_fault(&t, KSLAB_FAULT_DOUBLE_FREE);
	testing_end(&t);
}

static unsigned asked_unlocked;

static void look_at_the_lock(struct fake_source *source, size_t count)
{
	struct testing *from = source->user;

	(void)count;
	assert_int_equal(from->heap.lock.next, from->heap.lock.serving);
	assert_true(kslab_heap_check(&from->heap, NULL)); /* and everything is in order */
	asked_unlocked++;
}

/* Seed (DragonOS): the buddy allocator is called under the slab lock with interrupts off. */
static void test_D17_the_page_source_is_called_with_no_lock_held(void **state)
{
	static void *objects[200];

	(void)state;
	asked_unlocked = 0;
	testing_begin(&t, &frames);
	t.source.user = &t;
	t.source.on_alloc = t.source.on_free = look_at_the_lock;
	for (unsigned i = 0; i < 200; i++)
		objects[i] = kslab_heap_malloc(&t.heap, 10 + 40 * i);
	for (unsigned i = 0; i < 200; i++)
		kslab_heap_free(&t.heap, objects[i]);
	kslab_heap_reclaim(&t.heap, SIZE_MAX);
	assert_true(asked_unlocked > 100);
	t.source.on_free = NULL;
	testing_end(&t);
}

/* Seed (DragonOS): the counter is not reduced when pages go back: 12 MB reported, 36 KB true. */
static void test_D18_pages_in_use_are_those_that_are_in_use(void **state)
{
	static void *objects[1000];
	struct kslab_stats stats;

	(void)state;
	testing_begin(&t, &frames);
	for (unsigned round = 0; round < 3; round++) {
		for (unsigned i = 0; i < 1000; i++)
			objects[i] = kslab_heap_malloc(&t.heap, 1000 + 5 * i);
		kslab_heap_stats(&t.heap, &stats);
		assert_int_equal(stats.pages_in_use, t.source.pages_out);
		for (unsigned i = 0; i < 1000; i++)
			kslab_heap_free(&t.heap, objects[i]);
		kslab_heap_reclaim(&t.heap, SIZE_MAX);
		kslab_heap_stats(&t.heap, &stats);
		assert_int_equal(stats.pages_in_use, t.source.pages_out);
		assert_int_equal(stats.pages_in_use, stats.metadata_pages);
		assert_true(stats.pages_peak > 500);
	}
	testing_end(&t);
}

/* Seed (DragonOS): above 2 KiB the alignment is ignored, and every allocation is cleared. */
static void test_D19_large_alignments_hold_and_nothing_is_cleared_unasked(void **state)
{
	const struct kslab_config config = { 0 };

	(void)state;
	testing_begin(&t, &config);
	t.source.unaligned = true; /* a source that only aligns to the page */
	for (size_t align = 4096; align <= 65536; align *= 2) {
		for (size_t n = 2049; n < 40000; n += 5000) {
			unsigned char *object = kslab_heap_aligned_alloc(&t.heap, align, n);

			assert_non_null(object);
			assert_int_equal((uintptr_t)object % align, 0);
			/* a run's own record may have lain in its first bytes */
			for (size_t i = sizeof(struct kslab_chunk); i < n; i++)
				assert_int_equal(object[i], FAKE_JUNK_ALLOC);
			testing_step(&t);
			kslab_heap_free(&t.heap, object);
			kslab_heap_reclaim(&t.heap, SIZE_MAX);
		}
	}
	testing_end(&t);
}

/*
 * Seed: AtomicU64 and a constant of 80 bytes: no 32-bit machine. This program is built for 32 bit
 * as well.
 */
static void test_D20_words_and_descriptors_are_those_of_the_machine(void **state)
{
	(void)state;
	assert_int_equal(sizeof(kslab_word), sizeof(void *));
	assert_int_equal(KSLAB_WORD_BITS, 8 * sizeof(void *));
	assert_int_equal(sizeof(struct kslab_page), KSLAB_PAGE_HEADER_BYTES);
	/* A page of 4 KiB loses no more than its descriptor: less on a smaller machine. */
	make_sc(64, 0);
	assert_int_equal(kslab_sc_slots(&sc), (PAGE - KSLAB_PAGE_HEADER_BYTES - 3 * 64 / 8) / 64);
}

struct returned {
	size_t count, bytes;
	void *last;
};

static void count_returned(void *ctx, void *page, size_t page_bytes)
{
	struct returned *returned = ctx;

	returned->count++;
	returned->bytes += page_bytes;
	returned->last = page;
}

/* Seed: reclaim returns nothing, and always begins with the same class. */
static void test_D21_reclaim_says_what_it_gave_back_and_begins_elsewhere_each_time(void **state)
{
	struct returned returned = { 0, 0, NULL };
	unsigned first_class = 0;

	(void)state;
	assert_int_equal(kslab_zone_init(&zone, PAGE, 0), KSLAB_ALLOCATION_OK);
	/* Two empty pages in each of two classes. */
	for (unsigned i = 0; i < 4; i++) {
		struct kslab_layout layout = { i < 2 ? 64 : 128, 8 };

		assert_int_equal(kslab_zone_refill(&zone, layout, pages + i * PAGE),
				 KSLAB_ALLOCATION_OK);
	}
	for (unsigned i = 0; i < 2; i++) {
		assert_int_equal(kslab_zone_try_reclaim_pages(&zone, 1, count_returned, &returned),
				 1);
		assert_int_equal(returned.count, i + 1);
		first_class += (unsigned char *)returned.last < pages + 2 * PAGE;
	}
	assert_true(kslab_zone_check(&zone));
	assert_int_equal(kslab_zone_try_reclaim_pages(&zone, 10, count_returned, &returned), 2);
	assert_int_equal(kslab_zone_try_reclaim_pages(&zone, 10, count_returned, &returned), 0);
	assert_int_equal(returned.bytes, 4 * PAGE);
	assert_int_equal(first_class <= 2, 1);
	make_sc(64, 5);
	assert_int_equal(kslab_sc_try_reclaim_pages(&sc, 3, ignore, NULL), 3);
	assert_int_equal(kslab_sc_try_reclaim_pages(&sc, 3, ignore, NULL), 2);
}

/* Seed: refill writes the header, then asserts the alignment. */
static void test_D22_a_misaligned_page_is_refused_before_it_is_touched(void **state)
{
	(void)state;
	memset(pages, 0x5a, 3 * PAGE);
	make_sc(64, 0);
	for (size_t offset = 8; offset < PAGE; offset += 8)
		assert_int_equal(kslab_sc_refill(&sc, pages + offset), KSLAB_INVALID_PAGE);
	for (size_t i = 0; i < 3 * PAGE; i++)
		assert_int_equal(pages[i], 0x5a);
	assert_int_equal(kslab_sc_usage(&sc).pages, 0);
}

static unsigned logged;

static void log_with_allocation(struct recorder *recorder, const struct kslab_report *report)
{
	struct testing *from = recorder->user;
	char *line = kslab_heap_malloc(&from->heap, 100);

	assert_non_null(line);
	snprintf(line, 100, "%s", kslab_fault_name(report->fault));
	kslab_heap_free(&from->heap, line);
	logged++;
}

/* Seed: trace!() in the allocation path: a logger that allocates recurses without end. */
static void test_D23_a_logger_may_allocate_and_good_calls_are_not_logged(void **state)
{
	void *object;

	(void)state;
	logged = 0;
	testing_begin(&t, &frames);
	t.recorder.user = &t;
	t.recorder.on_report = log_with_allocation;
	object = kslab_heap_malloc(&t.heap, 100);
	kslab_heap_free(&t.heap, object);
	assert_int_equal(logged, 0);
	kslab_heap_free(&t.heap, object);
	testing_fault(&t, KSLAB_FAULT_DOUBLE_FREE);
	assert_int_equal(logged, 1);
	testing_end(&t);
}

/* Seed: every free needs the layout; there is no realloc and no calloc. */
static void test_D24_free_needs_no_size_and_realloc_and_calloc_exist(void **state)
{
	static const size_t sizes[] = { 1, 8, 100, 3000, 20000 };

	(void)state;
	testing_begin(&t, &frames);
	for (size_t s = 0; s < TESTING_COUNT(sizes); s++) {
		unsigned char *object = kslab_heap_calloc(&t.heap, sizes[s], 1);

		for (size_t i = 0; i < sizes[s]; i++)
			assert_int_equal(object[i], 0);
		memset(object, 7, sizes[s]);
		object = kslab_heap_realloc(&t.heap, object, 3 * sizes[s]);
		for (size_t i = 0; i < sizes[s]; i++)
			assert_int_equal(object[i], 7);
		testing_step(&t);
		kslab_heap_free(&t.heap, object);
		testing_step(&t);
	}
	testing_end(&t);
}

/* Seed: looks wrong and is right: keep it. */
static void test_all_of_512_slots_free_is_an_empty_page(void **state)
{
	const struct kslab_config config = { .max_page_bytes = PAGE,
					     .min_align = 8,
					     .retain_bytes = KSLAB_RETAIN_NONE };
	static void *objects[512];

	(void)state;
	testing_begin(&t, &config);
	for (unsigned i = 0; i < 512; i++) {
		objects[i] = kslab_heap_malloc(&t.heap, 8);
		assert_int_equal((uintptr_t)objects[i] / PAGE, (uintptr_t)objects[0] / PAGE);
	}
	for (unsigned i = 0; i < 511; i++)
		kslab_heap_free(&t.heap, objects[i]);
	assert_true(fake_source_is_out(&t.source, objects[0]));
	kslab_heap_free(&t.heap, objects[511]);
	assert_false(fake_source_is_out(&t.source, objects[0]));
	testing_end(&t);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(test_D1_freed_pages_are_found_by_the_very_next_allocation),
		cmocka_unit_test(test_D2_every_slot_of_a_page_serves_the_alignment),
		cmocka_unit_test(
			test_D3_alignment_above_the_page_is_refused_or_served_never_half_accepted),
		cmocka_unit_test(test_D4_a_2_mib_page_is_used_to_its_end),
		cmocka_unit_test(test_D5_two_of_2048_and_four_of_1024_share_a_frame),
		cmocka_unit_test(test_D6_overflow_of_any_object_does_not_reach_metadata),
		cmocka_unit_test(test_D7_descriptors_lie_densely_and_outside_the_object_pages),
		cmocka_unit_test(test_D8_an_allocation_touches_no_pages_but_its_own),
		cmocka_unit_test(test_D9_powers_of_two_get_exactly_what_they_ask_for),
		cmocka_unit_test(test_D10_internal_waste_is_a_fifth_at_most),
		cmocka_unit_test(test_D11_objects_of_an_empty_page_are_cut_by_the_class),
		cmocka_unit_test(test_D12_a_page_with_its_only_slot_taken_is_full),
		cmocka_unit_test(test_D13_a_wrong_size_at_free_is_refused),
		cmocka_unit_test(test_D14_of_two_frees_at_once_exactly_one_is_accepted),
		cmocka_unit_test(test_D15_a_late_free_into_a_page_that_went_back_touches_nothing),
		cmocka_unit_test(test_D16_misuse_and_exhaustion_are_answers),
		cmocka_unit_test(test_D17_the_page_source_is_called_with_no_lock_held),
		cmocka_unit_test(test_D18_pages_in_use_are_those_that_are_in_use),
		cmocka_unit_test(test_D19_large_alignments_hold_and_nothing_is_cleared_unasked),
		cmocka_unit_test(test_D20_words_and_descriptors_are_those_of_the_machine),
		cmocka_unit_test(
			test_D21_reclaim_says_what_it_gave_back_and_begins_elsewhere_each_time),
		cmocka_unit_test(test_D22_a_misaligned_page_is_refused_before_it_is_touched),
		cmocka_unit_test(test_D23_a_logger_may_allocate_and_good_calls_are_not_logged),
		cmocka_unit_test(test_D24_free_needs_no_size_and_realloc_and_calloc_exist),
		cmocka_unit_test(test_all_of_512_slots_free_is_an_empty_page),
	};

	return cmocka_run_group_tests(tests, map_pages, NULL);
}
