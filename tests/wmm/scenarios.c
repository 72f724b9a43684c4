/* SPDX-License-Identifier: MIT
 * scenarios.c - owns the scenarios of frees from other CPUs: each pair, and the triples that
 * matter, of allocate, local free, remote free, double free, harvest, arm, queue and drain,
 * release, change of owner. The promises P1 to P7 are in world.c; each scenario says what it adds.
 *
 * Thread 0 is the owner of page 0 unless said otherwise. A free by another thread is remote.
 */
#include "world.h"

/* ---- one freer, one owner -------------------------------------------------------------------- */

static void full_2(void)
{
	make_full_page(MINE, 0, 2);
}

static void full_3(void)
{
	make_full_page(MINE, 0, 3);
}

static void full_1(void)
{
	make_full_page(MINE, 0, 1);
}

static void free_0(void)
{
	free_remote(0, 0);
}

static void free_1(void)
{
	free_remote(0, 1);
}

static void free_2(void)
{
	free_remote(0, 2);
}

static void take_1(void)
{
	take(MINE);
}

static void take_2(void)
{
	take(MINE);
	take(MINE);
}

static void take_3(void)
{
	take_2();
	take(MINE);
}

/* The last slot is taken, and the page becomes full, while another is freed. */
static void current_2(void)
{
	make_current_page(MINE, 0, 2, 1);
}

static void current_3(void)
{
	make_current_page(MINE, 0, 3, 2);
}

/* Free locally on a full page that is armed, use it up again: is it armed again rightly? */
static void free_local_take_2(void)
{
	free_local(MINE, 0, 0);
	take_2();
}

static void free_local_collect_take(void)
{
	free_local(MINE, 0, 0);
	collect(MINE);
	take_2();
}

static void drain_drain_take(void)
{
	drain(MINE);
	drain(MINE);
	take(MINE);
}

static void collect_take(void)
{
	collect(MINE);
	take_2();
}

/* ---- mail of several pages ------------------------------------------------------------------- */

static void two_full_pages(void)
{
	make_full_page(MINE, 0, 1);
	make_full_page(MINE, 1, 1);
}

static void free_page_1(void)
{
	free_remote(1, 0);
}

static void free_both_pages(void)
{
	free_remote(0, 0);
	free_remote(1, 0);
}

/* Mail is taken in by steps: what a step leaves over is neither lost nor free to go. */
static void drain_one_take_2_if_passed_on(void)
{
	if (is_handed_over(0)) {
		drain_one(MINE);
		wmm_assert(take(MINE));
		wmm_assert(take(MINE));
	}
}

static void free_both_pages_pass_on(void)
{
	free_both_pages();
	hand_over(0);
}

static void drain_one_move_both(void)
{
	drain_one(MINE);
	move(MINE, 0, LIMBO);
	move(MINE, 1, LIMBO);
	drain_one(MINE);
}

static void two_full_pages_of_two(void)
{
	make_full_page(MINE, 0, 2);
	make_full_page(MINE, 1, 1);
}

static void drain_one_collect_release(void)
{
	drain_one(MINE);
	collect(MINE);
	release(MINE, 0);
	release(MINE, 1);
}

static void free_0_page_1(void)
{
	free_remote(0, 0);
	free_remote(1, 0);
}

static void three_full_pages(void)
{
	two_full_pages();
	make_full_page(MINE, 2, 1);
}

static void free_page_2(void)
{
	free_remote(2, 0);
}

/* A page goes through the mail twice: freed, taken, armed, passed on, freed by somebody else. */
static void take_pass_on_take(void)
{
	if (take(MINE)) {
		take(MINE); /* retires and arms the page */
		hand_over(0);
	}
	take(MINE);
}

static void free_0_passed_on(void)
{
	if (is_handed_over(0))
		free_remote(0, 0);
}

/*
 * Mail of a page with nothing new in it, which is full: it is armed again, and may be mailed again
 * at once.
 */
static void spurious_mail(void)
{
	make_full_page(MINE, 1, 1);
	make_full_page(MINE, 0, 3);
	free_local(MINE, 0, 0);
	wmm_assert(take(MINE)); /* current, used up, and armed from before */
	free_remote(1, 0);
}

/* ---- double frees ---------------------------------------------------------------------------- */

static void double_2(void)
{
	full_2();
	world.has_double_free = 1;
}

static void double_1(void)
{
	full_1();
	world.has_double_free = 1;
}

/* The same page current, its word used up, and still armed since it was full. */
static void double_current(void)
{
	make_full_page(MINE, 0, 2);
	free_local(MINE, 0, 1);
	wmm_assert(take(MINE));
	world.has_double_free = 1;
}

static void double_current_3(void)
{
	make_current_page(MINE, 0, 3, 2);
	world.has_double_free = world.has_window = 1;
}

static void window_2(void)
{
	double_2();
	world.has_window = 1;
}

static void window_1(void)
{
	double_1();
	world.has_window = 1;
}

static void try_0(void)
{
	try_free_remote(0, 0);
}

static void try_1(void)
{
	try_free_remote(0, 1);
}

static void drain_collect(void)
{
	drain(MINE);
	collect(MINE);
}

/* Slot 0 is issued again, slot 1, which is freed twice, only made available. */
static void free_local_take_1(void)
{
	free_local(MINE, 0, 0);
	take(MINE);
}

static void free_local_take_collect(void)
{
	free_local_take_1();
	collect(MINE);
}

static void try_local_1(void)
{
	try_free_local(MINE, 0, 1);
}

static void try_local_1_collect(void)
{
	try_free_local(MINE, 0, 1);
	collect(MINE);
}

static void drain_try_local_1(void)
{
	drain(MINE);
	try_free_local(MINE, 0, 1);
	drain(MINE);
}

/*
 * One CPU frees twice, one after the other: refused at the call, whatever the owner does but issue
 * it.
 */
static void free_1_again(void)
{
	wmm_assert(try_free_remote(0, 1));
	wmm_assert(!try_free_remote(0, 1));
}

static void try_release_double(void)
{
	collect(MINE);
	release(MINE, 0);
}

/* What is done, and passed on, before: then the verdict is at the call, and nothing is missing. */
static void free_1_pass_on(void)
{
	free_remote(0, 1);
	hand_over(0);
}

static void free_local_1_pass_on(void)
{
	free_local(MINE, 0, 1);
	hand_over(0);
}

static void refused_1(void)
{
	if (is_handed_over(0))
		wmm_assert(!try_free_remote(0, 1));
}

static void drain_refused_local_1(void)
{
	drain(MINE);
	if (is_handed_over(0))
		wmm_assert(!try_free_local(MINE, 0, 1));
}

static void take_if_passed_on(void)
{
	if (is_handed_over(0))
		wmm_assert(take(MINE));
}

static void drain_release_if_passed_on(void)
{
	drain(MINE);
	if (is_handed_over(0)) {
		collect(MINE);
		wmm_assert(release(MINE, 0));
	}
}

/* A page of two states: partial and still armed. */
static void free_local_drain_if_passed_on(void)
{
	free_local(MINE, 0, 0);
	if (is_handed_over(0)) {
		drain(MINE);
		wmm_assert(page_of(0)->state == KSLAB_PAGE_EMPTY);
	}
}

static void drain_take_if_both_passed_on(void)
{
	drain(MINE);
	if (is_handed_over(0) && is_handed_over(1))
		wmm_assert(take(MINE));
}

static void free_both_pass_on(void)
{
	free_remote(0, 0);
	free_remote(0, 1);
	hand_over(0);
}

static void try_0_pass_on_0(void)
{
	try_free_remote(0, 0);
	hand_over(0);
}

static void try_0_pass_on_1(void)
{
	try_free_remote(0, 0);
	hand_over(1);
}

static void collect_note_if_both_passed_on(void)
{
	collect(MINE);
	if (is_handed_over(0) && is_handed_over(1)) {
		collect(MINE);
		wmm_assert(world.known[0][0].freed[1] + world.known[0][0].freed[2] ==
			   1 + world.owner[MINE].late_count);
	}
}

static void collect_release_if_both_passed_on(void)
{
	collect(MINE);
	if (is_handed_over(0) && is_handed_over(1))
		release(MINE, 0);
}

/* ---- release, and another life of the descriptor --------------------------------------------- */

static void collect_release(void)
{
	collect(MINE);
	if (release(MINE, 0))
		hand_over(0);
}

static void free_local_collect_release(void)
{
	free_local(MINE, 0, 0);
	collect_release();
}

/*
 * Another CPU makes a page of the descriptor, takes the object, so that it is full, and passes it
 * on.
 */
static void live_again(void)
{
	if (!is_handed_over(0))
		return;
	world.is_released[0] = 0;
	make_page(THEIRS, 0, 1);
	take(THEIRS);
	take(THEIRS);
	hand_over(1);
	drain(THEIRS);
}

/* The same without an object; with one. */
static void lie_in_wait(void)
{
	if (!is_handed_over(0))
		return;
	world.is_released[0] = 0;
	make_page(THEIRS, 0, 1);
}

static void issue_again(void)
{
	if (!is_handed_over(0))
		return;
	lie_in_wait();
	take(THEIRS);
}

/* The late freer of the first life; and a free in the second. */
static void free_0_twice_rightly(void)
{
	free_remote(0, 0);
	if (is_handed_over(1))
		free_remote(0, 0);
}

/* ---- a page whose memory is purged, and which comes back by mail ------------------------------ */

/* Slot 0 is free, slot 1 live; it was full once, and is armed still. */
static void partial_2(void)
{
	full_2();
	free_local(MINE, 0, 0);
}

static void set_purging(void)
{
	if (kslab_sc_set_purging(&world.owner[MINE], page_of(0)))
		hand_over(0);
	else
		world.was_refused++;
}

static void set_purging_take(void)
{
	set_purging();
	take_2();
}

static void set_purging_collect_release(void)
{
	set_purging();
	collect(MINE);
	release(MINE, 0);
}

static void set_purging_move(void)
{
	set_purging();
	move(MINE, 0, LIMBO);
	drain(MINE);
	move(MINE, 0, LIMBO);
}

/* The thread that purges is on another CPU by now. */
static void purge(void)
{
	if (!is_handed_over(0))
		return;
	use(0, 0);
	hand_over(1);
	kslab_page_mail(page_of(0));
}

static void refused_0(void)
{
	wmm_assert(!try_free_remote(0, 0));
}

static void refused_0_free_1(void)
{
	refused_0();
	free_remote(0, 1);
}

static void check_purge(void)
{
	if (is_handed_over(0) && !is_handed_over(1))
		kslab_page_mail(page_of(0));
	check_world();
}

/* ---- change of owner ------------------------------------------------------------------------- */

static void move_out(void)
{
	drain(MINE);
	if (move(MINE, 0, LIMBO))
		hand_over(0);
	else
		drain(MINE);
}

static void move_partial_out(void)
{
	free_local(MINE, 0, 0);
	move_out();
}

static void move_both_out(void)
{
	drain(MINE);
	move(MINE, 0, LIMBO);
	move(MINE, 1, LIMBO);
	drain(LIMBO);
	hand_over(0);
}

/* Another CPU adopts from limbo what it can use. */
static void adopt(void)
{
	if (!is_handed_over(0))
		return;
	drain(LIMBO);
	if (move(LIMBO, 0, THEIRS))
		take(THEIRS);
	drain(THEIRS);
}

static void adopt_take_2(void)
{
	if (!is_handed_over(0))
		return;
	drain(LIMBO);
	if (move(LIMBO, 0, THEIRS)) {
		take(THEIRS);
		take(THEIRS);
	}
}

static void move_and_back(void)
{
	if (move(MINE, 0, LIMBO)) {
		drain(LIMBO);
		if (move(LIMBO, 0, MINE))
			take(MINE);
	}
	take(MINE);
}

/* ---- the bare SCAllocator: the descriptor goes with its page --------------------------------- */

static const struct kslab_layout bare_layout = { 8, 8 };

static void bare_page(void)
{
	void *object;

	wmm_assert(kslab_sc_init(&world.bare, 192, PAGE_BYTES) == KSLAB_ALLOCATION_OK);
	wmm_assert(kslab_sc_slots(&world.bare) == 2);
	wmm_assert(kslab_sc_refill(&world.bare, world.bare_page) == KSLAB_ALLOCATION_OK);
	for (unsigned s = 0; s < 2; s++)
		wmm_assert(kslab_sc_allocate(&world.bare, bare_layout, &object) ==
			   KSLAB_ALLOCATION_OK);
	wmm_assert(kslab_sc_allocate(&world.bare, bare_layout, &object) == KSLAB_OUT_OF_MEMORY);
}

static void bare_free(unsigned s)
{
	unsigned char *object = world.bare_page + 192 * s;

	wmm_write(object, 192);
	wmm_assert(kslab_sc_deallocate(&world.bare, object, bare_layout) == KSLAB_ALLOCATION_OK);
}

static void bare_free_0(void)
{
	bare_free(0);
}

static void bare_free_1(void)
{
	bare_free(1);
}

/*
 * The caller writes all over a page that it got back: with the worst, what looks like an armed
 * page.
 */
static void bare_give_back(void *ctx, void *page)
{
	(void)ctx;
	for (unsigned i = 0; i < PAGE_BYTES / sizeof(uint32_t); i++) {
		wmm_write((uint32_t *)page + i, sizeof(uint32_t));
		((uint32_t *)page)[i] = KSLAB_MAIL_ARMED;
	}
	world.is_released[0] = 1;
}

static void bare_reclaim(void)
{
	kslab_sc_try_reclaim_pages(&world.bare, 1, bare_give_back, NULL);
}

static void bare_take_reclaim(void)
{
	void *object;

	if (kslab_sc_allocate(&world.bare, bare_layout, &object) == KSLAB_ALLOCATION_OK) {
		wmm_write(object, 192);
		wmm_assert(kslab_sc_deallocate(&world.bare, object, bare_layout) ==
			   KSLAB_ALLOCATION_OK);
	}
	bare_reclaim();
}

static void check_bare(void)
{
	const uint32_t *words = (const uint32_t *)(const void *)world.bare_page;

	tally.released += world.is_released[0];
	if (!world.is_released[0]) {
		bare_reclaim(); /* nobody is on the way: it goes now */
		wmm_assert(world.is_released[0]);
		return;
	}
	for (unsigned i = 0; i < PAGE_BYTES / sizeof(uint32_t); i++)
		wmm_assert(words[i] == KSLAB_MAIL_ARMED);
	wmm_assert(world.bare.owner.mailbox == NULL);
}

#define WORLD &world, sizeof(world)

/* clang-format off */
const struct wmm_scenario scenarios[] = {
	{ "free, take", "remote free; the owner allocates", full_2, { take_2, free_1 }, check_world, 1, WORLD },
	{ "free free, take", "two freers of one page", full_2, { take_2, free_0, free_1 }, check_world, 0, WORLD },
	{ "free, fill", "the page becomes full meanwhile: arm or harvest", current_2, { take_2, free_0 }, check_world, 1, WORLD },
	{ "free, fill, take", "", current_2, { take_3, free_0 }, check_world, 1, WORLD },
	{ "free free, fill", "two freers while the page is armed", current_3, { take_2, free_0, free_1 }, check_world, 0, WORLD },
	{ "free, refill", "an armed page is used and becomes full again", full_2, { free_local_take_2, free_1 }, check_world, 1, WORLD },
	{ "free, collect", "local free, remote free, collect, take", full_2, { free_local_collect_take, free_1 }, check_world, 1, WORLD },
	{ "free, drain drain", "", full_2, { drain_drain_take, free_1 }, check_world, 1, WORLD },
	{ "free free, collect", "", full_2, { collect_take, free_0, free_1 }, check_world, 0, WORLD },
	{ "mail of two pages", "links of the mailbox", two_full_pages, { take_2, free_0, free_page_1 }, check_world, 1, WORLD },
	{ "mail of two, one CPU", "", two_full_pages, { take_2, free_both_pages }, check_world, 1, WORLD },
	{ "mail of three pages", "", three_full_pages, { drain_drain_take, free_both_pages, free_page_2 }, check_world, 0, WORLD },
	{ "mail of two, left over", "one now, one later, and no more", two_full_pages, { drain_one_take_2_if_passed_on, free_both_pages_pass_on }, check_world, 1, WORLD },
	{ "mail left over, move", "", two_full_pages, { drain_one_move_both, free_both_pages }, check_world, 1, WORLD },
	{ "mail left over, freed", "freed into, and released, when it was left over", two_full_pages_of_two, { drain_one_collect_release, free_0_page_1, free_1 }, check_world, 0, WORLD },
	{ "mail again", "a page through the mail twice", full_1, { take_pass_on_take, free_0, free_0_passed_on }, check_world, 1, WORLD },
	{ "mail, spurious", "armed and mailed again while drained", spurious_mail, { take_2, free_1, free_2 }, check_world, 0, WORLD },
	{ "in order: free, take", "what was freed before is found", full_2, { take_if_passed_on, free_1_pass_on }, check_world, 1, WORLD },
	{ "in order: release", "a page freed before is released", full_2, { drain_release_if_passed_on, free_both_pass_on }, check_world, 1, WORLD },
	{ "in order: drain", "drain takes in what was freed before", full_2, { free_local_drain_if_passed_on, free_1_pass_on }, check_world, 1, WORLD },
	{ "in order: both, take", "two frees before the issue: found, no window", double_1, { drain_take_if_both_passed_on, try_0_pass_on_0, try_0_pass_on_1 }, check_world, 1, WORLD },
	{ "in order: both, take, current", "the same by the middle path", double_current, { drain_take_if_both_passed_on, try_0_pass_on_0, try_0_pass_on_1 }, check_world, 1, WORLD },
	{ "in order: twice", "two CPUs, one after the other", double_2, { drain_collect, free_1_pass_on, refused_1 }, check_world, 1, WORLD },
	{ "in order: local last", "", double_2, { drain_refused_local_1, free_1_pass_on }, check_world, 1, WORLD },
	{ "in order: local first", "", double_2, { free_local_1_pass_on, refused_1 }, check_world, 1, WORLD },
	{ "in order: both, noted", "a double free before a collect is found", double_1, { collect_note_if_both_passed_on, try_0_pass_on_0, try_0_pass_on_1 }, check_world, 1, WORLD },
	{ "in order: both, gone", "a double free before the release is found", double_1, { collect_release_if_both_passed_on, try_0_pass_on_0, try_0_pass_on_1 }, check_world, 1, WORLD },
	{ "double free", "two CPUs free one object; harvest", double_2, { drain_collect, try_1, try_1 }, check_world, 1, WORLD },
	{ "double free, issue", "the word is issued from, the slot is not", double_2, { free_local_take_1, try_1, try_1 }, check_world, 0, WORLD },
	{ "double free, local", "one CPU is the owner", double_2, { try_local_1_collect, try_1 }, check_world, 1, WORLD },
	{ "double free, local 2", "", double_2, { drain_try_local_1, try_1 }, check_world, 1, WORLD },
	{ "double free, local 3", "and two others", double_2, { try_local_1, try_1, try_1 }, check_world, 0, WORLD },
	{ "double free, release", "the page is released inside a double free", double_1, { try_release_double, try_0, try_0 }, check_world, 0, WORLD },
	{ "double free, next life", "its descriptor is used again", double_1, { collect_release, try_0, try_0, lie_in_wait }, check_world, 0, WORLD },
	{ "row 31: next life", "its slot there is issued", window_1, { collect_release, try_0, try_0, issue_again }, check_world, 0, WORLD },
	{ "free twice, drain", "one after the other: refused at the call", double_2, { drain_collect, free_1_again }, check_world, 1, WORLD },
	{ "free twice, issue", "", double_2, { free_local_take_1, free_1_again }, check_world, 1, WORLD },
	{ "free twice, retire", "", double_2, { free_local_take_collect, free_1_again }, check_world, 1, WORLD },
	{ "row 31: window", "undecidable: issued again inside a double free", window_1, { take_1, try_0, try_0 }, check_world, 1, WORLD },
	{ "row 31: local", "", window_2, { take_2, try_1, try_1 }, check_world, 0, WORLD },
	{ "release", "page released, descriptor lives again elsewhere", full_1, { collect_release, free_0_twice_rightly, live_again }, check_world, 1, WORLD },
	{ "release, QUEUED", "not while it is QUEUED", full_2, { free_local_collect_release, free_1 }, check_world, 1, WORLD },
	{ "release, two freers", "", full_2, { collect_release, free_0, free_1 }, check_world, 0, WORLD },
	{ "purge", "the page comes back by mail, while the rest of it is freed", partial_2, { set_purging_take, free_1, purge }, check_purge, 1, WORLD },
	{ "purge, double free", "of a slot that is being purged", partial_2, { set_purging_collect_release, refused_0_free_1, purge }, check_purge, 1, WORLD },
	{ "purge, move", "it does not change hands meanwhile", partial_2, { set_purging_move, free_1, purge }, check_purge, 1, WORLD },
	{ "move", "to another owner and on to a third", full_1, { move_out, free_0, adopt }, check_world, 1, WORLD },
	{ "move, two freers", "", full_2, { move_out, free_0, free_1 }, check_world, 0, WORLD },
	{ "move, adopt, take", "", full_2, { move_partial_out, free_1, adopt_take_2 }, check_world, 0, WORLD },
	{ "move and back", "", full_2, { move_and_back, free_1 }, check_world, 1, WORLD },
	{ "move two pages", "", two_full_pages, { move_both_out, free_both_pages, adopt }, check_world, 0, WORLD },
	{ "bare: one left", "", bare_page, { bare_reclaim, bare_free_0, bare_free_1 }, check_bare, 1, WORLD },
	/* the long ones last: a mutant ends at the first that catches it */
	{ "free free, refill", "", full_3, { free_local_take_2, free_1, free_2 }, check_world, 0, WORLD },
	{ "row 31: current", "the current page", double_current_3, { collect_take, try_0, try_0 }, check_world, 0, WORLD },
	{ "bare: reclaim", "the descriptor goes with the page", bare_page, { bare_take_reclaim, bare_free_0, bare_free_1 }, check_bare, 0, WORLD },
};
/* clang-format on */
const unsigned scenario_count = sizeof(scenarios) / sizeof(scenarios[0]);

const struct weakened weakened[] = {
	{ "object_page", NULL, NULL },
	{ "sc_allocator", NULL, NULL },
	{ NULL, NULL, NULL },
};

const struct not_needed not_needed[] = {
	{ "count_harvested", "STORE_RELEASE", WMM_RELAXED,
	  "for quiesce: caught at the heap's level" },
	{ "kslab_page_close", "EXCHANGE_ACQUIRE", WMM_RELAXED,
	  "for quiesce: caught at the heap's level" },
	{ "kslab_sc_insert", "STORE_RELEASE", WMM_RELAXED,
	  "for the end of a cache: caught at the heap's level" },
	{ "kslab_sc_move", "STORE_RELEASE", WMM_RELAXED,
	  "for a free of a cache's object: caught at the heap's level" },
	{ NULL, NULL, 0, NULL },
};
