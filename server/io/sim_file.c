/* SPDX-License-Identifier: BSD-2-Clause */
/*
 * Pages of 4 KiB in chunks of 256, found by two index steps; each with a bit per 512-byte sector
 * that says whether it takes space.
 *
 * Why a page that is not split needs no care when the log is applied: a page is split before its
 * first change after it was last durable, so for a page that is not split the change in question
 * did nothing (zeroing a hole).
 */
#include "io/sim_file.h"

#include <assert.h>
#include <stdlib.h>
#include <string.h>

#include "base/check.h"

#define CHUNK_PAGES  256U
#define CHUNK_BYTES  ((uint64_t)CHUNK_PAGES * SIM_PAGE_BYTES)
#define PAGE_SECTORS (SIM_PAGE_BYTES / SIM_SECTOR_BYTES)

struct sim_view {
    uint8_t *data;     /* NULL: zeroes */
    uint8_t allocated; /* a bit per sector */
};

struct sim_page {
    struct sim_view now;
    struct sim_view durable; /* meaningful while split */
    uint64_t last_sequence;  /* of the newest change that touched it */
    bool split;
    /* A failed flush may have lost changes for good: durable never equals now by itself again. */
    bool diverged;
};

enum change_kind { CHANGE_WRITE, CHANGE_ZERO, CHANGE_PUNCH, CHANGE_TRUNCATE };

struct sim_change {
    struct sim_change *next;
    uint64_t sequence;
    uint64_t offset; /* CHANGE_TRUNCATE: the new size */
    uint64_t len;
    enum change_kind kind;
    bool doubtful; /* a flush that covered it has failed */
    uint8_t data[];
};

static void *must_have(void *memory)
{
    if (!memory) {
        abort();
    }
    return memory;
}

static uint8_t *page_buffer(struct sim_store *store)
{
    void *buffer = store->free_pages;
    if (buffer) {
        memcpy(&store->free_pages, buffer, sizeof(void *));
        return buffer;
    }
    return must_have(malloc(SIM_PAGE_BYTES));
}

static void page_buffer_free(struct sim_store *store, uint8_t *buffer)
{
    if (buffer) {
        memcpy(buffer, &store->free_pages, sizeof(void *));
        store->free_pages = buffer;
    }
}

void sim_store_drain(struct sim_store *store)
{
    while (store->free_pages) {
        free(page_buffer(store));
    }
}

struct sim_file *sim_file_create(struct sim_store *store, const char *path, uint64_t id)
{
    struct sim_file *file = calloc(1, sizeof(*file));
    if (!file) {
        return NULL;
    }
    file->path = strdup(path);
    if (!file->path) {
        free(file);
        return NULL;
    }
    list_init(&file->link);
    file->store = store;
    file->id = id;
    file->log_end = &file->log;
    return file;
}

static void log_clear(struct sim_file *file)
{
    while (file->log) {
        struct sim_change *change = file->log;
        file->log = change->next;
        free(change);
    }
    file->log_end = &file->log;
}

static void count_allocation(struct sim_store *store, uint8_t before, uint8_t after)
{
    store->allocated_sectors -= (uint64_t)__builtin_popcount(before);
    store->allocated_sectors += (uint64_t)__builtin_popcount(after);
}

void sim_file_free(struct sim_file *file)
{
    log_clear(file);
    for (size_t i = 0; i < file->chunk_count; i++) {
        struct sim_page *chunk = file->chunks[i];
        for (unsigned j = 0; chunk && j < CHUNK_PAGES; j++) {
            count_allocation(file->store, chunk[j].now.allocated, 0);
            page_buffer_free(file->store, chunk[j].now.data);
            if (chunk[j].split) {
                page_buffer_free(file->store, chunk[j].durable.data);
            }
        }
        free(chunk);
    }
    free(file->chunks);
    free(file->path);
    free(file);
}

static struct sim_page *page_find(const struct sim_file *file, uint64_t offset)
{
    uint64_t chunk = offset / CHUNK_BYTES;
    if (chunk >= file->chunk_count || !file->chunks[chunk]) {
        return NULL;
    }
    return &file->chunks[chunk][offset % CHUNK_BYTES / SIM_PAGE_BYTES];
}

static struct sim_page *page_make(struct sim_file *file, uint64_t offset)
{
    size_t chunk = (size_t)(offset / CHUNK_BYTES);
    if (chunk >= file->chunk_count) {
        size_t count = MAX_OF(chunk + 1, file->chunk_count * 2);
        struct sim_page **bigger = must_have(calloc(count, sizeof(struct sim_page *)));
        if (file->chunk_count) {
            memcpy(bigger, file->chunks, file->chunk_count * sizeof(struct sim_page *));
        }
        free(file->chunks);
        file->chunks = bigger;
        file->chunk_count = count;
    }
    if (!file->chunks[chunk]) {
        file->chunks[chunk] = must_have(calloc(CHUNK_PAGES, sizeof(struct sim_page)));
    }
    return &file->chunks[chunk][offset % CHUNK_BYTES / SIM_PAGE_BYTES];
}

/*
 * The part of [offset, end) in the next existing page: sets *page and returns the part's end.
 * Chunks that do not exist are stepped over in one go; *page is NULL when the step was over
 * nothing.
 */
static uint64_t next_part(const struct sim_file *file, uint64_t offset, uint64_t end,
                          struct sim_page **page)
{
    *page = page_find(file, offset);
    if (*page) {
        return MIN_OF(end, (offset / SIM_PAGE_BYTES + 1) * SIM_PAGE_BYTES);
    }
    if (offset / CHUNK_BYTES >= file->chunk_count) {
        return end;
    }
    return MIN_OF(end, (offset / CHUNK_BYTES + 1) * CHUNK_BYTES);
}

void sim_file_read(const struct sim_file *file, uint64_t offset, void *buf, size_t len)
{
    uint8_t *to = buf;
    uint64_t end = offset + len;
    while (offset < end) {
        struct sim_page *page;
        uint64_t part_end = next_part(file, offset, end, &page);
        size_t part = (size_t)(part_end - offset);
        if (page && page->now.data) {
            memcpy(to, page->now.data + offset % SIM_PAGE_BYTES, part);
        } else {
            memset(to, 0, part);
        }
        to += part;
        offset = part_end;
    }
}

/* Bits of the sectors that [from, to) of a page touches, or with `whole` those it covers wholly. */
static uint8_t sector_bits(uint32_t from, uint32_t to, bool whole)
{
    uint32_t first =
        whole ? (from + SIM_SECTOR_BYTES - 1) / SIM_SECTOR_BYTES : from / SIM_SECTOR_BYTES;
    uint32_t last = whole ? to / SIM_SECTOR_BYTES : (to + SIM_SECTOR_BYTES - 1) / SIM_SECTOR_BYTES;
    if (first >= last) {
        return 0;
    }
    return (uint8_t)(((1U << last) - 1) & ~((1U << first) - 1));
}

/* Puts bytes (NULL: zeroes) into [from, to) of one view of a page. */
static void view_change(struct sim_store *store, struct sim_view *view, uint32_t from, uint32_t to,
                        const uint8_t *bytes, bool allocate)
{
    if (bytes) {
        if (!view->data) {
            view->data = page_buffer(store);
            if (to - from < SIM_PAGE_BYTES) {
                memset(view->data, 0, SIM_PAGE_BYTES);
            }
        }
        memcpy(view->data + from, bytes, to - from);
    } else if (view->data && to - from == SIM_PAGE_BYTES) {
        page_buffer_free(store, view->data);
        view->data = NULL;
    } else if (view->data) {
        memset(view->data + from, 0, to - from);
    }
    if (allocate) {
        view->allocated |= sector_bits(from, to, false);
    } else {
        view->allocated &= (uint8_t)~sector_bits(from, to, true);
    }
}

static void page_split(struct sim_store *store, struct sim_page *page)
{
    if (page->split) {
        return;
    }
    page->split = true;
    page->durable = page->now;
    if (page->now.data) {
        page->durable.data = page_buffer(store);
        memcpy(page->durable.data, page->now.data, SIM_PAGE_BYTES);
    }
}

/* What is durable becomes what is now (join), or the other way round (revert). */
static void page_join(struct sim_store *store, struct sim_page *page)
{
    if (page->split) {
        page_buffer_free(store, page->durable.data);
        page->split = false;
    }
}

static void page_revert(struct sim_store *store, struct sim_page *page)
{
    if (page->split) {
        count_allocation(store, page->now.allocated, page->durable.allocated);
        page_buffer_free(store, page->now.data);
        page->now = page->durable;
        page->split = false;
    }
    page->diverged = false;
}

static struct sim_change *log_append(struct sim_file *file, enum change_kind kind, uint64_t offset,
                                     uint64_t len, size_t data_bytes)
{
    struct sim_change *change = must_have(malloc(sizeof(*change) + data_bytes));
    change->next = NULL;
    change->sequence = ++file->last_sequence;
    change->offset = offset;
    change->len = len;
    change->kind = kind;
    change->doubtful = false;
    *file->log_end = change;
    file->log_end = &change->next;
    return change;
}

/* Applies one change to the present view. */
static void change_present(struct sim_file *file, const struct sim_change *change, uint64_t offset,
                           uint64_t end)
{
    bool allocate = change->kind == CHANGE_WRITE || change->kind == CHANGE_ZERO;
    const uint8_t *bytes = change->kind == CHANGE_WRITE ? change->data : NULL;
    while (offset < end) {
        struct sim_page *page;
        uint64_t part_end;
        if (allocate) {
            page = page_make(file, offset);
            part_end = MIN_OF(end, (offset / SIM_PAGE_BYTES + 1) * SIM_PAGE_BYTES);
        } else {
            part_end = next_part(file, offset, end, &page);
        }
        if (page && (allocate || page->now.data || page->now.allocated || page->split)) {
            page_split(file->store, page);
            uint32_t from = (uint32_t)(offset % SIM_PAGE_BYTES);
            uint8_t before = page->now.allocated;
            view_change(file->store, &page->now, from, from + (uint32_t)(part_end - offset), bytes,
                        allocate);
            count_allocation(file->store, before, page->now.allocated);
            page->last_sequence = change->sequence;
        }
        if (bytes) {
            bytes += part_end - offset;
        }
        offset = part_end;
    }
}

void sim_file_write(struct sim_file *file, uint64_t offset, const struct iovec *iov, int iov_count,
                    uint64_t iov_skip, uint64_t len)
{
    if (len == 0) {
        return;
    }
    struct sim_change *change = log_append(file, CHANGE_WRITE, offset, len, (size_t)len);
    uint64_t got = 0;
    for (int i = 0; i < iov_count && got < len; i++) {
        if (iov_skip >= iov[i].iov_len) {
            iov_skip -= iov[i].iov_len;
            continue;
        }
        uint64_t part = MIN_OF(iov[i].iov_len - iov_skip, len - got);
        memcpy(change->data + got, (const uint8_t *)iov[i].iov_base + iov_skip, (size_t)part);
        got += part;
        iov_skip = 0;
    }
    assert(got == len);
    change_present(file, change, offset, offset + len);
    file->size_bytes = MAX_OF(file->size_bytes, offset + len);
}

void sim_file_zero(struct sim_file *file, uint64_t offset, uint64_t len)
{
    if (len == 0) {
        return;
    }
    struct sim_change *change = log_append(file, CHANGE_ZERO, offset, len, 0);
    change_present(file, change, offset, offset + len);
    file->size_bytes = MAX_OF(file->size_bytes, offset + len);
}

void sim_file_punch(struct sim_file *file, uint64_t offset, uint64_t len)
{
    if (len == 0 || offset >= file->size_bytes) {
        return;
    }
    uint64_t end = MIN_OF(offset + len, file->size_bytes);
    struct sim_change *change = log_append(file, CHANGE_PUNCH, offset, end - offset, 0);
    change_present(file, change, offset, end);
}

/* Sectors past the end take no space, the one that the end cuts keeps its own. */
void sim_file_truncate(struct sim_file *file, uint64_t size_bytes)
{
    struct sim_change *change = log_append(file, CHANGE_TRUNCATE, size_bytes, 0, 0);
    uint64_t chunks_end = file->chunk_count * CHUNK_BYTES;
    if (size_bytes < chunks_end) {
        change_present(file, change, size_bytes, chunks_end);
    }
    file->size_bytes = size_bytes;
}

uint64_t sim_file_unallocated_sectors(const struct sim_file *file, uint64_t offset, uint64_t len)
{
    uint64_t end = offset + len;
    uint64_t count = 0;
    while (offset < end) {
        struct sim_page *page;
        uint64_t part_end = next_part(file, offset, end, &page);
        if (page) {
            uint32_t from = (uint32_t)(offset % SIM_PAGE_BYTES);
            uint8_t bits = sector_bits(from, from + (uint32_t)(part_end - offset), false);
            count += (uint64_t)__builtin_popcount(bits & ~page->now.allocated);
        } else {
            count += div_round_up(part_end, SIM_SECTOR_BYTES) - offset / SIM_SECTOR_BYTES;
        }
        offset = part_end;
    }
    return count;
}

void sim_file_next_extent(const struct sim_file *file, uint64_t offset, bool *is_hole,
                          uint64_t *end)
{
    uint64_t size = file->size_bytes;
    bool first = true;
    *is_hole = true;
    while (offset < size) {
        struct sim_page *page;
        uint64_t part_end = next_part(file, offset, size, &page);
        bool hole = !page || page->now.allocated == 0;
        if (first) {
            *is_hole = hole;
            first = false;
        } else if (hole != *is_hole) {
            break;
        }
        offset = part_end;
    }
    *end = offset;
}

/* Which sectors of a change reach the platter. */
struct keeping {
    bool all;
    bool none;
    unsigned sector_ppm; /* when neither */
    struct sim_rng *rng;
};

static bool keep_sector(const struct keeping *keeping)
{
    if (keeping->all || keeping->none) {
        return keeping->all;
    }
    return sim_rng_chance(keeping->rng, keeping->sector_ppm);
}

/* Applies the kept sectors of [from, to) of a page to its durable side; returns the end of the last
 * one kept, 0 for none. */
static uint32_t page_change_durable(struct sim_store *store, struct sim_page *page, uint32_t from,
                                    uint32_t to, const uint8_t *bytes, bool allocate,
                                    const struct keeping *keeping)
{
    uint32_t kept_end = 0;
    if (keeping->all) {
        view_change(store, &page->durable, from, to, bytes, allocate);
        return to;
    }
    for (uint32_t at = from; at < to;) {
        uint32_t sector_end = MIN_OF(to, (at / SIM_SECTOR_BYTES + 1) * SIM_SECTOR_BYTES);
        if (keep_sector(keeping)) {
            view_change(store, &page->durable, at, sector_end, bytes ? bytes + (at - from) : NULL,
                        allocate);
            kept_end = sector_end;
        }
        at = sector_end;
    }
    return kept_end;
}

static void change_durable(struct sim_file *file, const struct sim_change *change,
                           const struct keeping *keeping)
{
    bool allocate = change->kind == CHANGE_WRITE || change->kind == CHANGE_ZERO;
    const uint8_t *bytes = change->kind == CHANGE_WRITE ? change->data : NULL;
    uint64_t offset = change->offset;
    uint64_t end = change->offset + change->len;
    if (keeping->none) {
        return;
    }
    struct keeping whole = *keeping;
    if (change->kind == CHANGE_TRUNCATE) {
        /* A journalled size change happens or does not. */
        if (!keep_sector(keeping)) {
            return;
        }
        whole.all = true;
        file->durable_size_bytes = change->offset;
        end = MAX_OF(offset, file->chunk_count * CHUNK_BYTES);
    }
    uint64_t kept_end = 0;
    while (offset < end) {
        struct sim_page *page;
        uint64_t part_end = next_part(file, offset, end, &page);
        if (page && page->split) {
            uint32_t from = (uint32_t)(offset % SIM_PAGE_BYTES);
            uint32_t kept =
                page_change_durable(file->store, page, from, from + (uint32_t)(part_end - offset),
                                    bytes, allocate, &whole);
            if (kept) {
                kept_end = offset - from + kept;
            }
        }
        if (bytes) {
            bytes += part_end - offset;
        }
        offset = part_end;
    }
    if (allocate) {
        /* Bytes that survive bring the size with them; the size may survive without the bytes. */
        kept_end = keep_sector(keeping) ? end : kept_end;
        file->durable_size_bytes = MAX_OF(file->durable_size_bytes, kept_end);
    }
}

/* Whether all of a change's pages can be joined instead of copied is decided page by page. */
static void change_flush(struct sim_file *file, const struct sim_change *change, uint64_t sequence,
                         const struct keeping *keeping)
{
    uint64_t offset = change->offset;
    uint64_t end = change->kind == CHANGE_TRUNCATE ? MAX_OF(offset, file->chunk_count * CHUNK_BYTES)
                                                   : change->offset + change->len;
    /* Pages that only this flush's changes touched: the present is durable. */
    while (offset < end) {
        struct sim_page *page;
        uint64_t part_end = next_part(file, offset, end, &page);
        if (page && page->split && !page->diverged && page->last_sequence <= sequence) {
            page_join(file->store, page);
        }
        offset = part_end;
    }
    change_durable(file, change, keeping);
}

void sim_file_flush(struct sim_file *file, uint64_t sequence, struct sim_rng *rng)
{
    while (file->log && file->log->sequence <= sequence) {
        struct sim_change *change = file->log;
        struct keeping keeping = {.all = true, .rng = rng};
        if (change->doubtful) {
            keeping = (struct keeping){.sector_ppm = 500000, .rng = rng};
        }
        change_flush(file, change, sequence, &keeping);
        file->log = change->next;
        free(change);
    }
    if (!file->log) {
        file->log_end = &file->log;
    }
}

void sim_file_flush_failed(struct sim_file *file, uint64_t sequence)
{
    for (struct sim_change *change = file->log; change && change->sequence <= sequence;
         change = change->next) {
        change->doubtful = true;
        uint64_t offset = change->offset;
        uint64_t end = change->kind == CHANGE_TRUNCATE
                           ? MAX_OF(offset, file->chunk_count * CHUNK_BYTES)
                           : change->offset + change->len;
        while (offset < end) {
            struct sim_page *page;
            offset = next_part(file, offset, end, &page);
            if (page && page->split) {
                page->diverged = true;
            }
        }
    }
}

void sim_file_crash(struct sim_file *file, enum sim_keep keep, unsigned keep_ppm,
                    struct sim_rng *rng)
{
    uint64_t count = 0;
    for (const struct sim_change *change = file->log; change; change = change->next) {
        count++;
    }
    uint64_t chosen = count ? sim_rng_below(rng, count) : 0;
    uint64_t index = 0;
    for (const struct sim_change *change = file->log; change; change = change->next, index++) {
        bool whole = false;
        switch (keep) {
        case SIM_KEEP_NONE:
        case SIM_KEEP_SECTORS:
        case SIM_KEEP_MODES:
            break;
        case SIM_KEEP_ALL:
            whole = true;
            break;
        case SIM_KEEP_CHANGES:
            whole = sim_rng_chance(rng, keep_ppm);
            break;
        case SIM_KEEP_PREFIX:
            whole = index < chosen;
            break;
        case SIM_KEEP_SUFFIX:
            whole = index > chosen;
            break;
        case SIM_KEEP_ALL_BUT_ONE:
            whole = index != chosen;
            break;
        case SIM_KEEP_ONLY_ONE:
            whole = index == chosen;
            break;
        }
        /* The change at the cut is itself torn. */
        bool torn = keep == SIM_KEEP_SECTORS ||
                    ((keep == SIM_KEEP_PREFIX || keep == SIM_KEEP_SUFFIX) && index == chosen);
        struct keeping keeping = {
            .all = whole && !torn,
            .none = !whole && !torn,
            .sector_ppm = keep == SIM_KEEP_SECTORS ? keep_ppm : 500000,
            .rng = rng,
        };
        change_durable(file, change, &keeping);
    }
    for (size_t i = 0; i < file->chunk_count; i++) {
        for (unsigned j = 0; file->chunks[i] && j < CHUNK_PAGES; j++) {
            page_revert(file->store, &file->chunks[i][j]);
        }
    }
    file->size_bytes = file->durable_size_bytes;
    log_clear(file);
}
