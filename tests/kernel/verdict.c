/* SPDX-License-Identifier: MIT
 * verdict.c - owns the test kernel's account of what went wrong, and the end of the run.
 * Runs: counting on any CPU at any level; jobs and the end on CPU 0.
 */
#include "verdict.h"

#include "arch.h"
#include "frames.h"

#define PRINTED 12u /* of a job */

static size_t wrong, printed;
static unsigned jobs_passed, jobs_failed;

bool verdict_count(void)
{
	__atomic_fetch_add(&wrong, 1, __ATOMIC_RELAXED);
	return __atomic_add_fetch(&printed, 1, __ATOMIC_RELAXED) <= PRINTED;
}

size_t verdict_wrong(void)
{
	return __atomic_load_n(&wrong, __ATOMIC_RELAXED);
}

void verdict_job(const char *name, void (*job)(void))
{
	size_t frames = frames_free_count(), wrong_before = verdict_wrong();
	uint64_t start = machine_cycles();
	bool passed;

	__atomic_store_n(&printed, 0, __ATOMIC_RELAXED);
	kprintf("\n--- %s\n", name);
	job();
	if (frames_free_count() != frames)
		WRONG("%zu page frames were free before, %zu are now\n", frames,
		      frames_free_count());
	passed = verdict_wrong() == wrong_before;
	if (passed)
		jobs_passed++;
	else
		jobs_failed++;
	kprintf("%s: %s (%lu ms, %zu of %zu page frames came back)\n", passed ? "PASS" : "FAIL",
		name, (unsigned long)((machine_cycles() - start) / arch_cycles_per_ms()),
		frames_free_count(), frames);
}

_Noreturn void verdict_end(void)
{
	kprintf("\n%s\nkernel: %u passed, %u failed\n", jobs_failed == 0 ? "PASS" : "FAIL",
		jobs_passed, jobs_failed);
	arch_exit(jobs_failed == 0 ? 0 : 1);
}
