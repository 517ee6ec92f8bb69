/* SPDX-License-Identifier: BSD-2-Clause */
/*
 * Images for the fuzzers: a few small valid ones, made once, of which each input damages a copy on
 * the simulated disk; and a watch over the disk of the image that is open.
 */
#ifndef QCOWD_FUZZ_IMAGE_RIG_H
#define QCOWD_FUZZ_IMAGE_RIG_H

#include <stdbool.h>
#include <stdint.h>

#include "fuzz/feed.h"
#include "io/world.h"
#include "qcow2/check.h"
#include "qcow2/qcow2.h"
#include "qcow2/test_images.h"

#define FUZZ_IMAGE "disk.qcow2"

/* The number of shapes; one more is an image whose bytes are the input's own. */
#define IMAGE_SHAPES 12U
/* The shape that has the dirty bit. */
#define IMAGE_DIRTY_SHAPE 11U

/* A fresh copy, to be freed with test_image_free(). Takes the rest of the input for the last one.
 */
struct test_image image_rig_copy(unsigned shape, struct feed *feed);
/* Puts it, and what its backing file may be, onto the world's disk. */
void image_rig_put(struct world *world, const struct test_image *image);
/* The same below a valid one, which is then the image that is opened. */
void image_rig_put_below(struct world *world, const struct test_image *image);
/* What was put below has not changed. */
void image_rig_demand_unchanged(struct world *world, const struct test_image *image);

/* Takes one record (its first byte is `op`) and damages the image as that says. */
void image_rig_damage(struct test_image *image, uint8_t op, struct feed *feed);

/* Whether that record may change refcounts, or where they are looked for. */
bool image_rig_damages_counts(uint8_t op);

struct judgement {
    bool checked;   /* the check could be carried out */
    bool may_write; /* nothing that the header says forbids it */
    bool may_change_bitmaps;
    struct check_result result;
    /* Of the corruptions: entries without COPIED whose cluster is counted once. Where one table
     * names a cluster twice, as snapshots never do, writing through one entry leaves the other like
     * that; it costs a copy. */
    uint64_t needless_copies;
};

static inline bool is_clean(const struct judgement *judgement)
{
    return judgement->checked && judgement->result.corruptions == 0;
}

/*
 * Reads the header, describes the image in both forms, and checks it, with repair if asked. Demands
 * that whatever is said about it is printable. May suspend.
 */
struct judgement co_image_rig_check(struct world *world, enum check_repair repair);

/*
 * Opens the image. From then on each call on its disk is watched: that it stays inside of bounds,
 * and that no guest byte lands on metadata (O10). NULL when the image is refused, which leaves the
 * file as it was unless it had to be repaired first. One image at a time; it is closed as any
 * other.
 */
struct image *co_image_rig_open(struct world *world, const struct qcow2_open_options *options);

#endif
