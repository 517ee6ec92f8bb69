/* SPDX-License-Identifier: BSD-2-Clause */
/*
 * The order of a commit, step by step, as the disk sees it; who shares a commit with whom; and what
 * follows when a step fails. In the scripts, R is a refcount block, T the refcount table, H the
 * header, 2 an L2 table, 1 the L1 table, F an fsync.
 */
#include "qcow2/test_rig.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "base/bytes.h"
#include "base/limits.h"
#include "qcow2/commit.h"

#define CLUSTER 65536U

static void run(rig_body *body)
{
    struct rig rig;
    rig_init(&rig, 1);
    rig_run(&rig, body);
    rig_free(&rig);
}

/* O1, O2: counts and data, fsync, mappings, fsync. A mapping alone needs no count. */
static void co_waves(struct rig *rig)
{
    co_rig_write(rig, 0, CLUSTER, 1);
    ck_assert_str_eq(rig_script(rig), "zz"); /* the new L2 table, blank, and space for L1 */
    rig_forget(rig);
    co_rig_flush(rig);
    ck_assert_str_eq(rig_script(rig), "RF21F");

    rig_forget(rig);
    co_rig_write(rig, CLUSTER, CLUSTER, 1);
    co_rig_flush(rig);
    ck_assert_str_eq(rig_script(rig), "RF2F");

    rig_forget(rig);
    co_rig_trim(rig, 0, CLUSTER);
    ck_assert_str_eq(rig_script(rig), "");
    co_rig_flush(rig);
    ck_assert_str_eq(rig_script(rig), "F2F");
}

START_TEST(waves_come_in_order)
{
    run(co_waves);
}
END_TEST

static void co_one_fsync(struct rig *rig)
{
    co_rig_write(rig, 0, CLUSTER, 1);
    co_rig_flush(rig);
    rig_forget(rig);
    co_rig_flush(rig);
    ck_assert_str_eq(rig_script(rig), "F");
    co_rig_write(rig, 100, 1000, 2);
    co_rig_flush(rig);
    ck_assert_str_eq(rig_script(rig), "FF");
    /* Counts that went down hold nobody up: the next commit that must take them takes them. */
    co_rig_trim(rig, 0, CLUSTER);
    co_rig_flush(rig);
    co_sleep_ns(rig->world, 100000000);
    rig_forget(rig);
    co_rig_flush(rig);
    ck_assert_str_eq(rig_script(rig), "F");
    ck_assert_uint_gt(rig->q->cache.dirty_count[SLICE_REFCOUNT], 0);
}

START_TEST(clean_mapping_is_one_fsync)
{
    run(co_one_fsync);
}
END_TEST

/* The timer commits what nobody flushes, counts too; and then rests. */
static void co_timer(struct rig *rig)
{
    co_rig_write(rig, 0, CLUSTER, 1);
    rig_forget(rig);
    co_sleep_ns(rig->world, 4900000000);
    ck_assert_str_eq(rig_script(rig), "");
    co_sleep_ns(rig->world, 1000000000);
    ck_assert_str_eq(rig_script(rig), "RF21F");
    rig_forget(rig);
    co_rig_trim(rig, 0, CLUSTER);
    co_sleep_ns(rig->world, 20000000000);
    ck_assert_str_eq(rig_script(rig), "F2FpRF");
    ck_assert(!rig->q->commit.timer_armed);
}

START_TEST(timer_commits_what_nobody_flushes)
{
    run(co_timer);
}
END_TEST

/* Small refcount blocks: a cluster holds 64 counts, the table names 128 blocks. */
static void small_blocks(struct rig *rig)
{
    rig_init(rig, 2);
    rig->create.cluster_bytes = 512;
    rig->create.refcount_bits = 64;
    rig->create.size_bytes = 4 * MIB;
}

/* O1: a new block is durable before the table names it, and that before any mapping. */
static void co_new_block(struct rig *rig)
{
    co_rig_flush(rig);
    rig_forget(rig);
    co_rig_write(rig, 0, 100 * 512, 1);
    co_rig_flush(rig);
    const char *script = rig_script(rig);
    while (*script == 'z') {
        script++;
    }
    ck_assert_str_eq(script, "RFTF21F");
}

START_TEST(new_refcount_block_takes_a_wave_of_its_own)
{
    struct rig rig;
    small_blocks(&rig);
    rig_run(&rig, co_new_block);
    rig_free(&rig);
}
END_TEST

/* Writes so much that the refcount table has to move; nothing is committed yet. */
static void co_outgrow(struct rig *rig)
{
    uint64_t before = rig->q->header.reftable_clusters;
    co_rig_write(rig, 0, 4 * MIB, 7);
    ck_assert_uint_gt(rig->q->reftable.count, before * 512 / 8);
    rig_forget(rig);
}

static void co_move(struct rig *rig)
{
    host_off old = rig->q->header.reftable_offset;
    co_outgrow(rig);
    co_rig_flush(rig);
    const char *script = rig_script(rig);
    while (*script == 'z') {
        script++;
    }
    ck_assert_str_eq(script, "RFTFHF21F");
    ck_assert_uint_ne(rig->q->header.reftable_offset.bytes, old.bytes);
    co_rig_close(rig);
    co_rig_open(rig);
    ck_assert_uint_gt(rig->q->reftable.count, 128);
    co_rig_expect(rig, 0, 4 * MIB, 7);
}

START_TEST(refcount_table_moves_when_it_is_full)
{
    struct rig rig;
    small_blocks(&rig);
    rig.options.cache_bytes = 4 * MIB;
    rig_run(&rig, co_move);
    rig_free(&rig);
}
END_TEST

/* The old table's place is free for others, when and only when the header names the new one. */
static void co_old_table(struct rig *rig)
{
    uint64_t old = host_cluster_index(&rig->q->geo, rig->q->header.reftable_offset);
    co_outgrow(rig);
    ck_assert(metamap_contains(&rig->q->metamap, old));
    co_rig_flush(rig);
    ck_assert(!metamap_contains(&rig->q->metamap, old));
    co_rig_flush(rig);
    co_sleep_ns(rig->world, 100000000);
    bool punched = false;
    for (unsigned i = 0; i < rig->event_count; i++) {
        const struct rig_event *event = &rig->events[i];
        punched |= event->call == RIG_PUNCH && event->offset <= old * 512 &&
                   old * 512 < event->offset + event->len;
    }
    ck_assert(punched);
}

START_TEST(old_refcount_table_is_freed)
{
    struct rig rig;
    small_blocks(&rig);
    rig.options.cache_bytes = 4 * MIB;
    rig_run(&rig, co_old_table);
    rig_free(&rig);
}
END_TEST

/* Each step of a commit, failed: nothing more is accepted, and what is on the disk is sound. */
static const struct failing_step {
    enum rig_call call;
    char place;
    unsigned skip;
    const char *says;
} failing_steps[] = {
    {RIG_WRITE, RIG_REFBLOCK, 0, "writing refcount blocks"},
    {RIG_WRITE, RIG_REFBLOCK, 3, "writing refcount blocks"},
    {RIG_FLUSH, 0, 0, "fsync"},
    {RIG_WRITE, RIG_REFTABLE, 0, "writing the refcount table"},
    {RIG_FLUSH, 0, 1, "fsync"},
    {RIG_WRITE, RIG_HEADER, 0, "writing the header"},
    {RIG_FLUSH, 0, 2, "fsync"},
    {RIG_WRITE, RIG_L2, 0, "writing L2 tables"},
    {RIG_WRITE, RIG_L2, 2, "writing L2 tables"},
    {RIG_WRITE, RIG_L1, 0, "writing the L1 table"},
    {RIG_WRITE, RIG_L1, 1, "writing the L1 table"},
    {RIG_FLUSH, 0, 3, "fsync"},
};

/* A file that cannot be extended over what was reserved. */
static void co_failing_extension(struct rig *rig)
{
    co_rig_write(rig, 0, 100, 7);
    rig_fail(rig, RIG_TRUNCATE, 0, 0, -EIO);
    int ret = rig->image->ops->co_flush(rig->image);
    ck_assert_int_eq(ret, -EIO);
    ck_assert_msg(rig_logged(rig, "extending the file"), "%s", rig->log);
    rig->fail_with = 0;
    ret = co_rig_end(rig);
    ck_assert_int_eq(ret, -EIO);
}

START_TEST(file_that_cannot_grow_ends_all_changes)
{
    struct rig rig;
    small_blocks(&rig);
    rig_run(&rig, co_failing_extension);
    rig_free(&rig);
}
END_TEST

/*
 * However the space runs out while the refcount table has to grow, it is a write that fails: what
 * was acknowledged can be committed.
 */
static void co_full_disk(struct rig *rig)
{
    static uint8_t bytes[4 * KIB];
    uint64_t space = *(uint64_t *)rig->arg;
    uint64_t at = 0;

    memset(bytes, 7, sizeof(bytes));
    sim_set_space(rig->world, space);
    /* To the last sector. */
    for (size_t len = sizeof(bytes); len >= 512;) {
        int ret = rig->image->ops->co_write(rig->image, at, bytes, len, 0);
        ck_assert(ret == 0 || ret == -ENOSPC);
        at += ret == 0 ? len : 0;
        len /= ret == 0 ? 1 : 2;
    }
    co_rig_flush(rig);
    co_rig_close(rig);
    co_rig_open(rig);
    co_rig_expect(rig, 0, at, 7);
    sim_set_space(rig->world, 0);
}

START_TEST(a_full_disk_can_be_committed)
{
    /* The table of 128 entries has to grow where so many blocks count 64 clusters each. */
    for (uint64_t space = 4000 * KIB; space < 4200 * KIB; space += 33 * 512) {
        struct rig rig;
        small_blocks(&rig);
        rig.options.cache_bytes = 4 * MIB;
        rig.arg = &space;
        rig_run(&rig, co_full_disk);
        rig_free(&rig);
    }
}
END_TEST

static void co_failing(struct rig *rig)
{
    const struct failing_step *step = rig->arg;
    uint64_t corruptions, leaks;

    co_outgrow(rig);
    rig_fail(rig, step->call, step->place, step->skip, -ENOSPC);
    int ret = rig->image->ops->co_flush(rig->image);
    ck_assert_int_eq(ret, -EIO);
    ck_assert_msg(rig_logged(rig, step->says) && rig_logged(rig, "no more writes are accepted"),
                  "%s", rig->log);
    rig->fail_with = 0;

    /* O8 */
    unsigned flushes = rig_count(rig, RIG_FLUSH);
    ret = rig->image->ops->co_flush(rig->image);
    ck_assert_int_eq(ret, -EIO);
    ck_assert_uint_eq(rig_count(rig, RIG_FLUSH), flushes);
    uint8_t byte = 0;
    ret = rig->image->ops->co_write(rig->image, 0, &byte, 1, 0);
    ck_assert_int_eq(ret, -EIO);
    ret = rig->image->ops->co_zero(rig->image, 0, 512, IMAGE_NO_HOLE);
    ck_assert_int_eq(ret, -EIO);
    ret = rig->image->ops->co_trim(rig->image, 0, 512, 0);
    ck_assert_int_eq(ret, -EIO);
    co_rig_expect(rig, 0, 4 * MIB, 7);
    co_sleep_ns(rig->world, 60000000000);
    ck_assert_uint_eq(rig_count(rig, RIG_FLUSH), flushes);
    ck_assert_uint_eq(rig_count(rig, RIG_PUNCH), 0);
    ret = co_rig_end(rig);
    ck_assert_int_eq(ret, -EIO);
    co_rig_check(rig, &corruptions, &leaks);
    ck_assert_msg(corruptions == 0, "%s", rig->log);
}

START_TEST(each_failing_step_ends_all_changes)
{
    struct rig rig;
    small_blocks(&rig);
    rig.options.cache_bytes = 4 * MIB;
    rig.arg = (void *)(uintptr_t)&failing_steps[_i];
    rig_run(&rig, co_failing);
    rig_free(&rig);
}
END_TEST

/* Who asks while a commit runs shares the next one: its snapshot may have been taken before. */
static void co_flush_beside(struct rig *rig)
{
    co_rig_flush(rig);
}

static void co_group(struct rig *rig)
{
    co_rig_write(rig, 0, CLUSTER, 1);
    rig_forget(rig);
    for (int i = 0; i < 10; i++) {
        rig_spawn(rig, co_flush_beside);
    }
    co_rig_join(rig);
    ck_assert_str_eq(rig_script(rig), "RF21FF");
    ck_assert_uint_eq(rig->q->commit.finished, rig->q->commit.started);
}

START_TEST(flushes_share_commits)
{
    run(co_group);
}
END_TEST

/* O4: a write that completed while a commit ran is not covered by that commit. */
static void co_late_writer(struct rig *rig)
{
    while (!rig->q->commit.running) {
        co_sleep_ns(rig->world, 1000);
    }
    co_rig_write(rig, CLUSTER, CLUSTER, 2);
    co_rig_flush(rig);
    ck_assert(!commit_mapping_dirty(rig->q));
}

/* One moment's state: the second cluster's entry came after the snapshot. */
static void look_at_l2(struct rig *rig, const struct rig_event *event, const struct iovec *iov,
                       int iov_count)
{
    (void)iov_count;
    if (event->call == RIG_WRITE && event->place == RIG_L2) {
        uint64_t *seen = rig->arg;
        seen[0]++;
        seen[seen[0]] = get_be64((const uint8_t *)iov[0].iov_base + 8);
    }
}

static void co_snapshot(struct rig *rig)
{
    uint64_t seen[8] = {0};
    rig->arg = seen;
    rig->look = look_at_l2;
    co_rig_write(rig, 0, CLUSTER, 1);
    rig_spawn(rig, co_flush_beside);
    rig_spawn(rig, co_late_writer);
    co_rig_join(rig);
    rig->look = NULL;
    ck_assert_uint_eq(seen[0], 2);
    ck_assert_uint_eq(seen[1], 0);
    ck_assert_uint_ne(seen[2], 0);
}

START_TEST(commit_writes_one_moment)
{
    struct rig rig;
    for (uint64_t seed = 1; seed < 20; seed++) {
        rig_init(&rig, seed);
        rig_run(&rig, co_snapshot);
        rig_free(&rig);
    }
}
END_TEST

/* Dirty slices stay under their share of the cache: commits happen that nobody asked for. */
static void co_room(struct rig *rig)
{
    for (uint64_t i = 0; i < 200; i++) {
        co_rig_write(rig, i * 20 * 1024, 512, 3);
        ck_assert_uint_le(rig->q->cache.dirty_count[SLICE_L2] +
                              rig->q->cache.dirty_count[SLICE_REFCOUNT],
                          rig->q->cache.capacity * 3 / 4);
    }
    ck_assert_uint_gt(rig_count(rig, RIG_FLUSH), 4);
}

START_TEST(full_cache_commits)
{
    struct rig rig;
    small_blocks(&rig);
    rig.options.cache_bytes = 1;
    rig_run(&rig, co_room);
    rig_free(&rig);
}
END_TEST

/* O9: close leaves nothing behind, also what was freed a moment before. */
static void co_close_frees(struct rig *rig)
{
    co_rig_write(rig, 0, 10 * CLUSTER, 1);
    co_rig_flush(rig);
    co_rig_trim(rig, 0, 10 * CLUSTER);
    rig_forget(rig);
    unsigned before = rig->event_count;
    co_rig_close(rig);
    ck_assert_uint_eq(before, 0);
    ck_assert_uint_ge(rig_count(rig, RIG_PUNCH), 1);
    uint64_t corruptions, leaks;
    co_rig_check(rig, &corruptions, &leaks);
    ck_assert_uint_eq(corruptions + leaks, 0);
}

START_TEST(close_waits_for_the_quarantine)
{
    run(co_close_frees);
}
END_TEST

int main(void)
{
    Suite *suite = suite_create("commit");
    TCase *tcase = tcase_create("commit");
    tcase_set_timeout(tcase, 60);
    tcase_add_test(tcase, file_that_cannot_grow_ends_all_changes);
    tcase_add_test(tcase, a_full_disk_can_be_committed);
    tcase_add_test(tcase, waves_come_in_order);
    tcase_add_test(tcase, clean_mapping_is_one_fsync);
    tcase_add_test(tcase, timer_commits_what_nobody_flushes);
    tcase_add_test(tcase, new_refcount_block_takes_a_wave_of_its_own);
    tcase_add_test(tcase, refcount_table_moves_when_it_is_full);
    tcase_add_test(tcase, old_refcount_table_is_freed);
    tcase_add_loop_test(tcase, each_failing_step_ends_all_changes, 0,
                        (int)ARRAY_LEN(failing_steps));
    tcase_add_test(tcase, flushes_share_commits);
    tcase_add_test(tcase, commit_writes_one_moment);
    tcase_add_test(tcase, full_cache_commits);
    tcase_add_test(tcase, close_waits_for_the_quarantine);
    suite_add_tcase(suite, tcase);
    return rig_main(suite);
}
