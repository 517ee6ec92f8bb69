/* SPDX-License-Identifier: BSD-2-Clause */
/*
 * What the protocol's tests stand on: streams in memory, a clock that stands still until it is
 * moved, and an image in memory whose operations can be held and let go in any order.
 */
#ifndef QCOWD_PROTO_TEST_RIG_H
#define QCOWD_PROTO_TEST_RIG_H

#include <check.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "proto/nbd.h"
#include "proto/wire.h"

#define RIG_IMAGE_BYTES (4U << 20)
#define RIG_UNIT_BYTES  4096U
#define RIG_TIMERS_MAX  32U
#define RIG_BITMAPS_MAX 100U
#define RIG_BITMAP_ID   100U
#define MS              1000000ULL

/* The client's end of a connection, and the stream that the server has. */
struct client {
    struct stream stream;
    uint8_t *to_server;
    size_t to_server_len, to_server_at, to_server_capacity;
    bool half_closed;    /* the client sends no more */
    bool gone;           /* neither sends nor reads */
    size_t deliver_most; /* bytes in one receive */
    uint8_t *from_server;
    size_t from_server_len, from_server_at, from_server_capacity;
    size_t window; /* the server's send waits when so many bytes are unread */
    struct wait_queue receiving, sending;
    bool recv_ended;
    bool aborted;
    bool closed;
    const char *refusal; /* NULL: co_nbd_serve(), else co_nbd_refuse() */
    bool returned;       /* that has */
    unsigned sends;
    bool extended; /* set by client_enter() */
    struct rig *rig;
};

/* One operation on the fake image, while it is held. */
struct held_op {
    struct list link;
    struct wait_queue queue;
    char what; /* 'r' 'w' 'z' 't' 'f' 'e' */
    uint64_t offset;
};

struct fake_image {
    struct image image;
    uint8_t bytes[RIG_IMAGE_BYTES];
    uint8_t extent_flags[RIG_IMAGE_BYTES / RIG_UNIT_BYTES]; /* EXTENT_* */
    uint8_t depth[RIG_IMAGE_BYTES / RIG_UNIT_BYTES];
    /* Named "b0", "b1", ...; number n has every (n + 2)nd unit dirty. Their ids begin with 100. */
    size_t bitmap_count;
    uint64_t removed_bitmap_id; /* 0: none is */
    bool hold;
    struct list held;
    int fail; /* -errno of every operation, 0: none */
    unsigned reads, writes, zeroes, trims, flushes, statuses;
    unsigned last_flags;
};

struct rig {
    struct world world;
    uint64_t now_ns;
    struct world_timer *timers[RIG_TIMERS_MAX];
    struct budget budget;
    struct nbd_service service;
    struct nbd_export exports[3];
    struct fake_image *disk;
    void (*turn_fn)(void *arg);
    void *turn_arg;
    bool drained;
    uint64_t grace_ns;
};

/*
 * Exports: "" on disk (writable, multi_conn), "ro" the same read-only with a description, "other".
 */
struct rig *rig_create(void);
/* Every client must have been closed by the server. */
void rig_free(struct rig *rig);
/* Until nothing is ready. */
void rig_run(struct rig *rig);
void rig_advance(struct rig *rig, uint64_t ns);
/* Lets the held operation number `index` go. */
void rig_release(struct rig *rig, unsigned index);
void rig_release_all(struct rig *rig);
unsigned rig_held(const struct rig *rig);
/* Starts co_nbd_drain(). rig->drained tells when it is over. */
void rig_drain(struct rig *rig, uint64_t grace_ns);

struct client *client_create(struct rig *rig);
struct client *client_create_refused(struct rig *rig, const char *why);
void client_free(struct client *client);
void client_send(struct client *client, const void *bytes, size_t len);
size_t client_unread(const struct client *client);
/* Asserts that so many bytes are there. */
const uint8_t *client_take(struct client *client, size_t len);
void client_vanish(struct client *client);
void client_half_close(struct client *client);
/* The server has hung up, and sent nothing that was not taken. */
void client_expect_closed(struct client *client);

/* The handshake's words. */
void client_greet(struct client *client, uint32_t flags);
void client_option(struct client *client, uint32_t option, const void *payload, size_t len);
/* Takes one option reply, asserts its type, returns the payload. */
const uint8_t *client_option_reply(struct client *client, uint32_t option, uint32_t type,
                                   size_t *len);
/* Payload of INFO and GO; of the meta context options. Both return its length. */
size_t pack_go(uint8_t *out, const char *name, const uint16_t *infos, unsigned count);
size_t pack_meta(uint8_t *out, const char *name, const char *const *queries, unsigned count);
void client_go(struct client *client, const char *name);

enum { SIMPLE, STRUCTURED, WITH_CONTEXTS, EXTENDED, EXTENDED_WITH_CONTEXTS };
/* Into transmission of export `name`, by GO. */
struct client *client_enter(struct rig *rig, const char *name, int how);

/* Transmission's words. */
void pack_request(uint8_t *out, uint16_t type, uint16_t flags, uint64_t cookie, uint64_t offset,
                  uint32_t len);
void client_request(struct client *client, uint16_t type, uint16_t flags, uint64_t cookie,
                    uint64_t offset, uint32_t len);
/* With extended headers. */
void pack_extended(uint8_t *out, uint16_t type, uint16_t flags, uint64_t cookie, uint64_t offset,
                   uint64_t len);
void client_extended(struct client *client, uint16_t type, uint16_t flags, uint64_t cookie,
                     uint64_t offset, uint64_t len);
void client_expect_simple(struct client *client, uint64_t cookie, uint32_t error);
struct chunk {
    uint16_t flags;
    uint16_t type;
    uint64_t cookie;
    uint64_t offset; /* extended headers only */
    uint64_t length;
    const uint8_t *payload;
};
struct chunk client_chunk(struct client *client);
/* A success without content, in one chunk. */
void client_expect_none(struct client *client, uint64_t cookie);
void client_expect_error_chunk(struct client *client, uint64_t cookie, uint32_t error);

#endif
