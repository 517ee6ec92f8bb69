/* SPDX-License-Identifier: BSD-2-Clause */
/*
 * Exports that come and go while the server runs. What is said of one is what a section of the
 * configuration file says, and goes through the same door: one set of fields, values and messages.
 */
#include <errno.h>
#include <string.h>

#include "control/commands.h"
#include "export/export_table.h"
#include "export/statistics.h"

/* Fills a configuration from a command's arguments. On a worker: names of users are looked up. */
struct filling {
    json_t *arguments;
    struct export_config *config;
    struct errtext err;
    int result;
};

static int set_value(struct filling *filling, const char *field, json_t *value)
{
    const char *text = json_is_boolean(value) ? (json_is_true(value) ? "true" : "false")
                                              : json_string_value(value);

    if (!text) {
        return err_set(&filling->err, EINVAL, "Invalid parameter type for '%s', expected: string",
                       field);
    }
    return export_config_set(filling->config, field, field, text, &filling->err);
}

static void fill_on_worker(void *arg)
{
    struct filling *filling = arg;
    const char *field;
    json_t *value, *item;
    size_t index;

    json_object_foreach(filling->arguments, field, value)
    {
        if (!json_is_array(value)) {
            filling->result = set_value(filling, field, value);
        }
        json_array_foreach(value, index, item)
        {
            filling->result =
                filling->result < 0 ? filling->result : set_value(filling, field, item);
        }
        if (filling->result < 0) {
            return;
        }
    }
}

int co_export_add(struct control_call *call)
{
    struct desired *desired = call->control->host.desired;
    struct world *world = export_table_world(desired->table);
    struct export_config config;
    struct filling filling = {.arguments = call->arguments, .config = &config};

    if (export_config_init(&config) < 0) {
        return control_no_memory(call);
    }
    world->ops->co_work(world, fill_on_worker, &filling);
    if (filling.result == 0) {
        filling.result = co_desired_add(desired, &config, &filling.err);
    }
    if (filling.result < 0) {
        export_config_free(&config);
        return qmp_fail(&call->error, QMP_GENERIC_ERROR, "%s", filling.err.text);
    }
    return 0;
}

int co_export_del(struct control_call *call)
{
    const char *id = qmp_string(call->arguments, "id");
    const char *mode = qmp_string(call->arguments, "mode");
    const char *name = strcmp(id, export_label("")) == 0 ? "" : id;
    bool hard = mode && strcmp(mode, "hard") == 0;
    struct errtext err = {.text = ""};

    if (mode && !hard && strcmp(mode, "safe") != 0) {
        return qmp_fail(&call->error, QMP_GENERIC_ERROR,
                        "Parameter 'mode' must be 'safe' or 'hard'");
    }
    int result = co_desired_remove(call->control->host.desired, name, hard, &err);
    if (result < 0) {
        return qmp_fail(&call->error, QMP_GENERIC_ERROR, "%s", err.text);
    }
    control_event(call->control, "BLOCK_EXPORT_DELETED", json_pack("{s:s}", "id", id));
    return 0;
}

int co_quit(struct control_call *call)
{
    struct control_host *host = &call->control->host;

    host->quit(host->arg);
    return 0;
}
