/* SPDX-License-Identifier: MIT
 * misuse.c - owns a table of everything a program does wrong with malloc, and what kslab answers at
 * debug levels 0 and 1.
 * Rank: test.  Runs: Linux host; each case in a process of its own, with libkslab.so preloaded.
 *
 *     misuse LIBRARY0 LIBRARY1 [part of a name]     see run.sh, which builds both
 *
 * The answer is the fault that was reported; if none was, what the case itself says, or what
 * kslab_check finds; else "nothing". After every case but those that damage the heap on purpose,
 * the heap passes kslab_check and kslab_selftest: a refusal has broken nothing (an object whose
 * redzone was overwritten stays live, and found). The last line is "N passed, N failed".
 */
#define _GNU_SOURCE
#include <kslab/kslab.h>
#include <kslab/observe.h>

#include "host/host.h"

#include <errno.h>
#include <malloc.h>
#include <poll.h>
#include <pthread.h>
#include <signal.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/wait.h>
#include <unistd.h>

#define SECONDS 20
#define ANSWER_BYTES 96
#define COUNT(a) (sizeof(a) / sizeof((a)[0]))

/* Not in the C library's headers everywhere; the preloaded library has them. */
void free_sized(void *p, size_t n);
void free_aligned_sized(void *p, size_t align, size_t n);

static void say(const char *format, ...)
{
	char line[256];
	va_list list;
	int n;

	va_start(list, format);
	n = vsnprintf(line, sizeof(line), format, list);
	va_end(list);
	if (write(STDOUT_FILENO, line, (size_t)n) != n)
		_exit(99);
}

/* ---- what cases are made of ------------------------------------------------------------------ */

/* The compiler forgets what a pointer is: it must not know of malloc here. */
static void *hide(void *p)
{
	__asm__ volatile("" : "+r"(p));
	return p;
}

static unsigned char *get(size_t n)
{
	unsigned char *p = hide(malloc(n));

	if (p == NULL) {
		say("answer: no memory\n");
		_exit(0);
	}
	return p;
}

static void drop(void *p)
{
	free(hide(p));
}

/* As drop, in a thread of its own. */
static void *drop_main(void *p)
{
	drop(p);
	return NULL;
}

static void drop_elsewhere(void *p)
{
	pthread_t thread;

	pthread_create(&thread, NULL, drop_main, p);
	pthread_join(thread, NULL);
}

/* Allocate until the address comes again. Return: it did. */
static bool reissue(void *p, size_t n)
{
	for (unsigned i = 0; i < 20000; i++)
		if (get(n) == p)
			return true;
	say("answer: never issued again\n");
	return false;
}

/* An object that is not the first of its page. */
static unsigned char *get_inner(size_t n)
{
	unsigned char *p;

	do
		p = get(n);
	while (((uintptr_t)p & 0xfff) < n);
	return p;
}

static struct kslab_zone *own_zone(void)
{
	return kslab_default_heap.zone[kslab_host_cpu];
}

/* The descriptor of a page that has been allocated from. */
static struct kslab_page *some_descriptor(void)
{
	struct kslab_zone *zone = own_zone();

	get(640);
	for (unsigned cls = 0; cls < KSLAB_CLASSES; cls++)
		if (zone->sc[cls].page != NULL && zone->sc[cls].size >= 640)
			return zone->sc[cls].page;
	say("answer: no descriptor\n");
	_exit(0);
}

/* Objects of one size that fill pages; freed and given back, so that their pages coalesce. */
#define PACK 4000u
static unsigned char *pack[PACK];

static void fill_and_coalesce(void)
{
	for (unsigned i = 0; i < PACK; i++)
		pack[i] = get(256);
	for (unsigned i = 0; i < PACK; i++)
		drop(pack[i]);
	malloc_trim(0);
}

static int global = 1;
static __thread int local;

/* ---- double frees ---------------------------------------------------------------------------- */

static void df_at_once(void)
{
	void *p = get(64);

	drop(p);
	drop(p);
}

static void df_size_zero(void)
{
	void *p = get(0);

	drop(p);
	drop(p);
}

static void df_after_other_frees(void)
{
	void *p = get(64), *q = get(64), *r = get(64);

	drop(p);
	drop(q);
	drop(r);
	drop(p);
}

static void df_late(void)
{
	void *p = get(64), *other[500];

	drop(p);
	for (unsigned i = 0; i < 500; i++)
		other[i] = get(1000);
	for (unsigned i = 0; i < 500; i++)
		drop(other[i]);
	drop(p);
}

static void df_full_page(void)
{
	void *p[2000];

	for (unsigned i = 0; i < 2000; i++)
		p[i] = get(512);
	drop(p[3]);
	drop(p[3]);
}

static void df_thrice(void)
{
	void *p = get(64);

	drop(p);
	drop(p);
	drop(p);
}

static void df_other_thread_first(void)
{
	void *p = get(64);

	drop_elsewhere(p);
	drop(p);
}

static void df_other_thread_second(void)
{
	void *p = get(64);

	drop(p);
	drop_elsewhere(p);
}

static void df_two_other_threads(void)
{
	void *p = get(64);

	drop_elsewhere(p);
	drop_elsewhere(p);
}

static pthread_barrier_t barrier;

static void *drop_together(void *p)
{
	pthread_barrier_wait(&barrier);
	drop(p);
	return NULL;
}

static void df_at_the_same_time(void)
{
	pthread_t thread[2];
	void *p = get(64);

	pthread_barrier_init(&barrier, NULL, 2);
	for (unsigned i = 0; i < 2; i++)
		pthread_create(&thread[i], NULL, drop_together, p);
	for (unsigned i = 0; i < 2; i++)
		pthread_join(thread[i], NULL);
}

static void *get_main(void *p)
{
	*(void **)p = get(64);
	return NULL;
}

/* Its CPU has gone. */
static void df_of_a_thread_that_ended(void)
{
	pthread_t thread;
	void *p;

	pthread_create(&thread, NULL, get_main, &p);
	pthread_join(thread, NULL);
	drop(p);
	drop(p);
}

static void df_calloc(void)
{
	void *p = hide(calloc(10, 30));

	drop(p);
	drop(p);
}

static void df_aligned(void)
{
	void *p = hide(aligned_alloc(256, 512));

	drop(p);
	drop(p);
}

static void df_after_realloc_moved(void)
{
	void *p = get(64), *q = hide(realloc(p, 5000));

	(void)q;
	drop(p);
}

static void df_after_realloc_zero(void)
{
	void *p = get(64);

	if (hide(realloc(p, 0)) != NULL)
		say("answer: realloc(p, 0) is not NULL\n");
	drop(p);
}

static void df_large(void)
{
	void *p = get(100000);

	drop(p);
	drop(p);
}

static void df_large_late(void)
{
	void *p = get(100000), *q = get(300000);

	drop(p);
	drop(q);
	malloc_trim(0);
	drop(p);
}

static void df_large_other_thread(void)
{
	void *p = get(100000);

	drop_elsewhere(p);
	drop(p);
}

static void df_huge(void)
{
	void *p = get(64u << 20);

	drop(p);
	drop(p);
}

static void df_coalesced(void)
{
	fill_and_coalesce();
	drop(pack[PACK / 2]);
}

static void df_coalesced_other_thread(void)
{
	fill_and_coalesce();
	drop_elsewhere(pack[PACK / 2]);
}

/* The slot belongs to somebody else by now: from the state alone this is a right free. */
static void df_issued_again(void)
{
	void *p = get(64);

	drop(p);
	if (reissue(p, 64))
		drop(p);
}

/* The rightful owner's free is the second one. */
static void df_issued_again_owner(void)
{
	void *p = get(64);

	drop(p);
	if (reissue(p, 64)) {
		drop(p);
		drop(p);
	}
}

/*
 * The slot behind the first object of a class. At level 1 a slot is longer than what may be used of
 * it.
 */
static void df_never_issued(void)
{
	unsigned char *p = get(700);

	drop(p + malloc_usable_size(p));
}

/* ---- addresses that are no objects ----------------------------------------------------------- */

static void bad_stack(void)
{
	int on_stack = 0;

	drop(&on_stack);
}

static void bad_global(void)
{
	drop(&global);
}

static void bad_thread_local(void)
{
	drop(&local);
}

static void bad_text(void)
{
	drop((void *)(uintptr_t) "text");
}

static void bad_function(void)
{
	drop((void *)(uintptr_t)bad_function);
}

static void bad_wild(void)
{
	drop((void *)(uintptr_t)0xdeadbeef000);
}

static void bad_non_canonical(void)
{
	drop((void *)~(uintptr_t)0x7fffffffffff);
}

static void bad_one(void)
{
	drop((void *)1);
}

static void bad_minus_one(void)
{
	drop((void *)~(uintptr_t)0);
}

static void bad_mapping(void)
{
	drop(mmap(NULL, 4096, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0));
}

static void bad_unmapped(void)
{
	void *p = mmap(NULL, 4096, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);

	munmap(p, 4096);
	drop(p);
}

static void bad_heap_itself(void)
{
	drop(&kslab_default_heap);
}

static void bad_window_not_used(void)
{
	drop((void *)(kslab_default_heap.region[0].end - 65536));
}

static void bad_descriptor(void)
{
	drop(some_descriptor());
}

static void bad_inside_descriptor(void)
{
	drop(&some_descriptor()->bits[0].freed);
}

static void *zone_main(void *p)
{
	get(64);
	*(void **)p = own_zone();
	return NULL;
}

static void bad_zone(void)
{
	pthread_t thread;
	void *zone = NULL;

	pthread_create(&thread, NULL, zone_main, &zone);
	pthread_join(thread, NULL);
	drop(zone);
}

static void bad_region_metadata(void)
{
	drop((void *)kslab_default_heap.region[0].start);
}

static void in_by_8(void)
{
	drop(get(64) + 8);
}

static void in_by_1(void)
{
	drop(get(64) + 1);
}

static void in_last_byte(void)
{
	drop(get(64) + 63);
}

static void in_half_way(void)
{
	drop(get(2048) + 1024);
}

static void in_before(void)
{
	drop(get_inner(64) - 8);
}

static void in_freed(void)
{
	unsigned char *p = get(64);

	drop(p);
	drop(p + 8);
}

static void in_other_thread(void)
{
	drop_elsewhere(get(64) + 16);
}

static void in_aligned(void)
{
	unsigned char *p = hide(aligned_alloc(4096, 8192));

	drop(p + 4096);
}

static void in_large_by_8(void)
{
	drop(get(100000) + 8);
}

static void in_large_by_page(void)
{
	drop(get(100000) + 4096);
}

static void behind_large(void)
{
	unsigned char *p = get(100000), *q = get(100000);

	drop(q);
	malloc_trim(0);
	drop(p + ((100000 + 4095) & ~4095)); /* behind its last page: nobody's, or q */
}

/* Its page is part of a large block by now. */
static void in_coalesced_now_large(void)
{
	unsigned char *large;

	fill_and_coalesce();
	for (unsigned i = 0; i < 64; i++) {
		large = get(300000);
		for (unsigned k = 0; k < PACK; k++) {
			if (pack[k] > large && pack[k] < large + 300000) {
				drop(pack[k]);
				return;
			}
		}
	}
	say("answer: no large block came there\n");
}

/* Its page has slots of another size by now. */
static void in_coalesced_now_other(void)
{
	fill_and_coalesce();
	for (unsigned i = 0; i < 20000; i++) {
		unsigned char *other = get(1024);

		for (unsigned k = 0; k < PACK; k++) {
			if (pack[k] > other && pack[k] < other + 1024) {
				drop(pack[k]);
				return;
			}
		}
	}
	say("answer: no other object came there\n");
}

static void null_pointer(void)
{
	drop(NULL);
}

/* ---- realloc and usable_size of what is no object -------------------------------------------- */

static void again(void *p)
{
	if (hide(realloc(hide(p), 100)) != NULL)
		say("answer: realloc gave memory\n");
}

static void re_freed(void)
{
	void *p = get(64);

	drop(p);
	again(p);
}

static void re_stack(void)
{
	int on_stack;

	again(&on_stack);
}

static void re_global(void)
{
	again(&global);
}

static void re_wild(void)
{
	again((void *)(uintptr_t)0xdeadbeef000);
}

static void re_inside(void)
{
	again(get(64) + 8);
}

static void re_inside_large(void)
{
	again(get(100000) + 4096);
}

static void re_coalesced(void)
{
	fill_and_coalesce();
	again(pack[7]);
}

static void re_freed_large(void)
{
	void *p = get(100000);

	drop(p);
	again(p);
}

static void re_misaligned(void)
{
	again(get(64) + 1);
}

static void re_freed_elsewhere(void)
{
	void *p = get(64);

	drop_elsewhere(p);
	again(p);
}

static void re_zero_of_freed(void)
{
	void *p = get(64);

	drop(p);
	if (hide(realloc(p, 0)) != NULL)
		say("answer: realloc gave memory\n");
}

static void size_of(void *p)
{
	if (malloc_usable_size(hide(p)) != 0)
		say("answer: usable_size is not 0\n");
}

static void us_freed(void)
{
	void *p = get(64);

	drop(p);
	size_of(p);
}

static void us_stack(void)
{
	int on_stack;

	size_of(&on_stack);
}

static void us_wild(void)
{
	size_of((void *)(uintptr_t)0xdeadbeef000);
}

static void us_inside(void)
{
	size_of(get(64) + 8);
}

static void us_coalesced(void)
{
	fill_and_coalesce();
	size_of(pack[9]);
}

static void us_global(void)
{
	size_of(&global);
}

static void us_misaligned(void)
{
	size_of(get(64) + 1);
}

static void us_freed_elsewhere(void)
{
	void *p = get(64);

	drop_elsewhere(p);
	size_of(p);
}

static void us_inside_large(void)
{
	size_of(get(100000) + 4096);
}

static void us_freed_large(void)
{
	void *p = get(100000);

	drop(p);
	size_of(p);
}

static void us_null(void)
{
	size_of(NULL);
}

/* ---- sizes ----------------------------------------------------------------------------------- */

static void refused(void *p)
{
	say("answer: %s\n", hide(p) == NULL ? "refused" : "gave memory");
}

static void sz_sized_smaller(void)
{
	void *p = get(200);

	free_sized(p, 100);
}

static void sz_sized_larger(void)
{
	void *p = get(200);

	free_sized(p, 2000);
}

static void sz_sized_right(void)
{
	free_sized(get(200), 200);
}

static void sz_sized_large(void)
{
	void *p = get(100000);

	free_sized(p, 64);
}

static void sz_aligned_sized(void)
{
	void *p = hide(aligned_alloc(64, 64));

	free_aligned_sized(p, 1024, 64);
}

static void sz_calloc_overflow(void)
{
	refused(calloc((size_t)hide((void *)(SIZE_MAX / 2)), 3));
}

static void sz_calloc_wraps_to_small(void)
{
	refused(calloc((size_t)hide((void *)(SIZE_MAX / 16 + 2)), 16));
}

static void sz_reallocarray_overflow(void)
{
	void *p = get(64);

	refused(reallocarray(p, (size_t)hide((void *)(SIZE_MAX / 2)), 3));
	drop(p); /* still valid */
}

static void sz_malloc_huge(void)
{
	refused(malloc((size_t)hide((void *)SIZE_MAX)));
}

static void sz_malloc_half(void)
{
	refused(malloc((size_t)hide((void *)(SIZE_MAX / 2))));
}

static void sz_realloc_huge(void)
{
	unsigned char *p = get(64);

	memset(p, 5, 64);
	refused(realloc(p, (size_t)hide((void *)(SIZE_MAX - 64))));
	if (p[63] != 5)
		say("answer: contents lost\n");
	drop(p);
}

static void sz_alignment(void)
{
	refused(aligned_alloc((size_t)hide((void *)48), 96));
}

static void sz_alignment_zero(void)
{
	refused(aligned_alloc((size_t)hide(NULL), 96));
}

static void sz_alignment_huge(void)
{
	refused(aligned_alloc((size_t)hide((void *)(SIZE_MAX / 2 + 1)), 96));
}

static void sz_posix_memalign(void)
{
	void *p = NULL;

	say("answer: %s\n",
	    posix_memalign(&p, 4, 96) == EINVAL && p == NULL ? "refused" : "gave memory");
}

/* ---- writes beside an object ----------------------------------------------------------------- */

/* Write n bytes from p + at on, then free it and the objects round it. */
static void scribble(size_t size, ptrdiff_t at, size_t n)
{
	unsigned char *p[40], *middle;

	for (unsigned i = 0; i < 40; i++) {
		p[i] = get(size);
		memset(p[i], 0x11, size);
	}
	middle = p[20];
	for (size_t i = 0; i < n; i++)
		((unsigned char *)hide(middle))[at + (ptrdiff_t)i] ^= 0x3c;
	for (unsigned i = 0; i < 40; i++)
		drop(p[i]);
}

static void ov_slack_by_1(void)
{
	scribble(60, 60, 1);
}

static void ov_slack_by_4(void)
{
	scribble(60, 60, 4);
}

static void ov_slack_by_8(void)
{
	scribble(1100, 1100, 8);
}

static void ov_exact_by_1(void)
{
	scribble(64, 64, 1);
}

static void ov_exact_by_8(void)
{
	scribble(64, 64, 8);
}

static void ov_next_object(void)
{
	scribble(64, 64, 64);
}

static void ov_page_size_by_1(void)
{
	scribble(4096, 4096, 1);
}

static void ov_far(void)
{
	scribble(64, 640, 8);
}

static void ov_calloc_by_1(void)
{
	unsigned char *p = hide(calloc(5, 20));

	p[100] ^= 1;
	drop(p);
}

static void ov_large_slack(void)
{
	unsigned char *p = get(100000);

	p[100000] ^= 1;
	drop(p);
}

static void ov_large_slack_far(void)
{
	unsigned char *p = get(100000);

	p[((100000 + 4095) & ~4095) - 1] ^= 1;
	drop(p);
}

static void ov_seen_by_realloc(void)
{
	unsigned char *p = get(60);

	p[60] ^= 1;
	drop(hide(realloc(p, 5000)));
}

static void ov_seen_by_other_thread(void)
{
	unsigned char *p = get(60);

	p[60] ^= 1;
	drop_elsewhere(p);
}

static void un_by_1(void)
{
	scribble(60, -1, 1);
}

static void un_by_8(void)
{
	scribble(60, -8, 8);
}

/* ---- use after free -------------------------------------------------------------------------- */

static void after_free(size_t n, size_t at)
{
	unsigned char *p = get(n);

	memset(p, 0x11, n);
	drop(p);
	((unsigned char *)hide(p))[at] ^= 0x3c;
	for (unsigned i = 0; i < 20000; i++)
		if (get(n) == p)
			return;
}

static void ua_first_byte(void)
{
	after_free(64, 0);
}

static void ua_last_byte(void)
{
	after_free(64, 63);
}

static void ua_middle(void)
{
	after_free(2000, 1000);
}

static void ua_then_trim(void)
{
	unsigned char *p = get(64);

	drop(p);
	((unsigned char *)hide(p))[9] ^= 0x3c;
	malloc_trim(0);
}

static void ua_freed_elsewhere(void)
{
	unsigned char *p = get(64);

	drop_elsewhere(p);
	((unsigned char *)hide(p))[9] ^= 0x3c;
	for (unsigned i = 0; i < 20000; i++)
		if (get(64) == p)
			return;
}

static void ua_list_pointers(void)
{
	void **p = (void **)get(64);

	drop(p);
	((void **)hide(p))[0] = (void *)0x4141414141414141; /* where a free list would lie */
	((void **)hide(p))[1] = (void *)0x4242424242424242;
	for (unsigned i = 0; i < 20000; i++)
		if ((void **)get(64) == p)
			return;
}

static void ua_read(void)
{
	unsigned char *p = get(64);

	memset(p, 0x11, 64);
	drop(p);
	p = hide(p);
	say("answer: reads %s\n", p[20] == 0x11	   ? "old data"
				  : p[20] == p[40] ? "a pattern"
						   : "something");
}

static void ua_read_fresh(void)
{
	unsigned char *p = get(64), *q;

	memset(p, 0x11, 64);
	drop(p);
	if (!reissue(p, 64))
		return;
	q = hide(p);
	say("answer: reads %s\n", q[20] == 0x11	   ? "old data"
				  : q[20] == q[40] ? "a pattern"
						   : "something");
}

static void ua_calloc_is_zero(void)
{
	unsigned char *p = get(64);

	drop(p);
	memset(hide(p), 0x77, 64);
	for (unsigned i = 0; i < 20000; i++) {
		unsigned char *q = hide(calloc(1, 64));

		for (unsigned k = 0; k < 64; k++)
			if (q[k] != 0)
				say("answer: not zero\n");
		if (q == p)
			return;
	}
}

/* ---- wild writes to metadata ----------------------------------------------------------------- */

static void md_slots(void)
{
	some_descriptor()->slots += 3;
}

static void md_owner(void)
{
	some_descriptor()->owner ^= 64;
}

static void md_state(void)
{
	some_descriptor()->state = KSLAB_PAGE_EMPTY;
}

static void md_data(void)
{
	some_descriptor()->data += 8;
}

static void md_inverse(void)
{
	some_descriptor()->inverse ^= 2;
}

static void md_bits(void)
{
	some_descriptor()->bits[0].remote = ~(kslab_word)0;
}

static void md_count(void)
{
	own_zone()->owner.empty_run += 5;
}

static void md_class(void)
{
	struct kslab_page *page = some_descriptor();

	page->sc->pages++;
}

/* ---- caches and bulk ------------------------------------------------------------------------- */

static struct kslab_cache cache, cache2;

static void begin_caches(void)
{
	get(8);
	kslab_cache_init(&cache, "one", 64, 0, NULL, NULL);
	kslab_cache_init(&cache2, "two", 64, 0, NULL, NULL);
}

static void ca_free_by_free(void)
{
	begin_caches();
	drop(kslab_cache_alloc(&cache));
}

static void ca_malloc_to_cache(void)
{
	begin_caches();
	kslab_cache_free(&cache, get(64));
}

static void ca_other_cache(void)
{
	begin_caches();
	kslab_cache_free(&cache2, kslab_cache_alloc(&cache));
}

static void ca_double(void)
{
	void *p;

	begin_caches();
	p = kslab_cache_alloc(&cache);
	kslab_cache_free(&cache, p);
	kslab_cache_free(&cache, p);
}

static void ca_destroy_live(void)
{
	begin_caches();
	kslab_cache_alloc(&cache);
	kslab_cache_destroy(&cache);
}

static void ca_bulk_one_bad(void)
{
	void *p[3] = { get(64), &global, get(64) };

	kslab_free_bulk(3, p);
}

static void ca_bulk_twice(void)
{
	void *p[3] = { get(64), get(64), NULL };

	p[2] = p[0];
	kslab_free_bulk(3, p);
}

/* ---- the table ------------------------------------------------------------------------------- */

#define DF "double free"
#define IN "interior pointer"
#define FO "foreign pointer"
#define BP "bad pointer"
#define WC "wrong cache"
#define WS "wrong size"
#define RZ "redzone overwritten"
#define UA "use after free"
#define NO "nothing"
#define CHECK "check: " /* and any text */

static const struct {
	const char *name;
	void (*fn)(void);
	const char *expected[2]; /* at levels 0 and 1; "a|b": either */
	bool damages;
} cases[] = {
	{ "double free: at once", df_at_once, { DF, DF }, false },
	{ "double free: object of size 0", df_size_zero, { DF, DF }, false },
	{ "double free: other frees between", df_after_other_frees, { DF, DF }, false },
	{ "double free: late", df_late, { DF, DF }, false },
	{ "double free: of a full page", df_full_page, { DF, DF }, false },
	{ "double free: three times", df_thrice, { DF " x2", DF " x2" }, false },
	{ "double free: first by another thread", df_other_thread_first, { DF, DF }, false },
	{ "double free: second by another thread", df_other_thread_second, { DF, DF }, false },
	{ "double free: both by other threads", df_two_other_threads, { DF, DF }, false },
	{ "double free: two threads at once", df_at_the_same_time, { DF, DF }, false },
	{ "double free: allocated by a thread that ended",
	  df_of_a_thread_that_ended,
	  { DF, DF },
	  false },
	{ "double free: calloc", df_calloc, { DF, DF }, false },
	{ "double free: aligned_alloc", df_aligned, { DF, DF }, false },
	{ "double free: realloc has moved it", df_after_realloc_moved, { DF, DF }, false },
	{ "double free: realloc(p, 0) before", df_after_realloc_zero, { DF, DF }, false },
	{ "double free: large block", df_large, { DF, DF }, false },
	{ "double free: large block, late", df_large_late, { DF, DF }, false },
	{ "double free: large block, other thread first",
	  df_large_other_thread,
	  { DF, DF },
	  false },
	{ "double free: 64 MiB", df_huge, { DF, DF }, false },
	{ "double free: its page has gone back", df_coalesced, { DF, DF }, false },
	{ "double free: gone back, other thread", df_coalesced_other_thread, { DF, DF }, false },
	{ "reissued: freed by the old owner (not knowable)", df_issued_again, { NO, NO }, false },
	{ "double free: issued again, then by its owner",
	  df_issued_again_owner,
	  { DF, DF },
	  false },
	{ "free: a slot that was never issued", df_never_issued, { DF, DF "|" IN }, false },
	{ "free: stack", bad_stack, { FO, FO }, false },
	{ "free: global", bad_global, { FO, FO }, false },
	{ "free: thread-local", bad_thread_local, { FO, FO }, false },
	{ "free: string", bad_text, { FO, FO }, false },
	{ "free: function", bad_function, { FO, FO }, false },
	{ "free: wild", bad_wild, { FO, FO }, false },
	{ "free: non-canonical address", bad_non_canonical, { FO, FO }, false },
	{ "free: 1", bad_one, { FO, FO }, false },
	{ "free: -1", bad_minus_one, { FO, FO }, false },
	{ "free: a mapping", bad_mapping, { FO, FO }, false },
	{ "free: unmapped", bad_unmapped, { FO, FO }, false },
	{ "free: the heap itself", bad_heap_itself, { BP "|" FO, BP "|" FO }, false },
	{ "free: heap memory never used", bad_window_not_used, { FO, FO }, false },
	{ "free: a descriptor", bad_descriptor, { BP, BP }, false },
	{ "free: inside a descriptor", bad_inside_descriptor, { BP, BP }, false },
	{ "free: a zone", bad_zone, { BP, BP }, false },
	{ "free: bitmaps of a region", bad_region_metadata, { BP, BP }, false },
	{ "free: NULL", null_pointer, { NO, NO }, false },
	{ "interior: by 8", in_by_8, { IN, IN }, false },
	{ "interior: by 1, misaligned", in_by_1, { IN, IN }, false },
	{ "interior: last byte", in_last_byte, { IN, IN }, false },
	{ "interior: half way", in_half_way, { IN, IN }, false },
	{ "interior: 8 before", in_before, { IN, IN }, false },
	{ "interior: of a freed object", in_freed, { IN, IN }, false },
	{ "interior: by another thread", in_other_thread, { IN, IN }, false },
	{ "interior: of an aligned object", in_aligned, { IN, IN }, false },
	{ "interior: large block, by 8", in_large_by_8, { IN, IN }, false },
	{ "interior: large block, by a page", in_large_by_page, { IN, IN }, false },
	{ "interior: behind a large block", behind_large, { DF "|" FO, DF "|" FO }, false },
	{ "interior: its page is part of a large block now",
	  in_coalesced_now_large,
	  { IN, IN },
	  false },
	{ "interior: its page has other slots now", in_coalesced_now_other, { IN, IN }, false },
	{ "realloc: freed", re_freed, { DF, DF }, false },
	{ "realloc: stack", re_stack, { FO, FO }, false },
	{ "realloc: global", re_global, { FO, FO }, false },
	{ "realloc: wild", re_wild, { FO, FO }, false },
	{ "realloc: interior", re_inside, { IN, IN }, false },
	{ "realloc: interior of a large block", re_inside_large, { IN, IN }, false },
	{ "realloc: its page has gone back", re_coalesced, { DF, DF }, false },
	{ "realloc: freed large block", re_freed_large, { DF, DF }, false },
	{ "realloc: misaligned", re_misaligned, { IN, IN }, false },
	{ "realloc: freed by another thread", re_freed_elsewhere, { DF, DF }, false },
	{ "realloc(p, 0): freed", re_zero_of_freed, { DF, DF }, false },
	{ "usable_size: freed", us_freed, { DF, DF }, false },
	{ "usable_size: stack", us_stack, { FO, FO }, false },
	{ "usable_size: wild", us_wild, { FO, FO }, false },
	{ "usable_size: interior", us_inside, { IN, IN }, false },
	{ "usable_size: its page has gone back", us_coalesced, { DF, DF }, false },
	{ "usable_size: global", us_global, { FO, FO }, false },
	{ "usable_size: misaligned", us_misaligned, { IN, IN }, false },
	{ "usable_size: freed by another thread", us_freed_elsewhere, { DF, DF }, false },
	{ "usable_size: interior of a large block", us_inside_large, { IN, IN }, false },
	{ "usable_size: freed large block", us_freed_large, { DF, DF }, false },
	{ "usable_size: NULL", us_null, { NO, NO }, false },
	{ "free_sized: too small", sz_sized_smaller, { WS, WS }, false },
	{ "free_sized: too large", sz_sized_larger, { WS, WS }, false },
	{ "free_sized: right", sz_sized_right, { NO, NO }, false },
	{ "free_sized: small size of a large block", sz_sized_large, { WS, WS }, false },
	{ "free_aligned_sized: wrong alignment", sz_aligned_sized, { WS, WS }, false },
	{ "calloc: overflow", sz_calloc_overflow, { "refused", "refused" }, false },
	{ "calloc: overflow to a small size",
	  sz_calloc_wraps_to_small,
	  { "refused", "refused" },
	  false },
	{ "reallocarray: overflow", sz_reallocarray_overflow, { "refused", "refused" }, false },
	{ "malloc: SIZE_MAX", sz_malloc_huge, { "refused", "refused" }, false },
	{ "malloc: SIZE_MAX / 2", sz_malloc_half, { "refused", "refused" }, false },
	{ "realloc: SIZE_MAX - 64", sz_realloc_huge, { "refused", "refused" }, false },
	{ "aligned_alloc: 48", sz_alignment, { "refused", "refused" }, false },
	{ "aligned_alloc: 0", sz_alignment_zero, { "refused", "refused" }, false },
	{ "aligned_alloc: half the address space",
	  sz_alignment_huge,
	  { "refused", "refused" },
	  false },
	{ "posix_memalign: 4", sz_posix_memalign, { "refused", "refused" }, false },
	{ "overflow: slack, by 1", ov_slack_by_1, { NO, RZ }, false },
	{ "overflow: slack, by 4", ov_slack_by_4, { NO, RZ }, false },
	{ "overflow: slack, by 8", ov_slack_by_8, { NO, RZ }, false },
	{ "overflow: full slot, by 1", ov_exact_by_1, { NO, RZ }, false },
	{ "overflow: full slot, by 8", ov_exact_by_8, { NO, RZ }, false },
	{ "overflow: into the next object", ov_next_object, { NO, RZ }, false },
	{ "overflow: page-sized object, by 1", ov_page_size_by_1, { NO, RZ }, false },
	{ "wild write: into another live object", ov_far, { NO, NO }, false },
	{ "overflow: calloc, by 1", ov_calloc_by_1, { NO, RZ }, false },
	{ "overflow: large block, by 1", ov_large_slack, { NO, RZ }, false },
	{ "overflow: large block, its last byte", ov_large_slack_far, { NO, RZ }, false },
	{ "overflow: seen by realloc", ov_seen_by_realloc, { NO, RZ }, false },
	{ "overflow: seen in another thread", ov_seen_by_other_thread, { NO, RZ }, false },
	{ "underflow: by 1", un_by_1, { NO, RZ }, false },
	{ "underflow: by 8", un_by_8, { NO, RZ }, false },
	{ "write after free: first byte", ua_first_byte, { NO, UA }, false },
	{ "write after free: last byte", ua_last_byte, { NO, UA }, false },
	{ "write after free: middle of 2000 bytes", ua_middle, { NO, UA }, false },
	{ "write after free: seen when its page goes back", ua_then_trim, { NO, UA }, false },
	{ "write after free: freed by another thread", ua_freed_elsewhere, { NO, UA }, false },
	{ "write after free: where lists have their links", ua_list_pointers, { NO, UA }, false },
	{ "write after free: calloc is zero all the same", ua_calloc_is_zero, { NO, UA }, false },
	{ "read after free", ua_read, { "reads old data", "reads a pattern" }, false },
	{ "read before the first write",
	  ua_read_fresh,
	  { "reads old data", "reads a pattern" },
	  false },
	{ "metadata: slot count of a page", md_slots, { CHECK, CHECK }, true },
	{ "metadata: owner of a page", md_owner, { CHECK, CHECK }, true },
	{ "metadata: state of a page", md_state, { CHECK, CHECK }, true },
	{ "metadata: address of a page", md_data, { CHECK, CHECK }, true },
	{ "metadata: inverse of a page", md_inverse, { CHECK, CHECK }, true },
	{ "metadata: bits of a page", md_bits, { CHECK, CHECK }, true },
	{ "metadata: count of a zone", md_count, { CHECK, CHECK }, true },
	{ "metadata: count of a class", md_class, { CHECK, CHECK }, true },
	{ "cache: object freed by free", ca_free_by_free, { WC, WC }, false },
	{ "cache: malloc'ed object freed to it", ca_malloc_to_cache, { WC, WC }, false },
	{ "cache: object of another cache", ca_other_cache, { WC, WC }, false },
	{ "cache: double free", ca_double, { DF, DF }, false },
	{ "cache: destroyed with a live object",
	  ca_destroy_live,
	  { "live objects", "live objects" },
	  false },
	{ "bulk free: one of three is foreign", ca_bulk_one_bad, { FO, FO }, false },
	{ "bulk free: one of three comes twice", ca_bulk_twice, { DF, DF }, false },
};

/* ---- one case, in a process of its own ------------------------------------------------------- */

static int run_case(size_t i)
{
	struct kslab_check_result result = { 0 };
	struct kslab_selftest selftest;

	alarm(SECONDS);
	get(1); /* the heap starts */
	cases[i].fn();
	say("done\n");
	if (!kslab_check(&result))
		say("check: %s\n", result.what);
	else if (!cases[i].damages && !kslab_selftest(true, &selftest))
		say("selftest: %s %s\n", selftest.hook, selftest.what);
	else
		say("heap: well\n");
	_exit(0);
}

struct outcome {
	char answer[ANSWER_BYTES];
	bool well; /* the heap is, afterwards */
	bool redzone; /* it is but for the object whose free was refused: live, and damaged still */
};

static void take_line(struct outcome *outcome, const char *line, unsigned *faults)
{
	char name[ANSWER_BYTES - 16];
	size_t n;

	if (strncmp(line, "kslab: ", 7) == 0) {
		n = strcspn(line + 7, ":");
		if (n >= sizeof(name))
			n = sizeof(name) - 1;
		memcpy(name, line + 7, n);
		name[n] = '\0';
		if (++*faults == 1)
			strcpy(outcome->answer, name);
		else
			snprintf(outcome->answer, sizeof(outcome->answer), "%s x%u", name, *faults);
	} else if (strncmp(line, "answer: ", 8) == 0 && *faults == 0) {
		snprintf(outcome->answer, sizeof(outcome->answer), "%s", line + 8);
	} else if (strncmp(line, "check: ", 7) == 0 && strcmp(outcome->answer, NO) == 0) {
		snprintf(outcome->answer, sizeof(outcome->answer), "%s", line);
	} else if (strncmp(line, "check: ", 7) == 0 && strstr(line, "redzone") != NULL) {
		outcome->redzone = true;
	} else if (strcmp(line, "heap: well") == 0) {
		outcome->well = true;
	}
}

static void judge_text(struct outcome *outcome, char *text, int status)
{
	unsigned faults = 0;
	char *save = NULL;

	strcpy(outcome->answer, NO);
	outcome->well = outcome->redzone = false;
	for (char *line = strtok_r(text, "\n", &save); line != NULL;
	     line = strtok_r(NULL, "\n", &save))
		take_line(outcome, line, &faults);
	if (WIFSIGNALED(status))
		snprintf(outcome->answer, sizeof(outcome->answer), "died: %s",
			 strsignal(WTERMSIG(status)));
	else if (WEXITSTATUS(status) != 0)
		snprintf(outcome->answer, sizeof(outcome->answer), "ended with %d",
			 WEXITSTATUS(status));
}

static void run_child(const char *self, const char *library, size_t i, struct outcome *outcome)
{
	static char text[65536], piece[4096];
	size_t used = 0;
	char number[16];
	int pipes[2], status = 0;
	ssize_t n;
	pid_t child;

	snprintf(number, sizeof(number), "%zu", i);
	if (pipe(pipes) != 0 || (child = fork()) < 0) {
		perror("misuse");
		exit(2);
	}
	if (child == 0) {
		dup2(pipes[1], STDOUT_FILENO);
		dup2(pipes[1], STDERR_FILENO);
		close(pipes[0]);
		setenv("LD_PRELOAD", library, 1);
		setenv("KSLAB_REPORT", "log", 1);
		execl(self, self, "--case", number, (char *)NULL);
		_exit(98);
	}
	close(pipes[1]);
	/* What is too much for the text is read all the same, or the child would die of it. */
	while ((n = read(pipes[0], piece, sizeof(piece))) > 0) {
		size_t kept =
			(size_t)n < sizeof(text) - 1 - used ? (size_t)n : sizeof(text) - 1 - used;

		memcpy(text + used, piece, kept);
		used += kept;
	}
	text[used] = '\0';
	close(pipes[0]);
	waitpid(child, &status, 0);
	judge_text(outcome, text, status);
}

/*
 * A write behind an object stays where it is; everything else must be well, or damaged if that was
 * the point.
 */
static bool is_heap_expected(size_t i, const struct outcome *outcome)
{
	return strcmp(outcome->answer, RZ) == 0 ? outcome->redzone
						: outcome->well != cases[i].damages;
}

/* "a|b" matches a and b; an expectation that ends in ": " matches what begins with it. */
static bool is_expected(const char *answer, const char *expected)
{
	for (;;) {
		size_t n = strcspn(expected, "|");

		if (strncmp(answer, expected, n) == 0 &&
		    (answer[n] == '\0' ||
		     (n > 2 && expected[n - 1] == ' ' && expected[n - 2] == ':')))
			return true;
		if (expected[n] == '\0')
			return false;
		expected += n + 1;
	}
}

/* What the table says in sum, by the names of the cases. */
static struct sum {
	const char *what;
	const char *names; /* beginnings, with '|' behind each */
	unsigned level, cases, right;
} sums[] = {
	{ "level 0: wrong frees, reallocs and sizes answered exactly",
	  "double free|free|interior|realloc|usable_size|bulk free|cache|", 0, 0, 0 },
	{ "level 1: the same", "double free|free|interior|realloc|usable_size|bulk free|cache|", 1,
	  0, 0 },
	{ "level 1: overflows and underflows found by the free", "overflow|underflow|", 1, 0, 0 },
	{ "level 1: writes after free found at the next issue", "write after free|", 1, 0, 0 },
	{ "level 0: damaged metadata found by kslab_check", "metadata|", 0, 0, 0 },
	{ "level 1: the same", "metadata|", 1, 0, 0 },
};
static unsigned crashes;

static bool has_name(const char *names, const char *name)
{
	for (; *names != '\0'; names += strcspn(names, "|") + 1)
		if (strncmp(name, names, strcspn(names, "|")) == 0)
			return true;
	return false;
}

static void count(const char *name, unsigned level, const struct outcome *outcome, bool right)
{
	for (size_t i = 0; i < COUNT(sums); i++) {
		if (sums[i].level != level || !has_name(sums[i].names, name))
			continue;
		sums[i].cases++;
		sums[i].right += right;
	}
	crashes += strncmp(outcome->answer, "died", 4) == 0;
}

int main(int argc, char **argv)
{
	unsigned passed = 0, failed = 0;

	if (argc == 3 && strcmp(argv[1], "--case") == 0)
		return run_case((size_t)atoi(argv[2]));
	if (argc < 3) {
		fprintf(stderr, "usage: misuse LIBRARY0 LIBRARY1 [part of a name]\n");
		return 2;
	}
	printf("%-50s %-24s %-24s\n", "misuse", "answer at level 0", "at level 1");
	for (size_t i = 0; i < COUNT(cases); i++) {
		if (argc > 3 && strstr(cases[i].name, argv[3]) == NULL)
			continue;
		printf("%-50s", cases[i].name);
		for (unsigned level = 0; level < 2; level++) {
			const char *expected = cases[i].expected[level];
			struct outcome outcome;
			bool right;

			fflush(stdout);
			run_child(argv[0], argv[1 + level], i, &outcome);
			right = is_expected(outcome.answer, expected) &&
				is_heap_expected(i, &outcome);
			/* The whole sentence of the checker is for when it was not expected. */
			printf(" %-24s", right && strncmp(outcome.answer, CHECK, 7) == 0
						 ? "found by kslab_check"
						 : outcome.answer);
			count(cases[i].name, level, &outcome, right);
			passed += right;
			failed += !right;
			if (!is_expected(outcome.answer, expected))
				printf(" WRONG, expected: %s;", expected);
			else if (!right)
				printf(" WRONG: the heap is %s;",
				       outcome.well ? "well" : "damaged");
		}
		printf("\n");
	}
	for (size_t i = 0; i < COUNT(sums); i++)
		printf("%-58s %3u of %3u\n", sums[i].what, sums[i].right, sums[i].cases);
	printf("%-58s %3u\n", "crashes", crashes);
	printf("%u passed, %u failed\n", passed, failed);
	return failed != 0;
}
