/* SPDX-License-Identifier: MIT
 * boot_x86_64.S - owns the way from reset to C on x86_64, and the entry of interrupts.
 * Runs: the boot CPU from boot_start, every other CPU from cpu_trampoline; both meet in enter_long.
 *
 * Page tables, one for all CPUs, 2 MiB pages, the first 4 GiB of physical memory three times:
 *	0                    identity; only there while CPUs start, so that NULL faults
 *	0xffff888000000000   direct map, all of the memory the kernel hands out
 *	0xffffffff80000000   the kernel's own image, 1 GiB
 */
#define KERNEL_BASE 0xffffffff80000000
#define PHYS(symbol) ((symbol) - KERNEL_BASE)

#define TRAMPOLINE 0x8000
#define STACK_SHIFT 15
#define CPUS 4

#define XEN_ELFNOTE_PHYS32_ENTRY 18

#define CR0_PE 1
#define CR0_MP 2
#define CR0_WP (1 << 16)
#define CR0_PG (1 << 31)
#define CR4_PAE (1 << 5)
#define MSR_EFER 0xc0000080
#define EFER_LME (1 << 8)

#define PAGE_RW 3
#define PAGE_2M_RW 0x83
#define PAGE_2M_DEVICE 0x9b /* write through, not cached */
#define DEVICES 0xc0000000  /* physical addresses from here on are devices */

#define CODE64 0x08
#define DATA 0x10
#define CODE32 0x18

	/*
	 * PVH: QEMU enters here in 32-bit mode, paging off, %ebx = physical address of
	 * hvm_start_info.
	 */
	.section .note.pvh, "a", @note
	.balign 4
	.long 4, 8, XEN_ELFNOTE_PHYS32_ENTRY
	.asciz "Xen"
	.quad boot_start

	.section .boot, "ax", @progbits
	.code32
	.globl boot_start
boot_start:
	cli
	cld
	movl %ebx, PHYS(boot_info)

	movl $PHYS(pdpt_low) + PAGE_RW, PHYS(pml4)
	movl $PHYS(pdpt_low) + PAGE_RW, PHYS(pml4) + 273 * 8
	movl $PHYS(pdpt_high) + PAGE_RW, PHYS(pml4) + 511 * 8
	movl $PHYS(pd) + PAGE_RW, PHYS(pdpt_high) + 510 * 8
	movl $PHYS(pd) + PAGE_RW, %eax
	movl $PHYS(pdpt_low), %edi
	movl $4, %ecx
1:	movl %eax, (%edi)
	addl $4096, %eax
	addl $8, %edi
	loop 1b

	movl $PHYS(pd), %edi
	movl $PAGE_2M_RW, %eax
	movl $2048, %ecx
2:	cmpl $DEVICES + PAGE_2M_RW, %eax
	jne 3f
	movl $DEVICES + PAGE_2M_DEVICE, %eax
3:	movl %eax, (%edi)
	addl $0x200000, %eax
	addl $8, %edi
	loop 2b

enter_long:
	lgdt gdt_pointer
	movl %cr4, %eax
	orl $CR4_PAE, %eax
	movl %eax, %cr4
	movl $PHYS(pml4), %eax
	movl %eax, %cr3
	movl $MSR_EFER, %ecx
	rdmsr
	orl $EFER_LME, %eax
	wrmsr
	movl $(CR0_PE | CR0_MP | CR0_WP | CR0_PG), %eax
	movl %eax, %cr0
	ljmp $CODE64, $1f

	.code64
1:	movabsq $enter_high, %rax
	jmp *%rax

	.balign 16
gdt:	.quad 0
	.quad 0x00af9a000000ffff /* CODE64 */
	.quad 0x00cf92000000ffff /* DATA */
	.quad 0x00cf9a000000ffff /* CODE32 */
gdt_pointer:
	.word gdt_pointer - gdt - 1
	.long gdt

	/* The other CPUs start here in real mode, copied to TRAMPOLINE. */
	.code16
	.globl cpu_trampoline, cpu_trampoline_end
	.balign 16
cpu_trampoline:
	cli
	cld
	xorw %ax, %ax
	movw %ax, %ds
	lgdtl (trampoline_gdt - cpu_trampoline + TRAMPOLINE)
	movl %cr0, %eax
	orl $CR0_PE, %eax
	movl %eax, %cr0
	ljmpl $CODE32, $(trampoline_32 - cpu_trampoline + TRAMPOLINE)
	.code32
trampoline_32:
	movw $DATA, %ax
	movw %ax, %ds
	movl $enter_long, %eax
	jmp *%eax
	.balign 8
trampoline_gdt:
	.word gdt_pointer - gdt - 1
	.long gdt
cpu_trampoline_end:

	/* From here on in the high half. Each CPU draws its number; the boot CPU comes first. */
	.text
	.code64
enter_high:
	lgdt gdt_pointer_high
	movl $DATA, %eax
	movl %eax, %ds
	movl %eax, %es
	movl %eax, %ss
	xorl %eax, %eax
	movl %eax, %fs
	movl %eax, %gs
	movl $1, %edi
	lock xaddl %edi, cpu_ticket
	cmpl $CPUS, %edi
	jae 1f
	leal 1(%rdi), %eax
	shll $STACK_SHIFT, %eax
	leaq stacks(%rax), %rsp
	xorl %ebp, %ebp
	call cpu_entry
1:	cli
	hlt
	jmp 1b

	.section .rodata
	.balign 8
gdt_pointer_high:
	.word gdt_pointer - gdt - 1
	.quad gdt + KERNEL_BASE

	/*
	 * Interrupts. Each vector pushes an error code, if the CPU did not, and its number; then
	 * all registers are saved as struct frame of arch_x86_64.c. %gs holds a kernel value
	 * always: there is no user mode.
	 */
	.text
	.macro VECTOR number
	.balign 16
	.if \number != 8 && \number != 17 && (\number < 10 || \number > 14)
	pushq $0
	.endif
	pushq $\number
	jmp interrupt
	.endm

	.balign 16
	.globl vectors
vectors:
	.set n, 0
	.altmacro
	.rept 65
	VECTOR %n
	.set n, n + 1
	.endr
	.noaltmacro

interrupt:
	cld
	.irp reg, rax, rcx, rdx, rbx, rbp, rsi, rdi, r8, r9, r10, r11, r12, r13, r14, r15
	pushq %\reg
	.endr
	movq %rsp, %rdi
	call trap
	.irp reg, r15, r14, r13, r12, r11, r10, r9, r8, rdi, rsi, rbp, rbx, rdx, rcx, rax
	popq %\reg
	.endr
	addq $16, %rsp
	iretq

	.data
	.balign 4
	.globl boot_info
cpu_ticket:
	.long 0
boot_info:
	.long 0

	.bss
	.balign 4096
	.globl pml4, stacks, stacks_end
pml4:	.skip 4096
pdpt_low:
	.skip 4096
pdpt_high:
	.skip 4096
pd:	.skip 4 * 4096
stacks:	.skip (CPUS + 1) << STACK_SHIFT
stacks_end:

	.section .note.GNU-stack, "", @progbits
