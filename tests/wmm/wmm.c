/* SPDX-License-Identifier: MIT
 * wmm.c - owns the weak-memory model checker; see wmm.h.
 *
 * THE MODEL is RC11 (Lahav, Vafeiadis, Kang, Hur, Dreyer 2017) without load buffering, in its
 * operational form. A location is a list of messages in modification order. A thread has a view:
 * for each location the newest message it knows of, and a vector clock. A load may return any
 * message that is not older than the thread's view; a store goes anywhere behind the view, but not
 * between a read-modify-write and what that read; a read-modify-write stands right behind what it
 * read. A release puts the thread's view into the message, a read-modify-write passes on the view
 * of what it read (release sequence), an acquire takes the view over. Sequentially consistent
 * accesses are ordered as they are executed: one of them reads, and writes, nothing older than the
 * newest such write of its location. (A limit of this checker: left out are executions where that
 * order contradicts causality through relaxed accesses alone.) Happens-before is the vector clock.
 * A plain access that conflicts with another access it is not ordered with is a data race.
 *
 * THE SEARCH is stateless: run, go back to the last choice that has another side, run again. A
 * choice is a thread and what its next access reads (or, for a store, what it stands behind). Two
 * accesses depend on each other if they are of the same location and one writes, with one
 * exception: a load that has another message to read commutes with a store, unless both are
 * sequentially consistent. So a load is only ever moved behind a store, to read it; that it may as
 * well read something older is a choice of values. Threads are added to a choice by dynamic
 * partial-order reduction with source sets (Abdulla, Aronis, Jonsson, Sagonas 2014), and sleep sets
 * take away what was seen before: no two complete executions have the same modification orders and
 * the same reads, unless several threads store plainly to one location. Nothing is bounded but the
 * length of one execution, which is a failure when it is reached.
 *
 * litmus.c checks this file: known tests with known outcomes, and the reduced against the full
 * search.
 */
#define _GNU_SOURCE
#include "wmm.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <ucontext.h>

#define LOCATIONS 240u
#define MESSAGES 1024u /* of one execution */
#define PER_LOCATION 160u /* messages, or accesses, of one location in one execution */
#define DEPTH 1200u /* atomic accesses of one execution */
#define CHOICES 64u /* messages one access can choose from */
#define INDEX 1024u
#define SLEEPERS 200u
#define STACK_BYTES (128u * 1024)
#define TIME_STEP 0x100000u
#define MEMORY WMM_THREADS /* number of the thread "none" */

typedef uint32_t stamp; /* place in the modification order of one location */

struct view {
	uint16_t clock[WMM_THREADS];
	stamp seen[LOCATIONS];
};

struct message {
	uint64_t value;
	stamp at;
	uint16_t event; /* that wrote it, for the reduction */
	bool is_taken; /* a read-modify-write stands right behind it */
	bool has_view;
	struct view view;
};

struct location {
	volatile void *address;
	size_t bytes;
	unsigned messages, events;
	uint16_t message[PER_LOCATION]; /* in modification order */
	uint16_t event[PER_LOCATION]; /* accesses as executed */
	stamp newest_seq; /* newest sequentially consistent write */
	bool is_overwritten; /* by a plain store */
	/* For the reduction: clocks of all writes, and of sequentially consistent accesses. */
	uint16_t writes[WMM_THREADS], seq_reads[WMM_THREADS], seq_writes[WMM_THREADS];
};

enum kind { LOAD, STORE, RMW, CAS };

struct access {
	struct wmm_site *site;
	enum kind kind;
	unsigned location;
	enum wmm_order order, failure;
	enum wmm_rmw rmw;
	uint64_t operand, expected;
};

struct thread {
	ucontext_t context;
	char *stack;
	struct access next; /* what it does when it is chosen */
	uint64_t result;
	bool is_done, succeeded;
	stamp at_least; /* what an awaited location must be newer than */
	bool awaits;
	unsigned last_location;
	stamp last_read;
	struct view view;
	uint16_t clock[WMM_THREADS]; /* for the reduction */
};

struct event {
	uint8_t thread;
	uint8_t location;
	bool writes, may_write, is_seq;
	uint16_t clock[WMM_THREADS];
};

struct sleeper {
	uint8_t thread;
	stamp key;
};

/* One choice of the path that is being explored. */
struct node {
	uint8_t enabled, wanted, explored; /* sets of threads */
	uint8_t thread;
	uint8_t keys, key_at;
	uint8_t sleepers;
	stamp key[CHOICES]; /* of the thread */
	struct sleeper sleeper[SLEEPERS];
	uint8_t explored_keys; /* of all explored threads, below */
	struct sleeper explored_key[SLEEPERS];
};

struct shadow {
	uint32_t execution;
	/* [0] reads, [1] writes; clocks of the last by each thread */
	uint16_t plain[2][WMM_THREADS], atomic[2][WMM_THREADS];
};

struct step {
	uint8_t thread;
	const struct wmm_site *site;
	const volatile void *address;
	uint64_t before, after;
	char what; /* L load, S store, U update, F failed CAS, r w plain, ! note */
};

static struct {
	const struct wmm_scenario *scenario;
	const struct wmm_options *options;
	struct wmm_result result;
	bool is_running;
	unsigned self, threads;
	struct thread thread[WMM_THREADS];
	ucontext_t home;
	struct location location[LOCATIONS];
	unsigned locations;
	uint16_t index[INDEX]; /* hash of address -> location + 1 */
	struct message message[MESSAGES];
	unsigned messages;
	struct event event[DEPTH + 2];
	unsigned depth, replay; /* accesses of this execution; nodes to replay */
	struct node node[DEPTH + 2];
	const char *bug;
	struct shadow *shadow;
	unsigned char *snapshot;
	uint32_t execution;
	struct step step[4 * DEPTH];
	unsigned steps;
	uint64_t progress;
	struct {
		uintptr_t start, bytes;
	} tolerated[4];
	unsigned tolerates;
} w;

static struct wmm_site *sites;
static struct {
	const char *function, *operation, *place;
	enum wmm_order order;
} weaker;

const char *wmm_order_name(enum wmm_order order)
{
	static const char *const names[] = { "relaxed", "acquire", "release",
					     "acq_rel", "seq_cst", "relaxed failure" };

	return names[order];
}

unsigned wmm_self(void)
{
	return w.self;
}

bool wmm_has_failed(void)
{
	return w.bug != NULL;
}

uint64_t wmm_progress(void)
{
	return w.progress;
}

struct wmm_site *wmm_sites(void)
{
	return sites;
}

static void choose_order(struct wmm_site *site)
{
	site->in_use = site->order;
	if (weaker.function != NULL && strcmp(site->function, weaker.function) == 0 &&
	    strcmp(site->operation, weaker.operation) == 0 &&
	    strcmp(site->place, weaker.place) == 0)
		site->in_use = weaker.order;
}

static void meet(struct wmm_site *site)
{
	site->hits++;
	if (site->is_known)
		return;
	site->is_known = true;
	site->next = sites;
	sites = site;
	choose_order(site);
}

void wmm_weaken(const char *function, const char *operation, const char *place,
		enum wmm_order order)
{
	weaker.function = function;
	weaker.operation = operation;
	weaker.place = place;
	weaker.order = order;
	for (struct wmm_site *site = sites; site != NULL; site = site->next)
		choose_order(site);
}

/* ---- memory ---------------------------------------------------------------------------------- */

static uint64_t memory_get(const volatile void *p, size_t bytes)
{
	switch (bytes) {
	case 1:
		return *(const volatile uint8_t *)p;
	case 2:
		return *(const volatile uint16_t *)p;
	case 4:
		return *(const volatile uint32_t *)p;
	default:
		return *(const volatile uint64_t *)p;
	}
}

static void memory_put(volatile void *p, size_t bytes, uint64_t value)
{
	switch (bytes) {
	case 1:
		*(volatile uint8_t *)p = (uint8_t)value;
		break;
	case 2:
		*(volatile uint16_t *)p = (uint16_t)value;
		break;
	case 4:
		*(volatile uint32_t *)p = (uint32_t)value;
		break;
	default:
		*(volatile uint64_t *)p = value;
	}
}

static bool is_acquire(enum wmm_order order)
{
	return order == WMM_ACQUIRE || order >= WMM_ACQ_REL;
}

static bool is_release(enum wmm_order order)
{
	return order >= WMM_RELEASE;
}

static void note(char what, const struct wmm_site *site, const volatile void *p, uint64_t before,
		 uint64_t after)
{
	struct step *step = &w.step[w.steps];

	if (w.steps == sizeof(w.step) / sizeof(w.step[0]))
		return;
	w.steps++;
	*step = (struct step){ (uint8_t)w.self, site, p, before, after, what };
}

static void leave_execution(void)
{
	unsigned self = w.self;

	w.self = MEMORY;
	swapcontext(&w.thread[self].context, &w.home);
	abort(); /* an execution that was left is never resumed */
}

void wmm_fail(const char *what)
{
	if (w.bug == NULL) {
		w.bug = what;
		note('!', NULL, NULL, 0, 0);
	}
	if (w.is_running && w.self != MEMORY)
		leave_execution();
}

/* Where the location of an address is, or would be, in w.index. */
static unsigned index_of(const volatile void *p)
{
	unsigned hash = (unsigned)((uintptr_t)p >> 2) % INDEX;

	while (w.index[hash] != 0 && w.location[w.index[hash] - 1].address != p)
		hash = (hash + 1) % INDEX;
	return hash;
}

/* ---- data races ------------------------------------------------------------------------------ */

void wmm_tolerate(const volatile void *p, size_t bytes)
{
	if (w.tolerates == sizeof(w.tolerated) / sizeof(w.tolerated[0]))
		abort();
	w.tolerated[w.tolerates].start = (uintptr_t)p;
	w.tolerated[w.tolerates++].bytes = bytes;
}

static bool is_tolerated(uintptr_t address)
{
	for (unsigned i = 0; i < w.tolerates; i++)
		if (address - w.tolerated[i].start < w.tolerated[i].bytes)
			return true;
	return false;
}

static void touch(const volatile void *p, size_t bytes, bool writes, bool is_atomic)
{
	size_t offset = (uintptr_t)p - (uintptr_t)w.options->world;

	if (!w.is_running || w.self == MEMORY || offset >= w.options->world_bytes)
		return;
	for (size_t i = offset; i < offset + bytes; i++) {
		struct shadow *s = &w.shadow[i];
		const struct view *view = &w.thread[w.self].view;

		if (s->execution != w.execution) {
			memset(s, 0, sizeof(*s));
			s->execution = w.execution;
		}
		for (unsigned t = 0; t < w.threads; t++) {
			uint16_t before = s->plain[1][t];

			if (t == w.self)
				continue;
			if (writes && s->plain[0][t] > before)
				before = s->plain[0][t];
			if (!is_atomic && s->atomic[1][t] > before)
				before = s->atomic[1][t];
			if (!is_atomic && writes && s->atomic[0][t] > before)
				before = s->atomic[0][t];
			if (before > view->clock[t] && !is_tolerated((uintptr_t)p)) {
				note(writes ? 'w' : 'r', NULL, p, is_atomic, t);
				wmm_fail("data race");
			}
		}
		(is_atomic ? s->atomic : s->plain)[writes][w.self] = view->clock[w.self];
	}
}

void wmm_read(const volatile void *p, size_t bytes)
{
	touch(p, bytes, false, false);
}

void wmm_write(const volatile void *p, size_t bytes)
{
	touch(p, bytes, true, false);
	if (w.is_running && w.self != MEMORY) {
		uint16_t slot = w.index[index_of(p)];

		/*
		 * Rare: a plain store to what is an atomic otherwise; its value is fetched later.
		 */
		if (slot != 0)
			w.location[slot - 1].is_overwritten = true;
	}
}

/* ---- locations and messages ------------------------------------------------------------------ */

static struct message *new_message(struct location *location, unsigned position, uint64_t value)
{
	struct message *message;

	if (w.messages == MESSAGES || location->messages == PER_LOCATION) {
		fprintf(stderr, "wmm: too many stores in one execution\n");
		abort();
	}
	message = &w.message[w.messages];
	memmove(&location->message[position + 1], &location->message[position],
		(location->messages - position) * sizeof(location->message[0]));
	location->message[position] = (uint16_t)w.messages++;
	location->messages++;
	message->value = value;
	message->is_taken = message->has_view = false;
	message->event = 0;
	if (position == 0)
		message->at = TIME_STEP;
	else
		message->at = w.message[location->message[position - 1]].at + TIME_STEP;
	if (position + 1 < location->messages) {
		stamp low = w.message[location->message[position - 1]].at;
		stamp high = w.message[location->message[position + 1]].at;

		message->at = low + (high - low) / 2;
		if (message->at == low)
			abort();
	} else {
		memory_put(location->address, location->bytes, value);
	}
	return message;
}

static unsigned locate(const volatile void *p, size_t bytes)
{
	unsigned hash = index_of(p);
	struct location *location;

	if (w.index[hash] == 0) {
		if (w.locations == LOCATIONS) {
			fprintf(stderr, "wmm: too many locations\n");
			abort();
		}
		location = &w.location[w.locations++];
		w.index[hash] = (uint16_t)w.locations;
		location->address = (volatile void *)(uintptr_t)p;
		location->bytes = bytes;
		location->messages = location->events = 0;
		location->newest_seq = 0;
		location->is_overwritten = false;
		memset(location->writes, 0, sizeof(location->writes));
		memset(location->seq_reads, 0, sizeof(location->seq_reads));
		memset(location->seq_writes, 0, sizeof(location->seq_writes));
		new_message(location, 0, memory_get(p, bytes));
	}
	location = &w.location[w.index[hash] - 1];
	if (location->is_overwritten) {
		uint64_t value = memory_get(p, bytes);

		location->is_overwritten = false;
		w.message[location->message[location->messages - 1]].is_taken = true;
		location->newest_seq = new_message(location, location->messages, value)->at;
		for (unsigned t = 0; t < w.threads; t++)
			w.thread[t].view.seen[location - w.location] = location->newest_seq;
	}
	return (unsigned)(location - w.location);
}

static void join(struct view *to, const struct view *from)
{
	for (unsigned t = 0; t < w.threads; t++)
		if (to->clock[t] < from->clock[t])
			to->clock[t] = from->clock[t];
	for (unsigned i = 0; i < w.locations; i++)
		if (to->seen[i] < from->seen[i])
			to->seen[i] = from->seen[i];
}

static void copy_view(struct view *to, const struct view *from)
{
	memcpy(to->clock, from->clock, sizeof(to->clock));
	memcpy(to->seen, from->seen, w.locations * sizeof(to->seen[0]));
	/* Locations may be met later; what the message knows of them is nothing. */
	memset(to->seen + w.locations, 0, (LOCATIONS - w.locations) * sizeof(to->seen[0]));
}

static struct message *find(const struct location *location, stamp at, unsigned *position)
{
	for (unsigned i = location->messages; i-- > 0;) {
		struct message *message = &w.message[location->message[i]];

		if (message->at == at) {
			*position = i;
			return message;
		}
	}
	abort();
}

/* What the next access of a thread may read, or stand behind: newest first. */
static unsigned choices(unsigned t, stamp key[CHOICES])
{
	const struct thread *thread = &w.thread[t];
	const struct access *next = &thread->next;
	const struct location *location = &w.location[next->location];
	stamp from = thread->view.seen[next->location];
	unsigned n = 0;

	if (next->order == WMM_SEQ && from < location->newest_seq)
		from = location->newest_seq;
	for (unsigned i = location->messages; i-- > 0;) {
		const struct message *message = &w.message[location->message[i]];
		bool updates = next->kind == RMW ||
			       (next->kind == CAS && message->value == next->expected);

		if (message->at < from || (thread->awaits && message->at <= thread->at_least))
			break;
		if (message->is_taken && (updates || next->kind == STORE))
			continue;
		if (n == CHOICES) {
			fprintf(stderr, "wmm: too many choices\n");
			abort();
		}
		key[n++] = message->at;
	}
	return n;
}

/* ---- the reduction --------------------------------------------------------------------------- */

/*
 * True if access a of a sleeping thread, with its choice, does not commute with what was just done.
 */
static bool wakes(const struct access *a, stamp key, unsigned location, bool writes, bool is_seq)
{
	unsigned position;
	bool a_writes;

	if (a->location != location)
		return false;
	a_writes = a->kind == STORE || a->kind == RMW ||
		   (a->kind == CAS &&
		    find(&w.location[location], key, &position)->value == a->expected);
	if (a_writes && writes)
		return true;
	return a_writes != writes && a->order == WMM_SEQ && is_seq;
}

static void order_after(uint16_t to[WMM_THREADS], const uint16_t from[WMM_THREADS])
{
	for (unsigned t = 0; t < w.threads; t++)
		if (to[t] < from[t])
			to[t] = from[t];
}

/* ---- doing an access ------------------------------------------------------------------------- */

static struct message *put(struct thread *thread, const struct access *a, unsigned position,
			   uint64_t value, const struct message *read)
{
	struct location *location = &w.location[a->location];
	struct message *message = new_message(location, position + 1, value);

	thread->view.seen[a->location] = message->at;
	message->event = (uint16_t)w.depth;
	if (is_release(a->order)) {
		message->has_view = true;
		copy_view(&message->view, &thread->view);
		thread->view.clock[thread - w.thread]++;
	}
	if (read != NULL && read->has_view) {
		if (!message->has_view)
			copy_view(&message->view, &read->view);
		else
			join(&message->view, &read->view);
		message->has_view = true;
		message->view.seen[a->location] = message->at;
	}
	if (a->order == WMM_SEQ && location->newest_seq < message->at)
		location->newest_seq = message->at;
	return message;
}

/*
 * Let thread t do its next access with that choice; w.depth is its number. Return: true if it
 * wrote.
 */
static bool perform(unsigned t, stamp key)
{
	struct thread *thread = &w.thread[t];
	const struct access *a = &thread->next;
	struct location *location = &w.location[a->location];
	struct event *event = &w.event[w.depth];
	unsigned position;
	struct message *message = find(location, key, &position);
	bool writes = a->kind == STORE || a->kind == RMW ||
		      (a->kind == CAS && message->value == a->expected);
	enum wmm_order order = a->kind == CAS && !writes ? a->failure : a->order;
	uint64_t value = a->operand;

	thread->awaits = false;
	thread->result = message->value;
	thread->succeeded = writes;
	if (a->kind != STORE) {
		order_after(thread->clock, w.event[message->event].clock);
		if (thread->view.seen[a->location] < key)
			thread->view.seen[a->location] = key;
		if (is_acquire(order) && message->has_view)
			join(&thread->view, &message->view);
		thread->last_location = a->location;
		thread->last_read = key;
	}
	if (a->kind == RMW) {
		if (a->rmw == WMM_OR)
			value |= message->value;
		else if (a->rmw == WMM_AND)
			value &= message->value;
		else if (a->rmw == WMM_ADD)
			value += message->value;
	}
	value &= ~(uint64_t)0 >> (64 - 8 * location->bytes);
	w.self = t;
	note("LSU"[writes ? 1 + (a->kind != STORE) : 0], a -> site, location -> address,
	     message -> value, value);
	/* For the reduction: what this access comes after. */
	if (writes)
		order_after(thread->clock, location->writes);
	if (order == WMM_SEQ)
		order_after(thread->clock, writes ? location->seq_reads : location->seq_writes);
	thread->clock[t] = (uint16_t)w.depth;
	event->thread = (uint8_t)t;
	event->location = (uint8_t)a->location;
	event->writes = writes;
	event->may_write = a->kind != LOAD;
	event->is_seq = order == WMM_SEQ;
	memcpy(event->clock, thread->clock, sizeof(event->clock));
	location->event[location->events++] = (uint16_t)w.depth;
	if (location->events == PER_LOCATION)
		w.bug = "an execution does not end";
	if (order == WMM_SEQ)
		order_after(writes ? location->seq_writes : location->seq_reads, thread->clock);
	if (writes) {
		order_after(location->writes, thread->clock);
		message->is_taken = message->is_taken || a->kind != STORE;
		put(thread, a, position, value, a->kind == STORE ? NULL : message);
	}
	return writes;
}

/* True if event a comes before the event with this clock in every execution like this one. */
static bool is_before(unsigned a, const uint16_t clock[WMM_THREADS])
{
	return a <= clock[w.event[a].thread];
}

/*
 * Event b came after a on the same location. True if it makes a difference which is first, and b
 * can be.
 */
static bool is_race(unsigned a, unsigned b, const uint16_t before_b[WMM_THREADS])
{
	const struct event *first = &w.event[a], *second = &w.event[b];
	const struct location *location = &w.location[second->location];

	if (first->thread == second->thread || is_before(a, before_b))
		return false;
	if (!first->writes) {
		/* The load could read what b wrote. */
		if (!second->writes)
			return false;
		if (!(first->is_seq && second->is_seq))
			return !is_before(a, second->clock);
	} else if (!second->may_write && !(first->is_seq && second->is_seq)) {
		return false; /* a load has older messages to read */
	}
	if (!is_before(a, second->clock))
		return true;
	/* They are ordered: by themselves alone, or by something in between? */
	for (unsigned i = location->events; i-- > 0 && location->event[i] > a;) {
		unsigned f = location->event[i];

		if (f != b && is_before(f, second->clock) && is_before(a, w.event[f].clock))
			return false;
	}
	return true;
}

/*
 * See to it that b is tried before a: some thread that can lead there must be wanted where a was
 * chosen.
 */
static void want_reversal(unsigned a, unsigned b)
{
	struct node *node = &w.node[a - 1];
	unsigned seen = 0, first = 0;
	uint16_t skipped = w.event[a].thread;

	for (unsigned i = a + 1; i <= b; i++) {
		const struct event *event = &w.event[i];
		bool is_first = true;

		if (i != b && event->clock[skipped] >= a)
			continue; /* comes after a */
		if (seen & (1u << event->thread))
			continue;
		seen |= 1u << event->thread;
		for (unsigned h = a + 1; h < i && is_first; h++)
			is_first = !(w.event[h].clock[skipped] < a && is_before(h, event->clock));
		if (is_first)
			first |= 1u << event->thread;
	}
	first &= node->enabled;
	if (first == 0)
		node->wanted |= node->enabled;
	else if ((node->wanted & first) == 0)
		node->wanted |=
			(uint8_t)(first & (1u << w.event[b].thread) ? 1u << w.event[b].thread
								    : first & (0u - first));
}

static void look_for_races(unsigned b, const uint16_t before_b[WMM_THREADS])
{
	const struct location *location = &w.location[w.event[b].location];

	for (unsigned i = location->events; i-- > 0;)
		if (location->event[i] != b && is_race(location->event[i], b, before_b))
			want_reversal(location->event[i], b);
}

/* ---- the search ------------------------------------------------------------------------------ */

static bool is_asleep(const struct node *node, unsigned t, stamp key)
{
	for (unsigned i = 0; i < node->sleepers; i++)
		if (node->sleeper[i].thread == t && node->sleeper[i].key == key)
			return true;
	return false;
}

/* Make thread t the one of this node. Return: false: all it can do was done elsewhere. */
static bool take_thread(struct node *node, unsigned t)
{
	stamp key[CHOICES];
	unsigned n = choices(t, key);

	node->thread = (uint8_t)t;
	node->keys = node->key_at = 0;
	for (unsigned i = 0; i < n; i++)
		if (!is_asleep(node, t, key[i]))
			node->key[node->keys++] = key[i];
	return node->keys != 0;
}

/* A new node: who is there, who sleeps. Return: false: there is nothing new to do. */
static bool open_node(struct node *node, unsigned last)
{
	node->enabled = node->wanted = node->explored = 0;
	node->explored_keys = 0;
	for (unsigned t = 0; t < w.threads; t++) {
		stamp key[CHOICES];

		if (w.thread[t].is_done)
			continue;
		if (choices(t, key) != 0)
			node->enabled |= (uint8_t)(1u << t);
	}
	for (unsigned i = 0; i < w.threads; i++) {
		unsigned t = (last + i) % w.threads;

		if ((node->enabled & (1u << t)) && take_thread(node, t)) {
			node->wanted = w.options->is_brute ? node->enabled : (uint8_t)(1u << t);
			return true;
		}
	}
	return false;
}

/* After node's access: who still sleeps. */
static void pass_on_sleep(const struct node *node, struct node *child, unsigned location,
			  bool writes, bool is_seq)
{
	child->sleepers = 0;
	if (w.options->is_brute)
		return;
	for (unsigned i = 0; i < node->sleepers + (unsigned)node->explored_keys; i++) {
		const struct sleeper *s = i < node->sleepers
						  ? &node->sleeper[i]
						  : &node->explored_key[i - node->sleepers];

		if (s->thread == node->thread ||
		    wakes(&w.thread[s->thread].next, s->key, location, writes, is_seq))
			continue;
		if (child->sleepers == SLEEPERS) {
			fprintf(stderr, "wmm: too many sleepers\n");
			abort();
		}
		child->sleeper[child->sleepers++] = *s;
	}
}

/*
 * Choose and do one access. Return: the thread that did it, or WMM_THREADS: the execution ends
 * here.
 */
static unsigned advance(unsigned last)
{
	struct node *node = &w.node[w.depth];
	uint16_t before[WMM_THREADS];
	unsigned location, t;
	bool writes, all_done = true;

	for (t = 0; t < w.threads; t++)
		all_done = all_done && w.thread[t].is_done;
	if (all_done)
		return WMM_THREADS;
	if (w.depth >= w.replay && !open_node(node, last)) {
		if (node->enabled == 0)
			w.bug = "every thread waits";
		else
			w.result.blocked++;
		return WMM_THREADS;
	}
	t = node->thread;
	location = w.thread[t].next.location;
	w.depth++;
	memcpy(before, w.thread[t].clock, sizeof(before));
	writes = perform(t, node->key[node->key_at]);
	if (w.depth >= w.replay && !w.options->is_brute)
		look_for_races(w.depth, before);
	if (w.depth >= w.replay)
		pass_on_sleep(node, node + 1, location, writes, w.event[w.depth].is_seq);
	if (w.depth == DEPTH)
		w.bug = "an execution does not end";
	return w.bug != NULL ? WMM_THREADS : t;
}

/* Go back to the last node that has another side. Return: false: all was seen. */
static bool backtrack(void)
{
	while (w.depth > 0) {
		struct node *node = &w.node[--w.depth];
		struct sleeper *explored = &node->explored_key[node->explored_keys];

		*explored = (struct sleeper){ node->thread, node->key[node->key_at] };
		if (++node->explored_keys == SLEEPERS)
			abort();
		if (++node->key_at < node->keys) {
			w.replay = w.depth + 1;
			return true;
		}
		node->explored |= (uint8_t)(1u << node->thread);
		if (node->wanted & ~node->explored) {
			/*
			 * Which messages the thread may choose from is known again when we are
			 * there.
			 */
			node->thread =
				(uint8_t)__builtin_ctz(node->wanted & ~(unsigned)node->explored);
			node->keys = node->key_at = 0;
			w.replay = w.depth + 1;
			return true;
		}
	}
	return false;
}

/* ---- threads --------------------------------------------------------------------------------- */

/*
 * At the last replayed node another thread takes its turn: what it may choose from is known only
 * now. Return: false: nothing that was not done elsewhere.
 */
static bool change_thread(struct node *node)
{
	while (!take_thread(node, node->thread)) {
		node->explored |= (uint8_t)(1u << node->thread);
		if ((node->wanted & ~node->explored) == 0)
			return false;
		node->thread = (uint8_t)__builtin_ctz(node->wanted & ~(unsigned)node->explored);
	}
	return true;
}

/* The running thread has an access to do, or has ended: choose who goes on, which may be itself. */
static void yield(void)
{
	unsigned self = w.self, next = WMM_THREADS;
	struct node *node = &w.node[w.depth];

	if (w.depth + 1 == w.replay && node->keys == 0 && !change_thread(node))
		w.result.blocked++;
	else
		next = advance(self == MEMORY ? 0 : self);
	if (next == self)
		return;
	w.self = next;
	swapcontext(self == MEMORY ? &w.home : &w.thread[self].context,
		    next == WMM_THREADS ? &w.home : &w.thread[next].context);
}

static bool is_starting;

static void run_thread(void)
{
	w.scenario->thread[w.self]();
	w.thread[w.self].is_done = true;
	if (is_starting)
		leave_execution();
	yield();
	abort();
}

static struct thread *announce(struct wmm_site *site, const volatile void *p, size_t bytes,
			       struct access *next)
{
	struct thread *thread = &w.thread[w.self];

	meet(site);
	touch(p, bytes, next->kind != LOAD, true);
	next->site = site;
	next->location = locate(p, bytes);
	next->order = site->in_use;
	if (next->order == WMM_FAILURE_RELAXED)
		next->order = site->order;
	if (!is_acquire(site->in_use) || site->in_use == WMM_FAILURE_RELAXED)
		next->failure = WMM_RELAXED;
	thread->next = *next;
	if (is_starting) {
		unsigned self = w.self;

		w.self = MEMORY;
		swapcontext(&thread->context, &w.home);
		w.self = self;
	} else {
		yield();
	}
	return thread;
}

uint64_t wmm_load(struct wmm_site *site, const volatile void *p, size_t bytes)
{
	struct access next = { .kind = LOAD };

	if (!w.is_running || w.self == MEMORY)
		return memory_get(p, bytes);
	return announce(site, p, bytes, &next)->result;
}

void wmm_store(struct wmm_site *site, volatile void *p, size_t bytes, uint64_t value)
{
	struct access next = { .kind = STORE, .operand = value };

	if (!w.is_running || w.self == MEMORY)
		memory_put(p, bytes, value);
	else
		announce(site, p, bytes, &next);
}

uint64_t wmm_rmw(struct wmm_site *site, volatile void *p, size_t bytes, enum wmm_rmw kind,
		 uint64_t value)
{
	struct access next = { .kind = RMW, .rmw = kind, .operand = value };
	uint64_t old;

	if (w.is_running && w.self != MEMORY)
		return announce(site, p, bytes, &next)->result;
	old = memory_get(p, bytes);
	if (kind == WMM_OR)
		value |= old;
	else if (kind == WMM_AND)
		value &= old;
	else if (kind == WMM_ADD)
		value += old;
	memory_put(p, bytes, value);
	return old;
}

bool wmm_cas(struct wmm_site *site, volatile void *p, size_t bytes, uint64_t *expected,
	     uint64_t value, enum wmm_order failure)
{
	struct access next = {
		.kind = CAS, .operand = value, .expected = *expected, .failure = failure
	};
	const struct thread *thread;

	if (!w.is_running || w.self == MEMORY) {
		uint64_t old = memory_get(p, bytes);

		if (old != *expected) {
			*expected = old;
			return false;
		}
		memory_put(p, bytes, value);
		return true;
	}
	thread = announce(site, p, bytes, &next);
	*expected = thread->result;
	return thread->succeeded;
}

void wmm_await(void)
{
	struct thread *thread = &w.thread[w.self];

	if (!w.is_running || w.self == MEMORY)
		return;
	thread->awaits = true;
	thread->at_least = thread->last_read;
}

/* ---- executions ------------------------------------------------------------------------------ */

static void reset_thread(struct thread *thread)
{
	thread->is_done = thread->awaits = false;
	memset(&thread->view, 0, sizeof(thread->view));
	memset(thread->clock, 0, sizeof(thread->clock));
	thread->view.clock[thread - w.thread] = 1;
	getcontext(&thread->context);
	thread->context.uc_stack.ss_sp = thread->stack;
	thread->context.uc_stack.ss_size = STACK_BYTES;
	thread->context.uc_link = &w.home;
	makecontext(&thread->context, run_thread, 0);
}

static void begin_execution(void)
{
	memcpy(w.options->world, w.snapshot, w.options->world_bytes);
	memset(w.index, 0, sizeof(w.index));
	w.locations = w.messages = w.depth = w.steps = 0;
	w.bug = NULL;
	w.execution++;
	w.progress++;
	w.is_running = is_starting = true;
	memset(&w.event[0], 0, sizeof(w.event[0]));
	for (unsigned t = 0; t < w.threads; t++)
		reset_thread(&w.thread[t]);
	for (unsigned t = 0; t < w.threads && w.bug == NULL; t++) {
		w.self = t;
		swapcontext(&w.home, &w.thread[t].context);
		w.self = MEMORY;
	}
	is_starting = false;
}

static void print_step(const struct step *step)
{
	char name[64] = "";

	if (step->address != NULL) {
		snprintf(name, sizeof(name), "%p", (const void *)(uintptr_t)step->address);
		if (w.options->name != NULL)
			w.options->name(step->address, name, sizeof(name));
	}
	if (step->what == '!') {
		printf("    T%u: here\n", step->thread);
	} else if (step->what == 'r' || step->what == 'w') {
		printf("    T%u: %s %s of %s races with T%u\n", step->thread,
		       step->before ? "atomic" : "plain", step->what == 'r' ? "load" : "store",
		       name, (unsigned)step->after);
	} else {
		printf("    T%u: %-24s %-18s %-10s %s", step->thread, step->site->function,
		       step->site->operation, wmm_order_name(step->site->in_use), name);
		if (step->what == 'L')
			printf(" = %#llx\n", (unsigned long long)step->before);
		else if (step->what == 'S')
			printf(" := %#llx\n", (unsigned long long)step->after);
		else
			printf(" = %#llx := %#llx\n", (unsigned long long)step->before,
			       (unsigned long long)step->after);
	}
}

static void print_execution(void)
{
	printf("%s: %s, after %llu executions:\n", w.scenario->name, w.bug,
	       (unsigned long long)w.result.executions);
	for (unsigned i = 0; i < w.steps; i++)
		print_step(&w.step[i]);
}

static void prepare(const struct wmm_scenario *scenario, const struct wmm_options *options)
{
	w.scenario = scenario;
	w.options = options;
	memset(&w.result, 0, sizeof(w.result));
	for (w.threads = 0; w.threads < WMM_THREADS && scenario->thread[w.threads] != NULL;
	     w.threads++)
		if (w.thread[w.threads].stack == NULL)
			w.thread[w.threads].stack = malloc(STACK_BYTES);
	w.shadow = calloc(options->world_bytes, sizeof(*w.shadow));
	w.snapshot = malloc(options->world_bytes);
	w.is_running = false;
	w.self = MEMORY;
	w.execution = 0;
	w.tolerates = 0;
	memset(options->world, 0, options->world_bytes);
	scenario->setup();
	memcpy(w.snapshot, options->world, options->world_bytes);
	w.replay = 0;
	w.node[0].sleepers = 0;
}

struct wmm_result wmm_explore(const struct wmm_scenario *scenario,
			      const struct wmm_options *options)
{
	prepare(scenario, options);
	do {
		uint64_t blocked = w.result.blocked;

		begin_execution();
		if (w.bug == NULL)
			yield();
		w.is_running = false;
		w.self = MEMORY;
		w.result.steps += w.depth;
		if (w.result.blocked == blocked) {
			w.result.executions++;
			if (w.depth > w.result.longest)
				w.result.longest = w.depth;
			if (w.bug == NULL && scenario->check != NULL)
				scenario->check();
		}
		if (w.bug != NULL) {
			if (options->is_verbose)
				print_execution();
			break;
		}
		if (options->limit != 0 && w.result.executions >= options->limit) {
			w.result.is_bounded = true;
			break;
		}
	} while (backtrack());
	w.result.bug = w.bug;
	free(w.shadow);
	free(w.snapshot);
	return w.result;
}
