/* SPDX-License-Identifier: BSD-2-Clause */
/*
 * A slot is one request in flight, with its buffer. libnbd calls on_reply() from inside its notify
 * functions, where no call on the handle is allowed; so that only checks and frees the slot.
 *
 * Read buffers are poisoned first, so bytes that a structured reply leaves out are seen.
 */
#include "oracle_load.h"

#include <assert.h>
#include <errno.h>
#include <inttypes.h>
#include <libnbd.h>
#include <poll.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "base/check.h"
#include "base/junit.h"
#include "latency.h"

#define POISON           0xa5
#define CELL_BYTES       512U
#define MODEL_BYTES_MOST (1ULL << 30)
#define CELLS_MOST       (1ULL << 25)

#define REQUEST_NAME(symbol, name) name,
static const char *const type_names[] = {REQUEST_TYPES(REQUEST_NAME)};

struct slot {
    struct list link; /* in the connection's free slots, or in the load's busy ones */
    struct load *load;
    unsigned connection;
    uint8_t *buffer;
    enum request_type type;
    uint64_t offset;
    uint64_t len;
    uint32_t flags;
    uint32_t mutation; /* number in the model */
    uint64_t sent_ns;
    struct model_read read;
};

struct connection {
    struct nbd_handle *nbd;
    struct list free_slots;
};

struct load {
    struct load_options options;
    struct model *model;
    struct connection *connections;
    struct slot *slots;
    struct list busy; /* oldest first */
    bool dead;
    uint64_t replies;
    uint64_t sent[REQUEST_TYPE_COUNT];
    struct latency latency[REQUEST_TYPE_COUNT];
    uint64_t opened_ns;
    uint64_t refused_fast_zeroes;
    uint64_t failed;
    uint64_t bad_cells;
};

const struct load_options *load_settings(const struct load *load)
{
    return &load->options;
}

static uint64_t now_ns(void)
{
    struct timespec now;

    clock_gettime(CLOCK_MONOTONIC, &now);
    return (uint64_t)now.tv_sec * 1000000000U + (uint64_t)now.tv_nsec;
}

/* --- what the server offers ----------------------------------------------------------------- */

bool load_can(const struct load *load, enum request_type type)
{
    struct nbd_handle *nbd = load->connections[0].nbd;

    switch (type) {
    case REQUEST_READ:
        return true;
    case REQUEST_WRITE:
        return nbd_is_read_only(nbd) == 0;
    case REQUEST_TRIM:
        return nbd_can_trim(nbd) == 1;
    case REQUEST_ZERO:
        return nbd_can_zero(nbd) == 1;
    case REQUEST_FLUSH:
    case REQUEST_TYPE_COUNT:
        break;
    }
    return nbd_can_flush(nbd) == 1;
}

uint32_t load_offered_flags(const struct load *load, enum request_type type, uint32_t wanted)
{
    struct nbd_handle *nbd = load->connections[0].nbd;
    uint32_t offered = 0;

    if (type == REQUEST_READ && nbd_can_df(nbd) == 1) {
        offered |= LIBNBD_CMD_FLAG_DF;
    }
    if (type == REQUEST_ZERO) {
        offered |= LIBNBD_CMD_FLAG_NO_HOLE;
        if (nbd_can_fast_zero(nbd) == 1) {
            offered |= LIBNBD_CMD_FLAG_FAST_ZERO;
        }
    }
    if (type != REQUEST_READ && type != REQUEST_FLUSH && nbd_can_fua(nbd) == 1) {
        offered |= LIBNBD_CMD_FLAG_FUA;
    }
    return wanted & offered;
}

/* --- opening -------------------------------------------------------------------------------- */

static bool complain(const char *what)
{
    fprintf(stderr, "qcowd-load: %s: %s\n", what, nbd_get_error());
    return false;
}

static bool connect_all(struct load *load)
{
    for (unsigned i = 0; i < load->options.connections; i++) {
        struct nbd_handle *nbd = nbd_create();

        load->connections[i].nbd = nbd;
        if (nbd == NULL || nbd_set_pread_initialize(nbd, false) != 0 ||
            nbd_connect_uri(nbd, load->options.uri) != 0) {
            return complain(load->options.uri);
        }
    }
    return true;
}

/* Fits region, alignment and sizes to the export and to each other. */
static bool decide_region(struct load *load, uint32_t *cell_bytes)
{
    struct load_options *options = &load->options;
    struct nbd_handle *nbd = load->connections[0].nbd;
    int64_t size = nbd_get_size(nbd);
    int64_t minimum = nbd_get_block_size(nbd, LIBNBD_SIZE_MINIMUM);
    int64_t payload_most = nbd_get_block_size(nbd, LIBNBD_SIZE_MAXIMUM);

    if (size < 0) {
        return complain("size of the export");
    }
    if (minimum > options->align) {
        options->align = (uint32_t)minimum;
    }
    *cell_bytes = CELL_BYTES;
    if (options->align % CELL_BYTES != 0) {
        *cell_bytes = is_power_of_two(options->align) && options->align >= 8 ? options->align : 1;
    }
    if (options->region_offset % options->align != 0 || options->region_offset > (uint64_t)size) {
        fprintf(stderr,
                "qcowd-load: region offset %" PRIu64 " is past the end or not aligned to %u\n",
                options->region_offset, options->align);
        return false;
    }
    if (options->region_len == 0) {
        options->region_len = (uint64_t)size - options->region_offset;
    }
    options->region_len -= options->region_len % options->align;
    if (options->region_len == 0 ||
        !range_inside(options->region_offset, options->region_len, (uint64_t)size) ||
        options->region_len > MODEL_BYTES_MOST || options->region_len / *cell_bytes > CELLS_MOST) {
        fprintf(stderr,
                "qcowd-load: region of %" PRIu64 " bytes: must be in the export, and small\n",
                options->region_len);
        return false;
    }
    options->max_bytes = MIN_OF(options->max_bytes, options->region_len);
    if (payload_most > 0) {
        options->max_bytes = MIN_OF(options->max_bytes, (uint64_t)payload_most);
    }
    options->max_bytes -= options->max_bytes % options->align;
    if (options->max_bytes == 0) {
        fprintf(stderr, "qcowd-load: requests must be allowed %u bytes\n", options->align);
        return false;
    }
    return true;
}

/* Reads the region as it is; *initial stays NULL when it is, or must be, all zero. */
static bool read_initial(struct load *load, uint8_t **initial)
{
    const struct load_options *options = &load->options;
    uint8_t *bytes;

    *initial = NULL;
    if (options->initially_zero) {
        return true;
    }
    bytes = malloc(options->region_len);
    if (bytes == NULL) {
        fputs("qcowd-load: out of memory\n", stderr);
        return false;
    }
    for (uint64_t at = 0; at < options->region_len; at += options->max_bytes) {
        size_t len = MIN_OF(options->max_bytes, options->region_len - at);
        if (nbd_pread(load->connections[0].nbd, bytes + at, len, options->region_offset + at, 0) !=
            0) {
            free(bytes);
            return complain("reading what is there at first");
        }
    }
    *initial = bytes;
    return true;
}

static bool make_slots(struct load *load)
{
    const struct load_options *options = &load->options;

    load->slots = calloc((size_t)options->connections * options->depth, sizeof(load->slots[0]));
    if (load->slots == NULL) {
        return false;
    }
    for (unsigned i = 0; i < options->connections * options->depth; i++) {
        struct slot *slot = &load->slots[i];

        slot->load = load;
        slot->connection = i / options->depth;
        slot->buffer = malloc(options->max_bytes);
        if (slot->buffer == NULL) {
            return false;
        }
        list_push_back(&load->connections[slot->connection].free_slots, &slot->link);
    }
    return true;
}

struct load *load_open(const struct load_options *options)
{
    struct load *load = calloc(1, sizeof(*load));
    uint32_t cell_bytes;
    uint8_t *initial = NULL;

    if (load == NULL) {
        return NULL;
    }
    load->options = *options;
    load->opened_ns = now_ns();
    list_init(&load->busy);
    load->connections = calloc(options->connections, sizeof(load->connections[0]));
    if (load->connections == NULL) {
        load->options.connections = 0;
        goto nothing_connected;
    }
    for (unsigned i = 0; i < options->connections; i++) {
        list_init(&load->connections[i].free_slots);
    }
    if (!connect_all(load) || !decide_region(load, &cell_bytes) || !read_initial(load, &initial)) {
        goto nothing_connected;
    }
    load->model = model_create(load->options.region_offset, load->options.region_len, cell_bytes,
                               options->trim_is_hint, initial);
    if (load->model == NULL || !make_slots(load)) {
        fputs("qcowd-load: out of memory\n", stderr);
        if (load->model == NULL) {
            free(initial);
        }
        goto nothing_connected;
    }
    model_report_to(load->model, stderr, options->reports);
    return load;

nothing_connected:
    load_close(load);
    return NULL;
}

void load_close(struct load *load)
{
    for (unsigned i = 0; i < load->options.connections; i++) {
        struct nbd_handle *nbd = load->connections[i].nbd;
        if (nbd != NULL && !load->dead && nbd_aio_is_ready(nbd) == 1) {
            nbd_shutdown(nbd, 0);
        }
        nbd_close(nbd);
    }
    if (load->slots != NULL) {
        for (unsigned i = 0; i < load->options.connections * load->options.depth; i++) {
            free(load->slots[i].buffer);
        }
    }
    model_free(load->model);
    free(load->slots);
    free(load->connections);
    free(load);
}

/* --- replies -------------------------------------------------------------------------------- */

static bool mutates(enum request_type type)
{
    return type == REQUEST_WRITE || type == REQUEST_TRIM || type == REQUEST_ZERO;
}

static void describe_request(const struct slot *slot)
{
    fprintf(stderr, "%s of %" PRIu64 "+%" PRIu64 " with flags 0x%" PRIx32 " on connection %u",
            type_names[slot->type], slot->offset, slot->len, slot->flags, slot->connection);
}

/* The outcome as the model sees it; counts what should not have happened. */
static enum outcome judge_error(struct slot *slot, int error)
{
    struct load *load = slot->load;

    if (error == 0) {
        return OUTCOME_APPLIED;
    }
    if (error == ENOTSUP && (slot->flags & LIBNBD_CMD_FLAG_FAST_ZERO) != 0) {
        load->refused_fast_zeroes++;
        return OUTCOME_REFUSED;
    }
    if (load->failed++ < load->options.reports) {
        fputs("failed: ", stderr);
        describe_request(slot);
        fprintf(stderr, ": %s\n", strerror(error));
    }
    return OUTCOME_FAILED;
}

static int on_reply(void *arg, int *error)
{
    struct slot *slot = arg;
    struct load *load = slot->load;
    enum outcome outcome = judge_error(slot, *error);

    if (mutates(slot->type)) {
        model_end(load->model, slot->mutation, outcome);
    } else if (slot->type == REQUEST_READ && outcome == OUTCOME_APPLIED) {
        load->bad_cells +=
            model_read_end(load->model, &slot->read, slot->offset, slot->len, slot->buffer);
    } else if (slot->type == REQUEST_READ) {
        model_read_abandon(&slot->read);
    }
    latency_add(&load->latency[slot->type], now_ns() - slot->sent_ns);
    load->replies++;
    list_remove(&slot->link);
    list_push_back(&load->connections[slot->connection].free_slots, &slot->link);
    return 1; /* retire the command */
}

/* --- waiting -------------------------------------------------------------------------------- */

static bool die(struct load *load, const char *what)
{
    unsigned shown = 0;

    load->dead = true;
    fprintf(stderr, "qcowd-load: %s; in flight, oldest first:\n", what);
    list_for_each(link, &load->busy) {
        if (shown++ == load->options.reports) {
            break;
        }
        fputs("  ", stderr);
        describe_request(list_entry(link, struct slot, link));
        fputc('\n', stderr);
    }
    return false;
}

static bool notify(struct connection *connection, short happened)
{
    unsigned direction = nbd_aio_get_direction(connection->nbd);

    if ((happened & (POLLIN | POLLHUP)) != 0 && (direction & LIBNBD_AIO_DIRECTION_READ) != 0) {
        return nbd_aio_notify_read(connection->nbd) == 0;
    }
    if ((happened & POLLOUT) != 0 && (direction & LIBNBD_AIO_DIRECTION_WRITE) != 0) {
        return nbd_aio_notify_write(connection->nbd) == 0;
    }
    return (happened & (POLLERR | POLLHUP | POLLNVAL)) == 0;
}

/* One poll() over all connections. */
static bool turn(struct load *load)
{
    struct pollfd polled[64];
    unsigned count = load->options.connections;
    int ready;

    assert(count <= ARRAY_LEN(polled));
    for (unsigned i = 0; i < count; i++) {
        unsigned direction = nbd_aio_get_direction(load->connections[i].nbd);

        polled[i].fd = nbd_aio_get_fd(load->connections[i].nbd);
        polled[i].events = 0;
        polled[i].revents = 0;
        if ((direction & LIBNBD_AIO_DIRECTION_READ) != 0) {
            polled[i].events |= POLLIN;
        }
        if ((direction & LIBNBD_AIO_DIRECTION_WRITE) != 0) {
            polled[i].events |= POLLOUT;
        }
    }
    ready = poll(polled, count, (int)load->options.stall_seconds * 1000);
    if (ready < 0 && errno == EINTR) {
        return true;
    }
    if (ready <= 0) {
        return die(load, ready == 0 ? "the server hangs" : "poll failed");
    }
    for (unsigned i = 0; i < count; i++) {
        if (polled[i].revents != 0 && !notify(&load->connections[i], polled[i].revents)) {
            complain("connection");
            return die(load, "a connection is lost");
        }
    }
    return true;
}

bool load_wait_some(struct load *load)
{
    uint64_t before = load->replies;

    while (!load->dead && load->replies == before && !list_empty(&load->busy)) {
        turn(load);
    }
    return !load->dead;
}

bool load_wait_all(struct load *load)
{
    while (!load->dead && !list_empty(&load->busy)) {
        turn(load);
    }
    return !load->dead;
}

/* --- sending -------------------------------------------------------------------------------- */

bool load_has_slot(const struct load *load, unsigned connection)
{
    return !list_empty(&load->connections[connection].free_slots);
}

/* libnbd puts the chunks into the buffer itself; only this form of the call takes the DF flag. */
static int on_chunk(void *arg, const void *bytes, size_t len, uint64_t offset, unsigned status,
                    int *error)
{
    (void)arg, (void)bytes, (void)len, (void)offset, (void)status, (void)error;
    return 0;
}

static int64_t send_slot(struct nbd_handle *nbd, struct slot *slot)
{
    nbd_completion_callback done = {.callback = on_reply, .user_data = slot};
    nbd_chunk_callback chunk = {.callback = on_chunk};

    switch (slot->type) {
    case REQUEST_READ:
        if ((slot->flags & LIBNBD_CMD_FLAG_DF) != 0) {
            return nbd_aio_pread_structured(nbd, slot->buffer, slot->len, slot->offset, chunk, done,
                                            slot->flags);
        }
        return nbd_aio_pread(nbd, slot->buffer, slot->len, slot->offset, done, slot->flags);
    case REQUEST_WRITE:
        return nbd_aio_pwrite(nbd, slot->buffer, slot->len, slot->offset, done, slot->flags);
    case REQUEST_TRIM:
        return nbd_aio_trim(nbd, slot->len, slot->offset, done, slot->flags);
    case REQUEST_ZERO:
        return nbd_aio_zero(nbd, slot->len, slot->offset, done, slot->flags);
    case REQUEST_FLUSH:
    case REQUEST_TYPE_COUNT:
        break;
    }
    return nbd_aio_flush(nbd, done, slot->flags);
}

static void tell_model(struct load *load, struct slot *slot)
{
    switch (slot->type) {
    case REQUEST_READ:
        memset(slot->buffer, POISON, slot->len);
        model_read_begin(load->model, &slot->read);
        break;
    case REQUEST_WRITE:
        slot->mutation = model_begin(load->model, MUTATION_WRITE, slot->offset, slot->len);
        model_fill(load->model, slot->mutation, slot->buffer);
        break;
    case REQUEST_TRIM:
        slot->mutation = model_begin(load->model, MUTATION_TRIM, slot->offset, slot->len);
        break;
    case REQUEST_ZERO:
        slot->mutation = model_begin(load->model, MUTATION_ZERO, slot->offset, slot->len);
        break;
    case REQUEST_FLUSH:
    case REQUEST_TYPE_COUNT:
        break;
    }
}

bool load_send(struct load *load, unsigned connection, enum request_type type, uint64_t offset,
               uint64_t len, uint32_t flags)
{
    struct slot *slot;

    while (!load->dead && !load_has_slot(load, connection)) {
        turn(load);
    }
    if (load->dead) {
        return false;
    }
    slot = list_entry(load->connections[connection].free_slots.next, struct slot, link);
    list_remove(&slot->link);
    slot->type = type;
    slot->offset = offset;
    slot->len = len;
    slot->flags = flags;
    assert(len <= load->options.max_bytes || (type != REQUEST_READ && type != REQUEST_WRITE));
    tell_model(load, slot);
    list_push_back(&load->busy, &slot->link);
    load->sent[type]++;
    slot->sent_ns = now_ns();
    if (send_slot(load->connections[connection].nbd, slot) < 0) {
        complain(type_names[type]);
        return die(load, "a request could not be sent");
    }
    return true;
}

bool load_verify(struct load *load)
{
    const struct load_options *options = &load->options;

    if (!load_wait_all(load)) {
        return false;
    }
    if (load_can(load, REQUEST_FLUSH) && !load_send(load, 0, REQUEST_FLUSH, 0, 0, 0)) {
        return false;
    }
    if (!load_wait_all(load)) {
        return false;
    }
    for (uint64_t at = 0; at < options->region_len; at += options->max_bytes) {
        uint64_t len = MIN_OF(options->max_bytes, options->region_len - at);
        if (!load_send(load, 0, REQUEST_READ, options->region_offset + at, len, 0)) {
            return false;
        }
    }
    return load_wait_all(load);
}

static double milliseconds(uint64_t ns)
{
    return (double)ns / 1e6;
}

static void report_verdict(const struct load *load, FILE *report)
{
    double seconds = (double)(now_ns() - load->opened_ns) / 1e9;
    char text[96];

    junit_case(report, "every request is answered", seconds,
               load->dead ? "not finished: a connection is lost, or the server hangs" : NULL);
    snprintf(text, sizeof(text), "%" PRIu64 " requests failed", load->failed);
    junit_case(report, "no request fails", 0, load->failed ? text : NULL);
    snprintf(text, sizeof(text), "%" PRIu64 " cells show what they must not", load->bad_cells);
    junit_case(report, "reads show what was written", 0, load->bad_cells ? text : NULL);
}

bool load_conclude(const struct load *load, FILE *report)
{
    for (unsigned i = 0; i < REQUEST_TYPE_COUNT; i++) {
        const struct latency *latency = &load->latency[i];

        if (latency->count > 0) {
            printf("%-5s %8" PRIu64 " requests, ms: p50 %.3f, p90 %.3f, p99 %.3f, p99.9 %.3f, "
                   "longest %.3f\n",
                   type_names[i], latency->count, milliseconds(latency_quantile_ns(latency, 500)),
                   milliseconds(latency_quantile_ns(latency, 900)),
                   milliseconds(latency_quantile_ns(latency, 990)),
                   milliseconds(latency_quantile_ns(latency, 999)), milliseconds(latency->max_ns));
        }
    }
    for (unsigned i = 0; i < REQUEST_TYPE_COUNT; i++) {
        printf("%s %" PRIu64 ", ", type_names[i], load->sent[i]);
    }
    printf("fast zeroes refused %" PRIu64 ", torn while in flight %" PRIu64 ", failed %" PRIu64
           ", bad cells %" PRIu64 "%s\n",
           load->refused_fast_zeroes, model_torn(load->model), load->failed, load->bad_cells,
           load->dead ? ", NOT FINISHED" : "");
    if (report) {
        report_verdict(load, report);
    }
    return !load->dead && load->failed == 0 && load->bad_cells == 0;
}
