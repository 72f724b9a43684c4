/* SPDX-License-Identifier: MIT
 * shim_mimalloc.h - owns the benchmark's view of mimalloc.
 */
#include <mimalloc.h>

#define B_NAME "mimalloc"
#define B_malloc mi_malloc
#define B_free mi_free
#define B_calloc mi_calloc
#define B_realloc mi_realloc

static inline void *B_memalign(size_t align, size_t n)
{
	return mi_malloc_aligned(n, align);
}

static inline void B_trim(void)
{
	mi_collect(true);
}

#include "shim_loops.h"
