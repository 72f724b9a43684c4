/* SPDX-License-Identifier: MIT
 * kslab/object_page.h - owns the layout of an object page's descriptor and of an owner's mailbox.
 * Rank: 2.  Layout is public so that callers can own the memory; the fields are not an interface.
 *
 * Field letters: [I] fixed while the page has its class, [o] written by the owner only, [a] atomic,
 * by anyone, [l] under the heap lock.
 */
#ifndef KSLAB_OBJECT_PAGE_H
#define KSLAB_OBJECT_PAGE_H

#include <kslab/config.h>

/* One machine word of bits; atomics on it exist on every machine. */
typedef uintptr_t kslab_word;
#define KSLAB_WORD_BITS (8u * (unsigned)sizeof(kslab_word))

/* A heap makes an object page longer than one base page only up to so many slots. */
#define KSLAB_PAGE_SLOTS 512u

struct kslab_sc;

/*
 * The three bits of each slot, 1 = free. A live slot has none of them, a free slot exactly one
 * (I1).
 */
struct kslab_bits {
	/* [o] may be issued now; nonzero only in the current word of a current page (I2) */
	kslab_word avail;
	/* [o] freed by the owner, or harvested; bits past the last slot are always set (I3) */
	kslab_word freed;
	/* [a] freed by others, not harvested yet; of a page that nobody owns: all ones (I8) */
	kslab_word remote;
};

/* Where a page is kept; changed by the owner only. */
enum kslab_page_state {
	KSLAB_PAGE_IDLE, /* descriptor without a page */
	KSLAB_PAGE_CURRENT, /* sc->page: allocations come from it; in no list */
	KSLAB_PAGE_PARTIAL,
	KSLAB_PAGE_FULL,
	KSLAB_PAGE_EMPTY,
	KSLAB_PAGE_LARGE, /* a large block: no slots */
	KSLAB_PAGE_FENCED, /* found corrupt: never used again, in no list */
	/* base pages of it are being purged: QUEUED, and in the full list, so that nobody takes it */
	KSLAB_PAGE_PURGING,
};

/* A page's mail (I6): who has to tell the owner that remote bits are waiting. */
enum kslab_mail {
	KSLAB_MAIL_IDLE, /* nobody: the owner will look by itself */
	KSLAB_MAIL_ARMED, /* the next remote free queues the page */
	/* in the owner's mailbox, on its way there, or in owner->mail; can't change hands */
	KSLAB_MAIL_QUEUED,
};

/*
 * Low bits of kslab_page.owner; an owner is aligned to 64 bytes. Any tag diverts a free to the slow
 * path.
 */
#define KSLAB_TAG_FULL ((uintptr_t)1) /* page is on the full list */
#define KSLAB_TAG_CACHE ((uintptr_t)2) /* objects of an object cache: kslab_free must refuse them */
#define KSLAB_TAG_DEBUG ((uintptr_t)4) /* debug level above 0: frees are checked out of line */
#define KSLAB_TAG_LARGE ((uintptr_t)8) /* a large block; the rest of the owner is the heap */
#define KSLAB_TAG_EAGER ((uintptr_t)16) /* retention 0: each free looks whether it is empty */
#define KSLAB_TAG_MASK ((uintptr_t)63)

/*
 * The descriptor of an object page or large block. Type-stable: memory that is a descriptor stays
 * one until the heap ends, because a remote free may still read it after the page has gone (I7).
 *
 *     64-bit   0      8       16    20     24  26 27 28    32   40     48     56     64
 *              data   owner   inv   slots  pg  r  s  mail  sc   next   prev   mnext  bits[n]
 */
struct kslab_page {
	uintptr_t data; /* [I] address of slot 0 */
	uintptr_t owner; /* [a] struct kslab_owner, with tags; written by the owner */
	uint32_t inverse; /* [I] of the odd part of the slot size, modulo 2^32 */
	uint32_t slots; /* [I] */
	/* [I] length of the run in base pages; large block: 1 if it lies in a region */
	uint16_t pages;
	uint8_t rotate; /* [I] log2 of the even part of the slot size */
	uint8_t state; /* [a] enum kslab_page_state; written by the owner */
	uint32_t mail; /* [a] enum kslab_mail */
	struct kslab_sc *sc; /* [a] class of the slots, the owner's; NULL: large block */
	struct kslab_page *next, *prev; /* [o] in the list that state names; NULL when in none */
	struct kslab_page *mail_next; /* [a] valid while QUEUED */
	struct kslab_bits bits[];
};

#if UINTPTR_MAX > 0xffffffffu
#define KSLAB_PAGE_HEADER_BYTES 64u
#else
#define KSLAB_PAGE_HEADER_BYTES 40u
#endif

/* Circular list of pages with the oldest at the head; NULL when empty. */
struct kslab_page_list {
	struct kslab_page *head;
};

/*
 * Whoever owns pages: a zone of the heap, or a bare SCAllocator. The key is what the fast path
 * compares with a page's owner: the owner's own address while idle, 0 while somebody is inside
 * (I5).
 */
struct kslab_owner {
	uintptr_t key; /* [o] */
	uintptr_t late; /* [o] newest object that was freed twice, as found at a harvest; 0: none */
	size_t late_count; /* [o] how many such */
	size_t empty_run; /* [o] base pages on empty lists */
	size_t harvested; /* [o] remote bits taken in; wraps; read by kslab_quiesce */
	size_t reserve_run; /* [o] base pages kept on top of the retention (kslab_reserve) */
	size_t remote_frees; /* [o] frees into pages of others; read by kslab_quiesce */
	struct kslab_page *corrupt; /* [o] a page that was fenced off and is not reported yet */
	/* [a] stack of QUEUED pages; its own cache line, others write here */
	struct kslab_page *mailbox;
	/*
	 * [o] QUEUED pages that came out of the mailbox and are not taken in yet, chained like it;
	 * looked at together with it, hence here
	 */
	struct kslab_page *mail;
	/* [o] for giving pages back: class whose empty pages go next; whose page became empty last */
	struct kslab_sc *looked, *emptied;
	/*
	 * [o] a sweep of partial and empty pages: the class that it has come to (NULL: none began),
	 * the list, its last page then (it may be gone since: compared, not followed), pages to
	 * look at there
	 */
	struct kslab_sc *swept;
	struct kslab_page_list *sweep_list;
	const struct kslab_page *sweep_end;
	uint32_t sweep_left;
	uint32_t
		sweep_epoch; /* [o] reclaim request that it serves; in a parked zone: see reclaim.c */
} __attribute__((aligned(64)));

/*
 * One size class of one owner: the core of the seed's SCAllocator. 64 bytes on 64-bit machines.
 * All fields [o].
 */
struct kslab_sc {
	kslab_word *word; /* avail word of the current page, or &kslab_zero_word */
	uintptr_t base; /* address of the slot of that word's bit 0 */
	uint32_t size; /* slot size in bytes */
	uint8_t cls; /* size class, or KSLAB_CLASS_CACHE */
	uint8_t ready; /* words of the group that had free slots when it was looked at */
	uint16_t group; /* first word of the group of eight that ready is about */
	struct kslab_page *page; /* current page or NULL */
	struct kslab_page_list partial, full, empty;
	uint32_t pages; /* object pages of this class, all states */
	uint32_t empty_pages : 31; /* thereof on the empty list */
	/* by kslab_reserve: while reserve_run lasts, empty pages of other classes go first */
	uint32_t is_reserved : 1;
};

#define KSLAB_CLASS_CACHE 0xffu

/* Always zero: what sc->word points at when there is no current page. */
extern const kslab_word kslab_zero_word;

#define KSLAB_SC_CORE_INIT(size_, cls_)                                                            \
	{                                                                                          \
		(kslab_word *)&kslab_zero_word, 0, (size_), (cls_), 0, 0, NULL, { NULL },          \
			{ NULL }, { NULL }, 0, 0, 0                                                \
	}

#endif
