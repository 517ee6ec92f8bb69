/* SPDX-License-Identifier: BSD-2-Clause */
/*
 * The simulated world: disks, clock, random and workers in memory, driven by one seed.
 *
 * Each disk operation is queued and completed later, in an order and with delays that the seed
 * chooses; an operation takes effect on the disk's bytes at completion (a write may take effect in
 * pieces of 512 bytes at several moments before it). What has completed but was not yet covered by
 * a completed flush is kept as a list of pending changes beside the durable bytes: sim_crash()
 * keeps a random subset of them, torn at 512 bytes, and forgets the rest. File size, punch, zero
 * and truncate are part of the model. A flush makes durable exactly what had completed when it was
 * issued (and possibly more).
 *
 * The same seed gives the same run, byte for byte, on every machine: no addresses, no wall clock,
 * no libc random.
 */
#ifndef QCOWD_IO_SIM_H
#define QCOWD_IO_SIM_H

#include "io/world.h"

/* Chances are in parts per million, per operation. All zero: nothing fails. */
struct sim_faults {
    unsigned read_eio_ppm;
    unsigned write_eio_ppm;
    unsigned flush_eio_ppm;
    unsigned enospc_ppm; /* writes and zeroes that grow allocated space */
    unsigned punch_unsupported_ppm;
    /* After the first error of a kind, all later operations of that kind fail too. */
    bool errors_last;
};

/* A world with its own clock and no files. NULL on out of memory. */
struct world *sim_create(uint64_t seed);
/* Asserts that no coroutine is left running in it. Frees all files. */
void sim_free(struct world *world);

/*
 * Runs ready coroutines, then completes one random pending operation or the earliest timer, and so
 * on until no coroutine is ready and nothing is pending. At most max_steps completions (0: no
 * bound). Returns false when the bound was hit.
 */
bool sim_run(struct world *world, uint64_t max_steps);

/* One step: run ready coroutines, then complete one thing. False when there was nothing to do. */
bool sim_step(struct world *world);

void sim_set_faults(struct world *world, const struct sim_faults *faults);
/* Upper bound for the bytes that all files together may allocate (512-byte units that were ever
 * written and not punched); 0 is no bound. Past it, writes fail with -ENOSPC. */
void sim_set_space(struct world *world, uint64_t limit_bytes);
/* The bytes that all files together have allocated now, by the same count. */
uint64_t sim_space_used(const struct world *world);

/* Fresh random numbers for workloads, from the same seed but a stream of their own. */
uint64_t sim_random(struct world *world);
/* Uniform in [0, bound), bound > 0. */
uint64_t sim_random_below(struct world *world, uint64_t bound);

/*
 * Loses power, in two steps. sim_crash() fixes what the disks will hold: all that was flushed, and
 * of the rest a random subset, torn at 512 bytes. From then on the old life is a ghost: every
 * pending and later operation completes with -EIO and no effect, so that its coroutines wind down
 * by their own error paths and nothing needs to be torn out of them; the caller goes on with
 * sim_run() and closes what it had open. sim_reboot(), with nothing open, then puts the fixed bytes
 * in place and serves again.
 */
void sim_crash(struct world *world);
bool sim_crashed(const struct world *world);
void sim_reboot(struct world *world);

/* Whole-file access outside of simulated time: durable and pending bytes as a reader would see
 * them. sim_file_put creates or replaces and is durable at once. */
int sim_file_put(struct world *world, const char *path, const void *bytes, uint64_t len);
/* Allocates *bytes with malloc. -ENOENT. */
int sim_file_get(struct world *world, const char *path, void **bytes, uint64_t *len);

/* Called at each completed disk operation, for traces; NULL for none. */
typedef void sim_trace_fn(void *arg, const char *line);
void sim_set_trace(struct world *world, sim_trace_fn *trace, void *arg);

struct sim_counts {
    uint64_t reads, writes, flushes, zeroes, punches, truncates;
    uint64_t refusals; /* for want of space */
    uint64_t bytes_read, bytes_written;
};
struct sim_counts sim_counts(const struct world *world);

#endif
