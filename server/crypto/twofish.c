/* SPDX-License-Identifier: BSD-2-Clause */
#include "crypto/twofish.h"

#include <nettle/cbc.h>
#include <nettle/ctr.h>
#include <nettle/twofish.h>
#include <nettle/xts.h>

#include "crypto/secret.h"

#define KEY_BYTES 24U

struct twofish {
    enum cipher_mode mode;
    struct twofish_ctx data;
    struct twofish_ctx tweak; /* XTS only */
};

struct twofish *twofish_create(enum cipher_mode mode, const uint8_t *key)
{
    struct twofish *twofish = secret_alloc(sizeof(*twofish));
    if (twofish) {
        twofish->mode = mode;
        twofish_set_key(&twofish->data, KEY_BYTES, key);
        if (mode == CIPHER_XTS) {
            twofish_set_key(&twofish->tweak, KEY_BYTES, key + KEY_BYTES);
        }
    }
    return twofish;
}

void twofish_free(struct twofish *twofish)
{
    secret_free(twofish);
}

static void encrypt_blocks(const void *ctx, size_t len, uint8_t *out, const uint8_t *in)
{
    twofish_encrypt(ctx, len, out, in);
}

static void decrypt_blocks(const void *ctx, size_t len, uint8_t *out, const uint8_t *in)
{
    twofish_decrypt(ctx, len, out, in);
}

void twofish_run(const struct twofish *twofish, bool encrypt, uint8_t *iv, const uint8_t *in,
                 uint8_t *out, size_t len)
{
    nettle_cipher_func *blocks = encrypt ? encrypt_blocks : decrypt_blocks;

    switch (twofish->mode) {
    case CIPHER_ECB:
        blocks(&twofish->data, len, out, in);
        break;
    case CIPHER_CBC:
        (encrypt ? cbc_encrypt : cbc_decrypt)(&twofish->data, blocks, TWOFISH_BLOCK_SIZE, iv, len,
                                              out, in);
        break;
    case CIPHER_CTR:
        ctr_crypt(&twofish->data, encrypt_blocks, TWOFISH_BLOCK_SIZE, iv, len, out, in);
        break;
    case CIPHER_XTS:
        if (encrypt) {
            xts_encrypt_message(&twofish->data, &twofish->tweak, encrypt_blocks, iv, len, out, in);
        } else {
            xts_decrypt_message(&twofish->data, &twofish->tweak, decrypt_blocks, encrypt_blocks, iv,
                                len, out, in);
        }
        break;
    }
}
