/* SPDX-License-Identifier: MIT
 * preload.c - owns the C library's names for kslab: what replaces malloc in libkslab.so
 * (LD_PRELOAD).
 * Runs: any thread; the first call comes from the dynamic loader, before constructors and before
 * environ is set.
 *
 * Build with -fno-builtin (or the compiler makes calloc of malloc and memset, which is a recursion
 * here), with -ftls-model=initial-exec, and so that calls inside the library are direct.
 *
 * errno as POSIX says: ENOMEM when NULL is returned for lack of memory or for a size beyond all
 * limits, EINVAL for an alignment that is none; posix_memalign returns them instead; free leaves
 * errno alone.
 * Environment: KSLAB_REPORT=log (go on after a fault), KSLAB_STATS=1 (slabinfo on standard error
 * at exit).
 */
#define _GNU_SOURCE
#include "host.h"

#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#define EXPORT __attribute__((visibility("default")))
#define COLD __attribute__((cold, noinline))

/* Declared here: the C library's headers lack some, and say more of others than holds inside. */
EXPORT void *malloc(size_t n);
EXPORT void free(void *p);
EXPORT void *calloc(size_t count, size_t size);
EXPORT void *realloc(void *p, size_t n);
EXPORT void *reallocarray(void *p, size_t count, size_t size);
EXPORT void *memalign(size_t align, size_t n);
EXPORT void *aligned_alloc(size_t align, size_t n);
EXPORT int posix_memalign(void **out, size_t align, size_t n);
EXPORT void *valloc(size_t n);
EXPORT void *pvalloc(size_t n);
EXPORT size_t malloc_usable_size(void *p);
EXPORT void free_sized(void *p, size_t n);
EXPORT void free_aligned_sized(void *p, size_t align, size_t n);
EXPORT int malloc_trim(size_t pad);

/* NULL from kslab is ENOMEM here. */
static void *answer(void *p)
{
	if (__builtin_expect(!p, 0))
		errno = ENOMEM;
	return p;
}

/* A thread without a CPU, or memory is out. */
static COLD void *malloc_slow(size_t n)
{
	void *p;

	kslab_host_enter();
	p = kslab_malloc(n);
	kslab_host_exit();
	return answer(p);
}

void *malloc(size_t n)
{
	void *p;

	if (KSLAB_HOST_GLOBAL_LOCK)
		return malloc_slow(n);
	p = kslab_malloc(n);
	if (__builtin_expect(!p, 0))
		return malloc_slow(n);
	return p;
}

void free(void *p)
{
	/* Needs no CPU; before the first malloc there is no heap to lock, and only NULL to free. */
	if (KSLAB_HOST_GLOBAL_LOCK)
		kslab_host_enter();
	kslab_free(p);
	if (KSLAB_HOST_GLOBAL_LOCK)
		kslab_host_exit();
}

void *calloc(size_t count, size_t size)
{
	void *p;

	kslab_host_enter();
	p = kslab_calloc(count, size);
	kslab_host_exit();
	return answer(p);
}

void *realloc(void *p, size_t n)
{
	void *q;

	kslab_host_enter();
	q = kslab_realloc(p, n);
	kslab_host_exit();
	return p && !n ? q : answer(q); /* realloc(p, 0) frees: its NULL is no failure */
}

void *reallocarray(void *p, size_t count, size_t size)
{
	size_t bytes;

	if (__builtin_mul_overflow(count, size, &bytes))
		return answer(NULL);
	return realloc(p, bytes);
}

static void *aligned(size_t align, size_t n)
{
	void *p;

	kslab_host_enter();
	p = kslab_aligned_alloc(align, n);
	kslab_host_exit();
	return p;
}

static bool is_power_of_two(size_t n)
{
	return n && (n & (n - 1)) == 0;
}

void *aligned_alloc(size_t align, size_t n)
{
	if (!is_power_of_two(align)) {
		errno = EINVAL;
		return NULL;
	}
	return answer(aligned(align, n));
}

/* As in glibc, an alignment between powers of two means the next one. */
void *memalign(size_t align, size_t n)
{
	size_t power = 1;

	while (power < align && power <= SIZE_MAX / 2)
		power *= 2;
	return aligned_alloc(power < align ? 0 : power, n);
}

int posix_memalign(void **out, size_t align, size_t n)
{
	int saved = errno;
	void *p;

	if (!is_power_of_two(align) || align % sizeof(void *))
		return EINVAL;
	p = aligned(align, n);
	errno = saved;
	if (!p)
		return ENOMEM;
	*out = p;
	return 0;
}

static size_t system_page(void)
{
	return (size_t)sysconf(_SC_PAGESIZE);
}

void *valloc(size_t n)
{
	return aligned_alloc(system_page(), n);
}

void *pvalloc(size_t n)
{
	size_t page = system_page();

	if (n > SIZE_MAX - (page - 1))
		return answer(NULL);
	return aligned_alloc(page, n ? (n + page - 1) & ~(page - 1) : page);
}

size_t malloc_usable_size(void *p)
{
	size_t bytes;

	if (KSLAB_HOST_GLOBAL_LOCK)
		kslab_host_enter();
	bytes = kslab_usable_size(p);
	if (KSLAB_HOST_GLOBAL_LOCK)
		kslab_host_exit();
	return bytes;
}

void free_sized(void *p, size_t n)
{
	if (KSLAB_HOST_GLOBAL_LOCK)
		kslab_host_enter();
	kslab_free_sized(p, n);
	if (KSLAB_HOST_GLOBAL_LOCK)
		kslab_host_exit();
}

void free_aligned_sized(void *p, size_t align, size_t n)
{
	if (KSLAB_HOST_GLOBAL_LOCK)
		kslab_host_enter();
	kslab_free_aligned_sized(p, align, n);
	if (KSLAB_HOST_GLOBAL_LOCK)
		kslab_host_exit();
}

/* Return: 1 if memory went back, as glibc does. pad is glibc's own affair. */
int malloc_trim(size_t pad)
{
	size_t pages;

	(void)pad;
	kslab_host_enter();
	pages = kslab_reclaim(SIZE_MAX);
	kslab_host_exit();
	return pages != 0;
}

/* Many programs close standard error when they end: KSLAB_STATS keeps a copy of it. */
static int stats_fd = -1;

__attribute__((constructor)) static void at_start(void)
{
	const char *stats = getenv("KSLAB_STATS");

	if (stats && !strcmp(stats, "1"))
		stats_fd = fcntl(STDERR_FILENO, F_DUPFD_CLOEXEC, 100);
}

__attribute__((destructor)) static void at_exit(void)
{
	if (stats_fd < 0 || !kslab_host_start())
		return;
	if (KSLAB_HOST_GLOBAL_LOCK)
		kslab_host_enter();
	kslab_host_print(stats_fd);
	if (KSLAB_HOST_GLOBAL_LOCK)
		kslab_host_exit();
}
