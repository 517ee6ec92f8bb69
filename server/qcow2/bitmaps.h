/* SPDX-License-Identifier: BSD-2-Clause */
/*
 * The persistent bitmaps of an open image: which there are, their bits in memory, what clients see
 * of them, and changes to them. Only the top image of a chain has them.
 *
 * A bitmap is offered if its bits mean something: not where its entry says "in use" and nobody here
 * is using it, as then another program did not get to save it, and not where a newer version of the
 * format has put something into it that is not known here.
 */
#ifndef QCOWD_QCOW2_BITMAPS_H
#define QCOWD_QCOW2_BITMAPS_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "base/errtext.h"
#include "image.h"
#include "qcow2/bitmap.h"
#include "qcow2/bitmap_directory.h"
#include "sched/sync.h"

struct qcow2;

/* What is in memory of the bitmap of the same number in the directory. */
struct live_bitmap {
    uint64_t id;   /* struct image_bitmap's */
    bool has_bits; /* it is known and consistent */
    struct bitmap bits;
};

struct bitmaps {
    struct bitmap_directory directory;
    struct live_bitmap *live; /* owned; directory.count of them */
    uint64_t next_id;
    uint64_t bits_bytes;  /* that all bits may take in memory */
    struct co_mutex lock; /* changes, one at a time */
};

/*
 * Reads directory and bits, and puts all clusters of bitmaps into the map of metadata if the image
 * is writable. Where guest data is only read, damaged bitmaps are logged, and the image has none.
 * -EINVAL with err: a field is out of range, or clusters are named twice; -EFBIG: they need more
 * memory than LIMIT_BITMAP_BITS_BYTES; -EIO, -ENOMEM. May suspend.
 */
int co_bitmaps_open(struct qcow2 *q, struct errtext *err);
void bitmaps_free(struct qcow2 *q);
/* -EFBIG with err: bitmaps would need so many bytes of memory. */
int bitmaps_refuse_bits(const struct qcow2 *q, uint64_t bytes, struct errtext *err);

/* struct image_ops. */
size_t qcow2_bitmap_list(struct image *image, struct image_bitmap *out, size_t capacity);
int co_qcow2_bitmap_extents(struct image *image, uint64_t bitmap_id, uint64_t offset, uint64_t len,
                            struct extent_list *list);

/* For people. */
struct bitmap_facts {
    const char *name; /* owned by the image, until the next suspension; not sanitised */
    uint64_t granularity_bytes;
    bool enabled;         /* whoever writes records in it */
    bool inconsistent;    /* it was not saved: can only be removed */
    const char *unknown;  /* NULL, or what of it is not known here */
    uint64_t dirty_bytes; /* 0 unless it is known and consistent */
};

/* As bitmap_list, and all there are. Does not suspend. */
size_t qcow2_bitmap_facts(struct image *image, struct bitmap_facts *out, size_t capacity);

enum bitmap_verb {
    BITMAP_ADD,
    BITMAP_REMOVE, /* inconsistent ones, too */
    BITMAP_CLEAR,
    BITMAP_ENABLE,
    BITMAP_DISABLE,
    BITMAP_MERGE, /* what is dirty in the source becomes dirty */
};

struct bitmap_change {
    enum bitmap_verb verb;
    const char *name;
    uint8_t granularity_bits; /* BITMAP_ADD: 9 to 31; 0: the cluster size, in 4 KiB to 64 KiB */
    bool disabled;            /* BITMAP_ADD */
    const char *source;       /* BITMAP_MERGE: the bitmap to be merged ... */
    struct image *from;       /* ... of this image; NULL: the same one */
};

/*
 * Whether bitmaps allow the disk another size: -ENOTSUP where one is not known here, -EFBIG where
 * they would need too much memory; err says so. Does not suspend.
 */
int bitmaps_check_size(const struct qcow2 *q, uint64_t size_bytes, struct errtext *err);

/*
 * Makes bitmaps fit q->geo.size_bytes, durably: before the header has a larger size, and after it
 * has a smaller one. What is new is dirty, as it may have been there before with other content.
 * Inconsistent ones stay as they are. Nobody may write guest data meanwhile. Errors as of
 * co_qcow2_bitmap_change(). May suspend.
 */
int co_bitmaps_resize(struct qcow2 *q, struct errtext *err);

/*
 * Changes bitmaps of a writable image, one after the other in the order of the list, and all of
 * them or none: durable when it returns 0, and a crash leaves what was there before or what is
 * there after. Nobody may write guest data meanwhile. err says which bitmap and why: -EINVAL,
 * -ENOENT, -EEXIST; -ENOTSUP (version 2, which has no bitmaps; or one that is not known here);
 * -EUCLEAN (inconsistent); -EFBIG (too many bits); -EROFS, -ENOSPC, -EIO, -ENOMEM. May suspend.
 */
int co_qcow2_bitmap_change(struct image *image, const struct bitmap_change *changes, size_t count,
                           struct errtext *err);

/*
 * Saves the bits that have changed: those that are set when it is called, and maybe some that are
 * set meanwhile. In the same step in which that counts on disk, bitmaps that are enabled are in use
 * or not, as `in_use` says. Durable when it returns 0. Errors as above; after -ENOSPC and -ENOMEM
 * all is as it was. Writing may go on. May suspend.
 */
int co_bitmaps_save(struct qcow2 *q, bool in_use, struct errtext *err);

#endif
