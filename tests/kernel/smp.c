/* SPDX-License-Identifier: MIT
 * smp.c - owns the stress of one heap by all CPUs, at thread, interrupt and NMI level at once.
 * Runs: worker_run on every CPU, thread level; tick in timer interrupts; nmi in NMIs.
 *
 * Each CPU replays a trace, then the next one. Meanwhile, on every CPU:
 *	every fourth object that the trace frees goes to another CPU, which frees it (ring)
 *	timer interrupts and NMIs allocate and free objects of their own (stash), and free objects
 *	that their own CPU's thread allocated, and the other way round (gift)
 *	between its traces a CPU other than 0 goes offline, frees objects of others, comes back.
 * All objects are written in full, and checked by whoever frees them.
 */
#include "smp.h"

#include "arch.h"
#include "replay.h"
#include "source.h"
#include "verdict.h"

#if KERNEL_SMP

#define ROUNDS 4u
#define ENOUGH_MS 6000u /* then a trace after the first is left where it is: hosts differ */
#define BURST_CALLS 256u /* between looks at the rings */
#define TICK_US 500u
#define NMI_BURSTS 8u /* bursts of a CPU between its NMIs to all others */
#define IDLE_BURSTS 64u /* between calls of kslab_idle */
#define RECLAIM_BURSTS 512u
#define PASS_ON_EVERY 4u
#define OFFLINE_MS 5u
#define RING 64u
#define STASH 16u
#define GIFT_BYTES 64u

/* Objects on their way from one CPU to another: one writer, one reader. */
struct ring {
	uint32_t head; /* [a] next to read, written by the reader */
	uint32_t tail; /* [a] next to write, written by the writer */
	struct object objects[RING];
};

/* What one interrupt level of a CPU works with. */
struct level {
	struct object stash[STASH];
	void *gift; /* [a] GIFT_BYTES, from the thread or for it; its address is its seed */
	uint64_t random, runs, allocs, refused;
};

struct worker {
	struct replay replay;
	struct ring from[KERNEL_CPUS]; /* by the CPU that sends */
	struct level tick, nmi;
	uint32_t online; /* interrupts may use the heap; written by the thread */
	uint64_t random, calls, sent, received, offline_frees;
} __attribute__((aligned(64)));

static struct worker workers[KERNEL_CPUS];
static unsigned cpus, traces;
static uint64_t deadline;
static unsigned go, arrived, finished, parked; /* [a] */

static uint32_t next_random(uint64_t *state)
{
	*state = *state * 6364136223846793005u + 1442695040888963407u;
	return (uint32_t)(*state >> 33);
}

static bool is_online(const struct worker *w)
{
	return *(const volatile uint32_t *)&w->online;
}

static void set_online(struct worker *w, bool online)
{
	*(volatile uint32_t *)&w->online = online;
}

/* ---- interrupts and NMIs -------------------------------------------------------------------- */

static void free_gift(void *gift)
{
	if (gift != NULL) {
		object_check(&(struct object){ gift, GIFT_BYTES, (uintptr_t)gift }, "gift");
		kslab_free(gift);
	}
}

/* Takes the gift that lies there, or leaves one. Return: false if kslab refused. */
static bool exchange_gift(void **place)
{
	void *gift = __atomic_exchange_n(place, NULL, __ATOMIC_ACQ_REL);

	if (gift != NULL) {
		free_gift(gift);
		return true;
	}
	gift = kslab_malloc(GIFT_BYTES);
	if (gift == NULL)
		return false;
	object_fill(&(struct object){ gift, GIFT_BYTES, (uintptr_t)gift });
	free_gift(__atomic_exchange_n(place, gift, __ATOMIC_ACQ_REL));
	return true;
}

static void free_object(struct object *object, const char *when)
{
	if (object->mem != NULL) {
		object_check(object, when);
		kslab_free(object->mem);
		object->mem = NULL;
	}
}

/* Sizes: mostly small, now and then up to a few pages. */
static size_t random_size(uint64_t *random)
{
	uint32_t r = next_random(random);

	return 1 + (r >> 8) % (r % 16 == 0 ? 20000 : 512);
}

/*
 * One object of the level's own is made or freed, and the gift changes hands. Return: false if
 * refused.
 */
static bool level_run(struct level *level, const char *when)
{
	struct object *object = &level->stash[next_random(&level->random) % STASH];
	bool served = true;

	level->runs++;
	if (object->mem != NULL) {
		free_object(object, when);
	} else {
		object->size = random_size(&level->random);
		object->seed = level->random;
		object->mem = kslab_malloc(object->size);
		if (object->mem != NULL) {
			object_fill(object);
			level->allocs++;
		} else {
			served = false;
		}
	}
	return exchange_gift(&level->gift) && served;
}

static void tick(void)
{
	struct worker *w = &workers[machine_cpu()];

	if (is_online(w) && !level_run(&w->tick, "tick"))
		WRONG("CPU %u, interrupt: %s\n", machine_cpu(),
		      kslab_reason_name(kslab_last_error()));
}

/* An NMI may find the lock of the page source held: then, and only then, it may be refused. */
static void nmi(void)
{
	struct worker *w = &workers[machine_cpu()];
	enum kslab_reason reason;

	if (is_online(w) && !level_run(&w->nmi, "NMI")) {
		w->nmi.refused++;
		reason = kslab_last_error();
		if (reason != KSLAB_BUSY && reason != KSLAB_NO_PAGES)
			WRONG("CPU %u, NMI: %s\n", machine_cpu(), kslab_reason_name(reason));
	}
}

static void level_end(struct level *level)
{
	for (unsigned i = 0; i < STASH; i++)
		free_object(&level->stash[i], "end of a level");
	free_gift(__atomic_exchange_n(&level->gift, NULL, __ATOMIC_ACQ_REL));
}

/* ---- objects between CPUs ------------------------------------------------------------------- */

/* replay.pass_on: every fourth object goes to another CPU, if its ring has room. */
static bool send(void *ctx, const struct object *object)
{
	struct worker *self = ctx;
	unsigned cpu = (unsigned)(self - workers);
	uint32_t r = next_random(&self->random);
	struct ring *ring;
	uint32_t tail;

	if (cpus < 2 || r % PASS_ON_EVERY != 0)
		return false;
	ring = &workers[(cpu + 1 + (r >> 8) % (cpus - 1)) % cpus].from[cpu];
	tail = __atomic_load_n(&ring->tail, __ATOMIC_RELAXED);
	if (tail - __atomic_load_n(&ring->head, __ATOMIC_ACQUIRE) == RING)
		return false;
	ring->objects[tail % RING] = *object;
	__atomic_store_n(&ring->tail, tail + 1, __ATOMIC_RELEASE);
	self->sent++;
	return true;
}

/* Frees everything that others have sent. Return: how many objects. */
static unsigned receive(struct worker *self)
{
	unsigned count = 0;

	for (unsigned cpu = 0; cpu < cpus; cpu++) {
		struct ring *ring = &self->from[cpu];
		uint32_t tail = __atomic_load_n(&ring->tail, __ATOMIC_ACQUIRE);
		uint32_t head = ring->head;

		for (; head != tail; head++, count++) {
			free_object(&ring->objects[head % RING], "received");
			__atomic_store_n(&ring->head, head + 1, __ATOMIC_RELEASE);
		}
	}
	self->received += count;
	return count;
}

/* ---- a CPU's work --------------------------------------------------------------------------- */

static void replay_with_company(struct worker *self, unsigned cpu, unsigned round)
{
	const struct trace *trace = &kernel_traces[(cpu + round) % traces];
	unsigned bursts = 0;
	bool more = true;

	if (!replay_open(&self->replay, trace, REPLAY_PATTERN, (uint64_t)(cpu + 1) << 40))
		return;
	self->replay.pass_on = send;
	self->replay.ctx = self;
	while (more) {
		for (unsigned i = 0; more && i < BURST_CALLS; i++)
			more = replay_step(&self->replay);
		if (round != 0 && machine_cycles() > deadline)
			more = false;
		receive(self);
		if (!exchange_gift(&self->tick.gift) || !exchange_gift(&self->nmi.gift))
			WRONG("CPU %u: no gift: %s\n", cpu, kslab_reason_name(kslab_last_error()));
		bursts++;
		if (bursts % NMI_BURSTS == cpu % NMI_BURSTS)
			arch_send_nmi();
		if (bursts % IDLE_BURSTS == 0)
			kslab_idle();
		if (bursts % RECLAIM_BURSTS == 0)
			kslab_reclaim(64);
	}
	self->calls += self->replay.done;
	replay_close(&self->replay);
}

/* Leaves the heap for a few milliseconds; frees go on, as they may. */
static void offline_and_back(struct worker *self, unsigned cpu)
{
	uint64_t end = machine_cycles() + OFFLINE_MS * arch_cycles_per_ms();

	set_online(self, false);
	EXPECT(kslab_cpu_offline(cpu) == KSLAB_OK);
	while (machine_cycles() < end) {
		self->offline_frees += receive(self);
		machine_wait();
	}
	EXPECT(kslab_cpu_online(cpu) == KSLAB_OK);
	set_online(self, true);
}

/* Waits for all CPUs; sleeps between ticks, so that QEMU's other CPUs get the host's. */
static void meet(unsigned *counter, struct worker *self)
{
	__atomic_fetch_add(counter, 1, __ATOMIC_ACQ_REL);
	while (__atomic_load_n(counter, __ATOMIC_ACQUIRE) < cpus) {
		receive(self);
		machine_wait();
	}
}

static void worker_run(unsigned cpu)
{
	struct worker *self = &workers[cpu];

	self->random = cpu + 1;
	self->tick.random = cpu + 11;
	self->nmi.random = cpu + 21;
	if (cpu != 0)
		EXPECT(kslab_cpu_online(cpu) == KSLAB_OK);
	set_online(self, true);
	arch_timer_start(TICK_US, tick);
	meet(&arrived, self);
	for (unsigned round = 0; round < ROUNDS; round++) {
		replay_with_company(self, cpu, round);
		if (cpu != 0)
			offline_and_back(self, cpu);
	}
	meet(&finished, self);
	receive(self); /* nobody sends any more */
	arch_timer_stop();
	set_online(self, false);
	level_end(&self->tick);
	level_end(&self->nmi);
	if (cpu != 0)
		EXPECT(kslab_cpu_offline(cpu) == KSLAB_OK);
	__atomic_fetch_add(&parked, 1, __ATOMIC_ACQ_REL);
}

/* Where the other CPUs start: they wait for the job, do it once, and stop. */
static void other_cpu(unsigned cpu)
{
	while (!__atomic_load_n(&go, __ATOMIC_ACQUIRE))
		machine_relax();
	worker_run(cpu);
	for (;;)
		machine_wait();
}

unsigned smp_start(void)
{
	cpus = arch_start_cpus(other_cpu);
	return cpus;
}

static void print_work(void)
{
	kprintf("%4s %8s %8s %8s %8s %8s %8s %8s %8s %8s\n", "CPU", "calls", "sent", "received",
		"offline", "ticks", "allocs", "NMIs", "allocs", "refused");
	for (unsigned cpu = 0; cpu < cpus; cpu++) {
		const struct worker *w = &workers[cpu];

		kprintf("%4u %8lu %8lu %8lu %8lu %8lu %8lu %8lu %8lu %8lu\n", cpu,
			(unsigned long)w->calls, (unsigned long)w->sent, (unsigned long)w->received,
			(unsigned long)w->offline_frees, (unsigned long)w->tick.runs,
			(unsigned long)w->tick.allocs, (unsigned long)w->nmi.runs,
			(unsigned long)w->nmi.allocs, (unsigned long)w->nmi.refused);
		EXPECT(w->tick.runs != 0);
	}
}

void smp_job(void)
{
	struct kslab_stats stats;

	for (traces = 0; kernel_traces[traces].name != NULL; traces++)
		;
	EXPECT(cpus == KERNEL_CPUS);
	source_start(0, 0);
	arch_set_nmi_handler(nmi);
	deadline = machine_cycles() + ENOUGH_MS * arch_cycles_per_ms();
	__atomic_store_n(&go, 1, __ATOMIC_RELEASE);
	worker_run(0);
	while (__atomic_load_n(&parked, __ATOMIC_ACQUIRE) < cpus)
		machine_relax();
	print_work();
	kslab_stats(&stats);
	kprintf("peak %zu pages, %lu frees for other CPUs, %lu mails, %lu lock acquisitions\n",
		stats.pages_peak, (unsigned long)stats.remote_frees,
		(unsigned long)stats.counters.mails, (unsigned long)stats.lock_acquisitions);
	source_end();
}

#endif
