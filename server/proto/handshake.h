/* SPDX-License-Identifier: BSD-2-Clause */
/*
 * Fixed newstyle negotiation: greeting, then options until one of them chooses an export.
 */
#ifndef QCOWD_PROTO_HANDSHAKE_H
#define QCOWD_PROTO_HANDSHAKE_H

#include "proto/conn.h"

/* Sends the greeting, reads the client's flags. False: disconnect. */
bool co_handshake_greet(struct connection *conn);

/*
 * Answers options. True when one has chosen an export: conn->chosen and conn->rules are set, and
 * the client's next byte belongs to transmission. False: disconnect.
 */
bool co_handshake_options(struct connection *conn);

#endif
