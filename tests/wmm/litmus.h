/* SPDX-License-Identifier: MIT
 * litmus.h - owns the call that checks the checker; see litmus.c.
 */
#ifndef KSLAB_TESTS_LITMUS_H
#define KSLAB_TESTS_LITMUS_H

/* Known tests, and so many random programs. Adds to both counts. */
void litmus_run(unsigned programs, unsigned *passed, unsigned *failed);

#endif
