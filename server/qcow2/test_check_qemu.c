/* SPDX-License-Identifier: BSD-2-Clause */
/*
 * `qemu-img check` as the judge of our check: images made by qemu-img and qemu-io in every cluster
 * size and refcount width, with snapshots, compressed clusters, extended L2 entries, a backing file
 * and bitmaps, then damaged. Both must agree on clean, leaks (and how many) or corrupt; and after
 * our repair QEMU must find the image clean and the guest's data unchanged. Skipped without
 * qemu-utils.
 */
#include <check.h>
#include <errno.h>
#include <inttypes.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>

#include "base/bytes.h"
#include "base/testing.h"
#include "qcow2/blocking_world.h"
#include "qcow2/check.h"
#include "qcow2/test_images.h"

#define MESON_SKIP 77

static struct blocking_world world;
static struct errtext err;
static char *directory;

struct recipe {
    const char *name;
    const char *options; /* of qemu-img create */
    const char *io;      /* further qemu-io commands, and others; NULL: none */
    /* Every damage is tried on it; the others differ too little to be worth the time. */
    bool damage;
};

/* %1$s is the image. */
#define IO        "qemu-io -f qcow2 "
#define SNAPSHOT  "qemu-img snapshot -c one %1$s"
#define WRITE_NEW IO "-c 'write -P 9 0 100k' %1$s"

static const struct recipe recipes[] = {
    {"512 v2", "compat=0.10,cluster_size=512", NULL, true},
    {"512 refcount 64", "cluster_size=512,refcount_bits=64", NULL, false},
    {"1k refcount 1", "cluster_size=1k,refcount_bits=1", NULL, true},
    {"2k refcount 2", "cluster_size=2k,refcount_bits=2", NULL, false},
    {"4k refcount 4 zstd", "cluster_size=4k,refcount_bits=4,compression_type=zstd",
     IO "-c 'write -c -P 5 1M 64k' %1$s", false},
    {"8k refcount 8", "cluster_size=8k,refcount_bits=8", NULL, false},
    {"16k extended", "cluster_size=16k,extended_l2=on",
     IO "-c 'write -P 5 1026k 3k' -c 'write -z 1M 1k' -c 'discard 0 16k' -c 'write 0 16k' %1$s",
     true},
    {"32k refcount 32", "cluster_size=32k,refcount_bits=32", NULL, false},
    {"64k", "cluster_size=64k", NULL, true},
    {"64k snapshots", "cluster_size=64k",
     SNAPSHOT " && " WRITE_NEW " && qemu-img snapshot -c two %1$s", true},
    {"64k v2 snapshots", "compat=0.10", SNAPSHOT " && " WRITE_NEW, false},
    {"4k snapshots compressed", "cluster_size=4k",
     IO "-c 'write -c -P 5 1M 256k' %1$s && " SNAPSHOT " && " WRITE_NEW " && " IO
        "-c 'write -c -P 7 2M 64k' %1$s",
     false},
    {"64k zeroes", "cluster_size=64k",
     IO "-c 'write -z 1M 1M' -c 'write -z -u 3M 1M' -c 'discard 512k 256k' %1$s", false},
    {"64k bitmaps", "cluster_size=64k",
     "qemu-img bitmap --add --enable %1$s a && qemu-img bitmap --add -g 4k %1$s b && " WRITE_NEW,
     true},
    {"2M preallocated", "cluster_size=2M,preallocation=metadata", NULL, false},
    {"1M extended", "cluster_size=1M,extended_l2=on", NULL, false},
    {"64k lazy", "lazy_refcounts=on", NULL, false},
};

static char *text(const char *format, ...) __attribute__((format(printf, 1, 2)));

static char *text(const char *format, ...)
{
    char *out = NULL;
    va_list args;
    va_start(args, format);
    int len = vasprintf(&out, format, args);
    va_end(args);
    ck_assert_int_ge(len, 0);
    return out;
}

static char *path_of(const char *name)
{
    return text("%s/%s", directory, name);
}

/* Runs a command that must work. Takes over the text. */
static void run(char *command)
{
    char *quiet = text("{ %s ; } >%s/log 2>&1", command, directory);
    int status = system(quiet);
    ck_assert_msg(WIFEXITED(status) && WEXITSTATUS(status) == 0, "failed: %s", command);
    free(quiet);
    free(command);
}

/* Replaces each %1$s. */
static char *with_image(const char *commands, const char *image)
{
    static const char mark[] = "%1$s";
    char *out = strdup("");
    for (const char *next; (next = strstr(commands, mark)); commands = next + strlen(mark)) {
        char *longer = text("%s%.*s%s", out, (int)(next - commands), commands, image);
        free(out);
        out = longer;
    }
    char *whole = text("%s%s", out, commands);
    free(out);
    return whole;
}

static void setup(void)
{
    blocking_world_init(&world);
    directory = blocking_make_directory();
}

static void teardown(void)
{
    run(text("rm -f %s/*.qcow2", directory));
    char *log = path_of("log");
    unlink(log);
    free(log);
    ck_assert_int_eq(rmdir(directory), 0);
    free(directory);
}

static char *make_image(const struct recipe *recipe)
{
    char *path = path_of("original.qcow2");
    run(text("qemu-img create -q -f qcow2 -o %s %s 8M", recipe->options, path));
    run(text(IO "-c 'write -P 1 0 300k' -c 'write -P 2 5000k 70k' %s", path));
    if (recipe->io) {
        run(with_image(recipe->io, path));
    }
    return path;
}

struct judgement {
    enum verdict verdict;
    uint64_t leaks;
};

static uint64_t json_number(const char *json, const char *name)
{
    char *key = text("\"%s\": ", name);
    const char *at = strstr(json, key);
    uint64_t value = at ? strtoull(at + strlen(key), NULL, 10) : 0;
    free(key);
    return value;
}

/* QEMU's; that it cannot go on (exit status 1) counts as corrupt. */
static struct judgement judge_qemu(const char *path)
{
    char json[8192];
    char *command = text("qemu-img check -f qcow2 --output=json %s 2>/dev/null", path);
    FILE *pipe = popen(command, "r");
    ck_assert_ptr_nonnull(pipe);
    size_t len = fread(json, 1, sizeof(json) - 1, pipe);
    json[len] = '\0';
    int status = pclose(pipe);
    free(command);
    ck_assert(WIFEXITED(status));
    switch (WEXITSTATUS(status)) {
    case 0:
        return (struct judgement){VERDICT_CLEAN, 0};
    case 3:
        return (struct judgement){VERDICT_LEAKS, json_number(json, "leaks")};
    case 1:
    case 2:
        return (struct judgement){VERDICT_CORRUPT, json_number(json, "leaks")};
    default:
        ck_abort_msg("qemu-img check: exit status %d", WEXITSTATUS(status));
    }
}

static void on_finding(void *arg, const char *line)
{
    FILE *log = arg;
    fprintf(log, "%s\n", line);
}

static struct check_result check_ours(const char *path, enum check_repair repair)
{
    struct disk *disk;
    struct header header;
    struct check_result result;
    char *log_path = path_of("log");
    FILE *log = fopen(log_path, "w");
    struct check_options options = {.repair = repair, .finding = on_finding, .arg = log};

    int rc = world.world.ops->co_disk_open(&world.world, path, DISK_WRITABLE, &disk, &err);
    ck_assert_int_eq(rc, 0);
    rc = co_header_read(disk, &header, &err);
    ck_assert_msg(rc == 0, "%s", err.text);
    rc = co_qcow2_check(disk, &header, &options, &result, &err);
    ck_assert_msg(rc == 0, "%s", err.text);
    header_free(&header);
    disk_close(disk);
    fclose(log);
    free(log_path);
    return result;
}

static enum verdict verdict_of(const struct check_result *result)
{
    return result->corruptions ? VERDICT_CORRUPT : (result->leaks ? VERDICT_LEAKS : VERDICT_CLEAN);
}

static void agree(const char *path, const char *recipe, const char *damage, bool qemu_is_laxer)
{
    struct check_result ours = check_ours(path, CHECK_ONLY);
    struct judgement qemu = judge_qemu(path);

    ck_assert_msg(verdict_of(&ours) == qemu.verdict ||
                      (qemu_is_laxer && verdict_of(&ours) == VERDICT_CORRUPT),
                  "%s, %s: QEMU says %d (%u leaks), we %u corruptions, %u leaks", recipe, damage,
                  qemu.verdict, (unsigned)qemu.leaks, (unsigned)ours.corruptions,
                  (unsigned)ours.leaks);
    ck_assert_msg(qemu.verdict != VERDICT_LEAKS || qemu_is_laxer || ours.leaks == qemu.leaks,
                  "%s, %s: QEMU says %u leaks, we %u", recipe, damage, (unsigned)qemu.leaks,
                  (unsigned)ours.leaks);
}

START_TEST(agree_on_good_images)
{
    const struct recipe *recipe = &recipes[_i];
    char *path = make_image(recipe);

    agree(path, recipe->name, "as made", false);
    struct check_result ours = check_ours(path, CHECK_ONLY);
    ck_assert_int_eq(verdict_of(&ours), VERDICT_CLEAN);
    ck_assert_uint_gt(ours.allocated_clusters, 0);
    free(path);
}
END_TEST

/* The counts that qemu-img check prints besides. */
START_TEST(agree_on_cluster_counts)
{
    char json[8192];
    char *path = make_image(&recipes[_i]);
    char *command = text("qemu-img check -f qcow2 --output=json %s 2>/dev/null", path);
    FILE *pipe = popen(command, "r");
    ck_assert_ptr_nonnull(pipe);
    size_t len = fread(json, 1, sizeof(json) - 1, pipe);
    json[len] = '\0';
    ck_assert_int_eq(pclose(pipe), 0);

    struct check_result ours = check_ours(path, CHECK_ONLY);
    ck_assert_uint_eq(ours.allocated_clusters, json_number(json, "allocated-clusters"));
    ck_assert_uint_eq(ours.compressed_clusters, json_number(json, "compressed-clusters"));
    ck_assert_uint_eq(ours.total_clusters, json_number(json, "total-clusters"));
    ck_assert_uint_eq(ours.image_end_bytes, json_number(json, "image-end-offset"));
    free(command);
    free(path);
}
END_TEST

static void damage_and_repair(const struct recipe *recipe, const char *original,
                              const struct damage *damage)
{
    struct test_image image;
    char *path = path_of("damaged.qcow2");

    test_image_load(&image, original);
    bool applies = damage->apply(&image);
    if (applies) {
        test_image_save(&image, path);
        agree(path, recipe->name, damage->name, damage->qemu_is_laxer);
    }
    test_image_free(&image);
    if (applies && damage->repairable) {
        char *copy = path_of("copy.qcow2");
        run(text("cp %s %s", path, copy));
        struct check_result result = check_ours(path, CHECK_REPAIR_ALL);
        ck_assert_msg(verdict_of(&result) == VERDICT_CLEAN, "%s, %s: not repaired", recipe->name,
                      damage->name);
        ck_assert_msg(judge_qemu(path).verdict == VERDICT_CLEAN,
                      "%s, %s: repaired, but not to QEMU's satisfaction", recipe->name,
                      damage->name);
        /* What these two read as depends on bytes that are damaged. */
        if (!strstr(damage->name, "compressed")) {
            run(text("qemu-img compare -f qcow2 -F qcow2 %s %s", copy, path));
        }
        free(copy);
    }
    free(path);
}

START_TEST(agree_on_damaged_images)
{
    const struct recipe *recipe = &recipes[_i];

    if (!recipe->damage) {
        return;
    }
    char *original = make_image(recipe);
    for (size_t i = 0; i < test_damage_count; i++) {
        damage_and_repair(recipe, original, &test_damages[i]);
    }
    free(original);
}
END_TEST

/* Counts scrambled all over, a random count of times: whatever QEMU finds, we find. */
START_TEST(agree_on_scrambled_counts)
{
    const struct recipe *recipe = &recipes[_i];
    unsigned seed = 17U * (unsigned)_i + 1;
    char *original = make_image(recipe);
    char *path = path_of("damaged.qcow2");

    for (unsigned round = 0; round < 3; round++) {
        struct test_image image;
        test_image_load(&image, original);
        uint64_t clusters = image.len_bytes / image.geo.cluster_bytes;
        uint64_t limit = MIN_OF(clusters, image.geo.refblock_entries);
        for (unsigned n = 0; n < 3; n++) {
            uint64_t cluster = (uint64_t)rand_r(&seed) % limit;
            uint64_t count = (uint64_t)rand_r(&seed) % 4;
            test_image_set_refcount(&image, cluster, MIN_OF(count, image.geo.refcount_max));
        }
        test_image_save(&image, path);
        test_image_free(&image);
        agree(path, recipe->name, "scrambled", false);
        struct check_result result = check_ours(path, CHECK_REPAIR_ALL);
        ck_assert_int_eq(verdict_of(&result), VERDICT_CLEAN);
        ck_assert_int_eq(judge_qemu(path).verdict, VERDICT_CLEAN);
        run(text("qemu-img compare -f qcow2 -F qcow2 %s %s", original, path));
    }
    free(path);
    free(original);
}
END_TEST

/* Damage below a snapshot only; the active disk is in order. */
START_TEST(agree_on_damaged_snapshot)
{
    static const uint64_t flips[] = {1ULL << 60, 1ULL << 45, 512};
    struct disk *disk;
    struct header header;
    char *original = make_image(&recipes[9]);
    char *path = path_of("damaged.qcow2");

    int rc = world.world.ops->co_disk_open(&world.world, original, DISK_READ_ONLY, &disk, &err);
    ck_assert_int_eq(rc, 0);
    ck_assert_int_eq(co_header_read(disk, &header, &err), 0);
    ck_assert_uint_eq(header.snapshot_count, 2);
    ck_assert_str_eq(header.snapshots[0].name, "one");
    ck_assert_str_eq(header.snapshots[1].name, "two");
    ck_assert_uint_eq(header.snapshots[0].disk_size_bytes, 8U << 20);
    for (size_t i = 0; i < ARRAY_LEN(flips); i++) {
        struct test_image image;
        test_image_load(&image, original);
        uint64_t at = header.snapshots[0].l1_offset.bytes;
        test_image_put(&image, at, test_image_get(&image, at) ^ flips[i]);
        test_image_save(&image, path);
        test_image_free(&image);
        agree(path, "snapshots", "L1 entry of a snapshot", false);
    }
    header_free(&header);
    disk_close(disk);
    free(path);
    free(original);
}
END_TEST

int main(void)
{
    TCase *tcase = tcase_create("check against qemu-img");
    const int count = (int)ARRAY_LEN(recipes);

    if (system("qemu-img --version >/dev/null 2>&1 && qemu-io --version >/dev/null 2>&1") != 0) {
        return MESON_SKIP;
    }
    tcase_add_checked_fixture(tcase, setup, teardown);
    tcase_set_timeout(tcase, 100);
    tcase_add_loop_test(tcase, agree_on_good_images, 0, count);
    tcase_add_loop_test(tcase, agree_on_cluster_counts, 0, count);
    tcase_add_loop_test(tcase, agree_on_scrambled_counts, 0, count);
    tcase_add_loop_test(tcase, agree_on_damaged_images, 0, count);
    tcase_add_test(tcase, agree_on_damaged_snapshot);
    Suite *suite = suite_create("check_qemu");
    suite_add_tcase(suite, tcase);
    return test_suite_run(suite);
}
