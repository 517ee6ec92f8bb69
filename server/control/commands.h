/* SPDX-License-Identifier: BSD-2-Clause */
/* The commands: a table of names, arguments and functions. qcowd-control(7) describes each. */
#ifndef QCOWD_CONTROL_COMMANDS_H
#define QCOWD_CONTROL_COMMANDS_H

#include "control/control.h"
#include "control/qmp.h"

/* One command under way. */
struct control_call {
    struct control *control;
    json_t *arguments; /* checked; may be NULL */
    json_t *result;    /* what is returned, owned by the call; NULL: nothing is */
    struct qmp_error error;
};

/* 0, with call->result; or -1, with call->error. May suspend. */
typedef int co_control_command(struct control_call *call);

struct control_command {
    const char *name;
    co_control_command *co_run;
    const struct qmp_argument *arguments;
    unsigned argument_count;
};

/* NULL: there is none of that name. */
const struct control_command *control_command_find(const char *name);
/* All of them, one after the other; NULL behind the last. */
const struct control_command *control_command_at(unsigned index);

/* "out of memory", for what could not be put together. Returns -1. */
int control_no_memory(struct control_call *call);

/* The commands that look: query.c. */
co_control_command co_query_version, co_query_commands, co_query_block_exports,
    co_query_named_block_nodes, co_stats;
/* Those that change what is exported: exports.c. */
co_control_command co_export_add, co_export_del, co_quit;

#endif
