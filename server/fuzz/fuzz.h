/* SPDX-License-Identifier: BSD-2-Clause */
/*
 * What every fuzz target stands on. A target is one file fuzz_NAME.c that defines
 * LLVMFuzzerTestOneInput(). It is linked twice: with libFuzzer, which searches, and with replay.c,
 * which runs the inputs kept in corpus/NAME once, in every build that has tests.
 *
 * A target does not only wait for a crash: it demands what the contracts promise. Nothing outlives
 * an input but tables that are the same for all, so that an input fails alone as it failed in a
 * row.
 */
#ifndef QCOWD_FUZZ_FUZZ_H
#define QCOWD_FUZZ_FUZZ_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "io/world.h"

/* libFuzzer's names. The function returns 0; -1 keeps the input out of the corpus. */
int LLVMFuzzerTestOneInput(const uint8_t *data, size_t len);

/* Ends the process with the message, and so makes this input a finding, unless `fact` is true. */
#define demand(fact, ...)                                    \
    do {                                                     \
        if (!(fact)) {                                       \
            fuzz_violation(__FILE__, __LINE__, __VA_ARGS__); \
        }                                                    \
    } while (0)

_Noreturn void fuzz_violation(const char *file, int line, const char *format, ...)
    __attribute__((format(printf, 3, 4)));

/*
 * Messages for people: whatever a peer or an image has put into them, they are one line that does
 * nothing to a terminal. Bytes of UTF-8 may come from the path of a backing file.
 */
void fuzz_demand_line(const char *what, const char *text);

/* From now on log lines of all levels are made, judged as above, and dropped. */
void fuzz_judge_log(void);

/*
 * Runs fn(arg) in a coroutine of the simulated world until nothing is left to do; all coroutines
 * must have returned by then, and within max_steps completions: the bound that tells a hang.
 */
void fuzz_run(struct world *world, void (*fn)(void *arg), void *arg, uint64_t max_steps);

#endif
