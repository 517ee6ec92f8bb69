/* SPDX-License-Identifier: BSD-2-Clause */
/*
 * Bits beyond the end of the disk are never set in a page that has memory, and are masked where a
 * page is set without memory.
 */
#include "qcow2/bitmap.h"

#include <assert.h>
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "base/check.h"

#define PAGE_GRANULES ((uint64_t)BITMAP_PAGE_BYTES * 8)

/* The page that has no memory and is all set. */
static uint8_t all_set;
#define PAGE_SET (&all_set)

static bool has_memory(const uint8_t *page)
{
    return page && page != PAGE_SET;
}

static void drop_page(struct bitmap *bitmap, uint64_t index, uint8_t *instead)
{
    if (has_memory(bitmap->pages[index])) {
        free(bitmap->pages[index]);
    }
    bitmap->pages[index] = instead;
}

static uint64_t granules_of(uint64_t size_bytes, unsigned granularity_bits)
{
    return (size_bytes >> granularity_bits) +
           ((size_bytes & ((1ULL << granularity_bits) - 1)) != 0);
}

/* Of this page, inside the disk. */
static uint64_t granules_in(const struct bitmap *bitmap, uint64_t index)
{
    return MIN_OF(PAGE_GRANULES, bitmap->granules - index * PAGE_GRANULES);
}

/* ---- Making ---- */

int bitmap_init(struct bitmap *bitmap, uint64_t size_bytes, unsigned granularity_bits)
{
    uint64_t granules = granules_of(size_bytes, granularity_bits);
    uint64_t page_count = div_round_up(granules, PAGE_GRANULES);

    *bitmap = (struct bitmap){
        .size_bytes = size_bytes,
        .granularity_bits = granularity_bits,
        .granules = granules,
        .page_count = page_count,
        .pages = calloc(page_count + 1, sizeof(*bitmap->pages)),
        .states = calloc(page_count + 1, 1),
    };
    if (!bitmap->pages || !bitmap->states) {
        bitmap_free(bitmap);
        return -ENOMEM;
    }
    return 0;
}

void bitmap_free(struct bitmap *bitmap)
{
    for (uint64_t i = 0; bitmap->pages && i < bitmap->page_count; i++) {
        drop_page(bitmap, i, NULL);
    }
    free(bitmap->pages);
    free(bitmap->states);
    *bitmap = (struct bitmap){0};
}

uint64_t bitmap_bytes_most(uint64_t size_bytes, unsigned granularity_bits)
{
    return div_round_up(granules_of(size_bytes, granularity_bits), PAGE_GRANULES) *
           (BITMAP_PAGE_BYTES + sizeof(uint8_t *) + 1);
}

/* ---- Marking ---- */

/* One with bits of its own, or NULL: it is set, be it for want of memory. */
static uint8_t *own_page(struct bitmap *bitmap, uint64_t index)
{
    if (!bitmap->pages[index]) {
        uint8_t *page = calloc(1, BITMAP_PAGE_BYTES);
        bitmap->pages[index] = page ? page : PAGE_SET;
    }
    return has_memory(bitmap->pages[index]) ? bitmap->pages[index] : NULL;
}

/* Sets bits [first, end) of a page. Whether one was clear. */
static bool set_bits(uint8_t *page, uint64_t first, uint64_t end)
{
    bool changed = false;

    while (first < end) {
        unsigned low = first % 8;
        unsigned count = (unsigned)MIN_OF(8U - low, end - first);
        uint8_t mask = (uint8_t)(((1U << count) - 1) << low);
        changed = changed || (page[first / 8] & mask) != mask;
        page[first / 8] |= mask;
        first += count;
    }
    return changed;
}

static bool set_in_page(struct bitmap *bitmap, uint64_t index, uint64_t first, uint64_t end)
{
    uint8_t *before = bitmap->pages[index];

    if (before == PAGE_SET) {
        return false;
    }
    if (first == 0 && end == granules_in(bitmap, index)) {
        drop_page(bitmap, index, PAGE_SET);
        return true;
    }
    uint8_t *page = own_page(bitmap, index);
    return page ? set_bits(page, first, end) : true;
}

bool bitmap_set(struct bitmap *bitmap, uint64_t offset, uint64_t len)
{
    assert(len > 0 && range_inside(offset, len, bitmap->size_bytes));
    uint64_t first = offset >> bitmap->granularity_bits;
    uint64_t end = ((offset + len - 1) >> bitmap->granularity_bits) + 1;
    bool changed = false;

    while (first < end) {
        uint64_t index = first / PAGE_GRANULES;
        uint64_t start = index * PAGE_GRANULES;
        uint64_t stop = MIN_OF(end, start + PAGE_GRANULES);
        if (set_in_page(bitmap, index, first - start, stop - start)) {
            bitmap->states[index] |= BITMAP_PAGE_UNSAVED;
            changed = true;
        }
        first = stop;
    }
    return changed;
}

void bitmap_set_whole(struct bitmap *bitmap)
{
    for (uint64_t i = 0; i < bitmap->page_count; i++) {
        drop_page(bitmap, i, PAGE_SET);
        bitmap->states[i] |= BITMAP_PAGE_UNSAVED;
    }
}

void bitmap_clear_whole(struct bitmap *bitmap)
{
    for (uint64_t i = 0; i < bitmap->page_count; i++) {
        drop_page(bitmap, i, NULL);
        bitmap->states[i] |= BITMAP_PAGE_UNSAVED;
    }
}

static void merge_page(struct bitmap *bitmap, const struct bitmap *from, uint64_t index)
{
    const uint8_t *theirs = from->pages[index];
    uint8_t *ours = bitmap->pages[index];

    if (!theirs || ours == PAGE_SET) {
        return;
    }
    bitmap->states[index] |= BITMAP_PAGE_UNSAVED;
    if (theirs == PAGE_SET) {
        set_in_page(bitmap, index, 0, granules_in(from, index));
        return;
    }
    ours = own_page(bitmap, index);
    for (size_t i = 0; ours && i < BITMAP_PAGE_BYTES; i++) {
        ours[i] |= theirs[i];
    }
}

void bitmap_merge(struct bitmap *bitmap, const struct bitmap *from)
{
    assert(from->size_bytes <= bitmap->size_bytes);
    if (bitmap->granularity_bits == from->granularity_bits) {
        for (uint64_t i = 0; i < from->page_count; i++) {
            merge_page(bitmap, from, i);
        }
        return;
    }
    for (uint64_t offset = 0; offset < from->size_bytes;) {
        bool is_dirty;
        uint64_t end;
        bitmap_next(from, offset, from->size_bytes, &is_dirty, &end);
        if (is_dirty) {
            bitmap_set(bitmap, offset, end - offset);
        }
        offset = end;
    }
}

/* Clears what a page has from granule `first` of it on. */
static void cut_page(struct bitmap *bitmap, uint64_t index, uint64_t first)
{
    uint8_t *page = bitmap->pages[index];

    if (!has_memory(page)) {
        return; /* set without memory: what is beyond the end is masked anyway */
    }
    memset(page + div_round_up(first, 8), 0, BITMAP_PAGE_BYTES - div_round_up(first, 8));
    if (first % 8 != 0) {
        page[first / 8] &= (uint8_t)((1U << first % 8) - 1);
    }
}

int bitmap_resize(struct bitmap *bitmap, uint64_t size_bytes)
{
    struct bitmap resized;
    uint64_t old_bytes = bitmap->size_bytes;
    int ret = bitmap_init(&resized, size_bytes, bitmap->granularity_bits);
    if (ret < 0) {
        return ret;
    }
    uint64_t kept = MIN_OF(bitmap->page_count, resized.page_count);
    for (uint64_t i = 0; i < kept; i++) {
        uint8_t *page = bitmap->pages[i];
        resized.pages[i] = page;
        resized.states[i] = bitmap->states[i];
        bitmap->pages[i] = NULL;
        /* Set as far as the disk went, and the disk ends elsewhere in it now. */
        if (page == PAGE_SET && granules_in(&resized, i) > granules_in(bitmap, i)) {
            uint64_t end = granules_in(bitmap, i);
            resized.pages[i] = NULL;
            uint8_t *own = own_page(&resized, i);
            if (own) {
                set_bits(own, 0, end);
            }
        }
    }
    if (kept > 0) {
        cut_page(&resized, kept - 1, granules_in(&resized, kept - 1));
    }
    bitmap_free(bitmap);
    *bitmap = resized;
    if (size_bytes > old_bytes) {
        bitmap_set(bitmap, old_bytes, size_bytes - old_bytes);
    }
    return 0;
}

/* ---- Looking ---- */

static bool is_set(const struct bitmap *bitmap, uint64_t granule)
{
    const uint8_t *page = bitmap->pages[granule / PAGE_GRANULES];
    uint64_t bit = granule % PAGE_GRANULES;

    return page == PAGE_SET || (page && (page[bit / 8] >> bit % 8 & 1));
}

/* The first granule from `granule` on, below `end`, that is not as `set` says; or `end`. */
static uint64_t run_of(const struct bitmap *bitmap, uint64_t granule, uint64_t end, bool set)
{
    uint8_t same = set ? 0xff : 0;

    while (granule < end) {
        const uint8_t *page = bitmap->pages[granule / PAGE_GRANULES];
        uint64_t bit = granule % PAGE_GRANULES;
        if (!has_memory(page)) {
            if ((page == PAGE_SET) != set) {
                return granule;
            }
            granule += PAGE_GRANULES - bit;
        } else if (bit % 8 == 0 && page[bit / 8] == same) {
            granule += 8;
        } else if ((page[bit / 8] >> bit % 8 & 1) == set) {
            granule++;
        } else {
            return granule;
        }
    }
    return end;
}

void bitmap_next(const struct bitmap *bitmap, uint64_t offset, uint64_t end, bool *is_dirty,
                 uint64_t *run_end)
{
    assert(offset < end && end <= bitmap->size_bytes);
    uint64_t granule = offset >> bitmap->granularity_bits;
    uint64_t last = (end - 1) >> bitmap->granularity_bits;

    *is_dirty = is_set(bitmap, granule);
    uint64_t stop = run_of(bitmap, granule, last + 1, *is_dirty);
    *run_end = stop > last ? end : stop << bitmap->granularity_bits;
}

uint64_t bitmap_count_bytes(const struct bitmap *bitmap)
{
    uint64_t count = 0;

    for (uint64_t i = 0; i < bitmap->page_count; i++) {
        const uint8_t *page = bitmap->pages[i];
        if (page == PAGE_SET) {
            count += granules_in(bitmap, i);
        }
        for (size_t at = 0; has_memory(page) && at < BITMAP_PAGE_BYTES; at++) {
            count += (unsigned)__builtin_popcount(page[at]);
        }
    }
    if (bitmap->granules > 0 && is_set(bitmap, bitmap->granules - 1)) {
        uint64_t last_start = (bitmap->granules - 1) << bitmap->granularity_bits;
        return ((count - 1) << bitmap->granularity_bits) + (bitmap->size_bytes - last_start);
    }
    return count << bitmap->granularity_bits;
}

/* ---- The serialised form ---- */

uint64_t bitmap_serialised_bytes(const struct bitmap *bitmap)
{
    return div_round_up(bitmap->granules, 8);
}

void bitmap_load(struct bitmap *bitmap, uint64_t first, const uint8_t *bytes, size_t len)
{
    uint64_t end = MIN_OF(first + len, bitmap_serialised_bytes(bitmap));

    while (first < end) {
        uint64_t index = first / BITMAP_PAGE_BYTES;
        uint64_t at = first % BITMAP_PAGE_BYTES;
        size_t part = (size_t)MIN_OF(BITMAP_PAGE_BYTES - at, end - first);
        bool is_clear = bytes[0] == 0 && memcmp(bytes, bytes + 1, part - 1) == 0;
        uint8_t *page = is_clear && !bitmap->pages[index] ? NULL : own_page(bitmap, index);
        if (page) {
            memcpy(page + at, bytes, part);
            cut_page(bitmap, index, granules_in(bitmap, index));
        }
        bytes += part;
        first += part;
    }
}

void bitmap_load_set(struct bitmap *bitmap, uint64_t first, uint64_t len)
{
    uint64_t granule = first * 8;
    uint64_t end = MIN_OF((first + len) * 8, bitmap->granules);

    while (granule < end) {
        uint64_t index = granule / PAGE_GRANULES;
        uint64_t start = index * PAGE_GRANULES;
        uint64_t stop = MIN_OF(end, start + PAGE_GRANULES);
        set_in_page(bitmap, index, granule - start, stop - start);
        granule = stop;
    }
}

/* Byte `at` of a page that is all set inside the disk. */
static uint8_t set_byte(const struct bitmap *bitmap, uint64_t first)
{
    uint64_t granules = bitmap->granules;

    if ((first + 1) * 8 <= granules) {
        return 0xff;
    }
    if (first * 8 >= granules) {
        return 0;
    }
    return (uint8_t)((1U << granules % 8) - 1);
}

void bitmap_save(const struct bitmap *bitmap, uint64_t first, uint8_t *bytes, size_t len)
{
    while (len > 0) {
        uint64_t index = first / BITMAP_PAGE_BYTES;
        uint64_t at = first % BITMAP_PAGE_BYTES;
        size_t part = (size_t)MIN_OF(BITMAP_PAGE_BYTES - at, (uint64_t)len);
        const uint8_t *page = index < bitmap->page_count ? bitmap->pages[index] : NULL;
        if (has_memory(page)) {
            memcpy(bytes, page + at, part);
        } else {
            memset(bytes, 0, part);
        }
        for (size_t i = 0; page == PAGE_SET && i < part; i++) {
            bytes[i] = set_byte(bitmap, first + i);
        }
        bytes += part;
        first += part;
        len -= part;
    }
}

enum bitmap_piece bitmap_piece(const struct bitmap *bitmap, uint64_t first, uint64_t len)
{
    uint64_t granule = first * 8;
    uint64_t end = MIN_OF((first + len) * 8, bitmap->granules);

    if (granule >= end) {
        return BITMAP_PIECE_CLEAR;
    }
    bool set = is_set(bitmap, granule);
    if (run_of(bitmap, granule, end, set) < end) {
        return BITMAP_PIECE_MIXED;
    }
    return set ? BITMAP_PIECE_SET : BITMAP_PIECE_CLEAR;
}

/* ---- Saving ---- */

bool bitmap_snapshot(struct bitmap *bitmap)
{
    bool any = false;

    for (uint64_t i = 0; i < bitmap->page_count; i++) {
        assert(!(bitmap->states[i] & BITMAP_PAGE_SAVING)); /* one snapshot at a time */
        if (bitmap->states[i] & BITMAP_PAGE_UNSAVED) {
            bitmap->states[i] = BITMAP_PAGE_SAVING;
            any = true;
        }
    }
    return any;
}

bool bitmap_is_saving(const struct bitmap *bitmap, uint64_t first, uint64_t len)
{
    uint64_t last = MIN_OF(first + len, bitmap->page_count * BITMAP_PAGE_BYTES);

    for (uint64_t at = first; at < last;
         at = round_down_to(at, BITMAP_PAGE_BYTES) + BITMAP_PAGE_BYTES) {
        if (bitmap->states[at / BITMAP_PAGE_BYTES] & BITMAP_PAGE_SAVING) {
            return true;
        }
    }
    return false;
}

void bitmap_snapshot_done(struct bitmap *bitmap, bool saved)
{
    for (uint64_t i = 0; i < bitmap->page_count; i++) {
        if (bitmap->states[i] & BITMAP_PAGE_SAVING) {
            uint8_t unsaved = bitmap->states[i] & BITMAP_PAGE_UNSAVED;
            bitmap->states[i] = saved ? unsaved : BITMAP_PAGE_UNSAVED;
        }
    }
}
