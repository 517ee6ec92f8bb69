/* SPDX-License-Identifier: BSD-2-Clause */
/*
 * resolve() finds the layer that answers for a guest offset; everything here is a loop over what it
 * returns. Reads hold nothing and wait for nobody (O5): the request number keeps what they look at
 * from being reused (O3).
 */
#include "qcow2/read.h"

#include <assert.h>
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "io/buffers.h"
#include "qcow2/compress.h"
#include "qcow2/encrypted_disk.h"
#include "qcow2/engine.h"
#include "qcow2/map.h"
#include "qcow2/raw.h"

enum found_kind {
    FOUND_ZERO,
    FOUND_DATA,
    FOUND_RAW_DATA, /* in a raw data file, which knows its own holes */
    FOUND_COMPRESSED,
    FOUND_RAW, /* in a raw backing file, which does, too */
};

/* Who answers for a guest offset. */
struct found {
    enum found_kind kind;
    struct qcow2 *layer; /* whose file holds it; for FOUND_RAW the layer above the raw image */
    uint64_t len;
    struct mapping mapping;
    uint32_t depth; /* 1: the top image; 0: nowhere */
};

uint64_t backing_bytes(const struct qcow2 *q)
{
    if (q->backing) {
        return q->backing->image.size_bytes;
    }
    return q->backing_raw ? q->backing_raw->size_bytes : 0;
}

bool backing_covers(const struct qcow2 *q, guest_off guest)
{
    return guest.bytes < backing_bytes(q);
}

/* A raw data file is read as it is, without a look at the entries. */
static void found_in_raw_data(struct qcow2 *layer, guest_off guest, uint64_t len, uint32_t depth,
                              struct found *found)
{
    *found = (struct found){
        .kind = FOUND_RAW_DATA,
        .layer = layer,
        .len = len,
        .mapping = {.kind = MAPPING_DATA, .host = {guest.bytes}},
        .depth = depth,
    };
}

static int co_resolve(struct qcow2 *top, guest_off guest, uint64_t max_len, struct found *found)
{
    struct qcow2 *layer = top;
    uint32_t depth = 1;

    for (;;) {
        if (layer->geo.data_file_raw) {
            found_in_raw_data(layer, guest, max_len, depth, found);
            return 0;
        }
        int ret = co_map(layer, guest, max_len, &found->mapping);
        if (ret < 0) {
            return ret;
        }
        max_len = found->mapping.len;
        found->layer = layer;
        found->len = max_len;
        found->depth = depth;
        switch (found->mapping.kind) {
        case MAPPING_DATA:
            found->kind = FOUND_DATA;
            return 0;
        case MAPPING_COMPRESSED:
            found->kind = FOUND_COMPRESSED;
            return 0;
        case MAPPING_ZERO:
            found->kind = FOUND_ZERO;
            return 0;
        case MAPPING_UNALLOCATED:
            break;
        }
        /* A backing file that is shorter reads as zeroes from its end on. */
        uint64_t below = backing_bytes(layer);
        if (guest.bytes >= below) {
            found->kind = FOUND_ZERO;
            found->depth = 0;
            return 0;
        }
        max_len = MIN_OF(max_len, below - guest.bytes);
        found->len = max_len;
        depth++;
        if (layer->backing_raw) {
            found->kind = FOUND_RAW;
            found->depth = depth;
            return 0;
        }
        layer = layer->backing;
    }
}

/* A slot for a cluster to be inflated: its own if it is there, else the least recently used. */
static struct inflated *inflated_slot(struct qcow2 *q, uint64_t descriptor)
{
    struct inflated *oldest = &q->inflated[0];
    for (unsigned i = 0; i < INFLATED_MAX; i++) {
        struct inflated *slot = &q->inflated[i];
        if (slot->descriptor == descriptor) {
            slot->last_used = ++q->inflated_clock;
            return slot;
        }
        if (slot->last_used < oldest->last_used) {
            oldest = slot;
        }
    }
    return oldest;
}

/* Reads and inflates a cluster to `out` (cluster_bytes). */
static int co_inflate(struct qcow2 *q, uint64_t descriptor, uint8_t *out)
{
    host_off start;
    uint64_t len_bytes;

    compressed_place(&q->geo, descriptor, &start, &len_bytes);
    uint8_t *in = buffer_get(len_bytes);
    if (!in) {
        return -ENOMEM;
    }
    int ret = co_disk_read(q->disk, start.bytes, in, len_bytes);
    if (ret == 0) {
        ret = co_inflate_cluster(q->world, (enum qcow2_compression)q->header.compression, in,
                                 len_bytes, out, q->geo.cluster_bytes);
        if (ret == -EIO) {
            engine_log_damage(q, "compressed cluster at %#llx does not inflate",
                              (unsigned long long)start.bytes);
        }
    }
    buffer_put(in, len_bytes);
    return ret;
}

/*
 * A part of a compressed cluster. The descriptor names the same bytes for as long as anybody can
 * look it up (qcowd writes no compressed data), so the cache needs no invalidation.
 */
static int co_read_compressed(struct qcow2 *q, uint64_t descriptor, uint64_t in_cluster,
                              uint8_t *buf, size_t len)
{
    if (in_cluster == 0 && len == q->geo.cluster_bytes) {
        return co_inflate(q, descriptor, buf);
    }
    struct inflated *slot = inflated_slot(q, descriptor);
    if (slot->descriptor != descriptor) {
        uint8_t *bytes = malloc(q->geo.cluster_bytes);
        if (!bytes) {
            return -ENOMEM;
        }
        int ret = co_inflate(q, descriptor, bytes);
        if (ret < 0) {
            free(bytes);
            return ret;
        }
        /* O7: somebody else may have filled a slot meanwhile. */
        slot = inflated_slot(q, descriptor);
        free(slot->bytes);
        slot->bytes = bytes;
        slot->descriptor = descriptor;
        slot->last_used = ++q->inflated_clock;
    }
    memcpy(buf, slot->bytes + in_cluster, len);
    return 0;
}

/* Adds a hole; false when the list is full, or there is none. */
static bool add_hole(struct read_holes *holes, size_t offset, size_t len)
{
    if (!holes) {
        return false;
    }
    if (holes->count > 0) {
        size_t last = holes->count - 1;
        if (holes->run[last].offset + holes->run[last].len == offset) {
            holes->run[last].len += len;
            return true;
        }
    }
    if (holes->count == READ_HOLES_MAX) {
        return false;
    }
    holes->run[holes->count].offset = offset;
    holes->run[holes->count].len = len;
    holes->count++;
    return true;
}

static int co_read_found(const struct found *found, guest_off guest, uint8_t *buf, size_t done,
                         struct read_holes *holes)
{
    size_t len = (size_t)found->len;
    struct qcow2 *layer = found->layer;

    switch (found->kind) {
    case FOUND_ZERO:
        if (!add_hole(holes, done, len)) {
            memset(buf, 0, len);
        }
        return 0;
    case FOUND_DATA:
    case FOUND_RAW_DATA:
        /* The legacy method counts in the guest's sectors. */
        return layer->header.crypt_method == QCOW2_CRYPT_AES
                   ? co_encrypted_disk_read_as(layer->encrypted, found->mapping.host.bytes,
                                               guest.bytes, buf, len)
                   : co_disk_read(layer->data, found->mapping.host.bytes, buf, len);
    case FOUND_COMPRESSED:
        return co_read_compressed(layer, found->mapping.descriptor,
                                  offset_in_cluster(&layer->geo, guest), buf, len);
    case FOUND_RAW:
        return layer->backing_raw->ops->co_read(layer->backing_raw, guest.bytes, buf, len, NULL);
    }
    return -EIO;
}

static int co_read_range(struct qcow2 *q, guest_off guest, uint8_t *buf, size_t len,
                         struct read_holes *holes)
{
    if (holes) {
        holes->count = 0;
    }
    for (size_t done = 0; done < len;) {
        struct found found;
        guest_off at = {guest.bytes + done};
        int ret = co_resolve(q, at, len - done, &found);
        if (ret < 0) {
            return ret;
        }
        ret = co_read_found(&found, at, buf + done, done, holes);
        if (ret < 0) {
            return ret;
        }
        done += (size_t)found.len;
    }
    return 0;
}

int co_qcow2_read(struct image *image, uint64_t offset, void *buf, size_t len,
                  struct read_holes *holes)
{
    struct qcow2 *q = qcow2_of(image);
    struct request request;

    assert(range_inside(offset, len, image->size_bytes) && len > 0);
    request_enter(q->table, &request);
    int ret = co_read_range(q, (guest_off){offset}, buf, len, holes);
    request_leave(q->table, &request);
    return ret;
}

int co_read_for_copy(struct qcow2 *q, guest_off guest, void *buf, size_t len)
{
    /* The last cluster may end past the disk: nothing is there. */
    uint64_t size = q->geo.size_bytes;
    size_t inside = guest.bytes >= size ? 0 : (size_t)MIN_OF(len, size - guest.bytes);
    if (inside < len) {
        memset((uint8_t *)buf + inside, 0, len - inside);
    }
    return inside > 0 ? co_read_range(q, guest, buf, inside, NULL) : 0;
}

static bool knows_holes(const struct found *found)
{
    return found->kind == FOUND_RAW || (found->kind == FOUND_RAW_DATA && !found->layer->encrypted);
}

/* Data and holes of a raw file, from `guest` on. */
static int co_raw_extents_of(const struct found *found, guest_off guest, struct extent_list *list)
{
    if (found->kind == FOUND_RAW_DATA) {
        return co_raw_file_extents(found->layer->data, guest.bytes, found->len, list);
    }
    struct image *image = found->layer->backing_raw;
    return image->ops->co_extents(image, guest.bytes, found->len, list);
}

/* How far from `guest` on a raw file reads as zeroes, as its holes tell: *len is cut to that. */
static int co_raw_reads_zero(const struct found *found, guest_off guest, bool *zero, uint64_t *len)
{
    struct extent extent;
    struct extent_list list = {&extent, 1, 0};

    int ret = co_raw_extents_of(found, guest, &list);
    if (ret < 0) {
        return ret;
    }
    *zero = (extent.flags & EXTENT_ZERO) != 0;
    *len = extent.len;
    return 0;
}

static int co_range_reads_zero(struct qcow2 *q, guest_off guest, uint64_t len, bool ask_raw,
                               bool *zero)
{
    uint64_t end = MIN_OF(guest.bytes + len, q->geo.size_bytes);
    *zero = true;
    while (guest.bytes < end && *zero) {
        struct found found;
        int ret = co_resolve(q, guest, end - guest.bytes, &found);
        if (ret < 0) {
            return ret;
        }
        *zero = found.kind == FOUND_ZERO;
        if (ask_raw && knows_holes(&found)) {
            ret = co_raw_reads_zero(&found, guest, zero, &found.len);
            if (ret < 0) {
                return ret;
            }
        }
        guest.bytes += found.len;
    }
    return 0;
}

int co_reads_zero(struct qcow2 *q, guest_off guest, uint64_t len, bool *zero)
{
    return co_range_reads_zero(q, guest, len, false, zero);
}

int co_reads_zero_deep(struct qcow2 *q, guest_off guest, uint64_t len, bool *zero)
{
    return co_range_reads_zero(q, guest, len, true, zero);
}

/* Adds to the list, merging equal neighbours; false when it is full. */
static bool add_extent(struct extent_list *list, uint64_t len, uint32_t flags, uint32_t depth)
{
    if (list->count > 0) {
        struct extent *last = &list->extents[list->count - 1];
        if (last->flags == flags && last->depth == depth) {
            last->len += len;
            return true;
        }
    }
    if (list->count == list->capacity) {
        return false;
    }
    list->extents[list->count++] = (struct extent){len, flags, depth};
    return true;
}

/* A raw file knows its own holes; to write there needs space of it if it is the one written to. */
static int co_add_raw_extents(const struct found *found, guest_off guest, struct extent_list *list,
                              bool *full)
{
    struct extent extents[16];
    struct extent_list raw = {extents, ARRAY_LEN(extents), 0};
    uint32_t kept = found->depth == 1 ? EXTENT_ZERO | EXTENT_HOLE : EXTENT_ZERO;

    int ret = co_raw_extents_of(found, guest, &raw);
    for (unsigned i = 0; ret == 0 && i < raw.count && !*full; i++) {
        *full = !add_extent(list, extents[i].len, extents[i].flags & kept, found->depth);
    }
    return ret;
}

static int co_add_extents(struct qcow2 *q, guest_off guest, uint64_t len, struct extent_list *list,
                          uint64_t *described, bool *full)
{
    struct found found;
    int ret = co_resolve(q, guest, len, &found);
    if (ret < 0) {
        return ret;
    }
    *described = found.len;
    if (knows_holes(&found)) {
        uint64_t before = 0, after = 0;
        for (unsigned i = 0; i < list->count; i++) {
            before += list->extents[i].len;
        }
        ret = co_add_raw_extents(&found, guest, list, full);
        for (unsigned i = 0; i < list->count; i++) {
            after += list->extents[i].len;
        }
        *described = after - before;
        return ret;
    }
    uint32_t flags = 0;
    if (found.kind == FOUND_ZERO) {
        /* Writing where this image has its own cluster needs no space. */
        bool own = found.layer == q && found.mapping.named && found.mapping.copied;
        flags = EXTENT_ZERO | (own ? 0 : EXTENT_HOLE);
    }
    *full = !add_extent(list, found.len, flags, found.depth);
    return 0;
}

int co_qcow2_extents(struct image *image, uint64_t offset, uint64_t len, struct extent_list *list)
{
    struct qcow2 *q = qcow2_of(image);
    struct request request;
    bool full = false;
    int ret = 0;

    assert(range_inside(offset, len, image->size_bytes) && len > 0 && list->capacity > 0);
    list->count = 0;
    request_enter(q->table, &request);
    for (uint64_t done = 0; done < len && !full && ret == 0;) {
        uint64_t described = 0;
        ret = co_add_extents(q, (guest_off){offset + done}, len - done, list, &described, &full);
        done += described;
    }
    request_leave(q->table, &request);
    /* What was described before an error is good. */
    return list->count > 0 ? 0 : ret;
}
