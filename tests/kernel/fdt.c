/* SPDX-License-Identifier: MIT
 * fdt.c - owns reading the device tree, as much of it as says where memory is
 * and what the boot options are.
 * Runs: CPU 0, at boot. The tree itself may lie in the memory that is given away: it is not read
 * again.
 * Source: Devicetree Specification v0.3, chapter 5.
 */
#include "fdt.h"

#include <stdbool.h>

#include "frames.h"
#include "libk.h"
#include "options.h"

#define FDT_MAGIC 0xd00dfeedu
#define FDT_BEGIN_NODE 1u
#define FDT_END_NODE 2u
#define FDT_PROP 3u
#define FDT_NOP 4u

static uint32_t read32(const unsigned char *at)
{
	return (uint32_t)at[0] << 24 | (uint32_t)at[1] << 16 | (uint32_t)at[2] << 8 | at[3];
}

static uint64_t read64(const unsigned char *at)
{
	return (uint64_t)read32(at) << 32 | read32(at + 4);
}

/* Length of a string with its end, rounded up to the next token. */
static uint32_t padded(const unsigned char *text)
{
	uint32_t length = 0;

	while (text[length] != '\0')
		length++;
	return (length + 4) & ~3u;
}

/*
 * Return: a property, of `least` bytes at least, of the first node whose name begins so; or NULL.
 * name_bytes: of the property's name, its end included.
 */
static const unsigned char *find(const unsigned char *fdt, const char *node, size_t node_bytes,
				 const char *name, size_t name_bytes, uint32_t least)
{
	const unsigned char *at = fdt + read32(fdt + 8), *names = fdt + read32(fdt + 12);
	bool is_inside = false;

	for (;;) {
		uint32_t token = read32(at), bytes;

		at += 4;
		switch (token) {
		case FDT_BEGIN_NODE:
			is_inside = memcmp(at, node, node_bytes) == 0;
			at += padded(at);
			break;
		case FDT_PROP:
			bytes = read32(at);
			if (is_inside && bytes >= least &&
			    memcmp(names + read32(at + 4), name, name_bytes) == 0)
				return at + 8;
			at += 8 + ((bytes + 3) & ~3u);
			break;
		case FDT_END_NODE:
			is_inside = false;
			break;
		case FDT_NOP:
			break;
		default:
			return NULL;
		}
	}
}

uint64_t fdt_add_memory(const void *fdt, uintptr_t floor)
{
	const unsigned char *reg;
	uint64_t begin, end;

	if (read32(fdt) != FDT_MAGIC)
		return 0;
	reg = find(fdt, "memory@", 7, "reg", 4, 16);
	if (reg == NULL)
		return 0;
	begin = read64(reg);
	end = begin + read64(reg + 8);
	if (begin < floor)
		begin = floor;
	if (begin >= end)
		return 0;
	frames_add((uintptr_t)begin, (size_t)(end - begin));
	return end - begin;
}

void fdt_options(const void *fdt)
{
	const unsigned char *text;

	if (read32(fdt) != FDT_MAGIC)
		return;
	text = find(fdt, "chosen", 7, "bootargs", 9, 1);
	if (text != NULL)
		options_take((const char *)text);
}
