/* SPDX-License-Identifier: MIT
 * print.h - owns text for the observers: strings and numbers, character by character, without a
 * division.
 * Rank: 1.  Runs anywhere.
 */
#ifndef KSLAB_PRINT_H
#define KSLAB_PRINT_H

#include "compiler.h"

struct kslab_printer {
	void (*putc)(void *ctx, char c);
	void *ctx;
	unsigned column; /* characters since the last line feed */
};

static inline void kslab_print_char(struct kslab_printer *printer, char c)
{
	printer->putc(printer->ctx, c);
	printer->column = c == '\n' ? 0 : printer->column + 1;
}

/* Left-aligned in `width` columns. */
static inline void kslab_print_text(struct kslab_printer *printer, const char *text, unsigned width)
{
	unsigned n = 0;

	for (; text[n] != '\0'; n++)
		kslab_print_char(printer, text[n]);
	for (; n < width; n++)
		kslab_print_char(printer, ' ');
}

/*
 * Right-aligned decimal. By subtraction of powers of ten: 64-bit division would call libgcc on
 * 32-bit machines.
 */
static inline void kslab_print_number(struct kslab_printer *printer, uint64_t value, unsigned width)
{
	char digits[20];
	unsigned n = 0, first;

	for (unsigned place = 20; place-- > 0;) {
		uint64_t power = 1;
		char digit = '0';

		for (unsigned i = 0; i < place; i++)
			power = (power << 3) + (power << 1);
		for (; value >= power; value -= power)
			digit++;
		digits[n++] = digit;
	}
	for (first = 0; first < 19 && digits[first] == '0'; first++)
		;
	for (unsigned i = 20 - first; i < width; i++)
		kslab_print_char(printer, ' ');
	for (; first < 20; first++)
		kslab_print_char(printer, digits[first]);
}

/* "text value", for lines of figures. */
static inline void kslab_print_pair(struct kslab_printer *printer, const char *before,
				    uint64_t value, const char *after)
{
	kslab_print_text(printer, before, 0);
	kslab_print_number(printer, value, 0);
	kslab_print_text(printer, after, 0);
}

#endif
