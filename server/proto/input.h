/* SPDX-License-Identifier: BSD-2-Clause */
/*
 * Buffered receiving: many small requests come out of one receive, large payloads go straight to
 * where they belong. The buffer is small until a client shows that it sends many requests at once,
 * and small again when it falls silent, so that an idle connection costs little. Where a receive
 * costs nothing to speak of, in the handshake and through TLS, which has received already, a silent
 * client costs no buffer at all.
 */
#ifndef QCOWD_PROTO_INPUT_H
#define QCOWD_PROTO_INPUT_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "io/stream.h"

#define INPUT_TINY_BYTES  512U
#define INPUT_SMALL_BYTES (16U * 1024U)
#define INPUT_LARGE_BYTES (128U * 1024U)

struct input {
    struct stream *stream;
    uint8_t *bytes; /* in `tiny`, or the pool's */
    size_t capacity;
    bool thrifty; /* nothing but `tiny` while it is silent */
    size_t begin; /* what is received and not taken: [begin, end) */
    size_t end;
    unsigned taken_since_fill; /* headers */
    bool after_payload;        /* the last bytes taken were a large payload */
    uint8_t tiny[INPUT_TINY_BYTES];
};

/* Thrifty until input_spend(). */
void input_init(struct input *input, struct stream *stream);
void input_free(struct input *input);

/*
 * Receives until len bytes (at most INPUT_TINY_BYTES) lie at input_bytes(). 0; -ENODATA at the end
 * of the stream with nothing buffered, -ECONNRESET with too little; or the stream's error.
 */
int co_input_need(struct input *input, size_t len);
/* Copies len bytes to `to`. 0, -ECONNRESET at the end of the stream, or the stream's error. */
int co_input_read(struct input *input, void *to, size_t len);
/* Throws len bytes away; as co_input_read(). */
int co_input_skip(struct input *input, uint64_t len);

static inline const uint8_t *input_bytes(const struct input *input)
{
    return input->bytes + input->begin;
}

static inline size_t input_buffered(const struct input *input)
{
    return input->end - input->begin;
}

/* From here on bytes come from another stream. Nothing may be buffered. */
void input_set_stream(struct input *input, struct stream *stream);

/* Takes a header of len buffered bytes. */
void input_take(struct input *input, size_t len);

/* From here on a receive is worth a buffer. */
void input_spend(struct input *input);

/* Back to the small buffer, or none; only when nothing is buffered does it do anything. */
void input_shrink(struct input *input);

#endif
