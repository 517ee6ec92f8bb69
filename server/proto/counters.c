/* SPDX-License-Identifier: BSD-2-Clause */
#include "proto/counters.h"

#include "base/check.h"
#include "proto/wire.h"

static const char *const names[] = {
    [COUNTED_READ] = "read",   [COUNTED_WRITE] = "write", [COUNTED_FLUSH] = "flush",
    [COUNTED_TRIM] = "trim",   [COUNTED_ZERO] = "zero",   [COUNTED_STATUS] = "status",
    [COUNTED_CACHE] = "cache",
};

const char *counted_command_name(enum counted_command command)
{
    return names[command];
}

enum counted_command counted_command_of(uint16_t type)
{
    switch (type) {
    case NBD_CMD_READ:
        return COUNTED_READ;
    case NBD_CMD_WRITE:
        return COUNTED_WRITE;
    case NBD_CMD_FLUSH:
        return COUNTED_FLUSH;
    case NBD_CMD_TRIM:
        return COUNTED_TRIM;
    case NBD_CMD_WRITE_ZEROES:
        return COUNTED_ZERO;
    case NBD_CMD_BLOCK_STATUS:
        return COUNTED_STATUS;
    case NBD_CMD_CACHE:
        return COUNTED_CACHE;
    default:
        return COUNTED_COMMANDS;
    }
}

/* The first step whose end is not below the time. */
static unsigned step_of(uint64_t took_ns)
{
    uint64_t steps = took_ns == 0 ? 0 : (took_ns - 1) / COUNTED_FIRST_STEP_NS;
    unsigned step = steps == 0 ? 0 : 64U - (unsigned)__builtin_clzll(steps);
    return MIN_OF(step, COUNTED_STEPS - 1);
}

void command_counters_add(struct command_counters *counters, bool failed, uint64_t bytes,
                          uint64_t took_ns)
{
    counters->requests++;
    counters->errors += failed;
    counters->bytes += failed ? 0 : bytes;
    counters->took_ns += took_ns;
    counters->took[step_of(took_ns)]++;
}

uint64_t counted_step_end_ns(unsigned step)
{
    return step == COUNTED_STEPS - 1 ? UINT64_MAX : (uint64_t)COUNTED_FIRST_STEP_NS << step;
}
