/* SPDX-License-Identifier: BSD-2-Clause */
/*
 * Entries and what they mean: every kind of bad entry by its message, look-ups over neighbours and
 * subclusters, and L2 tables that a snapshot shares.
 */
#include "qcow2/map.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "base/bytes.h"
#include "base/limits.h"
#include "qcow2/test_rig.h"

static void co_open_put(struct rig *rig)
{
    rig_put(rig, RIG_IMAGE, rig->arg);
    co_rig_open(rig);
}

/* Builds and opens an image of this shape; change (may be NULL) is done to it before. */
static void run(struct test_image_options options, void (*change)(struct test_image *image),
                bool skip_check, rig_body *body)
{
    struct rig rig;
    struct test_image image;
    test_image_build(&image, &options);
    if (change) {
        change(&image);
    }
    rig_init(&rig, 11);
    rig.arg = &image;
    rig.skip_check = skip_check;
    rig_run_bare(&rig, body);
    rig_free(&rig);
    test_image_free(&image);
}

static const struct test_image_options plain = {3, 12, 4, false, 12};
static const struct test_image_options old = {2, 12, 4, false, 12};
static const struct test_image_options extended = {3, 14, 4, true, 12};

static const struct bad_entry {
    const struct test_image_options *shape;
    struct l2_entry entry;
    const char *says;
} bad_entries[] = {
    {&plain, {0x5000 | QCOW2_COPIED | 1ULL << 60, 0}, "reserved bits must be zero"},
    {&plain, {0x5000 | 2, 0}, "reserved bits must be zero"},
    {&plain, {0x5200 | QCOW2_COPIED, 0}, "must start at a multiple of the cluster size"},
    {&plain, {0x11000, 0}, "must lie inside the file"},
    {&plain, {QCOW2_L2_OFFSET & ~0xfffULL, 0}, "must lie inside the file"},
    {&old, {0x5000 | QCOW2_ZERO, 0}, "bit 0 must be zero"},
    {&extended, {0x14000 | QCOW2_ZERO, 1}, "bit 0 must be zero"},
    {&extended, {0x14000, 1ULL << 32 | 1}, "allocated or zero, not both"},
    {&extended, {0, 1}, "an allocated subcluster needs a cluster"},
    {&plain, {QCOW2_COMPRESSED | QCOW2_COPIED | 0x5000, 0}, "must not have COPIED set"},
    {&plain, {QCOW2_COMPRESSED | 0x11000, 0}, "compressed data must lie inside the file"},
    {&extended, {QCOW2_COMPRESSED | 0x14000, 1}, "a compressed cluster has no subclusters"},
};

static void co_bad_entry(struct rig *rig)
{
    const struct bad_entry *bad = NULL;
    for (size_t i = 0; i < ARRAY_LEN(bad_entries); i++) {
        enum entry_class entry_class;
        bad = &bad_entries[i];
        if (bad->shape->cluster_bits != ((struct test_image *)rig->arg)->geo.cluster_bits ||
            (bad->shape->version == 3) != ((struct test_image *)rig->arg)->geo.has_zero_flag) {
            continue;
        }
        if (!rig->image) {
            co_open_put(rig);
        }
        rig->log_len = 0;
        guest_off guest = {0x3000};
        int ret = map_entry_class(rig->q, guest, bad->entry, &entry_class);
        ck_assert_int_eq(ret, -EIO);
        ck_assert_msg(rig_logged(rig, bad->says) && rig_logged(rig, "guest offset 0x3000"),
                      "%zu: %s", i, rig->log);
    }
    ck_assert(rig->q->corrupt_marked == (rig->q->header.version == 3));
}

START_TEST(bad_entries_are_named)
{
    run(plain, NULL, true, co_bad_entry);
    run(old, NULL, true, co_bad_entry);
    run(extended, NULL, true, co_bad_entry);
}
END_TEST

static void expect_mapping(struct rig *rig, uint64_t guest, uint64_t len, enum mapping_kind kind,
                           uint64_t want_len)
{
    struct mapping mapping;
    int ret = co_map(rig->q, (guest_off){guest}, len, &mapping);
    ck_assert_int_eq(ret, 0);
    ck_assert_msg(mapping.kind == kind && mapping.len == want_len,
                  "%#llx: kind %d, should be %d; %#llx bytes, should be %#llx",
                  (unsigned long long)guest, mapping.kind, kind, (unsigned long long)mapping.len,
                  (unsigned long long)want_len);
}

/* Guest clusters: 0-3 in a row, 4 elsewhere, 5 zero with a place, 6 plain zero, 7 compressed. */
static void variety(struct test_image *image)
{
    uint64_t four = test_image_get(image, test_image_l2_at(image, 4));
    uint64_t eight = test_image_get(image, test_image_l2_at(image, 8));
    test_image_put(image, test_image_l2_at(image, 4), eight);
    test_image_put(image, test_image_l2_at(image, 8), four);
    uint64_t five = test_image_l2_at(image, 5);
    test_image_put(image, five, test_image_get(image, five) | QCOW2_ZERO);
    test_image_put(image, test_image_l2_at(image, 6), QCOW2_ZERO);
    uint64_t seven = test_image_l2_at(image, 7);
    test_image_put(image, seven, (test_image_get(image, seven) & ~QCOW2_COPIED) | QCOW2_COMPRESSED);
}

static void co_lookup(struct rig *rig)
{
    struct mapping mapping;
    co_open_put(rig);
    expect_mapping(rig, 0, 1 << 20, MAPPING_DATA, 4 * 4096);
    expect_mapping(rig, 100, 1 << 20, MAPPING_DATA, 4 * 4096 - 100);
    expect_mapping(rig, 100, 5000, MAPPING_DATA, 5000);
    expect_mapping(rig, 4 * 4096, 1 << 20, MAPPING_DATA, 4096);
    expect_mapping(rig, 5 * 4096, 1 << 20, MAPPING_ZERO, 4096);
    expect_mapping(rig, 6 * 4096, 1 << 20, MAPPING_ZERO, 4096);
    expect_mapping(rig, 7 * 4096 + 7, 1 << 20, MAPPING_COMPRESSED, 4096 - 7);
    expect_mapping(rig, 12 * 4096, 1 << 30, MAPPING_UNALLOCATED, (512 - 12) * 4096);
    int ret = co_map(rig->q, (guest_off){5 * 4096 + 9}, 10, &mapping);
    ck_assert_int_eq(ret, 0);
    ck_assert(mapping.has_host && mapping.copied);
    ck_assert_uint_eq(mapping.host.bytes, 10 * 4096 + 9);
    ret = co_map(rig->q, (guest_off){6 * 4096}, 10, &mapping);
    ck_assert_int_eq(ret, 0);
    ck_assert(!mapping.has_host);

    rig_fail(rig, RIG_READ, RIG_L2, 0, -EIO);
    co_rig_expect(rig, 0, 4096, 1); /* cached */
    rig->fail_with = 0;
    /* A look-up ends before a bad entry, and fails on it. */
    struct slice *slice;
    uint32_t index;
    ret = co_map_change(rig->q, (guest_off){2 * 4096}, &slice, &index);
    ck_assert_int_eq(ret, 0);
    ck_assert_uint_eq(index, 2);
    struct l2_entry entry = l2_entry_get(&rig->q->geo, slice->bytes, index);
    entry.descriptor |= 2;
    l2_entry_set(&rig->q->geo, slice->bytes, index, entry);
    expect_mapping(rig, 0, 1 << 20, MAPPING_DATA, 2 * 4096);
    ret = co_map(rig->q, (guest_off){2 * 4096}, 10, &mapping);
    ck_assert_int_eq(ret, -EIO);
}

START_TEST(neighbours_become_one_mapping)
{
    run(plain, variety, true, co_lookup);
}
END_TEST

/* Subclusters of 512 bytes: 0 data, 1-2 zero, 3 nothing; then all data in clusters 1 and 2. */
static void partial(struct test_image *image)
{
    test_image_put(image, test_image_l2_at(image, 0) + 8, 6ULL << 32 | 1);
    test_image_put(image, test_image_l2_at(image, 2) + 8, 0xffff);
    test_image_put(image, test_image_l2_at(image, 13) + 8, ~0ULL << 32);
    test_image_put(image, test_image_l2_at(image, 14) + 8, 0xffffULL << 32);
    test_image_put(image, test_image_l2_at(image, 15) + 8, ~0ULL << 32);
}

static void co_subclusters(struct rig *rig)
{
    co_open_put(rig);
    expect_mapping(rig, 0, 1 << 20, MAPPING_DATA, 512);
    expect_mapping(rig, 512, 1 << 20, MAPPING_ZERO, 1024);
    expect_mapping(rig, 3 * 512, 1 << 20, MAPPING_UNALLOCATED, 16384 - 3 * 512);
    expect_mapping(rig, 16384, 1 << 20, MAPPING_DATA, 16384 + 8192);
    expect_mapping(rig, 2 * 16384 + 8192, 1 << 20, MAPPING_UNALLOCATED, 8192);
    expect_mapping(rig, 13 * 16384, 1 << 20, MAPPING_ZERO, 16384 + 8192);
    co_rig_expect(rig, 0, 512, 1);
    co_rig_expect(rig, 512, 16384 - 512, 0);
    /* A write fills its subclusters, and keeps the flags of the others. */
    co_rig_write(rig, 700, 10, 9);
    struct slice *slice;
    uint32_t index;
    int ret = co_map_slice(rig->q, (guest_off){0}, &slice, &index);
    ck_assert_int_eq(ret, 0);
    ck_assert_uint_eq(l2_entry_get(&rig->q->geo, slice->bytes, index).bitmap, 4ULL << 32 | 3);
    co_rig_expect(rig, 512, 188, 0);
    co_rig_expect(rig, 700, 10, 9);
    co_rig_expect(rig, 710, 2000, 0);
}

START_TEST(subclusters_have_kinds_of_their_own)
{
    run(extended, partial, false, co_subclusters);
}
END_TEST

/* The table is copied once, whoever writes first; the snapshot's bytes stay. */
static void co_writer(struct rig *rig)
{
    static unsigned next;
    unsigned cluster = next++ % 12;
    co_rig_write(rig, cluster * 4096U + 100, 50, 0xcc);
}

static void co_snapshot(struct rig *rig)
{
    struct test_image *image = rig->arg;
    co_open_put(rig);
    uint64_t table = rig->q->l1.entries[0] & QCOW2_L1_OFFSET;
    for (int i = 0; i < 12; i++) {
        rig_spawn(rig, co_writer);
    }
    co_rig_join(rig);
    ck_assert(rig->q->l1.entries[0] & QCOW2_COPIED);
    ck_assert_uint_ne(rig->q->l1.entries[0] & QCOW2_L1_OFFSET, table);
    co_rig_zero(rig, 13 * 4096, 4096, IMAGE_NO_HOLE);
    co_rig_trim(rig, 0, 4096);
    co_rig_close(rig);
    struct test_image now = rig_get(rig, RIG_IMAGE);
    /* All that the snapshot refers to is as it was. */
    ck_assert_int_eq(memcmp(now.bytes + table, image->bytes + table, 13 * 4096), 0);
    test_image_free(&now);
    co_rig_open(rig);
    co_rig_expect(rig, 0, 4096, 0);
    co_rig_expect(rig, 4096, 100, 2);
    co_rig_expect(rig, 4096 + 100, 50, 0xcc);
    co_rig_expect(rig, 4096 + 150, 4096 - 150, 2);
}

START_TEST(shared_table_is_copied_once)
{
    run(plain, test_image_add_snapshot, false, co_snapshot);
    run(old, test_image_add_snapshot, false, co_snapshot);
}
END_TEST

/* What cannot be copied or made leaves everything as it was. */
static void co_copy_fails(struct rig *rig)
{
    uint8_t byte = 1;
    co_open_put(rig);
    uint64_t before = rig->q->l1.entries[0];
    rig_fail(rig, RIG_READ, RIG_L2, 0, -EIO);
    int ret = rig->image->ops->co_write(rig->image, 0, &byte, 1, 0);
    ck_assert_int_eq(ret, -EIO);
    rig->fail_with = 0;
    co_rig_expect(rig, 0, 4096, 1);
    rig_fail(rig, RIG_WRITE, RIG_DATA, 0, -ENOSPC);
    ret = rig->image->ops->co_write(rig->image, 0, &byte, 1, 0);
    ck_assert_int_eq(ret, -ENOSPC);
    ck_assert_uint_eq(rig->q->l1.entries[0], before);
    rig->fail_with = 0;
    co_rig_write(rig, 0, 1, 0xcc);
}

START_TEST(failed_copy_changes_nothing)
{
    run(plain, test_image_add_snapshot, false, co_copy_fails);
}
END_TEST

/* An L1 entry says COPIED of no table at all: there is none, and a write makes one. */
static void lose_table(struct test_image *image)
{
    test_image_put(image, test_image_l1_at(image, 0), QCOW2_COPIED);
}

static void co_no_table(struct rig *rig)
{
    co_open_put(rig);
    co_rig_expect(rig, 0, 4096, 0);
    co_rig_trim(rig, 0, 4096);
    co_rig_write(rig, 5000, 100, 0xcc);
    co_rig_flush(rig);
    co_rig_expect(rig, 4096, 904, 0);
    co_rig_expect(rig, 5000, 100, 0xcc);
}

static void co_no_table_zero(struct rig *rig)
{
    co_open_put(rig);
    co_rig_zero(rig, 0, 4096, IMAGE_NO_HOLE);
    co_rig_expect(rig, 0, 4096, 0);
}

START_TEST(copied_without_a_table)
{
    run(plain, lose_table, true, co_no_table);
    run(extended, lose_table, true, co_no_table);
    run(old, lose_table, true, co_no_table_zero);
}
END_TEST

int main(void)
{
    Suite *suite = suite_create("map");
    TCase *tcase = tcase_create("map");
    tcase_set_timeout(tcase, 30);
    tcase_add_test(tcase, bad_entries_are_named);
    tcase_add_test(tcase, neighbours_become_one_mapping);
    tcase_add_test(tcase, subclusters_have_kinds_of_their_own);
    tcase_add_test(tcase, shared_table_is_copied_once);
    tcase_add_test(tcase, failed_copy_changes_nothing);
    tcase_add_test(tcase, copied_without_a_table);
    suite_add_tcase(suite, tcase);
    return rig_main(suite);
}
