/* SPDX-License-Identifier: BSD-2-Clause */
/*
 * Metadata contexts: which there are, what a client's queries select, and what an extent's status
 * is in each. Pure. A set of contexts is a mask of 64 bits; ids on the wire are a context's number
 * plus one. The first ones are every export's; from META_FIXED_COUNT on a connection numbers the
 * dirty bitmaps that it has selected, in the order in which the image lists them.
 */
#ifndef QCOWD_PROTO_META_H
#define QCOWD_PROTO_META_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "image.h"

enum meta_context { META_BASE_ALLOCATION, META_QEMU_ALLOCATION_DEPTH, META_FIXED_COUNT };

#define META_CONTEXTS_MAX 64U
#define META_BITMAPS_MAX  (META_CONTEXTS_MAX - META_FIXED_COUNT)
/* What stands before a dirty bitmap's name. */
#define META_BITMAP_PREFIX "qemu:dirty-bitmap:"

static inline uint64_t meta_context_bit(unsigned context)
{
    return 1ULL << context;
}

/* Of one of the first META_FIXED_COUNT. */
const char *meta_context_name(unsigned context);
uint32_t meta_context_id(unsigned context);
/* The context of an id, META_CONTEXTS_MAX when it is nobody's. */
unsigned meta_context_of_id(uint32_t id);
uint32_t meta_context_status(unsigned context, const struct extent *extent);

/* The payload of LIST_META_CONTEXT and SET_META_CONTEXT. */
struct meta_query {
    const uint8_t *export_name; /* into the payload; not checked */
    size_t export_name_len;
    bool listing;
    uint32_t count;
    const uint8_t *queries; /* into the payload: so many, well formed */
};

/* False, with the reason for people, when the payload is not well formed. */
bool meta_query_parse(const uint8_t *payload, size_t len, bool listing, struct meta_query *out,
                      const char **why);

/*
 * The set of the first META_FIXED_COUNT that the queries name. When listing, no query means all
 * contexts, and a namespace alone ("base:") all of its own; neither selects anything otherwise.
 * Unknown and over-long queries are ignored.
 */
uint64_t meta_query_contexts(const struct meta_query *query);

/* Whether the queries name this bitmap, by the same rules; "qemu:dirty-bitmap:" lists all. */
bool meta_query_names_bitmap(const struct meta_query *query, const char *bitmap_name);

#endif
