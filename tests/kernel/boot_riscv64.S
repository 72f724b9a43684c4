/* SPDX-License-Identifier: MIT
 * boot_riscv64.S - owns the way from reset to C on riscv64, and the entry of traps.
 * Runs: all harts from boot_start, machine mode, a0 = hart number, a1 = device tree. No paging.
 */
#define STACK_SHIFT 15
#define CPUS 4
#define FRAME_BYTES 160

	.section .boot, "ax", @progbits
	.globl boot_start
boot_start:
	li t0, CPUS
	bgeu a0, t0, 2f
	la t0, stacks
	addi t1, a0, 1
	slli t1, t1, STACK_SHIFT
	add sp, t0, t1
	la t0, trap_entry
	csrw mtvec, t0
	csrw mie, zero
	call cpu_entry /* (hart, device tree) */
2:	wfi
	j 2b

	/*
	 * Traps come in with mstatus.MIE clear. What a function may change is saved, and what a
	 * second trap would overwrite: the timer's handler lets software interrupts through.
	 */
	.text
	.balign 4
trap_entry:
	addi sp, sp, -FRAME_BYTES
	sd ra, 0(sp)
	sd t0, 8(sp)
	sd t1, 16(sp)
	sd t2, 24(sp)
	sd t3, 32(sp)
	sd t4, 40(sp)
	sd t5, 48(sp)
	sd t6, 56(sp)
	sd a0, 64(sp)
	sd a1, 72(sp)
	sd a2, 80(sp)
	sd a3, 88(sp)
	sd a4, 96(sp)
	sd a5, 104(sp)
	sd a6, 112(sp)
	sd a7, 120(sp)
	csrr a0, mcause
	csrr a1, mepc
	csrr t0, mstatus
	sd a1, 128(sp)
	sd t0, 136(sp)
	addi a2, sp, FRAME_BYTES
	call trap /* (cause, address, stack); returns with MIE clear */
	ld t0, 136(sp)
	ld a1, 128(sp)
	csrw mstatus, t0
	csrw mepc, a1
	ld ra, 0(sp)
	ld t0, 8(sp)
	ld t1, 16(sp)
	ld t2, 24(sp)
	ld t3, 32(sp)
	ld t4, 40(sp)
	ld t5, 48(sp)
	ld t6, 56(sp)
	ld a0, 64(sp)
	ld a1, 72(sp)
	ld a2, 80(sp)
	ld a3, 88(sp)
	ld a4, 96(sp)
	ld a5, 104(sp)
	ld a6, 112(sp)
	ld a7, 120(sp)
	addi sp, sp, FRAME_BYTES
	mret

	.bss
	.balign 16
	.globl stacks, stacks_end
stacks:	.skip (CPUS + 1) << STACK_SHIFT
stacks_end:

	.section .note.GNU-stack, "", @progbits
