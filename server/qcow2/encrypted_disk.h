/* SPDX-License-Identifier: BSD-2-Clause */
/*
 * The guest's clusters of an encrypted image, in clear: a disk in front of the file that holds
 * them. A sector's number for the cipher is its place in that file.
 *
 * A request that covers a sector in part reads it, changes it and writes it back. Neighbours in one
 * sector know nothing of each other, so it holds its sectors exclusively, and all others that
 * change bytes hold theirs shared.
 *
 * Punching and zeroing act on the file: what was there does not read as zeroes after, but as
 * anything. Nobody may look at such a place before it has been written again.
 */
#ifndef QCOWD_QCOW2_ENCRYPTED_DISK_H
#define QCOWD_QCOW2_ENCRYPTED_DISK_H

#include "crypto/cipher.h"
#include "io/world.h"

/*
 * `inner` stays the caller's and must outlive it; `cipher` is taken over, on success. Ended with
 * disk_close(). -ENOMEM.
 */
int encrypted_disk_create(struct disk *inner, struct cipher *cipher, const struct cipher_spec *spec,
                          struct disk **out);

/*
 * Reads where the first sector has another number than its place (the legacy AES method counts in
 * the guest's sectors). offset and cipher_offset differ by whole sectors. May suspend.
 */
int co_encrypted_disk_read_as(struct disk *disk, uint64_t offset, uint64_t cipher_offset, void *buf,
                              size_t len);

#endif
