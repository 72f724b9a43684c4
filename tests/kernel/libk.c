/* SPDX-License-Identifier: MIT
 * libk.c - owns the four functions every compiler expects: memcpy, memmove, memset, memcmp.
 * Runs: anywhere. Must be compiled with -ffreestanding, or they are turned into calls of
 * themselves.
 */
#include "libk.h"

#include <stdint.h>

#if defined(__GNUC__) && !defined(__clang__)
#pragma GCC optimize("no-tree-loop-distribute-patterns")
#endif

/* A machine word of anything. */
typedef uintptr_t __attribute__((may_alias)) word;
#define WORD sizeof(word)

static int is_aligned(const void *a, const void *b)
{
	return (((uintptr_t)a | (uintptr_t)b) & (WORD - 1)) == 0;
}

void *memcpy(void *restrict to, const void *restrict from, size_t n)
{
	return memmove(to, from, n);
}

void *memmove(void *to, const void *from, size_t n)
{
	unsigned char *d = to;
	const unsigned char *s = from;

	if ((uintptr_t)d - (uintptr_t)s >= n) { /* forwards does no harm */
		if (is_aligned(d, s)) {
			for (; n >= WORD; n -= WORD, d += WORD, s += WORD)
				*(word *)(void *)d = *(const word *)(const void *)s;
		}
		while (n-- != 0)
			*d++ = *s++;
	} else {
		while (n-- != 0)
			d[n] = s[n];
	}
	return to;
}

void *memset(void *mem, int byte, size_t n)
{
	const word all = (word)-1 / 255 * (unsigned char)byte;
	unsigned char *d = mem;

	if (is_aligned(d, d)) {
		for (; n >= WORD; n -= WORD, d += WORD)
			*(word *)(void *)d = all;
	}
	while (n-- != 0)
		*d++ = (unsigned char)byte;
	return mem;
}

int memcmp(const void *a, const void *b, size_t n)
{
	const unsigned char *p = a, *q = b;

	for (; n != 0; n--, p++, q++) {
		if (*p != *q)
			return *p - *q;
	}
	return 0;
}
