/* SPDX-License-Identifier: BSD-2-Clause */
/*
 * One table says what each command is; the checks run over it in a fixed order: command, flags,
 * permission, range, size. The first that fails names the error.
 */
#include "proto/request.h"

#include "base/bytes.h"
#include "base/check.h"
#include "base/limits.h"
#include "proto/wire.h"

/* A refused payload up to this size is read and thrown away; more ends the connection. */
#define DRAIN_BYTES_MAX (2ULL * LIMIT_PAYLOAD_BYTES)

enum command_traits {
    CHANGES = 1U << 0,          /* refused on a read-only export */
    HAS_RANGE = 1U << 1,        /* offset and length must lie inside the export */
    SENDS_PAYLOAD = 1U << 2,    /* client to server */
    WANTS_PAYLOAD = 1U << 3,    /* server to client */
    PAST_END_IS_FULL = 1U << 4, /* past the end: ENOSPC, not EINVAL */
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
    [NBD_CMD_BLOCK_STATUS] = {"BLOCK_STATUS", HAS_RANGE, NBD_CMD_FLAG_REQ_ONE},
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
    (void)rules;
    return sizeof(struct wire_request);
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
    return (uint16_t)allowed;
}

static void check_size(const struct command_rule *command, const struct request_rules *rules,
                       struct nbd_request *request)
{
    if (request->length <= LIMIT_PAYLOAD_BYTES) {
        return;
    }
    if (command->traits & SENDS_PAYLOAD) {
        refuse(request, NBD_EINVAL, "the payload is larger than the advertised maximum");
    } else if (command->traits & WANTS_PAYLOAD) {
        /* EOVERFLOW is documented for reads where DF exists, and nowhere else. */
        refuse(request, rules->structured ? NBD_EOVERFLOW : NBD_EINVAL,
               "the read is larger than the advertised maximum");
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
    } else if ((command->traits & HAS_RANGE) &&
               !range_inside(request->offset, request->length, rules->size_bytes)) {
        refuse(request, command->traits & PAST_END_IS_FULL ? NBD_ENOSPC : NBD_EINVAL,
               "the range goes past the end of the export");
    } else if (request->type == NBD_CMD_BLOCK_STATUS && !rules->block_status) {
        refuse(request, NBD_EINVAL, "no metadata context was selected");
    } else if (request->type == NBD_CMD_BLOCK_STATUS && request->length == 0) {
        refuse(request, NBD_EINVAL, "the status of zero bytes was asked for");
    } else {
        check_size(command, rules, request);
    }
}

bool request_decode(const uint8_t *header, const struct request_rules *rules,
                    struct nbd_request *out)
{
    const struct wire_request *wire = (const void *)header;

    if (get_be32(wire->magic) != NBD_REQUEST_MAGIC) {
        return false;
    }
    *out = (struct nbd_request){
        .cookie = get_be64(wire->cookie),
        .offset = get_be64(wire->offset),
        .length = get_be32(wire->length),
        .type = get_be16(wire->type),
        .flags = get_be16(wire->flags),
    };
    if (out->type == NBD_CMD_DISC) {
        return true; /* whatever else it says, the client leaves */
    }
    const struct command_rule *command = command_of(out->type);
    if (command && (command->traits & SENDS_PAYLOAD)) {
        out->payload_len = out->length;
    }
    check(command, rules, out);
    out->hang_up = out->payload_len > DRAIN_BYTES_MAX;
    return true;
}
