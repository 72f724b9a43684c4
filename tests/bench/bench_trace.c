/* SPDX-License-Identifier: MIT
 * bench_trace.c - owns the replay of a recorded program (../traces).
 * Runs: host program, one thread. An operation is a call of the trace.
 *
 * The first byte of every object and of each further 4096 is written, as in ../host/replay.c; what
 * is live at the end is freed, so that the trace can be played again.
 */
#include "bench.h"
#include "trace.h"

#include <fcntl.h>
#include <stdio.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

struct trace {
	struct trace_call *calls;
	void **objects;
	size_t count, slots, times;
};

static void load(struct trace *t, const char *path)
{
	int fd = path ? open(path, O_RDONLY) : -1;
	struct trace_reader r;
	struct stat st;
	void *file;

	if (fd < 0 || fstat(fd, &st))
		bench_die("no trace");
	file = mmap(NULL, (size_t)st.st_size, PROT_READ, MAP_PRIVATE, fd, 0);
	close(fd);
	if (file == MAP_FAILED || !trace_open(&r, file, (size_t)st.st_size))
		bench_die("not a trace");
	t->count = r.calls;
	t->slots = r.slots;
	t->calls = bench_own(t->count * sizeof(*t->calls));
	t->objects = bench_own((t->slots + 1) * sizeof(*t->objects));
	for (size_t i = 0; i < t->count; i++)
		if (!trace_read(&r, &t->calls[i]))
			bench_die("trace is damaged");
	munmap(file, (size_t)st.st_size);
}

static void play_call(const struct trace_call *call, void **at)
{
	switch (call->op) {
	case TRACE_FREE:
		B_free(*at);
		*at = NULL;
		return;
	case TRACE_MALLOC:
		*at = B_malloc(call->size);
		break;
	case TRACE_REALLOC:
		*at = B_realloc(*at, call->size);
		break;
	default:
		*at = call->align_shift ? B_memalign((size_t)1 << call->align_shift, call->size)
					: B_calloc(1, call->size);
	}
	bench_touch_pages(*at, 0, call->size);
}

static void play(void *ctx)
{
	const struct trace *t = ctx;

	for (size_t n = 0; n < t->times; n++) {
		for (size_t i = 0; i < t->count; i++)
			play_call(&t->calls[i], &t->objects[t->calls[i].slot]);
		for (size_t i = 0; i < t->slots; i++) {
			B_free(t->objects[i]);
			t->objects[i] = NULL;
		}
	}
}

void bench_trace(const struct test *test)
{
	const char *base = test->path ? strrchr(test->path, '/') : NULL;
	char name[64];
	struct trace t;

	load(&t, test->path);
	t.times = bench_scale > 100 ? 2 : 1;
	snprintf(name, sizeof(name), "trace-%.*s", (int)strcspn(base ? base + 1 : test->path, "."),
		 base ? base + 1 : test->path);
	bench_measure(name, play, &t, t.count * t.times);
}
