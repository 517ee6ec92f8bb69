/* SPDX-License-Identifier: BSD-2-Clause */
/* The texts of errors are QEMU's where it has one, as scripts look at them. */
#include "control/qmp.h"

#include <stdarg.h>
#include <stdio.h>
#include <string.h>

#include "base/errtext.h"

/* What a client has said, for messages. */
struct shown {
    char text[80];
};

static const char *show(struct shown *shown, const char *text)
{
    return err_sanitise(shown->text, sizeof(shown->text), text, strlen(text));
}

int qmp_fail(struct qmp_error *error, enum qmp_error_class error_class, const char *format, ...)
{
    va_list args;

    error->error_class = error_class;
    va_start(args, format);
    vsnprintf(error->desc, sizeof(error->desc), format, args);
    va_end(args);
    return -1;
}

int qmp_parse(json_t *said, struct qmp_command *command, struct qmp_error *error)
{
    struct shown shown;
    const char *key;
    json_t *value;

    *command = (struct qmp_command){.id = json_object_get(said, "id")};
    json_object_foreach(said, key, value)
    {
        if (strcmp(key, "execute") == 0) {
            if (!json_is_string(value)) {
                return qmp_fail(error, QMP_GENERIC_ERROR,
                                "QMP input member 'execute' must be a string");
            }
            command->name = json_string_value(value);
        } else if (strcmp(key, "arguments") == 0) {
            if (!json_is_object(value)) {
                return qmp_fail(error, QMP_GENERIC_ERROR,
                                "QMP input member 'arguments' must be an object");
            }
            command->arguments = value;
        } else if (strcmp(key, "id") != 0) {
            return qmp_fail(error, QMP_GENERIC_ERROR, "QMP input member '%s' is unexpected",
                            show(&shown, key));
        }
    }
    if (!command->name) {
        return qmp_fail(error, QMP_GENERIC_ERROR, "QMP input lacks member 'execute'");
    }
    return 0;
}

json_t *qmp_greeting(void)
{
    int major = 0, minor = 0, micro = 0;

    (void)sscanf(QCOWD_VERSION, "%d.%d.%d", &major, &minor, &micro);
    return json_pack("{s:{s:{s:{s:i,s:i,s:i},s:s},s:[]}}", "QMP", "version", "qemu", "major", major,
                     "minor", minor, "micro", micro, "package", "qcowd " QCOWD_VERSION,
                     "capabilities");
}

json_t *qmp_return(json_t *result, json_t *id)
{
    return result ? json_pack("{s:O,s:O*}", "return", result, "id", id)
                  : json_pack("{s:{},s:O*}", "return", "id", id);
}

static const char *class_name(enum qmp_error_class error_class)
{
    switch (error_class) {
    case QMP_COMMAND_NOT_FOUND:
        return "CommandNotFound";
    case QMP_DEVICE_NOT_FOUND:
        return "DeviceNotFound";
    case QMP_GENERIC_ERROR:
        break;
    }
    return "GenericError";
}

json_t *qmp_error_reply(const struct qmp_error *error, json_t *id)
{
    return json_pack("{s:{s:s,s:s},s:O*}", "error", "class", class_name(error->error_class), "desc",
                     error->desc, "id", id);
}

json_t *qmp_event(const char *name, json_t *data, uint64_t seconds, uint32_t microseconds)
{
    return json_pack("{s:s,s:O*,s:{s:I,s:I}}", "event", name, "data", data, "timestamp", "seconds",
                     (json_int_t)seconds, "microseconds", (json_int_t)microseconds);
}

static const char *type_name(json_type type)
{
    switch (type) {
    case JSON_OBJECT:
        return "object";
    case JSON_ARRAY:
        return "array";
    case JSON_STRING:
        return "string";
    case JSON_INTEGER:
        return "integer";
    case JSON_REAL:
        return "number";
    case JSON_TRUE:
    case JSON_FALSE:
        return "boolean";
    case JSON_NULL:
        break;
    }
    return "null";
}

static bool has_type(const json_t *value, json_type type)
{
    return type == JSON_TRUE ? json_is_boolean(value) : json_typeof(value) == type;
}

int qmp_check_arguments(json_t *arguments, const struct qmp_argument *known, unsigned known_count,
                        struct qmp_error *error)
{
    struct shown shown;
    size_t found = 0;
    const char *key;
    json_t *value;

    for (unsigned i = 0; i < known_count; i++) {
        value = json_object_get(arguments, known[i].name);
        if (!value && !known[i].optional) {
            return qmp_fail(error, QMP_GENERIC_ERROR, "Parameter '%s' is missing", known[i].name);
        }
        if (value && !has_type(value, known[i].type)) {
            return qmp_fail(error, QMP_GENERIC_ERROR,
                            "Invalid parameter type for '%s', expected: %s", known[i].name,
                            type_name(known[i].type));
        }
        found += value != NULL;
    }
    if (found == json_object_size(arguments)) {
        return 0;
    }
    json_object_foreach(arguments, key, value)
    {
        bool expected = false;
        for (unsigned i = 0; i < known_count && !expected; i++) {
            expected = strcmp(known[i].name, key) == 0;
        }
        if (!expected) {
            return qmp_fail(error, QMP_GENERIC_ERROR, "Parameter '%s' is unexpected",
                            show(&shown, key));
        }
    }
    return 0;
}

const char *qmp_string(json_t *arguments, const char *name)
{
    return json_string_value(json_object_get(arguments, name));
}

bool qmp_bool(json_t *arguments, const char *name, bool otherwise)
{
    json_t *value = json_object_get(arguments, name);
    return value ? json_is_true(value) : otherwise;
}
