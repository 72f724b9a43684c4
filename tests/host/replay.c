/* SPDX-License-Identifier: MIT
 * replay.c - owns the playing back of a trace (format: ../trace.h) with whatever malloc is linked
 * or preloaded.
 * Runs: host program, one thread.
 *
 * replay [-c | -w] [-i] [-n times] trace...
 *   -c  check: every object is aligned, keeps its contents, and is zero where promised
 *   -w  write every object in words when it is new or moved, and read it before it is freed: what a
 *       program does at least, and what tests/kernel/replay.c does
 *   -i  inform only: what is in the trace, without playing it
 *   -n  play it that many times (1)
 * Prints one line per trace, and exits with 1 at the first broken promise.
 *
 * Own memory comes from mmap, and is touched before the clock and the resident size are read, so
 * that the figures are the allocator's. Without -c and -w the first byte of every object and of
 * every further 4096 is written.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <malloc.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

#include "trace.h"

struct object {
	unsigned char *p;
	uint64_t size;
	unsigned char seed; /* of its contents */
};

struct trace {
	const char *name;
	struct trace_call *calls;
	size_t count;
	size_t slots;
};

/* What a trace asks for. */
struct summary {
	size_t calls[4];
	uint64_t live_bytes, peak_bytes;
	size_t live, peak;
};

static _Noreturn void die(const char *name, const char *what, size_t at)
{
	fprintf(stderr, "replay: %s: %s (operation %zu)\n", name, what, at);
	exit(1);
}

static void *own_memory(size_t bytes)
{
	void *p = mmap(NULL, bytes ? bytes : 1, PROT_READ | PROT_WRITE,
		       MAP_PRIVATE | MAP_ANONYMOUS | MAP_POPULATE, -1, 0);

	if (p == MAP_FAILED)
		die("memory", strerror(errno), 0);
	return p;
}

/* ---- reading ------------------------------------------------------------------------------- */

static void load(struct trace *t, const char *path)
{
	int fd = open(path, O_RDONLY);
	struct trace_reader r;
	struct stat st;
	void *file;

	if (fd < 0 || fstat(fd, &st))
		die(path, strerror(errno), 0);
	file = mmap(NULL, (size_t)st.st_size, PROT_READ, MAP_PRIVATE | MAP_POPULATE, fd, 0);
	if (file == MAP_FAILED)
		die(path, strerror(errno), 0);
	close(fd);
	if (!trace_open(&r, file, (size_t)st.st_size))
		die(path, r.wrong, 0);
	t->name = strrchr(path, '/') ? strrchr(path, '/') + 1 : path;
	t->count = r.calls;
	t->slots = r.slots;
	t->calls = own_memory(t->count * sizeof(*t->calls));
	for (size_t i = 0; i < t->count; i++)
		if (!trace_read(&r, &t->calls[i]))
			die(path, r.wrong, i);
	if (r.at != r.end)
		die(path, "bytes behind the last operation", t->count);
	munmap(file, (size_t)st.st_size);
}

/* Also proves that the trace is possible: no slot issued twice, nothing freed that is not live. */
static struct summary summarize(const struct trace *t)
{
	uint64_t *sizes = own_memory(t->slots * sizeof(*sizes)); /* size + 1 of a live object */
	struct summary s = { 0 };

	for (size_t i = 0; i < t->count; i++) {
		const struct trace_call *call = &t->calls[i];
		uint64_t *size = &sizes[call->slot];
		bool is_new = call->op == TRACE_MALLOC || call->op == TRACE_SPECIAL;

		if (is_new == (*size != 0))
			die(t->name, is_new ? "slot is live" : "slot is not live", i);
		s.calls[call->op]++;
		s.live_bytes -= *size ? *size - 1 : 0;
		s.live_bytes += call->size;
		s.live += is_new;
		s.live -= call->op == TRACE_FREE;
		*size = call->op == TRACE_FREE ? 0 : call->size + 1;
		if (s.live_bytes > s.peak_bytes)
			s.peak_bytes = s.live_bytes;
		if (s.live > s.peak)
			s.peak = s.live;
	}
	munmap(sizes, t->slots * sizeof(*sizes));
	return s;
}

/* ---- playing ------------------------------------------------------------------------------- */

static void touch(struct object *o)
{
	for (uint64_t i = 0; i < o->size; i += 4096)
		o->p[i] = o->seed;
}

static void write_words(struct object *o)
{
	uint64_t value = o->seed, words = o->size / sizeof(value);

	for (uint64_t i = 0; i < words; i++, value += 0x9e3779b97f4a7c15u)
		memcpy(o->p + i * sizeof(value), &value, sizeof(value));
	memcpy(o->p + words * sizeof(value), &value, o->size % sizeof(value));
}

static bool are_words(const struct object *o)
{
	uint64_t value = o->seed, words = o->size / sizeof(value), word;

	for (uint64_t i = 0; i < words; i++, value += 0x9e3779b97f4a7c15u) {
		memcpy(&word, o->p + i * sizeof(word), sizeof(word));
		if (word != value)
			return false;
	}
	return !memcmp(o->p + words * sizeof(value), &value, o->size % sizeof(value));
}

/* Byte i of an object is seed + i modulo 251: neighbours, and shifted copies, differ. */
static void fill(struct object *o)
{
	unsigned char v = o->seed;

	for (uint64_t i = 0; i < o->size; i++) {
		o->p[i] = v;
		v = v == 250 ? 0 : (unsigned char)(v + 1);
	}
}

static bool is_filled(const struct object *o, uint64_t bytes)
{
	unsigned char v = o->seed;

	for (uint64_t i = 0; i < bytes; i++) {
		if (o->p[i] != v)
			return false;
		v = v == 250 ? 0 : (unsigned char)(v + 1);
	}
	return true;
}

static bool is_zero(const struct object *o)
{
	for (uint64_t i = 0; i < o->size; i++)
		if (o->p[i])
			return false;
	return true;
}

/* glibc aligns all to 16; others only what is large enough to need it. */
static bool is_aligned(const void *p, uint64_t size, unsigned shift)
{
	uintptr_t align = size >= 16 ? 16 : size >= 8 ? 8 : 1;

	if (shift && (uintptr_t)1 << shift > align)
		align = (uintptr_t)1 << shift;
	return ((uintptr_t)p & (align - 1)) == 0;
}

static void *request(const struct trace_call *call)
{
	if (call->op == TRACE_MALLOC)
		return malloc(call->size);
	if (call->align_shift)
		return memalign((size_t)1 << call->align_shift, call->size);
	return calloc(1, call->size);
}

static void check_call(const struct trace *t, struct object *objects, size_t i)
{
	const struct trace_call *call = &t->calls[i];
	struct object *o = &objects[call->slot];
	uint64_t kept = o->size < call->size ? o->size : call->size;
	void *p;

	switch (call->op) {
	case TRACE_FREE:
		if (!is_filled(o, o->size))
			die(t->name, "contents changed", i);
		free(o->p);
		o->p = NULL;
		return;
	case TRACE_REALLOC:
		p = realloc(o->p, call->size);
		if (!p)
			die(t->name, "out of memory", i);
		o->p = p;
		if (!is_filled(o, kept))
			die(t->name, "contents lost by realloc", i);
		break;
	default:
		o->p = request(call);
		if (!o->p)
			die(t->name, "out of memory", i);
	}
	o->size = call->size;
	o->seed = (unsigned char)(i % 251);
	if (!is_aligned(o->p, o->size, call->op == TRACE_SPECIAL ? call->align_shift : 0))
		die(t->name, "misaligned", i);
	if (malloc_usable_size(o->p) < o->size)
		die(t->name, "usable size below the size", i);
	if (call->op == TRACE_SPECIAL && !call->align_shift && !is_zero(o))
		die(t->name, "not zeroed", i);
	fill(o);
}

static void plain_call(const struct trace *t, struct object *objects, size_t i, bool writes)
{
	const struct trace_call *call = &t->calls[i];
	struct object *o = &objects[call->slot];

	if (writes && o->p && !are_words(o))
		die(t->name, "contents changed", i);
	if (call->op == TRACE_FREE) {
		free(o->p);
		o->p = NULL;
		return;
	}
	o->p = call->op == TRACE_REALLOC ? realloc(o->p, call->size) : request(call);
	if (!o->p)
		die(t->name, "out of memory", i);
	o->size = call->size;
	o->seed = (unsigned char)(i % 251);
	if (writes)
		write_words(o);
	else
		touch(o);
}

static void play(const struct trace *t, struct object *objects, bool check, bool writes)
{
	for (size_t i = 0; i < t->count; i++)
		if (check)
			check_call(t, objects, i);
		else
			plain_call(t, objects, i, writes);
	for (size_t slot = 0; slot < t->slots; slot++) {
		struct object *o = &objects[slot];

		if (check && o->p && !is_filled(o, o->size))
			die(t->name, "contents changed", t->count);
		free(o->p);
		o->p = NULL;
	}
}

static double seconds(void)
{
	struct timespec now;

	clock_gettime(CLOCK_MONOTONIC, &now);
	return (double)now.tv_sec + (double)now.tv_nsec * 1e-9;
}

static long peak_kib(void)
{
	struct rusage usage;

	getrusage(RUSAGE_SELF, &usage);
	return usage.ru_maxrss;
}

int main(int argc, char **argv)
{
	bool check = false, writes = false, inform = false;
	unsigned long times = 1;
	int opt;

	while ((opt = getopt(argc, argv, "cwin:")) != -1) {
		if (opt == 'c')
			check = true;
		else if (opt == 'w')
			writes = true;
		else if (opt == 'i')
			inform = true;
		else if (opt == 'n')
			times = strtoul(optarg, NULL, 10);
		else
			optind = argc;
	}
	if (optind >= argc || !times) {
		fprintf(stderr, "usage: replay [-c | -w] [-i] [-n times] trace...\n");
		return 2;
	}
	for (; optind < argc; optind++) {
		struct trace t;
		struct summary s;
		struct object *objects;
		double start, time;
		long before;

		load(&t, argv[optind]);
		s = summarize(&t);
		printf("%s: %zu calls (%zu malloc, %zu free, %zu realloc, %zu special), peak %zu "
		       "objects %.2f MiB",
		       t.name, t.count, s.calls[TRACE_MALLOC], s.calls[TRACE_FREE],
		       s.calls[TRACE_REALLOC], s.calls[TRACE_SPECIAL], s.peak,
		       (double)s.peak_bytes / 1048576.0);
		fflush(stdout);
		if (!inform) {
			objects = own_memory(t.slots * sizeof(*objects));
			before = peak_kib();
			start = seconds();
			for (unsigned long n = 0; n < times; n++)
				play(&t, objects, check, writes);
			time = seconds() - start;
			printf("; %.2f million calls/s, resident peak +%.2f MiB%s",
			       (double)(t.count + s.live) * (double)times / time * 1e-6,
			       (double)(peak_kib() - before) / 1024.0,
			       check ? ", contents checked" : "");
		}
		printf("\n");
	}
	return 0;
}
