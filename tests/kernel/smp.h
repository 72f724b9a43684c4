/* SPDX-License-Identifier: MIT
 * smp.h - owns the interface to the part of the test kernel that runs on all CPUs at once.
 */
#ifndef KERNEL_SMP_H
#define KERNEL_SMP_H

/* Starts the other CPUs; they wait. Return: how many run. */
unsigned smp_start(void);

/* A job: all traces on all CPUs, with interrupts, NMIs, CPUs that leave and come back. */
void smp_job(void);

#endif
