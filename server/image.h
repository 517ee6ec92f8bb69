/* SPDX-License-Identifier: BSD-2-Clause */
/*
 * What any export can do, whatever stands behind it: the seam between the protocol floor and the
 * engines (qcow2, raw). Offsets and lengths are in guest bytes at any alignment; the caller has
 * checked that they lie inside [0, size_bytes) and that len > 0.
 *
 * Concurrency: any number of calls may be in flight on one image, from coroutines of the image's
 * thread. They are ordered only where O5 says so; a read that overlaps a write in flight sees, per
 * 512-byte sector, the old bytes or the new.
 *
 * Errors, besides those named at each call: -EIO (the host's disk, or damaged metadata), -ENOMEM,
 * -EROFS (image opened read-only), -ESHUTDOWN (closing). After a failed metadata write or fsync all
 * changing calls return -EIO and reads go on (O8).
 */
#ifndef QCOWD_IMAGE_H
#define QCOWD_IMAGE_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "base/errtext.h"

struct image;

enum image_flags {
    /* Durable before the call returns, with all metadata needed to reach it (O4). */
    IMAGE_FUA = 1U << 0,
    /* co_zero: keep or make space allocated, so that a later write cannot fail with -ENOSPC. */
    IMAGE_NO_HOLE = 1U << 1,
    /* co_zero: -ENOTSUP with nothing changed unless it is much quicker than writing zeroes. */
    IMAGE_FAST_ZERO = 1U << 2,
};

/*
 * Where a read found holes: runs, in order and not touching each other, in guest bytes relative to
 * the read's offset. The buffer is NOT filled in these runs. When there are more than fit, the rest
 * is zero-filled in the buffer and counts as data.
 */
#define READ_HOLES_MAX 32U
struct read_holes {
    unsigned count;
    struct {
        size_t offset;
        size_t len;
    } run[READ_HOLES_MAX];
};

/* NBD base:allocation and qemu:allocation-depth in one; and of a dirty bitmap. */
enum extent_flags {
    EXTENT_HOLE = 1U << 0,  /* writing here may need space (NBD_STATE_HOLE) */
    EXTENT_ZERO = 1U << 1,  /* reads as zeroes (NBD_STATE_ZERO) */
    EXTENT_DIRTY = 1U << 2, /* co_bitmap_extents: has changed, or may have */
};

struct extent {
    uint64_t len;
    uint32_t flags;
    /* 0: nowhere in the chain; 1: this image; 2: its backing file; ... */
    uint32_t depth;
};

/* Filled by co_extents: neighbours that are equal in flags and depth are merged. */
struct extent_list {
    struct extent *extents; /* the caller's array */
    unsigned capacity;      /* > 0 */
    unsigned count;
};

/* A dirty bitmap on offer, as clients know it by qemu:dirty-bitmap:NAME. */
struct image_bitmap {
    uint64_t id;      /* never given to another bitmap while the image is open */
    const char *name; /* UTF-8; owned by the image, until the next suspension */
};

/* What an image has done since it was opened, and how it is. */
struct image_statistics {
    uint64_t file_bytes; /* of the image file */
    uint64_t free_bytes; /* that its file system has left; UINT64_MAX: not known */
    uint64_t cluster_bytes;
    uint64_t clusters_allocated; /* since it was opened; */
    uint64_t clusters_freed;     /* and given back */
    uint64_t clusters_quarantined;
    uint64_t slices_dirty;
    uint64_t slices_cached;
    uint64_t slices_most;
    uint64_t slice_hits;
    uint64_t slice_misses;
    uint64_t commits;
    uint64_t commit_ns;
    uint64_t fsyncs;
    uint64_t fsync_ns;
    uint64_t bitmaps;
    bool failed;  /* no more writes are accepted (O8) */
    bool corrupt; /* damage has been met (O10) */
};

struct image_ops {
    /*
     * Fills buf with [offset, offset + len). holes may be NULL: then the buffer is filled whole.
     * When given, it is set on success. On error the buffer's content is undefined.
     */
    int (*co_read)(struct image *image, uint64_t offset, void *buf, size_t len,
                   struct read_holes *holes);
    /* flags: IMAGE_FUA. -ENOSPC: the host is full; nothing but the range itself has changed. buf is
     * not changed and must stay until the call returns. */
    int (*co_write)(struct image *image, uint64_t offset, const void *buf, size_t len,
                    unsigned flags);
    /* The range reads as zeroes after. flags: all. Large ranges are worked off in pieces, and hold
     * up nobody but those who touch the piece at hand. -ENOSPC, -ENOTSUP (IMAGE_FAST_ZERO only). */
    int (*co_zero)(struct image *image, uint64_t offset, uint64_t len, unsigned flags);
    /* The range reads as zeroes after, and its space goes back to the host. flags: IMAGE_FUA. */
    int (*co_trim)(struct image *image, uint64_t offset, uint64_t len, unsigned flags);
    /* Everything that completed before the call is durable when it returns 0 (O4). -ENOSPC: it is
     * not, for want of room for metadata; nothing is lost, and asking again is right. */
    int (*co_flush)(struct image *image);
    /*
     * Describes the range from its start, as far as the list has room, at least one extent. The sum
     * of the lengths is at most len.
     */
    int (*co_extents)(struct image *image, uint64_t offset, uint64_t len, struct extent_list *list);
    /*
     * The dirty bitmaps on offer, in order: fills out[] as far as `capacity` reaches, and returns
     * how many there are in all. Does not suspend. NULL where there are never any.
     */
    size_t (*bitmap_list)(struct image *image, struct image_bitmap *out, size_t capacity);
    /* As co_extents, for a bitmap: flags are EXTENT_DIRTY or 0, depth is 0. -ENOENT: it is gone. */
    int (*co_bitmap_extents)(struct image *image, uint64_t bitmap_id, uint64_t offset, uint64_t len,
                             struct extent_list *list);
    /* Fills *out, all of it. NULL: nothing is known. May suspend. */
    void (*co_statistics)(struct image *image, struct image_statistics *out);
    /*
     * Flushes (if writable), waits for background work, closes and frees the image and its backing
     * chain, whatever happens. 0 only if everything acknowledged is durable; else err says why. No
     * other call may be running.
     */
    int (*co_close)(struct image *image, struct errtext *err);
};

struct image {
    const struct image_ops *ops;
    uint64_t size_bytes;
    bool read_only;
    bool can_zero_fast; /* whether IMAGE_FAST_ZERO can ever succeed */
    /* Set by whoever wants to close the image soon: requests that are worked off in pieces end with
     * -ESHUTDOWN after the one at hand (O9). */
    bool ending;
    /* Preferred I/O size for INFO_BLOCK_SIZE: a power of two, 512 or more. */
    uint32_t preferred_bytes;
    /* What a long write may be cut into at multiples of, without more work: a power of two; 0: any.
     */
    uint32_t unit_bytes;
    /* For messages; owned by the image. */
    const char *path;
};

#endif
