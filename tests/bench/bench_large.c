/* SPDX-License-Identifier: MIT
 * bench_large.c - owns the tests on growing and on large blocks.
 * Runs: host program, one thread. Memory that a block gains is written at every 4096th byte.
 */
#include "bench.h"

#define TOP ((size_t)1024 * 1024)
#define FIRST 16u
#define BLOCKS_MAX 32u

struct grow {
	size_t a, b, ops, times;
};

/* (a / b) times as large in each step; x2 is 4 / 2. */
static size_t next_size(const struct grow *g, size_t n)
{
	n = n * g->a / g->b;
	return n > TOP ? TOP : n;
}

static void *grow_to(void *p, size_t old, size_t n)
{
	p = B_realloc(p, n);
	bench_touch_pages(p, old, n);
	return p;
}

static void run_factor(void *ctx)
{
	const struct grow *g = ctx;

	for (size_t t = 0; t < g->times; t++) {
		void *p = bench_touch(B_malloc(FIRST));
		size_t n, old = FIRST;

		for (; old < TOP; old = n) {
			n = next_size(g, old);
			p = grow_to(p, old, n);
		}
		B_free(p);
	}
}

/* An operation is a realloc. */
void bench_grow_factor(const struct test *test)
{
	struct grow g = { .a = test->a, .b = test->b, .times = bench_ops(40) };

	for (size_t n = FIRST; n < TOP; n = next_size(&g, n))
		g.ops++;
	bench_measure(test->name, run_factor, &g, g.ops * g.times);
}

static void run_step(void *ctx)
{
	const struct grow *g = ctx;

	for (size_t t = 0; t < g->times; t++) {
		void *p = bench_touch(B_malloc(g->a));

		for (size_t n = g->a; n < g->b; n += g->a)
			p = grow_to(p, n, n + g->a);
		B_free(p);
	}
}

void bench_grow_step(const struct test *test)
{
	struct grow g = { .a = test->a, .b = test->b };

	g.ops = g.b / g.a - 1;
	g.times = bench_ops(g.b > 64 * 1024 ? 20 : 1000);
	bench_measure(test->name, run_step, &g, g.ops * g.times);
}

/* Several blocks in turn, so that each finds its way blocked by another. */
static void run_many(void *ctx)
{
	const struct grow *g = ctx;
	void *blocks[BLOCKS_MAX];

	for (size_t t = 0; t < g->times; t++) {
		for (size_t i = 0; i < g->a; i++)
			blocks[i] = bench_touch(B_malloc(FIRST));
		for (size_t n = FIRST; n < TOP; n *= 2)
			for (size_t i = 0; i < g->a; i++)
				blocks[i] = grow_to(blocks[i], n, 2 * n);
		for (size_t i = 0; i < g->a; i++)
			B_free(blocks[i]);
	}
}

void bench_grow_many(const struct test *test)
{
	struct grow g = { .a = test->a, .times = bench_ops(5) };

	for (size_t n = FIRST; n < TOP; n *= 2)
		g.ops += g.a;
	bench_measure(test->name, run_many, &g, g.ops * g.times);
}

static void *touch_ends(void *p, size_t n)
{
	bench_touch(p);
	((volatile unsigned char *)p)[n - 1] = 1;
	return p;
}

static void run_large(void *ctx)
{
	const struct grow *g = ctx;

	for (size_t i = 0; i < g->ops; i++)
		B_free(touch_ends(B_malloc(g->a), g->a));
}

void bench_large(const struct test *test)
{
	struct grow g = { .a = test->a, .ops = bench_ops(20000) };

	bench_measure(test->name, run_large, &g, g.ops);
}

/* Random replacement of 32 blocks from a to b bytes; first and last page are written. */
static void run_large_mix(void *ctx)
{
	const struct grow *g = ctx;
	void *blocks[BLOCKS_MAX] = { NULL };
	uint64_t state = 11;

	for (size_t i = 0; i < g->ops; i++) {
		uint64_t r = bench_random(&state);
		size_t n = g->a + bench_below(r, g->b - g->a);
		void **at = &blocks[r % BLOCKS_MAX];

		B_free(*at);
		*at = touch_ends(B_malloc(n), n);
	}
	for (size_t i = 0; i < BLOCKS_MAX; i++)
		B_free(blocks[i]);
}

void bench_large_mix(const struct test *test)
{
	struct grow g = { .a = test->a, .b = test->b, .ops = bench_ops(10000) };

	bench_measure(test->name, run_large_mix, &g, g.ops);
}
