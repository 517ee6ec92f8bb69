/* SPDX-License-Identifier: BSD-2-Clause */
#include "listen/endpoints.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "base/log.h"
#include "listen/uri.h"

int endpoints_check(const struct activation *activation, const struct serve_config *config,
                    struct errtext *err)
{
    const char *option = config->stdio                            ? "--stdio"
                         : config->unix_path                      ? "--unix"
                         : config->vsock                          ? "--vsock"
                         : config->tcp && !config->tcp_by_default ? "--port and --bind"
                                                                  : NULL;
    if (activation->count > 0 && option) {
        return err_set(
            err, EINVAL,
            "started with %u listening socket(s) by a service manager (LISTEN_FDS), which "
            "cannot be combined with %s: drop the option, or start without the sockets",
            activation->count, option);
    }
    return 0;
}

static char *absolute_path(const char *path)
{
    char *absolute = NULL;
    char *directory = *path == '/' || *path == '\0' ? NULL : getcwd(NULL, 0);
    if (!directory) {
        return strdup(path);
    }
    if (asprintf(&absolute, "%s/%s", directory, path) < 0) {
        absolute = NULL;
    }
    free(directory);
    return absolute;
}

/* The host that a client on this machine would use. */
static const char *host_for_clients(const char *bind)
{
    if (!bind || strcmp(bind, "0.0.0.0") == 0 || strcmp(bind, "::") == 0) {
        return "localhost";
    }
    return bind;
}

/* Takes over `name`, NULL is out of memory. Unix sockets go before the others. */
static int add(struct endpoints *endpoints, enum net_family family, char *name, uint32_t port,
               uint32_t cid, struct errtext *err)
{
    unsigned at = endpoints->count;
    assert(at < DOORWAY_SOCKETS_MAX);
    if (!name) {
        return err_set(err, ENOMEM, "out of memory");
    }
    for (; family == NET_UNIX && at > 0 && endpoints->items[at - 1].family != NET_UNIX; at--) {
        endpoints->items[at] = endpoints->items[at - 1];
    }
    endpoints->items[at] = (struct endpoint){family, name, port, cid};
    endpoints->count++;
    return 0;
}

static int open_inherited(struct endpoints *endpoints, struct listeners *listeners,
                          const struct activation *activation, struct errtext *err)
{
    for (unsigned i = 0; i < activation->count; i++) {
        const struct inherited_socket *inherited = &activation->sockets[i];
        const struct net_address *at = &inherited->address;
        int result = listeners_add_inherited(listeners, inherited->fd, err);
        if (result == 0) {
            char *name = at->family == NET_UNIX ? absolute_path(at->name)
                                                : strdup(host_for_clients(at->name));
            result = add(endpoints, at->family, name, at->port, at->cid, err);
        }
        if (result < 0) {
            return result;
        }
        if (inherited->name[0] != '\0') {
            log_info("inherited socket %d is named %s", inherited->fd, inherited->name);
        }
    }
    return 0;
}

int endpoints_open(struct endpoints *endpoints, struct listeners *listeners,
                   const struct serve_config *config, const struct activation *activation,
                   const char *unix_path, const struct net_socket_file *file, struct errtext *err)
{
    struct net_address vsock;
    uint16_t port = config->port;
    int result = open_inherited(endpoints, listeners, activation, err);
    if (result < 0 || activation->count > 0) {
        return result;
    }
    if (unix_path) {
        result = listeners_add_unix(listeners, unix_path, file, err);
        if (result == 0) {
            result = add(endpoints, NET_UNIX, absolute_path(unix_path), 0, 0, err);
        }
    }
    if (result == 0 && config->tcp) {
        result = listeners_add_tcp(listeners, config->bind, &port, err);
        if (result == 0) {
            result = add(endpoints, NET_TCP, strdup(host_for_clients(config->bind)), port, 0, err);
        }
    }
    if (result == 0 && config->vsock) {
        result = listeners_add_vsock(listeners, config->port, &vsock, err);
        if (result == 0) {
            result = add(endpoints, NET_VSOCK, strdup(""), vsock.port, vsock.cid, err);
        }
    }
    return result;
}

void endpoints_free(struct endpoints *endpoints)
{
    for (unsigned i = 0; i < endpoints->count; i++) {
        free(endpoints->items[i].name);
    }
    endpoints->count = 0;
}

char *endpoint_uri(const struct endpoint *endpoint, bool tls, const char *export_name)
{
    switch (endpoint->family) {
    case NET_UNIX:
        return *endpoint->name ? uri_unix(tls, endpoint->name, export_name) : strdup("");
    case NET_TCP:
        return uri_tcp(tls, endpoint->name, (uint16_t)endpoint->port, export_name);
    case NET_VSOCK:
        break;
    }
    return uri_vsock(tls, endpoint->cid, endpoint->port, export_name);
}

char *endpoint_old_uri(const struct endpoint *endpoint, const char *export_name)
{
    switch (endpoint->family) {
    case NET_UNIX:
        return *endpoint->name ? old_uri_unix(endpoint->name, export_name) : strdup("");
    case NET_TCP:
        return old_uri_tcp(endpoint->name, (uint16_t)endpoint->port, export_name);
    case NET_VSOCK:
        break;
    }
    return strdup("");
}
