/* SPDX-License-Identifier: BSD-2-Clause */
/*
 * LUKS1, as cryptsetup's "LUKS1 On-Disk Format Specification" 1.2.3 has it, without I/O: bytes in,
 * bytes out. The volume's key lies in up to eight slots, each encrypted with a key that is derived
 * from a passphrase, and blown up 4000 times, so that a slot can be made unreadable by overwriting
 * any part of it (anti-forensic split).
 *
 * A header is a stranger's (O10): after luks_parse() has succeeded everything it names lies inside
 * the area, apart from everything else, and unlocking takes bounded time and memory.
 */
#ifndef QCOWD_CRYPTO_LUKS_H
#define QCOWD_CRYPTO_LUKS_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "base/errtext.h"
#include "crypto/cipher.h"
#include "crypto/kdf.h"

#define LUKS_HEADER_BYTES 592U
#define LUKS_SLOTS        8U
#define LUKS_SALT_BYTES   32U
#define LUKS_DIGEST_BYTES 20U
#define LUKS_UUID_CHARS   36U

struct luks_slot {
    bool active;
    uint32_t iterations;
    uint8_t salt[LUKS_SALT_BYTES];
    uint32_t material_sector; /* from the header's start; of the bytes there see below */
    uint32_t stripes;
};

struct luks {
    struct cipher_spec spec;
    const struct hash_alg *hash;
    uint32_t payload_sector; /* where data would begin; in qcow2, the end of the header's area */
    uint8_t digest[LUKS_DIGEST_BYTES];
    uint8_t digest_salt[LUKS_SALT_BYTES];
    uint32_t digest_iterations;
    char uuid[40 + 1];
    struct luks_slot slots[LUKS_SLOTS];
};

/* The volume's key, and a slot's material: secrets, or encrypted. */
uint32_t luks_key_bytes(const struct luks *luks);
uint64_t luks_material_bytes(const struct luks *luks); /* whole sectors */
uint64_t luks_material_offset(const struct luks *luks, unsigned slot);
/* Of the header with all its material. */
uint64_t luks_area_bytes(const struct luks *luks);
unsigned luks_active_slots(const struct luks *luks);

/*
 * bytes: LUKS_HEADER_BYTES. area_bytes: what there is of the area from the header's start on.
 * -EINVAL, -ENOTSUP (cipher, mode or hash not known): err says field, value and what is allowed.
 */
int luks_parse(const uint8_t *bytes, uint64_t area_bytes, struct luks *luks, struct errtext *err);

/* The header's bytes: LUKS_HEADER_BYTES. */
void luks_format(const struct luks *luks, uint8_t *bytes);

/*
 * Tries a passphrase on one active slot, whose material (luks_material_bytes(), encrypted, changed
 * by this) the caller has read. 0: key[luks_key_bytes()] is the volume's. -EACCES: it is not this
 * slot's passphrase. -ENOMEM. Takes as long as the slot's iterations: for workers.
 */
int luks_unlock(const struct luks *luks, unsigned slot, uint8_t *material,
                const uint8_t *passphrase, size_t len, uint8_t *key);

/*
 * Encrypts the volume's key for a passphrase: the slot's iterations and salt are set by the caller,
 * material (luks_material_bytes()) is random on entry, and on success what the slot is to hold.
 * Does not make the slot active. -ENOMEM. For workers.
 */
int luks_lock(const struct luks *luks, unsigned slot, uint8_t *material, const uint8_t *passphrase,
              size_t len, const uint8_t *key);

/*
 * A new header for a key: places, and the key's digest with digest_salt and digest_iterations,
 * which the caller has set with spec, hash and uuid. All slots inactive. -ENOMEM. For workers.
 */
int luks_init(struct luks *luks, const uint8_t *key);

/* How much longer than one iteration of the hash a derivation of so many bytes is. */
uint32_t luks_blocks(const struct hash_alg *hash, size_t out_len);

#endif
