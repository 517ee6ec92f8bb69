/* SPDX-License-Identifier: BSD-2-Clause */
/*
 * Hashes by their names in LUKS headers, and keys from passphrases (PBKDF2). Whatever takes long
 * belongs on a worker.
 */
#ifndef QCOWD_CRYPTO_KDF_H
#define QCOWD_CRYPTO_KDF_H

#include <stddef.h>
#include <stdint.h>

struct hash_alg {
    const char *name; /* "sha256": in LUKS headers and for people */
    uint32_t digest_bytes;
    int library_id;
};

#define HASH_DIGEST_BYTES_MAX 64U

/* NULL: not known, or not built in. Case counts. */
const struct hash_alg *hash_find(const char *name);

/* "md5, sha1, ..." of those that hash_find() knows. */
const char *hash_names(void);

/* out: digest_bytes. */
void hash_bytes(const struct hash_alg *alg, const void *in, size_t len, uint8_t *out);

/* PBKDF2 with HMAC. len, iterations and out_len > 0. 0 or -ENOMEM. */
int kdf_derive(const struct hash_alg *alg, const void *passphrase, size_t len, const uint8_t *salt,
               size_t salt_len, uint32_t iterations, uint8_t *out, size_t out_len);

/*
 * How many iterations for out_len bytes take `ms` milliseconds of this thread's processor time;
 * takes some tenths of a second to find out. At least 1, at most `most`.
 */
uint32_t kdf_iterations(const struct hash_alg *alg, size_t out_len, uint32_t ms, uint32_t most);

#endif
