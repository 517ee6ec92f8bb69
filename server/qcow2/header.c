/* SPDX-License-Identifier: BSD-2-Clause */
/*
 * Reading happens in the order in which trust grows: the fixed fields, then the first cluster with
 * what is named in it (extensions, backing name), then the tables' places, then the snapshot table.
 * Each step may use only what the steps before have validated. O10: no field is used in arithmetic
 * before it has been bounded, and no allocation is larger than a cluster, a limit of base/limits.h
 * or the bytes that the file really has at that place.
 */
#include "qcow2/header.h"

#include <errno.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/bytes.h"
#include "base/check.h"
#include "base/limits.h"

/* As QEMU: more extra data than this in a snapshot's entry is damage. */
#define SNAPSHOT_EXTRA_BYTES_MAX 1024U
#define SNAPSHOT_ENTRY_BYTES_MAX \
    (sizeof(struct qcow2_disk_snapshot) + SNAPSHOT_EXTRA_BYTES_MAX + 2 * 65535U + 7)
#define SNAPSHOT_WINDOW_BYTES (256U * 1024U)
_Static_assert(SNAPSHOT_WINDOW_BYTES >= SNAPSHOT_ENTRY_BYTES_MAX, "an entry fits the window");

#define SNAPSHOT_EXTRA_VM_STATE_BYTES  8U  /* extra data that holds the 64-bit VM state size */
#define SNAPSHOT_EXTRA_DISK_SIZE_BYTES 16U /* ... and the disk size too */

#define BACKING_FORMAT_BYTES_MAX 64U
#define BITMAPS_MAX              65535U
#define CRYPTO_HEADER_BYTES      16U
#define UPDATE_UNIT_BYTES        512U

/* What the steps of one co_header_read() share. */
struct reader {
    struct disk *disk;
    struct header *header;
    struct errtext *err;
    char path[256];          /* sanitised, for messages */
    uint8_t *first;          /* the first cluster; NULL before it was read */
    uint64_t file_end_bytes; /* the file's size, up to the end of its last cluster */
    uint64_t backing_offset; /* 0: none */
    uint32_t backing_len;
    uint32_t snapshot_count; /* as named; the header's own counts those taken */
};

static int refuse_number(struct reader *reader, int errno_value, const char *field, uint64_t value,
                         const char *allowed)
{
    return err_set(reader->err, errno_value, "%s: %s is %" PRIu64 ": allowed is %s", reader->path,
                   field, value, allowed);
}

static int refuse_offset(struct reader *reader, const char *field, uint64_t value,
                         const char *allowed)
{
    return err_set(reader->err, EINVAL, "%s: %s is 0x%" PRIx64 ": allowed is %s", reader->path,
                   field, value, allowed);
}

/* A string of the image as a C string; NULL when memory is short. The caller has excluded NULs. */
static char *copy_text(const uint8_t *bytes, size_t len)
{
    char *text = malloc(len + 1);
    if (text) {
        memcpy(text, bytes, len);
        text[len] = '\0';
    }
    return text;
}

/*
 * Fixed fields.
 */

static int check_magic(struct reader *reader, const uint8_t *raw)
{
    uint64_t size_bytes = reader->disk->size_bytes;
    if (size_bytes < QCOW2_HEADER_BYTES_V2) {
        return err_set(reader->err, EINVAL,
                       "%s: the file's size is %" PRIu64 " bytes: a qcow2 image has at least %u",
                       reader->path, size_bytes, QCOW2_HEADER_BYTES_V2);
    }
    uint32_t magic = get_be32(raw);
    if (magic != QCOW2_MAGIC) {
        return err_set(reader->err, EINVAL,
                       "%s: not a qcow2 image: magic is 0x%08" PRIx32 ": allowed is 0x%08x",
                       reader->path, magic, QCOW2_MAGIC);
    }
    return 0;
}

/* The fields that version 3 added; all zero in version 2. */
static int take_v3_fields(struct reader *reader, const struct qcow2_disk_header *raw,
                          uint32_t *refcount_order)
{
    struct header *header = reader->header;
    uint64_t cluster_bytes = 1ULL << get_be32(raw->cluster_bits.bytes);

    header->incompatible = get_be64(raw->incompatible_features.bytes);
    header->compatible = get_be64(raw->compatible_features.bytes);
    header->autoclear = get_be64(raw->autoclear_features.bytes);
    header->header_len_bytes = get_be32(raw->header_length.bytes);
    *refcount_order = get_be32(raw->refcount_order.bytes);
    if (*refcount_order > QCOW2_REFCOUNT_ORDER_MAX) {
        return refuse_number(reader, EINVAL, "refcount_order", *refcount_order, "0 to 6");
    }
    if (header->header_len_bytes < QCOW2_HEADER_BYTES_V3_MIN ||
        header->header_len_bytes > cluster_bytes || header->header_len_bytes % 8 != 0) {
        return refuse_number(reader, EINVAL, "header_length", header->header_len_bytes,
                             "a multiple of 8, from 104 to the cluster size");
    }
    if (header->header_len_bytes > offsetof(struct qcow2_disk_header, compression_type)) {
        header->compression = raw->compression_type;
    }
    bool other_than_zlib = header->incompatible & QCOW2_INCOMPAT_COMPRESSION;
    if (header->compression > QCOW2_COMPRESSION_ZSTD) {
        return refuse_number(reader, EINVAL, "compression_type", header->compression,
                             "0 (zlib) or 1 (zstd)");
    }
    if (other_than_zlib != (header->compression != QCOW2_COMPRESSION_ZLIB)) {
        return refuse_number(reader, EINVAL, "compression_type", header->compression,
                             other_than_zlib ? "1 (zstd) as incompatible feature bit 3 is set"
                                             : "0 (zlib) as incompatible feature bit 3 is not set");
    }
    return 0;
}

static int take_size(struct reader *reader, uint64_t size_bytes, uint32_t refcount_order,
                     uint32_t cluster_bits)
{
    struct header *header = reader->header;
    bool extended_l2 = header->incompatible & QCOW2_INCOMPAT_EXTENDED_L2;

    if (extended_l2 && cluster_bits < QCOW2_CLUSTER_BITS_MIN_EXTENDED) {
        return refuse_number(reader, EINVAL, "cluster_bits", cluster_bits,
                             "14 to 21 with extended L2 entries");
    }
    if (size_bytes > (uint64_t)INT64_MAX - ((1ULL << cluster_bits) - 1)) {
        return refuse_number(reader, EINVAL, "size", size_bytes,
                             "at most 2^63 - 1, rounded up to a cluster");
    }
    geometry_init(&header->geo, cluster_bits, extended_l2, header->version, refcount_order,
                  size_bytes);
    header->geo.data_file = header->incompatible & QCOW2_INCOMPAT_DATA_FILE;
    header->geo.data_file_raw =
        header->geo.data_file && (header->autoclear & QCOW2_AUTOCLEAR_RAW_DATA_FILE);
    uint64_t l1_entries = l1_entries_needed(&header->geo);
    if (l1_entries > LIMIT_L1_BYTES / sizeof(be64_t)) {
        return refuse_number(reader, EINVAL, "size", size_bytes,
                             "what an L1 table of 32 MiB can describe");
    }
    if (header->l1_entries > LIMIT_L1_BYTES / sizeof(be64_t) || header->l1_entries < l1_entries) {
        char allowed[96];
        snprintf(allowed, sizeof(allowed), "%" PRIu64 " (for the disk's size) to %" PRIu64,
                 l1_entries, (uint64_t)(LIMIT_L1_BYTES / sizeof(be64_t)));
        return refuse_number(reader, EINVAL, "l1_size", header->l1_entries, allowed);
    }
    return 0;
}

static int take_fixed_fields(struct reader *reader, const struct qcow2_disk_header *raw)
{
    struct header *header = reader->header;
    uint32_t refcount_order = QCOW2_REFCOUNT_ORDER_V2;

    header->version = get_be32(raw->version.bytes);
    if (header->version != 2 && header->version != 3) {
        return refuse_number(reader, ENOTSUP, "version", header->version, "2 or 3");
    }
    uint32_t cluster_bits = get_be32(raw->cluster_bits.bytes);
    if (cluster_bits < QCOW2_CLUSTER_BITS_MIN || cluster_bits > QCOW2_CLUSTER_BITS_MAX) {
        return refuse_number(reader, EINVAL, "cluster_bits", cluster_bits, "9 to 21");
    }
    header->header_len_bytes = QCOW2_HEADER_BYTES_V2;
    if (header->version >= 3) {
        int rc = take_v3_fields(reader, raw, &refcount_order);
        if (rc < 0) {
            return rc;
        }
    }
    header->crypt_method = get_be32(raw->crypt_method.bytes);
    if (header->crypt_method > QCOW2_CRYPT_LUKS) {
        return refuse_number(reader, EINVAL, "crypt_method", header->crypt_method,
                             "0 (none), 1 (AES) or 2 (LUKS)");
    }
    header->l1_entries = get_be32(raw->l1_size.bytes);
    header->l1_offset.bytes = get_be64(raw->l1_table_offset.bytes);
    header->reftable_offset.bytes = get_be64(raw->refcount_table_offset.bytes);
    header->reftable_clusters = get_be32(raw->refcount_table_clusters.bytes);
    header->snapshots_offset.bytes = get_be64(raw->snapshots_offset.bytes);
    reader->snapshot_count = get_be32(raw->nb_snapshots.bytes);
    reader->backing_offset = get_be64(raw->backing_file_offset.bytes);
    reader->backing_len = get_be32(raw->backing_file_size.bytes);
    return take_size(reader, get_be64(raw->size.bytes), refcount_order, cluster_bits);
}

/*
 * The first cluster: backing name and extensions.
 */

static int take_backing_name(struct reader *reader)
{
    struct header *header = reader->header;
    uint64_t cluster_bytes = header->geo.cluster_bytes;

    if (reader->backing_offset == 0) {
        return 0;
    }
    if (reader->backing_offset < header->header_len_bytes ||
        reader->backing_offset > cluster_bytes) {
        return refuse_offset(reader, "backing_file_offset", reader->backing_offset,
                             "behind the header, inside the first cluster");
    }
    if (reader->backing_len > LIMIT_BACKING_NAME_BYTES ||
        reader->backing_len > cluster_bytes - reader->backing_offset) {
        return refuse_number(reader, EINVAL, "backing_file_size", reader->backing_len,
                             "at most 1023, inside the first cluster");
    }
    if (reader->backing_len == 0) {
        return 0;
    }
    const uint8_t *name = reader->first + reader->backing_offset;
    if (memchr(name, 0, reader->backing_len)) {
        return err_set(reader->err, EINVAL, "%s: the backing file's name contains a NUL byte",
                       reader->path);
    }
    header->backing_name = copy_text(name, reader->backing_len);
    return header->backing_name ? 0 : -ENOMEM;
}

static int take_text_extension(struct reader *reader, const char *field, const uint8_t *data,
                               uint32_t len, uint32_t len_max, char **out)
{
    if (*out) {
        return err_set(reader->err, EINVAL, "%s: header extension %s appears more than once",
                       reader->path, field);
    }
    if (len > len_max || memchr(data, 0, len)) {
        return err_set(reader->err, EINVAL,
                       "%s: header extension %s has %" PRIu32 " bytes: allowed are at most %" PRIu32
                       ", none of them NUL",
                       reader->path, field, len, len_max);
    }
    *out = copy_text(data, len);
    return *out ? 0 : -ENOMEM;
}

/* Keeps what the image calls the lowest incompatible feature that is not known here. */
static void take_feature_names(struct header *header, const uint8_t *data, uint32_t len)
{
    uint64_t unknown = header->incompatible & ~(uint64_t)QCOW2_INCOMPAT_KNOWN;
    if (!unknown) {
        return;
    }
    unsigned lowest = (unsigned)__builtin_ctzll(unknown);
    const size_t entry_bytes = sizeof(struct qcow2_disk_feature_name);

    for (uint32_t at = 0; len - at >= entry_bytes; at += (uint32_t)entry_bytes) {
        struct qcow2_disk_feature_name entry;
        memcpy(&entry, data + at, sizeof(entry));
        if (entry.type == 0 && entry.bit == lowest) {
            size_t name_len = strnlen((const char *)entry.name, sizeof(entry.name));
            if (name_len > 0) {
                err_sanitise(header->unknown_feature, sizeof(header->unknown_feature), entry.name,
                             name_len);
            }
            return;
        }
    }
}

static int check_table_place(struct reader *reader, const char *field, host_off offset,
                             uint64_t len_bytes);

static int take_bitmaps(struct reader *reader, const uint8_t *data, uint32_t len)
{
    struct header *header = reader->header;
    struct qcow2_disk_bitmaps_extension raw;

    if (!(header->autoclear & QCOW2_AUTOCLEAR_BITMAPS)) {
        return 0; /* somebody wrote without maintaining them: the data means nothing any more */
    }
    if (len != sizeof(raw)) {
        return refuse_number(reader, EINVAL, "length of the bitmaps extension", len, "24");
    }
    memcpy(&raw, data, sizeof(raw));
    header->bitmap_count = get_be32(raw.nb_bitmaps.bytes);
    header->bitmap_directory_len_bytes = get_be64(raw.directory_size.bytes);
    header->bitmap_directory_offset.bytes = get_be64(raw.directory_offset.bytes);
    if (header->bitmap_count == 0 || header->bitmap_count > BITMAPS_MAX) {
        return refuse_number(reader, EINVAL, "nb_bitmaps", header->bitmap_count, "1 to 65535");
    }
    uint64_t most = (uint64_t)header->bitmap_count * 2048;
    if (header->bitmap_directory_len_bytes < sizeof(struct qcow2_disk_bitmap) ||
        header->bitmap_directory_len_bytes > most) {
        return refuse_number(reader, EINVAL, "bitmap_directory_size",
                             header->bitmap_directory_len_bytes,
                             "24 to 2048 bytes for each bitmap");
    }
    return check_table_place(reader, "bitmap_directory_offset", header->bitmap_directory_offset,
                             header->bitmap_directory_len_bytes);
}

static int take_crypto(struct reader *reader, const uint8_t *data, uint32_t len)
{
    struct header *header = reader->header;

    if (header->crypt_method != QCOW2_CRYPT_LUKS || len != CRYPTO_HEADER_BYTES) {
        return err_set(reader->err, EINVAL,
                       "%s: the encryption extension has %" PRIu32
                       " bytes with crypt_method %" PRIu32 ": allowed are 16, with method 2 (LUKS)",
                       reader->path, len, header->crypt_method);
    }
    header->crypto_header_offset.bytes = get_be64(data);
    header->crypto_header_len_bytes = get_be64(data + 8);
    if (header->crypto_header_len_bytes == 0) {
        return refuse_number(reader, EINVAL, "length of the encryption header", 0, "1 and more");
    }
    return check_table_place(reader, "offset of the encryption header",
                             header->crypto_header_offset, header->crypto_header_len_bytes);
}

static int take_extension(struct reader *reader, uint32_t type, const uint8_t *data, uint32_t len)
{
    struct header *header = reader->header;

    switch (type) {
    case QCOW2_EXT_BACKING_FORMAT:
        return take_text_extension(reader, "backing file format", data, len,
                                   BACKING_FORMAT_BYTES_MAX, &header->backing_format);
    case QCOW2_EXT_DATA_FILE:
        return take_text_extension(reader, "external data file name", data, len,
                                   LIMIT_BACKING_NAME_BYTES, &header->data_file_name);
    case QCOW2_EXT_FEATURE_NAMES:
        take_feature_names(header, data, len);
        return 0;
    case QCOW2_EXT_BITMAPS:
        return take_bitmaps(reader, data, len);
    case QCOW2_EXT_CRYPTO:
        return take_crypto(reader, data, len);
    default:
        return 0; /* unknown: stays in the file, as the header is never rewritten whole */
    }
}

static int take_extensions(struct reader *reader)
{
    uint64_t at = reader->header->header_len_bytes;
    uint64_t end =
        reader->backing_offset ? reader->backing_offset : reader->header->geo.cluster_bytes;

    while (at < end && end - at >= sizeof(struct qcow2_disk_extension)) {
        uint32_t type = get_be32(reader->first + at);
        uint32_t len = get_be32(reader->first + at + 4);
        if (type == QCOW2_EXT_END) {
            return 0;
        }
        at += sizeof(struct qcow2_disk_extension);
        if (len > end - at) {
            return err_set(reader->err, EINVAL,
                           "%s: length of header extension 0x%08" PRIx32 " is %" PRIu32
                           ": allowed is at most %" PRIu64,
                           reader->path, type, len, end - at);
        }
        int rc = take_extension(reader, type, reader->first + at, len);
        if (rc < 0) {
            return rc;
        }
        at = round_up_to(at + len, 8);
    }
    return 0;
}

static int co_take_first_cluster(struct reader *reader)
{
    struct header *header = reader->header;
    uint64_t unknown = header->incompatible & ~(uint64_t)QCOW2_INCOMPAT_KNOWN;

    reader->first = malloc(header->geo.cluster_bytes);
    if (!reader->first) {
        return -ENOMEM;
    }
    int rc = co_disk_read(reader->disk, 0, reader->first, header->geo.cluster_bytes);
    if (rc < 0) {
        return err_set(reader->err, -rc, "%s: cannot read the header: %s", reader->path,
                       strerror(-rc));
    }
    if (unknown) {
        snprintf(header->unknown_feature, sizeof(header->unknown_feature), "bit %d",
                 __builtin_ctzll(unknown));
    }
    rc = take_backing_name(reader);
    if (rc < 0) {
        return rc;
    }
    return take_extensions(reader);
}

/*
 * Tables.
 */

/* Aligned, behind the header, and inside the file up to the end of its last, maybe partial,
 * cluster. */
static int check_table_place(struct reader *reader, const char *field, host_off offset,
                             uint64_t len_bytes)
{
    if (!host_is_aligned(&reader->header->geo, offset) || offset.bytes == 0) {
        return refuse_offset(reader, field, offset.bytes,
                             "a multiple of the cluster size, behind the header");
    }
    if (!range_inside(offset.bytes, len_bytes, reader->file_end_bytes) ||
        (len_bytes > 0 && offset.bytes >= reader->disk->size_bytes)) {
        char allowed[96];
        snprintf(allowed, sizeof(allowed), "%" PRIu64 " bytes inside the file's %" PRIu64,
                 len_bytes, reader->disk->size_bytes);
        return refuse_offset(reader, field, offset.bytes, allowed);
    }
    return 0;
}

struct table_place {
    const char *name;
    uint64_t offset;
    uint64_t len_bytes;
};

static int check_overlaps(struct reader *reader)
{
    const struct header *header = reader->header;
    const struct table_place places[] = {
        {"header", 0, header->geo.cluster_bytes},
        {"L1 table", header->l1_offset.bytes, (uint64_t)header->l1_entries * sizeof(be64_t)},
        {"refcount table", header->reftable_offset.bytes,
         header->reftable_clusters * header->geo.cluster_bytes},
        {"snapshot table", header->snapshots_offset.bytes, header->snapshots_len_bytes},
        {"bitmap directory", header->bitmap_directory_offset.bytes,
         header->bitmap_directory_len_bytes},
        {"encryption header", header->crypto_header_offset.bytes, header->crypto_header_len_bytes},
    };

    for (size_t i = 0; i < ARRAY_LEN(places); i++) {
        for (size_t j = i + 1; j < ARRAY_LEN(places); j++) {
            const struct table_place *a = &places[i];
            const struct table_place *b = &places[j];
            if (a->len_bytes && b->len_bytes && a->offset < b->offset + b->len_bytes &&
                b->offset < a->offset + a->len_bytes) {
                return err_set(reader->err, EINVAL,
                               "%s: offset of the %s is 0x%" PRIx64
                               ": allowed is outside of the %s at 0x%" PRIx64,
                               reader->path, b->name, b->offset, a->name, a->offset);
            }
        }
    }
    return 0;
}

static int check_tables(struct reader *reader)
{
    struct header *header = reader->header;

    if (header->l1_entries > 0) {
        int rc = check_table_place(reader, "l1_table_offset", header->l1_offset,
                                   (uint64_t)header->l1_entries * sizeof(be64_t));
        if (rc < 0) {
            return rc;
        }
    }
    uint64_t clusters_max = LIMIT_REFCOUNT_TABLE_BYTES / header->geo.cluster_bytes;
    if (header->reftable_clusters == 0 || header->reftable_clusters > clusters_max) {
        char allowed[64];
        snprintf(allowed, sizeof(allowed), "1 to %" PRIu64, clusters_max);
        return refuse_number(reader, EINVAL, "refcount_table_clusters", header->reftable_clusters,
                             allowed);
    }
    return check_table_place(reader, "refcount_table_offset", header->reftable_offset,
                             header->reftable_clusters * header->geo.cluster_bytes);
}

/*
 * Snapshots. The table's length is known only from walking it, so it is read through a window.
 */

struct snapshot_window {
    uint8_t *bytes;
    uint64_t start; /* file offset of bytes[0] */
    uint64_t end;   /* start: nothing read yet */
};

/* Makes the largest possible entry at `offset` visible; zeroes stand for what is past the file. */
static int co_window_at(struct reader *reader, struct snapshot_window *window, uint64_t offset)
{
    if (offset >= window->start && window->end - offset >= SNAPSHOT_ENTRY_BYTES_MAX &&
        window->end > offset) {
        return 0;
    }
    int rc = co_disk_read(reader->disk, offset, window->bytes, SNAPSHOT_WINDOW_BYTES);
    if (rc < 0) {
        return err_set(reader->err, -rc, "%s: cannot read the snapshot table: %s", reader->path,
                       strerror(-rc));
    }
    window->start = offset;
    window->end = offset + SNAPSHOT_WINDOW_BYTES;
    return 0;
}

static int take_snapshot_fields(struct reader *reader, struct snapshot *snapshot,
                                const struct qcow2_disk_snapshot *raw, const uint8_t *extra,
                                uint32_t extra_len)
{
    snapshot->l1_offset.bytes = get_be64(raw->l1_table_offset.bytes);
    snapshot->l1_entries = get_be32(raw->l1_size.bytes);
    snapshot->date_sec = get_be32(raw->date_sec.bytes);
    snapshot->vm_state_bytes = extra_len >= SNAPSHOT_EXTRA_VM_STATE_BYTES
                                   ? get_be64(extra)
                                   : get_be32(raw->vm_state_size.bytes);
    snapshot->disk_size_bytes = extra_len >= SNAPSHOT_EXTRA_DISK_SIZE_BYTES
                                    ? get_be64(extra + 8)
                                    : reader->header->geo.size_bytes;
    snapshot->disk_size_given = extra_len >= SNAPSHOT_EXTRA_DISK_SIZE_BYTES;
    if (snapshot->l1_entries > LIMIT_L1_BYTES / sizeof(be64_t)) {
        return refuse_number(reader, EINVAL, "l1_size of a snapshot", snapshot->l1_entries,
                             "at most 4194304");
    }
    if (snapshot->l1_entries == 0) {
        return 0;
    }
    return check_table_place(reader, "l1_table_offset of a snapshot", snapshot->l1_offset,
                             (uint64_t)snapshot->l1_entries * sizeof(be64_t));
}

/* Takes the entry that lies at `entry`; *len is its length with padding. */
static int take_snapshot(struct reader *reader, struct snapshot *snapshot, const uint8_t *entry,
                         uint64_t *len)
{
    struct qcow2_disk_snapshot raw;
    memcpy(&raw, entry, sizeof(raw));
    uint32_t id_len = get_be16(raw.id_size.bytes);
    uint32_t name_len = get_be16(raw.name_size.bytes);
    uint32_t extra_len = get_be32(raw.extra_data_size.bytes);
    if (extra_len > SNAPSHOT_EXTRA_BYTES_MAX) {
        return refuse_number(reader, EINVAL, "extra_data_size of a snapshot", extra_len,
                             "at most 1024");
    }
    const uint8_t *extra = entry + sizeof(raw);
    const uint8_t *id = extra + extra_len;
    *len = round_up_to(sizeof(raw) + extra_len + id_len + name_len, 8);

    int rc = take_snapshot_fields(reader, snapshot, &raw, extra, extra_len);
    if (rc < 0) {
        return rc;
    }
    snapshot->id = copy_text(id, id_len);
    snapshot->name = copy_text(id + id_len, name_len);
    return snapshot->id && snapshot->name ? 0 : -ENOMEM;
}

static int co_walk_snapshots(struct reader *reader, struct snapshot_window *window, uint32_t count)
{
    struct header *header = reader->header;
    uint64_t start = header->snapshots_offset.bytes;
    uint64_t at = start;

    for (uint32_t i = 0; i < count; i++) {
        uint64_t len = 0;
        int rc = co_window_at(reader, window, at);
        if (rc < 0) {
            return rc;
        }
        /* Counted first, so that header_free() sees a half-taken one. */
        header->snapshot_count = i + 1;
        rc = take_snapshot(reader, &header->snapshots[i], window->bytes + (at - window->start),
                           &len);
        if (rc < 0) {
            return rc;
        }
        at += len;
        if (at > reader->file_end_bytes || at - start > LIMIT_SNAPSHOT_TABLE_BYTES) {
            return refuse_number(reader, EINVAL, "length of the snapshot table", at - start,
                                 "at most 64 MiB, inside the file");
        }
    }
    header->snapshots_len_bytes = at - start;
    return 0;
}

static int co_take_snapshots(struct reader *reader)
{
    struct header *header = reader->header;
    uint32_t count = reader->snapshot_count;

    if (count == 0) {
        return 0;
    }
    if (count > LIMIT_SNAPSHOTS) {
        return refuse_number(reader, EINVAL, "nb_snapshots", count, "at most 65536");
    }
    int rc = check_table_place(reader, "snapshots_offset", header->snapshots_offset,
                               (uint64_t)count * sizeof(struct qcow2_disk_snapshot));
    if (rc < 0) {
        return rc;
    }
    struct snapshot_window window = {.bytes = malloc(SNAPSHOT_WINDOW_BYTES)};
    header->snapshots = calloc(count, sizeof(*header->snapshots));
    if (!window.bytes || !header->snapshots) {
        free(window.bytes);
        return -ENOMEM;
    }
    rc = co_walk_snapshots(reader, &window, count);
    free(window.bytes);
    return rc;
}

/*
 * The contract's functions.
 */

static int co_read_all(struct reader *reader)
{
    struct qcow2_disk_header raw;

    int rc = co_disk_read(reader->disk, 0, &raw, sizeof(raw));
    if (rc < 0) {
        return err_set(reader->err, -rc, "%s: cannot read the header: %s", reader->path,
                       strerror(-rc));
    }
    rc = check_magic(reader, raw.magic.bytes);
    if (rc < 0) {
        return rc;
    }
    rc = take_fixed_fields(reader, &raw);
    if (rc < 0) {
        return rc;
    }
    uint64_t cluster_bytes = reader->header->geo.cluster_bytes;
    uint64_t size_bytes = MIN_OF(reader->disk->size_bytes, (uint64_t)INT64_MAX);
    reader->file_end_bytes = round_up_to(size_bytes, cluster_bytes);
    rc = co_take_first_cluster(reader);
    if (rc < 0) {
        return rc;
    }
    rc = check_tables(reader);
    if (rc < 0) {
        return rc;
    }
    rc = co_take_snapshots(reader);
    if (rc < 0) {
        return rc;
    }
    return check_overlaps(reader);
}

int co_header_read(struct disk *disk, struct header *header, struct errtext *err)
{
    struct reader reader = {.disk = disk, .header = header, .err = err};

    memset(header, 0, sizeof(*header));
    err_sanitise(reader.path, sizeof(reader.path), disk->path, strlen(disk->path));
    int rc = co_read_all(&reader);
    free(reader.first);
    if (rc == -ENOMEM) {
        err_set(err, ENOMEM, "%s: out of memory while reading the header", reader.path);
    }
    if (rc < 0) {
        header_free(header);
    }
    return rc;
}

void header_free(struct header *header)
{
    for (uint32_t i = 0; i < header->snapshot_count; i++) {
        free(header->snapshots[i].id);
        free(header->snapshots[i].name);
    }
    free(header->snapshots);
    free(header->backing_name);
    free(header->backing_format);
    free(header->data_file_name);
    memset(header, 0, sizeof(*header));
}

static bool can_inflate(uint8_t compression)
{
#ifdef HAVE_ZSTD
    return compression <= QCOW2_COMPRESSION_ZSTD;
#else
    return compression == QCOW2_COMPRESSION_ZLIB;
#endif
}

/* Section "Header", incompatible feature bit 2 and autoclear feature bit 1. */
static int admit_data_file(const struct header *header, const char *path, struct errtext *err)
{
    bool raw = header->autoclear & QCOW2_AUTOCLEAR_RAW_DATA_FILE;

    if (!header->geo.data_file) {
        return raw ? err_set(err, EINVAL,
                             "%s: autoclear feature bit 1 (raw external data) is set: allowed is 0 "
                             "without an external data file",
                             path)
                   : 0;
    }
    if (!header->data_file_name) {
        return err_set(err, EINVAL,
                       "%s: the image has an external data file, but header extension 0x%08x, "
                       "which names it, is missing",
                       path, QCOW2_EXT_DATA_FILE);
    }
    if (header->snapshot_count > 0) {
        return err_set(err, EINVAL,
                       "%s: nb_snapshots is %" PRIu32 ": allowed is 0 with an external data file",
                       path, header->snapshot_count);
    }
    if (raw && header->backing_name) {
        return err_set(err, EINVAL,
                       "%s: autoclear feature bit 1 (raw external data) is set: allowed is 0 with "
                       "a backing file",
                       path);
    }
    return 0;
}

/* Section "Header", crypt_method; header extension "Full disk encryption header pointer". */
static int admit_encryption(const struct header *header, enum header_purpose purpose,
                            const char *path, struct errtext *err)
{
    if (header->crypt_method == QCOW2_CRYPT_LUKS && header->crypto_header_len_bytes == 0) {
        return err_set(
            err, EINVAL,
            "%s: crypt_method is 2 (LUKS), but header extension 0x%08x, which says where "
            "the keys are, is missing",
            path, QCOW2_EXT_CRYPTO);
    }
    if (header->crypt_method == QCOW2_CRYPT_AES && purpose == HEADER_FOR_WRITING) {
        return err_set(
            err, ENOTSUP,
            "%s: crypt_method is 1 (AES), which is not safe: allowed is reading it, with "
            "--read-only, for instance to convert it",
            path);
    }
    return 0;
}

static int admit_changes(const struct header *header, const char *path, struct errtext *err)
{
    if (header->incompatible & QCOW2_INCOMPAT_CORRUPT) {
        return err_set(err, EIO,
                       "%s: the image is marked corrupt: run `qcowd check --repair all` first",
                       path);
    }
    return 0;
}

int header_admit(const struct header *header, enum header_purpose purpose, const char *path,
                 struct errtext *err)
{
    if (purpose == HEADER_FOR_INFO) {
        return 0;
    }
    if (header->incompatible & ~(uint64_t)QCOW2_INCOMPAT_KNOWN) {
        return err_set(err, ENOTSUP,
                       "%s: incompatible feature '%s' is set, and not known to this version", path,
                       header->unknown_feature);
    }
    if (purpose == HEADER_FOR_CHECK) {
        return 0;
    }
    if (purpose == HEADER_FOR_BITMAPS) {
        return admit_changes(header, path, err);
    }
    int ret = admit_encryption(header, purpose, path, err);
    if (ret == 0) {
        ret = admit_data_file(header, path, err);
    }
    if (ret < 0) {
        return ret;
    }
    if (!can_inflate(header->compression)) {
        return err_set(err, ENOTSUP,
                       "%s: compression_type is %u: allowed is 0 (zlib), as zstd is not built in",
                       path, header->compression);
    }
    if (purpose == HEADER_FOR_READING) {
        return 0;
    }
    return admit_changes(header, path, err);
}

/*
 * Changes `len` bytes at `offset` of the header in one write of one sector, which disks do not
 * tear.
 */
static int co_update_first_sector(struct disk *disk, size_t offset, const uint8_t *bytes,
                                  size_t len)
{
    uint8_t sector[UPDATE_UNIT_BYTES];

    assert(range_inside(offset, len, sizeof(sector)));
    int rc = co_disk_read(disk, 0, sector, sizeof(sector));
    if (rc < 0) {
        return rc;
    }
    memcpy(sector + offset, bytes, len);
    return co_disk_write(disk, 0, sector, sizeof(sector));
}

int co_header_set_features(struct disk *disk, struct header *header, uint64_t incompatible,
                           uint64_t autoclear)
{
    /* Version 2 has no such fields; extensions lie where they would be. */
    if (header->version < 3) {
        return incompatible || autoclear ? -ENOTSUP : 0;
    }
    uint8_t fields[3 * sizeof(be64_t)];
    put_be64(fields, incompatible);
    put_be64(fields + 8, header->compatible);
    put_be64(fields + 16, autoclear);
    int rc = co_update_first_sector(disk, offsetof(struct qcow2_disk_header, incompatible_features),
                                    fields, sizeof(fields));
    if (rc < 0) {
        return rc;
    }
    header->incompatible = incompatible;
    header->autoclear = autoclear;
    return 0;
}

int co_header_set_reftable(struct disk *disk, struct header *header, host_off offset,
                           uint32_t clusters)
{
    uint8_t fields[sizeof(be64_t) + sizeof(be32_t)];

    assert(host_is_aligned(&header->geo, offset) && offset.bytes > 0 && clusters > 0);
    put_be64(fields, offset.bytes);
    put_be32(fields + 8, clusters);
    int rc = co_update_first_sector(disk, offsetof(struct qcow2_disk_header, refcount_table_offset),
                                    fields, sizeof(fields));
    if (rc < 0) {
        return rc;
    }
    header->reftable_offset = offset;
    header->reftable_clusters = clusters;
    return 0;
}

int co_header_set_l1(struct disk *disk, struct header *header, host_off offset, uint32_t entries)
{
    uint8_t fields[sizeof(be32_t) + sizeof(be64_t)];

    assert(host_is_aligned(&header->geo, offset) && offset.bytes > 0 && entries > 0);
    put_be32(fields, entries);
    put_be64(fields + 4, offset.bytes);
    int rc = co_update_first_sector(disk, offsetof(struct qcow2_disk_header, l1_size), fields,
                                    sizeof(fields));
    if (rc < 0) {
        return rc;
    }
    header->l1_offset = offset;
    header->l1_entries = entries;
    return 0;
}

int co_header_set_size(struct disk *disk, struct header *header, uint64_t size_bytes)
{
    uint8_t field[sizeof(be64_t)];

    put_be64(field, size_bytes);
    int rc = co_update_first_sector(disk, offsetof(struct qcow2_disk_header, size), field,
                                    sizeof(field));
    if (rc < 0) {
        return rc;
    }
    header->geo.size_bytes = size_bytes;
    return 0;
}
