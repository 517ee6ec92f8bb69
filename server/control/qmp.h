/* SPDX-License-Identifier: BSD-2-Clause */
/*
 * QMP's words (docs/interop/qmp-spec.rst of QEMU): what a client may say becomes a command or an
 * error, what is said to it becomes a line. Pure.
 *
 * Functions that return json_t * return a new reference, or NULL without memory.
 */
#ifndef QCOWD_CONTROL_QMP_H
#define QCOWD_CONTROL_QMP_H

#include <jansson.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

/* The classes of errors that clients tell apart. */
enum qmp_error_class {
    QMP_GENERIC_ERROR,
    QMP_COMMAND_NOT_FOUND,
    QMP_DEVICE_NOT_FOUND,
};

struct qmp_error {
    enum qmp_error_class error_class;
    char desc[512];
};

/* Fills *error and returns -1. */
int qmp_fail(struct qmp_error *error, enum qmp_error_class error_class, const char *format, ...)
    __attribute__((format(printf, 3, 4)));

struct qmp_command {
    const char *name;  /* of the object */
    json_t *arguments; /* an object; of the command, or NULL: none were given */
    json_t *id;        /* any value; NULL: none was given */
};

/*
 * Takes apart what a client has said, which lives as long as the command does. -1 with *error; `id`
 * is set even then, as far as there is one.
 */
int qmp_parse(json_t *said, struct qmp_command *command, struct qmp_error *error);

json_t *qmp_greeting(void);
/* Both take over nothing. `result` NULL: an empty object. */
json_t *qmp_return(json_t *result, json_t *id);
json_t *qmp_error_reply(const struct qmp_error *error, json_t *id);
/* data NULL: an event without. The time is that of the wall clock. */
json_t *qmp_event(const char *name, json_t *data, uint64_t seconds, uint32_t microseconds);

/* One argument of a command. */
struct qmp_argument {
    const char *name;
    json_type type; /* JSON_TRUE stands for both truth values */
    bool optional;
};

/*
 * Whether the arguments are what a command takes: all that are needed, each of its type, no other.
 * -1 with *error, in QEMU's words. NULL counts as no arguments.
 */
int qmp_check_arguments(json_t *arguments, const struct qmp_argument *known, unsigned known_count,
                        struct qmp_error *error);

/* Of checked arguments: NULL, or `otherwise`, when it was not given. Strings: of the object. */
const char *qmp_string(json_t *arguments, const char *name);
bool qmp_bool(json_t *arguments, const char *name, bool otherwise);

#endif
