/* SPDX-License-Identifier: BSD-2-Clause */
/* Request headers: every refusal by its number, and garbage. */
#include <string.h>

#include "base/bytes.h"
#include "base/check.h"
#include "base/limits.h"
#include "proto/request.h"
#include "proto/test_main.h"
#include "proto/wire.h"

#define SIZE (1ULL << 40)
#define WRITABLE                                                                         \
    (NBD_FLAG_HAS_FLAGS | NBD_FLAG_SEND_FLUSH | NBD_FLAG_SEND_FUA | NBD_FLAG_SEND_TRIM | \
     NBD_FLAG_SEND_WRITE_ZEROES | NBD_FLAG_SEND_CACHE | NBD_FLAG_SEND_FAST_ZERO |        \
     NBD_FLAG_SEND_DF)

static const struct request_rules full_rules = {
    .request_bytes = LIMIT_PAYLOAD_BYTES,
    .size_bytes = SIZE,
    .transmission_flags = WRITABLE,
    .form = HEADERS_STRUCTURED,
    .meta_contexts = 3,
};

static struct nbd_request decode(const struct request_rules *rules, unsigned type, unsigned flags,
                                 uint64_t offset, uint64_t len)
{
    struct wire_request wire;
    struct nbd_request request;

    put_be32(wire.magic, NBD_REQUEST_MAGIC);
    put_be16(wire.flags, (uint16_t)flags);
    put_be16(wire.type, (uint16_t)type);
    put_be64(wire.cookie, 0xfedcba9876543210ULL);
    put_be64(wire.offset, offset);
    put_be32(wire.length, (uint32_t)len);
    ck_assert(request_header_bytes(rules) == sizeof(wire));
    ck_assert(request_decode((const uint8_t *)&wire, rules, &request));
    ck_assert(request.cookie == 0xfedcba9876543210ULL);
    ck_assert(request.type == type && request.flags == flags);
    ck_assert(request.offset == offset && request.length == len);
    ck_assert((request.error == 0) == (request.reason == NULL));
    return request;
}

static uint32_t error_of(const struct request_rules *rules, unsigned type, unsigned flags,
                         uint64_t offset, uint64_t len)
{
    return decode(rules, type, flags, offset, len).error;
}

/* The same, with a header of 32 bytes. */
static struct request_rules extended_rules(void)
{
    struct request_rules rules = full_rules;
    rules.form = HEADERS_EXTENDED;
    rules.transmission_flags |= NBD_FLAG_BLOCK_STATUS_PAYLOAD;
    return rules;
}

static struct nbd_request decode_ext(const struct request_rules *rules, unsigned type,
                                     unsigned flags, uint64_t offset, uint64_t len)
{
    struct wire_extended_request wire;
    struct nbd_request request;

    put_be32(wire.magic, NBD_EXTENDED_REQUEST_MAGIC);
    put_be16(wire.flags, (uint16_t)flags);
    put_be16(wire.type, (uint16_t)type);
    put_be64(wire.cookie, 0xfedcba9876543210ULL);
    put_be64(wire.offset, offset);
    put_be64(wire.length, len);
    ck_assert(request_header_bytes(rules) == sizeof(wire));
    ck_assert(request_decode((const uint8_t *)&wire, rules, &request));
    ck_assert(request.cookie == 0xfedcba9876543210ULL);
    ck_assert(request.type == type && request.flags == flags);
    ck_assert(request.offset == offset && request.length == len);
    ck_assert((request.error == 0) == (request.reason == NULL));
    return request;
}

START_TEST(statement_31_bad_magic_is_told_apart)
{
    uint8_t header[28] = {0x25, 0x60, 0x95, 0x12};
    struct nbd_request request;
    ck_assert(!request_decode(header, &full_rules, &request));
    header[3] = 0x13;
    ck_assert(request_decode(header, &full_rules, &request));
}
END_TEST

START_TEST(good_requests_pass)
{
    ck_assert_uint_eq(error_of(&full_rules, NBD_CMD_READ, 0, 0, 4096), 0);
    ck_assert_uint_eq(error_of(&full_rules, NBD_CMD_READ, NBD_CMD_FLAG_DF, SIZE - 1, 1), 0);
    ck_assert_uint_eq(error_of(&full_rules, NBD_CMD_WRITE, 0, 1, LIMIT_PAYLOAD_BYTES), 0);
    ck_assert_uint_eq(error_of(&full_rules, NBD_CMD_FLUSH, 0, 0, 0), 0);
    ck_assert_uint_eq(error_of(&full_rules, NBD_CMD_TRIM, 0, 0, UINT32_MAX), 0);
    ck_assert_uint_eq(error_of(&full_rules, NBD_CMD_CACHE, 0, 0, UINT32_MAX), 0);
    ck_assert_uint_eq(error_of(&full_rules, NBD_CMD_WRITE_ZEROES,
                               NBD_CMD_FLAG_NO_HOLE | NBD_CMD_FLAG_FAST_ZERO | NBD_CMD_FLAG_FUA, 0,
                               UINT32_MAX),
                      0);
    ck_assert_uint_eq(error_of(&full_rules, NBD_CMD_BLOCK_STATUS, NBD_CMD_FLAG_REQ_ONE, 0, 1), 0);
}
END_TEST

START_TEST(statement_32_payload_is_known_also_when_refused)
{
    struct nbd_request request = decode(&full_rules, NBD_CMD_WRITE, 0x8000, 0, 777);
    ck_assert(request.error == NBD_EINVAL && request.payload_len == 777 && !request.hang_up);
    request = decode(&full_rules, NBD_CMD_WRITE, 0, 0, LIMIT_PAYLOAD_BYTES + 1);
    ck_assert(request.error == NBD_EINVAL && !request.hang_up);
    ck_assert(request.payload_len == LIMIT_PAYLOAD_BYTES + 1);
    request = decode(&full_rules, NBD_CMD_WRITE, 0, 0, UINT32_MAX);
    ck_assert(request.error == NBD_EINVAL && request.hang_up);
    request = decode(&full_rules, NBD_CMD_READ, 0, 0, UINT32_MAX);
    ck_assert(request.error != 0 && request.payload_len == 0 && !request.hang_up);
    request = decode(&full_rules, 99, 0, 0, UINT32_MAX);
    ck_assert(request.payload_len == 0 && !request.hang_up);
}
END_TEST

START_TEST(statement_39_too_large_reads)
{
    struct request_rules simple = full_rules;
    simple.form = HEADERS_SIMPLE;
    ck_assert_uint_eq(error_of(&full_rules, NBD_CMD_READ, 0, 0, LIMIT_PAYLOAD_BYTES + 1),
                      NBD_EOVERFLOW);
    ck_assert_uint_eq(error_of(&simple, NBD_CMD_READ, 0, 0, LIMIT_PAYLOAD_BYTES + 1), NBD_EINVAL);
}
END_TEST

START_TEST(statement_40_past_the_end)
{
    static const struct {
        unsigned type;
        uint32_t error;
    } cases[] = {
        {NBD_CMD_READ, NBD_EINVAL},         {NBD_CMD_WRITE, NBD_ENOSPC},
        {NBD_CMD_TRIM, NBD_EINVAL},         {NBD_CMD_CACHE, NBD_EINVAL},
        {NBD_CMD_WRITE_ZEROES, NBD_ENOSPC}, {NBD_CMD_BLOCK_STATUS, NBD_EINVAL},
    };
    for (size_t i = 0; i < ARRAY_LEN(cases); i++) {
        unsigned type = cases[i].type;
        ck_assert_uint_eq(error_of(&full_rules, type, 0, SIZE - 511, 512), cases[i].error);
        ck_assert_uint_eq(error_of(&full_rules, type, 0, SIZE, 1), cases[i].error);
        ck_assert_uint_eq(error_of(&full_rules, type, 0, UINT64_MAX - 511, 512), cases[i].error);
        ck_assert_uint_eq(error_of(&full_rules, type, 0, UINT64_MAX, 512), cases[i].error);
        ck_assert_uint_eq(error_of(&full_rules, type, 0, SIZE - 512, 512), 0);
    }
}
END_TEST

START_TEST(statement_40_read_only)
{
    struct request_rules read_only = full_rules;
    read_only.transmission_flags = NBD_FLAG_HAS_FLAGS | NBD_FLAG_READ_ONLY | NBD_FLAG_SEND_FUA;
    ck_assert_uint_eq(error_of(&read_only, NBD_CMD_WRITE, 0, 0, 512), NBD_EPERM);
    ck_assert_uint_eq(error_of(&read_only, NBD_CMD_TRIM, 0, 0, 512), NBD_EPERM);
    ck_assert_uint_eq(error_of(&read_only, NBD_CMD_WRITE_ZEROES, 0, 0, 512), NBD_EPERM);
    ck_assert_uint_eq(error_of(&read_only, NBD_CMD_WRITE_ZEROES, NBD_CMD_FLAG_FAST_ZERO, 0, 512),
                      NBD_EPERM);
    ck_assert_uint_eq(error_of(&read_only, NBD_CMD_WRITE, 0, SIZE, 512), NBD_EPERM);
    ck_assert_uint_eq(error_of(&read_only, NBD_CMD_READ, 0, 0, 512), 0);
    ck_assert_uint_eq(error_of(&read_only, NBD_CMD_FLUSH, 0, 0, 0), 0);
}
END_TEST

START_TEST(statement_41_commands_and_flags)
{
    struct request_rules plain = full_rules;
    plain.transmission_flags = NBD_FLAG_HAS_FLAGS;
    ck_assert_uint_eq(error_of(&full_rules, 8, 0, 0, 512), NBD_EINVAL);
    ck_assert_uint_eq(error_of(&full_rules, 0xffff, 0, 0, 512), NBD_EINVAL);
    for (unsigned type = NBD_CMD_READ; type <= NBD_CMD_BLOCK_STATUS; type++) {
        if (type == NBD_CMD_DISC) {
            continue;
        }
        ck_assert_uint_eq(error_of(&full_rules, type, NBD_CMD_FLAG_FUA, 0, 512), 0);
        ck_assert_uint_eq(error_of(&plain, type, NBD_CMD_FLAG_FUA, 0, 512), NBD_EINVAL);
        ck_assert_uint_eq(error_of(&full_rules, type, 0x20, 0, 512), NBD_EINVAL);
        ck_assert_uint_eq(error_of(&full_rules, type, 0x8000, 0, 512), NBD_EINVAL);
        bool zeroes = type == NBD_CMD_WRITE_ZEROES;
        ck_assert(zeroes == (error_of(&full_rules, type, NBD_CMD_FLAG_NO_HOLE, 0, 512) == 0));
        ck_assert(zeroes == (error_of(&full_rules, type, NBD_CMD_FLAG_FAST_ZERO, 0, 512) == 0));
        ck_assert((type == NBD_CMD_READ) ==
                  (error_of(&full_rules, type, NBD_CMD_FLAG_DF, 0, 512) == 0));
        ck_assert((type == NBD_CMD_BLOCK_STATUS) ==
                  (error_of(&full_rules, type, NBD_CMD_FLAG_REQ_ONE, 0, 512) == 0));
    }
    ck_assert_uint_eq(error_of(&plain, NBD_CMD_READ, NBD_CMD_FLAG_DF, 0, 512), NBD_EINVAL);
    ck_assert_uint_eq(error_of(&plain, NBD_CMD_WRITE_ZEROES, NBD_CMD_FLAG_FAST_ZERO, 0, 512),
                      NBD_EINVAL);
}
END_TEST

START_TEST(statement_42_zero_lengths)
{
    ck_assert_uint_eq(error_of(&full_rules, NBD_CMD_READ, 0, SIZE, 0), 0);
    ck_assert_uint_eq(error_of(&full_rules, NBD_CMD_WRITE, 0, 0, 0), 0);
    ck_assert_uint_eq(error_of(&full_rules, NBD_CMD_BLOCK_STATUS, 0, 0, 0), NBD_EINVAL);
}
END_TEST

START_TEST(statement_43_flush_has_no_range)
{
    ck_assert_uint_eq(error_of(&full_rules, NBD_CMD_FLUSH, 0, UINT64_MAX, UINT32_MAX), 0);
}
END_TEST

START_TEST(statement_25_status_without_context)
{
    struct request_rules rules = full_rules;
    rules.meta_contexts = 0;
    ck_assert_uint_eq(error_of(&rules, NBD_CMD_BLOCK_STATUS, 0, 0, 512), NBD_EINVAL);
}
END_TEST

START_TEST(statement_54_disc_whatever_it_says)
{
    ck_assert_uint_eq(error_of(&full_rules, NBD_CMD_DISC, 0xffff, UINT64_MAX, UINT32_MAX), 0);
}
END_TEST

START_TEST(extended_magic_and_compact_magic_exclude_each_other)
{
    struct request_rules rules = extended_rules();
    uint8_t header[32] = {0x25, 0x60, 0x95, 0x13};
    struct nbd_request request;
    ck_assert(!request_decode(header, &rules, &request));
    put_be32(header, NBD_EXTENDED_REQUEST_MAGIC);
    ck_assert(request_decode(header, &rules, &request));
    ck_assert(!request_decode(header, &full_rules, &request));
}
END_TEST

START_TEST(statement_45_extended_lengths_have_64_bits)
{
    static const unsigned types[] = {NBD_CMD_TRIM, NBD_CMD_WRITE_ZEROES, NBD_CMD_CACHE,
                                     NBD_CMD_BLOCK_STATUS};
    struct request_rules rules = extended_rules();
    for (size_t i = 0; i < ARRAY_LEN(types); i++) {
        ck_assert_uint_eq(decode_ext(&rules, types[i], 0, 0, SIZE).error, 0);
        ck_assert_uint_eq(decode_ext(&rules, types[i], 0, 1, SIZE - 1).error, 0);
        ck_assert(decode_ext(&rules, types[i], 0, 1, SIZE).error != 0);
        ck_assert(decode_ext(&rules, types[i], 0, UINT64_MAX, UINT64_MAX).error != 0);
        ck_assert(decode_ext(&rules, types[i], 0, 2, UINT64_MAX - 1).error != 0);
        ck_assert(decode_ext(&rules, types[i], 0, 0, UINT64_MAX).payload_len == 0);
    }
    ck_assert_uint_eq(decode_ext(&rules, NBD_CMD_READ, 0, 0, LIMIT_PAYLOAD_BYTES).error, 0);
    ck_assert_uint_eq(decode_ext(&rules, NBD_CMD_READ, 0, 0, SIZE).error, NBD_EOVERFLOW);
}
END_TEST

START_TEST(statement_51_payloads_of_extended_requests)
{
    struct request_rules rules = extended_rules();
    struct nbd_request request =
        decode_ext(&rules, NBD_CMD_WRITE, NBD_CMD_FLAG_PAYLOAD_LEN, 0, LIMIT_PAYLOAD_BYTES);
    ck_assert(!request.error && request.payload_len == LIMIT_PAYLOAD_BYTES && !request.hang_up);
    /* Past the advertised maximum there is no draining. */
    request =
        decode_ext(&rules, NBD_CMD_WRITE, NBD_CMD_FLAG_PAYLOAD_LEN, 0, LIMIT_PAYLOAD_BYTES + 1);
    ck_assert(request.error == NBD_EINVAL && request.hang_up);
    request = decode_ext(&rules, NBD_CMD_WRITE, NBD_CMD_FLAG_PAYLOAD_LEN, 0, UINT64_MAX);
    ck_assert(request.error && request.hang_up);
    /* Other commands have none; what is sent all the same is drained. */
    static const unsigned types[] = {NBD_CMD_READ,         NBD_CMD_FLUSH, NBD_CMD_TRIM,
                                     NBD_CMD_WRITE_ZEROES, NBD_CMD_CACHE, 99};
    for (size_t i = 0; i < ARRAY_LEN(types); i++) {
        request = decode_ext(&rules, types[i], NBD_CMD_FLAG_PAYLOAD_LEN, 0, 4096);
        ck_assert(request.error == NBD_EINVAL && request.payload_len == 4096 && !request.hang_up);
        request = decode_ext(&rules, types[i], NBD_CMD_FLAG_PAYLOAD_LEN, 0, 1ULL << 40);
        ck_assert(request.error == NBD_EINVAL && request.hang_up);
        ck_assert(!request_has_filter(&request));
    }
}
END_TEST

START_TEST(statement_52_extended_write_without_payload_flag)
{
    static const uint64_t lengths[] = {
        0, 4096, LIMIT_PAYLOAD_BYTES, LIMIT_PAYLOAD_BYTES + 1, SIZE, UINT64_MAX};
    struct request_rules rules = extended_rules();
    for (size_t i = 0; i < ARRAY_LEN(lengths); i++) {
        struct nbd_request bare = decode_ext(&rules, NBD_CMD_WRITE, 0, 0, lengths[i]);
        struct nbd_request said =
            decode_ext(&rules, NBD_CMD_WRITE, NBD_CMD_FLAG_PAYLOAD_LEN, 0, lengths[i]);
        ck_assert(bare.payload_len == lengths[i] && bare.payload_len == said.payload_len);
        ck_assert(bare.error == said.error && bare.hang_up == said.hang_up);
    }
}
END_TEST

static struct nbd_request decode_filter(const struct request_rules *rules, uint64_t offset,
                                        uint64_t effect_len, const uint32_t *ids, unsigned count)
{
    uint8_t payload[REQUEST_FILTER_BYTES_MAX];
    struct nbd_request request = decode_ext(rules, NBD_CMD_BLOCK_STATUS, NBD_CMD_FLAG_PAYLOAD_LEN,
                                            offset, 8 + 4 * (uint64_t)count);

    ck_assert(request_has_filter(&request));
    put_be64(payload, effect_len);
    for (unsigned i = 0; i < count; i++) {
        put_be32(payload + 8 + 4 * (size_t)i, ids[i]);
    }
    request_decode_filter(payload, rules, &request);
    ck_assert(request.payload_len == 0 && !request.hang_up);
    ck_assert((request.error == 0) == (request.reason == NULL));
    return request;
}

START_TEST(statement_51_status_filters)
{
    struct request_rules rules = extended_rules();
    for (uint64_t len = 0; len <= 64; len++) {
        bool good = len == 12 || len == 16;
        struct nbd_request request =
            decode_ext(&rules, NBD_CMD_BLOCK_STATUS, NBD_CMD_FLAG_PAYLOAD_LEN, 0, len);
        ck_assert(good == (request.error == 0) && good == request_has_filter(&request));
        ck_assert(request.payload_len == len && !request.hang_up);
    }
    struct nbd_request request = decode_filter(&rules, 5, SIZE - 5, (uint32_t[]){2}, 1);
    ck_assert(!request.error && request.length == SIZE - 5 && request.meta_contexts == 2);
    request = decode_filter(&rules, 0, 1, (uint32_t[]){2, 1}, 2);
    ck_assert(!request.error && request.meta_contexts == 3);
    ck_assert(decode_filter(&rules, 0, 1, (uint32_t[]){1, 1}, 2).error == NBD_EINVAL);
    ck_assert(decode_filter(&rules, 0, 1, (uint32_t[]){0}, 1).error == NBD_EINVAL);
    ck_assert(decode_filter(&rules, 0, 1, (uint32_t[]){3}, 1).error == NBD_EINVAL);
    ck_assert(decode_filter(&rules, 0, 1, (uint32_t[]){UINT32_MAX}, 1).error == NBD_EINVAL);
    ck_assert(decode_filter(&rules, 0, 0, (uint32_t[]){1}, 1).error == NBD_EINVAL);
    ck_assert(decode_filter(&rules, 5, SIZE, (uint32_t[]){1}, 1).error == NBD_EINVAL);
    ck_assert(decode_filter(&rules, 5, UINT64_MAX, (uint32_t[]){1}, 1).error == NBD_EINVAL);
    rules.meta_contexts = 1; /* known, but not selected */
    ck_assert(decode_filter(&rules, 0, 1, (uint32_t[]){2}, 1).error == NBD_EINVAL);

    rules.transmission_flags &= (uint16_t)~NBD_FLAG_BLOCK_STATUS_PAYLOAD;
    request = decode_ext(&rules, NBD_CMD_BLOCK_STATUS, NBD_CMD_FLAG_PAYLOAD_LEN, 0, 12);
    ck_assert(request.error == NBD_EINVAL && request.payload_len == 12 && !request.hang_up);
    request = decode_ext(&rules, NBD_CMD_BLOCK_STATUS, 0, 0, 12);
    ck_assert(!request.error && request.meta_contexts == 1);
}
END_TEST

START_TEST(any_extended_bytes_decode_to_something_safe)
{
    struct request_rules rules = extended_rules();
    uint64_t state = 88172645463325252ULL;

    for (unsigned round = 0; round < 200000; round++) {
        uint8_t bytes[32 + REQUEST_FILTER_BYTES_MAX];
        for (size_t i = 0; i < sizeof(bytes); i++) {
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            uint8_t byte = (uint8_t)(state >> (round % 5 * 8));
            bytes[i] = state >> 63 ? 0 : byte;
        }
        put_be32(bytes, NBD_EXTENDED_REQUEST_MAGIC);
        if (round % 2) {
            bytes[4] = bytes[6] = 0;
            bytes[7] &= 7;
            memset(bytes + 24, 0, 7);
        }
        struct nbd_request request;
        ck_assert(request_decode(bytes, &rules, &request));
        if (request_has_filter(&request)) {
            ck_assert(request.payload_len <= REQUEST_FILTER_BYTES_MAX);
            request_decode_filter(bytes + 32, &rules, &request);
        }
        if (request.error || request.type == NBD_CMD_DISC || request.type == NBD_CMD_FLUSH) {
            continue;
        }
        ck_assert(request.type <= NBD_CMD_BLOCK_STATUS && !request.hang_up);
        ck_assert(range_inside(request.offset, request.length, SIZE));
        ck_assert(request.payload_len == (request.type == NBD_CMD_WRITE ? request.length : 0));
        ck_assert(request.payload_len <= LIMIT_PAYLOAD_BYTES);
        ck_assert(request.type != NBD_CMD_READ || request.length <= LIMIT_PAYLOAD_BYTES);
        ck_assert(request.type != NBD_CMD_BLOCK_STATUS || request.meta_contexts != 0);
    }
}
END_TEST

START_TEST(any_bytes_decode_to_something_safe)
{
    uint64_t state = 88172645463325252ULL;

    for (unsigned round = 0; round < 200000; round++) {
        uint8_t header[28];
        for (size_t i = 0; i < sizeof(header); i++) {
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            header[i] = (uint8_t)(state >> (round % 5 * 8));
        }
        put_be32(header, NBD_REQUEST_MAGIC);
        if (round % 2) {
            header[4] = 0;
            header[6] = 0;
            header[7] &= 7;
        }
        struct nbd_request request;
        ck_assert(request_decode(header, &full_rules, &request));
        if (request.error || request.type == NBD_CMD_DISC || request.type == NBD_CMD_FLUSH) {
            continue;
        }
        ck_assert(request.type <= NBD_CMD_BLOCK_STATUS);
        ck_assert(range_inside(request.offset, request.length, SIZE));
        ck_assert(request.payload_len <= LIMIT_PAYLOAD_BYTES);
        ck_assert(request.type != NBD_CMD_READ || request.length <= LIMIT_PAYLOAD_BYTES);
        ck_assert(!request.hang_up);
    }
}
END_TEST

START_TEST(commands_have_names)
{
    ck_assert_str_eq(request_type_name(NBD_CMD_WRITE_ZEROES), "WRITE_ZEROES");
    ck_assert_str_eq(request_type_name(1000), "unknown command");
}
END_TEST

int main(void)
{
    const TTest *const tests[] = {
        statement_31_bad_magic_is_told_apart,
        good_requests_pass,
        statement_32_payload_is_known_also_when_refused,
        statement_39_too_large_reads,
        statement_40_past_the_end,
        statement_40_read_only,
        statement_41_commands_and_flags,
        statement_42_zero_lengths,
        statement_43_flush_has_no_range,
        statement_25_status_without_context,
        statement_54_disc_whatever_it_says,
        extended_magic_and_compact_magic_exclude_each_other,
        statement_45_extended_lengths_have_64_bits,
        statement_51_payloads_of_extended_requests,
        statement_52_extended_write_without_payload_flag,
        statement_51_status_filters,
        any_extended_bytes_decode_to_something_safe,
        any_bytes_decode_to_something_safe,
        commands_have_names,
    };
    return run_tests("request", tests, ARRAY_LEN(tests));
}
