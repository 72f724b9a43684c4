/* SPDX-License-Identifier: MIT
 * bench_trace.c - owns the replay of a recorded program (../traces; format: ../host/recorder.c).
 * Runs: host program, one thread. An operation is a call of the trace.
 *
 * The first byte of every object and of each further 4096 is written, as in ../host/replay.c; what
 * is live at the end is freed, so that the trace can be played again.
 */
#include "bench.h"

#include <fcntl.h>
#include <stdio.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

enum op { OP_MALLOC, OP_FREE, OP_REALLOC, OP_SPECIAL };

struct step {
	uint32_t slot;
	uint32_t size;
	uint8_t op;
	uint8_t align_shift; /* OP_SPECIAL: 0 = zeroed */
};

struct trace {
	struct step *steps;
	void **objects;
	size_t count, slots, times;
};

struct reader {
	const unsigned char *at, *end;
};

static uint64_t varint(struct reader *r)
{
	uint64_t value = 0;

	for (unsigned shift = 0; r->at < r->end && shift < 64; shift += 7) {
		unsigned char byte = *r->at++;

		value |= (uint64_t)(byte & 127) << shift;
		if (byte < 128)
			return value;
	}
	bench_die("trace is cut off");
}

static void read_step(struct reader *r, struct step *step)
{
	uint64_t v = varint(r), size = v >> 2, slot = size;

	step->op = (uint8_t)(v & 3);
	if (step->op == OP_FREE)
		size = 0;
	else if (step->op == OP_REALLOC)
		size = varint(r);
	else
		slot = varint(r);
	step->align_shift = step->op == OP_SPECIAL ? (uint8_t)varint(r) : 0;
	step->slot = (uint32_t)slot;
	step->size = (uint32_t)size;
	if (size > UINT32_MAX || slot > UINT32_MAX)
		bench_die("trace asks for too much");
}

static void load(struct trace *t, const char *path)
{
	int fd = path ? open(path, O_RDONLY) : -1;
	struct reader r;
	struct stat st;

	if (fd < 0 || fstat(fd, &st) || st.st_size < 8)
		bench_die("no trace");
	r.at = mmap(NULL, (size_t)st.st_size, PROT_READ, MAP_PRIVATE, fd, 0);
	if (r.at == MAP_FAILED || memcmp(r.at, "KSTRACE1", 8))
		bench_die("not a trace");
	close(fd);
	r.end = r.at + st.st_size;
	r.at += 8;
	t->count = varint(&r);
	t->slots = varint(&r);
	if (t->count > (size_t)st.st_size)
		bench_die("bad header of a trace");
	t->steps = bench_own(t->count * sizeof(*t->steps));
	t->objects = bench_own((t->slots + 1) * sizeof(*t->objects));
	for (size_t i = 0; i < t->count; i++) {
		read_step(&r, &t->steps[i]);
		if (t->steps[i].slot >= t->slots)
			bench_die("bad slot in a trace");
	}
}

static void play_step(const struct step *s, void **at)
{
	switch (s->op) {
	case OP_FREE:
		B_free(*at);
		*at = NULL;
		return;
	case OP_MALLOC:
		*at = B_malloc(s->size);
		break;
	case OP_REALLOC:
		*at = B_realloc(*at, s->size);
		break;
	default:
		*at = s->align_shift ? B_memalign((size_t)1 << s->align_shift, s->size)
				     : B_calloc(1, s->size);
	}
	bench_touch_pages(*at, 0, s->size);
}

static void play(void *ctx)
{
	const struct trace *t = ctx;

	for (size_t n = 0; n < t->times; n++) {
		for (size_t i = 0; i < t->count; i++)
			play_step(&t->steps[i], &t->objects[t->steps[i].slot]);
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
