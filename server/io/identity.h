/* SPDX-License-Identifier: BSD-2-Clause */
/* Names of those who have proved who they are: "dn:CN=vm1,O=Example", "psk:alice" (io/tls.h). */
#ifndef QCOWD_IO_IDENTITY_H
#define QCOWD_IO_IDENTITY_H

#include <stdbool.h>

/*
 * Whether a rule names this identity, byte for byte. A rule that begins with neither "dn:" nor
 * "psk:" means both kinds. identity may be NULL: nobody, whom no rule names.
 */
bool identity_is(const char *identity, const char *rule);

#endif
