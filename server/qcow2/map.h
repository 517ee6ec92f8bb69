/* SPDX-License-Identifier: BSD-2-Clause */
/*
 * From guest offset to what stands there, and back: look-up, and publishing a change. L1 and L2
 * entries are understood here and nowhere else. Every entry is checked when it is used (O10).
 */
#ifndef QCOWD_QCOW2_MAP_H
#define QCOWD_QCOW2_MAP_H

#include <stdbool.h>
#include <stdint.h>

#include "qcow2/geometry.h"
#include "qcow2/slices.h"

struct qcow2;

enum mapping_kind {
    MAPPING_UNALLOCATED, /* the backing chain shows through; zeroes without one */
    MAPPING_ZERO,
    MAPPING_DATA,
    MAPPING_COMPRESSED,
};

/* What stands at one guest offset, for `len` bytes on from there. */
struct mapping {
    enum mapping_kind kind;
    /* A host cluster stands behind it: always with DATA, perhaps with the first two. In an external
     * data file every guest cluster has its place, and nobody else can have it. */
    bool has_host;
    bool named;          /* the entry names it, so its space may be taken */
    bool copied;         /* and it is ours alone: may be written in place */
    uint64_t len;        /* contiguous in the file where has_host */
    host_off host;       /* of the byte asked for, when has_host */
    uint64_t descriptor; /* of the cluster, when compressed */
};

/*
 * Looks up [guest, guest + max_len), as far as one L2 slice and one kind reach. -EIO (disk, or a
 * damaged entry), -ENOMEM. Suspends only when a slice has to be read.
 */
int co_map(struct qcow2 *q, guest_off guest, uint64_t max_len, struct mapping *mapping);

/* One L2 entry, decoded as far as byte order goes. bitmap is 0 without extended L2. */
struct l2_entry {
    uint64_t descriptor;
    uint64_t bitmap;
};

#define SUBCLUSTERS_ALL 0xffffffffULL

/* The entry of a new cluster. For extended L2, `bitmap` says which subclusters are what. */
static inline uint64_t l2_descriptor(host_off host)
{
    return host.bytes | QCOW2_COPIED;
}

struct l2_entry l2_entry_get(const struct geometry *geo, const uint8_t *slice_bytes,
                             uint32_t index);
void l2_entry_set(const struct geometry *geo, uint8_t *slice_bytes, uint32_t index,
                  struct l2_entry entry);

/* The class of a whole entry, checked. -EIO after engine_corrupt(). Never suspends. */
enum entry_class {
    ENTRY_EMPTY,    /* no host cluster */
    ENTRY_STANDARD, /* host cluster, perhaps behind a zero flag or partly allocated */
    ENTRY_COMPRESSED,
};
int map_entry_class(struct qcow2 *q, guest_off guest, struct l2_entry entry,
                    enum entry_class *entry_class);
static inline host_off l2_entry_host(struct l2_entry entry)
{
    return (host_off){entry.descriptor & QCOW2_L2_OFFSET};
}

/*
 * Whether a standard entry names a host cluster. In an external data file the first one lies at 0,
 * and COPIED alone says so: section "Standard Cluster Descriptor".
 */
static inline bool l2_entry_has_host(const struct geometry *geo, struct l2_entry entry)
{
    uint64_t mask = geo->data_file ? QCOW2_L2_OFFSET | QCOW2_COPIED : QCOW2_L2_OFFSET;
    return (entry.descriptor & mask) != 0;
}

/* Whether it is ours alone. Nobody shares a place in a data file, even where COPIED is missing. */
static inline bool l2_entry_is_own(const struct geometry *geo, struct l2_entry entry)
{
    return !(entry.descriptor & QCOW2_COMPRESSED) && l2_entry_has_host(geo, entry) &&
           (geo->data_file || (entry.descriptor & QCOW2_COPIED));
}

/*
 * Makes sure that the L2 table for `guest` exists and is ours alone: allocates one, or copies one
 * that a snapshot shares. Nothing on disk refers to it before the next commit. -ENOSPC, -EIO,
 * -ENOMEM. May suspend.
 */
int co_map_prepare(struct qcow2 *q, guest_off guest);

/*
 * The slice that holds the entry of `guest`, and which entry in it; the table must exist. For
 * looking only, until the next suspension. -EIO, -ENOMEM. May suspend before it returns.
 */
int co_map_slice(struct qcow2 *q, guest_off guest, struct slice **slice, uint32_t *index);

/*
 * The slice that holds the entry of `guest`, in a table prepared by co_map_prepare(), ready to be
 * changed (slice_modify() is done): change it before the next suspension. *index is the entry in
 * it. Also arms the commit timer. May suspend before it returns.
 */
int co_map_change(struct qcow2 *q, guest_off guest, struct slice **slice, uint32_t *index);

/* Whether the L2 table of `guest` exists; does not suspend. */
bool map_has_table(const struct qcow2 *q, guest_off guest);

/*
 * Drops the L2 table whose first entry is that of `start`, and all that it maps; snapshots keep
 * what they share of it. Nobody may change a mapping in its range meanwhile. 0, -EIO, -ENOMEM:
 * nothing was dropped. May suspend.
 */
int co_map_drop_table(struct qcow2 *q, guest_off start);

/* Puts what an entry that is being replaced holds into the quarantine: call in the same step. With
 * an external data file there is nothing to put there. */
void map_retire_entry(struct qcow2 *q, struct l2_entry entry);

#endif
