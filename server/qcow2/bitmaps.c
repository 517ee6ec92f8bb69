/* SPDX-License-Identifier: BSD-2-Clause */
#include "qcow2/bitmaps.h"

#include <errno.h>
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

#include "base/check.h"
#include "base/limits.h"
#include "base/log.h"
#include "base/utf8.h"
#include "qcow2/bitmap_intent.h"
#include "qcow2/bitmap_store.h"
#include "qcow2/engine.h"
#include "qcow2/refcount.h"

static bool is_consistent(const struct stored_bitmap *stored)
{
    return !stored->unknown && !(stored->flags & QCOW2_BITMAP_IN_USE);
}

/* ---- Opening ---- */

struct adder {
    struct qcow2 *q;
    const char *name;
    struct errtext *err;
};

/* A cluster of a bitmap belongs to it alone, and is counted. */
static int add_to_metamap(void *arg, uint64_t cluster)
{
    struct adder *adder = arg;
    struct qcow2 *q = adder->q;
    char shown[BITMAP_NAME_SHOWN_BYTES];
    const char *what = NULL;
    int ret = metamap_add(&q->metamap, cluster);
    if (ret < 0) {
        return err_set(adder->err, ENOMEM, "%s: out of memory for the map of metadata", q->path);
    }
    if (ret > 0) {
        what = "overlaps other metadata";
    } else if (!refcount_block_exists(q, cluster)) {
        what = "has no refcount block";
    }
    return what ? err_set(adder->err, EINVAL,
                          "%s: a cluster of bitmap '%s' at %#" PRIx64
                          " %s: run 'qcowd check' on the image",
                          q->path, bitmap_name_shown(shown, adder->name),
                          cluster << q->geo.cluster_bits, what)
                : 0;
}

static int co_add_clusters(struct qcow2 *q, struct errtext *err)
{
    const struct bitmap_directory *directory = &q->bitmaps.directory;
    struct adder adder = {q, "", err};
    uint64_t first = host_cluster_index(&q->geo, q->header.bitmap_directory_offset);
    uint64_t clusters = div_round_up(q->header.bitmap_directory_len_bytes, q->geo.cluster_bytes);
    int ret = 0;

    for (uint64_t i = 0; ret == 0 && i < clusters; i++) {
        ret = add_to_metamap(&adder, first + i);
    }
    for (uint32_t i = 0; ret == 0 && i < directory->count; i++) {
        adder.name = directory->bitmaps[i].name;
        ret = co_bitmap_visit_clusters(q->disk, &q->geo, &directory->bitmaps[i], add_to_metamap,
                                       &adder, err);
    }
    return ret;
}

int bitmaps_refuse_bits(const struct qcow2 *q, uint64_t bytes, struct errtext *err)
{
    return err_set(err, EFBIG, "%s: its bitmaps need %" PRIu64 " bytes of memory: allowed are %llu",
                   q->path, bytes, LIMIT_BITMAP_BITS_BYTES);
}

/* Whether a crash of our own has left it, with all that is needed to go on. */
static bool can_recover(const struct stored_bitmap *stored, const struct intent_left *left)
{
    return !stored->unknown && (stored->flags & QCOW2_BITMAP_IN_USE) &&
           (stored->flags & QCOW2_BITMAP_AUTO) && intent_left_names(left, stored->name);
}

/* O11: what was open may have changed. */
static void add_open_regions(const struct qcow2 *q, struct bitmap *bits,
                             const struct intent_left *left)
{
    for (uint64_t region = 0; region < left->region_count; region++) {
        uint64_t start = region << left->region_bits;
        if (start < q->geo.size_bytes && (left->open[region / 8] >> region % 8 & 1)) {
            bitmap_set(bits, start, MIN_OF(1ULL << left->region_bits, q->geo.size_bytes - start));
        }
    }
}

static int co_load_bits(struct qcow2 *q, const struct intent_left *left, struct errtext *err)
{
    struct bitmaps *bitmaps = &q->bitmaps;
    for (uint32_t i = 0; i < bitmaps->directory.count; i++) {
        const struct stored_bitmap *stored = &bitmaps->directory.bitmaps[i];
        struct live_bitmap *live = &bitmaps->live[i];
        bool recover = can_recover(stored, left);
        live->id = bitmaps->next_id++;
        if (!is_consistent(stored) && !recover) {
            continue;
        }
        bitmaps->bits_bytes += bitmap_bytes_needed(q->geo.size_bytes, stored->granularity_bits);
        if (bitmaps->bits_bytes > LIMIT_BITMAP_BITS_BYTES) {
            return bitmaps_refuse_bits(q, bitmaps->bits_bytes, err);
        }
        if (bitmap_init(&live->bits, q->geo.size_bytes, stored->granularity_bits) < 0) {
            return err_set(err, ENOMEM, "%s: out of memory for its bitmaps", q->path);
        }
        live->has_bits = true;
        int ret = co_bitmap_load(q->disk, &q->geo, stored, &live->bits, err);
        if (ret < 0) {
            return ret;
        }
        if (recover) {
            add_open_regions(q, &live->bits, left);
        }
    }
    return 0;
}

static int co_open_bitmaps(struct qcow2 *q, struct errtext *err)
{
    struct bitmaps *bitmaps = &q->bitmaps;
    int ret = co_bitmap_directory_read(q->disk, &q->header, &bitmaps->directory, err);
    if (ret < 0 || bitmaps->directory.count == 0) {
        return ret;
    }
    bitmaps->live = calloc(bitmaps->directory.count, sizeof(*bitmaps->live));
    if (!bitmaps->live) {
        return err_set(err, ENOMEM, "%s: out of memory for its bitmaps", q->path);
    }
    struct intent_left left;
    ret = q->image.read_only ? 0 : co_add_clusters(q, err);
    if (ret == 0) {
        ret = co_intent_read(q->disk, &q->header, &left);
        if (ret < 0 && ret != -ENOENT) {
            return err_set(err, -ret, "%s: reading write-intent regions: %s", q->path,
                           strerror(-ret));
        }
        ret = co_load_bits(q, &left, err);
        intent_left_free(&left);
    }
    return ret;
}

int co_bitmaps_open(struct qcow2 *q, struct errtext *err)
{
    int ret = co_open_bitmaps(q, err);
    if (ret < 0 && q->image.read_only && !q->options.bitmaps_only && ret != -ENOMEM) {
        log_warning("%s; its bitmaps are not offered", err->text);
        bitmaps_free(q);
        ret = 0;
    }
    return ret;
}

static void live_free(struct live_bitmap *live)
{
    if (live->has_bits) {
        bitmap_free(&live->bits);
    }
}

void bitmaps_free(struct qcow2 *q)
{
    struct bitmaps *bitmaps = &q->bitmaps;
    for (uint32_t i = 0; bitmaps->live && i < bitmaps->directory.count; i++) {
        live_free(&bitmaps->live[i]);
    }
    free(bitmaps->live);
    bitmaps->live = NULL;
    bitmaps->bits_bytes = 0;
    bitmap_directory_free(&bitmaps->directory);
}

/* ---- What others see ---- */

size_t qcow2_bitmap_list(struct image *image, struct image_bitmap *out, size_t capacity)
{
    const struct bitmaps *bitmaps = &qcow2_of(image)->bitmaps;
    size_t count = 0;
    for (uint32_t i = 0; i < bitmaps->directory.count; i++) {
        const char *name = bitmaps->directory.bitmaps[i].name;
        /* Clients can only ask for text. */
        if (!bitmaps->live[i].has_bits || !utf8_is_text(name, strlen(name))) {
            continue;
        }
        if (count < capacity) {
            out[count] = (struct image_bitmap){bitmaps->live[i].id, name};
        }
        count++;
    }
    return count;
}

int co_qcow2_bitmap_extents(struct image *image, uint64_t bitmap_id, uint64_t offset, uint64_t len,
                            struct extent_list *list)
{
    const struct bitmaps *bitmaps = &qcow2_of(image)->bitmaps;
    const struct bitmap *bits = NULL;
    for (uint32_t i = 0; i < bitmaps->directory.count; i++) {
        if (bitmaps->live[i].id == bitmap_id && bitmaps->live[i].has_bits) {
            bits = &bitmaps->live[i].bits;
        }
    }
    if (!bits) {
        return -ENOENT;
    }
    uint64_t end = offset + len;
    for (list->count = 0; offset < end && list->count < list->capacity; list->count++) {
        bool is_dirty = false;
        uint64_t run_end = end;
        bitmap_next(bits, offset, end, &is_dirty, &run_end);
        list->extents[list->count] =
            (struct extent){.len = run_end - offset, .flags = is_dirty ? EXTENT_DIRTY : 0};
        offset = run_end;
    }
    return 0;
}

size_t qcow2_bitmap_facts(struct image *image, struct bitmap_facts *out, size_t capacity)
{
    const struct bitmaps *bitmaps = &qcow2_of(image)->bitmaps;
    for (uint32_t i = 0; i < bitmaps->directory.count && i < capacity; i++) {
        const struct stored_bitmap *stored = &bitmaps->directory.bitmaps[i];
        const struct live_bitmap *live = &bitmaps->live[i];
        out[i] = (struct bitmap_facts){
            .name = stored->name,
            .granularity_bytes =
                stored->granularity_bits < 64 ? 1ULL << stored->granularity_bits : 0,
            .enabled = stored->flags & QCOW2_BITMAP_AUTO,
            .inconsistent = !stored->unknown && !live->has_bits,
            .unknown = stored->unknown,
            .dirty_bytes = live->has_bits ? bitmap_count_bytes(&live->bits) : 0,
        };
    }
    return bitmaps->directory.count;
}
