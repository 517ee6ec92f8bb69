/* SPDX-License-Identifier: BSD-2-Clause */
/*
 * Classes are powers of two from one page up, last in first out, so that what is reused is still
 * warm in the cache. An unused buffer's link lies in a table beside it, not in the buffer: that
 * keeps its bytes poisoned for AddressSanitizer, and a use after buffer_put() is caught like one
 * after free().
 */
#include "io/buffers.h"

#include <assert.h>
#include <stdint.h>
#include <stdlib.h>

#include "base/check.h"
#include "base/limits.h"
#include "base/poison.h"

/* 4 KiB ... 64 MiB; larger ones are not pooled. */
#define CLASS_COUNT 15U
/* Kept in one pool: in all, and buffers of one class. */
#define POOL_BYTES_MAX    (32 * MIB)
#define CLASS_BUFFERS_MAX 1024U

struct size_class {
    unsigned count;
    void *buffers[CLASS_BUFFERS_MAX];
};

static _Thread_local struct size_class classes[CLASS_COUNT];
static _Thread_local size_t pooled_bytes;

static unsigned class_of(size_t len)
{
    if (len <= BUFFER_ALIGNMENT_BYTES) {
        return 0;
    }
    unsigned bits = 64U - (unsigned)__builtin_clzll((unsigned long long)len - 1);
    return bits - 12U;
}

static size_t class_bytes(unsigned class)
{
    return (size_t)BUFFER_ALIGNMENT_BYTES << class;
}

void *buffer_get(size_t len)
{
    assert(len > 0);
    unsigned class = class_of(len);

    if (class >= CLASS_COUNT) {
        if (len > SIZE_MAX - BUFFER_ALIGNMENT_BYTES) {
            return NULL;
        }
        return aligned_alloc(BUFFER_ALIGNMENT_BYTES, round_up_to(len, BUFFER_ALIGNMENT_BYTES));
    }
    struct size_class *pool = &classes[class];
    if (pool->count == 0) {
        return aligned_alloc(BUFFER_ALIGNMENT_BYTES, class_bytes(class));
    }
    void *buffer = pool->buffers[--pool->count];
    pooled_bytes -= class_bytes(class);
    UNPOISON(buffer, class_bytes(class));
    return buffer;
}

void buffer_put(void *buffer, size_t len)
{
    if (!buffer) {
        return;
    }
    unsigned class = class_of(len);
    if (class >= CLASS_COUNT || classes[class].count == CLASS_BUFFERS_MAX ||
        class_bytes(class) > POOL_BYTES_MAX - pooled_bytes) {
        free(buffer);
        return;
    }
    POISON(buffer, class_bytes(class));
    classes[class].buffers[classes[class].count++] = buffer;
    pooled_bytes += class_bytes(class);
}

size_t buffer_pool_bytes(void)
{
    return pooled_bytes;
}

void buffer_pool_drain(void)
{
    for (unsigned i = 0; i < CLASS_COUNT; i++) {
        while (classes[i].count > 0) {
            void *buffer = classes[i].buffers[--classes[i].count];
            UNPOISON(buffer, class_bytes(i));
            free(buffer);
        }
    }
    pooled_bytes = 0;
}
