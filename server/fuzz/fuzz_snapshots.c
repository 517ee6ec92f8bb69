/* SPDX-License-Identifier: BSD-2-Clause */
/*
 * What an image says in bytes of no fixed place: header extensions, snapshot table, bitmap
 * directory. An input is a shape and records, each of which adds an extension, a snapshot, bytes of
 * a bitmap directory, or a damage. Demanded: what is taken from the header keeps what
 * qcow2/header.h promises; snapshots that were written well are read as they were written; and what
 * image_rig.h demands of checking, repairing and using such an image.
 */
#include <assert.h>
#include <stdlib.h>
#include <string.h>

#include "base/bytes.h"
#include "base/check.h"
#include "base/limits.h"
#include "fuzz/fuzz.h"
#include "fuzz/image_rig.h"
#include "io/sim.h"
#include "qcow2/qcow2.h"

#define STEPS_MAX       400000U
#define SHOWN_MAX       3U
#define SHOWN_BYTES_MAX 16384U
#define DATA_CLUSTERS   4U
#define TABLE_CLUSTERS  4U /* the snapshot table's room */
#define SNAPSHOTS_MAX   12U
#define ID_BYTES_MAX    16U
#define NAME_BYTES_MAX  48U
#define EXTRA_BYTES_MAX 40U
#define DAMAGES_MAX     64U
#define EXTENSION_MAX   96U

enum usage {
    USE_VERSION_2 = 1U << 0,
    USE_SMALL_CLUSTERS = 1U << 1,
    USE_LONG_HEADER = 1U << 2, /* with the compression type */
    USE_READ_ONLY = 1U << 3,
    USE_REPAIR = 1U << 4,
};

struct told {
    uint8_t id[ID_BYTES_MAX], name[NAME_BYTES_MAX];
    size_t id_len, name_len;
    uint32_t l1_entries;
    uint64_t l1_offset;
};

struct job {
    struct world *world;
    struct test_image image;
    unsigned usage;
    uint64_t extension_at; /* where the next one goes */
    uint64_t table_start, table_at;
    uint64_t directory_start, directory_at;
    uint32_t snapshot_count;
    bool well_written;
    bool sound;
    struct told told[SNAPSHOTS_MAX];
};

/* ---- Writing ---- */

static void put_bytes(struct job *job, uint64_t at, const void *bytes, size_t len)
{
    if (range_inside(at, len, job->image.len_bytes) && len > 0) {
        memcpy(job->image.bytes + at, bytes, len);
    } else if (len > 0) {
        job->well_written = false;
    }
}

/* Type, then the length, which may be a lie (bit 7 of the type's byte), then bytes. */
static void add_extension(struct job *job, struct feed *feed)
{
    static const uint32_t types[] = {
        QCOW2_EXT_END,    QCOW2_EXT_BACKING_FORMAT, QCOW2_EXT_BITMAPS, QCOW2_EXT_FEATURE_NAMES,
        QCOW2_EXT_CRYPTO, QCOW2_EXT_DATA_FILE,      0x12345678,        0xffffffff};
    struct qcow2_disk_extension header;
    uint8_t choice = feed_u8(feed);
    size_t wish = feed_u8(feed) % (EXTENSION_MAX + 1);
    uint32_t claim =
        choice & 0x80 ? (uint32_t)feed_u16(feed) * (choice & 0x40 ? 0x10001U : 1U) : (uint32_t)wish;
    size_t len;
    const uint8_t *bytes = feed_bytes(feed, wish, &len);

    put_be32(header.type.bytes, types[choice % ARRAY_LEN(types)]);
    put_be32(header.len.bytes, claim);
    put_bytes(job, job->extension_at, &header, sizeof(header));
    put_bytes(job, job->extension_at + sizeof(header), bytes, len);
    job->extension_at = round_up_to(job->extension_at + sizeof(header) + wish, 8);
}

/* One more reference to all that the active L1 table leads to, and nobody's own any more. */
static void share_all(struct test_image *image)
{
    uint64_t l1_at = test_image_l1_at(image, 0);
    uint64_t l1 = test_image_get(image, l1_at);
    uint64_t table = (l1 & QCOW2_L1_OFFSET) >> image->geo.cluster_bits;

    for (unsigned i = 0; i < DATA_CLUSTERS; i++) {
        uint64_t at = test_image_l2_at(image, i);
        uint64_t entry = test_image_get(image, at);
        uint64_t cluster = (entry & QCOW2_L2_OFFSET) >> image->geo.cluster_bits;
        test_image_set_refcount(image, cluster, test_image_refcount(image, cluster) + 1);
        test_image_put(image, at, entry & ~QCOW2_COPIED);
    }
    test_image_set_refcount(image, table, test_image_refcount(image, table) + 1);
    test_image_put(image, l1_at, l1 & ~QCOW2_COPIED);
}

static void choose_l1(struct job *job, unsigned how, struct feed *feed, struct told *told)
{
    struct test_image *image = &job->image;

    if (how == 0) { /* as snapshots are taken */
        uint64_t cluster = test_image_append_cluster(image);
        test_image_set_refcount(image, cluster, 1);
        share_all(image);
        told->l1_offset = cluster << image->geo.cluster_bits;
        told->l1_entries = 1;
        test_image_put(image, told->l1_offset, test_image_get(image, test_image_l1_at(image, 0)));
    } else if (how == 1) {
        told->l1_entries = 0;
        told->l1_offset = 0;
    } else if (how == 2) {
        told->l1_offset = (uint64_t)feed_u8(feed) << image->geo.cluster_bits;
        told->l1_entries = feed_u8(feed);
        job->well_written = false;
    } else {
        told->l1_offset = feed_u64(feed);
        told->l1_entries = (uint32_t)feed_u16(feed) << 8;
        job->well_written = false;
    }
}

static void take_text(struct feed *feed, uint8_t *text, size_t most, size_t *len)
{
    const uint8_t *bytes = feed_bytes(feed, feed_u8(feed) % (most + 1), len);
    if (*len > 0) {
        memcpy(text, bytes, *len);
    }
}

/* How: bits 0-1 the L1 table, 2-3 the extra data, 4 lengths that lie. */
static void add_snapshot(struct job *job, struct feed *feed)
{
    struct qcow2_disk_snapshot raw = {0};
    struct told *told = &job->told[job->snapshot_count];
    uint8_t extra[EXTRA_BYTES_MAX] = {0};
    uint8_t how = feed_u8(feed);
    size_t extra_len = 8 * (how >> 2 & 3U);
    unsigned lies[3] = {0};

    if (job->snapshot_count == SNAPSHOTS_MAX) {
        return;
    }
    choose_l1(job, how & 3U, feed, told);
    take_text(feed, told->id, sizeof(told->id), &told->id_len);
    take_text(feed, told->name, sizeof(told->name), &told->name_len);
    if (how & 0x10) {
        for (unsigned i = 0; i < ARRAY_LEN(lies); i++) {
            lies[i] = feed_u16(feed);
        }
        job->well_written = false;
    }
    put_be64(raw.l1_table_offset.bytes, told->l1_offset);
    put_be32(raw.l1_size.bytes, told->l1_entries);
    put_be16(raw.id_size.bytes, (uint16_t)(told->id_len + lies[0]));
    put_be16(raw.name_size.bytes, (uint16_t)(told->name_len + lies[1]));
    put_be32(raw.extra_data_size.bytes, (uint32_t)extra_len + lies[2]);
    put_be64(extra + 8, job->image.geo.size_bytes);

    uint64_t at = job->table_at;
    put_bytes(job, at, &raw, sizeof(raw));
    put_bytes(job, at + sizeof(raw), extra, extra_len);
    put_bytes(job, at + sizeof(raw) + extra_len, told->id, told->id_len);
    put_bytes(job, at + sizeof(raw) + extra_len + told->id_len, told->name, told->name_len);
    job->table_at = round_up_to(at + sizeof(raw) + extra_len + told->id_len + told->name_len, 8);
    job->snapshot_count++;
}

static void add_directory_bytes(struct job *job, struct feed *feed)
{
    size_t len;
    const uint8_t *bytes = feed_bytes(feed, feed_u8(feed), &len);
    put_bytes(job, job->directory_at, bytes, len);
    job->directory_at += len;
}

static uint64_t append_clusters(struct test_image *image, unsigned count)
{
    uint64_t first = test_image_append_cluster(image);
    test_image_set_refcount(image, first, 1);
    for (unsigned i = 1; i < count; i++) {
        test_image_set_refcount(image, test_image_append_cluster(image), 1);
    }
    return first << image->geo.cluster_bits;
}

/* Damages are done when all else is in place: what is built believes the image. */
struct damages {
    unsigned count;
    struct {
        uint8_t op;
        struct feed feed;
    } each[DAMAGES_MAX];
};

static void note_damage(struct damages *damages, const struct test_image *image, uint8_t op,
                        struct feed *feed)
{
    struct test_image nowhere = {.geo = image->geo};

    if (damages->count < DAMAGES_MAX) {
        damages->each[damages->count].op = op;
        damages->each[damages->count++].feed = *feed;
    }
    image_rig_damage(&nowhere, op, feed);
}

static void add_records(struct job *job, struct damages *damages, struct feed *feed)
{
    while (feed_any(feed)) {
        uint8_t op = feed_u8(feed);
        switch (op >> 6) {
        case 0:
            note_damage(damages, &job->image, op, feed);
            job->well_written = false;
            break;
        case 1:
            add_extension(job, feed);
            job->well_written = false;
            break;
        case 2:
            add_snapshot(job, feed);
            break;
        default:
            add_directory_bytes(job, feed);
            break;
        }
    }
}

static void build(struct job *job, struct feed *feed)
{
    struct damages damages = {0};
    bool version_2 = job->usage & USE_VERSION_2;
    const struct test_image_options options = {
        .version = version_2 ? 2 : 3,
        .cluster_bits = job->usage & USE_SMALL_CLUSTERS ? 9 : 12,
        .refcount_order = 4,
        .data_clusters = DATA_CLUSTERS,
    };
    struct test_image *image = &job->image;

    test_image_build(image, &options);
    job->well_written = true;
    job->extension_at = version_2 ? QCOW2_HEADER_BYTES_V2 : QCOW2_HEADER_BYTES_V3_MIN;
    if (!version_2 && job->usage & USE_LONG_HEADER) {
        job->extension_at = sizeof(struct qcow2_disk_header);
        put_be32(image->bytes + 100, sizeof(struct qcow2_disk_header));
    }
    job->table_start = append_clusters(image, TABLE_CLUSTERS);
    job->table_at = job->table_start;
    job->directory_start = append_clusters(image, 1);
    job->directory_at = job->directory_start;
    add_records(job, &damages, feed);
    if (job->snapshot_count > 0) {
        put_be32(image->bytes + 60, job->snapshot_count);
        put_be64(image->bytes + 64, job->table_start);
    }
    if (job->table_at > job->table_start + TABLE_CLUSTERS * image->geo.cluster_bytes) {
        job->well_written = false;
    }
    for (unsigned i = 0; i < damages.count; i++) {
        image_rig_damage(image, damages.each[i].op, &damages.each[i].feed);
    }
}

/* ---- Judging ---- */

static void demand_place(const struct disk *disk, const struct header *header, const char *what,
                         uint64_t offset, uint64_t len)
{
    uint64_t end = round_up_to(disk->size_bytes, header->geo.cluster_bytes);
    demand(offset > 0 && offset % header->geo.cluster_bytes == 0, "%s is not aligned", what);
    demand(range_inside(offset, len, end), "%s is outside of the file", what);
}

static void judge_header(const struct disk *disk, const struct header *header)
{
    demand(header->version == 2 || header->version == 3, "version %u", header->version);
    demand(header->geo.cluster_bits >= 9 && header->geo.cluster_bits <= 21, "%u cluster bits",
           header->geo.cluster_bits);
    demand((uint64_t)header->l1_entries * 8 <= LIMIT_L1_BYTES, "%u L1 entries", header->l1_entries);
    demand(header->l1_entries >= l1_entries_needed(&header->geo), "an L1 table that is too short");
    if (header->l1_entries > 0) {
        demand_place(disk, header, "the L1 table", header->l1_offset.bytes,
                     (uint64_t)header->l1_entries * 8);
    }
    demand_place(disk, header, "the refcount table", header->reftable_offset.bytes,
                 (uint64_t)header->reftable_clusters << header->geo.cluster_bits);
    if (header->bitmap_count > 0) {
        demand_place(disk, header, "the bitmap directory", header->bitmap_directory_offset.bytes,
                     header->bitmap_directory_len_bytes);
    }
    demand(header->snapshot_count <= LIMIT_SNAPSHOTS, "%u snapshots", header->snapshot_count);
    if (header->snapshot_count > 0) {
        demand_place(disk, header, "the snapshot table", header->snapshots_offset.bytes,
                     header->snapshots_len_bytes);
    }
    for (uint32_t i = 0; i < header->snapshot_count; i++) {
        const struct snapshot *snapshot = &header->snapshots[i];
        demand(strlen(snapshot->id) <= UINT16_MAX && strlen(snapshot->name) <= UINT16_MAX,
               "a text of a snapshot has no end");
        if (snapshot->l1_entries > 0) {
            demand_place(disk, header, "the L1 table of a snapshot", snapshot->l1_offset.bytes,
                         (uint64_t)snapshot->l1_entries * 8);
        }
    }
    demand(!header->backing_name || strlen(header->backing_name) <= LIMIT_BACKING_NAME_BYTES,
           "a backing name of %zu bytes", strlen(header->backing_name));
    fuzz_demand_line("the name of a feature", header->unknown_feature);
}

static bool text_is(const char *text, const uint8_t *told, size_t len)
{
    size_t shown = strnlen((const char *)told, len); /* a NUL ends it */
    return strlen(text) == shown && memcmp(text, told, shown) == 0;
}

static void judge_told(const struct job *job, const struct header *header)
{
    demand(header->snapshot_count == job->snapshot_count, "%u snapshots instead of %u",
           header->snapshot_count, job->snapshot_count);
    for (uint32_t i = 0; i < job->snapshot_count; i++) {
        const struct snapshot *snapshot = &header->snapshots[i];
        const struct told *told = &job->told[i];
        demand(text_is(snapshot->id, told->id, told->id_len) &&
                   text_is(snapshot->name, told->name, told->name_len),
               "snapshot %u has another name", i);
        demand(snapshot->l1_offset.bytes == told->l1_offset &&
                   snapshot->l1_entries == told->l1_entries,
               "snapshot %u has another L1 table", i);
        demand(snapshot->disk_size_bytes == job->image.geo.size_bytes, "another size");
    }
}

static void co_read_header(struct job *job)
{
    struct errtext err = {""};
    struct disk *disk;
    struct header header;

    int rc = job->world->ops->co_disk_open(job->world, FUZZ_IMAGE, DISK_READ_ONLY, &disk, &err);
    demand(rc == 0, "%s", err.text);
    rc = co_header_read(disk, &header, &err);
    demand(rc == 0 || !job->well_written, "well written, and refused: %s", err.text);
    if (rc == 0) {
        judge_header(disk, &header);
        if (job->well_written) {
            judge_told(job, &header);
        }
        header_free(&header);
    }
    disk_close(disk);
}

static void co_use(struct job *job)
{
    struct qcow2_open_options options = {.read_only = job->usage & USE_READ_ONLY};
    uint8_t bytes[700];
    struct errtext err = {""};

    struct image *image = co_image_rig_open(job->world, &options);
    demand(image || !job->well_written, "well written, and refused");
    if (!image) {
        return;
    }
    memset(bytes, 0xc0, sizeof(bytes));
    if (image->size_bytes > 4096 && !image->read_only) {
        int rc = image->ops->co_write(image, 100, bytes, sizeof(bytes), 0);
        demand(rc == 0 || !job->well_written, "a write fails: %d", rc);
        rc = image->ops->co_trim(image, 2048, 2048, IMAGE_FUA);
        demand(rc == 0 || !job->well_written, "a trim fails: %d", rc);
    }
    if (image->size_bytes > 4096) {
        int rc = image->ops->co_read(image, 0, bytes, sizeof(bytes), NULL);
        demand(rc == 0 || !job->well_written, "a read fails: %d", rc);
    }
    int rc = image->ops->co_close(image, &err);
    fuzz_demand_line("a message", err.text);
    demand(rc == 0, "closing: %d: %s", rc, err.text);
}

/*
 * Each snapshot as --snapshot shows it, by the names and IDs that there are: all of it is read, or
 * refused, and nothing is written.
 */
static void co_show(struct job *job, const char *name)
{
    struct qcow2_open_options options = {.read_only = true, .snapshot = name};
    struct errtext err = {""};
    struct image *image;
    uint8_t bytes[700];

    int rc = co_qcow2_open(job->world, FUZZ_IMAGE, &options, &image, &err);
    fuzz_demand_line("a message", err.text);
    if (rc < 0) {
        return;
    }
    for (uint64_t at = 0; at < MIN_OF(image->size_bytes, SHOWN_BYTES_MAX); at += sizeof(bytes)) {
        uint64_t len = MIN_OF(image->size_bytes - at, sizeof(bytes));
        rc = image->ops->co_read(image, at, bytes, (size_t)len, NULL);
        demand(rc == 0 || !job->well_written, "a read of a snapshot fails: %d", rc);
    }
    rc = image->ops->co_close(image, &err);
    demand(rc == 0, "closing: %d: %s", rc, err.text);
}

static void co_show_all(struct job *job)
{
    struct errtext err = {""};
    struct disk *disk;
    struct header header;

    int rc = job->world->ops->co_disk_open(job->world, FUZZ_IMAGE, DISK_READ_ONLY, &disk, &err);
    demand(rc == 0, "%s", err.text);
    if (co_header_read(disk, &header, &err) == 0) {
        for (uint32_t i = 0; i < MIN_OF(header.snapshot_count, SHOWN_MAX); i++) {
            co_show(job, header.snapshots[i].name);
            co_show(job, header.snapshots[i].id);
        }
        header_free(&header);
    }
    disk_close(disk);
    co_show(job, "none of them");
}

static void co_job(void *arg)
{
    struct job *job = arg;

    co_read_header(job);
    struct judgement before = co_image_rig_check(job->world, CHECK_ONLY);
    if (job->usage & USE_REPAIR) {
        struct judgement repaired = co_image_rig_check(job->world, CHECK_REPAIR_ALL);
        before = co_image_rig_check(job->world, CHECK_ONLY);
        demand(!repaired.checked ||
                   (before.checked && before.result.corruptions == repaired.result.corruptions &&
                    before.result.leaks == repaired.result.leaks),
               "repair says something else than a check after it");
    }
    job->sound = is_clean(&before) && before.may_write;
    demand(job->sound || !job->well_written, "well written, and not sound");
    co_show_all(job);
    co_use(job);
    if (job->sound) {
        struct judgement after = co_image_rig_check(job->world, CHECK_ONLY);
        demand(after.checked && after.result.corruptions == after.needless_copies,
               "%llu corruptions where there were none",
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
    build(job, &feed);
    image_rig_put(job->world, &job->image);
    fuzz_run(job->world, co_job, job, STEPS_MAX);
    sim_free(job->world);
    test_image_free(&job->image);
    free(job);
    return 0;
}
