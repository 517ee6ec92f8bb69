/* SPDX-License-Identifier: BSD-2-Clause */
/*
 * Stackful coroutines and the ready list they run from.
 *
 * One scheduler a thread, in thread-local storage. A coroutine runs until it suspends; nothing
 * preempts it, so memory that is not touched across a call named co_* needs no lock. Whoever drives
 * the thread (the ring loop, the simulator, a test) calls coro_run_ready() whenever something has
 * been woken. Completions are reaped into the ready list and run after, never while reaping.
 *
 * Functions that may suspend are named co_*, and are called one a statement; after such a call
 * nothing read before it may be trusted (O7).
 *
 * Stacks are mmap'ed with a guard page below, kept in a pool, and announced to ASan and valgrind.
 * Stack size: LIMIT_COROUTINE_STACK_BYTES. What needs more (inflate, deflate, TLS) goes to workers,
 * or for what is short to the driver's stack.
 */
#ifndef QCOWD_SCHED_CO_H
#define QCOWD_SCHED_CO_H

#include <stdbool.h>
#include <stddef.h>

struct coro;
typedef void coro_fn(void *arg);

/*
 * Makes a coroutine and puts it on the ready list; it first runs at the next coro_run_ready().
 * `name` is a string that outlives it (shown by gdb). It is freed when fn returns.
 * 0, or -ENOMEM. Does not suspend; may be called from anywhere on the thread.
 */
int coro_spawn(coro_fn *fn, void *arg, const char *name);

/* The running coroutine, NULL on the driver's own stack. */
struct coro *coro_self(void);

/* Gives up the processor until coro_wake(coro_self()). Asserts that it runs in a coroutine. */
void co_suspend(void);

/* To the end of the ready list: everything that is ready runs first. */
void co_yield (void);

/*
 * Puts a suspended coroutine on the ready list. Asserts that it is suspended and not woken yet: one
 * suspension has one waker. Does not run it.
 */
void coro_wake(struct coro *coro);

/*
 * Runs coroutines until the ready list is empty, those woken meanwhile included. Called on the
 * driver's stack only. Returns whether any ran.
 */
bool coro_run_ready(void);

/*
 * Calls fn(arg) on the driver's stack, which is a thread's full-size one, and returns when fn has.
 * Nothing else runs meanwhile: it is a call, not a suspension, and costs two switches. fn must not
 * suspend nor run coroutines. On the driver's own stack it just calls fn.
 */
void coro_call_on_driver(void (*fn)(void *arg), void *arg);

/*
 * As coro_run_ready(), but comes back after `most` resumptions (> 0), so that coroutines that keep
 * each other busy do not keep a loop from its timers, signals and completions.
 */
bool coro_run_some(unsigned most);

/* Whether the ready list is non-empty. */
bool coro_any_ready(void);

/*
 * Gives the memory back that calls have used which have returned: for the running coroutine, before
 * it waits for long. Costs a system call.
 */
void coro_trim_stack(void);

/* Coroutines that have not returned yet, on this thread. */
size_t coro_live_count(void);

/* Frees pooled stacks of this thread (for leak checkers, and before a thread ends). */
void coro_pool_drain(void);

#endif
