/* SPDX-License-Identifier: BSD-2-Clause */
/*
 * One connection: its life, what the handshake settled, and what transmission has in flight.
 *
 *     GREETING -> OPTIONS -> TRANSMISSION -> CLOSING -> CLOSED
 *
 * Any state may go to CLOSING. One coroutine, co_nbd_serve(), walks through all states and is the
 * only one that receives; requests run in their own, and a sender exists while there is something
 * to send. Whatever it waits for ends by itself or by connection_abort(), which timers and draining
 * use: no wait outlives its deadline.
 */
#ifndef QCOWD_PROTO_CONN_H
#define QCOWD_PROTO_CONN_H

#include "base/list.h"
#include "proto/input.h"
#include "proto/nbd.h"
#include "proto/request.h"

enum connection_state {
    CONNECTION_GREETING,
    CONNECTION_OPTIONS,
    CONNECTION_TRANSMISSION,
    CONNECTION_CLOSING,
    CONNECTION_CLOSED,
};

struct connection {
    struct list link; /* in service->connections */
    struct nbd_service *service;
    struct stream *stream;
    enum connection_state state;
    uint32_t client_flags;
    bool aborted;   /* the stream is dead: nothing more will be sent */
    bool leaving;   /* receiving has been ended */
    bool dismissed; /* told to go: what is in flight is finished, and nothing begun */
    /* When it must have gone, by the thread of the handshakes; 0: it has not been told to. */
    _Atomic uint64_t leave_by_ns;
    bool secure;              /* TLS is on */
    bool between_options;     /* nothing of the next option has come yet */
    bool starting_tls;        /* in the middle of TLS's own handshake */
    const char *refusal;      /* why it is let in only to hear that it is not; NULL: it is let in */
    struct world_timer timer; /* the handshake's deadline; idleness; a slow goodbye */
    struct world_timer dismissal_timer; /* when its grace is over; armed while dismissed */
    struct input input;

    /* What the handshake settled. */
    struct nbd_export *chosen; /* held */
    struct list user_link;     /* in chosen->users */
    enum header_form form;
    uint64_t meta_contexts;         /* a set (meta.h) */
    uint64_t *meta_bitmap_ids;      /* of the image's bitmaps among them, in order; owned */
    struct nbd_export *meta_export; /* the one they were selected for; held */
    struct request_rules rules;

    /* Transmission. */
    bool noted_bare_write;  /* a WRITE without its payload's flag has been logged */
    unsigned in_flight;     /* commands that exist */
    unsigned accepted;      /* those of them that draining waits for */
    uint64_t idle_since_ns; /* the last time that something was in flight; kept with an idle_ms */
    struct rate_client rate;
    uint64_t payload_bytes;
    uint64_t reserve_bytes; /* of those, in the connection's own reserve */
    struct wait_queue room; /* the reader, when in_flight or payload_bytes are at their limit */
    struct wait_queue idle; /* the reader, when it waits for the last command */
    struct list replies;    /* commands whose reply waits to be sent */
    struct list send_link;  /* in service->to_send */
    bool sender_running;
    /* When the present payload or batch of replies, a wait for the peer, counts as stalled; 0:
     * none. */
    uint64_t receive_stalls_ns;
    uint64_t send_stalls_ns;
    bool receives_payload; /* and waits for the peer */
    /* While the service drains: what the stream's progress was, and when it last changed. */
    uint64_t progress;
    uint64_t progressed_ns;
};

/* Ends both directions; nothing is sent any more. `why` goes to the log. Does not suspend. */
void connection_abort(struct connection *conn, const char *why);

/*
 * Ends receiving: what has come is answered, and then the connection is closed in order, with TLS's
 * goodbye. Does not suspend.
 */
void connection_leave(struct connection *conn, const char *why);

/*
 * Nothing is begun any more, be it that the service drains or that this connection was told to go.
 */
static inline bool connection_draining(const struct connection *conn)
{
    return conn->dismissed || conn->service->draining;
}

/* Whether the export is there for this client. */
bool connection_sees(const struct connection *conn, const struct nbd_export *export);

/*
 * The moment from which on a wait for the peer to move so many bytes counts as stalled: a fixed
 * time and a minimum rate.
 */
uint64_t connection_stall_time(const struct connection *conn, uint64_t bytes);

/* One line about this peer: what it did wrong; and what else it did, for those who debug. */
void connection_complain(const struct connection *conn, const char *format, ...)
    __attribute__((format(printf, 2, 3)));
void connection_note(const struct connection *conn, const char *format, ...)
    __attribute__((format(printf, 2, 3)));

#endif
