/* SPDX-License-Identifier: MIT
 * broken_port.h - owns port macros that can be broken on purpose, one way at a time
 * (KSLAB_CFG_HEADER).
 * Rank: test helper.
 */
#ifndef BROKEN_PORT_H
#define BROKEN_PORT_H

#include <stdint.h>

enum broken {
	BROKEN_NOT,
	BROKEN_CPU_RANGE,
	BROKEN_CPU_UNSTABLE,
	BROKEN_CPU_SECOND,
	BROKEN_IRQ_STAYS_MASKED,
	BROKEN_IRQ_ALWAYS_ENABLES,
	BROKEN_NMI,
};

extern enum broken broken;
extern unsigned broken_masked; /* interrupts: 0 enabled */
extern unsigned broken_calls;

static inline unsigned broken_cpu(void)
{
	if (broken == BROKEN_CPU_RANGE)
		return 4;
	if (broken == BROKEN_CPU_SECOND)
		return 1;
	return broken == BROKEN_CPU_UNSTABLE ? broken_calls++ / 100 % 2 : 0;
}

static inline uintptr_t broken_irq_save(void)
{
	uintptr_t state = broken_masked;

	broken_masked = 1;
	return state;
}

static inline void broken_irq_restore(uintptr_t state)
{
	if (broken == BROKEN_IRQ_STAYS_MASKED)
		return;
	broken_masked = broken == BROKEN_IRQ_ALWAYS_ENABLES ? 0 : (unsigned)state;
}

#define KSLAB_PORT_CPU() broken_cpu()
#define KSLAB_PORT_IRQ_SAVE() broken_irq_save()
#define KSLAB_PORT_IRQ_RESTORE(state) broken_irq_restore(state)
#define KSLAB_PORT_IN_NMI() (broken == BROKEN_NMI)

#endif
