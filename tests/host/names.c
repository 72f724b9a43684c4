/* SPDX-License-Identifier: MIT
 * names.c - owns the test of the C library's names: what POSIX and glibc promise of malloc and its
 * relatives.
 * Runs: host program, one thread; with any malloc that is linked or preloaded.
 *
 * Calls go through volatile pointers, or the compiler would answer some of them itself.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <malloc.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

static void *(*volatile do_malloc)(size_t) = malloc;
static void *(*volatile do_calloc)(size_t, size_t) = calloc;
static void *(*volatile do_realloc)(void *, size_t) = realloc;
static void *(*volatile do_reallocarray)(void *, size_t, size_t) = reallocarray;
static void *(*volatile do_aligned_alloc)(size_t, size_t) = aligned_alloc;
static void *(*volatile do_memalign)(size_t, size_t) = memalign;
static int (*volatile do_posix_memalign)(void **, size_t, size_t) = posix_memalign;
static void *(*volatile do_valloc)(size_t) = valloc;
static void *(*volatile do_pvalloc)(size_t) = pvalloc;
static size_t (*volatile do_usable)(void *) = malloc_usable_size;

/* Newer than this C library; present when kslab is. */
void free_sized(void *p, size_t n) __attribute__((weak));
void free_aligned_sized(void *p, size_t align, size_t n) __attribute__((weak));

static int failures;

static void expect(bool truth, const char *what, size_t a, size_t b)
{
	if (truth)
		return;
	failures++;
	fprintf(stderr, "names: %s (%zu, %zu)\n", what, a, b);
}

static bool is_multiple(const void *p, size_t align)
{
	return ((uintptr_t)p & (align - 1)) == 0;
}

static void test_sizes(void)
{
	void *before = NULL;

	for (size_t n = 0; n < 300000; n += n < 3000 ? 1 : 997) {
		unsigned char *p = do_malloc(n);

		expect(p != NULL, "malloc fails", n, 0);
		if (!p)
			return;
		expect(is_multiple(p, n >= 16 ? 16 : n >= 8 ? 8 : 1), "malloc is misaligned", n, 0);
		expect(do_usable(p) >= n, "usable size is below the size", n, do_usable(p));
		memset(p, 0xa5, do_usable(p));
		expect(p != before, "a live object is issued again", n, 0);
		free(before);
		before = p;
	}
	free(before);
	expect(do_usable(NULL) == 0, "usable size of NULL", 0, 0);
	free(NULL);
}

static void test_zeroed(void)
{
	for (size_t n = 1; n < 200000; n = n * 3 / 2 + 1) {
		unsigned char *p = do_malloc(n), *q;
		size_t bad = 0;

		memset(p, 0xff, n);
		free(p);
		q = do_calloc(n, 1);
		while (bad < n && q[bad] == 0)
			bad++;
		expect(bad == n, "calloc leaves a byte", n, bad);
		free(q);
	}
}

static void test_realloc(void)
{
	unsigned char *p = do_realloc(NULL, 1);
	size_t size = 1;

	p[0] = 0;
	for (size_t n = 2; n < 400000; n = n * 5 / 4 + 1) {
		p = do_realloc(p, n);
		for (size_t i = 0; i < n; i++)
			if (i < size && p[i] != (unsigned char)(i * 7)) {
				expect(false, "realloc loses contents growing", n, i);
				break;
			}
		for (size_t i = 0; i < n; i++)
			p[i] = (unsigned char)(i * 7);
		size = n;
	}
	for (size_t n = 300000; n > 1; n = n * 3 / 4) {
		p = do_realloc(p, n);
		for (size_t i = 0; i < n; i++)
			if (p[i] != (unsigned char)(i * 7)) {
				expect(false, "realloc loses contents shrinking", n, i);
				break;
			}
	}
	errno = 0;
	expect(do_realloc(p, SIZE_MAX / 2) == NULL && errno == ENOMEM, "realloc beyond all limits",
	       0, 0);
	expect(p[0] == 0, "a failed realloc changes the object", 0, 0);
	errno = 0;
	expect(do_realloc(p, 0) == NULL && errno == 0, "realloc to 0 does not free", 0,
	       (size_t)errno);
	p = do_reallocarray(NULL, 10, 20);
	expect(p && do_usable(p) >= 200, "reallocarray", 0, 0);
	errno = 0;
	expect(!do_reallocarray(p, SIZE_MAX / 4, 5) && errno == ENOMEM, "reallocarray wraps", 0, 0);
	free(p);
}

static void test_aligned(void)
{
	for (size_t align = 1; align <= (size_t)1 << 22; align *= 2)
		for (size_t n = 0; n < 100000; n = n * 3 + 1) {
			void *p = NULL, *q = do_aligned_alloc(align, n), *r = do_memalign(align, n);

			expect(q && is_multiple(q, align), "aligned_alloc", align, n);
			expect(r && is_multiple(r, align), "memalign", align, n);
			if (align >= sizeof(void *)) {
				expect(do_posix_memalign(&p, align, n) == 0, "posix_memalign",
				       align, n);
				expect(p && is_multiple(p, align), "posix_memalign", align, n);
			}
			if (q)
				memset(q, 1, n);
			free(p);
			free(r);
			free(q);
		}
}

static void test_refusals(void)
{
	size_t page = (size_t)sysconf(_SC_PAGESIZE);
	void *p = &failures;

	errno = 0;
	expect(!do_malloc(SIZE_MAX) && errno == ENOMEM, "malloc(SIZE_MAX)", 0, 0);
	errno = 0;
	expect(!do_malloc((size_t)PTRDIFF_MAX + 1) && errno == ENOMEM, "malloc(PTRDIFF_MAX + 1)", 0,
	       0);
	errno = 0;
	expect(!do_calloc(SIZE_MAX / 8, 9) && errno == ENOMEM, "calloc wraps", 0, 0);
	errno = 0;
	expect(!do_pvalloc(SIZE_MAX - 1) && errno == ENOMEM, "pvalloc wraps", 0, 0);
	errno = 0;
	expect(do_posix_memalign(&p, 24, 1) == EINVAL && p == &failures, "posix_memalign(24)", 0,
	       0);
	expect(do_posix_memalign(&p, 4, 1) == EINVAL && p == &failures, "posix_memalign(4)", 0, 0);
	expect(do_posix_memalign(&p, 0, 1) == EINVAL && p == &failures, "posix_memalign(0)", 0, 0);
	expect(do_posix_memalign(&p, 64, SIZE_MAX - 1) == ENOMEM && p == &failures,
	       "posix_memalign beyond all limits", 0, 0);
	p = do_valloc(1);
	expect(p && is_multiple(p, page), "valloc", 0, 0);
	free(p);
	p = do_pvalloc(page + 1);
	expect(p && is_multiple(p, page) && do_usable(p) >= 2 * page, "pvalloc", 0, 0);
	free(p);
	p = do_memalign(48, 10);
	expect(p && is_multiple(p, 64), "memalign(48)", 0, 0);
	errno = 77;
	free(p);
	expect(errno == 77, "free changes errno", 0, 0);
}

static void test_sized(void)
{
	if (!free_sized || !free_aligned_sized)
		return;
	for (size_t n = 0; n < 200000; n = n < 3000 ? n + 1 : n + 997) {
		void *p = do_malloc(n);

		free_sized(p, n);
		free_sized(do_calloc(1, n), n);
		free_sized(do_realloc(do_malloc(n + 40), n), n);
		free_sized(do_realloc(do_malloc(n / 2 + 1), n + 1), n + 1);
		free_aligned_sized(do_aligned_alloc(64, n), 64, n);
		free_aligned_sized(do_aligned_alloc(8192, n), 8192, n);
	}
	free_sized(NULL, 8);
	free_aligned_sized(NULL, 8, 8);
}

/* 2 GiB in all, in blocks that are freed at once: memory has to come back. */
static void test_large(void)
{
	for (unsigned i = 0; i < 64; i++) {
		size_t n = (size_t)32 << 20;
		char *p = do_malloc(n);

		expect(p != NULL, "malloc of 32 MiB", i, 0);
		if (!p)
			return;
		for (size_t at = 0; at < n; at += 4096)
			p[at] = 1;
		free(p);
	}
	malloc_trim(0);
}

int main(void)
{
	test_sizes();
	test_zeroed();
	test_realloc();
	test_aligned();
	test_refusals();
	test_sized();
	test_large();
	printf("names: %d failures\n", failures);
	return failures != 0;
}
