/* SPDX-License-Identifier: MIT
 * levels.c - owns the cost of the debug levels on recorded programs (../traces), as ratios to level 0
 * in the same run.
 * Runs: Linux host, one thread, three heaps of one library: debug levels 0, 1 and 2.
 *
 *     levels [-n rounds] trace...       the table; see levels.sh, which builds it
 *     levels -l LEVEL [-w] trace...     once at one level, for callgrind: play() is what counts
 *
 * Two ways to play: calls alone, where the first byte of an object and of each further 4096 is
 * written, so that level 0 hardly looks at memory; and with contents, where each object is written
 * in words when it is new or moved and read before it is freed, as a program does at least, and as
 * tests/kernel/replay.c does. A round plays the trace at each level, one after the other; the ratio
 * is the median of the rounds' ratios of processor time.
 */
#define _GNU_SOURCE
#include "host/host.h"
#include "trace.h"

#include <fcntl.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

#define LEVELS 3u
#define ROUNDS_MAX 1000
#define TRACES_MAX 16
#define STEP 0x9e3779b97f4a7c15u

struct object {
	unsigned char *p;
	size_t size;
	uint64_t seed;
};

struct trace {
	const char *name;
	struct trace_call *calls;
	struct object *objects;
	size_t count, slots;
};

static struct kslab_heap heap[LEVELS];

static _Noreturn void die(const char *what)
{
	fprintf(stderr, "levels: %s\n", what);
	exit(2);
}

static void *own(size_t bytes)
{
	void *p = mmap(NULL, bytes, PROT_READ | PROT_WRITE,
		       MAP_PRIVATE | MAP_ANONYMOUS | MAP_POPULATE, -1, 0);

	if (p == MAP_FAILED)
		die("no memory");
	return p;
}

/* ---- reading ------------------------------------------------------------------------------- */

static void load(struct trace *t, const char *path)
{
	int fd = open(path, O_RDONLY);
	struct trace_reader r;
	struct stat st;
	void *file;

	if (fd < 0 || fstat(fd, &st) != 0)
		die("no trace");
	file = mmap(NULL, (size_t)st.st_size, PROT_READ, MAP_PRIVATE, fd, 0);
	close(fd);
	if (file == MAP_FAILED || !trace_open(&r, file, (size_t)st.st_size))
		die("not a trace");
	t->name = strrchr(path, '/') != NULL ? strrchr(path, '/') + 1 : path;
	t->count = r.calls;
	t->slots = r.slots;
	t->calls = own(t->count * sizeof(*t->calls));
	t->objects = own((t->slots + 1) * sizeof(*t->objects));
	for (size_t i = 0; i < t->count; i++)
		if (!trace_read(&r, &t->calls[i]))
			die("a trace is damaged");
	munmap(file, (size_t)st.st_size);
}

/* ---- playing ------------------------------------------------------------------------------- */

/* memcpy of a word is one instruction, and may be misaligned. */
static void write_object(const struct object *o)
{
	size_t words = o->size / sizeof(uint64_t);
	uint64_t value = o->seed;

	for (size_t i = 0; i < words; i++, value += STEP)
		memcpy(o->p + i * sizeof(value), &value, sizeof(value));
	memcpy(o->p + words * sizeof(value), &value, o->size % sizeof(value));
}

static void read_object(const struct object *o)
{
	size_t words = o->size / sizeof(uint64_t);
	uint64_t value = o->seed, word, other = 0;

	for (size_t i = 0; i < words; i++, value += STEP) {
		memcpy(&word, o->p + i * sizeof(word), sizeof(word));
		other |= word ^ value;
	}
	if (other != 0 || memcmp(o->p + words * sizeof(value), &value, o->size % sizeof(value)))
		die("contents changed");
}

static void *request(struct kslab_heap *h, const struct trace_call *call)
{
	if (call->op == TRACE_MALLOC)
		return kslab_heap_malloc(h, call->size);
	if (call->align_shift != 0)
		return kslab_heap_aligned_alloc(h, (size_t)1 << call->align_shift, call->size);
	return kslab_heap_zalloc(h, call->size);
}

static void play_call(struct kslab_heap *h, const struct trace_call *call, struct object *o,
		      bool writes)
{
	if (writes && o->p != NULL)
		read_object(o);
	if (call->op == TRACE_FREE) {
		kslab_heap_free(h, o->p);
		o->p = NULL;
		return;
	}
	o->p = call->op == TRACE_REALLOC ? kslab_heap_realloc(h, o->p, call->size)
					 : request(h, call);
	if (o->p == NULL)
		die("out of memory");
	o->size = call->size;
	if (writes) {
		o->seed += STEP;
		write_object(o);
		return;
	}
	for (size_t i = 0; i < o->size; i += 4096)
		o->p[i] = 1;
}

/*
 * What is live at the end is freed, so that it can be played again. Exported: callgrind's toggle.
 */
__attribute__((noinline)) void play(struct kslab_heap *h, const struct trace *t, bool writes)
{
	for (size_t i = 0; i < t->count; i++)
		play_call(h, &t->calls[i], &t->objects[t->calls[i].slot], writes);
	for (size_t i = 0; i < t->slots; i++) {
		kslab_heap_free(h, t->objects[i].p);
		t->objects[i].p = NULL;
	}
}

static double seconds(void)
{
	struct timespec now;

	clock_gettime(CLOCK_THREAD_CPUTIME_ID, &now);
	return (double)now.tv_sec + (double)now.tv_nsec * 1e-9;
}

static double timed(unsigned level, const struct trace *t, bool writes)
{
	double start = seconds();

	play(&heap[level], t, writes);
	return seconds() - start;
}

static int compare(const void *a, const void *b)
{
	double x = *(const double *)a, y = *(const double *)b;

	return (x > y) - (x < y);
}

static double median(double *values, int n)
{
	qsort(values, (size_t)n, sizeof(*values), compare);
	return (values[(n - 1) / 2] + values[n / 2]) / 2;
}

/* out: ns of a call at level 0, then the ratios of levels 1 and 2. */
static void measure(const struct trace *t, bool writes, int rounds, double out[LEVELS])
{
	static double time[LEVELS][ROUNDS_MAX];

	for (unsigned level = 0; level < LEVELS; level++)
		timed(level, t, writes); /* pages are there, and warm */
	for (int round = 0; round < rounds; round++)
		for (unsigned k = 0; k < LEVELS; k++) {
			unsigned level = (k + (unsigned)round) % LEVELS;

			time[level][round] = timed(level, t, writes);
		}
	for (int round = 0; round < rounds; round++)
		for (unsigned level = 1; level < LEVELS; level++)
			time[level][round] /= time[0][round];
	for (unsigned level = 0; level < LEVELS; level++)
		out[level] = median(time[level], rounds);
	out[0] *= 1e9 / (double)t->count;
}

static void table(struct trace *traces, int count, int rounds, bool writes)
{
	double product[LEVELS] = { 1, 1, 1 }, out[LEVELS];

	for (int i = 0; i < count; i++) {
		measure(&traces[i], writes, rounds, out);
		printf("%-16s %8.1f ns %9.2f %9.2f\n", traces[i].name, out[0], out[1], out[2]);
		for (unsigned level = 0; level < LEVELS; level++)
			product[level] *= out[level];
	}
	printf("%-16s %8.1f ns %9.2f %9.2f\n", "geometric mean", pow(product[0], 1.0 / count),
	       pow(product[1], 1.0 / count), pow(product[2], 1.0 / count));
}

static void start(unsigned level)
{
	size_t bytes = (size_t)256 << 20;
	void *window = kslab_host_reserve(&bytes);
	struct kslab_config config = kslab_host_config(window, bytes);

	config.debug_level = level;
	if (window == NULL || kslab_heap_init(&heap[level], &config) != KSLAB_OK ||
	    kslab_heap_add_region(&heap[level], window, bytes) != KSLAB_OK)
		die("no heap");
}

int main(int argc, char **argv)
{
	static struct trace traces[TRACES_MAX];
	int opt, rounds = 15, level = -1, count = 0;
	bool writes = false;

	while ((opt = getopt(argc, argv, "n:l:w")) != -1) {
		if (opt == 'n')
			rounds = atoi(optarg);
		else if (opt == 'l')
			level = atoi(optarg);
		else if (opt == 'w')
			writes = true;
		else
			optind = argc;
	}
	if (optind >= argc || rounds < 1 || rounds > ROUNDS_MAX || level >= (int)LEVELS) {
		fprintf(stderr, "usage: levels [-n rounds | -l LEVEL [-w]] trace...\n");
		return 2;
	}
	kslab_host_cpu = 0; /* of every heap */
	for (; optind < argc && count < TRACES_MAX; optind++)
		load(&traces[count++], argv[optind]);
	if (level >= 0) {
		start((unsigned)level);
		for (int i = 0; i < count; i++)
			play(&heap[level], &traces[i], writes);
		return 0;
	}
	for (unsigned i = 0; i < LEVELS; i++)
		start(i);
	printf("%-16s %11s %9s %9s\n", "with contents", "level 0", "level 1", "level 2");
	table(traces, count, rounds, true);
	printf("%-16s %11s %9s %9s\n", "calls alone", "level 0", "level 1", "level 2");
	table(traces, count, rounds, false);
	return 0;
}
