/* SPDX-License-Identifier: MIT
 * size_class.h - owns the arithmetic between sizes and size classes of a heap.
 * Rank: 1.  Pure functions.  Tests: every size to its class and back.
 *
 *     class  0 .. 15   8, 16, ... 128         multiples of 8
 *     class 16 .. 47   144, 160, ... 2048     eight per doubling: waste at most 11 %
 *     class 48 .. 59   2560, 3072, ... 16384  four per doubling: waste at most 20 %
 */
#ifndef KSLAB_SIZE_CLASS_H
#define KSLAB_SIZE_CLASS_H

#include <kslab/heap.h>

#include "compiler.h"

#define KSLAB_CLASS_NONE KSLAB_CLASSES

/* Smallest class whose slots hold n bytes; n <= KSLAB_CLASS_MAX_BYTES. */
KSLAB_INLINE unsigned kslab_class_of(size_t n)
{
	unsigned log;

	if (n <= 128)
		return n <= 8 ? 0 : (unsigned)((n + 7) / 8 - 1);
	log = kslab_log2(n - 1);
	if (n <= 2048)
		return 16 + (log - 7) * 8 + (unsigned)((n - 1) >> (log - 3) & 7);
	return 48 + (log - 11) * 4 + (unsigned)((n - 1) >> (log - 2) & 3);
}

/* Slot size of a class. */
KSLAB_INLINE size_t kslab_class_bytes(unsigned cls)
{
	unsigned log;

	if (cls < 16)
		return (size_t)8 * (cls + 1);
	if (cls < 48) {
		log = 7 + (cls - 16) / 8;
		return ((size_t)1 << log) + ((size_t)((cls - 16) % 8 + 1) << (log - 3));
	}
	log = 11 + (cls - 48) / 4;
	return ((size_t)1 << log) + ((size_t)((cls - 48) % 4 + 1) << (log - 2));
}

/*
 * Lengths of object pages for slots of `bytes`, in base pages: smallest with little waste, longest
 * worth having.
 */
void kslab_class_runs(size_t bytes, size_t page_bytes, size_t max_page_bytes, uint16_t *min_run,
		      uint16_t *max_run);

#endif
