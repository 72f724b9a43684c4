/* SPDX-License-Identifier: MIT
 * size_class.c - owns the choice of object page lengths.
 * Rank: 1.  Pure functions.
 */
#include "size_class.h"

/* With fewer in a page the slow path is taken too often; within the limit. */
#define MIN_SLOTS 16u

/* At most 1/16 of an object page may lie behind its last slot, where the limit allows that. */
static bool is_wasteful(size_t bytes, size_t run_bytes)
{
	return run_bytes < bytes ||
	       run_bytes - kslab_divide(run_bytes, bytes) * bytes > run_bytes / 16;
}

void kslab_class_runs(size_t bytes, size_t page_bytes, size_t max_page_bytes, uint16_t *min_run,
		      uint16_t *max_run)
{
	size_t run = page_bytes;

	while (run < max_page_bytes && (run < bytes * MIN_SLOTS || is_wasteful(bytes, run)))
		run *= 2;
	*min_run = (uint16_t)(run >> kslab_log2(page_bytes));
	while (run < max_page_bytes && kslab_divide(run * 2, bytes) <= KSLAB_PAGE_SLOTS)
		run *= 2;
	*max_run = (uint16_t)(run >> kslab_log2(page_bytes));
}
