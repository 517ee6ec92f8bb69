/* SPDX-License-Identifier: BSD-2-Clause */
/* Heads, good and bad, whole and by a byte at a time. */
#include <check.h>
#include <string.h>

#include "base/check.h"
#include "base/testing.h"
#include "metrics/http_request.h"

static enum http_verdict take_in_steps(struct http_request *request, const char *text, size_t step)
{
    enum http_verdict verdict = HTTP_MORE;
    size_t len = strlen(text);

    memset(request, 0, sizeof(*request));
    for (size_t at = 0; at < len && verdict == HTTP_MORE; at += step) {
        size_t got = MIN_OF(MIN_OF(step, len - at), http_request_room(request));
        memcpy(request->head + request->len, text + at, got);
        verdict = http_request_take(request, got);
    }
    return verdict;
}

START_TEST(heads_are_judged_alike_however_they_come)
{
    static const struct {
        const char *text;
        enum http_verdict verdict;
    } cases[] = {
        {"GET /metrics HTTP/1.1\r\nHost: x\r\n\r\n", HTTP_METRICS},
        {"GET /metrics HTTP/1.0\r\n\r\n", HTTP_METRICS},
        {"GET /metrics?a=b HTTP/1.1\nHost: x\n\n", HTTP_METRICS},
        {"GET / HTTP/1.1\r\n\r\n", HTTP_FRONT_PAGE},
        {"GET /? HTTP/1.1\r\n\r\n", HTTP_FRONT_PAGE},
        {"GET /metricsx HTTP/1.1\r\n\r\n", HTTP_NOT_FOUND},
        {"GET /metric HTTP/1.1\r\n\r\n", HTTP_NOT_FOUND},
        {"GET  HTTP/1.1\r\n\r\n", HTTP_BAD},
        {"POST /metrics HTTP/1.1\r\n\r\n", HTTP_NOT_ALLOWED},
        {"G /metrics HTTP/1.1\r\n\r\n", HTTP_NOT_ALLOWED},
        {"GET /metrics HTTP/2\r\n\r\n", HTTP_BAD},
        {"GET /metrics\r\n\r\n", HTTP_BAD},
        {" /metrics HTTP/1.1\r\n\r\n", HTTP_BAD},
        {"NBDMAGICIHAVEOPT\r\n\r\n", HTTP_BAD},
        {"GET /metrics HTTP/1.1\r\nHost: x\r\n", HTTP_MORE},
        {"GET", HTTP_MORE},
    };
    static struct http_request request;

    for (size_t i = 0; i < ARRAY_LEN(cases); i++) {
        for (size_t step = 1; step < 50; step += 7) {
            ck_assert_msg(take_in_steps(&request, cases[i].text, step) == cases[i].verdict,
                          "case %zu in steps of %zu", i, step);
        }
    }
}
END_TEST

START_TEST(head_asks_for_no_body)
{
    static struct http_request request;

    ck_assert_int_eq(take_in_steps(&request, "HEAD /metrics HTTP/1.1\r\n\r\n", 9), HTTP_METRICS);
    ck_assert(request.head_only);
    ck_assert_int_eq(take_in_steps(&request, "GET /metrics HTTP/1.1\r\n\r\n", 9), HTTP_METRICS);
    ck_assert(!request.head_only);
}
END_TEST

START_TEST(a_head_without_end_is_too_long)
{
    static struct http_request request;

    memset(&request, 0, sizeof(request));
    memset(request.head, 'a', sizeof(request.head));
    ck_assert_int_eq(http_request_take(&request, sizeof(request.head) - 1), HTTP_MORE);
    ck_assert_uint_eq(http_request_room(&request), 1);
    ck_assert_int_eq(http_request_take(&request, 1), HTTP_TOO_LONG);
}
END_TEST

int main(void)
{
    Suite *suite = suite_create("http request");
    TCase *cases = tcase_create("heads");

    tcase_add_test(cases, heads_are_judged_alike_however_they_come);
    tcase_add_test(cases, head_asks_for_no_body);
    tcase_add_test(cases, a_head_without_end_is_too_long);
    suite_add_tcase(suite, cases);
    return test_suite_run(suite);
}
