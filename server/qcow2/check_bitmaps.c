/* SPDX-License-Identifier: BSD-2-Clause */
/*
 * Bitmaps can be done without: a damaged one costs a full backup, and is not worth a guess. So it
 * is dropped, before anything else is repaired, and whatever it shared with others is theirs.
 *
 * While the directory is rewritten in its place, the autoclear bit says that there are no bitmaps.
 */
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "base/bytes.h"
#include "qcow2/bitmap_store.h"
#include "qcow2/check_state.h"
#include "qcow2/header_extension.h"

/* Nobody else names the cluster. */
static int visit_cluster(void *arg, uint64_t cluster)
{
    struct check_state *state = arg;
    return refmap_get(&state->refs, cluster) == 1 ? 0 : -EINVAL;
}

static bool directory_is_shared(struct check_state *state)
{
    const struct header *header = state->header;
    uint64_t first = host_cluster_index(state->geo, header->bitmap_directory_offset);
    uint64_t count = div_round_up(header->bitmap_directory_len_bytes, state->geo->cluster_bytes);
    for (uint64_t i = 0; i < count; i++) {
        if (visit_cluster(state, first + i) < 0) {
            return true;
        }
    }
    return false;
}

/* Takes those out whose tables or bits are damaged. */
static int co_leave_out(struct check_state *state, struct bitmap_directory *directory,
                        uint32_t *left_out)
{
    uint32_t kept = 0;
    int rc = 0;
    for (uint32_t i = 0; i < directory->count; i++) {
        struct errtext why;
        if (rc == 0) {
            rc = co_bitmap_visit_clusters(state->disk, state->geo, &directory->bitmaps[i],
                                          visit_cluster, state, &why);
        }
        if (rc == -EINVAL) {
            stored_bitmap_free(&directory->bitmaps[i]);
            ++*left_out;
            rc = 0;
        } else {
            directory->bitmaps[kept++] = directory->bitmaps[i];
        }
    }
    directory->count = kept;
    return rc < 0 ? check_failed(state, rc, "reading the tables of bitmaps") : 0;
}

static int co_set_bit(struct check_state *state, bool on)
{
    struct header *header = state->header;
    uint64_t bit = QCOW2_AUTOCLEAR_BITMAPS;
    int rc = co_header_set_features(state->disk, header, header->incompatible,
                                    on ? header->autoclear | bit : header->autoclear & ~bit);
    return rc < 0 ? rc : co_disk_flush(state->disk);
}

/* The bit is clear. */
static int co_write_directory(struct check_state *state, struct bitmap_directory *directory)
{
    struct qcow2_disk_bitmaps_extension raw = {0};
    struct header_place place;
    uint64_t offset = state->header->bitmap_directory_offset.bytes;
    uint64_t len = bitmap_directory_bytes(directory); /* no more than before */

    put_be32(raw.nb_bitmaps.bytes, directory->count);
    put_be64(raw.directory_size.bytes, len);
    put_be64(raw.directory_offset.bytes, offset);
    uint8_t *bytes = malloc(len);
    int rc = bytes ? co_header_extension_find(state->disk, state->header, QCOW2_EXT_BITMAPS, &place)
                   : -ENOMEM;
    if (rc == 0) {
        bitmap_directory_put(directory, offset, bytes);
        rc = co_disk_write(state->disk, offset, bytes, len);
    }
    if (rc == 0) {
        rc = co_header_extension_write(state->disk, &place, 0, &raw, sizeof(raw));
    }
    free(bytes);
    return rc < 0 ? rc : co_disk_flush(state->disk);
}

static int co_rewrite(struct check_state *state, struct bitmap_directory *directory)
{
    struct header *header = state->header;
    int rc = co_set_bit(state, false);
    if (rc == 0 && directory->count == 0) {
        rc = co_header_extension_remove(state->disk, header, QCOW2_EXT_BITMAPS);
    } else if (rc == 0) {
        rc = co_write_directory(state, directory);
        if (rc == 0) {
            rc = co_set_bit(state, true);
        }
    }
    header->bitmap_count = directory->count;
    header->bitmap_directory_len_bytes = directory->count ? bitmap_directory_bytes(directory) : 0;
    if (directory->count == 0) {
        header->bitmap_directory_offset.bytes = 0;
    }
    state->extent_end = 0; /* what was a hole may be one no more */
    return rc < 0 ? check_failed(state, rc, "writing the bitmap directory") : 0;
}

int co_check_drop_bitmaps(struct check_state *state, uint32_t *dropped)
{
    struct bitmap_directory directory = {0};
    *dropped = 0;
    int rc = 0;
    if (directory_is_shared(state)) {
        *dropped = state->header->bitmap_count;
    } else {
        rc = co_bitmap_directory_read_good(state->disk, state->header, &directory, dropped,
                                           state->err);
        if (rc == -EINVAL) { /* too large to be read at all */
            *dropped = state->header->bitmap_count;
            rc = 0;
        }
    }
    if (rc == 0) {
        rc = co_leave_out(state, &directory, dropped);
    }
    if (rc == 0 && *dropped > 0) {
        rc = co_rewrite(state, &directory);
    }
    bitmap_directory_free(&directory);
    return rc;
}
