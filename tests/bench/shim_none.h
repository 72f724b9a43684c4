/* SPDX-License-Identifier: MIT
 * shim_none.h - owns the benchmark's view of no allocator at all: what its own loops and two calls cost.
 * Only for tests that neither keep contents nor grow; what they get from it overlaps.
 */
#include <stdlib.h>

#define B_NAME "none"
#define B_calloc calloc
#define B_realloc realloc
#define B_memalign aligned_alloc

#define B_LINE 64u
#define B_LINES 1024u /* as many as the ring of two threads holds */

static __attribute__((noinline)) void *B_malloc(size_t n)
{
	static char lines[B_LINES][B_LINE] __attribute__((aligned(64)));
	static __thread size_t next;

	__asm__ volatile("" : : "r"(n));
	next = (next + 1) % B_LINES;
	return lines[next];
}

static __attribute__((noinline)) void B_free(void *p)
{
	__asm__ volatile("" : : "r"(p) : "memory");
}

static inline void B_trim(void) {}

#include "shim_loops.h"
