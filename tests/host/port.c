/* SPDX-License-Identifier: MIT
 * port.c - owns the host under kslab: address space as memory, threads as CPUs, fork, the report
 * on standard error.
 * Runs: Linux with glibc, any thread, before constructors too; nothing in here may call malloc.
 *
 * Threads. A thread's first allocation, or one of its first frees (FREES_WITHOUT), gives it the
 * lowest free CPU number, and takes that CPU online. At its end a thread-specific destructor takes
 * the CPU offline and frees the number. What other destructors still allocate after that, and what
 * threads beyond the last number allocate, comes from the shared CPU, one thread at a time
 * (shared_lock). Frees need no CPU at all, but are faster with one.
 *
 * Fork. Only the forking thread lives on in the child, perhaps while others were inside the heap:
 * what they own (their zones, their numbers) is left alone for ever, and every lock is taken
 * across the fork, so that what is shared is whole. Frees of their objects work as from any other
 * CPU.
 *
 * Lock order: start_lock, shared_lock (or global_lock), numbers_lock, irq_lock, heap lock.
 */
#define _GNU_SOURCE
#include "../../src/heap.h" /* kslab_heap_lock, and where the heap has got to */
#include "host.h"

#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <sched.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/resource.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

#if !KSLAB_HOST_GLOBAL_LOCK && KSLAB_CFG_CPUS < 4
#error "KSLAB_CFG_CPUS: threads need at least 4 (two are reserved), or KSLAB_HOST_GLOBAL_LOCK"
#endif

#define WINDOW_ALIGN ((size_t)1 << KSLAB_CFG_LEAF_SHIFT)
#define WINDOW_BYTES ((size_t)KSLAB_CFG_TOP_ENTRIES << KSLAB_CFG_LEAF_SHIFT)
#define SPINS_BEFORE_YIELD 32u

/*
 * A page fault costs a microsecond and more: what a thread and the heap keep, malloc_trim gives
 * back.
 */
#define RETAIN_BYTES ((size_t)4 << 20)
#define PURGE_BYTES ((size_t)64 << 20)

__thread unsigned kslab_host_cpu __attribute__((tls_model("initial-exec"))) = KSLAB_HOST_NO_CPU;
__thread struct kslab_zone *kslab_host_zone __attribute__((tls_model("initial-exec"))) =
	&kslab_zone_none;

static pthread_mutex_t start_lock = PTHREAD_MUTEX_INITIALIZER;
static bool started; /* [a] set once, under start_lock */

/* ---- memory -------------------------------------------------------------------------------- */

/* The heap asks for this between any two instructions of a program: errno is the program's. */
static void purge(void *ctx, void *mem, size_t bytes)
{
	int saved = errno;

	(void)ctx;
	madvise(mem, bytes, MADV_DONTNEED);
	errno = saved;
}

/*
 * At a multiple of an eighth of its length at least: the free blocks of a region are aligned to their
 * length, and the shortest that fits is taken, so between short ones at both its ends it would grow
 * to and fro.
 */
static void *map_aligned(size_t bytes)
{
	size_t align = WINDOW_ALIGN, head;
	char *p;

	while (align < bytes / 8)
		align *= 2;
	p = mmap(NULL, bytes + align, PROT_READ | PROT_WRITE,
		 MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
	if (p == MAP_FAILED)
		return NULL;
	head = -(uintptr_t)p & (align - 1);
	if (head)
		munmap(p, head);
	munmap(p + head + bytes, align - head);
	return p + head;
}

void *kslab_host_reserve(size_t *bytes)
{
	size_t want = *bytes & ~(WINDOW_ALIGN - 1);
	struct rlimit limit;
	void *p;

	/* Under a limit on address space, stacks and libraries need their share. */
	if (!getrlimit(RLIMIT_AS, &limit) && limit.rlim_cur != RLIM_INFINITY)
		while (want > limit.rlim_cur / 4 * 3 && want > WINDOW_ALIGN)
			want /= 2;
	for (; want >= WINDOW_ALIGN; want /= 2) {
		p = map_aligned(want);
		if (p) {
			*bytes = want;
			return p;
		}
	}
	return NULL;
}

struct kslab_config kslab_host_config(void *base, size_t bytes)
{
	const size_t map_bytes = (bytes >> KSLAB_CFG_GRAIN_SHIFT) * sizeof(void *);
	void *map = MAP_FAILED;

	if (KSLAB_CFG_FLAT_MAP && base)
		map = mmap(NULL, map_bytes, PROT_READ | PROT_WRITE,
			   MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
	return (struct kslab_config){
		.flat_map = map == MAP_FAILED ? NULL : map,
		.flat_map_bytes = map_bytes,
		.min_align = 16,
		.packs = true,
		.retain_bytes = RETAIN_BYTES,
		.purge_bytes = PURGE_BYTES,
		.window_base = (uintptr_t)base,
		.purge = purge,
		.report = kslab_host_report,
	};
}

/* ---- huge pages ---------------------------------------------------------------------------- */

/*
 * A new page costs 1.4 us by its fault, 0.2 us in a huge one. The heap grows upwards, so the piece
 * that it has just got to becomes one huge page, where the rest of it will surely be used: a class
 * goes on growing that has four times as much already, or a heap that has sixteen times as much.
 * That bounds what is resident ahead of use, and no small heap pays.
 *
 * By MADV_COLLAPSE, not by MADV_HUGEPAGE: it acts once and leaves no mark, so that what is purged
 * later is not filled again by the kernel. Kernels before 6.1 refuse, and nothing is lost.
 */
#define PIECE_BYTES ((size_t)2 << 20)
#define PIECES_OF_CLASS 4u
#define PIECES_OF_HEAP 16u
/*
 * Where a virtual machine gets its memory only as it is touched, a huge page may cost its host 512
 * faults at once, of memory that nobody had before, while single pages are those that others have
 * used already: several milliseconds. One that took longer than its pages would have, by far, is a
 * sign to go without for a while.
 */
#define SLOW_NANOSECONDS 400000
#define PIECES_WITHOUT 64u
#ifndef MADV_POPULATE_WRITE
#define MADV_POPULATE_WRITE 23
#endif
#ifndef MADV_COLLAPSE
#define MADV_COLLAPSE 25
#endif

static uintptr_t next_piece; /* under irq_lock: that the heap has not got to; 0: not begun */
static bool is_refused; /* [a] the kernel can't, or has no huge page: not asked again */

__attribute__((no_sanitize("thread"))) static bool is_worth_it(const struct kslab_heap *heap,
							       const struct kslab_page *page)
{
	const struct kslab_zone *zone = kslab_heap_zone(heap);
	size_t piece = PIECE_BYTES >> heap->page_shift;

	if (heap->pages_in_use >= PIECES_OF_HEAP * piece)
		return kslab_page_state(page) != KSLAB_PAGE_LARGE;
	/* Of this thread; the fields of others change meanwhile. */
	return kslab_page_owner(page) == &zone->owner && page->sc != NULL &&
	       (size_t)page->sc->pages * page->pages >= PIECES_OF_CLASS * piece;
}

/*
 * After a change of the heap, under irq_lock. Return: the piece that the heap has got to; 0: none
 * that is worth it. The map is read as it is: at worst a piece is seen at the next change.
 */
__attribute__((no_sanitize("thread"))) static uintptr_t piece_got_to(void)
{
	const struct kslab_heap *heap = &kslab_default_heap;
	uintptr_t piece = next_piece;
	const struct kslab_page *page;

	if (!piece)
		return 0;
	page = kslab_page_map_find(&heap->map, piece);
	if (!page || page == &kslab_page_nobody)
		return 0;
	next_piece += PIECE_BYTES;
	if (__atomic_load_n(&is_refused, __ATOMIC_RELAXED))
		return 0;
	return is_worth_it(heap, page) ? piece : 0;
}

/*
 * The administrator's "never" counts; MADV_COLLAPSE itself does not ask. Without open and read, at
 * which a thread may be cancelled: malloc is no such place.
 */
static bool may_be_huge(void)
{
	char text[64] = "";
	long fd = syscall(SYS_openat, AT_FDCWD, "/sys/kernel/mm/transparent_hugepage/enabled",
			  O_RDONLY | O_CLOEXEC);

	if (fd < 0)
		return false;
	if (syscall(SYS_read, fd, text, sizeof(text) - 1) < 0)
		text[0] = '\0';
	syscall(SYS_close, fd);
	return text[0] != '\0' && strstr(text, "[never]") == NULL;
}

static int64_t nanoseconds(void)
{
	struct timespec now;

	clock_gettime(CLOCK_MONOTONIC, &now);
	return (int64_t)now.tv_sec * 1000000000 + now.tv_nsec;
}

static void make_huge(uintptr_t piece)
{
	static bool was_asked; /* [a] */
	static unsigned without; /* [a] pieces that are let pass */
	int64_t start;
	int saved = errno;

	if (__atomic_load_n(&without, __ATOMIC_RELAXED) != 0) {
		__atomic_fetch_sub(&without, 1u, __ATOMIC_RELAXED);
		return;
	}
	if (!__atomic_exchange_n(&was_asked, true, __ATOMIC_RELAXED) && !may_be_huge()) {
		__atomic_store_n(&is_refused, true, __ATOMIC_RELAXED);
		errno = saved;
		return;
	}
	start = nanoseconds();
	/* The kernel wants one page to be there. EAGAIN: a page was in use elsewhere. */
	if ((madvise((void *)piece, kslab_default_heap.page_bytes, MADV_POPULATE_WRITE) ||
	     madvise((void *)piece, PIECE_BYTES, MADV_COLLAPSE)) &&
	    errno != EAGAIN)
		__atomic_store_n(&is_refused, true, __ATOMIC_RELAXED);
	if (nanoseconds() - start > SLOW_NANOSECONDS)
		__atomic_store_n(&without, PIECES_WITHOUT, __ATOMIC_RELAXED);
	errno = saved;
}

/* Spins a little before it sleeps: the heap lock is held for a microsecond. */
static pthread_mutex_t irq_lock = PTHREAD_ADAPTIVE_MUTEX_INITIALIZER_NP;

uintptr_t kslab_host_irq_save(void)
{
	pthread_mutex_lock(&irq_lock);
	return 0;
}

void kslab_host_irq_restore(uintptr_t state)
{
	uintptr_t piece = piece_got_to();

	(void)state;
	pthread_mutex_unlock(&irq_lock);
	if (__builtin_expect(piece != 0, 0))
		make_huge(piece);
}

void kslab_host_relax(void)
{
	static __thread unsigned spins __attribute__((tls_model("initial-exec")));

	if (++spins % SPINS_BEFORE_YIELD == 0)
		sched_yield();
#if defined(__x86_64__) || defined(__i386__)
	else
		__builtin_ia32_pause();
#endif
}

/* ---- threads as CPUs ----------------------------------------------------------------------- */

#if KSLAB_HOST_GLOBAL_LOCK

static pthread_mutex_t global_lock = PTHREAD_MUTEX_INITIALIZER;

void kslab_host_enter_slow(void)
{
	kslab_host_start();
	pthread_mutex_lock(&global_lock);
}

void kslab_host_exit_slow(void)
{
	pthread_mutex_unlock(&global_lock);
}

void kslab_host_leave(void) {}

static void threads_start(void)
{
	kslab_host_cpu = 0;
}

static void threads_lock(void)
{
	pthread_mutex_lock(&global_lock);
}

static void threads_unlock(void)
{
	pthread_mutex_unlock(&global_lock);
}

#else

#define NUMBERS KSLAB_HOST_SHARED_CPU /* for threads of their own: 0 .. NUMBERS - 1 */

static pthread_mutex_t shared_lock = PTHREAD_MUTEX_INITIALIZER;
static bool shared_online; /* under shared_lock */
static pthread_mutex_t numbers_lock = PTHREAD_MUTEX_INITIALIZER;
static uint64_t taken[NUMBERS / 64 + 1]; /* under numbers_lock */
static pthread_key_t end_key;
static __thread bool has_left __attribute__((tls_model("initial-exec")));

/* Return: the lowest free number, or NUMBERS. */
static unsigned number_take(void)
{
	unsigned number = 0;

	pthread_mutex_lock(&numbers_lock);
	while (number < NUMBERS && ~taken[number / 64] == 0)
		number += 64;
	if (number < NUMBERS)
		number += (unsigned)__builtin_ctzll(~taken[number / 64]);
	if (number < NUMBERS)
		taken[number / 64] |= (uint64_t)1 << (number % 64);
	else
		number = NUMBERS;
	pthread_mutex_unlock(&numbers_lock);
	return number;
}

static void number_give(unsigned number)
{
	pthread_mutex_lock(&numbers_lock);
	taken[number / 64] &= ~((uint64_t)1 << (number % 64));
	pthread_mutex_unlock(&numbers_lock);
}

/* Numbers that are not online have kslab_zone_none. */
static void play_cpu(unsigned number)
{
	kslab_host_cpu = number;
	kslab_host_zone = kslab_default_heap.zone[number];
}

/* A number of its own for this thread, online. Return: false: no number or no memory left. */
static bool arrive(void)
{
	unsigned number = number_take();

	if (number == NUMBERS)
		return false;
	play_cpu(number);
	/* CPU 0 came online with the heap, and stays when its thread ends. */
	if (number && kslab_cpu_online(number)) {
		play_cpu(KSLAB_HOST_NO_CPU);
		number_give(number);
		return false;
	}
	/*
	 * May allocate, which works by now. Any value but NULL makes the destructor run; if it
	 * can't be set, the number stays taken when the thread is gone, and nothing else is wrong.
	 */
	(void)pthread_setspecific(end_key, &end_key);
	return true;
}

void kslab_host_leave(void)
{
	unsigned number = kslab_host_cpu;
	bool is_free;

	if (number >= NUMBERS)
		return;
	/* If memory is out the first one may have to stay, and its number with it. */
	is_free = number == 0 || kslab_cpu_offline(number) == KSLAB_OK;
	play_cpu(KSLAB_HOST_NO_CPU);
	if (is_free)
		number_give(number);
}

static void thread_ends(void *unused)
{
	(void)unused;
	has_left = true;
	kslab_host_leave();
}

void kslab_host_enter_slow(void)
{
	if (!kslab_host_start() || kslab_host_cpu != KSLAB_HOST_NO_CPU)
		return;
	if (!has_left && arrive())
		return;
	pthread_mutex_lock(&shared_lock);
	play_cpu(KSLAB_HOST_SHARED_CPU);
	if (!shared_online)
		shared_online = kslab_cpu_online(KSLAB_HOST_SHARED_CPU) == KSLAB_OK;
}

void kslab_host_exit_slow(void)
{
	play_cpu(KSLAB_HOST_NO_CPU);
	pthread_mutex_unlock(&shared_lock);
}

/* A number and a page of metadata are worth it to a thread that goes on: 7 ns a free instead of 12. */
#define FREES_WITHOUT 32u

void kslab_host_no_zone(void)
{
	static __thread unsigned frees __attribute__((tls_model("initial-exec")));
	int saved = errno;

	if (kslab_host_cpu != KSLAB_HOST_NO_CPU || ++frees != FREES_WITHOUT || has_left)
		return;
	if (__atomic_load_n(&started, __ATOMIC_ACQUIRE)) /* another heap may have been freed into */
		(void)arrive();
	errno = saved;
}

/* The thread that makes the heap is its CPU 0. */
static void threads_start(void)
{
	taken[0] |= 1;
	kslab_host_cpu = 0;
	pthread_key_create(&end_key, thread_ends);
	pthread_setspecific(end_key, &end_key);
}

static void threads_lock(void)
{
	pthread_mutex_lock(&shared_lock);
	pthread_mutex_lock(&numbers_lock);
}

static void threads_unlock(void)
{
	pthread_mutex_unlock(&numbers_lock);
	pthread_mutex_unlock(&shared_lock);
}

#endif

/* ---- start and fork ------------------------------------------------------------------------ */

static struct kslab_lock_state fork_state;

static void fork_prepare(void)
{
	pthread_mutex_lock(&start_lock);
	threads_lock();
	kslab_heap_lock(&kslab_default_heap, &fork_state);
}

static void fork_parent(void)
{
	kslab_heap_unlock(&kslab_default_heap, &fork_state);
	threads_unlock();
	pthread_mutex_unlock(&start_lock);
}

/* Those who waited for the heap lock are not here: their tickets would never be served. */
static void fork_child(void)
{
	struct kslab_lock *lock = &kslab_default_heap.lock;

	lock->next = lock->serving + 1;
	fork_parent();
}

static bool start_heap(void)
{
	size_t bytes = WINDOW_BYTES;
	void *window = kslab_host_reserve(&bytes);
	struct kslab_config config = kslab_host_config(window, bytes);

	if (!window)
		return false;
	threads_start();
	if (kslab_init(&config) == KSLAB_OK && kslab_add_region(window, bytes) == KSLAB_OK) {
		next_piece = (kslab_default_heap.region[0].base + PIECE_BYTES - 1) &
			     ~(uintptr_t)(PIECE_BYTES - 1);
		return true;
	}
	munmap(window, bytes);
	return false;
}

bool kslab_host_start(void)
{
	static bool tried;
	bool first = false;

	if (__atomic_load_n(&started, __ATOMIC_ACQUIRE))
		return true;
	pthread_mutex_lock(&start_lock);
	if (!tried) {
		tried = true;
		first = start_heap();
		__atomic_store_n(&started, first, __ATOMIC_RELEASE);
	}
	pthread_mutex_unlock(&start_lock);
	/*
	 * Handlers run backwards before a fork: ours, registered by the first malloc, are the
	 * last, when no other one can want memory any more. Registering may allocate, so it has to
	 * come after the start.
	 */
	if (first)
		pthread_atfork(fork_prepare, fork_parent, fork_child);
	return __atomic_load_n(&started, __ATOMIC_ACQUIRE);
}

/* ---- words on standard error, without stdio ------------------------------------------------ */

struct text {
	int fd;
	size_t used;
	char bytes[512];
};

static void text_flush(struct text *text)
{
	const char *at = text->bytes;

	while (text->used) {
		ssize_t n = write(text->fd, at, text->used);

		if (n < 0 && errno == EINTR)
			continue;
		if (n <= 0)
			break;
		at += n;
		text->used -= (size_t)n;
	}
	text->used = 0;
}

static void text_char(void *ctx, char c)
{
	struct text *text = ctx;

	text->bytes[text->used++] = c;
	if (text->used == sizeof(text->bytes))
		text_flush(text);
}

static void text_string(struct text *text, const char *s)
{
	while (*s)
		text_char(text, *s++);
}

static void text_number(struct text *text, uintptr_t value, unsigned base)
{
	char digits[3 * sizeof(value)];
	unsigned n = 0;

	do
		digits[n++] = "0123456789abcdef"[value % base];
	while (value /= base);
	if (base == 16)
		text_string(text, "0x");
	while (n)
		text_char(text, digits[--n]);
}

static void text_address(struct text *text, const char *name, const void *address)
{
	if (!address)
		return;
	text_string(text, name);
	text_number(text, (uintptr_t)address, 16);
}

/* kslab: double free: 0x..., object 0x... of 64 bytes, CPU 0, caller 0x... (what) */
void kslab_host_report(void *ctx, const struct kslab_report *report)
{
	const char *policy = getenv("KSLAB_REPORT");
	struct text text = { .fd = STDERR_FILENO };
	int saved = errno;

	(void)ctx;
	text_string(&text, "kslab: ");
	text_string(&text, kslab_fault_name(report->fault));
	text_string(&text, ": ");
	text_number(&text, (uintptr_t)report->pointer, 16);
	text_address(&text, ", object ", report->object);
	if (report->object_bytes) {
		text_string(&text, " of ");
		text_number(&text, report->object_bytes, 10);
		text_string(&text, " bytes");
	}
	if (report->count) {
		text_string(&text, ", count ");
		text_number(&text, report->count, 10);
	}
	text_string(&text, ", CPU ");
	text_number(&text, report->cpu, 10);
	text_address(&text, ", caller ", report->caller);
	text_address(&text, ", allocated by ", report->alloc_caller);
	text_address(&text, ", freed by ", report->free_caller);
	if (report->what) {
		text_string(&text, " (");
		text_string(&text, report->what);
		text_string(&text, ")");
	}
	text_char(&text, '\n');
	text_flush(&text);
	if (!policy || strcmp(policy, "log"))
		abort();
	errno = saved;
}

void kslab_host_print(int fd)
{
	struct text text = { .fd = fd };

	text_string(&text, "kslab: process ");
	text_number(&text, (uintptr_t)getpid(), 10);
	text_char(&text, '\n');
	kslab_print(text_char, &text);
	text_flush(&text);
}
