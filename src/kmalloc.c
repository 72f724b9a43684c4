/* SPDX-License-Identifier: MIT
 * kmalloc.c - owns the malloc-shaped interface: overflow, alignment, realloc, bulk; on any heap and
 * on the default one. Rank: 6.  Runs anywhere.
 */
#include "debug.h"
#include "heap.h"

/* ---- allocate -------------------------------------------------------------------------------- */

void *kslab_heap_malloc(struct kslab_heap *heap, size_t n)
{
	return kslab_heap_malloc_fast(heap, n, NULL);
}

void *kslab_malloc(size_t n)
{
	return kslab_heap_malloc_fast(&kslab_default_heap, n, NULL);
}

/* Clear the n bytes asked for, in words: slots are multiples of 8 bytes. */
KSLAB_INLINE void *zero(void *object, size_t n)
{
	uintptr_t *word = object;

	if (KSLAB_UNLIKELY(object == NULL))
		return NULL;
	if (n > 128) {
		memset(object, 0, n);
		return object;
	}
	/*
	 * The barriers keep the compiler from making it a call of memset, dearer than the
	 * allocation.
	 */
	n = (n + sizeof(*word) - 1) / sizeof(*word);
	for (; n >= 4; n -= 4, word += 4) {
		word[0] = word[1] = word[2] = word[3] = 0;
		KSLAB_BARRIER();
	}
	for (; n != 0; n--) {
		*word++ = 0;
		KSLAB_BARRIER();
	}
	return object;
}

KSLAB_INLINE void *zalloc(struct kslab_heap *heap, size_t n)
{
	/*
	 * Large runs may be known to be zero; debug levels know the exact end. One compare with
	 * that of malloc_fast.
	 */
	if (KSLAB_UNLIKELY((n - 1) / 8 >= heap->route_limit))
		return heap->debug_level != 0
			       ? kslab_debug_malloc(n, heap, KSLAB_ZERO, KSLAB_CALLER())
			       : kslab_heap_alloc_any(heap, n, 1, KSLAB_ZERO, KSLAB_CALLER());
	return zero(kslab_heap_malloc_fast(heap, n, KSLAB_CALLER()), n);
}

void *kslab_heap_zalloc(struct kslab_heap *heap, size_t n)
{
	return zalloc(heap, n);
}

KSLAB_INLINE void *zalloc_array(struct kslab_heap *heap, size_t count, size_t size)
{
	size_t n;

	if (KSLAB_UNLIKELY(__builtin_mul_overflow(count, size, &n)))
		return kslab_heap_fail(heap, KSLAB_OVERFLOW);
	return zalloc(heap, n);
}

void *kslab_heap_calloc(struct kslab_heap *heap, size_t count, size_t size)
{
	return zalloc_array(heap, count, size);
}

void *kslab_heap_alloc(struct kslab_heap *heap, size_t n, size_t align, unsigned flags)
{
	if (flags & ~(KSLAB_ZERO | KSLAB_NOWAIT | KSLAB_RESERVE))
		return kslab_heap_fail(heap, KSLAB_BAD_ARGUMENT);
	return kslab_heap_alloc_any(heap, n, align, flags, KSLAB_CALLER());
}

void *kslab_heap_aligned_alloc(struct kslab_heap *heap, size_t align, size_t n)
{
	return kslab_heap_alloc_any(heap, n, align, 0, KSLAB_CALLER());
}

size_t kslab_heap_good_size(struct kslab_heap *heap, size_t n)
{
	unsigned cls;

	if (heap->state != KSLAB_HEAP_READY || n > KSLAB_REQUEST_MAX)
		return 0;
	if (heap->debug_level != 0)
		return n;
	cls = kslab_heap_class(heap, n, 1);
	if (cls < KSLAB_CLASSES)
		return kslab_class_bytes(cls);
	return n == 0 ? heap->page_bytes : (n + heap->page_bytes - 1) & ~(heap->page_bytes - 1);
}

/* ---- realloc --------------------------------------------------------------------------------- */

/* Longer ones are left to memcpy. */
#define COPY_WORDS_MAX 64u

static void *move(struct kslab_heap *heap, void *p, size_t old, size_t n, const void *caller)
{
	void *fresh;

	if (heap->debug_level != 0)
		fresh = kslab_debug_malloc(n, heap, 0, caller);
	else if (n > old && kslab_large_may_hold(heap, n) && heap->route_limit != 0)
		fresh = kslab_large_grow(heap, n, caller);
	else
		fresh = kslab_heap_malloc_fast(heap, n, caller);
	if (fresh == NULL)
		return NULL;
	memcpy(fresh, p, old < n ? old : n);
	if (heap->debug_level == 0)
		kslab_heap_free_fast(heap, p, caller);
	else
		kslab_heap_free_cold(p, heap, caller);
	return fresh;
}

/* What a large block may be resized to. */
static bool is_run_size(struct kslab_heap *heap, size_t n)
{
	return (heap->debug_level == 0 && kslab_large_may_hold(heap, n)) ||
	       kslab_heap_class(heap, n, 1) == KSLAB_CLASSES;
}

static KSLAB_SLOW void *resize_slow(void *p, size_t n, struct kslab_heap *heap, const void *caller)
{
	struct kslab_page *page;
	size_t bytes;

	KSLAB_TAKE_CALLER(caller);
	if (p == NULL)
		return heap->debug_level == 0 ? kslab_heap_malloc_fast(heap, n, caller)
					      : kslab_debug_malloc(n, heap, 0, caller);
	if (n == 0) {
		kslab_heap_free_slow(heap, p, NULL, caller);
		return NULL;
	}
	page = kslab_heap_object(heap, p, &bytes, caller);
	if (page == NULL)
		return NULL;
	if (KSLAB_LOAD_RELAXED(&page->owner) & KSLAB_TAG_CACHE) {
		kslab_heap_fault_pointer(heap, p, NULL, caller);
		return NULL;
	}
	if (kslab_page_state(page) == KSLAB_PAGE_LARGE) {
		enum kslab_resize done = KSLAB_RESIZE_MOVE;

		/* Stays a page run unless it would fit a small class. */
		if (n > bytes / 4 && is_run_size(heap, n))
			done = kslab_large_resize(heap, page, (uintptr_t)p, n);
		if (done == KSLAB_RESIZE_DONE)
			return p;
		if (done == KSLAB_RESIZE_DEAD) {
			kslab_heap_fault_pointer(heap, p, NULL, caller);
			return NULL;
		}
	} else if (page->sc == NULL) { /* a block that was freed just now */
		kslab_heap_fault_pointer(heap, p, NULL, caller);
		return NULL;
	} else if (page->sc->cls == kslab_heap_class(heap, n, 1)) {
		if (heap->debug_level == 0 || kslab_debug_resize(heap, page, p, bytes, n))
			return p;
		kslab_heap_fault_pointer(heap, p, NULL, caller);
		return NULL;
	}
	return move(heap, p, bytes, n, caller);
}

/* The number of pages of a large block changes. */
static KSLAB_SLOW void *resize_pages(void *p, size_t n, struct kslab_heap *heap, const void *caller,
				     struct kslab_page *page)
{
	KSLAB_TAKE_CALLER(caller);
	if (n > kslab_large_bytes(heap, page) &&
	    kslab_large_resize(heap, page, (uintptr_t)p, n) == KSLAB_RESIZE_DONE)
		return p;
	return resize_slow(p, n, heap, caller);
}

/* What has no class: a large block, if its number of pages stays. */
static KSLAB_SLOW void *resize_large(void *p, size_t n, struct kslab_heap *heap, const void *caller,
				     struct kslab_page *page)
{
	/* an n that wraps leads to 0 pages, which no block has */
	size_t pages = (n + heap->page_bytes - 1) >> heap->page_shift;

	KSLAB_TAKE_CALLER(caller);
	if (KSLAB_UNLIKELY(KSLAB_LOAD_RELAXED(&page->owner) != kslab_large_tag(heap) ||
			   (uintptr_t)p != page->data || !kslab_large_may_hold(heap, n)))
		return resize_slow(p, n, heap, caller);
	if (pages != page->slots)
		return resize_pages(p, n, heap, caller, page);
	page->bits[0].remote = n;
	return p;
}

/* Copy n bytes between slots, whose lengths are multiples of words; short ones without a call. */
KSLAB_INLINE void copy(void *to, const void *from, size_t n)
{
	uintptr_t *out = to;
	const uintptr_t *in = from;

	if (n > COPY_WORDS_MAX) {
		memcpy(to, from, n);
		return;
	}
	for (size_t i = 0; i < (n + sizeof(*in) - 1) / sizeof(*in); i++) {
		out[i] = in[i];
		KSLAB_BARRIER(); /* or the compiler makes it a call of memcpy */
	}
}

/* A live object of a size class goes to another one. */
static KSLAB_SLOW void *move_plain(void *p, size_t n, struct kslab_heap *heap, const void *caller,
				   struct kslab_page *page, size_t old)
{
	void *fresh;

	KSLAB_TAKE_CALLER(caller);
	fresh = kslab_heap_malloc_fast(heap, n, caller);
	if (KSLAB_UNLIKELY(fresh == NULL))
		return NULL;
	copy(fresh, p, old < n ? old : n);
	kslab_heap_free_in(heap, p, page, caller);
	return fresh;
}

/* Is the slot a live object? As far as can be seen without a closer look. */
KSLAB_INLINE bool is_live(const struct kslab_page *page, uint32_t index)
{
	const kslab_word *bits;
	kslab_word free;

	if (KSLAB_UNLIKELY(index >= page->slots))
		return false;
	bits = &page->bits[0].avail + (size_t)(index / KSLAB_WORD_BITS) * 3;
	free = KSLAB_LOAD_ACQUIRE(&bits[2]);
	free |= KSLAB_LOAD_ACQUIRE(&bits[1]);
	free |= KSLAB_LOAD_RELAXED(&bits[0]);
	return !(free >> index % KSLAB_WORD_BITS & 1);
}

KSLAB_INLINE void *resize(void *p, size_t n, struct kslab_heap *heap, const void *caller)
{
	size_t top = kslab_page_map_top_index(&heap->map, (uintptr_t)p);
	struct kslab_page *page;
	const struct kslab_sc *sc;

	/* The limit is 0 where every call has to go the long way. */
	if (KSLAB_UNLIKELY(heap->route_limit == 0 || top >= heap->map.limit))
		goto slow;
	page = *kslab_page_map_entry(heap->map.top[top], (uintptr_t)p);
	sc = page->sc;
	if (sc == NULL)
		return resize_large(p, n, heap, KSLAB_TAIL_CALLER(caller), page);
	if (KSLAB_UNLIKELY(!is_live(page, kslab_page_index(page, (uintptr_t)p)) ||
			   sc->cls == KSLAB_CLASS_CACHE))
		goto slow;
	if (n <= sc->size && n > heap->size_below[sc->cls])
		return p;
	if (n != 0 && (n <= sc->size || !kslab_large_may_hold(heap, n)))
		return move_plain(p, n, heap, KSLAB_TAIL_CALLER(caller), page, sc->size);
slow:
	return resize_slow(p, n, heap, KSLAB_TAIL_CALLER(caller));
}

void *kslab_heap_realloc(struct kslab_heap *heap, void *p, size_t n)
{
	return resize(p, n, heap, NULL);
}

void *kslab_heap_reallocarray(struct kslab_heap *heap, void *p, size_t count, size_t size)
{
	size_t n;

	if (__builtin_mul_overflow(count, size, &n))
		return kslab_heap_fail(heap, KSLAB_OVERFLOW);
	return resize(p, n, heap, NULL);
}

/* ---- free ------------------------------------------------------------------------------------ */

void kslab_heap_free(struct kslab_heap *heap, void *p)
{
	kslab_heap_free_fast(heap, p, NULL);
}

void kslab_free(void *p)
{
	kslab_heap_free_fast(&kslab_default_heap, p, NULL);
}

/* The size that the caller believes in must lead to where the object lies. */
static bool is_right_size(struct kslab_heap *heap, const struct kslab_page *page, const void *p,
			  size_t align, size_t n)
{
	unsigned cls = kslab_heap_plain_class(heap, n, align);

	if (heap->debug_level != 0)
		return kslab_debug_is_right_size(heap, page, p, align, n);
	if (kslab_page_state(page) == KSLAB_PAGE_LARGE)
		return (cls == KSLAB_CLASSES || kslab_large_may_hold(heap, n)) &&
		       n <= kslab_large_bytes(heap, page) &&
		       (n == 0 || kslab_large_bytes(heap, page) - n < heap->page_bytes);
	return page->sc == NULL || page->sc->cls == KSLAB_CLASS_CACHE || page->sc->cls == cls;
}

static void free_sized(struct kslab_heap *heap, void *p, size_t align, size_t n, const void *caller)
{
	struct kslab_report report = {
		.fault = KSLAB_FAULT_WRONG_SIZE, .pointer = p, .count = n, .caller = caller
	};
	const struct kslab_page *page;

	if (p == NULL)
		return;
	page = kslab_page_map_find(&heap->map, (uintptr_t)p);
	if (kslab_page_state(page) != KSLAB_PAGE_IDLE &&
	    (!kslab_is_power_of_two(align) || !is_right_size(heap, page, p, align, n))) {
		size_t bytes;

		/* Another fault, if there is one, comes first. */
		if (kslab_heap_object(heap, p, &bytes, caller) == NULL)
			return;
		report.object = p;
		report.object_bytes = kslab_page_state(page) == KSLAB_PAGE_LARGE
					      ? kslab_large_bytes(heap, page)
					      : page->sc->size;
		report.page = (const void *)page->data;
		report.page_bytes = kslab_page_state(page) == KSLAB_PAGE_LARGE
					    ? report.object_bytes
					    : (size_t)page->pages << heap->page_shift;
		kslab_heap_fail(heap, KSLAB_BAD_FREE);
		kslab_report_fault(heap, &report);
		return;
	}
	kslab_heap_free_slow(heap, p, NULL, caller);
}

void kslab_heap_free_sized(struct kslab_heap *heap, void *p, size_t n)
{
	free_sized(heap, p, 1, n, KSLAB_CALLER());
}

void kslab_heap_free_aligned_sized(struct kslab_heap *heap, void *p, size_t align, size_t n)
{
	free_sized(heap, p, align, n, KSLAB_CALLER());
}

size_t kslab_heap_usable_size(struct kslab_heap *heap, const void *p)
{
	size_t bytes = 0;

	if (p != NULL)
		kslab_heap_object(heap, p, &bytes, KSLAB_CALLER());
	return bytes;
}

/* ---- bulk ------------------------------------------------------------------------------------ */

/* As many as the zone has, without leaving it in between. */
static size_t take_many(struct kslab_heap *heap, size_t n, size_t count, void *out[])
{
	size_t index = (n - 1) / 8, got = 0;
	struct kslab_zone *zone;
	struct kslab_sc *sc;

	if (index >= heap->route_limit)
		return 0;
	KSLAB_PORT_PIN();
	zone = kslab_heap_enter(heap);
	if (zone == NULL) {
		KSLAB_PORT_UNPIN();
		return 0;
	}
	sc = (struct kslab_sc *)((uintptr_t)zone + heap->route[index]);
	while (got < count) {
		kslab_word word = *sc->word;
		uintptr_t base = sc->base, size = sc->size;
		void *object;

		if (word != 0) {
			for (; word != 0 && got < count; word &= word - 1)
				out[got++] = (void *)(base + kslab_ctz(word) * size);
			KSLAB_STORE_RELAXED(sc->word, word);
			continue;
		}
		object = kslab_sc_next(&zone->owner, sc);
		if (object == NULL)
			break;
		out[got++] = object;
	}
	kslab_heap_leave(heap, zone, KSLAB_CALLER());
	return got;
}

size_t kslab_heap_malloc_bulk(struct kslab_heap *heap, size_t n, size_t count, void *out[])
{
	size_t got = 0;

	while (got < count) {
		got += take_many(heap, n, count - got, out + got);
		if (got == count)
			break;
		/* Makes a page, or says why not. */
		out[got] = heap->debug_level == 0 ? kslab_heap_malloc_fast(heap, n, KSLAB_CALLER())
						  : kslab_debug_malloc(n, heap, 0, KSLAB_CALLER());
		if (out[got] == NULL)
			break;
		got++;
	}
	return got;
}

/* A word of bits that bulk frees are gathered in. */
struct open_word {
	struct kslab_page *page;
	struct kslab_bits *bits; /* NULL: none */
	kslab_word freed, others;
};

KSLAB_INLINE void close_word(struct kslab_zone *zone, const struct open_word *open)
{
	if (open->bits == NULL)
		return;
	KSLAB_STORE_RELAXED(&open->bits->freed, open->freed);
	if (KSLAB_UNLIKELY(open->freed == ~(kslab_word)0))
		kslab_sc_word_full(&zone->owner, open->page);
}

/*
 * In an entered zone: the first objects, as long as they are of its pages. One store for all that
 * lie in a word and follow each other. Return: how many.
 */
static size_t free_many(struct kslab_heap *heap, struct kslab_zone *zone, size_t count,
			void *const ptrs[])
{
	struct open_word open = { NULL, NULL, 0, 0 };
	struct kslab_page *page = NULL;
	uintptr_t last = 0;
	size_t done;

	for (done = 0; done < count; done++) {
		uintptr_t address = (uintptr_t)ptrs[done];
		struct kslab_bits *bits;
		uint32_t index;

		if (page == NULL || (address ^ last) >> KSLAB_CFG_GRAIN_SHIFT != 0) {
			page = kslab_page_map_find(&heap->map, address);
			if ((KSLAB_LOAD_RELAXED(&page->owner) & ~KSLAB_TAG_FULL) != (uintptr_t)zone)
				break;
			last = address;
		}
		index = kslab_page_index(page, address);
		if (index >= page->slots)
			break;
		bits = &page->bits[index / KSLAB_WORD_BITS];
		if (bits != open.bits) {
			close_word(zone, &open);
			open.bits = NULL;
			if (kslab_page_state(page) == KSLAB_PAGE_FULL) {
				/* All are live: the lists must know of the first one at once. */
				if (!kslab_sc_free_local(&zone->owner, page, index))
					break;
				continue;
			}
			open.page = page;
			open.bits = bits;
			open.freed = bits->freed;
			open.others = KSLAB_LOAD_RELAXED(&bits->remote) | bits->avail;
		}
		if ((open.freed | open.others) & kslab_bit(index))
			break;
		open.freed |= kslab_bit(index);
	}
	close_word(zone, &open);
	return done;
}

void kslab_heap_free_bulk(struct kslab_heap *heap, size_t count, void *const ptrs[])
{
	const void *caller = KSLAB_CALLER();

	for (size_t i = 0; i < count;) {
		struct kslab_zone *zone;
		size_t done = 0;

		if (heap->debug_level != 0) {
			kslab_heap_free_cold(ptrs[i++], heap, caller);
			continue;
		}
		KSLAB_PORT_PIN();
		zone = kslab_heap_enter(heap);
		if (zone != NULL)
			done = free_many(heap, zone, count - i, ptrs + i);
		i += done;
		if (done != 0) {
			kslab_heap_leave(heap, zone, caller);
		} else { /* a refusal changes nothing: what else is due waits */
			if (zone != NULL)
				kslab_zone_leave(zone);
			KSLAB_PORT_UNPIN();
		}
		/* What stopped it: another CPU's page, or a bad pointer. */
		if (i < count)
			kslab_heap_free_fast(heap, ptrs[i++], caller);
	}
}

bool kslab_heap_reserve(struct kslab_heap *heap, size_t n, size_t count)
{
	struct kslab_request request = { NULL, 0, 0, KSLAB_CALLER() };

	if (heap->state != KSLAB_HEAP_READY) {
		kslab_heap_fail(heap, KSLAB_NOT_INITIALISED);
		return false;
	}
	request.cls = kslab_heap_class(heap, n, 1);
	if (request.cls == KSLAB_CLASSES) {
		kslab_heap_fail(heap, KSLAB_TOO_LARGE);
		return false;
	}
	return kslab_heap_reserve_request(heap, &request, count);
}

enum kslab_reason kslab_heap_last_error(struct kslab_heap *heap)
{
	const struct kslab_zone *zone;
	enum kslab_reason reason = KSLAB_NOT_INITIALISED;

	KSLAB_PORT_PIN();
	zone = kslab_heap_zone(heap);
	if (zone != NULL)
		reason = (enum kslab_reason)zone->last_error;
	KSLAB_PORT_UNPIN();
	return reason;
}

/* ---- the default heap ------------------------------------------------------------------------ */

#define DEFAULT (&kslab_default_heap)

void *kslab_zalloc(size_t n)
{
	return zalloc(DEFAULT, n);
}

void *kslab_calloc(size_t count, size_t size)
{
	return zalloc_array(DEFAULT, count, size);
}

void *kslab_realloc(void *p, size_t n)
{
	return resize(p, n, DEFAULT, NULL);
}

void *kslab_reallocarray(void *p, size_t count, size_t size)
{
	return kslab_heap_reallocarray(DEFAULT, p, count, size);
}

void *kslab_aligned_alloc(size_t align, size_t n)
{
	return kslab_heap_alloc_any(DEFAULT, n, align, 0, KSLAB_CALLER());
}

void *kslab_alloc(size_t n, size_t align, unsigned flags)
{
	return kslab_heap_alloc(DEFAULT, n, align, flags);
}

void kslab_free_sized(void *p, size_t n)
{
	free_sized(DEFAULT, p, 1, n, KSLAB_CALLER());
}

void kslab_free_aligned_sized(void *p, size_t align, size_t n)
{
	free_sized(DEFAULT, p, align, n, KSLAB_CALLER());
}

size_t kslab_usable_size(const void *p)
{
	return kslab_heap_usable_size(DEFAULT, p);
}

size_t kslab_good_size(size_t n)
{
	return kslab_heap_good_size(DEFAULT, n);
}

size_t kslab_malloc_bulk(size_t n, size_t count, void *out[])
{
	return kslab_heap_malloc_bulk(DEFAULT, n, count, out);
}

void kslab_free_bulk(size_t count, void *const ptrs[])
{
	kslab_heap_free_bulk(DEFAULT, count, ptrs);
}

enum kslab_reason kslab_last_error(void)
{
	return kslab_heap_last_error(DEFAULT);
}

bool kslab_reserve(size_t n, size_t count)
{
	return kslab_heap_reserve(DEFAULT, n, count);
}

size_t kslab_reclaim(size_t pages)
{
	return kslab_heap_reclaim(DEFAULT, pages);
}

void kslab_idle(void)
{
	kslab_heap_idle(DEFAULT);
}

bool kslab_quiesce(void)
{
	return kslab_heap_quiesce(DEFAULT);
}

void kslab_set_retention(size_t bytes)
{
	kslab_heap_set_retention(DEFAULT, bytes);
}

enum kslab_reason(kslab_init)(const struct kslab_config *config)
{
	return kslab_heap_init(DEFAULT, config);
}

enum kslab_reason(kslab_init_region)(void *mem, size_t bytes)
{
	return kslab_heap_init_region(DEFAULT, mem, bytes);
}

enum kslab_reason kslab_add_region(void *mem, size_t bytes)
{
	return kslab_heap_add_region(DEFAULT, mem, bytes);
}

enum kslab_reason kslab_set_page_source(void *(*alloc_pages)(void *, size_t),
					void (*free_pages)(void *, void *, size_t), void *ctx)
{
	return kslab_heap_set_page_source(DEFAULT, alloc_pages, free_pages, ctx);
}

enum kslab_reason kslab_fini(void)
{
	return kslab_heap_fini(DEFAULT);
}

enum kslab_reason kslab_cpu_online(unsigned cpu)
{
	return kslab_heap_cpu_online(DEFAULT, cpu);
}

enum kslab_reason kslab_cpu_offline(unsigned cpu)
{
	return kslab_heap_cpu_offline(DEFAULT, cpu);
}
