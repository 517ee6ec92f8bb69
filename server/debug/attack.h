/* SPDX-License-Identifier: BSD-2-Clause */
/*
 * What an intruder would do from within, for the tests of the sandbox: only in qcowd-debug.
 */
#ifndef QCOWD_DEBUG_ATTACK_H
#define QCOWD_DEBUG_ATTACK_H

#include <stddef.h>

struct loop;
struct sandbox_simulation;

/*
 * Tries one of: open PATH, worker-open PATH, ring-open PATH, create PATH, remove PATH, socket,
 * connect PORT, spawn, execute, executable-memory, signal PID, new-ring. "ok", or "refused: ERROR".
 * execute does not return: the process is killed, or is another program.
 */
void co_attack(struct loop *loop, const char *what, const char *argument, char *answer,
               size_t answer_bytes);

/*
 * From $QCOWD_SANDBOX_SIMULATE, words with spaces between: landlock=ABI (0: none), no-seccomp,
 * report.
 */
void attack_simulation(struct sandbox_simulation *simulation);

#endif
