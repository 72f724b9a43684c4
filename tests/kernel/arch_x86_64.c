/* SPDX-License-Identifier: MIT
 * arch_x86_64.c - owns the PC: serial port, exit device, PVH memory map, local APIC, interrupt
 * vectors.
 * Runs: as arch.h says; trap() on the interrupted stack of any CPU.
 */
#include "arch.h"
#include "crash.h"
#include "frames.h"
#include "kprint.h"
#include "options.h"

#define KERNEL_BASE 0xffffffff80000000u /* linker/x86_64.ld */
#define TRAMPOLINE 0x8000u /* below 1 MiB, page aligned: a CPU can be started there */
#define VECTORS 65u /* entries of vectors[] in boot_x86_64.S */
#define VECTOR_BYTES 16u
#define VECTOR_NMI 2u
#define VECTOR_SPURIOUS 63u
#define VECTOR_TIMER 64u
#define CODE64 0x08u

#define PORT_SERIAL 0x3f8u
#define PORT_EXIT 0xf4u
#define PORT_PIT_2 0x42u
#define PORT_PIT_MODE 0x43u
#define PORT_SPEAKER 0x61u /* bit 0: gate of PIT channel 2; bit 5: its output */
#define PIT_HZ 1193182u
#define CALIBRATE_MS 10u

#define LAPIC_EOI 0x0b0u
#define LAPIC_SPURIOUS 0x0f0u
#define LAPIC_ICR 0x300u
#define LAPIC_TIMER 0x320u
#define LAPIC_TIMER_INITIAL 0x380u
#define LAPIC_TIMER_CURRENT 0x390u
#define LAPIC_TIMER_DIVIDE 0x3e0u
#define LAPIC_ENABLE 0x100u
#define LAPIC_MASKED 0x10000u
#define LAPIC_PERIODIC 0x20000u
#define LAPIC_DIVIDE_BY_1 0x0bu
#define ICR_OTHERS_NMI 0xc4400u
#define ICR_OTHERS_INIT 0xc4500u
#define ICR_OTHERS_STARTUP (0xc4600u | TRAMPOLINE >> 12)

#define MSR_GS_BASE 0xc0000101u

/* PVH: xen/include/public/arch-x86/hvm/start_info.h, version 1 */
struct start_info {
	uint32_t magic, version, flags, modules;
	uint64_t module_list, command_line, rsdp, memory_map;
	uint32_t memory_map_entries, reserved;
};
#define START_INFO_MAGIC 0x336ec578u

struct memory_map_entry {
	uint64_t address, bytes;
	uint32_t type, reserved;
};
#define MEMORY_RAM 1u

/* What boot_x86_64.S pushes. */
struct frame {
	uint64_t r15, r14, r13, r12, r11, r10, r9, r8, rdi, rsi, rbp, rbx, rdx, rcx, rax;
	uint64_t vector, error;
	uint64_t rip, cs, rflags, rsp, ss;
};

struct gate {
	uint16_t offset_0, selector;
	uint8_t stack, type;
	uint16_t offset_16;
	uint32_t offset_32, reserved;
};
#define GATE_INTERRUPT 0x8eu

extern uint32_t boot_info; /* physical address of struct start_info */
extern uint64_t pml4[512];
extern char vectors[], cpu_trampoline[], cpu_trampoline_end[];
extern char kernel_end[]; /* its address is the first physical one behind the kernel */

void cpu_entry(unsigned cpu);
void trap(struct frame *frame);

static struct machine_cpu cpus[KERNEL_CPUS];
static struct gate gates[VECTORS];
static uint64_t tsc_per_ms, lapic_per_ms;
static void (*timer_handler)(void);
static void (*nmi_handler)(void);
static void (*cpu_main)(unsigned cpu); /* set when the other CPUs may go on */
static unsigned cpus_arrived; /* other CPUs that reached cpu_entry */

/* ---- ports and registers -------------------------------------------------------------------- */

static void out8(uint16_t port, uint8_t value)
{
	__asm__ volatile("outb %0, %1" : : "a"(value), "Nd"(port));
}

static void out32(uint16_t port, uint32_t value)
{
	__asm__ volatile("outl %0, %1" : : "a"(value), "Nd"(port));
}

static uint8_t in8(uint16_t port)
{
	uint8_t value;

	__asm__ volatile("inb %1, %0" : "=a"(value) : "Nd"(port));
	return value;
}

static volatile uint32_t *lapic(unsigned reg)
{
	return (volatile uint32_t *)(ARCH_DIRECT_MAP + 0xfee00000u + reg);
}

static void load_cr3(void)
{
	__asm__ volatile("movq %0, %%cr3" : : "r"((uintptr_t)pml4 - KERNEL_BASE) : "memory");
}

/* Only CPUs that start need it. Without it NULL faults. */
static void show_identity_map(bool show)
{
	pml4[0] = show ? pml4[ARCH_DIRECT_MAP >> 39 & 511] : 0;
	load_cr3();
}

void arch_putc(char c)
{
	while (!(in8(PORT_SERIAL + 5) & 0x20))
		machine_relax();
	out8(PORT_SERIAL, (uint8_t)c);
}

_Noreturn void arch_exit(int code)
{
	out32(PORT_EXIT, (uint32_t)code);
	for (;;)
		__asm__ volatile("cli; hlt");
}

/* ---- time ----------------------------------------------------------------------------------- */

uint64_t arch_cycles_per_ms(void)
{
	return tsc_per_ms;
}

static void delay_us(unsigned us)
{
	uint64_t end = machine_cycles() + tsc_per_ms * us / 1000;

	while (machine_cycles() < end)
		machine_relax();
}

/* Counts TSC and APIC timer against one run of the PIT's channel 2. */
static void calibrate(void)
{
	const unsigned count = PIT_HZ * CALIBRATE_MS / 1000;
	uint64_t tsc;

	*lapic(LAPIC_TIMER_DIVIDE) = LAPIC_DIVIDE_BY_1;
	*lapic(LAPIC_TIMER) = LAPIC_MASKED;
	out8(PORT_SPEAKER, (uint8_t)((in8(PORT_SPEAKER) & ~3u) | 1));
	out8(PORT_PIT_MODE, 0xb0); /* channel 2, both bytes, mode 0: output rises at zero */
	out8(PORT_PIT_2, (uint8_t)count);
	out8(PORT_PIT_2, (uint8_t)(count >> 8));
	*lapic(LAPIC_TIMER_INITIAL) = UINT32_MAX;
	tsc = machine_cycles();
	while (!(in8(PORT_SPEAKER) & 0x20))
		machine_relax();
	tsc_per_ms = (machine_cycles() - tsc) / CALIBRATE_MS;
	lapic_per_ms = (UINT32_MAX - *lapic(LAPIC_TIMER_CURRENT)) / CALIBRATE_MS;
	*lapic(LAPIC_TIMER_INITIAL) = 0;
}

void arch_timer_start(unsigned period_us, void (*handler)(void))
{
	timer_handler = handler;
	*lapic(LAPIC_TIMER_DIVIDE) = LAPIC_DIVIDE_BY_1;
	*lapic(LAPIC_TIMER) = LAPIC_PERIODIC | VECTOR_TIMER;
	*lapic(LAPIC_TIMER_INITIAL) = (uint32_t)(lapic_per_ms * period_us / 1000);
	machine_irq_enable();
}

void arch_timer_stop(void)
{
	uintptr_t flags = machine_irq_save();

	*lapic(LAPIC_TIMER) = LAPIC_MASKED;
	*lapic(LAPIC_TIMER_INITIAL) = 0;
	machine_irq_restore(flags);
}

/* ---- interrupts ----------------------------------------------------------------------------- */

void arch_set_nmi_handler(void (*handler)(void))
{
	__atomic_store_n(&nmi_handler, handler, __ATOMIC_RELEASE);
}

bool arch_send_nmi(void)
{
	uintptr_t flags = machine_irq_save();

	while (*lapic(LAPIC_ICR) & 0x1000) /* the one before is still on its way */
		machine_relax();
	*lapic(LAPIC_ICR) = ICR_OTHERS_NMI;
	machine_irq_restore(flags);
	return true;
}

static _Noreturn void die(const struct frame *frame)
{
	uint64_t cr2;

	__asm__ volatile("movq %%cr2, %0" : "=r"(cr2));
	kprintf("\nCPU %u: exception %u, error %x\n", machine_cpu(), (unsigned)frame->vector,
		(unsigned)frame->error);
	kprintf("  rip %lx  rsp %lx  cr2 %lx  rflags %lx\n", (unsigned long)frame->rip,
		(unsigned long)frame->rsp, (unsigned long)cr2, (unsigned long)frame->rflags);
	kprintf("  rax %lx  rcx %lx  rdx %lx  rbx %lx  rdi %lx  rsi %lx\n",
		(unsigned long)frame->rax, (unsigned long)frame->rcx, (unsigned long)frame->rdx,
		(unsigned long)frame->rbx, (unsigned long)frame->rdi, (unsigned long)frame->rsi);
	crash(frame->rsp);
}

void trap(struct frame *frame)
{
	if (frame->vector == VECTOR_TIMER) {
		timer_handler();
		*lapic(LAPIC_EOI) = 0;
	} else if (frame->vector == VECTOR_NMI) {
		void (*handler)(void) = __atomic_load_n(&nmi_handler, __ATOMIC_ACQUIRE);
		struct machine_cpu *self = &cpus[machine_cpu()];

		*(volatile uint32_t *)&self->in_nmi = 1;
		if (handler != NULL)
			handler();
		*(volatile uint32_t *)&self->in_nmi = 0;
	} else if (frame->vector != VECTOR_SPURIOUS) {
		die(frame);
	}
}

static void make_gates(void)
{
	for (unsigned i = 0; i < VECTORS; i++) {
		uintptr_t entry = (uintptr_t)vectors + i * VECTOR_BYTES;

		gates[i] = (struct gate){ .offset_0 = (uint16_t)entry,
					  .selector = CODE64,
					  .type = GATE_INTERRUPT,
					  .offset_16 = (uint16_t)(entry >> 16),
					  .offset_32 = (uint32_t)(entry >> 32) };
	}
	out8(0x21, 0xff); /* the old interrupt controllers stay silent */
	out8(0xa1, 0xff);
}

/* ---- start ---------------------------------------------------------------------------------- */

static void cpu_init(unsigned cpu)
{
	struct {
		uint16_t limit;
		uint64_t base;
	} __attribute__((packed)) idt = { sizeof(gates) - 1, (uintptr_t)gates };
	uintptr_t self = (uintptr_t)&cpus[cpu];

	cpus[cpu].number = cpu;
	__asm__ volatile("wrmsr"
			 :
			 : "c"(MSR_GS_BASE), "a"((uint32_t)self), "d"((uint32_t)(self >> 32)));
	__asm__ volatile("lidt %0" : : "m"(idt));
	*lapic(LAPIC_SPURIOUS) = LAPIC_ENABLE | VECTOR_SPURIOUS;
}

/* All RAM from the kernel's end to 4 GiB. Below 1 MiB lie the trampoline and what QEMU left. */
static void find_memory(void)
{
	const struct start_info *info = (const void *)(ARCH_DIRECT_MAP + boot_info);
	const struct memory_map_entry *map = (const void *)(ARCH_DIRECT_MAP + info->memory_map);
	const uint64_t floor = (uintptr_t)kernel_end, limit = (uint64_t)1 << 32;

	if (info->magic != START_INFO_MAGIC || info->version < 1) {
		kprintf("not booted by PVH\nFAIL\n");
		arch_exit(1);
	}
	if (info->command_line != 0)
		options_take((const char *)(ARCH_DIRECT_MAP + info->command_line));
	for (uint32_t i = 0; i < info->memory_map_entries; i++) {
		uint64_t begin = map[i].address, end = begin + map[i].bytes;

		if (begin < floor)
			begin = floor;
		if (end > limit)
			end = limit;
		if (map[i].type == MEMORY_RAM && begin < end)
			frames_add((uintptr_t)begin, (size_t)(end - begin));
	}
}

void cpu_entry(unsigned cpu)
{
	void (*fn)(unsigned);

	if (cpu == 0) {
		show_identity_map(false);
		make_gates();
		cpu_init(cpu);
		calibrate();
		find_memory();
		kernel_main();
	}
	cpu_init(cpu);
	__atomic_fetch_add(&cpus_arrived, 1, __ATOMIC_RELEASE);
	do {
		machine_relax();
		fn = __atomic_load_n(&cpu_main, __ATOMIC_ACQUIRE);
	} while (fn == NULL);
	load_cr3();
	fn(cpu);
}

unsigned arch_start_cpus(void (*fn)(unsigned cpu))
{
	volatile char *to = (volatile char *)(ARCH_DIRECT_MAP + TRAMPOLINE);
	unsigned arrived;

	for (const char *from = cpu_trampoline; from < cpu_trampoline_end; from++)
		*to++ = *(const char *)((uintptr_t)from + KERNEL_BASE);
	show_identity_map(true);
	*lapic(LAPIC_ICR) = ICR_OTHERS_INIT;
	delay_us(10000);
	*lapic(LAPIC_ICR) = ICR_OTHERS_STARTUP;
	delay_us(200);
	*lapic(LAPIC_ICR) = ICR_OTHERS_STARTUP;
	for (unsigned ms = 0; ms < 200; ms++) {
		delay_us(1000);
		if (__atomic_load_n(&cpus_arrived, __ATOMIC_ACQUIRE) == KERNEL_CPUS - 1)
			break;
	}
	arrived = __atomic_load_n(&cpus_arrived, __ATOMIC_ACQUIRE);
	show_identity_map(false); /* they see it when they load CR3 */
	__atomic_store_n(&cpu_main, fn, __ATOMIC_RELEASE);
	return arrived + 1;
}
