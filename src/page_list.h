/* SPDX-License-Identifier: MIT
 * page_list.h - owns the intrusive doubly linked list of pages (the seed's PageList): circular,
 * oldest first. Rank: 1.  Runs anywhere; the owner of the list serialises. Every operation is O(1).
 *
 *     head -> A <-> B <-> C -> A ...        head->prev is the tail; a page in no list has NULL
 *     links
 */
#ifndef KSLAB_PAGE_LIST_H
#define KSLAB_PAGE_LIST_H

#include <kslab/object_page.h>

#include "compiler.h"

KSLAB_INLINE bool kslab_page_list_is_linked(const struct kslab_page *page)
{
	return page->next != NULL;
}

/* True if the neighbours agree: asked before an unlink, so that no broken link is followed. */
KSLAB_INLINE bool kslab_page_list_is_sound(const struct kslab_page *page)
{
	return page->next != NULL && page->prev != NULL && page->next->prev == page &&
	       page->prev->next == page;
}

KSLAB_INLINE void kslab_page_list_insert_tail(struct kslab_page_list *list, struct kslab_page *page)
{
	struct kslab_page *head = list->head;

	if (head == NULL) {
		page->next = page->prev = page;
		list->head = page;
		return;
	}
	page->next = head;
	page->prev = head->prev;
	head->prev->next = page;
	head->prev = page;
}

KSLAB_INLINE void kslab_page_list_insert_head(struct kslab_page_list *list, struct kslab_page *page)
{
	kslab_page_list_insert_tail(list, page);
	list->head = page;
}

KSLAB_INLINE void kslab_page_list_remove(struct kslab_page_list *list, struct kslab_page *page)
{
	if (page->next == page) {
		list->head = NULL;
	} else {
		page->prev->next = page->next;
		page->next->prev = page->prev;
		if (list->head == page)
			list->head = page->next;
	}
	page->next = page->prev = NULL;
}

KSLAB_INLINE struct kslab_page *kslab_page_list_pop(struct kslab_page_list *list)
{
	struct kslab_page *page = list->head;

	if (page != NULL)
		kslab_page_list_remove(list, page);
	return page;
}

/* Steps through a list; the page it stands on may be removed. */
KSLAB_INLINE struct kslab_page *kslab_page_list_after(const struct kslab_page_list *list,
						      const struct kslab_page *page)
{
	return page->next == list->head ? NULL : page->next;
}

#endif
