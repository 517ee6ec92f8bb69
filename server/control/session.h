/* SPDX-License-Identifier: BSD-2-Clause */
/*
 * One client of the control socket, from greeting to goodbye. Knows no command: they are handed to
 * it as a table's look-up, so that the way from bytes to replies can be tested and fuzzed by
 * itself.
 */
#ifndef QCOWD_CONTROL_SESSION_H
#define QCOWD_CONTROL_SESSION_H

#include "control/commands.h"
#include "control/framing.h"
#include "io/stream.h"
#include "io/world.h"

/* What may wait for a client to be read; more, and it is cut. */
#define CONTROL_UNREAD_BYTES_MAX (4U * 1024U * 1024U)
/* For the first command, for the rest of an object, and for reading something. */
#define CONTROL_PATIENCE_MS 10000U

struct session {
    struct list link; /* in control->clients */
    struct control *control;
    struct world *world;
    struct stream *stream;
    struct framing framing;
    char *object; /* the one that is coming in; NULL: none */
    size_t object_len;
    bool negotiated; /* qmp_capabilities has been said: commands are taken, events sent */
    bool ending;     /* nothing more is said to it but what waits */
    bool cut;
    char *unread; /* what waits to be sent */
    size_t unread_len;
    size_t unread_capacity;
    struct wait_queue to_send;
    bool sender_running;
    struct wait_queue sender_gone;
    struct world_timer hearing; /* it has to say something by then */
    struct world_timer reading; /* it has to read something by then */
};

/* Takes the stream over, on success. NULL: out of memory. */
struct session *session_create(struct control *control, struct world *world, struct stream *stream);
/* Serves it until it leaves, is cut, or session_end(). Closes and frees. May suspend. */
void co_session_serve(struct session *session);

/* An event, if it has negotiated. Takes over nothing. Does not suspend. */
void session_say(struct session *session, json_t *event);
/* It is told nothing more, and hears what waits until it is cut. Does not suspend. */
void session_end(struct session *session);
/* At once. Does not suspend. */
void session_cut(struct session *session, const char *why);

#endif
