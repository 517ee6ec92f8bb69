/* SPDX-License-Identifier: BSD-2-Clause */
/*
 * Calls between two real loops on two threads: each runs where it should, once, in order, and both
 * ways at the same time.
 */
#include <check.h>
#include <pthread.h>
#include <semaphore.h>
#include <stdlib.h>

#include "base/check.h"
#include "base/testing.h"
#include "sched/co.h"
#include "sched/loop.h"
#include "sched/mailbox.h"
#include "sched/sync.h"

/* The other thread: a loop that lives until it is told to end. */
struct other {
    pthread_t thread;
    sem_t ready;
    struct loop *loop;
    struct mailbox *mailbox;
    struct wait_queue ending;
    bool end;
};

static struct other other;
static struct loop *loop;
static struct mailbox *mailbox;

static void co_other_life(void *arg)
{
    (void)arg;
    ck_assert_int_eq(mailbox_open(other.loop, &other.mailbox), 0);
    sem_post(&other.ready);
    while (!other.end) {
        co_wait(&other.ending);
    }
    co_mailbox_close(other.mailbox);
}

static void *other_main(void *arg)
{
    struct errtext err;
    ck_assert_int_eq(loop_create(&other.loop, &err), 0);
    ck_assert_int_eq(loop_run_coroutine(other.loop, co_other_life, arg), 0);
    ck_assert_uint_eq(coro_live_count(), 0);
    loop_free(other.loop);
    return NULL;
}

static void end_other(void *arg)
{
    (void)arg;
    other.end = true;
    wait_queue_wake_all(&other.ending);
}

struct test_run {
    void (*co_test)(void);
};

static void co_with_mailbox(void *arg)
{
    struct test_run *test = arg;
    ck_assert_int_eq(mailbox_open(loop, &mailbox), 0);
    test->co_test();
    ck_assert_int_eq(co_mailbox_call(mailbox, other.mailbox, end_other, NULL), 0);
    co_mailbox_close(mailbox);
}

static void run(void (*co_test)(void))
{
    struct errtext err;
    struct test_run test = {co_test};
    other = (struct other){0};
    wait_queue_init(&other.ending);
    sem_init(&other.ready, 0, 0);
    ck_assert_int_eq(pthread_create(&other.thread, NULL, other_main, NULL), 0);
    sem_wait(&other.ready);
    ck_assert_int_eq(loop_create(&loop, &err), 0);
    ck_assert_int_eq(loop_run_coroutine(loop, co_with_mailbox, &test), 0);
    pthread_join(other.thread, NULL);
    sem_destroy(&other.ready);
    loop_free(loop);
}

static void note_thread(void *arg)
{
    *(pthread_t *)arg = pthread_self();
}

static void co_test_place(void)
{
    pthread_t ran_on = pthread_self();
    ck_assert_int_eq(co_mailbox_call(mailbox, other.mailbox, note_thread, &ran_on), 0);
    ck_assert(pthread_equal(ran_on, other.thread));
    ck_assert_int_eq(co_mailbox_call(mailbox, mailbox, note_thread, &ran_on), 0);
    ck_assert(pthread_equal(ran_on, pthread_self()));
}

START_TEST(test_runs_on_the_thread_that_is_called)
{
    run(co_test_place);
}
END_TEST

static void co_call_home(void *arg)
{
    pthread_t home = pthread_self();
    ck_assert_int_eq(co_mailbox_call(other.mailbox, mailbox, note_thread, &home), 0);
    *(pthread_t *)arg = home;
}

static void co_test_nested(void)
{
    pthread_t home = other.thread;
    ck_assert_int_eq(co_mailbox_call(mailbox, other.mailbox, co_call_home, &home), 0);
    ck_assert(pthread_equal(home, pthread_self()));
}

START_TEST(test_the_called_may_call_back)
{
    run(co_test_nested);
}
END_TEST

#define CALLERS 64U
#ifdef __SANITIZE_THREAD__ /* every coroutine made costs it dearly */
#define CALLS 30U
#else
#define CALLS 200U
#endif

struct caller {
    struct group *group;
    struct mailbox *from;
    struct mailbox *to;
    unsigned *count; /* to's thread's own: no lock */
};

static void count_one(void *arg)
{
    ++*(unsigned *)arg;
}

static void co_count_and_yield(void *arg)
{
    co_yield ();
    count_one(arg);
}

static void co_call_often(void *arg)
{
    struct caller *caller = arg;
    for (unsigned i = 0; i < CALLS; i++) {
        void (*fn)(void *) = i % 3 == 0 ? co_count_and_yield : count_one;
        ck_assert_int_eq(co_mailbox_call(caller->from, caller->to, fn, caller->count), 0);
    }
    group_leave(caller->group);
}

/* CALLERS coroutines of this thread, each making CALLS calls. */
static void co_call_from_many(struct mailbox *from, struct mailbox *to, unsigned *count)
{
    struct group group;
    struct caller caller = {.group = &group, .from = from, .to = to, .count = count};
    group_init(&group);
    for (unsigned i = 0; i < CALLERS; i++) {
        group_enter(&group);
        ck_assert_int_eq(coro_spawn(co_call_often, &caller, "caller"), 0);
    }
    co_group_wait(&group);
}

struct both_ways {
    unsigned here;
    unsigned there;
};

static void co_call_from_there(void *arg)
{
    co_call_from_many(other.mailbox, mailbox, &((struct both_ways *)arg)->here);
}

struct started {
    struct group group;
    struct both_ways counts;
};

static void co_start_there(void *arg)
{
    struct started *started = arg;
    int result = co_mailbox_call(mailbox, other.mailbox, co_call_from_there, &started->counts);
    ck_assert_int_eq(result, 0);
    group_leave(&started->group);
}

static void co_test_both_ways(void)
{
    struct started started = {0};
    group_init(&started.group);
    group_enter(&started.group);
    ck_assert_int_eq(coro_spawn(co_start_there, &started, "start there"), 0);
    co_call_from_many(mailbox, other.mailbox, &started.counts.there);
    co_group_wait(&started.group);
    ck_assert_uint_eq(started.counts.there, CALLERS * CALLS);
    ck_assert_uint_eq(started.counts.here, CALLERS * CALLS);
}

START_TEST(test_none_is_lost_both_ways)
{
    run(co_test_both_ways);
}
END_TEST

static unsigned order[CALLERS];
static unsigned order_count;

struct place {
    struct group *group;
    unsigned number;
};

static void note_order(void *arg)
{
    order[order_count++] = ((struct place *)arg)->number;
}

static void co_call_once(void *arg)
{
    struct place *place = arg;
    ck_assert_int_eq(co_mailbox_call(mailbox, other.mailbox, note_order, place), 0);
    group_leave(place->group);
}

static void co_test_order(void)
{
    struct group group;
    struct place places[CALLERS];
    group_init(&group);
    order_count = 0;
    for (unsigned i = 0; i < CALLERS; i++) {
        places[i] = (struct place){.group = &group, .number = i};
        group_enter(&group);
        ck_assert_int_eq(coro_spawn(co_call_once, &places[i], "caller"), 0);
    }
    co_group_wait(&group);
    ck_assert_uint_eq(order_count, CALLERS);
    for (unsigned i = 0; i < CALLERS; i++) {
        ck_assert_uint_eq(order[i], i);
    }
}

START_TEST(test_calls_of_one_thread_begin_in_order)
{
    run(co_test_order);
}
END_TEST

int main(void)
{
    Suite *suite = suite_create("mailbox");
    TCase *tcase = tcase_create("mailbox");
    tcase_set_timeout(tcase, 60);
    tcase_add_test(tcase, test_runs_on_the_thread_that_is_called);
    tcase_add_test(tcase, test_the_called_may_call_back);
    tcase_add_test(tcase, test_none_is_lost_both_ways);
    tcase_add_test(tcase, test_calls_of_one_thread_begin_in_order);
    suite_add_tcase(suite, tcase);
    return test_suite_run(suite);
}
