/* SPDX-License-Identifier: BSD-2-Clause */
/* Sockets that were inherited, or are said to be; and accounts by name. */
#include <check.h>
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "base/testing.h"
#include "io/account.h"
#include "listen/activation.h"

static struct activation activation;
static struct errtext err;

/* Descriptors 3 ... 3 + count - 1 listen on loopback. */
static void provide(int count)
{
    for (int fd = 3; fd < 3 + count; fd++) {
        struct errtext why;
        int made;
        ck_assert_int_eq(net_listen_tcp("127.0.0.1", 0, &made, 1, &why), 1);
        ck_assert_int_eq(dup2(made, fd), fd);
        close(made);
    }
}

static int take(const char *pid, const char *fds, const char *names)
{
    char own[16];
    snprintf(own, sizeof(own), "%ld", (long)getpid());
    pid ? setenv("LISTEN_PID", strcmp(pid, "own") == 0 ? own : pid, 1) : unsetenv("LISTEN_PID");
    fds ? setenv("LISTEN_FDS", fds, 1) : unsetenv("LISTEN_FDS");
    names ? setenv("LISTEN_FDNAMES", names, 1) : unsetenv("LISTEN_FDNAMES");
    err.text[0] = '\0';
    int result = activation_take(&activation, &err);
    ck_assert_ptr_null(getenv("LISTEN_PID"));
    ck_assert_ptr_null(getenv("LISTEN_FDS"));
    ck_assert_ptr_null(getenv("LISTEN_FDNAMES"));
    return result;
}

START_TEST(sockets_are_taken_with_their_names)
{
    provide(3);
    ck_assert_int_eq(take("own", "3", "one::th\x01ree:four"), 0);
    ck_assert_uint_eq(activation.count, 3);
    ck_assert_int_eq(activation.sockets[0].fd, 3);
    ck_assert_int_eq(activation.sockets[2].fd, 5);
    ck_assert_str_eq(activation.sockets[0].name, "one");
    ck_assert_str_eq(activation.sockets[1].name, "");
    ck_assert_str_eq(activation.sockets[2].name, "th\\x01ree");
    ck_assert_int_eq((int)activation.sockets[0].address.family, (int)NET_TCP);
    ck_assert_int_eq(fcntl(4, F_GETFD), FD_CLOEXEC);
    ck_assert_int_eq(take("own", "2", NULL), 0);
    ck_assert_uint_eq(activation.count, 2);
    ck_assert_str_eq(activation.sockets[1].name, "");
}
END_TEST

START_TEST(what_is_for_others_is_left_alone)
{
    static const char *const pids[] = {NULL, "1", "", "0", "-1", "x"};
    provide(1);
    for (unsigned i = 0; i < sizeof(pids) / sizeof(pids[0]); i++) {
        ck_assert_int_eq(take(pids[i], "1", "name"), 0);
        ck_assert_uint_eq(activation.count, 0);
    }
    ck_assert_int_eq(fcntl(3, F_GETFD), 0);
    ck_assert_int_eq(take("own", NULL, "name"), 0);
    ck_assert_uint_eq(activation.count, 0);
    ck_assert_int_eq(take("own", "0", "name"), 0);
    ck_assert_uint_eq(activation.count, 0);
}
END_TEST

START_TEST(nonsense_is_refused)
{
    static const char *const counts[] = {"-1", "x", "1x", " 1", "99999999999999999999999"};
    provide(1);
    for (unsigned i = 0; i < sizeof(counts) / sizeof(counts[0]); i++) {
        ck_assert_int_eq(take("own", counts[i], NULL), -EINVAL);
        ck_assert_ptr_nonnull(strstr(err.text, "must be the number of inherited sockets"));
    }
    ck_assert_int_eq(take("own", "17", NULL), -EINVAL);
    ck_assert_ptr_nonnull(strstr(err.text, "at most 16"));
    close(4);
    ck_assert_int_eq(take("own", "2", NULL), -EINVAL);
    ck_assert_str_eq(err.text, "inherited descriptor 4 is not open");
    ck_assert_int_eq(open("/dev/null", O_RDWR | O_CLOEXEC), 4);
    ck_assert_int_eq(take("own", "2", NULL), -EINVAL);
    ck_assert_str_eq(err.text, "inherited descriptor 4 is not a socket");
}
END_TEST

START_TEST(accounts)
{
    struct account account;
    ck_assert_int_eq(account_resolve(&account, "--o", "root", &err), 0);
    ck_assert_uint_eq(account.uid, 0);
    ck_assert_uint_eq(account.gid, (gid_t)-1);
    ck_assert_int_eq(account_resolve(&account, "--o", "root:root", &err), 0);
    ck_assert_uint_eq(account.gid, 0);
    ck_assert_int_eq(account_resolve(&account, "--o", ":12345", &err), 0);
    ck_assert_uint_eq(account.uid, (uid_t)-1);
    ck_assert_uint_eq(account.gid, 12345);
    ck_assert_int_eq(account_resolve(&account, "--o", "54321", &err), 0);
    ck_assert_uint_eq(account.uid, 54321);
    ck_assert_int_eq(account_resolve(&account, "--o", "no such\nuser", &err), -EINVAL);
    ck_assert_str_eq(err.text, "--o: there is no user 'no such\\x0auser'");
    ck_assert_int_eq(account_resolve(&account, "--o", "root:nogroup-", &err), -EINVAL);
    ck_assert_str_eq(err.text, "--o: there is no group 'nogroup-'");
    /* The number that means "nobody" to the kernel, and what is no number at all. */
    ck_assert_int_eq(account_resolve(&account, "--o", "4294967295", &err), -EINVAL);
    ck_assert_int_eq(account_resolve(&account, "--o", "-1", &err), -EINVAL);
    ck_assert_int_eq(account_resolve(&account, "--o", ":", &err), -EINVAL);
    ck_assert_ptr_nonnull(strstr(err.text, "names nobody"));
}
END_TEST

int main(void)
{
    /* libcheck has descriptors of its own: not these. */
    for (int fd = open("/dev/null", O_RDWR); fd < 8; fd = open("/dev/null", O_RDWR)) {
    }
    Suite *suite = suite_create("activation");
    TCase *tcase = tcase_create("activation");
    tcase_add_test(tcase, sockets_are_taken_with_their_names);
    tcase_add_test(tcase, what_is_for_others_is_left_alone);
    tcase_add_test(tcase, nonsense_is_refused);
    tcase_add_test(tcase, accounts);
    suite_add_tcase(suite, tcase);
    return test_suite_run(suite);
}
