/* SPDX-License-Identifier: BSD-2-Clause */
/*
 * A lane is a handle of the library: it holds the chain of the sector at work, so it has one user
 * at a time, and ESSIV has a second one. Handles, with the key's schedule in them, lie in secret
 * memory.
 */
#include "crypto/cipher.h"

#include <errno.h>
#include <gcrypt.h>
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

#include "base/bytes.h"
#include "base/check.h"
#include "base/list.h"
#include "crypto/library.h"
#include "crypto/secret.h"
#include "crypto/twofish.h"

#define BLOCK_BYTES_MAX 16U
#define BY_NETTLE       (-1) /* a library_id of none of libgcrypt's */
/* Idle lanes that are kept: as many as workers and a loop have use for. */
#define LANES_KEPT 6U

struct cipher {
    struct cipher_spec spec;
    struct list idle;
    unsigned idle_count;
    unsigned lanes_out;
    uint8_t *key; /* in secret memory */
};

struct cipher_lane {
    struct list link;
    enum cipher_mode mode;
    enum cipher_iv iv;
    uint32_t block_bytes;
    gcry_cipher_hd_t data;
    struct twofish *twofish; /* in its place */
    gcry_cipher_hd_t essiv;  /* NULL without */
};

static const struct cipher_alg algs[] = {
    {"aes-128", "aes", 16, 16, GCRY_CIPHER_AES128, true},
    {"aes-192", "aes", 24, 16, GCRY_CIPHER_AES192, true},
    {"aes-256", "aes", 32, 16, GCRY_CIPHER_AES256, true},
    {"cast5-128", "cast5", 16, 8, GCRY_CIPHER_CAST5, false},
    {"serpent-128", "serpent", 16, 16, GCRY_CIPHER_SERPENT128, false},
    {"serpent-192", "serpent", 24, 16, GCRY_CIPHER_SERPENT192, false},
    {"serpent-256", "serpent", 32, 16, GCRY_CIPHER_SERPENT256, false},
    {"twofish-128", "twofish", 16, 16, GCRY_CIPHER_TWOFISH128, false},
    {"twofish-192", "twofish", 24, 16, BY_NETTLE, false},
    {"twofish-256", "twofish", 32, 16, GCRY_CIPHER_TWOFISH, false},
    {"sm4", "sm4", 16, 16, GCRY_CIPHER_SM4, false},
};

static const struct cipher_alg *if_built_in(const struct cipher_alg *alg)
{
    crypto_library_start();
    bool has = alg->library_id == BY_NETTLE || gcry_cipher_test_algo(alg->library_id) == 0;
    return has ? alg : NULL;
}

const struct cipher_alg *cipher_alg_find(const char *name)
{
    for (size_t i = 0; i < ARRAY_LEN(algs); i++) {
        if (strcmp(algs[i].name, name) == 0) {
            return if_built_in(&algs[i]);
        }
    }
    return NULL;
}

const struct cipher_alg *cipher_alg_of_family(const char *family, uint32_t key_bytes)
{
    for (size_t i = 0; i < ARRAY_LEN(algs); i++) {
        if (strcmp(algs[i].family, family) == 0 && algs[i].key_bytes == key_bytes) {
            return if_built_in(&algs[i]);
        }
    }
    return NULL;
}

const char *cipher_alg_names(void)
{
    return "aes-128, aes-192, aes-256, cast5-128, serpent-128, serpent-192, serpent-256, "
           "twofish-128, twofish-192, twofish-256, sm4";
}

/* As dm-crypt: the one of the family whose key is as long as the hash's digest. */
static const struct cipher_alg *essiv_alg(const struct cipher_spec *spec)
{
    return cipher_alg_of_family(spec->alg->family, spec->iv_hash->digest_bytes);
}

int cipher_spec_check(const struct cipher_spec *spec, struct errtext *err)
{
    if (spec->mode == CIPHER_XTS && spec->alg->block_bytes != 16) {
        return err_set(err, EINVAL,
                       "cipher mode is xts with %s: allowed are ciphers with blocks of 16 bytes",
                       spec->alg->name);
    }
    if (spec->iv != CIPHER_IV_ESSIV) {
        return 0;
    }
    if (!spec->iv_hash) {
        return err_set(err, EINVAL, "IV generator is essiv: it needs a hash");
    }
    if (!essiv_alg(spec)) {
        return err_set(err, EINVAL,
                       "hash of the IV generator essiv is %s, of %" PRIu32
                       " bytes: allowed are hashes as long as a key of %s",
                       spec->iv_hash->name, spec->iv_hash->digest_bytes, spec->alg->family);
    }
    return 0;
}

int cipher_create(const struct cipher_spec *spec, const uint8_t *key, struct cipher **out)
{
    uint32_t key_bytes = cipher_spec_key_bytes(spec);

    assert(key_bytes <= CIPHER_KEY_BYTES_MAX);
    crypto_library_start();
    struct cipher *cipher = calloc(1, sizeof(*cipher));
    if (!cipher) {
        return -ENOMEM;
    }
    cipher->key = secret_alloc(key_bytes);
    if (!cipher->key) {
        free(cipher);
        return -ENOMEM;
    }
    cipher->spec = *spec;
    list_init(&cipher->idle);
    memcpy(cipher->key, key, key_bytes);
    /* The first lane now: what cannot work fails here, and not under a guest's write. */
    struct cipher_lane *lane = cipher_lane_get(cipher);
    if (!lane) {
        cipher_free(cipher);
        return -ENOMEM;
    }
    cipher_lane_put(cipher, lane);
    *out = cipher;
    return 0;
}

static void lane_free(struct cipher_lane *lane)
{
    gcry_cipher_close(lane->data);
    gcry_cipher_close(lane->essiv);
    twofish_free(lane->twofish);
    free(lane);
}

void cipher_free(struct cipher *cipher)
{
    if (!cipher) {
        return;
    }
    assert(cipher->lanes_out == 0);
    for (struct list *node; (node = list_pop_front(&cipher->idle)) != NULL;) {
        lane_free(list_entry(node, struct cipher_lane, link));
    }
    secret_free(cipher->key);
    free(cipher);
}

static int library_mode(enum cipher_mode mode)
{
    static const int modes[] = {[CIPHER_ECB] = GCRY_CIPHER_MODE_ECB,
                                [CIPHER_CBC] = GCRY_CIPHER_MODE_CBC,
                                [CIPHER_CTR] = GCRY_CIPHER_MODE_CTR,
                                [CIPHER_XTS] = GCRY_CIPHER_MODE_XTS};
    return modes[mode];
}

/* Weak keys are the caller's choice: a disk that has one must be readable. */
static int open_handle(gcry_cipher_hd_t *handle, int alg, int mode, const uint8_t *key, size_t len)
{
    if (gcry_cipher_open(handle, alg, mode, GCRY_CIPHER_SECURE)) {
        *handle = NULL;
        return -ENOMEM;
    }
    gcry_error_t error = gcry_cipher_setkey(*handle, key, len);
    return error && gcry_err_code(error) != GPG_ERR_WEAK_KEY ? -ENOMEM : 0;
}

static int open_data(struct cipher_lane *lane, const struct cipher *cipher)
{
    const struct cipher_spec *spec = &cipher->spec;

    if (spec->alg->library_id == BY_NETTLE) {
        lane->twofish = twofish_create(spec->mode, cipher->key);
        return lane->twofish ? 0 : -ENOMEM;
    }
    return open_handle(&lane->data, spec->alg->library_id, library_mode(spec->mode), cipher->key,
                       cipher_spec_key_bytes(spec));
}

static int open_essiv(struct cipher_lane *lane, const struct cipher *cipher)
{
    uint8_t digest[HASH_DIGEST_BYTES_MAX];
    const struct cipher_spec *spec = &cipher->spec;

    hash_bytes(spec->iv_hash, cipher->key, cipher_spec_key_bytes(spec), digest);
    int ret = open_handle(&lane->essiv, essiv_alg(spec)->library_id, GCRY_CIPHER_MODE_ECB, digest,
                          spec->iv_hash->digest_bytes);
    secret_wipe(digest, sizeof(digest));
    return ret;
}

static struct cipher_lane *lane_create(const struct cipher *cipher)
{
    const struct cipher_spec *spec = &cipher->spec;
    struct cipher_lane *lane = calloc(1, sizeof(*lane));
    if (!lane) {
        return NULL;
    }
    list_init(&lane->link);
    lane->mode = spec->mode;
    lane->iv = spec->iv;
    lane->block_bytes = spec->alg->block_bytes;
    int ret = open_data(lane, cipher);
    if (ret == 0 && spec->iv == CIPHER_IV_ESSIV) {
        ret = open_essiv(lane, cipher);
    }
    if (ret < 0) {
        lane_free(lane);
        return NULL;
    }
    return lane;
}

struct cipher_lane *cipher_lane_get(struct cipher *cipher)
{
    struct cipher_lane *lane;
    struct list *node = list_pop_front(&cipher->idle);
    if (node) {
        lane = list_entry(node, struct cipher_lane, link);
        cipher->idle_count--;
    } else {
        lane = lane_create(cipher);
    }
    cipher->lanes_out += lane ? 1 : 0;
    return lane;
}

void cipher_lane_put(struct cipher *cipher, struct cipher_lane *lane)
{
    cipher->lanes_out--;
    if (cipher->idle_count == LANES_KEPT) {
        lane_free(lane);
        return;
    }
    list_push_front(&cipher->idle, &lane->link);
    cipher->idle_count++;
}

static void check_done(gcry_error_t error)
{
    /* Lengths, keys and IVs are right by construction; ciphertext that is none must not be used. */
    assert(!error);
}

static void make_iv(struct cipher_lane *lane, uint64_t sector, uint8_t *iv)
{
    memset(iv, 0, BLOCK_BYTES_MAX);
    switch (lane->iv) {
    case CIPHER_IV_PLAIN:
        put_le32(iv, (uint32_t)sector);
        break;
    case CIPHER_IV_PLAIN64:
        put_le64(iv, sector);
        break;
    case CIPHER_IV_ESSIV:
        put_le64(iv, sector);
        check_done(gcry_cipher_encrypt(lane->essiv, iv, lane->block_bytes, NULL, 0));
        break;
    }
}

/* One chain. */
static void run_chain(struct cipher_lane *lane, bool encrypt, uint8_t *iv, const uint8_t *in,
                      uint8_t *out, size_t len)
{
    if (lane->twofish) {
        twofish_run(lane->twofish, encrypt, iv, in, out, len);
        return;
    }
    if (lane->mode == CIPHER_CTR) {
        check_done(gcry_cipher_setctr(lane->data, iv, lane->block_bytes));
    } else if (lane->mode != CIPHER_ECB) {
        check_done(gcry_cipher_setiv(lane->data, iv, lane->block_bytes));
    }
    const uint8_t *from = in == out ? NULL : in; /* how the library is told "in place" */
    size_t from_len = in == out ? 0 : len;
    check_done((encrypt ? gcry_cipher_encrypt : gcry_cipher_decrypt)(lane->data, out, len, from,
                                                                     from_len));
}

static void run(struct cipher_lane *lane, bool encrypt, uint64_t sector, const uint8_t *in,
                uint8_t *out, size_t len)
{
    uint8_t iv[BLOCK_BYTES_MAX];

    assert(len % CRYPTO_SECTOR_BYTES == 0);
    if (lane->mode == CIPHER_ECB) {
        run_chain(lane, encrypt, iv, in, out, len);
        return;
    }
    for (size_t done = 0; done < len; done += CRYPTO_SECTOR_BYTES) {
        make_iv(lane, sector++, iv);
        run_chain(lane, encrypt, iv, in + done, out + done, CRYPTO_SECTOR_BYTES);
    }
}

void cipher_encrypt(struct cipher_lane *lane, uint64_t sector, const uint8_t *in, uint8_t *out,
                    size_t len)
{
    run(lane, true, sector, in, out, len);
}

void cipher_decrypt(struct cipher_lane *lane, uint64_t sector, const uint8_t *in, uint8_t *out,
                    size_t len)
{
    run(lane, false, sector, in, out, len);
}
