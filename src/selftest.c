/* SPDX-License-Identifier: MIT
 * selftest.c - owns the tests that a kernel can run at boot: of its own hooks, and of a live heap.
 * Rank: 6.  Runs: thread; the port test on CPU 0 before kslab_init. No misuse is tried: the report
 * hook may stop the machine.
 */
#include <kslab/observe.h>

#include "heap.h"
#include "page_map.h"

/* Of one self test, whichever. */
struct testing_port {
	const struct kslab_config *config;
	struct kslab_selftest out;
	size_t page_bytes;
};

static bool fail(struct kslab_selftest *out, const char *hook, const char *what,
		 const void *address, size_t count)
{
	out->hook = hook;
	out->what = what;
	out->address = address;
	out->count = count;
	return false;
}

/* ---- patterns -------------------------------------------------------------------------------- */

/*
 * What the word at an address shall hold: a function of the address, so that no two places hold the
 * same.
 */
static uintptr_t pattern(uintptr_t address)
{
	return (address ^ (address >> 9)) * (uintptr_t)0x9e3779b1u + 0x7f4a7c15u;
}

/* 512 words of a page, or all of them, and the last one. */
static size_t stride_of(size_t page_bytes)
{
	return page_bytes / 512 > sizeof(uintptr_t) ? page_bytes / 512 : sizeof(uintptr_t);
}

static void fill(uintptr_t start, size_t bytes, size_t stride)
{
	for (uintptr_t a = start; a - start < bytes; a += stride)
		*(volatile uintptr_t *)a = pattern(a);
	*(volatile uintptr_t *)(start + bytes - sizeof(uintptr_t)) =
		pattern(start + bytes - sizeof(uintptr_t));
}

/* Address of the first word that is not as filled; 0: none. */
static uintptr_t find_damage(uintptr_t start, size_t bytes, size_t stride)
{
	uintptr_t last = start + bytes - sizeof(uintptr_t);

	for (uintptr_t a = start; a - start < bytes; a += stride)
		if (*(volatile uintptr_t *)a != pattern(a))
			return a;
	return *(volatile uintptr_t *)last != pattern(last) ? last : 0;
}

/* ---- memcpy, memset, memmove, memcmp --------------------------------------------------------- */

#define BUFFER 64u

static void prepare(volatile unsigned char *buffer)
{
	for (unsigned i = 0; i < BUFFER; i++)
		buffer[i] = (unsigned char)(i * 7 + 1);
}

/*
 * The bytes of buffer are as prepared, but for [to, to + n), which hold what lay at `from`, or
 * `byte`.
 */
static bool is_moved(const volatile unsigned char *buffer, unsigned to, unsigned from, unsigned n,
		     int byte)
{
	for (unsigned i = 0; i < BUFFER; i++) {
		unsigned char want = (unsigned char)(i * 7 + 1);

		if (i - to < n)
			want = (unsigned char)(byte >= 0 ? (unsigned)byte
							 : (i - to + from) * 7 + 1);
		if (buffer[i] != want)
			return false;
	}
	return true;
}

static bool test_memory_functions(struct kslab_selftest *out)
{
	/* Volatile, so that the compiler calls them, and does not know what they do. */
	void *(*volatile set)(void *, int, size_t) = memset;
	void *(*volatile move)(void *, const void *, size_t) = memmove;
	void *(*volatile copy)(void *restrict, const void *restrict, size_t) = memcpy;
	int (*volatile compare)(const void *, const void *, size_t) = memcmp;
	unsigned char a[BUFFER], b[BUFFER];

	for (unsigned n = 0; n <= 32; n++) {
		for (unsigned at = 1; at < 10; at++) {
			prepare(a);
			if (set(a + at, 0xa5, n) != a + at || !is_moved(a, at, 0, n, 0xa5))
				return fail(out, "memset", "does not set exactly its bytes", NULL,
					    n);
			prepare(a);
			prepare(b);
			if (copy(b + at, a + 5, n) != b + at || !is_moved(b, at, 5, n, -1))
				return fail(out, "memcpy", "does not copy exactly its bytes", NULL,
					    n);
			if (move(a + at, a + 5, n) != a + at || !is_moved(a, at, 5, n, -1))
				return fail(out, "memmove", "does not move overlapping bytes", NULL,
					    n);
			prepare(a);
			prepare(b);
			if (compare(a + at, b + at, n) != 0)
				return fail(out, "memcmp", "finds a difference in equal bytes",
					    NULL, n);
			a[at + n] = 0x80;
			b[at + n] = 0x7f;
			if (compare(a + at, b + at, n + 1) <= 0 ||
			    compare(b + at, a + at, n + 1) >= 0 || compare(a + at, b + at, n) != 0)
				return fail(out, "memcmp",
					    "does not compare unsigned bytes in order", NULL, n);
		}
	}
	return true;
}

/* ---- CPU and interrupts ---------------------------------------------------------------------- */

static bool test_cpu(struct kslab_selftest *out)
{
	unsigned first, now, round;

	KSLAB_PORT_PIN();
	first = now = KSLAB_PORT_CPU();
	for (round = 0; round < 256 && now == first; round++)
		now = KSLAB_PORT_CPU();
	KSLAB_PORT_UNPIN();
	if (first >= KSLAB_CFG_CPUS)
		return fail(out, "KSLAB_PORT_CPU", "is not below KSLAB_CFG_CPUS", NULL, first);
	if (now != first)
		return fail(out, "KSLAB_PORT_CPU", "changes between PIN and UNPIN", NULL, now);
	if (first != 0)
		return fail(out, "KSLAB_PORT_CPU", "is not 0 on the CPU that begins", NULL, first);
	return true;
}

/*
 * SAVE as a function of its own, right behind one and the same comparison: a state that holds all
 * flags of the machine then differs in what SAVE and RESTORE are for, and in nothing else.
 */
static KSLAB_SLOW uintptr_t save(const volatile unsigned *zero)
{
	if (*zero != 0)
		return 0;
	return KSLAB_PORT_IRQ_SAVE();
}

static bool test_irq(struct kslab_selftest *out)
{
	const volatile unsigned zero = 0;
	uintptr_t outer, inner = 0, again = 0, after;

	outer = save(&zero);
	/* With one level nothing nests, and a port may rely on that. */
	if (KSLAB_CFG_LEVELS > 1) {
		inner = save(&zero);
		KSLAB_PORT_IRQ_RESTORE(inner);
		again = save(&zero);
		KSLAB_PORT_IRQ_RESTORE(again);
	}
	KSLAB_PORT_IRQ_RESTORE(outer);
	after = save(&zero);
	KSLAB_PORT_IRQ_RESTORE(after);
	out->irq_tested = KSLAB_CFG_LEVELS > 1 && outer != inner;
	if (again != inner)
		return fail(out, "KSLAB_PORT_IRQ_RESTORE",
			    "ends a SAVE round the one it belongs to", NULL, again);
	if (after != outer)
		return fail(out, "KSLAB_PORT_IRQ_RESTORE", "does not bring back what SAVE found",
			    NULL, after);
	if (KSLAB_PORT_IN_NMI())
		return fail(out, "KSLAB_PORT_IN_NMI", "is true in a thread", NULL, 0);
	return true;
}

/* ---- the page source ------------------------------------------------------------------------- */

#define RUNS 20u
#define ROUNDS 4u

/* Lengths: after each longer run a single page comes, which must not lie inside. */
static const uint8_t lengths[RUNS] = { 1, 1, 2, 1, 1, 3, 1, 1, 4, 1, 1, 8, 1, 1, 1, 1, 1, 1, 1, 1 };

struct source_test {
	struct testing_port *port;
	uintptr_t run[RUNS]; /* 0: not held */
	size_t pages[RUNS];
	bool gave_back; /* some runs have gone back while others are held */
};

/* Judge one run by its address. */
static bool accept(struct source_test *test, uintptr_t address, size_t pages)
{
	struct kslab_selftest *out = &test->port->out;
	size_t page_bytes = test->port->page_bytes, bytes = pages * page_bytes;
	uintptr_t window = test->port->config->window_base;
	const void *at = (const void *)address;

	if ((address & (page_bytes - 1)) != 0)
		return fail(out, "alloc_pages", "gave a page that is not aligned to page_bytes", at,
			    pages);
	if (address + (bytes - 1) < address)
		return fail(out, "alloc_pages", "gave a run that wraps the address space", at,
			    pages);
	window &= ~(((uintptr_t)1 << KSLAB_CFG_LEAF_SHIFT) - 1);
	if (window != 0 &&
	    (address < window || (uint64_t)(address - window) + bytes > KSLAB_WINDOW_BYTES))
		return fail(out, "window_base", "is not where alloc_pages has its pages", at,
			    pages);
	for (unsigned i = 0; i < RUNS; i++) {
		uintptr_t held = test->run[i];

		if (held == 0 || address + (bytes - 1) < held ||
		    held + (test->pages[i] * page_bytes - 1) < address)
			continue;
		if (test->gave_back)
			return fail(out, "free_pages", "took pages back that it was not given", at,
				    pages);
		if (address == held)
			return fail(out, "alloc_pages", "gave the same page twice", at, pages);
		return fail(out, "alloc_pages", "gave a run that overlaps an earlier one", at,
			    pages);
	}
	fill(address, bytes, stride_of(page_bytes));
	if (find_damage(address, bytes, stride_of(page_bytes)) != 0)
		return fail(out, "alloc_pages", "gave memory that does not hold what is written",
			    at, pages);
	return true;
}

/* Everything that is held still has its pattern. */
static bool test_contents(struct source_test *test)
{
	size_t page_bytes = test->port->page_bytes;

	for (unsigned i = 0; i < RUNS; i++) {
		uintptr_t damage;

		if (test->run[i] == 0)
			continue;
		damage = find_damage(test->run[i], test->pages[i] * page_bytes,
				     stride_of(page_bytes));
		if (damage == 0)
			continue;
		if (test->gave_back)
			return fail(&test->port->out, "free_pages",
				    "changes pages that it was not given", (const void *)damage,
				    test->pages[i]);
		return fail(&test->port->out, "alloc_pages",
			    damage - test->run[i] < page_bytes
				    ? "gave pages that share memory"
				    : "gave a run whose pages are not all its own",
			    (const void *)damage, test->pages[i]);
	}
	return true;
}

static bool take_run(struct source_test *test, unsigned i, bool must)
{
	const struct kslab_config *config = test->port->config;
	size_t pages = lengths[i];
	uintptr_t address = (uintptr_t)config->alloc_pages(config->source_ctx, pages);

	if (address == 0)
		return !must || fail(&test->port->out, "free_pages",
				     "does not give memory back to alloc_pages", NULL, i);
	if (!accept(test, address, pages))
		return false; /* it is not given back: who knows what it is */
	test->run[i] = address;
	test->pages[i] = pages;
	return true;
}

static void give_run(struct source_test *test, unsigned i)
{
	const struct kslab_config *config = test->port->config;

	if (test->run[i] != 0)
		config->free_pages(config->source_ctx, (void *)test->run[i], test->pages[i]);
	test->run[i] = 0;
}

static bool test_rounds(struct source_test *test)
{
	bool had[RUNS] = { false };

	for (unsigned round = 0; round < ROUNDS; round++) {
		test->gave_back = false;
		for (unsigned i = 0; i < RUNS; i++) {
			if (!take_run(test, i, lengths[i] == 1 && had[i]))
				return false;
			had[i] = had[i] || test->run[i] != 0;
			if (!had[0])
				return fail(&test->port->out, "alloc_pages",
					    "gave not even one page", NULL, 1);
		}
		if (!test_contents(test))
			return false;
		/* Every other one goes back, and is taken again beside those that stayed. */
		test->gave_back = true;
		for (unsigned i = round % 2; i < RUNS; i += 2)
			give_run(test, i);
		if (!test_contents(test))
			return false;
		for (unsigned i = round % 2; i < RUNS; i += 2)
			if (!take_run(test, i, lengths[i] == 1 && had[i]))
				return false;
		if (!test_contents(test))
			return false;
		for (unsigned i = 0; i < RUNS; i++)
			give_run(test, round < 2 ? i : RUNS - 1 - i);
	}
	return true;
}

static bool test_source(struct testing_port *port)
{
	struct source_test test;
	bool passed;

	if (port->config->alloc_pages == NULL && port->config->free_pages == NULL)
		return true;
	if (port->config->free_pages == NULL)
		return fail(&port->out, "free_pages", "is missing where alloc_pages is given", NULL,
			    0);
	if (port->config->alloc_pages == NULL)
		return fail(&port->out, "alloc_pages", "is missing where free_pages is given", NULL,
			    0);
	memset(&test, 0, sizeof(test));
	test.port = port;
	passed = test_rounds(&test);
	for (unsigned i = 0; i < RUNS; i++)
		give_run(&test, i);
	return passed;
}

/* ---- a region, and purge --------------------------------------------------------------------- */

/*
 * The page at each power of two, and the last one: memory that is shorter than it says comes round
 * again.
 */
static bool test_region(struct testing_port *port, uintptr_t start, size_t pages)
{
	size_t page_bytes = port->page_bytes, stride = stride_of(page_bytes);

	for (unsigned round = 0; round < 2; round++) {
		for (size_t page = 0; page < pages; page = page == 0 ? 1 : page * 2) {
			uintptr_t at = start + page * page_bytes;

			if (round == 0)
				fill(at, page_bytes, stride);
			else if (find_damage(at, page_bytes, stride) != 0)
				return fail(&port->out, "region",
					    "memory does not hold what is written",
					    (const void *)at, page);
		}
		if (round == 0) {
			uintptr_t last = start + (pages - 1) * page_bytes;

			fill(last, page_bytes, stride);
			if (find_damage(last, page_bytes, stride) != 0)
				return fail(&port->out, "region", "memory ends early",
					    (const void *)last, pages);
		}
	}
	return true;
}

static bool test_purge(struct testing_port *port, uintptr_t start, size_t pages)
{
	const struct kslab_config *config = port->config;
	size_t page_bytes = port->page_bytes, stride = stride_of(page_bytes);
	uintptr_t middle = start + page_bytes;

	if (config->purge == NULL || pages < 3)
		return true;
	for (unsigned i = 0; i < 3; i++)
		fill(start + i * page_bytes, page_bytes, stride);
	config->purge(config->source_ctx, (void *)middle, page_bytes);
	for (uintptr_t a = middle; a - middle < page_bytes; a += sizeof(uintptr_t))
		if (*(volatile uintptr_t *)a != 0)
			return fail(&port->out, "purge", "memory does not read as zero after it",
				    (const void *)a, a - middle);
	if (find_damage(start, page_bytes, stride) != 0 ||
	    find_damage(middle + page_bytes, page_bytes, stride) != 0)
		return fail(&port->out, "purge", "changes memory beside what it is given",
			    (const void *)middle, 0);
	fill(middle, page_bytes, stride);
	if (find_damage(middle, page_bytes, stride) != 0)
		return fail(&port->out, "purge", "memory can't be used after it",
			    (const void *)middle, 0);
	return true;
}

static bool test_memory(struct testing_port *port, void *mem, size_t bytes)
{
	uintptr_t start =
		((uintptr_t)mem + port->page_bytes - 1) & ~(uintptr_t)(port->page_bytes - 1);
	uintptr_t end = ((uintptr_t)mem + bytes) & ~(uintptr_t)(port->page_bytes - 1);

	if (mem == NULL)
		return true;
	if ((uintptr_t)mem + bytes < (uintptr_t)mem)
		return fail(&port->out, "region", "wraps the address space", mem, bytes);
	if (end <= start)
		return fail(&port->out, "region", "is too small", mem, bytes);
	return test_region(port, start, (end - start) >> kslab_log2(port->page_bytes)) &&
	       test_purge(port, start, (end - start) >> kslab_log2(port->page_bytes));
}

bool kslab_selftest_port(const struct kslab_config *config, void *mem, size_t bytes,
			 struct kslab_selftest *out)
{
	struct testing_port port = { config, { NULL, NULL, NULL, 0, false }, 0 };
	bool passed;

	port.page_bytes = config->page_bytes != 0 ? config->page_bytes : KSLAB_PAGE_BYTES_DEFAULT;
	if (!kslab_is_power_of_two(port.page_bytes) ||
	    port.page_bytes < (size_t)1 << KSLAB_CFG_GRAIN_SHIFT)
		passed = fail(&port.out, "page_bytes", "is no power of two, or below the grain",
			      NULL, port.page_bytes);
	else
		passed = test_memory_functions(&port.out) && test_cpu(&port.out) &&
			 test_irq(&port.out) && test_source(&port) &&
			 test_memory(&port, mem, bytes);
	if (out != NULL)
		*out = port.out;
	return passed;
}

/* ---- a live heap ----------------------------------------------------------------------------- */

#define OBJECTS 24u

struct live_test {
	struct kslab_heap *heap;
	bool quiet;
	struct kslab_selftest out;
	unsigned char *object[OBJECTS];
	size_t bytes[OBJECTS]; /* asked for */
};

/* Byte i of an object. */
static unsigned char live_byte(const struct live_test *test, unsigned k, size_t i)
{
	return (unsigned char)(((uintptr_t)test->object[k] >> 3) + test->bytes[k] * 31 + i * 7);
}

static void live_fill(struct live_test *test, unsigned k)
{
	for (size_t i = 0; i < test->bytes[k]; i++)
		((volatile unsigned char *)test->object[k])[i] = live_byte(test, k, i);
}

static bool live_verify(struct live_test *test, unsigned k, size_t bytes, const char *call)
{
	for (size_t i = 0; i < bytes; i++)
		if (((volatile unsigned char *)test->object[k])[i] != live_byte(test, k, i))
			return fail(&test->out, call, "an object does not hold what was written",
				    test->object[k], i);
	return true;
}

static bool live_check(struct live_test *test)
{
	struct kslab_check_result result;

	if (!test->quiet || kslab_heap_check(test->heap, &result))
		return true;
	return fail(&test->out, "kslab_check", result.what, result.page, result.errors);
}

/*
 * An object into place k. Return: false: something is wrong. Memory that is out is not: the place
 * stays empty.
 */
static bool live_alloc(struct live_test *test, unsigned k, size_t n, size_t align, unsigned flags)
{
	unsigned char *object = kslab_heap_alloc(test->heap, n, align, flags);
	size_t natural = n <= test->heap->page_bytes && kslab_is_power_of_two(n) ? n : 8;

	if (natural < 8)
		natural = 8;
	if (align > natural)
		natural = align;
	test->object[k] = object;
	test->bytes[k] = n;
	if (object == NULL)
		return true;
	if (((uintptr_t)object & (natural - 1)) != 0)
		return fail(&test->out, "kslab_alloc", "an object is not aligned", object, n);
	if (kslab_heap_usable_size(test->heap, object) < n)
		return fail(&test->out, "kslab_usable_size", "is smaller than what was asked for",
			    object, n);
	for (size_t i = 0; (flags & KSLAB_ZERO) && i < n; i++)
		if (((volatile unsigned char *)object)[i] != 0)
			return fail(&test->out, "kslab_zalloc", "an object is not zero", object, i);
	live_fill(test, k);
	return true;
}

static bool live_free(struct live_test *test, unsigned k)
{
	unsigned char *object = test->object[k];
	bool whole;

	if (object == NULL)
		return true;
	whole = live_verify(test, k, test->bytes[k], "kslab_alloc");
	test->object[k] = NULL;
	kslab_heap_free(test->heap, object);
	return whole;
}

/* Eight of each size; freed from both ends towards the middle, every other one first. */
static bool live_sizes(struct live_test *test)
{
	static const uint16_t sizes[] = {
		0,   1,	  8,   16,   24,   40,	 64,   100,  128,   200,
		256, 512, 700, 1000, 1024, 2000, 2048, 4096, 10000, 16384
	};
	static const uint8_t order[] = { 0, 2, 4, 6, 7, 5, 3, 1 };

	for (unsigned s = 0; s < KSLAB_ARRAY_LENGTH(sizes); s++) {
		for (unsigned k = 0; k < 8; k++)
			if (!live_alloc(test, k, sizes[s], 1, k & 1 ? KSLAB_ZERO : 0))
				return false;
		for (unsigned k = 0; k < 8; k++)
			if (!live_free(test, order[k]))
				return false;
		if (!live_check(test))
			return false;
	}
	return true;
}

/* Every alignment up to two base pages, and a block above the classes. */
static bool live_alignments(struct live_test *test)
{
	unsigned k = 0;

	for (size_t align = 1; align <= 2 * test->heap->page_bytes && k < OBJECTS - 1;
	     align *= 2, k++)
		if (!live_alloc(test, k, 3 * align / 2, align, k & 1 ? KSLAB_ZERO : 0))
			return false;
	if (!live_alloc(test, k, KSLAB_CLASS_MAX_BYTES + 1, 1, KSLAB_ZERO))
		return false;
	for (k = 0; k < OBJECTS; k++)
		if (!live_free(test, k))
			return false;
	return live_check(test);
}

/* One object through growing and shrinking sizes keeps its beginning. */
static bool live_realloc(struct live_test *test)
{
	static const uint16_t sizes[] = { 24, 30, 100, 5000, 20000, 30000, 3000, 60, 1 };

	if (!live_alloc(test, 0, 8, 1, 0))
		return false;
	for (unsigned s = 0; s < KSLAB_ARRAY_LENGTH(sizes) && test->object[0] != NULL; s++) {
		size_t old = test->bytes[0], kept = old < sizes[s] ? old : sizes[s];
		unsigned char first = live_byte(test, 0, 0);
		unsigned char *object = kslab_heap_realloc(test->heap, test->object[0], sizes[s]);

		if (object == NULL)
			break;
		test->object[0] = object;
		for (size_t i = 0; i < kept; i++)
			if (((volatile unsigned char *)object)[i] != (unsigned char)(first + i * 7))
				return fail(&test->out, "kslab_realloc", "contents were lost",
					    object, i);
		test->bytes[0] = sizes[s];
		live_fill(test, 0);
	}
	return live_free(test, 0) && live_check(test);
}

static bool live_bulk(struct live_test *test)
{
	void *objects[OBJECTS];
	size_t got = kslab_heap_malloc_bulk(test->heap, 48, OBJECTS, objects);

	for (unsigned k = 0; k < got; k++) {
		test->object[k] = objects[k];
		test->bytes[k] = 48;
		live_fill(test, k);
	}
	for (unsigned k = 0; k < got; k++)
		if (!live_verify(test, k, 48, "kslab_malloc_bulk"))
			return false;
	memset(test->object, 0, sizeof(test->object));
	kslab_heap_free_bulk(test->heap, got, objects);
	return live_check(test);
}

/* A mix of sizes in an order that looks like chance. */
static bool live_mix(struct live_test *test)
{
	uint32_t x = 0x2545f491u;

	for (unsigned step = 0; step < 1000; step++) {
		unsigned k;

		x ^= x << 13;
		x ^= x >> 17;
		x ^= x << 5;
		k = (x >> 8 & 0xff) * OBJECTS >> 8;
		if (test->object[k] != NULL ? !live_free(test, k)
					    : !live_alloc(test, k, x >> 16 & 0x3ff, 1, 0))
			return false;
	}
	for (unsigned k = 0; k < OBJECTS; k++)
		if (!live_free(test, k))
			return false;
	return live_check(test);
}

bool kslab_heap_selftest(struct kslab_heap *heap, bool quiet, struct kslab_selftest *out)
{
	struct live_test test;
	bool passed;

	memset(&test, 0, sizeof(test));
	test.heap = heap;
	test.quiet = quiet;
	if (heap->state != KSLAB_HEAP_READY)
		passed = fail(&test.out, "kslab_init", "the heap is not initialised", heap, 0);
	else
		passed = live_check(&test) && live_sizes(&test) && live_alignments(&test) &&
			 live_realloc(&test) && live_bulk(&test) && live_mix(&test);
	for (unsigned k = 0; k < OBJECTS; k++)
		if (test.object[k] != NULL)
			kslab_heap_free(heap, test.object[k]);
	if (out != NULL)
		*out = test.out;
	return passed;
}

bool kslab_selftest(bool quiet, struct kslab_selftest *out)
{
	return kslab_heap_selftest(&kslab_default_heap, quiet, out);
}
