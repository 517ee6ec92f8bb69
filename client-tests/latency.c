/* SPDX-License-Identifier: BSD-2-Clause */
/*
 * Values below LATENCY_STEPS have a bucket each; above, the first bits behind the leading one
 * choose among LATENCY_STEPS buckets of a doubling.
 */
#include "latency.h"

#include "base/check.h"

static unsigned bucket_of(uint64_t ns)
{
    if (ns < LATENCY_STEPS) {
        return (unsigned)ns;
    }
    unsigned leading = 63U - (unsigned)__builtin_clzll(ns);
    unsigned shift = leading - LATENCY_STEPS_BITS;
    unsigned bucket = (shift + 1) * LATENCY_STEPS + (unsigned)(ns >> shift) - LATENCY_STEPS;
    return MIN_OF(bucket, LATENCY_DOUBLINGS * LATENCY_STEPS - 1);
}

/* The largest value that falls into it. */
static uint64_t bucket_end_ns(unsigned bucket)
{
    if (bucket < LATENCY_STEPS) {
        return bucket;
    }
    unsigned shift = bucket / LATENCY_STEPS - 1;
    return ((uint64_t)(LATENCY_STEPS + bucket % LATENCY_STEPS + 1) << shift) - 1;
}

void latency_add(struct latency *latency, uint64_t ns)
{
    latency->count++;
    latency->max_ns = MAX_OF(latency->max_ns, ns);
    latency->buckets[bucket_of(ns)]++;
}

uint64_t latency_quantile_ns(const struct latency *latency, unsigned per_mille)
{
    uint64_t wanted = div_round_up(latency->count * per_mille, 1000);
    uint64_t seen = 0;

    for (unsigned i = 0; i < ARRAY_LEN(latency->buckets) && latency->count > 0; i++) {
        seen += latency->buckets[i];
        if (seen >= wanted) {
            return MIN_OF(bucket_end_ns(i), latency->max_ns);
        }
    }
    return latency->max_ns;
}
