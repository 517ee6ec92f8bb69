/* SPDX-License-Identifier: BSD-2-Clause */
/* The set of free runs by itself; then where clusters come from, in an image. */
#include "qcow2/alloc.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "qcow2/refcount.h"
#include "qcow2/test_rig.h"

#define CLUSTER 65536U

static void expect_runs(const struct alloc *alloc, const struct free_run *runs, unsigned count)
{
    ck_assert_uint_eq(alloc->run_count, count);
    for (unsigned i = 0; i < count; i++) {
        ck_assert_uint_eq(alloc->runs[i].first, runs[i].first);
        ck_assert_uint_eq(alloc->runs[i].count, runs[i].count);
        ck_assert_int_eq(alloc->runs[i].reads_zero, runs[i].reads_zero);
    }
}

#define EXPECT(alloc, ...)                                           \
    do {                                                             \
        const struct free_run expected[] = {__VA_ARGS__};            \
        expect_runs(alloc, expected, (unsigned)ARRAY_LEN(expected)); \
    } while (0)

START_TEST(runs_merge_and_never_overlap)
{
    static struct alloc alloc;
    alloc_init(&alloc, 1000, true);
    alloc_add_free(&alloc, 10, 5, false);
    alloc_add_free(&alloc, 30, 5, false);
    EXPECT(&alloc, {10, 5, false}, {30, 5, false});
    alloc_add_free(&alloc, 15, 2, false);
    EXPECT(&alloc, {10, 7, false}, {30, 5, false});
    alloc_add_free(&alloc, 28, 2, false);
    EXPECT(&alloc, {10, 7, false}, {28, 7, false});
    alloc_add_free(&alloc, 5, 40, false); /* only the gaps are news */
    EXPECT(&alloc, {5, 40, false});
    alloc_add_free(&alloc, 45, 1, true); /* of another kind: not merged */
    EXPECT(&alloc, {5, 40, false}, {45, 1, true});
    alloc_add_free(&alloc, 10, 20, true); /* what is known is known */
    EXPECT(&alloc, {5, 40, false}, {45, 1, true});
    alloc_add_free(&alloc, 4, 1, true);
    EXPECT(&alloc, {4, 1, true}, {5, 40, false}, {45, 1, true});
    alloc_add_free(&alloc, 47, 1, true);
    alloc_add_free(&alloc, 46, 1, true);
    EXPECT(&alloc, {4, 1, true}, {5, 40, false}, {45, 3, true});
}
END_TEST

START_TEST(full_set_forgets_the_shortest)
{
    static struct alloc alloc;
    alloc_init(&alloc, 100, true);
    alloc.scan_next = 90;
    for (uint64_t i = 0; i < FREE_RUNS_MAX; i++) {
        alloc_add_free(&alloc, 1000 + i * 10, i == 700 ? 1 : 3, false);
    }
    ck_assert_uint_eq(alloc.run_count, FREE_RUNS_MAX);
    alloc_add_free(&alloc, 50, 2, false);
    ck_assert_uint_eq(alloc.run_count, FREE_RUNS_MAX);
    ck_assert_uint_eq(alloc.runs[0].first, 50);
    for (unsigned i = 0; i < alloc.run_count; i++) {
        ck_assert_uint_ne(alloc.runs[i].first, 8000);
    }
    /* The scan will come by it again. */
    ck_assert_uint_eq(alloc.scan_next, 90);
    ck_assert_uint_ge(alloc.scan_end, 8001);
}
END_TEST

/* The images end with leaks: nothing is published here. */
static void run(rig_body *body)
{
    struct rig rig;
    rig_init(&rig, 8);
    rig.skip_check = true;
    rig_run(&rig, body);
    rig_free(&rig);
}

static uint64_t co_take(struct rig *rig, uint64_t count, uint64_t *got, bool *reads_zero)
{
    uint64_t first;
    int ret = co_alloc(rig->q, count, &first, got, reads_zero);
    ck_assert_int_eq(ret, 0);
    return first;
}

static void co_sources(struct rig *rig)
{
    struct alloc *alloc = &rig->q->alloc;
    uint64_t got;
    bool zero;

    uint64_t first = co_take(rig, 20, &got, &zero);
    ck_assert_uint_eq(got, 20);
    ck_assert(zero); /* past the old end of the file */
    ck_assert_uint_eq(alloc->append_next, first + 20);

    co_alloc_undo(rig->q, first + 3, 2);
    co_alloc_undo(rig->q, first + 10, 6);
    uint64_t a = co_take(rig, 4, &got, &zero); /* the first that is long enough */
    ck_assert_uint_eq(a, first + 10);
    ck_assert(!zero);
    a = co_take(rig, 5, &got, &zero); /* none is: the longest */
    ck_assert_uint_eq(got, 2);
    ck_assert_uint_eq(a, first + 3);
    a = co_take(rig, 5, &got, &zero);
    ck_assert_uint_eq(a, first + 14);
    ck_assert_uint_eq(got, 2);
    a = co_take(rig, 5, &got, &zero);
    ck_assert_uint_eq(a, first + 20);
    ck_assert_uint_eq(got, 5);

    /* Hints that lie: what is taken is not handed out again. */
    alloc_add_free(alloc, first, 10, true);
    a = co_take(rig, 3, &got, &zero);
    ck_assert_uint_ge(a, first + 25);
}

START_TEST(freed_runs_first_then_the_end)
{
    run(co_sources);
}
END_TEST

/* Free space that an earlier life left is found by the scan: the file does not grow. */
static void co_scan(struct rig *rig)
{
    co_rig_write(rig, 0, 40 * CLUSTER, 1);
    co_rig_flush(rig);
    co_rig_trim(rig, 3 * CLUSTER, 5 * CLUSTER);
    co_rig_trim(rig, 20 * CLUSTER, 10 * CLUSTER);
    co_rig_close(rig);
    co_rig_open(rig);
    uint64_t size = rig->q->disk->size_bytes;
    ck_assert_uint_eq(rig->q->alloc.run_count, 0);
    co_rig_write(rig, 20 * CLUSTER, 10 * CLUSTER, 2);
    co_rig_write(rig, 3 * CLUSTER, 5 * CLUSTER, 3);
    co_rig_flush(rig);
    ck_assert_uint_eq(rig->q->disk->size_bytes, size);
    co_rig_expect(rig, 20 * CLUSTER, 10 * CLUSTER, 2);
    co_rig_write(rig, 60 * CLUSTER, CLUSTER, 4);
    co_rig_flush(rig);
    ck_assert_uint_gt(rig->q->disk->size_bytes, size);
    rig->skip_check = false;
}

START_TEST(scan_finds_what_an_earlier_life_freed)
{
    run(co_scan);
}
END_TEST

static void co_scan_fails(struct rig *rig)
{
    uint64_t first, got;
    bool zero;
    co_rig_write(rig, 0, 4 * CLUSTER, 1);
    co_rig_close(rig);
    co_rig_open(rig);
    uint64_t end = rig->q->alloc.append_next;
    rig_fail(rig, RIG_READ, RIG_REFBLOCK, 0, -EIO);
    int ret = co_alloc(rig->q, 1, &first, &got, &zero);
    ck_assert_int_eq(ret, -EIO);
    /* The position at the end is given back when it cannot be counted. */
    rig->q->alloc.scan_next = rig->q->alloc.scan_end;
    ret = co_alloc(rig->q, 7, &first, &got, &zero);
    ck_assert_int_eq(ret, -EIO);
    ck_assert_uint_eq(rig->q->alloc.append_next, end);
    ret = co_alloc_contiguous(rig->q, 7, &first);
    ck_assert_int_eq(ret, -EIO);
    ck_assert_uint_eq(rig->q->alloc.append_next, end);
    co_alloc_undo(rig->q, end, 1);
    ck_assert(rig_logged(rig, "1 clusters at") && rig_logged(rig, "stay allocated without use"));
    rig->fail_with = 0;
    rig->skip_check = false;
}

START_TEST(unreadable_counts_allocate_nothing)
{
    run(co_scan_fails);
}
END_TEST

static void co_end_of_format(struct rig *rig)
{
    uint64_t first, got;
    bool zero;
    rig->q->alloc.append_next = (QCOW2_L2_OFFSET >> rig->q->geo.cluster_bits) - 1;
    int ret = co_alloc(rig->q, 10, &first, &got, &zero);
    ck_assert_int_eq(ret, -ENOSPC);
    ret = co_alloc_contiguous(rig->q, 10, &first);
    ck_assert_int_eq(ret, -ENOSPC);
    rig->q->alloc.append_next = UINT64_MAX >> 9;
    ret = co_alloc(rig->q, 10, &first, &got, &zero);
    ck_assert_int_eq(ret, -ENOSPC);
    rig->q->alloc.append_next = 64;
}

START_TEST(beyond_what_an_entry_can_name)
{
    run(co_end_of_format);
}
END_TEST

static void co_check_counted_once(struct qcow2 *q, uint64_t first, uint64_t count)
{
    for (uint64_t i = 0; i < count; i++) {
        uint64_t refcount, same;
        int ret = co_refcount_run(q, first + i, 1, &refcount, &same);
        ck_assert_int_eq(ret, 0);
        ck_assert_uint_eq(refcount, 1);
    }
    ck_assert_uint_eq(metamap_first_in(&q->metamap, first, count), first + count);
}

/* All of it or nothing, over regions without a refcount block and past what is taken. */
static void co_contiguous(struct rig *rig)
{
    struct qcow2 *q = rig->q;
    uint64_t border = round_up_to(q->alloc.append_next, 64) + 64;
    uint64_t first, claimed;
    q->alloc.append_next = border - 3;
    int ret = co_alloc_contiguous(q, 10, &first);
    ck_assert_int_eq(ret, 0);
    ck_assert_uint_eq(first, border - 3); /* the new blocks stand elsewhere */
    co_check_counted_once(q, first, 10);
    ret = co_alloc_contiguous(q, 200, &first); /* more than three blocks count */
    ck_assert_int_eq(ret, 0);
    co_check_counted_once(q, first, 200);
    /* Counted past the end of the file, by whomever. */
    uint64_t taken = q->alloc.append_next + 2;
    ret = co_refcount_claim(q, &taken, 1, &claimed);
    ck_assert_int_eq(ret, 0);
    ret = co_alloc_contiguous(q, 6, &first);
    ck_assert_int_eq(ret, 0);
    ck_assert(first > taken || first + 6 <= taken);
}

START_TEST(contiguous_clusters)
{
    struct rig rig;
    rig_init(&rig, 8);
    rig.create.cluster_bytes = 512;
    rig.create.refcount_bits = 64;
    rig.create.size_bytes = 65536;
    rig.skip_check = true;
    rig_run(&rig, co_contiguous);
    rig_free(&rig);
}
END_TEST

/* A block device has an end, keeps old bytes, and is free where nothing is counted yet. */
static void co_device(struct rig *rig)
{
    struct qcow2 *q = rig->q;
    uint64_t device_clusters = 1000, first, got;
    uint64_t taken = 0;
    bool zero;

    int ret = q->disk->ops->co_truncate(q->disk, device_clusters * 512);
    ck_assert_int_eq(ret, 0);
    q->disk->is_block_device = true;
    alloc_init(&q->alloc, device_clusters, false);
    for (;;) {
        ret = co_alloc(q, 7, &first, &got, &zero);
        if (ret < 0) {
            break;
        }
        ck_assert(!zero);
        ck_assert_uint_le(first + got, device_clusters);
        taken += got;
    }
    ck_assert_int_eq(ret, -ENOSPC);
    uint64_t metadata = q->metamap.count;
    ck_assert_uint_eq(taken + metadata, device_clusters);
    ret = co_alloc_extend_file(q);
    ck_assert_int_eq(ret, 0);
    ck_assert_uint_eq(rig_count(rig, RIG_TRUNCATE), 1);
}

START_TEST(block_device_is_used_to_its_end)
{
    struct rig rig;
    rig_init(&rig, 8);
    rig.create.cluster_bytes = 512;
    rig.create.refcount_bits = 64;
    rig.create.size_bytes = 65536;
    rig.skip_check = true;
    rig_run(&rig, co_device);
    rig_free(&rig);
}
END_TEST

int main(void)
{
    Suite *suite = suite_create("alloc");
    TCase *tcase = tcase_create("alloc");
    tcase_set_timeout(tcase, 30);
    tcase_add_test(tcase, runs_merge_and_never_overlap);
    tcase_add_test(tcase, full_set_forgets_the_shortest);
    tcase_add_test(tcase, freed_runs_first_then_the_end);
    tcase_add_test(tcase, scan_finds_what_an_earlier_life_freed);
    tcase_add_test(tcase, unreadable_counts_allocate_nothing);
    tcase_add_test(tcase, beyond_what_an_entry_can_name);
    tcase_add_test(tcase, contiguous_clusters);
    tcase_add_test(tcase, block_device_is_used_to_its_end);
    suite_add_tcase(suite, tcase);
    return rig_main(suite);
}
