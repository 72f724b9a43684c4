/* SPDX-License-Identifier: MIT
 * compiler.h - owns what differs between compilers and machines: hints, atomics, bit counting,
 * memory calls. Rank: 0.  Runs anywhere.
 *
 * Every atomic access of the library goes through the macros below, so that the model checker
 * (tests/wmm) and the proofs can put their own in place: define KSLAB_ATOMICS_HEADER to replace
 * that part.
 */
#ifndef KSLAB_COMPILER_H
#define KSLAB_COMPILER_H

#include <kslab/config.h>

#if defined(__aarch64__) && defined(__GNUC__) && !defined(__clang__)
#pragma GCC target("no-outline-atomics")
#endif

#define KSLAB_LIKELY(x) __builtin_expect(!!(x), 1)
#define KSLAB_UNLIKELY(x) __builtin_expect(!!(x), 0)
#define KSLAB_INLINE static inline __attribute__((always_inline))
/* A slow path: out of line, or the compiler would save registers on every call of the fast one. */
#define KSLAB_SLOW __attribute__((noinline))
#define KSLAB_COLD __attribute__((noinline, cold))
#define KSLAB_CALLER() __builtin_return_address(0)
/*
 * What a fast path passes on in a tail call: the caller it was given, or its own. Where reading the
 * return address costs a frame, the function that is called reads it itself, first of all: after a
 * tail call it is the same.
 */
#if defined(__OPTIMIZE__) && (defined(__aarch64__) || defined(__riscv))
#define KSLAB_TAIL_CALLER(given) (given)
#define KSLAB_TAKE_CALLER(caller) ((caller) = (caller) != NULL ? (caller) : KSLAB_CALLER())
#else
#define KSLAB_TAIL_CALLER(given) ((given) != NULL ? (given) : KSLAB_CALLER())
#define KSLAB_TAKE_CALLER(caller) ((void)0)
#endif
#define KSLAB_ARRAY_LENGTH(a) (sizeof(a) / sizeof((a)[0]))

/*
 * Make the compiler forget what it knows of a variable: keeps it from sharing a masked copy (two
 * instructions).
 */
#define KSLAB_HIDE(variable) __asm__("" : "+r"(variable))

/*
 * Orders the compiler, not the machine: enough towards an interrupt on the same CPU. clang makes an
 * instruction of a signal fence on RISC-V.
 */
#define KSLAB_BARRIER() __asm__ volatile("" : : : "memory")

#if defined(__riscv) && !defined(__clang__)
/* gcc makes an exchange of the builtin. */
#define KSLAB_STORE_PLAIN(p, v) ((void)(*(volatile __typeof__(*(p)) *)(p) = (v)))
#else
#define KSLAB_STORE_PLAIN(p, v) __atomic_store_n((p), (v), __ATOMIC_RELAXED)
#endif

#ifdef KSLAB_ATOMICS_HEADER
#include KSLAB_ATOMICS_HEADER
#else
#define KSLAB_LOAD_RELAXED(p) __atomic_load_n((p), __ATOMIC_RELAXED)
#define KSLAB_LOAD_ACQUIRE(p) __atomic_load_n((p), __ATOMIC_ACQUIRE)
#define KSLAB_LOAD_SEQ(p) __atomic_load_n((p), __ATOMIC_SEQ_CST)
#define KSLAB_STORE_RELAXED(p, v) KSLAB_STORE_PLAIN((p), (v))
#define KSLAB_STORE_RELEASE(p, v) __atomic_store_n((p), (v), __ATOMIC_RELEASE)
#define KSLAB_STORE_SEQ(p, v) __atomic_store_n((p), (v), __ATOMIC_SEQ_CST)
#define KSLAB_FETCH_OR_SEQ(p, v) __atomic_fetch_or((p), (v), __ATOMIC_SEQ_CST)
#define KSLAB_FETCH_AND_RELEASE(p, v) __atomic_fetch_and((p), (v), __ATOMIC_RELEASE)
#define KSLAB_FETCH_ADD_RELAXED(p, v) __atomic_fetch_add((p), (v), __ATOMIC_RELAXED)
#define KSLAB_FETCH_ADD_RELEASE(p, v) __atomic_fetch_add((p), (v), __ATOMIC_RELEASE)
#define KSLAB_EXCHANGE_ACQUIRE(p, v) __atomic_exchange_n((p), (v), __ATOMIC_ACQUIRE)
/* Strong compare and exchange: true if *p was *expected; else *expected = *p. */
#define KSLAB_CAS_ACQ_REL(p, expected, v)                                                          \
	__atomic_compare_exchange_n((p), (expected), (v), false, __ATOMIC_ACQ_REL, __ATOMIC_ACQUIRE)
#define KSLAB_CAS_ACQUIRE(p, expected, v)                                                          \
	__atomic_compare_exchange_n((p), (expected), (v), false, __ATOMIC_ACQUIRE, __ATOMIC_RELAXED)
#define KSLAB_CAS_RELAXED(p, expected, v)                                                          \
	__atomic_compare_exchange_n((p), (expected), (v), false, __ATOMIC_RELAXED, __ATOMIC_RELAXED)
#define KSLAB_CAS_RELEASE(p, expected, v)                                                          \
	__atomic_compare_exchange_n((p), (expected), (v), false, __ATOMIC_RELEASE, __ATOMIC_RELAXED)
#endif

/*
 * Index of the lowest set bit; w != 0. Machines without the instruction would call libgcc: they
 * multiply by a de Bruijn sequence instead.
 */
#if (defined(__riscv) && !defined(__riscv_zbb)) || (defined(__ARM_ARCH) && __ARM_ARCH < 7) ||      \
	defined(KSLAB_NO_CTZ)
#if UINTPTR_MAX > 0xffffffffu
#define KSLAB_DEBRUIJN 0x03f79d71b4cb0a89u
#define KSLAB_DEBRUIJN_SHIFT 58
extern const uint8_t kslab_debruijn[64];
#else
#define KSLAB_DEBRUIJN 0x077cb531u
#define KSLAB_DEBRUIJN_SHIFT 27
extern const uint8_t kslab_debruijn[32];
#endif
KSLAB_INLINE unsigned kslab_ctz(uintptr_t w)
{
	return kslab_debruijn[(uintptr_t)((w & (0 - w)) * KSLAB_DEBRUIJN) >> KSLAB_DEBRUIJN_SHIFT];
}
#else
KSLAB_INLINE unsigned kslab_ctz(uintptr_t w)
{
	return (unsigned)(sizeof(w) == sizeof(unsigned) ? __builtin_ctz((unsigned)w)
							: __builtin_ctzll((unsigned long long)w));
}
#endif

/*
 * A bit of a word, given twice: as a mask, and by its number, modulo the bits of a word. x86 looks
 * at it by the number; it also has one instruction to look and set, which compilers miss.
 */
KSLAB_INLINE bool kslab_is_bit_set(uintptr_t w, uintptr_t bit, uint32_t index)
{
#if defined(__x86_64__)
	(void)bit;
	return (w >> (index % 64)) & 1;
#else
	(void)index;
	return (w & bit) != 0;
#endif
}

/* Set it in a register. Return: what it was. */
KSLAB_INLINE bool kslab_test_and_set(uintptr_t *w, uintptr_t bit, uint32_t index)
{
#if defined(__x86_64__) && defined(__GCC_ASM_FLAG_OUTPUTS__)
	bool was;

	(void)bit;
	__asm__("btsq %q2, %0" : "+r"(*w), "=@ccc"(was) : "r"(index));
	return was;
#else
	uintptr_t old = *w;

	(void)index;
	*w = old | bit;
	return (old & bit) != 0;
#endif
}

/* Number of set bits, without a libgcc call. */
KSLAB_INLINE unsigned kslab_popcount(uintptr_t w)
{
	const uintptr_t ones = ~(uintptr_t)0;

	w -= (w >> 1) & (ones / 3);
	w = (w & (ones / 5)) + ((w >> 2) & (ones / 5));
	w = (w + (w >> 4)) & (ones / 17);
	return (unsigned)((uintptr_t)(w * (ones / 255)) >> (8 * sizeof(w) - 8));
}

/* floor(log2(n)), n != 0; by halves where there is no instruction, or libgcc would be called. */
KSLAB_INLINE unsigned kslab_log2(size_t n)
{
#if (defined(__riscv) && !defined(__riscv_zbb)) || (defined(__ARM_ARCH) && __ARM_ARCH < 7) ||      \
	defined(KSLAB_NO_CTZ)
	unsigned r = 0;

	for (unsigned s = 4 * (unsigned)sizeof(n); s != 0; s /= 2) {
		if (n >> s) {
			n >>= s;
			r += s;
		}
	}
	return r;
#else
	return sizeof(n) == sizeof(unsigned) ? 31u - (unsigned)__builtin_clz((unsigned)n)
					     : 63u - (unsigned)__builtin_clzll(n);
#endif
}

/*
 * n / by, by != 0; bit by bit where the machine has no divider, so that libgcc is not called. Not
 * for fast paths.
 */
KSLAB_INLINE size_t kslab_divide(size_t n, size_t by)
{
#if (defined(__arm__) && !defined(__ARM_FEATURE_IDIV)) ||                                          \
	(defined(__riscv) && !defined(__riscv_div)) || defined(KSLAB_NO_DIVIDE)
	size_t quotient = 0, rest = 0;

	for (unsigned bit = 8 * (unsigned)sizeof(n); bit-- > 0;) {
		rest = rest << 1 | (n >> bit & 1);
		if (rest >= by) {
			rest -= by;
			quotient |= (size_t)1 << bit;
		}
	}
	return quotient;
#else
	return n / by;
#endif
}

KSLAB_INLINE bool kslab_is_power_of_two(size_t n)
{
	return n != 0 && (n & (n - 1)) == 0;
}

KSLAB_INLINE uint32_t kslab_rotate_right(uint32_t v, unsigned s)
{
	return (v >> (s & 31)) | (v << ((0 - s) & 31));
}

/* The four functions every compiler expects from a kernel. */
void *memcpy(void *restrict to, const void *restrict from, size_t n);
void *memmove(void *to, const void *from, size_t n);
void *memset(void *mem, int byte, size_t n);
int memcmp(const void *a, const void *b, size_t n);

#endif
