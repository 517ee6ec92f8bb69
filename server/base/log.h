/* SPDX-License-Identifier: BSD-2-Clause */
/*
 * One line a message, for people ("qcowd: error: text") or for programs (a JSON object), to stderr
 * or to syslog. Levels above the threshold are dropped. Any thread may log: a line is one write(2).
 *
 * Text from images and peers goes through err_sanitise() first. What a peer can cause at will goes
 * through log_client(), which is limited (base/log_limit.h); what the disk or the server itself
 * has to say never is.
 */
#ifndef QCOWD_BASE_LOG_H
#define QCOWD_BASE_LOG_H

#include <stdarg.h>

enum log_level { LOG_LEVEL_ERROR, LOG_LEVEL_WARNING, LOG_LEVEL_INFO, LOG_LEVEL_DEBUG };
enum log_format { LOG_FORMAT_TEXT, LOG_FORMAT_JSON };
enum log_target { LOG_TARGET_STDERR, LOG_TARGET_SYSLOG };

void log_set_level(enum log_level most);

/*
 * Before there are threads, and before a sandbox shuts the door on syslog's socket. Where stderr is
 * systemd's journal, lines carry their priority as the journal wants it, without being asked.
 */
void log_set_output(enum log_format format, enum log_target target);

/* Where lines go instead, as text, for tests and the simulator; NULL ends it. A sink gets all:
 * nothing is limited, as that would depend on the time. */
typedef void log_sink_fn(enum log_level level, const char *line, void *arg);
void log_set_sink(log_sink_fn *sink, void *arg);

void log_error(const char *format, ...) __attribute__((format(printf, 1, 2)));
void log_warning(const char *format, ...) __attribute__((format(printf, 1, 2)));
void log_info(const char *format, ...) __attribute__((format(printf, 1, 2)));
void log_debug(const char *format, ...) __attribute__((format(printf, 1, 2)));

/*
 * "client PEER: text", or in JSON a field of its own for the peer, and for the export unless that
 * is NULL. Lines of one kind, which is one `format`, are limited.
 */
void log_client(enum log_level level, const char *peer, const char *export_name, const char *format,
                ...) __attribute__((format(printf, 4, 5)));
void log_client_args(enum log_level level, const char *peer, const char *export_name,
                     const char *format, va_list args) __attribute__((format(printf, 4, 0)));

/* Says how many lines were held back and not yet told of: before the end. */
void log_tell_suppressed(void);

#endif
