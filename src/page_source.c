/* SPDX-License-Identifier: MIT
 * page_source.c - owns the heap lock, and where pages and metadata come from.
 * Rank: 4.  Runs anywhere with no zone entered.
 *
 * A run is looked for in this order: regions, the kernel's callback, the emergency pages. Callbacks
 * run with no lock held and no zone entered, so they may sleep, migrate, or call kslab: what was
 * looked at before such a call is looked at again after it.
 */
#include "page_source.h"
#include "chunk_tree.h"
#include "inject.h"
#include "page_map.h"
#include "region.h"
#include "report.h"

/* Calls of alloc_pages that may be under way at once; deeper recursion is refused with REENTRY. */
#define SOURCE_DEPTH_MAX (8u * KSLAB_CFG_CPUS)

/* ---- lock ------------------------------------------------------------------------------------ */

/*
 * Take the lock, or see it taken: by whom an NMI has interrupted. On the only CPU by whom anybody
 * has; there, what fails while `serving` goes on was an interrupt that is over.
 */
static bool try_lock(struct kslab_lock *lock)
{
	for (;;) {
		/* Pairs with the unlock's release store. */
		uint32_t serving = KSLAB_LOAD_ACQUIRE(&lock->serving), next = serving;

		if (KSLAB_CAS_ACQ_REL(&lock->next, &next, serving + 1))
			return true;
		if (KSLAB_CFG_CPUS > 1 || KSLAB_LOAD_RELAXED(&lock->serving) == serving)
			return false;
	}
}

bool kslab_heap_try_lock(struct kslab_heap *heap, struct kslab_lock_state *state)
{
	state->irq = KSLAB_PORT_IRQ_SAVE();
	if (!try_lock(&heap->lock)) {
		KSLAB_PORT_IRQ_RESTORE(state->irq);
		return false;
	}
	heap->lock_acquisitions++;
	return true;
}

bool kslab_heap_lock(struct kslab_heap *heap, struct kslab_lock_state *state)
{
	struct kslab_lock *lock = &heap->lock;
	uint32_t ticket;

	if (KSLAB_CFG_CPUS == 1 || KSLAB_PORT_IN_NMI())
		return kslab_heap_try_lock(heap, state);
	state->irq = KSLAB_PORT_IRQ_SAVE();
	ticket = KSLAB_FETCH_ADD_RELAXED(&lock->next, 1u);
	while (KSLAB_LOAD_ACQUIRE(&lock->serving) != ticket)
		KSLAB_PORT_RELAX();
	heap->lock_acquisitions++;
	return true;
}

void kslab_heap_unlock(struct kslab_heap *heap, struct kslab_lock_state *state)
{
	struct kslab_lock *lock = &heap->lock;

	KSLAB_STORE_RELEASE(&lock->serving, KSLAB_LOAD_RELAXED(&lock->serving) + 1);
	KSLAB_PORT_IRQ_RESTORE(state->irq);
}

/* ---- raw runs -------------------------------------------------------------------------------- */

/*
 * Where a window for this memory begins: at a multiple of its size, so that physical memory or a
 * direct map lies inside from its beginning. Memory that would stick out at the end, or (bytes = 0) a
 * base that was asked for: there.
 */
static uintptr_t base_for(const struct kslab_heap *heap, uintptr_t address, size_t bytes)
{
	size_t leaves = kslab_page_map_leaves(0, heap->flat_map_bytes);
	uint64_t window = (uint64_t)leaves << KSLAB_CFG_LEAF_SHIFT;
	uint64_t whole = (uint64_t)((size_t)1 << kslab_log2(leaves)) << KSLAB_CFG_LEAF_SHIFT;
	uintptr_t base = address & ~(uintptr_t)(whole - 1);

	if (bytes == 0 || bytes > window || address - base > window - bytes)
		base = address & ~(((uintptr_t)1 << KSLAB_CFG_LEAF_SHIFT) - 1);
	return base;
}

void kslab_source_place_window(struct kslab_heap *heap, uintptr_t address, size_t bytes)
{
	if (heap->window_placed)
		return;
	kslab_page_map_init(&heap->map, base_for(heap, address, bytes), heap->flat_map,
			    heap->flat_map_bytes);
	heap->window_placed = true;
}

/* Would it, placed for this memory, hold all of it? */
static bool would_cover(const struct kslab_heap *heap, uintptr_t address, size_t bytes)
{
	uintptr_t base = base_for(heap, address, bytes);
	uint64_t window = (uint64_t)kslab_page_map_leaves(base, heap->flat_map_bytes)
			  << KSLAB_CFG_LEAF_SHIFT;

	return bytes <= window && address - base <= window - bytes;
}

/* First and last address of the pages of all regions; there are none: low > high. */
static void region_bounds(const struct kslab_heap *heap, uintptr_t *low, uintptr_t *high)
{
	*low = UINTPTR_MAX;
	*high = 0;
	for (unsigned i = 0; i < heap->regions; i++) {
		const struct kslab_region *region = &heap->region[i];

		*low = region->base < *low ? region->base : *low;
		*high = region->end - 1 > *high ? region->end - 1 : *high;
	}
}

/*
 * A heap that began on a static array of the kernel's image can move its window once, early in the
 * boot. Memory that it has to give out yet stays within reach, too.
 */
static bool can_move_window(const struct kslab_heap *heap)
{
	uintptr_t low, high;

	region_bounds(heap, &low, &high);
	return heap->cpus_online <= 1 && kslab_page_map_can_step_aside(&heap->map, low, high);
}

bool kslab_source_can_cover(const struct kslab_heap *heap, uintptr_t address, size_t bytes)
{
	if (heap->window_placed && kslab_page_map_covers(&heap->map, address, bytes))
		return true;
	return (!heap->window_placed || can_move_window(heap)) && would_cover(heap, address, bytes);
}

void kslab_source_cover(struct kslab_heap *heap, uintptr_t address, size_t bytes)
{
	uintptr_t low, high;

	kslab_source_place_window(heap, address, bytes);
	if (kslab_page_map_covers(&heap->map, address, bytes))
		return;
	region_bounds(heap, &low, &high);
	kslab_page_map_step_aside(&heap->map, low, high);
	heap->window_placed = false;
	kslab_source_place_window(heap, address, bytes);
	kslab_page_map_join_side(&heap->map);
}

/* Both. Return: false: the range lies outside. */
static bool cover(struct kslab_heap *heap, uintptr_t address, size_t bytes)
{
	if (heap->window_placed && kslab_page_map_covers(&heap->map, address, bytes))
		return true;
	if (!kslab_source_can_cover(heap, address, bytes))
		return false;
	kslab_source_cover(heap, address, bytes);
	return true;
}

static void count_pages(struct kslab_heap *heap, size_t pages)
{
	heap->pages_in_use += pages;
	if (heap->pages_in_use > heap->pages_peak)
		heap->pages_peak = heap->pages_in_use;
}

static bool is_over_quota(const struct kslab_heap *heap, size_t pages)
{
	return heap->max_pages != 0 &&
	       (pages > heap->max_pages || heap->pages_in_use > heap->max_pages - pages);
}

static struct kslab_region *region_of(struct kslab_heap *heap, uintptr_t address)
{
	/* Acquire: regions are only ever added, each before the count that admits it. */
	for (unsigned i = 0; i < KSLAB_LOAD_ACQUIRE(&heap->regions); i++)
		if (kslab_region_contains(&heap->region[i], address))
			return &heap->region[i];
	return NULL;
}

static bool overlaps(uintptr_t a, size_t a_bytes, uintptr_t b, size_t b_bytes)
{
	return a - b < b_bytes || b - a < a_bytes;
}

/* Does the map know any of the pages? O(pages). */
static bool is_mapped(const struct kslab_heap *heap, uintptr_t address, size_t bytes)
{
	return heap->window_placed && !kslab_page_map_is_free(&heap->map, address, bytes);
}

/* The tree is empty as a rule. */
static bool is_in(const struct kslab_heap *heap, const struct kslab_chunk_tree *tree,
		  uintptr_t address, size_t bytes)
{
	return tree->root != NULL &&
	       kslab_chunk_tree_overlaps(tree, heap->page_shift, address, bytes);
}

/* Does anything else? */
static bool is_listed(const struct kslab_heap *heap, uintptr_t address, size_t bytes)
{
	for (unsigned i = 0; i < KSLAB_LOAD_ACQUIRE(&heap->regions); i++)
		if (overlaps(address, bytes, heap->region[i].start,
			     heap->region[i].end - heap->region[i].start))
			return true;
	return is_in(heap, &heap->meta.unmarked, address, bytes) ||
	       is_in(heap, &heap->emergency, address, bytes) ||
	       is_in(heap, &heap->under_way, address, bytes);
}

bool kslab_source_is_known(const struct kslab_heap *heap, uintptr_t address, size_t bytes)
{
	return heap->state == KSLAB_HEAP_READY &&
	       (is_mapped(heap, address, bytes) || is_listed(heap, address, bytes));
}

static void report_page(struct kslab_heap *heap, uintptr_t address, size_t bytes,
			const void *caller, const char *what)
{
	struct kslab_report report = { .fault = KSLAB_FAULT_BAD_PAGE,
				       .pointer = (void *)address,
				       .page = (void *)address,
				       .page_bytes = bytes,
				       .caller = caller,
				       .what = what };

	kslab_report_fault(heap, &report);
}

/* Pages of a run that are looked at, or entered in the map, before the lock is dropped. */
#define LOOK_PAGES ((size_t)16)

/* Is any part of a long run known? The lock is taken, and dropped again and again. */
static bool is_known_run(struct kslab_heap *heap, uintptr_t address, size_t bytes,
			 bool (*is_known_piece)(const struct kslab_heap *, uintptr_t, size_t))
{
	size_t piece = LOOK_PAGES << heap->page_shift; /* 0: all, of an address space of 32 bits */
	bool is_known = false;

	while (bytes != 0 && !is_known) {
		struct kslab_lock_state state;
		size_t n = piece != 0 && piece < bytes ? piece : bytes;

		if (!kslab_heap_lock(heap, &state))
			break;
		is_known = is_known_piece(heap, address, n);
		kslab_heap_unlock(heap, &state);
		address += n;
		bytes -= n;
	}
	return is_known;
}

static bool is_only_heap(const struct kslab_heap *heap)
{
	const struct kslab_heap *other = &kslab_default_heap;
	const struct kslab_heap *next = KSLAB_LOAD_RELAXED(&other->next_heap);

	if (heap == other)
		return next == NULL;
	return other->state != KSLAB_HEAP_READY &&
	       (next == NULL || (next == heap && KSLAB_LOAD_RELAXED(&next->next_heap) == NULL));
}

bool kslab_source_is_elsewhere(const struct kslab_heap *heap, uintptr_t address, size_t bytes)
{
	struct kslab_heap *other = &kslab_default_heap;
	struct kslab_lock_state state;
	bool is_known = false;

	if (is_only_heap(heap))
		return false;
	/* The end of a heap waits for those who may look at it (unlink_heap). */
	if (!kslab_heap_lock(other, &state))
		return false;
	KSLAB_FETCH_ADD_RELAXED(&other->askers, 1u);
	kslab_heap_unlock(other, &state);
	for (; other != NULL && !is_known; other = KSLAB_LOAD_ACQUIRE(&other->next_heap))
		if (other != heap && other->state == KSLAB_HEAP_READY)
			is_known = is_known_run(other, address, bytes, kslab_source_is_known);
	KSLAB_FETCH_ADD_RELEASE(&kslab_default_heap.askers, ~(uint32_t)0);
	return is_known;
}

/* ---- runs under way -------------------------------------------------------------------------- */

/*
 * From now on the run is known to be ours: by the map, or, where that lacks a leaf or would be long
 * to write, by a record in its first bytes. Under the lock.
 */
static void enter(struct kslab_heap *heap, struct kslab_run *run)
{
	struct kslab_chunk *record = (struct kslab_chunk *)run->address;
	size_t bytes = run->pages << heap->page_shift;
	uintptr_t missing;

	run->known_by = KSLAB_RUN_MAP;
	if (run->pages <= LOOK_PAGES &&
	    !kslab_page_map_lacks_leaf(&heap->map, run->address, bytes, &missing)) {
		kslab_page_map_set(&heap->map, run->address, bytes, &kslab_page_under_way);
		return;
	}
	run->known_by = KSLAB_RUN_RECORD;
	record->address = run->address;
	record->pages = run->pages;
	kslab_chunk_tree_insert(&heap->under_way, record);
}

/* Something else knows it: out of its record, if it has one. Under the lock. */
static void drop_record(struct kslab_heap *heap, const struct kslab_run *run)
{
	if (run->known_by == KSLAB_RUN_RECORD)
		kslab_chunk_tree_remove(&heap->under_way, (struct kslab_chunk *)run->address);
}

/* The leaves are there: out of its record, into the map. */
static enum kslab_reason enter_map(struct kslab_heap *heap, struct kslab_run *run)
{
	struct kslab_lock_state state;

	kslab_page_map_set(&heap->map, run->address, run->pages << heap->page_shift,
			   &kslab_page_under_way);
	if (!kslab_heap_lock(heap, &state))
		return KSLAB_BUSY;
	drop_record(heap, run);
	run->known_by = KSLAB_RUN_MAP;
	kslab_heap_unlock(heap, &state);
	return KSLAB_OK;
}

/* ---- what a callback returns ----------------------------------------------------------------- */

/*
 * A run that is not judged yet is under way, unless anything but the map knows it. Only with several
 * CPUs, where the lock is to be had for sure, now and when the claim ends. Return: false: known.
 */
static bool claim(struct kslab_heap *heap, struct kslab_chunk *record)
{
	struct kslab_lock_state state;
	bool is_new;

	kslab_heap_lock(heap, &state);
	is_new = !is_listed(heap, record->address, record->pages << heap->page_shift) &&
		 kslab_chunk_tree_insert(&heap->under_way, record);
	kslab_heap_unlock(heap, &state);
	return is_new;
}

static const char in_use[] = "page source: page is in use already";

/*
 * Enter what a callback returned, unless it is known. A long run is looked at piece by piece, and other
 * heaps are asked, out of the lock: it is claimed before, so that of two CPUs that are given the same
 * at the same time one sees the other; of two heaps perhaps each. Return: *what: what is wrong with it.
 */
static enum kslab_reason admit(struct kslab_heap *heap, struct kslab_run *run, const char **what)
{
	size_t bytes = run->pages << heap->page_shift;
	size_t rest = run->pages < LOOK_PAGES ? bytes : LOOK_PAGES << heap->page_shift;
	struct kslab_chunk record = { .address = run->address, .pages = run->pages };
	bool is_alone = is_only_heap(heap);
	bool claims = KSLAB_CFG_CPUS > 1 && (run->pages > LOOK_PAGES || !is_alone);
	bool is_claimed = claims && claim(heap, &record);
	bool is_known = claims != is_claimed ||
			(!is_alone && kslab_source_is_elsewhere(heap, run->address, bytes)) ||
			is_known_run(heap, run->address, bytes - rest, is_mapped);
	struct kslab_lock_state state;

	if (!kslab_heap_lock(heap, &state))
		return KSLAB_BUSY;
	if (is_claimed)
		kslab_chunk_tree_remove(&heap->under_way, &record);
	if (is_known || is_listed(heap, run->address, bytes) ||
	    is_mapped(heap, run->address + (bytes - rest), rest)) {
		*what = in_use;
	} else if (!cover(heap, run->address, bytes)) {
		*what = "page source: page outside the window (KSLAB_CFG_TOP_ENTRIES)";
	} else {
		count_pages(heap, run->pages);
		enter(heap, run);
	}
	kslab_heap_unlock(heap, &state);
	return *what == NULL ? KSLAB_OK : KSLAB_NO_PAGES;
}

/* Judge what a callback returned. Return: KSLAB_OK if it can be used; else it was dealt with. */
static enum kslab_reason accept(struct kslab_heap *heap, struct kslab_run *run, size_t align_pages)
{
	size_t bytes = run->pages << heap->page_shift;
	enum kslab_reason reason = KSLAB_NO_PAGES;
	const char *what = NULL;

	if ((run->address & (heap->page_bytes - 1)) != 0)
		what = "page source: misaligned page";
	else if (run->address + bytes <= run->address)
		what = "page source: page wraps the address space";
	else
		reason = admit(heap, run, &what);
	/* A run that is merely not aligned to its length is no fault: it can't be used for this. */
	if (reason == KSLAB_OK && (run->address & (align_pages * heap->page_bytes - 1)) != 0) {
		kslab_source_forget(heap, run);
		return KSLAB_NO_PAGES;
	}
	if (reason != KSLAB_OK && what != in_use)
		heap->free_pages(heap->source_ctx, (void *)run->address, run->pages);
	if (what != NULL)
		report_page(heap, run->address, bytes, KSLAB_CALLER(), what);
	return reason;
}

static enum kslab_reason from_callback(struct kslab_heap *heap, size_t pages, size_t align_pages,
				       struct kslab_run *run)
{
	if (heap->alloc_pages == NULL)
		return KSLAB_NO_PAGES;
	if (KSLAB_PORT_IN_NMI())
		return KSLAB_BUSY;
	if (KSLAB_FETCH_ADD_RELAXED(&heap->source_depth, 1u) >= SOURCE_DEPTH_MAX) {
		KSLAB_FETCH_ADD_RELAXED(&heap->source_depth, ~0u);
		return KSLAB_REENTRY;
	}
	run->address = (uintptr_t)heap->alloc_pages(heap->source_ctx, pages);
	run->pages = pages;
	run->zeroed = false;
	KSLAB_FETCH_ADD_RELAXED(&heap->source_depth, ~0u);
	return run->address != 0 ? accept(heap, run, align_pages) : KSLAB_NO_PAGES;
}

bool kslab_source_take(struct kslab_heap *heap, size_t pages, size_t align_pages,
		       struct kslab_run *run)
{
	uintptr_t missing;

	if (heap->inject.rule.where != 0 || is_over_quota(heap, pages))
		return false;
	for (unsigned i = 0; i < heap->regions; i++) {
		struct kslab_region *region = &heap->region[i];

		run->address = kslab_region_alloc(region, heap->page_shift, pages, align_pages,
						  &run->zeroed);
		if (run->address == 0)
			continue;
		if (kslab_page_map_lacks_leaf(&heap->map, run->address, pages << heap->page_shift,
					      &missing)) {
			kslab_region_free(region, heap->page_shift, run->address, pages,
					  !run->zeroed);
			return false;
		}
		run->pages = pages;
		count_pages(heap, pages);
		return true;
	}
	return false;
}

/* A page that was set aside; it may be the first of all, so that the window is placed by it. */
static bool take_emergency(struct kslab_heap *heap, struct kslab_run *run)
{
	struct kslab_chunk *chunk = heap->emergency.root;

	if (chunk == NULL || !cover(heap, chunk->address, heap->page_bytes))
		return false;
	kslab_chunk_tree_remove(&heap->emergency, chunk);
	heap->pages_in_use--; /* it was counted when it was set aside */
	run->address = chunk->address;
	run->pages = 1;
	run->zeroed = false;
	enter(heap, run);
	return true;
}

static enum kslab_reason from_regions(struct kslab_heap *heap, size_t pages, size_t align_pages,
				      unsigned flags, struct kslab_run *run)
{
	enum kslab_reason reason = KSLAB_NO_PAGES;
	struct kslab_lock_state state;

	run->pages = pages;
	run->known_by = KSLAB_RUN_REGION;
	if (!kslab_heap_lock(heap, &state))
		return KSLAB_BUSY;
	if (is_over_quota(heap, pages))
		reason = KSLAB_QUOTA;
	for (unsigned i = 0; i < heap->regions && reason == KSLAB_NO_PAGES; i++) {
		run->address = kslab_region_alloc(&heap->region[i], heap->page_shift, pages,
						  align_pages, &run->zeroed);
		if (run->address != 0)
			reason = KSLAB_OK;
	}
	if (reason != KSLAB_OK && (flags & KSLAB_RESERVE) && pages == 1 && align_pages == 1 &&
	    take_emergency(heap, run))
		reason = KSLAB_OK;
	if (reason == KSLAB_OK)
		count_pages(heap, pages);
	kslab_heap_unlock(heap, &state);
	return reason;
}

/* A run without regard to the map. */
static enum kslab_reason raw_alloc(struct kslab_heap *heap, size_t pages, size_t align_pages,
				   unsigned flags, struct kslab_run *run)
{
	enum kslab_reason reason = KSLAB_NO_PAGES;

	if (kslab_inject_run(heap, flags & KSLAB_RESERVE))
		return KSLAB_INJECTED;
	/* The emergency pages come last: first without them. */
	if (KSLAB_LOAD_RELAXED(&heap->regions) != 0 || heap->max_pages != 0)
		reason = from_regions(heap, pages, align_pages, flags & ~KSLAB_RESERVE, run);
	if (reason == KSLAB_NO_PAGES && !(flags & KSLAB_NOWAIT))
		reason = from_callback(heap, pages, align_pages, run);
	if (reason != KSLAB_OK && (flags & KSLAB_RESERVE))
		reason = from_regions(heap, pages, align_pages, flags, run);
	return reason;
}

/* ---- metadata -------------------------------------------------------------------------------- */

/*
 * Chunks that are looked at when a leaf is made, whether the map can know them now: in a circle, and
 * more than the leaf takes for itself.
 */
#define MARK_LOOKS 4u

/* Let the map know metadata as such, if it has leaves there. Under the lock. Return: if so. */
static bool mark_chunk(struct kslab_heap *heap, struct kslab_chunk *chunk)
{
	size_t bytes = chunk->pages << heap->page_shift;
	uintptr_t missing;

	if (kslab_page_map_lacks_leaf(&heap->map, chunk->address, bytes, &missing))
		return false;
	kslab_page_map_set(&heap->map, chunk->address, bytes, &kslab_page_metadata);
	chunk->marked = true;
	return true;
}

/* A leaf was made: some of those that the map did not know. */
static void mark_some(struct kslab_heap *heap)
{
	struct kslab_meta *meta = &heap->meta;
	struct kslab_lock_state state;

	if (!kslab_heap_lock(heap, &state))
		return;
	for (unsigned looks = MARK_LOOKS; looks != 0 && meta->unmarked.count != 0; looks--) {
		struct kslab_chunk *chunk = kslab_chunk_tree_floor(&meta->unmarked, meta->looked);

		if (chunk == NULL) /* down to the first: on from the last */
			chunk = kslab_chunk_tree_floor(&meta->unmarked, UINTPTR_MAX);
		meta->looked = chunk->address - 1;
		if (mark_chunk(heap, chunk))
			kslab_chunk_tree_remove(&meta->unmarked, chunk);
	}
	kslab_heap_unlock(heap, &state);
}

/*
 * Memory from the current chunk, or NULL: in whole lines of 64 bytes, or (descriptors with one word
 * of bits) of 32. Under the lock.
 */
static void *bump(struct kslab_meta *meta, size_t bytes)
{
	void *mem;

	bytes = (bytes + 31) & ~(size_t)31;
	if (bytes % 64 == 0)
		meta->bump = (meta->bump + 63) & ~(uintptr_t)63;
	mem = (void *)meta->bump;
	if (meta->bump_end < meta->bump || meta->bump_end - meta->bump < bytes)
		return NULL;
	meta->bump += bytes;
	return mem;
}

static void record(struct kslab_heap *heap, struct kslab_chunk *chunk, const struct kslab_run *run)
{
	drop_record(heap, run);
	chunk->address = run->address;
	chunk->pages = run->pages;
	chunk->marked = false;
	chunk->next = heap->meta.chunks;
	heap->meta.chunks = chunk;
	heap->meta.pages += run->pages;
	if (!mark_chunk(heap, chunk))
		kslab_chunk_tree_insert(&heap->meta.unmarked, chunk);
}

/* Chunks begin with their record, for which new_chunk leaves room. */
_Static_assert(sizeof(struct kslab_chunk) <= 64, "a chunk's record is a line at most");

/*
 * Begin a new chunk after the one that ends at `old`; what was left of that is lost (less than one
 * request). If another CPU was faster its chunk is the newest.
 */
static enum kslab_reason new_chunk(struct kslab_heap *heap, size_t bytes, uintptr_t old,
				   unsigned flags)
{
	size_t pages = (bytes + 64 + heap->page_bytes - 1) >> heap->page_shift;
	struct kslab_lock_state state;
	struct kslab_run run;
	enum kslab_reason reason = raw_alloc(heap, pages, 1, flags, &run);
	bool is_used = false;

	if (reason != KSLAB_OK)
		return reason;
	if (!kslab_heap_lock(heap, &state)) {
		reason = KSLAB_BUSY;
	} else {
		is_used = heap->meta.bump_end == old;
		if (is_used) {
			heap->meta.bump = run.address;
			heap->meta.bump_end = run.address + (run.pages << heap->page_shift);
			record(heap, bump(&heap->meta, sizeof(struct kslab_chunk)), &run);
		}
		kslab_heap_unlock(heap, &state);
	}
	if (!is_used)
		kslab_source_forget(heap, &run);
	return reason;
}

/* Memory that is never given back, from the newest chunk, and the lock; NULL: neither. */
static void *alloc_piece_and_lock(struct kslab_heap *heap, size_t bytes, unsigned flags,
				  enum kslab_reason *reason, struct kslab_lock_state *state)
{
	for (;;) {
		uintptr_t end;
		void *mem;

		*reason = KSLAB_BUSY;
		if (!kslab_heap_lock(heap, state))
			return NULL;
		mem = bump(&heap->meta, bytes);
		if (mem != NULL)
			return mem;
		end = heap->meta.bump_end;
		kslab_heap_unlock(heap, state);
		*reason = new_chunk(heap, bytes, end, flags);
		if (*reason != KSLAB_OK)
			return NULL;
	}
}

/* Page-sized metadata gets a run of its own; only its record lies in a chunk. */
static void *alloc_run_and_lock(struct kslab_heap *heap, size_t bytes, unsigned flags,
				enum kslab_reason *reason, struct kslab_lock_state *state)
{
	struct kslab_chunk *chunk;
	struct kslab_run run;

	*reason =
		raw_alloc(heap, (bytes + heap->page_bytes - 1) >> heap->page_shift, 1, flags, &run);
	if (*reason != KSLAB_OK)
		return NULL;
	chunk = alloc_piece_and_lock(heap, sizeof(*chunk), flags, reason, state);
	if (chunk == NULL) {
		kslab_source_forget(heap, &run);
		return NULL;
	}
	record(heap, chunk, &run);
	return (void *)run.address;
}

/* The lock comes with it: an NMI that got the memory, and was refused the lock, would lose it. */
static void *meta_alloc_and_lock(struct kslab_heap *heap, size_t bytes, unsigned flags,
				 enum kslab_reason *reason, struct kslab_lock_state *state)
{
	if (bytes + 128 > heap->page_bytes)
		return alloc_run_and_lock(heap, bytes, flags, reason, state);
	return alloc_piece_and_lock(heap, bytes, flags, reason, state);
}

void *kslab_meta_alloc(struct kslab_heap *heap, size_t bytes, unsigned flags,
		       enum kslab_reason *reason)
{
	struct kslab_lock_state state;
	void *mem = meta_alloc_and_lock(heap, bytes, flags, reason, &state);

	if (mem != NULL)
		kslab_heap_unlock(heap, &state);
	return mem;
}

/* Free lists by number of words: 0 (KSLAB_DESCRIPTOR_LARGE), 1, 2, 3-5, 6-8, then by doubling. */
static unsigned descriptor_bin(unsigned words, unsigned *room)
{
	static const uint16_t rooms[] = { 1, 1, 2, 5, 8, 16, 32, 64, 128, 256, 512 };
	unsigned bin = words == KSLAB_DESCRIPTOR_LARGE ? 0 : 1;

	_Static_assert(KSLAB_ARRAY_LENGTH(rooms) ==
			       KSLAB_ARRAY_LENGTH(((struct kslab_meta *)0)->free),
		       "a list for every bin");
	while (rooms[bin] < words)
		bin++;
	*room = rooms[bin];
	return bin;
}

/* NULL: none. Only who has the lock pops, so nobody pops the head and pushes it again meanwhile. */
static struct kslab_page *pop_descriptor(struct kslab_heap *heap, unsigned bin)
{
	struct kslab_page *page;

	do {
		page = KSLAB_LOAD_ACQUIRE(&heap->meta.free[bin]); /* pairs with the push */
	} while (page != NULL && !KSLAB_CAS_RELAXED(&heap->meta.free[bin], &page, page->next));
	return page;
}

struct kslab_page *kslab_descriptor_alloc(struct kslab_heap *heap, unsigned words, unsigned flags,
					  enum kslab_reason *reason)
{
	unsigned room, bin = descriptor_bin(words, &room);
	struct kslab_lock_state state;
	struct kslab_page *page;

	*reason = KSLAB_BUSY;
	if (!kslab_heap_lock(heap, &state))
		return NULL;
	page = pop_descriptor(heap, bin);
	kslab_heap_unlock(heap, &state);
	if (page == NULL) {
		page = kslab_meta_alloc(heap, sizeof(*page) + room * sizeof(struct kslab_bits),
					flags, reason);
		if (page == NULL)
			return NULL;
		/* The one time in its life that mail is written by anything but the protocol. */
		memset(page, 0, sizeof(*page) + room * sizeof(struct kslab_bits));
		/* 0 is the key of a busy zone: whoever frees into the run meanwhile has no such page. */
		KSLAB_STORE_RELAXED(&page->owner, KSLAB_TAG_FULL);
	}
	page->next = page->prev = NULL;
	return page;
}

void kslab_descriptor_free(struct kslab_heap *heap, struct kslab_page *page, unsigned words)
{
	unsigned room, bin = descriptor_bin(words, &room);
	struct kslab_page *head = KSLAB_LOAD_RELAXED(&heap->meta.free[bin]);

	KSLAB_STORE_RELAXED(&page->state, (uint8_t)KSLAB_PAGE_IDLE);
	KSLAB_STORE_RELAXED(&page->owner, KSLAB_TAG_FULL);
	do {
		page->next = head;
	} while (!KSLAB_CAS_RELEASE(&heap->meta.free[bin], &head, page));
}

struct kslab_page *kslab_descriptor_take(struct kslab_heap *heap)
{
	return pop_descriptor(heap, KSLAB_DESCRIPTOR_LARGE);
}

/* ---- runs with their part of the map --------------------------------------------------------- */

/* Memory for a leaf (a flat map has its own: NULL), and the lock. Return: KSLAB_OK, or neither. */
static enum kslab_reason leaf_and_lock(struct kslab_heap *heap, unsigned flags, void ***leaf,
				       struct kslab_lock_state *state)
{
	enum kslab_reason reason = KSLAB_OK;

	if (!kslab_heap_lock(heap, state))
		return KSLAB_BUSY;
	*leaf = heap->meta.leaves;
	if (*leaf != NULL) {
		heap->meta.leaves = **leaf;
	} else if (!KSLAB_CFG_FLAT_MAP) {
		kslab_heap_unlock(heap, state);
		*leaf = meta_alloc_and_lock(heap, KSLAB_LEAF_BYTES, flags, &reason, state);
	}
	return *leaf != NULL ? KSLAB_OK : reason;
}

static enum kslab_reason ensure_leaves(struct kslab_heap *heap, uintptr_t address, size_t bytes,
				       unsigned flags)
{
	struct kslab_lock_state state;
	enum kslab_reason reason;
	uintptr_t missing;

	while (kslab_page_map_lacks_leaf(&heap->map, address, bytes, &missing)) {
		bool marks, lacks, is_outside;
		void **leaf;

		reason = leaf_and_lock(heap, flags, &leaf, &state);
		if (reason != KSLAB_OK)
			return reason;
		lacks = kslab_page_map_lacks_leaf(&heap->map, address, bytes, &missing);
		/* The memory for the leaf has moved the window. */
		is_outside = lacks && kslab_page_map_top(&heap->map, missing) == NULL;
		if (lacks && !is_outside) {
			kslab_page_map_add_leaf(&heap->map, missing, leaf);
		} else if (leaf != NULL) { /* another CPU was faster: for the next hole */
			*leaf = heap->meta.leaves;
			heap->meta.leaves = leaf;
		}
		marks = heap->meta.unmarked.count != 0;
		kslab_heap_unlock(heap, &state);
		if (marks)
			mark_some(heap);
		if (is_outside)
			return KSLAB_NO_PAGES;
	}
	return KSLAB_OK;
}

enum kslab_reason kslab_source_alloc(struct kslab_heap *heap, size_t pages, size_t align_pages,
				     unsigned flags, struct kslab_run *run)
{
	enum kslab_reason reason = raw_alloc(heap, pages, align_pages, flags, run);

	if (reason != KSLAB_OK || run->known_by == KSLAB_RUN_MAP)
		return reason;
	reason = ensure_leaves(heap, run->address, run->pages << heap->page_shift, flags);
	if (reason == KSLAB_OK && run->known_by == KSLAB_RUN_RECORD)
		reason = enter_map(heap, run);
	if (reason != KSLAB_OK)
		kslab_source_forget(heap, run);
	return reason;
}

/*
 * Pieces that the free of a run purges while its region is above purge_bytes, down to half of that:
 * more than it adds, and four for a page.
 */
static size_t purge_pieces(size_t pages)
{
	return 4 + 2 * (size_t)kslab_log2(pages) + (pages >> 10);
}

/* Purge one free piece, if more is dirty than is to be kept. Return: false: that was it. */
static bool purge_piece(struct kslab_heap *heap, struct kslab_region *region, size_t keep)
{
	struct kslab_lock_state state;
	uintptr_t address = 0;
	size_t pages;

	if (!kslab_heap_lock(heap, &state))
		return false;
	if (region->dirty_pages > keep)
		address = kslab_region_take_dirty(region, heap->page_shift, &pages);
	if (address == 0)
		region->is_purging = false;
	kslab_heap_unlock(heap, &state);
	if (address == 0)
		return false;
	heap->purge(heap->source_ctx, (void *)address, pages << heap->page_shift);
	if (!kslab_heap_lock(heap, &state))
		return false;
	kslab_region_free(region, heap->page_shift, address, pages, false);
	kslab_heap_unlock(heap, &state);
	return true;
}

/*
 * Keep a page for KSLAB_RESERVE requests; its record is written into it. Under the lock, or in
 * init. Return: false: it is one of them already.
 */
static bool set_aside(struct kslab_heap *heap, uintptr_t address)
{
	struct kslab_chunk *chunk = (struct kslab_chunk *)address;

	if (kslab_chunk_tree_overlaps(&heap->emergency, heap->page_shift, address,
				      heap->page_bytes))
		return false;
	chunk->address = address;
	chunk->pages = 1;
	return kslab_chunk_tree_insert(&heap->emergency, chunk);
}

/* One page; what is wrong is dealt with as by accept. */
static bool fetch_emergency(struct kslab_heap *heap)
{
	uintptr_t address = (uintptr_t)heap->alloc_pages(heap->source_ctx, 1);
	const char *what = NULL;

	if (address == 0)
		return false;
	if ((address & (heap->page_bytes - 1)) != 0)
		what = "page source: misaligned page";
	else if (address + heap->page_bytes == 0)
		what = "page source: page wraps the address space";
	else if (!kslab_source_can_cover(heap, address, heap->page_bytes))
		what = "page source: page outside the window (KSLAB_CFG_TOP_ENTRIES)";
	else if (kslab_source_is_elsewhere(heap, address, heap->page_bytes) ||
		 !set_aside(heap, address))
		what = in_use;
	if (what == NULL) {
		heap->pages_peak = ++heap->pages_in_use;
		return true;
	}
	if (what != in_use)
		heap->free_pages(heap->source_ctx, (void *)address, 1);
	report_page(heap, address, heap->page_bytes, KSLAB_CALLER(), what);
	return false;
}

bool kslab_source_fill_emergency(struct kslab_heap *heap)
{
	while (heap->emergency.count < heap->emergency_target)
		if (!fetch_emergency(heap))
			return false;
	return true;
}

/* Into its region, or aside. Under the lock. Return: false: the callback has to take it. */
static bool take_in(struct kslab_heap *heap, struct kslab_region *region, uintptr_t address,
		    size_t pages)
{
	if (region == NULL)
		return pages == 1 && heap->emergency.count < heap->emergency_target &&
		       set_aside(heap, address);
	heap->pages_in_use -= pages;
	kslab_region_free(region, heap->page_shift, address, pages, true);
	return true;
}

void kslab_source_give_and_unlock(struct kslab_heap *heap, uintptr_t address, size_t pages,
				  struct kslab_lock_state *state)
{
	size_t limit = heap->purge_bytes >> heap->page_shift;
	struct kslab_region *region = region_of(heap, address);
	bool is_taken = take_in(heap, region, address, pages), is_purging = false;

	if (!is_taken)
		heap->pages_in_use -= pages;
	if (region != NULL) {
		if (region->dirty_pages > limit && heap->purge != NULL)
			region->is_purging = true;
		is_purging = region->is_purging;
	}
	kslab_heap_unlock(heap, state);
	if (!is_taken)
		heap->free_pages(heap->source_ctx, (void *)address, pages);
	for (size_t most = purge_pieces(pages); most != 0 && is_purging; most--)
		is_purging = purge_piece(heap, region, limit / 2);
}

/* Runs that were given up in an NMI and go with one that is given back outside; the rest, later. */
#define WAITING_MOST 2u

/* No callback in an NMI, or no lock: the run holds its own record meanwhile. */
static void let_wait(struct kslab_heap *heap, uintptr_t address, size_t pages)
{
	struct kslab_chunk *chunk = (struct kslab_chunk *)address;
	struct kslab_chunk *head = KSLAB_LOAD_RELAXED(&heap->waiting);

	chunk->pages = pages;
	do {
		chunk->next = head;
	} while (!KSLAB_CAS_RELEASE(&heap->waiting, &head, chunk));
}

size_t kslab_source_release_waiting(struct kslab_heap *heap, size_t most)
{
	size_t released = 0;

	for (; most != 0 && KSLAB_LOAD_RELAXED(&heap->waiting) != NULL; most--) {
		struct kslab_lock_state state;
		struct kslab_chunk *chunk;

		if (KSLAB_PORT_IN_NMI() || !kslab_heap_lock(heap, &state))
			break;
		/*
		 * Pairs with the push. Only who has the lock pops, so nobody pops the head and
		 * pushes it again meanwhile.
		 */
		chunk = KSLAB_LOAD_ACQUIRE(&heap->waiting);
		while (chunk != NULL && !KSLAB_CAS_ACQ_REL(&heap->waiting, &chunk, chunk->next))
			;
		if (chunk == NULL) {
			kslab_heap_unlock(heap, &state);
			break;
		}
		if (kslab_chunk_tree_floor(&heap->under_way, (uintptr_t)chunk) == chunk)
			kslab_chunk_tree_remove(&heap->under_way, chunk);
		released += chunk->pages;
		kslab_source_give_and_unlock(heap, (uintptr_t)chunk, chunk->pages, &state);
	}
	return released;
}

void kslab_source_free(struct kslab_heap *heap, uintptr_t address, size_t pages)
{
	const bool is_nmi = KSLAB_PORT_IN_NMI();
	struct kslab_lock_state state;
	bool is_taken = false;

	if (!is_nmi)
		kslab_source_release_waiting(heap, WAITING_MOST);
	if (kslab_heap_lock(heap, &state)) {
		if (!is_nmi) {
			kslab_source_give_and_unlock(heap, address, pages, &state);
			return;
		}
		is_taken = take_in(heap, region_of(heap, address), address, pages);
		kslab_heap_unlock(heap, &state);
	}
	if (!is_taken)
		let_wait(heap, address, pages);
}

void kslab_source_forget(struct kslab_heap *heap, const struct kslab_run *run)
{
	size_t bytes = run->pages << heap->page_shift;
	struct kslab_lock_state state;
	uintptr_t missing;

	if (!kslab_page_map_lacks_leaf(&heap->map, run->address, bytes, &missing))
		kslab_page_map_set(&heap->map, run->address, bytes, &kslab_page_released);
	if (run->known_by == KSLAB_RUN_RECORD) {
		if (!kslab_heap_lock(heap, &state)) { /* with its record, which is used for both */
			let_wait(heap, run->address, run->pages);
			return;
		}
		drop_record(heap, run);
		kslab_heap_unlock(heap, &state);
	}
	kslab_source_free(heap, run->address, run->pages);
}

bool kslab_source_is_divisible(struct kslab_heap *heap, uintptr_t address)
{
	return region_of(heap, address) != NULL;
}

bool kslab_source_extend(struct kslab_heap *heap, uintptr_t address, size_t pages)
{
	struct kslab_lock_state state;
	struct kslab_region *region = region_of(heap, address - 1);
	bool zeroed, done = false;

	if (region == NULL || !kslab_heap_lock(heap, &state))
		return false;
	if (!is_over_quota(heap, pages))
		done = kslab_region_extend(region, heap->page_shift, address, pages, &zeroed);
	if (done)
		count_pages(heap, pages);
	kslab_heap_unlock(heap, &state);
	if (done &&
	    ensure_leaves(heap, address, pages << heap->page_shift, KSLAB_NOWAIT) != KSLAB_OK) {
		kslab_source_free(heap, address, pages);
		done = false;
	}
	return done;
}

void kslab_source_purge(struct kslab_heap *heap, size_t keep)
{
	if (KSLAB_PORT_IN_NMI())
		return;
	for (unsigned i = 0; i < KSLAB_LOAD_ACQUIRE(&heap->regions) && heap->purge != NULL; i++) {
		while (purge_piece(heap, &heap->region[i], keep))
			;
	}
}

void kslab_source_fini(struct kslab_heap *heap)
{
	struct kslab_chunk *chunk = heap->meta.chunks, *next;

	heap->emergency_target = 0;
	while (heap->emergency.root != NULL) {
		uintptr_t page = heap->emergency.root->address;

		kslab_chunk_tree_remove(&heap->emergency, heap->emergency.root);
		kslab_source_free(heap, page, 1);
	}
	heap->meta.unmarked.root = NULL;
	heap->meta.unmarked.count = 0;
	/*
	 * A record may lie inside a chunk that goes earlier: runs first, then the chunks that hold
	 * records.
	 */
	for (unsigned pass = 0; pass < 2; pass++) {
		struct kslab_chunk **link = &heap->meta.chunks;

		for (chunk = heap->meta.chunks; chunk != NULL; chunk = next) {
			bool holds_itself = (uintptr_t)chunk == chunk->address;
			struct kslab_chunk copy = *chunk;

			next = copy.next;
			if (holds_itself != (pass == 1)) {
				link = &chunk->next;
				continue;
			}
			*link = next;
			kslab_source_free(heap, copy.address, copy.pages);
		}
	}
	heap->meta.chunks = NULL;
}
