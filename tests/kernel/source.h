/* SPDX-License-Identifier: MIT
 * source.h - owns the interface to the test kernel's side of kslab's page source, and of its report
 * hook.
 */
#ifndef KERNEL_SOURCE_H
#define KERNEL_SOURCE_H

#include <kslab/kslab.h>

/*
 * source_start - kslab_init on the frames
 * @run_frames: longest run that the source gives; 1 is a kernel with single frames, 0 means no
 * limit
 * @retain_bytes: as in struct kslab_config
 */
void source_start(size_t run_frames, size_t retain_bytes);

/*
 * What kslab_init gets for every heap on the frames: callbacks, report hook, the debug level of the
 * boot options.
 */
void source_config(struct kslab_config *config);

/* Gives the frames to a heap that began without a page source. */
void source_attach(void);

/* From now on kslab never has more than so many frames; 0: no limit. */
void source_limit(size_t total_frames);

/*
 * source_end - show that nothing is live, check the heap, end it
 * Context: CPU 0, nobody else uses the heap, every object was freed.
 */
void source_end(void);

/* Frames that kslab has now; runs it was refused. */
size_t source_frames(void);
size_t source_refusals(void);

/* The next report is expected to be this one; any other is something wrong. */
void source_expect(enum kslab_fault fault);
/* Return: whether it came. */
bool source_expected(void);

#endif
