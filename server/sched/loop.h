/* SPDX-License-Identifier: BSD-2-Clause */
/*
 * The ring loop: one thread's io_uring, timers, worker completions and signals, driving that
 * thread's coroutines. A turn: run the ready list until it is empty (or a bound is reached), run
 * the turn hooks (they send what the turn produced), submit, wait, reap completions into the ready
 * list. One submission system call a turn, and none at all when a turn queued nothing.
 */
#ifndef QCOWD_SCHED_LOOP_H
#define QCOWD_SCHED_LOOP_H

#include <signal.h>
#include <stdbool.h>
#include <stdint.h>

#include "base/errtext.h"
#include "base/list.h"
#include "sched/timers.h"

struct loop;
struct io_uring_sqe;
struct coro;

/*
 * Sets up the ring of this thread. -ENOSYS, -EPERM (io_uring switched off:
 * kernel.io_uring_disabled, a container's seccomp profile), -ENOMEM: err says what to change. One
 * loop a thread.
 */
int loop_create(struct loop **out, struct errtext *err);
/*
 * The text for a failed set-up, for tests: errno_value > 0 as io_uring_setup() gave it, and the
 * value of kernel.io_uring_disabled (-1: the kernel has no such switch). Returns -errno_value.
 */
int loop_explain_setup_error(struct errtext *err, int errno_value, int io_uring_disabled);
/*
 * Nothing may be pending: no operation, timer, hook, work or ready coroutine. NULL is fine. Signals
 * that were watched stay blocked.
 */
void loop_free(struct loop *loop);

/* Turns until loop_stop() was called, which may have been before. Runs on the driver's stack. */
void loop_run(struct loop *loop);
void loop_stop(struct loop *loop);

/* Runs fn(arg) in a coroutine and turns until it has returned: for main() and tests. -ENOMEM. */
int loop_run_coroutine(struct loop *loop, void (*fn)(void *arg), void *arg);

/*
 * One ring operation. The submitter keeps it in place (on its coroutine's stack) until it
 * completes.
 */
struct loop_op {
    struct coro *waiter;
    int result; /* as the kernel gives it: >= 0 or -errno */
    uint32_t cqe_flags;
    bool done;
};

/*
 * A submission entry tied to op, for io_uring_prep_*(); submits what is queued when the ring is
 * full. The caller prepares it at once and then calls co_loop_wait(). Does not suspend. The prep
 * helpers of liburing clear user_data, so call loop_sqe_attach() after them.
 */
struct io_uring_sqe *loop_sqe(struct loop *loop);
void loop_sqe_attach(struct io_uring_sqe *sqe, struct loop_op *op);
/* Suspends until op has completed; returns op->result. */
int co_loop_wait(struct loop *loop, struct loop_op *op);
/* Asks the kernel to end an op in flight; it completes with -ECANCELED, or as it would have. */
void loop_cancel(struct loop *loop, struct loop_op *op);

/*
 * Called at the end of each turn in which it was scheduled, on the loop's stack, once. Scheduled
 * from within a hook, it is called in the next turn.
 */
struct turn_hook {
    struct list link;
    void (*run)(struct turn_hook *hook);
};
void turn_hook_init(struct turn_hook *hook, void (*run)(struct turn_hook *hook));
void loop_schedule_hook(struct loop *loop, struct turn_hook *hook); /* no-op when scheduled */
void loop_unschedule_hook(struct turn_hook *hook);

/*
 * Calls fn on the loop's stack for each of these signals, from signalfd; blocks them for the
 * process's threads made later. Once a loop.
 */
int loop_watch_signals(struct loop *loop, const sigset_t *signals,
                       void (*fn)(void *arg, int signal_number), void *arg);

/* As in world.h: starting an armed timer moves it, stopping one that is not armed is fine. */
uint64_t loop_now_ns(const struct loop *loop);
/* The time at which somebody first asked in the present turn: one look at the clock for all. */
uint64_t loop_turn_ns(struct loop *loop);
void loop_timer_start(struct loop *loop, struct world_timer *timer, uint64_t deadline_ns);
void loop_timer_stop(struct loop *loop, struct world_timer *timer);

/*
 * Runs fn(arg) on a worker thread; suspends until it has finished. Threads start on first use;
 * where none can be started, fn runs on the loop's stack.
 */
void co_loop_work(struct loop *loop, void (*fn)(void *arg), void *arg);
/*
 * Ends the worker threads there are and starts new ones, which have the credentials and the
 * confinement of the calling thread. Waits for work that is running; what has not begun is done by
 * the new threads. -errno when none could be started: the loop can do no more work.
 */
int loop_renew_workers(struct loop *loop);

#endif
