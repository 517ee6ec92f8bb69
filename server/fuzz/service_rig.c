/* SPDX-License-Identifier: BSD-2-Clause */
/*
 * Four coroutines: the server's, the client's two directions, and one that drains the service. The
 * client ends when its reader has seen the end of the stream, or after a minute in which nobody has
 * had anything to do: then every deadline of the protocol has passed, too.
 */
#include "fuzz/service_rig.h"

#include <assert.h>
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "base/bytes.h"
#include "base/check.h"
#include "base/limits.h"
#include "fuzz/fuzz.h"
#include "io/sim_stream.h"
#include "proto/conn.h"
#include "proto/wire.h"
#include "sched/co.h"
#include "sched/sync.h"

#define NAP_NS     1000000000ULL
#define QUIET_NAPS 60U
/* A request whose payload is never said is not over before the client has left. */
#define NAPS_MAX  1000U
#define BREATH_NS 10000000ULL
#define LAZY_NS   100000000000ULL
#define GRACE_NS  1000000000ULL
#define MS_NS     1000000ULL
#define HEARD_MAX (64U << 20)

struct conversation {
    struct world *world;
    const struct client_manners *manners;
    const uint8_t *said;
    size_t said_len;
    struct heard *heard;
    struct nbd_export *first_export;
    struct stream *near; /* the client's end */
    struct stream *far;
    struct nbd_service service;
    struct budget budget;
    struct rate_limit rate;
    struct world_timer turn_timer;
    void (*turn_fn)(void *arg);
    void *turn_arg;
    struct group parts;
    struct group reading;
};

struct client_manners client_manners_of(uint8_t choice, uint8_t seed)
{
    static const enum nbd_tls_mode tls_modes[] = {NBD_TLS_OFF, NBD_TLS_ON, NBD_TLS_REQUIRE,
                                                  NBD_TLS_OFF};
    struct nbd_limits limits = nbd_limits_default();

    if (seed & 0x20) {
        limits.requests = 2;
        limits.options = 4;
    }
    if (seed & 0x40) {
        limits.idle_ms = 5000;
    }
    if (seed & 0x80) {
        limits.request_bytes = 65536;
        limits.connection_bytes = 65536;
    }
    return (struct client_manners){
        .limits = limits,
        .rated = (seed & 0x30) == 0x10,
        .seed = seed,
        .slow = choice & 1,
        .lazy = (choice & 6) == 2,
        .vanishes = (choice & 6) == 4,
        .drain_ms = (choice & 6) == 6 ? 1U + seed % 16U : 0,
        .drain_one = seed & 1,
        .small_budget = choice >> 3 & 1,
        .batched = choice >> 4 & 1,
        .tls = tls_modes[choice >> 5 & 3],
        .patient = choice >> 7 & 1,
    };
}

/* ---- The service ---- */

static void on_turn_end(struct world_timer *timer)
{
    struct conversation *talk = container_of(timer, struct conversation, turn_timer);
    void (*fn)(void *arg) = talk->turn_fn;
    talk->turn_fn = NULL;
    fn(talk->turn_arg);
}

static void at_end_of_turn(struct nbd_service *service, void (*fn)(void *arg), void *arg)
{
    struct conversation *talk = service->context;
    struct world *world = service->world;
    demand(!talk->turn_fn, "two calls at the end of one turn");
    talk->turn_fn = fn;
    talk->turn_arg = arg;
    world->ops->timer_start(world, &talk->turn_timer, world_now_ns(world) + 10000);
}

struct tls_stand_in {
    struct stream stream;
    struct stream *plain;
};

static struct stream *plain_of(struct stream *stream)
{
    return container_of(stream, struct tls_stand_in, stream)->plain;
}

static ssize_t co_stand_in_recv(struct stream *stream, void *buf, size_t len)
{
    return plain_of(stream)->ops->co_recv(plain_of(stream), buf, len);
}

static int co_stand_in_send(struct stream *stream, struct iovec *iov, int iov_count, bool more)
{
    return plain_of(stream)->ops->co_send(plain_of(stream), iov, iov_count, more);
}

static void stand_in_end_recv(struct stream *stream)
{
    plain_of(stream)->ops->end_recv(plain_of(stream));
}

static void stand_in_abort(struct stream *stream)
{
    plain_of(stream)->ops->abort(plain_of(stream));
}

static void co_stand_in_close(struct stream *stream)
{
    struct tls_stand_in *stand_in = container_of(stream, struct tls_stand_in, stream);
    stand_in->plain->ops->co_close(stand_in->plain);
    free(stand_in);
}

static const struct stream_ops stand_in_ops = {
    .co_recv = co_stand_in_recv,
    .co_send = co_stand_in_send,
    .end_recv = stand_in_end_recv,
    .abort = stand_in_abort,
    .co_close = co_stand_in_close,
};

static int co_start_tls_stand_in(struct nbd_service *service, struct stream *plain,
                                 struct stream **secure, struct errtext *err)
{
    char word[TLS_WORD_BYTES];
    struct iovec answer = {(void *)(uintptr_t)TLS_WORD, TLS_WORD_BYTES};

    (void)service;
    int rc = co_stream_recv_all(plain, word, sizeof(word));
    if (rc < 0) {
        return err_set(err, -rc, "the client is gone");
    }
    if (memcmp(word, TLS_WORD, sizeof(word)) != 0) {
        return err_set(err, EACCES, "the client does not know the word");
    }
    rc = plain->ops->co_send(plain, &answer, 1, false);
    if (rc < 0) {
        return err_set(err, -rc, "the client does not listen");
    }
    struct tls_stand_in *stand_in = malloc(sizeof(*stand_in));
    if (!stand_in) {
        return err_set(err, ENOMEM, "out of memory");
    }
    *stand_in = (struct tls_stand_in){{.ops = &stand_in_ops, .peer = plain->peer}, plain};
    *secure = &stand_in->stream;
    return 0;
}

static void start_service(struct conversation *talk, struct nbd_export *exports,
                          unsigned export_count)
{
    struct nbd_service *service = &talk->service;

    budget_init(&talk->budget, talk->manners->small_budget ? 1 : LIMIT_BYTES_IN_FLIGHT);
    talk->turn_timer.fired = on_turn_end;
    nbd_service_init(service);
    service->world = talk->world;
    service->bytes_in_flight = &talk->budget;
    service->at_end_of_turn = talk->manners->batched ? at_end_of_turn : NULL;
    service->tls_mode = talk->manners->tls;
    service->co_start_tls = co_start_tls_stand_in;
    service->context = talk;
    service->limits = talk->manners->limits;
    if (talk->manners->rated) {
        rate_limit_init(&talk->rate, 1U << 20, 100);
        for (unsigned i = 0; i < export_count; i++) {
            exports[i].rate = &talk->rate;
        }
    }
    int rc = nbd_service_offer_array(service, exports, export_count);
    demand(rc == 0, "no memory for a list of exports");
}

static void co_serve(void *arg)
{
    struct conversation *talk = arg;
    co_nbd_serve(&talk->service, talk->far);
    group_leave(&talk->parts);
}

static void co_drain(void *arg)
{
    struct conversation *talk = arg;
    co_sleep_ns(talk->world, talk->manners->drain_ms * MS_NS);
    if (talk->manners->drain_one) {
        nbd_service_offer(&talk->service, NULL);
        co_nbd_dismiss(&talk->service, talk->first_export, GRACE_NS);
        co_nbd_wait_unused(&talk->service, talk->first_export, UINT64_MAX);
    } else {
        co_nbd_drain(&talk->service, GRACE_NS);
    }
    group_leave(&talk->parts);
}

/* ---- The client ---- */

static void keep(struct heard *heard, const uint8_t *bytes, size_t len)
{
    demand(heard->len + len <= HEARD_MAX, "the server sends more than %u bytes", HEARD_MAX);
    if (heard->len + len > heard->capacity) {
        heard->capacity = (heard->len + len) * 2;
        heard->bytes = realloc(heard->bytes, heard->capacity);
        assert(heard->bytes);
    }
    memcpy(heard->bytes + heard->len, bytes, len);
    heard->len += len;
}

static void co_listen(void *arg)
{
    struct conversation *talk = arg;
    uint8_t piece[8192];
    ssize_t got;

    if (talk->manners->lazy) {
        co_sleep_ns(talk->world, LAZY_NS);
    }
    do {
        got = talk->near->ops->co_recv(talk->near, piece, sizeof(piece));
        if (got > 0) {
            keep(talk->heard, piece, (size_t)got);
        }
    } while (got > 0);
    group_leave(&talk->reading);
}

/* How much a patient client says before it waits for an answer: up to the end of a STARTTLS. */
static size_t breath(const struct conversation *talk, size_t at)
{
    struct wire_option starttls;

    put_be64(starttls.magic, NBD_OPTION_MAGIC);
    put_be32(starttls.option, NBD_OPT_STARTTLS);
    put_be32(starttls.length, 0);
    const uint8_t *found = talk->manners->patient ? memmem(talk->said + at, talk->said_len - at,
                                                           &starttls, sizeof(starttls))
                                                  : NULL;
    return found ? (size_t)(found - (talk->said + at)) + sizeof(starttls) : talk->said_len - at;
}

static void co_say_all(struct conversation *talk)
{
    size_t at = 0;
    int rc = 0;

    while (at < talk->said_len && rc == 0) {
        struct iovec iov = {(void *)(uintptr_t)(talk->said + at), breath(talk, at)};
        at += iov.iov_len;
        rc = talk->near->ops->co_send(talk->near, &iov, 1, false);
        if (at < talk->said_len) {
            co_sleep_ns(talk->world, BREATH_NS);
        }
    }
    /* The server may have hung up: that is for it to decide. */
}

/* Whether the server is busy with something that it was told, or has to say. */
static bool is_busy(const struct conversation *talk)
{
    list_for_each(link, &talk->service.connections) {
        const struct connection *conn = list_entry(link, struct connection, link);
        if (conn->in_flight > 0 || conn->sender_running) {
            return true;
        }
    }
    return false;
}

/* A world may let its clock run ahead of its disks: time alone says nothing about them. */
static void co_stay(struct conversation *talk)
{
    unsigned quiet_naps = 0;
    unsigned naps = 0;

    if (talk->manners->lazy) {
        co_sleep_ns(talk->world, LAZY_NS);
    }
    while (quiet_naps < QUIET_NAPS && naps++ < NAPS_MAX) {
        co_sleep_ns(talk->world, NAP_NS);
        quiet_naps = is_busy(talk) ? 0 : quiet_naps + 1;
    }
}

static void co_speak(struct conversation *talk)
{
    co_say_all(talk);
    if (talk->manners->vanishes) {
        sim_stream_vanish(talk->near);
        return;
    }
    co_stay(talk);
    talk->near->ops->abort(talk->near);
}

static void spawn(struct group *group, coro_fn *fn, struct conversation *talk)
{
    group_enter(group);
    int rc = coro_spawn(fn, talk, "fuzz conversation");
    demand(rc == 0, "no memory for a coroutine");
}

static void connect_ends(struct conversation *talk)
{
    struct stream *ends[2];
    struct sim_stream_options options = {
        .seed = talk->manners->seed,
        .window_bytes = talk->manners->slow ? 4 * KIB : 64 * KIB,
        .longest_delay_ns = talk->manners->slow ? 200000 : 0,
        .peer = {"server", "client"},
    };
    sim_stream_pair(talk->world, &options, ends);
    talk->near = ends[0];
    talk->far = ends[1];
}

void co_converse(struct world *world, struct nbd_export *exports, unsigned export_count,
                 const struct client_manners *manners, const uint8_t *said, size_t said_len,
                 struct heard *heard)
{
    struct conversation *talk = calloc(1, sizeof(*talk));

    assert(talk);
    talk->world = world;
    talk->manners = manners;
    talk->said = said;
    talk->said_len = said_len;
    talk->heard = heard;
    talk->first_export = &exports[0];
    group_init(&talk->parts);
    group_init(&talk->reading);
    start_service(talk, exports, export_count);
    connect_ends(talk);
    spawn(&talk->parts, co_serve, talk);
    spawn(&talk->reading, co_listen, talk);
    if (manners->drain_ms) {
        spawn(&talk->parts, co_drain, talk);
    }
    co_speak(talk);
    co_group_wait(&talk->reading);
    talk->near->ops->co_close(talk->near);
    co_group_wait(&talk->parts);
    demand(talk->budget.used == 0, "%llu bytes of the budget are lost",
           (unsigned long long)talk->budget.used);
    demand(list_empty(&talk->service.connections), "a connection is left over");
    demand(talk->service.budget_waiters == 0, "somebody still waits for the budget");
    nbd_service_offer(&talk->service, NULL);
    for (unsigned i = 0; i < export_count; i++) {
        demand(exports[i].references == 0, "somebody holds export %u still", i);
    }
    world->ops->timer_stop(world, &talk->turn_timer);
    free(talk);
}

/* ---- An image in memory ---- */

static uint8_t *memory_at(struct image *image, uint64_t offset, uint64_t len)
{
    struct memory_image *memory = container_of(image, struct memory_image, image);
    demand(range_inside(offset, len, sizeof(memory->bytes)), "the request is outside of the image");
    demand(len > 0, "a request of no bytes");
    return memory->bytes + offset;
}

static int co_memory_read(struct image *image, uint64_t offset, void *buf, size_t len,
                          struct read_holes *holes)
{
    memcpy(buf, memory_at(image, offset, len), len);
    co_yield ();
    if (holes) {
        holes->count = 0;
    }
    return 0;
}

static int co_memory_write(struct image *image, uint64_t offset, const void *buf, size_t len,
                           unsigned flags)
{
    demand(!image->read_only, "a write to a read-only image");
    (void)flags;
    co_yield ();
    memcpy(memory_at(image, offset, len), buf, len);
    return 0;
}

static int co_memory_zero(struct image *image, uint64_t offset, uint64_t len, unsigned flags)
{
    demand(!image->read_only, "zeroes for a read-only image");
    (void)flags;
    memset(memory_at(image, offset, len), 0, len);
    return 0;
}

static int co_memory_flush(struct image *image)
{
    (void)image;
    return 0;
}

/* A data, a hole, and so on, of 1 KiB each. */
static int co_memory_extents(struct image *image, uint64_t offset, uint64_t len,
                             struct extent_list *list)
{
    (void)memory_at(image, offset, len);
    demand(list->capacity > 0, "no room for an extent");
    list->count = 0;
    while (len > 0 && list->count < list->capacity) {
        bool hole = offset / KIB % 2;
        uint64_t run = MIN_OF(len, KIB - offset % KIB);
        list->extents[list->count++] = (struct extent){
            .len = run,
            .flags = hole ? EXTENT_HOLE | EXTENT_ZERO : 0,
            .depth = !hole,
        };
        offset += run;
        len -= run;
    }
    return 0;
}

static size_t memory_bitmap_list(struct image *image, struct image_bitmap *out, size_t capacity)
{
    static const struct image_bitmap bitmaps[] = {{7, "b0"}, {9, "b1"}};

    (void)image;
    for (size_t i = 0; i < MIN_OF(capacity, ARRAY_LEN(bitmaps)); i++) {
        out[i] = bitmaps[i];
    }
    return ARRAY_LEN(bitmaps);
}

/* One of them is removed while clients have selected it. */
static int co_memory_bitmap_extents(struct image *image, uint64_t bitmap_id, uint64_t offset,
                                    uint64_t len, struct extent_list *list)
{
    demand(bitmap_id == 7 || bitmap_id == 9, "bitmap %llu", (unsigned long long)bitmap_id);
    if (bitmap_id == 9 && offset >= MEMORY_IMAGE_BYTES / 2) {
        return -ENOENT;
    }
    int rc = co_memory_extents(image, offset, len, list);
    for (unsigned i = 0; i < list->count; i++) {
        list->extents[i].flags = list->extents[i].depth ? EXTENT_DIRTY : 0;
    }
    return rc;
}

static const struct image_ops memory_image_ops = {
    .co_read = co_memory_read,
    .co_write = co_memory_write,
    .co_zero = co_memory_zero,
    .co_trim = co_memory_zero,
    .co_flush = co_memory_flush,
    .co_extents = co_memory_extents,
    .bitmap_list = memory_bitmap_list,
    .co_bitmap_extents = co_memory_bitmap_extents,
};

void memory_image_init(struct memory_image *memory)
{
    memset(memory->bytes, 0, sizeof(memory->bytes));
    memory->image = (struct image){
        .ops = &memory_image_ops,
        .size_bytes = sizeof(memory->bytes),
        .preferred_bytes = 4096,
        .path = "memory",
    };
}
