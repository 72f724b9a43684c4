/* SPDX-License-Identifier: MIT
 * test_one_cpu.c - owns the proof that a kernel of one CPU needs no port: handlers call kslab at any
 * instruction, and nothing masks interrupts.
 * Rank: test.  Runs: one thread in single steps (x86).
 *
 * BUILD: -DKSLAB_CFG_CPUS=1
 *
 * What differs from test_interrupt.c is the heap lock: an interrupt may find it taken by whom it has
 * interrupted. It must not wait then: its allocation may fail for BUSY, its free never, and nothing
 * may be lost.
 */
#define _GNU_SOURCE
#include "testing.h"

#include "single_step.h"

#define PAGE 4096u
#define PAGES 128u
#define LARGE (3 * PAGE)
#define VICTIMS 4u

static struct kslab_heap heap;
static struct recorder recorder;
static unsigned char memory[PAGES * PAGE] __attribute__((aligned(4096)));
static void *victim[VICTIMS]; /* what the interrupt frees: the last two are large */
static void *target[2]; /* what op frees: small, large */
static void *result; /* of op */
static bool may_fail; /* op itself asks for too much */
static const char *wrong;

static void is_wrong(const char *what)
{
	if (wrong == NULL)
		wrong = what;
}

static void begin(void)
{
	const struct kslab_config config = { .max_page_bytes = PAGE,
					     .retain_bytes = KSLAB_RETAIN_NONE,
					     .report = recorder_report,
					     .report_ctx = &recorder };

	memset(&heap, 0, sizeof(heap));
	memset(&recorder, 0, sizeof(recorder));
	memset(memory, 0, sizeof(memory));
	wrong = NULL;
	result = NULL;
	may_fail = false;
	assert_int_equal(kslab_heap_init(&heap, &config), KSLAB_OK);
	assert_int_equal(kslab_heap_add_region(&heap, memory, sizeof(memory)), KSLAB_OK);
	for (size_t i = 0; i < VICTIMS; i++)
		assert_non_null(victim[i] = kslab_heap_malloc(&heap, i < 2 ? 100 : LARGE));
	for (size_t i = 0; i < 2; i++)
		assert_non_null(target[i] = kslab_heap_malloc(&heap, i < 1 ? 1000 : LARGE));
}

static void take_and_give(size_t n)
{
	void *p = kslab_heap_malloc(&heap, n);

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

static void an_interrupt_never_waits_for_whom_it_has_interrupted(void **state)
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

	(void)state;
	if (!single_step_is_available())
		skip();
	for (size_t i = 0; i < TESTING_COUNT(ops); i++) {
		struct single_step step = { .name = ops[i].name,
					    .op = ops[i].op,
					    .interrupt = interrupt,
					    .verify = verify,
					    .dense = SIZE_MAX };
		bool good;

		begin();
		good = single_step_run(&step);
		print_message("# %s: %zu instructions, %zu interrupts, %zu wrong\n", step.name,
			      step.steps, step.interrupts, step.failures);
		assert_true(good);
	}
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(an_interrupt_never_waits_for_whom_it_has_interrupted),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
