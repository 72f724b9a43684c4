/* SPDX-License-Identifier: MIT
 * kslab/zone_allocator.h - owns the seed's ZoneAllocator: every size, on pages that the caller
 * hands in. Rank: 4.  Context and locking as for kslab_sc_allocator.
 *
 * Two page sizes, as in the seed: classes whose page would waste more than 1/8 of a base page use
 * large pages.
 */
#ifndef KSLAB_ZONE_ALLOCATOR_H
#define KSLAB_ZONE_ALLOCATOR_H

#include <kslab/sc_allocator.h>

#ifdef __cplusplus
extern "C" {
#endif

#define KSLAB_ZONE_CLASSES_MAX 60

struct kslab_zone_allocator {
	struct kslab_sc_allocator sc[KSLAB_ZONE_CLASSES_MAX];
	size_t base_page_bytes; /* [I] */
	size_t large_page_bytes; /* [I] 0: none */
	unsigned classes; /* [I] */
	unsigned base_classes; /* [I] thereof on base pages: indices below this one */
	unsigned next_reclaim; /* class that the next reclaim asks first */
};

/*
 * kslab_zone_init - make a zone
 * @base_page_bytes: power of two, 512 or more
 * @large_page_bytes: power of two above base_page_bytes, up to 32 MiB, or 0 for none
 * Return: KSLAB_ALLOCATION_OK, or KSLAB_INVALID_LAYOUT: nothing can be allocated from it.
 */
enum kslab_allocation_error kslab_zone_init(struct kslab_zone_allocator *zone,
					    size_t base_page_bytes, size_t large_page_bytes);

/* The largest request the zone serves, bytes. */
size_t kslab_zone_max_size(const struct kslab_zone_allocator *zone);

/*
 * kslab_zone_get_max_size - how large an object of this layout could grow in place
 * Return: the slot size of its class, or 0 if no class serves it.
 */
size_t kslab_zone_get_max_size(const struct kslab_zone_allocator *zone, struct kslab_layout layout);

/* Page size that kslab_zone_refill wants for this layout, or 0 if no class serves it. */
size_t kslab_zone_page_bytes(const struct kslab_zone_allocator *zone, struct kslab_layout layout);

/* As the kslab_sc_ functions of the same verb, on the class that serves the layout. */
enum kslab_allocation_error kslab_zone_allocate(struct kslab_zone_allocator *zone,
						struct kslab_layout layout, void **object);
enum kslab_allocation_error kslab_zone_deallocate(struct kslab_zone_allocator *zone, void *ptr,
						  struct kslab_layout layout);
enum kslab_allocation_error kslab_zone_refill(struct kslab_zone_allocator *zone,
					      struct kslab_layout layout, void *page);

/*
 * kslab_zone_try_reclaim_pages - take up to to_reclaim empty pages out, of all classes
 * @dealloc: gets the page and its size (base or large)
 * Return: pages given back; the class that was asked first rotates with each call.
 */
size_t kslab_zone_try_reclaim_pages(struct kslab_zone_allocator *zone, size_t to_reclaim,
				    void (*dealloc)(void *ctx, void *page, size_t page_bytes),
				    void *ctx);

struct kslab_usage kslab_zone_usage(struct kslab_zone_allocator *zone);

bool kslab_zone_check(struct kslab_zone_allocator *zone);

#ifdef __cplusplus
}
#endif
#endif
