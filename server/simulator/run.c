/* SPDX-License-Identifier: BSD-2-Clause */
/*
 * The run's coroutines are its tasks; this room steps the world until they have returned, cuts the
 * power when it is due, and takes "nothing left to do while tasks wait" for the deadlock it is.
 */
#include "simulator/run.h"

#include <errno.h>
#include <inttypes.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "base/check.h"
#include "base/limits.h"
#include "base/log.h"
#include "qcow2/check.h"
#include "qcow2/create.h"
#include "qcow2/header.h"
#include "sched/co.h"
#include "simulator/network.h"
#include "simulator/resize.h"

#define IMAGE_NAME "disk.qcow2"
#define BASE_NAME  "base.qcow2"
#define RAW_NAME   "base.raw"
#define COPY_NAME  "copy.qcow2"
/* More than any honest phase takes. */
#define STEPS_MAX 4000000U
/* The value of the raw backing file's bytes. */
#define RAW_VALUE 1U
/* One life in so many goes over the network. */
#define NETWORK_LIFE_EVERY 3U
/* The world's own streams have the numbers below. */
#define NETWORK_RANDOM_STREAM 5U
/* Larger clusters than this are not worth a life with just enough room: it would never run out. */
#define TIGHT_CLUSTER_BYTES (64 * KIB)

void run_fail(const struct run *run, const char *format, ...)
{
    char plan[512];
    va_list args;
    fflush(stdout);
    fprintf(stderr, "seed %" PRIu64 ": FAILED: ", run->seed);
    va_start(args, format);
    vfprintf(stderr, format, args);
    va_end(args);
    plan_describe(&run->plan, plan, sizeof(plan));
    fprintf(stderr, "\n  (%s)\n  replay: simulator --seed %" PRIu64 " --trace\n", plan, run->seed);
    if (run->trace) {
        run_trace(run, "FAILED");
    }
    fflush(stdout);
    _exit(1);
}

void run_trace(const struct run *run, const char *format, ...)
{
    char line[1024];
    if (!run->trace) {
        return;
    }
    int used = snprintf(line, sizeof(line), "%10" PRIu64 " ", world_now_ns(run->world) / 1000);
    va_list args;
    va_start(args, format);
    vsnprintf(line + used, sizeof(line) - (size_t)used, format, args);
    va_end(args);
    run->trace(run->trace_arg, line);
}

static void log_to_trace(enum log_level level, const char *line, void *arg)
{
    (void)level;
    run_trace(arg, "log: %s", line);
}

void run_spawn(struct run *run, void (*fn)(void *arg), void *arg, const char *name)
{
    run->tasks++;
    if (coro_spawn(fn, arg, name) < 0) {
        abort();
    }
}

void run_task_done(struct run *run)
{
    run->tasks--;
}

static uint64_t below(struct run *run, uint64_t bound)
{
    return sim_random_below(run->world, bound);
}

static void cut_power(struct run *run)
{
    run_trace(run, "---- power cut");
    run->steps_to_cut = 0;
    run->statistics->power_cuts++;
    sim_crash(run->world);
    oracle_power_cut(run->oracle);
}

/* Steps the world until every task has returned. */
static void run_tasks(struct run *run)
{
    for (unsigned steps = 0; run->tasks != 0; steps++) {
        if (steps == STEPS_MAX) {
            run_fail(run, "no end after %u steps, %u tasks running", steps, run->tasks);
        }
        if (!sim_step(run->world) && run->tasks != 0) {
            run_fail(run, "deadlock: %u tasks wait and nothing is pending", run->tasks);
        }
        if (run->steps_to_cut != 0 && --run->steps_to_cut == 0 && !sim_crashed(run->world)) {
            cut_power(run);
        }
    }
}

/* Lets what the engine still has running in the background come to its end. */
static void run_out(struct run *run)
{
    if (!sim_run(run->world, STEPS_MAX)) {
        run_fail(run, "the closed image leaves work behind that does not end");
    }
}

/* One call of the engine as a task of its own. */
struct call {
    struct run *run;
    const char *path;
    bool read_only;
    enum check_repair repair;
    struct check_result check;
    int result;
    struct errtext err;
};

static void run_call(struct run *run, struct call *call, void (*fn)(void *arg), const char *name)
{
    call->run = run;
    call->err.text[0] = '\0';
    run_spawn(run, fn, call, name);
    run_tasks(run);
}

static void call_open(void *arg)
{
    struct call *call = arg;
    struct run *run = call->run;
    struct qcow2_open_options options = run->plan.open;
    struct image *image = NULL;
    options.read_only = call->read_only;
    if (run->life.window_len != 0) {
        options.commit_interval_ms = 5000; /* room is to run out before */
    }
    call->result = co_qcow2_open(run->world, call->path, &options, &image, &call->err);
    run->image = call->result == 0 ? image : NULL;
    run_trace(run, "open %s%s -> %d %s", call->path, call->read_only ? " read-only" : "",
              call->result, call->result < 0 ? call->err.text : "");
    run_task_done(run);
}

static void call_close(void *arg)
{
    struct call *call = arg;
    struct run *run = call->run;
    call->result = run->image->ops->co_close(run->image, &call->err);
    run->image = NULL;
    run_trace(run, "close -> %d %s", call->result, call->result < 0 ? call->err.text : "");
    run_task_done(run);
}

static void check_finding(void *arg, const char *line)
{
    run_trace(arg, "check: %s", line);
}

static void call_check(void *arg)
{
    struct call *call = arg;
    struct run *run = call->run;
    struct world *world = run->world;
    struct disk *disk = NULL;
    struct header header;
    struct check_options options = {.repair = call->repair, .finding = check_finding, .arg = run};
    unsigned flags = call->repair == CHECK_ONLY ? DISK_READ_ONLY : DISK_WRITABLE;
    memset(&call->check, 0, sizeof(call->check));
    call->result = world->ops->co_disk_open(world, call->path, flags, &disk, &call->err);
    if (call->result == 0) {
        call->result = co_header_read(disk, &header, &call->err);
    }
    if (call->result == 0) {
        call->result = co_qcow2_check(disk, &header, &options, &call->check, &call->err);
        header_free(&header);
    }
    disk_close(disk);
    run_trace(run, "check %s -> %d, %" PRIu64 " corruptions, %" PRIu64 " leaks %s", call->path,
              call->result, call->check.corruptions, call->check.leaks,
              call->result < 0 ? call->err.text : "");
    run_task_done(run);
}

static void call_verify(void *arg)
{
    struct call *call = arg;
    co_workload_verify(call->run);
    run_task_done(call->run);
}

static void call_fill(void *arg)
{
    struct call *call = arg;
    co_workload_fill(call->run, 1 + (unsigned)below(call->run, 30));
    run_task_done(call->run);
}

static struct call run_open(struct run *run, const char *path, bool read_only)
{
    struct call call = {.path = path, .read_only = read_only};
    run_call(run, &call, call_open, "open");
    return call;
}

/* A close that succeeds is a flush. */
static struct call run_close(struct run *run)
{
    struct call call = {.result = 0};
    uint64_t began = oracle_flush_begin(run->oracle);
    run_call(run, &call, call_close, "close");
    if (call.result == 0 && !sim_crashed(run->world)) {
        oracle_flush_done(run->oracle, began);
    }
    return call;
}

/* Opening and closing where nothing may go wrong. */
static void must_open(struct run *run, const char *path, bool read_only)
{
    struct call call = run_open(run, path, read_only);
    if (call.result < 0) {
        run_fail(run, "cannot open %s: %s", path, call.err.text);
    }
}

static void must_close(struct run *run)
{
    struct call call = run_close(run);
    if (call.result < 0) {
        run_fail(run, "cannot close: %s", call.err.text);
    }
}

static void must_check(struct run *run, const char *path, struct check_result *found)
{
    struct call call = {.path = path};
    run->statistics->checks++;
    run_call(run, &call, call_check, "check");
    if (call.result < 0) {
        run_fail(run, "cannot check: %s", call.err.text);
    }
    if (call.check.corruptions != 0) {
        run_fail(run, "check finds %" PRIu64 " corruptions and %" PRIu64 " leaks",
                 call.check.corruptions, call.check.leaks);
    }
    *found = call.check;
}

/* ---- The files that a run begins with ---- */

struct creation {
    struct run *run;
    const char *path;
    const struct create_options *options;
    int result;
    struct errtext err;
};

static void call_create(void *arg)
{
    struct creation *creation = arg;
    creation->result =
        co_qcow2_create(creation->run->world, creation->path, creation->options, &creation->err);
    run_task_done(creation->run);
}

static void make_image(struct run *run, const char *path, const struct create_options *options)
{
    struct creation creation = {.run = run, .path = path, .options = options};
    run_spawn(run, call_create, &creation, "create");
    run_tasks(run);
    if (creation.result < 0) {
        run_fail(run, "cannot create %s: %s", path, creation.err.text);
    }
}

static void make_raw(struct run *run, uint64_t len)
{
    uint8_t *bytes = malloc((size_t)len);
    if (!bytes) {
        abort();
    }
    oracle_pattern(RAW_VALUE, 0, bytes, (size_t)len);
    if (sim_file_put(run->world, RAW_NAME, bytes, len) < 0) {
        abort();
    }
    free(bytes);
}

void run_put_on_top(struct run *run, uint64_t size_bytes)
{
    struct oracle *below_it = run->oracle;
    run->oracle = oracle_create(size_bytes);
    oracle_inherit(run->oracle, below_it);
    oracle_free(below_it);
}

static void must_fill(struct run *run, const char *path)
{
    struct plan *plan = &run->plan;
    uint64_t hot_ppm = plan->hot_ppm;
    plan->hot_ppm = 0; /* all over the disk */
    must_open(run, path, false);
    struct call fill = {.path = path};
    run_call(run, &fill, call_fill, "fill");
    must_close(run);
    run_out(run);
    plan->hot_ppm = (unsigned)hot_ppm;
}

static void must_repair_all(struct run *run, const char *path)
{
    struct call call = {.path = path, .repair = CHECK_REPAIR_ALL};
    struct check_result found;
    run_call(run, &call, call_check, "repair");
    if (call.result < 0) {
        run_fail(run, "cannot repair %s: %s", path, call.err.text);
    }
    must_check(run, path, &found);
    if (found.leaks != 0) {
        run_fail(run, "%s: %" PRIu64 " leaks after a repair of all", path, found.leaks);
    }
}

/* What other programs put into images: compressed clusters, a snapshot. */
static void dress_image(struct run *run)
{
    must_fill(run, IMAGE_NAME);
    if (run->plan.compressed) {
        dress_compress(run->world, IMAGE_NAME);
    }
    if (run->plan.snapshot) {
        dress_snapshot(run->world, IMAGE_NAME, &run->snapshot);
        run->snapshot_oracle = oracle_create(run->plan.create.size_bytes);
        oracle_inherit(run->snapshot_oracle, run->oracle);
    }
    must_repair_all(run, IMAGE_NAME);
}

static void make_base(struct run *run)
{
    struct plan *plan = &run->plan;
    struct create_options options;
    create_options_init(&options);
    options.size_bytes = plan->base_bytes;
    options.cluster_bytes = 1ULL << (9 + below(run, 8));
    if (plan->backing == BACKING_QCOW2_ON_RAW) {
        options.backing_name = RAW_NAME;
        options.backing_format = "raw";
    }
    make_image(run, BASE_NAME, &options);
    run_put_on_top(run, plan->base_bytes);
    must_fill(run, BASE_NAME);
    if (plan->base_compressed) {
        dress_compress(run->world, BASE_NAME);
        must_repair_all(run, BASE_NAME);
    }
}

static void make_files(struct run *run)
{
    struct plan *plan = &run->plan;
    run->oracle = oracle_create(MAX_OF(plan->raw_bytes, 1U));
    if (plan->backing == BACKING_RAW || plan->backing == BACKING_QCOW2_ON_RAW) {
        make_raw(run, plan->raw_bytes);
        oracle_preset(run->oracle, 0, plan->raw_bytes, RAW_VALUE);
    }
    if (plan->backing == BACKING_QCOW2 || plan->backing == BACKING_QCOW2_ON_RAW) {
        make_base(run);
    }
    make_image(run, IMAGE_NAME, &plan->create);
    run_put_on_top(run, plan->create.size_bytes);
    if (plan->compressed || plan->snapshot) {
        dress_image(run);
    }
}

static uint64_t file_hash(struct run *run, const char *path)
{
    uint8_t *bytes;
    uint64_t len;
    if (sim_file_get(run->world, path, (void **)&bytes, &len) < 0) {
        return 0;
    }
    uint64_t hash = 0xcbf29ce484222325ULL ^ len;
    for (uint64_t i = 0; i < len; i++) {
        hash = (hash ^ bytes[i]) * 0x100000001b3ULL;
    }
    free(bytes);
    return hash;
}

/* ---- Lives ---- */

/* A life with just enough room has its changes in a window. */
static void draw_window(struct run *run)
{
    uint64_t cluster = run->plan.create.cluster_bytes;
    uint64_t size = run->plan.create.size_bytes;
    if (cluster > TIGHT_CLUSTER_BYTES || run->plan.create.data_file_name) {
        return;
    }
    uint64_t len = cluster * (1 + below(run, 12));
    run->life.window_len = MIN_OF(size, len);
    run->life.window_offset = below(run, size - run->life.window_len + 1);
    run->statistics->tight_lives++;
}

/*
 * Leaves as much room as the window can need: its clusters once, as the guest has them, and once
 * more for those that are being written (no two requests change one cluster at a time), then the
 * tables that map and count them. What was freed and not given back has no place in that.
 */
static void leave_just_enough_room(struct run *run)
{
    const struct life *life = &run->life;
    uint64_t cluster = run->plan.create.cluster_bytes;
    uint64_t first = round_down_to(life->window_offset, cluster);
    uint64_t end = round_up_to(life->window_offset + life->window_len, cluster);
    uint64_t data = 2 * (end - first);
    /* L2 entries of 16 bytes at most; a block counts 64 clusters at least. */
    uint64_t l2_tables = (end - first) / (cluster / 16 * cluster) + 2;
    uint64_t room = data + data / 32 + (l2_tables + 6) * cluster;
    sim_set_space(run->world, sim_space_used(run->world) + room);
    run_trace(run, "changes in [%#" PRIx64 ", +%#" PRIx64 ") with room for %" PRIu64 " bytes",
              life->window_offset, life->window_len, room);
}

static void draw_faults(struct run *run)
{
    static const unsigned rates[] = {500000, 100000, 20000, 3000};
    struct sim_faults faults = {0};
    unsigned rate = rates[below(run, ARRAY_LEN(rates))];
    run->life = (struct life){.stuck_since = UINT64_MAX, .room_since = UINT64_MAX};
    sim_set_space(run->world, 0);
    switch (below(run, 16)) {
    case 0:
        faults.read_eio_ppm = rate;
        run->life.may_eio = true;
        break;
    case 1:
        faults.write_eio_ppm = rate;
        run->life.may_eio = true;
        break;
    case 2:
        faults.flush_eio_ppm = rate;
        run->life.may_eio = true;
        run->life.flush_fails = true;
        break;
    case 3:
        faults.enospc_ppm = rate;
        run->life.may_enospc = true;
        break;
    case 4:
        sim_set_space(run->world, 64 * KIB + below(run, 4 * MIB));
        run->life.may_enospc = true;
        break;
    case 5:
    case 6:
        faults.punch_unsupported_ppm = below(run, 2) ? 1000000 : rate;
        break;
    case 7:
    case 8:
        draw_window(run);
        break;
    default:
        break;
    }
    faults.errors_last = below(run, 2) == 0;
    if (run->life.may_eio || run->life.may_enospc) {
        run->statistics->faulty_lives++;
        run_trace(run, "faults: read %u write %u flush %u space %u punch %u ppm%s",
                  faults.read_eio_ppm, faults.write_eio_ppm, faults.flush_eio_ppm,
                  faults.enospc_ppm, faults.punch_unsupported_ppm,
                  faults.errors_last ? ", lasting" : "");
    }
    sim_set_faults(run->world, &faults);
}

static void no_faults(struct run *run)
{
    sim_set_faults(run->world, &(struct sim_faults){0});
    sim_set_space(run->world, 0);
    run->life = (struct life){.stuck_since = UINT64_MAX, .room_since = UINT64_MAX};
}

/* Half of the lives end in the dark, at a moment that is as likely early as late. */
static void draw_power_cut(struct run *run)
{
    run->steps_to_cut = 0;
    if (below(run, 3) != 0) {
        uint64_t magnitude = 1ULL << below(run, 13);
        run->steps_to_cut = 1 + below(run, magnitude * 2);
    }
}

static void run_clients(struct run *run, bool over_network)
{
    if (over_network) {
        network_start(run);
    } else {
        workload_start(run, &run->image, 1);
        resize_start(run);
    }
    run_tasks(run);
}

/* Whether the life ended with everything in order. */
static bool live(struct run *run)
{
    bool over_network = sim_rng_below(&run->network, NETWORK_LIFE_EVERY) == 0;
    run->statistics->lives++;
    run->statistics->network_lives += over_network;
    draw_faults(run);
    if (!over_network && run->life.window_len == 0) {
        resize_draw(run);
    }
    draw_power_cut(run);
    struct call opened = run_open(run, IMAGE_NAME, false);
    if (opened.result < 0) {
        if (!sim_crashed(run->world) && !run->life.may_eio && !run->life.may_enospc) {
            run_fail(run, "cannot open: %s", opened.err.text);
        }
        return false;
    }
    if (run->life.window_len != 0) {
        leave_just_enough_room(run);
    }
    uint64_t refusals = sim_counts(run->world).refusals;
    run_clients(run, over_network);
    run->statistics->pressed_lives +=
        run->life.window_len != 0 && sim_counts(run->world).refusals != refusals;
    if (run->life.may_enospc && below(run, 2) && !run->life.hung_up) {
        /* There is room again: everything works, as if nothing had been. */
        run_trace(run, "---- room again");
        sim_set_space(run->world, 0);
        sim_set_faults(run->world, &(struct sim_faults){0});
        run->life.room_since = oracle_flush_begin(run->oracle);
        if (!sim_crashed(run->world)) {
            run_clients(run, over_network);
        }
    }
    struct call closed = run_close(run);
    if (sim_crashed(run->world)) {
        return false;
    }
    if (closed.result == 0 && run->life.stuck_since != UINT64_MAX) {
        run_fail(run, "close succeeded after a flush had failed (O8)");
    }
    if (closed.result < 0 && !run->life.may_eio && !run->life.may_enospc) {
        run_fail(run, "cannot close: %s", closed.err.text);
    }
    return closed.result == 0;
}

static void call_lengthen(void *arg)
{
    struct call *call = arg;
    struct run *run = call->run;
    struct disk *disk;
    uint64_t room = 4 * run->plan.create.size_bytes + 64 * run->plan.create.cluster_bytes;
    call->result =
        run->world->ops->co_disk_open(run->world, call->path, DISK_WRITABLE, &disk, &call->err);
    if (call->result == 0) {
        call->result = disk->ops->co_truncate(disk, disk->size_bytes + room);
        disk_close(disk);
    }
    run_task_done(run);
}

/*
 * Leaks past the end of the file, left when a power cut kept the counts and not the size, are none
 * to `check`, until the file grows. A longer copy shows them all.
 */
static uint64_t count_leaks(struct run *run)
{
    struct check_result found;
    void *bytes;
    uint64_t len;
    if (sim_file_get(run->world, IMAGE_NAME, &bytes, &len) < 0 ||
        sim_file_put(run->world, COPY_NAME, bytes, len) < 0) {
        abort();
    }
    free(bytes);
    struct call lengthen = {.path = COPY_NAME};
    run_call(run, &lengthen, call_lengthen, "lengthen");
    must_check(run, COPY_NAME, &found);
    return found.leaks;
}

static void judge_image(struct run *run, bool leaks_nothing)
{
    struct check_result found;
    must_check(run, IMAGE_NAME, &found);
    run->statistics->leaky_images += found.leaks != 0;
    if (leaks_nothing && found.leaks > run->known_leaks) {
        run_fail(run, "check finds %" PRIu64 " leaks after a clean close, %" PRIu64 " before",
                 found.leaks, run->known_leaks);
    }
    if (!leaks_nothing) {
        run->known_leaks = count_leaks(run);
    }
}

static void reboot(struct run *run)
{
    run_out(run);
    sim_reboot(run->world);
    run_trace(run, "---- reboot");
}

/* Repairs leaks, at times with the power cut in the middle of it. */
static void repair(struct run *run)
{
    struct call call = {.path = IMAGE_NAME, .repair = CHECK_REPAIR_LEAKS};
    run->steps_to_cut = below(run, 2) ? 1 + below(run, 40) : 0;
    run_call(run, &call, call_check, "repair");
    run->steps_to_cut = 0;
    if (sim_crashed(run->world)) {
        reboot(run);
        judge_image(run, false);
        return;
    }
    if (call.result < 0) {
        run_fail(run, "cannot repair: %s", call.err.text);
    }
    judge_image(run, false);
    if (call.check.leaks != 0) {
        run_fail(run, "%" PRIu64 " leaks are left after their repair", call.check.leaks);
    }
}

static void dump_file(struct run *run, const char *name)
{
    char path[1024];
    void *bytes;
    uint64_t len;
    if (sim_file_get(run->world, name, &bytes, &len) < 0) {
        return;
    }
    snprintf(path, sizeof(path), "%s/%" PRIu64, run->dump_directory, run->seed);
    if (mkdir(path, 0777) < 0 && errno != EEXIST) {
        fprintf(stderr, "%s: %s\n", path, strerror(errno));
        exit(2);
    }
    snprintf(path, sizeof(path), "%s/%" PRIu64 "/%s", run->dump_directory, run->seed, name);
    FILE *file = fopen(path, "wb");
    if (!file || fwrite(bytes, 1, (size_t)len, file) != len || fclose(file) != 0) {
        fprintf(stderr, "%s: %s\n", path, strerror(errno));
        exit(2);
    }
    free(bytes);
}

static void one_life(struct run *run)
{
    bool in_order = live(run);
    run->steps_to_cut = 0;
    if (!sim_crashed(run->world)) {
        run_out(run);
        /*
         * Nothing is open: what was in order stays so, whatever happens to the power. What was not
         * is as good as a power cut, and gets one, so that no change hangs in the balance.
         */
        if (!in_order || below(run, 3) == 0) {
            cut_power(run);
        }
    }
    if (sim_crashed(run->world)) {
        reboot(run);
    }
    /* Where a refcount block cannot be read, what was freed stays counted. */
    bool leaks_nothing = in_order && !run->life.may_eio;
    no_faults(run);
    judge_image(run, leaks_nothing);
    if (!in_order && below(run, 6) == 0) {
        repair(run);
    }
    must_open(run, IMAGE_NAME, below(run, 2) == 0);
    resize_settle(run);
    struct call verify = {.path = IMAGE_NAME};
    run_call(run, &verify, call_verify, "verify");
    must_close(run);
    run_out(run);
}

/* The snapshot still holds what it held. */
static void verify_snapshot(struct run *run)
{
    struct oracle *present = run->oracle;
    run->oracle = run->snapshot_oracle;
    dress_copy_snapshot(run->world, IMAGE_NAME, &run->snapshot, COPY_NAME);
    must_open(run, COPY_NAME, true);
    struct call verify = {.path = COPY_NAME};
    run_call(run, &verify, call_verify, "verify");
    must_close(run);
    run_out(run);
    run->oracle = present;
    oracle_free(run->snapshot_oracle);
    run->snapshot_oracle = NULL;
}

void run_seed(struct run *run)
{
    run->world = sim_create(run->seed);
    if (!run->world) {
        abort();
    }
    sim_set_trace(run->world, run->trace, run->trace_arg);
    log_set_sink(log_to_trace, run);
    sim_rng_init(&run->network, run->seed, NETWORK_RANDOM_STREAM);
    group_init(&run->clients);
    no_faults(run);
    plan_draw(run);
    if (run->trace) {
        char plan[512];
        plan_describe(&run->plan, plan, sizeof(plan));
        run_trace(run, "---- seed %" PRIu64 ": %s", run->seed, plan);
    }
    run->last_value = RAW_VALUE;
    make_files(run);
    run->resize.old_bytes = run->plan.create.size_bytes;
    run->resize.new_bytes = run->plan.create.size_bytes;
    uint64_t base_hash = file_hash(run, BASE_NAME);
    uint64_t raw_hash = file_hash(run, RAW_NAME);
    for (unsigned i = 0; i < run->plan.lives; i++) {
        run_trace(run, "---- life %u", i + 1);
        one_life(run);
    }
    if (run->snapshot_oracle) {
        run_trace(run, "---- snapshot");
        verify_snapshot(run);
    }
    if (base_hash != file_hash(run, BASE_NAME) || raw_hash != file_hash(run, RAW_NAME)) {
        run_fail(run, "a backing file has changed");
    }
    if (run->dump_directory) {
        dump_file(run, IMAGE_NAME);
        dump_file(run, BASE_NAME);
        dump_file(run, RAW_NAME);
        dump_file(run, PLAN_DATA_NAME);
    }
    struct sim_counts counts = sim_counts(run->world);
    run->statistics->disk_operations += counts.reads + counts.writes + counts.flushes +
                                        counts.zeroes + counts.punches + counts.truncates;
    run->statistics->runs++;
    oracle_free(run->oracle);
    sim_free(run->world);
    log_set_sink(NULL, NULL);
}
