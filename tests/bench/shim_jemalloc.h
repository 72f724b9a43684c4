/* SPDX-License-Identifier: MIT
 * shim_jemalloc.h - owns the benchmark's view of jemalloc, which takes the C library's names.
 */
#include <malloc.h>

#include <jemalloc/jemalloc.h>

#define B_NAME "jemalloc"
#define B_malloc malloc
#define B_free free
#define B_calloc calloc
#define B_realloc realloc
#define B_memalign memalign

static inline void B_trim(void)
{
	mallctl("thread.tcache.flush", NULL, NULL, NULL, 0);
	mallctl("arena.4096.purge", NULL, NULL, NULL, 0); /* 4096: all arenas */
}

#include "shim_loops.h"
