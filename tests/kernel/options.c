/* SPDX-License-Identifier: MIT
 * options.c - owns the test kernel's boot options.
 * Runs: CPU 0, thread level.
 */
#include "options.h"

#include <stddef.h>

#define OPTIONS_BYTES 256u

static char options[OPTIONS_BYTES], value[OPTIONS_BYTES];

void options_take(const char *text)
{
	for (size_t i = 0; i < OPTIONS_BYTES - 1 && text[i] != '\0'; i++)
		options[i] = text[i];
}

/* If the text begins with name and '=': what is behind it. */
static const char *match(const char *text, const char *name)
{
	for (; *name != '\0'; name++, text++)
		if (*text != *name)
			return NULL;
	return *text == '=' ? text + 1 : NULL;
}

const char *options_find(const char *name)
{
	const char *at = options, *found;
	size_t n = 0;

	for (;;) {
		while (*at == ' ')
			at++;
		if (*at == '\0')
			return NULL;
		found = match(at, name);
		if (found != NULL)
			break;
		while (*at != ' ' && *at != '\0')
			at++;
	}
	for (; found[n] != ' ' && found[n] != '\0'; n++)
		value[n] = found[n];
	value[n] = '\0';
	return value;
}
