/* SPDX-License-Identifier: MIT
 * frames.h - owns the interface to the test kernel's page frames: the page source that kslab lives
 * on.
 * Runs: any CPU, thread or interrupt level, not in an NMI.
 */
#ifndef KERNEL_FRAMES_H
#define KERNEL_FRAMES_H

#include <stddef.h>
#include <stdint.h>

#define FRAME_SHIFT 12
#define FRAME_BYTES ((size_t)1 << FRAME_SHIFT)

/* Boot only: this physical memory is free. Parts of frames at both ends are left out. */
void frames_add(uintptr_t physical, size_t bytes);

/*
 * frames_alloc - a run of n contiguous frames, aligned to n rounded up to a power of two, at most
 * to 2 MiB
 * Return: its address in the direct map, or NULL. Complexity: O(frames / 64).
 */
void *frames_alloc(size_t n);

/*
 * frames_free - take exactly one run back that frames_alloc(n) gave
 * Return: NULL, or what is wrong with the run; it is not taken back then.
 */
const char *frames_free(void *run, size_t n);

size_t frames_free_count(void);

#endif
