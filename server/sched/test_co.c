/* SPDX-License-Identifier: BSD-2-Clause */
/*
 * Coroutines: order of running, many of them, deep stacks, the guard page, what survives a switch.
 * Prints what a switch and a spawn cost.
 */
#include <check.h>
#include <errno.h>
#include <fenv.h>
#include <pthread.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#include "base/limits.h"
#include "base/testing.h"
#include "sched/co.h"

static char trace[256];

static void trace_add(char letter)
{
    size_t len = strlen(trace);
    ck_assert_uint_lt(len + 1, sizeof(trace));
    trace[len] = letter;
    trace[len + 1] = '\0';
}

static void trace_clear(void)
{
    trace[0] = '\0';
}

static void letter_and_yield(void *arg)
{
    const char *letter = arg;
    for (int i = 0; i < 3; i++) {
        trace_add(*letter);
        co_yield ();
    }
}

START_TEST(test_yield_is_first_come_first_served)
{
    char a = 'a', b = 'b', c = 'c';
    trace_clear();
    ck_assert_int_eq(coro_spawn(letter_and_yield, &a, "a"), 0);
    ck_assert_int_eq(coro_spawn(letter_and_yield, &b, "b"), 0);
    ck_assert_int_eq(coro_spawn(letter_and_yield, &c, "c"), 0);
    ck_assert_str_eq(trace, ""); /* spawn runs nothing */
    ck_assert(coro_any_ready());
    ck_assert_uint_eq(coro_live_count(), 3);
    ck_assert(coro_run_ready());
    ck_assert_str_eq(trace, "abcabcabc");
    ck_assert_uint_eq(coro_live_count(), 0);
    ck_assert(!coro_any_ready());
    ck_assert(!coro_run_ready());
}
END_TEST

struct player {
    struct coro *self;
    struct player *other;
    char letter;
    unsigned turns;
};

static void play(void *arg)
{
    struct player *player = arg;
    player->self = coro_self();
    while (player->turns-- > 0) {
        trace_add(player->letter);
        if (player->other->self && player->other->turns != (unsigned)-1) {
            coro_wake(player->other->self);
        }
        co_suspend();
    }
    if (player->other->turns != (unsigned)-1) {
        coro_wake(player->other->self);
    }
}

START_TEST(test_ping_pong)
{
    struct player ping = {.letter = 'i', .turns = 4};
    struct player pong = {.letter = 'o', .turns = 4};
    ping.other = &pong;
    pong.other = &ping;
    trace_clear();
    ck_assert_int_eq(coro_spawn(play, &ping, "ping"), 0);
    ck_assert_int_eq(coro_spawn(play, &pong, "pong"), 0);
    coro_run_ready();
    ck_assert_str_eq(trace, "ioioioio");
    ck_assert_uint_eq(coro_live_count(), 0);
    ck_assert_ptr_null(coro_self());
}
END_TEST

struct sleeper {
    struct coro *self;
    char letter;
};

static void sleep_then_trace(void *arg)
{
    struct sleeper *sleeper = arg;
    sleeper->self = coro_self();
    co_suspend();
    trace_add(sleeper->letter);
}

START_TEST(test_woken_run_in_the_order_of_waking)
{
    struct sleeper sleepers[4];
    trace_clear();
    for (unsigned i = 0; i < 4; i++) {
        sleepers[i] = (struct sleeper){.letter = (char)('a' + (int)i)};
        ck_assert_int_eq(coro_spawn(sleep_then_trace, &sleepers[i], "sleeper"), 0);
    }
    coro_run_ready();
    ck_assert_str_eq(trace, "");
    static const unsigned order[] = {2, 0, 3, 1};
    for (unsigned i = 0; i < 4; i++) {
        coro_wake(sleepers[order[i]].self);
    }
    ck_assert_str_eq(trace, ""); /* waking runs nothing */
    coro_run_ready();
    ck_assert_str_eq(trace, "cadb");
}
END_TEST

static void yield_forever(void *arg)
{
    const bool *stop = arg;
    while (!*stop) {
        co_yield ();
    }
}

START_TEST(test_run_some_comes_back)
{
    bool stop = false;
    ck_assert_int_eq(coro_spawn(yield_forever, &stop, "busy"), 0);
    ck_assert_int_eq(coro_spawn(yield_forever, &stop, "busy too"), 0);
    ck_assert(coro_run_some(101));
    ck_assert(coro_any_ready());
    ck_assert_uint_eq(coro_live_count(), 2);
    stop = true;
    ck_assert(coro_run_some(2));
    ck_assert_uint_eq(coro_live_count(), 0);
    ck_assert(!coro_run_some(1));
}
END_TEST

static void spawn_child(void *arg)
{
    char *child = arg;
    trace_add('p');
    ck_assert_int_eq(coro_spawn(letter_and_yield, child, "child"), 0);
    trace_add('q');
}

START_TEST(test_spawn_from_a_coroutine)
{
    char c = 'c';
    trace_clear();
    ck_assert_int_eq(coro_spawn(spawn_child, &c, "parent"), 0);
    coro_run_ready();
    ck_assert_str_eq(trace, "pqccc");
}
END_TEST

#define CROWD 10000U

struct crowd {
    struct coro *members[CROWD];
    unsigned started;
    unsigned finished;
};

static void join_crowd(void *arg)
{
    struct crowd *crowd = arg;
    unsigned number = crowd->started++;
    unsigned char local[512];
    memset(local, (int)(number & 0xff), sizeof(local));
    crowd->members[number] = coro_self();
    co_suspend();
    /* One assertion a coroutine: each costs a write to the test's parent. */
    size_t same = 0;
    while (same < sizeof(local) && local[same] == (number & 0xff)) {
        same++;
    }
    ck_assert_uint_eq(same, sizeof(local));
    ck_assert_ptr_eq(coro_self(), crowd->members[number]);
    ck_assert_uint_eq(crowd->finished, number);
    crowd->finished++;
}

START_TEST(test_ten_thousand)
{
    struct crowd *crowd = calloc(1, sizeof(*crowd));
    ck_assert_ptr_nonnull(crowd);
    for (unsigned round = 0; round < 2; round++) {
        crowd->started = crowd->finished = 0;
        for (unsigned i = 0; i < CROWD; i++) {
            ck_assert_int_eq(coro_spawn(join_crowd, crowd, "crowd"), 0);
        }
        coro_run_ready();
        ck_assert_uint_eq(crowd->started, CROWD);
        ck_assert_uint_eq(coro_live_count(), CROWD);
        for (unsigned i = 0; i < CROWD; i++) {
            coro_wake(crowd->members[i]);
        }
        coro_run_ready();
        ck_assert_uint_eq(crowd->finished, CROWD);
        ck_assert_uint_eq(coro_live_count(), 0);
    }
    free(crowd);
    coro_pool_drain();
}
END_TEST

/* Calls itself until `bytes` of stack lie between it and `base`; returns how deep that was. */
static __attribute__((noinline)) unsigned descend(const volatile char *base, size_t bytes)
{
    volatile char frame[512];
    memset((void *)(uintptr_t)frame, 0x5a, sizeof(frame));
    co_yield ();
    if ((size_t)(base - frame) >= bytes) {
        return 1;
    }
    unsigned depth = 1 + descend(base, bytes);
    size_t same = 0;
    while (same < sizeof(frame) && frame[same] == 0x5a) {
        same++;
    }
    ck_assert_uint_eq(same, sizeof(frame));
    return depth;
}

static void descend_48_kib(void *arg)
{
    unsigned *depth = arg;
    volatile char base = 0;
    *depth = descend(&base, 48 * KIB);
}

START_TEST(test_deep_stacks)
{
    unsigned depths[8] = {0};
    for (unsigned i = 0; i < 8; i++) {
        ck_assert_int_eq(coro_spawn(descend_48_kib, &depths[i], "deep"), 0);
    }
    coro_run_ready();
    for (unsigned i = 0; i < 8; i++) {
        ck_assert_uint_ge(depths[i], 1);
    }
}
END_TEST

static void overflow_stack(void *arg)
{
    volatile char base = 0;
    (void)arg;
    descend(&base, 64 * MIB);
}

static void overflow_and_die(void)
{
    /* Whatever the sanitizers would say about it. */
    signal(SIGSEGV, SIG_DFL);
    struct rlimit no_core = {0, 0};
    setrlimit(RLIMIT_CORE, &no_core);
    if (coro_spawn(overflow_stack, NULL, "overflow")) {
        _exit(2);
    }
    coro_run_ready();
    _exit(3);
}

START_TEST(test_overflow_hits_the_guard_page)
{
    pid_t child = fork();
    ck_assert_int_ge(child, 0);
    if (child == 0) {
        overflow_and_die();
    }
    int status = 0;
    ck_assert_int_eq(waitpid(child, &status, 0), child);
    ck_assert(WIFSIGNALED(status));
    ck_assert_int_eq(WTERMSIG(status), SIGSEGV);
}
END_TEST

static void wake_twice_and_die(void)
{
    struct sleeper sleeper = {.letter = 'x'};
    struct rlimit no_core = {0, 0};
    setrlimit(RLIMIT_CORE, &no_core);
    if (!freopen("/dev/null", "w", stderr) || coro_spawn(sleep_then_trace, &sleeper, "twice")) {
        _exit(2);
    }
    coro_run_ready();
    coro_wake(sleeper.self);
    coro_wake(sleeper.self);
    _exit(3);
}

START_TEST(test_waking_twice_is_caught)
{
    pid_t child = fork();
    ck_assert_int_ge(child, 0);
    if (child == 0) {
        wake_twice_and_die();
    }
    int status = 0;
    ck_assert_int_eq(waitpid(child, &status, 0), child);
    ck_assert(WIFSIGNALED(status));
    ck_assert_int_eq(WTERMSIG(status), SIGABRT);
}
END_TEST

/* The rounding mode belongs to the coroutine: mxcsr, the x87 control word and, on aarch64, nothing:
 * fpcr is the thread's there. */
static void round_upward(void *arg)
{
    int *kept = arg;
    fesetround(FE_UPWARD);
    co_yield ();
    *kept = fegetround();
}

static void expect_nearest(void *arg)
{
    int *found = arg;
    *found = fegetround();
}

START_TEST(test_floating_point_control_is_kept)
{
#ifdef __x86_64__
    int kept = -1, found = -1;
    ck_assert_int_eq(coro_spawn(round_upward, &kept, "upward"), 0);
    ck_assert_int_eq(coro_spawn(expect_nearest, &found, "nearest"), 0);
    coro_run_ready();
    ck_assert_int_eq(kept, FE_UPWARD);
    ck_assert_int_eq(found, FE_TONEAREST);
    ck_assert_int_eq(fegetround(), FE_TONEAREST);
#else
    (void)round_upward;
    (void)expect_nearest;
#endif
}
END_TEST

/* The calling convention promises 16-byte alignment: printf of a double relies on it. */
static void check_alignment(void *arg)
{
    _Alignas(16) volatile char aligned[16];
    double *value = arg;
    ck_assert_uint_eq((uintptr_t)aligned % 16, 0);
    char text[64];
    snprintf(text, sizeof(text), "%.3f", *value);
    ck_assert_str_eq(text, "0.125");
}

START_TEST(test_first_frame_is_aligned)
{
    double value = 0.125;
    for (unsigned i = 0; i < 40; i++) {
        ck_assert_int_eq(coro_spawn(check_alignment, &value, "aligned"), 0);
    }
    coro_run_ready();
}
END_TEST

static void *run_ten_thousand_switches(void *arg)
{
    (void)arg;
    unsigned depth = 0;
    for (unsigned i = 0; i < 100; i++) {
        if (coro_spawn(descend_48_kib, &depth, "thread")) {
            return NULL;
        }
    }
    coro_run_ready();
    bool good = depth > 0 && coro_live_count() == 0;
    coro_pool_drain();
    return good ? arg : NULL;
}

START_TEST(test_each_thread_has_its_own)
{
    pthread_t threads[2];
    char token, letter = 'm';
    trace_clear();
    ck_assert_int_eq(coro_spawn(letter_and_yield, &letter, "main"), 0);
    for (unsigned i = 0; i < 2; i++) {
        ck_assert_int_eq(pthread_create(&threads[i], NULL, run_ten_thousand_switches, &token), 0);
    }
    for (unsigned i = 0; i < 2; i++) {
        void *result = NULL;
        ck_assert_int_eq(pthread_join(threads[i], &result), 0);
        ck_assert_ptr_eq(result, &token);
    }
    ck_assert_uint_eq(coro_live_count(), 1);
    coro_run_ready();
    ck_assert_str_eq(trace, "mmm");
}
END_TEST

static double seconds_now(void)
{
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return (double)now.tv_sec + (double)now.tv_nsec / 1e9;
}

#define BENCH_ROUNDS 1000000U

static void yield_many(void *arg)
{
    unsigned *count = arg;
    while (*count < BENCH_ROUNDS) {
        ++*count;
        co_yield ();
    }
}

/* Half a stack, filled; where. */
static __attribute__((noinline)) void fill_half(uintptr_t *where)
{
    volatile char frame[LIMIT_COROUTINE_STACK_BYTES / 2];
    for (size_t i = 0; i < sizeof(frame); i++) {
        frame[i] = 'x';
    }
    *where = (uintptr_t)frame;
}

static void trim_after_use(void *arg)
{
    unsigned *kept = arg;
    unsigned here = 4711;
    uintptr_t used;
    fill_half(&used);
    coro_trim_stack();
    ck_assert_int_eq(*(volatile char *)(used + 4096), 0);
    co_yield ();
    *kept = here;
}

START_TEST(test_trimming_gives_back_what_is_not_used)
{
    unsigned kept = 0;
    for (unsigned i = 0; i < 3; i++) {
        ck_assert(coro_spawn(trim_after_use, &kept, "trim") == 0);
        coro_run_ready();
        ck_assert_uint_eq(kept, 4711);
    }
    coro_pool_drain();
}
END_TEST

struct large_frame {
    uintptr_t caller_frame;
    uintptr_t frame;
    struct coro *self;
    unsigned calls;
};

/* More than a coroutine's whole stack, sanitized or not. */
static void use_much_stack(void *arg)
{
    struct large_frame *large = arg;
    volatile char frame[6 * LIMIT_COROUTINE_STACK_BYTES];
    for (size_t i = 0; i < sizeof(frame); i += 512) {
        frame[i] = (char)i;
    }
    large->frame = (uintptr_t)&frame[sizeof(frame) - 1];
    large->self = coro_self();
    large->calls++;
    trace_add('d');
}

static void call_on_driver_twice(void *arg)
{
    struct large_frame *large = arg;
    struct coro *self = coro_self();
    char here;
    large->caller_frame = (uintptr_t)&here;
    for (int i = 0; i < 2; i++) {
        trace_add('(');
        coro_call_on_driver(use_much_stack, large);
        trace_add(')');
        ck_assert_ptr_eq(coro_self(), self);
        ck_assert_ptr_null(large->self);
        co_yield ();
    }
}

START_TEST(test_call_on_the_drivers_stack)
{
    struct large_frame large = {.calls = 0};
    char other = 'o';
    char here;
    trace_clear();
    ck_assert_int_eq(coro_spawn(call_on_driver_twice, &large, "caller"), 0);
    ck_assert_int_eq(coro_spawn(letter_and_yield, &other, "o"), 0);
    ck_assert(coro_run_ready());
    /* Nobody else runs within a call. */
    ck_assert_str_eq(trace, "(d)o(d)oo");
    ck_assert_uint_eq(large.calls, 2);
    uintptr_t distance = (uintptr_t)&here - large.frame;
    ck_assert_uint_lt(distance, 1U << 20);
    uintptr_t from_caller = large.frame - large.caller_frame;
    ck_assert(from_caller > (1U << 20) && 0 - from_caller > (1U << 20));

    use_much_stack(&large);
    coro_call_on_driver(use_much_stack, &large); /* from the driver itself */
    ck_assert_uint_eq(large.calls, 4);
    ck_assert_uint_eq(coro_live_count(), 0);
}
END_TEST

static void return_at_once(void *arg)
{
    ++*(unsigned *)arg;
}

static void suspend_many(void *arg)
{
    struct coro **self = arg;
    *self = coro_self();
    for (unsigned i = 0; i < BENCH_ROUNDS; i++) {
        co_suspend();
    }
}

static void call_many(void *arg)
{
    for (unsigned i = 0; i < BENCH_ROUNDS; i++) {
        coro_call_on_driver(return_at_once, arg);
    }
}

START_TEST(test_cost)
{
    unsigned count = 0;
    for (unsigned i = 0; i < 16; i++) {
        ck_assert_int_eq(coro_spawn(yield_many, &count, "bench"), 0);
    }
    double start = seconds_now();
    coro_run_ready();
    printf("co_yield to another coroutine: %.1f ns\n",
           (seconds_now() - start) * 1e9 / BENCH_ROUNDS);

    struct coro *self = NULL;
    ck_assert_int_eq(coro_spawn(suspend_many, &self, "bench"), 0);
    coro_run_ready();
    start = seconds_now();
    for (unsigned i = 0; i < BENCH_ROUNDS; i++) {
        coro_wake(self);
        coro_run_ready();
    }
    printf("wake, driver to coroutine and back: %.1f ns\n",
           (seconds_now() - start) * 1e9 / BENCH_ROUNDS);

    count = 0;
    ck_assert_int_eq(coro_spawn(call_many, &count, "bench"), 0);
    start = seconds_now();
    coro_run_ready();
    printf("call on the driver's stack: %.1f ns\n", (seconds_now() - start) * 1e9 / BENCH_ROUNDS);
    ck_assert_uint_eq(count, BENCH_ROUNDS);

    count = 0;
    start = seconds_now();
    for (unsigned i = 0; i < BENCH_ROUNDS / 10; i++) {
        coro_spawn(return_at_once, &count, "bench");
        coro_run_ready();
    }
    printf("spawn, run, return (one at a time): %.1f ns\n",
           (seconds_now() - start) * 1e9 / (BENCH_ROUNDS / 10));
    start = seconds_now();
    for (unsigned i = 0; i < BENCH_ROUNDS / 10; i += 100) {
        for (unsigned j = 0; j < 100; j++) {
            coro_spawn(return_at_once, &count, "bench");
        }
        coro_run_ready();
    }
    printf("spawn, run, return (100 at a time): %.1f ns\n",
           (seconds_now() - start) * 1e9 / (BENCH_ROUNDS / 10));
    ck_assert_uint_eq(count, 2 * (BENCH_ROUNDS / 10));
}
END_TEST

int main(void)
{
    Suite *suite = suite_create("co");
    TCase *tcase = tcase_create("co");
    tcase_set_timeout(tcase, 50);
    tcase_add_test(tcase, test_yield_is_first_come_first_served);
    tcase_add_test(tcase, test_ping_pong);
    tcase_add_test(tcase, test_woken_run_in_the_order_of_waking);
    tcase_add_test(tcase, test_run_some_comes_back);
    tcase_add_test(tcase, test_spawn_from_a_coroutine);
    tcase_add_test(tcase, test_ten_thousand);
    tcase_add_test(tcase, test_deep_stacks);
    tcase_add_test(tcase, test_overflow_hits_the_guard_page);
    tcase_add_test(tcase, test_waking_twice_is_caught);
    tcase_add_test(tcase, test_floating_point_control_is_kept);
    tcase_add_test(tcase, test_first_frame_is_aligned);
    tcase_add_test(tcase, test_each_thread_has_its_own);
    tcase_add_test(tcase, test_call_on_the_drivers_stack);
    tcase_add_test(tcase, test_trimming_gives_back_what_is_not_used);
    tcase_add_test(tcase, test_cost);
    suite_add_tcase(suite, tcase);
    return test_suite_run(suite);
}
