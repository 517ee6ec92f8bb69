/* SPDX-License-Identifier: BSD-2-Clause */
/*
 * Out of descriptors, accepting pauses: the queue of the kernel holds what comes, and trying again
 * at once would burn a processor for nothing.
 */
#include "listen/doorway.h"

#include <assert.h>
#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "base/log.h"
#include "sched/co.h"

#define ACCEPT_PAUSE_NS (100ULL * 1000 * 1000)

void doorway_init(struct doorway *doorway, struct loop *loop, struct world *world,
                  void (*co_take)(void *arg, int fd), void *arg)
{
    *doorway = (struct doorway){.loop = loop, .world = world, .co_take = co_take, .arg = arg};
    group_init(&doorway->accepting);
}

int doorway_add(struct doorway *doorway, int fd, struct errtext *err)
{
    assert(doorway->count < DOORWAY_SOCKETS_MAX);
    struct doorway_socket *socket = &doorway->sockets[doorway->count];
    if (accepter_create(doorway->loop, fd, &socket->accepter) < 0) {
        close(fd);
        return err_set(err, ENOMEM, "out of memory");
    }
    socket->owner = doorway;
    socket->in_trouble = false;
    doorway->count++;
    return 0;
}

int doorway_add_unix(struct doorway *doorway, const char *path, const struct net_socket_file *file,
                     struct errtext *err)
{
    struct stat status;
    int fd;
    int result = net_listen_unix(path, file, &fd, err);
    if (result < 0) {
        return result;
    }
    assert(!doorway->socket_path);
    if (lstat(path, &status) == 0) {
        doorway->socket_path = strdup(path);
        doorway->socket_device = status.st_dev;
        doorway->socket_inode = status.st_ino;
    }
    return doorway_add(doorway, fd, err);
}

static void co_accept_trouble(struct doorway_socket *socket, int error)
{
    /* The peer was gone before we came to it: its matter, not ours. */
    if (error == ECONNABORTED || error == EINTR || error == EPROTO) {
        return;
    }
    if (!socket->in_trouble) {
        log_error("cannot accept connections at the moment: %s", strerror(error));
        socket->in_trouble = true;
    }
    co_sleep_ns(socket->owner->world, ACCEPT_PAUSE_NS);
}

static void co_accept_loop(void *arg)
{
    struct doorway_socket *socket = arg;
    struct doorway *doorway = socket->owner;
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
        doorway->co_take(doorway->arg, fd);
    }
    group_leave(&doorway->accepting);
}

int doorway_start(struct doorway *doorway)
{
    for (unsigned i = 0; i < doorway->count; i++) {
        group_enter(&doorway->accepting);
        if (coro_spawn(co_accept_loop, &doorway->sockets[i], "accept") < 0) {
            group_leave(&doorway->accepting);
            return -ENOMEM;
        }
    }
    return 0;
}

/* The path may meanwhile name somebody else's socket: a later server's, say. */
static void remove_socket_file(struct doorway *doorway)
{
    struct stat status;
    if (!doorway->socket_path) {
        return;
    }
    if (lstat(doorway->socket_path, &status) == 0 && S_ISSOCK(status.st_mode) &&
        status.st_dev == doorway->socket_device && status.st_ino == doorway->socket_inode &&
        unlink(doorway->socket_path) < 0) {
        log_warning("cannot remove the socket %s: %s", doorway->socket_path, strerror(errno));
    }
    free(doorway->socket_path);
    doorway->socket_path = NULL;
}

void co_doorway_stop(struct doorway *doorway)
{
    remove_socket_file(doorway);
    for (unsigned i = 0; i < doorway->count; i++) {
        accepter_stop(doorway->sockets[i].accepter);
    }
    co_group_wait(&doorway->accepting);
    for (unsigned i = 0; i < doorway->count; i++) {
        accepter_free(doorway->sockets[i].accepter);
    }
    doorway->count = 0;
}
