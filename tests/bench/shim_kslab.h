/* SPDX-License-Identifier: MIT
 * shim_kslab.h - owns the benchmark's view of kslab on the host port: a thread is a CPU.
 */
#include "host/host.h"

#define B_NAME "kslab"
#define B_malloc kslab_malloc
#define B_free kslab_free
#define B_calloc kslab_calloc
#define B_realloc kslab_realloc
#define B_memalign kslab_aligned_alloc
#define B_malloc_bulk kslab_malloc_bulk
#define B_free_bulk kslab_free_bulk

static inline void B_start(void)
{
	if (!kslab_host_start())
		abort();
}

/* The thread's CPU number, which the malloc of the .so would get at its first failure. */
static inline void B_thread_start(void)
{
	kslab_host_enter();
	kslab_host_exit();
}

static inline void B_trim(void)
{
	kslab_reclaim(SIZE_MAX);
}

static inline size_t B_source(void)
{
	struct kslab_stats stats;

	kslab_stats(&stats);
	return stats.pages_in_use * stats.page_bytes;
}
