/* SPDX-License-Identifier: MIT
 * world.c - owns the promises: what must hold at each step, and when all is quiet; see world.h.
 *
 *  P1  no object is handed out while it is live (at the step, and as a data race of its contents);
 *  P2  a right free is never refused;
 *  P3  of n frees of one object n - 1 are refused at the call or found late (owner.late), unless
 *      the object was issued again in between (undecidable, and counted);
 *  P4  a remote bit that is set when all is quiet can be reached: its page is in its owner's mail, or
 *      not on the full list, so that its owner looks at it before it asks for pages;
 *  P5  a page is in the mailbox of its owner, or in what its owner took out of it (owner.mail), once,
 *      if and only if it is QUEUED; a released page is in none;
 *  P6  no page is released with a live object; every conflicting plain access is ordered;
 *  P7  when all mail is taken in, lists, counts and bits agree, and objects taken - freed = live;
 *  P8  each remote free that was accepted is taken in once: what kslab_quiesce counts.
 */
#include "world.h"

#include <stdio.h>

struct world world;
struct tally tally;

#define SLOT_BYTES ((uint32_t)sizeof(uint64_t))

struct kslab_page *page_of(unsigned p)
{
	return (struct kslab_page *)(void *)world.descriptor[p].bytes;
}

static unsigned number_of(const struct kslab_page *page)
{
	return (unsigned)((const unsigned char *)page - world.descriptor[0].bytes) /
	       (unsigned)sizeof(world.descriptor[0]);
}

static struct kslab_sc *sc_of(unsigned o)
{
	const struct kslab_sc core = KSLAB_SC_CORE_INIT(SLOT_BYTES, 0);

	if (world.sc[o].word == NULL)
		world.sc[o] = core;
	return &world.sc[o];
}

void make_page(unsigned o, unsigned p, unsigned slots)
{
	kslab_page_init(page_of(p), (uintptr_t)world.object[p], 1, SLOT_BYTES, slots);
	kslab_sc_insert(&world.owner[o], sc_of(o), page_of(p), 0);
}

void make_current_page(unsigned o, unsigned p, unsigned slots, unsigned taken)
{
	make_page(o, p, slots);
	for (unsigned s = 0; s < taken; s++)
		wmm_assert(take(o));
	for (o = 0; o < OWNERS; o++)
		(void)sc_of(o);
}

void make_full_page(unsigned o, unsigned p, unsigned slots)
{
	make_current_page(o, p, slots, slots);
	kslab_sc_retire(&world.owner[o], sc_of(o));
}

void use(unsigned p, unsigned s)
{
	wmm_write(&world.object[p][s], SLOT_BYTES);
	world.object[p][s]++;
}

bool take(unsigned o)
{
	struct kslab_sc *sc = sc_of(o);
	uint64_t *object = kslab_sc_pop(sc);
	unsigned i, self = wmm_self();

	/* As kslab_malloc does: the hot path, the middle path, the rest. */
	if (object == NULL && sc->ready != 0)
		object = kslab_sc_issue_ready(sc);
	if (object == NULL)
		object = kslab_sc_next(&world.owner[o], sc);
	if (object == NULL)
		return false;
	i = (unsigned)(object - &world.object[0][0]);
	wmm_assert(i < PAGES * SLOTS);
	wmm_assert(world.has_window || !world.known[i / SLOTS][i % SLOTS].is_live); /* P1 */
	wmm_assert(!world.is_released[i / SLOTS]);
	world.known[i / SLOTS][i % SLOTS].is_live = 1;
	world.known[i / SLOTS][i % SLOTS].taken[self]++;
	use(i / SLOTS, i % SLOTS);
	return true;
}

static bool judge(bool is_accepted, unsigned p, unsigned s)
{
	if (is_accepted)
		world.known[p][s].freed[wmm_self()]++;
	else
		world.known[p][s].refused[wmm_self()]++;
	return is_accepted;
}

bool try_free_remote(unsigned p, unsigned s)
{
	bool is_accepted;

	world.known[p][s].is_live = 0;
	is_accepted = kslab_page_free_remote(page_of(p), s) != KSLAB_REMOTE_DOUBLE;
	world.remote_frees[wmm_self()] += is_accepted;
	return judge(is_accepted, p, s);
}

bool try_free_local(unsigned o, unsigned p, unsigned s)
{
	world.known[p][s].is_live = 0;
	return judge(kslab_sc_free_local(&world.owner[o], page_of(p), s), p, s);
}

void free_remote(unsigned p, unsigned s)
{
	use(p, s);
	wmm_assert(try_free_remote(p, s)); /* P2 */
}

void free_local(unsigned o, unsigned p, unsigned s)
{
	use(p, s);
	wmm_assert(try_free_local(o, p, s));
}

void drain(unsigned o)
{
	kslab_sc_drain(&world.owner[o], KSLAB_ALL);
}

void drain_one(unsigned o)
{
	kslab_sc_drain(&world.owner[o], 1);
}

void collect(unsigned o)
{
	struct kslab_sc *sc = sc_of(o);

	kslab_sc_drain(&world.owner[o], KSLAB_ALL);
	if (sc->page != NULL) {
		kslab_page_harvest(&world.owner[o], sc->page);
		kslab_sc_retire(&world.owner[o], sc);
	}
	kslab_sc_sweep(&world.owner[o], sc);
}

bool release(unsigned o, unsigned p)
{
	struct kslab_page *page = page_of(p);

	if (page->state != KSLAB_PAGE_EMPTY)
		return false;
	if (!kslab_sc_remove_empty(&world.owner[o], page)) {
		world.was_refused++;
		return false;
	}
	for (unsigned s = 0; s < page->slots; s++) {
		wmm_assert(!world.known[p][s].is_live); /* P6 */
		use(p, s);
	}
	world.is_released[p] = 1;
	return true;
}

bool move(unsigned from, unsigned p, unsigned to)
{
	bool is_moved = kslab_sc_move(&world.owner[from], page_of(p), &world.owner[to], sc_of(to));

	world.was_refused += !is_moved;
	return is_moved;
}

void hand_over(unsigned i)
{
	KSLAB_STORE_RELEASE(&world.handover[i], 1u);
}

bool is_handed_over(unsigned i)
{
	return KSLAB_LOAD_ACQUIRE(&world.handover[i]) != 0;
}

/* ---- when all is quiet ----------------------------------------------------------------------- */

static bool is_here(unsigned p)
{
	return page_of(p)->slots != 0 && !world.is_released[p];
}

/* Adds the pages of a chain to a set. */
static void walk_chain(unsigned o, const struct kslab_page *page, unsigned *set)
{
	for (; page != NULL; page = page->mail_next) {
		unsigned p = number_of(page);

		if (p >= PAGES || (*set & (1u << p))) {
			wmm_fail("a page is in a mailbox twice");
			return;
		}
		*set |= 1u << p;
		if (kslab_page_owner(page) != &world.owner[o])
			wmm_fail("a page is in a mailbox that is not its owner's");
		if (!is_here(p))
			wmm_fail("a released page is in a mailbox");
	}
}

/* P5; returns the set of pages in mailboxes, or out of them and not taken in. */
static unsigned walk_mail(void)
{
	unsigned set = 0;

	for (unsigned o = 0; o < OWNERS; o++) {
		walk_chain(o, world.owner[o].mailbox, &set);
		walk_chain(o, world.owner[o].mail, &set);
	}
	for (unsigned p = 0; p < PAGES; p++)
		if ((page_of(p)->mail == KSLAB_MAIL_QUEUED) != ((set >> p) & 1))
			wmm_fail("QUEUED and in a mailbox are not the same");
	return set;
}

static size_t late_frees(void)
{
	size_t late = 0;

	for (unsigned o = 0; o < OWNERS; o++)
		late += world.owner[o].late_count;
	return late;
}

static unsigned sum(const uint8_t of_thread[WMM_THREADS + 1])
{
	unsigned all = 0;

	for (unsigned t = 0; t <= WMM_THREADS; t++)
		all += of_thread[t];
	return all;
}

/* P3, P7: each object is free or live, as counted. */
static void check_counts(void)
{
	int late = (int)late_frees();

	for (unsigned p = 0; p < PAGES; p++) {
		for (unsigned s = 0; s < page_of(p)->slots; s++) {
			int frees = (int)sum(world.known[p][s].freed), wrong = 0;
			int taken = (int)sum(world.known[p][s].taken);
			int is_live = is_here(p) && !(page_of(p)->bits[0].freed >> s & 1);

			if (world.has_double_free && frees > 1)
				wrong = frees - 1;
			int effects = taken - is_live;

			late -= frees - effects; /* every free had an effect, or was found late */
			if (is_live == taken - (frees - wrong))
				continue;
			/* A wrong free hit what was issued in this execution. */
			if (!world.has_window || taken == world.known[p][s].taken[WMM_THREADS])
				wmm_fail("an object's frees and its state do not agree");
			tally.window++;
		}
	}
	if (late != 0)
		wmm_fail(late < 0 ? "a double free was found by nobody"
				  : "a right free was called a double free");
}

/* P8 */
static void check_taken_in(void)
{
	size_t frees = sum(world.remote_frees);

	for (unsigned o = 0; o < OWNERS; o++)
		frees -= world.owner[o].harvested;
	if (frees != 0)
		wmm_fail("remote frees made and taken in do not balance");
}

void check_world(void)
{
	unsigned set = walk_mail();
	const struct kslab_page *where;

	tally.mailed += set != 0;
	for (unsigned p = 0; p < PAGES; p++) {
		tally.released += world.is_released[p];
		if (is_here(p) && page_of(p)->state == KSLAB_PAGE_FULL && !(set >> p & 1) &&
		    page_of(p)->bits[0].remote != 0)
			wmm_fail("a remote free is lost: no mail, and the page is full"); /* P4 */
	}
	tally.refused += world.was_refused;
	if ((set >> PAGES) != 0 || wmm_has_failed())
		return;
	for (unsigned o = 0; o < OWNERS; o++)
		collect(o);
	for (unsigned p = 0; p < PAGES; p++)
		if (is_here(p)) /* on the empty list: double frees; else there is none */
			kslab_page_harvest(kslab_page_owner(page_of(p)), page_of(p));
	for (unsigned o = 0; o < OWNERS; o++)
		if (kslab_sc_verify(&world.owner[o], sc_of(o), &where) != NULL)
			wmm_fail(kslab_sc_verify(&world.owner[o], sc_of(o), &where));
	tally.late += late_frees() != 0;
	check_counts();
	check_taken_in();
}

/* ---- names ----------------------------------------------------------------------------------- */

void name_world(const volatile void *address, char *out, size_t bytes)
{
	static const struct {
		size_t offset;
		const char *name;
	} fields[] = {
		{ offsetof(struct kslab_page, owner), "owner" },
		{ offsetof(struct kslab_page, mail), "mail" },
		{ offsetof(struct kslab_page, mail_next), "mail_next" },
		{ offsetof(struct kslab_page, bits), "avail" },
		{ offsetof(struct kslab_page, bits) + sizeof(kslab_word), "freed" },
		{ offsetof(struct kslab_page, bits) + 2 * sizeof(kslab_word), "remote" },
	};
	uintptr_t a = (uintptr_t)address;

	for (unsigned p = 0; p < PAGES; p++)
		for (unsigned i = 0; i < sizeof(fields) / sizeof(fields[0]); i++)
			if (a == (uintptr_t)page_of(p) + fields[i].offset)
				snprintf(out, bytes, "page %u %s", p, fields[i].name);
	for (unsigned o = 0; o < OWNERS; o++)
		if (a == (uintptr_t)&world.owner[o].mailbox)
			snprintf(out, bytes, "owner %u mailbox", o);
	for (unsigned o = 0; o < OWNERS; o++)
		if (a == (uintptr_t)&world.owner[o].mail)
			snprintf(out, bytes, "owner %u mail", o);
	for (unsigned p = 0; p < PAGES; p++)
		for (unsigned s = 0; s < SLOTS; s++)
			if (a == (uintptr_t)&world.object[p][s])
				snprintf(out, bytes, "object %u of page %u", s, p);
	for (unsigned o = 0; o < OWNERS; o++)
		if (a == (uintptr_t)&world.owner[o].harvested)
			snprintf(out, bytes, "owner %u harvested", o);
	if (a == (uintptr_t)&world.bare.in_flight)
		snprintf(out, bytes, "bare in_flight");
	for (unsigned i = 0; i < 2; i++)
		if (a == (uintptr_t)&world.handover[i])
			snprintf(out, bytes, "handover %u", i);
}
