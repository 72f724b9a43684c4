/* SPDX-License-Identifier: MIT
 * bench.h - owns what the parts of a benchmark program share: the allocator's shim, clocks, random
 * numbers, the rows of results.
 * Runs: host program. -DBENCH_SHIM='"shim_NAME.h"' chooses the allocator at compile time.
 *
 * A shim defines, as inline functions or macros on top of ordinary external calls:
 *   B_malloc B_free B_calloc B_realloc B_memalign    as the C library's
 *   B_malloc_bulk(n, count, out) B_free_bulk(count, ptrs)    the allocator's own, or loops
 *   B_start() B_thread_start()    what the process, and each thread, does first
 *   B_trim()      gives back all that can be given back
 *   B_source()    bytes taken from the page source, 0: not known
 */
#ifndef KSLAB_BENCH_H
#define KSLAB_BENCH_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>

#include BENCH_SHIM

/* A row of the test table. Results are lines "name value" on standard output. */
struct test {
	const char *name;
	void (*run)(const struct test *test);
	size_t a, b; /* sizes, counts: what the test says */
	const char *path;
};

/* Repetitions of a measurement in a process, and how long one is in percent of the usual. */
extern unsigned bench_chunks, bench_scale;

_Noreturn void bench_die(const char *what);

/* Memory that is none of the allocator's: mapped, present, zero. */
void *bench_own(size_t bytes);

/*
 * One warming call of run(ctx), then bench_chunks timed ones; a line of ns / ops for each.
 * bench_measure reads the process's CPU time, so that other load of the machine counts less;
 * bench_measure_wall the wall clock, for tests with threads.
 */
void bench_measure(const char *name, void (*run)(void *ctx), void *ctx, size_t ops);
void bench_measure_wall(const char *name, void (*run)(void *ctx), void *ctx, size_t ops);
uint64_t bench_cpu_ns(void);
void bench_print(const char *name, double value);

/* ops at 100 % */
static inline size_t bench_ops(size_t ops)
{
	size_t scaled = ops * bench_scale / 100;

	return scaled ? scaled : 1;
}

/* The first word is written, as any program would. */
static inline void *bench_touch(void *p)
{
	*(volatile uint64_t *)p = (uintptr_t)p;
	return p;
}

/* First byte of every 4096 from `from` on. */
static inline void bench_touch_pages(void *p, size_t from, size_t to)
{
	for (; from < to; from += 4096)
		((volatile unsigned char *)p)[from] = 1;
}

/* xorshift64*: the same numbers for every allocator. */
static inline uint64_t bench_random(uint64_t *state)
{
	uint64_t x = *state;

	x ^= x >> 12;
	x ^= x << 25;
	x ^= x >> 27;
	*state = x;
	return x * 2685821657736338717u;
}

static inline size_t bench_below(uint64_t random, size_t limit)
{
	return (size_t)(((random >> 32) * limit) >> 32);
}

/* Sizes of kernel objects, drawn in advance: mean 110 bytes, 8 .. 2048. */
#define BENCH_MIX 4096u
extern uint16_t bench_mix[BENCH_MIX];

static inline size_t bench_size(uint64_t random)
{
	return bench_mix[random & (BENCH_MIX - 1)];
}

/* bench_small.c */
void bench_pair(const struct test *test);
void bench_lifo(const struct test *test);
void bench_fifo(const struct test *test);
void bench_random_live(const struct test *test);
void bench_cold(const struct test *test);
void bench_calloc(const struct test *test);
void bench_bulk(const struct test *test);
/* bench_large.c */
void bench_grow_factor(const struct test *test);
void bench_grow_step(const struct test *test);
void bench_grow_many(const struct test *test);
void bench_large(const struct test *test);
void bench_large_mix(const struct test *test);
/* bench_threads.c */
void bench_producer(const struct test *test);
void bench_exchange(const struct test *test);
/* bench_trace.c */
void bench_trace(const struct test *test);
/* bench_memory.c */
void bench_memory(const struct test *test);

#endif
