/* SPDX-License-Identifier: BSD-2-Clause */
/*
 * For unit tests: an image in the simulated world whose disk calls are seen, can be failed, and can
 * be told apart by what they touch. A test is a body that runs in a coroutine with the image open.
 */
#ifndef QCOWD_QCOW2_TEST_RIG_H
#define QCOWD_QCOW2_TEST_RIG_H

#include <check.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "io/sim.h"
#include "io/world.h"
#include "qcow2/create.h"
#include "qcow2/engine.h"
#include "qcow2/test_images.h"
#include "qcow2/test_places.h"

#define RIG_IMAGE      "disk.qcow2"
#define RIG_EVENTS_MAX 65536U
#define RIG_LOG_BYTES  65536U

struct rig_event {
    enum rig_call call;
    char place; /* of the first byte */
    uint64_t offset;
    uint64_t len;
};

struct rig {
    struct world *world;
    struct create_options create;
    struct qcow2_open_options options;
    bool skip_check; /* the body leaves damage */
    struct image *image;
    struct qcow2 *q;

    struct rig_event *events;
    unsigned event_count;
    /* Fails the calls of a kind at a place (0: any), after `fail_skip` of them. 0: none. */
    int fail_with; /* -errno */
    enum rig_call fail_call;
    char fail_place;
    unsigned fail_skip;
    /* Looks at each call before it is made; the buffers are there for writes only. */
    void (*look)(struct rig *rig, const struct rig_event *event, const struct iovec *iov,
                 int iov_count);
    void *arg;

    char log[RIG_LOG_BYTES];
    size_t log_len;
};

typedef void rig_body(struct rig *rig);

/* Prepares a world of this seed; *rig may then be set up, and run. */
void rig_init(struct rig *rig, uint64_t seed);
/* Creates the image as rig->create says, opens it, runs the body, closes, demands a clean check. */
void rig_run(struct rig *rig, rig_body *body);
/* Runs the body without any image. */
void rig_run_bare(struct rig *rig, rig_body *body);
void rig_free(struct rig *rig);

/* Opens RIG_IMAGE and watches its disk. */
void co_rig_open(struct rig *rig);
int co_rig_try_open(struct rig *rig, struct errtext *err);
void co_rig_close(struct rig *rig);
/* Closes whatever close says. */
int co_rig_end(struct rig *rig);
void rig_put(struct rig *rig, const char *path, const struct test_image *image);
struct test_image rig_get(struct rig *rig, const char *path);
/* Corruptions and leaks by our own check of the file as it is; fails when it cannot be checked. */
void co_rig_check(struct rig *rig, uint64_t *corruptions, uint64_t *leaks);

/* Forgets the events so far. */
void rig_forget(struct rig *rig);
/*
 * The events since, without reads: the place for writes (neighbours of one place once), F flush,
 * z zero, p punch, t truncate. Data writes are left out. Valid until the next call.
 */
const char *rig_script(struct rig *rig);
unsigned rig_count(const struct rig *rig, enum rig_call call);
bool rig_logged(const struct rig *rig, const char *text);
void rig_fail(struct rig *rig, enum rig_call call, char place, unsigned skip, int with);

/* Requests that must work. */
void co_rig_write(struct rig *rig, uint64_t offset, uint64_t len, int byte);
void co_rig_trim(struct rig *rig, uint64_t offset, uint64_t len);
void co_rig_zero(struct rig *rig, uint64_t offset, uint64_t len, unsigned flags);
void co_rig_flush(struct rig *rig);
/* The range must read as this byte. */
void co_rig_expect(struct rig *rig, uint64_t offset, uint64_t len, int byte);

/* Runs fn(rig) beside the caller; co_rig_join() waits for all of them. */
void rig_spawn(struct rig *rig, void (*fn)(struct rig *rig));
void co_rig_join(struct rig *rig);

/* The main() of a test: runs the suite. */
int rig_main(Suite *suite);

#endif
