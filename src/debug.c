/* SPDX-License-Identifier: MIT
 * debug.c - owns the contents of slots at debug levels 1 and 2: redzones, poison, trailers, the
 * quarantine. Rank: 5.  Runs: any CPU, any level; kslab_debug_retire inside an entered zone, the
 * others outside. Source: own; redzone and poison as in Linux SLUB, the order poison - publish -
 * verify is ours.
 *
 * Level 1. Whoever frees looks at the bits, verifies, poisons, and only then sets the bit; the
 * owner that finds the bit finds the poison. Of two frees at once both may pass the look; the bit
 * decides which one was first. A free that finds the code of a free slot has met the other one:
 * DOUBLE_FREE. Level 2. The trailer's state goes LIVE -> BUSY by compare-and-swap, so exactly one
 * free ever passes, and BUSY
 * -> FREED when the slot is poisoned. The object then stays in the ring with its bits saying live;
 * leaving the ring sets the bit. A free while it is there is a DOUBLE_FREE with both callers,
 * whatever came in between.
 *
 * Most calls don't come here: debug_quick.c has the same in the same order of accesses, for slots of
 * a class in pages of the CPU's own.
 */
#include "debug.h"
#include "debug_slot.h"
#include "inject.h"

/* Looks at a damaged slot before it is believed to be none that another CPU is freeing just now. */
#define LOOKS 64u

/* Objects that leave the ring by one look at it. */
#define BATCH 8u

/* A slot as it is seen through its contents. */
enum verdict {
	SLOT_FINE, /* live, redzone sound */
	SLOT_FREE, /* free already, or another free of it is under way */
	SLOT_DAMAGED, /* live, redzone overwritten: the report is filled in */
};

void kslab_debug_init(struct kslab_heap *heap)
{
	heap->debug_free_word =
		heap->debug_flags & KSLAB_DEBUG_ZERO_ON_FREE ? 0 : words_of(KSLAB_DEBUG_FREE_BYTE);
	heap->debug_new_word =
		heap->debug_flags & KSLAB_DEBUG_ZERO_ON_ALLOC ? 0 : heap->debug_free_word;
}

/* ---- judge a slot by its contents ------------------------------------------------------------ */

/*
 * A live slot. Return: NONE, or the first byte known to be wrong. *kind: of level 0, as in info_of.
 */
static size_t live_damage(const struct slot *slot, size_t *n, unsigned *kind)
{
	size_t wrong = NONE, end = slot->room, at;

	*kind = ROUTED;
	if (slot->cache == NULL && slot->trailer == NULL &&
	    KSLAB_LIKELY(read_sound_tail((uintptr_t)slot->start, slot->bytes, hash_of(slot), n)))
		return NONE;
	if (slot->trailer != NULL) {
		wrong = read_trailer(slot, n, kind);
	} else if (slot->cache == NULL) {
		wrong = read_tail(slot, n, kind);
		end = slot->bytes - (slot->bytes - *n < TAIL_LONG ? 2 : TAIL_LONG);
	} else {
		*n = slot->cache->size;
	}
	if (wrong != NONE)
		return wrong;
	at = find_other(slot->start + *n, end - *n, REDZONE);
	if (at != NONE)
		return *n + at;
	if (end != slot->room)
		return find_in_tail(slot, slot->bytes - *n);
	return slot->cache != NULL && slot->has_code && code_of(slot) != CODE_LONG ? slot->room
										   : NONE;
}

/* A free slot. */
static size_t free_damage(const struct kslab_heap *heap, const struct slot *slot)
{
	size_t from = slot->poisons ? 0 : slot->cache->size, at;

	if (KSLAB_LIKELY(is_free_sound(heap, slot)))
		return NONE;
	at = find_other(slot->start + from, slot->room - from,
			slot->poisons ? poison(heap) : REDZONE);
	if (at != NONE)
		return from + at;
	if (slot->trailer != NULL &&
	    KSLAB_LOAD_ACQUIRE(&slot->trailer->state) != sum(slot->trailer, FREED))
		return slot->room;
	return slot->has_code && code_of(slot) != CODE_FREE ? slot->room : NONE;
}

/* By its bits, or because it is in quarantine. */
static bool is_free(const struct kslab_page *page, uint32_t index, const struct slot *slot)
{
	return is_free_bit(page, index) || (slot->trailer != NULL && is_freed(slot->trailer));
}

/* Level 1: the contents say free, the bit does not yet, or no more. */
static bool is_on_its_way(const struct kslab_heap *heap, const struct slot *slot)
{
	return slot->has_code && code_of(slot) == CODE_FREE &&
	       (!slot->poisons || *slot->start == poison(heap));
}

static void describe(const struct kslab_heap *heap, const struct kslab_page *page,
		     const struct slot *slot, struct kslab_report *report)
{
	report->object = slot->start;
	report->object_bytes = slot->bytes;
	report->page = (const void *)page->data;
	report->page_bytes = (size_t)page->pages << heap->page_shift;
	if (report->pointer == NULL)
		report->pointer = slot->start;
	if (slot->trailer != NULL && is_whole(slot->trailer)) {
		report->alloc_caller = slot->trailer->alloc_caller;
		report->free_caller = slot->trailer->free_caller;
	}
}

static enum verdict judge(struct kslab_heap *heap, const struct kslab_page *page, uint32_t index,
			  const struct slot *slot, size_t *n, struct kslab_report *report)
{
	unsigned kind;
	size_t wrong;

	if (is_free(page, index, slot))
		return SLOT_FREE;
	wrong = live_damage(slot, n, &kind);
	if (wrong == NONE)
		return SLOT_FINE;
	/*
	 * Another free may have come in between; its state or code is on its way to us, if not here
	 * yet.
	 */
	for (unsigned look = 0; look < LOOKS; look++) {
		if (is_free(page, index, slot) || is_on_its_way(heap, slot))
			return SLOT_FREE;
		KSLAB_PORT_RELAX();
	}
	report->fault = KSLAB_FAULT_REDZONE;
	report->count = wrong;
	report->what = "redzone: bytes behind the object were overwritten; it stays live";
	describe(heap, page, slot, report);
	return SLOT_DAMAGED;
}

bool kslab_debug_measure(struct kslab_heap *heap, const struct kslab_page *page, uint32_t index,
			 size_t *n, const void *caller)
{
	const struct slot slot = slot_of(heap, page, index);
	struct kslab_report report = { .caller = caller };
	enum verdict verdict = judge(heap, page, index, &slot, n, &report);

	if (verdict == SLOT_FINE)
		return true;
	*n = 0;
	if (verdict == SLOT_FREE) {
		kslab_heap_fault_pointer(heap, slot.start, NULL, caller);
		return false;
	}
	kslab_heap_fail(heap, KSLAB_BAD_FREE);
	kslab_report_fault(heap, &report);
	return false;
}

size_t kslab_debug_inspect(const struct kslab_heap *heap, const struct kslab_page *page,
			   uint32_t index, const char **what)
{
	const struct slot slot = slot_of(heap, page, index);
	unsigned kind;
	size_t n;

	if (!is_free_bit(page, index) && is_live_sound(&slot))
		return NONE;
	/* Poisoned although its bit says live: just taken, or about to be given back. */
	if (is_free(page, index, &slot) || is_on_its_way(heap, &slot)) {
		*what = "a free object was written to";
		return free_damage(heap, &slot);
	}
	*what = "the redzone of a live object was overwritten";
	return live_damage(&slot, &n, &kind);
}

bool kslab_debug_walk(const struct kslab_heap *heap, const struct kslab_page *page, uint32_t index,
		      size_t *bytes)
{
	struct slot slot;
	unsigned kind;
	size_t n;

	if (page->state == KSLAB_PAGE_LARGE) {
		*bytes = page->bits[0].remote;
		return true;
	}
	slot = slot_of(heap, page, index);
	if (slot.trailer != NULL && is_freed(slot.trailer))
		return false;
	*bytes = live_damage(&slot, &n, &kind) == NONE ? n : slot.bytes;
	return true;
}

/* ---- sizes ----------------------------------------------------------------------------------- */

void kslab_debug_grow(const struct kslab_heap *heap, size_t *n, size_t *align)
{
	size_t natural = natural_align(*n);

	if (*n > KSLAB_CLASS_MAX_BYTES)
		return;
	/*
	 * What level 0 gives by the choice of the class has to be asked for, as the class is
	 * another one.
	 */
	if (natural > heap->page_bytes || (*n > heap->page_bytes && !heap->packs))
		natural = heap->page_bytes;
	if (*align < natural)
		*align = natural;
	if (heap->debug_level >= 2)
		*n += REDZONE_MIN + sizeof(struct trailer);
	else
		*n += *n != 0 ? SLACK_MIN : NOTHING_MIN;
}

static size_t round_up(size_t n, size_t align)
{
	return (n + align - 1) & ~(align - 1);
}

size_t kslab_debug_cache_slot(const struct kslab_heap *heap, size_t size, size_t align)
{
	size_t bare = round_up(size, align), slot;
	/* The source may have nothing but single frames: what fits one at level 0 has to. */
	size_t limit = bare <= heap->page_bytes ? heap->page_bytes : heap->max_page_bytes;

	if (align < TYPE_ALIGN && size % TYPE_ALIGN == 0)
		align = TYPE_ALIGN;
	slot = round_up(size + REDZONE_MIN + sizeof(struct trailer), align);
	if (heap->debug_level >= 2 && slot <= limit)
		return slot;
	slot = round_up(size + SLACK_MIN, align);
	return slot <= limit ? slot : bare;
}

static bool is_right_large(struct kslab_heap *heap, const struct kslab_page *page, size_t align,
			   size_t n)
{
	unsigned want = kslab_heap_plain_class(heap, n, align);
	unsigned cls = kslab_heap_plain_class(heap, page->bits[0].remote, align);

	/* A size class at level 0, a page run only because there was no room for its redzone? */
	if (want != KSLAB_CLASSES || cls != KSLAB_CLASSES)
		return want == cls;
	return n <= kslab_large_bytes(heap, page) &&
	       (n == 0 || kslab_large_bytes(heap, page) - n < heap->page_bytes);
}

bool kslab_debug_is_right_size(struct kslab_heap *heap, const struct kslab_page *page,
			       const void *p, size_t align, size_t n)
{
	struct slot slot;
	unsigned cls, kind;
	uint32_t index;
	size_t asked;

	if (page->state == KSLAB_PAGE_LARGE)
		return is_right_large(heap, page, align, n);
	index = kslab_page_index(page, (uintptr_t)p);
	if (!kslab_fence_is_known(heap, page) || page->sc->cls == KSLAB_CLASS_CACHE ||
	    index >= page->slots)
		return true; /* another fault, or none that is ours: the free itself will find it */
	slot = slot_of(heap, page, index);
	if (is_free(page, index, &slot) || live_damage(&slot, &asked, &kind) != NONE)
		return true;
	cls = kind == ROUTED ? kslab_heap_plain_class(heap, asked, 1) : kind;
	return kslab_heap_plain_class(heap, n, align) == cls;
}

/* ---- the life of a slot ---------------------------------------------------------------------- */

/*
 * The ring is made with a page, because a free must not ask for memory. Without it objects are
 * freed at once.
 */
static void start_quarantine(struct kslab_heap *heap, unsigned flags)
{
	struct kslab_quarantine *quarantine = &heap->quarantine;
	struct kslab_quarantined *ring, *none = NULL;
	enum kslab_reason reason;

	if (quarantine->capacity == 0 || KSLAB_LOAD_RELAXED(&quarantine->ring) != NULL)
		return;
	ring = kslab_meta_alloc(heap, quarantine->capacity * sizeof(*ring), flags, &reason);
	/* Another CPU may have been faster: then ours is unused metadata until the heap ends. */
	if (ring != NULL)
		KSLAB_CAS_RELEASE(&quarantine->ring, &none, ring);
}

/* Behind the object; a body that is poisoned is so already. */
static void make_free(const struct slot *slot)
{
	if (!slot->poisons)
		fill(slot->start + slot->cache->size, slot->room - slot->cache->size, REDZONE);
	if (slot->trailer != NULL) {
		memset(slot->trailer, 0, sizeof(*slot->trailer));
		seal(slot->trailer, FREED);
	}
	set_code(slot, CODE_FREE);
	close_slot(slot);
}

void kslab_debug_prepare(struct kslab_heap *heap, struct kslab_page *page, size_t bytes,
			 const struct kslab_cache *cache, unsigned flags)
{
	struct slot slot = slot_at(heap, page->data, bytes, cache);

	if (heap->debug_level >= 2)
		start_quarantine(heap, flags);
	if (slot.poisons)
		memset(slot.start, poison(heap), bytes * page->slots);
	for (uint32_t i = 0; i < page->slots; i++) {
		slot = slot_at(heap, page->data + (uintptr_t)i * bytes, bytes, cache);
		make_free(&slot);
	}
}

void kslab_debug_drop(struct kslab_heap *heap, const struct kslab_page *page, uint32_t index)
{
	const struct slot slot = slot_of(heap, page, index);

	open_slot(&slot);
	if (slot.poisons)
		fill(slot.start, slot.room, poison(heap));
	make_free(&slot);
}

/* Verify a slot that is to be issued; its first n bytes become what a new object holds. */
static size_t take(struct kslab_heap *heap, const struct slot *slot, size_t n, unsigned flags)
{
	size_t words = n & ~(sizeof(uintptr_t) - 1), wrong, at;

	if (!slot->poisons) {
		wrong = free_damage(heap, slot);
		if (flags & KSLAB_ZERO)
			fill(slot->start, n, 0);
		return wrong;
	}
	wrong = replace(slot->start, words, poison(heap), fresh(heap, flags));
	at = wrong == NONE ? find_other(slot->start + words, slot->room - words, poison(heap))
			   : NONE;
	if (at != NONE)
		wrong = words + at;
	fill(slot->start + words, n - words, fresh(heap, flags));
	if (wrong != NONE)
		return wrong;
	if (slot->trailer != NULL &&
	    KSLAB_LOAD_ACQUIRE(&slot->trailer->state) != sum(slot->trailer, FREED))
		return slot->room;
	return slot->has_code && code_of(slot) != CODE_FREE ? slot->room : NONE;
}

/*
 * slot by value, here and in kslab_debug_issue: one whose address got about would have to live in
 * memory.
 */
static KSLAB_COLD void issue_slowly(struct kslab_heap *heap, struct slot slot,
				    const struct kslab_request *request, size_t n, unsigned kind)
{
	struct kslab_page *page = kslab_page_map_find(&heap->map, (uintptr_t)slot.start);
	struct kslab_report report = { .fault = KSLAB_FAULT_USE_AFTER_FREE,
				       .caller = request->caller,
				       .what = "use after free: a free object was written to" };
	size_t wrong;

	open_slot(&slot);
	wrong = take(heap, &slot, n, request->flags);
	if (KSLAB_UNLIKELY(wrong != NONE))
		describe(heap, page, &slot, &report);
	arm(&slot, n, kind);
	if (slot.trailer != NULL) {
		struct trailer *trailer = slot.trailer;

		if (KSLAB_UNLIKELY(!is_whole(trailer)))
			memset(trailer, 0, sizeof(*trailer));
		trailer->alloc_caller = request->caller;
		trailer->serial = next_serial(heap);
		trailer->info = info_of(request->cache == NULL ? n : 0, kind) ^ hash_of(&slot);
		seal(trailer, LIVE);
	}
	give_slot(&slot, n, is_zeroed(heap, request->flags));
	if (KSLAB_UNLIKELY(wrong != NONE)) {
		report.count = wrong;
		kslab_report_fault(heap, &report);
	}
}

/* A slot of a class that is not what a free one should be. */
KSLAB_COLD void *kslab_debug_issue_slowly(struct kslab_heap *heap, uintptr_t start, size_t bytes,
					  size_t n, unsigned kind, const void *caller)
{
	const struct kslab_request request = { NULL, 0, kind >> 8, caller };

	issue_slowly(heap, slot_at(heap, start, bytes, NULL), &request, n, kind & 0xff);
	return (void *)start;
}

void kslab_debug_issue(struct kslab_heap *heap, void *object, const struct kslab_request *request,
		       size_t n, size_t align)
{
	size_t bytes = request->cache != NULL ? request->cache->slot_bytes
					      : kslab_class_bytes(request->cls);

	if (request->cache == NULL)
		kslab_debug_issue_class(heap, (uintptr_t)object, bytes, n,
					(align == 1 ? ROUTED
						    : kslab_heap_plain_class(heap, n, align)) |
						request->flags << 8,
					request->caller);
	else
		issue_slowly(heap, slot_at(heap, (uintptr_t)object, bytes, request->cache), request,
			     n, ROUTED);
}

void *kslab_debug_finish(struct kslab_heap *heap, void *object, const struct kslab_request *request,
			 size_t n, size_t align)
{
	/*
	 * The room for a redzone must not make a single frame too small: then it is what the frame
	 * has left.
	 */
	if (object == NULL && n <= heap->page_bytes &&
	    kslab_class_bytes(request->cls) > heap->page_bytes &&
	    kslab_heap_last_error(heap) == KSLAB_NO_PAGES) {
		object = kslab_large_alloc(heap, n, align, request->flags);
		if (object != NULL)
			kslab_debug_large_issue(heap, object, n, request->flags);
	} else if (object != NULL) {
		kslab_debug_issue(heap, object, request, n, align);
	}
	return object;
}

bool kslab_debug_resize(struct kslab_heap *heap, const struct kslab_page *page, void *object,
			size_t old, size_t n)
{
	const struct slot slot = slot_at(heap, (uintptr_t)object, page->sc->size, NULL);
	size_t kept = n < old ? n : old;

	if (slot.trailer != NULL) {
		uintptr_t live = sum(slot.trailer, LIVE);

		if (!KSLAB_CAS_ACQ_REL(&slot.trailer->state, &live, busy(slot.trailer)))
			return false;
	}
	KSLAB_PORT_UNPOISON(slot.start + kept, slot.bytes - kept);
	if (n > old)
		fill(slot.start + old, n - old, fresh(heap, 0));
	arm(&slot, n, ROUTED);
	if (slot.trailer != NULL) {
		slot.trailer->info = info_of(n, ROUTED) ^ hash_of(&slot);
		seal(slot.trailer, LIVE);
	}
	KSLAB_PORT_UNPOISON(slot.start + kept, n - kept);
	KSLAB_PORT_POISON(slot.start + n, slot.bytes - n);
	return true;
}

bool kslab_debug_retire(struct kslab_heap *heap, const struct kslab_page *page, uint32_t index,
			struct kslab_retiring *retiring)
{
	const struct slot slot = slot_of(heap, page, index);
	size_t n;

	retiring->report.caller = retiring->caller;
	if (judge(heap, page, index, &slot, &n, &retiring->report) != SLOT_FINE)
		return false;
	if (slot.trailer != NULL) {
		uintptr_t live = sum(slot.trailer, LIVE);

		/*
		 * Of several frees at once one wins; what it writes from here on is published by
		 * seal().
		 */
		if (!KSLAB_CAS_ACQ_REL(&slot.trailer->state, &live, busy(slot.trailer)))
			return false;
		slot.trailer->free_caller = retiring->caller;
	}
	open_slot(&slot);
	/*
	 * Before the poison: a free that meets this one looks here when it finds a redzone damaged
	 * (judge).
	 */
	set_code(&slot, CODE_FREE);
	KSLAB_BARRIER();
	if (slot.poisons)
		fill(slot.start, slot.room, poison(heap));
	if (slot.trailer != NULL)
		seal(slot.trailer, FREED);
	close_slot(&slot);
	return true;
}

void kslab_debug_release(struct kslab_heap *heap, const struct kslab_page *page)
{
	KSLAB_PORT_UNPOISON((void *)page->data, (size_t)page->pages << heap->page_shift);
	if (kslab_page_owner(page) == NULL)
		return; /* was never in use */
	for (uint32_t i = 0; i < page->slots; i++) {
		const struct slot slot = slot_of(heap, page, i);
		struct kslab_report report = {
			.fault = KSLAB_FAULT_USE_AFTER_FREE,
			.count = free_damage(heap, &slot),
			.what = "use after free: found when the page was given back"
		};

		if (KSLAB_LIKELY(report.count == NONE))
			continue;
		describe(heap, page, &slot, &report);
		kslab_report_fault(heap, &report);
	}
}

/* ---- quarantine ------------------------------------------------------------------------------ */

/* Put an object in (0: none), take out what is over the limit. Return: how many were taken out. */
static unsigned turn(struct kslab_heap *heap, uintptr_t object, size_t bytes, size_t limit,
		     uintptr_t out[BATCH])
{
	struct kslab_quarantine *quarantine = &heap->quarantine;
	struct kslab_lock_state state;
	unsigned count = 0;

	/* Pairs with the CAS of start_quarantine. */
	if (KSLAB_LOAD_ACQUIRE(&quarantine->ring) == NULL || !kslab_heap_lock(heap, &state)) {
		out[0] = object;
		return object != 0;
	}
	quarantine->bytes += bytes;
	while (count < BATCH && quarantine->count != 0 &&
	       (quarantine->bytes > limit ||
		(object != 0 && quarantine->count == quarantine->capacity))) {
		const struct kslab_quarantined *oldest = &quarantine->ring[quarantine->head];

		quarantine->head =
			quarantine->head + 1 == quarantine->capacity ? 0 : quarantine->head + 1;
		quarantine->count--;
		quarantine->bytes -= oldest->bytes;
		out[count++] = oldest->object;
	}
	if (object != 0) {
		size_t tail = quarantine->head + quarantine->count++;
		struct kslab_quarantined *newest =
			&quarantine
				 ->ring[tail < quarantine->capacity ? tail
								    : tail - quarantine->capacity];

		newest->object = object;
		newest->bytes = bytes;
	}
	kslab_heap_unlock(heap, &state);
	return count;
}

static void leave_quarantine(struct kslab_heap *heap, uintptr_t object, const void *caller)
{
	struct kslab_page *page = kslab_page_map_find(&heap->map, object);
	uint32_t index = kslab_page_index(page, object);
	struct kslab_zone *zone;
	kslab_word *freed, word = 0;

	if (index >= page->slots) /* fenced meanwhile */
		return;
	KSLAB_PORT_PIN();
	zone = kslab_heap_zone(heap);
	if (KSLAB_LOAD_RELAXED(&zone->owner.key) != 0) {
		kslab_zone_enter(zone);
		if (is_plain(zone, page))
			word = quiet_free(page, index, &freed);
		if (word != 0)
			KSLAB_STORE_RELEASE(freed, word);
		kslab_zone_leave(zone);
	}
	KSLAB_PORT_UNPIN();
	if (KSLAB_UNLIKELY(word == 0))
		kslab_heap_set_free(heap, page, index, NULL, caller);
}

static void put(struct kslab_heap *heap, uintptr_t object, size_t bytes, size_t limit,
		const void *caller)
{
	uintptr_t out[BATCH];
	unsigned count;

	do {
		count = turn(heap, object, bytes, limit, out);
		for (unsigned i = 0; i < count; i++)
			leave_quarantine(heap, out[i], caller);
		if (KSLAB_LOAD_RELAXED(&heap->quarantine.ring) == NULL)
			return;
		object = 0;
		bytes = 0;
	} while (count == BATCH);
}

void kslab_debug_quarantine(struct kslab_heap *heap, uintptr_t object, size_t bytes,
			    const void *caller)
{
	put(heap, object, bytes, heap->quarantine.max_bytes, caller);
}

void kslab_debug_flush(struct kslab_heap *heap)
{
	if (KSLAB_LOAD_RELAXED(&heap->quarantine.ring) != NULL)
		put(heap, 0, 0, 0, KSLAB_CALLER());
}

void kslab_debug_free(struct kslab_heap *heap, struct kslab_page *page, uint32_t index,
		      struct kslab_cache *cache, const void *caller)
{
	struct kslab_retiring retiring = { .cache = cache, .caller = caller };
	const struct slot slot = slot_of(heap, page, index);

	if (slot.trailer != NULL) {
		if (kslab_debug_retire(heap, page, index, &retiring)) {
			kslab_debug_quarantine(heap, (uintptr_t)slot.start, slot.bytes, caller);
			return;
		}
	} else if (kslab_heap_set_free(heap, page, index, &retiring, caller)) {
		return;
	}
	if (retiring.is_fenced) {
		kslab_heap_fail(heap, KSLAB_BAD_FREE);
		return;
	}
	if (retiring.report.fault == KSLAB_FAULT_NONE) {
		kslab_heap_fault_pointer(heap, slot.start, cache, caller);
		return;
	}
	kslab_heap_fail(heap, KSLAB_BAD_FREE);
	kslab_report_fault(heap, &retiring.report);
}

kslab_word kslab_debug_held(const struct kslab_heap *heap, const struct kslab_page *page,
			    unsigned i)
{
	kslab_word held = 0;

	if (heap->debug_level < 2)
		return 0;
	for (unsigned b = 0; b < KSLAB_WORD_BITS && i * KSLAB_WORD_BITS + b < page->slots; b++) {
		uint32_t index = i * KSLAB_WORD_BITS + b;
		const struct slot slot = slot_of(heap, page, index);

		if (slot.trailer != NULL && !is_free_bit(page, index) && is_freed(slot.trailer))
			held |= kslab_bit(index);
	}
	return held;
}

static kslab_word live_word(struct kslab_heap *heap, const struct kslab_page *page, unsigned i)
{
	kslab_word live = kslab_page_live_word(page, i);
	struct kslab_lock_state state;

	if (live == 0 || !kslab_heap_try_lock(heap, &state))
		return live;
	/* Under the lock the memory of what the map leads to does not go. */
	if (kslab_page_map_look(&heap->map, page->data) == page)
		live &= ~kslab_debug_held(heap, page, i);
	kslab_heap_unlock(heap, &state);
	return live;
}

uint32_t kslab_debug_live(struct kslab_heap *heap, const struct kslab_page *page)
{
	uint32_t live = 0;

	if (heap->debug_level < 2)
		return kslab_page_live(page);
	for (unsigned i = 0; i < kslab_page_words(page); i++)
		live += kslab_popcount(live_word(heap, page, i));
	return live;
}

uintptr_t kslab_debug_sequence(struct kslab_heap *heap, const struct kslab_page *page,
			       uint32_t index)
{
	uintptr_t now = KSLAB_LOAD_RELAXED(&heap->debug_serial);

	if (page->state == KSLAB_PAGE_LARGE)
		return page->inverse != 0 ? now - ((uint32_t)now - page->inverse) : 0;
	if (page->state != KSLAB_PAGE_FENCED && page->sc != NULL) {
		const struct slot slot = slot_of(heap, page, index);

		if (slot.trailer != NULL && is_whole(slot.trailer))
			return slot.trailer->serial;
	}
	return 0;
}

void kslab_debug_callers(const struct kslab_heap *heap, const struct kslab_page *page,
			 struct kslab_report *report)
{
	struct slot slot;

	if (heap->debug_level < 2 || report->object == NULL || !kslab_fence_is_known(heap, page))
		return;
	slot = slot_at(heap, (uintptr_t)report->object, page->sc->size, cache_of(page));
	if (slot.trailer != NULL && is_whole(slot.trailer)) {
		report->alloc_caller = slot.trailer->alloc_caller;
		report->free_caller = slot.trailer->free_caller;
	}
}

/* ---- large blocks ---------------------------------------------------------------------------- */

static void arm_large(const struct kslab_heap *heap, const struct kslab_page *page, size_t n)
{
	fill((unsigned char *)page->data + n, kslab_large_bytes(heap, page) - n, REDZONE);
}

void kslab_debug_large_issue(struct kslab_heap *heap, void *object, size_t n, unsigned flags)
{
	struct kslab_page *page = kslab_page_map_find(&heap->map, (uintptr_t)object);

	if (!(flags & KSLAB_ZERO) && (page->inverse == 0 || fresh(heap, flags) != poison(heap)))
		fill(object, n, fresh(heap, flags));
	arm_large(heap, page, n);
	page->inverse = (uint32_t)next_serial(heap);
	if (!is_zeroed(heap, flags))
		KSLAB_PORT_UNPOISON(object, n);
	KSLAB_PORT_POISON((unsigned char *)object + n, kslab_large_bytes(heap, page) - n);
}

size_t kslab_debug_large_inspect(const struct kslab_heap *heap, const struct kslab_page *page)
{
	const unsigned char *data = (const unsigned char *)page->data;
	size_t n = page->bits[0].remote, bytes = kslab_large_bytes(heap, page), wrong;

	if (KSLAB_LOAD_ACQUIRE(&page->owner) != kslab_large_tag(heap))
		return find_other(data, bytes, poison(heap));
	wrong = find_other(data + n, bytes - n, REDZONE);
	return wrong != NONE ? n + wrong : NONE;
}

bool kslab_debug_large_measure(struct kslab_heap *heap, const struct kslab_page *page,
			       const void *caller)
{
	size_t bytes = kslab_large_bytes(heap, page), wrong = kslab_debug_large_inspect(heap, page);
	struct kslab_report report = {
		.fault = KSLAB_FAULT_REDZONE,
		.pointer = (const void *)page->data,
		.object = (const void *)page->data,
		.object_bytes = bytes,
		.page = (const void *)page->data,
		.page_bytes = bytes,
		.count = wrong,
		.caller = caller,
		.what = "redzone: bytes behind the large block were overwritten; it stays live"
	};

	/* Another free that won meanwhile has poisoned it: let the owner decide. */
	if (KSLAB_LIKELY(wrong == NONE) ||
	    KSLAB_LOAD_ACQUIRE(&page->owner) != kslab_large_tag(heap))
		return true;
	kslab_heap_fail(heap, KSLAB_BAD_FREE);
	kslab_report_fault(heap, &report);
	return false;
}

void kslab_debug_large_open(const struct kslab_heap *heap, const struct kslab_page *page)
{
	size_t n = page->bits[0].remote;

	KSLAB_PORT_UNPOISON((unsigned char *)page->data + n, kslab_large_bytes(heap, page) - n);
}

void kslab_debug_large_resize(struct kslab_heap *heap, struct kslab_page *page, size_t old,
			      size_t n)
{
	unsigned char *data = (unsigned char *)page->data;

	if (n > old)
		fill(data + old, n - old, fresh(heap, 0));
	arm_large(heap, page, n);
	if (n > old)
		KSLAB_PORT_UNPOISON(data + old, n - old);
	KSLAB_PORT_POISON(data + n, kslab_large_bytes(heap, page) - n);
}

void kslab_debug_large_retire(struct kslab_heap *heap, struct kslab_page *page)
{
	KSLAB_PORT_UNPOISON((void *)page->data, kslab_large_bytes(heap, page));
	fill((unsigned char *)page->data, kslab_large_bytes(heap, page), poison(heap));
	KSLAB_PORT_POISON((void *)page->data, kslab_large_bytes(heap, page));
}

bool kslab_debug_large_verify(struct kslab_heap *heap, const struct kslab_page *page)
{
	size_t bytes = kslab_large_bytes(heap, page);
	size_t wrong = find_other((const unsigned char *)page->data, bytes, poison(heap));
	struct kslab_report report = {
		.fault = KSLAB_FAULT_USE_AFTER_FREE,
		.pointer = (const void *)page->data,
		.object = (const void *)page->data,
		.object_bytes = bytes,
		.page = (const void *)page->data,
		.page_bytes = bytes,
		.count = wrong,
		.what = "use after free: a free large block was written to"
	};

	KSLAB_PORT_UNPOISON((void *)page->data, bytes);
	if (KSLAB_UNLIKELY(wrong != NONE))
		kslab_report_fault(heap, &report);
	return wrong == NONE;
}
