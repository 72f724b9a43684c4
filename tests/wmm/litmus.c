/* SPDX-License-Identifier: MIT
 * litmus.c - owns the tests of the model checker itself: known programs with known outcomes, and
 * the reduced search against the full one.
 * Source: the usual litmus tests; what is allowed is what RC11 says.
 */
#include "wmm_atomics.h"

#include "litmus.h"

#include <stdio.h>
#include <string.h>

static struct {
	uint32_t x, y, z, r[6];
	uint32_t plain;
} v;

static uint64_t seen; /* set of outcomes, over all executions */

#define R(i, value) (v.r[i] = (value))
static void outcome(unsigned o)
{
	seen |= (uint64_t)1 << o;
}
static void none(void) {}

#define LOAD(p) KSLAB_LOAD_RELAXED(p)
#define ACQ(p) KSLAB_LOAD_ACQUIRE(p)
#define SC(p) KSLAB_LOAD_SEQ(p)
#define STORE(p, x) KSLAB_STORE_RELAXED(p, (uint32_t)(x))
#define REL(p, x) KSLAB_STORE_RELEASE(p, (uint32_t)(x))
#define SCS(p, x) KSLAB_STORE_SEQ(p, (uint32_t)(x))
#define SCOR(p, x) KSLAB_FETCH_OR_SEQ(p, (uint32_t)(x))
/* clang-format off */
/* store buffering; outcome: r0 r1 */
static void sb0(void) { REL(&v.x, 1); R(0, ACQ(&v.y)); }
static void sb1(void) { REL(&v.y, 1); R(1, ACQ(&v.x)); }
static void sbs0(void) { SCS(&v.x, 1); R(0, SC(&v.y)); }
static void sbs1(void) { SCOR(&v.y, 1); R(1, SC(&v.x)); }
static void sbm1(void) { (void)KSLAB_FETCH_AND_RELEASE(&v.y, 0u); R(1, SC(&v.x)); }
static void sbm0(void) { SCS(&v.x, 1); R(0, SC(&v.y) == 7); }
static void sev(void) { v.y = 7; }
static void r01(void) { outcome(v.r[0] * 2 + v.r[1]); }
/* message passing */
static void mp0(void) { STORE(&v.x, 1); REL(&v.y, 1); }
static void mp1(void) { R(0, ACQ(&v.y)); R(1, LOAD(&v.x)); }
static void mpr0(void) { STORE(&v.x, 1); STORE(&v.y, 1); }
static void mpr1(void) { R(0, LOAD(&v.y)); R(1, ACQ(&v.x)); }
/* message passing through a release sequence: an update in between, and a store in between */
static void rs1(void) { (void)KSLAB_FETCH_ADD_RELAXED(&v.y, 1u); }
static void rs2(void) { R(0, ACQ(&v.y) == 2); R(1, LOAD(&v.x)); }
static void rst1(void) { if (LOAD(&v.y) == 1) STORE(&v.y, 2); }
/* coherence: two loads, one writer; two writers */
static void co0(void) { STORE(&v.x, 1); STORE(&v.x, 2); }
static void co1(void) { R(0, LOAD(&v.x)); R(1, LOAD(&v.x)); }
static void r03(void) { outcome(v.r[0] * 3 + v.r[1]); }
/* two plus two writes; outcome: what is left */
static void w220(void) { STORE(&v.x, 1); STORE(&v.y, 2); }
static void w221(void) { STORE(&v.y, 1); STORE(&v.x, 2); }
static void w22s0(void) { SCS(&v.x, 1); SCS(&v.y, 2); }
static void w22s1(void) { SCS(&v.y, 1); SCS(&v.x, 2); }
static void rxy(void) { outcome(v.x * 3 + v.y); }
/* independent readers of independent writes */
static void ir0(void) { SCS(&v.x, 1); }
static void ir1(void) { SCS(&v.y, 1); }
static void ir2(void) { R(0, SC(&v.x)); R(1, SC(&v.y)); }
static void ir3(void) { R(2, SC(&v.y)); R(3, SC(&v.x)); }
static void ira0(void) { REL(&v.x, 1); }
static void ira1(void) { REL(&v.y, 1); }
static void ira2(void) { R(0, ACQ(&v.x)); R(1, ACQ(&v.y)); }
static void ira3(void) { R(2, ACQ(&v.y)); R(3, ACQ(&v.x)); }
static void r0123(void) { outcome(v.r[0] * 8 + v.r[1] * 4 + v.r[2] * 2 + v.r[3]); }
/* causality over three threads */
static void wrc1(void) { R(2, LOAD(&v.x)); REL(&v.y, 1); }
static void wrc2(void) { R(0, ACQ(&v.y)); R(1, LOAD(&v.x)); }
static void r012(void) { outcome(v.r[2] * 4 + v.r[0] * 2 + v.r[1]); }
/* load buffering: not in this model */
static void lb0(void) { R(0, LOAD(&v.x)); STORE(&v.y, 1); }
static void lb1(void) { R(1, LOAD(&v.y)); STORE(&v.x, 1); }
/* updates are atomic; a compare and exchange wins once, and may fail on something old */
#define ADD(p) ((void)KSLAB_FETCH_ADD_RELAXED(p, 1u))
static void add(void) { ADD(&v.x); ADD(&v.x); }
static void rx(void) { outcome(v.x); }
static void cas0(void) { uint32_t e = 0; R(0, KSLAB_CAS_ACQ_REL(&v.x, &e, 1u)); }
static void cas1(void) { uint32_t e = 0; R(1, KSLAB_CAS_ACQ_REL(&v.x, &e, 2u)); }
static void cs0(void) { STORE(&v.x, 1); STORE(&v.x, 2); }
static void cs1(void) { uint32_t e = 1; R(0, KSLAB_CAS_ACQ_REL(&v.x, &e, 3u)); R(1, e); }
static void rcs(void) { outcome(v.r[0] * 12 + v.r[1] * 4 + v.x); }
/* a lock with a waiting loop */
static void lock(void)
{
	uint32_t ticket = KSLAB_FETCH_ADD_RELAXED(&v.y, 1u);

	while (KSLAB_LOAD_ACQUIRE(&v.z) != ticket)
		wmm_await();
	wmm_read(&v.plain, 4);
	wmm_write(&v.plain, 4);
	v.plain++;
	KSLAB_STORE_RELEASE(&v.z, LOAD(&v.z) + 1);
}
static void rplain(void) { outcome(v.plain); }
/* data races */
static void race0(void) { wmm_write(&v.plain, 4); REL(&v.x, 1); }
static void race1(void) { if (ACQ(&v.x)) wmm_read(&v.plain, 4); }
static void race2(void) { if (LOAD(&v.x)) wmm_read(&v.plain, 4); }
static void race3(void) { (void)LOAD(&v.plain); }
/* clang-format on */

#define O(n) ((uint64_t)1 << (n))
#define ALL(n) (O(n) - 1)
#define RACE ((uint64_t)-1)

static const struct {
	struct wmm_scenario scenario;
	uint64_t outcomes;
} litmus[] = {
	{ { "SB", "acquire and release", none, { sb0, sb1 }, r01, 0, NULL, 0 }, ALL(4) },
	{ { "SB+sc", "one side updates: Dekker", none, { sbs0, sbs1 }, r01, 0, NULL, 0 },
	  ALL(4) & ~O(0) },
	{ { "SB+sc+rel", "the update is not seq_cst", sev, { sbm0, sbm1 }, r01, 0, NULL, 0 },
	  ALL(4) },
	{ { "MP", "", none, { mp0, mp1 }, r01, 0, NULL, 0 }, ALL(4) & ~O(2) },
	{ { "MP+rlx", "", none, { mpr0, mpr1 }, r01, 0, NULL, 0 }, ALL(4) },
	{ { "MP+rmw", "release sequence", none, { mp0, rs1, rs2 }, r01, 0, NULL, 0 },
	  ALL(4) & ~O(2) },
	{ { "MP+store", "no release sequence", none, { mp0, rst1, rs2 }, r01, 0, NULL, 0 },
	  ALL(4) },
	{ { "CoRR", "", none, { co0, co1 }, r03, 0, NULL, 0 }, ALL(9) & ~(O(3) | O(6) | O(7)) },
	{ { "2+2W", "", none, { w220, w221 }, rxy, 0, NULL, 0 }, O(4) | O(5) | O(7) | O(8) },
	{ { "2+2W+sc", "", none, { w22s0, w22s1 }, rxy, 0, NULL, 0 }, O(5) | O(7) | O(8) },
	{ { "IRIW", "", none, { ira0, ira1, ira2, ira3 }, r0123, 0, NULL, 0 }, ALL(16) },
	{ { "IRIW+sc", "", none, { ir0, ir1, ir2, ir3 }, r0123, 0, NULL, 0 }, ALL(16) & ~O(10) },
	{ { "WRC", "", none, { ira0, wrc1, wrc2 }, r012, 0, NULL, 0 }, ALL(8) & ~O(6) },
	{ { "LB", "left out of the model", none, { lb0, lb1 }, r01, 0, NULL, 0 }, ALL(3) },
	{ { "RMW", "updates are atomic", none, { add, add, add }, rx, 0, NULL, 0 }, O(6) },
	{ { "CAS", "one wins", none, { cas0, cas1 }, r01, 0, NULL, 0 }, O(1) | O(2) },
	{ { "CAS+store", "", none, { cs0, cs1 }, rcs, 0, NULL, 0 }, O(2) | O(10) | O(18) },
	{ { "ticket", "a lock, waiting", none, { lock, lock, lock }, rplain, 0, NULL, 0 }, O(3) },
	{ { "NA", "ordered plain accesses", none, { race0, race1 }, rx, 0, NULL, 0 }, O(1) },
	{ { "NA+rlx", "a data race", none, { race0, race2 }, rx, 0, NULL, 0 }, RACE },
	{ { "NA+atomic", "plain against atomic", none, { race0, race3 }, rx, 0, NULL, 0 }, RACE },
};

static bool run(unsigned i, bool is_brute, struct wmm_result *result)
{
	const struct wmm_options options = { .is_brute = is_brute,
					     .world = &v,
					     .world_bytes = sizeof(v) };

	seen = 0;
	*result = wmm_explore(&litmus[i].scenario, &options);
	return litmus[i].outcomes == RACE
		       ? result->bug != NULL && strcmp(result->bug, "data race") == 0
		       : result->bug == NULL && seen == litmus[i].outcomes;
}

/* ---- random programs: the two searches must see the same outcomes ---------------------------- */

#define OPERATIONS 4u
#define OUTCOMES 8192u

static struct {
	uint8_t operation, place, value;
} program[WMM_THREADS][OPERATIONS];
static unsigned lengths[WMM_THREADS];
static struct {
	uint64_t set[OUTCOMES];
	unsigned count;
} outcomes;

static void random_thread(void)
{
	unsigned t = wmm_self(), result = 1;

	for (unsigned i = 0; i < lengths[t]; i++) {
		uint32_t *p = program[t][i].place ? &v.y : &v.x, value = program[t][i].value,
			 e = value;

		/* clang-format off */
		switch (program[t][i].operation) {
		case 0: result = result * 7 + KSLAB_LOAD_RELAXED(p); break;
		case 1: result = result * 7 + KSLAB_LOAD_ACQUIRE(p); break;
		case 2: result = result * 7 + KSLAB_LOAD_SEQ(p); break;
		case 3: KSLAB_STORE_RELAXED(p, value); break;
		case 4: KSLAB_STORE_RELEASE(p, value); break;
		case 5: KSLAB_STORE_SEQ(p, value); break;
		case 6: result = result * 7 + KSLAB_FETCH_OR_SEQ(p, value); break;
		case 7: result = result * 7 + KSLAB_FETCH_AND_RELEASE(p, value); break;
		case 8: result = result * 7 + KSLAB_EXCHANGE_ACQUIRE(p, value); break;
		case 9: result = result * 7 + KSLAB_CAS_ACQ_REL(p, &e, 3u) + 2 * e; break;
		default: result = result * 7 + KSLAB_CAS_RELEASE(p, &e, 3u) + 2 * e; break;
		}
		/* clang-format on */
	}
	v.r[t] = result;
}

static void random_outcome(void)
{
	uint64_t o = v.x * 8 + v.y;

	for (unsigned t = 0; t < WMM_THREADS; t++)
		o = o * 1000003 + v.r[t];
	for (unsigned i = 0; i < outcomes.count; i++)
		if (outcomes.set[i] == o)
			return;
	if (outcomes.count < OUTCOMES)
		outcomes.set[outcomes.count++] = o;
}

static unsigned next_random(unsigned below)
{
	static uint64_t state = 0x2545f4914f6cdd1d;

	state ^= state << 13;
	state ^= state >> 7;
	state ^= state << 17;
	return (unsigned)((state >> 20) % below);
}

/* Return: outcomes, 0: the searches differ. */
static unsigned random_program(uint64_t executions[2])
{
	struct wmm_scenario scenario = { "random",	 "", none, { random_thread, random_thread },
					 random_outcome, 0,  NULL, 0 };
	unsigned threads = 2 + next_random(2), full;

	for (unsigned t = 0; t < threads; t++) {
		scenario.thread[t] = random_thread;
		lengths[t] = 1 + next_random(threads == 2 ? OPERATIONS : 3);
		for (unsigned i = 0; i < lengths[t]; i++) {
			program[t][i].operation = (uint8_t)next_random(11);
			program[t][i].place = (uint8_t)next_random(2);
			program[t][i].value = (uint8_t)next_random(4);
		}
	}
	for (unsigned brute = 2; brute-- > 0;) {
		const struct wmm_options options = { .is_brute = brute,
						     .world = &v,
						     .world_bytes = sizeof(v) };

		full = brute ? 0 : outcomes.count;
		outcomes.count = 0;
		executions[brute] += wmm_explore(&scenario, &options).executions;
	}
	return full == outcomes.count ? full
				      : 0; /* the reduced search sees a subset, so counts do */
}

static bool random_programs(unsigned programs)
{
	uint64_t executions[2] = { 0, 0 };
	unsigned all = 0, differ = 0;

	for (unsigned i = 0; i < programs; i++) {
		unsigned n = random_program(executions);

		all += n;
		differ += n == 0;
	}
	printf("  %-11s %10llu %10s %12llu  %s: %u programs, %u outcomes\n", "random",
	       (unsigned long long)executions[0], "", (unsigned long long)executions[1],
	       differ == 0 ? "ok" : "WRONG", programs, all);
	return differ == 0;
}

void litmus_run(unsigned programs, unsigned *passed, unsigned *failed)
{
	printf("The checker itself: outcomes as RC11 says, reduced and full search agree\n");
	printf("  %-11s %10s %10s %12s\n", "", "executions", "given up", "full search");
	for (unsigned i = 0; i < sizeof(litmus) / sizeof(litmus[0]); i++) {
		struct wmm_result reduced, full;
		bool is_right = run(i, false, &reduced);

		is_right = run(i, true, &full) && is_right;
		printf("  %-11s %10llu %10llu %12llu  %s\n", litmus[i].scenario.name,
		       (unsigned long long)reduced.executions, (unsigned long long)reduced.blocked,
		       (unsigned long long)full.executions, is_right ? "ok" : "WRONG");
		*(is_right ? passed : failed) += 1;
	}
	*(random_programs(programs) ? passed : failed) += 1;
}
