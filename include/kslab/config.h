/* SPDX-License-Identifier: MIT
 * kslab/config.h - owns every compile-time knob: its default, its price, its range.
 * Rank: 0.  Define a knob on the command line or in the header named by KSLAB_CFG_HEADER.
 * A library and everything that includes its headers must agree on all of them: kslab_init refuses
 * what was compiled with others that change a structure.
 */
#ifndef KSLAB_CONFIG_H
#define KSLAB_CONFIG_H

#ifdef KSLAB_CFG_HEADER
#include KSLAB_CFG_HEADER
#endif

/* A kernel that lacks these freestanding headers names a replacement. */
#ifdef KSLAB_CFG_TYPES_HEADER
#include KSLAB_CFG_TYPES_HEADER
#else
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#endif

/* CPUs the heap can serve. Price: 16 bytes each; above 1 the port gives the CPU number. */
#ifndef KSLAB_CFG_CPUS
#define KSLAB_CFG_CPUS 1
#endif

/*
 * Nesting levels per CPU: task, interrupt, NMI, one more. With 1, no handler may allocate or free.
 * Price above 1: four instructions a call; a page for each level that is ever nested into.
 */
#ifndef KSLAB_CFG_LEVELS
#define KSLAB_CFG_LEVELS 4
#endif

/* Default debug level 0, 1 or 2 (see kslab_config.debug_level, which can raise it at boot). */
#ifndef KSLAB_CFG_DEBUG
#define KSLAB_CFG_DEBUG 0
#endif

/*
 * log2 of the smallest base page a heap can use: the grain of the page map. Below 12, zones and tables
 * need runs of a few pages from the source even where objects do not.
 */
#ifndef KSLAB_CFG_GRAIN_SHIFT
#define KSLAB_CFG_GRAIN_SHIFT 12
#endif

/*
 * The address window a heap can manage is 2^LEAF_SHIFT * TOP_ENTRIES bytes. A leaf costs a pointer
 * per grain (a page of pointers per 2^LEAF_SHIFT bytes in use; one above a page needs a run of pages
 * from the source); the top table lies in struct kslab_heap. Default: 8 GiB with 32 KiB of top table
 * on 64-bit machines, all 4 GiB with 4 KiB on 32-bit ones.
 */
#ifndef KSLAB_CFG_LEAF_SHIFT
#if UINTPTR_MAX > 0xffffffffu
#define KSLAB_CFG_LEAF_SHIFT (KSLAB_CFG_GRAIN_SHIFT + 9)
#else
#define KSLAB_CFG_LEAF_SHIFT (KSLAB_CFG_GRAIN_SHIFT + 10)
#endif
#endif
#ifndef KSLAB_CFG_TOP_ENTRIES
#if UINTPTR_MAX > 0xffffffffu
#define KSLAB_CFG_TOP_ENTRIES 4096
#else
#define KSLAB_CFG_TOP_ENTRIES (1u << (32 - KSLAB_CFG_LEAF_SHIFT))
#endif
#endif

/*
 * 1: the leaves of the page map lie side by side in memory that kslab_config.flat_map gives, which
 * saves each free one of two dependent loads. Price: address space for a pointer per grain of the
 * window (1/512 of it), of which only what is used has to be backed by memory; kslab_init_region, which
 * has none to give, answers BAD_ARGUMENT.
 */
#ifndef KSLAB_CFG_FLAT_MAP
#define KSLAB_CFG_FLAT_MAP 0
#endif

/* Memory regions a heap can hold (kslab_add_region). Price: 200 bytes each in struct kslab_heap. */
#ifndef KSLAB_CFG_REGIONS
#define KSLAB_CFG_REGIONS 8
#endif

#if KSLAB_CFG_CPUS < 1 || KSLAB_CFG_CPUS > 65535
#error "KSLAB_CFG_CPUS: 1 to 65535"
#endif
#if KSLAB_CFG_LEVELS < 1 || KSLAB_CFG_LEVELS > 8
#error "KSLAB_CFG_LEVELS: 1 to 8"
#endif
#if KSLAB_CFG_DEBUG < 0 || KSLAB_CFG_DEBUG > 2
#error "KSLAB_CFG_DEBUG: 0 to 2"
#endif
#if KSLAB_CFG_GRAIN_SHIFT < 9 || KSLAB_CFG_GRAIN_SHIFT > 20
#error "KSLAB_CFG_GRAIN_SHIFT: 9 to 20"
#endif
#if KSLAB_CFG_LEAF_SHIFT <= KSLAB_CFG_GRAIN_SHIFT || KSLAB_CFG_LEAF_SHIFT > 30
#error "KSLAB_CFG_LEAF_SHIFT: above the grain, at most 30"
#endif
/* These stand beside other operators. */
#if 2 * KSLAB_CFG_CPUS * 2 != (KSLAB_CFG_CPUS)*4
#error "KSLAB_CFG_CPUS: an expression needs parentheses"
#endif
#if 2 * KSLAB_CFG_LEVELS * 2 != (KSLAB_CFG_LEVELS)*4
#error "KSLAB_CFG_LEVELS: an expression needs parentheses"
#endif
#if 2 * KSLAB_CFG_GRAIN_SHIFT * 2 != (KSLAB_CFG_GRAIN_SHIFT)*4
#error "KSLAB_CFG_GRAIN_SHIFT: an expression needs parentheses"
#endif
#if 2 * KSLAB_CFG_LEAF_SHIFT * 2 != (KSLAB_CFG_LEAF_SHIFT)*4
#error "KSLAB_CFG_LEAF_SHIFT: an expression needs parentheses"
#endif
#if (KSLAB_CFG_TOP_ENTRIES) < 1 || ((KSLAB_CFG_TOP_ENTRIES) & ((KSLAB_CFG_TOP_ENTRIES)-1)) != 0
#error "KSLAB_CFG_TOP_ENTRIES: a power of two"
#endif
#if KSLAB_CFG_FLAT_MAP != 0 && KSLAB_CFG_FLAT_MAP != 1
#error "KSLAB_CFG_FLAT_MAP: 0 or 1"
#endif
#if KSLAB_CFG_REGIONS < 1 || KSLAB_CFG_REGIONS > 64
#error "KSLAB_CFG_REGIONS: 1 to 64"
#endif

#define KSLAB_VERSION_MAJOR 0
#define KSLAB_VERSION_MINOR 1
#define KSLAB_VERSION_PATCH 0

#endif
