/* SPDX-License-Identifier: MIT
 * scenarios.h - owns what main.c needs of a table of scenarios; there are two, in two programs:
 * scenarios.c (the rooms object_page and sc_allocator) and heap_scenarios.c (the whole heap).
 */
#ifndef KSLAB_TESTS_SCENARIOS_H
#define KSLAB_TESTS_SCENARIOS_H

#include "wmm.h"

extern const struct wmm_scenario scenarios[];
extern const unsigned scenario_count;

/* Memory orders that this program weakens; NULL: any. The last file is NULL. */
extern const struct weakened {
	const char *file; /* begin of its name */
	const char *function, *operation;
} weakened[];

/*
 * Orders that the source has and that no scenario of this program needs, each with the reason. One
 * that is caught all the same is a failure: the reason is wrong. The last function is NULL.
 */
extern const struct not_needed {
	const char *function, *operation;
	enum wmm_order to;
	const char *reason;
} not_needed[];

/* Over all executions of a scenario: how often what may happen did happen. */
struct tally {
	uint64_t late; /* a double free was found at a harvest */
	uint64_t window; /* a double free hit a slot that was issued in between */
	uint64_t released; /* pages released */
	uint64_t refused; /* releases or moves refused, because the page was QUEUED */
	uint64_t mailed; /* executions that end with mail */
};
extern struct tally tally;

/* What an address is, for the print of an execution. */
void name_world(const volatile void *p, char *out, size_t bytes);

#endif
