/* SPDX-License-Identifier: BSD-2-Clause */
#include "listen/activation.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#define FIRST_FD 3

struct variables {
    char *pid;
    char *fds;
    char *names;
};

/* A copy, as the environment's own goes. An empty one is as good as none. */
static char *take_variable(const char *name)
{
    const char *value = getenv(name);
    char *copy = value && *value ? strdup(value) : NULL;
    unsetenv(name);
    return copy;
}

/* Digits and nothing else; -1 for all that is no such number. */
static long parse_count(const char *text)
{
    char *end;
    if (*text < '0' || *text > '9') {
        return -1;
    }
    errno = 0;
    long value = strtol(text, &end, 10);
    return *end == '\0' && errno == 0 ? value : -1;
}

/* The next of the names that colons part; *names moves on. */
static void take_name(char out[64], const char **names)
{
    size_t len = strcspn(*names, ":");
    err_sanitise(out, 64, *names, len);
    *names += len + ((*names)[len] == ':');
}

static int take_sockets(struct activation *activation, unsigned count, const char *names,
                        struct errtext *err)
{
    for (unsigned i = 0; i < count; i++) {
        struct inherited_socket *inherited = &activation->sockets[i];
        inherited->fd = FIRST_FD + (int)i;
        take_name(inherited->name, &names);
        int result = net_inherit_listener(inherited->fd, &inherited->address, err);
        if (result < 0) {
            return result;
        }
        activation->count++;
    }
    return 0;
}

static int take_described(struct activation *activation, const struct variables *variables,
                          struct errtext *err)
{
    char shown[64];
    if (!variables->pid || !variables->fds || parse_count(variables->pid) != (long)getpid()) {
        return 0;
    }
    long count = parse_count(variables->fds);
    if (count < 0) {
        return err_set(err, EINVAL, "LISTEN_FDS is '%s': must be the number of inherited sockets",
                       err_sanitise(shown, sizeof(shown), variables->fds, strlen(variables->fds)));
    }
    if (count > (long)ACTIVATION_SOCKETS_MAX) {
        return err_set(err, EINVAL, "LISTEN_FDS is %ld: at most %u inherited sockets are taken",
                       count, ACTIVATION_SOCKETS_MAX);
    }
    return take_sockets(activation, (unsigned)count, variables->names ? variables->names : "", err);
}

/* The control socket is no place for NBD clients: it leaves the others. */
static int part_control(struct activation *activation, struct errtext *err)
{
    for (unsigned i = 0; i < activation->count; i++) {
        const struct inherited_socket *socket = &activation->sockets[i];
        if (strcmp(socket->name, "control") != 0) {
            continue;
        }
        if (socket->address.family != NET_UNIX) {
            return err_set(err, EINVAL,
                           "inherited socket %d is named control, and is no Unix socket: QMP knows "
                           "no passwords, so it must not be reached from elsewhere",
                           socket->fd);
        }
        if (activation->control_fd >= 0) {
            return err_set(err, EINVAL, "two inherited sockets, %d and %d, are named control",
                           activation->control_fd, socket->fd);
        }
        activation->control_fd = socket->fd;
        memmove(&activation->sockets[i], &activation->sockets[i + 1],
                (activation->count - i - 1) * sizeof(*socket));
        activation->count--;
        i--;
    }
    return 0;
}

int activation_take(struct activation *activation, struct errtext *err)
{
    struct variables variables = {
        .pid = take_variable("LISTEN_PID"),
        .fds = take_variable("LISTEN_FDS"),
        .names = take_variable("LISTEN_FDNAMES"),
    };
    memset(activation, 0, sizeof(*activation));
    activation->control_fd = -1;
    int result = take_described(activation, &variables, err);
    if (result == 0) {
        result = part_control(activation, err);
    }
    free(variables.pid);
    free(variables.fds);
    free(variables.names);
    return result;
}
