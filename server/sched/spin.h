/* SPDX-License-Identifier: BSD-2-Clause */
/*
 * Whether a loop with nothing to do looks for completions for a while before it sleeps. A sleep and
 * a wake-up are most of the time of a request where a client has one in flight: there looking pays.
 * What comes at once comes from a client with many in flight: there sleeping is better, as requests
 * gather meanwhile and are worked off together. A server without work must not look for it, so each
 * time that it was not worth while, twice as many waits sleep at once, up to a bound.
 */
#ifndef QCOWD_SCHED_SPIN_H
#define QCOWD_SCHED_SPIN_H

#include <stdbool.h>
#include <stdint.h>

#include "base/check.h"

/*
 * How long is looked. A sleep and a wake-up take 10 us where processors are real, and up to 50
 * where they are a virtual machine's; and the client's own are part of what is waited for.
 */
#define SPIN_NS 100000U
/* What takes less, so many times in a row, comes from a client with many in flight. */
#define SPIN_SOON_NS   4000U
#define SPIN_SOON_MAX  4U
#define SPIN_SKIPS_MAX 64U

/* Begins as all zero. */
struct spin {
    unsigned to_skip; /* waits that sleep at once */
    unsigned skips;   /* so many of them followed the last spin */
    unsigned soon;    /* so many of the last spins found something at once */
};

/* Asked before each wait. */
static inline bool spin_wanted(struct spin *spin)
{
    if (spin->to_skip == 0) {
        return true;
    }
    spin->to_skip--;
    return false;
}

/* Told after each spin how long it took. */
static inline void spin_ended(struct spin *spin, uint64_t took_ns)
{
    spin->soon = took_ns < SPIN_SOON_NS ? MIN_OF(spin->soon + 1, SPIN_SOON_MAX) : 0;
    bool worth_while = took_ns < SPIN_NS && spin->soon < SPIN_SOON_MAX;
    spin->skips = worth_while ? 0 : MAX_OF(1U, MIN_OF(2 * spin->skips, SPIN_SKIPS_MAX));
    spin->to_skip = spin->skips;
}

#endif
