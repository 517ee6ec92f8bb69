/* SPDX-License-Identifier: BSD-2-Clause */
/* One queue of stopped requests and one of waiting tests for each point. One thread. */
#include "sched/break_point.h"

#include <assert.h>
#include <string.h>

#include "sched/sync.h"

struct point_state {
    unsigned armed;
    unsigned stopped;
    struct wait_queue requests;
    struct wait_queue tests;
};

static const char *const names[BREAK_POINTS] = {
    [BREAK_IN_PLACE_WRITE] = "in-place-write",
    [BREAK_DURING_COPY] = "during-copy",
    [BREAK_BEFORE_DATA_WRITE] = "before-data-write",
    [BREAK_BEFORE_PUBLISH] = "before-publish",
    [BREAK_BEFORE_DISCARD] = "before-discard",
    [BREAK_BEFORE_DATA_PUNCH] = "before-data-punch",
    [BREAK_BETWEEN_WAVES] = "between-waves",
};

unsigned break_points_armed;
static struct point_state states[BREAK_POINTS];
static bool initialised;
static bool ended;

static struct point_state *state_of(enum break_point point)
{
    assert(point < BREAK_POINTS);
    if (!initialised) {
        for (int i = 0; i < BREAK_POINTS; i++) {
            wait_queue_init(&states[i].requests);
            wait_queue_init(&states[i].tests);
        }
        initialised = true;
    }
    return &states[point];
}

const char *break_point_name(enum break_point point)
{
    return point < BREAK_POINTS ? names[point] : NULL;
}

bool break_point_find(const char *name, enum break_point *point)
{
    for (int i = 0; i < BREAK_POINTS; i++) {
        if (strcmp(names[i], name) == 0) {
            *point = (enum break_point)i;
            return true;
        }
    }
    return false;
}

void break_point_arm(enum break_point point, unsigned count)
{
    if (ended) {
        return;
    }
    state_of(point)->armed += count;
    break_points_armed += count;
}

unsigned break_point_stopped(enum break_point point)
{
    return state_of(point)->stopped;
}

void break_point_release(enum break_point point)
{
    struct point_state *state = state_of(point);
    break_points_armed -= state->armed;
    state->armed = 0;
    wait_queue_wake_all(&state->requests);
}

void break_points_end(void)
{
    ended = true;
    for (int i = 0; i < BREAK_POINTS; i++) {
        break_point_release((enum break_point)i);
        wait_queue_wake_all(&state_of((enum break_point)i)->tests);
    }
}

void co_break_point_await(enum break_point point, unsigned count)
{
    struct point_state *state = state_of(point);
    while (state->stopped < count && !ended) {
        co_wait(&state->tests);
    }
}

void co_break_point_arrive(enum break_point point)
{
    struct point_state *state = state_of(point);
    if (state->armed == 0) {
        return;
    }
    state->armed--;
    break_points_armed--;
    state->stopped++;
    wait_queue_wake_all(&state->tests);
    co_wait(&state->requests);
    state->stopped--;
}
