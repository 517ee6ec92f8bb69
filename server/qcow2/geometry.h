/* SPDX-License-Identifier: BSD-2-Clause */
/*
 * Offsets and what an image's parameters make of them. A byte of the guest's disk and a byte of the
 * image file are different types, so that the compiler catches the mix-up that corrupts; arithmetic
 * between them goes through the named conversions here. Pure functions.
 */
#ifndef QCOWD_QCOW2_GEOMETRY_H
#define QCOWD_QCOW2_GEOMETRY_H

#include <stdbool.h>
#include <stdint.h>

#include "base/check.h"
#include "qcow2/ondisk.h"

typedef struct {
    uint64_t bytes;
} guest_off;

typedef struct {
    uint64_t bytes;
} host_off;

struct geometry {
    uint32_t cluster_bits;
    uint64_t cluster_bytes;
    bool extended_l2;
    bool has_zero_flag;        /* version 3: the zero flag may be used */
    uint32_t l2_entry_bytes;   /* 8, or 16 with extended L2 */
    uint32_t l2_entries;       /* of a whole table */
    uint32_t l2_bits;          /* log2 of l2_entries */
    uint32_t slice_bytes;      /* cached unit of an L2 table or refcount block */
    uint32_t slice_l2_entries; /* L2 entries in a slice */
    uint32_t refcount_order;
    uint64_t refcount_max;     /* largest count an entry can hold */
    uint64_t refblock_entries; /* of a whole refcount block */
    uint32_t slice_refcounts;  /* refcounts in a slice */
    uint32_t subcluster_bits;  /* cluster_bits without extended L2 */
    uint64_t subcluster_bytes;
    uint32_t subclusters; /* 32 with extended L2, else 1 */
    uint64_t size_bytes;  /* the guest's disk */
    /* Set by who reads or makes a header; geometry_init() leaves them false. */
    bool data_file;     /* guest clusters lie in a file of their own, each at its guest offset */
    bool data_file_raw; /* and that file is the guest's disk, whatever L2 entries say of it */
};

/* Parameters must have been validated (header.h). */
void geometry_init(struct geometry *geo, uint32_t cluster_bits, bool extended_l2, uint32_t version,
                   uint32_t refcount_order, uint64_t size_bytes);

static inline uint64_t guest_cluster_index(const struct geometry *geo, guest_off guest)
{
    return guest.bytes >> geo->cluster_bits;
}

static inline uint64_t host_cluster_index(const struct geometry *geo, host_off host)
{
    return host.bytes >> geo->cluster_bits;
}

static inline host_off host_cluster_start(const struct geometry *geo, uint64_t index)
{
    return (host_off){index << geo->cluster_bits};
}

static inline uint64_t offset_in_cluster(const struct geometry *geo, guest_off guest)
{
    return guest.bytes & (geo->cluster_bytes - 1);
}

static inline bool host_is_aligned(const struct geometry *geo, host_off host)
{
    return (host.bytes & (geo->cluster_bytes - 1)) == 0;
}

static inline uint64_t l1_index(const struct geometry *geo, guest_off guest)
{
    return guest.bytes >> geo->cluster_bits >> geo->l2_bits;
}

static inline uint32_t l2_index(const struct geometry *geo, guest_off guest)
{
    return (uint32_t)(guest.bytes >> geo->cluster_bits) & (geo->l2_entries - 1);
}

/* Guest bytes that one L2 slice describes. */
static inline uint64_t slice_guest_bytes(const struct geometry *geo)
{
    return (uint64_t)geo->slice_l2_entries << geo->cluster_bits;
}

/* L1 entries needed for the whole disk. */
static inline uint64_t l1_entries_needed(const struct geometry *geo)
{
    return div_round_up(div_round_up(geo->size_bytes, geo->cluster_bytes), geo->l2_entries);
}

/* Where the compressed data of a descriptor lies: byte offset, and bytes up to the end of its last
 * 512-byte sector. Offsets above bit 55 are kept, for the caller to refuse. */
static inline void compressed_place(const struct geometry *geo, uint64_t descriptor,
                                    host_off *start, uint64_t *len_bytes)
{
    unsigned x = 62 - (geo->cluster_bits - 8);
    uint64_t sectors = ((descriptor & ~(QCOW2_COPIED | QCOW2_COMPRESSED)) >> x) + 1;
    start->bytes = descriptor & ((1ULL << x) - 1);
    *len_bytes = sectors * QCOW2_COMPRESSED_SECTOR_BYTES -
                 (start->bytes & (QCOW2_COMPRESSED_SECTOR_BYTES - 1));
}

/* Reads and sets entry `index` of a refcount block (or a slice of one); widths below 8 bits pack
 * from the low bit up. Section "Refcount blocks". */
uint64_t refcount_get(uint32_t order, const uint8_t *block, uint64_t index);
void refcount_set(uint32_t order, uint8_t *block, uint64_t index, uint64_t value);

#endif
