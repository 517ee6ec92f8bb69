/* SPDX-License-Identifier: BSD-2-Clause */
#include "crypto/kdf.h"

#include <errno.h>
#include <gcrypt.h>
#include <string.h>
#include <time.h>

#include "base/check.h"
#include "crypto/library.h"

/* Long enough for the clock to tell, short enough not to be waited for. */
#define BENCHMARK_NS 100000000U

static const struct hash_alg hashes[] = {
    {"md5", 16, GCRY_MD_MD5},          {"sha1", 20, GCRY_MD_SHA1},
    {"sha224", 28, GCRY_MD_SHA224},    {"sha256", 32, GCRY_MD_SHA256},
    {"sha384", 48, GCRY_MD_SHA384},    {"sha512", 64, GCRY_MD_SHA512},
    {"ripemd160", 20, GCRY_MD_RMD160}, {"sm3", 32, GCRY_MD_SM3},
};

const struct hash_alg *hash_find(const char *name)
{
    for (size_t i = 0; i < ARRAY_LEN(hashes); i++) {
        if (strcmp(hashes[i].name, name) == 0) {
            crypto_library_start();
            return gcry_md_test_algo(hashes[i].library_id) == 0 ? &hashes[i] : NULL;
        }
    }
    return NULL;
}

const char *hash_names(void)
{
    return "md5, sha1, sha224, sha256, sha384, sha512, ripemd160, sm3";
}

void hash_bytes(const struct hash_alg *alg, const void *in, size_t len, uint8_t *out)
{
    gcry_md_hash_buffer(alg->library_id, out, in, len);
}

int kdf_derive(const struct hash_alg *alg, const void *passphrase, size_t len, const uint8_t *salt,
               size_t salt_len, uint32_t iterations, uint8_t *out, size_t out_len)
{
    gcry_error_t error = gcry_kdf_derive(passphrase, len, GCRY_KDF_PBKDF2, alg->library_id, salt,
                                         salt_len, iterations, out_len, out);
    assert(!error || gcry_err_code(error) == GPG_ERR_ENOMEM);
    return error ? -ENOMEM : 0;
}

static uint64_t thread_ns(void)
{
    struct timespec now;
    clock_gettime(CLOCK_THREAD_CPUTIME_ID, &now);
    return (uint64_t)now.tv_sec * 1000000000U + (uint64_t)now.tv_nsec;
}

uint32_t kdf_iterations(const struct hash_alg *alg, size_t out_len, uint32_t ms, uint32_t most)
{
    uint8_t out[HASH_DIGEST_BYTES_MAX * 2];
    uint8_t salt[32] = {0};
    uint32_t iterations = 1U << 14;
    uint64_t took_ns;

    assert(out_len <= sizeof(out));
    for (;;) {
        uint64_t start = thread_ns();
        if (kdf_derive(alg, "passphrase", 10, salt, sizeof(salt), iterations, out, out_len) < 0) {
            return 1;
        }
        took_ns = thread_ns() - start;
        if (took_ns >= BENCHMARK_NS || iterations >= 1U << 30) {
            break;
        }
        iterations *= 2;
    }
    uint64_t wanted = (uint64_t)((double)iterations * 1e6 * ms / (double)MAX_OF(took_ns, 1U));
    return (uint32_t)MAX_OF(MIN_OF(wanted, (uint64_t)most), 1U);
}
