/* SPDX-License-Identifier: MIT
 * test_nmi.c - owns the proof that an NMI loses nothing when it finds the heap lock taken, at
 * whichever of its tries; nor does a call that another CPU overtakes where it takes the lock.
 * Rank: test.  Runs: one thread that plays all CPUs.
 *
 * BUILD: -DKSLAB_CFG_HEADER='"fake_cpu.h"' -DKSLAB_CFG_CPUS=2 -DKSLAB_CFG_LEVELS=2
 *
 * What is lost is never seen again, so it shows as growth: a call that is refused again and again,
 * and succeeds at last, must leave the heap with as much metadata as one that was never refused.
 */
#include "testing.h"

#include "fake_cpu.h"
#include "heap.h"

FAKE_CPU_DEFINE;

#define PAGE 4096u
#define REGION_PAGES 4096u /* several leaves of the map */
#define ROUNDS 64u /* a descriptor lost in each is a page in the end */
#define TRIES_MOST 64u

static struct testing t;

/* ---- what happens when the lock is tried ----------------------------------------------------- */

static unsigned tries; /* so far */
static unsigned at; /* the one that something happens at; 0: none */
static bool and_later; /* at those after it, too */
static bool is_taken; /* another CPU has the lock */
static void (*overtake)(void); /* what another CPU does, outside of NMIs */

/* Called with 1 before each try, and with 0 when it failed, or the lock was left. */
static void on_mask(int mask)
{
	struct kslab_lock *lock = &t.heap.lock;
	void (*what)(void) = overtake;
	unsigned cpu = fake_cpu;

	tries += mask != 0;
	if (is_taken) {
		lock->serving++;
		is_taken = false;
	}
	if (!mask || at == 0 || tries < at || (tries > at && !and_later))
		return;
	if (what == NULL) {
		lock->next++;
		is_taken = true;
		return;
	}
	overtake = NULL;
	fake_cpu = !cpu;
	what();
	fake_cpu = cpu;
}

/* ---- scenes ---------------------------------------------------------------------------------- */

static void *result, *target;
static struct kslab_cache cache;

static void nothing(void) {}

static void free_result(void)
{
	kslab_heap_free(&t.heap, result);
	result = NULL;
}

static void take_object(void)
{
	result = kslab_heap_malloc(&t.heap, 64);
}

/* Across a boundary of leaves. */
static void take_block(void)
{
	result = kslab_heap_malloc(&t.heap, 600 * PAGE);
}

static void start_cache(void)
{
	assert_int_equal(kslab_heap_cache_init(&t.heap, &cache, "cache", 100, 0, NULL, NULL),
			 KSLAB_OK);
}

static void take_from_cache(void)
{
	result = kslab_cache_alloc(&cache);
}

static void end_cache(void)
{
	if (result != NULL)
		kslab_cache_free(&cache, result);
	result = NULL;
	assert_int_equal(kslab_cache_destroy(&cache), KSLAB_OK);
}

/* Empty pages and spare blocks. */
static void take_and_give(void)
{
	void *p[20];

	for (unsigned i = 0; i < TESTING_COUNT(p); i++) {
		p[i] = kslab_heap_malloc(&t.heap, i % 10 == 0 ? 3 * PAGE : 2048);
		assert_non_null(p[i]);
	}
	for (unsigned i = 0; i < TESTING_COUNT(p); i++)
		kslab_heap_free(&t.heap, p[i]);
}

static void reclaim(void)
{
	(void)kslab_heap_reclaim(&t.heap, SIZE_MAX);
}

/* A block of 3 pages, with a spare block of 5 behind it. */
static void make_room(void)
{
	kslab_heap_free(&t.heap, kslab_heap_malloc(&t.heap, 8 * PAGE));
	target = kslab_heap_realloc(&t.heap, kslab_heap_malloc(&t.heap, 100), 3 * PAGE);
	assert_int_equal(t.heap.zone[0]->spare_run, 5);
}

static void grow_beyond_room(void)
{
	result = kslab_heap_realloc(&t.heap, target, 13 * PAGE);
	if (result == NULL)
		result = target;
}

/* CPU 1, which has stopped. */
static void use_cpu_1(void)
{
	fake_cpu = 1;
	take_and_give();
	fake_cpu = 0;
}

static void offline(void)
{
	(void)kslab_heap_cpu_offline(&t.heap, 1);
}

static void offline_and_online(void)
{
	if (t.heap.zone[1] != &kslab_zone_none)
		assert_int_equal(kslab_heap_cpu_offline(&t.heap, 1), KSLAB_OK);
	fake_cpu = 1;
	assert_int_equal(kslab_heap_cpu_online(&t.heap, 1), KSLAB_OK);
	fake_cpu = 0;
}

static const struct scene {
	const char *name;
	void (*before)(void);
	void (*op)(void); /* in the NMI; may be refused */
	void (*after)(void);
	unsigned debug_level;
} scenes[] = {
	{ "an object", nothing, take_object, free_result, 0 },
	{ "an object at level 2", nothing, take_object, free_result, 2 },
	{ "a large block", nothing, take_block, free_result, 0 },
	{ "an object of a cache", start_cache, take_from_cache, end_cache, 0 },
	{ "reclaim", take_and_give, reclaim, nothing, 0 },
	{ "reclaim at level 2", take_and_give, reclaim, nothing, 2 },
	{ "realloc", make_room, grow_beyond_room, free_result, 0 },
	{ "offline", use_cpu_1, offline, offline_and_online, 0 },
};

static void begin(const struct scene *scene)
{
	const struct kslab_config config = { .max_page_bytes = PAGE,
					     .retain_bytes = 1 << 20,
					     .debug_level = scene->debug_level };

	memset(&kslab_default_heap, 0, sizeof(kslab_default_heap));
	fake_cpu = fake_pins = fake_masked = fake_nmi = 0;
	testing_begin_with(&t, &config, 2 * REGION_PAGES, false);
	assert_int_equal(kslab_heap_add_region(&t.heap, fake_source_take(&t.source, REGION_PAGES),
					       REGION_PAGES * PAGE),
			 KSLAB_OK);
	fake_cpu = 1;
	assert_int_equal(kslab_heap_cpu_online(&t.heap, 1), KSLAB_OK);
	fake_cpu = 0;
}

/* Everything that is free goes back, and no request of kslab_reclaim waits. */
static void settle(void)
{
	for (unsigned i = 0; i < 6; i++) {
		fake_cpu = i % 2;
		if (i < 4)
			(void)kslab_heap_reclaim(&t.heap, SIZE_MAX);
		else
			kslab_heap_idle(&t.heap);
	}
	fake_cpu = 0;
	testing_step(&t);
}

/* The op in an NMI, refused at its n-th try; 0: in a task. Return: tries. */
static unsigned play(const struct scene *scene, unsigned n)
{
	unsigned made;

	scene->before();
	testing_step(&t);
	at = n;
	tries = 0;
	fake_nmi = n != 0;
	scene->op();
	fake_nmi = 0;
	at = 0;
	made = tries;
	testing_step(&t);
	assert_int_equal(fake_pins, 0);
	assert_int_equal(fake_masked, 0);
	scene->after();
	settle();
	return made;
}

/* Nothing is in use any more. Return: base pages that the heap does not give back, its metadata. */
static size_t end(void)
{
	size_t pages = t.heap.pages_in_use;

	if (t.heap.large_blocks == 0) {
		assert_int_equal(pages, t.heap.meta.pages);
		assert_int_equal(kslab_heap_fini(&t.heap), KSLAB_OK);
	}
	assert_int_equal(t.source.pages_out, REGION_PAGES);
	assert_int_equal(t.source.errors, 0);
	fake_source_fini(&t.source);
	return pages;
}

static size_t without_refusal(const struct scene *scene)
{
	begin(scene);
	play(scene, 0);
	play(scene, 0);
	return end();
}

/* Return: false: there are not so many tries. */
static bool refused_at(const struct scene *scene, unsigned n, size_t *pages)
{
	bool was_tried = false;

	begin(scene);
	fake_mask = on_mask;
	for (unsigned round = 0; round < ROUNDS; round++)
		was_tried = play(scene, n) >= n || was_tried;
	fake_mask = NULL;
	play(scene, 0);
	*pages = end();
	return was_tried;
}

static void nothing_is_lost_where_the_lock_is_not_to_be_had(void **state)
{
	unsigned bad = 0, refusals = 0;

	(void)state;
	for (size_t i = 0; i < TESTING_COUNT(scenes); i++) {
		size_t wanted = without_refusal(&scenes[i]), pages;

		for (unsigned n = 1; n <= TRIES_MOST; n++) {
			bool was_tried = true;

			for (unsigned later = 0; later < 2; later++) {
				and_later = later != 0;
				was_tried = refused_at(&scenes[i], n, &pages) && was_tried;
				refusals += was_tried;
				if (pages == wanted)
					continue;
				print_error("%s, try %u%s: %zu pages stay, not %zu\n",
					    scenes[i].name, n, later ? " and later" : "", pages,
					    wanted);
				bad++;
			}
			if (!was_tried)
				break;
		}
	}
	print_message("# %u tries refused, %u times each\n", refusals, ROUNDS);
	assert_true(bad == 0 && refusals > 2 * TESTING_COUNT(scenes));
}

/* ---- another CPU is faster ------------------------------------------------------------------- */

static void *block[6];

static void take_one(unsigned i, size_t pages)
{
	block[i] = kslab_heap_malloc(&t.heap, pages * PAGE);
	assert_non_null(block[i]);
}

static void take_third(void)
{
	take_one(2, 5);
}

/* On another CPU, which a handler of the first overtakes at the same try. */
static void take_second(void)
{
	overtake = take_third;
	at += tries;
	take_one(1, 5);
	if (overtake != NULL)
		take_third();
	overtake = NULL;
}

/* Runs of metadata that hold their own record, and are handed out in pieces; or those that don't. */
static size_t runs(bool are_chunks)
{
	size_t n = 0;

	for (const struct kslab_chunk *at = t.heap.meta.chunks; at != NULL; at = at->next)
		n += ((uintptr_t)at == at->address) == are_chunks;
	return n;
}

static size_t spare_leaves(void)
{
	size_t n = 0;

	for (void **leaf = t.heap.meta.leaves; leaf != NULL; leaf = *leaf)
		n++;
	return n;
}

static size_t leaves(void)
{
	uintptr_t start = (uintptr_t)t.source.memory, missing;
	size_t n = spare_leaves();

	for (size_t at = 0; at < 2 * REGION_PAGES * PAGE; at += (size_t)1 << KSLAB_CFG_LEAF_SHIFT)
		n += !kslab_page_map_lacks_leaf(&t.heap.map, start + at, 1, &missing);
	return n;
}

/*
 * Three want a block where there is no leaf, and a new chunk, the first is overtaken at its n-th try.
 * Return: chunks; *spare: leaves that were not needed.
 */
static size_t overtaken_at(unsigned n, bool *was_tried, size_t *spare)
{
	size_t others, chunks;
	unsigned blocks = 3;

	begin(&scenes[0]);
	others = runs(false) - leaves();
	t.heap.meta.bump = t.heap.meta.bump_end;
	at = n;
	and_later = false;
	tries = 0;
	overtake = take_second;
	fake_mask = on_mask;
	take_one(0, 5);
	fake_mask = NULL;
	*was_tried = tries >= n;
	if (!*was_tried)
		take_second();
	testing_step(&t);
	chunks = runs(true);
	*spare = spare_leaves();
	assert_int_equal(runs(false) - leaves(), others);
	while (spare_leaves() != 0) { /* they serve the next holes */
		take_one(blocks++, 900);
		testing_step(&t);
		assert_int_equal(runs(false) - leaves(), others);
	}
	while (blocks-- != 0)
		kslab_heap_free(&t.heap, block[blocks]);
	settle();
	(void)end();
	return chunks;
}

static void nothing_is_lost_where_another_cpu_is_faster(void **state)
{
	bool was_tried = true;
	size_t spare, spares = 0, chunks = overtaken_at(TRIES_MOST, &was_tried, &spare);

	(void)state;
	assert_false(was_tried);
	was_tried = true;
	for (unsigned n = 1; was_tried; n++) {
		assert_int_equal(overtaken_at(n, &was_tried, &spare), chunks);
		spares = spare > spares ? spare : spares;
	}
	assert_int_equal(spares, 2);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(nothing_is_lost_where_the_lock_is_not_to_be_had),
		cmocka_unit_test(nothing_is_lost_where_another_cpu_is_faster),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
