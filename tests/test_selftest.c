/* SPDX-License-Identifier: MIT
 * test_selftest.c - owns the tests of the self tests: hooks that are wrong in one way each are
 * found and named, right ones are not blamed, and a damaged heap does not pass.
 * Rank: test.
 *
 * BUILD: -DKSLAB_CFG_HEADER='"broken_port.h"' -DKSLAB_CFG_CPUS=4 -DKSLAB_CFG_LEVELS=4
 */
#define _GNU_SOURCE
#include "testing.h"

#include <kslab/observe.h>

#include <signal.h>
#include <sys/wait.h>
#include <unistd.h>

#include "broken_port.h"

#define PAGE 4096u

enum broken broken;
unsigned broken_masked, broken_calls;

static struct testing t;
static struct fake_source source;
static struct kslab_selftest result;
static struct kslab_config config;

static bool run(void)
{
	memset(&result, 0xa5, sizeof(result));
	return kslab_selftest_port(&config, NULL, 0, &result);
}

static void expect(const char *hook, const char *part_of_what)
{
	assert_false(run());
	assert_string_equal(result.hook, hook);
	if (strstr(result.what, part_of_what) == NULL)
		fail_msg("%s: %s, not %s", result.hook, result.what, part_of_what);
}

/* ---- hooks that are wrong on purpose: a source that works, and one step that is not right ---- */

static size_t calls;

static void *misaligned(void *ctx, size_t pages)
{
	return calls++ == 3 ? (char *)fake_source_alloc(ctx, pages) + 64
			    : fake_source_alloc(ctx, pages);
}

static void *always_the_same(void *ctx, size_t pages)
{
	static void *first;
	void *run = fake_source_alloc(ctx, pages);

	if (calls++ == 2)
		return first;
	return first = run;
}

/* Gives the run, but takes only its first page out: the next one lies inside. */
static void *only_first_page(void *ctx, size_t pages)
{
	struct fake_source *from = ctx;
	unsigned char *run = fake_source_alloc(ctx, pages);

	for (size_t i = 1; run != NULL && i < pages; i++)
		from->run[(size_t)(run - from->memory) / PAGE + i] = 0;
	if (run != NULL)
		from->run[(size_t)(run - from->memory) / PAGE] = 1;
	return run;
}

static void *wraps(void *ctx, size_t pages)
{
	return pages == 4 ? (void *)~(uintptr_t)(PAGE - 1) : fake_source_alloc(ctx, pages);
}

static void *nothing(void *ctx, size_t pages)
{
	(void)ctx;
	(void)pages;
	return NULL;
}

/* Two stretches of addresses for one memory: pages at different places that are one. */
static void *mirrored(void *ctx, size_t pages)
{
	static unsigned char *twin[2];

	if (pages != 1 || calls >= 2)
		return calls++, NULL;
	if (calls == 0) {
		int fd = memfd_create("mirror", 0);

		assert_true(fd >= 0 && ftruncate(fd, PAGE) == 0);
		for (unsigned i = 0; i < 2; i++)
			twin[i] = mmap(NULL, PAGE, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
		close(fd);
	}
	(void)ctx;
	return twin[calls++];
}

/* A run of two whose second page is the first one again. */
static void *folded(void *ctx, size_t pages)
{
	unsigned char *run;
	int fd;

	if (pages != 2)
		return fake_source_alloc(ctx, pages);
	fd = memfd_create("fold", 0);
	run = mmap(NULL, 2 * PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	assert_true(fd >= 0 && ftruncate(fd, PAGE) == 0 && run != MAP_FAILED);
	for (unsigned i = 0; i < 2; i++)
		mmap(run + i * PAGE, PAGE, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_FIXED, fd, 0);
	close(fd);
	return run;
}

static void forgets(void *ctx, void *mem, size_t pages)
{
	(void)ctx;
	(void)mem;
	(void)pages;
}

/* A page too many goes back: its neighbour, which somebody holds. */
static void frees_too_much(void *ctx, void *mem, size_t pages)
{
	struct fake_source *from = ctx;
	size_t next = (size_t)((unsigned char *)mem - from->memory) / PAGE + pages;

	fake_source_free(ctx, mem, pages);
	if (next < from->pages && from->run[next] == 1)
		from->run[next] = 0;
}

static void clears_too_much(void *ctx, void *mem, size_t pages)
{
	fake_source_free(ctx, mem, pages);
	memset(mem, 0, (pages + 1) * PAGE);
}

/* ---- the port -------------------------------------------------------------------------------- */

static void test_right_hooks_pass_and_every_page_comes_back(void **state)
{
	(void)state;
	assert_true(run());
	assert_null(result.what);
	assert_null(result.hook);
	assert_true(result.irq_tested);
	assert_int_equal(source.pages_out, 0);
	assert_int_equal(source.pages_peak, 33);
	assert_int_equal(source.errors, 0);
	assert_true(kslab_selftest_port(&config, NULL, 0, NULL));
}

static void test_single_frames_pass(void **state)
{
	(void)state;
	source.longest_run = 1;
	assert_true(run());
	source.longest_run = 0;
	source.unaligned = true;
	assert_true(run());
}

static void test_a_source_of_few_pages_passes(void **state)
{
	(void)state;
	source.pages = 3;
	assert_true(run());
	assert_int_equal(source.pages_out, 0);
	source.pages = 64;
}

static void test_no_page_source_is_no_fault(void **state)
{
	(void)state;
	config.alloc_pages = NULL;
	expect("alloc_pages", "missing");
	config.free_pages = NULL;
	assert_true(run());
	config.alloc_pages = fake_source_alloc;
	expect("free_pages", "missing");
}

static void test_wrong_page_size_is_named(void **state)
{
	(void)state;
	config.page_bytes = 5000;
	expect("page_bytes", "power of two");
	config.page_bytes = 2048;
	expect("page_bytes", "grain");
}

static void test_wrong_alloc_pages_is_named(void **state)
{
	static const struct {
		void *(*hook)(void *, size_t);
		const char *what;
	} wrong[] = {
		{ misaligned, "not aligned" },
		{ always_the_same, "same page twice" },
		{ wraps, "wraps" },
		{ nothing, "not even one page" },
		{ mirrored, "share memory" },
		{ folded, "does not hold what is written" },
		{ only_first_page, "overlaps" },
	};

	(void)state;
	for (unsigned i = 0; i < TESTING_COUNT(wrong); i++) {
		calls = 0;
		config.alloc_pages = wrong[i].hook;
		config.free_pages = forgets; /* whatever it is given back is not the point here */
		memset(source.run, 0, sizeof(source.run));
		expect("alloc_pages", wrong[i].what);
	}
}

/*
 * The address space below a run is somebody else's: the run is right at its beginning, and wrong
 * further on.
 */
static void test_wrong_free_pages_is_named(void **state)
{
	(void)state;
	source.pages = 32;
	config.free_pages = forgets;
	expect("free_pages", "does not give memory back");
	source.pages = 64;
	memset(source.run, 0, sizeof(source.run));
	config.free_pages = frees_too_much;
	expect("free_pages", "was not given");
	memset(source.run, 0, sizeof(source.run));
	config.free_pages = clears_too_much;
	expect("free_pages", "changes pages");
}

static void test_read_only_memory_is_found(void **state)
{
	pid_t child;
	int status;

	(void)state;
	/*
	 * Pages that fault when written do so at once, at a known place: in the self test, not in
	 * the heap.
	 */
	child = fork();
	if (child == 0) {
		signal(SIGSEGV, SIG_DFL);
		mprotect(source.memory, 64 * PAGE, PROT_READ);
		config.free_pages = forgets;
		_exit(run());
	}
	assert_int_equal(waitpid(child, &status, 0), child);
	assert_true(WIFSIGNALED(status) || WEXITSTATUS(status) != 0);
}

static void test_a_window_that_is_elsewhere_is_named(void **state)
{
	(void)state;
	config.window_base = (uintptr_t)source.memory;
	assert_true(run());
	config.window_base = (uintptr_t)source.memory + source.pages * PAGE +
			     ((uintptr_t)1 << KSLAB_CFG_LEAF_SHIFT);
	expect("window_base", "is not where");
}

static void test_wrong_cpu_numbers_are_named(void **state)
{
	(void)state;
	broken = BROKEN_CPU_RANGE;
	expect("KSLAB_PORT_CPU", "KSLAB_CFG_CPUS");
	broken = BROKEN_CPU_UNSTABLE;
	broken_calls = 0;
	expect("KSLAB_PORT_CPU", "changes");
	broken = BROKEN_CPU_SECOND;
	expect("KSLAB_PORT_CPU", "not 0");
}

static void test_wrong_irq_hooks_are_named(void **state)
{
	(void)state;
	broken = BROKEN_IRQ_STAYS_MASKED;
	expect("KSLAB_PORT_IRQ_RESTORE", "bring back");
	broken_masked = 0;
	broken = BROKEN_IRQ_ALWAYS_ENABLES;
	expect("KSLAB_PORT_IRQ_RESTORE", "round the one");
	broken_masked = 1; /* masked by the caller: always enabling shows all the same */
	assert_false(run());
	broken = BROKEN_NMI;
	broken_masked = 0;
	expect("KSLAB_PORT_IN_NMI", "thread");
	broken = BROKEN_NOT;
	broken_masked = 1;
	assert_true(run());
	assert_false(result.irq_tested);
}

/* ---- regions and purge ----------------------------------------------------------------------- */

static void purge_well(void *ctx, void *mem, size_t bytes)
{
	(void)ctx;
	memset(mem, 0, bytes);
}

static void purge_not(void *ctx, void *mem, size_t bytes)
{
	(void)ctx;
	(void)mem;
	(void)bytes;
}

static void purge_half(void *ctx, void *mem, size_t bytes)
{
	(void)ctx;
	memset(mem, 0, bytes / 2);
}

static void purge_more(void *ctx, void *mem, size_t bytes)
{
	(void)ctx;
	memset(mem, 0, bytes + 8);
}

static void expect_region(void *mem, size_t bytes, const char *hook, const char *part_of_what)
{
	assert_false(kslab_selftest_port(&config, mem, bytes, &result));
	assert_string_equal(result.hook, hook);
	if (strstr(result.what, part_of_what) == NULL)
		fail_msg("%s: %s, not %s", result.hook, result.what, part_of_what);
}

static void test_purge_that_does_not_clear_is_named(void **state)
{
	static unsigned char region[8 * PAGE] __attribute__((aligned(4096)));

	(void)state;
	config.purge = purge_well;
	assert_true(kslab_selftest_port(&config, region + 5, sizeof(region) - 9, &result));
	config.purge = purge_not;
	expect_region(region, sizeof(region), "purge", "zero");
	config.purge = purge_half;
	expect_region(region, sizeof(region), "purge", "zero");
	assert_int_equal(result.count, PAGE / 2);
	config.purge = purge_more;
	expect_region(region, sizeof(region), "purge", "beside");
	expect_region(region + 1, PAGE, "region", "too small");
	expect_region((void *)~(uintptr_t)(2 * PAGE), 4 * PAGE, "region", "wraps");
}

/* Memory that is shorter than it says, and comes round again. */
static void test_region_that_comes_round_again_is_named(void **state)
{
	unsigned char *region =
		mmap(NULL, 8 * PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	int fd = memfd_create("region", 0);

	(void)state;
	assert_true(fd >= 0 && ftruncate(fd, 4 * PAGE) == 0 && region != MAP_FAILED);
	for (unsigned i = 0; i < 2; i++)
		mmap(region + i * 4 * PAGE, 4 * PAGE, PROT_READ | PROT_WRITE,
		     MAP_SHARED | MAP_FIXED, fd, 0);
	expect_region(region, 8 * PAGE, "region", "hold what is written");
	assert_true(kslab_selftest_port(&config, region, 4 * PAGE, &result));
	munmap(region, 8 * PAGE);
	close(fd);
}

/* ---- a live heap ----------------------------------------------------------------------------- */

static void test_a_live_heap_passes_and_is_left_as_it_was(void **state)
{
	static const struct kslab_config configs[] = {
		{ 0 },
		{ .max_page_bytes = PAGE, .retain_bytes = KSLAB_RETAIN_NONE },
		{ .min_align = 8, .max_page_bytes = 16 * PAGE },
		{ .debug_level = 1 },
		{ .debug_level = 2 },
	};

	(void)state;
	for (unsigned i = 0; i < TESTING_COUNT(configs); i++) {
		testing_begin(&t, &configs[i]);
		assert_true(kslab_heap_selftest(&t.heap, true, &result));
		assert_null(result.what);
		assert_true(kslab_heap_selftest(&t.heap, false, NULL));
		testing_end(&t);
	}
}

static void test_memory_that_is_out_is_no_failure(void **state)
{
	static const struct kslab_config plain = { 0 };

	(void)state;
	for (size_t n = 1; n < 40; n++) {
		testing_begin(&t, &plain);
		fake_source_fail_from(&t.source, n);
		if (!kslab_heap_selftest(&t.heap, true, &result))
			fail_msg("%s: %s", result.hook, result.what);
		testing_end(&t);
	}
}

static void test_a_damaged_heap_does_not_pass(void **state)
{
	static const struct kslab_config plain = { 0 };
	void *p;

	(void)state;
	assert_false(kslab_heap_selftest(&t.heap, true, &result));
	assert_string_equal(result.hook, "kslab_init");
	testing_begin(&t, &plain);
	p = kslab_heap_malloc(&t.heap, 64);
	t.heap.boot_zone.owner.empty_run++;
	assert_false(kslab_heap_selftest(&t.heap, true, &result));
	assert_string_equal(result.hook, "kslab_check");
	assert_non_null(result.what);
	t.heap.boot_zone.owner.empty_run--;
	kslab_heap_free(&t.heap, p);
	testing_end(&t);
}

static int fresh(void **state)
{
	(void)state;
	memset(&t, 0, sizeof(t));
	memset(&kslab_default_heap, 0, sizeof(kslab_default_heap));
	broken = BROKEN_NOT;
	broken_masked = 0;
	fake_source_init(&source, PAGE, 64, false);
	config = (struct kslab_config){ .alloc_pages = fake_source_alloc,
					.free_pages = fake_source_free,
					.source_ctx = &source };
	return 0;
}

static int done(void **state)
{
	(void)state;
	source.pages = 64;
	fake_source_fini(&source);
	return 0;
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test_setup_teardown(test_right_hooks_pass_and_every_page_comes_back,
						fresh, done),
		cmocka_unit_test_setup_teardown(test_single_frames_pass, fresh, done),
		cmocka_unit_test_setup_teardown(test_a_source_of_few_pages_passes, fresh, done),
		cmocka_unit_test_setup_teardown(test_no_page_source_is_no_fault, fresh, done),
		cmocka_unit_test_setup_teardown(test_wrong_page_size_is_named, fresh, done),
		cmocka_unit_test_setup_teardown(test_wrong_alloc_pages_is_named, fresh, done),
		cmocka_unit_test_setup_teardown(test_wrong_free_pages_is_named, fresh, done),
		cmocka_unit_test_setup_teardown(test_read_only_memory_is_found, fresh, done),
		cmocka_unit_test_setup_teardown(test_a_window_that_is_elsewhere_is_named, fresh,
						done),
		cmocka_unit_test_setup_teardown(test_wrong_cpu_numbers_are_named, fresh, done),
		cmocka_unit_test_setup_teardown(test_wrong_irq_hooks_are_named, fresh, done),
		cmocka_unit_test_setup_teardown(test_purge_that_does_not_clear_is_named, fresh,
						done),
		cmocka_unit_test_setup_teardown(test_region_that_comes_round_again_is_named, fresh,
						done),
		cmocka_unit_test_setup_teardown(test_a_live_heap_passes_and_is_left_as_it_was,
						fresh, done),
		cmocka_unit_test_setup_teardown(test_memory_that_is_out_is_no_failure, fresh, done),
		cmocka_unit_test_setup_teardown(test_a_damaged_heap_does_not_pass, fresh, done),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
