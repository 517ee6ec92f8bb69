/* SPDX-License-Identifier: BSD-2-Clause */
/* One walk over the entries, and what can be done on it. */
#include "io/iov.h"

#include <string.h>

#include "base/check.h"

uint64_t iov_total_bytes(const struct iovec *iov, int iov_count)
{
    uint64_t total = 0;

    for (int i = 0; i < iov_count; i++) {
        total += iov[i].iov_len;
    }
    return total;
}

void iov_advance(struct iovec **iov, int *iov_count, size_t done_bytes)
{
    while (*iov_count > 0 && done_bytes >= (*iov)->iov_len) {
        done_bytes -= (*iov)->iov_len;
        (*iov)++;
        (*iov_count)--;
    }
    if (*iov_count > 0) {
        (*iov)->iov_base = (char *)(*iov)->iov_base + done_bytes;
        (*iov)->iov_len -= done_bytes;
    } else {
        assert(done_bytes == 0);
    }
}

int iov_window(const struct iovec *iov, int iov_count, uint64_t skip_bytes, struct iovec *window,
               int capacity, size_t max_bytes, size_t *bytes)
{
    int used = 0;

    *bytes = 0;
    for (int i = 0; i < iov_count && used < capacity && *bytes < max_bytes; i++) {
        if (skip_bytes >= iov[i].iov_len) {
            skip_bytes -= iov[i].iov_len;
            continue;
        }
        window[used].iov_base = (char *)iov[i].iov_base + skip_bytes;
        window[used].iov_len = MIN_OF(iov[i].iov_len - (size_t)skip_bytes, max_bytes - *bytes);
        *bytes += window[used].iov_len;
        skip_bytes = 0;
        used++;
    }
    return used;
}

enum walk_action { WALK_COPY_IN, WALK_COPY_OUT, WALK_ZERO };

/* Returns how many of len bytes were there. */
static uint64_t walk(const struct iovec *iov, int iov_count, uint64_t at, char *buf, uint64_t len,
                     enum walk_action action)
{
    uint64_t done = 0;

    for (int i = 0; i < iov_count && done < len; i++) {
        if (at >= iov[i].iov_len) {
            at -= iov[i].iov_len;
            continue;
        }
        char *here = (char *)iov[i].iov_base + at;
        size_t part = (size_t)MIN_OF((uint64_t)iov[i].iov_len - at, len - done);
        switch (action) {
        case WALK_COPY_IN:
            memcpy(here, buf + done, part);
            break;
        case WALK_COPY_OUT:
            memcpy(buf + done, here, part);
            break;
        case WALK_ZERO:
            memset(here, 0, part);
            break;
        }
        done += part;
        at = 0;
    }
    return done;
}

void iov_copy_in(const struct iovec *iov, int iov_count, uint64_t at, const void *buf, size_t len)
{
    uint64_t done = walk(iov, iov_count, at, (char *)(uintptr_t)buf, len, WALK_COPY_IN);
    assert(done == len);
}

void iov_copy_out(const struct iovec *iov, int iov_count, uint64_t at, void *buf, size_t len)
{
    uint64_t done = walk(iov, iov_count, at, buf, len, WALK_COPY_OUT);
    assert(done == len);
}

void iov_zero_from(const struct iovec *iov, int iov_count, uint64_t at)
{
    (void)walk(iov, iov_count, at, NULL, UINT64_MAX, WALK_ZERO);
}
