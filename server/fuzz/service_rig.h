/* SPDX-License-Identifier: BSD-2-Clause */
/*
 * One client of the real protocol code over a simulated stream: it says bytes, and what it hears is
 * kept for wire_judge.h. The only room of the fuzzers that knows how a service is set up.
 */
#ifndef QCOWD_FUZZ_SERVICE_RIG_H
#define QCOWD_FUZZ_SERVICE_RIG_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "io/world.h"
#include "proto/nbd.h"

struct client_manners {
    uint64_t seed;     /* how the bytes are cut and delayed */
    bool slow;         /* delays between pieces, instead of none */
    bool lazy;         /* does not read before it has been quiet for long */
    bool vanishes;     /* is gone without a word as soon as everything is said */
    bool small_budget; /* the service has no bytes in flight to give but each one's reserve */
    bool patient;      /* waits for the answer to STARTTLS before it goes on */
    bool batched;      /* replies leave at the end of a turn */
    uint32_t drain_ms; /* the service is drained after so long; 0: not */
    bool drain_one;    /* its first export is, and is not on offer any more */
    struct nbd_limits limits;
    bool rated;            /* so many bytes and operations a second, and no more */
    enum nbd_tls_mode tls; /* the stand-in passes everything through after a word each way */
};

/* From one byte that chooses, and one more as the seed. */
struct client_manners client_manners_of(uint8_t choice, uint8_t seed);

struct heard {
    uint8_t *bytes; /* the caller's to free */
    size_t len;
    size_t capacity;
};

/*
 * Serves one connection whose client says those bytes, reads all that comes, waits until the server
 * has had time for everything, and leaves. Demands that nothing of the service's is left over. May
 * suspend.
 */
void co_converse(struct world *world, struct nbd_export *exports, unsigned export_count,
                 const struct client_manners *manners, const uint8_t *said, size_t said_len,
                 struct heard *heard);

/* What the stand-in for TLS says and wants to hear, once each. */
#define TLS_WORD       "T"
#define TLS_WORD_BYTES 1U

/* Long enough for READs that are worked off in parts. */
#define MEMORY_IMAGE_BYTES (272U * 1024U)

/* An export in memory that answers almost at once: for what is not about images. */
struct memory_image {
    struct image image;
    uint8_t bytes[MEMORY_IMAGE_BYTES];
};
void memory_image_init(struct memory_image *memory);

#endif
