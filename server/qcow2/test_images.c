/* SPDX-License-Identifier: BSD-2-Clause */
/* Whatever goes wrong here is the test's own fault, so everything asserts. */
#include "qcow2/test_images.h"

#include <assert.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/bytes.h"

static struct qcow2_disk_header *header_of(const struct test_image *image)
{
    return (struct qcow2_disk_header *)(void *)image->bytes;
}

static void read_geometry(struct test_image *image)
{
    const struct qcow2_disk_header *header = header_of(image);
    uint32_t version = get_be32(header->version.bytes);
    bool extended =
        version >= 3 && get_be64(header->incompatible_features.bytes) & QCOW2_INCOMPAT_EXTENDED_L2;
    geometry_init(&image->geo, get_be32(header->cluster_bits.bytes), extended, version,
                  version >= 3 ? get_be32(header->refcount_order.bytes) : 4,
                  get_be64(header->size.bytes));
}

static void build_header(struct test_image *image, const struct test_image_options *options)
{
    struct qcow2_disk_header *header = header_of(image);
    uint64_t cluster_bytes = 1ULL << options->cluster_bits;

    put_be32(header->magic.bytes, QCOW2_MAGIC);
    put_be32(header->version.bytes, options->version);
    put_be32(header->cluster_bits.bytes, options->cluster_bits);
    put_be64(header->size.bytes, 2 * options->data_clusters * cluster_bytes);
    put_be32(header->l1_size.bytes, 1);
    put_be64(header->refcount_table_offset.bytes, cluster_bytes);
    put_be32(header->refcount_table_clusters.bytes, 1);
    put_be64(header->l1_table_offset.bytes, 3 * cluster_bytes);
    if (options->version >= 3) {
        put_be64(header->incompatible_features.bytes,
                 options->extended_l2 ? QCOW2_INCOMPAT_EXTENDED_L2 : 0);
        put_be32(header->refcount_order.bytes, options->refcount_order);
        put_be32(header->header_length.bytes, QCOW2_HEADER_BYTES_V3_MIN);
    }
}

void test_image_build(struct test_image *image, const struct test_image_options *options)
{
    enum { REFTABLE = 1, REFBLOCK, L1, L2, DATA };
    uint64_t cluster_bytes = 1ULL << options->cluster_bits;
    uint64_t clusters = DATA + options->data_clusters;

    *image = (struct test_image){.len_bytes = clusters * cluster_bytes};
    image->bytes = calloc(1, image->len_bytes);
    assert(image->bytes);
    build_header(image, options);
    read_geometry(image);
    assert(clusters < image->geo.refblock_entries);
    assert(2 * options->data_clusters <= image->geo.l2_entries);
    test_image_put(image, REFTABLE * cluster_bytes, REFBLOCK * cluster_bytes);
    test_image_put(image, L1 * cluster_bytes, L2 * cluster_bytes | QCOW2_COPIED);
    for (uint64_t i = 0; i < clusters; i++) {
        test_image_set_refcount(image, i, 1);
    }
    for (unsigned i = 0; i < options->data_clusters; i++) {
        uint64_t at = test_image_l2_at(image, i);
        test_image_put(image, at, (DATA + i) * cluster_bytes | QCOW2_COPIED);
        if (options->extended_l2) {
            test_image_put(image, at + 8, UINT32_MAX);
        }
        memset(image->bytes + (DATA + i) * cluster_bytes, (int)(i + 1), cluster_bytes);
    }
}

void test_image_load(struct test_image *image, const char *path)
{
    FILE *file = fopen(path, "rb");
    assert(file);
    int rc = fseek(file, 0, SEEK_END);
    assert(rc == 0);
    *image = (struct test_image){.len_bytes = (uint64_t)ftell(file)};
    image->bytes = malloc(image->len_bytes);
    assert(image->bytes);
    rewind(file);
    size_t got = fread(image->bytes, 1, image->len_bytes, file);
    assert(got == image->len_bytes);
    fclose(file);
    read_geometry(image);
}

void test_image_save(const struct test_image *image, const char *path)
{
    FILE *file = fopen(path, "wb");
    assert(file);
    size_t put = fwrite(image->bytes, 1, image->len_bytes, file);
    assert(put == image->len_bytes);
    int rc = fclose(file);
    assert(rc == 0);
}

void test_image_free(struct test_image *image)
{
    free(image->bytes);
    image->bytes = NULL;
}

uint64_t test_image_get(const struct test_image *image, uint64_t at)
{
    assert(at + 8 <= image->len_bytes);
    return get_be64(image->bytes + at);
}

void test_image_put(struct test_image *image, uint64_t at, uint64_t value)
{
    assert(at + 8 <= image->len_bytes);
    put_be64(image->bytes + at, value);
}

uint64_t test_image_l1_at(const struct test_image *image, uint64_t index)
{
    return get_be64(header_of(image)->l1_table_offset.bytes) + index * 8;
}

uint64_t test_image_l2_at(const struct test_image *image, uint64_t guest_cluster)
{
    uint64_t l1_entry =
        test_image_get(image, test_image_l1_at(image, guest_cluster / image->geo.l2_entries));
    assert(l1_entry & QCOW2_L1_OFFSET);
    return (l1_entry & QCOW2_L1_OFFSET) +
           guest_cluster % image->geo.l2_entries * image->geo.l2_entry_bytes;
}

uint64_t test_image_reftable_at(const struct test_image *image, uint64_t index)
{
    return get_be64(header_of(image)->refcount_table_offset.bytes) + index * 8;
}

static uint8_t *block_of(const struct test_image *image, uint64_t cluster)
{
    uint64_t index = cluster / image->geo.refblock_entries;
    uint64_t offset = test_image_get(image, test_image_reftable_at(image, index));
    assert(offset + image->geo.cluster_bytes <= image->len_bytes);
    return offset ? image->bytes + offset : NULL;
}

uint64_t test_image_refcount(const struct test_image *image, uint64_t cluster)
{
    const uint8_t *block = block_of(image, cluster);
    return block ? refcount_get(image->geo.refcount_order, block,
                                cluster % image->geo.refblock_entries)
                 : 0;
}

void test_image_set_refcount(struct test_image *image, uint64_t cluster, uint64_t count)
{
    uint8_t *block = block_of(image, cluster);
    assert(block);
    refcount_set(image->geo.refcount_order, block, cluster % image->geo.refblock_entries, count);
}

uint64_t test_image_append_cluster(struct test_image *image)
{
    uint64_t cluster = div_round_up(image->len_bytes, image->geo.cluster_bytes);
    uint64_t len_bytes = (cluster + 1) * image->geo.cluster_bytes;

    image->bytes = realloc(image->bytes, len_bytes);
    assert(image->bytes);
    memset(image->bytes + image->len_bytes, 0, len_bytes - image->len_bytes);
    image->len_bytes = len_bytes;
    return cluster;
}

/* Counts one more reference and says so where it is named. */
static void share(struct test_image *image, uint64_t entry_at)
{
    uint64_t entry = test_image_get(image, entry_at);
    uint64_t cluster = (entry & QCOW2_L2_OFFSET) >> image->geo.cluster_bits;
    test_image_set_refcount(image, cluster, test_image_refcount(image, cluster) + 1);
    test_image_put(image, entry_at, entry & ~QCOW2_COPIED);
}

void test_image_add_snapshot(struct test_image *image)
{
    assert(image->geo.refcount_max > 1);
    uint64_t l1 = test_image_append_cluster(image);
    uint64_t table = test_image_append_cluster(image);
    test_image_set_refcount(image, l1, 1);
    test_image_set_refcount(image, table, 1);

    uint64_t clusters = div_round_up(image->geo.size_bytes, image->geo.cluster_bytes);
    for (uint64_t i = 0; i < clusters; i++) {
        uint64_t at = test_image_l2_at(image, i);
        if (test_image_get(image, at) & QCOW2_COPIED) {
            share(image, at);
        }
    }
    share(image, test_image_l1_at(image, 0));
    test_image_put(image, l1 << image->geo.cluster_bits,
                   test_image_get(image, test_image_l1_at(image, 0)));

    uint8_t *entry = image->bytes + (table << image->geo.cluster_bits);
    put_be64(entry, l1 << image->geo.cluster_bits);
    put_be32(entry + 8, 1);   /* L1 entries */
    put_be16(entry + 12, 1);  /* length of the ID */
    put_be16(entry + 14, 4);  /* of the name */
    put_be32(entry + 36, 16); /* extra data: size of the VM state, of the disk */
    put_be64(entry + 48, image->geo.size_bytes);
    memcpy(entry + 56, "1", 1);
    memcpy(entry + 57, "once", 4);
    put_be32(header_of(image)->nb_snapshots.bytes, 1);
    put_be64(header_of(image)->snapshots_offset.bytes, table << image->geo.cluster_bits);
}

/*
 * Damages.
 */

static void change(struct test_image *image, uint64_t at, uint64_t set, uint64_t clear)
{
    test_image_put(image, at, (test_image_get(image, at) & ~clear) | set);
}

static uint64_t data_cluster(const struct test_image *image, uint64_t guest_cluster)
{
    uint64_t entry = test_image_get(image, test_image_l2_at(image, guest_cluster));
    return (entry & QCOW2_L2_OFFSET) >> image->geo.cluster_bits;
}

static bool nothing(struct test_image *image)
{
    (void)image;
    return true;
}

static bool leaked_cluster(struct test_image *image)
{
    test_image_set_refcount(image, test_image_append_cluster(image), 1);
    return true;
}

static bool leaked_count(struct test_image *image)
{
    uint64_t cluster = data_cluster(image, 2);
    if (image->geo.refcount_max < 2 || test_image_refcount(image, cluster) != 1) {
        return false;
    }
    test_image_set_refcount(image, cluster, 2);
    change(image, test_image_l2_at(image, 2), 0, QCOW2_COPIED);
    return true;
}

static bool count_past_end(struct test_image *image)
{
    uint64_t past = div_round_up(image->len_bytes, image->geo.cluster_bytes) + 3;
    if (past / image->geo.refblock_entries != 0) {
        return false;
    }
    test_image_set_refcount(image, past, 1);
    return true;
}

static bool count_of_data_zero(struct test_image *image)
{
    test_image_set_refcount(image, data_cluster(image, 1), 0);
    return true;
}

static bool count_of_l2_zero(struct test_image *image)
{
    uint64_t entry = test_image_get(image, test_image_l1_at(image, 0));
    test_image_set_refcount(image, (entry & QCOW2_L1_OFFSET) >> image->geo.cluster_bits, 0);
    return true;
}

static bool count_of_header_zero(struct test_image *image)
{
    test_image_set_refcount(image, 0, 0);
    return true;
}

static bool toggle_l2_copied(struct test_image *image)
{
    uint64_t at = test_image_l2_at(image, 1);
    test_image_put(image, at, test_image_get(image, at) ^ QCOW2_COPIED);
    return true;
}

static bool toggle_l1_copied(struct test_image *image)
{
    uint64_t at = test_image_l1_at(image, 0);
    test_image_put(image, at, test_image_get(image, at) ^ QCOW2_COPIED);
    return true;
}

/* Two guest clusters on one host cluster, each sure to own it. */
static bool two_on_one(struct test_image *image)
{
    if (image->geo.refcount_max < 2) {
        return false;
    }
    test_image_put(image, test_image_l2_at(image, 1),
                   test_image_get(image, test_image_l2_at(image, 0)));
    return true;
}

/* With one bit there is no way to count two references. */
static bool two_on_one_uncountable(struct test_image *image)
{
    if (image->geo.refcount_max != 1) {
        return false;
    }
    test_image_put(image, test_image_l2_at(image, 1),
                   test_image_get(image, test_image_l2_at(image, 0)));
    return true;
}

/* The same, but counted: legitimate. */
static bool two_on_one_counted(struct test_image *image)
{
    uint64_t kept = data_cluster(image, 0);
    uint64_t freed = data_cluster(image, 1);
    if (image->geo.refcount_max < 2 || test_image_refcount(image, kept) != 1 ||
        test_image_refcount(image, freed) != 1) {
        return false;
    }
    change(image, test_image_l2_at(image, 0), 0, QCOW2_COPIED);
    two_on_one(image);
    test_image_set_refcount(image, kept, 2);
    test_image_set_refcount(image, freed, 0);
    return true;
}

static bool data_on(struct test_image *image, uint64_t offset)
{
    change(image, test_image_l2_at(image, 1), offset & QCOW2_L2_OFFSET, QCOW2_L2_OFFSET);
    return true;
}

static bool data_on_refblock(struct test_image *image)
{
    return data_on(image, test_image_get(image, test_image_reftable_at(image, 0)));
}

static bool data_on_reftable(struct test_image *image)
{
    return data_on(image, test_image_reftable_at(image, 0));
}

static bool data_on_l1(struct test_image *image)
{
    return data_on(image, test_image_l1_at(image, 0));
}

static bool data_on_l2(struct test_image *image)
{
    return data_on(image, test_image_get(image, test_image_l1_at(image, 0)));
}

/* Every count agrees, and still guest writes would land on the L1 table. */
static bool data_on_l1_counted(struct test_image *image)
{
    if (image->geo.refcount_max < 2) {
        return false;
    }
    uint64_t l1_cluster = test_image_l1_at(image, 0) >> image->geo.cluster_bits;
    uint64_t freed = data_cluster(image, 1);
    if (test_image_refcount(image, freed) != 1) {
        return false;
    }
    data_on_l1(image);
    change(image, test_image_l2_at(image, 1), 0, QCOW2_COPIED);
    test_image_set_refcount(image, l1_cluster, 2);
    test_image_set_refcount(image, freed, 0);
    return true;
}

static bool l2_entry_outside(struct test_image *image)
{
    return data_on(image, 1ULL << 45);
}

static bool l2_entry_just_outside(struct test_image *image)
{
    return data_on(image, round_up_to(image->len_bytes, image->geo.cluster_bytes));
}

static bool l2_entry_unaligned(struct test_image *image)
{
    if (image->geo.cluster_bytes == 512) {
        return false;
    }
    change(image, test_image_l2_at(image, 1), 512, 0);
    return true;
}

static bool l2_entry_reserved(struct test_image *image)
{
    change(image, test_image_l2_at(image, 1), 1ULL << 57, 0);
    return true;
}

static bool zero_flag_in_v2(struct test_image *image)
{
    if (image->geo.has_zero_flag) {
        return false;
    }
    change(image, test_image_l2_at(image, 1), QCOW2_ZERO, 0);
    return true;
}

static bool zero_cluster_outside(struct test_image *image)
{
    if (!image->geo.has_zero_flag || image->geo.extended_l2) {
        return false;
    }
    change(image, test_image_l2_at(image, 1), QCOW2_ZERO, 0);
    return l2_entry_outside(image);
}

static bool compressed_outside(struct test_image *image)
{
    uint64_t at = test_image_l2_at(image, 1);
    test_image_put(image, at, QCOW2_COMPRESSED | 1ULL << 45);
    if (image->geo.extended_l2) {
        test_image_put(image, at + 8, 0);
    }
    return true;
}

/* Takes over the data cluster as if it held compressed bytes. */
static bool compressed_copied(struct test_image *image)
{
    uint64_t at = test_image_l2_at(image, 1);
    change(image, at, QCOW2_COMPRESSED | QCOW2_COPIED, 0);
    if (image->geo.extended_l2) {
        test_image_put(image, at + 8, 0);
    }
    return true;
}

static bool compressed_with_bitmap(struct test_image *image)
{
    if (!image->geo.extended_l2) {
        return false;
    }
    change(image, test_image_l2_at(image, 1), QCOW2_COMPRESSED, QCOW2_COPIED);
    return true;
}

static bool subcluster_both(struct test_image *image)
{
    if (!image->geo.extended_l2) {
        return false;
    }
    change(image, test_image_l2_at(image, 1) + 8, 1ULL << 37 | 1ULL << 5, 0);
    return true;
}

static bool subcluster_without_cluster(struct test_image *image)
{
    if (!image->geo.extended_l2) {
        return false;
    }
    test_image_put(image, test_image_l2_at(image, 1), 0);
    return true;
}

static bool refblock_outside(struct test_image *image)
{
    test_image_put(image, test_image_reftable_at(image, 0), 1ULL << 45);
    return true;
}

static bool refblock_unaligned(struct test_image *image)
{
    if (image->geo.cluster_bytes == 512) {
        return false;
    }
    change(image, test_image_reftable_at(image, 0), 512, 0);
    return true;
}

static bool refblock_reserved(struct test_image *image)
{
    change(image, test_image_reftable_at(image, 0), 8, 0);
    return true;
}

static bool refblock_missing(struct test_image *image)
{
    test_image_put(image, test_image_reftable_at(image, 0), 0);
    return true;
}

static bool refblock_twice(struct test_image *image)
{
    uint64_t entry = test_image_get(image, test_image_reftable_at(image, 0));
    if (test_image_get(image, test_image_reftable_at(image, 1)) != 0) {
        return false;
    }
    test_image_put(image, test_image_reftable_at(image, 1), entry);
    return true;
}

static bool l1_entry_reserved(struct test_image *image)
{
    change(image, test_image_l1_at(image, 0), 1ULL << 60, 0);
    return true;
}

static bool l1_entry_outside(struct test_image *image)
{
    change(image, test_image_l1_at(image, 0), 1ULL << 45, QCOW2_L1_OFFSET);
    return true;
}

static bool l1_entry_unaligned(struct test_image *image)
{
    if (image->geo.cluster_bytes == 512) {
        return false;
    }
    change(image, test_image_l1_at(image, 0), 512, 0);
    return true;
}

#define COPIED_WRONG "COPIED does not match the refcount"

const struct damage test_damages[] = {
    {"nothing", nothing, VERDICT_CLEAN, 0, true, false, NULL},
    {"leaked cluster", leaked_cluster, VERDICT_LEAKS, 1, true, false, "has refcount 1 and 0 ref"},
    {"leaked count", leaked_count, VERDICT_LEAKS, 1, true, false, "has refcount 2 and 1 ref"},
    {"count past end", count_past_end, VERDICT_CLEAN, 0, true, false, NULL},
    {"data count 0", count_of_data_zero, VERDICT_CORRUPT, 0, true, false, "has refcount 0 and"},
    {"L2 count 0", count_of_l2_zero, VERDICT_CORRUPT, 0, true, false, "has refcount 0 and"},
    {"header count 0", count_of_header_zero, VERDICT_CORRUPT, 0, true, false, "cluster 0 has refc"},
    {"COPIED in L2", toggle_l2_copied, VERDICT_CORRUPT, 0, true, false, COPIED_WRONG},
    {"COPIED in L1", toggle_l1_copied, VERDICT_CORRUPT, 0, true, false, COPIED_WRONG},
    {"two on one", two_on_one, VERDICT_CORRUPT, 0, true, false, "has refcount "},
    {"two on one, 1 bit", two_on_one_uncountable, VERDICT_CORRUPT, 0, false, false, "and 2 ref"},
    {"two on one, counted", two_on_one_counted, VERDICT_CLEAN, 0, true, false, NULL},
    {"data on refblock", data_on_refblock, VERDICT_CORRUPT, 0, true, false, "holds metadata"},
    {"data on reftable", data_on_reftable, VERDICT_CORRUPT, 0, true, false, "holds metadata"},
    {"data on L1", data_on_l1, VERDICT_CORRUPT, 0, false, false, "holds metadata"},
    {"data on L2", data_on_l2, VERDICT_CORRUPT, 0, false, false, "holds an L2 table"},
    {"data on L1, counted", data_on_l1_counted, VERDICT_CORRUPT, 0, false, true, "holds metadata"},
    {"L2 entry outside", l2_entry_outside, VERDICT_CORRUPT, 0, false, false, "outside of the file"},
    {"L2 entry just outside", l2_entry_just_outside, VERDICT_CORRUPT, 0, false, false,
     "outside of"},
    {"L2 entry unaligned", l2_entry_unaligned, VERDICT_CORRUPT, 0, false, false, "not aligned"},
    {"L2 entry reserved", l2_entry_reserved, VERDICT_CORRUPT, 0, false, false, "reserved bits"},
    {"zero flag in v2", zero_flag_in_v2, VERDICT_CORRUPT, 0, false, true, "reserved bits"},
    {"zero outside", zero_cluster_outside, VERDICT_CORRUPT, 0, true, false, "outside of the file"},
    {"compressed outside", compressed_outside, VERDICT_CORRUPT, 0, false, false, "outside of the"},
    {"compressed COPIED", compressed_copied, VERDICT_CORRUPT, 0, true, false, "COPIED is set on"},
    {"compressed bitmap", compressed_with_bitmap, VERDICT_CORRUPT, 0, true, false, "bitmap"},
    {"subcluster both", subcluster_both, VERDICT_CORRUPT, 0, false, false, "bitmap contradicts"},
    {"subcluster no place", subcluster_without_cluster, VERDICT_CORRUPT, 0, false, false,
     "bitmap contradicts"},
    {"refblock outside", refblock_outside, VERDICT_CORRUPT, 0, true, false, "block is outside"},
    {"refblock unaligned", refblock_unaligned, VERDICT_CORRUPT, 0, true, false, "block is not al"},
    {"refblock reserved", refblock_reserved, VERDICT_CORRUPT, 0, true, false, "reserved bits"},
    {"refblock missing", refblock_missing, VERDICT_CORRUPT, 0, true, false, "no refcount block"},
    {"refblock twice", refblock_twice, VERDICT_CORRUPT, 0, true, false, "named twice"},
    {"L1 entry reserved", l1_entry_reserved, VERDICT_CORRUPT, 0, false, false, "reserved bits"},
    {"L1 entry outside", l1_entry_outside, VERDICT_CORRUPT, 0, false, false, "outside of the file"},
    {"L1 entry unaligned", l1_entry_unaligned, VERDICT_CORRUPT, 0, false, false, "not aligned"},
};
const size_t test_damage_count = ARRAY_LEN(test_damages);
