/* SPDX-License-Identifier: MIT
 * crash.h - owns the interface to the last words of a CPU that took an exception.
 */
#ifndef KERNEL_CRASH_H
#define KERNEL_CRASH_H

#include <stdint.h>

/*
 * After the machine printed its registers: prints where the CPU came from, says FAIL, leaves QEMU.
 */
_Noreturn void crash(uintptr_t stack);

#endif
