/* SPDX-License-Identifier: BSD-2-Clause */
/*
 * The simulator's random numbers: xoshiro256**, seeded through splitmix64. Our own, so that a seed
 * gives the same run on every machine. Each purpose has a stream of its own, so that drawing once
 * more for one does not shift the others.
 */
#ifndef QCOWD_IO_SIM_RANDOM_H
#define QCOWD_IO_SIM_RANDOM_H

#include <assert.h>
#include <stdbool.h>
#include <stdint.h>

struct sim_rng {
    uint64_t state[4];
};

static inline uint64_t sim_splitmix64(uint64_t *state)
{
    uint64_t z = (*state += 0x9e3779b97f4a7c15ULL);
    z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9ULL;
    z = (z ^ (z >> 27)) * 0x94d049bb133111ebULL;
    return z ^ (z >> 31);
}

static inline void sim_rng_init(struct sim_rng *rng, uint64_t seed, uint64_t stream)
{
    uint64_t state = seed ^ (stream * 0xd1342543de82ef95ULL);
    for (int i = 0; i < 4; i++) {
        rng->state[i] = sim_splitmix64(&state);
    }
}

static inline uint64_t sim_rotate_left(uint64_t value, unsigned bits)
{
    return (value << bits) | (value >> (64 - bits));
}

static inline uint64_t sim_rng_next(struct sim_rng *rng)
{
    uint64_t *s = rng->state;
    uint64_t result = sim_rotate_left(s[1] * 5, 7) * 9;
    uint64_t t = s[1] << 17;
    s[2] ^= s[0];
    s[3] ^= s[1];
    s[1] ^= s[2];
    s[0] ^= s[3];
    s[2] ^= t;
    s[3] = sim_rotate_left(s[3], 45);
    return result;
}

/* Uniform in [0, bound) but for a bias below 2^-32 for bounds below 2^32. */
static inline uint64_t sim_rng_below(struct sim_rng *rng, uint64_t bound)
{
    assert(bound > 0);
    __extension__ typedef unsigned __int128 wide;
    return (uint64_t)(((wide)sim_rng_next(rng) * bound) >> 64);
}

/* True with a chance of ppm in a million. */
static inline bool sim_rng_chance(struct sim_rng *rng, unsigned ppm)
{
    return ppm != 0 && sim_rng_below(rng, 1000000) < ppm;
}

#endif
