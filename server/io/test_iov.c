/* SPDX-License-Identifier: BSD-2-Clause */
/* Every window and every copy over a scattered buffer, against the same bytes in one piece. */
#include "io/iov.h"

#include <check.h>
#include <stdlib.h>
#include <string.h>

#include "base/testing.h"

#define TOTAL 10U

static const char digits[] = "0123456789";
static char bytes[TOTAL];
static struct iovec scattered[5];

/* 0123456789 as "012", "", "3", "4567", "89". */
static void setup(void)
{
    static const size_t lengths[] = {3, 0, 1, 4, 2};
    size_t at = 0;
    memcpy(bytes, digits, TOTAL);
    for (int i = 0; i < 5; i++) {
        scattered[i] = (struct iovec){bytes + at, lengths[i]};
        at += lengths[i];
    }
}

START_TEST(windows)
{
    ck_assert_uint_eq(iov_total_bytes(scattered, 5), TOTAL);
    for (uint64_t skip = 0; skip <= TOTAL + 2; skip++) {
        for (size_t most = 1; most <= TOTAL + 2; most++) {
            for (int capacity = 1; capacity <= 5; capacity++) {
                struct iovec window[5];
                size_t len;
                int used = iov_window(scattered, 5, skip, window, capacity, most, &len);
                ck_assert_int_le(used, capacity);
                ck_assert_uint_le(len, most);
                ck_assert_uint_eq(iov_total_bytes(window, used), len);
                uint64_t at = skip;
                for (int i = 0; i < used; i++) {
                    ck_assert_int_eq(memcmp(window[i].iov_base, digits + at, window[i].iov_len), 0);
                    at += window[i].iov_len;
                }
                if (capacity == 5 && skip < TOTAL) {
                    ck_assert_uint_eq(len, skip + most < TOTAL ? most : TOTAL - skip);
                }
                ck_assert(skip < TOTAL || len == 0);
            }
        }
    }
}
END_TEST

START_TEST(copies)
{
    for (uint64_t at = 0; at <= TOTAL; at++) {
        for (size_t len = 0; at + len <= TOTAL; len++) {
            char out[TOTAL + 1] = "..........";
            setup();
            iov_copy_out(scattered, 5, at, out, len);
            ck_assert_int_eq(memcmp(out, digits + at, len), 0);
            ck_assert_int_eq(memcmp(out + len, "..........", TOTAL - len), 0);

            char want[TOTAL];
            memcpy(want, bytes, TOTAL);
            memcpy(want + at, "abcdefghij", len);
            iov_copy_in(scattered, 5, at, "abcdefghij", len);
            ck_assert_int_eq(memcmp(bytes, want, TOTAL), 0);
        }
        setup();
        iov_zero_from(scattered, 5, at);
        for (size_t i = 0; i < TOTAL; i++) {
            ck_assert_int_eq(bytes[i], i < at ? (int)('0' + i) : 0);
        }
    }
}
END_TEST

int main(void)
{
    Suite *suite = suite_create("iov");
    TCase *tcase = tcase_create("iov");
    tcase_add_checked_fixture(tcase, setup, NULL);
    tcase_add_test(tcase, windows);
    tcase_add_test(tcase, copies);
    suite_add_tcase(suite, tcase);
    return test_suite_run(suite);
}
