/* SPDX-License-Identifier: BSD-2-Clause */
/*
 * O11 A bitmap never misses a write. Writers work side by side, checkpoints come between, and then
 * the image is closed, or the power goes. What is found afterwards is held against the disk itself:
 * every byte that differs from what it was when the bitmap began must be dirty.
 */
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "base/limits.h"
#include "qcow2/bitmap_record.h"
#include "qcow2/bitmap_store.h"
#include "qcow2/bitmaps.h"
#include "qcow2/header_extension.h"
#include "qcow2/test_rig.h"

#define DISK    (24 * MIB + 512)
#define REGION  MIB
#define WRITERS 3U

struct story {
    uint8_t *before; /* the disk when the bitmaps began */
    uint8_t *now;
    uint8_t *touched; /* a byte for each 512: a request was about it since */
    bool crashes;
    unsigned requests_left;
    unsigned crash_at;   /* requests left then */
    unsigned calls_left; /* of the disk while it is closed, until it crashes; 0: it does not */
};

static struct story *story_of(struct rig *rig)
{
    return rig->arg;
}

static struct live_bitmap *find_live(struct rig *rig, const char *name)
{
    struct bitmaps *bitmaps = &rig->q->bitmaps;
    struct stored_bitmap *stored = bitmap_directory_find(&bitmaps->directory, name);
    ck_assert_msg(stored != NULL, "%s is not there", name);
    return &bitmaps->live[stored - bitmaps->directory.bitmaps];
}

static uint32_t flags_of(struct rig *rig, const char *name)
{
    struct stored_bitmap *stored = bitmap_directory_find(&rig->q->bitmaps.directory, name);
    ck_assert_ptr_nonnull(stored);
    return stored->flags;
}

static void co_read_disk(struct rig *rig, uint8_t *bytes)
{
    for (uint64_t at = 0; at < DISK; at += MIB) {
        ck_assert_int_eq(
            rig->image->ops->co_read(rig->image, at, bytes + at, MIN_OF(MIB, DISK - at), NULL), 0);
    }
}

static bool is_dirty(const struct bitmap *bits, uint64_t offset)
{
    bool dirty;
    uint64_t end;
    bitmap_next(bits, offset, DISK, &dirty, &end);
    return dirty;
}

/* Covers what differs; and nothing else than was touched, at its granularity, or was open. */
static void co_judge(struct rig *rig, const char *name, bool after_crash)
{
    struct story *story = story_of(rig);
    const struct live_bitmap *live = find_live(rig, name);
    ck_assert_msg(live->has_bits, "%s is inconsistent", name);
    unsigned bits = live->bits.granularity_bits;
    uint64_t unit = after_crash ? MAX_OF(1ULL << bits, REGION) : 1ULL << bits;

    const char *wrong = NULL;
    uint64_t at = 0;
    co_read_disk(rig, story->now);
    for (; at < DISK && !wrong; at += 512) {
        bool differs = memcmp(story->now + at, story->before + at, 512) != 0;
        bool dirty = is_dirty(&live->bits, at);
        uint64_t first = round_down_to(at, unit) / 512;
        uint64_t count = MIN_OF(unit, DISK - first * 512) / 512;
        if (differs && !dirty) {
            wrong = "misses a change";
        } else if (!after_crash && story->touched[at / 512] && !dirty) {
            wrong = "misses a request";
        } else if (dirty && !memchr(story->touched + first, 1, count)) {
            wrong = "has too much";
        }
    }
    ck_assert_msg(!wrong, "%s %s at %llu", name, wrong, (unsigned long long)(at - 512));
}

static void co_writer(struct rig *rig)
{
    struct story *story = story_of(rig);
    const struct image_ops *ops = rig->image->ops;
    uint8_t *bytes = malloc(128 * KIB);

    while (story->requests_left > 0 && !sim_crashed(rig->world)) {
        story->requests_left--;
        uint64_t offset = sim_random_below(rig->world, DISK / 512) * 512;
        if (sim_random_below(rig->world, 3) == 0) {
            offset %= 3 * MIB; /* so that regions are idle elsewhere */
        }
        uint64_t most = sim_random_below(rig->world, 4) == 0 ? 128 * KIB : 4 * KIB;
        uint64_t len = 512 + sim_random_below(rig->world, MIN_OF(most, DISK - offset) / 512) * 512;
        len = MIN_OF(len, DISK - offset);
        uint64_t kind = sim_random_below(rig->world, 12);
        int ret = 0;
        if (kind < 10) {
            memset(story->touched + offset / 512, 1, len / 512);
        }
        if (kind < 7) {
            memset(bytes, 1 + (int)sim_random_below(rig->world, 255), len);
            ret = ops->co_write(rig->image, offset, bytes, len, kind == 0 ? IMAGE_FUA : 0);
        } else if (kind == 7) {
            ret = ops->co_trim(rig->image, offset, len, 0);
        } else if (kind < 10) {
            ret = ops->co_zero(rig->image, offset, len, 0);
        } else if (kind == 10) {
            ret = ops->co_flush(rig->image);
        } else {
            ret = co_bitmap_checkpoint(rig->q);
        }
        ck_assert(ret == 0 || sim_crashed(rig->world));
        if (story->crashes && story->requests_left <= story->crash_at && !sim_crashed(rig->world)) {
            sim_crash(rig->world);
        }
    }
    free(bytes);
}

static void co_prepare(struct rig *rig)
{
    const struct bitmap_change changes[] = {
        {BITMAP_ADD, .name = "fine", .granularity_bits = 9},
        {BITMAP_ADD, .name = "coarse", .granularity_bits = 21},
        {BITMAP_ADD, .name = "off", .granularity_bits = 16, .disabled = true},
    };
    struct errtext err = {""};
    struct story *story = story_of(rig);

    for (unsigned i = 0; i < 20; i++) { /* something to differ from */
        uint64_t offset = sim_random_below(rig->world, DISK / 512) * 512;
        co_rig_write(rig, offset, MIN_OF(64 * KIB, DISK - offset), 1 + (int)i);
    }
    co_rig_close(rig);
    co_rig_open(rig);
    ck_assert_int_eq(co_qcow2_bitmap_change(rig->image, changes, ARRAY_LEN(changes), &err), 0);
    co_read_disk(rig, story->before);
}

static void crash_in_time(struct rig *rig, const struct rig_event *event, const struct iovec *iov,
                          int iov_count)
{
    struct story *story = story_of(rig);
    (void)event, (void)iov, (void)iov_count;
    if (story->calls_left > 0 && --story->calls_left == 0 && !sim_crashed(rig->world)) {
        sim_crash(rig->world);
    }
}

static void co_live(struct rig *rig)
{
    struct story *story = story_of(rig);

    co_prepare(rig);
    for (unsigned life = 0; life < 4; life++) {
        story->crashes = sim_random_below(rig->world, 3) > 0;
        story->requests_left = 10 + (unsigned)sim_random_below(rig->world, 60);
        story->crash_at = (unsigned)sim_random_below(rig->world, story->requests_left);
        for (unsigned i = 0; i < WRITERS; i++) {
            rig_spawn(rig, co_writer);
        }
        co_rig_join(rig);
        story->calls_left = (unsigned)sim_random_below(rig->world, 40);
        rig->look = crash_in_time;
        int ret = co_rig_end(rig);
        rig->look = NULL;
        bool crashed = sim_crashed(rig->world);
        ck_assert(ret == 0 || crashed);
        if (crashed) {
            sim_reboot(rig->world);
        }
        rig->options.read_only = sim_random_below(rig->world, 2);
        co_rig_open(rig);
        /* Once opened for writing, or read only: the same is seen. */
        co_judge(rig, "fine", crashed || life > 0);
        co_judge(rig, "coarse", crashed || life > 0);
        ck_assert_uint_eq(bitmap_count_bytes(&find_live(rig, "off")->bits), 0);
        if (rig->options.read_only) {
            co_rig_close(rig);
            rig->options.read_only = false;
            co_rig_open(rig);
            co_judge(rig, "fine", true);
        }
        ck_assert_uint_eq(flags_of(rig, "fine") & QCOW2_BITMAP_IN_USE, 0);
        ck_assert_uint_eq(rig->q->header.autoclear & QCOW2_AUTOCLEAR_INTENT, 0);
    }
}

static void run_story(uint64_t seed, uint64_t cluster_bytes, rig_body *body)
{
    struct story story = {
        .before = malloc(DISK), .now = malloc(DISK), .touched = calloc(1, DISK / 512 + 1)};
    struct rig rig;

    ck_assert(story.before && story.now && story.touched);
    rig_init(&rig, seed);
    rig.create.size_bytes = DISK;
    rig.create.cluster_bytes = cluster_bytes;
    rig.arg = &story;
    rig.skip_check = true; /* a crash may leave leaks */
    rig_run(&rig, body);
    rig_free(&rig);
    free(story.before);
    free(story.now);
    free(story.touched);
}

START_TEST(bitmaps_cover_what_changed)
{
    static const uint64_t cluster_sizes[] = {4096, 65536, 16384, 2 * MIB};

    for (uint64_t seed = 1; seed <= 24; seed++) {
        run_story(seed, cluster_sizes[seed % ARRAY_LEN(cluster_sizes)], co_live);
    }
}
END_TEST

/* ---- Single steps ---- */

static void co_only_read(struct rig *rig)
{
    struct bitmap_change change = {BITMAP_ADD, .name = "b"};
    struct errtext err = {""};
    uint8_t bytes[512];

    ck_assert_int_eq(co_qcow2_bitmap_change(rig->image, &change, 1, &err), 0);
    co_rig_close(rig);
    struct test_image before = rig_get(rig, RIG_IMAGE);
    co_rig_open(rig);
    ck_assert_int_eq(rig->image->ops->co_read(rig->image, 0, bytes, sizeof(bytes), NULL), 0);
    co_rig_close(rig);
    struct test_image after = rig_get(rig, RIG_IMAGE);
    ck_assert_uint_eq(before.len_bytes, after.len_bytes);
    ck_assert_int_eq(memcmp(before.bytes, after.bytes, before.len_bytes), 0);
    test_image_free(&before);
    test_image_free(&after);
    co_rig_open(rig);
    co_rig_write(rig, 0, 512, 1);
    ck_assert_uint_ne(flags_of(rig, "b") & QCOW2_BITMAP_IN_USE, 0);
    ck_assert_uint_ne(rig->q->header.autoclear & QCOW2_AUTOCLEAR_INTENT, 0);
}

START_TEST(an_image_that_is_only_read_stays_as_it_is)
{
    struct rig rig;
    rig_init(&rig, 1);
    rig_run(&rig, co_only_read);
    rig_free(&rig);
}
END_TEST

static void co_overwrites(struct rig *rig)
{
    struct bitmap_change change = {BITMAP_ADD, .name = "b"};
    struct errtext err = {""};

    ck_assert_int_eq(co_qcow2_bitmap_change(rig->image, &change, 1, &err), 0);
    co_rig_write(rig, 0, 65536, 1);
    co_rig_flush(rig);
    rig_forget(rig);
    co_rig_write(rig, 4096, 512, 2);
    co_rig_write(rig, 8192, 512, 2);
    ck_assert_str_eq(rig_script(rig), ""); /* nothing but data goes out in an open region */
    ck_assert_uint_eq(intent_count_open(&rig->q->recording.intent), 1);
    co_rig_write(rig, 3 * MIB, 512, 2);
    ck_assert_uint_eq(intent_count_open(&rig->q->recording.intent), 2);
    ck_assert_int_eq(co_bitmap_checkpoint(rig->q), 0);
    ck_assert_uint_eq(intent_count_open(&rig->q->recording.intent), 0);
    co_rig_write(rig, 4096, 512, 3);
    ck_assert_uint_eq(intent_count_open(&rig->q->recording.intent), 1);
}

START_TEST(an_open_region_costs_nothing)
{
    struct rig rig;
    rig_init(&rig, 2);
    rig_run(&rig, co_overwrites);
    rig_free(&rig);
}
END_TEST

static void co_foreign(struct rig *rig)
{
    struct bitmap_change change = {BITMAP_ADD, .name = "b"};
    struct errtext err = {""};

    ck_assert_int_eq(co_qcow2_bitmap_change(rig->image, &change, 1, &err), 0);
    co_rig_write(rig, 0, 512, 1);
    sim_crash(rig->world);
    co_rig_end(rig);
    sim_reboot(rig->world);
    /* Another program opens it for writing: it clears what it does not know. */
    struct test_image image = rig_get(rig, RIG_IMAGE);
    image.bytes[88 + 2] = 0; /* bits 40 to 47 of the autoclear features */
    rig_put(rig, RIG_IMAGE, &image);
    test_image_free(&image);
    co_rig_open(rig);
    ck_assert(!find_live(rig, "b")->has_bits);
    ck_assert_uint_eq(qcow2_bitmap_list(rig->image, NULL, 0), 0);
    co_rig_write(rig, 0, 512, 1);
    ck_assert_uint_ne(flags_of(rig, "b") & QCOW2_BITMAP_IN_USE, 0);
}

START_TEST(what_others_may_have_changed_is_not_trusted)
{
    for (uint64_t seed = 1; seed < 20; seed++) {
        struct rig rig;
        rig_init(&rig, seed);
        rig.skip_check = true;
        rig_run(&rig, co_foreign);
        rig_free(&rig);
    }
}
END_TEST

int main(void)
{
    Suite *suite = suite_create("bitmap record");
    TCase *cases = tcase_create("record");

    tcase_set_timeout(cases, 100);
    tcase_add_test(cases, bitmaps_cover_what_changed);
    tcase_add_test(cases, an_image_that_is_only_read_stays_as_it_is);
    tcase_add_test(cases, an_open_region_costs_nothing);
    tcase_add_test(cases, what_others_may_have_changed_is_not_trusted);
    suite_add_tcase(suite, cases);
    return rig_main(suite);
}
