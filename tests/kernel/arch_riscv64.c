/* SPDX-License-Identifier: MIT
 * arch_riscv64.c - owns QEMU's virt board with riscv64 in machine mode: UART, test finisher, CLINT.
 * Runs: as arch.h says; trap() on the interrupted stack of any hart.
 *
 * Harts are CPUs 0, 1, 2 ...; all start by themselves, and wait. Masking interrupts means the
 * timer's alone (see machine.h), so that the software interrupt is this machine's NMI.
 */
#include "arch.h"
#include "crash.h"
#include "fdt.h"
#include "kprint.h"

#define UART 0x10000000u
#define UART_LINE_STATUS 5u
#define UART_EMPTY 0x20u

#define FINISHER 0x100000u
#define FINISHER_PASS 0x5555u
#define FINISHER_FAIL 0x3333u

#define CLINT_MSIP 0x02000000u
#define CLINT_MTIMECMP 0x02004000u
#define CLINT_PER_MS 10000u

#define CAUSE_INTERRUPT ((uintptr_t)1 << 63)
#define CAUSE_SOFTWARE (CAUSE_INTERRUPT | 3)
#define CAUSE_TIMER (CAUSE_INTERRUPT | 7)
#define MIE_MSIE 8u

#define ARRIVAL_MS 100u

extern char kernel_end[];
void cpu_entry(unsigned cpu, const void *fdt);
void trap(uintptr_t cause, uintptr_t address, uintptr_t stack);

static struct machine_cpu cpus[KERNEL_CPUS];
static void (*timer_handler)(void);
static void (*nmi_handler)(void);
static uint64_t timer_ticks;
static void (*cpu_main)(unsigned cpu);
static unsigned cpus_arrived; /* bit per CPU */

static volatile uint32_t *msip(unsigned cpu)
{
	return (volatile uint32_t *)(uintptr_t)CLINT_MSIP + cpu;
}

static volatile uint64_t *timer_compare(void)
{
	return (volatile uint64_t *)(uintptr_t)CLINT_MTIMECMP + machine_cpu();
}

void arch_putc(char c)
{
	volatile uint8_t *uart = (volatile uint8_t *)(uintptr_t)UART;

	while (!(uart[UART_LINE_STATUS] & UART_EMPTY))
		machine_relax();
	uart[0] = (uint8_t)c;
}

_Noreturn void arch_exit(int code)
{
	*(volatile uint32_t *)(uintptr_t)FINISHER =
		code == 0 ? FINISHER_PASS : (uint32_t)code << 16 | FINISHER_FAIL;
	for (;;)
		machine_wait();
}

uint64_t arch_cycles_per_ms(void)
{
	return CLINT_PER_MS;
}

/* ---- interrupts ----------------------------------------------------------------------------- */

void arch_timer_start(unsigned period_us, void (*handler)(void))
{
	timer_handler = handler;
	timer_ticks = (uint64_t)CLINT_PER_MS * period_us / 1000;
	*timer_compare() = machine_cycles() + timer_ticks;
	machine_irq_enable();
}

void arch_timer_stop(void)
{
	machine_irq_save();
}

void arch_set_nmi_handler(void (*handler)(void))
{
	__atomic_store_n(&nmi_handler, handler, __ATOMIC_RELEASE);
}

bool arch_send_nmi(void)
{
	unsigned arrived = __atomic_load_n(&cpus_arrived, __ATOMIC_ACQUIRE);

	for (unsigned cpu = 0; cpu < KERNEL_CPUS; cpu++)
		if (cpu != machine_cpu() && (arrived >> cpu & 1))
			*msip(cpu) = 1;
	return true;
}

/* The handler runs with the timer masked, and everything else let through. */
static void handle_timer(void)
{
	uintptr_t flags = machine_irq_save();

	*timer_compare() = machine_cycles() + timer_ticks;
	__asm__ volatile("csrs mstatus, %0" : : "r"(MACHINE_MSTATUS_MIE) : "memory");
	timer_handler();
	__asm__ volatile("csrc mstatus, %0" : : "r"(MACHINE_MSTATUS_MIE) : "memory");
	machine_irq_restore(flags);
}

static void handle_software(void)
{
	void (*handler)(void) = __atomic_load_n(&nmi_handler, __ATOMIC_ACQUIRE);
	struct machine_cpu *self = machine_self();

	*msip(self->number) = 0;
	*(volatile uint32_t *)&self->in_nmi = 1;
	if (handler != NULL)
		handler();
	*(volatile uint32_t *)&self->in_nmi = 0;
}

void trap(uintptr_t cause, uintptr_t address, uintptr_t stack)
{
	uintptr_t value;

	if (cause == CAUSE_TIMER) {
		handle_timer();
	} else if (cause == CAUSE_SOFTWARE) {
		handle_software();
	} else {
		__asm__ volatile("csrr %0, mtval" : "=r"(value));
		kprintf("\nCPU %u: trap: cause %lx  pc %lx  value %lx  sp %lx\n", machine_cpu(),
			(unsigned long)cause, (unsigned long)address, (unsigned long)value,
			(unsigned long)stack);
		crash(stack);
	}
}

/* ---- start ---------------------------------------------------------------------------------- */

void cpu_entry(unsigned cpu, const void *fdt)
{
	void (*fn)(unsigned);

	cpus[cpu].number = cpu;
	__asm__ volatile("mv tp, %0" : : "r"(&cpus[cpu]) : "memory");
	__asm__ volatile("csrs mie, %0; csrs mstatus, %1"
			 :
			 : "r"(MIE_MSIE), "r"(MACHINE_MSTATUS_MIE));
	__atomic_fetch_or(&cpus_arrived, 1u << cpu, __ATOMIC_RELEASE);
	if (cpu == 0) {
		fdt_options(fdt);
		if (fdt_add_memory(fdt, (uintptr_t)kernel_end) == 0)
			kprintf("no device tree with memory\n");
		kernel_main();
	}
	do {
		machine_wait(); /* for the software interrupt of arch_start_cpus */
		fn = __atomic_load_n(&cpu_main, __ATOMIC_ACQUIRE);
	} while (fn == NULL);
	fn(cpu);
}

unsigned arch_start_cpus(void (*fn)(unsigned cpu))
{
	uint64_t end = machine_cycles() + ARRIVAL_MS * CLINT_PER_MS;
	unsigned count = 0;

	while (__atomic_load_n(&cpus_arrived, __ATOMIC_ACQUIRE) != (1u << KERNEL_CPUS) - 1 &&
	       machine_cycles() < end)
		machine_relax();
	while (count < KERNEL_CPUS && (cpus_arrived >> count & 1))
		count++;
	__atomic_store_n(&cpu_main, fn, __ATOMIC_RELEASE);
	arch_send_nmi(); /* wakes those that wait */
	return count;
}
