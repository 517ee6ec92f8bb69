/* SPDX-License-Identifier: BSD-2-Clause */
/*
 * How long requests took: a histogram whose steps are a 16th of the value, from nanoseconds to
 * hours, in fixed memory.
 */
#ifndef QCOWD_LATENCY_H
#define QCOWD_LATENCY_H

#include <stdint.h>

#define LATENCY_STEPS_BITS 4U
#define LATENCY_STEPS      (1U << LATENCY_STEPS_BITS)
#define LATENCY_DOUBLINGS  45U

struct latency {
    uint64_t count;
    uint64_t max_ns;
    uint64_t buckets[LATENCY_DOUBLINGS * LATENCY_STEPS];
};

void latency_add(struct latency *latency, uint64_t ns);
/*
 * What `per_mille` of 1000 requests did not exceed, at most a 16th too much and never more than the
 * longest; 0 when there are none.
 */
uint64_t latency_quantile_ns(const struct latency *latency, unsigned per_mille);

#endif
