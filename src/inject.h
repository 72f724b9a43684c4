/* SPDX-License-Identifier: MIT
 * inject.h - owns the question "shall this one fail?", as the page source and the heap ask it.
 * Rank: 1.  Runs anywhere.
 */
#ifndef KSLAB_INJECT_PRIVATE_H
#define KSLAB_INJECT_PRIVATE_H

#include <kslab/heap.h>

#include "compiler.h"

/* One event that the rule's mask matches. Return: it shall fail. */
bool kslab_injecting_hits(struct kslab_injecting *inject);

KSLAB_INLINE bool kslab_inject_has_mask(const struct kslab_injecting *inject)
{
	return (inject->rule.classes[0] | inject->rule.classes[1]) != 0;
}

KSLAB_INLINE bool kslab_inject_matches(const struct kslab_injecting *inject, unsigned cls)
{
	return !kslab_inject_has_mask(inject) || (inject->rule.classes[cls / 32] >> (cls % 32) & 1);
}

/*
 * A run from the page source, whatever it is for; where there is a mask, kslab_inject_page judges.
 */
KSLAB_INLINE bool kslab_inject_run(struct kslab_heap *heap, bool reserve)
{
	struct kslab_injecting *inject = &heap->inject;

	return KSLAB_UNLIKELY(inject->rule.where & KSLAB_INJECT_PAGES) && !reserve &&
	       !kslab_inject_has_mask(inject) && kslab_injecting_hits(inject);
}

/* A run for an object page of this class, or KSLAB_INJECT_CACHE, or KSLAB_INJECT_LARGE. */
KSLAB_INLINE bool kslab_inject_page(struct kslab_heap *heap, unsigned cls, bool reserve)
{
	struct kslab_injecting *inject = &heap->inject;

	return KSLAB_UNLIKELY(inject->rule.where & KSLAB_INJECT_PAGES) && !reserve &&
	       kslab_inject_has_mask(inject) && kslab_inject_matches(inject, cls) &&
	       kslab_injecting_hits(inject);
}

/* An allocation of this class, or KSLAB_INJECT_CACHE, or KSLAB_INJECT_LARGE (with its page run). */
KSLAB_INLINE bool kslab_inject_object(struct kslab_heap *heap, unsigned cls, bool reserve)
{
	struct kslab_injecting *inject = &heap->inject;

	if (KSLAB_UNLIKELY(inject->rule.where & KSLAB_INJECT_ALLOCATIONS) &&
	    kslab_inject_matches(inject, cls) && kslab_injecting_hits(inject))
		return true;
	return cls == KSLAB_INJECT_LARGE && kslab_inject_page(heap, cls, reserve);
}

/* True while allocations are in question: every one has to go the slow way. */
KSLAB_INLINE bool kslab_inject_is_on(const struct kslab_heap *heap)
{
	return KSLAB_UNLIKELY(heap->inject.rule.where & KSLAB_INJECT_ALLOCATIONS);
}

#endif
