/* SPDX-License-Identifier: MIT
 * kslab/kmalloc.h - owns the usual kernel names, as inline functions over <kslab/kslab.h>.
 * Rank: 6.  Include it where no other kmalloc is declared. Context, Complexity and the rest are those
 * of the function that each calls, and nothing else.
 */
#ifndef KSLAB_KMALLOC_H
#define KSLAB_KMALLOC_H

#include <kslab/kslab.h>

#ifdef __cplusplus
extern "C" {
#endif

static inline void *kmalloc(size_t n)
{
	return kslab_malloc(n);
}
static inline void *kzalloc(size_t n)
{
	return kslab_zalloc(n);
}
static inline void *kcalloc(size_t count, size_t size)
{
	return kslab_calloc(count, size);
}
static inline void *krealloc(void *p, size_t n)
{
	return kslab_realloc(p, n);
}
static inline void *kmalloc_array(size_t count, size_t size)
{
	return kslab_reallocarray(NULL, count, size);
}
static inline void *kmalloc_aligned(size_t n, size_t align)
{
	return kslab_aligned_alloc(align, n);
}
static inline void kfree(const void *p)
{
	kslab_free((void *)(uintptr_t)p);
}
static inline void kfree_sized(const void *p, size_t n)
{
	kslab_free_sized((void *)(uintptr_t)p, n);
}
static inline size_t ksize(const void *p)
{
	return kslab_usable_size(p);
}

#ifdef __cplusplus
}
#endif
#endif
