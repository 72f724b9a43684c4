/* SPDX-License-Identifier: MIT
 * debug_slot.h - owns the bytes of a slot at debug levels 1 and 2: what they are, how they are
 * looked at.
 * Rank: 5.  For debug.c alone. The layout is at the top of debug.h.
 */
#ifndef KSLAB_DEBUG_SLOT_H
#define KSLAB_DEBUG_SLOT_H

#include "debug.h"

#define REDZONE KSLAB_DEBUG_REDZONE_BYTE
#define NONE SIZE_MAX /* no byte is wrong */

/*
 * Level 1: a byte of redzone and the code, at least. Level 2: bytes between the object and the
 * trailer.
 */
#define SLACK_MIN 2u
#define REDZONE_MIN 8u

/*
 * Tail of level 1: values of its code, before it is mixed with the address. 2 .. 7: so many bytes
 * of slack.
 */
#define CODE_LONG 8u /* more; or any object of a cache */
#define CODE_FREE 9u
#define CODES 126u
#define TAIL_LONG 8u /* bytes of the long form: info, three of redzone, code */

struct trailer {
	const void *alloc_caller;
	const void *free_caller;
	uintptr_t serial;
	uint32_t info; /* as in the tail; 0 for objects of a cache */
#if UINTPTR_MAX > 0xffffffffu
	uint32_t pad;
#endif
	uintptr_t state; /* [a] sum over the trailer, its address, and one of the three below */
};

#define LIVE ((uintptr_t)0x4c495645u)
#define BUSY ((uintptr_t)0x42555359u)
#define FREED ((uintptr_t)0x46524545u)

_Static_assert(sizeof(struct trailer) == 5 * sizeof(uintptr_t), "a trailer is five words");

/* What is known of a slot without looking into it. */
struct slot {
	unsigned char *start;
	size_t bytes, room; /* room: up to the trailer or the code */
	const struct kslab_cache *cache; /* NULL: of a class, n is in the tail or trailer */
	struct trailer *trailer; /* NULL: has none */
	bool has_code; /* the last byte is one */
	bool poisons; /* false: contents belong to the constructor */
};

/* ---- patterns -------------------------------------------------------------------------------- */

KSLAB_INLINE uintptr_t words_of(unsigned char byte)
{
	return ~(uintptr_t)0 / 255 * byte;
}

KSLAB_INLINE unsigned char poison(const struct kslab_heap *heap)
{
	return (unsigned char)heap->debug_free_word;
}

KSLAB_INLINE uintptr_t fresh_word(const struct kslab_heap *heap, unsigned flags)
{
	return flags & KSLAB_ZERO ? 0 : heap->debug_new_word;
}

KSLAB_INLINE unsigned char fresh(const struct kslab_heap *heap, unsigned flags)
{
	return (unsigned char)fresh_word(heap, flags);
}

/* Offset of the first of `bytes` bytes at p that is not `byte`, or NONE. */
static inline size_t find_other(const unsigned char *p, size_t bytes, unsigned char byte)
{
	const uintptr_t pattern = words_of(byte);
	size_t i = 0;

	for (; i < bytes && ((uintptr_t)(p + i) & (sizeof(uintptr_t) - 1)) != 0; i++)
		if (p[i] != byte)
			return i;
	for (; i + 4 * sizeof(uintptr_t) <= bytes; i += 4 * sizeof(uintptr_t)) {
		const uintptr_t *w = (const uintptr_t *)(const void *)(p + i);

		if (((w[0] ^ pattern) | (w[1] ^ pattern) | (w[2] ^ pattern) | (w[3] ^ pattern)) !=
		    0)
			break;
	}
	for (; i < bytes; i++)
		if (p[i] != byte)
			return i;
	return NONE;
}

/* Short pieces in words: a call of memset costs more than they do. */
static inline void fill(unsigned char *p, size_t bytes, unsigned char byte)
{
	const uintptr_t pattern = words_of(byte);

	if (bytes > 256) {
		memset(p, byte, bytes);
		return;
	}
	for (; bytes != 0 && ((uintptr_t)p & (sizeof(pattern) - 1)) != 0; bytes--)
		*p++ = byte;
	for (; bytes >= sizeof(pattern); bytes -= sizeof(pattern), p += sizeof(pattern)) {
		*(uintptr_t *)(void *)p = pattern;
		KSLAB_BARRIER(); /* or the compiler makes it a call of memset */
	}
	for (; bytes != 0; bytes--) {
		*p++ = byte;
		KSLAB_BARRIER();
	}
}

/* find_other and fill in one pass. p is aligned to a word. */
static inline size_t replace(unsigned char *p, size_t bytes, unsigned char from, unsigned char to)
{
	const uintptr_t pattern = words_of(from), with = words_of(to);
	size_t i = 0, wrong = NONE;

	for (; i + 4 * sizeof(uintptr_t) <= bytes; i += 4 * sizeof(uintptr_t)) {
		uintptr_t *w = (uintptr_t *)(void *)(p + i);

		if (((w[0] ^ pattern) | (w[1] ^ pattern) | (w[2] ^ pattern) | (w[3] ^ pattern)) !=
			    0 &&
		    wrong == NONE)
			wrong = i + find_other(p + i, 4 * sizeof(uintptr_t), from);
		w[0] = w[1] = w[2] = w[3] = with;
	}
	if (i < bytes && wrong == NONE) {
		size_t rest = find_other(p + i, bytes - i, from);

		wrong = rest != NONE ? i + rest : NONE;
	}
	fill(p + i, bytes - i, to);
	return wrong;
}

/* ---- slots ----------------------------------------------------------------------------------- */

/* The cache that a page in use belongs to, or NULL. */
static inline struct kslab_cache *cache_of(const struct kslab_page *page)
{
	if (!(KSLAB_LOAD_RELAXED(&page->owner) & KSLAB_TAG_CACHE))
		return NULL;
	return ((const struct kslab_cache_zone *)page->sc)->cache;
}

static inline struct slot slot_at(const struct kslab_heap *heap, uintptr_t start, size_t bytes,
				  const struct kslab_cache *cache)
{
	struct slot slot = { (unsigned char *)start,
			     bytes,
			     bytes,
			     cache,
			     NULL,
			     false,
			     cache == NULL || cache->constructor == NULL };

	/* A cache whose slots could not grow goes without. */
	if (heap->debug_level >= 2 &&
	    (cache == NULL || bytes - cache->size >= sizeof(struct trailer))) {
		slot.room -= sizeof(struct trailer);
		slot.trailer = (struct trailer *)(start + slot.room);
	} else if (cache == NULL || bytes > cache->size) {
		slot.room--;
		slot.has_code = true;
	}
	return slot;
}

static inline struct slot slot_of(const struct kslab_heap *heap, const struct kslab_page *page,
				  uint32_t index)
{
	size_t bytes = page->sc->size;

	return slot_at(heap, page->data + (uintptr_t)index * bytes, bytes, cache_of(page));
}

/*
 * Memory checkers (KSLAB_PORT_POISON). Open: the library is at work in the slot; then n bytes are
 * the client's, or none. What a constructor has made stays as it is, and open.
 */
static inline void open_slot(const struct slot *slot)
{
	size_t from = slot->poisons ? 0 : slot->cache->size;

	KSLAB_PORT_UNPOISON(slot->start + from, slot->bytes - from);
}

static inline void give_slot(const struct slot *slot, size_t n, bool is_set)
{
	KSLAB_PORT_POISON(slot->start + n, slot->bytes - n);
	if (slot->poisons && !is_set)
		KSLAB_PORT_UNPOISON(slot->start, n);
}

static inline void close_slot(const struct slot *slot)
{
	size_t from = slot->poisons ? 0 : slot->cache->size;

	KSLAB_PORT_POISON(slot->start + from, slot->bytes - from);
}

KSLAB_INLINE uint32_t hash_of(const struct slot *slot)
{
	uint64_t address = (uintptr_t)slot->start;
	uint32_t x = (uint32_t)(address >> 3) ^ (uint32_t)(address >> 32);

	x *= 0x9e3779b1u;
	return x ^ x >> 15;
}

/* ---- tail of level 1 ------------------------------------------------------------------------- */

/* n and the class of level 0; the top byte tells if one of the others was changed. */
KSLAB_INLINE uint32_t info_of(size_t n, unsigned cls)
{
	uint32_t info = (uint32_t)n | (uint32_t)cls << 16;

	return info | ((info ^ info >> 8 ^ info >> 16 ^ 0x5c) & 0xff) << 24;
}

KSLAB_INLINE bool is_info(uint32_t info, const struct slot *slot, size_t slack)
{
	return info == info_of(info & 0xffff, info >> 16 & 0xff) &&
	       (info & 0xffff) + slack <= slot->room && (info >> 16 & 0xff) < KSLAB_CLASSES;
}

KSLAB_INLINE unsigned step_of(const struct slot *slot)
{
	return ((hash_of(slot) & 0xffff) * CODES) >> 16;
}

/*
 * 0x80 .. 0xfe: the code, moved on by the address. Never the redzone's own byte: whoever fills the
 * whole slack with one value, whatever it is, changes the one or the other.
 */
KSLAB_INLINE unsigned char code_byte(const struct slot *slot, unsigned code)
{
	unsigned value = code + step_of(slot);

	/* No branches: they would be taken by chance. */
	value -= CODES & (0u - (value >= CODES));
	value += 0x80;
	return (unsigned char)(value + (value >= REDZONE));
}

KSLAB_INLINE unsigned code_of(const struct slot *slot)
{
	unsigned byte = slot->start[slot->bytes - 1],
		 code = byte - 0x80 - (byte > REDZONE) - step_of(slot);

	if (byte < 0x80 || byte == 0xff || byte == REDZONE)
		return 0;
	return code + (CODES & (0u - (code > byte)));
}

static inline uint32_t *long_info(const struct slot *slot)
{
	return (uint32_t *)(void *)(slot->start + slot->bytes - TAIL_LONG);
}

KSLAB_INLINE void set_code(const struct slot *slot, unsigned code)
{
	if (slot->has_code)
		slot->start[slot->bytes - 1] = code_byte(slot, code);
}

/* Everything behind the n bytes of the client. */
static inline void arm(const struct slot *slot, size_t n, unsigned cls)
{
	size_t slack = slot->bytes - n;

	fill(slot->start + n, slot->room - n, REDZONE);
	if (slot->cache == NULL && slot->trailer == NULL && slack >= TAIL_LONG)
		*long_info(slot) = info_of(n, cls) ^ hash_of(slot);
	set_code(slot, slot->cache == NULL && slack < TAIL_LONG ? (unsigned)slack : CODE_LONG);
}

/* The tail of a live slot of a class. Return: NONE, or the first byte known to be wrong. */
static inline size_t read_tail(const struct slot *slot, size_t *n, unsigned *cls)
{
	unsigned code = code_of(slot);
	uint32_t info;

	*n = slot->bytes - code;
	if (code < SLACK_MIN || code > CODE_LONG)
		return slot->bytes - 1;
	if (code < CODE_LONG)
		return NONE;
	info = *long_info(slot) ^ hash_of(slot);
	*n = info & 0xffff;
	if (!is_info(info, slot, TAIL_LONG - 1))
		return slot->bytes - TAIL_LONG;
	/* What is written over both ends of the tail is not worth reading. */
	if (find_other(slot->start + slot->bytes - 4, 3, REDZONE) != NONE &&
	    find_other(slot->start + *n, slot->bytes - TAIL_LONG - *n, REDZONE) != NONE)
		return slot->bytes - TAIL_LONG;
	*cls = info >> 16 & 0xff;
	return NONE;
}

/* ---- trailer of level 2 ---------------------------------------------------------------------- */

/* Odd factors: whatever one field changes to, the sum changes. No product waits for another. */
KSLAB_INLINE uintptr_t sum(const struct trailer *trailer, uintptr_t state)
{
	uintptr_t x = ((uintptr_t)trailer ^ state) * 0x9e3779b1u;

	x += (uintptr_t)trailer->alloc_caller * 0x85ebca6bu +
	     (uintptr_t)trailer->free_caller * 0xc2b2ae35u;
	x += trailer->serial * 0x27d4eb2fu + trailer->info * (uintptr_t)0x165667b1u;
#if UINTPTR_MAX > 0xffffffffu
	x += (uintptr_t)trailer->pad << 32;
#endif
	return x ^ x >> 15;
}

/* While the fields change hands: depends on nothing but the place. */
static inline uintptr_t busy(const struct trailer *trailer)
{
	return (uintptr_t)trailer * 0x9e3779b1u ^ BUSY;
}

static inline bool is_freed(const struct trailer *trailer)
{
	uintptr_t state = KSLAB_LOAD_ACQUIRE(&trailer->state);

	return state == busy(trailer) || state == sum(trailer, FREED);
}

static inline bool is_whole(const struct trailer *trailer)
{
	uintptr_t state = KSLAB_LOAD_ACQUIRE(&trailer->state);

	return state == sum(trailer, LIVE) || state == sum(trailer, FREED);
}

/* n of a live slot. Return: NONE, or the first byte known to be wrong. */
static inline size_t read_trailer(const struct slot *slot, size_t *n, unsigned *cls)
{
	const struct trailer *trailer = slot->trailer;
	bool sound = KSLAB_LOAD_ACQUIRE(&trailer->state) == sum(trailer, LIVE);
	uint32_t info = trailer->info ^ hash_of(slot);
	size_t wrong;

	*cls = info >> 16 & 0xff;
	*n = slot->cache != NULL ? slot->cache->size : info & 0xffff;
	if (sound)
		return NONE;
	/* What came first, the redzone or the trailer? n may be right nevertheless. */
	wrong = slot->cache != NULL || is_info(info, slot, 1)
			? find_other(slot->start + *n, slot->room - *n, REDZONE)
			: NONE;
	return wrong != NONE ? *n + wrong : slot->room;
}

/* ---- contents in words ----------------------------------------------------------------------- */

/*
 * The same looks and the same bytes as above, for sound slots of a class: they are multiples of 8
 * bytes. The last 8 bytes of a slot at level 1 are handled as one number; BYTE(i) is what lies at
 * byte i of it in memory.
 */
#if __BYTE_ORDER__ == __ORDER_LITTLE_ENDIAN__
#define BYTE(i, value) ((uint64_t)(value) << 8 * (i))
#define BYTES_FROM(type, i) ((type)(~(type)0 << 8 * (i)))
#define INFO(tail) ((uint32_t)(tail))
#define FROM_INFO(info) ((uint64_t)(info))
#else
#define BYTE(i, value) ((uint64_t)(value) << 8 * (7 - (i)))
#define BYTES_FROM(type, i) ((type)(~(type)0 >> 8 * (i)))
#define INFO(tail) ((uint32_t)((tail) >> 32))
#define FROM_INFO(info) ((uint64_t)(info) << 32)
#endif
#define REDZONE_64 (~(uint64_t)0 / 255 * REDZONE)
#define CODE_MASK BYTE(7, 0xff)

KSLAB_INLINE uint64_t *tail_of(const struct slot *slot)
{
	return (uint64_t *)(void *)(slot->start + slot->bytes - TAIL_LONG);
}

/* The same byte in all of them. */
KSLAB_INLINE uint64_t wide(uintptr_t pattern)
{
	return sizeof(pattern) == 8 ? pattern : (uint64_t)pattern << 32 | pattern;
}

/* The tail of a free slot. */
KSLAB_INLINE uint64_t free_tail(const struct slot *slot, uintptr_t poison)
{
	return (wide(poison) & ~CODE_MASK) | BYTE(7, code_byte(slot, CODE_FREE));
}

/* Bytes before the tail or the trailer: whole words. */
KSLAB_INLINE size_t body_of(const struct slot *slot)
{
	return slot->trailer != NULL ? slot->room : slot->bytes - TAIL_LONG;
}

/* Four words at a time; the last four overlap, so that no length takes a branch of its own. */
KSLAB_INLINE bool are_words(const unsigned char *p, size_t bytes, uintptr_t pattern)
{
	const uintptr_t *w = (const uintptr_t *)(const void *)p, *end = w + bytes / sizeof(*w);
	uintptr_t other = 0;

	if (bytes < 4 * sizeof(*w)) {
		for (; w < end; w++)
			other |= *w ^ pattern;
		return other == 0;
	}
	end -= 4;
	other = (w[0] ^ pattern) | (w[1] ^ pattern) | (w[2] ^ pattern) | (w[3] ^ pattern);
	for (w += 4; w < end; w += 4)
		other |= (w[0] ^ pattern) | (w[1] ^ pattern) | (w[2] ^ pattern) | (w[3] ^ pattern);
	return (other | (end[0] ^ pattern) | (end[1] ^ pattern) | (end[2] ^ pattern) |
		(end[3] ^ pattern)) == 0;
}

KSLAB_INLINE void set_words(unsigned char *p, size_t bytes, uintptr_t pattern)
{
	uintptr_t *w = (uintptr_t *)(void *)p, *end = w + bytes / sizeof(*w);

	if (bytes < 4 * sizeof(*w)) {
		for (; w < end; w++) {
			*w = pattern;
			KSLAB_BARRIER(); /* or the compiler makes it a call of memset */
		}
		return;
	}
	if (KSLAB_UNLIKELY(bytes > 512)) {
		memset(p, (int)(pattern & 0xff), bytes);
		return;
	}
	end -= 4;
	w[0] = w[1] = w[2] = w[3] = pattern;
	for (w += 4; w < end; w += 4) {
		w[0] = w[1] = w[2] = w[3] = pattern;
		KSLAB_BARRIER();
	}
	end[0] = end[1] = end[2] = end[3] = pattern;
}

/* The redzone between n and the end of the body. */
KSLAB_INLINE bool is_redzone(const struct slot *slot, size_t n)
{
	size_t end = body_of(slot);
	const uintptr_t *w =
		(const uintptr_t *)(const void *)(slot->start + (n & ~(sizeof(*w) - 1)));
	uintptr_t other;

	if (n >= end)
		return true;
	other = (*w ^ words_of(REDZONE)) & BYTES_FROM(uintptr_t, n % sizeof(*w));
	for (w++; w < (const uintptr_t *)(const void *)(slot->start + end); w++)
		other |= *w ^ words_of(REDZONE);
	return other == 0;
}

/*
 * are_words and set_words in one. Return: false: not all of them were `from`; none is changed. The
 * last four are left for the end, as they may be among the others.
 */
KSLAB_INLINE bool replace_words(unsigned char *p, size_t bytes, uintptr_t from, uintptr_t to)
{
	uintptr_t *w = (uintptr_t *)(void *)p, *end = w + bytes / sizeof(*w);

	if (bytes < 4 * sizeof(*w) || bytes > 512) {
		if (!are_words(p, bytes, from))
			return false;
		set_words(p, bytes, to);
		return true;
	}
	end -= 4;
	if (((end[0] ^ from) | (end[1] ^ from) | (end[2] ^ from) | (end[3] ^ from) | (w[0] ^ from) |
	     (w[1] ^ from) | (w[2] ^ from) | (w[3] ^ from)) != 0)
		return false;
	w[0] = w[1] = w[2] = w[3] = to;
	for (w += 4; w < end; w += 4) {
		if (KSLAB_UNLIKELY(
			    ((w[0] ^ from) | (w[1] ^ from) | (w[2] ^ from) | (w[3] ^ from)) != 0)) {
			set_words(p, (size_t)((unsigned char *)w - p), from);
			return false;
		}
		w[0] = w[1] = w[2] = w[3] = to;
		KSLAB_BARRIER();
	}
	end[0] = end[1] = end[2] = end[3] = to;
	return true;
}

/* The body holds the client's pattern; from n on it becomes redzone. */
KSLAB_INLINE void set_redzone(const struct slot *slot, size_t n, uintptr_t pattern)
{
	uintptr_t *w = (uintptr_t *)(void *)(slot->start + (n & ~(sizeof(*w) - 1)));
	uintptr_t *end = (uintptr_t *)(void *)(slot->start + body_of(slot)), mask;

	if (w >= end)
		return;
	mask = BYTES_FROM(uintptr_t, n % sizeof(*w));
	*w = (pattern & ~mask) | (words_of(REDZONE) & mask);
	for (w++; w < end; w++) {
		*w = words_of(REDZONE);
		KSLAB_BARRIER();
	}
}

KSLAB_INLINE void set_tail(const struct slot *slot, size_t n, unsigned cls, uintptr_t pattern)
{
	size_t slack = slot->bytes - n;
	uint64_t tail = REDZONE_64;

	if (slack >= TAIL_LONG) {
		tail &= ~FROM_INFO(UINT32_MAX);
		tail |= FROM_INFO(info_of(n, cls) ^ hash_of(slot));
		slack = CODE_LONG;
	} else {
		uint64_t mask = BYTES_FROM(uint64_t, TAIL_LONG - slack);

		tail = (wide(pattern) & ~mask) | (tail & mask);
	}
	*tail_of(slot) = (tail & ~CODE_MASK) | BYTE(7, code_byte(slot, (unsigned)slack));
}

/* A free slot of a class; false: look closer. */
KSLAB_INLINE bool is_free_sound(const struct kslab_heap *heap, struct slot slot)
{
	const uintptr_t pattern = heap->debug_free_word;

	return slot.cache == NULL &&
	       (slot.trailer != NULL
			? KSLAB_LOAD_ACQUIRE(&slot.trailer->state) == sum(slot.trailer, FREED)
			: *tail_of(&slot) == free_tail(&slot, pattern)) &&
	       are_words(slot.start, body_of(&slot), pattern);
}

/* A live slot without a trailer. Return: n, or NONE: look closer. *cls as in live_damage. */
KSLAB_INLINE size_t read_sound_tail(const struct slot *slot, unsigned *cls)
{
	uint64_t tail = *tail_of(slot), redzone = (tail ^ REDZONE_64) & ~CODE_MASK;
	unsigned code = code_of(slot);
	uint32_t info;

	*cls = KSLAB_CLASSES;
	if (code != CODE_LONG) {
		if (code < SLACK_MIN || code > CODE_LONG ||
		    (redzone & BYTES_FROM(uint64_t, TAIL_LONG - code)) != 0)
			return NONE;
		return slot->bytes - code;
	}
	info = INFO(tail) ^ hash_of(slot);
	*cls = info >> 16 & 0xff;
	if (!is_info(info, slot, TAIL_LONG - 1) || (redzone & ~FROM_INFO(UINT32_MAX)) != 0 ||
	    !is_redzone(slot, info & 0xffff))
		return NONE;
	return info & 0xffff;
}

/* The same at any level; false: look closer. */
KSLAB_INLINE bool is_live_sound(const struct slot *slot)
{
	const struct trailer *trailer = slot->trailer;
	unsigned cls;

	if (slot->cache != NULL)
		return false;
	if (trailer == NULL)
		return read_sound_tail(slot, &cls) != NONE;
	return KSLAB_LOAD_ACQUIRE(&trailer->state) == sum(trailer, LIVE) &&
	       is_redzone(slot, (trailer->info ^ hash_of(slot)) & 0xffff);
}

#endif
