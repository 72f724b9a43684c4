/* SPDX-License-Identifier: MIT
 * sc_allocator.c - owns one size class of one owner, and the bare SCAllocator on top of it.
 * Rank: 3.  Runs: for the owner of the pages only; kslab_sc_deallocate anywhere.
 * Source: the seed's SCAllocator.
 */
#include "sc_allocator.h"
#include "page_list.h"

/* ---- the core, shared by the heap's zones and the bare allocator ----------------------------- */

static struct kslab_page_list *list_of(struct kslab_sc *sc, unsigned state)
{
	switch (state) {
	case KSLAB_PAGE_PARTIAL:
		return &sc->partial;
	case KSLAB_PAGE_FULL:
	case KSLAB_PAGE_PURGING:
		return &sc->full;
	case KSLAB_PAGE_EMPTY:
		return &sc->empty;
	default:
		return NULL;
	}
}

static uintptr_t tags_of(const struct kslab_page *page)
{
	return KSLAB_LOAD_RELAXED(&page->owner) & KSLAB_TAG_MASK & ~KSLAB_TAG_FULL;
}

/* Take the page out of the list that its state names. */
static void unlink_page(struct kslab_owner *owner, struct kslab_page *page)
{
	struct kslab_sc *sc = page->sc;
	struct kslab_page_list *list = list_of(sc, page->state);

	if (list != NULL && KSLAB_UNLIKELY(!kslab_page_list_is_sound(page))) {
		/*
		 * Somebody wrote over the links. No broken link is followed and no neighbour
		 * touched: the page is fenced off; if it was the head, the rest of its list is lost
		 * with it.
		 */
		if (list->head == page)
			list->head = NULL;
		page->next = page->prev = NULL;
		owner->corrupt = page;
	} else if (list != NULL) {
		kslab_page_list_remove(list, page);
	}
	if (page->state == KSLAB_PAGE_EMPTY) {
		sc->empty_pages--;
		owner->empty_run -= page->pages;
	}
	if (page->state == KSLAB_PAGE_FULL)
		KSLAB_STORE_RELAXED(&page->owner, (uintptr_t)owner | tags_of(page));
	kslab_page_set_state(page, KSLAB_PAGE_IDLE);
}

static void make_empty(struct kslab_owner *owner, struct kslab_page *page)
{
	unlink_page(owner, page);
	kslab_page_set_state(page, KSLAB_PAGE_EMPTY);
	kslab_page_list_insert_head(&page->sc->empty, page);
	page->sc->empty_pages++;
	owner->empty_run += page->pages;
	owner->emptied = page->sc;
}

/* To the tail: a page that got its first free slot gathers more of them before its turn comes. */
static void make_partial(struct kslab_owner *owner, struct kslab_page *page)
{
	unlink_page(owner, page);
	kslab_page_set_state(page, KSLAB_PAGE_PARTIAL);
	kslab_page_list_insert_tail(&page->sc->partial, page);
}

static void make_full(struct kslab_owner *owner, struct kslab_page *page)
{
	unlink_page(owner, page);
	kslab_page_set_state(page, KSLAB_PAGE_FULL);
	kslab_page_list_insert_tail(&page->sc->full, page);
	KSLAB_STORE_RELAXED(&page->owner, (uintptr_t)owner | tags_of(page) | KSLAB_TAG_FULL);
}

static bool has_free_slot(const struct kslab_page *page)
{
	for (unsigned i = 0; i < kslab_page_words(page); i++)
		if (KSLAB_LOAD_RELAXED(&page->bits[i].freed) & ~kslab_page_tail(page, i))
			return true;
	return false;
}

/*
 * Put a page that is in no list, or in a wrong one, where its bits say. Ends: each harvest clears
 * remote bits.
 */
void kslab_sc_refile(struct kslab_owner *owner, struct kslab_page *page)
{
	for (;;) {
		if (kslab_page_is_empty(page)) {
			make_empty(owner, page);
			return;
		}
		if (has_free_slot(page)) {
			make_partial(owner, page);
			return;
		}
		make_full(owner, page);
		if (kslab_page_arm(page))
			return;
		kslab_page_harvest(owner, page);
	}
}

/* Words that are looked at together. */
#define GROUP_WORDS 8u

/* Free slots of word i, remote frees that have to be taken in among them. */
KSLAB_INLINE kslab_word free_in_word(const struct kslab_page *page, unsigned i)
{
	return (KSLAB_LOAD_RELAXED(&page->bits[i].freed) & kslab_page_slots_of(page, i)) |
	       KSLAB_LOAD_RELAXED(&page->bits[i].remote);
}

/* Which words of a group have free slots. Only the last one can have bits past the last slot. */
static void look_at_group(struct kslab_sc *sc, const struct kslab_page *page, unsigned group)
{
	unsigned i = kslab_page_words(page) - group - 1, ready;
	const struct kslab_bits *bits = &page->bits[group];

	if (i >= GROUP_WORDS)
		i = GROUP_WORDS - 1;
	ready = (unsigned)(free_in_word(page, group + i) != 0) << i;
	while (i-- != 0)
		ready |= (unsigned)((KSLAB_LOAD_RELAXED(&bits[i].freed) |
				     KSLAB_LOAD_RELAXED(&bits[i].remote)) != 0)
			 << i;
	sc->group = (uint16_t)group;
	sc->ready = (uint8_t)ready;
}

void *kslab_sc_next_word(struct kslab_owner *owner, struct kslab_sc *sc)
{
	struct kslab_page *page = sc->page;
	unsigned words, groups;

	if (page == NULL)
		return NULL;
	words = kslab_page_words(page);
	groups = (words + GROUP_WORDS - 1) / GROUP_WORDS;
	for (;;) {
		while (sc->ready != 0) {
			void *object;

			kslab_page_harvest_word(owner, page, sc->group + kslab_ctz(sc->ready));
			object = kslab_sc_issue_ready(sc);
			if (object != NULL)
				return object;
			sc->ready = (uint8_t)(sc->ready & (sc->ready - 1u));
		}
		if (groups-- == 0)
			return NULL;
		look_at_group(sc, page,
			      sc->group + GROUP_WORDS < words ? sc->group + GROUP_WORDS : 0);
	}
}

/* No page is current any more. */
static void forget_page(struct kslab_sc *sc)
{
	sc->page = NULL;
	sc->ready = 0;
	sc->word = (kslab_word *)(uintptr_t)&kslab_zero_word;
}

/*
 * The current page is used up. While others wait it goes behind them as it is, neither full nor
 * armed: by its next turn something was freed into it, in the common case. If nothing was, it
 * becomes full then.
 */
static void set_aside(struct kslab_sc *sc)
{
	struct kslab_page *page = sc->page;

	kslab_page_set_state(page, KSLAB_PAGE_PARTIAL);
	kslab_page_list_insert_tail(&sc->partial, page);
	forget_page(sc);
}

/*
 * Every word of the current page that was ready is used up, and nothing was freed meanwhile where
 * its turn began: by far most likely nowhere, or little.
 */
static bool is_used_up(const struct kslab_sc *sc)
{
	const struct kslab_page *page = sc->page;
	unsigned words = kslab_page_words(page);

	if ((sc->ready != 0 && words != 1) || sc->group + GROUP_WORDS < words)
		return false;
	return free_in_word(page, 0) == 0;
}

/* The first partial page, or else an empty one, becomes the current page. Return: false: none. */
static bool turn_to_next(struct kslab_owner *owner, struct kslab_sc *sc)
{
	struct kslab_page *page = sc->partial.head;

	if (KSLAB_LIKELY(page != NULL && kslab_page_list_is_sound(page))) {
		kslab_page_list_remove(&sc->partial, page);
	} else {
		if (page == NULL)
			page = sc->empty.head;
		if (page == NULL)
			return false;
		unlink_page(owner, page);
	}
	kslab_page_set_state(page, KSLAB_PAGE_CURRENT);
	sc->page = page;
	look_at_group(sc, page, 0);
	return true;
}

/* Pages that one call turns to. */
#define TURNS_MAX 8u

void *kslab_sc_next(struct kslab_owner *owner, struct kslab_sc *sc)
{
	void *object;

	for (unsigned turn = 0; turn < TURNS_MAX; turn++) {
		bool waits = turn == 0 && sc->partial.head != NULL;

		/* Not looked at once more while others wait: what it gathers meanwhile, it keeps. */
		if (sc->page != NULL && !(waits && is_used_up(sc))) {
			object = kslab_sc_next_word(owner, sc);
			if (KSLAB_LIKELY(object != NULL))
				return object;
		}
		if (sc->page != NULL && waits)
			set_aside(sc);
		else
			kslab_sc_retire(owner, sc);
		if (KSLAB_UNLIKELY(kslab_sc_has_mail(owner)) && turn == 0)
			kslab_sc_drain(owner, KSLAB_MAIL_MOST);
		if (!turn_to_next(owner, sc))
			return NULL;
		if (KSLAB_LIKELY(sc->ready != 0)) {
			object = kslab_sc_issue_ready(sc);
			if (KSLAB_LIKELY(object != NULL))
				return object;
		}
	}
	return NULL;
}

bool kslab_sc_free_local(struct kslab_owner *owner, struct kslab_page *page, uint32_t index)
{
	struct kslab_bits *bits = &page->bits[index / KSLAB_WORD_BITS];
	kslab_word freed = KSLAB_LOAD_RELAXED(&bits->freed), bit = kslab_bit(index);

	if ((freed | KSLAB_LOAD_RELAXED(&bits->avail) | KSLAB_LOAD_RELAXED(&bits->remote)) & bit)
		return false;
	KSLAB_STORE_RELAXED(&bits->freed, freed | bit);
	if (page->state == KSLAB_PAGE_FULL)
		make_partial(owner, page);
	if ((freed | bit) == ~(kslab_word)0)
		kslab_sc_word_full(owner, page);
	return true;
}

void kslab_sc_word_full(struct kslab_owner *owner, struct kslab_page *page)
{
	if (page->state == KSLAB_PAGE_PARTIAL && kslab_page_is_empty(page))
		make_empty(owner, page);
}

void kslab_sc_insert(struct kslab_owner *owner, struct kslab_sc *sc, struct kslab_page *page,
		     uintptr_t tags)
{
	page->sc = sc;
	kslab_page_open(page);
	/* Pairs with the look of the end of a cache, which goes on to the rest of the page. */
	KSLAB_STORE_RELEASE(&page->owner, (uintptr_t)owner | tags);
	sc->pages++;
	make_empty(owner, page);
}

size_t kslab_sc_drain(struct kslab_owner *owner, size_t most)
{
	struct kslab_page *page = KSLAB_LOAD_RELAXED(&owner->mail);
	bool is_new = false;
	size_t pages = 0;

	while (pages != most) {
		struct kslab_page *next;

		if (page == NULL) {
			if (is_new)
				break;
			/*
			 * Once, so that it ends. Pairs with the release CAS of mail_page: the
			 * links, and what the freer wrote before.
			 */
			page = KSLAB_EXCHANGE_ACQUIRE(&owner->mailbox, (struct kslab_page *)NULL);
			is_new = true;
			continue;
		}
		next = KSLAB_LOAD_RELAXED(&page->mail_next);

		/*
		 * Before the harvest: a freer that comes later finds IDLE, or the page armed again.
		 */
		KSLAB_STORE_RELAXED(&page->mail, (uint32_t)KSLAB_MAIL_IDLE);
		kslab_page_harvest(owner, page);
		if (page->state == KSLAB_PAGE_FULL || page->state == KSLAB_PAGE_PURGING ||
		    (page->state == KSLAB_PAGE_PARTIAL && kslab_page_is_empty(page)))
			kslab_sc_refile(owner, page);
		pages++;
		page = next;
	}
	/* The rest stays QUEUED: it does not change hands, and no freer queues it again. */
	KSLAB_STORE_RELAXED(&owner->mail, page);
	return pages;
}

void kslab_sc_sweep(struct kslab_owner *owner, struct kslab_sc *sc)
{
	struct kslab_page *page = sc->partial.head, *next;

	for (; page != NULL; page = next) {
		next = kslab_page_list_after(&sc->partial, page);
		kslab_page_harvest(owner, page);
		if (kslab_page_is_empty(page))
			make_empty(owner, page);
	}
	/*
	 * On empty pages nothing can wait but double frees that lost their race: note and drop
	 * them.
	 */
	for (page = sc->empty.head; page != NULL; page = kslab_page_list_after(&sc->empty, page))
		kslab_page_harvest(owner, page);
}

/* A sweep comes to a list. */
static void sweep_list(struct kslab_owner *owner, struct kslab_page_list *list, uint32_t pages)
{
	owner->sweep_list = list;
	owner->sweep_end = list->head != NULL ? list->head->prev : NULL;
	/* The end may leave the list while the sweep waits: no more than there can be. */
	owner->sweep_left = list->head != NULL ? pages : 0;
}

/* One page of a sweep: the head. It goes to the tail, so that a round leaves the order as it was. */
static void sweep_head(struct kslab_owner *owner)
{
	struct kslab_page *page = owner->sweep_list->head;

	if (page == NULL) {
		owner->sweep_left = 0;
		return;
	}
	owner->sweep_list->head = page->next;
	kslab_page_harvest(owner, page);
	if (page->state == KSLAB_PAGE_PARTIAL && kslab_page_is_empty(page))
		make_empty(owner, page);
	owner->sweep_left = page == owner->sweep_end ? 0 : owner->sweep_left - 1;
}

void kslab_sc_sweep_begin(struct kslab_owner *owner, struct kslab_sc *sc)
{
	owner->swept = sc;
	sweep_list(owner, &sc->partial, sc->pages - sc->empty_pages);
}

bool kslab_sc_sweep_some(struct kslab_owner *owner, size_t *most)
{
	for (; *most != 0; --*most) {
		/* Double frees that lost their race wait on empty pages: see kslab_sc_sweep. */
		if (owner->sweep_left == 0 && owner->sweep_list == &owner->swept->partial)
			sweep_list(owner, &owner->swept->empty, owner->swept->empty_pages);
		if (owner->sweep_left == 0)
			return true;
		sweep_head(owner);
	}
	return false;
}

void kslab_sc_sweep_end(struct kslab_owner *owner)
{
	owner->swept = NULL;
	owner->sweep_list = NULL;
	owner->sweep_end = NULL;
	owner->sweep_left = owner->sweep_epoch = 0;
}

struct kslab_page *kslab_sc_next_mail(struct kslab_owner *owner)
{
	if (owner->mail == NULL && KSLAB_LOAD_RELAXED(&owner->mailbox) != NULL)
		KSLAB_STORE_RELAXED(&owner->mail,
				    KSLAB_EXCHANGE_ACQUIRE(&owner->mailbox,
							   (struct kslab_page *)NULL));
	return owner->mail;
}

void kslab_sc_retire(struct kslab_owner *owner, struct kslab_sc *sc)
{
	struct kslab_page *page = sc->page;

	if (page == NULL)
		return;
	forget_page(sc);
	for (unsigned i = 0; i < kslab_page_words(page); i++) {
		struct kslab_bits *bits = &page->bits[i];
		kslab_word avail = KSLAB_LOAD_RELAXED(&bits->avail);

		/* I2: at most one. Set, then clear: pairs with the last look of a remote free. */
		if (avail != 0) {
			KSLAB_STORE_RELAXED(&bits->freed, KSLAB_LOAD_RELAXED(&bits->freed) | avail);
			KSLAB_STORE_RELEASE(&bits->avail, (kslab_word)0);
		}
	}
	kslab_sc_refile(owner, page);
}

bool kslab_sc_set_purging(struct kslab_owner *owner, struct kslab_page *page)
{
	if (!kslab_page_disarm(page))
		return false;
	KSLAB_STORE_RELAXED(&page->mail, (uint32_t)KSLAB_MAIL_QUEUED);
	unlink_page(owner, page);
	kslab_page_set_state(page, KSLAB_PAGE_PURGING);
	kslab_page_list_insert_tail(&page->sc->full, page);
	return true;
}

bool kslab_sc_remove_empty(struct kslab_owner *owner, struct kslab_page *page)
{
	struct kslab_sc *sc = page->sc;

	if (!kslab_page_disarm(page))
		return false;
	kslab_page_close(owner, page);
	unlink_page(owner, page);
	KSLAB_STORE_RELAXED(&sc->pages, sc->pages - 1); /* the end of a cache looks */
	return true;
}

bool kslab_sc_move(struct kslab_owner *from, struct kslab_page *page, struct kslab_owner *to,
		   struct kslab_sc *to_sc)
{
	uintptr_t tags = tags_of(page);

	if (!kslab_page_disarm(page))
		return false;
	kslab_page_harvest(from, page);
	unlink_page(from, page);
	page->sc->pages--;
	/* Pairs with kslab_page_sc: what a free of a cache's object finds there. */
	KSLAB_STORE_RELEASE(&page->sc, to_sc);
	to_sc->pages++;
	KSLAB_STORE_RELAXED(&page->owner, (uintptr_t)to | tags);
	kslab_sc_refile(to, page);
	return true;
}

void kslab_sc_each(const struct kslab_sc *sc, void (*fn)(void *ctx, const struct kslab_page *page),
		   void *ctx)
{
	const struct kslab_page_list *lists[] = { &sc->partial, &sc->full, &sc->empty };

	if (sc->page != NULL)
		fn(ctx, sc->page);
	for (unsigned i = 0; i < KSLAB_ARRAY_LENGTH(lists); i++) {
		const struct kslab_page *page = lists[i]->head;

		/* Bounded, for those who look while the owner works. */
		for (uint32_t n = sc->pages; page != NULL && n != 0;
		     page = kslab_page_list_after(lists[i], page), n--)
			fn(ctx, page);
	}
}

/* ---- verification ---------------------------------------------------------------------------- */

static const char *verify_page(const struct kslab_owner *owner, const struct kslab_sc *sc,
			       const struct kslab_page *page, unsigned state)
{
	uintptr_t full;
	bool has_free = false, has_live = false;

	if (state == KSLAB_PAGE_FULL && page->state == KSLAB_PAGE_PURGING)
		state = KSLAB_PAGE_PURGING; /* in the same list */
	full = state == KSLAB_PAGE_FULL ? KSLAB_TAG_FULL : 0;
	if (page->state != state)
		return "state of a page contradicts its list";
	if (page->sc != sc)
		return "page is in the list of another class";
	if (page->owner != ((uintptr_t)owner | tags_of(page) | full))
		return "owner of a page is not the owner of its list";
	if (page->slots == 0 || page->inverse != kslab_page_inverse(sc->size) || page->data == 0)
		return "geometry of a page contradicts its class";
	for (unsigned i = 0; i < kslab_page_words(page); i++) {
		const struct kslab_bits *bits = &page->bits[i];
		kslab_word remote = KSLAB_LOAD_RELAXED(&bits->remote),
			   tail = kslab_page_tail(page, i);

		if ((bits->avail & bits->freed) || (remote & (bits->avail | bits->freed)))
			return "a slot is free twice"; /* I1 */
		if ((bits->freed & tail) != tail)
			return "bits past the last slot are not set"; /* I3 */
		if (bits->avail != 0 && sc->word != &bits->avail)
			return "slots are available outside the current word"; /* I2 */
		has_free = has_free || ((bits->avail | bits->freed) & ~tail) != 0;
		has_live = has_live || ~(bits->avail | bits->freed) != 0;
	}
	if (state == KSLAB_PAGE_EMPTY && has_live)
		return "a page on the empty list has live objects";
	if (state == KSLAB_PAGE_FULL && has_free)
		return "a page on the full list has free slots";
	if (state == KSLAB_PAGE_PARTIAL && !has_live)
		return "a page on the partial list is empty";
	if (state == KSLAB_PAGE_PURGING && KSLAB_LOAD_RELAXED(&page->mail) != KSLAB_MAIL_QUEUED)
		return "a page that is being purged is not queued"; /* I6 */
	return NULL;
}

const char *kslab_sc_verify(const struct kslab_owner *owner, const struct kslab_sc *sc,
			    const struct kslab_page **where)
{
	static const uint8_t states[] = { KSLAB_PAGE_PARTIAL, KSLAB_PAGE_FULL, KSLAB_PAGE_EMPTY };
	const struct kslab_page_list *lists[] = { &sc->partial, &sc->full, &sc->empty };
	uint32_t pages = 0, empty = 0;
	const char *wrong = NULL;

	*where = sc->page;
	if ((sc->page == NULL) != (sc->word == &kslab_zero_word) && sc->page == NULL)
		return "cached word without a current page";
	if (sc->page != NULL) {
		wrong = verify_page(owner, sc, sc->page, KSLAB_PAGE_CURRENT);
		if (wrong == NULL && sc->page->next != NULL)
			wrong = "the current page is in a list";
		pages++;
	}
	for (unsigned i = 0; i < KSLAB_ARRAY_LENGTH(lists) && wrong == NULL; i++) {
		const struct kslab_page *page = lists[i]->head;

		for (; page != NULL && wrong == NULL;
		     page = kslab_page_list_after(lists[i], page)) {
			*where = page;
			if (!kslab_page_list_is_sound(page) || pages > sc->pages)
				return "links of a page list are broken";
			wrong = verify_page(owner, sc, page, states[i]);
			pages++;
			empty += states[i] == KSLAB_PAGE_EMPTY;
		}
	}
	if (wrong != NULL)
		return wrong;
	*where = NULL;
	if (pages != sc->pages || empty != sc->empty_pages)
		return "page counts of a class are wrong";
	return NULL;
}

const char *kslab_sc_verify_mail(const struct kslab_owner *owner, size_t pages,
				 const struct kslab_page **where)
{
	const struct kslab_page *page = KSLAB_LOAD_RELAXED(&owner->mail);

	for (; page != NULL; page = KSLAB_LOAD_RELAXED(&page->mail_next), pages--) {
		*where = page;
		if (pages == 0)
			return "mail that waits has no end";
		if (KSLAB_LOAD_RELAXED(&page->mail) != KSLAB_MAIL_QUEUED)
			return "mail waits of a page that is not queued"; /* I6 */
		if (kslab_page_owner(page) != owner)
			return "mail waits of a page of another owner"; /* I6 */
	}
	return NULL;
}

/* ---- the bare SCAllocator: in-page descriptors ----------------------------------------------- */

#define IN_PAGE_MIN_BYTES 512u
#define IN_PAGE_MAX_BYTES ((size_t)32 << 20) /* kslab_sc.group has 16 bits */

/*
 * The descriptor lies at the end of its page:   | slot 0 | slot 1 | ... | tail | descriptor, bits |
 */
static size_t descriptor_bytes(uint32_t slots)
{
	unsigned words = (slots + KSLAB_WORD_BITS - 1) / KSLAB_WORD_BITS;

	return (kslab_page_descriptor_bytes(words) + 7) & ~(size_t)7;
}

/* Most slots that leave room for their own descriptor. */
static uint32_t slots_for(size_t size, size_t page_bytes)
{
	uint32_t slots = (uint32_t)kslab_divide(page_bytes, size);

	while (slots != 0 && slots * size + descriptor_bytes(slots) > page_bytes) {
		size_t over = slots * size + descriptor_bytes(slots) - page_bytes;
		uint32_t step = (uint32_t)kslab_divide(over, size + sizeof(struct kslab_bits));

		slots -= step != 0 ? step : 1;
	}
	return slots;
}

static bool is_valid(const struct kslab_sc_allocator *sc)
{
	return sc->slots != 0;
}

/* Slot size rounded up, and slots per page; 0: impossible. */
static uint32_t geometry(const struct kslab_sc_allocator *sc, size_t *size)
{
	*size = ((size_t)sc->core.size + 7) & ~(size_t)7;
	if (*size == 0 || !kslab_is_power_of_two(sc->page_bytes) ||
	    sc->page_bytes < IN_PAGE_MIN_BYTES || sc->page_bytes > IN_PAGE_MAX_BYTES ||
	    *size > sc->page_bytes)
		return 0;
	return slots_for(*size, sc->page_bytes);
}

/* A static initialiser can't compute slots: the first call does. */
static bool make_valid(struct kslab_sc_allocator *sc)
{
	size_t size;

	if (KSLAB_LIKELY(is_valid(sc)))
		return true;
	sc->slots = geometry(sc, &size);
	if (is_valid(sc))
		sc->core.size = (uint32_t)size;
	return is_valid(sc);
}

enum kslab_allocation_error kslab_sc_init(struct kslab_sc_allocator *sc, size_t size,
					  size_t page_bytes)
{
	const struct kslab_sc core = KSLAB_SC_CORE_INIT(0, KSLAB_CLASS_CACHE);

	memset(sc, 0, sizeof(*sc));
	sc->core = core;
	if (size > page_bytes || page_bytes > IN_PAGE_MAX_BYTES)
		return KSLAB_INVALID_LAYOUT;
	sc->core.size = (uint32_t)size;
	sc->page_bytes = page_bytes;
	return make_valid(sc) ? KSLAB_ALLOCATION_OK : KSLAB_INVALID_LAYOUT;
}

size_t kslab_sc_size(const struct kslab_sc_allocator *sc)
{
	size_t size;

	return geometry(sc, &size) != 0 ? size : 0;
}

size_t kslab_sc_slots(const struct kslab_sc_allocator *sc)
{
	size_t size;

	return is_valid(sc) ? sc->slots : geometry(sc, &size);
}

/* Every slot of the class has every alignment up to the lowest set bit of its size. */
static bool fits(const struct kslab_sc_allocator *sc, struct kslab_layout layout)
{
	return layout.size <= sc->core.size && kslab_is_power_of_two(layout.align) &&
	       (sc->core.size & (layout.align - 1)) == 0;
}

enum kslab_allocation_error kslab_sc_allocate(struct kslab_sc_allocator *sc,
					      struct kslab_layout layout, void **object)
{
	*object = NULL;
	if (!make_valid(sc) || !fits(sc, layout))
		return KSLAB_INVALID_LAYOUT;
	*object = kslab_sc_pop(&sc->core);
	while (*object == NULL) {
		*object = kslab_sc_next(&sc->owner, &sc->core);
		if (*object == NULL && !kslab_sc_has_more(&sc->owner, &sc->core))
			break;
	}
	return *object != NULL ? KSLAB_ALLOCATION_OK : KSLAB_OUT_OF_MEMORY;
}

static struct kslab_page *descriptor_at(const struct kslab_sc_allocator *sc, uintptr_t page)
{
	return (struct kslab_page *)(page + sc->page_bytes - descriptor_bytes(sc->slots));
}

enum kslab_allocation_error kslab_sc_deallocate(struct kslab_sc_allocator *sc, void *ptr,
						struct kslab_layout layout)
{
	uintptr_t address = (uintptr_t)ptr;
	enum kslab_remote result;
	struct kslab_page *page;
	uint32_t index;

	if (!is_valid(sc))
		return KSLAB_INVALID_POINTER;
	if (!fits(sc, layout))
		return KSLAB_INVALID_LAYOUT;
	if (address == 0)
		return KSLAB_INVALID_POINTER;
	page = descriptor_at(sc, address & ~(uintptr_t)(sc->page_bytes - 1));
	/* Every field by itself: the page may be anything. A free, not a lookup, decides. */
	if (kslab_page_owner(page) != &sc->owner || page->sc != &sc->core ||
	    page->slots != sc->slots || page->data != (address & ~(uintptr_t)(sc->page_bytes - 1)))
		return KSLAB_INVALID_POINTER;
	index = kslab_page_index(page, address);
	if (index >= page->slots)
		return KSLAB_INVALID_POINTER;
	/*
	 * The descriptor goes with its page: until we are done with it, no page may go (see
	 * is_quiet).
	 */
	KSLAB_FETCH_ADD_RELAXED(&sc->in_flight, 1u);
	result = kslab_page_free_remote(page, index);
	KSLAB_FETCH_ADD_RELEASE(&sc->in_flight, ~0u);
	return result == KSLAB_REMOTE_DOUBLE ? KSLAB_INVALID_POINTER : KSLAB_ALLOCATION_OK;
}

enum kslab_allocation_error kslab_sc_refill(struct kslab_sc_allocator *sc, void *mem)
{
	uintptr_t address = (uintptr_t)mem;
	struct kslab_page *page;

	if (!make_valid(sc) || address == 0 || (address & (sc->page_bytes - 1)) != 0)
		return KSLAB_INVALID_PAGE; /* before the page is touched */
	page = descriptor_at(sc, address);
	if (page->owner == (uintptr_t)&sc->owner ||
	    page->owner == ((uintptr_t)&sc->owner | KSLAB_TAG_FULL)) {
		/* Looks like ours; a stale descriptor does, too. Only the lists know. */
		const struct kslab_page_list *lists[] = { &sc->core.partial, &sc->core.full,
							  &sc->core.empty };

		if (sc->core.page == page)
			return KSLAB_INVALID_PAGE;
		for (unsigned i = 0; i < KSLAB_ARRAY_LENGTH(lists); i++) {
			const struct kslab_page *other = lists[i]->head;

			for (; other != NULL; other = kslab_page_list_after(lists[i], other))
				if (other == page)
					return KSLAB_INVALID_PAGE;
		}
	}
	page->mail = KSLAB_MAIL_IDLE;
	page->mail_next = NULL;
	kslab_page_init(page, address, 1, sc->core.size, sc->slots);
	kslab_sc_insert(&sc->owner, &sc->core, page, 0);
	return KSLAB_ALLOCATION_OK;
}

/* Look at everything again: mail, partial pages, the current page. */
static void rebalance(struct kslab_sc_allocator *sc)
{
	kslab_sc_drain(&sc->owner, KSLAB_ALL);
	if (sc->core.page != NULL) {
		kslab_page_harvest(&sc->owner, sc->core.page);
		kslab_sc_retire(&sc->owner, &sc->core);
	}
	kslab_sc_sweep(&sc->owner, &sc->core);
}

/*
 * True if no deallocate that freed an object of an empty page is still on its way out. It counted
 * itself before the fetch_or that our harvest has read (acquire), so a count of 0 (acquire) says
 * that it has left.
 */
static bool is_quiet(const struct kslab_sc_allocator *sc)
{
	return KSLAB_LOAD_ACQUIRE(&sc->in_flight) == 0;
}

size_t kslab_sc_try_reclaim_pages(struct kslab_sc_allocator *sc, size_t to_reclaim,
				  void (*dealloc)(void *ctx, void *page), void *ctx)
{
	struct kslab_page *page, *next;
	size_t reclaimed = 0;

	if (!is_valid(sc))
		return 0;
	rebalance(sc);
	for (page = sc->core.empty.head; page != NULL && reclaimed < to_reclaim; page = next) {
		next = kslab_page_list_after(&sc->core.empty, page);
		if (!is_quiet(sc) || !kslab_sc_remove_empty(&sc->owner, page))
			continue;
		KSLAB_STORE_RELAXED(&page->owner, (uintptr_t)0);
		dealloc(ctx, (void *)page->data);
		reclaimed++;
	}
	return reclaimed;
}

struct usage_count {
	struct kslab_usage usage;
	size_t page_bytes;
	size_t size;
};

static void count_page(void *ctx, const struct kslab_page *page)
{
	struct usage_count *count = ctx;
	size_t live = kslab_page_live(page);

	count->usage.pages++;
	count->usage.empty_pages += live == 0;
	count->usage.slots += page->slots;
	count->usage.used_slots += live;
	count->usage.used_bytes += live * count->size;
	count->usage.total_bytes += count->page_bytes;
}

struct kslab_usage kslab_sc_usage(struct kslab_sc_allocator *sc)
{
	struct usage_count count = { { 0, 0, 0, 0, 0, 0 }, sc->page_bytes, sc->core.size };

	kslab_sc_each(&sc->core, count_page, &count);
	return count.usage;
}

bool kslab_sc_check(struct kslab_sc_allocator *sc)
{
	const struct kslab_page *where;

	return kslab_sc_verify(&sc->owner, &sc->core, &where) == NULL &&
	       kslab_sc_verify_mail(&sc->owner, sc->core.pages, &where) == NULL;
}
