/* SPDX-License-Identifier: BSD-2-Clause */
/* Transmission: what requests do, how replies look, and how many go at once. */
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "base/bytes.h"
#include "base/limits.h"
#include "proto/input.h"
#include "proto/meta.h"
#include "proto/test_main.h"
#include "proto/test_rig.h"

#define HEADER_BYTES sizeof(struct wire_request)

static struct rig *rig;

static void expect_read_simple(struct client *client, uint64_t cookie, uint64_t offset, size_t len)
{
    client_expect_simple(client, cookie, 0);
    ck_assert(memcmp(client_take(client, len), rig->disk->bytes + offset, len) == 0);
}

START_TEST(read_and_write)
{
    rig = rig_create();
    struct client *client = client_enter(rig, "", SIMPLE);
    client_request(client, NBD_CMD_READ, 0, 1, 1000, 5000);
    expect_read_simple(client, 1, 1000, 5000);
    client_request(client, NBD_CMD_WRITE, NBD_CMD_FLAG_FUA, UINT64_MAX, 7, 5);
    ck_assert(client_unread(client) == 0);
    client_send(client, "howdy", 5);
    client_expect_simple(client, UINT64_MAX, 0);
    ck_assert(memcmp(rig->disk->bytes + 7, "howdy", 5) == 0);
    ck_assert_uint_eq(rig->disk->last_flags, IMAGE_FUA);
    client_request(client, NBD_CMD_WRITE, 0, 0, 0, 1);
    client_send(client, "x", 1);
    client_expect_simple(client, 0, 0);
    ck_assert_uint_eq(rig->disk->last_flags, 0);
    client_free(client);
    rig_free(rig);
}
END_TEST

START_TEST(other_commands_reach_the_image)
{
    rig = rig_create();
    struct client *client = client_enter(rig, "", SIMPLE);
    client_request(client, NBD_CMD_WRITE_ZEROES,
                   NBD_CMD_FLAG_FUA | NBD_CMD_FLAG_NO_HOLE | NBD_CMD_FLAG_FAST_ZERO, 1, 0, 1 << 20);
    client_expect_simple(client, 1, 0);
    ck_assert_uint_eq(rig->disk->last_flags, IMAGE_FUA | IMAGE_NO_HOLE | IMAGE_FAST_ZERO);
    client_request(client, NBD_CMD_TRIM, NBD_CMD_FLAG_FUA, 2, 0, 1 << 20);
    client_expect_simple(client, 2, 0);
    ck_assert_uint_eq(rig->disk->last_flags, IMAGE_FUA); /* statement 44 */
    client_request(client, NBD_CMD_TRIM, 0, 2, 0, 1 << 20);
    client_expect_simple(client, 2, 0);
    ck_assert_uint_eq(rig->disk->last_flags, 0);
    client_request(client, NBD_CMD_FLUSH, 0, 3, 0, 0);
    client_expect_simple(client, 3, 0);
    client_request(client, NBD_CMD_CACHE, 0, 4, 0, RIG_IMAGE_BYTES); /* statement 53 */
    client_expect_simple(client, 4, 0);
    ck_assert(rig->disk->zeroes == 1 && rig->disk->trims == 2 && rig->disk->flushes == 1);
    ck_assert(rig->disk->reads == 0);
    client_free(client);
    rig_free(rig);
}
END_TEST

START_TEST(statement_31_bad_magic_disconnects)
{
    uint8_t request[HEADER_BYTES];
    rig = rig_create();
    struct client *client = client_enter(rig, "", SIMPLE);
    pack_request(request, NBD_CMD_READ, 0, 1, 0, 512);
    client_send(client, request, sizeof(request));
    request[3] ^= 1;
    client_send(client, request, sizeof(request));
    expect_read_simple(client, 1, 0, 512); /* the one before is answered */
    client_expect_closed(client);
    client_free(client);
    rig_free(rig);
}
END_TEST

START_TEST(statement_31_cookies_are_opaque_and_may_repeat)
{
    rig = rig_create();
    struct client *client = client_enter(rig, "", SIMPLE);
    rig->disk->hold = true;
    for (unsigned i = 0; i < 3; i++) {
        client_request(client, NBD_CMD_FLUSH, 0, 0x00ff00ff12345678ULL, 0, 0);
    }
    rig_release_all(rig);
    rig_run(rig);
    for (unsigned i = 0; i < 3; i++) {
        client_expect_simple(client, 0x00ff00ff12345678ULL, 0);
    }
    client_free(client);
    rig_free(rig);
}
END_TEST

START_TEST(statement_32_refused_writes_are_drained)
{
    static uint8_t payload[LIMIT_PAYLOAD_BYTES + 4096];
    static const struct {
        const char *export_name;
        unsigned flags;
        uint64_t offset;
        uint32_t len;
        uint32_t error;
    } cases[] = {
        {"ro", 0, 0, 4096, NBD_EPERM},
        {"ro", 0, 0, 300000, NBD_EPERM},
        {"", 0, RIG_IMAGE_BYTES - 1, 2, NBD_ENOSPC},
        {"", 0, UINT64_MAX - 100, 65536, NBD_ENOSPC},
        {"", 0x40, 0, 20000, NBD_EINVAL},
        {"", NBD_CMD_FLAG_DF, 0, 1, NBD_EINVAL},
        {"", 0, 0, sizeof(payload), NBD_ENOSPC},
    };
    rig = rig_create();
    memset(payload, 0x25, sizeof(payload));
    for (size_t i = 0; i < ARRAY_LEN(cases); i++) {
        for (int how = SIMPLE; how <= STRUCTURED; how++) {
            struct client *client = client_enter(rig, cases[i].export_name, how);
            client_request(client, NBD_CMD_WRITE, (uint16_t)cases[i].flags, 5, cases[i].offset,
                           cases[i].len);
            client_send(client, payload, cases[i].len);
            if (how == SIMPLE) {
                client_expect_simple(client, 5, cases[i].error);
            } else {
                client_expect_error_chunk(client, 5, cases[i].error);
            }
            client_request(client, NBD_CMD_FLUSH, 0, 6, 0, 0);
            client_expect_simple(client, 6, 0);
            client_free(client);
        }
        if (cases[i].len > LIMIT_PAYLOAD_BYTES) {
            continue; /* not drained there */
        }
        struct client *client = client_enter(rig, cases[i].export_name, EXTENDED);
        client_extended(client, NBD_CMD_WRITE,
                        (uint16_t)(cases[i].flags | NBD_CMD_FLAG_PAYLOAD_LEN), 5, cases[i].offset,
                        cases[i].len);
        client_send(client, payload, cases[i].len);
        client_expect_error_chunk(client, 5, cases[i].error);
        client_extended(client, NBD_CMD_FLUSH, 0, 6, 0, 0);
        client_expect_none(client, 6);
        client_free(client);
    }
    ck_assert(rig->disk->writes == 0);
    rig_free(rig);
}
END_TEST

START_TEST(statement_32_absurd_write_is_answered_then_cut)
{
    rig = rig_create();
    struct client *client = client_enter(rig, "", SIMPLE);
    client_request(client, NBD_CMD_WRITE, 0, 5, 0, UINT32_MAX);
    client_expect_simple(client, 5, NBD_ENOSPC);
    client_expect_closed(client);
    client_free(client);
    rig_free(rig);
}
END_TEST

START_TEST(statement_33_structured_reads_never_get_a_simple_reply)
{
    rig = rig_create();
    struct client *client = client_enter(rig, "", STRUCTURED);
    client_request(client, NBD_CMD_READ, 0x8000, 1, 0, 512);
    client_expect_error_chunk(client, 1, NBD_EINVAL);
    client_request(client, NBD_CMD_READ, 0, 2, RIG_IMAGE_BYTES, 512);
    client_expect_error_chunk(client, 2, NBD_EINVAL);
    rig->disk->fail = -EIO;
    client_request(client, NBD_CMD_READ, 0, 3, 0, 512);
    client_expect_error_chunk(client, 3, NBD_EIO);
    rig->disk->fail = 0;
    client_request(client, NBD_CMD_READ, 0, 4, 100, 512);
    struct chunk chunk = client_chunk(client);
    ck_assert(chunk.type == NBD_REPLY_TYPE_OFFSET_DATA && chunk.flags == NBD_REPLY_FLAG_DONE);
    ck_assert(chunk.cookie == 4 && get_be64(chunk.payload) == 100 && chunk.length == 520);
    ck_assert(memcmp(chunk.payload + 8, rig->disk->bytes + 100, 512) == 0);
    client_request(client, NBD_CMD_READ, 0, 5, 0, 0); /* statement 42 */
    chunk = client_chunk(client);
    ck_assert(chunk.type == NBD_REPLY_TYPE_NONE && chunk.flags == NBD_REPLY_FLAG_DONE);
    ck_assert(client_unread(client) == 0);
    client_free(client);
    rig_free(rig);
}
END_TEST

/* Every other unit is a hole. */
static void make_checkered(void)
{
    for (unsigned unit = 0; unit < RIG_IMAGE_BYTES / RIG_UNIT_BYTES; unit += 2) {
        rig->disk->extent_flags[unit] = EXTENT_HOLE | EXTENT_ZERO;
        rig->disk->depth[unit] = 0;
        memset(rig->disk->bytes + unit * RIG_UNIT_BYTES, 0, RIG_UNIT_BYTES);
    }
}

START_TEST(statement_36_holes_are_sent_as_holes)
{
    static uint8_t seen[RIG_IMAGE_BYTES];
    rig = rig_create();
    make_checkered();
    struct client *client = client_enter(rig, "", STRUCTURED);
    static const uint32_t lens[] = {1, 4096, 4097, 65536, 300000, RIG_IMAGE_BYTES - 777};
    for (size_t i = 0; i < ARRAY_LEN(lens); i++) {
        uint64_t offset = 777;
        size_t covered = 0, holes = 0;
        struct chunk chunk;
        memset(seen, 0xee, sizeof(seen));
        client_request(client, NBD_CMD_READ, 0, i, offset, lens[i]);
        do {
            chunk = client_chunk(client);
            uint64_t from = get_be64(chunk.payload);
            ck_assert(from == offset + covered && chunk.cookie == i);
            size_t len = chunk.length - 8;
            if (chunk.type == NBD_REPLY_TYPE_OFFSET_HOLE) {
                len = get_be32(chunk.payload + 8);
                ck_assert(len > 0 && chunk.length == 12);
                memset(seen + from, 0, len);
                holes++;
            } else {
                ck_assert(chunk.type == NBD_REPLY_TYPE_OFFSET_DATA && len > 0);
                memcpy(seen + from, chunk.payload + 8, len);
            }
            covered += len;
            ck_assert((covered == lens[i]) == (chunk.flags == NBD_REPLY_FLAG_DONE));
        } while (!(chunk.flags & NBD_REPLY_FLAG_DONE));
        ck_assert(covered == lens[i] && holes > 0);
        ck_assert(memcmp(seen + offset, rig->disk->bytes + offset, lens[i]) == 0);
        ck_assert(client_unread(client) == 0);
    }
    client_free(client);
    rig_free(rig);
}
END_TEST

START_TEST(statement_37_df_is_one_chunk)
{
    rig = rig_create();
    make_checkered();
    struct client *client = client_enter(rig, "", STRUCTURED);
    client_request(client, NBD_CMD_READ, NBD_CMD_FLAG_DF, 1, 0, RIG_IMAGE_BYTES);
    struct chunk chunk = client_chunk(client);
    ck_assert(chunk.type == NBD_REPLY_TYPE_OFFSET_DATA && chunk.flags == NBD_REPLY_FLAG_DONE);
    ck_assert(chunk.length == RIG_IMAGE_BYTES + 8);
    ck_assert(memcmp(chunk.payload + 8, rig->disk->bytes, RIG_IMAGE_BYTES) == 0);
    client_free(client);

    rig->disk->image.size_bytes = 4 * GIB;
    client = client_enter(rig, "", STRUCTURED);
    client_request(client, NBD_CMD_READ, NBD_CMD_FLAG_DF, 2, 0, LIMIT_PAYLOAD_BYTES + 1);
    client_expect_error_chunk(client, 2, NBD_EOVERFLOW);
    client_free(client);
    client = client_enter(rig, "", SIMPLE);
    client_request(client, NBD_CMD_READ, NBD_CMD_FLAG_DF, 3, 0, 512);
    client_expect_simple(client, 3, NBD_EINVAL);
    client_free(client);
    rig_free(rig);
}
END_TEST

START_TEST(statement_39_47_errors_of_the_image)
{
    static const struct {
        int fail;
        unsigned flags;
        uint32_t error;
    } cases[] = {
        {-EIO, 0, NBD_EIO},
        {-ENOSPC, 0, NBD_ENOSPC},
        {-EDQUOT, 0, NBD_ENOSPC},
        {-EROFS, 0, NBD_EPERM},
        {-ENOTSUP, NBD_CMD_FLAG_FAST_ZERO, NBD_ENOTSUP},
        {-ENOTSUP, 0, NBD_EIO},
        {-ESHUTDOWN, 0, NBD_ESHUTDOWN},
        {-ENXIO, 0, NBD_EIO},
    };
    rig = rig_create();
    struct client *client = client_enter(rig, "", SIMPLE);
    for (size_t i = 0; i < ARRAY_LEN(cases); i++) {
        rig->disk->fail = cases[i].fail;
        client_request(client, NBD_CMD_WRITE_ZEROES, (uint16_t)cases[i].flags, i, 0, 4096);
        client_expect_simple(client, i, cases[i].error);
    }
    rig->disk->fail = -EIO;
    client_request(client, NBD_CMD_READ, 0, 50, 0, 4096); /* no payload behind an error */
    client_expect_simple(client, 50, NBD_EIO);
    ck_assert(client_unread(client) == 0);
    client_request(client, NBD_CMD_FLUSH, 0, 51, 0, 0);
    client_expect_simple(client, 51, NBD_EIO);
    rig->disk->fail = 0;
    client_request(client, NBD_CMD_FLUSH, 0, 52, 0, 0);
    client_expect_simple(client, 52, 0);
    client_free(client);
    rig_free(rig);
}
END_TEST

START_TEST(statement_41_42_odd_requests_keep_the_connection)
{
    rig = rig_create();
    struct client *client = client_enter(rig, "", SIMPLE);
    client_request(client, 4711, 0, 1, 0, 512);
    client_expect_simple(client, 1, NBD_EINVAL);
    client_request(client, NBD_CMD_WRITE, 0, 2, 0, 0);
    client_expect_simple(client, 2, 0);
    client_request(client, NBD_CMD_TRIM, 0, 3, 0, 0);
    client_expect_simple(client, 3, 0);
    client_request(client, NBD_CMD_WRITE_ZEROES, 0, 4, 0, 0);
    client_expect_simple(client, 4, 0);
    client_request(client, NBD_CMD_READ, 0, 5, 0, 0);
    client_expect_simple(client, 5, 0);
    client_request(client, NBD_CMD_BLOCK_STATUS, 0, 6, 0, 512);
    client_expect_simple(client, 6, NBD_EINVAL);
    client_request(client, NBD_CMD_FLUSH, NBD_CMD_FLAG_FUA, 7, 99, 99);
    client_expect_simple(client, 7, 0);
    client_request(client, NBD_CMD_READ, NBD_CMD_FLAG_FUA, 8, 0, 512);
    expect_read_simple(client, 8, 0, 512);
    ck_assert(rig->disk->writes == 0 && rig->disk->trims == 0 && rig->disk->zeroes == 0);
    client_free(client);
    rig_free(rig);
}
END_TEST

START_TEST(statement_49_block_status)
{
    rig = rig_create();
    make_checkered();
    struct client *client = client_enter(rig, "", WITH_CONTEXTS);
    client_request(client, NBD_CMD_BLOCK_STATUS, 0, 1, 100, 5 * RIG_UNIT_BYTES);
    for (unsigned context = 0; context < META_FIXED_COUNT; context++) {
        struct chunk chunk = client_chunk(client);
        ck_assert(chunk.type == NBD_REPLY_TYPE_BLOCK_STATUS);
        ck_assert(chunk.length == 4 + 6 * 8);
        ck_assert(get_be32(chunk.payload) == meta_context_id(context));
        ck_assert(chunk.flags == (context + 1 == META_FIXED_COUNT ? NBD_REPLY_FLAG_DONE : 0));
        uint64_t sum = 0;
        for (unsigned i = 0; i < 6; i++) {
            const uint8_t *extent = chunk.payload + 4 + 8 * (size_t)i;
            uint32_t expected = context == META_BASE_ALLOCATION ? (i % 2 ? 0 : 3) : i % 2;
            ck_assert_uint_eq(get_be32(extent + 4), expected);
            ck_assert(get_be32(extent) > 0);
            sum += get_be32(extent);
        }
        ck_assert_uint_eq(sum, 5 * RIG_UNIT_BYTES);
    }
    client_request(client, NBD_CMD_BLOCK_STATUS, NBD_CMD_FLAG_REQ_ONE, 2, 0, RIG_IMAGE_BYTES);
    for (unsigned context = 0; context < META_FIXED_COUNT; context++) {
        struct chunk chunk = client_chunk(client);
        ck_assert(chunk.length == 12 && get_be32(chunk.payload + 4) == RIG_UNIT_BYTES);
    }
    client_request(client, NBD_CMD_BLOCK_STATUS, NBD_CMD_FLAG_REQ_ONE, 3, 4, 10);
    for (unsigned context = 0; context < META_FIXED_COUNT; context++) {
        struct chunk chunk = client_chunk(client);
        ck_assert(chunk.length == 12 && get_be32(chunk.payload + 4) == 10);
    }
    client_request(client, NBD_CMD_BLOCK_STATUS, 0, 4, 0, 0);
    client_expect_error_chunk(client, 4, NBD_EINVAL);
    rig->disk->fail = -EIO;
    client_request(client, NBD_CMD_BLOCK_STATUS, 0, 5, 0, 512);
    client_expect_error_chunk(client, 5, NBD_EIO);
    client_free(client);
    rig_free(rig);
}
END_TEST

START_TEST(statement_33_extended_replies)
{
    rig = rig_create();
    make_checkered();
    struct client *client = client_enter(rig, "", EXTENDED);
    client_extended(client, NBD_CMD_WRITE, NBD_CMD_FLAG_PAYLOAD_LEN | NBD_CMD_FLAG_FUA, 1, 5000, 5);
    client_send(client, "howdy", 5);
    client_expect_none(client, 1);
    ck_assert(memcmp(rig->disk->bytes + 5000, "howdy", 5) == 0);
    ck_assert_uint_eq(rig->disk->last_flags, IMAGE_FUA);
    client_extended(client, NBD_CMD_WRITE, NBD_CMD_FLAG_PAYLOAD_LEN, 2, 5000, 0);
    client_expect_none(client, 2);

    /* Content chunks name their own offset inside, and the request's in the header. */
    uint64_t at = 777;
    struct chunk chunk;
    client_extended(client, NBD_CMD_READ, 0, 3, at, 5 * RIG_UNIT_BYTES);
    do {
        chunk = client_chunk(client);
        ck_assert(chunk.cookie == 3 && chunk.offset == 777 && get_be64(chunk.payload) == at);
        ck_assert(chunk.type == NBD_REPLY_TYPE_OFFSET_DATA ||
                  chunk.type == NBD_REPLY_TYPE_OFFSET_HOLE);
        at += chunk.type == NBD_REPLY_TYPE_OFFSET_DATA ? chunk.length - 8
                                                       : get_be32(chunk.payload + 8);
    } while (!(chunk.flags & NBD_REPLY_FLAG_DONE));
    ck_assert(at == 777 + 5 * RIG_UNIT_BYTES);

    client_extended(client, NBD_CMD_READ, 0, 4, 0, 0);
    client_expect_none(client, 4);
    client_extended(client, NBD_CMD_READ, 0, 5, RIG_IMAGE_BYTES - 1, 2);
    client_expect_error_chunk(client, 5, NBD_EINVAL);
    client_extended(client, NBD_CMD_READ, 0, 6, 0, LIMIT_PAYLOAD_BYTES + 1ULL);
    client_expect_error_chunk(client, 6, NBD_EINVAL); /* past the end as well */
    client_extended(client, 99, 0, 7, 12345, 0);
    chunk = client_chunk(client);
    ck_assert(chunk.type == NBD_REPLY_TYPE_ERROR && chunk.offset == 12345);
    client_extended(client, NBD_CMD_DISC, 0, 8, 0, 0);
    client_expect_closed(client);
    client_free(client);
    rig_free(rig);
}
END_TEST

START_TEST(statement_45_huge_requests_hold_nobody_up)
{
    rig = rig_create();
    uint64_t size = 1ULL << 40;
    rig->disk->image.size_bytes = size;
    struct client *client = client_enter(rig, "", EXTENDED);
    rig->disk->hold = true;
    rig->disk->fail = -EIO; /* the image in memory is not that large */
    client_extended(client, NBD_CMD_TRIM, 0, 1, 0, 5 * GIB);
    client_extended(client, NBD_CMD_WRITE_ZEROES, NBD_CMD_FLAG_FAST_ZERO, 2, 0, size);
    ck_assert(rig_held(rig) == 2 && rig->disk->trims == 1 && rig->disk->zeroes == 1);
    rig->disk->hold = false;
    rig->disk->fail = 0;
    client_extended(client, NBD_CMD_READ, 0, 3, 4096, 512);
    ck_assert(client_chunk(client).type == NBD_REPLY_TYPE_OFFSET_DATA);
    rig->disk->fail = -EIO;
    rig_release_all(rig);
    rig_run(rig);
    client_expect_error_chunk(client, 1, NBD_EIO);
    client_expect_error_chunk(client, 2, NBD_EIO);
    client_free(client);
    rig_free(rig);
}
END_TEST

START_TEST(statement_51_foreign_payloads_are_drained)
{
    static const uint16_t types[] = {
        NBD_CMD_READ,  NBD_CMD_FLUSH,        NBD_CMD_TRIM, NBD_CMD_WRITE_ZEROES,
        NBD_CMD_CACHE, NBD_CMD_BLOCK_STATUS, 4711};
    static uint8_t payload[50000];
    rig = rig_create();
    struct client *client = client_enter(rig, "", EXTENDED);
    for (size_t i = 0; i < ARRAY_LEN(types); i++) {
        size_t len = i % 2 ? sizeof(payload) : 12;
        client_extended(client, types[i], NBD_CMD_FLAG_PAYLOAD_LEN, i, 0, len);
        client_send(client, payload, len);
        client_expect_error_chunk(client, i, NBD_EINVAL);
        client_extended(client, NBD_CMD_FLUSH, 0, 1000, 0, 0);
        client_expect_none(client, 1000);
    }
    client_extended(client, NBD_CMD_FLUSH, NBD_CMD_FLAG_PAYLOAD_LEN, 5, 0,
                    LIMIT_PAYLOAD_BYTES + 1ULL);
    client_expect_error_chunk(client, 5, NBD_EINVAL);
    client_expect_closed(client);
    client_free(client);

    rig_free(rig);
}
END_TEST

/* As QEMU's client sends it: the data is written, never taken for a request. */
START_TEST(statement_52_write_without_payload_flag)
{
    uint8_t trap[32];
    rig = rig_create();
    struct client *client = client_enter(rig, "", EXTENDED);
    pack_extended(trap, NBD_CMD_WRITE_ZEROES, 0, 99, 0, RIG_IMAGE_BYTES);
    for (unsigned i = 0; i < 3; i++) {
        client_extended(client, NBD_CMD_WRITE, 0, 6 + i, 4096 * i, sizeof(trap));
        client_send(client, trap, sizeof(trap));
        client_expect_none(client, 6 + i);
        ck_assert_mem_eq(rig->disk->bytes + 4096 * (size_t)i, trap, sizeof(trap));
    }
    ck_assert(rig->disk->writes == 3 && rig->disk->zeroes == 0);
    /* Refused, its data is drained. */
    client_extended(client, NBD_CMD_WRITE, 0, 9, RIG_IMAGE_BYTES, sizeof(trap));
    client_send(client, trap, sizeof(trap));
    client_expect_error_chunk(client, 9, NBD_ENOSPC);
    client_extended(client, NBD_CMD_FLUSH, 0, 10, 0, 0);
    client_expect_none(client, 10);
    client_free(client);
    rig_free(rig);
}
END_TEST

START_TEST(statement_51_status_filters)
{
    uint8_t words[4 * (32 + 16)];
    rig = rig_create();
    make_checkered();
    struct client *client = client_enter(rig, "", EXTENDED_WITH_CONTEXTS);
    client_extended(client, NBD_CMD_BLOCK_STATUS, 0, 1, 0, 3 * RIG_UNIT_BYTES);
    for (unsigned context = 0; context < META_FIXED_COUNT; context++) {
        struct chunk chunk = client_chunk(client);
        ck_assert(chunk.type == NBD_REPLY_TYPE_BLOCK_STATUS_EXT && chunk.length == 8 + 3 * 16);
        ck_assert(get_be32(chunk.payload) == meta_context_id(context));
        ck_assert(get_be32(chunk.payload + 4) == 3);
        ck_assert(chunk.flags == (context + 1 == META_FIXED_COUNT ? NBD_REPLY_FLAG_DONE : 0));
    }
    /* One context after the other, delivered in pieces, and a flush right behind. */
    client->deliver_most = 7;
    for (unsigned context = 0; context < META_FIXED_COUNT; context++) {
        pack_extended(words, NBD_CMD_BLOCK_STATUS, NBD_CMD_FLAG_PAYLOAD_LEN, 2, RIG_UNIT_BYTES, 12);
        put_be64(words + 32, 2 * RIG_UNIT_BYTES);
        put_be32(words + 40, meta_context_id(context));
        pack_extended(words + 44, NBD_CMD_FLUSH, 0, 3, 0, 0);
        client_send(client, words, 76);
        struct chunk chunk = client_chunk(client);
        ck_assert(chunk.cookie == 2 && chunk.flags == NBD_REPLY_FLAG_DONE);
        ck_assert(chunk.offset == RIG_UNIT_BYTES);
        ck_assert(chunk.length == 8 + 2 * 16);
        ck_assert(get_be32(chunk.payload) == meta_context_id(context));
        client_expect_none(client, 3);
    }
    /* An unknown context: refused, and in step. */
    put_be32(words + 40, 99);
    client_send(client, words, 76);
    client_expect_error_chunk(client, 2, NBD_EINVAL);
    client_expect_none(client, 3);
    /* Gone in the middle of one. */
    client_send(client, words, 40);
    client_half_close(client);
    client_expect_closed(client);
    client_free(client);
    rig_free(rig);
}
END_TEST

/* Many requests, interleaved with payloads, in pieces of every size. */
START_TEST(pipelined_requests_in_any_delivery)
{
    enum { ROUNDS = 40, BYTES = 1 << 20 };
    static uint8_t words[BYTES];
    size_t used = 0;
    for (unsigned i = 0; i < ROUNDS; i++) {
        uint32_t len = i * 611 + 1;
        pack_request(words + used, NBD_CMD_WRITE, 0, i, i * 50000ULL, len);
        used += HEADER_BYTES;
        memset(words + used, (int)i + 1, len);
        used += len;
        pack_request(words + used, NBD_CMD_CACHE, 0, 1000 + i, 0, 1);
        used += HEADER_BYTES;
        ck_assert(used < BYTES);
    }
    static const size_t delivery[] = {1, 7, 27, 28, 29, 4096, 16383, 16384, 65536, SIZE_MAX};
    for (size_t d = 0; d < ARRAY_LEN(delivery); d++) {
        rig = rig_create();
        struct client *client = client_enter(rig, "", SIMPLE);
        client->deliver_most = delivery[d];
        client_send(client, words, used);
        ck_assert(client_unread(client) == 2 * ROUNDS * 16);
        unsigned seen[2] = {0, 0};
        for (unsigned i = 0; i < 2 * ROUNDS; i++) {
            const uint8_t *reply = client_take(client, 16);
            ck_assert(get_be32(reply + 4) == 0);
            seen[get_be64(reply + 8) >= 1000]++;
        }
        ck_assert(seen[0] == ROUNDS && seen[1] == ROUNDS);
        for (unsigned i = 0; i < ROUNDS; i++) {
            bool equal = true; /* an assertion for each byte would take long */
            for (uint32_t at = 0; at < i * 611 + 1; at++) {
                equal = equal && rig->disk->bytes[i * 50000 + at] == i + 1;
            }
            ck_assert(equal);
        }
        client_free(client);
        rig_free(rig);
    }
}
END_TEST

START_TEST(statement_55_many_in_flight_out_of_order)
{
    enum { COUNT = 64 };
    rig = rig_create();
    struct client *client = client_enter(rig, "", STRUCTURED);
    rig->disk->hold = true;
    for (unsigned i = 0; i < COUNT; i++) {
        client_request(client, NBD_CMD_READ, 0, i, i * 4096ULL, 4096);
    }
    ck_assert_uint_eq(rig_held(rig), COUNT);
    ck_assert(client_unread(client) == 0);
    /* Every third first, the rest from the end; each turn's replies leave in one send. */
    unsigned order[COUNT], count = 0;
    for (unsigned i = 0; i < COUNT; i += 3) {
        order[count++] = i;
        rig_release(rig, i - i / 3);
    }
    rig_run(rig);
    ck_assert_uint_eq(client->sends, 1);
    for (unsigned i = COUNT; i-- > 0;) {
        if (i % 3) {
            order[count++] = i;
        }
    }
    while (rig_held(rig) > 0) {
        rig_release(rig, rig_held(rig) - 1);
        rig_run(rig);
    }
    for (unsigned i = 0; i < COUNT; i++) {
        struct chunk chunk = client_chunk(client);
        ck_assert_uint_eq(chunk.cookie, order[i]);
        ck_assert(get_be64(chunk.payload) == order[i] * 4096ULL);
        ck_assert(memcmp(chunk.payload + 8, rig->disk->bytes + order[i] * 4096, 4096) == 0);
    }
    client_free(client);
    rig_free(rig);
}
END_TEST

START_TEST(replies_that_come_during_a_send_follow_it)
{
    rig = rig_create();
    struct client *client = client_enter(rig, "", SIMPLE);
    client->window = 100;
    client_request(client, NBD_CMD_READ, 0, 1, 0, 4096);
    client_request(client, NBD_CMD_READ, 0, 2, 4096, 4096);
    client_request(client, NBD_CMD_FLUSH, 0, 3, 0, 0);
    ck_assert(client_unread(client) == 100 && client->sends == 1);
    client->window = SIZE_MAX;
    wait_queue_wake_all(&client->sending);
    rig_run(rig);
    ck_assert_uint_eq(client->sends, 2);
    expect_read_simple(client, 1, 0, 4096);
    expect_read_simple(client, 2, 4096, 4096);
    client_expect_simple(client, 3, 0);
    client_free(client);
    rig_free(rig);
}
END_TEST

START_TEST(sends_at_once_without_turns)
{
    rig = rig_create();
    rig->service.at_end_of_turn = NULL;
    struct client *client = client_enter(rig, "", SIMPLE);
    for (unsigned i = 0; i < 10; i++) {
        client_request(client, NBD_CMD_READ, 0, i, 0, 512);
        expect_read_simple(client, i, 0, 512);
    }
    client_free(client);
    rig_free(rig);
}
END_TEST

START_TEST(requests_in_flight_are_bounded)
{
    rig = rig_create();
    struct client *client = client_enter(rig, "", SIMPLE);
    rig->disk->hold = true;
    for (unsigned i = 0; i < 3 * LIMIT_REQUESTS_PER_CONNECTION; i++) {
        client_request(client, NBD_CMD_FLUSH, 0, i, 0, 0);
    }
    ck_assert_uint_eq(rig_held(rig), LIMIT_REQUESTS_PER_CONNECTION);
    rig_release(rig, 5);
    rig_run(rig);
    client_expect_simple(client, 5, 0);
    ck_assert_uint_eq(rig_held(rig), LIMIT_REQUESTS_PER_CONNECTION);
    rig_release_all(rig);
    rig_run(rig);
    ck_assert(client_unread(client) == 16 * (3 * LIMIT_REQUESTS_PER_CONNECTION - 1));
    client_free(client);
    rig_free(rig);
}
END_TEST

START_TEST(bytes_in_flight_are_bounded)
{
    rig = rig_create();
    struct client *client = client_enter(rig, "", SIMPLE);
    rig->disk->hold = true;
    unsigned fits = LIMIT_BYTES_PER_CONNECTION / RIG_IMAGE_BYTES;
    for (unsigned i = 0; i < 2 * fits; i++) {
        client_request(client, NBD_CMD_READ, 0, i, 0, RIG_IMAGE_BYTES);
    }
    ck_assert_uint_eq(rig_held(rig), fits);
    ck_assert(rig->budget.used == LIMIT_BYTES_PER_CONNECTION);
    client_vanish(client); /* what is in flight ends, the rest never begins */
    rig_release_all(rig);
    client_free(client);
    rig_free(rig);
}
END_TEST

START_TEST(statement_55_a_client_that_does_not_read)
{
    rig = rig_create();
    struct client *deaf = client_enter(rig, "", SIMPLE);
    struct client *other = client_enter(rig, "", SIMPLE);
    deaf->window = 100;
    for (unsigned i = 0; i < 1000; i++) {
        client_request(deaf, NBD_CMD_READ, 0, i, 0, 65536);
    }
    /* No more than the limit was taken from it, and no more of its requests are read. */
    ck_assert(rig->disk->reads == LIMIT_REQUESTS_PER_CONNECTION);
    ck_assert(deaf->to_server_len - deaf->to_server_at > 0);
    client_request(other, NBD_CMD_READ, 0, 1, 0, 65536);
    expect_read_simple(other, 1, 0, 65536);
    /* When it reads, it gets everything, whole and in order. */
    deaf->window = 5000;
    wait_queue_wake_all(&deaf->sending);
    rig_run(rig);
    for (unsigned i = 0; i < 1000; i++) {
        for (size_t at = 0; at < 16 + 65536; at += 4097) {
            size_t now = MIN_OF(4097U, 16U + 65536U - at);
            const uint8_t *bytes = client_take(deaf, now);
            ck_assert(at > 0 || get_be64(bytes + 8) == i);
        }
    }
    client_free(deaf);
    client_free(other);
    rig_free(rig);
}
END_TEST

START_TEST(statement_54_disc_answers_what_is_outstanding)
{
    rig = rig_create();
    struct client *client = client_enter(rig, "", SIMPLE);
    rig->disk->hold = true;
    client_request(client, NBD_CMD_WRITE, 0, 1, 0, 3);
    client_send(client, "abc", 3);
    client_request(client, NBD_CMD_FLUSH, 0, 2, 0, 0);
    client_request(client, NBD_CMD_DISC, 0xffff, 3, 99, 99);
    client_request(client, NBD_CMD_FLUSH, 0, 4, 0, 0); /* not looked at any more */
    ck_assert(!client->closed && rig_held(rig) == 2);
    rig_release(rig, 1);
    rig_run(rig);
    client_expect_simple(client, 2, 0);
    ck_assert(!client->closed);
    rig_release(rig, 0);
    rig_run(rig);
    client_expect_simple(client, 1, 0);
    client_expect_closed(client);
    client_free(client);
    rig_free(rig);
}
END_TEST

START_TEST(statement_54_end_of_stream_is_a_goodbye_too)
{
    rig = rig_create();
    struct client *client = client_enter(rig, "", SIMPLE);
    rig->disk->hold = true;
    client_request(client, NBD_CMD_FLUSH, 0, 2, 0, 0);
    client_half_close(client);
    ck_assert(!client->closed);
    rig_release_all(rig);
    rig_run(rig);
    client_expect_simple(client, 2, 0);
    client_expect_closed(client);
    client_free(client);
    rig_free(rig);
}
END_TEST

START_TEST(every_half_sent_request_ends_cleanly)
{
    uint8_t words[HEADER_BYTES + 100] = {0};
    rig = rig_create();
    pack_request(words, NBD_CMD_WRITE, 0, 1, 0, 100);
    for (size_t cut = 0; cut < sizeof(words); cut++) {
        for (int vanish = 0; vanish < 2; vanish++) {
            struct client *client = client_enter(rig, "", SIMPLE);
            client_send(client, words, cut);
            if (vanish) {
                client_vanish(client);
            } else {
                client_half_close(client);
            }
            client_expect_closed(client);
            client_free(client);
        }
    }
    ck_assert(rig->disk->writes == 0);
    rig_free(rig);
}
END_TEST

START_TEST(peer_vanishes_with_requests_in_flight)
{
    static uint8_t payload[65536];
    rig = rig_create();
    struct client *client = client_enter(rig, "", STRUCTURED);
    rig->disk->hold = true;
    for (unsigned i = 0; i < 10; i++) {
        client_request(client, NBD_CMD_READ, 0, i, 0, 65536);
        client_request(client, NBD_CMD_WRITE, 0, i, 0, sizeof(payload));
        client_send(client, payload, sizeof(payload));
    }
    client_vanish(client);
    ck_assert(!client->closed); /* the image still works for it */
    while (rig_held(rig) > 1) {
        rig_release(rig, rig_held(rig) / 2);
        rig_run(rig);
    }
    ck_assert(!client->closed);
    rig_release_all(rig);
    rig_run(rig);
    ck_assert(client->closed);
    ck_assert(rig->disk->writes == 10);
    client_free(client);
    rig_free(rig);
}
END_TEST

START_TEST(garbage_in_transmission)
{
    uint64_t state = 7;
    rig = rig_create();
    rig->disk->image.size_bytes = RIG_IMAGE_BYTES;
    for (unsigned round = 0; round < 1500; round++) {
        struct client *client = client_enter(rig, round % 2 ? "" : "ro", (int)(round % 5));
        uint8_t words[2000];
        size_t used = 0;
        while (used + HEADER_BYTES + 256 < sizeof(words)) {
            state = state * 6364136223846793005ULL + 1442695040888963407ULL;
            uint32_t len = (uint32_t)(state >> 40) % (state >> 63 ? 200 : 70000);
            uint16_t type = (uint16_t)(state >> 60);
            uint16_t flags = (uint16_t)(state >> 44 & 3 ? 0 : 1U << (state >> 54 & 15));
            uint64_t offset = (state >> 20) % (RIG_IMAGE_BYTES + 5000);
            if (client->extended) {
                pack_extended(words + used, type, flags, state, offset, len);
                used += sizeof(struct wire_extended_request);
            } else {
                pack_request(words + used, type, flags, state, offset, len);
                used += HEADER_BYTES;
            }
            memset(words + used, 0x77, state >> 12 & 127);
            used += state >> 12 & 127;
        }
        client->deliver_most = round % 50 + 1;
        client_send(client, words, used);
        client_free(client);
    }
    rig_free(rig);
}
END_TEST

START_TEST(statement_57_connections_share_the_image)
{
    rig = rig_create();
    struct client *a = client_enter(rig, "", SIMPLE);
    struct client *b = client_enter(rig, "ro", STRUCTURED);
    client_request(a, NBD_CMD_WRITE, 0, 1, 0, 5);
    client_send(a, "12345", 5);
    client_expect_simple(a, 1, 0);
    client_request(b, NBD_CMD_READ, 0, 2, 0, 5);
    struct chunk chunk = client_chunk(b);
    ck_assert(memcmp(chunk.payload + 8, "12345", 5) == 0);
    /* A flush through the read-only door covers the writes through the other. */
    client_request(b, NBD_CMD_FLUSH, 0, 3, 0, 0);
    client_expect_simple(b, 3, 0);
    ck_assert(rig->disk->flushes == 1);
    client_free(a);
    client_free(b);
    rig_free(rig);
}
END_TEST

START_TEST(flush_of_an_image_that_cannot_be_written)
{
    rig = rig_create();
    rig->disk->image.read_only = true;
    struct client *client = client_enter(rig, "", SIMPLE);
    client_request(client, NBD_CMD_FLUSH, 0, 1, 0, 0);
    client_expect_simple(client, 1, 0);
    ck_assert(rig->disk->flushes == 0);
    client_request(client, NBD_CMD_WRITE_ZEROES, 0, 2, 0, 512);
    client_expect_simple(client, 2, NBD_EPERM);
    client_free(client);
    rig_free(rig);
}
END_TEST

#define LONG_BYTES 700000U

/* A long read's chunks up to the last one; returns how many, and the last. */
static unsigned take_long_read(struct client *client, uint64_t offset, struct chunk *last)
{
    size_t covered = 0;
    unsigned count = 0;

    do {
        *last = client_chunk(client);
        count++;
        ck_assert_uint_eq(last->cookie, 9);
        ck_assert(!client->extended || last->offset == offset);
        if (last->type == NBD_REPLY_TYPE_OFFSET_DATA) {
            size_t len = last->length - 8;
            ck_assert(get_be64(last->payload) == offset + covered);
            ck_assert(memcmp(last->payload + 8, rig->disk->bytes + offset + covered, len) == 0);
            covered += len;
        }
    } while (!(last->flags & NBD_REPLY_FLAG_DONE));
    ck_assert(last->type == NBD_REPLY_TYPE_ERROR || covered == LONG_BYTES);
    return count;
}

static void request_long_read(struct client *client, uint64_t offset)
{
    if (client->extended) {
        client_extended(client, NBD_CMD_READ, 0, 9, offset, LONG_BYTES);
    } else {
        client_request(client, NBD_CMD_READ, 0, 9, offset, LONG_BYTES);
    }
}

START_TEST(long_reads_are_answered_in_parts)
{
    static const int ways[] = {STRUCTURED, EXTENDED};
    struct chunk last;
    rig = rig_create();
    for (size_t i = 0; i < ARRAY_LEN(ways); i++) {
        struct client *client = client_enter(rig, "", ways[i]);
        rig->disk->reads = 0;
        request_long_read(client, 1000);
        unsigned chunks = take_long_read(client, 1000, &last);
        ck_assert_uint_eq(chunks, rig->disk->reads);
        ck_assert_uint_gt(chunks, 3);

        /* An error in the middle ends it. */
        rig->disk->hold = true;
        request_long_read(client, 1000);
        rig_release(rig, 0);
        rig_run(rig);
        rig->disk->fail = -EIO;
        rig_release_all(rig);
        rig_run(rig);
        ck_assert_uint_eq(take_long_read(client, 1000, &last), 2);
        ck_assert(last.type == NBD_REPLY_TYPE_ERROR && get_be32(last.payload) == NBD_EIO);
        rig->disk->fail = 0;

        /* What comes from a slow disk is read in two parts. */
        rig->disk->hold = true;
        rig->disk->reads = 0;
        request_long_read(client, 0);
        rig_advance(rig, 5 * MS);
        rig_release_all(rig);
        rig_run(rig);
        ck_assert_uint_eq(take_long_read(client, 0, &last), 2);
        ck_assert_uint_eq(rig->disk->reads, 2);
        client_free(client);
    }
    rig_free(rig);
}
END_TEST

START_TEST(long_holes_are_one_chunk)
{
    rig = rig_create();
    struct client *client = client_enter(rig, "", STRUCTURED);
    for (unsigned unit = 0; unit < 2 * MIB / RIG_UNIT_BYTES; unit++) {
        rig->disk->extent_flags[unit] = EXTENT_HOLE | EXTENT_ZERO;
    }
    client_request(client, NBD_CMD_READ, 0, 1, 4096, 1 << 20);
    struct chunk chunk = client_chunk(client);
    ck_assert(chunk.type == NBD_REPLY_TYPE_OFFSET_HOLE && chunk.flags == NBD_REPLY_FLAG_DONE);
    ck_assert(get_be64(chunk.payload) == 4096 && get_be32(chunk.payload + 8) == 1 << 20);
    /* A hole that ends within. */
    client_request(client, NBD_CMD_READ, 0, 2, 1 << 20, (1 << 20) + 100);
    chunk = client_chunk(client);
    ck_assert(chunk.type == NBD_REPLY_TYPE_OFFSET_HOLE && chunk.flags == 0);
    ck_assert(get_be64(chunk.payload) == 1 << 20 && get_be32(chunk.payload + 8) == 1 << 20);
    chunk = client_chunk(client);
    ck_assert(chunk.type == NBD_REPLY_TYPE_OFFSET_DATA && chunk.flags == NBD_REPLY_FLAG_DONE);
    ck_assert(get_be64(chunk.payload) == 2 << 20 && chunk.length == 108);
    ck_assert(client_unread(client) == 0);
    client_free(client);
    rig_free(rig);
}
END_TEST

START_TEST(long_writes_are_written_in_parts)
{
    static uint8_t payload[LONG_BYTES];
    rig = rig_create();
    for (size_t i = 0; i < sizeof(payload); i++) {
        payload[i] = (uint8_t)(i * 13 + i / 255);
    }
    struct client *client = client_enter(rig, "", SIMPLE);
    rig->disk->hold = true;
    client_request(client, NBD_CMD_WRITE, NBD_CMD_FLAG_FUA, 1, 77, LONG_BYTES);
    client_send(client, payload, LONG_BYTES / 2);
    rig_run(rig);
    ck_assert_uint_gt(rig_held(rig), 0); /* before all is there */
    client_send(client, payload + LONG_BYTES / 2, LONG_BYTES - LONG_BYTES / 2);
    rig_run(rig);
    while (rig_held(rig) > 0) {
        ck_assert(client_unread(client) == 0);
        rig_release(rig, rig_held(rig) - 1);
        rig_run(rig);
    }
    client_expect_simple(client, 1, 0);
    ck_assert(memcmp(rig->disk->bytes + 77, payload, LONG_BYTES) == 0);
    ck_assert(rig->disk->writes > 3 && rig->disk->flushes == 1); /* FUA */

    /* One part fails, and so does the request; the connection goes on. */
    client_request(client, NBD_CMD_WRITE, 0, 2, 0, LONG_BYTES);
    client_send(client, payload, LONG_BYTES / 2);
    rig->disk->hold = false;
    rig->disk->fail = -ENOSPC;
    client_send(client, payload + LONG_BYTES / 2, LONG_BYTES - LONG_BYTES / 2);
    rig_release_all(rig);
    rig_run(rig);
    client_expect_simple(client, 2, NBD_ENOSPC);
    rig->disk->fail = 0;
    client_request(client, NBD_CMD_WRITE, 0, 3, 0, LONG_BYTES);
    client_send(client, payload, LONG_BYTES);
    client_expect_simple(client, 3, 0);
    ck_assert_uint_eq(rig->disk->flushes, 1);
    client_free(client);

    /* No larger than a cluster helps: the image says so. */
    rig->disk->image.unit_bytes = 2 << 20;
    rig->disk->writes = 0;
    client = client_enter(rig, "", SIMPLE);
    client_request(client, NBD_CMD_WRITE, 0, 4, 0, LONG_BYTES);
    client_send(client, payload, LONG_BYTES);
    client_expect_simple(client, 4, 0);
    ck_assert_uint_eq(rig->disk->writes, 1);
    client_free(client);
    rig_free(rig);
}
END_TEST

START_TEST(long_requests_of_who_vanishes_end)
{
    static uint8_t payload[LONG_BYTES];
    rig = rig_create();
    for (size_t cut = 0; cut <= LONG_BYTES; cut += LONG_BYTES / 5) {
        struct client *client = client_enter(rig, "", STRUCTURED);
        rig->disk->hold = true;
        client->window = 1000;
        client_request(client, NBD_CMD_READ, 0, 1, 0, LONG_BYTES);
        client_request(client, NBD_CMD_WRITE, 0, 2, 0, LONG_BYTES);
        client_send(client, payload, cut);
        rig_run(rig);
        if (cut % 2) {
            rig_release(rig, 0);
            rig_run(rig);
        }
        client_vanish(client);
        rig_release_all(rig);
        rig_run(rig);
        ck_assert(client->closed);
        client_free(client);
    }
    rig_free(rig);
}
END_TEST

int main(void)
{
    const TTest *const tests[] = {
        read_and_write,
        other_commands_reach_the_image,
        statement_31_bad_magic_disconnects,
        statement_31_cookies_are_opaque_and_may_repeat,
        statement_32_refused_writes_are_drained,
        statement_32_absurd_write_is_answered_then_cut,
        statement_33_structured_reads_never_get_a_simple_reply,
        statement_36_holes_are_sent_as_holes,
        statement_37_df_is_one_chunk,
        statement_39_47_errors_of_the_image,
        statement_41_42_odd_requests_keep_the_connection,
        statement_49_block_status,
        statement_33_extended_replies,
        statement_45_huge_requests_hold_nobody_up,
        statement_51_foreign_payloads_are_drained,
        statement_52_write_without_payload_flag,
        statement_51_status_filters,
        pipelined_requests_in_any_delivery,
        statement_55_many_in_flight_out_of_order,
        replies_that_come_during_a_send_follow_it,
        sends_at_once_without_turns,
        requests_in_flight_are_bounded,
        bytes_in_flight_are_bounded,
        statement_55_a_client_that_does_not_read,
        statement_54_disc_answers_what_is_outstanding,
        statement_54_end_of_stream_is_a_goodbye_too,
        every_half_sent_request_ends_cleanly,
        peer_vanishes_with_requests_in_flight,
        garbage_in_transmission,
        statement_57_connections_share_the_image,
        flush_of_an_image_that_cannot_be_written,
        long_reads_are_answered_in_parts,
        long_holes_are_one_chunk,
        long_writes_are_written_in_parts,
        long_requests_of_who_vanishes_end,
    };
    return run_tests("transmit", tests, ARRAY_LEN(tests));
}
