/* SPDX-License-Identifier: BSD-2-Clause */
/*
 * A connection in the simulated world: two stream ends over memory. What one end sends is under way
 * for a while and arrives at the other in pieces, with delays and borders that a seed chooses. A
 * window bounds what is under way or unread, and a sender past it waits.
 *
 * Each pair draws from a seed of its own, so that connections do not shift what the world draws for
 * its disks.
 */
#ifndef QCOWD_IO_SIM_STREAM_H
#define QCOWD_IO_SIM_STREAM_H

#include <stddef.h>
#include <stdint.h>

#include "io/stream.h"
#include "io/world.h"

struct sim_stream_options {
    uint64_t seed;
    size_t window_bytes;       /* of each direction, > 0 */
    uint64_t longest_delay_ns; /* between two pieces; 0: all pieces at once, one after the other */
    const char *peer[2];       /* what each end calls the other; outlive the streams */
};

/* Both ends want to be closed; the order is free. Running out of memory ends the process. */
void sim_stream_pair(struct world *world, const struct sim_stream_options *options,
                     struct stream *ends[2]);

/*
 * The end is gone without a word, as with a power cut or a lost route: of what it has sent a
 * random part still arrives, cut anywhere, and then the other end sees -ECONNRESET. For the end
 * itself this is an abort. Its owner closes it nevertheless.
 */
void sim_stream_vanish(struct stream *end);

/* The end's owner takes nothing from the transport for so long: nothing more arrives until then. */
void sim_stream_hold(struct stream *end, uint64_t for_ns);

#endif
