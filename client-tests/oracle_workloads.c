/* SPDX-License-Identifier: BSD-2-Clause */
/*
 * Random choices come from one seeded generator; replies come when they come, so a seed fixes what
 * is sent, not in which order it is served.
 */
#include "oracle_workloads.h"

#include <inttypes.h>
#include <libnbd.h>
#include <stdio.h>
#include <time.h>

#include "base/check.h"

static uint64_t random_state;

static void random_seed(uint64_t seed)
{
    random_state = seed;
}

/* splitmix64 */
static uint64_t random_below(uint64_t bound)
{
    uint64_t value = random_state += 0x9e3779b97f4a7c15ULL;

    value = (value ^ value >> 30) * 0xbf58476d1ce4e5b9ULL;
    value = (value ^ value >> 27) * 0x94d049bb133111ebULL;
    return (value ^ value >> 31) % bound;
}

/* --- random --------------------------------------------------------------------------------- */

struct range {
    uint64_t offset;
    uint64_t len;
};

/* Small ones more often than large ones: the magnitude is even, not the size. */
static struct range random_range(const struct load_options *settings, uint64_t most_bytes)
{
    uint64_t units_most = most_bytes / settings->align;
    uint64_t region_units = settings->region_len / settings->align;
    uint64_t magnitude = 64 - (uint64_t)__builtin_clzll(units_most);
    uint64_t cap = MAX_OF(1U, units_most >> random_below(magnitude));
    uint64_t units = 1 + random_below(cap);

    return (struct range){settings->region_offset +
                              random_below(region_units - units + 1) * settings->align,
                          units * settings->align};
}

/* Half of them whole clusters, which is what frees them. */
static struct range random_unmapped_range(const struct load_options *settings,
                                          uint64_t cluster_bytes)
{
    uint64_t first = div_round_up(settings->region_offset, cluster_bytes);
    uint64_t last = (settings->region_offset + settings->region_len) / cluster_bytes;
    uint64_t clusters;

    if (cluster_bytes % settings->align != 0 || first >= last || random_below(2) == 0) {
        return random_range(settings, settings->max_bytes);
    }
    clusters = 1 + random_below(MIN_OF(2U, last - first));
    return (struct range){(first + random_below(last - first - clusters + 1)) * cluster_bytes,
                          clusters * cluster_bytes};
}

struct kind {
    enum request_type type;
    uint32_t flags;
};

static const struct kind kinds[MIX_KINDS] = {
    [MIX_READ] = {REQUEST_READ, 0},
    [MIX_WRITE] = {REQUEST_WRITE, 0},
    [MIX_TRIM] = {REQUEST_TRIM, 0},
    [MIX_ZERO] = {REQUEST_ZERO, 0},
    [MIX_ZERO_NO_HOLE] = {REQUEST_ZERO, LIBNBD_CMD_FLAG_NO_HOLE},
    [MIX_FAST_ZERO] = {REQUEST_ZERO, LIBNBD_CMD_FLAG_FAST_ZERO},
    [MIX_FLUSH] = {REQUEST_FLUSH, 0},
};

/* Kinds that the server does not offer have no weight. */
static unsigned weight_of(const struct load *load, const struct workload_options *options,
                          enum mix_kind kind)
{
    enum request_type type = kinds[kind].type;
    uint32_t flags = kinds[kind].flags;

    return load_can(load, type) && load_offered_flags(load, type, flags) == flags
               ? options->mix[kind]
               : 0;
}

static enum mix_kind random_kind(const unsigned weights[MIX_KINDS], unsigned total)
{
    uint64_t chosen = random_below(total);
    enum mix_kind kind = MIX_READ;

    while (chosen >= weights[kind]) {
        chosen -= weights[kind];
        kind++;
    }
    return kind;
}

static bool send_random(struct load *load, const struct workload_options *options,
                        unsigned connection, enum mix_kind mix_kind)
{
    const struct load_options *settings = load_settings(load);
    const struct kind *kind = &kinds[mix_kind];
    struct range range = random_range(settings, settings->max_bytes);
    uint32_t flags = kind->flags;

    if (kind->type == REQUEST_TRIM || kind->type == REQUEST_ZERO) {
        range = random_unmapped_range(settings, options->cluster_bytes);
    } else if (kind->type == REQUEST_FLUSH) {
        range = (struct range){0, 0};
    }
    if (random_below(100) < options->fua_percent) {
        flags |= load_offered_flags(load, kind->type, LIBNBD_CMD_FLAG_FUA);
    }
    if (random_below(10) == 0) {
        flags |= load_offered_flags(load, kind->type, LIBNBD_CMD_FLAG_DF);
    }
    return load_send(load, connection, kind->type, range.offset, range.len, flags);
}

bool workload_random(struct load *load, const struct workload_options *options)
{
    unsigned connections = load_settings(load)->connections;
    unsigned weights[MIX_KINDS];
    unsigned total = 0;
    uint64_t sent = 0;
    time_t until = time(NULL) + (time_t)options->seconds;

    random_seed(options->seed);
    for (unsigned kind = 0; kind < MIX_KINDS; kind++) {
        weights[kind] = weight_of(load, options, (enum mix_kind)kind);
        total += weights[kind];
    }
    if (total == 0) {
        fputs("qcowd-load: the server offers nothing of the mix\n", stderr);
        return false;
    }
    while (sent < options->requests && (options->seconds == 0 || time(NULL) < until)) {
        for (unsigned i = 0; i < connections && sent < options->requests; i++) {
            if (!load_has_slot(load, i)) {
                continue;
            }
            if (!send_random(load, options, i, random_kind(weights, total))) {
                return false;
            }
            sent++;
        }
        bool full = true;
        for (unsigned i = 0; i < connections; i++) {
            full = full && !load_has_slot(load, i);
        }
        if (full && !load_wait_some(load)) {
            return false;
        }
    }
    return load_verify(load);
}

/* --- histories ------------------------------------------------------------------------------ */

bool workload_interleaved(struct load *load, const struct workload_options *options)
{
    const struct load_options *settings = load_settings(load);
    uint64_t piece_bytes = options->cluster_bytes / 32;
    uint64_t clusters = settings->region_len / options->cluster_bytes;

    if (clusters == 0 || settings->max_bytes < piece_bytes) {
        fputs("qcowd-load: interleaved needs a region of a cluster and writes of a 32nd of it\n",
              stderr);
        return false;
    }
    random_seed(options->seed);
    for (uint64_t i = 0; i < options->requests; i++) {
        unsigned connection = (unsigned)(i % settings->connections);
        uint64_t cluster =
            settings->region_offset + random_below(clusters) * options->cluster_bytes;
        bool sent =
            random_below(2) == 0
                ? load_send(load, connection, REQUEST_WRITE,
                            cluster + random_below(32) * piece_bytes, piece_bytes, 0)
                : load_send(load, connection, REQUEST_ZERO, cluster, options->cluster_bytes, 0);
        if (!sent) {
            return false;
        }
    }
    return load_verify(load);
}

#define RACES_AT_ONCE 8U

struct race {
    uint64_t victim;    /* offset of the cluster overwritten and discarded */
    uint64_t elsewhere; /* offset of one that holds nothing yet */
};

/* Sends one request for each race; the connections take turns. */
static bool send_each(struct load *load, const struct race *races, enum request_type type,
                      bool to_victim, const struct range *within)
{
    unsigned connections = load_settings(load)->connections;

    for (unsigned i = 0; i < RACES_AT_ONCE; i++) {
        uint64_t base = to_victim ? races[i].victim : races[i].elsewhere;
        if (!load_send(load, i % connections, type, base + within->offset, within->len, 0)) {
            return false;
        }
    }
    return true;
}

/* Requests of one kind at random places of one cluster, from connection to connection. */
static bool send_into(struct load *load, enum request_type type, uint64_t cluster,
                      uint64_t cluster_bytes, uint64_t most_bytes, unsigned count)
{
    struct load_options in_cluster = *load_settings(load);

    in_cluster.region_offset = cluster;
    in_cluster.region_len = cluster_bytes;
    for (unsigned i = 0; i < count; i++) {
        struct range range = random_range(&in_cluster, most_bytes);
        unsigned connection = (unsigned)random_below(in_cluster.connections);

        if (!load_send(load, connection, type, range.offset, range.len, 0)) {
            return false;
        }
    }
    return true;
}

/* Several overwrites, so that one of them is likely to be late; the writes elsewhere are small. */
static bool race_together(struct load *load, const struct race *races,
                          const struct workload_options *options)
{
    unsigned connections = load_settings(load)->connections;
    uint64_t bytes = options->cluster_bytes;

    for (unsigned i = 0; i < RACES_AT_ONCE; i++) {
        unsigned connection = (unsigned)random_below(connections);

        if (!send_into(load, REQUEST_WRITE, races[i].victim, bytes, bytes, 4) ||
            !load_send(load, connection, REQUEST_TRIM, races[i].victim, bytes, 0) ||
            !send_into(load, REQUEST_WRITE, races[i].elsewhere, bytes, bytes / 4, 2)) {
            return false;
        }
    }
    return load_wait_all(load);
}

bool workload_overwrite_discard(struct load *load, const struct workload_options *options)
{
    const struct load_options *settings = load_settings(load);
    struct range whole = {0, options->cluster_bytes};
    uint64_t half = settings->region_len / options->cluster_bytes / 2;
    uint64_t rounds = options->rounds;

    if (half < RACES_AT_ONCE || settings->max_bytes < options->cluster_bytes) {
        fprintf(stderr,
                "qcowd-load: overwrite-discard needs %u clusters, and writes of a whole one\n",
                2 * RACES_AT_ONCE);
        return false;
    }
    if (!options->prefill) {
        rounds = MIN_OF(rounds, half / RACES_AT_ONCE);
    }
    random_seed(options->seed);
    for (uint64_t round = 0; round < rounds; round++) {
        struct race races[RACES_AT_ONCE];

        for (unsigned i = 0; i < RACES_AT_ONCE; i++) {
            uint64_t cluster = (round * RACES_AT_ONCE + i) % half;
            races[i].victim = settings->region_offset + cluster * options->cluster_bytes;
            races[i].elsewhere = races[i].victim + half * options->cluster_bytes;
        }
        if ((options->prefill && !send_each(load, races, REQUEST_WRITE, true, &whole)) ||
            !load_wait_all(load) || !race_together(load, races, options) ||
            !send_each(load, races, REQUEST_READ, true, &whole) ||
            !send_each(load, races, REQUEST_READ, false, &whole) || !load_wait_all(load)) {
            return false;
        }
        if (options->prefill &&
            (!send_each(load, races, REQUEST_TRIM, false, &whole) || !load_wait_all(load))) {
            return false;
        }
    }
    return load_verify(load);
}

bool workload_adjacent(struct load *load, const struct workload_options *options)
{
    static const struct {
        enum request_type type;
        uint64_t offset_kib;
        uint64_t len_kib;
    } steps[] = {
        {REQUEST_WRITE, 0, 320},   {REQUEST_WRITE, 320, 128}, {REQUEST_WRITE, 1024, 128},
        {REQUEST_WRITE, 448, 128}, {REQUEST_TRIM, 320, 128},  {REQUEST_WRITE, 0, 480},
    };
    const uint64_t span_bytes = 2ULL << 20;
    const struct load_options *settings = load_settings(load);
    uint64_t spans = settings->region_len / span_bytes;

    if (settings->max_bytes < 480 * 1024) {
        fputs("qcowd-load: adjacent needs requests of 480 KiB\n", stderr);
        return false;
    }
    random_seed(options->seed);
    for (uint64_t round = 0; round < MIN_OF(spans, options->rounds); round++) {
        uint64_t base = settings->region_offset + round * span_bytes;
        uint64_t settled_first = random_below(ARRAY_LEN(steps)); /* the rest goes out at once */
        bool one_connection = random_below(2) == 0;

        for (unsigned i = 0; i < ARRAY_LEN(steps); i++) {
            unsigned connection = one_connection ? 0 : i % settings->connections;

            if (!load_send(load, connection, steps[i].type, base + steps[i].offset_kib * 1024,
                           steps[i].len_kib * 1024, 0) ||
                (i < settled_first && !load_wait_all(load))) {
                return false;
            }
        }
        if (!load_wait_all(load) ||
            !load_send(load, 0, REQUEST_READ, base, settings->max_bytes, 0)) {
            return false;
        }
    }
    return load_verify(load);
}
