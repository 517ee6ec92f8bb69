/* SPDX-License-Identifier: BSD-2-Clause */
/*
 * Calls between loops: a coroutine of one thread has a function run in a coroutine of another
 * thread, and goes on when it has returned. Everything that lives on a loop is touched by that
 * loop's thread only; what must happen there is called through its mailbox. The caller's memory is
 * the callee's for the time of the call, so nothing is copied, and nothing but the mailbox itself
 * is locked. A server of one loop opens none.
 */
#ifndef QCOWD_SCHED_MAILBOX_H
#define QCOWD_SCHED_MAILBOX_H

struct loop;
struct mailbox;

/*
 * Opens this thread's mailbox and starts to serve it. *out is freed by co_mailbox_close(). -errno
 * with nothing left behind. Does not suspend.
 */
int mailbox_open(struct loop *loop, struct mailbox **out);

/*
 * Runs fn(arg) in a new coroutine of to's thread, and suspends until it has returned; calls it
 * directly when `to` is `from`, this thread's own. Calls from one thread begin in order. 0;
 * -ENOMEM: fn has not been called.
 */
int co_mailbox_call(struct mailbox *from, struct mailbox *to, void (*fn)(void *arg), void *arg);

/*
 * On the mailbox's own thread: ends serving it and frees it. No call may be under way from here,
 * nor come in after. NULL is fine. May suspend.
 */
void co_mailbox_close(struct mailbox *mailbox);

#endif
