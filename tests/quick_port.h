/* SPDX-License-Identifier: MIT
 * quick_port.h - owns fake_cpu.h with a port that keeps each CPU's zone (KSLAB_PORT_ZONE).
 * Rank: test helper.  Exactly one file of the program says QUICK_PORT_DEFINE.
 */
#ifndef QUICK_PORT_H
#define QUICK_PORT_H

#include "fake_cpu.h"

#define QUICK_CPUS 4

struct kslab_zone;
extern struct kslab_zone *quick_zone[QUICK_CPUS];

#define QUICK_PORT_DEFINE struct kslab_zone *quick_zone[QUICK_CPUS]
#define KSLAB_PORT_ZONE() quick_zone[fake_cpu]

#endif
