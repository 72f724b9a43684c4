/* SPDX-License-Identifier: MIT
 * test_steps.c - owns the proof that no call does more than a few steps of what waits, and that
 * later ones do the rest (what is left to whom: kslab.h, Progress).
 * Rank: test.  Runs: one thread that plays all CPUs.
 *
 * BUILD: -DKSLAB_CFG_HEADER='"fake_cpu.h"' -DKSLAB_CFG_CPUS=16 -DKSLAB_CFG_LEVELS=2
 */
#include "testing.h"

#include "fake_cpu.h"
#include "heap.h"

FAKE_CPU_DEFINE;

#define PAGE 4096u
#define PAGES 64u
#define STEP 4u /* pages that a slow path gives back at most */
#define ZONE (&t.heap.boot_zone) /* of CPU 0 */

static struct testing t;
static const struct kslab_config single_frames = { .max_page_bytes = PAGE,
						   .retain_bytes = 1 << 20 };

static void begin(const struct kslab_config *config, unsigned cpus)
{
	memset(&kslab_default_heap, 0, sizeof(kslab_default_heap));
	fake_cpu = fake_pins = fake_masked = fake_nmi = 0;
	testing_begin(&t, config);
	for (unsigned cpu = 1; cpu < cpus; cpu++) {
		fake_cpu = cpu;
		assert_int_equal(kslab_heap_cpu_online(&t.heap, cpu), KSLAB_OK);
	}
	fake_cpu = 0;
}

#define ELSEWHERE(cpu, what)                                                                       \
	do {                                                                                       \
		fake_cpu = cpu;                                                                    \
		what;                                                                              \
		fake_cpu = 0;                                                                      \
	} while (0)

static void *take(size_t n)
{
	void *object = kslab_heap_malloc(&t.heap, n);

	assert_non_null(object);
	return object;
}

/* Two objects of 2 KiB in each page; [i][0] and [i][1] lie in the same one. */
static void *pair[PAGES][2];

static void take_pairs(void)
{
	for (unsigned i = 0; i < PAGES; i++)
		for (unsigned k = 0; k < 2; k++)
			pair[i][k] = take(2048);
}

static void give_each(unsigned k)
{
	for (unsigned i = 0; i < PAGES; i++)
		kslab_heap_free(&t.heap, pair[i][k]);
}

/* One slow path of another class, which takes a page and gives it back to its class. */
static void slow_path(void)
{
	size_t before = t.source.pages_out;
	void *object;

	/* Nothing else is to be had in that class: its one page was used up. */
	object = take(PAGE);
	kslab_heap_free(&t.heap, object);
	assert_true(t.source.pages_out + 2 * STEP + 1 >= before);
	testing_step(&t);
}

/* Slow paths until a request is served. Return: how many. */
static unsigned serve(void)
{
	unsigned calls = 0;

	while (ZONE->reclaim_epoch != t.heap.reclaim_epoch) {
		slow_path();
		assert_true(++calls < 4 * PAGES);
	}
	return calls;
}

static void end(void)
{
	for (unsigned round = 0; round < 2; round++)
		for (unsigned cpu = 0; cpu < KSLAB_CFG_CPUS; cpu++)
			ELSEWHERE(cpu, kslab_heap_quiesce(&t.heap));
	assert_true(kslab_heap_quiesce(&t.heap));
	testing_end(&t);
}

static void test_a_request_of_another_cpu_is_served_a_few_pages_at_a_time(void **state)
{
	size_t empty;

	(void)state;
	begin(&single_frames, 2);
	take_pairs();
	give_each(0);
	give_each(1);
	empty = ZONE->owner.empty_run;
	assert_true(empty >= PAGES - 1);
	ELSEWHERE(1, kslab_heap_reclaim(&t.heap, 1));
	slow_path();
	assert_true(ZONE->owner.empty_run + 2 * STEP + 1 >= empty);
	assert_true(serve() >= PAGES / STEP / 2 - 2);
	assert_int_equal(t.source.pages_out, t.heap.meta.pages);
	end();
}

/* What only a look at each partial page can find: all of them had a free slot before. */
static void test_pages_that_others_emptied_are_found_a_few_at_a_time(void **state)
{
	(void)state;
	begin(&single_frames, 2);
	take_pairs();
	give_each(0);
	kslab_heap_idle(&t.heap);
	ELSEWHERE(1, give_each(1));
	while (kslab_sc_has_mail(&ZONE->owner)) /* those that were armed: not what is meant here */
		kslab_sc_drain(&ZONE->owner, 1);
	ELSEWHERE(1, kslab_heap_reclaim(&t.heap, 1));
	serve();
	assert_int_equal(ZONE->owner.empty_run, 0);
	assert_int_equal(t.source.pages_out, t.heap.meta.pages);
	end();
}

/* A second request that comes while the first is being served is served by itself. */
static void test_a_request_that_comes_in_the_middle_of_another_is_served_whole(void **state)
{
	(void)state;
	begin(&single_frames, 2);
	take_pairs();
	give_each(0);
	kslab_heap_idle(&t.heap);
	ELSEWHERE(1, kslab_heap_reclaim(&t.heap, 1));
	for (unsigned i = 0; i < PAGES / STEP / 4; i++)
		slow_path();
	assert_true(ZONE->reclaim_epoch != t.heap.reclaim_epoch);
	ELSEWHERE(1, give_each(1)); /* behind the sweep's back, too */
	ELSEWHERE(1, kslab_heap_reclaim(&t.heap, 1));
	serve();
	assert_int_equal(t.source.pages_out, t.heap.meta.pages);
	end();
}

static void test_what_is_above_a_lower_retention_goes_a_few_pages_at_a_time(void **state)
{
	size_t before;

	(void)state;
	begin(&single_frames, 1);
	take_pairs();
	give_each(0);
	give_each(1);
	before = t.source.pages_out;
	t.heap.retain_run = 8; /* without the request that kslab_set_retention makes of it */
	for (unsigned calls = 0; ZONE->owner.empty_run > 8; calls++) {
		size_t now = t.source.pages_out;
		void *object = take(PAGE), *other = take(PAGE); /* turns to another page */

		kslab_heap_free(&t.heap, other);
		kslab_heap_free(&t.heap, object);
		assert_true(t.source.pages_out + 4 * STEP >= now);
		testing_step(&t);
		assert_true(calls < PAGES);
	}
	assert_true(t.source.pages_out < before);
	assert_true(ZONE->owner.empty_run == 8);
	end();
}

/* Short empty pages wait while a class of long ones is emptied: nothing piles up. */
static void test_long_pages_do_not_pile_up_behind_short_ones(void **state)
{
	const struct kslab_config config = { .max_page_bytes = 16 * PAGE,
					     .retain_bytes = PAGES * PAGE };
	void *large[32];

	(void)state;
	begin(&config, 1);
	for (unsigned i = 0; i < 32; i++)
		large[i] = take(16384);
	for (unsigned i = 0; i < PAGES; i++)
		pair[i][0] = take(PAGE);
	for (unsigned i = 0; i < PAGES; i++)
		kslab_heap_free(&t.heap, pair[i][0]);
	for (unsigned i = 0; i < 32; i++) {
		kslab_heap_free(&t.heap, large[i]);
		assert_true(ZONE->owner.empty_run <= PAGES + 16);
	}
	end();
}

/* ---- object caches --------------------------------------------------------------------------- */

#define CACHES 200u

static struct kslab_cache cache[CACHES];

static unsigned parts_of_zone(void)
{
	unsigned parts = 0;

	for (struct kslab_cache_zone *own = ZONE->caches; own != NULL; own = own->next)
		parts++;
	return parts;
}

static void test_empty_pages_are_found_among_many_caches(void **state)
{
	void *kept[2];

	(void)state;
	begin(&single_frames, 1);
	for (unsigned i = 0; i < CACHES; i++)
		assert_int_equal(kslab_heap_cache_init(&t.heap, &cache[i], "c", 2048, 0, NULL,
						       NULL),
				 KSLAB_OK);
	for (unsigned i = 0; i < CACHES; i++)
		pair[i % PAGES][i / PAGES % 2] = kslab_cache_alloc(&cache[i]);
	assert_int_equal(parts_of_zone(), CACHES);
	/* Of the first cache, which comes last: two pages more, freed again. */
	for (unsigned i = 0; i < 2; i++)
		kept[i] = kslab_cache_alloc(&cache[0]);
	kslab_cache_free(&cache[0], kept[1]);
	kslab_cache_free(&cache[0], kept[0]);
	ZONE->owner.looked = NULL;
	t.heap.retain_run = 0;
	for (unsigned calls = 0; ZONE->owner.empty_run != 0; calls++) {
		slow_path();
		assert_true(calls < CACHES / KSLAB_LOOKS_MOST + 3);
	}
	for (unsigned i = 0; i < CACHES; i++)
		kslab_cache_destroy_forced(&cache[i]);
	/* Their parts of the zone serve the next caches. */
	for (unsigned i = 0; i < CACHES / 4; i++) {
		assert_int_equal(kslab_heap_cache_init(&t.heap, &cache[i], "d", 100, 0, NULL, NULL),
				 KSLAB_OK);
		pair[0][0] = kslab_cache_alloc(&cache[i]);
		assert_non_null(pair[0][0]);
		assert_int_equal(parts_of_zone(), CACHES);
		kslab_cache_free(&cache[i], pair[0][0]);
		testing_step(&t);
		assert_int_equal(kslab_cache_destroy(&cache[i]), KSLAB_OK);
	}
	end();
}

/* ---- runs that are given up in an NMI -------------------------------------------------------- */

static size_t nmi_callbacks, purged;

static void count_free(struct fake_source *source, size_t pages)
{
	(void)source;
	(void)pages;
	nmi_callbacks += fake_nmi != 0;
}

static void count_purge(void *ctx, void *mem, size_t bytes)
{
	(void)ctx;
	memset(mem, 0, bytes);
	nmi_callbacks += fake_nmi != 0;
	purged += bytes / PAGE;
}

/* What a block of a region is cut by would be purged; that is left to the next page that goes back. */
static void test_what_an_nmi_gives_up_is_not_purged_there(void **state)
{
	const struct kslab_config config = { .max_page_bytes = PAGE,
					     .retain_bytes = KSLAB_RETAIN_NONE,
					     .purge = count_purge,
					     .purge_bytes = PAGE };
	unsigned char *region;
	size_t free_pages;
	void *block, *other;

	(void)state;
	begin(&config, 1);
	nmi_callbacks = purged = 0;
	region = fake_source_take(&t.source, 128);
	memset(region, 0, 128 * PAGE);
	assert_int_equal(kslab_heap_add_region(&t.heap, region, 128 * PAGE), KSLAB_OK);
	other = take(PAGE);
	block = take(40 * PAGE);
	free_pages = t.heap.region[0].free_pages;
	fake_nmi = 1;
	assert_ptr_equal(kslab_heap_realloc(&t.heap, block, 12 * PAGE), block);
	fake_nmi = 0;
	assert_int_equal(nmi_callbacks, 0);
	assert_int_equal(t.heap.region[0].free_pages, free_pages + 28);
	assert_null(t.heap.waiting);
	testing_step(&t);
	kslab_heap_free(&t.heap, other);
	assert_int_equal(t.heap.region[0].free_pages, free_pages + 28 + 1);
	assert_true(purged != 0);
	kslab_heap_free(&t.heap, block);
	testing_step(&t);
	assert_int_equal(kslab_heap_fini(&t.heap), KSLAB_OK);
	assert_int_equal(t.source.pages_out, 128);
}

/* A page that was set aside, and can't be used: there are no pages for its leaf. */
static void test_what_an_nmi_can_not_use_does_not_go_back_there(void **state)
{
	const struct kslab_config config = { .max_page_bytes = PAGE, .emergency_pages = 1 };
	void *object;

	(void)state;
	begin(&config, 1);
	nmi_callbacks = 0;
	t.source.on_free = count_free;
	t.heap.emergency_target = 0; /* as if another CPU had filled them up again meanwhile */
	fake_nmi = 1;
	assert_null(kslab_heap_alloc(&t.heap, PAGE, 1, KSLAB_RESERVE));
	fake_nmi = 0;
	assert_int_equal(nmi_callbacks, 0);
	assert_int_equal(t.source.pages_out, 1);
	assert_true(kslab_heap_quiesce(&t.heap));
	assert_int_equal(t.source.pages_out, 0);
	object = take(64);
	testing_step(&t);
	kslab_heap_free(&t.heap, object);
	end();
}

/* Reclaim in an NMI asks nobody to take or to purge anything; that comes later. */
static void test_reclaim_in_an_nmi_calls_nobody(void **state)
{
	const struct kslab_config config = { .retain_bytes = KSLAB_RETAIN_NONE,
					     .purge = count_purge };
	unsigned char *region;

	(void)state;
	for (unsigned kept = 0; kept < 3; kept++) {
		begin(&config, 1);
		region = fake_source_take(&t.source, 128);
		memset(region, 0, 128 * PAGE);
		assert_int_equal(kslab_heap_add_region(&t.heap, region, 128 * PAGE), KSLAB_OK);
		t.source.on_free = count_free;
		/* Empty pages; or free ones of the region; or free parts of pages in use. */
		if (kept == 0)
			kslab_heap_set_retention(&t.heap, 1 << 20);
		take_pairs();
		for (unsigned i = kept == 2; i < PAGES; i++) {
			kslab_heap_free(&t.heap, pair[i][0]);
			kslab_heap_free(&t.heap, pair[i][1]);
		}
		nmi_callbacks = purged = 0;
		fake_nmi = 1;
		kslab_heap_reclaim(&t.heap, SIZE_MAX);
		fake_nmi = 0;
		assert_int_equal(nmi_callbacks, 0);
		testing_step(&t);
		kslab_heap_reclaim(&t.heap, SIZE_MAX);
		assert_true(purged != 0);
		if (kept == 2) {
			kslab_heap_free(&t.heap, pair[0][0]);
			kslab_heap_free(&t.heap, pair[0][1]);
		}
		assert_int_equal(kslab_heap_fini(&t.heap), KSLAB_OK);
		assert_int_equal(t.source.pages_out, 128);
	}
}

/* Not even the lock is to be had; with the next pages that go back they go, two with each. */
static void test_a_run_that_is_given_up_while_the_lock_is_taken_is_not_lost(void **state)
{
	struct kslab_lock_state lock;
	struct kslab_run run[6];
	size_t out;

	(void)state;
	begin(&single_frames, 1);
	for (unsigned i = 0; i < 6; i++)
		assert_int_equal(kslab_source_alloc(&t.heap, 1 + i % 3, 1, 0, &run[i]), KSLAB_OK);
	out = t.source.pages_out;
	assert_true(kslab_heap_lock(&t.heap, &lock));
	fake_nmi = 1;
	for (unsigned i = 0; i < 5; i++)
		kslab_source_free(&t.heap, run[i].address, run[i].pages);
	fake_nmi = 0;
	kslab_heap_unlock(&t.heap, &lock);
	assert_int_equal(t.source.pages_out, out);
	/* The newest first: 2 and 1, then 3 and 2, then 1. */
	kslab_source_free(&t.heap, run[5].address, run[5].pages);
	assert_int_equal(out - t.source.pages_out, 3 + 2 + 1);
	testing_step(&t);
	kslab_heap_idle(&t.heap);
	assert_int_equal(out - t.source.pages_out, 12);
	assert_null(t.heap.waiting);
	end();
}

/* ---- large blocks and regions ---------------------------------------------------------------- */

static void test_blocks_freed_in_an_nmi_go_two_with_each_that_is_freed_outside(void **state)
{
	const struct kslab_config config = { .max_page_bytes = PAGE,
					     .retain_bytes = KSLAB_RETAIN_NONE };
	void *block[16], *more[16];
	size_t before;

	(void)state;
	begin(&config, 1);
	for (unsigned i = 0; i < 16; i++) {
		block[i] = take(5 * PAGE);
		more[i] = take(5 * PAGE);
	}
	fake_nmi = 1;
	for (unsigned i = 0; i < 16; i++)
		kslab_heap_free(&t.heap, block[i]);
	fake_nmi = 0;
	for (unsigned i = 0; i < 16; i++) {
		before = t.source.pages_out;
		assert_true(kslab_large_has_deferred(&t.heap) == (i < 8));
		kslab_heap_free(&t.heap, more[i]);
		assert_int_equal(before - t.source.pages_out, i < 8 ? 15 : 5);
		testing_step(&t);
	}
	/* kslab_idle does all of it; quiesce is not fooled by what was only taken out. */
	for (unsigned i = 0; i < 16; i++)
		block[i] = take(5 * PAGE);
	fake_nmi = 1;
	for (unsigned i = 0; i < 15; i++)
		kslab_heap_free(&t.heap, block[i]);
	fake_nmi = 0;
	kslab_heap_free(&t.heap, block[15]);
	assert_null(t.heap.deferred);
	assert_non_null(t.heap.releasing);
	kslab_heap_idle(&t.heap);
	assert_false(kslab_large_has_deferred(&t.heap));
	assert_int_equal(t.heap.large_blocks, 0);
	end();
}

static size_t purges, purges_most;

static void purge(void *ctx, void *mem, size_t bytes)
{
	(void)ctx;
	memset(mem, 0, bytes);
	purges++;
}

static void test_free_memory_above_purge_bytes_is_purged_a_few_pieces_at_a_time(void **state)
{
	static unsigned char region[512 * PAGE] __attribute__((aligned(PAGE)));
	const struct kslab_config config = { .max_page_bytes = PAGE,
					     .retain_bytes = KSLAB_RETAIN_NONE,
					     .purge = purge,
					     .purge_bytes = 64 * PAGE };
	void *object[256];
	bool was_above = false;

	(void)state;
	memset(region, 0, sizeof(region));
	memset(&kslab_default_heap, 0, sizeof(kslab_default_heap));
	assert_int_equal(kslab_heap_init(&t.heap, &config), KSLAB_OK);
	assert_int_equal(kslab_heap_add_region(&t.heap, region, sizeof(region)), KSLAB_OK);
	purges = purges_most = 0;
	for (unsigned i = 0; i < 256; i++)
		object[i] = take(PAGE);
	for (unsigned i = 0; i < 256; i += 2) { /* no two side by side: each a piece of its own */
		size_t before = purges;

		kslab_heap_free(&t.heap, object[i]);
		purges_most = purges - before > purges_most ? purges - before : purges_most;
		assert_true(t.heap.region[0].dirty_pages <= 65);
		was_above = was_above || t.heap.region[0].is_purging;
		if (!t.heap.region[0].is_purging && was_above) {
			assert_true(t.heap.region[0].dirty_pages <= 33); /* half of it */
			was_above = false;
		}
	}
	assert_true(purges > 64 && purges_most <= 4);
	for (unsigned i = 1; i < 256; i += 2)
		kslab_heap_free(&t.heap, object[i]);
	assert_true(kslab_heap_check(&t.heap, NULL));
	kslab_heap_reclaim(&t.heap, SIZE_MAX);
	assert_int_equal(t.heap.region[0].dirty_pages, 0);
	assert_int_equal(kslab_heap_fini(&t.heap), KSLAB_OK);
}

/* ---- limbo, and a source that has nothing ----------------------------------------------------- */

/* Mail of a CPU that is gone is taken in by those who look for a page, some pages a call. */
static void test_mail_of_a_cpu_that_is_gone_is_taken_in_a_few_pages_at_a_time(void **state)
{
	size_t out;

	(void)state;
	begin(&single_frames, 2);
	ELSEWHERE(1, take_pairs());
	ELSEWHERE(1, kslab_heap_cpu_offline(&t.heap, 1));
	assert_null(t.heap.lingering);
	assert_int_equal(t.heap.limbo_pages, PAGES);
	give_each(0);
	assert_non_null(t.heap.limbo->owner.mailbox);
	out = t.source.pages_out;
	for (unsigned i = 0; i < PAGES; i++) {
		pair[i][0] = take(2048);
		testing_step(&t);
		if (i == 0) /* what is left over is neither lost nor looked for again */
			assert_non_null(t.heap.limbo->owner.mail);
	}
	assert_int_equal(t.source.pages_out, out);
	assert_int_equal(t.heap.limbo_pages, 0);
	give_each(0);
	give_each(1);
	end();
}

/* Only as much goes back as is needed, and a call that fails has looked at everything. */
static void test_a_source_that_fails_gets_back_what_is_needed(void **state)
{
	size_t empty;

	(void)state;
	begin(&single_frames, 2);
	take_pairs();
	give_each(0);
	kslab_heap_idle(&t.heap);
	for (unsigned i = 0; i < 8; i++) /* known to be empty */
		kslab_heap_free(&t.heap, pair[i][1]);
	empty = ZONE->owner.empty_run;
	assert_true(empty >= 7);
	fake_source_fail_at(&t.source, 1);
	pair[0][0] = take(PAGE);
	assert_int_equal(ZONE->owner.empty_run, empty - 1);
	fake_source_fail_from(&t.source, 1);
	assert_null(kslab_heap_malloc(&t.heap, PAGE));
	assert_int_equal(kslab_heap_last_error(&t.heap), KSLAB_NO_PAGES);
	assert_int_equal(ZONE->owner.empty_run, 0);
	/* Emptied by another CPU, the last one of many: only a look at all of them finds it. */
	fake_source_fail_from(&t.source, 0);
	ELSEWHERE(1, kslab_heap_free(&t.heap, pair[PAGES - 1][1]));
	while (kslab_sc_has_mail(&ZONE->owner))
		kslab_sc_drain(&ZONE->owner, 1);
	fake_source_fail_at(&t.source, 1);
	pair[1][0] = take(PAGE);
	kslab_heap_free(&t.heap, pair[0][0]);
	kslab_heap_free(&t.heap, pair[1][0]);
	for (unsigned i = 8; i < PAGES - 1; i++)
		kslab_heap_free(&t.heap, pair[i][1]);
	end();
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(test_mail_of_a_cpu_that_is_gone_is_taken_in_a_few_pages_at_a_time),
		cmocka_unit_test(test_a_source_that_fails_gets_back_what_is_needed),
		cmocka_unit_test(test_a_request_of_another_cpu_is_served_a_few_pages_at_a_time),
		cmocka_unit_test(test_pages_that_others_emptied_are_found_a_few_at_a_time),
		cmocka_unit_test(
			test_a_request_that_comes_in_the_middle_of_another_is_served_whole),
		cmocka_unit_test(test_what_is_above_a_lower_retention_goes_a_few_pages_at_a_time),
		cmocka_unit_test(test_long_pages_do_not_pile_up_behind_short_ones),
		cmocka_unit_test(test_empty_pages_are_found_among_many_caches),
		cmocka_unit_test(test_what_an_nmi_gives_up_is_not_purged_there),
		cmocka_unit_test(test_what_an_nmi_can_not_use_does_not_go_back_there),
		cmocka_unit_test(test_reclaim_in_an_nmi_calls_nobody),
		cmocka_unit_test(test_a_run_that_is_given_up_while_the_lock_is_taken_is_not_lost),
		cmocka_unit_test(
			test_blocks_freed_in_an_nmi_go_two_with_each_that_is_freed_outside),
		cmocka_unit_test(
			test_free_memory_above_purge_bytes_is_purged_a_few_pieces_at_a_time),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
