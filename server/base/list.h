/* SPDX-License-Identifier: BSD-2-Clause */
/*
 * Intrusive doubly linked list with a sentinel. A node that is in no list points at itself, so
 * that removing twice is harmless and "is it queued?" is a question one can ask.
 */
#ifndef QCOWD_BASE_LIST_H
#define QCOWD_BASE_LIST_H

#include <stdbool.h>

#include "base/check.h"

struct list {
    struct list *next;
    struct list *prev;
};

/* Versions of clang-format do not agree on braces in a macro. */
/* clang-format off */
#define LIST_INIT(name)  \
    {                    \
        &(name), &(name) \
    }
/* clang-format on */

static inline void list_init(struct list *node)
{
    node->next = node;
    node->prev = node;
}

static inline bool list_empty(const struct list *head)
{
    return head->next == head;
}

static inline bool list_linked(const struct list *node)
{
    return node->next != node;
}

static inline void list_insert_before(struct list *where, struct list *node)
{
    node->prev = where->prev;
    node->next = where;
    where->prev->next = node;
    where->prev = node;
}

static inline void list_push_back(struct list *head, struct list *node)
{
    list_insert_before(head, node);
}

static inline void list_push_front(struct list *head, struct list *node)
{
    list_insert_before(head->next, node);
}

static inline void list_remove(struct list *node)
{
    node->prev->next = node->next;
    node->next->prev = node->prev;
    list_init(node);
}

/* Null when empty. */
static inline struct list *list_pop_front(struct list *head)
{
    if (list_empty(head)) {
        return NULL;
    }
    struct list *node = head->next;
    list_remove(node);
    return node;
}

/* Moves everything in `from` to the end of `to`. */
static inline void list_splice_back(struct list *to, struct list *from)
{
    if (list_empty(from)) {
        return;
    }
    from->next->prev = to->prev;
    to->prev->next = from->next;
    from->prev->next = to;
    to->prev = from->prev;
    list_init(from);
}

#define list_entry(node, type, member) container_of(node, type, member)

#define list_for_each(pos, head) \
    for (struct list *pos = (head)->next; pos != (head); pos = pos->next)

/* Safe against removal of pos. */
#define list_for_each_safe(pos, after, head)                                 \
    for (struct list *pos = (head)->next, *after = pos->next; pos != (head); \
         pos = after, after = pos->next)

#endif
