/* SPDX-License-Identifier: BSD-2-Clause */
/*
 * The timer heap against a plain array that is searched for the earliest.
 */
#include <check.h>
#include <stdlib.h>

#include "base/testing.h"
#include "sched/timers.h"

START_TEST(test_order)
{
    static const uint64_t deadlines[] = {50, 10, 40, 10, 0, UINT64_MAX, 10, 50};
    static const unsigned expected[] = {4, 1, 3, 6, 2, 0, 7};
    struct world_timer timers[8] = {0};
    struct timer_heap heap;
    timer_heap_init(&heap);
    ck_assert(timer_heap_empty(&heap));
    ck_assert_uint_eq(timer_heap_earliest(&heap), UINT64_MAX);
    for (unsigned i = 0; i < 8; i++) {
        ck_assert(!world_timer_armed(&timers[i]));
        timer_heap_insert(&heap, &timers[i], deadlines[i]);
        ck_assert(world_timer_armed(&timers[i]));
    }
    for (unsigned i = 0; i < 7; i++) {
        uint64_t deadline = deadlines[expected[i]];
        ck_assert_uint_eq(timer_heap_earliest(&heap), deadline);
        if (deadline > 0) {
            ck_assert_ptr_null(timer_heap_pop_due(&heap, deadline - 1));
        }
        ck_assert_ptr_eq(timer_heap_pop_due(&heap, deadline), &timers[expected[i]]);
        ck_assert(!world_timer_armed(&timers[expected[i]]));
    }
    ck_assert_ptr_null(timer_heap_pop_due(&heap, UINT64_MAX - 1));
    ck_assert(!timer_heap_empty(&heap));
    ck_assert_ptr_eq(timer_heap_pop_due(&heap, UINT64_MAX), &timers[5]);
    ck_assert(timer_heap_empty(&heap));
}
END_TEST

START_TEST(test_start_again_moves_and_queues_behind)
{
    struct world_timer a = {0}, b = {0};
    struct timer_heap heap;
    timer_heap_init(&heap);
    timer_heap_insert(&heap, &a, 5);
    timer_heap_insert(&heap, &b, 7);
    timer_heap_insert(&heap, &a, 7);
    ck_assert_ptr_eq(timer_heap_pop_due(&heap, 7), &b);
    ck_assert_ptr_eq(timer_heap_pop_due(&heap, 7), &a);
    ck_assert_ptr_null(timer_heap_pop_due(&heap, 7));
    timer_heap_remove(&heap, &a); /* not armed: nothing */
    ck_assert(timer_heap_empty(&heap));
}
END_TEST

static unsigned long random_state;

static unsigned random_below(unsigned bound)
{
    random_state = random_state * 6364136223846793005UL + 1442695040888963407UL;
    return (unsigned)(random_state >> 33) % bound;
}

#define MODEL_TIMERS 200U

struct model {
    struct world_timer timers[MODEL_TIMERS];
    uint64_t started_as[MODEL_TIMERS]; /* 0: not armed */
    struct timer_heap heap;
    uint64_t starts;
};

static int model_earliest(const struct model *model)
{
    int best = -1;
    for (int i = 0; i < (int)MODEL_TIMERS; i++) {
        if (model->started_as[i] == 0) {
            continue;
        }
        if (best < 0 || model->timers[i].deadline_ns < model->timers[best].deadline_ns ||
            (model->timers[i].deadline_ns == model->timers[best].deadline_ns &&
             model->started_as[i] < model->started_as[best])) {
            best = i;
        }
    }
    return best;
}

static void model_pop(struct model *model)
{
    int earliest = model_earliest(model);
    struct world_timer *popped = timer_heap_pop_due(&model->heap, UINT64_MAX);
    if (earliest < 0) {
        ck_assert_ptr_null(popped);
        return;
    }
    ck_assert_ptr_eq(popped, &model->timers[earliest]);
    model->started_as[earliest] = 0;
}

START_TEST(test_against_a_model)
{
    struct model *model = calloc(1, sizeof(*model));
    ck_assert_ptr_nonnull(model);
    random_state = (unsigned long)_i;
    timer_heap_init(&model->heap);
    for (unsigned step = 0; step < 5000; step++) {
        unsigned which = random_below(MODEL_TIMERS);
        switch (random_below(4)) {
        case 0:
        case 1:
            timer_heap_insert(&model->heap, &model->timers[which], random_below(100));
            model->started_as[which] = ++model->starts;
            break;
        case 2:
            timer_heap_remove(&model->heap, &model->timers[which]);
            model->started_as[which] = 0;
            break;
        default:
            model_pop(model);
        }
        int earliest = model_earliest(model);
        ck_assert_uint_eq(timer_heap_earliest(&model->heap),
                          earliest < 0 ? UINT64_MAX : model->timers[earliest].deadline_ns);
    }
    while (!timer_heap_empty(&model->heap)) {
        model_pop(model);
    }
    ck_assert_int_eq(model_earliest(model), -1);
    free(model);
}
END_TEST

int main(void)
{
    Suite *suite = suite_create("timers");
    TCase *tcase = tcase_create("timers");
    tcase_set_timeout(tcase, 30);
    tcase_add_test(tcase, test_order);
    tcase_add_test(tcase, test_start_again_moves_and_queues_behind);
    tcase_add_loop_test(tcase, test_against_a_model, 0, 10);
    suite_add_tcase(suite, tcase);
    return test_suite_run(suite);
}
