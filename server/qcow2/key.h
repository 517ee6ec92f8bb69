/* SPDX-License-Identifier: BSD-2-Clause */
/* A passphrase on its way to an encrypted image. */
#ifndef QCOWD_QCOW2_KEY_H
#define QCOWD_QCOW2_KEY_H

#include <stddef.h>
#include <stdint.h>

/* Encrypted images of one chain that have passphrases of their own. */
#define IMAGE_KEYS_MAX 16U

struct image_key {
    const char *name; /* where it comes from, for messages */
    uint8_t *passphrase;
    size_t len;
};

#endif
