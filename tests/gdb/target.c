/* SPDX-License-Identifier: MIT
 * target.c - owns the heap that tests/gdb/run.sh looks at with gdb: known objects, a mark, leaks,
 * at debug level 2.
 * Rank: test.  Runs: Linux host, one thread, over a static region.
 */
#include <kslab/kslab.h>
#include <kslab/observe.h>

#include <string.h>

#define COUNT(a) (sizeof(a) / sizeof((a)[0]))

static unsigned char region[4 << 20] __attribute__((aligned(4096)));

/* What the script asks for by name. */
void *small[40], *freed, *large, *freed_large, *leaked[3], *leaked_large, *cached, *purged;
struct kslab_cache cache;
struct kslab_mark mark;
int on_stack_of_nobody;

__attribute__((noinline)) void *leaks_here(size_t n)
{
	void *p = kslab_malloc(n);

	__asm__ volatile("" ::: "memory"); /* no tail call: the caller is this function */
	return p;
}

__attribute__((noinline)) void stop_here(void)
{
	__asm__ volatile("");
}

__attribute__((noinline)) void purging_here(void)
{
	__asm__ volatile("");
}

static void purge(void *ctx, void *mem, size_t bytes)
{
	(void)ctx;
	memset(mem, 0, bytes);
	if (mem <= purged && (unsigned char *)purged < (unsigned char *)mem + bytes)
		purging_here();
}

/* Level 0: the middle of an object page goes. */
static void purge_a_page(void)
{
	void *object[32];

	for (unsigned i = 0; i < COUNT(object); i++)
		object[i] = kslab_malloc(1000);
	purged = object[8];
	for (unsigned i = 1; i < COUNT(object); i++)
		kslab_free(object[i]);
	(void)kslab_reclaim(1000);
	kslab_free(object[0]);
}

int main(void)
{
	struct kslab_config config = { .debug_level = TARGET_LEVEL, .purge = purge };

	if (kslab_init(&config) != KSLAB_OK || kslab_add_region(region, sizeof(region)) != KSLAB_OK)
		return 2;
	for (unsigned i = 0; i < COUNT(small); i++)
		small[i] = kslab_malloc(100);
	large = kslab_malloc(50000);
	freed_large = kslab_malloc(70000);
	kslab_cache_init(&cache, "tasks", 192, 0, NULL, NULL);
	cached = kslab_cache_alloc(&cache);
	if (kslab_mark(&mark) != KSLAB_OK)
		return 2;
	for (unsigned i = 0; i < COUNT(leaked); i++)
		leaked[i] = leaks_here(30 + 40 * i);
	leaked_large = kslab_malloc(90000);
	freed = small[7];
	kslab_free(freed);
	kslab_free(freed_large);
	stop_here();
	purge_a_page();
	kslab_default_heap.boot_zone.owner.empty_run += 3; /* a wild write */
	stop_here();
	return 0;
}
