/* SPDX-License-Identifier: MIT
 * shim_tcmalloc.h - owns the benchmark's view of tcmalloc (gperftools, minimal).
 */
#include <gperftools/malloc_extension_c.h>
#include <gperftools/tcmalloc.h>

#define B_NAME "tcmalloc"
#define B_malloc tc_malloc
#define B_free tc_free
#define B_calloc tc_calloc
#define B_realloc tc_realloc
#define B_memalign tc_memalign

static inline void B_trim(void)
{
	MallocExtension_ReleaseFreeMemory();
}

#include "shim_loops.h"
