/* SPDX-License-Identifier: BSD-2-Clause */
/*
 * Many requests in flight on many connections to one NBD server, each read checked against the
 * model when its reply comes. One thread: libnbd's asynchronous calls and poll().
 */
#ifndef QCOWD_ORACLE_LOAD_H
#define QCOWD_ORACLE_LOAD_H

#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>

#include "oracle_model.h"

#define REQUEST_TYPES(X)      \
    X(REQUEST_READ, "read")   \
    X(REQUEST_WRITE, "write") \
    X(REQUEST_TRIM, "trim")   \
    X(REQUEST_ZERO, "zero")   \
    X(REQUEST_FLUSH, "flush")

#define REQUEST_ENUM(symbol, name) symbol,
enum request_type { REQUEST_TYPES(REQUEST_ENUM) REQUEST_TYPE_COUNT };
#undef REQUEST_ENUM

struct load_options {
    const char *uri;
    unsigned connections;
    unsigned depth; /* requests in flight a connection */
    uint64_t region_offset;
    uint64_t region_len; /* 0: to the end of the export */
    uint32_t align;
    uint64_t max_bytes; /* of one read or write */
    bool trim_is_hint;
    bool initially_zero; /* demanded; else what is there is read first */
    unsigned stall_seconds;
    unsigned reports;
};

struct load;

/* Connects and reads what is there at first. Prints why and returns NULL when it cannot. */
struct load *load_open(const struct load_options *options);
/* Disconnects and frees. */
void load_close(struct load *load);

/* The region checked, with everything of options decided. */
const struct load_options *load_settings(const struct load *load);

bool load_can(const struct load *load, enum request_type type);
/* LIBNBD_CMD_FLAG_* of those wanted that the server offers for this type. */
uint32_t load_offered_flags(const struct load *load, enum request_type type, uint32_t wanted);

/*
 * Sends a request on a connection, after waiting for a free slot there. offset and len are of no
 * matter to a flush. False when the load has failed and nothing more can be sent.
 */
bool load_send(struct load *load, unsigned connection, enum request_type type, uint64_t offset,
               uint64_t len, uint32_t flags);
/* Whether load_send() on this connection would not wait. */
bool load_has_slot(const struct load *load, unsigned connection);
/* Waits for replies: of some request, or of all. False when the load has failed. */
bool load_wait_some(struct load *load);
bool load_wait_all(struct load *load);

/* Waits for all, flushes and reads the whole region back. False when the load has failed. */
bool load_verify(struct load *load);

/*
 * Prints latencies and counts, and adds the verdict to the report, if there is one. True if no cell
 * was bad, and no request failed, and nothing hung.
 */
bool load_conclude(const struct load *load, FILE *report);

#endif
