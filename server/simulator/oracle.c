/* SPDX-License-Identifier: BSD-2-Clause */
/*
 * A sorted array of ranges that cover the disk, each with its candidates. Moments are a counter
 * that moves with every event, so that no two are equal.
 */
#include "simulator/oracle.h"

#include <assert.h>
#include <inttypes.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/check.h"

#define SECTOR_BYTES 512U
#define NEVER        UINT64_MAX
#define READS_MAX    256U
/* Ranges with this many candidates are looked through for what no question can reach any more. */
#define PRUNE_AT 8U
/* Two patterns could agree by chance on fewer bytes than this. */
#define TELLING_BYTES 12U

struct candidate {
    uint64_t began;
    uint64_t ended; /* NEVER: still running */
    uint64_t gone;  /* certainly overwritten since; NEVER: may be there */
    uint32_t value;
    bool not_durable; /* no power cut can bring it back */
};

struct range {
    uint64_t from; /* ends where the next begins */
    struct candidate *candidates;
    uint32_t count;
    uint32_t capacity;
    bool touched;
};

struct oracle {
    uint64_t size_bytes;
    uint64_t moment;
    uint64_t flushed; /* when the last successful flush began, or the last power cut was */
    struct range *ranges;
    size_t count;
    size_t capacity;
    uint64_t reads[READS_MAX]; /* when the running ones began */
    unsigned read_count;
};

static void *must_have(void *memory)
{
    if (!memory) {
        abort();
    }
    return memory;
}

/* Invertible, so that a stray word tells where it comes from. */
static uint64_t mix(uint64_t x)
{
    x *= 0xff51afd7ed558ccdULL;
    x ^= x >> 32;
    x *= 0xc4ceb9fe1a85ec53ULL;
    return x ^ (x >> 32);
}

static uint64_t inverse_of_odd(uint64_t a)
{
    uint64_t inverse = a;
    for (int i = 0; i < 6; i++) {
        inverse *= 2 - a * inverse;
    }
    return inverse;
}

static uint64_t unmix(uint64_t x)
{
    x ^= x >> 32;
    x *= inverse_of_odd(0xc4ceb9fe1a85ec53ULL);
    x ^= x >> 32;
    return x * inverse_of_odd(0xff51afd7ed558ccdULL);
}

static uint64_t pattern_word(uint32_t value, uint64_t word_index)
{
    return value == ORACLE_ZERO ? 0 : mix(((uint64_t)value << 32) | (uint32_t)word_index);
}

void oracle_pattern(uint32_t value, uint64_t offset, void *buf, size_t len)
{
    uint8_t *to = buf;
    if (value == ORACLE_ZERO) {
        memset(to, 0, len);
        return;
    }
    while (len > 0) {
        uint64_t word = pattern_word(value, offset / 8);
        size_t skip = (size_t)(offset % 8);
        if (skip == 0 && len >= 8) {
            memcpy(to, &word, 8);
            to += 8;
            offset += 8;
            len -= 8;
            continue;
        }
        size_t part = MIN_OF(8 - skip, len);
        memcpy(to, (const uint8_t *)&word + skip, part);
        to += part;
        offset += part;
        len -= part;
    }
}

static bool pattern_matches(uint32_t value, uint64_t offset, const uint8_t *bytes, size_t len)
{
    while (len > 0) {
        uint64_t word = pattern_word(value, offset / 8);
        uint64_t found;
        size_t skip = (size_t)(offset % 8);
        size_t part = MIN_OF(8 - skip, len);
        if (part == 8) {
            memcpy(&found, bytes, 8);
        } else {
            found = word;
            memcpy((uint8_t *)&found + skip, bytes, part);
        }
        if (found != word) {
            return false;
        }
        bytes += part;
        offset += part;
        len -= part;
    }
    return true;
}

struct oracle *oracle_create(uint64_t size_bytes)
{
    struct oracle *oracle = must_have(calloc(1, sizeof(*oracle)));
    oracle->size_bytes = size_bytes;
    oracle->moment = 1;
    oracle->flushed = 1;
    oracle->capacity = 64;
    oracle->ranges = must_have(calloc(oracle->capacity, sizeof(struct range)));
    oracle->count = 1;
    struct range *all = &oracle->ranges[0];
    all->capacity = 4;
    all->candidates = must_have(calloc(all->capacity, sizeof(struct candidate)));
    all->count = 1;
    all->candidates[0] = (struct candidate){.began = 1, .ended = 1, .gone = NEVER};
    return oracle;
}

void oracle_free(struct oracle *oracle)
{
    if (!oracle) {
        return;
    }
    for (size_t i = 0; i < oracle->count; i++) {
        free(oracle->ranges[i].candidates);
    }
    free(oracle->ranges);
    free(oracle);
}

static uint64_t range_end(const struct oracle *oracle, size_t index)
{
    return index + 1 < oracle->count ? oracle->ranges[index + 1].from : oracle->size_bytes;
}

/* The range that holds the byte. */
static size_t range_at(const struct oracle *oracle, uint64_t offset)
{
    size_t low = 0;
    size_t high = oracle->count;
    while (high - low > 1) {
        size_t middle = (low + high) / 2;
        if (oracle->ranges[middle].from <= offset) {
            low = middle;
        } else {
            high = middle;
        }
    }
    return low;
}

/* Makes a range begin at `offset` and returns its index; the count at the end of the disk. */
static size_t split_at(struct oracle *oracle, uint64_t offset)
{
    if (offset == oracle->size_bytes) {
        return oracle->count;
    }
    size_t index = range_at(oracle, offset);
    if (oracle->ranges[index].from == offset) {
        return index;
    }
    if (oracle->count == oracle->capacity) {
        oracle->capacity *= 2;
        oracle->ranges =
            must_have(realloc(oracle->ranges, oracle->capacity * sizeof(struct range)));
    }
    struct range *left = &oracle->ranges[index];
    memmove(left + 2, left + 1, (oracle->count - index - 1) * sizeof(struct range));
    oracle->count++;
    struct range *right = left + 1;
    *right = *left;
    right->from = offset;
    right->capacity = left->count + 2;
    right->candidates = must_have(malloc(right->capacity * sizeof(struct candidate)));
    memcpy(right->candidates, left->candidates, left->count * sizeof(struct candidate));
    return index + 1;
}

static uint64_t oldest_read(const struct oracle *oracle)
{
    uint64_t oldest = NEVER;
    for (unsigned i = 0; i < oracle->read_count; i++) {
        oldest = MIN_OF(oldest, oracle->reads[i]);
    }
    return oldest;
}

/* May a power cut now leave this? */
static bool may_survive(const struct oracle *oracle, const struct candidate *candidate)
{
    return candidate->gone > oracle->flushed && !candidate->not_durable;
}

static void prune(struct oracle *oracle, struct range *range)
{
    uint64_t oldest = oldest_read(oracle);
    uint32_t kept = 0;
    for (uint32_t i = 0; i < range->count; i++) {
        const struct candidate *candidate = &range->candidates[i];
        if (candidate->gone == NEVER || candidate->gone > oldest ||
            may_survive(oracle, candidate)) {
            range->candidates[kept++] = *candidate;
        }
    }
    assert(kept > 0);
    range->count = kept;
}

static void candidate_add(struct oracle *oracle, struct range *range, struct candidate candidate)
{
    if (range->count >= PRUNE_AT) {
        prune(oracle, range);
    }
    if (range->count == range->capacity) {
        range->capacity *= 2;
        range->candidates =
            must_have(realloc(range->candidates, range->capacity * sizeof(struct candidate)));
    }
    range->candidates[range->count++] = candidate;
}

static bool ranges_equal(const struct range *a, const struct range *b)
{
    if (a->count != b->count || a->touched != b->touched) {
        return false;
    }
    for (uint32_t i = 0; i < a->count; i++) {
        const struct candidate *x = &a->candidates[i];
        const struct candidate *y = &b->candidates[i];
        if (x->value != y->value || x->began != y->began || x->ended != y->ended ||
            x->gone != y->gone || x->not_durable != y->not_durable) {
            return false;
        }
    }
    return true;
}

/* Joins neighbours that have become equal, in [first, last]. */
static void join_equal(struct oracle *oracle, size_t first, size_t last)
{
    last = MIN_OF(last, oracle->count - 1);
    size_t to = first;
    for (size_t i = first + 1; i <= last; i++) {
        if (ranges_equal(&oracle->ranges[to], &oracle->ranges[i])) {
            free(oracle->ranges[i].candidates);
        } else {
            oracle->ranges[++to] = oracle->ranges[i];
        }
    }
    if (to < last) {
        memmove(&oracle->ranges[to + 1], &oracle->ranges[last + 1],
                (oracle->count - last - 1) * sizeof(struct range));
        oracle->count -= last - to;
    }
}

void oracle_preset(struct oracle *oracle, uint64_t from, uint64_t len, uint32_t value)
{
    if (len == 0) {
        return;
    }
    size_t first = split_at(oracle, from);
    size_t end = split_at(oracle, from + len);
    for (size_t i = first; i < end; i++) {
        oracle->ranges[i].count = 1;
        oracle->ranges[i].touched = true;
        oracle->ranges[i].candidates[0] =
            (struct candidate){.value = value, .began = 1, .ended = 1, .gone = NEVER};
    }
}

void oracle_inherit(struct oracle *oracle, const struct oracle *from)
{
    for (size_t i = 0; i < from->count; i++) {
        const struct range *source = &from->ranges[i];
        uint64_t end = MIN_OF(range_end(from, i), oracle->size_bytes);
        if (source->from >= end) {
            break;
        }
        size_t first = split_at(oracle, source->from);
        split_at(oracle, end);
        struct range *range = &oracle->ranges[first];
        range->count = 0;
        range->touched = source->touched;
        for (uint32_t j = 0; j < source->count; j++) {
            if (source->candidates[j].gone == NEVER) {
                assert(source->candidates[j].ended != NEVER);
                candidate_add(oracle, range,
                              (struct candidate){.value = source->candidates[j].value,
                                                 .began = 1,
                                                 .ended = 1,
                                                 .gone = NEVER});
            }
        }
    }
}

uint64_t oracle_write_begin(struct oracle *oracle, uint64_t offset, uint64_t len, uint32_t value)
{
    uint64_t now = ++oracle->moment;
    size_t first = split_at(oracle, offset);
    size_t end = split_at(oracle, offset + len);
    for (size_t i = first; i < end; i++) {
        oracle->ranges[i].touched = true;
        candidate_add(
            oracle, &oracle->ranges[i],
            (struct candidate){.value = value, .began = now, .ended = NEVER, .gone = NEVER});
    }
    return now;
}

static void write_ends_here(struct range *range, uint64_t began, enum oracle_outcome outcome,
                            bool durable, uint64_t now)
{
    for (uint32_t i = 0; i < range->count; i++) {
        struct candidate *candidate = &range->candidates[i];
        if (candidate->began == began) {
            if (outcome == ORACLE_NOTHING) {
                *candidate = range->candidates[--range->count];
                i--;
            } else {
                candidate->ended = now;
            }
        } else if (outcome == ORACLE_DONE && candidate->ended < began) {
            candidate->gone = MIN_OF(candidate->gone, now);
            candidate->not_durable |= durable;
        }
    }
}

void oracle_write_end(struct oracle *oracle, uint64_t offset, uint64_t len, uint64_t began,
                      enum oracle_outcome outcome, bool durable)
{
    uint64_t now = ++oracle->moment;
    size_t first = split_at(oracle, offset);
    size_t end = split_at(oracle, offset + len);
    for (size_t i = first; i < end; i++) {
        write_ends_here(&oracle->ranges[i], began, outcome, durable, now);
        if (oracle->ranges[i].count >= PRUNE_AT) {
            prune(oracle, &oracle->ranges[i]);
        }
    }
    join_equal(oracle, first, end);
}

uint64_t oracle_read_begin(struct oracle *oracle)
{
    assert(oracle->read_count < READS_MAX);
    uint64_t now = ++oracle->moment;
    oracle->reads[oracle->read_count++] = now;
    return now;
}

void oracle_read_drop(struct oracle *oracle, uint64_t began)
{
    for (unsigned i = 0; i < oracle->read_count; i++) {
        if (oracle->reads[i] == began) {
            oracle->reads[i] = oracle->reads[--oracle->read_count];
            return;
        }
    }
    assert(oracle->read_count == 0); /* a power cut forgot it */
}

struct text {
    char *to;
    size_t room;
};

static void text_add(struct text *text, const char *format, ...)
    __attribute__((format(printf, 2, 3)));

static void text_add(struct text *text, const char *format, ...)
{
    va_list args;
    va_start(args, format);
    int used = vsnprintf(text->to, text->room, format, args);
    va_end(args);
    if (used > 0) {
        size_t step = MIN_OF((size_t)used, text->room - 1);
        text->to += step;
        text->room -= step;
    }
}

/* What a word of a pattern says: whose it is and where it belongs. */
struct origin {
    uint32_t value;
    uint64_t offset;
};

static struct origin origin_of(uint64_t word)
{
    if (word == 0) {
        return (struct origin){.value = ORACLE_ZERO};
    }
    uint64_t mixed = unmix(word);
    return (struct origin){(uint32_t)(mixed >> 32), (uint64_t)(uint32_t)mixed * 8};
}

/* Says what the bytes are, run by run of words. Ragged ends are left out. */
static void describe_bytes(struct text *text, uint64_t offset, const uint8_t *bytes, size_t len)
{
    size_t at = (size_t)((8 - offset % 8) % 8);
    struct origin last = {.value = ORACLE_ZERO, .offset = UINT64_MAX};
    bool first = true;
    text_add(text, "bytes");
    for (size_t i = 0; i < MIN_OF(len, 8U); i++) {
        text_add(text, " %02x", bytes[i]);
    }
    for (; at + 8 <= len; at += 8) {
        uint64_t word;
        memcpy(&word, bytes + at, sizeof(word));
        struct origin origin = origin_of(word);
        bool follows =
            !first && origin.value == last.value && (word == 0 || origin.offset == last.offset + 8);
        first = false;
        last = origin;
        if (follows) {
            continue;
        }
        if (word == 0) {
            text_add(text, "; from %#" PRIx64 " zeroes", offset + at);
        } else {
            text_add(text, "; from %#" PRIx64 " what write %" PRIu32 " put at %#" PRIx64,
                     offset + at, origin.value, origin.offset);
        }
    }
}

static void describe_range(struct text *text, const struct oracle *oracle, size_t index)
{
    const struct range *range = &oracle->ranges[index];
    text_add(text, "\n  candidates for [%#" PRIx64 ", %#" PRIx64 "), last flush at %" PRIu64 ":",
             range->from, range_end(oracle, index), oracle->flushed);
    for (uint32_t i = 0; i < range->count; i++) {
        const struct candidate *candidate = &range->candidates[i];
        text_add(text, "\n    write %" PRIu32 " began %" PRIu64, candidate->value,
                 candidate->began);
        if (candidate->ended == NEVER) {
            text_add(text, ", running");
        } else {
            text_add(text, ", ended %" PRIu64, candidate->ended);
        }
        if (candidate->gone != NEVER) {
            text_add(text, ", overwritten by %" PRIu64, candidate->gone);
        }
    }
}

/* What part of a sector in one range turned out to be. */
struct found {
    bool legal;
    bool telling; /* only one value matches */
    uint32_t value;
};

static struct found identify(const struct range *range, uint64_t began, uint64_t offset,
                             const uint8_t *bytes, size_t len)
{
    struct found found = {.telling = true};
    for (uint32_t i = 0; i < range->count; i++) {
        const struct candidate *candidate = &range->candidates[i];
        if (candidate->gone <= began || (found.legal && candidate->value == found.value)) {
            continue;
        }
        if (found.legal && len >= TELLING_BYTES) {
            break;
        }
        if (pattern_matches(candidate->value, offset, bytes, len)) {
            found.telling = !found.legal;
            found.legal = true;
            found.value = candidate->value;
        }
    }
    return found;
}

/* Whether nothing was written there since the read began, and there is something to settle. */
static bool can_settle(const struct range *range, uint64_t began, uint64_t *settled_at)
{
    unsigned possible = 0;
    *settled_at = 0;
    for (uint32_t i = 0; i < range->count; i++) {
        const struct candidate *candidate = &range->candidates[i];
        if (candidate->gone == NEVER) {
            if (candidate->ended > began) {
                return false;
            }
            possible++;
            *settled_at = MAX_OF(*settled_at, candidate->ended);
        }
    }
    return possible > 1;
}

static void settle(struct range *range, uint32_t value, uint64_t settled_at)
{
    for (uint32_t i = 0; i < range->count; i++) {
        struct candidate *candidate = &range->candidates[i];
        if (candidate->gone == NEVER && candidate->value != value) {
            candidate->gone = settled_at;
        }
    }
}

bool oracle_read_check(struct oracle *oracle, uint64_t began, uint64_t offset, const void *buf,
                       size_t len, char *why, size_t why_bytes)
{
    const uint8_t *bytes = buf;
    uint64_t end = offset + len;
    size_t index = range_at(oracle, offset);
    size_t first = index;
    uint64_t at = offset;
    while (at < end) {
        while (range_end(oracle, index) <= at) {
            index++;
        }
        uint64_t part_end = MIN_OF(end, range_end(oracle, index));
        part_end = MIN_OF(part_end, round_down_to(at, SECTOR_BYTES) + SECTOR_BYTES);
        size_t part = (size_t)(part_end - at);
        struct found found =
            identify(&oracle->ranges[index], began, at, bytes + (at - offset), part);
        if (!found.legal) {
            struct text text = {why, why_bytes};
            text_add(&text,
                     "read [%#" PRIx64 ", +%#zx) begun at %" PRIu64 " found at %#" PRIx64 " ",
                     offset, len, began, at);
            describe_bytes(&text, at, bytes + (at - offset), part);
            describe_range(&text, oracle, index);
            return false;
        }
        uint64_t settled_at;
        if (found.telling && can_settle(&oracle->ranges[index], began, &settled_at)) {
            index = split_at(oracle, at);
            split_at(oracle, part_end);
            settle(&oracle->ranges[index], found.value, settled_at);
        }
        at = part_end;
    }
    join_equal(oracle, first, index + 1);
    return true;
}

bool oracle_read_end(struct oracle *oracle, uint64_t began, uint64_t offset, const void *buf,
                     size_t len, char *why, size_t why_bytes)
{
    oracle_read_drop(oracle, began);
    ++oracle->moment;
    return oracle_read_check(oracle, began, offset, buf, len, why, why_bytes);
}

uint64_t oracle_flush_begin(struct oracle *oracle)
{
    return ++oracle->moment;
}

void oracle_flush_done(struct oracle *oracle, uint64_t began)
{
    ++oracle->moment;
    oracle->flushed = MAX_OF(oracle->flushed, began);
}

void oracle_power_cut(struct oracle *oracle)
{
    uint64_t now = ++oracle->moment;
    for (size_t i = 0; i < oracle->count; i++) {
        struct range *range = &oracle->ranges[i];
        uint32_t kept = 0;
        /* Equal values of different writes stay apart: the ranges beside have other histories. */
        for (uint32_t j = 0; j < range->count; j++) {
            struct candidate candidate = range->candidates[j];
            if (may_survive(oracle, &candidate)) {
                candidate.ended = now;
                candidate.gone = NEVER;
                range->candidates[kept++] = candidate;
            }
        }
        assert(kept > 0);
        range->count = kept;
    }
    oracle->flushed = now;
    oracle->read_count = 0;
    join_equal(oracle, 0, oracle->count - 1);
}

bool oracle_next_touched(const struct oracle *oracle, uint64_t offset, uint64_t *from, uint64_t *to)
{
    if (offset >= oracle->size_bytes) {
        return false;
    }
    for (size_t i = range_at(oracle, offset); i < oracle->count; i++) {
        if (oracle->ranges[i].touched) {
            *from = MAX_OF(offset, oracle->ranges[i].from);
            *to = range_end(oracle, i);
            return true;
        }
    }
    return false;
}
