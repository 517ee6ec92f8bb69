/* SPDX-License-Identifier: BSD-2-Clause */
#include "listen/address.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static char *decimal(unsigned value)
{
    char *text;
    return asprintf(&text, "%u", value) < 0 ? NULL : text;
}

/* The port of the first way that has one, or nothing. */
static char *port_of(const struct endpoints *endpoints)
{
    for (unsigned i = 0; i < endpoints->count; i++) {
        if (endpoints->items[i].family != NET_UNIX) {
            return decimal(endpoints->items[i].port);
        }
    }
    return strdup("");
}

int address_describe(struct address *address, const struct endpoints *endpoints, bool tls,
                     const char *export_name, struct errtext *err)
{
    const struct endpoint *best = &endpoints->items[0];
    assert(endpoints->count > 0);
    address->unix_path = strdup(best->family == NET_UNIX ? best->name : "");
    address->port = port_of(endpoints);
    address->uri = endpoint_uri(best, tls, export_name);
    address->old_uri = endpoint_old_uri(best, export_name);
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
