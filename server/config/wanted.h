/* SPDX-License-Identifier: BSD-2-Clause */
/* What is to be exported: the command line's exports, and behind them those of --config. */
#ifndef QCOWD_CONFIG_WANTED_H
#define QCOWD_CONFIG_WANTED_H

#include "config/export_config.h"
#include "config/options.h"
#include "io/world.h"

/*
 * Reads the file, if there is one. 0; or -errno with *wanted empty, and err. Blocks, and needs a
 * full-size stack.
 */
int wanted_read(const struct serve_config *serve, struct export_configs *wanted,
                struct errtext *err);
/* The same on a worker. May suspend. */
int co_wanted_read(const struct serve_config *serve, struct world *world,
                   struct export_configs *wanted, struct errtext *err);

#endif
