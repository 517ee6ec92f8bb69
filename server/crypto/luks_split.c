/* SPDX-License-Identifier: BSD-2-Clause */
#include "crypto/luks_split.h"

#include <assert.h>
#include <string.h>

#include "base/bytes.h"
#include "base/check.h"
#include "crypto/secret.h"

/* Each piece as long as a digest becomes the hash of its number and itself; the last may be short.
 */
static void diffuse(const struct hash_alg *hash, uint8_t *stripe, uint32_t len)
{
    uint8_t numbered[4 + HASH_DIGEST_BYTES_MAX];
    uint8_t digest[HASH_DIGEST_BYTES_MAX];
    uint32_t number = 0;

    for (uint32_t at = 0; at < len; at += hash->digest_bytes) {
        uint32_t part = MIN_OF(len - at, hash->digest_bytes);
        put_be32(numbered, number++);
        memcpy(numbered + 4, stripe + at, part);
        hash_bytes(hash, numbered, 4 + part, digest);
        memcpy(stripe + at, digest, part);
    }
    secret_wipe(numbered, sizeof(numbered));
    secret_wipe(digest, sizeof(digest));
}

static void add(uint8_t *sum, const uint8_t *stripe, uint32_t len)
{
    for (uint32_t i = 0; i < len; i++) {
        sum[i] ^= stripe[i];
    }
}

/* All stripes but the last, one after the other. */
static void gather(const struct hash_alg *hash, const uint8_t *split, uint32_t key_bytes,
                   uint32_t stripes, uint8_t *sum)
{
    assert(key_bytes <= CIPHER_KEY_BYTES_MAX && stripes > 0);
    memset(sum, 0, key_bytes);
    for (uint32_t i = 0; i + 1 < stripes; i++) {
        add(sum, split + (size_t)i * key_bytes, key_bytes);
        diffuse(hash, sum, key_bytes);
    }
}

void luks_split(const struct hash_alg *hash, const uint8_t *key, uint32_t key_bytes,
                uint32_t stripes, uint8_t *split)
{
    uint8_t *last = split + (size_t)(stripes - 1) * key_bytes;

    gather(hash, split, key_bytes, stripes, last);
    add(last, key, key_bytes);
}

void luks_merge(const struct hash_alg *hash, const uint8_t *split, uint32_t key_bytes,
                uint32_t stripes, uint8_t *key)
{
    gather(hash, split, key_bytes, stripes, key);
    add(key, split + (size_t)(stripes - 1) * key_bytes, key_bytes);
}
