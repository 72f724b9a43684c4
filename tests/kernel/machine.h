/* SPDX-License-Identifier: MIT
 * machine.h - owns the few instructions that must be inline, for each machine the test kernel boots
 * on.
 * Runs: any CPU, any level.
 *
 * Each CPU keeps a struct machine_cpu where one instruction finds it: %gs, TPIDR_EL1, tp.
 */
#ifndef KERNEL_MACHINE_H
#define KERNEL_MACHINE_H

#include <stdint.h>

struct machine_cpu {
	uint32_t number;
	uint32_t in_nmi; /* written by this CPU's NMI entry and exit */
};

#if defined(__x86_64__)

#define ARCH_DIRECT_MAP ((uintptr_t)0xffff888000000000u) /* physical address 0 */

/* Not volatile: a piece of code never changes its CPU here. */
static inline unsigned machine_cpu(void)
{
	unsigned number;

	__asm__("movl %%gs:0, %0" : "=r"(number));
	return number;
}

static inline unsigned machine_in_nmi(void)
{
	unsigned in_nmi;

	__asm__ volatile("movl %%gs:4, %0" : "=r"(in_nmi));
	return in_nmi;
}

static inline uintptr_t machine_irq_save(void)
{
	uintptr_t flags;

	__asm__ volatile("pushfq; popq %0; cli" : "=r"(flags) : : "memory");
	return flags;
}

static inline void machine_irq_restore(uintptr_t flags)
{
	__asm__ volatile("pushq %0; popfq" : : "r"(flags) : "memory", "cc");
}

static inline void machine_irq_enable(void)
{
	__asm__ volatile("sti" : : : "memory");
}

static inline void machine_relax(void)
{
	__asm__ volatile("pause" : : : "memory");
}

/* Until an interrupt comes, which must be unmasked (or there is none but NMIs to wait for). */
static inline void machine_wait(void)
{
	__asm__ volatile("hlt" : : : "memory");
}

static inline uint64_t machine_cycles(void)
{
	uint32_t low, high;

	__asm__ volatile("rdtsc" : "=a"(low), "=d"(high));
	return (uint64_t)high << 32 | low;
}

#elif defined(__aarch64__)

#define ARCH_DIRECT_MAP ((uintptr_t)0)

static inline struct machine_cpu *machine_self(void)
{
	struct machine_cpu *self;

	__asm__("mrs %0, tpidr_el1" : "=r"(self));
	return self;
}

static inline unsigned machine_cpu(void)
{
	return machine_self()->number;
}

static inline unsigned machine_in_nmi(void)
{
	return *(volatile uint32_t *)&machine_self()->in_nmi;
}

/*
 * Masking leaves PSTATE.F alone: the fast interrupt of another CPU comes through, and plays the
 * NMI.
 */
static inline uintptr_t machine_irq_save(void)
{
	uintptr_t flags;

	__asm__ volatile("mrs %0, daif; msr daifset, #2" : "=r"(flags) : : "memory");
	return flags;
}

static inline void machine_irq_restore(uintptr_t flags)
{
	__asm__ volatile("msr daif, %0" : : "r"(flags) : "memory");
}

static inline void machine_irq_enable(void)
{
	__asm__ volatile("msr daifclr, #2" : : : "memory");
}

static inline void machine_relax(void)
{
	__asm__ volatile("yield" : : : "memory");
}

static inline void machine_wait(void)
{
	__asm__ volatile("wfi" : : : "memory");
}

static inline uint64_t machine_cycles(void)
{
	uint64_t count;

	__asm__ volatile("isb; mrs %0, cntvct_el0" : "=r"(count));
	return count;
}

#elif defined(__riscv)

#define ARCH_DIRECT_MAP ((uintptr_t)0)

static inline struct machine_cpu *machine_self(void)
{
	struct machine_cpu *self;

	__asm__("mv %0, tp" : "=r"(self));
	return self;
}

static inline unsigned machine_cpu(void)
{
	return machine_self()->number;
}

static inline unsigned machine_in_nmi(void)
{
	return *(volatile uint32_t *)&machine_self()->in_nmi;
}

/*
 * Masking leaves mstatus.MIE alone and clears mie.MTIE: the software interrupt of another hart
 * comes through, and plays the NMI.
 */
#define MACHINE_MIE_MTIE 0x80u
#define MACHINE_MSTATUS_MIE 8u

static inline uintptr_t machine_irq_save(void)
{
	uintptr_t flags;

	__asm__ volatile("csrrc %0, mie, %1" : "=r"(flags) : "r"(MACHINE_MIE_MTIE) : "memory");
	return flags;
}

static inline void machine_irq_restore(uintptr_t flags)
{
	__asm__ volatile("csrs mie, %0" : : "r"(flags & MACHINE_MIE_MTIE) : "memory");
}

static inline void machine_irq_enable(void)
{
	__asm__ volatile("csrs mie, %0" : : "r"(MACHINE_MIE_MTIE) : "memory");
	__asm__ volatile("csrs mstatus, %0" : : "r"(MACHINE_MSTATUS_MIE) : "memory");
}

static inline void machine_relax(void)
{
	__asm__ volatile("" : : : "memory");
}

static inline void machine_wait(void)
{
	__asm__ volatile("wfi" : : : "memory");
}

/* The CLINT's clock: 10 MHz, the same for all harts. */
static inline uint64_t machine_cycles(void)
{
	return *(volatile uint64_t *)0x200bff8u;
}

#else
#error "no machine"
#endif

#endif
