/* SPDX-License-Identifier: MIT
 * test_page_source.c - owns the proof that no page is used twice, however often the source gives it:
 * while the run it lies in is under way, before anything is made of it.
 * Rank: test.  Runs: one thread that plays all CPUs.
 *
 * BUILD: -DKSLAB_CFG_HEADER='"fake_cpu.h"' -DKSLAB_CFG_CPUS=4 -DKSLAB_CFG_LEVELS=4
 *
 * What the map knows already is in test_misuse.c (rows 18 and 19).
 */
#include "testing.h"

#include "fake_cpu.h"
#include "heap_image.h"

FAKE_CPU_DEFINE;

#define PAGE ((size_t)4096)
#define ANSWERS 64u

static struct testing t, u; /* two heaps, the second one where a test says so */

/* ---- a source that gives again what it has given --------------------------------------------- */

static struct {
	unsigned char *given[ANSWERS];
	size_t pages[ANSWERS];
	size_t calls;
	size_t again_at; /* this call, counted from 1, gives what is not its own; 0: none */
	size_t first; /* what the call before it gave ... */
	ptrdiff_t shift; /* ... so many pages on; beyond the last one: as far as the run goes */
	bool is_out; /* all other calls fail */
	bool is_apart; /* what comes back of it is counted in forced_returns */
	bool was_wrong; /* it did */
	void (*on_call)(size_t call);
} script;

/* Is one of its pages with the heap? */
static bool is_out(const unsigned char *mem, size_t pages)
{
	for (size_t i = 0; i < pages; i++)
		if (fake_source_is_out(&t.source, mem + i * PAGE))
			return true;
	return false;
}

static void *scripted_alloc(void *ctx, size_t pages)
{
	size_t call = ++script.calls;
	unsigned char *mem;

	if (script.on_call != NULL)
		script.on_call(call);
	if (call == script.again_at && script.given[script.first] != NULL) {
		mem = script.given[script.first];
		if (script.shift >= (ptrdiff_t)script.pages[script.first])
			mem += (script.pages[script.first] - 1) * PAGE;
		else
			mem += script.shift * (ptrdiff_t)PAGE;
		if (is_out(mem, pages)) { /* else it is no fault */
			script.was_wrong = true;
			if (script.is_apart)
				t.source.forced = mem;
			return mem;
		}
	}
	mem = script.is_out ? NULL : fake_source_alloc(ctx, pages);
	if (call <= ANSWERS) {
		script.given[call - 1] = mem;
		script.pages[call - 1] = pages;
	}
	return mem;
}

static void begin(const struct kslab_config *config)
{
	fake_cpu = 0;
	fake_mask = NULL;
	memset(&script, 0, sizeof(script));
	testing_begin_with(&t, config, TESTING_PAGES, false); /* all of it can be written to */
	assert_int_equal(kslab_heap_set_page_source(&t.heap, scripted_alloc, fake_source_free,
						    &t.source),
			 KSLAB_OK);
}

/* Descriptors and other metadata need a page of their own from here on; the leaf is there. */
static void use_up_metadata(void)
{
	memset(t.heap.meta.free, 0, sizeof(t.heap.meta.free));
	t.heap.meta.bump = t.heap.meta.bump_end;
}

/* ---- one call, and each two of its calls of the source --------------------------------------- */

struct made {
	unsigned char *p;
	size_t bytes;
};

static struct kslab_cache cache;

static void construct(void *object, void *ctx)
{
	(void)ctx;
	memset(object, 0x33, 192);
}

static struct made op_object(void)
{
	return (struct made){ kslab_heap_malloc(&t.heap, 200), 200 };
}

static struct made op_long_page(void)
{
	return (struct made){ kslab_heap_malloc(&t.heap, 16384), 16384 };
}

static struct made op_block(void)
{
	return (struct made){ kslab_heap_malloc(&t.heap, 7 * PAGE), 7 * PAGE };
}

static struct made op_long_block(void)
{
	return (struct made){ kslab_heap_malloc(&t.heap, 40 * PAGE), 40 * PAGE };
}

static struct made op_block_of_leaves(void)
{
	return (struct made){ kslab_heap_malloc(&t.heap, 1000 * PAGE), 1000 * PAGE };
}

static struct made op_aligned(void)
{
	return (struct made){ kslab_heap_aligned_alloc(&t.heap, 8 * PAGE, 6 * PAGE), 6 * PAGE };
}

static struct made op_cache(void)
{
	return (struct made){ kslab_cache_alloc(&cache), 192 };
}

static struct made op_online(void)
{
	fake_cpu = 1;
	if (t.heap.zone[1] == &kslab_zone_none)
		(void)kslab_heap_cpu_online(&t.heap, 1);
	fake_cpu = 0;
	return (struct made){ NULL, 0 };
}

static const struct scene {
	const char *name;
	struct made (*op)(void);
	bool is_warm; /* the map has a leaf there, and metadata is used up */
	size_t max_page_bytes;
	bool unaligned;
} scenes[] = {
	{ "the first object", op_object, false, PAGE, false },
	{ "an object", op_object, true, PAGE, false },
	{ "the first long object page", op_long_page, false, 16 * PAGE, false },
	{ "a long object page", op_long_page, true, 16 * PAGE, false },
	{ "an object page of 64 pages", op_long_page, true, 64 * PAGE, false },
	{ "the first block", op_block, false, PAGE, false },
	{ "a block", op_block, true, PAGE, false },
	{ "the first long block", op_long_block, false, PAGE, false },
	{ "a long block", op_long_block, true, PAGE, false },
	{ "a block over several leaves", op_block_of_leaves, true, PAGE, false },
	{ "an aligned block", op_aligned, true, PAGE, true },
	{ "the first aligned block", op_aligned, false, PAGE, true },
	{ "an object of a cache", op_cache, true, PAGE, false },
	{ "a zone", op_online, true, PAGE, false },
	{ "the first zone", op_online, false, PAGE, false },
};

static void begin_scene(const struct scene *scene)
{
	const struct kslab_config config = { .max_page_bytes = scene->max_page_bytes,
					     .retain_bytes = KSLAB_RETAIN_NONE };

	begin(&config);
	t.source.unaligned = scene->unaligned;
	if (scene->op == op_cache)
		assert_int_equal(kslab_heap_cache_init(&t.heap, &cache, "cache", 192, 0, construct,
						       NULL),
				 KSLAB_OK);
	if (scene->is_warm) {
		kslab_heap_free(&t.heap, kslab_heap_malloc(&t.heap, 3000));
		use_up_metadata();
	}
	script.calls = 0;
	memset(script.given, 0, sizeof(script.given));
}

static void give(const struct scene *scene, struct made made)
{
	if (made.p == NULL)
		return;
	for (size_t i = 0; i < made.bytes; i++)
		assert_int_equal(made.p[i], 0x77);
	memset(made.p, 0x33, made.bytes);
	if (scene->op == op_cache)
		kslab_cache_free(&cache, made.p);
	else
		kslab_heap_free(&t.heap, made.p);
}

static void end_scene(const struct scene *scene)
{
	if (scene->op == op_cache)
		assert_int_equal(kslab_cache_destroy(&cache), KSLAB_OK);
	testing_end(&t);
}

/* Call `again` of the source gives what call `first` gave. Return: false: there are not so many. */
static bool play(const struct scene *scene, size_t again, size_t first, ptrdiff_t shift,
		 size_t *refusals)
{
	struct made one, two;

	begin_scene(scene);
	script.again_at = again;
	script.first = first;
	script.shift = shift;
	one = scene->op();
	if (one.p != NULL)
		memset(one.p, 0x77, one.bytes);
	if (script.was_wrong) {
		testing_fault(&t, KSLAB_FAULT_BAD_PAGE);
		*refusals += 1;
	} else {
		testing_step(&t);
	}
	script.again_at = 0;
	two = scene->op(); /* the rest works */
	if (scene->op != op_online) {
		assert_non_null(two.p);
		memset(two.p, 0x77, two.bytes);
	}
	testing_step(&t);
	give(scene, one);
	give(scene, two);
	testing_step(&t);
	end_scene(scene);
	return script.calls >= again;
}

static void what_is_given_twice_in_one_call_is_refused(void **state)
{
	static const ptrdiff_t shifts[] = { 0, PTRDIFF_MAX, 1, -1 };

	(void)state;
	for (size_t i = 0; i < TESTING_COUNT(scenes); i++) {
		size_t refusals = 0, n = 2;

		for (bool goes_on = true; goes_on; n++)
			for (size_t first = 0; first + 1 < n; first++)
				for (size_t k = 0; k < TESTING_COUNT(shifts); k++)
					goes_on = play(&scenes[i], n, first, shifts[k], &refusals);
		print_message("# %s: %zu calls of the source, %zu pages refused\n", scenes[i].name,
			      n - 2, refusals);
		assert_true(refusals != 0 ||
			    n == 3); /* a zone of a 32-bit machine is in one page */
	}
}

/* ---- emergency pages ------------------------------------------------------------------------- */

/* The page that is taken from them is given once more while it is under way. */
static uintptr_t aside;

static void give_what_was_aside(size_t call)
{
	if (call != 2) /* the first one was refused: now for the descriptor */
		return;
	script.given[0] = (unsigned char *)aside;
	script.pages[0] = 1;
	script.again_at = 2;
}

static void a_page_that_was_set_aside_is_refused_while_it_is_under_way(void **state)
{
	const struct kslab_config config = { .max_page_bytes = PAGE, .emergency_pages = 4 };

	(void)state;
	for (unsigned is_warm = 0; is_warm < 2; is_warm++) {
		void *p, *keep = NULL;

		begin(&config);
		if (is_warm) {
			keep = kslab_heap_malloc(&t.heap, 3000);
			use_up_metadata();
		}
		script.calls = 0;
		script.is_out = true;
		aside = t.heap.emergency.root->address;
		script.on_call = give_what_was_aside;
		p = kslab_heap_alloc(&t.heap, 200, 1, KSLAB_RESERVE);
		assert_true(script.was_wrong);
		testing_fault(&t, KSLAB_FAULT_BAD_PAGE);
		assert_non_null(p); /* the others serve */
		script.is_out = false;
		script.on_call = NULL;
		kslab_heap_free(&t.heap, p);
		kslab_heap_free(&t.heap, keep);
		testing_step(&t);
		testing_end(&t);
	}
}

static unsigned char *bad_page; /* NULL: what the call before gave */

static void give_bad_page(struct fake_source *source, size_t pages)
{
	(void)pages;
	if (source->alloc_calls != 3)
		return;
	source->force = true;
	source->forced = bad_page != NULL ? bad_page : source->memory + PAGE;
}

/* The third page is bad: init fails, reports it, and has not written to it. */
static void init_refuses(unsigned char *page, size_t returns)
{
	const struct kslab_config config = { .max_page_bytes = PAGE, .emergency_pages = 4 };

	fake_source_init(&t.source, PAGE, TESTING_PAGES, true);
	t.source.on_alloc = give_bad_page;
	bad_page = page;
	assert_int_equal(testing_init(&t, &config), KSLAB_NO_PAGES);
	assert_int_equal(t.recorder.count, 1);
	assert_int_equal(t.recorder.last.fault, KSLAB_FAULT_BAD_PAGE);
	assert_ptr_equal(t.recorder.last.page, t.source.forced);
	assert_int_equal(t.source.forced_returns, returns);
	assert_int_equal(t.source.pages_out, page != NULL ? 0 : 1); /* it did come back: counted */
	assert_int_equal(t.source.errors, 0);
	fake_source_fini(&t.source);
}

static void init_judges_what_it_sets_aside(void **state)
{
	const struct kslab_config config = { .max_page_bytes = PAGE };
	struct heap_image image;
	unsigned char *live, *p;

	(void)state;
	testing_begin(&u, &config);
	live = kslab_heap_malloc(&u.heap, 3000);
	assert_non_null(live);
	heap_image_take(&image, &u.heap);
	init_refuses((unsigned char *)((uintptr_t)live & ~(PAGE - 1)), 0);
	assert_true(heap_image_is_unchanged(&image));
	p = fake_source_take(&u.source, 1);
	init_refuses(p + 8, 1);
	init_refuses(NULL, 1); /* once, for the two times that it was given */
	fake_source_free(&u.source, p, 1);
	kslab_heap_free(&u.heap, live);
	testing_end(&u);
}

/* ---- other CPUs ------------------------------------------------------------------------------ */

static void *of_other_cpu;

/* While CPU 0 has a page and asks for one for its descriptor, CPU 1 is given the first one. */
static void on_another_cpu(size_t call)
{
	if (call != 2)
		return;
	fake_cpu = 1;
	script.again_at = 3;
	of_other_cpu = kslab_heap_malloc(&t.heap, 3000);
	fake_cpu = 0;
}

static void a_page_that_is_under_way_on_another_cpu_is_refused(void **state)
{
	const struct kslab_config config = { .max_page_bytes = PAGE };

	(void)state;
	for (unsigned is_warm = 0; is_warm < 2; is_warm++) {
		unsigned char *p;

		begin(&config);
		fake_cpu = 1;
		assert_int_equal(kslab_heap_cpu_online(&t.heap, 1), KSLAB_OK);
		fake_cpu = 0;
		if (is_warm)
			kslab_heap_free(&t.heap, kslab_heap_malloc(&t.heap, 100));
		use_up_metadata();
		if (!is_warm) /* nor is there a leaf: runs lie in a stretch that was not used yet */
			for (size_t i = 0; i < 600; i++)
				fake_source_take(&t.source, 1);
		script.calls = 0;
		script.on_call = on_another_cpu;
		p = kslab_heap_malloc(&t.heap, 3000);
		script.on_call = NULL;
		assert_true(script.was_wrong);
		testing_fault(&t, KSLAB_FAULT_BAD_PAGE);
		assert_true(p != of_other_cpu);
		kslab_heap_free(&t.heap, p);
		kslab_heap_free(&t.heap, of_other_cpu);
		testing_step(&t);
		fake_cpu = 1;
		(void)kslab_heap_reclaim(&t.heap, SIZE_MAX);
		fake_cpu = 0;
		(void)kslab_heap_reclaim(&t.heap, SIZE_MAX);
		testing_step(&t);
		assert_int_equal(kslab_heap_fini(&t.heap), KSLAB_OK);
		assert_int_equal(t.source.errors, 0);
		assert_int_equal(t.source.pages_out, is_warm ? 0 : 600);
		fake_source_fini(&t.source);
	}
}

/* At the n-th time that CPU 0 takes or leaves the lock, CPU 1 is given the same run. */
static size_t masks, overtake_at;
static struct kslab_heap *other_heap;
static size_t other_bytes;

static void overtake(int mask)
{
	(void)mask;
	if (++masks != overtake_at || script.calls == 0)
		return;
	fake_cpu = 1;
	script.again_at = script.calls + 1;
	of_other_cpu = kslab_heap_malloc(other_heap, other_bytes);
	fake_cpu = 0;
}

static size_t faults(void)
{
	assert_int_equal(t.recorder.count, t.recorder.kinds[KSLAB_FAULT_BAD_PAGE]);
	assert_int_equal(u.recorder.count, u.recorder.kinds[KSLAB_FAULT_BAD_PAGE]);
	return t.recorder.count + u.recorder.count;
}

static void begin_two(bool in_other_heap)
{
	const struct kslab_config config = { .max_page_bytes = PAGE,
					     .retain_bytes = KSLAB_RETAIN_NONE };

	begin(&config);
	memset(&u.recorder, 0, sizeof(u.recorder));
	other_heap = &t.heap;
	if (in_other_heap) {
		testing_begin(&u, &config);
		fake_source_fini(&u.source);
		other_heap = &u.heap;
		assert_int_equal(kslab_heap_set_page_source(other_heap, scripted_alloc,
							    fake_source_free, &t.source),
				 KSLAB_OK);
	}
	fake_cpu = 1;
	assert_int_equal(kslab_heap_cpu_online(other_heap, 1), KSLAB_OK);
	kslab_heap_free(other_heap, kslab_heap_malloc(other_heap, 20 * PAGE));
	fake_cpu = 0;
	kslab_heap_free(&t.heap, kslab_heap_malloc(&t.heap, 20 * PAGE));
	script.calls = 0;
	script.was_wrong = false;
	memset(script.given, 0, sizeof(script.given));
}

/* Of a run that was given to both, and is not known to the source as such, one came back at most. */
static void end_two(bool is_other_ones, size_t refusals)
{
	struct fake_source *source = &t.source;

	assert_true(kslab_heap_check(other_heap, NULL));
	if (other_heap != &t.heap)
		assert_int_equal(kslab_heap_fini(other_heap), KSLAB_OK);
	t.faults = t.recorder.count;
	testing_step(&t);
	assert_int_equal(kslab_heap_fini(&t.heap), KSLAB_OK);
	assert_int_equal(source->errors, 0);
	if (refusals == 0)
		assert_int_equal(source->pages_out, 0);
	else if (script.shift != 0)
		assert_int_equal(source->forced_returns, is_other_ones ? 1 : 0);
	else /* two heaps that each take it for the other one's have lost it */
		assert_int_equal(source->forced_returns, refusals == 1 ? 1 : 0);
	fake_source_fini(source);
}

/* Return: false: so often the lock is not taken and left. */
static bool overtaken(size_t n, const size_t pages[2], ptrdiff_t shift, bool in_other_heap,
		      size_t *refusals)
{
	size_t bytes = pages[0] * PAGE;
	bool is_other_ones;
	void *p;

	begin_two(in_other_heap);
	script.is_apart = true;
	script.shift = shift;
	of_other_cpu = NULL;
	other_bytes = pages[1] * PAGE;
	masks = 0;
	overtake_at = n;
	fake_mask = overtake;
	p = kslab_heap_malloc(&t.heap, bytes);
	fake_mask = NULL;
	assert_true(script.was_wrong ? faults() == 1 || (in_other_heap && faults() == 2)
				     : faults() == 0);
	*refusals += faults();
	is_other_ones = of_other_cpu != NULL && of_other_cpu == t.source.forced;
	assert_true(p == NULL || of_other_cpu == NULL ||
		    ((uintptr_t)p - (uintptr_t)of_other_cpu >= other_bytes &&
		     (uintptr_t)of_other_cpu - (uintptr_t)p >= bytes));
	kslab_heap_free(&t.heap, p);
	kslab_heap_free(other_heap, of_other_cpu);
	end_two(is_other_ones, faults());
	return masks >= n;
}

static void two_cpus_that_are_given_the_same_use_it_once(void **state)
{
	static const size_t pages[][2] = { { 7, 7 }, { 40, 40 }, { 40, 7 }, { 7, 40 } };

	(void)state;
	for (unsigned i = 0; i < 2 * TESTING_COUNT(pages); i++) {
		bool in_other_heap = i % 2 != 0;

		for (ptrdiff_t shift = -1; shift < 2; shift++) {
			size_t refusals = 0, n = 1;

			while (overtaken(n, pages[i / 2], shift, in_other_heap, &refusals))
				n++;
			print_message("# %zu and %zu pages, %ld on, %s: overtaken at %zu places, "
				      "%zu refused\n",
				      pages[i / 2][0], pages[i / 2][1], (long)shift,
				      in_other_heap ? "another heap" : "the same heap", n - 1,
				      refusals);
			assert_true(refusals != 0);
		}
	}
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(what_is_given_twice_in_one_call_is_refused),
		cmocka_unit_test(a_page_that_was_set_aside_is_refused_while_it_is_under_way),
		cmocka_unit_test(init_judges_what_it_sets_aside),
		cmocka_unit_test(a_page_that_is_under_way_on_another_cpu_is_refused),
		cmocka_unit_test(two_cpus_that_are_given_the_same_use_it_once),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
