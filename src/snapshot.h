/* SPDX-License-Identifier: MIT
 * snapshot.h - owns the one question that marks ask of debug level 2.
 * Rank: 6.
 */
#ifndef KSLAB_SNAPSHOT_H
#define KSLAB_SNAPSHOT_H

#include "heap.h"

/*
 * kslab_debug_sequence - when was this object allocated?
 * Asked at debug level 2 only, for slots whose bits say live (index 0 of a large block). Return: a number that
 * every allocation of the heap takes from one counter, so that later ones come after earlier ones (difference as a
 * signed number); 0: not known, the object's place decides then.
 */
static inline uintptr_t kslab_debug_sequence(struct kslab_heap *heap, const struct kslab_page *page,
					     uint32_t index)
{
	(void)heap;
	(void)page;
	(void)index;
	return 0;
}

#endif
