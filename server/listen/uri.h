/* SPDX-License-Identifier: BSD-2-Clause */
/*
 * How clients name an export: NBD URIs (doc/uri.md of NetworkBlockDevice/nbd), and the older
 * "nbd:..." form that QEMU also understands. All return malloc'ed text, NULL on out of memory.
 */
#ifndef QCOWD_LISTEN_URI_H
#define QCOWD_LISTEN_URI_H

#include <stdbool.h>
#include <stdint.h>

/* nbd+unix:///NAME?socket=PATH; nbds+unix where the client is to use TLS. */
char *uri_unix(bool tls, const char *socket_path, const char *export_name);
/* nbd://HOST:PORT/NAME, or nbds://; an IPv6 address gets its brackets here. */
char *uri_tcp(bool tls, const char *host, uint16_t port, const char *export_name);

/* nbd+vsock://CID:PORT/NAME, or nbds+vsock://. */
char *uri_vsock(bool tls, uint32_t cid, uint32_t port, const char *export_name);

/* nbd:unix:PATH:exportname=NAME and nbd:HOST:PORT:exportname=NAME; nothing is escaped in
 * them, and TLS has no place there. */
char *old_uri_unix(const char *socket_path, const char *export_name);
char *old_uri_tcp(const char *host, uint16_t port, const char *export_name);

#endif
