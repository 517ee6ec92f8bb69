/* SPDX-License-Identifier: BSD-2-Clause */
/*
 * What the rooms of the checker share: check_walk.c finds every reference there is, check_compare.c
 * holds them against the refcounts on disk, check_repair.c writes; check.c is the front door and
 * the order of things.
 *
 * A reference is counted wherever it leads inside the file, whoever holds it. Two kinds of cluster
 * are remembered besides: those that may have one reference only (exclusive metadata), and L2
 * tables, which may be shared but only as L2 tables. Each distinct L2 table is read once, however
 * many L1 entries of however many snapshots name it: its entries then count that many times. The
 * same goes for tables that overlap each other, so the work is bounded by what the file really
 * holds.
 */
#ifndef QCOWD_QCOW2_CHECK_STATE_H
#define QCOWD_QCOW2_CHECK_STATE_H

#include "qcow2/check.h"
#include "qcow2/refmap.h"

/* More than any refcount structure has. */
#define DANGLING_WINDOW_CLUSTERS (1ULL << 22)

/* What an entry of the refcount table leads to. */
enum block_state { BLOCK_ABSENT, BLOCK_GOOD, BLOCK_BAD };

/* What the refcount on disk is, as far as flags care. */
enum disk_count { DISK_COUNT_ZERO, DISK_COUNT_ONE, DISK_COUNT_MORE };

struct check_state {
    struct disk *disk;
    struct header *header;
    const struct geometry *geo;
    const struct check_options *options;
    struct check_result *result;
    struct errtext *err;
    bool quiet; /* no findings, no progress */
    char path[256];

    uint64_t budget_bytes;
    struct refmap refs;          /* all references to a cluster */
    struct refmap exclusive;     /* of these, as metadata that nothing may share */
    struct refmap tables;        /* of these, as an L2 table */
    struct refmap active_tables; /* of these, from the active L1 table */
    /* With an external data file: 1 + the index of the L1 entry that names an L2 table. */
    struct refmap table_places;
    struct refmap disk_counts; /* enum disk_count */
    /* Named by entries although past the end of the file, up to DANGLING_WINDOW_CLUSTERS behind it:
     * what a repair put there would come to life under those entries. */
    struct refmap dangling;

    uint64_t *reftable;
    uint8_t *block_states; /* enum block_state, for each entry of the refcount table */
    size_t reftable_entries;
    /* Refcounts matter below this cluster: the end of the file and of what is referenced. */
    uint64_t end_cluster;

    /* The run of data or hole that was looked at last. */
    uint64_t extent_start;
    uint64_t extent_end;
    bool extent_is_hole;

    uint64_t finding_lines;
    unsigned last_permille;
    /* Entries that lead nowhere sane: what they once led to looks leaked and must not be freed. */
    uint64_t damaged_entries;
    /* The refcount table or blocks cannot be mended in place. */
    bool structure_damaged;
};

/* check.c */
void check_corruption(struct check_state *state, const char *format, ...)
    __attribute__((format(printf, 2, 3)));
void check_leak(struct check_state *state, const char *format, ...)
    __attribute__((format(printf, 2, 3)));
/* Says something that is no finding, also while repairing. */
void check_note(struct check_state *state, const char *line);
void check_progress(struct check_state *state, unsigned from_permille, unsigned to_permille,
                    uint64_t done, uint64_t total);
int check_failed(struct check_state *state, int rc, const char *what);
/*
 * Reads a part of a table that begins inside the file. *is_hole: there is nothing but zeroes, and
 * buf is untouched.
 */
int co_check_read(struct check_state *state, uint64_t offset, void *buf, size_t len, bool *is_hole);

/*
 * check_bitmaps.c: drops the bitmaps that the walk has found to be damaged, and keeps the others;
 * *dropped: how many. Where a crash ends that, the image has none. May suspend.
 */
int co_check_drop_bitmaps(struct check_state *state, uint32_t *dropped);

/* check_walk.c: fills the maps, the refcount table and what findings it meets on the way. */
int co_check_walk(struct check_state *state);

/* How an L2 entry is to be understood. */
struct l2_view {
    bool is_compressed;
    bool has_reserved_bits;
    bool has_bad_bitmap;  /* subclusters contradict each other or have no cluster */
    bool is_bad_place;    /* unaligned or outside of the file */
    bool is_outside;      /* of is_bad_place */
    bool is_misplaced;    /* in a data file, but not at its guest offset */
    bool lacks_copied;    /* in a data file, where everybody is alone */
    bool has_data_place;  /* in a data file */
    bool reads_zero_only; /* the place is not needed for reading */
    uint64_t start;       /* of what the entry leads to, sane or not; len 0: to nothing */
    uint64_t len_bytes;
};
/* `guest` is the offset of the cluster on the guest's disk, as far as check_l2_guest() knows it. */
struct l2_view check_l2_view(const struct check_state *state, guest_off guest, uint64_t descriptor,
                             uint64_t bitmap);

/*
 * Where the first cluster of the L2 table in `cluster` lies on the guest's disk: known for tables
 * of the active L1 table with an external data file, as only there it matters.
 */
#define CHECK_GUEST_UNKNOWN ((guest_off){UINT64_MAX})
guest_off check_l2_guest(struct check_state *state, uint64_t cluster);
static inline guest_off check_entry_guest(const struct check_state *state, guest_off table,
                                          uint64_t index)
{
    return table.bytes == UINT64_MAX
               ? table
               : (guest_off){table.bytes + (index << state->geo->cluster_bits)};
}

/* check_compare.c */
enum compare_mode {
    COMPARE_REPORT, /* findings */
    COMPARE_RAISE,  /* writes counts that are too low */
    COMPARE_LOWER,  /* writes counts that are too high */
    COMPARE_ADOPT,  /* takes leaks over into state->refs, so that a rebuild keeps them */
};
int co_check_compare(struct check_state *state, enum compare_mode mode);
/* Metadata that something else refers to as well. */
void check_report_overlaps(struct check_state *state);
/* Loads the class of every refcount on disk below end_cluster. */
int co_check_load_counts(struct check_state *state);

/* check_repair.c */
int co_check_repair(struct check_state *state);

#endif
