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
#define OFFSET 123457ULL

static const struct reply_to simple = {.form = HEADERS_SIMPLE, .cookie = COOKIE, .offset = OFFSET};
static const struct reply_to structured = {
    .form = HEADERS_STRUCTURED, .cookie = COOKIE, .offset = OFFSET};
static const struct reply_to extended = {
    .form = HEADERS_EXTENDED, .cookie = COOKIE, .offset = OFFSET};

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

    reply_error(&reply, &simple, NBD_ENOSPC, "not sent");
    uint8_t *bytes = flatten(&reply);
    ck_assert(reply.total_bytes == 16 && memcmp(bytes, expected, 16) == 0);
    free(bytes);

    reply_read(&reply, &simple, payload, 3, NULL);
    bytes = flatten(&reply);
    ck_assert(reply.total_bytes == 19 && memcmp(bytes + 16, "abc", 3) == 0);
    ck_assert(get_be32(bytes + 4) == 0);
    free(bytes);

    reply_read_nothing(&reply, &simple);
    ck_assert(reply.total_bytes == 16 && reply.count == 1);
    reply_success(&reply, &structured); /* without content chunks are not needed */
    ck_assert(reply.total_bytes == 16 && reply.count == 1);
    reply_release(&reply);
}
END_TEST

/* One chunk taken apart, of either form. */
struct seen_chunk {
    uint16_t flags;
    uint16_t type;
    uint64_t length;
    const uint8_t *content;
};

static struct seen_chunk see_chunk(const uint8_t *bytes, const struct reply_to *to)
{
    bool long_form = to->form == HEADERS_EXTENDED;
    uint32_t magic = long_form ? NBD_EXTENDED_REPLY_MAGIC : NBD_STRUCTURED_REPLY_MAGIC;

    ck_assert_uint_eq(get_be32(bytes), magic);
    ck_assert(get_be64(bytes + 8) == COOKIE);
    ck_assert(!long_form || get_be64(bytes + 16) == OFFSET); /* the request's, in every chunk */
    return (struct seen_chunk){
        .flags = get_be16(bytes + 4),
        .type = get_be16(bytes + 6),
        .length = long_form ? get_be64(bytes + 24) : get_be32(bytes + 16),
        .content = bytes + (long_form ? 32 : 20),
    };
}

START_TEST(statement_38_error_chunks)
{
    const struct reply_to *const forms[] = {&structured, &extended};
    char long_text[300];
    struct reply reply;

    memset(long_text, 'x', sizeof(long_text) - 1);
    long_text[sizeof(long_text) - 1] = '\0';
    for (size_t i = 0; i < ARRAY_LEN(forms); i++) {
        reply_error(&reply, forms[i], NBD_EPERM, long_text);
        uint8_t *bytes = flatten(&reply);
        struct seen_chunk chunk = see_chunk(bytes, forms[i]);
        ck_assert_uint_eq(chunk.flags, NBD_REPLY_FLAG_DONE);
        ck_assert_uint_eq(chunk.type, NBD_REPLY_TYPE_ERROR);
        ck_assert(chunk.content + chunk.length == bytes + reply.total_bytes);
        ck_assert_uint_eq(get_be32(chunk.content), NBD_EPERM);
        ck_assert_uint_eq(get_be16(chunk.content + 4), REPLY_TEXT_BYTES_MAX);
        ck_assert_uint_eq(chunk.length, 6 + REPLY_TEXT_BYTES_MAX);
        free(bytes);
    }
}
END_TEST

START_TEST(statement_34_none_is_empty_and_done)
{
    struct reply reply;

    reply_read_nothing(&reply, &structured);
    uint8_t *bytes = flatten(&reply);
    struct seen_chunk chunk = see_chunk(bytes, &structured);
    ck_assert(reply.total_bytes == 20);
    ck_assert(chunk.flags == NBD_REPLY_FLAG_DONE && chunk.type == 0 && chunk.length == 0);
    free(bytes);
    reply_success(&reply, &extended); /* statement 33: never a simple one */
    bytes = flatten(&reply);
    chunk = see_chunk(bytes, &extended);
    ck_assert(reply.total_bytes == 32);
    ck_assert(chunk.flags == NBD_REPLY_FLAG_DONE && chunk.type == 0 && chunk.length == 0);
    free(bytes);
}
END_TEST

/* Reads a read reply in chunks back, as a client would, and compares. */
static void check_read(const struct reply *reply, const struct reply_to *to,
                       const uint8_t *expected, size_t len)
{
    uint8_t *bytes = flatten(reply);
    const uint8_t *at = bytes;
    uint8_t *seen = malloc(len);
    uint8_t *covered = calloc(1, len);
    bool done = false;

    ck_assert(seen && covered);
    while (at < bytes + reply->total_bytes) {
        ck_assert(!done);
        struct seen_chunk chunk = see_chunk(at, to);
        done = chunk.flags & NBD_REPLY_FLAG_DONE;
        uint64_t from = get_be64(chunk.content) - OFFSET;
        if (chunk.type == NBD_REPLY_TYPE_OFFSET_HOLE) {
            uint32_t size = get_be32(chunk.content + 8);
            ck_assert(chunk.length == 12 && size > 0 && range_inside(from, size, len));
            ck_assert(memchr(covered + from, 1, size) == NULL);
            memset(covered + from, 1, size);
            memset(seen + from, 0, size);
        } else {
            ck_assert(chunk.type == NBD_REPLY_TYPE_OFFSET_DATA && chunk.length > 8);
            size_t size = (size_t)chunk.length - 8;
            ck_assert(range_inside(from, size, len));
            ck_assert(memchr(covered + from, 1, size) == NULL);
            memset(covered + from, 1, size);
            memcpy(seen + from, chunk.content + 8, size);
        }
        at = chunk.content + chunk.length;
    }
    ck_assert(done && at == bytes + reply->total_bytes);
    ck_assert(memchr(covered, 0, len) == NULL);
    ck_assert(memcmp(seen, expected, len) == 0);
    free(bytes);
    free(seen);
    free(covered);
}

START_TEST(statement_36_content_covers_everything_once)
{
    enum { LEN = 4096 };
    uint8_t payload[LEN], expected[LEN];
    struct read_holes holes;
    struct reply reply;
    unsigned seed = 1;

    reply_read(&reply, &structured, memset(payload, 9, LEN), LEN, NULL);
    ck_assert(reply.count == 2);
    check_read(&reply, &structured, payload, LEN);
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
        const struct reply_to *to = round / 2 % 2 ? &structured : &extended;
        reply_read(&reply, to, payload, LEN, &holes);
        check_read(&reply, to, expected, LEN);
        reply_release(&reply);
    }

    holes.count = 1;
    holes.run[0].offset = 0;
    holes.run[0].len = LEN;
    reply_read(&reply, &structured, payload, LEN, &holes);
    ck_assert(reply.count == 1 && reply.total_bytes == 32);
    check_read(&reply, &structured, memset(expected, 0, LEN), LEN);
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
    struct extent dirty[] = {
        {.len = 4096, .flags = EXTENT_DIRTY},
        {.len = 69632, .flags = 0},
        {.len = 4608, .flags = EXTENT_DIRTY},
    };
    struct extent_list dirty_list = {dirty, 3, 3};
    const struct status_content contents[] = {
        {META_BASE_ALLOCATION, &list},
        {META_QEMU_ALLOCATION_DEPTH, &list},
        {META_FIXED_COUNT + 5, &dirty_list},
    };
    struct reply reply;

    ck_assert(reply_block_status(&reply, &structured, contents, 2, false) == 0);
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

    ck_assert(reply_block_status(&reply, &structured, contents, 1, true) == 0);
    bytes = flatten(&reply);
    ck_assert_uint_eq(reply.total_bytes, 32);
    ck_assert_uint_eq(get_be16(bytes + 4), NBD_REPLY_FLAG_DONE);
    ck_assert_uint_eq(get_be32(bytes + 16), 12);
    ck_assert_uint_eq(get_be32(bytes + 24), 65536);
    free(bytes);
    reply_release(&reply);

    /* A dirty bitmap has extents of its own. */
    ck_assert(reply_block_status(&reply, &structured, contents + 1, 2, false) == 0);
    bytes = flatten(&reply);
    ck_assert_uint_eq(get_be16(bytes + 48 + 4), NBD_REPLY_FLAG_DONE);
    ck_assert_uint_eq(get_be32(bytes + 48 + 16), 4 + 3 * 8);
    ck_assert_uint_eq(get_be32(bytes + 48 + 20), meta_context_id(META_FIXED_COUNT + 5));
    for (unsigned i = 0; i < 3; i++) {
        ck_assert_uint_eq(get_be32(bytes + 48 + 24 + 8 * i), dirty[i].len);
        ck_assert_uint_eq(get_be32(bytes + 48 + 28 + 8 * i), i == 1 ? 0 : META_BITMAP_DIRTY);
    }
    ck_assert_uint_eq(reply.total_bytes, 96);
    free(bytes);
    reply_release(&reply);
    buffer_pool_drain();
}
END_TEST

START_TEST(statement_50_extended_status_chunks)
{
    struct extent extents[] = {
        {.len = 5ULL << 40, .flags = EXTENT_HOLE | EXTENT_ZERO, .depth = 0},
        {.len = 6ULL << 40, .flags = EXTENT_HOLE | EXTENT_ZERO, .depth = 2},
        {.len = 512, .flags = 0, .depth = 2},
    };
    struct extent_list list = {extents, 3, 3};
    const struct status_content contents[] = {
        {META_BASE_ALLOCATION, &list},
        {META_QEMU_ALLOCATION_DEPTH, &list},
    };
    struct reply reply;

    ck_assert(reply_block_status(&reply, &extended, contents, 2, false) == 0);
    uint8_t *bytes = flatten(&reply);
    struct seen_chunk chunk = see_chunk(bytes, &extended);
    ck_assert(chunk.type == NBD_REPLY_TYPE_BLOCK_STATUS_EXT && chunk.flags == 0);
    ck_assert(chunk.length == 8 + 2 * 16); /* equal neighbours merged, past 2^32 too */
    ck_assert_uint_eq(get_be32(chunk.content), meta_context_id(META_BASE_ALLOCATION));
    ck_assert_uint_eq(get_be32(chunk.content + 4), 2);
    ck_assert(get_be64(chunk.content + 8) == 11ULL << 40);
    ck_assert(get_be64(chunk.content + 16) == (NBD_STATE_HOLE | NBD_STATE_ZERO));
    ck_assert(get_be64(chunk.content + 24) == 512 && get_be64(chunk.content + 32) == 0);
    chunk = see_chunk(chunk.content + chunk.length, &extended);
    ck_assert(chunk.type == NBD_REPLY_TYPE_BLOCK_STATUS_EXT);
    ck_assert(chunk.flags == NBD_REPLY_FLAG_DONE && chunk.length == 8 + 2 * 16);
    ck_assert_uint_eq(get_be32(chunk.content), meta_context_id(META_QEMU_ALLOCATION_DEPTH));
    ck_assert(get_be64(chunk.content + 8) == 5ULL << 40);
    ck_assert(chunk.content + chunk.length == bytes + reply.total_bytes);
    free(bytes);
    reply_release(&reply);

    list.count = 1; /* used for a short request, too */
    extents[0].len = 1;
    ck_assert(reply_block_status(&reply, &extended, contents + 1, 1, true) == 0);
    bytes = flatten(&reply);
    chunk = see_chunk(bytes, &extended);
    ck_assert(chunk.type == NBD_REPLY_TYPE_BLOCK_STATUS_EXT && chunk.length == 24);
    ck_assert(chunk.flags == NBD_REPLY_FLAG_DONE && get_be32(chunk.content + 4) == 1);
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
        statement_50_extended_status_chunks,
        statement_39_error_numbers,
    };
    return run_tests("reply", tests, ARRAY_LEN(tests));
}
