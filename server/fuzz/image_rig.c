/* SPDX-License-Identifier: BSD-2-Clause */
/*
 * What stands where in a valid image is known by construction (test_images.h): tables first, one
 * cluster each, then data. So a record can aim at an entry, and put there what an attacker would: a
 * cluster that is something else, with any flags.
 */
#include "fuzz/image_rig.h"

#include <assert.h>
#include <stdlib.h>
#include <string.h>

#include "base/bytes.h"
#include "base/limits.h"
#include "fuzz/fuzz.h"
#include "io/sim.h"
#include "qcow2/engine.h"
#include "qcow2/info.h"
#include "qcow2/test_places.h"

#define BACKING_NAME  "base.raw"
#define BACKING_BYTES 6000U
#define BELOW_NAME    "below.qcow2"
#define FINDINGS_MAX  1001U
#define RAW_BYTES_MAX 65536U
/* No input has a reason to move more than this; what does is a hang by other means. */
#define MOVED_BYTES_MAX (256U * MIB)

enum places { REFTABLE = 1, REFBLOCK, L1, L2, DATA };

enum extras {
    WITH_SNAPSHOT = 1U << 0,
    WITH_COMPRESSED = 1U << 1,
    WITH_BACKING = 1U << 2,
    WITH_DIRTY = 1U << 3,
};

static const struct {
    struct test_image_options options;
    unsigned extras;
} shapes[IMAGE_SHAPES] = {
    {{3, 12, 4, false, 6}, 0},
    {{3, 9, 4, false, 12}, 0},
    {{3, 9, 0, false, 12}, 0},
    {{2, 12, 4, false, 6}, 0},
    {{3, 14, 4, true, 4}, 0},
    {{3, 9, 6, false, 30}, 0}, /* a little more, and it needs a second refcount block */
    {{3, 9, 4, false, 8}, WITH_SNAPSHOT},
    {{3, 12, 3, false, 6}, WITH_SNAPSHOT | WITH_COMPRESSED},
    {{3, 9, 4, false, 8}, WITH_COMPRESSED},
    {{3, 12, 4, false, 6}, WITH_BACKING},
    {{3, 14, 4, true, 4}, WITH_BACKING | WITH_SNAPSHOT},
    {{3, 9, 4, false, 12}, WITH_DIRTY},
};

/* ---- Making ---- */

/* The first guest cluster without data becomes a compressed one: only the letter c. */
static void add_compressed(struct test_image *image, unsigned guest_cluster)
{
    static const uint8_t deflated_512[] = {0x4b, 0x4e, 0x1e, 0x05, 0x23, 0x19, 0x00, 0x00};
    static const uint8_t deflated_4096[] = {0xed, 0xc1, 0x01, 0x0d, 0x00, 0x00, 0x00, 0xc2,
                                            0xa0, 0xb0, 0xef, 0xdf, 0xc1, 0x1e, 0x0e, 0x28,
                                            0x00, 0x00, 0x00, 0xe0, 0xdd, 0x00};
    bool small = image->geo.cluster_bytes == 512;
    uint64_t cluster = test_image_append_cluster(image);
    uint64_t offset = cluster << image->geo.cluster_bits;

    test_image_set_refcount(image, cluster, 1);
    memcpy(image->bytes + offset, small ? deflated_512 : deflated_4096,
           small ? sizeof(deflated_512) : sizeof(deflated_4096));
    /* No additional sectors: the data ends inside the sector where it begins. */
    test_image_put(image, test_image_l2_at(image, guest_cluster), offset | QCOW2_COMPRESSED);
}

static void add_backing(struct test_image *image, const char *name, const char *format)
{
    uint64_t at = 256;
    uint8_t *extension = image->bytes + QCOW2_HEADER_BYTES_V3_MIN;

    put_be32(extension, QCOW2_EXT_BACKING_FORMAT);
    put_be32(extension + 4, (uint32_t)strlen(format));
    memcpy(extension + 8, format, strlen(format));
    memcpy(image->bytes + at, name, strlen(name));
    put_be64(image->bytes + 8, at);
    put_be32(image->bytes + 16, (uint32_t)strlen(name));
}

static struct test_image build(unsigned shape)
{
    struct test_image image;
    unsigned extras = shapes[shape].extras;

    test_image_build(&image, &shapes[shape].options);
    if (extras & WITH_COMPRESSED) {
        add_compressed(&image, shapes[shape].options.data_clusters);
    }
    if (extras & WITH_SNAPSHOT) {
        test_image_add_snapshot(&image);
        if (extras & WITH_COMPRESSED) { /* nothing says COPIED there, and it is shared as well */
            test_image_set_refcount(&image, DATA + shapes[shape].options.data_clusters, 2);
        }
    }
    if (extras & WITH_BACKING) {
        add_backing(&image, BACKING_NAME, "raw");
    }
    if (extras & WITH_DIRTY) {
        test_image_put(&image, 72, QCOW2_INCOMPAT_DIRTY);
        test_image_put(&image, 80, QCOW2_COMPAT_LAZY_REFCOUNTS);
    }
    return image;
}

struct test_image image_rig_copy(unsigned shape, struct feed *feed)
{
    static struct test_image made[IMAGE_SHAPES];
    struct test_image copy = {0};

    if (shape < IMAGE_SHAPES) {
        if (!made[shape].bytes) {
            made[shape] = build(shape);
        }
        copy = made[shape];
        copy.bytes = malloc(copy.len_bytes);
        assert(copy.bytes);
        memcpy(copy.bytes, made[shape].bytes, copy.len_bytes);
    } else {
        size_t len;
        const uint8_t *bytes = feed_bytes(feed, RAW_BYTES_MAX, &len);
        copy.len_bytes = len;
        copy.bytes = malloc(len > 0 ? len : 1);
        assert(copy.bytes);
        memcpy(copy.bytes, bytes, len);
    }
    return copy;
}

void image_rig_put(struct world *world, const struct test_image *image)
{
    static uint8_t backing[BACKING_BYTES];

    memset(backing, 'b', sizeof(backing));
    int rc = sim_file_put(world, FUZZ_IMAGE, image->bytes, image->len_bytes);
    demand(rc == 0, "no room for the image");
    rc = sim_file_put(world, BACKING_NAME, backing, sizeof(backing));
    demand(rc == 0, "no room for the backing file");
}

void image_rig_put_below(struct world *world, const struct test_image *image)
{
    static const struct test_image_options options = {3, 9, 4, false, 4};
    struct test_image top;

    test_image_build(&top, &options);
    add_backing(&top, BELOW_NAME, "qcow2");
    put_be64(top.bytes + 24, 64ULL << top.geo.cluster_bits); /* as large as one L2 table allows */
    image_rig_put(world, &top);
    test_image_free(&top);
    int rc = sim_file_put(world, BELOW_NAME, image->bytes, image->len_bytes);
    demand(rc == 0, "no room for the image below");
}

void image_rig_demand_unchanged(struct world *world, const struct test_image *image)
{
    void *now;
    uint64_t now_len;

    int rc = sim_file_get(world, BELOW_NAME, &now, &now_len);
    demand(rc == 0 && now_len == image->len_bytes && memcmp(now, image->bytes, now_len) == 0,
           "a backing file has changed");
    free(now);
}

/* ---- Damaging ---- */

/*
 * A record's first byte: bits 0-2 the place, 3-4 what is written, 5-6 its width. Then the place's
 * index in units of the width, and the value.
 */
static uint64_t place_start(const struct test_image *image, unsigned place)
{
    uint64_t cluster_bytes = image->geo.cluster_bytes;
    uint64_t clusters = MAX_OF(image->len_bytes / cluster_bytes, 2U);

    switch (place) {
    case 0:
        return 0;
    case 1:
        return REFTABLE * cluster_bytes;
    case 2:
        return REFBLOCK * cluster_bytes;
    case 3:
        return L1 * cluster_bytes;
    case 4:
        return L2 * cluster_bytes;
    case 5: /* the snapshot table, where there is one */
        return (clusters - 1) * cluster_bytes;
    case 6: /* its L1 table */
        return (clusters - 2) * cluster_bytes;
    default:
        return DATA * cluster_bytes;
    }
}

static uint64_t damage_value(const struct test_image *image, unsigned what, struct feed *feed)
{
    uint64_t cluster;

    switch (what) {
    case 0:
        return feed_u64(feed);
    case 1:
        return feed_u8(feed);
    case 2:
        cluster = feed_u8(feed);
        return cluster << image->geo.cluster_bits | QCOW2_COPIED;
    default: {
        uint64_t flags = feed_u8(feed);
        cluster = feed_u8(feed);
        /* Both ends of an entry: COPIED, COMPRESSED and sectors; ZERO and reserved bits. */
        return cluster << image->geo.cluster_bits | (flags & 0xf0) << 56 | (flags & 0xf);
    }
    }
}

void image_rig_damage(struct test_image *image, uint8_t op, struct feed *feed)
{
    unsigned width = 8U >> (op >> 5 & 3);
    uint64_t index = feed_u8(feed);
    uint64_t at = place_start(image, op & 7) + index * width;
    uint64_t value = damage_value(image, op >> 3 & 3, feed);
    uint8_t bytes[8];

    put_be64(bytes, value);
    if (at + width <= image->len_bytes) {
        memcpy(image->bytes + at, bytes + 8 - width, width);
    }
}

bool image_rig_damages_counts(uint8_t op)
{
    unsigned place = op & 7;
    /* An index may lead from one table into the next. */
    return place <= 2 || place >= 5;
}

/* ---- Checking ---- */

struct findings {
    unsigned count;
    uint64_t needless_copies;
};

static void judge_finding(void *arg, const char *line)
{
    struct findings *findings = arg;
    demand(++findings->count <= FINDINGS_MAX, "more findings than anybody reads");
    fuzz_demand_line("a finding", line);
    if (strstr(line, "COPIED does not match") && strstr(line, " is 0x00")) {
        findings->needless_copies++;
    }
}

static void judge_progress(void *arg, unsigned permille)
{
    (void)arg;
    demand(permille <= 1000, "%u of a thousand done", permille);
}

static void co_describe(struct disk *disk, const struct header *header, enum info_form form)
{
    char *text = NULL;
    size_t len = 0;
    struct errtext err = {""};
    FILE *out = open_memstream(&text, &len);

    demand(out, "no memory for a description");
    int rc = co_qcow2_info(disk, header, 12345, form, out, &err);
    int closed = fclose(out);
    demand(closed == 0, "no memory for a description");
    for (size_t i = 0; i < len; i++) {
        unsigned char c = (unsigned char)text[i];
        demand((c >= ' ' && c != 0x7f) || c == '\n', "a description has byte 0x%02x", c);
    }
    demand(rc < 0 || len > 0, "a description without a word");
    if (rc < 0) {
        fuzz_demand_line("a message", err.text);
    }
    free(text);
}

static void co_judge(struct disk *disk, struct header *header, enum check_repair repair,
                     struct judgement *judgement)
{
    struct findings findings = {0};
    struct errtext err = {""};
    struct check_options options = {
        .repair = repair,
        .finding = judge_finding,
        .progress = judge_progress,
        .arg = &findings,
    };

    co_describe(disk, header, INFO_TEXT);
    co_describe(disk, header, INFO_JSON);
    judgement->may_write = header_admit(header, HEADER_FOR_WRITING, FUZZ_IMAGE, &err) == 0;
    fuzz_demand_line("a message", err.text);
    judgement->may_change_bitmaps = header_admit(header, HEADER_FOR_BITMAPS, FUZZ_IMAGE, &err) == 0;
    fuzz_demand_line("a message", err.text);
    if (header_admit(header, HEADER_FOR_CHECK, FUZZ_IMAGE, &err) < 0) {
        fuzz_demand_line("a message", err.text);
        return;
    }
    int rc = co_qcow2_check(disk, header, &options, &judgement->result, &err);
    judgement->checked = rc == 0;
    if (rc < 0) {
        fuzz_demand_line("a message", err.text);
        demand(err.text[0], "the check gives up with %d and says nothing", rc);
        return;
    }
    judgement->needless_copies = findings.needless_copies;
    demand(!findings.count == !(judgement->result.corruptions || judgement->result.leaks ||
                                judgement->result.corruptions_fixed ||
                                judgement->result.leaks_fixed),
           "%u findings are told, and the sums say otherwise", findings.count);
}

struct judgement co_image_rig_check(struct world *world, enum check_repair repair)
{
    struct judgement judgement = {0};
    struct errtext err = {""};
    struct disk *disk;
    struct header header;
    unsigned flags = repair == CHECK_ONLY ? DISK_READ_ONLY : DISK_WRITABLE;

    int rc = world->ops->co_disk_open(world, FUZZ_IMAGE, flags, &disk, &err);
    demand(rc == 0, "%s", err.text);
    rc = co_header_read(disk, &header, &err);
    if (rc == 0) {
        co_judge(disk, &header, repair, &judgement);
        header_free(&header);
    } else {
        demand(strstr(err.text, FUZZ_IMAGE), "a message that names no file: %s", err.text);
        fuzz_demand_line("a message", err.text);
    }
    disk_close(disk);
    return judgement;
}

/* ---- Watching ---- */

static int look(void *arg, enum rig_call call, uint64_t offset, uint64_t len,
                const struct iovec *iov, int iov_count)
{
    struct qcow2 *q = arg;
    struct sim_counts counts = sim_counts(q->world);
    uint64_t wrong;

    demand(counts.bytes_read + counts.bytes_written <= MOVED_BYTES_MAX,
           "more than %llu bytes are moved", (unsigned long long)MOVED_BYTES_MAX);
    demand(offset <= INT64_MAX && len <= INT64_MAX - offset, "a call behind the end of all files");
    if (call == RIG_TRUNCATE) {
        demand(offset >= q->disk->size_bytes, "the file is cut off at %llu",
               (unsigned long long)offset);
    }
    if (rig_call_changes(call)) {
        demand(!q->image.read_only, "a change of a read-only image");
        demand(len > 0, "a change of no bytes");
        bool harms = rig_harms_metadata(q, call, offset, len, iov, iov_count, &wrong);
        demand(!harms, "call %d of 0x%llx + 0x%llx lands on metadata, in host cluster %llu", call,
               (unsigned long long)offset, (unsigned long long)len, (unsigned long long)wrong);
    }
    return 0;
}

static bool is_dirty(const uint8_t *bytes, uint64_t len)
{
    return len >= QCOW2_HEADER_BYTES_V3_MIN && get_be32(bytes + 4) >= 3 &&
           (get_be64(bytes + 72) & QCOW2_INCOMPAT_DIRTY);
}

static void judge_refusal(struct world *world, const void *before, uint64_t before_len,
                          const struct errtext *err)
{
    void *now;
    uint64_t now_len;

    fuzz_demand_line("a message", err->text);
    demand(strstr(err->text, FUZZ_IMAGE) || strstr(err->text, BELOW_NAME),
           "a refusal that names no image: %s", err->text);
    int rc = sim_file_get(world, FUZZ_IMAGE, &now, &now_len);
    demand(rc == 0, "the file is gone");
    bool same = now_len == before_len && memcmp(now, before, now_len) == 0;
    demand(same || is_dirty(before, before_len), "refused, and changed: %s", err->text);
    free(now);
}

struct image *co_image_rig_open(struct world *world, const struct qcow2_open_options *options)
{
    struct image *image = NULL;
    struct errtext err = {""};
    void *before;
    uint64_t before_len;

    int rc = sim_file_get(world, FUZZ_IMAGE, &before, &before_len);
    demand(rc == 0, "the file is gone");
    rc = co_qcow2_open(world, FUZZ_IMAGE, options, &image, &err);
    if (rc < 0) {
        judge_refusal(world, before, before_len, &err);
        image = NULL;
    } else {
        watch_disk(qcow2_of(image)->disk, look, qcow2_of(image));
    }
    free(before);
    return image;
}
