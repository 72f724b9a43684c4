/* SPDX-License-Identifier: MIT
 * test_page_list.c - owns the tests of the intrusive page list.
 */
#include "testing.h"

#include "page_list.h"

#define PAGES 4u
#define DEPTH 6u

static struct kslab_page pages[PAGES];
static struct kslab_page_list list;
static unsigned model[PAGES], length; /* page numbers, oldest first */

static bool is_in_model(unsigned page)
{
	for (unsigned i = 0; i < length; i++)
		if (model[i] == page)
			return true;
	return false;
}

static void check_list(void)
{
	const struct kslab_page *page = list.head;
	unsigned n = 0;

	for (; page != NULL; page = kslab_page_list_after(&list, page)) {
		assert_true(n < length && page == &pages[model[n]]);
		assert_true(kslab_page_list_is_sound(page));
		assert_ptr_equal(page->prev, &pages[model[(n + length - 1) % length]]);
		assert_ptr_equal(page->next, &pages[model[(n + 1) % length]]);
		n++;
	}
	assert_int_equal(n, length);
	for (unsigned i = 0; i < PAGES; i++)
		assert_int_equal(kslab_page_list_is_linked(&pages[i]), is_in_model(i));
}

static void model_remove(unsigned page)
{
	unsigned to = 0;

	for (unsigned i = 0; i < length; i++)
		if (model[i] != page)
			model[to++] = model[i];
	length = to;
}

struct saved {
	struct kslab_page pages[PAGES];
	struct kslab_page_list list;
	unsigned model[PAGES], length;
};

static void save(struct saved *to)
{
	memcpy(to->pages, pages, sizeof(pages));
	to->list = list;
	memcpy(to->model, model, sizeof(model));
	to->length = length;
}

static void restore(const struct saved *from)
{
	memcpy(pages, from->pages, sizeof(pages));
	list = from->list;
	memcpy(model, from->model, sizeof(model));
	length = from->length;
}

static unsigned long sequences;

/* Every sequence of insert_head, insert_tail, remove and pop of this length. */
static void explore(unsigned depth)
{
	struct saved before;

	check_list();
	sequences++;
	if (depth == 0)
		return;
	save(&before);
	for (unsigned i = 0; i < PAGES; i++) {
		if (is_in_model(i)) {
			kslab_page_list_remove(&list, &pages[i]);
			model_remove(i);
			explore(depth - 1);
			restore(&before);
			continue;
		}
		kslab_page_list_insert_tail(&list, &pages[i]);
		model[length++] = i;
		explore(depth - 1);
		restore(&before);
		kslab_page_list_insert_head(&list, &pages[i]);
		memmove(model + 1, model, length * sizeof(model[0]));
		model[0] = i;
		length++;
		explore(depth - 1);
		restore(&before);
	}
	{
		struct kslab_page *popped = kslab_page_list_pop(&list);

		assert_ptr_equal(popped, length != 0 ? &pages[model[0]] : NULL);
		if (popped != NULL)
			model_remove(model[0]);
		explore(depth - 1);
		restore(&before);
	}
}

static void test_every_sequence_of_operations_agrees_with_a_model(void **state)
{
	(void)state;
	explore(DEPTH);
	assert_true(sequences > 50000);
}

static void test_a_page_may_be_removed_while_stepping_over_it(void **state)
{
	(void)state;
	/* For every subset: step through the list and remove the pages of the subset. */
	for (unsigned subset = 0; subset < 1u << PAGES; subset++) {
		struct kslab_page *page, *next;
		unsigned seen = 0;

		memset(pages, 0, sizeof(pages));
		list.head = NULL;
		length = 0;
		for (unsigned i = 0; i < PAGES; i++) {
			kslab_page_list_insert_tail(&list, &pages[i]);
			if (!(subset >> i & 1))
				model[length++] = i;
		}
		for (page = list.head; page != NULL; page = next) {
			next = kslab_page_list_after(&list, page);
			if (subset >> (page - pages) & 1)
				kslab_page_list_remove(&list, page);
			seen++;
		}
		assert_int_equal(seen, PAGES);
		check_list();
	}
}

static void test_broken_links_are_not_sound(void **state)
{
	(void)state;
	memset(pages, 0, sizeof(pages));
	list.head = NULL;
	for (unsigned i = 0; i < 3; i++)
		kslab_page_list_insert_tail(&list, &pages[i]);
	assert_false(kslab_page_list_is_sound(&pages[3])); /* in no list */
	for (unsigned i = 0; i < 3; i++) {
		struct kslab_page kept = pages[i];

		pages[i].next = &pages[i];
		assert_false(kslab_page_list_is_sound(&pages[i]));
		pages[i] = kept;
		pages[i].prev = NULL;
		assert_false(kslab_page_list_is_sound(&pages[i]));
		pages[i] = kept;
		pages[i].next = &pages[3];
		pages[3] = kept;
		pages[3].prev = NULL;
		assert_false(kslab_page_list_is_sound(&pages[i]));
		memset(&pages[3], 0, sizeof(pages[3]));
		pages[i] = kept;
		assert_true(kslab_page_list_is_sound(&pages[i]));
	}
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(test_every_sequence_of_operations_agrees_with_a_model),
		cmocka_unit_test(test_a_page_may_be_removed_while_stepping_over_it),
		cmocka_unit_test(test_broken_links_are_not_sound),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
