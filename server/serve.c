/* SPDX-License-Identifier: BSD-2-Clause */
/*
 * The life of the server: open the images, listen, wait for a reason to end, and end in order.
 *
 * O9. Stopping is a flush. In this order: no new connections; requests in flight finish and are
 * answered, and clients that do not read are cut after a grace time (at once after a second
 * signal); each image commits, flushes and closes. The exit status is 0 only if all of that worked.
 *
 * The socket appears after the images are open, so that whoever sees it can connect at once.
 */
#include "serve.h"

#include <assert.h>
#include <errno.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <unistd.h>

#include "base/limits.h"
#include "base/log.h"
#include "config/wanted.h"
#include "control/control.h"
#include "debug/break_control.h"
#include "export/desired.h"
#include "export/export.h"
#include "export/statistics.h"
#include "filter/logged.h"
#include "io/net.h"
#include "io/tls.h"
#include "listen/address.h"
#include "listen/endpoints.h"
#include "listen/listen.h"
#include "listen/stdio_stream.h"
#include "metrics/metrics.h"
#include "sched/co.h"
#include "sched/sync.h"
#include "service/captive.h"
#include "service/confine.h"
#include "service/loops.h"
#include "service/supervisor.h"

/* What we open beside connections and images: ring, signals, listeners, standard descriptors. */
#define OTHER_DESCRIPTORS 64U
/* An image and a backing file. Longer chains find room among the connections. */
#define DESCRIPTORS_PER_EXPORT 2U

struct server {
    const struct serve_config *config;
    struct export_configs wanted; /* at the start */
    struct desired desired;
    struct loops loops;
    sigset_t original_mask;

    struct export_table exports;
    struct tls *tls; /* NULL: off */
    struct supervisor supervisor;
    struct listeners listeners;
    struct endpoints endpoints;
    struct address address;
    struct control control;
    struct metrics metrics;
    struct captive captive;
    struct confinement confinement;
    char *temporary_directory;
    char *temporary_socket;

    unsigned stop_signals;
    bool quit_asked; /* over the control socket */
    bool reload_asked;
    bool reloading;
    struct group reloads;
    bool stdio_done;
    bool draining;
    struct wait_queue changed; /* stop_signals, stdio_done, captive */
    struct group cutters;
    unsigned marks; /* SIGUSR1 so far */
    struct group markers;
    int exit_status;
};

static struct service_loop *main_loop(const struct server *server)
{
    return loops_main(&server->loops);
}

static struct world *main_world(const struct server *server)
{
    return main_loop(server)->runtime.world;
}

/* The second signal: those who are still being waited for are waited for no longer. */
static void co_cut_clients(void *arg)
{
    struct server *server = arg;
    co_loops_drain(&server->loops, 0);
    group_leave(&server->cutters);
}

static void cut_clients(struct server *server)
{
    if (!server->draining) {
        return;
    }
    group_enter(&server->cutters);
    if (coro_spawn(co_cut_clients, server, "cut clients") < 0) {
        group_leave(&server->cutters);
        log_error("out of memory: clients are cut after the grace time");
    }
}

static void co_mark_log(void *arg)
{
    struct server *server = arg;
    char text[32];
    snprintf(text, sizeof(text), "sigusr1-%u", ++server->marks);
    int result = co_logged_mark(server->exports.logged, text);
    if (result == 0) {
        log_info("SIGUSR1: marked the log of writes with %s", text);
    }
    group_leave(&server->markers);
}

static void mark_log(struct server *server)
{
    if (!server->exports.logged) {
        log_warning("SIGUSR1: there is no log of writes to mark");
        return;
    }
    group_enter(&server->markers);
    if (coro_spawn(co_mark_log, server, "mark the log") < 0) {
        group_leave(&server->markers);
        log_error("SIGUSR1: out of memory, the log of writes is not marked");
    }
}

static void on_signal(void *arg, int signal_number)
{
    struct server *server = arg;
    switch (signal_number) {
    case SIGHUP:
        server->reload_asked = true;
        break;
    case SIGUSR1:
        mark_log(server);
        return;
    case SIGCHLD:
        captive_reap(&server->captive);
        break;
    default:
        server->stop_signals++;
        log_info("%s: stopping%s", signal_number == SIGINT ? "SIGINT" : "SIGTERM",
                 server->stop_signals > 1 ? " at once" : "");
        if (server->stop_signals > 1) {
            cut_clients(server);
        }
        break;
    }
    wait_queue_wake_all(&server->changed);
}

/* The usual limit of 1024 would be full before the last connection that we promise to take. */
static void raise_descriptor_limit(unsigned connections, unsigned exports)
{
    const rlim_t wanted = connections + LIMIT_REFUSALS + LIMIT_CHAIN_DEPTH + OTHER_DESCRIPTORS +
                          exports * DESCRIPTORS_PER_EXPORT;
    struct rlimit limit;
    if (getrlimit(RLIMIT_NOFILE, &limit) < 0 || limit.rlim_cur >= wanted) {
        return;
    }
    limit.rlim_cur = MIN_OF(wanted, limit.rlim_max);
    if (limit.rlim_cur < wanted) {
        log_info("only %llu files may be open (ulimit -n): too few for %u connections",
                 (unsigned long long)limit.rlim_cur, connections);
    }
    if (setrlimit(RLIMIT_NOFILE, &limit) < 0) {
        log_warning("cannot raise the limit of open files: %s", strerror(errno));
    }
}

static int watch_signals(struct server *server)
{
    sigset_t watched;
    sigemptyset(&watched);
    sigaddset(&watched, SIGTERM);
    sigaddset(&watched, SIGINT);
    sigaddset(&watched, SIGHUP);
    sigaddset(&watched, SIGUSR1);
    sigaddset(&watched, SIGCHLD);
    /* An inherited "ignore" would reap the command of --run behind our back. */
    signal(SIGCHLD, SIG_DFL);
    sigprocmask(SIG_SETMASK, NULL, &server->original_mask);
    return loop_watch_signals(main_loop(server)->runtime.loop, &watched, on_signal, server);
}

static bool should_stop(const struct server *server)
{
    return server->stop_signals > 0 || server->quit_asked || server->stdio_done ||
           server->captive.ended;
}

static int open_listeners(struct server *server, struct errtext *err)
{
    const struct serve_config *config = server->config;
    const struct activation *activation = &server->supervisor.activation;
    const struct net_socket_file *file = &server->supervisor.socket_file;
    const char *unix_path = config->unix_path;
    int result = 0;
    if (config->run && !unix_path && !config->tcp && !config->vsock && activation->count == 0) {
        result =
            captive_make_directory(&server->temporary_directory, &server->temporary_socket, err);
        unix_path = server->temporary_socket;
        file = NULL;
    }
    if (result == 0) {
        result = endpoints_open(&server->endpoints, &server->listeners, config, activation,
                                unix_path, file, err);
    }
    if (result == 0) {
        result = address_describe(&server->address, &server->endpoints,
                                  config->tls_mode == NBD_TLS_REQUIRE,
                                  server->desired.in_force.list[0].name, err);
    }
    if (result == 0) {
        result = supervisor_write_pid(&server->supervisor, err);
    }
    return result;
}

static void quit(void *arg)
{
    struct server *server = arg;
    server->quit_asked = true;
    log_info("quit: stopping");
    wait_queue_wake_all(&server->changed);
}

static bool is_controlled(const struct server *server)
{
    return server->config->control.path || server->supervisor.activation.control_fd >= 0;
}

static int open_control(struct server *server, struct errtext *err)
{
    const char *path = server->config->control.path;
    int inherited = server->supervisor.activation.control_fd;
    int result = 0;
    if (path && inherited >= 0) {
        return err_set(err, EINVAL,
                       "--control %s: there is an inherited socket named control already", path);
    }
    if (path) {
        result = control_listen(&server->control, path, &server->supervisor.control_file, err);
    } else if (inherited >= 0) {
        result = control_listen_inherited(&server->control, inherited, err);
    }
    return result;
}

/* One line for people, at the service manager's. */
struct status {
    char text[400];
};

/* Serving or serving, as the sentence begins. */
static const char *serving_status(const struct server *server, const char *serving,
                                  struct status *status)
{
    const struct export_configs *wanted = &server->desired.in_force;
    const char *where = server->config->stdio ? "standard input and output" : server->address.uri;
    if (wanted->count == 1) {
        snprintf(status->text, sizeof(status->text), "%s %s as %s", serving, wanted->list[0].image,
                 where);
    } else {
        snprintf(status->text, sizeof(status->text), "%s %u exports, the first as %s", serving,
                 wanted->count, where);
    }
    return status->text;
}

/* Clients are served: says so to all who want to know. */
static int tell_ready(struct server *server, struct errtext *err)
{
    struct status status;
    const struct export_configs *wanted = &server->desired.in_force;
    const char **names = calloc(wanted->count, sizeof(*names));
    if (!names) {
        return err_set(err, ENOMEM, "out of memory");
    }
    for (unsigned i = 0; i < wanted->count; i++) {
        names[i] = wanted->list[i].name;
    }
    log_info("%s", serving_status(server, "serving", &status));
    sandbox_tell_missing(server->confinement.sandbox);
    int result = supervisor_ready(&server->supervisor, &server->endpoints, names, wanted->count,
                                  serving_status(server, "Serving", &status), err);
    free(names);
    return result;
}

static void note_stdio_done(void *arg)
{
    struct server *server = arg;
    server->stdio_done = true;
    wait_queue_wake_all(&server->changed);
}

static int start_captive(struct server *server, struct errtext *err)
{
    struct captive_address address = {
        .uri = server->address.uri,
        .unix_socket = server->address.unix_path,
        .port = server->address.port,
        .old_uri = server->address.old_uri,
        .export_name = server->desired.in_force.list[0].name,
    };
    return captive_start(&server->captive, server->config->run, &address, &server->original_mask,
                         err);
}

static int co_start_tls(struct nbd_service *service, struct stream *plain, struct stream **secure,
                        struct errtext *err)
{
    struct server *server = service->context;
    return co_tls_accept(server->tls, main_world(server), plain, secure, err);
}

static void init_service(struct server *server)
{
    struct nbd_service *service = &main_loop(server)->service;
    const struct serve_limits *limits = &server->config->limits;
    service->tls_mode = server->config->tls_mode;
    service->co_start_tls = co_start_tls;
    service->context = server;
    for (unsigned i = 0; i < server->loops.count; i++) {
        server->loops.loops[i].service.limits = limits->protocol;
    }
    listeners_init(&server->listeners, main_loop(server)->runtime.loop, service,
                   limits->connections, limits->connections_per_address);
    const struct control_host host = {
        .desired = &server->desired, .listeners = &server->listeners, .quit = quit, .arg = server};
    control_init(&server->control, main_loop(server)->runtime.loop, main_world(server), &host);
    metrics_init(&server->metrics, main_loop(server)->runtime.loop, main_world(server),
                 &server->desired, &server->listeners);
}

/* The way in is open, but nobody is let in before the server has given up what it need not have. */
static int co_confine(struct server *server, struct errtext *err)
{
    const struct confinement_leavings leavings = {
        .socket = server->listeners.doorway.socket_path,
        .control_socket = server->control.doorway.socket_path,
        .metrics_socket = server->metrics.doorway.socket_path,
        .directory = server->temporary_directory,
        .pid_file = server->config->service.pid_file,
    };
    int result = confinement_become_user(&server->confinement, &leavings, err);
    if (result == 0 && server->config->run) {
        result = start_captive(server, err);
    }
    if (result < 0) {
        return result;
    }
    return co_confinement_enter(&server->confinement, &server->loops, &leavings,
                                server->captive.pid, err);
}

static int co_serve_stdio(struct server *server, struct errtext *err)
{
    struct stream *stream;
    int result = stdio_take(main_loop(server)->runtime.loop, &stream, err);
    if (result < 0) {
        return result;
    }
    result = supervisor_write_pid(&server->supervisor, err);
    if (result == 0) {
        result = co_confine(server, err);
    }
    if (result < 0) {
        stream->ops->co_close(stream);
        return result;
    }
    result = co_listeners_serve(&server->listeners, stream, note_stdio_done, server);
    if (result < 0) {
        return err_set(err, -result, "cannot serve stdin and stdout: %s", strerror(-result));
    }
    return 0;
}

/* Everything between the open image and waiting for the end. */
static int co_start_listening(struct server *server, struct errtext *err)
{
    int result = open_listeners(server, err);
    if (result < 0) {
        return result;
    }
#ifdef QCOWD_BREAK_CONTROL
    result = break_control_start(main_loop(server)->runtime.loop, err);
    if (result < 0) {
        return result;
    }
#endif
    result = co_confine(server, err);
    if (result < 0) {
        return result;
    }
    if (listeners_start(&server->listeners) < 0) {
        return err_set(err, ENOMEM, "out of memory");
    }
    return 0;
}

static int co_start_serving(struct server *server, struct errtext *err)
{
    int result = open_control(server, err);
    if (result == 0) {
        result = metrics_listen(&server->metrics, &server->config->metrics, err);
    }
    if (result == 0) {
        result =
            server->config->stdio ? co_serve_stdio(server, err) : co_start_listening(server, err);
    }
    if (result == 0 &&
        (control_start(&server->control) < 0 || metrics_start(&server->metrics) < 0)) {
        return err_set(err, ENOMEM, "out of memory");
    }
    return result < 0 ? result : tell_ready(server, err);
}

/* The command of --run may use what is left of the grace time, then ends whether it wants or not.
 */
static void co_wait_for_captive(struct server *server, uint64_t deadline_ns)
{
    while (captive_running(&server->captive)) {
        uint64_t now_ns = world_now_ns(main_world(server));
        if (now_ns >= deadline_ns || server->stop_signals > 1) {
            captive_kill(&server->captive, SIGKILL);
            deadline_ns = UINT64_MAX;
            co_wait(&server->changed);
            continue;
        }
        int result = co_wait_timeout(main_world(server), &server->changed, deadline_ns - now_ns);
        (void)result; /* the condition is looked at again, either way */
    }
}

/* O9 */
static void co_stop_serving(struct server *server)
{
    uint64_t grace_ns = server->config->shutdown_timeout_ms * 1000000ULL;
    uint64_t deadline_ns = world_now_ns(main_world(server)) + grace_ns;
    notify_stopping(&server->supervisor.notify, grace_ns);
    export_table_stop(&server->exports);
    co_listeners_stop(&server->listeners);
    co_metrics_stop(&server->metrics);
    co_control_stop(&server->control, server->quit_asked ? "host-qmp-quit" : "host-signal");
    captive_kill(&server->captive, SIGTERM);
    server->draining = true;
    co_loops_drain(&server->loops, server->stop_signals > 1 ? 0 : grace_ns);
    co_group_wait(&server->cutters);
    /* Connections that were accepted but had not begun when draining began. */
    co_group_wait(&server->listeners.connections);
    server->draining = false;
    co_wait_for_captive(server, deadline_ns);
}

static void co_reload_credentials(struct server *server)
{
    struct errtext err = {.text = ""};
    int result = co_tls_reload(server->tls, main_world(server), &err);
    if (result < 0) {
        log_error("SIGHUP: %s%s: the TLS credentials stay as they were", err.text,
                  confinement_hint(&server->confinement, result));
    } else {
        log_info("SIGHUP: TLS credentials loaded again");
    }
}

static void say_changes(const struct export_changes *changes)
{
    if (changes->lost > 0) {
        log_error("SIGHUP: %u export(s) are gone: their images could not be opened again",
                  changes->lost);
    }
    log_info("SIGHUP: %u export(s) added, %u changed, %u removed; %u client(s) sent away",
             changes->added, changes->changed, changes->removed, changes->dismissed);
}

static void co_reload_exports(struct server *server)
{
    struct export_configs wanted;
    struct export_changes changes;
    struct errtext err = {.text = ""};
    int result = co_wanted_read(server->config, main_world(server), &wanted, &err);
    const char *hint = confinement_hint(&server->confinement, result);
    if (result == 0) {
        result = co_desired_replace(&server->desired, &wanted, &changes, &err);
    }
    if (result == 0) {
        say_changes(&changes);
    } else if (!server->exports.stopping) {
        log_error("SIGHUP: %s%s: the exports stay as they were", err.text, hint);
    }
}

/* Beside the life of the server, which may end meanwhile. */
static void co_reload(void *arg)
{
    struct server *server = arg;
    struct status status;
    notify_reloading(&server->supervisor.notify);
    if (server->tls) {
        co_reload_credentials(server);
    }
    if (server->config->config_file) {
        co_reload_exports(server);
    }
    if (!server->tls && !server->config->config_file) {
        log_info("SIGHUP: nothing to reload, going on");
    }
    if (!server->exports.stopping) {
        notify_ready(&server->supervisor.notify, serving_status(server, "Serving", &status));
    }
    server->reloading = false;
    group_leave(&server->reloads);
    wait_queue_wake_all(&server->changed);
}

/* One after the other: a signal that comes meanwhile is for the next. */
static void start_reload(struct server *server)
{
    server->reload_asked = false;
    server->reloading = true;
    group_enter(&server->reloads);
    if (coro_spawn(co_reload, server, "reload") < 0) {
        server->reloading = false;
        group_leave(&server->reloads);
        log_error("SIGHUP: out of memory: all stays as it was");
    }
}

static void co_server_life(void *arg)
{
    struct server *server = arg;
    struct errtext err = {.text = ""};
    raise_descriptor_limit(server->config->limits.connections, server->wanted.count);
    notify_start(&server->supervisor.notify, main_loop(server)->runtime.loop);
    init_service(server);
    statistics_begin();
    export_table_init(&server->exports, &server->loops, server->config);
    desired_init(&server->desired, &server->exports, server->config, &server->wanted);
    int result = co_desired_apply_first(&server->desired, &err);
    if (result < 0) {
        log_error("%s", err.text);
        return;
    }
    result = co_start_serving(server, &err);
    if (result < 0) {
        log_error("%s", err.text);
    }
    while (result == 0 && !should_stop(server)) {
        if (server->reload_asked && !server->reloading) {
            start_reload(server);
        } else {
            co_wait(&server->changed);
        }
    }
#ifdef QCOWD_BREAK_CONTROL
    co_break_control_stop();
#endif
    co_stop_serving(server);
    co_group_wait(&server->markers);
    co_group_wait(&server->reloads);
    int closed = co_export_table_close(&server->exports);
    if (result == 0 && closed == 0) {
        server->exit_status = server->config->run ? server->captive.exit_status : EXIT_SUCCESS;
    }
}

static void free_addresses(struct server *server)
{
    captive_remove_directory(server->temporary_directory, server->temporary_socket);
    address_free(&server->address);
    endpoints_free(&server->endpoints);
}

/* On the main stack: reading certificates takes more than a coroutine has. */
static int load_tls(struct server *server, struct errtext *err)
{
    const struct serve_config *config = server->config;
    if (config->tls_mode == NBD_TLS_OFF) {
        return 0;
    }
    if (config->tls_mode == NBD_TLS_ON && (config->tls.verify_peer || config->tls.allowed_count)) {
        log_warning("with --tls on, clients that do without TLS are let in unchecked");
    }
    return tls_create(&server->tls, &config->tls, err);
}

int serve(const struct serve_config *config)
{
    struct errtext err;
    struct server *server = calloc(1, sizeof(*server));
    int exit_status = EXIT_FAILURE;
    if (!server) {
        log_error("out of memory");
        return exit_status;
    }
    server->config = config;
    server->exit_status = EXIT_FAILURE;
    wait_queue_init(&server->changed);
    group_init(&server->cutters);
    group_init(&server->markers);
    group_init(&server->reloads);
    if (supervisor_begin(&server->supervisor, config, &err) < 0 ||
        wanted_read(config, &server->wanted, &err) < 0 || load_tls(server, &err) < 0 ||
        confinement_begin(&server->confinement, config, is_controlled(server), &server->wanted,
                          &err) < 0 ||
        loops_start(&server->loops, config->threads, config->limits.bytes_in_flight, &err) < 0) {
        log_error("%s", err.text);
        confinement_end(&server->confinement);
        supervisor_end(&server->supervisor);
        tls_free(server->tls);
        export_configs_free(&server->wanted);
        free(server);
        return exit_status;
    }
    int result = watch_signals(server);
    if (result == 0) {
        result = loop_run_coroutine(main_loop(server)->runtime.loop, co_server_life, server);
    }
    if (result < 0) {
        log_error("cannot start: %s", strerror(-result));
    }
    exit_status = server->exit_status;
    free_addresses(server);
    supervisor_end(&server->supervisor);
    loops_end(&server->loops);
    confinement_end(&server->confinement);
    tls_free(server->tls);
    desired_free(&server->desired);
    export_configs_free(&server->wanted);
    free(server);
    return exit_status;
}
