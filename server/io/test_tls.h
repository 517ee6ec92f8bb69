/* SPDX-License-Identifier: BSD-2-Clause */
/*
 * What the tests of TLS stand on: a stream in memory with a GnuTLS client at its other end, a world
 * whose clock stands still, and keys made on the spot.
 */
#ifndef QCOWD_IO_TEST_TLS_H
#define QCOWD_IO_TEST_TLS_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include <gnutls/gnutls.h>

#include "io/tls.h"
#include "sched/sync.h"

struct bytes {
    uint8_t *bytes;
    size_t begin;
    size_t end;
    size_t capacity;
};

/* The server's inner stream, and what the client sees of it. */
struct memory_stream {
    struct stream stream;
    struct bytes to_server;
    struct bytes to_client;
    size_t deliver_most; /* bytes in one receive */
    size_t window;       /* a send waits while so many bytes are unread */
    bool client_gone;    /* end of the stream */
    bool recv_ended;
    bool aborted;
    bool closed;
    unsigned sends;
    struct wait_queue receiving;
    struct wait_queue sending;
};

struct memory_stream *memory_stream_create(void);
void memory_stream_free(struct memory_stream *memory);
void memory_send(struct memory_stream *memory, const void *bytes, size_t len);
void memory_client_leaves(struct memory_stream *memory);
/* Makes room for the server: forgets what it sent. */
void memory_discard(struct memory_stream *memory);

/* co_work calls on the driver's stack; timers are kept, and fired by the test. */
struct test_world {
    struct world world;
    struct world_timer *timer; /* the armed one */
    unsigned works;
};
void test_world_init(struct test_world *world);

/* A client session over it; `priorities` NULL: GnuTLS's own. */
struct tls_client {
    gnutls_session_t session;
    gnutls_certificate_credentials_t certificates;
    gnutls_psk_client_credentials_t psk;
    struct memory_stream *memory;
};
void tls_client_init(struct tls_client *client, struct memory_stream *memory,
                     const char *priorities);
void tls_client_use_psk(struct tls_client *client, const char *user, const char *hex_key);
void tls_client_use_certificate(struct tls_client *client, const char *directory, const char *name);
void tls_client_free(struct tls_client *client);

/* A new temporary directory, and the end of it. */
char *make_directory(void);
void remove_directory(char *directory);
void write_file(const char *directory, const char *name, unsigned mode, const char *text);

/*
 * A CA in DIR: ca-cert.pem. Certificates signed by it: NAME-cert.pem and NAME-key.pem, for the
 * given purpose, valid from now + from_s to now + to_s; the subject is "CN=<name>,O=Test".
 */
struct test_ca;
struct test_ca *test_ca_create(const char *directory);
void test_ca_issue(struct test_ca *ca, const char *directory, const char *name, const char *purpose,
                   long from_s, long to_s);
/* ca-crl.pem that revokes the certificate issued last. */
void test_ca_revoke_last(struct test_ca *ca, const char *directory);
void test_ca_free(struct test_ca *ca);

#endif
