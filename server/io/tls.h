/* SPDX-License-Identifier: BSD-2-Clause */
/*
 * TLS for servers: the credentials, and a stream that speaks TLS over another stream.
 *
 * Credentials are read into memory whole when they are loaded and when somebody asks for it again;
 * no file is opened for a handshake. A session keeps the keys it began with, however often they are
 * replaced meanwhile.
 *
 * Who a client has proved to be is its stream's `identity`: "dn:" and the distinguished name of a
 * certificate that was verified (RFC 4514: "dn:CN=vm1,O=Example"), or "psk:" and the username of
 * its pre-shared key.
 */
#ifndef QCOWD_IO_TLS_H
#define QCOWD_IO_TLS_H

#include <stdbool.h>

#include "base/errtext.h"
#include "io/stream.h"
#include "io/world.h"

struct tls;

/* Strings are the caller's, and live as long as the struct tls. */
struct tls_config {
    /*
     * A directory with server-cert.pem, server-key.pem, ca-cert.pem (needed to verify peers) and,
     * if there is one, ca-crl.pem. NULL: no certificates.
     */
    const char *certificates;
    /* Lines "username:key in hexadecimal digits". NULL: no pre-shared keys. */
    const char *psk_file;
    /* As GnuTLS writes it. NULL: the server's own order, AES-GCM first where the processor has AES.
     */
    const char *priority;
    /* Clients that come with no pre-shared key must show a certificate that the CA has signed. */
    bool verify_peer;
    /*
     * Who may come in; none named: whoever gets through the handshake. "dn:NAME" and "psk:NAME" are
     * compared with the identity, byte for byte; a NAME without either with both kinds.
     */
    const char *const *allowed;
    unsigned allowed_count;
};

/*
 * Loads the credentials; blocks on small files. At least one kind must be configured. Not to be
 * called in a coroutine. 0, or -errno with nothing left behind; err names the file and what is
 * wrong with it.
 */
int tls_create(struct tls **out, const struct tls_config *config, struct errtext *err);

/*
 * Loads them again, on a worker: new sessions use them from its return on. On failure those of
 * before stay in force, and err says why. One call at a time. May suspend.
 */
int co_tls_reload(struct tls *tls, struct world *world, struct errtext *err);

/* Sessions may outlive it. NULL is fine. */
void tls_free(struct tls *tls);

/*
 * The server's side of a TLS handshake over `inner`. Success: *out is a stream that takes over
 * inner. Failure: -errno, err says why; inner stays the caller's, to be closed, and the peer has
 * been sent an alert where there is one for the case. Aborting inner ends the wait.
 */
int co_tls_accept(struct tls *tls, struct world *world, struct stream *inner, struct stream **out,
                  struct errtext *err);

#endif
