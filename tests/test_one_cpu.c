/* SPDX-License-Identifier: MIT
 * test_one_cpu.c - owns the proof that a kernel of one CPU needs no port, or, if it preempts itself,
 * PIN and UNPIN: handlers call kslab at any instruction, and nothing masks interrupts.
 * Rank: test.  Runs: one thread in single steps (x86).
 *
 * BUILD: -DKSLAB_CFG_CPUS=1 -DKSLAB_CFG_HEADER='"pin_port.h"'
 *
 * What differs from test_interrupt.c is the heap lock: an interrupt may find it taken by whom it has
 * interrupted. It must not wait then: its allocation may fail for BUSY, its free never, and nothing
 * may be lost. Another thread finds it free, for it comes in only where nothing is pinned.
 */
#define _GNU_SOURCE
#include "testing.h"

#include "single_step.h"

#define PAGE 4096u
#define PAGES 128u
#define LARGE (3 * PAGE)
#define VICTIMS 4u

/* Where pages come from, and the debug level: each op runs in each of these. */
static const struct mode {
	const char *name;
	bool calls_back; /* a page source instead of a region; it masks interrupts */
	unsigned level;
} modes[] = { { "region", false, 0 },
	      { "callbacks", true, 0 },
	      { "callbacks, level 1", true, 1 },
	      { "callbacks, level 2", true, 2 } };

static struct kslab_heap heap;
static struct recorder recorder;
static const struct mode *mode;
static bool taken[PAGES]; /* of memory, by alloc_pages */
static volatile bool in_source;
unsigned pin_port_pins;
static unsigned char memory[PAGES * PAGE] __attribute__((aligned(4096)));
static void *victim[VICTIMS]; /* what the interrupt frees: each alone in its page, or large */
static const size_t sizes[VICTIMS] = { 64, 300, LARGE, LARGE };
static void *target[2]; /* what op frees: small, large */
static void *result; /* of op */
static bool may_fail; /* op itself asks for too much */
static bool is_thread; /* what comes in */
static const char *wrong;

static void is_wrong(const char *what)
{
	if (wrong == NULL)
		wrong = what;
}

static void *alloc_pages(void *ctx, size_t pages)
{
	void *run = NULL;

	(void)ctx;
	in_source = true;
	for (size_t i = 0, length = 0; i < PAGES && run == NULL; i++) {
		length = taken[i] ? 0 : length + 1;
		if (length == pages)
			run = memory + (i + 1 - pages) * PAGE;
	}
	for (size_t i = 0; i < pages && run != NULL; i++)
		taken[((unsigned char *)run - memory) / PAGE + i] = true;
	in_source = false;
	return run;
}

static void free_pages(void *ctx, void *mem, size_t pages)
{
	(void)ctx;
	in_source = true;
	for (size_t i = ((unsigned char *)mem - memory) / PAGE; pages != 0; i++, pages--) {
		if (!taken[i])
			is_wrong("a page went back twice");
		taken[i] = false;
	}
	in_source = false;
}

static bool may_interrupt(void)
{
	return !in_source;
}

static bool may_preempt(void)
{
	return !in_source && pin_port_pins == 0;
}

static void begin(void)
{
	const struct kslab_config config = { .alloc_pages = mode->calls_back ? alloc_pages : NULL,
					     .free_pages = mode->calls_back ? free_pages : NULL,
					     .debug_level = mode->level,
					     .quarantine_objects = 2,
					     .max_page_bytes = PAGE,
					     .retain_bytes = KSLAB_RETAIN_NONE,
					     .report = recorder_report,
					     .report_ctx = &recorder };

	memset(&heap, 0, sizeof(heap));
	memset(&recorder, 0, sizeof(recorder));
	memset(memory, 0, sizeof(memory));
	memset(taken, 0, sizeof(taken));
	wrong = NULL;
	result = NULL;
	may_fail = false;
	assert_int_equal(kslab_heap_init(&heap, &config), KSLAB_OK);
	if (!mode->calls_back)
		assert_int_equal(kslab_heap_add_region(&heap, memory, sizeof(memory)), KSLAB_OK);
	for (size_t i = 0; i < VICTIMS; i++)
		assert_non_null(victim[i] = kslab_heap_malloc(&heap, sizes[i]));
	for (size_t i = 0; i < 2; i++)
		assert_non_null(target[i] = kslab_heap_malloc(&heap, i < 1 ? 1000 : LARGE));
}

static void take_and_give(size_t n)
{
	void *p = kslab_heap_malloc(&heap, n);

	if (p == NULL && is_thread)
		is_wrong("an allocation of another thread failed");
	if (p == NULL && kslab_heap_last_error(&heap) != KSLAB_BUSY)
		is_wrong("an allocation of an interrupt failed for another reason than BUSY");
	if (p != NULL)
		memset(p, 0x77, n);
	kslab_heap_free(&heap, p);
}

static void interrupt(size_t step)
{
	take_and_give(step % 2 != 0 ? 200 : 2 * PAGE);
	kslab_heap_free(&heap, victim[step % VICTIMS]);
	victim[step % VICTIMS] = NULL;
	if (step % 5 == 0)
		kslab_heap_idle(&heap);
	if (step % 7 == 0)
		(void)kslab_heap_reclaim(&heap, SIZE_MAX);
}

static bool verify(void)
{
	struct kslab_check_result check;
	struct kslab_stats stats;

	if (result == NULL && !may_fail)
		is_wrong(kslab_reason_name(kslab_heap_last_error(&heap)));
	if (!kslab_heap_check(&heap, &check))
		is_wrong(check.what);
	for (size_t i = 0; i < VICTIMS; i++)
		kslab_heap_free(&heap, victim[i]);
	for (size_t i = 0; i < 2; i++)
		kslab_heap_free(&heap, target[i]);
	if (result != &result)
		kslab_heap_free(&heap, result);
	(void)kslab_heap_reclaim(&heap, SIZE_MAX);
	if (!kslab_heap_quiesce(&heap))
		is_wrong("frees are pending at the end");
	if (!kslab_heap_check(&heap, &check))
		is_wrong(check.what);
	kslab_heap_stats(&heap, &stats);
	if (stats.live_objects != 0 || stats.large_blocks != 0)
		is_wrong("objects are live at the end");
	if (stats.pages_in_use != stats.metadata_pages)
		is_wrong("pages are left at the end");
	if (recorder.count != 0)
		is_wrong(recorder.last.what);
	if (kslab_heap_fini(&heap) != KSLAB_OK)
		is_wrong("the heap did not end");
	for (size_t i = 0; i < PAGES; i++)
		if (taken[i])
			is_wrong("a page did not come back");
	if (wrong != NULL)
		fprintf(stderr, "%s\n", wrong);
	return wrong == NULL;
}

/* ---- what is interrupted --------------------------------------------------------------------- */

static void op_malloc(void)
{
	result = kslab_heap_malloc(&heap, 500); /* makes a page */
}

static void op_malloc_large(void)
{
	result = kslab_heap_malloc(&heap, LARGE + PAGE);
}

static void op_free(void)
{
	kslab_heap_free(&heap, target[0]); /* its page goes back */
	target[0] = NULL;
	result = &result;
}

static void op_free_large(void)
{
	kslab_heap_free(&heap, target[1]);
	target[1] = NULL;
	result = &result;
}

static void op_realloc(void)
{
	result = kslab_heap_realloc(&heap, target[1], 5 * PAGE);
	if (result != NULL)
		target[1] = NULL;
}

static void op_reclaim(void)
{
	(void)kslab_heap_reclaim(&heap, SIZE_MAX);
	result = &result;
}

static void op_exhaust(void)
{
	may_fail = true;
	result = kslab_heap_malloc(&heap, sizeof(memory));
}

static void run_all(bool (*may)(void))
{
	static const struct {
		const char *name;
		void (*op)(void);
	} ops[] = {
		{ "malloc", op_malloc },
		{ "malloc large", op_malloc_large },
		{ "free", op_free },
		{ "free large", op_free_large },
		{ "realloc large", op_realloc },
		{ "reclaim", op_reclaim },
		{ "malloc in vain", op_exhaust },
	};

	if (!single_step_is_available())
		skip();
	for (size_t i = 0; i < TESTING_COUNT(modes) * TESTING_COUNT(ops); i++) {
		const size_t op = i % TESTING_COUNT(ops);
		struct single_step step = { .name = ops[op].name,
					    .op = ops[op].op,
					    .may_interrupt = may,
					    .interrupt = interrupt,
					    .verify = verify,
					    .dense = 700,
					    .stride = 53 };
		bool good;

		mode = &modes[i / TESTING_COUNT(ops)];
		begin();
		good = single_step_run(&step);
		print_message("# %s, %s: %zu instructions, %zu interrupts, %zu wrong\n", step.name,
			      mode->name, step.steps, step.interrupts, step.failures);
		assert_true(good);
	}
}

static void an_interrupt_never_waits_for_whom_it_has_interrupted(void **state)
{
	(void)state;
	is_thread = false;
	run_all(may_interrupt);
}

static void pinning_is_enough_for_threads(void **state)
{
	(void)state;
	is_thread = true;
	run_all(may_preempt);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(an_interrupt_never_waits_for_whom_it_has_interrupted),
		cmocka_unit_test(pinning_is_enough_for_threads),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
