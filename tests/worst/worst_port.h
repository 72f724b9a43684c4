/* SPDX-License-Identifier: MIT
 * worst_port.h - owns the machine of worst.c: one thread plays all CPUs, and says which one it is
 * (KSLAB_CFG_HEADER).
 * Rank: 0.  Runs: inlined into every kslab call.
 */
#ifndef WORST_PORT_H
#define WORST_PORT_H

#define KSLAB_CFG_CPUS 4

/* Volatile: the handler of the steps looks at it in between. */
extern unsigned worst_cpu, worst_nmi;
extern volatile unsigned worst_masked;

#define KSLAB_PORT_CPU() worst_cpu
#define KSLAB_PORT_IRQ_SAVE() ((uintptr_t)worst_masked++)
#define KSLAB_PORT_IRQ_RESTORE(state) (worst_masked = (unsigned)(state))
#define KSLAB_PORT_IN_NMI() (worst_nmi != 0)

#endif
