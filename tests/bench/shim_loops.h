/* SPDX-License-Identifier: MIT
 * shim_loops.h - owns what the peers' shims share: bulk calls as loops, nothing to start.
 */
static inline void B_malloc_bulk(size_t n, size_t count, void **out)
{
	for (size_t i = 0; i < count; i++)
		out[i] = B_malloc(n);
}

static inline void B_free_bulk(size_t count, void **ptrs)
{
	for (size_t i = 0; i < count; i++)
		B_free(ptrs[i]);
}

static inline void B_start(void) {}

static inline void B_thread_start(void) {}

static inline size_t B_source(void)
{
	return 0;
}
