/* SPDX-License-Identifier: BSD-2-Clause */
/*
 * Adding looks for a spare extension first. Else the new one is written behind the old end, with an
 * end of its own, where no reader looks; then the old end's 8 bytes, which are aligned and so lie
 * in one sector, become its type and length.
 */
#include "qcow2/header_extension.h"

#include <assert.h>
#include <errno.h>
#include <stddef.h>
#include <stdlib.h>
#include <string.h>

#include "base/bytes.h"
#include "base/check.h"
#include "qcow2/ondisk.h"

#define SECTOR_BYTES 512U
#define HEAD_BYTES   ((uint32_t)sizeof(struct qcow2_disk_extension))
#define NO_ROOM      UINT32_MAX

/* The first cluster, and what its parts are. */
struct area {
    struct disk *disk;
    uint8_t *bytes; /* owned */
    uint32_t start;
    uint32_t limit; /* extensions end here: at the backing file's name, or with the cluster */
    uint32_t end;   /* where the END extension is; 0: there is none */
    uint32_t cluster_bytes;
    uint64_t backing_offset;
    uint32_t backing_len;
};

static uint32_t padded(uint32_t len)
{
    return (uint32_t)round_up_to(len, 8);
}

static uint32_t type_at(const struct area *area, uint32_t at)
{
    return get_be32(area->bytes + at);
}

static uint32_t len_at(const struct area *area, uint32_t at)
{
    return get_be32(area->bytes + at + 4);
}

static uint32_t behind(const struct area *area, uint32_t at)
{
    return at + HEAD_BYTES + padded(len_at(area, at));
}

/* Whether an extension begins at `at`, that is neither the end nor beyond it. */
static bool is_extension(const struct area *area, uint32_t at)
{
    return at < area->limit && area->limit - at >= HEAD_BYTES && at != area->end;
}

/* Finds the end; -EINVAL when an extension is longer than what there is. */
static int find_end(struct area *area)
{
    for (uint32_t at = area->start; at < area->limit && area->limit - at >= HEAD_BYTES;
         at = behind(area, at)) {
        if (type_at(area, at) == QCOW2_EXT_END) {
            area->end = at;
            return 0;
        }
        if (len_at(area, at) > area->limit - at - HEAD_BYTES) {
            return -EINVAL;
        }
    }
    return 0;
}

static int co_area_read(struct disk *disk, const struct header *header, struct area *area)
{
    struct qcow2_disk_header raw;

    *area = (struct area){
        .disk = disk,
        .bytes = malloc(header->geo.cluster_bytes),
        .start = header->header_len_bytes,
        .cluster_bytes = (uint32_t)header->geo.cluster_bytes,
    };
    if (!area->bytes) {
        return -ENOMEM;
    }
    int ret = co_disk_read(disk, 0, area->bytes, area->cluster_bytes);
    if (ret < 0) {
        return ret;
    }
    memcpy(&raw, area->bytes, sizeof(raw));
    area->backing_offset = get_be64(raw.backing_file_offset.bytes);
    area->backing_len = get_be32(raw.backing_file_size.bytes);
    area->limit = area->cluster_bytes;
    if (area->backing_offset != 0) {
        if (area->backing_offset < area->start || area->backing_offset > area->cluster_bytes ||
            area->backing_len > area->cluster_bytes - area->backing_offset) {
            return -EINVAL;
        }
        area->limit = (uint32_t)area->backing_offset;
    }
    return find_end(area);
}

static void area_free(struct area *area)
{
    free(area->bytes);
}

/* Writes bytes of the first cluster, as they are in memory now, in whole sectors. */
static int co_area_write(struct area *area, uint32_t at, uint32_t len)
{
    uint32_t first = (uint32_t)round_down_to(at, SECTOR_BYTES);
    uint32_t end = (uint32_t)round_up_to(at + len, SECTOR_BYTES);
    return co_disk_write(area->disk, first, area->bytes + first, end - first);
}

static int co_area_write_durably(struct area *area, uint32_t at, uint32_t len)
{
    int ret = co_area_write(area, at, len);
    return ret < 0 ? ret : co_disk_flush(area->disk);
}

static void put_head(struct area *area, uint32_t at, uint32_t type, uint32_t len)
{
    put_be32(area->bytes + at, type);
    put_be32(area->bytes + at + 4, len);
}

/* The one step that a reader sees. */
static int co_put_head(struct area *area, uint32_t at, uint32_t type, uint32_t len)
{
    put_head(area, at, type, len);
    return co_area_write_durably(area, at, HEAD_BYTES);
}

static uint32_t find_type(const struct area *area, uint32_t type)
{
    uint32_t at = area->start;
    while (is_extension(area, at) && type_at(area, at) != type) {
        at = behind(area, at);
    }
    return is_extension(area, at) ? at : 0;
}

int co_header_extension_find(struct disk *disk, const struct header *header, uint32_t type,
                             struct header_place *place)
{
    struct area area;
    int ret = co_area_read(disk, header, &area);
    if (ret == 0) {
        uint32_t at = find_type(&area, type);
        if (at == 0) {
            ret = -ENOENT;
        } else {
            *place = (struct header_place){at + HEAD_BYTES, len_at(&area, at)};
        }
    }
    area_free(&area);
    return ret;
}

bool header_extension_is_atomic(const struct header_place *place, uint32_t at, uint32_t len)
{
    uint32_t first = place->offset + at;
    return len == 0 || first / SECTOR_BYTES == (first + len - 1) / SECTOR_BYTES;
}

int co_header_extension_write(struct disk *disk, const struct header_place *place, uint32_t at,
                              const void *bytes, uint32_t len)
{
    assert(range_inside(at, len, place->len));
    uint64_t first = round_down_to(place->offset + at, SECTOR_BYTES);
    uint64_t end = round_up_to((uint64_t)place->offset + at + len, SECTOR_BYTES);
    uint8_t *sectors = malloc((size_t)(end - first));
    int ret = sectors ? co_disk_read(disk, first, sectors, (size_t)(end - first)) : -ENOMEM;
    if (ret == 0) {
        memcpy(sectors + (place->offset + at - first), bytes, len);
        ret = co_disk_write(disk, first, sectors, (size_t)(end - first));
    }
    free(sectors);
    return ret;
}

/* ---- Adding ---- */

/* What must lie in front of data at `at` so that it does not straddle: 0, or a spare's bytes. */
static uint32_t spare_before(uint32_t at, uint32_t len)
{
    const struct header_place place = {at + HEAD_BYTES, len};
    if (len > SECTOR_BYTES || header_extension_is_atomic(&place, 0, len)) {
        return 0;
    }
    uint32_t start = (uint32_t)round_up_to(at + 2 * HEAD_BYTES, SECTOR_BYTES);
    return start - HEAD_BYTES - at;
}

/* An extension of this type, not needed, that takes the new one, and a spare's head if there is a
 * rest. */
static uint32_t find_room(const struct area *area, uint32_t type, uint32_t len)
{
    for (uint32_t at = area->start; is_extension(area, at); at = behind(area, at)) {
        if (type_at(area, at) == type && padded(len) <= padded(len_at(area, at)) &&
            spare_before(at, len) == 0) {
            return at;
        }
    }
    return NO_ROOM;
}

static int co_use_room(struct area *area, uint32_t at, uint32_t type, const void *data,
                       uint32_t len)
{
    uint32_t rest = padded(len_at(area, at)) - padded(len);
    uint32_t data_at = at + HEAD_BYTES;

    memset(area->bytes + data_at, 0, padded(len));
    memcpy(area->bytes + data_at, data, len);
    if (rest > 0) {
        put_head(area, data_at + padded(len), QCOW2_EXT_SPARE, rest - HEAD_BYTES);
    }
    int ret = co_area_write_durably(area, data_at, padded(len) + (rest > 0 ? HEAD_BYTES : 0));
    return ret < 0 ? ret : co_put_head(area, at, type, len);
}

/*
 * Moves the backing file's name to the cluster's end. The old one stays whole until the header
 * names the new one. -ENOSPC: they would overlap.
 */
static int co_move_backing_name(struct area *area)
{
    uint32_t from = (uint32_t)area->backing_offset;
    uint32_t to = (uint32_t)round_down_to(area->cluster_bytes - area->backing_len, 8);
    const uint32_t field = offsetof(struct qcow2_disk_header, backing_file_offset);

    if (to < from + area->backing_len || to <= from) {
        return -ENOSPC;
    }
    memcpy(area->bytes + to, area->bytes + from, area->backing_len);
    int ret = area->backing_len > 0 ? co_area_write_durably(area, to, area->backing_len) : 0;
    if (ret == 0) {
        put_be64(area->bytes + field, to);
        ret = co_area_write_durably(area, field, sizeof(be64_t));
    }
    if (ret == 0) {
        area->backing_offset = to;
        area->limit = to;
    }
    return ret;
}

static int co_add_at_end(struct area *area, uint32_t type, const void *data, uint32_t len,
                         uint32_t *at)
{
    uint32_t end = area->end;
    uint32_t spare = spare_before(end, len);
    uint64_t needed = (uint64_t)spare + HEAD_BYTES + padded(len) + HEAD_BYTES;

    if (end == 0 || needed > area->cluster_bytes - end) {
        return -ENOSPC;
    }
    if (needed > area->limit - end) {
        int ret = co_move_backing_name(area);
        if (ret < 0) {
            return ret;
        }
        if (needed > area->limit - end) {
            return -ENOSPC;
        }
    }
    *at = end + spare;
    uint32_t data_at = *at + HEAD_BYTES;
    if (spare > 0) {
        memset(area->bytes + end, 0, spare);
        put_head(area, *at, type, len);
    }
    memset(area->bytes + data_at, 0, padded(len) + HEAD_BYTES); /* with the new end */
    memcpy(area->bytes + data_at, data, len);
    int ret = co_area_write_durably(area, end + HEAD_BYTES, (uint32_t)needed - HEAD_BYTES);
    if (ret < 0) {
        return ret;
    }
    return spare > 0 ? co_put_head(area, end, QCOW2_EXT_SPARE, spare - HEAD_BYTES)
                     : co_put_head(area, end, type, len);
}

int co_header_extension_add(struct disk *disk, const struct header *header, uint32_t type,
                            const void *data, uint32_t len, struct header_place *place)
{
    struct area area;
    uint32_t at = NO_ROOM;

    assert(type != QCOW2_EXT_END && type != QCOW2_EXT_SPARE);
    if (len > header->geo.cluster_bytes) {
        return -ENOSPC;
    }
    int ret = co_area_read(disk, header, &area);
    if (ret == 0) {
        assert(find_type(&area, type) == 0);
        at = find_room(&area, QCOW2_EXT_SPARE, len);
        ret = at != NO_ROOM ? co_use_room(&area, at, type, data, len)
                            : co_add_at_end(&area, type, data, len, &at);
    }
    if (ret == -ENOSPC) {
        at = find_room(&area, QCOW2_EXT_FEATURE_NAMES, len);
        ret = at != NO_ROOM ? co_use_room(&area, at, type, data, len) : ret;
    }
    if (ret == 0) {
        *place = (struct header_place){at + HEAD_BYTES, len};
    }
    area_free(&area);
    return ret;
}

/* ---- Removing ---- */

/* Where the end may be once the extension at `gone` is spare: nothing but spares are behind it. */
static uint32_t new_end(const struct area *area, uint32_t gone)
{
    uint32_t first = 0; /* of the spares that the extensions end with */
    for (uint32_t at = area->start; is_extension(area, at); at = behind(area, at)) {
        bool is_spare = at == gone || type_at(area, at) == QCOW2_EXT_SPARE;
        first = !is_spare ? 0 : first == 0 ? at : first;
    }
    return area->end != 0 && first != 0 && first <= gone ? first : 0;
}

int co_header_extension_remove(struct disk *disk, const struct header *header, uint32_t type)
{
    struct area area;
    uint32_t at;
    int ret = co_area_read(disk, header, &area);

    while (ret == 0 && (at = find_type(&area, type)) != 0) {
        uint32_t end = new_end(&area, at);
        if (end != 0) {
            ret = co_put_head(&area, end, QCOW2_EXT_END, 0);
            area.end = end;
        } else {
            ret = co_put_head(&area, at, QCOW2_EXT_SPARE, len_at(&area, at));
        }
    }
    area_free(&area);
    return ret;
}
