/* SPDX-License-Identifier: BSD-2-Clause */
/*
 * AVL tree with parent links. Every change ends in fix_upwards(), the one place that restores
 * heights, balance and largest_end from the lowest changed node to the root.
 */
#include "sched/interval.h"

#include <assert.h>
#include <stddef.h>

#include "base/check.h"

static int height_of(const struct interval *node)
{
    return node == NULL ? 0 : node->height;
}

static void update(struct interval *node)
{
    uint64_t largest = node->end;

    if (node->left != NULL) {
        largest = MAX_OF(largest, node->left->largest_end);
    }
    if (node->right != NULL) {
        largest = MAX_OF(largest, node->right->largest_end);
    }
    node->largest_end = largest;
    node->height = 1 + MAX_OF(height_of(node->left), height_of(node->right));
}

/* Puts `replacement` (may be NULL) where `old` hangs below `parent` (NULL: at the root). */
static void replace_child(struct interval_tree *tree, struct interval *parent, struct interval *old,
                          struct interval *replacement)
{
    if (parent == NULL) {
        tree->root = replacement;
    } else if (parent->left == old) {
        parent->left = replacement;
    } else {
        assert(parent->right == old);
        parent->right = replacement;
    }
    if (replacement != NULL) {
        replacement->parent = parent;
    }
}

/* Both return the node that is now on top. */
static struct interval *rotate_left(struct interval_tree *tree, struct interval *node)
{
    struct interval *top = node->right;

    assert(top != NULL);
    node->right = top->left;
    if (top->left != NULL) {
        top->left->parent = node;
    }
    replace_child(tree, node->parent, node, top);
    top->left = node;
    node->parent = top;
    update(node);
    update(top);
    return top;
}

static struct interval *rotate_right(struct interval_tree *tree, struct interval *node)
{
    struct interval *top = node->left;

    assert(top != NULL);
    node->left = top->right;
    if (top->right != NULL) {
        top->right->parent = node;
    }
    replace_child(tree, node->parent, node, top);
    top->right = node;
    node->parent = top;
    update(node);
    update(top);
    return top;
}

static struct interval *rebalance(struct interval_tree *tree, struct interval *node)
{
    int lean = height_of(node->left) - height_of(node->right);

    if (lean > 1) {
        if (height_of(node->left->left) < height_of(node->left->right)) {
            rotate_left(tree, node->left);
        }
        return rotate_right(tree, node);
    }
    if (lean < -1) {
        if (height_of(node->right->right) < height_of(node->right->left)) {
            rotate_right(tree, node->right);
        }
        return rotate_left(tree, node);
    }
    return node;
}

static void fix_upwards(struct interval_tree *tree, struct interval *node)
{
    while (node != NULL) {
        tree->steps++;
        update(node);
        node = rebalance(tree, node)->parent;
    }
}

void interval_insert(struct interval_tree *tree, struct interval *node)
{
    struct interval *parent = NULL;
    struct interval **where = &tree->root;

    assert(node->offset < node->end);
    while (*where != NULL) {
        tree->steps++;
        parent = *where;
        where = node->offset < parent->offset ? &parent->left : &parent->right;
    }
    *where = node;
    node->parent = parent;
    node->left = NULL;
    node->right = NULL;
    fix_upwards(tree, node);
}

static struct interval *leftmost(struct interval_tree *tree, struct interval *node)
{
    while (node->left != NULL) {
        tree->steps++;
        node = node->left;
    }
    return node;
}

void interval_remove(struct interval_tree *tree, struct interval *node)
{
    struct interval *lowest_changed;

    if (node->left == NULL || node->right == NULL) {
        struct interval *child = node->left != NULL ? node->left : node->right;

        lowest_changed = node->parent;
        replace_child(tree, node->parent, node, child);
    } else {
        struct interval *successor = leftmost(tree, node->right);

        if (successor == node->right) {
            lowest_changed = successor;
        } else {
            lowest_changed = successor->parent;
            replace_child(tree, successor->parent, successor, successor->right);
            successor->right = node->right;
            successor->right->parent = successor;
        }
        successor->left = node->left;
        successor->left->parent = successor;
        replace_child(tree, node->parent, node, successor);
    }
    node->parent = NULL;
    node->left = NULL;
    node->right = NULL;
    fix_upwards(tree, lowest_changed);
}

void interval_set_end(struct interval_tree *tree, struct interval *node, uint64_t end)
{
    assert(node->offset < end);
    node->end = end;
    fix_upwards(tree, node);
}

static bool reaches_past(const struct interval *subtree, uint64_t offset)
{
    return subtree != NULL && subtree->largest_end > offset;
}

/*
 * The leftmost node of the subtree that ends past `offset`, if it also begins before `end`. When it
 * does not, neither does anything right of it, so going left whenever that can answer is enough.
 */
static struct interval *first_below(struct interval *node, uint64_t offset, uint64_t end,
                                    uint64_t *steps)
{
    while (reaches_past(node, offset)) {
        ++*steps;
        if (reaches_past(node->left, offset)) {
            node = node->left;
        } else if (node->offset >= end) {
            return NULL;
        } else if (node->end > offset) {
            return node;
        } else {
            node = node->right;
        }
    }
    return NULL;
}

struct interval *interval_first(struct interval_tree *tree, uint64_t offset, uint64_t end)
{
    return first_below(tree->root, offset, end, &tree->steps);
}

struct interval *interval_next(struct interval_tree *tree, struct interval *node, uint64_t offset,
                               uint64_t end)
{
    for (;;) {
        if (reaches_past(node->right, offset)) {
            return first_below(node->right, offset, end, &tree->steps);
        }
        struct interval *below;
        do {
            tree->steps++;
            below = node;
            node = node->parent;
        } while (node != NULL && node->right == below);
        if (node == NULL || node->offset >= end) {
            return NULL;
        }
        if (node->end > offset) {
            return node;
        }
    }
}

bool interval_any(const struct interval_tree *tree, uint64_t offset, uint64_t end)
{
    uint64_t steps = 0;

    return first_below(tree->root, offset, end, &steps) != NULL;
}
