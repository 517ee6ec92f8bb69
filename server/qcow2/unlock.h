/* SPDX-License-Identifier: BSD-2-Clause */
/*
 * Keys of encrypted images: found with a passphrase when an image is opened, put into a new one,
 * and their slots changed. crypt_method 2 is LUKS1 with its header in clusters of the image,
 * 1 the old AES method, whose key is the passphrase itself and which is read only.
 */
#ifndef QCOWD_QCOW2_UNLOCK_H
#define QCOWD_QCOW2_UNLOCK_H

#include "base/errtext.h"
#include "crypto/cipher.h"
#include "crypto/luks.h"
#include "io/world.h"
#include "qcow2/header.h"
#include "qcow2/key.h"

/*
 * The cipher of an encrypted image. key NULL: none is given. -EACCES: none, or none that fits;
 * -EINVAL, -ENOTSUP: a header that is damaged or not known; -EIO, -ENOMEM. err begins with the
 * image's path. Writes nothing. On success *cipher is the caller's. May suspend, for as long as
 * the header's iterations take.
 */
int co_unlock(struct disk *disk, const struct header *header, const struct image_key *key,
              struct cipher_spec *spec, struct cipher **cipher, struct errtext *err);

/* Reads the LUKS header of an image, of whatever worth its keys are. As co_unlock(). */
int co_luks_read(struct disk *disk, const struct header *header, struct luks *luks,
                 struct errtext *err);

/* What a new encrypted image is to have; a name that is NULL stands for what QEMU takes. */
struct encryption_options {
    bool luks; /* else: not encrypted */
    const char *cipher_alg;
    const char *cipher_mode;
    const char *iv_gen;
    const char *iv_hash;
    const char *hash;
    uint32_t iter_time_ms; /* 0: 2000 */
    uint32_t iterations;   /* for tests, which have no secret to keep: so many; 0: by the time */
};

/*
 * A LUKS header as it will lie at the start of its area, with the first slot for `key`. The bytes
 * are the caller's to free(); the whole area is luks_area_bytes() long, and what is behind the
 * bytes is not yet used. -EINVAL with err for options that do not go together, -ENOTSUP when
 * encryption is not built in, -ENOMEM. May suspend for iter_time_ms, and more.
 */
int co_luks_make(struct world *world, const struct encryption_options *options,
                 const struct image_key *key, struct luks *luks, uint8_t **bytes, size_t *len,
                 struct errtext *err);

/* How long the area of such a header is; as co_luks_make(), and does not suspend. */
int luks_measure(const struct encryption_options *options, uint64_t *area_bytes,
                 struct errtext *err);

/*
 * Gives the image another passphrase, in `slot` or, where that is LUKS_SLOTS, in the first that is
 * free. *slot: which. Durable when it returns. -EACCES as co_unlock(); -EBUSY: the slot is in use;
 * -ENOSPC: all are. May suspend.
 */
int co_key_add(struct disk *disk, const struct header *header, const struct image_key *key,
               const struct image_key *added, uint32_t iter_time_ms, unsigned *slot,
               struct errtext *err);

/*
 * Destroys a slot: that of the passphrase `key`, or, where key is NULL, `*slot`. The last one stays
 * (-EPERM). -EACCES, -ENOENT: it holds nothing. Durable when it returns. May suspend.
 */
int co_key_remove(struct disk *disk, const struct header *header, const struct image_key *key,
                  unsigned *slot, struct errtext *err);

#endif
