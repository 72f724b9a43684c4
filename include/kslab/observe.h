/* SPDX-License-Identifier: MIT
 * kslab/observe.h - owns what looks at a heap from outside: leak marks, the page map as text, self
 * tests.
 * Rank: 6.  Fault injection is in <kslab/inject.h>; figures, check and walk are in <kslab/kslab.h>.
 */
#ifndef KSLAB_OBSERVE_H
#define KSLAB_OBSERVE_H

#include <kslab/kslab.h>

#ifdef __cplusplus
extern "C" {
#endif

/* ---- leak marks ------------------------------------------------------------------------------ */

/*
 * What was live at one moment: a copy of the live bits of all pages, in memory taken from the page
 * source. The caller owns the struct; nothing in it is an interface.
 */
struct kslab_mark {
	struct kslab_heap *heap; /* NULL: no mark */
	struct kslab_mark_block *blocks; /* runs from the page source */
	size_t pages; /* base pages the mark takes */
	size_t objects; /* that were live */
	uintptr_t sequence; /* debug level 2: newest of them */
};

/*
 * kslab_mark - remember which objects are live now
 * @mark: contents arbitrary. MUST be given to kslab_unmark before kslab_fini, or its pages are
 * lost. Takes 16 bytes and a bit for each slot of every object page, 16 bytes for each large block.
 * Context: thread or interrupt, on a quiet heap; while other CPUs run, their calls of this moment
 * may be on either side. May call the page source. Complexity: O(pages). Return: KSLAB_OK, NO_PAGES
 * and so on: *mark is no mark then.
 */
enum kslab_reason kslab_mark(struct kslab_mark *mark);
enum kslab_reason kslab_heap_mark(struct kslab_heap *heap, struct kslab_mark *mark);

/*
 * kslab_diff - every object that was allocated since the mark and is live now, by address (a static
 * array that the heap began on comes first)
 * @fn: may be NULL (count only); returns false to stop. MUST not allocate or free.
 * Exact at debug level 2. Below, an object is told from an earlier one by its place alone: one that
 * was freed and allocated again at the same address, with the same slot size, in between is taken
 * for the one that stayed. So the answer never holds an object that is older than the mark, and a
 * leak that grows is always seen.
 * Context: as kslab_mark, without the page source. Complexity: O(pages, objects seen).
 * Return: objects seen, the last one included.
 */
size_t kslab_diff(const struct kslab_mark *mark, bool (*fn)(void *ctx, void *object, size_t bytes),
		  void *ctx);

/*
 * Give the mark's memory back. No mark, or one that was given back: nothing happens. Complexity:
 * O(pages of the mark).
 */
void kslab_unmark(struct kslab_mark *mark);

/* ---- the object pages as text ---------------------------------------------------------------- */

/*
 * kslab_print_map - the object pages of each class, one character a page, lines of 76 columns
 *
 *     .  empty       1 2 3 4  up to so many quarters of the slots are live
 *     #  full        @  allocations come from it
 *
 * Context: as kslab_stats; waits for no lock, so it may run in a panic: while it is taken, caches are
 * left out, and at debug level 2 what is in quarantine counts as live. Ends on broken lists, too.
 * Complexity: O(pages).
 */
void kslab_print_map(void (*putc)(void *ctx, char c), void *ctx);
void kslab_heap_print_map(struct kslab_heap *heap, void (*putc)(void *ctx, char c), void *ctx);

/* ---- self tests ------------------------------------------------------------------------------ */

/* What a self test has found. what == NULL: all is well. Every text is static. */
struct kslab_selftest {
	/* The hook that is wrong, as kslab_config and port.h name it; in a live heap: the call. */
	const char *hook;
	const char *what; /* one line in English */
	const void *address; /* where it was seen, or NULL */
	size_t count; /* which page, byte, or round */
	bool irq_tested; /* false: interrupts were masked already, or there is nothing to mask */
};

/*
 * kslab_selftest - allocate and free in patterns on a live heap, and check it
 * Sizes 0 .. 16 KiB and one large block, filled and verified, aligned and zeroed requests, realloc,
 * bulk; about 200 KiB are live at most. Memory that runs out ends a pattern early, and is no
 * failure.
 * Context: thread on a CPU that is online; other CPUs may go on, but then kslab_check is left out
 * (@quiet false). Return: true if all is well. out may be NULL. Complexity: O(1) calls, and with
 * @quiet that of kslab_check.
 */
bool kslab_selftest(bool quiet, struct kslab_selftest *out);
bool kslab_heap_selftest(struct kslab_heap *heap, bool quiet, struct kslab_selftest *out);

/*
 * kslab_selftest_port - find wrong hooks before kslab_init trusts them, and name them
 * @config: as for kslab_init. alloc_pages must not hand out misaligned, overlapping or unusable
 * pages, nor any outside the window of window_base, must give runs that are contiguous, and serve
 * again after free_pages.
 * @mem, @bytes: memory that will be a region, or NULL: is it usable, does purge clear exactly what
 * it is given. Its contents are lost.
 * Also: the CPU number (stable between PIN and UNPIN, in range), IRQ_SAVE and IRQ_RESTORE, IN_NMI,
 * and the four functions memcpy, memset, memmove, memcmp. Call it with interrupts enabled, or
 * RESTORE is not tested (irq_tested).
 * What it can't find: pages that somebody else uses, too; a free_pages that forgets, while memory
 * lasts.
 * Context: CPU 0, thread, before kslab_init. Takes at most 33 base pages at a time, and gives all
 * back. Complexity: O(@bytes), and O(1) pages of the source.
 * Return: true if all is well. out may be NULL.
 */
bool kslab_selftest_port(const struct kslab_config *config, void *mem, size_t bytes,
			 struct kslab_selftest *out);

#ifdef __cplusplus
}
#endif
#endif
