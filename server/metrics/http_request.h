/* SPDX-License-Identifier: BSD-2-Clause */
/*
 * The head of an HTTP/1 request (RFC 9112), as far as a server needs it that has one page, wants no
 * body and closes after its answer. Pure.
 */
#ifndef QCOWD_METRICS_HTTP_REQUEST_H
#define QCOWD_METRICS_HTTP_REQUEST_H

#include <stdbool.h>
#include <stddef.h>

#define HTTP_HEAD_BYTES_MAX 8192U

enum http_verdict {
    HTTP_MORE,        /* the head is not whole yet */
    HTTP_METRICS,     /* GET or HEAD of /metrics */
    HTTP_FRONT_PAGE,  /* of / */
    HTTP_NOT_FOUND,   /* of something else */
    HTTP_NOT_ALLOWED, /* another method */
    HTTP_BAD,         /* no HTTP/1 */
    HTTP_TOO_LONG,    /* HTTP_HEAD_BYTES_MAX bytes, and not whole */
};

struct http_request {
    char head[HTTP_HEAD_BYTES_MAX];
    size_t len;
    bool head_only; /* HEAD: the answer has no body */
};

/* Where the next bytes of the head go, and how many there is room for. */
static inline size_t http_request_room(const struct http_request *request)
{
    return sizeof(request->head) - request->len;
}

/* Looks at `got` more bytes behind those that were there. */
enum http_verdict http_request_take(struct http_request *request, size_t got);

#endif
