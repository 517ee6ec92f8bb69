/* SPDX-License-Identifier: BSD-2-Clause */
/*
 * Every draw comes from the world's stream for workloads, so that a seed fixes it. Contention is
 * what finds mistakes, so places crowd into a hot window of a few clusters in most runs.
 */
#include "simulator/workload.h"

#include <errno.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/check.h"
#include "base/limits.h"
#include "crypto/library.h"
#include "simulator/run.h"

static const char *const request_names[] = {"read", "write", "zero", "trim", "flush", "extents"};

static uint64_t below(struct run *run, uint64_t bound)
{
    return sim_random_below(run->world, bound);
}

static bool chance(struct run *run, unsigned ppm)
{
    return below(run, 1000000) < ppm;
}

/* Roughly log-uniform in [least, most]. */
static uint64_t draw_size(struct run *run, uint64_t least, uint64_t most)
{
    uint64_t ceiling = least;
    while (ceiling < most && below(run, 4) != 0) {
        ceiling *= 2;
    }
    return least + below(run, MIN_OF(ceiling, most) - least + 1);
}

static void draw_format(struct run *run)
{
    static const uint8_t cluster_bits[] = {9,  9,  10, 11, 12, 12, 13, 14,
                                           14, 15, 16, 16, 16, 18, 21};
    struct plan *plan = &run->plan;
    create_options_init(&plan->create);
    uint32_t bits = cluster_bits[below(run, ARRAY_LEN(cluster_bits))];
    plan->create.cluster_bytes = 1ULL << bits;
    plan->create.version = below(run, 5) == 0 ? 2 : 3;
    if (plan->create.version == 3) {
        plan->create.refcount_bits = below(run, 2) ? 16 : 1U << below(run, 7);
        plan->create.extended_l2 = bits >= 14 && below(run, 2) == 0;
        plan->create.lazy_refcounts = below(run, 8) == 0;
    }
    uint64_t most = below(run, 8) == 0 ? 64 * MIB : 2 * MIB;
    uint64_t least = MAX_OF(64 * KIB, plan->create.cluster_bytes * 2);
    plan->create.size_bytes = round_up_to(draw_size(run, least, MAX_OF(most, 4 * least)), 512);
    if (below(run, 2)) {
        plan->create.size_bytes = round_up_to(plan->create.size_bytes, plan->create.cluster_bytes);
    }
}

static void draw_backing(struct run *run)
{
    struct plan *plan = &run->plan;
    uint64_t most = plan->create.size_bytes * 3 / 2;
    plan->backing = below(run, 2) ? BACKING_NONE : (enum backing_kind)(1 + below(run, 3));
    plan->raw_bytes = 512 + below(run, most);
    plan->base_bytes = round_up_to(512 + below(run, most), 512);
    if (plan->backing == BACKING_RAW) {
        plan->create.backing_name = "base.raw";
        plan->create.backing_format = "raw";
    } else if (plan->backing != BACKING_NONE) {
        plan->create.backing_name = "base.qcow2";
        plan->create.backing_format = "qcow2";
    }
    plan->base_compressed = below(run, 3) == 0;
}

static void draw_dress(struct run *run)
{
    struct plan *plan = &run->plan;
    plan->compressed = below(run, 4) == 0;
    plan->snapshot = below(run, 4) == 0 && plan->create.refcount_bits > 1;
}

void plan_draw_places(struct run *run, uint64_t size_bytes)
{
    struct plan *plan = &run->plan;
    uint64_t cluster = plan->create.cluster_bytes;
    uint64_t size = size_bytes;
    uint64_t units[] = {1, 512, 512, 4096, cluster / 32, cluster, cluster};
    for (unsigned i = 0; i < ARRAY_LEN(plan->units); i++) {
        plan->units[i] = MAX_OF(units[below(run, ARRAY_LEN(units))], 1U);
    }
    plan->hot_ppm = (unsigned)below(run, 1000001);
    plan->hot_len = MIN_OF(size, cluster * (1 + below(run, 6)));
    plan->hot_offset = round_down_to(below(run, size - plan->hot_len + 1), MIN_OF(cluster, size));
    plan->longest_write_bytes = MIN_OF(size, MIN_OF(cluster * (1 + below(run, 5)), 256 * KIB));
    if (below(run, 8) == 0) {
        plan->longest_write_bytes = MIN_OF(size, 1 * MIB);
    }
}

/*
 * Some images are encrypted: found from the seed, and not drawn, so that others are what they were.
 * Compressed clusters are not encrypted, and nobody makes such images.
 */
static void choose_encryption(struct run *run)
{
    static uint8_t passphrase[] = "seed";
    static const struct image_key key = {"the plan", passphrase, sizeof(passphrase) - 1};
    static const char *const modes[] = {"cbc", "ctr", "xts"};
    struct plan *plan = &run->plan;
    uint64_t chosen = run->seed * 0x9e3779b97f4a7c15ULL >> 32;
    if (!crypto_library_present() || chosen % 8 != 0) {
        return;
    }
    plan->create.encryption = (struct encryption_options){
        .luks = true,
        .cipher_alg = "aes-128",
        .cipher_mode = modes[chosen / 8 % ARRAY_LEN(modes)],
        .iterations = 1,
    };
    plan->create.key = plan->open.keys = &key;
    plan->open.key_count = 1;
    plan->compressed = false;
}

/* The same for external data files, which are for disks without snapshots and compression. */
static void choose_data_file(struct run *run)
{
    struct plan *plan = &run->plan;
    uint64_t chosen = run->seed * 0x9e3779b97f4a7c15ULL >> 40;
    if (plan->create.version < 3 || chosen % 8 != 0) {
        return;
    }
    plan->create.data_file_name = PLAN_DATA_NAME;
    plan->create.data_file_raw =
        chosen / 8 % 2 == 0 && plan->backing == BACKING_NONE && !plan->create.encryption.luks;
    plan->compressed = false;
    plan->snapshot = false;
}

void plan_draw(struct run *run)
{
    static const unsigned usual_weights[REQUEST_KINDS] = {8, 12, 4, 4, 1, 1};
    static const uint64_t cache_bytes[] = {1, 16 * KIB, 256 * KIB, 0};
    static const uint64_t commit_ms[] = {1, 3, 50, 5000};
    struct plan *plan = &run->plan;
    memset(plan, 0, sizeof(*plan));
    draw_format(run);
    draw_backing(run);
    draw_dress(run);
    plan_draw_places(run, plan->create.size_bytes);
    plan->open.trim = below(run, 10) == 0 ? TRIM_IGNORE : TRIM_UNMAP;
    plan->open.cache_bytes = cache_bytes[below(run, ARRAY_LEN(cache_bytes))];
    plan->open.commit_interval_ms = commit_ms[below(run, ARRAY_LEN(commit_ms))];
    plan->lives = 1 + (unsigned)below(run, 5);
    plan->clients = 1 + (unsigned)below(run, below(run, 4) == 0 ? 16 : 6);
    plan->requests_per_client = 4 + (unsigned)below(run, 40);
    for (unsigned i = 0; i < REQUEST_KINDS; i++) {
        plan->weights[i] = 1 + (unsigned)below(run, usual_weights[i] * 2);
        if (i != REQUEST_WRITE && below(run, 8) == 0) {
            plan->weights[i] = 0;
        }
    }
    plan->fua_ppm = below(run, 2) ? 0 : (unsigned)below(run, 300000);
    plan->pause_ppm = below(run, 2) ? 0 : (unsigned)below(run, 500000);
    choose_encryption(run);
    choose_data_file(run);
}

void plan_describe(const struct plan *plan, char *text, unsigned long text_bytes)
{
    static const char *const backing[] = {"none", "raw", "qcow2", "qcow2 on raw"};
    snprintf(text, text_bytes,
             "version %u, %" PRIu64 " bytes, clusters of %" PRIu64
             ", refcounts of %u bits%s%s%s%s%s%s, "
             "backing %s (raw %" PRIu64 ", qcow2 %" PRIu64 "), cache %" PRIu64 ", commit %" PRIu64
             " ms, %s, %u lives of %u clients with %u requests",
             plan->create.version, plan->create.size_bytes, plan->create.cluster_bytes,
             plan->create.refcount_bits, plan->create.extended_l2 ? ", extended L2" : "",
             plan->create.lazy_refcounts ? ", lazy refcounts" : "",
             plan->compressed ? ", compressed" : "", plan->snapshot ? ", snapshot" : "",
             plan->create.encryption.luks ? ", encrypted" : "",
             plan->create.data_file_raw    ? ", raw data file"
             : plan->create.data_file_name ? ", data file"
                                           : "",
             backing[plan->backing], plan->raw_bytes, plan->base_bytes, plan->open.cache_bytes,
             plan->open.commit_interval_ms,
             plan->open.trim == TRIM_UNMAP ? "trim unmaps" : "trim ignored", plan->lives,
             plan->clients, plan->requests_per_client);
}

struct request {
    struct image *image;
    enum request_kind kind;
    uint64_t number;
    uint64_t offset;
    uint64_t len;
    unsigned flags;
    uint32_t value;
    uint64_t began;    /* the oracle's moment */
    uint64_t began_ns; /* the simulated time */
};

static enum request_kind draw_kind(struct run *run)
{
    const struct plan *plan = &run->plan;
    unsigned total = 0;
    for (unsigned i = 0; i < REQUEST_KINDS; i++) {
        total += plan->weights[i];
    }
    uint64_t drawn = below(run, total);
    unsigned kind = 0;
    while (drawn >= plan->weights[kind]) {
        drawn -= plan->weights[kind++];
    }
    return (enum request_kind)kind;
}

static bool changes(enum request_kind kind)
{
    return kind == REQUEST_WRITE || kind == REQUEST_ZERO || kind == REQUEST_TRIM;
}

/* The same place, more or less, in the window that all changes go to, or all of that. */
static void put_in_window(struct run *run, struct request *request)
{
    const struct life *life = &run->life;
    uint64_t in_window = request->offset % life->window_len;
    if (below(run, 2)) {
        in_window = 0;
        request->len = life->window_len;
    }
    request->offset = life->window_offset + in_window;
    request->len = MIN_OF(request->len, life->window_len - in_window);
}

/* A place inside the disk: aligned to one of the plan's units at both ends, or to none. */
static void draw_place(struct run *run, struct request *request)
{
    const struct plan *plan = &run->plan;
    uint64_t size = run->resize.end_bytes ? run->resize.end_bytes : request->image->size_bytes;
    uint64_t unit = plan->units[below(run, ARRAY_LEN(plan->units))];
    uint64_t longest = plan->longest_write_bytes;
    if ((request->kind == REQUEST_ZERO || request->kind == REQUEST_TRIM ||
         request->kind == REQUEST_EXTENTS) &&
        below(run, 3) == 0) {
        longest = below(run, 8) == 0 ? size : longest * 4;
    }
    uint64_t offset = chance(run, plan->hot_ppm) && plan->hot_offset + plan->hot_len <= size
                          ? plan->hot_offset + below(run, plan->hot_len)
                          : below(run, size);
    uint64_t len = 1 + below(run, below(run, 2) ? longest : MIN_OF(longest, 4 * unit));
    offset = offset / unit * unit;
    len = div_round_up(len, unit) * unit;
    request->offset = offset;
    request->len = MIN_OF(len, size - offset);
    if (run->life.window_len != 0 && changes(request->kind)) {
        put_in_window(run, request);
    }
}

static void trace_request(struct run *run, const struct request *request, const char *suffix)
{
    if (!run->trace) {
        return;
    }
    run_trace(run, "%6" PRIu64 " %s%s%s%s [%#" PRIx64 ", +%#" PRIx64 ") value %" PRIu32 "%s",
              request->number, request_names[request->kind],
              request->flags & IMAGE_FUA ? " fua" : "",
              request->flags & IMAGE_NO_HOLE ? " no-hole" : "",
              request->flags & IMAGE_FAST_ZERO ? " fast" : "", request->offset, request->len,
              request->value, suffix);
}

static void request_begin(struct run *run, struct request *request)
{
    request->number = ++run->requests;
    request->began_ns = world_now_ns(run->world);
    run->statistics->requests++;
    run->statistics->requests_by_kind[request->kind]++;
    bool ignored = request->kind == REQUEST_TRIM && run->plan.open.trim == TRIM_IGNORE;
    if (request->kind == REQUEST_FLUSH) {
        request->began = oracle_flush_begin(run->oracle);
    } else if (!changes(request->kind) || ignored) {
        request->began = oracle_read_begin(run->oracle);
    } else {
        request->began =
            oracle_write_begin(run->oracle, request->offset, request->len, request->value);
    }
    trace_request(run, request, "");
}

/* Where room is just enough, a disk that takes its time over an older request may hide it. */
static bool looked_long_for_room(const struct run *run, const struct request *request)
{
    uint64_t took_ns = world_now_ns(run->world) - request->began_ns;
    return run->life.window_len != 0 && took_ns >= LIMIT_ROOM_SEARCH_MS * 1000000ULL;
}

/* Whether the life at hand allows this result. */
static void judge_result(struct run *run, const struct request *request, int result)
{
    const struct life *life = &run->life;
    const char *name = request_names[request->kind];
    bool reading = request->kind == REQUEST_READ || request->kind == REQUEST_EXTENTS;
    if (result == 0) {
        bool ignored = request->kind == REQUEST_TRIM && run->plan.open.trim == TRIM_IGNORE;
        if (!reading && !ignored && request->began > life->stuck_since) {
            run_fail(run, "request %" PRIu64 " (%s) succeeded after a flush had failed (O8)",
                     request->number, name);
        }
        return;
    }
    run->statistics->failed_requests++;
    bool allowed =
        (result == -EIO && life->may_eio) ||
        (result == -ENOSPC && life->may_enospc && !reading && request->began < life->room_since) ||
        (result == -ENOSPC && looked_long_for_room(run, request)) ||
        (result == -ENOTSUP && (request->flags & IMAGE_FAST_ZERO)) ||
        ((result == -ENOTCONN || result == -ESHUTDOWN) && life->hung_up);
    if (!allowed && result == -ENOSPC && life->window_len != 0) {
        run_fail(run, "request %" PRIu64 " (%s) finds no room, and there is room for all there is",
                 request->number, name);
    }
    if (!allowed) {
        run_fail(run, "request %" PRIu64 " (%s [%#" PRIx64 ", +%#" PRIx64 ")) failed: %s",
                 request->number, name, request->offset, request->len, strerror(-result));
    }
}

/*
 * Ends a request of the living; false when the power was cut meanwhile and nothing may be learnt.
 */
static bool request_end(struct run *run, const struct request *request, int result)
{
    if (sim_crashed(run->world)) {
        return false;
    }
    char suffix[32];
    snprintf(suffix, sizeof(suffix), " -> %d", result);
    trace_request(run, request, suffix);
    judge_result(run, request, result);
    return true;
}

static void change_end(struct run *run, const struct request *request, int result)
{
    if (!request_end(run, request, result)) {
        return;
    }
    if (request->kind == REQUEST_TRIM && run->plan.open.trim == TRIM_IGNORE) {
        oracle_read_drop(run->oracle, request->began);
        return;
    }
    enum oracle_outcome outcome = result == 0          ? ORACLE_DONE
                                  : result == -ENOTSUP ? ORACLE_NOTHING
                                                       : ORACLE_MAYBE;
    oracle_write_end(run->oracle, request->offset, request->len, request->began, outcome,
                     (request->flags & IMAGE_FUA) != 0);
}

static void *buffer_new(size_t len)
{
    void *buf = malloc(len);
    if (!buf) {
        abort();
    }
    return buf;
}

static void co_write_request(struct run *run, struct request *request)
{
    struct image *image = request->image;
    uint8_t *buf = buffer_new((size_t)request->len);
    request->value = ++run->last_value;
    oracle_pattern(request->value, request->offset, buf, (size_t)request->len);
    request_begin(run, request);
    int result =
        image->ops->co_write(image, request->offset, buf, (size_t)request->len, request->flags);
    change_end(run, request, result);
    free(buf);
}

static void co_zero_request(struct run *run, struct request *request)
{
    struct image *image = request->image;
    request_begin(run, request);
    int result = request->kind == REQUEST_ZERO
                     ? image->ops->co_zero(image, request->offset, request->len, request->flags)
                     : image->ops->co_trim(image, request->offset, request->len, request->flags);
    change_end(run, request, result);
}

static void read_end(struct run *run, const struct request *request, const void *buf, size_t len)
{
    char why[4096];
    if (!oracle_read_end(run->oracle, request->began, request->offset, buf, len, why,
                         sizeof(why))) {
        run_fail(run, "request %" PRIu64 " (%s): %s", request->number, request_names[request->kind],
                 why);
    }
}

static void holes_fill(const struct run *run, const struct request *request,
                       const struct read_holes *holes, uint8_t *buf)
{
    size_t done = 0;
    for (unsigned i = 0; i < holes->count; i++) {
        if (holes->run[i].len == 0 || holes->run[i].offset < done ||
            !range_inside(holes->run[i].offset, holes->run[i].len, request->len)) {
            run_fail(run, "request %" PRIu64 ": holes out of order or out of the request",
                     request->number);
        }
        memset(buf + holes->run[i].offset, 0, holes->run[i].len);
        done = holes->run[i].offset + holes->run[i].len;
    }
}

static void co_read_request(struct run *run, struct request *request)
{
    struct image *image = request->image;
    struct read_holes holes = {0};
    uint8_t *buf = buffer_new((size_t)request->len);
    bool ask_holes = below(run, 2) == 0;
    memset(buf, 0xa5, (size_t)request->len);
    request_begin(run, request);
    int result = image->ops->co_read(image, request->offset, buf, (size_t)request->len,
                                     ask_holes ? &holes : NULL);
    if (request_end(run, request, result)) {
        if (result == 0) {
            holes_fill(run, request, &holes, buf);
            read_end(run, request, buf, (size_t)request->len);
        } else {
            oracle_read_drop(run->oracle, request->began);
        }
    }
    free(buf);
}

static void co_flush_request(struct run *run, struct request *request)
{
    struct image *image = request->image;
    request_begin(run, request);
    int result = image->ops->co_flush(image);
    if (!request_end(run, request, result)) {
        return;
    }
    if (result == 0) {
        oracle_flush_done(run->oracle, request->began);
    } else if (run->life.flush_fails && result == -EIO) {
        run->life.stuck_since = MIN_OF(run->life.stuck_since, oracle_flush_begin(run->oracle));
    }
}

/* What is called zero must read as zeroes. */
static void extents_check(struct run *run, const struct request *request,
                          const struct extent_list *list)
{
    static const uint8_t zeroes[64 * KIB];
    char why[4096];
    uint64_t done = 0;
    for (unsigned i = 0; i < list->count; i++) {
        const struct extent *extent = &list->extents[i];
        if (extent->len == 0 || extent->len > request->len - done) {
            run_fail(run, "request %" PRIu64 ": extent %u has length %" PRIu64, request->number, i,
                     extent->len);
        }
        uint64_t part;
        for (uint64_t at = 0; (extent->flags & EXTENT_ZERO) && at < extent->len; at += part) {
            part = MIN_OF(extent->len - at, sizeof(zeroes));
            if (!oracle_read_check(run->oracle, request->began, request->offset + done + at, zeroes,
                                   (size_t)part, why, sizeof(why))) {
                run_fail(run, "request %" PRIu64 ": an extent of zeroes: %s", request->number, why);
            }
        }
        done += extent->len;
    }
    /* An error behind the first extent ends the list early. */
    bool may_be_short = list->count == list->capacity || run->life.may_eio;
    if (list->count == 0 || (!may_be_short && done != request->len)) {
        run_fail(run, "request %" PRIu64 ": %u extents cover %" PRIu64 " of %" PRIu64 " bytes",
                 request->number, list->count, done, request->len);
    }
}

static void co_extents_request(struct run *run, struct request *request)
{
    struct image *image = request->image;
    struct extent extents[16];
    struct extent_list list = {.extents = extents, .capacity = 1 + (unsigned)below(run, 16)};
    request_begin(run, request);
    int result = image->ops->co_extents(image, request->offset, request->len, &list);
    if (!request_end(run, request, result)) {
        return;
    }
    if (result == 0) {
        extents_check(run, request, &list);
    }
    oracle_read_drop(run->oracle, request->began);
}

static void co_request(struct run *run, struct image *image, enum request_kind kind)
{
    struct request request = {.image = image, .kind = kind};
    draw_place(run, &request);
    /* A commit gives room back: there are few of them where room is to run out. */
    bool may_commit = run->life.window_len == 0 || below(run, 16) == 0;
    if (changes(kind) && may_commit && chance(run, run->plan.fua_ppm)) {
        request.flags |= IMAGE_FUA;
    }
    if (kind == REQUEST_ZERO && below(run, 2)) {
        request.flags |= IMAGE_NO_HOLE;
    }
    if (kind == REQUEST_ZERO && below(run, 8) == 0) {
        request.flags |= IMAGE_FAST_ZERO;
    }
    switch (kind) {
    case REQUEST_READ:
        co_read_request(run, &request);
        break;
    case REQUEST_WRITE:
        co_write_request(run, &request);
        break;
    case REQUEST_ZERO:
    case REQUEST_TRIM:
        co_zero_request(run, &request);
        break;
    case REQUEST_FLUSH:
        if (may_commit) {
            co_flush_request(run, &request);
        }
        break;
    case REQUEST_EXTENTS:
        co_extents_request(run, &request);
        break;
    case REQUEST_KINDS:
        abort();
    }
}

struct client {
    struct run *run;
    struct image *image;
};

static bool goes_on(const struct client *client)
{
    return !sim_crashed(client->run->world) && !client->image->ending;
}

static void co_client(void *arg)
{
    struct client *client = arg;
    struct run *run = client->run;
    unsigned requests = run->plan.requests_per_client;
    if (run->life.window_len != 0) {
        requests *= 4; /* room has to be used up first */
    }
    for (unsigned i = 0; i < requests && goes_on(client); i++) {
        if (chance(run, run->plan.pause_ppm)) {
            co_sleep_ns(run->world, below(run, 2000000));
        }
        if (goes_on(client)) {
            co_request(run, client->image, draw_kind(run));
        }
    }
    free(client);
    group_leave(&run->clients);
    run_task_done(run);
}

void workload_start(struct run *run, struct image *const *images, unsigned image_count)
{
    for (unsigned i = 0; i < run->plan.clients; i++) {
        struct client *client = buffer_new(sizeof(*client));
        *client = (struct client){.run = run, .image = images[i % image_count]};
        group_enter(&run->clients);
        run_spawn(run, co_client, client, "client");
    }
}

void co_workload_fill(struct run *run, unsigned requests)
{
    for (unsigned i = 0; i < requests; i++) {
        co_request(run, run->image, below(run, 5) == 0 ? REQUEST_ZERO : REQUEST_WRITE);
    }
}

static void co_verify_range(struct run *run, uint64_t from, uint64_t to)
{
    struct image *image = run->image;
    static const uint64_t step = 128 * KIB;
    for (uint64_t at = from; at < to && !sim_crashed(run->world); at += step) {
        struct request request = {.kind = REQUEST_READ, .offset = at, .len = MIN_OF(step, to - at)};
        uint8_t *buf = buffer_new((size_t)request.len);
        memset(buf, 0xa5, (size_t)request.len);
        request_begin(run, &request);
        int result = image->ops->co_read(image, at, buf, (size_t)request.len, NULL);
        if (request_end(run, &request, result) && result == 0) {
            read_end(run, &request, buf, (size_t)request.len);
        }
        free(buf);
    }
}

void co_workload_verify(struct run *run)
{
    uint64_t size = run->image->size_bytes;
    if (size <= 512 * KIB || below(run, 50) == 0 || run->verify_all) {
        run->verify_all = false;
        co_verify_range(run, 0, size);
        return;
    }
    uint64_t from;
    uint64_t to = 0;
    while (oracle_next_touched(run->oracle, to, &from, &to)) {
        /* Neighbours together, so that the reads are not tiny. */
        uint64_t next_from;
        uint64_t next_to;
        while (oracle_next_touched(run->oracle, to, &next_from, &next_to) && next_from == to) {
            to = next_to;
        }
        co_verify_range(run, from, to);
    }
    for (int i = 0; i < 8; i++) {
        from = below(run, size);
        co_verify_range(run, from, MIN_OF(size, from + 4 * KIB));
    }
}
