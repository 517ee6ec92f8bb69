/* SPDX-License-Identifier: BSD-2-Clause */
/*
 * One loaded set of credentials, shared by the sessions that began with it. Private to the two
 * rooms of TLS. Immutable but for the count of references, which is the loop thread's: workers only
 * read it.
 */
#ifndef QCOWD_IO_TLS_KEYS_H
#define QCOWD_IO_TLS_KEYS_H

#include <gnutls/gnutls.h>

#include "io/tls.h"

struct tls_keys;

/* A set for a new session; given back with tls_keys_release(). */
struct tls_keys *tls_keys_hold(struct tls *tls);
void tls_keys_release(struct tls_keys *keys);

/* Prepares a server session for these keys; they must outlive it. A GnuTLS error code. */
int tls_keys_apply(struct tls_keys *keys, gnutls_session_t session);

bool tls_keys_verify_peer(const struct tls_keys *keys);

/* Whether `identity` (NULL: none) is among the allowed. */
bool tls_is_allowed(const struct tls *tls, const char *identity);

#endif
