/* SPDX-License-Identifier: BSD-2-Clause */
/*
 * The request table: order, fairness and cost by hand, and random holds against the definition: a
 * hold is granted exactly when no earlier, unreleased, conflicting one touches its range.
 *
 * A task is a coroutine that takes one hold and ends; the test, on the driver's stack, releases it.
 */
#include <check.h>
#include <errno.h>
#include <stdlib.h>

#include "base/check.h"
#include "base/testing.h"
#include "sched/co.h"
#include "sched/table.h"

/* In hot loops: ck_assert() tells the parent process about each check that holds. */
#define REQUIRE(condition)                  \
    do {                                    \
        if (!(condition)) {                 \
            ck_abort_msg("%s", #condition); \
        }                                   \
    } while (0)

#define MANY 10000U

/* Of the table's allocations, the one that fails: 0 none, 1 the next one. Linked with --wrap. */
static unsigned failing_malloc;

void *__real_malloc(size_t bytes);
void *__wrap_malloc(size_t bytes);

void *__wrap_malloc(size_t bytes)
{
    if (failing_malloc > 0 && --failing_malloc == 0) {
        return NULL;
    }
    return __real_malloc(bytes);
}

struct task {
    struct request_table *table;
    enum hold_kind kind;
    uint64_t offset;
    uint64_t len;
    struct hold *hold; /* once granted */
    int result;
};

/* In the order of grants; the random test has more of them than are of interest. */
static struct task *by_grant[MANY];
static unsigned grants;

static void take(void *arg)
{
    struct task *task = arg;

    task->result = co_hold(task->table, task->kind, task->offset, task->len, &task->hold);
    if (task->result == 0) {
        by_grant[grants++ % MANY] = task;
    }
}

static void start(struct request_table *table, struct task *task, enum hold_kind kind,
                  uint64_t offset, uint64_t len)
{
    *task = (struct task){.table = table, .kind = kind, .offset = offset, .len = len, .result = 1};
    REQUIRE(coro_spawn(take, task, "task") == 0);
    coro_run_ready();
}

static void release(struct task *task)
{
    REQUIRE(task->hold != NULL);
    hold_release(task->hold);
    task->hold = NULL;
    coro_run_ready();
}

static struct request_table *table_new(void)
{
    struct request_table *table = request_table_create(NULL, NULL);

    ck_assert(table != NULL);
    grants = 0;
    return table;
}

static void table_end(struct request_table *table)
{
    ck_assert_uint_eq(request_table_granted(table), 0);
    ck_assert_uint_eq(request_table_waiting(table), 0);
    ck_assert(!request_table_would_wait(table, HOLD_EXCLUSIVE, 0, UINT64_MAX));
    request_table_free(table);
    ck_assert_uint_eq(coro_live_count(), 0);
    coro_pool_drain();
}

/* --- requests ------------------------------------------------------------------------------- */

static void count_call(void *arg)
{
    ++*(unsigned *)arg;
}

START_TEST(numbers_grow_and_oldest_moves)
{
    unsigned moved = 0;
    struct request_table *table = request_table_create(count_call, &moved);
    struct request first, second, third;

    ck_assert(request_table_next_number(table) == 1);
    ck_assert(request_table_oldest_number(table) == 1);
    request_enter(table, &first);
    request_enter(table, &second);
    ck_assert(first.number == 1 && second.number == 2);
    ck_assert(request_table_oldest_number(table) == 1);
    request_leave(table, &first);
    ck_assert_uint_eq(moved, 1);
    ck_assert(request_table_oldest_number(table) == 2);
    request_enter(table, &third);
    request_leave(table, &third);
    ck_assert_uint_eq(moved, 1);
    request_leave(table, &second);
    ck_assert_uint_eq(moved, 2);
    ck_assert(request_table_oldest_number(table) == 4);
    ck_assert(request_table_next_number(table) == 4);
    request_table_free(table);
    request_table_free(NULL);
}
END_TEST

START_TEST(renewed_number_is_the_youngest)
{
    unsigned moved = 0;
    struct request_table *table = request_table_create(count_call, &moved);
    struct request first, second;

    request_enter(table, &first);
    request_enter(table, &second);
    request_renew(table, &first);
    ck_assert_uint_eq(moved, 1);
    ck_assert(first.number == 3 && request_table_oldest_number(table) == 2);
    request_leave(table, &second);
    ck_assert(request_table_oldest_number(table) == 3);
    request_leave(table, &first);
    request_table_free(table);
}
END_TEST

struct requester {
    struct request_table *table;
    struct request request;
    struct hold *hold;
};

static void take_for_request(void *arg)
{
    struct requester *requester = arg;

    request_enter(requester->table, &requester->request);
    int ret =
        co_hold_for(requester->table, &requester->request, HOLD_EXCLUSIVE, 0, 10, &requester->hold);
    REQUIRE(ret == 0);
}

/* Without a wait the number stays; who waits has none, and gets the youngest with its turn. */
START_TEST(no_number_while_waiting)
{
    struct request_table *table = table_new();
    struct requester early = {.table = table}, late = {.table = table};
    struct request between;

    REQUIRE(coro_spawn(take_for_request, &early, "early") == 0);
    REQUIRE(coro_spawn(take_for_request, &late, "late") == 0);
    coro_run_ready();
    request_enter(table, &between);
    ck_assert(early.hold != NULL && early.request.number == 1);
    ck_assert(late.hold == NULL && between.number == 3);
    request_leave(table, &early.request);
    ck_assert(request_table_oldest_number(table) == 3);
    hold_release(early.hold);
    coro_run_ready();
    ck_assert(late.hold != NULL && late.request.number == 4);
    request_leave(table, &between);
    ck_assert(request_table_oldest_number(table) == 4);
    request_leave(table, &late.request);
    hold_release(late.hold);
    table_end(table);
}
END_TEST

/* --- holds by hand -------------------------------------------------------------------------- */

START_TEST(uncontended_hold_needs_no_coroutine)
{
    struct request_table *table = table_new();
    struct hold *one, *two;

    ck_assert_int_eq(co_hold(table, HOLD_EXCLUSIVE, 0, 10, &one), 0);
    ck_assert_int_eq(co_hold(table, HOLD_EXCLUSIVE, 10, UINT64_MAX - 10, &two), 0);
    ck_assert_uint_eq(request_table_granted(table), 2);
    hold_release(one);
    hold_release(two);
    table_end(table);
}
END_TEST

START_TEST(exclusive_excludes_and_shared_share)
{
    struct request_table *table = table_new();
    struct task writer, reader[2], late_writer;

    start(table, &writer, HOLD_EXCLUSIVE, 0, 10);
    start(table, &reader[0], HOLD_SHARED, 9, 10);
    start(table, &reader[1], HOLD_SHARED, 0, 1);
    start(table, &late_writer, HOLD_EXCLUSIVE, 0, 100);
    ck_assert(writer.hold != NULL);
    ck_assert(reader[0].hold == NULL && reader[1].hold == NULL && late_writer.hold == NULL);
    ck_assert_uint_eq(request_table_waiting(table), 3);
    release(&writer);
    ck_assert(reader[0].hold != NULL && reader[1].hold != NULL && late_writer.hold == NULL);
    release(&reader[1]);
    ck_assert(late_writer.hold == NULL);
    release(&reader[0]);
    ck_assert(late_writer.hold != NULL);
    release(&late_writer);
    table_end(table);
}
END_TEST

START_TEST(shared_does_not_overtake_waiting_exclusive)
{
    struct request_table *table = table_new();
    struct task reader, writer, late_reader, elsewhere;

    start(table, &reader, HOLD_SHARED, 0, 10);
    start(table, &writer, HOLD_EXCLUSIVE, 5, 10);
    start(table, &late_reader, HOLD_SHARED, 12, 10);
    start(table, &elsewhere, HOLD_SHARED, 0, 5);
    ck_assert(reader.hold != NULL && writer.hold == NULL);
    ck_assert(late_reader.hold == NULL); /* free there now, but the writer came first */
    ck_assert(elsewhere.hold != NULL);
    release(&reader);
    ck_assert(writer.hold != NULL && late_reader.hold == NULL);
    release(&writer);
    ck_assert(late_reader.hold != NULL);
    release(&late_reader);
    release(&elsewhere);
    table_end(table);
}
END_TEST

START_TEST(woken_in_order_of_arrival)
{
    struct request_table *table = table_new();
    struct task writer, waiting[50];

    start(table, &writer, HOLD_EXCLUSIVE, 0, 1000);
    for (unsigned i = 0; i < ARRAY_LEN(waiting); i++) {
        start(table, &waiting[i], HOLD_EXCLUSIVE, (i * 7 % 50) * 10, 10);
    }
    release(&writer);
    for (unsigned i = 0; i < ARRAY_LEN(waiting); i++) {
        ck_assert(by_grant[i + 1] == &waiting[i]);
        release(&waiting[i]);
    }
    table_end(table);
}
END_TEST

/* A hold in many pieces is one predecessor: released once, waited for once. */
START_TEST(predecessor_in_pieces_counts_once)
{
    struct request_table *table = table_new();
    struct task wide, narrow[10], last, shared;

    start(table, &wide, HOLD_SHARED, 0, 100);
    for (unsigned i = 0; i < ARRAY_LEN(narrow); i++) {
        start(table, &narrow[i], HOLD_EXCLUSIVE, i * 10 + 3, 3);
    }
    start(table, &last, HOLD_EXCLUSIVE, 1, 98);
    start(table, &shared, HOLD_SHARED, 0, 100);
    ck_assert(shared.hold == NULL);
    release(&wide);
    for (unsigned i = 0; i < ARRAY_LEN(narrow); i++) {
        ck_assert(last.hold == NULL);
        release(&narrow[i]);
    }
    ck_assert(last.hold != NULL && shared.hold == NULL);
    release(&last);
    release(&shared);
    table_end(table);
}
END_TEST

START_TEST(out_of_memory_leaves_no_trace)
{
    struct request_table *table = table_new();
    struct task left, right;
    struct hold *hold;

    /* The middle hold needs a block and one piece for each of the two that it cuts in two. */
    start(table, &left, HOLD_SHARED, 0, 100);
    start(table, &right, HOLD_SHARED, 10, 80);
    for (unsigned nth = 1; nth <= 3; nth++) {
        failing_malloc = nth;
        ck_assert_int_eq(co_hold(table, HOLD_EXCLUSIVE, 40, 20, &hold), -ENOMEM);
        ck_assert_uint_eq(failing_malloc, 0);
        ck_assert_uint_eq(request_table_granted(table), 2);
        ck_assert_uint_eq(request_table_waiting(table), 0);
        ck_assert(!request_table_would_wait(table, HOLD_SHARED, 0, 100));
    }
    release(&left);
    release(&right);
    table_end(table);
}
END_TEST

/* --- cost ----------------------------------------------------------------------------------- */

enum shape {
    ALL_EXCLUSIVE_ON_ONE_RANGE,
    ALL_SHARED_ON_ONE_RANGE,
    ALL_DISJOINT,
    ALTERNATING_ON_ONE_RANGE,
    WIDE_EXCLUSIVE_OVER_NARROW,
    WIDE_SHARED_OVER_NARROW,
    NARROW_OVER_WIDE_EXCLUSIVE,
    NESTED_INWARDS_EXCLUSIVE,
    NESTED_OUTWARDS_EXCLUSIVE,
    NESTED_SHARED,
    STAIRCASE,
    SHARED_THEN_EXCLUSIVE_ON_ONE_RANGE,
    RANDOM_SHORT,
    RANDOM_WIDE,
    SHAPES
};

static uint64_t random_state;

static uint64_t random_below(uint64_t bound)
{
    random_state = random_state * 6364136223846793005ULL + 1442695040888963407ULL;
    return (random_state >> 33) % bound;
}

static struct task shaped(enum shape shape, unsigned i)
{
    struct task task = {.kind = HOLD_EXCLUSIVE, .offset = 0, .len = MANY};
    bool last = i == MANY - 1;

    switch (shape) {
    case ALL_EXCLUSIVE_ON_ONE_RANGE:
        break;
    case ALL_SHARED_ON_ONE_RANGE:
        task.kind = HOLD_SHARED;
        break;
    case ALL_DISJOINT:
        task.offset = i;
        task.len = 1;
        break;
    case ALTERNATING_ON_ONE_RANGE:
        task.kind = i % 2 == 0 ? HOLD_SHARED : HOLD_EXCLUSIVE;
        break;
    case WIDE_EXCLUSIVE_OVER_NARROW:
    case WIDE_SHARED_OVER_NARROW:
        if (!last) {
            task.offset = i;
            task.len = 1;
        } else if (shape == WIDE_SHARED_OVER_NARROW) {
            task.kind = HOLD_SHARED;
        }
        break;
    case NARROW_OVER_WIDE_EXCLUSIVE:
        if (i > 0) {
            task.offset = i;
            task.len = 1;
        }
        break;
    case NESTED_INWARDS_EXCLUSIVE:
        task.offset = i;
        task.len = 2 * MANY - 2 * i;
        break;
    case NESTED_OUTWARDS_EXCLUSIVE:
        task.offset = MANY - i;
        task.len = 1 + 2 * i;
        break;
    case NESTED_SHARED:
        task.kind = HOLD_SHARED;
        task.offset = i;
        task.len = 2 * MANY - 2 * i;
        break;
    case STAIRCASE:
        task.kind = i % 3 == 0 ? HOLD_EXCLUSIVE : HOLD_SHARED;
        task.offset = i * 2;
        task.len = 5;
        break;
    case SHARED_THEN_EXCLUSIVE_ON_ONE_RANGE:
        task.kind = i < MANY / 2 ? HOLD_SHARED : HOLD_EXCLUSIVE;
        break;
    case RANDOM_SHORT:
        task.kind = random_below(2) == 0 ? HOLD_SHARED : HOLD_EXCLUSIVE;
        task.offset = random_below(MANY * 10);
        task.len = 1 + random_below(40);
        break;
    case RANDOM_WIDE:
    case SHAPES:
        task.kind = random_below(2) == 0 ? HOLD_SHARED : HOLD_EXCLUSIVE;
        task.offset = random_below(MANY);
        task.len = 1 + random_below(MANY);
        break;
    }
    return task;
}

/*
 * All in flight at once, then released, always the one granted longest. A walk of the whole table a
 * hold would take MANY * MANY = 100 million steps; the bound is a few tree depths each.
 */
START_TEST(ten_thousand_in_flight)
{
    struct request_table *table = table_new();
    struct task *tasks = calloc(MANY, sizeof(*tasks));
    unsigned released = 0;

    ck_assert(tasks != NULL);
    random_state = (uint64_t)_i;
    for (unsigned i = 0; i < MANY; i++) {
        struct task task = shaped((enum shape)_i, i);
        start(table, &tasks[i], task.kind, task.offset, task.len);
    }
    ck_assert_uint_eq(request_table_granted(table) + request_table_waiting(table), MANY);
    ck_assert_uint_eq(request_table_granted(table), grants);
    while (released < MANY) {
        REQUIRE(released < grants); /* else a wake-up was lost */
        while (released < grants) {
            hold_release(by_grant[released++]->hold);
        }
        coro_run_ready();
    }
    ck_assert_uint_eq(grants, MANY);
    ck_assert_msg(request_table_steps(table) <= 300ULL * MANY, "shape %d: %llu steps", _i,
                  (unsigned long long)request_table_steps(table));
    free(tasks);
    table_end(table);
}
END_TEST

/* --- against the definition ----------------------------------------------------------------- */

#define MODEL_TASKS 48

struct model {
    struct task *queue[MODEL_TASKS]; /* unreleased, in order of arrival */
    unsigned count;
};

static bool conflict(const struct task *a, enum hold_kind kind, uint64_t offset, uint64_t len)
{
    return (a->kind == HOLD_EXCLUSIVE || kind == HOLD_EXCLUSIVE) && a->offset < offset + len &&
           offset < a->offset + a->len;
}

static bool blocked(const struct model *model, unsigned before, enum hold_kind kind,
                    uint64_t offset, uint64_t len)
{
    for (unsigned i = 0; i < before; i++) {
        if (conflict(model->queue[i], kind, offset, len)) {
            return true;
        }
    }
    return false;
}

static void compare(struct request_table *table, const struct model *model)
{
    unsigned granted = 0;

    for (unsigned i = 0; i < model->count; i++) {
        const struct task *task = model->queue[i];
        bool waits = blocked(model, i, task->kind, task->offset, task->len);

        if ((task->hold == NULL) != waits) {
            ck_abort_msg("hold %u of %u: %s", i, model->count,
                         waits ? "granted over a conflict" : "waits without a conflict");
        }
        granted += task->hold != NULL;
    }
    REQUIRE(request_table_granted(table) == granted);
    REQUIRE(request_table_waiting(table) == model->count - granted);
}

static void release_random(struct model *model)
{
    unsigned granted = 0;
    unsigned chosen;

    for (unsigned i = 0; i < model->count; i++) {
        granted += model->queue[i]->hold != NULL;
    }
    REQUIRE(granted > 0);
    chosen = (unsigned)random_below(granted);
    for (unsigned i = 0; i < model->count; i++) {
        if (model->queue[i]->hold == NULL || chosen-- > 0) {
            continue;
        }
        struct task *task = model->queue[i];
        release(task);
        free(task);
        model->count--;
        for (unsigned j = i; j < model->count; j++) {
            model->queue[j] = model->queue[j + 1];
        }
        return;
    }
}

struct recipe {
    uint64_t space;
    uint64_t longest;
    unsigned exclusive_percent;
    unsigned most_in_flight;
};

static const struct recipe recipes[] = {
    {8, 8, 50, 10},    {64, 8, 50, MODEL_TASKS},    {64, 64, 30, MODEL_TASKS},
    {400, 40, 20, 40}, {400, 400, 70, MODEL_TASKS}, {1000, 1000, 5, MODEL_TASKS},
    {16, 1, 50, 30},   {200, 200, 100, 30},         {200, 200, 50, 4},
};

START_TEST(random_holds_follow_the_definition)
{
    const struct recipe *recipe = &recipes[_i];
    struct request_table *table = table_new();
    struct model model = {.count = 0};

    random_state = (uint64_t)_i + 1;
    for (unsigned step = 0; step < 12000; step++) {
        enum hold_kind kind =
            random_below(100) < recipe->exclusive_percent ? HOLD_EXCLUSIVE : HOLD_SHARED;
        uint64_t offset = random_below(recipe->space);
        uint64_t len = 1 + random_below(recipe->longest);

        if (model.count == recipe->most_in_flight ||
            (model.count > 0 && random_below(1000) < 450)) {
            release_random(&model);
        } else {
            struct task *task = calloc(1, sizeof(*task));
            REQUIRE(task != NULL);
            REQUIRE(request_table_would_wait(table, kind, offset, len) ==
                    blocked(&model, model.count, kind, offset, len));
            start(table, task, kind, offset, len);
            model.queue[model.count++] = task;
        }
        compare(table, &model);
    }
    while (model.count > 0) {
        release_random(&model);
        compare(table, &model);
    }
    table_end(table);
}
END_TEST

int main(void)
{
    Suite *suite = suite_create("table");
    TCase *by_hand = tcase_create("by hand");
    TCase *cost = tcase_create("cost");
    TCase *random = tcase_create("random");

    tcase_add_test(by_hand, numbers_grow_and_oldest_moves);
    tcase_add_test(by_hand, renewed_number_is_the_youngest);
    tcase_add_test(by_hand, no_number_while_waiting);
    tcase_add_test(by_hand, uncontended_hold_needs_no_coroutine);
    tcase_add_test(by_hand, exclusive_excludes_and_shared_share);
    tcase_add_test(by_hand, shared_does_not_overtake_waiting_exclusive);
    tcase_add_test(by_hand, woken_in_order_of_arrival);
    tcase_add_test(by_hand, predecessor_in_pieces_counts_once);
    tcase_add_test(by_hand, out_of_memory_leaves_no_trace);
    suite_add_tcase(suite, by_hand);
    tcase_add_loop_test(cost, ten_thousand_in_flight, 0, SHAPES);
    tcase_set_timeout(cost, 60);
    suite_add_tcase(suite, cost);
    tcase_add_loop_test(random, random_holds_follow_the_definition, 0, (int)ARRAY_LEN(recipes));
    tcase_set_timeout(random, 60);
    suite_add_tcase(suite, random);
    return test_suite_run(suite);
}
