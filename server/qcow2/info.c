/* SPDX-License-Identifier: BSD-2-Clause */
/*
 * The facts are gathered first (the bitmap directory is the only thing that is read for it), then
 * told in one of two forms. Two writers side by side rather than one clever one: text is for
 * reading and may change, JSON is for programs and may not.
 */
#include "qcow2/info.h"

#include <errno.h>
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "base/bytes.h"
#include "base/check.h"
#include "qcow2/bitmaps.h"

/* What QEMU writes at most; longer names are shown cut. */
#define BITMAP_NAME_BYTES_MAX 1023U

struct listed_bitmap {
    uint32_t flags;
    uint8_t granularity_bits;
    uint16_t name_len;
    char name[BITMAP_NAME_BYTES_MAX];
};

/*
 * Decodes one UTF-8 character of [text, end): its length and *code, or 0 where the bytes are none
 * (overlong forms, surrogates and what lies past U+10FFFF included).
 */
static size_t utf8_decode(const unsigned char *text, const unsigned char *end, uint32_t *code)
{
    static const uint32_t least[] = {0, 0, 0x80, 0x800, 0x10000};
    size_t len = text[0] < 0x80             ? 1
                 : (text[0] & 0xe0) == 0xc0 ? 2
                 : (text[0] & 0xf0) == 0xe0 ? 3
                 : (text[0] & 0xf8) == 0xf0 ? 4
                                            : 0;
    if (len == 0 || len > (size_t)(end - text)) {
        return 0;
    }
    uint32_t value = len == 1 ? text[0] : text[0] & (0xffU >> (len + 1));
    for (size_t i = 1; i < len; i++) {
        if ((text[i] & 0xc0) != 0x80) {
            return 0;
        }
        value = value << 6 | (text[i] & 0x3fU);
    }
    if (value < least[len] || value > 0x10ffff || (value >= 0xd800 && value <= 0xdfff)) {
        return 0;
    }
    *code = value;
    return len;
}

/* Whether a terminal shows it as itself: no controls, no line separators, nothing that turns the
 * direction of writing. */
static bool is_shown(uint32_t code)
{
    return code >= 0x20 && code != '\\' && !(code >= 0x7f && code <= 0x9f) && code != 0x061c &&
           !(code >= 0x200b && code <= 0x200f) && !(code >= 0x2028 && code <= 0x202e) &&
           !(code >= 0x2060 && code <= 0x2069) && code != 0xfeff;
}

static void put_text(FILE *out, const char *foreign, size_t len)
{
    const unsigned char *at = (const unsigned char *)foreign;
    const unsigned char *end = at + len;
    while (at < end) {
        uint32_t code = 0;
        size_t used = utf8_decode(at, end, &code);
        if (used > 0 && is_shown(code)) {
            fwrite(at, 1, used, out);
            at += used;
            continue;
        }
        for (size_t i = 0; i < MAX_OF(used, 1); i++) {
            fprintf(out, "\\x%02x", at[i]);
        }
        at += MAX_OF(used, 1);
    }
}

static void put_json_string(FILE *out, const char *foreign, size_t len)
{
    const unsigned char *at = (const unsigned char *)foreign;
    const unsigned char *end = at + len;
    fputc('"', out);
    while (at < end) {
        uint32_t code = 0;
        size_t used = utf8_decode(at, end, &code);
        if (used == 0) {
            fputs("\\ufffd", out);
            used = 1;
        } else if (code == '"' || code == '\\') {
            fprintf(out, "\\%c", (int)code);
        } else if (code < 0x20 || code == 0x7f) {
            fprintf(out, "\\u%04" PRIx32, code);
        } else {
            fwrite(at, 1, used, out);
        }
        at += used;
    }
    fputc('"', out);
}

/*
 * Reads the directory entry at *offset inside [directory, end), and moves *offset behind it.
 * -EINVAL: it does not fit.
 */
static int co_read_bitmap(struct disk *disk, uint64_t *offset, uint64_t end,
                          struct listed_bitmap *facts)
{
    struct qcow2_disk_bitmap raw;
    if (!range_inside(*offset, sizeof(raw), end)) {
        return -EINVAL;
    }
    int ret = co_disk_read(disk, *offset, &raw, sizeof(raw));
    if (ret < 0) {
        return ret;
    }
    uint64_t extra_bytes = get_be32(raw.extra_data_size.bytes);
    uint64_t name_offset = *offset + sizeof(raw) + extra_bytes;
    uint64_t name_bytes = get_be16(raw.name_size.bytes);
    if (!range_inside(*offset, sizeof(raw) + extra_bytes + name_bytes, end)) {
        return -EINVAL;
    }
    facts->flags = get_be32(raw.flags.bytes);
    facts->granularity_bits = raw.granularity_bits;
    facts->name_len = (uint16_t)MIN_OF(name_bytes, sizeof(facts->name));
    if (facts->name_len > 0) {
        ret = co_disk_read(disk, name_offset, facts->name, facts->name_len);
    }
    *offset += round_up_to(sizeof(raw) + extra_bytes + name_bytes, 8);
    return ret;
}

/*
 * All bitmaps, as an array of header->bitmap_count that the caller frees; NULL when there are none.
 */
static int co_read_bitmaps(struct disk *disk, const struct header *header,
                           struct listed_bitmap **bitmaps, struct errtext *err)
{
    *bitmaps = NULL;
    if (header->bitmap_count == 0) {
        return 0;
    }
    /* At most 64 MiB, and no more entries than the directory has room for. */
    if (header->bitmap_count >
        header->bitmap_directory_len_bytes / sizeof(struct qcow2_disk_bitmap)) {
        return err_set(err, EINVAL,
                       "%s: bitmap_directory_size is %" PRIu64 "; %u bitmaps need %zu bytes each",
                       disk->path, header->bitmap_directory_len_bytes, header->bitmap_count,
                       sizeof(struct qcow2_disk_bitmap));
    }
    struct listed_bitmap *facts = calloc(header->bitmap_count, sizeof(*facts));
    if (!facts) {
        return err_set(err, ENOMEM, "%s: out of memory", disk->path);
    }
    uint64_t offset = header->bitmap_directory_offset.bytes;
    uint64_t end = offset + header->bitmap_directory_len_bytes;
    for (uint32_t i = 0; i < header->bitmap_count; i++) {
        int ret = co_read_bitmap(disk, &offset, end, &facts[i]);
        if (ret < 0) {
            free(facts);
            return err_set(err, -ret, "%s: cannot read entry %u of the bitmap directory: %s",
                           disk->path, i,
                           ret == -EINVAL ? "it ends past the directory" : strerror(-ret));
        }
    }
    *bitmaps = facts;
    return 0;
}

static const char *compat_name(const struct header *header)
{
    return header->version == 2 ? "0.10" : "1.1";
}

static const char *compression_name(const struct header *header)
{
    return header->compression == QCOW2_COMPRESSION_ZLIB   ? "zlib"
           : header->compression == QCOW2_COMPRESSION_ZSTD ? "zstd"
                                                           : "unknown";
}

static const char *encryption_name(const struct header *header)
{
    return header->crypt_method == QCOW2_CRYPT_AES    ? "aes"
           : header->crypt_method == QCOW2_CRYPT_LUKS ? "luks"
                                                      : "unknown";
}

static uint64_t granularity_bytes(const struct listed_bitmap *bitmap)
{
    return bitmap->granularity_bits < 64 ? 1ULL << bitmap->granularity_bits : 0;
}

/* "1.5 GiB (1610612736 bytes)" */
static void put_size(FILE *out, const char *label, uint64_t bytes)
{
    static const char *const units[] = {"B", "KiB", "MiB", "GiB", "TiB", "PiB", "EiB"};
    unsigned unit = 0;
    while (unit + 1 < ARRAY_LEN(units) && bytes >> (10 * (unit + 1)) > 0) {
        unit++;
    }
    uint64_t whole = bytes >> (10 * unit);
    /* Hundredths, rounded down. */
    uint64_t rest = unit ? ((bytes >> (10 * (unit - 1))) & 1023) * 100 / 1024 : 0;
    fprintf(out, "%s: %" PRIu64, label, whole);
    if (rest > 0) {
        fprintf(out, rest % 10 ? ".%02u" : ".%u", (unsigned)(rest % 10 ? rest : rest / 10));
    }
    fprintf(out, " %s (%" PRIu64 " bytes)\n", units[unit], bytes);
}

static void put_named_text(FILE *out, const char *label, const char *foreign)
{
    fprintf(out, "%s: ", label);
    put_text(out, foreign, strlen(foreign));
    fputc('\n', out);
}

static const char *yes_no(bool value)
{
    return value ? "yes" : "no";
}

static void text_snapshots(const struct header *header, FILE *out)
{
    fputs("snapshots:\n", out);
    for (uint32_t i = 0; i < header->snapshot_count; i++) {
        const struct snapshot *snapshot = &header->snapshots[i];
        time_t seconds = (time_t)snapshot->date_sec;
        struct tm when;
        char date[32] = "?";
        if (gmtime_r(&seconds, &when)) {
            strftime(date, sizeof(date), "%Y-%m-%d %H:%M:%S UTC", &when);
        }
        fputs("    id ", out);
        put_text(out, snapshot->id, strlen(snapshot->id));
        fputs(", name ", out);
        put_text(out, snapshot->name, strlen(snapshot->name));
        fprintf(out, ", %s, disk size %" PRIu64 ", vm state %" PRIu64 "\n", date,
                snapshot->disk_size_bytes, snapshot->vm_state_bytes);
    }
}

static void text_bitmaps(const struct header *header, const struct listed_bitmap *bitmaps,
                         FILE *out)
{
    fputs("bitmaps:\n", out);
    for (uint32_t i = 0; i < header->bitmap_count; i++) {
        fputs("    name ", out);
        put_text(out, bitmaps[i].name, bitmaps[i].name_len);
        fprintf(out, ", granularity %" PRIu64 "%s%s\n", granularity_bytes(&bitmaps[i]),
                bitmaps[i].flags & QCOW2_BITMAP_AUTO ? ", auto" : "",
                bitmaps[i].flags & QCOW2_BITMAP_IN_USE ? ", in use (not saved)" : "");
    }
}

static void text_features(const struct header *header, FILE *out)
{
    fprintf(out, "compat: %s\n", compat_name(header));
    fprintf(out, "compression type: %s\n", compression_name(header));
    fprintf(out, "refcount bits: %u\n", 1U << header->geo.refcount_order);
    if (header->version >= 3) {
        fprintf(out, "lazy refcounts: %s\n",
                yes_no(header->compatible & QCOW2_COMPAT_LAZY_REFCOUNTS));
        fprintf(out, "extended L2: %s\n", yes_no(header->geo.extended_l2));
        fprintf(out, "dirty: %s\n", yes_no(header->incompatible & QCOW2_INCOMPAT_DIRTY));
        fprintf(out, "corrupt: %s\n", yes_no(header->incompatible & QCOW2_INCOMPAT_CORRUPT));
    }
    if (header->crypt_method != QCOW2_CRYPT_NONE) {
        fprintf(out, "encryption: %s\n", encryption_name(header));
    }
    if (header->incompatible & QCOW2_INCOMPAT_DATA_FILE) {
        put_named_text(out, "data file", header->data_file_name ? header->data_file_name : "?");
        fprintf(out, "data file raw: %s\n", yes_no(header->geo.data_file_raw));
    }
    if (header->incompatible & ~(uint64_t)QCOW2_INCOMPAT_KNOWN) {
        put_named_text(out, "unknown incompatible feature", header->unknown_feature);
    }
}

static void put_info_text(const struct disk *disk, const struct header *header,
                          uint64_t allocated_bytes, const struct listed_bitmap *bitmaps, FILE *out)
{
    put_named_text(out, "image", disk->path);
    fputs("file format: qcow2\n", out);
    put_size(out, "virtual size", header->geo.size_bytes);
    if (allocated_bytes != INFO_ALLOCATED_UNKNOWN) {
        put_size(out, "disk size", allocated_bytes);
    }
    put_size(out, "file length", disk->size_bytes);
    fprintf(out, "cluster size: %" PRIu64 "\n", header->geo.cluster_bytes);
    text_features(header, out);
    if (header->backing_name) {
        put_named_text(out, "backing file", header->backing_name);
        put_named_text(out, "backing file format",
                       header->backing_format ? header->backing_format : "not named");
    }
    if (header->snapshot_count > 0) {
        text_snapshots(header, out);
    }
    if (bitmaps) {
        text_bitmaps(header, bitmaps, out);
    }
}

static void json_string(FILE *out, const char *key, const char *value)
{
    fprintf(out, ",\n    \"%s\": ", key);
    put_json_string(out, value, strlen(value));
}

static const char *json_bool(bool value)
{
    return value ? "true" : "false";
}

static void json_snapshots(const struct header *header, FILE *out)
{
    fputs(",\n    \"snapshots\": [", out);
    for (uint32_t i = 0; i < header->snapshot_count; i++) {
        const struct snapshot *snapshot = &header->snapshots[i];
        fprintf(out, "%s\n        {\"id\": ", i ? "," : "");
        put_json_string(out, snapshot->id, strlen(snapshot->id));
        fputs(", \"name\": ", out);
        put_json_string(out, snapshot->name, strlen(snapshot->name));
        fprintf(out,
                ", \"date-sec\": %" PRIu32 ", \"vm-state-size\": %" PRIu64
                ", \"disk-size\": %" PRIu64 "}",
                snapshot->date_sec, snapshot->vm_state_bytes, snapshot->disk_size_bytes);
    }
    fputs("\n    ]", out);
}

static void json_bitmaps(const struct header *header, const struct listed_bitmap *bitmaps,
                         FILE *out)
{
    fputs(",\n            \"bitmaps\": [", out);
    for (uint32_t i = 0; i < header->bitmap_count; i++) {
        bool in_use = bitmaps[i].flags & QCOW2_BITMAP_IN_USE;
        bool automatic = bitmaps[i].flags & QCOW2_BITMAP_AUTO;
        fprintf(out, "%s\n                {\"name\": ", i ? "," : "");
        put_json_string(out, bitmaps[i].name, bitmaps[i].name_len);
        fprintf(out, ", \"granularity\": %" PRIu64 ", \"flags\": [%s%s%s]}",
                granularity_bytes(&bitmaps[i]), in_use ? "\"in-use\"" : "",
                in_use && automatic ? ", " : "", automatic ? "\"auto\"" : "");
    }
    fputs("\n            ]", out);
}

static void json_features(const struct header *header, const struct listed_bitmap *bitmaps,
                          FILE *out)
{
    fprintf(out,
            ",\n    \"format-specific\": {\n        \"type\": \"qcow2\",\n        \"data\": {\n"
            "            \"compat\": \"%s\",\n"
            "            \"compression-type\": \"%s\",\n"
            "            \"refcount-bits\": %u",
            compat_name(header), compression_name(header), 1U << header->geo.refcount_order);
    if (header->version >= 3) {
        fprintf(out,
                ",\n            \"lazy-refcounts\": %s,\n            \"corrupt\": %s,\n"
                "            \"extended-l2\": %s",
                json_bool(header->compatible & QCOW2_COMPAT_LAZY_REFCOUNTS),
                json_bool(header->incompatible & QCOW2_INCOMPAT_CORRUPT),
                json_bool(header->geo.extended_l2));
    }
    if (header->crypt_method != QCOW2_CRYPT_NONE) {
        fprintf(out, ",\n            \"encrypt\": {\"format\": \"%s\"}", encryption_name(header));
    }
    if (header->data_file_name) {
        fputs(",\n            \"data-file\": ", out);
        put_json_string(out, header->data_file_name, strlen(header->data_file_name));
    }
    if (header->incompatible & QCOW2_INCOMPAT_DATA_FILE) {
        fprintf(out, ",\n            \"data-file-raw\": %s", json_bool(header->geo.data_file_raw));
    }
    if (bitmaps) {
        json_bitmaps(header, bitmaps, out);
    }
    fputs("\n        }\n    }", out);
}

static void put_info_json(const struct disk *disk, const struct header *header,
                          uint64_t allocated_bytes, const struct listed_bitmap *bitmaps, FILE *out)
{
    fputs("{\n    \"filename\": ", out);
    put_json_string(out, disk->path, strlen(disk->path));
    json_string(out, "format", "qcow2");
    fprintf(out, ",\n    \"virtual-size\": %" PRIu64, header->geo.size_bytes);
    if (allocated_bytes != INFO_ALLOCATED_UNKNOWN) {
        fprintf(out, ",\n    \"actual-size\": %" PRIu64, allocated_bytes);
    }
    fprintf(out, ",\n    \"file-length\": %" PRIu64 ",\n    \"cluster-size\": %" PRIu64,
            disk->size_bytes, header->geo.cluster_bytes);
    fprintf(out, ",\n    \"dirty-flag\": %s",
            json_bool(header->incompatible & QCOW2_INCOMPAT_DIRTY));
    if (header->crypt_method != QCOW2_CRYPT_NONE) {
        fputs(",\n    \"encrypted\": true", out);
    }
    if (header->backing_name) {
        json_string(out, "backing-filename", header->backing_name);
    }
    if (header->backing_format) {
        json_string(out, "backing-filename-format", header->backing_format);
    }
    if (header->incompatible & ~(uint64_t)QCOW2_INCOMPAT_KNOWN) {
        json_string(out, "unknown-incompatible-feature", header->unknown_feature);
    }
    if (header->snapshot_count > 0) {
        json_snapshots(header, out);
    }
    json_features(header, bitmaps, out);
    fputs("\n}\n", out);
}

int co_qcow2_info(struct disk *disk, const struct header *header, uint64_t allocated_bytes,
                  enum info_form form, FILE *out, struct errtext *err)
{
    struct listed_bitmap *bitmaps;
    int ret = co_read_bitmaps(disk, header, &bitmaps, err);
    if (ret < 0) {
        return ret;
    }
    if (form == INFO_JSON) {
        put_info_json(disk, header, allocated_bytes, bitmaps, out);
    } else {
        put_info_text(disk, header, allocated_bytes, bitmaps, out);
    }
    free(bitmaps);
    if (fflush(out) != 0 || ferror(out)) {
        return err_set(err, EIO, "cannot write the description of %s", disk->path);
    }
    return 0;
}

static void text_facts(const struct bitmap_facts *facts, FILE *out)
{
    put_text(out, facts->name, strlen(facts->name));
    if (facts->unknown) {
        fprintf(out, ": %s: kept, but not offered\n", facts->unknown);
        return;
    }
    fprintf(out, ": granularity %" PRIu64 ", %s, ", facts->granularity_bytes,
            facts->enabled ? "enabled" : "disabled");
    if (facts->inconsistent) {
        fputs("inconsistent (not saved): can only be removed\n", out);
    } else {
        fprintf(out, "%" PRIu64 " bytes dirty\n", facts->dirty_bytes);
    }
}

static void json_facts(const struct bitmap_facts *facts, FILE *out)
{
    fputs("{\"name\": ", out);
    put_json_string(out, facts->name, strlen(facts->name));
    fprintf(out,
            ", \"granularity\": %" PRIu64
            ", \"enabled\": %s, \"inconsistent\": %s, \"unknown\": %s",
            facts->granularity_bytes, json_bool(facts->enabled), json_bool(facts->inconsistent),
            json_bool(facts->unknown));
    if (!facts->unknown && !facts->inconsistent) {
        fprintf(out, ", \"dirty-bytes\": %" PRIu64, facts->dirty_bytes);
    }
    fputc('}', out);
}

int qcow2_bitmaps_put(struct image *image, enum info_form form, FILE *out, struct errtext *err)
{
    size_t count = qcow2_bitmap_facts(image, NULL, 0);
    struct bitmap_facts *facts = calloc(count + 1, sizeof(*facts));
    if (!facts) {
        return err_set(err, ENOMEM, "%s: out of memory", image->path);
    }
    qcow2_bitmap_facts(image, facts, count);
    fputs(form == INFO_JSON ? "[" : "", out);
    for (size_t i = 0; i < count; i++) {
        if (form == INFO_JSON) {
            fputs(i ? ",\n " : "", out);
            json_facts(&facts[i], out);
        } else {
            text_facts(&facts[i], out);
        }
    }
    fputs(form == INFO_JSON ? "]\n" : "", out);
    free(facts);
    if (fflush(out) != 0 || ferror(out)) {
        return err_set(err, EIO, "cannot write the list of bitmaps of %s", image->path);
    }
    return 0;
}
