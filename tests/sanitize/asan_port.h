/* SPDX-License-Identifier: MIT
 * asan_port.h - owns what tells AddressSanitizer of slots and redzones (KSLAB_CFG_HEADER).
 * Rank: test helper.  The client is compiled with -fsanitize=address, the library without.
 */
#ifndef ASAN_PORT_H
#define ASAN_PORT_H

#include <stddef.h>

void __asan_poison_memory_region(void const volatile *mem, size_t bytes);
void __asan_unpoison_memory_region(void const volatile *mem, size_t bytes);

#define KSLAB_PORT_POISON(mem, bytes) __asan_poison_memory_region((mem), (bytes))
#define KSLAB_PORT_UNPOISON(mem, bytes) __asan_unpoison_memory_region((mem), (bytes))

#endif
