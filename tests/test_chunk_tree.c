/* SPDX-License-Identifier: MIT
 * test_chunk_tree.c - owns the tests of the trees of page runs, and of what a heap keeps in them:
 * metadata that the map does not know, and pages that are set aside.
 * BUILD: -DKSLAB_CFG_LEAF_SHIFT=14
 *
 * The shape of a tree depends on the order of what was done, so sequences are walked through, all of
 * them up to a length. A leaf of four pages makes metadata without one common.
 */
#include "testing.h"

#include "chunk_tree.h"
#include "heap.h"
#include "page_source.h"

#define SHIFT 12u
#define PAGE ((uintptr_t)1 << SHIFT)
#define RUNS_MAX 2048u

static struct kslab_chunk chunk[RUNS_MAX];
static bool is_in[RUNS_MAX];
static size_t runs;
static struct kslab_chunk_tree tree;

static void begin(void)
{
	/* What a record holds before it is taken in is nobody's business. */
	memset(chunk, 0xa5, sizeof(chunk));
	memset(is_in, 0, sizeof(is_in));
	memset(&tree, 0, sizeof(tree));
	runs = 0;
}

static void add_run(uintptr_t page, size_t pages)
{
	assert_true(runs < RUNS_MAX);
	chunk[runs].address = page << SHIFT;
	chunk[runs++].pages = pages;
}

static const struct kslab_chunk *model_floor(uintptr_t address)
{
	const struct kslab_chunk *best = NULL;

	for (size_t i = 0; i < runs; i++)
		if (is_in[i] && chunk[i].address <= address &&
		    (best == NULL || best->address < chunk[i].address))
			best = &chunk[i];
	return best;
}

static bool model_overlaps(uintptr_t first, uintptr_t last)
{
	for (size_t i = 0; i < runs; i++)
		if (is_in[i] && chunk[i].address <= last &&
		    chunk[i].address + (chunk[i].pages << SHIFT) - 1 >= first)
			return true;
	return false;
}

/* The longest way down. */
static unsigned height(void)
{
	const struct kslab_chunk *node[130];
	unsigned depth[130], n = 0, most = 0;

	if (tree.root != NULL) {
		node[n] = tree.root;
		depth[n++] = 1;
	}
	while (n != 0) {
		const struct kslab_chunk *at = node[--n];
		unsigned d = depth[n];

		most = d > most ? d : most;
		for (unsigned side = 0; side < 2; side++) {
			if (at->child[side] == NULL)
				continue;
			assert_true(n < TESTING_COUNT(node));
			node[n] = at->child[side];
			depth[n++] = d + 1;
		}
	}
	return most;
}

#define HEIGHT_MAX (8u * (unsigned)sizeof(uintptr_t) - SHIFT + 1)

static void check_shape(void)
{
	const struct kslab_chunk *where;
	const char *what = kslab_chunk_tree_verify(&tree, SHIFT, &where);
	size_t count = 0;

	if (what != NULL)
		fail_msg("%s: %p", what, (void *)where->address);
	for (size_t i = 0; i < runs; i++)
		count += is_in[i];
	assert_int_equal(tree.count, count);
	assert_true((tree.root == NULL) == (count == 0));
	assert_true(height() <= HEIGHT_MAX && height() <= count);
}

/* Every answer at and round the ends of every run. */
static void check_answers(void)
{
	uintptr_t at[4 * 8 + 2];
	size_t n = 0;

	at[n++] = 0;
	at[n++] = UINTPTR_MAX;
	for (size_t i = 0; i < runs; i++) {
		uintptr_t end = chunk[i].address + (chunk[i].pages << SHIFT);

		at[n++] = chunk[i].address;
		at[n++] = chunk[i].address - 1;
		at[n++] = end;
		at[n++] = end - 1;
	}
	for (size_t i = 0; i < n; i++) {
		assert_ptr_equal(kslab_chunk_tree_floor(&tree, at[i]), model_floor(at[i]));
		for (size_t k = 0; k < n; k++)
			if (at[k] >= at[i] && at[k] - at[i] != UINTPTR_MAX)
				assert_true(kslab_chunk_tree_overlaps(&tree, SHIFT, at[i],
								      at[k] - at[i] + 1) ==
					    model_overlaps(at[i], at[k]));
	}
}

static void toggle(size_t i)
{
	if (is_in[i]) {
		struct kslab_chunk again = chunk[i];

		assert_false(kslab_chunk_tree_insert(&tree, &again)); /* it is there */
		kslab_chunk_tree_remove(&tree, &chunk[i]);
	} else {
		assert_true(kslab_chunk_tree_insert(&tree, &chunk[i]));
	}
	is_in[i] = !is_in[i];
}

/* Every sequence of taking in and out, `depth` steps from here. */
static void walk(unsigned depth)
{
	struct kslab_chunk saved[8];
	struct kslab_chunk_tree saved_tree = tree;

	check_shape();
	check_answers();
	if (depth == 0)
		return;
	memcpy(saved, chunk, runs * sizeof(*chunk));
	for (size_t i = 0; i < runs; i++) {
		toggle(i);
		walk(depth - 1);
		memcpy(chunk, saved, runs * sizeof(*chunk));
		tree = saved_tree;
		is_in[i] = !is_in[i];
	}
}

static void test_every_sequence_over_a_few_runs_is_right(void **state)
{
	const uintptr_t last = UINTPTR_MAX >> SHIFT;
	const struct {
		uintptr_t page[4];
		size_t pages[4];
	} sets[] = {
		{ { 0, 1, 2, 3 }, { 1, 1, 1, 1 } },
		{ { 1, 2, 4, 8 }, { 1, 2, 3, 1 } },
		{ { 5, 6, 9, 10 }, { 1, 2, 1, 7 } },
		{ { 0, 1, last / 2 + 1, last }, { 1, 100, 1, 1 } },
		{ { last - 6, last - 4, last - 3, last - 1 }, { 2, 1, 1, 2 } },
		{ { 3, 4, last / 2, last / 2 + 1 }, { 1, 1, 1, 1 } },
	};

	(void)state;
	for (size_t s = 0; s < TESTING_COUNT(sets); s++) {
		begin();
		for (size_t i = 0; i < 4; i++)
			add_run(sets[s].page[i], sets[s].pages[i]);
		walk(6);
	}
}

/* Six runs, taken in by every order and taken out by the same one and its reverse. */
static void permute(size_t order[6], size_t n)
{
	if (n == 6) {
		for (unsigned reverse = 0; reverse < 2; reverse++) {
			for (size_t i = 0; i < 6; i++)
				toggle(order[i]);
			check_shape();
			check_answers();
			for (size_t i = 0; i < 6; i++) {
				toggle(order[reverse ? 5 - i : i]);
				check_shape();
			}
		}
		return;
	}
	for (size_t i = n; i < 6; i++) {
		size_t swap = order[n];

		order[n] = order[i];
		order[i] = swap;
		permute(order, n + 1);
		order[i] = order[n];
		order[n] = swap;
	}
}

static void test_every_order_of_six_runs_is_right(void **state)
{
	const uintptr_t sets[][6] = { { 0, 1, 2, 3, 4, 5 },
				      { 1, 2, 4, 8, 16, 32 },
				      { 7, 8, 23, 24, 25, 40 } };

	(void)state;
	for (size_t s = 0; s < TESTING_COUNT(sets); s++) {
		size_t order[6] = { 0, 1, 2, 3, 4, 5 };

		begin();
		for (size_t i = 0; i < 6; i++)
			add_run(sets[s][i], 1);
		permute(order, 0);
	}
}

static void test_a_way_down_is_no_longer_than_a_page_number(void **state)
{
	(void)state;
	/* A run for every bit, from the smallest on: every step down tells by one bit more. */
	for (unsigned order = 0; order < 2; order++) {
		begin();
		for (unsigned bit = 0; bit + SHIFT < 8 * sizeof(uintptr_t); bit++)
			add_run((uintptr_t)1 << bit, 1);
		add_run(0, 1);
		for (size_t i = 0; i < runs; i++)
			toggle(order ? runs - 1 - i : i);
		check_shape();
		assert_true(height() >= HEIGHT_MAX / 2);
	}
	/* Neighbours, as a source hands them out: as short as can be, or nearly. */
	begin();
	for (size_t i = 0; i < 1024; i++)
		add_run(4096 + i, 1);
	for (size_t i = 0; i < runs; i++)
		toggle(i);
	check_shape();
	assert_true(height() <= 11);
}

static void test_many_runs_at_random(void **state)
{
	struct testing_random random = testing_seed("test_many_runs_at_random", 20260917);

	(void)state;
	for (unsigned spread = 0; spread < 3; spread++) {
		uintptr_t page = 1;

		begin();
		for (size_t i = 0; i < 600; i++) {
			size_t pages = 1 + testing_random_below(&random, 3);

			add_run(page, pages);
			page += pages + testing_random_below(&random, (size_t)1 << (spread * 4));
		}
		for (size_t step = 0; step < 4000; step++) {
			uintptr_t at = testing_random_below(&random, page << SHIFT);
			uintptr_t bytes = 1 + testing_random_below(&random, 4 * PAGE);

			toggle(testing_random_below(&random, runs));
			assert_ptr_equal(kslab_chunk_tree_floor(&tree, at), model_floor(at));
			assert_true(kslab_chunk_tree_overlaps(&tree, SHIFT, at, bytes) ==
				    model_overlaps(at, at + bytes - 1));
			if (step % 16 == 0)
				check_shape();
		}
	}
}

/* What is broken on purpose is found. */
static void test_a_broken_tree_is_found(void **state)
{
	const struct kslab_chunk *where;
	struct kslab_chunk *root, *child;

	(void)state;
#define BROKEN(what)                                                                               \
	do {                                                                                       \
		begin();                                                                           \
		for (size_t i = 0; i < 7; i++)                                                     \
			add_run(2 * i + 1, 1);                                                     \
		for (size_t i = 0; i < 7; i++)                                                     \
			toggle(i);                                                                 \
		check_shape();                                                                     \
		root = tree.root;                                                                  \
		child = root->child[root->child[0] == NULL];                                       \
		what;                                                                              \
		if (kslab_chunk_tree_verify(&tree, SHIFT, &where) == NULL)                         \
			fail_msg("not found: %s", #what);                                          \
	} while (0)
	BROKEN(tree.count++);
	BROKEN(tree.count--);
	BROKEN(tree.root = NULL);
	BROKEN((root->child[0] = root->child[1], root->child[1] = child));
	BROKEN(root->bit++);
	BROKEN(root->bit = 255);
	BROKEN(root->bit = 0);
	BROKEN(root->child[0] = root);
	BROKEN(root->child[1] = root);
	BROKEN(root->child[0] = NULL);
	BROKEN(child->bit = root->bit);
	BROKEN(child->child[0] = root);
	BROKEN(child->address += PAGE << 8);
	BROKEN(child->address++);
	BROKEN(root->pages = 0);
	BROKEN(root->pages = 3);
	BROKEN(chunk[6].pages = UINTPTR_MAX >> SHIFT);
#undef BROKEN
}

/* ---- a heap on scattered pages --------------------------------------------------------------- */

#define SOURCE_PAGES 1024u

/* Single pages from anywhere in a stretch. */
static struct scattered {
	unsigned char *memory;
	bool is_out[SOURCE_PAGES];
	size_t out;
	struct testing_random random;
	unsigned char *again; /* hand this out next */
	size_t returned_again;
} source;

static void *scattered_alloc(void *ctx, size_t pages)
{
	unsigned char *mem = source.again;
	size_t i;

	(void)ctx;
	if (mem != NULL) {
		source.again = NULL;
		return mem;
	}
	if (pages != 1 || source.out > SOURCE_PAGES / 2)
		return NULL;
	do {
		i = testing_random_below(&source.random, SOURCE_PAGES);
	} while (source.is_out[i]);
	source.is_out[i] = true;
	source.out++;
	return source.memory + i * PAGE;
}

static void scattered_free(void *ctx, void *mem, size_t pages)
{
	size_t i = ((uintptr_t)mem - (uintptr_t)source.memory) / PAGE;

	(void)ctx;
	assert_int_equal(pages, 1);
	assert_true(i < SOURCE_PAGES && source.is_out[i]);
	source.is_out[i] = false;
	source.out--;
}

static size_t bad_pages;

static void count_bad_page(void *ctx, const struct kslab_report *report)
{
	(void)ctx;
	assert_int_equal(report->fault, KSLAB_FAULT_BAD_PAGE);
	bad_pages++;
}

static struct kslab_heap heap;

/* The heap knows exactly the pages that it has, and is well. */
static void check_heap(void)
{
	struct kslab_check_result result;

	if (!kslab_heap_check(&heap, &result))
		fail_msg("%s at %p", result.what, result.page);
	for (size_t i = 0; i < SOURCE_PAGES; i++)
		if (kslab_source_is_known(&heap, (uintptr_t)source.memory + i * PAGE, PAGE) !=
		    source.is_out[i])
			fail_msg("page %zu, out: %d", i, source.is_out[i]);
}

static void begin_heap(size_t emergency_pages, uint64_t seed)
{
	const struct kslab_config config = { .alloc_pages = scattered_alloc,
					     .free_pages = scattered_free,
					     .report = count_bad_page,
					     .max_page_bytes = PAGE,
					     .retain_bytes = KSLAB_RETAIN_NONE,
					     .emergency_pages = emergency_pages };

	if (source.memory == NULL) {
		size_t bytes = SOURCE_PAGES * PAGE;
		uintptr_t raw = (uintptr_t)mmap(NULL, 2 * bytes, PROT_READ | PROT_WRITE,
						MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);

		source.memory = (unsigned char *)((raw + bytes - 1) & ~(uintptr_t)(bytes - 1));
	}
	memset(source.is_out, 0, sizeof(source.is_out));
	source.out = 0;
	source.random.state = seed;
	bad_pages = 0;
	memset(&heap, 0, sizeof(heap)); /* the one of the test before is left as it is */
	assert_int_equal(kslab_heap_init(&heap, &config), KSLAB_OK);
	check_heap();
}

/* A chunk of metadata. */
static void add_chunk(void)
{
	enum kslab_reason reason;

	kslab_meta_alloc(&heap, PAGE - 256, 0, &reason);
}

static void test_a_heap_knows_exactly_its_pages_wherever_they_lie(void **state)
{
	struct testing_random random =
		testing_seed("test_a_heap_knows_exactly_its_pages_wherever_they_lie", 20260918);
	size_t unmarked = 0, marked = 0, refilled = 0;

	(void)state;
	for (unsigned round = 0; round < 12; round++) {
		size_t set_aside = round % 4 * 3;
		void *object[128] = { NULL };

		begin_heap(set_aside, testing_random_next(&random));
		for (size_t step = 0; step < 600; step++) {
			size_t i = testing_random_below(&random, TESTING_COUNT(object));
			unsigned flags = testing_random_below(&random, 4) == 0
						 ? KSLAB_RESERVE | KSLAB_NOWAIT
						 : 0;
			size_t aside = heap.emergency.count;

			if (object[i] != NULL) {
				kslab_heap_free(&heap, object[i]);
				object[i] = NULL;
			} else {
				object[i] =
					kslab_heap_alloc(&heap,
							 1 + testing_random_below(&random, PAGE), 1,
							 flags);
			}
			if (testing_random_below(&random, 16) == 0)
				add_chunk();
			refilled += heap.emergency.count > aside;
			if (step % 8 == 0)
				check_heap();
			unmarked += heap.meta.unmarked.count != 0;
		}
		for (const struct kslab_chunk *at = heap.meta.chunks; at != NULL; at = at->next)
			marked += at->marked;
		for (size_t i = 0; i < TESTING_COUNT(object); i++)
			kslab_heap_free(&heap, object[i]);
		check_heap();
		assert_int_equal(bad_pages, 0);
		assert_int_equal(kslab_heap_fini(&heap), KSLAB_OK);
		assert_int_equal(source.out, 0);
	}
	print_message(
		"# %zu steps with metadata unmarked, %zu chunks marked, %zu pages set aside\n",
		unmarked, marked, refilled);
	assert_true(unmarked > 100 && marked > 100 && refilled > 10);
}

static void test_a_page_that_comes_twice_is_refused_wherever_it_lies(void **state)
{
	size_t wanted = 0;

	(void)state;
	begin_heap(5, 1);
	for (size_t i = 0; i < 20; i++)
		add_chunk();
	for (size_t i = 0; i < 32; i++)
		assert_non_null(kslab_heap_malloc(&heap, PAGE));
	assert_true(heap.meta.unmarked.count != 0);
	for (size_t i = 0; i < SOURCE_PAGES; i++) {
		void *p;

		if (!source.is_out[i])
			continue;
		source.again = source.memory + i * PAGE;
		p = kslab_heap_malloc(&heap, PAGE);
		assert_int_equal(bad_pages, ++wanted);
		assert_null(p);
	}
	check_heap();
}

/* The map learns of metadata by and by, as it gets leaves: a few chunks with each. */
static void test_metadata_is_marked_as_the_map_gets_leaves(void **state)
{
	size_t leaves = 0, markable = 0;

	(void)state;
	begin_heap(0, 2);
	for (size_t i = 0; i < 150; i++)
		add_chunk();
	kslab_heap_malloc(&heap, PAGE);
	assert_true(heap.meta.unmarked.count > 140);
	while (kslab_heap_malloc(&heap, PAGE) != NULL)
		;
	for (size_t i = 0; i < SOURCE_PAGES; i += 4) {
		uintptr_t missing;

		leaves += !kslab_page_map_lacks_leaf(&heap.map, (uintptr_t)source.memory + i * PAGE,
						     1, &missing);
	}
	for (const struct kslab_chunk *at = heap.meta.chunks; at != NULL; at = at->next) {
		uintptr_t missing;

		markable += !at->marked &&
			    !kslab_page_map_lacks_leaf(&heap.map, at->address, 1, &missing);
	}
	print_message("# %zu leaves, %zu chunks unmarked, %zu of them could be\n", leaves,
		      heap.meta.unmarked.count, markable);
	assert_true(leaves > SOURCE_PAGES / 4 * 3 / 4);
	assert_true(heap.meta.unmarked.count < 80 && markable < 20);
	check_heap();
}

static void test_the_checker_finds_what_is_wrong_with_metadata(void **state)
{
	struct kslab_chunk *aside;

	(void)state;
	begin_heap(7, 3);
	for (size_t i = 0; i < 20; i++)
		add_chunk();
	for (size_t i = 0; i < 4; i++)
		assert_non_null(kslab_heap_malloc(&heap, PAGE));
	assert_true(heap.meta.unmarked.count > 2);
	check_heap();
	aside = heap.emergency.root;
#define BROKEN(what, mend)                                                                         \
	do {                                                                                       \
		what;                                                                              \
		if (kslab_heap_check(&heap, NULL))                                                 \
			fail_msg("not found: %s", #what);                                          \
		mend;                                                                              \
		check_heap();                                                                      \
	} while (0)
	BROKEN(heap.emergency.count--, heap.emergency.count++);
	BROKEN(heap.emergency_target = 6, heap.emergency_target = 7);
	BROKEN(aside->bit ^= 1, aside->bit ^= 1);
	BROKEN(aside->pages = 0, aside->pages = 1);
	BROKEN(heap.meta.pages++, heap.meta.pages--);
	BROKEN(heap.meta.unmarked.root->marked = true, heap.meta.unmarked.root->marked = false);
	BROKEN(heap.meta.unmarked.count++, heap.meta.unmarked.count--);
#undef BROKEN
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(test_every_sequence_over_a_few_runs_is_right),
		cmocka_unit_test(test_every_order_of_six_runs_is_right),
		cmocka_unit_test(test_a_way_down_is_no_longer_than_a_page_number),
		cmocka_unit_test(test_many_runs_at_random),
		cmocka_unit_test(test_a_broken_tree_is_found),
		cmocka_unit_test(test_a_heap_knows_exactly_its_pages_wherever_they_lie),
		cmocka_unit_test(test_a_page_that_comes_twice_is_refused_wherever_it_lies),
		cmocka_unit_test(test_metadata_is_marked_as_the_map_gets_leaves),
		cmocka_unit_test(test_the_checker_finds_what_is_wrong_with_metadata),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
