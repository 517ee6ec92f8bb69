/* SPDX-License-Identifier: BSD-2-Clause */
/* Geometry against the format's own formulas, worked out by hand or bit by bit. */
#include "qcow2/geometry.h"

#include <check.h>
#include <stdlib.h>
#include <string.h>

#include "base/limits.h"
#include "base/testing.h"

START_TEST(default_parameters)
{
    struct geometry geo;
    geometry_init(&geo, 16, false, 3, 4, 10 * GIB);
    ck_assert_uint_eq(geo.cluster_bytes, 65536);
    ck_assert_uint_eq(geo.l2_entries, 8192);
    ck_assert_uint_eq(geo.l2_bits, 13);
    ck_assert_uint_eq(geo.refblock_entries, 32768);
    ck_assert_uint_eq(geo.refcount_max, 65535);
    ck_assert_uint_eq(geo.subclusters, 1);
    ck_assert_uint_eq(geo.subcluster_bytes, 65536);
    ck_assert(geo.has_zero_flag);
    ck_assert_uint_eq(geo.slice_l2_entries, 512);
    ck_assert_uint_eq(geo.slice_refcounts, 2048);
    /* 10 GiB in tables of 512 MiB. */
    ck_assert_uint_eq(l1_entries_needed(&geo), 20);
    guest_off guest = {512 * MIB + 3 * 65536 + 77};
    ck_assert_uint_eq(l1_index(&geo, guest), 1);
    ck_assert_uint_eq(l2_index(&geo, guest), 3);
    ck_assert_uint_eq(offset_in_cluster(&geo, guest), 77);
    ck_assert_uint_eq(guest_cluster_index(&geo, guest), 8192 + 3);
    ck_assert_uint_eq(host_cluster_start(&geo, 5).bytes, 5 * 65536);
    ck_assert_uint_eq(host_cluster_index(&geo, (host_off){5 * 65536 + 1}), 5);
    ck_assert(host_is_aligned(&geo, (host_off){65536}));
    ck_assert(!host_is_aligned(&geo, (host_off){65536 + 512}));
}
END_TEST

START_TEST(extended_l2_and_small_clusters)
{
    struct geometry geo;
    geometry_init(&geo, 14, true, 3, 6, 1);
    ck_assert_uint_eq(geo.l2_entry_bytes, 16);
    ck_assert_uint_eq(geo.l2_entries, 1024);
    ck_assert_uint_eq(geo.subclusters, 32);
    ck_assert_uint_eq(geo.subcluster_bytes, 512);
    ck_assert_uint_eq(geo.refcount_max, UINT64_MAX);
    ck_assert_uint_eq(geo.refblock_entries, 2048);
    ck_assert_uint_eq(l1_entries_needed(&geo), 1);

    geometry_init(&geo, 9, false, 2, 4, 0);
    ck_assert(!geo.has_zero_flag);
    ck_assert_uint_eq(geo.slice_bytes, 512);
    ck_assert_uint_eq(geo.l2_entries, 64);
    ck_assert_uint_eq(l1_entries_needed(&geo), 0);
    ck_assert_uint_eq(slice_guest_bytes(&geo), 64 * 512);
}
END_TEST

START_TEST(refcounts_of_every_width)
{
    for (uint32_t order = 0; order <= 6; order++) {
        uint8_t block[512] = {0};
        uint64_t count = (sizeof(block) * 8) >> order;
        uint64_t max = order == 6 ? UINT64_MAX : (1ULL << (1U << order)) - 1;
        for (uint64_t i = 0; i < count; i++) {
            refcount_set(order, block, i, (i * 0x9e3779b97f4a7c15ULL) & max);
        }
        for (uint64_t i = 0; i < count; i++) {
            ck_assert_uint_eq(refcount_get(order, block, i), (i * 0x9e3779b97f4a7c15ULL) & max);
        }
        /* Setting one leaves the neighbours alone. */
        memset(block, 0xff, sizeof(block));
        refcount_set(order, block, 5, 0);
        ck_assert_uint_eq(refcount_get(order, block, 4), max);
        ck_assert_uint_eq(refcount_get(order, block, 5), 0);
        ck_assert_uint_eq(refcount_get(order, block, 6), max);
    }
    uint8_t bits[1] = {0};
    refcount_set(0, bits, 0, 1);
    ck_assert_uint_eq(bits[0], 1); /* bit 0 is the least significant */
    uint8_t wide[2] = {0};
    refcount_set(4, wide, 0, 0x1234);
    ck_assert_uint_eq(wide[0], 0x12); /* big endian */
}
END_TEST

START_TEST(compressed_descriptor)
{
    struct geometry geo;
    host_off start;
    uint64_t len;

    geometry_init(&geo, 16, false, 3, 4, GIB); /* x = 54 */
    compressed_place(&geo, QCOW2_COMPRESSED | 2ULL << 54 | 0x50123, &start, &len);
    ck_assert_uint_eq(start.bytes, 0x50123);
    ck_assert_uint_eq(len, 3 * 512 - 0x123);

    geometry_init(&geo, 21, false, 3, 4, GIB); /* x = 49 */
    compressed_place(&geo, QCOW2_COMPRESSED | 0x1fffULL << 49 | 512, &start, &len);
    ck_assert_uint_eq(start.bytes, 512);
    ck_assert_uint_eq(len, 0x2000 * 512ULL);

    geometry_init(&geo, 9, false, 3, 4, GIB); /* x = 61: bits above 55 stay for the caller */
    compressed_place(&geo, QCOW2_COMPRESSED | 1ULL << 61 | 1ULL << 58, &start, &len);
    ck_assert_uint_eq(start.bytes, 1ULL << 58);
    ck_assert_uint_eq(len, 1024);
}
END_TEST

int main(void)
{
    TCase *tcase = tcase_create("geometry");
    tcase_add_test(tcase, default_parameters);
    tcase_add_test(tcase, extended_l2_and_small_clusters);
    tcase_add_test(tcase, refcounts_of_every_width);
    tcase_add_test(tcase, compressed_descriptor);
    Suite *suite = suite_create("geometry");
    suite_add_tcase(suite, tcase);
    return test_suite_run(suite);
}
