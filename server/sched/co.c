/* SPDX-License-Identifier: BSD-2-Clause */
/*
 * Coroutines: each is one mapping, from low to high: guard page, stack, struct coro. A request's
 * life begins with a spawn and ends with a return, so both are a few list operations: finished
 * coroutines go to a pool with their stacks as they are, and the hottest one is taken first.
 *
 * A coroutine that suspends hands the processor straight to the next ready one; the driver's stack
 * is visited only when nothing is ready (or the driver asked to be back sooner). One that has
 * returned cannot free the stack it stands on: whoever runs next does.
 */
#include "sched/co.h"

#include <assert.h>
#include <errno.h>
#include <limits.h>
#include <stdint.h>
#include <sys/mman.h>
#include <unistd.h>

#include "base/limits.h"
#include "sched/context.h"

#ifdef HAVE_VALGRIND
#include <valgrind/valgrind.h>
#endif

/* Sanitizers put red zones around every local variable. */
#if defined(CONTEXT_ASAN) || defined(CONTEXT_TSAN)
#define STACK_BYTES (4U * LIMIT_COROUTINE_STACK_BYTES)
#else
#define STACK_BYTES LIMIT_COROUTINE_STACK_BYTES
#endif

/* Finished coroutines that are kept for the next spawn. */
#define POOL_CAPACITY 256U

/*
 * Above the stack: struct coro, and up to COLOURS * COLOUR_BYTES of nothing. Were all stacks to
 * begin at the same offset in a page, their hot ends would compete for the same few cache sets.
 */
#define COLOURS      16U
#define COLOUR_BYTES 192U
#define HEAD_BYTES   (sizeof(struct coro) + COLOURS * COLOUR_BYTES + 64U)

enum coro_state { CORO_READY, CORO_RUNNING, CORO_CALLING, CORO_SUSPENDED, CORO_FINISHED };

struct coro {
    struct context context;
    enum coro_state state;
    struct coro *next_ready; /* in the ready list; in the pool, the next of the pool */
    struct coro *live_next;
    struct coro *live_prev;
    coro_fn *fn;
    void *arg;
    const char *name;
    char *stack; /* the lowest usable byte; the stack ends where this struct begins */
    char *mapping;
    size_t mapping_bytes;
    unsigned valgrind_id;
};

/* What a coroutine has the driver's stack call for it. */
struct driver_call {
    void (*fn)(void *arg);
    void *arg;
    struct coro *caller;
};

struct scheduler {
    struct coro *running;     /* NULL on the driver's stack */
    struct driver_call *call; /* from the caller's switch until fn has returned */
    struct coro *ready_first;
    struct coro *ready_last;
    unsigned resumptions_left;
    struct coro *finished;         /* has returned; freed by whoever runs next */
    struct context *switched_from; /* who had the processor before */
    struct context driver;
    struct coro *live; /* the youngest */
    size_t live_count;
    struct coro *pool;
    unsigned pool_count;
    unsigned next_colour;
};

/* All zero is a scheduler in which nothing runs. gdb finds it by this name. */
static _Thread_local struct scheduler coro_scheduler;

static struct coro *coro_map(struct scheduler *scheduler)
{
    size_t page_bytes = (size_t)sysconf(_SC_PAGESIZE);
    size_t usable_bytes = STACK_BYTES + HEAD_BYTES;
    usable_bytes = (usable_bytes + page_bytes - 1) / page_bytes * page_bytes;
    size_t mapping_bytes = page_bytes + usable_bytes;
    char *mapping = mmap(NULL, mapping_bytes, PROT_READ | PROT_WRITE,
                         MAP_PRIVATE | MAP_ANONYMOUS | MAP_STACK, -1, 0);
    if (mapping == MAP_FAILED) {
        return NULL;
    }
    if (mprotect(mapping, page_bytes, PROT_NONE)) {
        munmap(mapping, mapping_bytes);
        return NULL;
    }
    uintptr_t place = (uintptr_t)mapping + mapping_bytes - sizeof(struct coro) -
                      scheduler->next_colour * COLOUR_BYTES;
    scheduler->next_colour = (scheduler->next_colour + 1) % COLOURS;
    struct coro *coro = (struct coro *)(place & ~(uintptr_t)63);
    coro->mapping = mapping;
    coro->mapping_bytes = mapping_bytes;
    coro->stack = mapping + page_bytes;
#ifdef HAVE_VALGRIND
    coro->valgrind_id = VALGRIND_STACK_REGISTER(coro->stack, (char *)coro);
#endif
    return coro;
}

static void coro_unmap(struct coro *coro)
{
#ifdef HAVE_VALGRIND
    VALGRIND_STACK_DEREGISTER(coro->valgrind_id);
#endif
#ifdef CONTEXT_ASAN
    /* Another mapping may come to lie here. */
    __asan_unpoison_memory_region(coro->stack, (size_t)((char *)coro - coro->stack));
#endif
    munmap(coro->mapping, coro->mapping_bytes);
}

static void release_finished(struct scheduler *scheduler)
{
    struct coro *coro = scheduler->finished;
    scheduler->finished = NULL;
    context_dispose(&coro->context);
    if (scheduler->pool_count == POOL_CAPACITY) {
        coro_unmap(coro);
        return;
    }
    coro->next_ready = scheduler->pool;
    scheduler->pool = coro;
    scheduler->pool_count++;
}

static struct context *context_of(struct scheduler *scheduler, struct coro *coro)
{
    return coro ? &coro->context : &scheduler->driver;
}

/* The first thing that is done on a stack that has come on the processor. */
static inline void arrive(struct scheduler *scheduler)
{
    context_arrive(context_of(scheduler, scheduler->running), scheduler->switched_from);
    if (scheduler->finished) {
        release_finished(scheduler);
    }
}

/*
 * To another coroutine, or to the driver (NULL). Not inlined: with one place that calls the switch,
 * its return on the other stack goes where the processor's return predictor expects.
 */
static __attribute__((noinline)) void switch_to(struct scheduler *scheduler, struct coro *to,
                                                bool last)
{
    struct context *from = context_of(scheduler, scheduler->running);
    scheduler->switched_from = from;
    scheduler->running = to;
    context_switch(from, context_of(scheduler, to), last);
    arrive(scheduler);
}

static void push_ready(struct scheduler *scheduler, struct coro *coro)
{
    coro->state = CORO_READY;
    coro->next_ready = NULL;
    if (scheduler->ready_first) {
        scheduler->ready_last->next_ready = coro;
    } else {
        scheduler->ready_first = coro;
    }
    scheduler->ready_last = coro;
}

/* NULL: it is the driver's turn. */
static struct coro *take_ready(struct scheduler *scheduler)
{
    struct coro *coro = scheduler->ready_first;
    if (!coro || scheduler->resumptions_left == 0) {
        return NULL;
    }
    scheduler->resumptions_left--;
    scheduler->ready_first = coro->next_ready;
    coro->state = CORO_RUNNING;
    return coro;
}

static void link_live(struct scheduler *scheduler, struct coro *coro)
{
    coro->live_prev = NULL;
    coro->live_next = scheduler->live;
    if (scheduler->live) {
        scheduler->live->live_prev = coro;
    }
    scheduler->live = coro;
    scheduler->live_count++;
}

static void unlink_live(struct scheduler *scheduler, struct coro *coro)
{
    if (coro->live_prev) {
        coro->live_prev->live_next = coro->live_next;
    } else {
        scheduler->live = coro->live_next;
    }
    if (coro->live_next) {
        coro->live_next->live_prev = coro->live_prev;
    }
    scheduler->live_count--;
}

static void coro_main(void *arg)
{
    struct coro *self = arg;
    struct scheduler *scheduler = &coro_scheduler;
    arrive(scheduler);
    self->fn(self->arg);
    self->state = CORO_FINISHED;
    unlink_live(scheduler, self);
    scheduler->finished = self;
    switch_to(scheduler, take_ready(scheduler), true);
    assert(false); /* nobody resumes the finished */
}

int coro_spawn(coro_fn *fn, void *arg, const char *name)
{
    struct scheduler *scheduler = &coro_scheduler;
    struct coro *coro = scheduler->pool;
    if (coro) {
        scheduler->pool = coro->next_ready;
        scheduler->pool_count--;
    } else {
        coro = coro_map(scheduler);
        if (!coro) {
            return -ENOMEM;
        }
    }
    coro->fn = fn;
    coro->arg = arg;
    coro->name = name;
    context_prepare(&coro->context, coro->stack, (size_t)((char *)coro - coro->stack), coro_main,
                    coro);
    link_live(scheduler, coro);
    push_ready(scheduler, coro);
    return 0;
}

struct coro *coro_self(void)
{
    return coro_scheduler.running;
}

void co_suspend(void)
{
    struct scheduler *scheduler = &coro_scheduler;
    assert(scheduler->running);
    scheduler->running->state = CORO_SUSPENDED;
    switch_to(scheduler, take_ready(scheduler), false);
}

void co_yield (void)
{
    struct scheduler *scheduler = &coro_scheduler;
    struct coro *self = scheduler->running;
    assert(self);
    push_ready(scheduler, self);
    struct coro *next = take_ready(scheduler);
    if (next != self) {
        switch_to(scheduler, next, false);
    }
}

void coro_wake(struct coro *coro)
{
    assert(coro->state == CORO_SUSPENDED);
    push_ready(&coro_scheduler, coro);
}

void coro_call_on_driver(void (*fn)(void *arg), void *arg)
{
    struct scheduler *scheduler = &coro_scheduler;
    struct coro *self = scheduler->running;
    if (!self) {
        fn(arg);
        return;
    }
    struct driver_call call = {.fn = fn, .arg = arg, .caller = self};
    scheduler->call = &call;
    self->state = CORO_CALLING;
    switch_to(scheduler, NULL, false);
}

/* The driver has the processor because a coroutine wants a call: makes it, and goes back there. */
static void serve_calls(struct scheduler *scheduler)
{
    while (scheduler->call) {
        struct driver_call *call = scheduler->call;
        call->fn(call->arg);
        scheduler->call = NULL;
        call->caller->state = CORO_RUNNING;
        switch_to(scheduler, call->caller, false);
    }
}

void coro_trim_stack(void)
{
    struct coro *self = coro_scheduler.running;
    uintptr_t page_bytes = (uintptr_t)sysconf(_SC_PAGESIZE);
    uintptr_t here = (uintptr_t)__builtin_frame_address(0);
    assert(self);
    /* A page is left to this call and its system call. */
    uintptr_t end = (here & ~(page_bytes - 1)) - page_bytes;
    if (end > (uintptr_t)self->stack) {
        madvise(self->stack, end - (uintptr_t)self->stack, MADV_DONTNEED);
    }
}

bool coro_run_some(unsigned most)
{
    struct scheduler *scheduler = &coro_scheduler;
    assert(!scheduler->running && !scheduler->call && most > 0);
    scheduler->resumptions_left = most;
    struct coro *first = take_ready(scheduler);
    if (!first) {
        return false;
    }
    switch_to(scheduler, first, false);
    serve_calls(scheduler);
    return true;
}

bool coro_run_ready(void)
{
    bool any_ran = false;
    while (coro_run_some(UINT_MAX)) {
        any_ran = true;
    }
    return any_ran;
}

bool coro_any_ready(void)
{
    return coro_scheduler.ready_first != NULL;
}

size_t coro_live_count(void)
{
    return coro_scheduler.live_count;
}

void coro_pool_drain(void)
{
    struct scheduler *scheduler = &coro_scheduler;
    while (scheduler->pool) {
        struct coro *coro = scheduler->pool;
        scheduler->pool = coro->next_ready;
        coro_unmap(coro);
    }
    scheduler->pool_count = 0;
}
