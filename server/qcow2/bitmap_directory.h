/* SPDX-License-Identifier: BSD-2-Clause */
/*
 * The bitmap directory: which persistent bitmaps an image has, and where their tables lie.
 * Distrusts what it reads (O10): after co_bitmap_directory_read() has succeeded, all tables lie
 * inside the file, aligned, of sane size, and names are good. What the bits are is bitmap_store.h's
 * affair. Section "Bitmap directory".
 */
#ifndef QCOWD_QCOW2_BITMAP_DIRECTORY_H
#define QCOWD_QCOW2_BITMAP_DIRECTORY_H

#include <stdbool.h>
#include <stdint.h>
#include <string.h>

#include "base/errtext.h"
#include "io/world.h"
#include "qcow2/geometry.h"
#include "qcow2/header.h"
#include "qcow2/ondisk.h"

#define BITMAP_NAME_BYTES_MAX       1023U
#define BITMAP_GRANULARITY_BITS_MIN 9U
#define BITMAP_GRANULARITY_BITS_MAX 31U
#define BITMAP_GRANULARITY_BITS     16U /* when nobody says otherwise, as QEMU; at least a cluster */

/* One entry; all fields as on disk. */
struct stored_bitmap {
    char *name;     /* terminated; owned */
    uint8_t *extra; /* extra data, kept byte for byte; owned */
    uint32_t extra_len;
    uint32_t flags; /* enum qcow2_bitmap_flags */
    uint8_t type;
    uint8_t granularity_bits;
    uint32_t table_entries;
    host_off table_offset;
    uint64_t entry_offset; /* where the entry itself lies in the file */
    /*
     * NULL, or what is not known of it here: it is kept as it is, but neither offered nor changed.
     */
    const char *unknown;
};

struct bitmap_directory {
    struct stored_bitmap *bitmaps; /* owned */
    uint32_t count;
};

/*
 * Reads what the header names; an image without bitmaps gives an empty directory. The caller ends
 * it with bitmap_directory_free(), after success only. -EINVAL: a field is out of range, err names
 * file, entry, field, value and what is allowed; -EIO, -ENOMEM. May suspend.
 */
int co_bitmap_directory_read(struct disk *disk, const struct header *header,
                             struct bitmap_directory *directory, struct errtext *err);
/*
 * The same for a repair: takes the entries that are good, in their order, and says how many were
 * left out.
 */
int co_bitmap_directory_read_good(struct disk *disk, const struct header *header,
                                  struct bitmap_directory *directory, uint32_t *left_out,
                                  struct errtext *err);
void bitmap_directory_free(struct bitmap_directory *directory);

/*
 * Judges the raw fields of one entry, whose name and extra data follow it. `path` and `number` are
 * for the message. Used by a check, too. Does not suspend.
 */
int bitmap_entry_judge(const struct qcow2_disk_bitmap *raw, uint32_t number,
                       const struct geometry *geo, uint64_t file_bytes, const char *path,
                       struct errtext *err);

/* A copy with texts of its own. -ENOMEM. */
int stored_bitmap_copy(struct stored_bitmap *to, const struct stored_bitmap *from);
void stored_bitmap_free(struct stored_bitmap *bitmap);

/* By name; NULL: there is none. */
struct stored_bitmap *bitmap_directory_find(const struct bitmap_directory *directory,
                                            const char *name);

/* Bytes of the directory on disk. */
uint64_t bitmap_directory_bytes(const struct bitmap_directory *directory);
/*
 * Writes it into a buffer of that many bytes, and notes the entries' places for a directory that
 * lies at `offset`.
 */
void bitmap_directory_put(struct bitmap_directory *directory, uint64_t offset, uint8_t *bytes);

/* Bytes of all bits, and table entries, that a bitmap of this granularity needs. */
uint64_t bitmap_bytes_needed(uint64_t disk_bytes, uint32_t granularity_bits);
uint64_t bitmap_table_entries_needed(const struct geometry *geo, uint64_t disk_bytes,
                                     uint32_t granularity_bits);

/* A name for a message. */
#define BITMAP_NAME_SHOWN_BYTES 100U
static inline const char *bitmap_name_shown(char shown[BITMAP_NAME_SHOWN_BYTES], const char *name)
{
    return err_sanitise(shown, BITMAP_NAME_SHOWN_BYTES, name, strlen(name));
}

/* Whether a bitmap may be given this name; -EINVAL with err. Does not suspend. */
int bitmap_name_check(const char *name, struct errtext *err);

#endif
