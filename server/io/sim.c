/* SPDX-License-Identifier: BSD-2-Clause */
/*
 * The simulated world's scheduler: operations wait in a bag, one drawn at random completes a step.
 *
 * A seed also chooses the run's temper: how often writes take effect in pieces, how many operations
 * are stragglers that others overtake for long, how often time jumps to the next timer while work
 * is pending. Races live in such corners, and a uniform draw alone would visit them rarely.
 */
#include "io/sim.h"

#include <errno.h>
#include <inttypes.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "io/sim_file.h"
#include "io/sim_random.h"
#include "sched/co.h"

enum op_kind {
    OP_OPEN,
    OP_READ,
    OP_WRITE,
    OP_FLUSH,
    OP_ZERO,
    OP_PUNCH,
    OP_TRUNCATE,
    OP_EXTENT,
    OP_WORK
};

static const char *const op_names[] = {"open",  "read",     "write",  "flush", "zero",
                                       "punch", "truncate", "extent", "work"};

/* Kinds of failure, for errors that last. */
enum fault_kind { FAULT_READ, FAULT_WRITE, FAULT_FLUSH, FAULT_SPACE, FAULT_PUNCH, FAULT_KINDS };

/* One operation, on its coroutine's stack until it completes. */
struct sim_op {
    struct coro *waiter;
    enum op_kind kind;
    bool straggler;
    int result;
    struct sim_file *file;
    struct sim_disk *disk;
    uint64_t offset;
    uint64_t len;
    const struct iovec *iov;
    int iov_count;
    uint64_t done_front; /* write: bytes that have taken effect already, at the front */
    uint64_t done_back;  /* and at the back */
    uint64_t covers;     /* flush: the newest change when it was issued */
    bool *is_hole;
    uint64_t *extent_end;
    void (*work)(void *arg);
    void *work_arg;
};

struct sim_world {
    struct world world;
    struct sim_rng schedule;
    struct sim_rng engine;
    struct sim_rng workload;
    struct sim_rng power;
    uint64_t now_ns;
    struct timer_heap timers;
    struct sim_op **pending;
    size_t pending_count;
    size_t pending_capacity;
    struct list files;
    struct sim_store store;
    uint64_t last_file_id;
    unsigned open_disks;
    bool crashed;
    struct sim_faults faults;
    bool broken[FAULT_KINDS];
    uint64_t space_limit_bytes;
    unsigned piece_ppm;
    unsigned straggler_ppm;
    unsigned early_timer_ppm;
    sim_trace_fn *trace;
    void *trace_arg;
    struct sim_counts counts;
};

struct sim_disk {
    struct disk disk;
    struct sim_file *file;
    bool locks;
};

static struct sim_world *sim_of(struct world *world)
{
    return container_of(world, struct sim_world, world);
}

static const struct sim_world *sim_of_const(const struct world *world)
{
    return container_of(world, const struct sim_world, world);
}

static struct sim_disk *disk_of(struct disk *disk)
{
    return container_of(disk, struct sim_disk, disk);
}

static void trace_line(struct sim_world *sim, const char *format, ...)
    __attribute__((format(printf, 2, 3)));

static void trace_line(struct sim_world *sim, const char *format, ...)
{
    char line[512];
    int used = snprintf(line, sizeof(line), "%10" PRIu64 " ", sim->now_ns / 1000);
    va_list args;
    va_start(args, format);
    vsnprintf(line + used, sizeof(line) - (size_t)used, format, args);
    va_end(args);
    sim->trace(sim->trace_arg, line);
}

/* Queueing: puts the op in the bag and suspends until a step has completed it. */
static int co_op(struct sim_world *sim, struct sim_op *op)
{
    if (sim->pending_count == sim->pending_capacity) {
        sim->pending_capacity = MAX_OF(64U, sim->pending_capacity * 2);
        sim->pending = realloc(sim->pending, sim->pending_capacity * sizeof(struct sim_op *));
        if (!sim->pending) {
            abort();
        }
    }
    op->waiter = coro_self();
    op->straggler = sim_rng_chance(&sim->schedule, sim->straggler_ppm);
    sim->pending[sim->pending_count++] = op;
    co_suspend();
    return op->result;
}

/* -EBADF for a change of a disk that was opened read-only: the engine's mistake, but no crash. */
static int co_disk_op(struct disk *disk, struct sim_op *op)
{
    struct sim_disk *sim_disk = disk_of(disk);
    bool changes = op->kind == OP_WRITE || op->kind == OP_ZERO || op->kind == OP_PUNCH ||
                   op->kind == OP_TRUNCATE;
    uint64_t end;
    if (changes && !disk->writable) {
        return -EBADF;
    }
    if (!add_u64(op->offset, op->len, &end) || end > SIM_FILE_MAX_BYTES) {
        if (changes) {
            return -EFBIG;
        }
        return -EINVAL;
    }
    op->disk = sim_disk;
    op->file = sim_disk->file;
    return co_op(sim_of(disk->world), op);
}

static uint64_t iov_total(const struct iovec *iov, int iov_count)
{
    uint64_t total = 0;
    for (int i = 0; i < iov_count; i++) {
        total += iov[i].iov_len;
    }
    return total;
}

static int co_sim_read(struct disk *disk, uint64_t offset, const struct iovec *iov, int iov_count)
{
    struct sim_op op = {.kind = OP_READ, .offset = offset, .iov = iov, .iov_count = iov_count};
    op.len = iov_total(iov, iov_count);
    return co_disk_op(disk, &op);
}

static int co_sim_write(struct disk *disk, uint64_t offset, const struct iovec *iov, int iov_count)
{
    struct sim_op op = {.kind = OP_WRITE, .offset = offset, .iov = iov, .iov_count = iov_count};
    op.len = iov_total(iov, iov_count);
    return co_disk_op(disk, &op);
}

static int co_sim_flush(struct disk *disk)
{
    struct sim_op op = {.kind = OP_FLUSH, .covers = disk_of(disk)->file->last_sequence};
    return co_disk_op(disk, &op);
}

static int co_sim_zero(struct disk *disk, uint64_t offset, uint64_t len)
{
    struct sim_op op = {.kind = OP_ZERO, .offset = offset, .len = len};
    return co_disk_op(disk, &op);
}

static int co_sim_punch(struct disk *disk, uint64_t offset, uint64_t len)
{
    struct sim_op op = {.kind = OP_PUNCH, .offset = offset, .len = len};
    return co_disk_op(disk, &op);
}

static int co_sim_truncate(struct disk *disk, uint64_t size_bytes)
{
    struct sim_op op = {.kind = OP_TRUNCATE, .offset = size_bytes};
    return co_disk_op(disk, &op);
}

static int co_sim_next_extent(struct disk *disk, uint64_t offset, bool *is_hole, uint64_t *end)
{
    struct sim_op op = {.kind = OP_EXTENT, .offset = offset, .is_hole = is_hole, .extent_end = end};
    return co_disk_op(disk, &op);
}

static void sim_close(struct disk *disk)
{
    struct sim_disk *sim_disk = disk_of(disk);
    struct sim_world *sim = sim_of(disk->world);
    for (size_t i = 0; i < sim->pending_count; i++) {
        assert(sim->pending[i]->disk != sim_disk); /* no request may be running */
    }
    struct sim_file *file = sim_disk->file;
    if (sim_disk->locks && disk->writable) {
        file->locked_writers--;
    } else if (sim_disk->locks) {
        file->locked_readers--;
    }
    file->open_count--;
    sim->open_disks--;
    free(sim_disk);
}

static const struct disk_ops sim_disk_ops = {
    .co_read = co_sim_read,
    .co_write = co_sim_write,
    .co_flush = co_sim_flush,
    .co_zero = co_sim_zero,
    .co_punch = co_sim_punch,
    .co_truncate = co_sim_truncate,
    .co_next_extent = co_sim_next_extent,
    .close = sim_close,
};

static struct sim_file *file_find(const struct sim_world *sim, const char *path)
{
    list_for_each(node, &sim->files) {
        struct sim_file *file = list_entry(node, struct sim_file, link);
        if (strcmp(file->path, path) == 0) {
            return file;
        }
    }
    return NULL;
}

static struct sim_file *file_make(struct sim_world *sim, const char *path)
{
    struct sim_file *file = sim_file_create(&sim->store, path, ++sim->last_file_id);
    if (!file) {
        abort();
    }
    list_push_back(&sim->files, &file->link);
    return file;
}

static int open_locks(struct sim_file *file, const char *path, bool writable, struct errtext *err)
{
    if (file->locked_writers != 0) {
        return err_set(err, EAGAIN, "%s: in use by another writer", path);
    }
    if (writable && file->locked_readers != 0) {
        return err_set(err, EAGAIN, "%s: in use by a reader that allows no writer", path);
    }
    if (writable) {
        file->locked_writers++;
    } else {
        file->locked_readers++;
    }
    return 0;
}

static int co_sim_disk_open(struct world *world, const char *path, unsigned flags,
                            struct disk **out, struct errtext *err)
{
    struct sim_world *sim = sim_of(world);
    struct sim_op op = {.kind = OP_OPEN};
    int result = co_op(sim, &op);
    if (result < 0) {
        return err_set(err, -result, "%s: cannot open: %s", path, strerror(-result));
    }
    struct sim_file *file = file_find(sim, path);
    if (flags & DISK_CREATE) {
        if (file) {
            return err_set(err, EEXIST, "%s: exists already", path);
        }
        file = file_make(sim, path);
    } else if (!file) {
        return err_set(err, ENOENT, "%s: no such file", path);
    }
    bool writable = (flags & (DISK_WRITABLE | DISK_CREATE)) != 0;
    bool locks = (flags & DISK_NO_LOCK) == 0;
    if (locks) {
        result = open_locks(file, path, writable, err);
        if (result < 0) {
            return result;
        }
    }
    struct sim_disk *sim_disk = calloc(1, sizeof(*sim_disk));
    if (!sim_disk) {
        abort();
    }
    file->open_count++;
    sim->open_disks++;
    sim_disk->file = file;
    sim_disk->locks = locks;
    sim_disk->disk = (struct disk){
        .ops = &sim_disk_ops,
        .world = world,
        .size_bytes = file->size_bytes,
        .writable = writable,
        .path = file->path,
        .file_id = {1, file->id},
    };
    *out = &sim_disk->disk;
    return 0;
}

/* Whether an operation fails by decree of the seed. */
static bool fault_strikes(struct sim_world *sim, enum fault_kind kind, unsigned ppm)
{
    if (sim->broken[kind]) {
        return true;
    }
    if (!sim_rng_chance(&sim->schedule, ppm)) {
        return false;
    }
    sim->broken[kind] = sim->faults.errors_last;
    return true;
}

static void complete_read(struct sim_world *sim, struct sim_op *op)
{
    if (fault_strikes(sim, FAULT_READ, sim->faults.read_eio_ppm)) {
        op->result = -EIO;
        return;
    }
    uint64_t offset = op->offset;
    for (int i = 0; i < op->iov_count; i++) {
        sim_file_read(op->file, offset, op->iov[i].iov_base, op->iov[i].iov_len);
        offset += op->iov[i].iov_len;
    }
    sim->counts.reads++;
    sim->counts.bytes_read += op->len;
}

/* -ENOSPC when growth does not fit or by decree, with *fitting bytes at the front that still go. */
static int claim_space(struct sim_world *sim, const struct sim_op *op, uint64_t *fitting)
{
    *fitting = op->len;
    if (sim->space_limit_bytes == 0 && sim->faults.enospc_ppm == 0) {
        return 0;
    }
    uint64_t wanted = sim_file_unallocated_sectors(op->file, op->offset, op->len);
    if (wanted == 0) {
        return 0;
    }
    uint64_t limit = sim->space_limit_bytes / SIM_SECTOR_BYTES;
    bool full = limit != 0 && sim->store.allocated_sectors + wanted > limit;
    if (!full && !fault_strikes(sim, FAULT_SPACE, sim->faults.enospc_ppm)) {
        return 0;
    }
    uint64_t room = wanted;
    sim->counts.refusals++;
    if (full) {
        room = limit > sim->store.allocated_sectors ? limit - sim->store.allocated_sectors : 0;
    }
    uint64_t fits_to = round_down_to(op->offset, SIM_SECTOR_BYTES) +
                       sim_rng_below(&sim->schedule, room + 1) * SIM_SECTOR_BYTES;
    *fitting = fits_to <= op->offset ? 0 : MIN_OF(op->len, fits_to - op->offset);
    return -ENOSPC;
}

static void write_range(struct sim_op *op, uint64_t from, uint64_t to)
{
    if (to > from) {
        sim_file_write(op->file, op->offset + from, op->iov, op->iov_count, from, to - from);
    }
}

static void disk_grew(struct sim_op *op)
{
    struct disk *disk = &op->disk->disk;
    disk->size_bytes = MAX_OF(disk->size_bytes, op->offset + op->len);
}

/* A sector's end inside the write, at random: where pieces of it are cut. */
static uint64_t random_cut(struct sim_rng *rng, const struct sim_op *op, uint64_t from, uint64_t to)
{
    uint64_t cut = op->offset + from + sim_rng_below(rng, to - from);
    cut = round_down_to(cut, SIM_SECTOR_BYTES);
    return cut <= op->offset + from ? from : cut - op->offset;
}

static void complete_write(struct sim_world *sim, struct sim_op *op)
{
    uint64_t fitting;
    uint64_t from = op->done_front;
    uint64_t to = op->len - op->done_back;
    if (fault_strikes(sim, FAULT_WRITE, sim->faults.write_eio_ppm)) {
        op->result = -EIO;
        if (to > from) {
            write_range(op, from, random_cut(&sim->schedule, op, from, to));
        }
        return;
    }
    op->result = claim_space(sim, op, &fitting);
    write_range(op, from, MIN_OF(to, MAX_OF(fitting, from)));
    if (op->result == 0) {
        disk_grew(op);
        sim->counts.writes++;
        sim->counts.bytes_written += op->len;
    }
}

/* Lets a piece of a write take effect ahead of its completion. Only where space cannot run out. */
static void write_piece(struct sim_world *sim, struct sim_op *op)
{
    uint64_t from = op->done_front;
    uint64_t to = op->len - op->done_back;
    uint64_t cut = random_cut(&sim->schedule, op, from, to);
    if (sim_rng_next(&sim->schedule) & 1) {
        write_range(op, from, cut);
        op->done_front = cut;
    } else {
        write_range(op, cut, to);
        op->done_back = op->len - cut;
    }
}

static bool takes_effect_in_pieces(struct sim_world *sim, const struct sim_op *op)
{
    return op->kind == OP_WRITE && op->len - op->done_front - op->done_back > SIM_SECTOR_BYTES &&
           sim->space_limit_bytes == 0 && sim->faults.enospc_ppm == 0 &&
           sim_rng_chance(&sim->schedule, sim->piece_ppm);
}

static void complete_zero(struct sim_world *sim, struct sim_op *op)
{
    if (fault_strikes(sim, FAULT_WRITE, sim->faults.write_eio_ppm)) {
        op->result = -EIO;
        return;
    }
    uint64_t fitting;
    op->result = claim_space(sim, op, &fitting);
    sim_file_zero(op->file, op->offset, fitting);
    if (op->result == 0) {
        disk_grew(op);
        sim->counts.zeroes++;
    }
}

static void complete_punch(struct sim_world *sim, struct sim_op *op)
{
    if (fault_strikes(sim, FAULT_PUNCH, sim->faults.punch_unsupported_ppm)) {
        op->result = -EOPNOTSUPP;
    } else if (fault_strikes(sim, FAULT_WRITE, sim->faults.write_eio_ppm)) {
        op->result = -EIO;
    } else {
        sim_file_punch(op->file, op->offset, op->len);
        sim->counts.punches++;
    }
}

static void complete_truncate(struct sim_world *sim, struct sim_op *op)
{
    if (fault_strikes(sim, FAULT_WRITE, sim->faults.write_eio_ppm)) {
        op->result = -EIO;
        return;
    }
    sim_file_truncate(op->file, op->offset);
    op->disk->disk.size_bytes = op->offset;
    sim->counts.truncates++;
}

static void complete_flush(struct sim_world *sim, struct sim_op *op)
{
    if (fault_strikes(sim, FAULT_FLUSH, sim->faults.flush_eio_ppm)) {
        sim_file_flush_failed(op->file, op->covers);
        op->result = -EIO;
        return;
    }
    sim_file_flush(op->file, op->covers, &sim->power);
    sim->counts.flushes++;
}

static void complete(struct sim_world *sim, struct sim_op *op)
{
    op->result = 0;
    switch (op->kind) {
    case OP_OPEN:
        break;
    case OP_READ:
        complete_read(sim, op);
        break;
    case OP_WRITE:
        complete_write(sim, op);
        break;
    case OP_FLUSH:
        complete_flush(sim, op);
        break;
    case OP_ZERO:
        complete_zero(sim, op);
        break;
    case OP_PUNCH:
        complete_punch(sim, op);
        break;
    case OP_TRUNCATE:
        complete_truncate(sim, op);
        break;
    case OP_EXTENT:
        sim_file_next_extent(op->file, op->offset, op->is_hole, op->extent_end);
        break;
    case OP_WORK:
        op->work(op->work_arg);
        break;
    }
}

static void trace_op(struct sim_world *sim, const struct sim_op *op)
{
    if (!op->file) {
        trace_line(sim, "disk %s -> %d", op_names[op->kind], op->result);
        return;
    }
    trace_line(sim, "disk %-8s %s %#" PRIx64 " +%#" PRIx64 " -> %d", op_names[op->kind],
               op->file->path, op->offset, op->len, op->result);
}

static size_t draw_op(struct sim_world *sim)
{
    size_t index = (size_t)sim_rng_below(&sim->schedule, sim->pending_count);
    /* Stragglers are passed over most of the time, as long as there is something else. */
    for (int tries = 0; tries < 4 && sim->pending[index]->straggler; tries++) {
        index = (size_t)sim_rng_below(&sim->schedule, sim->pending_count);
    }
    return index;
}

static void step_op(struct sim_world *sim)
{
    size_t index = draw_op(sim);
    struct sim_op *op = sim->pending[index];
    sim->now_ns += 1000 + sim_rng_below(&sim->schedule, 50000);
    if (op->kind == OP_WORK) {
        /* Work is no disk operation: it goes on after the power was cut, to no effect. */
        complete(sim, op);
    } else if (sim->crashed) {
        op->result = -EIO;
    } else if (takes_effect_in_pieces(sim, op)) {
        write_piece(sim, op);
        if (sim->trace) {
            trace_line(sim,
                       "disk write    %s %#" PRIx64 " +%#" PRIx64 " in part: all but [+%#" PRIx64
                       ", +%#" PRIx64 ")",
                       op->file->path, op->offset, op->len, op->done_front,
                       op->len - op->done_back);
        }
        return;
    } else {
        complete(sim, op);
    }
    if (sim->trace) {
        trace_op(sim, op);
    }
    sim->pending[index] = sim->pending[--sim->pending_count];
    coro_wake(op->waiter);
}

static void step_timer(struct sim_world *sim)
{
    sim->now_ns = MAX_OF(sim->now_ns, timer_heap_earliest(&sim->timers));
    struct world_timer *timer = timer_heap_pop_due(&sim->timers, sim->now_ns);
    if (sim->trace) {
        trace_line(sim, "timer fires");
    }
    timer->fired(timer);
}

bool sim_step(struct world *world)
{
    struct sim_world *sim = sim_of(world);
    bool ran = coro_run_ready();
    if (!timer_heap_empty(&sim->timers) &&
        (sim->pending_count == 0 || timer_heap_earliest(&sim->timers) <= sim->now_ns ||
         sim_rng_chance(&sim->schedule, sim->early_timer_ppm))) {
        step_timer(sim);
        return true;
    }
    if (sim->pending_count != 0) {
        step_op(sim);
        return true;
    }
    return ran;
}

bool sim_run(struct world *world, uint64_t max_steps)
{
    for (uint64_t steps = 0; max_steps == 0 || steps < max_steps; steps++) {
        if (!sim_step(world)) {
            return true;
        }
    }
    return false;
}

static uint64_t sim_now_ns(struct world *world)
{
    return sim_of(world)->now_ns;
}

static uint64_t sim_engine_random64(struct world *world)
{
    return sim_rng_next(&sim_of(world)->engine);
}

static void sim_timer_start(struct world *world, struct world_timer *timer, uint64_t deadline_ns)
{
    timer_heap_insert(&sim_of(world)->timers, timer, deadline_ns);
}

static void sim_timer_stop(struct world *world, struct world_timer *timer)
{
    timer_heap_remove(&sim_of(world)->timers, timer);
}

static void co_sim_work(struct world *world, void (*fn)(void *arg), void *arg)
{
    struct sim_op op = {.kind = OP_WORK, .work = fn, .work_arg = arg};
    co_op(sim_of(world), &op);
}

static const struct world_ops sim_world_ops = {
    .now_ns = sim_now_ns,
    .random64 = sim_engine_random64,
    .timer_start = sim_timer_start,
    .timer_stop = sim_timer_stop,
    .co_work = co_sim_work,
    .co_disk_open = co_sim_disk_open,
};

struct world *sim_create(uint64_t seed)
{
    struct sim_world *sim = calloc(1, sizeof(*sim));
    if (!sim) {
        return NULL;
    }
    sim->world.ops = &sim_world_ops;
    sim_rng_init(&sim->schedule, seed, 1);
    sim_rng_init(&sim->engine, seed, 2);
    sim_rng_init(&sim->workload, seed, 3);
    sim_rng_init(&sim->power, seed, 4);
    timer_heap_init(&sim->timers);
    list_init(&sim->files);
    static const unsigned piece_ppm[] = {0, 100000, 500000};
    static const unsigned straggler_ppm[] = {0, 50000, 300000};
    static const unsigned early_timer_ppm[] = {0, 1000, 30000};
    sim->piece_ppm = piece_ppm[sim_rng_below(&sim->schedule, ARRAY_LEN(piece_ppm))];
    sim->straggler_ppm = straggler_ppm[sim_rng_below(&sim->schedule, ARRAY_LEN(straggler_ppm))];
    sim->early_timer_ppm =
        early_timer_ppm[sim_rng_below(&sim->schedule, ARRAY_LEN(early_timer_ppm))];
    return &sim->world;
}

void sim_free(struct world *world)
{
    struct sim_world *sim = sim_of(world);
    assert(sim->pending_count == 0 && sim->open_disks == 0 && !coro_any_ready());
    struct list *node;
    while ((node = list_pop_front(&sim->files)) != NULL) {
        sim_file_free(list_entry(node, struct sim_file, link));
    }
    assert(sim->store.allocated_sectors == 0);
    sim_store_drain(&sim->store);
    free(sim->pending);
    free(sim);
}

void sim_set_faults(struct world *world, const struct sim_faults *faults)
{
    struct sim_world *sim = sim_of(world);
    sim->faults = *faults;
    memset(sim->broken, 0, sizeof(sim->broken));
}

uint64_t sim_space_used(const struct world *world)
{
    const struct sim_world *sim = container_of(world, const struct sim_world, world);
    return sim->store.allocated_sectors * SIM_SECTOR_BYTES;
}

void sim_set_space(struct world *world, uint64_t limit_bytes)
{
    sim_of(world)->space_limit_bytes = limit_bytes;
}

uint64_t sim_random(struct world *world)
{
    return sim_rng_next(&sim_of(world)->workload);
}

uint64_t sim_random_below(struct world *world, uint64_t bound)
{
    return sim_rng_below(&sim_of(world)->workload, bound);
}

/* What was in flight may have reached the platter too: lets it take effect, to be torn like the
 * rest. */
static void crash_in_flight(struct sim_world *sim)
{
    for (size_t i = 0; i < sim->pending_count; i++) {
        size_t pick = i + (size_t)sim_rng_below(&sim->power, sim->pending_count - i);
        struct sim_op *op = sim->pending[pick];
        sim->pending[pick] = sim->pending[i];
        sim->pending[i] = op;
        uint64_t fitting;
        switch (op->kind) {
        case OP_WRITE:
            if (claim_space(sim, op, &fitting) == 0) {
                write_range(op, op->done_front, op->len - op->done_back);
            }
            break;
        case OP_ZERO:
            if (claim_space(sim, op, &fitting) == 0) {
                sim_file_zero(op->file, op->offset, op->len);
            }
            break;
        case OP_PUNCH:
            sim_file_punch(op->file, op->offset, op->len);
            break;
        case OP_TRUNCATE:
            sim_file_truncate(op->file, op->offset);
            break;
        case OP_OPEN:
        case OP_READ:
        case OP_FLUSH:
        case OP_EXTENT:
        case OP_WORK:
            break;
        }
    }
}

void sim_crash(struct world *world)
{
    struct sim_world *sim = sim_of(world);
    assert(!sim->crashed);
    crash_in_flight(sim);
    enum sim_keep keep = (enum sim_keep)sim_rng_below(&sim->power, SIM_KEEP_MODES);
    unsigned keep_ppm = (unsigned)sim_rng_below(&sim->power, 1000000);
    if (sim->trace) {
        trace_line(sim, "power cut, keep mode %d, chance %u ppm", (int)keep, keep_ppm);
    }
    list_for_each(node, &sim->files) {
        sim_file_crash(list_entry(node, struct sim_file, link), keep, keep_ppm, &sim->power);
    }
    sim->crashed = true;
}

bool sim_crashed(const struct world *world)
{
    return sim_of_const(world)->crashed;
}

void sim_reboot(struct world *world)
{
    struct sim_world *sim = sim_of(world);
    assert(sim->crashed && sim->open_disks == 0 && sim->pending_count == 0);
    sim->crashed = false;
}

int sim_file_put(struct world *world, const char *path, const void *bytes, uint64_t len)
{
    struct sim_world *sim = sim_of(world);
    struct sim_file *file = file_find(sim, path);
    if (!file) {
        file = file_make(sim, path);
    }
    if (len > SIM_FILE_MAX_BYTES) {
        return -EFBIG;
    }
    struct iovec iov = {(void *)(uintptr_t)bytes, (size_t)len};
    sim_file_truncate(file, 0);
    sim_file_write(file, 0, &iov, 1, 0, len);
    sim_file_flush(file, file->last_sequence, &sim->power);
    return 0;
}

int sim_file_get(struct world *world, const char *path, void **bytes, uint64_t *len)
{
    const struct sim_file *file = file_find(sim_of(world), path);
    if (!file) {
        return -ENOENT;
    }
    *len = file->size_bytes;
    *bytes = malloc((size_t)MAX_OF(*len, 1U));
    if (!*bytes) {
        return -ENOMEM;
    }
    sim_file_read(file, 0, *bytes, (size_t)*len);
    return 0;
}

void sim_set_trace(struct world *world, sim_trace_fn *trace, void *arg)
{
    struct sim_world *sim = sim_of(world);
    sim->trace = trace;
    sim->trace_arg = arg;
}

struct sim_counts sim_counts(const struct world *world)
{
    return sim_of_const(world)->counts;
}
