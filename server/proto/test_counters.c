/* SPDX-License-Identifier: BSD-2-Clause */
/* Steps of the histogram, and what counts as what. */
#include <check.h>
#include <string.h>

#include "base/testing.h"
#include "proto/counters.h"
#include "proto/wire.h"

START_TEST(a_time_falls_into_the_first_step_that_reaches_it)
{
    for (unsigned step = 0; step < COUNTED_STEPS; step++) {
        struct command_counters counters = {0};
        uint64_t end_ns = counted_step_end_ns(step);
        command_counters_add(&counters, false, 1, end_ns);
        ck_assert_uint_eq(counters.took[step], 1);
        if (step > 0) {
            command_counters_add(&counters, false, 1, counted_step_end_ns(step - 1) + 1);
            ck_assert_uint_eq(counters.took[step], 2);
        }
    }
}
END_TEST

START_TEST(bytes_are_those_that_arrived)
{
    struct command_counters counters = {0};

    command_counters_add(&counters, false, 4096, 0);
    command_counters_add(&counters, true, 512, 10);
    ck_assert_uint_eq(counters.requests, 2);
    ck_assert_uint_eq(counters.errors, 1);
    ck_assert_uint_eq(counters.bytes, 4096);
    ck_assert_uint_eq(counters.took_ns, 10);
    ck_assert_uint_eq(counters.took[0], 2);
}
END_TEST

START_TEST(every_command_has_a_name_and_a_place)
{
    static const uint16_t types[] = {NBD_CMD_READ, NBD_CMD_WRITE,        NBD_CMD_FLUSH,
                                     NBD_CMD_TRIM, NBD_CMD_WRITE_ZEROES, NBD_CMD_BLOCK_STATUS,
                                     NBD_CMD_CACHE};

    for (unsigned i = 0; i < COUNTED_COMMANDS; i++) {
        ck_assert_uint_eq(counted_command_of(types[i]), i);
        for (unsigned j = 0; j < i; j++) {
            ck_assert_str_ne(counted_command_name(i), counted_command_name(j));
        }
    }
    ck_assert_uint_eq(counted_command_of(NBD_CMD_DISC), COUNTED_COMMANDS);
    ck_assert_uint_eq(counted_command_of(999), COUNTED_COMMANDS);
}
END_TEST

int main(void)
{
    Suite *suite = suite_create("counters");
    TCase *cases = tcase_create("counters");

    tcase_add_test(cases, a_time_falls_into_the_first_step_that_reaches_it);
    tcase_add_test(cases, bytes_are_those_that_arrived);
    tcase_add_test(cases, every_command_has_a_name_and_a_place);
    suite_add_tcase(suite, cases);
    return test_suite_run(suite);
}
