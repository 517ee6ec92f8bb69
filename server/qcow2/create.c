/* SPDX-License-Identifier: BSD-2-Clause */
/*
 * A new image: header, refcount table, refcount blocks and an L1 table for the whole disk, one
 * after the other from the start of the file, each cluster of them counted once. The L1 table is a
 * hole, so that even the largest costs nothing; only for a raw data file, whose bytes are all the
 * guest's from the start, it is filled and L2 tables follow, as QEMU has it. Everything but the
 * header is made durable first and the header written last: a file left half made by a crash has no
 * magic, and is no image to anybody.
 */
#include "qcow2/create.h"

#include <errno.h>
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

#include "base/bytes.h"
#include "base/check.h"
#include "base/limits.h"
#include "qcow2/chain.h"
#include "qcow2/create_data.h"
#include "qcow2/geometry.h"
#include "qcow2/ondisk.h"

#define SECTOR_BYTES 512U
/* The refcount table gets room to grow, for the whole disk but not beyond this. */
#define REFTABLE_ROOM_BYTES (64U * 1024U)

void create_options_init(struct create_options *options)
{
    *options = (struct create_options){
        .version = 3,
        .cluster_bytes = 64 * KIB,
        .refcount_bits = 16,
        .compression = QCOW2_COMPRESSION_ZLIB,
    };
}

/* 0 for an unknown suffix. */
static unsigned suffix_shift(char suffix, bool *known)
{
    static const char suffixes[] = "bkmgtpe";
    char lower = suffix >= 'A' && suffix <= 'Z' ? (char)(suffix - 'A' + 'a') : suffix;
    const char *found = lower ? strchr(suffixes, lower) : NULL;
    *known = found != NULL;
    return found ? 10U * (unsigned)(found - suffixes) : 0;
}

static bool is_digit(char c)
{
    return c >= '0' && c <= '9';
}

/* numerator / denominator * 2^shift, rounded down; numerator < denominator <= 2^63. */
static uint64_t fraction_of(uint64_t numerator, uint64_t denominator, unsigned shift)
{
    uint64_t part = 0;
    for (; shift > 0; shift--) {
        numerator *= 2;
        part *= 2;
        if (numerator >= denominator) {
            numerator -= denominator;
            part++;
        }
    }
    return part;
}

int parse_size(const char *text, uint64_t *bytes)
{
    uint64_t whole = 0;
    uint64_t fraction = 0;
    uint64_t fraction_unit = 1;
    unsigned shift = 0;

    if (!is_digit(*text)) {
        return -EINVAL;
    }
    for (; is_digit(*text); text++) {
        if (!mul_u64(whole, 10, &whole) || !add_u64(whole, (uint64_t)(*text - '0'), &whole)) {
            return -ERANGE;
        }
    }
    bool has_fraction = *text == '.';
    if (has_fraction) {
        if (!is_digit(*++text)) {
            return -EINVAL;
        }
        /* Digits past the 18th are less than a byte, even in exbibytes. */
        for (; is_digit(*text); text++) {
            if (fraction_unit < 1000000000000000000U) {
                fraction = fraction * 10 + (uint64_t)(*text - '0');
                fraction_unit *= 10;
            }
        }
    }
    if (*text) {
        bool known;
        shift = suffix_shift(*text, &known);
        if (!known || text[1]) {
            return -EINVAL;
        }
    }
    if (has_fraction && shift == 0 && fraction != 0) {
        return -EINVAL; /* part of a byte */
    }
    uint64_t part = fraction_of(fraction, fraction_unit, shift);
    uint64_t result;
    if (!mul_u64(whole, 1ULL << shift, &result) || !add_u64(result, part, &result)) {
        return -ERANGE;
    }
    *bytes = result;
    return 0;
}

static int bad_value(const char *name, const char *value, const char *allowed, struct errtext *err)
{
    char shown[128];
    err_sanitise(shown, sizeof(shown), value, strlen(value));
    return err_set(err, EINVAL, "option %s: \"%s\" is not allowed; give %s", name, shown, allowed);
}

static int parse_size_value(const char *name, const char *value, uint64_t *bytes,
                            struct errtext *err)
{
    return parse_size(value, bytes) < 0
               ? bad_value(name, value, "a number of bytes, or with a suffix k, M, G, T, P or E",
                           err)
               : 0;
}

static int parse_bool_value(const char *name, const char *value, bool *out, struct errtext *err)
{
    static const char *const words[][2] = {
        {"on", "off"}, {"yes", "no"}, {"true", "false"}, {"y", "n"}};
    for (size_t i = 0; i < ARRAY_LEN(words); i++) {
        for (unsigned is_off = 0; is_off < 2; is_off++) {
            if (strcmp(value, words[i][is_off]) == 0) {
                *out = !is_off;
                return 0;
            }
        }
    }
    return bad_value(name, value, "on or off", err);
}

static int parse_compat(struct create_options *options, const char *name, const char *value,
                        struct errtext *err)
{
    if (strcmp(value, "0.10") == 0 || strcmp(value, "v2") == 0) {
        options->version = 2;
    } else if (strcmp(value, "1.1") == 0 || strcmp(value, "v3") == 0) {
        options->version = 3;
    } else {
        return bad_value(name, value, "0.10 (v2) or 1.1 (v3)", err);
    }
    return 0;
}

static int parse_disk_size(struct create_options *options, const char *name, const char *value,
                           struct errtext *err)
{
    return parse_size_value(name, value, &options->size_bytes, err);
}

static int parse_cluster_size(struct create_options *options, const char *name, const char *value,
                              struct errtext *err)
{
    return parse_size_value(name, value, &options->cluster_bytes, err);
}

static int parse_refcount_bits(struct create_options *options, const char *name, const char *value,
                               struct errtext *err)
{
    uint64_t bits;
    if (parse_size(value, &bits) < 0 || bits > 64 || !is_power_of_two(bits)) {
        return bad_value(name, value, "1, 2, 4, 8, 16, 32 or 64", err);
    }
    options->refcount_bits = (uint32_t)bits;
    return 0;
}

static int parse_extended_l2(struct create_options *options, const char *name, const char *value,
                             struct errtext *err)
{
    return parse_bool_value(name, value, &options->extended_l2, err);
}

static int parse_lazy_refcounts(struct create_options *options, const char *name, const char *value,
                                struct errtext *err)
{
    return parse_bool_value(name, value, &options->lazy_refcounts, err);
}

static int parse_compression(struct create_options *options, const char *name, const char *value,
                             struct errtext *err)
{
    if (strcmp(value, "zlib") == 0 || strcmp(value, "deflate") == 0) {
        options->compression = QCOW2_COMPRESSION_ZLIB;
    } else if (strcmp(value, "zstd") == 0) {
        options->compression = QCOW2_COMPRESSION_ZSTD;
    } else {
        return bad_value(name, value, "zlib or zstd", err);
    }
    return 0;
}

static int parse_backing_file(struct create_options *options, const char *name, const char *value,
                              struct errtext *err)
{
    if (!*value) {
        return bad_value(name, value, "the name of a file", err);
    }
    options->backing_name = value;
    return 0;
}

static int parse_data_file(struct create_options *options, const char *name, const char *value,
                           struct errtext *err)
{
    if (!*value) {
        return bad_value(name, value, "the name of a file", err);
    }
    options->data_file_name = value;
    return 0;
}

static int parse_data_file_raw(struct create_options *options, const char *name, const char *value,
                               struct errtext *err)
{
    return parse_bool_value(name, value, &options->data_file_raw, err);
}

static int parse_encrypt_format(struct create_options *options, const char *name, const char *value,
                                struct errtext *err)
{
    if (strcmp(value, "luks") != 0) {
        return bad_value(name, value, "luks", err);
    }
    options->encryption.luks = true;
    return 0;
}

/* What these may be is checked when all are known (choose_spec() in unlock.c). */
static int parse_encrypt_name(struct create_options *options, const char *name, const char *value,
                              struct errtext *err)
{
    struct encryption_options *encryption = &options->encryption;
    const struct {
        const char *name;
        const char **value;
    } names[] = {
        {"encrypt.cipher-alg", &encryption->cipher_alg},
        {"encrypt.cipher-mode", &encryption->cipher_mode},
        {"encrypt.ivgen-alg", &encryption->iv_gen},
        {"encrypt.ivgen-hash-alg", &encryption->iv_hash},
        {"encrypt.hash-alg", &encryption->hash},
    };
    (void)err;
    for (size_t i = 0; i < ARRAY_LEN(names); i++) {
        if (strcmp(name, names[i].name) == 0) {
            *names[i].value = value;
        }
    }
    return 0;
}

static int parse_iter_time(struct create_options *options, const char *name, const char *value,
                           struct errtext *err)
{
    uint64_t ms;
    if (parse_size(value, &ms) < 0 || ms == 0 || ms > LIMIT_LUKS_ITER_TIME_MS) {
        return bad_value(name, value, "milliseconds, from 1 to 60000", err);
    }
    options->encryption.iter_time_ms = (uint32_t)ms;
    return 0;
}

static int parse_key_secret(struct create_options *options, const char *name, const char *value,
                            struct errtext *err)
{
    (void)options;
    return bad_value(name, value, "--key-file FILE instead: qcowd has no objects", err);
}

static int parse_backing_format(struct create_options *options, const char *name, const char *value,
                                struct errtext *err)
{
    if (strcmp(value, "qcow2") != 0 && strcmp(value, "raw") != 0) {
        return bad_value(name, value, "qcow2 or raw", err);
    }
    options->backing_format = value;
    return 0;
}

int create_option_parse(struct create_options *options, char *assignment, struct errtext *err)
{
    static const struct {
        const char *name;
        int (*parse)(struct create_options *options, const char *name, const char *value,
                     struct errtext *err);
    } known[] = {
        {"size", parse_disk_size},
        {"compat", parse_compat},
        {"cluster_size", parse_cluster_size},
        {"refcount_bits", parse_refcount_bits},
        {"extended_l2", parse_extended_l2},
        {"lazy_refcounts", parse_lazy_refcounts},
        {"compression_type", parse_compression},
        {"backing_file", parse_backing_file},
        {"backing_fmt", parse_backing_format},
        {"data_file", parse_data_file},
        {"data_file_raw", parse_data_file_raw},
        {"encrypt.format", parse_encrypt_format},
        {"encrypt.cipher-alg", parse_encrypt_name},
        {"encrypt.cipher-mode", parse_encrypt_name},
        {"encrypt.ivgen-alg", parse_encrypt_name},
        {"encrypt.ivgen-hash-alg", parse_encrypt_name},
        {"encrypt.hash-alg", parse_encrypt_name},
        {"encrypt.iter-time", parse_iter_time},
        {"encrypt.key-secret", parse_key_secret},
    };

    char *equals = strchr(assignment, '=');
    size_t name_len = equals ? (size_t)(equals - assignment) : strlen(assignment);
    for (size_t i = 0; i < ARRAY_LEN(known); i++) {
        if (strlen(known[i].name) != name_len || memcmp(known[i].name, assignment, name_len) != 0) {
            continue;
        }
        if (!equals) {
            return err_set(err, EINVAL, "option %s: no value; write %s=VALUE", known[i].name,
                           known[i].name);
        }
        return known[i].parse(options, known[i].name, equals + 1, err);
    }
    char shown[64];
    err_sanitise(shown, sizeof(shown), assignment, name_len);
    return err_set(
        err, EINVAL,
        "option \"%s\" is unknown; known are size, compat, cluster_size, refcount_bits, "
        "extended_l2, lazy_refcounts, compression_type, backing_file, backing_fmt, "
        "data_file, data_file_raw, encrypt.format, encrypt.cipher-alg, encrypt.cipher-mode, "
        "encrypt.ivgen-alg, encrypt.ivgen-hash-alg, encrypt.hash-alg, encrypt.iter-time",
        shown);
}

/* Where everything goes; all counts are in clusters, all tables follow one another. */
struct layout {
    struct geometry geo;
    uint64_t l1_entries;
    uint64_t reftable_clusters;
    uint64_t refblocks; /* one cluster each */
    uint64_t l1_clusters;
    uint64_t l2_tables;  /* one cluster each; for a raw data file only */
    uint64_t keys_bytes; /* the encryption header's area, 0: none */
    uint64_t keys_clusters;
    uint64_t total_clusters;
};

static uint32_t log2_of(uint64_t power)
{
    assert(is_power_of_two(power));
    return (uint32_t)__builtin_ctzll(power);
}

static uint64_t largest_disk_bytes(const struct geometry *geo)
{
    uint64_t entries = LIMIT_L1_BYTES / sizeof(be64_t);
    unsigned shift = geo->cluster_bits + geo->l2_bits;
    return entries << shift; /* at most 2^22 << (21 + 18) */
}

static void layout_geometry(const struct create_options *options, struct geometry *geo)
{
    uint64_t size_bytes = options->size_bytes > UINT64_MAX - (SECTOR_BYTES - 1)
                              ? UINT64_MAX
                              : round_up_to(options->size_bytes, SECTOR_BYTES);
    geometry_init(geo, log2_of(options->cluster_bytes), options->extended_l2, options->version,
                  log2_of(options->refcount_bits), size_bytes);
    geo->data_file = options->data_file_name != NULL;
    geo->data_file_raw = options->data_file_raw;
}

/* The options must have been checked. keys_bytes: of the encryption header's area, 0: none. */
static void layout_init(const struct create_options *options, uint64_t keys_bytes,
                        struct layout *layout)
{
    layout_geometry(options, &layout->geo);
    layout->keys_bytes = keys_bytes;
    layout->keys_clusters = div_round_up(keys_bytes, layout->geo.cluster_bytes);
    const struct geometry *geo = &layout->geo;

    /* At least one entry, so that the L1 table of a disk of no size has a place in the file too. */
    layout->l1_entries = MAX_OF(l1_entries_needed(geo), 1);
    layout->l1_clusters = div_round_up(layout->l1_entries * sizeof(be64_t), geo->cluster_bytes);

    layout->l2_tables = geo->data_file_raw ? l1_entries_needed(geo) : 0;

    uint64_t disk_clusters = div_round_up(geo->size_bytes, geo->cluster_bytes);
    uint64_t room_bytes = div_round_up(disk_clusters, geo->refblock_entries) * sizeof(be64_t);
    room_bytes = MIN_OF(room_bytes, REFTABLE_ROOM_BYTES);

    /* The blocks count themselves and the table that names them: grow until it fits. Each round
     * adds a small fraction of the round before. */
    layout->refblocks = 1;
    for (;;) {
        uint64_t table_bytes = MAX_OF(layout->refblocks * sizeof(be64_t), room_bytes);
        layout->reftable_clusters = MAX_OF(div_round_up(table_bytes, geo->cluster_bytes), 1);
        layout->total_clusters = 1 + layout->reftable_clusters + layout->refblocks +
                                 layout->l1_clusters + layout->l2_tables + layout->keys_clusters;
        uint64_t needed = div_round_up(layout->total_clusters, geo->refblock_entries);
        if (needed <= layout->refblocks) {
            return;
        }
        layout->refblocks = needed;
    }
}

static uint64_t reftable_offset(const struct layout *layout)
{
    return layout->geo.cluster_bytes;
}

static uint64_t refblocks_offset(const struct layout *layout)
{
    return reftable_offset(layout) + layout->reftable_clusters * layout->geo.cluster_bytes;
}

static uint64_t l1_offset(const struct layout *layout)
{
    return refblocks_offset(layout) + layout->refblocks * layout->geo.cluster_bytes;
}

static uint64_t l2_offset(const struct layout *layout)
{
    return l1_offset(layout) + layout->l1_clusters * layout->geo.cluster_bytes;
}

static uint64_t keys_offset(const struct layout *layout)
{
    return l2_offset(layout) + layout->l2_tables * layout->geo.cluster_bytes;
}

static const struct {
    uint8_t type;
    uint8_t bit;
    const char *name;
} feature_names[] = {
    {0, 0, "dirty bit"},        {0, 1, "corrupt bit"},         {0, 2, "external data file"},
    {0, 3, "compression type"}, {0, 4, "extended L2 entries"}, {1, 0, "lazy refcounts"},
    {2, 0, "bitmaps"},          {2, 1, "raw external data"},
};

static uint32_t header_struct_bytes(uint32_t version)
{
    return version == 2 ? QCOW2_HEADER_BYTES_V2 : (uint32_t)sizeof(struct qcow2_disk_header);
}

/* What a header extension of `len` data bytes takes. */
static size_t extension_bytes(size_t len)
{
    return sizeof(struct qcow2_disk_extension) + (size_t)round_up_to(len, 8);
}

/* Header, names of files and formats, end mark: what must fit into the first cluster. */
static size_t header_bytes_needed(const struct create_options *options)
{
    size_t bytes = header_struct_bytes(options->version) + extension_bytes(0);
    if (options->backing_name) {
        bytes += extension_bytes(strlen(options->backing_format)) + strlen(options->backing_name);
    }
    if (options->data_file_name) {
        bytes += extension_bytes(strlen(options->data_file_name));
    }
    if (options->encryption.luks) {
        bytes += extension_bytes(2 * sizeof(be64_t));
    }
    return bytes;
}

static void put_extension(uint8_t **at, uint32_t type, const void *data, size_t len)
{
    struct qcow2_disk_extension head;
    put_be32(&head.type, type);
    put_be32(&head.len, (uint32_t)len);
    memcpy(*at, &head, sizeof(head));
    if (len > 0) {
        memcpy(*at + sizeof(head), data, len);
    }
    *at += extension_bytes(len);
}

static void put_feature_names(uint8_t **at)
{
    struct qcow2_disk_feature_name table[ARRAY_LEN(feature_names)];
    memset(table, 0, sizeof(table));
    for (size_t i = 0; i < ARRAY_LEN(feature_names); i++) {
        table[i].type = feature_names[i].type;
        table[i].bit = feature_names[i].bit;
        assert(strlen(feature_names[i].name) <= sizeof(table[i].name));
        memcpy(table[i].name, feature_names[i].name, strlen(feature_names[i].name));
    }
    put_extension(at, QCOW2_EXT_FEATURE_NAMES, table, sizeof(table));
}

/* Fills the first cluster, which is zero. */
static void fill_header(uint8_t *cluster, const struct create_options *options,
                        const struct layout *layout)
{
    const struct geometry *geo = &layout->geo;
    struct qcow2_disk_header head;
    uint32_t head_bytes = header_struct_bytes(options->version);
    uint64_t incompatible = 0;

    if (options->compression != QCOW2_COMPRESSION_ZLIB) {
        incompatible |= QCOW2_INCOMPAT_COMPRESSION;
    }
    if (options->extended_l2) {
        incompatible |= QCOW2_INCOMPAT_EXTENDED_L2;
    }
    if (options->data_file_name) {
        incompatible |= QCOW2_INCOMPAT_DATA_FILE;
    }
    memset(&head, 0, sizeof(head));
    put_be32(&head.magic, QCOW2_MAGIC);
    put_be32(&head.version, options->version);
    put_be32(&head.cluster_bits, geo->cluster_bits);
    put_be64(&head.size, geo->size_bytes);
    put_be32(&head.crypt_method, layout->keys_bytes > 0 ? QCOW2_CRYPT_LUKS : QCOW2_CRYPT_NONE);
    put_be32(&head.l1_size, (uint32_t)layout->l1_entries);
    put_be64(&head.l1_table_offset, l1_offset(layout));
    put_be64(&head.refcount_table_offset, reftable_offset(layout));
    put_be32(&head.refcount_table_clusters, (uint32_t)layout->reftable_clusters);
    put_be64(&head.incompatible_features, incompatible);
    put_be64(&head.compatible_features, options->lazy_refcounts ? QCOW2_COMPAT_LAZY_REFCOUNTS : 0);
    put_be64(&head.autoclear_features, options->data_file_raw ? QCOW2_AUTOCLEAR_RAW_DATA_FILE : 0);
    put_be32(&head.refcount_order, geo->refcount_order);
    put_be32(&head.header_length, head_bytes);
    head.compression_type = options->compression;

    uint8_t *at = cluster + head_bytes;
    if (options->backing_name) {
        put_extension(&at, QCOW2_EXT_BACKING_FORMAT, options->backing_format,
                      strlen(options->backing_format));
    }
    if (options->data_file_name) {
        put_extension(&at, QCOW2_EXT_DATA_FILE, options->data_file_name,
                      strlen(options->data_file_name));
    }
    if (layout->keys_bytes > 0) {
        uint8_t place[2 * sizeof(be64_t)];
        put_be64(place, keys_offset(layout));
        put_be64(place + sizeof(be64_t), layout->keys_bytes);
        put_extension(&at, QCOW2_EXT_CRYPTO, place, sizeof(place));
    }
    /* The names only help those who do not know a feature; where room is short they stay away. */
    if (options->version >= 3 &&
        header_bytes_needed(options) + extension_bytes(ARRAY_LEN(feature_names) *
                                                       sizeof(struct qcow2_disk_feature_name)) <=
            geo->cluster_bytes) {
        put_feature_names(&at);
    }
    put_extension(&at, QCOW2_EXT_END, NULL, 0);
    if (options->backing_name) {
        size_t len = strlen(options->backing_name);
        put_be64(&head.backing_file_offset, (uint64_t)(at - cluster));
        put_be32(&head.backing_file_size, (uint32_t)len);
        memcpy(at, options->backing_name, len);
        at += len;
    }
    assert((uint64_t)(at - cluster) <= geo->cluster_bytes);
    memcpy(cluster, &head, head_bytes);
}

static int check_version_2(const struct create_options *options, struct errtext *err)
{
    if (options->refcount_bits != 16) {
        return err_set(err, EINVAL, "refcount_bits %u needs compat 1.1; compat 0.10 allows 16 only",
                       options->refcount_bits);
    }
    const char *feature = options->extended_l2      ? "extended_l2"
                          : options->lazy_refcounts ? "lazy_refcounts"
                          : options->data_file_name ? "data_file"
                          : options->compression != QCOW2_COMPRESSION_ZLIB
                              ? "a compression_type other than zlib"
                              : NULL;
    return feature ? err_set(err, EINVAL, "%s needs compat 1.1; compat is 0.10", feature) : 0;
}

static int check_format(const struct create_options *options, struct errtext *err)
{
    const uint64_t least = 1ULL << QCOW2_CLUSTER_BITS_MIN;
    const uint64_t most = 1ULL << QCOW2_CLUSTER_BITS_MAX;
    if (options->version != 2 && options->version != 3) {
        return err_set(err, EINVAL, "version %u is not supported; give 2 or 3", options->version);
    }
    if (!is_power_of_two(options->cluster_bytes) || options->cluster_bytes < least ||
        options->cluster_bytes > most) {
        return err_set(err, EINVAL,
                       "cluster_size %" PRIu64
                       " is not allowed; give a power of two from 512 to 2M",
                       options->cluster_bytes);
    }
    if (!is_power_of_two(options->refcount_bits) || options->refcount_bits > 64) {
        return err_set(err, EINVAL,
                       "refcount_bits %u is not allowed; give 1, 2, 4, 8, 16, 32 or 64",
                       options->refcount_bits);
    }
    if (options->compression > QCOW2_COMPRESSION_ZSTD) {
        return err_set(err, EINVAL, "compression_type %u is unknown; give zlib or zstd",
                       options->compression);
    }
    if (options->extended_l2 && options->cluster_bytes < 1ULL << QCOW2_CLUSTER_BITS_MIN_EXTENDED) {
        return err_set(err, EINVAL,
                       "extended_l2 needs clusters of 16k to 2M; cluster_size is %" PRIu64,
                       options->cluster_bytes);
    }
    return options->version == 2 ? check_version_2(options, err) : 0;
}

static int check_backing(const struct create_options *options, struct errtext *err)
{
    if (!options->backing_name) {
        return options->backing_format
                   ? err_set(err, EINVAL, "backing_fmt is given without a backing_file")
                   : 0;
    }
    if (!options->backing_format) {
        return err_set(err, EINVAL,
                       "backing_file is given without its format; add -F qcow2 or -F raw (formats "
                       "are not probed)");
    }
    if (strcmp(options->backing_format, "qcow2") != 0 &&
        strcmp(options->backing_format, "raw") != 0) {
        char shown[64];
        return err_set(err, EINVAL, "backing_fmt \"%s\" is not supported; give qcow2 or raw",
                       err_sanitise(shown, sizeof(shown), options->backing_format,
                                    strlen(options->backing_format)));
    }
    int ret = backing_name_check(options->backing_name, err);
    if (ret < 0) {
        return ret;
    }
    return 0;
}

static int check_data_file(const struct create_options *options, struct errtext *err)
{
    if (!options->data_file_name) {
        return options->data_file_raw
                   ? err_set(err, EINVAL, "data_file_raw is given without a data_file")
                   : 0;
    }
    if (options->data_file_raw && options->backing_name) {
        return err_set(err, EINVAL,
                       "data_file_raw and backing_file exclude each other; give one of them");
    }
    return plain_name_check("data file", options->data_file_name, err);
}

static int check_encryption(const struct create_options *options, struct errtext *err)
{
    const struct encryption_options *encryption = &options->encryption;
    if (!encryption->luks) {
        bool given = encryption->cipher_alg || encryption->cipher_mode || encryption->iv_gen ||
                     encryption->iv_hash || encryption->hash || encryption->iter_time_ms;
        return given ? err_set(err, EINVAL, "encrypt.* needs encrypt.format=luks") : 0;
    }
    if (options->data_file_raw) {
        return err_set(
            err, EINVAL,
            "data_file_raw and encrypt.format exclude each other: a raw data file is the "
            "disk as the guest sees it");
    }
    uint64_t area_bytes;
    return luks_measure(encryption, &area_bytes, err);
}

/* The names lie in the first cluster. */
static int check_names_fit(const struct create_options *options, struct errtext *err)
{
    size_t backing_len = options->backing_name ? strlen(options->backing_name) : 0;
    size_t data_len = options->data_file_name ? strlen(options->data_file_name) : 0;
    size_t needed = header_bytes_needed(options);

    if (needed <= options->cluster_bytes) {
        return 0;
    }
    bool backing = backing_len >= data_len;
    size_t len = backing ? backing_len : data_len;
    return err_set(err, EINVAL,
                   "%s has %zu bytes, but the first cluster of %" PRIu64
                   " bytes has room for a name of %" PRIu64 "; give a shorter name or a larger "
                   "cluster_size",
                   backing ? "backing_file" : "data_file", len, options->cluster_bytes,
                   needed - len < options->cluster_bytes ? options->cluster_bytes - (needed - len)
                                                         : 0);
}

int create_options_check(const struct create_options *options, struct errtext *err)
{
    int ret = check_format(options, err);
    if (ret < 0) {
        return ret;
    }
    struct geometry geo;
    layout_geometry(options, &geo);
    if (geo.size_bytes > largest_disk_bytes(&geo)) {
        return err_set(
            err, EINVAL,
            "size %" PRIu64 " is too large for clusters of %" PRIu64
            " bytes%s; the largest is %" PRIu64 " (%" PRIu64 "G); larger clusters allow more",
            options->size_bytes, geo.cluster_bytes, geo.extended_l2 ? " with extended_l2" : "",
            largest_disk_bytes(&geo), (uint64_t)(largest_disk_bytes(&geo) / GIB));
    }
    ret = check_backing(options, err);
    if (ret == 0) {
        ret = check_data_file(options, err);
    }
    if (ret == 0) {
        ret = check_encryption(options, err);
    }
    return ret < 0 ? ret : check_names_fit(options, err);
}

static int co_write_refcounts(struct disk *disk, const struct layout *layout)
{
    const struct geometry *geo = &layout->geo;
    size_t table_bytes = (size_t)(layout->reftable_clusters * geo->cluster_bytes);
    size_t block_bytes = (size_t)(layout->refblocks * geo->cluster_bytes);
    /* A whole block or two, or 1/8 to 8 bytes for each cluster of a 32 MiB L1 table, and for each
     * L2 table that one names: at most 34 MiB. */
    uint8_t *buf = calloc(1, table_bytes + block_bytes);
    if (!buf) {
        return -ENOMEM;
    }
    for (uint64_t i = 0; i < layout->refblocks; i++) {
        put_be64(buf + i * sizeof(be64_t), refblocks_offset(layout) + i * geo->cluster_bytes);
    }
    /* The blocks lie one after the other, so they index as one. */
    for (uint64_t i = 0; i < layout->total_clusters; i++) {
        refcount_set(geo->refcount_order, buf + table_bytes, i, 1);
    }
    int ret = co_disk_write(disk, reftable_offset(layout), buf, table_bytes + block_bytes);
    free(buf);
    return ret;
}

/*
 * The entries of all tables: what a raw data file holds is the guest's from the start, also for
 * those who do look at the entries. Clusters past the disk's end have none.
 */
static void fill_l2_table(const struct geometry *geo, uint64_t table, uint8_t *bytes)
{
    uint64_t first = table * geo->l2_entries;

    memset(bytes, 0, geo->cluster_bytes);
    for (uint32_t i = 0; i < geo->l2_entries; i++) {
        uint64_t offset = (first + i) << geo->cluster_bits;
        if (offset >= geo->size_bytes) {
            break;
        }
        uint8_t *entry = bytes + (size_t)i * geo->l2_entry_bytes;
        put_be64(entry, offset | QCOW2_COPIED);
        if (geo->extended_l2) {
            put_be64(entry + sizeof(be64_t), UINT32_MAX);
        }
    }
}

/* L1 and L2 tables that map all of the disk to a raw data file. */
static int co_write_mapping(struct disk *disk, const struct layout *layout)
{
    const struct geometry *geo = &layout->geo;
    size_t l1_bytes = (size_t)(layout->l1_clusters * geo->cluster_bytes);
    uint8_t *l1 = calloc(1, l1_bytes);
    uint8_t *table = malloc((size_t)geo->cluster_bytes);
    int ret = l1 && table ? 0 : -ENOMEM;

    for (uint64_t i = 0; i < layout->l2_tables && ret == 0; i++) {
        uint64_t at = l2_offset(layout) + i * geo->cluster_bytes;
        put_be64(l1 + i * sizeof(be64_t), at | QCOW2_COPIED);
        fill_l2_table(geo, i, table);
        ret = co_disk_write(disk, at, table, (size_t)geo->cluster_bytes);
    }
    if (ret == 0) {
        ret = co_disk_write(disk, l1_offset(layout), l1, l1_bytes);
    }
    free(l1);
    free(table);
    return ret;
}

static int co_write_header(struct disk *disk, const struct create_options *options,
                           const struct layout *layout)
{
    uint8_t *cluster = calloc(1, (size_t)layout->geo.cluster_bytes);
    if (!cluster) {
        return -ENOMEM;
    }
    fill_header(cluster, options, layout);
    int ret = co_disk_write(disk, 0, cluster, (size_t)layout->geo.cluster_bytes);
    free(cluster);
    return ret;
}

/* The encryption header of a new image. keys->bytes is the caller's to free(). */
struct new_keys {
    uint8_t *bytes;
    size_t len;
    uint64_t area_bytes; /* 0: not encrypted */
};

static int co_make_keys(struct world *world, const struct create_options *options,
                        struct new_keys *keys, struct errtext *err)
{
    struct luks luks;
    *keys = (struct new_keys){.bytes = NULL};
    if (!options->encryption.luks) {
        return 0;
    }
    if (!options->key) {
        return err_set(err, EINVAL, "encrypt.format=luks needs a passphrase: --key-file FILE");
    }
    int ret = co_luks_make(world, &options->encryption, options->key, &luks, &keys->bytes,
                           &keys->len, err);
    keys->area_bytes = ret == 0 ? luks_area_bytes(&luks) : 0;
    return ret;
}

/* Fills a new, empty file. */
static int co_fill_image(struct disk *disk, const struct create_options *options,
                         const struct new_keys *keys, struct errtext *err)
{
    struct layout layout;
    layout_init(options, keys->area_bytes, &layout);

    int ret = disk->ops->co_truncate(disk, layout.total_clusters * layout.geo.cluster_bytes);
    if (ret == 0) {
        ret = co_write_refcounts(disk, &layout);
    }
    if (ret == 0 && layout.l2_tables > 0) {
        ret = co_write_mapping(disk, &layout);
    }
    if (ret == 0 && keys->area_bytes > 0) {
        ret = co_disk_write(disk, keys_offset(&layout), keys->bytes, keys->len);
    }
    /* O1: what the header names is durable before the header is. */
    if (ret == 0) {
        ret = co_disk_flush(disk);
    }
    if (ret == 0) {
        ret = co_write_header(disk, options, &layout);
    }
    if (ret == 0) {
        ret = co_disk_flush(disk);
    }
    return ret < 0 ? err_set(err, -ret, "%s: cannot write the new image: %s", disk->path,
                             strerror(-ret))
                   : 0;
}

/* After a failure: a file that was made here goes again. */
static void remove_made(struct world *world, const char *path, struct errtext *err)
{
    int removed = world->ops->remove ? world->ops->remove(world, path) : 0;
    if (removed < 0) {
        err_prefix(err, "%s is left behind, incomplete (%s)", path, strerror(-removed));
    }
}

/* The data file, if there is to be one, and then the image that names it. */
static int co_fill_both(struct world *world, struct disk *image,
                        const struct create_options *options, struct errtext *err)
{
    bool made = false;
    char *path = NULL;
    struct new_keys keys;
    int ret = co_make_keys(world, options, &keys, err);

    if (ret == 0 && options->data_file_name) {
        ret = plain_path_resolve("data file", image->path, options->data_file_name, &path, err);
        if (ret == 0) {
            ret = co_prepare_data_file(world, path, image, options, &made, err);
        }
    }
    if (ret == 0) {
        ret = co_fill_image(image, options, &keys, err);
    }
    if (ret < 0 && made) {
        remove_made(world, path, err);
    }
    free(keys.bytes);
    free(path);
    return ret;
}

int co_qcow2_create(struct world *world, const char *path, const struct create_options *options,
                    struct errtext *err)
{
    struct disk *disk;
    int ret = create_options_check(options, err);
    if (ret < 0) {
        err_prefix(err, "%s", path);
        return ret;
    }
    ret = world->ops->co_disk_open(world, path, DISK_WRITABLE | DISK_CREATE, &disk, err);
    if (ret < 0) {
        return ret;
    }
    ret = co_fill_both(world, disk, options, err);
    disk_close(disk);
    if (ret < 0) {
        remove_made(world, path, err);
    }
    return ret;
}
