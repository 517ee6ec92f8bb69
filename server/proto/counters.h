/* SPDX-License-Identifier: BSD-2-Clause */
/*
 * What an export's clients have asked for, and how long it took: counts that only grow. They belong
 * to the loop on which the export lives, and are read there. The time is that from the turn in
 * which a request came in to the moment at which its reply had left.
 */
#ifndef QCOWD_PROTO_COUNTERS_H
#define QCOWD_PROTO_COUNTERS_H

#include <stdbool.h>
#include <stdint.h>

enum counted_command {
    COUNTED_READ,
    COUNTED_WRITE,
    COUNTED_FLUSH,
    COUNTED_TRIM,
    COUNTED_ZERO,
    COUNTED_STATUS,
    COUNTED_CACHE,
    COUNTED_COMMANDS,
};

/* Steps of the histogram: up to 4 us, 8 us, ... 34 s, and the rest. */
#define COUNTED_STEPS         25U
#define COUNTED_FIRST_STEP_NS 4000U

struct command_counters {
    uint64_t requests; /* those that failed, too */
    uint64_t errors;
    uint64_t bytes; /* of those that did not fail */
    uint64_t took_ns;
    uint64_t took[COUNTED_STEPS];
};

struct nbd_counters {
    struct command_counters commands[COUNTED_COMMANDS];
    uint64_t in_flight;
};

/* As labels and people name it. */
const char *counted_command_name(enum counted_command command);
/* What a request of this NBD_CMD_* counts as; COUNTED_COMMANDS: as nothing. */
enum counted_command counted_command_of(uint16_t type);

void command_counters_add(struct command_counters *counters, bool failed, uint64_t bytes,
                          uint64_t took_ns);

/* The longest time that falls into a step; UINT64_MAX for the last. */
uint64_t counted_step_end_ns(unsigned step);

#endif
