/* SPDX-License-Identifier: BSD-2-Clause */
/*
 * Pairing heap: starting a timer is O(1), stopping and popping O(log n) amortised. Most timers are
 * stopped before they fire (grace times, hand-shake limits), which the heap makes cheap. Merging is
 * a loop, never a recursion: the number of timers is as large as the number of connections.
 */
#include "sched/timers.h"

#include <assert.h>

static bool fires_before(const struct world_timer *a, const struct world_timer *b)
{
    return a->deadline_ns != b->deadline_ns ? a->deadline_ns < b->deadline_ns
                                            : a->sequence < b->sequence;
}

/* Both are roots without siblings; the earlier one adopts the other and is returned. */
static struct world_timer *meld(struct world_timer *a, struct world_timer *b)
{
    struct world_timer *parent = fires_before(a, b) ? a : b;
    struct world_timer *child = parent == a ? b : a;
    child->prev = parent;
    child->next = parent->child;
    if (parent->child) {
        parent->child->prev = child;
    }
    parent->child = child;
    return parent;
}

/*
 * Melds a row of siblings into one tree: in pairs on the way there, all together on the way back.
 */
static struct world_timer *meld_siblings(struct world_timer *first)
{
    struct world_timer *pairs = NULL; /* linked through next, the last pair first */
    while (first) {
        struct world_timer *a = first;
        struct world_timer *b = a->next;
        first = b ? b->next : NULL;
        a->next = a->prev = NULL;
        if (b) {
            b->next = b->prev = NULL;
            a = meld(a, b);
        }
        a->next = pairs;
        pairs = a;
    }
    struct world_timer *root = NULL;
    while (pairs) {
        struct world_timer *tree = pairs;
        pairs = tree->next;
        tree->next = NULL;
        root = root ? meld(root, tree) : tree;
    }
    return root;
}

void timer_heap_init(struct timer_heap *heap)
{
    heap->root = NULL;
    heap->last_sequence = 0;
}

void timer_heap_insert(struct timer_heap *heap, struct world_timer *timer, uint64_t deadline_ns)
{
    timer_heap_remove(heap, timer);
    timer->deadline_ns = deadline_ns;
    timer->sequence = ++heap->last_sequence;
    timer->child = timer->next = timer->prev = NULL;
    heap->root = heap->root ? meld(heap->root, timer) : timer;
}

void timer_heap_remove(struct timer_heap *heap, struct world_timer *timer)
{
    if (!world_timer_armed(timer)) {
        return;
    }
    struct world_timer *below = meld_siblings(timer->child);
    if (timer == heap->root) {
        heap->root = below;
    } else {
        assert(timer->prev != NULL);
        if (timer->prev->child == timer) {
            timer->prev->child = timer->next;
        } else {
            timer->prev->next = timer->next;
        }
        if (timer->next) {
            timer->next->prev = timer->prev;
        }
        if (below) {
            heap->root = meld(heap->root, below);
        }
    }
    timer->child = timer->next = timer->prev = NULL;
    timer->sequence = 0;
}

uint64_t timer_heap_earliest(const struct timer_heap *heap)
{
    return heap->root ? heap->root->deadline_ns : UINT64_MAX;
}

struct world_timer *timer_heap_pop_due(struct timer_heap *heap, uint64_t now_ns)
{
    struct world_timer *timer = heap->root;
    if (!timer || timer->deadline_ns > now_ns) {
        return NULL;
    }
    timer_heap_remove(heap, timer);
    return timer;
}
