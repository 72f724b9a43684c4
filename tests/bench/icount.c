/* SPDX-License-Identifier: MIT
 * icount.c - owns the program whose instructions are counted: kslab as a kernel on one CPU has it,
 * over a region, with single pages.
 * Runs: x86_64 Linux, started by icount.sh. Not a part of the bench programs.
 *
 * icount hot|random PAGES     prepares a heap of so many object pages, then runs CALLS pairs in
 *                             measured(), which callgrind is told to look at
 * icount worst PAGES          single-steps every call by the trap flag, and prints the dearest
 *
 * Heap: objects of 512 bytes, eight to a page; every page is filled, then half of all objects are
 * freed at random. random: one live object is replaced by another each time.
 */
#define _GNU_SOURCE
#include <kslab/kslab.h>

#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>

#define CALLS 20000u
#define STEPPED 1000u
#define OBJECT 512u
#define PER_PAGE (4096u / OBJECT)
#define LARGE_MAX 16u

static void **live; /* NULL: freed */
static size_t objects;
static uint64_t state = 1;

void measured_hot(size_t calls);
void measured_random(size_t calls);

static size_t below(size_t limit)
{
	state = state * 6364136223846793005u + 1442695040888963407u;
	return (size_t)(((state >> 32) * limit) >> 32);
}

static void *own(size_t bytes)
{
	void *p = mmap(NULL, bytes, PROT_READ | PROT_WRITE,
		       MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);

	if (p == MAP_FAILED)
		exit(2);
	return p;
}

static void prepare(size_t pages)
{
	struct kslab_config config = { .max_page_bytes = 4096, .min_align = 8 };
	size_t bytes = (pages + pages / 8 + 4096) * 4096;

	if (kslab_init(&config) || kslab_add_region(own(bytes), bytes))
		exit(3);
	objects = pages * PER_PAGE;
	live = own(objects * sizeof(*live));
	for (size_t i = 0; i < objects; i++)
		if (!(live[i] = kslab_malloc(OBJECT)))
			exit(4);
	for (size_t i = 0; i < objects; i++) {
		if (below(2) == 0)
			continue;
		kslab_free(live[i]);
		live[i] = NULL;
	}
}

/* ---- for callgrind ------------------------------------------------------------------------- */

__attribute__((noinline)) void measured_hot(size_t calls)
{
	for (size_t i = 0; i < calls; i++)
		kslab_free(kslab_malloc(64));
}

__attribute__((noinline)) void measured_random(size_t calls)
{
	for (size_t i = 0; i < calls; i++) {
		size_t at = below(objects);

		while (!live[at])
			at = at + 1 < objects ? at + 1 : 0;
		kslab_free(live[at]);
		live[at] = kslab_malloc(OBJECT);
	}
}

/* ---- one call at a time -------------------------------------------------------------------- */

static volatile sig_atomic_t steps;

static void on_step(int number)
{
	(void)number;
	steps++;
}

#define TRAP_ON() __asm__ volatile("pushfq; orq $0x100, (%%rsp); popfq" ::: "memory", "cc")
#define TRAP_OFF() __asm__ volatile("pushfq; andq $~0x100, (%%rsp); popfq" ::: "memory", "cc")

static void *nothing(size_t n)
{
	(void)n;
	return NULL;
}

static void nothing_freed(void *p)
{
	(void)p;
}

static void *(*volatile to_malloc)(size_t);
static void (*volatile to_free)(void *);

static long stepped_malloc(void *(*function)(size_t), size_t n, void **out)
{
	to_malloc = function;
	steps = 0;
	TRAP_ON();
	*out = to_malloc(n);
	TRAP_OFF();
	return steps;
}

static long stepped_free(void (*function)(void *), void *p)
{
	to_free = function;
	steps = 0;
	TRAP_ON();
	to_free(p);
	TRAP_OFF();
	return steps;
}

static struct most {
	const char *what;
	long malloc, free;
} most[8];
static size_t scenes;
static long empty_malloc, empty_free;

static void *step_malloc(size_t n)
{
	void *p;
	long count = stepped_malloc(kslab_malloc, n, &p) - empty_malloc + 1;

	if (count > most[scenes].malloc)
		most[scenes].malloc = count;
	return p;
}

static void step_free(void *p)
{
	long count = stepped_free(kslab_free, p) - empty_free + 1;

	if (count > most[scenes].free)
		most[scenes].free = count;
}

/* Random replacement: words, partial pages, full pages. */
static void scene_random(void)
{
	for (size_t i = 0; i < STEPPED; i++) {
		size_t at = below(objects);

		while (!live[at])
			at = at + 1 < objects ? at + 1 : 0;
		step_free(live[at]);
		live[at] = step_malloc(OBJECT);
	}
}

/* All sizes up to a page, up and down: pages made and given back. */
static void scene_pages(void)
{
	static void *many[1024];

	for (size_t n = 32; n <= 4096; n *= 2) {
		size_t count = 16384 / n; /* four pages, or a page for each object */

		for (size_t i = 0; i < count; i++)
			many[i] = step_malloc(n);
		for (size_t i = 0; i < count; i++)
			step_free(many[i]);
	}
}

static void scene_large(void)
{
	void *many[LARGE_MAX] = { NULL };

	for (size_t i = 0; i < 50; i++) {
		void **at = &many[below(LARGE_MAX)];

		step_free(*at);
		*at = step_malloc(16385 + below(64 * 1024 - 16384));
	}
	for (size_t i = 0; i < LARGE_MAX; i++)
		step_free(many[i]);
}

static void worst(void)
{
	static const struct {
		const char *what;
		void (*play)(void);
	} play[] = {
		{ "random replacement", scene_random },
		{ "pages made and given back", scene_pages },
		{ "large blocks, 16 to 64 KiB", scene_large },
	};
	struct sigaction action = { .sa_handler = on_step };
	void *p;

	sigaction(SIGTRAP, &action, NULL);
	empty_malloc = stepped_malloc(nothing, 1, &p);
	empty_free = stepped_free(nothing_freed, NULL);
	for (scenes = 0; scenes < sizeof(play) / sizeof(*play); scenes++) {
		play[scenes].play();
		printf("%-28s malloc %6ld  free %6ld\n", play[scenes].what, most[scenes].malloc,
		       most[scenes].free);
	}
}

int main(int argc, char **argv)
{
	if (argc != 3)
		return 2;
	prepare(strtoull(argv[2], NULL, 10));
	if (!strcmp(argv[1], "hot"))
		measured_hot(CALLS);
	else if (!strcmp(argv[1], "random"))
		measured_random(CALLS);
	else
		worst();
	return 0;
}
