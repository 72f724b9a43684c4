/* SPDX-License-Identifier: MIT
 * growth.c - owns the test of what is resident when a heap grows far and shrinks: huge pages, if the
 * system gives any, must not hold what is not used.
 * Runs: host program, one thread; with any malloc that is linked or preloaded, but judges kslab only,
 * or all of them as `growth any`.
 */
#define _GNU_SOURCE
#include <fcntl.h>
#include <malloc.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#define BYTES 64u
#define COUNT (3u << 19) /* 96 MiB, far above where huge pages begin */
#define KEPT_ONE_IN (10u * 4096u / BYTES) /* objects: one in ten base pages stays */
#define MIB (1u << 20)

size_t kslab_reclaim(size_t bytes) __attribute__((weak));

static char *objects[COUNT];
static bool is_judged;

static size_t resident(void)
{
	char text[4096], *line = NULL;
	int fd = open("/proc/self/smaps_rollup", O_RDONLY | O_CLOEXEC);
	ssize_t n = fd < 0 ? -1 : read(fd, text, sizeof(text) - 1);

	if (n > 0) {
		text[n] = '\0';
		line = strstr(text, "Anonymous:");
	}
	close(fd);
	if (line == NULL)
		exit(2);
	return strtoull(line + strlen("Anonymous:"), NULL, 10) * 1024;
}

/* The same line if it holds, and with another malloc, so that outputs can be compared. */
static void judge(const char *what, size_t bytes, size_t most)
{
	if (is_judged && bytes > most)
		printf("%s: %zu MiB, wanted at most %zu\n", what, bytes / MIB, most / MIB);
	else
		printf("%s: ok\n", what);
}

static void grow(void)
{
	for (size_t i = 0; i < COUNT; i++) {
		if (objects[i] != NULL)
			continue;
		objects[i] = malloc(BYTES);
		if (objects[i] == NULL)
			exit(3);
		memset(objects[i], (int)i, BYTES);
	}
}

/* Keep every so many; 0: none. What is kept must still be there. */
static void shrink(size_t kept)
{
	for (size_t i = 0; i < COUNT; i++) {
		if (objects[i] == NULL)
			continue;
		if (objects[i][0] != (char)i || objects[i][BYTES - 1] != (char)i)
			printf("object %zu has changed\n", i);
		if (kept != 0 && i % kept == 0)
			continue;
		free(objects[i]);
		objects[i] = NULL;
	}
	malloc_trim(0);
}

int main(int argc, char **argv)
{
	size_t asked = (size_t)COUNT * BYTES, before;

	is_judged = kslab_reclaim != NULL || (argc > 1 && strcmp(argv[1], "any") == 0);
	memset(objects, 0, sizeof(objects));
	before = resident();
	for (unsigned turn = 0; turn < 2; turn++) {
		grow();
		judge("grown", resident() - before, asked + asked / 8);
		shrink(KEPT_ONE_IN);
		judge("a tenth of the pages kept", resident() - before, asked / 5);
	}
	shrink(0);
	judge("empty", resident() - before, asked / 20);
	return 0;
}
