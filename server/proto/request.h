/* SPDX-License-Identifier: BSD-2-Clause */
/*
 * From the bytes of a request header to a decoded request, or the NBD error it deserves. Pure: no
 * I/O, no state, no allocation, and safe on any bytes (O10); the fuzzer's entry point.
 *
 * The length is 64 bits wide here, and how long a header is, is asked of request_header_bytes(), so
 * that a second header form needs one more reader and nothing else.
 */
#ifndef QCOWD_PROTO_REQUEST_H
#define QCOWD_PROTO_REQUEST_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

/* What the handshake settled, as far as it decides which requests are good. */
struct request_rules {
    uint64_t size_bytes;
    uint16_t transmission_flags;
    bool structured;
    bool block_status; /* at least one metadata context is selected */
};

struct nbd_request {
    uint64_t cookie;
    uint64_t offset;
    uint64_t length;
    uint64_t payload_len; /* bytes behind the header that belong to it, also when it is refused */
    uint16_t type;        /* as sent: may be unknown when error is set */
    uint16_t flags;
    uint32_t error;     /* enum nbd_error; 0: inside the export, and may run */
    const char *reason; /* for people, when error is set; a constant */
    bool hang_up;       /* its payload is too absurd to drain: answer, then disconnect */
};

size_t request_header_bytes(const struct request_rules *rules);

/*
 * header has request_header_bytes() bytes. False when it is no request header: the stream is lost,
 * and *out is not set.
 */
bool request_decode(const uint8_t *header, const struct request_rules *rules,
                    struct nbd_request *out);

/* "READ", ... or "unknown command". */
const char *request_type_name(uint16_t type);

#endif
