/* SPDX-License-Identifier: MIT
 * plain.c - owns the plain accesses of the code under test: it is compiled with -fsanitize=thread,
 * but what the compiler calls for each load and store is here, not in the sanitizer's runtime.
 */
#include "wmm.h"

#include <string.h>

/* clang-format off */
#define ACCESS(n) \
	void __tsan_read##n(void *p); \
	void __tsan_write##n(void *p); \
	void __tsan_unaligned_read##n(void *p); \
	void __tsan_unaligned_write##n(void *p); \
	void __tsan_read_write##n(void *p); \
	void __tsan_read##n(void *p) { wmm_read(p, n); } \
	void __tsan_write##n(void *p) { wmm_write(p, n); } \
	void __tsan_unaligned_read##n(void *p) { wmm_read(p, n); } \
	void __tsan_unaligned_write##n(void *p) { wmm_write(p, n); } \
	void __tsan_read_write##n(void *p) { wmm_read(p, n); wmm_write(p, n); }
ACCESS(1)
ACCESS(2)
ACCESS(4)
ACCESS(8)
ACCESS(16)

void __tsan_init(void);
void __tsan_func_entry(void *caller);
void __tsan_func_exit(void);
void __tsan_read_range(void *p, size_t bytes);
void __tsan_write_range(void *p, size_t bytes);
void __tsan_atomic_signal_fence(int order);
void *__tsan_memcpy(void *to, const void *from, size_t bytes);
void *__tsan_memmove(void *to, const void *from, size_t bytes);
void *__tsan_memset(void *p, int byte, size_t bytes);

void __tsan_init(void) {}
void __tsan_func_entry(void *caller) { (void)caller; }
void __tsan_func_exit(void) {}
void __tsan_read_range(void *p, size_t bytes) { wmm_read(p, bytes); }
void __tsan_write_range(void *p, size_t bytes) { wmm_write(p, bytes); }
void __tsan_atomic_signal_fence(int order) { (void)order; }
/* clang-format on */

void *__tsan_memcpy(void *to, const void *from, size_t bytes)
{
	wmm_read(from, bytes);
	wmm_write(to, bytes);
	return memcpy(to, from, bytes);
}

void *__tsan_memmove(void *to, const void *from, size_t bytes)
{
	wmm_read(from, bytes);
	wmm_write(to, bytes);
	return memmove(to, from, bytes);
}

void *__tsan_memset(void *p, int byte, size_t bytes)
{
	wmm_write(p, bytes);
	return memset(p, byte, bytes);
}
