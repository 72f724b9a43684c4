/* SPDX-License-Identifier: MIT
 * page_source.h - owns the heap lock, and where pages and metadata come from: regions, callbacks,
 * emergency pages. Rank: 4.  Runs anywhere with no zone entered; no lock is held while a callback
 * of the kernel runs.
 */
#ifndef KSLAB_PAGE_SOURCE_H
#define KSLAB_PAGE_SOURCE_H

#include <kslab/kslab.h>

#include "compiler.h"

/*
 * The heap lock: fair, with interrupts saved. Where it can't be waited for, in an NMI or on the only
 * CPU, it is only tried.
 * Return of kslab_heap_lock: false: it is taken, by whom we have interrupted; nothing is held then.
 */
struct kslab_lock_state {
	uintptr_t irq;
};
bool kslab_heap_lock(struct kslab_heap *heap, struct kslab_lock_state *state);
/* Try it anywhere: for whom it is no loss if it is taken just then. */
bool kslab_heap_try_lock(struct kslab_heap *heap, struct kslab_lock_state *state);
void kslab_heap_unlock(struct kslab_heap *heap, struct kslab_lock_state *state);

/* A run of base pages. */
struct kslab_run {
	uintptr_t address;
	size_t pages;
	bool zeroed; /* reads as zero */
	/* By what it is known while it is under way: as part of a region, in the map, by its own record. */
	enum { KSLAB_RUN_REGION, KSLAB_RUN_MAP, KSLAB_RUN_RECORD } known_by;
};

/*
 * A run of `pages`, its address a multiple of align_pages pages, its map leaves present. It is under
 * way, and can't come a second time, until its map entries lead to what was made of it, or it is
 * forgotten. Return: KSLAB_OK, or why not; nothing changed then.
 */
enum kslab_reason kslab_source_alloc(struct kslab_heap *heap, size_t pages, size_t align_pages,
				     unsigned flags, struct kslab_run *run);
/* Nothing was made of it: it goes back. */
void kslab_source_forget(struct kslab_heap *heap, const struct kslab_run *run);

/*
 * Give a run back whose map entries are nobody's again. In an NMI that needs the callback, or finds
 * the lock taken, it waits: it goes with one that is given back outside, two with each, or with what
 * waits there of the large blocks. Nothing is purged there.
 */
void kslab_source_free(struct kslab_heap *heap, uintptr_t address, size_t pages);
/* So many of those that wait go back. Return: base pages. */
size_t kslab_source_release_waiting(struct kslab_heap *heap, size_t most);

/*
 * The same halves for those who have more to do under the lock. Take: at once, from a region, where
 * the map has its leaves; false: by kslab_source_alloc, if at all. Give: not in an NMI, it may call
 * back.
 */
bool kslab_source_take(struct kslab_heap *heap, size_t pages, size_t align_pages,
		       struct kslab_run *run);
void kslab_source_give_and_unlock(struct kslab_heap *heap, uintptr_t address, size_t pages,
				  struct kslab_lock_state *state);

/* True if part of a run can be given back or taken (it lies in a region). */
bool kslab_source_is_divisible(struct kslab_heap *heap, uintptr_t address);

/* Grow a run of a region in place by the pages behind it. */
bool kslab_source_extend(struct kslab_heap *heap, uintptr_t address, size_t pages);

/* Purge free memory of the regions down to `keep` dirty base pages. */
void kslab_source_purge(struct kslab_heap *heap, size_t keep);

/*
 * Memory for metadata, 64-byte aligned (32 for odd multiples of 32 bytes), contents arbitrary;
 * lives as long as the heap. NULL: *reason says why.
 */
void *kslab_meta_alloc(struct kslab_heap *heap, size_t bytes, unsigned flags,
		       enum kslab_reason *reason);

/* A descriptor with room for so many bitfield words; type-stable. */
#define KSLAB_DESCRIPTOR_LARGE 0u /* words: a large block's */
struct kslab_page *kslab_descriptor_alloc(struct kslab_heap *heap, unsigned words, unsigned flags,
					  enum kslab_reason *reason);
/* With the lock or without. */
void kslab_descriptor_free(struct kslab_heap *heap, struct kslab_page *page, unsigned words);
/* A large block's under the lock, from those that were freed; NULL: there is none. */
struct kslab_page *kslab_descriptor_take(struct kslab_heap *heap);

/* Everything that is left goes back: the heap ends. */
void kslab_source_fini(struct kslab_heap *heap);

/*
 * First page or region, or (bytes = 0) the wish of the configuration: place the window. Under the
 * lock, or in init.
 */
void kslab_source_place_window(struct kslab_heap *heap, uintptr_t address, size_t bytes);

/*
 * True if the heap holds any of the pages: in its map, its regions, its metadata, set aside or under
 * way.
 * Under its lock.
 */
bool kslab_source_is_known(const struct kslab_heap *heap, uintptr_t address, size_t bytes);
/* The same of all other heaps. With no lock: theirs are taken, one after the other. */
bool kslab_source_is_elsewhere(const struct kslab_heap *heap, uintptr_t address, size_t bytes);

/* In init: the pages for KSLAB_RESERVE requests. Return: false: not all of them are to be had. */
bool kslab_source_fill_emergency(struct kslab_heap *heap);

/*
 * Does the window cover a range, or could it, by being placed or (early in the boot, once) moved?
 * Under the lock.
 */
bool kslab_source_can_cover(const struct kslab_heap *heap, uintptr_t address, size_t bytes);
/* Place or move it, if need be; after a yes of the above. */
void kslab_source_cover(struct kslab_heap *heap, uintptr_t address, size_t bytes);

#endif
