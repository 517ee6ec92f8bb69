/* SPDX-License-Identifier: BSD-2-Clause */
/* The whole payload is parsed before anything is answered: a malformed one gets one error reply. */
#include "proto/meta.h"

#include <assert.h>
#include <string.h>

#include "base/bytes.h"
#include "base/check.h"
#include "base/limits.h"
#include "proto/wire.h"

static_assert(EXTENT_HOLE == NBD_STATE_HOLE && EXTENT_ZERO == NBD_STATE_ZERO,
              "base:allocation is passed through");

static const struct {
    const char *name_space; /* with its colon */
    const char *leaf;
    const char *name;
} contexts[META_CONTEXT_COUNT] = {
    [META_BASE_ALLOCATION] = {"base:", "allocation", "base:allocation"},
    [META_QEMU_ALLOCATION_DEPTH] = {"qemu:", "allocation-depth", "qemu:allocation-depth"},
};

const char *meta_context_name(unsigned context)
{
    assert(context < META_CONTEXT_COUNT);
    return contexts[context].name;
}

uint32_t meta_context_id(unsigned context)
{
    assert(context < META_CONTEXT_COUNT);
    return context + 1;
}

unsigned meta_context_of_id(uint32_t id)
{
    return id >= 1 && id <= META_CONTEXT_COUNT ? id - 1 : META_CONTEXT_COUNT;
}

uint32_t meta_context_status(unsigned context, const struct extent *extent)
{
    assert(context < META_CONTEXT_COUNT);
    return context == META_BASE_ALLOCATION ? extent->flags & (EXTENT_HOLE | EXTENT_ZERO)
                                           : extent->depth;
}

static bool text_is(const uint8_t *text, size_t len, const char *expected)
{
    return len == strlen(expected) && memcmp(text, expected, len) == 0;
}

static unsigned contexts_named(const uint8_t *query, size_t len, bool listing)
{
    unsigned named = 0;

    for (unsigned i = 0; i < META_CONTEXT_COUNT; i++) {
        if (text_is(query, len, contexts[i].name) ||
            (listing && text_is(query, len, contexts[i].name_space))) {
            named |= 1U << i;
        }
    }
    return named;
}

/* Takes a length and so many bytes from the front of what is left. */
static bool take_string(const uint8_t **at, size_t *left, const uint8_t **text, size_t *text_len)
{
    if (*left < 4) {
        return false;
    }
    uint32_t len = get_be32(*at);
    if (len > *left - 4) {
        return false;
    }
    *text = *at + 4;
    *text_len = len;
    *at += 4 + (size_t)len;
    *left -= 4 + (size_t)len;
    return true;
}

bool meta_query_parse(const uint8_t *payload, size_t len, bool listing, struct meta_query *out,
                      const char **why)
{
    *out = (struct meta_query){0};
    if (!take_string(&payload, &len, &out->export_name, &out->export_name_len) || len < 4) {
        *why = "the export name does not fit the option's length";
        return false;
    }
    uint32_t count = get_be32(payload);
    payload += 4;
    len -= 4;
    if (count == 0 && listing) {
        out->contexts = (1U << META_CONTEXT_COUNT) - 1;
    }
    /* A query takes four bytes at least, so that the option's length bounds the loop. */
    for (uint32_t i = 0; i < count; i++) {
        const uint8_t *query;
        size_t query_len;
        if (!take_string(&payload, &len, &query, &query_len)) {
            *why = "a query does not fit the option's length";
            return false;
        }
        if (query_len <= LIMIT_NBD_STRING_BYTES) {
            out->contexts |= contexts_named(query, query_len, listing);
        }
    }
    if (len > 0) {
        *why = "there are bytes behind the last query";
        return false;
    }
    return true;
}
