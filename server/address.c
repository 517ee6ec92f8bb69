/* SPDX-License-Identifier: BSD-2-Clause */
#include "address.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "uri.h"

static char *absolute_path(const char *path)
{
    char *absolute = NULL;
    char *directory = *path == '/' ? NULL : getcwd(NULL, 0);
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

static char *decimal(unsigned value)
{
    char *text;
    return asprintf(&text, "%u", value) < 0 ? NULL : text;
}

/* A Unix socket is preferred where there are both: only it says who may connect. */
int address_describe(struct address *address, const struct serve_config *config,
                     const char *unix_path, uint16_t port, struct errtext *err)
{
    bool tls = config->tls_mode == NBD_TLS_REQUIRE;
    const char *host = host_for_clients(config->bind);
    address->unix_path = unix_path ? absolute_path(unix_path) : strdup("");
    address->port = config->tcp ? decimal(port) : strdup("");
    if (unix_path && address->unix_path) {
        address->uri = uri_unix(tls, address->unix_path, config->export_name);
        address->old_uri = old_uri_unix(address->unix_path, config->export_name);
    } else if (!unix_path) {
        address->uri = uri_tcp(tls, host, port, config->export_name);
        address->old_uri = old_uri_tcp(host, port, config->export_name);
    }
    if (!address->unix_path || !address->port || !address->uri || !address->old_uri) {
        return err_set(err, ENOMEM, "out of memory");
    }
    return 0;
}

void address_free(struct address *address)
{
    free(address->unix_path);
    free(address->port);
    free(address->uri);
    free(address->old_uri);
    *address = (struct address){0};
}
