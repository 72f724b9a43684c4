/* SPDX-License-Identifier: MIT
 * port.h - owns what the test kernel tells kslab: its knobs and its port macros (KSLAB_CFG_HEADER).
 * Rank: 0.  Runs: inlined into every kslab call, on any CPU, at any level.
 */
#ifndef KERNEL_PORT_H
#define KERNEL_PORT_H

#include "machine.h"

/* The one switch: 0 leaves out everything that needs a second CPU. */
#ifndef KERNEL_SMP
#define KERNEL_SMP 1
#endif

#define KERNEL_CPUS 4 /* boot_x86_64.S and its like have stacks for so many */
#define KSLAB_CFG_CPUS (KERNEL_SMP ? KERNEL_CPUS : 1)
#define KSLAB_CFG_LEVELS 4

/* This kernel never preempts: PIN and UNPIN stay empty. */
#define KSLAB_PORT_CPU() machine_cpu()
#define KSLAB_PORT_IRQ_SAVE() machine_irq_save()
#define KSLAB_PORT_IRQ_RESTORE(state) machine_irq_restore(state)
#define KSLAB_PORT_IN_NMI() machine_in_nmi()
#define KSLAB_PORT_RELAX() machine_relax()

#endif
