/* SPDX-License-Identifier: BSD-2-Clause */
/*
 * Rates are differences of two answers of qcowd-stats; times are those of all requests so far. On a
 * terminal the screen is written anew each time, elsewhere one table follows the other.
 */
#include "cmd/ctl_top.h"

#include <errno.h>
#include <jansson.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

#include "base/errtext.h"
#include "base/log.h"
#include "cmd/qmp_client.h"

#define EXIT_UNREACHABLE 2
#define CLEAR_SCREEN     "\033[H\033[J"

struct top {
    struct qmp_client client;
    unsigned interval_s;
    unsigned count; /* 0: until interrupted */
    json_t *before; /* the answer of last time; NULL: there was none */
    double before_s;
};

static double now_s(void)
{
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return (double)now.tv_sec + (double)now.tv_nsec / 1e9;
}

static bool take_number(const char *word, const char *name, unsigned *number)
{
    size_t len = strlen(name);
    char *end = NULL;
    if (strncmp(word, name, len) != 0 || word[len] != '=') {
        return false;
    }
    errno = 0;
    unsigned long value = strtoul(word + len + 1, &end, 10);
    if (errno != 0 || *end != '\0' || value == 0 || value > 86400 || word[len + 1] == '-') {
        return false;
    }
    *number = (unsigned)value;
    return true;
}

static json_int_t number(json_t *object, const char *key)
{
    return json_integer_value(json_object_get(object, key));
}

/* Of the same export, last time. */
static json_t *find_before(const struct top *top, const char *name)
{
    json_t *export;
    size_t index;
    json_array_foreach(json_object_get(top->before, "exports"), index, export)
    {
        const char *its = json_string_value(json_object_get(export, "name"));
        if (its && strcmp(its, name) == 0) {
            return export;
        }
    }
    return NULL;
}

static double rate(json_t *now, json_t *before, const char *command, const char *what, double took)
{
    json_t *commands = json_object_get(json_object_get(now, "commands"), command);
    json_t *earlier = json_object_get(json_object_get(before, "commands"), command);
    json_int_t grown = number(commands, what) - number(earlier, what);
    return took > 0 && grown > 0 ? (double)grown / took : 0;
}

static double rate_of_others(json_t *now, json_t *before, double took)
{
    return rate(now, before, "trim", "requests", took) +
           rate(now, before, "zero", "requests", took) +
           rate(now, before, "flush", "requests", took) +
           rate(now, before, "status", "requests", took);
}

static double p99_ms(json_t *export, const char *command)
{
    json_t *counters = json_object_get(json_object_get(export, "commands"), command);
    return (double)number(counters, "p99-ns") / 1e6;
}

static json_int_t errors_of(json_t *export)
{
    const char *name;
    json_t *command;
    json_int_t errors = 0;
    json_object_foreach(json_object_get(export, "commands"), name, command)
    {
        errors += number(command, "errors");
    }
    return errors;
}

/* A name may have any bytes that a terminal would obey. */
static void print_name(const char *name)
{
    char shown[64];
    printf("%-20.20s", err_sanitise(shown, sizeof(shown), name, strlen(name)));
}

static void print_export(const struct top *top, json_t *export, double took)
{
    const char *name = json_string_value(json_object_get(export, "name"));
    json_t *before = find_before(top, name ? name : "");
    json_t *image = json_object_get(export, "image");
    print_name(name ? name : "");
    printf(" %7lld %8lld %8.0f %8.1f %9.2f %8.0f %8.1f %9.2f %8.0f %6lld%s\n",
           (long long)number(export, "connections"), (long long)number(export, "in-flight"),
           rate(export, before, "read", "requests", took),
           rate(export, before, "read", "bytes", took) / 1e6, p99_ms(export, "read"),
           rate(export, before, "write", "requests", took),
           rate(export, before, "write", "bytes", took) / 1e6, p99_ms(export, "write"),
           rate_of_others(export, before, took), (long long)errors_of(export),
           json_is_true(json_object_get(image, "failed"))    ? "  FAILED"
           : json_is_true(json_object_get(image, "corrupt")) ? "  CORRUPT"
                                                             : "");
}

static void print_screen(const struct top *top, json_t *now, double took)
{
    double cpu = (double)(number(now, "cpu-ns") - number(top->before, "cpu-ns")) / 1e9;
    json_t *export;
    size_t index;
    if (isatty(STDOUT_FILENO)) {
        fputs(CLEAR_SCREEN, stdout);
    }
    printf("qcowd %s  %lld of %lld connections  %.0f %% of a processor  %.0f MB at most\n",
           json_string_value(json_object_get(now, "version")),
           (long long)number(now, "connections"), (long long)number(now, "connections-limit"),
           took > 0 ? cpu / took * 100 : 0, (double)number(now, "memory-peak-bytes") / 1e6);
    printf("%-20s %7s %8s %8s %8s %9s %8s %8s %9s %8s %6s\n", "EXPORT", "CLIENTS", "INFLIGHT",
           "READ/s", "MB/s", "p99 ms", "WRITE/s", "MB/s", "p99 ms", "OTHER/s", "ERRORS");
    json_array_foreach(json_object_get(now, "exports"), index, export)
    {
        print_export(top, export, took);
    }
    fflush(stdout);
}

/* 0, or the exit status that ends it. */
static int show_once(struct top *top)
{
    json_t *command = json_pack("{s:s}", "execute", "qcowd-stats");
    json_t *answer = command ? qmp_client_ask(&top->client, command) : NULL;
    json_t *now = json_incref(json_object_get(answer, "return"));
    double asked_s = now_s();
    json_decref(command);
    json_decref(answer);
    if (!now) {
        return EXIT_UNREACHABLE;
    }
    print_screen(top, now, top->before ? asked_s - top->before_s : 0);
    json_decref(top->before);
    top->before = now;
    top->before_s = asked_s;
    return ferror(stdout) ? EXIT_FAILURE : 0;
}

int ctl_top(const char *path, char **words, int count)
{
    struct top top = {.interval_s = 2};
    for (int i = 0; i < count; i++) {
        if (!take_number(words[i], "interval", &top.interval_s) &&
            !take_number(words[i], "count", &top.count)) {
            log_error("'%s': must be interval=SECONDS or count=N, from 1 to 86400", words[i]);
            return EXIT_FAILURE;
        }
    }
    if (qmp_client_open(&top.client, path) < 0) {
        return EXIT_UNREACHABLE;
    }
    int exit_status = 0;
    for (unsigned shown = 0; exit_status == 0 && (top.count == 0 || shown < top.count); shown++) {
        if (shown > 0) {
            sleep(top.interval_s);
        }
        exit_status = show_once(&top);
    }
    json_decref(top.before);
    qmp_client_close(&top.client);
    return exit_status;
}
