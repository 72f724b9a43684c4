/* SPDX-License-Identifier: MIT
 * test_smp.c - owns the proof that CPUs may do everything at once: threads play them, CPUs come and
 * go, objects wander.
 * Rank: test.  Runs: 2 to 16 threads; the interleavings of misuse rows 31 to 33 in single steps,
 * too (x86).
 *
 * BUILD: -DKSLAB_CFG_HEADER='"fake_cpu.h"' -DKSLAB_CFG_CPUS=16 -DKSLAB_CFG_LEVELS=2
 *
 * tests/test_tsan.sh runs it under ThreadSanitizer, and with orders weakened, which must be found.
 */
#define _GNU_SOURCE
#include "testing.h"

#include <pthread.h>
#include <time.h>

#include "fake_cpu.h"
#include "heap.h"
#include "single_step.h"

FAKE_CPU_DEFINE;

#define PAGE 4096u

#if defined(__SANITIZE_THREAD__)
#define SANITIZED 1
#elif defined(__has_feature)
#if __has_feature(thread_sanitizer)
#define SANITIZED 1
#endif
#endif
#ifndef SANITIZED
#define SANITIZED 0
#endif
#if defined(__SANITIZE_ADDRESS__)
#define SLOWER 4u
#else
#define SLOWER (SANITIZED ? 5u : 1u)
#endif
#define STEPS(n) ((n) / SLOWER)

static struct testing t;

/* ---- the fake kernel, for threads ------------------------------------------------------------ */

static pthread_mutex_t source_mutex = PTHREAD_MUTEX_INITIALIZER;
static size_t faults, damage; /* atomic: reports, and what threads found wrong */
static size_t kinds[KSLAB_FAULT_COUNT];
static const char *damage_what;

static void *locked_alloc(void *ctx, size_t pages)
{
	void *mem;

	pthread_mutex_lock(&source_mutex);
	mem = fake_source_alloc(ctx, pages);
	pthread_mutex_unlock(&source_mutex);
	return mem;
}

static void locked_free(void *ctx, void *mem, size_t pages)
{
	pthread_mutex_lock(&source_mutex);
	fake_source_free(ctx, mem, pages);
	pthread_mutex_unlock(&source_mutex);
}

static void count_report(void *ctx, const struct kslab_report *report)
{
	(void)ctx;
	__atomic_fetch_add(&faults, 1, __ATOMIC_RELAXED);
	__atomic_fetch_add(&kinds[report->fault], 1, __ATOMIC_RELAXED);
}

static void is_damaged(const char *what)
{
	__atomic_fetch_add(&damage, 1, __ATOMIC_RELAXED);
	__atomic_store_n(&damage_what, what, __ATOMIC_RELAXED);
}

static void begin_with(const struct kslab_config *config, size_t pages, bool guard)
{
	memset(&kslab_default_heap, 0, sizeof(kslab_default_heap));
	fake_cpu = fake_pins = fake_masked = fake_nmi = 0;
	fake_yields = 1;
	faults = damage = 0;
	damage_what = NULL;
	memset(kinds, 0, sizeof(kinds));
	testing_begin_with(&t, config, pages, guard);
	t.heap.report = count_report;
	assert_int_equal(kslab_heap_set_page_source(&t.heap, locked_alloc, locked_free, &t.source),
			 KSLAB_OK);
}

static const struct kslab_config single_frames = { .max_page_bytes = PAGE };
static const struct kslab_config long_pages = { .max_page_bytes = 16 * PAGE };
static const struct kslab_config nothing_kept = { .max_page_bytes = PAGE,
						  .retain_bytes = KSLAB_RETAIN_NONE };

static void online_here(unsigned cpu)
{
	fake_cpu = cpu;
	if (kslab_heap_cpu_online(&t.heap, cpu) != KSLAB_OK)
		is_damaged("a cpu did not come online");
}

static void all_online(unsigned cpus)
{
	for (unsigned cpu = 1; cpu < cpus; cpu++)
		online_here(cpu);
	fake_cpu = 0;
	assert_true(damage == 0);
}

static void all_idle(void)
{
	for (unsigned cpu = 0; cpu < KSLAB_CFG_CPUS; cpu++) {
		fake_cpu = cpu;
		kslab_heap_idle(&t.heap);
	}
	fake_cpu = 0;
}

/* Everything is free: it is pending nowhere, goes back from everywhere, and is counted. */
static const char *wrong_at_end(void)
{
	struct kslab_check_result check;
	struct kslab_stats stats;

	if (!kslab_heap_check(&t.heap, &check))
		return check.what;
	for (unsigned round = 0; round < 2; round++) {
		for (unsigned cpu = 0; cpu < KSLAB_CFG_CPUS; cpu++) {
			fake_cpu = cpu;
			(void)kslab_heap_reclaim(&t.heap, SIZE_MAX);
		}
	}
	all_idle();
	if (!kslab_heap_quiesce(&t.heap))
		return "frees are pending at the end";
	if (!kslab_heap_check(&t.heap, &check))
		return check.what;
	kslab_heap_stats(&t.heap, &stats);
	if (stats.live_objects != 0 || stats.large_blocks != 0)
		return "objects are live at the end";
	if (stats.pages_in_use != stats.metadata_pages)
		return "object pages are left at the end";
	if (damage != 0)
		return damage_what;
	if (t.source.errors != 0)
		return t.source.what;
	if (fake_pins != 0 || fake_masked != 0)
		return "pins or masks are not balanced";
	if (kslab_heap_fini(&t.heap) != KSLAB_OK)
		return "the heap can't be ended";
	return t.source.pages_out != 0 ? "the end of the heap left pages behind" : NULL;
}

static void end_with_faults(size_t wanted)
{
	testing_assert(wrong_at_end(), __FILE__, __LINE__);
	assert_true(faults == wanted);
	fake_source_fini(&t.source);
	t.source.memory = NULL;
}

static int teardown(void **state)
{
	(void)state;
	if (t.source.memory != NULL)
		fake_source_fini(&t.source);
	t.source.memory = NULL;
	return 0;
}

static void must_pass(void)
{
	struct kslab_check_result check;

	if (!kslab_heap_check(&t.heap, &check))
		testing_assert(check.what, __FILE__, __LINE__);
}

/* ---- objects that know what they are --------------------------------------------------------- */

static uint32_t mark_of(const void *p, uint32_t bytes)
{
	return (uint32_t)(uintptr_t)p * 2654435761u ^ bytes;
}

static unsigned char *take(size_t n)
{
	unsigned char *p = kslab_heap_malloc(&t.heap, n < 12 ? 12 : n);
	uint32_t bytes = (uint32_t)(n < 12 ? 12 : n), mark = mark_of(p, bytes);

	if (p == NULL) {
		is_damaged("an allocation failed");
		return NULL;
	}
	memset(p, (int)(mark & 0xff), bytes);
	memcpy(p, &bytes, 4);
	memcpy(p + 4, &mark, 4);
	return p;
}

static void give(unsigned char *p)
{
	uint32_t bytes, mark;

	if (p == NULL)
		return;
	memcpy(&bytes, p, 4);
	memcpy(&mark, p + 4, 4);
	if (mark != mark_of(p, bytes)) {
		is_damaged("an object was overwritten, or issued twice");
		return;
	}
	for (uint32_t i = 8; i < bytes; i++) {
		if (p[i] != (mark & 0xff)) {
			is_damaged("the body of an object was overwritten");
			break;
		}
	}
	memset(p, 0, 12);
	kslab_heap_free(&t.heap, p);
}

static unsigned char *swap(unsigned char **slot, unsigned char *p)
{
	return __atomic_exchange_n(slot, p, __ATOMIC_ACQ_REL);
}

/* ---- threads --------------------------------------------------------------------------------- */

struct worker {
	pthread_t thread;
	void (*work)(struct worker *worker);
	unsigned cpu;
	struct testing_random random;
	void *arg;
};

static void *run_worker(void *arg)
{
	struct worker *worker = arg;

	fake_cpu = worker->cpu;
	worker->work(worker);
	if (fake_pins != 0 || fake_masked != 0)
		is_damaged("pins or masks of a thread are not balanced");
	return NULL;
}

static void start(struct worker *worker, unsigned cpu, void (*work)(struct worker *), uint64_t seed)
{
	worker->work = work;
	worker->cpu = cpu;
	worker->random.state = seed * 1000003 + cpu;
	assert_int_equal(pthread_create(&worker->thread, NULL, run_worker, worker), 0);
}

static void join(struct worker *worker)
{
	assert_int_equal(pthread_join(worker->thread, NULL), 0);
}

static int stop; /* atomic */

static bool is_stopped(void)
{
	return __atomic_load_n(&stop, __ATOMIC_RELAXED) != 0;
}

#define SHARED 256u
static unsigned char *shared[SHARED]; /* atomic */

static void empty_shared(void)
{
	for (size_t i = 0; i < SHARED; i++)
		give(swap(&shared[i], NULL));
}

static size_t some_size(struct testing_random *random)
{
	size_t kind = testing_random_below(random, 100);

	if (kind < 70)
		return 12 + testing_random_below(random, 200);
	if (kind < 98)
		return 12 + testing_random_below(random, 3000);
	return 12 + testing_random_below(random, 30000);
}

/* ---- producer and consumer ------------------------------------------------------------------- */

static unsigned produced; /* steps of the producers of a test */

static void produce(struct worker *worker)
{
	for (unsigned i = 0; i < produced; i++) {
		unsigned char *p = take(some_size(&worker->random));

		while (p != NULL && !is_stopped()) {
			unsigned char *
				*slot = &shared[testing_random_below(&worker->random, SHARED)],
			       *none = NULL;

			if (__atomic_compare_exchange_n(slot, &none, p, false, __ATOMIC_ACQ_REL,
							__ATOMIC_RELAXED))
				p = NULL;
			else
				sched_yield();
		}
		give(p);
	}
}

static void consume(struct worker *worker)
{
	while (!is_stopped()) {
		for (size_t i = 0; i < SHARED; i++)
			give(swap(&shared[i], NULL));
		kslab_heap_idle(&t.heap);
		sched_yield();
	}
	(void)worker;
}

/* The consumer's CPU is online, or it never was: one that only frees. */
static void produce_and_consume(unsigned producers, bool consumer_online)
{
	struct worker workers[4];
	size_t peak;

	begin_with(&single_frames, 16384, false);
	all_online(producers);
	if (consumer_online)
		online_here(producers);
	fake_cpu = 0;
	stop = 0;
	produced = STEPS(60000) / producers;
	for (unsigned i = 0; i < producers; i++)
		start(&workers[i], i, produce, 1);
	start(&workers[producers], producers, consume, 2);
	for (unsigned i = 0; i < producers; i++)
		join(&workers[i]);
	__atomic_store_n(&stop, 1, __ATOMIC_RELAXED);
	join(&workers[producers]);
	empty_shared();
	must_pass();
	peak = t.heap.pages_peak;
	print_message("# %u producers: %zu pages at most\n", producers, peak);
	assert_true(peak < 2500); /* 256 objects on their way, however many there were */
	end_with_faults(0);
}

static void what_one_cpu_allocates_another_frees(void **state)
{
	(void)state;
	produce_and_consume(1, true);
	produce_and_consume(3, true);
}

static void a_cpu_that_only_frees_starves_nobody(void **state)
{
	(void)state;
	produce_and_consume(2, false);
}

/* ---- everybody does everything --------------------------------------------------------------- */

#define KEPT 64u

static void mix(struct worker *worker, unsigned steps)
{
	unsigned char *kept[KEPT] = { NULL };

	for (unsigned step = 0; step < steps; step++) {
		size_t i = testing_random_below(&worker->random, KEPT);

		switch (testing_random_below(&worker->random, 8)) {
		case 0:
		case 1:
			kept[i] = swap(&shared[testing_random_below(&worker->random, SHARED)],
				       kept[i]);
			break;
		case 2:
			if (step % 64 == 0)
				kslab_heap_idle(&t.heap);
			if (step % 512 == 0)
				(void)kslab_heap_reclaim(&t.heap, 4);
			break;
		default:
			if (kept[i] != NULL) {
				give(kept[i]);
				kept[i] = NULL;
			} else {
				kept[i] = take(some_size(&worker->random));
			}
		}
	}
	for (size_t i = 0; i < KEPT; i++)
		give(kept[i]);
}

static void mix_on(struct worker *worker)
{
	mix(worker, produced);
}

static void mixed(const struct kslab_config *config, unsigned cpus, bool guard, unsigned steps)
{
	struct testing_random random = testing_seed("mixed", cpus);
	struct worker workers[KSLAB_CFG_CPUS];

	begin_with(config, 16384, guard);
	all_online(cpus);
	produced = STEPS(steps) / cpus;
	for (unsigned i = 0; i < cpus; i++)
		start(&workers[i], i, mix_on, random.state);
	for (unsigned i = 0; i < cpus; i++)
		join(&workers[i]);
	empty_shared();
	must_pass();
	end_with_faults(0);
}

static void two_cpus_mix_everything(void **state)
{
	(void)state;
	mixed(&single_frames, 2, false, 200000);
}

static void sixteen_cpus_mix_everything(void **state)
{
	(void)state;
	mixed(&long_pages, 16, false, 200000);
}

/* Retention 0, and memory that went back can't be touched: rows 32 and 33. */
static void no_page_goes_back_with_an_object_live(void **state)
{
	(void)state;
	mixed(&nothing_kept, 4, true, 40000);
}

/* ---- CPUs come and go ------------------------------------------------------------------------ */

static void mix_for_ever(struct worker *worker)
{
	while (!is_stopped())
		mix(worker, 200);
}

static void come_and_go(struct worker *worker)
{
	for (unsigned round = 0; round < produced; round++) {
		online_here(worker->cpu);
		mix(worker, 100 + (unsigned)testing_random_below(&worker->random, 200));
		if (kslab_heap_cpu_offline(&t.heap, worker->cpu) != KSLAB_OK)
			is_damaged("a cpu did not go offline");
		/* Not online, it may still free. */
		give(swap(&shared[testing_random_below(&worker->random, SHARED)], NULL));
	}
}

static void cpus_come_and_go_while_others_go_on(void **state)
{
	struct worker workers[6];

	(void)state;
	begin_with(&single_frames, 16384, false);
	all_online(2);
	stop = 0;
	produced = STEPS(150);
	for (unsigned i = 0; i < 6; i++)
		start(&workers[i], i, i < 2 ? mix_for_ever : come_and_go, 5);
	for (unsigned i = 2; i < 6; i++)
		join(&workers[i]);
	__atomic_store_n(&stop, 1, __ATOMIC_RELAXED);
	join(&workers[0]);
	join(&workers[1]);
	empty_shared();
	must_pass();
	end_with_faults(0);
}

static void live_shortly(struct worker *worker)
{
	unsigned char *p[40];

	online_here(worker->cpu);
	for (size_t i = 0; i < TESTING_COUNT(p); i++)
		p[i] = take(some_size(&worker->random));
	for (size_t i = 0; i < TESTING_COUNT(p); i++)
		give(i % 4 != 0
			     ? p[i]
			     : swap(&shared[testing_random_below(&worker->random, SHARED)], p[i]));
	if (kslab_heap_cpu_offline(&t.heap, worker->cpu) != KSLAB_OK)
		is_damaged("a cpu did not go offline");
}

/* CPU numbers are used again and again: what a thread leaves behind is found by the next ones. */
static void thousands_of_short_lived_threads_leak_nothing(void **state)
{
	struct worker workers[4];
	size_t early = 0, metadata = 0;
	unsigned rounds = STEPS(1000);

	(void)state;
	begin_with(&single_frames, 16384, false);
	for (unsigned round = 0; round < rounds; round++) {
		for (unsigned i = 0; i < 4; i++)
			start(&workers[i], 1 + (round + i * 3) % 15, live_shortly, round);
		for (unsigned i = 0; i < 4; i++)
			join(&workers[i]);
		if (round == rounds / 5) {
			early = t.heap.pages_in_use;
			metadata = t.heap.meta.pages;
		}
		if (round % 50 == 0)
			must_pass();
	}
	print_message(
		"# %u threads: %zu pages (%zu metadata) after a fifth, %zu (%zu) at the end\n",
		4 * rounds, early, metadata, t.heap.pages_in_use, t.heap.meta.pages);
	assert_true(t.heap.pages_in_use <= early + early / 2 + 64);
	assert_true(t.heap.meta.pages <= metadata + metadata / 4 + 8);
	empty_shared();
	must_pass();
	end_with_faults(0);
}

/* ---- progress: quiesce, reclaim, retention --------------------------------------------------- */

static void *get_on(unsigned cpu, size_t n)
{
	void *p;

	fake_cpu = cpu;
	p = kslab_heap_malloc(&t.heap, n);
	fake_cpu = 0;
	assert_non_null(p);
	must_pass();
	return p;
}

static void put_on(unsigned cpu, void *p)
{
	fake_cpu = cpu;
	kslab_heap_free(&t.heap, p);
	fake_cpu = 0;
	must_pass();
}

static void idle_on(unsigned cpu)
{
	fake_cpu = cpu;
	kslab_heap_idle(&t.heap);
	fake_cpu = 0;
	must_pass();
}

static void quiesce_is_false_until_the_owner_has_taken_in_its_mail(void **state)
{
	void *p[8];

	(void)state;
	begin_with(&single_frames, 1024, false);
	all_online(2);
	for (unsigned i = 0; i < 8; i++)
		p[i] = get_on(1, 1024); /* two full pages */
	assert_true(kslab_heap_quiesce(&t.heap));
	put_on(0, p[0]);
	assert_false(kslab_heap_quiesce(&t.heap));
	assert_false(kslab_heap_quiesce(&t.heap));
	idle_on(1);
	assert_true(kslab_heap_quiesce(&t.heap));
	for (unsigned i = 1; i < 8; i++)
		put_on(i % 2, p[i]);
	fake_cpu = 1;
	assert_true(kslab_heap_quiesce(&t.heap)); /* the owner itself takes everything in */
	fake_cpu = 0;
	assert_true(kslab_heap_quiesce(&t.heap));
	must_pass();
	end_with_faults(0);
}

/*
 * A page that its owner still allocates from gets no mail: "let them idle" MUST be enough all the
 * same.
 */
static void quiesce_is_true_once_every_owner_has_idled(void **state)
{
	void *p[3];

	(void)state;
	begin_with(&single_frames, 1024, false);
	all_online(2);
	for (unsigned i = 0; i < 3; i++)
		p[i] = get_on(1, 1024);
	put_on(0, p[0]); /* its page is current */
	assert_false(kslab_heap_quiesce(&t.heap));
	idle_on(1);
	assert_true(kslab_heap_quiesce(&t.heap));
	put_on(1, p[1]);
	put_on(1, p[2]);
	end_with_faults(0);
}

static size_t object_pages(void)
{
	struct kslab_stats stats;

	kslab_heap_stats(&t.heap, &stats);
	return stats.pages_in_use - stats.metadata_pages;
}

static void a_reclaim_request_is_served_by_idle_cpus(void **state)
{
	void *p[40];

	(void)state;
	begin_with(&single_frames, 1024, false);
	all_online(3);
	for (unsigned i = 0; i < 40; i++)
		p[i] = get_on(i % 3, 2048);
	for (unsigned i = 0; i < 40; i++)
		put_on(i % 3, p[i]);
	assert_true(object_pages() == 21); /* 14, 13, 13 objects, two in a page */
	assert_true(kslab_heap_reclaim(&t.heap, SIZE_MAX) == 7);
	assert_true(object_pages() == 14);
	idle_on(1);
	assert_true(object_pages() == 7);
	for (unsigned i = 0; i < 3; i++) /* or at the next slow paths, a few pages each */
		put_on(2, get_on(2, 100 + 100 * i));
	assert_true(object_pages() == 1);
	end_with_faults(0);
}

/* An interrupt of CPU 1 allocates and frees; the pages stay in its own zone. Return: the outer one. */
static struct kslab_zone *work_in_interrupt(unsigned count)
{
	struct kslab_zone *zone = t.heap.zone[1];
	void *p[24];

	zone->owner.key = 0;
	for (unsigned i = 0; i < count; i++)
		p[i] = get_on(1, 2048);
	for (unsigned i = 0; i < count; i++)
		put_on(1, p[i]);
	zone->owner.key = (uintptr_t)zone;
	return zone;
}

/* What an interrupt of that CPU left in its own zone is part of it. */
static void a_reclaim_request_is_served_for_every_level(void **state)
{
	(void)state;
	begin_with(&single_frames, 1024, false);
	all_online(2);
	work_in_interrupt(8);
	assert_true(object_pages() == 4);
	(void)kslab_heap_reclaim(&t.heap, SIZE_MAX);
	assert_true(object_pages() == 4);
	idle_on(1);
	assert_true(object_pages() == 0);
	end_with_faults(0);
}

/* ... and goes back by slow paths of the CPU, too, in which no interrupt comes. */
static void a_reclaim_request_is_served_for_inner_levels_by_slow_paths(void **state)
{
	struct kslab_zone *zone;
	uint32_t pages = 0;

	(void)state;
	begin_with(&single_frames, 1024, false);
	all_online(2);
	zone = work_in_interrupt(24);
	assert_true(object_pages() == 12);
	(void)kslab_heap_reclaim(&t.heap, SIZE_MAX);
	for (unsigned i = 0; i < 12; i++) /* each makes a page */
		put_on(1, get_on(1, 100 + 100 * i));
	for (unsigned cls = 0; cls < KSLAB_CLASSES; cls++)
		pages += zone->inner->sc[cls].pages;
	assert_true(pages == 0);
	assert_true(zone->inner->reclaim_epoch == t.heap.reclaim_epoch);
	assert_true(zone->reclaim_epoch == t.heap.reclaim_epoch);
	end_with_faults(0);
}

static void with_retention_0_nothing_is_kept(void **state)
{
	void *p[60];

	(void)state;
	begin_with(&nothing_kept, 1024, true);
	all_online(3);
	for (unsigned round = 0; round < 3; round++) {
		for (unsigned i = 0; i < 60; i++)
			p[i] = get_on(i % 3, i % 7 == 0 ? 3 * PAGE : 50 * i + 1);
		for (unsigned i = 0; i < 60; i++)
			put_on((i + round) % 3, p[i]); /* by the owner, then by others */
		for (unsigned cpu = 0; cpu < 3; cpu++) {
			idle_on(cpu);
			fake_cpu = cpu;
			(void)kslab_heap_quiesce(&t.heap);
			fake_cpu = 0;
		}
		assert_true(object_pages() == 0);
	}
	end_with_faults(0);
}

static void a_page_of_a_cpu_that_is_gone_is_adopted(void **state)
{
	struct kslab_stats before, after;
	void *p[9], *q;

	(void)state;
	begin_with(&single_frames, 1024, false);
	all_online(2);
	for (unsigned i = 0; i < 9; i++)
		p[i] = get_on(1, 1024);
	assert_int_equal(kslab_heap_cpu_offline(&t.heap, 1), KSLAB_OK);
	must_pass();
	for (unsigned i = 0; i < 3; i++)
		put_on(0, p[i]);
	kslab_heap_stats(&t.heap, &before);
	q = get_on(0, 1024); /* from what was left behind, not from the source */
	kslab_heap_stats(&t.heap, &after);
	assert_true(before.pages_in_use == after.pages_in_use);
	put_on(0, q);
	for (unsigned i = 3; i < 9; i++)
		put_on(i % 2 != 0 ? 0 : 5, p[i]);
	(void)kslab_heap_reclaim(&t.heap, SIZE_MAX);
	must_pass();
	assert_true(object_pages() == 0);
	end_with_faults(0);
}

/* ---- row 31: freed on two CPUs at once ------------------------------------------------------- */

/* A page of CPU 0 with the object in question, in the state that the scenario wants. */
static unsigned char *disputed, *neighbours[12];
static size_t neighbour_count;

enum stage { CURRENT, FULL, PARTIAL, ALONE };

static void stage_dispute(enum stage stage)
{
	size_t n = stage == CURRENT ? 2 : stage == ALONE ? 1 : 9;

	begin_with(&single_frames, 256, false);
	all_online(4);
	neighbour_count = 0;
	disputed = get_on(0, 1024);
	while (neighbour_count < n - 1)
		neighbours[neighbour_count++] = get_on(0, 1024);
	if (stage == PARTIAL) {
		put_on(0, neighbours[0]);
		neighbours[0] = neighbours[--neighbour_count];
	}
}

static void free_on(unsigned cpu)
{
	unsigned before = fake_cpu;

	fake_cpu = cpu;
	kslab_heap_free(&t.heap, disputed);
	fake_cpu = before;
}

static void quiesce_on(unsigned cpu)
{
	unsigned before = fake_cpu;

	fake_cpu = cpu;
	kslab_heap_idle(&t.heap);
	(void)kslab_heap_reclaim(&t.heap, 0);
	fake_cpu = before;
}

static void op_free_on_1(void)
{
	free_on(1);
}

static void op_free_on_0(void)
{
	free_on(0);
}

static void op_idle_on_0(void)
{
	fake_cpu = 0;
	kslab_heap_idle(&t.heap);
}

static void op_collect_on_0(void)
{
	fake_cpu = 0;
	(void)kslab_heap_quiesce(&t.heap);
}

static void then_free_on_0(size_t step)
{
	(void)step;
	free_on(0);
}

static void then_free_on_2(size_t step)
{
	(void)step;
	free_on(2);
}

static void then_free_on_2_and_harvest(size_t step)
{
	free_on(2);
	quiesce_on(step % 2 != 0 ? 0 : 3);
	quiesce_on(0);
}

static void then_both_free(size_t step)
{
	(void)step;
	free_on(1);
	free_on(2);
}

static bool may_switch(void)
{
	return t.heap.lock.next == t.heap.lock.serving;
}

/* Exactly one free, one DOUBLE_FREE. */
static bool one_free_one_fault(void)
{
	const char *wrong;

	fake_cpu = 0;
	for (unsigned cpu = 0; cpu < 4; cpu++) {
		fake_cpu = cpu;
		kslab_heap_idle(&t.heap);
		(void)kslab_heap_quiesce(&t.heap);
	}
	fake_cpu = 0;
	for (size_t i = 0; i < neighbour_count; i++)
		kslab_heap_free(&t.heap, neighbours[i]);
	wrong = wrong_at_end();
	if (wrong == NULL && (faults != 1 || kinds[KSLAB_FAULT_DOUBLE_FREE] != 1))
		wrong = faults == 0 ? "the second free was not reported" : "more than one report";
	if (wrong != NULL)
		fprintf(stderr, "%s\n", wrong);
	return wrong == NULL;
}

static const struct dispute {
	const char *name;
	void (*op)(void);
	void (*meanwhile)(size_t step);
} disputes[] = {
	{ "remote free, meanwhile the owner frees", op_free_on_1, then_free_on_0 },
	{ "remote free, meanwhile another remote free", op_free_on_1, then_free_on_2 },
	{ "remote free, meanwhile a remote free and a harvest", op_free_on_1,
	  then_free_on_2_and_harvest },
	{ "owner's free, meanwhile a remote free", op_free_on_0, then_free_on_2 },
	{ "owner idles, meanwhile two remote frees", op_idle_on_0, then_both_free },
	{ "owner collects, meanwhile two remote frees", op_collect_on_0, then_both_free },
};

static void of_two_frees_at_once_exactly_one_is_refused_in_every_interleaving(void **state)
{
	static const char *const stages[] = { "current", "full", "partial", "alone" };
	size_t runs = 0, bad = 0;

	(void)state;
	if (!single_step_is_available() || SANITIZED)
		skip();
	for (unsigned stage = CURRENT; stage <= ALONE; stage++) {
		for (size_t i = 0; i < TESTING_COUNT(disputes); i++) {
			struct single_step step = { .name = disputes[i].name,
						    .op = disputes[i].op,
						    .may_interrupt = may_switch,
						    .interrupt = disputes[i].meanwhile,
						    .verify = one_free_one_fault,
						    .stride = 2 * SLOWER - 1 };
			bool good;

			/* The parent's own run: op, and then the rest, one after the other. */
			stage_dispute((enum stage)stage);
			good = single_step_run_interrupted(&step);
			runs += step.interrupts;
			if (!good) {
				print_error("%s page: %s: %zu of %zu runs went wrong, first %zu\n",
					    stages[stage], step.name, step.failures,
					    step.interrupts, step.first_failure);
				bad++;
			}
			fake_source_fini(&t.source);
			t.source.memory = NULL;
		}
	}
	print_message("# %zu interleavings\n", runs);
	assert_true(bad == 0);
	assert_true(runs > 100);
}

/*
 * The same by threads, where machine and compiler choose: 1 free and n - 1 reports, for each
 * object.
 */
#define ROUNDS 400u
static unsigned char *rounds_object[ROUNDS];
static unsigned rounds_ready[ROUNDS]; /* atomic: threads that wait at this object */
#define RACERS 3u

static void race(struct worker *worker)
{
	for (unsigned i = 0; i < STEPS(ROUNDS); i++) {
		__atomic_fetch_add(&rounds_ready[i], 1, __ATOMIC_ACQ_REL);
		while (__atomic_load_n(&rounds_ready[i], __ATOMIC_ACQUIRE) < RACERS)
			if (testing_random_below(&worker->random, 50) == 0)
				sched_yield();
		kslab_heap_free(&t.heap, rounds_object[i]);
	}
}

static void of_three_frees_at_once_two_are_refused(void **state)
{
	struct worker workers[RACERS];
	size_t rounds = STEPS(ROUNDS);

	(void)state;
	for (unsigned owner = 0; owner < 2; owner++) {
		begin_with(&single_frames, 4096, false);
		all_online(RACERS + 1);
		for (unsigned i = 0; i < rounds; i++) {
			rounds_object[i] = get_on(owner != 0 ? RACERS : 0,
						  i % 20 == 0 ? 5 * PAGE : 8 + i % 7 * 100);
			rounds_ready[i] = 0;
		}
		/* With owner 1 all racers are remote; with 0 the first one is the owner. */
		for (unsigned i = 0; i < RACERS; i++)
			start(&workers[i], i, race, 31);
		for (unsigned i = 0; i < RACERS; i++)
			join(&workers[i]);
		for (unsigned cpu = 0; cpu <= RACERS; cpu++) {
			fake_cpu = cpu;
			(void)kslab_heap_quiesce(&t.heap);
		}
		fake_cpu = 0;
		must_pass();
		/*
		 * A report at a harvest may stand for several: no more than one for each refused
		 * free.
		 */
		assert_true(kinds[KSLAB_FAULT_DOUBLE_FREE] == faults);
		assert_true(faults <= 2 * rounds);
		assert_true(faults > rounds);
		testing_assert(wrong_at_end(), __FILE__, __LINE__);
		fake_source_fini(&t.source);
		t.source.memory = NULL;
	}
}

/* A second free that is noticed when limbo takes remote frees in is reported like any other. */
static void a_double_free_found_in_limbo_is_reported(void **state)
{
	struct kslab_page *page;
	unsigned char *p, *keep;
	uint32_t index;

	(void)state;
	begin_with(&single_frames, 256, false);
	all_online(2);
	keep = get_on(1, 1024);
	p = get_on(1, 1024);
	page = kslab_page_map_find(&t.heap.map, (uintptr_t)p);
	index = kslab_page_index(page, (uintptr_t)p);
	put_on(1, p);
	assert_int_equal(kslab_heap_cpu_offline(&t.heap, 1), KSLAB_OK);
	must_pass();
	/*
	 * What a second free leaves whose look came before the first free, and whose fetch_or after
	 * it.
	 */
	t.heap.zone[0]->owner.remote_frees++;
	__atomic_fetch_or(&page->bits[0].remote, kslab_bit(index), __ATOMIC_SEQ_CST);
	(void)kslab_heap_quiesce(&t.heap);
	must_pass();
	assert_true(faults == 1 && kinds[KSLAB_FAULT_DOUBLE_FREE] == 1);
	put_on(0, keep);
	end_with_faults(1);
}

/*
 * A free that is under way on CPU 1, at each of its instructions: CPU 0 takes in what there is, CPU
 * 2 makes a free that CPU 3 has not taken in. The two must not cancel out.
 */
static unsigned char *pending;
static bool quiesce_lied;

static void op_free_pending(void)
{
	free_on(1);
}

static void quiesce_meanwhile(size_t step)
{
	unsigned before = fake_cpu;

	(void)step;
	fake_cpu = 2;
	kslab_heap_free(&t.heap, pending);
	fake_cpu = 0;
	kslab_heap_idle(&t.heap);
	if (kslab_heap_quiesce(&t.heap) || kslab_heap_quiesce(&t.heap))
		quiesce_lied = true;
	fake_cpu = before;
}

static bool quiesce_told_the_truth(void)
{
	const char *wrong = quiesce_lied ? "quiesce is true while a free is pending" : NULL;

	for (size_t i = 0; i < neighbour_count; i++)
		kslab_heap_free(&t.heap, neighbours[i]);
	wrong = wrong != NULL ? wrong : wrong_at_end();
	if (wrong != NULL)
		fprintf(stderr, "%s\n", wrong);
	return wrong == NULL && faults == 0;
}

static void quiesce_never_counts_a_free_that_is_under_way_against_one_that_is_pending(void **state)
{
	struct single_step step = { .name = "quiesce during a remote free",
				    .op = op_free_pending,
				    .may_interrupt = may_switch,
				    .interrupt = quiesce_meanwhile,
				    .verify = quiesce_told_the_truth,
				    .stride = 2 * SLOWER - 1 };
	bool good;

	(void)state;
	if (!single_step_is_available() || SANITIZED)
		skip();
	stage_dispute(FULL);
	pending = get_on(3, 1024);
	neighbours[neighbour_count++] = get_on(3, 1024); /* CPU 3's page is current: no mail */
	quiesce_lied = false;
	good = single_step_run_interrupted(&step);
	print_message("# %zu interleavings\n", step.interrupts);
	assert_true(good);
}

/* ---- what the contracts of CPUs and of reclaim say ------------------------------------------- */

static void a_cpu_that_finds_no_memory_to_go_stays(void **state)
{
	unsigned char *p, *q;

	(void)state;
	begin_with(&single_frames, 4096, true);
	all_online(2);
	p = get_on(1, 1024);
	fake_source_fail_from(&t.source, 1);
	assert_int_equal(kslab_heap_cpu_offline(&t.heap, 1), KSLAB_NO_PAGES);
	must_pass();
	q = get_on(1, 1024); /* from the page that it has */
	put_on(1, q);
	t.source.fail_from = 0;
	assert_int_equal(kslab_heap_cpu_offline(&t.heap, 1), KSLAB_OK);
	put_on(0, p);
	end_with_faults(0);
}

static void what_a_cpu_has_reserved_is_not_kept_when_it_is_back(void **state)
{
	unsigned char *p[256];

	(void)state;
	begin_with(&nothing_kept, 4096, true);
	all_online(2);
	fake_cpu = 1;
	assert_true(kslab_heap_reserve(&t.heap, 1024, TESTING_COUNT(p)));
	assert_int_equal(kslab_heap_cpu_offline(&t.heap, 1), KSLAB_OK);
	(void)kslab_heap_reclaim(&t.heap, object_pages()); /* and no more: nobody else is asked */
	assert_true(object_pages() == 0);
	online_here(1);
	for (unsigned i = 0; i < TESTING_COUNT(p); i++)
		assert_non_null(p[i] = kslab_heap_malloc(&t.heap, 1024));
	for (unsigned i = 0; i < TESTING_COUNT(p); i++)
		kslab_heap_free(&t.heap, p[i]);
	fake_cpu = 0;
	idle_on(1);
	assert_true(object_pages() <= 1);
	end_with_faults(0);
}

static void frees_of_a_cpu_that_is_not_online_are_counted(void **state)
{
	struct kslab_stats stats;
	unsigned char *p;

	(void)state;
	begin_with(&single_frames, 4096, true);
	p = get_on(0, 1024);
	put_on(1, p);
	kslab_heap_idle(&t.heap);
	kslab_heap_stats(&t.heap, &stats);
	assert_true(stats.harvested == 1 && stats.remote_frees == 1);
	end_with_faults(0);
}

static void reclaim_counts_the_blocks_that_were_freed_in_an_nmi(void **state)
{
	void *block;

	(void)state;
	begin_with(&nothing_kept, 4096, true);
	assert_non_null(block = kslab_heap_malloc(&t.heap, 10 * PAGE));
	fake_nmi = 1;
	kslab_heap_free(&t.heap, block);
	fake_nmi = 0;
	assert_true(kslab_heap_reclaim(&t.heap, 10) == 10);
	must_pass();
	end_with_faults(0);
}

/* ---- faults and observers while others work -------------------------------------------------- */

static void do_wrong(struct worker *worker)
{
	for (unsigned i = 0; i < 200; i++)
		kslab_heap_free(&t.heap, (unsigned char *)worker + 1);
}

/* CPUs that are not online may free, so they may do it wrong, all at once. */
static void faults_of_cpus_that_are_not_online_do_not_race(void **state)
{
	struct worker workers[4];

	(void)state;
	begin_with(&single_frames, 256, false);
	put_on(0, get_on(0, 64));
	for (unsigned i = 0; i < 4; i++)
		start(&workers[i], 8 + i, do_wrong, 15);
	for (unsigned i = 0; i < 4; i++)
		join(&workers[i]);
	must_pass();
	assert_true(kinds[KSLAB_FAULT_FOREIGN_POINTER] == 800);
	end_with_faults(800);
}

static void observe(struct worker *worker)
{
	for (unsigned i = 0; i < STEPS(300); i++) {
		struct kslab_stats stats;

		if (!SANITIZED) /* near figures: races by the letter */
			kslab_heap_stats(&t.heap, &stats);
		(void)kslab_heap_quiesce(&t.heap);
	}
	(void)worker;
}

/* "While others run the figures are only near", but the calls come back. */
static void stats_and_quiesce_may_be_called_while_others_work(void **state)
{
	struct worker workers[4];

	(void)state;
	begin_with(&single_frames, 16384, false);
	all_online(4);
	stop = 0;
	start(&workers[0], 0, observe, 17);
	for (unsigned i = 1; i < 4; i++)
		start(&workers[i], i, mix_for_ever, 17);
	join(&workers[0]);
	__atomic_store_n(&stop, 1, __ATOMIC_RELAXED);
	for (unsigned i = 1; i < 4; i++)
		join(&workers[i]);
	empty_shared();
	must_pass();
	end_with_faults(0);
}

/* ---- a cache ends while the CPUs that used it go on ------------------------------------------- */

#define USERS 3u
#define OBJECTS 40u /* of each user: some pages, of which the last is partly used */

static struct kslab_cache ending;
static unsigned ending_round, users_done; /* atomic */
static void *left[USERS + 1][OBJECTS]; /* for CPU 0 to free, or to lose */

static void use_cache(unsigned cpu)
{
	void *p[OBJECTS];

	for (unsigned i = 0; i < OBJECTS; i++) {
		p[i] = kslab_cache_alloc(&ending);
		if (p[i] == NULL)
			is_damaged("an allocation failed");
	}
	for (unsigned i = 0; i < OBJECTS; i++) {
		left[cpu][i] = i % 4 == cpu ? p[i] : NULL;
		if (left[cpu][i] == NULL)
			kslab_cache_free(&ending, p[i]);
	}
}

static void use_cache_and_go_on(struct worker *worker)
{
	unsigned seen = 0;

	while (!is_stopped()) {
		unsigned now = __atomic_load_n(&ending_round, __ATOMIC_ACQUIRE);

		if (now != seen) {
			seen = now;
			use_cache(worker->cpu);
			__atomic_fetch_add(&users_done, 1, __ATOMIC_ACQ_REL);
		}
		for (unsigned i = 0; i < 4; i++)
			give(take(some_size(&worker->random)));
		if (testing_random_below(&worker->random, 8) == 0)
			kslab_heap_idle(&t.heap);
		sched_yield();
	}
}

static void a_cache_ends_while_the_cpus_that_used_it_go_on(void **state)
{
	struct worker workers[USERS + 1];

	(void)state;
	begin_with(&single_frames, 16384, false);
	all_online(USERS + 1);
	stop = 0;
	ending_round = users_done = 0;
	for (unsigned i = 1; i <= USERS; i++)
		start(&workers[i], i, use_cache_and_go_on, 23);
	for (unsigned round = 1; round <= STEPS(200); round++) {
		enum kslab_reason reason;
		size_t lost = 0;

		assert_int_equal(kslab_heap_cache_init(&t.heap, &ending, "ends", 200, 0, NULL,
						       NULL),
				 KSLAB_OK);
		__atomic_store_n(&users_done, 0, __ATOMIC_RELAXED);
		__atomic_store_n(&ending_round, round, __ATOMIC_RELEASE);
		while (__atomic_load_n(&users_done, __ATOMIC_ACQUIRE) != USERS)
			sched_yield();
		for (unsigned i = 0; i < USERS * OBJECTS; i++) {
			void *p = left[1 + i % USERS][i / USERS];

			if (p != NULL && round % 3 == 0 && i % 5 == 0)
				lost++;
			else if (p != NULL)
				kslab_cache_free(&ending, p);
		}
		if (lost != 0)
			assert_int_equal(kslab_cache_destroy_forced(&ending), lost);
		while ((reason = kslab_cache_destroy(&ending)) == KSLAB_BUSY)
			sched_yield();
		assert_int_equal(reason, KSLAB_OK);
		memset(&ending, 0xa5, sizeof(ending)); /* it is the kernel's again */
	}
	__atomic_store_n(&stop, 1, __ATOMIC_RELAXED);
	for (unsigned i = 1; i <= USERS; i++)
		join(&workers[i]);
	must_pass();
	end_with_faults(0);
}

/* ---- caches of CPUs that are gone -------------------------------------------------------------- */

#define GONE 40u
#define GONE_PAGES (GONE / 4)

static struct kslab_cache left_cache;
static void *left_object[GONE];

static void *get_left_on(unsigned cpu)
{
	void *p;

	fake_cpu = cpu;
	p = kslab_cache_alloc(&left_cache);
	fake_cpu = 0;
	assert_non_null(p);
	must_pass();
	return p;
}

static void put_left_on(unsigned cpu, unsigned i)
{
	fake_cpu = cpu;
	kslab_cache_free(&left_cache, left_object[i]);
	left_object[i] = NULL;
	fake_cpu = 0;
	must_pass();
}

static void go_offline(unsigned cpu)
{
	assert_int_equal(kslab_heap_cpu_offline(&t.heap, cpu), KSLAB_OK);
	must_pass();
}

/* CPU 1 takes ten pages of a cache, empties some of them, and goes. */
static void leave_cache(const struct kslab_config *config, unsigned emptied)
{
	begin_with(config, 1024, false);
	all_online(3);
	assert_int_equal(kslab_heap_cache_init(&t.heap, &left_cache, "left", 1024, 0, NULL, NULL),
			 KSLAB_OK);
	for (unsigned i = 0; i < GONE; i++)
		left_object[i] = get_left_on(1);
	for (unsigned i = 0; i < 4 * emptied; i++)
		put_left_on(1, i);
	go_offline(1);
}

static void end_left(void)
{
	assert_int_equal(kslab_cache_destroy(&left_cache), KSLAB_OK);
	must_pass();
	end_with_faults(0);
}

static const struct kslab_config poisoned = { .max_page_bytes = PAGE, .debug_level = 1 };

/* Of pages that were empty when it went, and of those that others emptied since. */
static void reclaim_finds_a_caches_empty_pages_on_a_cpu_that_is_gone(void **state)
{
	const struct kslab_config *const configs[] = { &single_frames, &poisoned };

	(void)state;
	for (unsigned c = 0; c < TESTING_COUNT(configs); c++) {
		size_t pages;

		leave_cache(configs[c], 3);
		pages = object_pages();
		assert_true(kslab_heap_reclaim(&t.heap, 1) == 1);
		must_pass();
		assert_true(kslab_heap_reclaim(&t.heap, SIZE_MAX) >= 2);
		must_pass();
		assert_true(object_pages() <= pages - 3);
		pages = object_pages();
		for (unsigned i = 12; i < GONE; i++)
			put_left_on(i % 2 * 2, i);
		assert_true(kslab_heap_quiesce(&t.heap)); /* ... is taken in */
		must_pass();
		assert_true(kslab_heap_reclaim(&t.heap, SIZE_MAX) == pages);
		must_pass();
		assert_true(object_pages() == 0);
		assert_true(kslab_heap_quiesce(&t.heap));
		end_left();
	}
}

/* What interrupts of that CPU left is part of it. */
static void reclaim_finds_a_caches_empty_pages_on_every_level_of_a_cpu_that_is_gone(void **state)
{
	struct kslab_zone *zone;

	(void)state;
	begin_with(&single_frames, 1024, false);
	all_online(2);
	assert_int_equal(kslab_heap_cache_init(&t.heap, &left_cache, "left", 1024, 0, NULL, NULL),
			 KSLAB_OK);
	zone = t.heap.zone[1];
	for (unsigned i = 0; i < 16; i++) {
		zone->owner.key = i < 8 ? (uintptr_t)zone : 0;
		left_object[i] = get_left_on(1);
		zone->owner.key = (uintptr_t)zone;
	}
	go_offline(1);
	for (unsigned i = 0; i < 16; i++)
		put_left_on(0, i);
	assert_true(kslab_heap_reclaim(&t.heap, SIZE_MAX) == 4);
	assert_true(object_pages() == 0);
	end_left();
}

/* Memory that is wanted for something else is had, whoever emptied it and however long that is ago. */
static void a_source_that_fails_is_served_by_a_cache_of_a_cpu_that_is_gone(void **state)
{
	(void)state;
	for (unsigned emptied = 0; emptied <= GONE_PAGES; emptied += GONE_PAGES) {
		void *p[GONE_PAGES + 1];

		leave_cache(&single_frames, emptied);
		put_on(0, get_on(0, 8)); /* its page is the first to be used again */
		for (unsigned i = 4 * emptied; i < GONE; i++)
			put_left_on(2, i);
		t.heap.max_pages = t.heap.pages_in_use;
		for (unsigned i = 0; i < TESTING_COUNT(p); i++)
			p[i] = get_on(0, i % 2 != 0 ? 3000 : 2500);
		assert_null(kslab_heap_malloc(&t.heap, 4000));
		for (unsigned i = 0; i < TESTING_COUNT(p); i++)
			put_on(0, p[i]);
		end_left();
	}
}

/* Live objects keep their page, which serves the cache again when the CPU is back. */
static void a_page_with_live_objects_of_a_cpu_that_is_gone_stays_its_caches(void **state)
{
	size_t pages;

	(void)state;
	leave_cache(&single_frames, 0);
	for (unsigned i = 0; i < GONE; i++)
		if (i % 8 != 0)
			put_left_on(i % 3, i);
	assert_true(kslab_heap_reclaim(&t.heap, SIZE_MAX) == GONE_PAGES / 2);
	must_pass();
	assert_true(kslab_heap_quiesce(&t.heap));
	online_here(1);
	fake_cpu = 0;
	pages = object_pages();
	for (unsigned i = 0; i < GONE; i++)
		if (i % 8 != 0 && i % 8 < 4)
			left_object[i] = get_left_on(1);
	assert_true(object_pages() == pages);
	for (unsigned i = 0; i < GONE; i++)
		if (left_object[i] != NULL)
			put_left_on(1, i);
	go_offline(1);
	end_left();
}

/* Free slots on it serve the cache on any CPU: before the source is asked, and where it has failed. */
static void a_page_of_a_cache_of_a_cpu_that_is_gone_is_adopted(void **state)
{
	const struct kslab_config *const configs[] = { &single_frames, &poisoned };

	(void)state;
	for (unsigned c = 0; c < TESTING_COUNT(configs); c++) {
		size_t pages;

		leave_cache(configs[c], 0);
		pages = object_pages();
		for (unsigned i = 0; i < GONE; i += 2)
			put_left_on(2, i);
		for (unsigned i = 0; i < GONE; i += 4) {
			left_object[i] = get_left_on(0);
			memset(left_object[i], (int)i, 1024);
		}
		must_pass();
		assert_true(object_pages() == pages);
		t.heap.max_pages = t.heap.pages_in_use;
		for (unsigned i = 2; i < GONE; i += 4)
			left_object[i] = get_left_on(0);
		assert_true(object_pages() == pages);
		online_here(1);
		for (unsigned i = 0; i < GONE; i++)
			put_left_on(i % 3, i);
		all_idle();
		(void)kslab_heap_reclaim(&t.heap, SIZE_MAX);
		all_idle();
		assert_true(object_pages() == 0);
		end_left();
	}
}

/* One side at each instruction of the other: CPU 0 reclaims, CPU 1 comes online and uses its cache. */
static void op_reclaim_left(void)
{
	fake_cpu = 0;
	(void)kslab_heap_reclaim(&t.heap, SIZE_MAX);
}

static void op_come_back(void)
{
	online_here(1);
}

static void use_left(void)
{
	for (unsigned i = 12; i < 16; i++) {
		if (left_object[i] != NULL)
			kslab_cache_free(&left_cache, left_object[i]);
		left_object[i] = kslab_cache_alloc(&left_cache);
		memset(left_object[i], (int)i, 1024);
	}
}

static void then_come_back(size_t step)
{
	unsigned before = fake_cpu;

	(void)step;
	online_here(1);
	use_left();
	fake_cpu = before;
}

static void then_free_and_reclaim(size_t step)
{
	unsigned before = fake_cpu;

	fake_cpu = 2;
	kslab_cache_free(&left_cache, left_object[16 + step % 4]);
	left_object[16 + step % 4] = NULL;
	fake_cpu = 0;
	(void)kslab_heap_reclaim(&t.heap, SIZE_MAX);
	fake_cpu = before;
}

static bool left_nothing_wrong(void)
{
	const char *wrong = NULL;

	fake_cpu = 1;
	use_left();
	for (unsigned i = 0; i < GONE; i++) {
		if (left_object[i] == NULL)
			continue;
		fake_cpu = i % 3;
		kslab_cache_free(&left_cache, left_object[i]);
	}
	all_idle();
	if (kslab_cache_destroy(&left_cache) == KSLAB_BUSY) {
		all_idle();
		if (kslab_cache_destroy(&left_cache) != KSLAB_OK)
			wrong = "the cache does not end";
	}
	wrong = wrong != NULL ? wrong : wrong_at_end();
	if (wrong == NULL && (faults != 0 || t.heap.parked_pages != 0))
		wrong = faults != 0 ? "a fault was reported" : "the count of parked pages is wrong";
	if (wrong != NULL)
		fprintf(stderr, "%s\n", wrong);
	return wrong == NULL;
}

/* Pages that were empty before, one that is since then, one with a live object, full ones. */
static void stage_left(void)
{
	leave_cache(&single_frames, 2);
	for (unsigned i = 8; i < 16; i++)
		if (i != 12)
			put_left_on(2, i);
}

static void a_cpu_may_come_back_at_any_instruction_of_a_reclaim_of_its_caches(void **state)
{
	struct single_step steps[] = {
		{ .name = "reclaim, meanwhile the cpu comes back",
		  .op = op_reclaim_left,
		  .interrupt = then_come_back },
		{ .name = "the cpu comes back, meanwhile a free and a reclaim",
		  .op = op_come_back,
		  .interrupt = then_free_and_reclaim },
	};

	(void)state;
	if (!single_step_is_available() || SANITIZED)
		skip();
	for (size_t i = 0; i < TESTING_COUNT(steps); i++) {
		stage_left();
		steps[i].may_interrupt = may_switch;
		steps[i].verify = left_nothing_wrong;
		steps[i].stride = 4 * SLOWER - 1;
		assert_true(single_step_run_interrupted(&steps[i]));
		print_message("# %s: %zu interleavings\n", steps[i].name, steps[i].interrupts);
		assert_true(steps[i].interrupts > 10);
		fake_source_fini(&t.source);
		t.source.memory = NULL;
	}
}

/* CPUs come, use a cache, hand objects on, and go, while others reclaim and want memory. */
static void come_use_and_go(struct worker *worker)
{
	void *p[12];

	for (unsigned round = 0; round < produced; round++) {
		online_here(worker->cpu);
		for (unsigned i = 0; i < TESTING_COUNT(p); i++) {
			p[i] = kslab_cache_alloc(&left_cache);
			if (p[i] == NULL)
				is_damaged("an allocation failed");
			else
				memset(p[i], (int)worker->cpu, 1024);
		}
		for (unsigned i = 0; i < TESTING_COUNT(p); i++) {
			void **slot = &left_object[testing_random_below(&worker->random, GONE)];

			if (i % 3 == 0)
				p[i] = __atomic_exchange_n(slot, p[i], __ATOMIC_ACQ_REL);
			if (p[i] != NULL)
				kslab_cache_free(&left_cache, p[i]);
		}
		if (kslab_heap_cpu_offline(&t.heap, worker->cpu) != KSLAB_OK)
			is_damaged("a cpu did not go offline");
	}
}

static void reclaim_left(struct worker *worker)
{
	while (!is_stopped()) {
		void **slot = &left_object[testing_random_below(&worker->random, GONE)],
		     *p = __atomic_exchange_n(slot, NULL, __ATOMIC_ACQ_REL);

		if (p != NULL)
			kslab_cache_free(&left_cache, p);
		(void)kslab_heap_reclaim(&t.heap, 1 + testing_random_below(&worker->random, 8));
		if (testing_random_below(&worker->random, 8) == 0)
			(void)kslab_heap_quiesce(&t.heap);
	}
}

static void cpus_that_come_and_go_leave_nothing_of_a_cache_behind(void **state)
{
	struct worker workers[6];

	(void)state;
	begin_with(&single_frames, 16384, false);
	all_online(2);
	memset(left_object, 0, sizeof(left_object));
	assert_int_equal(kslab_heap_cache_init(&t.heap, &left_cache, "left", 1024, 0, NULL, NULL),
			 KSLAB_OK);
	stop = 0;
	produced = STEPS(1000);
	for (unsigned i = 0; i < 6; i++)
		start(&workers[i], i, i < 2 ? reclaim_left : come_use_and_go, 29);
	for (unsigned i = 2; i < 6; i++)
		join(&workers[i]);
	__atomic_store_n(&stop, 1, __ATOMIC_RELAXED);
	join(&workers[0]);
	join(&workers[1]);
	must_pass();
	for (unsigned i = 0; i < GONE; i++)
		if (left_object[i] != NULL)
			put_left_on(i % 6, i);
	(void)kslab_heap_reclaim(&t.heap, SIZE_MAX);
	must_pass();
	assert_true(object_pages() == 0);
	assert_true(t.heap.parked_pages == 0);
	end_left();
}

#define TEST(name) cmocka_unit_test_teardown(name, teardown)

int main(void)
{
	const struct CMUnitTest tests[] = {
		TEST(quiesce_is_false_until_the_owner_has_taken_in_its_mail),
		TEST(quiesce_is_true_once_every_owner_has_idled),
		TEST(a_reclaim_request_is_served_by_idle_cpus),
		TEST(a_reclaim_request_is_served_for_every_level),
		TEST(a_reclaim_request_is_served_for_inner_levels_by_slow_paths),
		TEST(with_retention_0_nothing_is_kept),
		TEST(a_page_of_a_cpu_that_is_gone_is_adopted),
		TEST(a_double_free_found_in_limbo_is_reported),
		TEST(of_two_frees_at_once_exactly_one_is_refused_in_every_interleaving),
		TEST(quiesce_never_counts_a_free_that_is_under_way_against_one_that_is_pending),
		TEST(of_three_frees_at_once_two_are_refused),
		TEST(a_cpu_that_finds_no_memory_to_go_stays),
		TEST(what_a_cpu_has_reserved_is_not_kept_when_it_is_back),
		TEST(frees_of_a_cpu_that_is_not_online_are_counted),
		TEST(reclaim_counts_the_blocks_that_were_freed_in_an_nmi),
		TEST(what_one_cpu_allocates_another_frees),
		TEST(a_cpu_that_only_frees_starves_nobody),
		TEST(two_cpus_mix_everything),
		TEST(sixteen_cpus_mix_everything),
		TEST(no_page_goes_back_with_an_object_live),
		TEST(cpus_come_and_go_while_others_go_on),
		TEST(thousands_of_short_lived_threads_leak_nothing),
		TEST(faults_of_cpus_that_are_not_online_do_not_race),
		TEST(stats_and_quiesce_may_be_called_while_others_work),
		TEST(a_cache_ends_while_the_cpus_that_used_it_go_on),
		TEST(reclaim_finds_a_caches_empty_pages_on_a_cpu_that_is_gone),
		TEST(reclaim_finds_a_caches_empty_pages_on_every_level_of_a_cpu_that_is_gone),
		TEST(a_source_that_fails_is_served_by_a_cache_of_a_cpu_that_is_gone),
		TEST(a_page_with_live_objects_of_a_cpu_that_is_gone_stays_its_caches),
		TEST(a_page_of_a_cache_of_a_cpu_that_is_gone_is_adopted),
		TEST(a_cpu_may_come_back_at_any_instruction_of_a_reclaim_of_its_caches),
		TEST(cpus_that_come_and_go_leave_nothing_of_a_cache_behind),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
