/* SPDX-License-Identifier: BSD-2-Clause */
/*
 * The extension's size follows from the cluster size alone, so that it is made once and then only
 * changed in place. Opening only sets bits, and closing only clears bits that may be cleared: a
 * write that a crash tears between sectors leaves some of it done, which is as good.
 */
#include "qcow2/bitmap_intent.h"

#include <assert.h>
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "base/bytes.h"
#include "base/check.h"
#include "qcow2/engine.h"

#define VERSION          1U
#define REGIONS_AT       offsetof(struct qcow2_disk_intent, names)
#define REGION_BITS_MIN  20U
#define REGION_BITS_MAX  62U
#define REGION_BYTES_MAX 4096U
#define SHARE_OF_HEADER  8U /* of the first cluster it takes one part in so many, at most */

uint64_t intent_name_hash(const char *name)
{
    uint64_t hash = 0xcbf29ce484222325ULL; /* FNV-1a */
    for (; *name; name++) {
        hash = (hash ^ (uint8_t)*name) * 0x100000001b3ULL;
    }
    return hash;
}

void intent_init(struct bitmap_intent *intent)
{
    *intent = (struct bitmap_intent){0};
    co_mutex_init(&intent->lock);
}

void intent_free(struct bitmap_intent *intent)
{
    free(intent->open);
    free(intent->wanted);
    free(intent->touched);
    intent->open = intent->wanted = intent->touched = NULL;
    intent->place.len = 0;
}

/* ---- Regions ---- */

static uint32_t bytes_of(uint32_t regions)
{
    return (uint32_t)div_round_up(regions, 8);
}

static bool bit(const uint8_t *bits, uint64_t index)
{
    return bits[index / 8] >> index % 8 & 1;
}

static void set_bits(uint8_t *bits, uint64_t first, uint64_t last)
{
    for (uint64_t i = first; i <= last; i++) {
        bits[i / 8] |= (uint8_t)(1U << i % 8);
    }
}

static uint64_t region_at(const struct bitmap_intent *intent, uint64_t offset)
{
    return offset >> intent->region_bits;
}

bool intent_is_open(const struct bitmap_intent *intent, uint64_t offset, uint64_t len)
{
    if (intent->place.len == 0) {
        return true;
    }
    uint64_t last = region_at(intent, offset + len - 1);
    for (uint64_t i = region_at(intent, offset); i <= last; i++) {
        if (!bit(intent->open, i)) {
            return false;
        }
    }
    return true;
}

void intent_touch(struct bitmap_intent *intent, uint64_t offset, uint64_t len)
{
    if (intent->place.len > 0) {
        set_bits(intent->touched, region_at(intent, offset), region_at(intent, offset + len - 1));
    }
}

void intent_forget_touched(struct bitmap_intent *intent)
{
    if (intent->place.len > 0) {
        memset(intent->touched, 0, bytes_of(intent->region_count));
    }
}

uint32_t intent_count_open(const struct bitmap_intent *intent)
{
    uint32_t count = 0;
    for (uint32_t i = 0; intent->place.len > 0 && i < bytes_of(intent->region_count); i++) {
        count += (unsigned)__builtin_popcount(intent->open[i]);
    }
    return count;
}

uint32_t intent_count_idle(const struct bitmap_intent *intent)
{
    uint32_t count = 0;
    for (uint32_t i = 0; intent->place.len > 0 && i < bytes_of(intent->region_count); i++) {
        count += (unsigned)__builtin_popcount(intent->open[i] & ~(unsigned)intent->touched[i]);
    }
    return count;
}

/* ---- The extension ---- */

/* How a cluster's share is spent. */
static void lay_out(const struct geometry *geo, struct bitmap_intent *intent)
{
    uint64_t share = geo->cluster_bytes / SHARE_OF_HEADER;
    uint64_t slots = MIN_OF(MAX_OF(share / 64, 1U), (uint64_t)INTENT_NAMES_MAX);
    uint64_t rest = share - REGIONS_AT - slots * sizeof(be64_t);
    uint64_t regions = MIN_OF(round_down_to(rest, 8), (uint64_t)REGION_BYTES_MAX) * 8;

    intent->name_slots = (uint32_t)slots;
    intent->region_bits = REGION_BITS_MIN;
    while (div_round_up(geo->size_bytes, 1ULL << intent->region_bits) > regions) {
        intent->region_bits++;
    }
    intent->region_count =
        (uint32_t)MAX_OF(div_round_up(geo->size_bytes, 1ULL << intent->region_bits), 1U);
}

static uint32_t regions_offset(uint32_t name_slots)
{
    return (uint32_t)(REGIONS_AT + name_slots * sizeof(be64_t));
}

/* Of the whole share, so that a disk may grow without another place. */
static uint32_t extension_len(const struct geometry *geo, const struct bitmap_intent *intent)
{
    uint64_t most = regions_offset(intent->name_slots) + REGION_BYTES_MAX;
    return (uint32_t)MIN_OF(round_down_to(geo->cluster_bytes / SHARE_OF_HEADER, 8), most);
}

static void encode(const struct bitmap_intent *intent, const uint64_t *hashes, uint32_t count,
                   uint8_t *data)
{
    struct qcow2_disk_intent raw = {0};
    put_be32(raw.version.bytes, VERSION);
    put_be32(raw.region_bits.bytes, intent->region_bits);
    put_be32(raw.region_count.bytes, intent->region_count);
    put_be32(raw.name_slots.bytes, intent->name_slots);
    put_be32(raw.name_count.bytes, count);
    memcpy(data, &raw, sizeof(raw));
    for (uint32_t i = 0; i < count; i++) {
        put_be64(data + REGIONS_AT + i * sizeof(be64_t), hashes[i]);
    }
}

/* With q->header_lock. */
static int co_put_extension(struct qcow2 *q, struct bitmap_intent *intent, const uint8_t *data,
                            uint32_t len)
{
    int ret = co_header_extension_find(q->disk, &q->header, QCOW2_EXT_INTENT, &intent->place);
    if (ret == 0 && intent->place.len != len) {
        ret = co_header_extension_remove(q->disk, &q->header, QCOW2_EXT_INTENT);
        ret = ret < 0 ? ret : -ENOENT;
    }
    if (ret == -ENOENT) {
        return co_header_extension_add(q->disk, &q->header, QCOW2_EXT_INTENT, data, len,
                                       &intent->place);
    }
    if (ret == 0) {
        ret = co_header_extension_write(q->disk, &intent->place, 0, data, len);
    }
    return ret < 0 ? ret : co_disk_flush(q->disk);
}

int co_intent_begin(struct qcow2 *q, struct bitmap_intent *intent, const uint64_t *hashes,
                    uint32_t count, uint32_t *named)
{
    assert(!(q->header.autoclear & QCOW2_AUTOCLEAR_INTENT));
    intent_free(intent);
    lay_out(&q->geo, intent);
    uint32_t len = extension_len(&q->geo, intent);
    uint32_t bytes = bytes_of(intent->region_count);
    uint8_t *data = calloc(1, len);
    intent->open = calloc(1, bytes);
    intent->wanted = calloc(1, bytes);
    intent->touched = calloc(1, bytes);
    *named = MIN_OF(count, intent->name_slots);
    int ret = data && intent->open && intent->wanted && intent->touched ? 0 : -ENOMEM;
    if (ret == 0) {
        encode(intent, hashes, *named, data);
        co_mutex_lock(&q->header_lock);
        ret = co_put_extension(q, intent, data, len);
        co_mutex_unlock(&q->header_lock);
    }
    free(data);
    if (ret < 0) {
        intent_free(intent);
        *named = 0;
    }
    return ret == -ENOSPC ? 0 : ret;
}

/* Writes the bytes of the regions' bits that have changed, as they are in `bits`. */
static int co_write_bits(struct qcow2 *q, const struct bitmap_intent *intent, const uint8_t *bits,
                         uint32_t first, uint32_t end)
{
    co_mutex_lock(&q->header_lock);
    int ret = co_header_extension_write(q->disk, &intent->place,
                                        regions_offset(intent->name_slots) + first, bits + first,
                                        end - first);
    co_mutex_unlock(&q->header_lock);
    return ret < 0 ? engine_fail(q, -ret, "writing write-intent regions") : 0;
}

int co_intent_open(struct qcow2 *q, struct bitmap_intent *intent, uint64_t offset, uint64_t len)
{
    uint32_t bytes = bytes_of(intent->region_count);
    uint32_t first = bytes;
    uint32_t end = 0;

    set_bits(intent->wanted, region_at(intent, offset), region_at(intent, offset + len - 1));
    co_mutex_lock(&intent->lock);
    uint8_t *next = malloc(bytes);
    int ret = q->failed ? -EIO : next ? 0 : -ENOMEM;
    for (uint32_t i = 0; ret == 0 && i < bytes; i++) {
        next[i] = intent->open[i] | intent->wanted[i];
        if (next[i] != intent->open[i]) {
            first = MIN_OF(first, i);
            end = i + 1;
        }
        intent->wanted[i] = 0;
    }
    if (ret == 0 && first < end) {
        ret = co_write_bits(q, intent, next, first, end);
        if (ret == 0) {
            ret = co_disk_flush(q->disk);
            ret = ret < 0 ? engine_fail(q, -ret, "fsync") : 0;
        }
        if (ret == 0) {
            memcpy(intent->open + first, next + first, end - first);
        }
    }
    free(next);
    co_mutex_unlock(&intent->lock);
    return ret;
}

int co_intent_close_idle(struct qcow2 *q, struct bitmap_intent *intent)
{
    uint32_t bytes = bytes_of(intent->region_count);
    uint32_t first = bytes;
    uint32_t end = 0;
    int ret = 0;

    if (intent->place.len == 0) {
        return 0;
    }
    co_mutex_lock(&intent->lock);
    uint8_t *next = malloc(bytes);
    ret = q->failed ? -EIO : next ? 0 : -ENOMEM;
    /* One step: who comes after it finds them closed, and waits for the lock to open them. */
    for (uint32_t i = 0; ret == 0 && i < bytes; i++) {
        next[i] = intent->open[i] & intent->touched[i];
        if (next[i] != intent->open[i]) {
            first = MIN_OF(first, i);
            end = i + 1;
            intent->open[i] = next[i];
        }
    }
    if (ret == 0 && first < end) {
        ret = co_write_bits(q, intent, next, first, end);
    }
    free(next);
    co_mutex_unlock(&intent->lock);
    return ret;
}

/* ---- After a crash ---- */

static bool can_be_trusted(const struct header *header, const struct intent_left *left,
                           uint32_t version, uint32_t name_slots, uint32_t len)
{
    return version == VERSION && left->region_bits >= REGION_BITS_MIN &&
           left->region_bits <= REGION_BITS_MAX && name_slots <= INTENT_NAMES_MAX &&
           left->name_count <= name_slots &&
           left->region_count >= div_round_up(header->geo.size_bytes, 1ULL << left->region_bits) &&
           len >= regions_offset(name_slots) &&
           bytes_of(left->region_count) <= len - regions_offset(name_slots);
}

int co_intent_read(struct disk *disk, const struct header *header, struct intent_left *left)
{
    struct qcow2_disk_intent raw;
    struct header_place place;

    *left = (struct intent_left){0};
    if (!(header->autoclear & QCOW2_AUTOCLEAR_INTENT)) {
        return -ENOENT;
    }
    int ret = co_header_extension_find(disk, header, QCOW2_EXT_INTENT, &place);
    if (ret < 0 || place.len < sizeof(raw)) {
        return ret == -EINVAL || ret == 0 ? -ENOENT : ret;
    }
    uint8_t *data = malloc(place.len);
    ret = data ? co_disk_read(disk, place.offset, data, place.len) : -ENOMEM;
    if (ret == 0) {
        memcpy(&raw, data, sizeof(raw));
        left->region_bits = get_be32(raw.region_bits.bytes);
        left->region_count = get_be32(raw.region_count.bytes);
        left->name_count = get_be32(raw.name_count.bytes);
        uint32_t slots = get_be32(raw.name_slots.bytes);
        ret = can_be_trusted(header, left, get_be32(raw.version.bytes), slots, place.len) ? 0
                                                                                          : -ENOENT;
        for (uint32_t i = 0; ret == 0 && i < left->name_count; i++) {
            left->names[i] = get_be64(data + REGIONS_AT + i * sizeof(be64_t));
        }
        left->open = ret == 0 ? malloc(bytes_of(left->region_count) + 1) : NULL;
        if (left->open) {
            memcpy(left->open, data + regions_offset(slots), bytes_of(left->region_count));
        } else if (ret == 0) {
            ret = -ENOMEM;
        }
    }
    free(data);
    if (ret < 0) {
        intent_left_free(left);
    }
    return ret;
}

void intent_left_free(struct intent_left *left)
{
    free(left->open);
    *left = (struct intent_left){0};
}

bool intent_left_names(const struct intent_left *left, const char *name)
{
    uint64_t hash = intent_name_hash(name);
    for (uint32_t i = 0; i < left->name_count; i++) {
        if (left->names[i] == hash) {
            return true;
        }
    }
    return false;
}
