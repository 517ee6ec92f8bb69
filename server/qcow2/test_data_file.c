/* SPDX-License-Identifier: BSD-2-Clause */
/*
 * Images whose guest clusters lie in a file of their own: what each of the two files holds, in
 * which order they become durable, and which files are refused. Where the data file existed before,
 * its old bytes must not show.
 */
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "base/bytes.h"
#include "base/limits.h"
#include "qcow2/check.h"
#include "qcow2/map.h"
#include "qcow2/resize.h"
#include "qcow2/test_rig.h"
#include "sched/break_point.h"
#include "sched/co.h"

#define DATA    "disk.data"
#define CLUSTER 65536U
#define DISK    (24 * CLUSTER + 4608) /* the last cluster is a part of one */
#define STALE   0xaa
#define BASE    0x99

struct shape {
    uint64_t cluster_bytes;
    bool extended;
    bool raw;
    bool backing; /* 6 clusters of BASE */
};

static const struct shape shapes[] = {
    {CLUSTER, false, false, false}, {CLUSTER, true, false, false}, {CLUSTER, false, false, true},
    {CLUSTER, true, false, true},   {CLUSTER, false, true, false}, {CLUSTER, true, true, false},
    {512, false, false, false},     {512, false, true, false},     {2 * MIB, true, false, true},
};
static const struct shape *shape;

/* Bytes of the file, all alike. */
static void put_file(struct rig *rig, const char *path, uint64_t len, int byte)
{
    uint8_t *bytes = malloc(len);
    ck_assert_ptr_nonnull(bytes);
    memset(bytes, byte, len);
    ck_assert_int_eq(sim_file_put(rig->world, path, bytes, len), 0);
    free(bytes);
}

static void begin(struct rig *rig, const struct shape *wanted)
{
    shape = wanted;
    rig_init(rig, 41);
    rig->create.size_bytes = DISK;
    rig->create.cluster_bytes = shape->cluster_bytes;
    rig->create.extended_l2 = shape->extended;
    rig->create.data_file_name = DATA;
    rig->create.data_file_raw = shape->raw;
    if (shape->backing) {
        put_file(rig, "base.raw", 6 * (size_t)CLUSTER, BASE);
        rig->create.backing_name = "base.raw";
        rig->create.backing_format = "raw";
    }
}

/* The guest's disk as it should be. */
static uint8_t model[DISK];

static void model_init(void)
{
    memset(model, 0, sizeof(model));
    if (shape->backing) {
        memset(model, BASE, 6 * (size_t)CLUSTER);
    }
}

static void co_model_check(struct rig *rig)
{
    uint8_t *bytes = malloc(DISK);
    int ret = rig->image->ops->co_read(rig->image, 0, bytes, DISK, NULL);
    ck_assert_int_eq(ret, 0);
    for (size_t i = 0; i < DISK; i++) {
        if (bytes[i] != model[i]) {
            ck_abort_msg("byte %#zx is %#x, should be %#x", i, bytes[i], model[i]);
        }
    }
    free(bytes);
}

static void co_put(struct rig *rig, uint64_t offset, uint64_t len, int byte)
{
    co_rig_write(rig, offset, len, byte);
    memset(model + offset, byte, len);
}

static void co_take(struct rig *rig, uint64_t offset, uint64_t len, bool trim, unsigned flags)
{
    if (trim) {
        co_rig_trim(rig, offset, len);
        if (rig->options.trim == TRIM_IGNORE) {
            return;
        }
    } else {
        co_rig_zero(rig, offset, len, flags);
    }
    memset(model + offset, 0, len);
}

/* With a raw data file: it is the disk, byte for byte. */
static void check_data_file(struct rig *rig)
{
    struct test_image data = rig_get(rig, DATA);
    ck_assert_uint_eq(data.len_bytes, DISK); /* and has not grown past it */
    ck_assert(!shape->raw || memcmp(data.bytes, model, DISK) == 0);
    free(data.bytes);
}

static void co_changes(struct rig *rig)
{
    const bool trim = true, zero = false;

    co_put(rig, 1000, 3000, 1);
    co_put(rig, 3 * CLUSTER - 700, 1400, 2); /* over the end of a cluster */
    co_put(rig, 8 * CLUSTER, 4 * CLUSTER, 3);
    co_put(rig, DISK - 600, 600, 4);
    co_model_check(rig);
    co_take(rig, 9 * CLUSTER, CLUSTER, trim, 0);
    co_take(rig, 10 * CLUSTER + 100, 5000, trim, 0);
    co_take(rig, 11 * CLUSTER, CLUSTER, zero, IMAGE_NO_HOLE);
    co_take(rig, 14 * CLUSTER, CLUSTER, zero, IMAGE_NO_HOLE);
    co_take(rig, 4 * CLUSTER + 1, 3 * CLUSTER, zero, 0);
    co_take(rig, DISK - 100, 100, zero, 0);
    co_model_check(rig);
    co_rig_flush(rig);
    check_data_file(rig);
    co_put(rig, 9 * CLUSTER + 512, 512, 5);
    co_put(rig, 11 * CLUSTER + 4096, 512, 6);
    co_put(rig, 14 * CLUSTER - 1, 2, 7);
    co_put(rig, 5 * CLUSTER + 10, 10, 8);
    co_take(rig, 0, CLUSTER, trim, 0);
    co_put(rig, 100, 100, 9);
    co_model_check(rig);
    co_rig_flush(rig);
    check_data_file(rig);
}

/* After the first life: the same bytes again, read from the files. */
static void co_whole_life(struct rig *rig)
{
    if (!shape->raw) {
        /* As a data file may be that was there before. */
        co_rig_close(rig);
        put_file(rig, DATA, DISK, STALE);
        co_rig_open(rig);
    }
    model_init();
    co_model_check(rig);
    co_changes(rig);
    co_rig_close(rig);
    check_data_file(rig);
    co_rig_open(rig);
    co_model_check(rig);
}

START_TEST(two_files_are_one_disk)
{
    struct rig rig;
    begin(&rig, &shapes[_i]);
    rig_run(&rig, co_whole_life);
    rig_free(&rig);
}
END_TEST

START_TEST(without_giving_back)
{
    struct rig rig;
    begin(&rig, &shapes[_i]);
    rig.options.trim = TRIM_IGNORE;
    shape = &shapes[_i];
    rig_run(&rig, co_whole_life);
    rig_free(&rig);
}
END_TEST

static struct l2_entry co_entry(struct rig *rig, uint64_t guest_cluster)
{
    struct slice *slice;
    uint32_t index;
    guest_off guest = {guest_cluster * rig->q->geo.cluster_bytes};
    int ret = co_map_slice(rig->q, guest, &slice, &index);
    ck_assert_int_eq(ret, 0);
    return l2_entry_get(&rig->q->geo, slice->bytes, index);
}

/* A cluster lies at its guest offset, the first one, too, and nothing is allocated for it. */
static void co_places(struct rig *rig)
{
    co_rig_write(rig, 0, 512, 1);
    co_rig_flush(rig);
    uint64_t end = rig->q->disk->size_bytes;
    co_rig_write(rig, 7 * CLUSTER, 512, 1);
    co_rig_flush(rig);
    ck_assert_uint_eq(rig->q->disk->size_bytes, end);
    ck_assert_uint_eq(co_entry(rig, 0).descriptor, QCOW2_COPIED);
    ck_assert_uint_eq(co_entry(rig, 7).descriptor, 7 * CLUSTER | QCOW2_COPIED);
    co_rig_zero(rig, 0, CLUSTER, IMAGE_NO_HOLE);
    ck_assert_uint_eq(co_entry(rig, 0).descriptor, QCOW2_COPIED | QCOW2_ZERO);
    co_rig_trim(rig, 0, 8 * CLUSTER);
    ck_assert_uint_eq(co_entry(rig, 0).descriptor, 0);
    ck_assert_uint_eq(co_entry(rig, 7).descriptor, 0);
    bool is_hole;
    uint64_t hole_end;
    int ret = rig->q->data->ops->co_next_extent(rig->q->data, 0, &is_hole, &hole_end);
    ck_assert_int_eq(ret, 0);
    ck_assert(is_hole && hole_end == DISK); /* given back */
    struct extent extents[4];
    struct extent_list list = {extents, ARRAY_LEN(extents), 0};
    co_rig_zero(rig, CLUSTER, CLUSTER, IMAGE_NO_HOLE);
    ret = rig->image->ops->co_extents(rig->image, 0, 3 * CLUSTER, &list);
    ck_assert_int_eq(ret, 0);
    ck_assert_uint_eq(list.count, 3);
    ck_assert_uint_eq(extents[0].flags, EXTENT_ZERO | EXTENT_HOLE);
    ck_assert_uint_eq(extents[1].flags, EXTENT_ZERO); /* has its space */
}

START_TEST(places)
{
    struct rig rig;
    begin(&rig, &shapes[0]);
    rig_run(&rig, co_places);
    rig_free(&rig);
}
END_TEST

static int punch_result, write_result;

static void co_trim_beside(struct rig *rig)
{
    punch_result = rig->image->ops->co_trim(rig->image, CLUSTER, CLUSTER, 0);
}

static void co_write_beside(struct rig *rig)
{
    static uint8_t bytes[CLUSTER];
    memset(bytes, 2, sizeof(bytes));
    write_result = rig->image->ops->co_write(rig->image, CLUSTER, bytes, sizeof(bytes), 0);
}

/* O3: the place is the same one again, so the write waits for the punch, and is not hit by it. */
static void co_punch_meets_write(struct rig *rig)
{
    co_rig_write(rig, CLUSTER, CLUSTER, 1);
    co_rig_flush(rig);
    break_point_arm(BREAK_BEFORE_DATA_PUNCH, 1);
    punch_result = write_result = 1;
    rig_spawn(rig, co_trim_beside);
    co_break_point_await(BREAK_BEFORE_DATA_PUNCH, 1);
    co_rig_expect(rig, CLUSTER, CLUSTER, 0);
    rig_spawn(rig, co_write_beside);
    co_sleep_ns(rig->world, 100ULL * 1000 * 1000);
    ck_assert_int_eq(write_result, 1);
    break_point_release(BREAK_BEFORE_DATA_PUNCH);
    co_rig_join(rig);
    ck_assert_int_eq(punch_result, 0);
    ck_assert_int_eq(write_result, 0);
    co_rig_flush(rig);
    co_rig_expect(rig, CLUSTER, CLUSTER, 2);
}

START_TEST(punch_never_hits_a_new_write)
{
    struct rig rig;
    begin(&rig, &shapes[0]);
    rig_run(&rig, co_punch_meets_write);
    rig_free(&rig);
}
END_TEST

/* O8: an error of either file ends all changes. */
static void co_failed_flush(struct rig *rig)
{
    struct sim_faults faults = {.flush_eio_ppm = 1000000};
    uint8_t byte = 1;

    co_rig_write(rig, 0, 512, 1);
    co_rig_flush(rig);
    co_rig_write(rig, 0, 512, 2); /* in place: the data file alone is to be flushed */
    sim_set_faults(rig->world, &faults);
    int ret = rig->image->ops->co_flush(rig->image);
    ck_assert_int_eq(ret, -EIO);
    sim_set_faults(rig->world, &(struct sim_faults){0});
    ck_assert(rig_logged(rig, "fsync of the data file"));
    ret = rig->image->ops->co_write(rig->image, 0, &byte, 1, 0);
    ck_assert_int_eq(ret, -EIO);
    co_rig_expect(rig, 0, 512, 2);
    ret = co_rig_end(rig);
    ck_assert_int_eq(ret, -EIO);
}

START_TEST(failed_flush_sticks)
{
    struct rig rig;
    begin(&rig, &shapes[0]);
    rig_run(&rig, co_failed_flush);
    rig_free(&rig);
}
END_TEST

/* A full disk fails the request, and nothing else. */
static void co_no_space(struct rig *rig)
{
    uint8_t bytes[512] = {1};

    co_rig_write(rig, 0, 512, 1);
    co_rig_flush(rig);
    sim_set_space(rig->world, 512);
    int ret = rig->image->ops->co_write(rig->image, 9 * CLUSTER, bytes, sizeof(bytes), 0);
    ck_assert_int_eq(ret, -ENOSPC);
    co_rig_expect(rig, 9 * CLUSTER, CLUSTER, 0);
    co_rig_write(rig, 0, 512, 2);
    co_rig_flush(rig);
    sim_set_space(rig->world, 0);
    co_rig_write(rig, 9 * CLUSTER, 512, 3);
    co_rig_expect(rig, 9 * CLUSTER, 512, 3);
    co_rig_expect(rig, 9 * CLUSTER + 512, CLUSTER - 512, 0);
}

START_TEST(no_space)
{
    struct rig rig;
    begin(&rig, &shapes[_i]);
    rig_run(&rig, co_no_space);
    rig_free(&rig);
}
END_TEST

static void co_refused(struct rig *rig, int errno_value, const char *text)
{
    struct errtext err = {""};
    int ret = co_rig_try_open(rig, &err);
    ck_assert_int_eq(ret, -errno_value);
    ck_assert_msg(strstr(err.text, text) != NULL, "%s", err.text);
    ck_assert_msg(strstr(err.text, "the data file of disk.qcow2: ") != NULL, "%s", err.text);
}

/* Puts another name of the same length into the header. */
static void rename_data(struct rig *rig, const char *name)
{
    struct test_image image = rig_get(rig, RIG_IMAGE);
    uint8_t *at = memmem(image.bytes, 1024, "DATA", 4);
    ck_assert_ptr_nonnull(at);
    put_be32(at + 4, (uint32_t)strlen(name));
    memcpy(at + 8, name, strlen(name));
    rig_put(rig, RIG_IMAGE, &image);
    free(image.bytes);
}

static void co_bad_files(struct rig *rig)
{
    co_rig_close(rig);
    put_file(rig, DATA, DISK - 1, 0);
    co_refused(rig, EINVAL, "disk.data: its size is 1577471 bytes: allowed is at least 1577472");
    put_file(rig, DATA, DISK, 0);
    rename_data(rig, "base.raw");
    co_refused(rig, EINVAL, "base.raw: it is base.raw of the same chain, too");
    rename_data(rig, "absent");
    co_refused(rig, ENOENT, "absent");
    rename_data(rig, "nbd:/x");
    struct errtext err = {""};
    int ret = co_rig_try_open(rig, &err);
    ck_assert_int_eq(ret, -EINVAL);
    ck_assert_ptr_nonnull(strstr(err.text, "data file \"nbd:/x\" names a protocol"));
    rename_data(rig, "./disk.qcow2"); /* longer: the padding has room for it */
    rename_data(rig, "disk.qcow2");
    co_refused(rig, EINVAL, "disk.qcow2: it is the image itself");
    rename_data(rig, DATA);
    co_rig_open(rig);
}

START_TEST(bad_files_are_refused)
{
    struct rig rig;
    begin(&rig, &shapes[2]);
    rig.skip_check = true;
    rig_run(&rig, co_bad_files);
    rig_free(&rig);
}
END_TEST

/* Two images with one data file: the second finds it locked. */
static void co_shared(struct rig *rig)
{
    struct errtext err = {""};
    struct image *other;
    struct qcow2_open_options options = {0};
    struct test_image image;

    co_rig_flush(rig);
    image = rig_get(rig, RIG_IMAGE);
    rig_put(rig, "other.qcow2", &image);
    free(image.bytes);
    int ret = co_qcow2_open(rig->world, "other.qcow2", &options, &other, &err);
    ck_assert_int_eq(ret, -EAGAIN);
    ck_assert_msg(strstr(err.text, "the data file of other.qcow2: disk.data"), "%s", err.text);
}

START_TEST(shared_data_file_is_locked)
{
    struct rig rig;
    begin(&rig, &shapes[0]);
    rig_run(&rig, co_shared);
    rig_free(&rig);
}
END_TEST

static void put_entry(struct rig *rig, uint64_t guest_cluster, uint64_t descriptor)
{
    struct test_image image = rig_get(rig, RIG_IMAGE);
    uint64_t l1 = get_be64(image.bytes + 40);
    uint64_t l2 = get_be64(image.bytes + l1) & QCOW2_L1_OFFSET;
    put_be64(image.bytes + l2 + 8 * guest_cluster, descriptor);
    rig_put(rig, RIG_IMAGE, &image);
    free(image.bytes);
}

static void co_repair(struct rig *rig, struct check_result *result)
{
    struct errtext err = {""};
    struct disk *disk;
    struct header header;
    struct check_options options = {.repair = CHECK_REPAIR_ALL};

    int ret = rig->world->ops->co_disk_open(rig->world, RIG_IMAGE, DISK_WRITABLE, &disk, &err);
    ck_assert_int_eq(ret, 0);
    ret = co_header_read(disk, &header, &err);
    ck_assert_int_eq(ret, 0);
    ret = co_qcow2_check(disk, &header, &options, result, &err);
    ck_assert_msg(ret == 0, "%s", err.text);
    header_free(&header);
    disk_close(disk);
}

/* Entries that name no place in the data file, a wrong one, or the right one the wrong way. */
static void co_damage(struct rig *rig)
{
    struct check_result result;
    uint64_t corruptions, leaks;
    uint8_t byte;

    co_rig_write(rig, 0, 4 * CLUSTER, 1);
    co_rig_close(rig);
    put_entry(rig, 1, CLUSTER);                                     /* without COPIED */
    put_entry(rig, 2, 5 * CLUSTER | QCOW2_COPIED);                  /* elsewhere */
    put_entry(rig, 3, 5 * CLUSTER | QCOW2_COPIED | QCOW2_ZERO);     /* elsewhere, not read */
    put_entry(rig, 6, 6 * CLUSTER | QCOW2_COMPRESSED | 1ULL << 54); /* compressed */
    co_rig_check(rig, &corruptions, &leaks);
    ck_assert_uint_eq(corruptions, 4);
    ck_assert(rig_logged(rig, "COPIED is not set, in an image with an external data file"));
    ck_assert(rig_logged(rig, "the cluster is not at its guest offset"));
    ck_assert(rig_logged(rig, "a compressed cluster in an image with an external data file"));
    co_rig_open(rig);
    co_rig_expect(rig, CLUSTER, CLUSTER, 1);
    int ret = rig->image->ops->co_read(rig->image, 2 * CLUSTER, &byte, 1, NULL);
    ck_assert_int_eq(ret, -EIO);
    ret = rig->image->ops->co_write(rig->image, 2 * CLUSTER, &byte, 1, 0);
    ck_assert_int_eq(ret, -EIO);
    ret = rig->image->ops->co_read(rig->image, 6 * CLUSTER, &byte, 1, NULL);
    ck_assert_int_eq(ret, -EIO);
    co_rig_end(rig);
    co_repair(rig, &result);
    ck_assert_uint_eq(result.corruptions, 2);
    ck_assert_uint_eq(result.corruptions_fixed, 2);
    put_entry(rig, 2, 2 * CLUSTER | QCOW2_COPIED);
    put_entry(rig, 6, 0);
    co_repair(rig, &result);
    ck_assert_uint_eq(result.corruptions, 0);
    co_rig_open(rig);
    co_rig_expect(rig, 0, 3 * CLUSTER, 1);
    co_rig_expect(rig, 3 * CLUSTER, CLUSTER, 0);
}

START_TEST(damage)
{
    struct rig rig;
    begin(&rig, &shapes[0]);
    rig_run(&rig, co_damage);
    rig_free(&rig);
}
END_TEST

/* A raw file that is there becomes the disk as it is; others are not touched. */
static void co_found_files(struct rig *rig)
{
    struct errtext err = {""};
    struct create_options options = rig->create;

    put_file(rig, DATA, DISK, 7);
    options.data_file_raw = false;
    int ret = co_qcow2_create(rig->world, RIG_IMAGE, &options, &err);
    ck_assert_int_eq(ret, -EEXIST);
    ck_assert_msg(strstr(err.text, "disk.data: the file exists"), "%s", err.text);
    options.data_file_raw = true;
    options.size_bytes = DISK + 1;
    ret = co_qcow2_create(rig->world, "longer.qcow2", &options, &err);
    ck_assert_int_eq(ret, -EINVAL);
    ck_assert_msg(strstr(err.text, "disk.data: its size is 1577472 bytes"), "%s", err.text);
    options = rig->create;
    options.data_file_name = "self.qcow2";
    ret = co_qcow2_create(rig->world, "self.qcow2", &options, &err);
    ck_assert_int_eq(ret, -EINVAL);
    ck_assert_msg(strstr(err.text, "it is the image itself"), "%s", err.text);
    ret = co_qcow2_create(rig->world, "raw.qcow2", &rig->create, &err);
    ck_assert_msg(ret == 0, "%s", err.text);
    struct qcow2_open_options open_options = {0};
    ret = co_qcow2_open(rig->world, "raw.qcow2", &open_options, &rig->image, &err);
    ck_assert_msg(ret == 0, "%s", err.text);
    co_rig_expect(rig, 0, DISK, 7);
    ret = rig->image->ops->co_close(rig->image, &err);
    ck_assert_int_eq(ret, 0);
    rig->image = NULL;
}

START_TEST(found_files)
{
    struct rig rig;
    begin(&rig, &shapes[_i]);
    rig_run_bare(&rig, co_found_files);
    rig_free(&rig);
}
END_TEST

static void co_set_size(struct rig *rig, uint64_t size_bytes)
{
    struct errtext err = {""};
    int ret = co_qcow2_resize(rig->image, size_bytes, &err);
    ck_assert_msg(ret == 0, "%s", err.text);
    struct test_image data = rig_get(rig, DATA);
    ck_assert_uint_eq(data.len_bytes, size_bytes);
    free(data.bytes);
}

/* What was beyond an old end, in a longer file or in clusters that were cut off, never shows. */
static void co_sizes(struct rig *rig)
{
    uint64_t cut = 8 * CLUSTER + 512;

    co_rig_close(rig);
    put_file(rig, DATA, DISK + 3 * CLUSTER, STALE);
    co_rig_open(rig);
    co_rig_write(rig, 0, DISK, 1);
    co_set_size(rig, DISK + 5 * CLUSTER);
    co_rig_expect(rig, 0, DISK, 1);
    co_rig_expect(rig, DISK, 5 * CLUSTER, 0);
    co_rig_write(rig, DISK + CLUSTER, 2 * CLUSTER, 2);
    co_set_size(rig, cut);
    co_rig_expect(rig, 0, cut, 1);
    co_set_size(rig, DISK + 5 * CLUSTER);
    co_rig_expect(rig, 0, cut, 1);
    co_rig_expect(rig, cut, DISK + 5 * CLUSTER - cut, 0);
    co_rig_close(rig);
    co_rig_open(rig);
    co_rig_expect(rig, 0, cut, 1);
    co_rig_expect(rig, cut, DISK + 5 * CLUSTER - cut, 0);
}

START_TEST(sizes)
{
    struct rig rig;
    begin(&rig, &shapes[_i]);
    rig_run(&rig, co_sizes);
    rig_free(&rig);
}
END_TEST

int main(void)
{
    Suite *suite = suite_create("data_file");
    TCase *tcase = tcase_create("data_file");
    tcase_set_timeout(tcase, 60);
    tcase_add_loop_test(tcase, two_files_are_one_disk, 0, ARRAY_LEN(shapes));
    tcase_add_loop_test(tcase, without_giving_back, 0, ARRAY_LEN(shapes));
    tcase_add_test(tcase, places);
    tcase_add_test(tcase, punch_never_hits_a_new_write);
    tcase_add_test(tcase, failed_flush_sticks);
    tcase_add_loop_test(tcase, no_space, 0, 6);
    tcase_add_test(tcase, bad_files_are_refused);
    tcase_add_test(tcase, shared_data_file_is_locked);
    tcase_add_test(tcase, damage);
    tcase_add_loop_test(tcase, found_files, 4, 6);
    tcase_add_loop_test(tcase, sizes, 0, ARRAY_LEN(shapes));
    suite_add_tcase(suite, tcase);
    return rig_main(suite);
}
