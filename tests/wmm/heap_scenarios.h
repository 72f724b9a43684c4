/* SPDX-License-Identifier: MIT
 * heap_scenarios.h - owns the table of scenarios of the whole heap.
 */
#ifndef KSLAB_TESTS_HEAP_SCENARIOS_H
#define KSLAB_TESTS_HEAP_SCENARIOS_H

#include "wmm.h"

extern const struct wmm_scenario heap_scenarios[];
extern const unsigned heap_scenario_count;

#endif
