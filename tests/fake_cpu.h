/* SPDX-License-Identifier: MIT
 * fake_cpu.h - owns the CPU that a test thread plays: its number, pins, masked interrupts, NMI
 * (KSLAB_CFG_HEADER).
 * Rank: test helper.  Runs: inlined into every kslab call of a program whose BUILD line names it.
 *
 * Exactly one file of the program says FAKE_CPU_DEFINE. A test looks at fake_pins and fake_masked
 * to prove that callbacks and hooks run unpinned and with interrupts as the caller had them.
 */
#ifndef FAKE_CPU_H
#define FAKE_CPU_H

#include <sched.h>
#include <stdint.h>

extern __thread unsigned fake_cpu;
extern __thread unsigned fake_pins; /* depth of KSLAB_PORT_PIN */
extern __thread unsigned fake_masked; /* depth of KSLAB_PORT_IRQ_SAVE */
extern __thread unsigned fake_nmi; /* nonzero: an NMI handler runs */
/* NULL, or what really masks: 1 at the outermost SAVE, 0 at its RESTORE */
extern void (*fake_mask)(int mask);
extern void (*fake_on_relax)(void); /* NULL, or what others do while this CPU spins */
extern int fake_yields; /* nonzero: threads may be more than processors, spinning lets others run */

#define FAKE_CPU_DEFINE                                                                            \
	__thread unsigned fake_cpu, fake_pins, fake_masked, fake_nmi;                              \
	int fake_yields;                                                                           \
	void (*fake_on_relax)(void);                                                               \
	void (*fake_mask)(int mask)

static inline uintptr_t fake_irq_save(void)
{
	if (fake_mask != 0 && fake_masked == 0)
		fake_mask(1);
	return fake_masked++;
}

static inline void fake_irq_restore(uintptr_t state)
{
	fake_masked = (unsigned)state;
	if (fake_mask != 0 && fake_masked == 0)
		fake_mask(0);
}

static inline void fake_relax(void)
{
	if (fake_on_relax != 0)
		fake_on_relax();
	if (fake_yields)
		sched_yield();
}

#define KSLAB_PORT_CPU() fake_cpu
#define KSLAB_PORT_PIN() ((void)fake_pins++)
#define KSLAB_PORT_UNPIN() ((void)fake_pins--)
#define KSLAB_PORT_IRQ_SAVE() fake_irq_save()
#define KSLAB_PORT_IRQ_RESTORE(state) fake_irq_restore(state)
#define KSLAB_PORT_IN_NMI() (fake_nmi != 0)
#define KSLAB_PORT_RELAX() fake_relax()

#endif
