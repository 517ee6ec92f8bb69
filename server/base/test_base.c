/* SPDX-License-Identifier: BSD-2-Clause */
/* Bytes, arithmetic, lists, texts and log lines: what everything else stands on. */
#include <check.h>
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

/* <check.h> is libcheck's; these are ours. */
#include "base/bytes.h"
#include "base/check.h"
#include "base/errtext.h"
#include "base/junit.h"
#include "base/list.h"
#include "base/log.h"
#include "base/testing.h"
#include "base/utf8.h"

START_TEST(bytes_are_big_endian_at_any_alignment)
{
    uint8_t bytes[11] = {0};
    put_be64(bytes + 3, 0x0102030405060708ULL);
    for (uint8_t i = 0; i < 8; i++) {
        ck_assert_uint_eq(bytes[3 + i], i + 1U);
    }
    ck_assert_uint_eq(get_be64(bytes + 3), 0x0102030405060708ULL);
    ck_assert_uint_eq(get_be32(bytes + 5), 0x03040506U);
    ck_assert_uint_eq(get_be16(bytes + 9), 0x0708U);
    put_be32(bytes + 1, 0xfffefdfcU);
    put_be16(bytes + 1, 0x1234U);
    ck_assert_uint_eq(get_be32(bytes + 1), 0x1234fdfcU);
}
END_TEST

START_TEST(arithmetic_notices_overflow)
{
    uint64_t out = 5;
    ck_assert(add_u64(UINT64_MAX - 1, 1, &out));
    ck_assert_uint_eq(out, UINT64_MAX);
    ck_assert(!add_u64(UINT64_MAX, 1, &out));
    ck_assert_uint_eq(out, UINT64_MAX);
    ck_assert(mul_u64(1ULL << 32, (1ULL << 32) - 1, &out));
    ck_assert_uint_eq(out, 0xffffffff00000000ULL);
    ck_assert(!mul_u64(1ULL << 32, 1ULL << 32, &out));

    ck_assert(range_inside(0, 10, 10));
    ck_assert(range_inside(10, 0, 10));
    ck_assert(!range_inside(11, 0, 10));
    ck_assert(!range_inside(5, 6, 10));
    ck_assert(!range_inside(5, UINT64_MAX, 10));
    ck_assert(!range_inside(UINT64_MAX, 2, 10));

    ck_assert(is_power_of_two(1) && is_power_of_two(1ULL << 63));
    ck_assert(!is_power_of_two(0) && !is_power_of_two(3));
    ck_assert_uint_eq(round_down_to(4097, 4096), 4096);
    ck_assert_uint_eq(round_up_to(4097, 4096), 8192);
    ck_assert_uint_eq(round_up_to(4096, 4096), 4096);
    ck_assert_uint_eq(round_up_to(0, 4096), 0);
    ck_assert_uint_eq(div_round_up(UINT64_MAX, 2), 1ULL << 63);
    ck_assert_uint_eq(div_round_up(9, 3), 3);
}
END_TEST

struct item {
    int value;
    struct list link;
};

static int sum_in_order(const struct list *head)
{
    int sum = 0;
    list_for_each(node, (struct list *)(uintptr_t)head) {
        sum = sum * 10 + list_entry(node, struct item, link)->value;
    }
    return sum;
}

START_TEST(lists_keep_order)
{
    struct list head = LIST_INIT(head), other;
    struct item items[6];
    list_init(&other);
    for (int i = 0; i < 6; i++) {
        items[i].value = i + 1;
        list_init(&items[i].link);
        ck_assert(!list_linked(&items[i].link));
    }
    ck_assert(list_empty(&head));
    ck_assert_ptr_null(list_pop_front(&head));
    list_push_back(&head, &items[0].link);
    list_push_back(&head, &items[1].link);
    list_push_front(&head, &items[2].link);
    list_insert_before(&items[1].link, &items[3].link);
    ck_assert_int_eq(sum_in_order(&head), 3142);
    list_splice_back(&other, &head);
    ck_assert(list_empty(&head));
    list_push_back(&head, &items[4].link);
    list_push_back(&head, &items[5].link);
    list_splice_back(&head, &other);
    list_splice_back(&head, &other); /* nothing in it */
    ck_assert_int_eq(sum_in_order(&head), 563142);
    list_for_each_safe(node, after, &head) {
        if (list_entry(node, struct item, link)->value % 2 == 0) {
            list_remove(node);
            list_remove(node); /* harmless */
        }
    }
    ck_assert_int_eq(sum_in_order(&head), 531);
    ck_assert_ptr_eq(list_pop_front(&head), &items[4].link);
    ck_assert(!list_linked(&items[4].link));
}
END_TEST

START_TEST(messages_are_cut_not_overrun)
{
    struct errtext err = {"old"};
    ck_assert_int_eq(err_set(&err, EINVAL, "%s is %d", "field", 7), -EINVAL);
    ck_assert_str_eq(err.text, "field is 7");
    err_prefix(&err, "%s: %d", "file", 3);
    ck_assert_str_eq(err.text, "file: 3: field is 7");
    ck_assert_int_eq(err_set(NULL, EIO, "unheard"), -EIO);
    /* What would break the line or speak to a terminal does not get through. */
    err_set(&err, EIO, "a\nb\x1b[2J\x7f\xc3\xa9");
    ck_assert_str_eq(err.text, "a?b?[2J?\xc3\xa9");
    err_prefix(&err, "c\r");
    ck_assert_str_eq(err.text, "c?: a?b?[2J?\xc3\xa9");
    err_prefix(NULL, "unheard");

    char longer[2 * sizeof(err.text)];
    memset(longer, 'x', sizeof(longer) - 1);
    longer[sizeof(longer) - 1] = '\0';
    err_set(&err, EIO, "%s", longer);
    ck_assert_uint_eq(strlen(err.text), sizeof(err.text) - 1);
    err_prefix(&err, "file");
    ck_assert_int_eq(strncmp(err.text, "file: xxx", 9), 0);
    ck_assert_uint_lt(strlen(err.text), sizeof(err.text));
    err_prefix(&err, "%s", longer);
    ck_assert_uint_eq(strlen(err.text), sizeof(err.text) - 1);
}
END_TEST

START_TEST(foreign_text_is_printable)
{
    char out[32];
    ck_assert_str_eq(err_sanitise(out, sizeof(out), "plain", 5), "plain");
    ck_assert_str_eq(err_sanitise(out, sizeof(out), "a\n\x1b\xff\\\0z", 7),
                     "a\\x0a\\x1b\\xff\\x5c\\x00z");
    ck_assert_str_eq(err_sanitise(out, 8, "12345", 5), "12345");
    ck_assert_str_eq(err_sanitise(out, 8, "12345678", 8), "1234...");
    ck_assert_str_eq(err_sanitise(out, 8, "\n\n\n", 3), "\\x0a...");
    ck_assert_str_eq(err_sanitise(out, 8, "", 0), "");
    /* Whatever the bytes and the room, it ends inside. */
    for (unsigned long room = 8; room < sizeof(out); room++) {
        for (unsigned long len = 0; len < 20; len++) {
            uint8_t foreign[20];
            for (unsigned long i = 0; i < len; i++) {
                foreign[i] = (uint8_t)((i * room) % 3 ? 'a' + i : i);
            }
            memset(out, 'Q', sizeof(out));
            err_sanitise(out, room, foreign, len);
            ck_assert_uint_lt(strnlen(out, sizeof(out)), room);
            ck_assert(room == sizeof(out) || out[room] == 'Q');
        }
    }
}
END_TEST

static char seen[2000];
static unsigned lines;

static void sink(enum log_level level, const char *line, void *arg)
{
    ck_assert_int_eq((int)level, *(int *)arg);
    snprintf(seen, sizeof(seen), "%s", line);
    lines++;
}

START_TEST(utf8_text)
{
    static const struct {
        const char *bytes;
        size_t len;
        bool text;
    } cases[] = {
        {"", 0, true},
        {"plain", 5, true},
        {"\xc3\xa4\xe2\x82\xac\xf0\x9f\x92\xbe", 9, true},
        {"\xf4\x8f\xbf\xbf", 4, true},
        {"a\0b", 3, false},
        {"\x80", 1, false},
        {"\xc0\x80", 2, false},             /* overlong */
        {"\xe0\x9f\xbf", 3, false},         /* overlong */
        {"\xf0\x8f\xbf\xbf", 4, false},     /* overlong */
        {"\xed\xa0\x80", 3, false},         /* a surrogate */
        {"\xf4\x90\x80\x80", 4, false},     /* past U+10FFFF */
        {"\xf8\x88\x80\x80\x80", 5, false}, /* five bytes */
        {"\xe2\x82\xac", 2, false},         /* cut */
        {"\xe2\x28\xa1", 3, false},
    };
    for (size_t i = 0; i < ARRAY_LEN(cases); i++) {
        ck_assert_msg(utf8_is_text(cases[i].bytes, cases[i].len) == cases[i].text, "case %zu", i);
    }
}
END_TEST

START_TEST(log_lines)
{
    int level = LOG_LEVEL_WARNING;
    log_set_sink(sink, &level);
    log_warning("%s: %d", "disk", 5);
    ck_assert_str_eq(seen, "qcowd: warning: disk: 5");
    log_info("too quiet");
    log_debug("too quiet");
    ck_assert_uint_eq(lines, 1);
    log_set_level(LOG_LEVEL_DEBUG);
    level = LOG_LEVEL_INFO;
    log_info("told");
    ck_assert_str_eq(seen, "qcowd: told");
    level = LOG_LEVEL_DEBUG;
    log_debug("told");
    ck_assert_str_eq(seen, "qcowd: debug: told");
    log_set_level(LOG_LEVEL_ERROR);
    log_warning("too quiet");
    ck_assert_uint_eq(lines, 3);
    level = LOG_LEVEL_ERROR;
    char longer[3000];
    memset(longer, 'y', sizeof(longer) - 1);
    longer[sizeof(longer) - 1] = '\0';
    log_error("%s", longer);
    ck_assert_uint_lt(strlen(seen), 1200);
    log_set_sink(NULL, NULL);
}
END_TEST

/* One write, one line, ended. */
START_TEST(log_goes_to_stderr)
{
    int ends[2];
    char line[200] = "";
    ck_assert_int_eq(pipe(ends), 0);
    int kept = dup(STDERR_FILENO);
    ck_assert_int_ge(kept, 0);
    ck_assert_int_ge(dup2(ends[1], STDERR_FILENO), 0);
    log_error("it is %s", "so");
    ck_assert_int_ge(dup2(kept, STDERR_FILENO), 0);
    ck_assert_int_gt((int)read(ends[0], line, sizeof(line) - 1), 0);
    ck_assert_str_eq(line, "qcowd: error: it is so\n");
    close(ends[0]);
    close(ends[1]);
    close(kept);
}
END_TEST

START_TEST(reports_are_xml_whatever_a_case_says)
{
    char path[] = "/tmp/qcowd-junit-XXXXXX";
    char text[512] = "";
    int fd = mkstemp(path);
    ck_assert_int_ge(fd, 0);

    FILE *report = junit_begin(path, "a \"suite\"");
    ck_assert_ptr_nonnull(report);
    junit_case(report, "good", 0.25, NULL);
    junit_case(report, "bad", 1, "1 < 2 && '\x01'\nend");
    ck_assert_int_eq(junit_end(report), 0);
    ck_assert_int_gt(read(fd, text, sizeof(text) - 1), 0);
    ck_assert_str_eq(text, "<?xml version=\"1.0\" encoding=\"UTF-8\"?>\n"
                           "<testsuite name=\"a &quot;suite&quot;\">\n"
                           "  <testcase name=\"good\" time=\"0.250\"/>\n"
                           "  <testcase name=\"bad\" time=\"1.000\"><failure message=\"1 &lt; 2 "
                           "&amp;&amp; '?'&#10;end\"/></testcase>\n"
                           "</testsuite>\n");
    close(fd);
    unlink(path);
    ck_assert_ptr_null(junit_begin("/no/such/directory/report.xml", "x"));
    report = junit_begin("/dev/full", "x");
    ck_assert_ptr_nonnull(report);
    ck_assert_int_eq(junit_end(report), -EIO);
}
END_TEST

int main(void)
{
    Suite *suite = suite_create("base");
    TCase *tcase = tcase_create("base");
    tcase_add_test(tcase, bytes_are_big_endian_at_any_alignment);
    tcase_add_test(tcase, arithmetic_notices_overflow);
    tcase_add_test(tcase, lists_keep_order);
    tcase_add_test(tcase, messages_are_cut_not_overrun);
    tcase_add_test(tcase, foreign_text_is_printable);
    tcase_add_test(tcase, utf8_text);
    tcase_add_test(tcase, log_lines);
    tcase_add_test(tcase, log_goes_to_stderr);
    tcase_add_test(tcase, reports_are_xml_whatever_a_case_says);
    suite_add_tcase(suite, tcase);
    return test_suite_run(suite);
}
