/* SPDX-License-Identifier: BSD-2-Clause */
/* A hash of leaves for look-up; an array of the same leaves, sorted when needed, for walks in
 * order. */
#include "qcow2/refmap.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "base/check.h"

/* Small, so that clusters strewn over a huge file cost little each. */
#define LEAF_BITS   8U
#define LEAF_COUNTS (1U << LEAF_BITS)
#define SLOTS_MIN   64U

struct refmap_leaf {
    uint64_t key;   /* index >> LEAF_BITS */
    uint64_t *wide; /* takes over from narrow once a count did not fit */
    uint16_t narrow[LEAF_COUNTS];
};

void refmap_init(struct refmap *map, uint64_t *budget_bytes)
{
    *map = (struct refmap){.budget_bytes = budget_bytes, .leaves_sorted = true};
}

void refmap_free(struct refmap *map)
{
    for (size_t i = 0; i < map->leaf_count; i++) {
        free(map->leaves[i]->wide);
        free(map->leaves[i]);
    }
    free(map->leaves);
    free(map->slots);
    refmap_init(map, map->budget_bytes);
}

static void *take_memory(struct refmap *map, size_t bytes)
{
    if (bytes > *map->budget_bytes) {
        return NULL;
    }
    void *memory = calloc(1, bytes);
    if (memory) {
        *map->budget_bytes -= bytes;
    }
    return memory;
}

static size_t slot_of(uint64_t key, size_t slot_count)
{
    return (size_t)((key * 0x9e3779b97f4a7c15ULL) >> 20) & (slot_count - 1);
}

static struct refmap_leaf *find_leaf(struct refmap *map, uint64_t key)
{
    if (map->last && map->last->key == key) {
        return map->last;
    }
    if (map->slot_count == 0) {
        return NULL;
    }
    size_t slot = slot_of(key, map->slot_count);
    while (map->slots[slot] && map->slots[slot]->key != key) {
        slot = (slot + 1) & (map->slot_count - 1);
    }
    if (map->slots[slot]) {
        map->last = map->slots[slot];
    }
    return map->slots[slot];
}

static void put_in_slot(struct refmap_leaf **slots, size_t slot_count, struct refmap_leaf *leaf)
{
    size_t slot = slot_of(leaf->key, slot_count);
    while (slots[slot]) {
        slot = (slot + 1) & (slot_count - 1);
    }
    slots[slot] = leaf;
}

/* Makes room for one more leaf: at most half of the slots are used. */
static int grow(struct refmap *map)
{
    if (map->leaf_count < map->leaf_capacity) {
        return 0;
    }
    size_t slot_count = map->slot_count ? map->slot_count * 2 : SLOTS_MIN;
    size_t capacity = slot_count / 2;
    struct refmap_leaf **slots = take_memory(map, slot_count * sizeof(struct refmap_leaf *));
    if (!slots) {
        return -ENOMEM;
    }
    struct refmap_leaf **leaves = realloc(map->leaves, capacity * sizeof(struct refmap_leaf *));
    if (!leaves) {
        free(slots);
        return -ENOMEM;
    }
    map->leaves = leaves;
    map->leaf_capacity = capacity;
    for (size_t i = 0; i < map->leaf_count; i++) {
        put_in_slot(slots, slot_count, leaves[i]);
    }
    free(map->slots);
    *map->budget_bytes += map->slot_count * sizeof(struct refmap_leaf *);
    map->slots = slots;
    map->slot_count = slot_count;
    return 0;
}

static struct refmap_leaf *make_leaf(struct refmap *map, uint64_t key)
{
    if (grow(map) < 0) {
        return NULL;
    }
    struct refmap_leaf *leaf = take_memory(map, sizeof(*leaf));
    if (!leaf) {
        return NULL;
    }
    leaf->key = key;
    if (map->leaf_count > 0 && map->leaves[map->leaf_count - 1]->key > key) {
        map->leaves_sorted = false;
    }
    map->leaves[map->leaf_count++] = leaf;
    put_in_slot(map->slots, map->slot_count, leaf);
    map->last = leaf;
    return leaf;
}

static uint64_t leaf_get(const struct refmap_leaf *leaf, size_t at)
{
    return leaf->wide ? leaf->wide[at] : leaf->narrow[at];
}

static int widen(struct refmap *map, struct refmap_leaf *leaf)
{
    leaf->wide = take_memory(map, LEAF_COUNTS * sizeof(*leaf->wide));
    if (!leaf->wide) {
        return -ENOMEM;
    }
    for (size_t i = 0; i < LEAF_COUNTS; i++) {
        leaf->wide[i] = leaf->narrow[i];
    }
    return 0;
}

int refmap_add(struct refmap *map, uint64_t index, uint64_t n)
{
    uint64_t sum;
    size_t at = index & (LEAF_COUNTS - 1);
    struct refmap_leaf *leaf = find_leaf(map, index >> LEAF_BITS);

    if (!leaf) {
        leaf = make_leaf(map, index >> LEAF_BITS);
        if (!leaf) {
            return -ENOMEM;
        }
    }
    if (!add_u64(leaf_get(leaf, at), n, &sum)) {
        sum = UINT64_MAX;
    }
    if (!leaf->wide && sum > UINT16_MAX) {
        int rc = widen(map, leaf);
        if (rc < 0) {
            return rc;
        }
    }
    if (leaf->wide) {
        leaf->wide[at] = sum;
    } else {
        leaf->narrow[at] = (uint16_t)sum;
    }
    return 0;
}

void refmap_subtract(struct refmap *map, uint64_t index, uint64_t n)
{
    size_t at = index & (LEAF_COUNTS - 1);
    struct refmap_leaf *leaf = find_leaf(map, index >> LEAF_BITS);

    assert(leaf && leaf_get(leaf, at) >= n);
    if (leaf->wide) {
        leaf->wide[at] -= n;
    } else {
        leaf->narrow[at] = (uint16_t)(leaf->narrow[at] - n);
    }
}

uint64_t refmap_get(struct refmap *map, uint64_t index)
{
    const struct refmap_leaf *leaf = find_leaf(map, index >> LEAF_BITS);
    return leaf ? leaf_get(leaf, index & (LEAF_COUNTS - 1)) : 0;
}

static int compare_leaves(const void *left, const void *right)
{
    const struct refmap_leaf *const *a = left;
    const struct refmap_leaf *const *b = right;
    return ((*a)->key > (*b)->key) - ((*a)->key < (*b)->key);
}

static void sort_leaves(struct refmap *map)
{
    if (!map->leaves_sorted) {
        qsort(map->leaves, map->leaf_count, sizeof(struct refmap_leaf *), compare_leaves);
        map->leaves_sorted = true;
    }
}

/* Position in leaves of the first one whose key is not below `key`. */
static size_t lower_bound(const struct refmap *map, uint64_t key)
{
    size_t low = 0;
    size_t high = map->leaf_count;
    while (low < high) {
        size_t middle = low + (high - low) / 2;
        if (map->leaves[middle]->key < key) {
            low = middle + 1;
        } else {
            high = middle;
        }
    }
    return low;
}

bool refmap_next(struct refmap *map, uint64_t *index)
{
    uint64_t key = *index >> LEAF_BITS;
    size_t at = *index & (LEAF_COUNTS - 1);

    sort_leaves(map);
    for (size_t i = lower_bound(map, key); i < map->leaf_count; i++) {
        const struct refmap_leaf *leaf = map->leaves[i];
        if (leaf->key != key) {
            at = 0;
        }
        for (; at < LEAF_COUNTS; at++) {
            if (leaf_get(leaf, at) > 0) {
                *index = (leaf->key << LEAF_BITS) | at;
                return true;
            }
        }
    }
    return false;
}

uint64_t refmap_end(struct refmap *map)
{
    sort_leaves(map);
    for (size_t i = map->leaf_count; i > 0; i--) {
        const struct refmap_leaf *leaf = map->leaves[i - 1];
        for (size_t at = LEAF_COUNTS; at > 0; at--) {
            if (leaf_get(leaf, at - 1) > 0) {
                return ((leaf->key << LEAF_BITS) | (at - 1)) + 1;
            }
        }
    }
    return 0;
}
