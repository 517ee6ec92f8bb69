/* SPDX-License-Identifier: BSD-2-Clause */
/*
 * Ways in which other servers lose data, written down step by step with break points: each is the
 * same on every run, passes on this tree, and fails on the saboteur that breaks its law
 * (scripts/saboteurs checks both). What is looked at in the end is only what a client may rely on:
 * bytes, and a clean check.
 */
#include <check.h>
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/limits.h"
#include "base/log.h"
#include "base/testing.h"
#include "io/sim.h"
#include "qcow2/check.h"
#include "qcow2/create.h"
#include "qcow2/qcow2.h"
#include "sched/break_point.h"
#include "sched/co.h"
#include "sched/sync.h"

#define IMAGE   "disk.qcow2"
#define CLUSTER 65536U

struct history {
    struct world *world;
    struct image *image;
    struct group requests; /* running in coroutines of their own */
    void (*body)(struct history *history);
};

enum kind { WRITE, TRIM, ZERO, ZERO_NO_HOLE, FLUSH };

struct job {
    struct history *history;
    enum kind kind;
    uint64_t offset;
    size_t len;
    uint8_t value;
    int *result;
};

static int co_request(struct image *image, enum kind kind, uint64_t offset, size_t len,
                      uint8_t value)
{
    switch (kind) {
    case WRITE: {
        uint8_t *bytes = malloc(len);
        memset(bytes, value, len);
        int ret = image->ops->co_write(image, offset, bytes, len, 0);
        free(bytes);
        return ret;
    }
    case TRIM:
        return image->ops->co_trim(image, offset, len, 0);
    case ZERO:
        return image->ops->co_zero(image, offset, len, 0);
    case ZERO_NO_HOLE:
        return image->ops->co_zero(image, offset, len, IMAGE_NO_HOLE);
    default:
        return image->ops->co_flush(image);
    }
}

static void co_do(struct history *history, enum kind kind, uint64_t offset, size_t len,
                  uint8_t value)
{
    int ret = co_request(history->image, kind, offset, len, value);
    ck_assert_int_eq(ret, 0);
}

static void co_job(void *arg)
{
    struct job *job = arg;
    int ret = co_request(job->history->image, job->kind, job->offset, job->len, job->value);
    *job->result = ret;
    group_leave(&job->history->requests);
    free(job);
}

/* Starts a request of its own; *result is 1 until it has returned. */
static void start(struct history *history, enum kind kind, uint64_t offset, size_t len,
                  uint8_t value, int *result)
{
    struct job *job = malloc(sizeof(*job));
    *job = (struct job){history, kind, offset, len, value, result};
    *result = 1;
    group_enter(&history->requests);
    ck_assert_int_eq(coro_spawn(co_job, job, "request"), 0);
}

/* Long enough for everything that can go on to have gone on. */
static void co_settle(struct history *history)
{
    co_sleep_ns(history->world, 100ULL * 1000 * 1000);
}

/* Flush, and time for freed clusters to become free. */
static void co_commit_and_settle(struct history *history)
{
    co_do(history, FLUSH, 0, 0, 0);
    co_settle(history);
}

static void co_finish(struct history *history)
{
    for (int i = 0; i < BREAK_POINTS; i++) {
        break_point_release((enum break_point)i);
    }
    co_group_wait(&history->requests);
}

/* Every byte of the range is one of the two values, and all of them are the same one. */
static void co_expect(struct history *history, uint64_t offset, size_t len, uint8_t value,
                      uint8_t or_value)
{
    uint8_t *bytes = malloc(len);
    int ret = history->image->ops->co_read(history->image, offset, bytes, len, NULL);
    ck_assert_int_eq(ret, 0);
    ck_assert_msg(bytes[0] == value || bytes[0] == or_value, "at %#llx: %#x, not %#x or %#x",
                  (unsigned long long)offset, bytes[0], value, or_value);
    for (size_t i = 1; i < len; i++) {
        if (bytes[i] != bytes[0]) {
            ck_abort_msg("at %#llx: %#x behind %#x", (unsigned long long)(offset + i), bytes[i],
                         bytes[0]);
        }
    }
    free(bytes);
}

static void co_open_image(struct history *history)
{
    struct errtext err = {""};
    struct qcow2_open_options options = {.commit_interval_ms = 3600 * 1000};
    int ret = co_qcow2_open(history->world, IMAGE, &options, &history->image, &err);
    ck_assert_msg(ret == 0, "%s", err.text);
}

static void co_close_image(struct history *history)
{
    struct errtext err = {""};
    int ret = history->image->ops->co_close(history->image, &err);
    ck_assert_msg(ret == 0, "%s", err.text);
}

static void co_check(struct history *history)
{
    struct errtext err = {""};
    struct disk *disk;
    struct header header;
    struct check_options options = {.repair = CHECK_ONLY};
    struct check_result result;

    int ret = history->world->ops->co_disk_open(history->world, IMAGE, DISK_READ_ONLY, &disk, &err);
    ck_assert_int_eq(ret, 0);
    ret = co_header_read(disk, &header, &err);
    ck_assert_int_eq(ret, 0);
    ret = co_qcow2_check(disk, &header, &options, &result, &err);
    ck_assert_int_eq(ret, 0);
    ck_assert_uint_eq(result.corruptions, 0);
    ck_assert_uint_eq(result.leaks, 0);
    header_free(&header);
    disk_close(disk);
}

static void co_history(void *arg)
{
    struct history *history = arg;
    struct create_options create;
    struct errtext err = {""};

    create_options_init(&create);
    create.size_bytes = 4 * MIB;
    create.cluster_bytes = CLUSTER;
    int ret = co_qcow2_create(history->world, IMAGE, &create, &err);
    ck_assert_msg(ret == 0, "%s", err.text);
    co_open_image(history);
    history->body(history);
    co_close_image(history);
    co_check(history);
}

static void swallow(enum log_level level, const char *line, void *arg)
{
    (void)level;
    (void)line;
    (void)arg;
}

static void run_history(void (*body)(struct history *history), uint64_t seed)
{
    struct history history = {.world = sim_create(seed), .body = body};
    group_init(&history.requests);
    log_set_sink(swallow, NULL); /* power cuts are part of the story */
    ck_assert_int_eq(coro_spawn(co_history, &history, "history"), 0);
    ck_assert(sim_run(history.world, 0));
    ck_assert_uint_eq(coro_live_count(), 0);
    sim_free(history.world);
}

/*
 * A discard between a writer's look-up and its L2 update frees the cluster that the writer then
 * binds: two guest clusters on one host cluster.
 */
static void co_discard_before_publish(struct history *history)
{
    int write_result, trim_result;

    co_do(history, ZERO_NO_HOLE, 0, CLUSTER, 0);
    break_point_arm(BREAK_BEFORE_PUBLISH, 1);
    start(history, WRITE, 0, CLUSTER, 1, &write_result);
    co_break_point_await(BREAK_BEFORE_PUBLISH, 1);
    start(history, TRIM, 0, CLUSTER, 0, &trim_result);
    co_settle(history);
    co_commit_and_settle(history);
    co_do(history, WRITE, MIB, CLUSTER, 2);
    co_finish(history);
    ck_assert_int_eq(write_result, 0);
    ck_assert_int_eq(trim_result, 0);
    co_do(history, WRITE, 2 * MIB, CLUSTER, 3);
    co_expect(history, 0, CLUSTER, 1, 0);
    co_expect(history, MIB, CLUSTER, 2, 2);
    co_expect(history, 2 * MIB, CLUSTER, 3, 3);
}

/*
 * An in-place write in flight, its cluster discarded and handed to another guest offset: the old
 * write lands there.
 */
static void co_discard_under_overwrite(struct history *history)
{
    int write_result, trim_result;

    co_do(history, WRITE, 0, CLUSTER, 1);
    co_commit_and_settle(history);
    break_point_arm(BREAK_IN_PLACE_WRITE, 1);
    start(history, WRITE, 4096, 4096, 2, &write_result);
    co_break_point_await(BREAK_IN_PLACE_WRITE, 1);
    start(history, TRIM, 0, CLUSTER, 0, &trim_result);
    co_settle(history);
    co_commit_and_settle(history);
    co_do(history, WRITE, MIB, CLUSTER, 3);
    co_finish(history);
    ck_assert_int_eq(write_result, 0);
    ck_assert_int_eq(trim_result, 0);
    co_expect(history, MIB, CLUSTER, 3, 3);
    co_expect(history, 0, 4096, 0, 0);
}

/* The same with a write that allocates: the cluster it fills is nobody else's until it is
 * published. */
static void co_discard_under_allocation(struct history *history)
{
    int write_result, trim_result;

    break_point_arm(BREAK_BEFORE_DATA_WRITE, 1);
    start(history, WRITE, 0, CLUSTER, 1, &write_result);
    co_break_point_await(BREAK_BEFORE_DATA_WRITE, 1);
    start(history, TRIM, 0, CLUSTER, 0, &trim_result);
    co_settle(history);
    co_commit_and_settle(history);
    co_do(history, WRITE, MIB, CLUSTER, 2);
    co_finish(history);
    co_expect(history, MIB, CLUSTER, 2, 2);
    co_expect(history, 0, CLUSTER, 1, 0);
}

/* A cluster that is freed is not reused while a reader that looked it up is still on its way. */
static void co_reuse_under_commit(struct history *history)
{
    int flush_result;

    co_do(history, WRITE, 0, CLUSTER, 1);
    co_commit_and_settle(history);
    co_do(history, TRIM, 0, CLUSTER, 0);
    break_point_arm(BREAK_BETWEEN_WAVES, 1);
    start(history, FLUSH, 0, 0, 0, &flush_result);
    co_break_point_await(BREAK_BETWEEN_WAVES, 1);
    /* The disk's map still names the trimmed cluster: new data must not go there yet. */
    co_do(history, WRITE, MIB, CLUSTER, 2);
    co_settle(history);
    sim_crash(history->world);
    co_finish(history);
    struct errtext err;
    history->image->ops->co_close(history->image, &err);
    sim_reboot(history->world);
    co_open_image(history);
    co_expect(history, 0, CLUSTER, 1, 0);
}

static void co_repair_leaks(struct history *history)
{
    co_close_image(history);
    struct errtext err = {""};
    struct disk *disk;
    struct header header;
    struct check_options options = {.repair = CHECK_REPAIR_LEAKS};
    struct check_result result;
    int ret = history->world->ops->co_disk_open(history->world, IMAGE, DISK_WRITABLE, &disk, &err);
    ck_assert_int_eq(ret, 0);
    ret = co_header_read(disk, &header, &err);
    ck_assert_int_eq(ret, 0);
    ret = co_qcow2_check(disk, &header, &options, &result, &err);
    ck_assert_int_eq(ret, 0);
    ck_assert_uint_eq(result.corruptions, 0);
    header_free(&header);
    disk_close(disk);
    co_open_image(history);
}

static void co_power_cut_between_waves(struct history *history)
{
    co_reuse_under_commit(history);
    co_repair_leaks(history);
}

/*
 * write 0 320k; write 320k 128k; write 1M 128k; write 448k 128k; discard 320k 128k; write 0 480k:
 * the last write goes over kept, new and kept clusters. Its padding must not touch what is behind
 * its end in a kept cluster, where another write is under way.
 */
static void co_padding_over_kept(struct history *history)
{
    int wide_result, narrow_result;

    co_do(history, WRITE, 0, 320 * KIB, 1);
    co_do(history, WRITE, 320 * KIB, 128 * KIB, 2);
    co_do(history, WRITE, MIB, 128 * KIB, 3);
    co_do(history, WRITE, 448 * KIB, 128 * KIB, 4);
    co_do(history, TRIM, 320 * KIB, 128 * KIB, 0);
    break_point_arm(BREAK_BEFORE_DATA_WRITE, 1);
    start(history, WRITE, 0, 480 * KIB, 5, &wide_result);
    co_break_point_await(BREAK_BEFORE_DATA_WRITE, 1);
    start(history, WRITE, 480 * KIB, 32 * KIB, 6, &narrow_result);
    co_settle(history);
    co_finish(history);
    co_expect(history, 0, 480 * KIB, 5, 5);
    co_expect(history, 480 * KIB, 32 * KIB, 6, 6);
    co_expect(history, 512 * KIB, 64 * KIB, 4, 4);
    co_expect(history, MIB, 128 * KIB, 3, 3);
}

/* Two in-place writes into one kept cluster go side by side: neither writes the other's bytes. */
static void co_neighbours_in_place(struct history *history)
{
    int first_result;

    co_do(history, WRITE, 0, CLUSTER, 1);
    break_point_arm(BREAK_DURING_COPY, 1);
    start(history, WRITE, 32 * KIB, 4096, 2, &first_result);
    co_settle(history);
    co_do(history, WRITE, 0, 4096, 3);
    co_finish(history);
    co_expect(history, 0, 4096, 3, 3);
    co_expect(history, 32 * KIB, 4096, 2, 2);
    co_expect(history, 4096, 28 * KIB, 1, 1);
}

/* Requests that touch no common cluster never wait for each other; those that do, wait. */
static void co_only_conflicts_wait(struct history *history)
{
    int stopped_result, other_result, same_result;

    break_point_arm(BREAK_BEFORE_PUBLISH, 1);
    start(history, WRITE, 0, 4096, 1, &stopped_result);
    co_break_point_await(BREAK_BEFORE_PUBLISH, 1);
    start(history, WRITE, CLUSTER, 4096, 2, &other_result);
    start(history, WRITE, 8192, 4096, 3, &same_result);
    co_settle(history);
    ck_assert_int_eq(other_result, 0);
    ck_assert_int_eq(same_result, 1);
    co_finish(history);
    co_expect(history, 0, 4096, 1, 1);
    co_expect(history, 8192, 4096, 3, 3);
}

/* What was acknowledged and only in memory when the server is told to stop. */
static void co_stop_is_a_flush(struct history *history)
{
    co_do(history, WRITE, 0, CLUSTER, 1);
    co_do(history, TRIM, 0, 4096, 0);
    co_close_image(history);
    co_open_image(history);
    co_expect(history, 0, 4096, 0, 0);
    co_expect(history, 4096, CLUSTER - 4096, 1, 1);
}

#define HISTORY(name)                                \
    START_TEST(name)                                 \
    {                                                \
        for (uint64_t seed = 1; seed <= 8; seed++) { \
            run_history(co_##name, seed);            \
        }                                            \
    }                                                \
    END_TEST

HISTORY(discard_before_publish)
HISTORY(discard_under_overwrite)
HISTORY(discard_under_allocation)
HISTORY(power_cut_between_waves)
HISTORY(padding_over_kept)
HISTORY(neighbours_in_place)
HISTORY(only_conflicts_wait)
HISTORY(stop_is_a_flush)

int main(void)
{
    const struct {
        const char *name;
        const TTest *test;
    } histories[] = {
        {"discard_before_publish", discard_before_publish},
        {"discard_under_overwrite", discard_under_overwrite},
        {"discard_under_allocation", discard_under_allocation},
        {"power_cut_between_waves", power_cut_between_waves},
        {"padding_over_kept", padding_over_kept},
        {"neighbours_in_place", neighbours_in_place},
        {"only_conflicts_wait", only_conflicts_wait},
        {"stop_is_a_flush", stop_is_a_flush},
    };
    Suite *suite = suite_create("histories");
    for (size_t i = 0; i < sizeof(histories) / sizeof(histories[0]); i++) {
        /* One case each, so that CK_RUN_CASE runs it alone. */
        TCase *tcase = tcase_create(histories[i].name);
        tcase_add_test(tcase, histories[i].test);
        suite_add_tcase(suite, tcase);
    }
    return test_suite_run(suite);
}
