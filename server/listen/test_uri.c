/* SPDX-License-Identifier: BSD-2-Clause */
#include <check.h>
#include <stdlib.h>

#include "base/testing.h"
#include "listen/uri.h"

static void expect_text(char *got, const char *wanted)
{
    ck_assert_str_eq(got, wanted);
    free(got);
}

START_TEST(test_unix)
{
    expect_text(uri_unix(false, "/run/disk.sock", ""), "nbd+unix:///?socket=/run/disk.sock");
    expect_text(uri_unix(false, "/run/disk.sock", "vm1"), "nbd+unix:///vm1?socket=/run/disk.sock");
}
END_TEST

START_TEST(test_everything_special_is_escaped)
{
    expect_text(uri_unix(false, "/a b/c?d&e#f%41", "x y"),
                "nbd+unix:///x%20y?socket=/a%20b/c%3Fd%26e%23f%2541");
    expect_text(uri_unix(false, "/s", "\xc3\xa4/~-._"), "nbd+unix:///%C3%A4/~-._?socket=/s");
    expect_text(uri_unix(false, "/s", "\x01\x7f\xff"), "nbd+unix:///%01%7F%FF?socket=/s");
}
END_TEST

START_TEST(test_tcp)
{
    expect_text(uri_tcp(false, "localhost", 10809, ""), "nbd://localhost:10809/");
    expect_text(uri_tcp(false, "192.0.2.7", 65535, "a?b"), "nbd://192.0.2.7:65535/a%3Fb");
    expect_text(uri_tcp(false, "2001:db8::1", 10, "vm"), "nbd://[2001:db8::1]:10/vm");
    expect_text(uri_tcp(false, "fe80::1%eth0", 10, ""), "nbd://[fe80::1%25eth0]:10/");
}
END_TEST

START_TEST(test_tls)
{
    expect_text(uri_unix(true, "/s", "vm"), "nbds+unix:///vm?socket=/s");
    expect_text(uri_tcp(true, "localhost", 1, ""), "nbds://localhost:1/");
    expect_text(uri_tcp(true, "::1", 2, "vm"), "nbds://[::1]:2/vm");
    expect_text(uri_vsock(true, 3, 4000000000, "v m"), "nbds+vsock://3:4000000000/v%20m");
    expect_text(uri_vsock(false, 2, 10809, ""), "nbd+vsock://2:10809/");
}
END_TEST

START_TEST(test_old_form)
{
    expect_text(old_uri_unix("/s", ""), "nbd:unix:/s");
    expect_text(old_uri_unix("/s", "vm"), "nbd:unix:/s:exportname=vm");
    expect_text(old_uri_tcp("localhost", 1, ""), "nbd:localhost:1");
    expect_text(old_uri_tcp("::1", 2, "vm"), "nbd:[::1]:2:exportname=vm");
}
END_TEST

int main(void)
{
    Suite *suite = suite_create("uri");
    TCase *tests = tcase_create("uri");
    tcase_add_test(tests, test_unix);
    tcase_add_test(tests, test_everything_special_is_escaped);
    tcase_add_test(tests, test_tcp);
    tcase_add_test(tests, test_tls);
    tcase_add_test(tests, test_old_form);
    suite_add_tcase(suite, tests);
    return test_suite_run(suite);
}
