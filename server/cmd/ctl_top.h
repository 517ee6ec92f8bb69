/* SPDX-License-Identifier: BSD-2-Clause */
/* `qcowd ctl SOCKET top`: what a running server is doing, for a person who looks. */
#ifndef QCOWD_CMD_CTL_TOP_H
#define QCOWD_CMD_CTL_TOP_H

/*
 * Shows exports and what clients do with them, again every interval=SECONDS (2), count=N times or
 * until it is interrupted or the server ends. Other words are refused. The exit status.
 */
int ctl_top(const char *path, char **words, int count);

#endif
