/* SPDX-License-Identifier: BSD-2-Clause */
/*
 * Without libgcrypt no cipher and no hash is known, so that nobody comes to have a key to use.
 */
#include <errno.h>
#include <stdlib.h>

#include "crypto/cipher.h"
#include "crypto/kdf.h"
#include "crypto/library.h"

bool crypto_library_present(void)
{
    return false;
}

void crypto_library_start(void)
{
}

const struct hash_alg *hash_find(const char *name)
{
    (void)name;
    return NULL;
}

const char *hash_names(void)
{
    return "none in this build";
}

void hash_bytes(const struct hash_alg *alg, const void *in, size_t len, uint8_t *out)
{
    (void)alg, (void)in, (void)len, (void)out;
    abort();
}

int kdf_derive(const struct hash_alg *alg, const void *passphrase, size_t len, const uint8_t *salt,
               size_t salt_len, uint32_t iterations, uint8_t *out, size_t out_len)
{
    (void)alg, (void)passphrase, (void)len, (void)salt, (void)salt_len, (void)iterations;
    (void)out, (void)out_len;
    return -ENOTSUP;
}

uint32_t kdf_iterations(const struct hash_alg *alg, size_t out_len, uint32_t ms, uint32_t most)
{
    (void)alg, (void)out_len, (void)ms, (void)most;
    return 1;
}

const struct cipher_alg *cipher_alg_find(const char *name)
{
    (void)name;
    return NULL;
}

const struct cipher_alg *cipher_alg_of_family(const char *family, uint32_t key_bytes)
{
    (void)family, (void)key_bytes;
    return NULL;
}

const char *cipher_alg_names(void)
{
    return "none in this build";
}

int cipher_spec_check(const struct cipher_spec *spec, struct errtext *err)
{
    (void)spec;
    return err_set(err, ENOTSUP, "encryption is not built in");
}

int cipher_create(const struct cipher_spec *spec, const uint8_t *key, struct cipher **out)
{
    (void)spec, (void)key, (void)out;
    return -ENOTSUP;
}

void cipher_free(struct cipher *cipher)
{
    (void)cipher;
}

struct cipher_lane *cipher_lane_get(struct cipher *cipher)
{
    (void)cipher;
    return NULL;
}

void cipher_lane_put(struct cipher *cipher, struct cipher_lane *lane)
{
    (void)cipher, (void)lane;
}

void cipher_encrypt(struct cipher_lane *lane, uint64_t sector, const uint8_t *in, uint8_t *out,
                    size_t len)
{
    (void)lane, (void)sector, (void)in, (void)out, (void)len;
    abort();
}

void cipher_decrypt(struct cipher_lane *lane, uint64_t sector, const uint8_t *in, uint8_t *out,
                    size_t len)
{
    (void)lane, (void)sector, (void)in, (void)out, (void)len;
    abort();
}
