/* SPDX-License-Identifier: BSD-2-Clause */
/*
 * How the server is and what it has done, taken at one time: of each export, its image, and the
 * process. Each export is looked at on its own loop; between them time passes.
 */
#ifndef QCOWD_EXPORT_STATISTICS_H
#define QCOWD_EXPORT_STATISTICS_H

#include "export/desired.h"
#include "image.h"
#include "listen/listen.h"
#include "proto/counters.h"

struct export_statistics {
    char *name; /* owned */
    uint64_t size_bytes;
    unsigned connections;
    struct nbd_counters counters;
    struct image_statistics image;
};

struct loop_statistics {
    uint64_t cpu_ns;      /* of its thread; what it spends looking for completions, too */
    uint64_t bytes_used;  /* payload that requests hold */
    uint64_t bytes_total; /* and may */
};

struct server_statistics {
    struct export_statistics *exports; /* owned */
    unsigned export_count;
    struct loop_statistics loops[LOOPS_MAX];
    unsigned loop_count;
    unsigned connections;
    unsigned connections_most;
    uint64_t cpu_ns; /* of all threads */
    uint64_t memory_peak_bytes;
    uint64_t started_seconds; /* since the epoch; when statistics_begin() was called */
};

/* The server starts about now. */
void statistics_begin(void);

/*
 * Fills *out, which the caller ends with statistics_free(), also after an error. -ENOMEM. Waits for
 * a change of the exports that is under way. On the main loop. May suspend.
 */
int co_statistics_take(struct desired *desired, const struct listeners *listeners,
                       struct server_statistics *out);
void statistics_free(struct server_statistics *statistics);

/* "default" for the empty name, as a name that can be said. */
const char *export_label(const char *export_name);

/* What `per_mille` of 1000 requests did not exceed: the end of a step. 0: there were none. */
uint64_t counters_quantile_ns(const struct command_counters *counters, unsigned per_mille);

#endif
