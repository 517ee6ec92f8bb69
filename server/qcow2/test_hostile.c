/* SPDX-License-Identifier: BSD-2-Clause */
/*
 * Damaged and garbled images (O10). Opening one gives a message and leaves the file alone, or it
 * opens, and then requests give EIO where the damage is; a line is logged and the image is marked
 * corrupt. Whatever the tables say, no guest byte lands on metadata: each write, zero and punch
 * is looked at on its way to the disk.
 */
#include "qcow2/test_rig.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "base/bytes.h"
#include "base/limits.h"

#define DATA_CLUSTERS 12U

static const struct test_image_options shapes[] = {
    {3, 12, 4, false, DATA_CLUSTERS}, {3, 9, 4, false, DATA_CLUSTERS},
    {3, 9, 0, false, DATA_CLUSTERS},  {2, 12, 4, false, DATA_CLUSTERS},
    {3, 14, 4, true, DATA_CLUSTERS},  {3, 12, 6, false, DATA_CLUSTERS},
};

/* What the snapshots of the image under test need; none of it may ever change. */
#define KEPT_MAX 8U
struct watch {
    unsigned kept_count;
    uint64_t kept[KEPT_MAX]; /* host clusters */
    unsigned io_errors;      /* requests that ended with EIO */
};

static bool is_kept(const struct watch *watch, uint64_t cluster)
{
    for (unsigned i = 0; i < watch->kept_count; i++) {
        if (watch->kept[i] == cluster) {
            return true;
        }
    }
    return false;
}

static void guard(struct rig *rig, const struct rig_event *event, const struct iovec *iov,
                  int iov_count)
{
    struct qcow2 *q = rig->q;
    const struct watch *watch = rig->arg;
    uint64_t wrong;

    if (event->call == RIG_TRUNCATE) {
        ck_assert_uint_ge(event->offset, q->disk->size_bytes);
    }
    if (!rig_call_changes(event->call)) {
        return;
    }
    ck_assert(!rig->image->read_only);
    bool harms =
        rig_harms_metadata(q, event->call, event->offset, event->len, iov, iov_count, &wrong);
    uint64_t last = (event->offset + event->len - 1) >> q->geo.cluster_bits;
    for (uint64_t c = event->offset >> q->geo.cluster_bits; c <= last && !harms; c++) {
        harms = is_kept(watch, c);
        wrong = c;
    }
    if (harms) {
        ck_abort_msg("call %d of %#llx +%#llx touches metadata in cluster %#llx\n%s", event->call,
                     (unsigned long long)event->offset, (unsigned long long)event->len,
                     (unsigned long long)wrong << q->geo.cluster_bits, rig->log);
    }
}

static void tally(struct rig *rig, int ret)
{
    struct watch *watch = rig->arg;
    ck_assert_msg(ret == 0 || ret == -EIO || ret == -ENOSPC || ret == -ENOTSUP, "%d", ret);
    watch->io_errors += ret == -EIO;
}

static void co_random_request(struct rig *rig)
{
    struct image *image = rig->image;
    uint64_t unit = sim_random_below(rig->world, 3) == 0 ? 1 : 512;
    uint64_t offset = sim_random_below(rig->world, image->size_bytes / unit) * unit;
    uint64_t most = MIN_OF(image->size_bytes - offset, 5U * rig->q->geo.cluster_bytes);
    uint64_t wish = sim_random_below(rig->world, most) / unit * unit;
    uint64_t len = MAX_OF(wish, 1U);
    uint8_t *bytes = malloc(len);
    int ret = 0;

    ck_assert_ptr_nonnull(bytes);
    memset(bytes, 0xa5, len);
    switch (sim_random_below(rig->world, 8)) {
    case 0:
    case 1:
    case 2:
        ret = image->ops->co_write(image, offset, bytes, len, 0);
        break;
    case 3:
        ret = image->ops->co_trim(image, offset, len, 0);
        break;
    case 4:
        ret = image->ops->co_zero(image, offset, len, IMAGE_NO_HOLE);
        break;
    case 5:
        ret = image->ops->co_zero(image, offset, len, IMAGE_FAST_ZERO);
        break;
    case 6: {
        struct extent extents[4];
        struct extent_list list = {extents, 4, 0};
        ret = image->ops->co_extents(image, offset, len, &list);
        break;
    }
    default:
        ret = image->ops->co_read(image, offset, bytes, len, NULL);
        break;
    }
    free(bytes);
    tally(rig, ret);
}

static void co_random_requests(struct rig *rig)
{
    for (int i = 0; i < 12; i++) {
        co_random_request(rig);
    }
}

/* Several at once, with commits and releases between them. */
static void co_mistreat(struct rig *rig)
{
    for (int round = 0; round < 4; round++) {
        for (int i = 0; i < 3; i++) {
            rig_spawn(rig, co_random_requests);
        }
        co_rig_join(rig);
        int ret = rig->image->ops->co_flush(rig->image);
        tally(rig, ret);
        co_sleep_ns(rig->world, 1000000);
    }
}

static bool file_equals(struct rig *rig, const struct test_image *image)
{
    struct test_image now = rig_get(rig, RIG_IMAGE);
    bool equal =
        now.len_bytes == image->len_bytes && memcmp(now.bytes, image->bytes, now.len_bytes) == 0;
    test_image_free(&now);
    return equal;
}

static bool has_incompatible(const uint8_t *header, uint64_t bit)
{
    return get_be32(header + 4) >= 3 && (get_be64(header + 72) & bit);
}

struct victim {
    struct watch watch; /* first: the guard's argument */
    struct test_image image;
    bool read_only;
    bool opened;
};

/* Opens the victim, mistreats it, and demands what is owed. */
static void co_attack(struct rig *rig)
{
    struct victim *victim = rig->arg;
    struct errtext err = {""};

    rig->options.read_only = victim->read_only;
    int ret = co_rig_try_open(rig, &err);
    victim->opened = ret == 0;
    if (ret < 0) {
        ck_assert_msg(strstr(err.text, RIG_IMAGE) && strlen(err.text) > 30, "%s", err.text);
        /* A dirty image is repaired before it is judged. */
        if (!has_incompatible(victim->image.bytes, QCOW2_INCOMPAT_DIRTY)) {
            ck_assert_msg(file_equals(rig, &victim->image), "%s", err.text);
        }
        return;
    }
    rig->look = guard;
    if (rig->image->size_bytes == 0) {
        ret = 0; /* nothing to ask for */
    } else if (victim->read_only) {
        for (uint64_t at = 0; at < rig->image->size_bytes; at += 512) {
            uint8_t bytes[512];
            uint64_t len = MIN_OF(rig->image->size_bytes - at, sizeof(bytes));
            ret = rig->image->ops->co_read(rig->image, at, bytes, len, NULL);
            tally(rig, ret);
        }
    } else {
        co_mistreat(rig);
    }
    bool failed = rig->q->failed != 0;
    bool marked = rig->q->corrupt_marked;
    bool can_mark = rig->q->header.version >= 3 && !victim->read_only;
    ret = co_rig_end(rig);
    ck_assert(ret == 0 || failed);
    rig->look = NULL;
    ck_assert_msg(!failed, "%s", rig->log);
    if (victim->watch.io_errors > 0) {
        ck_assert_msg(rig->log_len > 0, "EIO without a line");
    }
    if (victim->read_only) {
        ck_assert(file_equals(rig, &victim->image));
    } else {
        struct test_image now = rig_get(rig, RIG_IMAGE);
        bool bit = has_incompatible(now.bytes, QCOW2_INCOMPAT_CORRUPT);
        ck_assert(bit == (marked && can_mark));
        /* Guest data that does not inflate is no damage of the format. */
        ck_assert_msg(bit || !can_mark || victim->watch.io_errors == 0 ||
                          rig_logged(rig, "does not inflate"),
                      "%s", rig->log);
        test_image_free(&now);
    }
}

/* True when it could be opened. Takes over the image. */
static bool attack(struct test_image image, struct watch watch, bool read_only, uint64_t seed)
{
    struct victim victim = {.watch = watch, .image = image, .read_only = read_only};
    struct rig rig;

    rig_init(&rig, seed);
    rig_put(&rig, RIG_IMAGE, &image);
    rig.arg = &victim;
    rig_run_bare(&rig, co_attack);
    rig_free(&rig);
    test_image_free(&image);
    return victim.opened;
}

START_TEST(single_damages)
{
    unsigned refused = 0, opened = 0;
    for (size_t i = 0; i < test_damage_count; i++) {
        for (size_t shape = 0; shape < ARRAY_LEN(shapes); shape++) {
            for (int read_only = 0; read_only < 2; read_only++) {
                struct test_image image;
                test_image_build(&image, &shapes[shape]);
                if (!test_damages[i].apply(&image)) {
                    test_image_free(&image);
                    continue;
                }
                bool ok = attack(image, (struct watch){0}, read_only, 1 + i);
                opened += ok;
                refused += !ok;
            }
        }
    }
    ck_assert_uint_gt(refused, 20);
    ck_assert_uint_gt(opened, 100);
}
END_TEST

/* What the message must say besides the file's name. */
static const struct reason {
    const char *damage;
    const char *says;
} reasons[] = {
    {"refblock missing", "has no refcount block"},
    {"refblock outside", "refcount table entry 0 points to 0x200000000000: it must lie inside"},
    {"refblock unaligned", "must be a multiple of the cluster size 4096"},
    {"refblock reserved", "refcount table entry 0 is 0x2008: reserved bits must be zero"},
    {"refblock twice", "refcount block at 0x2000 overlaps other metadata"},
    {"L1 entry reserved", "L1 entry 0 is 0x9000000000004000: reserved bits must be zero"},
    {"L1 entry outside", "L1 entry 0 points to 0x200000000000: it must lie inside the file"},
    {"L1 entry unaligned", "L1 entry 0 points to 0x4200: it must be a multiple of the cluster"},
};

static void co_refused(struct rig *rig)
{
    const struct reason *reason = rig->arg;
    struct errtext err = {""};
    int ret = co_rig_try_open(rig, &err);
    ck_assert_int_lt(ret, 0);
    ck_assert_msg(strstr(err.text, reason->says), "%s: %s", reason->damage, err.text);
}

START_TEST(messages_name_field_and_value)
{
    for (size_t i = 0; i < test_damage_count; i++) {
        if (strcmp(test_damages[i].name, reasons[_i].damage) == 0) {
            struct test_image image;
            struct rig rig;
            test_image_build(&image, &shapes[0]);
            ck_assert(test_damages[i].apply(&image));
            rig_init(&rig, 1);
            rig_put(&rig, RIG_IMAGE, &image);
            rig.arg = (void *)(uintptr_t)&reasons[_i];
            rig_run_bare(&rig, co_refused);
            rig_free(&rig);
            test_image_free(&image);
            return;
        }
    }
    ck_abort_msg("no such damage");
}
END_TEST

static struct watch keep_snapshot(const struct test_image *image)
{
    struct watch watch = {0};
    uint64_t table_at = get_be64(image->bytes + 64);
    uint64_t l1_at = get_be64(image->bytes + table_at);
    uint64_t l2_at = test_image_get(image, l1_at) & QCOW2_L1_OFFSET;
    watch.kept[watch.kept_count++] = table_at >> image->geo.cluster_bits;
    watch.kept[watch.kept_count++] = l1_at >> image->geo.cluster_bits;
    watch.kept[watch.kept_count++] = l2_at >> image->geo.cluster_bits;
    return watch;
}

/* The counts lie about what a snapshot needs. */
START_TEST(snapshot_counted_too_low)
{
    for (uint64_t seed = 1; seed <= 40; seed++) {
        struct test_image image;
        test_image_build(&image, &shapes[seed % 2]);
        test_image_add_snapshot(&image);
        struct watch watch = keep_snapshot(&image);
        test_image_set_refcount(&image, watch.kept[seed % watch.kept_count], seed % 3 == 0);
        test_image_set_refcount(&image, watch.kept[2], seed % 2);
        attack(image, watch, false, seed);
    }
}
END_TEST

static uint64_t mix(uint64_t *state)
{
    *state += 0x9e3779b97f4a7c15ULL;
    uint64_t z = *state;
    z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9ULL;
    z = (z ^ (z >> 27)) * 0x94d049bb133111ebULL;
    return z ^ (z >> 31);
}

/* A value that an attacker would try: plausible parts, put together wrongly. */
static uint64_t nasty_value(const struct test_image *image, uint64_t *state)
{
    uint64_t clusters = image->len_bytes >> image->geo.cluster_bits;
    uint64_t cluster = mix(state) % (clusters + 3) << image->geo.cluster_bits;

    switch (mix(state) % 8) {
    case 0:
        return mix(state);
    case 1:
        return cluster;
    case 2:
        return cluster | QCOW2_COMPRESSED;
    case 3:
        return cluster | QCOW2_COPIED | QCOW2_ZERO;
    case 4:
        return 0;
    case 5:
        return 1ULL << (mix(state) % 64);
    default:
        return cluster | QCOW2_COPIED;
    }
}

static void garble_tables(struct test_image *image, uint64_t *state, bool tables_of_tables)
{
    uint64_t count = 1 + mix(state) % 6;
    for (uint64_t i = 0; i < count; i++) {
        uint64_t value = nasty_value(image, state);
        switch (mix(state) % (tables_of_tables ? 5 : 3)) {
        case 0:
        case 1:
            test_image_put(image, 4 * image->geo.cluster_bytes + mix(state) % 24 * 8, value);
            break;
        case 2: /* refcounts of what there is */
            test_image_put(image, 2 * image->geo.cluster_bytes + mix(state) % 8 * 8,
                           mix(state) % 2 ? value : 0);
            break;
        case 3:
            test_image_put(image, 3 * image->geo.cluster_bytes + mix(state) % 2 * 8, value);
            break;
        default:
            test_image_put(image, image->geo.cluster_bytes + mix(state) % 4 * 8, value);
            break;
        }
    }
}

START_TEST(garbled_tables)
{
    uint64_t state = (uint64_t)_i;
    unsigned opened = 0;
    for (unsigned i = 0; i < 400; i++) {
        struct test_image image;
        const struct test_image_options *shape = &shapes[i % ARRAY_LEN(shapes)];
        struct watch watch = {0};
        test_image_build(&image, shape);
        if (shape->refcount_order > 0 && i % 3 == 0) {
            test_image_add_snapshot(&image);
            watch = keep_snapshot(&image);
        }
        garble_tables(&image, &state, i % 4 == 0);
        opened += attack(image, watch, i % 16 == 0, mix(&state));
    }
    ck_assert_uint_gt(opened, 200);
}
END_TEST

START_TEST(garbled_headers)
{
    uint64_t state = 77;
    for (unsigned i = 0; i < 1500; i++) {
        struct test_image image;
        test_image_build(&image, &shapes[i % ARRAY_LEN(shapes)]);
        if (i % 5 == 0 && shapes[i % ARRAY_LEN(shapes)].refcount_order > 0) {
            test_image_add_snapshot(&image);
        }
        uint64_t at = 4 + mix(&state) % 116;
        if (i % 2) {
            image.bytes[at] = (uint8_t)(mix(&state) % 3 ? mix(&state) % 17 : mix(&state));
        } else {
            test_image_put(&image, at / 8 * 8, nasty_value(&image, &state));
        }
        attack(image, (struct watch){0}, i % 8 == 1, i);
    }
}
END_TEST

/* Cut at every sector: what is gone reads as zeroes or is refused. */
START_TEST(truncated_files)
{
    for (size_t shape = 0; shape < ARRAY_LEN(shapes); shape++) {
        struct test_image whole;
        test_image_build(&whole, &shapes[shape]);
        for (unsigned i = 0; i < 40; i++) {
            struct test_image image = whole;
            image.len_bytes = whole.len_bytes * i / 40 + i % 3;
            image.bytes = calloc(1, whole.len_bytes);
            memcpy(image.bytes, whole.bytes, image.len_bytes);
            attack(image, (struct watch){0}, i % 2, i);
        }
        test_image_free(&whole);
    }
}
END_TEST

int main(void)
{
    Suite *suite = suite_create("hostile");
    TCase *tcase = tcase_create("hostile");
    tcase_set_timeout(tcase, 60);
    tcase_add_test(tcase, single_damages);
    tcase_add_loop_test(tcase, messages_name_field_and_value, 0, (int)ARRAY_LEN(reasons));
    tcase_add_test(tcase, snapshot_counted_too_low);
    tcase_add_loop_test(tcase, garbled_tables, 0, 5);
    tcase_add_test(tcase, garbled_headers);
    tcase_add_test(tcase, truncated_files);
    suite_add_tcase(suite, tcase);
    return rig_main(suite);
}
