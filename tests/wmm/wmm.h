/* SPDX-License-Identifier: MIT
 * wmm.h - owns the weak-memory model checker: every execution that RC11 allows of a few threads.
 * Runs: on the host, one thread of the host; the threads of a scenario are coroutines. Theory in
 * wmm.c.
 * Source: own, after Abdulla et al. 2014 (reduction), Lahav et al. 2017 (RC11).
 */
#ifndef KSLAB_TESTS_WMM_H
#define KSLAB_TESTS_WMM_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#define WMM_THREADS 4u

enum wmm_order {
	WMM_RELAXED,
	WMM_ACQUIRE,
	WMM_RELEASE,
	WMM_ACQ_REL,
	WMM_SEQ,
	WMM_FAILURE_RELAXED, /* for wmm_weaken(): a compare and exchange, relaxed if it fails */
};

/* An atomic access in the source. Made by wmm_atomics.h, one object for each. */
struct wmm_site {
	const char *file, *function, *operation, *place;
	enum wmm_order order; /* as written */
	enum wmm_order in_use; /* as checked: weaker in a mutant */
	bool is_known;
	uint64_t hits;
	struct wmm_site *next;
};

enum wmm_rmw { WMM_OR, WMM_AND, WMM_ADD, WMM_EXCHANGE };

/* The accesses themselves. Outside of threads they are plain. */
uint64_t wmm_load(struct wmm_site *site, const volatile void *p, size_t bytes);
void wmm_store(struct wmm_site *site, volatile void *p, size_t bytes, uint64_t value);
uint64_t wmm_rmw(struct wmm_site *site, volatile void *p, size_t bytes, enum wmm_rmw kind,
		 uint64_t value);
/*
 * True: stored. False: *expected is what was read instead. A failure is a load, relaxed or acquire.
 */
bool wmm_cas(struct wmm_site *site, volatile void *p, size_t bytes, uint64_t *expected,
	     uint64_t value, enum wmm_order failure);

/* Plain accesses: a conflict without happens-before is a data race and fails the execution. */
void wmm_read(const volatile void *p, size_t bytes);
void wmm_write(const volatile void *p, size_t bytes);

/* In setup(): races of these bytes are known, and not reported. The scenario says why. */
void wmm_tolerate(const volatile void *p, size_t bytes);

/* In a spin loop: go on when the location that this thread loaded last has something newer. */
void wmm_await(void);

/* Fail this execution; from a thread it does not return. */
void wmm_fail(const char *what);
#define wmm_assert(c)                                                                              \
	do {                                                                                       \
		if (!(c))                                                                          \
			wmm_fail("not " #c);                                                       \
	} while (0)

/* True once this execution has failed. */
bool wmm_has_failed(void);

/* Number of the thread that runs, or WMM_THREADS: none (setup, check). */
unsigned wmm_self(void);

/*
 * setup() runs once, on zeroed memory [world, world + bytes); what it leaves there is put back
 * before each execution. Everything that threads change MUST lie there. check() runs after each
 * complete execution, when all is visible.
 */
struct wmm_scenario {
	const char *name, *promise;
	void (*setup)(void);
	void (*thread[WMM_THREADS])(void);
	void (*check)(void);
	bool is_quick; /* part of the quick run */
	void *world; /* for the caller: what goes into the options */
	size_t world_bytes;
};

struct wmm_result {
	const char *bug; /* NULL: none found */
	uint64_t executions; /* complete ones, all different */
	uint64_t blocked; /* begun, and given up: they lead nowhere new */
	uint64_t steps; /* atomic accesses */
	unsigned longest; /* atomic accesses of one execution */
	bool is_bounded; /* the limit was hit: not all executions were seen */
};

struct wmm_options {
	bool is_brute; /* no reduction: to check the checker */
	bool is_verbose; /* print the execution that fails */
	uint64_t limit; /* executions, 0: none */
	void (*name)(const volatile void *p, char *out, size_t bytes); /* what an address is */
	void *world;
	size_t world_bytes;
};

struct wmm_result wmm_explore(const struct wmm_scenario *scenario,
			      const struct wmm_options *options);

/* Weaken one access: every site of that function, operation and place. NULL: as written. */
void wmm_weaken(const char *function, const char *operation, const char *place,
		enum wmm_order order);
/* Every site that was reached, newest first. */
struct wmm_site *wmm_sites(void);
const char *wmm_order_name(enum wmm_order order);
/* Executions begun so far: a watchdog sees that something moves. */
uint64_t wmm_progress(void);

#endif
