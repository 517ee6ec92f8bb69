/* SPDX-License-Identifier: BSD-2-Clause */
/*
 * The judge is judged: what it must allow, and what it must not.
 */
#include "simulator/oracle.h"

#include <check.h>
#include <stdlib.h>
#include <string.h>

#include "base/testing.h"

#define DISK_BYTES 65536U

static struct oracle *oracle;
static char why[4096];

static void setup(void)
{
    oracle = oracle_create(DISK_BYTES);
}

static void teardown(void)
{
    oracle_free(oracle);
}

/* Whether a read of the range, begun at that moment, may see what write `value` put there. */
static bool sees_since(uint64_t began, uint64_t offset, size_t len, uint32_t value)
{
    uint8_t buf[DISK_BYTES];
    oracle_pattern(value, offset, buf, len);
    return oracle_read_end(oracle, began, offset, buf, len, why, sizeof(why));
}

static bool sees(uint64_t offset, size_t len, uint32_t value)
{
    return sees_since(oracle_read_begin(oracle), offset, len, value);
}

/* The same without ending the read, so that nothing is settled by asking. */
static bool may_see(uint64_t offset, size_t len, uint32_t value)
{
    uint8_t buf[DISK_BYTES];
    uint64_t began = oracle_read_begin(oracle);
    oracle_pattern(value, offset, buf, len);
    /* A write in flight keeps the question open; it is refused in the end. */
    uint64_t shield = oracle_write_begin(oracle, 0, DISK_BYTES, 999999);
    bool legal = oracle_read_check(oracle, began, offset, buf, len, why, sizeof(why));
    oracle_write_end(oracle, 0, DISK_BYTES, shield, ORACLE_NOTHING, false);
    oracle_read_drop(oracle, began);
    return legal;
}

static void write_done(uint64_t offset, uint64_t len, uint32_t value, bool durable)
{
    uint64_t began = oracle_write_begin(oracle, offset, len, value);
    oracle_write_end(oracle, offset, len, began, ORACLE_DONE, durable);
}

static void flush(void)
{
    uint64_t began = oracle_flush_begin(oracle);
    oracle_flush_done(oracle, began);
}

START_TEST(a_finished_write_is_all_there_is)
{
    ck_assert(sees(0, DISK_BYTES, ORACLE_ZERO));
    write_done(1000, 5000, 7, false);
    ck_assert(sees(1000, 5000, 7));
    ck_assert(!sees(1000, 512, ORACLE_ZERO));
    ck_assert(!sees(1000, 5001, 7));
    ck_assert(sees(0, 1000, ORACLE_ZERO) && sees(6000, 100, ORACLE_ZERO));
}
END_TEST

START_TEST(strangers_are_recognised)
{
    uint8_t buf[512];
    write_done(0, 512, 7, false);
    oracle_pattern(12, 4096, buf, sizeof(buf));
    uint64_t began = oracle_read_begin(oracle);
    ck_assert(!oracle_read_end(oracle, began, 0, buf, sizeof(buf), why, sizeof(why)));
    ck_assert_msg(strstr(why, "what write 12 put at 0x1000") != NULL, "%s", why);
    oracle_pattern(7, 0, buf, sizeof(buf));
    buf[511] ^= 1;
    began = oracle_read_begin(oracle);
    ck_assert(!oracle_read_end(oracle, began, 0, buf, sizeof(buf), why, sizeof(why)));
}
END_TEST

START_TEST(writes_that_overlap_in_time_go_either_way_by_sector)
{
    uint64_t first = oracle_write_begin(oracle, 0, 1024, 1);
    uint64_t second = oracle_write_begin(oracle, 0, 1024, 2);
    ck_assert(may_see(0, 512, ORACLE_ZERO) && may_see(0, 512, 1) && may_see(0, 512, 2));
    oracle_write_end(oracle, 0, 1024, first, ORACLE_DONE, false);
    ck_assert(!may_see(0, 512, ORACLE_ZERO) && may_see(0, 512, 1) && may_see(0, 512, 2));
    oracle_write_end(oracle, 0, 1024, second, ORACLE_DONE, false);
    ck_assert(may_see(0, 512, 1) && may_see(512, 512, 1));
    /* A read settles it, each sector for itself. */
    ck_assert(sees(0, 512, 1));
    ck_assert(sees(512, 512, 2));
    ck_assert(!sees(0, 512, 2));
    ck_assert(!sees(512, 512, 1));
}
END_TEST

START_TEST(a_sector_is_not_mixed)
{
    uint8_t buf[512];
    uint64_t first = oracle_write_begin(oracle, 0, 512, 1);
    uint64_t second = oracle_write_begin(oracle, 0, 512, 2);
    oracle_pattern(1, 0, buf, 256);
    oracle_pattern(2, 256, buf + 256, 256);
    uint64_t began = oracle_read_begin(oracle);
    ck_assert(!oracle_read_end(oracle, began, 0, buf, sizeof(buf), why, sizeof(why)));
    oracle_write_end(oracle, 0, 512, first, ORACLE_DONE, false);
    oracle_write_end(oracle, 0, 512, second, ORACLE_DONE, false);
}
END_TEST

START_TEST(a_read_sees_what_was_there_at_any_moment_of_it)
{
    write_done(0, 512, 1, false);
    uint64_t early = oracle_read_begin(oracle);
    uint64_t other = oracle_read_begin(oracle);
    write_done(0, 512, 2, false);
    uint64_t late = oracle_read_begin(oracle);
    ck_assert(sees_since(early, 0, 512, 1));
    ck_assert(sees_since(other, 0, 512, 2));
    ck_assert(!sees_since(late, 0, 512, 1));
}
END_TEST

START_TEST(failed_writes_may_have_happened_and_refused_ones_not)
{
    write_done(0, 1024, 1, false);
    uint64_t began = oracle_write_begin(oracle, 0, 1024, 2);
    oracle_write_end(oracle, 0, 1024, began, ORACLE_MAYBE, false);
    began = oracle_write_begin(oracle, 0, 1024, 3);
    oracle_write_end(oracle, 0, 1024, began, ORACLE_NOTHING, false);
    ck_assert(!may_see(0, 512, 3));
    ck_assert(sees(0, 512, 1));
    ck_assert(sees(512, 512, 2));
    ck_assert(!sees(0, 512, 2));
}
END_TEST

START_TEST(a_power_cut_goes_back_to_the_last_flush)
{
    write_done(0, 512, 1, false);
    write_done(0, 512, 2, false);
    flush();
    write_done(0, 512, 3, false);
    uint64_t running = oracle_write_begin(oracle, 0, 512, 4);
    (void)running;
    oracle_power_cut(oracle);
    ck_assert(!may_see(0, 512, 1) && !may_see(0, 512, ORACLE_ZERO));
    ck_assert(may_see(0, 512, 2) && may_see(0, 512, 3) && may_see(0, 512, 4));
    /* Once seen, it is what the disk holds: the next power cut keeps it. */
    ck_assert(sees(0, 512, 3));
    oracle_power_cut(oracle);
    ck_assert(!may_see(0, 512, 2) && may_see(0, 512, 3));
}
END_TEST

START_TEST(a_flush_covers_what_had_ended_when_it_began)
{
    uint64_t running = oracle_write_begin(oracle, 0, 512, 1);
    uint64_t began = oracle_flush_begin(oracle);
    oracle_write_end(oracle, 0, 512, running, ORACLE_DONE, false);
    oracle_flush_done(oracle, began);
    oracle_power_cut(oracle);
    ck_assert(may_see(0, 512, ORACLE_ZERO) && may_see(0, 512, 1));
}
END_TEST

START_TEST(a_durable_write_rules_out_what_went_before_in_its_range)
{
    write_done(0, 1024, 1, false);
    write_done(0, 512, 2, true);
    oracle_power_cut(oracle);
    ck_assert(may_see(0, 512, 2) && !may_see(0, 512, 1) && !may_see(0, 512, ORACLE_ZERO));
    ck_assert(may_see(512, 512, 1) && may_see(512, 512, ORACLE_ZERO));
}
END_TEST

START_TEST(a_durable_write_rules_out_nothing_that_ran_beside_it)
{
    uint64_t beside = oracle_write_begin(oracle, 0, 512, 1);
    write_done(0, 512, 2, true);
    oracle_write_end(oracle, 0, 512, beside, ORACLE_DONE, false);
    oracle_power_cut(oracle);
    ck_assert(may_see(0, 512, 1) && may_see(0, 512, 2) && !may_see(0, 512, ORACLE_ZERO));
}
END_TEST

START_TEST(an_overlay_begins_as_its_backing_file_ends)
{
    write_done(0, 1024, 1, false);
    uint64_t first = oracle_write_begin(oracle, 4096, 512, 2);
    uint64_t second = oracle_write_begin(oracle, 4096, 512, 3);
    oracle_write_end(oracle, 4096, 512, first, ORACLE_DONE, false);
    oracle_write_end(oracle, 4096, 512, second, ORACLE_DONE, false);
    struct oracle *base = oracle;
    oracle = oracle_create(2U * DISK_BYTES);
    oracle_inherit(oracle, base);
    oracle_free(base);
    uint64_t from, to;
    ck_assert(oracle_next_touched(oracle, 0, &from, &to) && from == 0 && to == 1024);
    ck_assert(oracle_next_touched(oracle, 1024, &from, &to) && from == 4096 && to == 4608);
    ck_assert(!oracle_next_touched(oracle, 4608, &from, &to));
    ck_assert(sees(0, 1024, 1));
    ck_assert(may_see(4096, 512, 2) && may_see(4096, 512, 3) && !may_see(4096, 512, ORACLE_ZERO));
    ck_assert(sees(DISK_BYTES, 4096, ORACLE_ZERO));
    oracle_power_cut(oracle);
    ck_assert(!may_see(0, 512, ORACLE_ZERO));
}
END_TEST

START_TEST(many_small_writes_stay_exact)
{
    uint32_t model[512];
    uint64_t state = 1;
    memset(model, 0, sizeof(model));
    for (uint32_t value = 1; value < 4000; value++) {
        state = state * 6364136223846793005ULL + 1442695040888963407ULL;
        uint64_t offset = (state >> 33) % 512;
        uint64_t len = 1 + (state >> 53) % (512 - offset);
        write_done(offset, len, value, false);
        for (uint64_t i = offset; i < offset + len; i++) {
            model[i] = value;
        }
        if (value % 50 == 0) {
            for (uint64_t i = 0; i < 512; i++) {
                ck_assert(sees(i, 1, model[i]));
            }
            flush();
            oracle_power_cut(oracle);
        }
    }
}
END_TEST

int main(void)
{
    Suite *suite = suite_create("simulator/oracle");
    TCase *tcase = tcase_create("oracle");
    tcase_add_checked_fixture(tcase, setup, teardown);
    tcase_add_test(tcase, a_finished_write_is_all_there_is);
    tcase_add_test(tcase, strangers_are_recognised);
    tcase_add_test(tcase, writes_that_overlap_in_time_go_either_way_by_sector);
    tcase_add_test(tcase, a_sector_is_not_mixed);
    tcase_add_test(tcase, a_read_sees_what_was_there_at_any_moment_of_it);
    tcase_add_test(tcase, failed_writes_may_have_happened_and_refused_ones_not);
    tcase_add_test(tcase, a_power_cut_goes_back_to_the_last_flush);
    tcase_add_test(tcase, a_flush_covers_what_had_ended_when_it_began);
    tcase_add_test(tcase, a_durable_write_rules_out_what_went_before_in_its_range);
    tcase_add_test(tcase, a_durable_write_rules_out_nothing_that_ran_beside_it);
    tcase_add_test(tcase, an_overlay_begins_as_its_backing_file_ends);
    tcase_add_test(tcase, many_small_writes_stay_exact);
    suite_add_tcase(suite, tcase);
    return test_suite_run(suite);
}
