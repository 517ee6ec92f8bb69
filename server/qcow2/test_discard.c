/* SPDX-License-Identifier: BSD-2-Clause */
/* TRIM and WRITE_ZEROES: what becomes of entries and space, by version, flags and backing file. */
#include "qcow2/discard.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "qcow2/map.h"
#include "qcow2/test_rig.h"

#define CLUSTER 65536U

static struct l2_entry co_entry(struct rig *rig, uint64_t guest_cluster)
{
    struct slice *slice;
    uint32_t index;
    guest_off guest = {guest_cluster * rig->q->geo.cluster_bytes};
    int ret = co_map_slice(rig->q, guest, &slice, &index);
    ck_assert_int_eq(ret, 0);
    return l2_entry_get(&rig->q->geo, slice->bytes, index);
}

static int co_fast(struct rig *rig, uint64_t offset, uint64_t len, unsigned flags)
{
    unsigned before = rig->event_count;
    int ret = rig->image->ops->co_zero(rig->image, offset, len, flags | IMAGE_FAST_ZERO);
    if (ret == -ENOTSUP) {
        for (unsigned i = before; i < rig->event_count; i++) {
            ck_assert_int_eq(rig->events[i].call, RIG_READ);
        }
    }
    return ret;
}

/* -ENOTSUP exactly when bytes would have to be written, and then nothing has changed. */
static void co_fast_zero(struct rig *rig)
{
    co_rig_write(rig, 0, 6 * CLUSTER, 1);
    int ret = co_fast(rig, CLUSTER, 2 * CLUSTER, 0);
    ck_assert_int_eq(ret, 0);
    co_rig_expect(rig, CLUSTER, 2 * CLUSTER, 0);
    ret = co_fast(rig, 3 * CLUSTER + 1, CLUSTER, 0);
    ck_assert_int_eq(ret, -ENOTSUP);
    ret = co_fast(rig, 3 * CLUSTER, CLUSTER + 1, 0);
    ck_assert_int_eq(ret, -ENOTSUP);
    ret = co_fast(rig, 3 * CLUSTER + 10, 10, 0);
    ck_assert_int_eq(ret, -ENOTSUP);
    co_rig_expect(rig, 3 * CLUSTER, 3 * CLUSTER, 1);
    /* Ragged ends that read as zeroes already cost nothing. */
    ret = co_fast(rig, CLUSTER + 5, 10, 0);
    ck_assert_int_eq(ret, 0);
    ret = co_fast(rig, 2 * CLUSTER + 5, 2 * CLUSTER - 5, 0);
    ck_assert_int_eq(ret, 0);
    co_rig_expect(rig, 3 * CLUSTER, CLUSTER, 0);
    /* Space for a hole must be found and blanked; a place that is there already is kept. */
    ret = co_fast(rig, 10 * CLUSTER, CLUSTER, IMAGE_NO_HOLE);
    ck_assert_int_eq(ret, -ENOTSUP);
    ret = co_fast(rig, 4 * CLUSTER, 2 * CLUSTER, IMAGE_NO_HOLE);
    ck_assert_int_eq(ret, 0);
    ck_assert_uint_eq(co_entry(rig, 4).descriptor & (QCOW2_COPIED | QCOW2_ZERO),
                      QCOW2_COPIED | QCOW2_ZERO);
    ret = co_fast(rig, 4 * CLUSTER, 10 * CLUSTER, IMAGE_NO_HOLE);
    ck_assert_int_eq(ret, -ENOTSUP);
}

static void run(uint32_t version, uint64_t cluster_bytes, bool extended, const char *backing,
                rig_body *body)
{
    struct rig rig;
    rig_init(&rig, 17);
    rig.create.version = version;
    rig.create.cluster_bytes = cluster_bytes;
    rig.create.extended_l2 = extended;
    if (backing) {
        static uint8_t bytes[6 * CLUSTER];
        memset(bytes, 0x99, sizeof(bytes));
        ck_assert_int_eq(sim_file_put(rig.world, backing, bytes, sizeof(bytes)), 0);
        rig.create.backing_name = backing;
        rig.create.backing_format = "raw";
    }
    rig_run(&rig, body);
    rig_free(&rig);
}

START_TEST(fast_zero_is_honest)
{
    run(3, CLUSTER, false, NULL, co_fast_zero);
}
END_TEST

/* After NO_HOLE a full disk does not matter. */
static void co_no_hole(struct rig *rig)
{
    co_rig_write(rig, 0, CLUSTER, 1);
    co_rig_zero(rig, 100, 5 * CLUSTER, IMAGE_NO_HOLE | IMAGE_FUA);
    co_rig_expect(rig, 0, 100, 1);
    co_rig_expect(rig, 100, 5 * CLUSTER, 0);
    sim_set_space(rig->world, 512);
    co_rig_write(rig, 0, 5 * CLUSTER, 2);
    co_rig_flush(rig);
    co_rig_expect(rig, 0, 5 * CLUSTER, 2);
    uint8_t byte = 0;
    int ret = rig->image->ops->co_write(rig->image, 20 * CLUSTER, &byte, 1, 0);
    ck_assert_int_eq(ret, -ENOSPC);
    ret = rig->image->ops->co_zero(rig->image, 20 * CLUSTER, CLUSTER, IMAGE_NO_HOLE);
    ck_assert_int_eq(ret, -ENOSPC);
    sim_set_space(rig->world, 0);
}

START_TEST(no_hole_keeps_space)
{
    run(3, CLUSTER, false, NULL, co_no_hole);
    run(3, CLUSTER, true, NULL, co_no_hole);
    run(2, CLUSTER, false, NULL, co_no_hole);
}
END_TEST

/* Version 2 has no zero flag: nothing, or zeroes written. */
static void co_version_2(struct rig *rig)
{
    co_rig_write(rig, 0, 10 * CLUSTER, 1);
    int ret = co_fast(rig, 0, CLUSTER, 0);
    ck_assert_int_eq(ret, -ENOTSUP);
    ck_assert(!rig->image->can_zero_fast);
    co_rig_trim(rig, 0, 10 * CLUSTER);
    co_rig_expect(rig, 0, 64 * CLUSTER, 0);
    bool backed = rig->create.backing_name != NULL;
    ck_assert_int_eq(co_entry(rig, 2).descriptor != 0, backed);
    ck_assert_uint_eq(co_entry(rig, 8).descriptor, 0);
    co_rig_zero(rig, 4 * CLUSTER, 8 * CLUSTER, 0);
    co_rig_expect(rig, 0, 64 * CLUSTER, 0);
}

START_TEST(version_2_has_no_zero_flag)
{
    run(2, CLUSTER, false, NULL, co_version_2);
    run(2, CLUSTER, false, "base", co_version_2);
}
END_TEST

/* The zero flag stands exactly where the backing file would show through. */
static void co_backed(struct rig *rig)
{
    co_rig_expect(rig, 0, 6 * CLUSTER, 0x99);
    co_rig_write(rig, 0, 10 * CLUSTER, 1);
    co_rig_trim(rig, 0, 10 * CLUSTER);
    ck_assert_uint_eq(co_entry(rig, 5).descriptor, QCOW2_ZERO);
    ck_assert_uint_eq(co_entry(rig, 6).descriptor, 0);
    co_rig_expect(rig, 0, 64 * CLUSTER, 0);
    co_rig_write(rig, 100, 100, 2);
    co_rig_expect(rig, 0, 100, 0);
    co_rig_expect(rig, 200, CLUSTER - 200, 0);
}

START_TEST(trim_hides_the_backing_file)
{
    run(3, CLUSTER, false, "base", co_backed);
}
END_TEST

/* Parts of clusters, to the last subcluster: then the cluster itself goes. */
static void co_subclusters(struct rig *rig)
{
    const uint64_t sub = CLUSTER / 32;
    co_rig_write(rig, 0, 4 * CLUSTER, 1);
    co_rig_trim(rig, sub, 3 * sub);
    ck_assert_uint_eq(co_entry(rig, 0).bitmap, 0xeULL << 32 | 0xfffffff1);
    co_rig_expect(rig, 0, sub, 1);
    co_rig_expect(rig, sub, 3 * sub, 0);
    co_rig_expect(rig, 4 * sub, sub, 1);
    co_rig_trim(rig, sub / 2, sub); /* written as data */
    co_rig_expect(rig, 0, sub / 2, 1);
    co_rig_expect(rig, sub / 2, sub, 0);
    ck_assert_uint_eq(co_entry(rig, 0).bitmap & 1, 1);
    co_rig_trim(rig, 4 * sub, 28 * sub);
    ck_assert_uint_ne(co_entry(rig, 0).descriptor, 0);
    co_rig_trim(rig, 0, 4 * sub);
    ck_assert_uint_eq(co_entry(rig, 0).descriptor, 0);
    co_rig_expect(rig, 0, CLUSTER, 0);
    /* Space for some subclusters of a hole; the others stay as they are. */
    co_rig_zero(rig, 40 * CLUSTER + 2 * sub, 4 * sub, IMAGE_NO_HOLE);
    ck_assert_uint_eq(co_entry(rig, 40).bitmap, 0x3cULL << 32);
    ck_assert_uint_ne(co_entry(rig, 40).descriptor, 0);
    co_rig_expect(rig, 40 * CLUSTER, CLUSTER, 0);
    co_rig_flush(rig);
    co_sleep_ns(rig->world, 100000000);
    ck_assert_uint_ge(rig_count(rig, RIG_PUNCH), 1);
}

START_TEST(subclusters_go_one_by_one)
{
    run(3, CLUSTER, true, NULL, co_subclusters);
}
END_TEST

/* Zeroes; the request must be worked off without a byte of data, or not. */
static void co_zero_thin(struct rig *rig, uint64_t offset, uint64_t len, unsigned flags, bool thin)
{
    unsigned data_writes = 0;
    rig_forget(rig);
    co_rig_zero(rig, offset, len, flags);
    for (unsigned i = 0; i < rig->event_count; i++) {
        data_writes += rig->events[i].call == RIG_WRITE && rig->events[i].place == RIG_DATA;
    }
    ck_assert_int_eq(data_writes == 0, thin);
    co_rig_expect(rig, offset, len, 0);
}

static void co_fast_gives(struct rig *rig, uint64_t offset, uint64_t len, unsigned flags, int gives)
{
    int ret = co_fast(rig, offset, len, flags);
    ck_assert_int_eq(ret, gives);
}

/* Parts of clusters whose rest reads as zeroes: the backing file ends in the middle of the 7th. */
static void co_thin(struct rig *rig)
{
    const bool extended = rig->create.extended_l2;
    const uint64_t sub = CLUSTER / 32;
    const uint64_t backed_end = 6 * CLUSTER + CLUSTER / 2 - 512;
    /* The backing file's last bytes in the cluster, or in the subcluster. */
    uint64_t last = extended ? sub - 512 : backed_end % CLUSTER;
    co_zero_thin(rig, backed_end - last, last, 0, true);
    struct l2_entry entry = co_entry(rig, 6);
    ck_assert(entry.descriptor == (extended ? 0U : QCOW2_ZERO));
    ck_assert(entry.bitmap == (extended ? 1ULL << 47 : 0U));
    /* Once more costs nothing at all; nor does what nobody has. */
    co_zero_thin(rig, backed_end - 1000, 1300, 0, true);
    co_zero_thin(rig, 9 * CLUSTER + 1, 1, 0, true);
    entry = co_entry(rig, 9);
    ck_assert_uint_eq(entry.descriptor, 0);
    ck_assert_uint_eq(entry.bitmap, 0);
    /* The rest is not zero: a copy. */
    co_zero_thin(rig, 1, sub - 1, 0, false);
    entry = co_entry(rig, 0);
    ck_assert_uint_ne(entry.descriptor, 0);
    co_rig_expect(rig, 0, 1, 0x99);
    co_rig_expect(rig, sub, CLUSTER - sub, 0x99);
    /* NO_HOLE finds a place, and blanks it without writing. */
    co_zero_thin(rig, 9 * CLUSTER + 1, 1, IMAGE_NO_HOLE, true);
    struct l2_entry placed = co_entry(rig, 9);
    ck_assert_uint_ne(l2_entry_host(placed).bytes, 0);
    ck_assert(extended ? placed.bitmap == 1ULL << 32 : (placed.descriptor & QCOW2_ZERO) != 0);
    /* The place that was asked for stays when a part of it is zeroed or trimmed. */
    co_zero_thin(rig, 9 * CLUSTER + 1, 1, 0, true);
    co_rig_trim(rig, 9 * CLUSTER + 1, 1);
    entry = co_entry(rig, 9);
    ck_assert_uint_eq(entry.descriptor, placed.descriptor);
    /* FAST_ZERO promises what is true. */
    co_fast_gives(rig, 12 * CLUSTER + 1, 1, IMAGE_NO_HOLE, -ENOTSUP);
    co_fast_gives(rig, 9 * CLUSTER + 1, 1, IMAGE_NO_HOLE, 0);
    co_fast_gives(rig, 4 * CLUSTER + 100, CLUSTER, 0, -ENOTSUP);
    co_fast_gives(rig, 4 * CLUSTER, backed_end - 4 * CLUSTER, 0, 0);
    co_rig_expect(rig, 4 * CLUSTER, 60 * CLUSTER, 0);
}

static void run_thin(bool extended, enum trim_policy trim)
{
    static uint8_t bytes[6 * CLUSTER + CLUSTER / 2 - 512];
    struct rig rig;
    rig_init(&rig, 17);
    rig.create.extended_l2 = extended;
    rig.create.backing_name = "base";
    rig.create.backing_format = "raw";
    rig.options.trim = trim;
    memset(bytes, 0x99, sizeof(bytes));
    ck_assert_int_eq(sim_file_put(rig.world, "base", bytes, sizeof(bytes)), 0);
    rig_run(&rig, co_thin);
    rig_free(&rig);
}

START_TEST(zeroes_stay_thin)
{
    run_thin(false, TRIM_UNMAP);
    run_thin(true, TRIM_UNMAP);
    run_thin(false, TRIM_IGNORE);
    run_thin(true, TRIM_IGNORE);
}
END_TEST

/* Errors on the way: the request fails, what it allocated is given back. */
static void co_errors(struct rig *rig)
{
    co_rig_write(rig, 0, CLUSTER, 1);
    rig_fail(rig, RIG_ZERO, RIG_DATA, 0, -ENOSPC);
    int ret = rig->image->ops->co_zero(rig->image, 3 * CLUSTER, CLUSTER, IMAGE_NO_HOLE);
    ck_assert_int_eq(ret, -ENOSPC);
    rig_fail(rig, RIG_WRITE, RIG_DATA, 0, -EIO);
    ret = rig->image->ops->co_zero(rig->image, 100, 2 * CLUSTER, 0);
    ck_assert_int_eq(ret, -EIO);
    rig_fail(rig, RIG_ZERO, RIG_DATA, 0, -EIO);
    ret = rig->image->ops->co_zero(rig->image, 5 * CLUSTER + 100, 200, IMAGE_NO_HOLE);
    ck_assert_int_eq(ret, -EIO);
    rig->fail_with = 0;
    co_rig_close(rig);
    co_rig_open(rig);
    rig_fail(rig, RIG_READ, 0, 0, -EIO);
    ret = rig->image->ops->co_trim(rig->image, 0, CLUSTER, 0);
    ck_assert_int_eq(ret, -EIO);
    ret = co_fast(rig, 0, CLUSTER, 0);
    ck_assert_int_eq(ret, -EIO);
    ret = co_fast(rig, 1, 2 * CLUSTER, 0);
    ck_assert_int_eq(ret, -EIO);
    struct extent extent;
    struct extent_list list = {&extent, 1, 0};
    ret = rig->image->ops->co_extents(rig->image, 0, CLUSTER, &list);
    ck_assert_int_eq(ret, -EIO);
}

START_TEST(errors_fail_the_request)
{
    run(3, CLUSTER, false, NULL, co_errors);
}
END_TEST

/* A range that is all hole costs nothing, however long. */
static void co_huge(struct rig *rig)
{
    co_rig_trim(rig, 0, rig->image->size_bytes);
    co_rig_zero(rig, 0, rig->image->size_bytes, 0);
    ck_assert_uint_eq(rig->event_count, 0);
    co_rig_write(rig, rig->image->size_bytes - 512, 512, 7);
    co_rig_trim(rig, 1, rig->image->size_bytes - 1);
    co_rig_expect(rig, rig->image->size_bytes - CLUSTER, CLUSTER, 0);
    ck_assert_uint_eq(co_entry(rig, rig->image->size_bytes / CLUSTER - 1).descriptor, 0);
}

START_TEST(huge_holes_are_passed_over)
{
    struct rig rig;
    rig_init(&rig, 17);
    rig.create.size_bytes = 1ULL << 44;
    rig_run(&rig, co_huge);
    rig_free(&rig);
}
END_TEST

int main(void)
{
    Suite *suite = suite_create("discard");
    TCase *tcase = tcase_create("discard");
    tcase_set_timeout(tcase, 60);
    tcase_add_test(tcase, fast_zero_is_honest);
    tcase_add_test(tcase, no_hole_keeps_space);
    tcase_add_test(tcase, version_2_has_no_zero_flag);
    tcase_add_test(tcase, trim_hides_the_backing_file);
    tcase_add_test(tcase, subclusters_go_one_by_one);
    tcase_add_test(tcase, zeroes_stay_thin);
    tcase_add_test(tcase, errors_fail_the_request);
    tcase_add_test(tcase, huge_holes_are_passed_over);
    suite_add_tcase(suite, tcase);
    return rig_main(suite);
}
