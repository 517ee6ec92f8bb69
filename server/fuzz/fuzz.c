/* SPDX-License-Identifier: BSD-2-Clause */
/* abort() is what libFuzzer and the replay both report together with the input. */
#include "fuzz/fuzz.h"

#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>

#include "base/log.h"
#include "io/sim.h"
#include "sched/co.h"

void fuzz_violation(const char *file, int line, const char *format, ...)
{
    va_list args;

    fprintf(stderr, "%s:%d: ", file, line);
    va_start(args, format);
    vfprintf(stderr, format, args);
    va_end(args);
    fputc('\n', stderr);
    abort();
}

void fuzz_demand_line(const char *what, const char *text)
{
    for (const char *c = text; *c; c++) {
        demand((unsigned char)*c >= ' ' && *c != 0x7f, "%s has byte 0x%02x", what,
               (unsigned char)*c);
    }
}

static void judge_line(enum log_level level, const char *line, void *arg)
{
    (void)level;
    (void)arg;
    fuzz_demand_line("a log line", line);
}

void fuzz_judge_log(void)
{
    log_set_level(LOG_LEVEL_DEBUG);
    log_set_sink(judge_line, NULL);
}

void fuzz_run(struct world *world, void (*fn)(void *arg), void *arg, uint64_t max_steps)
{
    int rc = coro_spawn(fn, arg, "fuzz");

    demand(rc == 0, "no memory for a coroutine");
    bool ended = sim_run(world, max_steps);
    demand(ended, "not at an end after %llu completions", (unsigned long long)max_steps);
    demand(coro_live_count() == 0, "%zu coroutines wait for something that never comes",
           coro_live_count());
}
