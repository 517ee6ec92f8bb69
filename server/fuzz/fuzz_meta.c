/* SPDX-License-Identifier: BSD-2-Clause */
/*
 * Metadata context queries. An input is whether they list, and the option's payload. Demanded: what
 * a second, slower reading of the payload finds.
 */
#include <string.h>

#include "base/bytes.h"
#include "base/limits.h"
#include "fuzz/feed.h"
#include "fuzz/fuzz.h"
#include "proto/meta.h"

#define BITMAP     "b0"
#define BITMAP_BIT (1U << META_FIXED_COUNT)

/* What a second reading finds. */
struct reading {
    const uint8_t *export_name;
    size_t export_name_len;
    unsigned contexts; /* and BITMAP_BIT */
};

static bool begins(const uint8_t *query, size_t len, const char *name)
{
    return len <= strlen(name) && memcmp(query, name, len) == 0;
}

static unsigned contexts_of(const uint8_t *query, size_t len, bool listing)
{
    static const char bitmap[] = META_BITMAP_PREFIX BITMAP;
    unsigned contexts = 0;

    for (unsigned i = 0; i < META_FIXED_COUNT; i++) {
        const char *name = meta_context_name(i);
        size_t colon = (size_t)(strchr(name, ':') - name) + 1;
        bool matches = len == strlen(name) || (listing && len == colon);
        contexts |= matches && begins(query, len, name) ? 1U << i : 0;
    }
    bool space = len == strlen("qemu:") || len == strlen(META_BITMAP_PREFIX);
    bool matches = len == strlen(bitmap) || (listing && space);
    return contexts | (matches && begins(query, len, bitmap) ? BITMAP_BIT : 0);
}

static bool read_slowly(struct feed feed, bool listing, struct reading *out)
{
    size_t len;

    if (feed.left < 8) {
        return false;
    }
    uint64_t wanted = get_be32(feed.bytes);
    feed_bytes(&feed, 4, &len);
    out->export_name = feed_bytes(&feed, wanted, &out->export_name_len);
    if (out->export_name_len != wanted || feed.left < 4) {
        return false;
    }
    uint32_t count = get_be32(feed.bytes);
    feed_bytes(&feed, 4, &len);
    out->contexts = listing && count == 0 ? (1U << (META_FIXED_COUNT + 1)) - 1 : 0;
    for (uint32_t i = 0; i < count; i++) {
        if (feed.left < 4) {
            return false;
        }
        wanted = get_be32(feed.bytes);
        feed_bytes(&feed, 4, &len);
        const uint8_t *query = feed_bytes(&feed, wanted, &len);
        if (len != wanted) {
            return false;
        }
        out->contexts |= contexts_of(query, len, listing);
    }
    return feed.left == 0;
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t len)
{
    struct feed feed = {data, len};
    bool listing = feed_u8(&feed) & 1;
    struct meta_query query;
    struct reading expected = {0};
    const char *why = NULL;

    bool good = meta_query_parse(feed.bytes, feed.left, listing, &query, &why);
    bool expected_good = read_slowly(feed, listing, &expected);
    demand(good == expected_good, "%s", good ? "taken, and is not well formed" : why);
    if (good) {
        unsigned contexts = (unsigned)meta_query_contexts(&query);
        contexts |= meta_query_names_bitmap(&query, BITMAP) ? BITMAP_BIT : 0;
        demand(contexts == expected.contexts, "contexts 0x%x instead of 0x%x", contexts,
               expected.contexts);
        demand(query.export_name == expected.export_name &&
                   query.export_name_len == expected.export_name_len,
               "another export name");
    } else {
        demand(why, "refused without a reason");
        fuzz_demand_line("a reason", why);
    }
    return 0;
}
