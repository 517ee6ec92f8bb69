/* SPDX-License-Identifier: BSD-2-Clause */
/*
 * One line a message, to stderr: "qcowd: error: text". Levels above the threshold are dropped.
 * Text from images and peers goes through err_sanitise() first.
 */
#ifndef QCOWD_BASE_LOG_H
#define QCOWD_BASE_LOG_H

enum log_level { LOG_LEVEL_ERROR, LOG_LEVEL_WARNING, LOG_LEVEL_INFO, LOG_LEVEL_DEBUG };

void log_set_level(enum log_level most);

/* Where lines go instead of stderr, for tests and the simulator; NULL restores stderr. */
typedef void log_sink_fn(enum log_level level, const char *line, void *arg);
void log_set_sink(log_sink_fn *sink, void *arg);

void log_error(const char *format, ...) __attribute__((format(printf, 1, 2)));
void log_warning(const char *format, ...) __attribute__((format(printf, 1, 2)));
void log_info(const char *format, ...) __attribute__((format(printf, 1, 2)));
void log_debug(const char *format, ...) __attribute__((format(printf, 1, 2)));

#endif
