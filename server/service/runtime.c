/* SPDX-License-Identifier: BSD-2-Clause */
#include "service/runtime.h"

#include <errno.h>
#include <stdlib.h>

#include "base/log.h"
#include "io/buffers.h"
#include "io/world_real.h"
#include "sched/co.h"

int runtime_start(struct runtime *runtime, struct errtext *err)
{
    int result = loop_create(&runtime->loop, err);
    if (result < 0) {
        return result;
    }
    runtime->world = world_real_create(runtime->loop);
    if (!runtime->world) {
        loop_free(runtime->loop);
        return err_set(err, ENOMEM, "out of memory");
    }
    return 0;
}

void runtime_end(struct runtime *runtime)
{
    world_real_free(runtime->world);
    loop_free(runtime->loop);
    coro_pool_drain();
    buffer_pool_drain();
}

struct job {
    int (*fn)(struct world *world, void *arg);
    void *arg;
    struct world *world;
    int status;
};

static void co_job(void *arg)
{
    struct job *job = arg;
    job->status = job->fn(job->world, job->arg);
}

int runtime_run(int (*fn)(struct world *world, void *arg), void *arg)
{
    struct runtime runtime;
    struct errtext err;
    if (runtime_start(&runtime, &err) < 0) {
        log_error("%s", err.text);
        return EXIT_FAILURE;
    }
    struct job job = {.fn = fn, .arg = arg, .world = runtime.world, .status = EXIT_FAILURE};
    if (loop_run_coroutine(runtime.loop, co_job, &job) < 0) {
        log_error("out of memory");
    }
    runtime_end(&runtime);
    return job.status;
}
