/* SPDX-License-Identifier: MIT
 * fdt.c - owns reading the device tree, as much of it as says where memory is.
 * Runs: CPU 0, at boot. The tree itself may lie in the memory that is given away: it is not read
 * again.
 * Source: Devicetree Specification v0.3, chapter 5.
 */
#include "fdt.h"

#include <stdbool.h>

#include "frames.h"
#include "libk.h"

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

/* Return: the reg property of the first /memory node, or NULL. */
static const unsigned char *memory_reg(const unsigned char *fdt)
{
	const unsigned char *at = fdt + read32(fdt + 8), *names = fdt + read32(fdt + 12);
	bool in_memory = false;

	for (;;) {
		uint32_t token = read32(at), bytes;

		at += 4;
		switch (token) {
		case FDT_BEGIN_NODE:
			in_memory = memcmp(at, "memory@", 7) == 0;
			at += padded(at);
			break;
		case FDT_PROP:
			bytes = read32(at);
			if (in_memory && bytes >= 16 &&
			    memcmp(names + read32(at + 4), "reg", 4) == 0)
				return at + 8;
			at += 8 + ((bytes + 3) & ~3u);
			break;
		case FDT_END_NODE:
			in_memory = false;
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
	reg = memory_reg(fdt);
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
