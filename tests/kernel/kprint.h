/* SPDX-License-Identifier: MIT
 * kprint.h - owns the interface to printing in the test kernel.
 * Runs: any CPU, thread or interrupt level; lines of different CPUs do not mix.
 */
#ifndef KERNEL_KPRINT_H
#define KERNEL_KPRINT_H

/* %s %c %d %u %x %p, with l or z, a width, - and 0; %% */
void kprintf(const char *format, ...) __attribute__((format(printf, 1, 2)));

/* For kslab_print: one character, no lock. */
void kprint_putc(void *ctx, char c);

#endif
