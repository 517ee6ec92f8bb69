/* SPDX-License-Identifier: BSD-2-Clause */
/*
 * Bitmaps come, go and change, on images of many shapes; each call of a change is the last one that
 * works, once, and what is found then is what was there before or what should be there after. What
 * a hostile image says of its bitmaps is refused with a message.
 */
#include "qcow2/bitmaps.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/bytes.h"
#include "base/limits.h"
#include "qcow2/bitmap_store.h"
#include "qcow2/check.h"
#include "qcow2/header_extension.h"
#include "qcow2/resize.h"
#include "qcow2/test_rig.h"

#define DISK (40 * MIB + 512)

static const uint64_t cluster_sizes[] = {512, 4096, 65536, 2 * MIB};

static void begin(struct rig *rig, uint64_t cluster_bytes)
{
    rig_init(rig, 7);
    rig->create.size_bytes = DISK;
    rig->create.cluster_bytes = cluster_bytes;
    rig->options.bitmaps_only = true;
}

static int co_try(struct rig *rig, struct bitmap_change change, struct errtext *err)
{
    return co_qcow2_bitmap_change(rig->image, &change, 1, err);
}

static void co_change(struct rig *rig, struct bitmap_change change)
{
    struct errtext err = {""};
    int ret = co_try(rig, change, &err);
    ck_assert_msg(ret == 0, "%s", err.text);
}

static void co_refused(struct rig *rig, struct bitmap_change change, int errno_value,
                       const char *text)
{
    struct errtext err = {""};
    int ret = co_try(rig, change, &err);
    ck_assert_int_eq(ret, -errno_value);
    ck_assert_msg(strstr(err.text, text), "%s", err.text);
}

static void co_reopen(struct rig *rig)
{
    co_rig_close(rig);
    co_rig_open(rig);
}

static struct live_bitmap *find_live(struct rig *rig, const char *name)
{
    struct bitmaps *bitmaps = &rig->q->bitmaps;
    struct stored_bitmap *stored = bitmap_directory_find(&bitmaps->directory, name);
    ck_assert_msg(stored != NULL, "%s is not there", name);
    return &bitmaps->live[stored - bitmaps->directory.bitmaps];
}

static struct bitmap_facts facts_of(struct rig *rig, const char *name)
{
    struct bitmap_facts facts[64];
    size_t count = qcow2_bitmap_facts(rig->image, facts, ARRAY_LEN(facts));
    for (size_t i = 0; i < count; i++) {
        if (strcmp(facts[i].name, name) == 0) {
            return facts[i];
        }
    }
    ck_abort_msg("%s is not there", name);
}

/* Adds a bitmap in which these granules are dirty: set in the first bitmap, and merged from it. */
static void co_add_dirty(struct rig *rig, const char *name, uint8_t bits, const uint64_t *granules,
                         size_t count)
{
    co_change(rig, (struct bitmap_change){BITMAP_ADD, .name = "scratch", .granularity_bits = bits});
    for (size_t i = 0; i < count; i++) {
        bitmap_set(&find_live(rig, "scratch")->bits, granules[i] << bits, 1);
    }
    co_change(rig, (struct bitmap_change){BITMAP_ADD, .name = name, .granularity_bits = bits});
    co_change(rig, (struct bitmap_change){BITMAP_MERGE, .name = name, .source = "scratch"});
    co_change(rig, (struct bitmap_change){BITMAP_REMOVE, .name = "scratch"});
}

/* The dirty extents must be these granules and no others. */
static void co_expect(struct rig *rig, const char *name, uint8_t bits, const uint64_t *granules,
                      size_t count)
{
    struct extent extents[256];
    struct extent_list list = {extents, ARRAY_LEN(extents), 0};
    uint64_t at = 0;
    size_t seen = 0;
    int ret = co_qcow2_bitmap_extents(rig->image, find_live(rig, name)->id, 0, DISK, &list);
    ck_assert_int_eq(ret, 0);
    for (unsigned i = 0; i < list.count; i++) {
        if (extents[i].flags & EXTENT_DIRTY) {
            ck_assert_uint_lt(seen, count);
            ck_assert_uint_eq(at, granules[seen] << bits);
            ck_assert_uint_eq(extents[i].len, MIN_OF(1ULL << bits, DISK - at));
            seen++;
        }
        at += extents[i].len;
    }
    ck_assert_uint_eq(at, DISK);
    ck_assert_uint_eq(seen, count);
}

static const uint64_t few[] = {0, 2, 9};

static void co_live(struct rig *rig)
{
    const uint64_t last[] = {DISK >> 16};
    co_change(rig, (struct bitmap_change){BITMAP_ADD, .name = "first"});
    ck_assert(facts_of(rig, "first").enabled);
    ck_assert_uint_eq(facts_of(rig, "first").granularity_bytes,
                      MIN_OF(MAX_OF(rig->create.cluster_bytes, 4096U), 65536U));
    co_change(rig, (struct bitmap_change){BITMAP_ADD, .name = "off", .disabled = true});
    ck_assert(!facts_of(rig, "off").enabled);
    co_add_dirty(rig, "few", 16, few, ARRAY_LEN(few));
    co_add_dirty(rig, "last", 16, last, 1);
    co_reopen(rig);
    ck_assert_uint_eq(qcow2_bitmap_list(rig->image, NULL, 0), 4);
    ck_assert(!facts_of(rig, "off").enabled);
    ck_assert_uint_eq(facts_of(rig, "few").dirty_bytes, 3 * 65536);
    co_expect(rig, "few", 16, few, ARRAY_LEN(few));
    co_expect(rig, "last", 16, last, 1);
    co_change(rig, (struct bitmap_change){BITMAP_ENABLE, .name = "off"});
    co_change(rig, (struct bitmap_change){BITMAP_DISABLE, .name = "few"});
    co_change(rig, (struct bitmap_change){BITMAP_CLEAR, .name = "last"});
    co_reopen(rig);
    ck_assert(facts_of(rig, "off").enabled && !facts_of(rig, "few").enabled);
    co_expect(rig, "last", 16, NULL, 0);
    co_expect(rig, "few", 16, few, ARRAY_LEN(few));
    /* Into a finer and a coarser one. */
    co_change(rig, (struct bitmap_change){BITMAP_ADD, .name = "coarse", .granularity_bits = 20});
    co_change(rig, (struct bitmap_change){BITMAP_MERGE, .name = "coarse", .source = "few"});
    co_expect(rig, "coarse", 20, few, 1);
    co_change(rig, (struct bitmap_change){BITMAP_ADD, .name = "fine", .granularity_bits = 9});
    co_change(rig, (struct bitmap_change){BITMAP_MERGE, .name = "fine", .source = "few"});
    ck_assert_uint_eq(facts_of(rig, "fine").dirty_bytes, 3 * 65536);
    co_change(rig, (struct bitmap_change){BITMAP_MERGE, .name = "few", .source = "few"});
    co_reopen(rig);
    co_expect(rig, "coarse", 20, few, 1);
    co_expect(rig, "few", 16, few, ARRAY_LEN(few));
    uint64_t corruptions, leaks;
    co_rig_close(rig);
    co_rig_check(rig, &corruptions, &leaks);
    ck_assert_uint_eq(corruptions + leaks, 0);
    co_rig_open(rig);
    struct bitmap_change all[] = {
        {BITMAP_REMOVE, .name = "first"}, {BITMAP_REMOVE, .name = "off"},
        {BITMAP_REMOVE, .name = "few"},   {BITMAP_REMOVE, .name = "last"},
        {BITMAP_REMOVE, .name = "fine"},  {BITMAP_REMOVE, .name = "coarse"}};
    struct errtext err = {""};
    int ret = co_qcow2_bitmap_change(rig->image, all, ARRAY_LEN(all), &err);
    ck_assert_msg(ret == 0, "%s", err.text);
    ck_assert_uint_eq(qcow2_bitmap_list(rig->image, NULL, 0), 0);
    co_reopen(rig);
    ck_assert_uint_eq(rig->q->header.autoclear, 0);
    ck_assert_uint_eq(rig->q->bitmaps.directory.count, 0);
}

START_TEST(a_life_of_bitmaps)
{
    struct rig rig;
    begin(&rig, cluster_sizes[_i]);
    rig_run(&rig, co_live);
    rig_free(&rig);
}
END_TEST

static void co_all_granularities(struct rig *rig)
{
    char name[16];
    for (uint8_t bits = 9; bits <= 31; bits++) {
        snprintf(name, sizeof(name), "g%u", bits);
        co_change(rig, (struct bitmap_change){BITMAP_ADD, .name = name, .granularity_bits = bits});
        bitmap_set(&find_live(rig, name)->bits, DISK - 1, 1);
        bitmap_set(&find_live(rig, name)->bits, 0, 20 * MIB);
        snprintf(name, sizeof(name), "m%u", bits);
        co_change(rig, (struct bitmap_change){BITMAP_ADD, .name = name, .granularity_bits = bits});
        struct bitmap_change merge = {BITMAP_MERGE, .name = name};
        char source[16];
        snprintf(source, sizeof(source), "g%u", bits);
        merge.source = source;
        co_change(rig, merge);
    }
    co_reopen(rig);
    for (uint8_t bits = 9; bits <= 31; bits++) {
        snprintf(name, sizeof(name), "m%u", bits);
        uint64_t granule = 1ULL << bits;
        uint64_t head = round_up_to(20 * MIB, granule);
        uint64_t tail = DISK - round_down_to(DISK - 1, granule);
        ck_assert_uint_eq(facts_of(rig, name).dirty_bytes, head >= DISK ? DISK : head + tail);
    }
}

START_TEST(all_granularities)
{
    struct rig rig;
    begin(&rig, cluster_sizes[_i]);
    rig_run(&rig, co_all_granularities);
    rig_free(&rig);
}
END_TEST

static void co_refusals(struct rig *rig)
{
    char name[1025];
    memset(name, 'x', sizeof(name) - 1);
    name[1024] = '\0';
    co_change(rig, (struct bitmap_change){BITMAP_ADD, .name = "a"});
    co_refused(rig, (struct bitmap_change){BITMAP_ADD, .name = "a"}, EEXIST, "exists already");
    co_refused(rig, (struct bitmap_change){BITMAP_ADD, .name = ""}, EINVAL, "1 to 1023");
    co_refused(rig, (struct bitmap_change){BITMAP_ADD, .name = name}, EINVAL, "has 1024 bytes");
    co_refused(rig, (struct bitmap_change){BITMAP_ADD, .name = "\xff"}, EINVAL, "not UTF-8");
    co_refused(rig, (struct bitmap_change){BITMAP_ADD, .name = "b", .granularity_bits = 8}, EINVAL,
               "512 to 2G");
    co_refused(rig, (struct bitmap_change){BITMAP_ADD, .name = "b", .granularity_bits = 32}, EINVAL,
               "512 to 2G");
    co_refused(rig, (struct bitmap_change){BITMAP_CLEAR, .name = "b"}, ENOENT, "does not exist");
    co_refused(rig, (struct bitmap_change){BITMAP_MERGE, .name = "a", .source = "b"}, ENOENT,
               "'b' does not exist");
    name[1023] = '\0';
    co_change(rig, (struct bitmap_change){BITMAP_ADD, .name = name});
    /* All or none. */
    const struct bitmap_change two[] = {{BITMAP_ADD, .name = "c"}, {BITMAP_REMOVE, .name = "d"}};
    struct errtext err = {""};
    int ret = co_qcow2_bitmap_change(rig->image, two, 2, &err);
    ck_assert_int_eq(ret, -ENOENT);
    ck_assert_uint_eq(qcow2_bitmap_list(rig->image, NULL, 0), 2);
}

START_TEST(what_cannot_be)
{
    struct rig rig;
    begin(&rig, 65536);
    rig_run(&rig, co_refusals);
    rig_free(&rig);
}
END_TEST

/* A bitmap that another program has not saved. */
static void co_inconsistent(struct rig *rig)
{
    co_add_dirty(rig, "torn", 16, few, ARRAY_LEN(few));
    co_add_dirty(rig, "good", 16, few, ARRAY_LEN(few));
    struct stored_bitmap *torn = bitmap_directory_find(&rig->q->bitmaps.directory, "torn");
    int ret = co_bitmap_set_flags(rig->q->disk, torn, torn->flags | QCOW2_BITMAP_IN_USE);
    ck_assert_int_eq(ret, 0);
    co_reopen(rig);
    struct image_bitmap offered[4];
    ck_assert_uint_eq(qcow2_bitmap_list(rig->image, offered, 4), 1);
    ck_assert_str_eq(offered[0].name, "good");
    ck_assert(facts_of(rig, "torn").inconsistent && !facts_of(rig, "good").inconsistent);
    co_refused(rig, (struct bitmap_change){BITMAP_CLEAR, .name = "torn"}, EUCLEAN, "not saved");
    co_refused(rig, (struct bitmap_change){BITMAP_ENABLE, .name = "torn"}, EUCLEAN, "not saved");
    co_refused(rig, (struct bitmap_change){BITMAP_MERGE, .name = "good", .source = "torn"}, EUCLEAN,
               "not saved");
    co_change(rig, (struct bitmap_change){BITMAP_CLEAR, .name = "good"});
    co_reopen(rig);
    ck_assert(facts_of(rig, "torn").inconsistent);
    co_change(rig, (struct bitmap_change){BITMAP_REMOVE, .name = "torn"});
}

START_TEST(inconsistent_ones)
{
    struct rig rig;
    begin(&rig, 4096);
    rig_run(&rig, co_inconsistent);
    rig_free(&rig);
}
END_TEST

/* ---- Each call the last one ---- */

static const struct bitmap_change steps[] = {
    {BITMAP_ADD, .name = "new"},
    {BITMAP_REMOVE, .name = "few"},
    {BITMAP_CLEAR, .name = "few"},
    {BITMAP_DISABLE, .name = "few"},
    {BITMAP_MERGE, .name = "full", .source = "few"},
};
static enum rig_call fail_call;
static int fail_with;
static bool begin_empty; /* the image has no bitmap before */
static bool all_gone;

/* What the image's bitmaps are, as a text. */
static void describe(struct rig *rig, char *text, size_t size)
{
    struct bitmap_facts facts[8];
    size_t count = qcow2_bitmap_facts(rig->image, facts, ARRAY_LEN(facts));
    size_t len = 0;
    text[0] = '\0';
    for (size_t i = 0; i < count; i++) {
        len += (size_t)snprintf(text + len, size - len, "%s %llu %d %d; ", facts[i].name,
                                (unsigned long long)facts[i].dirty_bytes, facts[i].enabled,
                                facts[i].inconsistent);
    }
}

static void co_prepare(struct rig *rig)
{
    if (!begin_empty) {
        co_add_dirty(rig, "few", 16, few, ARRAY_LEN(few));
        co_change(rig, (struct bitmap_change){BITMAP_ADD, .name = "full"});
        co_reopen(rig);
    }
}

static int co_apply(struct rig *rig, const struct bitmap_change *change, struct errtext *err)
{
    const struct bitmap_change both[] = {{BITMAP_REMOVE, .name = "few"},
                                         {BITMAP_REMOVE, .name = "full"}};
    return all_gone ? co_qcow2_bitmap_change(rig->image, both, 2, err)
                    : co_qcow2_bitmap_change(rig->image, change, 1, err);
}

static void co_fail_at_each(struct rig *rig, const struct bitmap_change *change)
{
    char before[200], after[200], found[200];
    struct errtext err = {""};
    bool worked = false;
    rig->skip_check = true;
    co_prepare(rig);
    describe(rig, before, sizeof(before));
    co_rig_close(rig);
    struct test_image start = rig_get(rig, RIG_IMAGE);
    co_rig_open(rig);
    int ret = co_apply(rig, change, &err);
    ck_assert_msg(ret == 0, "%s", err.text);
    describe(rig, after, sizeof(after));
    co_rig_close(rig);
    for (unsigned skip = 0; !worked; skip++) {
        rig_put(rig, RIG_IMAGE, &start);
        co_rig_open(rig);
        rig_fail(rig, fail_call, 0, skip, fail_with);
        worked = co_apply(rig, change, &err) == 0;
        ck_assert(worked || err.text[0] != '\0');
        bool failed = rig->q->failed;
        if (!worked && !failed) { /* then all is as before, in memory, too */
            rig->fail_with = 0;
            describe(rig, found, sizeof(found));
            ck_assert_str_eq(found, before);
            co_rig_close(rig);
        } else {
            co_rig_end(rig);
            rig->fail_with = 0;
        }
        uint64_t corruptions, leaks;
        co_rig_check(rig, &corruptions, &leaks);
        ck_assert_uint_eq(corruptions, 0);
        ck_assert(failed || worked || leaks == 0);
        co_rig_open(rig);
        describe(rig, found, sizeof(found));
        ck_assert_msg(strcmp(found, before) == 0 || strcmp(found, after) == 0,
                      "%s, instead of %s, or %s", found, before, after);
        ck_assert(!worked || strcmp(found, after) == 0);
        co_rig_close(rig);
    }
    free(start.bytes);
    co_rig_open(rig);
}

static unsigned step;
static void co_fail_step(struct rig *rig)
{
    co_fail_at_each(rig, &steps[step]);
}

static void run_failing(unsigned number, bool empty, bool gone)
{
    static const struct {
        enum rig_call call;
        int with;
    } kinds[] = {{RIG_WRITE, -EIO}, {RIG_WRITE, -ENOSPC}, {RIG_FLUSH, -EIO}};
    for (size_t i = 0; i < ARRAY_LEN(kinds); i++) {
        struct rig rig;
        begin(&rig, 4096);
        fail_call = kinds[i].call;
        fail_with = kinds[i].with;
        step = number;
        begin_empty = empty;
        all_gone = gone;
        rig_run(&rig, co_fail_step);
        rig_free(&rig);
    }
}

START_TEST(each_call_may_be_the_last)
{
    run_failing((unsigned)_i, false, false);
}
END_TEST

START_TEST(the_first_and_the_last_bitmap)
{
    run_failing(0, true, false);
    run_failing(0, false, true);
}
END_TEST

/* ---- Power cuts ---- */

static unsigned calls_left; /* until the power is lost; 0: it stays */

static void lose_power(struct rig *rig, const struct rig_event *event, const struct iovec *iov,
                       int iov_count)
{
    (void)event;
    (void)iov;
    (void)iov_count;
    if (calls_left > 0 && --calls_left == 0) {
        sim_crash(rig->world);
    }
}

/* At each call of a change; what was not flushed is there in part, and torn. */
static void co_cut_at_each(struct rig *rig)
{
    char before[200], after[200], found[200];
    struct errtext err = {""};
    bool cut = true;
    rig->skip_check = true;
    co_prepare(rig);
    describe(rig, before, sizeof(before));
    co_rig_close(rig);
    struct test_image start = rig_get(rig, RIG_IMAGE);
    co_rig_open(rig);
    int ret = co_apply(rig, &steps[step], &err);
    ck_assert_msg(ret == 0, "%s", err.text);
    describe(rig, after, sizeof(after));
    co_rig_close(rig);
    rig->look = lose_power;
    for (unsigned round = 0; cut; round++) {
        rig_put(rig, RIG_IMAGE, &start);
        co_rig_open(rig);
        calls_left = 1 + round / 4;
        co_apply(rig, &steps[step], &err);
        calls_left = 0;
        cut = sim_crashed(rig->world);
        co_rig_end(rig);
        if (cut) {
            sim_reboot(rig->world);
        }
        uint64_t corruptions, leaks;
        co_rig_check(rig, &corruptions, &leaks);
        ck_assert_uint_eq(corruptions, 0);
        co_rig_open(rig);
        describe(rig, found, sizeof(found));
        ck_assert_msg(strcmp(found, before) == 0 || strcmp(found, after) == 0,
                      "%s, instead of %s, or %s", found, before, after);
        ck_assert(cut || strcmp(found, after) == 0);
        co_rig_close(rig);
    }
    free(start.bytes);
    co_rig_open(rig);
}

static void run_cutting(unsigned number, bool empty, bool gone)
{
    for (size_t i = 0; i < ARRAY_LEN(cluster_sizes) - 1; i++) {
        struct rig rig;
        begin(&rig, cluster_sizes[i]);
        step = number;
        begin_empty = empty;
        all_gone = gone;
        rig_run(&rig, co_cut_at_each);
        rig_free(&rig);
    }
}

START_TEST(the_power_goes)
{
    run_cutting((unsigned)_i, false, false);
}
END_TEST

START_TEST(the_power_goes_with_the_first_and_the_last)
{
    run_cutting(0, true, false);
    run_cutting(0, false, true);
}
END_TEST

/* ---- In place ---- */

static bool cuts_power;

/* Bits are added to what a bitmap has; whatever fails, no bit is lost, and none but those come. */
static void co_save_in_place(struct rig *rig)
{
    static const uint64_t added[] = {2, 5, 9, 300, DISK >> 16};
    const char *const bitmaps[] = {"few", "full"};
    bool worked = false;
    rig->skip_check = true;
    co_add_dirty(rig, "few", 16, few, ARRAY_LEN(few));
    co_change(rig, (struct bitmap_change){BITMAP_ADD, .name = "full", .granularity_bits = 9});
    co_rig_close(rig);
    struct test_image start = rig_get(rig, RIG_IMAGE);
    for (unsigned skip = 0; !worked; skip++) {
        rig_put(rig, RIG_IMAGE, &start);
        co_rig_open(rig);
        if (cuts_power) {
            rig->look = lose_power;
            calls_left = 1 + skip / 4;
        } else {
            rig_fail(rig, fail_call, 0, skip, fail_with);
        }
        worked = true;
        for (size_t i = 0; i < ARRAY_LEN(bitmaps) && worked; i++) {
            struct bitmap *bits = &find_live(rig, bitmaps[i])->bits;
            for (size_t k = 0; k < ARRAY_LEN(added); k++) {
                bitmap_set(bits, added[k] << 16, MIN_OF(65536U, DISK - (added[k] << 16)));
            }
            bitmap_set(bits, 20 * MIB, 6 * MIB); /* whole clusters of bits, in the second one */
            bitmap_snapshot(bits);
            int ret = co_bitmap_save(
                rig->q, bitmap_directory_find(&rig->q->bitmaps.directory, bitmaps[i]), bits);
            bitmap_snapshot_done(bits, ret == 0);
            worked = ret == 0;
        }
        bool failed = rig->q->failed;
        calls_left = 0;
        bool cut = sim_crashed(rig->world);
        co_rig_end(rig);
        rig->fail_with = 0;
        if (cut) {
            sim_reboot(rig->world);
        }
        uint64_t corruptions, leaks;
        co_rig_check(rig, &corruptions, &leaks);
        ck_assert_uint_eq(corruptions, 0);
        ck_assert(failed || cut || leaks == 0);
        co_rig_open(rig);
        uint64_t dirty = facts_of(rig, "few").dirty_bytes;
        uint64_t full = facts_of(rig, "full").dirty_bytes;
        const uint64_t all = (6 + 96) * 65536 - 65536 + 512;
        ck_assert_uint_ge(dirty, 3 * 65536);
        ck_assert_uint_le(dirty, all);
        ck_assert_uint_le(full, all - 65536);
        ck_assert(!worked || (dirty == all && full == all - 65536));
        for (size_t k = 0; k < ARRAY_LEN(few); k++) {
            bool is_dirty = false;
            uint64_t end;
            bitmap_next(&find_live(rig, "few")->bits, few[k] << 16, DISK, &is_dirty, &end);
            ck_assert(is_dirty);
        }
        co_rig_close(rig);
    }
    free(start.bytes);
    co_rig_open(rig);
}

START_TEST(bits_are_added_in_place)
{
    static const struct {
        enum rig_call call;
        int with;
    } kinds[] = {{RIG_WRITE, -EIO}, {RIG_WRITE, -ENOSPC}, {RIG_FLUSH, -EIO}};
    for (size_t i = 0; i < ARRAY_LEN(kinds); i++) {
        struct rig rig;
        begin(&rig, cluster_sizes[_i]);
        fail_call = kinds[i].call;
        fail_with = kinds[i].with;
        cuts_power = false;
        rig_run(&rig, co_save_in_place);
        rig_free(&rig);
    }
}
END_TEST

START_TEST(bits_are_added_until_the_power_goes)
{
    struct rig rig;
    begin(&rig, cluster_sizes[_i]);
    cuts_power = true;
    rig_run(&rig, co_save_in_place);
    rig_free(&rig);
}
END_TEST

/* ---- Another size ---- */

static void co_resize(struct rig *rig, uint64_t size_bytes)
{
    struct errtext err = {""};
    int ret = co_qcow2_resize(rig->image, size_bytes, &err);
    ck_assert_msg(ret == 0, "%s", err.text);
}

static void co_check_clean(struct rig *rig)
{
    uint64_t corruptions, leaks;
    co_rig_close(rig);
    co_rig_check(rig, &corruptions, &leaks);
    ck_assert_uint_eq(corruptions + leaks, 0);
    co_rig_open(rig);
}

static void co_resizes(struct rig *rig)
{
    static const uint64_t sizes[] = {DISK + 512,     DISK + 65536, 900 * MIB, 901 * MIB,
                                     30 * MIB + 512, 512,          40 * MIB};
    static const uint8_t bits[] = {9, 16, 24};
    uint64_t old = DISK;
    char name[8];
    co_add_dirty(rig, "few", 16, few, ARRAY_LEN(few));
    for (size_t i = 0; i < ARRAY_LEN(bits); i++) {
        snprintf(name, sizeof(name), "g%u", bits[i]);
        co_change(rig,
                  (struct bitmap_change){BITMAP_ADD, .name = name, .granularity_bits = bits[i]});
    }
    rig->options.bitmaps_only = false;
    co_reopen(rig);
    for (size_t s = 0; s < ARRAY_LEN(sizes); s++) {
        for (size_t i = 0; i < ARRAY_LEN(bits); i++) {
            snprintf(name, sizeof(name), "g%u", bits[i]);
            co_change(rig, (struct bitmap_change){BITMAP_CLEAR, .name = name});
        }
        co_resize(rig, sizes[s]);
        co_check_clean(rig);
        for (size_t i = 0; i < ARRAY_LEN(bits); i++) {
            snprintf(name, sizeof(name), "g%u", bits[i]);
            uint64_t start = round_down_to(old, 1ULL << bits[i]);
            ck_assert_uint_eq(facts_of(rig, name).dirty_bytes,
                              sizes[s] > old ? sizes[s] - start : 0);
        }
        old = sizes[s];
    }
    ck_assert_uint_eq(facts_of(rig, "few").dirty_bytes, 40 * MIB);
}

START_TEST(follow_the_disk)
{
    struct rig rig;
    begin(&rig, cluster_sizes[_i]);
    rig_run(&rig, co_resizes);
    rig_free(&rig);
}
END_TEST

static uint64_t wanted_bytes;

/* Whatever fails: the old size or the new one, and no bit lost. */
static void co_resize_failing(struct rig *rig)
{
    bool worked = false;
    rig->skip_check = true;
    co_add_dirty(rig, "few", 16, few, ARRAY_LEN(few));
    co_rig_close(rig);
    struct test_image start = rig_get(rig, RIG_IMAGE);
    rig->options.bitmaps_only = false;
    for (unsigned skip = 0; !worked; skip++) {
        struct errtext err = {""};
        rig_put(rig, RIG_IMAGE, &start);
        co_rig_open(rig);
        rig_fail(rig, fail_call, 0, skip, fail_with);
        worked = co_qcow2_resize(rig->image, wanted_bytes, &err) == 0;
        bool failed = rig->q->failed;
        co_rig_end(rig);
        rig->fail_with = 0;
        uint64_t corruptions, leaks;
        co_rig_check(rig, &corruptions, &leaks);
        ck_assert_uint_eq(corruptions, 0);
        co_rig_open(rig);
        uint64_t size = rig->image->size_bytes;
        ck_assert(size == DISK || size == wanted_bytes);
        ck_assert(!worked || size == wanted_bytes);
        ck_assert(worked || failed || size == DISK || wanted_bytes < DISK);
        uint64_t dirty = MIN_OF(size, 65536U) + (size > 1 * MIB ? 2 * 65536 : 0) +
                         (size > DISK ? size - round_down_to(DISK, 65536) : 0);
        uint64_t found = facts_of(rig, "few").dirty_bytes;
        /* A larger bitmap, and the old size: the granule that would be half new is dirty. */
        ck_assert(found == dirty || (size == DISK && !worked && found == dirty + 512));
        co_rig_close(rig);
    }
    free(start.bytes);
    co_rig_open(rig);
}

START_TEST(follow_the_disk_whatever_fails)
{
    static const uint64_t sizes[] = {700 * MIB, 65536};
    static const struct {
        enum rig_call call;
        int with;
    } kinds[] = {{RIG_WRITE, -EIO}, {RIG_WRITE, -ENOSPC}, {RIG_FLUSH, -EIO}};
    struct rig rig;
    begin(&rig, 4096);
    wanted_bytes = sizes[_i / (int)ARRAY_LEN(kinds)];
    fail_call = kinds[_i % (int)ARRAY_LEN(kinds)].call;
    fail_with = kinds[_i % (int)ARRAY_LEN(kinds)].with;
    rig_run(&rig, co_resize_failing);
    rig_free(&rig);
}
END_TEST

/* ---- Hostile ones ---- */

static uint64_t entry_at; /* of the first bitmap in the directory */
static uint64_t table_at;
static size_t kept; /* bitmaps that repairs kept */

static void put_number(struct test_image *image, uint64_t at, unsigned bytes, uint64_t value)
{
    for (unsigned i = 0; i < bytes; i++) {
        image->bytes[at + i] = (uint8_t)(value >> (8 * (bytes - 1 - i)));
    }
}

/* A check sees it; a repair drops the bitmap, or both where they are named alike. */
static void co_repair_keeps_the_good(struct rig *rig)
{
    struct check_options options = {.repair = CHECK_REPAIR_ALL};
    struct check_result result;
    struct errtext err = {""};
    struct header header;
    struct disk *disk;
    int ret = rig->world->ops->co_disk_open(rig->world, RIG_IMAGE, DISK_WRITABLE, &disk, &err);
    ck_assert_int_eq(ret, 0);
    ret = co_header_read(disk, &header, &err);
    ck_assert_int_eq(ret, 0);
    ret = co_qcow2_check(disk, &header, &options, &result, &err);
    ck_assert_msg(ret == 0, "%s", err.text);
    ck_assert_uint_eq(result.corruptions + result.leaks, 0);
    ck_assert_uint_gt(result.corruptions_fixed, 0);
    header_free(&header);
    disk_close(disk);
    co_rig_open(rig);
    ck_assert_uint_le(qcow2_bitmap_list(rig->image, NULL, 0), 1);
    kept += qcow2_bitmap_list(rig->image, NULL, 0);
    if (qcow2_bitmap_list(rig->image, NULL, 0) == 1) {
        ck_assert_uint_eq(qcow2_bitmap_facts(rig->image, NULL, 0), 1);
        struct bitmap_facts facts;
        qcow2_bitmap_facts(rig->image, &facts, 1);
        co_expect(rig, facts.name, 16, few, ARRAY_LEN(few));
    }
    co_rig_close(rig);
}

static void co_expect_damage(struct rig *rig, const struct test_image *good, uint64_t at,
                             unsigned bytes, uint64_t value, const char *text)
{
    struct errtext err = {""};
    struct test_image bad = {.len_bytes = good->len_bytes, .bytes = malloc(good->len_bytes)};
    memcpy(bad.bytes, good->bytes, good->len_bytes);
    put_number(&bad, at, bytes, value);
    rig_put(rig, RIG_IMAGE, &bad);
    int ret = co_rig_try_open(rig, &err);
    ck_assert_msg(ret == -EINVAL, "%s: %d", text, ret);
    ck_assert_msg(strstr(err.text, text) && strstr(err.text, RIG_IMAGE), "%s, not %s", err.text,
                  text);
    co_repair_keeps_the_good(rig);
    /* To look at, the disk is there; bitmaps are not. */
    rig_put(rig, RIG_IMAGE, &bad);
    free(bad.bytes);
    rig->options.read_only = true;
    rig->options.bitmaps_only = false;
    co_rig_open(rig);
    ck_assert_uint_eq(qcow2_bitmap_list(rig->image, NULL, 0), 0);
    ck_assert(rig_logged(rig, "its bitmaps are not offered"));
    co_rig_close(rig);
    rig->options.read_only = false;
    rig->options.bitmaps_only = true;
}

static void co_hostile(struct rig *rig)
{
    co_add_dirty(rig, "one", 16, few, ARRAY_LEN(few));
    co_add_dirty(rig, "two", 16, few, ARRAY_LEN(few));
    const struct stored_bitmap *one = &rig->q->bitmaps.directory.bitmaps[0];
    entry_at = one->entry_offset;
    table_at = one->table_offset.bytes;
    uint64_t l1_at = rig->q->header.l1_offset.bytes;
    uint64_t name_at = rig->q->bitmaps.directory.bitmaps[1].entry_offset + 24;
    co_rig_close(rig);
    struct test_image good = rig_get(rig, RIG_IMAGE);
    uint64_t end = good.len_bytes;

    co_expect_damage(rig, &good, entry_at, 8, table_at + 512, "bitmap_table_offset is 0x");
    co_expect_damage(rig, &good, entry_at, 8, 0, "bitmap_table_offset is 0x0");
    co_expect_damage(rig, &good, entry_at, 8, end + 65536, "bitmap_table_offset is 0x");
    co_expect_damage(rig, &good, entry_at, 8, 1ULL << 63, "bitmap_table_offset is 0x");
    co_expect_damage(rig, &good, entry_at + 8, 4, 0, "bitmap_table_size is 0: allowed is at least");
    co_expect_damage(rig, &good, entry_at + 8, 4, UINT32_MAX, "bitmap_table_size is 4294967295");
    co_expect_damage(rig, &good, entry_at + 17, 1, 8, "granularity_bits is 8: allowed is 9 to 31");
    co_expect_damage(rig, &good, entry_at + 17, 1, 32, "granularity_bits is 32");
    co_expect_damage(rig, &good, entry_at + 17, 1, 255, "granularity_bits is 255");
    co_expect_damage(rig, &good, entry_at + 18, 2, 0, "name_size is 0: allowed is 1 to 1023");
    co_expect_damage(rig, &good, entry_at + 18, 2, 1024, "entry 0 of the bitmap directory");
    co_expect_damage(rig, &good, entry_at + 20, 4, UINT32_MAX, "has 4294967");
    co_expect_damage(rig, &good, entry_at + 24, 1, 0, "contains a NUL byte");
    co_expect_damage(rig, &good, name_at, 3, 0x6f6e65, "names 'one' twice");
    co_expect_damage(rig, &good, table_at, 8, table_at | 2, "reserved bits must be zero");
    co_expect_damage(rig, &good, table_at, 8, table_at | 1, "reserved bits must be zero");
    co_expect_damage(rig, &good, table_at, 8, table_at + 512, "must be aligned");
    co_expect_damage(rig, &good, table_at, 8, (end + 65536) & ~65535ULL, "inside the file");
    ck_assert_uint_gt(kept, 10);
    rig_put(rig, RIG_IMAGE, &good);
    struct test_image bad = rig_get(rig, RIG_IMAGE);
    struct errtext err = {""};
    put_number(&bad, table_at, 8, l1_at);
    rig_put(rig, RIG_IMAGE, &bad);
    int ret = co_rig_try_open(rig, &err);
    ck_assert_int_eq(ret, -EINVAL);
    ck_assert_msg(strstr(err.text, "of bitmap 'one'") && strstr(err.text, "overlaps"), "%s",
                  err.text);
    free(bad.bytes);
    co_repair_keeps_the_good(rig);
    rig_put(rig, RIG_IMAGE, &good);
    free(good.bytes);
    co_rig_open(rig);
}

START_TEST(what_cannot_be_believed)
{
    struct rig rig;
    begin(&rig, 65536);
    rig_run(&rig, co_hostile);
    rig_free(&rig);
}
END_TEST

/* What a newer version knows is kept byte for byte. */
static void co_unknown(struct rig *rig)
{
    co_add_dirty(rig, "strange", 16, few, ARRAY_LEN(few));
    const struct stored_bitmap *strange = &rig->q->bitmaps.directory.bitmaps[0];
    uint64_t at = strange->entry_offset;
    co_rig_close(rig);
    struct test_image image = rig_get(rig, RIG_IMAGE);
    put_number(&image, at + 20, 4, 8); /* the name, one byte longer, is extra data now */
    memcpy(image.bytes + at + 24, "\1\2\3\4\5\6\7\10strange", 15);
    uint64_t len = 40;
    struct disk *disk;
    struct header header;
    struct header_place place;
    struct errtext err = {""};
    rig_put(rig, RIG_IMAGE, &image);
    int ret = rig->world->ops->co_disk_open(rig->world, RIG_IMAGE, DISK_READ_ONLY, &disk, &err);
    ck_assert_int_eq(ret, 0);
    ret = co_header_read(disk, &header, &err);
    ck_assert_int_eq(ret, 0);
    ret = co_header_extension_find(disk, &header, QCOW2_EXT_BITMAPS, &place);
    ck_assert_int_eq(ret, 0);
    put_number(&image, place.offset + 8, 8, len);
    header_free(&header);
    disk_close(disk);
    rig_put(rig, RIG_IMAGE, &image);
    free(image.bytes);
    co_rig_open(rig);
    ck_assert_uint_eq(qcow2_bitmap_list(rig->image, NULL, 0), 0);
    ck_assert_str_eq(facts_of(rig, "strange").unknown, "with unknown extra data");
    co_refused(rig, (struct bitmap_change){BITMAP_CLEAR, .name = "strange"}, ENOTSUP,
               "unknown extra data");
    co_change(rig, (struct bitmap_change){BITMAP_ADD, .name = "other"});
    co_reopen(rig);
    strange = bitmap_directory_find(&rig->q->bitmaps.directory, "strange");
    ck_assert_uint_eq(strange->extra_len, 8);
    ck_assert_int_eq(memcmp(strange->extra, "\1\2\3\4\5\6\7\10", 8), 0);
    co_change(rig, (struct bitmap_change){BITMAP_REMOVE, .name = "strange"});
}

START_TEST(what_newer_versions_know)
{
    struct rig rig;
    begin(&rig, 65536);
    rig_run(&rig, co_unknown);
    rig_free(&rig);
}
END_TEST

int main(void)
{
    Suite *suite = suite_create("bitmaps");
    TCase *tcase = tcase_create("bitmaps");
    tcase_set_timeout(tcase, 60);
    tcase_add_loop_test(tcase, a_life_of_bitmaps, 0, ARRAY_LEN(cluster_sizes));
    tcase_add_loop_test(tcase, all_granularities, 0, ARRAY_LEN(cluster_sizes));
    tcase_add_test(tcase, what_cannot_be);
    tcase_add_test(tcase, inconsistent_ones);
    tcase_add_loop_test(tcase, each_call_may_be_the_last, 0, ARRAY_LEN(steps));
    tcase_add_test(tcase, the_first_and_the_last_bitmap);
    tcase_add_loop_test(tcase, the_power_goes, 0, ARRAY_LEN(steps));
    tcase_add_test(tcase, the_power_goes_with_the_first_and_the_last);
    tcase_add_loop_test(tcase, bits_are_added_in_place, 0, ARRAY_LEN(cluster_sizes));
    tcase_add_loop_test(tcase, bits_are_added_until_the_power_goes, 0, ARRAY_LEN(cluster_sizes));
    tcase_add_loop_test(tcase, follow_the_disk, 0, ARRAY_LEN(cluster_sizes));
    tcase_add_loop_test(tcase, follow_the_disk_whatever_fails, 0, 6);
    tcase_add_test(tcase, what_cannot_be_believed);
    tcase_add_test(tcase, what_newer_versions_know);
    suite_add_tcase(suite, tcase);
    return rig_main(suite);
}
