/* SPDX-License-Identifier: BSD-2-Clause */
/*
 * Nearly all replies fit the inline head and two pieces; a read with holes and a block status take
 * one pooled buffer more.
 */
#include "proto/reply.h"

#include <assert.h>
#include <errno.h>
#include <string.h>

#include "base/bytes.h"
#include "base/check.h"
#include "io/buffers.h"
#include "proto/meta.h"
#include "proto/wire.h"

uint32_t reply_error_number(int negative_errno, bool fast_zero)
{
    assert(negative_errno < 0);
    switch (-negative_errno) {
    case EPERM:
    case EACCES:
    case EROFS:
        return NBD_EPERM;
    case ENOMEM:
        return NBD_ENOMEM;
    case EINVAL:
        return NBD_EINVAL;
    case ENOSPC:
    case EDQUOT:
    case EFBIG:
        return NBD_ENOSPC;
    case ENOTSUP:
        return fast_zero ? NBD_ENOTSUP : NBD_EIO;
    case ESHUTDOWN:
        return NBD_ESHUTDOWN;
    default:
        return NBD_EIO;
    }
}

const char *reply_error_text(uint32_t error)
{
    switch (error) {
    case NBD_EPERM:
        return "the image does not accept writes";
    case NBD_ENOMEM:
        return "the server is out of memory";
    case NBD_ENOSPC:
        return "no space left where the image lies";
    case NBD_ENOTSUP:
        return "this range cannot be zeroed quickly";
    case NBD_ESHUTDOWN:
        return "the server is shutting down";
    case NBD_EIO:
        return "input/output error on the image";
    default:
        return "invalid request";
    }
}

static void start(struct reply *reply)
{
    reply->pieces = reply->inline_pieces;
    reply->count = 0;
    reply->total_bytes = 0;
    reply->extra = NULL;
    reply->extra_len = 0;
}

static void add_piece(struct reply *reply, void *bytes, size_t len)
{
    reply->pieces[reply->count++] = (struct iovec){bytes, len};
    reply->total_bytes += len;
}

void reply_simple(struct reply *reply, uint64_t cookie, uint32_t error)
{
    struct wire_simple_reply *wire = (void *)reply->head;

    start(reply);
    put_be32(wire->magic, NBD_SIMPLE_REPLY_MAGIC);
    put_be32(wire->error, error);
    put_be64(wire->cookie, cookie);
    add_piece(reply, wire, sizeof(*wire));
}

void reply_read_simple(struct reply *reply, uint64_t cookie, void *payload, size_t len)
{
    reply_simple(reply, cookie, NBD_SUCCESS);
    if (len > 0) {
        add_piece(reply, payload, len);
    }
}

static void put_chunk(struct wire_chunk *chunk, uint64_t cookie, unsigned flags, unsigned type,
                      size_t length)
{
    assert(length <= UINT32_MAX);
    put_be32(chunk->magic, NBD_STRUCTURED_REPLY_MAGIC);
    put_be16(chunk->flags, (uint16_t)flags);
    put_be16(chunk->type, (uint16_t)type);
    put_be64(chunk->cookie, cookie);
    put_be32(chunk->length, (uint32_t)length);
}

void reply_none(struct reply *reply, uint64_t cookie)
{
    struct wire_chunk *chunk = (void *)reply->head;

    start(reply);
    put_chunk(chunk, cookie, NBD_REPLY_FLAG_DONE, NBD_REPLY_TYPE_NONE, 0);
    add_piece(reply, chunk, sizeof(*chunk));
}

void reply_error(struct reply *reply, uint64_t cookie, bool structured, uint32_t error,
                 const char *text)
{
    assert(error != NBD_SUCCESS);
    if (!structured) {
        reply_simple(reply, cookie, error);
        return;
    }
    struct wire_chunk_error *wire = (void *)reply->head;
    size_t text_len = MIN_OF(strlen(text), REPLY_TEXT_BYTES_MAX);

    start(reply);
    put_chunk(&wire->chunk, cookie, NBD_REPLY_FLAG_DONE, NBD_REPLY_TYPE_ERROR,
              sizeof(*wire) - sizeof(wire->chunk) + text_len);
    put_be32(wire->error, error);
    put_be16(wire->message_length, (uint16_t)text_len);
    memcpy(reply->head + sizeof(*wire), text, text_len);
    add_piece(reply, reply->head, sizeof(*wire) + text_len);
}

static void put_data_header(struct wire_chunk_data *wire, uint64_t cookie, uint64_t offset,
                            size_t len, bool last)
{
    put_chunk(&wire->chunk, cookie, last ? NBD_REPLY_FLAG_DONE : 0, NBD_REPLY_TYPE_OFFSET_DATA,
              sizeof(wire->offset) + len);
    put_be64(wire->offset, offset);
}

static void put_hole(struct wire_chunk_hole *wire, uint64_t cookie, uint64_t offset, size_t len,
                     bool last)
{
    assert(len > 0 && len <= UINT32_MAX);
    put_chunk(&wire->chunk, cookie, last ? NBD_REPLY_FLAG_DONE : 0, NBD_REPLY_TYPE_OFFSET_HOLE,
              sizeof(*wire) - sizeof(wire->chunk));
    put_be64(wire->offset, offset);
    put_be32(wire->size, (uint32_t)len);
}

/* One data chunk over everything: what a read without holes, and DF, want. */
static void read_as_one(struct reply *reply, uint64_t cookie, uint64_t offset, void *payload,
                        size_t len)
{
    struct wire_chunk_data *wire = (void *)reply->head;

    start(reply);
    put_data_header(wire, cookie, offset, len, true);
    add_piece(reply, wire, sizeof(*wire));
    add_piece(reply, payload, len);
}

/* Room for the headers and pieces of a reply with so many holes. */
struct long_list {
    struct iovec pieces[REPLY_PIECES_MAX];
    union {
        struct wire_chunk_data data;
        struct wire_chunk_hole hole;
    } headers[2 * READ_HOLES_MAX + 1];
};

static void read_with_holes(struct reply *reply, struct long_list *room, uint64_t cookie,
                            uint64_t offset, uint8_t *payload, size_t len,
                            const struct read_holes *holes)
{
    unsigned headers = 0;
    size_t done = 0;

    start(reply);
    reply->extra = room;
    reply->extra_len = sizeof(*room);
    reply->pieces = room->pieces;
    for (unsigned i = 0; i <= holes->count; i++) {
        size_t data_end = i < holes->count ? holes->run[i].offset : len;
        assert(data_end >= done && data_end <= len);
        if (data_end > done) {
            struct wire_chunk_data *wire = &room->headers[headers++].data;
            put_data_header(wire, cookie, offset + done, data_end - done, data_end == len);
            add_piece(reply, wire, sizeof(*wire));
            add_piece(reply, payload + done, data_end - done);
        }
        done = data_end;
        if (i < holes->count) {
            struct wire_chunk_hole *wire = &room->headers[headers++].hole;
            size_t hole_len = holes->run[i].len;
            assert(hole_len <= len - done);
            put_hole(wire, cookie, offset + done, hole_len, done + hole_len == len);
            add_piece(reply, wire, sizeof(*wire));
            done += hole_len;
        }
    }
    assert(done == len);
    assert(headers <= ARRAY_LEN(room->headers) && reply->count <= REPLY_PIECES_MAX);
}

void reply_read_structured(struct reply *reply, uint64_t cookie, uint64_t offset, void *payload,
                           size_t len, const struct read_holes *holes)
{
    assert(len > 0);
    if (!holes || holes->count == 0) {
        read_as_one(reply, cookie, offset, payload, len);
        return;
    }
    assert(holes->count <= READ_HOLES_MAX);
    if (holes->count == 1 && holes->run[0].len == len) {
        struct wire_chunk_hole *wire = (void *)reply->head;
        start(reply);
        put_hole(wire, cookie, offset, len, true);
        add_piece(reply, wire, sizeof(*wire));
        return;
    }
    struct long_list *room = buffer_get(sizeof(*room));
    if (room) {
        read_with_holes(reply, room, cookie, offset, payload, len, holes);
        return;
    }
    for (unsigned i = 0; i < holes->count; i++) {
        memset((uint8_t *)payload + holes->run[i].offset, 0, holes->run[i].len);
    }
    read_as_one(reply, cookie, offset, payload, len);
}

/* Puts the extents of one context, equal neighbours merged; returns how many they became. */
static unsigned put_extents(struct wire_status_extent *wire, unsigned context,
                            const struct extent_list *list, bool only_one)
{
    unsigned count = 0;
    uint32_t last_status = 0;
    uint64_t last_len = 0;

    for (unsigned i = 0; i < list->count; i++) {
        uint32_t status = meta_context_status(context, &list->extents[i]);
        assert(list->extents[i].len > 0);
        if (count > 0 && status == last_status) {
            last_len += list->extents[i].len;
        } else if (count > 0 && only_one) {
            break;
        } else {
            count++;
            last_status = status;
            last_len = list->extents[i].len;
        }
        assert(last_len <= UINT32_MAX);
        put_be32(wire[count - 1].length, (uint32_t)last_len);
        put_be32(wire[count - 1].status, last_status);
    }
    return count;
}

int reply_block_status(struct reply *reply, uint64_t cookie, unsigned contexts,
                       const struct extent_list *list, bool only_one)
{
    assert(contexts != 0 && list->count > 0);
    size_t room = META_CONTEXT_COUNT * (sizeof(struct wire_chunk_status) +
                                        list->count * sizeof(struct wire_status_extent));
    uint8_t *bytes = buffer_get(room);
    if (!bytes) {
        return -ENOMEM;
    }
    start(reply);
    reply->extra = bytes;
    reply->extra_len = room;

    size_t used = 0;
    for (unsigned context = 0; context < META_CONTEXT_COUNT; context++) {
        if (!(contexts & (1U << context))) {
            continue;
        }
        struct wire_chunk_status *wire = (void *)(bytes + used);
        used += sizeof(*wire);
        size_t extents_bytes = put_extents((void *)(bytes + used), context, list, only_one) *
                               sizeof(struct wire_status_extent);
        used += extents_bytes;
        bool last = contexts >> (context + 1) == 0;
        put_chunk(&wire->chunk, cookie, last ? NBD_REPLY_FLAG_DONE : 0, NBD_REPLY_TYPE_BLOCK_STATUS,
                  sizeof(wire->context_id) + extents_bytes);
        put_be32(wire->context_id, meta_context_id(context));
    }
    add_piece(reply, bytes, used);
    return 0;
}

void reply_release(struct reply *reply)
{
    buffer_put(reply->extra, reply->extra_len);
    reply->extra = NULL;
}
