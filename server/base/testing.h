/* SPDX-License-Identifier: BSD-2-Clause */
/* What every unit test's main() ends with. */
#ifndef QCOWD_BASE_TESTING_H
#define QCOWD_BASE_TESTING_H

#include <check.h>
#include <stdlib.h>

/* Runs the suite and frees it. CK_VERBOSITY says how much is printed. What main() returns. */
static inline int test_suite_run(Suite *suite)
{
    SRunner *runner = srunner_create(suite);

    srunner_run_all(runner, CK_ENV);
    int failed = srunner_ntests_failed(runner);
    srunner_free(runner);
    return failed == 0 ? EXIT_SUCCESS : EXIT_FAILURE;
}

#endif
