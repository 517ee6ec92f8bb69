/* SPDX-License-Identifier: BSD-2-Clause */
/* A line is built whole and written with one write(2), so that lines of threads do not mix. */
#include "base/log.h"

#include <stdarg.h>
#include <stdio.h>
#include <unistd.h>

static enum log_level threshold = LOG_LEVEL_WARNING;
static log_sink_fn *line_sink;
static void *line_sink_arg;

void log_set_level(enum log_level most)
{
    threshold = most;
}

void log_set_sink(log_sink_fn *sink, void *arg)
{
    line_sink = sink;
    line_sink_arg = arg;
}

__attribute__((format(printf, 2, 0))) static void log_line(enum log_level level, const char *format,
                                                           va_list args)
{
    static const char *const names[] = {"error: ", "warning: ", "", "debug: "};
    char line[1200];

    if (level > threshold) {
        return;
    }
    int used = snprintf(line, sizeof(line), "qcowd: %s", names[level]);
    int more = vsnprintf(line + used, sizeof(line) - (size_t)used - 1, format, args);
    if (more < 0) {
        return;
    }
    used += more;
    if ((size_t)used > sizeof(line) - 2) {
        used = (int)sizeof(line) - 2;
    }
    if (line_sink) {
        line_sink(level, line, line_sink_arg);
        return;
    }
    line[used] = '\n';
    ssize_t written = write(STDERR_FILENO, line, (size_t)used + 1);
    (void)written; /* stderr gone: there is nobody left to tell */
}

#define LOG_FUNCTION(name, level)      \
    void name(const char *format, ...) \
    {                                  \
        va_list args;                  \
        va_start(args, format);        \
        log_line(level, format, args); \
        va_end(args);                  \
    }

LOG_FUNCTION(log_error, LOG_LEVEL_ERROR)
LOG_FUNCTION(log_warning, LOG_LEVEL_WARNING)
LOG_FUNCTION(log_info, LOG_LEVEL_INFO)
LOG_FUNCTION(log_debug, LOG_LEVEL_DEBUG)
