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
    const char *name;
} contexts[META_FIXED_COUNT] = {
    [META_BASE_ALLOCATION] = {"base:", "base:allocation"},
    [META_QEMU_ALLOCATION_DEPTH] = {"qemu:", "qemu:allocation-depth"},
};

const char *meta_context_name(unsigned context)
{
    assert(context < META_FIXED_COUNT);
    return contexts[context].name;
}

uint32_t meta_context_id(unsigned context)
{
    assert(context < META_CONTEXTS_MAX);
    return context + 1;
}

unsigned meta_context_of_id(uint32_t id)
{
    return id >= 1 && id <= META_CONTEXTS_MAX ? id - 1 : META_CONTEXTS_MAX;
}

uint32_t meta_context_status(unsigned context, const struct extent *extent)
{
    switch (context) {
    case META_BASE_ALLOCATION:
        return extent->flags & (EXTENT_HOLE | EXTENT_ZERO);
    case META_QEMU_ALLOCATION_DEPTH:
        return extent->depth;
    default:
        return extent->flags & EXTENT_DIRTY ? META_BITMAP_DIRTY : 0;
    }
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
    *out = (struct meta_query){.listing = listing};
    if (!take_string(&payload, &len, &out->export_name, &out->export_name_len) || len < 4) {
        *why = "the export name does not fit the option's length";
        return false;
    }
    out->count = get_be32(payload);
    payload += 4;
    len -= 4;
    out->queries = payload;
    /* A query takes four bytes at least, so that the option's length bounds the loop. */
    for (uint32_t i = 0; i < out->count; i++) {
        const uint8_t *query;
        size_t query_len;
        if (!take_string(&payload, &len, &query, &query_len)) {
            *why = "a query does not fit the option's length";
            return false;
        }
    }
    if (len > 0) {
        *why = "there are bytes behind the last query";
        return false;
    }
    return true;
}

static bool text_is(const uint8_t *text, size_t len, const char *expected)
{
    return len == strlen(expected) && memcmp(text, expected, len) == 0;
}

/* What queries may call a context: whole, and in lists by what stands before its last part. */
struct context_name {
    const char *name_space;     /* "base:" */
    const char *sub_name_space; /* "qemu:dirty-bitmap:"; NULL: there is none */
    const char *prefix;
    const char *leaf; /* the name is prefix and leaf */
};

static bool query_is(const uint8_t *text, size_t len, bool listing, const struct context_name *name)
{
    size_t prefix_len = strlen(name->prefix);

    if (listing && (text_is(text, len, name->name_space) ||
                    (name->sub_name_space && text_is(text, len, name->sub_name_space)))) {
        return true;
    }
    return len >= prefix_len && memcmp(text, name->prefix, prefix_len) == 0 &&
           text_is(text + prefix_len, len - prefix_len, name->leaf);
}

static bool query_names(const struct meta_query *query, const struct context_name *name)
{
    const uint8_t *at = query->queries;

    if (query->listing && query->count == 0) {
        return true;
    }
    for (uint32_t i = 0; i < query->count; i++) {
        size_t len = get_be32(at);
        if (query_is(at + 4, len, query->listing, name)) {
            return true;
        }
        at += 4 + len;
    }
    return false;
}

uint64_t meta_query_contexts(const struct meta_query *query)
{
    uint64_t named = 0;

    for (unsigned i = 0; i < META_FIXED_COUNT; i++) {
        struct context_name name = {contexts[i].name_space, NULL, "", contexts[i].name};
        named |= query_names(query, &name) ? meta_context_bit(i) : 0;
    }
    return named;
}

bool meta_query_names_bitmap(const struct meta_query *query, const char *bitmap_name)
{
    struct context_name name = {"qemu:", META_BITMAP_PREFIX, META_BITMAP_PREFIX, bitmap_name};

    return query_names(query, &name);
}
