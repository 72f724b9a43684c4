/* SPDX-License-Identifier: MIT
 * test_region.c - owns the tests of the page source over plain memory.
 *
 * A region's state is a function of which pages are free and which of these are dirty: the free
 * blocks are the largest aligned ones. So instead of sequences every state is visited: each subset
 * of free pages of a small region, at each alignment of its base, and in each state every
 * operation. A depth-first walk over sequences adds the dirty pages.
 */
#include "testing.h"

#include "bitfield.h"
#include "region.h"

#define SHIFT 9u /* 512-byte pages: small regions need little memory */
#define PAGE ((size_t)1 << SHIFT)
#define PAGES_MAX 16u
#define META 256u /* bytes before the base that the trees get */

static unsigned char memory[(2 * 16 + PAGES_MAX + 2) * PAGE] __attribute__((aligned(32 * 512)));
static struct kslab_region region;

/* The model. */
static bool is_free[PAGES_MAX], is_dirty[PAGES_MAX];
static size_t pages;

struct saved {
	struct kslab_region region;
	unsigned char meta[META];
	bool is_free[PAGES_MAX], is_dirty[PAGES_MAX];
};

static void save(struct saved *to)
{
	to->region = region;
	memcpy(to->meta, (void *)(region.base - META), META);
	memcpy(to->is_free, is_free, sizeof(is_free));
	memcpy(to->is_dirty, is_dirty, sizeof(is_dirty));
}

static void restore(const struct saved *from)
{
	region = from->region;
	memcpy((void *)(region.base - META), from->meta, META);
	memcpy(is_free, from->is_free, sizeof(is_free));
	memcpy(is_dirty, from->is_dirty, sizeof(is_dirty));
}

/* A fresh region of n pages whose base is frame `offset` of a naturally aligned stretch of 32. */
static void begin(size_t n, size_t offset, bool track_dirty)
{
	uintptr_t base = (uintptr_t)memory + (1 + offset) * PAGE;

	memset(memory, track_dirty ? 0 : 0xa5, sizeof(memory));
	assert_true(
		kslab_region_init(&region, base - META, META + n * PAGE + 17, SHIFT, track_dirty));
	assert_true(region.base == base);
	assert_int_equal(region.pages, n);
	pages = n;
	for (size_t i = 0; i < PAGES_MAX; i++) {
		is_free[i] = i < n;
		is_dirty[i] = false;
	}
}

static uintptr_t first_frame(void)
{
	return region.base >> SHIFT;
}

/* Is the aligned block at this frame inside the region, and all of it free? */
static bool is_free_block(uintptr_t frame, unsigned order)
{
	for (uintptr_t f = frame; f < frame + ((uintptr_t)1 << order); f++)
		if (f < first_frame() || f >= first_frame() + pages || !is_free[f - first_frame()])
			return false;
	return true;
}

/* The block that the trees must hold: all free, and it has no free parent. */
static bool is_whole_block(uintptr_t frame, unsigned order)
{
	return is_free_block(frame, order) &&
	       (order + 1 == region.orders ||
		!is_free_block(frame >> (order + 1) << (order + 1), order + 1));
}

static void check_region(void)
{
	size_t free = 0, dirty = 0;

	for (unsigned k = 0; k < region.orders; k++) {
		uintptr_t low = first_frame() >> k, high = (first_frame() + pages - 1) >> k;

		for (uintptr_t block = low; block <= high; block++)
			if (kslab_bittree_test(region.order[k], block - low) !=
			    is_whole_block(block << k, k))
				fail_msg("%zu pages: block %zu of order %u is wrong", pages,
					 (size_t)(block - low), k);
	}
	for (size_t i = 0; i < pages; i++) {
		free += is_free[i];
		dirty += is_dirty[i];
		if (region.dirty != NULL && kslab_bittree_test(region.dirty, i) != is_dirty[i])
			fail_msg("dirtiness of page %zu is wrong", i);
	}
	assert_int_equal(region.free_pages, free);
	assert_int_equal(region.dirty_pages, dirty);
}

/* Pages leave the free state in the model. Return: none of them was dirty. */
static bool model_take(size_t first, size_t n)
{
	bool clean = true;

	for (size_t i = first; i < first + n; i++) {
		assert_true(i < pages && is_free[i]);
		clean = clean && !is_dirty[i];
		is_free[i] = is_dirty[i] = false;
	}
	return clean && region.dirty != NULL;
}

static unsigned order_for(size_t n, size_t align)
{
	unsigned order = 0;

	while ((size_t)1 << order < n || (size_t)1 << order < align)
		order++;
	return order;
}

/*
 * Where the contract puts a run: at the lowest address of the smallest block that fits. SIZE_MAX:
 * nowhere.
 */
static size_t model_find(size_t n, size_t align)
{
	for (unsigned k = order_for(n, align); k < region.orders; k++)
		for (size_t i = 0; i < pages; i++)
			if ((first_frame() + i) % ((size_t)1 << k) == 0 &&
			    is_whole_block(first_frame() + i, k))
				return i;
	return SIZE_MAX;
}

static void do_alloc(size_t n, size_t align)
{
	size_t wanted = model_find(n, align);
	bool zeroed = false;
	uintptr_t got = kslab_region_alloc(&region, SHIFT, n, align, &zeroed);

	if (got != (wanted == SIZE_MAX ? 0 : region.base + wanted * PAGE))
		fail_msg("%zu of %zu pages at multiple of %zu: wrong place", n, pages, align);
	if (got != 0) {
		assert_int_equal(got % (align * PAGE), 0);
		assert_int_equal(zeroed, model_take(wanted, n));
	}
	check_region();
}

static void do_free(size_t first, size_t n, bool dirty)
{
	kslab_region_free(&region, SHIFT, region.base + first * PAGE, n, dirty);
	for (size_t i = first; i < first + n; i++) {
		is_free[i] = true;
		is_dirty[i] = dirty && region.dirty != NULL;
	}
	check_region();
}

static void do_extend(size_t first, size_t n)
{
	bool possible = first + n <= pages, zeroed = false;

	for (size_t i = first; i < first + n && possible; i++)
		possible = is_free[i];
	assert_int_equal(kslab_region_extend(&region, SHIFT, region.base + first * PAGE, n,
					     &zeroed),
			 possible);
	if (possible)
		assert_int_equal(zeroed, model_take(first, n));
	check_region();
}

static bool is_run(bool free, size_t first, size_t n)
{
	for (size_t i = first; i < first + n; i++)
		if (is_free[i] != free)
			return false;
	return true;
}

/* Every operation in this state. */
static void every_operation(void)
{
	struct saved before;

	save(&before);
	for (size_t n = 1; n <= pages + 1; n++) {
		for (size_t align = 1; align <= 32; align *= 2) {
			do_alloc(n, align);
			restore(&before);
		}
	}
	for (size_t first = 0; first < pages; first++) {
		for (size_t n = 1; first + n <= pages + 1; n++) {
			do_extend(first, n);
			restore(&before);
			if (first + n <= pages && is_run(false, first, n)) {
				do_free(first, n, true);
				restore(&before);
			}
		}
	}
}

/* Bring a fresh region into the state where exactly this subset of its pages is free. */
static void make_state(unsigned subset)
{
	struct saved fresh;
	bool zeroed;

	save(&fresh);
	for (size_t i = 0; i < pages; i++)
		if (!(subset >> i & 1)) {
			assert_true(kslab_region_extend(&region, SHIFT, region.base + i * PAGE, 1,
							&zeroed));
			is_free[i] = false;
		}
	check_region();
	/* The same state again, from the other side: all taken, then freed one by one. */
	restore(&fresh);
	do_extend(0, pages);
	for (size_t i = 0; i < pages; i++)
		if (subset >> i & 1)
			do_free(i, 1, false);
}

static void every_state(size_t n, size_t offset)
{
	struct saved fresh;

	begin(n, offset, false);
	check_region();
	save(&fresh);
	for (unsigned subset = 0; subset < 1u << n; subset++) {
		make_state(subset);
		every_operation();
		restore(&fresh);
	}
}

static void test_every_operation_in_every_state_of_up_to_8_pages_at_any_alignment(void **state)
{
	(void)state;
	for (size_t n = 2; n <= 8; n++)
		for (size_t offset = 0; offset < (n < 7 ? 16 : 8); offset++)
			every_state(n, offset);
}

static void test_every_operation_in_every_state_of_11_pages(void **state)
{
	(void)state;
	every_state(11, 31);
	every_state(11, 3);
}

static unsigned long sequences;

/* Every sequence with dirty pages: allocate, free dirty or clean, extend, purge. */
static void explore(unsigned depth)
{
	struct saved before;
	uintptr_t run;
	size_t n, dirtiest = SIZE_MAX;

	sequences++;
	if (depth == 0)
		return;
	save(&before);
	for (n = 1; n <= pages; n += n < 3 ? 1 : 3) {
		do_alloc(n, 1);
		explore(depth - 1);
		restore(&before);
	}
	for (size_t first = 0; first < pages; first++) {
		if (first % 3 == 0) {
			do_extend(first, 2);
			explore(depth - 1);
			restore(&before);
		}
		/* The whole used run from here on, and its first page alone. */
		for (n = 0; first + n < pages && !is_free[first + n]; n++)
			;
		if (n == 0 || (first != 0 && !is_free[first - 1]))
			continue;
		for (unsigned dirty = 0; dirty < 2; dirty++) {
			do_free(first, n, dirty);
			explore(depth - 1);
			restore(&before);
			do_free(first, 1, dirty);
			explore(depth - 1);
			restore(&before);
		}
	}
	for (size_t i = pages; i-- > 0;)
		if (is_dirty[i])
			dirtiest = i;
	run = kslab_region_take_dirty(&region, SHIFT, &n);
	assert_int_equal(run == 0, dirtiest == SIZE_MAX);
	if (run != 0) {
		size_t first = (run - region.base) >> SHIFT;

		/* The block that holds the lowest dirty page. */
		assert_true(first <= dirtiest && dirtiest < first + n);
		assert_true(is_whole_block(run >> SHIFT, order_for(n, 1)));
		model_take(first, n);
	}
	check_region();
	explore(depth - 1);
	restore(&before);
}

static void test_every_sequence_with_dirty_pages_agrees_with_a_model(void **state)
{
	(void)state;
	for (size_t offset = 0; offset < 4; offset++) {
		begin(9, offset, true);
		explore(5);
	}
	assert_true(sequences > 100000);
}

static void test_without_tracking_nothing_is_known_to_be_zero(void **state)
{
	bool zeroed = true;
	size_t n;

	(void)state;
	begin(8, 7, false);
	assert_true(kslab_region_alloc(&region, SHIFT, 8, 1, &zeroed) == region.base);
	assert_false(zeroed);
	model_take(0, 8);
	do_free(0, 8, true);
	assert_int_equal(kslab_region_take_dirty(&region, SHIFT, &n), 0);
}

static void test_the_power_of_two_tail_goes_back_at_once(void **state)
{
	bool zeroed;

	(void)state;
	for (size_t n = 1; n <= 16; n++) {
		begin(16, 15, false); /* base is a multiple of 16 pages */
		assert_true(kslab_region_alloc(&region, SHIFT, n, 1, &zeroed) == region.base);
		assert_int_equal(region.free_pages, 16 - n);
		model_take(0, n);
		check_region();
		/* Every page of the tail can be had, one by one. */
		for (size_t i = n; i < 16; i++)
			assert_true(kslab_region_alloc(&region, SHIFT, 1, 1, &zeroed) != 0);
		assert_true(kslab_region_alloc(&region, SHIFT, 1, 1, &zeroed) == 0);
	}
}

static void test_purging_takes_pieces_of_at_most_1024_pages_with_the_dirty_page(void **state)
{
	enum { SMALL_SHIFT = 6, COUNT = 5000 };
	static unsigned char big[(COUNT + 64) << SMALL_SHIFT] __attribute__((aligned(1 << 17)));
	struct kslab_region r;
	bool zeroed;

	(void)state;
	memset(big, 0, sizeof(big));
	assert_true(kslab_region_init(&r, (uintptr_t)big, sizeof(big), SMALL_SHIFT, true));
	for (size_t page = 0; page < r.pages; page += 617) {
		size_t n, free = r.free_pages;
		uintptr_t at = r.base + (page << SMALL_SHIFT), run;

		assert_true(kslab_region_extend(&r, SMALL_SHIFT, at, 1, &zeroed));
		assert_true(zeroed);
		kslab_region_free(&r, SMALL_SHIFT, at, 1, true);
		assert_int_equal(r.dirty_pages, 1);
		run = kslab_region_take_dirty(&r, SMALL_SHIFT, &n);
		assert_true(run <= at && at < run + (n << SMALL_SHIFT) && n <= 1024);
		assert_int_equal(r.dirty_pages, 0);
		assert_int_equal(r.free_pages, free - n);
		kslab_region_free(&r, SMALL_SHIFT, run, n, false);
		assert_int_equal(r.free_pages, free);
	}
	/* All of it is one piece again: nothing was lost at the cuts. */
	assert_true(kslab_region_extend(&r, SMALL_SHIFT, r.base, r.pages, &zeroed));
	assert_true(zeroed);
}

static void test_a_long_run_knows_one_dirty_page_wherever_it_lies(void **state)
{
	enum { SMALL_SHIFT = 6, COUNT = 300 };
	static unsigned char big[(COUNT + 16) << SMALL_SHIFT] __attribute__((aligned(64)));
	struct kslab_region r;
	bool zeroed;

	(void)state;
	memset(big, 0, sizeof(big));
	assert_true(kslab_region_init(&r, (uintptr_t)big, sizeof(big), SMALL_SHIFT, true));
	for (size_t page = 0; page < 280; page++) {
		assert_true(kslab_region_extend(&r, SMALL_SHIFT, r.base, 280, &zeroed));
		kslab_region_free(&r, SMALL_SHIFT, r.base, 280, false);
		assert_true(kslab_region_extend(&r, SMALL_SHIFT, r.base + (page << SMALL_SHIFT), 1,
						&zeroed));
		kslab_region_free(&r, SMALL_SHIFT, r.base + (page << SMALL_SHIFT), 1, true);
		/* The run is dirty if and only if it holds the page. */
		if (page != 0) {
			assert_true(kslab_region_extend(&r, SMALL_SHIFT, r.base, page, &zeroed));
			assert_true(zeroed);
			kslab_region_free(&r, SMALL_SHIFT, r.base, page, false);
		}
		assert_true(kslab_region_extend(&r, SMALL_SHIFT, r.base, 280, &zeroed));
		assert_false(zeroed);
		assert_int_equal(r.dirty_pages, 0);
		kslab_region_free(&r, SMALL_SHIFT, r.base, 280, false);
	}
}

static void test_init_takes_memory_of_any_alignment_and_refuses_too_little(void **state)
{
	size_t accepted = 0;

	(void)state;
	for (size_t offset = 0; offset < 600; offset += 7) {
		for (size_t bytes = 0; bytes < 5 * PAGE; bytes += 13) {
			uintptr_t mem = (uintptr_t)memory + offset, tree_end;
			bool ok;

			memset(memory, 0xa5, 8 * PAGE);
			memset(&region, 0, sizeof(region));
			ok = kslab_region_init(&region, mem, bytes, SHIFT, false);
			if (!ok) {
				for (size_t i = 0; i < 8 * PAGE; i++)
					assert_int_equal(memory[i], 0xa5);
				assert_true(bytes < 4 * PAGE); /* that is always enough */
				continue;
			}
			accepted++;
			/* Trees inside the memory and before the pages; pages inside it. */
			assert_true((uintptr_t)region.order[0] >= mem);
			tree_end = (uintptr_t)(region.order[region.orders - 1] + 1);
			assert_true(tree_end <= region.base);
			assert_int_equal(region.base % PAGE, 0);
			assert_true(region.pages >= 1);
			assert_true(region.base + region.pages * PAGE <= mem + bytes);
			for (size_t i = 0; i < 8 * PAGE; i++)
				if (&memory[i] < (unsigned char *)mem ||
				    &memory[i] >= (unsigned char *)region.base)
					assert_int_equal(memory[i], 0xa5);
			assert_true(kslab_region_contains(&region, mem));
			assert_true(kslab_region_contains(&region, mem + bytes - 1));
			assert_false(kslab_region_contains(&region, mem + bytes));
			assert_false(kslab_region_contains(&region, mem - 1));
		}
	}
	assert_true(accepted > 1000);
}

static void test_metadata_takes_about_two_bits_a_page(void **state)
{
	/* Not touched beyond the metadata: 64 MiB of pages of 4 KiB. */
	const size_t bytes = (size_t)64 << 20;
	unsigned char *mem = mmap(NULL, bytes, PROT_READ | PROT_WRITE,
				  MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
	struct kslab_region r;

	(void)state;
	assert_true(mem != MAP_FAILED);
	assert_true(kslab_region_init(&r, (uintptr_t)mem, bytes, 12, false));
	/* 16384 pages: 4 KiB of bits and their upper levels */
	assert_true((bytes >> 12) - r.pages <= 2);
	munmap(mem, bytes);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(
			test_every_operation_in_every_state_of_up_to_8_pages_at_any_alignment),
		cmocka_unit_test(test_every_operation_in_every_state_of_11_pages),
		cmocka_unit_test(test_every_sequence_with_dirty_pages_agrees_with_a_model),
		cmocka_unit_test(test_without_tracking_nothing_is_known_to_be_zero),
		cmocka_unit_test(test_the_power_of_two_tail_goes_back_at_once),
		cmocka_unit_test(
			test_purging_takes_pieces_of_at_most_1024_pages_with_the_dirty_page),
		cmocka_unit_test(test_a_long_run_knows_one_dirty_page_wherever_it_lies),
		cmocka_unit_test(test_init_takes_memory_of_any_alignment_and_refuses_too_little),
		cmocka_unit_test(test_metadata_takes_about_two_bits_a_page),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
