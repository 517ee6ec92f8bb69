/* SPDX-License-Identifier: BSD-2-Clause */
/*
 * Write-intent regions: what a crash may leave unsaved of bitmaps that are recorded. The disk is
 * cut into some hundred to some ten thousand regions, with a bit each in a header extension of our
 * own; a region is open, durably, before the first change in it goes out, and closed some time
 * after its changes have been saved. After a crash, what is saved and what was open cover all that
 * changed (O11).
 *
 * The extension counts only while an autoclear bit of our own is set, so that another program's
 * changes are noticed: it clears the bit before its first. It names the bitmaps that it is about by
 * hashes of their names; qcowd-format(7) has its layout.
 */
#ifndef QCOWD_QCOW2_BITMAP_INTENT_H
#define QCOWD_QCOW2_BITMAP_INTENT_H

#include <stdbool.h>
#include <stdint.h>

#include "io/world.h"
#include "qcow2/header.h"
#include "qcow2/header_extension.h"
#include "sched/sync.h"

struct qcow2;

/* Bitmaps that one image can have named; of more, those behind are lost by a crash. */
#define INTENT_NAMES_MAX 64U

struct bitmap_intent {
    struct header_place place; /* len 0: the header has no room, and nothing is kept */
    unsigned region_bits;      /* log2 of a region's bytes */
    uint32_t region_count;
    uint32_t name_slots;
    /* A bit for each region: */
    uint8_t *open;        /* durably open */
    uint8_t *wanted;      /* to be opened by whoever writes next */
    uint8_t *touched;     /* changed in since intent_forget_touched() */
    struct co_mutex lock; /* one write of them at a time */
};

uint64_t intent_name_hash(const char *name);

void intent_init(struct bitmap_intent *intent);
void intent_free(struct bitmap_intent *intent);

/*
 * Writes an extension that names these bitmaps, at most INTENT_NAMES_MAX, with all regions closed,
 * durably. The autoclear bit must not be set. *named: how many it has room for; 0: the header has
 * no room for it at all, which is no error. -EIO, -ENOMEM. May suspend.
 */
int co_intent_begin(struct qcow2 *q, struct bitmap_intent *intent, const uint64_t *hashes,
                    uint32_t count, uint32_t *named);

/* Whether all regions of the range are open; does not suspend, as the step that marks needs. */
bool intent_is_open(const struct bitmap_intent *intent, uint64_t offset, uint64_t len);
/* The range is changed in from here on. */
void intent_touch(struct bitmap_intent *intent, uint64_t offset, uint64_t len);
/*
 * Opens the regions of the range, those that others wait for in the same write. They may have been
 * closed again when it returns. -EIO: the image has failed (O8). May suspend.
 */
int co_intent_open(struct qcow2 *q, struct bitmap_intent *intent, uint64_t offset, uint64_t len);

/* How many are open and not touched: those that saving would let close. */
uint32_t intent_count_idle(const struct bitmap_intent *intent);
uint32_t intent_count_open(const struct bitmap_intent *intent);
/* The step at which what is going to be saved is taken. */
void intent_forget_touched(struct bitmap_intent *intent);
/* Closes what is not touched since then: its changes are saved, durably. -EIO. May suspend. */
int co_intent_close_idle(struct qcow2 *q, struct bitmap_intent *intent);

/* What a crash has left, as it lies in the header. */
struct intent_left {
    unsigned region_bits;
    uint32_t region_count;
    uint32_t name_count;
    uint64_t names[INTENT_NAMES_MAX];
    uint8_t *open; /* owned */
};

/*
 * Reads it. -ENOENT: there is none, or none that can be trusted; -EIO, -ENOMEM. *left is ended by
 * intent_left_free() after success. May suspend.
 */
int co_intent_read(struct disk *disk, const struct header *header, struct intent_left *left);
void intent_left_free(struct intent_left *left);
bool intent_left_names(const struct intent_left *left, const char *name);

#endif
