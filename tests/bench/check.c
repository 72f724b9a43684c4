/* SPDX-License-Identifier: MIT
 * check.c - owns the time that kslab_check takes over a heap with many live objects.
 * Runs: Linux host, one thread, a heap of its own for each debug level.
 *
 *     check [objects]       1,000,000 if not said; levels.sh builds it
 *
 * Sizes as in a kernel: 16 to 2048 bytes, small ones most often; every tenth object was freed
 * again. The yardstick is a plain read of the metadata (descriptors, leaves of the map, zones),
 * once, word by word. Best of several, as others use the machine, too.
 */
#define _GNU_SOURCE
#include "host/host.h"

#include <stdio.h>
#include <stdlib.h>
#include <time.h>

#define TIMES 9
#define MIB 1048576.0

static struct kslab_heap heap[3];

static double milliseconds(void)
{
	struct timespec now;

	clock_gettime(CLOCK_MONOTONIC, &now);
	return (double)now.tv_sec * 1e3 + (double)now.tv_nsec * 1e-6;
}

static uint32_t chance(void)
{
	static uint32_t x = 2463534242u; /* xorshift32: Marsaglia 2003 */

	x ^= x << 13;
	x ^= x >> 17;
	x ^= x << 5;
	return x;
}

/* Between two powers of two that come half as often as the next smaller. */
static size_t some_size(void)
{
	size_t n = 16;

	while (n < 1024 && chance() % 2 != 0)
		n *= 2;
	return n + chance() % n;
}

static void fill(struct kslab_heap *h, size_t objects)
{
	for (size_t i = 0; i < objects + objects / 9; i++) {
		void *p = kslab_heap_malloc(h, some_size());

		if (p == NULL)
			exit(2);
		if (i % 10 == 9)
			kslab_heap_free(h, p);
	}
}

static uintptr_t read_metadata(const struct kslab_heap *h)
{
	uintptr_t sum = 0;

	for (const struct kslab_chunk *chunk = h->meta.chunks; chunk != NULL; chunk = chunk->next) {
		const uintptr_t *word = (const uintptr_t *)chunk->address;

		for (size_t n = (chunk->pages << h->page_shift) / sizeof(*word); n != 0; n--)
			sum += *word++;
	}
	return sum;
}

static double best_read(const struct kslab_heap *h)
{
	static volatile uintptr_t sink;
	double best = 1e9;

	for (int i = 0; i < TIMES; i++) {
		double start = milliseconds(), time;

		sink += read_metadata(h);
		time = milliseconds() - start;
		best = time < best ? time : best;
	}
	return best;
}

static double best_check(struct kslab_heap *h, struct kslab_check_result *result)
{
	double best = 1e9;

	for (int i = 0; i < TIMES; i++) {
		double start = milliseconds(), time;

		if (!kslab_heap_check(h, result)) {
			fprintf(stderr, "check: %s\n", result->what);
			exit(1);
		}
		time = milliseconds() - start;
		best = time < best ? time : best;
	}
	return best;
}

static void measure(unsigned level, size_t objects)
{
	struct kslab_heap *h = &heap[level];
	size_t bytes = (size_t)2 << 30;
	void *window = kslab_host_reserve(&bytes);
	struct kslab_config config = kslab_host_config(window, bytes);
	struct kslab_check_result result;
	double mib, meta, check, plain;

	config.debug_level = level;
	if (window == NULL || kslab_heap_init(h, &config) != KSLAB_OK ||
	    kslab_heap_add_region(h, window, bytes) != KSLAB_OK)
		exit(2);
	fill(h, objects);
	check = best_check(h, &result);
	plain = best_read(h);
	mib = (double)(h->pages_in_use << h->page_shift) / MIB;
	meta = (double)(h->meta.pages << h->page_shift) / MIB;
	printf("%5u %9zu %7.1f MiB %6.2f MiB %8.2f ms %8.2f ms %8.2f ms %7.1f\n", level,
	       result.live_objects, mib, meta, check, check / mib * 100, plain, check / plain);
}

int main(int argc, char **argv)
{
	size_t objects = argc > 1 ? strtoul(argv[1], NULL, 10) : 1000000;

	kslab_host_cpu = 0; /* of every heap */
	printf("level   objects        heap   metadata       check  /100 MiB   a read     ratio\n");
	for (unsigned level = 0; level < 3; level++)
		measure(level, objects);
	return 0;
}
