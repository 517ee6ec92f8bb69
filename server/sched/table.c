/* SPDX-License-Identifier: BSD-2-Clause */
/*
 * The model. Put all holds in the order in which they came; a hold is granted once no earlier,
 * unreleased hold that conflicts with it touches its range. That order is a graph without cycles,
 * and this file keeps the few edges of it that matter.
 *
 * Two interval trees hold what is still visible from the end of the queue, as pieces of ranges:
 *
 *   exclusive   where the last one to come, of all exclusive holds, was this one. These pieces are
 *               disjoint;
 *   shared      where no exclusive hold has come since. These may overlap.
 *
 * A new exclusive hold waits for the owner of every piece that it touches, cuts its range out of
 * all those pieces, and becomes a piece itself: whoever comes later and touches the range there
 * waits for it, and through it for what it covered. A new shared hold waits for the owners of the
 * exclusive pieces it touches and cuts nothing.
 *
 * Why it is right: a part cut out of a hold's range is covered by a later exclusive hold, which
 * cannot be released before the one it waits for. So for every live hold, each point of its range
 * is in one of its pieces, or below a live exclusive piece that waits for it, directly or not.
 *
 * Why it is cheap: two exclusive holds cannot alternate along the line more than twice (the later
 * range is contiguous), so k owners have at most 2k - 1 exclusive pieces. A cut adds at most one
 * piece for each pair of hold and hold waited for, and every other piece touched is gone for good
 * or has lost an end. Hence O((k + 1) log n) amortised. Ten thousand nested shared holds are ten
 * thousand pieces, not a segment for each border with a list of all that cover it.
 *
 * Edges live in the block of the hold that waits: one allocation a hold, and one more for each
 * piece that is cut in two. All are made before anything is changed, so that -ENOMEM leaves no
 * trace.
 */
#include "sched/table.h"

#include <assert.h>
#include <errno.h>
#include <stdlib.h>

#include "base/check.h"
#include "sched/co.h"
#include "sched/interval.h"

struct request_table {
    struct list running; /* requests, oldest first */
    uint64_t next_number;
    void (*on_oldest_moved)(void *arg);
    void *on_oldest_moved_arg;

    struct interval_tree exclusive;
    struct interval_tree shared;
    uint64_t last_mark;
    size_t granted;
    size_t waiting;
};

/* A visible part of a hold's range. */
struct piece {
    struct interval interval;
    struct list link; /* in the pieces of its hold */
    struct hold *hold;
};

/* "dependant waits for the hold in whose list this is". */
struct edge {
    struct edge *next;
    struct hold *dependant;
};

struct hold {
    struct request_table *table;
    enum hold_kind kind;
    struct list pieces;
    struct piece whole;      /* the first piece, as long as any of its range is visible */
    struct edge *dependants; /* in order of arrival, which is the order of waking */
    struct edge **last_link; /* where the next dependant is appended */
    size_t blockers;         /* edges to earlier holds that are not released yet */
    struct coro *waiter;     /* suspended in co_hold(); NULL once granted */
    uint64_t mark;           /* the last walk that counted this hold */
    struct edge edges[];
};

/* What a new hold will need, found before anything is changed. */
struct survey {
    size_t blockers;
    size_t splits;
};

/* --- requests ------------------------------------------------------------------------------- */

struct request_table *request_table_create(void (*on_oldest_moved)(void *arg), void *arg)
{
    struct request_table *table = calloc(1, sizeof(*table));

    if (table == NULL) {
        return NULL;
    }
    list_init(&table->running);
    table->next_number = 1;
    table->on_oldest_moved = on_oldest_moved;
    table->on_oldest_moved_arg = arg;
    return table;
}

void request_table_free(struct request_table *table)
{
    if (table == NULL) {
        return;
    }
    assert(list_empty(&table->running));
    assert(table->granted == 0 && table->waiting == 0);
    assert(table->exclusive.root == NULL && table->shared.root == NULL);
    free(table);
}

void request_enter(struct request_table *table, struct request *request)
{
    request->number = table->next_number++;
    list_push_back(&table->running, &request->link);
}

void request_leave(struct request_table *table, struct request *request)
{
    bool was_oldest = table->running.next == &request->link;

    assert(list_linked(&request->link));
    list_remove(&request->link);
    /* O3 */
    if (was_oldest && table->on_oldest_moved != NULL) {
        table->on_oldest_moved(table->on_oldest_moved_arg);
    }
}

void request_renew(struct request_table *table, struct request *request)
{
    request_leave(table, request);
    request_enter(table, request);
}

uint64_t request_table_next_number(const struct request_table *table)
{
    return table->next_number;
}

uint64_t request_table_oldest_number(const struct request_table *table)
{
    if (list_empty(&table->running)) {
        return table->next_number;
    }
    return list_entry(table->running.next, struct request, link)->number;
}

/* --- pieces --------------------------------------------------------------------------------- */

static struct piece *piece_of(struct interval *interval)
{
    return container_of(interval, struct piece, interval);
}

static struct interval_tree *tree_of(struct request_table *table, enum hold_kind kind)
{
    return kind == HOLD_EXCLUSIVE ? &table->exclusive : &table->shared;
}

static void piece_add(struct hold *hold, struct piece *piece, uint64_t offset, uint64_t end)
{
    piece->hold = hold;
    piece->interval.offset = offset;
    piece->interval.end = end;
    list_push_back(&hold->pieces, &piece->link);
    interval_insert(tree_of(hold->table, hold->kind), &piece->interval);
}

static void piece_remove(struct piece *piece)
{
    struct hold *hold = piece->hold;

    interval_remove(tree_of(hold->table, hold->kind), &piece->interval);
    list_remove(&piece->link);
    if (piece != &hold->whole) {
        free(piece);
    }
}

static bool would_split(const struct interval *piece, uint64_t offset, uint64_t end)
{
    return piece->offset < offset && piece->end > end;
}

/* Cuts [offset, end), which it touches, out of the piece. Takes a spare when it leaves two. */
static void piece_cut(struct piece *piece, uint64_t offset, uint64_t end, struct list *spares)
{
    struct interval *interval = &piece->interval;
    struct interval_tree *tree = tree_of(piece->hold->table, piece->hold->kind);
    uint64_t old_end = interval->end;

    if (would_split(interval, offset, end)) {
        struct list *spare = list_pop_front(spares);
        assert(spare != NULL);
        interval_set_end(tree, interval, offset);
        piece_add(piece->hold, list_entry(spare, struct piece, link), end, old_end);
    } else if (interval->offset < offset) {
        interval_set_end(tree, interval, offset);
    } else if (interval->end > end) {
        interval_remove(tree, interval);
        interval->offset = end;
        interval_insert(tree, interval);
    } else {
        piece_remove(piece);
    }
}

static void free_spares(struct list *spares)
{
    for (struct list *link = list_pop_front(spares); link != NULL; link = list_pop_front(spares)) {
        free(list_entry(link, struct piece, link));
    }
}

static int make_spares(size_t count, struct list *spares)
{
    for (size_t i = 0; i < count; i++) {
        struct piece *piece = malloc(sizeof(*piece));
        if (piece == NULL) {
            free_spares(spares);
            return -ENOMEM;
        }
        list_push_back(spares, &piece->link);
    }
    return 0;
}

/* --- holds ---------------------------------------------------------------------------------- */

/* Whether this is the first time in the walk that the hold is met, however many pieces it has. */
static bool first_met(struct hold *hold, uint64_t mark)
{
    if (hold->mark == mark) {
        return false;
    }
    hold->mark = mark;
    return true;
}

static void survey_tree(struct interval_tree *tree, uint64_t offset, uint64_t end, uint64_t mark,
                        struct survey *survey)
{
    for (struct interval *at = interval_first(tree, offset, end); at != NULL;
         at = interval_next(tree, at, offset, end)) {
        survey->blockers += first_met(piece_of(at)->hold, mark);
        survey->splits += would_split(at, offset, end);
    }
}

static struct survey survey_range(struct request_table *table, enum hold_kind kind, uint64_t offset,
                                  uint64_t end)
{
    struct survey survey = {0, 0};
    uint64_t mark = ++table->last_mark;

    survey_tree(&table->exclusive, offset, end, mark, &survey);
    if (kind == HOLD_EXCLUSIVE) {
        survey_tree(&table->shared, offset, end, mark, &survey);
    } else {
        survey.splits = 0; /* a shared hold cuts nothing */
    }
    return survey;
}

static void wait_for(struct hold *hold, struct hold *blocker)
{
    struct edge *edge = &hold->edges[hold->blockers++];

    edge->dependant = hold;
    edge->next = NULL;
    *blocker->last_link = edge;
    blocker->last_link = &edge->next;
}

/* Makes the hold wait for the owner of every piece that it touches, and cuts it out of them. */
static void cover_tree(struct hold *hold, struct interval_tree *tree, uint64_t offset, uint64_t end,
                       uint64_t mark, struct list *spares)
{
    struct interval *at = interval_first(tree, offset, end);

    while (at != NULL) {
        struct piece *piece = piece_of(at);

        if (first_met(piece->hold, mark)) {
            wait_for(hold, piece->hold);
        }
        piece_cut(piece, offset, end, spares);
        at = interval_first(tree, offset, end);
    }
}

/* The same without cutting: exclusive holds stay visible past the shared ones that came later. */
static void queue_behind_exclusive(struct hold *hold, uint64_t offset, uint64_t end, uint64_t mark)
{
    struct interval_tree *tree = &hold->table->exclusive;

    for (struct interval *at = interval_first(tree, offset, end); at != NULL;
         at = interval_next(tree, at, offset, end)) {
        struct hold *blocker = piece_of(at)->hold;

        if (first_met(blocker, mark)) {
            wait_for(hold, blocker);
        }
    }
}

static struct hold *hold_create(struct request_table *table, enum hold_kind kind, size_t blockers)
{
    struct hold *hold = malloc(sizeof(*hold) + blockers * sizeof(hold->edges[0]));

    if (hold == NULL) {
        return NULL;
    }
    hold->table = table;
    hold->kind = kind;
    list_init(&hold->pieces);
    hold->dependants = NULL;
    hold->last_link = &hold->dependants;
    hold->blockers = 0;
    hold->waiter = NULL;
    hold->mark = 0;
    return hold;
}

/* Enters the queue. Takes effect in one step, so arrival order is the order of the calls. */
static int hold_enqueue(struct request_table *table, enum hold_kind kind, uint64_t offset,
                        uint64_t end, struct hold **out)
{
    struct survey survey = survey_range(table, kind, offset, end);
    struct hold *hold = hold_create(table, kind, survey.blockers);
    struct list spares = LIST_INIT(spares);
    uint64_t mark = ++table->last_mark;

    if (hold == NULL) {
        return -ENOMEM;
    }
    if (make_spares(survey.splits, &spares) != 0) {
        free(hold);
        return -ENOMEM;
    }
    if (kind == HOLD_EXCLUSIVE) {
        cover_tree(hold, &table->exclusive, offset, end, mark, &spares);
        cover_tree(hold, &table->shared, offset, end, mark, &spares);
    } else {
        queue_behind_exclusive(hold, offset, end, mark);
    }
    assert(hold->blockers == survey.blockers && list_empty(&spares));
    piece_add(hold, &hold->whole, offset, end);
    *out = hold;
    return 0;
}

/* Suspends until the hold is granted; the request, if there is one, has no number meanwhile. */
static void co_await_grant(struct request_table *table, struct request *request, struct hold *hold)
{
    table->waiting++;
    hold->waiter = coro_self();
    if (request != NULL) {
        request_leave(table, request);
    }
    co_suspend();
    assert(hold->blockers == 0 && hold->waiter == NULL);
    if (request != NULL) {
        request_enter(table, request);
    }
}

static int co_take_hold(struct request_table *table, struct request *request, enum hold_kind kind,
                        uint64_t offset, uint64_t len, struct hold **out)
{
    struct hold *hold;
    uint64_t end;
    int result;

    bool fits = add_u64(offset, len, &end);
    assert(len > 0 && fits);
    result = hold_enqueue(table, kind, offset, end, &hold); /* O5 */
    if (result < 0) {
        return result;
    }
    if (hold->blockers == 0) {
        table->granted++;
    } else {
        co_await_grant(table, request, hold);
    }
    *out = hold;
    return 0;
}

int co_hold(struct request_table *table, enum hold_kind kind, uint64_t offset, uint64_t len,
            struct hold **out)
{
    return co_take_hold(table, NULL, kind, offset, len, out);
}

int co_hold_for(struct request_table *table, struct request *request, enum hold_kind kind,
                uint64_t offset, uint64_t len, struct hold **out)
{
    return co_take_hold(table, request, kind, offset, len, out);
}

/* A blocker is gone; the last one grants. Granted here, not when the coroutine runs. */
static void blocker_gone(struct hold *hold)
{
    assert(hold->blockers > 0);
    hold->blockers--;
    if (hold->blockers == 0) {
        struct coro *waiter = hold->waiter;

        hold->waiter = NULL;
        hold->table->waiting--;
        hold->table->granted++;
        coro_wake(waiter);
    }
}

void hold_release(struct hold *hold)
{
    assert(hold->blockers == 0 && hold->waiter == NULL);
    while (!list_empty(&hold->pieces)) {
        piece_remove(list_entry(hold->pieces.next, struct piece, link));
    }
    hold->table->granted--;
    for (struct edge *edge = hold->dependants, *next; edge != NULL; edge = next) {
        next = edge->next;
        blocker_gone(edge->dependant);
    }
    free(hold);
}

/* --- tests and statistics ------------------------------------------------------------------- */

bool request_table_would_wait(const struct request_table *table, enum hold_kind kind,
                              uint64_t offset, uint64_t len)
{
    uint64_t end;
    bool fits = add_u64(offset, len, &end);

    assert(len > 0 && fits);
    return interval_any(&table->exclusive, offset, end) ||
           (kind == HOLD_EXCLUSIVE && interval_any(&table->shared, offset, end));
}

size_t request_table_granted(const struct request_table *table)
{
    return table->granted;
}

size_t request_table_waiting(const struct request_table *table)
{
    return table->waiting;
}

uint64_t request_table_steps(const struct request_table *table)
{
    return table->exclusive.steps + table->shared.steps;
}
