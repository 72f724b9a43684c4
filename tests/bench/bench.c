/* SPDX-License-Identifier: MIT
 * bench.c - owns the benchmark program of one allocator: its table of tests, clocks, results.
 * Runs: host program. Started by run.sh, once for each test and round.
 *
 * bench list                       the names, with the group that each belongs to
 * bench chunks scale test [path]   one test; path: of a trace
 */
#define _GNU_SOURCE
#include "bench.h"

#include <stdio.h>
#include <string.h>
#include <sys/mman.h>
#include <time.h>

unsigned bench_chunks = 5, bench_scale = 100;
uint16_t bench_mix[BENCH_MIX];

#define KIB ((size_t)1024)
#define MIB ((size_t)1024 * 1024)

/* Groups: hot loops, random replacement, cold memory, whole functions, two threads, programs. */
static const struct group {
	const char *name;
	struct test tests[16];
} groups[] = {
	{ "hot",
	  { { "pair-8", bench_pair, 8, 0, NULL },
	    { "pair-64", bench_pair, 64, 0, NULL },
	    { "pair-512", bench_pair, 512, 0, NULL },
	    { "pair-2048", bench_pair, 2048, 0, NULL },
	    { "lifo-8", bench_lifo, 8, 1000, NULL },
	    { "lifo-64", bench_lifo, 64, 1000, NULL },
	    { "lifo-512", bench_lifo, 512, 1000, NULL },
	    { "lifo-2048", bench_lifo, 2048, 1000, NULL },
	    { "fifo-8", bench_fifo, 8, 1000, NULL },
	    { "fifo-64", bench_fifo, 64, 1000, NULL },
	    { "fifo-512", bench_fifo, 512, 1000, NULL },
	    { "fifo-2048", bench_fifo, 2048, 1000, NULL } } },
	{ "random",
	  { { "random-1k", bench_random_live, 1000, 2000000, NULL },
	    { "random-100k", bench_random_live, 100000, 1000000, NULL } } },
	{ "cold", { { "cold", bench_cold, 64, 1000000, NULL } } },
	{ "calloc",
	  { { "calloc-64", bench_calloc, 64, 100, NULL },
	    { "calloc-512", bench_calloc, 512, 100, NULL } } },
	{ "realloc",
	  { { "grow-x2", bench_grow_factor, 4, 2, NULL },
	    { "grow-x1.5", bench_grow_factor, 3, 2, NULL },
	    { "grow-16", bench_grow_step, 16, 4 * KIB, NULL },
	    { "grow-1024", bench_grow_step, KIB, MIB, NULL },
	    { "grow-x2-of-8", bench_grow_many, 8, 0, NULL } } },
	{ "bulk",
	  { { "bulk-64", bench_bulk, 64, 64, NULL }, { "bulk-256", bench_bulk, 256, 64, NULL } } },
	{ "large",
	  { { "large-40K", bench_large, 40 * KIB, 0, NULL },
	    { "large-256K", bench_large, 256 * KIB, 0, NULL },
	    { "large-1M", bench_large, MIB, 0, NULL },
	    { "large-mix", bench_large_mix, 40 * KIB, MIB, NULL } } },
	{ "threads",
	  { { "producer-64", bench_producer, 64, 0, NULL },
	    { "producer-mix", bench_producer, 0, 0, NULL },
	    { "exchange-mix", bench_exchange, 1000, 0, NULL } } },
	{ "trace", { { "trace", bench_trace, 0, 0, NULL } } },
	{ "memory", { { "memory", bench_memory, 200000, 0, NULL } } },
};

_Noreturn void bench_die(const char *what)
{
	fprintf(stderr, "bench: %s\n", what);
	exit(1);
}

void *bench_own(size_t bytes)
{
	void *p = mmap(NULL, bytes, PROT_READ | PROT_WRITE,
		       MAP_PRIVATE | MAP_ANONYMOUS | MAP_POPULATE, -1, 0);

	if (p == MAP_FAILED)
		bench_die("no memory for the benchmark itself");
	return p;
}

static uint64_t clock_ns(clockid_t clock)
{
	struct timespec now;

	clock_gettime(clock, &now);
	return (uint64_t)now.tv_sec * 1000000000u + (uint64_t)now.tv_nsec;
}

uint64_t bench_cpu_ns(void)
{
	return clock_ns(CLOCK_PROCESS_CPUTIME_ID);
}

/* By write alone: stdio would allocate from what is measured. */
void bench_print(const char *name, double value)
{
	char line[128];
	int n = snprintf(line, sizeof(line), "%s %.4f\n", name, value);

	if (n > 0)
		dprintf(1, "%s", line);
}

static void measure(clockid_t clock, const char *name, void (*run)(void *), void *ctx, size_t ops)
{
	run(ctx);
	for (unsigned i = 0; i < bench_chunks; i++) {
		uint64_t start = clock_ns(clock);

		run(ctx);
		bench_print(name, (double)(clock_ns(clock) - start) / (double)ops);
	}
}

void bench_measure(const char *name, void (*run)(void *ctx), void *ctx, size_t ops)
{
	measure(CLOCK_PROCESS_CPUTIME_ID, name, run, ctx, ops);
}

void bench_measure_wall(const char *name, void (*run)(void *ctx), void *ctx, size_t ops)
{
	measure(CLOCK_MONOTONIC, name, run, ctx, ops);
}

/* Many small and few large, with favourites, as in ../host/rss.c. Shares of 1000. */
static void make_mix(void)
{
	static const struct {
		unsigned share, low, high;
	} part[] = {
		{ 53, 8, 8 },	   { 150, 9, 24 },    { 130, 32, 32 },	 { 120, 25, 48 },
		{ 140, 64, 64 },   { 140, 49, 96 },   { 80, 97, 128 },	 { 70, 129, 192 },
		{ 50, 193, 256 },  { 25, 257, 512 },  { 15, 512, 512 },	 { 10, 513, 768 },
		{ 6, 1024, 1024 }, { 9, 1025, 2047 }, { 2, 2048, 2048 },
	};
	uint64_t state = 42;

	for (unsigned i = 0; i < BENCH_MIX; i++) {
		unsigned at = (unsigned)bench_below(bench_random(&state), 1000), k = 0;

		while (at >= part[k].share)
			at -= part[k++].share;
		bench_mix[i] =
			(uint16_t)(part[k].low + bench_below(bench_random(&state),
							     part[k].high - part[k].low + 1));
	}
}

static void list(void)
{
	for (size_t g = 0; g < sizeof(groups) / sizeof(*groups); g++)
		for (const struct test *t = groups[g].tests; t->name; t++)
			dprintf(1, "%s %s\n", t->name, groups[g].name);
}

static const struct test *find(const char *name)
{
	for (size_t g = 0; g < sizeof(groups) / sizeof(*groups); g++)
		for (const struct test *t = groups[g].tests; t->name; t++)
			if (!strcmp(t->name, name))
				return t;
	return NULL;
}

int main(int argc, char **argv)
{
	const struct test *found;
	struct test test;

	if (argc == 2 && !strcmp(argv[1], "list")) {
		list();
		return 0;
	}
	found = argc >= 4 ? find(argv[3]) : NULL;
	if (!found)
		bench_die("usage: bench list | bench chunks scale test [path]");
	bench_chunks = (unsigned)atoi(argv[1]);
	bench_scale = (unsigned)atoi(argv[2]);
	test = *found;
	test.path = argc > 4 ? argv[4] : NULL;
	make_mix();
	B_start();
	B_thread_start();
	test.run(&test);
	return 0;
}
