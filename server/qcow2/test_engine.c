/* SPDX-License-Identifier: BSD-2-Clause */
/*
 * The engine as its callers see it, in the simulated world: one client against a plain array of
 * bytes, over the formats; then single behaviours. Concurrency and power cuts are the simulator's.
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
#include "qcow2/engine.h"
#include "qcow2/map.h"
#include "qcow2/qcow2.h"
#include "sched/co.h"

#define IMAGE "disk.qcow2"

struct format {
    uint32_t version;
    uint64_t cluster_bytes;
    uint32_t refcount_bits;
    bool extended_l2;
    enum { BACKING_NONE, BACKING_RAW_SHORT, BACKING_QCOW2 } backing;
};

static const struct format formats[] = {
    {3, 65536, 16, false, BACKING_NONE},      {3, 512, 16, false, BACKING_NONE},
    {3, 512, 1, false, BACKING_RAW_SHORT},    {3, 1024, 64, false, BACKING_QCOW2},
    {3, 4096, 2, false, BACKING_NONE},        {3, 4096, 8, false, BACKING_RAW_SHORT},
    {3, 16384, 16, true, BACKING_NONE},       {3, 16384, 4, true, BACKING_QCOW2},
    {3, 65536, 32, true, BACKING_RAW_SHORT},  {2, 4096, 16, false, BACKING_NONE},
    {2, 65536, 16, false, BACKING_RAW_SHORT}, {3, 2097152, 16, false, BACKING_NONE},
};

struct run {
    struct world *world;
    struct format format;
    uint64_t size;
    uint8_t *model;
    struct image *image;
    struct qcow2_open_options options;
    void (*body)(struct run *run);
};

static void must(int ret, const struct errtext *err)
{
    ck_assert_msg(ret == 0, "%d: %s", ret, err ? err->text : strerror(-ret));
}

static void co_open(struct run *run)
{
    struct errtext err = {""};
    int ret = co_qcow2_open(run->world, IMAGE, &run->options, &run->image, &err);
    must(ret, &err);
}

static void co_close(struct run *run)
{
    struct errtext err = {""};
    int ret = run->image->ops->co_close(run->image, &err);
    run->image = NULL;
    must(ret, &err);
}

static void print_finding(void *arg, const char *line)
{
    (void)arg;
    fprintf(stderr, "check: %s\n", line);
}

/* Nothing wrong and nothing leaked. */
static void co_check_clean(struct run *run)
{
    struct errtext err = {""};
    struct disk *disk;
    struct header header;
    struct check_options options = {.finding = print_finding};
    struct check_result result;

    int ret = run->world->ops->co_disk_open(run->world, IMAGE, DISK_READ_ONLY, &disk, &err);
    must(ret, &err);
    ret = co_header_read(disk, &header, &err);
    must(ret, &err);
    ret = co_qcow2_check(disk, &header, &options, &result, &err);
    must(ret, &err);
    ck_assert_uint_eq(result.corruptions, 0);
    ck_assert_uint_eq(result.leaks, 0);
    header_free(&header);
    disk_close(disk);
}

/* Fills the lower layer with a pattern, and the model with what shows through. */
static void co_make_backing(struct run *run)
{
    uint64_t len = run->format.backing == BACKING_RAW_SHORT ? run->size / 2 + 512 : run->size;
    uint8_t *bytes = malloc(len);
    for (uint64_t i = 0; i < len; i++) {
        bytes[i] = (uint8_t)(0x40 + i / 512 % 64);
    }
    memcpy(run->model, bytes, len);
    if (run->format.backing == BACKING_RAW_SHORT) {
        must(sim_file_put(run->world, "base", bytes, len), NULL);
    } else {
        struct create_options create;
        struct errtext err = {""};
        struct image *image;
        create_options_init(&create);
        create.size_bytes = len;
        int ret = co_qcow2_create(run->world, "base", &create, &err);
        must(ret, &err);
        struct qcow2_open_options options = {0};
        ret = co_qcow2_open(run->world, "base", &options, &image, &err);
        must(ret, &err);
        ret = image->ops->co_write(image, 0, bytes, len, 0);
        must(ret, NULL);
        ret = image->ops->co_close(image, &err);
        must(ret, &err);
    }
    free(bytes);
}

static void co_make_image(struct run *run)
{
    struct create_options create;
    struct errtext err = {""};

    if (run->format.backing != BACKING_NONE) {
        co_make_backing(run);
    }
    create_options_init(&create);
    create.size_bytes = run->size;
    create.version = run->format.version;
    create.cluster_bytes = run->format.cluster_bytes;
    create.refcount_bits = run->format.refcount_bits;
    create.extended_l2 = run->format.extended_l2;
    if (run->format.backing != BACKING_NONE) {
        create.backing_name = "base";
        create.backing_format = run->format.backing == BACKING_QCOW2 ? "qcow2" : "raw";
    }
    int ret = co_qcow2_create(run->world, IMAGE, &create, &err);
    must(ret, &err);
}

static void co_body(void *arg)
{
    struct run *run = arg;
    co_make_image(run);
    co_open(run);
    run->body(run);
    if (run->image) {
        co_close(run);
        co_check_clean(run);
    }
}

static void run_body(struct format format, uint64_t size, uint64_t seed,
                     void (*body)(struct run *run))
{
    struct run run = {
        .world = sim_create(seed),
        .format = format,
        .size = size,
        .model = calloc(1, size),
        .body = body,
    };
    ck_assert_int_eq(coro_spawn(co_body, &run, "test"), 0);
    ck_assert(sim_run(run.world, 0));
    ck_assert_uint_eq(coro_live_count(), 0);
    sim_free(run.world);
    free(run.model);
}

/* Compares the whole disk with the model. */
static void co_compare(struct run *run)
{
    uint8_t *bytes = malloc(run->size);
    int ret = run->image->ops->co_read(run->image, 0, bytes, run->size, NULL);
    must(ret, NULL);
    for (uint64_t i = 0; i < run->size; i++) {
        if (bytes[i] != run->model[i]) {
            ck_abort_msg("byte %#llx is %#x, should be %#x", (unsigned long long)i, bytes[i],
                         run->model[i]);
        }
    }
    free(bytes);
}

static void co_random_step(struct run *run)
{
    struct image *image = run->image;
    uint64_t unit = sim_random_below(run->world, 3) == 0 ? 1 : 512;
    uint64_t max_units = run->size / unit;
    uint64_t offset = sim_random_below(run->world, max_units) * unit;
    uint64_t wish = run->size / (1 + sim_random_below(run->world, 40));
    uint64_t most = MIN_OF(run->size - offset, wish);
    uint64_t len = MAX_OF(most / unit * unit, 1U);
    unsigned fua = sim_random_below(run->world, 16) == 0 ? IMAGE_FUA : 0;
    int ret;

    switch (sim_random_below(run->world, 8)) {
    case 0:
    case 1:
    case 2: {
        uint8_t *bytes = malloc(len);
        memset(bytes, (int)(1 + sim_random_below(run->world, 255)), len);
        ret = image->ops->co_write(image, offset, bytes, len, fua);
        memcpy(run->model + offset, bytes, len);
        free(bytes);
        break;
    }
    case 3:
        ret = image->ops->co_zero(image, offset, len, fua);
        memset(run->model + offset, 0, len);
        break;
    case 4:
        ret = image->ops->co_zero(image, offset, len, fua | IMAGE_NO_HOLE);
        memset(run->model + offset, 0, len);
        break;
    case 5:
        ret = image->ops->co_trim(image, offset, len, fua);
        memset(run->model + offset, 0, len);
        break;
    case 6:
        ret = image->ops->co_zero(image, offset, len, IMAGE_FAST_ZERO);
        if (ret == 0) {
            memset(run->model + offset, 0, len);
        } else if (ret == -ENOTSUP) {
            ret = 0;
        }
        break;
    default: {
        struct read_holes holes;
        uint8_t *bytes = malloc(len);
        ret = image->ops->co_read(image, offset, bytes, len, &holes);
        for (unsigned i = 0; ret == 0 && i < holes.count; i++) {
            memset(bytes + holes.run[i].offset, 0, holes.run[i].len);
        }
        ck_assert(ret < 0 || memcmp(bytes, run->model + offset, len) == 0);
        free(bytes);
        break;
    }
    }
    must(ret, NULL);
}

static void co_random_body(struct run *run)
{
    for (int life = 0; life < 3; life++) {
        for (int i = 0; i < 120; i++) {
            co_random_step(run);
        }
        co_compare(run);
        co_close(run);
        co_check_clean(run);
        co_open(run);
        co_compare(run);
    }
}

START_TEST(random_requests)
{
    const struct format *format = &formats[_i];
    uint64_t size = format->cluster_bytes * (format->cluster_bytes > MIB ? 3 : 20) + 1536;
    for (uint64_t seed = 1; seed <= 4; seed++) {
        run_body(*format, size, seed, co_random_body);
    }
}
END_TEST

/* Extents describe exactly what reads give. */
static void co_extents_body(struct run *run)
{
    struct image *image = run->image;
    static uint8_t data[65536]; /* too large for a coroutine */
    struct extent extents[8];
    struct extent_list list = {extents, 8, 0};

    memset(data, 7, sizeof(data));
    int ret = image->ops->co_write(image, 65536, data, sizeof(data), 0);
    must(ret, NULL);
    ret = image->ops->co_zero(image, 3 * 65536, 65536, IMAGE_NO_HOLE);
    must(ret, NULL);
    ret = image->ops->co_extents(image, 0, run->size, &list);
    must(ret, NULL);
    ck_assert_uint_eq(list.count, 5);
    const struct extent want[] = {
        {65536, EXTENT_HOLE | EXTENT_ZERO, 0},
        {65536, 0, 1},
        {65536, EXTENT_HOLE | EXTENT_ZERO, 0},
        {65536, EXTENT_ZERO, 1},
        {run->size - 4 * 65536, EXTENT_HOLE | EXTENT_ZERO, 0},
    };
    for (unsigned i = 0; i < 5; i++) {
        ck_assert_uint_eq(extents[i].len, want[i].len);
        ck_assert_uint_eq(extents[i].flags, want[i].flags);
        ck_assert_uint_eq(extents[i].depth, want[i].depth);
    }
}

START_TEST(extents_tell_data_zero_and_hole)
{
    run_body(formats[0], 20 * 65536, 1, co_extents_body);
}
END_TEST

/* The write path does no metadata I/O, and a flush without a dirty mapping is one fsync. */
static void co_io_body(struct run *run)
{
    struct image *image = run->image;
    static uint8_t data[65536]; /* too large for a coroutine */

    memset(data, 7, sizeof(data));
    int ret = image->ops->co_write(image, 0, data, sizeof(data), 0);
    must(ret, NULL);
    ret = image->ops->co_flush(image);
    must(ret, NULL);

    struct sim_counts before = sim_counts(run->world);
    ret = image->ops->co_write(image, 65536, data, sizeof(data), 0);
    must(ret, NULL);
    struct sim_counts after = sim_counts(run->world);
    ck_assert_uint_eq(after.writes - before.writes, 1);
    ck_assert_uint_eq(after.bytes_written - before.bytes_written, 65536);
    ck_assert_uint_eq(after.flushes, before.flushes);

    ret = image->ops->co_flush(image);
    must(ret, NULL);
    struct sim_counts committed = sim_counts(run->world);
    ck_assert_uint_eq(committed.flushes - after.flushes, 2);

    ret = image->ops->co_write(image, 0, data, sizeof(data), IMAGE_FUA);
    must(ret, NULL);
    struct sim_counts in_place = sim_counts(run->world);
    ck_assert_uint_eq(in_place.flushes - committed.flushes, 1);
    ck_assert_uint_eq(in_place.writes - committed.writes, 1);
}

START_TEST(write_path_does_no_metadata_io)
{
    run_body(formats[0], 20 * 65536, 1, co_io_body);
}
END_TEST

/* Clusters given back are punched and used again; the file does not grow. */
static void co_reuse_body(struct run *run)
{
    struct image *image = run->image;
    static uint8_t data[65536]; /* too large for a coroutine */
    void *file;
    uint64_t first_len = 0, len;

    memset(data, 9, sizeof(data));
    for (int round = 0; round < 10; round++) {
        for (uint64_t at = 0; at < run->size; at += sizeof(data)) {
            int ret = image->ops->co_write(image, at, data, sizeof(data), 0);
            must(ret, NULL);
        }
        int ret = image->ops->co_trim(image, 0, run->size, IMAGE_FUA);
        must(ret, NULL);
        co_sleep_ns(run->world, 1000000000);
        must(sim_file_get(run->world, IMAGE, &file, &len), NULL);
        if (round == 0) {
            first_len = len;
        }
        /* The data must be gone from the file, not only from the map. */
        ck_assert_ptr_null(memchr((uint8_t *)file + 5 * 65536, 9, len - 5 * 65536));
        free(file);
    }
    ck_assert_uint_le(len, first_len + 65536);
    ck_assert_uint_gt(sim_counts(run->world).punches, 0);
}

START_TEST(trimmed_clusters_are_punched_and_reused)
{
    run_body(formats[0], 20 * 65536, 1, co_reuse_body);
}
END_TEST

/* O8: after a failed fsync no change is accepted, reads go on, close says so. */
static void co_fail_body(struct run *run)
{
    struct image *image = run->image;
    uint8_t data[512];
    struct errtext err = {""};

    memset(data, 3, sizeof(data));
    int ret = image->ops->co_write(image, 0, data, sizeof(data), 0);
    must(ret, NULL);
    struct sim_faults faults = {.flush_eio_ppm = 1000000};
    sim_set_faults(run->world, &faults);
    ret = image->ops->co_flush(image);
    ck_assert_int_eq(ret, -EIO);
    faults.flush_eio_ppm = 0;
    sim_set_faults(run->world, &faults);
    ret = image->ops->co_flush(image);
    ck_assert_int_eq(ret, -EIO);
    ret = image->ops->co_write(image, 0, data, sizeof(data), 0);
    ck_assert_int_eq(ret, -EIO);
    ret = image->ops->co_trim(image, 0, 512, 0);
    ck_assert_int_eq(ret, -EIO);
    memset(data, 0, sizeof(data));
    ret = image->ops->co_read(image, 0, data, sizeof(data), NULL);
    must(ret, NULL);
    ck_assert_int_eq(data[100], 3);
    ret = image->ops->co_close(image, &err);
    ck_assert_int_eq(ret, -EIO);
    ck_assert_ptr_nonnull(strstr(err.text, IMAGE));
    run->image = NULL;
}

START_TEST(failed_fsync_ends_all_changes)
{
    log_set_level(LOG_LEVEL_ERROR);
    run_body(formats[0], 20 * 65536, 1, co_fail_body);
}
END_TEST

/* ENOSPC fails one request, leaves the rest, and ends when there is room. */
static void co_full_body(struct run *run)
{
    struct image *image = run->image;
    static uint8_t data[65536]; /* too large for a coroutine */

    memset(data, 5, sizeof(data));
    int ret = image->ops->co_write(image, 0, data, sizeof(data), IMAGE_FUA);
    must(ret, NULL);
    sim_set_space(run->world, 512);
    ret = image->ops->co_write(image, 10 * 65536, data, sizeof(data), 0);
    ck_assert_int_eq(ret, -ENOSPC);
    memset(data, 0, sizeof(data));
    ret = image->ops->co_read(image, 0, data, 512, NULL);
    must(ret, NULL);
    ck_assert_int_eq(data[0], 5);
    ret = image->ops->co_read(image, 10 * 65536, data, sizeof(data), NULL);
    must(ret, NULL);
    ck_assert_int_eq(data[0], 0);
    sim_set_space(run->world, 0);
    ret = image->ops->co_write(image, 10 * 65536, data, sizeof(data), IMAGE_FUA);
    must(ret, NULL);
}

START_TEST(full_disk_fails_one_request)
{
    run_body(formats[0], 20 * 65536, 1, co_full_body);
}
END_TEST

/* A tiny cache: everything still works, and the budget holds. */
static void co_tiny_cache_body(struct run *run)
{
    struct qcow2 *q = qcow2_of(run->image);
    for (int i = 0; i < 400; i++) {
        co_random_step(run);
        ck_assert_uint_le(q->cache.count, q->cache.capacity);
    }
    co_compare(run);
}

START_TEST(cache_budget_is_kept)
{
    struct run run = {
        .world = sim_create(3),
        .format = formats[1],
        .size = 4 * MIB,
        .model = calloc(1, 4 * MIB),
        .body = co_tiny_cache_body,
        .options = {.cache_bytes = 1},
    };
    ck_assert_int_eq(coro_spawn(co_body, &run, "test"), 0);
    ck_assert(sim_run(run.world, 0));
    sim_free(run.world);
    free(run.model);
}
END_TEST

int main(void)
{
    Suite *suite = suite_create("engine");
    TCase *random = tcase_create("random");
    TCase *single = tcase_create("single");
    tcase_set_timeout(random, 60);
    tcase_add_loop_test(random, random_requests, 0, (int)ARRAY_LEN(formats));
    tcase_add_test(single, extents_tell_data_zero_and_hole);
    tcase_add_test(single, write_path_does_no_metadata_io);
    tcase_add_test(single, trimmed_clusters_are_punched_and_reused);
    tcase_add_test(single, failed_fsync_ends_all_changes);
    tcase_add_test(single, full_disk_fails_one_request);
    tcase_add_test(single, cache_budget_is_kept);
    suite_add_tcase(suite, random);
    suite_add_tcase(suite, single);
    return test_suite_run(suite);
}
