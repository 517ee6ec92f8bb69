/* SPDX-License-Identifier: BSD-2-Clause */
/*
 * Every damage in every geometry: found, named, left alone by a plain check, and repaired where it
 * can be. Repairs are also interrupted after each single write. Hostile shapes must cost nothing.
 */
#include <check.h>
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "base/bytes.h"
#include "base/testing.h"
#include "io/sim.h"
#include "qcow2/blocking_world.h"
#include "qcow2/check.h"
#include "qcow2/refmap.h"
#include "qcow2/test_images.h"
#include "sched/co.h"

static struct blocking_world world;
static struct errtext err;
static char *directory;
static char *image_path;

static const struct test_image_options geometries[] = {
    {3, 16, 4, false, 8}, {2, 9, 4, false, 6},  {3, 9, 6, false, 6},
    {3, 14, 4, true, 8},  {3, 12, 0, false, 8}, {3, 12, 1, false, 8},
};

static void setup(void)
{
    blocking_world_init(&world);
    directory = blocking_make_directory();
    ck_assert_int_gt(asprintf(&image_path, "%s/disk.qcow2", directory), 0);
}

static void teardown(void)
{
    unlink(image_path);
    ck_assert_int_eq(rmdir(directory), 0);
    free(image_path);
    free(directory);
}

struct findings {
    const char *wanted;
    bool seen;
    unsigned count;
};

static void on_finding(void *arg, const char *line)
{
    struct findings *findings = arg;
    findings->count++;
    if (findings->wanted && strstr(line, findings->wanted)) {
        findings->seen = true;
    }
}

/* The return value of co_qcow2_check(); the image is at image_path. */
static int check_image(enum check_repair repair, struct findings *findings,
                       struct check_result *result)
{
    struct disk *disk;
    struct header header;
    struct check_options options = {
        .repair = repair, .finding = findings ? on_finding : NULL, .arg = findings};

    ck_assert_int_eq(
        world.world.ops->co_disk_open(&world.world, image_path, DISK_WRITABLE, &disk, &err), 0);
    int rc = co_header_read(disk, &header, &err);
    ck_assert_msg(rc == 0, "%s", err.text);
    rc = co_qcow2_check(disk, &header, &options, result, &err);
    header_free(&header);
    disk_close(disk);
    return rc;
}

static enum verdict verdict_of(const struct check_result *result)
{
    return result->corruptions ? VERDICT_CORRUPT : (result->leaks ? VERDICT_LEAKS : VERDICT_CLEAN);
}

static bool make_damaged(const struct test_image_options *options, const struct damage *damage,
                         struct test_image *image)
{
    test_image_build(image, options);
    if (damage->apply(image)) {
        test_image_save(image, image_path);
        return true;
    }
    test_image_free(image);
    return false;
}

static void assert_file_is(const struct test_image *image, const char *name)
{
    struct test_image now;
    test_image_load(&now, image_path);
    ck_assert_msg(now.len_bytes == image->len_bytes &&
                      memcmp(now.bytes, image->bytes, image->len_bytes) == 0,
                  "%s: a check without repair changed the file", name);
    test_image_free(&now);
}

static void check_damage(const struct test_image_options *options, const struct damage *damage)
{
    struct test_image image;
    struct check_result result;
    struct findings findings = {damage->finding, false, 0};

    if (!make_damaged(options, damage, &image)) {
        return;
    }
    int rc = check_image(CHECK_ONLY, &findings, &result);
    ck_assert_msg(rc == 0, "%s: %s", damage->name, err.text);
    ck_assert_msg(verdict_of(&result) == damage->verdict, "%s, %u bits: %u corruptions, %u leaks",
                  damage->name, options->cluster_bits, (unsigned)result.corruptions,
                  (unsigned)result.leaks);
    ck_assert_msg(damage->verdict != VERDICT_LEAKS || result.leaks == damage->leaks, "%s: %u leaks",
                  damage->name, (unsigned)result.leaks);
    ck_assert_msg(!damage->finding || findings.seen, "%s, %u bits: no finding says '%s'",
                  damage->name, options->cluster_bits, damage->finding);
    ck_assert_uint_eq(findings.count, result.corruptions + result.leaks);
    assert_file_is(&image, damage->name);
    test_image_free(&image);

    rc = check_image(CHECK_REPAIR_ALL, NULL, &result);
    ck_assert_msg(rc == 0, "%s: %s", damage->name, err.text);
    ck_assert_msg((verdict_of(&result) == VERDICT_CLEAN) == damage->repairable,
                  "%s, %u bits: after repair %u corruptions, %u leaks", damage->name,
                  options->cluster_bits, (unsigned)result.corruptions, (unsigned)result.leaks);
    if (damage->repairable && damage->verdict != VERDICT_CLEAN) {
        ck_assert_uint_gt(result.corruptions_fixed + result.leaks_fixed, 0);
    }
}

START_TEST(damages)
{
    for (size_t i = 0; i < test_damage_count; i++) {
        check_damage(&geometries[_i], &test_damages[i]);
    }
}
END_TEST

/*
 * A repair that dies after any of its writes leaves nothing worse than what was there, and the next
 * repair ends it.
 */
static void interrupt_repair(const struct test_image_options *options, const struct damage *damage)
{
    struct test_image image;
    struct check_result result;

    for (unsigned stop = 1; stop < 64; stop++) {
        if (!make_damaged(options, damage, &image)) {
            return;
        }
        test_image_free(&image);
        world.calls = 0;
        world.fail_from_call = stop;
        world.fail_with = -EIO;
        int rc = check_image(CHECK_REPAIR_ALL, NULL, &result);
        world.fail_from_call = 0;
        if (rc == 0) {
            return;
        }
        ck_assert_int_eq(rc, -EIO);
        rc = check_image(CHECK_REPAIR_ALL, NULL, &result);
        ck_assert_msg(rc == 0 && verdict_of(&result) == VERDICT_CLEAN,
                      "%s: not repaired after a failure at write %u", damage->name, stop);
    }
    ck_abort_msg("%s: the repair never ends", damage->name);
}

START_TEST(interrupted_repairs)
{
    for (size_t i = 0; i < test_damage_count; i++) {
        if (test_damages[i].repairable) {
            interrupt_repair(&geometries[_i], &test_damages[i]);
        }
    }
    ck_assert(!world.header_before_flush);
}
END_TEST

START_TEST(repair_leaks_only_touches_leaks)
{
    for (size_t i = 0; i < test_damage_count; i++) {
        const struct damage *damage = &test_damages[i];
        struct test_image image;
        struct check_result result;
        if (!make_damaged(&geometries[_i], damage, &image)) {
            continue;
        }
        test_image_free(&image);
        ck_assert_int_eq(check_image(CHECK_REPAIR_LEAKS, NULL, &result), 0);
        ck_assert_msg((verdict_of(&result) == VERDICT_CORRUPT) ==
                          (damage->verdict == VERDICT_CORRUPT),
                      "%s", damage->name);
        if (damage->verdict == VERDICT_LEAKS) {
            ck_assert_uint_eq(result.leaks, 0);
            ck_assert_uint_eq(result.leaks_fixed, damage->leaks);
        }
    }
}
END_TEST

/* What a damaged entry led to must survive for whoever recovers it. */
START_TEST(leaks_stay_while_entries_are_damaged)
{
    struct test_image image;
    struct check_result result;

    test_image_build(&image, &geometries[0]);
    uint64_t l1_at = test_image_l1_at(&image, 0);
    uint64_t entry = test_image_get(&image, l1_at);
    test_image_put(&image, l1_at, entry | 1ULL << 45);
    test_image_save(&image, image_path);
    test_image_free(&image);
    ck_assert_int_eq(check_image(CHECK_REPAIR_ALL, NULL, &result), 0);
    ck_assert_uint_eq(result.corruptions, 1);
    ck_assert_uint_eq(result.leaks, 9); /* the L2 table and 8 data clusters */

    test_image_load(&image, image_path);
    test_image_put(&image, l1_at, entry);
    test_image_save(&image, image_path);
    test_image_free(&image);
    ck_assert_int_eq(check_image(CHECK_ONLY, NULL, &result), 0);
    ck_assert_int_eq(verdict_of(&result), VERDICT_CLEAN);
}
END_TEST

/* A truncated file: growing it would turn what reads as an error into zeroes that nobody wrote. */
START_TEST(repair_revives_nothing)
{
    struct test_image image;
    struct check_result result;
    struct findings findings = {"nothing was rebuilt", false, 0};

    test_image_build(&image, &geometries[0]);
    image.len_bytes -= image.geo.cluster_bytes;
    test_image_put(&image, test_image_reftable_at(&image, 0), 0);
    test_image_save(&image, image_path);
    ck_assert_int_eq(check_image(CHECK_REPAIR_ALL, &findings, &result), 0);
    ck_assert_int_eq(verdict_of(&result), VERDICT_CORRUPT);
    ck_assert(findings.seen);
    assert_file_is(&image, "truncated");
    test_image_free(&image);
}
END_TEST

START_TEST(counts_of_clusters)
{
    struct test_image image;
    struct check_result result;

    test_image_build(&image, &geometries[0]);
    test_image_save(&image, image_path);
    ck_assert_int_eq(check_image(CHECK_ONLY, NULL, &result), 0);
    ck_assert_uint_eq(result.allocated_clusters, 8);
    ck_assert_uint_eq(result.total_clusters, 16);
    ck_assert_uint_eq(result.compressed_clusters, 0);
    ck_assert_uint_eq(result.image_end_bytes, image.len_bytes);
    test_image_free(&image);
}
END_TEST

/* The dirty and corrupt bits go only when nothing corrupt is left. */
START_TEST(damage_bits)
{
    const size_t at = offsetof(struct qcow2_disk_header, incompatible_features);

    for (size_t i = 0; i < test_damage_count; i++) {
        struct test_image image;
        struct check_result result;
        test_image_build(&image, &geometries[0]);
        if (!test_damages[i].apply(&image)) {
            test_image_free(&image);
            continue;
        }
        uint64_t bits = QCOW2_INCOMPAT_DIRTY | QCOW2_INCOMPAT_CORRUPT;
        test_image_put(&image, at, bits);
        test_image_save(&image, image_path);
        test_image_free(&image);
        ck_assert_int_eq(check_image(CHECK_ONLY, NULL, &result), 0);
        ck_assert_int_eq(check_image(CHECK_REPAIR_LEAKS, NULL, &result), 0);
        test_image_load(&image, image_path);
        ck_assert_uint_eq(test_image_get(&image, at), bits);
        test_image_free(&image);
        ck_assert_int_eq(check_image(CHECK_REPAIR_ALL, NULL, &result), 0);
        test_image_load(&image, image_path);
        ck_assert_uint_eq(test_image_get(&image, at), test_damages[i].repairable ? 0 : bits);
        test_image_free(&image);
    }
}
END_TEST

START_TEST(findings_are_bounded)
{
    struct test_image image;
    struct check_result result;
    struct findings findings = {"and 2", false, 0};
    struct test_image_options many = {3, 16, 4, false, 1200};

    test_image_build(&image, &many);
    for (unsigned i = 0; i < 1200; i++) {
        test_image_put(&image, test_image_l2_at(&image, i), 1ULL << 50);
    }
    test_image_save(&image, image_path);
    test_image_free(&image);
    ck_assert_int_eq(check_image(CHECK_ONLY, &findings, &result), 0);
    ck_assert_uint_eq(result.corruptions, 1200);
    ck_assert_uint_eq(findings.count, 1001);
}
END_TEST

/* A file that claims to be huge, with entries all over it. */
START_TEST(huge_sparse_file)
{
    struct test_image image;
    struct check_result result;
    struct findings findings = {NULL, false, 0};

    test_image_build(&image, &geometries[0]);
    for (unsigned i = 0; i < 8; i++) {
        test_image_put(&image, test_image_l2_at(&image, i), (1ULL << 36) * (i + 1) | QCOW2_COPIED);
    }
    test_image_save(&image, image_path);
    test_image_free(&image);
    ck_assert_int_eq(truncate(image_path, 1LL << 40), 0);
    ck_assert_int_eq(check_image(CHECK_ONLY, &findings, &result), 0);
    ck_assert_int_eq(verdict_of(&result), VERDICT_CORRUPT);
    ck_assert_uint_eq(result.leaks, 8);
    ck_assert_int_eq(check_image(CHECK_REPAIR_ALL, NULL, &result), 0);
    ck_assert_int_eq(verdict_of(&result), VERDICT_CLEAN);
}
END_TEST

START_TEST(read_only_repair)
{
    struct test_image image;
    struct disk *disk;
    struct header header;
    struct check_result result;
    struct check_options options = {.repair = CHECK_REPAIR_ALL};

    test_image_build(&image, &geometries[0]);
    test_image_save(&image, image_path);
    test_image_free(&image);
    ck_assert_int_eq(
        world.world.ops->co_disk_open(&world.world, image_path, DISK_READ_ONLY, &disk, &err), 0);
    ck_assert_int_eq(co_header_read(disk, &header, &err), 0);
    ck_assert_int_eq(co_qcow2_check(disk, &header, &options, &result, &err), -EROFS);
    header_free(&header);
    disk_close(disk);
}
END_TEST

/*
 * Power cuts in the middle of a repair, in the simulated world: any subset of what was not flushed
 * is lost, and the next repair must end what the first began.
 */

struct sim_repair {
    struct world *world;
    struct check_result result;
    int rc;
    bool done;
};

static void co_sim_repair(void *arg)
{
    struct sim_repair *repair = arg;
    struct check_options options = {.repair = CHECK_REPAIR_ALL};
    struct disk *disk;
    struct header header;

    repair->rc =
        repair->world->ops->co_disk_open(repair->world, "disk", DISK_WRITABLE, &disk, &err);
    if (repair->rc == 0) {
        repair->rc = co_header_read(disk, &header, &err);
        if (repair->rc == 0) {
            repair->rc = co_qcow2_check(disk, &header, &options, &repair->result, &err);
            header_free(&header);
        }
        disk_close(disk);
    }
    repair->done = true;
}

/* Whether the repair was cut; false: it ended before. */
static bool cut_after(struct sim_repair *repair, uint64_t steps)
{
    repair->done = false;
    ck_assert_int_eq(coro_spawn(co_sim_repair, repair, "repair"), 0);
    for (uint64_t i = 0; i < steps && !repair->done; i++) {
        sim_step(repair->world);
    }
    if (repair->done) {
        return false;
    }
    sim_crash(repair->world);
    sim_run(repair->world, 0);
    ck_assert(repair->done);
    sim_reboot(repair->world);
    return true;
}

static void cut_repair(const struct test_image *image, const char *name, uint64_t seed)
{
    struct sim_repair repair = {.world = sim_create(seed)};
    bool was_cut = true;

    ck_assert_ptr_nonnull(repair.world);
    for (uint64_t steps = 8; was_cut && steps < 400; steps += 1 + seed % 3) {
        ck_assert_int_eq(sim_file_put(repair.world, "disk", image->bytes, image->len_bytes), 0);
        was_cut = cut_after(&repair, steps);
        ck_assert(was_cut || repair.rc == 0);
        repair.done = false;
        ck_assert_int_eq(coro_spawn(co_sim_repair, &repair, "repair"), 0);
        sim_run(repair.world, 0);
        ck_assert_msg(repair.rc == 0 && verdict_of(&repair.result) == VERDICT_CLEAN,
                      "%s, seed %u: not repaired after a power cut at step %u: %d", name,
                      (unsigned)seed, (unsigned)steps, repair.rc);
    }
    ck_assert_msg(!was_cut, "%s: the repair never ends", name);
    sim_free(repair.world);
}

START_TEST(power_cuts)
{
    for (size_t i = 0; i < test_damage_count; i++) {
        struct test_image image;
        test_image_build(&image, &geometries[_i]);
        if (test_damages[i].repairable && test_damages[i].apply(&image)) {
            for (uint64_t seed = 1; seed <= 4; seed++) {
                cut_repair(&image, test_damages[i].name, seed);
            }
        }
        test_image_free(&image);
    }
    coro_pool_drain();
}
END_TEST

/*
 * Random words all over the metadata. Whatever they are, a check is orderly, and a repair leaves
 * what the next one finds nothing more to do in.
 */
START_TEST(garbage)
{
    unsigned seed = 99U + (unsigned)_i;

    for (unsigned round = 0; round < 150; round++) {
        struct test_image image;
        struct check_result first;
        struct check_result second;
        test_image_build(&image, &geometries[_i]);
        for (unsigned n = 0; n < 1 + round % 5; n++) {
            uint64_t word = (uint64_t)rand_r(&seed) << 33 ^ (uint64_t)rand_r(&seed) << 12 ^
                            (uint64_t)rand_r(&seed);
            uint64_t cluster = 1 + (uint64_t)rand_r(&seed) % 4;
            uint64_t entry = (uint64_t)rand_r(&seed) % 16;
            unsigned kind = (unsigned)rand_r(&seed) % 3;
            /* Small offsets lead into the file. */
            word = kind == 0 ? word : (word & 15) * image.geo.cluster_bytes | (word & 1ULL << 63);
            word |= kind == 2 ? QCOW2_COMPRESSED : 0;
            test_image_put(&image, cluster * image.geo.cluster_bytes + entry * 8, word);
        }
        test_image_save(&image, image_path);
        test_image_free(&image);
        ck_assert_int_eq(check_image(CHECK_ONLY, NULL, &first), 0);
        ck_assert_int_eq(check_image(CHECK_REPAIR_ALL, NULL, &first), 0);
        test_image_load(&image, image_path);
        ck_assert_int_eq(check_image(CHECK_REPAIR_ALL, NULL, &second), 0);
        ck_assert_msg(second.corruptions == first.corruptions && second.leaks == first.leaks,
                      "round %u: %u corruptions after one repair, %u after two", round,
                      (unsigned)first.corruptions, (unsigned)second.corruptions);
        test_image_free(&image);
    }
}
END_TEST

/*
 * The map under it all.
 */

START_TEST(refmap_counts)
{
    uint64_t budget = 1U << 20;
    struct refmap map;
    uint64_t index = 0;

    refmap_init(&map, &budget);
    ck_assert_uint_eq(refmap_end(&map), 0);
    ck_assert(!refmap_next(&map, &index));
    for (uint64_t i = 1000; i-- > 0;) { /* backwards: order must not matter */
        ck_assert_int_eq(refmap_add(&map, i * i * 977, i), 0);
    }
    ck_assert_int_eq(refmap_add(&map, 977, 65535), 0); /* widens */
    ck_assert_uint_eq(refmap_get(&map, 977), 65536);
    ck_assert_uint_eq(refmap_get(&map, 4 * 977), 2);
    ck_assert_uint_eq(refmap_get(&map, 4 * 977 + 1), 0);
    uint64_t seen = 0;
    for (index = 0; refmap_next(&map, &index); index++) {
        seen++;
        ck_assert_uint_eq(index, seen * seen * 977);
    }
    ck_assert_uint_eq(seen, 999);
    ck_assert_uint_eq(refmap_end(&map), 999 * 999 * 977 + 1);
    refmap_subtract(&map, 999 * 999 * 977, 999);
    ck_assert_uint_eq(refmap_end(&map), 998 * 998 * 977 + 1);
    ck_assert_int_eq(refmap_add(&map, 977, UINT64_MAX), 0);
    ck_assert_uint_eq(refmap_get(&map, 977), UINT64_MAX);
    refmap_free(&map);
}
END_TEST

START_TEST(refmap_budget)
{
    uint64_t budget = 100000;
    struct refmap map;
    int rc = 0;

    refmap_init(&map, &budget);
    for (uint64_t i = 0; rc == 0 && i < 1000; i++) {
        rc = refmap_add(&map, i << 40, 1);
    }
    ck_assert_int_eq(rc, -ENOMEM);
    refmap_free(&map);
}
END_TEST

int main(void)
{
    TCase *tcase = tcase_create("check");
    const int count = (int)ARRAY_LEN(geometries);

    tcase_add_checked_fixture(tcase, setup, teardown);
    tcase_set_timeout(tcase, 50);
    tcase_add_loop_test(tcase, damages, 0, count);
    tcase_add_loop_test(tcase, interrupted_repairs, 0, count);
    tcase_add_loop_test(tcase, repair_leaks_only_touches_leaks, 0, count);
    tcase_add_loop_test(tcase, power_cuts, 0, count);
    tcase_add_loop_test(tcase, garbage, 0, count);
    tcase_add_test(tcase, leaks_stay_while_entries_are_damaged);
    tcase_add_test(tcase, repair_revives_nothing);
    tcase_add_test(tcase, counts_of_clusters);
    tcase_add_test(tcase, damage_bits);
    tcase_add_test(tcase, findings_are_bounded);
    tcase_add_test(tcase, huge_sparse_file);
    tcase_add_test(tcase, read_only_repair);
    tcase_add_test(tcase, refmap_counts);
    tcase_add_test(tcase, refmap_budget);
    Suite *suite = suite_create("check");
    suite_add_tcase(suite, tcase);
    return test_suite_run(suite);
}
