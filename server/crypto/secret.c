/* SPDX-License-Identifier: BSD-2-Clause */
/*
 * Each secret has pages of its own: there are few of them (some ciphers for each encrypted image),
 * and a whole page is what the kernel locks and leaves out of dumps. They stand in a list, so that
 * a library's free() can ask what kind of memory it has in hand.
 */
#include "crypto/secret.h"

#include <errno.h>
#include <pthread.h>
#include <stdint.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#include "base/check.h"
#include "base/list.h"
#include "base/log.h"

#define SECRET_ALIGNMENT_BYTES 64U

struct secret {
    struct list link;
    size_t mapped_bytes;
    size_t len;
};
_Static_assert(sizeof(struct secret) <= SECRET_ALIGNMENT_BYTES, "the head fits before the bytes");

static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static struct list secrets = LIST_INIT(secrets);
static bool warned;

/*
 * Pages that were given back, wiped, for the next who asks: the library asks for some at each of a
 * derivation's million rounds, and the kernel would need most of its time.
 */
#define SPARES_MAX      8U
#define SPARE_MAX_BYTES 16384U
static struct list spares = LIST_INIT(spares);
static unsigned spare_count;

static struct secret *head_of(const void *pointer)
{
    return (struct secret *)(void *)((uintptr_t)pointer - SECRET_ALIGNMENT_BYTES);
}

static void *bytes_of(struct secret *secret)
{
    return (uint8_t *)secret + SECRET_ALIGNMENT_BYTES;
}

/* The caller has the lock. NULL: none of that size. */
static struct secret *take_spare(size_t mapped_bytes)
{
    list_for_each(node, &spares) {
        struct secret *spare = list_entry(node, struct secret, link);
        if (spare->mapped_bytes == mapped_bytes) {
            list_remove(node);
            spare_count--;
            return spare;
        }
    }
    return NULL;
}

static void *use_spare(size_t len, size_t mapped_bytes)
{
    pthread_mutex_lock(&lock);
    struct secret *spare = take_spare(mapped_bytes);
    if (spare) {
        spare->len = len;
        list_push_back(&secrets, &spare->link);
    }
    pthread_mutex_unlock(&lock);
    return spare ? bytes_of(spare) : NULL;
}

void *secret_alloc(size_t len)
{
    size_t page_bytes = (size_t)sysconf(_SC_PAGESIZE);
    assert(len > 0);
    if (len > SIZE_MAX / 2) {
        return NULL;
    }
    size_t mapped_bytes = round_up_to(len + SECRET_ALIGNMENT_BYTES, page_bytes);
    void *spare = use_spare(len, mapped_bytes);
    if (spare) {
        return spare;
    }
    struct secret *secret =
        mmap(NULL, mapped_bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (secret == MAP_FAILED) {
        return NULL;
    }
    int error = mlock(secret, mapped_bytes) < 0 ? errno : 0;
    /* Kernels without it dump it: worth no refusal. */
    madvise(secret, mapped_bytes, MADV_DONTDUMP);
    secret->mapped_bytes = mapped_bytes;
    secret->len = len;
    pthread_mutex_lock(&lock);
    bool warn = error != 0 && !warned;
    warned = warned || warn;
    list_push_back(&secrets, &secret->link);
    pthread_mutex_unlock(&lock);
    if (warn) {
        log_warning("cannot lock the memory of keys (ulimit -l): %s: they may come to lie in swap",
                    strerror(error));
    }
    return bytes_of(secret);
}

void secret_free(void *pointer)
{
    if (!pointer) {
        return;
    }
    struct secret *secret = head_of(pointer);
    size_t mapped_bytes = secret->mapped_bytes;
    secret_wipe(pointer, mapped_bytes - SECRET_ALIGNMENT_BYTES);
    pthread_mutex_lock(&lock);
    list_remove(&secret->link);
    bool kept = spare_count < SPARES_MAX && mapped_bytes <= SPARE_MAX_BYTES;
    if (kept) {
        spare_count++;
        list_push_back(&spares, &secret->link);
    }
    pthread_mutex_unlock(&lock);
    if (!kept) {
        munmap(secret, mapped_bytes);
    }
}

bool secret_is(const void *pointer)
{
    bool found = false;
    pthread_mutex_lock(&lock);
    list_for_each(node, &secrets) {
        found = found || node == &head_of(pointer)->link;
    }
    pthread_mutex_unlock(&lock);
    return found;
}

size_t secret_len(const void *pointer)
{
    return head_of(pointer)->len;
}

void secret_wipe(void *bytes, size_t len)
{
    explicit_bzero(bytes, len);
}
