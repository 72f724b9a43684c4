/* SPDX-License-Identifier: MIT
 * recorder.c - owns the recording of one program's allocation calls as a trace (librecord.so,
 * LD_PRELOAD).
 * Runs: in any Linux program with glibc, any thread. Independent of kslab: the calls go on to the
 * next malloc.
 *
 * Environment: KSLAB_TRACE=path (the first process that finds no such file records; its children
 * do not), KSLAB_TRACE_OPS=n (stop after n calls; default 300000).
 *
 * Order. What the trace says must be possible: a free is written before the real free, so that no
 * other thread can get the address and write its malloc first; a malloc is written after the real
 * one; a realloc is both and keeps the lock across the real call.
 */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <malloc.h>
#include <pthread.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#include "trace.h"

#define OPS_DEFAULT 300000u
#define OP_BYTES_MAX 32u /* three varints of at most ten bytes */
#define MAP_SLOTS (1u << 21) /* hash table; half of it is the most objects that can be live */
#define IDS (MAP_SLOTS / 2)
#define BOOT_BYTES 65536u

/* ---- the real allocator -------------------------------------------------------------------- */

static void *(*real_malloc)(size_t);
static void (*real_free)(void *);
static void *(*real_calloc)(size_t, size_t);
static void *(*real_realloc)(void *, size_t);
static void *(*real_memalign)(size_t, size_t);

/* dlsym may allocate before it has told us where: served from here, never freed. */
static _Alignas(16) char boot[BOOT_BYTES];
static size_t boot_used;

static void *boot_alloc(size_t size)
{
	size_t at = __atomic_fetch_add(&boot_used, (size + 15) & ~(size_t)15, __ATOMIC_RELAXED);

	return size <= BOOT_BYTES && at <= BOOT_BYTES - size ? boot + at : NULL;
}

static bool is_boot(const void *p)
{
	return (uintptr_t)p - (uintptr_t)boot < BOOT_BYTES;
}

static void resolve(const char *name, void *where)
{
	void *symbol = dlsym(RTLD_NEXT, name);

	memcpy(where, &symbol, sizeof(symbol));
}

static bool ready(void)
{
	static bool resolving;

	if (real_memalign)
		return true;
	if (__atomic_exchange_n(&resolving, true, __ATOMIC_ACQUIRE))
		return false;
	resolve("malloc", &real_malloc);
	resolve("free", &real_free);
	resolve("calloc", &real_calloc);
	resolve("realloc", &real_realloc);
	resolve("memalign", &real_memalign);
	return real_memalign != NULL;
}

/* ---- state, all under the lock ------------------------------------------------------------- */

static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static bool recording;
static int trace_fd = -1;
static unsigned char *out; /* operations so far */
static size_t out_used;
static uint64_t ops, ops_max, ids_peak;

static struct {
	uintptr_t address; /* 0: vacant */
	uint32_t id;
} * map;
static uint64_t *id_used; /* bitmap */
static uint32_t id_low; /* every word below is full */
static uint32_t live;

static uint32_t map_home(uintptr_t address)
{
	return (uint32_t)(((uint64_t)address >> 4) * 0x9e3779b97f4a7c15u >> 43) & (MAP_SLOTS - 1);
}

static uint32_t map_find(uintptr_t address)
{
	uint32_t i = map_home(address);

	while (map[i].address && map[i].address != address)
		i = (i + 1) & (MAP_SLOTS - 1);
	return i;
}

static void map_remove(uint32_t hole)
{
	for (uint32_t i = hole;;) {
		i = (i + 1) & (MAP_SLOTS - 1);
		if (!map[i].address)
			break;
		/* An entry may move up to the hole unless its home lies behind the hole. */
		if (((i - map_home(map[i].address)) & (MAP_SLOTS - 1)) >=
		    ((i - hole) & (MAP_SLOTS - 1))) {
			map[hole] = map[i];
			hole = i;
		}
	}
	map[hole].address = 0;
}

static uint32_t id_take(void)
{
	uint32_t id;

	while (id_used[id_low] == ~(uint64_t)0)
		id_low++;
	id = id_low * 64 + (uint32_t)__builtin_ctzll(~id_used[id_low]);
	id_used[id_low] |= (uint64_t)1 << (id % 64);
	if (id >= ids_peak)
		ids_peak = id + 1;
	live++;
	return id;
}

static void id_give(uint32_t id)
{
	id_used[id / 64] &= ~((uint64_t)1 << (id % 64));
	if (id / 64 < id_low)
		id_low = id / 64;
	live--;
}

/* ---- writing ------------------------------------------------------------------------------- */

static size_t varint(unsigned char *to, uint64_t value)
{
	size_t n = 0;

	for (; value > 127; value >>= 7)
		to[n++] = (unsigned char)(value | 128);
	to[n++] = (unsigned char)value;
	return n;
}

static void write_all(const unsigned char *from, size_t bytes)
{
	while (bytes) {
		ssize_t n = write(trace_fd, from, bytes);

		if (n < 0 && errno == EINTR)
			continue;
		if (n <= 0)
			return;
		from += n;
		bytes -= (size_t)n;
	}
}

static void finish(void)
{
	unsigned char head[TRACE_MAGIC_BYTES + 2 * 10] = TRACE_MAGIC;
	size_t used = TRACE_MAGIC_BYTES;

	if (!recording)
		return;
	recording = false;
	used += varint(head + used, ops);
	used += varint(head + used, ids_peak);
	write_all(head, used);
	write_all(out, out_used);
	close(trace_fd);
}

static void emit(enum trace_op op, uint64_t arg)
{
	out_used += varint(out + out_used, arg << 2 | (uint64_t)op);
}

static void emit_more(uint64_t value)
{
	out_used += varint(out + out_used, value);
}

static void count_op(void)
{
	if (++ops == ops_max || live >= IDS - 1)
		finish();
}

/* ---- one function per event ---------------------------------------------------------------- */

static void note_alloc(const void *p, enum trace_op op, size_t size, unsigned special)
{
	uint32_t at;

	if (!p || !__atomic_load_n(&recording, __ATOMIC_RELAXED))
		return;
	pthread_mutex_lock(&lock);
	if (recording) {
		at = map_find((uintptr_t)p);
		map[at].address = (uintptr_t)p;
		map[at].id = id_take();
		emit(op, size);
		emit_more(map[at].id);
		if (op == TRACE_SPECIAL)
			emit_more(special);
		count_op();
	}
	pthread_mutex_unlock(&lock);
}

static void note_free(const void *p)
{
	uint32_t at;

	if (!p || !__atomic_load_n(&recording, __ATOMIC_RELAXED))
		return;
	pthread_mutex_lock(&lock);
	at = recording ? map_find((uintptr_t)p) : 0;
	if (recording && map[at].address) {
		emit(TRACE_FREE, map[at].id);
		id_give(map[at].id);
		map_remove(at);
		count_op();
	}
	pthread_mutex_unlock(&lock);
}

static void *note_realloc(void *p, size_t size)
{
	void *q;
	uint32_t at, id;

	pthread_mutex_lock(&lock);
	q = real_realloc(p, size);
	at = recording ? map_find((uintptr_t)p) : 0;
	if (q && recording && map[at].address) {
		id = map[at].id;
		map_remove(at);
		at = map_find((uintptr_t)q);
		map[at].address = (uintptr_t)q;
		map[at].id = id;
		emit(TRACE_REALLOC, id);
		emit_more(size);
		count_op();
	}
	pthread_mutex_unlock(&lock);
	return q;
}

/* ---- the exported names -------------------------------------------------------------------- */

void *malloc(size_t size)
{
	void *p;

	if (!ready())
		return boot_alloc(size);
	p = real_malloc(size);
	note_alloc(p, TRACE_MALLOC, size, 0);
	return p;
}

void free(void *p)
{
	if (is_boot(p) || !ready())
		return;
	note_free(p);
	real_free(p);
}

void *calloc(size_t count, size_t size)
{
	void *p;

	if (!ready())
		return boot_alloc(count * size);
	p = real_calloc(count, size);
	note_alloc(p, TRACE_SPECIAL, count * size, 0);
	return p;
}

void *realloc(void *p, size_t size)
{
	void *q;

	if (!p)
		return malloc(size);
	if (!size) {
		free(p);
		return NULL;
	}
	if (is_boot(p)) {
		q = malloc(size);
		if (q) {
			size_t most = (size_t)(boot + BOOT_BYTES - (char *)p);

			memcpy(q, p, size < most ? size : most);
		}
		return q;
	}
	return note_realloc(p, size);
}

void *reallocarray(void *p, size_t count, size_t size)
{
	size_t bytes;

	if (__builtin_mul_overflow(count, size, &bytes)) {
		errno = ENOMEM;
		return NULL;
	}
	return realloc(p, bytes);
}

void *memalign(size_t align, size_t size)
{
	unsigned shift = 4;
	void *p;

	if (!ready())
		return NULL;
	p = real_memalign(align, size);
	while (shift < 63 && (size_t)1 << shift < align)
		shift++;
	if (align > 16)
		note_alloc(p, TRACE_SPECIAL, size, shift);
	else
		note_alloc(p, TRACE_MALLOC, size, 0);
	return p;
}

void *aligned_alloc(size_t align, size_t size)
{
	return memalign(align, size);
}

int posix_memalign(void **where, size_t align, size_t size)
{
	void *p;

	if (align < sizeof(void *) || (align & (align - 1)))
		return EINVAL;
	p = memalign(align, size);
	if (!p)
		return ENOMEM;
	*where = p;
	return 0;
}

void *valloc(size_t size)
{
	return memalign((size_t)sysconf(_SC_PAGESIZE), size);
}

void *pvalloc(size_t size)
{
	size_t page = (size_t)sysconf(_SC_PAGESIZE);

	return memalign(page, (size + page - 1) & ~(page - 1));
}

/* ---- start and end ------------------------------------------------------------------------- */

static void *reserve(size_t bytes)
{
	void *p = mmap(NULL, bytes, PROT_READ | PROT_WRITE,
		       MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);

	return p == MAP_FAILED ? NULL : p;
}

static void fork_prepare(void)
{
	pthread_mutex_lock(&lock);
}

static void fork_parent(void)
{
	pthread_mutex_unlock(&lock);
}

/* A child is another program as far as the trace is concerned. */
static void fork_child(void)
{
	recording = false;
	pthread_mutex_unlock(&lock);
}

__attribute__((constructor)) static void start(void)
{
	const char *path = getenv("KSLAB_TRACE");
	const char *limit = getenv("KSLAB_TRACE_OPS");

	if (!ready() || !path)
		return;
	ops_max = limit ? strtoull(limit, NULL, 10) : OPS_DEFAULT;
	if (!ops_max)
		ops_max = OPS_DEFAULT;
	trace_fd = open(path, O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC, 0644);
	if (trace_fd < 0)
		return;
	pthread_atfork(fork_prepare, fork_parent, fork_child);
	map = reserve(MAP_SLOTS * sizeof(*map));
	id_used = reserve(IDS / 8);
	out = reserve(ops_max * OP_BYTES_MAX);
	__atomic_store_n(&recording, map && id_used && out, __ATOMIC_RELEASE);
}

__attribute__((destructor)) static void stop(void)
{
	pthread_mutex_lock(&lock);
	finish();
	pthread_mutex_unlock(&lock);
}
