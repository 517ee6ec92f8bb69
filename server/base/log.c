/* SPDX-License-Identifier: BSD-2-Clause */
/*
 * A line is built whole on the stack and written with one write(2), so that lines of threads, and
 * of processes that share a pipe, do not mix: it is never longer than a pipe takes in one piece.
 */
#include "base/log.h"

#include <limits.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <pthread.h>
#include <sys/stat.h>
#include <syslog.h>
#include <time.h>
#include <unistd.h>

#include "base/check.h"
#include "base/log_limit.h"
#include "base/utf8.h"

#define NS_PER_S 1000000000ULL

/* What a message may take: the rest of a line is its frame. */
#define TEXT_BYTES         1160U
#define JSON_MESSAGE_BYTES 2800U
#define JSON_FIELD_BYTES   500U
#define LINE_BYTES         4096U
_Static_assert(LINE_BYTES <= PIPE_BUF, "a line would be torn by a pipe");

static _Atomic enum log_level threshold = LOG_LEVEL_WARNING;
static enum log_format line_format = LOG_FORMAT_TEXT;
static enum log_target line_target = LOG_TARGET_STDERR;
static bool stderr_is_journal;
static log_sink_fn *line_sink;
static void *line_sink_arg;

static pthread_mutex_t limit_lock = PTHREAD_MUTEX_INITIALIZER;
static struct log_limit limit;

/* One message with what is known about it. */
struct message {
    enum log_level level;
    const char *peer;        /* NULL: about no client */
    const char *export_name; /* NULL: about no export */
    uint64_t suppressed;     /* lines that this one stands for; 0: only itself */
    char text[TEXT_BYTES];
};

static const char *const level_names[] = {"error", "warning", "info", "debug"};
static const int level_priorities[] = {LOG_ERR, LOG_WARNING, LOG_INFO, LOG_DEBUG};

/* A line in the making: what does not fit is left out, and `room` is kept for what must follow. */
struct line {
    char bytes[LINE_BYTES];
    size_t used;
};

__attribute__((format(printf, 2, 3))) static void append(struct line *line, const char *format, ...)
{
    va_list args;
    size_t room = sizeof(line->bytes) - line->used;
    va_start(args, format);
    int len = vsnprintf(line->bytes + line->used, room, format, args);
    va_end(args);
    if (len > 0) {
        line->used += MIN_OF((size_t)len, room - 1);
    }
}

/* `"name":"text"` with a comma before it, at most `most` bytes of it for the text. */
static void append_json_string(struct line *line, const char *name, const char *text, size_t most)
{
    const unsigned char *at = (const unsigned char *)text;
    append(line, ",\"%s\":\"", name);
    const size_t end = line->used + most;
    while (*at != 0 && line->used + 6 <= end) {
        size_t length = utf8_sequence_bytes(at, strnlen((const char *)at, 4));
        if (length == 0) {
            append(line, "\\ufffd");
            at++;
            continue;
        }
        if (*at == '"' || *at == '\\') {
            append(line, "\\%c", *at);
        } else if (*at < 0x20 || *at == 0x7f) {
            append(line, "\\u%04x", *at);
        } else {
            append(line, "%.*s", (int)length, (const char *)at);
        }
        at += length;
    }
    append(line, "\"");
}

static void append_json(struct line *line, const struct message *message)
{
    struct timespec now;
    struct tm utc;
    clock_gettime(CLOCK_REALTIME, &now);
    gmtime_r(&now.tv_sec, &utc);
    append(line, "{\"time\":\"%04d-%02d-%02dT%02d:%02d:%02d.%06ldZ\",\"level\":\"%s\"",
           utc.tm_year + 1900, utc.tm_mon + 1, utc.tm_mday, utc.tm_hour, utc.tm_min, utc.tm_sec,
           now.tv_nsec / 1000, level_names[message->level]);
    append_json_string(line, "message", message->text, JSON_MESSAGE_BYTES);
    if (message->peer) {
        append_json_string(line, "client", message->peer, JSON_FIELD_BYTES);
    }
    if (message->export_name) {
        append_json_string(line, "export", message->export_name, JSON_FIELD_BYTES);
    }
    if (message->suppressed > 0) {
        append(line, ",\"suppressed\":%llu", (unsigned long long)message->suppressed);
    }
    append(line, "}");
}

/* What is said often, and of no other importance, goes without its level. */
static void append_text(struct line *line, const struct message *message)
{
    if (message->level != LOG_LEVEL_INFO) {
        append(line, "%s: ", level_names[message->level]);
    }
    if (message->peer) {
        append(line, "client %s: ", message->peer);
    }
    size_t begin = line->used;
    append(line, "%s", message->text);
    for (size_t i = begin; i < line->used; i++) {
        if ((unsigned char)line->bytes[i] < 0x20 || line->bytes[i] == 0x7f) {
            line->bytes[i] = '?'; /* a file's name has a right to them, a line has not */
        }
    }
}

static void emit(const struct message *message)
{
    struct line line = {.used = 0};
    bool to_stderr = line_target == LOG_TARGET_STDERR;
    if (line_sink) {
        append(&line, "qcowd: ");
        append_text(&line, message);
        line_sink(message->level, line.bytes, line_sink_arg);
        return;
    }
    if (to_stderr && stderr_is_journal) {
        append(&line, "<%d>", level_priorities[message->level]);
    } else if (to_stderr && line_format == LOG_FORMAT_TEXT) {
        append(&line, "qcowd: ");
    }
    if (line_format == LOG_FORMAT_JSON) {
        append_json(&line, message);
    } else {
        append_text(&line, message);
    }
    if (to_stderr) {
        append(&line, "\n");
        ssize_t written = write(STDERR_FILENO, line.bytes, line.used);
        (void)written; /* stderr gone: there is nobody left to tell */
    } else {
        syslog(level_priorities[message->level], "%s", line.bytes);
    }
}

static uint64_t now_ns(void)
{
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return (uint64_t)now.tv_sec * NS_PER_S + (uint64_t)now.tv_nsec;
}

/* For kinds whose time is over, or for all. */
static void tell_suppressed(bool all)
{
    struct message message = {.peer = NULL};
    struct log_kind kind;
    bool found;
    do {
        pthread_mutex_lock(&limit_lock);
        found = log_limit_take(&limit, all, now_ns(), &kind);
        pthread_mutex_unlock(&limit_lock);
        if (found) {
            message.level = (enum log_level)kind.level;
            message.suppressed = kind.held_back;
            snprintf(message.text, sizeof(message.text), "%llu lines like this suppressed: %s",
                     (unsigned long long)kind.held_back, kind.example);
            emit(&message);
        }
    } while (found);
}

/* Whether this message, which is of the kind `format`, is to be shown; may add a remark to it. */
static bool passes_limit(struct message *message, const char *format)
{
    struct log_kind *kind;
    unsigned most =
        message->level == LOG_LEVEL_DEBUG ? LIMIT_LOG_DEBUG_LINES : LIMIT_LOG_CLIENT_LINES;
    pthread_mutex_lock(&limit_lock);
    enum log_verdict verdict = log_limit_ask(&limit, format, most, now_ns(), &kind);
    if (verdict == LOG_HOLD_BACK) {
        kind->level = (int)message->level;
        snprintf(kind->example, sizeof(kind->example), "client %s: %s", message->peer,
                 message->text);
    }
    pthread_mutex_unlock(&limit_lock);
    if (verdict == LOG_SHOW_LAST) {
        size_t len = strlen(message->text);
        snprintf(message->text + len, sizeof(message->text) - len,
                 " (more lines like this are only counted, for %u s)", LIMIT_LOG_WINDOW_MS / 1000);
    }
    return verdict != LOG_HOLD_BACK;
}

__attribute__((format(printf, 2, 0))) static void log_line(enum log_level level, const char *format,
                                                           va_list args)
{
    if (level > threshold) {
        return;
    }
    struct message message = {.level = level};
    vsnprintf(message.text, sizeof(message.text), format, args);
    emit(&message);
    tell_suppressed(false);
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

void log_client_args(enum log_level level, const char *peer, const char *export_name,
                     const char *format, va_list args)
{
    if (level > threshold) {
        return;
    }
    struct message message = {.level = level, .peer = peer, .export_name = export_name};
    vsnprintf(message.text, sizeof(message.text), format, args);
    if (line_sink || passes_limit(&message, format)) {
        emit(&message);
        tell_suppressed(false);
    }
}

void log_client(enum log_level level, const char *peer, const char *export_name, const char *format,
                ...)
{
    va_list args;
    va_start(args, format);
    log_client_args(level, peer, export_name, format, args);
    va_end(args);
}

void log_tell_suppressed(void)
{
    tell_suppressed(true);
}

void log_set_level(enum log_level most)
{
    threshold = most;
}

void log_set_sink(log_sink_fn *sink, void *arg)
{
    line_sink = sink;
    line_sink_arg = arg;
}

/* $JOURNAL_STREAM is "device:inode" of the journal's end; whoever redirects stderr elsewhere leaves
 * it set. */
static bool is_journal(int fd)
{
    const char *stream = getenv("JOURNAL_STREAM");
    struct stat status;
    char *end;
    if (!stream || fstat(fd, &status) < 0) {
        return false;
    }
    unsigned long long device = strtoull(stream, &end, 10);
    return *end == ':' && device == status.st_dev && strtoull(end + 1, &end, 10) == status.st_ino &&
           *end == '\0';
}

void log_set_output(enum log_format format, enum log_target target)
{
    line_format = format;
    line_target = target;
    stderr_is_journal = is_journal(STDERR_FILENO);
    if (target == LOG_TARGET_SYSLOG) {
        openlog("qcowd", LOG_PID | LOG_NDELAY, LOG_DAEMON);
    }
}
