/* SPDX-License-Identifier: BSD-2-Clause */
/*
 * Connections are bounded: one too many is accepted, told so and closed, so that its client hears
 * of it at once instead of waiting in the backlog. Out of descriptors, accepting pauses: the queue
 * of the kernel holds what comes, and trying again at once would burn a processor for nothing.
 */
#include "listen/listen.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "base/check.h"
#include "base/limits.h"
#include "base/log.h"
#include "io/net.h"
#include "sched/co.h"

#define ACCEPT_PAUSE_NS      (100ULL * 1000 * 1000)
#define REFUSAL_LOG_PAUSE_NS (10ULL * 1000 * 1000 * 1000)

void listeners_init(struct listeners *listeners, struct loop *loop, struct nbd_service *service,
                    unsigned connections, unsigned connections_per_address)
{
    memset(listeners, 0, sizeof(*listeners));
    listeners->loop = loop;
    listeners->service = service;
    group_init(&listeners->accepting);
    group_init(&listeners->connections);
    admission_init(&listeners->admission, connections, connections_per_address,
                   service->world->ops->random64(service->world));
}

/* Takes over the descriptor. */
static int add_socket(struct listeners *listeners, int fd, struct errtext *err)
{
    assert(listeners->count < LISTEN_SOCKETS_MAX);
    struct listen_socket *socket = &listeners->sockets[listeners->count];
    if (accepter_create(listeners->loop, fd, &socket->accepter) < 0) {
        close(fd);
        return err_set(err, ENOMEM, "out of memory");
    }
    socket->owner = listeners;
    socket->in_trouble = false;
    listeners->count++;
    return 0;
}

int listeners_add_unix(struct listeners *listeners, const char *path,
                       const struct net_socket_file *file, struct errtext *err)
{
    struct stat status;
    int fd;
    int result = net_listen_unix(path, file, &fd, err);
    if (result < 0) {
        return result;
    }
    if (lstat(path, &status) == 0) {
        listeners->socket_path = strdup(path);
        listeners->socket_device = status.st_dev;
        listeners->socket_inode = status.st_ino;
    }
    return add_socket(listeners, fd, err);
}

int listeners_add_tcp(struct listeners *listeners, const char *address, uint16_t *port,
                      struct errtext *err)
{
    int fds[LISTEN_SOCKETS_MAX - 1];
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
            result = add_socket(listeners, fds[i], err);
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
    return add_socket(listeners, fd, err);
}

int listeners_add_inherited(struct listeners *listeners, int fd, struct errtext *err)
{
    return add_socket(listeners, fd, err);
}

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

static void co_take_connection(struct listeners *listeners, int fd)
{
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
    int result = stream_socket_create(listeners->loop, fd, &served.stream);
    if (result == 0) {
        result = co_start(&served);
    }
    if (result < 0) {
        give_place_back(&served);
        log_refusal(listeners, "out of memory");
    }
}

static void co_accept_trouble(struct listen_socket *socket, int error)
{
    /* The peer was gone before we came to it: its matter, not ours. */
    if (error == ECONNABORTED || error == EINTR || error == EPROTO) {
        return;
    }
    if (!socket->in_trouble) {
        log_error("cannot accept connections at the moment: %s", strerror(error));
        socket->in_trouble = true;
    }
    co_sleep_ns(socket->owner->service->world, ACCEPT_PAUSE_NS);
}

static void co_accept_loop(void *arg)
{
    struct listen_socket *socket = arg;
    struct listeners *listeners = socket->owner;
    for (;;) {
        int fd = co_accept(socket->accepter);
        if (fd == -ECANCELED) {
            break;
        }
        if (fd < 0) {
            co_accept_trouble(socket, -fd);
            continue;
        }
        socket->in_trouble = false;
        co_take_connection(listeners, fd);
    }
    group_leave(&listeners->accepting);
}

int listeners_start(struct listeners *listeners)
{
    for (unsigned i = 0; i < listeners->count; i++) {
        group_enter(&listeners->accepting);
        if (coro_spawn(co_accept_loop, &listeners->sockets[i], "accept") < 0) {
            group_leave(&listeners->accepting);
            return -ENOMEM;
        }
    }
    return 0;
}

/* The path may meanwhile name somebody else's socket: a later server's, say. */
static void remove_socket_file(struct listeners *listeners)
{
    struct stat status;
    if (!listeners->socket_path) {
        return;
    }
    if (lstat(listeners->socket_path, &status) == 0 && S_ISSOCK(status.st_mode) &&
        status.st_dev == listeners->socket_device && status.st_ino == listeners->socket_inode &&
        unlink(listeners->socket_path) < 0) {
        log_warning("cannot remove the socket %s: %s", listeners->socket_path, strerror(errno));
    }
    free(listeners->socket_path);
    listeners->socket_path = NULL;
}

void co_listeners_stop(struct listeners *listeners)
{
    remove_socket_file(listeners);
    for (unsigned i = 0; i < listeners->count; i++) {
        accepter_stop(listeners->sockets[i].accepter);
    }
    co_group_wait(&listeners->accepting);
    for (unsigned i = 0; i < listeners->count; i++) {
        accepter_free(listeners->sockets[i].accepter);
    }
    listeners->count = 0;
}
