/* SPDX-License-Identifier: BSD-2-Clause */
#include "metrics/http_request.h"

#include <string.h>

/* Whether the head ends in what has come: an empty line, by CRLF or, as many are lenient, by LF. */
static bool is_whole(const struct http_request *request)
{
    const char *end = request->head + request->len;

    for (const char *at = request->head; (at = memchr(at, '\n', (size_t)(end - at))) != NULL;) {
        at++;
        if (at < end && *at == '\n') {
            return true;
        }
        if (end - at >= 2 && at[0] == '\r' && at[1] == '\n') {
            return true;
        }
    }
    return false;
}

static bool begins(const char *at, size_t len, const char *word)
{
    return len >= strlen(word) && memcmp(at, word, strlen(word)) == 0;
}

static bool is_path(const char *at, size_t len, const char *path)
{
    /* A query says nothing here. */
    return begins(at, len, path) && (len == strlen(path) || at[strlen(path)] == '?');
}

static enum http_verdict judge(struct http_request *request)
{
    const char *line = request->head;
    const char *line_end = memchr(line, '\n', request->len);
    const char *path = memchr(line, ' ', (size_t)(line_end - line));

    if (!path || path == line) {
        return HTTP_BAD;
    }
    size_t method_len = (size_t)(path - line);
    path++;
    const char *path_end = memchr(path, ' ', (size_t)(line_end - path));
    if (!path_end || path_end == path ||
        !begins(path_end + 1, (size_t)(line_end - path_end - 1), "HTTP/1.")) {
        return HTTP_BAD;
    }
    size_t path_len = (size_t)(path_end - path);
    request->head_only = method_len == 4 && begins(line, method_len, "HEAD");
    if (!request->head_only && !(method_len == 3 && begins(line, method_len, "GET"))) {
        return HTTP_NOT_ALLOWED;
    }
    if (is_path(path, path_len, "/metrics")) {
        return HTTP_METRICS;
    }
    return is_path(path, path_len, "/") ? HTTP_FRONT_PAGE : HTTP_NOT_FOUND;
}

enum http_verdict http_request_take(struct http_request *request, size_t got)
{
    request->len += got;
    if (is_whole(request)) {
        return judge(request);
    }
    return request->len == sizeof(request->head) ? HTTP_TOO_LONG : HTTP_MORE;
}
