/* SPDX-License-Identifier: MIT
 * count_atomics.h - owns atomics that count themselves (KSLAB_ATOMICS_HEADER), for the scaling
 * test. Rank: test helper.  Only read-modify-write operations count: plain loads and stores are no
 * bus traffic of their own.
 */
#ifndef COUNT_ATOMICS_H
#define COUNT_ATOMICS_H

extern unsigned long count_atomics;

#define COUNTED(operation) (count_atomics++, (operation))

#define KSLAB_LOAD_RELAXED(p) __atomic_load_n((p), __ATOMIC_RELAXED)
#define KSLAB_LOAD_ACQUIRE(p) __atomic_load_n((p), __ATOMIC_ACQUIRE)
#define KSLAB_LOAD_SEQ(p) __atomic_load_n((p), __ATOMIC_SEQ_CST)
#define KSLAB_STORE_RELAXED(p, v) __atomic_store_n((p), (v), __ATOMIC_RELAXED)
#define KSLAB_STORE_RELEASE(p, v) __atomic_store_n((p), (v), __ATOMIC_RELEASE)
/* A sequentially consistent store is an exchange on x86. */
#define KSLAB_STORE_SEQ(p, v) ((void)COUNTED(0), __atomic_store_n((p), (v), __ATOMIC_SEQ_CST))
#define KSLAB_FETCH_OR_SEQ(p, v) COUNTED(__atomic_fetch_or((p), (v), __ATOMIC_SEQ_CST))
#define KSLAB_FETCH_AND_RELEASE(p, v) COUNTED(__atomic_fetch_and((p), (v), __ATOMIC_RELEASE))
#define KSLAB_FETCH_ADD_RELAXED(p, v) COUNTED(__atomic_fetch_add((p), (v), __ATOMIC_RELAXED))
#define KSLAB_FETCH_ADD_RELEASE(p, v) COUNTED(__atomic_fetch_add((p), (v), __ATOMIC_RELEASE))
#define KSLAB_EXCHANGE_ACQUIRE(p, v) COUNTED(__atomic_exchange_n((p), (v), __ATOMIC_ACQUIRE))
#define KSLAB_CAS_ACQ_REL(p, expected, v)                                                          \
	COUNTED(__atomic_compare_exchange_n((p), (expected), (v), false, __ATOMIC_ACQ_REL,         \
					    __ATOMIC_ACQUIRE))
#define KSLAB_CAS_ACQUIRE(p, expected, v)                                                          \
	COUNTED(__atomic_compare_exchange_n((p), (expected), (v), false, __ATOMIC_ACQUIRE,         \
					    __ATOMIC_RELAXED))
#define KSLAB_CAS_RELAXED(p, expected, v)                                                          \
	COUNTED(__atomic_compare_exchange_n((p), (expected), (v), false, __ATOMIC_RELAXED,         \
					    __ATOMIC_RELAXED))
#define KSLAB_CAS_RELEASE(p, expected, v)                                                          \
	COUNTED(__atomic_compare_exchange_n((p), (expected), (v), false, __ATOMIC_RELEASE,         \
					    __ATOMIC_RELAXED))

#endif
