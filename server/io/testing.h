/* SPDX-License-Identifier: BSD-2-Clause */
/*
 * What the unit tests of this directory share: a temporary directory, and a loop that runs a test's
 * body in a coroutine.
 */
#ifndef QCOWD_IO_TESTING_H
#define QCOWD_IO_TESTING_H

#include <check.h>
#include <errno.h>
#include <liburing.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>

#include "base/testing.h"
#include "sched/co.h"
#include "sched/loop.h"

static char test_dir[200];
static struct loop *test_loop;

static inline void test_dir_make(const char *parent)
{
    const char *tmp = getenv("TMPDIR");

    if (parent == NULL) {
        parent = tmp && strlen(tmp) < 60 ? tmp : "/tmp";
    }
    snprintf(test_dir, sizeof(test_dir), "%s/qcowd-io-XXXXXX", parent);
    ck_assert_ptr_nonnull(mkdtemp(test_dir));
}

static inline void test_dir_remove(void)
{
    char command[256];

    snprintf(command, sizeof(command), "rm -rf '%s'", test_dir);
    ck_assert_int_eq(system(command), 0);
}

/* The name in the test's directory; valid until the fourth call after. */
static inline const char *test_path(const char *name)
{
    static char paths[4][512];
    static unsigned next;
    char *path = paths[next++ % 4];

    snprintf(path, sizeof(paths[0]), "%s/%s", test_dir, name);
    return path;
}

static inline void test_run(void (*body)(void *arg), void *arg)
{
    struct errtext err = {""};

    if (loop_create(&test_loop, &err) < 0) {
        ck_abort_msg("%s", err.text);
    }
    ck_assert_int_eq(loop_run_coroutine(test_loop, body, arg), 0);
    ck_assert_int_eq((int)coro_live_count(), 0);
    loop_free(test_loop);
    test_loop = NULL;
    coro_pool_drain();
}

/* Lets the loop turn, so that what others have queued reaches the kernel. */
static inline void co_test_turn(void)
{
    struct loop_op op = {0};
    struct io_uring_sqe *sqe = loop_sqe(test_loop);

    io_uring_prep_nop(sqe);
    loop_sqe_attach(sqe, &op);
    int ret = co_loop_wait(test_loop, &op);
    ck_assert_int_eq(ret, 0);
}

static inline int test_main(Suite *suite)
{
    return test_suite_run(suite);
}

#endif
