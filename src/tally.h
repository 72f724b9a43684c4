/* SPDX-License-Identifier: MIT
 * tally.h - owns what is counted for the observers as it happens: pages of a class at most,
 * failures by reason.
 * Rank: 5.  Runs anywhere, never on a fast path: when pages come and go, and when a call fails.
 */
#ifndef KSLAB_TALLY_H
#define KSLAB_TALLY_H

#include "heap.h"

KSLAB_INLINE void kslab_tally_failure(struct kslab_heap *heap, enum kslab_reason reason)
{
	KSLAB_FETCH_ADD_RELAXED(&heap->tally.failed[reason], (size_t)1);
}

/* An object page was given to a class or cache. */
static inline void kslab_tally_insert(struct kslab_heap *heap, const struct kslab_page *page)
{
	const struct kslab_sc *sc = page->sc;
	size_t *peak = &heap->tally.pages_peak[0], *held = &heap->tally.pages[0], now, most;

	if (sc->cls == KSLAB_CLASS_CACHE) {
		struct kslab_cache *cache = ((const struct kslab_cache_zone *)sc)->cache;
		uintptr_t first = KSLAB_LOAD_RELAXED(&cache->first_page),
			  last = KSLAB_LOAD_RELAXED(&cache->last_page);

		held = &cache->pages;
		peak = &cache->pages_peak;
		while (page->data < first &&
		       !KSLAB_CAS_RELEASE(&cache->first_page, &first, page->data))
			;
		while (page->data > last &&
		       !KSLAB_CAS_RELEASE(&cache->last_page, &last, page->data))
			;
	} else {
		held += sc->cls;
		peak += sc->cls;
	}
	now = KSLAB_FETCH_ADD_RELAXED(held, (size_t)page->pages) + page->pages;
	most = KSLAB_LOAD_RELAXED(peak);
	while (now > most && !KSLAB_CAS_RELEASE(peak, &most, now))
		;
}

/*
 * It goes back, and its class or cache is not looked at for it any more. Pairs with the end of the
 * cache, which reads the count.
 */
static inline void kslab_tally_remove(struct kslab_heap *heap, const struct kslab_page *page)
{
	const struct kslab_sc *sc = page->sc;
	size_t *held = &heap->tally.pages[0];

	held = sc->cls == KSLAB_CLASS_CACHE ? &((const struct kslab_cache_zone *)sc)->cache->pages
					    : held + sc->cls;
	KSLAB_FETCH_ADD_RELEASE(held, (size_t)0 - page->pages);
}

#endif
