/* SPDX-License-Identifier: BSD-2-Clause */
/*
 * The engine over images that somebody has tampered with. An input is which image, how it is used,
 * and records: first damages, then requests. Demanded: see image_rig.h; an image that the check
 * calls clean opens, obeys, and is clean afterwards, with the bytes that were written.
 */
#include <assert.h>
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "base/limits.h"
#include "fuzz/fuzz.h"
#include "fuzz/image_rig.h"
#include "io/sim.h"
#include "sched/co.h"
#include "sched/sync.h"

#define STEPS_MAX    400000U
#define REQUESTS_MAX 32U
#define WINDOW_BYTES (192U * 1024U) /* of the guest's disk that requests reach */
#define MOST_BYTES   (24U * 1024U)  /* in one request */

enum usage {
    USE_READ_ONLY = 1U << 0,
    USE_KEEP_SPACE = 1U << 1,
    USE_QUICK_COMMITS = 1U << 2,
    USE_REPAIR_LEAKS = 1U << 3,
    USE_REPAIR_ALL = 1U << 4,
    USE_SMALL_CACHE = 1U << 5,
    USE_FAULTS = 1U << 6, /* the disk fails now and then, once the image is open */
    USE_BELOW = 1U << 7,  /* it is the backing file of the image that is used */
};

/* A request's first byte; bit 7 tells it from a damage. */
enum request_bits {
    REQUEST_KIND = 0x07,
    REQUEST_FUA = 0x08,
    REQUEST_BYTES = 0x10,  /* offset and length are in bytes instead of sectors */
    REQUEST_BESIDE = 0x20, /* others begin before it has ended */
    REQUEST_AT_END = 0x40, /* the offset is counted from the end of the disk */
    REQUEST_MARK = 0x80,
};

enum kinds { WRITE, READ, TRIM, ZERO, ZERO_KEEP, ZERO_FAST, STATUS, FLUSH };

struct job;

struct plan {
    struct job *job;
    uint8_t op;
    uint64_t offset;
    uint64_t len;
    unsigned number;
    int result;
};

struct job {
    struct world *world;
    struct test_image damaged;
    unsigned usage;
    bool untouched;        /* nothing has damaged it */
    bool counts_untouched; /* its refcounts are right behind the end of the file, too */
    struct feed requests;
    struct image *image;
    bool sound; /* the check has found nothing: bytes are compared, nothing may fail */
    uint64_t window_bytes;
    uint8_t *expected; /* of [0, window_bytes) */
    uint8_t *known;    /* whether a byte's value is known */
    struct plan plans[REQUESTS_MAX];
    unsigned plan_count;
    unsigned first_beside; /* plans from here on have not been waited for */
    struct group beside;
};

/* ---- What must be there ---- */

static void expect(struct job *job, const struct plan *plan, int value)
{
    for (uint64_t at = plan->offset; at < plan->offset + plan->len; at++) {
        if (at < job->window_bytes) {
            job->known[at] = job->sound && value >= 0;
            job->expected[at] = (uint8_t)value;
        }
    }
}

static void compare(struct job *job, uint64_t offset, const uint8_t *bytes, uint64_t len)
{
    for (uint64_t i = 0; i < len && offset + i < job->window_bytes; i++) {
        uint64_t at = offset + i;
        demand(!job->known[at] || job->expected[at] == bytes[i],
               "guest byte %llu is 0x%02x instead of 0x%02x", (unsigned long long)at, bytes[i],
               job->expected[at]);
    }
}

/* Reads the window sector by sector: what cannot be read is not known. */
static void co_learn(struct job *job)
{
    uint8_t sector[512];

    for (uint64_t at = 0; at < job->window_bytes; at += sizeof(sector)) {
        uint64_t len = MIN_OF(sizeof(sector), job->window_bytes - at);
        int rc = job->image->ops->co_read(job->image, at, sector, len, NULL);
        memset(job->known + at, rc == 0, len);
        memcpy(job->expected + at, sector, len);
    }
}

static void co_compare_all(struct job *job)
{
    uint8_t *bytes = malloc(job->window_bytes);

    assert(bytes);
    for (uint64_t at = 0; at < job->window_bytes; at += 4096) {
        uint64_t len = MIN_OF(4096U, job->window_bytes - at);
        int rc = job->image->ops->co_read(job->image, at, bytes, len, NULL);
        if (rc == 0) {
            compare(job, at, bytes, len);
        }
    }
    free(bytes);
}

/* ---- Requests ---- */

static void judge_extents(const struct plan *plan, const struct extent_list *list)
{
    uint64_t total = 0;

    demand(list->count > 0 && list->count <= list->capacity, "%u extents", list->count);
    for (unsigned i = 0; i < list->count; i++) {
        demand(list->extents[i].len > 0, "an extent of no bytes");
        demand(list->extents[i].len <= plan->len - total, "extents behind what was asked for");
        demand(!(list->extents[i].flags & ~(unsigned)(EXTENT_HOLE | EXTENT_ZERO)), "flags 0x%x",
               list->extents[i].flags);
        total += list->extents[i].len;
    }
}

static int co_status(struct image *image, const struct plan *plan)
{
    struct extent extents[4];
    struct extent_list list = {extents, 1 + plan->number % 4, 0};
    int rc = image->ops->co_extents(image, plan->offset, plan->len, &list);
    if (rc == 0) {
        judge_extents(plan, &list);
    }
    return rc;
}

/* With the holes filled in, as a client would. */
static int co_read(const struct plan *plan, uint8_t *bytes)
{
    struct image *image = plan->job->image;
    struct read_holes holes;
    bool want_holes = plan->op & REQUEST_FUA;
    int rc = image->ops->co_read(image, plan->offset, bytes, plan->len, want_holes ? &holes : NULL);

    for (unsigned i = 0; rc == 0 && want_holes && i < holes.count; i++) {
        demand(range_inside(holes.run[i].offset, holes.run[i].len, plan->len) &&
                   holes.run[i].len > 0,
               "a hole outside of the read");
        memset(bytes + holes.run[i].offset, 0, holes.run[i].len);
    }
    return rc;
}

static int co_carry_out(struct plan *plan, uint8_t *bytes)
{
    struct image *image = plan->job->image;
    const struct image_ops *ops = image->ops;
    unsigned fua = plan->op & REQUEST_FUA ? IMAGE_FUA : 0;

    switch ((enum kinds)(plan->op & REQUEST_KIND)) {
    case WRITE:
        return ops->co_write(image, plan->offset, bytes, plan->len, fua);
    case READ:
        return co_read(plan, bytes);
    case TRIM:
        return ops->co_trim(image, plan->offset, plan->len, fua);
    case ZERO:
        return ops->co_zero(image, plan->offset, plan->len, fua);
    case ZERO_KEEP:
        return ops->co_zero(image, plan->offset, plan->len, fua | IMAGE_NO_HOLE);
    case ZERO_FAST:
        return ops->co_zero(image, plan->offset, plan->len, fua | IMAGE_FAST_ZERO);
    case STATUS:
        return co_status(image, plan);
    case FLUSH:
        return ops->co_flush(image);
    }
    return 0;
}

static bool is_change(const struct plan *plan)
{
    unsigned kind = plan->op & REQUEST_KIND;
    return kind != READ && kind != STATUS && kind != FLUSH;
}

/* What the bytes are once it has worked. -1: not known, or as before. */
static int value_after(const struct job *job, const struct plan *plan)
{
    switch (plan->op & REQUEST_KIND) {
    case WRITE:
        return (int)(0xc0 + plan->number);
    case TRIM:
        return job->usage & USE_KEEP_SPACE ? -1 : 0;
    default:
        return 0;
    }
}

static void judge_result(const struct plan *plan)
{
    const struct job *job = plan->job;
    int rc = plan->result;
    bool fast = (plan->op & REQUEST_KIND) == ZERO_FAST;

    demand(rc == 0 || rc == -EIO || rc == -ENOSPC || (rc == -ENOTSUP && fast) ||
               (rc == -EROFS && job->image->read_only),
           "request %u ends with %d", plan->number, rc);
    /* Compressed bytes may be garbage, and backing files missing bytes: no check looks there. */
    demand(!job->sound || rc != -ENOSPC, "request %u finds no room", plan->number);
}

static void co_request(void *arg)
{
    struct plan *plan = arg;
    struct job *job = plan->job;
    uint8_t *bytes = malloc(plan->len);

    assert(bytes);
    memset(bytes, (int)(0xc0 + plan->number), plan->len);
    plan->result = co_carry_out(plan, bytes);
    judge_result(plan);
    bool alone = !(plan->op & REQUEST_BESIDE);
    if (alone && plan->result == 0 && (plan->op & REQUEST_KIND) == READ) {
        compare(job, plan->offset, bytes, plan->len);
    }
    free(bytes);
    group_leave(&job->beside);
}

static void co_join(struct job *job)
{
    co_group_wait(&job->beside);
    bool alone = job->plan_count - job->first_beside == 1;
    for (unsigned i = job->first_beside; i < job->plan_count; i++) {
        const struct plan *plan = &job->plans[i];
        if (is_change(plan) && plan->result != -EROFS && plan->result != -ENOTSUP) {
            expect(job, plan, alone && plan->result == 0 ? value_after(job, plan) : -1);
        }
    }
    job->first_beside = job->plan_count;
}

static void make_plan(struct job *job, struct plan *plan)
{
    struct feed *feed = &job->requests;
    uint64_t size = job->image->size_bytes;

    *plan = (struct plan){.job = job, .number = job->plan_count, .op = feed_u8(feed)};
    uint64_t unit = plan->op & REQUEST_BYTES ? 1 : 512;
    uint64_t reach = MIN_OF(size, WINDOW_BYTES);
    plan->offset = feed_u16(feed) * unit % reach;
    if (plan->op & REQUEST_AT_END) {
        plan->offset += size - reach;
    }
    uint64_t wish = (feed_u8(feed) + 1U) * (plan->op & REQUEST_BYTES ? 31 : 512);
    plan->len = MIN_OF(MIN_OF(wish, MOST_BYTES), size - plan->offset);
}

static void co_requests(struct job *job)
{
    while (feed_any(&job->requests) && job->plan_count < REQUESTS_MAX) {
        struct plan *plan = &job->plans[job->plan_count];
        make_plan(job, plan);
        bool beside = plan->op & REQUEST_BESIDE;
        if (!beside) {
            co_join(job);
        }
        job->plan_count++;
        group_enter(&job->beside);
        int rc = coro_spawn(co_request, plan, "fuzz request");
        demand(rc == 0, "no memory for a coroutine");
        if (!beside) {
            co_join(job);
        }
    }
    co_join(job);
}

/* ---- The whole ---- */

static void co_close(struct job *job)
{
    struct errtext err = {""};
    int rc = job->image->ops->co_close(job->image, &err);
    fuzz_demand_line("a message", err.text);
    demand(rc == 0 || job->usage & USE_FAULTS, "closing: %d: %s", rc, err.text);
    demand(rc == 0 || err.text[0], "closing: %d, and no word", rc);
    job->image = NULL;
}

static void co_use(struct job *job)
{
    static const struct sim_faults faults = {
        .read_eio_ppm = 20000,
        .write_eio_ppm = 5000,
        .flush_eio_ppm = 5000,
        .enospc_ppm = 50000,
        .punch_unsupported_ppm = 100000,
    };
    struct qcow2_open_options options = {
        .read_only = job->usage & USE_READ_ONLY,
        .trim = job->usage & USE_KEEP_SPACE ? TRIM_IGNORE : TRIM_UNMAP,
        .commit_interval_ms = job->usage & USE_QUICK_COMMITS ? 1 : 0,
        .cache_bytes = job->usage & USE_SMALL_CACHE ? 8192 : 0,
    };

    job->image = co_image_rig_open(job->world, &options);
    if (!job->image) {
        return;
    }
    if (job->usage & USE_FAULTS) {
        sim_set_faults(job->world, &faults);
    }
    job->window_bytes = MIN_OF(job->image->size_bytes, WINDOW_BYTES);
    memset(job->known, 0, job->window_bytes);
    if (job->window_bytes > 0) {
        if (job->sound) {
            co_learn(job);
        }
        co_requests(job);
        int rc = job->image->ops->co_flush(job->image);
        demand(rc == 0 || !job->sound, "flush: %d", rc);
        if (job->sound) {
            co_compare_all(job);
        }
    }
    co_close(job);
}

/* What is on the disk now, by whoever opens it next. */
static void co_look_again(struct job *job, const struct judgement *before)
{
    struct qcow2_open_options options = {.read_only = true};
    struct judgement after = co_image_rig_check(job->world, CHECK_ONLY);

    demand(after.checked && after.result.corruptions == after.needless_copies,
           "%llu corruptions where there were none", (unsigned long long)after.result.corruptions);
    demand(after.result.leaks <= before->result.leaks || !job->counts_untouched,
           "%llu leaks where there were %llu", (unsigned long long)after.result.leaks,
           (unsigned long long)before->result.leaks);
    job->image = co_image_rig_open(job->world, &options);
    if (job->image) {
        co_compare_all(job);
        co_close(job);
    }
}

static struct judgement co_repair(struct job *job)
{
    enum check_repair how = job->usage & USE_REPAIR_ALL ? CHECK_REPAIR_ALL : CHECK_REPAIR_LEAKS;
    struct judgement repaired = co_image_rig_check(job->world, how);
    struct judgement now = co_image_rig_check(job->world, CHECK_ONLY);

    if (repaired.checked) {
        demand(now.checked, "repaired, and cannot be checked any more");
        demand(now.result.corruptions == repaired.result.corruptions &&
                   now.result.leaks == repaired.result.leaks,
               "repair leaves %llu corruptions and %llu leaks, a check finds %llu and %llu",
               (unsigned long long)repaired.result.corruptions,
               (unsigned long long)repaired.result.leaks,
               (unsigned long long)now.result.corruptions, (unsigned long long)now.result.leaks);
    }
    return now;
}

static void co_job(void *arg)
{
    struct job *job = arg;
    struct judgement before = co_image_rig_check(job->world, CHECK_ONLY);

    if (job->usage & (USE_REPAIR_LEAKS | USE_REPAIR_ALL)) {
        before = co_repair(job);
    }
    job->sound = is_clean(&before) && before.may_write && !(job->usage & (USE_FAULTS | USE_BELOW));
    demand(job->sound || !job->untouched || job->usage & (USE_FAULTS | USE_BELOW),
           "the image is not sound to begin with");
    co_use(job);
    if (job->sound) {
        co_look_again(job, &before);
    }
    if (job->usage & USE_BELOW) {
        image_rig_demand_unchanged(job->world, &job->damaged);
    }
}

static void prepare(struct job *job, struct feed *feed)
{
    static uint8_t expected_bytes[WINDOW_BYTES], known_bytes[WINDOW_BYTES];
    unsigned shape = feed_u8(feed) % (IMAGE_SHAPES + 1);
    uint8_t usage = feed_u8(feed);
    uint64_t seed = feed_u8(feed);
    struct feed records = *feed;

    job->usage = usage;
    job->damaged = image_rig_copy(shape, feed);
    job->requests = *feed;
    if (shape < IMAGE_SHAPES) {
        job->counts_untouched = true;
        job->untouched = shape != IMAGE_DIRTY_SHAPE;
        while (feed_any(&records) && !(*records.bytes & REQUEST_MARK)) {
            uint8_t op = feed_u8(&records);
            image_rig_damage(&job->damaged, op, &records);
            job->untouched = false;
            job->counts_untouched = job->counts_untouched && !image_rig_damages_counts(op);
        }
        job->requests = records;
    } else { /* the input's rest was the image */
        static const uint8_t some[] = {0x81, 0, 0, 40,  0x80, 0, 4, 9, 0x82, 0, 2, 5, 0x83, 0, 8, 5,
                                       0x86, 0, 0, 255, 0xc0, 0, 1, 1, 0x81, 0, 0, 99};
        job->requests = (struct feed){some, sizeof(some)};
    }
    job->world = sim_create(seed);
    demand(job->world, "no memory for a world");
    job->expected = expected_bytes;
    job->known = known_bytes;
    group_init(&job->beside);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t len)
{
    struct feed feed = {data, len};
    struct job *job = calloc(1, sizeof(*job));

    assert(job);
    fuzz_judge_log();
    prepare(job, &feed);
    if (job->usage & USE_BELOW) {
        image_rig_put_below(job->world, &job->damaged);
    } else {
        image_rig_put(job->world, &job->damaged);
    }
    fuzz_run(job->world, co_job, job, STEPS_MAX);
    sim_free(job->world);
    test_image_free(&job->damaged);
    free(job);
    return 0;
}
