/* SPDX-License-Identifier: BSD-2-Clause */
/*
 * A raw file as an image: bytes, zeroing with and without punch, extents, read-only, sticky errors.
 */
#include <check.h>
#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "base/limits.h"
#include "base/log.h"
#include "base/testing.h"
#include "qcow2/blocking_world.h"
#include "qcow2/qcow2.h"

/* Not a multiple of anything. */
#define FILE_BYTES (3U * 65536U + 77U)

static struct blocking_world world;
static struct errtext err;
static struct image *image;
static char *directory;
static char *path;
static uint8_t buf[FILE_BYTES];

static void open_image(bool read_only)
{
    ck_assert_int_eq(co_raw_open(&world.world, path, read_only, false, &image, &err), 0);
}

static int close_image(void)
{
    int ret = image->ops->co_close(image, &err);
    image = NULL;
    return ret;
}

static void swallow(enum log_level level, const char *line, void *arg)
{
    (void)level;
    (void)line;
    (void)arg;
}

static void setup(void)
{
    log_set_sink(swallow, NULL);
    blocking_world_init(&world);
    directory = blocking_make_directory();
    ck_assert_int_gt(asprintf(&path, "%s/disk.raw", directory), 0);
    memset(buf, 0x11, sizeof(buf));
    int fd = open(path, O_CREAT | O_WRONLY | O_EXCL, 0600);
    ck_assert_int_eq((int)write(fd, buf, sizeof(buf)), (int)sizeof(buf));
    close(fd);
}

static void teardown(void)
{
    if (image) {
        close_image();
    }
    unlink(path);
    ck_assert_int_eq(rmdir(directory), 0);
    free(path);
    free(directory);
}

static void expect_bytes(uint64_t offset, uint64_t len, uint8_t value)
{
    struct read_holes holes = {.count = 99};
    ck_assert_int_eq(image->ops->co_read(image, offset, buf, len, &holes), 0);
    ck_assert_uint_eq(holes.count, 0);
    for (uint64_t i = 0; i < len; i++) {
        ck_assert_uint_eq(buf[i], value);
    }
}

START_TEST(reads_and_writes)
{
    open_image(false);
    ck_assert_uint_eq(image->size_bytes, FILE_BYTES);
    ck_assert(!image->read_only);
    ck_assert_int_eq(image->ops->co_write(image, FILE_BYTES - 5, "\x22\x22\x22\x22\x22", 5, 0), 0);
    expect_bytes(FILE_BYTES - 5, 5, 0x22);
    expect_bytes(0, FILE_BYTES - 5, 0x11);
    ck_assert_uint_eq(world.flushes, 0);
    ck_assert_int_eq(image->ops->co_write(image, 1, "\x33", 1, IMAGE_FUA), 0);
    ck_assert_uint_eq(world.flushes, 1);
    ck_assert_int_eq(image->ops->co_flush(image), 0);
    ck_assert_uint_eq(world.flushes, 2);
    ck_assert_int_eq(close_image(), 0);
    ck_assert_uint_eq(world.flushes, 3);
    open_image(true);
    expect_bytes(1, 1, 0x33);
    expect_bytes(2, 10, 0x11);
    expect_bytes(FILE_BYTES - 5, 5, 0x22);
}
END_TEST

/* _i: whether the file system can punch. */
START_TEST(zeroes_and_trims)
{
    world.no_punch = !_i;
    open_image(false);
    ck_assert_int_eq(image->ops->co_zero(image, 100, 70000, 0), 0);
    expect_bytes(100, 70000, 0);
    expect_bytes(0, 100, 0x11);
    expect_bytes(70100, 1000, 0x11);
    ck_assert_uint_eq(world.punches, _i ? 1 : 0);
    ck_assert_uint_eq(world.zeroes, _i ? 0 : 1);
    ck_assert_int_eq(image->ops->co_trim(image, 131072, 65536, IMAGE_FUA), 0);
    ck_assert_uint_eq(world.flushes, 1);
    expect_bytes(131072, 65536, 0);
    expect_bytes(131071, 1, 0x11);
    expect_bytes(131072 + 65536, 77, 0x11);
    unsigned before = world.zeroes;
    ck_assert_int_eq(image->ops->co_zero(image, 131072 + 65536, 77, IMAGE_NO_HOLE), 0);
    ck_assert_uint_eq(world.zeroes, before + 1);
    expect_bytes(131072 + 65536, 77, 0);
}
END_TEST

START_TEST(fast_zero)
{
    open_image(false);
    ck_assert(image->can_zero_fast);
    ck_assert_int_eq(image->ops->co_zero(image, 0, 4096, IMAGE_FAST_ZERO | IMAGE_NO_HOLE),
                     -ENOTSUP);
    expect_bytes(0, 4096, 0x11);
    ck_assert_int_eq(image->ops->co_zero(image, 0, 4096, IMAGE_FAST_ZERO), 0);
    expect_bytes(0, 4096, 0);
    world.no_punch = true;
    ck_assert_int_eq(image->ops->co_zero(image, 8192, 4096, IMAGE_FAST_ZERO), -ENOTSUP);
    expect_bytes(8192, 4096, 0x11);
}
END_TEST

START_TEST(extents)
{
    struct extent extent[4];
    struct extent_list list = {extent, 4, 0};
    open_image(false);
    ck_assert_int_eq(image->ops->co_extents(image, 10, FILE_BYTES - 10, &list), 0);
    ck_assert_uint_eq(list.count, 1);
    ck_assert_uint_eq(extent[0].len, FILE_BYTES - 10);
    ck_assert_uint_eq(extent[0].flags, 0);
    ck_assert_uint_eq(extent[0].depth, 1);

    ck_assert_int_eq(image->ops->co_trim(image, 65536, 65536, 0), 0);
    ck_assert_int_eq(image->ops->co_extents(image, 10, FILE_BYTES - 20, &list), 0);
    ck_assert_uint_eq(list.count, 3);
    ck_assert_uint_eq(extent[0].len, 65526);
    ck_assert_uint_eq(extent[1].len, 65536);
    ck_assert_uint_eq(extent[1].flags, EXTENT_HOLE | EXTENT_ZERO);
    ck_assert_uint_eq(extent[2].flags, 0);
    ck_assert_uint_eq(extent[2].len, FILE_BYTES - 10 - 131072);

    list.capacity = 2;
    ck_assert_int_eq(image->ops->co_extents(image, 10, FILE_BYTES - 20, &list), 0);
    ck_assert_uint_eq(list.count, 2);

    /* Shortened by somebody else: an answer nevertheless, and an end. */
    ck_assert_int_eq(truncate(path, 65536), 0);
    list.capacity = 4;
    ck_assert_int_eq(image->ops->co_extents(image, 0, FILE_BYTES, &list), 0);
    ck_assert_uint_eq(list.count, 2);
    ck_assert_uint_eq(extent[0].len + extent[1].len, FILE_BYTES);
    ck_assert_uint_eq(extent[1].flags, EXTENT_HOLE | EXTENT_ZERO);
}
END_TEST

START_TEST(read_only)
{
    open_image(true);
    ck_assert(image->read_only);
    ck_assert_int_eq(image->ops->co_write(image, 0, "x", 1, 0), -EROFS);
    ck_assert_int_eq(image->ops->co_zero(image, 0, 1, 0), -EROFS);
    ck_assert_int_eq(image->ops->co_trim(image, 0, 1, 0), -EROFS);
    ck_assert_int_eq(image->ops->co_flush(image), 0);
    ck_assert_int_eq(close_image(), 0);
    ck_assert_uint_eq(world.calls, 0);
}
END_TEST

/* O8 */
START_TEST(failed_flush_sticks)
{
    open_image(false);
    world.fail_from_call = 2;
    world.fail_with = -EIO;
    ck_assert_int_eq(image->ops->co_write(image, 0, "x", 1, IMAGE_FUA), -EIO);
    world.fail_from_call = 0;
    unsigned flushes = world.flushes;
    ck_assert_int_eq(image->ops->co_flush(image), -EIO);
    ck_assert_int_eq(image->ops->co_write(image, 0, "y", 1, 0), -EIO);
    ck_assert_int_eq(image->ops->co_zero(image, 0, 1, 0), -EIO);
    ck_assert_int_eq(image->ops->co_trim(image, 0, 1, 0), -EIO);
    expect_bytes(1, 10, 0x11);
    ck_assert_int_eq(close_image(), -EIO);
    ck_assert_uint_eq(world.flushes, flushes);
    ck_assert_ptr_nonnull(strstr(err.text, "acknowledged writes may be lost"));
}
END_TEST

START_TEST(enospc_fails_that_request_alone)
{
    open_image(false);
    world.fail_from_call = 1;
    world.fail_with = -ENOSPC;
    ck_assert_int_eq(image->ops->co_write(image, 0, "x", 1, 0), -ENOSPC);
    world.fail_from_call = 0;
    ck_assert_int_eq(image->ops->co_write(image, 0, "x", 1, 0), 0);
    ck_assert_int_eq(close_image(), 0);
}
END_TEST

START_TEST(missing_file)
{
    unlink(path);
    ck_assert_int_eq(co_raw_open(&world.world, path, true, false, &image, &err), -ENOENT);
    ck_assert_ptr_nonnull(strstr(err.text, path));
}
END_TEST

int main(void)
{
    Suite *suite = suite_create("raw");
    TCase *tcase = tcase_create("raw");
    tcase_add_checked_fixture(tcase, setup, teardown);
    tcase_add_test(tcase, reads_and_writes);
    tcase_add_loop_test(tcase, zeroes_and_trims, 0, 2);
    tcase_add_test(tcase, fast_zero);
    tcase_add_test(tcase, extents);
    tcase_add_test(tcase, read_only);
    tcase_add_test(tcase, failed_flush_sticks);
    tcase_add_test(tcase, enospc_fails_that_request_alone);
    tcase_add_test(tcase, missing_file);
    suite_add_tcase(suite, tcase);
    return test_suite_run(suite);
}
