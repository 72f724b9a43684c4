/* SPDX-License-Identifier: MIT
 * host.h - owns the calls between the host port (port.c) and those who use it: preload.c, tests
 * and benches.
 * Runs: any thread, unless it says otherwise.
 */
#ifndef KSLAB_HOST_HOST_H
#define KSLAB_HOST_HOST_H

#include <kslab/kslab.h>

/*
 * kslab_host_config - what the host's heap is configured with: purge, report hook, alignment
 * Any heap of a test can start from it. base, bytes: see kslab_host_reserve. The memory of a flat map
 * stays for ever.
 */
struct kslab_config kslab_host_config(void *base, size_t bytes);

/*
 * kslab_host_reserve - address space that becomes memory when it is touched
 * @bytes: in: how much is wanted; out: how much it is. Halved until the system agrees.
 * Return: a multiple of 16 MiB, or NULL.
 */
void *kslab_host_reserve(size_t *bytes);

/*
 * kslab_host_start - the default heap over a reservation of its own; the calling thread becomes
 * CPU 0 Does nothing when it was done before. Called by kslab_host_enter_slow.
 * Return: false: the system gave no address space, or the heap refused.
 */
bool kslab_host_start(void);

/* A thread with a CPU hands it back, as it does by itself when it ends. */
void kslab_host_leave(void);

/* The default report hook: a line on standard error, then abort() unless KSLAB_REPORT=log. */
void kslab_host_report(void *ctx, const struct kslab_report *report);

/* slabinfo to a file descriptor, by write(2) alone. */
void kslab_host_print(int fd);

/*
 * kslab_host_enter, kslab_host_exit - brackets round calls that allocate
 * The thread has a CPU inside: its own, or for a moment the shared one. No nesting.
 */
void kslab_host_enter_slow(void);
void kslab_host_exit_slow(void);

static inline void kslab_host_enter(void)
{
	if (KSLAB_HOST_GLOBAL_LOCK || __builtin_expect(kslab_host_cpu == KSLAB_HOST_NO_CPU, 0))
		kslab_host_enter_slow();
}

static inline void kslab_host_exit(void)
{
	if (KSLAB_HOST_GLOBAL_LOCK || __builtin_expect(kslab_host_cpu == KSLAB_HOST_SHARED_CPU, 0))
		kslab_host_exit_slow();
}

#endif
