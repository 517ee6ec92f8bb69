/* SPDX-License-Identifier: BSD-2-Clause */
/*
 * Request headers and BLOCK_STATUS filters. An input is what the handshake settled, a header and a
 * payload. Demanded: what is accepted lies inside the export, may be done there, and fits; what is
 * refused has an error that the protocol knows; both header forms agree on what is good.
 */
#include <string.h>

#include "base/bytes.h"
#include "base/limits.h"
#include "fuzz/feed.h"
#include "fuzz/fuzz.h"
#include "proto/meta.h"
#include "proto/request.h"

#define CHANGING_COMMANDS (1U << NBD_CMD_WRITE | 1U << NBD_CMD_TRIM | 1U << NBD_CMD_WRITE_ZEROES)
#define RANGE_COMMANDS \
    (CHANGING_COMMANDS | 1U << NBD_CMD_READ | 1U << NBD_CMD_CACHE | 1U << NBD_CMD_BLOCK_STATUS)

static bool is_one_of(const struct nbd_request *request, unsigned commands)
{
    return request->type < 32 && (commands >> request->type & 1U);
}

static struct request_rules take_rules(struct feed *feed)
{
    uint8_t choice = feed_u8(feed);
    uint16_t flags = feed_u16(feed);
    uint64_t size_bytes = feed_u64(feed);
    struct request_rules rules = {
        .form = (enum header_form)(choice % 3),
        .meta_contexts = choice >> 2 & ((1U << META_FIXED_COUNT) - 1),
        .transmission_flags = flags,
        .size_bytes = size_bytes,
        .request_bytes = choice & 0x80 ? 65536 : LIMIT_PAYLOAD_BYTES,
    };

    if (rules.form != HEADERS_EXTENDED) {
        rules.transmission_flags &= (uint16_t)~NBD_FLAG_BLOCK_STATUS_PAYLOAD;
    }
    return rules;
}

static void judge_refused(const struct nbd_request *request)
{
    switch ((enum nbd_error)request->error) {
    case NBD_EPERM:
    case NBD_EINVAL:
    case NBD_ENOSPC:
    case NBD_EOVERFLOW:
    case NBD_ENOTSUP:
        break;
    case NBD_SUCCESS:
    case NBD_EIO:
    case NBD_ENOMEM:
    case NBD_ESHUTDOWN:
    default:
        demand(false, "refused with error %u", request->error);
    }
    demand(request->reason, "refused without a reason");
    fuzz_demand_line("a reason", request->reason);
}

static void judge_accepted(const struct request_rules *rules, const struct nbd_request *request)
{
    demand(request->type <= NBD_CMD_BLOCK_STATUS, "command %u is accepted", request->type);
    demand(!request->hang_up || request->payload_len > 0, "an accepted request hangs up");
    if (is_one_of(request, CHANGING_COMMANDS)) {
        demand(!(rules->transmission_flags & NBD_FLAG_READ_ONLY), "%s on a read-only export",
               request_type_name(request->type));
    }
    if (is_one_of(request, RANGE_COMMANDS)) {
        demand(request->offset <= rules->size_bytes &&
                   request->length <= rules->size_bytes - request->offset,
               "outside of the export");
    }
    if (is_one_of(request, 1U << NBD_CMD_READ | 1U << NBD_CMD_WRITE)) {
        demand(request->length <= rules->request_bytes, "too long a payload");
    }
    if (request->type == NBD_CMD_WRITE) {
        demand(request->payload_len == request->length, "a WRITE of another length");
    } else {
        demand(request->payload_len == 0, "a payload that nobody reads");
    }
    if (request->type == NBD_CMD_BLOCK_STATUS) {
        demand(request->length > 0, "the status of nothing");
        demand(request->meta_contexts && !(request->meta_contexts & ~rules->meta_contexts),
               "contexts 0x%llx of 0x%llx", (unsigned long long)request->meta_contexts,
               (unsigned long long)rules->meta_contexts);
    }
    demand(!(request->flags & NBD_CMD_FLAG_FUA) || (rules->transmission_flags & NBD_FLAG_SEND_FUA),
           "FUA that was not offered");
}

/* The same request in the other form of header is as good. */
static void judge_other_form(const struct request_rules *rules, const struct nbd_request *request)
{
    struct request_rules extended = *rules;
    struct wire_extended_request wire = {0};
    struct nbd_request other;
    unsigned flags = request->flags;

    if (rules->form == HEADERS_EXTENDED) {
        return;
    }
    extended.form = HEADERS_EXTENDED;
    put_be32(wire.magic, NBD_EXTENDED_REQUEST_MAGIC);
    put_be16(wire.flags, (uint16_t)flags);
    put_be16(wire.type, request->type);
    put_be64(wire.offset, request->offset);
    put_be64(wire.length, request->length);
    bool ok = request_decode((const uint8_t *)&wire, &extended, &other);
    demand(ok, "a good magic is not taken");
    if (!(request->flags & NBD_CMD_FLAG_PAYLOAD_LEN)) {
        demand(!other.error == !request->error,
               "%s: error %u with compact, %u with extended headers",
               request_type_name(request->type), request->error, other.error);
    }
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t len)
{
    struct feed feed = {data, len};
    struct request_rules rules = take_rules(&feed);
    uint8_t header[sizeof(struct wire_extended_request)] = {0};
    uint8_t payload[REQUEST_FILTER_BYTES_MAX] = {0};
    struct nbd_request request;
    size_t got;

    const uint8_t *bytes = feed_bytes(&feed, request_header_bytes(&rules), &got);
    memcpy(header, bytes, got);
    if (!request_decode(header, &rules, &request)) {
        return 0;
    }
    demand(request.cookie == get_be64(header + 8), "another cookie");
    if (request_has_filter(&request)) {
        demand(request.payload_len <= sizeof(payload), "a filter of %llu bytes",
               (unsigned long long)request.payload_len);
        bytes = feed_bytes(&feed, (size_t)request.payload_len, &got);
        memcpy(payload, bytes, got);
        request_decode_filter(payload, &rules, &request);
        demand(!request_has_filter(&request), "a filter that stays");
    }
    if (request.type == NBD_CMD_DISC) {
        demand(!request.error, "DISC is refused");
    } else if (request.error) {
        judge_refused(&request);
        judge_other_form(&rules, &request);
    } else {
        judge_accepted(&rules, &request);
        judge_other_form(&rules, &request);
    }
    demand(request.payload_len <= 2ULL * LIMIT_PAYLOAD_BYTES || request.hang_up,
           "%llu bytes to drain", (unsigned long long)request.payload_len);
    return 0;
}
