/* SPDX-License-Identifier: BSD-2-Clause */
/*
 * A search is bounded by what the quarantine holds, as each try after the first two needs an entry
 * to have left it, and by time, as requests that run on and on, and others who take what is given
 * back, could draw it out.
 */
#include "qcow2/room.h"

#include <errno.h>

#include "base/limits.h"
#include "qcow2/alloc.h"
#include "qcow2/commit.h"
#include "qcow2/engine.h"

/* Waits until some of the quarantine has left it since the last try. 0, -ENOSPC, -EIO. */
static int co_wait_for_quarantine(struct qcow2 *q, const struct room_search *search)
{
    struct quarantine *quarantine = &q->quarantine;

    while (!q->failed && quarantine->gone == search->gone) {
        uint64_t now = world_now_ns(q->world);
        if (quarantine_empty(quarantine) || now >= search->give_up) {
            return -ENOSPC;
        }
        if (quarantine_wants_commit(q)) {
            int ret = co_commit(q);
            if (ret < 0) {
                return ret;
            }
        }
        quarantine_kick(q);
        if (quarantine->gone == search->gone && !quarantine_empty(quarantine)) {
            co_wait_timeout(q->world, &quarantine->left, search->give_up - now);
        }
    }
    return q->failed ? -EIO : 0;
}

static int co_find_room(struct qcow2 *q, struct room_search *search, bool progress)
{
    bool first = !search->in_line;

    if (first || progress) {
        search->give_up = world_now_ns(q->world) + LIMIT_ROOM_SEARCH_MS * 1000000ULL;
    }
    if (first) {
        co_mutex_lock(&q->room_line);
        search->in_line = true;
        search->gone = q->quarantine.gone;
        q->alloc.tight = true;
    }
    int ret = co_wait_for_quarantine(q, search);
    if (ret == -ENOSPC && (first || progress)) {
        /* One more try all the same: a request that failed meanwhile gives back, too, what it had
         * taken, and the hints may not have known of all that is free. */
        ret = 0;
    }
    search->gone = q->quarantine.gone;
    return ret == 0 ? co_alloc_search(q) : ret;
}

int co_room_search(struct qcow2 *q, struct request *request, struct room_search *search,
                   bool progress)
{
    request_leave(q->table, request);
    int ret = co_find_room(q, search, progress);
    request_enter(q->table, request);
    return ret;
}

void room_search_end(struct qcow2 *q, struct room_search *search)
{
    if (search->in_line) {
        q->alloc.tight = false;
        search->in_line = false;
        co_mutex_unlock(&q->room_line);
    }
}
