/* SPDX-License-Identifier: MIT
 * fence.c - owns the fence round bad pages: descriptors and links that a wild write has hit (misuse
 * row 23). Rank: 5.  Runs: the functions with a zone for whoever has entered it; the others
 * anywhere.
 *
 * At debug level 1 the page that a slow path is about to use is looked at first: geometry against
 * its class, bits (I1, I2, I3) against its state, links of the list ends that will be written. No
 * pointer of a descriptor is followed before it is known to lead to a descriptor. If anything is
 * wrong, what links and counts say is worth nothing: the lists of the zone are made anew from the
 * page map, which lies elsewhere. A page that contradicts itself goes behind the fence: no slots,
 * no list, frees refused with CORRUPT_METADATA; its memory goes back when the heap ends. What can't
 * be mended: a broken chain of mail loses the remote frees of the pages behind the break, until
 * their pages are used again.
 */
#include "debug.h"
#include "page_list.h"

/* ---- is a pointer what it claims to be? ------------------------------------------------------ */

static bool is_metadata(const struct kslab_heap *heap, const void *pointer)
{
	uintptr_t address = (uintptr_t)pointer;

	if ((address & 31) != 0 || address == 0)
		return false;
	if (kslab_page_map_find(&heap->map, address) == &kslab_page_metadata)
		return true;
	if (heap->meta.unmarked.count == 0)
		return false;
	for (const struct kslab_chunk *chunk = heap->meta.chunks; chunk != NULL;
	     chunk = chunk->next)
		if (!chunk->marked && address - chunk->address < chunk->pages << heap->page_shift)
			return true;
	return false;
}

static bool is_zone(const struct kslab_heap *heap, const struct kslab_owner *owner)
{
	return owner == &heap->boot_zone.owner ||
	       (((uintptr_t)owner & 63) == 0 && is_metadata(heap, owner));
}

/* A class allocator of this very zone. */
static bool is_sc_of(struct kslab_zone *zone, const struct kslab_sc *sc)
{
	uintptr_t offset = (uintptr_t)sc - (uintptr_t)zone->sc;
	struct kslab_sc *own = &zone->sc[KSLAB_CLASSES - 1];

	if (offset < sizeof(zone->sc))
		return offset % sizeof(*sc) == 0;
	while ((own = kslab_zone_next_sc(zone, own)) != NULL)
		if (own == sc)
			return true;
	return false;
}

/* A page whose links lead to itself is alone in its list. */
static bool is_alone(const struct kslab_page *page)
{
	const struct kslab_sc *sc = page->sc;

	return sc->partial.head == page || sc->full.head == page || sc->empty.head == page;
}

/* Both links lead to descriptors that lead back. The page's class is known to be one. */
static bool is_sound(const struct kslab_heap *heap, const struct kslab_page *page)
{
	return is_metadata(heap, page->next) && is_metadata(heap, page->prev) &&
	       kslab_page_list_is_sound(page) && (page->next != page || is_alone(page));
}

/*
 * A neighbour denies the page while it agrees with another one: the page's links are what was hit,
 * not its.
 */
static bool is_misled(const struct kslab_heap *heap, const struct kslab_page *page)
{
	const struct kslab_page *next = page->next, *prev = page->prev;

	if (!is_metadata(heap, next) || !is_metadata(heap, prev))
		return true;
	if (next == page || prev == page)
		return next != prev || !is_alone(page);
	if (next->state != KSLAB_PAGE_FENCED && next->prev != page && next->prev != next &&
	    is_metadata(heap, next->prev) && next->prev->next == next)
		return true;
	return prev->state != KSLAB_PAGE_FENCED && prev->next != page && prev->next != prev &&
	       is_metadata(heap, prev->next) && prev->next->prev == prev;
}

/* ---- is a page sound in itself? -------------------------------------------------------------- */

static const char *check_geometry(const struct kslab_heap *heap, const struct kslab_sc *sc,
				  const struct kslab_page *page)
{
	size_t bytes = (size_t)page->pages << heap->page_shift;

	if (bytes == 0 || (page->data & (heap->page_bytes - 1)) != 0 ||
	    kslab_page_map_find(&heap->map, page->data) != page ||
	    kslab_page_map_find(&heap->map, page->data + (bytes - 1)) != page ||
	    kslab_page_map_find(&heap->map, page->data + bytes) == page)
		return "corrupt metadata: a page's address contradicts the page map";
	/*
	 * Without a division; the inverse is the one number that makes 1 of the odd part of the
	 * size.
	 */
	if (page->slots == 0 || (uint64_t)page->slots * sc->size > bytes ||
	    page->rotate != kslab_ctz(sc->size) || (sc->size >> page->rotate) * page->inverse != 1)
		return "corrupt metadata: the slots of a page contradict its class";
	return NULL;
}

/* Owner and class of a page, and whether they are of this heap. */
struct handover {
	uintptr_t owner;
	const struct kslab_sc *sc;
	bool has_owner, has_sc;
};

static void look_for_both(void *ctx, struct kslab_zone *zone)
{
	struct handover *handover = ctx;

	if (handover->owner == (uintptr_t)&zone->owner)
		handover->has_owner = true;
	if (is_sc_of(zone, handover->sc))
		handover->has_sc = true;
}

/* kslab_sc_move, on another CPU or interrupted here, has stored the class and not yet the owner. */
static bool changes_hands(const struct kslab_heap *heap, uintptr_t owner, const struct kslab_sc *sc)
{
	struct handover handover = { owner, sc, false, false };

	kslab_heap_each_zone((struct kslab_heap *)(uintptr_t)heap, look_for_both, &handover);
	return handover.has_owner && handover.has_sc;
}

bool kslab_fence_is_known(const struct kslab_heap *heap, const struct kslab_page *page)
{
	uintptr_t tagged = KSLAB_LOAD_RELAXED(&page->owner), owner = tagged & ~KSLAB_TAG_MASK;
	const struct kslab_sc *sc = kslab_page_sc(page);
	uintptr_t place = (uintptr_t)sc - owner;

	/* sc lies in its zone, or for a cache in metadata of its own. */
	if (place < sizeof(struct kslab_zone))
		return place >= offsetof(struct kslab_zone, sc);
	if (tagged & KSLAB_TAG_CACHE)
		return page->state != KSLAB_PAGE_LARGE && is_metadata(heap, sc);
	return owner != 0 && changes_hands(heap, owner, sc);
}

const char *kslab_fence_judge(const struct kslab_heap *heap, const struct kslab_page *page)
{
	const struct kslab_owner *owner = kslab_page_owner(page);

	if (kslab_page_is_none(page) || page->state == KSLAB_PAGE_LARGE)
		return NULL;
	if (page->state == KSLAB_PAGE_IDLE && owner == NULL) /* being made */
		return kslab_page_map_find(&heap->map, page->data) == page
			       ? NULL
			       : "corrupt metadata: a descriptor was erased";
	if (!is_zone(heap, owner))
		return "corrupt metadata: the owner of a page is none";
	if (!kslab_fence_is_known(heap, page) || page->sc->size == 0)
		return "corrupt metadata: the class of a page is none";
	return check_geometry(heap, page->sc, page);
}

static const char *check_bits(const struct kslab_sc *sc, const struct kslab_page *page)
{
	kslab_word twice = 0, missing = 0, elsewhere = 0, free = 0, live = 0;

	for (unsigned i = 0; i < kslab_page_words(page); i++) {
		const struct kslab_bits *bits = &page->bits[i];
		kslab_word freed = KSLAB_LOAD_RELAXED(&bits->freed),
			   avail = KSLAB_LOAD_RELAXED(&bits->avail);
		kslab_word tail = kslab_page_tail(page, i);

		twice |= avail & freed;
		missing |= tail & ~freed;
		elsewhere |= sc->word != &bits->avail ? avail : 0;
		free |= (avail | freed) & ~tail;
		live |= ~(avail | freed);
	}
	if (twice != 0)
		return "corrupt metadata: a slot is free twice"; /* I1 */
	if (missing != 0)
		return "corrupt metadata: bits past the last slot are not set"; /* I3 */
	if (elsewhere != 0) /* I2 */
		return "corrupt metadata: slots are available outside the current word";
	/* I4 */
	if ((page->state == KSLAB_PAGE_EMPTY && live != 0) ||
	    (page->state == KSLAB_PAGE_FULL && free != 0) ||
	    (page->state == KSLAB_PAGE_PARTIAL && live == 0))
		return "corrupt metadata: the bits of a page contradict its list";
	return NULL;
}

/* A page that the lists of a zone lead to. Return: NULL, or what is wrong. */
static const char *check_page(struct kslab_heap *heap, struct kslab_zone *zone,
			      const struct kslab_page *page)
{
	uintptr_t owner = KSLAB_LOAD_RELAXED(&page->owner);
	const char *what;

	if ((owner & ~KSLAB_TAG_MASK) != (uintptr_t)&zone->owner ||
	    ((owner & KSLAB_TAG_FULL) != 0) != (page->state == KSLAB_PAGE_FULL))
		return "corrupt metadata: the owner of a page contradicts its list";
	if (!is_sc_of(zone, page->sc))
		return "corrupt metadata: the class of a page is none";
	if (page->state < KSLAB_PAGE_CURRENT || page->state > KSLAB_PAGE_EMPTY ||
	    (page->state == KSLAB_PAGE_CURRENT) != (page->sc->page == page))
		return "corrupt metadata: the state of a page contradicts its class";
	what = check_geometry(heap, page->sc, page);
	return what != NULL ? what : check_bits(page->sc, page);
}

/* ---- the fence ------------------------------------------------------------------------------- */

static void fence(struct kslab_zone *zone, struct kslab_page *page, uintptr_t address,
		  const char *what)
{
	/*
	 * A freer that queues it late needs an owner to mail it to; the drain finds no slots to
	 * harvest.
	 */
	KSLAB_STORE_RELAXED(&page->owner, (uintptr_t)&zone->owner | KSLAB_TAG_DEBUG);
	kslab_page_set_state(page, KSLAB_PAGE_FENCED);
	page->slots = 0;
	page->data = address;
	kslab_page_disarm(page);
	page->prev = (struct kslab_page *)(uintptr_t)what; /* until it is reported */
	page->next = zone->owner.corrupt;
	zone->owner.corrupt = page;
	KSLAB_FETCH_ADD_RELAXED(&zone->heap->fenced_pages, (size_t)1);
}

/* Calls fn for every page of the map, with the address where it begins. */
static void each_page(struct kslab_heap *heap, uintptr_t base, size_t leaves,
		      void (*fn)(void *ctx, struct kslab_page *page, uintptr_t address), void *ctx)
{
	const struct kslab_page *last = NULL;

	for (size_t i = 0; i < leaves; i++) {
		uintptr_t address = base + ((uintptr_t)i << KSLAB_CFG_LEAF_SHIFT), missing;

		if (kslab_page_map_lacks_leaf(&heap->map, address, 1, &missing)) {
			last = NULL;
			continue;
		}
		for (size_t n = 0; n < KSLAB_LEAF_ENTRIES;
		     n++, address += (uintptr_t)1 << KSLAB_CFG_GRAIN_SHIFT) {
			struct kslab_page *page = kslab_page_map_find(&heap->map, address);

			if (page != last && !kslab_page_is_none(page))
				fn(ctx, page, address);
			last = page;
		}
	}
}

static void each_mapped(struct kslab_heap *heap,
			void (*fn)(void *ctx, struct kslab_page *page, uintptr_t address),
			void *ctx)
{
	each_page(heap, heap->map.base, heap->map.limit, fn, ctx);
	if (heap->map.side[0] != 0)
		each_page(heap, heap->map.side_base, KSLAB_SIDE_ENTRIES, fn, ctx);
}

static void relink(struct kslab_zone *zone, struct kslab_page *page)
{
	struct kslab_sc *sc = page->sc;

	page->next = page->prev = NULL;
	sc->pages++;
	if (page->state == KSLAB_PAGE_PARTIAL)
		kslab_page_list_insert_tail(&sc->partial, page);
	else if (page->state == KSLAB_PAGE_FULL)
		kslab_page_list_insert_tail(&sc->full, page);
	if (page->state != KSLAB_PAGE_EMPTY)
		return;
	kslab_page_list_insert_tail(&sc->empty, page);
	sc->empty_pages++;
	zone->owner.empty_run += page->pages;
}

static void drop_current(struct kslab_sc *sc)
{
	sc->page = NULL;
	sc->ready = 0;
	sc->word = (kslab_word *)(uintptr_t)&kslab_zero_word;
}

struct rebuild {
	struct kslab_heap *heap;
	struct kslab_zone *zone;
};

/* First round: bad pages go behind the fence, while all links are still what they were. */
static void judge_page(void *ctx, struct kslab_page *page, uintptr_t address)
{
	struct rebuild *rebuild = ctx;
	struct kslab_heap *heap = rebuild->heap;
	uintptr_t owner = KSLAB_LOAD_RELAXED(&page->owner), zone = owner & ~KSLAB_TAG_MASK;
	const char *what = NULL;

	/* A block that is live, or claimed while it is resized; one that was freed has no owner. */
	if (page->state == KSLAB_PAGE_FENCED || (owner & ~KSLAB_TAG_FULL) == kslab_large_tag(heap))
		return;
	if (zone == 0) {
		/* A page that is being made, or a large block that is free; or erased. */
		if (page->state != KSLAB_PAGE_LARGE &&
		    (page->data != address || page->state != KSLAB_PAGE_IDLE))
			what = "corrupt metadata: a descriptor was erased";
	} else if (zone != (uintptr_t)rebuild->zone) {
		/* Somebody else's, who looks by himself; or nobody's. */
		if (!is_zone(heap, (const struct kslab_owner *)zone))
			what = "corrupt metadata: the owner of a page is none";
	} else if (page->state != KSLAB_PAGE_IDLE) { /* else: about to be inserted or released */
		what = check_page(heap, rebuild->zone, page);
		if (what == NULL && page->state != KSLAB_PAGE_CURRENT && is_misled(heap, page))
			what = "corrupt metadata: the links of a page are broken";
	}
	if (what == NULL)
		return;
	if (zone == (uintptr_t)rebuild->zone && is_sc_of(rebuild->zone, page->sc) &&
	    page->sc->page == page)
		drop_current(page->sc);
	fence(rebuild->zone, page, address, what);
}

/* Second round: the others go where their state says. */
static void sort_page(void *ctx, struct kslab_page *page, uintptr_t address)
{
	struct rebuild *rebuild = ctx;

	(void)address;
	if ((KSLAB_LOAD_RELAXED(&page->owner) & ~KSLAB_TAG_MASK) == (uintptr_t)rebuild->zone &&
	    page->state >= KSLAB_PAGE_CURRENT && page->state <= KSLAB_PAGE_EMPTY)
		relink(rebuild->zone, page);
}

/* Make all lists of the zone anew. suspect: whose links were found broken, or NULL. */
static void mend(struct kslab_heap *heap, struct kslab_zone *zone, struct kslab_page *suspect)
{
	struct kslab_page *known = zone->owner.corrupt;
	struct rebuild rebuild = { heap, zone };
	struct kslab_sc *sc = NULL;

	while ((sc = kslab_zone_next_sc(zone, sc)) != NULL)
		if (sc->page != NULL && check_page(heap, zone, sc->page) != NULL)
			/* it may not know this class any more when it is met below */
			drop_current(sc);
	each_mapped(heap, judge_page, &rebuild);
	if (zone->owner.corrupt == known && suspect != NULL && suspect->state != KSLAB_PAGE_FENCED)
		fence(zone, suspect, suspect->data,
		      "corrupt metadata: the links of a page are broken");
	while ((sc = kslab_zone_next_sc(zone, sc)) != NULL) {
		sc->partial.head = sc->full.head = sc->empty.head = NULL;
		sc->pages = sc->empty_pages = 0;
	}
	zone->owner.empty_run = 0;
	each_mapped(heap, sort_page, &rebuild);
}

/* ---- before a slow path ---------------------------------------------------------------------- */

/* The ends of a list, which an insertion or the removal of its first page writes. */
static bool has_sound_ends(struct kslab_heap *heap, const struct kslab_page_list *list,
			   struct kslab_page **suspect)
{
	struct kslab_page *head = list->head;

	if (head == NULL)
		return true;
	if (!is_metadata(heap, head) || head->sc == NULL)
		return false;
	if (!is_metadata(heap, head->next) || !is_metadata(heap, head->prev) ||
	    !kslab_page_list_is_sound(head))
		*suspect = head;
	return *suspect == NULL;
}

static bool has_sound_lists(struct kslab_heap *heap, const struct kslab_sc *sc,
			    struct kslab_page **suspect)
{
	return has_sound_ends(heap, &sc->partial, suspect) &&
	       has_sound_ends(heap, &sc->full, suspect) &&
	       has_sound_ends(heap, &sc->empty, suspect);
}

/* Drop what is no sound page from a chain of mail, put the rest back. Return: true: all was well. */
static bool sift_chain(struct kslab_heap *heap, struct kslab_zone *zone, struct kslab_page *page)
{
	struct kslab_page *next;
	bool sound = true;

	for (; page != NULL; page = next) {
		struct kslab_page *head = KSLAB_LOAD_RELAXED(&zone->owner.mailbox);

		if (!is_metadata(heap, page))
			return false; /* the rest of the chain is lost */
		next = page->mail_next;
		if (page->state == KSLAB_PAGE_FENCED)
			continue;
		if (check_page(heap, zone, page) != NULL) {
			sound = false;
			continue;
		}
		if (page->state != KSLAB_PAGE_CURRENT && !is_sound(heap, page))
			sound = false;
		do {
			page->mail_next = head;
		} while (!KSLAB_CAS_RELEASE(&zone->owner.mailbox, &head, page));
	}
	return sound;
}

static bool sift_mail(struct kslab_heap *heap, struct kslab_zone *zone)
{
	struct kslab_page *waiting = zone->owner.mail, *fresh;
	bool sound;

	if (!kslab_sc_has_mail(&zone->owner))
		return true;
	fresh = KSLAB_EXCHANGE_ACQUIRE(&zone->owner.mailbox, (struct kslab_page *)NULL);
	KSLAB_STORE_RELAXED(&zone->owner.mail, (struct kslab_page *)NULL);
	sound = sift_chain(heap, zone, waiting);
	return sift_chain(heap, zone, fresh) && sound;
}

void kslab_fence_mail(struct kslab_heap *heap, struct kslab_zone *zone)
{
	if (!sift_mail(heap, zone))
		mend(heap, zone, NULL);
}

void kslab_fence_issue(struct kslab_heap *heap, struct kslab_zone *zone, struct kslab_sc *sc)
{
	struct kslab_page *suspect = NULL;

	if (!sift_mail(heap, zone) || !has_sound_lists(heap, sc, &suspect) ||
	    (sc->page != NULL && check_page(heap, zone, sc->page) != NULL) ||
	    (sc->partial.head != NULL && check_page(heap, zone, sc->partial.head) != NULL) ||
	    (sc->empty.head != NULL && check_page(heap, zone, sc->empty.head) != NULL))
		mend(heap, zone, suspect);
}

bool kslab_fence_is_sound(struct kslab_heap *heap, struct kslab_zone *zone,
			  const struct kslab_page *page)
{
	return check_page(heap, zone, page) == NULL;
}

bool kslab_fence_free(struct kslab_heap *heap, struct kslab_zone *zone, struct kslab_page *page,
		      uint32_t index)
{
	kslab_word freed =
		KSLAB_LOAD_RELAXED(&page->bits[index / KSLAB_WORD_BITS].freed) | kslab_bit(index);
	struct kslab_page *suspect = NULL;

	/*
	 * What changes lists (kslab_sc_free_local): the first free of a full page, the last of a
	 * word.
	 */
	if ((page->state == KSLAB_PAGE_CURRENT || page->state == KSLAB_PAGE_PARTIAL) &&
	    freed != ~(kslab_word)0)
		return true;
	if (check_page(heap, zone, page) == NULL) {
		if (page->state != KSLAB_PAGE_CURRENT && !is_sound(heap, page))
			suspect = page;
		if (suspect == NULL && has_sound_lists(heap, page->sc, &suspect))
			return true;
	}
	mend(heap, zone, suspect);
	return page->state != KSLAB_PAGE_FENCED;
}

void kslab_fence_empty(struct kslab_heap *heap, struct kslab_zone *zone, struct kslab_sc *sc)
{
	struct kslab_page *suspect = NULL, *tail;

	if (has_sound_ends(heap, &sc->empty, &suspect)) {
		tail = sc->empty.head->prev;
		if (check_page(heap, zone, tail) == NULL) {
			if (is_sound(heap, tail))
				return;
			suspect = tail;
		}
	}
	mend(heap, zone, suspect);
}

/* Return: false: *suspect is the page where the list breaks, if that is one. */
static bool is_list_sound(struct kslab_heap *heap, struct kslab_zone *zone,
			  const struct kslab_page_list *list, struct kslab_page **suspect)
{
	struct kslab_page *page = list->head;

	if (page != NULL && !is_metadata(heap, page))
		return false;
	for (; page != NULL; page = kslab_page_list_after(list, page)) {
		if (check_page(heap, zone, page) != NULL)
			return false;
		if (!is_sound(heap, page)) {
			*suspect = page;
			return false;
		}
	}
	return true;
}

void kslab_fence_zone(struct kslab_heap *heap, struct kslab_zone *zone)
{
	bool sound = sift_mail(heap, zone);
	struct kslab_page *suspect = NULL;
	struct kslab_sc *sc = NULL;

	while (sound && (sc = kslab_zone_next_sc(zone, sc)) != NULL) {
		sound = (sc->page == NULL || check_page(heap, zone, sc->page) == NULL) &&
			is_list_sound(heap, zone, &sc->partial, &suspect) &&
			is_list_sound(heap, zone, &sc->full, &suspect) &&
			is_list_sound(heap, zone, &sc->empty, &suspect);
	}
	if (!sound)
		mend(heap, zone, suspect);
}

/* ---- report, and the end --------------------------------------------------------------------- */

/* Bytes of the map from an address on that lead to a descriptor. */
static size_t mapped_bytes(const struct kslab_heap *heap, const struct kslab_page *page,
			   uintptr_t address)
{
	uintptr_t end = address;

	while (kslab_page_map_find(&heap->map, end) == page)
		end += (uintptr_t)1 << KSLAB_CFG_GRAIN_SHIFT;
	return end - address;
}

void kslab_fence_report(struct kslab_heap *heap, struct kslab_page *page, const void *caller)
{
	struct kslab_page *next;

	for (; page != NULL; page = next) {
		struct kslab_report report = { .fault = KSLAB_FAULT_CORRUPT_METADATA,
					       .pointer = page,
					       .page = (const void *)page->data,
					       .page_bytes = mapped_bytes(heap, page, page->data),
					       .caller = caller,
					       .what = (const char *)page->prev };

		next = page->next;
		page->next = page->prev = NULL;
		kslab_report_fault(heap, &report);
	}
}

static void release_fenced(void *ctx, struct kslab_page *page, uintptr_t address)
{
	struct kslab_heap *heap = ctx;
	size_t bytes = mapped_bytes(heap, page, address);

	if (page->state != KSLAB_PAGE_FENCED)
		return;
	kslab_page_map_set(&heap->map, address, bytes, &kslab_page_released);
	kslab_source_free(heap, address, bytes >> heap->page_shift);
}

void kslab_fence_release(struct kslab_heap *heap)
{
	if (KSLAB_LOAD_RELAXED(&heap->fenced_pages) != 0)
		each_mapped(heap, release_fenced, heap);
}
