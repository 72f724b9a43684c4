/* SPDX-License-Identifier: MIT
 * relaxed_atomics.h - owns the atomic accesses of src/compiler.h with one order weakened
 * (KSLAB_ATOMICS_HEADER).
 * Rank: test helper.  Runs: wherever the library does. RELAXED chooses what tests/test_tsan.sh must
 * see reported. plain_atomics.h is the part of compiler.h that this replaces, cut out of it by
 * test_tsan.sh.
 *
 *     1  the harvest's load of remote bits, made relaxed: the freer's last writes are not seen
 *     2  the fetch_or of a remote free, made relaxed: they are not published
 *     3  the look at the lock's ticket, acquire made relaxed
 *     4  the store that opens the lock, release made relaxed
 */
#ifndef RELAXED_ATOMICS_H
#define RELAXED_ATOMICS_H

#include "plain_atomics.h"

#ifndef RELAXED
#error "RELAXED: which order is to be weakened, 1 to 4"
#endif

#define RELAXED_IN(number, function)                                                               \
	(RELAXED == (number) && __builtin_strcmp(__func__, (function)) == 0)

#undef KSLAB_LOAD_ACQUIRE
#define KSLAB_LOAD_ACQUIRE(p)                                                                      \
	(RELAXED_IN(1, "kslab_page_harvest_word") || RELAXED_IN(3, "kslab_heap_lock")              \
		 ? __atomic_load_n((p), __ATOMIC_RELAXED)                                          \
		 : __atomic_load_n((p), __ATOMIC_ACQUIRE))

#undef KSLAB_STORE_RELEASE
#define KSLAB_STORE_RELEASE(p, v)                                                                  \
	(RELAXED_IN(4, "kslab_heap_unlock") ? __atomic_store_n((p), (v), __ATOMIC_RELAXED)         \
					    : __atomic_store_n((p), (v), __ATOMIC_RELEASE))

#undef KSLAB_FETCH_OR_SEQ
#define KSLAB_FETCH_OR_SEQ(p, v)                                                                   \
	__atomic_fetch_or((p), (v), RELAXED == 2 ? __ATOMIC_RELAXED : __ATOMIC_SEQ_CST)

#endif
