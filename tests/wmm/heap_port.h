/* SPDX-License-Identifier: MIT
 * heap_port.h - owns the port of the heap under the model checker: coroutines play CPUs, pages are
 * tiny.
 */
#ifndef KSLAB_TESTS_HEAP_PORT_H
#define KSLAB_TESTS_HEAP_PORT_H

#define KSLAB_CFG_CPUS 3
#define KSLAB_CFG_LEVELS 2
#define KSLAB_CFG_GRAIN_SHIFT 9
#define KSLAB_CFG_LEAF_SHIFT 18
#define KSLAB_CFG_TOP_ENTRIES 4
#define KSLAB_CFG_REGIONS 1

unsigned heap_cpu(void);
#define KSLAB_PORT_CPU() heap_cpu()
#define KSLAB_PORT_IRQ_SAVE() ((uintptr_t)0)
#define KSLAB_PORT_IRQ_RESTORE(state) ((void)(state))
#define KSLAB_PORT_RELAX() wmm_await()

#endif
