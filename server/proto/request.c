/* SPDX-License-Identifier: BSD-2-Clause */
/*
 * One table says what each command is; the checks run over it in a fixed order: command, flags,
 * permission, range, size. The first that fails names the error.
 */
#include "proto/request.h"

#include "base/bytes.h"
#include "base/check.h"
#include "base/limits.h"
#include "proto/meta.h"

/*
 * A refused payload up to this size is read and thrown away; more ends the connection. With
 * extended headers the limit is what was advertised, as that protocol says.
 */
#define DRAIN_BYTES_MAX (2ULL * LIMIT_PAYLOAD_BYTES)

#define FILTER_ID_BYTES 4U

static_assert(REQUEST_FILTER_BYTES_MAX ==
                  sizeof(struct wire_status_request) + META_CONTEXTS_MAX * FILTER_ID_BYTES,
              "a filter may name every context");

enum command_traits {
    CHANGES = 1U << 0,          /* refused on a read-only export */
    HAS_RANGE = 1U << 1,        /* offset and length must lie inside the export */
    SENDS_PAYLOAD = 1U << 2,    /* client to server */
    WANTS_PAYLOAD = 1U << 3,    /* server to client */
    PAST_END_IS_FULL = 1U << 4, /* past the end: ENOSPC, not EINVAL */
    MAY_SEND_FILTER = 1U << 5,  /* with extended headers: which contexts are wanted */
};

struct command_rule {
    const char *name;
    unsigned traits;
    uint16_t flags; /* besides FUA, which is good on every command */
};

static const struct command_rule commands[] = {
    [NBD_CMD_READ] = {"READ", HAS_RANGE | WANTS_PAYLOAD, NBD_CMD_FLAG_DF},
    [NBD_CMD_WRITE] = {"WRITE", CHANGES | HAS_RANGE | SENDS_PAYLOAD | PAST_END_IS_FULL, 0},
    [NBD_CMD_DISC] = {"DISC", 0, 0},
    [NBD_CMD_FLUSH] = {"FLUSH", 0, 0},
    [NBD_CMD_TRIM] = {"TRIM", CHANGES | HAS_RANGE, 0},
    [NBD_CMD_CACHE] = {"CACHE", HAS_RANGE, 0},
    [NBD_CMD_WRITE_ZEROES] = {"WRITE_ZEROES", CHANGES | HAS_RANGE | PAST_END_IS_FULL,
                              NBD_CMD_FLAG_NO_HOLE | NBD_CMD_FLAG_FAST_ZERO},
    [NBD_CMD_BLOCK_STATUS] = {"BLOCK_STATUS", HAS_RANGE | MAY_SEND_FILTER, NBD_CMD_FLAG_REQ_ONE},
};

static const struct command_rule *command_of(uint16_t type)
{
    return type < ARRAY_LEN(commands) ? &commands[type] : NULL;
}

const char *request_type_name(uint16_t type)
{
    const struct command_rule *command = command_of(type);
    return command ? command->name : "unknown command";
}

size_t request_header_bytes(const struct request_rules *rules)
{
    return rules->form == HEADERS_EXTENDED ? sizeof(struct wire_extended_request)
                                           : sizeof(struct wire_request);
}

static void refuse(struct nbd_request *request, uint32_t error, const char *reason)
{
    request->error = error;
    request->reason = reason;
}

static uint16_t allowed_flags(const struct command_rule *command, const struct request_rules *rules)
{
    unsigned allowed = command->flags;

    if (rules->transmission_flags & NBD_FLAG_SEND_FUA) {
        allowed |= NBD_CMD_FLAG_FUA;
    }
    if (!(rules->transmission_flags & NBD_FLAG_SEND_DF)) {
        allowed &= ~NBD_CMD_FLAG_DF;
    }
    /* On a read-only export the permission is what is wrong, not the flag. */
    if (!(rules->transmission_flags & (NBD_FLAG_SEND_FAST_ZERO | NBD_FLAG_READ_ONLY))) {
        allowed &= ~NBD_CMD_FLAG_FAST_ZERO;
    }
    if (rules->form == HEADERS_EXTENDED && (command->traits & SENDS_PAYLOAD)) {
        allowed |= NBD_CMD_FLAG_PAYLOAD_LEN;
    }
    if ((rules->transmission_flags & NBD_FLAG_BLOCK_STATUS_PAYLOAD) &&
        (command->traits & MAY_SEND_FILTER)) {
        allowed |= NBD_CMD_FLAG_PAYLOAD_LEN;
    }
    return (uint16_t)allowed;
}

static void check_size(const struct command_rule *command, const struct request_rules *rules,
                       struct nbd_request *request)
{
    if (request->length <= rules->request_bytes) {
        return;
    }
    if (command->traits & SENDS_PAYLOAD) {
        refuse(request, NBD_EINVAL, "the payload is larger than the advertised maximum");
    } else if (command->traits & WANTS_PAYLOAD) {
        /* EOVERFLOW is documented for reads where DF exists, and nowhere else. */
        refuse(request, rules->form >= HEADERS_STRUCTURED ? NBD_EOVERFLOW : NBD_EINVAL,
               "the read is larger than the advertised maximum");
    }
}

static void check_range(const struct command_rule *command, const struct request_rules *rules,
                        struct nbd_request *request)
{
    if ((command->traits & HAS_RANGE) &&
        !range_inside(request->offset, request->length, rules->size_bytes)) {
        refuse(request, command->traits & PAST_END_IS_FULL ? NBD_ENOSPC : NBD_EINVAL,
               "the range goes past the end of the export");
    } else if (request->type == NBD_CMD_BLOCK_STATUS && request->length == 0) {
        refuse(request, NBD_EINVAL, "the status of zero bytes was asked for");
    } else {
        check_size(command, rules, request);
    }
}

static void check_filter_size(const struct request_rules *rules, struct nbd_request *request)
{
    uint64_t ids_bytes = request->payload_len - sizeof(struct wire_status_request);
    unsigned selected = (unsigned)__builtin_popcountll(rules->meta_contexts);

    if (request->payload_len <= sizeof(struct wire_status_request) ||
        ids_bytes > (uint64_t)selected * FILTER_ID_BYTES || ids_bytes % FILTER_ID_BYTES != 0) {
        refuse(request, NBD_EINVAL, "the payload is no length and list of metadata contexts");
    }
}

static void check(const struct command_rule *command, const struct request_rules *rules,
                  struct nbd_request *request)
{
    if (!command) {
        refuse(request, NBD_EINVAL, "unknown command");
    } else if (request->flags & ~(unsigned)allowed_flags(command, rules)) {
        refuse(request, NBD_EINVAL, "a flag that this command does not have here");
    } else if ((command->traits & CHANGES) && (rules->transmission_flags & NBD_FLAG_READ_ONLY)) {
        refuse(request, NBD_EPERM, "the export is read-only");
    } else if (request->type == NBD_CMD_BLOCK_STATUS && rules->meta_contexts == 0) {
        refuse(request, NBD_EINVAL, "no metadata context was selected");
    } else if (request->flags & NBD_CMD_FLAG_PAYLOAD_LEN && command->traits & MAY_SEND_FILTER) {
        check_filter_size(rules, request);
    } else {
        check_range(command, rules, request);
    }
}

static void decode_compact(const struct wire_request *wire, struct nbd_request *out)
{
    *out = (struct nbd_request){
        .cookie = get_be64(wire->cookie),
        .offset = get_be64(wire->offset),
        .length = get_be32(wire->length),
        .type = get_be16(wire->type),
        .flags = get_be16(wire->flags),
    };
}

static void decode_extended(const struct wire_extended_request *wire, struct nbd_request *out)
{
    *out = (struct nbd_request){
        .cookie = get_be64(wire->cookie),
        .offset = get_be64(wire->offset),
        .length = get_be64(wire->length),
        .type = get_be16(wire->type),
        .flags = get_be16(wire->flags),
    };
}

static void check_compact(const struct command_rule *command, const struct request_rules *rules,
                          struct nbd_request *request)
{
    if (command && (command->traits & SENDS_PAYLOAD)) {
        request->payload_len = request->length;
    }
    check(command, rules, request);
    request->hang_up = request->payload_len > DRAIN_BYTES_MAX;
}

/*
 * A WRITE's length is its payload's, said or not: QEMU's client, 8.2 to 10.0, never sets the flag
 * and sends its data all the same, as its server expects.
 */
static void check_extended(const struct command_rule *command, const struct request_rules *rules,
                           struct nbd_request *request)
{
    if ((request->flags & NBD_CMD_FLAG_PAYLOAD_LEN) ||
        (command && (command->traits & SENDS_PAYLOAD))) {
        request->payload_len = request->length;
    }
    check(command, rules, request);
    request->hang_up = request->payload_len > rules->request_bytes;
}

bool request_decode(const uint8_t *header, const struct request_rules *rules,
                    struct nbd_request *out)
{
    bool extended = rules->form == HEADERS_EXTENDED;

    if (get_be32(header) != (extended ? NBD_EXTENDED_REQUEST_MAGIC : NBD_REQUEST_MAGIC)) {
        return false;
    }
    if (extended) {
        decode_extended((const void *)header, out);
    } else {
        decode_compact((const void *)header, out);
    }
    out->meta_contexts = rules->meta_contexts;
    if (out->type == NBD_CMD_DISC) {
        return true; /* whatever else it says, the client leaves */
    }
    if (extended) {
        check_extended(command_of(out->type), rules, out);
    } else {
        check_compact(command_of(out->type), rules, out);
    }
    return true;
}

bool request_has_filter(const struct nbd_request *request)
{
    return !request->error && request->type == NBD_CMD_BLOCK_STATUS && request->payload_len > 0;
}

void request_decode_filter(const uint8_t *payload, const struct request_rules *rules,
                           struct nbd_request *request)
{
    const struct wire_status_request *wire = (const void *)payload;
    size_t ids = (size_t)(request->payload_len - sizeof(*wire)) / FILTER_ID_BYTES;
    uint64_t named = 0;

    assert(request_has_filter(request) && request->payload_len <= REQUEST_FILTER_BYTES_MAX);
    request->payload_len = 0;
    request->length = get_be64(wire->effect_length);
    for (size_t i = 0; i < ids; i++) {
        unsigned context =
            meta_context_of_id(get_be32(payload + sizeof(*wire) + i * FILTER_ID_BYTES));
        uint64_t bit = context < META_CONTEXTS_MAX ? meta_context_bit(context) : 0;
        if (!(rules->meta_contexts & bit) || named & bit) {
            refuse(request, NBD_EINVAL, "a metadata context that is not selected, or named twice");
            return;
        }
        named |= bit;
    }
    request->meta_contexts = named;
    check_range(&commands[NBD_CMD_BLOCK_STATUS], rules, request);
}
