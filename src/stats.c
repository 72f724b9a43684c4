/* SPDX-License-Identifier: MIT
 * stats.c - owns the figures of a heap, and slabinfo as text.
 * Rank: 6.  Runs anywhere; exact on a quiet heap. Reads only.
 */
#include "debug.h"
#include "heap.h"
#include "print.h"

struct class_sum {
	struct kslab_heap *heap;
	unsigned index; /* class, or KSLAB_CLASSES + cache number */
	struct kslab_class_stats *out;
	const struct kslab_cache *cache;
};

static void sum_page(void *ctx, const struct kslab_page *page)
{
	struct class_sum *sum = ctx;
	struct kslab_class_stats *out = sum->out;
	uint32_t live = kslab_debug_live(sum->heap, page);
	size_t bytes = (size_t)page->pages << sum->heap->page_shift;

	out->live += live;
	out->slots += page->slots;
	out->object_pages++;
	out->base_pages += page->pages;
	if (live == 0)
		out->empty_pages += page->pages;
	out->waste_bytes += bytes - (size_t)page->slots * out->size +
			    kslab_page_descriptor_bytes(kslab_page_words(page));
}

static void sum_zone(void *ctx, struct kslab_zone *zone)
{
	struct class_sum *sum = ctx;
	struct kslab_cache_zone *own;

	if (sum->cache == NULL) {
		kslab_sc_each(&zone->sc[sum->index], sum_page, sum);
		return;
	}
	own = KSLAB_LOAD_ACQUIRE(&sum->cache->zones[kslab_zone_index(zone)]);
	if (own != NULL && zone != sum->heap->limbo)
		kslab_sc_each(&own->sc, sum_page, sum);
}

/* has_caches: inside kslab_caches_enter. */
static bool class_stats(struct kslab_heap *heap, unsigned index, bool has_caches,
			struct kslab_class_stats *out, const char **name)
{
	struct class_sum sum = { heap, index, out, NULL };

	memset(out, 0, sizeof(*out));
	*name = NULL;
	if (heap->state != KSLAB_HEAP_READY)
		return false;
	if (index < KSLAB_CLASSES) {
		out->size = kslab_class_bytes(index);
		out->peak_pages = KSLAB_LOAD_RELAXED(&heap->tally.pages_peak[index]);
	} else {
		sum.cache = has_caches ? KSLAB_LOAD_ACQUIRE(&heap->caches) : NULL;
		for (unsigned i = KSLAB_CLASSES; sum.cache != NULL && i < index; i++)
			sum.cache = sum.cache->next;
		if (sum.cache == NULL)
			return false;
		out->size = sum.cache->slot_bytes;
		out->peak_pages = KSLAB_LOAD_RELAXED(&sum.cache->pages_peak);
		*name = sum.cache->name;
	}
	kslab_heap_each_zone(heap, sum_zone, &sum);
	return true;
}

bool kslab_heap_class_stats(struct kslab_heap *heap, unsigned index, struct kslab_class_stats *out)
{
	bool has_caches = index >= KSLAB_CLASSES && kslab_caches_enter(heap, true), found;
	const char *name;

	found = class_stats(heap, index, has_caches, out, &name);
	if (has_caches)
		kslab_caches_leave(heap);
	return found;
}

/* Blocks that lie spare were counted with the live ones; they come and go meanwhile. */
static void leave_spares_out(struct kslab_stats *out, size_t blocks, size_t pages)
{
	out->large_blocks -= out->large_blocks < blocks ? out->large_blocks : blocks;
	out->large_pages -= out->large_pages < pages ? out->large_pages : pages;
	out->empty_pages += pages;
}

static void sum_counters(void *ctx, struct kslab_zone *zone)
{
	struct kslab_stats *out = ctx;
	unsigned spares = 0;

	out->counters.slow_allocs += zone->counters.slow_allocs;
	out->counters.slow_frees += zone->counters.slow_frees;
	out->remote_frees += KSLAB_LOAD_RELAXED(&zone->owner.remote_frees);
	out->harvested += KSLAB_LOAD_RELAXED(&zone->owner.harvested);
	out->counters.mails += zone->counters.mails;
	out->counters.pages_made += zone->counters.pages_made;
	out->counters.pages_released += zone->counters.pages_released;
	out->counters.failures += zone->counters.failures;
	while (spares < KSLAB_SPARE_BLOCKS && zone->spare[spares] != NULL)
		spares++;
	leave_spares_out(out, spares, zone->spare_run);
}

static void sum_stats(struct kslab_heap *heap, bool has_caches, struct kslab_stats *out)
{
	struct kslab_class_stats one;
	const char *name;

	memset(out, 0, sizeof(*out));
	out->page_bytes = heap->page_bytes;
	out->pages_in_use = heap->pages_in_use;
	out->pages_peak = heap->pages_peak;
	out->metadata_pages = heap->meta.pages;
	out->large_pages = heap->large_pages;
	out->large_blocks = heap->large_blocks;
	out->lock_acquisitions = heap->lock_acquisitions;
	for (unsigned i = 0; class_stats(heap, i, has_caches, &one, &name); i++) {
		out->live_objects += one.live;
		out->object_bytes += one.live * one.size;
		out->empty_pages += one.empty_pages;
	}
	kslab_heap_each_zone(heap, sum_counters, out);
	out->remote_frees += KSLAB_LOAD_RELAXED(&heap->zoneless_frees);
	for (unsigned i = 0; i < KSLAB_REASON_COUNT; i++)
		out->failed[i] = KSLAB_LOAD_RELAXED(&heap->tally.failed[i]);
	out->cpus_online = heap->cpus_online;
}

void kslab_heap_stats(struct kslab_heap *heap, struct kslab_stats *out)
{
	bool has_caches;

	memset(out, 0, sizeof(*out));
	if (heap->state != KSLAB_HEAP_READY)
		return;
	has_caches = kslab_caches_enter(heap, true);
	sum_stats(heap, has_caches, out);
	if (has_caches)
		kslab_caches_leave(heap);
}

/* ---- text ------------------------------------------------------------------------------------ */

/* part / whole in percent, rounded to the nearest. */
static size_t percent(size_t part, size_t whole)
{
	if (whole == 0)
		return 0;
	while (part > SIZE_MAX / 200) {
		part /= 2;
		whole /= 2;
	}
	return kslab_divide(100 * part + whole / 2, whole);
}

static void print_row(struct kslab_printer *printer, const char *name,
		      const struct kslab_class_stats *row, size_t page_bytes)
{
	size_t taken = row->base_pages * page_bytes;

	kslab_print_text(printer, name != NULL ? name : "", 16);
	kslab_print_number(printer, row->size, 7);
	kslab_print_number(printer, row->live, 9);
	kslab_print_number(printer, row->slots, 9);
	kslab_print_number(printer, row->base_pages, 8);
	kslab_print_number(printer, row->peak_pages, 8);
	kslab_print_number(printer, row->empty_pages, 7);
	kslab_print_number(printer, percent(taken - row->live * row->size, taken), 6);
	kslab_print_text(printer, "%\n", 0);
}

static void print_totals(struct kslab_printer *printer, const struct kslab_stats *stats)
{
	const struct kslab_zone_counters *counters = &stats->counters;
	const char *before = "failed: ";

	kslab_print_pair(printer, "pages: ", stats->pages_in_use, " in use, ");
	kslab_print_pair(printer, "", stats->pages_peak, " at most, ");
	kslab_print_pair(printer, "", stats->metadata_pages, " metadata, ");
	kslab_print_pair(printer, "", stats->large_pages, " in ");
	kslab_print_pair(printer, "", stats->large_blocks, " large blocks, ");
	kslab_print_pair(printer, "", stats->empty_pages, " empty\n");
	kslab_print_pair(printer, "objects: ", stats->live_objects, " live, ");
	kslab_print_pair(printer, "", stats->object_bytes, " bytes\n");
	kslab_print_pair(printer, "calls: ", counters->slow_allocs, " slow allocations, ");
	kslab_print_pair(printer, "", counters->slow_frees, " slow frees, ");
	kslab_print_pair(printer, "", stats->remote_frees, " remote frees, ");
	kslab_print_pair(printer, "", counters->mails, " mails, ");
	kslab_print_pair(printer, "", stats->lock_acquisitions, " locks\n");
	kslab_print_pair(printer, "object pages: ", counters->pages_made, " made, ");
	kslab_print_pair(printer, "", counters->pages_released, " given back\n");
	for (unsigned i = 0; i < KSLAB_REASON_COUNT; i++) {
		if (stats->failed[i] == 0)
			continue;
		kslab_print_pair(printer, before, stats->failed[i], " ");
		kslab_print_text(printer, kslab_reason_name((enum kslab_reason)i), 0);
		before = ", ";
	}
	if (before[0] == ',')
		kslab_print_text(printer, "\n", 0);
}

void kslab_heap_print(struct kslab_heap *heap, void (*putc)(void *ctx, char c), void *ctx)
{
	struct kslab_printer printer = { putc, ctx, 0 };
	struct kslab_class_stats row;
	struct kslab_stats stats;
	const char *name;
	bool has_caches;

	memset(&stats, 0, sizeof(stats));
	has_caches = heap->state == KSLAB_HEAP_READY && kslab_caches_enter(heap, true);
	if (heap->state == KSLAB_HEAP_READY)
		sum_stats(heap, has_caches, &stats);
	kslab_print_text(
		&printer,
		"class              size   in use    slots   pages    peak  empty  waste\n", 0);
	for (unsigned i = 0; class_stats(heap, i, has_caches, &row, &name); i++)
		if (row.peak_pages != 0)
			print_row(&printer, name, &row, stats.page_bytes);
	if (has_caches)
		kslab_caches_leave(heap);
	print_totals(&printer, &stats);
}

void kslab_stats(struct kslab_stats *out)
{
	kslab_heap_stats(&kslab_default_heap, out);
}

bool kslab_class_stats(unsigned index, struct kslab_class_stats *out)
{
	return kslab_heap_class_stats(&kslab_default_heap, index, out);
}

void kslab_print(void (*putc)(void *ctx, char c), void *ctx)
{
	kslab_heap_print(&kslab_default_heap, putc, ctx);
}
