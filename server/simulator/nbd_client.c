/* SPDX-License-Identifier: BSD-2-Clause */
/*
 * One coroutine receives replies and finds their requests by cookie; requests send for themselves,
 * one after the other. A read's data goes straight into its buffer: the caller waits until the
 * receiver is done with it or has ended.
 */
#include "simulator/nbd_client.h"

#include <assert.h>
#include <errno.h>
#include <inttypes.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/bytes.h"
#include "base/check.h"
#include "base/limits.h"
#include "sched/co.h"
#include "sched/sync.h"

#define CONTEXT_NAME "base:allocation"

struct nbd_client {
    struct image image;
    struct stream *stream;
    struct nbd_client_options options;
    uint16_t transmission_flags;
    uint32_t context_id; /* 0: none was selected */
    uint64_t last_cookie;
    uint64_t answered;
    struct list requests; /* without a whole reply */
    struct co_mutex sending;
    bool receiving;   /* the receiver runs */
    bool server_done; /* with the connection */
    bool complained;
    struct errtext complaint;
    struct wait_queue changed;
};

struct client_request {
    struct list link;
    uint16_t type;
    uint16_t flags;
    uint64_t cookie;
    uint64_t offset;
    uint64_t len;
    uint8_t *buf;
    struct read_holes *holes;
    uint64_t done; /* bytes of the read or of the status that have come */
    struct extent_list *extents;
    bool extents_full;
    uint32_t error;
    bool answered;
    struct wait_queue waiting;
};

/* A reply's header, of whatever form. */
struct reply_header {
    uint32_t magic;
    uint16_t flags;
    uint16_t type;
    uint64_t cookie;
    uint64_t offset;
    uint64_t len;
    uint32_t error; /* of a simple one */
};

static struct nbd_client *client_of(struct image *image)
{
    return container_of(image, struct nbd_client, image);
}

/* The server broke the protocol. Always false. */
static bool complain(struct nbd_client *client, const char *format, ...)
    __attribute__((format(printf, 2, 3)));

static bool complain(struct nbd_client *client, const char *format, ...)
{
    va_list args;
    va_start(args, format);
    if (!client->complained) {
        vsnprintf(client->complaint.text, sizeof(client->complaint.text), format, args);
        client->complained = true;
    }
    va_end(args);
    client->stream->ops->abort(client->stream);
    return false;
}

/* Receives exactly len bytes. False when the connection is lost. */
static bool co_take(struct nbd_client *client, void *buf, size_t len)
{
    return co_stream_recv_all(client->stream, buf, len) == 0;
}

static bool co_skip(struct nbd_client *client, uint64_t len)
{
    uint8_t bytes[512];
    while (len > 0) {
        size_t now = (size_t)MIN_OF(len, sizeof(bytes));
        if (!co_take(client, bytes, now)) {
            return false;
        }
        len -= now;
    }
    return true;
}

/* ---- Handshake. All return 0 or a negative errno. ---- */

static int co_send_option(struct nbd_client *client, uint32_t option, const void *payload,
                          size_t len)
{
    struct wire_option wire;
    struct iovec iov[2] = {{&wire, sizeof(wire)}, {(void *)(uintptr_t)payload, len}};
    put_be64(wire.magic, NBD_OPTION_MAGIC);
    put_be32(wire.option, option);
    put_be32(wire.length, (uint32_t)len);
    int sent = client->stream->ops->co_send(client->stream, iov, 2, false);
    return sent < 0 ? -ENOTCONN : 0;
}

/* One reply to the option; its payload, as much as there is room for, in payload. */
static int co_option_reply(struct nbd_client *client, uint32_t option, uint32_t *type,
                           uint8_t *payload, size_t room, size_t *len)
{
    struct wire_option_reply wire;
    if (!co_take(client, &wire, sizeof(wire))) {
        return -ENOTCONN;
    }
    *type = get_be32(wire.type);
    *len = get_be32(wire.length);
    if (get_be64(wire.magic) != NBD_OPTION_REPLY_MAGIC || get_be32(wire.option) != option) {
        complain(client, "the reply to option %" PRIu32 " is for option %" PRIu32, option,
                 get_be32(wire.option));
        return -EPROTO;
    }
    if (*len > room) {
        complain(client, "a reply of %zu bytes to option %" PRIu32, *len, option);
        return -EPROTO;
    }
    return co_take(client, payload, *len) ? 0 : -ENOTCONN;
}

/* Sees a reply that is neither an acknowledgement nor an error. */
typedef void option_info_fn(struct nbd_client *client, uint32_t type, const uint8_t *payload,
                            size_t len);

/* Asks for an option that the server must grant. */
static int co_option(struct nbd_client *client, uint32_t option, const void *payload, size_t len,
                     option_info_fn *info)
{
    uint8_t reply[1024];
    uint32_t type;
    size_t reply_len;
    int result = co_send_option(client, option, payload, len);
    while (result == 0) {
        result = co_option_reply(client, option, &type, reply, sizeof(reply), &reply_len);
        if (result < 0) {
            break;
        }
        if (type == NBD_REP_ACK) {
            return client->complained ? -EPROTO : 0;
        }
        if (type == NBD_REP_ERR_SHUTDOWN || type == NBD_REP_ERR_UNKNOWN) {
            return -ESHUTDOWN;
        }
        if (type & 0x80000000U || !info) {
            complain(client, "option %" PRIu32 " is answered by %#" PRIx32, option, type);
            return -EPROTO;
        }
        info(client, type, reply, reply_len);
    }
    return result;
}

static void note_context(struct nbd_client *client, uint32_t type, const uint8_t *payload,
                         size_t len)
{
    size_t name_len = strlen(CONTEXT_NAME);
    if (type != NBD_REP_META_CONTEXT || len != 4 + name_len ||
        memcmp(payload + 4, CONTEXT_NAME, name_len) != 0 || get_be32(payload) == 0) {
        complain(client, "a strange answer to the selection of a metadata context");
        return;
    }
    client->context_id = get_be32(payload);
}

static void note_export(struct nbd_client *client, uint32_t type, const uint8_t *payload,
                        size_t len)
{
    const struct wire_info_export *wire = (const void *)payload;
    if (type != NBD_REP_INFO || len < 2) {
        complain(client, "a strange answer to NBD_OPT_GO");
    } else if (get_be16(payload) == NBD_INFO_EXPORT && len == sizeof(*wire)) {
        client->image.size_bytes = get_be64(wire->size);
        client->transmission_flags = get_be16(wire->flags);
    }
}

static int co_select_context(struct nbd_client *client)
{
    uint8_t payload[512];
    size_t name_len = strlen(client->options.export_name);
    size_t query_len = strlen(CONTEXT_NAME);
    assert(12 + name_len + query_len <= sizeof(payload));
    put_be32(payload, (uint32_t)name_len);
    memcpy(payload + 4, client->options.export_name, name_len);
    put_be32(payload + 4 + name_len, 1);
    put_be32(payload + 8 + name_len, (uint32_t)query_len);
    memcpy(payload + 12 + name_len, CONTEXT_NAME, query_len);
    int result = co_option(client, NBD_OPT_SET_META_CONTEXT, payload, 12 + name_len + query_len,
                           note_context);
    if (result == 0 && client->context_id == 0) {
        complain(client, "metadata context " CONTEXT_NAME " was not selected");
        result = -EPROTO;
    }
    return result;
}

static int co_go(struct nbd_client *client)
{
    uint8_t payload[256];
    size_t name_len = strlen(client->options.export_name);
    assert(6 + name_len <= sizeof(payload));
    put_be32(payload, (uint32_t)name_len);
    memcpy(payload + 4, client->options.export_name, name_len);
    put_be16(payload + 4 + name_len, 0);
    int result = co_option(client, NBD_OPT_GO, payload, 6 + name_len, note_export);
    if (result == 0 && client->image.size_bytes == 0) {
        complain(client, "NBD_OPT_GO tells no size");
        result = -EPROTO;
    }
    return result;
}

static int co_greet(struct nbd_client *client)
{
    struct wire_greeting greeting;
    uint8_t flags[4];
    struct iovec iov = {flags, sizeof(flags)};
    if (!co_take(client, &greeting, sizeof(greeting))) {
        return -ENOTCONN;
    }
    if (get_be64(greeting.magic) != NBD_MAGIC ||
        get_be64(greeting.option_magic) != NBD_OPTION_MAGIC ||
        get_be16(greeting.flags) != (NBD_FLAG_FIXED_NEWSTYLE | NBD_FLAG_NO_ZEROES)) {
        complain(client, "a strange greeting");
        return -EPROTO;
    }
    put_be32(flags, NBD_FLAG_FIXED_NEWSTYLE | NBD_FLAG_NO_ZEROES);
    int sent = client->stream->ops->co_send(client->stream, &iov, 1, false);
    return sent < 0 ? -ENOTCONN : 0;
}

static int co_handshake(struct nbd_client *client)
{
    enum header_form form = client->options.form;
    int result = co_greet(client);
    if (result == 0 && form != HEADERS_SIMPLE) {
        uint32_t option =
            form == HEADERS_EXTENDED ? NBD_OPT_EXTENDED_HEADERS : NBD_OPT_STRUCTURED_REPLY;
        result = co_option(client, option, NULL, 0, NULL);
    }
    if (result == 0 && form != HEADERS_SIMPLE) {
        result = co_select_context(client);
    }
    if (result == 0) {
        result = co_go(client);
    }
    return result;
}

/* ---- Replies ---- */

static struct client_request *find_request(struct nbd_client *client, uint64_t cookie)
{
    list_for_each(link, &client->requests) {
        struct client_request *request = list_entry(link, struct client_request, link);
        if (request->cookie == cookie) {
            return request;
        }
    }
    return NULL;
}

static bool answer(struct nbd_client *client, struct client_request *request)
{
    bool has_content = request->type == NBD_CMD_READ || request->type == NBD_CMD_BLOCK_STATUS;
    if (request->error == 0 && request->type == NBD_CMD_READ && request->done != request->len) {
        return complain(client, "a read of %" PRIu64 " bytes ends after %" PRIu64, request->len,
                        request->done);
    }
    if (request->error == 0 && has_content && request->done == 0) {
        return complain(client, "a status ends without an extent");
    }
    request->answered = true;
    client->answered++;
    list_remove(&request->link);
    wait_queue_wake_all(&request->waiting);
    return true;
}

static bool co_simple_reply(struct nbd_client *client, struct client_request *request,
                            const struct reply_header *header)
{
    bool has_content = request->type == NBD_CMD_READ || request->type == NBD_CMD_BLOCK_STATUS;
    if (has_content && client->options.form != HEADERS_SIMPLE) {
        return complain(client, "a simple reply where chunks were agreed on");
    }
    request->error = header->error;
    if (request->error == 0 && request->type == NBD_CMD_READ) {
        if (!co_take(client, request->buf, (size_t)request->len)) {
            return false;
        }
        request->done = request->len;
    }
    return answer(client, request);
}

/* The part of the read that a chunk is about: it follows what has come already. */
static bool chunk_fits(struct nbd_client *client, const struct client_request *request,
                       uint64_t offset, uint64_t len)
{
    if (request->type != NBD_CMD_READ || len == 0 || offset != request->offset + request->done ||
        len > request->len - request->done) {
        return complain(client,
                        "a chunk for [%#" PRIx64 ", +%#" PRIx64 ") of a read at %#" PRIx64
                        " that has come to +%#" PRIx64,
                        offset, len, request->offset, request->done);
    }
    return true;
}

static bool co_data_chunk(struct nbd_client *client, struct client_request *request,
                          const struct reply_header *header)
{
    struct wire_data wire;
    if (header->len <= sizeof(wire)) {
        return complain(client, "a chunk of data without any");
    }
    uint64_t len = header->len - sizeof(wire);
    if (!co_take(client, &wire, sizeof(wire)) ||
        !chunk_fits(client, request, get_be64(wire.offset), len)) {
        return false;
    }
    if ((request->flags & NBD_CMD_FLAG_DF) && len != request->len) {
        return complain(client, "a fragment of a read that asked for none");
    }
    if (!co_take(client, request->buf + request->done, (size_t)len)) {
        return false;
    }
    request->done += len;
    return true;
}

static void note_hole(struct client_request *request, size_t offset, size_t len)
{
    struct read_holes *holes = request->holes;
    unsigned last = holes ? holes->count - 1 : 0;
    if (holes && holes->count > 0 && holes->run[last].offset + holes->run[last].len == offset) {
        holes->run[last].len += len;
    } else if (holes && holes->count < READ_HOLES_MAX) {
        holes->run[holes->count].offset = offset;
        holes->run[holes->count++].len = len;
    } else {
        memset(request->buf + offset, 0, len);
    }
}

static bool co_hole_chunk(struct nbd_client *client, struct client_request *request,
                          const struct reply_header *header)
{
    struct wire_hole wire;
    if (header->len != sizeof(wire) || (request->flags & NBD_CMD_FLAG_DF)) {
        return complain(client, "a hole of %" PRIu64 " bytes, or where none was wanted",
                        header->len);
    }
    if (!co_take(client, &wire, sizeof(wire)) ||
        !chunk_fits(client, request, get_be64(wire.offset), get_be32(wire.size))) {
        return false;
    }
    note_hole(request, (size_t)request->done, get_be32(wire.size));
    request->done += get_be32(wire.size);
    return true;
}

static bool note_extent(struct nbd_client *client, struct client_request *request, uint64_t len,
                        uint64_t status)
{
    struct extent_list *list = request->extents;
    uint32_t flags =
        (status & NBD_STATE_HOLE ? EXTENT_HOLE : 0U) | (status & NBD_STATE_ZERO ? EXTENT_ZERO : 0U);
    if (len == 0 || len > request->len - request->done || status & ~3ULL) {
        return complain(client, "an extent of %" PRIu64 " bytes with status %" PRIu64, len, status);
    }
    request->done += len;
    if (list->count > 0 && list->extents[list->count - 1].flags == flags) {
        list->extents[list->count - 1].len += request->extents_full ? 0 : len;
    } else if (list->count == list->capacity) {
        request->extents_full = true;
    } else {
        list->extents[list->count++] = (struct extent){.len = len, .flags = flags, .depth = 1};
    }
    return true;
}

static bool co_status_chunk(struct nbd_client *client, struct client_request *request,
                            const struct reply_header *header)
{
    bool extended = header->type == NBD_REPLY_TYPE_BLOCK_STATUS_EXT;
    size_t prefix_bytes = extended ? sizeof(struct wire_status_ext) : sizeof(struct wire_status);
    size_t each_bytes =
        extended ? sizeof(struct wire_status_ext_extent) : sizeof(struct wire_status_extent);
    uint8_t bytes[sizeof(struct wire_status_ext_extent)];
    if (request->type != NBD_CMD_BLOCK_STATUS ||
        extended != (client->options.form == HEADERS_EXTENDED) || request->done != 0 ||
        header->len < prefix_bytes + each_bytes || (header->len - prefix_bytes) % each_bytes != 0) {
        return complain(client, "a chunk of status that does not fit, %" PRIu64 " bytes",
                        header->len);
    }
    uint64_t count = (header->len - prefix_bytes) / each_bytes;
    if (!co_take(client, bytes, prefix_bytes)) {
        return false;
    }
    if (get_be32(bytes) != client->context_id || (extended && get_be32(bytes + 4) != count) ||
        (count > 1 && (request->flags & NBD_CMD_FLAG_REQ_ONE))) {
        return complain(client, "%" PRIu64 " extents of context %" PRIu32, count, get_be32(bytes));
    }
    for (uint64_t i = 0; i < count; i++) {
        if (!co_take(client, bytes, each_bytes)) {
            return false;
        }
        uint64_t len = extended ? get_be64(bytes) : get_be32(bytes);
        uint64_t status = extended ? get_be64(bytes + 8) : get_be32(bytes + 4);
        if (!note_extent(client, request, len, status)) {
            return false;
        }
    }
    return true;
}

static bool co_error_chunk(struct nbd_client *client, struct client_request *request,
                           const struct reply_header *header)
{
    struct wire_error wire;
    if (header->len < sizeof(wire)) {
        return complain(client, "an error of %" PRIu64 " bytes", header->len);
    }
    if (!co_take(client, &wire, sizeof(wire))) {
        return false;
    }
    if (get_be32(wire.error) == 0 || get_be16(wire.message_length) != header->len - sizeof(wire)) {
        return complain(client, "an error chunk with error %" PRIu32 " and length %" PRIu64,
                        get_be32(wire.error), header->len);
    }
    request->error = get_be32(wire.error);
    return co_skip(client, header->len - sizeof(wire));
}

static bool co_chunk(struct nbd_client *client, struct client_request *request,
                     const struct reply_header *header)
{
    bool done = header->flags & NBD_REPLY_FLAG_DONE;
    bool good;
    switch (header->type) {
    case NBD_REPLY_TYPE_NONE:
        good = (done && header->len == 0) || complain(client, "a chunk of type none goes on");
        break;
    case NBD_REPLY_TYPE_OFFSET_DATA:
        good = co_data_chunk(client, request, header);
        break;
    case NBD_REPLY_TYPE_OFFSET_HOLE:
        good = co_hole_chunk(client, request, header);
        break;
    case NBD_REPLY_TYPE_BLOCK_STATUS:
    case NBD_REPLY_TYPE_BLOCK_STATUS_EXT:
        good = co_status_chunk(client, request, header);
        break;
    case NBD_REPLY_TYPE_ERROR:
        good = co_error_chunk(client, request, header);
        break;
    default:
        good = complain(client, "a chunk of type %#x", header->type);
        break;
    }
    return good && (!done || answer(client, request));
}

/* Receives a header of a form that was agreed on. */
static bool co_reply_header(struct nbd_client *client, struct reply_header *header)
{
    enum header_form form = client->options.form;
    union {
        struct wire_simple_reply simple;
        struct wire_chunk chunk;
        struct wire_extended_chunk extended;
    } wire;
    uint8_t *bytes = (uint8_t *)&wire;
    if (!co_take(client, bytes, 4)) {
        return false;
    }
    *header = (struct reply_header){.magic = get_be32(bytes)};
    if (header->magic == NBD_SIMPLE_REPLY_MAGIC && form != HEADERS_EXTENDED) {
        if (!co_take(client, bytes + 4, sizeof(wire.simple) - 4)) {
            return false;
        }
        header->error = get_be32(wire.simple.error);
        header->cookie = get_be64(wire.simple.cookie);
    } else if (header->magic == NBD_STRUCTURED_REPLY_MAGIC && form == HEADERS_STRUCTURED) {
        if (!co_take(client, bytes + 4, sizeof(wire.chunk) - 4)) {
            return false;
        }
        header->flags = get_be16(wire.chunk.flags);
        header->type = get_be16(wire.chunk.type);
        header->cookie = get_be64(wire.chunk.cookie);
        header->len = get_be32(wire.chunk.length);
    } else if (header->magic == NBD_EXTENDED_REPLY_MAGIC && form == HEADERS_EXTENDED) {
        if (!co_take(client, bytes + 4, sizeof(wire.extended) - 4)) {
            return false;
        }
        header->flags = get_be16(wire.extended.flags);
        header->type = get_be16(wire.extended.type);
        header->cookie = get_be64(wire.extended.cookie);
        header->offset = get_be64(wire.extended.offset);
        header->len = get_be64(wire.extended.length);
    } else {
        return complain(client, "a reply begins with %#" PRIx32, header->magic);
    }
    return true;
}

/* Receives one reply or one chunk. False when it was the last, for whatever reason. */
static bool co_receive_one(struct nbd_client *client)
{
    struct reply_header header;
    if (!co_reply_header(client, &header)) {
        return false;
    }
    struct client_request *request = find_request(client, header.cookie);
    if (!request) {
        return complain(client, "a reply to a request that was not made: cookie %" PRIu64,
                        header.cookie);
    }
    if (header.magic == NBD_EXTENDED_REPLY_MAGIC && header.offset != request->offset) {
        return complain(client, "a chunk repeats offset %#" PRIx64 " of a request at %#" PRIx64,
                        header.offset, request->offset);
    }
    return header.magic == NBD_SIMPLE_REPLY_MAGIC ? co_simple_reply(client, request, &header)
                                                  : co_chunk(client, request, &header);
}

static void lose(struct nbd_client *client)
{
    client->receiving = false;
    client->image.ending = true;
    list_for_each(link, &client->requests) {
        wait_queue_wake_all(&list_entry(link, struct client_request, link)->waiting);
    }
    wait_queue_wake_all(&client->changed);
}

static void co_receive(void *arg)
{
    struct nbd_client *client = arg;
    while (co_receive_one(client)) {
    }
    lose(client);
}

/* ---- Requests ---- */

static int errno_of(uint32_t error)
{
    switch (error) {
    case NBD_SUCCESS:
        return 0;
    case NBD_EPERM:
        return -EROFS;
    case NBD_ENOMEM:
        return -ENOMEM;
    case NBD_EINVAL:
        return -EINVAL;
    case NBD_ENOSPC:
        return -ENOSPC;
    case NBD_ENOTSUP:
        return -ENOTSUP;
    case NBD_ESHUTDOWN:
        return -ESHUTDOWN;
    case NBD_EIO:
        return -EIO;
    default:
        return -EPROTO;
    }
}

static size_t put_request(uint8_t *bytes, enum header_form form,
                          const struct client_request *request)
{
    if (form == HEADERS_EXTENDED) {
        struct wire_extended_request *wire = (void *)bytes;
        unsigned payload = request->type == NBD_CMD_WRITE ? NBD_CMD_FLAG_PAYLOAD_LEN : 0U;
        put_be32(wire->magic, NBD_EXTENDED_REQUEST_MAGIC);
        put_be16(wire->flags, (uint16_t)(request->flags | payload));
        put_be16(wire->type, request->type);
        put_be64(wire->cookie, request->cookie);
        put_be64(wire->offset, request->offset);
        put_be64(wire->length, request->len);
        return sizeof(*wire);
    }
    struct wire_request *wire = (void *)bytes;
    put_be32(wire->magic, NBD_REQUEST_MAGIC);
    put_be16(wire->flags, request->flags);
    put_be16(wire->type, request->type);
    put_be64(wire->cookie, request->cookie);
    put_be64(wire->offset, request->offset);
    put_be32(wire->length, (uint32_t)request->len);
    return sizeof(*wire);
}

/*
 * A send that fails is not the last word: replies to what was sent before may still be under way,
 * and behind them comes the end, which the receiver sees.
 */
static void co_send_request(struct nbd_client *client, const struct client_request *request)
{
    uint8_t header[sizeof(struct wire_extended_request)];
    bool has_payload = request->type == NBD_CMD_WRITE;
    co_mutex_lock(&client->sending);
    struct iovec iov[2] = {{header, put_request(header, client->options.form, request)},
                           {request->buf, has_payload ? (size_t)request->len : 0}};
    int sent = client->stream->ops->co_send(client->stream, iov, 2, false);
    (void)sent;
    co_mutex_unlock(&client->sending);
}

static int co_ask(struct nbd_client *client, struct client_request *request)
{
    if (!client->receiving) {
        return client->complained ? -EPROTO : -ENOTCONN;
    }
    request->cookie = ++client->last_cookie;
    wait_queue_init(&request->waiting);
    list_push_back(&client->requests, &request->link);
    co_send_request(client, request);
    while (!request->answered && client->receiving) {
        co_wait(&request->waiting);
    }
    if (request->answered) {
        return errno_of(request->error);
    }
    list_remove(&request->link);
    while (!client->server_done) {
        co_wait(&client->changed);
    }
    return client->complained ? -EPROTO : -ENOTCONN;
}

static uint16_t command_flags(unsigned image_flags)
{
    unsigned flags = 0;
    flags |= image_flags & IMAGE_FUA ? NBD_CMD_FLAG_FUA : 0U;
    flags |= image_flags & IMAGE_NO_HOLE ? NBD_CMD_FLAG_NO_HOLE : 0U;
    flags |= image_flags & IMAGE_FAST_ZERO ? NBD_CMD_FLAG_FAST_ZERO : 0U;
    return (uint16_t)flags;
}

static int co_client_read(struct image *image, uint64_t offset, void *buf, size_t len,
                          struct read_holes *holes)
{
    struct nbd_client *client = client_of(image);
    struct client_request request = {
        .type = NBD_CMD_READ, .offset = offset, .len = len, .buf = buf, .holes = holes};
    /* Who wants no holes: at times the server fills them in, at times it is done here. */
    if (!holes && client->options.form != HEADERS_SIMPLE && client->last_cookie % 2 == 0) {
        request.flags = NBD_CMD_FLAG_DF;
    }
    if (holes) {
        holes->count = 0;
    }
    return co_ask(client, &request);
}

static int co_client_write(struct image *image, uint64_t offset, const void *buf, size_t len,
                           unsigned flags)
{
    struct client_request request = {.type = NBD_CMD_WRITE,
                                     .flags = command_flags(flags),
                                     .offset = offset,
                                     .len = len,
                                     .buf = (uint8_t *)(uintptr_t)buf};
    return co_ask(client_of(image), &request);
}

static int co_client_zero(struct image *image, uint64_t offset, uint64_t len, unsigned flags)
{
    struct client_request request = {
        .type = NBD_CMD_WRITE_ZEROES, .flags = command_flags(flags), .offset = offset, .len = len};
    if ((flags & IMAGE_FAST_ZERO) && !image->can_zero_fast) {
        return -ENOTSUP;
    }
    return co_ask(client_of(image), &request);
}

static int co_client_trim(struct image *image, uint64_t offset, uint64_t len, unsigned flags)
{
    struct client_request request = {
        .type = NBD_CMD_TRIM, .flags = command_flags(flags), .offset = offset, .len = len};
    return co_ask(client_of(image), &request);
}

static int co_client_flush(struct image *image)
{
    struct client_request request = {.type = NBD_CMD_FLUSH};
    return co_ask(client_of(image), &request);
}

/* The server may describe less than it was asked about: asks on, as far as there is room. */
static int co_client_extents(struct image *image, uint64_t offset, uint64_t len,
                             struct extent_list *list)
{
    struct nbd_client *client = client_of(image);
    uint64_t done = 0;
    list->count = 0;
    if (client->context_id == 0) {
        list->extents[list->count++] = (struct extent){.len = len, .depth = 1};
        return 0;
    }
    while (done < len && list->count < list->capacity) {
        struct client_request request = {.type = NBD_CMD_BLOCK_STATUS,
                                         .flags = list->capacity == 1 ? NBD_CMD_FLAG_REQ_ONE : 0,
                                         .offset = offset + done,
                                         .len = MIN_OF(len - done, UINT32_MAX),
                                         .extents = list};
        int result = co_ask(client, &request);
        if (result < 0) {
            return result;
        }
        done += request.done;
    }
    return 0;
}

static void co_say_goodbye(struct nbd_client *client)
{
    struct client_request request = {.type = NBD_CMD_DISC};
    if (client->options.goodbye && client->receiving) {
        co_send_request(client, &request);
    } else {
        client->stream->ops->abort(client->stream);
    }
}

static int co_client_close(struct image *image, struct errtext *err)
{
    struct nbd_client *client = client_of(image);
    assert(list_empty(&client->requests));
    co_say_goodbye(client);
    while (client->receiving || !client->server_done) {
        co_wait(&client->changed);
    }
    int result = client->complained ? err_set(err, EPROTO, "%s", client->complaint.text) : 0;
    client->stream->ops->co_close(client->stream);
    free(client);
    return result;
}

static const struct image_ops client_ops = {
    .co_read = co_client_read,
    .co_write = co_client_write,
    .co_zero = co_client_zero,
    .co_trim = co_client_trim,
    .co_flush = co_client_flush,
    .co_extents = co_client_extents,
    .co_close = co_client_close,
};

struct nbd_client *nbd_client_create(struct stream *stream,
                                     const struct nbd_client_options *options)
{
    struct nbd_client *client = calloc(1, sizeof(*client));
    if (!client) {
        abort();
    }
    client->image.ops = &client_ops;
    client->image.path = options->export_name;
    client->stream = stream;
    client->options = *options;
    list_init(&client->requests);
    co_mutex_init(&client->sending);
    wait_queue_init(&client->changed);
    return client;
}

int co_nbd_client_connect(struct nbd_client *client)
{
    int result = co_handshake(client);
    if (result < 0) {
        client->stream->ops->abort(client->stream);
        lose(client);
        return result;
    }
    client->image.read_only = client->transmission_flags & NBD_FLAG_READ_ONLY;
    client->image.can_zero_fast = client->transmission_flags & NBD_FLAG_SEND_FAST_ZERO;
    client->receiving = true;
    if (coro_spawn(co_receive, client, "client receive") < 0) {
        abort();
    }
    return 0;
}

struct image *nbd_client_image(struct nbd_client *client)
{
    return &client->image;
}

const char *nbd_client_complaint(const struct nbd_client *client)
{
    return client->complained ? client->complaint.text : NULL;
}

bool nbd_client_lost(const struct nbd_client *client)
{
    return client->image.ending;
}

uint64_t nbd_client_answered(const struct nbd_client *client)
{
    return client->answered;
}

void nbd_client_server_is_done(struct nbd_client *client)
{
    client->server_done = true;
    wait_queue_wake_all(&client->changed);
}
