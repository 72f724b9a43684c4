/* SPDX-License-Identifier: MIT
 * object_page.h - owns one object page: slots, address <-> slot, local and remote bitfields, mail.
 * Rank: 2.  Runs: the functions marked [o] for the page's owner, the others for anybody.
 * Source: the seed's ObjectPage; exact division after Granlund and Montgomery 1994.
 */
#ifndef KSLAB_OBJECT_PAGE_PRIVATE_H
#define KSLAB_OBJECT_PAGE_PRIVATE_H

#include <kslab/object_page.h>

#include "compiler.h"

KSLAB_INLINE unsigned kslab_page_words(const struct kslab_page *page)
{
	return (page->slots + KSLAB_WORD_BITS - 1) / KSLAB_WORD_BITS;
}

/* Bytes of a descriptor with so many bitfield words. */
KSLAB_INLINE size_t kslab_page_descriptor_bytes(unsigned words)
{
	return sizeof(struct kslab_page) + words * sizeof(struct kslab_bits);
}

/*
 * Slot of an address inside the page, by exact division: an offset that is no multiple of the slot
 * size comes out larger than every slot number, as does one behind the last slot.
 */
KSLAB_INLINE uint32_t kslab_page_index(const struct kslab_page *page, uintptr_t address)
{
	return kslab_rotate_right(((uint32_t)address - (uint32_t)page->data) * page->inverse,
				  page->rotate);
}

KSLAB_INLINE kslab_word kslab_bit(uint32_t index)
{
	return (kslab_word)1 << (index % KSLAB_WORD_BITS);
}

/* Bits of word i that belong to no slot. */
KSLAB_INLINE kslab_word kslab_page_tail(const struct kslab_page *page, unsigned i)
{
	uint32_t slots = page->slots - i * KSLAB_WORD_BITS;

	return slots >= KSLAB_WORD_BITS ? 0 : ~(kslab_word)0 << slots;
}

/* The owner without tags. */
KSLAB_INLINE struct kslab_owner *kslab_page_owner(const struct kslab_page *page)
{
	return (struct kslab_owner *)(KSLAB_LOAD_RELAXED(&page->owner) & ~KSLAB_TAG_MASK);
}

/* The class, for those who are not the owner. Pairs with kslab_sc_move, which gives it to another. */
KSLAB_INLINE const struct kslab_sc *kslab_page_sc(const struct kslab_page *page)
{
	return KSLAB_LOAD_ACQUIRE(&page->sc);
}

/* Written by the owner, read by whoever judges a pointer. */
KSLAB_INLINE void kslab_page_set_state(struct kslab_page *page, unsigned state)
{
	KSLAB_STORE_RELAXED(&page->state, (uint8_t)state);
}

KSLAB_INLINE unsigned kslab_page_state(const struct kslab_page *page)
{
	return KSLAB_LOAD_RELAXED(&page->state);
}

/* Make a page of `slots` slots of `bytes`, all free, closed, in state IDLE. [o] */
void kslab_page_init(struct kslab_page *page, uintptr_t data, size_t run, uint32_t bytes,
		     uint32_t slots);

/*
 * A page that nobody owns is closed (I8). Close: no slot is live; what is in `remote` comes from
 * double frees, and is noted in owner->late. [o]
 */
void kslab_page_open(struct kslab_page *page);
void kslab_page_close(struct kslab_owner *owner, struct kslab_page *page);

/* True if every slot is in `freed`. [o] */
bool kslab_page_is_empty(const struct kslab_page *page);

/* Live slots, as far as can be seen. Anybody; exact when nobody frees. */
uint32_t kslab_page_live(const struct kslab_page *page);
/*
 * Live slots of word i, for those who are not the owner: looked at in the order of a bit's way, so
 * that a slot on its way is not taken for live.
 */
kslab_word kslab_page_live_word(const struct kslab_page *page, unsigned i);

/*
 * Take remote frees of word i in. A bit whose slot was free already comes from a double free that
 * raced: it is dropped and noted in owner->late. Return: the bits that became free. [o]
 */
kslab_word kslab_page_harvest_word(struct kslab_owner *owner, struct kslab_page *page, unsigned i);
/* All words. Return: true if anything became free. [o] */
bool kslab_page_harvest(struct kslab_owner *owner, struct kslab_page *page);

/*
 * Ask to be told of the next remote free (I6). Return: false if remote bits are there already and
 * nobody has queued the page: the owner must harvest now. [o]
 */
bool kslab_page_arm(struct kslab_page *page);

/* Take the page off the mail. Return: false if it is QUEUED: wait for the mail. [o] */
bool kslab_page_disarm(struct kslab_page *page);

/* Mail a page that its owner has made QUEUED. Anybody, once. */
void kslab_page_mail(struct kslab_page *page);

/*
 * Free a slot of somebody else's page: one atomic operation, and the mail if the page is armed.
 * Return: KSLAB_REMOTE_*.
 */
enum kslab_remote { KSLAB_REMOTE_DOUBLE, KSLAB_REMOTE_FREED, KSLAB_REMOTE_MAILED };
enum kslab_remote kslab_page_free_remote(struct kslab_page *page, uint32_t index);

/* Size to inverse of the odd part, modulo 2^32. */
uint32_t kslab_page_inverse(uint32_t bytes);

#endif
