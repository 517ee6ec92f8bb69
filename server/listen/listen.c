/* SPDX-License-Identifier: BSD-2-Clause */
/*
 * Connections are bounded: one too many is accepted, told so and closed, so that its client hears
 * of it at once instead of waiting in the backlog.
 */
#include "listen/listen.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "base/check.h"
#include "base/limits.h"
#include "base/log.h"
#include "io/net.h"
#include "sched/co.h"

#define REFUSAL_LOG_PAUSE_NS (10ULL * 1000 * 1000 * 1000)

struct served {
    struct listeners *listeners;
    struct stream *stream;
    void (*done)(void *arg);
    void *arg;
    bool admitted; /* through a listening socket, and has a place */
    struct place place;
    const char *refusal; /* NULL: it is welcome */
};

static void give_place_back(struct served *served)
{
    if (served->admitted) {
        admission_leave(&served->listeners->admission, &served->place);
    } else if (served->refusal) {
        admission_told(&served->listeners->admission);
    }
}

static void co_serve_connection(void *arg)
{
    struct served *served = arg;
    struct listeners *listeners = served->listeners;
    if (served->refusal) {
        co_nbd_refuse(listeners->service, served->stream, served->refusal);
    } else {
        co_nbd_serve(listeners->service, served->stream);
    }
    give_place_back(served);
    group_leave(&listeners->connections);
    if (served->done) {
        served->done(served->arg);
    }
    free(served);
}

static int co_start(const struct served *wanted)
{
    struct served *served = malloc(sizeof(*served));
    if (served) {
        *served = *wanted;
        group_enter(&served->listeners->connections);
        if (coro_spawn(co_serve_connection, served, "connection") == 0) {
            return 0;
        }
        group_leave(&served->listeners->connections);
        free(served);
    }
    wanted->stream->ops->co_close(wanted->stream);
    return -ENOMEM;
}

int co_listeners_serve(struct listeners *listeners, struct stream *stream, void (*done)(void *arg),
                       void *arg)
{
    struct served served = {.listeners = listeners, .stream = stream, .done = done, .arg = arg};
    return co_start(&served);
}

/* Says so, but not for each of a thousand. */
static void log_refusal(struct listeners *listeners, const char *why)
{
    uint64_t now_ns = world_now_ns(listeners->service->world);
    listeners->refused++;
    if (now_ns >= listeners->next_refusal_log_ns) {
        log_warning("refused %llu new connection(s): %s", (unsigned long long)listeners->refused,
                    why);
        listeners->refused = 0;
        listeners->next_refusal_log_ns = now_ns + REFUSAL_LOG_PAUSE_NS;
    }
}

static void co_take_connection(void *arg, int fd)
{
    struct listeners *listeners = arg;
    struct served served = {.listeners = listeners};
    struct origin origin = origin_of_socket(fd);
    served.refusal = admission_enter(&listeners->admission, &origin, &served.place);
    served.admitted = !served.refusal;
    if (served.refusal) {
        log_refusal(listeners, served.refusal);
        if (!admission_may_tell(&listeners->admission)) {
            close(fd);
            return;
        }
    }
    int result = stream_socket_create(listeners->doorway.loop, fd, &served.stream);
    if (result == 0) {
        result = co_start(&served);
    }
    if (result < 0) {
        give_place_back(&served);
        log_refusal(listeners, "out of memory");
    }
}

void listeners_init(struct listeners *listeners, struct loop *loop, struct nbd_service *service,
                    unsigned connections, unsigned connections_per_address)
{
    memset(listeners, 0, sizeof(*listeners));
    doorway_init(&listeners->doorway, loop, service->world, co_take_connection, listeners);
    listeners->service = service;
    group_init(&listeners->connections);
    admission_init(&listeners->admission, connections, connections_per_address,
                   service->world->ops->random64(service->world));
}

int listeners_add_unix(struct listeners *listeners, const char *path,
                       const struct net_socket_file *file, struct errtext *err)
{
    return doorway_add_unix(&listeners->doorway, path, file, err);
}

int listeners_add_tcp(struct listeners *listeners, const char *address, uint16_t *port,
                      struct errtext *err)
{
    int fds[DOORWAY_SOCKETS_MAX - 1];
    int count = net_listen_tcp(address, *port, fds, ARRAY_LEN(fds), err);
    if (count < 0) {
        return count;
    }
    int result = count > 0 ? net_local_port(fds[0], port) : -EADDRNOTAVAIL;
    if (result < 0) {
        err_set(err, -result, "cannot tell the TCP port: %s", strerror(-result));
    }
    for (int i = 0; i < count; i++) {
        if (result < 0) {
            close(fds[i]);
        } else {
            result = doorway_add(&listeners->doorway, fds[i], err);
        }
    }
    return result;
}

int listeners_add_vsock(struct listeners *listeners, uint32_t port, struct net_address *address,
                        struct errtext *err)
{
    int fd;
    int result = net_listen_vsock(port == 0 ? NET_VSOCK_ANY_PORT : port, &fd, err);
    if (result < 0) {
        return result;
    }
    result = net_local_address(fd, address);
    if (result < 0) {
        close(fd);
        return err_set(err, -result, "cannot tell the vsock port: %s", strerror(-result));
    }
    return doorway_add(&listeners->doorway, fd, err);
}

int listeners_add_inherited(struct listeners *listeners, int fd, struct errtext *err)
{
    return doorway_add(&listeners->doorway, fd, err);
}

int listeners_start(struct listeners *listeners)
{
    return doorway_start(&listeners->doorway);
}

void co_listeners_stop(struct listeners *listeners)
{
    co_doorway_stop(&listeners->doorway);
}
