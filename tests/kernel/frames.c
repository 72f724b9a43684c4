/* SPDX-License-Identifier: MIT
 * frames.c - owns the page frames of the test kernel: which are free, and in which runs the others
 * were given.
 * Runs: any CPU, thread or interrupt level, under its own lock with interrupts masked; not in an
 * NMI.
 *
 * One bit per frame, 1 = free. For each run that is out, its first frame knows the length: a run
 * that comes back must be one that went out, or the allocator above has lost or invented pages.
 */
#include "frames.h"

#include <stdbool.h>

#include "machine.h"

#define FRAMES ((size_t)1 << 18) /* 1 GiB, naturally aligned */
#define WORD_FRAMES 64u
#define WORDS (FRAMES / WORD_FRAMES)
#define ALIGN_FRAMES_MAX 512u

static uint64_t free_bits[WORDS];
static uint32_t run_frames[FRAMES]; /* at the first frame of a run: its length */
static uintptr_t window; /* physical address of frame 0 */
static size_t words; /* words that hold any frame */
static size_t free_count;
static size_t hint; /* no word below this one has a free frame */
static unsigned lock;

static uintptr_t enter(void)
{
	uintptr_t flags = machine_irq_save();

	while (__atomic_exchange_n(&lock, 1, __ATOMIC_ACQUIRE))
		machine_relax();
	return flags;
}

static void leave(uintptr_t flags)
{
	__atomic_store_n(&lock, 0, __ATOMIC_RELEASE);
	machine_irq_restore(flags);
}

static bool is_free(size_t frame)
{
	return free_bits[frame / WORD_FRAMES] >> frame % WORD_FRAMES & 1;
}

static void set_free(size_t frame, size_t n, bool value)
{
	for (size_t i = frame; i < frame + n; i++) {
		uint64_t bit = (uint64_t)1 << i % WORD_FRAMES;

		if (value)
			free_bits[i / WORD_FRAMES] |= bit;
		else
			free_bits[i / WORD_FRAMES] &= ~bit;
	}
}

void frames_add(uintptr_t physical, size_t bytes)
{
	uintptr_t end = (physical + bytes) & ~(uintptr_t)(FRAME_BYTES - 1);

	physical = (physical + FRAME_BYTES - 1) & ~(uintptr_t)(FRAME_BYTES - 1);
	if (words == 0)
		window = physical & ~(uintptr_t)((FRAMES << FRAME_SHIFT) - 1);
	for (; physical < end; physical += FRAME_BYTES) {
		size_t frame = (physical - window) >> FRAME_SHIFT;

		if (physical < window || frame >= FRAMES || is_free(frame))
			continue;
		set_free(frame, 1, true);
		free_count++;
		if (words <= frame / WORD_FRAMES)
			words = frame / WORD_FRAMES + 1;
	}
}

/* By halves: riscv64 without Zbb would call libgcc for __builtin_ctzll. */
static unsigned lowest_bit(uint64_t w)
{
	unsigned bit = 0;

	for (unsigned s = WORD_FRAMES / 2; s != 0; s /= 2) {
		if ((w & (((uint64_t)1 << s) - 1)) == 0) {
			w >>= s;
			bit += s;
		}
	}
	return bit;
}

/* Bits where n free frames begin, n <= 64, within the word, at multiples of align. */
static uint64_t starts(uint64_t w, size_t n, size_t align)
{
	for (size_t have = 1; have < n;) {
		size_t step = have < n - have ? have : n - have;

		w &= w >> step;
		have += step;
	}
	if (n > 1) /* shifting in zeros from above already rules out runs past the word's end */
		w &= align == WORD_FRAMES ? 1 : UINT64_MAX / (((uint64_t)1 << align) - 1);
	return w;
}

/* frame is the first one of a word. */
static bool is_run_free(size_t frame, size_t n)
{
	if (n > FRAMES - frame)
		return false;
	for (; n >= WORD_FRAMES; n -= WORD_FRAMES, frame += WORD_FRAMES)
		if (free_bits[frame / WORD_FRAMES] != UINT64_MAX)
			return false;
	return n == 0 || (~free_bits[frame / WORD_FRAMES] & (((uint64_t)1 << n) - 1)) == 0;
}

/* First frame of a free run that begins at a multiple of align, or FRAMES. */
static size_t find(size_t n, size_t align)
{
	const size_t step = align > WORD_FRAMES ? align / WORD_FRAMES : 1;

	if (n <= WORD_FRAMES) {
		for (size_t w = hint; w < words; w++) {
			uint64_t at = starts(free_bits[w], n, align);

			if (at != 0)
				return w * WORD_FRAMES + lowest_bit(at);
		}
		return FRAMES;
	}
	for (size_t w = (hint + step - 1) / step * step; w < words; w += step) {
		if (is_run_free(w * WORD_FRAMES, n))
			return w * WORD_FRAMES;
	}
	return FRAMES;
}

void *frames_alloc(size_t n)
{
	size_t align = 1, frame;
	uintptr_t flags;

	if (n == 0 || n > FRAMES)
		return NULL;
	while (align < n && align < ALIGN_FRAMES_MAX)
		align *= 2;
	flags = enter();
	while (hint < words && free_bits[hint] == 0)
		hint++;
	frame = find(n, align);
	if (frame < FRAMES) {
		set_free(frame, n, false);
		run_frames[frame] = (uint32_t)n;
		free_count -= n;
	}
	leave(flags);
	return frame < FRAMES ? (void *)(ARCH_DIRECT_MAP + window + (frame << FRAME_SHIFT)) : NULL;
}

const char *frames_free(void *run, size_t n)
{
	uintptr_t offset = (uintptr_t)run - ARCH_DIRECT_MAP - window;
	size_t frame = offset >> FRAME_SHIFT;
	const char *wrong = NULL;
	uintptr_t flags;

	if (offset % FRAME_BYTES != 0 || frame >= FRAMES || n == 0)
		return "not a frame";
	flags = enter();
	if (is_free(frame)) {
		wrong = "free already";
	} else if (run_frames[frame] != n) {
		wrong = "not a run that was given";
	} else {
		run_frames[frame] = 0;
		set_free(frame, n, true);
		free_count += n;
		if (hint > frame / WORD_FRAMES)
			hint = frame / WORD_FRAMES;
	}
	leave(flags);
	return wrong;
}

size_t frames_free_count(void)
{
	uintptr_t flags = enter();
	size_t count = free_count;

	leave(flags);
	return count;
}
