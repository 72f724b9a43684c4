/* SPDX-License-Identifier: MIT
 * kslab/port.h - owns the contract with the kernel: everything that kslab needs from outside.
 * Rank: 0.
 *
 * A kernel with one CPU that does not preempt itself has nothing to write, even if its handlers use
 * kslab. Otherwise define the macros below in the header named by KSLAB_CFG_HEADER; they are inlined
 * into the fast path. With several CPUs the functions kslab_port_cpu, kslab_port_irq_save and
 * kslab_port_irq_restore serve where their macros are left out; the other macros do nothing then.
 *
 *   KSLAB_PORT_CPU()              number of this CPU, 0 .. KSLAB_CFG_CPUS - 1. MUST not change
 *                                 between KSLAB_PORT_PIN and KSLAB_PORT_UNPIN. Called on every
 *                                 call: make it cheap.
 *   KSLAB_PORT_ZONE()             optional: a variable of this CPU's own (per CPU, thread-local) of
 *                                 type struct kslab_zone *, an lvalue, &kslab_zone_none at first.
 *                                 kslab keeps in it what it would look up by the CPU number: one
 *                                 load less a call. Used by the default heap.
 *   KSLAB_PORT_PIN()              keeps the thread on its CPU and unpreempted until UNPIN; with one
 *   KSLAB_PORT_UNPIN()            CPU, too. Pairs nest, a handler's inside a thread's: a counter, not
 *                                 a flag. Empty in a kernel that never preempts kernel code.
 *   KSLAB_PORT_IRQ_SAVE()         masks interrupts on this CPU, returns what RESTORE needs
 *   KSLAB_PORT_IRQ_RESTORE(s)     (uintptr_t). Slow paths only, for a bounded time; never round a
 *                                 callback. With one CPU optional: without it PIN and UNPIN stand
 *                                 here, and an allocation of a handler that has interrupted a slow
 *                                 path may fail with KSLAB_BUSY.
 *   KSLAB_PORT_IN_NMI()           nonzero where a lock may only be tried (an NMI, a machine check).
 *   KSLAB_PORT_RELAX()            a hint inside spin loops.
 *   KSLAB_PORT_NO_ZONE()          optional: a free at debug level 0 has found that this CPU is not
 *                                 online, where each costs a locked instruction more. Called in the
 *                                 context of the free, unpinned, without a lock; may bring the CPU
 *                                 online.
 *
 *   KSLAB_PORT_POISON(mem, bytes)    debug levels 1 and 2, for a memory checker (KASAN,
 *   KSLAB_PORT_UNPOISON(mem, bytes)  AddressSanitizer, Valgrind): no client may touch these bytes;
 *                                 they are a client's, and not set. kslab itself looks at poisoned
 *                                 bytes: compile it without the checker.
 *
 * Also expected from the kernel, because compilers expect them: memcpy, memset, memmove, memcmp.
 */
#ifndef KSLAB_PORT_H
#define KSLAB_PORT_H

#include <kslab/config.h>

#ifdef __cplusplus
extern "C" {
#endif

#ifndef KSLAB_PORT_CPU
#if KSLAB_CFG_CPUS == 1
#define KSLAB_PORT_CPU() 0u
#else
unsigned kslab_port_cpu(void);
#define KSLAB_PORT_CPU() kslab_port_cpu()
#endif
#endif

struct kslab_zone;
/* What a CPU has that is not online: owns nothing, always busy. */
extern struct kslab_zone kslab_zone_none;

#if defined(KSLAB_PORT_PIN) != defined(KSLAB_PORT_UNPIN)
#error "KSLAB_PORT_PIN, KSLAB_PORT_UNPIN: both or none"
#endif
#ifndef KSLAB_PORT_PIN
#define KSLAB_PORT_PIN() ((void)0)
#define KSLAB_PORT_UNPIN() ((void)0)
#endif

#if defined(KSLAB_PORT_IRQ_SAVE) != defined(KSLAB_PORT_IRQ_RESTORE)
#error "KSLAB_PORT_IRQ_SAVE, KSLAB_PORT_IRQ_RESTORE: both or none"
#endif
#ifndef KSLAB_PORT_IRQ_SAVE
#if KSLAB_CFG_CPUS == 1
/* So that only handlers can find the lock taken: no other thread runs meanwhile. */
static inline uintptr_t kslab_port_pin_save(void)
{
	KSLAB_PORT_PIN();
	return 0;
}
static inline void kslab_port_pin_restore(uintptr_t state)
{
	(void)state;
	KSLAB_PORT_UNPIN();
}
#define KSLAB_PORT_IRQ_SAVE() kslab_port_pin_save()
#define KSLAB_PORT_IRQ_RESTORE(state) kslab_port_pin_restore(state)
#else
uintptr_t kslab_port_irq_save(void);
void kslab_port_irq_restore(uintptr_t state);
#define KSLAB_PORT_IRQ_SAVE() kslab_port_irq_save()
#define KSLAB_PORT_IRQ_RESTORE(state) kslab_port_irq_restore(state)
#endif
#endif

#ifndef KSLAB_PORT_IN_NMI
#define KSLAB_PORT_IN_NMI() 0
#endif

#ifndef KSLAB_PORT_RELAX
#if defined(__x86_64__) || defined(__i386__)
#define KSLAB_PORT_RELAX() __asm__ volatile("pause" ::: "memory")
#else
#define KSLAB_PORT_RELAX() __asm__ volatile("" ::: "memory")
#endif
#endif

#ifndef KSLAB_PORT_NO_ZONE
#define KSLAB_PORT_NO_ZONE() ((void)0)
#endif

#if defined(KSLAB_PORT_POISON) != defined(KSLAB_PORT_UNPOISON)
#error "KSLAB_PORT_POISON, KSLAB_PORT_UNPOISON: both or none"
#endif
#ifndef KSLAB_PORT_POISON
#define KSLAB_PORT_POISON(mem, bytes) ((void)(mem), (void)(bytes))
#define KSLAB_PORT_UNPOISON(mem, bytes) ((void)(mem), (void)(bytes))
#endif

#ifdef __cplusplus
}
#endif
#endif
