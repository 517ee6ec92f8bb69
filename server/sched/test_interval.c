/* SPDX-License-Identifier: BSD-2-Clause */
/* The interval tree against a plain array, its invariants checked after every change. */
#include <check.h>
#include <stdlib.h>

#include "base/check.h"
#include "base/testing.h"
#include "sched/interval.h"

/* In hot loops: ck_assert() tells the parent process about each check that holds. */
#define REQUIRE(condition)                  \
    do {                                    \
        if (!(condition)) {                 \
            ck_abort_msg("%s", #condition); \
        }                                   \
    } while (0)

#define NODES 120

static uint64_t random_state;

static uint64_t random_below(uint64_t bound)
{
    random_state = random_state * 6364136223846793005ULL + 1442695040888963407ULL;
    return (random_state >> 33) % bound;
}

/* Asserts order, balance, parents and largest_end; returns the height. */
static int check_subtree(const struct interval *node, const struct interval *parent)
{
    if (node == NULL) {
        return 0;
    }
    uint64_t largest = node->end;
    int left = check_subtree(node->left, node);
    int right = check_subtree(node->right, node);

    REQUIRE(node->parent == parent);
    REQUIRE(abs(left - right) <= 1);
    REQUIRE(node->height == 1 + MAX_OF(left, right));
    if (node->left != NULL) {
        REQUIRE(node->left->offset <= node->offset);
        largest = MAX_OF(largest, node->left->largest_end);
    }
    if (node->right != NULL) {
        REQUIRE(node->right->offset >= node->offset);
        largest = MAX_OF(largest, node->right->largest_end);
    }
    REQUIRE(node->largest_end == largest);
    return node->height;
}

static void check_query(struct interval_tree *tree, struct interval *nodes, const bool *present,
                        uint64_t offset, uint64_t end)
{
    unsigned expected = 0;
    unsigned found = 0;
    uint64_t last_offset = 0;

    for (unsigned i = 0; i < NODES; i++) {
        expected += present[i] && nodes[i].offset < end && nodes[i].end > offset;
    }
    for (struct interval *at = interval_first(tree, offset, end); at != NULL;
         at = interval_next(tree, at, offset, end)) {
        REQUIRE(at->offset < end && at->end > offset);
        REQUIRE(at->offset >= last_offset);
        last_offset = at->offset;
        found++;
    }
    REQUIRE(found == expected);
    REQUIRE(interval_any(tree, offset, end) == (expected > 0));
}

static void run_random(uint64_t space, uint64_t longest)
{
    struct interval nodes[NODES];
    bool present[NODES] = {false};
    struct interval_tree tree = {NULL, 0};

    random_state = space * 31 + longest;
    for (unsigned step = 0; step < 3000; step++) {
        unsigned i = (unsigned)random_below(NODES);
        uint64_t offset = random_below(space);

        if (!present[i]) {
            nodes[i].offset = offset;
            nodes[i].end = offset + 1 + random_below(longest);
            interval_insert(&tree, &nodes[i]);
            present[i] = true;
        } else if (random_below(3) == 0) {
            interval_set_end(&tree, &nodes[i], nodes[i].offset + 1 + random_below(longest));
        } else {
            interval_remove(&tree, &nodes[i]);
            present[i] = false;
        }
        check_subtree(tree.root, NULL);
        offset = random_below(space);
        check_query(&tree, nodes, present, offset, offset + 1 + random_below(longest));
    }
    for (unsigned i = 0; i < NODES; i++) {
        if (present[i]) {
            interval_remove(&tree, &nodes[i]);
            check_subtree(tree.root, NULL);
        }
    }
    ck_assert(tree.root == NULL);
}

START_TEST(random_short_ranges)
{
    run_random(100000, 50);
}
END_TEST

START_TEST(random_wide_ranges)
{
    run_random(1000, 1000);
}
END_TEST

START_TEST(random_equal_offsets)
{
    run_random(3, 5);
}
END_TEST

START_TEST(ends_of_the_address_space)
{
    struct interval_tree tree = {NULL, 0};
    struct interval low = {.offset = 0, .end = 1};
    struct interval high = {.offset = UINT64_MAX - 1, .end = UINT64_MAX};

    interval_insert(&tree, &high);
    interval_insert(&tree, &low);
    ck_assert(interval_first(&tree, 0, UINT64_MAX) == &low);
    ck_assert(interval_next(&tree, &low, 0, UINT64_MAX) == &high);
    ck_assert(interval_next(&tree, &high, 0, UINT64_MAX) == NULL);
    ck_assert(interval_first(&tree, 1, UINT64_MAX - 1) == NULL);
}
END_TEST

START_TEST(ascending_inserts_stay_shallow)
{
    struct interval_tree tree = {NULL, 0};
    struct interval *nodes = calloc(100000, sizeof(*nodes));

    ck_assert(nodes != NULL);
    for (unsigned i = 0; i < 100000; i++) {
        nodes[i].offset = i;
        nodes[i].end = i + 1;
        interval_insert(&tree, &nodes[i]);
    }
    ck_assert_int_le(tree.root->height, 24);
    ck_assert(tree.steps <= 100000ULL * 48);
    free(nodes);
}
END_TEST

int main(void)
{
    Suite *suite = suite_create("interval");
    TCase *cases = tcase_create("tree");

    tcase_add_test(cases, random_short_ranges);
    tcase_add_test(cases, random_wide_ranges);
    tcase_add_test(cases, random_equal_offsets);
    tcase_add_test(cases, ends_of_the_address_space);
    tcase_add_test(cases, ascending_inserts_stay_shallow);
    tcase_set_timeout(cases, 60);
    suite_add_tcase(suite, cases);
    return test_suite_run(suite);
}
