/* SPDX-License-Identifier: BSD-2-Clause */
/*
 * The commands beside serve: each does its work once and returns the exit status, after logging
 * what went wrong.
 */
#ifndef QCOWD_CMD_COMMANDS_H
#define QCOWD_CMD_COMMANDS_H

#include "config/options.h"

/* EXIT_SUCCESS or EXIT_FAILURE. */
int cmd_create(const struct config *config);
int cmd_info(const struct config *config);
int cmd_resize(const struct config *config);
int cmd_bitmap(const struct config *config);
int cmd_key(const struct config *config);

/*
 * As qemu-img check: 0 clean, 2 corruptions left, 3 leaks left only; 1 when it could not be done.
 */
int cmd_check(const struct config *config);

/* 0; 1: the server answered with an error; 2: it could not be reached. */
int cmd_ctl(const struct config *config);

#endif
