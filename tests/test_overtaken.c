/* SPDX-License-Identifier: MIT
 * test_overtaken.c - owns the calls that another CPU overtakes: at each instruction of one call another
 * call, right or wrong, comes and is over. Each scene stands for a fault that was there.
 * Rank: test.  Runs: one thread in single steps (x86) plays both CPUs.
 *
 * BUILD: -DKSLAB_CFG_HEADER='"fake_cpu.h"' -DKSLAB_CFG_CPUS=4 -DKSLAB_CFG_LEVELS=4
 */
#define _GNU_SOURCE
#include "testing.h"

#include "bitfield.h"
#include "fake_cpu.h"
#include "heap.h"
#include "page_map.h"
#include "single_step.h"
#include <kslab/observe.h>

FAKE_CPU_DEFINE;

#define PAGE ((size_t)4096)
#define PAGES 2048u /* of the region */
#define KEPT ((size_t)1 << 20) /* a retention that holds all blocks of a scene */

static struct kslab_heap heap;
static struct recorder recorder;
static unsigned char *memory;
static void *target, *got; /* what op is about, and what it gave */
static const char *wrong;

static void is_wrong(const char *what)
{
	if (wrong == NULL)
		wrong = what;
}

static void begin_at(unsigned level, size_t retain_bytes)
{
	const struct kslab_config config = { .max_page_bytes = PAGE,
					     .retain_bytes = retain_bytes,
					     .debug_level = level,
					     .quarantine_objects = 1,
					     .report = recorder_report,
					     .report_ctx = &recorder };

	if (memory == NULL) {
		memory = mmap(NULL, 2 * PAGES * PAGE, PROT_READ | PROT_WRITE,
			      MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
		assert_true((void *)memory != MAP_FAILED);
		memory += PAGES * PAGE - (uintptr_t)memory % (PAGES * PAGE);
	}
	memset(&heap, 0, sizeof(heap));
	memset(&recorder, 0, sizeof(recorder));
	fake_cpu = 0;
	target = got = NULL;
	wrong = NULL;
	assert_int_equal(kslab_heap_init(&heap, &config), KSLAB_OK);
	assert_int_equal(kslab_heap_add_region(&heap, memory, PAGES * PAGE), KSLAB_OK);
	for (fake_cpu = 1; fake_cpu < 3; fake_cpu++)
		assert_int_equal(kslab_heap_cpu_online(&heap, fake_cpu), KSLAB_OK);
	fake_cpu = 0;
	assert_non_null(kslab_heap_malloc(&heap, 64)); /* the window is placed, a leaf there */
}

static void begin(size_t retain_bytes)
{
	begin_at(0, retain_bytes);
}

/* The other CPU waits while the lock is taken; what it does then is what it would do at once. */
static bool may_overtake(void)
{
	return fake_masked == 0;
}

/* stride: between the steps that are overtaken, from the 256th on. */
static void play(const char *name, void (*op)(void), void (*overtake)(size_t step),
		 bool (*verify)(void), size_t stride)
{
	struct single_step step = { .name = name,
				    .op = op,
				    .may_interrupt = may_overtake,
				    .interrupt = overtake,
				    .verify = verify,
				    .dense = 256,
				    .stride = stride };
	bool good = single_step_run_interrupted(&step);

	print_message("# %s: %zu instructions, overtaken at %zu, %zu wrong, the first at %zu\n",
		      name, step.steps, step.interrupts, step.failures, step.first_failure);
	assert_true(good);
	assert_true(step.interrupts > 20);
}

static bool verdict(void)
{
	if (wrong != NULL)
		fprintf(stderr, "%s\n", wrong);
	return wrong == NULL;
}

static void check(void)
{
	struct kslab_check_result result;

	if (!kslab_heap_check(&heap, &result))
		is_wrong(result.what);
}

/* Pages are free or in use, and none is given out twice. */
static void check_region(void)
{
	static unsigned char seen[PAGES];
	const struct kslab_region *region = &heap.region[0];
	uintptr_t first = region->base / PAGE;
	size_t free_pages = 0;
	unsigned char *block;

	for (unsigned order = 0; order < region->orders; order++)
		for (uintptr_t at = first >> order; at <= (first + region->pages - 1) >> order;
		     at++)
			if (kslab_bittree_test(region->order[order], at - (first >> order)))
				free_pages += (size_t)1 << order;
	if (free_pages != region->free_pages || free_pages + heap.pages_in_use != region->pages)
		is_wrong("pages of the region do not add up");
	memset(seen, 0, sizeof(seen));
	(void)kslab_heap_reclaim(&heap, SIZE_MAX);
	while ((block = kslab_heap_malloc(&heap, 5 * PAGE)) != NULL)
		for (size_t i = 0; i < 5; i++)
			if (seen[(size_t)(block - memory) / PAGE + i]++ != 0)
				is_wrong("a page was given out twice");
}

/* ---- large blocks ---------------------------------------------------------------------------- */

static void op_free(void)
{
	kslab_heap_free(&heap, target);
}

static void lower_retention(size_t step)
{
	(void)step;
	fake_cpu = 1;
	kslab_heap_set_retention(&heap, KSLAB_RETAIN_NONE);
	fake_cpu = 0;
}

static bool is_whole(void)
{
	check();
	if (recorder.count != 0)
		is_wrong(recorder.last.what);
	check_region();
	return verdict();
}

static void a_retention_lowered_while_a_block_is_freed(void **state)
{
	void *blocks[KSLAB_SPARE_BLOCKS + 1];

	(void)state;
	begin(KEPT);
	for (size_t i = 0; i < TESTING_COUNT(blocks); i++)
		assert_non_null(blocks[i] = kslab_heap_malloc(&heap, 40000));
	for (size_t i = 0; i < KSLAB_SPARE_BLOCKS; i++)
		kslab_heap_free(&heap, blocks[i]);
	target = blocks[KSLAB_SPARE_BLOCKS];
	play("free of a block, retention lowered", op_free, lower_retention, is_whole, 3);
}

static void op_malloc_block(void)
{
	got = kslab_heap_malloc(&heap, 10 * PAGE);
}

/* Into the middle of the block, before or after it is one: wrong in any case. */
static void free_inside(size_t step)
{
	struct kslab_zone *zone;

	(void)step;
	fake_cpu = 3; /* not online: owns nothing */
	kslab_heap_free(&heap, target);
	if (recorder.count != 1)
		is_wrong("a pointer into a block that is being made got no verdict");
	fake_cpu = 1; /* inside its zone an interrupt comes */
	zone = heap.zone[1];
	kslab_zone_enter(zone);
	kslab_heap_free(&heap, target);
	if (zone->owner.key != 0)
		is_wrong("a refused free has left a zone that somebody is in");
	kslab_zone_leave(zone);
	fake_cpu = 0;
}

static bool is_refused(void)
{
	const struct kslab_page *page = kslab_page_map_find(&heap.map, (uintptr_t)got);

	if (recorder.count != 2)
		is_wrong("a wrong free got no verdict");
	if (got != (unsigned char *)target - PAGE || page->bits[0].freed != page->slots)
		is_wrong("a wrong free has changed the block");
	check();
	return verdict();
}

static void a_wrong_free_into_a_block_that_is_being_made(void **state)
{
	(void)state;
	begin(KSLAB_RETAIN_NONE);
	target = kslab_heap_malloc(&heap, 10 * PAGE); /* where the next one will lie, too */
	kslab_heap_free(&heap, target);
	target = (unsigned char *)target + PAGE;
	/* Its descriptor is a fresh one. */
	while (heap.meta.free[KSLAB_DESCRIPTOR_LARGE] != NULL)
		heap.meta.free[KSLAB_DESCRIPTOR_LARGE] =
			heap.meta.free[KSLAB_DESCRIPTOR_LARGE]->next;
	play("malloc of a block, wrong free into it", op_malloc_block, free_inside, is_refused, 3);
}

static size_t resize_to;

static void op_resize(void)
{
	got = kslab_heap_realloc(&heap, target, resize_to);
}

static void free_elsewhere(size_t step)
{
	(void)step;
	fake_cpu = 1;
	kslab_heap_free(&heap, target);
	fake_cpu = 0;
}

/* Whoever came second was refused, or freed what the other had moved. */
static bool is_sane(void)
{
	for (unsigned cpu = 0; cpu < 2; cpu++) {
		const struct kslab_zone *zone = heap.zone[cpu];
		size_t run = 0;

		for (unsigned i = 0; i < zone->spares; i++)
			run += zone->spare[i]->slots;
		if (run != zone->spare_run)
			is_wrong("the spare blocks of a zone do not add up");
	}
	check();
	check_region();
	return verdict();
}

static void a_block_freed_while_it_is_resized(void **state)
{
	static const struct {
		const char *name;
		size_t from, to, retain;
		bool has_room;
	} scenes[] = {
		{ "shrinks", 40, 20, KSLAB_RETAIN_NONE, false },
		{ "shrinks, is kept", 40, 20, KEPT, false },
		{ "grows", 40, 50, KSLAB_RETAIN_NONE, false },
		{ "grows, is kept", 40, 50, KEPT, false },
		{ "grows into a spare block", 64, 70, 4 * KEPT, true },
		{ "swallows a spare block", 64, 140, 4 * KEPT, true },
	};

	(void)state;
	for (size_t i = 0; i < TESTING_COUNT(scenes); i++) {
		void *room;

		begin(scenes[i].retain);
		target = kslab_heap_malloc(&heap, scenes[i].from * PAGE);
		room = scenes[i].has_room ? kslab_heap_malloc(&heap, scenes[i].from * PAGE) : NULL;
		kslab_heap_free(&heap, room);
		resize_to = scenes[i].to * PAGE;
		play(scenes[i].name, op_resize, free_elsewhere, is_sane, 3);
	}
}

static void op_free_stale(void)
{
	fake_cpu = 1;
	kslab_heap_free(&heap, target);
	fake_cpu = 0;
}

/* The block goes, and its descriptor becomes that of another one. */
static void free_and_reuse(size_t step)
{
	(void)step;
	fake_cpu = 0;
	kslab_heap_free(&heap, target);
	assert_non_null(kslab_heap_malloc(&heap, 64));
	got = kslab_heap_malloc(&heap, 20 * PAGE);
	fake_cpu = 1;
}

static bool is_other_block_live(void)
{
	const struct kslab_page *page;

	if (got != NULL && got != target) {
		page = kslab_page_map_find(&heap.map, (uintptr_t)got);
		if (KSLAB_LOAD_RELAXED(&page->owner) != kslab_large_tag(&heap))
			is_wrong("the free of a block that is gone has ended another one");
	}
	check();
	return verdict();
}

static void a_block_freed_twice_whose_descriptor_is_used_again(void **state)
{
	(void)state;
	begin(KSLAB_RETAIN_NONE);
	target = kslab_heap_malloc(&heap, 300 * PAGE);
	play("second free of a block", op_free_stale, free_and_reuse, is_other_block_live, 3);
}

/* ---- caches ---------------------------------------------------------------------------------- */

static struct kslab_cache caches[3];
static void op_look(void)
{
	struct kslab_class_stats one;
	struct kslab_stats stats;

	kslab_heap_stats(&heap, &stats);
	(void)kslab_heap_class_stats(&heap, KSLAB_CLASSES + 1, &one);
	if (stats.large_blocks > 10 || stats.large_pages > PAGES)
		is_wrong("figures went below zero");
}

static void end_a_cache(size_t step)
{
	struct kslab_cache *cache = &caches[step % TESTING_COUNT(caches)];

	fake_cpu = 1;
	if (kslab_cache_destroy(cache) == KSLAB_OK)
		memset(cache, 0xff, sizeof(*cache)); /* its memory is the caller's again */
	fake_cpu = 0;
}

static bool ends_later(void)
{
	fake_cpu = 1;
	for (size_t i = 0; i < TESTING_COUNT(caches); i++)
		if (caches[i].heap == &heap && kslab_cache_destroy(&caches[i]) != KSLAB_OK)
			is_wrong("a cache that nobody looks at does not end");
	fake_cpu = 0;
	return is_whole();
}

static void a_cache_that_ends_while_figures_are_read(void **state)
{
	(void)state;
	begin(KEPT);
	for (size_t i = 0; i < TESTING_COUNT(caches); i++) {
		void *object;

		assert_int_equal(kslab_heap_cache_init(&heap, &caches[i], "cache", 100 + i, 0, NULL,
						       NULL),
				 KSLAB_OK);
		fake_cpu = 1; /* which ends it, and has nobody to wait for */
		assert_non_null(object = kslab_cache_alloc(&caches[i]));
		kslab_cache_free(&caches[i], object);
		fake_cpu = 0;
	}
	play("stats, a cache ends", op_look, end_a_cache, ends_later, 5);
}

/* Counted in none of the totals that were read before, and spare in the zones that are read after. */
static void blocks_come_and_go(size_t step)
{
	void *blocks[4];

	(void)step;
	fake_cpu = 1;
	for (size_t i = 0; i < TESTING_COUNT(blocks); i++)
		assert_non_null(blocks[i] = kslab_heap_malloc(&heap, 8 * PAGE));
	for (size_t i = 0; i < TESTING_COUNT(blocks); i++)
		kslab_heap_free(&heap, blocks[i]);
	fake_cpu = 0;
}

static void blocks_that_come_and_go_while_figures_are_read(void **state)
{
	(void)state;
	begin(KEPT);
	play("stats, blocks come and go", op_look, blocks_come_and_go, is_whole, 31);
}

/* ---- pages that are wanted ------------------------------------------------------------------- */

#define OBJECTS 16u /* a page of them */

static void op_quiesce(void)
{
	(void)kslab_heap_quiesce(&heap);
}

static void op_reclaim(void)
{
	(void)kslab_heap_reclaim(&heap, 1);
}

static void free_in_limbo(size_t step)
{
	(void)step;
	fake_cpu = 2;
	kslab_heap_free(&heap, target);
	fake_cpu = 0;
}

/* The slot that was freed serves when nothing else does. */
static bool is_found(void)
{
	heap.max_pages = 1;
	if (kslab_heap_malloc(&heap, 256) == NULL)
		is_wrong("a free slot in a page of a CPU that is gone is not found");
	heap.max_pages = 0;
	check();
	return verdict();
}

static void a_full_page_of_limbo_that_gets_mail(void **state)
{
	void (*const ops[])(void) = { op_quiesce, op_reclaim };

	(void)state;
	for (size_t i = 0; i < TESTING_COUNT(ops); i++) {
		void *objects[OBJECTS];

		begin(KSLAB_RETAIN_NONE);
		fake_cpu = 1;
		for (size_t k = 0; k < OBJECTS; k++)
			assert_non_null(objects[k] = kslab_heap_malloc(&heap, 256));
		assert_int_equal(kslab_heap_cpu_offline(&heap, 1), KSLAB_OK);
		fake_cpu = 0;
		target = objects[0];
		play(i == 0 ? "quiesce, mail for limbo" : "reclaim, mail for limbo", ops[i],
		     free_in_limbo, is_found, 3);
	}
}

static void *spread[1280]; /* a live object in each of 40 pages, and the rest */
static bool is_inside;

/* While CPU 0 serves the first request, it is served to its end, and another one begun. */
static void ask_again(void *ctx, void *mem, size_t pages)
{
	fake_source_free(ctx, mem, pages);
	if (!is_inside || fake_cpu != 0)
		return;
	is_inside = false;
	kslab_heap_trim(&heap, 0);
	fake_cpu = 1;
	for (size_t i = 0; i < TESTING_COUNT(spread); i += 32)
		kslab_heap_free(&heap, spread[i]);
	(void)kslab_heap_reclaim(&heap, 1000);
	fake_cpu = 0;
	kslab_heap_trim(&heap, 0);
}

static void a_request_while_another_one_is_served_is_not_forgotten(void **state)
{
	static struct testing t;
	const struct kslab_config config = { .max_page_bytes = PAGE, .retain_bytes = KEPT };
	const struct kslab_sc *sc = &heap.boot_zone.sc[kslab_class_of(128)];
	void *object;

	(void)state;
	fake_source_init(&t.source, PAGE, 512, false);
	memset(&heap, 0, sizeof(heap));
	assert_int_equal(kslab_heap_init(&heap, &config), KSLAB_OK);
	assert_int_equal(kslab_heap_set_page_source(&heap, fake_source_alloc, ask_again, &t.source),
			 KSLAB_OK);
	fake_cpu = 1;
	assert_int_equal(kslab_heap_cpu_online(&heap, 1), KSLAB_OK);
	fake_cpu = 0;
	for (size_t i = 0; i < TESTING_COUNT(spread); i++)
		assert_non_null(spread[i] = kslab_heap_malloc(&heap, 128));
	for (size_t i = 0; i < TESTING_COUNT(spread); i++)
		if (i % 32 != 0)
			kslab_heap_free(&heap, spread[i]);
	(void)kslab_heap_reclaim(&heap, 100);
	kslab_heap_idle(&heap);
	assert_true(sc->pages >= 40);
	object = kslab_heap_malloc(&heap, 2048);
	fake_cpu = 1;
	kslab_heap_free(&heap, object);
	(void)kslab_heap_reclaim(&heap, 1000);
	fake_cpu = 0;
	for (size_t i = 0; i < 100 && heap.boot_zone.reclaim_epoch != heap.reclaim_epoch; i++) {
		is_inside = true;
		kslab_heap_trim(&heap, 0);
		if (!is_inside)
			break;
	}
	is_inside = false;
	for (size_t i = 0; i < 50; i++)
		kslab_heap_trim(&heap, 0);
	assert_true(kslab_heap_check(&heap, NULL));
	assert_true(sc->pages <= 1);
	assert_int_equal(kslab_heap_fini(&heap), KSLAB_OK);
	fake_source_fini(&t.source);
}

/* ---- debug levels ---------------------------------------------------------------------------- */

#define LIVE 48u
static unsigned char *live[LIVE];

/* All of what is in the cache is lost; what its pages were is somebody else's at once. */
static void destroy_forced(size_t step)
{
	(void)step;
	fake_cpu = 1;
	(void)kslab_cache_destroy_forced(&caches[0]);
	for (size_t i = 0; i < TESTING_COUNT(live); i++) {
		live[i] = kslab_heap_malloc(&heap, 200);
		assert_non_null(live[i]);
		memset(live[i], 0x11, 200);
	}
	fake_cpu = 0;
}

static bool are_live(void)
{
	for (size_t i = 0; i < TESTING_COUNT(live); i++) {
		if (live[i] != NULL && kslab_heap_usable_size(&heap, live[i]) != 200)
			is_wrong("a live object was freed by nobody");
		live[i] = NULL;
	}
	if (recorder.count != 0)
		is_wrong(recorder.last.what);
	fake_cpu = 1;
	if (kslab_cache_destroy(&caches[0]) != KSLAB_OK)
		is_wrong("the cache does not end");
	fake_cpu = 0;
	check();
	return verdict();
}

/* What leaves the quarantine is on its way to its page when that has gone. */
static void a_cache_that_is_destroyed_while_its_object_leaves_the_quarantine(void **state)
{
	void *object;

	(void)state;
	begin_at(2, KSLAB_RETAIN_NONE);
	assert_int_equal(kslab_heap_cache_init(&heap, &caches[0], "cache", 200, 0, NULL, NULL),
			 KSLAB_OK);
	target = kslab_heap_malloc(&heap, 64);
	fake_cpu = 1;
	object = kslab_cache_alloc(&caches[0]);
	assert_non_null(kslab_cache_alloc(&caches[0]));
	kslab_cache_free(&caches[0], object);
	fake_cpu = 0;
	play("object leaves the quarantine", op_free, destroy_forced, are_live, 1);
}

/* Another CPU finds a broken link, and makes its lists anew from the page map. */
static void break_a_link(size_t step)
{
	struct kslab_page *page = kslab_page_map_find(&heap.map, (uintptr_t)live[0]);

	(void)step;
	page->next = (struct kslab_page *)0x55555555;
	fake_cpu = 1;
	for (size_t i = 1; i < TESTING_COUNT(live); i++)
		if (kslab_page_map_find(&heap.map, (uintptr_t)live[i]) != page)
			kslab_heap_free(&heap, live[i]);
	fake_cpu = 0;
}

static bool is_resized(void)
{
	if (got == NULL || kslab_heap_usable_size(&heap, got) != resize_to)
		is_wrong("the block is none any more");
	if (recorder.count != 1 || recorder.last.fault != KSLAB_FAULT_CORRUPT_METADATA)
		is_wrong("the broken link is not what was found");
	check();
	return verdict();
}

/* Objects of a CPU in several pages, of each of which one slot is free; live[0] is in the first one. */
static void fill_pages(unsigned cpu)
{
	unsigned char *object;
	uintptr_t page = 0;

	fake_cpu = cpu;
	for (size_t i = 0; i < TESTING_COUNT(live); i++)
		live[i] = kslab_heap_malloc(&heap, 1000);
	for (size_t i = 0; i < TESTING_COUNT(live); i++) /* partial pages */
		if ((uintptr_t)live[i] / PAGE != page) {
			page = (uintptr_t)live[i] / PAGE;
			object = live[i];
			live[i] = NULL;
			kslab_heap_free(&heap, object);
		}
	live[0] = live[1];
	fake_cpu = 0;
}

static void a_block_that_is_resized_while_bad_pages_are_fenced_off(void **state)
{
	(void)state;
	begin_at(1, KSLAB_RETAIN_NONE);
	fill_pages(1);
	target = kslab_heap_malloc(&heap, 40 * PAGE);
	resize_to = 20 * PAGE;
	play("shrinks, pages are fenced off", op_resize, break_a_link, is_resized, 3);
	memset(live, 0, sizeof(live));
}

/* Whoever frees what the resize gave, too, is told so; nothing is free twice. */
static bool is_freed_once(void)
{
	static void *all[40];

	if (recorder.count == 0)
		kslab_heap_free(&heap, got);
	if (recorder.count == 0)
		is_wrong("freed twice, and nobody was told");
	if (recorder.count == 1 && recorder.last.fault != KSLAB_FAULT_DOUBLE_FREE)
		is_wrong(recorder.last.what);
	(void)kslab_heap_reclaim(&heap, 0); /* the quarantine is empty */
	for (size_t i = 0; i < TESTING_COUNT(all); i++) {
		assert_non_null(all[i] = kslab_heap_malloc(&heap, resize_to));
		for (size_t k = 0; k < i; k++)
			if (all[k] == all[i])
				is_wrong("a slot was given out twice");
	}
	check();
	return verdict();
}

static void an_object_freed_while_it_is_resized_in_place(void **state)
{
	(void)state;
	begin_at(2, KSLAB_RETAIN_NONE);
	for (resize_to = 195; resize_to <= 205; resize_to += 10) {
		target = kslab_heap_malloc(&heap, 200);
		play("in place at level 2", op_resize, free_elsewhere, is_freed_once, 1);
	}
}

#define PIECE ((size_t)1900)
static unsigned char *pieces[200];

/* The block goes, and what lay there is others' in small pieces, but for where it began. */
static void free_and_take(size_t step)
{
	(void)step;
	fake_cpu = 1;
	kslab_heap_free(&heap, target);
	for (size_t i = 0; i < TESTING_COUNT(pieces); i++) {
		assert_non_null(pieces[i] = kslab_heap_malloc(&heap, PIECE));
		memset(pieces[i], 0x22, PIECE);
	}
	for (size_t i = 0; i < TESTING_COUNT(pieces); i++)
		if (pieces[i] == target) {
			kslab_heap_free(&heap, pieces[i]);
			pieces[i] = NULL;
		}
	fake_cpu = 0;
}

static bool are_untouched(void)
{
	for (size_t i = 0; i < TESTING_COUNT(pieces); i++)
		for (size_t k = 0; k < PIECE && pieces[i] != NULL; k++)
			if (pieces[i][k] != 0x22)
				is_wrong("an object of another CPU was written to");
	check();
	return verdict();
}

static void a_block_that_is_resized_at_a_debug_level_is_nobody_elses(void **state)
{
	static const size_t sizes[] = { 20 * PAGE - 300, 20 * PAGE - 20, 18 * PAGE, 22 * PAGE };

	(void)state;
	for (size_t i = 0; i < TESTING_COUNT(sizes); i++) {
		begin_at(1, KSLAB_RETAIN_NONE);
		target = kslab_heap_malloc(&heap, 20 * PAGE - 100);
		resize_to = sizes[i];
		play("resized at level 1", op_resize, free_and_take, are_untouched, 3);
	}
}

/* ---- observers ------------------------------------------------------------------------------- */

#define KEPT_OBJECTS 24u
static struct fake_source source;
static unsigned char *kept[KEPT_OBJECTS];
static struct kslab_mark mark;

/* Memory that went back can't be touched. Some objects stay, between others that go. */
static void begin_to_look(unsigned level)
{
	const struct kslab_config config = { .max_page_bytes = PAGE,
					     .retain_bytes = KSLAB_RETAIN_NONE,
					     .debug_level = level,
					     .quarantine_objects = 4,
					     .alloc_pages = fake_source_alloc,
					     .free_pages = fake_source_free,
					     .source_ctx = &source,
					     .report = recorder_report,
					     .report_ctx = &recorder };

	fake_source_init(&source, PAGE, 512, true);
	memset(&heap, 0, sizeof(heap));
	memset(&recorder, 0, sizeof(recorder));
	wrong = NULL;
	fake_cpu = 0;
	assert_int_equal(kslab_heap_init(&heap, &config), KSLAB_OK);
	fake_cpu = 1;
	assert_int_equal(kslab_heap_cpu_online(&heap, 1), KSLAB_OK);
	for (size_t i = 0; i < TESTING_COUNT(kept); i++) {
		fake_cpu = 1;
		live[2 * i] = kslab_heap_malloc(&heap, 900);
		live[2 * i + 1] = kslab_heap_malloc(&heap, 900);
		fake_cpu = 0;
		kept[i] = kslab_heap_malloc(&heap, i % 4 == 3 ? 3 * PAGE : 900);
	}
	memset(&mark, 0, sizeof(mark));
}

/* Pages go back; their descriptors, and where they lay, are those of others. */
static void pages_go(size_t step)
{
	(void)step;
	fake_cpu = 1;
	for (size_t i = 0; i < TESTING_COUNT(live); i++)
		kslab_heap_free(&heap, live[i]);
	(void)kslab_heap_reclaim(&heap, SIZE_MAX);
	for (size_t i = 0; i < 4; i++) {
		assert_non_null(kslab_heap_malloc(&heap, 2 * PAGE));
		assert_non_null(kslab_heap_malloc(&heap, 3000));
	}
	fake_cpu = 0;
}

static void ignore(void *ctx, char c)
{
	(void)ctx;
	(void)c;
}

static void op_print(void)
{
	kslab_heap_print_map(&heap, ignore, NULL);
}

static void op_mark(void)
{
	if (kslab_heap_mark(&heap, &mark) != KSLAB_OK)
		is_wrong("no mark");
}

static bool is_new(void *ctx, void *object, size_t bytes)
{
	(void)ctx;
	(void)bytes;
	for (size_t i = 0; i < TESTING_COUNT(kept); i++)
		if (object == kept[i])
			is_wrong("an object that is older than the mark");
	return true;
}

static void op_diff(void)
{
	(void)kslab_diff(&mark, is_new, NULL);
}

static bool is_mark_whole(void)
{
	op_diff();
	kslab_unmark(&mark);
	check();
	return verdict();
}

static bool is_well(void)
{
	check();
	return verdict();
}

static void pages_that_go_while_somebody_looks(void **state)
{
	(void)state;
	for (unsigned level = 0; level < 3; level += 2) {
		begin_to_look(level);
		play("stats, pages go", op_look, pages_go, is_well, 37);
		play("print_map, pages go", op_print, pages_go, is_well, 37);
		play("mark, pages go", op_mark, pages_go, is_mark_whole, 61);
		kslab_unmark(&mark);
		op_mark();
		play("diff, pages go", op_diff, pages_go, is_well, 61);
		fake_source_fini(&source);
		memset(live, 0, sizeof(live));
	}
}

/* The one that has the lock is stopped for good, as by a panic elsewhere. */
static void the_map_is_printed_while_the_lock_is_taken(void **state)
{
	(void)state;
	for (unsigned level = 0; level < 3; level++) {
		struct kslab_lock_state lock;

		begin_to_look(level);
		assert_true(kslab_heap_lock(&heap, &lock));
		alarm(SINGLE_STEP_HANGS);
		op_print();
		alarm(0);
		kslab_heap_unlock(&heap, &lock);
		assert_true(is_well());
		fake_source_fini(&source);
	}
	memset(live, 0, sizeof(live));
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(a_retention_lowered_while_a_block_is_freed),
		cmocka_unit_test(a_wrong_free_into_a_block_that_is_being_made),
		cmocka_unit_test(a_block_freed_while_it_is_resized),
		cmocka_unit_test(a_block_freed_twice_whose_descriptor_is_used_again),
		cmocka_unit_test(a_cache_that_ends_while_figures_are_read),
		cmocka_unit_test(blocks_that_come_and_go_while_figures_are_read),
		cmocka_unit_test(a_full_page_of_limbo_that_gets_mail),
		cmocka_unit_test(a_request_while_another_one_is_served_is_not_forgotten),
		cmocka_unit_test(a_cache_that_is_destroyed_while_its_object_leaves_the_quarantine),
		cmocka_unit_test(a_block_that_is_resized_while_bad_pages_are_fenced_off),
		cmocka_unit_test(an_object_freed_while_it_is_resized_in_place),
		cmocka_unit_test(a_block_that_is_resized_at_a_debug_level_is_nobody_elses),
		cmocka_unit_test(pages_that_go_while_somebody_looks),
		cmocka_unit_test(the_map_is_printed_while_the_lock_is_taken),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
