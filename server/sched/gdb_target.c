/* SPDX-License-Identifier: BSD-2-Clause */
/*
 * What test_gdb.py looks at with gdb: coroutines suspended a few frames down, on two threads, and
 * one that runs.
 */
#include <pthread.h>
#include <stddef.h>
#include <stdlib.h>
#include <unistd.h>

#include "sched/co.h"

static struct coro *waiting[4];
static pthread_barrier_t barrier;

/* gdb stops here, called from the running coroutine. */
__attribute__((noinline)) void all_are_in_place(void);
void all_are_in_place(void)
{
    __asm__ volatile("" ::: "memory");
}

/* At the end of a function: the call before it is no tail call, and each depth is a frame. */
#define KEEP_FRAME() __asm__ volatile("" ::: "memory")

static __attribute__((noinline)) void co_wait_at_depth(unsigned slot, unsigned depth)
{
    if (depth == 0) {
        waiting[slot] = coro_self();
        co_suspend();
    } else {
        co_wait_at_depth(slot, depth - 1);
    }
    KEEP_FRAME();
}

static void wait_in_slot(void *arg)
{
    unsigned slot = *(unsigned *)arg;
    co_wait_at_depth(slot, slot + 1);
    KEEP_FRAME();
}

static void stop_in_gdb(void *arg)
{
    (void)arg;
    all_are_in_place();
    KEEP_FRAME();
}

static void spawn(coro_fn *fn, void *arg, const char *name)
{
    if (coro_spawn(fn, arg, name)) {
        abort();
    }
}

static void *other_thread(void *arg)
{
    spawn(wait_in_slot, arg, "in the other thread");
    coro_run_ready();
    pthread_barrier_wait(&barrier);
    pthread_barrier_wait(&barrier);
    coro_wake(waiting[*(unsigned *)arg]);
    coro_run_ready();
    coro_pool_drain();
    return NULL;
}

int main(void)
{
    unsigned slots[4] = {0, 1, 2, 3};
    pthread_t thread;
    if (pthread_barrier_init(&barrier, NULL, 2) ||
        pthread_create(&thread, NULL, other_thread, &slots[3])) {
        return 1;
    }
    spawn(wait_in_slot, &slots[0], "shallow");
    spawn(wait_in_slot, &slots[1], "deeper");
    spawn(wait_in_slot, &slots[2], "deepest");
    coro_run_ready();
    pthread_barrier_wait(&barrier);
    spawn(stop_in_gdb, NULL, "running");
    coro_run_ready();
    for (unsigned i = 0; i < 3; i++) {
        coro_wake(waiting[i]);
    }
    coro_run_ready();
    pthread_barrier_wait(&barrier);
    pthread_join(thread, NULL);
    return coro_live_count() == 0 ? 0 : 1;
}
