/* SPDX-License-Identifier: BSD-2-Clause */
/*
 * The loops of a server: the main thread's, and with --threads more, a thread each. Listening,
 * handshakes, goodbyes, configuration and signals are the main loop's. An export lives on one loop
 * wholly, its image, its requests and its clients' transmission, so that nothing on a request's way
 * is shared between threads and nothing is locked. With one loop there is no mailbox, and every
 * call to "another" loop is a plain call.
 */
#ifndef QCOWD_SERVICE_LOOPS_H
#define QCOWD_SERVICE_LOOPS_H

#include <pthread.h>
#include <semaphore.h>

#include "config/options.h"
#include "proto/nbd.h"
#include "sched/mailbox.h"
#include "sched/sync.h"
#include "service/runtime.h"

#define LOOPS_MAX THREADS_MAX

struct loops;

struct service_loop {
    struct loops *owner;
    struct runtime runtime;
    struct mailbox *mailbox; /* NULL: the only loop */
    struct nbd_service service;
    struct budget bytes_in_flight;
    unsigned exports; /* that live here */

    /* The protocol's call at the end of a turn: it asks for one at a time. */
    struct turn_hook turn_hook;
    void (*turn_end)(void *arg);
    void *turn_end_arg;

    /* All but the main loop. */
    pthread_t thread;
    sem_t started;
    int start_result;
    struct errtext start_err;
    struct wait_queue ending;
    bool end;
};

struct loops {
    unsigned count;
    struct service_loop *loops; /* [0]: the main one */
};

/*
 * Starts `count` loops (1..LOOPS_MAX), the first on this thread, each with a service whose
 * connections hold at most an equal share of `bytes_in_flight` together. -errno with nothing left
 * behind. Not in a coroutine. Does not suspend.
 */
int loops_start(struct loops *loops, unsigned count, uint64_t bytes_in_flight, struct errtext *err);
/* Everything that lived on the loops has ended. Not in a coroutine. */
void loops_end(struct loops *loops);

static inline struct service_loop *loops_main(const struct loops *loops)
{
    return &loops->loops[0];
}

/* The loop for one more export: that with the fewest. It has one fewer after loops_leave(). */
struct service_loop *loops_place(struct loops *loops);
void loops_leave(struct service_loop *loop);

/*
 * From a coroutine of the main loop: runs fn(arg) in a coroutine of `loop`, and returns when it has
 * returned. -ENOMEM: it was not called. May suspend.
 */
int co_loops_call(struct service_loop *loop, void (*fn)(void *arg), void *arg);
/* The same for what must happen: tried again until there is memory for it. May suspend. */
void co_loops_call_surely(struct service_loop *loop, void (*fn)(void *arg), void *arg);

/*
 * Drains every service at the same time: co_nbd_drain(). May be called again while it waits, with
 * less grace. May suspend.
 */
void co_loops_drain(struct loops *loops, uint64_t grace_ns);

#endif
