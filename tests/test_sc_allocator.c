/* SPDX-License-Identifier: MIT
 * test_sc_allocator.c - owns the tests of the bare SCAllocator (kslab_sc_*).
 *
 * The closure visits every state that an allocator on a few tiny pages can reach, and in each one
 * does every operation: allocate, refill of every page, reclaim, and a free of every byte address
 * of every page.
 */
#include "testing.h"

#include "sc_allocator.h"

#define TINY 512u
#define TINY_PAGES 3u

static const struct kslab_layout any = { 8, 8 };

/* ---- closure --------------------------------------------------------------------------------- */

static unsigned char tiny[TINY_PAGES + 1][TINY] __attribute__((aligned(512)));
static struct kslab_sc_allocator sc;
static size_t slot_bytes, page_count;

/* What the caller of an allocator knows. */
struct model {
	bool held[TINY_PAGES];
	uint8_t live[TINY_PAGES]; /* a bit for each slot */
};

/* Room for the longest descriptor of a tiny page with at most four slots. */
#define TAIL (sizeof(struct kslab_page) + sizeof(struct kslab_bits) + 8)

struct saved {
	struct model model;
	struct kslab_sc_allocator sc;
	unsigned char tail[TINY_PAGES][TAIL];
};

static struct model model;
static struct saved *queue;
static size_t queued, capacity;
static uint64_t *seen;
#define SEEN ((size_t)1 << 20)

static void save(struct saved *to)
{
	memset(to, 0, sizeof(*to));
	to->model = model;
	sc.owner.harvested = 0; /* a statistic; it would make every state a new one */
	to->sc = sc;
	for (size_t i = 0; i < page_count; i++)
		memcpy(to->tail[i], tiny[i] + TINY - TAIL, TAIL);
}

static void restore(const struct saved *from)
{
	model = from->model;
	sc = from->sc;
	for (size_t i = 0; i < page_count; i++)
		memcpy(tiny[i] + TINY - TAIL, from->tail[i], TAIL);
}

static bool is_as_in(const struct saved *state)
{
	if (memcmp(&sc, &state->sc, sizeof(sc)) != 0)
		return false;
	for (size_t i = 0; i < page_count; i++)
		if (memcmp(tiny[i] + TINY - TAIL, state->tail[i], TAIL) != 0)
			return false;
	return true;
}

/* Usage as the model has it. */
static void check_usage(void)
{
	struct kslab_usage usage = kslab_sc_usage(&sc);
	size_t pages = 0, empty = 0, live = 0;

	for (size_t i = 0; i < page_count; i++) {
		pages += model.held[i];
		empty += model.held[i] && model.live[i] == 0;
		live += (size_t)__builtin_popcount(model.live[i]);
	}
	assert_int_equal(usage.pages, pages);
	assert_int_equal(usage.empty_pages, empty);
	assert_int_equal(usage.slots, pages * kslab_sc_slots(&sc));
	assert_int_equal(usage.used_slots, live);
	assert_int_equal(usage.used_bytes, live * slot_bytes);
	assert_int_equal(usage.total_bytes, pages * TINY);
}

/* Put the present state in the queue if it is new. */
static void visit(void)
{
	struct saved state;
	uint64_t hash;
	size_t at;

	if (!kslab_sc_check(&sc))
		fail_msg("checker, after %zu states", queued);
	save(&state);
	hash = testing_hash(14695981039346656037u, &state, sizeof(state)) | 1;
	for (at = (size_t)(hash >> 20) % SEEN; seen[at] != 0; at = (at + 1) % SEEN)
		if (seen[at] == hash)
			return;
	seen[at] = hash;
	assert_true(queued < SEEN / 2);
	if (queued == capacity) {
		capacity = capacity != 0 ? 2 * capacity : 1024;
		queue = realloc(queue, capacity * sizeof(*queue));
		assert_non_null(queue);
	}
	queue[queued++] = state;
	check_usage();
}

static void try_allocate(void)
{
	size_t free = 0;
	void *object;
	enum kslab_allocation_error error = kslab_sc_allocate(&sc, any, &object);

	for (size_t i = 0; i < page_count; i++)
		if (model.held[i])
			free += kslab_sc_slots(&sc) - (size_t)__builtin_popcount(model.live[i]);
	/* Out of memory if and only if no slot is free. */
	assert_int_equal(error, free != 0 ? KSLAB_ALLOCATION_OK : KSLAB_OUT_OF_MEMORY);
	assert_int_equal(object == NULL, free == 0);
	if (object != NULL) {
		size_t offset = (size_t)((unsigned char *)object - tiny[0]), page = offset / TINY;
		unsigned slot = (unsigned)(offset % TINY / slot_bytes);

		assert_true(page < page_count && model.held[page]);
		assert_true(offset % TINY % slot_bytes == 0 && slot < kslab_sc_slots(&sc));
		assert_false(model.live[page] >> slot & 1);
		model.live[page] = (uint8_t)(model.live[page] | 1u << slot);
	}
	visit();
}

static size_t given_back;

static void take_back(void *ctx, void *page)
{
	size_t i = (size_t)((unsigned char *)page - tiny[0]) / TINY;

	(void)ctx;
	assert_true(i < page_count && page == tiny[i]);
	assert_true(model.held[i] && model.live[i] == 0);
	model.held[i] = false;
	given_back++;
}

static void try_reclaim(size_t wanted)
{
	size_t possible = 0;

	for (size_t i = 0; i < page_count; i++)
		possible += model.held[i] && model.live[i] == 0;
	given_back = 0;
	assert_int_equal(kslab_sc_try_reclaim_pages(&sc, wanted, take_back, NULL),
			 possible < wanted ? possible : wanted);
	assert_int_equal(given_back, possible < wanted ? possible : wanted);
	visit();
}

static void try_refill(size_t page)
{
	assert_int_equal(kslab_sc_refill(&sc, tiny[page]),
			 model.held[page] ? KSLAB_INVALID_PAGE : KSLAB_ALLOCATION_OK);
	model.held[page] = true;
	visit();
}

static size_t frees;

static void try_every_address(const struct saved *state)
{
	for (size_t i = 0; i < page_count * TINY; i++) {
		size_t page = i / TINY, offset = i % TINY;
		unsigned slot = (unsigned)(offset / slot_bytes);
		bool legal = model.held[page] && offset % slot_bytes == 0 &&
			     slot < kslab_sc_slots(&sc) && (model.live[page] >> slot & 1);
		enum kslab_allocation_error error = kslab_sc_deallocate(&sc, tiny[0] + i, any);

		frees++;
		if (error != (legal ? KSLAB_ALLOCATION_OK : KSLAB_INVALID_POINTER))
			fail_msg("free of page %zu, offset %zu said %d, legal: %d", page, offset,
				 error, legal);
		if (legal) {
			model.live[page] = (uint8_t)(model.live[page] & ~(1u << slot));
			visit();
			restore(state);
		} else if (!is_as_in(state)) {
			fail_msg("refused free of page %zu, offset %zu changed something", page,
				 offset);
		}
	}
}

static void close_over(size_t pages, size_t size, size_t slots)
{
	struct saved state;

	page_count = pages;
	slot_bytes = size;
	queued = frees = 0;
	memset(tiny, 0x5a, sizeof(tiny));
	memset(&model, 0, sizeof(model));
	memset(seen, 0, SEEN * sizeof(*seen));
	assert_int_equal(kslab_sc_init(&sc, size, TINY), KSLAB_ALLOCATION_OK);
	assert_int_equal(kslab_sc_slots(&sc), slots);
	visit();
	for (size_t i = 0; i < queued; i++) {
		state = queue[i]; /* the queue may move */
		restore(&state);
		try_allocate();
		for (size_t page = 0; page < pages; page++) {
			restore(&state);
			try_refill(page);
		}
		for (size_t wanted = 0; wanted <= pages; wanted++) {
			restore(&state);
			try_reclaim(wanted);
		}
		restore(&state);
		try_every_address(&state);
	}
	print_message("# %zu pages of %zu slots: %zu states, %zu frees\n", pages, slots, queued,
		      frees);
	assert_true(queued > 4);
}

/* Slot sizes that put this many slots into a tiny page on 64 and 32 bit. */
static const size_t size_for[] = { 0, 424, 208, 136, 104 };

static void test_closure_of_every_state_and_every_address(void **state)
{
	static const struct {
		size_t pages, slots;
	} cases[] = { { 1, 1 }, { 1, 2 }, { 1, 3 }, { 1, 4 }, { 2, 1 },
		      { 2, 2 }, { 2, 3 }, { 3, 1 }, { 2, 4 } };
#ifdef __SANITIZE_ADDRESS__
	const size_t count = TESTING_COUNT(cases) - 1; /* the last one takes half a minute there */
#else
	const size_t count = TESTING_COUNT(cases);
#endif

	(void)state;
	seen = malloc(SEEN * sizeof(*seen));
	assert_non_null(seen);
	for (size_t i = 0; i < count; i++)
		close_over(cases[i].pages, size_for[cases[i].slots], cases[i].slots);
	free(seen);
	free(queue);
	queue = NULL;
	capacity = 0;
}

/* ---- geometry: page sizes from 512 bytes to 2 MiB -------------------------------------------- */

static size_t descriptor_bytes(size_t slots)
{
	size_t words = (slots + KSLAB_WORD_BITS - 1) / KSLAB_WORD_BITS;

	return (sizeof(struct kslab_page) + words * sizeof(struct kslab_bits) + 7) & ~(size_t)7;
}

static unsigned char *big_page(size_t bytes)
{
	void *page = NULL;

	assert_int_equal(posix_memalign(&page, bytes, bytes), 0);
	memset(page, 0xa5, bytes);
	return page;
}

static void give_free(void *ctx, void *page)
{
	(void)ctx;
	free(page);
}

/* Fill one page, every object with its own number; free in a stride order; give the page back. */
static void use_page(size_t size, size_t page_bytes)
{
	size_t rounded = (size + 7) & ~(size_t)7, slots, taken = 0;
	unsigned char *page = big_page(page_bytes);
	void *object;

	assert_int_equal(kslab_sc_init(&sc, size, page_bytes), KSLAB_ALLOCATION_OK);
	slots = kslab_sc_slots(&sc);
	assert_int_equal(kslab_sc_size(&sc), rounded);
	/* As many slots as fit beside their own descriptor, and not one more. */
	assert_true(slots != 0 && slots * rounded + descriptor_bytes(slots) <= page_bytes);
	assert_true((slots + 1) * rounded + descriptor_bytes(slots + 1) > page_bytes);
	assert_int_equal(kslab_sc_refill(&sc, page), KSLAB_ALLOCATION_OK);
	while (kslab_sc_allocate(&sc, any, &object) == KSLAB_ALLOCATION_OK) {
		unsigned char *byte = object;

		assert_true(byte >= page &&
			    byte + rounded <= page + page_bytes - descriptor_bytes(slots));
		assert_int_equal((size_t)(byte - page) % rounded, 0);
		/* Its two ends, so that an overlap shows. */
		memcpy(byte, &taken, 4);
		memcpy(byte + rounded - 4, &taken, 4);
		taken++;
	}
	assert_int_equal(taken, slots);
	assert_true(kslab_sc_check(&sc));
	for (size_t i = 0; i < slots; i++) {
		/* 7919 is prime: every slot once, far apart. */
		size_t slot = i * (slots % 7919 == 0 ? 1 : 7919) % slots;
		uint32_t first, last;

		memcpy(&first, page + slot * rounded, 4);
		memcpy(&last, page + slot * rounded + rounded - 4, 4);
		assert_true(first == last && first < slots);
		assert_int_equal(kslab_sc_deallocate(&sc, page + slot * rounded, any),
				 KSLAB_ALLOCATION_OK);
		assert_int_equal(kslab_sc_deallocate(&sc, page + slot * rounded, any),
				 KSLAB_INVALID_POINTER);
	}
	assert_true(kslab_sc_check(&sc));
	assert_int_equal(kslab_sc_try_reclaim_pages(&sc, 1, give_free, NULL), 1);
	assert_int_equal(kslab_sc_usage(&sc).pages, 0);
	assert_true(kslab_sc_check(&sc));
}

static void test_pages_of_512_bytes_to_2_mib_are_used_to_the_last_slot(void **state)
{
	static const size_t sizes[] = { 1,   8,	  16,	24,   40,    64,    100,
					256, 376, 1000, 2048, 10240, 131072 };

	(void)state;
	for (size_t page = 512; page <= (size_t)2 << 20; page *= 2)
		for (size_t i = 0; i < TESTING_COUNT(sizes); i++)
			if (sizes[i] + descriptor_bytes(1) <= page)
				use_page(sizes[i], page);
}

static void test_every_slot_size_of_a_page_is_accepted_exactly_if_one_fits(void **state)
{
	(void)state;
	for (size_t size = 0; size <= 2 * TINY; size++) {
		size_t rounded = (size + 7) & ~(size_t)7;
		bool fits = size != 0 && rounded + descriptor_bytes(1) <= TINY;

		assert_int_equal(kslab_sc_init(&sc, size, TINY),
				 fits ? KSLAB_ALLOCATION_OK : KSLAB_INVALID_LAYOUT);
	}
}

/* ---- errors as values ------------------------------------------------------------------------ */

static void test_impossible_allocators_answer_with_errors_and_never_crash(void **state)
{
	static const struct {
		size_t size, page_bytes;
	} bad[] = { { 0, 4096 },
		    { 8, 0 },
		    { 8, 256 },
		    { 8, 4095 },
		    { 8, 4096 + 512 },
		    { 4096, 4096 },
		    { 8192, 4096 },
		    { SIZE_MAX, 4096 },
		    { SIZE_MAX - 6, SIZE_MAX },
		    { 8, SIZE_MAX },
		    { 0, 0 } };

	(void)state;
	for (size_t i = 0; i < TESTING_COUNT(bad); i++) {
		void *object = &object;

		assert_int_equal(kslab_sc_init(&sc, bad[i].size, bad[i].page_bytes),
				 KSLAB_INVALID_LAYOUT);
		assert_int_equal(kslab_sc_allocate(&sc, any, &object), KSLAB_INVALID_LAYOUT);
		assert_null(object);
		assert_int_not_equal(kslab_sc_deallocate(&sc, tiny[0], any), KSLAB_ALLOCATION_OK);
		assert_int_not_equal(kslab_sc_refill(&sc, tiny[0]), KSLAB_ALLOCATION_OK);
		assert_int_equal(kslab_sc_try_reclaim_pages(&sc, 1, take_back, NULL), 0);
		assert_int_equal(kslab_sc_usage(&sc).pages, 0);
		assert_int_equal(kslab_sc_slots(&sc), 0);
	}
}

static struct kslab_sc_allocator ready_made = KSLAB_SC_INIT(100, TINY);
static struct kslab_sc_allocator zero_size = KSLAB_SC_INIT(0, TINY);
static struct kslab_sc_allocator odd_page = KSLAB_SC_INIT(64, 1000);

static void test_a_static_initialiser_needs_no_init_call(void **state)
{
	size_t slots = kslab_sc_slots(&ready_made), taken = 0;
	void *object;

	(void)state;
	assert_int_equal(kslab_sc_init(&sc, 100, TINY), KSLAB_ALLOCATION_OK);
	assert_int_equal(slots, kslab_sc_slots(&sc)); /* before its first use, too */
	assert_int_equal(kslab_sc_size(&ready_made), 104);
	assert_int_equal(kslab_sc_deallocate(&ready_made, tiny[0], any), KSLAB_INVALID_POINTER);
	assert_int_equal(kslab_sc_allocate(&ready_made, any, &object), KSLAB_OUT_OF_MEMORY);
	assert_int_equal(kslab_sc_refill(&ready_made, tiny[0]), KSLAB_ALLOCATION_OK);
	while (kslab_sc_allocate(&ready_made, any, &object) == KSLAB_ALLOCATION_OK)
		taken++;
	assert_int_equal(taken, slots);
	assert_true(kslab_sc_check(&ready_made));
	assert_int_equal(kslab_sc_allocate(&zero_size, any, &object), KSLAB_INVALID_LAYOUT);
	assert_int_equal(kslab_sc_slots(&zero_size), 0);
	assert_int_not_equal(kslab_sc_refill(&zero_size, tiny[1]), KSLAB_ALLOCATION_OK);
	assert_int_equal(kslab_sc_allocate(&odd_page, any, &object), KSLAB_INVALID_LAYOUT);
	assert_int_equal(kslab_sc_slots(&odd_page), 0);
}

static void test_layouts_are_accepted_exactly_as_documented(void **state)
{
	(void)state;
	memset(tiny, 0x5a, sizeof(tiny));
	for (size_t size = 8; size <= 200; size += 8) {
		size_t natural = size & (0 - size);

		assert_int_equal(kslab_sc_init(&sc, size, TINY), KSLAB_ALLOCATION_OK);
		assert_int_equal(kslab_sc_refill(&sc, tiny[0]), KSLAB_ALLOCATION_OK);
		for (size_t align = 0; align <= 1024; align++) {
			struct kslab_layout layout = { size, align };
			bool good = align != 0 && (align & (align - 1)) == 0 && align <= natural;
			void *object;

			assert_int_equal(kslab_sc_allocate(&sc, layout, &object),
					 good ? KSLAB_ALLOCATION_OK : KSLAB_INVALID_LAYOUT);
			if (!good) {
				assert_null(object);
				continue;
			}
			assert_int_equal((uintptr_t)object % align, 0);
			layout.size = size + 1;
			assert_int_equal(kslab_sc_deallocate(&sc, object, layout),
					 KSLAB_INVALID_LAYOUT);
			layout.size = size;
			assert_int_equal(kslab_sc_deallocate(&sc, object, layout),
					 KSLAB_ALLOCATION_OK);
		}
		for (size_t asked = 0; asked <= size + 8; asked++) {
			struct kslab_layout layout = { asked, 1 };
			void *object;

			assert_int_equal(kslab_sc_allocate(&sc, layout, &object),
					 asked <= size ? KSLAB_ALLOCATION_OK
						       : KSLAB_INVALID_LAYOUT);
			if (object != NULL)
				assert_int_equal(kslab_sc_deallocate(&sc, object, layout),
						 KSLAB_ALLOCATION_OK);
		}
		assert_true(kslab_sc_check(&sc));
	}
}

static void test_a_refused_page_is_not_touched(void **state)
{
	unsigned char kept[TINY_PAGES + 1][TINY];

	(void)state;
	memset(tiny, 0x5a, sizeof(tiny));
	assert_int_equal(kslab_sc_init(&sc, 64, TINY), KSLAB_ALLOCATION_OK);
	memcpy(kept, tiny, sizeof(tiny));
	for (size_t offset = 1; offset < TINY; offset++)
		assert_int_equal(kslab_sc_refill(&sc, tiny[0] + offset), KSLAB_INVALID_PAGE);
	assert_int_equal(kslab_sc_refill(&sc, NULL), KSLAB_INVALID_PAGE);
	assert_memory_equal(tiny, kept, sizeof(tiny));
	assert_int_equal(kslab_sc_refill(&sc, tiny[0]), KSLAB_ALLOCATION_OK);
	memcpy(kept, tiny, sizeof(tiny));
	assert_int_equal(kslab_sc_refill(&sc, tiny[0]), KSLAB_INVALID_PAGE);
	assert_memory_equal(tiny, kept, sizeof(tiny));
	assert_int_equal(kslab_sc_usage(&sc).pages, 1);
	assert_true(kslab_sc_check(&sc));
}

/* The contents of a page are the caller's past: even a stale descriptor of this very allocator. */
static void test_a_page_with_any_contents_is_taken(void **state)
{
	static unsigned char stale[TINY];
	void *object;

	(void)state;
	for (unsigned contents = 0; contents < 4; contents++) {
		assert_int_equal(kslab_sc_init(&sc, 104, TINY), KSLAB_ALLOCATION_OK);
		assert_int_equal(kslab_sc_refill(&sc, tiny[0]), KSLAB_ALLOCATION_OK);
		assert_int_equal(kslab_sc_allocate(&sc, any, &object), KSLAB_ALLOCATION_OK);
		memcpy(stale, tiny[0], TINY);
		assert_int_equal(kslab_sc_init(&sc, 104, TINY), KSLAB_ALLOCATION_OK);
		memset(tiny[0], contents == 1 ? 0xff : 0, TINY);
		if (contents >= 2)
			memcpy(tiny[0], stale, TINY);
		if (contents == 3)
			assert_int_equal(kslab_sc_refill(&sc, tiny[1]), KSLAB_ALLOCATION_OK);
		assert_int_equal(kslab_sc_refill(&sc, tiny[0]), KSLAB_ALLOCATION_OK);
		for (size_t i = 0; i < kslab_sc_slots(&sc) * (contents == 3 ? 2 : 1); i++)
			assert_int_equal(kslab_sc_allocate(&sc, any, &object), KSLAB_ALLOCATION_OK);
		assert_int_equal(kslab_sc_allocate(&sc, any, &object), KSLAB_OUT_OF_MEMORY);
		assert_true(kslab_sc_check(&sc));
	}
}

static void test_another_allocators_object_is_refused(void **state)
{
	static struct kslab_sc_allocator other;
	void *mine, *others;

	(void)state;
	assert_int_equal(kslab_sc_init(&sc, 104, TINY), KSLAB_ALLOCATION_OK);
	assert_int_equal(kslab_sc_init(&other, 104, TINY), KSLAB_ALLOCATION_OK);
	assert_int_equal(kslab_sc_refill(&sc, tiny[0]), KSLAB_ALLOCATION_OK);
	assert_int_equal(kslab_sc_refill(&other, tiny[1]), KSLAB_ALLOCATION_OK);
	assert_int_equal(kslab_sc_allocate(&sc, any, &mine), KSLAB_ALLOCATION_OK);
	assert_int_equal(kslab_sc_allocate(&other, any, &others), KSLAB_ALLOCATION_OK);
	assert_int_equal(kslab_sc_deallocate(&sc, others, any), KSLAB_INVALID_POINTER);
	assert_int_equal(kslab_sc_deallocate(&other, mine, any), KSLAB_INVALID_POINTER);
	assert_int_equal(kslab_sc_deallocate(&sc, NULL, any), KSLAB_INVALID_POINTER);
	assert_int_equal(kslab_sc_usage(&sc).used_slots, 1);
	assert_int_equal(kslab_sc_usage(&other).used_slots, 1);
	assert_int_equal(kslab_sc_deallocate(&sc, mine, any), KSLAB_ALLOCATION_OK);
	assert_int_equal(kslab_sc_deallocate(&other, others, any), KSLAB_ALLOCATION_OK);
}

/* ---- lists ----------------------------------------------------------------------------------- */

static unsigned length_of(const struct kslab_page_list *list)
{
	unsigned n = 0;

	for (const struct kslab_page *page = list->head; page != NULL;
	     page = page->next == list->head ? NULL : page->next)
		n++;
	return n;
}

static void expect_lists(unsigned empty, unsigned partial, unsigned full, bool current)
{
	assert_int_equal(length_of(&sc.core.empty), empty);
	assert_int_equal(length_of(&sc.core.partial), partial);
	assert_int_equal(length_of(&sc.core.full), full);
	assert_int_equal(sc.core.page != NULL, current);
	assert_true(kslab_sc_check(&sc));
}

static void test_pages_go_from_empty_over_current_to_full_and_back(void **state)
{
	void *objects[6], *none;

	(void)state;
	memset(tiny, 0x5a, sizeof(tiny));
	assert_int_equal(kslab_sc_init(&sc, size_for[2], TINY), KSLAB_ALLOCATION_OK);
	for (unsigned i = 0; i < 3; i++)
		assert_int_equal(kslab_sc_refill(&sc, tiny[i]), KSLAB_ALLOCATION_OK);
	expect_lists(3, 0, 0, false);
	for (unsigned i = 0; i < 5; i++)
		assert_int_equal(kslab_sc_allocate(&sc, any, &objects[i]), KSLAB_ALLOCATION_OK);
	expect_lists(0, 0, 2, true);
	assert_int_equal(kslab_sc_deallocate(&sc, objects[0], any), KSLAB_ALLOCATION_OK);
	assert_int_equal(kslab_sc_allocate(&sc, any, &objects[5]), KSLAB_ALLOCATION_OK);
	expect_lists(0, 0, 2, true);
	/*
	 * The current page is full, too; the next allocation finds the freed slot through the mail.
	 */
	assert_int_equal(kslab_sc_allocate(&sc, any, &objects[0]), KSLAB_ALLOCATION_OK);
	expect_lists(0, 0, 2, true);
	assert_int_equal(kslab_sc_allocate(&sc, any, &none), KSLAB_OUT_OF_MEMORY);
	expect_lists(0, 0, 3, false);
	assert_int_equal(kslab_sc_usage(&sc).used_slots, 6);
	for (unsigned slot = 0; slot < 2; slot++)
		for (unsigned page = 0; page < 3; page++)
			assert_int_equal(kslab_sc_deallocate(&sc, tiny[page] + slot * size_for[2],
							     any),
					 KSLAB_ALLOCATION_OK);
	page_count = 3;
	model = (struct model){ { true, true, true }, { 0, 0, 0 } };
	given_back = 0;
	assert_int_equal(kslab_sc_try_reclaim_pages(&sc, 2, take_back, NULL), 2);
	expect_lists(1, 0, 0, false);
	assert_int_equal(kslab_sc_try_reclaim_pages(&sc, SIZE_MAX, take_back, NULL), 1);
	expect_lists(0, 0, 0, false);
}

/*
 * A page that is used up while others wait goes behind them as it is. What was freed into it by its
 * next turn is issued then; otherwise it becomes full, and no call looks at more than a few.
 */
static void test_used_up_pages_wait_for_their_next_turn(void **state)
{
	enum { PAGES = 40 };
	unsigned char *memory = aligned_alloc(TINY, PAGES * TINY);
	void *first[PAGES], *second[PAGES], *object;
	size_t full;

	(void)state;
	assert_non_null(memory);
	assert_int_equal(kslab_sc_init(&sc, size_for[2], TINY), KSLAB_ALLOCATION_OK);
	for (unsigned i = 0; i < PAGES; i++) {
		assert_int_equal(kslab_sc_refill(&sc, memory + i * TINY), KSLAB_ALLOCATION_OK);
		assert_int_equal(kslab_sc_allocate(&sc, any, &first[i]), KSLAB_ALLOCATION_OK);
		assert_int_equal(kslab_sc_allocate(&sc, any, &second[i]), KSLAB_ALLOCATION_OK);
	}
	for (unsigned i = 0; i < PAGES; i++)
		assert_int_equal(kslab_sc_deallocate(&sc, first[i], any), KSLAB_ALLOCATION_OK);
	kslab_sc_drain(&sc.owner, KSLAB_ALL);
	for (unsigned i = 0; i < PAGES; i++) {
		assert_int_equal(kslab_sc_allocate(&sc, any, &first[i]), KSLAB_ALLOCATION_OK);
		assert_true(kslab_sc_check(&sc));
	}
	assert_true(length_of(&sc.core.partial) >= PAGES - 2); /* used up, all of them */
	assert_int_equal(kslab_sc_deallocate(&sc, second[PAGES / 2], any), KSLAB_ALLOCATION_OK);
	full = length_of(&sc.core.full);
	object = kslab_sc_next(&sc.owner, &sc.core); /* does not get so far */
	assert_null(object);
	assert_true(kslab_sc_has_more(&sc.owner, &sc.core));
	assert_true(length_of(&sc.core.full) > full && length_of(&sc.core.full) <= full + 8);
	assert_true(kslab_sc_check(&sc));
	assert_int_equal(kslab_sc_allocate(&sc, any, &object), KSLAB_ALLOCATION_OK);
	assert_ptr_equal(object, second[PAGES / 2]);
	assert_true(kslab_sc_check(&sc));
	assert_int_equal(kslab_sc_allocate(&sc, any, &object), KSLAB_OUT_OF_MEMORY);
	expect_lists(0, 0, PAGES, false);
	free(memory);
}

/* What one call leaves over of the mail waits for the next ones; nothing of it is lost. */
static void test_mail_is_taken_in_a_few_pages_at_a_time(void **state)
{
	enum { MAILED = 3 * KSLAB_MAIL_MOST, SLOTS = 2 };
	unsigned char *memory = aligned_alloc(TINY, (MAILED + 1) * TINY);
	void *objects[MAILED + 1][SLOTS], *object;

	(void)state;
	assert_non_null(memory);
	assert_int_equal(kslab_sc_init(&sc, size_for[SLOTS], TINY), KSLAB_ALLOCATION_OK);
	for (unsigned i = 0; i <= MAILED; i++) {
		assert_int_equal(kslab_sc_refill(&sc, memory + i * TINY), KSLAB_ALLOCATION_OK);
		for (unsigned n = 0; n < SLOTS; n++)
			assert_int_equal(kslab_sc_allocate(&sc, any, &objects[i][n]),
					 KSLAB_ALLOCATION_OK);
	}
	for (unsigned i = 0; i < MAILED; i++)
		assert_int_equal(kslab_sc_deallocate(&sc, objects[i][0], any), KSLAB_ALLOCATION_OK);
	for (unsigned i = 0; i < MAILED; i++) {
		assert_int_equal(kslab_sc_allocate(&sc, any, &object), KSLAB_ALLOCATION_OK);
		/* Each of these pages gave one object; what was mailed is there, or waits. */
		assert_true(length_of(&sc.core.full) + length_of(&sc.core.partial) + 1 ==
			    MAILED + 1);
		if (i == 0) {
			assert_true(length_of(&sc.core.partial) <= KSLAB_MAIL_MOST);
			assert_non_null(sc.owner.mail);
		}
		assert_true(kslab_sc_check(&sc));
	}
	assert_null(sc.owner.mail);
	assert_int_equal(kslab_sc_allocate(&sc, any, &object), KSLAB_OUT_OF_MEMORY);
	/* By steps of one, and while others come in. */
	for (unsigned i = 0; i < MAILED; i++)
		assert_int_equal(kslab_sc_deallocate(&sc, objects[i][1], any), KSLAB_ALLOCATION_OK);
	assert_int_equal(kslab_sc_drain(&sc.owner, 1), 1);
	assert_int_equal(kslab_sc_deallocate(&sc, objects[MAILED][0], any), KSLAB_ALLOCATION_OK);
	for (unsigned i = 0; i < MAILED; i++) {
		assert_int_equal(kslab_sc_drain(&sc.owner, 1), 1);
		assert_true(kslab_sc_check(&sc));
	}
	assert_int_equal(kslab_sc_drain(&sc.owner, 1), 0);
	assert_int_equal(length_of(&sc.core.full), 0);
	free(memory);
}

/* ---- the checker ----------------------------------------------------------------------------- */

/* A page in each list and a current one, two slots each. */
static void make_scene(void)
{
	void *objects[7];

	memset(tiny, 0x5a, sizeof(tiny));
	assert_int_equal(kslab_sc_init(&sc, size_for[2], TINY), KSLAB_ALLOCATION_OK);
	for (unsigned i = 0; i < 3; i++) {
		assert_int_equal(kslab_sc_refill(&sc, tiny[i]), KSLAB_ALLOCATION_OK);
		for (unsigned n = 0; n < 2; n++)
			assert_int_equal(kslab_sc_allocate(&sc, any, &objects[i * 2 + n]),
					 KSLAB_ALLOCATION_OK);
	}
	/* Page 0 partial, page 1 full, page 2 current with one slot free, page 3 empty. */
	assert_int_equal(kslab_sc_refill(&sc, tiny[3]), KSLAB_ALLOCATION_OK);
	assert_int_equal(kslab_sc_deallocate(&sc, objects[0], any), KSLAB_ALLOCATION_OK);
	assert_int_equal(kslab_sc_drain(&sc.owner, KSLAB_ALL), 1);
	assert_true(kslab_sc_check(&sc));
	assert_int_equal(length_of(&sc.core.partial), 1);
	assert_int_equal(length_of(&sc.core.full), 1);
	assert_int_equal(length_of(&sc.core.empty), 1);
	assert_non_null(sc.core.page);
}

static void test_the_checker_finds_every_damage(void **state)
{
	struct kslab_page *list[4];

	(void)state;
	make_scene();
	list[0] = sc.core.partial.head;
	list[1] = sc.core.full.head;
	list[2] = sc.core.empty.head;
	list[3] = sc.core.page;
#define DAMAGE(field, value)                                                                       \
	do {                                                                                       \
		__typeof__((field) + 0) kept = (field); /* + 0: it may be a bit-field */           \
		(field) = (__typeof__(kept))(value);                                               \
		if (kslab_sc_check(&sc))                                                           \
			fail_msg("%s = %s is not seen", #field, #value);                           \
		(field) = kept;                                                                    \
		assert_true(kslab_sc_check(&sc));                                                  \
	} while (0)
	DAMAGE(sc.core.pages, kept + 1);
	DAMAGE(sc.core.pages, kept - 1);
	DAMAGE(sc.core.empty_pages, kept + 1);
	DAMAGE(sc.core.empty_pages, 0);
	DAMAGE(sc.core.empty.head, NULL);
	DAMAGE(sc.core.partial.head, NULL);
	DAMAGE(sc.core.full.head, NULL);
	DAMAGE(sc.core.page, NULL);
	DAMAGE(sc.core.full.head, list[0]);
	DAMAGE(sc.core.page, list[2]);
	DAMAGE(sc.owner.mail, list[1]); /* not QUEUED */
	for (unsigned i = 0; i < 4; i++) {
		struct kslab_page *page = list[i];

		DAMAGE(page->state, KSLAB_PAGE_IDLE);
		DAMAGE(page->state, KSLAB_PAGE_LARGE);
		DAMAGE(page->sc, NULL);
		DAMAGE(page->owner, 0);
		DAMAGE(page->owner, kept ^ KSLAB_TAG_FULL);
		DAMAGE(page->slots, 0);
		DAMAGE(page->inverse, kept + 2);
		DAMAGE(page->data, 0);
		DAMAGE(page->bits[0].freed, kept & ((kslab_word)-1 >> 1)); /* tail bit */
		DAMAGE(page->bits[0].remote, page->bits[0].freed);
		if (i == 2)
			DAMAGE(page->bits[0].freed, ~(kslab_word)0 << 2); /* all live */
		if (i == 0 || i == 1)
			DAMAGE(page->bits[0].freed, ~(kslab_word)0); /* all free */
		if (i != 3) {
			DAMAGE(page->next, NULL);
			DAMAGE(page->prev, NULL);
			DAMAGE(page->next, list[(i + 1) % 3]);
			DAMAGE(page->bits[0].avail, 1);
		} else {
			DAMAGE(page->next, list[0]);
		}
	}
#undef DAMAGE
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(test_closure_of_every_state_and_every_address),
		cmocka_unit_test(test_pages_of_512_bytes_to_2_mib_are_used_to_the_last_slot),
		cmocka_unit_test(test_every_slot_size_of_a_page_is_accepted_exactly_if_one_fits),
		cmocka_unit_test(test_impossible_allocators_answer_with_errors_and_never_crash),
		cmocka_unit_test(test_a_static_initialiser_needs_no_init_call),
		cmocka_unit_test(test_layouts_are_accepted_exactly_as_documented),
		cmocka_unit_test(test_a_refused_page_is_not_touched),
		cmocka_unit_test(test_a_page_with_any_contents_is_taken),
		cmocka_unit_test(test_another_allocators_object_is_refused),
		cmocka_unit_test(test_pages_go_from_empty_over_current_to_full_and_back),
		cmocka_unit_test(test_used_up_pages_wait_for_their_next_turn),
		cmocka_unit_test(test_mail_is_taken_in_a_few_pages_at_a_time),
		cmocka_unit_test(test_the_checker_finds_every_damage),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
