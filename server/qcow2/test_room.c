/* SPDX-License-Identifier: BSD-2-Clause */
/* A disk without room: what is given back first, who waits for whom, and when it ends. */
#include "qcow2/room.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "base/limits.h"
#include "io/world.h"
#include "qcow2/test_rig.h"

#define CLUSTER 65536U
#define SPACE   (40U * CLUSTER)
#define SECOND  1000000000ULL

static int co_try_write(struct rig *rig, uint64_t cluster, int byte)
{
    static uint8_t bytes[CLUSTER];
    memset(bytes, byte, sizeof(bytes));
    return rig->image->ops->co_write(rig->image, cluster * CLUSTER, bytes, sizeof(bytes), 0);
}

/* Writes clusters from 0 on until there is no room; returns how many there are. */
static uint64_t co_fill(struct rig *rig)
{
    sim_set_space(rig->world, SPACE);
    for (uint64_t cluster = 0;; cluster++) {
        int ret = co_try_write(rig, cluster, 1);
        if (ret < 0) {
            ck_assert_int_eq(ret, -ENOSPC);
            ck_assert_uint_gt(cluster, 20);
            return cluster;
        }
    }
}

static void run_leaking(rig_body *body, bool leaks)
{
    struct rig rig;
    rig_init(&rig, 23);
    rig.skip_check = leaks;
    rig.create.size_bytes = 200 * CLUSTER;
    rig.options.commit_interval_ms = 3600000; /* nobody else commits */
    rig_run(&rig, body);
    rig_free(&rig);
}

static void run(rig_body *body)
{
    run_leaking(body, false);
}

/* Each of the ways to need room finds what a trim has freed, without a flush. */
static void co_trimmed(struct rig *rig)
{
    uint64_t end = co_fill(rig);
    for (int turn = 2; turn < 6; turn++) {
        co_rig_trim(rig, 0, end * CLUSTER);
        for (uint64_t cluster = 0; cluster < end; cluster++) {
            if (turn % 2) {
                co_rig_zero(rig, cluster * CLUSTER, CLUSTER, IMAGE_NO_HOLE);
            } else {
                co_rig_write(rig, cluster * CLUSTER, CLUSTER, turn);
            }
        }
        co_rig_expect(rig, 0, end * CLUSTER, turn % 2 ? 0 : turn);
        int ret = co_try_write(rig, end, 9);
        ck_assert_int_eq(ret, -ENOSPC);
    }
}

START_TEST(what_was_trimmed_is_room)
{
    run(co_trimmed);
}
END_TEST

/* Where nothing can be given back, the answer comes without a wait, and nothing has changed. */
static void co_full(struct rig *rig)
{
    uint64_t end = co_fill(rig);
    uint64_t before = world_now_ns(rig->world);
    int ret = co_try_write(rig, end, 2);
    ck_assert_int_eq(ret, -ENOSPC);
    ret = co_try_write(rig, 120, 2);
    ck_assert_int_eq(ret, -ENOSPC);
    ck_assert_uint_lt(world_now_ns(rig->world) - before, SECOND);
    ck_assert(!rig->q->alloc.tight && !rig->q->room_line.locked);
    co_rig_expect(rig, 120 * CLUSTER, CLUSTER, 0);
    co_rig_write(rig, 0, CLUSTER, 3); /* in place: needs no room */
}

START_TEST(full_is_told_at_once)
{
    run(co_full);
}
END_TEST

/* A request that began before the clusters were freed, and ends later: it may still read them. */
static struct request old_request;

static void co_old_request_ends(struct rig *rig)
{
    co_sleep_ns(rig->world, 3 * SECOND);
    request_leave(rig->q->table, &old_request);
}

static void co_old_reader(struct rig *rig)
{
    uint64_t end = co_fill(rig);
    request_enter(rig->q->table, &old_request);
    co_rig_trim(rig, 0, 2 * CLUSTER);
    uint64_t before = world_now_ns(rig->world);
    rig_spawn(rig, co_old_request_ends);
    int ret = co_try_write(rig, end, 2);
    ck_assert_int_eq(ret, 0);
    ck_assert_uint_ge(world_now_ns(rig->world) - before, 3 * SECOND);
    co_rig_join(rig);
    co_rig_expect(rig, end * CLUSTER, CLUSTER, 2);
}

START_TEST(waits_for_older_requests)
{
    run(co_old_reader);
}
END_TEST

/* What others free while a request looks for room is for it, too, though it began before. */
static uint64_t wanted;

static void co_wants_two(struct rig *rig)
{
    co_rig_write(rig, wanted * CLUSTER, 2 * CLUSTER, 6);
}

static void co_freed_meanwhile(struct rig *rig)
{
    wanted = co_fill(rig);
    request_enter(rig->q->table, &old_request);
    co_rig_trim(rig, 0, CLUSTER);
    rig_spawn(rig, co_wants_two);
    co_sleep_ns(rig->world, SECOND);
    co_rig_trim(rig, CLUSTER, CLUSTER);
    uint64_t before = world_now_ns(rig->world);
    request_leave(rig->q->table, &old_request);
    co_rig_join(rig);
    ck_assert_uint_lt(world_now_ns(rig->world) - before, SECOND);
    co_rig_expect(rig, wanted * CLUSTER, 2 * CLUSTER, 6);
}

START_TEST(a_search_holds_nothing_up)
{
    run(co_freed_meanwhile);
}
END_TEST

/* And one that does not end: the wait has an end all the same. */
static void co_stuck_reader(struct rig *rig)
{
    uint64_t end = co_fill(rig);
    request_enter(rig->q->table, &old_request);
    co_rig_trim(rig, 0, 2 * CLUSTER);
    uint64_t before = world_now_ns(rig->world);
    int ret = co_try_write(rig, end, 2);
    ck_assert_int_eq(ret, -ENOSPC);
    uint64_t took = world_now_ns(rig->world) - before;
    ck_assert_uint_ge(took, LIMIT_ROOM_SEARCH_MS * 1000000ULL);
    ck_assert_uint_lt(took, LIMIT_ROOM_SEARCH_MS * 1000000ULL + SECOND);
    request_leave(rig->q->table, &old_request);
    ret = co_try_write(rig, end, 2);
    ck_assert_int_eq(ret, 0);
}

START_TEST(the_wait_is_bounded)
{
    run(co_stuck_reader);
}
END_TEST

/*
 * Requests that are older than what was freed, that wait for the range of one who looks for room,
 * or look for room themselves: none of them is waited for.
 */
static uint64_t contended;

static void co_writes_there(struct rig *rig)
{
    int ret = co_try_write(rig, contended, 5);
    ck_assert_int_eq(ret, 0);
}

static void co_writes_next_to_it(struct rig *rig)
{
    co_rig_write(rig, (contended + 1) * CLUSTER, CLUSTER, 5);
}

static void co_reads_there(struct rig *rig)
{
    static uint8_t bytes[CLUSTER];
    int ret = rig->image->ops->co_read(rig->image, contended * CLUSTER, bytes, sizeof(bytes), NULL);
    ck_assert_int_eq(ret, 0);
}

static void co_frees(struct rig *rig)
{
    co_rig_trim(rig, 0, 4 * CLUSTER);
}

static void co_waiters(struct rig *rig)
{
    struct hold *hold;
    contended = co_fill(rig);
    uint64_t before = world_now_ns(rig->world);
    /* All of them have begun, and wait for the range, when the clusters are freed. */
    int ret = co_hold(rig->q->table, HOLD_EXCLUSIVE, contended * CLUSTER, 2 * CLUSTER, &hold);
    ck_assert_int_eq(ret, 0);
    for (int i = 0; i < 3; i++) {
        rig_spawn(rig, co_writes_there);
        rig_spawn(rig, co_writes_next_to_it);
        rig_spawn(rig, co_reads_there);
    }
    co_sleep_ns(rig->world, SECOND);
    rig_spawn(rig, co_frees);
    co_sleep_ns(rig->world, SECOND);
    hold_release(hold);
    co_rig_join(rig);
    ck_assert_uint_lt(world_now_ns(rig->world) - before, 3 * SECOND);
    co_rig_expect(rig, contended * CLUSTER, 2 * CLUSTER, 5);
}

START_TEST(waiters_do_not_wait_for_each_other)
{
    run(co_waiters);
}
END_TEST

/* A failed image ends the search. */
static void co_fails(struct rig *rig)
{
    uint64_t end = co_fill(rig);
    co_rig_trim(rig, 0, 2 * CLUSTER);
    rig_fail(rig, RIG_FLUSH, 0, 0, -EIO);
    int ret = co_try_write(rig, end, 2);
    ck_assert_int_eq(ret, -EIO);
    ck_assert(rig->q->failed);
    ck_assert(!rig->q->room_line.locked);
    rig->fail_with = 0;
    ret = co_rig_end(rig);
    ck_assert_int_eq(ret, -EIO);
    co_rig_open(rig);
}

START_TEST(a_failed_commit_ends_it)
{
    run_leaking(co_fails, true);
}
END_TEST

/* Free clusters that still have their space in the file give it back when others need it. */
static void co_kept_space(struct rig *rig)
{
    uint64_t end = co_fill(rig);
    rig_fail(rig, RIG_PUNCH, 0, 0, -EOPNOTSUPP);
    co_rig_trim(rig, 2 * CLUSTER, 8 * CLUSTER);
    co_rig_flush(rig);
    co_sleep_ns(rig->world, SECOND);
    rig->fail_with = 0;
    /* Eight free clusters in the file, which is full, and now no hint of them. */
    rig->q->alloc.run_count = 0;
    rig->q->alloc.scan_next = 0;
    rig->q->alloc.scan_end = rig->q->alloc.append_next;
    for (uint64_t i = 0; i < 8; i++) {
        co_rig_write(rig, (end + i) * CLUSTER, CLUSTER, 4);
    }
    co_rig_expect(rig, end * CLUSTER, 8 * CLUSTER, 4);
    int ret = co_try_write(rig, end + 8, 4);
    ck_assert_int_eq(ret, -ENOSPC);
}

START_TEST(free_space_is_found)
{
    run(co_kept_space);
}
END_TEST

int main(void)
{
    Suite *suite = suite_create("room");
    TCase *tcase = tcase_create("room");
    tcase_set_timeout(tcase, 60);
    tcase_add_test(tcase, what_was_trimmed_is_room);
    tcase_add_test(tcase, full_is_told_at_once);
    tcase_add_test(tcase, waits_for_older_requests);
    tcase_add_test(tcase, a_search_holds_nothing_up);
    tcase_add_test(tcase, the_wait_is_bounded);
    tcase_add_test(tcase, waiters_do_not_wait_for_each_other);
    tcase_add_test(tcase, a_failed_commit_ends_it);
    tcase_add_test(tcase, free_space_is_found);
    suite_add_tcase(suite, tcase);
    return rig_main(suite);
}
