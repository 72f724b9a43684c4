/* SPDX-License-Identifier: MIT
 * main.c - owns what the test kernel does: the jobs, one after the other, and their order.
 * Runs: CPU 0, thread level, interrupts masked.
 */
#include <kslab/kslab.h>
#include <kslab/observe.h>

#include "arch.h"
#include "frames.h"
#include "libk.h"
#include "options.h"
#include "replay.h"
#include "smp.h"
#include "source.h"
#include "verdict.h"

#define BOOT_REGION_BYTES (256u * 1024)
#define BOOT_OBJECTS 64u
#define BOOT_OBJECT_BYTES 200u

static const struct trace *trace; /* of the job that runs */

/* ---- the port -------------------------------------------------------------------------------- */

#define TICK_US 1000u

static void no_tick(void) {}

/* Hands out the same page again and again. */
static void *give_one(void *ctx, size_t n)
{
	return n == 1 ? ctx : NULL;
}

static void take_one(void *ctx, void *run, size_t n)
{
	(void)ctx;
	(void)run;
	(void)n;
}

/* Before anything trusts the hooks: interrupts are on, or their masking could not be seen. */
static void job_port(void)
{
	static unsigned char region[BOOT_REGION_BYTES];
	struct kslab_selftest found;
	struct kslab_config config;

	source_config(&config);
	arch_timer_start(TICK_US, no_tick);
	if (!kslab_selftest_port(&config, region, sizeof(region), &found))
		WRONG("%s: %s\n", found.hook, found.what);
	EXPECT(found.irq_tested);
	arch_timer_stop();
	machine_irq_save();
	config.alloc_pages = give_one;
	config.free_pages = take_one;
	config.source_ctx = frames_alloc(1);
	EXPECT(!kslab_selftest_port(&config, NULL, 0, &found));
	EXPECT(found.hook != NULL && memcmp(found.hook, "alloc_pages", 12) == 0);
	kprintf("a source that gives a page twice: %s: %s\n", found.hook, found.what);
	EXPECT(frames_free(config.source_ctx, 1) == NULL);
}

/* ---- before and after the page source ------------------------------------------------------- */

/*
 * A heap that begins on a static array and gets frames later: every pointer stays valid. On x86_64
 * the array lies in the kernel's image, far from the frames in the direct map.
 */
static void job_boot(void)
{
	static unsigned char region[BOOT_REGION_BYTES];
	static struct object objects[BOOT_OBJECTS];
	void *large;

	EXPECT(kslab_init_region(region, sizeof(region)) == KSLAB_OK);
	for (size_t i = 0; i < BOOT_OBJECTS; i++) {
		objects[i] =
			(struct object){ kslab_malloc(BOOT_OBJECT_BYTES), BOOT_OBJECT_BYTES, i };
		EXPECT(objects[i].mem != NULL);
		if (objects[i].mem != NULL)
			object_fill(&objects[i]);
	}
	EXPECT(kslab_check(NULL));
	EXPECT(kslab_malloc(sizeof(region)) == NULL);
	source_attach();
	large = kslab_zalloc(sizeof(region));
	EXPECT(large != NULL);
	for (size_t i = 0; i < BOOT_OBJECTS; i++) {
		if (objects[i].mem != NULL)
			object_check(&objects[i], "boot");
		kslab_free(objects[i].mem);
	}
	kslab_free(large);
	source_end();
}

/* ---- misuse --------------------------------------------------------------------------------- */

static void free_wrongly(void *p, enum kslab_fault fault)
{
	source_expect(fault);
	kslab_free(p);
	if (!source_expected())
		WRONG("kslab_free(%p): no report of %s\n", p, kslab_fault_name(fault));
}

/* Each wrong free is refused, reported as what it is, and changes nothing. */
static void job_misuse(void)
{
	unsigned char on_stack = 0, *a, *b;

	source_start(0, 0);
	a = kslab_malloc(100);
	b = kslab_malloc(100);
	EXPECT(a != NULL && b != NULL);
	if (a != NULL && b != NULL) {
		free_wrongly(a + 16, KSLAB_FAULT_INTERIOR_POINTER);
		free_wrongly(&on_stack, KSLAB_FAULT_FOREIGN_POINTER);
		free_wrongly((void *)8, KSLAB_FAULT_FOREIGN_POINTER);
		kslab_free(a);
		free_wrongly(a, KSLAB_FAULT_DOUBLE_FREE);
		EXPECT(kslab_check(NULL));
		EXPECT(kslab_usable_size(b) >= 100);
		kslab_free(b);
		kslab_free(NULL);
	}
	source_end();
}

/* ---- replays on one CPU --------------------------------------------------------------------- */

/* Every byte of every object is checked. At the peak: the table of all classes. */
static void job_check_trace(void)
{
	struct replay_demand demand;
	struct replay replay;

	source_start(0, 0);
	if (replay_open(&replay, trace, REPLAY_PATTERN, 1)) {
		replay_demand(&replay, &demand);
		while (replay_step(&replay)) {
			if (replay.done != demand.peak_call)
				continue;
			kprintf("at the peak, call %lu of %lu: %zu KiB asked, %zu KiB in page frames\n",
				(unsigned long)replay.done, (unsigned long)replay.reader.calls,
				demand.peak_bytes / 1024, source_frames() * FRAME_BYTES / 1024);
			kslab_print(kprint_putc, NULL);
			EXPECT(kslab_check(NULL));
		}
		replay_close(&replay);
	}
	source_end();
}

static void replay_timed(void)
{
	struct replay replay;
	uint64_t start = machine_cycles(), ms;

	if (replay_open(&replay, trace, 0, 1)) {
		while (replay_step(&replay))
			;
		replay_close(&replay);
		ms = (machine_cycles() - start) / arch_cycles_per_ms();
		ms += ms == 0;
		kprintf("%-12s %8lu calls %6lu ms %8lu calls/ms\n", trace->name,
			(unsigned long)replay.reader.calls, (unsigned long)ms,
			(unsigned long)(replay.reader.calls / ms));
	}
}

/* The same without looking at the objects: how fast it goes, reading the trace included. */
static void job_throughput(void)
{
	for (trace = kernel_traces; trace->name != NULL; trace++) {
		source_start(0, 0);
		replay_timed();
		source_end();
	}
}

/*
 * A kernel whose frames come one by one, and which keeps none: larger objects fail, nothing else.
 */
static void job_single_frames(void)
{
	struct replay replay;

	trace = kernel_traces;
	source_start(1, KSLAB_RETAIN_NONE);
	if (replay_open(&replay, trace, REPLAY_PATTERN | REPLAY_MAY_FAIL, 1)) {
		while (replay_step(&replay))
			;
		kprintf("%s: %lu allocations failed for want of longer runs\n", trace->name,
			(unsigned long)replay.failures);
		EXPECT(replay.failures < replay.reader.calls / 10);
		replay_close(&replay);
	}
	source_end();
}

/* A kernel that runs out of memory halfway up, again and again: NULL, and no harm. */
static void job_out_of_memory(void)
{
	struct replay_demand demand;
	struct replay replay;

	trace = kernel_traces;
	source_start(0, 0);
	if (replay_open(&replay, trace, REPLAY_PATTERN | REPLAY_MAY_FAIL, 1)) {
		replay_demand(&replay, &demand);
		source_limit(demand.peak_bytes / 2 / FRAME_BYTES);
		while (replay_step(&replay))
			;
		kprintf("%s: %lu allocations failed, %zu runs were refused\n", trace->name,
			(unsigned long)replay.failures, source_refusals());
		EXPECT(replay.failures != 0);
		EXPECT(kslab_last_error() == KSLAB_NO_PAGES);
		replay_close(&replay);
	}
	source_end();
}

static const char *injection(void)
{
	const char *text = options_find("inject");

	return text != NULL ? text : "all:share=3000,seed=7";
}

/* What the boot option says fails; a kernel's error paths, and no harm. */
static void job_injection(void)
{
	struct kslab_inject rule = { 0 };
	struct kslab_stats stats;
	struct replay replay;

	trace = kernel_traces;
	EXPECT(kslab_inject_parse(injection(), &rule) == KSLAB_OK);
	source_start(0, 0);
	EXPECT(kslab_selftest(true, NULL));
	if (replay_open(&replay, trace, REPLAY_PATTERN | REPLAY_MAY_FAIL, 1)) {
		EXPECT(kslab_inject(rule.where != 0 ? &rule : NULL) == KSLAB_OK);
		while (replay_step(&replay))
			;
		EXPECT(kslab_inject(NULL) == KSLAB_OK);
		kslab_stats(&stats);
		kprintf("%s: %lu allocations failed, %zu injected by %s\n", trace->name,
			(unsigned long)replay.failures, stats.failed[KSLAB_INJECTED], injection());
		EXPECT(rule.where == 0 || stats.failed[KSLAB_INJECTED] != 0);
		EXPECT(replay.failures == stats.failed[KSLAB_INJECTED]);
		replay_close(&replay);
	}
	source_end();
}

/* ---- all ------------------------------------------------------------------------------------ */

_Noreturn void kernel_main(void)
{
	kprintf("kslab %u.%u.%u test kernel: %zu MiB in page frames, %lu ticks/ms\n",
		KSLAB_VERSION_MAJOR, KSLAB_VERSION_MINOR, KSLAB_VERSION_PATCH,
		frames_free_count() * FRAME_BYTES >> 20, (unsigned long)arch_cycles_per_ms());
	verdict_job("the port tests itself", job_port);
	verdict_job("boot on a static array", job_boot);
	verdict_job("misuse is refused and reported", job_misuse);
	for (trace = kernel_traces; trace->name != NULL; trace++)
		verdict_job(trace->name, job_check_trace);
	verdict_job("throughput", job_throughput);
	verdict_job("single frames, nothing retained", job_single_frames);
	verdict_job("out of memory", job_out_of_memory);
	verdict_job("fault injection", job_injection);
#if KERNEL_SMP
	kprintf("\n%u CPUs\n", smp_start());
	verdict_job("all traces on all CPUs, interrupts, NMIs, CPUs offline and online", smp_job);
#endif
	verdict_end();
}
