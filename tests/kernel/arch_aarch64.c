/* SPDX-License-Identifier: MIT
 * arch_aarch64.c - owns QEMU's virt board with aarch64: PL011, semihosting exit, PSCI, GICv2,
 * generic timer.
 * Runs: as arch.h says; trap() on the interrupted stack of any CPU.
 *
 * Interrupts are group 1 and arrive as IRQ. One software interrupt is group 0, arrives as FIQ, and
 * is never masked: it is this machine's NMI.
 */
#include "arch.h"
#include "crash.h"
#include "fdt.h"
#include "kprint.h"

#define FDT 0x40000000u /* where QEMU leaves the device tree */

#define UART 0x09000000u
#define UART_DATA 0x00u
#define UART_FLAGS 0x18u
#define UART_FULL 0x20u

#define GICD 0x08000000u
#define GICD_CTLR 0x000u
#define GICD_IGROUPR 0x080u
#define GICD_ISENABLER 0x100u
#define GICD_IPRIORITYR 0x400u
#define GICD_SGIR 0xf00u
#define SGIR_OTHERS (1u << 24)

#define GICC 0x08010000u
#define GICC_CTLR 0x00u
#define GICC_PMR 0x04u
#define GICC_IAR 0x0cu
#define GICC_EOIR 0x10u
#define GICC_ENABLE_BOTH 3u
#define GICC_ACK_BOTH 4u /* IAR and EOIR serve group 1 as well: QEMU has no others */
#define GICC_FIQ_ENABLE 8u

#define INTERRUPT_ID 0x3ffu
#define INTERRUPT_NONE 1020u /* and above */
#define SGI_NMI 1u
#define PPI_TIMER 30u
#define PRIORITY_NMI 0x00u
#define PRIORITY_TIMER 0xa0u

#define PSCI_CPU_ON 0xc4000003u
#define SYS_EXIT 0x18
#define ADP_STOPPED 0x20026u

enum trap_kind { TRAP_SYNC, TRAP_IRQ, TRAP_FIQ };

extern char kernel_end[];
extern char cpu_start[];
long psci_call(unsigned long function, unsigned long a, unsigned long b, unsigned long c);
long semihosting_call(unsigned long operation, const void *block);
void cpu_entry(unsigned cpu);
void trap(enum trap_kind kind, uintptr_t address, uintptr_t stack);

static struct machine_cpu cpus[KERNEL_CPUS];
static void (*timer_handler)(void);
static void (*nmi_handler)(void);
static uint64_t timer_ticks;
static void (*cpu_main)(unsigned cpu);
static unsigned cpus_arrived;

static volatile uint32_t *reg(uintptr_t base, unsigned offset)
{
	return (volatile uint32_t *)(base + offset);
}

static uint64_t counter_hz(void)
{
	uint64_t hz;

	__asm__("mrs %0, cntfrq_el0" : "=r"(hz));
	return hz;
}

void arch_putc(char c)
{
	while (*reg(UART, UART_FLAGS) & UART_FULL)
		machine_relax();
	*reg(UART, UART_DATA) = (uint32_t)c;
}

_Noreturn void arch_exit(int code)
{
	uint64_t block[2] = { ADP_STOPPED, (uint64_t)code };

	semihosting_call(SYS_EXIT, block);
	for (;;)
		machine_wait();
}

uint64_t arch_cycles_per_ms(void)
{
	return counter_hz() / 1000;
}

/* ---- interrupts ----------------------------------------------------------------------------- */

static void timer_again(void)
{
	__asm__ volatile("msr cntp_tval_el0, %0" : : "r"(timer_ticks));
}

void arch_timer_start(unsigned period_us, void (*handler)(void))
{
	timer_handler = handler;
	timer_ticks = counter_hz() / 1000000 * period_us;
	timer_again();
	__asm__ volatile("msr cntp_ctl_el0, %0; isb" : : "r"((uint64_t)1));
	machine_irq_enable();
}

void arch_timer_stop(void)
{
	__asm__ volatile("msr cntp_ctl_el0, %0; isb" : : "r"((uint64_t)0));
}

void arch_set_nmi_handler(void (*handler)(void))
{
	__atomic_store_n(&nmi_handler, handler, __ATOMIC_RELEASE);
}

bool arch_send_nmi(void)
{
	*reg(GICD, GICD_SGIR) = SGIR_OTHERS | SGI_NMI;
	return true;
}

static void handle_timer(void)
{
	__asm__ volatile("msr daifclr, #1" : : : "memory");
	timer_handler();
	__asm__ volatile("msr daifset, #1" : : : "memory");
}

static void handle_nmi(void)
{
	void (*handler)(void) = __atomic_load_n(&nmi_handler, __ATOMIC_ACQUIRE);
	struct machine_cpu *self = machine_self();

	*(volatile uint32_t *)&self->in_nmi = 1;
	if (handler != NULL)
		handler();
	*(volatile uint32_t *)&self->in_nmi = 0;
}

/*
 * As FIQ only the NMI can come, as IRQ both. The interrupt ends before its handler runs: masks do
 * the rest.
 */
static void handle_interrupt(void)
{
	uint32_t ack = *reg(GICC, GICC_IAR), id = ack & INTERRUPT_ID;

	if (id >= INTERRUPT_NONE)
		return;
	if (id == PPI_TIMER)
		timer_again(); /* lowers the line */
	*reg(GICC, GICC_EOIR) = ack;
	if (id == PPI_TIMER)
		handle_timer();
	else if (id == SGI_NMI)
		handle_nmi();
}

void trap(enum trap_kind kind, uintptr_t address, uintptr_t stack)
{
	uint64_t esr, far;

	if (kind != TRAP_SYNC) {
		handle_interrupt();
	} else {
		__asm__ volatile("mrs %0, esr_el1; mrs %1, far_el1" : "=r"(esr), "=r"(far));
		kprintf("\nCPU %u: exception: esr %lx  elr %lx  far %lx  sp %lx\n", machine_cpu(),
			(unsigned long)esr, (unsigned long)address, (unsigned long)far,
			(unsigned long)stack);
		crash(stack);
	}
}

/* The distributor's registers for interrupts below 32 are each CPU's own. */
static void cpu_init(unsigned cpu)
{
	cpus[cpu].number = cpu;
	__asm__ volatile("msr tpidr_el1, %0" : : "r"(&cpus[cpu]) : "memory");
	*reg(GICD, GICD_CTLR) = GICC_ENABLE_BOTH;
	*reg(GICD, GICD_IGROUPR) = ~(1u << SGI_NMI);
	*(volatile uint8_t *)reg(GICD, GICD_IPRIORITYR + SGI_NMI) = PRIORITY_NMI;
	*(volatile uint8_t *)reg(GICD, GICD_IPRIORITYR + PPI_TIMER) = PRIORITY_TIMER;
	*reg(GICD, GICD_ISENABLER) = 1u << SGI_NMI | 1u << PPI_TIMER;
	*reg(GICC, GICC_PMR) = 0xff;
	*reg(GICC, GICC_CTLR) = GICC_ENABLE_BOTH | GICC_ACK_BOTH | GICC_FIQ_ENABLE;
	__asm__ volatile("msr daifclr, #1" : : : "memory");
}

/* ---- start ---------------------------------------------------------------------------------- */

void cpu_entry(unsigned cpu)
{
	void (*fn)(unsigned);

	cpu_init(cpu);
	if (cpu == 0) {
		fdt_options((const void *)(uintptr_t)FDT);
		if (fdt_add_memory((const void *)(uintptr_t)FDT, (uintptr_t)kernel_end) == 0)
			kprintf("no device tree with memory\n");
		kernel_main();
	}
	__atomic_fetch_add(&cpus_arrived, 1, __ATOMIC_RELEASE);
	do {
		machine_relax();
		fn = __atomic_load_n(&cpu_main, __ATOMIC_ACQUIRE);
	} while (fn == NULL);
	fn(cpu);
}

unsigned arch_start_cpus(void (*fn)(unsigned cpu))
{
	unsigned started = 1;

	while (started < KERNEL_CPUS &&
	       psci_call(PSCI_CPU_ON, started, (uintptr_t)cpu_start, started) == 0)
		started++;
	while (__atomic_load_n(&cpus_arrived, __ATOMIC_ACQUIRE) != started - 1)
		machine_relax();
	__atomic_store_n(&cpu_main, fn, __ATOMIC_RELEASE);
	return started;
}
