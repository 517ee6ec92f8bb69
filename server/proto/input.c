/* SPDX-License-Identifier: BSD-2-Clause */
/*
 * When to copy and when not: a receive costs about as much as copying 16 KiB, so what is missing of
 * a payload comes through the buffer, with whatever follows it, as long as it is less than that.
 * After a large payload the next request most likely has one, too: then its header is received
 * alone, and all of its payload goes to its place.
 */
#include "proto/input.h"

#include <assert.h>
#include <errno.h>
#include <string.h>

#include "base/check.h"
#include "io/buffers.h"

#define THROUGH_BUFFER_BYTES_MAX (INPUT_SMALL_BYTES / 2)
/* So many requests in one full buffer make it worth a larger one. */
#define REQUESTS_TO_GROW 3U

void input_init(struct input *input, struct stream *stream)
{
    *input = (struct input){.stream = stream, .capacity = INPUT_TINY_BYTES, .thrifty = true};
    input->bytes = input->tiny;
}

void input_free(struct input *input)
{
    if (input->bytes != input->tiny) {
        buffer_put(input->bytes, input->capacity);
    }
    input->bytes = NULL;
}

/* Moves what is buffered into a buffer of the other size; stays as it is without memory. */
static void resize(struct input *input, size_t capacity)
{
    uint8_t *bytes = capacity == INPUT_TINY_BYTES ? input->tiny : buffer_get(capacity);
    size_t used = input_buffered(input);

    assert(used <= capacity);
    if (!bytes) {
        return;
    }
    memcpy(bytes, input_bytes(input), used);
    input_free(input);
    input->bytes = bytes;
    input->capacity = capacity;
    input->begin = 0;
    input->end = used;
}

void input_spend(struct input *input)
{
    input->thrifty = false;
    if (input->capacity < INPUT_SMALL_BYTES) {
        resize(input, INPUT_SMALL_BYTES);
    }
}

void input_shrink(struct input *input)
{
    size_t least = input->thrifty ? INPUT_TINY_BYTES : INPUT_SMALL_BYTES;

    if (input->capacity > least && input_buffered(input) == 0) {
        resize(input, least);
    }
}

void input_set_stream(struct input *input, struct stream *stream)
{
    assert(input_buffered(input) == 0);
    input->stream = stream;
}

void input_take(struct input *input, size_t len)
{
    assert(len <= input_buffered(input));
    input->begin += len;
    input->taken_since_fill++;
}

/*
 * One receive of at most so many bytes into the free part of the buffer; the count, 0 at the end of
 * the stream, or -errno.
 */
static ssize_t co_fill(struct input *input, size_t most)
{
    bool was_full = input->end == input->capacity;

    if (was_full && input->capacity == INPUT_SMALL_BYTES &&
        input->taken_since_fill >= REQUESTS_TO_GROW) {
        resize(input, INPUT_LARGE_BYTES);
    } else if (was_full && input->capacity == INPUT_TINY_BYTES) {
        resize(input, INPUT_SMALL_BYTES);
    }
    if (input->begin > 0) { /* not so where a larger buffer was to be had */
        memmove(input->bytes, input_bytes(input), input_buffered(input));
        input->end -= input->begin;
        input->begin = 0;
    }
    input->taken_since_fill = 0;
    assert(input->end < input->capacity);
    ssize_t got = input->stream->ops->co_recv(input->stream, input->bytes + input->end,
                                              MIN_OF(most, input->capacity - input->end));
    if (got > 0) {
        assert((size_t)got <= input->capacity - input->end);
        input->end += (size_t)got;
    }
    return got;
}

int co_input_need(struct input *input, size_t len)
{
    assert(len <= INPUT_TINY_BYTES);
    size_t most = input->after_payload ? len : SIZE_MAX;

    input->after_payload = false;
    while (input_buffered(input) < len) {
        ssize_t got = co_fill(input, most);
        if (got < 0) {
            return (int)got;
        }
        if (got == 0) {
            return input_buffered(input) == 0 ? -ENODATA : -ECONNRESET;
        }
    }
    return 0;
}

static size_t take_buffered(struct input *input, uint8_t *to, size_t len)
{
    size_t now = MIN_OF(len, input_buffered(input));

    memcpy(to, input_bytes(input), now);
    input->begin += now;
    return now;
}

int co_input_read(struct input *input, void *to, size_t len)
{
    uint8_t *at = to;
    size_t done = take_buffered(input, at, len);

    while (done < len) {
        ssize_t got;
        if (len - done > THROUGH_BUFFER_BYTES_MAX) {
            got = input->stream->ops->co_recv(input->stream, at + done, len - done);
            done += got > 0 ? (size_t)got : 0;
            input->after_payload = true;
        } else {
            got = co_fill(input, SIZE_MAX);
            done += take_buffered(input, at + done, len - done);
        }
        if (got <= 0) {
            return got < 0 ? (int)got : -ECONNRESET;
        }
    }
    return 0;
}

int co_input_skip(struct input *input, uint64_t len)
{
    while (len > 0) {
        size_t now = (size_t)MIN_OF(len, (uint64_t)input_buffered(input));
        input->begin += now;
        len -= now;
        if (len == 0) {
            break;
        }
        ssize_t got = co_fill(input, SIZE_MAX);
        if (got <= 0) {
            return got < 0 ? (int)got : -ECONNRESET;
        }
    }
    return 0;
}
