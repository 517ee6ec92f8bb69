/* SPDX-License-Identifier: BSD-2-Clause */
/* PBKDF2 and the anti-forensic split, against what Python's hashlib makes of the same. */
#include <stdlib.h>
#include <string.h>

#include "base/bytes.h"
#include "base/check.h"
#include "base/testing.h"
#include "crypto/kdf.h"
#include "crypto/luks_split.h"

#define STRIPES 4000U

static const struct derived {
    const char *hash;
    uint32_t iterations;
    size_t len;
    uint64_t last8;
} derived[] = {
    {"sha1", 4096, 20, 0x4521c73886db80e4},      {"sha256", 1000, 64, 0x537b2122766ec4e8},
    {"sha512", 1000, 32, 0x6e7dc9881aadacc0},    {"md5", 1000, 64, 0x0e437763bf9ab8f2},
    {"sha224", 1000, 64, 0xe268ff2b57571c3d},    {"sha384", 1000, 64, 0x6fa05c273bc4eb38},
    {"ripemd160", 1000, 64, 0x83d57dbb083524cc}, {"sm3", 1000, 64, 0x67c5a281dc57c947},
};

START_TEST(keys_are_derived)
{
    const struct derived *row = &derived[_i];
    static const uint8_t text[4] = {'s', 'a', 'l', 't'};
    uint8_t salt[32], out[64];

    for (unsigned i = 0; i < sizeof(salt); i++) {
        salt[i] = text[i % 4];
    }
    ck_assert_int_eq(kdf_derive(hash_find(row->hash), "passphrase", 10, salt, sizeof(salt),
                                row->iterations, out, row->len),
                     0);
    ck_assert_msg(get_be64(out + row->len - 8) == row->last8, "%s", row->hash);
}
END_TEST

static const struct split {
    const char *hash;
    uint32_t key_bytes;
    uint64_t first8;
} splits[] = {
    {"sha1", 16, 0xaa575ef03b82cf85},   {"sha1", 32, 0xc8e0d17e17f9b63f},
    {"sha1", 64, 0x9d4b2e1b4c8e0477},   {"sha256", 16, 0x7224425c8044c061},
    {"sha256", 32, 0x55299a04fd1d2388}, {"sha256", 64, 0xfb2109773bbe2d0e},
    {"sha512", 16, 0xdc632a8772705cea}, {"sha512", 32, 0x30e1add461f4af50},
    {"sha512", 64, 0x7cf8d04b694bc074}, {"md5", 16, 0xf877c456d34b7e89},
    {"md5", 32, 0x2a9b57491f209356},    {"md5", 64, 0xb3790c3da88981bf},
};

START_TEST(a_split_key_comes_together)
{
    const struct split *row = &splits[_i];
    const struct hash_alg *hash = hash_find(row->hash);
    uint32_t len = row->key_bytes * STRIPES;
    uint8_t *split = malloc(len);
    uint8_t key[64], again[64];

    for (uint32_t i = 0; i < len; i++) {
        split[i] = (uint8_t)(i * 7 + (i >> 8) * 13);
    }
    luks_merge(hash, split, row->key_bytes, STRIPES, key);
    ck_assert_msg(get_be64(key) == row->first8, "%s %u", row->hash, row->key_bytes);

    uint8_t last = split[len - 1];
    memset(split + len - row->key_bytes, 0xee, row->key_bytes);
    luks_split(hash, key, row->key_bytes, STRIPES, split);
    ck_assert_uint_eq(split[len - 1], last);
    luks_merge(hash, split, row->key_bytes, STRIPES, again);
    ck_assert_mem_eq(key, again, row->key_bytes);

    split[len / 2] ^= 1;
    luks_merge(hash, split, row->key_bytes, STRIPES, again);
    ck_assert_mem_ne(key, again, row->key_bytes);
    free(split);
}
END_TEST

START_TEST(names)
{
    ck_assert_ptr_null(hash_find("sha3"));
    ck_assert_ptr_null(hash_find("SHA256"));
    ck_assert_ptr_null(hash_find(""));
    for (unsigned i = 0; i < ARRAY_LEN(derived); i++) {
        ck_assert_ptr_nonnull(strstr(hash_names(), derived[i].hash));
    }
}
END_TEST

START_TEST(iterations_follow_the_time)
{
    const struct hash_alg *hash = hash_find("sha256");
    uint32_t ten = kdf_iterations(hash, 32, 10, UINT32_MAX);
    uint32_t thousand = kdf_iterations(hash, 32, 1000, UINT32_MAX);

    ck_assert_uint_gt(ten, 100);
    ck_assert_uint_gt(thousand, ten * 20);
    ck_assert_uint_eq(kdf_iterations(hash, 32, 1000, 5), 5);
    ck_assert_uint_eq(kdf_iterations(hash, 32, 0, 5), 1);
}
END_TEST

int main(void)
{
    Suite *suite = suite_create("kdf");
    TCase *tc = tcase_create("kdf");
    tcase_set_timeout(tc, 30);
    tcase_add_loop_test(tc, keys_are_derived, 0, (int)ARRAY_LEN(derived));
    tcase_add_loop_test(tc, a_split_key_comes_together, 0, (int)ARRAY_LEN(splits));
    tcase_add_test(tc, names);
    tcase_add_test(tc, iterations_follow_the_time);
    suite_add_tcase(suite, tc);
    return test_suite_run(suite);
}
