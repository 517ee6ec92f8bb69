/* SPDX-License-Identifier: BSD-2-Clause */
/*
 * The anti-forensic split of LUKS1: a key becomes `stripes` times as long, and every part of that
 * is needed to have it back, so that it is gone once any part has been overwritten.
 */
#ifndef QCOWD_CRYPTO_LUKS_SPLIT_H
#define QCOWD_CRYPTO_LUKS_SPLIT_H

#include <stdint.h>

#include "crypto/cipher.h"
#include "crypto/kdf.h"

/* split: stripes * key_bytes, random on entry; its last stripe is replaced. */
void luks_split(const struct hash_alg *hash, const uint8_t *key, uint32_t key_bytes,
                uint32_t stripes, uint8_t *split);

void luks_merge(const struct hash_alg *hash, const uint8_t *split, uint32_t key_bytes,
                uint32_t stripes, uint8_t *key);

#endif
