/* SPDX-License-Identifier: MIT
 * bench_memory.c - owns the measurement of memory taken per byte asked: a kernel-like mix at full,
 * after most of it was freed at random, after a change of its sizes.
 * Runs: host program, one thread. Every byte asked for is written. The benchmark's own arrays are
 * present before the first reading.
 *
 * Resident is what the resident size has grown by since before the first allocation. Source
 * is what the allocator took from its page source, where it can say so.
 */
#define _GNU_SOURCE
#include "bench.h"

#include <fcntl.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

struct object {
	void *p;
	size_t bytes;
};

struct mix {
	struct object *objects;
	size_t count, asked, before, live;
	uint64_t random;
};

/* Rss of smaps_rollup is exact; statm may lag by some pages for each thread. */
static size_t resident(void)
{
	static char text[4096];
	int fd = open("/proc/self/smaps_rollup", O_RDONLY | O_CLOEXEC);
	ssize_t n = fd < 0 ? -1 : read(fd, text, sizeof(text) - 1);
	char *line;

	if (n <= 0)
		bench_die("no resident size");
	close(fd);
	text[n] = 0;
	line = strstr(text, "Rss:");
	return line ? strtoull(line + 4, NULL, 10) * 1024 : 0;
}

static void make(struct mix *m, struct object *o, size_t bytes)
{
	o->bytes = bytes;
	o->p = B_malloc(bytes);
	if (!o->p)
		bench_die("out of memory");
	memset(o->p, 0x5a, bytes);
	m->asked += bytes;
	m->live++;
}

static void drop(struct mix *m, struct object *o)
{
	if (!o->p)
		return;
	B_free(o->p);
	o->p = NULL;
	m->asked -= o->bytes;
	m->live--;
}

static void say(const struct mix *m, const char *when)
{
	char name[64];

	snprintf(name, sizeof(name), "memory-%s-resident", when);
	bench_print(name, (double)(resident() - m->before) / (double)m->asked);
	if (!B_source())
		return;
	snprintf(name, sizeof(name), "memory-%s-source", when);
	bench_print(name, (double)B_source() / (double)m->asked);
}

/* Nine in ten go, at random. */
static void drop_most(struct mix *m)
{
	for (size_t i = 0; i < m->count; i++)
		if (bench_below(bench_random(&m->random), 10) != 0)
			drop(m, &m->objects[i]);
}

void bench_memory(const struct test *test)
{
	struct mix m = { .count = test->a, .random = 9 };
	size_t full;

	m.objects = bench_own(m.count * sizeof(*m.objects));
	resident(); /* pages of code that the first call brings in */
	m.before = resident();
	for (size_t i = 0; i < m.count; i++)
		make(&m, &m.objects[i], bench_size(bench_random(&m.random)));
	full = m.asked;
	say(&m, "full");
	for (size_t i = 0; i < 2 * m.count; i++) {
		uint64_t r = bench_random(&m.random);
		struct object *o = &m.objects[bench_below(r, m.count)];

		drop(&m, o);
		make(&m, o, bench_size(r));
	}
	say(&m, "churned");
	drop_most(&m);
	say(&m, "tenth");
	B_trim();
	say(&m, "trimmed");
	/* As many bytes as at first, of objects one and a half times as large, less one. */
	for (size_t i = 0; i < m.count && m.asked < full; i++) {
		size_t n = bench_size(bench_random(&m.random));

		if (!m.objects[i].p)
			make(&m, &m.objects[i], n + n / 2 - 1);
	}
	say(&m, "shifted");
}
