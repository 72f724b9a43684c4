/* SPDX-License-Identifier: MIT
 * threads.c - owns the test of threads under malloc: many, short-lived, freeing for each other,
 * forking.
 * Runs: host program; with any malloc that is linked or preloaded. threads [seed]
 *
 * Every object carries its own address and size at both ends, so that an object issued twice is
 * seen by whoever has it. Work is counted, not timed: the same on every machine.
 */
#define _GNU_SOURCE
#include <malloc.h>
#include <pthread.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>

#include <kslab/kslab.h>

/* Present when kslab is. */
void kslab_stats(struct kslab_stats *out) __attribute__((weak));
enum kslab_reason kslab_inject(const struct kslab_inject *rule) __attribute__((weak));

#define SHARED 512u /* places through which threads pass objects */

struct random {
	uint64_t state;
};

static void *places[SHARED];
static uint64_t seed;

static _Noreturn void die(const char *what)
{
	fprintf(stderr, "threads: %s, seed %llu\n", what, (unsigned long long)seed);
	abort();
}

static uint32_t next(struct random *r)
{
	r->state = r->state * 6364136223846793005u + 1442695040888963407u;
	return (uint32_t)(r->state >> 33);
}

static size_t some_size(struct random *r)
{
	uint32_t kind = next(r) % 100;

	if (kind < 80)
		return 16 + next(r) % 240;
	if (kind < 98)
		return 16 + next(r) % 4000;
	return 16 + next(r) % 100000;
}

static void *make(struct random *r)
{
	size_t n = some_size(r) & ~(size_t)7;
	uint64_t *p = malloc(n);

	if (!p)
		die("out of memory");
	p[0] = n;
	p[n / 8 - 1] = (uint64_t)(uintptr_t)p ^ n;
	if (n == 16)
		p[1] = (uint64_t)(uintptr_t)p ^ n;
	return p;
}

static void unmake(void *object)
{
	uint64_t *p = object, n;

	if (!p)
		return;
	n = p[0];
	if (n < 16 || n > 200000 || p[n / 8 - 1] != ((uint64_t)(uintptr_t)p ^ n))
		die("an object was changed");
	p[0] = 0;
	free(p);
}

/* Exchange objects with the other threads, and keep some of them. */
static void work(struct random *r, unsigned steps)
{
	void *mine[64] = { NULL };

	for (unsigned i = 0; i < steps; i++) {
		uint32_t at = next(r);

		if (at & 1)
			unmake(__atomic_exchange_n(&places[at / 2 % SHARED], make(r),
						   __ATOMIC_ACQ_REL));
		unmake(mine[i % 64]);
		mine[i % 64] = make(r);
	}
	for (unsigned i = 0; i < 64; i++)
		unmake(mine[i]);
}

static pthread_key_t late_key;

/* Runs at the end of a thread, perhaps when the allocator thinks that it is gone. */
static void late(void *object)
{
	struct random r = { (uintptr_t)object };
	static __thread unsigned rounds;

	unmake(object);
	for (unsigned i = 0; i < 10; i++)
		unmake(make(&r));
	if (++rounds < 3)
		pthread_setspecific(late_key, make(&r));
}

static void *short_life(void *arg)
{
	struct random r = { seed ^ (uintptr_t)arg };

	pthread_setspecific(late_key, make(&r));
	work(&r, 200);
	return make(&r);
}

static void *long_life(void *arg)
{
	struct random r = { seed ^ (uintptr_t)arg };

	work(&r, 100000);
	return make(&r);
}

static void test_together(unsigned count, unsigned rounds, void *(*life)(void *))
{
	pthread_t threads[64];

	for (unsigned round = 0; round < rounds; round++) {
		for (unsigned i = 0; i < count; i++) {
			uintptr_t number = (round * count + i + 1u) * 0x9e3779b9u;

			if (pthread_create(&threads[i], NULL, life, (void *)number))
				die("no thread");
		}
		for (unsigned i = 0; i < count; i++) {
			void *left;

			pthread_join(threads[i], &left);
			unmake(left);
		}
	}
}

static pthread_barrier_t all_here;

static void *crowd_life(void *arg)
{
	struct random r = { seed ^ (uintptr_t)arg };
	void *p = make(&r);

	pthread_barrier_wait(&all_here);
	work(&r, 20);
	pthread_barrier_wait(&all_here);
	unmake(p);
	return NULL;
}

/* More threads at a time than there are CPU numbers. */
static void test_crowd(unsigned count)
{
	pthread_t *threads = calloc(count, sizeof(*threads));
	pthread_attr_t attr;

	pthread_attr_init(&attr);
	pthread_attr_setstacksize(&attr, 64 * 1024);
	pthread_barrier_init(&all_here, NULL, count);
	for (unsigned i = 0; i < count; i++)
		if (pthread_create(&threads[i], &attr, crowd_life, (void *)(uintptr_t)(i + 1)))
			die("no thread for the crowd");
	for (unsigned i = 0; i < count; i++)
		pthread_join(threads[i], NULL);
	pthread_barrier_destroy(&all_here);
	pthread_attr_destroy(&attr);
	free(threads);
}

static unsigned cpus_online(void)
{
	struct kslab_stats stats;

	kslab_stats(&stats);
	return stats.cpus_online;
}

static void *comes_and_goes(void *arg)
{
	const struct kslab_inject no_memory = { .where = KSLAB_INJECT_PAGES, .fail_every = 1 };
	void *p = malloc(64);

	if (!p)
		die("out of memory");
	free(p);
	if (arg)
		kslab_inject(&no_memory);
	return NULL;
}

/* What the first thread that ends needs for that is not to be had. Nobody gets its number then. */
static void test_end_without_memory(void)
{
	pthread_t thread;

	for (unsigned i = 0; kslab_inject && i < 2; i++) {
		if (pthread_create(&thread, NULL, comes_and_goes, i == 0 ? &thread : NULL))
			die("no thread");
		pthread_join(thread, NULL);
		kslab_inject(NULL);
	}
}

static void *only_frees(void *arg)
{
	void **objects = arg;
	unsigned before = kslab_stats ? cpus_online() : 0;

	for (unsigned i = 0; i < 10; i++)
		free(objects[i]);
	if (kslab_stats && cpus_online() != before)
		die("a thread that has freed ten objects has a CPU");
	for (unsigned i = 10; i < 100; i++)
		free(objects[i]);
	if (kslab_stats && cpus_online() != before + 1)
		die("a thread that frees on and on has no CPU");
	return NULL;
}

static void test_only_frees(void)
{
	void *objects[100];
	pthread_t thread;

	for (unsigned i = 0; i < 100; i++)
		if (!(objects[i] = malloc(64)))
			die("out of memory");
	if (pthread_create(&thread, NULL, only_frees, objects))
		die("no thread");
	pthread_join(thread, NULL);
}

static bool stopping;

static void *busy_life(void *arg)
{
	struct random r = { seed ^ (uintptr_t)arg };

	while (!__atomic_load_n(&stopping, __ATOMIC_RELAXED))
		work(&r, 100);
	return NULL;
}

/* Children of a busy process: they allocate, free what other threads had, make threads. */
static void test_fork(unsigned count)
{
	pthread_t busy[3];

	for (uintptr_t i = 0; i < 3; i++)
		pthread_create(&busy[i], NULL, busy_life, (void *)(i + 1));
	for (unsigned n = 0; n < count; n++) {
		int status;
		pid_t child = fork();

		if (child == 0) {
			struct random r = { seed + n };

			/* An object is here if its thread had put it here before the fork. */
			for (unsigned i = 0; i < SHARED; i++) {
				unmake(places[i]);
				places[i] = NULL;
			}
			work(&r, 1000);
			test_together(2, 1, short_life);
			_exit(0);
		}
		if (child < 0 || waitpid(child, &status, 0) != child || status)
			die("a child failed");
	}
	__atomic_store_n(&stopping, true, __ATOMIC_RELAXED);
	for (unsigned i = 0; i < 3; i++)
		pthread_join(busy[i], NULL);
}

int main(int argc, char **argv)
{
	seed = argc > 1 ? strtoull(argv[1], NULL, 0) : 1;
	pthread_key_create(&late_key, late);
	test_end_without_memory();
	test_only_frees();
	test_together(8, 1, long_life);
	test_together(8, 100, short_life);
	test_crowd(1100);
	test_fork(40);
	test_together(4, 1, long_life);
	for (unsigned i = 0; i < SHARED; i++)
		unmake(places[i]);
	malloc_trim(0);
	puts("threads: all objects accounted for");
	return 0;
}
