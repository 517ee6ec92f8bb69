/* SPDX-License-Identifier: BSD-2-Clause */
/* Open addressing with linear probing, at most half full; removal closes the gap it leaves. */
#include "qcow2/metamap.h"

#include <errno.h>
#include <stdlib.h>

#define SLOTS_MIN 256U

int metamap_init(struct metamap *map)
{
    *map = (struct metamap){.slots = calloc(SLOTS_MIN, sizeof(uint64_t)), .mask = SLOTS_MIN - 1};
    return map->slots ? 0 : -ENOMEM;
}

void metamap_free(struct metamap *map)
{
    free(map->slots);
    *map = (struct metamap){0};
}

static uint64_t home_slot(const struct metamap *map, uint64_t cluster)
{
    return (cluster * 0x9e3779b97f4a7c15ULL >> 20) & map->mask;
}

/* Where the cluster is, or the free slot where it would go. */
static uint64_t find_slot(const struct metamap *map, uint64_t cluster)
{
    uint64_t slot = home_slot(map, cluster);
    while (map->slots[slot] != 0 && map->slots[slot] != cluster + 1) {
        slot = (slot + 1) & map->mask;
    }
    return slot;
}

static int grow(struct metamap *map)
{
    struct metamap bigger = {.mask = map->mask * 2 + 1, .count = map->count};
    bigger.slots = calloc(bigger.mask + 1, sizeof(uint64_t));
    if (!bigger.slots) {
        return -ENOMEM;
    }
    for (uint64_t i = 0; i <= map->mask; i++) {
        if (map->slots[i] != 0) {
            bigger.slots[find_slot(&bigger, map->slots[i] - 1)] = map->slots[i];
        }
    }
    free(map->slots);
    *map = bigger;
    return 0;
}

int metamap_add(struct metamap *map, uint64_t cluster)
{
    if (map->count * 2 > map->mask) {
        int ret = grow(map);
        if (ret < 0) {
            return ret;
        }
    }
    uint64_t slot = find_slot(map, cluster);
    if (map->slots[slot] != 0) {
        return 1;
    }
    map->slots[slot] = cluster + 1;
    map->count++;
    return 0;
}

void metamap_remove(struct metamap *map, uint64_t cluster)
{
    uint64_t hole = find_slot(map, cluster);
    if (map->slots[hole] == 0) {
        return;
    }
    map->count--;
    for (uint64_t slot = (hole + 1) & map->mask; map->slots[slot] != 0;
         slot = (slot + 1) & map->mask) {
        uint64_t home = home_slot(map, map->slots[slot] - 1);
        /* May move into the hole unless its home lies (cyclically) behind it. */
        if (((slot - home) & map->mask) >= ((slot - hole) & map->mask)) {
            map->slots[hole] = map->slots[slot];
            hole = slot;
        }
    }
    map->slots[hole] = 0;
}

bool metamap_contains(const struct metamap *map, uint64_t cluster)
{
    return map->slots[find_slot(map, cluster)] != 0;
}

uint64_t metamap_first_in(const struct metamap *map, uint64_t first, uint64_t count)
{
    for (uint64_t cluster = first; cluster < first + count; cluster++) {
        if (metamap_contains(map, cluster)) {
            return cluster;
        }
    }
    return first + count;
}
