/* SPDX-License-Identifier: MIT
 * test_quick.c - owns the tests of what a port can do for shorter calls: a flat page map, and a
 * zone that each CPU keeps for itself.
 * Rank: test.  Runs: one thread that plays all CPUs, on the default heap.
 *
 * BUILD: -DKSLAB_CFG_HEADER='"quick_port.h"' -DKSLAB_CFG_CPUS=4 -DKSLAB_CFG_FLAT_MAP=1
 */
#include "testing.h"

#include "heap.h"
#include "quick_port.h"

FAKE_CPU_DEFINE;
QUICK_PORT_DEFINE;

#define PAGE 4096u
#define SPAN ((size_t)1 << KSLAB_CFG_LEAF_SHIFT)
#define LEAVES 8u /* of the map that the tests give */
#define OBJECTS 4096u

static struct kslab_page *flat[LEAVES * KSLAB_LEAF_ENTRIES + 7];
static unsigned char *memory; /* more than the map can tell of */
static struct recorder recorder;

static void check(size_t faults)
{
	struct kslab_check_result result;

	assert_true(kslab_check(&result));
	assert_int_equal(recorder.count, faults);
}

static struct kslab_config configuration(void)
{
	return (struct kslab_config){ .window_base = (uintptr_t)memory,
				      .flat_map = flat,
				      .flat_map_bytes = sizeof(flat),
				      .report = recorder_report,
				      .report_ctx = &recorder };
}

static int setup(void **state)
{
	const size_t bytes = (LEAVES + 2) * SPAN;
	unsigned char *raw = mmap(NULL, bytes + SPAN, PROT_READ | PROT_WRITE,
				  MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);

	(void)state;
	if (raw == MAP_FAILED)
		return 1;
	memory = raw + (-(uintptr_t)raw & (SPAN - 1));
	return 0;
}

static void begin(size_t bytes)
{
	const struct kslab_config config = configuration();

	memset(flat, 0, sizeof(flat));
	memset(&recorder, 0, sizeof(recorder));
	fake_cpu = 0;
	for (unsigned cpu = 0; cpu < QUICK_CPUS; cpu++)
		quick_zone[cpu] = &kslab_zone_none;
	assert_int_equal(kslab_init(&config), KSLAB_OK);
	assert_int_equal(kslab_add_region(memory, bytes), KSLAB_OK);
	check(0);
}

static void end(size_t faults)
{
	fake_cpu = 0;
	check(faults);
	assert_int_equal(kslab_fini(), KSLAB_OK);
	assert_ptr_equal(quick_zone[0], &kslab_zone_none);
}

static void test_without_memory_for_the_map_there_is_no_heap(void **state)
{
	struct kslab_config config = configuration();

	(void)state;
	config.flat_map = NULL;
	assert_int_equal(kslab_init(&config), KSLAB_BAD_ARGUMENT);
	config.flat_map = flat;
	config.flat_map_bytes = KSLAB_LEAF_BYTES - 1;
	assert_int_equal(kslab_init(&config), KSLAB_BAD_ARGUMENT);
}

static void test_objects_of_all_leaves_are_found(void **state)
{
	static void *object[OBJECTS];
	size_t leaves = 0, sizes[] = { 8, 100, 512, 3000, 20000 };

	(void)state;
	begin(LEAVES * SPAN);
	for (size_t i = 0; i < OBJECTS; i++) {
		size_t n = sizes[i % TESTING_COUNT(sizes)];

		object[i] = kslab_malloc(n);
		if (object[i] == NULL)
			break;
		memset(object[i], 1, n);
		assert_true(kslab_usable_size(object[i]) >= n);
	}
	for (size_t i = 0; i < LEAVES; i++)
		leaves += flat[i * KSLAB_LEAF_ENTRIES] != NULL;
	assert_true(leaves >= 4);
	check(0);
	for (size_t i = 0; i < OBJECTS; i++) {
		kslab_free(object[i]);
		if (object[i] != NULL && i % 256 == 0) {
			size_t faults = recorder.count;

			kslab_free(object[i]);
			assert_int_equal(recorder.last.fault, KSLAB_FAULT_DOUBLE_FREE);
			check(faults + 1);
		}
	}
	end(recorder.count);
}

/* Where no leaf was made the map is zero, and tells nothing; behind its end it is not looked at. */
static void test_addresses_without_a_leaf_are_foreign(void **state)
{
	size_t faults = 0;

	(void)state;
	begin(LEAVES * SPAN);
	kslab_free(kslab_malloc(64));
	assert_null(flat[(LEAVES - 1) * KSLAB_LEAF_ENTRIES]);
	for (size_t leaf = 1; leaf < LEAVES + 2; leaf++) {
		for (size_t grain = 0; grain < KSLAB_LEAF_ENTRIES; grain += 73) {
			kslab_free(memory + leaf * SPAN + grain * PAGE);
			assert_int_equal(recorder.last.fault, KSLAB_FAULT_FOREIGN_POINTER);
			check(++faults);
		}
	}
	kslab_free(memory - 1);
	assert_int_equal(recorder.last.fault, KSLAB_FAULT_FOREIGN_POINTER);
	end(faults + 1);
}

static void test_the_window_ends_where_its_map_ends(void **state)
{
	(void)state;
	begin(2 * SPAN);
	assert_int_equal(kslab_add_region(memory + LEAVES * SPAN - SPAN, 2 * SPAN),
			 KSLAB_BAD_ARGUMENT);
	assert_int_equal(recorder.last.fault, KSLAB_FAULT_BAD_REGION);
	assert_int_equal(kslab_add_region(memory + LEAVES * SPAN - SPAN, SPAN), KSLAB_OK);
	end(1);
}

/* Without a wish the window of a short map is placed so that it holds what comes first. */
static void test_a_short_map_reaches_the_first_region(void **state)
{
	struct kslab_config config = configuration();

	(void)state;
	for (size_t leaf = 0; leaf <= 2; leaf++) {
		void *block[2 * LEAVES];
		size_t n = 0;

		memset(flat, 0, sizeof(flat));
		memset(&recorder, 0, sizeof(recorder));
		config.window_base = 0;
		assert_int_equal(kslab_init(&config), KSLAB_OK);
		assert_int_equal(kslab_add_region(memory + leaf * SPAN - leaf,
						  LEAVES * SPAN + leaf),
				 leaf == 0 ? KSLAB_OK : KSLAB_BAD_ARGUMENT);
		if (leaf != 0)
			assert_int_equal(kslab_add_region(memory + leaf * SPAN, LEAVES * SPAN),
					 KSLAB_OK);
		while (n < 2 * LEAVES && (block[n] = kslab_malloc(SPAN / 2)) != NULL)
			n++;
		assert_in_range(n, 2 * LEAVES - 4, 2 * LEAVES - 1);
		check(leaf != 0);
		kslab_free_bulk(n, block);
		end(leaf != 0);
	}
}

/* The map of a window at the end of the address space has no entry for what lies at its beginning. */
static void test_null_does_not_lie_in_a_window_at_the_end(void **state)
{
	struct kslab_config config = configuration();

	(void)state;
	memset(flat, 0, sizeof(flat));
	memset(&recorder, 0, sizeof(recorder));
	config.window_base = (uintptr_t)0 - 2 * SPAN;
	assert_int_equal(kslab_init(&config), KSLAB_OK);
	kslab_free(NULL);
	check(0);
	kslab_free((void *)(uintptr_t)PAGE);
	assert_int_equal(recorder.last.fault, KSLAB_FAULT_FOREIGN_POINTER);
	end(1);
}

/* The whole way of a CPU: it comes, allocates, others free for it, it goes. */
static void test_each_cpu_has_its_zone_at_hand(void **state)
{
	void *p, *q;

	(void)state;
	begin(4 * SPAN);
	assert_ptr_equal(quick_zone[0], kslab_default_heap.zone[0]);
	fake_cpu = 2;
	assert_null(kslab_malloc(64));
	assert_int_equal(kslab_cpu_online(2), KSLAB_OK);
	assert_ptr_equal(quick_zone[2], kslab_default_heap.zone[2]);
	assert_ptr_equal(quick_zone[0], kslab_default_heap.zone[0]);
	p = kslab_malloc(64);
	q = kslab_malloc(64);
	assert_non_null(p);
	check(0);
	fake_cpu = 0;
	kslab_free(p);
	check(0);
	assert_int_equal(kslab_default_heap.zone[0]->owner.remote_frees, 1);
	fake_cpu = 3; /* not online: frees all the same */
	kslab_free(q);
	check(0);
	fake_cpu = 2;
	assert_int_equal(kslab_cpu_offline(2), KSLAB_OK);
	assert_ptr_equal(quick_zone[2], &kslab_zone_none);
	assert_null(kslab_malloc(64));
	check(0);
	assert_int_equal(kslab_cpu_online(2), KSLAB_OK);
	p = kslab_malloc(64);
	assert_non_null(p);
	fake_cpu = 0; /* it has stopped: somebody else takes it offline */
	assert_int_equal(kslab_cpu_offline(2), KSLAB_OK);
	assert_ptr_equal(quick_zone[0], kslab_default_heap.zone[0]);
	kslab_free(p);
	end(0);
}

/* Another heap has its own table, whatever the port keeps for the default one. */
static void test_another_heap_is_not_touched(void **state)
{
	static struct kslab_heap other;
	static struct kslab_page *other_flat[2 * KSLAB_LEAF_ENTRIES];
	struct kslab_config config = configuration();
	void *p;

	(void)state;
	begin(2 * SPAN);
	config.flat_map = other_flat;
	config.flat_map_bytes = sizeof(other_flat);
	config.window_base = (uintptr_t)memory + 4 * SPAN;
	assert_int_equal(kslab_heap_init(&other, &config), KSLAB_OK);
	assert_int_equal(kslab_heap_add_region(&other, memory + 4 * SPAN, 2 * SPAN), KSLAB_OK);
	assert_ptr_equal(quick_zone[0], kslab_default_heap.zone[0]);
	p = kslab_heap_malloc(&other, 64);
	assert_int_equal(kslab_heap_usable_size(&other, p), 64);
	kslab_free(p);
	assert_int_equal(recorder.last.fault, KSLAB_FAULT_FOREIGN_POINTER);
	check(1);
	kslab_heap_free(&other, p);
	assert_int_equal(kslab_heap_fini(&other), KSLAB_OK);
	end(1);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(test_without_memory_for_the_map_there_is_no_heap),
		cmocka_unit_test(test_objects_of_all_leaves_are_found),
		cmocka_unit_test(test_addresses_without_a_leaf_are_foreign),
		cmocka_unit_test(test_the_window_ends_where_its_map_ends),
		cmocka_unit_test(test_a_short_map_reaches_the_first_region),
		cmocka_unit_test(test_null_does_not_lie_in_a_window_at_the_end),
		cmocka_unit_test(test_each_cpu_has_its_zone_at_hand),
		cmocka_unit_test(test_another_heap_is_not_touched),
	};

	return cmocka_run_group_tests(tests, setup, NULL);
}
