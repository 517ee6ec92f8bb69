/* SPDX-License-Identifier: BSD-2-Clause */
/* Claiming, counting down, looking and scanning, over slices, blocks and the table's end. */
#include "qcow2/refcount.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "base/limits.h"
#include "qcow2/alloc.h"
#include "qcow2/test_rig.h"

/* Claims are not published here, so the images end with leaks. */
static void run(uint64_t cluster_bytes, uint32_t refcount_bits, rig_body *body)
{
    struct rig rig;
    rig_init(&rig, 6);
    rig.create.cluster_bytes = cluster_bytes;
    rig.create.refcount_bits = refcount_bits;
    rig.create.size_bytes = 256 * cluster_bytes;
    rig.skip_check = true;
    rig_run(&rig, body);
    rig_free(&rig);
}

static uint64_t co_count(struct rig *rig, uint64_t cluster)
{
    uint64_t count, same;
    int ret = co_refcount_run(rig->q, cluster, 1, &count, &same);
    ck_assert_int_eq(ret, 0);
    return count;
}

static void co_claim(struct rig *rig, uint64_t from, uint64_t count, uint64_t want_first,
                     uint64_t want_count)
{
    uint64_t first = from, claimed = 0;
    int ret = co_refcount_claim(rig->q, &first, count, &claimed);
    ck_assert_int_eq(ret, want_count > 0 ? 0 : -ENOSPC);
    ck_assert_uint_eq(claimed, want_count);
    ck_assert_uint_eq(first, want_first);
}

static void co_claims(struct rig *rig)
{
    uint64_t base = 50;
    co_claim(rig, base + 4, 2, base + 4, 2);
    co_claim(rig, base, 10, base, 4);         /* ends at the gap */
    co_claim(rig, base + 1, 10, base + 6, 5); /* begins behind what is taken */
    co_claim(rig, base, 11, base + 11, 0);    /* all taken */
    ck_assert_uint_eq(co_count(rig, base + 10), 1);
    ck_assert_uint_eq(co_count(rig, base + 11), 0);

    uint64_t count, same;
    int ret = co_refcount_run(rig->q, base, 100, &count, &same);
    ck_assert_int_eq(ret, 0);
    ck_assert_uint_eq(count, 1);
    ck_assert_uint_eq(same, 11);
    ret = co_refcount_down(rig->q, base + 2, 3);
    ck_assert_int_eq(ret, 0);
    ck_assert_uint_eq(co_count(rig, base + 1), 1);
    ck_assert_uint_eq(co_count(rig, base + 2), 0);
    ck_assert_uint_eq(co_count(rig, base + 5), 1);
}

START_TEST(claims_a_prefix_of_what_is_free)
{
    run(65536, 16, co_claims);
}
END_TEST

/* 512-byte blocks of 64-bit counts: 64 clusters each. */
static void co_new_blocks(struct rig *rig)
{
    struct qcow2 *q = rig->q;
    uint64_t region = 64 * 100; /* has no block yet */
    ck_assert(!refcount_block_exists(q, region));
    ck_assert_uint_eq(co_count(rig, region + 7), 0);
    co_claim(rig, region + 5, 4, region + 6, 3); /* the block takes the first itself */
    ck_assert(refcount_block_exists(q, region));
    ck_assert_uint_eq(co_count(rig, region + 5), 1);
    ck_assert(metamap_contains(&q->metamap, region + 5));
    ck_assert_uint_gt(q->reftable.count, 100);

    /* A run ends where the next block would have to be made, and goes over one that is there. */
    co_claim(rig, region + 60, 10, region + 60, 4);
    ck_assert(!refcount_block_exists(q, region + 64));
    co_claim(rig, region + 64, 1, region + 65, 0);
    co_claim(rig, region + 50, 30, region + 50, 10);
    int ret = co_refcount_down(q, region + 50, 14);
    ck_assert_int_eq(ret, 0);
    ret = co_refcount_down(q, region + 64, 1); /* the new block's own count, freed by force */
    ck_assert_int_eq(ret, 0);
    metamap_remove(&q->metamap, region + 64);
    co_claim(rig, region + 50, 30, region + 50, 30);
    /* And one that ends at a gap behind the border gives the far part back. */
    ret = co_refcount_down(q, region + 60, 4);
    ck_assert_int_eq(ret, 0);
    ret = co_refcount_down(q, region + 65, 3);
    ck_assert_int_eq(ret, 0);
    co_claim(rig, region + 60, 20, region + 60, 4);
    ck_assert_uint_eq(co_count(rig, region + 65), 0);
}

START_TEST(blocks_are_made_where_they_are_needed)
{
    run(512, 64, co_new_blocks);
}
END_TEST

static void co_limits(struct rig *rig)
{
    uint64_t far = LIMIT_REFCOUNT_TABLE_BYTES / 8 * 64;
    uint64_t first = far, claimed;
    int ret = co_refcount_claim(rig->q, &first, 1, &claimed);
    ck_assert_int_eq(ret, -ENOSPC);
    ck_assert(rig_logged(rig, "at most 1048576 are allowed"));

    rig_fail(rig, RIG_ZERO, 0, 0, -ENOSPC);
    first = 64 * 100;
    ret = co_refcount_claim(rig->q, &first, 1, &claimed);
    ck_assert_int_eq(ret, -ENOSPC);
    ck_assert(!refcount_block_exists(rig->q, 64 * 100));
    rig->fail_with = 0;
    co_claim(rig, 64 * 100, 2, 64 * 100 + 1, 1);
}

START_TEST(blocks_that_cannot_be_made)
{
    run(512, 64, co_limits);
}
END_TEST

static uint64_t found_first[64], found_count[64];
static unsigned founds;

static void found(struct qcow2 *q, uint64_t first, uint64_t count)
{
    (void)q;
    ck_assert_uint_lt(founds, 64);
    found_first[founds] = first;
    found_count[founds++] = count;
}

static void co_scan(struct rig *rig)
{
    uint64_t next;
    co_claim(rig, 40, 2, 40, 2);
    co_claim(rig, 45, 1, 45, 1);
    founds = 0;
    int ret = co_refcount_scan(rig->q, 38, found, &next);
    ck_assert_int_eq(ret, 0);
    ck_assert_uint_eq(next, rig->q->geo.slice_refcounts);
    ck_assert_uint_eq(founds, 3);
    ck_assert_uint_eq(found_first[0], 38);
    ck_assert_uint_eq(found_count[0], 2);
    ck_assert_uint_eq(found_first[1], 42);
    ck_assert_uint_eq(found_count[1], 3);
    ck_assert_uint_eq(found_first[2], 46);
    ck_assert_uint_eq(found_count[2], next - 46);

    founds = 0;
    uint64_t beyond = rig->q->geo.refblock_entries * 3;
    ret = co_refcount_scan(rig->q, beyond + 5, found, &next);
    ck_assert_int_eq(ret, 0);
    ck_assert_uint_eq(founds, 0);
    ck_assert_uint_eq(next, beyond + rig->q->geo.refblock_entries);
}

START_TEST(scan_tells_free_runs)
{
    run(65536, 16, co_scan);
    run(4096, 1, co_scan);
    run(65536, 64, co_scan);
}
END_TEST

static void co_damage(struct rig *rig)
{
    int ret = co_refcount_down(rig->q, 60, 2);
    ck_assert_int_eq(ret, 0);
    ck_assert(rig_logged(rig, "refcount of cluster 0x3c0000 is 0, but it was in use"));
    ck_assert(rig_logged(rig, "refcount of cluster 0x3d0000 is 0"));
    ck_assert_uint_eq(co_count(rig, 60), 0);
    ret = co_refcount_down(rig->q, rig->q->geo.refblock_entries * 2, 1);
    ck_assert_int_eq(ret, 0);
    ck_assert(rig_logged(rig, "was in use without a refcount block"));

    /* Metadata that counts 0 is not claimed. */
    metamap_add(&rig->q->metamap, 70);
    metamap_add(&rig->q->metamap, rig->q->geo.refblock_entries * 2);
    co_claim(rig, 70, 2, 71, 1);
    ck_assert(rig_logged(rig, "refcount of cluster 0x460000 is 0, but it holds metadata"));
    co_claim(rig, rig->q->geo.refblock_entries * 2, 1, rig->q->geo.refblock_entries * 2 + 1, 0);
    ck_assert(rig_logged(rig, "has no refcount block"));
}

START_TEST(lying_counts_are_damage)
{
    run(65536, 16, co_damage);
}
END_TEST

static void co_errors(struct rig *rig)
{
    uint64_t first = 50, claimed, count, same, next;
    co_rig_close(rig);
    co_rig_open(rig);
    rig_fail(rig, RIG_READ, RIG_REFBLOCK, 0, -EIO);
    int ret = co_refcount_claim(rig->q, &first, 1, &claimed);
    ck_assert_int_eq(ret, -EIO);
    ret = co_refcount_down(rig->q, 50, 1);
    ck_assert_int_eq(ret, -EIO);
    ret = co_refcount_run(rig->q, 50, 1, &count, &same);
    ck_assert_int_eq(ret, -EIO);
    ret = co_refcount_scan(rig->q, 50, found, &next);
    ck_assert_int_eq(ret, -EIO);
}

START_TEST(unreadable_counts)
{
    run(65536, 16, co_errors);
}
END_TEST

int main(void)
{
    Suite *suite = suite_create("refcount");
    TCase *tcase = tcase_create("refcount");
    tcase_set_timeout(tcase, 30);
    tcase_add_test(tcase, claims_a_prefix_of_what_is_free);
    tcase_add_test(tcase, blocks_are_made_where_they_are_needed);
    tcase_add_test(tcase, blocks_that_cannot_be_made);
    tcase_add_test(tcase, scan_tells_free_runs);
    tcase_add_test(tcase, lying_counts_are_damage);
    tcase_add_test(tcase, unreadable_counts);
    suite_add_tcase(suite, tcase);
    return rig_main(suite);
}
