/* SPDX-License-Identifier: MIT
 * world.h - owns what the scenarios of the page and class rooms act on: owners, tiny pages,
 * objects, and what is known of them (who holds what), with the promises that are checked at every
 * step and at the end.
 */
#ifndef KSLAB_TESTS_WORLD_H
#define KSLAB_TESTS_WORLD_H

#include "sc_allocator.h"

#include "scenarios.h"

#include <string.h>

#define PAGES 3u
#define SLOTS 3u
#define DESCRIPTOR_BYTES 128u
#define PAGE_BYTES 512u /* of the bare allocator */

/* Owners: of the pages at first; the one that takes pages over; another CPU. */
enum { MINE, LIMBO, THEIRS, OWNERS };

/* Everything that changes: put back before each execution. */
struct world {
	struct kslab_owner owner[OWNERS];
	struct kslab_sc sc[OWNERS];
	struct {
		_Alignas(64) unsigned char bytes[DESCRIPTOR_BYTES];
	} descriptor[PAGES];
	_Alignas(64) uint64_t object[PAGES][SLOTS];
	_Alignas(PAGE_BYTES) unsigned char bare_page[PAGE_BYTES];
	struct kslab_sc_allocator bare;
	uint32_t handover[2]; /* [a] flags by which threads pass things on, as a lock would */

	/* What is known. Each thread counts for itself, so that no order of steps matters. */
	struct {
		uint8_t is_live; /* in somebody's hands: by the executions' order, and */
		uint8_t taken[WMM_THREADS + 1]; /* how often it was issued */
		uint8_t freed[WMM_THREADS + 1]; /* frees that were accepted */
		uint8_t refused[WMM_THREADS + 1]; /* frees that were refused */
	} known[PAGES][SLOTS];
	uint8_t is_released[PAGES];
	uint8_t remote_frees[WMM_THREADS + 1]; /* that were accepted */
	uint8_t has_double_free; /* the scenario frees something twice: counts are judged by it */
	uint8_t has_window; /* ... and may issue it in between: row 31 */
	uint8_t was_refused; /* a page could not be released or moved: it was QUEUED */
};

extern struct world world;

struct kslab_page *page_of(unsigned p);

/* Setup: a page in owner o with so many slots, all taken, retired: full and armed. */
void make_full_page(unsigned o, unsigned p, unsigned slots);
/* Setup: its first `taken` slots are issued; it is the current page. */
void make_current_page(unsigned o, unsigned p, unsigned slots, unsigned taken);
void make_page(unsigned o, unsigned p, unsigned slots);

/* Allocate from owner o and write the object. Return: false: nothing there. */
bool take(unsigned o);
/* As the next owner of an object would: write all of it. */
void use(unsigned p, unsigned s);
/* The one right free of an object; it must be accepted. */
void free_remote(unsigned p, unsigned s);
void free_local(unsigned o, unsigned p, unsigned s);
/* One of several frees of an object. Return: true: accepted. */
bool try_free_remote(unsigned p, unsigned s);
bool try_free_local(unsigned o, unsigned p, unsigned s);
/* As the heap does: drain; look at everything. */
void drain(unsigned o);
void drain_one(unsigned o); /* leaves the rest of the mail over */
void collect(unsigned o);
/* Take the page out of its owner if it is empty, and use its memory for something else. */
bool release(unsigned o, unsigned p);
bool move(unsigned from, unsigned p, unsigned to);
/* Pass on what this thread did; see whether another has. */
void hand_over(unsigned i);
bool is_handed_over(unsigned i);
/* The promises at the end. */
void check_world(void);

#endif
