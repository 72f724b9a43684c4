/* SPDX-License-Identifier: MIT
 * kslab/sc_allocator.h - owns the seed's SCAllocator: objects of one size on pages that the caller
 * hands in. Rank: 3.  Metadata lies at the end of each page. Any power-of-two page size, chosen at
 * run time.
 *
 * Context: allocate, refill, try_reclaim_pages and usage are the owner's: one thread at a time, by
 * the caller's means. deallocate is lock-free and may run anywhere, at the same time as any of
 * these. Source: slabmalloc's SCAllocator; what it got wrong is listed in tests/test_seed.c.
 */
#ifndef KSLAB_SC_ALLOCATOR_H
#define KSLAB_SC_ALLOCATOR_H

#include <kslab/object_page.h>

#ifdef __cplusplus
extern "C" {
#endif

/* What is asked for: size in bytes, alignment a power of two. */
struct kslab_layout {
	size_t size;
	size_t align;
};

enum kslab_allocation_error {
	KSLAB_ALLOCATION_OK,
	KSLAB_OUT_OF_MEMORY, /* refill with a page, then try again */
	KSLAB_INVALID_LAYOUT, /* can never be served by this allocator, or is not the object's */
	KSLAB_INVALID_POINTER, /* not a live object of this allocator */
	KSLAB_INVALID_PAGE, /* misaligned, or of a size that holds no object */
};

struct kslab_sc_allocator {
	struct kslab_owner owner;
	struct kslab_sc core;
	size_t page_bytes; /* [I] */
	uint32_t slots; /* [I] objects per page */
	uint32_t in_flight; /* [a] deallocate calls under way */
};

/*
 * KSLAB_SC_INIT - static initialiser; size and page_bytes as for kslab_sc_init, not checked here:
 * an allocator with impossible values refuses every call, as after a failed kslab_sc_init.
 */
#define KSLAB_SC_INIT(size_, page_bytes_)                                                          \
	{                                                                                          \
		{ 0, 0, 0, 0, 0, 0, 0, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, 0, 0 },     \
			KSLAB_SC_CORE_INIT((size_), KSLAB_CLASS_CACHE), (page_bytes_), 0, 0        \
	}

/*
 * kslab_sc_init - make an allocator for objects of one size
 * @size: slot size in bytes, 8 .. what fits a page with its descriptor; rounded up to a multiple of
 * 8
 * @page_bytes: power of two, 512 bytes to 32 MiB
 * Return: KSLAB_ALLOCATION_OK, or KSLAB_INVALID_LAYOUT (then every later call is refused: allocate
 * with INVALID_LAYOUT, deallocate with INVALID_POINTER, refill with INVALID_PAGE).
 */
enum kslab_allocation_error kslab_sc_init(struct kslab_sc_allocator *sc, size_t size,
					  size_t page_bytes);

/* The largest request this allocator serves, bytes; 0: impossible values. */
size_t kslab_sc_size(const struct kslab_sc_allocator *sc);

/* Objects per page; 0: impossible values. */
size_t kslab_sc_slots(const struct kslab_sc_allocator *sc);

/*
 * kslab_sc_allocate - take one object
 * Fails with INVALID_LAYOUT if and only if layout.size > kslab_sc_size(), or the alignment is not a
 * power of two or not one that every slot has (the lowest set bit of the slot size). Fails with
 * OUT_OF_MEMORY if and only if no slot is free.
 * Complexity: O(1); amortised over a page O(words of its bitfield).
 */
enum kslab_allocation_error kslab_sc_allocate(struct kslab_sc_allocator *sc,
					      struct kslab_layout layout, void **object);

/*
 * kslab_sc_deallocate - give one object back
 * @ptr: MUST lie in memory that is readable up to its page's end; anything else is judged exactly.
 * Context: any CPU, any level; one atomic operation, one more when the page was full.
 * Return: OK, INVALID_LAYOUT (size does not fit the allocator), INVALID_POINTER (double free,
 * interior, another allocator's). A refusal changes nothing.
 */
enum kslab_allocation_error kslab_sc_deallocate(struct kslab_sc_allocator *sc, void *ptr,
						struct kslab_layout layout);

/*
 * kslab_sc_refill - hand in one page of page_bytes, aligned to page_bytes, with any contents
 * Return: OK, or INVALID_PAGE: misaligned, NULL, or in this allocator already; the page is
 * untouched.
 */
enum kslab_allocation_error kslab_sc_refill(struct kslab_sc_allocator *sc, void *page);

/*
 * kslab_sc_try_reclaim_pages - take up to to_reclaim pages without live objects out
 * @dealloc: called once for each; the page is the caller's again.
 * While a deallocate is under way on another CPU its page, and perhaps others, are kept for a later
 * call. Return: pages given back. Complexity: O(pages of the allocator), as everything is looked at
 * again.
 */
size_t kslab_sc_try_reclaim_pages(struct kslab_sc_allocator *sc, size_t to_reclaim,
				  void (*dealloc)(void *ctx, void *page), void *ctx);

/* What the seed calls SlabUsage. */
struct kslab_usage {
	size_t pages; /* object pages held */
	size_t empty_pages; /* thereof without a live object */
	size_t slots; /* objects that fit into them */
	size_t used_slots; /* live objects */
	size_t used_bytes; /* slot size * live objects */
	size_t total_bytes; /* memory of the pages */
};
struct kslab_usage kslab_sc_usage(struct kslab_sc_allocator *sc);

/* True if lists, counts and bitfields agree. Complexity: O(pages). */
bool kslab_sc_check(struct kslab_sc_allocator *sc);

#ifdef __cplusplus
}
#endif
#endif
