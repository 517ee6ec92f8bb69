/* SPDX-License-Identifier: BSD-2-Clause */
/* One coroutine accepts and serves; a client that waits at a point holds up only the next client.
 */
#include "debug/break_control.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "debug/attack.h"
#include "io/net.h"
#include "io/stream.h"
#include "sched/break_point.h"
#include "sched/co.h"
#include "sched/sync.h"

static struct {
    struct loop *loop;
    const char *path;
    struct accepter *accepter;
    struct stream *client;
    bool stopping;
    struct group running;
} control;

#define LINE_BYTES 1024

static const char *co_attack_line(const char *line)
{
    static char answer[64];
    char what[32], argument[LINE_BYTES];

    int fields = sscanf(line, "attack %31s %1023s", what, argument);
    if (fields < 1) {
        return "error: not 'attack WHAT [ARGUMENT]'\n";
    }
    co_attack(control.loop, what, fields == 2 ? argument : "", answer, sizeof(answer));
    return answer;
}

/* Carries out one line and says what came of it. */
static const char *co_obey(const char *line)
{
    if (strncmp(line, "attack ", 7) == 0) {
        return co_attack_line(line);
    }
    char verb[16], name[32];
    unsigned count = 1;
    enum break_point point;

    int fields = sscanf(line, "%15s %31s %u", verb, name, &count);
    if (fields < 2) {
        return "error: not 'VERB NAME [COUNT]'\n";
    }
    if (!break_point_find(name, &point)) {
        return "error: no such break point\n";
    }
    if (strcmp(verb, "arm") == 0) {
        break_point_arm(point, count);
    } else if (strcmp(verb, "wait") == 0) {
        co_break_point_await(point, count);
    } else if (strcmp(verb, "release") == 0) {
        break_point_release(point);
    } else {
        return "error: verbs are arm, wait, release\n";
    }
    return "ok\n";
}

static void co_serve_client(struct stream *client)
{
    char line[LINE_BYTES];
    size_t used = 0;

    while (used < sizeof(line) - 1) {
        ssize_t got = client->ops->co_recv(client, line + used, 1);
        if (got <= 0) {
            return;
        }
        if (line[used++] != '\n') {
            continue;
        }
        line[used - 1] = '\0';
        const char *answer = co_obey(line);
        struct iovec iov = {(void *)(uintptr_t)answer, strlen(answer)};
        int ret = client->ops->co_send(client, &iov, 1, false);
        if (ret < 0) {
            return;
        }
        used = 0;
    }
}

static void co_accept_clients(void *arg)
{
    (void)arg;
    while (!control.stopping) {
        int fd = co_accept(control.accepter);
        if (fd < 0) {
            break;
        }
        if (stream_socket_create(control.loop, fd, &control.client) < 0) {
            break;
        }
        co_serve_client(control.client);
        struct stream *client = control.client;
        control.client = NULL;
        client->ops->co_close(client);
    }
    group_leave(&control.running);
}

int break_control_start(struct loop *loop, struct errtext *err)
{
    int fd;

    group_init(&control.running);
    control.loop = loop;
    control.path = getenv("QCOWD_BREAK_SOCKET");
    if (!control.path) {
        return 0;
    }
    int ret = net_listen_unix(control.path, NULL, &fd, err);
    if (ret == 0) {
        ret = accepter_create(loop, fd, &control.accepter);
    }
    if (ret == 0) {
        group_enter(&control.running);
        ret = coro_spawn(co_accept_clients, NULL, "break control");
    }
    return ret;
}

void co_break_control_stop(void)
{
    control.stopping = true;
    break_points_end();
    if (!control.accepter) {
        return;
    }
    accepter_stop(control.accepter);
    if (control.client) {
        control.client->ops->abort(control.client);
    }
    co_group_wait(&control.running);
    accepter_free(control.accepter);
    control.accepter = NULL;
    unlink(control.path);
}
