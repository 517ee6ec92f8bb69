/* SPDX-License-Identifier: BSD-2-Clause */
/*
 * The transmission phase of one connection: requests in, commands run, replies out.
 */
#ifndef QCOWD_PROTO_TRANSMIT_H
#define QCOWD_PROTO_TRANSMIT_H

#include "proto/conn.h"

/*
 * A connection's bytes beside the common budget; READ and WRITE up to this size never wait for it.
 */
#define CONNECTION_RESERVE_BYTES (256U * 1024U)

/* Reads and starts requests until the peer leaves, errs, or the connection is aborted. */
void co_transmit(struct connection *conn);

/* Waits until every command has ended and its reply was sent or dropped. */
void co_transmit_finish(struct connection *conn);

/* Something is in flight, or waits for its turn. */
bool transmit_is_busy(const struct connection *conn);

/* When the service drains and nothing accepted is left: ends the connection. Does not suspend. */
void transmit_leave_if_drained(struct connection *conn);

void transmit_free_spares(struct nbd_service *service);

/* conn.c's: count the readers that wait for the common budget, and keep the watch on while any
 * does. */
void nbd_budget_waiter_came(struct nbd_service *service);
void nbd_budget_waiter_went(struct nbd_service *service);

#endif
