/* SPDX-License-Identifier: MIT
 * inject.c - owns fault injection: the rule, its events, its text.
 * Rank: 6 (kslab_injecting_hits: 1).  Runs anywhere; the rule is changed in a thread.
 *
 * The fast path knows nothing of it: while allocations are in question, route_limit (at a debug
 * level: debug_limit) is 0, and every allocation comes by kslab_heap_alloc_any, where the question
 * is asked.
 */
#include "inject.h"
#include "heap.h"

_Static_assert(KSLAB_CLASSES == KSLAB_INJECT_LARGE, "no class means a large block");

/*
 * A number that looks like chance, a function of seed and event: xorshift32 (Marsaglia 2003) over
 * both.
 */
static uint32_t chance(uint32_t seed, size_t event)
{
	uint32_t x = seed ^ ((uint32_t)event * 0x9e3779b9u + 0x7f4a7c15u);

	for (unsigned round = 0; round < 3; round++) {
		x += 0x6d2b79f5u; /* 0 would stay 0 */
		x ^= x << 13;
		x ^= x >> 17;
		x ^= x << 5;
	}
	return x >> 8;
}

bool kslab_injecting_hits(struct kslab_injecting *inject)
{
	size_t event = KSLAB_FETCH_ADD_RELAXED(&inject->events, (size_t)1) + 1;
	size_t every = inject->rule.fail_every;

	if (event == inject->rule.fail_nth)
		return true;
	if (every != 0 && event == kslab_divide(event, every) * every)
		return true;
	return (chance(inject->rule.seed, event) & 0xffff) < inject->rule.fail_share;
}

/* Requests of a class are served by another one where that wastes less: mean that one, too. */
static void add_serving_classes(const struct kslab_heap *heap, struct kslab_inject *rule)
{
	for (unsigned cls = 0; cls < KSLAB_CLASSES; cls++) {
		unsigned use = heap->use_class[cls];

		if (!(rule->classes[cls / 32] >> (cls % 32) & 1))
			continue;
		rule->classes[use / 32] |= (uint32_t)1 << (use % 32);
	}
}

enum kslab_reason kslab_heap_inject(struct kslab_heap *heap, const struct kslab_inject *rule)
{
	static const struct kslab_inject none;
	size_t *limit = heap->debug_level != 0 ? &heap->debug_limit : &heap->route_limit;
	struct kslab_injecting *inject = &heap->inject;
	bool was_on;

	if (heap->state != KSLAB_HEAP_READY)
		return KSLAB_NOT_INITIALISED;
	if (rule != NULL && (rule->where == 0 || rule->fail_share > 65536 ||
			     (rule->where & ~(KSLAB_INJECT_PAGES | KSLAB_INJECT_ALLOCATIONS)) != 0))
		return KSLAB_BAD_ARGUMENT;
	was_on = kslab_inject_is_on(heap);
	inject->rule = rule != NULL ? *rule : none;
	add_serving_classes(heap, &inject->rule);
	KSLAB_STORE_RELAXED(&inject->events, (size_t)0);
	/* Other CPUs see the closed door at their next allocation, or a few later. */
	if (!was_on && kslab_inject_is_on(heap)) {
		inject->route_limit = *limit;
		KSLAB_STORE_RELAXED(limit, (size_t)0);
	} else if (was_on && !kslab_inject_is_on(heap)) {
		KSLAB_STORE_RELAXED(limit, inject->route_limit);
	}
	return KSLAB_OK;
}

enum kslab_reason kslab_inject(const struct kslab_inject *rule)
{
	return kslab_heap_inject(&kslab_default_heap, rule);
}

/* ---- text ------------------------------------------------------------------------------------ */

/* If the text begins with a word, step over it. */
static bool skip(const char **text, const char *word)
{
	const char *at = *text;

	for (; *word != '\0'; word++, at++)
		if (*at != *word)
			return false;
	*text = at;
	return true;
}

/* A decimal number up to 2^32 - 1. */
static bool parse_number(const char **text, uint32_t *value)
{
	const char *at = *text;
	uint64_t sum = 0;

	for (; *at >= '0' && *at <= '9'; at++) {
		sum = (sum << 3) + (sum << 1) + (unsigned)(*at - '0');
		if (sum > UINT32_MAX)
			return false;
	}
	if (at == *text)
		return false;
	*text = at;
	*value = (uint32_t)sum;
	return true;
}

static bool parse_class(const char **text, struct kslab_inject *rule)
{
	unsigned cls = KSLAB_INJECT_LARGE;
	uint32_t bytes;

	if (skip(text, "cache")) {
		cls = KSLAB_INJECT_CACHE;
	} else if (!skip(text, "large")) {
		if (!parse_number(text, &bytes))
			return false;
		if (bytes <= KSLAB_CLASS_MAX_BYTES)
			cls = kslab_class_of(bytes);
	}
	rule->classes[cls / 32] |= (uint32_t)1 << (cls % 32);
	return true;
}

static bool parse_rule(const char **text, struct kslab_inject *rule)
{
	uint32_t value;

	if (skip(text, "class="))
		return parse_class(text, rule);
	if (skip(text, "share="))
		return parse_number(text, &rule->fail_share) && rule->fail_share <= 65536;
	if (skip(text, "seed="))
		return parse_number(text, &rule->seed);
	if (skip(text, "nth=")) {
		if (!parse_number(text, &value))
			return false;
		rule->fail_nth = value;
		return true;
	}
	if (!skip(text, "every=") || !parse_number(text, &value))
		return false;
	rule->fail_every = value;
	return true;
}

enum kslab_reason kslab_inject_parse(const char *text, struct kslab_inject *rule)
{
	struct kslab_inject parsed = { 0, 0, 0, 0, 0, { 0, 0 } };

	if (text == NULL)
		return KSLAB_BAD_ARGUMENT;
	if (skip(&text, "pages"))
		parsed.where = KSLAB_INJECT_PAGES;
	else if (skip(&text, "allocations"))
		parsed.where = KSLAB_INJECT_ALLOCATIONS;
	else if (skip(&text, "all"))
		parsed.where = KSLAB_INJECT_PAGES | KSLAB_INJECT_ALLOCATIONS;
	else if (!skip(&text, "off"))
		return KSLAB_BAD_ARGUMENT;
	if (parsed.where != 0 && skip(&text, ":")) {
		do {
			if (!parse_rule(&text, &parsed))
				return KSLAB_BAD_ARGUMENT;
		} while (skip(&text, ","));
	}
	if (*text != '\0')
		return KSLAB_BAD_ARGUMENT;
	*rule = parsed;
	return KSLAB_OK;
}
