/* SPDX-License-Identifier: MIT
 * report.h - owns the way of a fault to the kernel's hook.
 * Rank: 1.  Runs anywhere; no lock and no zone may be held.
 */
#ifndef KSLAB_REPORT_PRIVATE_H
#define KSLAB_REPORT_PRIVATE_H

#include <kslab/heap.h>

/* Call the hook of the heap. cpu is filled in here. */
void kslab_report_fault(struct kslab_heap *heap, struct kslab_report *report);

#endif
