/* SPDX-License-Identifier: BSD-2-Clause */
#include "crypto/library.h"

#include <gcrypt.h>
#include <pthread.h>
#include <stdlib.h>
#include <string.h>

#include "base/check.h"
#include "crypto/secret.h"

static void *keep(void *old, size_t len)
{
    if (!secret_is(old)) {
        return realloc(old, len);
    }
    void *moved = secret_alloc(len);
    if (moved) {
        memcpy(moved, old, MIN_OF(len, secret_len(old)));
        secret_free(old);
    }
    return moved;
}

static void let_go(void *pointer)
{
    if (pointer && secret_is(pointer)) {
        secret_free(pointer);
    } else {
        free(pointer);
    }
}

static int is_secret(const void *pointer)
{
    return secret_is(pointer);
}

static void *alloc_secret(size_t len)
{
    return secret_alloc(MAX_OF(len, 1U));
}

static void start(void)
{
    gcry_set_allocation_handler(malloc, alloc_secret, is_secret, keep, let_go);
    const char *version = gcry_check_version(NULL);
    assert(version != NULL);
    (void)version;
    gcry_control(GCRYCTL_INITIALIZATION_FINISHED, 0);
}

bool crypto_library_present(void)
{
    return true;
}

void crypto_library_start(void)
{
    static pthread_once_t once = PTHREAD_ONCE_INIT;
    pthread_once(&once, start);
}
