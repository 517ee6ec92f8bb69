/* SPDX-License-Identifier: BSD-2-Clause */
/*
 * Memory for what nobody else may see: passphrases, keys, and the ciphers that hold them. Its pages
 * are locked (no swap) and left out of core dumps, and wiped before they go back.
 */
#ifndef QCOWD_CRYPTO_SECRET_H
#define QCOWD_CRYPTO_SECRET_H

#include <stdbool.h>
#include <stddef.h>

/*
 * At least len bytes (len > 0), zeroed, aligned to 64; the caller ends it with secret_free(). NULL
 * when memory is short. A page that cannot be locked (RLIMIT_MEMLOCK) is good all the same, and
 * the first one is worth a warning in the log. From any thread.
 */
void *secret_alloc(size_t len);

/* Wipes and frees. NULL is fine. From any thread. */
void secret_free(void *secret);

/* Whether this is the start of what secret_alloc() gave. */
bool secret_is(const void *pointer);

/* How many bytes were asked for. */
size_t secret_len(const void *secret);

/* Overwrites in a way that no compiler leaves out: for secrets on a stack. */
void secret_wipe(void *bytes, size_t len);

#endif
