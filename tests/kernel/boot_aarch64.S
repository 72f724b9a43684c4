/* SPDX-License-Identifier: MIT
 * boot_aarch64.S - owns the way from reset to C on aarch64, and the entry of exceptions.
 * Runs: CPU 0 from boot_start, every other CPU from cpu_start (PSCI), at EL1 with the MMU off.
 *
 * One page table, identity, blocks of 1 GiB: devices below 1 GiB, ordinary cached memory from there
 * to 4 GiB. Without it all memory would be device memory, and atomics on that are undefined.
 */
#define STACK_SHIFT 15
#define CPUS 4

#define MAIR 0xff00 /* attribute 0: device nGnRnE; 1: write back */
#define TCR 0x200803519 /* 39 bits, 4 KiB, write back, inner shareable; no TTBR1; 40 bits out */
#define SCTLR_M_C_I 0x1005
#define BLOCK_DEVICE 0x401 /* access flag, attribute 0 */
#define BLOCK_MEMORY 0x705 /* access flag, inner shareable, attribute 1 */

#define FRAME_BYTES 192

	.section .boot, "ax", @progbits
	.globl boot_start
boot_start:
	mov x0, #0
	.globl cpu_start
cpu_start: /* x0: number of this CPU */
	msr daifset, #15
	adrp x1, stacks
	add x1, x1, :lo12:stacks
	add x2, x0, #1
	lsl x2, x2, #STACK_SHIFT
	add x1, x1, x2
	mov sp, x1

	ldr x1, =MAIR
	msr mair_el1, x1
	ldr x1, =TCR
	msr tcr_el1, x1
	adrp x1, page_table
	add x1, x1, :lo12:page_table
	msr ttbr0_el1, x1
	adrp x1, vectors
	add x1, x1, :lo12:vectors
	msr vbar_el1, x1
	tlbi vmalle1
	dsb sy
	isb
	mrs x1, sctlr_el1
	ldr x2, =SCTLR_M_C_I
	orr x1, x1, x2
	msr sctlr_el1, x1
	isb

	mov x29, xzr
	mov x30, xzr
	bl cpu_entry
1:	wfe
	b 1b

	.text
	.globl psci_call
psci_call:
	hvc #0
	ret
	.globl semihosting_call
semihosting_call:
	hlt #0xf000
	ret

	/*
	 * Exceptions come in with everything masked. An interrupt saves where it came from before
	 * it lets fast interrupts through again; these play the NMI and are not nested.
	 */
	.macro ENTRY kind
	.balign 128
	sub sp, sp, #FRAME_BYTES
	stp x0, x1, [sp]
	mov x0, #\kind
	b exception
	.endm

	.balign 2048
vectors:
	.rept 4
	ENTRY 0
	.endr
	ENTRY 0 /* this EL: synchronous */
	ENTRY 1 /* IRQ */
	ENTRY 2 /* FIQ */
	ENTRY 0 /* system error */
	.rept 8
	ENTRY 0
	.endr

exception:
	stp x2, x3, [sp, #16]
	stp x4, x5, [sp, #32]
	stp x6, x7, [sp, #48]
	stp x8, x9, [sp, #64]
	stp x10, x11, [sp, #80]
	stp x12, x13, [sp, #96]
	stp x14, x15, [sp, #112]
	stp x16, x17, [sp, #128]
	stp x18, x29, [sp, #144]
	mrs x1, elr_el1
	stp x30, x1, [sp, #160]
	mrs x2, spsr_el1
	str x2, [sp, #176]
	add x2, sp, #FRAME_BYTES
	bl trap /* (kind, address, stack) */
	msr daifset, #15
	ldr x2, [sp, #176]
	msr spsr_el1, x2
	ldp x30, x1, [sp, #160]
	msr elr_el1, x1
	ldp x18, x29, [sp, #144]
	ldp x16, x17, [sp, #128]
	ldp x14, x15, [sp, #112]
	ldp x12, x13, [sp, #96]
	ldp x10, x11, [sp, #80]
	ldp x8, x9, [sp, #64]
	ldp x6, x7, [sp, #48]
	ldp x4, x5, [sp, #32]
	ldp x2, x3, [sp, #16]
	ldp x0, x1, [sp]
	add sp, sp, #FRAME_BYTES
	eret

	.section .rodata
	.balign 4096
page_table:
	.quad BLOCK_DEVICE
	.quad BLOCK_MEMORY + 0x40000000
	.quad BLOCK_MEMORY + 0x80000000
	.quad BLOCK_MEMORY + 0xc0000000
	.skip 4096 - 32

	.bss
	.balign 16
	.globl stacks, stacks_end
stacks:	.skip (CPUS + 1) << STACK_SHIFT
stacks_end:

	.section .note.GNU-stack, "", @progbits
