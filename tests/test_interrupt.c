/* SPDX-License-Identifier: MIT
 * test_interrupt.c - owns the proof that kslab may be called in an interrupt or NMI at any
 * instruction of any call.
 * Rank: test.  Runs: one thread in single steps (x86), then two threads under a storm of signals.
 *
 * BUILD: -DKSLAB_CFG_HEADER='"fake_cpu.h"' -DKSLAB_CFG_CPUS=2 -DKSLAB_CFG_LEVELS=4
 *
 * Single steps: for each instruction of each kind of call one run in which an interrupt comes
 * exactly there, allocates and frees; then everything is looked at. Storm: signals of three ranks,
 * each interrupting the lower ones, and a fourth that no mask stops, the NMI.
 * KSLAB_STORM_SECONDS=60 makes it a long one.
 */
#define _GNU_SOURCE
#include "testing.h"

#include <errno.h>
#include <pthread.h>
#include <sys/time.h>
#include <time.h>

#include "fake_cpu.h"
#include "heap.h"
#include "single_step.h"

FAKE_CPU_DEFINE;

#define PAGE 4096u

static struct testing t;

/* ---- a page source for interrupts: it masks them, as a kernel's would ------------------------ */

static bool in_source; /* the instructions of the fake source prove nothing */
static size_t nmi_callbacks; /* callbacks that ran in an NMI: none may */

static void *masked_alloc(void *ctx, size_t pages)
{
	uintptr_t state = fake_irq_save();
	void *mem;

	nmi_callbacks += fake_nmi != 0;
	in_source = true;
	mem = fake_source_alloc(ctx, pages);
	in_source = false;
	fake_irq_restore(state);
	return mem;
}

static void masked_free(void *ctx, void *mem, size_t pages)
{
	uintptr_t state = fake_irq_save();

	nmi_callbacks += fake_nmi != 0;
	in_source = true;
	fake_source_free(ctx, mem, pages);
	in_source = false;
	fake_irq_restore(state);
}

/* ---- objects whose contents are watched ------------------------------------------------------ */

#define WATCHED 512u

static struct watched {
	unsigned char *p;
	size_t bytes;
	unsigned char mark;
} watched[WATCHED];
static size_t watched_count;
static const char *wrong; /* the first thing that went wrong in this run */

static void is_wrong(const char *what)
{
	if (wrong == NULL)
		wrong = what;
}

static void watch(void *p, size_t bytes)
{
	struct watched *w = &watched[watched_count];

	if (p == NULL)
		return;
	if (watched_count == WATCHED) {
		is_wrong("the test watches too many objects");
		return;
	}
	watched_count++;
	w->p = p;
	w->bytes = bytes;
	w->mark = (unsigned char)(watched_count * 37 + 11);
	memset(p, w->mark, bytes);
}

/* Before p is freed. */
static void unwatch(const void *p)
{
	for (size_t i = 0; i < watched_count; i++) {
		if (watched[i].p != p)
			continue;
		for (size_t k = 0; k < watched[i].bytes; k++)
			if (watched[i].p[k] != watched[i].mark)
				is_wrong("an object was overwritten: it was issued twice");
		watched[i] = watched[--watched_count];
		return;
	}
}

static void *take(size_t n)
{
	void *p = kslab_heap_malloc(&t.heap, n);

	watch(p, n);
	return p;
}

static void give(void *p)
{
	if (p == NULL)
		return;
	unwatch(p);
	kslab_heap_free(&t.heap, p);
}

/* ---- scenarios ------------------------------------------------------------------------------- */

#define VICTIMS 6u

static size_t source_pages = 256; /* few, so that a fork is cheap */
static size_t size; /* of the objects of the scenario */
static void *target[70]; /* what op frees */
static void *victims[VICTIMS]; /* what interrupts free */
static unsigned char target_mark;
static void *result; /* what op allocated */
static size_t result_bytes;
static void *bulk[16]; /* what op allocated at once */
static size_t bulk_count;
static struct kslab_cache cache;
static bool has_cache, may_fail;
static size_t region_pages; /* of the source, lent to the heap */

static void begin_with(size_t n, size_t retain_bytes)
{
	const struct kslab_config config = { .max_page_bytes = PAGE, .retain_bytes = retain_bytes };

	memset(&t, 0, sizeof(t));
	memset(&kslab_default_heap, 0, sizeof(kslab_default_heap));
	fake_cpu = fake_pins = fake_masked = fake_nmi = 0;
	testing_begin_with(&t, &config, source_pages, false);
	assert_int_equal(kslab_heap_set_page_source(&t.heap, masked_alloc, masked_free, &t.source),
			 KSLAB_OK);
	size = n;
	watched_count = 0;
	wrong = NULL;
	result = NULL;
	bulk_count = 0;
	may_fail = has_cache = false;
	region_pages = 0;
	nmi_callbacks = 0;
	memset(target, 0, sizeof(target));
	memset(victims, 0, sizeof(victims));
	fake_cpu = 1;
	assert_int_equal(kslab_heap_cpu_online(&t.heap, 1), KSLAB_OK);
	fake_cpu = 0;
}

static bool may_nmi(void)
{
	return !in_source;
}

static bool may_interrupt(void)
{
	return fake_masked == 0;
}

/*
 * What a handler does: allocate of the size in question and of others, free what the task and
 * others allocated.
 */
static void work_in_handler(size_t step)
{
	void *same, *other, *large;
	bool excused = may_fail || fake_nmi != 0 || t.heap.zone[fake_cpu] == &kslab_zone_none;

	same = take(size);
	if (same == NULL && !excused)
		is_wrong("an allocation of an interrupt failed");
	if (same == NULL && fake_nmi != 0 && kslab_heap_last_error(&t.heap) != KSLAB_BUSY &&
	    !may_fail)
		is_wrong("an allocation of an NMI failed for another reason than BUSY");
	give(victims[0]);
	victims[0] = NULL;
	if (step % 2 != 0) {
		give(victims[1]);
		victims[1] = NULL;
	}
	other = take(size / 2 + 24);
	give(victims[2]); /* of CPU 1 */
	victims[2] = NULL;
	give(other);
	if (step % 4 == 0) {
		large = take(2 * PAGE);
		if (large == NULL && !excused)
			is_wrong("a large allocation of an interrupt failed");
		give(large);
	}
	if (step % 3 == 0)
		give(same);
}

static void interrupt(size_t step)
{
	unsigned pins = fake_pins;

	work_in_handler(step);
	if (fake_pins != pins)
		is_wrong("a call of an interrupt left the CPU pinned or unpinned");
	if (fake_masked != 0)
		is_wrong("a call of an interrupt left interrupts masked");
}

static void nmi(size_t step)
{
	unsigned pins = fake_pins, masked = fake_masked;

	fake_nmi = 1;
	fake_masked = masked != 0 ? masked : 1;
	work_in_handler(step);
	fake_masked = masked;
	fake_nmi = 0;
	if (fake_pins != pins)
		is_wrong("a call of an NMI left the CPU pinned or unpinned");
}

/* Another CPU does something while this one stands still between two instructions. */
static bool may_switch(void)
{
	return t.heap.lock.next == t.heap.lock.serving && fake_masked == 0;
}

static void other_cpu(size_t step)
{
	fake_cpu = 1;
	work_in_handler(step);
	if (step % 5 == 0)
		kslab_heap_idle(&t.heap);
	if (step % 7 == 0)
		(void)kslab_heap_reclaim(&t.heap, 1);
	fake_cpu = 0;
}

/* Everything goes back, everywhere, and is counted. */
static bool verify(void)
{
	struct kslab_check_result check;
	struct kslab_stats stats;

	if (result != NULL)
		watch(result, result_bytes);
	for (size_t i = 0; i < bulk_count; i++)
		watch(bulk[i], size);
	if (!kslab_heap_check(&t.heap, &check))
		is_wrong(check.what);
	while (watched_count != 0)
		give(watched[0].p);
	if (has_cache && kslab_cache_destroy(&cache) != KSLAB_OK)
		is_wrong("the cache is not empty");
	for (unsigned i = 0; i < 2; i++) {
		fake_cpu = i;
		kslab_heap_idle(&t.heap);
		(void)kslab_heap_reclaim(&t.heap, SIZE_MAX);
	}
	for (unsigned i = 0; i < 2; i++) {
		fake_cpu = i;
		(void)kslab_heap_reclaim(&t.heap, SIZE_MAX);
	}
	fake_cpu = 0;
	if (!kslab_heap_quiesce(&t.heap))
		is_wrong("frees are pending at the end");
	if (!kslab_heap_check(&t.heap, &check))
		is_wrong(check.what);
	kslab_heap_stats(&t.heap, &stats);
	if (stats.live_objects != 0 || stats.large_blocks != 0)
		is_wrong("objects are live at the end");
	if (stats.pages_in_use != stats.metadata_pages)
		is_wrong("object pages are left at the end");
	if (region_pages == 0 && stats.pages_in_use != t.source.pages_out)
		is_wrong("the heap counts other pages than the source");
	if (t.recorder.count != 0)
		is_wrong(t.recorder.last.what);
	if (t.source.errors != 0)
		is_wrong(t.source.what);
	if (nmi_callbacks != 0)
		is_wrong("a callback ran in an NMI");
	if (fake_pins != 0 || fake_masked != 0)
		is_wrong("pins or masks are not balanced");
	if (kslab_heap_fini(&t.heap) != KSLAB_OK || t.source.pages_out != region_pages)
		is_wrong("the heap's end left pages behind");
	if (wrong != NULL)
		fprintf(stderr, "%s\n", wrong);
	return wrong == NULL;
}

/* ---- what is interrupted --------------------------------------------------------------------- */

static void prepare_victims(void)
{
	for (size_t i = 0; i < VICTIMS; i++) {
		fake_cpu = i == 2 || i == 5;
		victims[i] = take(size);
		assert_non_null(victims[i]);
	}
	fake_cpu = 0;
}

static void op_malloc(void)
{
	result = kslab_heap_malloc(&t.heap, size);
	if (result == NULL && !may_fail)
		is_wrong("the interrupted allocation failed");
	result_bytes = size;
}

static void op_free(void)
{
	kslab_heap_free(&t.heap, target[0]);
}

static void op_realloc(void)
{
	result = kslab_heap_realloc(&t.heap, target[0], 4 * size + 8);
	if (result == NULL)
		is_wrong("the interrupted realloc failed");
	else
		for (size_t i = 0; i < size; i++)
			if (((unsigned char *)result)[i] != target_mark)
				is_wrong("realloc lost contents");
	result_bytes = 4 * size + 8;
}

static void op_calloc(void)
{
	result = kslab_heap_calloc(&t.heap, size, 1);
	if (result == NULL)
		is_wrong("the interrupted calloc failed");
	else
		for (size_t i = 0; i < size; i++)
			if (((unsigned char *)result)[i] != 0)
				is_wrong("calloc is not zero");
	result_bytes = size;
}

static void op_malloc_bulk(void)
{
	bulk_count = kslab_heap_malloc_bulk(&t.heap, size, TESTING_COUNT(bulk), bulk);
	if (bulk_count != TESTING_COUNT(bulk))
		is_wrong("the interrupted bulk allocation failed");
}

static void op_free_bulk(void)
{
	kslab_heap_free_bulk(&t.heap, 2, target);
}

static void op_idle(void)
{
	kslab_heap_idle(&t.heap);
}

static void op_reclaim(void)
{
	(void)kslab_heap_reclaim(&t.heap, SIZE_MAX);
}

static void op_quiesce(void)
{
	(void)kslab_heap_quiesce(&t.heap);
}

static void op_stats(void)
{
	struct kslab_stats stats;
	struct kslab_class_stats one;

	kslab_heap_stats(&t.heap, &stats);
	for (unsigned i = 0; kslab_heap_class_stats(&t.heap, i, &one); i++)
		;
}

static void op_reserve(void)
{
	if (!kslab_heap_reserve(&t.heap, size, 3 * PAGE / size))
		is_wrong("the interrupted reserve failed");
}

static void op_cache_alloc(void)
{
	void *p = kslab_cache_alloc(&cache);

	if (p == NULL)
		is_wrong("the interrupted cache allocation failed");
	kslab_cache_free(&cache, p);
}

static void op_usable_size(void)
{
	if (kslab_heap_usable_size(&t.heap, target[0]) < size)
		is_wrong("usable_size is wrong");
}

/* All are watched; those that op or the stage frees are no longer. */
static void fill_targets(size_t n)
{
	assert_true(n <= TESTING_COUNT(target));
	for (size_t i = 0; i < n; i++) {
		target[i] = take(size);
		assert_non_null(target[i]);
	}
}

/* Each sets the stage; op is then interrupted. Pages of one base page: 4096 / size slots. */
static void stage_fast(void)
{
	begin_with(64, 0);
	prepare_victims();
	fill_targets(2);
}

static void stage_word_used_up(void)
{
	begin_with(16, 0); /* 256 slots: several words */
	fill_targets(8 * sizeof(void *) - 6);
	prepare_victims();
}

static void stage_page_used_up(void)
{
	begin_with(512, 0); /* 8 slots: all in use, nothing else there */
	fill_targets(4);
	prepare_victims();
}

static void stage_partial_page(void)
{
	begin_with(1024, 0); /* 4 slots: full, partial, current and full */
	fill_targets(8);
	prepare_victims();
	give(target[0]);
	kslab_heap_free(&t.heap, kslab_heap_malloc(&t.heap, size));
}

static void stage_mail_waiting(void)
{
	begin_with(1024, 0);
	fill_targets(12);
	prepare_victims();
	fake_cpu = 1;
	give(target[0]);
	give(target[1]);
	fake_cpu = 0;
}

static void stage_nothing(void)
{
	begin_with(200, 0);
}

static void stage_full_page(void)
{
	begin_with(1024, 0);
	fill_targets(9); /* target[0]'s page is on the full list */
	prepare_victims();
}

static void stage_last_object(void)
{
	begin_with(1024, 0);
	fill_targets(9);
	for (size_t i = 1; i < 4; i++)
		give(target[i]);
	prepare_victims();
}

static void stage_last_object_no_retention(void)
{
	begin_with(1024, KSLAB_RETAIN_NONE);
	fill_targets(5);
	for (size_t i = 1; i < 4; i++)
		give(target[i]);
	prepare_victims();
}

static void stage_remote(void)
{
	begin_with(1024, 0);
	fake_cpu = 1;
	fill_targets(9);
	fake_cpu = 0;
	prepare_victims();
}

static void stage_empty_pages(void)
{
	begin_with(1024, 0);
	fill_targets(20);
	prepare_victims();
	for (size_t i = 0; i < 20; i++) {
		fake_cpu = i % 5 == 0;
		give(target[i]);
	}
	fake_cpu = 0;
}

static void stage_large(void)
{
	begin_with(3 * PAGE, 0);
	prepare_victims();
	fill_targets(1);
}

static void stage_large_spare(void)
{
	stage_large();
	kslab_heap_free(&t.heap, kslab_heap_malloc(&t.heap, size));
}

/* A block that was cut from a spare block, which has so many pages, grows from 3 to 13. */
static void stage_room(size_t pages)
{
	begin_with(3 * PAGE, 0);
	region_pages = 128;
	assert_int_equal(kslab_heap_add_region(&t.heap, fake_source_take(&t.source, region_pages),
					       region_pages * PAGE),
			 KSLAB_OK);
	prepare_victims();
	kslab_heap_free(&t.heap, kslab_heap_malloc(&t.heap, pages * PAGE));
	target[0] = kslab_heap_realloc(&t.heap, kslab_heap_malloc(&t.heap, 100), size);
	assert_int_equal(t.heap.zone[0]->spare_run, pages - 3);
	watch(target[0], size);
}

static void stage_room_in_part(void)
{
	stage_room(30);
}

static void stage_room_exactly(void)
{
	stage_room(13);
}

static void stage_room_too_short(void)
{
	stage_room(8);
}

/* What moves is cut from a spare block. */
static void stage_cut(void)
{
	stage_room(40);
	give(target[0]);
	size = PAGE;
	kslab_heap_free(&t.heap, kslab_heap_malloc(&t.heap, 39 * PAGE));
	target[0] = take(size);
	assert_non_null(target[0]);
}

static void stage_memory_out(void)
{
	begin_with(1024, 0);
	prepare_victims();
	fill_targets(30);
	for (size_t i = 0; i < 4; i++)
		give(target[i]);
	kslab_heap_free(&t.heap, kslab_heap_malloc(&t.heap, 64));
	size = 200;
	may_fail = true;
	fake_source_fail_from(&t.source, 1);
}

static void stage_limbo(void)
{
	begin_with(1024, 0);
	fake_cpu = 1;
	fill_targets(7);
	fake_cpu = 0;
	assert_int_equal(kslab_heap_cpu_offline(&t.heap, 1), KSLAB_OK);
	give(target[0]);
	give(target[1]);
}

static void stage_cache(void)
{
	begin_with(136, 0);
	assert_int_equal(kslab_heap_cache_init(&t.heap, &cache, "cache", size, 0, NULL, NULL),
			 KSLAB_OK);
	has_cache = true;
	prepare_victims();
}

static void stage_cache_warm(void)
{
	stage_cache();
	kslab_cache_free(&cache, kslab_cache_alloc(&cache));
}

static const struct scenario {
	const char *name;
	void (*stage)(void);
	void (*op)(void);
} scenarios[] = {
	{ "malloc, fast", stage_fast, op_malloc },
	{ "free, fast", stage_fast, op_free },
	{ "usable_size", stage_fast, op_usable_size },
	{ "malloc, next word", stage_word_used_up, op_malloc },
	{ "malloc, page used up", stage_page_used_up, op_malloc },
	{ "malloc, partial page", stage_partial_page, op_malloc },
	{ "malloc, mail waiting", stage_mail_waiting, op_malloc },
	{ "malloc, first page of a class", stage_nothing, op_malloc },
	{ "free, full page", stage_full_page, op_free },
	{ "free, last object", stage_last_object, op_free },
	{ "free, last object, no retention", stage_last_object_no_retention, op_free },
	{ "free, remote, with mail", stage_remote, op_free },
	{ "idle, mail waiting", stage_mail_waiting, op_idle },
	{ "quiesce", stage_mail_waiting, op_quiesce },
	{ "stats", stage_mail_waiting, op_stats },
	{ "reclaim", stage_empty_pages, op_reclaim },
	{ "large malloc", stage_large, op_malloc },
	{ "large malloc, spare", stage_large_spare, op_malloc },
	{ "large free", stage_large, op_free },
	{ "malloc, memory out", stage_memory_out, op_malloc },
	{ "malloc from limbo", stage_limbo, op_malloc },
	{ "realloc", stage_fast, op_realloc },
	{ "realloc into a part of a spare block", stage_room_in_part, op_realloc },
	{ "realloc into a spare block", stage_room_exactly, op_realloc },
	{ "realloc beyond a spare block", stage_room_too_short, op_realloc },
	{ "realloc to a spare block", stage_cut, op_realloc },
	{ "calloc", stage_fast, op_calloc },
	{ "malloc_bulk", stage_fast, op_malloc_bulk },
	{ "free_bulk", stage_fast, op_free_bulk },
	{ "reserve", stage_fast, op_reserve },
	{ "cache, first use", stage_cache, op_cache_alloc },
	{ "cache", stage_cache_warm, op_cache_alloc },
};

static int setup(void **state)
{
	(void)state;
	return 0;
}

static int teardown(void **state)
{
	(void)state;
	if (t.source.memory != NULL)
		fake_source_fini(&t.source);
	t.source.memory = NULL;
	return 0;
}

/*
 * The first instructions of each kind of call one by one, then every stride-th, for what is long is
 * mostly loops. KSLAB_STEP_STRIDE=1 in the environment: every one, in all tests. Sanitizers make an
 * instruction of ten, and a fork dear: a sample is enough there.
 */
#if defined(__SANITIZE_ADDRESS__)
#define SLOWER 20u
#else
#define SLOWER 1u
#endif

static size_t stride_of(size_t wanted)
{
	const char *given = getenv("KSLAB_STEP_STRIDE");

	return given != NULL ? (size_t)strtoul(given, NULL, 0) : SLOWER * wanted;
}

static void interrupted_everywhere(bool (*may)(void), void (*handler)(size_t step), size_t dense,
				   size_t stride)
{
	size_t steps = 0, runs = 0, bad = 0;

	if (!single_step_is_available())
		skip();
	for (size_t i = 0; i < TESTING_COUNT(scenarios); i++) {
		struct single_step step = { .name = scenarios[i].name,
					    .op = scenarios[i].op,
					    .may_interrupt = may,
					    .interrupt = handler,
					    .verify = verify,
					    .dense = dense / SLOWER,
					    .stride = stride_of(stride) };

		scenarios[i].stage();
		if (scenarios[i].op == op_free || scenarios[i].op == op_free_bulk ||
		    scenarios[i].op == op_realloc) {
			target_mark = *(unsigned char *)target[0];
			unwatch(target[0]);
		}
		if (scenarios[i].op == op_free_bulk)
			unwatch(target[1]);
		if (getenv("KSLAB_TEST_VERBOSE") != NULL)
			print_message("# %s\n", scenarios[i].name);
		if (!single_step_run(&step)) {
			print_error("%s: %zu of %zu runs went wrong, the first at step %zu\n",
				    scenarios[i].name, step.failures, step.interrupts,
				    step.first_failure);
			bad++;
		}
		if (getenv("KSLAB_TEST_VERBOSE") != NULL)
			print_message("# %zu of %zu\n", step.interrupts, step.steps);
		steps += step.steps;
		runs += step.interrupts;
		fake_source_fini(&t.source);
		t.source.memory = NULL;
	}
	print_message("# %zu scenarios, %zu instructions, %zu of them interrupted\n",
		      TESTING_COUNT(scenarios), steps, runs);
	assert_true(bad == 0);
	assert_true(runs > 1000 / SLOWER); /* or little was tested */
}

static void an_interrupt_may_come_at_every_instruction(void **state)
{
	(void)state;
	interrupted_everywhere(may_interrupt, interrupt, 1000, 4);
}

static void an_nmi_may_come_at_every_instruction(void **state)
{
	(void)state;
	interrupted_everywhere(may_nmi, nmi, 300, 8);
}

static void another_cpu_may_act_between_any_two_instructions(void **state)
{
	(void)state;
	interrupted_everywhere(may_switch, other_cpu, 300, 8);
}

/* Three handlers in a row, the second an NMI, before the interrupted call goes on. */
static void interrupt_then_nmi(size_t step)
{
	interrupt(step);
	nmi(step + 1);
	interrupt(step + 2);
}

static void interrupts_may_come_one_after_the_other(void **state)
{
	(void)state;
	interrupted_everywhere(may_interrupt, interrupt_then_nmi, 100, 16);
}

/* ---- levels and the lock, step by step ------------------------------------------------------- */

static void set_busy(bool busy)
{
	struct kslab_zone *zone = t.heap.zone[fake_cpu];

	for (; zone != NULL; zone = zone->inner)
		zone->owner.key = busy ? 0 : (uintptr_t)zone;
}

/*
 * Each level gets a zone when it is first nested into; behind the last one the answer is REENTRY,
 * and frees work.
 */
static void each_level_is_served_and_the_next_is_refused_with_reentry(void **state)
{
	void *p[KSLAB_CFG_LEVELS + 1];

	(void)state;
	begin_with(64, 0);
	for (unsigned level = 0; level < KSLAB_CFG_LEVELS; level++) {
		p[level] = take(size);
		assert_non_null(p[level]);
		assert_true(kslab_heap_check(&t.heap, NULL));
		set_busy(true);
	}
	assert_null(kslab_heap_malloc(&t.heap, size));
	set_busy(false);
	assert_int_equal(kslab_heap_last_error(&t.heap), KSLAB_REENTRY);
	set_busy(true);
	for (unsigned level = 0; level < KSLAB_CFG_LEVELS; level++)
		give(p[level]);
	set_busy(false);
	assert_true(verify());
}

static void an_nmi_only_tries_the_lock_and_its_frees_always_work(void **state)
{
	static const size_t sizes[] = { 64, 1000, 3 * PAGE };
	struct kslab_lock_state lock;

	(void)state;
	for (unsigned held = 0; held < 2; held++) {
		begin_with(1024, held != 0 ? KSLAB_RETAIN_NONE : 0);
		prepare_victims();
		fill_targets(9);
		for (unsigned i = 0; i < 3; i++) {
			target[20 + i] = take(3 * PAGE);
			assert_non_null(target[20 + i]);
		}
		if (held != 0)
			assert_true(kslab_heap_lock(&t.heap, &lock));
		fake_nmi = 1;
		for (size_t i = 0; i < TESTING_COUNT(sizes); i++) {
			if (sizes[i] == 1000)
				continue;
			/* it would need the callback, or the lock */
			assert_null(kslab_heap_malloc(&t.heap, sizes[i]));
			assert_int_equal(kslab_heap_last_error(&t.heap), KSLAB_BUSY);
		}
		for (size_t i = 0; i < 9; i++) /* of full pages, the last of a page */
			give(target[i]);
		for (size_t i = 0; i < VICTIMS; i++) /* of another CPU too */
			give(victims[i]);
		for (size_t i = 0; i < 3; i++)
			give(target[20 + i]);
		fake_nmi = 0;
		assert_true(t.recorder.count == 0);
		if (held != 0)
			kslab_heap_unlock(&t.heap, &lock);
		assert_true(verify());
		fake_source_fini(&t.source);
		t.source.memory = NULL;
	}
}

/* Where no callback is needed an NMI is served: by what its zone has, and by regions. */
static void an_nmi_is_served_from_regions(void **state)
{
	struct kslab_zone *zone;
	size_t before;
	void *p[60];

	(void)state;
	begin_with(300, 0);
	before = t.source.alloc_calls;
	zone = t.heap.zone[0];
	assert_int_equal(kslab_heap_add_region(&t.heap, fake_source_take(&t.source, 64), 64 * PAGE),
			 KSLAB_OK);
	fake_nmi = 1;
	for (size_t i = 0; i < TESTING_COUNT(p); i++) {
		zone->owner.key = i % 2 != 0 ? 0 : (uintptr_t)zone; /* as if inside a call */
		p[i] = take(i == 30 ? 3 * PAGE : size);
		assert_non_null(p[i]);
	}
	for (size_t i = 0; i < TESTING_COUNT(p); i++) {
		zone->owner.key = i % 3 != 0 ? 0 : (uintptr_t)zone;
		give(p[i]);
	}
	zone->owner.key = (uintptr_t)zone;
	fake_nmi = 0;
	assert_true(t.source.alloc_calls == before);
	(void)kslab_heap_reclaim(&t.heap, SIZE_MAX);
	assert_true(kslab_heap_check(&t.heap, NULL));
	assert_true(wrong == NULL && t.recorder.count == 0);
	assert_int_equal(kslab_heap_fini(&t.heap), KSLAB_OK);
	assert_true(t.source.pages_out == 64 && t.source.errors == 0);
}

/* ---- the storm ------------------------------------------------------------------------------- */

#define RANKS 5u /* the task, three interrupts, the NMI */
#define NMI_RANK 4u
#define KEPT 24u /* objects that each of them holds */
#define SHARED 32u /* objects that wander between all of them */

#ifndef SIGEV_THREAD_ID
#define SIGEV_THREAD_ID 4
#endif
#ifndef sigev_notify_thread_id
#define sigev_notify_thread_id _sigev_un._tid
#endif

struct context {
	struct testing_random random;
	unsigned char *kept[KEPT];
	size_t signals, allocations, busy, reentry, failed;
};

static struct context contexts[2][RANKS];
static unsigned char *shared[SHARED]; /* atomic */
static size_t storm_faults, storm_damage, storm_deepest[RANKS + 1];
static const char *storm_what;
static int stop_storm;
static double cpu_seconds[2]; /* that each thread had the processor */
static sigset_t maskable;
static __thread sigset_t unmasked_set;
static __thread unsigned depth;
static char source_lock;

static void is_damage(const char *what)
{
	__atomic_fetch_add(&storm_damage, 1, __ATOMIC_RELAXED);
	__atomic_store_n(&storm_what, what, __ATOMIC_RELAXED);
}

static void mask_signals(int mask)
{
	if (mask)
		pthread_sigmask(SIG_BLOCK, &maskable, &unmasked_set);
	else
		pthread_sigmask(SIG_SETMASK, &unmasked_set, NULL);
}

static void *storm_alloc(void *ctx, size_t pages)
{
	uintptr_t state = fake_irq_save();
	void *mem;

	while (__atomic_test_and_set(&source_lock, __ATOMIC_ACQUIRE))
		KSLAB_PORT_RELAX();
	mem = masked_alloc(ctx, pages);
	__atomic_clear(&source_lock, __ATOMIC_RELEASE);
	fake_irq_restore(state);
	return mem;
}

static void storm_free(void *ctx, void *mem, size_t pages)
{
	uintptr_t state = fake_irq_save();

	while (__atomic_test_and_set(&source_lock, __ATOMIC_ACQUIRE))
		KSLAB_PORT_RELAX();
	masked_free(ctx, mem, pages);
	__atomic_clear(&source_lock, __ATOMIC_RELEASE);
	fake_irq_restore(state);
}

static void storm_report(void *ctx, const struct kslab_report *report)
{
	(void)ctx;
	__atomic_fetch_add(&storm_faults, 1, __ATOMIC_RELAXED);
	__atomic_store_n(&storm_what, report->what, __ATOMIC_RELAXED);
}

/* Each object carries its length and a mark at both ends that depends on its address. */
static void sign(unsigned char *p, uint32_t bytes)
{
	uint32_t mark = (uint32_t)(uintptr_t)p * 2654435761u ^ bytes;

	memcpy(p, &bytes, 4);
	memcpy(p + 4, &mark, 4);
	memcpy(p + bytes - 4, &mark, 4);
}

static void check_and_free(unsigned char *p)
{
	uint32_t bytes, mark, last;

	if (p == NULL)
		return;
	memcpy(&bytes, p, 4);
	memcpy(&mark, p + 4, 4);
	if (mark != ((uint32_t)(uintptr_t)p * 2654435761u ^ bytes)) {
		is_damage("an object's beginning was overwritten");
		return;
	}
	memcpy(&last, p + bytes - 4, 4);
	if (last != mark)
		is_damage("an object's end was overwritten");
	memset(p, 0, 12); /* a second free of it would find no mark */
	kslab_heap_free(&t.heap, p);
}

static void storm_step(struct context *context, unsigned rank)
{
	size_t i = testing_random_below(&context->random, KEPT);
	unsigned char *p = context->kept[i];
	uint32_t bytes;

	context->kept[i] = NULL;
	check_and_free(p);
	bytes = 12 + (uint32_t)testing_random_below(&context->random, i % 8 == 0 ? 3000 : 200);
	if (testing_random_below(&context->random, 200) == 0)
		bytes = 3 * PAGE;
	p = kslab_heap_malloc(&t.heap, bytes);
	context->allocations++;
	if (p == NULL) {
		enum kslab_reason reason = kslab_heap_last_error(&t.heap);

		context->busy += reason == KSLAB_BUSY;
		context->reentry += reason == KSLAB_REENTRY;
		if (reason != KSLAB_BUSY && reason != KSLAB_REENTRY) {
			context->failed++;
			storm_what = kslab_reason_name(reason);
		}
		return;
	}
	if (rank == 0 && bytes == 3 * PAGE)
		memset(p, 0x99, bytes);
	sign(p, bytes);
	if (i % 3 == 0)
		p = __atomic_exchange_n(&shared[testing_random_below(&context->random, SHARED)], p,
					__ATOMIC_ACQ_REL);
	context->kept[i] = p;
}

static unsigned rank_of(int number)
{
	return number == SIGRTMIN	? 1
	       : number == SIGRTMIN + 1 ? 2
	       : number == SIGRTMIN + 2 ? 3
					: NMI_RANK;
}

static void storm_signal(int number)
{
	unsigned rank = rank_of(number), masked = fake_masked, pins = fake_pins,
		 nmi_before = fake_nmi;
	struct context *context = &contexts[fake_cpu][rank];
	int saved = errno;

	depth++;
	__atomic_fetch_add(&storm_deepest[depth], 1, __ATOMIC_RELAXED);
	if (rank == NMI_RANK) {
		fake_nmi = 1;
		fake_masked = 1; /* nothing is masked by this, and nothing unmasked */
	} else if (masked != 0) {
		is_damage("a masked signal came");
	}
	context->signals++;
	storm_step(context, rank);
	fake_masked = masked;
	fake_nmi = nmi_before;
	if (fake_pins != pins)
		is_damage("pins are not balanced");
	depth--;
	errno = saved;
}

/* Periods in ns: beats of all phases. */
static const long storm_periods[RANKS - 1] = { 29000, 37000, 43000, 53000 };
static timer_t storm_timers[2][RANKS - 1];
static size_t storm_steps[2]; /* of the task of each thread: it must get on */

/* Let the signals of a thread come at `slower` times their periods; 0: no more. */
static void pace_storm(unsigned cpu, double slower)
{
	for (unsigned i = 0; i < RANKS - 1; i++) {
		long period = (long)((double)storm_periods[i] * slower);
		struct itimerspec time = { { 0, period }, { 0, period } };

		if (timer_settime(storm_timers[cpu][i], 0, &time, NULL) != 0)
			is_damage("a timer can't be set");
	}
}

static void create_timers(unsigned cpu)
{
	for (unsigned i = 0; i < RANKS - 1; i++) {
		struct sigevent event;

		memset(&event, 0, sizeof(event));
		event.sigev_notify = SIGEV_THREAD_ID;
		event.sigev_signo = SIGRTMIN + (int)i;
		event.sigev_notify_thread_id = gettid();
		if (timer_create(CLOCK_MONOTONIC, &event, &storm_timers[cpu][i]) != 0)
			is_damage("no timer");
	}
}

static void *storm_thread(void *arg)
{
	unsigned cpu = (unsigned)(uintptr_t)arg;
	struct timespec used;
	sigset_t all;

	fake_cpu = cpu;
	depth = 0;
	create_timers(cpu);
	for (unsigned step = 0; !__atomic_load_n(&stop_storm, __ATOMIC_RELAXED); step++) {
		storm_step(&contexts[cpu][0], 0);
		__atomic_store_n(&storm_steps[cpu], step + 1, __ATOMIC_RELEASE);
		if (step % 256 == 0)
			kslab_heap_idle(&t.heap);
		if (step % 4096 == 0)
			(void)kslab_heap_reclaim(&t.heap, 8);
	}
	sigemptyset(&all);
	for (int i = 0; i < (int)RANKS - 1; i++) {
		timer_delete(storm_timers[cpu][i]);
		sigaddset(&all, SIGRTMIN + i);
	}
	clock_gettime(CLOCK_THREAD_CPUTIME_ID, &used);
	cpu_seconds[cpu] = (double)used.tv_sec + (double)used.tv_nsec / 1e9;
	pthread_sigmask(SIG_BLOCK, &all, NULL); /* what is pending dies with the thread */
	return NULL;
}

/* More is never needed: a task that stands still all the same waits for its processor. */
#define SLOWEST 8

/*
 * The storm, for so many seconds. A machine whose signals take longer than their periods would run
 * handlers only: where the task of a thread stands still its signals are slowed down, and that is
 * said.
 */
static void let_it_storm(double seconds)
{
	const unsigned tick = 20000; /* us */
	const size_t enough = 50; /* steps of the task in a tick */
	double slower[2] = { 1, 1 };
	size_t before[2] = { 0, 0 };

	for (unsigned cpu = 0; cpu < 2; cpu++) {
		while (__atomic_load_n(&storm_steps[cpu], __ATOMIC_ACQUIRE) == 0)
			usleep(100);
		pace_storm(cpu, 1);
	}
	for (double past = 0; past < seconds; past += tick / 1e6) {
		usleep(tick);
		for (unsigned cpu = 0; cpu < 2; cpu++) {
			size_t now = __atomic_load_n(&storm_steps[cpu], __ATOMIC_RELAXED);

			if (now - before[cpu] < enough && slower[cpu] < SLOWEST)
				pace_storm(cpu, slower[cpu] *= 1.25);
			before[cpu] = now;
		}
	}
	pace_storm(0, 0); /* before the threads delete their timers */
	pace_storm(1, 0);
	__atomic_store_n(&stop_storm, 1, __ATOMIC_RELAXED);
	print_message("# periods 29 to 53 us, times %.2f and %.2f\n", slower[0], slower[1]);
}

static void install_handlers(void)
{
	sigemptyset(&maskable);
	for (int i = 0; i < (int)RANKS - 2; i++)
		sigaddset(&maskable, SIGRTMIN + i);
	for (int i = 0; i < (int)RANKS - 1; i++) {
		struct sigaction action;

		memset(&action, 0, sizeof(action));
		action.sa_handler = storm_signal;
		action.sa_flags = SA_RESTART;
		sigemptyset(&action.sa_mask);
		for (int k = 0; k <= i; k++) /* its own rank and the lower ones */
			sigaddset(&action.sa_mask, SIGRTMIN + k);
		assert_int_equal(sigaction(SIGRTMIN + i, &action, NULL), 0);
	}
}

static void signals_at_every_rate_and_depth_break_nothing(void **state)
{
	const char *given = getenv("KSLAB_STORM_SECONDS");
	double seconds = given != NULL ? strtod(given, NULL) : 2.0, rate, cpu_rate;
	struct testing_random random = testing_seed("storm", 30);
	size_t signals = 0, allocations = 0, busy = 0, reentry = 0, failed = 0, nmi_signals = 0;
	pthread_t threads[2];

	(void)state;
	source_pages = 4096;
	begin_with(64, 16 * PAGE);
	source_pages = 256;
	assert_int_equal(kslab_heap_set_page_source(&t.heap, storm_alloc, storm_free, &t.source),
			 KSLAB_OK);
	t.heap.report = storm_report;
	memset(contexts, 0, sizeof(contexts));
	for (unsigned i = 0; i < 2 * RANKS; i++)
		contexts[i / RANKS][i % RANKS].random.state = testing_random_next(&random);
	storm_faults = storm_damage = 0;
	storm_what = NULL;
	storm_steps[0] = storm_steps[1] = 0;
	stop_storm = 0;
	install_handlers();
	fake_mask = mask_signals;
	fake_yields = 1;
	for (uintptr_t i = 0; i < 2; i++)
		assert_int_equal(pthread_create(&threads[i], NULL, storm_thread, (void *)i), 0);
	let_it_storm(seconds);
	for (unsigned i = 0; i < 2; i++)
		assert_int_equal(pthread_join(threads[i], NULL), 0);
	fake_mask = NULL;
	fake_yields = 0;
	for (unsigned i = 0; i < 2 * RANKS; i++) {
		struct context *context = &contexts[i / RANKS][i % RANKS];

		signals += context->signals;
		nmi_signals += i % RANKS == NMI_RANK ? context->signals : 0;
		allocations += context->allocations;
		busy += context->busy;
		reentry += context->reentry;
		failed += context->failed;
		for (unsigned k = 0; k < KEPT; k++)
			check_and_free(context->kept[k]);
	}
	for (unsigned k = 0; k < SHARED; k++) {
		check_and_free(shared[k]);
		shared[k] = NULL;
	}
	rate = (double)signals / seconds / 2;
	cpu_rate = (double)signals / (cpu_seconds[0] + cpu_seconds[1]);
	print_message(
		"# signals per thread: %.0f in each second, %.0f in each second that it ran\n",
		rate, cpu_rate);
	print_message("# %zu signals, of them %zu NMI; %zu allocations\n", signals, nmi_signals,
		      allocations);
	print_message(
		"# depth 1: %zu, 2: %zu, 3: %zu, 4: %zu; NULL: %zu busy, %zu re-entry, %zu other\n",
		storm_deepest[1], storm_deepest[2], storm_deepest[3], storm_deepest[4], busy,
		reentry, failed);
	if (storm_faults != 0 || storm_damage != 0 || failed != 0)
		print_error("%s\n", storm_what);
	assert_true(storm_faults == 0);
	assert_true(storm_damage == 0);
	assert_true(failed == 0);
	assert_true(cpu_rate > 2000); /* 20000 and more where nothing else runs */
	assert_true(verify());
}

static const struct CMUnitTest tests_of_interrupts[] = {
	cmocka_unit_test_setup_teardown(each_level_is_served_and_the_next_is_refused_with_reentry,
					setup, teardown),
	cmocka_unit_test_setup_teardown(an_nmi_only_tries_the_lock_and_its_frees_always_work, setup,
					teardown),
	cmocka_unit_test_setup_teardown(an_nmi_is_served_from_regions, setup, teardown),
	cmocka_unit_test_setup_teardown(an_interrupt_may_come_at_every_instruction, setup,
					teardown),
	cmocka_unit_test_setup_teardown(an_nmi_may_come_at_every_instruction, setup, teardown),
	cmocka_unit_test_setup_teardown(another_cpu_may_act_between_any_two_instructions, setup,
					teardown),
	cmocka_unit_test_setup_teardown(interrupts_may_come_one_after_the_other, setup, teardown),
	cmocka_unit_test_setup_teardown(signals_at_every_rate_and_depth_break_nothing, setup,
					teardown),
};

int main(void)
{
	return cmocka_run_group_tests(tests_of_interrupts, NULL, NULL);
}
