/* SPDX-License-Identifier: BSD-2-Clause */
/* The judge is judged: what the model must accept, and each kind of lie that it must see. */
#include <check.h>
#include <stdlib.h>
#include <string.h>

#include "oracle_model.h"

#define CELL   512U
#define REGION (16U * CELL)
#define BASE   4096U

static uint8_t disk[REGION];

/* Bad cells of a read of the whole region that is answered at once. */
static uint64_t read_all(struct model *model)
{
    struct model_read read;

    model_read_begin(model, &read);
    return model_read_end(model, &read, BASE, REGION, disk);
}

static struct model *new_model(bool trim_is_hint, uint32_t cell_bytes)
{
    struct model *model = model_create(BASE, REGION, cell_bytes, trim_is_hint, NULL);

    ck_assert(model != NULL);
    memset(disk, 0, sizeof(disk));
    return model;
}

static uint32_t begin(struct model *model, enum mutation_kind kind, uint32_t cell, uint32_t cells)
{
    return model_begin(model, kind, BASE + cell * CELL, cells * CELL);
}

START_TEST(write_shows_from_sending_and_stays)
{
    struct model *model = new_model(false, CELL);
    uint32_t write = begin(model, MUTATION_WRITE, 2, 3);

    ck_assert(read_all(model) == 0); /* not there yet */
    model_fill(model, write, disk + 2 * CELL);
    ck_assert(read_all(model) == 0); /* there already */
    model_end(model, write, OUTCOME_APPLIED);
    ck_assert(read_all(model) == 0);
    memset(disk + 3 * CELL, 0, CELL);
    ck_assert(read_all(model) == 1); /* a zero that nobody wrote */
    memcpy(disk + 3 * CELL, disk + 2 * CELL, CELL);
    ck_assert(read_all(model) == 1); /* another cell's data */
    model_fill(model, write, disk + 2 * CELL);
    disk[4 * CELL + 100] ^= 1;
    ck_assert(read_all(model) == 1); /* damage */
    model_free(model);
}
END_TEST

START_TEST(later_write_settles)
{
    struct model *model = new_model(false, CELL);
    uint32_t old = begin(model, MUTATION_WRITE, 0, 1);

    model_end(model, old, OUTCOME_APPLIED);
    uint32_t new = begin(model, MUTATION_WRITE, 0, 1);
    model_fill(model, old, disk);
    ck_assert(read_all(model) == 0);
    struct model_read early;
    model_read_begin(model, &early);
    model_end(model, new, OUTCOME_APPLIED);
    ck_assert(model_read_end(model, &early, BASE, CELL, disk) == 0); /* sent before the answer */
    ck_assert(read_all(model) == 1);                                 /* sent after it */
    model_fill(model, new, disk);
    ck_assert(read_all(model) == 0);
    model_free(model);
}
END_TEST

START_TEST(writes_in_flight_together_end_in_any_order)
{
    struct model *model = new_model(false, CELL);
    uint32_t first = begin(model, MUTATION_WRITE, 0, 1);
    uint32_t second = begin(model, MUTATION_WRITE, 0, 1);

    model_end(model, second, OUTCOME_APPLIED);
    model_end(model, first, OUTCOME_APPLIED);
    model_fill(model, first, disk);
    ck_assert(read_all(model) == 0);
    model_fill(model, second, disk);
    ck_assert(read_all(model) == 0);
    model_fill(model, first, disk + CELL);
    memcpy(disk, disk + CELL, 8); /* both legal, but answered: a mix of them is not */
    memset(disk + CELL, 0, CELL);
    ck_assert(read_all(model) == 1);
    memset(disk, 0, CELL);
    ck_assert(read_all(model) == 1);
    model_free(model);
}
END_TEST

START_TEST(torn_only_in_motion)
{
    struct model *model = new_model(false, CELL);
    uint32_t write = begin(model, MUTATION_WRITE, 0, 1);

    model_fill(model, write, disk);
    memset(disk + 64, 0, CELL - 64);
    ck_assert(read_all(model) == 0);
    ck_assert(model_torn(model) == 1);
    model_end(model, write, OUTCOME_APPLIED);
    ck_assert(read_all(model) == 1);
    model_free(model);
}
END_TEST

START_TEST(zero_and_trim)
{
    struct model *strict = new_model(false, CELL);
    uint32_t write = begin(strict, MUTATION_WRITE, 0, 2);

    model_end(strict, write, OUTCOME_APPLIED);
    model_end(strict, begin(strict, MUTATION_ZERO, 0, 1), OUTCOME_APPLIED);
    model_end(strict, begin(strict, MUTATION_TRIM, 1, 1), OUTCOME_APPLIED);
    ck_assert(read_all(strict) == 0);
    model_fill(strict, write, disk);
    ck_assert(read_all(strict) == 2);
    model_free(strict);

    struct model *lax = new_model(true, CELL);
    write = begin(lax, MUTATION_WRITE, 0, 1);
    model_end(lax, write, OUTCOME_APPLIED);
    model_end(lax, begin(lax, MUTATION_TRIM, 0, 1), OUTCOME_APPLIED);
    ck_assert(read_all(lax) == 0);
    model_fill(lax, write, disk);
    ck_assert(read_all(lax) == 0);
    uint32_t last = begin(lax, MUTATION_WRITE, 0, 1);
    model_end(lax, last, OUTCOME_APPLIED);
    memset(disk, 0, CELL);
    ck_assert(read_all(lax) == 1);
    model_free(lax);
}
END_TEST

START_TEST(failed_may_show_refused_may_not)
{
    struct model *model = new_model(false, CELL);
    uint32_t write = begin(model, MUTATION_WRITE, 0, 2);

    model_end(model, write, OUTCOME_APPLIED);
    model_end(model, begin(model, MUTATION_ZERO, 0, 1), OUTCOME_FAILED);
    model_end(model, begin(model, MUTATION_ZERO, 1, 1), OUTCOME_REFUSED);
    ck_assert(read_all(model) == 1);
    model_fill(model, write, disk);
    ck_assert(read_all(model) == 0);
    model_free(model);
}
END_TEST

START_TEST(initial_contents_show_until_settled)
{
    uint8_t *initial = malloc(REGION);

    ck_assert(initial != NULL);
    for (unsigned i = 0; i < REGION; i++) {
        initial[i] = (uint8_t)(i * 7);
    }
    struct model *model = model_create(BASE, REGION, CELL, false, initial);
    memcpy(disk, initial, REGION);
    ck_assert(read_all(model) == 0);
    disk[CELL] ^= 1;
    ck_assert(read_all(model) == 1);
    disk[CELL] ^= 1;
    model_end(model, begin(model, MUTATION_ZERO, 1, 1), OUTCOME_APPLIED);
    ck_assert(read_all(model) == 1);
    memset(disk + CELL, 0, CELL);
    ck_assert(read_all(model) == 0);
    model_free(model);
}
END_TEST

START_TEST(single_bytes)
{
    struct model *model = new_model(false, 1);
    uint32_t write = model_begin(model, MUTATION_WRITE, BASE + 3, 1001);

    model_fill(model, write, disk + 3);
    ck_assert(read_all(model) == 0);
    model_end(model, write, OUTCOME_APPLIED);
    ck_assert(read_all(model) == 0);
    disk[3 + 1000] = 0;
    disk[2] = 1;
    ck_assert(read_all(model) == 2);
    model_free(model);
}
END_TEST

/* Long lists are pruned, and nothing that an old read may see goes with it. */
START_TEST(pruning_keeps_what_an_old_read_may_see)
{
    struct model *model = new_model(false, CELL);
    struct model_read early;
    uint32_t first = begin(model, MUTATION_WRITE, 0, 1);
    uint32_t last = first;

    model_end(model, first, OUTCOME_APPLIED);
    model_read_begin(model, &early);
    for (unsigned i = 0; i < 1000; i++) {
        last = begin(model, MUTATION_WRITE, 0, 1);
        model_end(model, last, OUTCOME_APPLIED);
    }
    model_fill(model, first, disk);
    ck_assert(model_read_end(model, &early, BASE, CELL, disk) == 0);
    ck_assert(read_all(model) == 1);
    for (unsigned i = 0; i < 1000; i++) {
        last = begin(model, MUTATION_WRITE, 0, 1);
        model_end(model, last, OUTCOME_APPLIED);
    }
    model_fill(model, last, disk);
    ck_assert(read_all(model) == 0);
    memset(disk, 0, CELL);
    ck_assert(read_all(model) == 1);
    model_free(model);
}
END_TEST

int main(void)
{
    Suite *suite = suite_create("oracle model");
    TCase *cases = tcase_create("rule");
    SRunner *runner;
    int failed;

    tcase_add_test(cases, write_shows_from_sending_and_stays);
    tcase_add_test(cases, later_write_settles);
    tcase_add_test(cases, writes_in_flight_together_end_in_any_order);
    tcase_add_test(cases, torn_only_in_motion);
    tcase_add_test(cases, zero_and_trim);
    tcase_add_test(cases, failed_may_show_refused_may_not);
    tcase_add_test(cases, initial_contents_show_until_settled);
    tcase_add_test(cases, single_bytes);
    tcase_add_test(cases, pruning_keeps_what_an_old_read_may_see);
    suite_add_tcase(suite, cases);
    runner = srunner_create(suite);
    srunner_run_all(runner, CK_NORMAL);
    failed = srunner_ntests_failed(runner);
    srunner_free(runner);
    return failed == 0 ? EXIT_SUCCESS : EXIT_FAILURE;
}
