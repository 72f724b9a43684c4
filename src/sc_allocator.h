/* SPDX-License-Identifier: MIT
 * sc_allocator.h - owns one size class of one owner: current page, and the lists empty, partial and
 * full. Rank: 3.  Runs: for the owner of the pages only, unless a line says otherwise.
 *
 *                      allocate                     used up, no page waits
 *     refill -> EMPTY ----------> CURRENT ------------------------> FULL
 *                 ^                 ^ | used up, others wait         |
 *                 |   all free      | v                              | first free, or mail
 *                 +--------------- PARTIAL <-------------------------+
 */
#ifndef KSLAB_SC_ALLOCATOR_PRIVATE_H
#define KSLAB_SC_ALLOCATOR_PRIVATE_H

#include <kslab/sc_allocator.h>

#include "object_page.h"

/* The fast path: pop from the cached word, or NULL. */
KSLAB_INLINE void *kslab_sc_pop(struct kslab_sc *sc)
{
	kslab_word *avail = sc->word;
	kslab_word word = *avail;

	if (KSLAB_UNLIKELY(word == 0))
		return NULL;
	KSLAB_STORE_RELAXED(avail, word & (word - 1));
	return (void *)(sc->base + (uint32_t)(kslab_ctz(word) * sc->size));
}

/* Bits of word i that belong to slots; no branch: it would be mispredicted. */
KSLAB_INLINE kslab_word kslab_page_slots_of(const struct kslab_page *page, unsigned i)
{
	uint32_t behind = (i + 1) * KSLAB_WORD_BITS - page->slots;

	behind &= (behind >> 31) - 1; /* none, if it would be negative */
	return ~(kslab_word)0 >> behind;
}

/* Cache word i of the current page, and take its first slot. */
KSLAB_INLINE void *kslab_sc_issue(struct kslab_sc *sc, struct kslab_page *page, unsigned i,
				  kslab_word word, kslab_word tail)
{
	struct kslab_bits *bits = &page->bits[i];

	sc->word = &bits->avail;
	sc->base = page->data + (uintptr_t)i * KSLAB_WORD_BITS * sc->size;
	/*
	 * avail first: whoever reads the bit gone from freed (acquire) finds it in avail, or
	 * issued.
	 */
	KSLAB_STORE_RELAXED(&bits->avail, word & (word - 1));
	KSLAB_STORE_RELEASE(&bits->freed, tail);
	return (void *)(sc->base + (uint32_t)(kslab_ctz(word) * sc->size));
}

/*
 * The middle path: an object of the first word that is ready; there is one. NULL: others have freed
 * into it, or all its slots were: kslab_sc_next takes care. Short, and without a loop or a call:
 * where many objects live it is taken at every second or third allocation.
 */
KSLAB_INLINE void *kslab_sc_issue_ready(struct kslab_sc *sc)
{
	struct kslab_page *page = sc->page;
	unsigned i = sc->group + kslab_ctz(sc->ready);
	kslab_word slots = kslab_page_slots_of(page, i),
		   word = KSLAB_LOAD_RELAXED(&page->bits[i].freed) & slots;

	/* Harvested before it is issued from: a late double free must not hit a new object. */
	if (KSLAB_UNLIKELY(word == 0 || KSLAB_LOAD_RELAXED(&page->bits[i].remote) != 0))
		return NULL;
	/* A page of one word stays with it: when it is used up, no other look is needed. */
	sc->ready = (uint8_t)(sc->ready & (sc->ready - (page->slots > KSLAB_WORD_BITS)));
	return kslab_sc_issue(sc, page, i, word, ~slots);
}

/* Mail waits, in the mailbox or out of it. One branch: it is asked at every turn of pages. */
KSLAB_INLINE bool kslab_sc_has_mail(const struct kslab_owner *owner)
{
	return ((uintptr_t)KSLAB_LOAD_RELAXED(&owner->mailbox) |
		(uintptr_t)KSLAB_LOAD_RELAXED(&owner->mail)) != 0;
}

/*
 * The next word of the current page that has free slots, cyclically from where it was; NULL: there
 * is none, or no page. Every word of the page is looked at once more before it says so.
 */
void *kslab_sc_next_word(struct kslab_owner *owner, struct kslab_sc *sc);

/*
 * The rest of an allocation when the cached word is used up: next word, remote frees, mail, the
 * next partial pages, an empty page. Return: an object, or NULL: a refill is needed, or, if
 * kslab_sc_has_more, another call: each takes in KSLAB_MAIL_MOST pages of mail at most, and looks
 * at a few pages only. O(words of a page).
 */
void *kslab_sc_next(struct kslab_owner *owner, struct kslab_sc *sc);

/* After kslab_sc_next found nothing: there are pages that it did not get to. */
KSLAB_INLINE bool kslab_sc_has_more(const struct kslab_owner *owner, const struct kslab_sc *sc)
{
	return sc->page != NULL || sc->partial.head != NULL || sc->empty.head != NULL ||
	       kslab_sc_has_mail(owner);
}

/* Free a slot of the owner's page in any state. Return: false: double free, nothing changed. */
bool kslab_sc_free_local(struct kslab_owner *owner, struct kslab_page *page, uint32_t index);

/* After a word of `freed` became all ones: the page may be empty. */
void kslab_sc_word_full(struct kslab_owner *owner, struct kslab_page *page);

/* Give an initialised page to the class; tags: KSLAB_TAG_CACHE, KSLAB_TAG_DEBUG. */
void kslab_sc_insert(struct kslab_owner *owner, struct kslab_sc *sc, struct kslab_page *page,
		     uintptr_t tags);

/*
 * Take in mail, that of `most` pages at most: what is left of an earlier time first, then what the
 * mailbox holds now. Return: pages that had mail.
 */
#define KSLAB_MAIL_MOST 8u /* of an allocation */
#define KSLAB_ALL SIZE_MAX
size_t kslab_sc_drain(struct kslab_owner *owner, size_t most);

/* Whose mail comes next; NULL: nobody's. */
struct kslab_page *kslab_sc_next_mail(struct kslab_owner *owner);

/* Harvest the partial pages of a class; those without live objects become empty. O(pages). */
void kslab_sc_sweep(struct kslab_owner *owner, struct kslab_sc *sc);

/*
 * The same in steps: the sweep comes to a class, and harvests its next pages, `*most` at most (which
 * are taken off it). Anything may happen to the class in between. Return: true: the class is done.
 */
void kslab_sc_sweep_begin(struct kslab_owner *owner, struct kslab_sc *sc);
bool kslab_sc_sweep_some(struct kslab_owner *owner, size_t *most);
void kslab_sc_sweep_end(struct kslab_owner *owner); /* the next step begins anew */

/* Put a page that is in no list, or in a wrong one, where its bits say. */
void kslab_sc_refile(struct kslab_owner *owner, struct kslab_page *page);

/* Put the current page back into a list. */
void kslab_sc_retire(struct kslab_owner *owner, struct kslab_sc *sc);

/*
 * Keep a page with free slots from allocations and from going back, until it comes by mail
 * (kslab_page_mail, by whoever and wherever): its slots stay as free as they are, others may be
 * freed. Return: false: it is QUEUED already, and stays where it is.
 */
bool kslab_sc_set_purging(struct kslab_owner *owner, struct kslab_page *page);

/* Take a page from the empty list for good. Return: false: it is QUEUED, wait for the mail. */
bool kslab_sc_remove_empty(struct kslab_owner *owner, struct kslab_page *page);

/*
 * Hand a page over from one owner to another, both operated by the caller. Return: false: it is
 * QUEUED, and stays where it is.
 */
bool kslab_sc_move(struct kslab_owner *from, struct kslab_page *page, struct kslab_owner *to,
		   struct kslab_sc *to_sc);

/*
 * Lists, counts and bits of a class agree. Return: NULL, or what is wrong, *where: which page.
 * O(pages).
 */
const char *kslab_sc_verify(const struct kslab_owner *owner, const struct kslab_sc *sc,
			    const struct kslab_page **where);

/*
 * What came out of the mailbox and is not taken in yet is QUEUED and the owner's. @pages: that it
 * has. Return: NULL, or what is wrong, *where: which page.
 */
const char *kslab_sc_verify_mail(const struct kslab_owner *owner, size_t pages,
				 const struct kslab_page **where);

/* Calls fn for every page of the class. */
void kslab_sc_each(const struct kslab_sc *sc, void (*fn)(void *ctx, const struct kslab_page *page),
		   void *ctx);

#endif
