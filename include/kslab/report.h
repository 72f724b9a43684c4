/* SPDX-License-Identifier: MIT
 * kslab/report.h - owns the vocabulary of failure: faults (the caller is wrong) and reasons (it
 * cannot be done). Rank: 1.
 */
#ifndef KSLAB_REPORT_H
#define KSLAB_REPORT_H

#include <kslab/config.h>

#ifdef __cplusplus
extern "C" {
#endif

/*
 * What a caller, a page source or a wild write did wrong. The call is refused, the heap is
 * unchanged.
 */
enum kslab_fault {
	KSLAB_FAULT_NONE,
	KSLAB_FAULT_DOUBLE_FREE, /* the object is free already, or was never issued */
	KSLAB_FAULT_INTERIOR_POINTER, /* inside an object, not at its start */
	KSLAB_FAULT_BAD_POINTER, /* inside the heap, but no object: a tail, metadata */
	KSLAB_FAULT_FOREIGN_POINTER, /* not memory of this heap */
	/* an object of another cache, or of a cache where none was meant */
	KSLAB_FAULT_WRONG_CACHE,
	KSLAB_FAULT_WRONG_SIZE, /* sized free: size and alignment lead to another class */
	KSLAB_FAULT_BAD_PAGE, /* the page source gave a page that cannot be used */
	KSLAB_FAULT_BAD_REGION, /* a region is too small, overlaps, wraps, or leaves the window */
	KSLAB_FAULT_REDZONE, /* bytes behind the requested size were changed */
	KSLAB_FAULT_USE_AFTER_FREE, /* bytes of a free object were changed */
	KSLAB_FAULT_CORRUPT_METADATA, /* a descriptor, list or count contradicts itself */
	KSLAB_FAULT_LIVE_OBJECTS, /* a cache or heap is destroyed while objects are live */
	KSLAB_FAULT_BAD_CPU, /* CPU number out of range or not in the expected state */
	KSLAB_FAULT_COUNT
};

/* Why an allocation returned NULL or a call was refused: kslab_last_error(). */
enum kslab_reason {
	KSLAB_OK,
	KSLAB_NO_PAGES, /* the page source is out of memory, and nothing could be taken back */
	/* more than the address window; of kslab_reserve: than a size class holds */
	KSLAB_TOO_LARGE,
	KSLAB_BAD_ALIGNMENT, /* zero or not a power of two */
	KSLAB_OVERFLOW, /* count * size wraps */
	KSLAB_QUOTA, /* the heap's page limit is reached */
	KSLAB_REENTRY, /* every nesting level of this CPU is busy */
	/* the lock is held by whom an NMI (on one CPU: an interrupt) has interrupted; the end of a cache:
	 * other CPUs have pages of it */
	KSLAB_BUSY,
	KSLAB_NOT_INITIALISED, /* no kslab_init yet, or this CPU is not online */
	KSLAB_BAD_ARGUMENT, /* refused before anything was looked at */
	KSLAB_BAD_FREE, /* the pointer was refused; the fault was reported */
	KSLAB_INJECTED, /* failed on request (fault injection) */
	KSLAB_REASON_COUNT
};

/*
 * One fault. Fields that make no sense for a kind are zero. All addresses are as the caller gave or
 * the heap computed them; nothing of the object is dereferenced to fill them in.
 */
struct kslab_report {
	enum kslab_fault fault;
	const void *pointer; /* as given */
	const void *object; /* start of the slot that holds it */
	size_t object_bytes; /* size of that slot, or of the large block */
	const void *page; /* first byte of the object page or large block */
	size_t page_bytes;
	/*
	 * LIVE_OBJECTS, and DOUBLE_FREE found late: how many; WRONG_SIZE: the size given; BAD_CPU: the
	 * CPU; else offset of the bad byte
	 */
	size_t count;
	unsigned cpu; /* CPU that found it */
	const void *caller; /* return address of the call that was refused */
	const void *alloc_caller; /* debug level 2: who allocated it */
	const void *free_caller; /* debug level 2: who freed it last */
	const char *what; /* one line in English, static */
};

/*
 * The report hook. Context: that of the refused call, interrupt and NMI included; no lock is held.
 * It may return: the call is then refused. It may call kslab (served by the next nesting level).
 */
typedef void (*kslab_report_fn)(void *ctx, const struct kslab_report *report);

/* Static English names, "KSLAB_FAULT_DOUBLE_FREE" -> "double free". Out of range: "unknown". */
const char *kslab_fault_name(enum kslab_fault fault);
const char *kslab_reason_name(enum kslab_reason reason);

#ifdef __cplusplus
}
#endif
#endif
