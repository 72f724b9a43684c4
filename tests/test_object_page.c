/* SPDX-License-Identifier: MIT
 * test_object_page.c - owns the tests of one object page: exact division, harvest, mail, remote
 * frees.
 */
#include "testing.h"

#include "object_page.h"
#include "size_class.h"

#define WORDS 8u

static uintptr_t memory[(sizeof(struct kslab_page) + WORDS * sizeof(struct kslab_bits)) /
			sizeof(uintptr_t)] __attribute__((aligned(64)));
static struct kslab_page *const page = (struct kslab_page *)(void *)memory;
static struct kslab_owner owner, stranger;
static struct kslab_sc sc;

static void make_page(uintptr_t data, uint32_t bytes, uint32_t slots)
{
	memset(memory, 0, sizeof(memory));
	memset(&owner, 0, sizeof(owner));
	memset(&sc, 0, sizeof(sc));
	sc.size = bytes;
	kslab_page_init(page, data, 1, bytes, slots);
	kslab_page_open(page);
	page->sc = &sc;
	page->owner = (uintptr_t)&owner;
}

/* ---- exact division -------------------------------------------------------------------------- */

static void check_every_offset(uintptr_t data, uint32_t bytes, size_t run)
{
	uint32_t slots = (uint32_t)(run / bytes), next = 0;

	make_page(data, bytes, slots <= WORDS * KSLAB_WORD_BITS ? slots : 1);
	page->slots = slots;
	for (uint32_t offset = 0; offset < run; offset++) {
		uint32_t index = kslab_page_index(page, data + offset);

		if (offset == next * bytes && next < slots) {
			if (index != next)
				fail_msg("slot %u of %u bytes is taken for %u", next, bytes, index);
			next++;
		} else if (index < slots) {
			fail_msg("offset %u is taken for slot %u of %u bytes", offset, index,
				 bytes);
		}
	}
	assert_int_equal(next, slots);
}

static void test_every_offset_of_a_page_for_every_slot_size(void **state)
{
	(void)state;
	for (uint32_t bytes = 8; bytes <= 4096; bytes += 8)
		check_every_offset(0x40000000u, bytes, 4096);
}

static void test_every_offset_of_every_run_for_every_class(void **state)
{
	(void)state;
	for (unsigned cls = 0; cls < KSLAB_CLASSES; cls++)
		for (size_t run = 8192; run <= 65536; run *= 2)
			check_every_offset(0x7fff0000u, (uint32_t)kslab_class_bytes(cls), run);
}

static void test_addresses_far_outside_a_page_are_no_slots_of_it(void **state)
{
	struct testing_random random = testing_seed("far addresses", 31);

	(void)state;
	for (unsigned n = 0; n < 300000; n++) {
		uint32_t bytes = (uint32_t)(testing_random_below(&random, 2048) + 1) * 8;
		uint32_t slots = 65536 / bytes;
		uintptr_t data = (uintptr_t)testing_random_next(&random) & ~(uintptr_t)65535;
		/* Anywhere within 4 GiB of it, not inside. */
		uint32_t offset = 65536 + (uint32_t)testing_random_below(&random, 0xffff0000u - 1);

		if (slots == 0)
			continue;
		make_page(data, bytes, 1);
		page->slots = slots;
		if (kslab_page_index(page, data + offset) < slots)
			fail_msg("offset %u is a slot of %u bytes", offset, bytes);
	}
}

static void test_the_inverse_undoes_a_multiplication(void **state)
{
	struct testing_random random = testing_seed("inverse", 32);

	(void)state;
	for (uint32_t odd = 1; odd < 65536; odd += 2)
		for (unsigned shift = 0; shift <= 16; shift += 4)
			if (kslab_page_inverse(odd << shift) * odd != 1)
				fail_msg("inverse of %u", odd);
	for (unsigned n = 0; n < 100000; n++) {
		uint32_t odd = (uint32_t)testing_random_next(&random) | 1;

		if (kslab_page_inverse(odd) * odd != 1)
			fail_msg("inverse of %u", odd);
	}
}

/* ---- bits ------------------------------------------------------------------------------------ */

static void test_a_fresh_page_is_empty_with_its_tail_set_for_every_number_of_slots(void **state)
{
	(void)state;
	for (uint32_t slots = 1; slots <= WORDS * KSLAB_WORD_BITS; slots++) {
		uint32_t inside = 0;

		make_page(4096, 8, slots);
		assert_int_equal(kslab_page_words(page),
				 (slots + KSLAB_WORD_BITS - 1) / KSLAB_WORD_BITS);
		assert_true(kslab_page_is_empty(page));
		assert_int_equal(kslab_page_live(page), 0);
		for (unsigned i = 0; i < kslab_page_words(page); i++) {
			assert_true(page->bits[i].freed == ~(kslab_word)0);
			assert_true(page->bits[i].avail == 0 && page->bits[i].remote == 0);
			inside += kslab_popcount(~kslab_page_tail(page, i));
		}
		assert_int_equal(inside, slots);
		/* The last slot live: not empty, one live. */
		page->bits[(slots - 1) / KSLAB_WORD_BITS].freed &= ~kslab_bit(slots - 1);
		assert_false(kslab_page_is_empty(page));
		assert_int_equal(kslab_page_live(page), 1);
	}
}

/* What a slot can be; the last two only after a double free that raced with a harvest. */
enum slot { LIVE, FREED, AVAIL, REMOTE, FREED_TWICE, AVAIL_TWICE, SLOT_KINDS };

#define SLOTS 4u

static void set_slot(unsigned i, enum slot kind)
{
	kslab_word bit = kslab_bit(i);

	page->bits[0].freed &= ~bit;
	if (kind == FREED || kind == FREED_TWICE)
		page->bits[0].freed |= bit;
	if (kind == AVAIL || kind == AVAIL_TWICE)
		page->bits[0].avail |= bit;
	if (kind == REMOTE || kind == FREED_TWICE || kind == AVAIL_TWICE)
		page->bits[0].remote |= bit;
}

/* Calls fn for every combination of what four slots can be. */
static void every_page(void (*fn)(const enum slot kinds[SLOTS]))
{
	unsigned combinations = 1;

	for (unsigned i = 0; i < SLOTS; i++)
		combinations *= SLOT_KINDS;
	for (unsigned n = 0; n < combinations; n++) {
		enum slot kinds[SLOTS];
		unsigned rest = n;

		make_page(0x10000, 24, SLOTS);
		for (unsigned i = 0; i < SLOTS; i++, rest /= SLOT_KINDS) {
			kinds[i] = (enum slot)(rest % SLOT_KINDS);
			set_slot(i, kinds[i]);
		}
		fn(kinds);
	}
}

static void check_harvest(const enum slot kinds[SLOTS])
{
	struct kslab_bits before = page->bits[0];
	kslab_word wanted = 0, twice = 0;
	kslab_word got;

	for (unsigned i = 0; i < SLOTS; i++) {
		if (kinds[i] == REMOTE)
			wanted |= kslab_bit(i);
		if (kinds[i] == FREED_TWICE || kinds[i] == AVAIL_TWICE)
			twice |= kslab_bit(i);
	}
	got = kslab_page_harvest_word(&owner, page, 0);
	assert_true(got == wanted);
	assert_true(page->bits[0].remote == 0);
	assert_true(page->bits[0].avail == before.avail);
	assert_true(page->bits[0].freed == (before.freed | wanted));
	/* Every double free is counted, and one of them named. */
	assert_int_equal(owner.late_count, kslab_popcount(twice));
	if (twice == 0) {
		assert_int_equal(owner.late, 0);
	} else {
		uintptr_t index = (owner.late - page->data) / 24;

		assert_true(owner.late == page->data + index * 24 && index < SLOTS);
		assert_true(twice & kslab_bit((uint32_t)index));
	}
	/* Once more: there is nothing left. */
	assert_true(kslab_page_harvest_word(&owner, page, 0) == 0);
	assert_false(kslab_page_harvest(&owner, page));
}

static void test_harvest_takes_every_remote_bit_and_notes_late_double_frees(void **state)
{
	(void)state;
	every_page(check_harvest);
}

static void check_live(const enum slot kinds[SLOTS])
{
	uint32_t live = 0;
	bool all_freed = true;

	for (unsigned i = 0; i < SLOTS; i++) {
		live += kinds[i] == LIVE;
		all_freed = all_freed && (kinds[i] == FREED || kinds[i] == FREED_TWICE);
	}
	assert_int_equal(kslab_page_live(page), live);
	assert_int_equal(kslab_page_is_empty(page), all_freed);
}

static void test_live_and_empty_are_exact_for_every_combination(void **state)
{
	(void)state;
	every_page(check_live);
}

static void check_remote_free(const enum slot kinds[SLOTS])
{
	struct saved {
		struct kslab_bits bits;
		uint32_t mail;
		struct kslab_page *mailbox;
	} before;

	for (uint32_t mail = KSLAB_MAIL_IDLE; mail <= KSLAB_MAIL_QUEUED; mail++) {
		for (unsigned i = 0; i < SLOTS; i++) {
			struct kslab_bits kept = page->bits[0];
			enum kslab_remote result;

			page->mail = mail;
			owner.mailbox = NULL;
			before = (struct saved){ page->bits[0], page->mail, owner.mailbox };
			result = kslab_page_free_remote(page, i);
			if (kinds[i] != LIVE) {
				/* Refused; nothing but the verdict. */
				assert_int_equal(result, KSLAB_REMOTE_DOUBLE);
				assert_memory_equal(&before.bits, &page->bits[0],
						    sizeof(before.bits));
				assert_int_equal(page->mail, before.mail);
				assert_null(owner.mailbox);
				continue;
			}
			assert_int_equal(result, mail == KSLAB_MAIL_ARMED ? KSLAB_REMOTE_MAILED
									  : KSLAB_REMOTE_FREED);
			assert_true(page->bits[0].remote == (before.bits.remote | kslab_bit(i)));
			assert_true(page->bits[0].freed == before.bits.freed);
			assert_true(page->bits[0].avail == before.bits.avail);
			assert_int_equal(page->mail, mail == KSLAB_MAIL_IDLE ? KSLAB_MAIL_IDLE
									     : KSLAB_MAIL_QUEUED);
			assert_ptr_equal(owner.mailbox, mail == KSLAB_MAIL_ARMED ? page : NULL);
			/* And again: a double free, whatever the mail. */
			assert_int_equal(kslab_page_free_remote(page, i), KSLAB_REMOTE_DOUBLE);
			page->bits[0] = kept;
		}
	}
}

static void test_a_remote_free_is_judged_exactly_and_mails_an_armed_page_once(void **state)
{
	(void)state;
	every_page(check_remote_free);
}

/* Whatever the looks of a late free saw: the slots are made live for it. */
static void check_closed(uint32_t first, uint32_t slots)
{
	for (uint32_t i = first; i < slots; i++) {
		struct kslab_bits *bits = &page->bits[i / KSLAB_WORD_BITS];

		bits->freed = 0;
		assert_int_equal(kslab_page_free_remote(page, i), KSLAB_REMOTE_DOUBLE);
		assert_true(bits->remote == ~(kslab_word)0);
	}
}

static void test_a_page_without_an_owner_refuses_all_frees(void **state)
{
	(void)state;
	for (uint32_t slots = 1; slots <= WORDS * KSLAB_WORD_BITS; slots++) {
		uint32_t last = slots - 1, fewer = slots / 2 + 1;
		uint32_t words = (fewer + KSLAB_WORD_BITS - 1) / KSLAB_WORD_BITS;

		make_page(0x10000, 8, slots);
		page->bits[last / KSLAB_WORD_BITS].remote = kslab_bit(last); /* just before */
		kslab_page_close(&owner, page);
		assert_int_equal(owner.late_count, 1);
		assert_int_equal(owner.harvested, 1);
		assert_true(owner.late == page->data + (uintptr_t)last * 8);
		check_closed(0, slots);
		/* Another page, with fewer slots, of the same descriptor: made, and opened. */
		kslab_page_init(page, 0x20000, 1, 8, fewer);
		assert_true(kslab_page_is_empty(page));
		check_closed(0, slots);
		kslab_page_open(page);
		for (unsigned i = 0; i < words; i++)
			assert_true(page->bits[i].remote == 0);
		check_closed(words * KSLAB_WORD_BITS, slots);
		assert_int_equal(owner.late_count, 1);
	}
}

/* ---- mail ------------------------------------------------------------------------------------ */

static void check_arm(const enum slot kinds[SLOTS])
{
	bool has_remote = page->bits[0].remote != 0;

	(void)kinds;
	page->mail = KSLAB_MAIL_IDLE;
	/* Remote bits are there and nobody has queued the page: the owner must look himself. */
	assert_int_equal(kslab_page_arm(page), !has_remote);
	assert_int_equal(page->mail, has_remote ? KSLAB_MAIL_IDLE : KSLAB_MAIL_ARMED);
	page->mail = KSLAB_MAIL_QUEUED;
	assert_true(kslab_page_arm(page));
	assert_int_equal(page->mail, KSLAB_MAIL_QUEUED);
}

static void test_a_page_is_armed_unless_remote_frees_are_there_already(void **state)
{
	(void)state;
	every_page(check_arm);
}

static void test_only_a_queued_page_can_not_be_disarmed(void **state)
{
	(void)state;
	make_page(0x10000, 24, SLOTS);
	assert_true(kslab_page_disarm(page));
	assert_int_equal(page->mail, KSLAB_MAIL_IDLE);
	page->mail = KSLAB_MAIL_ARMED;
	assert_true(kslab_page_disarm(page));
	assert_int_equal(page->mail, KSLAB_MAIL_IDLE);
	page->mail = KSLAB_MAIL_QUEUED;
	assert_false(kslab_page_disarm(page));
	assert_int_equal(page->mail, KSLAB_MAIL_QUEUED);
}

static void test_mail_goes_to_the_owner_of_the_moment_whatever_his_tags(void **state)
{
	(void)state;
	for (uintptr_t tags = 0; tags <= KSLAB_TAG_MASK; tags++) {
		make_page(0x10000, 24, SLOTS);
		memset(&stranger, 0, sizeof(stranger));
		page->owner = (uintptr_t)&stranger | tags;
		page->bits[0].freed &= ~kslab_bit(2);
		assert_true(kslab_page_arm(page));
		assert_ptr_equal(kslab_page_owner(page), &stranger);
		assert_int_equal(kslab_page_free_remote(page, 2), KSLAB_REMOTE_MAILED);
		assert_ptr_equal(stranger.mailbox, page);
		assert_null(owner.mailbox);
		assert_null(page->mail_next);
	}
}

static void test_descriptor_bytes_have_room_for_the_bits_and_nothing_else(void **state)
{
	(void)state;
	for (unsigned words = 0; words < 600; words++)
		assert_int_equal(kslab_page_descriptor_bytes(words),
				 KSLAB_PAGE_HEADER_BYTES + 3 * words * sizeof(kslab_word));
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(test_every_offset_of_a_page_for_every_slot_size),
		cmocka_unit_test(test_every_offset_of_every_run_for_every_class),
		cmocka_unit_test(test_addresses_far_outside_a_page_are_no_slots_of_it),
		cmocka_unit_test(test_the_inverse_undoes_a_multiplication),
		cmocka_unit_test(
			test_a_fresh_page_is_empty_with_its_tail_set_for_every_number_of_slots),
		cmocka_unit_test(test_harvest_takes_every_remote_bit_and_notes_late_double_frees),
		cmocka_unit_test(test_live_and_empty_are_exact_for_every_combination),
		cmocka_unit_test(test_a_remote_free_is_judged_exactly_and_mails_an_armed_page_once),
		cmocka_unit_test(test_a_page_without_an_owner_refuses_all_frees),
		cmocka_unit_test(test_a_page_is_armed_unless_remote_frees_are_there_already),
		cmocka_unit_test(test_only_a_queued_page_can_not_be_disarmed),
		cmocka_unit_test(test_mail_goes_to_the_owner_of_the_moment_whatever_his_tags),
		cmocka_unit_test(test_descriptor_bytes_have_room_for_the_bits_and_nothing_else),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
