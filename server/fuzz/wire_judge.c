/* SPDX-License-Identifier: BSD-2-Clause */
/*
 * Two readers walk side by side. What a request's header means for the bytes behind it is asked of
 * proto/request.h, which has a target of its own. Where cookies repeat, nobody can tell which
 * request an answer belongs to, and judging ends.
 */
#include "fuzz/wire_judge.h"

#include <stdlib.h>
#include <string.h>

#include "base/bytes.h"
#include "base/limits.h"
#include "fuzz/feed.h"
#include "fuzz/fuzz.h"
#include "fuzz/service_rig.h"
#include "proto/meta.h"
#include "proto/request.h"

struct asked {
    uint64_t cookie;
    uint64_t offset;
    uint64_t length;
    uint64_t content_bytes; /* of a READ: so many have come */
    uint16_t type;
    bool owed;    /* an answer; else one may come */
    bool refused; /* by its header alone */
    bool fast;    /* may be refused for being slow */
    bool answered;
    bool failed;
};

struct judge {
    struct feed said;
    struct feed heard;
    bool undisturbed;
    unsigned options_max;
    bool no_zeroes;
    bool may_hang_up; /* something was pipelined behind STARTTLS, in the clear */
    bool context_ids[META_CONTEXTS_MAX + 1]; /* that were announced by the last SET_META_CONTEXT */
    struct request_rules rules;
    struct asked *asked;
    size_t asked_count;
    struct verdict_counts counts;
};

/* The next bytes heard; NULL where a disturbed conversation broke off. */
static const uint8_t *hear(struct judge *judge, uint64_t len)
{
    size_t got;
    const uint8_t *bytes = feed_bytes(&judge->heard, len, &got);
    demand(got == len || !judge->undisturbed, "a message breaks off: %zu of %llu bytes", got,
           (unsigned long long)len);
    if (got < len) {
        judge->heard.left = 0;
        return NULL;
    }
    return bytes;
}

static void demand_text(const char *what, const uint8_t *text, size_t len)
{
    for (size_t i = 0; i < len; i++) {
        demand(text[i] >= ' ' && text[i] <= '~', "%s has byte 0x%02x", what, text[i]);
    }
}

/* ---- Options ---- */

struct option {
    uint32_t number;
    bool complete;    /* all of it was said */
    bool may_hang_up; /* the server owes no answer */
    const uint8_t *payload;
    size_t payload_len;
};

static bool next_option(struct judge *judge, struct option *option)
{
    struct feed *said = &judge->said;
    size_t got;
    const uint8_t *header = feed_bytes(said, sizeof(struct wire_option), &got);

    if (got < sizeof(struct wire_option) || get_be64(header) != NBD_OPTION_MAGIC) {
        return false;
    }
    uint32_t len = get_be32(header + 12);
    option->number = get_be32(header + 8);
    option->payload = feed_bytes(said, len, &option->payload_len);
    option->complete = option->payload_len == len;
    option->may_hang_up = !option->complete || judge->may_hang_up || len > LIMIT_OPTION_BYTES ||
                          option->number == NBD_OPT_EXPORT_NAME ||
                          option->number == NBD_OPT_STARTTLS ||
                          judge->counts.options >= judge->options_max;
    return true;
}

static void judge_info(struct judge *judge, const uint8_t *payload, uint32_t len)
{
    demand(len >= 2, "INFO without a type");
    switch (get_be16(payload)) {
    case NBD_INFO_EXPORT:
        demand(len == sizeof(struct wire_info_export), "INFO_EXPORT of %u bytes", len);
        judge->rules.size_bytes = get_be64(payload + 2);
        judge->rules.transmission_flags = get_be16(payload + 10);
        break;
    case NBD_INFO_BLOCK_SIZE:
        demand(len == sizeof(struct wire_info_block_size), "INFO_BLOCK_SIZE of %u bytes", len);
        demand(get_be32(payload + 2) <= get_be32(payload + 6) &&
                   get_be32(payload + 6) <= get_be32(payload + 10),
               "block sizes out of order");
        break;
    case NBD_INFO_NAME:
    case NBD_INFO_DESCRIPTION:
        demand(len <= 2 + LIMIT_NBD_STRING_BYTES, "a text of %u bytes", len);
        break;
    default:
        demand(false, "INFO of type %u", get_be16(payload));
    }
}

static void judge_server(const uint8_t *payload, uint32_t len)
{
    demand(len >= 4 && get_be32(payload) <= len - 4, "SERVER whose name does not fit");
}

static void judge_meta(struct judge *judge, uint32_t option, const uint8_t *payload, uint32_t len)
{
    demand(len > 4, "META_CONTEXT without a name");
    uint32_t id = get_be32(payload);
    if (option == NBD_OPT_SET_META_CONTEXT) {
        demand(id >= 1 && id <= META_CONTEXTS_MAX && !judge->context_ids[id], "context id %u", id);
        judge->context_ids[id] = true;
        judge->rules.meta_contexts |= meta_context_bit(id - 1);
    }
}

/* A reply that is not the last one to its option. */
static void judge_part(struct judge *judge, uint32_t option, uint32_t type, const uint8_t *payload,
                       uint32_t len)
{
    bool is_meta = option == NBD_OPT_LIST_META_CONTEXT || option == NBD_OPT_SET_META_CONTEXT;

    if (type == NBD_REP_INFO && (option == NBD_OPT_INFO || option == NBD_OPT_GO)) {
        judge_info(judge, payload, len);
    } else if (type == NBD_REP_SERVER && option == NBD_OPT_LIST) {
        judge_server(payload, len);
    } else if (type == NBD_REP_META_CONTEXT && is_meta) {
        judge_meta(judge, option, payload, len);
    } else {
        demand(false, "option %u has a reply of type 0x%x", option, type);
    }
}

static void forget_contexts(struct judge *judge)
{
    memset(judge->context_ids, 0, sizeof(judge->context_ids));
    judge->rules.meta_contexts = 0;
}

/* All replies to one option. Returns the last one's type; 0 when there is none. */
static uint32_t judge_replies(struct judge *judge, const struct option *option)
{
    bool silent = !feed_any(&judge->heard);

    demand(!silent || option->may_hang_up || !judge->undisturbed, "option %u has no answer",
           option->number);
    if (option->number == NBD_OPT_SET_META_CONTEXT) {
        forget_contexts(judge);
    }
    while (feed_any(&judge->heard)) {
        const uint8_t *header = hear(judge, sizeof(struct wire_option_reply));
        const uint8_t *payload = header ? hear(judge, get_be32(header + 16)) : NULL;
        if (!payload) {
            return 0;
        }
        uint32_t type = get_be32(header + 12);
        uint32_t len = get_be32(header + 16);
        demand(get_be64(header) == NBD_OPTION_REPLY_MAGIC, "no option reply begins like this");
        demand(get_be32(header + 8) == option->number, "a reply to option %u instead of %u",
               get_be32(header + 8), option->number);
        if (type == NBD_REP_ACK || type & 0x80000000U) {
            demand(type <= NBD_REP_ERR_EXT_HEADER_REQD, "error 0x%x", type);
            demand(type != NBD_REP_ACK || len == 0, "ACK with data");
            demand_text("an error's text", payload, len);
            judge->counts.options++;
            return type;
        }
        judge_part(judge, option->number, type, payload, len);
    }
    demand(silent || !judge->undisturbed, "the replies to option %u have no end", option->number);
    return 0;
}

/* Whether transmission begins. EXPORT_NAME's answer has no frame. */
static bool judge_export_name(struct judge *judge)
{
    size_t len = judge->no_zeroes ? 10 : sizeof(struct wire_export_name_reply);

    if (!feed_any(&judge->heard)) {
        return false;
    }
    const uint8_t *answer = hear(judge, len);
    if (!answer) {
        return false;
    }
    judge->rules.size_bytes = get_be64(answer);
    judge->rules.transmission_flags = get_be16(answer + 8);
    return true;
}

static bool judge_tls(struct judge *judge)
{
    size_t got;
    const uint8_t *word = feed_bytes(&judge->said, TLS_WORD_BYTES, &got);

    if (got < TLS_WORD_BYTES || memcmp(word, TLS_WORD, TLS_WORD_BYTES) != 0 ||
        !feed_any(&judge->heard)) {
        return false;
    }
    word = hear(judge, TLS_WORD_BYTES);
    demand(!word || memcmp(word, TLS_WORD, TLS_WORD_BYTES) == 0, "no TLS begins like this");
    judge->rules.form = HEADERS_SIMPLE;
    forget_contexts(judge);
    return word != NULL;
}

/* Whether the handshake goes on with another option; *go: whether transmission begins. */
static bool judge_option(struct judge *judge, bool *go)
{
    struct option option;

    *go = false;
    if (!next_option(judge, &option)) {
        return false;
    }
    if (option.number == NBD_OPT_EXPORT_NAME) {
        *go = judge_export_name(judge);
        return false;
    }
    bool acknowledged = judge_replies(judge, &option) == NBD_REP_ACK;
    judge->may_hang_up = judge->may_hang_up || option.number == NBD_OPT_STARTTLS;
    if (!acknowledged) {
        return feed_any(&judge->heard) || judge->undisturbed;
    }
    switch (option.number) {
    case NBD_OPT_GO:
        *go = true;
        return false;
    case NBD_OPT_ABORT:
        return false;
    case NBD_OPT_STARTTLS:
        return judge_tls(judge);
    case NBD_OPT_STRUCTURED_REPLY:
        judge->rules.form = MAX_OF(judge->rules.form, HEADERS_STRUCTURED);
        return true;
    case NBD_OPT_EXTENDED_HEADERS:
        judge->rules.form = HEADERS_EXTENDED;
        return true;
    default:
        return true;
    }
}

/* True when transmission begins. */
static bool judge_handshake(struct judge *judge)
{
    size_t got;
    bool go = false;

    if (!feed_any(&judge->heard) && !judge->undisturbed) {
        return false;
    }
    const uint8_t *greeting = hear(judge, sizeof(struct wire_greeting));
    if (!greeting) {
        return false;
    }
    demand(get_be64(greeting) == NBD_MAGIC && get_be64(greeting + 8) == NBD_OPTION_MAGIC,
           "not a greeting");
    const uint8_t *flags = feed_bytes(&judge->said, 4, &got);
    if (got < 4 || get_be32(flags) & ~(NBD_FLAG_FIXED_NEWSTYLE | NBD_FLAG_NO_ZEROES)) {
        return false;
    }
    judge->no_zeroes = get_be32(flags) & NBD_FLAG_NO_ZEROES;
    if (!(get_be32(flags) & NBD_FLAG_FIXED_NEWSTYLE)) {
        struct option option;
        return next_option(judge, &option) && option.number == NBD_OPT_EXPORT_NAME &&
               judge_export_name(judge);
    }
    while (judge_option(judge, &go)) {
    }
    return go;
}

/* ---- Requests ---- */

/* *whole: its payload was said, too. */
static bool next_request(struct judge *judge, struct nbd_request *request, bool *whole)
{
    uint8_t header[sizeof(struct wire_extended_request)];
    size_t header_len = request_header_bytes(&judge->rules);
    size_t got;
    const uint8_t *bytes = feed_bytes(&judge->said, header_len, &got);

    if (got < header_len) {
        return false;
    }
    memcpy(header, bytes, header_len);
    if (!request_decode(header, &judge->rules, request) || request->type == NBD_CMD_DISC) {
        return false;
    }
    const uint8_t *payload = feed_bytes(&judge->said, request->payload_len, &got);
    *whole = got == request->payload_len;
    if (*whole && request_has_filter(request)) {
        uint8_t filter[REQUEST_FILTER_BYTES_MAX];
        memcpy(filter, payload, got);
        request_decode_filter(filter, &judge->rules, request);
    }
    return true;
}

static struct asked *find(struct judge *judge, uint64_t cookie)
{
    for (size_t i = 0; i < judge->asked_count; i++) {
        if (judge->asked[i].cookie == cookie) {
            return &judge->asked[i];
        }
    }
    return NULL;
}

/* Whether every cookie is told from every other. */
static bool collect_requests(struct judge *judge)
{
    size_t most = judge->said.left / sizeof(struct wire_request) + 1;
    struct nbd_request request;
    bool told_apart = true;

    judge->asked = calloc(most, sizeof(*judge->asked));
    demand(judge->asked, "no memory");
    bool whole = true;
    while (whole && next_request(judge, &request, &whole)) {
        told_apart = told_apart && !find(judge, request.cookie);
        judge->asked[judge->asked_count++] = (struct asked){
            .cookie = request.cookie,
            .offset = request.offset,
            .length = request.length,
            .type = request.type,
            .owed = whole,
            .refused = request.error != NBD_SUCCESS,
            .fast = request.flags & NBD_CMD_FLAG_FAST_ZERO,
        };
        whole = whole && !request.hang_up;
    }
    return told_apart;
}

static void demand_error(uint32_t error)
{
    switch ((enum nbd_error)error) {
    case NBD_EPERM:
    case NBD_EIO:
    case NBD_ENOMEM:
    case NBD_EINVAL:
    case NBD_ENOSPC:
    case NBD_EOVERFLOW:
    case NBD_ENOTSUP:
    case NBD_ESHUTDOWN:
        return;
    case NBD_SUCCESS:
    default:
        demand(false, "error %u on the wire", error);
    }
}

static void answered(struct judge *judge, struct asked *asked)
{
    asked->answered = true;
    judge->counts.requests++;
    judge->counts.errors += asked->failed;
    if (!asked->failed && asked->type != NBD_CMD_FLUSH) {
        demand(range_inside(asked->offset, asked->length, judge->rules.size_bytes),
               "command %u works outside of the export", asked->type);
    }
    /* Which contexts are selected for this export is not known for sure. */
    if (judge->undisturbed && asked->owed && asked->type != NBD_CMD_BLOCK_STATUS && !asked->fast) {
        demand(asked->failed == asked->refused, "command %u of %llu + %llu %s", asked->type,
               (unsigned long long)asked->offset, (unsigned long long)asked->length,
               asked->failed ? "fails" : "works, and must not");
    }
    if (asked->type == NBD_CMD_READ && !asked->failed) {
        demand(asked->content_bytes == asked->length, "a READ of %llu bytes has %llu",
               (unsigned long long)asked->length, (unsigned long long)asked->content_bytes);
    }
}

static struct asked *asked_for(struct judge *judge, uint64_t cookie)
{
    struct asked *asked = find(judge, cookie);
    demand(asked, "an answer to cookie 0x%llx, which nobody has sent", (unsigned long long)cookie);
    demand(!asked->answered, "a second answer to cookie 0x%llx", (unsigned long long)cookie);
    return asked;
}

static void judge_simple(struct judge *judge)
{
    const uint8_t *header = hear(judge, sizeof(struct wire_simple_reply));

    if (!header) {
        return;
    }
    uint32_t error = get_be32(header + 4);
    struct asked *asked = asked_for(judge, get_be64(header + 8));
    demand(judge->rules.form == HEADERS_SIMPLE || asked->type != NBD_CMD_READ,
           "a simple reply to a READ");
    if (error) {
        demand_error(error);
        asked->failed = true;
    } else if (asked->type == NBD_CMD_READ) {
        if (!hear(judge, asked->length)) {
            return;
        }
        asked->content_bytes = asked->length;
    }
    answered(judge, asked);
}

static void judge_content(struct asked *asked, uint64_t offset, uint64_t len)
{
    demand(asked->type == NBD_CMD_READ, "content for command %u", asked->type);
    demand(len > 0 && offset >= asked->offset && offset - asked->offset <= asked->length &&
               len <= asked->length - (offset - asked->offset),
           "content outside of what was asked for");
    asked->content_bytes += len;
}

static void judge_status(struct judge *judge, const struct asked *asked, const uint8_t *payload,
                         uint64_t len)
{
    bool extended = judge->rules.form == HEADERS_EXTENDED;
    size_t head = extended ? sizeof(struct wire_status_ext) : sizeof(struct wire_status);
    size_t each =
        extended ? sizeof(struct wire_status_ext_extent) : sizeof(struct wire_status_extent);

    demand(asked->type == NBD_CMD_BLOCK_STATUS, "a status for command %u", asked->type);
    demand(len >= head + each && (len - head) % each == 0, "a status of %llu bytes",
           (unsigned long long)len);
    uint32_t id = get_be32(payload);
    demand(id <= META_CONTEXTS_MAX && judge->context_ids[id], "the status of context %u", id);
    uint64_t count = (len - head) / each;
    demand(!extended || get_be32(payload + 4) == count, "a count that is wrong");
    uint64_t total = 0;
    for (uint64_t i = 0; i < count; i++) {
        const uint8_t *extent = payload + head + i * each;
        uint64_t extent_len = extended ? get_be64(extent) : get_be32(extent);
        demand(extent_len > 0, "an extent of no bytes");
        demand(total < asked->length, "an extent behind what was asked for");
        total += extent_len;
    }
}

static void judge_error_chunk(struct asked *asked, const uint8_t *payload, uint64_t len,
                              bool with_offset)
{
    demand(len >= sizeof(struct wire_error), "an error of %llu bytes", (unsigned long long)len);
    uint64_t text_len = get_be16(payload + 4);
    demand(len == sizeof(struct wire_error) + text_len + (with_offset ? 8 : 0),
           "an error whose text does not fit");
    demand_error(get_be32(payload));
    demand_text("an error's text", payload + sizeof(struct wire_error), text_len);
    asked->failed = true;
}

static void judge_chunk_content(struct judge *judge, struct asked *asked, uint16_t type,
                                const uint8_t *payload, uint64_t len)
{
    uint16_t status_type = judge->rules.form == HEADERS_EXTENDED ? NBD_REPLY_TYPE_BLOCK_STATUS_EXT
                                                                 : NBD_REPLY_TYPE_BLOCK_STATUS;
    if (type == NBD_REPLY_TYPE_NONE) {
        demand(len == 0, "NONE with content");
    } else if (type == NBD_REPLY_TYPE_OFFSET_DATA) {
        demand(len > 8, "data of no bytes");
        judge_content(asked, get_be64(payload), len - 8);
    } else if (type == NBD_REPLY_TYPE_OFFSET_HOLE) {
        demand(len == sizeof(struct wire_hole), "a hole of %llu bytes", (unsigned long long)len);
        judge_content(asked, get_be64(payload), get_be32(payload + 8));
    } else if (type == status_type) {
        judge_status(judge, asked, payload, len);
    } else {
        bool with_offset = type == NBD_REPLY_TYPE_ERROR_OFFSET;
        demand(type == NBD_REPLY_TYPE_ERROR || with_offset, "a chunk of type 0x%x", type);
        judge_error_chunk(asked, payload, len, with_offset);
    }
}

static void judge_chunk(struct judge *judge)
{
    bool extended = judge->rules.form == HEADERS_EXTENDED;
    const uint8_t *header =
        hear(judge, extended ? sizeof(struct wire_extended_chunk) : sizeof(struct wire_chunk));

    if (!header) {
        return;
    }
    uint16_t flags = get_be16(header + 4);
    struct asked *asked = asked_for(judge, get_be64(header + 8));
    uint64_t len = extended ? get_be64(header + 24) : get_be32(header + 16);
    demand(!(flags & ~NBD_REPLY_FLAG_DONE), "chunk flags 0x%x", flags);
    demand(!extended || get_be64(header + 16) == asked->offset, "a chunk with another offset");
    demand(len <= LIMIT_PAYLOAD_BYTES + 8, "a chunk of %llu bytes", (unsigned long long)len);
    const uint8_t *payload = hear(judge, len);
    if (!payload) {
        return;
    }
    judge_chunk_content(judge, asked, get_be16(header + 6), payload, len);
    if (flags & NBD_REPLY_FLAG_DONE) {
        answered(judge, asked);
    }
}

static void judge_reply(struct judge *judge)
{
    uint32_t magic = judge->heard.left >= 4 ? get_be32(judge->heard.bytes) : 0;
    bool simple = judge->rules.form == HEADERS_SIMPLE ||
                  (judge->rules.form == HEADERS_STRUCTURED && magic == NBD_SIMPLE_REPLY_MAGIC);
    uint32_t expected = simple                                  ? NBD_SIMPLE_REPLY_MAGIC
                        : judge->rules.form == HEADERS_EXTENDED ? NBD_EXTENDED_REPLY_MAGIC
                                                                : NBD_STRUCTURED_REPLY_MAGIC;

    demand(magic == expected || judge->heard.left < 4, "no reply begins with 0x%x", magic);
    if (simple) {
        judge_simple(judge);
    } else {
        judge_chunk(judge);
    }
}

static void judge_transmission(struct judge *judge)
{
    judge->counts.transmission = true;
    if (!collect_requests(judge)) {
        judge->heard.left = 0;
        return;
    }
    judge->counts.asked = (unsigned)judge->asked_count;
    while (feed_any(&judge->heard)) {
        judge_reply(judge);
    }
    for (size_t i = 0; i < judge->asked_count && judge->undisturbed; i++) {
        demand(judge->asked[i].answered || !judge->asked[i].owed,
               "request %zu, command %u, has no answer", i, judge->asked[i].type);
    }
}

struct verdict_counts judge_conversation(const struct conversation_record *record)
{
    struct judge judge = {
        .said = {record->said, record->said_len},
        .heard = {record->heard, record->heard_len},
        .undisturbed = record->undisturbed,
        .options_max = record->options_max,
        .rules.request_bytes = record->request_bytes,
    };

    if (judge_handshake(&judge)) {
        judge_transmission(&judge);
    }
    demand(!feed_any(&judge.heard), "%zu bytes that nobody has asked for", judge.heard.left);
    free(judge.asked);
    return judge.counts;
}
