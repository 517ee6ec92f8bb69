/* SPDX-License-Identifier: BSD-2-Clause */
/*
 * The simulated world keeps its own promises: bytes against a flat model, what a power cut may and
 * may not keep, failed flushes, locks, space, timers, and one seed giving one run.
 */
#include "io/sim.h"

#include <check.h>
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "base/check.h"
#include "base/limits.h"
#include "base/testing.h"
#include "sched/co.h"

/* Runs a test body as a coroutine in a world of its own. */
struct scene {
    struct world *world;
    uint64_t seed;
    void (*body)(struct scene *scene);
    struct disk *disk;
    unsigned running;
    uint64_t tally[4];
};

static void scene_coro(void *arg)
{
    struct scene *scene = arg;
    scene->body(scene);
    scene->running--;
}

static void scene_spawn(struct scene *scene, void (*body)(struct scene *scene))
{
    scene->body = body;
    scene->running++;
    ck_assert_int_eq(coro_spawn(scene_coro, scene, "scene"), 0);
    sim_step(scene->world);
}

static struct scene scene_new(uint64_t seed)
{
    struct scene scene = {.seed = seed, .world = sim_create(seed)};
    ck_assert_ptr_nonnull(scene.world);
    return scene;
}

static void scene_end(struct scene *scene)
{
    ck_assert(sim_run(scene->world, 0));
    ck_assert_uint_eq(scene->running, 0);
    sim_free(scene->world);
    coro_pool_drain();
}

static void run_scene(uint64_t seed, void (*body)(struct scene *scene))
{
    struct scene scene = scene_new(seed);
    scene_spawn(&scene, body);
    scene_end(&scene);
}

static struct disk *co_open(struct scene *scene, const char *path, unsigned flags)
{
    struct disk *disk = NULL;
    struct errtext err;
    int result = scene->world->ops->co_disk_open(scene->world, path, flags, &disk, &err);
    ck_assert_msg(result == 0, "%s", err.text);
    return disk;
}

#define MODEL_BYTES (256U * 1024U)

static void model_body(struct scene *scene)
{
    struct disk *disk = co_open(scene, "a", DISK_CREATE);
    uint8_t *model = calloc(1, MODEL_BYTES);
    uint8_t *buf = malloc(MODEL_BYTES);
    uint64_t size = 0;
    for (int round = 0; round < 600; round++) {
        uint64_t offset = sim_random_below(scene->world, MODEL_BYTES);
        size_t len = 1 + (size_t)sim_random_below(scene->world, MODEL_BYTES - offset);
        if (sim_random(scene->world) & 1) {
            len = MIN_OF(len, 3000U);
        }
        switch (sim_random_below(scene->world, 6)) {
        case 0:
        case 1: {
            memset(buf, round + 1, len);
            struct iovec iov[2] = {{buf, len / 3}, {buf + len / 3, len - len / 3}};
            ck_assert_int_eq(disk->ops->co_write(disk, offset, iov, 2), 0);
            memset(model + offset, round + 1, len);
            size = MAX_OF(size, offset + len);
            break;
        }
        case 2:
            ck_assert_int_eq(disk->ops->co_zero(disk, offset, len), 0);
            memset(model + offset, 0, len);
            size = MAX_OF(size, offset + len);
            break;
        case 3:
            ck_assert_int_eq(disk->ops->co_punch(disk, offset, len), 0);
            memset(model + offset, 0, len);
            break;
        case 4:
            if (sim_random_below(scene->world, 4) == 0) {
                ck_assert_int_eq(disk->ops->co_truncate(disk, offset), 0);
                memset(model + offset, 0, MODEL_BYTES - offset);
                size = offset;
            } else {
                ck_assert_int_eq(co_disk_flush(disk), 0);
            }
            break;
        default:
            ck_assert_int_eq(co_disk_read(disk, offset, buf, len), 0);
            ck_assert_mem_eq(buf, model + offset, len);
        }
        ck_assert_uint_eq(disk->size_bytes, size);
    }
    ck_assert_int_eq(co_disk_flush(disk), 0);
    disk_close(disk);
    /* All of it was flushed: any power cut keeps it. */
    sim_crash(scene->world);
    sim_reboot(scene->world);
    void *bytes;
    uint64_t len;
    ck_assert_int_eq(sim_file_get(scene->world, "a", &bytes, &len), 0);
    ck_assert_uint_eq(len, size);
    ck_assert_mem_eq(bytes, model, size);
    free(bytes);
    free(model);
    free(buf);
}

START_TEST(bytes_follow_a_flat_model)
{
    for (uint64_t seed = 1; seed <= 20; seed++) {
        run_scene(seed, model_body);
    }
}
END_TEST

static void hash_line(void *arg, const char *line)
{
    uint64_t *hash = arg;
    for (; *line; line++) {
        *hash = (*hash ^ (uint8_t)*line) * 0x100000001b3ULL;
    }
}

static uint64_t trace_hash(uint64_t seed)
{
    uint64_t hash = 0xcbf29ce484222325ULL;
    struct scene scene = scene_new(seed);
    sim_set_trace(scene.world, hash_line, &hash);
    scene_spawn(&scene, model_body);
    scene_end(&scene);
    return hash;
}

START_TEST(one_seed_is_one_run)
{
    ck_assert_uint_eq(trace_hash(7), trace_hash(7));
    ck_assert_uint_ne(trace_hash(7), trace_hash(8));
}
END_TEST

/* Four sectors of 1 flushed, then 2 over it and past the end, not flushed: then dark. */
#define DARK_BYTES 4096U

static void dark_body(struct scene *scene)
{
    struct disk *disk = co_open(scene, "a", DISK_CREATE);
    scene->disk = disk;
    uint8_t buf[DARK_BYTES];
    memset(buf, 1, sizeof(buf));
    ck_assert_int_eq(co_disk_write(disk, 0, buf, sizeof(buf)), 0);
    ck_assert_int_eq(co_disk_flush(disk), 0);
    memset(buf, 2, sizeof(buf));
    scene->tally[0] = 1;
    int result = co_disk_write(disk, DARK_BYTES / 2, buf, sizeof(buf));
    ck_assert(result == 0 || result == -EIO);
    scene->tally[0] = 2;
    result = co_disk_flush(disk);
    scene->tally[0] = result == 0 ? 3 : 4;
    disk_close(disk);
}

START_TEST(a_power_cut_keeps_a_torn_subset)
{
    unsigned mixed = 0;
    unsigned in_flight_survived = 0;
    unsigned grew = 0;
    unsigned kept_size = 0;
    for (uint64_t seed = 1; seed <= 400; seed++) {
        struct scene scene = scene_new(seed);
        scene_spawn(&scene, dark_body);
        uint64_t stop_at = 1 + seed % 3;
        while (scene.tally[0] < stop_at && sim_step(scene.world)) {
        }
        bool was_in_flight = scene.tally[0] == 1;
        sim_crash(scene.world);
        ck_assert(sim_run(scene.world, 0));
        ck_assert_uint_eq(scene.running, 0);
        /* The step before the cut may have completed the flush already. */
        bool flushed = scene.tally[0] == 3;
        ck_assert(flushed || stop_at != 3);
        sim_reboot(scene.world);
        uint8_t *bytes;
        uint64_t len;
        ck_assert_int_eq(sim_file_get(scene.world, "a", (void **)&bytes, &len), 0);
        ck_assert_uint_ge(len, DARK_BYTES);
        ck_assert_uint_le(len, DARK_BYTES * 3 / 2);
        unsigned twos = 0;
        unsigned wrong = 0;
        for (uint64_t at = 0; at < len; at++) {
            bool may_be_two = at >= DARK_BYTES / 2;
            wrong += bytes[at] != bytes[round_down_to(at, 512)] ||
                     (bytes[at] != (at < DARK_BYTES ? 1 : 0) && (bytes[at] != 2 || !may_be_two));
            twos += bytes[at] == 2;
        }
        ck_assert_uint_eq(wrong, 0);
        ck_assert(!flushed || twos == DARK_BYTES);
        mixed += twos != 0 && twos != DARK_BYTES;
        in_flight_survived += was_in_flight && twos != 0;
        grew += len > DARK_BYTES;
        kept_size += len == DARK_BYTES;
        free(bytes);
        scene_end(&scene);
    }
    ck_assert_uint_gt(mixed, 20);
    ck_assert_uint_gt(in_flight_survived, 20);
    ck_assert_uint_gt(grew, 20);
    ck_assert_uint_gt(kept_size, 20);
}
END_TEST

/* A change that a failed flush covered may be lost for good, one made after it may not. */
static void failed_flush_body(struct scene *scene)
{
    struct disk *disk = co_open(scene, "a", DISK_CREATE);
    uint8_t buf[1024];
    memset(buf, 1, sizeof(buf));
    ck_assert_int_eq(co_disk_write(disk, 0, buf, sizeof(buf)), 0);
    sim_set_faults(scene->world, &(struct sim_faults){.flush_eio_ppm = 1000000});
    ck_assert_int_eq(co_disk_flush(disk), -EIO);
    sim_set_faults(scene->world, &(struct sim_faults){0});
    memset(buf, 2, sizeof(buf));
    ck_assert_int_eq(co_disk_write(disk, 512, buf, sizeof(buf)), 0);
    ck_assert_int_eq(co_disk_flush(disk), 0);
    ck_assert_int_eq(co_disk_read(disk, 0, buf, 1024), 0);
    ck_assert(buf[0] == 1 && buf[512] == 2);
    disk_close(disk);
    sim_crash(scene->world);
    sim_reboot(scene->world);
    uint8_t *bytes;
    uint64_t len;
    ck_assert_int_eq(sim_file_get(scene->world, "a", (void **)&bytes, &len), 0);
    ck_assert_uint_eq(len, 1536);
    ck_assert(bytes[0] == 0 || bytes[0] == 1);
    scene->tally[bytes[0]]++;
    for (size_t at = 512; at < 1536; at++) {
        ck_assert_uint_eq(bytes[at], 2);
    }
    free(bytes);
}

START_TEST(a_failed_flush_may_have_lost_what_it_covered)
{
    unsigned lost = 0;
    unsigned kept = 0;
    for (uint64_t seed = 1; seed <= 100; seed++) {
        struct scene scene = scene_new(seed);
        scene_spawn(&scene, failed_flush_body);
        ck_assert(sim_run(scene.world, 0));
        lost += scene.tally[0] != 0;
        kept += scene.tally[1] != 0;
        scene_end(&scene);
    }
    ck_assert_uint_gt(lost, 20);
    ck_assert_uint_gt(kept, 20);
}
END_TEST

static void locks_body(struct scene *scene)
{
    struct world *world = scene->world;
    struct errtext err;
    struct disk *other = NULL;
    ck_assert_int_eq(world->ops->co_disk_open(world, "a", DISK_WRITABLE, &other, &err), -ENOENT);
    struct disk *writer = co_open(scene, "a", DISK_CREATE);
    ck_assert_int_eq(world->ops->co_disk_open(world, "a", DISK_CREATE, &other, &err), -EEXIST);
    ck_assert_int_eq(world->ops->co_disk_open(world, "a", DISK_WRITABLE, &other, &err), -EAGAIN);
    ck_assert_int_eq(world->ops->co_disk_open(world, "a", DISK_READ_ONLY, &other, &err), -EAGAIN);
    struct disk *look = co_open(scene, "a", DISK_NO_LOCK);
    ck_assert_uint_eq(look->file_id[1], writer->file_id[1]);
    ck_assert_int_eq(co_disk_write(look, 0, "x", 1), -EBADF);
    disk_close(look);
    disk_close(writer);
    struct disk *one = co_open(scene, "a", DISK_READ_ONLY);
    struct disk *two = co_open(scene, "a", DISK_READ_ONLY);
    ck_assert_int_eq(world->ops->co_disk_open(world, "a", DISK_WRITABLE, &other, &err), -EAGAIN);
    disk_close(one);
    disk_close(two);
    disk_close(co_open(scene, "a", DISK_WRITABLE));
}

START_TEST(locks_exclude_as_the_real_ones)
{
    run_scene(1, locks_body);
}
END_TEST

static void space_body(struct scene *scene)
{
    struct disk *disk = co_open(scene, "a", DISK_CREATE);
    uint8_t *buf = malloc(64 * KIB);
    memset(buf, 5, 64 * KIB);
    sim_set_space(scene->world, 64 * KIB);
    ck_assert_int_eq(co_disk_write(disk, 0, buf, 32 * KIB), 0);
    ck_assert_int_eq(disk->ops->co_zero(disk, 1 * MIB, 32 * KIB), 0);
    ck_assert_int_eq(co_disk_write(disk, 32 * KIB, buf, 512), -ENOSPC);
    ck_assert_int_eq(disk->ops->co_zero(disk, 32 * KIB, 512), -ENOSPC);
    /* What is allocated already can be written. */
    ck_assert_int_eq(co_disk_write(disk, 1 * MIB, buf, 32 * KIB), 0);
    ck_assert_int_eq(disk->ops->co_punch(disk, 0, 8 * KIB), 0);
    ck_assert_int_eq(co_disk_write(disk, 40 * KIB, buf, 8 * KIB), 0);
    ck_assert_int_eq(co_disk_write(disk, 0, buf, 1), -ENOSPC);
    sim_set_space(scene->world, 0);
    sim_set_faults(scene->world, &(struct sim_faults){.enospc_ppm = 1000000});
    ck_assert_int_eq(co_disk_write(disk, 40 * KIB, buf, 8 * KIB), 0);
    ck_assert_int_eq(co_disk_write(disk, 60 * KIB, buf, 8 * KIB), -ENOSPC);
    sim_set_faults(scene->world, &(struct sim_faults){.punch_unsupported_ppm = 1000000});
    ck_assert_int_eq(disk->ops->co_punch(disk, 8 * KIB, 8 * KIB), -EOPNOTSUPP);
    ck_assert_int_eq(co_disk_read(disk, 8 * KIB, buf + 8 * KIB, 8 * KIB), 0);
    ck_assert_mem_eq(buf, buf + 8 * KIB, 8 * KIB);
    free(buf);
    disk_close(disk);
}

START_TEST(space_runs_out_and_comes_back)
{
    for (uint64_t seed = 1; seed <= 20; seed++) {
        run_scene(seed, space_body);
    }
}
END_TEST

static void lasting_body(struct scene *scene)
{
    struct disk *disk = co_open(scene, "a", DISK_CREATE);
    uint8_t byte = 1;
    sim_set_faults(scene->world,
                   &(struct sim_faults){.write_eio_ppm = 300000, .errors_last = true});
    while (co_disk_write(disk, 0, &byte, 1) == 0) {
    }
    for (int i = 0; i < 20; i++) {
        ck_assert_int_eq(co_disk_write(disk, 0, &byte, 1), -EIO);
    }
    ck_assert_int_eq(co_disk_read(disk, 0, &byte, 1), 0);
    disk_close(disk);
}

START_TEST(errors_last_when_told)
{
    run_scene(3, lasting_body);
}
END_TEST

static void extents_body(struct scene *scene)
{
    struct disk *disk = co_open(scene, "a", DISK_CREATE);
    uint8_t byte = 1;
    bool is_hole;
    uint64_t end;
    /* A file of terabytes costs nothing. */
    ck_assert_int_eq(disk->ops->co_truncate(disk, 4096 * GIB), 0);
    ck_assert_int_eq(disk->ops->co_next_extent(disk, 0, &is_hole, &end), 0);
    ck_assert(is_hole && end == 4096 * GIB);
    ck_assert_int_eq(co_disk_write(disk, 2048 * GIB + 5, &byte, 1), 0);
    ck_assert_int_eq(disk->ops->co_next_extent(disk, 1, &is_hole, &end), 0);
    ck_assert(is_hole && end == 2048 * GIB);
    ck_assert_int_eq(disk->ops->co_next_extent(disk, 2048 * GIB, &is_hole, &end), 0);
    ck_assert(!is_hole && end == 2048 * GIB + 4096);
    ck_assert_int_eq(disk->ops->co_punch(disk, 0, 4096 * GIB), 0);
    ck_assert_int_eq(disk->ops->co_next_extent(disk, 1, &is_hole, &end), 0);
    ck_assert(is_hole && end == 4096 * GIB);
    ck_assert_int_eq(co_disk_write(disk, 8192 * GIB, &byte, 1), -EFBIG);
    disk_close(disk);
}

START_TEST(sparse_files_cost_nothing)
{
    run_scene(1, extents_body);
}
END_TEST

struct test_timer {
    struct world_timer timer;
    struct scene *scene;
    uint64_t number;
};

static void timer_fired(struct world_timer *timer)
{
    struct test_timer *test = container_of(timer, struct test_timer, timer);
    ck_assert_uint_ge(world_now_ns(test->scene->world), (test->number + 1) * 1000000);
    ck_assert_uint_eq(test->scene->tally[0]++, test->number);
}

static void add_one(void *arg)
{
    ck_assert_ptr_null(coro_self());
    ++*(uint64_t *)arg;
}

static void work_body(struct scene *scene)
{
    scene->world->ops->co_work(scene->world, add_one, &scene->tally[1]);
    ck_assert_uint_eq(scene->tally[1], 1);
}

START_TEST(timers_fire_in_order_and_work_is_done)
{
    struct scene scene = scene_new(1);
    struct test_timer timers[4] = {0};
    for (uint64_t i = 0; i < ARRAY_LEN(timers); i++) {
        uint64_t number = (i * 3) % 4;
        timers[i] = (struct test_timer){.scene = &scene, .number = number};
        timers[i].timer.fired = timer_fired;
        scene.world->ops->timer_start(scene.world, &timers[i].timer, (number + 1) * 1000000);
    }
    struct test_timer stopped = {.scene = &scene, .number = 99};
    stopped.timer.fired = timer_fired;
    scene.world->ops->timer_start(scene.world, &stopped.timer, 5);
    scene.world->ops->timer_stop(scene.world, &stopped.timer);
    scene_spawn(&scene, work_body);
    ck_assert(sim_run(scene.world, 0));
    ck_assert_uint_eq(scene.tally[0], 4);
    scene_end(&scene);
}
END_TEST

/* Two writes in flight on one range: readers see either, sector by sector, and nothing else. */
static void race_body(struct scene *scene)
{
    uint8_t buf[4096];
    uint8_t value = (uint8_t)(scene->running);
    memset(buf, value, sizeof(buf));
    ck_assert_int_eq(co_disk_write(scene->disk, 0, buf, sizeof(buf)), 0);
    scene->tally[0]++;
}

static void race_reader(struct scene *scene)
{
    scene->disk = co_open(scene, "a", DISK_CREATE);
    scene->body = race_body;
    for (int i = 0; i < 2; i++) {
        scene->running++;
        ck_assert_int_eq(coro_spawn(scene_coro, scene, "racer"), 0);
        co_yield ();
    }
    uint8_t buf[4096];
    unsigned wrong = 0;
    while (scene->tally[0] < 2) {
        ck_assert_int_eq(co_disk_read(scene->disk, 0, buf, sizeof(buf)), 0);
        for (size_t at = 0; at < sizeof(buf); at++) {
            wrong += buf[at] != buf[at / 512 * 512];
            wrong += buf[at] != 0 && buf[at] != 2 && buf[at] != 3;
        }
        ck_assert_uint_eq(wrong, 0);
        scene->tally[1] |= buf[0] != buf[4095];
    }
    disk_close(scene->disk);
}

START_TEST(writes_in_flight_take_effect_in_pieces)
{
    unsigned torn = 0;
    for (uint64_t seed = 1; seed <= 200; seed++) {
        struct scene scene = scene_new(seed);
        scene_spawn(&scene, race_reader);
        ck_assert(sim_run(scene.world, 0));
        torn += scene.tally[1] != 0;
        scene_end(&scene);
    }
    ck_assert_uint_gt(torn, 10);
}
END_TEST

int main(void)
{
    Suite *suite = suite_create("io/sim");
    TCase *tcase = tcase_create("sim");
    tcase_set_timeout(tcase, 60);
    tcase_add_test(tcase, bytes_follow_a_flat_model);
    tcase_add_test(tcase, one_seed_is_one_run);
    tcase_add_test(tcase, a_power_cut_keeps_a_torn_subset);
    tcase_add_test(tcase, a_failed_flush_may_have_lost_what_it_covered);
    tcase_add_test(tcase, locks_exclude_as_the_real_ones);
    tcase_add_test(tcase, space_runs_out_and_comes_back);
    tcase_add_test(tcase, errors_last_when_told);
    tcase_add_test(tcase, sparse_files_cost_nothing);
    tcase_add_test(tcase, timers_fire_in_order_and_work_is_done);
    tcase_add_test(tcase, writes_in_flight_take_effect_in_pieces);
    suite_add_tcase(suite, tcase);
    return test_suite_run(suite);
}
