/* SPDX-License-Identifier: BSD-2-Clause */
/* The set against a plain array of flags, with collisions, growth and removals. */
#include "qcow2/metamap.h"

#include <check.h>
#include <stdlib.h>
#include <string.h>

#include "base/testing.h"

#define CLUSTERS 5000U

static uint64_t random_state = 1;

static uint64_t random_below(uint64_t bound)
{
    random_state = random_state * 6364136223846793005ULL + 1442695040888963407ULL;
    return (random_state >> 33) % bound;
}

START_TEST(behaves_as_a_set)
{
    struct metamap map;
    static bool model[CLUSTERS];
    uint64_t count = 0;

    memset(model, 0, sizeof(model));
    ck_assert_int_eq(metamap_init(&map), 0);
    for (int step = 0; step < 40000; step++) {
        /* Many removals at first, so that gaps are closed while the table is small; then growth. */
        uint64_t cluster = random_below(step < 20000 ? 200 : CLUSTERS);
        if (random_below(step < 20000 ? 2 : 4) == 0) {
            metamap_remove(&map, cluster);
            count -= model[cluster];
            model[cluster] = false;
        } else {
            ck_assert_int_eq(metamap_add(&map, cluster), model[cluster]);
            count += !model[cluster];
            model[cluster] = true;
        }
        ck_assert_uint_eq(map.count, count);
        uint64_t probe = random_below(CLUSTERS);
        ck_assert_int_eq(metamap_contains(&map, probe), model[probe]);
    }
    for (uint64_t i = 0; i < CLUSTERS; i++) {
        ck_assert_int_eq(metamap_contains(&map, i), model[i]);
    }
    ck_assert(!metamap_contains(&map, UINT64_MAX >> 9));
    metamap_free(&map);
    ck_assert_ptr_null(map.slots);
}
END_TEST

START_TEST(finds_the_first_in_a_range)
{
    struct metamap map;
    ck_assert_int_eq(metamap_init(&map), 0);
    ck_assert_uint_eq(metamap_first_in(&map, 0, 10), 10);
    metamap_add(&map, 0);
    metamap_add(&map, 7);
    metamap_add(&map, 10);
    ck_assert_uint_eq(metamap_first_in(&map, 0, 10), 0);
    ck_assert_uint_eq(metamap_first_in(&map, 1, 10), 7);
    ck_assert_uint_eq(metamap_first_in(&map, 8, 2), 10);
    ck_assert_uint_eq(metamap_first_in(&map, 8, 3), 10);
    ck_assert_uint_eq(metamap_first_in(&map, 11, 5), 16);
    ck_assert_uint_eq(metamap_first_in(&map, 3, 0), 3);
    metamap_free(&map);
}
END_TEST

int main(void)
{
    Suite *suite = suite_create("metamap");
    TCase *tcase = tcase_create("metamap");
    tcase_add_test(tcase, behaves_as_a_set);
    tcase_add_test(tcase, finds_the_first_in_a_range);
    suite_add_tcase(suite, tcase);
    return test_suite_run(suite);
}
