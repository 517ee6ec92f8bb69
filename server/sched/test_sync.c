/* SPDX-License-Identifier: BSD-2-Clause */
/*
 * Wait queue, mutex, group and budget: who goes on, when, and in which order.
 */
#include <check.h>
#include <stdlib.h>
#include <string.h>

#include "base/testing.h"
#include "sched/co.h"
#include "sched/sync.h"

static char trace[512];

static void trace_add(char letter)
{
    size_t len = strlen(trace);
    ck_assert_uint_lt(len + 1, sizeof(trace));
    trace[len] = letter;
    trace[len + 1] = '\0';
}

struct member {
    char letter;
    uint64_t units;
    void *shared;
};

static void wait_in_queue(void *arg)
{
    struct member *member = arg;
    co_wait(member->shared);
    trace_add(member->letter);
}

static void spawn_members(struct member *members, unsigned count, coro_fn *fn, void *shared)
{
    trace[0] = '\0';
    for (unsigned i = 0; i < count; i++) {
        members[i].letter = (char)('a' + (int)i);
        members[i].shared = shared;
        ck_assert_int_eq(coro_spawn(fn, &members[i], "member"), 0);
    }
    coro_run_ready();
}

START_TEST(test_queue_wakes_the_longest_waiter)
{
    struct wait_queue queue;
    struct member members[4] = {0};
    wait_queue_init(&queue);
    ck_assert_uint_eq(wait_queue_wake_one(&queue), 0);
    spawn_members(members, 4, wait_in_queue, &queue);
    ck_assert_str_eq(trace, "");
    ck_assert_uint_eq(wait_queue_wake_one(&queue), 1);
    coro_run_ready();
    ck_assert_str_eq(trace, "a");
    ck_assert_uint_eq(wait_queue_wake_all(&queue), 3);
    ck_assert_uint_eq(wait_queue_wake_all(&queue), 0);
    coro_run_ready();
    ck_assert_str_eq(trace, "abcd");
}
END_TEST

static struct waiter quitting;

static void wait_to_quit(void *arg)
{
    wait_queue_join(arg, &quitting);
    co_suspend();
    trace_add('q');
}

START_TEST(test_waiter_quits_once)
{
    struct wait_queue queue;
    struct member members[2] = {0};
    wait_queue_init(&queue);
    spawn_members(members, 1, wait_in_queue, &queue);
    ck_assert_int_eq(coro_spawn(wait_to_quit, &queue, "quitter"), 0);
    coro_run_ready();
    spawn_members(members + 1, 1, wait_in_queue, &queue);
    ck_assert(waiter_quit(&quitting));
    ck_assert(!waiter_quit(&quitting));
    coro_run_ready();
    ck_assert_str_eq(trace, "q");
    ck_assert_uint_eq(wait_queue_wake_all(&queue), 2);
    coro_run_ready();
    ck_assert_str_eq(trace, "qaa");
}
END_TEST

static void lock_and_trace_twice(void *arg)
{
    struct member *member = arg;
    co_mutex_lock(member->shared);
    trace_add(member->letter);
    co_yield ();
    trace_add(member->letter);
    co_mutex_unlock(member->shared);
}

START_TEST(test_mutex_excludes_in_order)
{
    struct co_mutex mutex;
    struct member members[5] = {0};
    co_mutex_init(&mutex);
    spawn_members(members, 5, lock_and_trace_twice, &mutex);
    ck_assert_str_eq(trace, "aabbccddee");
    ck_assert(!mutex.locked);
}
END_TEST

static void lock_again_at_once(void *arg)
{
    struct member *member = arg;
    for (int i = 0; i < 3; i++) {
        co_mutex_lock(member->shared);
        trace_add(member->letter);
        co_yield ();
        co_mutex_unlock(member->shared);
    }
}

START_TEST(test_mutex_is_handed_over)
{
    /* Whoever unlocks and locks again at once goes behind those that wait. */
    struct co_mutex mutex;
    struct member members[3] = {0};
    co_mutex_init(&mutex);
    spawn_members(members, 3, lock_again_at_once, &mutex);
    ck_assert_str_eq(trace, "abcabcabc");
    ck_assert(!mutex.locked);
}
END_TEST

static void wait_for_group(void *arg)
{
    struct member *member = arg;
    co_group_wait(member->shared);
    trace_add(member->letter);
}

START_TEST(test_group_waits_for_all)
{
    struct group group;
    struct member members[2] = {0};
    group_init(&group);
    group_enter(&group);
    group_enter(&group);
    spawn_members(members, 2, wait_for_group, &group);
    group_leave(&group);
    coro_run_ready();
    ck_assert_str_eq(trace, "");
    group_leave(&group);
    coro_run_ready();
    ck_assert_str_eq(trace, "ab");
    spawn_members(members, 1, wait_for_group, &group);
    ck_assert_str_eq(trace, "a"); /* at zero it does not wait */
}
END_TEST

START_TEST(test_group_entered_again_before_waiters_ran)
{
    struct group group;
    struct member members[1] = {0};
    group_init(&group);
    group_enter(&group);
    spawn_members(members, 1, wait_for_group, &group);
    group_leave(&group);
    group_enter(&group);
    coro_run_ready();
    ck_assert_str_eq(trace, "");
    group_leave(&group);
    coro_run_ready();
    ck_assert_str_eq(trace, "a");
}
END_TEST

static void take_budget(void *arg)
{
    struct member *member = arg;
    co_budget_take(member->shared, member->units);
    trace_add(member->letter);
}

START_TEST(test_budget_is_first_come_first_served)
{
    struct budget budget;
    struct member members[4] = {{.units = 6}, {.units = 6}, {.units = 1}, {.units = 4}};
    budget_init(&budget, 10);
    spawn_members(members, 4, take_budget, &budget);
    ck_assert_str_eq(trace, "a"); /* c would fit, and does not overtake b */
    ck_assert_uint_eq(budget.used, 6);
    ck_assert(!budget_try_take(&budget, 1));
    budget_give(&budget, 6);
    ck_assert_uint_eq(budget.used, 7); /* counted before they run */
    coro_run_ready();
    ck_assert_str_eq(trace, "abc");
    budget_give(&budget, 1);
    coro_run_ready();
    ck_assert_str_eq(trace, "abcd");
    ck_assert_uint_eq(budget.used, 10);
    ck_assert(!budget_try_take(&budget, 1));
    budget_give(&budget, 10);
    ck_assert_uint_eq(budget.used, 0);
    ck_assert(budget_try_take(&budget, 10));
    ck_assert(!budget_try_take(&budget, 1));
    ck_assert(budget_try_take(&budget, 0));
    budget_give(&budget, 10);
}
END_TEST

START_TEST(test_budget_admits_the_over_large_alone)
{
    struct budget budget;
    struct member members[4] = {{.units = 2}, {.units = UINT64_MAX}, {.units = 1}, {.units = 9}};
    budget_init(&budget, 10);
    spawn_members(members, 4, take_budget, &budget);
    ck_assert_str_eq(trace, "a");
    budget_give(&budget, 1);
    coro_run_ready();
    ck_assert_str_eq(trace, "a"); /* one unit is still out */
    budget_give(&budget, 1);
    coro_run_ready();
    ck_assert_str_eq(trace, "ab");
    ck_assert_uint_eq(budget.used, UINT64_MAX);
    budget_give(&budget, UINT64_MAX);
    coro_run_ready();
    ck_assert_str_eq(trace, "abcd");
    budget_give(&budget, 10);
}
END_TEST

static unsigned long random_state;

static unsigned random_below(unsigned bound)
{
    random_state = random_state * 6364136223846793005UL + 1442695040888963407UL;
    return (unsigned)(random_state >> 33) % bound;
}

struct crowd {
    struct budget budget;
    struct co_mutex mutex;
    struct group group;
    uint64_t out;
    uint64_t next_ticket;
    uint64_t next_served;
    unsigned inside_mutex;
};

static void take_part(void *arg)
{
    struct crowd *crowd = arg;
    for (int i = 0; i < 20; i++) {
        uint64_t units = 1 + random_below(130);
        uint64_t ticket = crowd->next_ticket++;
        co_budget_take(&crowd->budget, units);
        ck_assert_uint_eq(ticket, crowd->next_served++);
        crowd->out += units;
        ck_assert(crowd->out <= 100 || crowd->out == units);
        co_yield ();
        co_mutex_lock(&crowd->mutex);
        ck_assert_uint_eq(crowd->inside_mutex++, 0);
        if (random_below(2)) {
            co_yield ();
        }
        crowd->inside_mutex--;
        co_mutex_unlock(&crowd->mutex);
        crowd->out -= units;
        budget_give(&crowd->budget, units);
    }
    group_leave(&crowd->group);
}

static void await_crowd(void *arg)
{
    struct crowd *crowd = arg;
    co_group_wait(&crowd->group);
    trace_add('!');
}

START_TEST(test_crowd)
{
    struct crowd crowd = {0};
    random_state = (unsigned long)_i;
    trace[0] = '\0';
    budget_init(&crowd.budget, 100);
    co_mutex_init(&crowd.mutex);
    group_init(&crowd.group);
    for (unsigned i = 0; i < 50; i++) {
        group_enter(&crowd.group);
        ck_assert_int_eq(coro_spawn(take_part, &crowd, "part"), 0);
    }
    ck_assert_int_eq(coro_spawn(await_crowd, &crowd, "await"), 0);
    coro_run_ready();
    ck_assert_str_eq(trace, "!");
    ck_assert_uint_eq(coro_live_count(), 0);
    ck_assert_uint_eq(crowd.budget.used, 0);
    ck_assert_uint_eq(crowd.next_served, 1000);
}
END_TEST

int main(void)
{
    Suite *suite = suite_create("sync");
    TCase *tcase = tcase_create("sync");
    tcase_set_timeout(tcase, 30);
    tcase_add_test(tcase, test_queue_wakes_the_longest_waiter);
    tcase_add_test(tcase, test_waiter_quits_once);
    tcase_add_test(tcase, test_mutex_excludes_in_order);
    tcase_add_test(tcase, test_mutex_is_handed_over);
    tcase_add_test(tcase, test_group_waits_for_all);
    tcase_add_test(tcase, test_group_entered_again_before_waiters_ran);
    tcase_add_test(tcase, test_budget_is_first_come_first_served);
    tcase_add_test(tcase, test_budget_admits_the_over_large_alone);
    tcase_add_loop_test(tcase, test_crowd, 0, 20);
    suite_add_tcase(suite, tcase);
    return test_suite_run(suite);
}
