/* SPDX-License-Identifier: BSD-2-Clause */
/*
 * `qcowd ctl`: one command for a running server, over its control socket. What comes back is shown
 * as a table where it is a list of things, else as lines; --json shows it as it came.
 */
#include <errno.h>
#include <jansson.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/check.h"
#include "base/log.h"
#include "cmd/commands.h"
#include "cmd/ctl_top.h"
#include "cmd/qmp_client.h"

/* The server could not be reached, or did not speak QMP. */
#define EXIT_UNREACHABLE 2
#define COLUMNS_MAX      24U

/* ---- What is said ---- */

/* "name=text" or "name:=JSON"; true and false are truth values, and a name given twice makes a
 * list. */
static int add_argument(json_t *arguments, const char *text)
{
    const char *equals = strchr(text, '=');
    bool is_json = equals && equals > text && equals[-1] == ':';
    const char *name_end = !equals ? text : is_json ? equals - 1 : equals;
    if (name_end <= text) {
        log_error("'%s': must be NAME=VALUE, or NAME:=JSON", text);
        return -EINVAL;
    }
    char *name = strndup(text, (size_t)(name_end - text));
    json_t *value = is_json ? json_loads(equals + 1, JSON_DECODE_ANY, NULL)
                    : strcmp(equals + 1, "true") == 0  ? json_true()
                    : strcmp(equals + 1, "false") == 0 ? json_false()
                                                       : json_string(equals + 1);
    int result = name && value ? 0 : -EINVAL;
    json_t *before = result == 0 ? json_object_get(arguments, name) : NULL;
    if (result < 0) {
        log_error("'%s': %s", text, is_json ? "no JSON stands behind :=" : "must be UTF-8");
        json_decref(value);
    } else if (json_is_array(before)) {
        result = json_array_append_new(before, value);
    } else if (before) {
        result = json_object_set_new(arguments, name, json_pack("[O,o]", before, value));
    } else {
        result = json_object_set_new(arguments, name, value);
    }
    free(name);
    return result;
}

static json_t *make_command(char **words, int count)
{
    json_t *arguments = json_object();
    for (int i = 1; i < count; i++) {
        if (add_argument(arguments, words[i]) < 0) {
            json_decref(arguments);
            return NULL;
        }
    }
    return json_pack("{s:s,s:o}", "execute", words[0], "arguments", arguments);
}

/* ---- What is shown ---- */

/* One value as a word; to be freed. */
static char *as_text(json_t *value)
{
    if (json_is_string(value)) {
        char *text = strdup(json_string_value(value));
        for (char *c = text; c && *c; c++) {
            *c = (unsigned char)*c < ' ' || *c == 127 ? '?' : *c;
        }
        return text;
    }
    return value ? json_dumps(value, JSON_COMPACT | JSON_ENCODE_ANY | JSON_SORT_KEYS) : strdup("");
}

struct table {
    const char *columns[COLUMNS_MAX];
    size_t widths[COLUMNS_MAX];
    size_t count;
};

static void add_columns(struct table *table, json_t *row)
{
    const char *key;
    json_t *value;
    json_object_foreach(row, key, value)
    {
        size_t at = 0;
        while (at < table->count && strcmp(table->columns[at], key) != 0) {
            at++;
        }
        if (at == COLUMNS_MAX) {
            continue;
        }
        if (at == table->count) {
            table->columns[table->count++] = key;
            table->widths[at] = strlen(key);
        }
        char *text = as_text(value);
        table->widths[at] = MAX_OF(table->widths[at], text ? strlen(text) : 0);
        free(text);
    }
}

static void print_cell(const struct table *table, size_t at, const char *text)
{
    bool last = at + 1 == table->count;
    printf("%-*s%s", last ? 0 : (int)table->widths[at], text, last ? "\n" : "  ");
}

static void print_table(json_t *rows)
{
    struct table table = {.count = 0};
    json_t *row;
    size_t index;
    json_array_foreach(rows, index, row)
    {
        add_columns(&table, row);
    }
    for (size_t at = 0; at < table.count; at++) {
        print_cell(&table, at, table.columns[at]);
    }
    json_array_foreach(rows, index, row)
    {
        for (size_t at = 0; at < table.count; at++) {
            char *text = as_text(json_object_get(row, table.columns[at]));
            print_cell(&table, at, text ? text : "");
            free(text);
        }
    }
}

static void print_people(json_t *result)
{
    const char *key;
    json_t *value;
    if (json_is_array(result) && json_is_object(json_array_get(result, 0))) {
        print_table(result);
        return;
    }
    if (!json_is_object(result)) {
        char *text = as_text(result);
        puts(text ? text : "");
        free(text);
        return;
    }
    json_object_foreach(result, key, value)
    {
        char *text = as_text(value);
        printf("%s: %s\n", key, text ? text : "");
        free(text);
    }
}

static json_t *ask(const char *path, json_t *command)
{
    struct qmp_client client;
    json_t *answer = NULL;
    if (qmp_client_open(&client, path) == 0) {
        answer = qmp_client_ask(&client, command);
        qmp_client_close(&client);
    }
    return answer;
}

int cmd_ctl(const struct config *config)
{
    if (strcmp(config->operands[1], "top") == 0) {
        return ctl_top(config->image, config->operands + 2, config->operand_count - 2);
    }
    json_t *command = make_command(config->operands + 1, config->operand_count - 1);
    if (!command) {
        return EXIT_FAILURE;
    }
    json_t *answer = ask(config->image, command);
    json_t *error = json_object_get(answer, "error");
    json_t *result = json_object_get(answer, "return");
    int exit_status = !answer ? EXIT_UNREACHABLE : error ? EXIT_FAILURE : EXIT_SUCCESS;
    if (config->json && answer) {
        json_dumpf(error ? error : result, stdout, JSON_INDENT(4) | JSON_ENCODE_ANY);
        putchar('\n');
    } else if (result) {
        print_people(result);
    }
    if (error) {
        char *text = as_text(json_object_get(error, "desc"));
        log_error("%s", text ? text : "");
        free(text);
    }
    json_decref(command);
    json_decref(answer);
    return exit_status;
}
