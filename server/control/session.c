/* SPDX-License-Identifier: BSD-2-Clause */
/*
 * Two coroutines a session: the one that serves reads and runs commands, the other sends. They meet
 * in a buffer of what waits, which is bounded: a client that does not read is cut, and nothing that
 * it was to be told holds up the server.
 */
#include "control/session.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/log.h"
#include "sched/co.h"

#define RECEIVE_BYTES 4096U

static void on_hearing_over(struct world_timer *timer)
{
    session_cut(container_of(timer, struct session, hearing), "it said nothing whole in time");
}

static void on_reading_over(struct world_timer *timer)
{
    session_cut(container_of(timer, struct session, reading), "it does not read");
}

struct session *session_create(struct control *control, struct world *world, struct stream *stream)
{
    struct session *session = calloc(1, sizeof(*session));

    if (session) {
        session->control = control;
        session->world = world;
        session->stream = stream;
        session->hearing.fired = on_hearing_over;
        session->reading.fired = on_reading_over;
        list_init(&session->link);
        wait_queue_init(&session->to_send);
        wait_queue_init(&session->sender_gone);
    }
    return session;
}

static void start_patience(struct session *session, struct world_timer *timer)
{
    session->world->ops->timer_start(
        session->world, timer, world_now_ns(session->world) + CONTROL_PATIENCE_MS * 1000000ULL);
}

void session_cut(struct session *session, const char *why)
{
    if (session->cut) {
        return;
    }
    session->cut = true;
    session->ending = true;
    log_warning("control: %s: %s: disconnected", session->stream->peer, why);
    session->stream->ops->abort(session->stream);
    wait_queue_wake_all(&session->to_send);
}

void session_end(struct session *session)
{
    session->ending = true;
    session->stream->ops->end_recv(session->stream);
    wait_queue_wake_all(&session->to_send);
}

/* ---- What it is told ---- */

static bool make_room(struct session *session, size_t len)
{
    size_t wanted = session->unread_len + len;

    if (wanted <= session->unread_capacity) {
        return true;
    }
    char *larger = realloc(session->unread, wanted * 2);
    if (!larger) {
        return false;
    }
    session->unread = larger;
    session->unread_capacity = wanted * 2;
    return true;
}

/* One line, taken over. NULL is what there was no memory for: then an answer is missing, and so the
 * session ends. */
static void tell(struct session *session, json_t *line)
{
    static const char line_end[] = "\r\n";
    char *text = line ? json_dumps(line, JSON_COMPACT) : NULL;
    size_t len = text ? strlen(text) : 0;

    json_decref(line);
    if (session->cut) {
        /* nobody hears it */
    } else if (!text || !make_room(session, len + 2)) {
        session_cut(session, "out of memory");
    } else if (session->unread_len + len + 2 > CONTROL_UNREAD_BYTES_MAX) {
        session_cut(session, "it does not read, and too much waits for it");
    } else {
        memcpy(session->unread + session->unread_len, text, len);
        memcpy(session->unread + session->unread_len + len, line_end, 2);
        session->unread_len += len + 2;
        wait_queue_wake_all(&session->to_send);
    }
    free(text);
}

void session_say(struct session *session, json_t *event)
{
    if (session->negotiated && !session->ending) {
        tell(session, json_incref(event));
    }
}

static void co_send_all(void *arg)
{
    struct session *session = arg;

    for (;;) {
        while (session->unread_len == 0 && !session->ending) {
            co_wait(&session->to_send);
        }
        if (session->unread_len == 0 || session->cut) {
            break;
        }
        struct iovec iov = {session->unread, session->unread_len};
        session->unread = NULL;
        session->unread_len = session->unread_capacity = 0;
        char *sent = iov.iov_base; /* sending may change the vector */
        start_patience(session, &session->reading);
        int result = session->stream->ops->co_send(session->stream, &iov, 1, false);
        session->world->ops->timer_stop(session->world, &session->reading);
        free(sent);
        if (result < 0) {
            session->ending = true;
            session->stream->ops->end_recv(session->stream);
            session->unread_len = 0;
            break;
        }
    }
    session->sender_running = false;
    wait_queue_wake_all(&session->sender_gone);
}

/* ---- What it says ---- */

static void co_run_command(struct session *session, const struct qmp_command *said)
{
    struct control_call call = {.control = session->control, .arguments = said->arguments};
    const struct control_command *command = control_command_find(said->name);
    char shown[80];
    int result = -1;

    if (!session->negotiated && strcmp(said->name, "qmp_capabilities") != 0) {
        qmp_fail(&call.error, QMP_COMMAND_NOT_FOUND,
                 "Expecting capabilities negotiation with 'qmp_capabilities'");
    } else if (strcmp(said->name, "qmp_capabilities") == 0 && session->negotiated) {
        qmp_fail(&call.error, QMP_COMMAND_NOT_FOUND,
                 "Capabilities negotiation is already complete, command ignored");
    } else if (strcmp(said->name, "qmp_capabilities") == 0) {
        /* There is none to enable: an empty list is all that may be asked for. */
        json_t *enable = json_object_get(said->arguments, "enable");
        if (json_object_size(said->arguments) > (enable ? 1 : 0) ||
            (enable && (!json_is_array(enable) || json_array_size(enable) > 0))) {
            qmp_fail(&call.error, QMP_GENERIC_ERROR, "no such capability can be enabled");
        } else {
            session->negotiated = true;
            result = 0;
        }
    } else if (!command) {
        qmp_fail(&call.error, QMP_COMMAND_NOT_FOUND, "The command %s has not been found",
                 err_sanitise(shown, sizeof(shown), said->name, strlen(said->name)));
    } else if (qmp_check_arguments(said->arguments, command->arguments, command->argument_count,
                                   &call.error) == 0) {
        result = command->co_run(&call);
    }
    tell(session,
         result < 0 ? qmp_error_reply(&call.error, said->id) : qmp_return(call.result, said->id));
    json_decref(call.result);
}

static void tell_error(struct session *session, const char *text, json_t *id)
{
    struct qmp_error error;

    qmp_fail(&error, QMP_GENERIC_ERROR, "%s", text);
    tell(session, qmp_error_reply(&error, id));
}

/* The object that has come in whole. */
static void co_take_object(struct session *session)
{
    struct qmp_command command;
    struct qmp_error error;
    json_error_t why;
    char shown[160];
    json_t *said = json_loadb(session->object, session->object_len, JSON_REJECT_DUPLICATES, &why);

    free(session->object);
    session->object = NULL;
    session->object_len = 0;
    if (!said) {
        char text[200];
        snprintf(text, sizeof(text), "JSON parse error, %s",
                 err_sanitise(shown, sizeof(shown), why.text, strlen(why.text)));
        tell_error(session, text, NULL);
        return;
    }
    if (qmp_parse(said, &command, &error) < 0) {
        tell(session, qmp_error_reply(&error, command.id));
    } else {
        co_run_command(session, &command);
    }
    json_decref(said);
}

static bool keep_bytes(struct session *session, const char *bytes, size_t len)
{
    if (len == 0) {
        return true;
    }
    char *longer = realloc(session->object, session->object_len + len);
    if (!longer) {
        return false;
    }
    memcpy(longer + session->object_len, bytes, len);
    session->object = longer;
    session->object_len += len;
    return true;
}

static void drop_object(struct session *session)
{
    free(session->object);
    session->object = NULL;
    session->object_len = 0;
}

/* False: the session ends. */
static bool co_take_bytes(struct session *session, const char *bytes, size_t len)
{
    while (len > 0 && !session->ending) {
        size_t taken, object_len;
        enum framing_result result =
            framing_take(&session->framing, bytes, len, &taken, &object_len);
        if (!keep_bytes(session, bytes + taken - object_len, object_len)) {
            session_cut(session, "out of memory");
            return false;
        }
        bytes += taken;
        len -= taken;
        switch (result) {
        case FRAMING_MORE:
            break;
        case FRAMING_OBJECT:
            session->world->ops->timer_stop(session->world, &session->hearing);
            co_take_object(session);
            break;
        case FRAMING_STRAY:
            drop_object(session);
            tell_error(session, "QMP input must be a JSON object", NULL);
            break;
        case FRAMING_TOO_DEEP:
            drop_object(session);
            tell_error(session, "JSON nesting depth limit exceeded", NULL);
            break;
        case FRAMING_TOO_LONG:
            drop_object(session);
            tell_error(session, "JSON token size limit exceeded", NULL);
            break;
        }
    }
    return !session->ending;
}

static void co_listen_to(struct session *session)
{
    char bytes[RECEIVE_BYTES];

    for (;;) {
        /* Who has negotiated may be silent, but not in the middle of an object. */
        if (session->negotiated && !session->object) {
            session->world->ops->timer_stop(session->world, &session->hearing);
        } else if (!world_timer_armed(&session->hearing)) {
            start_patience(session, &session->hearing);
        }
        ssize_t got = session->stream->ops->co_recv(session->stream, bytes, sizeof(bytes));
        if (got <= 0 || !co_take_bytes(session, bytes, (size_t)got)) {
            break;
        }
    }
    session->world->ops->timer_stop(session->world, &session->hearing);
}

void co_session_serve(struct session *session)
{
    session->sender_running = true;
    if (coro_spawn(co_send_all, session, "control sender") < 0) {
        session->sender_running = false;
    } else {
        tell(session, qmp_greeting());
        co_listen_to(session);
    }
    session->ending = true;
    wait_queue_wake_all(&session->to_send);
    while (session->sender_running) {
        co_wait(&session->sender_gone);
    }
    list_remove(&session->link);
    session->stream->ops->co_close(session->stream);
    free(session->unread);
    free(session->object);
    free(session);
}
