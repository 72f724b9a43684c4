/* SPDX-License-Identifier: MIT
 * options.h - owns the interface to the test kernel's boot options: "name=value name=value ...".
 *
 *     debug=0|1|2      raises the debug level of every heap
 *     inject=RULE      what fails in the job of fault injection (kslab_inject_parse)
 */
#ifndef KERNEL_OPTIONS_H
#define KERNEL_OPTIONS_H

/* Copies the text; what is too long is cut off. Context: CPU 0, at boot. */
void options_take(const char *text);

/* Return: the value of an option, or NULL. Valid until the next call. */
const char *options_find(const char *name);

#endif
