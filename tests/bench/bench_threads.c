/* SPDX-License-Identifier: MIT
 * bench_threads.c - owns the tests with two threads: objects that one allocates and another frees.
 * Runs: host program, two threads on two processors; wall clock.
 *
 * The second thread lives as long as the test. Rounds begin by a counter that both watch. Whoever
 * waits spins for a while, then yields: the machine may have other load.
 */
#define _GNU_SOURCE
#include "bench.h"

#include <pthread.h>
#include <sched.h>

#define RING 1024u
#define LIVE_MAX 1000u
#define SPINS 256u

/*
 * One writer, one reader. Each has a line of its own, and goes by the other's index as it last saw
 * it: were it read each time, that line's way to and fro would be most of what is measured.
 */
struct ring {
	size_t in __attribute__((aligned(64))); /* [a] */
	size_t seen_out; /* the writer's */
	size_t out __attribute__((aligned(64))); /* [a] */
	size_t seen_in; /* the reader's */
	void *slot[RING] __attribute__((aligned(64)));
};

struct side {
	struct ring *to, *from;
	void *live[LIVE_MAX];
	uint64_t random;
};

struct pair_of_threads {
	size_t size, ops;
	size_t round __attribute__((aligned(64))); /* [a] the second thread follows */
	size_t started, done __attribute__((aligned(64))); /* [a] rounds it has begun, and ended */
	bool stop;
	void (*second)(struct pair_of_threads *pair);
	struct side side[2];
	struct ring ring[2];
};

static void wait_a_little(unsigned *spins)
{
	if (++*spins % SPINS == 0)
		sched_yield();
	else
		__builtin_ia32_pause();
}

static bool ring_push(struct ring *r, void *p)
{
	size_t in = r->in;

	if (in - r->seen_out == RING)
		r->seen_out = __atomic_load_n(&r->out, __ATOMIC_ACQUIRE);
	if (in - r->seen_out == RING)
		return false;
	r->slot[in % RING] = p;
	__atomic_store_n(&r->in, in + 1, __ATOMIC_RELEASE);
	return true;
}

static void *ring_pop(struct ring *r)
{
	size_t out = r->out;
	void *p;

	if (out == r->seen_in)
		r->seen_in = __atomic_load_n(&r->in, __ATOMIC_ACQUIRE);
	if (out == r->seen_in)
		return NULL;
	p = r->slot[out % RING];
	__atomic_store_n(&r->out, out + 1, __ATOMIC_RELEASE);
	return p;
}

/* Each on a processor of its own: the n-th of those that are allowed. */
static void stay_on_processor(unsigned n)
{
	cpu_set_t allowed, one;

	CPU_ZERO(&one);
	if (sched_getaffinity(0, sizeof(allowed), &allowed))
		return;
	for (int cpu = 0; cpu < CPU_SETSIZE; cpu++) {
		if (!CPU_ISSET(cpu, &allowed) || n--)
			continue;
		CPU_SET(cpu, &one);
		sched_setaffinity(0, sizeof(one), &one);
		return;
	}
}

static void *second_thread(void *ctx)
{
	struct pair_of_threads *pair = ctx;
	unsigned spins = 0;

	stay_on_processor(1);
	B_thread_start();
	for (size_t round = 1;; round++) {
		while (__atomic_load_n(&pair->round, __ATOMIC_ACQUIRE) < round)
			wait_a_little(&spins);
		if (pair->stop)
			return NULL;
		__atomic_store_n(&pair->started, round, __ATOMIC_RELEASE);
		pair->second(pair);
		__atomic_store_n(&pair->done, round, __ATOMIC_RELEASE);
	}
}

/* Both at once, or one would do all its work before the other wakes up. */
static void begin(struct pair_of_threads *pair)
{
	unsigned spins = 0;

	__atomic_store_n(&pair->round, pair->round + 1, __ATOMIC_RELEASE);
	while (!pair->stop && __atomic_load_n(&pair->started, __ATOMIC_ACQUIRE) < pair->round)
		wait_a_little(&spins);
}

static void end(struct pair_of_threads *pair)
{
	unsigned spins = 0;

	while (__atomic_load_n(&pair->done, __ATOMIC_ACQUIRE) < pair->round)
		wait_a_little(&spins);
}

static void with_second_thread(const char *name, struct pair_of_threads *pair,
			       void (*run)(void *ctx))
{
	pthread_t thread;

	if (pthread_create(&thread, NULL, second_thread, pair))
		bench_die("no thread");
	stay_on_processor(0);
	bench_measure_wall(name, run, pair, pair->ops);
	pair->stop = true;
	begin(pair);
	pthread_join(thread, NULL);
}

/* ---- one allocates, the other frees -------------------------------------------------------- */

static void consume(struct pair_of_threads *pair)
{
	unsigned spins = 0;

	for (size_t i = 0; i < pair->ops; i++) {
		void *p;

		while (!(p = ring_pop(&pair->ring[0])))
			wait_a_little(&spins);
		B_free(bench_touch(p));
	}
}

static void run_producer(void *ctx)
{
	struct pair_of_threads *pair = ctx;
	unsigned spins = 0;

	begin(pair);
	for (size_t i = 0; i < pair->ops; i++) {
		size_t n =
			pair->size ? pair->size : bench_size(bench_random(&pair->side[0].random));
		void *p = bench_touch(B_malloc(n));

		while (!ring_push(&pair->ring[0], p))
			wait_a_little(&spins);
	}
	end(pair);
}

/* An operation is a malloc here and a free there. a = 0: the mix of sizes. */
void bench_producer(const struct test *test)
{
	struct pair_of_threads *pair = bench_own(sizeof(*pair));

	pair->size = test->a;
	pair->ops = bench_ops(200000);
	pair->second = consume;
	pair->side[0].random = 5;
	with_second_thread(test->name, pair, run_producer);
}

/* ---- both replace at random, and hand objects to each other -------------------------------- */

static void replace(struct side *side, size_t live, size_t ops)
{
	uint64_t state = side->random;

	for (size_t i = 0; i < ops; i++) {
		uint64_t r = bench_random(&state);
		void **at = &side->live[bench_below(r, live)];
		void *got;

		/* One in four goes to the other side, and one of its objects is freed here. */
		if ((r >> 12 & 3) != 0) {
			B_free(*at);
		} else {
			if (!ring_push(side->to, *at))
				B_free(*at);
			got = ring_pop(side->from);
			if (got)
				B_free(got);
		}
		*at = bench_touch(B_malloc(bench_size(r)));
	}
	side->random = state;
}

static void replace_second(struct pair_of_threads *pair)
{
	replace(&pair->side[1], pair->size, pair->ops);
}

static void run_exchange(void *ctx)
{
	struct pair_of_threads *pair = ctx;

	begin(pair);
	replace(&pair->side[0], pair->size, pair->ops);
	end(pair);
}

/* An operation is a replacement on both sides. */
void bench_exchange(const struct test *test)
{
	struct pair_of_threads *pair = bench_own(sizeof(*pair));

	pair->size = test->a;
	pair->ops = bench_ops(200000);
	pair->second = replace_second;
	for (unsigned i = 0; i < 2; i++) {
		pair->side[i].random = 5 + i;
		pair->side[i].to = &pair->ring[i];
		pair->side[i].from = &pair->ring[1 - i];
	}
	with_second_thread(test->name, pair, run_exchange);
}
