/* SPDX-License-Identifier: BSD-2-Clause */
/*
 * Metadata contexts: which there are, what a client's queries select, and what an extent's status
 * is in each. Pure. A set of contexts is a bit mask; ids on the wire are a context's number plus
 * one.
 */
#ifndef QCOWD_PROTO_META_H
#define QCOWD_PROTO_META_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "image.h"

enum meta_context { META_BASE_ALLOCATION, META_QEMU_ALLOCATION_DEPTH, META_CONTEXT_COUNT };

const char *meta_context_name(unsigned context);
uint32_t meta_context_id(unsigned context);
/* The context of an id, META_CONTEXT_COUNT when it is nobody's. */
unsigned meta_context_of_id(uint32_t id);
uint32_t meta_context_status(unsigned context, const struct extent *extent);

/* The payload of LIST_META_CONTEXT and SET_META_CONTEXT. */
struct meta_query {
    const uint8_t *export_name; /* into the payload; not checked */
    size_t export_name_len;
    unsigned contexts; /* what the queries name; a context once, however often it is named */
};

/*
 * When listing, no query means all contexts, and a namespace alone ("base:") all of its own;
 * neither selects anything otherwise. Unknown and over-long queries are ignored. False, with the
 * reason for people, when the payload is not well formed.
 */
bool meta_query_parse(const uint8_t *payload, size_t len, bool listing, struct meta_query *out,
                      const char **why);

#endif
