/* SPDX-License-Identifier: BSD-2-Clause */
/*
 * A byte stream to one peer: socket, stdio pair, TLS session, or a pipe in memory for tests. The
 * protocol floor speaks to peers through this only.
 */
#ifndef QCOWD_IO_STREAM_H
#define QCOWD_IO_STREAM_H

#include <netinet/in.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <sys/types.h>
#include <sys/uio.h>

struct stream;
struct world;

struct stream_ops {
    /*
     * Receives at least one and at most `len` bytes. Returns the count; 0 at the end of the stream;
     * -errno (-ECONNRESET, -ESHUTDOWN after stream_abort). One receiver at a time.
     */
    ssize_t (*co_recv)(struct stream *stream, void *buf, size_t len);
    /*
     * Sends all of it, in order, or fails. One sender at a time. `more` is a hint that another send
     * follows at once. May change the iovec array. Returns 0 or -errno (-EPIPE, -ECONNRESET,
     * -ESHUTDOWN).
     */
    int (*co_send)(struct stream *stream, struct iovec *iov, int iov_count, bool more);
    /*
     * Ends receiving: what waits in co_recv, and every later call, returns what has come already or
     * the end of the stream. Sending goes on. Does not suspend; may be called more than once.
     */
    void (*end_recv)(struct stream *stream);
    /*
     * Ends both directions at once: what waits in co_recv or co_send returns -ESHUTDOWN (or end of
     * stream). Does not suspend; may be called more than once.
     */
    void (*abort)(struct stream *stream);
    /*
     * A number that changes while bytes move in either direction, as far as the system shows it: by
     * Unix sockets in pieces of up to 64 KiB, by others not at all, where it changes each time.
     * NULL: it is never known. Does not suspend.
     */
    uint64_t (*progress)(struct stream *stream);
    /*
     * From here on the stream is used by the thread of this world's loop, and by no other. Nothing
     * may be waiting in it. NULL where there is only one world. Does not suspend.
     */
    void (*move)(struct stream *stream, struct world *world);
    /*
     * Says goodbye where the transport has a word for it (TLS close_notify, shutdown of the sending
     * side), closes and frees. Nothing may be waiting in it. May suspend, briefly.
     */
    void (*co_close)(struct stream *stream);
};

enum stream_origin_kind {
    ORIGIN_UNKNOWN, /* the system would not tell */
    ORIGIN_STDIO,
    ORIGIN_UNIX,
    ORIGIN_IP,
    ORIGIN_VSOCK,
};

/* Where a peer comes from, as the system told when it came. */
struct stream_origin {
    enum stream_origin_kind kind;
    union {
        struct {
            uid_t user;
            gid_t group;
            unsigned more_count;
            gid_t *more;         /* supplementary groups */
        } local;                 /* ORIGIN_UNIX */
        struct in6_addr address; /* ORIGIN_IP; IPv4 is mapped (::ffff:a.b.c.d) */
        uint32_t vsock_cid;      /* ORIGIN_VSOCK */
    };
};

struct stream {
    const struct stream_ops *ops;
    /* Who it is, for logs: "unix", "127.0.0.1:40312", "stdio". Lives as long as the stream. */
    const char *peer;
    /* Who it has proved to be (io/tls.h); NULL: nobody has asked. Lives as long as the stream. */
    const char *identity;
    /* NULL: as ORIGIN_UNKNOWN. Lives as long as the stream. */
    const struct stream_origin *origin;
};

/* Receives exactly len bytes: 0; -ENODATA at a clean end before the first byte; -ECONNRESET at an
 * end in the middle; or co_recv's error. */
int co_stream_recv_all(struct stream *stream, void *buf, size_t len);

#endif
