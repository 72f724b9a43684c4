/* SPDX-License-Identifier: MIT
 * testing.h - owns what every test shares: a fake page source with fault injection, a recording
 * report hook, a fixture that checks the heap after every step, and seeded random numbers.
 * Rank: tests. Header-only; tests/test_testing.c tests the fake kernel itself.
 *
 * The fixture in use:
 *	static struct testing t;
 *	testing_begin(&t, &config);            a heap on the fake source
 *	p = kslab_heap_malloc(&t.heap, 24);
 *	testing_step(&t);                      checker, no fault, no error of the source: asserted
 *	kslab_heap_free(&t.heap, p + 1);
 *	testing_fault(&t, KSLAB_FAULT_INTERIOR_POINTER);   exactly one, of this kind
 *	testing_end(&t);                       fini, every page came back
 */
#ifndef KSLAB_TESTING_H
#define KSLAB_TESTING_H

#include <setjmp.h>
#include <stdarg.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>

#include <cmocka.h>

#include <kslab/kslab.h>

#define TESTING_COUNT(a) (sizeof(a) / sizeof((a)[0]))

/* ---- random numbers -------------------------------------------------------------------------- */

/* SplitMix64 (Steele, Lea, Flood 2014): any seed is a good one. */
struct testing_random {
	uint64_t state;
};

static inline uint64_t testing_random_next(struct testing_random *random)
{
	uint64_t z = random->state += 0x9e3779b97f4a7c15u;

	z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9u;
	z = (z ^ (z >> 27)) * 0x94d049bb133111ebu;
	return z ^ (z >> 31);
}

/* 0 .. n - 1. */
static inline size_t testing_random_below(struct testing_random *random, size_t n)
{
	return (size_t)(testing_random_next(random) % n);
}

/*
 * The seed of a random test: KSLAB_SEED from the environment, else the one given; printed in any
 * case.
 */
static inline struct testing_random testing_seed(const char *test, uint64_t seed)
{
	const char *given = getenv("KSLAB_SEED");
	struct testing_random random = { given != NULL ? strtoull(given, NULL, 0) : seed };

	print_message("# %s: KSLAB_SEED=%llu\n", test, (unsigned long long)random.state);
	return random;
}

/* ---- the fake page source -------------------------------------------------------------------- */

#define FAKE_PAGES_MAX 32768u
#define FAKE_INSIDE UINT32_MAX /* a page that is not the first of its run */
#define FAKE_JUNK_ALLOC 0xa5 /* what a page holds when it is given out */
#define FAKE_JUNK_FREE 0x5a /* and when it came back, without guard */

/*
 * Page runs from one stretch of memory that is aligned to its size (so that it lies in one address
 * window). Lowest address first. Everything that the other side does wrong is counted in errors,
 * the first one named in what; nothing is asserted here, so that tests can see it fail.
 */
struct fake_source {
	unsigned char *memory;
	size_t page_bytes, pages;
	uint32_t run[FAKE_PAGES_MAX]; /* 0: here; else length of the run that was given out */

	/* knobs, all 0: a source that serves everything until memory is out */
	size_t fail_at; /* this call of alloc_pages, counted from 1, fails; once */
	size_t fail_from; /* this one and all later ones fail */
	size_t longest_run; /* longer ones are refused */
	bool unaligned; /* runs above one page are not aligned to their length */
	bool guard; /* memory that is not given out can't be touched */
	bool force; /* the next answer is `forced`, whatever it is; not counted as given out */
	void *forced;
	/* runs inside every alloc_pages */
	void (*on_alloc)(struct fake_source *source, size_t pages);
	void (*on_free)(struct fake_source *source, size_t pages);
	void *user; /* for these two */

	/* accounting */
	size_t alloc_calls, free_calls, refusals;
	size_t pages_out, pages_peak;
	size_t forced_returns; /* frees of `forced` */
	size_t errors;
	const char *what;
};

static inline void fake_source_wrong(struct fake_source *source, const char *what)
{
	if (source->errors++ == 0)
		source->what = what;
}

static inline void fake_source_protect(struct fake_source *source, size_t first, size_t pages,
				       bool usable)
{
	if (!source->guard)
		return;
	if (mprotect(source->memory + first * source->page_bytes, pages * source->page_bytes,
		     usable ? PROT_READ | PROT_WRITE : PROT_NONE) != 0)
		fake_source_wrong(source, "mprotect failed");
}

/* pages: a power of two, at most FAKE_PAGES_MAX. */
static inline void fake_source_init(struct fake_source *source, size_t page_bytes, size_t pages,
				    bool guard)
{
	size_t bytes = page_bytes * pages;
	unsigned char *raw;

	assert_true(pages != 0 && pages <= FAKE_PAGES_MAX && (bytes & (bytes - 1)) == 0);
	memset(source, 0, sizeof(*source));
	raw = mmap(NULL, 2 * bytes, PROT_READ | PROT_WRITE,
		   MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
	assert_true(raw != MAP_FAILED);
	source->memory = raw + (bytes - ((uintptr_t)raw & (bytes - 1))) % bytes;
	if (source->memory != raw)
		munmap(raw, (size_t)(source->memory - raw));
	munmap(source->memory + bytes, bytes - (size_t)(source->memory - raw));
	source->page_bytes = page_bytes;
	source->pages = pages;
	source->guard = guard;
	fake_source_protect(source, 0, pages, false);
}

static inline void fake_source_fini(struct fake_source *source)
{
	munmap(source->memory, source->page_bytes * source->pages);
	source->memory = NULL;
}

static inline size_t fake_source_find(const struct fake_source *source, size_t pages)
{
	size_t align = 1, first, n;

	while (!source->unaligned && align < pages)
		align *= 2;
	/* Unaligned on purpose: at an odd page if it is more than one. */
	first = source->unaligned && pages > 1 ? 1 : 0;
	for (; first + pages <= source->pages; first += align) {
		for (n = 0; n < pages && source->run[first + n] == 0; n++)
			;
		if (n == pages && !(source->unaligned && pages > 1 && first % 2 == 0))
			return first;
	}
	return SIZE_MAX;
}

/* The callbacks for struct kslab_config; ctx is the source. */
static inline void *fake_source_alloc(void *ctx, size_t pages)
{
	struct fake_source *source = ctx;
	size_t first;

	source->alloc_calls++;
	if (source->on_alloc != NULL)
		source->on_alloc(source, pages);
	if (pages == 0)
		fake_source_wrong(source, "a run of no pages was asked for");
	if (source->force) {
		source->force = false;
		return source->forced;
	}
	if (source->alloc_calls == source->fail_at ||
	    (source->fail_from != 0 && source->alloc_calls >= source->fail_from) ||
	    (source->longest_run != 0 && pages > source->longest_run) || pages == 0 ||
	    (first = fake_source_find(source, pages)) == SIZE_MAX) {
		source->refusals++;
		return NULL;
	}
	source->run[first] = (uint32_t)pages;
	for (size_t i = 1; i < pages; i++)
		source->run[first + i] = FAKE_INSIDE;
	source->pages_out += pages;
	if (source->pages_out > source->pages_peak)
		source->pages_peak = source->pages_out;
	fake_source_protect(source, first, pages, true);
	memset(source->memory + first * source->page_bytes, FAKE_JUNK_ALLOC,
	       pages * source->page_bytes);
	return source->memory + first * source->page_bytes;
}

static inline void fake_source_free(void *ctx, void *mem, size_t pages)
{
	struct fake_source *source = ctx;
	size_t offset = (size_t)((uintptr_t)mem - (uintptr_t)source->memory), first;

	source->free_calls++;
	if (source->on_free != NULL)
		source->on_free(source, pages);
	if (mem != NULL && mem == source->forced) {
		source->forced_returns++;
		return;
	}
	first = offset / source->page_bytes;
	if (first >= source->pages || offset % source->page_bytes != 0) {
		fake_source_wrong(source, "memory came back that is not ours");
	} else if (source->run[first] == 0) {
		fake_source_wrong(source, "a page came back twice");
	} else if (source->run[first] == FAKE_INSIDE) {
		fake_source_wrong(source, "the middle of a run came back");
	} else if (source->run[first] != pages) {
		fake_source_wrong(source, "a run came back with another length");
	} else {
		if (!source->guard)
			memset(mem, FAKE_JUNK_FREE, pages * source->page_bytes);
		fake_source_protect(source, first, pages, false);
		memset(&source->run[first], 0, pages * sizeof(source->run[0]));
		source->pages_out -= pages;
	}
}

/* Is this address in a page that is given out? */
static inline bool fake_source_is_out(const struct fake_source *source, const void *address)
{
	size_t offset = (size_t)((uintptr_t)address - (uintptr_t)source->memory);

	return offset / source->page_bytes < source->pages &&
	       source->run[offset / source->page_bytes] != 0;
}

/* Fail the n-th call from now on (1 is the next one); 0: none. */
static inline void fake_source_fail_at(struct fake_source *source, size_t n)
{
	source->fail_at = n != 0 ? source->alloc_calls + n : 0;
}

/* From the n-th call from now on, memory is out; 0: no longer. */
static inline void fake_source_fail_from(struct fake_source *source, size_t n)
{
	source->fail_from = n != 0 ? source->alloc_calls + n : 0;
}

/*
 * A source that takes runs apart: part of a run, taken by the test itself, for regions and the
 * like.
 */
static inline void *fake_source_take(struct fake_source *source, size_t pages)
{
	size_t calls = source->alloc_calls, refusals = source->refusals;
	void *mem;

	source->alloc_calls = 0; /* the knobs are for the other side */
	mem = fake_source_alloc(source, pages);
	source->alloc_calls = calls;
	source->refusals = refusals;
	assert_non_null(mem);
	return mem;
}

/* ---- the recording report hook --------------------------------------------------------------- */

struct recorder {
	size_t count; /* all reports */
	size_t kinds[KSLAB_FAULT_COUNT];
	struct kslab_report last;
	void (*on_report)(struct recorder *recorder, const struct kslab_report *report);
	void *user;
};

static inline void recorder_report(void *ctx, const struct kslab_report *report)
{
	struct recorder *recorder = ctx;

	recorder->count++;
	if ((unsigned)report->fault < KSLAB_FAULT_COUNT)
		recorder->kinds[report->fault]++;
	recorder->last = *report;
	if (recorder->on_report != NULL)
		recorder->on_report(recorder, report);
}

/* ---- the fixture ----------------------------------------------------------------------------- */

struct testing {
	struct kslab_heap heap;
	struct fake_source source;
	struct recorder recorder;
	size_t faults; /* reports that the test has asked for so far */
};

#define TESTING_PAGES 4096u /* of the source, unless testing_begin_with is used */

/* A test that failed leaves its heap linked to the others: the next one must not trip over it. */
static inline void testing_forget(struct kslab_heap *heap)
{
	struct kslab_heap **link = &kslab_default_heap.next_heap;

	for (unsigned n = 0; n < 16 && *link != NULL; n++) {
		if (*link == heap)
			*link = heap->next_heap != heap ? heap->next_heap : NULL;
		else
			link = &(*link)->next_heap;
	}
}

/*
 * A heap on a fake source that was made by the caller with fake_source_init. Callbacks, their
 * context and the report hook are filled into a copy of the configuration. Return: what
 * kslab_heap_init said.
 */
static inline enum kslab_reason testing_init(struct testing *t, const struct kslab_config *config)
{
	struct kslab_config filled = *config;

	memset(&t->recorder, 0, sizeof(t->recorder));
	t->faults = 0;
	filled.alloc_pages = fake_source_alloc;
	filled.free_pages = fake_source_free;
	filled.source_ctx = &t->source;
	filled.report = recorder_report;
	filled.report_ctx = &t->recorder;
	testing_forget(&t->heap);
	memset(&t->heap, 0xa5, sizeof(t->heap)); /* init promises to cope with any contents */
	return kslab_heap_init(&t->heap, &filled);
}

static inline void testing_begin_with(struct testing *t, const struct kslab_config *config,
				      size_t pages, bool guard)
{
	fake_source_init(&t->source, config->page_bytes != 0 ? config->page_bytes : 4096, pages,
			 guard);
	assert_int_equal(testing_init(t, config), KSLAB_OK);
}

static inline void testing_begin(struct testing *t, const struct kslab_config *config)
{
	testing_begin_with(t, config, TESTING_PAGES, true);
}

/*
 * What is wrong with heap, report hook or source; NULL: nothing. The fixture's asserts are made of
 * this.
 */
static inline const char *testing_wrong(struct testing *t)
{
	struct kslab_check_result result;

	if (!kslab_heap_check(&t->heap, &result))
		return result.what != NULL ? result.what : "the checker failed without a word";
	if (t->recorder.count != t->faults)
		return t->recorder.last.what != NULL ? t->recorder.last.what
						     : "a fault without a word";
	return t->source.errors != 0 ? t->source.what : NULL;
}

static inline void testing_assert(const char *wrong, const char *file, int line)
{
	if (wrong == NULL)
		return;
	print_error("%s:%d: %s\n", file, line, wrong);
	_fail(file, line);
}

/* After every step: the checker is content, no fault was reported, the source saw no error. */
#define testing_step(t) testing_assert(testing_wrong(t), __FILE__, __LINE__)

/* As testing_wrong, where exactly one new fault of this kind is wanted. */
static inline const char *testing_wrong_fault(struct testing *t, enum kslab_fault fault)
{
	if (t->recorder.count == t->faults)
		return "no fault was reported";
	if (t->recorder.count != t->faults + 1)
		return "more than one fault was reported";
	if (t->recorder.last.fault != fault)
		return t->recorder.last.what != NULL ? t->recorder.last.what
						     : "a fault without a word";
	t->faults++;
	return testing_wrong(t);
}

/*
 * Exactly one fault, of this kind, since the last step; the heap is well. t->recorder.last tells
 * more.
 */
#define testing_fault(t, fault)                                                                    \
	testing_assert(testing_wrong_fault((t), (fault)), __FILE__, __LINE__)

/* Ends the heap. Return: what is wrong, NULL if every page came back. The source stays. */
static inline const char *testing_wrong_end(struct testing *t)
{
	const char *wrong = testing_wrong(t);

	if (wrong != NULL)
		return wrong;
	if (kslab_heap_fini(&t->heap) != KSLAB_OK)
		return "kslab_fini refused";
	if (t->source.pages_out != 0)
		return "pages did not come back";
	return t->source.errors != 0 ? t->source.what : NULL;
}

/* Everything was freed: fini succeeds, every page came back. The source ends, too. */
#define testing_end(t)                                                                             \
	do {                                                                                       \
		testing_assert(testing_wrong_end(t), __FILE__, __LINE__);                          \
		fake_source_fini(&(t)->source);                                                    \
	} while (0)

static inline uint64_t testing_hash(uint64_t hash, const void *data, size_t bytes)
{
	const unsigned char *byte = data;

	for (size_t i = 0; i < bytes; i++)
		hash = (hash ^ byte[i]) * 1099511628211u; /* FNV-1a */
	return hash;
}

/*
 * A digest of everything a heap is: its structure and every page that it holds, objects included.
 * What a refused call may change is left out: counters of calls, the last error, the lock's
 * tickets.
 */
static inline uint64_t testing_digest(const struct testing *t)
{
	static struct kslab_heap copy;
	uint64_t hash = 14695981039346656037u;

	memcpy(&copy, &t->heap, sizeof(copy));
	memset(&copy.boot_zone.counters, 0, sizeof(copy.boot_zone.counters));
	copy.boot_zone.last_error = 0;
	memset(copy.tally.failed, 0, sizeof(copy.tally.failed));
	memset(&copy.lock, 0, sizeof(copy.lock));
	copy.lock_acquisitions = 0;
	hash = testing_hash(hash, &copy, sizeof(copy));
	hash = testing_hash(hash, t->source.run, t->source.pages * sizeof(t->source.run[0]));
	for (size_t i = 0; i < t->source.pages; i++)
		if (t->source.run[i] != 0)
			hash = testing_hash(hash, t->source.memory + i * t->source.page_bytes,
					    t->source.page_bytes);
	return hash;
}

#endif
