/* SPDX-License-Identifier: BSD-2-Clause */
/*
 * Building replies: a list of pieces of memory, ready to be sent in order. Payload is named where
 * it lies, never copied. A reply is built after its work is done, so its last content chunk may
 * carry DONE: no error can come after it. A long READ is answered by several replies, of which the
 * last one carries DONE, or is an error.
 */
#ifndef QCOWD_PROTO_REPLY_H
#define QCOWD_PROTO_REPLY_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <sys/uio.h>

#include "image.h"
#include "proto/wire.h"

/* What a reply answers, and the headers that it has to have. */
struct reply_to {
    enum header_form form;
    uint64_t cookie;
    uint64_t offset;  /* the request's: extended headers repeat it */
    uint64_t skipped; /* READ: so many bytes of the request were answered by earlier replies */
    bool more;        /* READ: another reply follows */
};

/* Longest text in an error chunk. */
#define REPLY_TEXT_BYTES_MAX 80U
#define REPLY_HEAD_BYTES \
    (sizeof(struct wire_extended_chunk) + sizeof(struct wire_error) + REPLY_TEXT_BYTES_MAX)
/* Pieces of the longest reply: a header and a run of data between, before and after all holes. */
#define REPLY_PIECES_MAX (3U * READ_HOLES_MAX + 2U)

/* Points into itself: is built in place and stays there until it was sent. */
struct reply {
    struct iovec *pieces;
    unsigned count;
    size_t total_bytes;
    struct iovec inline_pieces[2];
    void *extra; /* from buffer_get(), when the inline parts are too small */
    size_t extra_len;
    uint8_t head[REPLY_HEAD_BYTES];
};

/* The wire's number for -errno_value; ENOTSUP only where fast_zero says that it was asked for. */
uint32_t reply_error_number(int negative_errno, bool fast_zero);
const char *reply_error_text(uint32_t error);

/* A success without content. */
void reply_success(struct reply *reply, const struct reply_to *to);
/* A READ of no bytes: without content too, but never simple where there are chunks. */
void reply_read_nothing(struct reply *reply, const struct reply_to *to);
/* An error; with text where the form has a place for it. */
void reply_error(struct reply *reply, const struct reply_to *to, uint32_t error, const char *text);
/*
 * len bytes (> 0) from the request's offset on, less what is skipped, lie at payload, except for
 * the holes (may be NULL and is NULL with simple headers), which are sent as such. Without memory
 * for a long list the holes are filled and sent as data.
 */
void reply_read(struct reply *reply, const struct reply_to *to, void *payload, size_t len,
                const struct read_holes *holes);
/* What one context (meta.h) is answered with. The list is not empty. */
struct status_content {
    unsigned context;
    const struct extent_list *list;
};

/*
 * One chunk for each of `count` (> 0) contexts. With only_one, one extent each. 0 or -ENOMEM.
 */
int reply_block_status(struct reply *reply, const struct reply_to *to,
                       const struct status_content *contents, unsigned count, bool only_one);

/* Frees what the reply holds, payload excepted. */
void reply_release(struct reply *reply);

#endif
