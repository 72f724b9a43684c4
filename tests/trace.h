/* SPDX-License-Identifier: MIT
 * trace.h - owns the format of a recorded trace (traces), and its reading. host/recorder.c writes
 * it.
 * Runs: anywhere, freestanding.
 *
 * "KSTRACE1", varint number of calls, varint number of slots, then the calls. A varint is LEB128:
 * seven bits a byte, lowest first. A call begins with a varint v, op = v & 3, arg = v >> 2:
 *   0 malloc   arg = size; slot
 *   1 free     arg = slot
 *   2 realloc  arg = slot; new size
 *   3 special  arg = size; slot; a: 0 = zeroed, else aligned to 1 << a
 * A slot is a number for a live object, the lowest one that is free. Objects live at the end stay
 * live.
 */
#ifndef TRACE_H
#define TRACE_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

enum trace_op { TRACE_MALLOC, TRACE_FREE, TRACE_REALLOC, TRACE_SPECIAL };

#define TRACE_MAGIC "KSTRACE1"
#define TRACE_MAGIC_BYTES 8u
#define TRACE_ALIGN_SHIFT_MAX 40u

struct trace_call {
	size_t size; /* free: 0 */
	uint32_t slot;
	uint8_t op; /* enum trace_op */
	uint8_t align_shift; /* TRACE_SPECIAL: 0 = zeroed */
};

struct trace_reader {
	const unsigned char *at, *end;
	uint64_t calls, left, slots;
	const char *wrong; /* what is; NULL: nothing so far */
};

static inline uint64_t trace_varint(struct trace_reader *r)
{
	uint64_t value = 0;

	for (unsigned shift = 0; r->at < r->end && shift < 64; shift += 7) {
		unsigned char byte = *r->at++;

		value |= (uint64_t)(byte & 127) << shift;
		if (byte < 128)
			return value;
	}
	r->wrong = "cut off";
	return 0;
}

/* Begin with the first call. Return: false: this is no trace. */
static inline bool trace_open(struct trace_reader *r, const void *file, size_t bytes)
{
	*r = (struct trace_reader){ .at = file, .end = (const unsigned char *)file + bytes };
	for (size_t i = 0; i < TRACE_MAGIC_BYTES; i++)
		if (r->at == r->end || *r->at++ != (unsigned char)TRACE_MAGIC[i]) {
			r->wrong = "not a trace";
			return false;
		}
	r->calls = r->left = trace_varint(r);
	r->slots = trace_varint(r);
	if (r->wrong == NULL && (r->calls > bytes || r->slots > bytes))
		r->wrong = "bad header";
	return r->wrong == NULL;
}

/* The next call. Return: false: there is none, or something is wrong. */
static inline bool trace_read(struct trace_reader *r, struct trace_call *call)
{
	uint64_t v, size, slot, align = 0;

	if (r->left == 0 || r->wrong != NULL)
		return false;
	r->left--;
	v = trace_varint(r);
	call->op = (uint8_t)(v & 3);
	size = slot = v >> 2;
	if (call->op == TRACE_FREE)
		size = 0;
	else if (call->op == TRACE_REALLOC)
		size = trace_varint(r);
	else
		slot = trace_varint(r);
	if (call->op == TRACE_SPECIAL)
		align = trace_varint(r);
	if (r->wrong == NULL && (slot >= r->slots || slot > UINT32_MAX))
		r->wrong = "no such slot";
	if (r->wrong == NULL && align > TRACE_ALIGN_SHIFT_MAX)
		r->wrong = "bad alignment";
	if (r->wrong == NULL && (size_t)size != size)
		r->wrong = "too large for this machine";
	call->size = (size_t)size;
	call->slot = (uint32_t)slot;
	call->align_shift = (uint8_t)align;
	return r->wrong == NULL;
}

#endif
