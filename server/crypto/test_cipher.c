/* SPDX-License-Identifier: BSD-2-Clause */
/*
 * Every cipher, mode and IV generator on three sectors, whose numbers cross 2^32: what is expected
 * is the start of the SHA-256 of what another library (Nettle) makes of them.
 */
#include <errno.h>
#include <pthread.h>
#include <string.h>

#include "base/bytes.h"
#include "base/check.h"
#include "base/testing.h"
#include "crypto/cipher.h"

#define SECTORS      3U
#define FIRST_SECTOR 0x1fffffffeULL
#define STACK_BYTES  (256U * 1024U)
#define STACK_MOST   (8U * 1024U)

static const struct known {
    const char *alg;
    const char *mode;
    const char *iv;
    const char *iv_hash;
    uint64_t digest;
} known[] = {
    {"aes-128", "ecb", "plain", NULL, 0x65316f8c12b179ee},
    {"aes-128", "cbc", "plain", NULL, 0x449eea1ca05c0bdb},
    {"aes-128", "cbc", "plain64", NULL, 0xda98e3c437556c3e},
    {"aes-128", "cbc", "essiv", "md5", 0xfa90b76239cee0d6},
    {"aes-128", "ctr", "plain", NULL, 0x0f8b052d67356703},
    {"aes-128", "ctr", "plain64", NULL, 0x6971302bb6b90a9b},
    {"aes-128", "ctr", "essiv", "md5", 0xe0a1a68e7fa0a5b9},
    {"aes-128", "xts", "plain", NULL, 0x5423f7f703d8712b},
    {"aes-128", "xts", "plain64", NULL, 0x1df8ae6e4d4d8539},
    {"aes-128", "xts", "essiv", "md5", 0x27880d9d83af1c0f},
    {"aes-192", "ecb", "plain", NULL, 0xf0266ae3cac95406},
    {"aes-192", "cbc", "plain", NULL, 0x35afecc49e6ecb54},
    {"aes-192", "cbc", "plain64", NULL, 0x4e1e5ec09b9bedf5},
    {"aes-192", "cbc", "essiv", "sha256", 0xe9057907925b9105},
    {"aes-192", "ctr", "plain", NULL, 0x7b4b389bdd40419b},
    {"aes-192", "ctr", "plain64", NULL, 0x822e624fb662327a},
    {"aes-192", "ctr", "essiv", "sha256", 0xf1a2c0703080bb47},
    {"aes-192", "xts", "plain", NULL, 0x6854da0262fd7b7b},
    {"aes-192", "xts", "plain64", NULL, 0x391c83944ae06bad},
    {"aes-192", "xts", "essiv", "sha256", 0x29d2ee844546d688},
    {"aes-256", "ecb", "plain", NULL, 0x36e459c48f4d5948},
    {"aes-256", "cbc", "plain", NULL, 0x5423c06ee0afc932},
    {"aes-256", "cbc", "plain64", NULL, 0x76ad2e20058d7401},
    {"aes-256", "cbc", "essiv", "sha256", 0xfc0344de2af8a53a},
    {"aes-256", "ctr", "plain", NULL, 0x9207c371301a2338},
    {"aes-256", "ctr", "plain64", NULL, 0x0f9b17e637877772},
    {"aes-256", "ctr", "essiv", "sha256", 0xefa30ce210d3f608},
    {"aes-256", "xts", "plain", NULL, 0xa90d1e463ff5947a},
    {"aes-256", "xts", "plain64", NULL, 0x03254e6389f971ed},
    {"aes-256", "xts", "essiv", "sha256", 0xcb3599845f91f270},
    {"cast5-128", "ecb", "plain", NULL, 0x42708aa39a6d345c},
    {"cast5-128", "cbc", "plain", NULL, 0x4793a60b88286dd6},
    {"cast5-128", "cbc", "plain64", NULL, 0x3c7e91e6d8450da9},
    {"cast5-128", "cbc", "essiv", "md5", 0x627cb828a05ae2ae},
    {"cast5-128", "ctr", "plain", NULL, 0x21e484a2474460ce},
    {"cast5-128", "ctr", "plain64", NULL, 0xcb4d45486a87b36f},
    {"cast5-128", "ctr", "essiv", "md5", 0x72212cb03577f1f7},
    {"serpent-128", "ecb", "plain", NULL, 0x8efbf2c04a97cfdc},
    {"serpent-128", "cbc", "plain", NULL, 0xbe60b987a66f26ae},
    {"serpent-128", "cbc", "plain64", NULL, 0xf79d41963ca9b124},
    {"serpent-128", "cbc", "essiv", "md5", 0xbd25c213dc503ffd},
    {"serpent-128", "ctr", "plain", NULL, 0x230d8063397bf218},
    {"serpent-128", "ctr", "plain64", NULL, 0x7b89309f9fa08e16},
    {"serpent-128", "ctr", "essiv", "md5", 0xa2a61bb318af4d88},
    {"serpent-128", "xts", "plain", NULL, 0x91b8e45026fbdcfa},
    {"serpent-128", "xts", "plain64", NULL, 0xc744679eab465f8f},
    {"serpent-128", "xts", "essiv", "md5", 0x94e4bd006a248177},
    {"serpent-192", "ecb", "plain", NULL, 0xd08ab7dcda10933b},
    {"serpent-192", "cbc", "plain", NULL, 0xa0a83b3726cdd76f},
    {"serpent-192", "cbc", "plain64", NULL, 0x1be639f879dbc4cd},
    {"serpent-192", "cbc", "essiv", "sha256", 0x8ba904bfc2c26339},
    {"serpent-192", "ctr", "plain", NULL, 0x32aa71c2441f8981},
    {"serpent-192", "ctr", "plain64", NULL, 0x6618673417e7d8b1},
    {"serpent-192", "ctr", "essiv", "sha256", 0x731728f4c8dd8bcd},
    {"serpent-192", "xts", "plain", NULL, 0x65a2996412ebb8bf},
    {"serpent-192", "xts", "plain64", NULL, 0x8dfa3dff87fdeb11},
    {"serpent-192", "xts", "essiv", "sha256", 0x80ff759f116c0ac5},
    {"serpent-256", "ecb", "plain", NULL, 0x6fd941304d39c3f1},
    {"serpent-256", "cbc", "plain", NULL, 0xef101bd3cca70747},
    {"serpent-256", "cbc", "plain64", NULL, 0x859d7300a5e3a1c8},
    {"serpent-256", "cbc", "essiv", "sha256", 0xe0b3c79e82870eee},
    {"serpent-256", "ctr", "plain", NULL, 0x14e3dcf218b7ed3d},
    {"serpent-256", "ctr", "plain64", NULL, 0x8dcb4e730a93817b},
    {"serpent-256", "ctr", "essiv", "sha256", 0x90fcb7870e2f8d86},
    {"serpent-256", "xts", "plain", NULL, 0x7b841cf97a4826fb},
    {"serpent-256", "xts", "plain64", NULL, 0xedbc71e032d70ac3},
    {"serpent-256", "xts", "essiv", "sha256", 0xd5035af4e5b5343a},
    {"twofish-128", "ecb", "plain", NULL, 0xade91092fb0bb4cb},
    {"twofish-128", "cbc", "plain", NULL, 0x015b89291f0bc26b},
    {"twofish-128", "cbc", "plain64", NULL, 0xfec7e4337d93e2c3},
    {"twofish-128", "cbc", "essiv", "md5", 0x28be3f4c06690cd7},
    {"twofish-128", "ctr", "plain", NULL, 0x7f9f035f80251e97},
    {"twofish-128", "ctr", "plain64", NULL, 0xd59e055d1c7366df},
    {"twofish-128", "ctr", "essiv", "md5", 0x16d289a1f40f939c},
    {"twofish-128", "xts", "plain", NULL, 0xac09f818b05ca6ad},
    {"twofish-128", "xts", "plain64", NULL, 0x351756f23fd518b0},
    {"twofish-128", "xts", "essiv", "md5", 0x4870b538fb31f13a},
    {"twofish-192", "ecb", "plain", NULL, 0xddd8fe0867cbf28b},
    {"twofish-192", "cbc", "plain", NULL, 0x619120ec43d6a7e2},
    {"twofish-192", "cbc", "plain64", NULL, 0xfc606b30970af427},
    {"twofish-192", "cbc", "essiv", "sha256", 0x4b3b4312cca6560f},
    {"twofish-192", "ctr", "plain", NULL, 0xfbf7a5b04d6e167c},
    {"twofish-192", "ctr", "plain64", NULL, 0x4f8ef9f7ac8fc284},
    {"twofish-192", "ctr", "essiv", "sha256", 0x5f1609a839ffecb3},
    {"twofish-192", "xts", "plain", NULL, 0xc9f55341c22c1c70},
    {"twofish-192", "xts", "plain64", NULL, 0x8d811f3a58c184b0},
    {"twofish-192", "xts", "essiv", "sha256", 0x606028e42ebe7de2},
    {"twofish-256", "ecb", "plain", NULL, 0x0bad435305bda8b0},
    {"twofish-256", "cbc", "plain", NULL, 0x0748f5cfe6cffc52},
    {"twofish-256", "cbc", "plain64", NULL, 0xc017690c0994c41b},
    {"twofish-256", "cbc", "essiv", "sha256", 0xa4e3aa16fc4068b2},
    {"twofish-256", "ctr", "plain", NULL, 0x06078c792af96891},
    {"twofish-256", "ctr", "plain64", NULL, 0xcfa128bc0ae874f0},
    {"twofish-256", "ctr", "essiv", "sha256", 0xd6cb24ee15522b7f},
    {"twofish-256", "xts", "plain", NULL, 0x0739e1458f21b03c},
    {"twofish-256", "xts", "plain64", NULL, 0x9781a5ee1d291e5a},
    {"twofish-256", "xts", "essiv", "sha256", 0xa3b24ce68827b3c6},
};

static uint8_t plain[SECTORS * CRYPTO_SECTOR_BYTES];
static uint8_t key[CIPHER_KEY_BYTES_MAX];

static void make_bytes(void)
{
    for (unsigned i = 0; i < sizeof(key); i++) {
        key[i] = (uint8_t)(i * 11 + 5);
    }
    for (unsigned i = 0; i < sizeof(plain); i++) {
        plain[i] = (uint8_t)(i * i + i / 7);
    }
}

static struct cipher *make(const struct known *row)
{
    struct cipher_spec spec = {.alg = cipher_alg_find(row->alg)};
    struct errtext err = {""};
    struct cipher *cipher;

    ck_assert_ptr_nonnull(spec.alg);
    ck_assert(cipher_mode_find(row->mode, &spec.mode));
    ck_assert(cipher_iv_find(row->iv, &spec.iv));
    ck_assert_str_eq(cipher_mode_name(spec.mode), row->mode);
    ck_assert_str_eq(cipher_iv_name(spec.iv), row->iv);
    spec.iv_hash = row->iv_hash ? hash_find(row->iv_hash) : NULL;
    ck_assert_msg(cipher_spec_check(&spec, &err) == 0, "%s", err.text);
    ck_assert_int_eq(cipher_create(&spec, key, &cipher), 0);
    return cipher;
}

START_TEST(every_combination_is_as_another_library_has_it)
{
    const struct known *row = &known[_i];
    uint8_t out[sizeof(plain)], again[sizeof(plain)], digest[HASH_DIGEST_BYTES_MAX];

    make_bytes();
    struct cipher *cipher = make(row);
    struct cipher_lane *lane = cipher_lane_get(cipher);
    cipher_encrypt(lane, FIRST_SECTOR, plain, out, sizeof(out));
    hash_bytes(hash_find("sha256"), out, sizeof(out), digest);
    ck_assert_msg(get_be64(digest) == row->digest, "%s-%s-%s", row->alg, row->mode, row->iv);

    cipher_decrypt(lane, FIRST_SECTOR, out, again, sizeof(again));
    ck_assert_mem_eq(again, plain, sizeof(plain));
    cipher_decrypt(lane, FIRST_SECTOR, out, out, sizeof(out));
    ck_assert_mem_eq(out, plain, sizeof(plain));
    /* A sector is the same whether it comes alone or with its neighbours, and in place. */
    cipher_encrypt(lane, FIRST_SECTOR, plain, out, sizeof(out));
    memcpy(again, plain, sizeof(plain));
    for (unsigned i = 0; i < SECTORS; i++) {
        uint8_t *sector = again + i * CRYPTO_SECTOR_BYTES;
        cipher_encrypt(lane, FIRST_SECTOR + i, sector, sector, CRYPTO_SECTOR_BYTES);
    }
    ck_assert_mem_eq(again, out, sizeof(out));
    cipher_lane_put(cipher, lane);
    cipher_free(cipher);
}
END_TEST

START_TEST(sm4_comes_back)
{
    static const char *const modes[] = {"ecb", "cbc", "ctr", "xts"};
    uint8_t out[sizeof(plain)];

    make_bytes();
    for (unsigned i = 0; i < ARRAY_LEN(modes); i++) {
        struct cipher *cipher = make(&(struct known){"sm4", modes[i], "plain64", NULL, 0});
        struct cipher_lane *lane = cipher_lane_get(cipher);
        cipher_encrypt(lane, 7, plain, out, sizeof(out));
        ck_assert_mem_ne(out, plain, sizeof(out));
        cipher_decrypt(lane, 7, out, out, sizeof(out));
        ck_assert_mem_eq(out, plain, sizeof(out));
        cipher_lane_put(cipher, lane);
        cipher_free(cipher);
    }
}
END_TEST

/* GB/T 32907's example: one block, through ECB. */
START_TEST(sm4_is_as_the_standard_has_it)
{
    static const uint8_t block[16] = {0x01, 0x23, 0x45, 0x67, 0x89, 0xab, 0xcd, 0xef,
                                      0xfe, 0xdc, 0xba, 0x98, 0x76, 0x54, 0x32, 0x10};
    static const uint8_t expected[16] = {0x68, 0x1e, 0xdf, 0x34, 0xd2, 0x06, 0x96, 0x5e,
                                         0x86, 0xb3, 0xe9, 0x4f, 0x53, 0x6e, 0x42, 0x46};
    uint8_t sector[CRYPTO_SECTOR_BYTES] = {0};

    memcpy(key, block, sizeof(block));
    memcpy(sector, block, sizeof(block));
    struct cipher *cipher = make(&(struct known){"sm4", "ecb", "plain", NULL, 0});
    struct cipher_lane *lane = cipher_lane_get(cipher);
    cipher_encrypt(lane, 0, sector, sector, sizeof(sector));
    ck_assert_mem_eq(sector, expected, sizeof(expected));
    cipher_lane_put(cipher, lane);
    cipher_free(cipher);
}
END_TEST

START_TEST(parts_that_do_not_go_together_are_refused)
{
    struct errtext err = {""};
    struct cipher_spec spec = {cipher_alg_find("cast5-128"), CIPHER_XTS, CIPHER_IV_PLAIN64, NULL};
    ck_assert_int_eq(cipher_spec_check(&spec, &err), -EINVAL);
    ck_assert_ptr_nonnull(strstr(err.text, "blocks of 16 bytes"));

    spec = (struct cipher_spec){cipher_alg_find("aes-256"), CIPHER_CBC, CIPHER_IV_ESSIV,
                                hash_find("sha1")};
    ck_assert_int_eq(cipher_spec_check(&spec, &err), -EINVAL);
    ck_assert_ptr_nonnull(strstr(err.text, "sha1, of 20 bytes"));
    spec.iv_hash = NULL;
    ck_assert_int_eq(cipher_spec_check(&spec, &err), -EINVAL);

    ck_assert_ptr_null(cipher_alg_find("aes-257"));
    ck_assert_ptr_null(cipher_alg_of_family("aes", 17));
    ck_assert_ptr_null(cipher_alg_of_family("aes", 0));
    enum cipher_mode mode;
    enum cipher_iv iv;
    ck_assert(!cipher_mode_find("gcm", &mode));
    ck_assert(!cipher_iv_find("benbi", &iv));
}
END_TEST

START_TEST(lanes_work_side_by_side)
{
    uint8_t one[sizeof(plain)], two[sizeof(plain)];

    make_bytes();
    struct cipher *cipher = make(&(struct known){"aes-256", "cbc", "essiv", "sha256", 0});
    struct cipher_lane *lanes[10];
    for (unsigned i = 0; i < ARRAY_LEN(lanes); i++) {
        lanes[i] = cipher_lane_get(cipher);
        ck_assert_ptr_nonnull(lanes[i]);
    }
    cipher_encrypt(lanes[0], 1, plain, one, sizeof(one));
    cipher_encrypt(lanes[9], 1, plain, two, sizeof(two));
    ck_assert_mem_eq(one, two, sizeof(one));
    for (unsigned i = 0; i < ARRAY_LEN(lanes); i++) {
        cipher_lane_put(cipher, lanes[i]);
    }
    cipher_free(cipher);
}
END_TEST

static void *run_all(void *arg)
{
    uint8_t out[sizeof(plain)];
    struct cipher_lane **lanes = arg;

    for (unsigned i = 0; i < ARRAY_LEN(known); i++) {
        cipher_encrypt(lanes[i], 1, plain, out, sizeof(out));
        cipher_decrypt(lanes[i], 1, out, out, sizeof(out));
    }
    return NULL;
}

/* What cipher.h promises to coroutines. Sanitizers have stacks of another kind. */
START_TEST(the_stack_is_small)
{
    static uint8_t stack[STACK_BYTES] __attribute__((aligned(4096)));
    struct cipher *ciphers[ARRAY_LEN(known)];
    struct cipher_lane *lanes[ARRAY_LEN(known)];
    pthread_attr_t attr;
    pthread_t thread;
    size_t untouched = 0;

    make_bytes();
    for (unsigned i = 0; i < ARRAY_LEN(known); i++) {
        ciphers[i] = make(&known[i]);
        lanes[i] = cipher_lane_get(ciphers[i]);
    }
    memset(stack, 0xa5, sizeof(stack));
    pthread_attr_init(&attr);
    ck_assert_int_eq(pthread_attr_setstack(&attr, stack, sizeof(stack)), 0);
    ck_assert_int_eq(pthread_create(&thread, &attr, run_all, lanes), 0);
    pthread_join(thread, NULL);
    pthread_attr_destroy(&attr);
    while (untouched < sizeof(stack) && stack[untouched] == 0xa5) {
        untouched++;
    }
    /* The thread's own start and its local buffer are in it. */
    size_t used = sizeof(stack) - untouched;
    ck_assert_msg(used <= STACK_MOST + sizeof(plain) + 4096, "%zu bytes", used);
    for (unsigned i = 0; i < ARRAY_LEN(known); i++) {
        cipher_lane_put(ciphers[i], lanes[i]);
        cipher_free(ciphers[i]);
    }
}
END_TEST

int main(void)
{
    Suite *suite = suite_create("cipher");
    TCase *tc = tcase_create("cipher");
    tcase_add_loop_test(tc, every_combination_is_as_another_library_has_it, 0,
                        (int)ARRAY_LEN(known));
    tcase_add_test(tc, sm4_comes_back);
    tcase_add_test(tc, sm4_is_as_the_standard_has_it);
    tcase_add_test(tc, parts_that_do_not_go_together_are_refused);
    tcase_add_test(tc, lanes_work_side_by_side);
    tcase_add_test(tc, the_stack_is_small);
    suite_add_tcase(suite, tc);
    return test_suite_run(suite);
}
