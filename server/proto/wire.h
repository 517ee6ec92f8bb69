/* SPDX-License-Identifier: BSD-2-Clause */
/*
 * NBD as it lies on the wire: numbers, flags and layouts, each layout's size and offsets asserted.
 * Fields are byte arrays, so that a struct can be laid over any address; base/bytes.h reads and
 * writes them. Names follow doc/proto.md of NetworkBlockDevice/nbd.
 */
#ifndef QCOWD_PROTO_WIRE_H
#define QCOWD_PROTO_WIRE_H

#include <assert.h>
#include <stddef.h>
#include <stdint.h>

#define NBD_MAGIC                  0x4e42444d41474943ULL /* "NBDMAGIC" */
#define NBD_OPTION_MAGIC           0x49484156454f5054ULL /* "IHAVEOPT" */
#define NBD_OPTION_REPLY_MAGIC     0x0003e889045565a9ULL
#define NBD_REQUEST_MAGIC          0x25609513U
#define NBD_EXTENDED_REQUEST_MAGIC 0x21e41c71U
#define NBD_SIMPLE_REPLY_MAGIC     0x67446698U
#define NBD_STRUCTURED_REPLY_MAGIC 0x668e33efU
#define NBD_EXTENDED_REPLY_MAGIC   0x6e8a278cU

/* Handshake flags (server) and client flags: the same bits. */
#define NBD_FLAG_FIXED_NEWSTYLE 0x0001U
#define NBD_FLAG_NO_ZEROES      0x0002U

/* Transmission flags. */
#define NBD_FLAG_HAS_FLAGS            0x0001U
#define NBD_FLAG_READ_ONLY            0x0002U
#define NBD_FLAG_SEND_FLUSH           0x0004U
#define NBD_FLAG_SEND_FUA             0x0008U
#define NBD_FLAG_ROTATIONAL           0x0010U
#define NBD_FLAG_SEND_TRIM            0x0020U
#define NBD_FLAG_SEND_WRITE_ZEROES    0x0040U
#define NBD_FLAG_SEND_DF              0x0080U
#define NBD_FLAG_CAN_MULTI_CONN       0x0100U
#define NBD_FLAG_SEND_CACHE           0x0400U
#define NBD_FLAG_SEND_FAST_ZERO       0x0800U
#define NBD_FLAG_BLOCK_STATUS_PAYLOAD 0x1000U

enum nbd_option {
    NBD_OPT_EXPORT_NAME = 1,
    NBD_OPT_ABORT = 2,
    NBD_OPT_LIST = 3,
    NBD_OPT_STARTTLS = 5,
    NBD_OPT_INFO = 6,
    NBD_OPT_GO = 7,
    NBD_OPT_STRUCTURED_REPLY = 8,
    NBD_OPT_LIST_META_CONTEXT = 9,
    NBD_OPT_SET_META_CONTEXT = 10,
    NBD_OPT_EXTENDED_HEADERS = 11,
};

#define NBD_REP_ACK                 1U
#define NBD_REP_SERVER              2U
#define NBD_REP_INFO                3U
#define NBD_REP_META_CONTEXT        4U
#define NBD_REP_ERR_UNSUP           0x80000001U
#define NBD_REP_ERR_POLICY          0x80000002U
#define NBD_REP_ERR_INVALID         0x80000003U
#define NBD_REP_ERR_PLATFORM        0x80000004U
#define NBD_REP_ERR_TLS_REQD        0x80000005U
#define NBD_REP_ERR_UNKNOWN         0x80000006U
#define NBD_REP_ERR_SHUTDOWN        0x80000007U
#define NBD_REP_ERR_BLOCK_SIZE      0x80000008U
#define NBD_REP_ERR_TOO_BIG         0x80000009U
#define NBD_REP_ERR_EXT_HEADER_REQD 0x8000000aU

enum nbd_info {
    NBD_INFO_EXPORT = 0,
    NBD_INFO_NAME = 1,
    NBD_INFO_DESCRIPTION = 2,
    NBD_INFO_BLOCK_SIZE = 3,
};

enum nbd_command {
    NBD_CMD_READ = 0,
    NBD_CMD_WRITE = 1,
    NBD_CMD_DISC = 2,
    NBD_CMD_FLUSH = 3,
    NBD_CMD_TRIM = 4,
    NBD_CMD_CACHE = 5,
    NBD_CMD_WRITE_ZEROES = 6,
    NBD_CMD_BLOCK_STATUS = 7,
};

#define NBD_CMD_FLAG_FUA         0x0001U
#define NBD_CMD_FLAG_NO_HOLE     0x0002U
#define NBD_CMD_FLAG_DF          0x0004U
#define NBD_CMD_FLAG_REQ_ONE     0x0008U
#define NBD_CMD_FLAG_FAST_ZERO   0x0010U
#define NBD_CMD_FLAG_PAYLOAD_LEN 0x0020U

#define NBD_REPLY_FLAG_DONE 0x0001U

#define NBD_REPLY_TYPE_NONE             0U
#define NBD_REPLY_TYPE_OFFSET_DATA      1U
#define NBD_REPLY_TYPE_OFFSET_HOLE      2U
#define NBD_REPLY_TYPE_BLOCK_STATUS     5U
#define NBD_REPLY_TYPE_BLOCK_STATUS_EXT 6U
#define NBD_REPLY_TYPE_ERROR            0x8001U
#define NBD_REPLY_TYPE_ERROR_OFFSET     0x8002U

#define NBD_STATE_HOLE 0x0001U
#define NBD_STATE_ZERO 0x0002U

/* The status of qemu:dirty-bitmap:NAME (docs/interop/nbd.txt of QEMU). */
#define META_BITMAP_DIRTY 0x0001U

/*
 * The headers that the handshake settled on: each form has what those before it have. Structured
 * replaces the simple reply by chunks where there is content, extended has 64-bit lengths in both
 * directions and chunks only.
 */
enum header_form { HEADERS_SIMPLE, HEADERS_STRUCTURED, HEADERS_EXTENDED };

/* The only error numbers that may appear on the wire. */
enum nbd_error {
    NBD_SUCCESS = 0,
    NBD_EPERM = 1,
    NBD_EIO = 5,
    NBD_ENOMEM = 12,
    NBD_EINVAL = 22,
    NBD_ENOSPC = 28,
    NBD_EOVERFLOW = 75,
    NBD_ENOTSUP = 95,
    NBD_ESHUTDOWN = 108,
};

struct wire_greeting {
    uint8_t magic[8];
    uint8_t option_magic[8];
    uint8_t flags[2];
};

struct wire_option {
    uint8_t magic[8];
    uint8_t option[4];
    uint8_t length[4];
};

struct wire_option_reply {
    uint8_t magic[8];
    uint8_t option[4];
    uint8_t type[4];
    uint8_t length[4];
};

struct wire_export_name_reply {
    uint8_t size[8];
    uint8_t flags[2];
    uint8_t zeroes[124]; /* left out when NBD_FLAG_NO_ZEROES was agreed on */
};

struct wire_info_export {
    uint8_t type[2];
    uint8_t size[8];
    uint8_t flags[2];
};

struct wire_info_block_size {
    uint8_t type[2];
    uint8_t minimum[4];
    uint8_t preferred[4];
    uint8_t maximum[4];
};

struct wire_request {
    uint8_t magic[4];
    uint8_t flags[2];
    uint8_t type[2];
    uint8_t cookie[8];
    uint8_t offset[8];
    uint8_t length[4];
};

struct wire_extended_request {
    uint8_t magic[4];
    uint8_t flags[2];
    uint8_t type[2];
    uint8_t cookie[8];
    uint8_t offset[8];
    uint8_t length[8]; /* of the payload with NBD_CMD_FLAG_PAYLOAD_LEN, of the effect without */
};

/* The payload of a BLOCK_STATUS request; context ids of four bytes follow. */
struct wire_status_request {
    uint8_t effect_length[8];
};

struct wire_simple_reply {
    uint8_t magic[4];
    uint8_t error[4];
    uint8_t cookie[8];
};

struct wire_chunk {
    uint8_t magic[4];
    uint8_t flags[2];
    uint8_t type[2];
    uint8_t cookie[8];
    uint8_t length[4];
};

struct wire_extended_chunk {
    uint8_t magic[4];
    uint8_t flags[2];
    uint8_t type[2];
    uint8_t cookie[8];
    uint8_t offset[8]; /* the request's, whatever the chunk is about */
    uint8_t length[8];
};

/* What comes behind a chunk's header, of either form. */
struct wire_data {
    uint8_t offset[8];
};

struct wire_hole {
    uint8_t offset[8];
    uint8_t size[4];
};

struct wire_error {
    uint8_t error[4];
    uint8_t message_length[2];
};

struct wire_status {
    uint8_t context_id[4];
};

struct wire_status_extent {
    uint8_t length[4];
    uint8_t status[4];
};

struct wire_status_ext {
    uint8_t context_id[4];
    uint8_t count[4];
};

struct wire_status_ext_extent {
    uint8_t length[8];
    uint8_t status[8];
};

#define WIRE_SIZE(type, bytes) static_assert(sizeof(struct type) == (bytes), #type)
#define WIRE_AT(type, field, at) \
    static_assert(offsetof(struct type, field) == (at), #type "." #field)

WIRE_SIZE(wire_greeting, 18);
WIRE_AT(wire_greeting, flags, 16);
WIRE_SIZE(wire_option, 16);
WIRE_AT(wire_option, length, 12);
WIRE_SIZE(wire_option_reply, 20);
WIRE_AT(wire_option_reply, type, 12);
WIRE_AT(wire_option_reply, length, 16);
WIRE_SIZE(wire_export_name_reply, 134);
WIRE_AT(wire_export_name_reply, zeroes, 10);
WIRE_SIZE(wire_info_export, 12);
WIRE_AT(wire_info_export, flags, 10);
WIRE_SIZE(wire_info_block_size, 14);
WIRE_AT(wire_info_block_size, maximum, 10);
WIRE_SIZE(wire_request, 28);
WIRE_AT(wire_request, type, 6);
WIRE_AT(wire_request, cookie, 8);
WIRE_AT(wire_request, offset, 16);
WIRE_AT(wire_request, length, 24);
WIRE_SIZE(wire_simple_reply, 16);
WIRE_AT(wire_simple_reply, cookie, 8);
WIRE_SIZE(wire_chunk, 20);
WIRE_AT(wire_chunk, flags, 4);
WIRE_AT(wire_chunk, type, 6);
WIRE_AT(wire_chunk, cookie, 8);
WIRE_AT(wire_chunk, length, 16);
WIRE_SIZE(wire_extended_request, 32);
WIRE_AT(wire_extended_request, type, 6);
WIRE_AT(wire_extended_request, cookie, 8);
WIRE_AT(wire_extended_request, offset, 16);
WIRE_AT(wire_extended_request, length, 24);
WIRE_SIZE(wire_status_request, 8);
WIRE_SIZE(wire_extended_chunk, 32);
WIRE_AT(wire_extended_chunk, flags, 4);
WIRE_AT(wire_extended_chunk, type, 6);
WIRE_AT(wire_extended_chunk, cookie, 8);
WIRE_AT(wire_extended_chunk, offset, 16);
WIRE_AT(wire_extended_chunk, length, 24);
WIRE_SIZE(wire_data, 8);
WIRE_SIZE(wire_hole, 12);
WIRE_AT(wire_hole, size, 8);
WIRE_SIZE(wire_error, 6);
WIRE_AT(wire_error, message_length, 4);
WIRE_SIZE(wire_status, 4);
WIRE_SIZE(wire_status_extent, 8);
WIRE_SIZE(wire_status_ext, 8);
WIRE_AT(wire_status_ext, count, 4);
WIRE_SIZE(wire_status_ext_extent, 16);
WIRE_AT(wire_status_ext_extent, status, 8);

#endif
