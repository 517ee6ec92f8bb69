/* SPDX-License-Identifier: BSD-2-Clause */
#include "service/loops.h"

#include <assert.h>
#include <errno.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/check.h"
#include "base/log.h"
#include "sched/co.h"

#define RETRY_NS (50ULL * 1000 * 1000)

/* ---- What the services need of their loop ---- */

static void run_turn_end(struct turn_hook *hook)
{
    struct service_loop *loop = container_of(hook, struct service_loop, turn_hook);
    void (*turn_end)(void *arg) = loop->turn_end;
    loop->turn_end = NULL;
    turn_end(loop->turn_end_arg);
}

static struct service_loop *loop_of(struct nbd_service *service)
{
    return container_of(service, struct service_loop, service);
}

static void at_end_of_turn(struct nbd_service *service, void (*fn)(void *arg), void *arg)
{
    struct service_loop *loop = loop_of(service);
    assert(!loop->turn_end);
    loop->turn_end = fn;
    loop->turn_end_arg = arg;
    loop_schedule_hook(loop->runtime.loop, &loop->turn_hook);
}

static int co_call(struct nbd_service *here, struct nbd_service *home, void (*fn)(void *arg),
                   void *arg)
{
    return co_mailbox_call(loop_of(here)->mailbox, loop_of(home)->mailbox, fn, arg);
}

static void init_service(struct service_loop *loop, uint64_t bytes_in_flight)
{
    struct nbd_service *service = &loop->service;
    nbd_service_init(service);
    budget_init(&loop->bytes_in_flight, bytes_in_flight);
    turn_hook_init(&loop->turn_hook, run_turn_end);
    service->world = loop->runtime.world;
    service->bytes_in_flight = &loop->bytes_in_flight;
    service->at_end_of_turn = at_end_of_turn;
    service->co_call = co_call;
}

/* ---- Threads ---- */

static void co_thread_life(void *arg)
{
    struct service_loop *loop = arg;
    while (!loop->end) {
        co_wait(&loop->ending);
    }
    co_mailbox_close(loop->mailbox);
}

static void *thread_main(void *arg)
{
    struct service_loop *loop = arg;
    struct errtext *err = &loop->start_err;
    loop->start_result = runtime_start(&loop->runtime, err);
    if (loop->start_result < 0) {
        sem_post(&loop->started);
        return NULL;
    }
    loop->start_result = mailbox_open(loop->runtime.loop, &loop->mailbox);
    bool running = loop->start_result == 0;
    if (!running) {
        err_set(err, -loop->start_result, "cannot start a loop: %s", strerror(-loop->start_result));
    }
    sem_post(&loop->started);
    if (running) {
        int result = loop_run_coroutine(loop->runtime.loop, co_thread_life, loop);
        assert(result == 0);
        (void)result;
    }
    runtime_end(&loop->runtime);
    return NULL;
}

static int start_thread(struct service_loop *loop, unsigned number, struct errtext *err)
{
    char name[24];
    sigset_t all;
    sigset_t before;
    wait_queue_init(&loop->ending);
    sem_init(&loop->started, 0, 0);
    sigfillset(&all);
    sigdelset(&all, SIGSYS); /* comes of a refused system call, to the thread that made it */
    pthread_sigmask(SIG_SETMASK, &all, &before);
    int error = pthread_create(&loop->thread, NULL, thread_main, loop);
    pthread_sigmask(SIG_SETMASK, &before, NULL);
    if (error) {
        sem_destroy(&loop->started);
        return err_set(err, error, "cannot start a thread: %s", strerror(error));
    }
    snprintf(name, sizeof(name), "qcowd-loop-%u", number);
    pthread_setname_np(loop->thread, name);
    while (sem_wait(&loop->started) < 0) {
        assert(errno == EINTR);
    }
    sem_destroy(&loop->started);
    if (loop->start_result < 0) {
        pthread_join(loop->thread, NULL);
        *err = loop->start_err;
    }
    return loop->start_result;
}

static void end_thread(void *arg)
{
    struct service_loop *loop = arg;
    loop->end = true;
    wait_queue_wake_all(&loop->ending);
}

/* Runs on the main loop, at the very end. */
static void co_end_threads(void *arg)
{
    struct loops *loops = arg;
    for (unsigned i = 1; i < loops->count; i++) {
        co_loops_call_surely(&loops->loops[i], end_thread, &loops->loops[i]);
    }
    co_mailbox_close(loops_main(loops)->mailbox);
}

void loops_end(struct loops *loops)
{
    struct service_loop *main_loop = loops_main(loops);
    if (main_loop->mailbox) {
        int result = loop_run_coroutine(main_loop->runtime.loop, co_end_threads, loops);
        if (result < 0) {
            log_error("out of memory while stopping");
            abort();
        }
        for (unsigned i = 1; i < loops->count; i++) {
            pthread_join(loops->loops[i].thread, NULL);
        }
    }
    runtime_end(&main_loop->runtime);
    free(loops->loops);
    loops->loops = NULL;
}

static int start_others(struct loops *loops, unsigned count, uint64_t share, struct errtext *err)
{
    struct service_loop *main_loop = loops_main(loops);
    int result = mailbox_open(main_loop->runtime.loop, &main_loop->mailbox);
    if (result < 0) {
        return err_set(err, -result, "cannot start a loop: %s", strerror(-result));
    }
    for (unsigned i = 1; i < count && result == 0; i++) {
        result = start_thread(&loops->loops[i], i, err);
        if (result == 0) {
            init_service(&loops->loops[i], share);
            loops->count++;
        }
    }
    return result;
}

int loops_start(struct loops *loops, unsigned count, uint64_t bytes_in_flight, struct errtext *err)
{
    assert(count >= 1 && count <= LOOPS_MAX);
    const uint64_t share = bytes_in_flight / count;
    loops->loops = calloc(count, sizeof(*loops->loops));
    if (!loops->loops) {
        return err_set(err, ENOMEM, "out of memory");
    }
    for (unsigned i = 0; i < count; i++) {
        loops->loops[i].owner = loops;
    }
    int result = runtime_start(&loops_main(loops)->runtime, err);
    if (result < 0) {
        free(loops->loops);
        return result;
    }
    loops->count = 1;
    init_service(loops_main(loops), share);
    if (count > 1) {
        result = start_others(loops, count, share, err);
    }
    if (result < 0) {
        loops_end(loops);
    }
    return result;
}

/* ---- For the main loop ---- */

struct service_loop *loops_place(struct loops *loops)
{
    struct service_loop *best = loops_main(loops);
    for (unsigned i = 1; i < loops->count; i++) {
        if (loops->loops[i].exports < best->exports) {
            best = &loops->loops[i];
        }
    }
    best->exports++;
    return best;
}

void loops_leave(struct service_loop *loop)
{
    assert(loop->exports > 0);
    loop->exports--;
}

int co_loops_call(struct service_loop *loop, void (*fn)(void *arg), void *arg)
{
    return co_mailbox_call(loops_main(loop->owner)->mailbox, loop->mailbox, fn, arg);
}

void co_loops_call_surely(struct service_loop *loop, void (*fn)(void *arg), void *arg)
{
    int result = co_loops_call(loop, fn, arg);
    while (result < 0) { /* there will be memory when somebody has gone */
        co_sleep_ns(loops_main(loop->owner)->runtime.world, RETRY_NS);
        result = co_loops_call(loop, fn, arg);
    }
}

struct drain {
    struct service_loop *loop;
    uint64_t grace_ns;
    struct group *group;
};

static void co_drain_here(void *arg)
{
    struct drain *drain = arg;
    co_nbd_drain(&drain->loop->service, drain->grace_ns);
}

static void co_drain_one(void *arg)
{
    struct drain *drain = arg;
    co_loops_call_surely(drain->loop, co_drain_here, drain); /* O9 */
    group_leave(drain->group);
}

void co_loops_drain(struct loops *loops, uint64_t grace_ns)
{
    struct drain drains[LOOPS_MAX];
    struct group group;
    group_init(&group);
    for (unsigned i = 1; i < loops->count; i++) {
        drains[i] = (struct drain){&loops->loops[i], grace_ns, &group};
        group_enter(&group);
        if (coro_spawn(co_drain_one, &drains[i], "drain a loop") < 0) {
            co_drain_one(&drains[i]);
        }
    }
    co_nbd_drain(&loops_main(loops)->service, grace_ns);
    co_group_wait(&group);
}
