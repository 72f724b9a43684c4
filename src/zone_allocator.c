/* SPDX-License-Identifier: MIT
 * zone_allocator.c - owns the bare ZoneAllocator: routes sizes to size classes.
 * Rank: 4.  Runs: as kslab_sc_allocator.
 * Source: the seed's ZoneAllocator.
 */
#include <kslab/zone_allocator.h>

#include "sc_allocator.h"
#include "size_class.h"

_Static_assert(KSLAB_ZONE_CLASSES_MAX == KSLAB_CLASSES, "a bare zone has the heap's classes");

static bool is_thrifty(const struct kslab_sc_allocator *sc)
{
	return sc->page_bytes - sc->slots * (size_t)sc->core.size <= sc->page_bytes / 8;
}

/* Classes from *cls on that pages of page_bytes can serve. */
static unsigned init_classes(struct kslab_zone_allocator *zone, unsigned cls, size_t page_bytes,
			     bool thrifty)
{
	for (; cls < KSLAB_CLASSES; cls++) {
		struct kslab_sc_allocator *sc = &zone->sc[cls];

		if (kslab_sc_init(sc, kslab_class_bytes(cls), page_bytes) != KSLAB_ALLOCATION_OK)
			break;
		if (thrifty && !is_thrifty(sc) && kslab_class_bytes(cls) >= 128)
			break;
	}
	return cls;
}

enum kslab_allocation_error kslab_zone_init(struct kslab_zone_allocator *zone,
					    size_t base_page_bytes, size_t large_page_bytes)
{
	zone->base_page_bytes = base_page_bytes;
	zone->large_page_bytes = large_page_bytes;
	zone->base_classes = zone->classes = zone->next_reclaim = 0;
	if (!kslab_is_power_of_two(base_page_bytes) ||
	    (large_page_bytes != 0 &&
	     (!kslab_is_power_of_two(large_page_bytes) || large_page_bytes <= base_page_bytes)))
		return KSLAB_INVALID_LAYOUT;
	if (large_page_bytes != 0 && /* too long for any class? */
	    kslab_sc_init(&zone->sc[0], 8, large_page_bytes) != KSLAB_ALLOCATION_OK)
		return KSLAB_INVALID_LAYOUT;
	zone->base_classes = init_classes(zone, 0, base_page_bytes, large_page_bytes != 0);
	zone->classes = zone->base_classes;
	if (large_page_bytes != 0)
		zone->classes = init_classes(zone, zone->base_classes, large_page_bytes, false);
	return zone->classes != 0 ? KSLAB_ALLOCATION_OK : KSLAB_INVALID_LAYOUT;
}

/* The class that serves a layout, or NULL. Alignment is routed by class, never searched for. */
static struct kslab_sc_allocator *route(const struct kslab_zone_allocator *zone,
					struct kslab_layout layout)
{
	size_t mask = layout.align - 1;
	unsigned cls;

	if (!kslab_is_power_of_two(layout.align) || layout.size > KSLAB_CLASS_MAX_BYTES ||
	    layout.align > KSLAB_CLASS_MAX_BYTES)
		return NULL;
	cls = kslab_class_of((layout.size + mask) & ~mask);
	while (cls < zone->classes && (kslab_class_bytes(cls) & mask) != 0)
		cls++;
	/* A static array of the caller's: the const is on the zone's own words only. */
	return cls < zone->classes ? (struct kslab_sc_allocator *)(uintptr_t)&zone->sc[cls] : NULL;
}

size_t kslab_zone_max_size(const struct kslab_zone_allocator *zone)
{
	return zone->classes != 0 ? kslab_class_bytes(zone->classes - 1) : 0;
}

size_t kslab_zone_get_max_size(const struct kslab_zone_allocator *zone, struct kslab_layout layout)
{
	const struct kslab_sc_allocator *sc = route(zone, layout);

	return sc != NULL ? kslab_sc_size(sc) : 0;
}

size_t kslab_zone_page_bytes(const struct kslab_zone_allocator *zone, struct kslab_layout layout)
{
	const struct kslab_sc_allocator *sc = route(zone, layout);

	return sc != NULL ? sc->page_bytes : 0;
}

enum kslab_allocation_error kslab_zone_allocate(struct kslab_zone_allocator *zone,
						struct kslab_layout layout, void **object)
{
	struct kslab_sc_allocator *sc = route(zone, layout);

	*object = NULL;
	return sc != NULL ? kslab_sc_allocate(sc, layout, object) : KSLAB_INVALID_LAYOUT;
}

enum kslab_allocation_error kslab_zone_deallocate(struct kslab_zone_allocator *zone, void *ptr,
						  struct kslab_layout layout)
{
	struct kslab_sc_allocator *sc = route(zone, layout);

	return sc != NULL ? kslab_sc_deallocate(sc, ptr, layout) : KSLAB_INVALID_LAYOUT;
}

enum kslab_allocation_error kslab_zone_refill(struct kslab_zone_allocator *zone,
					      struct kslab_layout layout, void *page)
{
	struct kslab_sc_allocator *sc = route(zone, layout);

	return sc != NULL ? kslab_sc_refill(sc, page) : KSLAB_INVALID_LAYOUT;
}

struct reclaim {
	void (*dealloc)(void *ctx, void *page, size_t page_bytes);
	void *ctx;
	size_t page_bytes;
};

static void give_back(void *ctx, void *page)
{
	struct reclaim *reclaim = ctx;

	reclaim->dealloc(reclaim->ctx, page, reclaim->page_bytes);
}

size_t kslab_zone_try_reclaim_pages(struct kslab_zone_allocator *zone, size_t to_reclaim,
				    void (*dealloc)(void *ctx, void *page, size_t page_bytes),
				    void *ctx)
{
	struct reclaim reclaim = { dealloc, ctx, 0 };
	size_t reclaimed = 0;

	if (zone->classes == 0)
		return 0;
	if (++zone->next_reclaim >= zone->classes)
		zone->next_reclaim = 0;
	for (unsigned n = 0, next = zone->next_reclaim; n < zone->classes && reclaimed < to_reclaim;
	     n++) {
		struct kslab_sc_allocator *sc = &zone->sc[next];

		reclaim.page_bytes = sc->page_bytes;
		reclaimed +=
			kslab_sc_try_reclaim_pages(sc, to_reclaim - reclaimed, give_back, &reclaim);
		next = next + 1 == zone->classes ? 0 : next + 1;
	}
	return reclaimed;
}

struct kslab_usage kslab_zone_usage(struct kslab_zone_allocator *zone)
{
	struct kslab_usage total = { 0, 0, 0, 0, 0, 0 };

	for (unsigned i = 0; i < zone->classes; i++) {
		struct kslab_usage one = kslab_sc_usage(&zone->sc[i]);

		total.pages += one.pages;
		total.empty_pages += one.empty_pages;
		total.slots += one.slots;
		total.used_slots += one.used_slots;
		total.used_bytes += one.used_bytes;
		total.total_bytes += one.total_bytes;
	}
	return total;
}

bool kslab_zone_check(struct kslab_zone_allocator *zone)
{
	for (unsigned i = 0; i < zone->classes; i++)
		if (!kslab_sc_check(&zone->sc[i]))
			return false;
	return true;
}
