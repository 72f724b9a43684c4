/* SPDX-License-Identifier: MIT
 * replay.c - owns the replay of recorded traces on kslab, and the pattern in the objects.
 * Runs: as replay.h says.
 *
 * Every object is written in its whole requested size, and read again before it is freed or moved:
 * an object that overlaps another, that is handed out twice or that is not copied by realloc shows
 * as a wrong byte.
 */
#include "replay.h"

#include <kslab/kslab.h>

#include "frames.h"
#include "libk.h"
#include "verdict.h"

/* ---- pattern -------------------------------------------------------------------------------- */

#define SEED_FACTOR 0x9e3779b97f4a7c15u
#define WORD_STEP 0xbf58476d1ce4e5b9u
#define MIN_ALIGN 8u /* config.min_align's default */

typedef uint64_t __attribute__((may_alias)) pattern_word;

void object_fill(const struct object *object)
{
	uint64_t value = object->seed * SEED_FACTOR;
	pattern_word *word = object->mem;
	unsigned char *byte;

	for (size_t n = object->size / sizeof(*word); n != 0; n--, value += WORD_STEP)
		*word++ = value;
	byte = (unsigned char *)word;
	for (size_t n = object->size % sizeof(*word); n != 0; n--, value >>= 8)
		*byte++ = (unsigned char)value;
}

/*
 * The first `bytes` bytes hold the pattern. Return: offset of the first word that does not, or
 * bytes.
 */
static size_t first_wrong(const struct object *object, size_t bytes)
{
	uint64_t value = object->seed * SEED_FACTOR;
	const pattern_word *word = object->mem;
	const unsigned char *byte;

	for (size_t n = 0; n < bytes / sizeof(*word); n++, value += WORD_STEP) {
		if (word[n] != value)
			return n * sizeof(*word);
	}
	byte = (const unsigned char *)object->mem;
	for (size_t n = bytes - bytes % sizeof(*word); n < bytes; n++, value >>= 8) {
		if (byte[n] != (unsigned char)value)
			return n;
	}
	return bytes;
}

static void check_bytes(const struct object *object, size_t bytes, const char *when)
{
	size_t offset = first_wrong(object, bytes);

	if (offset < bytes)
		WRONG("%s: object %p of %zu bytes changed at offset %zu\n", when, object->mem,
		      object->size, offset);
}

void object_check(const struct object *object, const char *when)
{
	check_bytes(object, object->size, when);
}

static void check_zero(const struct object *object)
{
	const unsigned char *byte = object->mem;

	for (size_t n = 0; n < object->size; n++) {
		if (byte[n] != 0) {
			WRONG("zeroed object %p of %zu bytes is not at offset %zu\n", object->mem,
			      object->size, n);
			return;
		}
	}
}

/* The alignment that kslab.h promises for a size. */
static size_t promised_align(size_t size)
{
	if (size > FRAME_BYTES)
		return FRAME_BYTES;
	if (size != 0 && (size & (size - 1)) == 0)
		return size;
	return size >= MIN_ALIGN ? MIN_ALIGN : 1;
}

static void check_align(const struct object *object, size_t align, const char *when)
{
	if ((uintptr_t)object->mem & (align - 1))
		WRONG("%s: object %p of %zu bytes is not aligned to %zu\n", when, object->mem,
		      object->size, align);
}

/* ---- reading -------------------------------------------------------------------------------- */

static bool rewind(struct replay *replay)
{
	const struct trace *trace = replay->trace;

	replay->done = 0;
	return trace_open(&replay->reader, trace->begin, (size_t)(trace->end - trace->begin));
}

static bool read_call(struct replay *replay, struct trace_call *call)
{
	if (trace_read(&replay->reader, call)) {
		replay->done++;
		return true;
	}
	if (replay->reader.wrong != NULL)
		WRONG("trace %s, call %lu: %s\n", replay->trace->name,
		      (unsigned long)replay->done + 1, replay->reader.wrong);
	replay->reader.left = 0;
	replay->reader.wrong = NULL; /* said once */
	return false;
}

bool replay_open(struct replay *replay, const struct trace *trace, unsigned flags, uint64_t seed)
{
	*replay = (struct replay){ .trace = trace, .flags = flags, .seed = seed };
	if (!rewind(replay)) {
		WRONG("trace %s: %s\n", trace->name, replay->reader.wrong);
		return false;
	}
	replay->objects_frames =
		((size_t)replay->reader.slots * sizeof(*replay->objects) + FRAME_BYTES - 1) /
		FRAME_BYTES;
	replay->objects = frames_alloc(replay->objects_frames);
	if (replay->objects == NULL) {
		WRONG("trace %s: no memory for %lu slots\n", trace->name,
		      (unsigned long)replay->reader.slots);
		return false;
	}
	memset(replay->objects, 0, replay->objects_frames * FRAME_BYTES);
	return true;
}

void replay_demand(struct replay *replay, struct replay_demand *demand)
{
	size_t bytes = 0, objects = 0;
	struct trace_call call;

	*demand = (struct replay_demand){ 0 };
	while (read_call(replay, &call)) {
		struct object *object = &replay->objects[call.slot];

		/* seed 1: live */
		bytes -= object->size;
		objects -= (size_t)object->seed;
		object->size = call.op == TRACE_FREE ? 0 : call.size;
		object->seed = call.op != TRACE_FREE;
		bytes += object->size;
		objects += (size_t)object->seed;
		if (bytes > demand->peak_bytes) {
			demand->peak_bytes = bytes;
			demand->peak_call = replay->done;
		}
		if (objects > demand->peak_objects)
			demand->peak_objects = objects;
	}
	memset(replay->objects, 0, replay->reader.slots * sizeof(*replay->objects));
	rewind(replay);
}

/* ---- replaying ------------------------------------------------------------------------------ */

static void failed(struct replay *replay, size_t size)
{
	replay->failures++;
	if (!(replay->flags & REPLAY_MAY_FAIL))
		WRONG("%s, call %lu: %zu bytes: %s\n", replay->trace->name,
		      (unsigned long)replay->done, size, kslab_reason_name(kslab_last_error()));
}

static void release(struct replay *replay, struct object *object)
{
	if (object->mem != NULL) {
		if (replay->pass_on == NULL || !replay->pass_on(replay->ctx, object)) {
			if (replay->flags & REPLAY_PATTERN)
				object_check(object, "free");
			kslab_free(object->mem);
		}
	}
	object->mem = NULL;
}

static void allocate(struct replay *replay, const struct trace_call *call, struct object *object)
{
	size_t align = (size_t)1 << call->align_shift;

	if (object->mem != NULL)
		WRONG("trace %s: slot %u used twice\n", replay->trace->name, (unsigned)call->slot);
	if (call->op == TRACE_MALLOC || call->op == TRACE_REALLOC)
		object->mem = kslab_malloc(call->size);
	else if (call->align_shift == 0)
		object->mem = kslab_calloc(1, call->size);
	else
		object->mem = kslab_aligned_alloc(align, call->size);
	object->size = call->size;
	if (object->mem == NULL) {
		failed(replay, call->size);
		return;
	}
	if (!(replay->flags & REPLAY_PATTERN))
		return;
	check_align(object, align > 1 ? align : promised_align(call->size), "new");
	if (call->op == TRACE_SPECIAL && call->align_shift == 0)
		check_zero(object);
	object->seed = replay->seed++;
	object_fill(object);
}

static void reallocate(struct replay *replay, const struct trace_call *call, struct object *object)
{
	size_t kept = object->size < call->size ? object->size : call->size;
	void *mem;

	if (object->mem == NULL) { /* failed before, or was made size 0 */
		allocate(replay, call, object);
		return;
	}
	if (replay->flags & REPLAY_PATTERN)
		object_check(object, "before realloc");
	mem = kslab_realloc(object->mem, call->size);
	if (mem == NULL) {
		if (call->size == 0) {
			object->mem = NULL;
			return;
		}
		failed(replay, call->size);
		if (replay->flags & REPLAY_PATTERN)
			object_check(object, "after a realloc that failed");
		return;
	}
	object->mem = mem;
	object->size = call->size;
	if (!(replay->flags & REPLAY_PATTERN))
		return;
	check_align(object, promised_align(call->size), "after realloc");
	check_bytes(object, kept, "after realloc");
	object->seed = replay->seed++;
	object_fill(object);
}

bool replay_step(struct replay *replay)
{
	struct object *object;
	struct trace_call call;

	if (!read_call(replay, &call))
		return false;
	object = &replay->objects[call.slot];
	switch (call.op) {
	case TRACE_MALLOC:
	case TRACE_SPECIAL:
		allocate(replay, &call, object);
		break;
	case TRACE_FREE:
		release(replay, object);
		break;
	case TRACE_REALLOC:
		reallocate(replay, &call, object);
		break;
	}
	return true;
}

void replay_close(struct replay *replay)
{
	for (size_t i = 0; i < replay->reader.slots; i++)
		release(replay, &replay->objects[i]);
	frames_free(replay->objects, replay->objects_frames);
	replay->objects = NULL;
}
