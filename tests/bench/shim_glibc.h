/* SPDX-License-Identifier: MIT
 * shim_glibc.h - owns the benchmark's view of the C library's malloc.
 */
#include <malloc.h>

#define B_NAME "glibc"
#define B_malloc malloc
#define B_free free
#define B_calloc calloc
#define B_realloc realloc
#define B_memalign memalign

static inline void B_trim(void)
{
	malloc_trim(0);
}

#include "shim_loops.h"
