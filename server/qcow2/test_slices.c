/* SPDX-License-Identifier: BSD-2-Clause */
/* The metadata cache alone, on a simulated disk: loading, eviction, and what a commit writes. */
#include "qcow2/slices.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "qcow2/test_rig.h"

#define SLICE  512U
#define SLICES 64U

static struct disk *disk;
static struct slice_cache cache;
static void (*cache_body)(struct rig *rig);

static host_off place(uint64_t index)
{
    return (host_off){index * SLICE};
}

/* A file whose slice i is filled with i. */
static void co_with_cache(struct rig *rig)
{
    struct errtext err = {""};
    uint8_t *bytes = malloc(SLICES * SLICE);
    for (unsigned i = 0; i < SLICES; i++) {
        memset(bytes + i * SLICE, (int)i, SLICE);
    }
    ck_assert_int_eq(sim_file_put(rig->world, "tables", bytes, SLICES * SLICE), 0);
    free(bytes);
    int ret = rig->world->ops->co_disk_open(rig->world, "tables", DISK_WRITABLE, &disk, &err);
    ck_assert_msg(ret == 0, "%s", err.text);
    ck_assert_int_eq(slice_cache_init(&cache, disk, SLICE, 4), 0);
    cache_body(rig);
    slice_cache_free(&cache);
    slice_cache_free(&cache); /* of a cache that is empty already */
    disk_close(disk);
}

static void run(rig_body *body)
{
    struct rig rig;
    rig_init(&rig, 5);
    cache_body = body;
    rig_run_bare(&rig, co_with_cache);
    rig_free(&rig);
}

static struct slice *co_get(uint64_t index)
{
    struct slice *slice = NULL;
    int ret = co_slice_get(&cache, SLICE_L2, place(index), &slice);
    ck_assert_int_eq(ret, 0);
    ck_assert_uint_eq(slice->offset.bytes, index * SLICE);
    return slice;
}

static void co_evict(struct rig *rig)
{
    for (uint64_t i = 0; i < 4; i++) {
        struct slice *slice = co_get(i);
        ck_assert_uint_eq(slice->bytes[SLICE - 1], i);
    }
    ck_assert_uint_eq(sim_counts(rig->world).reads, 4);
    co_get(1);
    ck_assert_uint_eq(sim_counts(rig->world).reads, 4);
    co_get(4); /* all are referenced: the oldest goes, the others lose their second chance */
    ck_assert_ptr_null(slice_peek(&cache, place(0)));
    ck_assert_ptr_nonnull(slice_peek(&cache, place(1)));
    co_get(5); /* 1 was used just now, 2 was not */
    ck_assert_ptr_nonnull(slice_peek(&cache, place(1)));
    ck_assert_ptr_null(slice_peek(&cache, place(2)));
    ck_assert_uint_eq(cache.count, 4);

    slice_cache_set_capacity(&cache, 2);
    co_get(6);
    ck_assert_uint_eq(cache.count, 2);
}

START_TEST(clean_slices_get_a_second_chance)
{
    run(co_evict);
}
END_TEST

static void co_dirty_stay(struct rig *rig)
{
    (void)rig;
    for (uint64_t i = 0; i < 6; i++) {
        struct slice *slice = co_get(i);
        ck_assert_int_eq(slice_modify(&cache, slice), 0);
        slice->bytes[0] = 0xee;
    }
    ck_assert_uint_eq(cache.dirty_count[SLICE_L2], 6);
    co_get(10);
    co_get(11);
    for (uint64_t i = 0; i < 6; i++) {
        struct slice *slice = slice_peek(&cache, place(i));
        ck_assert(slice && slice->bytes[0] == 0xee);
    }
}

START_TEST(dirty_slices_are_not_evicted)
{
    run(co_dirty_stay);
}
END_TEST

static int results[8];
static unsigned result_count;

static void co_loader(struct rig *rig)
{
    (void)rig;
    struct slice *slice;
    results[result_count++] = co_slice_get(&cache, SLICE_L2, place(9), &slice);
}

static void co_load_once(struct rig *rig)
{
    result_count = 0;
    for (int i = 0; i < 5; i++) {
        rig_spawn(rig, co_loader);
    }
    co_rig_join(rig);
    ck_assert_uint_eq(result_count, 5);
    for (unsigned i = 0; i < result_count; i++) {
        ck_assert_int_eq(results[i], 0);
    }
    ck_assert_uint_eq(sim_counts(rig->world).reads, 1);
}

START_TEST(who_waits_for_a_load_shares_it)
{
    run(co_load_once);
}
END_TEST

static void co_load_fails(struct rig *rig)
{
    struct sim_faults faults = {.read_eio_ppm = 1000000};
    sim_set_faults(rig->world, &faults);
    result_count = 0;
    for (int i = 0; i < 3; i++) {
        rig_spawn(rig, co_loader);
    }
    co_rig_join(rig);
    for (unsigned i = 0; i < result_count; i++) {
        ck_assert_int_eq(results[i], -EIO);
    }
    ck_assert_uint_eq(cache.count, 0);
    sim_set_faults(rig->world, &(struct sim_faults){0});
    ck_assert_uint_eq(co_get(9)->bytes[0], 9);
}

START_TEST(failed_load_leaves_nothing)
{
    run(co_load_fails);
}
END_TEST

static void co_kinds(struct rig *rig)
{
    (void)rig;
    struct slice *slice;
    co_get(3);
    int ret = co_slice_get(&cache, SLICE_REFCOUNT, place(3), &slice);
    ck_assert_int_eq(ret, -EUCLEAN);
    ck_assert_int_eq(slice_create_zeroed(&cache, SLICE_REFCOUNT, place(7), &slice), 0);
    ck_assert_uint_eq(slice->bytes[0] + slice->bytes[SLICE - 1], 0);

    /* A new owner starts afresh; what is dirty is not forgotten. */
    slice = slice_peek(&cache, place(7));
    ck_assert_int_eq(slice_modify(&cache, slice), 0);
    slice_forget_range(&cache, place(0), 8 * SLICE);
    ck_assert_ptr_null(slice_peek(&cache, place(3)));
    ck_assert_ptr_nonnull(slice_peek(&cache, place(7)));
}

START_TEST(a_place_has_one_kind)
{
    run(co_kinds);
}
END_TEST

static uint8_t file_byte(struct rig *rig, uint64_t index)
{
    struct test_image file = rig_get(rig, "tables");
    uint8_t byte = file.bytes[index * SLICE];
    test_image_free(&file);
    return byte;
}

static void co_change(uint64_t index, uint8_t byte)
{
    struct slice *slice = co_get(index);
    ck_assert_int_eq(slice_modify(&cache, slice), 0);
    memset(slice->bytes, byte, SLICE);
}

static void co_commit_slices(struct rig *rig)
{
    static const uint64_t order[] = {12, 3, 11, 10, 2};
    for (unsigned i = 0; i < 5; i++) {
        co_change(order[i], 0xaa);
    }
    ck_assert_uint_eq(slice_commit_begin(&cache, SLICE_L2), 5);
    ck_assert_uint_eq(slice_commit_begin(&cache, SLICE_REFCOUNT), 0);
    ck_assert_uint_eq(cache.dirty_count[SLICE_L2], 0);

    /* Changed while its old state is being committed: once for the copy, then in place. */
    co_change(11, 0xbb);
    co_change(11, 0xcc);
    uint64_t writes = sim_counts(rig->world).writes;
    int ret = co_slice_commit_write(&cache, SLICE_L2);
    ck_assert_int_eq(ret, 0);
    ck_assert_uint_eq(sim_counts(rig->world).writes - writes, 2); /* 2-3 and 10-12 */
    for (unsigned i = 0; i < 5; i++) {
        ck_assert_uint_eq(file_byte(rig, order[i]), 0xaa);
    }
    ck_assert_uint_eq(file_byte(rig, 4), 4);
    ck_assert_uint_eq(slice_peek(&cache, place(11))->bytes[5], 0xcc);
    ck_assert_uint_eq(cache.dirty_count[SLICE_L2], 1);

    ck_assert_uint_eq(slice_commit_begin(&cache, SLICE_L2), 1);
    ret = co_slice_commit_write(&cache, SLICE_L2);
    ck_assert_int_eq(ret, 0);
    ck_assert_uint_eq(file_byte(rig, 11), 0xcc);
    ck_assert_uint_eq(slice_commit_begin(&cache, SLICE_L2), 0);
}

START_TEST(commit_writes_runs_of_one_moment)
{
    run(co_commit_slices);
}
END_TEST

static void co_commit_fails(struct rig *rig)
{
    co_change(1, 0xaa);
    co_change(9, 0xaa);
    slice_commit_begin(&cache, SLICE_L2);
    sim_set_faults(rig->world, &(struct sim_faults){.write_eio_ppm = 1000000});
    int ret = co_slice_commit_write(&cache, SLICE_L2);
    ck_assert_int_eq(ret, -EIO);
    ck_assert_uint_eq(slice_peek(&cache, place(9))->bytes[0], 0xaa);
    ck_assert(slice_peek(&cache, place(9))->committing);
}

START_TEST(failed_commit_keeps_the_slices)
{
    run(co_commit_fails);
}
END_TEST

/* Slabs of both sizes: no two slices share bytes. */
static void co_fill_a_huge_page(struct rig *rig)
{
    const unsigned huge = 2U * 1024U * 1024U / SLICE;
    const unsigned many = 2 * huge + SLICES;
    unsigned huge_slabs = 0;
    struct slice *slice;
    (void)rig;

    slice_cache_set_capacity(&cache, many);
    for (unsigned i = 0; i < many; i++) {
        ck_assert_int_eq(slice_create_zeroed(&cache, SLICE_L2, place(SLICES + i), &slice), 0);
        memset(slice->bytes, (int)(i % 251), SLICE);
    }
    for (unsigned i = 0; i < cache.slab_count; i++) {
        bool is_huge = cache.slabs[i].slices == huge;
        huge_slabs += is_huge;
        ck_assert(!is_huge || (uintptr_t)cache.slabs[i].bytes % (2U * 1024U * 1024U) == 0);
    }
    ck_assert_uint_eq(huge_slabs, 1);
    ck_assert_uint_eq(cache.slab_slices, many); /* the budget, and no more */
    for (unsigned i = 0; i < many; i++) {
        slice = slice_peek(&cache, place(SLICES + i));
        ck_assert_ptr_nonnull(slice);
        ck_assert_uint_eq(slice->bytes[0], i % 251);
        ck_assert_uint_eq(slice->bytes[SLICE - 1], i % 251);
    }
}

START_TEST(a_large_cache_grows_by_huge_pages)
{
    run(co_fill_a_huge_page);
}
END_TEST

START_TEST(budget_gives_a_capacity)
{
    ck_assert_uint_eq(slice_cache_capacity(4096, 0), 32);
    uint32_t capacity = slice_cache_capacity(4096, 32U << 20);
    ck_assert_uint_gt(capacity, 7000);
    ck_assert_uint_le(capacity, (32U << 20) / 4096);
    ck_assert_uint_eq(slice_cache_capacity(512, UINT64_MAX), 1U << 24);
}
END_TEST

int main(void)
{
    Suite *suite = suite_create("slices");
    TCase *tcase = tcase_create("slices");
    tcase_add_test(tcase, clean_slices_get_a_second_chance);
    tcase_add_test(tcase, dirty_slices_are_not_evicted);
    tcase_add_test(tcase, who_waits_for_a_load_shares_it);
    tcase_add_test(tcase, failed_load_leaves_nothing);
    tcase_add_test(tcase, a_place_has_one_kind);
    tcase_add_test(tcase, commit_writes_runs_of_one_moment);
    tcase_add_test(tcase, failed_commit_keeps_the_slices);
    tcase_add_test(tcase, a_large_cache_grows_by_huge_pages);
    tcase_add_test(tcase, budget_gives_a_capacity);
    suite_add_tcase(suite, tcase);
    return rig_main(suite);
}
