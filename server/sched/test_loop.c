/* SPDX-License-Identifier: BSD-2-Clause */
/*
 * The ring loop against the real kernel: operations, cancelling, timers, hooks, signals, workers.
 */
#include <check.h>
#include <errno.h>
#include <fcntl.h>
#include <liburing.h>
#include <netinet/in.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <sys/resource.h>
#include <sys/wait.h>
#include <unistd.h>

#include "base/check.h"
#include "base/log.h"
#include "base/testing.h"
#include "sched/co.h"
#include "sched/loop.h"
#include "sched/sync.h"

#define MILLISECOND 1000000U

static struct loop *loop;

static void set_up(void)
{
    struct errtext err = {0};
    int ret = loop_create(&loop, &err);
    ck_assert_msg(ret == 0, "%s", err.text);
}

static void tear_down(void)
{
    ck_assert_uint_eq(coro_live_count(), 0);
    loop_free(loop);
}

static void run(void (*fn)(void *arg), void *arg)
{
    ck_assert_int_eq(loop_run_coroutine(loop, fn, arg), 0);
}

static int co_read(int fd, void *buf, unsigned len, struct loop_op *op)
{
    struct io_uring_sqe *sqe = loop_sqe(loop);
    io_uring_prep_read(sqe, fd, buf, len, 0);
    loop_sqe_attach(sqe, op);
    return co_loop_wait(loop, op);
}

struct fd_pair {
    int read_fd;
    int write_fd;
    int result;
    struct loop_op op;
    char bytes[8];
};

static void make_pipe(struct fd_pair *pipe_pair)
{
    int fds[2];
    ck_assert_int_eq(pipe(fds), 0);
    *pipe_pair = (struct fd_pair){.read_fd = fds[0], .write_fd = fds[1]};
}

static void close_pipe(struct fd_pair *pipe_pair)
{
    close(pipe_pair->read_fd);
    close(pipe_pair->write_fd);
}

static void read_pipe(void *arg)
{
    struct fd_pair *pipe_pair = arg;
    pipe_pair->result =
        co_read(pipe_pair->read_fd, pipe_pair->bytes, sizeof(pipe_pair->bytes), &pipe_pair->op);
}

static void write_later(void *arg)
{
    struct fd_pair *pipe_pair = arg;
    ck_assert_int_eq(coro_spawn(read_pipe, pipe_pair, "reader"), 0);
    co_yield ();
    ck_assert(!pipe_pair->op.done);
    struct loop_op op;
    struct io_uring_sqe *sqe = loop_sqe(loop);
    io_uring_prep_write(sqe, pipe_pair->write_fd, "hello", 5, 0);
    loop_sqe_attach(sqe, &op);
    int written = co_loop_wait(loop, &op);
    ck_assert_int_eq(written, 5);
    while (!pipe_pair->op.done) {
        co_yield ();
    }
    co_yield ();
}

START_TEST(test_pipe)
{
    struct fd_pair pipe_pair;
    make_pipe(&pipe_pair);
    run(write_later, &pipe_pair);
    ck_assert_int_eq(pipe_pair.result, 5);
    ck_assert_str_eq(pipe_pair.bytes, "hello");
    close_pipe(&pipe_pair);
}
END_TEST

static void read_event(void *arg)
{
    int fd = *(int *)arg;
    uint64_t events = 0;
    struct loop_op op;
    int ret = co_read(fd, &events, sizeof(events), &op);
    ck_assert_int_eq(ret, sizeof(events));
    ck_assert_uint_eq(events, 7);
    ret = co_read(-1, &events, sizeof(events), &op);
    ck_assert_int_eq(ret, -EBADF);
}

START_TEST(test_eventfd_and_errors)
{
    int fd = eventfd(7, EFD_CLOEXEC);
    ck_assert_int_ge(fd, 0);
    run(read_event, &fd);
    close(fd);
}
END_TEST

static void wait_after_completion(void *arg)
{
    (void)arg;
    struct loop_op op;
    struct io_uring_sqe *sqe = loop_sqe(loop);
    io_uring_prep_nop(sqe);
    loop_sqe_attach(sqe, &op);
    while (!op.done) {
        co_yield ();
    }
    int ret = co_loop_wait(loop, &op); /* does not suspend */
    ck_assert_int_eq(ret, 0);
    loop_cancel(loop, &op); /* nothing to cancel */
}

START_TEST(test_wait_after_completion)
{
    run(wait_after_completion, NULL);
}
END_TEST

static void cancel_read(void *arg)
{
    struct fd_pair *pipe_pair = arg;
    ck_assert_int_eq(coro_spawn(read_pipe, pipe_pair, "reader"), 0);
    for (int i = 0; i < 10; i++) {
        co_yield ();
    }
    ck_assert(!pipe_pair->op.done);
    loop_cancel(loop, &pipe_pair->op);
    while (!pipe_pair->op.done) {
        co_yield ();
    }
    co_yield ();
}

START_TEST(test_cancel_pending_read)
{
    struct fd_pair pipe_pair;
    make_pipe(&pipe_pair);
    run(cancel_read, &pipe_pair);
    ck_assert_int_eq(pipe_pair.result, -ECANCELED);
    close_pipe(&pipe_pair);
}
END_TEST

static void cancel_at_once(void *arg)
{
    struct fd_pair *pipe_pair = arg;
    struct loop_op op;
    struct io_uring_sqe *sqe = loop_sqe(loop);
    io_uring_prep_read(sqe, pipe_pair->read_fd, pipe_pair->bytes, sizeof(pipe_pair->bytes), 0);
    loop_sqe_attach(sqe, &op);
    loop_cancel(loop, &op); /* both are submitted together */
    pipe_pair->result = co_loop_wait(loop, &op);
}

START_TEST(test_cancel_in_the_turn_of_submitting)
{
    struct fd_pair pipe_pair;
    make_pipe(&pipe_pair);
    run(cancel_at_once, &pipe_pair);
    ck_assert_int_eq(pipe_pair.result, -ECANCELED);
    close_pipe(&pipe_pair);
}
END_TEST

/* ------------------------------------------------------------------------------- many at once */

#define MANY 20000U

struct crowd {
    struct group group;
    unsigned completed;
    int fd;
    int write_fd;
};

static void do_nop(void *arg)
{
    struct crowd *crowd = arg;
    struct loop_op op;
    for (int i = 0; i < 3; i++) {
        struct io_uring_sqe *sqe = loop_sqe(loop);
        io_uring_prep_nop(sqe);
        loop_sqe_attach(sqe, &op);
        int ret = co_loop_wait(loop, &op);
        ck_assert_int_eq(ret, 0);
    }
    crowd->completed++;
    group_leave(&crowd->group);
}

static void spawn_nops(void *arg)
{
    struct crowd *crowd = arg;
    group_init(&crowd->group);
    for (unsigned i = 0; i < MANY; i++) {
        group_enter(&crowd->group);
        ck_assert_int_eq(coro_spawn(do_nop, crowd, "nop"), 0);
    }
    co_group_wait(&crowd->group);
}

START_TEST(test_more_operations_than_the_ring_holds)
{
    struct crowd crowd = {0};
    run(spawn_nops, &crowd);
    ck_assert_uint_eq(crowd.completed, MANY);
}
END_TEST

#define MANY_READS 6000U

static void read_one_byte(void *arg)
{
    struct crowd *crowd = arg;
    struct loop_op op;
    char byte;
    int ret = co_read(crowd->fd, &byte, 1, &op);
    ck_assert_int_eq(ret, 1);
    crowd->completed++;
    group_leave(&crowd->group);
}

static void spawn_reads(void *arg)
{
    struct crowd *crowd = arg;
    group_init(&crowd->group);
    for (unsigned i = 0; i < MANY_READS; i++) {
        group_enter(&crowd->group);
        ck_assert_int_eq(coro_spawn(read_one_byte, crowd, "byte"), 0);
    }
    /*
     * All of them wait in the kernel now, and complete together: more than the queue has room for.
     */
    for (int i = 0; i < 3; i++) {
        co_yield ();
    }
    ck_assert_uint_eq(crowd->completed, 0);
    static const char bytes[MANY_READS];
    ck_assert_int_eq(write(crowd->write_fd, bytes, sizeof(bytes)), sizeof(bytes));
    co_group_wait(&crowd->group);
}

START_TEST(test_more_completions_than_the_ring_holds)
{
    int fds[2];
    ck_assert_int_eq(pipe(fds), 0);
    struct crowd crowd = {.fd = fds[0], .write_fd = fds[1]};
    run(spawn_reads, &crowd);
    ck_assert_uint_eq(crowd.completed, MANY_READS);
    close(fds[0]);
    close(fds[1]);
}
END_TEST

/* -------------------------------------------------------------------------------------- timers */

static char trace[64];

struct lettered_timer {
    struct world_timer timer;
    char letter;
    uint64_t fired_ns;
};

static void trace_letter(char letter)
{
    size_t len = strlen(trace);
    ck_assert_uint_lt(len + 1, sizeof(trace));
    trace[len] = letter;
    trace[len + 1] = '\0';
}

static void fire_letter(struct world_timer *timer)
{
    struct lettered_timer *lettered = container_of(timer, struct lettered_timer, timer);
    ck_assert_ptr_null(coro_self()); /* on the loop's stack */
    lettered->fired_ns = loop_now_ns(loop);
    trace_letter(lettered->letter);
    if (lettered->letter == 'z') {
        loop_stop(loop);
    }
}

START_TEST(test_timers)
{
    static const unsigned delays_ms[] = {30, 10, 20, 10, 15};
    struct lettered_timer timers[6];
    uint64_t start_ns = loop_now_ns(loop);
    trace[0] = '\0';
    for (unsigned i = 0; i < 5; i++) {
        timers[i] =
            (struct lettered_timer){.timer.fired = fire_letter, .letter = (char)('a' + (int)i)};
        loop_timer_start(loop, &timers[i].timer, start_ns + delays_ms[i] * MILLISECOND);
    }
    timers[5] = (struct lettered_timer){.timer.fired = fire_letter, .letter = 'z'};
    loop_timer_start(loop, &timers[5].timer, start_ns + 40 * MILLISECOND);
    loop_timer_stop(loop, &timers[4].timer);
    loop_run(loop);
    ck_assert_str_eq(trace, "bdcaz");
    for (unsigned i = 0; i < 4; i++) {
        ck_assert_uint_ge(timers[i].fired_ns, start_ns + delays_ms[i] * MILLISECOND);
    }
    ck_assert_uint_lt(timers[5].fired_ns, start_ns + 5000U * MILLISECOND);
}
END_TEST

static unsigned restarts;

static void start_again_at_once(struct world_timer *timer)
{
    if (++restarts < 1000) {
        loop_timer_start(loop, timer, 0);
    }
}

static void spin_until_restarted(void *arg)
{
    (void)arg;
    /* Turns go on between two firings, so this is not starved. */
    while (restarts < 500) {
        co_yield ();
    }
    ck_assert_uint_lt(restarts, 1000);
    while (restarts < 1000) {
        co_yield ();
    }
}

START_TEST(test_timer_that_starts_itself_again)
{
    struct world_timer timer = {.fired = start_again_at_once};
    struct world_timer far = {.fired = start_again_at_once};
    restarts = 0;
    loop_timer_start(loop, &timer, 0);
    loop_timer_start(loop, &far, UINT64_MAX);
    run(spin_until_restarted, NULL);
    ck_assert_uint_eq(restarts, 1000);
    loop_timer_stop(loop, &far);
    loop_timer_stop(loop, &far);
}
END_TEST

static struct coro *far_waiter;

static void wake_far_waiter(struct world_timer *timer)
{
    (void)timer;
    coro_wake(far_waiter);
}

static void wait_with_a_far_timer(void *arg)
{
    (void)arg;
    struct world_timer soon = {.fired = wake_far_waiter};
    far_waiter = coro_self();
    loop_timer_start(loop, &soon, loop_now_ns(loop) + 5 * MILLISECOND);
    co_suspend();
}

START_TEST(test_far_timer_does_not_make_the_loop_spin)
{
    struct world_timer far = {.fired = fire_letter};
    struct rusage before, after;
    loop_timer_start(loop, &far, UINT64_MAX);
    run(wait_with_a_far_timer, NULL);
    getrusage(RUSAGE_THREAD, &before);
    run(wait_with_a_far_timer, NULL);
    getrusage(RUSAGE_THREAD, &after);
    ck_assert_int_le(after.ru_nvcsw - before.ru_nvcsw, 20);
    loop_timer_stop(loop, &far);
}
END_TEST

/* --------------------------------------------------------------------------------------- hooks */

struct counting_hook {
    struct turn_hook hook;
    unsigned calls;
    bool again;
    struct coro *wakes;
};

static void count_call(struct turn_hook *hook)
{
    struct counting_hook *counting = container_of(hook, struct counting_hook, hook);
    ck_assert_ptr_null(coro_self());
    counting->calls++;
    if (counting->again) {
        loop_schedule_hook(loop, hook);
    }
    if (counting->wakes) {
        struct coro *coro = counting->wakes;
        counting->wakes = NULL;
        coro_wake(coro);
    }
}

static void do_one_nop(void)
{
    struct loop_op op;
    struct io_uring_sqe *sqe = loop_sqe(loop);
    io_uring_prep_nop(sqe);
    loop_sqe_attach(sqe, &op);
    int ret = co_loop_wait(loop, &op);
    ck_assert_int_eq(ret, 0);
}

static void schedule_hooks(void *arg)
{
    struct counting_hook *hooks = arg;
    for (int i = 0; i < 5; i++) {
        loop_schedule_hook(loop, &hooks[0].hook);
        loop_schedule_hook(loop, &hooks[1].hook);
        loop_unschedule_hook(&hooks[1].hook);
        co_yield ();
    }
    ck_assert_uint_eq(hooks[0].calls, 0); /* the turn is not over */
    do_one_nop();
    ck_assert_uint_eq(hooks[0].calls, 1);
    do_one_nop();
    ck_assert_uint_eq(hooks[0].calls, 1);

    /* Woken by the hook of its own turn. */
    hooks[0].wakes = coro_self();
    loop_schedule_hook(loop, &hooks[0].hook);
    co_suspend();
    ck_assert_uint_eq(hooks[0].calls, 2);

    /* A hook that schedules itself is called once a turn, and nothing waits. */
    hooks[0].again = true;
    loop_schedule_hook(loop, &hooks[0].hook);
    while (hooks[0].calls < 100) {
        do_one_nop();
    }
    hooks[0].again = false;
    loop_unschedule_hook(&hooks[0].hook);
    loop_unschedule_hook(&hooks[0].hook);
}

START_TEST(test_hooks_run_once_a_turn)
{
    struct counting_hook hooks[2] = {0};
    turn_hook_init(&hooks[0].hook, count_call);
    turn_hook_init(&hooks[1].hook, count_call);
    run(schedule_hooks, hooks);
    ck_assert_uint_ge(hooks[0].calls, 100);
    ck_assert_uint_eq(hooks[1].calls, 0);
}
END_TEST

/* ------------------------------------------------------------------------------------- signals */

struct signals_seen {
    unsigned usr1;
    unsigned usr2;
};

static void see_signal(void *arg, int signal_number)
{
    struct signals_seen *seen = arg;
    ck_assert_ptr_null(coro_self());
    if (signal_number == SIGUSR1) {
        seen->usr1++;
        raise(SIGUSR2);
    } else {
        ck_assert_int_eq(signal_number, SIGUSR2);
        seen->usr2++;
        loop_stop(loop);
    }
}

static void raise_soon(struct world_timer *timer)
{
    (void)timer;
    raise(SIGUSR1);
}

START_TEST(test_signals)
{
    struct signals_seen seen = {0};
    struct world_timer timer = {.fired = raise_soon};
    sigset_t signals;
    sigemptyset(&signals);
    sigaddset(&signals, SIGUSR1);
    sigaddset(&signals, SIGUSR2);
    ck_assert_int_eq(loop_watch_signals(loop, &signals, see_signal, &seen), 0);
    for (unsigned round = 1; round <= 3; round++) {
        loop_timer_start(loop, &timer, loop_now_ns(loop) + 5 * MILLISECOND);
        loop_run(loop);
        ck_assert_uint_eq(seen.usr1, round);
        ck_assert_uint_eq(seen.usr2, round);
    }
}
END_TEST

static void *send_signal_later(void *arg)
{
    usleep(20000);
    pthread_kill(*(pthread_t *)arg, SIGUSR2);
    return NULL;
}

START_TEST(test_signal_ends_a_wait_with_nothing_pending)
{
    struct signals_seen seen = {0};
    pthread_t self = pthread_self(), sender;
    sigset_t signals;
    sigemptyset(&signals);
    sigaddset(&signals, SIGUSR2);
    ck_assert_int_eq(loop_watch_signals(loop, &signals, see_signal, &seen), 0);
    ck_assert_int_eq(pthread_create(&sender, NULL, send_signal_later, &self), 0);
    loop_run(loop);
    ck_assert_uint_eq(seen.usr2, 1);
    pthread_join(sender, NULL);
}
END_TEST

static void interrupt(int signal_number)
{
    (void)signal_number;
}

static void *interrupt_often(void *arg)
{
    for (int i = 0; i < 50; i++) {
        usleep(500);
        pthread_kill(*(pthread_t *)arg, SIGUSR1);
    }
    usleep(500);
    pthread_kill(*(pthread_t *)arg, SIGUSR2);
    return NULL;
}

START_TEST(test_interrupted_waits_go_on)
{
    struct signals_seen seen = {0};
    struct sigaction action = {.sa_handler = interrupt};
    pthread_t self = pthread_self(), sender;
    sigset_t signals;
    ck_assert_int_eq(sigaction(SIGUSR1, &action, NULL), 0);
    sigemptyset(&signals);
    sigaddset(&signals, SIGUSR2);
    ck_assert_int_eq(loop_watch_signals(loop, &signals, see_signal, &seen), 0);
    ck_assert_int_eq(pthread_create(&sender, NULL, interrupt_often, &self), 0);
    loop_run(loop);
    ck_assert_uint_eq(seen.usr2, 1);
    pthread_join(sender, NULL);
}
END_TEST

START_TEST(test_stop_before_run)
{
    loop_stop(loop);
    loop_run(loop); /* comes back at once */
}
END_TEST

static void stop_from_coroutine(void *arg)
{
    (void)arg;
    loop_stop(loop);
    do_one_nop(); /* loop_run_coroutine() still turns until we are done */
}

START_TEST(test_stop_within_run_coroutine_is_kept)
{
    run(stop_from_coroutine, NULL);
    loop_run(loop);
}
END_TEST

/* ------------------------------------------------------------------------------------- workers */

struct work_crowd {
    struct group group;
    pthread_t loop_thread;
    pthread_barrier_t barrier;
    atomic_uint done;
    unsigned finished;
};

static void count_elsewhere(void *arg)
{
    struct work_crowd *crowd = arg;
    if (!pthread_equal(pthread_self(), crowd->loop_thread)) {
        atomic_fetch_add(&crowd->done, 1);
    }
}

static void work_three_times(void *arg)
{
    struct work_crowd *crowd = arg;
    for (int i = 0; i < 3; i++) {
        co_loop_work(loop, count_elsewhere, crowd);
    }
    crowd->finished++;
    group_leave(&crowd->group);
}

static void meet_elsewhere(void *arg)
{
    struct work_crowd *crowd = arg;
    pthread_barrier_wait(&crowd->barrier);
}

static void work_in_parallel(void *arg)
{
    struct work_crowd *crowd = arg;
    co_loop_work(loop, meet_elsewhere, crowd);
    crowd->finished++;
    group_leave(&crowd->group);
}

static void spawn_work(void *arg)
{
    struct work_crowd *crowd = arg;
    group_init(&crowd->group);
    for (unsigned i = 0; i < 1000; i++) {
        group_enter(&crowd->group);
        ck_assert_int_eq(coro_spawn(work_three_times, crowd, "work"), 0);
    }
    co_group_wait(&crowd->group);
    ck_assert_uint_eq(crowd->finished, 1000);
    for (unsigned i = 0; i < 2; i++) {
        group_enter(&crowd->group);
        ck_assert_int_eq(coro_spawn(work_in_parallel, crowd, "parallel"), 0);
    }
    co_group_wait(&crowd->group);
}

START_TEST(test_workers)
{
    struct work_crowd crowd = {.loop_thread = pthread_self()};
    ck_assert_int_eq(pthread_barrier_init(&crowd.barrier, NULL, 2), 0);
    run(spawn_work, &crowd);
    ck_assert_uint_eq(atomic_load(&crowd.done), 3000);
    ck_assert_uint_eq(crowd.finished, 1002);
    pthread_barrier_destroy(&crowd.barrier);
}
END_TEST

static void co_renew(void *arg)
{
    struct work_crowd *crowd = arg;
    ck_assert_int_eq(loop_renew_workers(loop), 0); /* there are none */
    co_loop_work(loop, count_elsewhere, crowd);
    ck_assert_int_eq(loop_renew_workers(loop), 0);
    co_loop_work(loop, count_elsewhere, crowd);
}

START_TEST(test_renewed_workers)
{
    struct work_crowd crowd = {.loop_thread = pthread_self()};
    run(co_renew, &crowd);
    ck_assert_uint_eq(atomic_load(&crowd.done), 2);
}
END_TEST

static void note_stack(void *arg)
{
    /* More than a coroutine has. */
    volatile char large[256 * 1024];
    large[0] = 1;
    large[sizeof(large) - 1] = 1;
    ck_assert_ptr_null(coro_self());
    *(unsigned *)arg += (unsigned)large[0];
}

static void work_without_threads(void *arg)
{
    co_loop_work(loop, note_stack, arg);
    co_loop_work(loop, note_stack, arg);
}

static void count_warnings(enum log_level level, const char *line, void *arg)
{
    ck_assert_int_eq(level, LOG_LEVEL_WARNING);
    ck_assert_ptr_nonnull(strstr(line, "worker threads"));
    ++*(unsigned *)arg;
}

START_TEST(test_work_without_threads)
{
    /* No descriptor can be had, so no thread pool can be made. */
    struct rlimit before, none;
    unsigned done = 0;
    unsigned warnings = 0;
    log_set_sink(count_warnings, &warnings);
    getrlimit(RLIMIT_NOFILE, &before);
    none = before;
    none.rlim_cur = 3;
    ck_assert_int_eq(setrlimit(RLIMIT_NOFILE, &none), 0);
    int ret = loop_run_coroutine(loop, work_without_threads, &done);
    setrlimit(RLIMIT_NOFILE, &before);
    ck_assert_int_eq(ret, 0);
    log_set_sink(NULL, NULL);
    ck_assert_uint_eq(done, 2);
    ck_assert_uint_eq(warnings, 1);
}
END_TEST

/* --------------------------------------------------------------------- what the ring is not for */

/* -EACCES if the ring refuses the operation as such; tried on a ring without restrictions, too. */
static int co_try(void (*prepare)(struct io_uring_sqe *sqe))
{
    struct loop_op op;
    struct io_uring_sqe *sqe = loop_sqe(loop);
    prepare(sqe);
    loop_sqe_attach(sqe, &op);
    return co_loop_wait(loop, &op);
}

static int try_unrestricted(void (*prepare)(struct io_uring_sqe *sqe))
{
    struct io_uring ring;
    struct io_uring_cqe *cqe;
    ck_assert_int_eq(io_uring_queue_init(4, &ring, 0), 0);
    prepare(io_uring_get_sqe(&ring));
    ck_assert_int_eq(io_uring_submit_and_wait(&ring, 1), 1);
    ck_assert_int_eq(io_uring_peek_cqe(&ring, &cqe), 0);
    int result = cqe->res;
    io_uring_queue_exit(&ring);
    return result;
}

static void prepare_open(struct io_uring_sqe *sqe)
{
    io_uring_prep_openat(sqe, AT_FDCWD, "/dev/null", O_RDONLY, 0);
}

static void prepare_socket(struct io_uring_sqe *sqe)
{
    io_uring_prep_socket(sqe, AF_INET, SOCK_STREAM, 0, 0);
}

/* No such socket: what counts is whether anybody looks. */
static void prepare_connect(struct io_uring_sqe *sqe)
{
    static const struct sockaddr_in address = {.sin_family = AF_INET};
    io_uring_prep_connect(sqe, -1, (const struct sockaddr *)&address, sizeof(address));
}

static void prepare_unlink(struct io_uring_sqe *sqe)
{
    io_uring_prep_unlink(sqe, "/nowhere/nothing", 0);
}

/* The same operation as an allowed one, but with a flag that nobody needs. */
static void prepare_linked_nop(struct io_uring_sqe *sqe)
{
    io_uring_prep_nop(sqe);
    sqe->flags |= IOSQE_IO_LINK;
}

typedef void prepare_fn(struct io_uring_sqe *sqe);

static void co_try_all(void *arg)
{
    static prepare_fn *const refused[] = {
        prepare_open, prepare_socket, prepare_connect, prepare_unlink, prepare_linked_nop,
    };
    (void)arg;
    for (unsigned i = 0; i < ARRAY_LEN(refused); i++) {
        ck_assert_int_ne(try_unrestricted(refused[i]), -EACCES);
        int result = co_try(refused[i]);
        ck_assert_msg(result == -EACCES, "operation %u: %d", i, result);
    }
    int result = co_try(io_uring_prep_nop);
    ck_assert_int_eq(result, 0);
}

START_TEST(test_ring_refuses_what_it_is_not_for)
{
    run(co_try_all, NULL);
}
END_TEST

/* -------------------------------------------------------------------------------- set-up errors */

START_TEST(test_setup_errors_say_what_to_change)
{
    static const struct {
        int errno_value;
        int disabled;
        const char *says;
    } cases[] = {
        {EPERM, 2, "kernel.io_uring_disabled is 2"},
        {EPERM, 1, "kernel.io_uring_group"},
        {EPERM, 0, "seccomp"},
        {EPERM, -1, "io_uring_setup, io_uring_enter and io_uring_register"},
        {EACCES, -1, "seccomp"},
        {ENOSYS, -1, "Linux 5.15"},
        {ENOMEM, 0, "RLIMIT_MEMLOCK"},
        {EMFILE, 0, "ulimit -n"},
        {EIO, 0, "Input/output error"},
    };
    for (size_t i = 0; i < ARRAY_LEN(cases); i++) {
        struct errtext err = {0};
        ck_assert_int_eq(loop_explain_setup_error(&err, cases[i].errno_value, cases[i].disabled),
                         -cases[i].errno_value);
        ck_assert_msg(strstr(err.text, cases[i].says) != NULL, "'%s' lacks '%s'", err.text,
                      cases[i].says);
        ck_assert_ptr_nonnull(strstr(err.text, "io_uring"));
    }
}
END_TEST

START_TEST(test_create_without_descriptors)
{
    struct rlimit before, none;
    struct loop *none_made = NULL;
    struct errtext err = {0};
    getrlimit(RLIMIT_NOFILE, &before);
    none = before;
    none.rlim_cur = 3;
    ck_assert_int_eq(setrlimit(RLIMIT_NOFILE, &none), 0);
    int ret = loop_create(&none_made, &err);
    setrlimit(RLIMIT_NOFILE, &before);
    ck_assert_int_eq(ret, -EMFILE);
    ck_assert_ptr_nonnull(strstr(err.text, "ulimit -n"));
    loop_free(NULL);
}
END_TEST

int main(void)
{
    Suite *suite = suite_create("loop");
    TCase *tcase = tcase_create("loop");
    tcase_set_timeout(tcase, 50);
    tcase_add_checked_fixture(tcase, set_up, tear_down);
    tcase_add_test(tcase, test_pipe);
    tcase_add_test(tcase, test_eventfd_and_errors);
    tcase_add_test(tcase, test_wait_after_completion);
    tcase_add_test(tcase, test_cancel_pending_read);
    tcase_add_test(tcase, test_cancel_in_the_turn_of_submitting);
    tcase_add_test(tcase, test_more_operations_than_the_ring_holds);
    tcase_add_test(tcase, test_more_completions_than_the_ring_holds);
    tcase_add_test(tcase, test_timers);
    tcase_add_test(tcase, test_timer_that_starts_itself_again);
    tcase_add_test(tcase, test_far_timer_does_not_make_the_loop_spin);
    tcase_add_test(tcase, test_hooks_run_once_a_turn);
    tcase_add_test(tcase, test_signals);
    tcase_add_test(tcase, test_signal_ends_a_wait_with_nothing_pending);
    tcase_add_test(tcase, test_interrupted_waits_go_on);
    tcase_add_test(tcase, test_stop_before_run);
    tcase_add_test(tcase, test_stop_within_run_coroutine_is_kept);
    tcase_add_test(tcase, test_workers);
    tcase_add_test(tcase, test_renewed_workers);
    tcase_add_test(tcase, test_work_without_threads);
    tcase_add_test(tcase, test_ring_refuses_what_it_is_not_for);
    suite_add_tcase(suite, tcase);
    tcase = tcase_create("setup");
    tcase_add_test(tcase, test_setup_errors_say_what_to_change);
    tcase_add_test(tcase, test_create_without_descriptors);
    suite_add_tcase(suite, tcase);
    return test_suite_run(suite);
}
