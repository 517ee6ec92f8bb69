/* SPDX-License-Identifier: BSD-2-Clause */
/*
 * What every stream can do on top of its four operations.
 */
#include "io/stream.h"

#include <errno.h>

int co_stream_recv_all(struct stream *stream, void *buf, size_t len)
{
    char *at = buf;
    size_t left = len;

    while (left > 0) {
        ssize_t got = stream->ops->co_recv(stream, at, left);
        if (got < 0) {
            return (int)got;
        }
        if (got == 0) {
            return left == len ? -ENODATA : -ECONNRESET;
        }
        at += got;
        left -= (size_t)got;
    }
    return 0;
}
