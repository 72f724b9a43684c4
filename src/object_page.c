/* SPDX-License-Identifier: MIT
 * object_page.c - owns one object page; see object_page.h.
 * Rank: 2.  The memory-order argument is part of the theory in heap.c; each access names its
 * partner here.
 */
#include "object_page.h"

_Static_assert(sizeof(struct kslab_page) == KSLAB_PAGE_HEADER_BYTES,
	       "descriptor header is one line");
_Static_assert(sizeof(struct kslab_bits) == 3 * sizeof(kslab_word), "three words of bits");
_Static_assert(sizeof(struct kslab_owner) == 128, "the mailbox has a line of its own");

uint32_t kslab_page_inverse(uint32_t bytes)
{
	uint32_t odd = bytes >> kslab_ctz(bytes), inverse = odd; /* right in the lowest 3 bits */

	for (unsigned bits = 3; bits < 32; bits *= 2)
		inverse *= 2 - odd * inverse;
	return inverse;
}

void kslab_page_init(struct kslab_page *page, uintptr_t data, size_t run, uint32_t bytes,
		     uint32_t slots)
{
	page->data = data;
	page->slots = slots;
	page->inverse = kslab_page_inverse(bytes);
	page->rotate = (uint8_t)kslab_ctz(bytes);
	page->pages = (uint16_t)run;
	kslab_page_set_state(page, KSLAB_PAGE_IDLE);
	page->next = page->prev = NULL;
	for (unsigned i = 0; i < kslab_page_words(page); i++) {
		KSLAB_STORE_RELAXED(&page->bits[i].avail, (kslab_word)0);
		KSLAB_STORE_RELAXED(&page->bits[i].freed, ~(kslab_word)0);
		KSLAB_STORE_RELAXED(&page->bits[i].remote, ~(kslab_word)0);
	}
}

void kslab_page_open(struct kslab_page *page)
{
	for (unsigned i = 0; i < kslab_page_words(page); i++)
		KSLAB_STORE_RELAXED(&page->bits[i].remote, (kslab_word)0);
}

bool kslab_page_is_empty(const struct kslab_page *page)
{
	for (unsigned i = 0; i < kslab_page_words(page); i++)
		if (KSLAB_LOAD_RELAXED(&page->bits[i].freed) != ~(kslab_word)0)
			return false;
	return true;
}

uint32_t kslab_page_live(const struct kslab_page *page)
{
	uint32_t live = 0;

	for (unsigned i = 0; i < kslab_page_words(page); i++) {
		kslab_word free = KSLAB_LOAD_RELAXED(&page->bits[i].remote);

		free |= KSLAB_LOAD_RELAXED(&page->bits[i].freed);
		free |= KSLAB_LOAD_RELAXED(&page->bits[i].avail);
		live += kslab_popcount(~free);
	}
	return live;
}

kslab_word kslab_page_live_word(const struct kslab_page *page, unsigned i)
{
	/* Each pairs with the store that clears the word after the next one was set. */
	kslab_word free = KSLAB_LOAD_ACQUIRE(&page->bits[i].remote);

	free |= KSLAB_LOAD_ACQUIRE(&page->bits[i].freed);
	free |= KSLAB_LOAD_RELAXED(&page->bits[i].avail);
	return ~(free | kslab_page_tail(page, i));
}

/* Remote bits of word i whose slots were free already. */
static KSLAB_COLD void note_late(struct kslab_owner *owner, const struct kslab_page *page,
				 unsigned i, kslab_word twice)
{
	unsigned index = kslab_ctz(twice) + i * KSLAB_WORD_BITS;

	owner->late = page->data + (uintptr_t)index * page->sc->size;
	owner->late_count += kslab_popcount(twice);
}

/* Release: who reads the count, reads the count of the frees, too (kslab_quiesce). */
KSLAB_INLINE void count_harvested(struct kslab_owner *owner, kslab_word remote)
{
	KSLAB_STORE_RELEASE(&owner->harvested, owner->harvested + kslab_popcount(remote));
}

kslab_word kslab_page_harvest_word(struct kslab_owner *owner, struct kslab_page *page, unsigned i)
{
	struct kslab_bits *bits = &page->bits[i];
	/*
	 * Pairs with the fetch_or of kslab_page_free_remote: the freer's last writes to the object.
	 */
	kslab_word remote = KSLAB_LOAD_ACQUIRE(&bits->remote);
	kslab_word freed, twice;

	if (KSLAB_LIKELY(remote == 0))
		return 0;
	freed = KSLAB_LOAD_RELAXED(&bits->freed);
	twice = remote & (freed | KSLAB_LOAD_RELAXED(&bits->avail));
	if (KSLAB_UNLIKELY(twice != 0))
		note_late(owner, page, i, twice);
	/*
	 * Publish before clearing: a freer that reads the cleared bit (acquire) reads `freed` with
	 * the bit set, and calls it a double free.
	 */
	KSLAB_STORE_RELAXED(&bits->freed, freed | (remote & ~twice));
	KSLAB_FETCH_AND_RELEASE(&bits->remote, ~remote);
	count_harvested(owner, remote);
	return remote & ~twice;
}

bool kslab_page_harvest(struct kslab_owner *owner, struct kslab_page *page)
{
	kslab_word any = 0;

	for (unsigned i = 0; i < kslab_page_words(page); i++)
		any |= kslab_page_harvest_word(owner, page, i);
	return any != 0;
}

void kslab_page_close(struct kslab_owner *owner, struct kslab_page *page)
{
	for (unsigned i = 0; i < kslab_page_words(page); i++) {
		/*
		 * Against the fetch_or of a second free: it was before, and its bit is taken in
		 * here (acquire: its count was before, too); or it comes later, and is refused.
		 */
		kslab_word twice = KSLAB_EXCHANGE_ACQUIRE(&page->bits[i].remote, ~(kslab_word)0);

		if (KSLAB_UNLIKELY(twice != 0)) {
			note_late(owner, page, i, twice);
			count_harvested(owner, twice);
		}
	}
}

bool kslab_page_arm(struct kslab_page *page)
{
	/*
	 * QUEUED: mail is coming. ARMED, since an earlier life on the full list: every freer whose
	 * bit that arming did not see has read ARMED after it, so the page gets queued; storing
	 * again might undo that.
	 */
	if (KSLAB_LOAD_RELAXED(&page->mail) != KSLAB_MAIL_IDLE)
		return true;
	/*
	 * Dekker: we store ARMED, then read the remote words; the freer sets its bit, then reads
	 * the mail. All four are sequentially consistent, so at least one of us sees the other.
	 */
	KSLAB_STORE_SEQ(&page->mail, (uint32_t)KSLAB_MAIL_ARMED);
	for (unsigned i = 0; i < kslab_page_words(page); i++)
		if (KSLAB_LOAD_SEQ(&page->bits[i].remote) != 0)
			return !kslab_page_disarm(page);
	return true;
}

bool kslab_page_disarm(struct kslab_page *page)
{
	uint32_t mail = KSLAB_LOAD_RELAXED(&page->mail);

	if (mail == KSLAB_MAIL_IDLE)
		return true;
	/*
	 * Against the CAS of a freer: exactly one of the two wins. It orders nothing: ARMED was
	 * stored by the owner, and whoever reads IDLE does nothing.
	 */
	return mail == KSLAB_MAIL_ARMED &&
	       KSLAB_CAS_RELAXED(&page->mail, &mail, (uint32_t)KSLAB_MAIL_IDLE);
}

/* Push a page that we queued to whoever owns it now; it can't change hands while QUEUED (I6). */
static void mail_page(struct kslab_page *page)
{
	/* The owner stored itself before it armed the page, and our CAS read ARMED. */
	struct kslab_owner *owner = kslab_page_owner(page);
	struct kslab_page *head = KSLAB_LOAD_RELAXED(&owner->mailbox);

	/* Pairs with the drain's exchange. */
	do {
		KSLAB_STORE_RELAXED(&page->mail_next, head);
	} while (!KSLAB_CAS_RELEASE(&owner->mailbox, &head, page));
}

void kslab_page_mail(struct kslab_page *page)
{
	mail_page(page);
}

enum kslab_remote kslab_page_free_remote(struct kslab_page *page, uint32_t index)
{
	struct kslab_bits *bits = &page->bits[index / KSLAB_WORD_BITS];
	kslab_word bit = kslab_bit(index);
	uint32_t mail;

	/*
	 * In this order: the owner moves a bit remote -> freed -> avail, and sets it there before
	 * it clears it here (release). Only when a page is retired does one go back, avail ->
	 * freed: hence the last look.
	 */
	if (KSLAB_LOAD_ACQUIRE(&bits->remote) & bit)
		return KSLAB_REMOTE_DOUBLE;
	if (KSLAB_LOAD_ACQUIRE(&bits->freed) & bit)
		return KSLAB_REMOTE_DOUBLE;
	if (KSLAB_LOAD_ACQUIRE(&bits->avail) & bit)
		return KSLAB_REMOTE_DOUBLE;
	if (KSLAB_LOAD_RELAXED(&bits->freed) & bit)
		return KSLAB_REMOTE_DOUBLE;
	if (KSLAB_FETCH_OR_SEQ(&bits->remote, bit) & bit)
		return KSLAB_REMOTE_DOUBLE;
	/* From here on the object is free: the page may go, the descriptor stays (I7). */
	mail = KSLAB_LOAD_SEQ(&page->mail);
	if (KSLAB_LIKELY(mail != KSLAB_MAIL_ARMED))
		return KSLAB_REMOTE_FREED;
	/* Acquires the owner's identity, for mail_page; the mailbox releases. */
	if (!KSLAB_CAS_ACQUIRE(&page->mail, &mail, (uint32_t)KSLAB_MAIL_QUEUED))
		return KSLAB_REMOTE_FREED;
	mail_page(page);
	return KSLAB_REMOTE_MAILED;
}
