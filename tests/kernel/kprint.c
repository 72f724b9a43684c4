/* SPDX-License-Identifier: MIT
 * kprint.c - owns formatted output of the test kernel.
 * Runs: any CPU, thread or interrupt level. The lock is not waited for in an NMI, nor for ever: a
 * line of a CPU that dies must come out even if the lock's holder is what died.
 */
#include "kprint.h"

#include <stdarg.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "arch.h"

#define LOCK_TRIES 10000000u
#define DIGITS 20

static unsigned lock;

struct field {
	unsigned width;
	bool left, zero;
};

static void put_padded(const char *text, size_t length, struct field field)
{
	size_t pad = field.width > length ? field.width - length : 0;

	for (; !field.left && pad != 0; pad--)
		arch_putc(field.zero ? '0' : ' ');
	for (size_t i = 0; i < length; i++)
		arch_putc(text[i]);
	for (; pad != 0; pad--)
		arch_putc(' ');
}

static void put_number(unsigned long value, unsigned base, bool negative, struct field field)
{
	char text[DIGITS + 1];
	size_t at = sizeof(text);

	do {
		text[--at] = "0123456789abcdef"[value % base];
		value /= base;
	} while (value != 0);
	if (negative)
		text[--at] = '-';
	put_padded(text + at, sizeof(text) - at, field);
}

static void put_string(const char *text, struct field field)
{
	size_t length = 0;

	while (text[length] != '\0')
		length++;
	put_padded(text, length, field);
}

static void put_signed(long value, struct field field)
{
	put_number(value < 0 ? 0 - (unsigned long)value : (unsigned long)value, 10, value < 0,
		   field);
}

/* One conversion, *format behind the %. Return: what follows it. */
static const char *put_conversion(const char *format, va_list *args)
{
	struct field field = { 0, false, false };
	bool is_long = false;
	char c;

	for (; *format == '-' || *format == '0'; format++) {
		field.left |= *format == '-';
		field.zero |= *format == '0';
	}
	for (; *format >= '0' && *format <= '9'; format++)
		field.width = field.width * 10 + (unsigned)(*format - '0');
	for (; *format == 'l' || *format == 'z'; format++)
		is_long = true;
	switch (*format) {
	case 's':
		put_string(va_arg(*args, const char *), field);
		break;
	case 'c':
		c = (char)va_arg(*args, int);
		put_padded(&c, 1, field);
		break;
	case 'd':
		put_signed(is_long ? va_arg(*args, long) : va_arg(*args, int), field);
		break;
	case 'u':
	case 'x':
		put_number(is_long ? va_arg(*args, unsigned long) : va_arg(*args, unsigned),
			   *format == 'x' ? 16 : 10, false, field);
		break;
	case 'p':
		put_number((uintptr_t)va_arg(*args, void *), 16, false, field);
		break;
	default:
		arch_putc(*format);
		break;
	}
	return format + 1;
}

void kprintf(const char *format, ...)
{
	uintptr_t flags = machine_irq_save();
	bool locked = false;
	va_list args;

	for (unsigned i = 0; !locked && i < LOCK_TRIES && !machine_in_nmi(); i++) {
		locked = !__atomic_exchange_n(&lock, 1, __ATOMIC_ACQUIRE);
		machine_relax();
	}
	va_start(args, format);
	while (*format != '\0') {
		if (*format != '%')
			arch_putc(*format++);
		else
			format = put_conversion(format + 1, &args);
	}
	va_end(args);
	if (locked)
		__atomic_store_n(&lock, 0, __ATOMIC_RELEASE);
	machine_irq_restore(flags);
}

void kprint_putc(void *ctx, char c)
{
	(void)ctx;
	arch_putc(c);
}
