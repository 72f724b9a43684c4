/* SPDX-License-Identifier: MIT
 * scenarios.h - owns the table of scenarios.
 */
#ifndef KSLAB_TESTS_SCENARIOS_H
#define KSLAB_TESTS_SCENARIOS_H

#include "world.h"

extern const struct wmm_scenario scenarios[];
extern const unsigned scenario_count;

#endif
