/* SPDX-License-Identifier: MIT
 * test_grain.c - owns the tests of a page map whose grain is as long as can be: the page is, too.
 *
 * BUILD: -DKSLAB_CFG_GRAIN_SHIFT=20
 */
#include "testing.h"

#define PAGE ((size_t)1 << KSLAB_CFG_GRAIN_SHIFT)

static void the_base_page_is_at_least_the_grain_by_default(void **state)
{
	static unsigned char memory[16 * PAGE] __attribute__((aligned(1 << KSLAB_CFG_GRAIN_SHIFT)));
	static struct kslab_heap heap;
	struct kslab_stats stats;
	void *object;

	(void)state;
	assert_int_equal(kslab_heap_init_region(&heap, memory, sizeof(memory)), KSLAB_OK);
	kslab_heap_stats(&heap, &stats);
	assert_int_equal(stats.page_bytes, PAGE);
	object = kslab_heap_malloc(&heap, PAGE);
	assert_non_null(object);
	assert_int_equal((uintptr_t)object % PAGE, 0);
	assert_true(kslab_heap_check(&heap, NULL));
	kslab_heap_free(&heap, object);
	assert_int_equal(kslab_heap_fini(&heap), KSLAB_OK);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(the_base_page_is_at_least_the_grain_by_default),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
