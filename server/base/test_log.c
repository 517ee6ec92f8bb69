/* SPDX-License-Identifier: BSD-2-Clause */
/* Log lines as they leave: for people, for programs, for the journal; and how many of them. */
#include <check.h>
#include <fcntl.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "base/limits.h"
#include "base/log.h"
#include "base/log_limit.h"
#include "base/testing.h"

/* What stderr was given while it was caught in a file. */
static char caught[1 << 20];
static int kept_stderr;
static int catching;

static void catch_stderr(void)
{
    char name[] = "/tmp/qcowd-test-XXXXXX";
    catching = mkstemp(name);
    ck_assert_int_ge(catching, 0);
    ck_assert_int_eq(unlink(name), 0);
    ck_assert_int_eq(fcntl(catching, F_SETFL, O_APPEND), 0);
    kept_stderr = dup(STDERR_FILENO);
    ck_assert_int_ge(dup2(catching, STDERR_FILENO), 0);
}

static unsigned release_stderr(void)
{
    unsigned lines = 0;
    ck_assert_int_ge(dup2(kept_stderr, STDERR_FILENO), 0);
    ssize_t len = pread(catching, caught, sizeof(caught) - 1, 0);
    ck_assert_int_ge((int)len, 0);
    caught[len] = '\0';
    for (const char *at = strchr(caught, '\n'); at; at = strchr(at + 1, '\n')) {
        lines++;
    }
    close(catching);
    close(kept_stderr);
    return lines;
}

START_TEST(json_is_escaped)
{
    log_set_output(LOG_FORMAT_JSON, LOG_TARGET_STDERR);
    catch_stderr();
    log_error("%s", "a \"quoted\" back\\slash, a\nline, \x7f, gr\xc3\xbc\xc3\x9f, bad \xc3(\xff");
    ck_assert_uint_eq(release_stderr(), 1);
    ck_assert_ptr_nonnull(
        strstr(caught, "\"level\":\"error\",\"message\":\"a \\\"quoted\\\" back\\\\slash, "
                       "a\\u000aline, \\u007f, gr\xc3\xbc\xc3\x9f, bad \\ufffd(\\ufffd\"}\n"));
    ck_assert_int_eq(strncmp(caught, "{\"time\":\"20", 11), 0);
}
END_TEST

START_TEST(json_has_fields_for_client_and_export)
{
    log_set_output(LOG_FORMAT_JSON, LOG_TARGET_STDERR);
    catch_stderr();
    log_client(LOG_LEVEL_WARNING, "127.0.0.1:99", "di\"sk", "said %u", 7U);
    ck_assert_uint_eq(release_stderr(), 1);
    ck_assert_ptr_nonnull(strstr(caught, "\"message\":\"said 7\",\"client\":\"127.0.0.1:99\","
                                         "\"export\":\"di\\\"sk\"}\n"));
}
END_TEST

/* The worst text there can be still leaves an object with its end, in one piece for a pipe. */
START_TEST(json_of_the_longest_message_is_whole)
{
    char control[5000];
    memset(control, '\x01', sizeof(control) - 1);
    control[sizeof(control) - 1] = '\0';
    log_set_output(LOG_FORMAT_JSON, LOG_TARGET_STDERR);
    catch_stderr();
    log_client(LOG_LEVEL_ERROR, control, control, "%s", control);
    ck_assert_uint_eq(release_stderr(), 1);
    size_t len = strlen(caught);
    ck_assert_uint_le(len, 4096);
    ck_assert_str_eq(caught + len - 9, "\\u0001\"}\n");
}
END_TEST

START_TEST(text_stays_one_line)
{
    log_set_output(LOG_FORMAT_TEXT, LOG_TARGET_STDERR);
    catch_stderr();
    log_error("%s: no", "two\nlines\x1b[2J");
    log_client(LOG_LEVEL_WARNING, "unix", "disk", "left");
    ck_assert_uint_eq(release_stderr(), 2);
    ck_assert_str_eq(caught,
                     "qcowd: error: two?lines?[2J: no\nqcowd: warning: client unix: left\n");
}
END_TEST

START_TEST(the_journal_is_given_priorities)
{
    struct stat status;
    char stream[64];
    catch_stderr();
    ck_assert_int_eq(fstat(STDERR_FILENO, &status), 0);
    snprintf(stream, sizeof(stream), "%llu:%llu", (unsigned long long)status.st_dev,
             (unsigned long long)status.st_ino);
    setenv("JOURNAL_STREAM", stream, 1);
    log_set_output(LOG_FORMAT_TEXT, LOG_TARGET_STDERR);
    log_error("one");
    log_warning("two");
    setenv("JOURNAL_STREAM", "1:1", 1); /* stderr was redirected since */
    log_set_output(LOG_FORMAT_TEXT, LOG_TARGET_STDERR);
    log_error("three");
    unsetenv("JOURNAL_STREAM");
    release_stderr();
    ck_assert_str_eq(caught, "<3>error: one\n<4>warning: two\nqcowd: error: three\n");
}
END_TEST

START_TEST(limit_counts_by_kind_and_window)
{
    static struct log_limit limit;
    static const char flood[] = "flood";
    static const char other[] = "other";
    struct log_kind *kind;
    struct log_kind told;
    const uint64_t window_ns = LIMIT_LOG_WINDOW_MS * 1000000ULL;
    uint64_t now_ns = 5;
    for (unsigned i = 1; i <= 10; i++) {
        enum log_verdict expected = i < 3 ? LOG_SHOW : i == 3 ? LOG_SHOW_LAST : LOG_HOLD_BACK;
        ck_assert_int_eq((int)log_limit_ask(&limit, flood, 3, now_ns++, &kind), (int)expected);
    }
    ck_assert_int_eq((int)log_limit_ask(&limit, other, 3, now_ns, &kind), (int)LOG_SHOW);
    ck_assert(!log_limit_take(&limit, false, now_ns, &told));
    now_ns += window_ns;
    ck_assert(log_limit_take(&limit, false, now_ns, &told));
    ck_assert_uint_eq(told.held_back, 7);
    ck_assert_ptr_eq(told.format, flood);
    ck_assert(!log_limit_take(&limit, true, now_ns, &told));
    ck_assert_int_eq((int)log_limit_ask(&limit, flood, 3, now_ns, &kind), (int)LOG_SHOW);
}
END_TEST

START_TEST(limit_bears_any_number_of_kinds)
{
    static struct log_limit limit;
    static char formats[4 * LOG_KINDS_MAX];
    struct log_kind *kind;
    uint64_t held_back = 0;
    struct log_kind told;
    for (unsigned round = 0; round < 3; round++) {
        for (unsigned i = 0; i < sizeof(formats); i++) {
            log_limit_ask(&limit, &formats[i], 1, 1, &kind);
        }
    }
    while (log_limit_take(&limit, true, 1, &told)) {
        held_back += told.held_back;
    }
    ck_assert_uint_eq(held_back, 3 * sizeof(formats) - LOG_KINDS_MAX);
}
END_TEST

#define FLOOD_THREADS 4
#define FLOOD_LINES   3000

static void *flood(void *arg)
{
    (void)arg;
    for (unsigned i = 0; i < FLOOD_LINES; i++) {
        log_client(LOG_LEVEL_WARNING, "192.0.2.1:4000", NULL, "misbehaves, %u", i);
    }
    return NULL;
}

/* Threads at once: lines are whole, a flood is bounded, and all of it is accounted for. */
START_TEST(floods_of_clients_are_bounded_and_counted)
{
    pthread_t threads[FLOOD_THREADS];
    log_set_output(LOG_FORMAT_TEXT, LOG_TARGET_STDERR);
    catch_stderr();
    for (unsigned i = 0; i < FLOOD_THREADS; i++) {
        ck_assert_int_eq(pthread_create(&threads[i], NULL, flood, NULL), 0);
    }
    for (unsigned i = 0; i < FLOOD_THREADS; i++) {
        pthread_join(threads[i], NULL);
    }
    for (unsigned i = 0; i < 200; i++) {
        log_error("the disk says no, %u", i);
    }
    log_tell_suppressed();
    unsigned lines = release_stderr();
    ck_assert_uint_eq(lines, LIMIT_LOG_CLIENT_LINES + 200 + 1);
    for (const char *line = caught; *line; line = strchr(line, '\n') + 1) {
        ck_assert_int_eq(strncmp(line, "qcowd: ", 7), 0);
    }
    char expected[100];
    snprintf(expected, sizeof(expected),
             "qcowd: warning: %u lines like this suppressed: client 192.0.2.1:4000: misbehaves, ",
             FLOOD_THREADS * FLOOD_LINES - LIMIT_LOG_CLIENT_LINES);
    ck_assert_ptr_nonnull(strstr(caught, expected));
    ck_assert_ptr_nonnull(strstr(caught, " (more lines like this are only counted, for 10 s)\n"));
}
END_TEST

int main(void)
{
    Suite *suite = suite_create("log");
    TCase *tcase = tcase_create("log");
    tcase_add_test(tcase, json_is_escaped);
    tcase_add_test(tcase, json_has_fields_for_client_and_export);
    tcase_add_test(tcase, json_of_the_longest_message_is_whole);
    tcase_add_test(tcase, text_stays_one_line);
    tcase_add_test(tcase, the_journal_is_given_priorities);
    tcase_add_test(tcase, limit_counts_by_kind_and_window);
    tcase_add_test(tcase, limit_bears_any_number_of_kinds);
    tcase_add_test(tcase, floods_of_clients_are_bounded_and_counted);
    suite_add_tcase(suite, tcase);
    return test_suite_run(suite);
}
