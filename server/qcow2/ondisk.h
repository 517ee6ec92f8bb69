/* SPDX-License-Identifier: BSD-2-Clause */
/*
 * qcow2 as it lies on disk: layouts, magic numbers and bit masks, from docs/interop/qcow2.txt of
 * QEMU. Nothing else in the engine knows a byte offset. Every struct's size and offsets are
 * asserted at the end. Fields are byte arrays, read with get_be*(), so that alignment never
 * matters.
 */
#ifndef QCOWD_QCOW2_ONDISK_H
#define QCOWD_QCOW2_ONDISK_H

#include <stddef.h>
#include <stdint.h>

typedef struct {
    uint8_t bytes[2];
} be16_t;
typedef struct {
    uint8_t bytes[4];
} be32_t;
typedef struct {
    uint8_t bytes[8];
} be64_t;

#define QCOW2_MAGIC 0x514649fbU

#define QCOW2_CLUSTER_BITS_MIN          9U
#define QCOW2_CLUSTER_BITS_MAX          21U
#define QCOW2_CLUSTER_BITS_MIN_EXTENDED 14U
#define QCOW2_REFCOUNT_ORDER_MAX        6U
#define QCOW2_REFCOUNT_ORDER_V2         4U
#define QCOW2_SUBCLUSTERS               32U

/* The header, section "Header"; fields from incompatible_features on are version 3 only. */
struct qcow2_disk_header {
    be32_t magic;
    be32_t version;
    be64_t backing_file_offset;
    be32_t backing_file_size;
    be32_t cluster_bits;
    be64_t size;
    be32_t crypt_method;
    be32_t l1_size;
    be64_t l1_table_offset;
    be64_t refcount_table_offset;
    be32_t refcount_table_clusters;
    be32_t nb_snapshots;
    be64_t snapshots_offset;
    be64_t incompatible_features;
    be64_t compatible_features;
    be64_t autoclear_features;
    be32_t refcount_order;
    be32_t header_length;
    uint8_t compression_type; /* present when header_length > 104 */
    uint8_t padding[7];
};

#define QCOW2_HEADER_BYTES_V2     72U
#define QCOW2_HEADER_BYTES_V3_MIN 104U

enum qcow2_incompatible {
    QCOW2_INCOMPAT_DIRTY = 1U << 0,
    QCOW2_INCOMPAT_CORRUPT = 1U << 1,
    QCOW2_INCOMPAT_DATA_FILE = 1U << 2,
    QCOW2_INCOMPAT_COMPRESSION = 1U << 3,
    QCOW2_INCOMPAT_EXTENDED_L2 = 1U << 4,
};
#define QCOW2_INCOMPAT_KNOWN 0x1fU

enum qcow2_compatible { QCOW2_COMPAT_LAZY_REFCOUNTS = 1U << 0 };

enum qcow2_autoclear {
    QCOW2_AUTOCLEAR_BITMAPS = 1U << 0,
    QCOW2_AUTOCLEAR_RAW_DATA_FILE = 1U << 1,
};
/* Of our own: the write-intent extension counts. */
#define QCOW2_AUTOCLEAR_INTENT (1ULL << 47)

enum qcow2_crypt { QCOW2_CRYPT_NONE = 0, QCOW2_CRYPT_AES = 1, QCOW2_CRYPT_LUKS = 2 };

enum qcow2_compression { QCOW2_COMPRESSION_ZLIB = 0, QCOW2_COMPRESSION_ZSTD = 1 };

/* Header extensions: type and length, then data padded to a multiple of 8. */
struct qcow2_disk_extension {
    be32_t type;
    be32_t len;
};

#define QCOW2_EXT_END            0x00000000U
#define QCOW2_EXT_BACKING_FORMAT 0xe2792acaU
#define QCOW2_EXT_FEATURE_NAMES  0x6803f857U
#define QCOW2_EXT_BITMAPS        0x23852875U
#define QCOW2_EXT_CRYPTO         0x0537be77U
#define QCOW2_EXT_DATA_FILE      0x44415441U
#define QCOW2_EXT_SPARE          0x71637370U /* 'qcsp', our own: room for others (header_extension.h) */

struct qcow2_disk_feature_name {
    uint8_t type; /* 0 incompatible, 1 compatible, 2 autoclear */
    uint8_t bit;
    uint8_t name[46]; /* zero padded, not always terminated */
};

struct qcow2_disk_bitmaps_extension {
    be32_t nb_bitmaps;
    be32_t reserved;
    be64_t directory_size;
    be64_t directory_offset;
};

/* An entry of the snapshot table: fixed part, then extra data, id, name, padded to 8. */
struct qcow2_disk_snapshot {
    be64_t l1_table_offset;
    be32_t l1_size;
    be16_t id_size;
    be16_t name_size;
    be32_t date_sec;
    be32_t date_nsec;
    be64_t vm_clock_nsec;
    be32_t vm_state_size;
    be32_t extra_data_size;
};

/* An entry of the bitmap directory: fixed part, then extra data and name, padded to 8. */
struct qcow2_disk_bitmap {
    be64_t bitmap_table_offset;
    be32_t bitmap_table_size;
    be32_t flags;
    uint8_t type;
    uint8_t granularity_bits;
    be16_t name_size;
    be32_t extra_data_size;
};

/* Of our own, qcowd-format(7): write-intent regions. Behind `names` a bit for each region follows,
 * the first in bit 0 of the first byte. */
#define QCOW2_EXT_INTENT 0x71637769U /* "qcwi" */
struct qcow2_disk_intent {
    be32_t version;
    be32_t region_bits;
    be32_t region_count;
    be32_t name_slots;
    be32_t name_count;
    be32_t reserved;
    be64_t names[]; /* name_slots hashes of names */
};

enum qcow2_bitmap_flags {
    QCOW2_BITMAP_IN_USE = 1U << 0, /* was not saved: the bits on disk mean nothing */
    QCOW2_BITMAP_AUTO = 1U << 1,   /* enabled: whoever writes records */
    QCOW2_BITMAP_EXTRA_COMPATIBLE = 1U << 2,
};

#define QCOW2_BITMAP_TYPE_DIRTY 1U

/* Bitmap table entry: bits 9-55 offset of the cluster with the bits; without one, bit 0 says what
 * they all are. */
#define QCOW2_BITMAP_TABLE_OFFSET   0x00fffffffffffe00ULL
#define QCOW2_BITMAP_TABLE_RESERVED 0xff000000000001feULL
#define QCOW2_BITMAP_TABLE_ALL_SET  1ULL

/* L1 entry: bits 9-55 offset of the L2 table, bit 63 COPIED, the rest reserved (zero). */
#define QCOW2_L1_OFFSET   0x00fffffffffffe00ULL
#define QCOW2_L1_RESERVED 0x7f000000000001ffULL

/* Refcount table entry: bits 9-63 offset of the refcount block. */
#define QCOW2_REFTABLE_OFFSET   0xfffffffffffffe00ULL
#define QCOW2_REFTABLE_RESERVED 0x00000000000001ffULL

/* L2 entry, standard cluster descriptor. */
#define QCOW2_COPIED      (1ULL << 63) /* refcount is exactly one: may be written in place */
#define QCOW2_COMPRESSED  (1ULL << 62)
#define QCOW2_ZERO        (1ULL << 0) /* version 3, without extended L2 */
#define QCOW2_L2_OFFSET   0x00fffffffffffe00ULL
#define QCOW2_L2_RESERVED 0x3f000000000001feULL
/* Compressed cluster descriptor: x = 62 - (cluster_bits - 8); bits 0..x-1 host offset (bits 56 and
 * up are zero), bits x..61 additional 512-byte sectors. */
#define QCOW2_COMPRESSED_SECTOR_BYTES 512U

/* Extended L2 entry: descriptor as above (bit 0 reserved), then the bitmap: bits 0..31 subcluster n
 * allocated, bits 32..63 subcluster n reads as zeroes. */
struct qcow2_disk_l2_extended {
    be64_t descriptor;
    be64_t bitmap;
};

#define QCOW2_ASSERT_AT(type, field, offset) \
    _Static_assert(offsetof(struct type, field) == (offset), #type "." #field)

_Static_assert(sizeof(struct qcow2_disk_header) == 112, "header");
QCOW2_ASSERT_AT(qcow2_disk_header, backing_file_offset, 8);
QCOW2_ASSERT_AT(qcow2_disk_header, backing_file_size, 16);
QCOW2_ASSERT_AT(qcow2_disk_header, cluster_bits, 20);
QCOW2_ASSERT_AT(qcow2_disk_header, size, 24);
QCOW2_ASSERT_AT(qcow2_disk_header, crypt_method, 32);
QCOW2_ASSERT_AT(qcow2_disk_header, l1_size, 36);
QCOW2_ASSERT_AT(qcow2_disk_header, l1_table_offset, 40);
QCOW2_ASSERT_AT(qcow2_disk_header, refcount_table_offset, 48);
QCOW2_ASSERT_AT(qcow2_disk_header, refcount_table_clusters, 56);
QCOW2_ASSERT_AT(qcow2_disk_header, nb_snapshots, 60);
QCOW2_ASSERT_AT(qcow2_disk_header, snapshots_offset, 64);
QCOW2_ASSERT_AT(qcow2_disk_header, incompatible_features, 72);
QCOW2_ASSERT_AT(qcow2_disk_header, compatible_features, 80);
QCOW2_ASSERT_AT(qcow2_disk_header, autoclear_features, 88);
QCOW2_ASSERT_AT(qcow2_disk_header, refcount_order, 96);
QCOW2_ASSERT_AT(qcow2_disk_header, header_length, 100);
QCOW2_ASSERT_AT(qcow2_disk_header, compression_type, 104);
_Static_assert(sizeof(struct qcow2_disk_extension) == 8, "extension");
_Static_assert(sizeof(struct qcow2_disk_feature_name) == 48, "feature name");
_Static_assert(sizeof(struct qcow2_disk_bitmaps_extension) == 24, "bitmaps extension");
_Static_assert(sizeof(struct qcow2_disk_snapshot) == 40, "snapshot");
QCOW2_ASSERT_AT(qcow2_disk_snapshot, extra_data_size, 36);
_Static_assert(sizeof(struct qcow2_disk_bitmap) == 24, "bitmap");
_Static_assert(sizeof(struct qcow2_disk_intent) == 24, "write-intent regions");
QCOW2_ASSERT_AT(qcow2_disk_bitmap, flags, 12);
QCOW2_ASSERT_AT(qcow2_disk_bitmap, extra_data_size, 20);
_Static_assert(sizeof(struct qcow2_disk_l2_extended) == 16, "extended L2 entry");

#endif
