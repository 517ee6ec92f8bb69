/* SPDX-License-Identifier: BSD-2-Clause */
/* How clients reach an export best: what is logged and handed to the command of --run. */
#ifndef QCOWD_LISTEN_ADDRESS_H
#define QCOWD_LISTEN_ADDRESS_H

#include <stdbool.h>

#include "base/errtext.h"
#include "listen/endpoints.h"

/* Owned strings, empty where there is no such way; all NULL before address_describe(). */
struct address {
    char *unix_path; /* absolute */
    char *port;
    char *uri;
    char *old_uri;
};

/*
 * From the first of the endpoints, of which there is one at least. 0, or -ENOMEM: what there is, is
 * freed with the rest by address_free().
 */
int address_describe(struct address *address, const struct endpoints *endpoints, bool tls,
                     const char *export_name, struct errtext *err);
void address_free(struct address *address);

#endif
