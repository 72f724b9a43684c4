/* SPDX-License-Identifier: MIT
 * wmm_atomics.h - owns the way of kslab's atomics into the model checker: KSLAB_ATOMICS_HEADER.
 *
 * A site is known by its function, its operation and the text of its place, so that a mutant can
 * name it and no line number matters.
 */
#ifndef KSLAB_TESTS_WMM_ATOMICS_H
#define KSLAB_TESTS_WMM_ATOMICS_H

#include "wmm.h"

#define WMM_SITE(operation_, place_, order_)                                                       \
	__extension__({                                                                            \
		static struct wmm_site wmm_site_ = { .file = __FILE__,                             \
						     .operation = (operation_),                    \
						     .place = (place_),                            \
						     .order = (order_),                            \
						     .in_use = (order_) };                         \
		wmm_site_.function = __func__;                                                     \
		&wmm_site_;                                                                        \
	})
#define WMM_TYPE(p) __typeof__(__atomic_load_n((p), __ATOMIC_RELAXED))
#define WMM_LOAD(name, order, p)                                                                   \
	((WMM_TYPE(p))(uintptr_t)wmm_load(WMM_SITE(name, #p, order), (p), sizeof(*(p))))
#define WMM_STORE(name, order, p, v)                                                               \
	wmm_store(WMM_SITE(name, #p, order), (p), sizeof(*(p)), (uintptr_t)(v))
#define WMM_RMW(name, order, kind, p, v)                                                           \
	__extension__({                                                                            \
		(WMM_TYPE(p))(uintptr_t) wmm_rmw(WMM_SITE(name, #p, order), (p), sizeof(*(p)),     \
						 (kind), (uintptr_t)(v));                          \
	})
#define WMM_CAS(name, order, failure, p, e, v)                                                     \
	__extension__({                                                                            \
		WMM_TYPE(p) *wmm_expected_ = (e);                                                  \
		uint64_t wmm_value_ = (uintptr_t)*wmm_expected_;                                   \
		bool wmm_done_ = wmm_cas(WMM_SITE(name, #p, order), (p), sizeof(*(p)),             \
					 &wmm_value_, (uintptr_t)(v), (failure));                  \
		*wmm_expected_ = (WMM_TYPE(p))(uintptr_t)wmm_value_;                               \
		wmm_done_;                                                                         \
	})

#define KSLAB_LOAD_RELAXED(p) WMM_LOAD("LOAD_RELAXED", WMM_RELAXED, p)
#define KSLAB_LOAD_ACQUIRE(p) WMM_LOAD("LOAD_ACQUIRE", WMM_ACQUIRE, p)
#define KSLAB_LOAD_SEQ(p) WMM_LOAD("LOAD_SEQ", WMM_SEQ, p)
#define KSLAB_STORE_RELAXED(p, v) WMM_STORE("STORE_RELAXED", WMM_RELAXED, p, v)
#define KSLAB_STORE_RELEASE(p, v) WMM_STORE("STORE_RELEASE", WMM_RELEASE, p, v)
#define KSLAB_STORE_SEQ(p, v) WMM_STORE("STORE_SEQ", WMM_SEQ, p, v)
#define KSLAB_FETCH_OR_SEQ(p, v) WMM_RMW("FETCH_OR_SEQ", WMM_SEQ, WMM_OR, p, v)
#define KSLAB_FETCH_AND_RELEASE(p, v) WMM_RMW("FETCH_AND_RELEASE", WMM_RELEASE, WMM_AND, p, v)
#define KSLAB_FETCH_ADD_RELAXED(p, v) WMM_RMW("FETCH_ADD_RELAXED", WMM_RELAXED, WMM_ADD, p, v)
#define KSLAB_FETCH_ADD_RELEASE(p, v) WMM_RMW("FETCH_ADD_RELEASE", WMM_RELEASE, WMM_ADD, p, v)
#define KSLAB_EXCHANGE_ACQUIRE(p, v) WMM_RMW("EXCHANGE_ACQUIRE", WMM_ACQUIRE, WMM_EXCHANGE, p, v)
#define KSLAB_CAS_ACQ_REL(p, e, v) WMM_CAS("CAS_ACQ_REL", WMM_ACQ_REL, WMM_ACQUIRE, p, e, v)
#define KSLAB_CAS_ACQUIRE(p, e, v) WMM_CAS("CAS_ACQUIRE", WMM_ACQUIRE, WMM_RELAXED, p, e, v)
#define KSLAB_CAS_RELAXED(p, e, v) WMM_CAS("CAS_RELAXED", WMM_RELAXED, WMM_RELAXED, p, e, v)
#define KSLAB_CAS_RELEASE(p, e, v) WMM_CAS("CAS_RELEASE", WMM_RELEASE, WMM_RELAXED, p, e, v)

#endif
