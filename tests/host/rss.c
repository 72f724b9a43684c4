/* SPDX-License-Identifier: MIT
 * rss.c - owns the measurement of memory per byte asked: 100,000 live objects of a kernel-like mix.
 * Runs: host program, one thread; with any malloc that is linked or preloaded. rss [objects] [seed]
 *
 * Prints growth of the resident size / bytes asked, when the objects have been made, and again
 * after four in five of them have been replaced in random order. Every byte is written.
 */
#define _GNU_SOURCE
#include <fcntl.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

/*
 * Sizes that kernels allocate: structures (multiples of 8) and buffers (powers of two), many small
 * and few large. Shares in 1/1000; 8 to 2048 bytes, mean about 110.
 */
static const struct {
	unsigned share, bytes;
} mix[] = {
	{ 53, 8 },   { 95, 16 },  { 60, 24 },  { 146, 32 }, { 90, 48 },	 { 170, 64 },
	{ 90, 96 },  { 40, 104 }, { 80, 128 }, { 80, 192 }, { 20, 200 }, { 40, 256 },
	{ 15, 512 }, { 3, 576 },  { 3, 680 },  { 9, 1024 }, { 6, 2048 },
};

static uint64_t state;

static uint32_t next(void)
{
	state = state * 6364136223846793005u + 1442695040888963407u;
	return (uint32_t)(state >> 33);
}

static size_t some_size(void)
{
	unsigned at = next() % 1000, i = 0;

	while (at >= mix[i].share)
		at -= mix[i++].share;
	return mix[i].bytes;
}

/*
 * Resident bytes of the process, without what is mapped from files: code that is used for the first
 * time is no memory of the heap. stdio would allocate.
 */
static size_t resident(void)
{
	char text[128];
	int fd = open("/proc/self/statm", O_RDONLY | O_CLOEXEC);
	ssize_t n = fd < 0 ? -1 : read(fd, text, sizeof(text) - 1);
	char *next;
	size_t all;

	if (n <= 0)
		exit(2);
	close(fd);
	text[n] = 0;
	next = strchr(text, ' ');
	if (!next)
		exit(2);
	all = strtoull(next, &next, 10);
	return (all - strtoull(next, NULL, 10)) * (size_t)sysconf(_SC_PAGESIZE);
}

struct object {
	void *p;
	size_t bytes;
};

static void make(struct object *o)
{
	o->bytes = some_size();
	o->p = malloc(o->bytes);
	if (!o->p)
		exit(3);
	memset(o->p, 0x5a, o->bytes);
}

static void print(const char *when, size_t asked, size_t before)
{
	size_t grown = resident() - before;

	printf("%s: asked %zu, resident +%zu, ratio %.3f\n", when, asked, grown,
	       (double)grown / (double)asked);
}

int main(int argc, char **argv)
{
	size_t count = argc > 1 ? strtoull(argv[1], NULL, 0) : 100000, asked = 0, before;
	struct object *objects = mmap(NULL, count * sizeof(*objects), PROT_READ | PROT_WRITE,
				      MAP_PRIVATE | MAP_ANONYMOUS | MAP_POPULATE, -1, 0);

	if (objects == MAP_FAILED)
		return 2;
	state = argc > 2 ? strtoull(argv[2], NULL, 0) : 1;
	setvbuf(stdout, NULL, _IONBF, 0);
	resident(); /* pages of code that the first call brings in */
	before = resident();
	for (size_t i = 0; i < count; i++) {
		make(&objects[i]);
		asked += objects[i].bytes;
	}
	printf("%zu objects, mean %.1f bytes\n", count, (double)asked / (double)count);
	print("made", asked, before);
	for (size_t i = 0; i < count * 4 / 5; i++) {
		struct object *o = &objects[next() % count];

		asked -= o->bytes;
		free(o->p);
		make(o);
		asked += o->bytes;
	}
	print("replaced", asked, before);
	return 0;
}
