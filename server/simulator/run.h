/* SPDX-License-Identifier: BSD-2-Clause */
/*
 * One seed, one run: an image of some format, and a few lives of it. A life is open, many clients
 * at once, close; it ends well or with a power cut at any moment, opening and closing included.
 * After each life the image is checked and read back, and the next one goes on from there.
 *
 * In most lives the clients call the image; in the others they speak NBD with a server that does
 * (network.h).
 */
#ifndef QCOWD_SIMULATOR_RUN_H
#define QCOWD_SIMULATOR_RUN_H

#include <stdbool.h>
#include <stdint.h>

#include "image.h"
#include "io/sim.h"
#include "io/sim_random.h"
#include "sched/sync.h"
#include "simulator/dress.h"
#include "simulator/oracle.h"
#include "simulator/workload.h"

struct run_statistics {
    uint64_t runs;
    uint64_t lives;
    uint64_t power_cuts;
    uint64_t faulty_lives;
    uint64_t tight_lives;   /* with just enough room */
    uint64_t pressed_lives; /* of these, those in which the disk had none left at a time */
    uint64_t requests;
    uint64_t failed_requests;
    uint64_t checks;
    uint64_t leaky_images; /* after a power cut */
    uint64_t disk_operations;
    uint64_t requests_by_kind[REQUEST_KINDS];
    uint64_t network_lives;
    uint64_t connections;
    uint64_t drains;
    uint64_t vanished_clients; /* connections that broke off */
    uint64_t resizes;
};

/* What the life at hand may see fail. */
struct life {
    bool may_eio;
    bool may_enospc;
    bool flush_fails;     /* a failed fsync must stick (O8) */
    uint64_t stuck_since; /* the moment at which a flush had failed; UINT64_MAX: none did */
    uint64_t room_since;  /* the moment from which there is room again; UINT64_MAX: not yet */
    bool hung_up;         /* clients or the server: requests may go unanswered or be refused */
    /* All changes go to a window of the disk, and there is as much room as that can ever need at
     * one moment, and no more: nothing may fail for want of it. len 0: no such life. */
    uint64_t window_offset;
    uint64_t window_len;
};

/* What becomes of the disk's size in the life at hand (resize.h). */
struct resize {
    uint64_t old_bytes;
    uint64_t new_bytes; /* the same: nothing */
    uint64_t end_bytes; /* where requests must end; 0: at the disk's */
    bool started;
    bool done; /* and told so */
};

struct run {
    uint64_t seed;
    struct world *world;
    struct oracle *oracle;
    struct image *image; /* while one is open */
    struct dressed_snapshot snapshot;
    struct oracle *snapshot_oracle; /* what the snapshot holds; NULL without one */
    struct plan plan;
    struct life life;
    struct resize resize;
    uint64_t shrunk_from;   /* the larger size that the disk had last; 0: it has not shrunk since */
    bool verify_all;        /* the next time, and not what was touched alone */
    struct sim_rng network; /* what connections draw; others are not shifted by it */
    struct group clients;   /* of the workload */
    unsigned tasks;         /* coroutines of the run that have not returned */
    uint64_t steps_to_cut;  /* until the power cut; 0: none is due */
    uint64_t known_leaks;   /* left by power cuts, and not repaired */
    uint64_t requests;
    uint32_t last_value;
    const char *dump_directory; /* where images are left for other judges; NULL: nowhere */
    sim_trace_fn *trace;        /* NULL: none */
    void *trace_arg;
    struct run_statistics *statistics;
};

/* Runs the seed of `run`; the caller has filled in seed, trace, dump_directory and statistics. What
 * is found wrong ends the process, see run_fail(). */
void run_seed(struct run *run);

/* Reports the finding with the seed and how to replay it, and exits with status 1. */
void run_fail(const struct run *run, const char *format, ...)
    __attribute__((format(printf, 2, 3), noreturn));

/* Replaces the run's oracle by one for a larger or smaller disk on top of it. Nothing may run. */
void run_put_on_top(struct run *run, uint64_t size_bytes);

/* A line of the run's trace, with the simulated time in front. */
void run_trace(const struct run *run, const char *format, ...)
    __attribute__((format(printf, 2, 3)));

/* Starts a coroutine that counts as a task of the run: its fn ends with run_task_done(). */
void run_spawn(struct run *run, void (*fn)(void *arg), void *arg, const char *name);
void run_task_done(struct run *run);

#endif
