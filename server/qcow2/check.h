/* SPDX-License-Identifier: BSD-2-Clause */
/*
 * Consistency of a whole image, and repair. Independent of the running engine on purpose: it reads
 * the tables by itself, so that it can judge what the engine wrote. The simulator's judge and
 * `qcowd check`; also what rebuilds refcounts when an image with the dirty bit is opened.
 *
 * Finds what `qemu-img check` finds: leaks, refcount too low, COPIED wrong (L1, L2), references
 * that overlap metadata or each other, beyond the end of the file, unaligned, reserved bits, bad
 * subcluster bits. References counted: header, L1, L2, data and compressed clusters (each host
 * cluster they touch), refcount table and blocks, snapshot table with its L1s and L2s, bitmap
 * directory, tables and data, LUKS header.
 */
#ifndef QCOWD_QCOW2_CHECK_H
#define QCOWD_QCOW2_CHECK_H

#include <stdint.h>

#include "base/errtext.h"
#include "qcow2/header.h"

enum check_repair { CHECK_ONLY, CHECK_REPAIR_LEAKS, CHECK_REPAIR_ALL };

struct check_result {
    uint64_t corruptions; /* still there when it returned */
    uint64_t leaks;
    uint64_t corruptions_fixed;
    uint64_t leaks_fixed;
    uint64_t allocated_clusters; /* guest clusters with data of their own */
    uint64_t compressed_clusters;
    uint64_t total_clusters;  /* guest clusters */
    uint64_t image_end_bytes; /* end of the last cluster in use */
};

struct check_options {
    enum check_repair repair;
    /* Called for each finding with one line; may be NULL. Called at most 1000 times, then a line
     * says how many more there are. */
    void (*finding)(void *arg, const char *line);
    /* Called now and then with the share done in [0, 1000]; may be NULL. */
    void (*progress)(void *arg, unsigned permille);
    void *arg;
};

/*
 * Checks and, if asked, repairs. 0: the check itself worked, see *result (corruptions and leaks may
 * be non-zero). -EIO, -ENOMEM, ...: it could not be carried out; err says why. Repair order keeps
 * O1 at every moment: counts go up and are durable before anything relies on them, down after; a
 * rebuild writes new refcount blocks and table into free space past the end, flushes, then switches
 * the header. Repair all also corrects COPIED flags, drops damaged bitmaps
 * and keeps the others, and clears the dirty and corrupt bits once
 * nothing corrupt is left. Entries that point nowhere sane are reported and left (reads of them
 * give EIO), unless they can be zeroed without losing data. While such entries are left, leaks are
 * kept (they may be what those entries once led to), and the file is not made to grow over clusters
 * that they name. Memory: about 4 bytes for each host cluster in use (two-level; a sparse or lying
 * file costs nothing), at most LIMIT_CHECK_BYTES. May suspend.
 */
int co_qcow2_check(struct disk *disk, struct header *header, const struct check_options *options,
                   struct check_result *result, struct errtext *err);

#endif
