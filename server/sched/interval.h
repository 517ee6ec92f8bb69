/* SPDX-License-Identifier: BSD-2-Clause */
/*
 * An interval tree: half-open ranges of 64-bit offsets, which may overlap, and the question "which
 * of them touch this one?" answered in offset order at O(log n) each.
 *
 * An AVL tree by offset in which every node knows the largest end below it. AVL rather than a
 * treap: its depth does not depend on luck, and the offsets are chosen by strangers (O10). Nodes
 * are intrusive and nothing here allocates or recurses.
 */
#ifndef QCOWD_SCHED_INTERVAL_H
#define QCOWD_SCHED_INTERVAL_H

#include <stdbool.h>
#include <stdint.h>

struct interval {
    uint64_t offset;
    uint64_t end; /* > offset */
    uint64_t largest_end;
    struct interval *parent;
    struct interval *left;
    struct interval *right;
    int height;
};

struct interval_tree {
    struct interval *root;
    uint64_t steps; /* nodes visited so far, for tests and statistics */
};

/* offset and end are set; the node is in no tree. Nodes of equal offset keep their order of
 * arrival. */
void interval_insert(struct interval_tree *tree, struct interval *node);
void interval_remove(struct interval_tree *tree, struct interval *node);
/* Moves the end of a node that is in the tree. Its offset is moved by removing and inserting it. */
void interval_set_end(struct interval_tree *tree, struct interval *node, uint64_t end);

/* The first node that touches [offset, end), in order of offset; NULL when none does. */
struct interval *interval_first(struct interval_tree *tree, uint64_t offset, uint64_t end);
/* The next one after `node` for the same question; the tree has not changed meanwhile. */
struct interval *interval_next(struct interval_tree *tree, struct interval *node, uint64_t offset,
                               uint64_t end);
/* Whether any node touches [offset, end). */
bool interval_any(const struct interval_tree *tree, uint64_t offset, uint64_t end);

#endif
