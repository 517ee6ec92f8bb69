/* SPDX-License-Identifier: BSD-2-Clause */
#include "simulator/resize.h"

#include <errno.h>
#include <inttypes.h>
#include <stdlib.h>

#include "base/check.h"
#include "base/limits.h"
#include "qcow2/resize.h"
#include "simulator/run.h"
#include "simulator/workload.h"

/* One life in so many has a resize. */
#define RESIZED_LIFE_EVERY 2U
/* Larger disks would make runs long and find no more. */
#define LARGEST_DISK_BYTES (16 * MIB)

static uint64_t below(struct run *run, uint64_t bound)
{
    return sim_random_below(run->world, bound);
}

static uint64_t draw_new_size(struct run *run, uint64_t old_bytes)
{
    uint64_t cluster = run->plan.create.cluster_bytes;
    uint64_t few = cluster * (1 + below(run, 4));
    uint64_t size;
    if (run->shrunk_from != 0 && below(run, 4) != 0) {
        return run->shrunk_from; /* what was beyond must not come back */
    }
    switch (below(run, 5)) {
    case 0:
        size = old_bytes + few;
        break;
    case 4: /* within a cluster, or a little further */
        size = old_bytes + 2 * cluster - below(run, 4 * cluster);
        size = size > old_bytes + 2 * cluster || size == 0 ? old_bytes : size;
        break;
    case 1:
        size = old_bytes + below(run, 2 * old_bytes);
        break;
    case 2:
        size = old_bytes > few ? old_bytes - few : old_bytes;
        break;
    default:
        size = 1 + below(run, old_bytes);
        break;
    }
    uint64_t unit = below(run, 2) ? cluster : 512;
    size = MIN_OF(round_up_to(size, unit), MAX_OF(LARGEST_DISK_BYTES, old_bytes));
    return size;
}

void resize_draw(struct run *run)
{
    const struct plan *plan = &run->plan;
    uint64_t old_bytes = plan->create.size_bytes;

    run->resize = (struct resize){.old_bytes = old_bytes, .new_bytes = old_bytes};
    if (below(run, RESIZED_LIFE_EVERY) != 0 || (plan->snapshot && plan->create.version == 2)) {
        return;
    }
    run->resize.new_bytes = draw_new_size(run, old_bytes);
    if (run->resize.new_bytes > old_bytes) {
        run_put_on_top(run, run->resize.new_bytes);
    } else if (run->resize.new_bytes < old_bytes) {
        run->resize.end_bytes = run->resize.new_bytes;
    }
    plan_draw_places(run, MIN_OF(old_bytes, run->resize.new_bytes));
}

static void judge_resize(struct run *run, int result, const char *why)
{
    const struct life *life = &run->life;
    bool allowed = result == 0 || sim_crashed(run->world) || (result == -EIO && life->may_eio) ||
                   (result == -ENOSPC && life->may_enospc) ||
                   /* what a failed write of metadata ends in */
                   (result == -EIO && life->may_enospc);
    if (!allowed) {
        run_fail(run, "a resize to %" PRIu64 " bytes failed: %s", run->resize.new_bytes, why);
    }
}

static void co_resize_later(void *arg)
{
    struct run *run = arg;
    struct errtext err = {.text = ""};

    co_sleep_ns(run->world, below(run, 1ULL << (10 + below(run, 16))));
    run_trace(run, "resize from %" PRIu64 " to %" PRIu64, run->resize.old_bytes,
              run->resize.new_bytes);
    int result = co_qcow2_resize(run->image, run->resize.new_bytes, &err);
    run_trace(run, "resize -> %d %s", result, err.text);
    judge_resize(run, result, err.text);
    run->resize.done = result == 0;
    run->statistics->resizes += run->resize.done;
    run_task_done(run);
}

void resize_start(struct run *run)
{
    if (run->resize.new_bytes != run->resize.old_bytes && !run->resize.started) {
        run->resize.started = true;
        run_spawn(run, co_resize_later, run, "resize");
    }
}

void resize_settle(struct run *run)
{
    const struct resize *resize = &run->resize;
    uint64_t size = run->image->size_bytes;
    uint64_t oracle_bytes = MAX_OF(resize->old_bytes, resize->new_bytes);

    if (size != resize->new_bytes && (resize->done || size != resize->old_bytes)) {
        run_fail(run,
                 "the disk has %" PRIu64 " bytes, and was to have %" PRIu64 " instead of %" PRIu64
                 "%s",
                 size, resize->new_bytes, resize->old_bytes,
                 resize->done ? "; that was done when it was told so" : "");
    }
    if (size != resize->old_bytes) {
        run->shrunk_from = size < resize->old_bytes ? resize->old_bytes : 0;
    }
    run->verify_all = resize->new_bytes != resize->old_bytes;
    if (size != oracle_bytes) {
        run_put_on_top(run, size);
    }
    if (size != run->plan.create.size_bytes) {
        run->plan.create.size_bytes = size;
    }
    if (run->verify_all) {
        plan_draw_places(run, size);
    }
    run->resize = (struct resize){.old_bytes = size, .new_bytes = size};
}
