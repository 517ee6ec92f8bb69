/* SPDX-License-Identifier: BSD-2-Clause */
/*
 * Another size: what is read then, in which order it is made durable, what is given back, and what
 * is refused. Letters of the scripts as in test_commit.c.
 */
#include "qcow2/resize.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "base/bytes.h"
#include "base/limits.h"
#include "qcow2/commit.h"
#include "qcow2/map.h"
#include "qcow2/test_rig.h"

/* An L2 table describes 512 clusters of 4 KiB, 256 with extended L2. */
#define CLUSTER 4096U
#define TABLE   (512ULL * CLUSTER)
#define SIZE    (20ULL * CLUSTER + 512)

struct format {
    uint32_t version;
    uint64_t cluster_bytes;
    bool extended;
};

static const struct format formats[] = {
    {3, CLUSTER, false}, {2, CLUSTER, false}, {3, 16384, true}, {3, 512, false}, {3, 65536, false},
};

static void run(const struct format *format, uint64_t size_bytes, uint64_t backing_bytes,
                rig_body *body)
{
    struct rig rig;
    rig_init(&rig, 5);
    rig.create.version = format->version;
    rig.create.cluster_bytes = format->cluster_bytes;
    rig.create.extended_l2 = format->extended;
    rig.create.size_bytes = size_bytes;
    if (backing_bytes > 0) {
        uint8_t *bytes = malloc((size_t)backing_bytes);
        ck_assert_ptr_nonnull(bytes);
        memset(bytes, 0x99, (size_t)backing_bytes);
        ck_assert_int_eq(sim_file_put(rig.world, "base", bytes, backing_bytes), 0);
        free(bytes);
        rig.create.backing_name = "base";
        rig.create.backing_format = "raw";
    }
    rig_run(&rig, body);
    rig_free(&rig);
}

static void co_resize(struct rig *rig, uint64_t size_bytes)
{
    struct errtext err = {""};
    int ret = co_qcow2_resize(rig->image, size_bytes, &err);
    ck_assert_msg(ret == 0, "%s", err.text);
    ck_assert_uint_eq(rig->image->size_bytes, size_bytes);
}

static void co_reopen(struct rig *rig)
{
    uint64_t size_bytes = rig->image->size_bytes;
    co_rig_close(rig);
    co_rig_open(rig);
    ck_assert_uint_eq(rig->image->size_bytes, size_bytes);
}

/* What was there stays, what is new is zero and can be written, also after opening again. */
static void co_grows(struct rig *rig)
{
    uint64_t larger = 3 * TABLE + 512;
    co_rig_write(rig, 0, SIZE, 1);
    co_resize(rig, larger);
    co_rig_expect(rig, 0, SIZE, 1);
    co_rig_expect(rig, SIZE, larger - SIZE, 0);
    co_rig_write(rig, larger - 700, 700, 2);
    co_reopen(rig);
    co_rig_expect(rig, 0, SIZE, 1);
    co_rig_expect(rig, SIZE, larger - 700 - SIZE, 0);
    co_rig_expect(rig, larger - 700, 700, 2);
    co_resize(rig, larger); /* nothing to do */
    co_resize(rig, larger + 512);
    co_resize(rig, 40 * TABLE);
    co_rig_expect(rig, larger, 5 * CLUSTER, 0);
    co_rig_write(rig, 39 * TABLE, CLUSTER, 3);
}

START_TEST(grows)
{
    run(&formats[_i], SIZE, 0, co_grows);
    run(&formats[_i], SIZE, 10ULL * CLUSTER, co_grows);
}
END_TEST

/* A backing file that is longer than the disk was does not show through. */
static void co_grows_over_backing(struct rig *rig)
{
    uint64_t larger = 30ULL * CLUSTER + 512;
    co_rig_write(rig, SIZE - 100, 100, 1); /* copies a part of the backing file */
    co_resize(rig, larger);
    co_rig_expect(rig, 0, SIZE - 100, 0x99);
    co_rig_expect(rig, SIZE, larger - SIZE, 0);
    co_resize(rig, TABLE);
    co_rig_expect(rig, SIZE, TABLE - SIZE, 0);
    co_reopen(rig);
    co_rig_expect(rig, 0, SIZE - 100, 0x99);
    co_rig_expect(rig, SIZE, TABLE - SIZE, 0);
}

START_TEST(grows_over_a_longer_backing_file)
{
    run(&formats[_i], SIZE, 50ULL * CLUSTER + 1000, co_grows_over_backing);
}
END_TEST

/* What is beyond goes, and does not come back. */
static void co_shrinks(struct rig *rig)
{
    uint64_t size = 3 * TABLE;
    uint64_t smaller = 5ULL * CLUSTER + 1024;
    uint8_t expected = rig->create.backing_name ? 0x99 : 0;
    co_rig_write(rig, 2ULL * CLUSTER, TABLE, 1);
    co_rig_write(rig, size - CLUSTER, CLUSTER, 2);
    co_rig_flush(rig);
    co_resize(rig, smaller);
    co_rig_expect(rig, 0, 2ULL * CLUSTER, expected);
    co_rig_expect(rig, 2ULL * CLUSTER, smaller - 2ULL * CLUSTER, 1);
    co_reopen(rig);
    uint64_t last_table = l1_index(&rig->q->geo, (guest_off){size - 1});
    ck_assert(last_table == 0 || rig->q->l1.entries[last_table] == 0);
    co_resize(rig, size);
    co_rig_expect(rig, 2ULL * CLUSTER, smaller - 2ULL * CLUSTER, 1);
    co_rig_expect(rig, smaller, size - smaller, 0);
}

START_TEST(shrinks)
{
    run(&formats[_i], 3 * TABLE, 0, co_shrinks);
    run(&formats[_i], 3 * TABLE, TABLE, co_shrinks);
}
END_TEST

static uint64_t space_used(struct rig *rig)
{
    return sim_space_used(rig->world);
}

static void co_gives_space_back(struct rig *rig)
{
    co_rig_write(rig, 0, 100ULL * CLUSTER, 1);
    co_rig_flush(rig);
    uint64_t used = space_used(rig);
    co_resize(rig, 10ULL * CLUSTER);
    co_commit_all(rig->q);
    ck_assert_uint_le(space_used(rig) + 90ULL * CLUSTER, used);
}

START_TEST(shrinking_gives_space_back)
{
    run(&formats[0], TABLE, 0, co_gives_space_back);
}
END_TEST

/* The size is durable after what it shows, and before what it hides is given back. */
static void co_order(struct rig *rig)
{
    co_rig_write(rig, 0, SIZE - 512, 1);
    co_rig_flush(rig);
    rig_forget(rig);
    co_resize(rig, SIZE + 512); /* in the same table: nothing but the size */
    ck_assert_str_eq(rig_script(rig), "FHF");
    rig_forget(rig);
    co_resize(rig, 3 * TABLE); /* a longer L1: its counts, itself, its name; then the size */
    ck_assert_str_eq(rig_script(rig), "zRF1FHFHF");
    co_rig_write(rig, 2 * TABLE, CLUSTER, 1);
    co_sleep_ns(rig->world, 20000000000); /* what the larger table left comes to rest */
    rig_forget(rig);
    co_resize(rig, 10ULL * CLUSTER);
    ck_assert_str_eq(rig_script(rig), "HFF21F");
}

START_TEST(keeps_the_order)
{
    run(&formats[0], SIZE, 0, co_order);
}
END_TEST

/* Beyond the end: a virtual machine's state, which begins with an L2 table of its own. */
static void co_state_survives(struct rig *rig)
{
    struct mapping mapping;
    co_rig_write(rig, 0, CLUSTER, 1);
    co_rig_write(rig, 2 * TABLE, 3ULL * CLUSTER, 7);
    co_rig_close(rig);
    struct test_image image = rig_get(rig, RIG_IMAGE);
    put_be64(image.bytes + 24, TABLE + 512);
    rig_put(rig, RIG_IMAGE, &image);
    test_image_free(&image);
    co_rig_open(rig);
    ck_assert_uint_eq(rig->image->size_bytes, TABLE + 512);

    co_resize(rig, 512);
    co_resize(rig, 2 * TABLE);
    int ret = co_map(rig->q, (guest_off){2 * TABLE}, CLUSTER, &mapping);
    ck_assert_int_eq(ret, 0);
    ck_assert_int_eq(mapping.kind, MAPPING_DATA);
    co_resize(rig, 2 * TABLE + 512);
    co_rig_expect(rig, 2 * TABLE, 512, 0);
    co_resize(rig, 3 * TABLE);
    co_rig_expect(rig, 512, 3 * TABLE - 512, 0);
}

START_TEST(what_is_beyond_stays_until_the_disk_grows_over_it)
{
    run(&formats[0], 3 * TABLE, 0, co_state_survives);
}
END_TEST

/* A snapshot shares all that is dropped. */
static void co_snapshot_keeps(struct rig *rig)
{
    struct errtext err = {""};
    struct test_image image;
    struct test_image_options options = {
        .version = 3, .cluster_bits = 12, .refcount_order = 4, .data_clusters = 8};
    test_image_build(&image, &options);
    test_image_add_snapshot(&image);
    rig_put(rig, RIG_IMAGE, &image);
    co_rig_open(rig);
    uint64_t size = rig->image->size_bytes;
    uint64_t smaller = 3ULL * CLUSTER;
    uint64_t shared_table = test_image_get(&image, test_image_l1_at(&image, 0)) & QCOW2_L1_OFFSET;
    test_image_free(&image);
    co_resize(rig, smaller);
    co_resize(rig, size + TABLE);
    co_rig_expect(rig, 2ULL * CLUSTER, CLUSTER, 3);
    co_rig_expect(rig, smaller, size + TABLE - smaller, 0);
    co_rig_close(rig);
    image = rig_get(rig, RIG_IMAGE);
    ck_assert_uint_ne(test_image_get(&image, test_image_l1_at(&image, 0)) & QCOW2_L1_OFFSET,
                      shared_table);
    for (unsigned i = 0; i < 8; i++) { /* as it was taken */
        uint64_t host = test_image_get(&image, shared_table + i * 8ULL) & QCOW2_L2_OFFSET;
        ck_assert_uint_eq(image.bytes[host], i + 1);
    }
    put_be32(image.bytes + 4, 2); /* a version that does not promise the snapshot's own size */
    rig_put(rig, RIG_IMAGE, &image);
    test_image_free(&image);
    co_rig_open(rig);
    ck_assert_int_eq(co_qcow2_resize(rig->image, 2 * TABLE, &err), -ENOTSUP);
    ck_assert_ptr_nonnull(strstr(err.text, "version 2 and 1 internal snapshots"));
    co_rig_close(rig);
}

START_TEST(snapshots_keep_what_they_share)
{
    struct rig rig;
    rig_init(&rig, 6);
    rig_run_bare(&rig, co_snapshot_keeps);
    rig_free(&rig);
}
END_TEST

static void co_refuses(struct rig *rig)
{
    static const struct {
        uint64_t size_bytes;
        int ret;
        const char *mentions;
    } refused[] = {
        {0, -EINVAL, "multiple of 512, and not 0"},
        {1000, -EINVAL, "a size of 1000 bytes"},
        {UINT64_MAX - 511, -EFBIG, "at most 8796093022208"},
        {8796093022208 + 512, -EFBIG, "with clusters of 4096"},
    };
    unsigned events = rig->event_count;
    for (size_t i = 0; i < ARRAY_LEN(refused); i++) {
        struct errtext err = {""};
        ck_assert_int_eq(co_qcow2_resize(rig->image, refused[i].size_bytes, &err), refused[i].ret);
        ck_assert_msg(strstr(err.text, refused[i].mentions) != NULL, "%s", err.text);
    }
    ck_assert_uint_eq(rig->event_count, events);
    ck_assert_uint_eq(rig->image->size_bytes, SIZE);
    co_rig_close(rig);
    rig->options.read_only = true;
    co_rig_open(rig);
    struct errtext err = {""};
    ck_assert_int_eq(co_qcow2_resize(rig->image, 2 * SIZE, &err), -EROFS);
}

START_TEST(refuses)
{
    run(&formats[0], SIZE, 0, co_refuses);
}
END_TEST

/* Without room the disk keeps its size, and nothing is lost or leaked. */
static void co_no_room(struct rig *rig)
{
    struct errtext err = {""};
    co_rig_write(rig, 0, SIZE, 1);
    co_rig_flush(rig);
    sim_set_space(rig->world, sim_space_used(rig->world) + 8 * CLUSTER);
    ck_assert_int_eq(co_qcow2_resize(rig->image, 200 * TABLE, &err), -ENOSPC);
    ck_assert_uint_eq(rig->image->size_bytes, SIZE);
    co_rig_expect(rig, 0, SIZE, 1);
    sim_set_space(rig->world, 0);
    co_resize(rig, 200 * TABLE);
    co_rig_expect(rig, 0, SIZE, 1);
    co_rig_expect(rig, SIZE, 3 * TABLE, 0);
}

START_TEST(without_room_nothing_changes)
{
    /* Version 2 writes zeroes over a backing file, on 3 the L2 tables take the room. */
    run(&formats[1], SIZE, 60ULL * CLUSTER, co_no_room);
    run(&formats[0], SIZE, 40 * TABLE, co_no_room);
}
END_TEST

/* O8: whether the size was written is not known. */
static void co_header_fails(struct rig *rig)
{
    struct errtext err = {""};
    rig_fail(rig, RIG_WRITE, RIG_HEADER, 0, -EIO);
    ck_assert_int_eq(co_qcow2_resize(rig->image, SIZE + 512, &err), -EIO);
    ck_assert_uint_eq(rig->image->size_bytes, SIZE);
    ck_assert_int_eq(co_qcow2_resize(rig->image, SIZE + 512, &err), -EIO);
    ck_assert_ptr_nonnull(strstr(err.text, "has failed"));
    rig_fail(rig, RIG_WRITE, 0, 0, 0);
    ck_assert_int_lt(co_rig_end(rig), 0);
    co_rig_open(rig);
}

START_TEST(a_failed_header_ends_all_changes)
{
    run(&formats[0], SIZE, 0, co_header_fails);
}
END_TEST

static void co_grow_beside(struct rig *rig)
{
    co_resize(rig, 5 * TABLE);
}

static void co_grow_more_beside(struct rig *rig)
{
    co_resize(rig, 9 * TABLE);
}

/* Requests go on, and a second resize waits for the first. */
static void co_under_load(struct rig *rig)
{
    rig_spawn(rig, co_grow_beside);
    rig_spawn(rig, co_grow_more_beside);
    for (unsigned i = 0; i < 20; i++) {
        co_rig_write(rig, i * 1000ULL, 1000, (int)i + 1);
        co_rig_trim(rig, SIZE - CLUSTER, CLUSTER);
        co_rig_flush(rig);
    }
    co_rig_join(rig);
    ck_assert_uint_eq(rig->image->size_bytes, 9 * TABLE);
    for (unsigned i = 0; i < 20; i++) {
        co_rig_expect(rig, i * 1000ULL, 1000, (int)i + 1);
    }
    co_rig_expect(rig, 20000, SIZE - CLUSTER - 20000, 0x99);
    co_rig_expect(rig, SIZE - CLUSTER, 9 * TABLE - SIZE + CLUSTER, 0);
}

START_TEST(requests_go_on_meanwhile)
{
    run(&formats[_i], SIZE, 40ULL * CLUSTER, co_under_load);
}
END_TEST

int main(void)
{
    Suite *suite = suite_create("resize");
    TCase *tcase = tcase_create("resize");
    int count = (int)ARRAY_LEN(formats);
    tcase_add_loop_test(tcase, grows, 0, count);
    tcase_add_loop_test(tcase, grows_over_a_longer_backing_file, 0, count);
    tcase_add_loop_test(tcase, shrinks, 0, count);
    tcase_add_test(tcase, shrinking_gives_space_back);
    tcase_add_test(tcase, keeps_the_order);
    tcase_add_test(tcase, what_is_beyond_stays_until_the_disk_grows_over_it);
    tcase_add_test(tcase, snapshots_keep_what_they_share);
    tcase_add_test(tcase, refuses);
    tcase_add_test(tcase, without_room_nothing_changes);
    tcase_add_test(tcase, a_failed_header_ends_all_changes);
    tcase_add_loop_test(tcase, requests_go_on_meanwhile, 0, count);
    suite_add_tcase(suite, tcase);
    return rig_main(suite);
}
