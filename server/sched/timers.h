/* SPDX-License-Identifier: BSD-2-Clause */
/*
 * Timers ordered by deadline, and first started first fired among equals, so that a simulated run
 * is the same on every machine. A pairing heap threaded through the timers themselves: starting one
 * allocates nothing and so cannot fail.
 */
#ifndef QCOWD_SCHED_TIMERS_H
#define QCOWD_SCHED_TIMERS_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

/*
 * One-shot timer. All zero is a timer that is not armed; `fired` is the caller's to set, the rest
 * belongs to the heap. The memory stays in place until it has fired or was stopped.
 */
struct world_timer {
    void (*fired)(struct world_timer *timer);
    uint64_t deadline_ns;
    uint64_t sequence;         /* order among equal deadlines; 0 means not armed */
    struct world_timer *child; /* the first of its children */
    struct world_timer *next;  /* the next sibling */
    struct world_timer *prev;  /* the sibling before, or the parent of a first child */
};

struct timer_heap {
    struct world_timer *root;
    uint64_t last_sequence;
};

static inline bool world_timer_armed(const struct world_timer *timer)
{
    return timer->sequence != 0;
}

static inline bool timer_heap_empty(const struct timer_heap *heap)
{
    return heap->root == NULL;
}

void timer_heap_init(struct timer_heap *heap);
/* A timer that is armed already, in this heap, moves to the new deadline. */
void timer_heap_insert(struct timer_heap *heap, struct world_timer *timer, uint64_t deadline_ns);
/* Nothing happens to a timer that is not armed. */
void timer_heap_remove(struct timer_heap *heap, struct world_timer *timer);
/* The earliest deadline; UINT64_MAX when empty (ask timer_heap_empty() where that may be meant). */
uint64_t timer_heap_earliest(const struct timer_heap *heap);
/*
 * Takes out the earliest timer if its deadline is now_ns or before, NULL otherwise. It is no longer
 * armed, so that its fired() may start it again; the caller calls fired().
 */
struct world_timer *timer_heap_pop_due(struct timer_heap *heap, uint64_t now_ns);

#endif
