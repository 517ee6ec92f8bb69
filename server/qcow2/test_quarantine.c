/* SPDX-License-Identifier: BSD-2-Clause */
/* O3, seen from the disk: when a freed cluster is punched and counted down, and when not. */
#include "qcow2/quarantine.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "qcow2/map.h"
#include "qcow2/refcount.h"
#include "qcow2/test_rig.h"

#define CLUSTER 65536U

static void run(rig_body *body)
{
    struct rig rig;
    rig_init(&rig, 3);
    rig_run(&rig, body);
    rig_free(&rig);
}

/* The host cluster of a guest cluster that has one. */
static uint64_t co_host(struct rig *rig, uint64_t guest_cluster)
{
    struct mapping mapping;
    guest_off guest = {guest_cluster * rig->q->geo.cluster_bytes};
    int ret = co_map(rig->q, guest, rig->q->geo.cluster_bytes, &mapping);
    ck_assert_int_eq(ret, 0);
    ck_assert(mapping.has_host);
    return host_cluster_index(&rig->q->geo, mapping.host);
}

static uint64_t co_count(struct rig *rig, uint64_t cluster)
{
    uint64_t count, same;
    int ret = co_refcount_run(rig->q, cluster, 1, &count, &same);
    ck_assert_int_eq(ret, 0);
    return count;
}

static void co_settle(struct rig *rig)
{
    co_sleep_ns(rig->world, 100000000);
}

static void co_durable_first(struct rig *rig)
{
    co_rig_write(rig, 0, CLUSTER, 1);
    co_rig_flush(rig);
    uint64_t host = co_host(rig, 0);
    co_rig_trim(rig, 0, CLUSTER);
    co_settle(rig);
    ck_assert_uint_eq(rig_count(rig, RIG_PUNCH), 0);
    ck_assert_uint_eq(co_count(rig, host), 1);
    co_rig_write(rig, CLUSTER, CLUSTER, 2);
    ck_assert_uint_ne(co_host(rig, 1), host);

    co_rig_flush(rig);
    co_settle(rig);
    ck_assert_uint_eq(rig_count(rig, RIG_PUNCH), 1);
    ck_assert_uint_eq(co_count(rig, host), 0);
    ck_assert(quarantine_empty(&rig->q->quarantine));
    co_rig_write(rig, 2 * CLUSTER, 512, 3);
    ck_assert_uint_eq(co_host(rig, 2), host);
    co_rig_expect(rig, 2 * CLUSTER + 512, CLUSTER - 512, 0);
}

START_TEST(released_once_the_mapping_is_durable)
{
    run(co_durable_first);
}
END_TEST

static void co_older_request(struct rig *rig)
{
    struct request older, younger;
    co_rig_write(rig, 0, CLUSTER, 1);
    request_enter(rig->q->table, &older);
    co_rig_trim(rig, 0, CLUSTER);
    request_enter(rig->q->table, &younger);
    co_rig_flush(rig);
    co_settle(rig);
    ck_assert_uint_eq(rig_count(rig, RIG_PUNCH), 0);
    request_leave(rig->q->table, &older);
    co_settle(rig);
    ck_assert_uint_eq(rig_count(rig, RIG_PUNCH), 1);
    request_leave(rig->q->table, &younger);
}

START_TEST(released_once_older_requests_have_finished)
{
    run(co_older_request);
}
END_TEST

/* Freed in any order, by many requests: one punch. */
static void co_merge(struct rig *rig)
{
    co_rig_write(rig, 0, 200 * CLUSTER, 1);
    co_rig_flush(rig);
    uint64_t first = co_host(rig, 0);
    for (uint64_t i = 0; i < 200; i++) {
        co_rig_trim(rig, (i * 77 + 13) % 200 * CLUSTER, CLUSTER);
    }
    rig_forget(rig);
    co_rig_flush(rig);
    co_settle(rig);
    ck_assert_uint_eq(rig_count(rig, RIG_PUNCH), 1);
    for (unsigned i = 0; i < rig->event_count; i++) {
        if (rig->events[i].call == RIG_PUNCH) {
            ck_assert_uint_eq(rig->events[i].offset, first * CLUSTER);
            ck_assert_uint_eq(rig->events[i].len, 200 * CLUSTER);
        }
    }
}

START_TEST(neighbours_are_punched_in_one)
{
    run(co_merge);
}
END_TEST

/* A host that cannot punch: the clusters are free, but do not read as zeroes. */
static void co_no_punch(struct rig *rig)
{
    co_rig_write(rig, 0, CLUSTER, 0x77);
    co_rig_flush(rig);
    uint64_t host = co_host(rig, 0);
    rig_fail(rig, RIG_PUNCH, 0, 0, -EOPNOTSUPP);
    co_rig_trim(rig, 0, CLUSTER);
    co_rig_flush(rig);
    co_settle(rig);
    ck_assert_uint_eq(co_count(rig, host), 0);
    co_rig_write(rig, 5 * CLUSTER + 1000, 10, 1);
    ck_assert_uint_eq(co_host(rig, 5), host);
    co_rig_expect(rig, 5 * CLUSTER, 1000, 0);
    co_rig_expect(rig, 5 * CLUSTER + 1010, CLUSTER - 1010, 0);
}

START_TEST(without_punch_clusters_are_free_but_not_blank)
{
    run(co_no_punch);
}
END_TEST

static void co_ignore(struct rig *rig)
{
    co_rig_write(rig, 0, CLUSTER, 1);
    co_rig_flush(rig);
    uint64_t host = co_host(rig, 0);
    co_rig_trim(rig, 0, CLUSTER);
    co_rig_expect(rig, 0, CLUSTER, 1);
    co_rig_zero(rig, 0, CLUSTER, 0);
    co_rig_expect(rig, 0, CLUSTER, 0);
    ck_assert_uint_eq(co_host(rig, 0), host);
    co_rig_flush(rig);
    co_settle(rig);
    ck_assert_uint_eq(rig_count(rig, RIG_PUNCH), 0);
    ck_assert_uint_eq(co_count(rig, host), 1);
    int ret = rig->image->ops->co_trim(rig->image, 0, 512, IMAGE_FUA);
    ck_assert_int_eq(ret, 0);
}

START_TEST(discard_ignore_keeps_clusters)
{
    struct rig rig;
    rig_init(&rig, 3);
    rig.options.trim = TRIM_IGNORE;
    rig_run(&rig, co_ignore);
    rig_free(&rig);
}
END_TEST

/* Two guest clusters on one host cluster, counted: freed with the second. */
static void co_shared(struct rig *rig)
{
    co_rig_open(rig);
    uint64_t host = co_host(rig, 0);
    ck_assert_uint_eq(co_host(rig, 1), host);
    co_rig_trim(rig, 0, 4096);
    co_rig_flush(rig);
    co_settle(rig);
    ck_assert_uint_eq(rig_count(rig, RIG_PUNCH), 0);
    ck_assert_uint_eq(co_count(rig, host), 1);
    co_rig_expect(rig, 4096, 4096, 1);
    /* Both in one batch with another cluster, and twice the same run in it. */
    co_rig_trim(rig, 4096, 2 * 4096);
    co_rig_flush(rig);
    co_settle(rig);
    ck_assert_uint_eq(co_count(rig, host), 0);
    ck_assert_uint_ge(rig_count(rig, RIG_PUNCH), 1);
}

static void build(struct rig *rig, struct test_image *image, const char *damage)
{
    static const struct test_image_options options = {3, 12, 4, false, 8};
    test_image_build(image, &options);
    for (size_t i = 0; i < test_damage_count; i++) {
        if (strcmp(test_damages[i].name, damage) == 0) {
            ck_assert(test_damages[i].apply(image));
            rig_init(rig, 4);
            rig_put(rig, RIG_IMAGE, image);
            test_image_free(image);
            return;
        }
    }
    ck_abort_msg("no such damage");
}

START_TEST(shared_cluster_goes_with_the_last)
{
    struct rig rig;
    struct test_image image;
    build(&rig, &image, "two on one, counted");
    rig_run_bare(&rig, co_shared);
    rig_free(&rig);
}
END_TEST

/*
 * O10: guest cluster 1 counts 0, so that it may be claimed for a table while it waits here. It must
 * neither be punched nor counted down then.
 */
static void co_new_owner(struct rig *rig)
{
    uint64_t claimed;
    co_rig_open(rig);
    uint64_t host = co_host(rig, 1);
    co_rig_trim(rig, 4096, 4096);
    uint64_t first = host;
    int ret = co_refcount_claim(rig->q, &first, 1, &claimed);
    ck_assert_int_eq(ret, 0);
    ck_assert_uint_eq(first, host);
    ck_assert_int_eq(metamap_add(&rig->q->metamap, host), 0);
    co_rig_flush(rig);
    co_settle(rig);
    ck_assert_uint_eq(rig_count(rig, RIG_PUNCH), 0);
    ck_assert_uint_eq(co_count(rig, host), 1);
    ck_assert(rig_logged(rig, "was freed, but holds metadata"));
    ck_assert(rig->q->corrupt_marked);
    rig->skip_check = true;
}

START_TEST(new_owner_is_left_alone)
{
    struct rig rig;
    struct test_image image;
    build(&rig, &image, "data count 0");
    rig_run_bare(&rig, co_new_owner);
    rig_free(&rig);
}
END_TEST

static void co_count_zero(struct rig *rig)
{
    co_rig_open(rig);
    co_rig_trim(rig, 4096, 4096);
    co_rig_flush(rig);
    co_settle(rig);
    ck_assert_uint_eq(rig_count(rig, RIG_PUNCH), 0);
    ck_assert(rig_logged(rig, "is 0, but it was in use"));
}

START_TEST(count_of_zero_is_damage)
{
    struct rig rig;
    struct test_image image;
    build(&rig, &image, "data count 0");
    rig.skip_check = true;
    rig_run_bare(&rig, co_count_zero);
    rig_free(&rig);
}
END_TEST

/* What cannot be counted down leaks, with a line; the image goes on. */
static void co_leaks(struct rig *rig)
{
    co_rig_write(rig, 0, CLUSTER, 1);
    co_rig_close(rig);
    co_rig_open(rig);
    co_rig_trim(rig, 0, CLUSTER);
    rig_fail(rig, RIG_READ, RIG_REFBLOCK, 0, -EIO);
    co_rig_flush(rig);
    co_settle(rig);
    ck_assert_msg(rig_logged(rig, "1 freed clusters at") && rig_logged(rig, "stay allocated"), "%s",
                  rig->log);
    rig->fail_with = 0;
    co_rig_write(rig, 0, CLUSTER, 2);
    co_rig_expect(rig, 0, CLUSTER, 2);
    rig->skip_check = true;
}

START_TEST(failed_release_leaks)
{
    run(co_leaks);
}
END_TEST

int main(void)
{
    Suite *suite = suite_create("quarantine");
    TCase *tcase = tcase_create("quarantine");
    tcase_set_timeout(tcase, 30);
    tcase_add_test(tcase, released_once_the_mapping_is_durable);
    tcase_add_test(tcase, released_once_older_requests_have_finished);
    tcase_add_test(tcase, neighbours_are_punched_in_one);
    tcase_add_test(tcase, without_punch_clusters_are_free_but_not_blank);
    tcase_add_test(tcase, discard_ignore_keeps_clusters);
    tcase_add_test(tcase, shared_cluster_goes_with_the_last);
    tcase_add_test(tcase, new_owner_is_left_alone);
    tcase_add_test(tcase, count_of_zero_is_damage);
    tcase_add_test(tcase, failed_release_leaks);
    suite_add_tcase(suite, tcase);
    return rig_main(suite);
}
