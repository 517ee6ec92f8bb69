/* SPDX-License-Identifier: BSD-2-Clause */
/*
 * Worker threads: that they run at the same time, that all work comes back once, that no signal is
 * theirs.
 */
#include <check.h>
#include <poll.h>
#include <pthread.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <sys/prctl.h>
#include <unistd.h>

#include "base/check.h"
#include "base/testing.h"
#include "sched/workers.h"

/* Waits until `count` pieces of work have come back, in a list. */
static void collect(struct worker_pool *pool, struct list *finished, unsigned count)
{
    unsigned got = 0;
    while (got < count) {
        struct pollfd poller = {.fd = worker_pool_fd(pool), .events = POLLIN};
        ck_assert_int_eq(poll(&poller, 1, 20000), 1);
        uint64_t events;
        ck_assert_int_eq(read(poller.fd, &events, sizeof(events)), sizeof(events));
        struct list some = LIST_INIT(some);
        worker_pool_collect(pool, &some);
        list_for_each(node, &some) {
            got++;
        }
        list_splice_back(finished, &some);
    }
    ck_assert_uint_eq(got, count);
}

static void add_one(void *arg)
{
    atomic_fetch_add((atomic_uint *)arg, 1);
}

#define PIECES 5000U

START_TEST(test_all_work_comes_back_once)
{
    struct worker_pool *pool = NULL;
    ck_assert_int_eq(worker_pool_create(&pool), 0);
    ck_assert_uint_ge(worker_pool_threads(pool), 2);
    ck_assert_uint_le(worker_pool_threads(pool), 4);
    struct work *work = calloc(PIECES, sizeof(*work));
    ck_assert_ptr_nonnull(work);
    atomic_uint sum = 0;
    struct list finished = LIST_INIT(finished);
    for (unsigned i = 0; i < PIECES; i++) {
        work[i] = (struct work){.fn = add_one, .arg = &sum};
        worker_pool_submit(pool, &work[i]);
    }
    collect(pool, &finished, PIECES);
    ck_assert_uint_eq(atomic_load(&sum), PIECES);
    list_for_each(node, &finished) {
        struct work *piece = list_entry(node, struct work, link);
        ck_assert_ptr_null(piece->owner);
        piece->owner = piece; /* seen */
    }
    for (unsigned i = 0; i < PIECES; i++) {
        ck_assert_ptr_eq(work[i].owner, &work[i]);
    }
    free(work);
    worker_pool_free(pool);
}
END_TEST

static void meet(void *arg)
{
    pthread_barrier_wait(arg);
}

START_TEST(test_two_run_at_the_same_time)
{
    /* Each ends only when both have begun. */
    struct worker_pool *pool = NULL;
    pthread_barrier_t barrier;
    ck_assert_int_eq(pthread_barrier_init(&barrier, NULL, 2), 0);
    ck_assert_int_eq(worker_pool_create(&pool), 0);
    struct work work[2] = {{.fn = meet, .arg = &barrier}, {.fn = meet, .arg = &barrier}};
    struct list finished = LIST_INIT(finished);
    worker_pool_submit(pool, &work[0]);
    worker_pool_submit(pool, &work[1]);
    collect(pool, &finished, 2);
    worker_pool_free(pool);
    pthread_barrier_destroy(&barrier);
}
END_TEST

static void read_mask(void *arg)
{
    pthread_sigmask(SIG_SETMASK, NULL, arg);
}

START_TEST(test_workers_block_all_signals)
{
    static const int signals[] = {SIGTERM, SIGINT, SIGHUP, SIGUSR1, SIGPIPE, SIGCHLD};
    struct worker_pool *pool = NULL;
    ck_assert_int_eq(worker_pool_create(&pool), 0);
    sigset_t mask;
    sigemptyset(&mask);
    struct work work = {.fn = read_mask, .arg = &mask};
    struct list finished = LIST_INIT(finished);
    worker_pool_submit(pool, &work);
    collect(pool, &finished, 1);
    for (size_t i = 0; i < ARRAY_LEN(signals); i++) {
        ck_assert_int_eq(sigismember(&mask, signals[i]), 1);
    }
    worker_pool_free(pool);
    pthread_sigmask(SIG_SETMASK, NULL, &mask);
    ck_assert_int_eq(sigismember(&mask, SIGTERM), 0); /* ours is as it was */
}
END_TEST

START_TEST(test_free_without_work)
{
    struct worker_pool *pool = NULL;
    worker_pool_free(NULL);
    ck_assert_int_eq(worker_pool_create(&pool), 0);
    worker_pool_free(pool);
}
END_TEST

struct gate {
    pthread_barrier_t entered;
    atomic_uint passed;
};

static void pass_gate(void *arg)
{
    struct gate *gate = arg;
    pthread_barrier_wait(&gate->entered);
    usleep(50 * 1000);
    atomic_fetch_add(&gate->passed, 1);
}

/* One of the things that belong to a thread and are inherited. */
static void note_no_new_privileges(void *arg)
{
    *(int *)arg = prctl(PR_GET_NO_NEW_PRIVS, 0, 0, 0, 0);
}

START_TEST(test_renewal_loses_no_work)
{
    /* All threads are busy, and more work waits behind. */
    struct worker_pool *pool = NULL;
    ck_assert_int_eq(worker_pool_create(&pool), 0);
    unsigned threads = worker_pool_threads(pool);
    struct gate gate = {.passed = 0};
    ck_assert_int_eq(pthread_barrier_init(&gate.entered, NULL, threads + 1), 0);
    struct work *work = calloc(threads + PIECES, sizeof(*work));
    ck_assert_ptr_nonnull(work);
    atomic_uint sum = 0;
    for (unsigned i = 0; i < threads; i++) {
        work[i] = (struct work){.fn = pass_gate, .arg = &gate};
        worker_pool_submit(pool, &work[i]);
    }
    for (unsigned i = threads; i < threads + PIECES; i++) {
        work[i] = (struct work){.fn = add_one, .arg = &sum};
        worker_pool_submit(pool, &work[i]);
    }
    pthread_barrier_wait(&gate.entered);
    ck_assert_int_eq(worker_pool_renew(pool), 0);
    ck_assert_uint_eq(atomic_load(&gate.passed), threads);
    ck_assert_uint_eq(worker_pool_threads(pool), threads);
    struct list finished = LIST_INIT(finished);
    collect(pool, &finished, threads + PIECES);
    ck_assert_uint_eq(atomic_load(&sum), PIECES);
    free(work);
    pthread_barrier_destroy(&gate.entered);
    worker_pool_free(pool);
}
END_TEST

START_TEST(test_renewed_threads_inherit_from_the_caller)
{
    struct worker_pool *pool = NULL;
    ck_assert_int_eq(worker_pool_create(&pool), 0);
    ck_assert_int_eq(prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0), 0);
    for (int renewed = 0; renewed < 2; renewed++) {
        int found = -1;
        struct work work = {.fn = note_no_new_privileges, .arg = &found};
        struct list finished = LIST_INIT(finished);
        worker_pool_submit(pool, &work);
        collect(pool, &finished, 1);
        ck_assert_int_eq(found, renewed);
        ck_assert_int_eq(worker_pool_renew(pool), 0);
    }
    worker_pool_free(pool);
}
END_TEST

int main(void)
{
    Suite *suite = suite_create("workers");
    TCase *tcase = tcase_create("workers");
    tcase_set_timeout(tcase, 30);
    tcase_add_test(tcase, test_all_work_comes_back_once);
    tcase_add_test(tcase, test_two_run_at_the_same_time);
    tcase_add_test(tcase, test_workers_block_all_signals);
    tcase_add_test(tcase, test_free_without_work);
    tcase_add_test(tcase, test_renewal_loses_no_work);
    tcase_add_test(tcase, test_renewed_threads_inherit_from_the_caller);
    suite_add_tcase(suite, tcase);
    return test_suite_run(suite);
}
