/* SPDX-License-Identifier: BSD-2-Clause */
/* The main() of a test program: a table of tests, run as one suite. */
#ifndef QCOWD_PROTO_TEST_MAIN_H
#define QCOWD_PROTO_TEST_MAIN_H

#include <check.h>
#include <stddef.h>
#include <stdlib.h>

#include "base/testing.h"

static inline int run_tests(const char *name, const TTest *const *tests, size_t count)
{
    Suite *suite = suite_create(name);
    TCase *cases = tcase_create(name);

    tcase_set_timeout(cases, 30);
    for (size_t i = 0; i < count; i++) {
        tcase_add_test(cases, tests[i]);
    }
    suite_add_tcase(suite, cases);
    return test_suite_run(suite);
}

#endif
