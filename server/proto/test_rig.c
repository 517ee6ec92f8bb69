/* SPDX-License-Identifier: BSD-2-Clause */
/* Everything happens in rig_run(): tests speak and listen between two of them. */
#include "proto/test_rig.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/bytes.h"
#include "base/limits.h"
#include "io/buffers.h"
#include "sched/co.h"

/* ---- The stream ---- */

static struct client *client_of(struct stream *stream)
{
    return container_of(stream, struct client, stream);
}

static ssize_t co_client_recv(struct stream *stream, void *buf, size_t len)
{
    struct client *client = client_of(stream);

    for (;;) {
        size_t left = client->to_server_len - client->to_server_at;
        if (client->aborted) {
            return -ESHUTDOWN;
        }
        if (left > 0) {
            size_t now = MIN_OF(MIN_OF(left, len), client->deliver_most);
            memcpy(buf, client->to_server + client->to_server_at, now);
            client->to_server_at += now;
            return (ssize_t)now;
        }
        if (client->gone) {
            return -ECONNRESET;
        }
        if (client->half_closed || client->recv_ended) {
            return 0;
        }
        co_wait(&client->receiving);
    }
}

static void append(uint8_t **bytes, size_t *used, size_t *capacity, const void *more, size_t len)
{
    if (*used + len > *capacity) {
        *capacity = (*used + len) * 2;
        *bytes = realloc(*bytes, *capacity);
        ck_assert(*bytes != NULL);
    }
    if (len > 0) {
        memcpy(*bytes + *used, more, len);
        *used += len;
    }
}

static int co_client_send(struct stream *stream, struct iovec *iov, int iov_count, bool more)
{
    struct client *client = client_of(stream);

    (void)more;
    client->sends++;
    for (int i = 0; i < iov_count; i++) {
        const uint8_t *bytes = iov[i].iov_base;
        size_t left = iov[i].iov_len;
        while (left > 0) {
            if (client->aborted) {
                return -ESHUTDOWN;
            }
            if (client->gone) {
                return -EPIPE;
            }
            size_t unread = client_unread(client);
            size_t now = MIN_OF(left, client->window - MIN_OF(unread, client->window));
            if (now == 0) {
                co_wait(&client->sending);
                continue;
            }
            append(&client->from_server, &client->from_server_len, &client->from_server_capacity,
                   bytes, now);
            bytes += now;
            left -= now;
        }
    }
    return 0;
}

static void client_stream_end_recv(struct stream *stream)
{
    struct client *client = client_of(stream);

    client->recv_ended = true;
    wait_queue_wake_all(&client->receiving);
}

static void client_stream_abort(struct stream *stream)
{
    struct client *client = client_of(stream);

    client->aborted = true;
    wait_queue_wake_all(&client->receiving);
    wait_queue_wake_all(&client->sending);
}

static void co_client_close(struct stream *stream)
{
    struct client *client = client_of(stream);

    ck_assert(list_empty(&client->receiving.waiters) && list_empty(&client->sending.waiters));
    ck_assert(!client->closed);
    client->closed = true;
}

static uint64_t client_stream_progress(struct stream *stream)
{
    const struct client *client = client_of(stream);
    return client->to_server_at + client->from_server_at;
}

static const struct stream_ops client_stream_ops = {
    .co_recv = co_client_recv,
    .co_send = co_client_send,
    .end_recv = client_stream_end_recv,
    .abort = client_stream_abort,
    .progress = client_stream_progress,
    .co_close = co_client_close,
};

/* ---- The clock ---- */

static uint64_t rig_now_ns(struct world *world)
{
    return container_of(world, struct rig, world)->now_ns;
}

static void rig_timer_stop(struct world *world, struct world_timer *timer)
{
    struct rig *rig = container_of(world, struct rig, world);

    for (unsigned i = 0; i < RIG_TIMERS_MAX; i++) {
        if (rig->timers[i] == timer) {
            rig->timers[i] = NULL;
        }
    }
}

static void rig_timer_start(struct world *world, struct world_timer *timer, uint64_t deadline_ns)
{
    struct rig *rig = container_of(world, struct rig, world);
    unsigned free_slot = RIG_TIMERS_MAX;

    for (unsigned i = 0; i < RIG_TIMERS_MAX; i++) {
        ck_assert_msg(rig->timers[i] != timer, "a timer is started twice");
        free_slot = rig->timers[i] ? free_slot : i;
    }
    ck_assert(free_slot < RIG_TIMERS_MAX);
    timer->deadline_ns = deadline_ns;
    rig->timers[free_slot] = timer;
}

static const struct world_ops rig_world_ops = {
    .now_ns = rig_now_ns,
    .timer_start = rig_timer_start,
    .timer_stop = rig_timer_stop,
};

void rig_advance(struct rig *rig, uint64_t ns)
{
    uint64_t until_ns = rig->now_ns + ns;

    rig_run(rig);
    for (;;) {
        struct world_timer **first = NULL;
        for (unsigned i = 0; i < RIG_TIMERS_MAX; i++) {
            struct world_timer *timer = rig->timers[i];
            if (timer && timer->deadline_ns <= until_ns &&
                (!first || timer->deadline_ns < (*first)->deadline_ns)) {
                first = &rig->timers[i];
            }
        }
        if (!first) {
            break;
        }
        struct world_timer *timer = *first;
        *first = NULL;
        rig->now_ns = MAX_OF(rig->now_ns, timer->deadline_ns);
        timer->fired(timer);
        rig_run(rig);
    }
    rig->now_ns = until_ns;
}

/* ---- The image ---- */

static struct fake_image *disk_of(struct image *image)
{
    return container_of(image, struct fake_image, image);
}

/* Where an operation stops when they are held; its result when it is to fail. */
static int co_pass(struct fake_image *disk, char what, uint64_t offset)
{
    if (disk->hold) {
        struct held_op op = {.what = what, .offset = offset};
        wait_queue_init(&op.queue);
        list_push_back(&disk->held, &op.link);
        co_wait(&op.queue);
    }
    return disk->fail;
}

static int co_disk_image_read(struct image *image, uint64_t offset, void *buf, size_t len,
                              struct read_holes *holes)
{
    struct fake_image *disk = disk_of(image);

    ck_assert(len > 0 && offset + len <= image->size_bytes);
    disk->reads++;
    int rc = co_pass(disk, 'r', offset);
    if (rc < 0) {
        return rc;
    }
    if (holes) {
        holes->count = 0;
        memset(buf, 0xa5, len); /* holes are not filled */
    }
    bool in_hole = false;
    for (size_t i = 0; i < len; i++) {
        bool zero = disk->extent_flags[(offset + i) / RIG_UNIT_BYTES] & EXTENT_ZERO;
        bool fits = in_hole || (holes && holes->count < READ_HOLES_MAX);
        if (!zero || !fits) {
            in_hole = false;
            ((uint8_t *)buf)[i] = zero ? 0 : disk->bytes[offset + i];
        } else if (in_hole) {
            holes->run[holes->count - 1].len++;
        } else {
            in_hole = true;
            holes->run[holes->count].offset = i;
            holes->run[holes->count++].len = 1;
        }
    }
    return 0;
}

static void mark(struct fake_image *disk, uint64_t offset, uint64_t len, uint8_t flags)
{
    for (uint64_t unit = offset / RIG_UNIT_BYTES; unit * RIG_UNIT_BYTES < offset + len; unit++) {
        disk->extent_flags[unit] = flags;
    }
}

static int co_disk_image_write(struct image *image, uint64_t offset, const void *buf, size_t len,
                               unsigned flags)
{
    struct fake_image *disk = disk_of(image);

    ck_assert(len > 0 && offset + len <= image->size_bytes);
    disk->writes++;
    disk->last_flags = flags;
    int rc = co_pass(disk, 'w', offset);
    if (rc == 0) {
        memcpy(disk->bytes + offset, buf, len);
        mark(disk, offset, len, 0);
    }
    return rc;
}

static int co_disk_image_zero(struct image *image, uint64_t offset, uint64_t len, unsigned flags)
{
    struct fake_image *disk = disk_of(image);

    ck_assert(len > 0 && offset + len <= image->size_bytes);
    disk->zeroes++;
    disk->last_flags = flags;
    int rc = co_pass(disk, 'z', offset);
    if (rc == 0) {
        memset(disk->bytes + offset, 0, len);
    }
    return rc;
}

static int co_disk_image_trim(struct image *image, uint64_t offset, uint64_t len, unsigned flags)
{
    struct fake_image *disk = disk_of(image);

    ck_assert(len > 0 && offset + len <= image->size_bytes);
    disk->trims++;
    disk->last_flags = flags;
    return co_pass(disk, 't', offset);
}

static int co_disk_image_flush(struct image *image)
{
    struct fake_image *disk = disk_of(image);

    disk->flushes++;
    return co_pass(disk, 'f', 0);
}

static int co_disk_image_extents(struct image *image, uint64_t offset, uint64_t len,
                                 struct extent_list *list)
{
    struct fake_image *disk = disk_of(image);
    uint64_t end = offset + len;

    ck_assert(len > 0 && end <= image->size_bytes && list->capacity > 0);
    disk->statuses++;
    int rc = co_pass(disk, 'e', offset);
    if (rc < 0) {
        return rc;
    }
    list->count = 0;
    while (offset < end) {
        uint64_t unit = offset / RIG_UNIT_BYTES;
        uint64_t now = MIN_OF(end, (unit + 1) * RIG_UNIT_BYTES) - offset;
        struct extent *last = list->count > 0 ? &list->extents[list->count - 1] : NULL;
        if (last && last->flags == disk->extent_flags[unit] && last->depth == disk->depth[unit]) {
            last->len += now;
        } else if (list->count == list->capacity) {
            break;
        } else {
            list->extents[list->count++] = (struct extent){
                .len = now, .flags = disk->extent_flags[unit], .depth = disk->depth[unit]};
        }
        offset += now;
    }
    return 0;
}

static size_t disk_image_bitmap_list(struct image *image, struct image_bitmap *out, size_t capacity)
{
    static char names[RIG_BITMAPS_MAX][8];
    size_t count = disk_of(image)->bitmap_count;

    ck_assert(count <= RIG_BITMAPS_MAX);
    for (size_t i = 0; i < MIN_OF(count, capacity); i++) {
        snprintf(names[i], sizeof(names[i]), "b%zu", i);
        out[i] = (struct image_bitmap){RIG_BITMAP_ID + i, names[i]};
    }
    return count;
}

static int co_disk_image_bitmap_extents(struct image *image, uint64_t bitmap_id, uint64_t offset,
                                        uint64_t len, struct extent_list *list)
{
    struct fake_image *disk = disk_of(image);
    uint64_t end = offset + len;

    ck_assert(len > 0 && end <= image->size_bytes && list->capacity > 0);
    ck_assert(bitmap_id >= RIG_BITMAP_ID && bitmap_id < RIG_BITMAP_ID + disk->bitmap_count);
    int rc = co_pass(disk, 'b', offset);
    if (rc < 0 || bitmap_id == disk->removed_bitmap_id) {
        return rc < 0 ? rc : -ENOENT;
    }
    list->count = 0;
    while (offset < end && list->count < list->capacity) {
        uint64_t unit = offset / RIG_UNIT_BYTES;
        uint64_t run = MIN_OF(end, (unit + 1) * RIG_UNIT_BYTES) - offset;
        bool dirty = unit % (bitmap_id - RIG_BITMAP_ID + 2) == 0;
        list->extents[list->count++] =
            (struct extent){.len = run, .flags = dirty ? EXTENT_DIRTY : 0};
        offset += run;
    }
    return 0;
}

static const struct image_ops disk_image_ops = {
    .co_read = co_disk_image_read,
    .co_write = co_disk_image_write,
    .co_zero = co_disk_image_zero,
    .co_trim = co_disk_image_trim,
    .co_flush = co_disk_image_flush,
    .co_extents = co_disk_image_extents,
    .bitmap_list = disk_image_bitmap_list,
    .co_bitmap_extents = co_disk_image_bitmap_extents,
};

unsigned rig_held(const struct rig *rig)
{
    unsigned count = 0;

    for (const struct list *link = rig->disk->held.next; link != &rig->disk->held;
         link = link->next) {
        count++;
    }
    return count;
}

void rig_release(struct rig *rig, unsigned index)
{
    struct list *link = rig->disk->held.next;

    while (index-- > 0) {
        link = link->next;
    }
    ck_assert(link != &rig->disk->held);
    list_remove(link);
    wait_queue_wake_one(&list_entry(link, struct held_op, link)->queue);
}

void rig_release_all(struct rig *rig)
{
    rig->disk->hold = false;
    while (rig_held(rig) > 0) {
        rig_release(rig, 0);
    }
}

/* ---- The rig ---- */

static void rig_at_end_of_turn(struct nbd_service *service, void (*fn)(void *arg), void *arg)
{
    struct rig *rig = service->context;

    ck_assert_msg(rig->turn_fn == NULL, "two calls at once for the end of the turn");
    rig->turn_fn = fn;
    rig->turn_arg = arg;
}

struct rig *rig_create(void)
{
    struct rig *rig = calloc(1, sizeof(*rig));
    struct fake_image *disk = calloc(1, sizeof(*disk));

    ck_assert(rig && disk);
    disk->image = (struct image){
        .ops = &disk_image_ops,
        .size_bytes = RIG_IMAGE_BYTES,
        .can_zero_fast = true,
        .preferred_bytes = 65536,
        .path = "fake",
    };
    list_init(&disk->held);
    for (size_t i = 0; i < RIG_IMAGE_BYTES; i++) {
        disk->bytes[i] = (uint8_t)(i * 7 + i / 251);
    }
    memset(disk->depth, 1, sizeof(disk->depth));
    rig->disk = disk;
    rig->world.ops = &rig_world_ops;
    rig->now_ns = 1000 * MS;
    budget_init(&rig->budget, LIMIT_BYTES_IN_FLIGHT);
    rig->exports[0] = (struct nbd_export){.name = "", .image = &disk->image, .multi_conn = true};
    rig->exports[1] = (struct nbd_export){.name = "ro",
                                          .description = "look, do not touch",
                                          .image = &disk->image,
                                          .read_only = true};
    rig->exports[2] = (struct nbd_export){.name = "other", .image = &disk->image};
    nbd_service_init(&rig->service);
    rig->service.world = &rig->world;
    ck_assert_int_eq(nbd_service_offer_array(&rig->service, rig->exports, 3), 0);
    rig->service.bytes_in_flight = &rig->budget;
    rig->service.at_end_of_turn = rig_at_end_of_turn;
    rig->service.context = rig;
    return rig;
}

void rig_free(struct rig *rig)
{
    rig_run(rig);
    ck_assert(list_empty(&rig->service.connections));
    nbd_service_offer(&rig->service, NULL);
    for (unsigned i = 0; i < ARRAY_LEN(rig->exports); i++) {
        ck_assert_msg(rig->exports[i].references == 0, "somebody holds an export still");
    }
    ck_assert(rig->budget.used == 0);
    ck_assert(coro_live_count() == 0);
    for (unsigned i = 0; i < RIG_TIMERS_MAX; i++) {
        ck_assert_msg(rig->timers[i] == NULL, "a timer is left armed");
    }
    free(rig->disk);
    free(rig);
    coro_pool_drain();
    buffer_pool_drain();
}

void rig_run(struct rig *rig)
{
    for (;;) {
        coro_run_ready();
        if (!rig->turn_fn) {
            return;
        }
        void (*fn)(void *arg) = rig->turn_fn;
        rig->turn_fn = NULL;
        fn(rig->turn_arg);
    }
}

static void co_drain(void *arg)
{
    struct rig *rig = arg;

    co_nbd_drain(&rig->service, rig->grace_ns);
    rig->drained = true;
}

void rig_drain(struct rig *rig, uint64_t grace_ns)
{
    rig->grace_ns = grace_ns;
    ck_assert(coro_spawn(co_drain, rig, "drain") == 0);
    rig_run(rig);
}

/* ---- The client ---- */

static void co_serve(void *arg)
{
    struct client *client = arg;

    if (client->refusal) {
        co_nbd_refuse(&client->rig->service, &client->stream, client->refusal);
    } else {
        co_nbd_serve(&client->rig->service, &client->stream);
    }
    client->returned = true;
}

static struct client *connect_client(struct rig *rig, const char *refusal)
{
    struct client *client = calloc(1, sizeof(*client));

    ck_assert(client != NULL);
    client->stream = (struct stream){.ops = &client_stream_ops, .peer = "test"};
    client->deliver_most = SIZE_MAX;
    client->window = SIZE_MAX;
    client->rig = rig;
    client->refusal = refusal;
    wait_queue_init(&client->receiving);
    wait_queue_init(&client->sending);
    ck_assert(coro_spawn(co_serve, client, "serve") == 0);
    rig_run(rig);
    return client;
}

struct client *client_create(struct rig *rig)
{
    return connect_client(rig, NULL);
}

struct client *client_create_refused(struct rig *rig, const char *why)
{
    return connect_client(rig, why);
}

void client_free(struct client *client)
{
    client_vanish(client);
    ck_assert(client->closed && client->returned);
    free(client->to_server);
    free(client->from_server);
    free(client);
}

void client_send(struct client *client, const void *bytes, size_t len)
{
    append(&client->to_server, &client->to_server_len, &client->to_server_capacity, bytes, len);
    wait_queue_wake_all(&client->receiving);
    rig_run(client->rig);
}

size_t client_unread(const struct client *client)
{
    return client->from_server_len - client->from_server_at;
}

const uint8_t *client_take(struct client *client, size_t len)
{
    ck_assert_msg(client_unread(client) >= len, "%zu bytes expected, %zu are there", len,
                  client_unread(client));
    /* A private place for what was taken, so that overruns of it are seen. */
    static uint8_t *taken;
    free(taken);
    taken = malloc(len > 0 ? len : 1);
    ck_assert(taken != NULL);
    if (len > 0) {
        memcpy(taken, client->from_server + client->from_server_at, len);
    }
    client->from_server_at += len;
    wait_queue_wake_all(&client->sending);
    rig_run(client->rig);
    return taken;
}

void client_vanish(struct client *client)
{
    client->gone = true;
    wait_queue_wake_all(&client->receiving);
    wait_queue_wake_all(&client->sending);
    rig_run(client->rig);
}

void client_half_close(struct client *client)
{
    client->half_closed = true;
    wait_queue_wake_all(&client->receiving);
    rig_run(client->rig);
}

void client_expect_closed(struct client *client)
{
    rig_run(client->rig);
    ck_assert_msg(client->closed, "the connection is still open");
    ck_assert_msg(client_unread(client) == 0, "%zu bytes are unread", client_unread(client));
}

void client_greet(struct client *client, uint32_t flags)
{
    const struct wire_greeting *greeting = (const void *)client_take(client, sizeof(*greeting));
    uint8_t bytes[4];

    ck_assert(get_be64(greeting->magic) == NBD_MAGIC);
    ck_assert(get_be64(greeting->option_magic) == NBD_OPTION_MAGIC);
    ck_assert(get_be16(greeting->flags) == 3);
    put_be32(bytes, flags);
    client_send(client, bytes, 4);
}

void client_option(struct client *client, uint32_t option, const void *payload, size_t len)
{
    struct wire_option header;

    put_be64(header.magic, NBD_OPTION_MAGIC);
    put_be32(header.option, option);
    put_be32(header.length, (uint32_t)len);
    client_send(client, &header, sizeof(header));
    client_send(client, payload, len);
}

const uint8_t *client_option_reply(struct client *client, uint32_t option, uint32_t type,
                                   size_t *len)
{
    const struct wire_option_reply *reply = (const void *)client_take(client, sizeof(*reply));

    ck_assert(get_be64(reply->magic) == NBD_OPTION_REPLY_MAGIC);
    ck_assert_uint_eq(get_be32(reply->option), option);
    ck_assert_uint_eq(get_be32(reply->type), type);
    *len = get_be32(reply->length);
    return client_take(client, *len);
}

static size_t pack_string(uint8_t *out, const char *text)
{
    size_t len = strlen(text);

    put_be32(out, (uint32_t)len);
    memcpy(out + 4, text, len);
    return 4 + len;
}

size_t pack_go(uint8_t *out, const char *name, const uint16_t *infos, unsigned count)
{
    size_t used = pack_string(out, name);

    put_be16(out + used, (uint16_t)count);
    used += 2;
    for (unsigned i = 0; i < count; i++) {
        put_be16(out + used, infos[i]);
        used += 2;
    }
    return used;
}

size_t pack_meta(uint8_t *out, const char *name, const char *const *queries, unsigned count)
{
    size_t used = pack_string(out, name);

    put_be32(out + used, count);
    used += 4;
    for (unsigned i = 0; i < count; i++) {
        used += pack_string(out + used, queries[i]);
    }
    return used;
}

void client_go(struct client *client, const char *name)
{
    uint8_t payload[256];
    size_t len = pack_go(payload, name, NULL, 0);

    client_option(client, NBD_OPT_GO, payload, len);
    client_option_reply(client, NBD_OPT_GO, NBD_REP_INFO, &len);
    ck_assert_uint_eq(len, 12);
    if (client->rig->service.limits.request_bytes != LIMIT_PAYLOAD_BYTES) {
        client_option_reply(client, NBD_OPT_GO, NBD_REP_INFO, &len);
    }
    client_option_reply(client, NBD_OPT_GO, NBD_REP_ACK, &len);
    ck_assert(client_unread(client) == 0);
}

struct client *client_enter(struct rig *rig, const char *name, int how)
{
    static const char *const queries[] = {"base:allocation", "qemu:allocation-depth"};
    struct client *client = client_create(rig);
    uint8_t payload[256];
    size_t len;

    client_greet(client, 3);
    client->extended = how >= EXTENDED;
    if (how != SIMPLE) {
        uint32_t option = client->extended ? NBD_OPT_EXTENDED_HEADERS : NBD_OPT_STRUCTURED_REPLY;
        client_option(client, option, NULL, 0);
        client_option_reply(client, option, NBD_REP_ACK, &len);
    }
    if (how == WITH_CONTEXTS || how == EXTENDED_WITH_CONTEXTS) {
        len = pack_meta(payload, name, queries, 2);
        client_option(client, NBD_OPT_SET_META_CONTEXT, payload, len);
        client_option_reply(client, NBD_OPT_SET_META_CONTEXT, NBD_REP_META_CONTEXT, &len);
        client_option_reply(client, NBD_OPT_SET_META_CONTEXT, NBD_REP_META_CONTEXT, &len);
        client_option_reply(client, NBD_OPT_SET_META_CONTEXT, NBD_REP_ACK, &len);
    }
    client_go(client, name);
    client->sends = 0;
    return client;
}

void pack_request(uint8_t *out, uint16_t type, uint16_t flags, uint64_t cookie, uint64_t offset,
                  uint32_t len)
{
    struct wire_request *wire = (void *)out;

    put_be32(wire->magic, NBD_REQUEST_MAGIC);
    put_be16(wire->flags, flags);
    put_be16(wire->type, type);
    put_be64(wire->cookie, cookie);
    put_be64(wire->offset, offset);
    put_be32(wire->length, len);
}

void client_request(struct client *client, uint16_t type, uint16_t flags, uint64_t cookie,
                    uint64_t offset, uint32_t len)
{
    uint8_t bytes[sizeof(struct wire_request)];

    pack_request(bytes, type, flags, cookie, offset, len);
    client_send(client, bytes, sizeof(bytes));
}

void pack_extended(uint8_t *out, uint16_t type, uint16_t flags, uint64_t cookie, uint64_t offset,
                   uint64_t len)
{
    struct wire_extended_request *wire = (void *)out;

    put_be32(wire->magic, NBD_EXTENDED_REQUEST_MAGIC);
    put_be16(wire->flags, flags);
    put_be16(wire->type, type);
    put_be64(wire->cookie, cookie);
    put_be64(wire->offset, offset);
    put_be64(wire->length, len);
}

void client_extended(struct client *client, uint16_t type, uint16_t flags, uint64_t cookie,
                     uint64_t offset, uint64_t len)
{
    uint8_t bytes[sizeof(struct wire_extended_request)];

    pack_extended(bytes, type, flags, cookie, offset, len);
    client_send(client, bytes, sizeof(bytes));
}

void client_expect_simple(struct client *client, uint64_t cookie, uint32_t error)
{
    const struct wire_simple_reply *reply = (const void *)client_take(client, sizeof(*reply));

    ck_assert_uint_eq(get_be32(reply->magic), NBD_SIMPLE_REPLY_MAGIC);
    ck_assert_uint_eq(get_be32(reply->error), error);
    ck_assert_uint_eq(get_be64(reply->cookie), cookie);
}

static struct chunk client_extended_chunk(struct client *client)
{
    const struct wire_extended_chunk *wire = (const void *)client_take(client, sizeof(*wire));

    ck_assert_uint_eq(get_be32(wire->magic), NBD_EXTENDED_REPLY_MAGIC);
    struct chunk chunk = {
        .flags = get_be16(wire->flags),
        .type = get_be16(wire->type),
        .cookie = get_be64(wire->cookie),
        .offset = get_be64(wire->offset),
        .length = get_be64(wire->length),
    };
    chunk.payload = client_take(client, chunk.length);
    return chunk;
}

struct chunk client_chunk(struct client *client)
{
    if (client->extended) {
        return client_extended_chunk(client);
    }
    const struct wire_chunk *wire = (const void *)client_take(client, sizeof(*wire));

    ck_assert_uint_eq(get_be32(wire->magic), NBD_STRUCTURED_REPLY_MAGIC);
    struct chunk chunk = {
        .flags = get_be16(wire->flags),
        .type = get_be16(wire->type),
        .cookie = get_be64(wire->cookie),
        .length = get_be32(wire->length),
    };
    chunk.payload = client_take(client, chunk.length);
    return chunk;
}

void client_expect_none(struct client *client, uint64_t cookie)
{
    struct chunk chunk = client_chunk(client);

    ck_assert_uint_eq(chunk.type, NBD_REPLY_TYPE_NONE);
    ck_assert_uint_eq(chunk.flags, NBD_REPLY_FLAG_DONE);
    ck_assert_uint_eq(chunk.cookie, cookie);
    ck_assert_uint_eq(chunk.length, 0);
}

void client_expect_error_chunk(struct client *client, uint64_t cookie, uint32_t error)
{
    struct chunk chunk = client_chunk(client);

    ck_assert_uint_eq(chunk.type, NBD_REPLY_TYPE_ERROR);
    ck_assert_uint_eq(chunk.flags, NBD_REPLY_FLAG_DONE);
    ck_assert_uint_eq(chunk.cookie, cookie);
    ck_assert_uint_eq(get_be32(chunk.payload), error);
    uint16_t text_len = get_be16(chunk.payload + 4);
    ck_assert(text_len > 0 && text_len == chunk.length - 6);
}
