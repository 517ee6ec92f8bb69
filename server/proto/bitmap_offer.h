/* SPDX-License-Identifier: BSD-2-Clause */
/*
 * The dirty bitmaps that an export has on offer, as the handshake needs them: copied at one moment
 * on the loop where the image lives, for handshakes run on the loop that took the connection.
 */
#ifndef QCOWD_PROTO_BITMAP_OFFER_H
#define QCOWD_PROTO_BITMAP_OFFER_H

#include <stddef.h>
#include <stdint.h>

#include "proto/nbd.h"

struct offered_bitmap {
    uint64_t id;
    char *name;
};

struct bitmap_offer {
    size_t count; /* at most LIMIT_BITMAPS_OFFERED */
    struct offered_bitmap *bitmaps;
};

/*
 * Fills *offer, which the caller ends with bitmap_offer_free(), after success only. `export` is
 * held by the caller. -ENOMEM. May suspend.
 */
int co_bitmap_offer(struct nbd_service *service, const struct nbd_export *export,
                    struct bitmap_offer *offer);
/* Drops all but the first `count`. */
void bitmap_offer_trim(struct bitmap_offer *offer, size_t count);
void bitmap_offer_free(struct bitmap_offer *offer);

#endif
