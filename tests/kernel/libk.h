/* SPDX-License-Identifier: MIT
 * libk.h - owns the prototypes of the four functions every compiler expects.
 */
#ifndef KERNEL_LIBK_H
#define KERNEL_LIBK_H

#include <stddef.h>

void *memcpy(void *restrict to, const void *restrict from, size_t n);
void *memmove(void *to, const void *from, size_t n);
void *memset(void *mem, int byte, size_t n);
int memcmp(const void *a, const void *b, size_t n);

#endif
