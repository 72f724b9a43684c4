/* SPDX-License-Identifier: MIT
 * report.c - owns names of faults and reasons, and the way of a fault to the kernel's hook.
 * Rank: 1.  Runs anywhere.
 */
#include "report.h"
#include "compiler.h"

#include <kslab/kslab.h>

const char *kslab_fault_name(enum kslab_fault fault)
{
	static const char *const names[] = {
		[KSLAB_FAULT_NONE] = "no fault",
		[KSLAB_FAULT_DOUBLE_FREE] = "double free",
		[KSLAB_FAULT_INTERIOR_POINTER] = "interior pointer",
		[KSLAB_FAULT_BAD_POINTER] = "bad pointer",
		[KSLAB_FAULT_FOREIGN_POINTER] = "foreign pointer",
		[KSLAB_FAULT_WRONG_CACHE] = "wrong cache",
		[KSLAB_FAULT_WRONG_SIZE] = "wrong size",
		[KSLAB_FAULT_BAD_PAGE] = "bad page",
		[KSLAB_FAULT_BAD_REGION] = "bad region",
		[KSLAB_FAULT_REDZONE] = "redzone overwritten",
		[KSLAB_FAULT_USE_AFTER_FREE] = "use after free",
		[KSLAB_FAULT_CORRUPT_METADATA] = "corrupt metadata",
		[KSLAB_FAULT_LIVE_OBJECTS] = "live objects",
		[KSLAB_FAULT_BAD_CPU] = "bad cpu",
	};

	_Static_assert(KSLAB_ARRAY_LENGTH(names) == KSLAB_FAULT_COUNT, "every fault has a name");
	return (unsigned)fault < KSLAB_FAULT_COUNT ? names[fault] : "unknown";
}

const char *kslab_reason_name(enum kslab_reason reason)
{
	static const char *const names[] = {
		[KSLAB_OK] = "ok",
		[KSLAB_NO_PAGES] = "no pages",
		[KSLAB_TOO_LARGE] = "too large",
		[KSLAB_BAD_ALIGNMENT] = "bad alignment",
		[KSLAB_OVERFLOW] = "overflow",
		[KSLAB_QUOTA] = "quota",
		[KSLAB_REENTRY] = "reentry",
		[KSLAB_BUSY] = "busy",
		[KSLAB_NOT_INITIALISED] = "not initialised",
		[KSLAB_BAD_ARGUMENT] = "bad argument",
		[KSLAB_BAD_FREE] = "bad free",
		[KSLAB_INJECTED] = "injected",
	};

	_Static_assert(KSLAB_ARRAY_LENGTH(names) == KSLAB_REASON_COUNT, "every reason has a name");
	return (unsigned)reason < KSLAB_REASON_COUNT ? names[reason] : "unknown";
}

void kslab_default_report(void *ctx, const struct kslab_report *report)
{
	(void)ctx;
	(void)report; /* in a debugger: the fault is here */
	__builtin_trap();
}

void kslab_report_fault(struct kslab_heap *heap, struct kslab_report *report)
{
	report->cpu = KSLAB_PORT_CPU();
	if (report->what == NULL)
		report->what = kslab_fault_name(report->fault);
	(heap->report != NULL ? heap->report : kslab_default_report)(heap->report_ctx, report);
}
