/* SPDX-License-Identifier: BSD-2-Clause */
/*
 * Extensions come and go in headers of many shapes, and every step is the last one once: what is
 * then on the disk must be a valid header with everything else in it that was there before. Steps
 * that could be torn apart must lie in one sector, or where no reader looks.
 */
#include <check.h>
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "base/bytes.h"
#include "base/testing.h"
#include "qcow2/blocking_world.h"
#include "qcow2/header_extension.h"
#include "qcow2/test_images.h"

#define AT(field)  offsetof(struct qcow2_disk_header, field)
#define TYPE       0x12345678U /* the one that is added */
#define OTHER      0x0badcafeU
#define NAME       "a-backing-file.img"
#define HEADER_LEN 104U

static struct blocking_world world;
static struct errtext err;
static char *directory;
static char *image_path;
static struct test_image image;

/* A header: an extension of other_len bytes first, the backing name so far behind the end. */
struct shape {
    uint32_t cluster_bits;
    uint32_t other_len;
    int name_gap; /* -1: no backing name */
};

static void build(const struct shape *shape)
{
    const struct test_image_options options = {3, shape->cluster_bits, 4, false, 2};
    test_image_build(&image, &options);
    uint32_t at = HEADER_LEN;
    memset(image.bytes + at, 0, image.geo.cluster_bytes - at);
    put_be32(image.bytes + at, OTHER);
    put_be32(image.bytes + at + 4, shape->other_len);
    memset(image.bytes + at + 8, 0x77, shape->other_len);
    at += 8 + (uint32_t)round_up_to(shape->other_len, 8) + 8;
    if (shape->name_gap >= 0) {
        at += (uint32_t)shape->name_gap;
        put_be64(image.bytes + AT(backing_file_offset), at);
        put_be32(image.bytes + AT(backing_file_size), sizeof(NAME) - 1);
        memcpy(image.bytes + at, NAME, sizeof(NAME) - 1);
    }
    test_image_save(&image, image_path);
    test_image_free(&image);
}

static void setup(void)
{
    blocking_world_init(&world);
    directory = blocking_make_directory();
    ck_assert_int_gt(asprintf(&image_path, "%s/disk.qcow2", directory), 0);
}

static void teardown(void)
{
    unlink(image_path);
    ck_assert_int_eq(rmdir(directory), 0);
    free(image_path);
    free(directory);
}

static struct disk *open_image(void)
{
    struct disk *disk;
    int ret = world.world.ops->co_disk_open(&world.world, image_path, DISK_WRITABLE, &disk, &err);
    ck_assert_int_eq(ret, 0);
    return disk;
}

static void read_header(struct disk *disk, struct header *header)
{
    int ret = co_header_read(disk, header, &err);
    ck_assert_msg(ret == 0, "%s", err.text);
}

static bool all_are(const uint8_t *bytes, uint32_t len, int byte)
{
    for (uint32_t i = 0; i < len; i++) {
        if (bytes[i] != byte) {
            return false;
        }
    }
    return true;
}

/* What must always be there. */
static void check_rest(struct disk *disk, const struct shape *shape)
{
    struct header header;
    struct header_place place;
    uint8_t bytes[1024];
    read_header(disk, &header);
    if (shape->name_gap >= 0) {
        ck_assert_str_eq(header.backing_name, NAME);
    }
    ck_assert_int_eq(co_header_extension_find(disk, &header, OTHER, &place), 0);
    ck_assert_uint_eq(place.len, shape->other_len);
    ck_assert_int_eq(co_disk_read(disk, place.offset, bytes, place.len), 0);
    ck_assert(all_are(bytes, place.len, 0x77));
    header_free(&header);
}

/* Whether the extension is there; then it must hold this byte. */
static bool has_extension(struct disk *disk, uint32_t type, uint32_t len, int byte)
{
    struct header header;
    struct header_place place;
    uint8_t bytes[4096];
    read_header(disk, &header);
    int ret = co_header_extension_find(disk, &header, type, &place);
    header_free(&header);
    ck_assert(ret == 0 || ret == -ENOENT);
    if (ret < 0) {
        return false;
    }
    ck_assert_uint_eq(place.len, len);
    ck_assert_int_eq(co_disk_read(disk, place.offset, bytes, len), 0);
    ck_assert(all_are(bytes, len, byte));
    return true;
}

static int add(struct disk *disk, uint32_t type, uint32_t len, int byte)
{
    struct header header;
    struct header_place place;
    uint8_t bytes[4096];
    memset(bytes, byte, sizeof(bytes));
    read_header(disk, &header);
    int ret = co_header_extension_add(disk, &header, type, bytes, len, &place);
    header_free(&header);
    if (ret == 0) {
        ck_assert(len > 512 || header_extension_is_atomic(&place, 0, len));
    }
    return ret;
}

static int drop(struct disk *disk, uint32_t type)
{
    struct header header;
    read_header(disk, &header);
    int ret = co_header_extension_remove(disk, &header, type);
    header_free(&header);
    return ret;
}

/* Adds and removes with every call being the last; returns whether there was room. */
static bool try_shape(const struct shape *shape, uint32_t len)
{
    bool added = false;
    bool removed = false;
    for (unsigned last = 1; !removed; last++) {
        build(shape);
        struct disk *disk = open_image();
        world.calls = 0;
        world.fail_with = -EIO;
        world.fail_from_call = last;
        int ret = add(disk, TYPE, len, 0x5a);
        if (ret == -ENOSPC) {
            world.fail_from_call = 0;
            check_rest(disk, shape);
            ck_assert(!has_extension(disk, TYPE, len, 0x5a));
            disk_close(disk);
            return false;
        }
        added = ret == 0;
        removed = added && drop(disk, TYPE) == 0;
        world.fail_from_call = 0;
        check_rest(disk, shape);
        bool there = has_extension(disk, TYPE, len, 0x5a);
        ck_assert(!removed || !there);
        disk_close(disk);
    }
    return true;
}

START_TEST(any_step_may_be_the_last)
{
    static const uint32_t cluster_bits[] = {9, 10, 16};
    static const uint32_t lens[] = {0, 1, 24, 40, 500};
    static const int gaps[] = {-1, 0, 8, 40, 120};
    unsigned fitting = 0;
    for (size_t c = 0; c < ARRAY_LEN(cluster_bits); c++) {
        for (size_t l = 0; l < ARRAY_LEN(lens); l++) {
            for (size_t g = 0; g < ARRAY_LEN(gaps); g++) {
                /* All places in a sector, with and without padding. */
                uint32_t step = lens[l] == 24 && gaps[g] <= 0 ? 8 : 88;
                for (uint32_t other = 9; other < 9 + 512; other += step) {
                    struct shape shape = {cluster_bits[c], other, gaps[g]};
                    uint64_t end = HEADER_LEN + 16 + round_up_to(other, 8) +
                                   (uint64_t)(gaps[g] < 0 ? 0 : gaps[g] + (int)sizeof(NAME));
                    if (end <= 1ULL << shape.cluster_bits) {
                        fitting += try_shape(&shape, lens[l]);
                    }
                }
            }
        }
    }
    ck_assert_uint_gt(fitting, 100);
}
END_TEST

START_TEST(a_header_without_room_stays_as_it_is)
{
    static const struct shape shapes[] = {{9, 360, -1}, {9, 340, 0}, {9, 300, 20}};
    for (size_t i = 0; i < ARRAY_LEN(shapes); i++) {
        build(&shapes[i]);
        struct disk *disk = open_image();
        unsigned calls = world.calls;
        ck_assert_int_eq(add(disk, TYPE, 100, 1), -ENOSPC);
        ck_assert_uint_eq(world.calls, calls);
        check_rest(disk, &shapes[i]);
        disk_close(disk);
    }
}
END_TEST

START_TEST(what_is_removed_is_used_again)
{
    const struct shape shape = {9, 100, 0};
    build(&shape);
    struct disk *disk = open_image();
    ck_assert_int_eq(add(disk, TYPE + 1, 24, 1), 0);
    ck_assert_int_eq(add(disk, TYPE + 2, 24, 2), 0);
    for (int i = 0; i < 100; i++) { /* between others, at the end, and shorter than the room is */
        ck_assert_int_eq(drop(disk, TYPE + 1), 0);
        ck_assert_int_eq(add(disk, TYPE + 1, i % 2 ? 24 : 8, i), 0);
        ck_assert(has_extension(disk, TYPE + 1, i % 2 ? 24 : 8, i));
        ck_assert(has_extension(disk, TYPE + 2, 24, 2));
        ck_assert_int_eq(drop(disk, TYPE + 1), 0);
        ck_assert_int_eq(add(disk, TYPE + 1, 24, i), 0);
        ck_assert_int_eq(drop(disk, TYPE + 2), 0);
        ck_assert_int_eq(add(disk, TYPE + 2, 24, 2), 0);
    }
    check_rest(disk, &shape);
    disk_close(disk);
}
END_TEST

/* Where the header is full, names of features give way. */
START_TEST(names_of_features_give_way)
{
    const struct shape shape = {9, 9, -1};
    bool added = false;
    for (unsigned last = 1; !added; last++) {
        build(&shape);
        struct disk *disk = open_image();
        world.fail_from_call = 0;
        ck_assert_int_eq(add(disk, QCOW2_EXT_FEATURE_NAMES, 336, 1), 0);
        ck_assert_int_eq(add(disk, TYPE + 1, 20, 1), 0);
        world.calls = 0;
        world.fail_with = -EIO;
        world.fail_from_call = last;
        added = add(disk, TYPE, 24, 2) == 0;
        world.fail_from_call = 0;
        check_rest(disk, &shape);
        ck_assert(has_extension(disk, TYPE + 1, 20, 1));
        ck_assert(has_extension(disk, TYPE, 24, 2) || !added);
        disk_close(disk);
    }
}
END_TEST

START_TEST(bytes_change_in_place)
{
    const struct shape shape = {12, 380, 0};
    build(&shape);
    struct disk *disk = open_image();
    ck_assert_int_eq(add(disk, TYPE, 1500, 0), 0);
    struct header header;
    struct header_place place;
    read_header(disk, &header);
    ck_assert_int_eq(co_header_extension_find(disk, &header, TYPE, &place), 0);
    header_free(&header);
    uint8_t bytes[1500];
    memset(bytes, 9, sizeof(bytes));
    ck_assert_int_eq(co_header_extension_write(disk, &place, 0, bytes, 1500), 0);
    ck_assert(has_extension(disk, TYPE, 1500, 9));
    memset(bytes, 3, sizeof(bytes));
    ck_assert_int_eq(co_header_extension_write(disk, &place, 400, bytes, 700), 0);
    uint8_t found[1500];
    ck_assert_int_eq(co_disk_read(disk, place.offset, found, sizeof(found)), 0);
    for (unsigned i = 0; i < sizeof(found); i++) {
        ck_assert_uint_eq(found[i], i >= 400 && i < 1100 ? 3 : 9);
    }
    check_rest(disk, &shape);
    disk_close(disk);
}
END_TEST

int main(void)
{
    Suite *suite = suite_create("header_extension");
    TCase *tcase = tcase_create("header_extension");
    tcase_add_checked_fixture(tcase, setup, teardown);
    tcase_set_timeout(tcase, 60);
    tcase_add_test(tcase, any_step_may_be_the_last);
    tcase_add_test(tcase, a_header_without_room_stays_as_it_is);
    tcase_add_test(tcase, what_is_removed_is_used_again);
    tcase_add_test(tcase, names_of_features_give_way);
    tcase_add_test(tcase, bytes_change_in_place);
    suite_add_tcase(suite, tcase);
    return test_suite_run(suite);
}
