/* SPDX-License-Identifier: MIT
 * test_scaling.c - owns the claim that the heap scales: atomics and locks are counted, not timed.
 * Runs: 64 simulated CPUs, played one after the other by one thread; so nothing is contended, and
 * every count is what a quiet bus would see.
 * BUILD: -DKSLAB_CFG_HEADER='"fake_cpu.h"' -DKSLAB_CFG_CPUS=64
 * -DKSLAB_ATOMICS_HEADER='"count_atomics.h"'
 */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>

#include <cmocka.h>

#include <kslab/kslab.h>

FAKE_CPU_DEFINE;
unsigned long count_atomics;

#define CPUS 64u
#define BATCH 2000u
#define ROUNDS 10u
#define ARENA_BYTES ((size_t)128 << 20)

static void *arena;

static int setup(void **state)
{
	const struct kslab_config config = { 0 };

	(void)state;
	fake_cpu = 0;
	arena = aligned_alloc(4096, ARENA_BYTES);
	assert_non_null(arena);
	assert_int_equal(kslab_init(&config), KSLAB_OK);
	assert_int_equal(kslab_add_region(arena, ARENA_BYTES), KSLAB_OK);
	for (unsigned cpu = 1; cpu < CPUS; cpu++) {
		fake_cpu = cpu;
		assert_int_equal(kslab_cpu_online(cpu), KSLAB_OK);
	}
	return 0;
}

static int teardown(void **state)
{
	(void)state;
	for (unsigned cpu = CPUS; cpu-- > 0;) {
		fake_cpu = cpu;
		kslab_idle();
		kslab_reclaim(SIZE_MAX);
	}
	assert_true(kslab_quiesce());
	assert_true(kslab_check(NULL));
	assert_int_equal(kslab_fini(), KSLAB_OK);
	free(arena);
	return 0;
}

static uint64_t locks(void)
{
	struct kslab_stats stats;

	kslab_stats(&stats);
	return stats.lock_acquisitions;
}

/* The kernel-like mix of the memory figures, mean about 100 bytes, in a fixed order. */
static size_t size_of(unsigned i)
{
	static const struct {
		unsigned share; /* of 64 */
		size_t bytes;
	} mix[] = { { 3, 8 },  { 6, 16 },  { 4, 24 },  { 12, 32 }, { 8, 48 }, { 14, 64 },
		    { 8, 96 }, { 5, 128 }, { 2, 192 }, { 1, 256 }, { 1, 512 } };
	unsigned k = 0, share = i * 29 % 64;

	if (i % 160 == 159)
		return 1024;
	if (i % 320 == 318)
		return 2048;
	while (share >= mix[k].share)
		share -= mix[k++].share;
	return mix[k].bytes;
}

/* Each CPU allocates a batch, its neighbour frees it; one round. */
static void pass_on(void *batch[])
{
	for (unsigned cpu = 0; cpu < CPUS; cpu++) {
		fake_cpu = cpu;
		for (unsigned i = 0; i < BATCH; i++) {
			batch[i] = kslab_malloc(size_of(i));
			assert_non_null(batch[i]);
		}
		fake_cpu = (cpu + 1) % CPUS;
		for (unsigned i = 0; i < BATCH; i++)
			kslab_free(batch[i]);
	}
}

static void remote_frees_take_at_most_1_1_atomic_operations(void **state)
{
	static void *batch[BATCH];
	const double frees = (double)CPUS * BATCH * ROUNDS;
	uint64_t locked;
	double each;

	(void)state;
	pass_on(batch); /* the pages are there from now on */
	count_atomics = 0;
	locked = locks();
	for (unsigned round = 0; round < ROUNDS; round++)
		pass_on(batch);
	each = (double)count_atomics / frees;
	print_message("atomic operations per cross-CPU free, harvest and mail included: %.3f\n",
		      each);
	print_message("lock acquisitions per 1000 operations: %.3f\n",
		      (double)(locks() - locked) / (2 * frees) * 1e3);
	assert_true(each <= 1.1);
	assert_true((double)(locks() - locked) < 2 * frees / 1000);
	assert_true(kslab_check(NULL));
}

static void local_operations_take_none(void **state)
{
	static void *batch[BATCH];
	uint64_t locked = 0;

	(void)state;
	for (unsigned round = 0; round < ROUNDS + 1; round++) {
		if (round == 1) { /* warm */
			count_atomics = 0;
			locked = locks();
		}
		for (unsigned cpu = 0; cpu < CPUS; cpu++) {
			fake_cpu = cpu;
			for (unsigned i = 0; i < BATCH; i++)
				batch[i] = kslab_malloc(size_of(i));
			for (unsigned i = 0; i < BATCH; i++)
				kslab_free(batch[i]);
		}
	}
	print_message("atomic operations in %u local pairs: %lu, locks: %lu\n",
		      CPUS * BATCH * ROUNDS, count_atomics, (unsigned long)(locks() - locked));
	/*
	 * The slow paths arm a full page by one exchange; nothing else may show up: less than one
	 * in a hundred.
	 */
	assert_true(count_atomics < CPUS * BATCH * ROUNDS / 100);
	assert_true(locks() - locked < (uint64_t)CPUS * BATCH * ROUNDS * 2 / 1000);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test_setup_teardown(remote_frees_take_at_most_1_1_atomic_operations,
						setup, teardown),
		cmocka_unit_test_setup_teardown(local_operations_take_none, setup, teardown),
	};

	return cmocka_run_group_tests_name("scaling", tests, NULL, NULL);
}
