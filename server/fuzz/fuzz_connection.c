/* SPDX-License-Identifier: BSD-2-Clause */
/*
 * A whole connection to a valid image: the handshake is done as a good client does it, and the
 * input is what comes then. Its first bytes choose the client's manners, the headers and the image;
 * the rest is the wire's own bytes, or records of six bytes that become good requests. Demanded:
 * what wire_judge.h and image_rig.h demand, that no good request fails, and a clean image in the
 * end.
 */
#include <assert.h>
#include <stdlib.h>
#include <string.h>

#include "base/bytes.h"
#include "base/limits.h"
#include "fuzz/fuzz.h"
#include "fuzz/image_rig.h"
#include "fuzz/service_rig.h"
#include "fuzz/wire_judge.h"
#include "io/sim.h"
#include "proto/wire.h"

#define STEPS_MAX     2000000U
#define REQUESTS_MAX  48U
#define PAYLOAD_BYTES 8192U
#define LONG_BYTES    (256U * 1024U) /* to an export in memory, which is larger */
#define RAW_BYTES_MAX 65536U
#define SAID_MAX      (4U << 20)

/* The third byte: which headers, whether there are contexts, whether records follow. */
enum mode_bits {
    MODE_FORM = 0x03,
    MODE_CONTEXTS = 0x04,
    MODE_RECORDS = 0x08,
    MODE_SHAPE_SHIFT = 4,
};

struct job {
    struct world *world;
    struct client_manners manners;
    struct test_image image;
    bool in_memory; /* the export, instead of on a disk */
    uint8_t *said;
    size_t said_len;
    struct heard heard;
};

/* ---- What the client says ---- */

static void say(struct job *job, const void *bytes, size_t len)
{
    assert(job->said_len + len <= SAID_MAX);
    if (len > 0) {
        memcpy(job->said + job->said_len, bytes, len);
    }
    job->said_len += len;
}

static void say_option(struct job *job, uint32_t option, const void *payload, size_t len)
{
    struct wire_option header;
    put_be64(header.magic, NBD_OPTION_MAGIC);
    put_be32(header.option, option);
    put_be32(header.length, (uint32_t)len);
    say(job, &header, sizeof(header));
    say(job, payload, len);
}

static void say_handshake(struct job *job, enum header_form form, bool contexts)
{
    static const char meta[] = "\0\0\0\0"
                               "\0\0\0\4"
                               "\0\0\0\24qemu:dirty-bitmap:b0"
                               "\0\0\0\24qemu:dirty-bitmap:b1"
                               "\0\0\0\17base:allocation"
                               "\0\0\0\25qemu:allocation-depth";
    static const uint8_t flags[4] = {0, 0, 0, NBD_FLAG_FIXED_NEWSTYLE | NBD_FLAG_NO_ZEROES};
    static const uint8_t go[6] = {0};

    say(job, flags, sizeof(flags));
    if (form != HEADERS_SIMPLE) {
        say_option(job,
                   form == HEADERS_EXTENDED ? NBD_OPT_EXTENDED_HEADERS : NBD_OPT_STRUCTURED_REPLY,
                   NULL, 0);
        if (contexts) {
            say_option(job, NBD_OPT_SET_META_CONTEXT, meta, sizeof(meta) - 1);
        }
    }
    say_option(job, NBD_OPT_GO, go, sizeof(go));
}

static void say_request(struct job *job, enum header_form form, unsigned flags, uint16_t type,
                        uint64_t cookie, uint64_t offset, uint32_t len)
{
    struct wire_extended_request wire; /* both forms begin alike */
    bool extended = form == HEADERS_EXTENDED;

    put_be32(wire.magic, extended ? NBD_EXTENDED_REQUEST_MAGIC : NBD_REQUEST_MAGIC);
    put_be16(wire.flags, (uint16_t)flags);
    put_be16(wire.type, type);
    put_be64(wire.cookie, cookie);
    put_be64(wire.offset, offset);
    if (extended) {
        put_be64(wire.length, len);
    } else {
        put_be32(wire.length, len);
    }
    say(job, &wire, extended ? sizeof(wire) : sizeof(struct wire_request));
}

static void say_record(struct job *job, enum header_form form, unsigned number, struct feed *feed)
{
    static const struct {
        uint16_t type;
        uint16_t flags;
    } kinds[] = {
        {NBD_CMD_READ, NBD_CMD_FLAG_DF},
        {NBD_CMD_WRITE, 0},
        {NBD_CMD_WRITE, 0},
        {NBD_CMD_FLUSH, 0},
        {NBD_CMD_TRIM, 0},
        {NBD_CMD_WRITE_ZEROES, NBD_CMD_FLAG_NO_HOLE | NBD_CMD_FLAG_FAST_ZERO},
        {NBD_CMD_BLOCK_STATUS, NBD_CMD_FLAG_REQ_ONE},
        {NBD_CMD_CACHE, 0},
    };
    static uint8_t payload[LONG_BYTES];
    uint8_t kind = feed_u8(feed);
    unsigned type = kinds[kind % 8].type;
    unsigned flags = feed_u8(feed) & ((unsigned)kinds[kind % 8].flags | NBD_CMD_FLAG_FUA);
    uint64_t unit = kind & 0x80 ? 1 : 512;
    uint64_t size = job->in_memory ? MEMORY_IMAGE_BYTES : job->image.geo.size_bytes;
    uint64_t most = job->in_memory ? LONG_BYTES : PAYLOAD_BYTES;
    uint64_t offset = feed_u16(feed) * unit;
    uint32_t len = (uint32_t)(feed_u16(feed) % (most / unit + 1) * unit);

    if (!(kind & 0x40)) { /* inside of the export, or nearly so */
        offset %= size;
    }

    if (form == HEADERS_SIMPLE) {
        flags &= ~(unsigned)NBD_CMD_FLAG_DF;
    }
    bool writes = type == NBD_CMD_WRITE;
    flags |= writes && form == HEADERS_EXTENDED ? NBD_CMD_FLAG_PAYLOAD_LEN : 0;
    say_request(job, form, flags, (uint16_t)type, number + 1, offset, len);
    if (writes) {
        memset(payload, (int)(0xc0 + number), len);
        say(job, payload, len);
    }
}

static void say_all(struct job *job, struct feed *feed)
{
    uint8_t mode = feed_u8(feed);
    enum header_form form = (enum header_form)((mode & MODE_FORM) % 3);
    unsigned shape = mode >> MODE_SHAPE_SHIFT;
    size_t len;

    job->in_memory = shape >= IMAGE_SHAPES;
    job->image = image_rig_copy(job->in_memory ? 0 : shape, feed);
    say_handshake(job, form, mode & MODE_CONTEXTS);
    if (mode & MODE_RECORDS) {
        for (unsigned i = 0; i < REQUESTS_MAX && feed_any(feed); i++) {
            if (SAID_MAX - job->said_len > 2 * LONG_BYTES) {
                say_record(job, form, i, feed);
            }
        }
    } else {
        const uint8_t *bytes = feed_bytes(feed, RAW_BYTES_MAX, &len);
        say(job, bytes, len);
    }
}

/* ---- The whole ---- */

static void co_talk(struct job *job, struct image *image)
{
    struct nbd_export exports[] = {{.name = "", .image = image, .multi_conn = true}};
    co_converse(job->world, exports, 1, &job->manners, job->said, job->said_len, &job->heard);
}

static void co_talk_to_disk(struct job *job)
{
    struct qcow2_open_options options = {0};
    struct errtext err = {""};

    struct image *image = co_image_rig_open(job->world, &options);
    demand(image, "a valid image is refused");
    co_talk(job, image);
    int rc = image->ops->co_close(image, &err);
    demand(rc == 0, "closing: %d: %s", rc, err.text);
    struct judgement after = co_image_rig_check(job->world, CHECK_ONLY);
    demand(is_clean(&after) && after.result.leaks == 0, "%llu corruptions, %llu leaks",
           (unsigned long long)after.result.corruptions, (unsigned long long)after.result.leaks);
}

static void co_job(void *arg)
{
    static struct memory_image memory;
    struct job *job = arg;

    if (job->in_memory) {
        memory_image_init(&memory);
        co_talk(job, &memory.image);
    } else {
        co_talk_to_disk(job);
    }
}

static void judge(const struct job *job)
{
    const struct conversation_record record = {
        .said = job->said,
        .said_len = job->said_len,
        .heard = job->heard.bytes,
        .heard_len = job->heard.len,
        .request_bytes = job->manners.limits.request_bytes,
        .options_max = job->manners.limits.options,
        .undisturbed = !job->manners.lazy && !job->manners.vanishes && !job->manners.drain_ms,
    };
    struct verdict_counts counts = judge_conversation(&record);
    demand(counts.transmission || !record.undisturbed, "the good handshake fails");
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t len)
{
    static uint8_t said[SAID_MAX];
    struct feed feed = {data, len};
    uint8_t choice = feed_u8(&feed);
    uint8_t seed = feed_u8(&feed);
    struct job job = {
        .said = said,
        .manners = client_manners_of(choice, seed),
        .world = sim_create(seed),
    };

    fuzz_judge_log();
    demand(job.world, "no memory for a world");
    job.manners.tls = NBD_TLS_OFF;
    say_all(&job, &feed);
    image_rig_put(job.world, &job.image);
    fuzz_run(job.world, co_job, &job, STEPS_MAX);
    sim_free(job.world);
    test_image_free(&job.image);
    judge(&job);
    free(job.heard.bytes);
    return 0;
}
