/* SPDX-License-Identifier: BSD-2-Clause */
#include "sched/spin.h"

#include <check.h>
#include <stdlib.h>

#include "base/testing.h"

/* How many of so many waits spin, each of which ends after took_ns. */
static unsigned spins_in(struct spin *spin, unsigned waits, uint64_t took_ns)
{
    unsigned spins = 0;
    for (unsigned i = 0; i < waits; i++) {
        if (spin_wanted(spin)) {
            spins++;
            spin_ended(spin, MIN_OF(took_ns, (uint64_t)SPIN_NS));
        }
    }
    return spins;
}

START_TEST(test_one_in_flight_spins_always)
{
    struct spin spin = {0};
    ck_assert_uint_eq(spins_in(&spin, 1000, 15000), 1000);
    ck_assert_uint_eq(spins_in(&spin, 1000, SPIN_SOON_NS), 1000);
}
END_TEST

START_TEST(test_an_idle_loop_sleeps)
{
    struct spin spin = {0};
    ck_assert_uint_le(spins_in(&spin, 1000, SPIN_NS), 7 + 1000 / SPIN_SKIPS_MAX);
    ck_assert_uint_le(spins_in(&spin, 65000, SPIN_NS), 1000);
}
END_TEST

START_TEST(test_requests_that_come_at_once_are_let_gather)
{
    struct spin spin = {0};
    ck_assert_uint_le(spins_in(&spin, 65000, SPIN_SOON_NS - 1), 1008 + SPIN_SOON_MAX);
}
END_TEST

/* A client with one in flight that is quick now and then is not taken for one with many. */
START_TEST(test_some_that_come_at_once_are_no_sign_of_many)
{
    struct spin spin = {0};
    for (unsigned i = 0; i < 1000; i++) {
        ck_assert(spin_wanted(&spin));
        spin_ended(&spin, i % SPIN_SOON_MAX == 0 ? 10000 : SPIN_SOON_NS - 1);
    }
}
END_TEST

START_TEST(test_it_begins_again_when_it_is_worth_while)
{
    struct spin spin = {0};
    spins_in(&spin, 65000, SPIN_NS);
    ck_assert_uint_ge(spins_in(&spin, SPIN_SKIPS_MAX + 1000, 15000), 1000);
}
END_TEST

int main(void)
{
    Suite *suite = suite_create("spin");
    TCase *tc = tcase_create("spin");
    tcase_add_test(tc, test_one_in_flight_spins_always);
    tcase_add_test(tc, test_an_idle_loop_sleeps);
    tcase_add_test(tc, test_requests_that_come_at_once_are_let_gather);
    tcase_add_test(tc, test_some_that_come_at_once_are_no_sign_of_many);
    tcase_add_test(tc, test_it_begins_again_when_it_is_worth_while);
    suite_add_tcase(suite, tc);
    return test_suite_run(suite);
}
