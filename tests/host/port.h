/* SPDX-License-Identifier: MIT
 * tests/host/port.h - owns the host's configuration of kslab: threads play CPUs, a mapping plays
 * the memory.
 * Rank: 0. Every host build has -Itests -DKSLAB_CFG_HEADER='"host/port.h"'. Every knob can be
 * overridden by -D. The functions behind it are in port.c, what preload.c and tests call of them
 * is in host.h.
 */
#ifndef KSLAB_HOST_PORT_H
#define KSLAB_HOST_PORT_H

#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

/* 1: one CPU, and one mutex around every call. For comparison. */
#ifndef KSLAB_HOST_GLOBAL_LOCK
#define KSLAB_HOST_GLOBAL_LOCK 0
#endif

#ifndef KSLAB_CFG_CPUS
#if KSLAB_HOST_GLOBAL_LOCK
#define KSLAB_CFG_CPUS 1
#else
#define KSLAB_CFG_CPUS 1024
#endif
#endif

/* No interrupts here: malloc in a signal handler is undefined. The signal-storm test sets more. */
#ifndef KSLAB_CFG_LEVELS
#define KSLAB_CFG_LEVELS 1
#endif

/* Window of 2^24 * 4096 bytes = 64 GiB, as much as port.c reserves. */
#ifndef KSLAB_CFG_LEAF_SHIFT
#define KSLAB_CFG_LEAF_SHIFT 24
#endif
#ifndef KSLAB_CFG_TOP_ENTRIES
#if UINTPTR_MAX > 0xffffffffu
#define KSLAB_CFG_TOP_ENTRIES 4096
#else
#define KSLAB_CFG_TOP_ENTRIES (1u << (32 - KSLAB_CFG_LEAF_SHIFT))
#endif
#endif

/* 128 MiB of address space for the map of 64 GiB. */
#if !defined(KSLAB_CFG_FLAT_MAP) && UINTPTR_MAX > 0xffffffffu
#define KSLAB_CFG_FLAT_MAP 1
#endif

/*
 * The CPU a thread plays. Threads start as KSLAB_HOST_NO_CPU, which never comes online: they can
 * free, and their first allocation fails, which is the sign for host.h to find them a number.
 */
#define KSLAB_HOST_NO_CPU (KSLAB_CFG_CPUS - 1u)
#define KSLAB_HOST_SHARED_CPU                                                                      \
	(KSLAB_CFG_CPUS - 2u) /* played by turns, by all threads without a number */

extern __thread unsigned kslab_host_cpu __attribute__((tls_model("initial-exec")));

struct kslab_zone;
extern __thread struct kslab_zone *kslab_host_zone __attribute__((tls_model("initial-exec")));

#ifndef KSLAB_PORT_CPU
#if KSLAB_CFG_CPUS == 1
#define KSLAB_PORT_CPU() 0u
#else
#define KSLAB_PORT_CPU() kslab_host_cpu
#define KSLAB_PORT_ZONE() kslab_host_zone
#endif
#endif

/*
 * A thread that frees on and on gets a CPU, too. Where handlers may free, they could do so in the
 * middle of that.
 */
#if KSLAB_CFG_CPUS > 1 && KSLAB_CFG_LEVELS == 1
void kslab_host_no_zone(void);
#define KSLAB_PORT_NO_ZONE() kslab_host_no_zone()
#endif

/* A thread is its CPU: moving to another processor takes the CPU along. */
#ifndef KSLAB_PORT_PIN
#define KSLAB_PORT_PIN() ((void)0)
#define KSLAB_PORT_UNPIN() ((void)0)
#endif

/*
 * The heap lock is a ticket lock: right for CPUs, but a thread can lose its processor while it
 * holds the lock or the next ticket, and a thousand others then spin for nothing. These two are
 * called round the lock and nowhere else, so threads queue up here for a mutex, and the one that
 * has it finds the lock free. The signal-storm test blocks signals instead.
 */
#ifndef KSLAB_PORT_IRQ_SAVE
uintptr_t kslab_host_irq_save(void);
void kslab_host_irq_restore(uintptr_t state);
#define KSLAB_PORT_IRQ_SAVE() kslab_host_irq_save()
#define KSLAB_PORT_IRQ_RESTORE(state) kslab_host_irq_restore(state)
#endif

/* Where spinning remains, it has to let the others run on. */
#ifndef KSLAB_PORT_RELAX
void kslab_host_relax(void);
#define KSLAB_PORT_RELAX() kslab_host_relax()
#endif

#ifdef __cplusplus
}
#endif
#endif
