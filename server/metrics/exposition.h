/* SPDX-License-Identifier: BSD-2-Clause */
/* Statistics as Prometheus reads them: its text format, version 0.0.4. Pure. */
#ifndef QCOWD_METRICS_EXPOSITION_H
#define QCOWD_METRICS_EXPOSITION_H

#include <stddef.h>

struct server_statistics;

/* malloc'ed, *len bytes. NULL: out of memory. */
char *exposition(const struct server_statistics *statistics, size_t *len);

#endif
