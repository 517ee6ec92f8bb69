/* SPDX-License-Identifier: BSD-2-Clause */
/*
 * One coroutine leads: connect all, start the clients, wait for them, say goodbye. Beside it runs
 * what disturbs: a connection that takes nothing for a while, and the end by drain or by vanishing,
 * which may well come before the handshakes are through. All is drawn from run->network.
 */
#include "simulator/network.h"

#include <assert.h>
#include <errno.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>

#include "base/check.h"
#include "base/limits.h"
#include "io/sim_stream.h"
#include "proto/conn.h"
#include "proto/nbd.h"
#include "sched/co.h"
#include "simulator/nbd_client.h"
#include "simulator/run.h"

#define CONNECTIONS_MAX 4U
#define EXPORT_NAME     "disk"
#define SECOND_NS       1000000000ULL

enum network_end { END_GOODBYE, END_DRAIN, END_RETIRE, END_VANISH, NETWORK_ENDS };

static const char *const end_names[] = {"goodbye", "drain", "export taken away",
                                        "vanishing clients"};
static const char *const form_names[] = {"simple", "structured", "extended"};

struct network;

struct session {
    struct network *network;
    struct stream *near; /* the client's end */
    struct stream *far;  /* the server's */
    struct nbd_client *client;
    bool connected;
    bool vanished;
    uint64_t due_answers; /* answers that a drain owes, all in all */
    char name[24];
};

struct network {
    struct run *run;
    struct nbd_service service;
    struct nbd_export export;
    struct budget bytes_in_flight;
    struct world_timer turn_timer;
    void (*turn_fn)(void *arg);
    void *turn_arg;
    enum network_end end;
    uint64_t end_after_ns;
    uint64_t grace_ns;
    struct group connecting;
    struct group serving;
    struct group disturbing;
    unsigned count;
    struct session sessions[CONNECTIONS_MAX];
};

static uint64_t below(struct network *network, uint64_t bound)
{
    return sim_rng_below(&network->run->network, bound);
}

static void *allocated(void *memory)
{
    if (!memory) {
        abort();
    }
    return memory;
}

static void spawn(struct group *group, coro_fn *fn, void *arg, const char *name)
{
    group_enter(group);
    if (coro_spawn(fn, arg, name) < 0) {
        abort();
    }
}

/* ---- The server's side ---- */

static void on_turn_end(struct world_timer *timer)
{
    struct network *network = container_of(timer, struct network, turn_timer);
    void (*fn)(void *arg) = network->turn_fn;
    network->turn_fn = NULL;
    fn(network->turn_arg);
}

/* A turn of the loop is a few steps of the world here. */
static void at_end_of_turn(struct nbd_service *service, void (*fn)(void *arg), void *arg)
{
    struct network *network = service->context;
    struct world *world = service->world;
    assert(!network->turn_fn);
    network->turn_fn = fn;
    network->turn_arg = arg;
    world->ops->timer_start(world, &network->turn_timer,
                            world_now_ns(world) + below(network, 60000));
}

static void start_service(struct network *network)
{
    static const uint64_t budgets[] = {1, 64 * KIB, LIMIT_BYTES_IN_FLIGHT};
    struct run *run = network->run;
    struct nbd_service *service = &network->service;
    network->export = (struct nbd_export){
        .name = EXPORT_NAME,
        .image = run->image,
        .read_only = run->image->read_only,
        .multi_conn = true,
    };
    budget_init(&network->bytes_in_flight, budgets[below(network, ARRAY_LEN(budgets))]);
    network->turn_timer.fired = on_turn_end;
    nbd_service_init(service);
    service->world = run->world;
    if (nbd_service_offer_array(service, &network->export, 1) < 0) {
        abort();
    }
    service->bytes_in_flight = &network->bytes_in_flight;
    service->at_end_of_turn = below(network, 3) ? at_end_of_turn : NULL;
    service->context = network;
}

static void co_serve(void *arg)
{
    struct session *session = arg;
    struct network *network = session->network;
    co_nbd_serve(&network->service, session->far);
    run_trace(network->run, "---- %s: the server is done with it", session->name);
    nbd_client_server_is_done(session->client);
    group_leave(&network->serving);
}

/* ---- The clients' side ---- */

static void make_session(struct network *network, unsigned index)
{
    static const size_t windows[] = {4 * KIB, 64 * KIB, 1 * MIB};
    static const uint64_t delays_ns[] = {2000, 50000, 1000000};
    struct session *session = &network->sessions[index];
    struct stream *ends[2];
    session->network = network;
    snprintf(session->name, sizeof(session->name), "connection-%u", index + 1);
    struct sim_stream_options options = {
        .seed = sim_rng_next(&network->run->network),
        .window_bytes = windows[below(network, ARRAY_LEN(windows))],
        .longest_delay_ns = delays_ns[below(network, ARRAY_LEN(delays_ns))],
        .peer = {"server", session->name},
    };
    sim_stream_pair(network->run->world, &options, ends);
    session->near = ends[0];
    session->far = ends[1];
    struct nbd_client_options client = {
        .export_name = EXPORT_NAME,
        .form = (enum header_form)below(network, 3),
        .goodbye = below(network, 4) != 0,
    };
    session->client = nbd_client_create(session->near, &client);
    network->run->statistics->connections++;
    run_trace(network->run, "---- %s: %s headers, window %zu, delays up to %" PRIu64 " ns",
              session->name, form_names[client.form], options.window_bytes,
              options.longest_delay_ns);
}

static void co_connect(void *arg)
{
    struct session *session = arg;
    struct network *network = session->network;
    struct run *run = network->run;
    int result = co_nbd_client_connect(session->client);
    session->connected = result == 0;
    run_trace(run, "---- %s: connect -> %d", session->name, result);
    bool allowed = result == 0 || (result != -EPROTO && run->life.hung_up);
    if (!allowed) {
        const char *complaint = nbd_client_complaint(session->client);
        run_fail(run, "%s: cannot connect: %s", session->name,
                 complaint ? complaint : "lost or refused, and nobody had hung up");
    }
    const struct image *image = nbd_client_image(session->client);
    if (result == 0 && (image->size_bytes != run->image->size_bytes ||
                        image->read_only != run->image->read_only)) {
        run_fail(run, "%s: the export has %" PRIu64 " bytes instead of %" PRIu64 "%s",
                 session->name, image->size_bytes, run->image->size_bytes,
                 image->read_only ? ", read-only" : "");
    }
    group_leave(&network->connecting);
}

/* ---- What disturbs ---- */

static void vanish(struct session *session)
{
    struct run *run = session->network->run;
    run_trace(run, "---- %s: the client vanishes", session->name);
    run->statistics->vanished_clients++;
    session->vanished = true;
    sim_stream_vanish(session->near);
}

static void vanish_some(struct network *network)
{
    unsigned first = (unsigned)below(network, network->count);
    network->run->life.hung_up = true;
    for (unsigned i = 0; i < network->count; i++) {
        if (i == first || below(network, 2)) {
            vanish(&network->sessions[i]);
        }
    }
}

/*
 * O9: what the server had accepted when the drain began is answered, however long it takes. In the
 * middle of a send it cannot be told which replies have come already.
 */
static void note_due_answers(struct network *network)
{
    list_for_each(link, &network->service.connections) {
        const struct connection *conn = list_entry(link, struct connection, link);
        for (unsigned i = 0; i < network->count; i++) {
            struct session *session = &network->sessions[i];
            if (session->far == conn->stream && !conn->sender_running) {
                session->due_answers = nbd_client_answered(session->client) + conn->accepted;
            }
        }
    }
}

static void forget_due_answers(struct network *network)
{
    for (unsigned i = 0; i < network->count; i++) {
        network->sessions[i].due_answers = 0;
    }
}

/* The export is no longer there, while the service goes on. */
static void co_take_export_away(struct network *network)
{
    struct nbd_service *service = &network->service;
    nbd_service_offer(service, NULL);
    co_nbd_dismiss(service, &network->export, network->grace_ns);
    if (!co_nbd_wait_unused(service, &network->export, UINT64_MAX)) {
        abort();
    }
}

/* Some take nothing meanwhile, and for longer than the grace lasts. */
static void co_drain(struct network *network)
{
    struct run *run = network->run;
    run_trace(run, "---- %s, grace %" PRIu64 " ns", end_names[network->end], network->grace_ns);
    run->statistics->drains++;
    run->life.hung_up = true;
    for (unsigned i = 0; i < network->count; i++) {
        if (below(network, 4) == 0) {
            sim_stream_hold(network->sessions[i].near, below(network, 30 * SECOND_NS));
        }
    }
    uint64_t deadline_ns = world_now_ns(run->world) + network->grace_ns;
    note_due_answers(network);
    if (network->end == END_RETIRE) {
        co_take_export_away(network);
    } else {
        co_nbd_drain(&network->service, network->grace_ns);
    }
    if (world_now_ns(run->world) >= deadline_ns) {
        forget_due_answers(network); /* connections may have been cut */
    }
    run_trace(run, "---- drained");
}

static void co_end(void *arg)
{
    struct network *network = arg;
    co_sleep_ns(network->run->world, network->end_after_ns);
    if (network->end == END_DRAIN || network->end == END_RETIRE) {
        co_drain(network);
    } else {
        vanish_some(network);
    }
    group_leave(&network->disturbing);
}

/* A client that looks away, for less than the server's patience. */
static void co_look_away(void *arg)
{
    struct network *network = arg;
    co_sleep_ns(network->run->world, 1ULL << below(network, 25));
    struct session *session = &network->sessions[below(network, network->count)];
    if (!session->vanished) {
        uint64_t for_ns = 1ULL << below(network, 32);
        run_trace(network->run, "---- %s: takes nothing for %" PRIu64 " ns", session->name, for_ns);
        sim_stream_hold(session->near, for_ns);
    }
    group_leave(&network->disturbing);
}

static void disturb(struct network *network)
{
    if (network->end != END_GOODBYE) {
        spawn(&network->disturbing, co_end, network, "network end");
    }
    if (below(network, 3) == 0) {
        spawn(&network->disturbing, co_look_away, network, "network look away");
    }
}

/* ---- The whole ---- */

static void co_connect_all(struct network *network)
{
    for (unsigned i = 0; i < network->count; i++) {
        make_session(network, i);
    }
    for (unsigned i = 0; i < network->count; i++) {
        spawn(&network->serving, co_serve, &network->sessions[i], "network serve");
        spawn(&network->connecting, co_connect, &network->sessions[i], "network connect");
    }
    disturb(network);
    co_group_wait(&network->connecting);
}

static void co_run_clients(struct network *network)
{
    struct run *run = network->run;
    struct image *images[CONNECTIONS_MAX];
    unsigned count = 0;
    for (unsigned i = 0; i < network->count; i++) {
        if (network->sessions[i].connected) {
            images[count++] = nbd_client_image(network->sessions[i].client);
        }
    }
    if (count != 0 && !sim_crashed(run->world)) {
        workload_start(run, images, count);
    }
    co_group_wait(&run->clients);
}

/* Who has not hung up, and was not told to go, is still connected. */
static void check_session(struct network *network, const struct session *session)
{
    if (nbd_client_lost(session->client) && !session->vanished && network->end != END_DRAIN &&
        network->end != END_RETIRE) {
        run_fail(network->run, "%s: lost, and nobody had hung up", session->name);
    }
    uint64_t answered = nbd_client_answered(session->client);
    if (answered < session->due_answers) {
        run_fail(network->run,
                 "%s: %" PRIu64 " requests were answered, and the drain owed %" PRIu64 " (O9)",
                 session->name, answered, session->due_answers);
    }
}

static void co_close_all(struct network *network)
{
    for (unsigned i = 0; i < network->count; i++) {
        struct session *session = &network->sessions[i];
        struct image *image = nbd_client_image(session->client);
        struct errtext err;
        check_session(network, session);
        int result = image->ops->co_close(image, &err);
        session->client = NULL;
        if (result < 0) {
            run_fail(network->run, "%s: the server broke the protocol: %s", session->name,
                     err.text);
        }
    }
    co_group_wait(&network->serving);
}

static void co_network(void *arg)
{
    struct network *network = arg;
    struct run *run = network->run;
    start_service(network);
    co_connect_all(network);
    co_run_clients(network);
    co_group_wait(&network->disturbing);
    co_close_all(network);
    if (network->bytes_in_flight.used != 0) {
        run_fail(run, "%" PRIu64 " bytes of the budget are lost", network->bytes_in_flight.used);
    }
    run->world->ops->timer_stop(run->world, &network->turn_timer);
    nbd_service_offer(&network->service, NULL);
    free(network);
    run_task_done(run);
}

void network_start(struct run *run)
{
    struct network *network = allocated(calloc(1, sizeof(*network)));
    network->run = run;
    group_init(&network->connecting);
    group_init(&network->serving);
    group_init(&network->disturbing);
    network->count = 1 + (unsigned)below(network, CONNECTIONS_MAX);
    network->end = (enum network_end)below(network, NETWORK_ENDS);
    network->end_after_ns = below(network, 1ULL << (12 + below(network, 15)));
    network->grace_ns = below(network, 3) ? 10 * SECOND_NS : below(network, 1000000);
    run_trace(run, "---- network: %u connections, %s", network->count, end_names[network->end]);
    run_spawn(run, co_network, network, "network");
}
