/* SPDX-License-Identifier: BSD-2-Clause */
/* One comparison, for the server's rule and for those of its exports. */
#include "io/identity.h"

#include <string.h>

bool identity_is(const char *identity, const char *rule)
{
    const char *colon = identity ? strchr(identity, ':') : NULL;

    if (!colon) {
        return false;
    }
    if (strncmp(rule, "dn:", 3) == 0 || strncmp(rule, "psk:", 4) == 0) {
        return strcmp(rule, identity) == 0;
    }
    return strcmp(rule, colon + 1) == 0;
}
