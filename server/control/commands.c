/* SPDX-License-Identifier: BSD-2-Clause */
#include "control/commands.h"

#include <string.h>

#include "base/check.h"

static const struct qmp_argument export_add_arguments[] = {
    {"name", JSON_STRING, false},
    {"image", JSON_STRING, false},
    {"description", JSON_STRING, true},
    {"read-only", JSON_TRUE, true},
    {"discard", JSON_STRING, true},
    {"cache", JSON_STRING, true},
    {"tls", JSON_STRING, true},
    {"allow", JSON_ARRAY, true},
    {"tls-allow", JSON_ARRAY, true},
    {"key-file", JSON_ARRAY, true},
    {"snapshot", JSON_STRING, true},
    {"bytes-per-second", JSON_STRING, true},
    {"operations-per-second", JSON_STRING, true},
};

static const struct qmp_argument export_del_arguments[] = {
    {"id", JSON_STRING, false},
    {"mode", JSON_STRING, true},
};

static const struct qmp_argument named_nodes_arguments[] = {
    {"flat", JSON_TRUE, true},
};

static const struct control_command commands[] = {
    {"query-version", co_query_version, NULL, 0},
    {"query-commands", co_query_commands, NULL, 0},
    {"query-block-exports", co_query_block_exports, NULL, 0},
    {"query-named-block-nodes", co_query_named_block_nodes, named_nodes_arguments,
     ARRAY_LEN(named_nodes_arguments)},
    {"qcowd-export-add", co_export_add, export_add_arguments, ARRAY_LEN(export_add_arguments)},
    {"block-export-del", co_export_del, export_del_arguments, ARRAY_LEN(export_del_arguments)},
    {"qcowd-stats", co_stats, NULL, 0},
    {"quit", co_quit, NULL, 0},
};

const struct control_command *control_command_at(unsigned index)
{
    return index < ARRAY_LEN(commands) ? &commands[index] : NULL;
}

const struct control_command *control_command_find(const char *name)
{
    for (unsigned i = 0; i < ARRAY_LEN(commands); i++) {
        if (strcmp(commands[i].name, name) == 0) {
            return &commands[i];
        }
    }
    return NULL;
}

int control_no_memory(struct control_call *call)
{
    return qmp_fail(&call->error, QMP_GENERIC_ERROR, "out of memory");
}
