/* SPDX-License-Identifier: BSD-2-Clause */
/*
 * Bitmap directory, tables and bits. An input is a shape and records: bytes of the directory,
 * entries of tables, other damages, and changes that are asked for. Demanded: an image that the
 * check calls clean can be opened for changes to its bitmaps, is clean after them and has what was
 * asked for; a repair says what a check after it says, and leaves an image that can be opened; what
 * is offered covers the disk; a refused image is as it was.
 */
#include <assert.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/bytes.h"
#include "fuzz/fuzz.h"
#include "fuzz/image_rig.h"
#include "io/sim.h"
#include "qcow2/bitmaps.h"
#include "qcow2/info.h"

#define STEPS_MAX     400000U
#define DATA_CLUSTERS 6U
#define BITMAPS       3U
#define CHANGES_MAX   24U
#define NAMES         6U /* that changes ask for; the first BITMAPS of them are there */

enum usage {
    USE_SMALL_CLUSTERS = 1U << 0,
    USE_REPAIR = 1U << 1,
    USE_LARGE_DISK = 1U << 2, /* and two entries a table */
    USE_ONE_BY_ONE = 1U << 3, /* changes, and the image is opened anew between them */
};

static const char *const names[NAMES] = {"a", "bitmap-b", "c\n", "d", "e", "f"};

struct job {
    struct world *world;
    struct test_image image;
    unsigned usage;
    uint64_t directory;
    uint64_t tables[BITMAPS];
    struct bitmap_change changes[CHANGES_MAX];
    size_t change_count;
};

static uint64_t append(struct test_image *image)
{
    uint64_t cluster = test_image_append_cluster(image);
    test_image_set_refcount(image, cluster, 1);
    return cluster << image->geo.cluster_bits;
}

static void build(struct job *job)
{
    const struct test_image_options options = {
        .version = 3,
        .cluster_bits = job->usage & USE_SMALL_CLUSTERS ? 9 : 12,
        .refcount_order = 4,
        .data_clusters = DATA_CLUSTERS,
    };
    struct test_image *image = &job->image;
    uint32_t entries = 1;

    test_image_build(image, &options);
    if (job->usage & USE_LARGE_DISK) {
        /* As large as one L2 table can describe: what a table entry of a bitmap is for. */
        image->geo.size_bytes = (uint64_t)image->geo.l2_entries << image->geo.cluster_bits;
        put_be64(image->bytes + 24, image->geo.size_bytes);
    }
    entries = (uint32_t)bitmap_table_entries_needed(&image->geo, image->geo.size_bytes, 9) + 1;
    job->directory = append(image);
    uint64_t at = job->directory;
    for (unsigned i = 0; i < BITMAPS; i++) {
        job->tables[i] = append(image);
        uint64_t data = append(image);
        memset(image->bytes + data, 0x5a, 64);
        put_be64(image->bytes + job->tables[i], data);
        size_t len = strlen(names[i]);
        struct qcow2_disk_bitmap raw = {.type = 1, .granularity_bits = (uint8_t)(9 + i)};
        put_be64(raw.bitmap_table_offset.bytes, job->tables[i]);
        put_be32(raw.bitmap_table_size.bytes, entries);
        put_be32(raw.flags.bytes, i == 0 ? QCOW2_BITMAP_AUTO : 0);
        put_be16(raw.name_size.bytes, (uint16_t)len);
        memcpy(image->bytes + at, &raw, sizeof(raw));
        memcpy(image->bytes + at + sizeof(raw), names[i], len);
        at += round_up_to(sizeof(raw) + len, 8);
    }
    uint8_t *extension = image->bytes + QCOW2_HEADER_BYTES_V3_MIN;
    put_be32(extension, QCOW2_EXT_BITMAPS);
    put_be32(extension + 4, 24);
    put_be32(extension + 8, BITMAPS);
    put_be64(extension + 16, at - job->directory);
    put_be64(extension + 24, job->directory);
    put_be64(image->bytes + 88, QCOW2_AUTOCLEAR_BITMAPS);
}

/* Records: op 6-7 what; the others say more. */
static void take_record(struct job *job, struct feed *feed)
{
    struct test_image *image = &job->image;
    uint8_t op = feed_u8(feed);
    if (op >> 6 == 0) {
        image_rig_damage(image, op, feed);
    } else if (op >> 6 == 1) { /* bytes of the directory, from an offset on */
        uint64_t at = job->directory + feed_u8(feed);
        size_t len;
        const uint8_t *bytes = feed_bytes(feed, op & 0x0fU, &len);
        if (len > 0 && range_inside(at, len, image->len_bytes)) {
            memcpy(image->bytes + at, bytes, len);
        }
    } else if (op >> 6 == 2) { /* an entry of a table: a cluster and flags, or any bits */
        uint64_t at = job->tables[op % BITMAPS] + 8 * (uint64_t)(op >> 2 & 3U);
        uint64_t value =
            op & 0x20 ? feed_u64(feed)
                      : ((uint64_t)feed_u8(feed) << image->geo.cluster_bits) | (op >> 4 & 1U);
        test_image_put(image, at, value);
    } else if (job->change_count < CHANGES_MAX) {
        uint8_t which = feed_u8(feed);
        job->changes[job->change_count++] = (struct bitmap_change){
            .verb = (enum bitmap_verb)((op & 7U) % (BITMAP_MERGE + 1U)),
            .name = names[(which & 15U) % NAMES],
            .source = names[(which >> 4) % NAMES],
            .granularity_bits = op & 8 ? (uint8_t)(9 + which % 23) : 0,
            .disabled = op & 0x10,
        };
    }
}

/* ---- Judging ---- */

static void co_judge_offer(struct image *image)
{
    struct image_bitmap offered[BITMAPS + CHANGES_MAX];
    size_t count = image->ops->bitmap_list(image, offered, ARRAY_LEN(offered));
    for (size_t i = 0; i < MIN_OF(count, ARRAY_LEN(offered)); i++) {
        uint64_t at = 0;
        while (at < image->size_bytes) {
            struct extent extents[5];
            struct extent_list list = {extents, ARRAY_LEN(extents), 0};
            int ret = image->ops->co_bitmap_extents(image, offered[i].id, at,
                                                    image->size_bytes - at, &list);
            demand(ret == 0 && list.count > 0, "no extents: %d", ret);
            for (unsigned k = 0; k < list.count; k++) {
                demand(extents[k].len > 0 && extents[k].len <= image->size_bytes - at,
                       "an extent of %llu bytes", (unsigned long long)extents[k].len);
                at += extents[k].len;
            }
        }
    }
}

static void judge_list(struct image *image)
{
    for (enum info_form form = INFO_TEXT; form <= INFO_JSON; form++) {
        char *text = NULL;
        size_t len = 0;
        struct errtext err = {""};
        FILE *out = open_memstream(&text, &len);
        assert(out);
        demand(qcow2_bitmaps_put(image, form, out, &err) == 0, "%s", err.text);
        fclose(out);
        for (size_t i = 0; i < len; i++) {
            demand((uint8_t)text[i] >= 0x20 || text[i] == '\n', "a list with %#x", text[i]);
        }
        free(text);
    }
}

static struct image *co_open(struct job *job, bool read_only, bool bitmaps_only, bool must)
{
    const struct qcow2_open_options options = {.read_only = read_only,
                                               .bitmaps_only = bitmaps_only};
    struct errtext err = {""};
    struct image *image = NULL;
    int ret = co_qcow2_open(job->world, FUZZ_IMAGE, &options, &image, &err);
    fuzz_demand_line("a message", err.text);
    demand(ret == 0 || !must, "clean, and refused: %s", err.text);
    return ret == 0 ? image : NULL;
}

static void co_close(struct image *image)
{
    struct errtext err = {""};
    int ret = image->ops->co_close(image, &err);
    demand(ret == 0, "closing: %d: %s", ret, err.text);
}

static bool is_there(struct image *image, const char *name)
{
    struct bitmap_facts facts[BITMAPS + CHANGES_MAX];
    size_t count = qcow2_bitmap_facts(image, facts, ARRAY_LEN(facts));
    for (size_t i = 0; i < MIN_OF(count, ARRAY_LEN(facts)); i++) {
        if (strcmp(facts[i].name, name) == 0) {
            return true;
        }
    }
    return false;
}

static void co_change_one(struct image *image, const struct bitmap_change *change)
{
    struct errtext err = {""};
    bool was_there = is_there(image, change->name);
    int ret = co_qcow2_bitmap_change(image, change, 1, &err);
    fuzz_demand_line("a message", err.text);
    bool wanted = ret < 0 ? was_there : change->verb == BITMAP_REMOVE ? false : true;
    demand(is_there(image, change->name) == wanted, "%s, and there: %d", err.text, !wanted);
    demand(ret == 0 || change->verb != BITMAP_REMOVE || !was_there, "not removed: %s", err.text);
}

static void co_use(struct job *job, bool clean)
{
    struct image *image = co_open(job, false, true, clean);
    for (size_t i = 0; image && i < job->change_count; i++) {
        co_change_one(image, &job->changes[i]);
        if (job->usage & USE_ONE_BY_ONE) {
            co_close(image);
            image = co_open(job, false, true, clean);
        }
    }
    if (image) {
        co_judge_offer(image);
        judge_list(image);
        co_close(image);
    }
    image = co_open(job, true, false, false);
    if (image) {
        co_judge_offer(image);
        co_close(image);
    }
}

static void co_job(void *arg)
{
    struct job *job = arg;
    struct judgement before = co_image_rig_check(job->world, CHECK_ONLY);
    if (job->usage & USE_REPAIR) {
        struct judgement repaired = co_image_rig_check(job->world, CHECK_REPAIR_ALL);
        before = co_image_rig_check(job->world, CHECK_ONLY);
        demand(!repaired.checked ||
                   (before.checked && before.result.corruptions == repaired.result.corruptions &&
                    before.result.leaks == repaired.result.leaks),
               "repair says something else than a check after it");
    }
    bool clean = is_clean(&before);
    co_use(job, clean && before.may_change_bitmaps);
    if (clean) {
        struct judgement after = co_image_rig_check(job->world, CHECK_ONLY);
        demand(is_clean(&after), "%llu corruptions where there were none",
               (unsigned long long)after.result.corruptions);
    }
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t len)
{
    struct feed feed = {data, len};
    struct job *job = calloc(1, sizeof(*job));

    assert(job);
    fuzz_judge_log();
    job->usage = feed_u8(&feed);
    job->world = sim_create(feed_u8(&feed));
    demand(job->world, "no memory for a world");
    build(job);
    while (feed_any(&feed)) {
        take_record(job, &feed);
    }
    image_rig_put(job->world, &job->image);
    fuzz_run(job->world, co_job, job, STEPS_MAX);
    sim_free(job->world);
    test_image_free(&job->image);
    free(job);
    return 0;
}
