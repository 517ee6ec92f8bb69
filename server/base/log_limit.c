/* SPDX-License-Identifier: BSD-2-Clause */
#include "base/log_limit.h"

#include <stddef.h>

#define MS_NS 1000000ULL

/* The place of this kind, one for it to have, or the shared last one. */
static struct log_kind *find(struct log_limit *limit, const char *format)
{
    struct log_kind *kind = limit->kinds;
    struct log_kind *last = limit->kinds + LOG_KINDS_MAX - 1;
    while (kind < last && kind->format && kind->format != format) {
        kind++;
    }
    kind->format = format;
    return kind;
}

enum log_verdict log_limit_ask(struct log_limit *limit, const char *format, unsigned most,
                               uint64_t now_ns, struct log_kind **kind)
{
    struct log_kind *found = find(limit, format);
    *kind = found;
    if (now_ns >= found->window_end_ns) {
        found->window_end_ns = now_ns + LIMIT_LOG_WINDOW_MS * MS_NS;
        found->shown = 0;
    }
    if (found->shown < most) {
        found->shown++;
        return found->shown == most ? LOG_SHOW_LAST : LOG_SHOW;
    }
    found->held_back++;
    limit->held_back++;
    return LOG_HOLD_BACK;
}

bool log_limit_take(struct log_limit *limit, bool all, uint64_t now_ns, struct log_kind *out)
{
    if (limit->held_back == 0) {
        return false;
    }
    for (unsigned i = 0; i < LOG_KINDS_MAX; i++) {
        struct log_kind *kind = &limit->kinds[i];
        if (kind->held_back > 0 && (all || now_ns >= kind->window_end_ns)) {
            *out = *kind;
            limit->held_back -= kind->held_back;
            kind->held_back = 0;
            return true;
        }
    }
    return false;
}
