/* SPDX-License-Identifier: BSD-2-Clause */
/*
 * One handler an option, found through a table; each sees the option's whole payload, already
 * received, so that whatever it makes of it the stream is at the next option. Replies collect in a
 * buffer and leave together when the option is done.
 */
#include "proto/handshake.h"

#include <errno.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/bytes.h"
#include "base/check.h"
#include "base/limits.h"
#include "base/log.h"
#include "base/utf8.h"
#include "proto/bitmap_offer.h"
#include "proto/meta.h"
#include "proto/wire.h"

/* Foreign text in a message is shown up to about this length. */
#define SHOWN_TEXT_BYTES 96U
/*
 * Holds the largest single reply, a REP_SERVER with the longest name and description, and all that
 * INFO and GO answer. So nothing waits, and no export can go, between looking one up and having
 * answered about it (O7).
 */
#define REPLY_BUFFER_BYTES 12288U

static_assert(REPLY_BUFFER_BYTES >=
                  5 * (sizeof(struct wire_option_reply) + 2) + sizeof(struct wire_info_export) +
                      sizeof(struct wire_info_block_size) + 2 * LIMIT_NBD_STRING_BYTES,
              "the largest answer fits");

enum next_step { NEXT_OPTION, NEXT_TRANSMISSION, NEXT_DISCONNECT };

struct negotiation {
    struct connection *conn;
    bool fixed_newstyle;
    bool no_zeroes;
    unsigned options_seen;
    unsigned options_for_list; /* allowed beside the limit, as it was told of exports */
    uint32_t option;           /* the one at hand */
    const uint8_t *payload;
    size_t payload_len;
    bool send_failed;
    size_t reply_used;
    uint8_t *replies; /* REPLY_BUFFER_BYTES while an option is at hand, else NULL */
};

/* ---- Replies ---- */

static void co_flush_replies(struct negotiation *talk)
{
    struct connection *conn = talk->conn;
    struct iovec iov = {talk->replies, talk->reply_used};

    if (!talk->replies || talk->reply_used == 0 || talk->send_failed) {
        return;
    }
    talk->reply_used = 0;
    if (conn->stream->ops->co_send(conn->stream, &iov, 1, false) < 0) {
        talk->send_failed = true; /* the peer has gone: the loop over options sees it */
    }
}

static void drop_reply_buffer(struct negotiation *talk)
{
    free(talk->replies);
    talk->replies = NULL;
}

/* Room for len more bytes in the buffer, flushing it if need be. */
static uint8_t *co_reply_room(struct negotiation *talk, size_t len)
{
    assert(talk->replies && len <= REPLY_BUFFER_BYTES);
    if (len > REPLY_BUFFER_BYTES - talk->reply_used) {
        co_flush_replies(talk);
        talk->reply_used = 0; /* also when the peer has gone */
    }
    uint8_t *room = talk->replies + talk->reply_used;
    talk->reply_used += len;
    return room;
}

/* One option reply with len bytes of payload, to be filled in by the caller at once. */
static uint8_t *co_reply(struct negotiation *talk, uint32_t type, size_t len)
{
    uint8_t *room = co_reply_room(talk, sizeof(struct wire_option_reply) + len);
    struct wire_option_reply *wire = (void *)room;

    put_be64(wire->magic, NBD_OPTION_REPLY_MAGIC);
    put_be32(wire->option, talk->option);
    put_be32(wire->type, type);
    put_be32(wire->length, (uint32_t)len);
    return room + sizeof(*wire);
}

static enum next_step co_ack(struct negotiation *talk)
{
    co_reply(talk, NBD_REP_ACK, 0);
    return NEXT_OPTION;
}

static enum next_step co_refuse(struct negotiation *talk, uint32_t type, const char *format, ...)
    __attribute__((format(printf, 3, 4)));

static enum next_step co_refuse(struct negotiation *talk, uint32_t type, const char *format, ...)
{
    char text[256];
    va_list args;

    va_start(args, format);
    vsnprintf(text, sizeof(text), format, args);
    va_end(args);
    size_t len = strlen(text);
    uint8_t *room = co_reply(talk, type, len);
    memcpy(room, text, len);
    connection_note(talk->conn, "option %u refused: %s", talk->option, text);
    return NEXT_OPTION;
}

/* ---- Exports and names ---- */

/* NULL, or what is wrong with it as a name on the wire. */
static const char *name_fault(const uint8_t *name, size_t len)
{
    if (len > LIMIT_NBD_STRING_BYTES) {
        return "the export name is longer than 4096 bytes";
    }
    if (!utf8_is_text(name, len)) {
        return "the export name is not UTF-8 text";
    }
    return NULL;
}

static const struct nbd_export_list *offered(const struct connection *conn)
{
    static const struct nbd_export_list nothing = {.count = 0};
    return conn->service->exports ? conn->service->exports : &nothing;
}

/* The caller holds it before it waits for anything. */
static struct nbd_export *find_export(const struct connection *conn, const uint8_t *name,
                                      size_t len)
{
    const struct nbd_export_list *list = offered(conn);

    for (unsigned i = 0; i < list->count; i++) {
        struct nbd_export *candidate = list->exports[i];
        if (strlen(candidate->name) == len && memcmp(candidate->name, name, len) == 0) {
            return connection_sees(conn, candidate) ? candidate : NULL;
        }
    }
    return NULL;
}

/*
 * A name that is hidden from this client and one that nobody has are answered alike: what the
 * answer says depends on whether anything is hidden, and on nothing else.
 */
static enum next_step co_refuse_unknown_export(struct negotiation *talk, const uint8_t *name,
                                               size_t len)
{
    char shown[SHOWN_TEXT_BYTES];
    const struct connection *conn = talk->conn;
    const struct nbd_export_list *list = offered(conn);
    bool hidden = false;
    bool hidden_without_tls = false;

    for (unsigned i = 0; i < list->count; i++) {
        const struct nbd_export *export = list->exports[i];
        hidden = hidden || !connection_sees(conn, export);
        hidden_without_tls = hidden_without_tls || (export->tls_only && !conn->secure);
    }
    err_sanitise(shown, sizeof(shown), name, len);
    if (hidden_without_tls) {
        return co_refuse(talk, NBD_REP_ERR_TLS_REQD, "there is no export \"%s\" here without TLS",
                         shown);
    }
    if (hidden) {
        return co_refuse(talk, NBD_REP_ERR_POLICY, "there is no export \"%s\" here for you", shown);
    }
    return co_refuse(talk, NBD_REP_ERR_UNKNOWN, "there is no export \"%s\" here", shown);
}

static bool is_read_only(const struct nbd_export *export)
{
    return export->read_only || export->image->read_only;
}

static uint16_t transmission_flags(const struct connection *conn, const struct nbd_export *export)
{
    unsigned flags =
        NBD_FLAG_HAS_FLAGS | NBD_FLAG_SEND_FLUSH | NBD_FLAG_SEND_FUA | NBD_FLAG_SEND_CACHE;

    if (is_read_only(export)) {
        flags |= NBD_FLAG_READ_ONLY;
    } else {
        flags |= NBD_FLAG_SEND_TRIM | NBD_FLAG_SEND_WRITE_ZEROES;
        flags |= export->image->can_zero_fast ? NBD_FLAG_SEND_FAST_ZERO : 0U;
    }
    flags |= conn->form >= HEADERS_STRUCTURED ? NBD_FLAG_SEND_DF : 0U;
    if (conn->form == HEADERS_EXTENDED && conn->meta_contexts != 0 && conn->meta_export == export) {
        flags |= NBD_FLAG_BLOCK_STATUS_PAYLOAD;
    }
    flags |= export->multi_conn ? NBD_FLAG_CAN_MULTI_CONN : 0U;
    return (uint16_t)flags;
}

/* Nothing is selected any more. */
static void forget_contexts(struct connection *conn)
{
    nbd_export_release(conn->meta_export);
    free(conn->meta_bitmap_ids);
    conn->meta_export = NULL;
    conn->meta_bitmap_ids = NULL;
    conn->meta_contexts = 0;
}

/* The end of haggling: this export, by these rules. */
static void choose(struct connection *conn, struct nbd_export *export)
{
    if (conn->meta_export != export) {
        forget_contexts(conn); /* they were selected for another one */
    }
    nbd_export_hold(export);
    conn->chosen = export;
    if (!export->users.next) {
        list_init(&export->users);
    }
    list_push_back(&export->users, &conn->user_link);
    conn->rules = (struct request_rules){
        .size_bytes = export->image->size_bytes,
        .request_bytes = conn->service->limits.request_bytes,
        .transmission_flags = transmission_flags(conn, export),
        .form = conn->form,
        .meta_contexts = conn->meta_contexts,
    };
    connection_note(conn, "export \"%s\", flags 0x%x", export->name,
                    conn->rules.transmission_flags);
}

/* ---- Options ---- */

static enum next_step co_option_export_name(struct negotiation *talk)
{
    struct connection *conn = talk->conn;
    char shown[SHOWN_TEXT_BYTES];
    struct nbd_export *export = NULL;

    if (conn->form == HEADERS_EXTENDED) { /* nor has it a place among extended headers */
        connection_complain(conn, "EXPORT_NAME after EXTENDED_HEADERS: disconnected");
        return NEXT_DISCONNECT;
    }
    if (!name_fault(talk->payload, talk->payload_len)) {
        export = find_export(conn, talk->payload, talk->payload_len);
    }
    if (!export) { /* this option has no way to say no */
        connection_complain(conn, "there is no export \"%s\" here: disconnected",
                            err_sanitise(shown, sizeof(shown), talk->payload, talk->payload_len));
        return NEXT_DISCONNECT;
    }
    choose(conn, export);

    struct wire_export_name_reply reply = {0};
    put_be64(reply.size, conn->rules.size_bytes);
    put_be16(reply.flags, conn->rules.transmission_flags);
    size_t len = talk->no_zeroes ? offsetof(struct wire_export_name_reply, zeroes) : sizeof(reply);
    uint8_t *room = co_reply_room(talk, len);
    memcpy(room, &reply, len);
    return NEXT_TRANSMISSION;
}

static enum next_step co_option_abort(struct negotiation *talk)
{
    co_ack(talk); /* whatever its payload is */
    return NEXT_DISCONNECT;
}

/* One line of the answer to LIST; false: hidden. The caller holds the export. */
static bool co_list_export(struct negotiation *talk, const struct nbd_export *export)
{
    size_t most = sizeof(struct wire_option_reply) + 4 + 2 * LIMIT_NBD_STRING_BYTES;

    if (REPLY_BUFFER_BYTES - talk->reply_used < most) {
        co_flush_replies(talk);
        talk->reply_used = 0; /* also when the peer has gone */
    }
    if (!connection_sees(talk->conn, export)) {
        return false;
    }
    const char *description = export->description ? export->description : "";
    size_t name_len = strlen(export->name);
    size_t description_len = strlen(description);
    /* There is room: nothing waits while the description is looked at (O7). */
    uint8_t *room = co_reply(talk, NBD_REP_SERVER, 4 + name_len + description_len);
    put_be32(room, (uint32_t)name_len);
    memcpy(room + 4, export->name, name_len);
    memcpy(room + 4 + name_len, description, description_len);
    return true;
}

static enum next_step co_option_list(struct negotiation *talk)
{
    const struct nbd_service *service = talk->conn->service;
    unsigned told = 0;

    if (talk->payload_len > 0) {
        return co_refuse(talk, NBD_REP_ERR_INVALID, "LIST takes no data");
    }
    struct nbd_export_list *list = service->exports;
    if (list) { /* it may be replaced while one of the replies is sent */
        nbd_export_list_hold(list);
        for (unsigned i = 0; i < list->count; i++) {
            told += co_list_export(talk, list->exports[i]);
        }
        nbd_export_list_release(list);
    }
    /* Clients that list exports ask about each; more lists do not add up. */
    talk->options_for_list = MAX_OF(talk->options_for_list, told * LIMIT_OPTIONS_PER_LISTED_EXPORT);
    return co_ack(talk);
}

/* Nothing that was agreed on in the clear counts any more: somebody else may have said it. */
static void forget_negotiated(struct connection *conn)
{
    conn->form = HEADERS_SIMPLE;
    forget_contexts(conn);
}

static enum next_step co_begin_tls(struct connection *conn)
{
    struct nbd_service *service = conn->service;
    struct stream *secure;
    struct errtext err = {.text = ""};

    input_shrink(&conn->input);
    conn->starting_tls = true;
    int rc = service->co_start_tls(service, conn->stream, &secure, &err);
    conn->starting_tls = false;
    if (rc < 0) {
        connection_complain(conn, "no TLS: %s: disconnected", err.text);
        return NEXT_DISCONNECT;
    }
    conn->stream = secure;
    input_set_stream(&conn->input, secure);
    conn->secure = true;
    forget_negotiated(conn);
    return NEXT_OPTION;
}

static enum next_step co_option_starttls(struct negotiation *talk)
{
    struct connection *conn = talk->conn;

    if (talk->payload_len > 0) {
        return co_refuse(talk, NBD_REP_ERR_INVALID, "STARTTLS takes no data");
    }
    if (conn->secure) {
        return co_refuse(talk, NBD_REP_ERR_INVALID, "TLS is on already");
    }
    if (conn->service->tls_mode == NBD_TLS_OFF) {
        return co_refuse(talk, NBD_REP_ERR_POLICY, "TLS is not enabled on this server");
    }
    if (input_buffered(&conn->input) > 0) {
        /* They would be taken for what came through TLS, whoever put them there. */
        connection_complain(conn, "bytes behind STARTTLS before TLS began: disconnected");
        return NEXT_DISCONNECT;
    }
    co_ack(talk);
    co_flush_replies(talk);
    drop_reply_buffer(talk); /* a client that does not begin costs none */
    return talk->send_failed ? NEXT_DISCONNECT : co_begin_tls(conn);
}

/* INFO and GO: the payload, taken apart. */
struct info_query {
    const uint8_t *name;
    size_t name_len;
    unsigned wanted; /* set of enum nbd_info, unknown ones left out */
};

static bool info_query_parse(const uint8_t *payload, size_t len, struct info_query *out)
{
    if (len < 6) {
        return false;
    }
    uint32_t name_len = get_be32(payload);
    if (name_len > len - 6) {
        return false;
    }
    const uint8_t *at = payload + 4 + name_len;
    uint16_t count = get_be16(at);
    if (len != 6 + (size_t)name_len + 2 * (size_t)count) {
        return false;
    }
    *out = (struct info_query){.name = payload + 4, .name_len = name_len};
    for (unsigned i = 0; i < count; i++) {
        uint16_t info = get_be16(at + 2 + 2 * (size_t)i);
        if (info <= NBD_INFO_BLOCK_SIZE) {
            out->wanted |= 1U << info;
        }
    }
    return true;
}

static void co_info_export(struct negotiation *talk, const struct nbd_export *export)
{
    struct wire_info_export *wire = (void *)co_reply(talk, NBD_REP_INFO, sizeof(*wire));

    put_be16(wire->type, NBD_INFO_EXPORT);
    put_be64(wire->size, export->image->size_bytes);
    put_be16(wire->flags, transmission_flags(talk->conn, export));
}

static void co_info_text(struct negotiation *talk, uint16_t type, const char *text)
{
    size_t len = strlen(text);
    uint8_t *room = co_reply(talk, NBD_REP_INFO, 2 + len);

    put_be16(room, type);
    memcpy(room + 2, text, len);
}

static void co_info_block_size(struct negotiation *talk, const struct nbd_export *export)
{
    struct wire_info_block_size *wire = (void *)co_reply(talk, NBD_REP_INFO, sizeof(*wire));
    uint32_t preferred = export->image->preferred_bytes;
    uint32_t maximum = talk->conn->service->limits.request_bytes;

    assert(is_power_of_two(preferred) && preferred >= 512 && maximum >= 512);
    while (preferred > maximum) {
        preferred /= 2;
    }
    put_be16(wire->type, NBD_INFO_BLOCK_SIZE);
    put_be32(wire->minimum, 1);
    put_be32(wire->preferred, preferred);
    put_be32(wire->maximum, maximum);
}

static enum next_step co_option_info_or_go(struct negotiation *talk)
{
    struct connection *conn = talk->conn;
    struct info_query query;

    if (!info_query_parse(talk->payload, talk->payload_len, &query)) {
        return co_refuse(talk, NBD_REP_ERR_INVALID,
                         "name and information requests do not fit the option's length");
    }
    const char *fault = name_fault(query.name, query.name_len);
    if (fault) {
        return co_refuse(talk, NBD_REP_ERR_INVALID, "%s", fault);
    }
    struct nbd_export *export = find_export(conn, query.name, query.name_len);
    if (!export) {
        return co_refuse_unknown_export(talk, query.name, query.name_len);
    }
    co_info_export(talk, export);
    if (query.wanted & (1U << NBD_INFO_NAME)) {
        co_info_text(talk, NBD_INFO_NAME, export->name);
    }
    if ((query.wanted & (1U << NBD_INFO_DESCRIPTION)) && export->description) {
        co_info_text(talk, NBD_INFO_DESCRIPTION, export->description);
    }
    /* Clients take the default for granted; what is less is said without being asked. */
    if ((query.wanted & (1U << NBD_INFO_BLOCK_SIZE)) ||
        conn->service->limits.request_bytes < LIMIT_PAYLOAD_BYTES) {
        co_info_block_size(talk, export);
    }
    co_ack(talk);
    if (talk->option != NBD_OPT_GO) {
        return NEXT_OPTION;
    }
    choose(conn, export);
    return NEXT_TRANSMISSION;
}

static enum next_step co_option_structured_reply(struct negotiation *talk)
{
    if (talk->payload_len > 0) {
        return co_refuse(talk, NBD_REP_ERR_INVALID, "STRUCTURED_REPLY takes no data");
    }
    if (talk->conn->form == HEADERS_EXTENDED) {
        return co_refuse(talk, NBD_REP_ERR_EXT_HEADER_REQD,
                         "extended headers are agreed on, and take their place");
    }
    if (talk->conn->form == HEADERS_STRUCTURED) {
        return co_refuse(talk, NBD_REP_ERR_INVALID, "structured replies are agreed on already");
    }
    talk->conn->form = HEADERS_STRUCTURED;
    return co_ack(talk);
}

static enum next_step co_option_extended_headers(struct negotiation *talk)
{
    if (talk->payload_len > 0) {
        return co_refuse(talk, NBD_REP_ERR_INVALID, "EXTENDED_HEADERS takes no data");
    }
    if (talk->conn->form == HEADERS_EXTENDED) {
        return co_refuse(talk, NBD_REP_ERR_INVALID, "extended headers are agreed on already");
    }
    talk->conn->form = HEADERS_EXTENDED;
    return co_ack(talk);
}

static void co_name_context(struct negotiation *talk, uint32_t id, const char *prefix,
                            const char *name)
{
    size_t prefix_len = strlen(prefix), name_len = strlen(name);
    uint8_t *room = co_reply(talk, NBD_REP_META_CONTEXT, 4 + prefix_len + name_len);

    put_be32(room, id);
    memcpy(room + 4, prefix, prefix_len);
    memcpy(room + 4 + prefix_len, name, name_len);
}

static enum next_step co_list_contexts(struct negotiation *talk, const struct meta_query *query,
                                       const struct bitmap_offer *offer)
{
    uint64_t fixed = meta_query_contexts(query);

    for (unsigned i = 0; i < META_FIXED_COUNT; i++) {
        if (fixed & meta_context_bit(i)) {
            co_name_context(talk, 0, "", meta_context_name(i));
        }
    }
    for (size_t i = 0; i < offer->count; i++) {
        if (meta_query_names_bitmap(query, offer->bitmaps[i].name)) {
            co_name_context(talk, 0, META_BITMAP_PREFIX, offer->bitmaps[i].name);
        }
    }
    return co_ack(talk);
}

/* Drops from an offer what the queries do not name. */
static void keep_named_bitmaps(const struct meta_query *query, struct bitmap_offer *offer)
{
    size_t kept = 0;

    for (size_t i = 0; i < offer->count; i++) {
        struct offered_bitmap bitmap = offer->bitmaps[i];
        if (meta_query_names_bitmap(query, bitmap.name)) {
            offer->bitmaps[i] = offer->bitmaps[kept];
            offer->bitmaps[kept++] = bitmap;
        }
    }
    bitmap_offer_trim(offer, kept);
}

/* What is selected is remembered for this export, and told with its ids. */
static enum next_step co_select_contexts(struct negotiation *talk, struct nbd_export *export,
                                         const struct meta_query *query, struct bitmap_offer *offer)
{
    struct connection *conn = talk->conn;
    uint64_t *ids = NULL;

    keep_named_bitmaps(query, offer);
    if (offer->count > META_BITMAPS_MAX) {
        return co_refuse(talk, NBD_REP_ERR_TOO_BIG,
                         "%zu dirty bitmaps are named, at most %u can be selected at once",
                         offer->count, META_BITMAPS_MAX);
    }
    if (offer->count > 0) {
        ids = malloc(offer->count * sizeof(*ids));
        if (!ids) {
            return co_refuse(talk, NBD_REP_ERR_TOO_BIG, "out of memory");
        }
    }
    uint64_t contexts = meta_query_contexts(query);
    for (unsigned i = 0; i < offer->count; i++) {
        ids[i] = offer->bitmaps[i].id;
        contexts |= meta_context_bit(META_FIXED_COUNT + i);
    }
    nbd_export_hold(export);
    conn->meta_export = export;
    conn->meta_bitmap_ids = ids;
    conn->meta_contexts = contexts;
    for (unsigned i = 0; i < META_FIXED_COUNT; i++) {
        if (contexts & meta_context_bit(i)) {
            co_name_context(talk, meta_context_id(i), "", meta_context_name(i));
        }
    }
    for (unsigned i = 0; i < offer->count; i++) {
        co_name_context(talk, meta_context_id(META_FIXED_COUNT + i), META_BITMAP_PREFIX,
                        offer->bitmaps[i].name);
    }
    return co_ack(talk);
}

static enum next_step co_option_meta_context(struct negotiation *talk)
{
    struct connection *conn = talk->conn;
    bool selecting = talk->option == NBD_OPT_SET_META_CONTEXT;
    struct meta_query query;
    struct bitmap_offer offer;
    const char *why;

    if (selecting) { /* even a failed one forgets what was selected */
        forget_contexts(conn);
    }
    if (conn->form == HEADERS_SIMPLE) {
        return co_refuse(talk, NBD_REP_ERR_INVALID,
                         "structured replies or extended headers come first");
    }
    if (!meta_query_parse(talk->payload, talk->payload_len, !selecting, &query, &why)) {
        return co_refuse(talk, NBD_REP_ERR_INVALID, "%s", why);
    }
    why = name_fault(query.export_name, query.export_name_len);
    if (why) {
        return co_refuse(talk, NBD_REP_ERR_INVALID, "%s", why);
    }
    struct nbd_export *export = find_export(conn, query.export_name, query.export_name_len);
    if (!export) {
        return co_refuse_unknown_export(talk, query.export_name, query.export_name_len);
    }
    if (query.count > LIMIT_META_QUERIES) {
        return co_refuse(talk, NBD_REP_ERR_TOO_BIG, "%u queries, at most %u are answered",
                         query.count, LIMIT_META_QUERIES);
    }
    nbd_export_hold(export); /* it may be taken back while its loop is asked */
    enum next_step next;
    if (co_bitmap_offer(conn->service, export, &offer) < 0) {
        next = co_refuse(talk, NBD_REP_ERR_TOO_BIG, "out of memory");
    } else {
        next = selecting ? co_select_contexts(talk, export, &query, &offer)
                         : co_list_contexts(talk, &query, &offer);
        bitmap_offer_free(&offer);
    }
    nbd_export_release(export);
    return next;
}

typedef enum next_step co_option_fn(struct negotiation *talk);

static co_option_fn *option_handler(uint32_t option)
{
    static co_option_fn *const handlers[] = {
        [NBD_OPT_EXPORT_NAME] = co_option_export_name,
        [NBD_OPT_ABORT] = co_option_abort,
        [NBD_OPT_LIST] = co_option_list,
        [NBD_OPT_STARTTLS] = co_option_starttls,
        [NBD_OPT_INFO] = co_option_info_or_go,
        [NBD_OPT_GO] = co_option_info_or_go,
        [NBD_OPT_STRUCTURED_REPLY] = co_option_structured_reply,
        [NBD_OPT_LIST_META_CONTEXT] = co_option_meta_context,
        [NBD_OPT_SET_META_CONTEXT] = co_option_meta_context,
        [NBD_OPT_EXTENDED_HEADERS] = co_option_extended_headers,
    };
    return option < ARRAY_LEN(handlers) ? handlers[option] : NULL;
}

/* ---- The loop ---- */

/* Receives an option's header; its length comes back through *len. False: disconnect. */
static bool co_receive_option_header(struct negotiation *talk, uint32_t *len)
{
    struct connection *conn = talk->conn;
    struct wire_option header;

    input_shrink(&conn->input);
    conn->between_options = input_buffered(&conn->input) == 0;
    int rc = co_input_need(&conn->input, 1);
    conn->between_options = false;
    if (rc == 0) {
        rc = co_input_read(&conn->input, &header, sizeof(header));
    }
    if (rc < 0) {
        connection_note(conn, "gone during the handshake");
        return false;
    }
    if (get_be64(header.magic) != NBD_OPTION_MAGIC) {
        connection_complain(conn, "no option begins like this: disconnected");
        return false;
    }
    talk->option = get_be32(header.option);
    *len = get_be32(header.length);
    talk->options_seen++;
    if (!talk->fixed_newstyle && talk->option != NBD_OPT_EXPORT_NAME) {
        connection_complain(conn, "option %u without fixed newstyle: disconnected", talk->option);
        return false;
    }
    return true;
}

/* Drains the payload, and refuses. */
static enum next_step co_answer_unknown(struct negotiation *talk, uint32_t len)
{
    if (co_input_skip(&talk->conn->input, len) < 0) {
        return NEXT_DISCONNECT;
    }
    return co_refuse(talk, NBD_REP_ERR_UNSUP, "option %u is not known here", talk->option);
}

/* Every option but ABORT is refused, whatever its payload; EXPORT_NAME cannot be. */
static enum next_step co_answer_no(struct negotiation *talk, uint32_t len, uint32_t type,
                                   const char *why)
{
    if (talk->option == NBD_OPT_EXPORT_NAME || co_input_skip(&talk->conn->input, len) < 0) {
        return NEXT_DISCONNECT;
    }
    return talk->option == NBD_OPT_ABORT ? co_option_abort(talk) : co_refuse(talk, type, "%s", why);
}

/* While the service drains: refused and closed. */
static enum next_step co_answer_draining(struct negotiation *talk, uint32_t len)
{
    co_answer_no(talk, len, NBD_REP_ERR_SHUTDOWN, "the server is shutting down");
    return NEXT_DISCONNECT;
}

/*
 * One connection too many. Clients go on when an option that is a mere wish is refused, tell their
 * users what was said to the one that chooses an export, and say ABORT then: so the reason is
 * repeated for as long as they listen.
 */
static enum next_step co_answer_refused(struct negotiation *talk, uint32_t len)
{
    return co_answer_no(talk, len, NBD_REP_ERR_POLICY, talk->conn->refusal);
}

static unsigned options_allowed(const struct negotiation *talk)
{
    return talk->conn->service->limits.options + talk->options_for_list;
}

static enum next_step co_answer_one_too_many(struct negotiation *talk, uint32_t len)
{
    unsigned most = options_allowed(talk);
    char why[80];

    connection_complain(talk->conn, "more than %u options: disconnected", most);
    snprintf(why, sizeof(why), "more than %u options in one handshake (--max-options)", most);
    co_answer_no(talk, len, NBD_REP_ERR_POLICY, why);
    return NEXT_DISCONNECT;
}

static enum next_step co_answer_too_big(struct negotiation *talk, uint32_t len)
{
    if (talk->option == NBD_OPT_EXPORT_NAME || len > LIMIT_OPTION_DRAIN_BYTES) {
        connection_complain(talk->conn,
                            "option %u has %u bytes, at most %u are taken: disconnected",
                            talk->option, len, LIMIT_OPTION_BYTES);
    }
    if (talk->option == NBD_OPT_EXPORT_NAME) {
        return NEXT_DISCONNECT;
    }
    bool drained = len <= LIMIT_OPTION_DRAIN_BYTES;
    if (drained && co_input_skip(&talk->conn->input, len) < 0) {
        return NEXT_DISCONNECT;
    }
    co_refuse(talk, NBD_REP_ERR_TOO_BIG, "the option has %u bytes, at most %u are taken", len,
              LIMIT_OPTION_BYTES);
    return drained ? NEXT_OPTION : NEXT_DISCONNECT;
}

static bool needs_tls_first(const struct negotiation *talk)
{
    return talk->conn->service->tls_mode == NBD_TLS_REQUIRE && !talk->conn->secure &&
           talk->option != NBD_OPT_STARTTLS && talk->option != NBD_OPT_ABORT;
}

static enum next_step co_demand_tls(struct negotiation *talk, uint32_t len)
{
    if (talk->option == NBD_OPT_EXPORT_NAME) { /* it has no way to say no */
        connection_complain(talk->conn, "it asks for an export without TLS: disconnected");
        return NEXT_DISCONNECT;
    }
    if (co_input_skip(&talk->conn->input, len) < 0) {
        return NEXT_DISCONNECT;
    }
    return co_refuse(talk, NBD_REP_ERR_TLS_REQD, "this server speaks TLS only");
}

static enum next_step co_answer(struct negotiation *talk, uint32_t len)
{
    co_option_fn *co_handle = option_handler(talk->option);
    if (len > LIMIT_OPTION_BYTES) {
        return co_answer_too_big(talk, len);
    }
    if (talk->conn->service->draining) {
        return co_answer_draining(talk, len);
    }
    if (talk->options_seen > options_allowed(talk)) {
        return co_answer_one_too_many(talk, len);
    }
    if (talk->conn->refusal) {
        return co_answer_refused(talk, len);
    }
    if (needs_tls_first(talk)) {
        return co_demand_tls(talk, len);
    }
    if (!co_handle) {
        return co_answer_unknown(talk, len);
    }
    uint8_t *payload = malloc(len > 0 ? len : 1); /* at most LIMIT_OPTION_BYTES */
    if (!payload) {
        return NEXT_DISCONNECT;
    }
    enum next_step next = NEXT_DISCONNECT;
    if (co_input_read(&talk->conn->input, payload, len) == 0) {
        talk->payload = payload;
        talk->payload_len = len;
        next = co_handle(talk);
        talk->payload = NULL;
    }
    free(payload);
    return next;
}

/* With a buffer for the replies: a client that says nothing costs none. */
static enum next_step co_answer_buffered(struct negotiation *talk, uint32_t len)
{
    talk->reply_used = 0;
    talk->replies = malloc(REPLY_BUFFER_BYTES);
    if (!talk->replies) {
        return NEXT_DISCONNECT;
    }
    enum next_step next = co_answer(talk, len);
    co_flush_replies(talk);
    drop_reply_buffer(talk);
    return next;
}

bool co_handshake_greet(struct connection *conn)
{
    struct wire_greeting greeting;
    struct iovec iov = {&greeting, sizeof(greeting)};

    put_be64(greeting.magic, NBD_MAGIC);
    put_be64(greeting.option_magic, NBD_OPTION_MAGIC);
    put_be16(greeting.flags, NBD_FLAG_FIXED_NEWSTYLE | NBD_FLAG_NO_ZEROES);
    if (conn->stream->ops->co_send(conn->stream, &iov, 1, false) < 0) {
        return false;
    }
    if (co_input_need(&conn->input, 4) < 0) {
        connection_note(conn, "gone before it said a word");
        return false;
    }
    conn->client_flags = get_be32(input_bytes(&conn->input));
    input_take(&conn->input, 4);
    if (conn->client_flags & ~(NBD_FLAG_FIXED_NEWSTYLE | NBD_FLAG_NO_ZEROES)) {
        connection_complain(conn, "client flags 0x%x were not offered: disconnected",
                            conn->client_flags);
        return false;
    }
    return true;
}

bool co_handshake_options(struct connection *conn)
{
    struct negotiation *talk = malloc(sizeof(*talk));
    enum next_step next = NEXT_OPTION;
    uint32_t len;

    if (!talk) {
        return false;
    }
    talk->conn = conn;
    talk->fixed_newstyle = conn->client_flags & NBD_FLAG_FIXED_NEWSTYLE;
    talk->no_zeroes = conn->client_flags & NBD_FLAG_NO_ZEROES;
    talk->options_seen = 0;
    talk->options_for_list = 0;
    talk->send_failed = false;
    talk->replies = NULL;
    while (next == NEXT_OPTION && !talk->send_failed) {
        next =
            co_receive_option_header(talk, &len) ? co_answer_buffered(talk, len) : NEXT_DISCONNECT;
    }
    bool go = next == NEXT_TRANSMISSION && !talk->send_failed;
    free(talk);
    return go;
}
