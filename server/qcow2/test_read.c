/* SPDX-License-Identifier: BSD-2-Clause */
/*
 * Reading through backing chains and compressed clusters, and what extents and holes say. Deep
 * chains are read on a coroutine's own small stack.
 */
#include "qcow2/read.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <zlib.h>

#include "base/bytes.h"
#include "base/limits.h"
#include "qcow2/map.h"
#include "qcow2/test_rig.h"

#define CLUSTER 65536U

/* Creates `path`, opens it as the rig's image. */
static void co_make(struct rig *rig, const char *path, uint64_t size, const char *backing,
                    const char *format)
{
    struct create_options create;
    struct errtext err = {""};
    create_options_init(&create);
    create.size_bytes = size;
    create.backing_name = backing;
    create.backing_format = format;
    int ret = co_qcow2_create(rig->world, path, &create, &err);
    ck_assert_msg(ret == 0, "%s", err.text);
}

static void co_fill(struct rig *rig, const char *path, uint64_t offset, uint64_t len, int byte)
{
    struct qcow2_open_options options = {0};
    struct errtext err = {""};
    struct image *image;
    int ret = co_qcow2_open(rig->world, path, &options, &image, &err);
    ck_assert_msg(ret == 0, "%s", err.text);
    uint8_t *bytes = malloc(len);
    memset(bytes, byte, len);
    ret = image->ops->co_write(image, offset, bytes, len, 0);
    ck_assert_int_eq(ret, 0);
    free(bytes);
    ret = image->ops->co_close(image, &err);
    ck_assert_int_eq(ret, 0);
}

static void run(rig_body *body)
{
    struct rig rig;
    rig_init(&rig, 13);
    rig_run_bare(&rig, body);
    rig_free(&rig);
}

/* Layer i holds cluster i; the top reads all of them, and copies on write from the lowest. */
#define LAYERS 100U
static void co_deep(struct rig *rig)
{
    char names[2][32];
    for (unsigned i = 0; i < LAYERS; i++) {
        char *name = names[i % 2];
        snprintf(name, sizeof(names[0]), "layer%u", i);
        const char *path = i == LAYERS - 1 ? RIG_IMAGE : name;
        co_make(rig, path, LAYERS * CLUSTER, i > 0 ? names[(i + 1) % 2] : NULL,
                i > 0 ? "qcow2" : NULL);
        co_fill(rig, path, (uint64_t)i * CLUSTER, CLUSTER, (int)(i + 1));
    }
    co_rig_open(rig);
    for (unsigned i = 0; i < LAYERS; i++) {
        co_rig_expect(rig, (uint64_t)i * CLUSTER, CLUSTER, (int)(i + 1));
    }
    co_rig_write(rig, 100, 10, 0xee);
    co_rig_expect(rig, 0, 100, 1);
    co_rig_expect(rig, 100, 10, 0xee);
    co_rig_expect(rig, 110, CLUSTER - 110, 1);

    struct extent extents[4];
    struct extent_list list = {extents, 4, 0};
    int ret = rig->image->ops->co_extents(rig->image, CLUSTER, 3 * CLUSTER, &list);
    ck_assert_int_eq(ret, 0);
    ck_assert_uint_eq(list.count, 3);
    ck_assert_uint_eq(extents[0].depth, LAYERS - 1);
    ck_assert_uint_eq(extents[1].depth, LAYERS - 2);
}

START_TEST(chain_of_a_hundred)
{
    run(co_deep);
}
END_TEST

static void co_too_deep(struct rig *rig)
{
    struct errtext err = {""};
    char names[2][32];
    for (unsigned i = 0; i < LIMIT_CHAIN_DEPTH + 1; i++) {
        snprintf(names[i % 2], sizeof(names[0]), "layer%u", i);
        const char *path = i == LIMIT_CHAIN_DEPTH ? RIG_IMAGE : names[i % 2];
        co_make(rig, path, CLUSTER, i > 0 ? names[(i + 1) % 2] : NULL, i > 0 ? "qcow2" : NULL);
    }
    int ret = co_rig_try_open(rig, &err);
    ck_assert_int_eq(ret, -ELOOP);
    ck_assert_ptr_nonnull(strstr(err.text, "more than 200 images"));

    co_make(rig, "a", CLUSTER, "b", "qcow2");
    co_make(rig, "b", CLUSTER, "a", "qcow2");
    struct qcow2_open_options options = {0};
    struct image *image;
    ret = co_qcow2_open(rig->world, "a", &options, &image, &err);
    ck_assert_int_lt(ret, 0);
    options.read_only = true;
    ret = co_qcow2_open(rig->world, "a", &options, &image, &err);
    ck_assert_int_eq(ret, -ELOOP);
    ck_assert_ptr_nonnull(strstr(err.text, "comes back to this file"));
}

START_TEST(chain_too_deep_or_looping)
{
    run(co_too_deep);
}
END_TEST

/* Shorter by an odd number of bytes, and longer, raw and qcow2. */
static void co_lengths(struct rig *rig)
{
    static uint8_t base[3 * CLUSTER + 700];
    memset(base, 0x66, sizeof(base));
    ck_assert_int_eq(sim_file_put(rig->world, "short.raw", base, sizeof(base)), 0);
    co_make(rig, "middle", 8 * CLUSTER, "short.raw", "raw");
    co_fill(rig, "middle", 5 * CLUSTER, CLUSTER, 0x55);
    co_make(rig, RIG_IMAGE, 20 * CLUSTER, "middle", "qcow2");
    co_rig_open(rig);
    co_rig_expect(rig, 0, sizeof(base), 0x66);
    co_rig_expect(rig, sizeof(base), 5 * CLUSTER - sizeof(base), 0);
    co_rig_expect(rig, 5 * CLUSTER, CLUSTER, 0x55);
    co_rig_expect(rig, 6 * CLUSTER, 14 * CLUSTER, 0);
    /* Copy on write over the end of the backing file. */
    co_rig_write(rig, 3 * CLUSTER + 10, 10, 1);
    co_rig_expect(rig, 3 * CLUSTER, 10, 0x66);
    co_rig_expect(rig, 3 * CLUSTER + 20, 680, 0x66);
    co_rig_expect(rig, 3 * CLUSTER + 700, CLUSTER - 700, 0);
    /* Trimmed: zero, never the bytes below; and past the backing file nothing has to be said. */
    co_rig_trim(rig, 0, 12 * CLUSTER);
    co_rig_expect(rig, 0, 20 * CLUSTER, 0);

    struct extent extents[8];
    struct extent_list list = {extents, 8, 0};
    int ret = rig->image->ops->co_extents(rig->image, 0, 20 * CLUSTER, &list);
    ck_assert_int_eq(ret, 0);
    ck_assert_uint_eq(list.count, 2);
    ck_assert_uint_eq(extents[0].len, 8 * CLUSTER);
    ck_assert_uint_eq(extents[0].depth, 1);
    ck_assert_uint_eq(extents[1].depth, 0);
    co_rig_close(rig);

    co_make(rig, "shorter", CLUSTER, "short.raw", "raw");
    struct qcow2_open_options options = {.read_only = true};
    struct errtext err = {""};
    struct image *image;
    ret = co_qcow2_open(rig->world, "shorter", &options, &image, &err);
    ck_assert_int_eq(ret, 0);
    ck_assert_uint_eq(image->size_bytes, CLUSTER);
    uint8_t byte = 0;
    ret = image->ops->co_write(image, 0, &byte, 1, 0);
    ck_assert_int_eq(ret, -EROFS);
    ret = image->ops->co_zero(image, 0, 1, 0);
    ck_assert_int_eq(ret, -EROFS);
    ret = image->ops->co_trim(image, 0, 1, 0);
    ck_assert_int_eq(ret, -EROFS);
    ret = image->ops->co_flush(image);
    ck_assert_int_eq(ret, 0);
    list.count = 0;
    ret = image->ops->co_extents(image, 0, CLUSTER, &list);
    ck_assert_int_eq(ret, 0);
    ck_assert_uint_eq(list.count, 1);
    ck_assert_uint_eq(extents[0].depth, 2);
    ck_assert_uint_eq(extents[0].flags, 0);
    ret = image->ops->co_close(image, &err);
    ck_assert_int_eq(ret, 0);
}

/* What a backing file has behind its end, in its last cluster, is nobody's. */
static void co_behind_the_end(struct rig *rig)
{
    struct test_image image;
    static const struct test_image_options options = {3, 12, 4, false, 4};
    test_image_build(&image, &options);
    test_image_put(&image, 24, 3 * 4096 + 2048);
    rig_put(rig, "base", &image);
    test_image_free(&image);
    co_make(rig, RIG_IMAGE, 6 * CLUSTER, "base", "qcow2");
    co_rig_open(rig);
    co_rig_expect(rig, 3 * 4096, 2048, 4);
    co_rig_expect(rig, 3 * 4096 + 2048, 2 * CLUSTER, 0);
    co_rig_write(rig, 4 * 4096, 10, 1);
    co_rig_expect(rig, 3 * 4096 + 2048, 2048, 0);
}

START_TEST(backing_files_shorter_and_longer)
{
    run(co_behind_the_end);
    run(co_lengths);
}
END_TEST

/* A name that says too little, or too much. */
static void co_refusals(struct rig *rig)
{
    static const struct {
        const char *format;
        const char *says;
    } cases[] = {{"vmdk", "backing file format is 'vmdk': allowed are qcow2 and raw"},
                 {NULL, "names a backing file but not its format"}};
    for (unsigned i = 0; i < 2; i++) {
        struct errtext err = {""};
        struct test_image image;
        static const struct test_image_options options = {3, 12, 4, false, 4};
        test_image_build(&image, &options);
        uint64_t name_at = 400;
        memcpy(image.bytes + name_at, "base", 4);
        put_be64(image.bytes + 8, name_at);
        put_be32(image.bytes + 16, 4);
        if (cases[i].format) {
            put_be32(image.bytes + 104, QCOW2_EXT_BACKING_FORMAT);
            put_be32(image.bytes + 108, 4);
            memcpy(image.bytes + 112, cases[i].format, 4);
        }
        rig_put(rig, RIG_IMAGE, &image);
        int ret = co_rig_try_open(rig, &err);
        ck_assert_int_lt(ret, 0);
        ck_assert_msg(strstr(err.text, cases[i].says), "%s", err.text);
        test_image_free(&image);
    }
}

/* What cannot be opened is told beside what was asked for. */
static void co_absent(struct rig *rig)
{
    struct errtext err = {""};
    co_make(rig, "middle", CLUSTER, "absent", "raw");
    co_make(rig, RIG_IMAGE, CLUSTER, "middle", "qcow2");
    int ret = co_rig_try_open(rig, &err);
    ck_assert_int_eq(ret, -ENOENT);
    ck_assert_str_eq(err.text, "the backing file of middle: absent: no such file");
}

START_TEST(backing_format_is_not_guessed)
{
    run(co_absent);
    run(co_refusals);
}
END_TEST

/* --- compressed clusters --- */

#define SMALL 4096U

/*
 * Packs `count` compressed clusters behind each other, from `skip` bytes into a host cluster on;
 * guest cluster i has bytes 0x30 + i.
 */
static void compress_into(struct test_image *image, unsigned count, uint64_t skip)
{
    uint64_t at = test_image_append_cluster(image) * SMALL + skip;
    test_image_append_cluster(image);
    for (unsigned i = 0; i < count; i++) {
        uint8_t raw[SMALL], packed[SMALL];
        memset(raw, (int)(0x30 + i), SMALL);
        raw[SMALL - 1] = 0xfe;
        z_stream stream = {0};
        ck_assert_int_eq(deflateInit2(&stream, 9, Z_DEFLATED, -12, 9, Z_DEFAULT_STRATEGY), Z_OK);
        stream.next_in = raw;
        stream.avail_in = SMALL;
        stream.next_out = packed;
        stream.avail_out = SMALL;
        ck_assert_int_eq(deflate(&stream, Z_FINISH), Z_STREAM_END);
        size_t len = SMALL - stream.avail_out;
        deflateEnd(&stream);
        memcpy(image->bytes + at, packed, len);

        uint64_t entry_at = test_image_l2_at(image, i);
        uint64_t freed = (test_image_get(image, entry_at) & QCOW2_L2_OFFSET) / SMALL;
        test_image_set_refcount(image, freed, 0);
        uint64_t sectors = (at + len - 1) / 512 - at / 512;
        test_image_put(image, entry_at, QCOW2_COMPRESSED | sectors << (62 - (12 - 8)) | at);
        for (uint64_t c = at / SMALL; c <= ((at & ~511ULL) + sectors * 512) / SMALL; c++) {
            test_image_set_refcount(image, c, test_image_refcount(image, c) + 1);
        }
        at += len;
    }
}

static void co_compressed(struct rig *rig)
{
    struct test_image image;
    static const struct test_image_options options = {3, 12, 4, false, 12};
    test_image_build(&image, &options);
    compress_into(&image, 10, SMALL - 70); /* one lies over the border */
    rig_put(rig, RIG_IMAGE, &image);
    co_rig_open(rig);
    for (unsigned i = 0; i < 10; i++) {
        co_rig_expect(rig, i * SMALL, SMALL - 1, (int)(0x30 + i)); /* in part: inflated and kept */
        co_rig_expect(rig, i * SMALL + SMALL - 1, 1, 0xfe);
    }
    unsigned reads = rig_count(rig, RIG_READ);
    co_rig_expect(rig, 9 * SMALL + 5, 100, 0x39);
    ck_assert_uint_eq(rig_count(rig, RIG_READ), reads);
    co_rig_expect(rig, 0, 100, 0x30); /* pushed out meanwhile */
    ck_assert_uint_eq(rig_count(rig, RIG_READ), reads + 1);
    /* Whole clusters do not go through the cache. */
    uint8_t *all = malloc(3 * SMALL);
    int ret = rig->image->ops->co_read(rig->image, 4 * SMALL, all, 3 * SMALL, NULL);
    ck_assert_int_eq(ret, 0);
    ck_assert_uint_eq(all[0], 0x34);
    ck_assert_uint_eq(all[2 * SMALL], 0x36);
    ck_assert_uint_eq(all[3 * SMALL - 1], 0xfe);
    free(all);

    /* Overwritten by a normal cluster, and trimmed: the shared host clusters go with the last. */
    co_rig_write(rig, 2 * SMALL + 100, 50, 9);
    co_rig_expect(rig, 2 * SMALL, 100, 0x32);
    co_rig_expect(rig, 2 * SMALL + 100, 50, 9);
    co_rig_expect(rig, 2 * SMALL + 150, SMALL - 151, 0x32);
    co_rig_trim(rig, 0, SMALL);
    co_rig_zero(rig, 3 * SMALL + 7, 9, 0);
    co_rig_expect(rig, 3 * SMALL + 16, 100, 0x33);
    co_rig_flush(rig);
    co_sleep_ns(rig->world, 100000000);
    ck_assert_uint_eq(rig_count(rig, RIG_PUNCH), 0);
    co_rig_expect(rig, SMALL, SMALL - 1, 0x31);
    co_rig_trim(rig, 0, 12 * SMALL);
    co_rig_flush(rig);
    co_sleep_ns(rig->world, 100000000);
    ck_assert_uint_gt(rig_count(rig, RIG_PUNCH), 0);
    co_rig_expect(rig, 0, 12 * SMALL, 0);
    test_image_free(&image);
}

START_TEST(compressed_clusters)
{
    run(co_compressed);
}
END_TEST

static void co_bad_compressed(struct rig *rig)
{
    struct test_image image;
    static const struct test_image_options options = {3, 12, 4, false, 12};
    uint8_t byte;
    test_image_build(&image, &options);
    compress_into(&image, 2, 0);
    memset(image.bytes + 17 * SMALL, 0xff, 16);
    rig_put(rig, RIG_IMAGE, &image);
    co_rig_open(rig);
    int ret = rig->image->ops->co_read(rig->image, 5, &byte, 1, NULL);
    ck_assert_int_eq(ret, -EIO);
    ck_assert(rig_logged(rig, "compressed cluster at 0x11000 does not inflate"));
    /* Copying it on write would make rubbish of it: the write fails, and nothing changed. */
    ret = rig->image->ops->co_write(rig->image, 5, &byte, 1, 0);
    ck_assert_int_eq(ret, -EIO);
    co_rig_write(rig, 0, SMALL, 7); /* whole: nothing to copy */
    co_rig_expect(rig, 0, SMALL, 7);
    for (int i = 0; i < 100; i++) {
        engine_log_damage(rig->q, "more of it");
    }
    ck_assert(rig_logged(rig, "further damage is not logged"));
    rig_fail(rig, RIG_READ, 0, 0, -EIO);
    ret = rig->image->ops->co_read(rig->image, SMALL, &byte, 1, NULL);
    ck_assert_int_eq(ret, -EIO);
    test_image_free(&image);
    rig->fail_with = 0;
    rig->skip_check = true;
}

START_TEST(compressed_rubbish)
{
    run(co_bad_compressed);
}
END_TEST

/* --- holes --- */

static void co_holes(struct rig *rig)
{
    struct read_holes holes;
    co_make(rig, RIG_IMAGE, 200 * CLUSTER, NULL, NULL);
    co_rig_open(rig);
    for (uint64_t i = 0; i < 100; i += 2) {
        co_rig_write(rig, i * CLUSTER, CLUSTER, 5);
    }
    uint8_t *bytes = malloc(100 * CLUSTER);
    memset(bytes, 0xdd, 100 * CLUSTER);
    int ret = rig->image->ops->co_read(rig->image, 0, bytes, 100 * CLUSTER, &holes);
    ck_assert_int_eq(ret, 0);
    ck_assert_uint_eq(holes.count, READ_HOLES_MAX);
    for (unsigned i = 0; i < 50; i++) {
        const uint8_t *at = bytes + (2 * i + 1) * CLUSTER;
        if (i < READ_HOLES_MAX) {
            ck_assert_uint_eq(holes.run[i].offset, (2 * i + 1) * CLUSTER);
            ck_assert_uint_eq(holes.run[i].len, CLUSTER);
            ck_assert_uint_eq(at[0], 0xdd); /* not touched */
        } else {
            ck_assert_uint_eq(at[0] + at[CLUSTER - 1], 0);
        }
    }
    /* Neighbours of different kinds are one hole. */
    co_rig_zero(rig, 150 * CLUSTER, CLUSTER, IMAGE_NO_HOLE);
    ret = rig->image->ops->co_read(rig->image, 140 * CLUSTER, bytes, 20 * CLUSTER, &holes);
    ck_assert_int_eq(ret, 0);
    ck_assert_uint_eq(holes.count, 1);
    ck_assert_uint_eq(holes.run[0].len, 20 * CLUSTER);
    free(bytes);

    struct extent extents[3];
    struct extent_list list = {extents, 3, 0};
    ret = rig->image->ops->co_extents(rig->image, 0, 100 * CLUSTER, &list);
    ck_assert_int_eq(ret, 0);
    ck_assert_uint_eq(list.count, 3);
    ck_assert_uint_eq(extents[0].len + extents[1].len + extents[2].len, 3 * CLUSTER);
}

START_TEST(holes_overflow_into_zeroes)
{
    run(co_holes);
}
END_TEST

int main(void)
{
    Suite *suite = suite_create("read");
    TCase *tcase = tcase_create("read");
    tcase_set_timeout(tcase, 60);
    tcase_add_test(tcase, chain_of_a_hundred);
    tcase_add_test(tcase, chain_too_deep_or_looping);
    tcase_add_test(tcase, backing_files_shorter_and_longer);
    tcase_add_test(tcase, backing_format_is_not_guessed);
    tcase_add_test(tcase, compressed_clusters);
    tcase_add_test(tcase, compressed_rubbish);
    tcase_add_test(tcase, holes_overflow_into_zeroes);
    suite_add_tcase(suite, tcase);
    return rig_main(suite);
}
