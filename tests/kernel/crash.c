/* SPDX-License-Identifier: MIT
 * crash.c - owns the last words of a CPU that took an exception.
 * Runs: any CPU, any level; the others may go on until QEMU has ended.
 */
#include "crash.h"

#include <stddef.h>

#include "arch.h"
#include "kprint.h"

#define TRACE_WORDS 128u /* of the stack, looked through for return addresses */
#define TRACE_LINES 16u

extern char text_begin[], text_end[]; /* linker script */
extern char stacks[], stacks_end[]; /* boot code */

_Noreturn void crash(uintptr_t stack)
{
	const uintptr_t *word = (const uintptr_t *)stack;
	unsigned lines = 0;

	/* Whatever looks like a return address; addr2line tells more. */
	for (unsigned i = 0; i < TRACE_WORDS && lines < TRACE_LINES; i++, word++) {
		if ((stack & (sizeof(stack) - 1)) != 0 || (uintptr_t)word < (uintptr_t)stacks ||
		    (uintptr_t)word >= (uintptr_t)stacks_end)
			break;
		if (*word > (uintptr_t)text_begin && *word < (uintptr_t)text_end) {
			kprintf("  from %lx\n", (unsigned long)*word);
			lines++;
		}
	}
	kprintf("FAIL\n");
	arch_exit(1);
}
