/* SPDX-License-Identifier: BSD-2-Clause */
/* Life as a service: who is told what and when, and who may use the socket. */
#include "config/option_group.h"

#include <errno.h>
#include <string.h>

#include "base/check.h"

/* More than any process has. */
#define DESCRIPTOR_MAX 1000000U

static int take_pid_file(struct config *config, char *value, struct errtext *err)
{
    if (*value == '\0') {
        return option_refuse_value("--pidfile", value, "the path of a file to make", err);
    }
    config->serve.service.pid_file = value;
    return 0;
}

static int take_ready_fd(struct config *config, char *value, struct errtext *err)
{
    uint32_t fd;
    if (!option_parse_number(value, DESCRIPTOR_MAX, &fd) || fd < 3) {
        return option_refuse_value("--ready-fd", value,
                                   "the number of an open descriptor, 3 or more", err);
    }
    config->serve.service.ready_fd = (int)fd;
    return 0;
}

static int take_print_uri(struct config *config, char *value, struct errtext *err)
{
    (void)value;
    (void)err;
    config->serve.service.print_uri = true;
    return 0;
}

static int take_exit_with_parent(struct config *config, char *value, struct errtext *err)
{
    (void)value;
    (void)err;
    config->serve.service.exit_with_parent = true;
    return 0;
}

int option_parse_mode(const char *option, const char *value, mode_t *mode, struct errtext *err)
{
    unsigned number = 0;
    const char *digit = value;
    for (; *digit >= '0' && *digit <= '7' && number <= 0777; digit++) {
        number = number * 8 + (unsigned)(*digit - '0');
    }
    if (digit == value || *digit != '\0' || number > 0777) {
        return option_refuse_value(option, value, "an octal mode from 0 to 777, like 660", err);
    }
    *mode = number;
    return 0;
}

static int take_socket_mode(struct config *config, char *value, struct errtext *err)
{
    config->serve.service.socket_mode_given = true;
    return option_parse_mode("--socket-mode", value, &config->serve.service.socket_mode, err);
}

static int take_socket_owner(struct config *config, char *value, struct errtext *err)
{
    if (*value == '\0') {
        return option_refuse_value("--socket-owner", value, "USER, USER:GROUP or :GROUP", err);
    }
    config->serve.service.socket_owner = value;
    return 0;
}

static int take_log_format(struct config *config, char *value, struct errtext *err)
{
    if (strcmp(value, "text") == 0) {
        config->log_format = LOG_FORMAT_TEXT;
    } else if (strcmp(value, "json") == 0) {
        config->log_format = LOG_FORMAT_JSON;
    } else {
        return option_refuse_value("--log-format", value, "text or json", err);
    }
    return 0;
}

static int take_log_target(struct config *config, char *value, struct errtext *err)
{
    if (strcmp(value, "stderr") == 0) {
        config->log_target = LOG_TARGET_STDERR;
    } else if (strcmp(value, "syslog") == 0) {
        config->log_target = LOG_TARGET_SYSLOG;
    } else {
        return option_refuse_value("--log-target", value, "stderr or syslog", err);
    }
    return 0;
}

static int finish_service(struct config *config, struct errtext *err)
{
    const struct serve_config *serve = &config->serve;
    const struct service_config *service = &serve->service;
    if ((service->socket_mode_given || service->socket_owner) && !serve->unix_path) {
        return err_set(err, EINVAL,
                       "--socket-mode and --socket-owner are for the socket of --unix: there is "
                       "none");
    }
    if (service->print_uri && serve->stdio) {
        return err_set(err, EINVAL,
                       "--print-uri writes to stdout, where --stdio speaks NBD: drop one of them");
    }
    return 0;
}

static const struct option_spec options[] = {
    {"socket-mode", '\0', "MODE", "the permissions of the Unix socket, octal", take_socket_mode},
    {"socket-owner", '\0', "USER[:GROUP]", "whom the Unix socket belongs to", take_socket_owner},
    {"print-uri", '\0', NULL, "when clients are served, print where on stdout, a URI a line",
     take_print_uri},
    {"ready-fd", '\0', "N", "when clients are served, write a line to descriptor N, close it",
     take_ready_fd},
    {"pidfile", 'P', "FILE", "when clients can connect, write the process id to FILE",
     take_pid_file},
    {"exit-with-parent", '\0', NULL, "end when the process that started this one ends",
     take_exit_with_parent},
    {"log-format", '\0', "text|json", "log for people (default), or a JSON object a line",
     take_log_format},
    {"log-target", '\0', "stderr|syslog", "where to", take_log_target},
};

const struct option_group service_options = {
    .options = options, .count = ARRAY_LEN(options), .finish = finish_service};
