/* SPDX-License-Identifier: BSD-2-Clause */
/* Decoders against streams of every shape: whole, cut, garbled, followed by garbage, too long. */
#include <check.h>
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include <zlib.h>
#ifdef HAVE_ZSTD
#include <zstd.h>
#endif

#include "base/check.h"
#include "base/testing.h"
#include "qcow2/blocking_world.h"
#include "qcow2/compress.h"

#define CLUSTER_BYTES 65536U
#define STREAM_BYTES  (4U * CLUSTER_BYTES)

static uint8_t plain[CLUSTER_BYTES];
static uint8_t stream[STREAM_BYTES];
static uint8_t out[CLUSTER_BYTES + 64];

/* Compressible, but not by much; the same every time. */
static void setup(void)
{
    uint32_t state = 1;
    for (size_t i = 0; i < sizeof(plain); i++) {
        state = state * 1664525U + 1013904223U;
        plain[i] = (uint8_t)((state >> 24) & 0x3f);
    }
    memset(stream, 0xa5, sizeof(stream));
}

static size_t deflate_plain(size_t len, int window_bits)
{
    z_stream z = {.next_in = plain,
                  .avail_in = (uInt)len,
                  .next_out = stream,
                  .avail_out = (uInt)sizeof(stream)};
    ck_assert_int_eq(deflateInit2(&z, 9, Z_DEFLATED, window_bits, 9, Z_DEFAULT_STRATEGY), Z_OK);
    ck_assert_int_eq(deflate(&z, Z_FINISH), Z_STREAM_END);
    size_t used = sizeof(stream) - z.avail_out;
    deflateEnd(&z);
    return used;
}

static int decode(enum qcow2_compression method, size_t in_len, size_t out_len)
{
    memset(out, 0xee, sizeof(out));
    int ret = inflate_cluster(method, stream, in_len, out, out_len);
    for (size_t i = out_len; i < sizeof(out); i++) {
        ck_assert_uint_eq(out[i], 0xee);
    }
    return ret;
}

START_TEST(deflate_windows)
{
    size_t used = deflate_plain(CLUSTER_BYTES, -9 - _i);
    ck_assert_int_eq(decode(QCOW2_COMPRESSION_ZLIB, used, CLUSTER_BYTES), 0);
    ck_assert_int_eq(memcmp(out, plain, CLUSTER_BYTES), 0);
}
END_TEST

START_TEST(deflate_ignores_what_follows)
{
    deflate_plain(CLUSTER_BYTES, -12);
    ck_assert_int_eq(decode(QCOW2_COMPRESSION_ZLIB, sizeof(stream), CLUSTER_BYTES), 0);
    ck_assert_int_eq(memcmp(out, plain, CLUSTER_BYTES), 0);
}
END_TEST

START_TEST(deflate_refuses_damage)
{
    size_t used = deflate_plain(CLUSTER_BYTES, -12);
    ck_assert_int_eq(decode(QCOW2_COMPRESSION_ZLIB, used / 2, CLUSTER_BYTES), -EIO);
    ck_assert_int_eq(decode(QCOW2_COMPRESSION_ZLIB, 0, CLUSTER_BYTES), -EIO);
    memset(stream, 0xff, used);
    ck_assert_int_eq(decode(QCOW2_COMPRESSION_ZLIB, used, CLUSTER_BYTES), -EIO);
    /* A zlib header is not raw deflate. */
    used = deflate_plain(CLUSTER_BYTES, 12);
    ck_assert_int_eq(decode(QCOW2_COMPRESSION_ZLIB, used, CLUSTER_BYTES), -EIO);
}
END_TEST

START_TEST(deflate_lengths)
{
    size_t used = deflate_plain(CLUSTER_BYTES - 1, -12);
    ck_assert_int_eq(decode(QCOW2_COMPRESSION_ZLIB, used, CLUSTER_BYTES), -EIO);
    used = deflate_plain(CLUSTER_BYTES, -12);
    ck_assert_int_eq(decode(QCOW2_COMPRESSION_ZLIB, used, 512), 0);
    ck_assert_int_eq(memcmp(out, plain, 512), 0);
}
END_TEST

START_TEST(random_bytes_never_break_it)
{
    uint32_t state = (uint32_t)_i + 7;
    for (int round = 0; round < 200; round++) {
        for (size_t i = 0; i < 4096; i++) {
            state = state * 1664525U + 1013904223U;
            stream[i] = (uint8_t)(state >> 24);
        }
        memcpy(stream, "\x28\xb5\x2f\xfd", 4);
        for (int method = 0; method < 3; method++) {
            int ret = decode((enum qcow2_compression)method, 4096, CLUSTER_BYTES);
            ck_assert(ret == 0 || ret == -EIO || ret == -ENOTSUP);
        }
    }
}
END_TEST

START_TEST(unknown_method)
{
    ck_assert(compression_supported(QCOW2_COMPRESSION_ZLIB));
    ck_assert(!compression_supported((enum qcow2_compression)2));
    ck_assert_int_eq(decode((enum qcow2_compression)2, 512, 512), -ENOTSUP);
}
END_TEST

START_TEST(runs_on_a_worker)
{
    struct blocking_world world;
    blocking_world_init(&world);
    size_t used = deflate_plain(CLUSTER_BYTES, -12);
    ck_assert_int_eq(
        co_inflate_cluster(&world.world, QCOW2_COMPRESSION_ZLIB, stream, used, out, CLUSTER_BYTES),
        0);
    ck_assert_uint_eq(world.works, 1);
    ck_assert_int_eq(memcmp(out, plain, CLUSTER_BYTES), 0);
    ck_assert_int_eq(
        co_inflate_cluster(&world.world, QCOW2_COMPRESSION_ZLIB, stream, 3, out, CLUSTER_BYTES),
        -EIO);
}
END_TEST

#ifdef HAVE_ZSTD
static size_t zstd_part(size_t at, const uint8_t *from, size_t len, int window_log, bool known_size)
{
    ZSTD_CCtx *context = ZSTD_createCCtx();
    ZSTD_CCtx_setParameter(context, ZSTD_c_windowLog, window_log);
    ZSTD_CCtx_setParameter(context, ZSTD_c_contentSizeFlag, known_size);
    ZSTD_inBuffer in = {from, len, 0};
    ZSTD_outBuffer to = {stream, sizeof(stream), at};
    if (!known_size) {
        /* A frame begun before its length is known keeps the window asked for. */
        ck_assert(!ZSTD_isError(ZSTD_compressStream2(context, &to, &in, ZSTD_e_flush)));
    }
    ck_assert_uint_eq(ZSTD_compressStream2(context, &to, &in, ZSTD_e_end), 0);
    ZSTD_freeCCtx(context);
    return to.pos;
}

START_TEST(zstd_frames)
{
    ck_assert(compression_supported(QCOW2_COMPRESSION_ZSTD));
    size_t used = zstd_part(0, plain, CLUSTER_BYTES, 0, true);
    ck_assert_int_eq(decode(QCOW2_COMPRESSION_ZSTD, used, CLUSTER_BYTES), 0);
    ck_assert_int_eq(memcmp(out, plain, CLUSTER_BYTES), 0);
    ck_assert_int_eq(decode(QCOW2_COMPRESSION_ZSTD, sizeof(stream), CLUSTER_BYTES), 0);
    ck_assert_int_eq(memcmp(out, plain, CLUSTER_BYTES), 0);
}
END_TEST

START_TEST(zstd_several_frames)
{
    size_t used = zstd_part(0, plain, 1000, 0, true);
    memcpy(stream + used, "\x5a\x2a\x4d\x18\x03\0\0\0xyz", 11); /* skippable */
    used = zstd_part(used + 11, plain + 1000, CLUSTER_BYTES - 1000, 0, false);
    ck_assert_int_eq(decode(QCOW2_COMPRESSION_ZSTD, used + 100, CLUSTER_BYTES), 0);
    ck_assert_int_eq(memcmp(out, plain, CLUSTER_BYTES), 0);
}
END_TEST

START_TEST(zstd_large_window)
{
    size_t used = zstd_part(0, plain, CLUSTER_BYTES, 27, false);
    ck_assert_int_eq(decode(QCOW2_COMPRESSION_ZSTD, used, CLUSTER_BYTES), 0);
    ck_assert_int_eq(memcmp(out, plain, CLUSTER_BYTES), 0);
}
END_TEST

START_TEST(zstd_refuses_damage)
{
    size_t used = zstd_part(0, plain, CLUSTER_BYTES, 0, true);
    ck_assert_int_eq(decode(QCOW2_COMPRESSION_ZSTD, used - 1, CLUSTER_BYTES), -EIO);
    ck_assert_int_eq(decode(QCOW2_COMPRESSION_ZSTD, 0, CLUSTER_BYTES), -EIO);
    ck_assert_int_eq(decode(QCOW2_COMPRESSION_ZSTD, used, CLUSTER_BYTES + 1), -EIO);
    ck_assert_int_eq(decode(QCOW2_COMPRESSION_ZSTD, used, CLUSTER_BYTES - 1), -EIO);
    stream[used / 2] ^= 0x10;
    stream[used / 2 + 1] ^= 0xff;
    int ret = decode(QCOW2_COMPRESSION_ZSTD, used, CLUSTER_BYTES);
    ck_assert(ret == -EIO || memcmp(out, plain, CLUSTER_BYTES) != 0);
    memset(stream, 0, 4);
    ck_assert_int_eq(decode(QCOW2_COMPRESSION_ZSTD, used, CLUSTER_BYTES), -EIO);
    /* Skippable frames alone yield nothing. */
    memset(stream, 0, sizeof(stream));
    memcpy(stream, "\x50\x2a\x4d\x18", 4);
    ck_assert_int_eq(decode(QCOW2_COMPRESSION_ZSTD, 8, CLUSTER_BYTES), -EIO);
}
END_TEST
#endif

int main(void)
{
    Suite *suite = suite_create("compress");
    TCase *tcase = tcase_create("inflate");
    tcase_add_checked_fixture(tcase, setup, NULL);
    tcase_add_loop_test(tcase, deflate_windows, 0, 7);
    tcase_add_test(tcase, deflate_ignores_what_follows);
    tcase_add_test(tcase, deflate_refuses_damage);
    tcase_add_test(tcase, deflate_lengths);
    tcase_add_loop_test(tcase, random_bytes_never_break_it, 0, 4);
    tcase_add_test(tcase, unknown_method);
    tcase_add_test(tcase, runs_on_a_worker);
#ifdef HAVE_ZSTD
    tcase_add_test(tcase, zstd_frames);
    tcase_add_test(tcase, zstd_several_frames);
    tcase_add_test(tcase, zstd_large_window);
    tcase_add_test(tcase, zstd_refuses_damage);
#endif
    suite_add_tcase(suite, tcase);
    return test_suite_run(suite);
}
