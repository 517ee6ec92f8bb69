/* SPDX-License-Identifier: BSD-2-Clause */
/* Queries for metadata contexts, well formed and not. */
#include <string.h>

#include "base/bytes.h"
#include "base/check.h"
#include "proto/meta.h"
#include "proto/test_main.h"

#define BASE (1U << META_BASE_ALLOCATION)
#define QEMU (1U << META_QEMU_ALLOCATION_DEPTH)

static size_t pack(uint8_t *out, const char *const *queries, unsigned count)
{
    size_t used = 0;

    put_be32(out, 2);
    memcpy(out + 4, "ex", 2);
    put_be32(out + 6, count);
    used = 10;
    for (unsigned i = 0; i < count; i++) {
        size_t len = strlen(queries[i]);
        put_be32(out + used, (uint32_t)len);
        memcpy(out + used + 4, queries[i], len);
        used += 4 + len;
    }
    return used;
}

static unsigned named(bool listing, const char *const *queries, unsigned count)
{
    uint8_t payload[8192];
    struct meta_query query;
    const char *why;

    size_t len = pack(payload, queries, count);
    ck_assert(meta_query_parse(payload, len, listing, &query, &why));
    ck_assert(query.export_name_len == 2 && memcmp(query.export_name, "ex", 2) == 0);
    return (unsigned)meta_query_contexts(&query);
}

#define NAMED(listing, ...)                            \
    named(listing, (const char *const[]){__VA_ARGS__}, \
          sizeof((const char *const[]){__VA_ARGS__}) / sizeof(const char *))

START_TEST(statement_23_queries)
{
    static char too_long[4200];
    memset(too_long, 'a', sizeof(too_long) - 1);

    ck_assert_uint_eq(named(true, NULL, 0), BASE | QEMU);
    ck_assert_uint_eq(named(false, NULL, 0), 0);
    ck_assert_uint_eq(NAMED(true, "base:"), BASE);
    ck_assert_uint_eq(NAMED(true, "qemu:"), QEMU);
    ck_assert_uint_eq(NAMED(false, "base:", "qemu:"), 0);
    ck_assert_uint_eq(NAMED(false, "base:allocation"), BASE);
    ck_assert_uint_eq(NAMED(false, "qemu:allocation-depth", "base:allocation"), BASE | QEMU);
    ck_assert_uint_eq(
        NAMED(false, "base:alloc", "base:allocations", "x-foo:bar", "", ":", "no colon", "base"),
        0);
    ck_assert_uint_eq(NAMED(false, too_long, "base:allocation"), BASE);
}
END_TEST

static bool names_bitmap(bool listing, const char *text, const char *bitmap)
{
    uint8_t payload[8192];
    struct meta_query query;
    const char *why;

    size_t len = pack(payload, &text, text ? 1 : 0);
    ck_assert(meta_query_parse(payload, len, listing, &query, &why));
    return meta_query_names_bitmap(&query, bitmap);
}

START_TEST(statement_23_queries_for_bitmaps)
{
    ck_assert(names_bitmap(true, NULL, "b0"));
    ck_assert(!names_bitmap(false, NULL, "b0"));
    for (int listing = 0; listing < 2; listing++) {
        ck_assert(names_bitmap(listing, "qemu:dirty-bitmap:b0", "b0"));
        ck_assert(names_bitmap(listing, "qemu:dirty-bitmap:with: colon", "with: colon"));
        ck_assert(!names_bitmap(listing, "qemu:dirty-bitmap:b0", "b00"));
        ck_assert(!names_bitmap(listing, "qemu:dirty-bitmap:b00", "b0"));
        ck_assert(!names_bitmap(listing, "qemu:dirty-bitmap", "b0"));
        ck_assert(!names_bitmap(listing, "b0", "b0"));
        ck_assert(!names_bitmap(listing, "base:", "b0"));
        ck_assert(names_bitmap(listing, "qemu:", "b0") == listing);
        ck_assert(names_bitmap(listing, "qemu:dirty-bitmap:", "b0") == listing);
    }
    ck_assert_uint_eq(NAMED(true, "qemu:dirty-bitmap:", "qemu:dirty-bitmap:b0"), 0);
}
END_TEST

START_TEST(statement_24_duplicates_are_one)
{
    ck_assert_uint_eq(NAMED(false, "base:allocation", "base:allocation"), BASE);
    ck_assert(meta_context_id(META_BASE_ALLOCATION) != meta_context_id(META_QEMU_ALLOCATION_DEPTH));
    for (unsigned context = 0; context < META_CONTEXTS_MAX; context++) {
        ck_assert_uint_eq(meta_context_of_id(meta_context_id(context)), context);
    }
    ck_assert_uint_eq(meta_context_of_id(0), META_CONTEXTS_MAX);
    ck_assert_uint_eq(meta_context_of_id(META_CONTEXTS_MAX), META_CONTEXTS_MAX - 1);
    ck_assert_uint_eq(meta_context_of_id(META_CONTEXTS_MAX + 1), META_CONTEXTS_MAX);
    ck_assert_uint_eq(meta_context_of_id(UINT32_MAX), META_CONTEXTS_MAX);
}
END_TEST

START_TEST(statement_23_every_truncation_is_refused)
{
    static const char *const queries[] = {"base:allocation", "qemu:"};
    uint8_t payload[256];
    size_t len = pack(payload, queries, 2);
    struct meta_query query;
    const char *why = NULL;

    for (size_t cut = 0; cut < len; cut++) {
        ck_assert(!meta_query_parse(payload, cut, false, &query, &why));
        ck_assert(why != NULL);
    }
    ck_assert(meta_query_parse(payload, len, false, &query, &why));
    payload[len] = 0;
    ck_assert(!meta_query_parse(payload, len + 1, false, &query, &why));
    put_be32(payload + 6, UINT32_MAX);
    ck_assert(!meta_query_parse(payload, len, false, &query, &why));
    put_be32(payload + 6, 2);
    put_be32(payload, UINT32_MAX);
    ck_assert(!meta_query_parse(payload, len, false, &query, &why));
}
END_TEST

START_TEST(any_bytes_are_safe)
{
    uint64_t state = 0x9e3779b97f4a7c15ULL;

    for (unsigned round = 0; round < 100000; round++) {
        uint8_t payload[64];
        for (size_t i = 0; i < sizeof(payload); i++) {
            state = state * 6364136223846793005ULL + 1442695040888963407ULL;
            payload[i] = (state >> 60) < 11 ? 0 : (uint8_t)(state >> 33) & 15;
        }
        struct meta_query query;
        const char *why;
        size_t len = state % (sizeof(payload) + 1);
        if (meta_query_parse(payload, len, round & 1, &query, &why)) {
            ck_assert(query.export_name_len <= len);
            ck_assert(meta_query_contexts(&query) < meta_context_bit(META_FIXED_COUNT));
        }
    }
}
END_TEST

int main(void)
{
    const TTest *const tests[] = {
        statement_23_queries,
        statement_23_queries_for_bitmaps,
        statement_24_duplicates_are_one,
        statement_23_every_truncation_is_refused,
        any_bytes_are_safe,
    };
    return run_tests("meta", tests, ARRAY_LEN(tests));
}
