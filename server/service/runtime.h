/* SPDX-License-Identifier: BSD-2-Clause */
/*
 * What every command needs before its first I/O: this thread's loop and the real world on it.
 */
#ifndef QCOWD_SERVICE_RUNTIME_H
#define QCOWD_SERVICE_RUNTIME_H

#include "base/errtext.h"
#include "io/world.h"
#include "sched/loop.h"

struct runtime {
    struct loop *loop;
    struct world *world;
};

/* 0, or -errno with nothing left behind; err says what to change. */
int runtime_start(struct runtime *runtime, struct errtext *err);
/* No disk may be open and no coroutine alive. */
void runtime_end(struct runtime *runtime);

/*
 * Starts a runtime, runs fn(world, arg) in a coroutine in it, ends it. Returns fn's result, or
 * EXIT_FAILURE after logging why fn could not be run.
 */
int runtime_run(int (*fn)(struct world *world, void *arg), void *arg);

#endif
