/* SPDX-License-Identifier: BSD-2-Clause */
#include "qcow2/bitmap_directory.h"

#include <assert.h>
#include <errno.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/bytes.h"
#include "base/check.h"
#include "base/limits.h"
#include "base/utf8.h"

#define FLAGS_KNOWN (QCOW2_BITMAP_IN_USE | QCOW2_BITMAP_AUTO | QCOW2_BITMAP_EXTRA_COMPATIBLE)

uint64_t bitmap_bytes_needed(uint64_t disk_bytes, uint32_t granularity_bits)
{
    uint64_t granules =
        (disk_bytes >> granularity_bits) + ((disk_bytes & ((1ULL << granularity_bits) - 1)) != 0);
    return div_round_up(granules, 8);
}

uint64_t bitmap_table_entries_needed(const struct geometry *geo, uint64_t disk_bytes,
                                     uint32_t granularity_bits)
{
    return div_round_up(bitmap_bytes_needed(disk_bytes, granularity_bits), geo->cluster_bytes);
}

int bitmap_name_check(const char *name, struct errtext *err)
{
    size_t len = strlen(name);
    char shown[80];
    if (len == 0 || len > BITMAP_NAME_BYTES_MAX) {
        return err_set(err, EINVAL, "the name of a bitmap has %zu bytes: allowed are 1 to %u", len,
                       BITMAP_NAME_BYTES_MAX);
    }
    if (!utf8_is_text(name, len)) {
        return err_set(err, EINVAL, "the name of a bitmap, '%s', is not UTF-8",
                       err_sanitise(shown, sizeof(shown), name, len));
    }
    return 0;
}

static uint64_t entry_bytes(uint64_t extra_len, uint64_t name_len)
{
    return round_up_to(sizeof(struct qcow2_disk_bitmap) + extra_len + name_len, 8);
}

/* ---- Judging ---- */

static int refuse(const char *path, uint32_t number, const char *field, uint64_t value,
                  const char *allowed, struct errtext *err)
{
    return err_set(err, EINVAL,
                   "%s: entry %" PRIu32 " of the bitmap directory: %s is %" PRIu64
                   ": allowed is %s",
                   path, number, field, value, allowed);
}

/* What keeps a bitmap from being used here, by a newer version's wish. */
static const char *what_is_unknown(const struct qcow2_disk_bitmap *raw)
{
    uint32_t flags = get_be32(raw->flags.bytes);
    if (raw->type != QCOW2_BITMAP_TYPE_DIRTY) {
        return "of an unknown type";
    }
    if (flags & ~(uint32_t)FLAGS_KNOWN) {
        return "with unknown flags";
    }
    if (get_be32(raw->extra_data_size.bytes) > 0 && !(flags & QCOW2_BITMAP_EXTRA_COMPATIBLE)) {
        return "with unknown extra data";
    }
    return NULL;
}

static int judge_table(const struct qcow2_disk_bitmap *raw, uint32_t number,
                       const struct geometry *geo, uint64_t file_bytes, const char *path,
                       struct errtext *err)
{
    host_off table = {get_be64(raw->bitmap_table_offset.bytes)};
    uint64_t entries = get_be32(raw->bitmap_table_size.bytes);
    if (entries > LIMIT_BITMAP_TABLE_BYTES / sizeof(be64_t)) {
        char allowed[48];
        snprintf(allowed, sizeof(allowed), "at most %llu",
                 LIMIT_BITMAP_TABLE_BYTES / sizeof(be64_t));
        return refuse(path, number, "bitmap_table_size", entries, allowed, err);
    }
    if (table.bytes == 0 || !host_is_aligned(geo, table) ||
        !range_inside(table.bytes, MAX_OF(entries, 1U) * sizeof(be64_t),
                      round_up_to(file_bytes, geo->cluster_bytes))) {
        return err_set(err, EINVAL,
                       "%s: entry %" PRIu32
                       " of the bitmap directory: bitmap_table_offset is 0x%" PRIx64
                       ": allowed is a multiple of the cluster size, with %" PRIu64
                       " bytes inside the file's %" PRIu64,
                       path, number, table.bytes, entries * sizeof(be64_t), file_bytes);
    }
    return 0;
}

int bitmap_entry_judge(const struct qcow2_disk_bitmap *raw, uint32_t number,
                       const struct geometry *geo, uint64_t file_bytes, const char *path,
                       struct errtext *err)
{
    uint32_t name_len = get_be16(raw->name_size.bytes);
    if (name_len == 0 || name_len > BITMAP_NAME_BYTES_MAX) {
        return refuse(path, number, "name_size", name_len, "1 to 1023", err);
    }
    int ret = judge_table(raw, number, geo, file_bytes, path, err);
    if (ret < 0 || what_is_unknown(raw)) {
        return ret;
    }
    if (raw->granularity_bits < BITMAP_GRANULARITY_BITS_MIN ||
        raw->granularity_bits > BITMAP_GRANULARITY_BITS_MAX) {
        return refuse(path, number, "granularity_bits", raw->granularity_bits, "9 to 31", err);
    }
    /* In use, it may have been made for another size. */
    uint64_t entries = get_be32(raw->bitmap_table_size.bytes);
    uint64_t needed = bitmap_table_entries_needed(geo, geo->size_bytes, raw->granularity_bits);
    if (entries < needed && !(get_be32(raw->flags.bytes) & QCOW2_BITMAP_IN_USE)) {
        char allowed[64];
        snprintf(allowed, sizeof(allowed), "at least %" PRIu64 ", for the disk's size", needed);
        return refuse(path, number, "bitmap_table_size", entries, allowed, err);
    }
    return 0;
}

/* ---- Reading ---- */

/* What the steps of one co_bitmap_directory_read() share. */
struct reader {
    struct disk *disk;
    const struct header *header;
    struct errtext *err;
    char path[256]; /* sanitised */
    uint8_t *bytes; /* the directory */
    uint64_t len;
    bool good_only;
    uint32_t left_out;
};

static int take_texts(struct stored_bitmap *bitmap, const uint8_t *extra, uint32_t extra_len,
                      const uint8_t *name, uint32_t name_len)
{
    bitmap->name = malloc((size_t)name_len + 1);
    bitmap->extra = extra_len > 0 ? malloc(extra_len) : NULL;
    bitmap->extra_len = extra_len;
    if (!bitmap->name || (extra_len > 0 && !bitmap->extra)) {
        return -ENOMEM;
    }
    memcpy(bitmap->name, name, name_len);
    bitmap->name[name_len] = '\0';
    if (extra_len > 0) {
        memcpy(bitmap->extra, extra, extra_len);
    }
    return 0;
}

/* The entry at *at, which moves behind it unless that is beyond the directory. */
static int take_entry(struct reader *reader, uint32_t number, uint64_t *at,
                      struct stored_bitmap *bitmap)
{
    struct qcow2_disk_bitmap raw;
    if (!range_inside(*at, sizeof(raw), reader->len)) {
        return err_set(reader->err, EINVAL,
                       "%s: bitmap_directory_size is %" PRIu64 ": entry %" PRIu32
                       " begins at %" PRIu64 " and needs at least %zu bytes",
                       reader->path, reader->len, number, *at, sizeof(raw));
    }
    memcpy(&raw, reader->bytes + *at, sizeof(raw));
    uint32_t name_len = get_be16(raw.name_size.bytes);
    uint32_t extra_len = get_be32(raw.extra_data_size.bytes);
    uint64_t len = entry_bytes(extra_len, name_len);
    if (!range_inside(*at, len, reader->len)) {
        return err_set(reader->err, EINVAL,
                       "%s: entry %" PRIu32 " of the bitmap directory has %" PRIu64
                       " bytes: allowed are at most %" PRIu64 ", the directory's rest",
                       reader->path, number, len, reader->len - *at);
    }
    uint64_t start = *at;
    *at += len;
    int ret = bitmap_entry_judge(&raw, number, &reader->header->geo, reader->disk->size_bytes,
                                 reader->path, reader->err);
    if (ret < 0) {
        return ret;
    }
    const uint8_t *extra = reader->bytes + start + sizeof(raw);
    if (memchr(extra + extra_len, 0, name_len)) {
        return err_set(reader->err, EINVAL,
                       "%s: entry %" PRIu32
                       " of the bitmap directory: the name contains a NUL byte",
                       reader->path, number);
    }
    bitmap->flags = get_be32(raw.flags.bytes);
    bitmap->type = raw.type;
    bitmap->granularity_bits = raw.granularity_bits;
    bitmap->table_entries = get_be32(raw.bitmap_table_size.bytes);
    bitmap->table_offset.bytes = get_be64(raw.bitmap_table_offset.bytes);
    bitmap->entry_offset = reader->header->bitmap_directory_offset.bytes + start;
    bitmap->unknown = what_is_unknown(&raw);
    return take_texts(bitmap, extra, extra_len, extra + extra_len, name_len);
}

static int compare_names(const void *left, const void *right)
{
    const struct stored_bitmap *const *a = left;
    const struct stored_bitmap *const *b = right;
    return strcmp((*a)->name, (*b)->name);
}

static int check_names(struct reader *reader, const struct bitmap_directory *directory)
{
    const struct stored_bitmap **sorted = calloc(directory->count, sizeof(*sorted));
    int ret = sorted ? 0 : -ENOMEM;
    for (uint32_t i = 0; ret == 0 && i < directory->count; i++) {
        sorted[i] = &directory->bitmaps[i];
    }
    if (ret == 0) {
        qsort(sorted, directory->count, sizeof(const struct stored_bitmap *), compare_names);
    }
    for (uint32_t i = 1; ret == 0 && i < directory->count; i++) {
        if (strcmp(sorted[i - 1]->name, sorted[i]->name) == 0) {
            char shown[100];
            ret = err_set(
                reader->err, EINVAL, "%s: the bitmap directory names '%s' twice: allowed is once",
                reader->path,
                err_sanitise(shown, sizeof(shown), sorted[i]->name, strlen(sorted[i]->name)));
        }
    }
    free(sorted);
    return ret;
}

/* Adds the entry at *at to the directory. */
static int take_next(struct reader *reader, uint32_t number, uint64_t *at,
                     struct bitmap_directory *directory)
{
    struct stored_bitmap *bitmap = &directory->bitmaps[directory->count];
    int ret = take_entry(reader, number, at, bitmap);
    if (ret == 0 && reader->good_only && bitmap_directory_find(directory, bitmap->name)) {
        ret = -EINVAL;
    }
    if (ret < 0) {
        stored_bitmap_free(bitmap);
    } else {
        directory->count++;
    }
    return ret;
}

static int co_read_all(struct reader *reader, struct bitmap_directory *directory)
{
    const struct header *header = reader->header;
    uint64_t at = 0;

    reader->len = header->bitmap_directory_len_bytes;
    if (reader->len > LIMIT_BITMAP_DIRECTORY_BYTES) {
        return err_set(reader->err, EINVAL,
                       "%s: bitmap_directory_size is %" PRIu64 ": allowed is at most %llu",
                       reader->path, reader->len, LIMIT_BITMAP_DIRECTORY_BYTES);
    }
    reader->bytes = malloc(reader->len);
    directory->bitmaps = calloc(header->bitmap_count, sizeof(*directory->bitmaps));
    if (!reader->bytes || !directory->bitmaps) {
        return -ENOMEM;
    }
    int ret = co_disk_read(reader->disk, header->bitmap_directory_offset.bytes, reader->bytes,
                           reader->len);
    if (ret < 0) {
        return err_set(reader->err, -ret, "%s: cannot read the bitmap directory: %s", reader->path,
                       strerror(-ret));
    }
    for (uint32_t i = 0; ret == 0 && i < header->bitmap_count; i++) {
        uint64_t before = at;
        ret = take_next(reader, i, &at, directory);
        if (ret == -EINVAL && reader->good_only) {
            ret = 0;
            reader->left_out++;
            if (at == before) { /* nobody knows where the next one begins */
                reader->left_out += header->bitmap_count - i - 1;
                break;
            }
        }
    }
    return ret < 0 || reader->good_only ? ret : check_names(reader, directory);
}

static int co_read(struct reader *reader, struct bitmap_directory *directory)
{
    struct disk *disk = reader->disk;

    *directory = (struct bitmap_directory){0};
    if (reader->header->bitmap_count == 0) {
        return 0;
    }
    err_sanitise(reader->path, sizeof(reader->path), disk->path, strlen(disk->path));
    int ret = co_read_all(reader, directory);
    free(reader->bytes);
    if (ret == -ENOMEM) {
        err_set(reader->err, ENOMEM, "%s: out of memory for the bitmap directory", reader->path);
    }
    if (ret < 0) {
        bitmap_directory_free(directory);
    }
    return ret;
}

int co_bitmap_directory_read(struct disk *disk, const struct header *header,
                             struct bitmap_directory *directory, struct errtext *err)
{
    struct reader reader = {.disk = disk, .header = header, .err = err};

    return co_read(&reader, directory);
}

int co_bitmap_directory_read_good(struct disk *disk, const struct header *header,
                                  struct bitmap_directory *directory, uint32_t *left_out,
                                  struct errtext *err)
{
    struct reader reader = {.disk = disk, .header = header, .err = err, .good_only = true};

    int ret = co_read(&reader, directory);
    *left_out = reader.left_out;
    return ret;
}

void stored_bitmap_free(struct stored_bitmap *bitmap)
{
    free(bitmap->name);
    free(bitmap->extra);
    *bitmap = (struct stored_bitmap){0};
}

void bitmap_directory_free(struct bitmap_directory *directory)
{
    for (uint32_t i = 0; i < directory->count; i++) {
        stored_bitmap_free(&directory->bitmaps[i]);
    }
    free(directory->bitmaps);
    *directory = (struct bitmap_directory){0};
}

int stored_bitmap_copy(struct stored_bitmap *to, const struct stored_bitmap *from)
{
    *to = *from;
    to->name = NULL;
    to->extra = NULL;
    int ret = take_texts(to, from->extra, from->extra_len, (const uint8_t *)from->name,
                         (uint32_t)strlen(from->name));
    if (ret < 0) {
        stored_bitmap_free(to);
    }
    return ret;
}

struct stored_bitmap *bitmap_directory_find(const struct bitmap_directory *directory,
                                            const char *name)
{
    for (uint32_t i = 0; i < directory->count; i++) {
        if (strcmp(directory->bitmaps[i].name, name) == 0) {
            return &directory->bitmaps[i];
        }
    }
    return NULL;
}

/* ---- Writing ---- */

uint64_t bitmap_directory_bytes(const struct bitmap_directory *directory)
{
    uint64_t bytes = 0;
    for (uint32_t i = 0; i < directory->count; i++) {
        const struct stored_bitmap *bitmap = &directory->bitmaps[i];
        bytes += entry_bytes(bitmap->extra_len, strlen(bitmap->name));
    }
    return bytes;
}

void bitmap_directory_put(struct bitmap_directory *directory, uint64_t offset, uint8_t *bytes)
{
    uint64_t at = 0;
    memset(bytes, 0, bitmap_directory_bytes(directory));
    for (uint32_t i = 0; i < directory->count; i++) {
        struct stored_bitmap *bitmap = &directory->bitmaps[i];
        struct qcow2_disk_bitmap raw = {
            .type = bitmap->type,
            .granularity_bits = bitmap->granularity_bits,
        };
        size_t name_len = strlen(bitmap->name);
        put_be64(raw.bitmap_table_offset.bytes, bitmap->table_offset.bytes);
        put_be32(raw.bitmap_table_size.bytes, bitmap->table_entries);
        put_be32(raw.flags.bytes, bitmap->flags);
        put_be16(raw.name_size.bytes, (uint16_t)name_len);
        put_be32(raw.extra_data_size.bytes, bitmap->extra_len);
        memcpy(bytes + at, &raw, sizeof(raw));
        if (bitmap->extra_len > 0) {
            memcpy(bytes + at + sizeof(raw), bitmap->extra, bitmap->extra_len);
        }
        memcpy(bytes + at + sizeof(raw) + bitmap->extra_len, bitmap->name, name_len);
        bitmap->entry_offset = offset + at;
        at += entry_bytes(bitmap->extra_len, name_len);
    }
}
