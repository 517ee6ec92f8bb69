/* SPDX-License-Identifier: BSD-2-Clause */
/* Twofish with keys of 192 bits, which QEMU has and libgcrypt has not: by Nettle. */
#ifndef QCOWD_CRYPTO_TWOFISH_H
#define QCOWD_CRYPTO_TWOFISH_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "crypto/cipher.h"

struct twofish;

/* The key is 24 bytes, or 48 for XTS. In secret memory; the caller ends it with twofish_free().
 * NULL when memory is short. */
struct twofish *twofish_create(enum cipher_mode mode, const uint8_t *key);
/* NULL is fine. */
void twofish_free(struct twofish *twofish);

/* One chain of len bytes, whole blocks, from iv (16 bytes, changed; not looked at by ECB). in and
 * out are the same or do not overlap. */
void twofish_run(const struct twofish *twofish, bool encrypt, uint8_t *iv, const uint8_t *in,
                 uint8_t *out, size_t len);

#endif
