/* SPDX-License-Identifier: BSD-2-Clause */
/*
 * The request table: which guest ranges of one image are held, by whom, and who is next.
 *
 * O5. A request that changes how a guest cluster maps holds its range exclusively from look-up to
 * publish; an in-place write holds it shared. First come, first served per range; the whole range
 * is taken at once, so there is neither deadlock nor starvation; requests that touch no common unit
 * never wait for each other. Reads hold nothing.
 *
 * O3. Every request, reads too, has a number from enter to leave. A quarantined cluster may go once
 * the oldest running request is younger than its freeing; the table says when that moves.
 *
 * A hold waits for its immediate conflicting predecessors only (those with no other conflict
 * between), found in a map of the pieces of ranges that no later exclusive hold covers: taking and
 * releasing cost O((k + 1) log n), amortised, for k immediate conflicts, whatever waits behind
 * them.
 *
 * One thread; no allocation on enter/leave (nodes live in the caller's request); holds may
 * allocate.
 */
#ifndef QCOWD_SCHED_TABLE_H
#define QCOWD_SCHED_TABLE_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "base/list.h"

struct request_table;
struct hold;

/* One running request. The caller keeps it in place between enter and leave. */
struct request {
    struct list link; /* in the table's list of running requests, oldest first */
    uint64_t number;
};

enum hold_kind { HOLD_SHARED, HOLD_EXCLUSIVE };

/*
 * `on_oldest_moved` (may be NULL) is called without suspending whenever the oldest running request
 * has left, so that the quarantine can look again. NULL on out of memory.
 */
struct request_table *request_table_create(void (*on_oldest_moved)(void *arg), void *arg);
/* Asserts that nothing runs and nothing is held. NULL is fine. */
void request_table_free(struct request_table *table);

/* Gives the request the next number; numbers start at 1 and only grow. Neither suspends. */
void request_enter(struct request_table *table, struct request *request);
void request_leave(struct request_table *table, struct request *request);

/* A new number for a request that remembers nothing of what it has looked at. Does not suspend. */
void request_renew(struct request_table *table, struct request *request);

/* The number that the next request will get. */
uint64_t request_table_next_number(const struct request_table *table);
/* The oldest running number, or request_table_next_number() when nothing runs. */
uint64_t request_table_oldest_number(const struct request_table *table);

/*
 * Takes [offset, offset + len) (len > 0, no overflow) and suspends until every earlier conflicting
 * hold on any part of it is released. Exclusive conflicts with all, shared with exclusive only; a
 * shared hold does not overtake an exclusive one that waits before it on a common part.
 * Returns 0 and *out, to be given back with hold_release(); or -ENOMEM with nothing held.
 */
int co_hold(struct request_table *table, enum hold_kind kind, uint64_t offset, uint64_t len,
            struct hold **out);

/*
 * The same for a running request, which has no number while it waits: it has looked at nothing that
 * it will trust after (O7), so it holds up no quarantine, and whoever keeps a range while waiting
 * for the quarantine does not wait for those who wait for the range.
 */
int co_hold_for(struct request_table *table, struct request *request, enum hold_kind kind,
                uint64_t offset, uint64_t len, struct hold **out);

/* Releases, waking those that now may go. Frees the hold. Does not suspend. */
void hold_release(struct hold *hold);

/*
 * Whether the held range could be taken right now without waiting; for tests and statistics. A hint
 * like everything else once a suspension has passed.
 */
bool request_table_would_wait(const struct request_table *table, enum hold_kind kind,
                              uint64_t offset, uint64_t len);

/* Holds granted and waiting, for tests and statistics. */
size_t request_table_granted(const struct request_table *table);
size_t request_table_waiting(const struct request_table *table);
/* Tree nodes visited so far: what the holds have cost, for tests and statistics. */
uint64_t request_table_steps(const struct request_table *table);

#endif
