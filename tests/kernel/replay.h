/* SPDX-License-Identifier: MIT
 * replay.h - owns the interface to the replayer of recorded traces (tests/traces).
 * Runs: one replay on one CPU, thread level; objects may be checked anywhere.
 */
#ifndef KERNEL_REPLAY_H
#define KERNEL_REPLAY_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "../trace.h"

/* Made by the Makefile out of tests/traces; the last one has a NULL name. */
struct trace {
	const char *name;
	const uint8_t *begin, *end;
};
extern const struct trace kernel_traces[];

/* A live object. Its bytes follow from the seed, which differs for each allocation. */
struct object {
	void *mem; /* NULL: none */
	size_t size;
	uint64_t seed;
};

void object_fill(const struct object *object);
/* Something WRONG if a byte differs. */
void object_check(const struct object *object, const char *when);

#define REPLAY_PATTERN (1u << 0) /* write and check every byte of every object */
#define REPLAY_MAY_FAIL (1u << 1) /* allocations may return NULL */

struct replay {
	const struct trace *trace;
	struct trace_reader reader;
	uint64_t done; /* calls that were replayed */
	uint64_t failures; /* allocations that returned NULL */
	struct object *objects; /* by slot; frames of the kernel's own */
	size_t objects_frames;
	unsigned flags;
	uint64_t seed; /* of the next object */
	/* Gets an object instead of kslab_free; returns false to refuse. May be NULL. */
	bool (*pass_on)(void *ctx, const struct object *object);
	void *ctx;
};

/* What a trace demands, found without allocating. */
struct replay_demand {
	uint64_t peak_call; /* calls until most bytes are live */
	size_t peak_bytes, peak_objects;
};

/* Return: false (and something WRONG) if the trace is not one, or memory for the slots is out. */
bool replay_open(struct replay *replay, const struct trace *trace, unsigned flags, uint64_t seed);
/* Right after open; rewinds. */
void replay_demand(struct replay *replay, struct replay_demand *demand);
/* One call. Return: false at the end. */
bool replay_step(struct replay *replay);
/* Frees what is live. */
void replay_close(struct replay *replay);

#endif
