/* SPDX-License-Identifier: BSD-2-Clause */
/*
 * An input, taken from its front. Past its end everything is zero, so that every input means
 * something and a shorter one is a simpler one.
 */
#ifndef QCOWD_FUZZ_FEED_H
#define QCOWD_FUZZ_FEED_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "base/check.h"

struct feed {
    const uint8_t *bytes;
    size_t left;
};

static inline bool feed_any(const struct feed *feed)
{
    return feed->left > 0;
}

static inline uint8_t feed_u8(struct feed *feed)
{
    if (feed->left == 0) {
        return 0;
    }
    feed->left--;
    return *feed->bytes++;
}

static inline uint16_t feed_u16(struct feed *feed)
{
    unsigned high = feed_u8(feed);
    return (uint16_t)(high << 8 | feed_u8(feed));
}

static inline uint64_t feed_u64(struct feed *feed)
{
    uint64_t value = 0;
    for (unsigned i = 0; i < 8; i++) {
        value = value << 8 | feed_u8(feed);
    }
    return value;
}

/* Up to `most` bytes, where they lie. */
static inline const uint8_t *feed_bytes(struct feed *feed, size_t most, size_t *len)
{
    const uint8_t *bytes = feed->bytes;
    *len = MIN_OF(most, feed->left);
    feed->bytes += *len;
    feed->left -= *len;
    return bytes;
}

#endif
