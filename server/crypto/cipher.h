/* SPDX-License-Identifier: BSD-2-Clause */
/*
 * Sectors of a disk, encrypted each for itself: a cipher, its mode, and how a sector's number
 * becomes the start of its chain, counter or tweak (IV).
 *
 * The names are those of QEMU's options; a LUKS header has the cipher's family ("aes") and derives
 * the rest from the length of the key.
 */
#ifndef QCOWD_CRYPTO_CIPHER_H
#define QCOWD_CRYPTO_CIPHER_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "base/errtext.h"
#include "crypto/kdf.h"

#define CRYPTO_SECTOR_BYTES  512U
#define CIPHER_KEY_BYTES_MAX 64U

struct cipher_alg {
    const char *name;   /* "aes-256" */
    const char *family; /* "aes" */
    uint32_t key_bytes; /* XTS takes two of them */
    uint32_t block_bytes;
    int library_id;
    bool quick; /* gigabytes a second, where the processor knows it */
};

enum cipher_mode { CIPHER_ECB, CIPHER_CBC, CIPHER_CTR, CIPHER_XTS };

enum cipher_iv {
    CIPHER_IV_PLAIN,   /* the sector's number, 32 bits of it, little endian */
    CIPHER_IV_PLAIN64, /* 64 bits of it */
    CIPHER_IV_ESSIV,   /* that, encrypted with the key's hash */
};

struct cipher_spec {
    const struct cipher_alg *alg;
    enum cipher_mode mode;
    enum cipher_iv iv;
    const struct hash_alg *iv_hash; /* ESSIV only, else NULL */
};

/* By name; NULL or false: not known or not built in. */
const struct cipher_alg *cipher_alg_find(const char *name);
/* The one of a family that has keys of so many bytes. */
const struct cipher_alg *cipher_alg_of_family(const char *family, uint32_t key_bytes);
bool cipher_mode_find(const char *name, enum cipher_mode *mode);
bool cipher_iv_find(const char *name, enum cipher_iv *iv);
const char *cipher_mode_name(enum cipher_mode mode);
const char *cipher_iv_name(enum cipher_iv iv);
/* "aes-128, aes-192, ..." */
const char *cipher_alg_names(void);

/*
 * Whether the parts go together: XTS needs blocks of 16 bytes, ESSIV a hash whose digest is a key
 * of the cipher's family. -EINVAL; err names the part and what is allowed. Does not need a key.
 */
int cipher_spec_check(const struct cipher_spec *spec, struct errtext *err);

/* Bytes of the key that the parts need together. */
uint32_t cipher_spec_key_bytes(const struct cipher_spec *spec);

/*
 * A key at work. Lanes let several threads use one at once: one thread, its owner, creates and
 * frees the cipher, gets and puts lanes; whoever has a lane may run it in any thread.
 */
struct cipher;
struct cipher_lane;

/* The spec has been checked; the key's bytes are copied, into secret memory. 0 or -ENOMEM. */
int cipher_create(const struct cipher_spec *spec, const uint8_t *key, struct cipher **out);
/* All lanes are back. NULL is fine. */
void cipher_free(struct cipher *cipher);

/* NULL when memory is short. Lanes that are put are kept for the next who asks. */
struct cipher_lane *cipher_lane_get(struct cipher *cipher);
void cipher_lane_put(struct cipher *cipher, struct cipher_lane *lane);

/*
 * Encrypts or decrypts len bytes, whole sectors, of which the first has number `sector`. in and out
 * are the same or do not overlap. Needs less than 8 KiB of stack.
 */
void cipher_encrypt(struct cipher_lane *lane, uint64_t sector, const uint8_t *in, uint8_t *out,
                    size_t len);
void cipher_decrypt(struct cipher_lane *lane, uint64_t sector, const uint8_t *in, uint8_t *out,
                    size_t len);

#endif
