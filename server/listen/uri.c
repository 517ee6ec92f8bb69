/* SPDX-License-Identifier: BSD-2-Clause */
/*
 * Everything but RFC 3986's unreserved characters and the slash is escaped, wherever it stands:
 * more than the grammar asks for, and right in every part of a URI.
 */
#include "listen/uri.h"

#include <stdarg.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static bool is_plain(unsigned char byte)
{
    return (byte >= 'a' && byte <= 'z') || (byte >= 'A' && byte <= 'Z') ||
           (byte >= '0' && byte <= '9') || (byte != 0 && strchr("-._~/", byte));
}

static char *escape(const char *text)
{
    char *escaped = malloc(3 * strlen(text) + 1);
    char *to = escaped;
    if (!escaped) {
        return NULL;
    }
    for (const unsigned char *from = (const unsigned char *)text; *from != 0; from++) {
        if (is_plain(*from)) {
            *to++ = (char)*from;
        } else {
            to += sprintf(to, "%%%02X", *from);
        }
    }
    *to = '\0';
    return escaped;
}

__attribute__((format(printf, 1, 2))) static char *format_text(const char *format, ...)
{
    va_list args;
    char *text;
    va_start(args, format);
    int len = vasprintf(&text, format, args);
    va_end(args);
    return len < 0 ? NULL : text;
}

/* The letter that a URI's scheme has for TLS. */
static const char *tls_letter(bool tls)
{
    return tls ? "s" : "";
}

char *uri_unix(bool tls, const char *socket_path, const char *export_name)
{
    char *name = escape(export_name);
    char *path = escape(socket_path);
    char *uri = name && path
                    ? format_text("nbd%s+unix:///%s?socket=%s", tls_letter(tls), name, path)
                    : NULL;
    free(path);
    free(name);
    return uri;
}

char *uri_tcp(bool tls, const char *host, uint16_t port, const char *export_name)
{
    /* The brackets keep an address's colons apart from the port's; a zone's '%' is escaped. */
    bool is_ipv6 = strchr(host, ':') != NULL;
    const char *zone = is_ipv6 ? strchr(host, '%') : NULL;
    char *name = escape(export_name);
    char *host_name = escape(is_ipv6 ? (zone ? zone : "") : host);
    char *uri = NULL;
    if (name && host_name && is_ipv6) {
        int address_len = zone ? (int)(zone - host) : (int)strlen(host);
        uri = format_text("nbd%s://[%.*s%s]:%u/%s", tls_letter(tls), address_len, host, host_name,
                          port, name);
    } else if (name && host_name) {
        uri = format_text("nbd%s://%s:%u/%s", tls_letter(tls), host_name, port, name);
    }
    free(host_name);
    free(name);
    return uri;
}

char *uri_vsock(bool tls, uint32_t cid, uint32_t port, const char *export_name)
{
    char *name = escape(export_name);
    char *uri =
        name ? format_text("nbd%s+vsock://%u:%u/%s", tls_letter(tls), cid, port, name) : NULL;
    free(name);
    return uri;
}

char *old_uri_unix(const char *socket_path, const char *export_name)
{
    bool named = *export_name != '\0';
    return format_text("nbd:unix:%s%s%s", socket_path, named ? ":exportname=" : "", export_name);
}

char *old_uri_tcp(const char *host, uint16_t port, const char *export_name)
{
    bool named = *export_name != '\0';
    bool is_ipv6 = strchr(host, ':') != NULL;
    return format_text("nbd:%s%s%s:%u%s%s", is_ipv6 ? "[" : "", host, is_ipv6 ? "]" : "", port,
                       named ? ":exportname=" : "", export_name);
}
