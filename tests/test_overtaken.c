/* SPDX-License-Identifier: MIT
 * test_overtaken.c - owns the calls that another CPU overtakes: at each instruction of one call another
 * call, right or wrong, comes and is over. Each scene stands for a fault that was there.
 * Rank: test.  Runs: one thread in single steps (x86) plays both CPUs.
 *
 * BUILD: -DKSLAB_CFG_HEADER='"fake_cpu.h"' -DKSLAB_CFG_CPUS=4 -DKSLAB_CFG_LEVELS=4
 */
#define _GNU_SOURCE
#include "testing.h"

#include <ucontext.h>

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

static void begin_empty(const struct kslab_config *config)
{
	if (memory == NULL) {
		memory = mmap(NULL, 2 * PAGES * PAGE, PROT_READ | PROT_WRITE,
			      MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
		assert_true((void *)memory != MAP_FAILED);
		memory += PAGES * PAGE - (uintptr_t)memory % (PAGES * PAGE);
	}
	madvise(memory, PAGES * PAGE, MADV_DONTNEED); /* reads as zero, for purge */
	memset(&heap, 0, sizeof(heap));
	memset(&recorder, 0, sizeof(recorder));
	fake_cpu = 0;
	target = got = NULL;
	wrong = NULL;
	assert_int_equal(kslab_heap_init(&heap, config), KSLAB_OK);
}

/* The same with memory, and three CPUs online. */
static void begin_with(const struct kslab_config *config)
{
	begin_empty(config);
	assert_int_equal(kslab_heap_add_region(&heap, memory, PAGES * PAGE), KSLAB_OK);
	for (fake_cpu = 1; fake_cpu < 3; fake_cpu++)
		assert_int_equal(kslab_heap_cpu_online(&heap, fake_cpu), KSLAB_OK);
	fake_cpu = 0;
	assert_non_null(kslab_heap_malloc(&heap, 64)); /* the window is placed, a leaf there */
}

static void begin_at(unsigned level, size_t retain_bytes)
{
	const struct kslab_config config = { .max_page_bytes = PAGE,
					     .retain_bytes = retain_bytes,
					     .debug_level = level,
					     .quarantine_objects = 1,
					     .report = recorder_report,
					     .report_ctx = &recorder };

	begin_with(&config);
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

/* may: when; NULL: always. stride: between the steps that are overtaken, from the 256th on. */
static void play_when(bool (*may)(void), const char *name, void (*op)(void),
		      void (*overtake)(size_t step), bool (*verify)(void), size_t stride)
{
	struct single_step step = { .name = name,
				    .op = op,
				    .may_interrupt = may,
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

static void play(const char *name, void (*op)(void), void (*overtake)(size_t step),
		 bool (*verify)(void), size_t stride)
{
	play_when(may_overtake, name, op, overtake, verify, stride);
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

/* ---- a second free that comes too late ------------------------------------------------------- */

static const struct late_scene {
	const char *name;
	size_t bytes, slot; /* which is freed twice */
	size_t next_bytes; /* of the page that gets the descriptor meanwhile; 0: none does */
	bool is_freed; /* the first free was before */
} late_scenes[] = {
	{ "second free, page gone", 2048, 1, 0, false },
	{ "second free, page gone, last word", 16, 255, 0, false },
	{ "second free, page gone, refused", 2048, 1, 0, true },
	{ "second free, next page the same", 2048, 1, 2048, false },
	{ "second free, next page the same, refused", 2048, 1, 2048, true },
	{ "second free, next page with fewer slots", 48, 80, 56, false },
	{ "second free, next page with fewer words", 16, 255, 24, false },
};
static const struct late_scene *late_scene;

/* The owner frees the object, its page goes, another one is made of the descriptor. */
static void free_and_release(size_t step)
{
	const struct kslab_page *page = kslab_page_map_find(&heap.map, (uintptr_t)target);
	const struct kslab_sc *sc = &heap.boot_zone.sc[kslab_class_of(late_scene->next_bytes)];

	(void)step;
	fake_cpu = 0;
	if (!late_scene->is_freed)
		kslab_heap_free(&heap, target);
	if (kslab_heap_reclaim(&heap, SIZE_MAX) != 1)
		is_wrong("the page did not go");
	if (late_scene->next_bytes != 0 &&
	    (!kslab_heap_reserve(&heap, late_scene->next_bytes, 1) || sc->empty.head != page))
		is_wrong("the descriptor was not used again");
	fake_cpu = 1;
}

static bool is_one_refused(void)
{
	for (unsigned round = 0; round < 2; round++) {
		for (fake_cpu = 2; fake_cpu != 0; fake_cpu--)
			(void)kslab_heap_quiesce(&heap);
		if (!kslab_heap_quiesce(&heap))
			is_wrong("what a second free has left is pending for ever");
		/* The descriptor's next life, too. */
		if (kslab_heap_malloc(&heap, late_scene->bytes) == NULL)
			is_wrong("no memory");
	}
	if (recorder.count != 1)
		is_wrong(recorder.count == 0 ? "a second free was not reported"
					     : "a second free was reported twice");
	else if (recorder.last.fault != KSLAB_FAULT_DOUBLE_FREE &&
		 (late_scene->next_bytes == 0 || late_scene->next_bytes == late_scene->bytes))
		is_wrong(recorder.last.what);
	check();
	return verdict();
}

static void a_second_free_whose_page_goes_back_meanwhile(void **state)
{
	(void)state;
	for (size_t i = 0; i < TESTING_COUNT(late_scenes); i++) {
		void *objects[256];

		late_scene = &late_scenes[i];
		begin(KEPT);
		for (size_t k = 0; k <= late_scene->slot; k++)
			assert_non_null(objects[k] = kslab_heap_malloc(&heap, late_scene->bytes));
		for (size_t k = 0; k < late_scene->slot; k++)
			kslab_heap_free(&heap, objects[k]);
		target = objects[late_scene->slot];
		if (late_scene->is_freed)
			kslab_heap_free(&heap, target);
		play(late_scene->name, op_free_stale, free_and_release, is_one_refused, 1);
	}
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
static struct fake_source frames;
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
					     .source_ctx = &frames,
					     .report = recorder_report,
					     .report_ctx = &recorder };

	fake_source_init(&frames, PAGE, 512, true);
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
		fake_source_fini(&frames);
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
		fake_source_fini(&frames);
	}
	memset(live, 0, sizeof(live));
}

/* ---- pages that change hands, at debug level 1 ------------------------------------------------ */

static void op_malloc_object(void)
{
	got = kslab_heap_malloc(&heap, 256);
}

static void op_go_offline(void)
{
	fake_cpu = 1;
	if (kslab_heap_cpu_offline(&heap, 1) != KSLAB_OK)
		is_wrong("the CPU does not go");
	fake_cpu = 0;
}

/* Right, and without the lock, which somebody may hold. */
static void measure_and_free(size_t step)
{
	unsigned cpu = fake_cpu;

	fake_cpu = 2;
	if (step % 2 == 0 && kslab_heap_usable_size(&heap, target) != 256)
		is_wrong("a live object has no size");
	kslab_heap_free(&heap, target);
	if (recorder.count != 0)
		is_wrong(recorder.last.what);
	fake_cpu = cpu;
}

static bool is_freed_once(void)
{
	check();
	if (recorder.count != 0)
		is_wrong(recorder.last.what);
	kslab_heap_free(&heap, target);
	if (got != target && recorder.count != 1)
		is_wrong("a free had no effect");
	return verdict();
}

static void a_free_in_a_page_that_changes_hands(void **state)
{
	const struct kslab_config config = { .max_page_bytes = PAGE,
					     .retain_bytes = KEPT,
					     .debug_level = 1,
					     .report = recorder_report,
					     .report_ctx = &recorder };

	(void)state;
	for (size_t i = 0; i < 2; i++) {
		begin_with(&config);
		fake_cpu = 1;
		assert_non_null(target = kslab_heap_malloc(&heap, 256));
		assert_non_null(kslab_heap_malloc(&heap, 256));
		fake_cpu = 0;
		if (i == 0)
			op_go_offline();
		play_when(NULL,
			  i == 0 ? "adopt, an object is freed" : "offline, an object is freed",
			  i == 0 ? op_malloc_object : op_go_offline, measure_and_free,
			  is_freed_once, 1);
	}
}

/* ---- base pages that are purged -------------------------------------------------------------- */

#define SLOT_BYTES ((size_t)1024)
#define SLOTS 16u /* of a page */

static unsigned char *slot[2 * SLOTS]; /* the first one of each page is live */
static unsigned char *live_slot; /* what is left of them */
static const unsigned char *purged; /* just now, so many bytes */
static size_t purged_bytes;

static void purge_memory(void *ctx, void *mem, size_t bytes)
{
	(void)ctx;
	purged = mem;
	purged_bytes = bytes;
	for (size_t i = 0; i < bytes; i += SLOT_BYTES / 2) /* few steps */
		((volatile unsigned char *)mem)[i] = 0;
	purged_bytes = 0;
}

static void op_purge(void)
{
	kslab_heap_purge_pages(&heap, NULL);
}

/* As many as the pages have slots. */
static void use_slots(void)
{
	unsigned char *taken[2 * SLOTS];

	for (size_t i = 0; i < TESTING_COUNT(taken); i++) {
		taken[i] = kslab_heap_malloc(&heap, SLOT_BYTES);
		if (taken[i] == NULL || taken[i] == live_slot ||
		    (taken[i] < purged + purged_bytes && taken[i] + SLOT_BYTES > purged))
			is_wrong("memory was issued that is live, or is being purged");
	}
	for (size_t i = 0; i < TESTING_COUNT(taken); i++)
		kslab_heap_free(&heap, taken[i]);
}

/* A wrong free, of what will be purged, is, or was; and the last right one of that page. */
static void free_in_a_purged_page(size_t step)
{
	unsigned first = step / 2 % 2 * SLOTS;

	fake_cpu = step % 2; /* an interrupt, or another CPU */
	live_slot = slot[SLOTS - first];
	kslab_heap_free(&heap, slot[first + 6]);
	if (recorder.count != 1 || recorder.last.fault != KSLAB_FAULT_DOUBLE_FREE ||
	    recorder.last.pointer != slot[first + 6])
		is_wrong("a second free was not refused at once");
	kslab_heap_free(&heap, slot[first]);
	use_slots();
	fake_cpu = 0;
}

/* Everything is free again, and goes. */
static bool is_all_there(void)
{
	check();
	use_slots();
	kslab_heap_free(&heap, live_slot);
	for (unsigned round = 0; round < 2; round++) {
		for (fake_cpu = 0; fake_cpu < 2; fake_cpu++) {
			(void)kslab_heap_reclaim(&heap, SIZE_MAX);
			kslab_heap_idle(&heap);
		}
		fake_cpu = 0;
	}
	check();
	if (recorder.count != 1)
		is_wrong("a right free was refused");
	if (heap.tally.pages[kslab_class_of(SLOT_BYTES)] != 0)
		is_wrong("a page that was purged is lost");
	return verdict();
}

static void frees_in_a_page_that_is_being_purged(void **state)
{
	const struct kslab_config config = { .retain_bytes = KEPT,
					     .purge = purge_memory,
					     .report = recorder_report,
					     .report_ctx = &recorder };

	(void)state;
	begin_with(&config);
	for (size_t i = 0; i < TESTING_COUNT(slot); i++)
		assert_non_null(slot[i] = kslab_heap_malloc(&heap, SLOT_BYTES));
	assert_true(slot[0] + (SLOTS - 1) * SLOT_BYTES == slot[SLOTS - 1]);
	for (size_t i = 0; i < TESTING_COUNT(slot); i++)
		if (i % SLOTS != 0)
			kslab_heap_free(&heap, slot[i]);
	kslab_zone_collect(&heap, &heap.boot_zone); /* none is current */
	play("purge, frees in the page", op_purge, free_in_a_purged_page, is_all_there, 3);
}

/* ---- a CPU that comes and goes --------------------------------------------------------------- */

static const struct kslab_zone *sought;
static size_t seen;

static void look_for_sought(void *ctx, struct kslab_zone *zone)
{
	(void)ctx;
	seen += zone == sought;
}

static void op_each_zone(void)
{
	kslab_heap_each_zone(&heap, look_for_sought, NULL);
}

static void op_quiesce_seen(void)
{
	seen = !kslab_heap_quiesce(&heap); /* what the CPU has freed is pending elsewhere */
}

static void op_class_stats_seen(void)
{
	struct kslab_class_stats stats;

	(void)kslab_heap_class_stats(&heap, KSLAB_CLASSES, &stats);
	seen = stats.live;
}

static void come_or_go(size_t step)
{
	(void)step;
	fake_cpu = 1;
	if ((heap.zone[1] == &kslab_zone_none ? kslab_heap_cpu_online(&heap, 1)
					      : kslab_heap_cpu_offline(&heap, 1)) != KSLAB_OK)
		is_wrong("a CPU can't come or go");
	fake_cpu = 0;
}

/* Not inside a zone: nothing that concerns other CPUs is looked at there. */
static bool may_come_or_go(void)
{
	return may_overtake() && heap.boot_zone.owner.key != 0;
}

static bool is_seen(void)
{
	if (seen != 1)
		is_wrong("a zone was missed, its CPU had come and gone");
	check();
	return verdict();
}

/* Offline at first; online at any instruction of the walk, and offline again soon after. */
static void a_zone_is_found_however_often_its_cpu_comes_and_goes(void **state)
{
	static const struct {
		const char *name;
		void (*op)(void);
		size_t window;
	} walks[] = {
		{ "each zone, its CPU comes and goes", op_each_zone, 48 },
		{ "quiesce, a CPU comes and goes", op_quiesce_seen, 6 },
		{ "figures, a CPU comes and goes", op_class_stats_seen, 6 },
	};

	(void)state;
	for (size_t i = 0; i < TESTING_COUNT(walks); i++) {
		struct single_step step = { .name = walks[i].name,
					    .op = walks[i].op,
					    .may_interrupt = may_come_or_go,
					    .interrupt = come_or_go,
					    .verify = is_seen,
					    .window = walks[i].window };
		void *object;
		bool good;

		begin(KEPT);
		fake_cpu = 2;
		assert_non_null(object = kslab_heap_malloc(&heap, 64));
		assert_non_null(kslab_heap_malloc(&heap, 64));
		fake_cpu = 1;
		assert_int_equal(kslab_heap_cache_init(&heap, &caches[0], "cache", 100, 0, NULL,
						       NULL),
				 KSLAB_OK);
		assert_non_null(kslab_cache_alloc(&caches[0]));
		kslab_heap_free(&heap, object); /* CPU 2 takes it in when it looks: no mail */
		sought = heap.zone[1];
		seen = 0;
		come_or_go(0);
		good = single_step_run(&step);
		print_message("# %s: %zu instructions, at %zu of them\n", step.name, step.steps,
			      step.interrupts);
		assert_true(good);
		assert_true(step.interrupts > 20);
	}
}

/* ---- the end of a heap ----------------------------------------------------------------------- */

static struct fake_source source; /* of the heap that ends: what has come back nobody may touch */
static struct kslab_heap *ending, fresh;
static size_t pieces; /* of memory, that heap has taken */
static ucontext_t walks, ends; /* CPU 0 walks the list of heaps, CPU 1 ends one of them */
static unsigned masked[2];
static bool is_over;

static void *take_piece(void *ctx, size_t pages)
{
	unsigned char *piece = memory + pieces * PAGE;

	(void)ctx;
	pieces += pages;
	return piece;
}

static void give_piece(void *ctx, void *mem, size_t pages)
{
	(void)ctx;
	(void)mem;
	(void)pages;
}

/* Of a CPU that spins, or whose turn is over. */
static void let_other_run(void)
{
	unsigned self = fake_cpu;

	masked[self] = fake_masked;
	fake_cpu = 1 - self;
	fake_masked = masked[fake_cpu];
	swapcontext(self == 0 ? &walks : &ends, self == 0 ? &ends : &walks);
}

static void end_heap(void)
{
	if (kslab_heap_fini(ending) != KSLAB_OK)
		is_wrong("the heap does not end");
	mprotect(ending, sizeof(*ending), PROT_NONE);
	is_over = true;
	let_other_run();
}

static void end_meanwhile(size_t step)
{
	static char stack[1 << 16];

	(void)step;
	fake_on_relax = let_other_run;
	getcontext(&ends);
	ends.uc_stack.ss_sp = stack;
	ends.uc_stack.ss_size = sizeof(stack);
	makecontext(&ends, end_heap, 0);
	let_other_run();
}

static bool is_ended(void)
{
	if (!is_over) /* it has waited: nobody walks any more */
		let_other_run();
	if (!is_over)
		is_wrong("the end of a heap waits for nobody");
	if (source.pages_out != 0)
		is_wrong("the end of a heap has left pages behind");
	check();
	return verdict();
}

/* Looked for in all heaps in pieces of 16 pages. */
static void op_add_region(void)
{
	if (kslab_heap_add_region(&heap, memory + PAGES / 2 * PAGE, 40 * PAGE) != KSLAB_OK)
		is_wrong("a region was refused");
}

static void op_take_page(void)
{
	if (kslab_heap_malloc(&heap, 20 * PAGE) == NULL)
		is_wrong("a page of the source was refused");
}

static void op_init(void)
{
	const struct kslab_config config = { 0 };

	if (kslab_heap_init(&fresh, &config) != KSLAB_OK)
		is_wrong("a heap does not begin");
}

static void a_heap_ends_when_nobody_walks_the_list_of_heaps(void **state)
{
	static const struct {
		const char *name;
		void (*op)(void);
		size_t stride;
	} scenes[] = {
		{ "add_region, a heap ends", op_add_region, 3 },
		{ "a page of the source, a heap ends", op_take_page, 3 },
		{ "init, a heap ends", op_init, 101 },
	};
	const struct kslab_config config = { .alloc_pages = take_piece,
					     .free_pages = give_piece,
					     .report = recorder_report,
					     .report_ctx = &recorder },
				  other = { .alloc_pages = fake_source_alloc,
					    .free_pages = fake_source_free,
					    .source_ctx = &source,
					    .emergency_pages = 1 };

	(void)state;
	ending = mmap(NULL, sizeof(*ending), PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS,
		      -1, 0);
	assert_true((void *)ending != MAP_FAILED);
	for (size_t i = 0; i < TESTING_COUNT(scenes); i++) {
		struct single_step step = { .name = scenes[i].name,
					    .op = scenes[i].op,
					    .interrupt = end_meanwhile,
					    .verify = is_ended,
					    .dense = 256,
					    .stride = scenes[i].stride };
		bool good;

		pieces = 0;
		begin_empty(&config);
		assert_non_null(kslab_heap_malloc(&heap, 64));
		fake_source_init(&source, PAGE, 64, true);
		assert_int_equal(kslab_heap_init(ending, &other), KSLAB_OK);
		kslab_heap_free(ending, kslab_heap_malloc(ending, 64));
		is_over = false;
		good = single_step_run_interrupted(&step);
		print_message("# %s: %zu instructions, at %zu of them\n", step.name, step.steps,
			      step.interrupts);
		assert_true(good);
		assert_true(step.interrupts > 20);
		assert_int_equal(kslab_heap_fini(ending), KSLAB_OK);
		fake_source_fini(&source);
	}
	munmap(ending, sizeof(*ending));
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(a_retention_lowered_while_a_block_is_freed),
		cmocka_unit_test(a_wrong_free_into_a_block_that_is_being_made),
		cmocka_unit_test(a_block_freed_while_it_is_resized),
		cmocka_unit_test(a_block_freed_twice_whose_descriptor_is_used_again),
		cmocka_unit_test(a_second_free_whose_page_goes_back_meanwhile),
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
		cmocka_unit_test(a_free_in_a_page_that_changes_hands),
		cmocka_unit_test(frees_in_a_page_that_is_being_purged),
		cmocka_unit_test(a_zone_is_found_however_often_its_cpu_comes_and_goes),
		cmocka_unit_test(a_heap_ends_when_nobody_walks_the_list_of_heaps),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
