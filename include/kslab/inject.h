/* SPDX-License-Identifier: MIT
 * kslab/inject.h - owns fault injection: allocations that fail on request, so that a kernel's error
 * paths get run.
 * Rank: 1.
 *
 * Price while off: none on the fast path; one compare for each page taken from the source, and for
 * each object of an object cache. While allocations are in question, every allocation goes the slow
 * way.
 */
#ifndef KSLAB_INJECT_H
#define KSLAB_INJECT_H

#include <kslab/report.h>

#ifdef __cplusplus
extern "C" {
#endif

struct kslab_heap;

#define KSLAB_INJECT_PAGES (1u << 0) /* page runs asked of the page source */
#define KSLAB_INJECT_ALLOCATIONS (1u << 1) /* objects and large blocks */

/*
 * Bits of kslab_inject.classes: size classes by their index (kslab_class_stats), and two more. They
 * are the classes of slots: at debug levels 1 and 2 a request needs a larger one than its size
 * says.
 */
#define KSLAB_INJECT_LARGE 60u /* large blocks */
#define KSLAB_INJECT_CACHE 61u /* objects of object caches */

/*
 * What shall fail. Events are counted from kslab_inject on, in all CPUs together; an event is a
 * matching page run or allocation. One that several rules hit fails once. All zero: nothing fails.
 */
struct kslab_inject {
	unsigned where; /* KSLAB_INJECT_PAGES, KSLAB_INJECT_ALLOCATIONS */
	size_t fail_nth; /* the n-th event, counted from 1; 0: none */
	size_t fail_every; /* every n-th event; 0: none */
	uint32_t fail_share; /* so many of 65536, by chance */
	uint32_t seed; /* of that chance: the same seed, the same events */
	uint32_t classes[2]; /* bit mask of what is in question; both 0: everything */
};

/* What a heap keeps of it. Not an interface. */
struct kslab_injecting {
	struct kslab_inject rule; /* written by kslab_inject only */
	size_t events; /* [a] */
	size_t route_limit; /* of the heap, while the fast path is closed */
};

/*
 * kslab_inject - let allocations or page runs fail from now on
 * @rule: copied; NULL: nothing fails any more.
 * What fails returns NULL with reason KSLAB_INJECTED; a page run that fails is treated as memory
 * that is out: the heap takes back what lies idle, tries once more, then the allocation fails.
 * Requests with KSLAB_RESERVE pass the page source's failures: their emergency pages are for that.
 * The count of failures is in kslab_stats.failed[KSLAB_INJECTED].
 * Context: thread; not while another CPU is in kslab_inject. O(1).
 * Return: KSLAB_OK, NOT_INITIALISED, or BAD_ARGUMENT (no `where`, a share above 65536); nothing
 * changed then.
 */
enum kslab_reason kslab_inject(const struct kslab_inject *rule);
enum kslab_reason kslab_heap_inject(struct kslab_heap *heap, const struct kslab_inject *rule);

/*
 * kslab_inject_parse - a rule from text, as from boot options
 * @text: "off", or one of pages, allocations, all; then, after ':', a list with commas of nth=N,
 * every=N, share=N, seed=N, class=BYTES, class=large, class=cache. "pages:every=7,class=64": every
 * 7th page for objects of 64 bytes.
 * @rule: all zero (do not call kslab_inject with it, but with NULL) after "off".
 * Context: any, before kslab_init too. Return: KSLAB_OK, or BAD_ARGUMENT; *rule is unchanged then.
 */
enum kslab_reason kslab_inject_parse(const char *text, struct kslab_inject *rule);

#ifdef __cplusplus
}
#endif
#endif
