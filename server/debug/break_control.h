/* SPDX-License-Identifier: BSD-2-Clause */
/*
 * Break points of a running server, for tests: only in the binary that is built for them
 * (qcowd-debug), never in the one that is installed.
 *
 * A Unix socket at $QCOWD_BREAK_SOCKET takes one client at a time, and from it lines:
 *   arm NAME COUNT       the next COUNT requests stop there       -> ok
 *   wait NAME COUNT      until so many stand there                -> ok
 *   release NAME         let all go on                            -> ok
 *   attack WHAT [ARG]    do what an intruder would (attack.h)     -> ok, or refused: ERROR
 * Anything else gets "error: ...".
 */
#ifndef QCOWD_DEBUG_BREAK_CONTROL_H
#define QCOWD_DEBUG_BREAK_CONTROL_H

#include "base/errtext.h"

struct loop;

/* Listens if the environment asks for it. 0; -errno with err. */
int break_control_start(struct loop *loop, struct errtext *err);
/* Releases every point and ends. May suspend. */
void co_break_control_stop(void);

#endif
