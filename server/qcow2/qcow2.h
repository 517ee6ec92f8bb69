/* SPDX-License-Identifier: BSD-2-Clause */
/*
 * The qcow2 engine's front door: open an image (and its backing chain) as a struct image.
 */
#ifndef QCOWD_QCOW2_QCOW2_H
#define QCOWD_QCOW2_QCOW2_H

#include <stdbool.h>
#include <stdint.h>

#include "image.h"
#include "io/world.h"
#include "qcow2/chain.h"
#include "qcow2/key.h"

enum trim_policy {
    TRIM_UNMAP,  /* freed clusters are punched out of the host file */
    TRIM_IGNORE, /* TRIM changes nothing; WRITE_ZEROES keeps its clusters */
};

struct qcow2_open_options {
    bool read_only;
    bool direct; /* --cache none */
    enum trim_policy trim;
    uint64_t cache_bytes; /* budget for L2 slices and refcount blocks; 0: LIMIT_SLICE_CACHE_BYTES */
    /* A commit is started this long after the first change that is not yet committed; 0: 5 s. */
    uint64_t commit_interval_ms;
    /* Bits of bitmaps are saved this often while there is something to gain; 0: 60 s. */
    uint64_t checkpoint_interval_ms;
    /* What a backing file is, anywhere in the chain, whose format neither header nor name say. */
    enum backing_format backing_format;
    /*
     * Opened for a look at bitmaps, or changes to them, and nothing else: neither backing files nor
     * an external data file are opened, and there are no calls for guest data.
     */
    bool bitmaps_only;
    /* Read-only: the disk as it was at this internal snapshot, by its name, or else its ID; NULL:
     * as it is. Used while it is opened. */
    const char *snapshot;
    /*
     * Passphrases of the encrypted images of the chain, from the top; the last one is for all that
     * follow, too. Used while the chain is opened, and not after.
     */
    const struct image_key *keys;
    unsigned key_count;
};

/*
 * Opens `path` as qcow2, and its backing files read-only. For writing: refcounts are rebuilt if the
 * dirty bit is set; unknown autoclear bits are cleared and flushed; the file is locked. On success
 * *out is owned by the caller, who ends it with image->ops->co_close(). On failure nothing has been
 * written to a file that was found damaged, and err says file, field, value and what is allowed.
 * -EINVAL, -ENOTSUP, -EIO, -ENOMEM, -EAGAIN (locked), -EACCES (a passphrase is missing or wrong),
 * -ENOENT (no such snapshot), -ELOOP (a chain that names itself), and what opening a file can
 * return. May suspend.
 */
int co_qcow2_open(struct world *world, const char *path, const struct qcow2_open_options *options,
                  struct image **out, struct errtext *err);

/* Opens a raw file (or block device) as an image. Same contract. */
int co_raw_open(struct world *world, const char *path, bool read_only, bool direct,
                struct image **out, struct errtext *err);

#endif
