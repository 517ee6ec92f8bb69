/* SPDX-License-Identifier: BSD-2-Clause */
/*
 * What becomes of a request that found no room: the one place where -ENOSPC is decided.
 *
 * The promise: as long as there is room for it, a request does not fail for want of room. Room that
 * clusters take which nobody has any more is given back first: those in the quarantine (O3), by a
 * commit and by waiting for the requests that could still touch them; those that are free, but that
 * the file system still keeps space for, by punching them; and free ones that no hint knew of are
 * found. Then the request tries again.
 *
 * Those who look for room form a line, so that they do not take from each other what one of them
 * would need. Whoever waits here has no request number and nothing under way but the range that it
 * holds, so neither the quarantine nor a commit ever waits for it (O3, O5).
 */
#ifndef QCOWD_QCOW2_ROOM_H
#define QCOWD_QCOW2_ROOM_H

#include <stdbool.h>
#include <stdint.h>

struct qcow2;
struct request;

/* One request's search, on its own stack; begins as all zero. */
struct room_search {
    bool in_line;     /* first in the line, until room_search_end() */
    uint64_t gone;    /* entries that had left the quarantine when the last try began */
    uint64_t give_up; /* the time from which on nothing is waited for */
};

/*
 * To be called when a try ended in -ENOSPC, with all that the try had taken given back: locks,
 * budgets, clusters. Ranges may be held: the next try looks everything up again (O7). `progress`:
 * the try got further than the one before. 0: try again. -ENOSPC: there is nothing left to be given
 * back, or LIMIT_ROOM_SEARCH_MS have gone by without progress. -EIO: the image has failed (O8).
 * May suspend.
 */
int co_room_search(struct qcow2 *q, struct request *request, struct room_search *search,
                   bool progress);

/* Ends the search, however it went, if there was one. Does not suspend. */
void room_search_end(struct qcow2 *q, struct room_search *search);

#endif
