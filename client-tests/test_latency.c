/* SPDX-License-Identifier: BSD-2-Clause */
/* The histogram against sorted values. */
#include <check.h>
#include <stdlib.h>

#include "base/check.h"
#include "base/testing.h"
#include "latency.h"

START_TEST(nothing_takes_no_time)
{
    static const struct latency none;

    ck_assert_uint_eq(latency_quantile_ns(&none, 500), 0);
    ck_assert_uint_eq(latency_quantile_ns(&none, 1000), 0);
}
END_TEST

START_TEST(one_value_is_every_quantile)
{
    static const uint64_t values[] = {0,  1,    15,        16,         17,        31,
                                      32, 1000, 123456789, 1ULL << 40, UINT64_MAX};

    for (size_t i = 0; i < ARRAY_LEN(values); i++) {
        struct latency *latency = calloc(1, sizeof(*latency));
        ck_assert_ptr_nonnull(latency);
        latency_add(latency, values[i]);
        ck_assert_uint_eq(latency->max_ns, values[i]);
        if (values[i] < 1ULL << 45) { /* hours: where the last bucket ends does not matter */
            ck_assert_uint_eq(latency_quantile_ns(latency, 1), values[i]);
        }
        ck_assert_uint_le(latency_quantile_ns(latency, 1000), values[i]);
        free(latency);
    }
}
END_TEST

static int compare(const void *a, const void *b)
{
    const uint64_t *left = a;
    const uint64_t *right = b;
    return (*left > *right) - (*left < *right);
}

START_TEST(quantiles_are_at_most_a_16th_above_the_sorted_values)
{
    static uint64_t values[5000];
    static struct latency latency;
    static const unsigned wanted[] = {1, 10, 250, 500, 900, 990, 999, 1000};
    uint64_t state = 12345;

    for (size_t i = 0; i < ARRAY_LEN(values); i++) {
        state = state * 6364136223846793005ULL + 1442695040888963407ULL;
        values[i] = (state >> 20) >> (i % 30);
        latency_add(&latency, values[i]);
    }
    qsort(values, ARRAY_LEN(values), sizeof(values[0]), compare);
    for (size_t i = 0; i < ARRAY_LEN(wanted); i++) {
        uint64_t true_ns = values[div_round_up(ARRAY_LEN(values) * wanted[i], 1000) - 1];
        uint64_t said_ns = latency_quantile_ns(&latency, wanted[i]);
        ck_assert_uint_ge(said_ns, true_ns);
        ck_assert_uint_le(said_ns, true_ns + true_ns / 16 + 1);
    }
}
END_TEST

int main(void)
{
    Suite *suite = suite_create("latency");
    TCase *cases = tcase_create("quantiles");

    tcase_add_test(cases, nothing_takes_no_time);
    tcase_add_test(cases, one_value_is_every_quantile);
    tcase_add_test(cases, quantiles_are_at_most_a_16th_above_the_sorted_values);
    suite_add_tcase(suite, cases);
    return test_suite_run(suite);
}
