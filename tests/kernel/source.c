/* SPDX-License-Identifier: MIT
 * source.c - owns the test kernel's side of kslab: the page callbacks over frames.c, and the report
 * hook.
 * Runs: callbacks on any CPU, thread and interrupt level; the report hook at any level.
 */
#include "source.h"

#include "arch.h"
#include "frames.h"
#include "options.h"
#include "verdict.h"

#define QUIESCE_TRIES 1000u

static size_t run_limit, total_limit; /* 0: none */
static size_t frames_out, refusals;
static enum kslab_fault expected;

static void *give(void *ctx, size_t n)
{
	void *run = NULL;

	(void)ctx;
	if (machine_in_nmi())
		WRONG("page source called in an NMI\n");
	if ((run_limit == 0 || n <= run_limit) &&
	    (total_limit == 0 || source_frames() + n <= total_limit))
		run = frames_alloc(n);
	if (run != NULL)
		__atomic_fetch_add(&frames_out, n, __ATOMIC_RELAXED);
	else
		__atomic_fetch_add(&refusals, 1, __ATOMIC_RELAXED);
	return run;
}

static void take(void *ctx, void *run, size_t n)
{
	const char *what;

	(void)ctx;
	if (machine_in_nmi())
		WRONG("page source called in an NMI\n");
	what = frames_free(run, n);
	if (what != NULL)
		WRONG("free_pages(%p, %zu): %s\n", run, n, what);
	else
		__atomic_fetch_sub(&frames_out, n, __ATOMIC_RELAXED);
}

static void report(void *ctx, const struct kslab_report *r)
{
	(void)ctx;
	if (r->fault == expected) {
		expected = KSLAB_FAULT_NONE;
		return;
	}
	WRONG("CPU %u: kslab reports %s: %s; pointer %p, object %p of %zu bytes, page %p\n", r->cpu,
	      kslab_fault_name(r->fault), r->what, r->pointer, r->object, r->object_bytes, r->page);
}

void source_expect(enum kslab_fault fault)
{
	expected = fault;
}

bool source_expected(void)
{
	bool came = expected == KSLAB_FAULT_NONE;

	expected = KSLAB_FAULT_NONE;
	return came;
}

size_t source_frames(void)
{
	return __atomic_load_n(&frames_out, __ATOMIC_RELAXED);
}

size_t source_refusals(void)
{
	return __atomic_load_n(&refusals, __ATOMIC_RELAXED);
}

void source_limit(size_t total_frames)
{
	total_limit = total_frames;
}

void source_attach(void)
{
	run_limit = 0;
	total_limit = 0;
	frames_out = 0;
	EXPECT(kslab_set_page_source(give, take, NULL) == KSLAB_OK);
}

void source_config(struct kslab_config *config)
{
	const char *debug = options_find("debug");

	*config =
		(struct kslab_config){ .alloc_pages = give, .free_pages = take, .report = report };
	if (debug != NULL)
		config->debug_level = (unsigned)(debug[0] - '0');
}

void source_start(size_t run_frames, size_t retain_bytes)
{
	struct kslab_config config;

	source_config(&config);
	config.retain_bytes = retain_bytes;
	run_limit = run_frames;
	total_limit = 0;
	frames_out = 0;
	refusals = 0;
	EXPECT(kslab_init(&config) == KSLAB_OK);
}

void source_end(void)
{
	struct kslab_check_result check;
	struct kslab_stats stats;
	bool quiet = false;

	for (unsigned i = 0; !quiet && i < QUIESCE_TRIES; i++)
		quiet = kslab_quiesce();
	EXPECT(quiet);
	if (!kslab_check(&check))
		WRONG("kslab_check: %zu errors, first: %s, page %p\n", check.errors, check.what,
		      check.page);
	kslab_stats(&stats);
	EXPECT(stats.live_objects == 0);
	EXPECT(stats.large_blocks == 0);

	/* Without objects and retention only metadata is left, and fini gives that back, too. */
	kslab_set_retention(0);
	kslab_reclaim((size_t)-1);
	kslab_stats(&stats);
	if (stats.pages_in_use != stats.metadata_pages)
		WRONG("%zu pages in use after reclaim, %zu of metadata\n", stats.pages_in_use,
		      stats.metadata_pages);
	EXPECT(kslab_fini() == KSLAB_OK);
	EXPECT(source_frames() == 0);
}
