/* SPDX-License-Identifier: MIT
 * client.c - owns code of a client that is wrong in one way, chosen by name; a memory checker is to
 * see it.
 * Rank: test.  Runs: Linux host; client.c is compiled with the checker, the library without (see
 * run.sh).
 *
 *     client LEVEL CASE        prints "end" when nothing has stopped it
 */
#define _GNU_SOURCE
#include <kslab/kslab.h>

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>

#define REGION ((size_t)16 << 20)

/* The compiler must not see that an access is wrong. */
static unsigned char *hide(void *p)
{
	__asm__ volatile("" : "+r"(p));
	return p;
}

static volatile unsigned char sink;

static void read_at(void *p, size_t at)
{
	sink = hide(p)[at];
}

static void write_at(void *p, size_t at)
{
	*(volatile unsigned char *)(hide(p) + at) = 0x42;
}

/* Something depends on the byte. */
static void branch_at(void *p, size_t at)
{
	if (hide(p)[at] == 0x42)
		sink = 1;
}

static struct kslab_cache cache;

static void construct(void *object, void *ctx)
{
	(void)ctx;
	memset(object, 0x33, 100);
}

/* Everything that is right: nothing may be reported. */
static void fine(void)
{
	unsigned char *p[200];

	for (unsigned round = 0; round < 3; round++) {
		for (unsigned i = 0; i < 200; i++) {
			size_t n = (size_t)i * i % 20000;

			p[i] = i % 3 ? kslab_malloc(n) : kslab_zalloc(n);
			for (size_t k = 0; i % 3 == 0 && k < n; k++)
				branch_at(p[i], k);
			memset(p[i], (int)i, n);
		}
		for (unsigned i = 0; i < 200; i += 2) {
			size_t n = (size_t)i * 70;

			p[i] = kslab_realloc(p[i], n + 1);
			memset(p[i], (int)i, n + 1);
		}
		for (unsigned i = 0; i < 200; i++)
			kslab_free(p[i]);
		kslab_reclaim(SIZE_MAX);
	}
	p[0] = kslab_realloc(kslab_malloc(100000), 50000);
	p[1] = kslab_zalloc(100000);
	for (size_t k = 0; k < 100000; k++)
		branch_at(p[1], k);
	p[0] = kslab_realloc(p[0], 150000);
	memset(p[0], 1, 150000);
	kslab_free(p[0]);
	kslab_free(p[1]);
	kslab_cache_init(&cache, "fine", 100, 0, construct, NULL);
	p[0] = kslab_cache_alloc(&cache);
	for (size_t k = 0; k < 100; k++)
		branch_at(p[0], k);
	kslab_cache_free(&cache, p[0]);
	p[0] = kslab_cache_alloc(&cache);
	branch_at(p[0], 50);
	kslab_cache_free(&cache, p[0]);
	kslab_cache_destroy(&cache);
	if (!kslab_check(NULL))
		printf("check failed\n");
}

static void overflow_read(void)
{
	read_at(memset(kslab_malloc(100), 1, 100), 100);
}

static void overflow_write(void)
{
	write_at(kslab_malloc(60), 60);
}

static void overflow_full_slot(void)
{
	write_at(kslab_malloc(64), 64);
}

static void underflow_write(void)
{
	unsigned char *p;

	kslab_malloc(100);
	p = kslab_malloc(100);
	write_at(p - 1, 0);
}

static void overflow_after_realloc(void)
{
	write_at(kslab_realloc(kslab_malloc(100), 90), 90);
}

static void overflow_large(void)
{
	write_at(kslab_malloc(50000), 50000);
}

static void overflow_cache(void)
{
	kslab_cache_init(&cache, "objects", 100, 0, construct, NULL);
	write_at(kslab_cache_alloc(&cache), 100);
}

static void free_read(void)
{
	void *p = memset(kslab_malloc(100), 1, 100);

	kslab_free(p);
	read_at(p, 50);
}

static void free_write(void)
{
	void *p = kslab_malloc(100);

	kslab_free(p);
	write_at(p, 0);
}

static void free_write_large(void)
{
	void *p = kslab_malloc(50000);

	kslab_free(p);
	write_at(p, 20000);
}

static void free_write_cache(void)
{
	void *p;

	kslab_cache_init(&cache, "objects", 100, 0, NULL, NULL);
	p = kslab_cache_alloc(&cache);
	kslab_cache_free(&cache, p);
	write_at(p, 9);
}

static void never_issued(void)
{
	unsigned char *p = kslab_malloc(2000);

	write_at(p + 3000, 0); /* a slot of the same page, that nobody has */
}

static void moved(void)
{
	void *p = kslab_malloc(100);

	kslab_realloc(p, 5000);
	write_at(p, 0);
}

static void not_set(void)
{
	branch_at(kslab_malloc(100), 30);
}

static void not_set_again(void)
{
	void *p = memset(kslab_malloc(100), 1, 100), *q = NULL;

	kslab_free(p);
	for (unsigned i = 0; i < 20000 && q != p; i++)
		q = kslab_malloc(100);
	branch_at(q, 30);
}

static void not_set_grown(void)
{
	branch_at(kslab_realloc(memset(kslab_malloc(90), 1, 90), 95), 93);
}

static void not_set_large(void)
{
	branch_at(kslab_malloc(50000), 30000);
}

static const struct {
	const char *name;
	void (*fn)(void);
} cases[] = {
	{ "fine", fine },
	{ "overflow_read", overflow_read },
	{ "overflow_write", overflow_write },
	{ "overflow_full_slot", overflow_full_slot },
	{ "underflow_write", underflow_write },
	{ "overflow_after_realloc", overflow_after_realloc },
	{ "overflow_large", overflow_large },
	{ "overflow_cache", overflow_cache },
	{ "free_read", free_read },
	{ "free_write", free_write },
	{ "free_write_large", free_write_large },
	{ "free_write_cache", free_write_cache },
	{ "never_issued", never_issued },
	{ "moved", moved },
	{ "not_set", not_set },
	{ "not_set_again", not_set_again },
	{ "not_set_grown", not_set_grown },
	{ "not_set_large", not_set_large },
};

int main(int argc, char **argv)
{
	struct kslab_config config = { .debug_level = argc > 1 ? (unsigned)atoi(argv[1]) : 1 };
	void *region =
		mmap(NULL, REGION, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);

	if (argc < 3 || region == MAP_FAILED || kslab_init(&config) != KSLAB_OK ||
	    kslab_add_region(region, REGION) != KSLAB_OK)
		return 2;
	for (size_t i = 0; i < sizeof(cases) / sizeof(cases[0]); i++) {
		if (strcmp(cases[i].name, argv[2]) == 0) {
			cases[i].fn();
			printf("end\n");
			return 0;
		}
	}
	return 2;
}
