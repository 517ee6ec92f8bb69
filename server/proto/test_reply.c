/* SPDX-License-Identifier: BSD-2-Clause */
/* Replies, byte for byte, and the numbers of errors. */
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "base/bytes.h"
#include "base/check.h"
#include "io/buffers.h"
#include "proto/meta.h"
#include "proto/reply.h"
#include "proto/test_main.h"
#include "proto/wire.h"

#define COOKIE 0x1122334455667788ULL

/* All of a reply in one piece; the caller frees. */
static uint8_t *flatten(const struct reply *reply)
{
    uint8_t *bytes = malloc(reply->total_bytes);
    size_t used = 0;

    ck_assert(bytes != NULL);
    for (unsigned i = 0; i < reply->count; i++) {
        ck_assert(used + reply->pieces[i].iov_len <= reply->total_bytes);
        memcpy(bytes + used, reply->pieces[i].iov_base, reply->pieces[i].iov_len);
        used += reply->pieces[i].iov_len;
    }
    ck_assert_uint_eq(used, reply->total_bytes);
    return bytes;
}

START_TEST(simple_replies)
{
    static const uint8_t expected[16] = {0x67, 0x44, 0x66, 0x98, 0,    0,    0,    28,
                                         0x11, 0x22, 0x33, 0x44, 0x55, 0x66, 0x77, 0x88};
    char payload[] = "abc";
    struct reply reply;

    reply_simple(&reply, COOKIE, NBD_ENOSPC);
    uint8_t *bytes = flatten(&reply);
    ck_assert(reply.total_bytes == 16 && memcmp(bytes, expected, 16) == 0);
    free(bytes);

    reply_read_simple(&reply, COOKIE, payload, 3);
    bytes = flatten(&reply);
    ck_assert(reply.total_bytes == 19 && memcmp(bytes + 16, "abc", 3) == 0);
    ck_assert(get_be32(bytes + 4) == 0);
    free(bytes);

    reply_read_simple(&reply, COOKIE, NULL, 0);
    ck_assert(reply.total_bytes == 16 && reply.count == 1);

    reply_error(&reply, COOKIE, false, NBD_EIO, "not sent");
    ck_assert(reply.total_bytes == 16);
    reply_release(&reply);
}
END_TEST

START_TEST(statement_38_error_chunks)
{
    char long_text[300];
    struct reply reply;

    memset(long_text, 'x', sizeof(long_text) - 1);
    long_text[sizeof(long_text) - 1] = '\0';
    reply_error(&reply, COOKIE, true, NBD_EPERM, long_text);
    uint8_t *bytes = flatten(&reply);
    ck_assert_uint_eq(get_be32(bytes), NBD_STRUCTURED_REPLY_MAGIC);
    ck_assert_uint_eq(get_be16(bytes + 4), NBD_REPLY_FLAG_DONE);
    ck_assert_uint_eq(get_be16(bytes + 6), NBD_REPLY_TYPE_ERROR);
    ck_assert(get_be64(bytes + 8) == COOKIE);
    ck_assert_uint_eq(get_be32(bytes + 16), reply.total_bytes - 20);
    ck_assert_uint_eq(get_be32(bytes + 20), NBD_EPERM);
    ck_assert_uint_eq(get_be16(bytes + 24), REPLY_TEXT_BYTES_MAX);
    ck_assert_uint_eq(get_be16(bytes + 24), get_be32(bytes + 16) - 6);
    free(bytes);
}
END_TEST

START_TEST(statement_34_none_is_empty_and_done)
{
    struct reply reply;

    reply_none(&reply, COOKIE);
    uint8_t *bytes = flatten(&reply);
    ck_assert(reply.total_bytes == 20);
    ck_assert(get_be16(bytes + 4) == NBD_REPLY_FLAG_DONE && get_be16(bytes + 6) == 0);
    ck_assert(get_be32(bytes + 16) == 0);
    free(bytes);
}
END_TEST

/* Reads a structured read reply back, as a client would, and compares. */
static void check_read(const struct reply *reply, uint64_t offset, const uint8_t *expected,
                       size_t len)
{
    uint8_t *bytes = flatten(reply);
    uint8_t *seen = malloc(len);
    uint8_t *covered = calloc(1, len);
    size_t at = 0;
    bool done = false;

    ck_assert(seen && covered);
    while (at < reply->total_bytes) {
        ck_assert(!done);
        uint16_t type = get_be16(bytes + at + 6);
        uint32_t length = get_be32(bytes + at + 16);
        ck_assert_uint_eq(get_be32(bytes + at), NBD_STRUCTURED_REPLY_MAGIC);
        ck_assert(get_be64(bytes + at + 8) == COOKIE);
        done = get_be16(bytes + at + 4) & NBD_REPLY_FLAG_DONE;
        uint64_t from = get_be64(bytes + at + 20) - offset;
        if (type == NBD_REPLY_TYPE_OFFSET_HOLE) {
            uint32_t size = get_be32(bytes + at + 28);
            ck_assert(length == 12 && size > 0 && range_inside(from, size, len));
            ck_assert(memchr(covered + from, 1, size) == NULL);
            memset(covered + from, 1, size);
            memset(seen + from, 0, size);
        } else {
            ck_assert(type == NBD_REPLY_TYPE_OFFSET_DATA && length > 8);
            ck_assert(range_inside(from, length - 8, len));
            ck_assert(memchr(covered + from, 1, length - 8) == NULL);
            memset(covered + from, 1, length - 8);
            memcpy(seen + from, bytes + at + 28, length - 8);
        }
        at += 20 + length;
    }
    ck_assert(done && at == reply->total_bytes);
    ck_assert(memchr(covered, 0, len) == NULL);
    ck_assert(memcmp(seen, expected, len) == 0);
    free(bytes);
    free(seen);
    free(covered);
}

START_TEST(statement_36_content_covers_everything_once)
{
    enum { LEN = 4096, OFFSET = 123457 };
    uint8_t payload[LEN], expected[LEN];
    struct read_holes holes;
    struct reply reply;
    unsigned seed = 1;

    reply_read_structured(&reply, COOKIE, OFFSET, memset(payload, 9, LEN), LEN, NULL);
    ck_assert(reply.count == 2);
    check_read(&reply, OFFSET, payload, LEN);
    reply_release(&reply);

    for (unsigned round = 0; round < 2000; round++) {
        for (size_t i = 0; i < LEN; i++) {
            payload[i] = expected[i] = (uint8_t)(i + round);
        }
        holes.count = 0;
        size_t at = 0;
        unsigned most = round % (READ_HOLES_MAX + 1);
        while (holes.count < most) {
            size_t gap =
                (size_t)rand_r(&seed) % (holes.count == 0 ? 3 : 120) + (holes.count > 0 ? 1 : 0);
            size_t hole = (size_t)rand_r(&seed) % 200 + 1;
            if (at + gap + hole > LEN) {
                break;
            }
            holes.run[holes.count].offset = at + gap;
            holes.run[holes.count++].len = hole;
            memset(expected + at + gap, 0, hole);
            at += gap + hole;
        }
        reply_read_structured(&reply, COOKIE, OFFSET, payload, LEN, &holes);
        check_read(&reply, OFFSET, expected, LEN);
        reply_release(&reply);
    }

    holes.count = 1;
    holes.run[0].offset = 0;
    holes.run[0].len = LEN;
    reply_read_structured(&reply, COOKIE, OFFSET, payload, LEN, &holes);
    ck_assert(reply.count == 1 && reply.total_bytes == 32);
    check_read(&reply, OFFSET, memset(expected, 0, LEN), LEN);
    reply_release(&reply);
    buffer_pool_drain();
}
END_TEST

START_TEST(statement_49_status_chunks)
{
    struct extent extents[] = {
        {.len = 65536, .flags = EXTENT_HOLE | EXTENT_ZERO, .depth = 0},
        {.len = 4096, .flags = 0, .depth = 1},
        {.len = 8192, .flags = 0, .depth = 2},
        {.len = 512, .flags = EXTENT_ZERO, .depth = 2},
    };
    struct extent_list list = {extents, 4, 4};
    struct reply reply;

    ck_assert(reply_block_status(&reply, COOKIE, 3, &list, false) == 0);
    uint8_t *bytes = flatten(&reply);
    /* base:allocation: the second and third are one */
    ck_assert_uint_eq(get_be16(bytes + 4), 0);
    ck_assert_uint_eq(get_be16(bytes + 6), NBD_REPLY_TYPE_BLOCK_STATUS);
    ck_assert_uint_eq(get_be32(bytes + 16), 4 + 3 * 8);
    ck_assert_uint_eq(get_be32(bytes + 20), meta_context_id(META_BASE_ALLOCATION));
    ck_assert_uint_eq(get_be32(bytes + 24), 65536);
    ck_assert_uint_eq(get_be32(bytes + 28), NBD_STATE_HOLE | NBD_STATE_ZERO);
    ck_assert_uint_eq(get_be32(bytes + 32), 12288);
    ck_assert_uint_eq(get_be32(bytes + 36), 0);
    ck_assert_uint_eq(get_be32(bytes + 40), 512);
    ck_assert_uint_eq(get_be32(bytes + 44), NBD_STATE_ZERO);
    /* qemu:allocation-depth: the third and fourth are one */
    ck_assert_uint_eq(get_be16(bytes + 48 + 4), NBD_REPLY_FLAG_DONE);
    ck_assert_uint_eq(get_be32(bytes + 48 + 16), 4 + 3 * 8);
    ck_assert_uint_eq(get_be32(bytes + 48 + 20), meta_context_id(META_QEMU_ALLOCATION_DEPTH));
    ck_assert_uint_eq(get_be32(bytes + 48 + 24), 65536);
    ck_assert_uint_eq(get_be32(bytes + 48 + 28), 0);
    ck_assert_uint_eq(get_be32(bytes + 48 + 40), 8704);
    ck_assert_uint_eq(get_be32(bytes + 48 + 44), 2);
    ck_assert_uint_eq(reply.total_bytes, 96);
    free(bytes);
    reply_release(&reply);

    ck_assert(reply_block_status(&reply, COOKIE, 1U << META_BASE_ALLOCATION, &list, true) == 0);
    bytes = flatten(&reply);
    ck_assert_uint_eq(reply.total_bytes, 32);
    ck_assert_uint_eq(get_be16(bytes + 4), NBD_REPLY_FLAG_DONE);
    ck_assert_uint_eq(get_be32(bytes + 16), 12);
    ck_assert_uint_eq(get_be32(bytes + 24), 65536);
    free(bytes);
    reply_release(&reply);
    buffer_pool_drain();
}
END_TEST

START_TEST(statement_39_error_numbers)
{
    ck_assert_uint_eq(reply_error_number(-EROFS, false), NBD_EPERM);
    ck_assert_uint_eq(reply_error_number(-EPERM, false), NBD_EPERM);
    ck_assert_uint_eq(reply_error_number(-EDQUOT, false), NBD_ENOSPC);
    ck_assert_uint_eq(reply_error_number(-EFBIG, false), NBD_ENOSPC);
    ck_assert_uint_eq(reply_error_number(-ENOSPC, false), NBD_ENOSPC);
    ck_assert_uint_eq(reply_error_number(-ENOTSUP, true), NBD_ENOTSUP);
    ck_assert_uint_eq(reply_error_number(-ENOTSUP, false), NBD_EIO);
    ck_assert_uint_eq(reply_error_number(-EOVERFLOW, false), NBD_EIO);
    ck_assert_uint_eq(reply_error_number(-ESHUTDOWN, false), NBD_ESHUTDOWN);
    for (int number = 1; number < 200; number++) {
        uint32_t error = reply_error_number(-number, false);
        ck_assert(error == 1 || error == 5 || error == 12 || error == 22 || error == 28 ||
                  error == 108);
        ck_assert(strlen(reply_error_text(error)) <= REPLY_TEXT_BYTES_MAX);
    }
}
END_TEST

int main(void)
{
    const TTest *const tests[] = {
        simple_replies,
        statement_38_error_chunks,
        statement_34_none_is_empty_and_done,
        statement_36_content_covers_everything_once,
        statement_49_status_chunks,
        statement_39_error_numbers,
    };
    return run_tests("reply", tests, ARRAY_LEN(tests));
}
