/* SPDX-License-Identifier: BSD-2-Clause */
/*
 * From the bytes of a request header to a decoded request, or the NBD error it deserves. Pure: no
 * I/O, no state, no allocation, and safe on any bytes (O10); the fuzzer's entry point.
 *
 * Both header forms become the same request. BLOCK_STATUS may have a payload that says what is
 * asked: such a request has its length and contexts only after request_decode_filter().
 */
#ifndef QCOWD_PROTO_REQUEST_H
#define QCOWD_PROTO_REQUEST_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "proto/wire.h"

/* What the handshake settled, as far as it decides which requests are good. */
struct request_rules {
    uint64_t size_bytes;
    uint32_t request_bytes; /* the longest READ or WRITE */
    uint16_t transmission_flags;
    enum header_form form;
    uint64_t meta_contexts; /* the selected ones, a set (meta.h) */
};

struct nbd_request {
    uint64_t cookie;
    uint64_t offset;
    uint64_t length;
    uint64_t payload_len; /* bytes behind the header that belong to it, also when it is refused */
    uint16_t type;        /* as sent: may be unknown when error is set */
    uint16_t flags;
    uint64_t meta_contexts; /* that BLOCK_STATUS is to report */
    uint32_t error;         /* enum nbd_error; 0: inside the export, and may run */
    const char *reason;     /* for people, when error is set; a constant */
    bool hang_up;           /* its payload is too absurd to drain: answer, then disconnect */
};

/* The longest payload of a BLOCK_STATUS request that is not refused for its length. */
#define REQUEST_FILTER_BYTES_MAX 264U

size_t request_header_bytes(const struct request_rules *rules);

/*
 * header has request_header_bytes() bytes. False when it is no request header: the stream is lost,
 * and *out is not set.
 */
bool request_decode(const uint8_t *header, const struct request_rules *rules,
                    struct nbd_request *out);

/* Whether the payload is the BLOCK_STATUS filter that has to be read before anything else. */
bool request_has_filter(const struct nbd_request *request);
/* Takes in that payload, request->payload_len bytes, which is none any more then. */
void request_decode_filter(const uint8_t *payload, const struct request_rules *rules,
                           struct nbd_request *request);

/* "READ", ... or "unknown command". */
const char *request_type_name(uint16_t type);

#endif
