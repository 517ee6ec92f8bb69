/* SPDX-License-Identifier: BSD-2-Clause */
/* Commands that look and change nothing. What is not known here is left out, not invented. */
#include "control/commands.h"
#include "export/statistics.h"

int co_query_version(struct control_call *call)
{
    json_t *greeting = qmp_greeting();
    json_t *version = json_object_get(json_object_get(greeting, "QMP"), "version");

    call->result = json_incref(version);
    json_decref(greeting);
    return call->result ? 0 : control_no_memory(call);
}

int co_query_commands(struct control_call *call)
{
    const struct control_command *command;

    /* qmp_capabilities is a session's own. */
    call->result = json_pack("[{s:s}]", "name", "qmp_capabilities");
    if (!call->result) {
        return control_no_memory(call);
    }
    for (unsigned i = 0; (command = control_command_at(i)); i++) {
        if (json_array_append_new(call->result, json_pack("{s:s}", "name", command->name)) < 0) {
            return control_no_memory(call);
        }
    }
    return 0;
}

/* Calls describe() for every export that is served. */
static int describe_exports(struct control_call *call,
                            json_t *(*describe)(const struct served_export *served))
{
    call->result = json_array();
    list_for_each(link, &call->control->host.desired->table->exports) {
        const struct served_export *served = list_entry(link, struct served_export, link);
        if (served->shows && json_array_append_new(call->result, describe(served)) < 0) {
            return control_no_memory(call);
        }
    }
    return call->result ? 0 : control_no_memory(call);
}

/* BlockExportInfo */
static json_t *describe_export(const struct served_export *served)
{
    const char *node = export_label(served->config.name);

    return json_pack("{s:s,s:s,s:s,s:b}", "id", node, "type", "nbd", "node-name", node,
                     "shutting-down", false);
}

int co_query_block_exports(struct control_call *call)
{
    return describe_exports(call, describe_export);
}

/* BlockDeviceInfo, as far as it means something here. */
static json_t *describe_node(const struct served_export *served)
{
    const struct image *image = served->nbd.image;

    return json_pack("{s:s,s:s,s:s,s:b,s:b,s:{s:s,s:s,s:I}}", "node-name",
                     export_label(served->config.name), "drv", "qcow2", "file",
                     served->config.image, "ro", served->config.read_only || image->read_only,
                     "encrypted", false, "image", "filename", served->config.image, "format",
                     "qcow2", "virtual-size", (json_int_t)image->size_bytes);
}

int co_query_named_block_nodes(struct control_call *call)
{
    return describe_exports(call, describe_node);
}
