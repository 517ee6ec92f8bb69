/* SPDX-License-Identifier: BSD-2-Clause */
/*
 * Header extensions that change while the image is in use. A disk writes 512 bytes whole or not at
 * all, so each step here changes the meaning of the header by one write inside one sector, and is
 * durable before the next: a crash at any moment leaves a valid header, with the extension or
 * without it. All other bytes of the first cluster stay as they are, other extensions, too.
 *
 * What is taken away is not moved over: it becomes a spare extension of a type that nobody knows,
 * or the new end, and is used again.
 *
 * Callers hold q->header_lock where the image is open. Section "Header extensions".
 */
#ifndef QCOWD_QCOW2_HEADER_EXTENSION_H
#define QCOWD_QCOW2_HEADER_EXTENSION_H

#include <stdbool.h>
#include <stdint.h>

#include "io/world.h"
#include "qcow2/header.h"

/* Where the data of an extension lies, in bytes of the file. */
struct header_place {
    uint32_t offset;
    uint32_t len;
};

/*
 * Finds the first extension of this type. -ENOENT: there is none; -EINVAL: the extensions do not
 * fit the header, which co_header_read() refuses, too. May suspend.
 */
int co_header_extension_find(struct disk *disk, const struct header *header, uint32_t type,
                             struct header_place *place);

/*
 * Adds an extension; there must be none of this type. It is durable on success. If it has at most
 * 512 bytes, it does not straddle two sectors, so co_header_extension_write() changes it whole or
 * not at all. The backing file's name is moved further back where it is in the way, and names of
 * features, which are no more than a help, give way where all else is full. -ENOSPC: there is no
 * room, or no end of the extensions that could move. After an error the header has the
 * extension or not, and is valid. May suspend.
 */
int co_header_extension_add(struct disk *disk, const struct header *header, uint32_t type,
                            const void *data, uint32_t len, struct header_place *place);

/*
 * Changes bytes of an extension in place, all other bytes stay. One write of whole sectors, each of
 * which is written or not after a crash. Not durable before the next flush. May suspend.
 */
int co_header_extension_write(struct disk *disk, const struct header_place *place, uint32_t at,
                              const void *bytes, uint32_t len);

/* Whether bytes [at, at + len) of it lie in one sector. Does not suspend. */
bool header_extension_is_atomic(const struct header_place *place, uint32_t at, uint32_t len);

/* Removes all extensions of this type; durable on success; fine when there are none. May suspend.
 */
int co_header_extension_remove(struct disk *disk, const struct header *header, uint32_t type);

#endif
