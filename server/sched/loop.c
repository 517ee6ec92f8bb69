/* SPDX-License-Identifier: BSD-2-Clause */
/*
 * The ring loop. Reaping a completion only writes down its result and puts its waiter on the ready
 * list, so it may happen anywhere, also when the submission queue is found full halfway through a
 * turn. All that calls back (signals, timers, hooks) is called from the turn itself, never while
 * reaping.
 *
 * The loop's own two operations, the poll of the signalfd and the read of the workers' eventfd, are
 * told from everybody else's by their user_data.
 */
#include "sched/loop.h"

#include <assert.h>
#include <errno.h>
#include <liburing.h>
#include <poll.h>
#include <sched.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/signalfd.h>
#include <time.h>
#include <unistd.h>

#include "base/check.h"
#include "base/log.h"
#include "sched/co.h"
#include "sched/ring_restrict.h"
#include "sched/spin.h"
#include "sched/workers.h"

#define SQ_ENTRIES 256U
#define CQ_ENTRIES 4096U

/* Resumptions a turn: beyond, completions, timers and signals get their chance first. */
#define RESUMPTIONS_PER_TURN 4096U

#define SPINS 8U

/* The kernel adds the time of day to what it is given: this cannot overflow. */
#define LONGEST_WAIT_NS (3600U * 1000000000ULL)

/* user_data that is not the address of a struct loop_op */
#define TAG_IGNORED 0U
#define TAG_SIGNALS 1U
#define TAG_WORKERS 2U

/* An operation of the loop's own, submitted again each time it has completed. */
struct own_op {
    bool in_flight;
    bool completed; /* to be looked at in the turn */
};

struct loop {
    struct io_uring ring;
    bool stopping;
    unsigned pending; /* operations of loop_sqe() that have not completed */
    struct list hooks;
    struct timer_heap timers;
    uint64_t turn_ns; /* 0: nobody has asked in this turn */

    /*
     * By the number of pending operations, modulo their count: the wait for a disk is another than
     * the wait for a client, and how long the one took says nothing about the other.
     */
    struct spin spins[SPINS];

    int signal_fd; /* -1: none are watched */
    void (*signal_fn)(void *arg, int signal_number);
    void *signal_arg;
    struct own_op signal_op;

    struct worker_pool *workers; /* NULL until first used */
    bool workers_failed;
    unsigned work_outstanding;
    uint64_t worker_events;
    struct own_op worker_op;
    struct list loop_work; /* what the loop does itself because no thread could be started */
};

/* ------------------------------------------------------------------------------------- set-up */

int loop_explain_setup_error(struct errtext *err, int errno_value, int io_uring_disabled)
{
    switch (errno_value) {
    case EPERM:
    case EACCES:
        if (io_uring_disabled > 0) {
            return err_set(err, errno_value,
                           "io_uring is switched off: kernel.io_uring_disabled is %d; needed is 0 "
                           "(sysctl kernel.io_uring_disabled=0)%s",
                           io_uring_disabled,
                           io_uring_disabled == 1
                               ? ", or CAP_SYS_ADMIN, or membership in kernel.io_uring_group"
                               : "");
        }
        return err_set(err, errno_value,
                       "io_uring is not permitted here (%s), most likely by a container's seccomp "
                       "profile: allow io_uring_setup, io_uring_enter and io_uring_register in it, "
                       "or run with --security-opt seccomp=unconfined (docker, podman)",
                       strerror(errno_value));
    case ENOSYS:
        return err_set(
            err, ENOSYS,
            "the kernel has no io_uring (%s): needed is Linux 5.15 or later, built with "
            "CONFIG_IO_URING; some container and sandbox profiles hide it in this way too",
            strerror(ENOSYS));
    case ENOMEM:
        return err_set(err, ENOMEM,
                       "no memory for the io_uring queues (%s): raise the limit of locked memory "
                       "(ulimit -l, RLIMIT_MEMLOCK; LimitMEMLOCK= in a systemd unit) or of the "
                       "control group",
                       strerror(ENOMEM));
    case EMFILE:
    case ENFILE:
        return err_set(err, errno_value,
                       "no file descriptor for io_uring (%s): raise the limit of open files "
                       "(ulimit -n; LimitNOFILE= in a systemd unit)",
                       strerror(errno_value));
    default:
        return err_set(err, errno_value, "cannot set up io_uring: %s", strerror(errno_value));
    }
}

/* kernel.io_uring_disabled, or -1 where the kernel has no such switch. */
static int read_io_uring_disabled(void)
{
    int value = -1;
    FILE *file = fopen("/proc/sys/kernel/io_uring_disabled", "re");
    if (file) {
        if (fscanf(file, "%d", &value) != 1) {
            value = -1;
        }
        fclose(file);
    }
    return value;
}

/* The best set of flags that this kernel knows. */
static int init_ring(struct io_uring *ring)
{
    static const unsigned flags_best_first[] = {
        /* 6.1: completions are worked on only when we ask, never by interrupting us. */
        IORING_SETUP_SINGLE_ISSUER | IORING_SETUP_DEFER_TASKRUN | IORING_SETUP_TASKRUN_FLAG |
            IORING_SETUP_SUBMIT_ALL,
        /* 5.19: without interrupts between processors. */
        IORING_SETUP_COOP_TASKRUN | IORING_SETUP_TASKRUN_FLAG | IORING_SETUP_SUBMIT_ALL,
        0,
    };
    int ret = -EINVAL;
    for (size_t i = 0; i < ARRAY_LEN(flags_best_first) && ret == -EINVAL; i++) {
        struct io_uring_params params = {
            .flags = flags_best_first[i] | IORING_SETUP_CQSIZE | IORING_SETUP_CLAMP |
                     IORING_SETUP_R_DISABLED,
            .cq_entries = CQ_ENTRIES,
        };
        ret = io_uring_queue_init_params(SQ_ENTRIES, ring, &params);
    }
    if (ret == 0) {
        ret = ring_restrict(ring);
        if (ret < 0) {
            io_uring_queue_exit(ring);
        }
    }
    return ret;
}

int loop_create(struct loop **out, struct errtext *err)
{
    struct loop *loop = calloc(1, sizeof(*loop));
    if (!loop) {
        return err_set(err, ENOMEM, "no memory for the event loop");
    }
    int ret = init_ring(&loop->ring);
    if (ret) {
        free(loop);
        return loop_explain_setup_error(err, -ret, read_io_uring_disabled());
    }
    /* Completions are never dropped, waits have time limits, sockets need no threads: 5.11. */
    const unsigned needed = IORING_FEAT_NODROP | IORING_FEAT_EXT_ARG | IORING_FEAT_FAST_POLL;
    if ((loop->ring.features & needed) != needed) {
        ret = err_set(err, ENOSYS,
                      "the kernel's io_uring is too old (features 0x%x, needed 0x%x): needed is "
                      "Linux 5.15 or later",
                      loop->ring.features, needed);
        io_uring_queue_exit(&loop->ring);
        free(loop);
        return ret;
    }
    list_init(&loop->hooks);
    list_init(&loop->loop_work);
    timer_heap_init(&loop->timers);
    loop->signal_fd = -1;
    *out = loop;
    return 0;
}

/* ------------------------------------------------------------------- submitting and reaping */

static void complete_op(struct loop *loop, struct loop_op *op, const struct io_uring_cqe *cqe)
{
    op->cqe_flags = cqe->flags;
    /* A zero-copy send completes twice: first with its result, then when the pages are free. */
    if (!(cqe->flags & IORING_CQE_F_NOTIF)) {
        op->result = cqe->res;
    }
    if (cqe->flags & IORING_CQE_F_MORE) {
        return;
    }
    assert(!op->done && loop->pending > 0);
    op->done = true;
    loop->pending--;
    if (op->waiter) {
        coro_wake(op->waiter);
    }
}

static void complete_own_op(struct own_op *op)
{
    op->in_flight = false;
    op->completed = true;
}

/* Takes all completions there are; calls nobody back. */
static unsigned reap(struct loop *loop)
{
    unsigned total = 0;
    unsigned count;
    do {
        struct io_uring_cqe *cqe;
        unsigned head;
        count = 0;
        io_uring_for_each_cqe(&loop->ring, head, cqe) {
            count++;
            if (cqe->user_data == TAG_SIGNALS) {
                complete_own_op(&loop->signal_op);
            } else if (cqe->user_data == TAG_WORKERS) {
                complete_own_op(&loop->worker_op);
            } else if (cqe->user_data != TAG_IGNORED) {
                complete_op(loop, (struct loop_op *)(uintptr_t)cqe->user_data, cqe);
            }
        }
        io_uring_cq_advance(&loop->ring, count);
        total += count;
    } while (count > 0);
    return total;
}

/*
 * Errors of the system call itself. The kernel being short of memory or of room for completions
 * passes when completions are taken; everything else means that our own logic is broken.
 */
static void check_enter(int ret)
{
    if (ret < 0 && ret != -ETIME && ret != -EINTR && ret != -EBUSY && ret != -EAGAIN &&
        ret != -ENOMEM) {
        log_error("io_uring_enter: %s", strerror(-ret));
        abort();
    }
}

/* Submits what is queued, lets the kernel post what has completed, and takes it. Does not wait. */
static void submit_and_reap(struct loop *loop)
{
    if (io_uring_sq_ready(&loop->ring) > 0) {
        int ret = io_uring_submit_and_get_events(&loop->ring);
        check_enter(ret);
        if (ret == -EAGAIN || ret == -ENOMEM) {
            sched_yield();
        }
    } else if (IO_URING_READ_ONCE(*loop->ring.sq.kflags) &
               (IORING_SQ_CQ_OVERFLOW | IORING_SQ_TASKRUN)) {
        check_enter(io_uring_get_events(&loop->ring));
    }
    reap(loop);
}

static struct io_uring_sqe *take_sqe(struct loop *loop)
{
    struct io_uring_sqe *sqe = io_uring_get_sqe(&loop->ring);
    while (!sqe) {
        submit_and_reap(loop);
        sqe = io_uring_get_sqe(&loop->ring);
    }
    return sqe;
}

struct io_uring_sqe *loop_sqe(struct loop *loop)
{
    struct io_uring_sqe *sqe = take_sqe(loop);
    loop->pending++;
    return sqe;
}

void loop_sqe_attach(struct io_uring_sqe *sqe, struct loop_op *op)
{
    *op = (struct loop_op){0};
    sqe->user_data = (uintptr_t)op;
}

int co_loop_wait(struct loop *loop, struct loop_op *op)
{
    (void)loop;
    if (!op->done) {
        assert(!op->waiter);
        op->waiter = coro_self();
        co_suspend();
        assert(op->done);
    }
    return op->result;
}

static void cancel_user_data(struct loop *loop, uint64_t user_data)
{
    struct io_uring_sqe *sqe = take_sqe(loop);
    io_uring_prep_cancel64(sqe, user_data, 0);
    sqe->user_data = TAG_IGNORED;
}

void loop_cancel(struct loop *loop, struct loop_op *op)
{
    if (!op->done) {
        cancel_user_data(loop, (uintptr_t)op);
    }
}

/* -------------------------------------------------------------------------------------- hooks */

void turn_hook_init(struct turn_hook *hook, void (*run)(struct turn_hook *hook))
{
    list_init(&hook->link);
    hook->run = run;
}

void loop_schedule_hook(struct loop *loop, struct turn_hook *hook)
{
    if (!list_linked(&hook->link)) {
        list_push_back(&loop->hooks, &hook->link);
    }
}

void loop_unschedule_hook(struct turn_hook *hook)
{
    list_remove(&hook->link);
}

/* Those scheduled by now; what they schedule is for the next turn. */
static void run_hooks(struct loop *loop)
{
    struct list scheduled = LIST_INIT(scheduled);
    list_splice_back(&scheduled, &loop->hooks);
    while (!list_empty(&scheduled)) {
        struct turn_hook *hook = list_entry(list_pop_front(&scheduled), struct turn_hook, link);
        hook->run(hook);
    }
}

/* ------------------------------------------------------------------------------------- timers */

uint64_t loop_now_ns(const struct loop *loop)
{
    (void)loop;
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return (uint64_t)now.tv_sec * 1000000000U + (uint64_t)now.tv_nsec;
}

uint64_t loop_turn_ns(struct loop *loop)
{
    if (loop->turn_ns == 0) {
        loop->turn_ns = loop_now_ns(loop);
    }
    return loop->turn_ns;
}

void loop_timer_start(struct loop *loop, struct world_timer *timer, uint64_t deadline_ns)
{
    timer_heap_insert(&loop->timers, timer, deadline_ns);
}

void loop_timer_stop(struct loop *loop, struct world_timer *timer)
{
    timer_heap_remove(&loop->timers, timer);
}

static void fire_timers(struct loop *loop)
{
    if (timer_heap_empty(&loop->timers)) {
        return;
    }
    uint64_t now_ns = loop_now_ns(loop);
    /* Timers that are started by those that fire wait for the next turn, even with no delay. */
    uint64_t last_sequence = loop->timers.last_sequence;
    while (!timer_heap_empty(&loop->timers) && loop->timers.root->sequence <= last_sequence) {
        struct world_timer *timer = timer_heap_pop_due(&loop->timers, now_ns);
        if (!timer) {
            return;
        }
        timer->fired(timer);
    }
}

/* ------------------------------------------------------------------------------------ signals */

static void poll_signals(struct loop *loop)
{
    struct io_uring_sqe *sqe = take_sqe(loop);
    io_uring_prep_poll_add(sqe, loop->signal_fd, POLLIN);
    sqe->user_data = TAG_SIGNALS;
    loop->signal_op.in_flight = true;
}

int loop_watch_signals(struct loop *loop, const sigset_t *signals,
                       void (*fn)(void *arg, int signal_number), void *arg)
{
    assert(loop->signal_fd < 0);
    int error = pthread_sigmask(SIG_BLOCK, signals, NULL);
    if (error) {
        return -error;
    }
    loop->signal_fd = signalfd(-1, signals, SFD_CLOEXEC | SFD_NONBLOCK);
    if (loop->signal_fd < 0) {
        return -errno;
    }
    loop->signal_fn = fn;
    loop->signal_arg = arg;
    poll_signals(loop);
    return 0;
}

static void take_signals(struct loop *loop)
{
    loop->signal_op.completed = false;
    struct signalfd_siginfo info;
    while (read(loop->signal_fd, &info, sizeof(info)) == sizeof(info)) {
        loop->signal_fn(loop->signal_arg, (int)info.ssi_signo);
    }
    poll_signals(loop);
}

/* ------------------------------------------------------------------------------------ workers */

static void read_worker_events(struct loop *loop)
{
    struct io_uring_sqe *sqe = take_sqe(loop);
    io_uring_prep_read(sqe, worker_pool_fd(loop->workers), &loop->worker_events,
                       sizeof(loop->worker_events), 0);
    sqe->user_data = TAG_WORKERS;
    loop->worker_op.in_flight = true;
}

static bool start_workers(struct loop *loop)
{
    if (!loop->workers && !loop->workers_failed) {
        int ret = worker_pool_create(&loop->workers);
        if (ret) {
            loop->workers_failed = true;
            log_warning("cannot start worker threads (%s): compressing and the like will hold up "
                        "everything else",
                        strerror(-ret));
            return false;
        }
        read_worker_events(loop);
    }
    return loop->workers != NULL;
}

void co_loop_work(struct loop *loop, void (*fn)(void *arg), void *arg)
{
    struct work work = {.fn = fn, .arg = arg, .owner = coro_self()};
    assert(work.owner);
    loop->work_outstanding++;
    if (start_workers(loop)) {
        worker_pool_submit(loop->workers, &work);
    } else {
        list_push_back(&loop->loop_work, &work.link);
    }
    co_suspend();
}

static void finish_work(struct loop *loop, struct work *work)
{
    loop->work_outstanding--;
    coro_wake(work->owner);
}

static void take_finished_work(struct loop *loop)
{
    loop->worker_op.completed = false;
    struct list finished = LIST_INIT(finished);
    worker_pool_collect(loop->workers, &finished);
    while (!list_empty(&finished)) {
        finish_work(loop, list_entry(list_pop_front(&finished), struct work, link));
    }
    read_worker_events(loop);
}

/* One piece a turn, on the loop's own stack, which is large enough. */
static void do_loop_work(struct loop *loop)
{
    struct work *work = list_entry(list_pop_front(&loop->loop_work), struct work, link);
    work->fn(work->arg);
    finish_work(loop, work);
}

int loop_renew_workers(struct loop *loop)
{
    if (!loop->workers) {
        return 0;
    }
    return worker_pool_renew(loop->workers);
}

/* --------------------------------------------------------------------------------------- turn */

/* The loop's own operations may have been reaped early in the turn, when the queue was full. */
static bool may_wait(const struct loop *loop)
{
    return !coro_any_ready() && list_empty(&loop->hooks) && list_empty(&loop->loop_work) &&
           !loop->signal_op.completed && !loop->worker_op.completed;
}

static void relax_processor(void)
{
#if defined(__x86_64__) || defined(__i386__)
    __builtin_ia32_pause();
#elif defined(__aarch64__)
    __asm__ __volatile__("yield");
#endif
}

/* Whether there are completions to reap, or kernel work that will post some. No system call. */
static bool completions_at_hand(struct loop *loop)
{
    return io_uring_cq_ready(&loop->ring) > 0 ||
           (IO_URING_READ_ONCE(*loop->ring.sq.kflags) & IORING_SQ_TASKRUN);
}

/* Looks for completions instead of sleeping. */
static bool look_for_completions(struct loop *loop, struct spin *spin)
{
    uint64_t began_ns = loop_now_ns(loop);
    uint64_t took_ns;
    bool found = false;
    do {
        for (int i = 0; i < 4 && !found; i++) {
            relax_processor();
            found = completions_at_hand(loop);
        }
        took_ns = loop_now_ns(loop) - began_ns;
    } while (!found && took_ns < SPIN_NS);
    spin_ended(spin, took_ns);
    return found;
}

/* Submits and looks for completions, where that has been worth while. Whether it has reaped some.
 */
static bool submit_and_spin(struct loop *loop)
{
    struct spin *spin = &loop->spins[loop->pending % SPINS];

    if (!spin_wanted(spin)) {
        return false;
    }
    if (io_uring_sq_ready(&loop->ring) > 0) {
        check_enter(io_uring_submit(&loop->ring));
    }
    bool found = look_for_completions(loop, spin);
    if (found) {
        submit_and_reap(loop);
    }
    return found;
}

/* Submits and waits for one completion or the earliest timer. */
static void submit_and_wait(struct loop *loop)
{
    struct __kernel_timespec timeout;
    struct __kernel_timespec *timeout_or_forever = NULL;

    if (submit_and_spin(loop)) {
        return;
    }
    if (!timer_heap_empty(&loop->timers)) {
        uint64_t deadline_ns = timer_heap_earliest(&loop->timers);
        uint64_t now_ns = loop_now_ns(loop);
        if (deadline_ns <= now_ns) {
            submit_and_reap(loop);
            return;
        }
        uint64_t wait_ns = MIN_OF(deadline_ns - now_ns, LONGEST_WAIT_NS);
        timeout.tv_sec = (long long)(wait_ns / 1000000000U);
        timeout.tv_nsec = (long long)(wait_ns % 1000000000U);
        timeout_or_forever = &timeout;
    }
    struct io_uring_cqe *cqe;
    check_enter(io_uring_submit_and_wait_timeout(&loop->ring, &cqe, 1, timeout_or_forever, NULL));
    reap(loop);
}

/* Does not wait once `*enough` is true. */
static void turn(struct loop *loop, const bool *enough)
{
    loop->turn_ns = 0;
    coro_run_some(RESUMPTIONS_PER_TURN);
    if (!list_empty(&loop->hooks)) {
        run_hooks(loop);
        /* So that what they woke goes out with the same system call. */
        coro_run_some(RESUMPTIONS_PER_TURN);
    }
    if (!list_empty(&loop->loop_work)) {
        do_loop_work(loop);
    }
    if (!*enough && may_wait(loop)) {
        submit_and_wait(loop);
    } else {
        submit_and_reap(loop);
    }
    if (loop->worker_op.completed) {
        take_finished_work(loop);
    }
    if (loop->signal_op.completed) {
        take_signals(loop);
    }
    fire_timers(loop);
}

void loop_run(struct loop *loop)
{
    while (!loop->stopping) {
        turn(loop, &loop->stopping);
    }
    loop->stopping = false;
}

void loop_stop(struct loop *loop)
{
    loop->stopping = true;
}

struct awaited {
    void (*fn)(void *arg);
    void *arg;
    bool returned;
};

static void run_awaited(void *arg)
{
    struct awaited *awaited = arg;
    awaited->fn(awaited->arg);
    awaited->returned = true;
}

int loop_run_coroutine(struct loop *loop, void (*fn)(void *arg), void *arg)
{
    struct awaited awaited = {.fn = fn, .arg = arg};
    int ret = coro_spawn(run_awaited, &awaited, "main");
    if (ret) {
        return ret;
    }
    while (!awaited.returned) {
        turn(loop, &awaited.returned);
    }
    return 0;
}

/* ----------------------------------------------------------------------------------- tear-down */

static void end_own_ops(struct loop *loop)
{
    if (loop->signal_op.in_flight) {
        cancel_user_data(loop, TAG_SIGNALS);
    }
    if (loop->worker_op.in_flight) {
        cancel_user_data(loop, TAG_WORKERS);
    }
    while (loop->signal_op.in_flight || loop->worker_op.in_flight) {
        struct io_uring_cqe *cqe;
        check_enter(io_uring_submit_and_wait_timeout(&loop->ring, &cqe, 1, NULL, NULL));
        reap(loop);
    }
}

void loop_free(struct loop *loop)
{
    if (!loop) {
        return;
    }
    assert(!coro_any_ready());
    assert(loop->pending == 0 && loop->work_outstanding == 0);
    assert(list_empty(&loop->hooks) && timer_heap_empty(&loop->timers));
    end_own_ops(loop);
    worker_pool_free(loop->workers);
    if (loop->signal_fd >= 0) {
        close(loop->signal_fd);
    }
    io_uring_queue_exit(&loop->ring);
    coro_pool_drain();
    free(loop);
}
