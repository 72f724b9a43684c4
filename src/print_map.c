/* SPDX-License-Identifier: MIT
 * print_map.c - owns the picture of the object pages as text.
 * Rank: 6.  Runs anywhere, waits for no lock; reads only. Lists are followed no further than their
 * count, so that a heap that is broken can be printed, too.
 */
#include <kslab/observe.h>

#include "debug.h"
#include "heap.h"
#include "print.h"

#define LINE_COLUMNS 76u
#define LABEL_COLUMNS 22u

struct map_printer {
	struct kslab_printer printer;
	struct kslab_heap *heap;
	const struct kslab_cache *cache; /* NULL: class `cls` */
	unsigned cls;
	size_t pages; /* printed in this class so far */
};

static char letter(const struct map_printer *map, const struct kslab_sc *sc,
		   const struct kslab_page *page)
{
	uint32_t live = kslab_debug_live(map->heap, page);

	if (page == sc->page)
		return '@';
	if (live == 0)
		return '.';
	if (live >= page->slots)
		return '#';
	/* ceil(4 * live / slots), without a division */
	for (uint32_t quarter = 1; quarter < 4; quarter++)
		if (4 * live <= quarter * page->slots)
			return (char)('0' + quarter);
	return '4';
}

static void print_label(struct map_printer *map)
{
	const size_t bytes =
		map->cache != NULL ? map->cache->slot_bytes : kslab_class_bytes(map->cls);
	const char *name = map->cache != NULL ? map->cache->name : NULL;
	unsigned n = 0;

	for (; name != NULL && name[n] != '\0' && n < LABEL_COLUMNS - 9; n++)
		kslab_print_char(&map->printer, name[n]);
	for (; n < LABEL_COLUMNS - 8; n++)
		kslab_print_char(&map->printer, ' ');
	kslab_print_number(&map->printer, bytes, 6);
	kslab_print_text(&map->printer, "  ", 0);
}

static void print_page(struct map_printer *map, const struct kslab_sc *sc,
		       const struct kslab_page *page)
{
	if (map->pages++ == 0) {
		print_label(map);
	} else if (map->printer.column >= LINE_COLUMNS) {
		kslab_print_char(&map->printer, '\n');
		kslab_print_text(&map->printer, "", LABEL_COLUMNS);
	}
	kslab_print_char(&map->printer, letter(map, sc, page));
}

/* The part of a zone that is printed now, or NULL. */
static const struct kslab_sc *part_of(const struct map_printer *map, const struct kslab_zone *zone)
{
	const struct kslab_cache_zone *own;

	if (map->cache == NULL)
		return &zone->sc[map->cls];
	if (zone == map->heap->limbo) /* it has the index of CPU 0, and no caches */
		return NULL;
	own = KSLAB_LOAD_ACQUIRE(&map->cache->zones[kslab_zone_index(zone)]);
	return own != NULL ? &own->sc : NULL;
}

static void print_zone(void *ctx, struct kslab_zone *zone)
{
	struct map_printer *map = ctx;
	const struct kslab_sc *sc = part_of(map, zone);
	uint32_t left = sc != NULL ? sc->pages : 0;

	if (sc == NULL)
		return;
	if (sc->page != NULL)
		print_page(map, sc, sc->page);
	for (unsigned i = 0; i < 3; i++) {
		const struct kslab_page_list *list = i == 0   ? &sc->full
						     : i == 1 ? &sc->partial
							      : &sc->empty;
		const struct kslab_page *page = list->head;

		for (; page != NULL && left != 0; left--) {
			print_page(map, sc, page);
			page = page->next == list->head ? NULL : page->next;
		}
	}
}

static void print_class(struct map_printer *map)
{
	map->pages = 0;
	kslab_heap_each_zone(map->heap, print_zone, map);
	if (map->pages != 0)
		kslab_print_char(&map->printer, '\n');
}

void kslab_heap_print_map(struct kslab_heap *heap, void (*putc)(void *ctx, char c), void *ctx)
{
	struct map_printer map = { { putc, ctx, 0 }, heap, NULL, 0, 0 };

	if (heap->state != KSLAB_HEAP_READY)
		return;
	kslab_print_text(&map.printer,
			 "object pages: . empty  1 2 3 4 quarters live  # full  @ current\n", 0);
	for (; map.cls < KSLAB_CLASSES; map.cls++)
		print_class(&map);
	map.cls = 0;
	if (kslab_caches_enter(heap, false)) {
		for (map.cache = KSLAB_LOAD_ACQUIRE(&heap->caches); map.cache != NULL;
		     map.cache = map.cache->next)
			print_class(&map);
		kslab_caches_leave(heap);
	}
	kslab_print_pair(&map.printer, "large blocks: ", heap->large_blocks, ", ");
	kslab_print_pair(&map.printer, "", heap->large_pages, " pages\n");
}

void kslab_print_map(void (*putc)(void *ctx, char c), void *ctx)
{
	kslab_heap_print_map(&kslab_default_heap, putc, ctx);
}
