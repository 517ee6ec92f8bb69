/* SPDX-License-Identifier: BSD-2-Clause */
/*
 * The header is one that qemu-img 7.2 made (aes-128, cbc, essiv:sha256, sha1); a stranger's are
 * made of it by changing one field.
 */
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/bytes.h"
#include "base/check.h"
#include "base/testing.h"
#include "crypto/luks.h"

#define AREA_BYTES              0x81000U
#define SLOT_FIELD(slot, field) (208 + 48 * (slot) + (field))

static const uint8_t salts[] = {
    /* digest and its salt, of the key */
    0xf5, 0x0e, 0xe0, 0xa7, 0xa9, 0x76, 0x37, 0xc4, 0x38, 0x46, 0x4a, 0xf2, 0x5d,
    0x92, 0x58, 0xb2, 0xc6, 0x8f, 0x2c, 0x27, 0xf6, 0x75, 0x47, 0x60, 0x44, 0x81,
    0x7d, 0x81, 0x4d, 0xa6, 0xfd, 0x3e, 0x54, 0x62, 0xd4, 0x40, 0x12, 0xdc, 0xdb,
    0xf3, 0x3f, 0x58, 0x2e, 0xe1, 0xee, 0x7c, 0x46, 0xdc, 0x66, 0x79, 0x27, 0xe1,
};

static void put_header(uint8_t *bytes)
{
    memset(bytes, 0, LUKS_HEADER_BYTES);
    memcpy(bytes, "LUKS\xba\xbe\0\1aes", 11);
    memcpy(bytes + 40, "cbc-essiv:sha256", 16);
    memcpy(bytes + 72, "sha1", 4);
    put_be32(bytes + 104, 0x408);
    put_be32(bytes + 108, 16);
    memcpy(bytes + 112, salts, sizeof(salts));
    put_be32(bytes + 164, 0x1c6b);
    memcpy(bytes + 168, "ebbef078-f8d5-4f9f-a485-c3d969d97049", LUKS_UUID_CHARS);
    for (unsigned i = 0; i < LUKS_SLOTS; i++) {
        put_be32(bytes + SLOT_FIELD(i, 0), i == 0 ? 0x00ac71f3 : 0xdead);
        put_be32(bytes + SLOT_FIELD(i, 40), 8 + 0x80 * i);
        put_be32(bytes + SLOT_FIELD(i, 44), 4000);
    }
    put_be32(bytes + SLOT_FIELD(0, 4), 0xe776);
}

START_TEST(what_qemu_img_made_is_understood)
{
    uint8_t bytes[LUKS_HEADER_BYTES], again[LUKS_HEADER_BYTES];
    struct errtext err = {""};
    struct luks luks;

    put_header(bytes);
    ck_assert_msg(luks_parse(bytes, AREA_BYTES, &luks, &err) == 0, "%s", err.text);
    ck_assert_str_eq(luks.spec.alg->name, "aes-128");
    ck_assert_int_eq(luks.spec.mode, CIPHER_CBC);
    ck_assert_int_eq(luks.spec.iv, CIPHER_IV_ESSIV);
    ck_assert_str_eq(luks.spec.iv_hash->name, "sha256");
    ck_assert_str_eq(luks.hash->name, "sha1");
    ck_assert_str_eq(luks.uuid, "ebbef078-f8d5-4f9f-a485-c3d969d97049");
    ck_assert_uint_eq(luks_active_slots(&luks), 1);
    ck_assert_uint_eq(luks.slots[0].iterations, 0xe776);
    ck_assert_uint_eq(luks_material_offset(&luks, 1), 69632);
    ck_assert_uint_eq(luks_material_bytes(&luks), 64000);
    ck_assert_uint_eq(luks_area_bytes(&luks), AREA_BYTES);
    luks_format(&luks, again);
    ck_assert_mem_eq(bytes, again, sizeof(bytes));
}
END_TEST

static void refused(const uint8_t *bytes, uint64_t area_bytes, int error, const char *says)
{
    struct errtext err = {""};
    struct luks luks;
    int ret = luks_parse(bytes, area_bytes, &luks, &err);
    ck_assert_msg(ret == -error, "%d for %s", ret, says);
    ck_assert_msg(strstr(err.text, says) != NULL, "'%s' does not say '%s'", err.text, says);
}

static const struct change {
    size_t offset;
    uint32_t value;
    int error;
    const char *says;
} changes[] = {
    {0, 0x4c554b00, EINVAL, "LUKS's magic"},
    {4, 0xbabe0002, ENOTSUP, "version of the LUKS header is 2"},
    {104, 0x409, EINVAL, "payload-offset of the LUKS header is sector 1033"},
    {104, 0xffffffff, EINVAL, "payload-offset"},
    {104, 0, EINVAL, "material of slot 0"},
    {108, 0, ENOTSUP, "with a key of 0 bytes"},
    {108, 17, ENOTSUP, "with a key of 17 bytes"},
    {108, 0xffffffff, ENOTSUP, "with a key of 4294967295 bytes"},
    {164, 0, EINVAL, "key's digest of the LUKS header are 0"},
    {164, 0xffffffff, EINVAL, "key's digest of the LUKS header are 4294967295"},
    {164, 60000000, EINVAL, "key's digest of the LUKS header are 60000000"},
    {8, 0x41455300, ENOTSUP, "cipher-name of the LUKS header is 'AES'"},
    {40, 0x67636d00, ENOTSUP, "cipher-mode of the LUKS header is 'gcm'"},
    {40, 0x63626300, ENOTSUP, "cipher-mode of the LUKS header is 'cbc'"},
    {44, 0x00000000, ENOTSUP, "cipher-mode of the LUKS header is 'cbc-'"},
    {48, 0x76003a00, ENOTSUP, "essiv with a hash"},
    {72, 0x73686133, ENOTSUP, "hash-spec of the LUKS header is 'sha3'"},
    {SLOT_FIELD(3, 0), 1, EINVAL, "state of slot 3 of the LUKS header is 0x00000001"},
    {SLOT_FIELD(0, 4), 0, EINVAL, "slot 0 of the LUKS header are 0"},
    {SLOT_FIELD(0, 4), 0xffffffff, EINVAL, "slot 0 of the LUKS header are 4294967295"},
    {SLOT_FIELD(7, 44), 3999, EINVAL, "stripes of slot 7 of the LUKS header are 3999"},
    {SLOT_FIELD(7, 44), 0, EINVAL, "stripes of slot 7"},
    {SLOT_FIELD(2, 40), 0, EINVAL, "material of slot 2 of the LUKS header is at sector 0"},
    {SLOT_FIELD(2, 40), 1, EINVAL, "material of slot 2 of the LUKS header is at sector 1"},
    {SLOT_FIELD(2, 40), 0xffffffff, EINVAL, "material of slot 2"},
    {SLOT_FIELD(7, 40), 0x38c, EINVAL, "material of slot 7"},
    {SLOT_FIELD(5, 40), 9, EINVAL, "outside of that of slot 0 at 8"},
};

START_TEST(a_strangers_header_is_refused)
{
    const struct change *change = &changes[_i];
    uint8_t bytes[LUKS_HEADER_BYTES];

    put_header(bytes);
    put_be32(bytes + change->offset, change->value);
    refused(bytes, AREA_BYTES, change->error, change->says);
}
END_TEST

START_TEST(texts_without_end_and_small_areas_are_refused)
{
    static const size_t texts[] = {8, 40, 72};
    uint8_t bytes[LUKS_HEADER_BYTES];

    for (unsigned i = 0; i < ARRAY_LEN(texts); i++) {
        put_header(bytes);
        memset(bytes + texts[i], 'x', 32);
        refused(bytes, AREA_BYTES, EINVAL, "has no end");
    }
    put_header(bytes);
    refused(bytes, AREA_BYTES - 1, EINVAL, "payload-offset");
    refused(bytes, LUKS_HEADER_BYTES, EINVAL, "payload-offset");
    /* All slots together: none of them is over the limit. */
    put_header(bytes);
    for (unsigned i = 0; i < LUKS_SLOTS; i++) {
        put_be32(bytes + SLOT_FIELD(i, 0), 0x00ac71f3);
        put_be32(bytes + SLOT_FIELD(i, 4), 20000000);
    }
    refused(bytes, AREA_BYTES, EINVAL, "rounds of the hash in all slots together");
}
END_TEST

static void make_key(struct luks *luks, const char *alg, enum cipher_mode mode, uint8_t *key)
{
    *luks = (struct luks){
        .spec = {cipher_alg_find(alg), mode, CIPHER_IV_PLAIN64, NULL},
        .hash = hash_find("sha256"),
        .digest_iterations = 1000,
    };
    memset(luks->digest_salt, 3, sizeof(luks->digest_salt));
    for (uint32_t i = 0; i < luks_key_bytes(luks); i++) {
        key[i] = (uint8_t)(i * 3 + 1);
    }
    ck_assert_int_eq(luks_init(luks, key), 0);
}

START_TEST(a_key_comes_back_out_of_its_slot)
{
    static const char *const algs[] = {"aes-256", "aes-192", "serpent-128"};
    struct luks luks, parsed;
    struct errtext err = {""};
    uint8_t key[CIPHER_KEY_BYTES_MAX], got[CIPHER_KEY_BYTES_MAX], bytes[LUKS_HEADER_BYTES];

    make_key(&luks, algs[_i], _i == 1 ? CIPHER_CBC : CIPHER_XTS, key);
    size_t len = luks_material_bytes(&luks);
    uint8_t *material = malloc(len), *copy = malloc(len);
    for (size_t i = 0; i < len; i++) {
        material[i] = (uint8_t)(i * i >> 3);
    }
    luks.slots[5].iterations = 1234;
    memset(luks.slots[5].salt, 9, LUKS_SALT_BYTES);
    ck_assert_int_eq(luks_lock(&luks, 5, material, (const uint8_t *)"open", 4, key), 0);
    luks.slots[5].active = true;

    luks_format(&luks, bytes);
    ck_assert_msg(luks_parse(bytes, luks_area_bytes(&luks), &parsed, &err) == 0, "%s", err.text);
    memcpy(copy, material, len);
    ck_assert_int_eq(luks_unlock(&parsed, 5, copy, (const uint8_t *)"open", 4, got), 0);
    ck_assert_mem_eq(got, key, luks_key_bytes(&luks));
    memcpy(copy, material, len);
    ck_assert_int_eq(luks_unlock(&parsed, 5, copy, (const uint8_t *)"open\n", 5, got), -EACCES);
    ck_assert_mem_ne(got, key, luks_key_bytes(&luks));
    memcpy(copy, material, len);
    copy[10] ^= 4; /* any part of the material is all of it */
    ck_assert_int_eq(luks_unlock(&parsed, 5, copy, (const uint8_t *)"open", 4, got), -EACCES);
    free(material);
    free(copy);
}
END_TEST

int main(void)
{
    Suite *suite = suite_create("luks");
    TCase *tc = tcase_create("luks");
    tcase_add_test(tc, what_qemu_img_made_is_understood);
    tcase_add_loop_test(tc, a_strangers_header_is_refused, 0, (int)ARRAY_LEN(changes));
    tcase_add_test(tc, texts_without_end_and_small_areas_are_refused);
    tcase_add_loop_test(tc, a_key_comes_back_out_of_its_slot, 0, 3);
    suite_add_tcase(suite, tc);
    return test_suite_run(suite);
}
