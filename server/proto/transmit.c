/* SPDX-License-Identifier: BSD-2-Clause */
/*
 * One command object from the request's header to the last byte of its reply; it carries what it
 * was charged for, and gives that back only when its reply has left. So a client that does not read
 * its replies runs into its own limits, and is no longer read from.
 *
 *     reader: admit (may wait) -> receive payload -> start
 *     command's coroutine: run on the image -> build reply -> queue
 *     sender: all queued replies in one send, once a turn of the loop -> finish the commands
 *
 * Replies are sent whole and one after the other, so that those of different requests interleave at
 * borders of chunks only.
 *
 * Long READs and WRITEs are worked off in parts: their bytes then move through a small buffer that
 * stays in the processor's cache, which costs two thirds of moving them through a large one.
 */
#include "proto/transmit.h"

#include <assert.h>
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "base/limits.h"
#include "base/log.h"
#include "io/buffers.h"
#include "proto/meta.h"
#include "proto/reply.h"
#include "proto/wire.h"
#include "sched/co.h"

/* One send takes this many pieces at most, and no further reply past this many bytes. */
#define BATCH_PIECES_MAX (2U * REPLY_PIECES_MAX)
#define BATCH_BYTES      (2U * 1024U * 1024U)
/*
 * A part of a READ or WRITE; parts end at multiples of this. When a part of a READ took longer than
 * that, its bytes were not in the page cache: the rest is read in one go, as devices like it.
 */
#define PART_BYTES   (128U * 1024U)
#define PART_SLOW_NS 500000U
/* Command objects kept for reuse, by all connections together. */
#define SPARE_COMMANDS_MAX 512U
/*
 * BLOCK_STATUS: extents are not expected to be smaller than this, and at least so many are taken.
 */
#define STATUS_EXTENT_BYTES 512U
#define STATUS_EXTENTS_MIN  32U

struct command {
    struct list link; /* spare_commands or replies */
    struct connection *conn;
    struct nbd_request request;
    uint64_t charged_bytes;
    uint64_t reserve_bytes; /* of those; the rest is the common budget's */
    bool accepted;
    bool failed;
    uint64_t began_ns; /* the turn it came in; kept where requests are counted */
    void *payload;
    size_t payload_len;
    struct reply reply;
    /* READ in parts: the reply at hand is not the last. Its sending wakes the queue. */
    bool reply_is_part;
    struct wait_queue part_sent;
    /* WRITE in parts. */
    bool written_in_parts;
    struct group parts;
    int parts_result; /* 0, or the first error */
};

/* ---- Command objects and what they are charged for ---- */

static struct command *command_create(struct nbd_service *service)
{
    struct list *spare = list_pop_front(&service->spare_commands);
    if (!spare) {
        return malloc(sizeof(struct command));
    }
    service->spare_count--;
    return list_entry(spare, struct command, link);
}

static void command_recycle(struct nbd_service *service, struct command *command)
{
    if (service->spare_count == SPARE_COMMANDS_MAX) {
        free(command);
        return;
    }
    service->spare_count++;
    list_push_front(&service->spare_commands, &command->link);
}

void transmit_free_spares(struct nbd_service *service)
{
    struct list *spare;

    while ((spare = list_pop_front(&service->spare_commands)) != NULL) {
        free(list_entry(spare, struct command, link));
    }
    service->spare_count = 0;
}

/*
 * What a BLOCK_STATUS asks of the image: one list serves all contexts that are every export's, each
 * dirty bitmap has its own.
 */
static bool wants_extents(const struct nbd_request *request)
{
    return request->meta_contexts & (meta_context_bit(META_FIXED_COUNT) - 1);
}

static unsigned status_list_count(const struct nbd_request *request)
{
    return (unsigned)__builtin_popcountll(request->meta_contexts >> META_FIXED_COUNT) +
           wants_extents(request);
}

/* Extents in one list, and less in each where there are many of them. */
static unsigned status_extent_capacity(const struct nbd_request *request)
{
    uint64_t wanted = request->length / STATUS_EXTENT_BYTES + 2;

    if (request->flags & NBD_CMD_FLAG_REQ_ONE) {
        wanted = 0;
    }
    wanted = MIN_OF(wanted, (uint64_t)LIMIT_STATUS_EXTENTS / status_list_count(request));
    return (unsigned)MAX_OF(wanted, (uint64_t)STATUS_EXTENTS_MIN);
}

/* Memory that the request will hold from admission until its reply has left. */
static uint64_t bytes_needed(const struct nbd_request *request)
{
    if (request->error) {
        return 0;
    }
    switch (request->type) {
    case NBD_CMD_READ:
    case NBD_CMD_WRITE:
        return request->length;
    case NBD_CMD_BLOCK_STATUS:
        return (uint64_t)status_extent_capacity(request) *
               (status_list_count(request) * sizeof(struct extent) +
                (unsigned)__builtin_popcountll(request->meta_contexts) *
                    sizeof(struct wire_status_ext_extent));
    default:
        return 0;
    }
}

static bool has_room(const struct connection *conn, uint64_t bytes)
{
    const struct nbd_limits *limits = &conn->service->limits;
    return conn->in_flight < limits->requests &&
           (conn->payload_bytes == 0 || conn->payload_bytes + bytes <= limits->connection_bytes);
}

static void co_take_from_budget(struct nbd_service *service, uint64_t bytes)
{
    if (budget_try_take(service->bytes_in_flight, bytes)) {
        return;
    }
    nbd_budget_waiter_came(service);
    co_budget_take(service->bytes_in_flight, bytes);
    nbd_budget_waiter_went(service);
}

static void refuse_draining(const struct connection *conn, struct nbd_request *request)
{
    if (connection_draining(conn) && !request->error) {
        request->error = NBD_ESHUTDOWN;
        request->reason = reply_error_text(NBD_ESHUTDOWN);
    }
}

/*
 * Waits until the connection may have one more command of so many bytes, and makes it. NULL when
 * the connection was aborted meanwhile, or without memory (then it is aborted here). What has to
 * wait until the server shuts down is refused (O9).
 */
static struct command *co_admit(struct connection *conn, struct nbd_request *request)
{
    uint64_t bytes = bytes_needed(request);

    while (!conn->aborted && !has_room(conn, bytes)) {
        co_wait(&conn->room);
    }
    if (conn->aborted) {
        return NULL;
    }
    bool from_reserve = conn->reserve_bytes + bytes <= CONNECTION_RESERVE_BYTES;
    if (!from_reserve) {
        co_take_from_budget(conn->service, bytes);
    }
    refuse_draining(conn, request);
    struct command *command = conn->aborted ? NULL : command_create(conn->service);
    if (!command) {
        if (!from_reserve) {
            budget_give(conn->service->bytes_in_flight, bytes);
        }
        connection_abort(conn, "out of memory");
        return NULL;
    }
    list_init(&command->link);
    command->conn = conn;
    command->request = *request;
    command->charged_bytes = bytes;
    command->reserve_bytes = from_reserve ? bytes : 0;
    command->accepted = request->error != NBD_ESHUTDOWN;
    command->failed = false;
    command->began_ns = 0;
    if (conn->chosen->counters) {
        command->began_ns = world_turn_ns(conn->service->world);
        conn->chosen->counters->in_flight++;
    }
    command->payload = NULL;
    command->payload_len = 0;
    command->reply.extra = NULL;
    command->reply_is_part = false;
    wait_queue_init(&command->part_sent);
    command->written_in_parts = false;
    group_init(&command->parts);
    command->parts_result = 0;
    conn->in_flight++;
    conn->accepted += command->accepted;
    conn->payload_bytes += bytes;
    conn->reserve_bytes += command->reserve_bytes;
    return command;
}

static void note_idleness(struct connection *conn)
{
    if (conn->service->limits.idle_ms > 0) {
        conn->idle_since_ns = world_now_ns(conn->service->world);
    }
}

/* The end of a command, with its reply sent or dropped: gives everything back. */
static void command_finish(struct command *command)
{
    struct connection *conn = command->conn;
    uint64_t of_budget = command->charged_bytes - command->reserve_bytes;

    reply_release(&command->reply);
    buffer_put(command->payload, command->payload_len);
    if (of_budget > 0) {
        budget_give(conn->service->bytes_in_flight, of_budget);
    }
    assert(conn->in_flight > 0 && conn->payload_bytes >= command->charged_bytes);
    if (conn->chosen->counters) {
        conn->chosen->counters->in_flight--;
    }
    conn->in_flight--;
    conn->accepted -= command->accepted;
    conn->payload_bytes -= command->charged_bytes;
    conn->reserve_bytes -= command->reserve_bytes;
    command_recycle(conn->service, command);
    wait_queue_wake_one(&conn->room);
    if (conn->in_flight == 0) {
        note_idleness(conn);
        wait_queue_wake_all(&conn->idle);
    }
}

/* Now, where anything is counted. */
static uint64_t counting_time_ns(const struct connection *conn)
{
    return conn->chosen->counters ? world_now_ns(conn->service->world) : 0;
}

static void command_count(const struct command *command, uint64_t now_ns)
{
    struct nbd_counters *counters = command->conn->chosen->counters;
    enum counted_command counted = counted_command_of(command->request.type);

    if (counters && counted != COUNTED_COMMANDS) {
        uint64_t took_ns = now_ns > command->began_ns ? now_ns - command->began_ns : 0;
        command_counters_add(&counters->commands[counted], command->failed, command->request.length,
                             took_ns);
    }
}

/* The reply at hand was sent or dropped: was that all? now_ns: counting_time_ns(). */
static void command_replied(struct command *command, uint64_t now_ns)
{
    if (command->reply_is_part) {
        command->reply_is_part = false;
        wait_queue_wake_all(&command->part_sent);
    } else {
        command_count(command, now_ns);
        command_finish(command);
    }
}

static int command_take_buffer(struct command *command, size_t len)
{
    command->payload = buffer_get(len);
    if (!command->payload) {
        return -ENOMEM;
    }
    command->payload_len = len;
    return 0;
}

static void command_drop_buffer(struct command *command)
{
    buffer_put(command->payload, command->payload_len);
    command->payload = NULL;
}

/* ---- Sending ---- */

static void drop_replies(struct connection *conn)
{
    uint64_t now_ns = counting_time_ns(conn);
    struct list *link;

    while ((link = list_pop_front(&conn->replies)) != NULL) {
        command_replied(list_entry(link, struct command, link), now_ns);
    }
}

/* Moves replies from the queue to `batch`, their pieces to iov. Returns how many pieces. */
static unsigned gather(struct connection *conn, struct list *batch, struct iovec *iov,
                       size_t *bytes)
{
    unsigned count = 0;

    *bytes = 0;
    while (!list_empty(&conn->replies) && *bytes < BATCH_BYTES) {
        struct command *command = list_entry(conn->replies.next, struct command, link);
        const struct reply *reply = &command->reply;
        if (count + reply->count > BATCH_PIECES_MAX) {
            break;
        }
        memcpy(iov + count, reply->pieces, reply->count * sizeof(*iov));
        count += reply->count;
        *bytes += reply->total_bytes;
        list_remove(&command->link);
        list_push_back(batch, &command->link);
    }
    return count;
}

/* Sends one batch. Whether replies are left that found no place in it. */
static bool co_send_batch(struct connection *conn)
{
    struct iovec iov[BATCH_PIECES_MAX];
    struct list batch;
    struct list *link;
    size_t bytes;

    list_init(&batch);
    unsigned count = gather(conn, &batch, iov, &bytes);
    bool more = !list_empty(&conn->replies);
    conn->send_stalls_ns = connection_stall_time(conn, bytes);
    int rc = conn->stream->ops->co_send(conn->stream, iov, (int)count, more);
    conn->send_stalls_ns = 0;
    if (rc < 0) {
        connection_abort(conn, strerror(-rc));
    }
    uint64_t now_ns = counting_time_ns(conn);
    while ((link = list_pop_front(&batch)) != NULL) {
        command_replied(list_entry(link, struct command, link), now_ns);
    }
    return more;
}

static void schedule_send(struct connection *conn);

static void co_sender(void *arg)
{
    struct connection *conn = arg;
    bool more = true;

    while (more && !conn->aborted) {
        more = co_send_batch(conn);
    }
    conn->sender_running = false;
    if (conn->aborted) {
        drop_replies(conn);
    }
    schedule_send(conn); /* what came during the last send leaves with the rest of this turn */
    transmit_leave_if_drained(conn);
    wait_queue_wake_all(&conn->idle);
}

static void start_sender(struct connection *conn)
{
    if (!conn->aborted) {
        conn->sender_running = true;
        if (coro_spawn(co_sender, conn, "nbd send") == 0) {
            return;
        }
        conn->sender_running = false;
        connection_abort(conn, "out of memory");
    }
    drop_replies(conn);
    wait_queue_wake_all(&conn->idle);
}

static void on_turn_end(void *arg)
{
    struct nbd_service *service = arg;
    struct list *link;

    service->turn_end_asked = false;
    while ((link = list_pop_front(&service->to_send)) != NULL) {
        start_sender(list_entry(link, struct connection, send_link));
    }
}

static void schedule_send(struct connection *conn)
{
    struct nbd_service *service = conn->service;

    if (list_empty(&conn->replies) || conn->sender_running || list_linked(&conn->send_link)) {
        return;
    }
    if (!service->at_end_of_turn) {
        start_sender(conn);
        return;
    }
    list_push_back(&service->to_send, &conn->send_link);
    if (!service->turn_end_asked) {
        service->turn_end_asked = true;
        service->at_end_of_turn(service, on_turn_end, service);
    }
}

/* The reply is built: off it goes. */
static void command_queue_reply(struct command *command)
{
    struct connection *conn = command->conn;

    if (conn->aborted) {
        command_finish(command);
        return;
    }
    list_push_back(&conn->replies, &command->link);
    schedule_send(conn);
}

static struct reply_to reply_to(const struct command *command)
{
    return (struct reply_to){
        .form = command->conn->form,
        .cookie = command->request.cookie,
        .offset = command->request.offset,
    };
}

static void command_fail(struct command *command, uint32_t error, const char *text)
{
    struct connection *conn = command->conn;
    const struct nbd_request *request = &command->request;
    struct reply_to to = reply_to(command);

    connection_note(conn, "%s at %llu, %llu bytes, flags 0x%x: error %u: %s",
                    request_type_name(request->type), (unsigned long long)request->offset,
                    (unsigned long long)request->length, request->flags, error, text);
    command->failed = true;
    command_drop_buffer(command);
    reply_error(&command->reply, &to, error, text);
    command_queue_reply(command);
}

/* ---- Running commands. Each returns 0 with the reply built, or -errno. ---- */

static unsigned image_flags(const struct nbd_request *request)
{
    unsigned flags = 0;

    flags |= request->flags & NBD_CMD_FLAG_FUA ? IMAGE_FUA : 0U;
    flags |= request->flags & NBD_CMD_FLAG_NO_HOLE ? IMAGE_NO_HOLE : 0U;
    flags |= request->flags & NBD_CMD_FLAG_FAST_ZERO ? IMAGE_FAST_ZERO : 0U;
    return flags;
}

/* Where the part that begins `done` bytes into a request ends. */
static size_t part_end(const struct nbd_request *request, size_t done, uint64_t part_bytes)
{
    uint64_t end = round_down_to(request->offset + done, part_bytes) + part_bytes;
    return (size_t)MIN_OF(end - request->offset, request->length);
}

/* Has the reply sent that was built, to go on after it. -ESHUTDOWN when the peer is gone. */
static int co_send_part(struct command *command)
{
    struct connection *conn = command->conn;

    if (!conn->aborted) {
        command->reply_is_part = true;
        command_queue_reply(command);
        while (command->reply_is_part) {
            co_wait(&command->part_sent);
        }
    }
    reply_release(&command->reply);
    return conn->aborted ? -ESHUTDOWN : 0;
}

/* Replies with len bytes at payload, or with a hole (NULL). *to moves on. */
static int co_reply_part(struct command *command, struct reply_to *to, void *payload, size_t len,
                         const struct read_holes *holes)
{
    to->more = to->skipped + len < command->request.length;
    reply_read(&command->reply, to, payload, len, holes);
    to->skipped += len;
    return to->more ? co_send_part(command) : 0;
}

static bool is_one_hole(const struct read_holes *holes, size_t len)
{
    return holes->count == 1 && holes->run[0].len == len;
}

/* Reads the bytes up to `end` of the request into the command's buffer, which may be replaced. */
static int co_read_part(struct command *command, struct image *image, size_t done, size_t end,
                        struct read_holes *holes)
{
    if (command->payload && command->payload_len < end - done) {
        command_drop_buffer(command);
    }
    if (!command->payload) {
        int rc = command_take_buffer(command, end - done);
        if (rc < 0) {
            return rc;
        }
    }
    holes->count = 0;
    return image->ops->co_read(image, command->request.offset + done, command->payload, end - done,
                               holes);
}

/* One or more replies with chunks; neighbouring holes become one. */
static int co_run_read_in_parts(struct command *command, struct image *image)
{
    const struct nbd_request *request = &command->request;
    struct world *world = command->conn->service->world;
    struct reply_to to = reply_to(command);
    struct read_holes holes;
    size_t end = part_end(request, 0, PART_BYTES);

    for (size_t done = 0; done < request->length;) {
        uint64_t began_ns = world_now_ns(world);
        int rc = co_read_part(command, image, done, end, &holes);
        bool slow = world_now_ns(world) - began_ns > PART_SLOW_NS;
        size_t len = end - done;
        bool hole = rc == 0 && is_one_hole(&holes, len);
        size_t hole_len = done - (size_t)to.skipped + (hole ? len : 0);
        if (rc == 0 && hole_len > 0 && (!hole || end == request->length)) {
            struct read_holes all = {.count = 1, .run[0] = {0, hole_len}};
            rc = co_reply_part(command, &to, NULL, hole_len, &all);
        }
        if (rc == 0 && !hole) {
            rc = co_reply_part(command, &to, command->payload, len, &holes);
        }
        if (rc < 0) {
            return rc;
        }
        done = end;
        end = slow ? (size_t)request->length : part_end(request, done, PART_BYTES);
    }
    return 0;
}

static int co_run_read_whole(struct command *command, struct image *image)
{
    const struct nbd_request *request = &command->request;
    struct reply *reply = &command->reply;
    size_t len = (size_t)request->length;
    struct reply_to to = reply_to(command);
    bool want_holes = to.form != HEADERS_SIMPLE && !(request->flags & NBD_CMD_FLAG_DF);
    struct read_holes holes;

    int rc = command_take_buffer(command, len);
    if (rc < 0) {
        return rc;
    }
    holes.count = 0;
    rc = image->ops->co_read(image, request->offset, command->payload, len,
                             want_holes ? &holes : NULL);
    if (rc < 0) {
        return rc;
    }
    reply_read(reply, &to, command->payload, len, want_holes ? &holes : NULL);
    if (reply->count == 1) {
        command_drop_buffer(command); /* one hole: there is no data to send */
    }
    return 0;
}

static int co_run_read(struct command *command, struct image *image)
{
    const struct nbd_request *request = &command->request;
    bool chunks = command->conn->form != HEADERS_SIMPLE && !(request->flags & NBD_CMD_FLAG_DF);

    if (chunks && request->length > PART_BYTES) {
        return co_run_read_in_parts(command, image);
    }
    return co_run_read_whole(command, image);
}

static int co_run_write(struct command *command, struct image *image)
{
    const struct nbd_request *request = &command->request;

    if (command->written_in_parts) {
        co_group_wait(&command->parts);
        if (command->parts_result == 0 && (request->flags & NBD_CMD_FLAG_FUA)) {
            return image->ops->co_flush(image); /* O4 */
        }
        return command->parts_result;
    }
    int rc = image->ops->co_write(image, request->offset, command->payload, (size_t)request->length,
                                  image_flags(request));
    command_drop_buffer(command);
    return rc;
}

static int co_run_flush(struct command *command, struct image *image)
{
    (void)command;
    return image->read_only ? 0 : image->ops->co_flush(image);
}

static int co_run_trim(struct command *command, struct image *image)
{
    const struct nbd_request *request = &command->request;
    return image->ops->co_trim(image, request->offset, request->length, image_flags(request));
}

static int co_run_zero(struct command *command, struct image *image)
{
    const struct nbd_request *request = &command->request;
    return image->ops->co_zero(image, request->offset, request->length, image_flags(request));
}

/* What the image says to one request, in one piece of memory. */
struct status_answer {
    struct extent_list lists[META_CONTEXTS_MAX];
    struct status_content contents[META_CONTEXTS_MAX];
    struct extent extents[];
};

static int co_ask_status(struct command *command, struct image *image, struct status_answer *answer,
                         unsigned *content_count)
{
    const struct nbd_request *request = &command->request;
    const uint64_t *bitmap_ids = command->conn->meta_bitmap_ids;
    unsigned capacity = status_extent_capacity(request);
    unsigned lists = 0, contents = 0;

    for (unsigned context = 0; context < META_CONTEXTS_MAX; context++) {
        struct extent_list *list = &answer->lists[lists];
        int rc = 0;
        if (!(request->meta_contexts & meta_context_bit(context))) {
            continue;
        }
        if (context < META_FIXED_COUNT && contents > 0) {
            list = &answer->lists[0]; /* described already */
        } else {
            *list = (struct extent_list){answer->extents + (size_t)lists * capacity, capacity, 0};
            lists++;
            rc = context < META_FIXED_COUNT
                     ? image->ops->co_extents(image, request->offset, request->length, list)
                     : image->ops->co_bitmap_extents(image, bitmap_ids[context - META_FIXED_COUNT],
                                                     request->offset, request->length, list);
        }
        if (rc < 0) {
            /* Removed since it was selected: the context is nobody's any more. */
            return rc == -ENOENT ? -EINVAL : rc;
        }
        answer->contents[contents++] = (struct status_content){context, list};
    }
    *content_count = contents;
    return 0;
}

static int co_run_status(struct command *command, struct image *image)
{
    const struct nbd_request *request = &command->request;
    struct reply_to to = reply_to(command);
    struct status_answer *answer;
    size_t answer_bytes = sizeof(*answer) + (size_t)status_list_count(request) *
                                                status_extent_capacity(request) *
                                                sizeof(struct extent);
    unsigned content_count = 0;

    answer = (void *)buffer_get(answer_bytes);
    if (!answer) {
        return -ENOMEM;
    }
    int rc = co_ask_status(command, image, answer, &content_count);
    if (rc == 0) {
        rc = reply_block_status(&command->reply, &to, answer->contents, content_count,
                                request->flags & NBD_CMD_FLAG_REQ_ONE);
    }
    buffer_put((uint8_t *)answer, answer_bytes);
    return rc;
}

static int co_run(struct command *command)
{
    struct image *image = command->conn->chosen->image;

    switch (command->request.type) {
    case NBD_CMD_READ:
        return co_run_read(command, image);
    case NBD_CMD_WRITE:
        return co_run_write(command, image);
    case NBD_CMD_FLUSH:
        return co_run_flush(command, image);
    case NBD_CMD_TRIM:
        return co_run_trim(command, image);
    case NBD_CMD_WRITE_ZEROES:
        return co_run_zero(command, image);
    case NBD_CMD_BLOCK_STATUS:
        return co_run_status(command, image);
    default:
        abort(); /* decoded as good, and unknown: our own fault */
    }
}

static bool has_content_reply(const struct nbd_request *request)
{
    return request->type == NBD_CMD_READ || request->type == NBD_CMD_BLOCK_STATUS;
}

static void co_command(void *arg)
{
    struct command *command = arg;
    const struct nbd_request *request = &command->request;

    int rc = co_run(command);
    if (rc < 0) {
        uint32_t error = reply_error_number(rc, request->flags & NBD_CMD_FLAG_FAST_ZERO);
        command_fail(command, error, reply_error_text(error));
        return;
    }
    if (!has_content_reply(request)) {
        struct reply_to to = reply_to(command);
        reply_success(&command->reply, &to);
    }
    command_queue_reply(command);
}

/* ---- Reading requests ---- */

/* Nothing to do: zero bytes, or CACHE, which is a hint that the page cache follows by itself. */
static bool is_done_at_once(const struct nbd_request *request)
{
    return request->type == NBD_CMD_CACHE ||
           (request->type != NBD_CMD_FLUSH && request->length == 0);
}

static void command_start(struct command *command)
{
    const struct nbd_request *request = &command->request;

    if (request->error) {
        command_fail(command, request->error, request->reason);
    } else if (is_done_at_once(request)) {
        struct reply_to to = reply_to(command);
        if (request->type == NBD_CMD_READ) {
            reply_read_nothing(&command->reply, &to);
        } else {
            reply_success(&command->reply, &to);
        }
        command_queue_reply(command);
    } else if (coro_spawn(co_command, command, "nbd request") < 0) {
        command_fail(command, NBD_ENOMEM, reply_error_text(NBD_ENOMEM));
    }
}

struct write_part {
    struct command *command;
    uint64_t offset;
    void *bytes;
    size_t len;
};

static void write_part_free(struct write_part *part)
{
    if (part) {
        buffer_put(part->bytes, part->len);
        free(part);
    }
}

static struct write_part *write_part_create(struct command *command, size_t done, size_t end)
{
    struct write_part *part = calloc(1, sizeof(*part));

    if (part) {
        part->command = command;
        part->offset = command->request.offset + done;
        part->len = end - done;
        part->bytes = buffer_get(part->len);
    }
    if (part && !part->bytes) {
        write_part_free(part);
        part = NULL;
    }
    return part;
}

static void part_result(struct command *command, int result)
{
    if (command->parts_result == 0) {
        command->parts_result = result;
    }
}

static void co_write_part(void *arg)
{
    struct write_part *part = arg;
    struct command *command = part->command;
    struct image *image = command->conn->chosen->image;

    if (command->parts_result == 0) {
        part_result(command, image->ops->co_write(image, part->offset, part->bytes, part->len, 0));
    }
    write_part_free(part);
    group_leave(&command->parts);
}

/* Receives one part and has it written while the next one comes. 0, or the stream's error. */
static int co_receive_part(struct command *command, size_t done, size_t end)
{
    struct input *input = &command->conn->input;
    struct write_part *part =
        command->parts_result == 0 ? write_part_create(command, done, end) : NULL;

    if (!part) {
        part_result(command, -ENOMEM);
        return co_input_skip(input, end - done);
    }
    int rc = co_input_read(input, part->bytes, part->len);
    if (rc < 0) {
        write_part_free(part);
        return rc;
    }
    group_enter(&command->parts);
    if (coro_spawn(co_write_part, part, "nbd write") < 0) {
        part_result(command, -ENOMEM);
        write_part_free(part);
        group_leave(&command->parts);
        return 0;
    }
    co_yield (); /* most often it is written at once, and the next part gets its buffer */
    return 0;
}

static int co_receive_in_parts(struct command *command, uint64_t part_bytes)
{
    size_t len = (size_t)command->request.length;
    int rc = 0;

    command->written_in_parts = true;
    for (size_t done = 0, end; done < len && rc == 0; done = end) {
        end = part_end(&command->request, done, part_bytes);
        rc = co_receive_part(command, done, end);
    }
    if (rc < 0) {
        co_group_wait(&command->parts);
    }
    return rc;
}

/* Receives what is to be written, all of it or in parts. 0, or the stream's error. */
static int co_receive_data(struct command *command)
{
    struct connection *conn = command->conn;
    uint64_t unit_bytes = conn->chosen->image->unit_bytes;
    uint64_t part_bytes = MAX_OF((uint64_t)PART_BYTES, unit_bytes);

    if (command->request.length > part_bytes) {
        return co_receive_in_parts(command, part_bytes);
    }
    if (command_take_buffer(command, (size_t)command->request.length) < 0) {
        command->request.error = NBD_ENOMEM;
        command->request.reason = reply_error_text(NBD_ENOMEM);
        return co_input_skip(&conn->input, command->request.payload_len);
    }
    return co_input_read(&conn->input, command->payload, command->payload_len);
}

/* Receives the payload, or drains it when the request is refused. False when the stream ended. */
static bool co_receive_payload(struct command *command)
{
    struct connection *conn = command->conn;
    struct nbd_request *request = &command->request;

    if (command->charged_bytes > command->reserve_bytes) {
        conn->receive_stalls_ns = connection_stall_time(conn, request->payload_len);
    }
    conn->receives_payload = true;
    int rc = request->error ? co_input_skip(&conn->input, request->payload_len)
                            : co_receive_data(command);
    conn->receives_payload = false;
    conn->receive_stalls_ns = 0;
    if (rc < 0) {
        connection_note(conn, "gone within a payload");
        return false;
    }
    return true;
}

/* A BLOCK_STATUS that says in its payload what it asks. False when the stream ended. */
static bool co_receive_filter(struct connection *conn, struct nbd_request *request)
{
    uint8_t filter[REQUEST_FILTER_BYTES_MAX];

    if (co_input_read(&conn->input, filter, (size_t)request->payload_len) < 0) {
        connection_note(conn, "gone within a payload");
        return false;
    }
    request_decode_filter(filter, &conn->rules, request);
    return true;
}

/* Once a connection: it says which kind of client this is. */
static void note_bare_write(struct connection *conn, const struct nbd_request *request)
{
    if (conn->noted_bare_write || conn->rules.form != HEADERS_EXTENDED ||
        request->type != NBD_CMD_WRITE || (request->flags & NBD_CMD_FLAG_PAYLOAD_LEN)) {
        return;
    }
    conn->noted_bare_write = true;
    connection_note(conn,
                    "a WRITE that does not say that it has a payload, as QEMU's do: its length "
                    "is taken for the payload's");
}

/* Receives a header and decodes it. False when this was the last, for whatever reason. */
static bool co_next_request(struct connection *conn, struct nbd_request *request)
{
    size_t header_bytes = request_header_bytes(&conn->rules);

    if (conn->in_flight == 0) {
        input_shrink(&conn->input);
    }
    int rc = co_input_need(&conn->input, header_bytes);
    if (rc < 0) {
        connection_note(conn, "gone without goodbye: %s",
                        rc == -ENODATA ? "end of stream" : strerror(-rc));
        return false;
    }
    const uint8_t *header = input_bytes(&conn->input);
    if (!request_decode(header, &conn->rules, request)) {
        char shown[32];
        connection_complain(conn, "no request begins with \"%s\": disconnected",
                            err_sanitise(shown, sizeof(shown), header, 4));
        return false;
    }
    input_take(&conn->input, header_bytes);
    note_bare_write(conn, request);
    if (request->type == NBD_CMD_DISC) {
        connection_note(conn, "left");
        return false;
    }
    if (request_has_filter(request) && !co_receive_filter(conn, request)) {
        return false;
    }
    refuse_draining(conn, request);
    return true;
}

/* Whether an export's limits are about it. A FLUSH is never put off, nor what does nothing. */
static bool is_rated(const struct nbd_request *request)
{
    return !request->error && request->type != NBD_CMD_FLUSH && !is_done_at_once(request);
}

/*
 * Waits until the request may go by its export's limits; nothing is taken for it yet, and whoever
 * drains does not wait for it (O9).
 */
static void co_wait_for_turn(struct connection *conn, struct nbd_request *request)
{
    struct rate_limit *rate = conn->chosen->rate;
    bool moves_data = request->type == NBD_CMD_READ || request->type == NBD_CMD_WRITE;

    if (rate && !rate_limit_is_off(rate) && is_rated(request) &&
        !co_rate_take(rate, conn->service->world, &conn->rate, moves_data ? request->length : 0)) {
        refuse_draining(conn, request);
    }
}

/* Takes one request in. False when reading is over. */
static bool co_transmit_one(struct connection *conn)
{
    struct nbd_request request;

    if (!co_next_request(conn, &request)) {
        return false;
    }
    co_wait_for_turn(conn, &request);
    struct command *command = co_admit(conn, &request);
    if (!command) {
        return false;
    }
    if (request.hang_up) {
        connection_complain(conn, "%s of %llu bytes: %s: disconnected",
                            request_type_name(request.type), (unsigned long long)request.length,
                            request.reason);
        command_start(command);
        return false;
    }
    if (request.payload_len > 0 && !co_receive_payload(command)) {
        command_finish(command);
        return false;
    }
    command_start(command);
    /* It runs, and most often ends, before the next one is taken in: both then use one stack. */
    co_yield ();
    return true;
}

void co_transmit(struct connection *conn)
{
    if (!conn->secure) {
        input_spend(&conn->input);
    }
    transmit_leave_if_drained(conn);
    while (!conn->aborted && co_transmit_one(conn)) {
    }
}

void co_transmit_finish(struct connection *conn)
{
    while (conn->in_flight > 0 || conn->sender_running) {
        co_wait(&conn->idle);
    }
}

bool transmit_is_busy(const struct connection *conn)
{
    return conn->in_flight > 0 || conn->sender_running || rate_client_waits(&conn->rate);
}

void transmit_leave_if_drained(struct connection *conn)
{
    if (connection_draining(conn)) {
        rate_client_quit(&conn->rate);
    }
    if (conn->state == CONNECTION_TRANSMISSION && connection_draining(conn) &&
        conn->accepted == 0 && !conn->sender_running) {
        connection_leave(conn, conn->service->draining ? "the server shuts down"
                                                       : "its export is not there for it any more");
    }
}
