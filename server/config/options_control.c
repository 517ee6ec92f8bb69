/* SPDX-License-Identifier: BSD-2-Clause */
/* How the running server is spoken to: its socket, and the command that speaks to it. */
#include <errno.h>
#include <string.h>

#include "base/check.h"
#include "config/option_group.h"

/* Who may connect may do all that the server may: nobody but its owner, unless told otherwise. */
#define CONTROL_MODE_DEFAULT 0600

static int take_control(struct config *config, char *value, struct errtext *err)
{
    if (*value == '\0') {
        return option_refuse_value("--control", value, "the path of a Unix socket to make", err);
    }
    config->serve.control.path = value;
    if (config->serve.control.mode == 0) {
        config->serve.control.mode = CONTROL_MODE_DEFAULT;
    }
    return 0;
}

static int take_mode(struct config *config, char *value, struct errtext *err)
{
    mode_t mode;
    int result = option_parse_mode("--control-mode", value, &mode, err);
    if (result == 0 && !(mode & 0200)) {
        return option_refuse_value("--control-mode", value,
                                   "a mode that lets its owner write, like 660", err);
    }
    config->serve.control.mode = result == 0 ? mode : 0;
    return result;
}

static int take_owner(struct config *config, char *value, struct errtext *err)
{
    if (*value == '\0') {
        return option_refuse_value("--control-owner", value, "USER, USER:GROUP or :GROUP", err);
    }
    config->serve.control.owner = value;
    return 0;
}

/* "unix:PATH", "HOST:PORT", "[IPV6]:PORT" or ":PORT", which is cut in place. */
static int take_metrics(struct config *config, char *value, struct errtext *err)
{
    struct metrics_config *metrics = &config->serve.metrics;
    char *colon = strrchr(value, ':');
    uint32_t port;

    *metrics = (struct metrics_config){0};
    if (strncmp(value, "unix:", 5) == 0 && value[5] != '\0') {
        metrics->unix_path = value + 5;
        return 0;
    }
    if (strncmp(value, "unix:", 5) == 0 || !colon ||
        !option_parse_number(colon + 1, UINT16_MAX, &port) || port == 0) {
        return option_refuse_value("--metrics", value, "HOST:PORT or unix:PATH", err);
    }
    bool bracketed = value[0] == '[' && colon > value + 1 && colon[-1] == ']';
    char *host = bracketed ? value + 1 : value;
    if (!bracketed && memchr(value, ':', (size_t)(colon - value))) {
        return option_refuse_value("--metrics", value,
                                   "HOST:PORT or unix:PATH, an IPv6 address in brackets", err);
    }
    colon[bracketed ? -1 : 0] = '\0';
    metrics->tcp = true;
    metrics->host = *host ? host : NULL;
    metrics->port = (uint16_t)port;
    return 0;
}

static int finish_control(struct config *config, struct errtext *err)
{
    const struct control_config *control = &config->serve.control;
    if (!control->path && (control->mode != 0 || control->owner)) {
        return err_set(err, EINVAL,
                       "--control-mode and --control-owner are for the socket of --control: there "
                       "is none");
    }
    return 0;
}

static const struct option_spec options[] = {
    {"control", '\0', "PATH", "take commands on this Unix socket (QMP; see qcowd ctl)",
     take_control},
    {"control-mode", '\0', "MODE", "its permissions, octal (600)", take_mode},
    {"control-owner", '\0', "USER[:GROUP]", "whom it belongs to", take_owner},
    {"metrics", '\0', "HOST:PORT|unix:PATH", "show metrics there, for Prometheus", take_metrics},
};

const struct option_group control_options = {
    .options = options, .count = ARRAY_LEN(options), .finish = finish_control};

static int take_json(struct config *config, char *value, struct errtext *err)
{
    (void)value;
    (void)err;
    config->json = true;
    return 0;
}

static int finish_ctl(struct config *config, struct errtext *err)
{
    if (config->operand_count < 2) {
        return err_set(err, EINVAL,
                       "ctl: no command named: query-commands lists them, qcowd-control(7) "
                       "describes them");
    }
    return 0;
}

static const struct option_spec ctl_specs[] = {
    {"json", '\0', NULL, "what the server answers, as it is", take_json},
};

const struct option_group ctl_options = {
    .title = "ctl", .options = ctl_specs, .count = ARRAY_LEN(ctl_specs), .finish = finish_ctl};
