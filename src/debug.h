/* SPDX-License-Identifier: MIT
 * debug.h - owns what debug levels 1 and 2 know: contents of slots, the quarantine, the fence round
 * bad pages. Rank: 5, beside heap.h.  Every function here is called at debug level 1 or above only;
 * each caller asks heap->debug_level first, so that level 0 pays one compare on slow paths and
 * nothing on fast ones.
 *
 * A slot at level 1. n is what was asked for; a request gets at least two bytes more than that.
 *
 *     | n bytes of the client | redzone 0xbb ... | tail |
 *
 * Tail: the last byte is a code, the slack (slot - n) if that is 2..7, or "long": then 4 bytes, 8
 * before the end, hold n twice, and the class of level 0 if that is not what n leads to; or "free".
 * Both are mixed with the address, codes are 0x80..0xfe, so that no zero, no text, no ~0 and no
 * poison looks like one. The byte before the code is 0xbb changed by the slack (long: by 1), so that
 * no code can become another one. Objects of a cache have the code only.
 *
 * A slot at level 2 ends in a trailer instead, whose last word is a sum over it, the address and
 * the state:
 *
 *     | n bytes of the client | redzone, 8 or more | alloc caller | free caller | serial | n, class | state |
 *
 * A free slot is 0x6b up to code or trailer (zero with KSLAB_DEBUG_ZERO_ON_FREE). A new object holds
 * what it held while it was free, so that an issue only has to read it; zero where the request or
 * KSLAB_DEBUG_ZERO_ON_ALLOC says so. Slots of a cache with a constructor keep their contents, and
 * their redzone also while they are free.
 */
#ifndef KSLAB_DEBUG_H
#define KSLAB_DEBUG_H

#include "heap.h"

/* heap->debug_flags are set. */
void kslab_debug_init(struct kslab_heap *heap);

/* ---- sizes ----------------------------------------------------------------------------------- */

/*
 * What to look for a class with, instead of n and align: room for redzone and trailer, natural
 * alignment.
 */
void kslab_debug_grow(const struct kslab_heap *heap, size_t *n, size_t *align);
/*
 * Slot of a cache for objects of a size that fits. Not larger than max_page_bytes, nor than a page
 * where the bare object fits one: there the trailer is left out, then the redzone.
 */
size_t kslab_debug_cache_slot(const struct kslab_heap *heap, size_t size, size_t align);
/*
 * Row 12 of the misuse table, with the answer of level 0: would n and align have led to the class p
 * came from?
 */
bool kslab_debug_is_right_size(struct kslab_heap *heap, const struct kslab_page *page,
			       const void *p, size_t align, size_t n);

/* ---- the life of a slot ---------------------------------------------------------------------- */

/*
 * Every slot of a page that is in no list becomes a free one. May allocate the quarantine's ring.
 */
void kslab_debug_prepare(struct kslab_heap *heap, struct kslab_page *page, size_t bytes,
			 const struct kslab_cache *cache, unsigned flags);
/* The same for a live slot, whatever it holds: its bit is to be set next. */
void kslab_debug_drop(struct kslab_heap *heap, const struct kslab_page *page, uint32_t index);
/*
 * A slot was taken for n bytes: verify that it was left alone, then arm its redzone. No zone
 * entered.
 */
void kslab_debug_issue(struct kslab_heap *heap, void *object, const struct kslab_request *request,
		       size_t n, size_t align);
/*
 * How many bytes a live slot was asked for. Return: false: none that is sound (it may be in
 * quarantine): reported.
 */
bool kslab_debug_measure(struct kslab_heap *heap, const struct kslab_page *page, uint32_t index,
			 size_t *n, const void *caller);
/*
 * The same for a slot of a class. kind: the class of level 0, KSLAB_CLASSES: what n alone leads to;
 * the flags of the request from bit 8 on. slowly: byte by byte; reports what it finds. Return: the object.
 */
void *kslab_debug_issue_class(struct kslab_heap *heap, uintptr_t start, size_t bytes, size_t n,
			      unsigned kind, const void *caller);
void *kslab_debug_issue_slowly(struct kslab_heap *heap, uintptr_t start, size_t bytes, size_t n,
			       unsigned kind, const void *caller);
/* The same for an allocation of a class that may have failed. Return: the object, or NULL. */
void *kslab_debug_finish(struct kslab_heap *heap, void *object, const struct kslab_request *request,
			 size_t n, size_t align);
/* Up to how many bytes a request may go the quick way, and lies right; route_limit as at level 0. */
size_t kslab_debug_quick_limit(const struct kslab_heap *heap, size_t route_limit);
/* kslab_heap_malloc at a debug level; flags: KSLAB_ZERO or none. The quick way if there is one. */
void *kslab_debug_malloc(size_t n, struct kslab_heap *heap, unsigned flags, const void *caller);
void *kslab_debug_malloc_1(size_t n, struct kslab_heap *heap, const void *caller);
void *kslab_debug_malloc_2(size_t n, struct kslab_heap *heap, const void *caller);
/*
 * n of a live slot changes in place; it was measured. Level 2: a free that comes meanwhile is refused.
 * Return: false: one came before.
 */
bool kslab_debug_resize(struct kslab_heap *heap, const struct kslab_page *page, void *object,
			size_t old, size_t n);
/*
 * A free of a slot that lies right, through the right door; from here on everything is done or
 * reported.
 */
void kslab_debug_free(struct kslab_heap *heap, struct kslab_page *page, uint32_t index,
		      struct kslab_cache *cache, const void *caller);
/* kslab_heap_free at levels 1 and 2: whatever p is; page: what the map says of it. */
void kslab_debug_free_1(void *p, struct kslab_heap *heap, struct kslab_page *page,
			const void *caller);
void kslab_debug_free_2(void *p, struct kslab_heap *heap, struct kslab_page *page,
			const void *caller);
/* A page is given back: report what was written to its slots. No zone entered, no lock held. */
void kslab_debug_release(struct kslab_heap *heap, const struct kslab_page *page);

/*
 * A free between the verdict of the bits and the bit itself. Called by kslab_heap_set_free, inside
 * the entered zone if the page is its own. Return: true: verified and poisoned, set the bit now.
 */
struct kslab_retiring {
	struct kslab_cache *cache;
	const void *caller;
	struct kslab_report report; /* what was wrong with the object, if fault is set */
	bool is_fenced; /* its page is behind the fence now, and gets reported with it */
};
bool kslab_debug_retire(struct kslab_heap *heap, const struct kslab_page *page, uint32_t index,
			struct kslab_retiring *retiring);

/*
 * Large blocks: the redzone reaches from n to the end of the block. page->inverse is not 0 if all
 * of it was verified to hold what a free one does.
 */
void kslab_debug_large_issue(struct kslab_heap *heap, void *object, size_t n, unsigned flags);
/* Return: false: its redzone was overwritten: reported. */
bool kslab_debug_large_measure(struct kslab_heap *heap, const struct kslab_page *page,
			       const void *caller);
/*
 * The first byte that is wrong in its redzone, or in a spare block, as an offset; SIZE_MAX: none.
 */
size_t kslab_debug_large_inspect(const struct kslab_heap *heap, const struct kslab_page *page);
/* n of a block changes in place: before, and after. It is claimed. */
void kslab_debug_large_open(const struct kslab_heap *heap, const struct kslab_page *page);
void kslab_debug_large_resize(struct kslab_heap *heap, struct kslab_page *page, size_t old,
			      size_t n);
void kslab_debug_large_retire(struct kslab_heap *heap, struct kslab_page *page);
/*
 * A block that was retired goes back or is used again: report what was written to it. Return:
 * false: something was.
 */
bool kslab_debug_large_verify(struct kslab_heap *heap, const struct kslab_page *page);

/* ---- quarantine (level 2) -------------------------------------------------------------------- */

/* A slot that was retired waits in the ring; what is over its limits leaves it. */
void kslab_debug_quarantine(struct kslab_heap *heap, uintptr_t object, size_t bytes,
			    const void *caller);
/* Everything leaves the ring. No zone entered, no lock held. */
void kslab_debug_flush(struct kslab_heap *heap);
/*
 * Slots of word i whose bits say live, and which are in quarantine. Looks into them: for whom the page
 * does not go.
 */
kslab_word kslab_debug_held(const struct kslab_heap *heap, const struct kslab_page *page,
			    unsigned i);
/*
 * Live slots of a page without those, at any level, for anybody: of a page that goes meanwhile, and
 * while the lock is taken, those in quarantine are counted.
 */
uint32_t kslab_debug_live(struct kslab_heap *heap, const struct kslab_page *page);
/*
 * When was this object allocated (index 0: also a large block)? A number from one counter of the
 * heap, so that later ones come after earlier ones (difference as a signed number); 0: not known.
 */
uintptr_t kslab_debug_sequence(struct kslab_heap *heap, const struct kslab_page *page,
			       uint32_t index);
/* Who allocated and who freed it last, as far as the slot that the report names can tell. */
void kslab_debug_callers(const struct kslab_heap *heap, const struct kslab_page *page,
			 struct kslab_report *report);

/* ---- for the observers ----------------------------------------------------------------------- */

/*
 * The first byte that is wrong in slot index, as an offset; SIZE_MAX: none. *what: one line. Reads
 * only.
 */
size_t kslab_debug_inspect(const struct kslab_heap *heap, const struct kslab_page *page,
			   uint32_t index, const char **what);
/*
 * For walks: a slot whose bits say live, or a live large block (index 0). Return: false: it is in
 * quarantine; else *bytes are the client's.
 */
bool kslab_debug_walk(const struct kslab_heap *heap, const struct kslab_page *page, uint32_t index,
		      size_t *bytes);

/* ---- the fence (fence.c): metadata that contradicts itself ----------------------------------- */

/*
 * Each is called for an entered zone, before lists or words of it are touched. If something is
 * wrong, the lists of the whole zone are made anew from the page map, without following any link,
 * and bad pages are fenced off: in no list, no slots, state FENCED. They are reported when the zone
 * is left.
 */
void kslab_fence_issue(struct kslab_heap *heap, struct kslab_zone *zone, struct kslab_sc *sc);
/*
 * Looks only, at a page whose words are to be used, but not its links: false: one of the others has
 * to act.
 */
bool kslab_fence_is_sound(struct kslab_heap *heap, struct kslab_zone *zone,
			  const struct kslab_page *page);
/* Return: false: the page was fenced off. */
bool kslab_fence_free(struct kslab_heap *heap, struct kslab_zone *zone, struct kslab_page *page,
		      uint32_t index);
void kslab_fence_empty(struct kslab_heap *heap, struct kslab_zone *zone, struct kslab_sc *sc);
void kslab_fence_mail(struct kslab_heap *heap, struct kslab_zone *zone);
void kslab_fence_zone(struct kslab_heap *heap, struct kslab_zone *zone);

/*
 * A page that an address leads to: its geometry against its class. Return: NULL, or what is wrong.
 * Anybody.
 */
const char *kslab_fence_judge(const struct kslab_heap *heap, const struct kslab_page *page);
/* Quick: owner and class of an object page fit together, so that the class can be read. */
bool kslab_fence_is_known(const struct kslab_heap *heap, const struct kslab_page *page);
/* Report a chain of pages taken from zone->owner.corrupt. No zone entered. */
void kslab_fence_report(struct kslab_heap *heap, struct kslab_page *page, const void *caller);
/* The heap ends: fenced pages go back. */
void kslab_fence_release(struct kslab_heap *heap);

#endif
