/* SPDX-License-Identifier: MIT
 * heap_scenarios.c - owns the scenarios of the whole heap: CPUs that go and come, limbo, adoption,
 * reclaim, quiesce, the heap lock, the page map and descriptors that live again. Thread i plays CPU
 * i.
 *
 * At the end of each execution, when all is visible: no fault was reported that the scenario does
 * not expect; what was live is freed, the heap quiesces, its check finds nothing, it ends with no
 * live object, and every page is back at its source.
 */
#include "scenarios.h"

#include "heap.h"

#include <stdio.h>
#include <string.h>

#define PAGE_BYTES 512u
#define OBJECT_BYTES 256u /* two in a page */
#define CPU_PAGES 80u /* of each CPU's source; CPU 0 also feeds the setup */
#define OBJECTS 8u

/* One window of the page map covers it all, wherever the loader puts it. */
#define WINDOW_BYTES ((size_t)KSLAB_CFG_TOP_ENTRIES << KSLAB_CFG_LEAF_SHIFT)

static _Alignas(WINDOW_BYTES) struct {
	struct kslab_heap heap;
	_Alignas(PAGE_BYTES) unsigned char page[KSLAB_CFG_CPUS][CPU_PAGES][PAGE_BYTES];
	unsigned taken[KSLAB_CFG_CPUS], given[KSLAB_CFG_CPUS];
	unsigned pages_left; /* what each CPU's source may still give */
	void *object[OBJECTS];
	bool is_live[OBJECTS];
	uint32_t handover[2];
	struct kslab_page *descriptor[2], *held[KSLAB_CFG_CPUS];
	struct kslab_cache cache, other;
	bool cache_is_over;
	bool expects_double_free;
	unsigned faults[KSLAB_CFG_CPUS + 2];
} h;

#define HEAP (&h.heap)

struct tally tally;

static unsigned setup_cpu; /* who the setup, and the check, pretend to be */

unsigned heap_cpu(void)
{
	return wmm_self() < KSLAB_CFG_CPUS ? wmm_self() : setup_cpu;
}

/* ---- the kernel's side ----------------------------------------------------------------------- */

/* Each CPU has its own memory, so that the source orders nothing. */
static void *alloc_pages(void *ctx, size_t pages)
{
	unsigned cpu = heap_cpu(), at = h.taken[cpu];

	(void)ctx;
	if (at + pages > CPU_PAGES || (wmm_self() < KSLAB_CFG_CPUS && h.pages_left < at + pages))
		return NULL;
	h.taken[cpu] += (unsigned)pages;
	return h.page[cpu][at];
}

static void free_pages(void *ctx, void *mem, size_t pages)
{
	(void)ctx;
	wmm_write(mem, pages * PAGE_BYTES); /* nobody uses it any more, by happens-before */
	h.given[heap_cpu()] += (unsigned)pages;
}

static void on_report(void *ctx, const struct kslab_report *report)
{
	(void)ctx;
	if (h.expects_double_free && report->fault == KSLAB_FAULT_DOUBLE_FREE)
		h.faults[wmm_self()]++;
	else
		wmm_fail(report->what);
}

/* ---- steps ----------------------------------------------------------------------------------- */

static void use(void *object)
{
	wmm_write(object, OBJECT_BYTES);
}

static bool take(unsigned i)
{
	void *object = kslab_heap_malloc_fast(HEAP, OBJECT_BYTES, NULL);

	if (object == NULL)
		return false;
	use(object);
	h.object[i] = object;
	h.is_live[i] = true;
	return true;
}

static void give(unsigned i)
{
	use(h.object[i]);
	h.is_live[i] = false;
	kslab_heap_free_fast(HEAP, h.object[i], NULL);
}

static void start_heap(unsigned retain_pages)
{
	const struct kslab_config config = {
		.page_bytes = PAGE_BYTES,
		.max_page_bytes = PAGE_BYTES,
		.alloc_pages = alloc_pages,
		.free_pages = free_pages,
		.report = on_report,
		.retain_bytes = retain_pages == 0 ? KSLAB_RETAIN_NONE : retain_pages * PAGE_BYTES,
	};

	setup_cpu = 0;
	kslab_default_heap.next_heap = NULL;
	wmm_assert(kslab_heap_init(HEAP, &config) == KSLAB_OK);
	kslab_default_heap.next_heap = NULL; /* the only heap, as the default one would be */
	for (unsigned cpu = 1; cpu < KSLAB_CFG_CPUS; cpu++) {
		setup_cpu = cpu;
		wmm_assert(kslab_heap_cpu_online(HEAP, cpu) == KSLAB_OK);
	}
	setup_cpu = 0;
}

/* Objects first .. first + count - 1, taken by a CPU; then its page is full and retired. */
static void fill(unsigned cpu, unsigned first, unsigned count)
{
	struct kslab_zone *zone;

	setup_cpu = cpu;
	for (unsigned i = first; i < first + count; i++)
		wmm_assert(take(i));
	zone = kslab_heap_zone(HEAP);
	kslab_sc_retire(&zone->owner, &zone->sc[kslab_heap_class(HEAP, OBJECT_BYTES, 1)]);
	setup_cpu = 0;
}

static void pass_on(unsigned i)
{
	KSLAB_STORE_RELEASE(&h.handover[i], 1u);
}

static bool is_passed_on(unsigned i)
{
	return KSLAB_LOAD_ACQUIRE(&h.handover[i]) != 0;
}

/* From now on the sources give so many pages to each CPU's thread. */
static void limit_sources(unsigned pages)
{
	h.pages_left = 0;
	for (unsigned cpu = 0; cpu < KSLAB_CFG_CPUS; cpu++)
		if (h.pages_left < h.taken[cpu])
			h.pages_left = h.taken[cpu];
	for (unsigned cpu = 0; cpu < KSLAB_CFG_CPUS; cpu++)
		h.taken[cpu] = h.given[cpu] = h.pages_left;
	h.pages_left += pages;
}

/* ---- free, while the owner allocates, reclaims, goes ----------------------------------------- */

static void cpu0_full(void)
{
	start_heap(64);
	fill(0, 0, 2);
	limit_sources(0);
}

/* Page A with object 1 and a free slot waits, B with 2 and 3 is current and used up. */
static void cpu0_two_pages(void)
{
	start_heap(64);
	fill(0, 0, 2);
	wmm_assert(take(2) && take(3));
	give(0);
	limit_sources(0);
}

/* B is set aside for A; A for B, which is used up still, or not. */
static void take_4_5(void)
{
	wmm_assert(take(4));
	take(5);
}

static void give_3(void)
{
	give(3);
}

/* CPU 1 was offline once, so that limbo exists; it has a page with so many objects taken. */
static void cpu1_with(unsigned objects)
{
	start_heap(64);
	setup_cpu = 1;
	wmm_assert(kslab_heap_cpu_offline(HEAP, 1) == KSLAB_OK);
	wmm_assert(kslab_heap_cpu_online(HEAP, 1) == KSLAB_OK);
	fill(1, 0, objects);
	limit_sources(0);
}

static void cpu1_full(void)
{
	cpu1_with(2);
}

static void cpu1_partial(void)
{
	cpu1_with(1);
}

static void cpu1_goes(void)
{
	setup_cpu = 1;
	wmm_assert(kslab_heap_cpu_offline(HEAP, 1) == KSLAB_OK);
	setup_cpu = 0;
}

/* Its full page is in limbo. */
static void cpu1_gone(void)
{
	cpu1_with(2);
	cpu1_goes();
}

static void cpu1_gone_partial(void)
{
	cpu1_with(1);
	cpu1_goes();
}

static void nothing(void) {}

static void give_0(void)
{
	give(0);
}

static void give_1(void)
{
	give(1);
}

static void take_4(void)
{
	take(4);
}

static void go_offline(void)
{
	wmm_assert(kslab_heap_cpu_offline(HEAP, heap_cpu()) == KSLAB_OK);
}

static void go_offline_pass_on(void)
{
	go_offline();
	pass_on(0);
}

static void go_and_come(void)
{
	go_offline();
	wmm_assert(kslab_heap_cpu_online(HEAP, 1) == KSLAB_OK);
	take(6);
}

static void take_4_if_passed_on(void)
{
	if (is_passed_on(0))
		take(4);
}

static void take_5(void)
{
	take(5);
}

static void give_reclaim(void)
{
	give(0);
	kslab_heap_reclaim(HEAP, 1);
}

static void reclaim(void)
{
	kslab_heap_reclaim(HEAP, 1);
}

/* ---- release, and another page on the same descriptor ---------------------------------------- */

static void cpu0_full_page_more(void)
{
	start_heap(64);
	fill(0, 0, 2);
	limit_sources(1);
}

static void reclaim_pass_on(void)
{
	give(0);
	if (kslab_heap_reclaim(HEAP, 1) != 0)
		pass_on(0);
}

static void take_on_new_page(void)
{
	if (is_passed_on(0)) {
		take(4);
		take(5);
	}
}

/* ---- descriptors: freed without the lock, taken under it -------------------------------------- */

static void two_descriptors(void)
{
	enum kslab_reason reason;

	start_heap(64);
	for (unsigned i = 0; i < 2; i++) {
		h.descriptor[i] = kslab_descriptor_alloc(HEAP, KSLAB_DESCRIPTOR_LARGE, 0, &reason);
		wmm_assert(h.descriptor[i] != NULL);
	}
	limit_sources(0);
}

/* As whoever had it, and whoever gets it, writes to it. */
static void free_descriptor(unsigned i)
{
	h.descriptor[i]->data = i;
	kslab_descriptor_free(HEAP, h.descriptor[i], KSLAB_DESCRIPTOR_LARGE);
}

static void take_descriptor(void)
{
	struct kslab_lock_state state;
	struct kslab_page *page;

	kslab_heap_lock(HEAP, &state);
	page = kslab_descriptor_take(HEAP);
	kslab_heap_unlock(HEAP, &state);
	h.held[heap_cpu()] = page;
	if (page != NULL)
		page->data = 2;
}

static void free_descriptor_0(void)
{
	free_descriptor(0);
}

static void free_descriptor_1_take(void)
{
	free_descriptor(1);
	take_descriptor();
}

/* ---- quiesce: yes means that nothing freed before is pending --------------------------------- */

static void idle(void)
{
	kslab_heap_idle(HEAP);
}

static void give_1_quiesce(void)
{
	give(1);
	if (kslab_heap_quiesce(HEAP)) {
		const struct kslab_page *page =
			kslab_page_map_find(&HEAP->map, (uintptr_t)h.object[1]);
		uint32_t index = kslab_page_index(page, (uintptr_t)h.object[1]);

		wmm_assert(!(KSLAB_LOAD_RELAXED(&page->bits[0].remote) & kslab_bit(index)));
	}
}

static void no_limbo(void)
{
	start_heap(64);
	limit_sources(32);
}

static void cpu1_full_no_limbo(void)
{
	start_heap(64);
	fill(1, 0, 2);
	limit_sources(32);
}

/* A CPU comes online while another looks at all zones. */
static void cpu2_not_yet(void)
{
	cpu0_full();
	setup_cpu = 2;
	HEAP->zone[2] = &kslab_zone_none;
	HEAP->parked[2] = NULL;
	setup_cpu = 0;
	limit_sources(32);
}

static void quiesce(void)
{
	kslab_heap_quiesce(HEAP);
}

static void come_online(void)
{
	wmm_assert(kslab_heap_cpu_online(HEAP, heap_cpu()) == KSLAB_OK);
}

static void come_and_go(void)
{
	come_online();
	go_offline();
}

/* An interrupt inside a call: the level that it needs is made, and published. */
static void take_nested(void)
{
	struct kslab_zone *zone = HEAP->zone[heap_cpu()];

	kslab_zone_enter(zone);
	wmm_assert(take(4));
	kslab_zone_leave(zone);
}

/* An object of a page that is in no mail: nobody but CPU 2 takes it in. */
static void cpu2_current(void)
{
	start_heap(64);
	setup_cpu = 1;
	wmm_assert(kslab_heap_cpu_offline(HEAP, 1) == KSLAB_OK);
	wmm_assert(kslab_heap_cpu_online(HEAP, 1) == KSLAB_OK);
	setup_cpu = 2;
	wmm_assert(take(0));
	setup_cpu = 0;
	limit_sources(0);
}

static void give_0_go(void)
{
	give(0);
	pass_on(0);
	go_offline();
}

static void give_0_go_and_come(void)
{
	give_0_go();
	come_online();
}

static void is_not_quiet(void)
{
	if (is_passed_on(0))
		wmm_assert(!kslab_heap_quiesce(HEAP));
}

/* ---- the end of a cache, while the CPUs that used it go on ------------------------------------ */

/* Of CPU 1: a page of the cache, with so many objects taken, armed if that is both of them. */
static void cpu1_cache(unsigned objects)
{
	struct kslab_zone *zone;

	start_heap(64);
	wmm_assert(kslab_heap_cache_init(HEAP, &h.cache, "cache", OBJECT_BYTES, 8, NULL, NULL) ==
		   KSLAB_OK);
	setup_cpu = 1;
	wmm_assert(kslab_heap_cpu_offline(HEAP, 1) == KSLAB_OK); /* limbo exists */
	wmm_assert(kslab_heap_cpu_online(HEAP, 1) == KSLAB_OK);
	zone = kslab_heap_zone(HEAP);
	for (unsigned i = 0; i < 2; i++)
		h.object[i] = kslab_cache_alloc(&h.cache);
	for (unsigned i = objects; i < 2; i++)
		kslab_cache_free(&h.cache, h.object[i]);
	if (objects == 2)
		kslab_sc_retire(&zone->owner, &h.cache.zones[kslab_zone_index(zone)]->sc);
	setup_cpu = 0;
	limit_sources(0);
}

static void cpu1_cache_empty(void)
{
	cpu1_cache(0);
}

static void cpu1_cache_full(void)
{
	cpu1_cache(2);
}

static void cpu1_cache_gone(void)
{
	cpu1_cache(0);
	cpu1_goes();
}

static void cpu1_cache_gone_full(void)
{
	cpu1_cache(2);
	cpu1_goes();
}

/* ... or its object 0 lives. */
static void cpu1_cache_gone_partial(void)
{
	cpu1_cache(1);
	cpu1_goes();
}

static void free_0_of_cache(void)
{
	use(h.object[0]);
	kslab_cache_free(&h.cache, h.object[0]);
}

static void free_1_of_cache(void)
{
	use(h.object[1]);
	kslab_cache_free(&h.cache, h.object[1]);
}

static void reclaim_free_1_of_cache(void)
{
	reclaim();
	free_1_of_cache();
}

/* Out of the page of a CPU that is gone, or online again. */
static void use_cache(void)
{
	void *object = kslab_cache_alloc(&h.cache);

	if (object == NULL)
		return;
	use(object);
	kslab_cache_free(&h.cache, object);
}

static void come_online_and_use_cache(void)
{
	come_online();
	use_cache();
}

static void cache_not_yet(void)
{
	cpu2_not_yet();
	wmm_assert(kslab_heap_cache_init(HEAP, &h.cache, "cache", OBJECT_BYTES, 8, NULL, NULL) ==
		   KSLAB_OK);
}

static void come_online_use_cache_and_go(void)
{
	come_online_and_use_cache();
	go_offline();
}

/* CPU 1 has a page of another cache as well, full; where the next ones come to lie is looked at. */
static void cpu1_cache_near(void)
{
	cpu1_cache(0);
	wmm_assert(kslab_heap_cache_init(HEAP, &h.other, "other", OBJECT_BYTES, 8, NULL, NULL) ==
		   KSLAB_OK);
	setup_cpu = 1;
	for (unsigned i = 0; i < 2; i++)
		h.object[i] = kslab_cache_alloc(&h.other);
	setup_cpu = 0;
	h.cache.last_page = (uintptr_t)h.page[1][h.taken[1] + 2];
	limit_sources(2);
	h.taken[1] = h.given[1] =
		(unsigned)((h.cache.last_page - (uintptr_t)h.page[1][0]) / PAGE_BYTES) - 2;
	h.pages_left = h.taken[1] + 2;
}

static void take_of_other(void)
{
	h.object[2] = kslab_cache_alloc(&h.other);
	wmm_assert(h.object[2] != NULL);
}

static void end_cache(void)
{
	enum kslab_reason reason = kslab_cache_destroy(&h.cache);

	wmm_assert(reason == KSLAB_OK || reason == KSLAB_BUSY);
	if (reason == KSLAB_OK) {
		wmm_write(&h.cache, sizeof(h.cache)); /* its memory is the kernel's */
		h.cache_is_over = true;
	}
}

/* Ask, and see what has come of it. */
static void end_cache_twice(void)
{
	end_cache();
	if (!h.cache_is_over)
		end_cache();
}

static void end_cache_if_passed_on(void)
{
	if (is_passed_on(0))
		end_cache();
}

static void come_online_and_idle(void)
{
	come_online();
	idle();
}

static void free_both_of_cache(void)
{
	kslab_cache_free(&h.cache, h.object[0]);
	kslab_cache_free(&h.cache, h.object[1]);
	pass_on(0);
}

/* Two slow paths: what was asked for goes back by the way. */
static void leave_twice(void)
{
	for (unsigned i = 0; i < 2; i++) {
		struct kslab_zone *zone = kslab_heap_enter(HEAP);

		kslab_heap_leave(HEAP, zone, NULL);
	}
}

/* ---- double free ----------------------------------------------------------------------------- */

static void expect_double_free_of_0(void)
{
	uintptr_t address = (uintptr_t)h.object[0];
	const struct kslab_page *page;

	h.expects_double_free = true;
	/*
	 * The wrong one looks where the page is, and what, for the report, while its owner changes
	 * that.
	 */
	page = kslab_page_map_find(&HEAP->map, address);
	wmm_tolerate(&page->sc, sizeof(page->sc));
	wmm_tolerate(kslab_page_map_quick(&HEAP->map, kslab_page_map_top_index(&HEAP->map, address),
					  address),
		     sizeof(page));
}

static void cpu0_full_double(void)
{
	cpu0_full();
	expect_double_free_of_0();
}

/* The page can go when object 0 is free; object 1 is on a page of CPU 1, which takes nothing in. */
static void cpu0_one_double(void)
{
	start_heap(64);
	fill(0, 0, 1);
	fill(1, 1, 1);
	limit_sources(0);
	expect_double_free_of_0();
}

static void free_0_again(void)
{
	kslab_heap_free_fast(HEAP, h.object[0], NULL);
}

static void free_0_first(void)
{
	h.is_live[0] = false;
	kslab_heap_free_fast(HEAP, h.object[0], NULL);
}

/* ---- the end --------------------------------------------------------------------------------- */

static void bring_everybody_back(void)
{
	for (unsigned cpu = 1; cpu < KSLAB_CFG_CPUS; cpu++) {
		setup_cpu = cpu;
		if (HEAP->zone[cpu] == &kslab_zone_none)
			wmm_assert(kslab_heap_cpu_online(HEAP, cpu) == KSLAB_OK);
	}
	setup_cpu = 0;
}

static void check_heap(void)
{
	struct kslab_check_result result;
	unsigned faults = 0, taken = 0, given = 0;

	h.pages_left = CPU_PAGES;
	bring_everybody_back();
	wmm_assert(HEAP->parked_pages == 0);
	for (unsigned i = 0; i < OBJECTS; i++)
		if (h.is_live[i])
			give(i);
	for (unsigned round = 0; round < 2; round++) { /* each takes in the other's frees */
		for (unsigned cpu = 0; cpu < KSLAB_CFG_CPUS; cpu++) {
			setup_cpu = cpu;
			kslab_heap_quiesce(HEAP);
		}
	}
	setup_cpu = 0;
	wmm_assert(kslab_heap_quiesce(HEAP));
	wmm_assert(kslab_heap_check(HEAP, &result));
	for (unsigned t = 0; t < KSLAB_CFG_CPUS + 2; t++)
		faults += h.faults[t];
	wmm_assert(faults == (h.expects_double_free ? 1u : 0u));
	wmm_assert(kslab_heap_fini(HEAP) == KSLAB_OK);
	for (unsigned cpu = 0; cpu < KSLAB_CFG_CPUS; cpu++) {
		taken += h.taken[cpu];
		given += h.given[cpu];
	}
	(void)taken;
	(void)given;
}

/* Each is free or taken, once. */
static void check_descriptors(void)
{
	unsigned seen[2] = { 0 };

	for (unsigned i = 0; i < 2; i++) {
		for (unsigned cpu = 0; cpu < KSLAB_CFG_CPUS; cpu++)
			seen[i] += h.held[cpu] == h.descriptor[i];
		for (struct kslab_page *page = HEAP->meta.free[0]; page != NULL; page = page->next)
			seen[i] += page == h.descriptor[i];
		wmm_assert(seen[i] == 1);
	}
	check_heap();
}

/* BUSY is the answer only until each CPU has come by. */
static void check_cache(void)
{
	h.pages_left = CPU_PAGES;
	setup_cpu = 0;
	if (!h.cache_is_over)
		end_cache();
	for (unsigned cpu = 0; cpu < KSLAB_CFG_CPUS && !h.cache_is_over; cpu++) {
		setup_cpu = cpu;
		if (HEAP->zone[cpu] != &kslab_zone_none)
			kslab_heap_idle(HEAP);
	}
	setup_cpu = 0;
	if (!h.cache_is_over)
		end_cache();
	wmm_assert(h.cache_is_over && HEAP->caches == NULL);
	check_heap();
}

static void check_cache_near(void)
{
	setup_cpu = 1;
	for (unsigned i = 0; i < 3; i++)
		kslab_cache_free(&h.other, h.object[i]);
	wmm_assert(kslab_cache_destroy(&h.other) == KSLAB_OK);
	check_cache();
}

/* ---- names ----------------------------------------------------------------------------------- */

static void name_in_page(const struct kslab_page *page, uintptr_t offset, char *out, size_t bytes)
{
	const char *field = offset == offsetof(struct kslab_page, owner)       ? "owner"
			    : offset == offsetof(struct kslab_page, mail)      ? "mail"
			    : offset == offsetof(struct kslab_page, mail_next) ? "mail_next"
			    : offset == offsetof(struct kslab_page, state)     ? "state"
									       : "field";

	if (offset >= offsetof(struct kslab_page, bits))
		field = (const char *const[]){ "avail", "freed", "remote" }[(offset - 64) / 8 % 3];
	snprintf(out, bytes, "page of %#lx %s", (unsigned long)(page->data & 0xffff), field);
}

static void name_in_zone(const struct kslab_zone *zone, uintptr_t offset, char *out, size_t bytes)
{
	const char *field = offset == offsetof(struct kslab_zone, owner.mailbox)     ? "mailbox"
			    : offset == offsetof(struct kslab_zone, owner.harvested) ? "harvested"
			    : offset == offsetof(struct kslab_zone, owner.remote_frees)
				    ? "remote_frees"
			    : offset == 0 ? "key"
					  : "field";

	snprintf(out, bytes, "zone of cpu %u %s", zone->cpu, field);
}

void name_world(const volatile void *p, char *out, size_t bytes)
{
	uintptr_t a = (uintptr_t)p;

	snprintf(out, bytes, "world + %#lx", (unsigned long)(a - (uintptr_t)&h));
	for (unsigned cpu = 0; cpu < KSLAB_CFG_CPUS; cpu++) {
		const struct kslab_zone *zone = HEAP->zone[cpu];

		if (zone == &kslab_zone_none)
			zone = HEAP->parked[cpu];
		if (zone != NULL && a - (uintptr_t)zone < sizeof(*zone))
			name_in_zone(zone, a - (uintptr_t)zone, out, bytes);
	}
	if (HEAP->limbo != NULL && a - (uintptr_t)HEAP->limbo < sizeof(*HEAP->limbo))
		name_in_zone(HEAP->limbo, a - (uintptr_t)HEAP->limbo, out, bytes);
	if (a == (uintptr_t)&HEAP->lock.serving || a == (uintptr_t)&HEAP->lock.next)
		snprintf(out, bytes, "lock %s",
			 a == (uintptr_t)&HEAP->lock.next ? "next" : "serving");
	for (unsigned i = 0; i < OBJECTS; i++) {
		const struct kslab_page *page;

		if (h.object[i] == NULL)
			continue;
		page = kslab_page_map_find(&HEAP->map, (uintptr_t)h.object[i]);
		if (a - (uintptr_t)page < sizeof(*page) + sizeof(struct kslab_bits))
			name_in_page(page, a - (uintptr_t)page, out, bytes);
	}
}

#define WORLD &h, sizeof(h)

/* clang-format off */
const struct wmm_scenario scenarios[] = {
	{ "heap: free, take", "", cpu0_full, { take_4, give_0 }, check_heap, 1, WORLD },
	{ "heap: free free, take", "", cpu0_full, { take_4, give_0, give_1 }, check_heap, 0, WORLD },
	{ "heap: double free", "", cpu0_full_double, { reclaim, free_0_first, free_0_again }, check_heap, 0, WORLD },
	{ "heap: double free, gone", "its page goes back meanwhile", cpu0_one_double, { reclaim, free_0_first, free_0_again }, check_heap, 0, WORLD },
	{ "heap: double free, quiesce", "what the page's end takes in is not counted before it was", cpu0_one_double, { give_reclaim, free_0_again, give_1_quiesce }, check_heap, 0, WORLD },
	{ "heap: set aside", "used-up pages change places", cpu0_two_pages, { take_4_5, give_3 }, check_heap, 1, WORLD },
	{ "heap: reclaim", "", cpu0_full, { give_reclaim, give_1 }, check_heap, 1, WORLD },
	{ "heap: life again", "a descriptor gets another page elsewhere", cpu0_full_page_more, { reclaim_pass_on, give_1, take_on_new_page }, check_heap, 0, WORLD },
	{ "heap: descriptors", "freed without the lock", two_descriptors, { free_descriptor_0, free_descriptor_1_take, take_descriptor }, check_descriptors, 1, WORLD },
	{ "heap: offline, free", "", cpu1_full, { give_0, go_offline }, check_heap, 1, WORLD },
	{ "heap: offline, adopt", "both want the lock", cpu1_partial, { take_4, go_offline }, check_heap, 0, WORLD },
	{ "heap: offline, then", "free all along, adopt afterwards", cpu1_full, { take_4_if_passed_on, go_offline_pass_on, give_0 }, check_heap, 0, WORLD },
	{ "heap: and back", "offline and online again", cpu1_full, { give_0, go_and_come }, check_heap, 0, WORLD },
	{ "heap: limbo, free", "by a CPU that is gone", cpu1_gone, { take_4, give_0 }, check_heap, 1, WORLD },
	{ "heap: limbo, two", "two want one page", cpu1_gone_partial, { take_4, nothing, take_5 }, check_heap, 0, WORLD },
	{ "heap: limbo, reclaim", "", cpu1_gone, { reclaim, give_0, give_1 }, check_heap, 0, WORLD },
	{ "heap: quiesce", "yes means nothing freed before is pending", cpu0_full, { idle, give_0, give_1_quiesce }, check_heap, 0, WORLD },
	{ "heap: quiesce, gone", "a CPU goes offline meanwhile, and makes limbo", cpu1_full_no_limbo, { quiesce, go_offline }, check_heap, 1, WORLD },
	{ "heap: online", "a fresh zone, while others look at all", cpu2_not_yet, { quiesce, give_0, come_online }, check_heap, 0, WORLD },
	{ "heap: level", "a zone more, while another looks at all", no_limbo, { quiesce, take_nested }, check_heap, 0, WORLD },
	{ "heap: come and go", "a fresh zone that is parked at once", cpu2_not_yet, { quiesce, nothing, come_and_go }, check_heap, 0, WORLD },
	{ "heap: quiesce, goes", "a free is not forgotten when its CPU goes", cpu2_current, { is_not_quiet, give_0_go }, check_heap, 0, WORLD },
	{ "heap: quiesce, back", "... and comes back", cpu2_current, { is_not_quiet, give_0_go_and_come }, check_heap, 0, WORLD },
	{ "heap: cache gone", "an object is freed, its page reclaimed", cpu1_cache_gone_partial, { reclaim, nothing, free_0_of_cache }, check_cache, 1, WORLD },
	{ "heap: cache gone, full", "mail, while its page is reclaimed", cpu1_cache_gone_full, { reclaim_free_1_of_cache, nothing, free_0_of_cache }, check_cache, 0, WORLD },
	{ "heap: cache gone, back", "its CPU comes online, a page is reclaimed, an object freed", cpu1_cache_gone_partial, { reclaim, come_online_and_use_cache, free_0_of_cache }, check_cache, 0, WORLD },
	{ "heap: cache adopted", "a page of a CPU that is gone, while an object of it is freed", cpu1_cache_gone_partial, { use_cache, nothing, free_0_of_cache }, check_cache, 1, WORLD },
	{ "heap: cache adopted, full", "... and its mail", cpu1_cache_gone_full, { use_cache, free_1_of_cache, free_0_of_cache }, check_cache, 0, WORLD },
	{ "heap: cache adopted, back", "its CPU comes online", cpu1_cache_gone_partial, { use_cache, come_online_and_use_cache, free_0_of_cache }, check_cache, 0, WORLD },
	{ "heap: cache goes", "its CPU goes, while another reclaims", cpu1_cache_empty, { reclaim, go_offline }, check_cache, 1, WORLD },
	{ "heap: cache goes, new", "in a fresh zone that is parked at once", cache_not_yet, { reclaim, nothing, come_online_use_cache_and_go }, check_cache, 0, WORLD },
	{ "heap: cache ends", "while its CPU idles", cpu1_cache_empty, { end_cache_twice, idle }, check_cache, 1, WORLD },
	{ "heap: cache ends, slow", "while its CPU comes by slow paths", cpu1_cache_empty, { end_cache_twice, leave_twice }, check_cache, 1, WORLD },
	{ "heap: cache ends, free", "its objects were just freed by a third CPU", cpu1_cache_full, { end_cache_if_passed_on, idle, free_both_of_cache }, check_cache, 0, WORLD },
	{ "heap: cache ends, goes", "its CPU goes offline", cpu1_cache_empty, { end_cache_twice, go_offline }, check_cache, 0, WORLD },
	{ "heap: cache ends, back", "its CPU comes online", cpu1_cache_gone, { end_cache_twice, come_online_and_idle }, check_cache, 0, WORLD },
	{ "heap: cache ends, near", "a page of another one is made beside its", cpu1_cache_near, { end_cache, take_of_other }, check_cache_near, 1, WORLD },
	{ "heap: two go", "both make limbo", no_limbo, { nothing, go_offline, go_offline }, check_heap, 0, WORLD },
};
/* clang-format on */
const unsigned scenario_count = sizeof(scenarios) / sizeof(scenarios[0]);

/*
 * What the frees from other CPUs rely on here; how zones, limbo and regions are published is not in
 * it.
 */
const struct weakened weakened[] = {
	{ "page_source", "kslab_heap_lock", NULL },
	{ "page_source", "kslab_heap_unlock", NULL },
	{ "page_source", "pop_descriptor", NULL },
	{ "page_source", "kslab_descriptor_free", NULL },
	{ "reclaim", "add_harvested", NULL },
	{ "tally", "kslab_tally_remove", NULL },
	{ "cache_zone", "is_empty", NULL },
	{ "object_cache", "is_own_page", NULL },
	{ "page_map", "kslab_page_map_look", NULL },
	{ "reclaim", "limbo_of", NULL },
	{ "reclaim", "parked_of", NULL },
	{ "heap", "kslab_heap_each_zone", NULL },
	{ "heap", "kslab_heap_add_level", "CAS_RELEASE" },
	{ "reclaim", "kslab_heap_cpu_online", NULL },
	{ "reclaim", "kslab_heap_cpu_offline", NULL },
	{ "object_page", "count_harvested", "STORE_RELEASE" },
	{ "object_page", "kslab_page_close", NULL },
	{ "object_page", "kslab_page_harvest_word", "LOAD_ACQUIRE" },
	{ "sc_allocator", "kslab_sc_insert", "STORE_RELEASE" },
	{ "sc_allocator", "kslab_sc_move", "STORE_RELEASE" },
	{ "object_page", "kslab_page_sc", NULL },
	{ NULL, NULL, NULL },
};

const struct not_needed not_needed[] = {
	{ NULL, NULL, 0, NULL },
};
