/* SPDX-License-Identifier: MIT
 * verdict.h - owns the interface to the test kernel's account of what went wrong.
 * Runs: any CPU, any level.
 */
#ifndef KERNEL_VERDICT_H
#define KERNEL_VERDICT_H

#include <stdbool.h>
#include <stddef.h>

#include "kprint.h"

/*
 * Counts one thing that went wrong. Return: whether it is among the first few of the job, which are
 * printed.
 */
bool verdict_count(void);

/* Things that went wrong so far. */
size_t verdict_wrong(void);

#define WRONG(...)                                                                                 \
	do {                                                                                       \
		if (verdict_count())                                                               \
			kprintf("    wrong: " __VA_ARGS__);                                        \
	} while (0)

#define EXPECT(condition)                                                                          \
	do {                                                                                       \
		if (!(condition))                                                                  \
			WRONG("%s:%d: %s\n", __FILE__, __LINE__, #condition);                      \
	} while (0)

/*
 * verdict_job - run a job: it passes if nothing went wrong meanwhile and every page frame came back
 * verdict_end - print the sum and leave QEMU
 */
void verdict_job(const char *name, void (*job)(void));
_Noreturn void verdict_end(void);

#endif
