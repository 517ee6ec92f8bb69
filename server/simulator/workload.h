/* SPDX-License-Identifier: BSD-2-Clause */
/*
 * What a run does: the format of its image, how its clients choose requests and places, and the
 * clients themselves, which hold every result against the oracle.
 */
#ifndef QCOWD_SIMULATOR_WORKLOAD_H
#define QCOWD_SIMULATOR_WORKLOAD_H

#include <stdbool.h>
#include <stdint.h>

#include "qcow2/create.h"
#include "qcow2/qcow2.h"

struct run;

enum request_kind {
    REQUEST_READ,
    REQUEST_WRITE,
    REQUEST_ZERO,
    REQUEST_TRIM,
    REQUEST_FLUSH,
    REQUEST_EXTENTS,
    REQUEST_KINDS,
};

enum backing_kind { BACKING_NONE, BACKING_RAW, BACKING_QCOW2, BACKING_QCOW2_ON_RAW };

/* The data file of an image that has one. */
#define PLAN_DATA_NAME "disk.data"

struct plan {
    struct create_options create;
    struct qcow2_open_options open;
    enum backing_kind backing;
    uint64_t raw_bytes;  /* of the raw file at the end of the chain */
    uint64_t base_bytes; /* of the qcow2 file between */
    bool base_compressed;
    bool compressed; /* the image begins with compressed clusters */
    bool snapshot;   /* and with an internal snapshot */
    unsigned lives;
    unsigned clients;
    unsigned requests_per_client;
    unsigned weights[REQUEST_KINDS];
    unsigned fua_ppm;
    unsigned pause_ppm;
    /* Places: a share of the requests goes to a small hot window. */
    unsigned hot_ppm;
    uint64_t hot_offset;
    uint64_t hot_len;
    uint64_t units[3]; /* alignments to draw from */
    uint64_t longest_write_bytes;
};

void plan_draw(struct run *run);
/* Draws the places of requests anew, for a disk of another size. */
void plan_draw_places(struct run *run, uint64_t size_bytes);
/* One line. */
void plan_describe(const struct plan *plan, char *text, unsigned long text_bytes);

/* Starts the clients; each speaks to one of the images, in turn, as long as that is not ending. */
void workload_start(struct run *run, struct image *const *images, unsigned image_count);
/* A single client's worth of requests, for filling a backing file. The caller is a coroutine. */
void co_workload_fill(struct run *run, unsigned requests);
/* Reads back all that was ever written and some of the rest. The caller is a coroutine. */
void co_workload_verify(struct run *run);

#endif
