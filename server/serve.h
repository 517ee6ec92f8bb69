/* SPDX-License-Identifier: BSD-2-Clause */
#ifndef QCOWD_SERVE_H
#define QCOWD_SERVE_H

#include "config/options.h"

/*
 * `qcowd serve`: the server's whole life. Returns the exit status, after logging what went wrong.
 */
int serve(const struct serve_config *config);

#endif
