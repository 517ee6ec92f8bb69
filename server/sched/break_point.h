/* SPDX-License-Identifier: BSD-2-Clause */
/*
 * Named places where a test can stop a request and let it go on: with them a race is not provoked
 * but written down. Nothing is armed outside of tests; an unarmed point costs one predictable
 * branch.
 */
#ifndef QCOWD_SCHED_BREAK_POINT_H
#define QCOWD_SCHED_BREAK_POINT_H

#include <stdbool.h>

enum break_point {
    BREAK_IN_PLACE_WRITE,    /* held, looked up, about to write in place */
    BREAK_DURING_COPY,       /* copy on write: padding read, nothing written */
    BREAK_BEFORE_DATA_WRITE, /* clusters allocated, about to write head + data + tail */
    BREAK_BEFORE_PUBLISH,    /* data written, mapping not changed yet */
    BREAK_BEFORE_DISCARD,    /* held, about to change the mapping to zero */
    BREAK_BEFORE_DATA_PUNCH, /* held, mapping changed, about to punch the data file */
    BREAK_BETWEEN_WAVES,     /* counts durable, mappings not written yet */
    BREAK_POINTS
};

/* "in-place-write" and so on; NULL past the last. */
const char *break_point_name(enum break_point point);
/* False when there is no such name. */
bool break_point_find(const char *name, enum break_point *point);

/* The next `count` arrivals at the point stop there. */
void break_point_arm(enum break_point point, unsigned count);
/* Requests that stand there now. */
unsigned break_point_stopped(enum break_point point);
/* Disarms the point and lets everybody there go on. */
void break_point_release(enum break_point point);
/* Releases all points for good: nobody stops, and nobody waits for it, from now on. */
void break_points_end(void);
/* Suspends until at least `count` stand there. */
void co_break_point_await(enum break_point point, unsigned count);

extern unsigned break_points_armed; /* sum over all points */
void co_break_point_arrive(enum break_point point);

/* In the code under test. May suspend when a test has armed it. */
static inline void co_break_point(enum break_point point)
{
    if (__builtin_expect(break_points_armed != 0, 0)) {
        co_break_point_arrive(point);
    }
}

#endif
