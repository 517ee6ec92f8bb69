/* SPDX-License-Identifier: BSD-2-Clause */
/*
 * What the oracle sends: random requests, and the histories that are known to have corrupted
 * images. Each returns when all is sent and read back, or false when the load has failed.
 */
#ifndef QCOWD_ORACLE_WORKLOADS_H
#define QCOWD_ORACLE_WORKLOADS_H

#include <stdbool.h>
#include <stdint.h>

#include "oracle_load.h"

enum mix_kind {
    MIX_READ,
    MIX_WRITE,
    MIX_TRIM,
    MIX_ZERO,
    MIX_ZERO_NO_HOLE,
    MIX_FAST_ZERO,
    MIX_FLUSH,
    MIX_KINDS
};

struct workload_options {
    uint64_t seed;
    uint64_t requests;
    unsigned seconds;        /* 0: no bound */
    unsigned mix[MIX_KINDS]; /* weights */
    unsigned fua_percent;
    unsigned rounds;
    uint64_t cluster_bytes;
    bool prefill;
};

typedef bool workload_fn(struct load *load, const struct workload_options *options);

/* Overlapping random requests of all kinds, on all connections, as deep as they go. */
workload_fn workload_random;

/*
 * Writes of a 32nd of a cluster interleaved with unmapping zeroes of whole clusters: a zero between
 * a writer's look-up and its mapping update frees the cluster that the writer then binds.
 */
workload_fn workload_interleaved;

/*
 * An overwrite in flight, its cluster discarded, and a write elsewhere that may get the cluster:
 * the old write lands in the new owner's data. With prefill false the clusters are taken as they
 * are in the image (compressed ones, say), each once.
 */
workload_fn workload_overwrite_discard;

/*
 * Adjacent and overlapping writes around a discard on 64 KiB clusters: padding written to clusters
 * that nobody holds, and writes that lose to it.
 */
workload_fn workload_adjacent;

#endif
