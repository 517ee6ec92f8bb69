/* SPDX-License-Identifier: BSD-2-Clause */
/* What the server may still do once it serves. */
#include "config/option_group.h"

#include <errno.h>
#include <string.h>

#include "base/check.h"

static int take_sandbox(struct config *config, char *value, struct errtext *err)
{
    if (strcmp(value, "on") == 0) {
        config->serve.sandbox.mode = SANDBOX_ON;
    } else if (strcmp(value, "off") == 0) {
        config->serve.sandbox.mode = SANDBOX_OFF;
    } else if (strcmp(value, "require") == 0) {
        config->serve.sandbox.mode = SANDBOX_REQUIRE;
    } else {
        return option_refuse_value("--sandbox", value, "on, off or require", err);
    }
    return 0;
}

static int take_sandbox_allow(struct config *config, char *value, struct errtext *err)
{
    struct sandbox_config *sandbox = &config->serve.sandbox;
    if (*value == '\0') {
        return option_refuse_value("--sandbox-allow", value, "the path of a directory", err);
    }
    if (sandbox->allowed_count == SANDBOX_ALLOWED_MAX) {
        return err_set(err, EINVAL, "--sandbox-allow: at most %u directories may be named",
                       SANDBOX_ALLOWED_MAX);
    }
    sandbox->allowed[sandbox->allowed_count++] = value;
    return 0;
}

static int take_user(struct config *config, char *value, struct errtext *err)
{
    const char *colon = strchr(value, ':');
    if (*value == '\0' || colon == value || (colon && colon[1] == '\0')) {
        return option_refuse_value("--user", value, "USER or USER:GROUP, names or numbers", err);
    }
    config->serve.sandbox.user = value;
    return 0;
}

static const struct option_spec options[] = {
    {"user", '\0', "USER[:GROUP]", "become this user once the images and sockets are open",
     take_user},
    {"sandbox", '\0', "on|off|require",
     "shut off files, programs and the network as far as the\n"
     "kernel can (default), not at all, or serve only with it",
     take_sandbox},
    {"sandbox-allow", '\0', "DIR", "where images may still be opened on SIGHUP; repeatable",
     take_sandbox_allow},
};

const struct option_group sandbox_options = {.options = options, .count = ARRAY_LEN(options)};
