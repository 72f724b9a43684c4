/* SPDX-License-Identifier: MIT
 * debug_slot.h - owns the bytes of a slot at debug levels 1 and 2: what they are, how they are
 * looked at.
 * Rank: 5.  For debug.c and debug_quick.c alone. The layout is at the top of debug.h.
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
#define NOTHING_MIN 9u /* a slot of nothing has the long form, and a word before it (is_redzone) */
#define REDZONE_MIN 8u

/* A type of this alignment, or less, gets it at level 0: its size is a multiple of it. */
#define TYPE_ALIGN 16u

/*
 * Tail of level 1: values of its code, before it is mixed with the address. 2 .. 7: so many bytes
 * of slack.
 */
#define CODE_LONG 8u /* more; or any object of a cache */
#define CODE_FREE 9u
#define CODES 119u /* values of its byte */
#define STEPS 128u /* numbers it is mixed with */
#define TAIL_LONG 8u /* bytes of the long form: info, two of redzone, echo, code */

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

/* For a class of level 0: the one that n leads to, without any alignment. */
#define ROUTED KSLAB_CLASSES

/* What is known of a slot without looking into it. */
struct slot {
	unsigned char *start;
	size_t bytes, room; /* room: up to the trailer or the code */
	const struct kslab_cache *cache; /* NULL: of a class, n is in the tail or trailer */
	struct trailer *trailer; /* NULL: has none */
	bool has_code; /* the last byte is one */
	bool poisons; /* false: contents belong to the constructor */
};

/* How level 0 aligns n bytes by the choice of the class alone, up to a page. */
static inline size_t natural_align(size_t n)
{
	if (kslab_is_power_of_two(n))
		return n;
	return n % TYPE_ALIGN == 0 ? TYPE_ALIGN : 1;
}

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

/* What the pattern is, counts as set: somebody asked for it. */
KSLAB_INLINE bool is_zeroed(const struct kslab_heap *heap, unsigned flags)
{
	return (flags & KSLAB_ZERO) || (heap->debug_flags & KSLAB_DEBUG_ZERO_ON_ALLOC);
}

/* Whatever the client stored there. */
typedef uintptr_t __attribute__((may_alias)) slot_word;
typedef uint64_t __attribute__((may_alias)) slot_tail;
typedef uintptr_t
	__attribute__((vector_size(2 * sizeof(uintptr_t)), aligned(sizeof(uintptr_t)), may_alias))
	slot_pair;

/* A compare and a branch that is never taken each: less than to gather what differs. */
KSLAB_INLINE bool are_4(const slot_word *w, uintptr_t pattern)
{
	return w[0] == pattern && w[1] == pattern && w[2] == pattern && w[3] == pattern;
}

/*
 * At least n words, in blocks of 8; at most 7 more. Pairs, so that a compiler that may use vectors
 * does: half the time.
 */
KSLAB_INLINE bool are_blocks(const slot_word *w, size_t n, uintptr_t pattern)
{
	const slot_pair want = { pattern, pattern };
	const slot_word *end = w + n;
	slot_pair other = { 0, 0 };

	for (; w < end; w += 8) {
		const slot_pair *pair = (const slot_pair *)w;

		other |= ((pair[0] ^ want) | (pair[1] ^ want)) |
			 ((pair[2] ^ want) | (pair[3] ^ want));
	}
	return (other[0] | other[1]) == 0;
}

/* Offset of the first of `bytes` bytes at p that is not `byte`, or NONE. */
static inline size_t find_other(const unsigned char *p, size_t bytes, unsigned char byte)
{
	const uintptr_t pattern = words_of(byte);
	size_t i = 0;

	for (; i < bytes && ((uintptr_t)(p + i) & (sizeof(uintptr_t) - 1)) != 0; i++)
		if (p[i] != byte)
			return i;
	/* Is it in the next 64 words; in which 8 of them; where there? */
	for (unsigned words = 64; words >= 8; words /= 8)
		while (i + words * sizeof(uintptr_t) <= bytes &&
		       are_blocks((const slot_word *)(const void *)(p + i), words, pattern))
			i += words * sizeof(uintptr_t);
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
	return ((const struct kslab_cache_zone *)kslab_page_sc(page))->cache;
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

/* The same for slots of a class. */
KSLAB_INLINE void open_bytes(uintptr_t start, size_t bytes)
{
	KSLAB_PORT_UNPOISON((void *)start, bytes);
}

KSLAB_INLINE void give_bytes(uintptr_t start, size_t bytes, size_t n, bool is_set)
{
	KSLAB_PORT_POISON((void *)(start + n), bytes - n);
	if (!is_set)
		KSLAB_PORT_UNPOISON((void *)start, n);
}

KSLAB_INLINE void close_bytes(uintptr_t start, size_t bytes)
{
	KSLAB_PORT_POISON((void *)start, bytes);
}

/* One product, as most calls wait for it. Its upper bits are the better ones. */
KSLAB_INLINE uint32_t hash_at(uintptr_t start)
{
	if (sizeof(start) == sizeof(uint64_t))
		return (uint32_t)(start * (uint64_t)0x9e3779b97f4a7c15u >> 32);
	return (uint32_t)start * 0x9e3779b1u;
}

KSLAB_INLINE uint32_t hash_of(const struct slot *slot)
{
	return hash_at((uintptr_t)slot->start);
}

/* ---- tail of level 1 ------------------------------------------------------------------------- */

/*
 * n, and which class level 0 would have taken: one of its own, or ROUTED. The upper half is the
 * lower one over again, mixed with the class twice, so that no byte can change unseen.
 */
KSLAB_INLINE uint32_t info_of(size_t n, unsigned kind)
{
	return (uint32_t)n * 0x10001u ^ (uint32_t)(kind ^ ROUTED) * 0x01010000u;
}

KSLAB_INLINE unsigned kind_in(uint32_t info)
{
	return ((info >> 16 ^ info) & 0xff) ^ ROUTED;
}

KSLAB_INLINE bool is_info(uint32_t info, const struct slot *slot, size_t slack)
{
	return info == info_of(info & 0xffff, kind_in(info)) && kind_in(info) <= ROUTED &&
	       (info & 0xffff) + slack <= slot->room;
}

KSLAB_INLINE unsigned step_of(uint32_t hash)
{
	return hash / (UINT32_MAX / STEPS + 1);
}

/*
 * 0x80 .. 0xfe: the code, moved on by the address. None of the eight values that the byte before it
 * may have (echo_of), and the redzone: whoever fills the whole slack with one value, whatever it is,
 * changes the one or the other. One table has them in turn, and the first ones again; the other one
 * says where a byte is in it.
 */
#define TIMES_4(what, i) what(i), what((i) + 1), what((i) + 2), what((i) + 3)
#define TIMES_16(what, i)                                                                          \
	TIMES_4(what, i), TIMES_4(what, (i) + 4), TIMES_4(what, (i) + 8), TIMES_4(what, (i) + 12)
#define TIMES_128(what, i)                                                                         \
	TIMES_16(what, i), TIMES_16(what, (i) + 16), TIMES_16(what, (i) + 32),                     \
		TIMES_16(what, (i) + 48), TIMES_16(what, (i) + 64), TIMES_16(what, (i) + 80),      \
		TIMES_16(what, (i) + 96), TIMES_16(what, (i) + 112)
#define NO_CODE 0xff
#define CODE_BYTE(i)                                                                               \
	(unsigned char)(0x80 + (i) % CODES + (0x80 + (i) % CODES >= (REDZONE & 0xf8) ? 8 : 0))
#define CODE_PLACE(byte)                                                                           \
	(unsigned char)((byte) < 0x80 || (byte) == 0xff || ((byte)&0xf8) == (REDZONE & 0xf8)       \
				? NO_CODE                                                          \
				: ((byte)&0x7f) - ((byte) > REDZONE ? 8 : 0))
static const unsigned char code_bytes[] = { TIMES_128(CODE_BYTE, 0), TIMES_16(CODE_BYTE, 128) };
static const unsigned char code_places[] = { TIMES_128(CODE_PLACE, 0), TIMES_128(CODE_PLACE, 128) };

KSLAB_INLINE unsigned char code_byte(uint32_t hash, unsigned code)
{
	return code_bytes[step_of(hash) + code];
}

/* A number above all codes if there is none. */
KSLAB_INLINE unsigned code_in(uint32_t hash, unsigned char byte)
{
	unsigned place = code_places[byte], step = step_of(hash);

	return place - step + (CODES & (0u - (place < step)));
}

KSLAB_INLINE unsigned code_of(const struct slot *slot)
{
	return code_in(hash_of(slot), slot->start[slot->bytes - 1]);
}

static inline uint32_t *long_info(const struct slot *slot)
{
	return (uint32_t *)(void *)(slot->start + slot->bytes - TAIL_LONG);
}

KSLAB_INLINE void set_code(const struct slot *slot, unsigned code)
{
	if (slot->has_code)
		slot->start[slot->bytes - 1] = code_byte(hash_of(slot), code);
}

/* The byte before the code says the same again, so that the one can't change unseen. */
KSLAB_INLINE unsigned char echo_of(size_t slack)
{
	return (unsigned char)(REDZONE ^ (slack < TAIL_LONG ? slack : 1));
}

/* Everything behind the n bytes of the client. */
static inline void arm(const struct slot *slot, size_t n, unsigned kind)
{
	size_t slack = slot->bytes - n;

	fill(slot->start + n, slot->room - n, REDZONE);
	if (slot->cache == NULL && slot->trailer == NULL) {
		slot->start[slot->bytes - 2] = echo_of(slack);
		if (slack >= TAIL_LONG)
			*long_info(slot) = info_of(n, kind) ^ hash_of(slot);
	}
	set_code(slot, slot->cache == NULL && slack < TAIL_LONG ? (unsigned)slack : CODE_LONG);
}

/* Between info and code, or in the short form before the code. Return: NONE, or the first byte. */
static inline size_t find_in_tail(const struct slot *slot, size_t slack)
{
	size_t at =
		slack < TAIL_LONG ? NONE : find_other(slot->start + slot->bytes - 4, 2, REDZONE);

	if (at != NONE)
		return slot->bytes - 4 + at;
	return slot->start[slot->bytes - 2] == echo_of(slack) ? NONE : slot->bytes - 2;
}

/* The tail of a live slot of a class. Return: NONE, or the first byte known to be wrong. */
static inline size_t read_tail(const struct slot *slot, size_t *n, unsigned *kind)
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
	if (find_in_tail(slot, TAIL_LONG) != NONE &&
	    find_other(slot->start + *n, slot->bytes - TAIL_LONG - *n, REDZONE) != NONE)
		return slot->bytes - TAIL_LONG;
	*kind = kind_in(info);
	return NONE;
}

/* ---- trailer of level 2 ---------------------------------------------------------------------- */

/*
 * Odd factors: whatever one field changes to, the sum changes. No product waits for another, and
 * what a field adds can be replaced without the others.
 */
#define ALLOC_CALLER_FACTOR ((uintptr_t)0x85ebca6bu)
#define FREE_CALLER_FACTOR ((uintptr_t)0xc2b2ae35u)
#define SERIAL_FACTOR ((uintptr_t)0x27d4eb2fu)
#define INFO_FACTOR ((uintptr_t)0x165667b1u)

KSLAB_INLINE uintptr_t sum_of_fields(const struct trailer *trailer)
{
	uintptr_t x = (uintptr_t)trailer * 0x9e3779b1u;

	x += (uintptr_t)trailer->alloc_caller * ALLOC_CALLER_FACTOR +
	     (uintptr_t)trailer->free_caller * FREE_CALLER_FACTOR;
	x += trailer->serial * SERIAL_FACTOR + trailer->info * INFO_FACTOR;
#if UINTPTR_MAX > 0xffffffffu
	x += (uintptr_t)trailer->pad << 32;
#endif
	return x;
}

KSLAB_INLINE uintptr_t sum_with(uintptr_t fields, uintptr_t state)
{
	fields += state;
	return fields ^ fields >> 15;
}

KSLAB_INLINE uintptr_t sum(const struct trailer *trailer, uintptr_t state)
{
	return sum_with(sum_of_fields(trailer), state);
}

/* While the fields change hands: depends on nothing but the place. */
static inline uintptr_t busy(const struct trailer *trailer)
{
	return (uintptr_t)trailer * 0x9e3779b1u ^ BUSY;
}

KSLAB_INLINE void seal(struct trailer *trailer, uintptr_t state)
{
	KSLAB_STORE_RELEASE(&trailer->state, sum(trailer, state));
}

KSLAB_INLINE uintptr_t next_serial(struct kslab_heap *heap)
{
	uintptr_t serial = KSLAB_FETCH_ADD_RELAXED(&heap->debug_serial, (uintptr_t)1) + 1;

	return serial != 0 ? serial : 1;
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
static inline size_t read_trailer(const struct slot *slot, size_t *n, unsigned *kind)
{
	const struct trailer *trailer = slot->trailer;
	bool sound = KSLAB_LOAD_ACQUIRE(&trailer->state) == sum(trailer, LIVE);
	uint32_t info = trailer->info ^ hash_of(slot);
	size_t wrong;

	*kind = kind_in(info);
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
 * The same looks and the same bytes as above, for sound slots of a class: multiples of 8 bytes.
 * Where a length decides, there is one branch for each power of two, and none for each word: a
 * branch that goes by chance costs more than eight words, so words in the middle are rather looked
 * at, or written, twice.
 *
 * The last 8 bytes of a slot at level 1 are handled as one number; BYTE(i) is what lies at byte i
 * of it in memory.
 */
#if __BYTE_ORDER__ == __ORDER_LITTLE_ENDIAN__
#define BYTE(i, value) ((uint64_t)(value) << 8 * (i))
#define BYTE_OF(i, tail) ((tail) >> 8 * (i)&0xff)
#define BYTES_FROM(i) (~(uint64_t)0 << 8 * (i))
#define INFO(tail) ((uint32_t)(tail))
#define FROM_INFO(info) ((uint64_t)(info))
#else
#define BYTE(i, value) ((uint64_t)(value) << 8 * (7 - (i)))
#define BYTE_OF(i, tail) ((tail) >> 8 * (7 - (i)) & 0xff)
#define BYTES_FROM(i) (~(uint64_t)0 >> 8 * (i))
#define INFO(tail) ((uint32_t)((tail) >> 32))
#define FROM_INFO(info) ((uint64_t)(info) << 32)
#endif
#define REDZONE_64 (~(uint64_t)0 / 255 * REDZONE)

/* Longer pieces are left to memset. */
#define WORDS_BYTES_MAX 512u

KSLAB_INLINE slot_tail *tail_at(uintptr_t address)
{
	return (slot_tail *)address;
}

/* The same byte in all of them. */
KSLAB_INLINE uint64_t wide(uintptr_t pattern)
{
	return sizeof(pattern) == 8 ? pattern : (uint64_t)pattern << 32 | pattern;
}

KSLAB_INLINE bool are_words(uintptr_t start, size_t bytes, uintptr_t pattern)
{
	const slot_word *w = (const slot_word *)start;
	size_t n = bytes / sizeof(*w);
	const slot_word *end = w + n;

	if (n <= 4) /* each of them, if there are four, or fewer */
		return n == 0 || (w[0] == pattern && end[-1] == pattern && w[n / 2] == pattern &&
				  w[(n - 1) / 2] == pattern);
	if (!are_4(w, pattern) || !are_4(end - 4, pattern))
		return false;
	if (n <= 8)
		return true;
	if (!are_4(w + 4, pattern) || !are_4(end - 8, pattern))
		return false;
	return n <= 16 || are_blocks(w + 8, n - 16, pattern);
}

KSLAB_INLINE void set_4(slot_word *w, uintptr_t pattern)
{
	w[0] = w[1] = w[2] = w[3] = pattern;
}

KSLAB_INLINE void set_words(uintptr_t start, size_t bytes, uintptr_t pattern)
{
	slot_word *w = (slot_word *)start;
	size_t n = bytes / sizeof(*w);
	slot_word *end = w + n;

	if (n <= 4) {
		if (n != 0)
			w[0] = end[-1] = w[n / 2] = w[(n - 1) / 2] = pattern;
		return;
	}
	set_4(w, pattern);
	set_4(end - 4, pattern);
	if (n <= 8)
		return;
	set_4(w + 4, pattern);
	set_4(end - 8, pattern);
	for (w += 8; w + 8 < end; w += 8) {
		set_4(w, pattern);
		set_4(w + 4, pattern);
		KSLAB_BARRIER(); /* or the compiler makes it a call of memset */
	}
}

/* ---- redzone in words ------------------------------------------------------------------------ */

/* Of 8 bytes the last so many. No shift by a variable: on 32-bit machines it may be a call. */
static const uint64_t last_bytes[] = { 0,
				       BYTES_FROM(7),
				       BYTES_FROM(6),
				       BYTES_FROM(5),
				       BYTES_FROM(4),
				       BYTES_FROM(3),
				       BYTES_FROM(2),
				       BYTES_FROM(1),
				       BYTES_FROM(0) };

/*
 * From n up to 8 before the end: in most classes that is a part of one word, or nothing of it, which
 * is looked at all the same. Further words only for powers of two, and in large classes. An n that
 * is too large is refused. Not for slots of 8 bytes: they have nothing there.
 */
KSLAB_INLINE bool is_redzone(uintptr_t start, size_t n, size_t end)
{
	size_t edge = end - 8 - n, from = n & ~(size_t)7;

	if (edge <= 8)
		return ((*tail_at(start + end - 16) ^ REDZONE_64) & last_bytes[edge]) == 0;
	return edge <= end &&
	       ((*tail_at(start + from) ^ REDZONE_64) & last_bytes[8 - n % 8]) == 0 &&
	       are_words(start + from + 8, end - 16 - from, words_of(REDZONE));
}

/* The same way, where all of it holds the client's pattern. */
KSLAB_INLINE void set_redzone(uintptr_t start, size_t n, size_t end, uint64_t pattern)
{
	size_t edge = end - 8 - n, from = n & ~(size_t)7;

	if (edge <= 8) {
		*tail_at(start + end - 16) = pattern ^ ((pattern ^ REDZONE_64) & last_bytes[edge]);
		return;
	}
	*tail_at(start + from) = pattern ^ ((pattern ^ REDZONE_64) & last_bytes[8 - n % 8]);
	set_words(start + from + 8, end - 16 - from, words_of(REDZONE));
}

/*
 * Before a trailer all of it is redzone, and there are 8 bytes at least. On 32-bit machines the
 * trailer does not begin at a multiple of 8.
 */
KSLAB_INLINE bool is_whole_redzone(uintptr_t start, size_t n, size_t end)
{
	if (sizeof(struct trailer) % 8 != 0)
		return find_other((const unsigned char *)start + n, end - n, REDZONE) == NONE;
	return *tail_at(start + end - 8) == REDZONE_64 &&
	       (end - n == 8 || is_redzone(start, n, end));
}

KSLAB_INLINE void set_whole_redzone(uintptr_t start, size_t n, size_t end, uint64_t pattern)
{
	if (sizeof(struct trailer) % 8 != 0) {
		fill((unsigned char *)start + n, end - n, REDZONE);
		return;
	}
	*tail_at(start + end - 8) = REDZONE_64;
	if (end - n != 8)
		set_redzone(start, n, end, pattern);
}

/* ---- the tail as one number ------------------------------------------------------------------ */

#define CODE_MASK BYTE(7, 0xff)
#define INFO_MASK FROM_INFO(UINT32_MAX)
#define LONG_REDZONE ((REDZONE_64 & ~INFO_MASK & ~CODE_MASK) ^ BYTE(6, 1))

/* All 8 bytes, of which the last ones are taken. */
KSLAB_INLINE uint64_t short_redzone(unsigned slack)
{
	return REDZONE_64 ^ BYTE(6, slack);
}

KSLAB_INLINE uint64_t free_tail(uint32_t hash, uintptr_t poison)
{
	return (wide(poison) & ~CODE_MASK) | BYTE(7, code_byte(hash, CODE_FREE));
}

/* The tail of the long form, of what n leads to, but for n. */
KSLAB_INLINE uint64_t long_tail(uint32_t hash)
{
	return LONG_REDZONE | FROM_INFO(hash) | BYTE(7, code_byte(hash, CODE_LONG));
}

/* Everything behind the n bytes of the client, in a slot that holds the client's pattern. */
KSLAB_INLINE void set_slack(uintptr_t start, size_t bytes, size_t n, unsigned kind, uint32_t hash,
			    uint64_t pattern)
{
	const size_t slack = bytes - n;
	slot_tail *tail = tail_at(start + bytes - TAIL_LONG);

	if (slack < TAIL_LONG) {
		pattern ^= (pattern ^ short_redzone((unsigned)slack)) & last_bytes[slack];
		*tail = (pattern & ~CODE_MASK) | BYTE(7, code_byte(hash, (unsigned)slack));
		return;
	}
	*tail = long_tail(hash) ^ FROM_INFO(info_of(n, kind));
	set_redzone(start, n, bytes, pattern);
}

/* A live slot of a class, which n alone leads to, without a trailer. Return: false: look closer. */
KSLAB_INLINE bool read_sound_tail(uintptr_t start, size_t bytes, uint32_t hash, size_t *n)
{
	const uint64_t tail = *tail_at(start + bytes - TAIL_LONG);
	const uint64_t size = tail ^ long_tail(hash);
	unsigned code;

	*n = INFO(size) & 0xffff;
	if (size == FROM_INFO(info_of(*n, ROUTED)))
		return bytes != 8 && is_redzone(start, *n, bytes);
	code = code_in(hash, (unsigned char)BYTE_OF(7, tail));
	*n = bytes - code;
	return code - SLACK_MIN < CODE_LONG - SLACK_MIN &&
	       ((tail ^ short_redzone(code)) & last_bytes[code] & ~CODE_MASK) == 0;
}

/* ---- whole slots ----------------------------------------------------------------------------- */

/* A free slot of a class; false: look closer. */
KSLAB_INLINE bool is_free_sound(const struct kslab_heap *heap, const struct slot *slot)
{
	const uintptr_t pattern = heap->debug_free_word, start = (uintptr_t)slot->start;

	if (slot->cache != NULL)
		return false;
	if (slot->trailer != NULL)
		return KSLAB_LOAD_ACQUIRE(&slot->trailer->state) == sum(slot->trailer, FREED) &&
		       are_words(start, slot->room, pattern);
	return *tail_at(start + slot->bytes - TAIL_LONG) == free_tail(hash_at(start), pattern) &&
	       are_words(start, slot->bytes - TAIL_LONG, pattern);
}

/* A live one. */
KSLAB_INLINE bool is_live_sound(const struct slot *slot)
{
	const uintptr_t start = (uintptr_t)slot->start;
	const struct trailer *trailer = slot->trailer;
	size_t n;

	if (slot->cache != NULL)
		return false;
	if (trailer == NULL)
		return read_sound_tail(start, slot->bytes, hash_at(start), &n);
	return KSLAB_LOAD_ACQUIRE(&trailer->state) == sum(trailer, LIVE) &&
	       is_whole_redzone(start, (trailer->info ^ hash_at(start)) & 0xffff, slot->room);
}

/* ---- bits of a slot --------------------------------------------------------------------------- */

KSLAB_INLINE bool is_free_bit(const struct kslab_page *page, uint32_t index)
{
	const struct kslab_bits *bits = &page->bits[index / KSLAB_WORD_BITS];
	kslab_word free = KSLAB_LOAD_ACQUIRE(&bits->remote);

	free |= KSLAB_LOAD_ACQUIRE(&bits->freed);
	free |= KSLAB_LOAD_RELAXED(&bits->avail);
	return (free & kslab_bit(index)) != 0;
}

/* A page of this zone, of a size class, that its owner may be asked for. FULL ones are not. */
KSLAB_INLINE bool is_plain(const struct kslab_zone *zone, const struct kslab_page *page)
{
	return KSLAB_LOAD_RELAXED(&page->owner) == ((uintptr_t)zone | KSLAB_TAG_DEBUG) &&
	       (uintptr_t)page->sc - (uintptr_t)zone->sc < sizeof(zone->sc);
}

/*
 * The slot is live, and its free needs neither lists (kslab_sc_free_local) nor the fence
 * (kslab_fence_free). In the entered zone of the page. Return: what has to be stored to *freed, as
 * nobody else does that meanwhile; 0: not so.
 */
KSLAB_INLINE kslab_word quiet_free(struct kslab_page *page, uint32_t index, kslab_word **freed)
{
	kslab_word *bits = &page->bits[0].avail + (size_t)(index / KSLAB_WORD_BITS) * 3;
	kslab_word word = KSLAB_LOAD_RELAXED(&bits[1]),
		   taken = KSLAB_LOAD_RELAXED(&bits[2]) | KSLAB_LOAD_RELAXED(&bits[0]) | word;

	*freed = &bits[1];
	if (KSLAB_UNLIKELY(
		    (page->state != KSLAB_PAGE_CURRENT && page->state != KSLAB_PAGE_PARTIAL) ||
		    ((taken >> (index % KSLAB_WORD_BITS)) & 1)))
		return 0;
	KSLAB_HIDE(index);
	word |= kslab_bit(index);
	/* A full word changes nothing for the current page. */
	return KSLAB_LIKELY(word != ~(kslab_word)0) || page->state == KSLAB_PAGE_CURRENT ? word : 0;
}

#endif
