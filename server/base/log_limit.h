/* SPDX-License-Identifier: BSD-2-Clause */
/*
 * How many lines of one kind may be logged in a while: peers that misbehave must neither fill the
 * disk with log lines nor hide what else is said. A kind is a format string, so the kinds are as
 * many as the places that log, whatever peers do; one kind's flood holds back no other. What is
 * held back is counted.
 */
#ifndef QCOWD_BASE_LOG_LIMIT_H
#define QCOWD_BASE_LOG_LIMIT_H

#include <stdbool.h>
#include <stdint.h>

#include "base/limits.h"

/* More than there are places that log; those that come later share what is left. */
#define LOG_KINDS_MAX 64U

enum log_verdict {
    LOG_SHOW,
    LOG_SHOW_LAST, /* the last one for now: the line should say so */
    LOG_HOLD_BACK,
};

struct log_kind {
    const char *format; /* NULL: unused */
    uint64_t window_end_ns;
    uint64_t held_back;
    unsigned shown;
    int level;
    char example[160]; /* of what was held back */
};

struct log_limit {
    struct log_kind kinds[LOG_KINDS_MAX];
    uint64_t held_back; /* of all kinds */
};

/* What to do with one more line, which is counted with its kind; at most `most` are shown in
 * LIMIT_LOG_WINDOW_MS. *kind stays valid for as long as the limit. */
enum log_verdict log_limit_ask(struct log_limit *limit, const char *format, unsigned most,
                               uint64_t now_ns, struct log_kind **kind);

/*
 * Takes out a kind of which lines were held back in a window that is over, or in any (`all`), and
 * forgets them: *out is a copy. False when there is none.
 */
bool log_limit_take(struct log_limit *limit, bool all, uint64_t now_ns, struct log_kind *out);

#endif
