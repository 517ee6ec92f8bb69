/* SPDX-License-Identifier: BSD-2-Clause */
/*
 * A dirty bitmap in memory: a bit for each granule of the disk, set where it has changed or may
 * have. In pages of 4 KiB of bits; a page that is all clear or all set has no memory. Marking
 * cannot fail: where there is no memory for a page, all of it becomes set, which is a superset
 * (O11). Nothing here suspends.
 *
 * The serialised form is that of the format, section "Bitmap data": granule i is bit i % 8 of byte
 * i / 8.
 *
 * What is not on disk yet is known by page: unsaved, since it changed, until a snapshot takes it;
 * being saved, from then until it is on disk; and both, if it changed meanwhile.
 */
#ifndef QCOWD_QCOW2_BITMAP_H
#define QCOWD_QCOW2_BITMAP_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#define BITMAP_PAGE_BYTES 4096U

struct bitmap {
    uint64_t size_bytes; /* of the disk */
    unsigned granularity_bits;
    uint64_t granules;
    uint64_t page_count;
    uint8_t **pages; /* NULL: clear; bitmap.c's own sign: set */
    uint8_t *states; /* of pages: enum bitmap_page_state */
};

enum bitmap_page_state {
    BITMAP_PAGE_UNSAVED = 1U << 0,
    BITMAP_PAGE_SAVING = 1U << 1,
};

/* All clear, and saved. -ENOMEM. Ended by bitmap_free(). */
int bitmap_init(struct bitmap *bitmap, uint64_t size_bytes, unsigned granularity_bits);
void bitmap_free(struct bitmap *bitmap);
/* Bytes that its bits take when every page has memory. */
uint64_t bitmap_bytes_most(uint64_t size_bytes, unsigned granularity_bits);

/* Marks [offset, offset + len), len > 0, inside the disk. Whether a bit was set that was not. */
bool bitmap_set(struct bitmap *bitmap, uint64_t offset, uint64_t len);
void bitmap_set_whole(struct bitmap *bitmap);
void bitmap_clear_whole(struct bitmap *bitmap);
/* Marks what is marked in `from`, of a disk of at most this size, at its granularity or another. */
void bitmap_merge(struct bitmap *bitmap, const struct bitmap *from);
/*
 * For a disk of another size: what is new is marked, as it may have been there before with other
 * content. -ENOMEM: nothing has changed.
 */
int bitmap_resize(struct bitmap *bitmap, uint64_t size_bytes);

/*
 * Whether `offset` is marked, and where, up to `end`, that changes. offset < end <= the disk's
 * size.
 */
void bitmap_next(const struct bitmap *bitmap, uint64_t offset, uint64_t end, bool *is_dirty,
                 uint64_t *run_end);
/* How many bytes of the disk are marked. */
uint64_t bitmap_count_bytes(const struct bitmap *bitmap);

/* Bytes of the serialised form. */
uint64_t bitmap_serialised_bytes(const struct bitmap *bitmap);
/*
 * Takes `len` serialised bytes from `first` on, `first` a multiple of BITMAP_PAGE_BYTES or all of
 * them in one page; what they are beyond the end does not matter. Not as a change: the page's state
 * stays. Without memory more becomes set.
 */
void bitmap_load(struct bitmap *bitmap, uint64_t first, const uint8_t *bytes, size_t len);
/* The same without the bytes: all set. */
void bitmap_load_set(struct bitmap *bitmap, uint64_t first, uint64_t len);
/* Fills `bytes` with the serialised form from `first` on; zeroes beyond the end. */
void bitmap_save(const struct bitmap *bitmap, uint64_t first, uint8_t *bytes, size_t len);

enum bitmap_piece { BITMAP_PIECE_CLEAR, BITMAP_PIECE_SET, BITMAP_PIECE_MIXED };
/* What bitmap_save() would give; what lies beyond the end counts as either. */
enum bitmap_piece bitmap_piece(const struct bitmap *bitmap, uint64_t first, uint64_t len);

/* ---- Saving ---- */

/* Takes a snapshot: what is unsaved is being saved from now on. Whether there is any. */
bool bitmap_snapshot(struct bitmap *bitmap);
/* Whether serialised bytes [first, first + len) have a page that is being saved. */
bool bitmap_is_saving(const struct bitmap *bitmap, uint64_t first, uint64_t len);
/* The snapshot is on disk; or it is not: what was being saved is unsaved again. */
void bitmap_snapshot_done(struct bitmap *bitmap, bool saved);

#endif
