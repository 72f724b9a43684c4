/* SPDX-License-Identifier: MIT
 * arch.h - owns the interface between the test kernel and a machine: its boot_, arch_ and linker
 * script.
 *
 * The machine calls kernel_main() on the boot CPU, CPU 0, with interrupts masked, after arch_init()
 * gave all memory that is free to frames_add(). CPU numbers are 0, 1, 2 ... without a gap.
 */
#ifndef KERNEL_ARCH_H
#define KERNEL_ARCH_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "machine.h"
#include "port.h"

_Noreturn void kernel_main(void);

/* Context of both: any, no lock. arch_exit ends QEMU: 0 is success. */
void arch_putc(char c);
_Noreturn void arch_exit(int code);

/* Ticks of machine_cycles() in a millisecond. */
uint64_t arch_cycles_per_ms(void);

/*
 * arch_start_cpus - start the other CPUs, each in fn(its number) on its own stack, interrupts
 * masked
 * Context: CPU 0, once. fn MUST not return. Return: CPUs that run, this one included; at most
 * KERNEL_CPUS.
 */
unsigned arch_start_cpus(void (*fn)(unsigned cpu));

/*
 * arch_timer_start - interrupt this CPU every period_us microseconds; unmasks interrupts
 * arch_timer_stop - end that, on this CPU.
 * The handler runs on the interrupted stack, interrupts masked; it is the same on all CPUs.
 */
void arch_timer_start(unsigned period_us, void (*handler)(void));
void arch_timer_stop(void);

/*
 * arch_send_nmi - interrupt all other CPUs with something that no mask holds back; false: not on
 * this machine The handler runs with machine_in_nmi() true, on top of whatever was interrupted.
 */
bool arch_send_nmi(void);
void arch_set_nmi_handler(void (*handler)(void));

#endif
