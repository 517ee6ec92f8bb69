/* SPDX-License-Identifier: BSD-2-Clause */
/* Life and death of connections; the service's timers. */
#include "proto/conn.h"

#include <assert.h>
#include <errno.h>
#include <stdarg.h>
#include <stdlib.h>

#include "base/limits.h"
#include "base/log.h"
#include "proto/handshake.h"
#include "proto/transmit.h"
#include "sched/co.h"

#define MS_NS 1000000ULL
/* A wait for the peer is stalled after this long, plus its bytes at this rate. */
#define STALL_NS              (10000 * MS_NS)
#define STALL_BYTES_PER_MS    256U
#define STALL_LOOK_EVERY_NS   (1000 * MS_NS)
#define GOODBYE_LOOK_EVERY_NS (5000 * MS_NS)
/* While draining: between two looks at who moves. */
#define PROGRESS_LOOK_EVERY_NS (100 * MS_NS)
/* Between two tries to reach another loop, when there is no memory for it. */
#define CALL_PAUSE_NS (100 * MS_NS)

static void enter_state(struct connection *conn, enum connection_state next)
{
    switch (next) {
    case CONNECTION_GREETING:
        assert(next != CONNECTION_GREETING); /* a connection is born in it */
        break;
    case CONNECTION_OPTIONS:
        assert(conn->state == CONNECTION_GREETING);
        break;
    case CONNECTION_TRANSMISSION:
        assert(conn->state == CONNECTION_OPTIONS);
        assert(conn->chosen && conn->in_flight == 0);
        break;
    case CONNECTION_CLOSING:
        assert(conn->state <= CONNECTION_TRANSMISSION);
        break;
    case CONNECTION_CLOSED:
        assert(conn->state == CONNECTION_CLOSING);
        assert(conn->in_flight == 0 && conn->accepted == 0 && list_empty(&conn->replies));
        assert(conn->payload_bytes == 0 && conn->reserve_bytes == 0);
        assert(!conn->sender_running && !list_linked(&conn->send_link));
        break;
    }
    conn->state = next;
}

__attribute__((format(printf, 3, 0))) static void
say(const struct connection *conn, enum log_level level, const char *format, va_list args)
{
    const char *export_name = conn->chosen ? conn->chosen->name : NULL;
    log_client_args(level, conn->stream->peer, export_name, format, args);
}

void connection_complain(const struct connection *conn, const char *format, ...)
{
    va_list args;

    va_start(args, format);
    say(conn, LOG_LEVEL_INFO, format, args);
    va_end(args);
}

void connection_note(const struct connection *conn, const char *format, ...)
{
    va_list args;

    va_start(args, format);
    say(conn, LOG_LEVEL_DEBUG, format, args);
    va_end(args);
}

void connection_abort(struct connection *conn, const char *why)
{
    if (conn->aborted || conn->state == CONNECTION_CLOSED) {
        return;
    }
    conn->aborted = true;
    connection_note(conn, "disconnected: %s", why);
    conn->stream->ops->abort(conn->stream);
    rate_client_quit(&conn->rate);
    wait_queue_wake_all(&conn->room);
}

void connection_leave(struct connection *conn, const char *why)
{
    if (conn->leaving || conn->aborted) {
        return;
    }
    conn->leaving = true;
    connection_note(conn, "leaving it: %s", why);
    conn->stream->ops->end_recv(conn->stream);
}

uint64_t connection_stall_time(const struct connection *conn, uint64_t bytes)
{
    return world_now_ns(conn->service->world) + STALL_NS + bytes / STALL_BYTES_PER_MS * MS_NS;
}

static bool is_past(uint64_t limit_ns, uint64_t now_ns)
{
    return limit_ns != 0 && now_ns >= limit_ns;
}

static void start_timer(struct connection *conn, uint64_t delay_ns)
{
    struct world *world = conn->service->world;
    world->ops->timer_start(world, &conn->timer, world_now_ns(world) + delay_ns);
}

/* Closes the connection when nothing has been in flight for so long; looks again when it could. */
static void look_for_idleness(struct connection *conn)
{
    uint64_t idle_ns = conn->service->limits.idle_ms * MS_NS;
    uint64_t now_ns = world_now_ns(conn->service->world);

    if (transmit_is_busy(conn)) {
        start_timer(conn, idle_ns);
    } else if (now_ns >= conn->idle_since_ns + idle_ns) {
        connection_leave(conn, "it was idle for longer than --idle-timeout allows");
    } else {
        start_timer(conn, conn->idle_since_ns + idle_ns - now_ns);
    }
}

static void on_timer(struct world_timer *timer)
{
    struct connection *conn = container_of(timer, struct connection, timer);

    switch (conn->state) {
    case CONNECTION_GREETING:
    case CONNECTION_OPTIONS:
        connection_abort(conn, "the handshake took too long");
        break;
    case CONNECTION_CLOSING:
        if (is_past(conn->send_stalls_ns, world_now_ns(conn->service->world))) {
            connection_abort(conn, "it leaves its last replies unread");
        } else {
            start_timer(conn, GOODBYE_LOOK_EVERY_NS);
        }
        break;
    case CONNECTION_TRANSMISSION:
        look_for_idleness(conn);
        break;
    case CONNECTION_CLOSED:
        assert(conn->state == CONNECTION_CLOSING); /* no timer runs any more */
        break;
    }
}

/*
 * While others wait for the common budget: cuts those that hold bytes of it and do not move them.
 */
static void on_stall_timer(struct world_timer *timer)
{
    struct nbd_service *service = container_of(timer, struct nbd_service, stall_timer);
    uint64_t now_ns = world_now_ns(service->world);

    if (service->budget_waiters == 0) {
        return;
    }
    list_for_each(link, &service->connections) {
        struct connection *conn = list_entry(link, struct connection, link);
        bool stalled =
            is_past(conn->receive_stalls_ns, now_ns) || is_past(conn->send_stalls_ns, now_ns);
        if (stalled && conn->payload_bytes > conn->reserve_bytes) {
            connection_abort(conn, "it holds memory that others wait for, and does not move");
        }
    }
    service->world->ops->timer_start(service->world, timer, now_ns + STALL_LOOK_EVERY_NS);
}

static void on_grace_over(struct world_timer *timer)
{
    struct nbd_service *service = container_of(timer, struct nbd_service, grace_timer);

    list_for_each(link, &service->connections) {
        struct connection *conn = list_entry(link, struct connection, link);
        if (conn->in_flight > 0) {
            /* O9: a request for terabytes of zeroes is not waited for, either. */
            conn->chosen->image->ending = true;
        }
        connection_abort(conn, "it was not gone within the time to shut down");
    }
}

/* How long the peer may move nothing while it is waited for; 0: nothing waits for it. */
static uint64_t patience_ns(const struct connection *conn)
{
    if (conn->state <= CONNECTION_OPTIONS) {
        return LIMIT_SHUTDOWN_STILL_HANDSHAKE_MS * MS_NS;
    }
    return conn->receives_payload || conn->send_stalls_ns != 0 ? LIMIT_SHUTDOWN_STILL_MS * MS_NS
                                                               : 0;
}

/* Whether it has moved since the last look; for all that is known. */
static bool has_moved(struct connection *conn)
{
    const struct stream_ops *ops = conn->stream->ops;
    uint64_t before = conn->progress;

    conn->progress = ops->progress ? ops->progress(conn->stream) : before + 1;
    return conn->progress != before;
}

/* O9: a peer that still moves is waited for, one that does not holds up the end no longer. */
static void look_at_progress(struct connection *conn, uint64_t now_ns)
{
    uint64_t patience = patience_ns(conn);

    if (has_moved(conn) || patience == 0) {
        conn->progressed_ns = now_ns;
    } else if (now_ns - conn->progressed_ns >= patience) {
        connection_abort(conn, "the server shuts down, and it moves no byte");
    }
}

static void on_progress_timer(struct world_timer *timer)
{
    struct nbd_service *service = container_of(timer, struct nbd_service, progress_timer);
    uint64_t now_ns = world_now_ns(service->world);

    list_for_each(link, &service->connections) {
        look_at_progress(list_entry(link, struct connection, link), now_ns);
    }
    service->world->ops->timer_start(service->world, timer, now_ns + PROGRESS_LOOK_EVERY_NS);
}

static void on_dismissal_over(struct world_timer *timer)
{
    struct connection *conn = container_of(timer, struct connection, dismissal_timer);
    connection_abort(conn, "it was told to go, and has not gone in time");
}

bool connection_sees(const struct connection *conn, const struct nbd_export *export)
{
    return (conn->secure || !export->tls_only) &&
           (!export->admits || export->admits(export, conn->stream));
}

void nbd_service_init(struct nbd_service *service)
{
    *service = (struct nbd_service){
        .limits = nbd_limits_default(),
        .stall_timer.fired = on_stall_timer,
        .grace_timer.fired = on_grace_over,
        .progress_timer.fired = on_progress_timer,
    };
    list_init(&service->connections);
    list_init(&service->to_send);
    list_init(&service->spare_commands);
    wait_queue_init(&service->gone);
}

void nbd_budget_waiter_came(struct nbd_service *service)
{
    if (service->budget_waiters++ == 0) {
        service->world->ops->timer_start(service->world, &service->stall_timer,
                                         world_now_ns(service->world) + STALL_LOOK_EVERY_NS);
    }
}

void nbd_budget_waiter_went(struct nbd_service *service)
{
    assert(service->budget_waiters > 0);
    if (--service->budget_waiters == 0) {
        service->world->ops->timer_stop(service->world, &service->stall_timer);
    }
}

static struct connection *connection_create(struct stream *stream)
{
    struct connection *conn = calloc(1, sizeof(*conn));
    if (!conn) {
        return NULL;
    }
    input_init(&conn->input, stream);
    conn->stream = stream;
    conn->state = CONNECTION_GREETING;
    conn->timer.fired = on_timer;
    conn->dismissal_timer.fired = on_dismissal_over;
    wait_queue_init(&conn->room);
    wait_queue_init(&conn->idle);
    list_init(&conn->replies);
    list_init(&conn->send_link);
    list_init(&conn->user_link);
    return conn;
}

static void connection_free(struct connection *conn)
{
    assert(conn->state == CONNECTION_CLOSED);
    list_remove(&conn->user_link);
    input_free(&conn->input);
    nbd_export_release(conn->chosen);
    nbd_export_release(conn->meta_export);
    free(conn->meta_bitmap_ids);
    free(conn);
}

/* From now on nothing is begun; who is not gone by its deadline is cut. */
static void connection_dismiss(struct connection *conn)
{
    struct world *world = conn->service->world;

    if (conn->state == CONNECTION_CLOSED) {
        return;
    }
    if (conn->dismissed) {
        world->ops->timer_stop(world, &conn->dismissal_timer);
    }
    conn->dismissed = true;
    world->ops->timer_start(world, &conn->dismissal_timer, conn->leave_by_ns);
}

/* The connection is with this service until connection_part(). */
static void connection_join(struct connection *conn, struct nbd_service *service)
{
    conn->service = service;
    conn->progressed_ns = world_now_ns(service->world);
    list_push_back(&service->connections, &conn->link);
    conn->dismissed = false;
    if (conn->leave_by_ns != 0) {
        connection_dismiss(conn);
    }
}

static void connection_part(struct connection *conn)
{
    struct nbd_service *service = conn->service;

    if (conn->dismissed) {
        service->world->ops->timer_stop(service->world, &conn->dismissal_timer);
    }
    list_remove(&conn->link);
    conn->service = NULL;
    if (list_empty(&service->connections)) {
        transmit_free_spares(service);
    }
    wait_queue_wake_all(&service->gone);
}

static void stop_timer(struct connection *conn)
{
    struct world *world = conn->service->world;
    world->ops->timer_stop(world, &conn->timer);
}

/* Greeting and options; true if they end in transmission. */
static bool co_negotiate(struct connection *conn)
{
    if (conn->service->draining) {
        return false;
    }
    uint32_t handshake_ms = conn->service->limits.handshake_ms;
    if (conn->refusal) {
        handshake_ms = MIN_OF(handshake_ms, LIMIT_REFUSAL_MS);
    }
    start_timer(conn, handshake_ms * MS_NS);
    bool go = co_handshake_greet(conn);
    if (go) {
        enter_state(conn, CONNECTION_OPTIONS);
        go = co_handshake_options(conn);
    }
    stop_timer(conn);
    return go;
}

static void co_transmit_watched(struct connection *conn)
{
    uint64_t idle_ns = conn->service->limits.idle_ms * MS_NS;

    if (idle_ns > 0) {
        conn->idle_since_ns = world_now_ns(conn->service->world);
        start_timer(conn, idle_ns);
    }
    co_transmit(conn);
    stop_timer(conn);
}

/* Transmission and its end, on the export's loop. */
static void co_transmit_whole(struct connection *conn)
{
    enter_state(conn, CONNECTION_TRANSMISSION);
    coro_trim_stack();
    co_transmit_watched(conn);
    enter_state(conn, CONNECTION_CLOSING);
    start_timer(conn, GOODBYE_LOOK_EVERY_NS);
    co_transmit_finish(conn);
    stop_timer(conn);
}

struct stay {
    struct connection *conn;
    struct nbd_service *home;
};

static void co_stay(void *arg)
{
    struct stay *stay = arg;
    connection_join(stay->conn, stay->home);
    co_transmit_whole(stay->conn);
    connection_part(stay->conn);
}

/* Hands the connection to the service of its export's loop, and takes it back. */
static void co_transmit_elsewhere(struct connection *conn, struct nbd_service *home)
{
    struct nbd_service *here = conn->service;
    struct stay stay = {.conn = conn, .home = home};

    connection_part(conn);
    conn->stream->ops->move(conn->stream, home->world);
    coro_trim_stack();
    int rc = here->co_call(here, home, co_stay, &stay);
    conn->stream->ops->move(conn->stream, here->world);
    connection_join(conn, here);
    if (rc < 0) {
        connection_complain(conn, "out of memory: disconnected");
        enter_state(conn, CONNECTION_CLOSING);
    }
}

static void co_serve(struct nbd_service *service, struct stream *stream, const char *refusal)
{
    struct connection *conn = connection_create(stream);
    if (!conn) {
        log_client(LOG_LEVEL_WARNING, stream->peer, NULL, "refused: out of memory");
        stream->ops->co_close(stream);
        return;
    }
    conn->refusal = refusal;
    connection_join(conn, service);
    bool go = co_negotiate(conn);
    struct nbd_service *home = go ? conn->chosen->home : NULL;
    if (!go) {
        enter_state(conn, CONNECTION_CLOSING);
    } else if (home && home != service) {
        co_transmit_elsewhere(conn, home);
    } else {
        co_transmit_whole(conn);
    }
    enter_state(conn, CONNECTION_CLOSED);
    conn->stream->ops->co_close(conn->stream);
    connection_part(conn);
    connection_free(conn);
}

void co_nbd_serve(struct nbd_service *service, struct stream *stream)
{
    co_serve(service, stream, NULL);
}

void co_nbd_refuse(struct nbd_service *service, struct stream *stream, const char *why)
{
    assert(why);
    co_serve(service, stream, why);
}

/* The connection has nothing to finish: it goes at once. */
static void drain_one(struct connection *conn)
{
    switch (conn->state) {
    case CONNECTION_GREETING:
        connection_abort(conn, "the server shuts down");
        break;
    case CONNECTION_OPTIONS:
        /* In the middle of an option it gets its answer, and goes then. */
        if (conn->starting_tls) {
            connection_abort(conn, "the server shuts down");
        } else if (conn->between_options) {
            connection_leave(conn, "the server shuts down");
        }
        break;
    case CONNECTION_TRANSMISSION:
        transmit_leave_if_drained(conn);
        break;
    case CONNECTION_CLOSING:
    case CONNECTION_CLOSED:
        break;
    }
}

void co_nbd_drain(struct nbd_service *service, uint64_t grace_ns)
{
    struct world *world = service->world;

    uint64_t now_ns = world_now_ns(world);
    uint64_t deadline_ns = now_ns + grace_ns;
    if (!service->draining) {
        service->draining = true;
        list_for_each(link, &service->connections) {
            struct connection *conn = list_entry(link, struct connection, link);
            (void)has_moved(conn); /* from now on */
            conn->progressed_ns = now_ns;
        }
        world->ops->timer_start(world, &service->progress_timer, now_ns + PROGRESS_LOOK_EVERY_NS);
    }
    list_for_each(link, &service->connections) {
        drain_one(list_entry(link, struct connection, link));
    }
    /* A second call may shorten the grace of the first. */
    if (service->grace_deadline_ns == 0 || deadline_ns < service->grace_deadline_ns) {
        service->grace_deadline_ns = deadline_ns;
        world->ops->timer_stop(world, &service->grace_timer);
        world->ops->timer_start(world, &service->grace_timer, deadline_ns);
    }
    while (!list_empty(&service->connections)) {
        co_wait(&service->gone);
    }
    world->ops->timer_stop(world, &service->grace_timer);
    world->ops->timer_stop(world, &service->progress_timer);
}

/* ---- Telling the users of one export to go ---- */

struct dismissal {
    struct nbd_service *service;
    const struct nbd_export *export;
};

/* Those connections that are with this service at the moment. On its loop; does not suspend. */
static void dismiss_marked(void *arg)
{
    const struct dismissal *dismissal = arg;

    list_for_each(link, &dismissal->service->connections) {
        struct connection *conn = list_entry(link, struct connection, link);
        if (conn->chosen == dismissal->export && conn->leave_by_ns != 0) {
            connection_dismiss(conn);
            transmit_leave_if_drained(conn);
        }
    }
}

/* A connection that is on its way from one service to the other finds its mark when it arrives. */
static void co_dismiss_marked(struct nbd_service *service, const struct nbd_export *export)
{
    struct nbd_service *home = export->home;
    struct dismissal here = {service, export};
    struct dismissal there = {home, export};

    dismiss_marked(&here);
    while (home && home != service && service->co_call(service, home, dismiss_marked, &there) < 0) {
        co_sleep_ns(service->world, CALL_PAUSE_NS);
    }
}

void co_nbd_dismiss(struct nbd_service *service, struct nbd_export *export, uint64_t grace_ns)
{
    uint64_t leave_by_ns = world_now_ns(service->world) + grace_ns;

    if (nbd_export_is_used(export)) {
        list_for_each(link, &export->users) {
            list_entry(link, struct connection, user_link)->leave_by_ns = leave_by_ns;
        }
        co_dismiss_marked(service, export);
    }
}

unsigned co_nbd_dismiss_unadmitted(struct nbd_service *service, struct nbd_export *export,
                                   uint64_t grace_ns)
{
    uint64_t leave_by_ns = world_now_ns(service->world) + grace_ns;
    unsigned count = 0;

    if (!nbd_export_is_used(export)) {
        return 0;
    }
    list_for_each(link, &export->users) {
        struct connection *conn = list_entry(link, struct connection, user_link);
        if (conn->leave_by_ns == 0 && !connection_sees(conn, export)) {
            conn->leave_by_ns = leave_by_ns;
            count++;
        }
    }
    if (count > 0) {
        co_dismiss_marked(service, export);
    }
    return count;
}

bool co_nbd_wait_unused(struct nbd_service *service, struct nbd_export *export,
                        uint64_t deadline_ns)
{
    while (nbd_export_is_used(export)) {
        uint64_t now_ns = world_now_ns(service->world);
        if (deadline_ns == UINT64_MAX) {
            co_wait(&service->gone);
        } else if (now_ns >= deadline_ns) {
            return false;
        } else {
            int result = co_wait_timeout(service->world, &service->gone, deadline_ns - now_ns);
            (void)result; /* the condition is looked at again, either way */
        }
    }
    return true;
}
