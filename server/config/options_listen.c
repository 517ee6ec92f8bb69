/* SPDX-License-Identifier: BSD-2-Clause */
/* Where the server listens, and how long it lives. */
#include "config/option_group.h"

#include <errno.h>

#include "base/check.h"

/* The message that refuses more names it, too. */
#define SHUTDOWN_TIMEOUT_MAX_S 3600U

static int take_unix(struct config *config, char *value, struct errtext *err)
{
    if (*value == '\0') {
        return option_refuse_value("--unix", value, "the path of a socket to make", err);
    }
    config->serve.unix_path = value;
    return 0;
}

static int take_port(struct config *config, char *value, struct errtext *err)
{
    uint32_t port;
    if (!option_parse_number(value, UINT16_MAX, &port)) {
        return option_refuse_value("--port", value, "a number from 0 to 65535", err);
    }
    config->serve.tcp = true;
    config->serve.port = (uint16_t)port;
    return 0;
}

static int take_bind(struct config *config, char *value, struct errtext *err)
{
    if (*value == '\0') {
        return option_refuse_value("--bind", value, "a host name or address", err);
    }
    config->serve.tcp = true;
    config->serve.bind = value;
    return 0;
}

static int take_vsock(struct config *config, char *value, struct errtext *err)
{
    (void)value;
    (void)err;
    config->serve.vsock = true;
    return 0;
}

static int take_stdio(struct config *config, char *value, struct errtext *err)
{
    (void)value;
    (void)err;
    config->serve.stdio = true;
    return 0;
}

static int take_run(struct config *config, char *value, struct errtext *err)
{
    (void)err;
    config->serve.run = value;
    return 0;
}

static int take_shutdown_timeout(struct config *config, char *value, struct errtext *err)
{
    uint32_t seconds;
    if (!option_parse_number(value, SHUTDOWN_TIMEOUT_MAX_S, &seconds)) {
        return option_refuse_value("--shutdown-timeout", value, "seconds, a number from 0 to 3600",
                                   err);
    }
    config->serve.shutdown_timeout_ms = seconds * 1000;
    return 0;
}

static int take_threads(struct config *config, char *value, struct errtext *err)
{
    uint32_t threads = 0;
    if (!option_parse_number(value, THREADS_MAX, &threads) || threads == 0) {
        return option_refuse_value("--threads", value, "a number from 1 to 64", err);
    }
    config->serve.threads = threads;
    return 0;
}

static int finish_listen(struct config *config, struct errtext *err)
{
    struct serve_config *serve = &config->serve;
    if (serve->stdio && (serve->unix_path || serve->tcp || serve->vsock)) {
        return err_set(err, EINVAL,
                       "--stdio serves one client and listens nowhere: drop it, or --unix, --port, "
                       "--bind and --vsock");
    }
    if (serve->stdio && serve->run) {
        return err_set(err, EINVAL, "--stdio and --run cannot be combined: drop one of them");
    }
    if (serve->vsock && serve->bind) {
        return err_set(err, EINVAL,
                       "--vsock listens in the place of TCP, and has no addresses: drop it, or "
                       "--bind");
    }
    if (serve->vsock) {
        serve->tcp = false; /* the port is vsock's */
    } else if (!serve->stdio && !serve->unix_path && !serve->run && !serve->tcp) {
        serve->tcp = true;
        serve->tcp_by_default = true;
    }
    return 0;
}

static const struct option_spec options[] = {
    {"unix", 'U', "PATH", "listen on a Unix socket", take_unix},
    {"port", 'p', "N", "listen on TCP port N (10809; 0 lets the kernel choose)", take_port},
    {"bind", 'i', "ADDR", "listen on TCP at this address instead of loopback", take_bind},
    {"vsock", '\0', NULL, "listen on vsock instead of TCP, at the port of --port", take_vsock},
    {"stdio", 's', NULL, "speak NBD on stdin and stdout to one client", take_stdio},
    {"run", '\0', "COMMAND",
     "serve while COMMAND runs, exit with its status;\n"
     "it finds $uri, $unixsocket, $port, $nbd and $exportname",
     take_run},
    {"threads", '\0', "N", "spread the exports over N threads (1); each lives on one",
     take_threads},
    {"shutdown-timeout", '\0', "N", "when stopping, cut clients that hold on after N seconds (10)",
     take_shutdown_timeout},
};

const struct option_group listen_options = {
    .options = options, .count = ARRAY_LEN(options), .finish = finish_listen};
