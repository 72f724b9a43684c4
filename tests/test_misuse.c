/* SPDX-License-Identifier: MIT
 * test_misuse.c - owns the proof of everything a kernel can do wrong, one test for each row of the
 * table of misuse: the exact fault, and a heap that is bit for bit what it was before.
 * Rank: test.  Runs: one thread that plays four CPUs, in turns; CPU 3 never comes online.
 *
 * BUILD: -DKSLAB_CFG_HEADER='"fake_cpu.h"' -DKSLAB_CFG_CPUS=4 -DKSLAB_CFG_LEVELS=4
 *
 * The rows that need a debug level (21 to 26), threads or signals (30 to 33) are elsewhere.
 */
#include "testing.h"

#include <limits.h>

#include "fake_cpu.h"
#include "heap_image.h"
#include "page_list.h"

FAKE_CPU_DEFINE;

#define PAGE 4096u
#define ARRAY_MAX 1200u

static struct testing t; /* the heap under test */
static struct testing u; /* another heap, with a source of its own */
static size_t contract_errors; /* callbacks and hooks that ran pinned, masked, or under the lock */

/* ---- fixture --------------------------------------------------------------------------------- */

static void look_at_context(void)
{
	contract_errors +=
		fake_pins != 0 || fake_masked != 0 || t.heap.lock.next != t.heap.lock.serving;
}

static void on_pages(struct fake_source *source, size_t pages)
{
	(void)source;
	(void)pages;
	look_at_context();
}

static void on_report(struct recorder *recorder, const struct kslab_report *report)
{
	(void)recorder;
	(void)report;
	look_at_context();
}

static const struct kslab_config single_frames = { .max_page_bytes = PAGE };
static const struct kslab_config long_pages = { .max_page_bytes = 16 * PAGE };

/* What a failed test left behind goes first. */
static void forget(struct testing *testing)
{
	if (testing->source.memory != NULL)
		fake_source_fini(&testing->source);
	memset(testing, 0, sizeof(*testing));
}

static void begin(struct testing *testing, const struct kslab_config *config)
{
	testing_begin(testing, config);
	testing->source.on_alloc = testing->source.on_free = on_pages;
	testing->recorder.on_report = on_report;
}

static int setup(void **state)
{
	(void)state;
	forget(&t);
	forget(&u);
	memset(&kslab_default_heap, 0, sizeof(kslab_default_heap));
	fake_cpu = fake_pins = fake_masked = fake_nmi = 0;
	contract_errors = 0;
	return 0;
}

static int teardown(void **state)
{
	(void)state;
	if (contract_errors != 0)
		print_error("%zu callbacks ran pinned, masked or under the lock\n",
			    contract_errors);
	return contract_errors != 0;
}

static void online(unsigned cpu)
{
	unsigned before = fake_cpu;

	fake_cpu = cpu;
	assert_int_equal(kslab_heap_cpu_online(&t.heap, cpu), KSLAB_OK);
	fake_cpu = before;
}

/* As a kernel does: BUSY until the other CPUs have come by. */
static void destroy(struct kslab_cache *cache)
{
	enum kslab_reason reason = kslab_cache_destroy(cache);

	for (unsigned cpu = 1; cpu < KSLAB_CFG_CPUS && reason == KSLAB_BUSY; cpu++) {
		fake_cpu = cpu;
		kslab_heap_idle(&t.heap);
		fake_cpu = 0;
		testing_step(&t);
		reason = kslab_cache_destroy(cache);
	}
	assert_int_equal(reason, KSLAB_OK);
}

static void end(struct testing *testing)
{
	fake_cpu = 0;
	testing_end(testing);
	assert_int_equal(fake_pins, 0);
	assert_int_equal(fake_masked, 0);
}

static struct kslab_page *page_of(const void *p)
{
	return kslab_page_map_find(&t.heap.map, (uintptr_t)p);
}

static void *must(void *p)
{
	assert_non_null(p);
	testing_step(&t);
	return p;
}

static void *get(size_t n)
{
	return must(kslab_heap_malloc(&t.heap, n));
}

static void put(void *p)
{
	kslab_heap_free(&t.heap, p);
	testing_step(&t);
}

/* ---- a refusal, exactly ---------------------------------------------------------------------- */

/*
 * Every way by which a pointer gets into the heap. Each returns what a refusal answers: NULL or 0.
 */
static const void *by_free(void *p, size_t n)
{
	(void)n;
	kslab_heap_free(&t.heap, p);
	return NULL;
}

static const void *by_free_sized(void *p, size_t n)
{
	kslab_heap_free_sized(&t.heap, p, n);
	return NULL;
}

static const void *by_free_aligned_sized(void *p, size_t n)
{
	kslab_heap_free_aligned_sized(&t.heap, p, 8, n);
	return NULL;
}

static const void *by_free_bulk(void *p, size_t n)
{
	void *const ptrs[] = { NULL, p, NULL };

	(void)n;
	kslab_heap_free_bulk(&t.heap, TESTING_COUNT(ptrs), ptrs);
	return NULL;
}

static const void *by_realloc_larger(void *p, size_t n)
{
	return kslab_heap_realloc(&t.heap, p, 4 * n + 100);
}

static const void *by_realloc_same(void *p, size_t n)
{
	return kslab_heap_realloc(&t.heap, p, n);
}

static const void *by_realloc_zero(void *p, size_t n)
{
	(void)n;
	return kslab_heap_realloc(&t.heap, p, 0);
}

static const void *by_reallocarray(void *p, size_t n)
{
	return kslab_heap_reallocarray(&t.heap, p, n, 3);
}

static const void *by_usable_size(void *p, size_t n)
{
	(void)n;
	return (const void *)kslab_heap_usable_size(&t.heap, p);
}

static const struct door {
	const char *name;
	const void *(*call)(void *p, size_t n);
} doors[] = {
	{ "free", by_free },
	{ "free_sized", by_free_sized },
	{ "free_aligned_sized", by_free_aligned_sized },
	{ "free_bulk", by_free_bulk },
	{ "realloc larger", by_realloc_larger },
	{ "realloc same", by_realloc_same },
	{ "realloc zero", by_realloc_zero },
	{ "reallocarray", by_reallocarray },
	{ "usable_size", by_usable_size },
};

static const struct who {
	const char *name;
	unsigned cpu;
	bool in_interrupt; /* of a kslab call of that CPU */
} everybody[] = {
	{ "the owner", 0, false },
	{ "another cpu", 1, false },
	{ "a cpu that is not online", 3, false },
	{ "an interrupt of the owner", 0, true },
};

#define ANY_BYTES SIZE_MAX /* an expectation that is not one */

struct want {
	enum kslab_fault fault;
	void *pointer;
	const void *object;
	size_t object_bytes;
	const void *page;
	size_t page_bytes;
};

#define assert_that(condition, name)                                                               \
	do {                                                                                       \
		if (!(condition)) {                                                                \
			print_error("%s: not so: %s\n", (name), #condition);                       \
			fail();                                                                    \
		}                                                                                  \
	} while (0)

static void check_report(const struct kslab_report *report, const struct want *want, unsigned cpu,
			 const char *name)
{
	if (report->fault != want->fault)
		print_error("%s: %s, wanted %s\n", name, kslab_fault_name(report->fault),
			    kslab_fault_name(want->fault));
	assert_that(report->fault == want->fault, name);
	assert_that(report->pointer == want->pointer, name);
	assert_that(report->object == want->object, name);
	assert_that(want->object_bytes == ANY_BYTES || report->object_bytes == want->object_bytes,
		    name);
	assert_that(report->page == want->page, name);
	assert_that(report->page_bytes == want->page_bytes, name);
	assert_that(report->cpu == cpu, name);
	assert_that(report->caller != NULL, name);
	assert_that(report->what != NULL && report->what[0] != '\0', name);
}

/* One refusal through one door by one CPU. n: a size that the object could have. */
static void refused_at(const struct door *door, const struct who *who, const struct want *want,
		       size_t n)
{
	struct kslab_zone *zone = t.heap.zone[who->cpu];
	size_t allocs = t.source.alloc_calls, frees = t.source.free_calls;
	char name[100];
	struct heap_image image;
	const void *answer;

	snprintf(name, sizeof(name), "%s by %s", door->name, who->name);
	fake_cpu = who->cpu;
	if (who->in_interrupt)
		zone->owner.key = 0;
	heap_image_take(&image, &t.heap);
	answer = door->call(want->pointer, n);
	assert_that(heap_image_is_unchanged(&image), name);
	if (who->in_interrupt)
		zone->owner.key = (uintptr_t)zone;
	assert_that(answer == NULL, name);
	assert_that(t.recorder.count == t.faults + 1, name);
	check_report(&t.recorder.last, want, who->cpu, name);
	if (zone != &kslab_zone_none)
		assert_that(kslab_heap_last_error(&t.heap) == KSLAB_BAD_FREE, name);
	assert_that(t.source.alloc_calls == allocs && t.source.free_calls == frees, name);
	fake_cpu = 0;
	testing_fault(&t, want->fault);
}

/* Through every door, by everybody. CPU 1 MUST be online. */
static void refused(const struct want *want, size_t n)
{
	for (size_t w = 0; w < TESTING_COUNT(everybody); w++)
		for (size_t d = 0; d < TESTING_COUNT(doors); d++)
			refused_at(&doors[d], &everybody[w], want, n);
}

static struct want want_object(enum kslab_fault fault, void *pointer, void *object)
{
	const struct kslab_page *page = page_of(object);
	size_t page_bytes = (size_t)page->pages * PAGE;

	/*
	 * From first principles: an object page is aligned to its length when the source aligns
	 * runs.
	 */
	const struct want want = { fault,
				   pointer,
				   object,
				   page->sc->size,
				   (const void *)((uintptr_t)object & ~(uintptr_t)(page_bytes - 1)),
				   page_bytes };
	return want;
}

static struct want want_nothing(enum kslab_fault fault, void *pointer)
{
	const struct want want = { fault, pointer, NULL, 0, NULL, 0 };

	return want;
}

/* ---- rows 1, 2, 3: double free --------------------------------------------------------------- */

static const size_t some_sizes[] = { 1, 8, 24, 48, 96, 200, 512, 1000, 2048, 4096, 6000, 16384 };

static void double_free_is_refused_back_to_back(void **state)
{
	static const struct kslab_config *const configs[] = { &single_frames, &long_pages };

	(void)state;
	for (size_t c = 0; c < TESTING_COUNT(configs); c++) {
		begin(&t, configs[c]);
		online(1);
		for (size_t i = 0; i < TESTING_COUNT(some_sizes); i++) {
			size_t n = some_sizes[i];
			void *keep = get(n), *p = get(n);
			struct want want;

			if (page_of(p)->sc == NULL) { /* a large block here: has tests of its own */
				put(p);
				put(keep);
				continue;
			}
			want = want_object(KSLAB_FAULT_DOUBLE_FREE, p, p);
			put(p);
			refused(&want, n);
			put(keep);
		}
		end(&t);
	}
}

static void double_free_is_refused_after_other_frees(void **state)
{
	void *p[40];

	(void)state;
	begin(&t, &single_frames);
	online(1);
	for (size_t i = 0; i < TESTING_COUNT(p); i++)
		p[i] = get(64);
	for (size_t i = 0; i < TESTING_COUNT(p); i += 2) {
		struct want want = want_object(KSLAB_FAULT_DOUBLE_FREE, p[0], p[0]);

		put(p[i]);
		refused_at(&doors[0], &everybody[i / 2 % 4], &want, 64);
	}
	for (size_t i = 1; i < TESTING_COUNT(p); i += 2)
		put(p[i]);
	end(&t);
}

/*
 * The page of the slot is in each state that a page with a free slot can have, and full with mail.
 */
static void double_free_is_refused_in_every_page_state(void **state)
{
	const size_t n = 512, slots = PAGE / 512;
	void *p[2 * PAGE / 512], *keep;
	struct want want;

	(void)state;
	begin(&t, &single_frames);
	online(1);
	for (size_t i = 0; i < slots + 1; i++) /* the first page is full, the second current */
		p[i] = get(n);
	want = want_object(KSLAB_FAULT_DOUBLE_FREE, p[2], p[2]);
	assert_int_equal(page_of(p[2])->state, KSLAB_PAGE_FULL);

	fake_cpu = 1; /* a free that its owner has not taken in yet */
	put(p[2]);
	fake_cpu = 0;
	assert_int_equal(page_of(p[2])->state, KSLAB_PAGE_FULL);
	assert_int_equal(page_of(p[2])->mail, KSLAB_MAIL_QUEUED);
	refused(&want, n);

	kslab_heap_idle(&t.heap);
	testing_step(&t);
	assert_int_equal(page_of(p[2])->state, KSLAB_PAGE_PARTIAL);
	refused(&want, n);

	for (size_t i = 0; i < slots; i++)
		if (i != 2)
			put(p[i]);
	assert_int_equal(page_of(p[2])->state, KSLAB_PAGE_EMPTY);
	refused(&want, n);

	put(p[slots]);
	keep = get(n); /* makes a page current */
	p[0] = get(n);
	put(p[0]);
	assert_int_equal(page_of(p[0])->state, KSLAB_PAGE_CURRENT);
	want = want_object(KSLAB_FAULT_DOUBLE_FREE, p[0], p[0]);
	refused(&want, n);
	put(keep);
	end(&t);
}

static void double_free_is_refused_when_the_page_has_gone_back(void **state)
{
	const struct kslab_config config = { .max_page_bytes = PAGE,
					     .retain_bytes = KSLAB_RETAIN_NONE };
	struct want want;
	void *p;

	(void)state;
	begin(&t, &config);
	online(1);
	p = get(256);
	put(p);
	assert_false(fake_source_is_out(&t.source, p));
	want = want_nothing(KSLAB_FAULT_DOUBLE_FREE, p);
	refused(&want, 256);
	end(&t);
}

/*
 * A zone keeps a few freed blocks whole: they are free all the same, and known as what they were.
 */
static void double_free_of_a_large_block_is_refused(void **state)
{
	struct kslab_stats stats;
	struct want want;
	void *p;

	(void)state;
	begin(&t, &single_frames);
	online(1);
	p = get(5 * PAGE);
	put(p);
	assert_true(fake_source_is_out(&t.source, p));
	want = (struct want){ KSLAB_FAULT_DOUBLE_FREE, p, p, 5 * PAGE, p, 5 * PAGE };
	refused(&want, 5 * PAGE);
	kslab_heap_stats(&t.heap, &stats);
	assert_true(stats.large_blocks == 0 && stats.large_pages == 0);
	assert_true(kslab_heap_reclaim(&t.heap, SIZE_MAX) == 5);
	assert_false(fake_source_is_out(&t.source, p));
	want = want_nothing(KSLAB_FAULT_DOUBLE_FREE, p);
	refused(&want, 5 * PAGE);
	end(&t);
}

/*
 * Row 3 is a limit, not a promise: nothing in the heap's state tells the two owners of the slot
 * apart.
 */
static void double_free_after_reissue_frees_the_new_object_and_nothing_else(void **state)
{
	struct want want;
	void *p[PAGE / 64], *first, *other;
	size_t n = 0;

	(void)state;
	begin(&t, &single_frames);
	online(1);
	other = get(64);
	first = get(64);
	put(first);
	do {
		assert_true(n < TESTING_COUNT(p));
		p[n++] = get(64);
	} while (p[n - 1] != first);
	put(first);
	want = want_object(KSLAB_FAULT_DOUBLE_FREE, first, first);
	refused(&want, 64); /* the new owner learns of it */
	assert_true(kslab_heap_usable_size(&t.heap, other) == 64);
	while (--n != 0)
		put(p[n - 1]);
	put(other);
	end(&t);
}

/* ---- rows 4, 5, 6: inside a page, but no object ---------------------------------------------- */

static void interior_pointers_are_refused_at_every_offset(void **state)
{
	static const struct kslab_config *const configs[] = { &single_frames, &long_pages };

	(void)state;
	for (size_t c = 0; c < TESTING_COUNT(configs); c++) {
		begin(&t, configs[c]);
		online(1);
		for (size_t i = 0; i < TESTING_COUNT(some_sizes); i++) {
			size_t n = some_sizes[i], bytes, step;
			unsigned char *p = get(n), *q = get(n);

			if (page_of(p)->sc == NULL) {
				put(p);
				put(q);
				continue;
			}
			bytes = page_of(p)->sc->size;
			step = bytes > 128 ? 61 : 1; /* every offset of small ones */
			for (size_t k = 1; k < bytes; k += step) {
				struct want want =
					want_object(KSLAB_FAULT_INTERIOR_POINTER, q + k, q);

				refused_at(&doors[0], &everybody[k % 4], &want, n);
			}
			assert_true(kslab_heap_usable_size(&t.heap, q) == bytes); /* still live */
			put(p);
			put(q);
		}
		end(&t);
	}
}

static void interior_pointers_are_refused_through_every_door(void **state)
{
	struct want want;
	unsigned char *p;

	(void)state;
	begin(&t, &single_frames);
	online(1);
	p = get(96);
	want = want_object(KSLAB_FAULT_INTERIOR_POINTER, p + 8, p);
	refused(&want, 96);
	want = want_object(KSLAB_FAULT_INTERIOR_POINTER, p + 95, p);
	refused(&want, 96);
	put(p);
	end(&t);
}

/* Row 5: 32 bytes into a 96-byte object begins a slot of the 32-byte class, somewhere else. */
static void interior_pointer_is_judged_by_the_class_of_its_own_page(void **state)
{
	struct want want;
	unsigned char *p, *small;

	(void)state;
	begin(&t, &single_frames);
	online(1);
	small = get(32);
	p = get(96);
	want = want_object(KSLAB_FAULT_INTERIOR_POINTER, p + 32, p);
	refused(&want, 32);
	refused(&want, 96);
	put(p);
	put(small);
	end(&t);
}

static void interior_pointers_of_large_blocks_are_refused(void **state)
{
	const size_t offsets[] = { 1, 8, 64, PAGE - 1, PAGE, 2 * PAGE, 5 * PAGE - 1 };
	unsigned char *p;

	(void)state;
	begin(&t, &single_frames);
	online(1);
	p = get(5 * PAGE);
	for (size_t i = 0; i < TESTING_COUNT(offsets); i++) {
		const struct want want = {
			KSLAB_FAULT_INTERIOR_POINTER, p + offsets[i], p, 5 * PAGE, p, 5 * PAGE
		};

		refused(&want, 5 * PAGE);
	}
	put(p);
	end(&t);
}

/*
 * A run longer than its block, because the source does not align: the pages before and behind it
 * are no object.
 */
static void pages_beside_an_aligned_large_block_are_no_object(void **state)
{
	unsigned char *p;
	const struct kslab_page *page;
	uintptr_t run, run_end, end_of_block;

	(void)state;
	begin(&t, &single_frames);
	online(1);
	t.source.unaligned = true;
	p = must(kslab_heap_aligned_alloc(&t.heap, 4 * PAGE, 4 * PAGE));
	page = page_of(p);
	run = page->bits[0].avail;
	run_end = run + page->bits[0].freed * PAGE;
	end_of_block = (uintptr_t)p + 4 * PAGE;
	assert_true(run < (uintptr_t)p || end_of_block < run_end); /* or there is nothing to test */
	for (uintptr_t a = run; a < run_end; a += PAGE) {
		struct want want = {
			KSLAB_FAULT_BAD_POINTER, (void *)a, NULL, ANY_BYTES, p, 4 * PAGE
		};

		if (a >= (uintptr_t)p && a < end_of_block)
			continue;
		refused_at(&doors[0], &everybody[0], &want, 4 * PAGE);
		refused_at(&doors[0], &everybody[1], &want, 4 * PAGE);
	}
	put(p);
	end(&t);
}

static void slots_that_were_never_issued_are_refused(void **state)
{
	const size_t n = 16, slots = PAGE / 16;
	unsigned char *p;

	(void)state;
	begin(&t, &single_frames);
	online(1);
	/* The first of its page: slots of the same word are available, others not yet. */
	p = get(n);
	for (size_t i = 1; i < slots; i += 7) {
		struct want want = want_object(KSLAB_FAULT_DOUBLE_FREE, p + i * n, p + i * n);

		if (i % 3 == 0)
			refused(&want, n);
		else
			refused_at(&doors[0], &everybody[i % 4], &want, n);
	}
	put(p);
	end(&t);
}

/*
 * Row 6: bound by the number of slots. Pages whose tail is as long as a slot or more can't exist;
 * all others do.
 */
static void addresses_behind_the_last_slot_are_refused(void **state)
{
	static const struct kslab_config *const configs[] = { &single_frames, &long_pages };
	size_t tails = 0;

	(void)state;
	for (size_t c = 0; c < TESTING_COUNT(configs); c++) {
		begin(&t, configs[c]);
		online(1);
		for (size_t n = 8; n <= 2048; n = n * 5 / 4 / 8 * 8 + 8) {
			unsigned char *p = get(n);
			const struct kslab_page *page = page_of(p);
			size_t page_bytes = (size_t)page->pages * PAGE,
			       tail = page_bytes % page->sc->size;
			unsigned char *base =
				(unsigned char *)((uintptr_t)p & ~(uintptr_t)(page_bytes - 1));

			for (size_t k = 0; k < tail; k += k < 16 ? 1 : 13) {
				struct want want = { KSLAB_FAULT_BAD_POINTER,
						     base + page_bytes - tail + k,
						     NULL,
						     ANY_BYTES,
						     base,
						     page_bytes };

				refused_at(&doors[k % 4], &everybody[k % 4], &want, n);
				tails++;
			}
			put(p);
		}
		end(&t);
	}
	assert_true(tails > 100);
}

/* ---- rows 7, 8, 9, 10: not in an object page ------------------------------------------------- */

static void metadata_is_refused(void **state)
{
	struct kslab_cache cache;
	void *p, *q, *large;

	(void)state;
	begin(&t, &single_frames);
	online(1);
	p = get(64);
	large = get(3 * PAGE);
	assert_int_equal(kslab_heap_cache_init(&t.heap, &cache, "cache", 40, 0, NULL, NULL),
			 KSLAB_OK);
	q = must(kslab_cache_alloc(&cache));
	{
		struct kslab_page *page = page_of(p);
		const uintptr_t addresses[] = {
			(uintptr_t)page, /* a descriptor */
			(uintptr_t)&page->bits[0].freed, /* its bits */
			(uintptr_t)page_of(large), /* a large block's */
			(uintptr_t)page_of(q)->sc, /* a cache's part of a zone */
			(uintptr_t)t.heap.zone[1], /* another CPU's zone */
			(uintptr_t)t.heap.zone[1] + 8,
			(uintptr_t)kslab_page_map_entry(/* a leaf of the map */
							t.heap.map.top[kslab_page_map_top_index(
								&t.heap.map, (uintptr_t)p)],
							(uintptr_t)p),
			t.heap.meta.bump_end - 1, /* the last byte of a chunk */
		};

		for (size_t i = 0; i < TESTING_COUNT(addresses); i++) {
			struct want want =
				want_nothing(KSLAB_FAULT_BAD_POINTER, (void *)addresses[i]);

			refused(&want, 64);
		}
	}
	kslab_cache_free(&cache, q);
	assert_int_equal(kslab_cache_destroy(&cache), KSLAB_OK);
	put(large);
	put(p);
	end(&t);
}

/* In-page mode: the descriptor at the end of the page. */
static void an_in_page_footer_is_refused(void **state)
{
	struct kslab_sc_allocator sc;
	const struct kslab_layout layout = { 64, 8 };
	static _Alignas(PAGE) unsigned char page[PAGE];
	unsigned char before[PAGE];
	void *p;

	(void)state;
	assert_int_equal(kslab_sc_init(&sc, 64, PAGE), KSLAB_ALLOCATION_OK);
	assert_int_equal(kslab_sc_refill(&sc, page), KSLAB_ALLOCATION_OK);
	assert_int_equal(kslab_sc_allocate(&sc, layout, &p), KSLAB_ALLOCATION_OK);
	for (size_t offset = kslab_sc_slots(&sc) * 64; offset < PAGE; offset++) {
		memcpy(before, page, PAGE);
		assert_int_equal(kslab_sc_deallocate(&sc, page + offset, layout),
				 KSLAB_INVALID_POINTER);
		assert_memory_equal(before, page, PAGE);
	}
	for (size_t offset = 1; offset < 64; offset++) {
		memcpy(before, page, PAGE);
		assert_int_equal(kslab_sc_deallocate(&sc, (unsigned char *)p + offset, layout),
				 KSLAB_INVALID_POINTER);
		assert_memory_equal(before, page, PAGE);
	}
	assert_true(kslab_sc_check(&sc));
	assert_int_equal(kslab_sc_deallocate(&sc, p, layout), KSLAB_ALLOCATION_OK);
	memcpy(before, page, PAGE);
	assert_int_equal(kslab_sc_deallocate(&sc, p, layout), KSLAB_INVALID_POINTER);
	assert_memory_equal(before, page, PAGE);
	assert_true(kslab_sc_check(&sc));
}

static void foreign_addresses_are_refused_and_not_dereferenced(void **state)
{
	static int global;
	int local;
	unsigned char *p;

	(void)state;
	begin(&t, &single_frames);
	online(1);
	p = get(64);
	{
		const uintptr_t addresses[] = {
			(uintptr_t)&local,
			(uintptr_t)&global,
			(uintptr_t)&foreign_addresses_are_refused_and_not_dereferenced, /* code */
			(uintptr_t)&t.heap, /* struct kslab_heap is its owner's */
			(uintptr_t)&t.heap.boot_zone,
			(uintptr_t)t.source.memory +
				100 * PAGE, /* memory of the source, not given out: PROT_NONE */
			(uintptr_t)t.source.memory + 100 * PAGE + 8,
			1,
			8,
			PAGE,
			PAGE - 1, /* the page at zero */
			UINTPTR_MAX,
			UINTPTR_MAX - 7,
			UINTPTR_MAX & ~(uintptr_t)(PAGE - 1),
			UINTPTR_MAX / 2,
			UINTPTR_MAX / 2 + 1, /* where x86-64 has no addresses */
			t.heap.map.base, /* the window's edges */
			t.heap.map.base - 1,
			t.heap.map.base + (uintptr_t)KSLAB_WINDOW_BYTES,
			t.heap.map.base + (uintptr_t)KSLAB_WINDOW_BYTES - 1,
		};

		assert_false(fake_source_is_out(&t.source, (void *)addresses[5]));
		for (size_t i = 0; i < TESTING_COUNT(addresses); i++) {
			struct want want =
				want_nothing(KSLAB_FAULT_FOREIGN_POINTER, (void *)addresses[i]);

			if (addresses[i] == 0) /* the 32-bit window ends at 0, which is NULL */
				continue;
			refused(&want, 64);
		}
	}
	put(p);
	end(&t);
}

static void unmapped_addresses_are_refused_without_a_page_fault(void **state)
{
	struct testing_random random = testing_seed("unmapped", 9);
	unsigned char *mapping =
			      mmap(NULL, 16 * PAGE, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0),
		      *p;

	(void)state;
	assert_true(mapping != MAP_FAILED);
	assert_int_equal(munmap(mapping, 16 * PAGE), 0);
	begin(&t, &single_frames);
	online(1);
	p = get(64);
	{
		struct want want = want_nothing(KSLAB_FAULT_FOREIGN_POINTER, mapping + 64);

		refused(&want, 64);
	}
	for (unsigned i = 0; i < 2000; i++) { /* anywhere, and anywhere in the window */
		uintptr_t address = (uintptr_t)testing_random_next(&random);
		struct want want;

		if (i % 2 != 0)
			address = t.heap.map.base +
				  (uintptr_t)(testing_random_next(&random) % KSLAB_WINDOW_BYTES);
		if (address == 0 || fake_source_is_out(&t.source, (void *)address))
			continue;
		want = want_nothing(KSLAB_FAULT_FOREIGN_POINTER, (void *)address);
		fake_cpu = i % 3;
		doors[i % TESTING_COUNT(doors)].call((void *)address, 64);
		check_report(&t.recorder.last, &want, fake_cpu, "random address");
		fake_cpu = 0;
		testing_fault(&t, KSLAB_FAULT_FOREIGN_POINTER);
	}
	put(p);
	end(&t);
}

static void null_is_taken_by_every_door_and_does_nothing(void **state)
{
	struct kslab_cache cache;
	struct heap_image image;
	void *const nulls[] = { NULL, NULL, NULL };
	void *p;

	(void)state;
	begin(&t, &single_frames);
	online(1);
	p = get(64);
	assert_int_equal(kslab_heap_cache_init(&t.heap, &cache, "cache", 40, 0, NULL, NULL),
			 KSLAB_OK);
	for (size_t w = 0; w < TESTING_COUNT(everybody); w++) {
		fake_cpu = everybody[w].cpu;
		heap_image_take(&image, &t.heap);
		kslab_heap_free(&t.heap, NULL);
		kslab_heap_free_sized(&t.heap, NULL, 64);
		kslab_heap_free_sized(&t.heap, NULL, SIZE_MAX);
		kslab_heap_free_aligned_sized(&t.heap, NULL, 0, 64);
		kslab_heap_free_bulk(&t.heap, 3, nulls);
		kslab_heap_free_bulk(&t.heap, 0, NULL);
		kslab_cache_free(&cache, NULL);
		assert_true(kslab_heap_usable_size(&t.heap, NULL) == 0);
		assert_true(heap_image_is_unchanged(&image));
		testing_step(&t);
	}
	fake_cpu = 0;
	assert_int_equal(kslab_cache_destroy(&cache), KSLAB_OK);
	put(p);
	end(&t);
}

/* ---- row 11: another heap, another cache ----------------------------------------------------- */

static void an_object_of_another_heap_is_foreign_and_both_are_unchanged(void **state)
{
	struct heap_image other;
	unsigned char *mine, *foreign, *large;

	(void)state;
	begin(&t, &single_frames);
	begin(&u, &single_frames);
	online(1);
	mine = get(64);
	foreign = kslab_heap_malloc(&u.heap, 64);
	large = kslab_heap_malloc(&u.heap, 3 * PAGE);
	assert_non_null(foreign);
	assert_non_null(large);
	heap_image_take(&other, &u.heap);
	{
		struct want want = want_nothing(KSLAB_FAULT_FOREIGN_POINTER, foreign);

		refused(&want, 64);
		want.pointer = large;
		refused(&want, 3 * PAGE);
		want.pointer = foreign + 8;
		refused(&want, 64);
	}
	assert_true(heap_image_is_unchanged(&other));
	testing_step(&u);
	kslab_heap_free(&u.heap, foreign);
	kslab_heap_free(&u.heap, large);
	put(mine);
	end(&u);
	end(&t);
}

static struct kslab_cache *door_cache;

static const void *by_cache_free(void *p, size_t n)
{
	(void)n;
	kslab_cache_free(door_cache, p);
	return NULL;
}

static const struct door cache_door = { "cache_free", by_cache_free };

static void refused_by_cache(struct kslab_cache *cache, const struct want *want)
{
	door_cache = cache;
	for (size_t w = 0; w < TESTING_COUNT(everybody); w++)
		refused_at(&cache_door, &everybody[w], want, 0);
}

static void an_object_goes_back_only_through_the_door_it_came_from(void **state)
{
	struct kslab_cache a, b;
	struct want want;
	unsigned char *p, *q, *plain, *large;

	(void)state;
	begin(&t, &single_frames);
	online(1);
	assert_int_equal(kslab_heap_cache_init(&t.heap, &a, "a", 72, 0, NULL, NULL), KSLAB_OK);
	assert_int_equal(kslab_heap_cache_init(&t.heap, &b, "b", 72, 0, NULL, NULL), KSLAB_OK);
	p = must(kslab_cache_alloc(&a));
	q = must(kslab_cache_alloc(&b));
	plain = get(72);
	large = get(3 * PAGE);

	want = want_object(KSLAB_FAULT_WRONG_CACHE, p, p);
	refused_by_cache(&b, &want); /* another cache's */
	want = want_object(KSLAB_FAULT_WRONG_CACHE, plain, plain);
	refused_by_cache(&a, &want); /* kslab_malloc's */
	want = (struct want){ KSLAB_FAULT_WRONG_CACHE, large, large, 3 * PAGE, large, 3 * PAGE };
	refused_by_cache(&a, &want); /* a large block */
	want = want_object(KSLAB_FAULT_WRONG_CACHE, p, p);
	for (size_t d = 0; d < 4; d++) /* a cache's, to kslab_free and its like */
		for (size_t w = 0; w < TESTING_COUNT(everybody); w++)
			refused_at(&doors[d], &everybody[w], &want, 72);

	/* Inside the right cache the usual verdicts hold. */
	want = want_object(KSLAB_FAULT_INTERIOR_POINTER, p + 8, p);
	refused_by_cache(&a, &want);
	want = want_nothing(KSLAB_FAULT_FOREIGN_POINTER, &want);
	refused_by_cache(&a, &want);
	kslab_cache_free(&a, p);
	testing_step(&t);
	want = want_object(KSLAB_FAULT_DOUBLE_FREE, p, p);
	refused_by_cache(&a, &want);

	kslab_cache_free(&b, q);
	put(plain);
	put(large);
	assert_int_equal(kslab_cache_destroy(&a), KSLAB_OK);
	assert_int_equal(kslab_cache_destroy(&b), KSLAB_OK);
	end(&t);
}

/* A cache's object is no object of kslab_realloc, whatever the new size. */
static void realloc_refuses_the_object_of_a_cache(void **state)
{
	struct kslab_cache cache;
	struct want want;
	void *p;

	(void)state;
	begin(&t, &single_frames);
	online(1);
	assert_int_equal(kslab_heap_cache_init(&t.heap, &cache, "cache", 72, 0, NULL, NULL),
			 KSLAB_OK);
	p = must(kslab_cache_alloc(&cache));
	want = want_object(KSLAB_FAULT_WRONG_CACHE, p, p);
	for (size_t d = 4; d < 8; d++)
		for (size_t w = 0; w < TESTING_COUNT(everybody); w++)
			refused_at(&doors[d], &everybody[w], &want, 72);
	kslab_cache_free(&cache, p);
	assert_int_equal(kslab_cache_destroy(&cache), KSLAB_OK);
	end(&t);
}

/* ---- row 12: wrong size ---------------------------------------------------------------------- */

static size_t given_size, given_align;

static const void *by_given_size(void *p, size_t n)
{
	(void)n;
	if (given_align == 1)
		kslab_heap_free_sized(&t.heap, p, given_size);
	else
		kslab_heap_free_aligned_sized(&t.heap, p, given_align, given_size);
	return NULL;
}

static void wrong_size_is_refused(struct want *want, size_t align, size_t size)
{
	static const struct door door = { "free with a wrong size", by_given_size };

	given_align = align;
	given_size = size;
	want->fault = KSLAB_FAULT_WRONG_SIZE;
	for (size_t w = 0; w < TESTING_COUNT(everybody); w++) {
		refused_at(&door, &everybody[w], want, 0);
		assert_true(t.recorder.last.count == size);
	}
}

static void sized_free_refuses_a_size_of_another_class(void **state)
{
	static const size_t sizes[] = { 0, 1, 8, 9, 16, 64, 100, 129, 512, 1000, 2048, 4096 };

	(void)state;
	begin(&t, &single_frames);
	online(1);
	for (size_t i = 0; i < TESTING_COUNT(sizes); i++) {
		size_t good = kslab_heap_good_size(&t.heap, sizes[i]), least = good;
		void *p = get(sizes[i]);
		struct want want = want_object(KSLAB_FAULT_WRONG_SIZE, p, p);

		while (least != 0 && kslab_heap_good_size(&t.heap, least - 1) == good)
			least--;
		if (least != 0) {
			wrong_size_is_refused(&want, 1, least - 1);
			wrong_size_is_refused(&want, 1, 0);
		}
		wrong_size_is_refused(&want, 1, good + 1);
		wrong_size_is_refused(&want, 1, 3 * PAGE);
		wrong_size_is_refused(&want, 1, SIZE_MAX);
		wrong_size_is_refused(&want, 1, SIZE_MAX / 2 + 1);
		wrong_size_is_refused(&want, 0, sizes[i]); /* no alignment leads here */
		wrong_size_is_refused(&want, 3, sizes[i]);
		wrong_size_is_refused(&want, 2 * PAGE, sizes[i]);
		wrong_size_is_refused(&want, SIZE_MAX / 2 + 1, sizes[i]);
		if (i % 2 != 0)
			kslab_heap_free_sized(&t.heap, p, good);
		else
			kslab_heap_free_sized(&t.heap, p, least);
		testing_step(&t);
	}
	end(&t);
}

static void sized_free_refuses_a_wrong_length_of_a_large_block(void **state)
{
	static const size_t wrong[] = {
		0, 64, 3 * PAGE, 4 * PAGE, 5 * PAGE + 1, 6 * PAGE, SIZE_MAX
	};
	struct want want;
	void *p;

	(void)state;
	begin(&t, &single_frames);
	online(1);
	p = get(4 * PAGE + 1);
	want = (struct want){ KSLAB_FAULT_WRONG_SIZE, p, p, 5 * PAGE, p, 5 * PAGE };
	for (size_t i = 0; i < TESTING_COUNT(wrong); i++)
		wrong_size_is_refused(&want, 1, wrong[i]);
	kslab_heap_free_sized(&t.heap, p, 4 * PAGE + 1);
	testing_step(&t);
	end(&t);
}

static void sized_free_takes_what_every_allocation_of_that_size_gave(void **state)
{
	(void)state;
	begin(&t, &long_pages);
	for (size_t n = 0; n < 5 * PAGE; n += n < 300 ? 1 : 37) {
		for (size_t align = 1; align <= 4 * PAGE; align *= 4) {
			void *p = kslab_heap_aligned_alloc(&t.heap, align, n);

			assert_non_null(p);
			kslab_heap_free_aligned_sized(&t.heap, p, align, n);
			testing_step(&t);
			p = kslab_heap_malloc(&t.heap, n);
			assert_non_null(p);
			kslab_heap_free_sized(&t.heap, p, n);
			testing_step(&t);
		}
	}
	end(&t);
}

/* Another fault of the pointer comes before that of the size. */
static void sized_free_names_the_fault_of_the_pointer_first(void **state)
{
	static const struct door door = { "free with a wrong size", by_given_size };
	struct want want;
	unsigned char *p, *keep;

	(void)state;
	begin(&t, &single_frames);
	online(1);
	keep = get(64);
	p = get(64);
	given_align = 1;
	given_size = 500;
	want = want_object(KSLAB_FAULT_INTERIOR_POINTER, p + 1, p);
	for (size_t w = 0; w < TESTING_COUNT(everybody); w++)
		refused_at(&door, &everybody[w], &want, 0);
	put(p);
	want = want_object(KSLAB_FAULT_DOUBLE_FREE, p, p);
	for (size_t w = 0; w < TESTING_COUNT(everybody); w++)
		refused_at(&door, &everybody[w], &want, 0);
	put(keep);
	end(&t);
}

/* ---- rows 13, 14: sizes without end ---------------------------------------------------------- */

static void failed_with(void *p, enum kslab_reason reason)
{
	assert_null(p);
	assert_int_equal(kslab_heap_last_error(&t.heap), reason);
	testing_step(&t);
}

static void a_product_that_wraps_is_refused(void **state)
{
	static const size_t pairs[][2] = {
		{ SIZE_MAX, 2 },
		{ 2, SIZE_MAX },
		{ SIZE_MAX / 2 + 1, 2 },
		{ SIZE_MAX / 3 + 1, 3 },
		{ SIZE_MAX, SIZE_MAX },
		{ (size_t)1 << (sizeof(size_t) * 4), (size_t)1 << (sizeof(size_t) * 4) },
		{ SIZE_MAX / 8 + 2, 8 },
	};
	struct heap_image image;
	unsigned char *p;

	(void)state;
	begin(&t, &single_frames);
	p = get(32);
	memset(p, 0x77, 32);
	heap_image_take(&image, &t.heap);
	for (size_t i = 0; i < TESTING_COUNT(pairs); i++) {
		failed_with(kslab_heap_calloc(&t.heap, pairs[i][0], pairs[i][1]), KSLAB_OVERFLOW);
		failed_with(kslab_heap_reallocarray(&t.heap, p, pairs[i][0], pairs[i][1]),
			    KSLAB_OVERFLOW);
		failed_with(kslab_heap_reallocarray(&t.heap, NULL, pairs[i][0], pairs[i][1]),
			    KSLAB_OVERFLOW);
	}
	assert_true(heap_image_is_unchanged(&image));
	assert_true(t.recorder.count == 0);
	put(p);
	end(&t);
}

static void huge_sizes_are_too_large_by_every_call(void **state)
{
	struct heap_image image;
	unsigned char *p, *large;
	void *out[3];

	(void)state;
	begin(&t, &single_frames);
	p = get(32);
	large = get(3 * PAGE);
	heap_image_take(&image, &t.heap);
	for (size_t k = 0; k < 3 * PAGE; k += k < 40 ? 1 : 1001) {
		const size_t sizes[] = { SIZE_MAX - k, SIZE_MAX / 2 + 1 - k % 4, SIZE_MAX / 2 + k,
					 SIZE_MAX / 4 * 3 };

		for (size_t i = 0; i < TESTING_COUNT(sizes); i++) {
			size_t n = sizes[i];

			failed_with(kslab_heap_malloc(&t.heap, n), KSLAB_TOO_LARGE);
			failed_with(kslab_heap_zalloc(&t.heap, n), KSLAB_TOO_LARGE);
			failed_with(kslab_heap_calloc(&t.heap, 1, n), KSLAB_TOO_LARGE);
			failed_with(kslab_heap_realloc(&t.heap, p, n), KSLAB_TOO_LARGE);
			failed_with(kslab_heap_realloc(&t.heap, large, n), KSLAB_TOO_LARGE);
			failed_with(kslab_heap_aligned_alloc(&t.heap, 64, n), KSLAB_TOO_LARGE);
			failed_with(kslab_heap_aligned_alloc(&t.heap, 4 * PAGE, n),
				    KSLAB_TOO_LARGE);
			failed_with(kslab_heap_alloc(&t.heap, n, 1,
						     KSLAB_ZERO | KSLAB_NOWAIT | KSLAB_RESERVE),
				    KSLAB_TOO_LARGE);
			assert_true(kslab_heap_malloc_bulk(&t.heap, n, 3, out) == 0);
			assert_int_equal(kslab_heap_last_error(&t.heap), KSLAB_TOO_LARGE);
			assert_false(kslab_heap_reserve(&t.heap, n, 1));
			assert_int_equal(kslab_heap_last_error(&t.heap), KSLAB_TOO_LARGE);
			assert_true(kslab_heap_good_size(&t.heap, n) == 0);
		}
	}
	assert_true(heap_image_is_unchanged(&image));
	put(p);
	put(large);
	end(&t);
}

/*
 * From a page to the end of the address space nothing wraps: served with that length, or refused.
 */
static void every_size_is_served_whole_or_refused(void **state)
{
	size_t served = 0, refusals = 0;

	(void)state;
	begin(&t, &single_frames);
	for (unsigned bit = 0; bit < 8 * sizeof(size_t); bit++) {
		for (size_t d = 0; d < 5; d++) {
			size_t n = ((size_t)1 << bit) + d - 2, good;
			void *p = kslab_heap_malloc(&t.heap, n);

			good = kslab_heap_good_size(&t.heap, n);
			testing_step(&t);
			if (p == NULL) {
				enum kslab_reason reason = kslab_heap_last_error(&t.heap);

				assert_true(reason == KSLAB_NO_PAGES || reason == KSLAB_TOO_LARGE);
				assert_true((reason == KSLAB_TOO_LARGE) == (good == 0));
				refusals++;
				continue;
			}
			served++;
			assert_true(good >= n);
			assert_true(kslab_heap_usable_size(&t.heap, p) == good);
			((volatile unsigned char *)p)[n == 0 ? 0 : n - 1] = 1;
			put(p);
		}
	}
	assert_true(served > 90 && refusals > 20);
	end(&t);
}

/* ---- row 15: size 0 -------------------------------------------------------------------------- */

static void size_zero_gives_distinct_objects_that_free_takes(void **state)
{
	void *p[40];

	(void)state;
	begin(&t, &single_frames);
	for (size_t i = 0; i < TESTING_COUNT(p); i++) {
		switch (i % 7) {
		case 0:
			p[i] = kslab_heap_malloc(&t.heap, 0);
			break;
		case 1:
			p[i] = kslab_heap_zalloc(&t.heap, 0);
			break;
		case 2:
			p[i] = kslab_heap_calloc(&t.heap, 0, SIZE_MAX);
			break;
		case 3:
			p[i] = kslab_heap_realloc(&t.heap, NULL, 0);
			break;
		case 4:
			p[i] = kslab_heap_aligned_alloc(&t.heap, 256, 0);
			assert_true((uintptr_t)p[i] % 256 == 0);
			break;
		case 5:
			p[i] = kslab_heap_aligned_alloc(&t.heap, 4 * PAGE, 0);
			assert_true((uintptr_t)p[i] % (4 * PAGE) == 0);
			break;
		default:
			assert_true(kslab_heap_malloc_bulk(&t.heap, 0, 1, &p[i]) == 1);
		}
		must(p[i]);
		assert_true(kslab_heap_usable_size(&t.heap, p[i]) >= 8);
		memset(p[i], 0x5c, kslab_heap_usable_size(&t.heap, p[i]));
		for (size_t k = 0; k < i; k++)
			assert_ptr_not_equal(p[i], p[k]);
	}
	for (size_t i = 0; i < TESTING_COUNT(p); i++)
		put(p[i]);
	end(&t);
}

/* ---- row 16: alignment ----------------------------------------------------------------------- */

static void alignments_that_are_none_are_refused(void **state)
{
	static const size_t aligns[] = { 0,	      3,	5,	  6,	    7,
					 9,	      12,	24,	  48,	    100,
					 PAGE - 1,    PAGE + 1, 3 * PAGE, SIZE_MAX, SIZE_MAX - 1,
					 SIZE_MAX / 2 };
	static const size_t sizes[] = { 0, 1, 64, PAGE, 3 * PAGE, SIZE_MAX };
	struct heap_image image;
	void *p;

	(void)state;
	begin(&t, &single_frames);
	p = get(64);
	heap_image_take(&image, &t.heap);
	for (size_t a = 0; a < TESTING_COUNT(aligns); a++) {
		for (size_t i = 0; i < TESTING_COUNT(sizes); i++) {
			failed_with(kslab_heap_aligned_alloc(&t.heap, aligns[a], sizes[i]),
				    KSLAB_BAD_ALIGNMENT);
			failed_with(kslab_heap_alloc(&t.heap, sizes[i], aligns[a], KSLAB_ZERO),
				    KSLAB_BAD_ALIGNMENT);
		}
	}
	assert_true(heap_image_is_unchanged(&image));
	put(p);
	end(&t);
}

static void every_alignment_is_kept_or_refused(void **state)
{
	static const size_t sizes[] = { 0,    1,    8,	  24,	    63,	      65,   100,
					1000, 2049, PAGE, PAGE + 1, 5 * PAGE, 20000 };
	static const struct kslab_config *const configs[] = { &single_frames, &long_pages };
	size_t served = 0, refusals = 0;

	(void)state;
	for (unsigned variant = 0; variant < 6; variant++) {
		begin(&t, configs[variant % 2]);
		t.source.unaligned = variant / 2 == 1;
		t.source.longest_run = variant / 2 == 2 ? 1 : 0;
		for (size_t i = 0; i < TESTING_COUNT(sizes); i++) {
			for (unsigned bit = 0; bit < 8 * sizeof(size_t); bit++) {
				size_t align = (size_t)1 << bit;
				void *p = kslab_heap_aligned_alloc(&t.heap, align, sizes[i]);

				testing_step(&t);
				if (p == NULL) {
					refusals++;
					/* Only for want of a run that is long enough. */
					assert_true(
						align > (variant / 2 != 2 ? 1024 * PAGE : PAGE) ||
						(variant / 2 == 2 && sizes[i] > PAGE));
					continue;
				}
				served++;
				assert_true(((uintptr_t)p & (align - 1)) == 0);
				assert_true(kslab_heap_usable_size(&t.heap, p) >= sizes[i]);
				memset(p, 0x3d, kslab_heap_usable_size(&t.heap, p));
				put(p);
			}
		}
		end(&t);
	}
	assert_true(served > 1000 && refusals > 500);
}

/* ---- row 17: no pages ------------------------------------------------------------------------ */

static void *allocate_kind(unsigned kind)
{
	switch (kind) {
	case 0:
		return kslab_heap_malloc(&t.heap, 64);
	case 1:
		return kslab_heap_zalloc(&t.heap, 2048);
	case 2:
		return kslab_heap_malloc(&t.heap, 3 * PAGE);
	case 3:
		return kslab_heap_aligned_alloc(&t.heap, 4 * PAGE, 100);
	default:
		return kslab_heap_calloc(&t.heap, 100, 300);
	}
}

/* On a heap that has nothing yet each call of the source matters: fail each of them, one by one. */
static void each_failure_of_the_page_source_is_clean(void **state)
{
	size_t tried = 0;

	(void)state;
	for (unsigned kind = 0; kind < 5; kind++) {
		for (size_t n = 1;; n++) {
			struct kslab_stats stats;
			void *p;

			begin(&t, &single_frames);
			fake_source_fail_from(&t.source, n);
			p = allocate_kind(kind);
			if (t.source.refusals == 0) {
				assert_non_null(p);
				put(p);
				end(&t);
				break;
			}
			tried++;
			failed_with(p, KSLAB_NO_PAGES);
			kslab_heap_stats(&t.heap, &stats);
			assert_true(stats.live_objects == 0 && stats.large_blocks == 0 &&
				    stats.large_pages == 0);
			assert_true(stats.pages_in_use == t.source.pages_out);
			assert_true(stats.pages_in_use == stats.metadata_pages);
			assert_true(n > 1 || stats.pages_in_use == 0);
			fake_source_fail_from(&t.source, 0);
			put(must(allocate_kind(kind))); /* and works when there is memory again */
			end(&t);
		}
	}
	assert_true(tried >= 10);
}

/* A heap in use: the counts and contents stay, whatever the call looked at on its way to NULL. */
static void memory_that_is_out_changes_no_count(void **state)
{
	struct kslab_class_stats before[KSLAB_CLASSES], after;
	struct kslab_stats stats, now;
	void *p[200];
	size_t n = 0;

	(void)state;
	begin(&t, &single_frames);
	for (; n < 60; n++)
		p[n] = get(n % 2 != 0 ? 64 : 1024);
	fake_source_fail_from(&t.source, 1);
	for (; (p[n] = kslab_heap_malloc(&t.heap, 64)) != NULL; n++) /* use up what is free */
		assert_true(n + 1 < TESTING_COUNT(p));
	for (size_t i = 0; i < n; i++)
		memset(p[i], (int)i, 64);
	kslab_heap_stats(&t.heap, &stats);
	for (unsigned cls = 0; cls < KSLAB_CLASSES; cls++)
		assert_true(kslab_heap_class_stats(&t.heap, cls, &before[cls]));
	for (unsigned round = 0; round < 100; round++) {
		failed_with(kslab_heap_malloc(&t.heap, 64), KSLAB_NO_PAGES);
		failed_with(kslab_heap_malloc(&t.heap, 3 * PAGE), KSLAB_NO_PAGES);
		failed_with(kslab_heap_aligned_alloc(&t.heap, 8 * PAGE, 3 * PAGE), KSLAB_NO_PAGES);
		failed_with(kslab_heap_realloc(&t.heap, p[1], 3 * PAGE), KSLAB_NO_PAGES);
		assert_false(kslab_heap_reserve(&t.heap, 64, 1000));
		testing_step(&t);
	}
	kslab_heap_stats(&t.heap, &now);
	assert_true(now.pages_in_use == stats.pages_in_use &&
		    now.metadata_pages == stats.metadata_pages);
	assert_true(now.live_objects == stats.live_objects &&
		    now.object_bytes == stats.object_bytes);
	assert_true(now.empty_pages == stats.empty_pages && now.large_blocks == 0);
	for (unsigned cls = 0; cls < KSLAB_CLASSES; cls++) {
		assert_true(kslab_heap_class_stats(&t.heap, cls, &after));
		assert_memory_equal(&after, &before[cls], sizeof(after));
	}
	for (size_t i = 0; i < n; i++)
		for (size_t k = 0; k < 64; k++)
			assert_int_equal(((unsigned char *)p[i])[k], (unsigned char)i);
	while (n-- != 0)
		put(p[n]);
	end(&t);
}

/*
 * Two thousand failures in the middle of a request cost at most the page that the first of them
 * fetched.
 */
static void failures_do_not_eat_memory(void **state)
{
	size_t out;
	void *keep;

	(void)state;
	begin(&t, &single_frames);
	keep = get(64);
	out = t.source.pages_out;
	fake_source_protect(&t.source, 2048, 1, true);
	for (unsigned i = 0; i < 2000; i++) {
		/*
		 * A page far away needs a leaf of the map: a record in a chunk, then a page, and
		 * that one fails.
		 */
		t.source.force = true;
		t.source.forced = t.source.memory + 2048 * (size_t)PAGE;
		fake_source_fail_at(&t.source,
				    t.heap.meta.bump_end - t.heap.meta.bump >= 64 ? 2 : 3);
		assert_null(kslab_heap_malloc(&t.heap, 200));
		assert_int_equal(kslab_heap_last_error(&t.heap), KSLAB_NO_PAGES);
		testing_step(&t);
	}
	fake_source_fail_at(&t.source, 0);
	print_message("# 2000 failures took %zu pages\n", t.source.pages_out - out);
	assert_true(t.source.pages_out <= out + 1);
	put(keep);
	end(&t);
}

/* ---- rows 18, 19: pages that can't be used --------------------------------------------------- */

static void a_page_is_refused(void *page, size_t n, size_t page_bytes, bool goes_back)
{
	struct kslab_stats before, after;
	struct heap_image image;
	size_t returns = t.source.forced_returns;

	(void)kslab_heap_reclaim(&t.heap, SIZE_MAX); /* so that there is nothing to fall back on */
	kslab_heap_stats(&t.heap, &before);
	t.source.force = true;
	t.source.forced = page;
	/* The next calls fail, so that the refusal is all that happens. */
	fake_source_fail_from(&t.source, 2);
	heap_image_take(&image, &t.heap);
	assert_null(kslab_heap_malloc(&t.heap, n));
	/* The request for a reclaim is the one thing that a failed allocation leaves behind. */
	heap_image_skip(&image, &t.heap.reclaim_epoch, sizeof(t.heap.reclaim_epoch));
	heap_image_skip(&image, &t.heap.boot_zone.reclaim_epoch,
			sizeof(t.heap.boot_zone.reclaim_epoch));
	heap_image_skip(&image, &t.heap.boot_zone.counters, sizeof(t.heap.boot_zone.counters));
	heap_image_skip(&image, &t.heap.run_limit, sizeof(t.heap.run_limit));
	assert_true(heap_image_is_unchanged(&image));
	assert_int_equal(kslab_heap_last_error(&t.heap), KSLAB_NO_PAGES);
	assert_true(t.recorder.count == t.faults + 1);
	assert_int_equal(t.recorder.last.fault, KSLAB_FAULT_BAD_PAGE);
	assert_ptr_equal(t.recorder.last.pointer, page);
	assert_ptr_equal(t.recorder.last.page, page);
	assert_true(t.recorder.last.page_bytes == page_bytes);
	assert_int_equal(t.recorder.last.cpu, fake_cpu);
	assert_non_null(t.recorder.last.what);
	assert_true(t.source.forced_returns == returns + (goes_back ? 1 : 0));
	t.source.force = false;
	t.source.forced = NULL;
	fake_source_fail_from(&t.source, 0);
	testing_fault(&t, KSLAB_FAULT_BAD_PAGE);
	kslab_heap_stats(&t.heap, &after);
	assert_true(after.pages_in_use == before.pages_in_use);
}

static void a_misaligned_page_is_reported_and_given_back(void **state)
{
	static unsigned char junk[4 * PAGE];
	static const size_t offsets[] = { 1, 8, 64, PAGE / 2, PAGE - 1 };
	unsigned char *aligned =
		(unsigned char *)(((uintptr_t)junk + PAGE - 1) & ~(uintptr_t)(PAGE - 1));

	(void)state;
	begin(&t, &single_frames);
	a_page_is_refused(aligned + 8, 64, PAGE, true); /* as the very first page */
	put(get(64));
	put(get(3 * PAGE));
	memset(junk, 0x11, sizeof(junk));
	for (size_t i = 0; i < TESTING_COUNT(offsets); i++) {
		a_page_is_refused(aligned + offsets[i], 200, PAGE, true);
		a_page_is_refused(aligned + offsets[i], 3 * PAGE, 3 * PAGE, true);
	}
	for (size_t i = 0; i < sizeof(junk); i++)
		assert_int_equal(junk[i], 0x11);
	end(&t);
}

static void a_page_that_wraps_the_address_space_is_refused(void **state)
{
	(void)state;
	begin(&t, &single_frames);
	put(get(64));
	put(get(3 * PAGE));
	a_page_is_refused((void *)(UINTPTR_MAX & ~(uintptr_t)(PAGE - 1)), 3 * PAGE, 3 * PAGE, true);
	a_page_is_refused((void *)(UINTPTR_MAX & ~(uintptr_t)(2 * PAGE - 1)), 3 * PAGE, 3 * PAGE,
			  true);
	end(&t);
}

static void a_page_that_is_ours_already_is_reported_and_not_given_back(void **state)
{
	unsigned char *p, *large;

	(void)state;
	begin(&t, &single_frames);
	p = get(64);
	large = get(4 * PAGE);
	{
		unsigned char *page = (unsigned char *)((uintptr_t)p & ~(uintptr_t)(PAGE - 1));
		unsigned char *meta = (unsigned char *)t.heap.meta.chunks->address;

		a_page_is_refused(page, 200, PAGE, false); /* an object page */
		a_page_is_refused(large, 200, PAGE, false); /* a large block's first page */
		a_page_is_refused(large + 3 * PAGE, 200, PAGE, false); /* its last */
		a_page_is_refused(meta, 200, PAGE, false); /* metadata */
		/* overlapping at its end */
		a_page_is_refused(large - 2 * PAGE, 3 * PAGE, 3 * PAGE, false);
		/* and at its beginning */
		a_page_is_refused(large + 3 * PAGE, 3 * PAGE, 3 * PAGE, false);
		a_page_is_refused(large, 4 * PAGE, 4 * PAGE, false); /* exactly */
		a_page_is_refused(large - 4 * PAGE, 16 * PAGE, 16 * PAGE, false); /* round it */
	}
	put(p);
	put(large);
	end(&t);
}

static void a_page_of_a_region_is_reported_and_not_used(void **state)
{
	unsigned char *region;

	(void)state;
	begin(&t, &single_frames);
	region = fake_source_take(&t.source, 16);
	put(get(64));
	assert_int_equal(kslab_heap_add_region(&t.heap, region, 16 * PAGE), KSLAB_OK);
	/* A block that the region can't hold goes to the source. */
	a_page_is_refused(region + 15 * PAGE, 20 * PAGE, 20 * PAGE, false);
	a_page_is_refused(region - 19 * PAGE, 20 * PAGE, 20 * PAGE, false);
	assert_int_equal(kslab_heap_fini(&t.heap), KSLAB_OK);
	assert_true(t.source.pages_out == 16);
	forget(&t);
}

static void a_page_of_another_heap_is_reported_and_both_are_unchanged(void **state)
{
	struct heap_image other;
	void *foreign, *large;

	(void)state;
	begin(&t, &single_frames);
	begin(&u, &single_frames);
	put(get(64));
	put(get(3 * PAGE));
	foreign = kslab_heap_malloc(&u.heap, 64);
	large = kslab_heap_malloc(&u.heap, 3 * PAGE);
	assert_non_null(foreign);
	assert_non_null(large);
	heap_image_take(&other, &u.heap);
	a_page_is_refused((void *)((uintptr_t)foreign & ~(uintptr_t)(PAGE - 1)), 200, PAGE, false);
	a_page_is_refused((unsigned char *)large + 2 * PAGE, 200, PAGE, false);
	a_page_is_refused((void *)u.heap.meta.chunks->address, 200, PAGE, false);
	assert_true(heap_image_is_unchanged(&other));
	kslab_heap_free(&u.heap, foreign);
	kslab_heap_free(&u.heap, large);
	end(&u);
	end(&t);
}

static void a_page_set_aside_for_emergencies_is_ours_already(void **state)
{
	const struct kslab_config config = { .max_page_bytes = PAGE, .emergency_pages = 3 };

	(void)state;
	begin(&t, &config);
	put(get(64));
	a_page_is_refused((void *)t.heap.emergency.root, 200, PAGE, false);
	end(&t);
}

static void a_free_page_of_another_heaps_region_is_of_another_heap(void **state)
{
	unsigned char *region;

	(void)state;
	begin(&t, &single_frames);
	begin(&u, &single_frames);
	region = fake_source_take(&u.source, 16);
	assert_int_equal(kslab_heap_add_region(&u.heap, region, 16 * PAGE), KSLAB_OK);
	put(get(64));
	a_page_is_refused(region + 8 * PAGE, 200, PAGE, false);
	end(&t);
	assert_int_equal(kslab_heap_fini(&u.heap), KSLAB_OK);
	forget(&u);
}

/* A page that was refused decides nothing: the window lies where the first good one is. */
static void a_refused_page_does_not_place_the_window(void **state)
{
	void *foreign;

	(void)state;
	begin(&t, &single_frames);
	begin(&u, &single_frames);
	foreign = kslab_heap_malloc(&u.heap, 64);
	assert_non_null(foreign);
	t.source.force = true;
	t.source.forced = (void *)((uintptr_t)foreign & ~(uintptr_t)(PAGE - 1));
	fake_source_fail_from(&t.source, 2);
	assert_null(kslab_heap_malloc(&t.heap, 64));
	testing_fault(&t, KSLAB_FAULT_BAD_PAGE);
	assert_false(t.heap.window_placed);
	t.source.forced = NULL;
	fake_source_fail_from(&t.source, 0);
	put(get(64));
	end(&t);
	kslab_heap_free(&u.heap, foreign);
	end(&u);
}

/* Row 20: memory is never read before it is written, whatever it holds. */
static void pages_may_hold_anything(void **state)
{
	struct testing_random random = testing_seed("contents", 20);

	(void)state;
	for (unsigned pattern = 0; pattern < 6; pattern++) {
		static _Alignas(16 * PAGE) unsigned char memory[64 * PAGE];
		static struct kslab_heap heap;
		static void *p[400];
		const struct kslab_config config = { .max_page_bytes =
							     pattern % 2 != 0 ? PAGE : 8 * PAGE,
						     .report = recorder_report,
						     .report_ctx = &t.recorder };

		memset(&t.recorder, 0, sizeof(t.recorder));
		for (size_t i = 0; i < sizeof(memory); i++)
			memory[i] = pattern < 4 ? (unsigned char)(0x55u * pattern)
						: (unsigned char)testing_random_next(&random);
		memset(&heap, (int)(0x55u * pattern), sizeof(heap));
		assert_int_equal(kslab_heap_init(&heap, &config), KSLAB_OK);
		assert_int_equal(kslab_heap_add_region(&heap, memory + 3, sizeof(memory) - 5),
				 KSLAB_OK);
		for (unsigned step = 0; step < 4000; step++) {
			size_t i = testing_random_below(&random, TESTING_COUNT(p));

			if (p[i] == NULL) {
				p[i] = kslab_heap_malloc(&heap,
							 testing_random_below(&random, 1500));
			} else {
				kslab_heap_free(&heap, p[i]);
				p[i] = NULL;
			}
			if (step % 16 == 0)
				assert_true(kslab_heap_check(&heap, NULL));
		}
		for (size_t i = 0; i < TESTING_COUNT(p); i++) {
			kslab_heap_free(&heap, p[i]);
			p[i] = NULL;
		}
		assert_true(kslab_heap_check(&heap, NULL));
		assert_true(t.recorder.count == 0);
		assert_int_equal(kslab_heap_fini(&heap), KSLAB_OK);
	}
}

/* ---- row 27: destroyed with live objects ----------------------------------------------------- */

static void destroying_a_cache_with_live_objects_is_refused(void **state)
{
	struct kslab_cache cache;
	struct heap_image image;
	unsigned char *p[3 * (PAGE / 104)], *lowest;
	const size_t n = TESTING_COUNT(p);

	(void)state;
	begin(&t, &single_frames);
	online(1);
	assert_int_equal(kslab_heap_cache_init(&t.heap, &cache, "cache", 104, 8, NULL, NULL),
			 KSLAB_OK);
	for (size_t i = 0; i < n; i++) {
		fake_cpu = i % 5 == 0; /* some on CPU 1 */
		p[i] = must(kslab_cache_alloc(&cache));
	}
	fake_cpu = 0;
	for (size_t live = n; live != 0; live--) {
		const struct kslab_report *report = &t.recorder.last;
		const struct kslab_page *page;
		bool known = false;

		heap_image_take(&image, &t.heap);
		heap_image_add(&image, &cache, sizeof(cache));
		assert_int_equal(kslab_cache_destroy(&cache), KSLAB_BAD_ARGUMENT);
		testing_fault(&t, KSLAB_FAULT_LIVE_OBJECTS);
		assert_true(report->count == live);
		for (size_t i = 0; i < live; i++)
			known = known || report->object == p[i];
		assert_true(known);
		page = page_of(report->object);
		assert_true(report->object_bytes == 104);
		assert_ptr_equal(report->page, (void *)page->data);
		assert_true(report->page_bytes == PAGE);
		assert_int_equal(report->cpu, 0);
		assert_non_null(report->caller);
		assert_true(heap_image_is_unchanged(&image));
		lowest = p[live - 1];
		kslab_cache_free(&cache, lowest);
		testing_step(&t);
	}
	destroy(&cache);
	testing_step(&t);
	end(&t);
}

static void forced_destroy_counts_what_is_lost_and_gives_every_page_back(void **state)
{
	struct kslab_cache cache;
	struct want want;
	void *p[100], *plain;

	(void)state;
	begin(&t, &single_frames);
	online(1);
	plain = get(200);
	assert_int_equal(kslab_heap_cache_init(&t.heap, &cache, "cache", 200, 0, NULL, NULL),
			 KSLAB_OK);
	for (size_t i = 0; i < TESTING_COUNT(p); i++) {
		fake_cpu = i % 2;
		p[i] = must(kslab_cache_alloc(&cache));
	}
	fake_cpu = 0;
	for (size_t i = 0; i < 40; i++) { /* local and remote frees, mail pending */
		kslab_cache_free(&cache, p[i]);
		testing_step(&t);
	}
	assert_true(kslab_cache_destroy_forced(&cache) == 60);
	testing_step(&t);
	destroy(&cache);
	want = want_nothing(KSLAB_FAULT_DOUBLE_FREE, p[70]);
	refused_at(&doors[0], &everybody[0], &want, 200);
	put(plain);
	end(&t);
}

static void ending_a_heap_with_live_objects_is_refused(void **state)
{
	struct heap_image image;
	void *p, *large;

	(void)state;
	begin(&t, &single_frames);
	online(1);
	p = get(64);
	large = get(3 * PAGE);
	for (size_t live = 2; live != 0; live--) {
		heap_image_take(&image, &t.heap);
		assert_int_equal(kslab_heap_fini(&t.heap), KSLAB_BAD_ARGUMENT);
		testing_fault(&t, KSLAB_FAULT_LIVE_OBJECTS);
		assert_true(t.recorder.last.count == live);
		assert_non_null(t.recorder.last.caller);
		assert_true(heap_image_is_unchanged(&image));
		put(live == 2 ? large : p);
	}
	end(&t);
}

/* A heap that has ended holds no memory that a stray call could write to. */
static void calls_after_the_end_of_a_heap_touch_nothing(void **state)
{
	struct want want;
	void *p;

	(void)state;
	begin(&t, &single_frames);
	online(1);
	online(2);
	p = get(64);
	put(p);
	/* from here on its pages can't be touched */
	assert_int_equal(kslab_heap_fini(&t.heap), KSLAB_OK);
	assert_true(t.source.pages_out == 0);
	for (unsigned cpu = 0; cpu < KSLAB_CFG_CPUS; cpu++) {
		fake_cpu = cpu;
		assert_null(kslab_heap_malloc(&t.heap, 64));
		assert_null(kslab_heap_zalloc(&t.heap, 3 * PAGE));
		assert_int_equal(kslab_heap_last_error(&t.heap), KSLAB_NOT_INITIALISED);
		want = want_nothing(KSLAB_FAULT_FOREIGN_POINTER, p);
		for (size_t d = 0; d < TESTING_COUNT(doors); d++) {
			assert_null(doors[d].call(p, 64));
			check_report(&t.recorder.last, &want, cpu, doors[d].name);
			testing_fault(&t, KSLAB_FAULT_FOREIGN_POINTER);
		}
		assert_true(kslab_heap_reclaim(&t.heap, 1) == 0);
		kslab_heap_idle(&t.heap);
		assert_true(kslab_heap_quiesce(&t.heap));
		assert_int_equal(kslab_heap_fini(&t.heap), KSLAB_NOT_INITIALISED);
	}
	fake_cpu = 0;
}

/* ---- row 28: free needs no memory ------------------------------------------------------------ */

static void free_works_while_memory_is_out(void **state)
{
	static void *p[6 * KSLAB_CFG_CPUS][40];
	struct kslab_cache cache;
	struct kslab_stats stats;
	size_t calls, kinds = TESTING_COUNT(p);

	(void)state;
	begin(&t, &single_frames);
	online(1);
	online(2);
	assert_int_equal(kslab_heap_cache_init(&t.heap, &cache, "cache", 500, 0, NULL, NULL),
			 KSLAB_OK);
	for (size_t k = 0; k < kinds; k++) {
		for (size_t i = 0; i < TESTING_COUNT(p[k]); i++) {
			fake_cpu = (unsigned)i % 3;
			p[k][i] =
				must(k % 6 == 0 ? kslab_cache_alloc(&cache)
						: kslab_heap_malloc(&t.heap, k % 6 == 1 ? 5 * PAGE
											: 40 * k));
		}
	}
	fake_source_fail_from(&t.source, 1);
	calls = t.source.alloc_calls;
	for (size_t k = 0; k < kinds; k++) {
		for (size_t i = 0; i < TESTING_COUNT(p[k]); i++) {
			/*
			 * The owner, another CPU, one that is not online, and an interrupt without
			 * a zone.
			 */
			struct kslab_zone *zone;

			fake_cpu = (unsigned)(i + k) % KSLAB_CFG_CPUS;
			zone = t.heap.zone[fake_cpu];
			if (i % 5 == 0)
				zone->owner.key = 0;
			if (k % 6 == 0)
				kslab_cache_free(&cache, p[k][i]);
			else
				kslab_heap_free(&t.heap, p[k][i]);
			if (zone != &kslab_zone_none)
				zone->owner.key = (uintptr_t)zone;
			testing_step(&t);
		}
	}
	assert_true(t.source.alloc_calls == calls);
	for (unsigned cpu = 0; cpu < 3; cpu++) {
		fake_cpu = cpu;
		(void)kslab_heap_quiesce(&t.heap);
	}
	fake_cpu = 0;
	kslab_heap_stats(&t.heap, &stats);
	assert_true(stats.live_objects == 0 && stats.large_blocks == 0);
	assert_true(t.source.alloc_calls == calls);
	fake_source_fail_from(&t.source, 0);
	destroy(&cache);
	end(&t);
}

/* ---- row 29: re-entry ------------------------------------------------------------------------ */

/* Everything that a callback might think of. Returns with the heap as it was, but for pages. */
static size_t reentries, reentry_depth, reentry_failures;

static void reenter(void)
{
	static const size_t sizes[] = { 8, 64, 700, 2048, 3 * PAGE };
	struct kslab_stats stats;

	if (reentry_depth >= 2)
		return;
	reentry_depth++;
	reentries++;
	for (size_t i = 0; i < TESTING_COUNT(sizes); i++) {
		unsigned char *p = kslab_heap_malloc(&t.heap, sizes[i]), *q;

		if (p == NULL) {
			reentry_failures++;
			continue;
		}
		memset(p, 0x42, sizes[i]);
		q = kslab_heap_realloc(&t.heap, p, sizes[i] + 600);
		if (q == NULL)
			q = p;
		else
			assert_true(q[0] == 0x42 && q[sizes[i] - 1] == 0x42);
		kslab_heap_free(&t.heap, q);
	}
	kslab_heap_stats(&t.heap, &stats);
	assert_true(kslab_heap_check(&t.heap, NULL));
	kslab_heap_idle(&t.heap);
	(void)kslab_heap_reclaim(&t.heap, 1);
	(void)kslab_heap_quiesce(&t.heap);
	reentry_depth--;
}

static void reenter_from_pages(struct fake_source *source, size_t pages)
{
	on_pages(source, pages);
	reenter();
}

static void reenter_from_report(struct recorder *recorder, const struct kslab_report *report)
{
	on_report(recorder, report);
	reenter();
}

static void begin_reentry(const struct kslab_config *config)
{
	begin(&t, config);
	online(1);
	reentries = reentry_depth = reentry_failures = 0;
}

/* Random work while every callback works, too. */
static void mixed_work(const char *name, unsigned steps)
{
	struct testing_random random = testing_seed(name, 29);
	static void *p[200];

	memset(p, 0, sizeof(p));
	for (unsigned step = 0; step < steps; step++) {
		size_t i = testing_random_below(&random, TESTING_COUNT(p));

		fake_cpu = (unsigned)testing_random_below(&random, 2);
		if (p[i] == NULL)
			p[i] = kslab_heap_malloc(&t.heap,
						 testing_random_below(&random,
								      1u << (4 + step % 11)));
		else {
			kslab_heap_free(&t.heap, p[i]);
			p[i] = NULL;
		}
		assert_int_equal(fake_pins, 0);
		if (step % 8 == 0)
			testing_step(&t);
	}
	for (size_t i = 0; i < TESTING_COUNT(p); i++)
		put(p[i]);
	fake_cpu = 0;
}

static void alloc_pages_may_call_the_heap(void **state)
{
	(void)state;
	begin_reentry(&single_frames);
	t.source.on_alloc = reenter_from_pages;
	mixed_work("alloc_pages re-enters", 3000);
	t.source.on_alloc = NULL;
	assert_true(reentries > 100 && reentry_failures == 0);
	end(&t);
}

static void free_pages_may_call_the_heap(void **state)
{
	const struct kslab_config config = { .max_page_bytes = PAGE,
					     .retain_bytes = KSLAB_RETAIN_NONE };

	(void)state;
	begin_reentry(&config);
	t.source.on_free = reenter_from_pages;
	mixed_work("free_pages re-enters", 3000);
	assert_true(reentries > 100 && reentry_failures == 0);
	t.source.on_free = NULL;
	end(&t);
}

static void both_callbacks_may_call_the_heap_while_memory_runs_out(void **state)
{
	struct testing_random random = testing_seed("both re-enter", 30);
	static void *p[300];

	(void)state;
	begin_reentry(&long_pages);
	t.source.on_alloc = t.source.on_free = reenter_from_pages;
	for (unsigned step = 0; step < 3000; step++) {
		size_t i = testing_random_below(&random, TESTING_COUNT(p));

		if (step % 7 == 0)
			fake_source_fail_at(&t.source, 1 + testing_random_below(&random, 4));
		if (p[i] != NULL) {
			kslab_heap_free(&t.heap, p[i]);
			p[i] = NULL;
		} else {
			p[i] = kslab_heap_malloc(&t.heap, testing_random_below(&random, 6000));
		}
		testing_step(&t);
	}
	for (size_t i = 0; i < TESTING_COUNT(p); i++)
		put(p[i]);
	assert_true(reentries > 100);
	t.source.on_alloc = t.source.on_free = NULL;
	end(&t);
}

/*
 * A source that needs the very memory that it is asked for: served or refused with REENTRY, never
 * without end.
 */
static size_t hungry_calls, hungry_refused;
static void *hungry_got[4096];
static size_t hungry_count;

static void hungry(struct fake_source *source, size_t pages)
{
	void *p;

	on_pages(source, pages);
	hungry_calls++;
	assert_true(hungry_calls < 10000);
	p = kslab_heap_malloc(&t.heap, 2048);
	if (p == NULL) {
		hungry_refused++;
		assert_int_equal(kslab_heap_last_error(&t.heap), KSLAB_REENTRY);
		return;
	}
	assert_true(hungry_count < TESTING_COUNT(hungry_got));
	hungry_got[hungry_count++] = p;
}

static void a_page_source_that_never_stops_asking_is_refused_with_reentry(void **state)
{
	void *p;

	(void)state;
	begin_reentry(&single_frames);
	hungry_calls = hungry_refused = hungry_count = 0;
	t.source.on_alloc = hungry;
	p = must(kslab_heap_malloc(&t.heap, 2048));
	assert_true(hungry_refused > 0);
	t.source.on_alloc = NULL;
	put(p);
	while (hungry_count != 0)
		put(hungry_got[--hungry_count]);
	end(&t);
}

static void the_report_hook_may_call_the_heap(void **state)
{
	struct kslab_stats stats;
	unsigned char *p, *large;

	(void)state;
	begin_reentry(&single_frames);
	t.recorder.on_report = reenter_from_report;
	for (unsigned round = 0; round < 50; round++) {
		for (size_t d = 0; d < TESTING_COUNT(doors); d++) {
			fake_cpu = round % 2;
			p = must(kslab_heap_malloc(&t.heap, 64));
			large = must(kslab_heap_malloc(&t.heap, 3 * PAGE));
			assert_null(doors[d].call(p + 8, 64));
			testing_fault(&t, KSLAB_FAULT_INTERIOR_POINTER);
			assert_null(doors[d].call(large + 8, 3 * PAGE));
			testing_fault(&t, KSLAB_FAULT_INTERIOR_POINTER);
			fake_cpu = 0;
			put(p);
			put(large);
			fake_cpu = (round + 1) % 2;
			assert_null(doors[d].call(p, 64));
			testing_fault(&t, KSLAB_FAULT_DOUBLE_FREE);
		}
	}
	fake_cpu = 0;
	t.source.force = true;
	t.source.forced = t.source.memory + 8;
	/* perhaps the second try worked */
	kslab_heap_free(&t.heap, kslab_heap_malloc(&t.heap, 7 * PAGE));
	testing_fault(&t, KSLAB_FAULT_BAD_PAGE);
	t.source.forced = NULL;
	assert_int_equal(kslab_heap_add_region(&t.heap, NULL, 100), KSLAB_BAD_ARGUMENT);
	testing_fault(&t, KSLAB_FAULT_BAD_REGION);
	assert_int_equal(kslab_heap_cpu_online(&t.heap, 77), KSLAB_BAD_ARGUMENT);
	testing_fault(&t, KSLAB_FAULT_BAD_CPU);
	p = get(64);
	assert_int_equal(kslab_heap_fini(&t.heap), KSLAB_BAD_ARGUMENT);
	testing_fault(&t, KSLAB_FAULT_LIVE_OBJECTS);
	assert_true(reentries > 900 && reentry_failures == 0);
	t.recorder.on_report = NULL;
	kslab_heap_stats(&t.heap, &stats);
	assert_true(stats.live_objects == 1 && stats.large_blocks == 0);
	put(p);
	end(&t);
}

/* A hook that does wrong itself is told so, one level deeper. */
static void *hook_wrong;

static void wrong_in_report(struct recorder *recorder, const struct kslab_report *report)
{
	void *p = hook_wrong;

	on_report(recorder, report);
	hook_wrong = NULL;
	kslab_heap_free(&t.heap, p);
}

static void a_fault_inside_the_report_hook_is_reported(void **state)
{
	unsigned char *p;
	struct heap_image image;

	(void)state;
	begin(&t, &single_frames);
	online(1);
	p = get(64);
	t.recorder.on_report = wrong_in_report;
	hook_wrong = p + 16;
	heap_image_take(&image, &t.heap);
	kslab_heap_free(&t.heap, p + 8);
	assert_true(heap_image_is_unchanged(&image));
	assert_true(t.recorder.count == 2 && t.recorder.kinds[KSLAB_FAULT_INTERIOR_POINTER] == 2);
	t.faults = 2;
	t.recorder.on_report = on_report;
	put(p);
	end(&t);
}

static void construct_and_reenter(void *object, void *ctx)
{
	(void)ctx;
	look_at_context();
	memset(object, 0x66, 300);
	reenter();
}

static void a_constructor_may_call_the_heap(void **state)
{
	struct kslab_cache cache;
	unsigned char *p[60];

	(void)state;
	begin_reentry(&single_frames);
	assert_int_equal(kslab_heap_cache_init(&t.heap, &cache, "cache", 300, 0,
					       construct_and_reenter, NULL),
			 KSLAB_OK);
	for (size_t i = 0; i < TESTING_COUNT(p); i++) {
		p[i] = must(kslab_cache_alloc(&cache));
		assert_true(p[i][0] == 0x66 && p[i][299] == 0x66);
	}
	assert_true(reentries >= 60 && reentry_failures == 0);
	for (size_t i = 0; i < TESTING_COUNT(p); i++) {
		kslab_cache_free(&cache, p[i]);
		testing_step(&t);
	}
	assert_int_equal(kslab_cache_destroy(&cache), KSLAB_OK);
	end(&t);
}

/* Callbacks run unpinned: a preemptible kernel's may sleep. Every way that leads to free_pages. */
static void callbacks_run_unpinned_and_unmasked_from_every_call(void **state)
{
	const struct kslab_config config = { .max_page_bytes = PAGE };
	void *p[64];

	(void)state;
	for (unsigned way = 0; way < 6; way++) {
		begin(&t, &config);
		online(1);
		contract_errors = 0;
		for (size_t i = 0; i < TESTING_COUNT(p); i++)
			p[i] = get(2048);
		for (size_t i = 0; i < TESTING_COUNT(p); i++)
			put(p[i]);
		assert_true(t.source.free_calls == 0);
		switch (way) {
		case 0:
			assert_true(kslab_heap_reclaim(&t.heap, SIZE_MAX) != 0);
			break;
		case 1:
			kslab_heap_set_retention(&t.heap, 0);
			kslab_heap_idle(&t.heap);
			break;
		case 2:
			kslab_heap_set_retention(&t.heap, 0);
			assert_true(kslab_heap_quiesce(&t.heap));
			break;
		case 3:
			kslab_heap_set_retention(&t.heap, 0);
			put(get(64));
			break;
		case 4:
			fake_source_fail_at(&t.source, 1);
			put(get(3 * PAGE));
			break;
		default:
			fake_source_fail_at(&t.source, 1);
			put(get(64));
			break;
		}
		assert_true(t.source.free_calls != 0);
		print_message("# way %u: %zu callbacks out of contract\n", way, contract_errors);
		assert_true(contract_errors == 0);
		end(&t);
	}
}

/* ---- row 34: counters at their limits -------------------------------------------------------- */

static void set_limits(void *ctx, struct kslab_zone *zone)
{
	(void)ctx;
	memset(&zone->counters, 0xff, sizeof(zone->counters));
	zone->owner.harvested = SIZE_MAX;
	zone->reclaim_epoch = UINT32_MAX;
}

static void counters_that_wrap_harm_nothing(void **state)
{
	struct kslab_stats stats;

	(void)state;
	begin(&t, &single_frames);
	online(1);
	kslab_heap_each_zone(&t.heap, set_limits, NULL);
	t.heap.reclaim_epoch = UINT32_MAX;
	t.heap.lock.next = t.heap.lock.serving = UINT32_MAX - 5;
	t.heap.lock_acquisitions = UINT64_MAX - 3;
	mixed_work("limits", 1000);
	(void)kslab_heap_reclaim(&t.heap, SIZE_MAX); /* the epoch wraps to 0 */
	fake_cpu = 1;
	kslab_heap_idle(&t.heap);
	fake_cpu = 0;
	testing_step(&t);
	assert_true(t.heap.reclaim_epoch == 0);
	assert_true(t.heap.lock.next == t.heap.lock.serving && t.heap.lock.next < UINT32_MAX / 2);
	kslab_heap_stats(&t.heap, &stats);
	assert_true(stats.live_objects == 0 && stats.empty_pages == 0);
	assert_true(stats.pages_in_use == stats.metadata_pages);
	kslab_heap_each_zone(&t.heap, set_limits, NULL);
	t.heap.reclaim_epoch = UINT32_MAX;
	mixed_work("limits again", 1000);
	end(&t);
}

/* ---- row 35: broken lists -------------------------------------------------------------------- */

static void a_broken_list_is_reported_and_no_link_of_it_is_followed(void **state)
{
	const size_t slots = PAGE / 1024;
	void *p[5 * PAGE / 1024];
	struct kslab_page *a, *b, *c, a_before, c_before;

	(void)state;
	begin(&t, &single_frames);
	for (size_t i = 0; i < TESTING_COUNT(p); i++)
		p[i] = get(1024);
	for (size_t page = 0; page < 3; page++) /* three partial pages */
		put(p[page * slots]);
	a = page_of(p[0]);
	b = page_of(p[slots]);
	c = page_of(p[2 * slots]);
	assert_true(a->state == KSLAB_PAGE_PARTIAL && a->next == b && b->next == c);
	b->prev = c; /* as if it had been inserted a second time */
	memcpy(&a_before, a, sizeof(a_before));
	memcpy(&c_before, c, sizeof(c_before));
	for (size_t i = slots + 1; i < 2 * slots; i++) /* becomes empty: would be unlinked */
		kslab_heap_free(&t.heap, p[i]);
	assert_true(t.recorder.count == 1);
	assert_int_equal(t.recorder.last.fault, KSLAB_FAULT_CORRUPT_METADATA);
	assert_memory_equal(a, &a_before, sizeof(a_before));
	assert_memory_equal(c, &c_before, sizeof(c_before));
}

static void a_broken_list_of_large_blocks_is_reported(void **state)
{
	void *p[3];
	struct kslab_page *first, *last, first_before, last_before;

	(void)state;
	begin(&t, &single_frames);
	for (size_t i = 0; i < 3; i++)
		p[i] = get(3 * PAGE);
	first = page_of(p[0]);
	last = page_of(p[2]);
	page_of(p[1])->prev = last;
	memcpy(&first_before, first, sizeof(first_before));
	memcpy(&last_before, last, sizeof(last_before));
	kslab_heap_free(&t.heap, p[1]);
	kslab_heap_reclaim(&t.heap, SIZE_MAX); /* a zone may have kept the block as a spare */
	assert_true(t.recorder.count == 1);
	assert_int_equal(t.recorder.last.fault, KSLAB_FAULT_CORRUPT_METADATA);
	assert_memory_equal(first, &first_before, sizeof(first_before));
	assert_memory_equal(last, &last_before, sizeof(last_before));
}

/* ---- row 36: CPU numbers --------------------------------------------------------------------- */

static void cpu_is_refused(enum kslab_reason answer, unsigned cpu, struct heap_image *image)
{
	assert_int_equal(answer, KSLAB_BAD_ARGUMENT);
	assert_true(heap_image_is_unchanged(image));
	testing_fault(&t, KSLAB_FAULT_BAD_CPU);
	assert_true(t.recorder.last.count == cpu);
	assert_int_equal(t.recorder.last.cpu, fake_cpu);
	assert_null(t.recorder.last.pointer);
	assert_null(t.recorder.last.page);
	assert_non_null(t.recorder.last.what);
}

static void cpu_numbers_are_checked(void **state)
{
	static const unsigned out_of_range[] = { KSLAB_CFG_CPUS, KSLAB_CFG_CPUS + 1, 65536,
						 UINT_MAX - 1, UINT_MAX };
	struct heap_image image;

	(void)state;
	begin(&t, &single_frames);
	online(1);
	for (unsigned on = 0; on < 2; on++) {
		fake_cpu = on;
		for (size_t i = 0; i < TESTING_COUNT(out_of_range); i++) {
			heap_image_take(&image, &t.heap);
			cpu_is_refused(kslab_heap_cpu_online(&t.heap, out_of_range[i]),
				       out_of_range[i], &image);
			heap_image_take(&image, &t.heap);
			cpu_is_refused(kslab_heap_cpu_offline(&t.heap, out_of_range[i]),
				       out_of_range[i], &image);
		}
		heap_image_take(&image, &t.heap); /* not the CPU that it runs on */
		cpu_is_refused(kslab_heap_cpu_online(&t.heap, 2), 2, &image);
		heap_image_take(&image, &t.heap); /* not online */
		cpu_is_refused(kslab_heap_cpu_offline(&t.heap, 2), 2, &image);
		heap_image_take(&image, &t.heap); /* CPU 0 stays */
		cpu_is_refused(kslab_heap_cpu_offline(&t.heap, 0), 0, &image);
	}
	heap_image_take(&image, &t.heap); /* twice */
	cpu_is_refused(kslab_heap_cpu_online(&t.heap, 1), 1, &image);
	assert_int_equal(kslab_heap_cpu_offline(&t.heap, 1), KSLAB_OK);
	testing_step(&t);
	heap_image_take(&image, &t.heap);
	cpu_is_refused(kslab_heap_cpu_offline(&t.heap, 1), 1, &image);
	assert_int_equal(kslab_heap_cpu_online(&t.heap, 1), KSLAB_OK);
	testing_step(&t);
	end(&t);
}

static void a_cpu_that_is_not_online_can_free_but_not_allocate(void **state)
{
	struct kslab_cache cache;
	struct heap_image image;
	void *p, *q, *large, *out[2];

	(void)state;
	begin(&t, &single_frames);
	online(1);
	assert_int_equal(kslab_heap_cache_init(&t.heap, &cache, "cache", 50, 0, NULL, NULL),
			 KSLAB_OK);
	p = get(64);
	large = get(3 * PAGE);
	q = must(kslab_cache_alloc(&cache));
	fake_cpu = 3;
	heap_image_take(&image, &t.heap);
	failed_with(kslab_heap_malloc(&t.heap, 64), KSLAB_NOT_INITIALISED);
	failed_with(kslab_heap_zalloc(&t.heap, 64), KSLAB_NOT_INITIALISED);
	failed_with(kslab_heap_aligned_alloc(&t.heap, 64, 64), KSLAB_NOT_INITIALISED);
	failed_with(kslab_cache_alloc(&cache), KSLAB_NOT_INITIALISED);
	assert_true(kslab_heap_malloc_bulk(&t.heap, 64, 2, out) == 0);
	assert_false(kslab_heap_reserve(&t.heap, 64, 1));
	assert_false(kslab_cache_reserve(&cache, 1));
	assert_true(kslab_heap_usable_size(&t.heap, p) == 64);
	assert_true(heap_image_is_unchanged(&image));
	put(p);
	put(large);
	kslab_cache_free(&cache, q);
	testing_step(&t);
	fake_cpu = 0;
	assert_int_equal(kslab_cache_destroy(&cache), KSLAB_OK);
	end(&t);
}

/*
 * A thread that is somewhere else after each callback: what it took before is judged by its owner,
 * not by the CPU.
 */
static unsigned migrate_below;

static void migrate(struct fake_source *source, size_t pages)
{
	on_pages(source, pages);
	fake_cpu = (fake_cpu + 1) % migrate_below;
}

static void a_thread_may_migrate_in_every_callback(void **state)
{
	struct testing_random random = testing_seed("migrate", 36);
	static unsigned char *p[300];
	static unsigned char mark[300];

	(void)state;
	begin(&t, &single_frames);
	online(1);
	online(2);
	kslab_heap_set_retention(&t.heap, 0);
	migrate_below = 3;
	t.source.on_alloc = t.source.on_free = migrate;
	for (unsigned step = 0; step < 6000; step++) {
		size_t i = testing_random_below(&random, TESTING_COUNT(p));

		if (p[i] == NULL) {
			size_t n = 1 + testing_random_below(&random, step % 50 == 0 ? 20000 : 3000);

			p[i] = kslab_heap_malloc(&t.heap, n);
			assert_non_null(p[i]);
			mark[i] = (unsigned char)step;
			memset(p[i], mark[i], n);
		} else {
			assert_int_equal(p[i][0], mark[i]);
			kslab_heap_free(&t.heap, p[i]);
			p[i] = NULL;
		}
		testing_step(&t);
	}
	for (size_t i = 0; i < TESTING_COUNT(p); i++) {
		put(p[i]);
		p[i] = NULL;
	}
	t.source.on_alloc = t.source.on_free = NULL;
	end(&t);
}

static void a_thread_that_migrates_to_a_cpu_that_is_not_online_leaks_nothing(void **state)
{
	struct kslab_stats stats;

	(void)state;
	begin(&t, &single_frames);
	put(get(64));
	t.source.on_alloc = migrate;
	migrate_below = 2; /* CPU 1 is not online here */
	for (unsigned round = 0; round < 20; round++) {
		fake_cpu = 0;
		failed_with(kslab_heap_malloc(&t.heap, 200), KSLAB_NOT_INITIALISED);
	}
	t.source.on_alloc = NULL;
	fake_cpu = 0;
	(void)kslab_heap_reclaim(&t.heap, SIZE_MAX);
	kslab_heap_stats(&t.heap, &stats);
	assert_true(stats.live_objects == 0 && stats.pages_in_use == stats.metadata_pages);
	end(&t);
}

/* ---- rows 37, 38, 39 (and every test above: all doors are tried) ----------------------------- */

static void realloc_to_zero_frees(void **state)
{
	struct want want;
	void *p, *large;

	(void)state;
	begin(&t, &single_frames);
	online(1);
	p = get(100);
	large = get(5 * PAGE);
	want = want_object(KSLAB_FAULT_DOUBLE_FREE, p, p);
	assert_null(kslab_heap_realloc(&t.heap, p, 0));
	testing_step(&t);
	refused(&want, 100);
	assert_null(kslab_heap_realloc(&t.heap, large, 0));
	testing_step(&t);
	want = (struct want){ KSLAB_FAULT_DOUBLE_FREE, large, large, 5 * PAGE, large, 5 * PAGE };
	refused(&want, 5 * PAGE);
	end(&t);
}

static void a_failed_realloc_leaves_the_object_valid_and_unchanged(void **state)
{
	static const size_t sizes[] = { 8, 100, 2048, 3 * PAGE };

	(void)state;
	begin(&t, &single_frames);
	for (size_t i = 0; i < TESTING_COUNT(sizes); i++) {
		unsigned char *p = get(sizes[i]);

		for (size_t k = 0; k < sizes[i]; k++)
			p[k] = (unsigned char)(k * 7 + i);
		fake_source_fail_from(&t.source, 1);
		failed_with(kslab_heap_realloc(&t.heap, p, 10 * PAGE), KSLAB_NO_PAGES);
		failed_with(kslab_heap_realloc(&t.heap, p, SIZE_MAX), KSLAB_TOO_LARGE);
		failed_with(kslab_heap_reallocarray(&t.heap, p, SIZE_MAX / 2, 3), KSLAB_OVERFLOW);
		fake_source_fail_from(&t.source, 0);
		assert_true(kslab_heap_usable_size(&t.heap, p) ==
			    kslab_heap_good_size(&t.heap, sizes[i]));
		for (size_t k = 0; k < sizes[i]; k++)
			assert_int_equal(p[k], (unsigned char)(k * 7 + i));
		put(p);
	}
	end(&t);
}

static void bulk_free_refuses_the_bad_one_and_frees_the_others(void **state)
{
	(void)state;
	begin(&t, &single_frames);
	online(1);
	for (size_t bad = 0; bad < 10; bad++) {
		for (unsigned kind = 0; kind < 4; kind++) {
			unsigned char *p[10];
			void *given[10];
			enum kslab_fault fault = KSLAB_FAULT_INTERIOR_POINTER;
			struct kslab_stats stats;

			for (size_t i = 0; i < 10; i++)
				given[i] = p[i] = get(i == 7 ? 3 * PAGE : 48);
			if (kind == 0) {
				given[bad] = p[bad] + 8;
			} else if (kind == 1) {
				given[bad] = &stats;
				fault = KSLAB_FAULT_FOREIGN_POINTER;
			} else if (kind == 2) {
				put(p[bad]);
				fault = KSLAB_FAULT_DOUBLE_FREE;
			} else {
				given[bad] = p[(bad + 1) % 10 == 7 ? 8 : (bad + 1) % 10];
				fault = KSLAB_FAULT_DOUBLE_FREE; /* twice in one array */
			}
			fake_cpu = kind % 2 != 0 && kind != 3;
			kslab_heap_free_bulk(&t.heap, 10, given);
			fake_cpu = 0;
			testing_fault(&t, fault);
			kslab_heap_stats(&t.heap, &stats);
			assert_true(stats.live_objects + stats.large_blocks == (kind == 2 ? 0 : 1));
			if (kind != 2)
				put(p[bad]);
		}
	}
	end(&t);
}

/* ---- row 40: regions ------------------------------------------------------------------------- */

static void region_is_refused(void *mem, size_t bytes)
{
	struct heap_image image;

	heap_image_take(&image, &t.heap);
	assert_int_equal(kslab_heap_add_region(&t.heap, mem, bytes), KSLAB_BAD_ARGUMENT);
	assert_true(heap_image_is_unchanged(&image));
	testing_fault(&t, KSLAB_FAULT_BAD_REGION);
	assert_ptr_equal(t.recorder.last.pointer, mem);
	assert_ptr_equal(t.recorder.last.page, mem);
	assert_true(t.recorder.last.page_bytes == bytes);
	assert_int_equal(t.recorder.last.cpu, fake_cpu);
	assert_non_null(t.recorder.last.what);
}

static void a_region_that_is_too_small_or_wraps_is_refused(void **state)
{
	static _Alignas(PAGE) unsigned char memory[4 * PAGE], before[4 * PAGE];

	(void)state;
	begin(&t, &single_frames);
	put(get(64)); /* the window is placed */
	memset(memory, 0x2e, sizeof(memory));
	memcpy(before, memory, sizeof(memory));
	region_is_refused(NULL, 100 * PAGE);
	region_is_refused(NULL, 0);
	region_is_refused(memory, 0);
	region_is_refused(memory, 1);
	region_is_refused(memory, PAGE);
	region_is_refused(memory, 2 * PAGE - 1);
	/* two pages long, but one page and the bit trees don't fit */
	region_is_refused(memory + 1, 2 * PAGE);
	region_is_refused(memory, SIZE_MAX);
	region_is_refused(memory, (size_t)0 - (uintptr_t)memory); /* ends at the very end */
	region_is_refused(memory, (size_t)0 - (uintptr_t)memory + 1); /* and one behind it */
	if (SIZE_MAX > UINT32_MAX) /* longer than any window: nobody looks at all of it */
		region_is_refused((void *)(uintptr_t)PAGE, SIZE_MAX / 2);
	region_is_refused((void *)UINTPTR_MAX, 16 * PAGE);
	region_is_refused((void *)(UINTPTR_MAX - 16 * PAGE + 1), 16 * PAGE + 1);
	assert_memory_equal(memory, before, sizeof(memory));
	end(&t);
}

static void a_region_that_overlaps_is_refused(void **state)
{
	unsigned char *region, *p;

	(void)state;
	begin(&t, &single_frames);
	p = get(64);
	region = (unsigned char *)fake_source_take(&t.source, 64);
	assert_int_equal(kslab_heap_add_region(&t.heap, region + 16 * PAGE, 16 * PAGE), KSLAB_OK);
	testing_step(&t);
	region_is_refused(region + 16 * PAGE, 16 * PAGE); /* the same */
	region_is_refused(region, 16 * PAGE + 1); /* one byte at its beginning */
	region_is_refused(region + 32 * PAGE - 1, 16 * PAGE); /* one byte at its end */
	region_is_refused(region, 64 * PAGE); /* round it */
	region_is_refused(region + 20 * PAGE, 4 * PAGE); /* inside */
	/* an object page */
	region_is_refused((void *)((uintptr_t)p & ~(uintptr_t)(PAGE - 1)), 2 * PAGE);
	region_is_refused((void *)t.heap.meta.chunks->address, 2 * PAGE); /* metadata */
	/* beside it: served */
	assert_int_equal(kslab_heap_add_region(&t.heap, region, 16 * PAGE), KSLAB_OK);
	assert_int_equal(kslab_heap_add_region(&t.heap, region + 32 * PAGE, 16 * PAGE), KSLAB_OK);
	put(p);
	assert_int_equal(kslab_heap_fini(&t.heap), KSLAB_OK);
	assert_true(t.source.pages_out == 64);
}

static void a_region_of_another_heap_is_refused(void **state)
{
	unsigned char *region;

	(void)state;
	begin(&t, &single_frames);
	begin(&u, &single_frames);
	put(get(64));
	region = fake_source_take(&t.source, 64);
	assert_int_equal(kslab_heap_add_region(&u.heap, region, 16 * PAGE), KSLAB_OK);
	region_is_refused(region, 16 * PAGE);
	region_is_refused(region + 15 * PAGE, 16 * PAGE);
	assert_int_equal(kslab_heap_fini(&u.heap), KSLAB_OK);
	assert_int_equal(kslab_heap_fini(&t.heap), KSLAB_OK);
}

static void a_region_outside_the_window_is_refused(void **state)
{
	unsigned char *region;

	(void)state;
	begin(&t, &single_frames);
	online(1); /* from here on the window does not move */
	put(get(64));
	if (KSLAB_WINDOW_BYTES - 1 == UINTPTR_MAX)
		skip(); /* nothing lies outside */
	region = (unsigned char *)(t.heap.map.base + (uintptr_t)KSLAB_WINDOW_BYTES);
	region_is_refused(region, 16 * PAGE);
	region_is_refused(region - 8 * PAGE, 16 * PAGE);
	region_is_refused((unsigned char *)t.heap.map.base - 16 * PAGE, 16 * PAGE);
	region_is_refused((unsigned char *)t.heap.map.base - 8 * PAGE, 16 * PAGE);
	end(&t);
}

static void one_region_too_many_is_refused(void **state)
{
	unsigned char *region;

	(void)state;
	begin(&t, &single_frames);
	region = fake_source_take(&t.source, 128);
	for (unsigned i = 0; i < KSLAB_CFG_REGIONS; i++)
		assert_int_equal(kslab_heap_add_region(&t.heap, region + i * 8 * PAGE, 8 * PAGE),
				 KSLAB_OK);
	region_is_refused(region + KSLAB_CFG_REGIONS * 8 * PAGE, 8 * PAGE);
	assert_int_equal(kslab_heap_fini(&t.heap), KSLAB_OK);
}

/* On a heap that has nothing yet: the window is not placed by what was refused. */
static void a_refused_first_region_changes_nothing(void **state)
{
	static _Alignas(PAGE) unsigned char memory[4 * PAGE];

	(void)state;
	begin(&t, &single_frames);
	region_is_refused(memory + 1, 2 * PAGE);
	region_is_refused(memory, PAGE);
	assert_false(t.heap.window_placed);
	put(get(64));
	end(&t);
}

static void a_heap_whose_region_was_refused_can_be_made_again(void **state)
{
	static _Alignas(PAGE) unsigned char memory[64 * PAGE];
	static struct kslab_heap heap;
	void *p;

	(void)state;
	begin(&t, &single_frames);
	memset(&heap, 0, sizeof(heap));
	for (unsigned i = 0; i < 2; i++) {
		const struct kslab_config config = { .report = recorder_report,
						     .report_ctx = &t.recorder };
		const struct kslab_heap *h = &kslab_default_heap;

		/*
		 * kslab_heap_init_region stops the machine when it refuses: this is what it does.
		 */
		assert_int_equal(kslab_heap_init(&heap, &config), KSLAB_OK);
		assert_int_equal(kslab_heap_add_region(&heap, memory, PAGE), KSLAB_BAD_ARGUMENT);
		testing_fault(&t, KSLAB_FAULT_BAD_REGION);
		assert_int_equal(kslab_heap_fini(&heap), KSLAB_OK);
		for (unsigned n = 0; h != NULL; h = h->next_heap) {
			assert_ptr_not_equal(h, &heap);
			assert_true(n++ < 10);
		}
	}
	assert_int_equal(kslab_heap_init_region(&heap, memory + 1, sizeof(memory) - 1), KSLAB_OK);
	p = kslab_heap_malloc(&heap, 100);
	assert_non_null(p);
	kslab_heap_free(&heap, p);
	assert_int_equal(kslab_heap_fini(&heap), KSLAB_OK);
	put(get(64));
	end(&t);
}

/* ---- every fault names its caller ------------------------------------------------------------ */

static __attribute__((noinline)) void wrong_free_from_here(void *p)
{
	kslab_heap_free(&t.heap, p);
	__asm__ volatile("" ::: "memory"); /* or it would be a tail call */
}

static __attribute__((noinline)) void *wrong_realloc_from_here(void *p)
{
	void *q = kslab_heap_realloc(&t.heap, p, 77);

	__asm__ volatile("" ::: "memory");
	return q;
}

static bool is_near(const void *caller, uintptr_t function)
{
	return (uintptr_t)caller - function < 400;
}

static void faults_of_pointers_name_the_call_that_was_refused(void **state)
{
	unsigned char *p;

	(void)state;
	begin(&t, &single_frames);
	online(1);
	p = get(64);
	for (unsigned i = 0; i < 2; i++) {
		fake_cpu = i;
		wrong_free_from_here(p + 8);
		testing_fault(&t, KSLAB_FAULT_INTERIOR_POINTER);
		assert_true(is_near(t.recorder.last.caller, (uintptr_t)&wrong_free_from_here));
		wrong_free_from_here(&p);
		testing_fault(&t, KSLAB_FAULT_FOREIGN_POINTER);
		assert_true(is_near(t.recorder.last.caller, (uintptr_t)&wrong_free_from_here));
		assert_null(wrong_realloc_from_here(p + 8));
		testing_fault(&t, KSLAB_FAULT_INTERIOR_POINTER);
		assert_true(is_near(t.recorder.last.caller, (uintptr_t)&wrong_realloc_from_here));
	}
	fake_cpu = 0;
	put(p);
	wrong_free_from_here(p);
	testing_fault(&t, KSLAB_FAULT_DOUBLE_FREE);
	assert_true(is_near(t.recorder.last.caller, (uintptr_t)&wrong_free_from_here));
	end(&t);
}

static void faults_of_pages_regions_and_cpus_name_a_caller(void **state)
{
	(void)state;
	begin(&t, &single_frames);
	assert_int_equal(kslab_heap_cpu_online(&t.heap, KSLAB_CFG_CPUS), KSLAB_BAD_ARGUMENT);
	testing_fault(&t, KSLAB_FAULT_BAD_CPU);
	assert_non_null(t.recorder.last.caller);
	assert_int_equal(kslab_heap_add_region(&t.heap, NULL, 0), KSLAB_BAD_ARGUMENT);
	testing_fault(&t, KSLAB_FAULT_BAD_REGION);
	assert_non_null(t.recorder.last.caller);
	t.source.force = true;
	t.source.forced = t.source.memory + 8;
	fake_source_fail_from(&t.source, 2);
	assert_null(kslab_heap_malloc(&t.heap, 64));
	testing_fault(&t, KSLAB_FAULT_BAD_PAGE);
	assert_non_null(t.recorder.last.caller);
	t.source.forced = NULL;
	fake_source_fail_from(&t.source, 0);
	end(&t);
}

#define TEST(name) cmocka_unit_test_setup_teardown(name, setup, teardown)

int main(void)
{
	const struct CMUnitTest tests[] = {
		TEST(double_free_is_refused_back_to_back),
		TEST(double_free_is_refused_after_other_frees),
		TEST(double_free_is_refused_in_every_page_state),
		TEST(double_free_is_refused_when_the_page_has_gone_back),
		TEST(double_free_of_a_large_block_is_refused),
		TEST(double_free_after_reissue_frees_the_new_object_and_nothing_else),
		TEST(interior_pointers_are_refused_at_every_offset),
		TEST(interior_pointers_are_refused_through_every_door),
		TEST(interior_pointer_is_judged_by_the_class_of_its_own_page),
		TEST(interior_pointers_of_large_blocks_are_refused),
		TEST(pages_beside_an_aligned_large_block_are_no_object),
		TEST(slots_that_were_never_issued_are_refused),
		TEST(addresses_behind_the_last_slot_are_refused),
		TEST(metadata_is_refused),
		TEST(an_in_page_footer_is_refused),
		TEST(foreign_addresses_are_refused_and_not_dereferenced),
		TEST(unmapped_addresses_are_refused_without_a_page_fault),
		TEST(null_is_taken_by_every_door_and_does_nothing),
		TEST(an_object_of_another_heap_is_foreign_and_both_are_unchanged),
		TEST(an_object_goes_back_only_through_the_door_it_came_from),
		TEST(realloc_refuses_the_object_of_a_cache),
		TEST(sized_free_refuses_a_size_of_another_class),
		TEST(sized_free_refuses_a_wrong_length_of_a_large_block),
		TEST(sized_free_takes_what_every_allocation_of_that_size_gave),
		TEST(sized_free_names_the_fault_of_the_pointer_first),
		TEST(a_product_that_wraps_is_refused),
		TEST(huge_sizes_are_too_large_by_every_call),
		TEST(every_size_is_served_whole_or_refused),
		TEST(size_zero_gives_distinct_objects_that_free_takes),
		TEST(alignments_that_are_none_are_refused),
		TEST(every_alignment_is_kept_or_refused),
		TEST(each_failure_of_the_page_source_is_clean),
		TEST(memory_that_is_out_changes_no_count),
		TEST(failures_do_not_eat_memory),
		TEST(a_misaligned_page_is_reported_and_given_back),
		TEST(a_page_that_wraps_the_address_space_is_refused),
		TEST(a_page_that_is_ours_already_is_reported_and_not_given_back),
		TEST(a_page_of_a_region_is_reported_and_not_used),
		TEST(a_page_of_another_heap_is_reported_and_both_are_unchanged),
		TEST(a_page_set_aside_for_emergencies_is_ours_already),
		TEST(a_free_page_of_another_heaps_region_is_of_another_heap),
		TEST(a_refused_page_does_not_place_the_window),
		TEST(pages_may_hold_anything),
		TEST(destroying_a_cache_with_live_objects_is_refused),
		TEST(forced_destroy_counts_what_is_lost_and_gives_every_page_back),
		TEST(ending_a_heap_with_live_objects_is_refused),
		TEST(calls_after_the_end_of_a_heap_touch_nothing),
		TEST(free_works_while_memory_is_out),
		TEST(alloc_pages_may_call_the_heap),
		TEST(free_pages_may_call_the_heap),
		TEST(both_callbacks_may_call_the_heap_while_memory_runs_out),
		TEST(a_page_source_that_never_stops_asking_is_refused_with_reentry),
		TEST(the_report_hook_may_call_the_heap),
		TEST(a_fault_inside_the_report_hook_is_reported),
		TEST(a_constructor_may_call_the_heap),
		TEST(callbacks_run_unpinned_and_unmasked_from_every_call),
		TEST(counters_that_wrap_harm_nothing),
		TEST(a_broken_list_is_reported_and_no_link_of_it_is_followed),
		TEST(a_broken_list_of_large_blocks_is_reported),
		TEST(cpu_numbers_are_checked),
		TEST(a_cpu_that_is_not_online_can_free_but_not_allocate),
		TEST(a_thread_may_migrate_in_every_callback),
		TEST(a_thread_that_migrates_to_a_cpu_that_is_not_online_leaks_nothing),
		TEST(realloc_to_zero_frees),
		TEST(a_failed_realloc_leaves_the_object_valid_and_unchanged),
		TEST(bulk_free_refuses_the_bad_one_and_frees_the_others),
		TEST(a_region_that_is_too_small_or_wraps_is_refused),
		TEST(a_region_that_overlaps_is_refused),
		TEST(a_region_of_another_heap_is_refused),
		TEST(a_region_outside_the_window_is_refused),
		TEST(one_region_too_many_is_refused),
		TEST(a_refused_first_region_changes_nothing),
		TEST(a_heap_whose_region_was_refused_can_be_made_again),
		TEST(faults_of_pointers_name_the_call_that_was_refused),
		TEST(faults_of_pages_regions_and_cpus_name_a_caller),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
