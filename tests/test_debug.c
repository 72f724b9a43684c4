/* SPDX-License-Identifier: MIT
 * test_debug.c - owns the proof of debug level 1: rows 21 to 26 of the table of misuse, and the
 * other rows unchanged. Rank: test.  Runs: one thread that plays two CPUs, in turns.
 *
 * BUILD: -DKSLAB_CFG_DEBUG=1 -DKSLAB_CFG_HEADER='"fake_cpu.h"' -DKSLAB_CFG_CPUS=2
 * -DKSLAB_CFG_LEVELS=4
 */
#include "debug_common.h"

int main(void)
{
	const struct CMUnitTest tests[] = { DEBUG_TESTS };

	return cmocka_run_group_tests(tests, NULL, NULL);
}
