/* SPDX-License-Identifier: BSD-2-Clause */
/* The page, line by line. */
#include <check.h>
#include <stdlib.h>
#include <string.h>

#include "base/testing.h"
#include "export/statistics.h"
#include "metrics/exposition.h"

static char *page_of(const struct server_statistics *statistics)
{
    size_t len;
    char *page = exposition(statistics, &len);
    ck_assert_ptr_nonnull(page);
    ck_assert_uint_eq(strlen(page), len);
    ck_assert_int_eq(page[len - 1], '\n');
    return page;
}

static void expect_line(const char *page, const char *line)
{
    const char *found = strstr(page, line);
    ck_assert_msg(found && (found == page || found[-1] == '\n') && found[strlen(line)] == '\n',
                  "there is no line %s in\n%s", line, page);
}

START_TEST(values_stand_behind_their_labels)
{
    struct export_statistics export = {.name = strdup("vm \"1\"\\\n"), .size_bytes = 1 << 20};
    struct server_statistics statistics = {
        .exports = &export, .export_count = 1, .loop_count = 1, .connections = 3};

    export.image.free_bytes = UINT64_MAX;
    export.image.commit_ns = 1500000000;
    export.counters.in_flight = 2;
    command_counters_add(&export.counters.commands[COUNTED_WRITE], false, 4096, 5000);
    command_counters_add(&export.counters.commands[COUNTED_WRITE], true, 4096, UINT64_MAX / 2);
    statistics.loops[0].cpu_ns = 42;
    char *page = page_of(&statistics);
    expect_line(page, "qcowd_connections 3");
    expect_line(page, "qcowd_loop_cpu_seconds_total{loop=\"0\"} 0.000000042");
    expect_line(page, "# TYPE qcowd_requests_total counter");
    expect_line(page, "qcowd_requests_total{export=\"vm \\\"1\\\"\\\\\\n\",command=\"write\"} 2");
    expect_line(page, "qcowd_requests_total{export=\"vm \\\"1\\\"\\\\\\n\",command=\"read\"} 0");
    expect_line(page,
                "qcowd_request_errors_total{export=\"vm \\\"1\\\"\\\\\\n\",command=\"write\"} 1");
    expect_line(page,
                "qcowd_request_bytes_total{export=\"vm \\\"1\\\"\\\\\\n\",command=\"write\"} 4096");
    expect_line(page, "qcowd_request_duration_seconds_bucket{export=\"vm \\\"1\\\"\\\\\\n\","
                      "command=\"write\",le=\"0.000004\"} 0");
    expect_line(page, "qcowd_request_duration_seconds_bucket{export=\"vm \\\"1\\\"\\\\\\n\","
                      "command=\"write\",le=\"0.000008\"} 1");
    expect_line(page, "qcowd_request_duration_seconds_bucket{export=\"vm \\\"1\\\"\\\\\\n\","
                      "command=\"write\",le=\"+Inf\"} 2");
    expect_line(page, "qcowd_request_duration_seconds_count{export=\"vm \\\"1\\\"\\\\\\n\","
                      "command=\"write\"} 2");
    expect_line(page, "qcowd_requests_in_flight{export=\"vm \\\"1\\\"\\\\\\n\"} 2");
    expect_line(page,
                "qcowd_image_commit_seconds_total{export=\"vm \\\"1\\\"\\\\\\n\"} 1.500000000");
    ck_assert_ptr_null(strstr(page, "qcowd_image_host_free_bytes{"));
    free(page);
    free(export.name);
}
END_TEST

START_TEST(the_empty_name_has_a_label)
{
    struct export_statistics export = {.name = strdup("")};
    struct server_statistics statistics = {.exports = &export, .export_count = 1};
    char *page = page_of(&statistics);

    expect_line(page, "qcowd_image_host_free_bytes{export=\"default\"} 0");
    free(page);
    free(export.name);
}
END_TEST

START_TEST(quantiles_are_ends_of_steps)
{
    struct command_counters counters = {0};

    ck_assert_uint_eq(counters_quantile_ns(&counters, 500), 0);
    for (unsigned i = 0; i < 99; i++) {
        command_counters_add(&counters, false, 0, 100);
    }
    command_counters_add(&counters, false, 0, 20000);
    ck_assert_uint_eq(counters_quantile_ns(&counters, 500), 4000);
    ck_assert_uint_eq(counters_quantile_ns(&counters, 990), 4000);
    ck_assert_uint_eq(counters_quantile_ns(&counters, 999), 32000);
}
END_TEST

int main(void)
{
    Suite *suite = suite_create("exposition");
    TCase *cases = tcase_create("page");

    tcase_add_test(cases, values_stand_behind_their_labels);
    tcase_add_test(cases, the_empty_name_has_a_label);
    tcase_add_test(cases, quantiles_are_ends_of_steps);
    suite_add_tcase(suite, cases);
    return test_suite_run(suite);
}
