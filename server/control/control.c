/* SPDX-License-Identifier: BSD-2-Clause */
/* The socket and its clients together. */
#include "control/control.h"

#include <stdlib.h>
#include <time.h>
#include <unistd.h>

#include "base/log.h"
#include "control/qmp.h"
#include "control/session.h"
#include "sched/co.h"

/* Clients at once. */
#define CONTROL_CLIENTS_MAX 16U
/* What waits to be read at the end has this long to leave. */
#define CONTROL_GOODBYE_NS (1000ULL * 1000 * 1000)

static void co_serve_client(void *arg)
{
    struct session *session = arg;
    struct control *control = session->control;

    co_session_serve(session);
    control->client_count--;
    group_leave(&control->sessions);
}

static void co_take_client(void *arg, int fd)
{
    struct control *control = arg;
    struct stream *stream;

    if (control->stopping || control->client_count >= CONTROL_CLIENTS_MAX) {
        log_warning("control: refused a client: %u are connected, more are not served",
                    control->client_count);
        close(fd);
        return;
    }
    if (stream_socket_create(control->doorway.loop, fd, &stream) < 0) {
        log_warning("control: refused a client: out of memory");
        return;
    }
    struct session *session = session_create(control, control->doorway.world, stream);
    if (session) {
        list_push_back(&control->clients, &session->link);
        control->client_count++;
        group_enter(&control->sessions);
        if (coro_spawn(co_serve_client, session, "control client") == 0) {
            return;
        }
        group_leave(&control->sessions);
        control->client_count--;
        list_remove(&session->link);
        free(session);
    }
    log_warning("control: refused a client: out of memory");
    stream->ops->co_close(stream);
}

void control_init(struct control *control, struct loop *loop, struct world *world,
                  const struct control_host *host)
{
    *control = (struct control){.host = *host};
    /* Else Jansson would open /dev/urandom for its first object, in the sandbox. */
    json_object_seed((size_t)world->ops->random64(world) | 1);
    doorway_init(&control->doorway, loop, world, co_take_client, control);
    list_init(&control->clients);
    group_init(&control->sessions);
}

int control_listen(struct control *control, const char *path, const struct net_socket_file *file,
                   struct errtext *err)
{
    return doorway_add_unix(&control->doorway, path, file, err);
}

int control_listen_inherited(struct control *control, int fd, struct errtext *err)
{
    return doorway_add(&control->doorway, fd, err);
}

int control_start(struct control *control)
{
    return doorway_start(&control->doorway);
}

void control_event(struct control *control, const char *name, json_t *data)
{
    struct timespec now;

    clock_gettime(CLOCK_REALTIME, &now);
    json_t *event = qmp_event(name, data, (uint64_t)now.tv_sec, (uint32_t)(now.tv_nsec / 1000));
    if (!event) {
        log_warning("control: out of memory: nobody hears of %s", name);
    }
    list_for_each(link, &control->clients) {
        if (event) {
            session_say(list_entry(link, struct session, link), event);
        }
    }
    json_decref(event);
    json_decref(data);
}

static void cut_all(struct control *control)
{
    list_for_each(link, &control->clients) {
        session_cut(list_entry(link, struct session, link),
                    "the server ends, and it does not read");
    }
}

struct goodbye {
    struct world_timer timer;
    struct control *control;
};

static void on_goodbye_over(struct world_timer *timer)
{
    cut_all(container_of(timer, struct goodbye, timer)->control);
}

void co_control_stop(struct control *control, const char *reason)
{
    struct world *world = control->doorway.world;
    struct goodbye goodbye = {.timer.fired = on_goodbye_over, .control = control};

    control->stopping = true;
    control_event(control, "SHUTDOWN", json_pack("{s:b,s:s}", "guest", false, "reason", reason));
    co_doorway_stop(&control->doorway);
    list_for_each(link, &control->clients) {
        session_end(list_entry(link, struct session, link));
    }
    world->ops->timer_start(world, &goodbye.timer, world_now_ns(world) + CONTROL_GOODBYE_NS);
    co_group_wait(&control->sessions);
    world->ops->timer_stop(world, &goodbye.timer);
}
