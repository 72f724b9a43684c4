/* SPDX-License-Identifier: MIT
 * fdt.h - owns the interface to the device tree, as much of it as says where memory is
 * and what the boot options are.
 */
#ifndef KERNEL_FDT_H
#define KERNEL_FDT_H

#include <stdint.h>

/*
 * fdt_add_memory - give the memory of a device tree to frames_add, from `floor` on
 * Only the first range of the first /memory node, with two cells for address and size each, as QEMU
 * makes it.
 * Return: bytes given; 0 if fdt is no device tree.
 */
uint64_t fdt_add_memory(const void *fdt, uintptr_t floor);

/* fdt_options - give the boot options, if there are any, to options_take. Before fdt_add_memory. */
void fdt_options(const void *fdt);

#endif
