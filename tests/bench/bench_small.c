/* SPDX-License-Identifier: MIT
 * bench_small.c - owns the tests on small objects by one thread: pairs, batches, random
 * replacement, cold memory, calloc, bulk calls.
 * Runs: host program, one thread. An operation is a malloc and a free, unless it says otherwise.
 */
#include "bench.h"

#include <stdio.h>

#define PAIRS 1000000u
#define BATCH_MAX 1000u

struct small {
	size_t size, count, ops;
	void **objects;
	uint64_t random;
};

static void run_pair(void *ctx)
{
	const struct small *s = ctx;

	for (size_t i = 0; i < s->ops; i++)
		B_free(bench_touch(B_malloc(s->size)));
}

void bench_pair(const struct test *test)
{
	struct small s = { .size = test->a, .ops = bench_ops(PAIRS) };

	bench_measure(test->name, run_pair, &s, s.ops);
}

static void run_lifo(void *ctx)
{
	const struct small *s = ctx;

	for (size_t n = 0; n < s->ops; n += s->count) {
		for (size_t i = 0; i < s->count; i++)
			s->objects[i] = bench_touch(B_malloc(s->size));
		for (size_t i = s->count; i-- > 0;)
			B_free(s->objects[i]);
	}
}

static void run_fifo(void *ctx)
{
	const struct small *s = ctx;

	for (size_t n = 0; n < s->ops; n += s->count) {
		for (size_t i = 0; i < s->count; i++)
			s->objects[i] = bench_touch(B_malloc(s->size));
		for (size_t i = 0; i < s->count; i++)
			B_free(s->objects[i]);
	}
}

static void run_calloc(void *ctx)
{
	const struct small *s = ctx;

	for (size_t n = 0; n < s->ops; n += s->count) {
		for (size_t i = 0; i < s->count; i++)
			s->objects[i] = bench_touch(B_calloc(1, s->size));
		for (size_t i = 0; i < s->count; i++)
			B_free(s->objects[i]);
	}
}

static void run_bulk(void *ctx)
{
	const struct small *s = ctx;

	for (size_t n = 0; n < s->ops; n += s->count) {
		B_malloc_bulk(s->size, s->count, s->objects);
		for (size_t i = 0; i < s->count; i++)
			bench_touch(s->objects[i]);
		B_free_bulk(s->count, s->objects);
	}
}

static void batches(const struct test *test, void (*run)(void *ctx), size_t ops)
{
	static void *objects[BATCH_MAX];
	struct small s = { .size = test->a, .count = test->b, .objects = objects };

	s.ops = (bench_ops(ops) + s.count - 1) / s.count * s.count;
	bench_measure(test->name, run, &s, s.ops);
}

void bench_lifo(const struct test *test)
{
	batches(test, run_lifo, 500000);
}

void bench_fifo(const struct test *test)
{
	batches(test, run_fifo, 500000);
}

void bench_calloc(const struct test *test)
{
	batches(test, run_calloc, 500000);
}

void bench_bulk(const struct test *test)
{
	batches(test, run_bulk, 1000000);
}

static void run_random(void *ctx)
{
	struct small *s = ctx;
	uint64_t state = s->random;

	for (size_t i = 0; i < s->ops; i++) {
		uint64_t r = bench_random(&state);
		void **at = &s->objects[bench_below(r, s->count)];

		B_free(*at);
		*at = bench_touch(B_malloc(bench_size(r)));
	}
	s->random = state;
}

void bench_random_live(const struct test *test)
{
	struct small s = { .count = test->a, .ops = bench_ops(test->b), .random = 7 };

	s.objects = bench_own(s.count * sizeof(void *));
	for (size_t i = 0; i < s.count; i++)
		s.objects[i] = bench_touch(B_malloc(bench_size(bench_random(&s.random))));
	bench_measure(test->name, run_random, &s, s.ops);
}

static void shuffle(void **objects, size_t count)
{
	uint64_t state = 3;

	for (size_t i = count; i-- > 1;) {
		size_t k = bench_below(bench_random(&state), i + 1);
		void *p = objects[i];

		objects[i] = objects[k];
		objects[k] = p;
	}
}

static uint64_t fill(const struct small *s)
{
	uint64_t start = bench_cpu_ns();

	for (size_t i = 0; i < s->count; i++)
		s->objects[i] = bench_touch(B_malloc(s->size));
	return bench_cpu_ns() - start;
}

/* An operation is one call. Never repeated in a process: only the first time is cold. */
void bench_cold(const struct test *test)
{
	struct small s = { .size = test->a, .count = test->b };
	uint64_t start, made, freed, again;

	s.objects = bench_own(s.count * sizeof(void *));
	made = fill(&s);
	shuffle(s.objects, s.count);
	start = bench_cpu_ns();
	for (size_t i = 0; i < s.count; i++)
		B_free(s.objects[i]);
	freed = bench_cpu_ns() - start;
	again = fill(&s);
	bench_print("cold-malloc", (double)made / (double)s.count);
	bench_print("cold-free", (double)freed / (double)s.count);
	bench_print("cold-again", (double)again / (double)s.count);
}
