/* SPDX-License-Identifier: BSD-2-Clause */
/*
 * The real world: clock, timers and workers are the loop's, random is the kernel's, and disks are
 * in disk_real.c.
 */
#include "io/world_real.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <sys/random.h>
#include <unistd.h>

#include "base/check.h"
#include "io/disk_real.h"
#include "sched/loop.h"

struct world_real {
    struct world base;
    struct loop *loop;
    unsigned open_disks;
    /* Random numbers are fetched by the handful, to spare system calls. */
    uint64_t random_pool[32];
    unsigned random_left;
};

static struct world_real *to_real(struct world *world)
{
    return container_of(world, struct world_real, base);
}

static uint64_t real_now_ns(struct world *world)
{
    return loop_now_ns(to_real(world)->loop);
}

static uint64_t real_turn_ns(struct world *world)
{
    return loop_turn_ns(to_real(world)->loop);
}

/* getrandom() of up to 256 bytes is neither short nor interrupted once the kernel has entropy. */
static void refill(struct world_real *real)
{
    ssize_t got;

    do {
        got = getrandom(real->random_pool, sizeof(real->random_pool), 0);
    } while (got < 0 && errno == EINTR);
    assert(got == (ssize_t)sizeof(real->random_pool));
    real->random_left = ARRAY_LEN(real->random_pool);
}

static uint64_t real_random64(struct world *world)
{
    struct world_real *real = to_real(world);

    if (real->random_left == 0) {
        refill(real);
    }
    real->random_left--;
    uint64_t number = real->random_pool[real->random_left];
    real->random_pool[real->random_left] = 0;
    return number;
}

static void real_timer_start(struct world *world, struct world_timer *timer, uint64_t deadline_ns)
{
    loop_timer_start(to_real(world)->loop, timer, deadline_ns);
}

static void real_timer_stop(struct world *world, struct world_timer *timer)
{
    loop_timer_stop(to_real(world)->loop, timer);
}

static void co_real_work(struct world *world, void (*fn)(void *arg), void *arg)
{
    co_loop_work(to_real(world)->loop, fn, arg);
}

static int co_real_disk_open(struct world *world, const char *path, unsigned flags,
                             struct disk **out, struct errtext *err)
{
    struct world_real *real = to_real(world);

    return co_disk_real_open(world, real->loop, &real->open_disks, path, flags, out, err);
}

static int real_remove(struct world *world, const char *path)
{
    (void)world;
    return unlink(path) < 0 ? -errno : 0;
}

static const struct world_ops real_ops = {
    .now_ns = real_now_ns,
    .turn_ns = real_turn_ns,
    .random64 = real_random64,
    .timer_start = real_timer_start,
    .timer_stop = real_timer_stop,
    .co_work = co_real_work,
    .co_disk_open = co_real_disk_open,
    .remove = real_remove,
};

struct world *world_real_create(struct loop *loop)
{
    struct world_real *real = calloc(1, sizeof(*real));

    if (real == NULL) {
        return NULL;
    }
    real->base.ops = &real_ops;
    real->loop = loop;
    return &real->base;
}

struct loop *world_real_loop(struct world *world)
{
    return to_real(world)->loop;
}

void world_real_free(struct world *world)
{
    if (world == NULL) {
        return;
    }
    struct world_real *real = to_real(world);
    assert(real->open_disks == 0);
    free(real);
}
