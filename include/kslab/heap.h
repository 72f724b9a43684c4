/* SPDX-License-Identifier: MIT
 * kslab/heap.h - owns the layout of a heap, so that a kernel can place one wherever it likes.
 * Rank: 5.  Nothing in here is an interface: use <kslab/kslab.h>.
 *
 * Field letters as in object_page.h; [l] is the heap lock.
 */
#ifndef KSLAB_HEAP_H
#define KSLAB_HEAP_H

#include <kslab/inject.h>
#include <kslab/object_page.h>
#include <kslab/port.h>
#include <kslab/report.h>

/*
 * Size classes of a heap: multiples of 8 to 128, eight per doubling to 2048, four per doubling
 * above.
 */
#define KSLAB_CLASSES 60u
#define KSLAB_CLASS_MAX_BYTES 16384u /* size of the last class */
#define KSLAB_ROUTE_MAX_BYTES 2048u /* sizes up to here are routed by one table look-up */

struct kslab_heap;
struct kslab_cache_zone;

/* Counters a zone keeps; they cost nothing on the fast path. They wrap at 2^64. All [o]. */
struct kslab_zone_counters {
	uint64_t slow_allocs; /* allocations that needed more than the cached word */
	uint64_t slow_frees; /* frees that left the fast path */
	uint64_t mails; /* pages queued by this zone's remote frees */
	uint64_t pages_made;
	uint64_t pages_released;
	uint64_t failures; /* calls that failed: NULL, or a refusal */
};

/* Large blocks that a zone keeps for the next request of the same length. */
#define KSLAB_SPARE_BLOCKS 4

/*
 * Everything one CPU owns at one nesting level: the seed's ZoneAllocator inside a heap. One page on
 * 64-bit machines. Written by its CPU at that level only, except owner.mailbox.
 */
struct kslab_zone {
	struct kslab_owner owner;
	struct kslab_heap *heap; /* [I] */
	struct kslab_zone *inner; /* [o] zone of the next nesting level, made on demand */
	uint32_t reclaim_epoch; /* [o] last reclaim request that was served; others may look */
	uint16_t cpu; /* [I] */
	uint8_t level; /* [I] */
	uint8_t last_error; /* [o] enum kslab_reason */
	struct kslab_zone_counters counters;
	/* [o] freed large blocks, kept whole; oldest first */
	struct kslab_page *spare[KSLAB_SPARE_BLOCKS];
	uint32_t spare_run; /* [o] base pages in them; within the retention, and 2^32 */
	uint16_t spares; /* [o] how many they are */
	bool is_parked; /* [l] it has no CPU: whoever holds the lock operates it */
	/* [l] next zone without a CPU that still holds QUEUED pages */
	struct kslab_zone *lingering;
	/* [a] its parts of object caches, chained; those of caches that have ended stay for others */
	struct kslab_cache_zone *caches;
	struct kslab_sc sc[KSLAB_CLASSES] __attribute__((aligned(64)));
};

/*
 * Address -> descriptor. top[i] is biased: top[i] + (address >> GRAIN_SHIFT) * sizeof(pointer) is
 * the entry.
 */
#define KSLAB_SIDE_ENTRIES 4
struct kslab_page_map {
	uintptr_t base; /* [I] first address of the window */
	/* [I] entries of top that can be used: kslab_page_map_leaves; 0: no window yet */
	size_t limit;
	uintptr_t top[KSLAB_CFG_TOP_ENTRIES]; /* [a] written under [l] */
	uintptr_t side_base; /* [I] of the side window, where a heap began on a static array */
	uintptr_t side[KSLAB_SIDE_ENTRIES]; /* [a] its top; side[0] = 0: there is none */
	/* [I] entry of address 0 in the flat map, if there is one; entries without a leaf: NULL */
	uintptr_t flat;
};

/*
 * Page runs of plain memory by buddy bitmaps: for each order one bit tree, 1 = a free block. Two
 * bits a page. All [l].
 */
#define KSLAB_REGION_ORDERS 32u
struct kslab_region {
	uintptr_t base; /* first usable page */
	size_t pages; /* usable pages */
	size_t free_pages;
	size_t dirty_pages; /* free pages that may hold memory (only with a purge callback) */
	uintptr_t start, end; /* the memory as handed in, metadata included */
	kslab_word *dirty; /* bit tree: free and not purged; NULL without purge callback */
	kslab_word *order[KSLAB_REGION_ORDERS]; /* bit trees */
	unsigned orders;
	bool is_purging; /* more than purge_bytes was dirty, and half of it still is */
};

/* Ticket lock: fair. */
struct kslab_lock {
	uint32_t next, serving; /* [a] */
};

/*
 * A run of pages that the heap keeps for itself: metadata, its record in a chunk; or a page that is
 * set aside, a run that is under way, or one that waits to go back, the record in its first bytes.
 * All [l], but of a run that waits.
 */
struct kslab_chunk {
	struct kslab_chunk *child[2]; /* in a tree of runs: see chunk_tree.h */
	uintptr_t address;
	size_t pages;
	struct kslab_chunk *next; /* metadata, and what waits: the one before */
	uint8_t bit; /* of the tree */
	bool marked; /* metadata: the page map knows it as such */
};

struct kslab_chunk_tree {
	struct kslab_chunk *root;
	size_t count;
};

/* Bump and free lists for metadata that never goes back while the heap lives. All [l] but free. */
struct kslab_meta {
	uintptr_t bump, bump_end; /* rest of the newest chunk */
	/* [a] descriptors by bitfield length, linked by next; popped under [l] */
	struct kslab_page *free[11];
	void **leaves; /* memory for leaves that were not needed, each holds the next */
	struct kslab_chunk *chunks; /* every run taken for metadata */
	size_t pages; /* base pages in them */
	struct kslab_chunk_tree unmarked; /* those that are not marked yet */
	uintptr_t looked; /* they were last looked at down to here, whether they can be */
};

/*
 * Objects that were freed at debug level 2, oldest first, from head on round the ring. All [l] but
 * ring.
 */
struct kslab_quarantined {
	uintptr_t object;
	size_t bytes;
};
struct kslab_quarantine {
	struct kslab_quarantined *ring; /* [a] NULL: not made yet, or never */
	size_t capacity, max_bytes; /* [I] */
	size_t head, count, bytes;
};

/* What the observers add up. All [a], relaxed. */
struct kslab_tally {
	size_t failed[KSLAB_REASON_COUNT]; /* calls that failed, by reason; wrap */
	size_t pages[KSLAB_CLASSES]; /* base pages in object pages of each class, all zones */
	size_t pages_peak[KSLAB_CLASSES];
};

struct kslab_heap {
	/* read by every call */
	/*
	 * [a] entries of route that the fast path may use: 0 before init, when debugging, under
	 * kslab_inject
	 */
	size_t route_limit;
	/* [a] zone of level 0; &kslab_zone_none before online */
	struct kslab_zone *zone[KSLAB_CFG_CPUS];
	/* [I] (size - 1) / 8 -> offset of the sc in a zone */
	uint16_t route[KSLAB_ROUTE_MAX_BYTES / 8];
	struct kslab_page_map map;

	/* fixed by init */
	uint32_t state; /* 0, or KSLAB_HEAP_READY */
	unsigned page_shift;
	size_t page_bytes, max_page_bytes, min_align, max_pages, purge_bytes;
	unsigned debug_level, debug_flags;
	size_t debug_limit; /* [a] at a debug level: the longest request on the quick way, in bytes */
	/* what free and new objects hold, in every byte */
	uintptr_t debug_free_word, debug_new_word;
	/* object page length in base pages */
	uint16_t min_run[KSLAB_CLASSES], max_run[KSLAB_CLASSES];
	/* class that serves requests of this one; KSLAB_CLASSES: none */
	uint8_t use_class[KSLAB_CLASSES];
	/* slot size of the next smaller class that is used; 0: there is none */
	uint16_t size_below[KSLAB_CLASSES];
	void *(*alloc_pages)(void *ctx, size_t pages);
	void (*free_pages)(void *ctx, void *mem, size_t pages);
	void (*purge)(void *ctx, void *mem, size_t bytes);
	void *source_ctx;
	kslab_report_fn report;
	void *report_ctx;
	void *flat_map; /* of the configuration */
	size_t flat_map_bytes;
	bool window_placed; /* map.base is valid */
	bool packs; /* objects above a page need not be page aligned */
	/* knobs of config.h, for debuggers (tests/gdb/kslab.py) */
	uint8_t grain_shift, leaf_shift, levels;

	/* shared */
	struct kslab_lock lock; /* [a] */
	uint32_t reclaim_epoch; /* [a] bumped by every reclaim request */
	size_t retain_run; /* [a] base pages of empty object pages that a zone keeps */
	uint32_t run_limit; /* [a] longest run worth asking alloc_pages for; adapts */
	uint32_t source_depth; /* [a] calls of alloc_pages under way */
	size_t zoneless_frees; /* [a] remote frees where no zone could be entered */
	uint64_t lock_acquisitions; /* [l] */
	size_t pages_in_use; /* [l] base pages taken from the sources, metadata included */
	size_t pages_peak; /* [l] */
	struct kslab_meta meta;
	struct kslab_page *deferred; /* [a] large blocks given up where the lock can't be had */
	/* [a] written under [l]: those that were taken out of it and not released yet */
	struct kslab_page *releasing;
	struct kslab_page_list large; /* [l] live large blocks */
	size_t large_blocks, large_pages; /* [l] */
	struct kslab_cache *caches; /* [l] */
	uint32_t lookers; /* [a] who walks that list just now: none of it ends meanwhile */
	struct kslab_heap *next_heap; /* [l] of the default heap: all heaps */
	uint32_t askers; /* [a] in the default heap: who walks that list just now */
	unsigned regions; /* [l] */
	struct kslab_region region[KSLAB_CFG_REGIONS];
	struct kslab_chunk_tree emergency; /* [l] single base pages for KSLAB_RESERVE */
	/* [l] runs from a callback or set aside that nothing was made of yet, and the map does not know */
	struct kslab_chunk_tree under_way;
	size_t emergency_target; /* [l] how many there should be */
	struct kslab_chunk *waiting; /* [a] runs that were given up in an NMI; popped under [l] */
	/* [a] zones of CPUs that have been online, whether they are or not; CPU 0 has none */
	struct kslab_zone *parked[KSLAB_CFG_CPUS];
	/* [l] owns the pages of CPUs that went offline; operated under the lock */
	struct kslab_zone *limbo;
	size_t limbo_pages; /* [a] object pages that limbo and lingering zones hold */
	/* [a] classes of which limbo has pages with free slots: one bit each, 32 a word */
	kslab_word limbo_classes[2];
	struct kslab_zone *lingering; /* [a] written under [l]: parked zones that wait for mail */
	/* [a] written under [l]: object pages of caches in parked zones; thereof of each CPU */
	size_t parked_pages, parked_of[KSLAB_CFG_CPUS];
	uint32_t cpus_online; /* [l] */
	struct kslab_tally tally; /* [a] */
	struct kslab_injecting inject; /* what shall fail */
	struct kslab_quarantine quarantine;
	uintptr_t debug_serial; /* [a] of the newest object at level 2 */
	size_t fenced_pages; /* [a] object pages behind the fence */
	struct kslab_zone boot_zone; /* CPU 0, level 0 */
} __attribute__((aligned(64)));

#define KSLAB_HEAP_READY 0x6b736c62u

#endif
