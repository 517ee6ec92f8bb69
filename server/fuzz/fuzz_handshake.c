/* SPDX-License-Identifier: BSD-2-Clause */
/*
 * All that a client can say, from the first byte: handshake, and transmission where it comes to
 * that. An input is two bytes that choose the client's manners and the service's mode, and what it
 * says. Demanded: see wire_judge.h and service_rig.h.
 */
#include <stdlib.h>

#include "fuzz/feed.h"
#include "fuzz/fuzz.h"
#include "fuzz/service_rig.h"
#include "fuzz/wire_judge.h"
#include "io/sim.h"

#define STEPS_MAX 1000000U

struct job {
    struct world *world;
    struct client_manners manners;
    struct feed said;
    struct heard heard;
};

static bool admits_nobody(const struct nbd_export *export, const struct stream *stream)
{
    (void)export;
    (void)stream;
    return false;
}

static void co_job(void *arg)
{
    struct job *job = arg;
    static struct memory_image writable, read_only;

    memory_image_init(&writable);
    memory_image_init(&read_only);
    read_only.image.read_only = true;
    struct nbd_export exports[] = {
        {.name = "", .image = &writable.image, .multi_conn = true},
        {.name = "ro",
         .description = "never written",
         .image = &read_only.image,
         .read_only = true},
        {.name = "hidden", .image = &writable.image, .admits = admits_nobody},
        {.name = "secret", .image = &writable.image, .tls_only = true},
    };
    co_converse(job->world, exports, ARRAY_LEN(exports), &job->manners, job->said.bytes,
                job->said.left, &job->heard);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t len)
{
    struct feed feed = {data, len};
    uint8_t choice = feed_u8(&feed);
    uint8_t seed = feed_u8(&feed);
    struct job job = {
        .manners = client_manners_of(choice, seed),
        .said = feed,
        .world = sim_create(seed),
    };

    fuzz_judge_log();
    demand(job.world, "no memory for a world");
    fuzz_run(job.world, co_job, &job, STEPS_MAX);
    sim_free(job.world);
    const struct conversation_record record = {
        .said = feed.bytes,
        .said_len = feed.left,
        .heard = job.heard.bytes,
        .heard_len = job.heard.len,
        .request_bytes = job.manners.limits.request_bytes,
        .options_max = job.manners.limits.options,
        .undisturbed = !job.manners.lazy && !job.manners.vanishes && !job.manners.drain_ms,
    };
    judge_conversation(&record);
    free(job.heard.bytes);
    return 0;
}
