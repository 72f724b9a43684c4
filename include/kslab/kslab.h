/* SPDX-License-Identifier: MIT
 * kslab/kslab.h - owns the public interface of the heap.
 * Rank: 6.
 *
 * Contexts. "any" below means: thread, interrupt or NMI, at any instruction of any other kslab
 * call, with no lock held by kslab. A call that may use the page source calls the kernel's
 * callbacks with interrupts as the caller had them and no kslab lock held; in an NMI
 * (KSLAB_PORT_IN_NMI) the callbacks are not called. CPU 0 works from kslab_init on; other CPUs
 * after their kslab_cpu_online.
 *
 * Progress. Objects freed by other CPUs become usable for their owner's allocations at the owner's
 * next slow path in that class, at its kslab_idle, kslab_reclaim or kslab_quiesce. Memory of an
 * idle CPU stays with it until it calls one of these; at each nesting level that was used it is at
 * most the retention, of empty pages and again of blocks, what was reserved, and partly used pages.
 * What a CPU that is offline has left goes back at anybody's kslab_reclaim, or allocation
 * whose page source has failed.
 *
 * No call is longer because the heap is larger, unless its Complexity says so: what waits is done a
 * few steps a call. A slow path of an allocation takes in the mail of 8 pages (what others freed on
 * pages that were full); any slow path gives back up to 4 pages of what is above the retention or
 * was asked for by kslab_reclaim elsewhere, and looks at up to 4 partly used pages for that; the free
 * of a large block releases two that were freed in an NMI, and one into a region purges 4 pieces of
 * it; an allocation that looks into the pages of CPUs that are gone does 4 steps of bringing them up
 * to date, one of a cache 4 for each of these CPUs and levels that used it. The next such calls do the
 * rest; kslab_idle, kslab_quiesce and kslab_reclaim do all of what this CPU can do.
 *
 * Longest calls are given in instructions (x86_64, gcc -O2, pages of 4 KiB with up to 512 slots,
 * regions of 1 GiB; page source, report hook, constructors and the filling and copying of contents
 * excluded) as make worst holds them. Interrupts are off for at most 400 of them; 700 where a page
 * goes back to a region, 1,200 where several do, 2,500 where a block of a region grows in place, 900
 * where pages of a CPU that is gone are moved or looked at, 3,000 where a leaf of the page map is
 * made, 60,000 in the first call, and all of kslab_add_region. What a region does grows with the
 * logarithm of its pages.
 *
 * Every function exists twice: kslab_NAME(...) works on the default heap, kslab_heap_NAME(heap,
 * ...) on any.
 */
#ifndef KSLAB_KSLAB_H
#define KSLAB_KSLAB_H

#include <kslab/heap.h>

#ifdef __cplusplus
extern "C" {
#endif

/* ---- start and end --------------------------------------------------------------------------- */

#define KSLAB_RETAIN_NONE ((size_t)-1)
#define KSLAB_QUARANTINE_NONE ((size_t)-1)

#define KSLAB_DEBUG_ZERO_ON_FREE                                                                   \
	(1u << 0) /* free objects hold zero instead of KSLAB_DEBUG_FREE_BYTE, and new ones, too */
#define KSLAB_DEBUG_ZERO_ON_ALLOC (1u << 1) /* new objects hold zero, whatever free ones hold */

/* What memory holds at debug level 1 and above. */
/* a free object, and a new one that was not written to yet */
#define KSLAB_DEBUG_FREE_BYTE 0x6bu
#define KSLAB_DEBUG_REDZONE_BYTE 0xbbu /* behind the bytes that were asked for */

/* All zero is a valid configuration but for the page source: give callbacks, or add a region. */
struct kslab_config {
	/*
	 * Page source. alloc_pages returns `pages` contiguous base pages, or NULL: their virtual
	 * address, where they can be read and written; they may hold anything. It may refuse
	 * every pages > 1: single pages are enough for all sizes up to one page. A run longer than
	 * one page should be aligned to its size (power of two); if it is not, it is used where
	 * that does no harm. free_pages gets exactly the runs that alloc_pages returned. Both are
	 * called from wherever kslab is: by a handler that allocates or frees, too, but not in an
	 * NMI, nor alloc_pages with KSLAB_NOWAIT. Either may call kslab itself.
	 */
	void *(*alloc_pages)(void *ctx, size_t pages);
	void (*free_pages)(void *ctx, void *mem, size_t pages);
	void *source_ctx;

	/* base page: power of two from 2^KSLAB_CFG_GRAIN_SHIFT to 1 GiB; 0: 4096, or the least one */
	size_t page_bytes;
	/* longest object page: power of two up to 1 GiB and 32768 base pages; 0: 64 KiB */
	size_t max_page_bytes;
	/*
	 * 8 or 16: alignment of every object of at least that size; 0: 8. With 8, a type of
	 * alignment 16 is still aligned, at every debug level, because its size is a multiple of
	 * 16; only 16-aligned headers of odd-sized data need 16 here.
	 */
	size_t min_align;
	/* objects above a page are aligned like the others: less waste between 4 and 16 KiB */
	bool packs;
	/*
	 * empty object pages a CPU keeps at each nesting level, and as much again in blocks; 0: 512
	 * KiB; KSLAB_RETAIN_NONE
	 */
	size_t retain_bytes;
	size_t max_pages; /* quota of base pages; 0: none */
	/*
	 * base pages set aside for KSLAB_RESERVE requests that need a single one, from alloc_pages,
	 * in kslab_init; inside the window, if that is given
	 */
	size_t emergency_pages;
	/* in the first address range to manage; 0: found from the first page or region */
	uintptr_t window_base;
	/*
	 * With KSLAB_CFG_FLAT_MAP: zero-filled memory for the page map, aligned to a pointer. The
	 * window is no longer than its whole leaves, 2^(LEAF_SHIFT - GRAIN_SHIFT) pointers each.
	 */
	void *flat_map;
	size_t flat_map_bytes;

	/*
	 * Regions only: called with a run that holds no live object, of free pages or inside an
	 * object page; it MUST read as zero after. With a purge callback, regions MUST read as zero
	 * when they are added. What is being purged can't be allocated just then, nor can the other
	 * free slots of its object page.
	 */
	void (*purge)(void *ctx, void *mem, size_t bytes);
	size_t purge_bytes; /* free memory a region may hold before purge is called; 0: 8 MiB */

	kslab_report_fn report; /* NULL: the machine stops (see kslab_default_report) */
	void *report_ctx;
	unsigned debug_level; /* raises KSLAB_CFG_DEBUG */

	/* Debug levels 1 and 2. */
	unsigned debug_flags; /* KSLAB_DEBUG_ZERO_... */
	/* level 2: freed objects that are held back; 0: 256; KSLAB_QUARANTINE_NONE */
	size_t quarantine_objects;
	/* and at most so many bytes of them, but one object at least; 0: 256 KiB */
	size_t quarantine_bytes;
};

extern struct kslab_heap kslab_default_heap;

/*
 * kslab_init - make the heap usable on CPU 0
 * Context: once, before any other call; CPU 0; not from an interrupt.
 * Return: KSLAB_OK, BAD_ARGUMENT (a value out of range, a heap that is live already, or the caller was
 * compiled with another configuration than the library; nothing changed), NO_PAGES.
 * Complexity: O(1), 80,000; O(emergency_pages) with them.
 */
enum kslab_reason kslab_init(const struct kslab_config *config);
enum kslab_reason kslab_heap_init(struct kslab_heap *heap, const struct kslab_config *config);

/* Whether the library has the same structures as who asks. */
bool kslab_is_layout(size_t layout);
#define KSLAB_LAYOUT                                                                               \
	((sizeof(struct kslab_heap) * 31 + sizeof(struct kslab_cache)) * 31 +                      \
	 KSLAB_CFG_LEVELS * 4096u + KSLAB_CFG_GRAIN_SHIFT * 64u + KSLAB_CFG_LEAF_SHIFT * 2u +      \
	 KSLAB_CFG_FLAT_MAP)
#define KSLAB_IF_LAYOUT(call) (kslab_is_layout(KSLAB_LAYOUT) ? (call) : KSLAB_BAD_ARGUMENT)
#define kslab_init(config) KSLAB_IF_LAYOUT((kslab_init)(config))
#define kslab_heap_init(heap, config) KSLAB_IF_LAYOUT((kslab_heap_init)((heap), (config)))

/*
 * kslab_init_region - kslab_init with defaults, on one piece of memory
 * @mem, @bytes: any alignment; at least eight base pages. Metadata is taken from it. Runs of pages
 * come from a buddy system: n pages need an aligned free block of the next power of two, whose tail
 * goes back at once. Complexity: those of kslab_init and kslab_add_region.
 */
enum kslab_reason kslab_init_region(void *mem, size_t bytes);
enum kslab_reason kslab_heap_init_region(struct kslab_heap *heap, void *mem, size_t bytes);
#define kslab_init_region(mem, bytes) KSLAB_IF_LAYOUT((kslab_init_region)((mem), (bytes)))
#define kslab_heap_init_region(heap, mem, bytes)                                                   \
	KSLAB_IF_LAYOUT((kslab_heap_init_region)((heap), (mem), (bytes)))

/*
 * kslab_add_region - hand over more memory
 * Context: any CPU, thread or interrupt. MUST not be used by anybody else afterwards.
 * Return: KSLAB_OK, NOT_INITIALISED, or BAD_ARGUMENT after fault BAD_REGION (too small, wraps,
 * overlaps memory the heap holds, outside the window, no region slot left). Nothing changed then.
 * The first page or region places the window. While CPU 0 is the only one, what lies outside moves it,
 * once, if all regions and pages so far lie within four leaves of the map (8 MiB by default).
 * Complexity: O(pages of the region), with interrupts off: a few instructions for each 64 of them,
 * and for each that lies where the map has leaves.
 */
enum kslab_reason kslab_add_region(void *mem, size_t bytes);
enum kslab_reason kslab_heap_add_region(struct kslab_heap *heap, void *mem, size_t bytes);

/*
 * kslab_set_page_source - set or replace the callbacks after init (a heap that began on a static
 * region)
 * Pages of the earlier source are given to the new free_pages. Regions are used first.
 * Context: early boot. No call of kslab may be under way that uses the page source; and if what this
 * one gives lies outside the window, its first page moves the window (see kslab_add_region): allocate
 * a page before other CPUs and handlers use the heap.
 * Return: KSLAB_OK, NOT_INITIALISED, BAD_ARGUMENT (one of them is NULL), BUSY. Complexity: O(1), 150.
 */
enum kslab_reason kslab_set_page_source(void *(*alloc_pages)(void *, size_t),
					void (*free_pages)(void *, void *, size_t), void *ctx);
enum kslab_reason kslab_heap_set_page_source(struct kslab_heap *heap,
					     void *(*alloc_pages)(void *, size_t),
					     void (*free_pages)(void *, void *, size_t), void *ctx);

/*
 * kslab_fini - end the heap and give every page back, metadata included
 * Context: nobody else uses the heap; KSLAB_PORT_ZONE of every other CPU MUST be &kslab_zone_none
 * before that CPU calls kslab again. Return: KSLAB_OK, NOT_INITIALISED, or BAD_ARGUMENT after fault
 * LIVE_OBJECTS.
 * Complexity: O(pages).
 */
enum kslab_reason kslab_fini(void);
enum kslab_reason kslab_heap_fini(struct kslab_heap *heap);

/*
 * kslab_cpu_online - make this CPU able to allocate from its own pages
 * Context: on that CPU, thread. Until then a CPU MUST NOT allocate; it may free.
 * Return: KSLAB_OK, on CPU 0 always; BAD_ARGUMENT after fault BAD_CPU (out of range, not the CPU it
 * runs on, online already); NOT_INITIALISED; what an allocation would say. Complexity: O(1), 5,000.
 */
enum kslab_reason kslab_cpu_online(unsigned cpu);
enum kslab_reason kslab_heap_cpu_online(struct kslab_heap *heap, unsigned cpu);

/*
 * kslab_cpu_offline - hand the pages of a CPU to the others
 * Those with free slots are taken over by who needs a page of that size class or object cache, empty
 * ones go back when memory is asked for.
 * Context: thread; on that CPU as its last call, or anywhere once it has stopped. Others go on
 * meanwhile. CPU 0 stays. KSLAB_PORT_ZONE of a CPU that had stopped MUST be &kslab_zone_none when it
 * starts again. Return: KSLAB_OK; BAD_ARGUMENT after fault BAD_CPU (CPU 0, out of range, not online);
 * NOT_INITIALISED; the first time in a heap, which takes a page, what an allocation would say:
 * then the CPU is online as before. Complexity: O(pages of that CPU), a page at a time with
 * interrupts off (900). Pages whose mail is on its way just then follow when somebody looks for pages,
 * reclaims or quiesces.
 */
enum kslab_reason kslab_cpu_offline(unsigned cpu);
enum kslab_reason kslab_heap_cpu_offline(struct kslab_heap *heap, unsigned cpu);

/* ---- allocate and free ----------------------------------------------------------------------- */

#define KSLAB_ZERO (1u << 0) /* all usable bytes are zero */
#define KSLAB_NOWAIT (1u << 1) /* no callback is called, to give pages neither; regions serve */
#define KSLAB_RESERVE (1u << 2) /* the emergency pages may be used */

/*
 * kslab_malloc - allocate n bytes
 * @n: 0 .. ; 0 gives a distinct object of the smallest size.
 * The object is aligned to config.min_align if n is at least that; to n if n is a power of two up
 * to a base page; to a base page above. It does not cross a page boundary if n is at most a page
 * and a power of two. Context: any. Complexity: O(1), about 20 instructions; when the cached word
 * is used up O(words of a page), or the page source: at most 1,500 from pages that are there, 10,000
 * with mail, 6,000 if a page is made (6,500 of emergency pages, 8,000 from a source whose pages lie so
 * far apart that each needs a leaf of the map, 80,000 in the first call of all), 30,000 if everything
 * comes together. If the page source fails, O(pages of this CPU, and of CPUs that are gone) before the
 * call does; large blocks O(their pages).
 * Return: NULL on failure, reason in kslab_last_error(). Above KSLAB_CLASS_MAX_BYTES: a page run.
 */
void *kslab_malloc(size_t n);
void *kslab_heap_malloc(struct kslab_heap *heap, size_t n);

/* As kslab_malloc; the first n bytes are zero. Complexity: as kslab_malloc, and O(n). */
void *kslab_zalloc(size_t n);
void *kslab_heap_zalloc(struct kslab_heap *heap, size_t n);

/* Zeroed array; count * size is checked (OVERFLOW). Complexity: as kslab_zalloc. */
void *kslab_calloc(size_t count, size_t size);
void *kslab_heap_calloc(struct kslab_heap *heap, size_t count, size_t size);

/*
 * kslab_realloc - change the size of an object
 * In place while the class stays, or where the page run can be cut or grown. NULL p: allocates; n =
 * 0: frees and returns NULL. On failure p stays valid and unchanged. Keeps natural alignment of
 * power-of-two sizes, not aligned_alloc's. What changes its size above a page may lie in pages of
 * its own from then on, a quarter of them unused at most: kslab_usable_size tells, a sized free
 * takes it with n. Complexity: O(1), about 45 instructions while the class or the number of pages
 * stays, at most 100; to another class that of kslab_malloc and kslab_free, 300 if both are at hand,
 * 8,500 if a page is made and one goes back, and O(n) for the copy; above the size classes O(pages
 * that it gains or loses), 6,000 for a few in place or in a spare block, 8,500 where it moves.
 */
void *kslab_realloc(void *p, size_t n);
void *kslab_heap_realloc(struct kslab_heap *heap, void *p, size_t n);

/* As kslab_realloc for count * size, checked (OVERFLOW). Complexity: as kslab_realloc. */
void *kslab_reallocarray(void *p, size_t count, size_t size);
void *kslab_heap_reallocarray(struct kslab_heap *heap, void *p, size_t count, size_t size);

/*
 * align: any power of two, beyond a page too. Fails with BAD_ALIGNMENT if it is 0 or not a power of
 * two. Complexity: as kslab_malloc by the slow path: 300 from a page that is at hand. Beyond a page
 * O(pages of n and align): a source whose runs are not aligned is asked for that many.
 */
void *kslab_aligned_alloc(size_t align, size_t n);
void *kslab_heap_aligned_alloc(struct kslab_heap *heap, size_t align, size_t n);

/*
 * The general form; flags of KSLAB_ZERO, KSLAB_NOWAIT, KSLAB_RESERVE. Complexity: as
 * kslab_aligned_alloc, and with KSLAB_ZERO O(n).
 */
void *kslab_alloc(size_t n, size_t align, unsigned flags);
void *kslab_heap_alloc(struct kslab_heap *heap, size_t n, size_t align, unsigned flags);

/*
 * kslab_free - free an object
 * @p: NULL does nothing. Anything that is not a live object is refused and reported; the heap is
 * unchanged. Context: any CPU, any context; never calls the page source's alloc; takes no lock
 * unless a page goes back. Complexity: O(1), about 35 instructions; on another CPU's object one
 * atomic operation. At most 600 where no page goes back, 2,500 where one does, 6,000 if memory was
 * asked for or is purged; large blocks O(their pages, and those of the spare ones that go for them).
 */
void kslab_free(void *p);
void kslab_heap_free(struct kslab_heap *heap, void *p);

/*
 * As kslab_free, and n (and align) MUST lead to the object's class, else fault WRONG_SIZE and
 * nothing freed. Complexity: as kslab_free, but by its slow path, 400.
 */
void kslab_free_sized(void *p, size_t n);
void kslab_heap_free_sized(struct kslab_heap *heap, void *p, size_t n);
void kslab_free_aligned_sized(void *p, size_t align, size_t n);
void kslab_heap_free_aligned_sized(struct kslab_heap *heap, void *p, size_t align, size_t n);

/*
 * Bytes that may be used; 0 for NULL, and (with a fault) for anything that is not a live object.
 * Complexity: O(1), 150.
 */
size_t kslab_usable_size(const void *p);
size_t kslab_heap_usable_size(struct kslab_heap *heap, const void *p);

/* Usable size that a request of n bytes would get; 0 if it is too large. Complexity: O(1), 150. */
size_t kslab_good_size(size_t n);
size_t kslab_heap_good_size(struct kslab_heap *heap, size_t n);

/*
 * Up to count objects of n bytes into out[]. Return: how many; fewer only if memory is out.
 * Complexity: count times that of kslab_malloc at most.
 */
size_t kslab_malloc_bulk(size_t n, size_t count, void *out[]);
size_t kslab_heap_malloc_bulk(struct kslab_heap *heap, size_t n, size_t count, void *out[]);

/*
 * Frees each; one that is refused is reported, the others are freed. They are all free when it
 * returns: another CPU's free of one of them meanwhile may be found to be the second one late.
 * Complexity: count times kslab_free.
 */
void kslab_free_bulk(size_t count, void *const ptrs[]);
void kslab_heap_free_bulk(struct kslab_heap *heap, size_t count, void *const ptrs[]);

/* Why this CPU's last failing call failed. Not reset by success. Complexity: O(1), 150. */
enum kslab_reason kslab_last_error(void);
enum kslab_reason kslab_heap_last_error(struct kslab_heap *heap);

/* ---- memory pressure ------------------------------------------------------------------------- */

/*
 * kslab_reserve - make sure that `count` allocations of n bytes on this CPU need no page source
 * Return: true if so; else KSLAB_TOO_LARGE above the size classes, or what an allocation would say.
 * Holds at the caller's nesting level: what interrupts a call of kslab has pages of its own. Pages that
 * are made are kept on top of the retention, and empty pages of other classes go before those of this
 * one, until kslab_reclaim, an allocation whose page source has failed, a lower retention or the CPU's
 * end takes them.
 * Complexity: O(count), and O(pages of the class) where its pages that were not looked at lately are used up.
 */
bool kslab_reserve(size_t n, size_t count);
bool kslab_heap_reserve(struct kslab_heap *heap, size_t n, size_t count);

/*
 * kslab_reclaim - give back `pages` base pages that hold no live object, or what there is
 * The last object page or block may be longer than what was left to give. Takes from this CPU now, and
 * of what CPUs that are offline have left, caches included. If that was not enough it asks the other
 * CPUs, which serve it at their next slow paths, a few pages each, or at kslab_idle; and with a purge
 * callback base pages of regions are purged inside object pages, too, where they hold no live object.
 * With one, all free memory of regions is purged in any case. Return: base pages given back by this
 * call, purged ones not counted, nor those that go by the retention; in an NMI nothing is purged, and
 * what was found goes back with the next pages outside. Complexity: O(pages of this CPU, and of CPUs
 * that are gone), and of what is purged.
 */
size_t kslab_reclaim(size_t pages);
size_t kslab_heap_reclaim(struct kslab_heap *heap, size_t pages);

/*
 * For an idle loop: takes in what others freed, serves reclaim requests, all of it. Complexity:
 * O(zones), 600 if there is nothing to do; O(pages) if a free is pending, a request, or mail.
 */
void kslab_idle(void);
void kslab_heap_idle(struct kslab_heap *heap);

/*
 * kslab_quiesce - take in every remote free on pages of this CPU
 * Return: true if nothing is pending on any CPU (others that are busy or hold mail: false; let them
 * idle). Complexity: O(zones, pages of this CPU, and of CPUs that are gone).
 */
bool kslab_quiesce(void);
bool kslab_heap_quiesce(struct kslab_heap *heap);

/*
 * Bytes of empty object pages each CPU keeps from now on at each nesting level, and of spare blocks. What
 * is above goes at the next slow paths of each, or its kslab_idle; with less than a page, or
 * KSLAB_RETAIN_NONE, all that lies idle, as by kslab_reclaim.
 * Complexity: O(1), 50.
 */
void kslab_set_retention(size_t bytes);
void kslab_heap_set_retention(struct kslab_heap *heap, size_t bytes);

/* ---- object caches --------------------------------------------------------------------------- */

/*
 * A cache of constructed objects of one type. The constructor runs once for each slot when its page
 * is made; an object is to be freed in its constructed state, and is handed out again as it was.
 */
struct kslab_cache {
	struct kslab_heap *heap;
	const char *name;
	size_t size, align; /* as asked */
	uint32_t slot_bytes;
	uint16_t min_run, max_run;
	void (*constructor)(void *object, void *ctx);
	void *ctx;
	struct kslab_cache *next;
	size_t pages, pages_peak; /* [a] base pages in its object pages */
	uintptr_t first_page, last_page; /* [a] addresses between which its object pages lay */
	struct kslab_cache_zone *zones[KSLAB_CFG_CPUS * KSLAB_CFG_LEVELS]; /* [a] made on demand */
};

/*
 * kslab_cache_init - @size 1 .. max_page_bytes; @align a power of two up to a base page, 0:
 * min_align.
 * @constructor may be NULL. @name MUST live as long as the cache. At a debug level objects that fit a
 * page bare, but not with what is behind them, have no redzone. Context: thread. Return: KSLAB_OK,
 * BAD_ALIGNMENT, BAD_ARGUMENT (size), NOT_INITIALISED, BUSY. Complexity: O(1), 400.
 */
enum kslab_reason kslab_cache_init(struct kslab_cache *cache, const char *name, size_t size,
				   size_t align, void (*constructor)(void *object, void *ctx),
				   void *ctx);
enum kslab_reason kslab_heap_cache_init(struct kslab_heap *heap, struct kslab_cache *cache,
					const char *name, size_t size, size_t align,
					void (*constructor)(void *, void *), void *ctx);

/*
 * kslab_cache_destroy - give all pages back; at OK the memory of @cache is the caller's again
 * Empty pages of the cache may lie in the zones of other CPUs, which go on meanwhile. They are asked
 * to give them back, as by kslab_reclaim; until that is done the answer is BUSY, and the call is to be
 * made again: "while (kslab_cache_destroy(c) == KSLAB_BUSY) let_others_run();", where that is, if CPUs
 * may stay away from slow paths for long, a call of kslab_idle on each of them. Pages of this CPU, and
 * of CPUs that are offline, go back at once.
 * Context: thread. Calls of kslab_cache_* for this cache MUST have returned before the first call, and
 * @cache MUST stay where it is until OK or kslab_fini; else its memory is used after its end. With BUSY
 * the cache is as it was, but for pages that went back: it may even be used on.
 * Complexity: O(its pages + base pages between its lowest and its highest one), in steps.
 * Return: KSLAB_OK; KSLAB_BUSY; KSLAB_BAD_ARGUMENT after fault LIVE_OBJECTS (count, first object) if any
 * object is live.
 */
enum kslab_reason kslab_cache_destroy(struct kslab_cache *cache);
/*
 * The same, but live objects are lost with it: they are freed here. Return: how many there were. If
 * other CPUs used the cache, go on with kslab_cache_destroy until it is not BUSY; after OK, or if it was
 * over at once, that is OK again.
 */
size_t kslab_cache_destroy_forced(struct kslab_cache *cache);

/*
 * As kslab_malloc; and the constructors. Complexity: as kslab_malloc, 300 instructions if a free
 * object is at hand; O(slots) constructors where a page is made; O(CPUs), where one that is offline has
 * left pages of a cache.
 */
void *kslab_cache_alloc(struct kslab_cache *cache);
/* As kslab_free; fault WRONG_CACHE. Complexity: as kslab_free, by its slow path: 300. */
void kslab_cache_free(struct kslab_cache *cache, void *object);
/* As kslab_reserve, in all. */
bool kslab_cache_reserve(struct kslab_cache *cache, size_t count);

/* ---- observers ------------------------------------------------------------------------------- */

struct kslab_stats {
	size_t page_bytes;
	size_t pages_in_use; /* base pages taken from the page source, metadata included */
	size_t pages_peak;
	size_t metadata_pages; /* thereof descriptors, map, zones */
	size_t large_pages; /* thereof in large blocks */
	size_t empty_pages; /* thereof in empty object pages */
	size_t object_bytes; /* live objects of the size classes and caches, slot sizes */
	size_t live_objects;
	size_t large_blocks;
	uint64_t lock_acquisitions;
	struct kslab_zone_counters counters; /* sum over all zones */
	size_t remote_frees; /* frees into pages of other zones; wraps */
	size_t harvested; /* of these, taken in by their owners; wraps */
	size_t failed[KSLAB_REASON_COUNT]; /* calls that failed, by reason */
	unsigned cpus_online;
};

struct kslab_class_stats {
	size_t size; /* slot size */
	size_t live; /* objects */
	size_t slots;
	size_t object_pages;
	size_t base_pages;
	size_t peak_pages; /* base_pages, at most so far */
	size_t empty_pages; /* base pages in empty object pages */
	size_t waste_bytes; /* bytes of these pages in no slot, and their descriptors */
};

/*
 * Context: any; exact on a quiet heap, while others run the figures are only near. Complexity:
 * O(pages), and O(caches^2).
 */
void kslab_stats(struct kslab_stats *out);
void kslab_heap_stats(struct kslab_heap *heap, struct kslab_stats *out);
/*
 * @index: the size classes, smallest first, then the caches. Return: false when it is past the last
 * one. Complexity: O(pages of the class), and O(caches)
 * to find a cache.
 */
bool kslab_class_stats(unsigned index, struct kslab_class_stats *out);
bool kslab_heap_class_stats(struct kslab_heap *heap, unsigned index, struct kslab_class_stats *out);

/* slabinfo as an aligned table, character by character. Complexity: O(pages). */
void kslab_print(void (*putc)(void *ctx, char c), void *ctx);
void kslab_heap_print(struct kslab_heap *heap, void (*putc)(void *ctx, char c), void *ctx);

struct kslab_check_result {
	size_t errors; /* contradictions found */
	const char *what; /* the first one */
	const void *page; /* where: first byte of the page, or NULL */
	const struct kslab_page *descriptor;
	size_t object_pages, live_objects, free_objects, large_blocks; /* what was looked at */
	const void *object; /* debug level 1: the damaged object, or NULL */
	size_t offset; /* of its first bad byte */
};

/*
 * kslab_check - look at all lists, counts, states, bitfields and map entries
 * Context: a quiet heap (remote frees may go on). Changes nothing, reports nothing by itself.
 * Return: true if all is well. out may be NULL. Complexity: O(pages).
 */
bool kslab_check(struct kslab_check_result *out);
bool kslab_heap_check(struct kslab_heap *heap, struct kslab_check_result *out);

/*
 * Every live object; stops when fn returns false. fn MUST not allocate or free. Return: objects
 * seen. Complexity: O(slots of all pages).
 */
size_t kslab_walk(bool (*fn)(void *ctx, void *object, size_t bytes), void *ctx);
size_t kslab_heap_walk(struct kslab_heap *heap, bool (*fn)(void *ctx, void *object, size_t bytes),
		       void *ctx);

/*
 * kslab_default_report - what NULL in config.report means: stops the machine (__builtin_trap)
 * Complexity: O(1).
 */
void kslab_default_report(void *ctx, const struct kslab_report *report);

#ifdef __cplusplus
}
#endif
#endif
