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

static void put_simple(struct reply *reply, const struct reply_to *to, uint32_t error)
{
    struct wire_simple_reply *wire = (void *)reply->head;

    put_be32(wire->magic, NBD_SIMPLE_REPLY_MAGIC);
    put_be32(wire->error, error);
    put_be64(wire->cookie, to->cookie);
    add_piece(reply, wire, sizeof(*wire));
}

static size_t chunk_header_bytes(const struct reply_to *to)
{
    return to->form == HEADERS_EXTENDED ? sizeof(struct wire_extended_chunk)
                                        : sizeof(struct wire_chunk);
}

/* A chunk's header at `at`, of chunk_header_bytes(); returns what is behind it. */
static uint8_t *put_chunk(uint8_t *at, const struct reply_to *to, bool last, unsigned type,
                          size_t length)
{
    unsigned flags = last && !to->more ? NBD_REPLY_FLAG_DONE : 0U;

    assert(to->form != HEADERS_SIMPLE && length <= UINT32_MAX);
    if (to->form == HEADERS_EXTENDED) {
        struct wire_extended_chunk *wire = (void *)at;
        put_be32(wire->magic, NBD_EXTENDED_REPLY_MAGIC);
        put_be16(wire->flags, (uint16_t)flags);
        put_be16(wire->type, (uint16_t)type);
        put_be64(wire->cookie, to->cookie);
        put_be64(wire->offset, to->offset);
        put_be64(wire->length, length);
    } else {
        struct wire_chunk *wire = (void *)at;
        put_be32(wire->magic, NBD_STRUCTURED_REPLY_MAGIC);
        put_be16(wire->flags, (uint16_t)flags);
        put_be16(wire->type, (uint16_t)type);
        put_be64(wire->cookie, to->cookie);
        put_be32(wire->length, (uint32_t)length);
    }
    return at + chunk_header_bytes(to);
}

static void reply_none(struct reply *reply, const struct reply_to *to)
{
    put_chunk(reply->head, to, true, NBD_REPLY_TYPE_NONE, 0);
    add_piece(reply, reply->head, chunk_header_bytes(to));
}

void reply_success(struct reply *reply, const struct reply_to *to)
{
    start(reply);
    if (to->form == HEADERS_EXTENDED) {
        reply_none(reply, to);
    } else {
        put_simple(reply, to, NBD_SUCCESS);
    }
}

void reply_read_nothing(struct reply *reply, const struct reply_to *to)
{
    start(reply);
    if (to->form == HEADERS_SIMPLE) {
        put_simple(reply, to, NBD_SUCCESS);
    } else {
        reply_none(reply, to);
    }
}

void reply_error(struct reply *reply, const struct reply_to *to, uint32_t error, const char *text)
{
    assert(error != NBD_SUCCESS);
    start(reply);
    if (to->form == HEADERS_SIMPLE) {
        put_simple(reply, to, error);
        return;
    }
    size_t text_len = MIN_OF(strlen(text), REPLY_TEXT_BYTES_MAX);
    struct wire_error *wire =
        (void *)put_chunk(reply->head, to, true, NBD_REPLY_TYPE_ERROR, sizeof(*wire) + text_len);
    put_be32(wire->error, error);
    put_be16(wire->message_length, (uint16_t)text_len);
    memcpy(wire + 1, text, text_len);
    add_piece(reply, reply->head, chunk_header_bytes(to) + sizeof(*wire) + text_len);
}

/*
 * The header of len bytes of data at `at`; the data is the next piece. `done` is where they begin
 * in what this reply answers.
 */
static void add_data_header(struct reply *reply, uint8_t *at, const struct reply_to *to,
                            size_t done, size_t len, bool last)
{
    struct wire_data *wire =
        (void *)put_chunk(at, to, last, NBD_REPLY_TYPE_OFFSET_DATA, sizeof(*wire) + len);

    put_be64(wire->offset, to->offset + to->skipped + done);
    add_piece(reply, at, chunk_header_bytes(to) + sizeof(*wire));
}

static void add_hole(struct reply *reply, uint8_t *at, const struct reply_to *to, size_t done,
                     size_t len, bool last)
{
    struct wire_hole *wire =
        (void *)put_chunk(at, to, last, NBD_REPLY_TYPE_OFFSET_HOLE, sizeof(*wire));

    assert(len > 0 && len <= UINT32_MAX);
    put_be64(wire->offset, to->offset + to->skipped + done);
    put_be32(wire->size, (uint32_t)len);
    add_piece(reply, at, chunk_header_bytes(to) + sizeof(*wire));
}

/* One data chunk over everything: what a read without holes, and DF, want. */
static void read_as_one(struct reply *reply, const struct reply_to *to, void *payload, size_t len)
{
    add_data_header(reply, reply->head, to, 0, len, true);
    add_piece(reply, payload, len);
}

/* Room for the headers and pieces of a reply with so many holes. */
struct long_list {
    struct iovec pieces[REPLY_PIECES_MAX];
    uint8_t headers[2 * READ_HOLES_MAX + 1]
                   [sizeof(struct wire_extended_chunk) + sizeof(struct wire_hole)];
};

static void read_with_holes(struct reply *reply, struct long_list *room, const struct reply_to *to,
                            uint8_t *payload, size_t len, const struct read_holes *holes)
{
    unsigned headers = 0;
    size_t done = 0;

    reply->extra = room;
    reply->extra_len = sizeof(*room);
    reply->pieces = room->pieces;
    for (unsigned i = 0; i <= holes->count; i++) {
        size_t data_end = i < holes->count ? holes->run[i].offset : len;
        assert(data_end >= done && data_end <= len);
        if (data_end > done) {
            add_data_header(reply, room->headers[headers++], to, done, data_end - done,
                            data_end == len);
            add_piece(reply, payload + done, data_end - done);
        }
        done = data_end;
        if (i < holes->count) {
            size_t hole_len = holes->run[i].len;
            assert(hole_len <= len - done);
            add_hole(reply, room->headers[headers++], to, done, hole_len, done + hole_len == len);
            done += hole_len;
        }
    }
    assert(done == len);
    assert(headers <= ARRAY_LEN(room->headers) && reply->count <= REPLY_PIECES_MAX);
}

static void read_in_chunks(struct reply *reply, const struct reply_to *to, void *payload,
                           size_t len, const struct read_holes *holes)
{
    if (!holes || holes->count == 0) {
        read_as_one(reply, to, payload, len);
        return;
    }
    assert(holes->count <= READ_HOLES_MAX);
    if (holes->count == 1 && holes->run[0].len == len) {
        add_hole(reply, reply->head, to, 0, len, true);
        return;
    }
    struct long_list *room = buffer_get(sizeof(*room));
    if (room) {
        read_with_holes(reply, room, to, payload, len, holes);
        return;
    }
    for (unsigned i = 0; i < holes->count; i++) {
        memset((uint8_t *)payload + holes->run[i].offset, 0, holes->run[i].len);
    }
    read_as_one(reply, to, payload, len);
}

void reply_read(struct reply *reply, const struct reply_to *to, void *payload, size_t len,
                const struct read_holes *holes)
{
    assert(len > 0);
    start(reply);
    if (to->form == HEADERS_SIMPLE) {
        assert(!holes);
        put_simple(reply, to, NBD_SUCCESS);
        add_piece(reply, payload, len);
    } else {
        read_in_chunks(reply, to, payload, len, holes);
    }
}

/* ---- Block status ---- */

static size_t status_extent_bytes(const struct reply_to *to)
{
    return to->form == HEADERS_EXTENDED ? sizeof(struct wire_status_ext_extent)
                                        : sizeof(struct wire_status_extent);
}

static size_t status_prefix_bytes(const struct reply_to *to)
{
    return to->form == HEADERS_EXTENDED ? sizeof(struct wire_status_ext)
                                        : sizeof(struct wire_status);
}

static void put_extent(uint8_t *at, const struct reply_to *to, uint64_t len, uint32_t status)
{
    if (to->form == HEADERS_EXTENDED) {
        struct wire_status_ext_extent *wire = (void *)at;
        put_be64(wire->length, len);
        put_be64(wire->status, status);
    } else {
        struct wire_status_extent *wire = (void *)at;
        assert(len <= UINT32_MAX); /* the request's length is */
        put_be32(wire->length, (uint32_t)len);
        put_be32(wire->status, status);
    }
}

/* Puts the extents of one context, equal neighbours merged; returns how many they became. */
static unsigned put_extents(uint8_t *at, const struct reply_to *to, unsigned context,
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
        put_extent(at + (count - 1) * status_extent_bytes(to), to, last_len, last_status);
    }
    return count;
}

/* One context's chunk at `at`; returns its length. */
static size_t put_status_chunk(uint8_t *at, const struct reply_to *to, unsigned context,
                               const struct extent_list *list, bool only_one, bool last)
{
    size_t prefix_bytes = status_prefix_bytes(to);
    uint8_t *prefix = at + chunk_header_bytes(to);
    unsigned count = put_extents(prefix + prefix_bytes, to, context, list, only_one);
    size_t content_bytes = prefix_bytes + count * status_extent_bytes(to);

    if (to->form == HEADERS_EXTENDED) {
        struct wire_status_ext *wire = (void *)prefix;
        put_chunk(at, to, last, NBD_REPLY_TYPE_BLOCK_STATUS_EXT, content_bytes);
        put_be32(wire->context_id, meta_context_id(context));
        put_be32(wire->count, count);
    } else {
        struct wire_status *wire = (void *)prefix;
        put_chunk(at, to, last, NBD_REPLY_TYPE_BLOCK_STATUS, content_bytes);
        put_be32(wire->context_id, meta_context_id(context));
    }
    return chunk_header_bytes(to) + content_bytes;
}

int reply_block_status(struct reply *reply, const struct reply_to *to,
                       const struct status_content *contents, unsigned count, bool only_one)
{
    size_t room = 0;

    assert(count > 0);
    for (unsigned i = 0; i < count; i++) {
        assert(contents[i].list->count > 0);
        room += chunk_header_bytes(to) + status_prefix_bytes(to) +
                contents[i].list->count * status_extent_bytes(to);
    }
    uint8_t *bytes = buffer_get(room);
    if (!bytes) {
        return -ENOMEM;
    }
    start(reply);
    reply->extra = bytes;
    reply->extra_len = room;

    size_t used = 0;
    for (unsigned i = 0; i < count; i++) {
        used += put_status_chunk(bytes + used, to, contents[i].context, contents[i].list, only_one,
                                 i + 1 == count);
    }
    add_piece(reply, bytes, used);
    return 0;
}

void reply_release(struct reply *reply)
{
    buffer_put(reply->extra, reply->extra_len);
    reply->extra = NULL;
}
