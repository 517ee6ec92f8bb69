/* SPDX-License-Identifier: BSD-2-Clause */
/*
 * A chained hash over the cached slices, and one list for each state that needs walking. Bytes
 * come from slabs, which grow with what is in use at the same time and live as long as the cache.
 */
#include "qcow2/slices.h"

#include <assert.h>
#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/uio.h>

#include "base/check.h"
#include "base/limits.h"
#include "base/poison.h"

/*
 * Bytes of so many slices are allocated at once: alone, each would cost a page more. A cache that
 * has filled a huge page's worth of these grows by huge pages, as long as they fit into its budget:
 * look-ups go everywhere, and where every one misses the processor's address translation, that is
 * most of what they cost.
 */
#define SLAB_SLICES     64U
#define HUGE_PAGE_BYTES (2 * MIB)
/* Neighbouring slices written by one call. */
#define WRITE_RUN_MAX 64

uint32_t slice_cache_capacity(uint32_t slice_bytes, uint64_t budget_bytes)
{
    uint64_t fit = budget_bytes / (slice_bytes + sizeof(struct slice) + sizeof(struct slice *));
    return (uint32_t)MIN_OF(MAX_OF(fit, 32U), 1U << 24);
}

int slice_cache_init(struct slice_cache *cache, struct disk *disk, uint32_t slice_bytes,
                     uint32_t capacity)
{
    uint32_t buckets = 64;

    memset(cache, 0, sizeof(*cache));
    while (buckets < capacity) {
        buckets *= 2;
    }
    cache->buckets = calloc(buckets, sizeof(struct slice *));
    if (!cache->buckets) {
        return -ENOMEM;
    }
    cache->disk = disk;
    cache->slice_bytes = slice_bytes;
    cache->capacity = capacity;
    cache->bucket_mask = buckets - 1;
    list_init(&cache->clean);
    for (int kind = 0; kind < SLICE_KINDS; kind++) {
        list_init(&cache->dirty[kind]);
        list_init(&cache->committing[kind]);
    }
    return 0;
}

void slice_cache_set_capacity(struct slice_cache *cache, uint32_t capacity)
{
    cache->capacity = capacity;
}

static struct slice **bucket_of(struct slice_cache *cache, host_off offset)
{
    uint64_t mixed = (offset.bytes / cache->slice_bytes) * 0x9e3779b97f4a7c15ULL;
    return &cache->buckets[(uint32_t)(mixed >> 32) & cache->bucket_mask];
}

static struct slice *find(struct slice_cache *cache, host_off offset)
{
    struct slice *slice = *bucket_of(cache, offset);
    while (slice && slice->offset.bytes != offset.bytes) {
        slice = slice->hash_next;
    }
    return slice;
}

static void hash_insert(struct slice_cache *cache, struct slice *slice)
{
    struct slice **bucket = bucket_of(cache, slice->offset);
    slice->hash_next = *bucket;
    *bucket = slice;
    cache->count++;
}

static void hash_remove(struct slice_cache *cache, struct slice *slice)
{
    struct slice **at = bucket_of(cache, slice->offset);
    while (*at != slice) {
        at = &(*at)->hash_next;
    }
    *at = slice->hash_next;
    cache->count--;
}

static size_t slab_bytes(const struct slice_cache *cache, const struct slab *slab)
{
    return (size_t)slab->slices * cache->slice_bytes;
}

/* A slab of the size that is next. Its bytes are NULL when there is no memory. */
static struct slab slab_create(const struct slice_cache *cache)
{
    uint32_t slices_in_huge = (uint32_t)(HUGE_PAGE_BYTES / cache->slice_bytes);
    bool huge = cache->slab_slices >= slices_in_huge &&
                slices_in_huge <= cache->capacity - MIN_OF(cache->slab_slices, cache->capacity);
    struct slab slab = {.slices = huge ? slices_in_huge : SLAB_SLICES};
    /* Page-sized slices may go to O_DIRECT files without a bounce. */
    slab.bytes =
        aligned_alloc(huge ? HUGE_PAGE_BYTES : cache->slice_bytes, slab_bytes(cache, &slab));
    if (slab.bytes && huge) {
        /* A kernel without huge pages refuses, and loses nothing. */
        (void)madvise(slab.bytes, HUGE_PAGE_BYTES, MADV_HUGEPAGE);
    }
    return slab;
}

static int grow_slabs(struct slice_cache *cache)
{
    struct slab *slabs = realloc(cache->slabs, (cache->slab_count + (size_t)1) * sizeof(*slabs));
    if (!slabs) {
        return -ENOMEM;
    }
    cache->slabs = slabs;
    struct slab slab = slab_create(cache);
    if (!slab.bytes) {
        return -ENOMEM;
    }
    size_t slices = (size_t)cache->slab_slices + slab.slices;
    uint8_t **spare = realloc(cache->spare, slices * sizeof(*spare));
    if (!spare) {
        free(slab.bytes);
        return -ENOMEM;
    }
    cache->spare = spare;
    POISON(slab.bytes, slab_bytes(cache, &slab));
    cache->slabs[cache->slab_count++] = slab;
    cache->slab_slices += slab.slices;
    for (uint32_t i = slab.slices; i > 0; i--) {
        cache->spare[cache->spare_count++] = slab.bytes + (size_t)(i - 1) * cache->slice_bytes;
    }
    return 0;
}

static uint8_t *bytes_get(struct slice_cache *cache)
{
    if (cache->spare_count == 0 && grow_slabs(cache) < 0) {
        return NULL;
    }
    uint8_t *bytes = cache->spare[--cache->spare_count];
    UNPOISON(bytes, cache->slice_bytes);
    return bytes;
}

static void bytes_put(struct slice_cache *cache, uint8_t *bytes)
{
    if (bytes) {
        POISON(bytes, cache->slice_bytes);
        cache->spare[cache->spare_count++] = bytes;
    }
}

static void free_slabs(struct slice_cache *cache)
{
    assert(cache->spare_count == cache->slab_slices);
    for (uint32_t i = 0; i < cache->slab_count; i++) {
        UNPOISON(cache->slabs[i].bytes, slab_bytes(cache, &cache->slabs[i]));
        free(cache->slabs[i].bytes);
    }
    free(cache->slabs);
    free(cache->spare);
    cache->slabs = NULL;
    cache->spare = NULL;
}

static void slice_free(struct slice_cache *cache, struct slice *slice)
{
    bytes_put(cache, slice->bytes);
    bytes_put(cache, slice->committing_bytes);
    free(slice);
}

static void drop_list(struct slice_cache *cache, struct list *list)
{
    struct list *node;
    while ((node = list_pop_front(list)) != NULL) {
        struct slice *slice = list_entry(node, struct slice, link);
        assert(!slice->loading);
        hash_remove(cache, slice);
        slice_free(cache, slice);
    }
}

void slice_cache_free(struct slice_cache *cache)
{
    if (!cache->buckets) {
        return;
    }
    drop_list(cache, &cache->clean);
    for (int kind = 0; kind < SLICE_KINDS; kind++) {
        drop_list(cache, &cache->dirty[kind]);
        drop_list(cache, &cache->committing[kind]);
    }
    assert(cache->count == 0);
    free_slabs(cache);
    free(cache->buckets);
    cache->buckets = NULL;
}

/* A clean slice out of the cache, for its memory; NULL when nothing clean is left. */
static struct slice *evict_one(struct slice_cache *cache)
{
    struct list *node;
    while ((node = list_pop_front(&cache->clean)) != NULL) {
        struct slice *slice = list_entry(node, struct slice, link);
        if (slice->referenced) {
            slice->referenced = false;
            list_push_back(&cache->clean, node);
            continue;
        }
        hash_remove(cache, slice);
        return slice;
    }
    return NULL;
}

/* A slice in the hash but in no list, its bytes undefined. */
static struct slice *slice_new(struct slice_cache *cache, enum slice_kind kind, host_off offset)
{
    struct slice *slice = NULL;
    while (cache->count >= cache->capacity) {
        struct slice *evicted = evict_one(cache);
        if (!evicted) {
            break;
        }
        if (slice) {
            slice_free(cache, slice);
        }
        slice = evicted;
    }
    if (!slice) {
        slice = calloc(1, sizeof(*slice));
        if (!slice) {
            return NULL;
        }
        slice->bytes = bytes_get(cache);
        if (!slice->bytes) {
            free(slice);
            return NULL;
        }
        wait_queue_init(&slice->loaded);
    }
    slice->kind = kind;
    slice->offset = offset;
    slice->dirty = false;
    slice->committing = false;
    slice->referenced = true;
    slice->loading = false;
    list_init(&slice->link);
    hash_insert(cache, slice);
    return slice;
}

struct slice *slice_peek(struct slice_cache *cache, host_off offset)
{
    struct slice *slice = find(cache, offset);
    if (!slice || slice->loading) {
        return NULL;
    }
    slice->referenced = true;
    return slice;
}

static int co_load(struct slice_cache *cache, struct slice *slice)
{
    slice->loading = true;
    int ret = co_disk_read(cache->disk, slice->offset.bytes, slice->bytes, cache->slice_bytes);
    slice->loading = false;
    wait_queue_wake_all(&slice->loaded);
    if (ret < 0) {
        hash_remove(cache, slice);
        slice_free(cache, slice);
        return ret;
    }
    list_push_back(&cache->clean, &slice->link);
    return 0;
}

int co_slice_get(struct slice_cache *cache, enum slice_kind kind, host_off offset,
                 struct slice **out)
{
    assert(offset.bytes % cache->slice_bytes == 0);
    for (;;) {
        struct slice *slice = find(cache, offset);
        if (!slice) {
            slice = slice_new(cache, kind, offset);
            if (!slice) {
                return -ENOMEM;
            }
            cache->misses++;
            int ret = co_load(cache, slice);
            if (ret < 0) {
                return ret;
            }
            *out = slice;
            return 0;
        }
        if (slice->kind != kind) {
            return -EUCLEAN;
        }
        if (!slice->loading) {
            slice->referenced = true;
            cache->hits++;
            *out = slice;
            return 0;
        }
        /* O7: the loader may fail, and what it loaded may be gone when this coroutine runs. */
        co_wait(&slice->loaded);
    }
}

int slice_create_zeroed(struct slice_cache *cache, enum slice_kind kind, host_off offset,
                        struct slice **out)
{
    assert(!find(cache, offset));
    struct slice *slice = slice_new(cache, kind, offset);
    if (!slice) {
        return -ENOMEM;
    }
    memset(slice->bytes, 0, cache->slice_bytes);
    list_push_back(&cache->clean, &slice->link);
    *out = slice;
    return 0;
}

int slice_modify(struct slice_cache *cache, struct slice *slice)
{
    assert(!slice->loading);
    if (slice->dirty) {
        return 0;
    }
    if (slice->committing) {
        uint8_t *fresh = bytes_get(cache);
        if (!fresh) {
            return -ENOMEM;
        }
        memcpy(fresh, slice->bytes, cache->slice_bytes);
        assert(!slice->committing_bytes);
        slice->committing_bytes = slice->bytes;
        slice->bytes = fresh;
        /* Stays in the committing list; co_slice_commit_write() moves it to dirty. */
    } else {
        list_remove(&slice->link);
        list_push_back(&cache->dirty[slice->kind], &slice->link);
    }
    slice->dirty = true;
    cache->dirty_count[slice->kind]++;
    return 0;
}

void slice_forget_range(struct slice_cache *cache, host_off start, uint64_t len_bytes)
{
    for (uint64_t at = 0; at < len_bytes; at += cache->slice_bytes) {
        struct slice *slice = find(cache, (host_off){start.bytes + at});
        if (slice && !slice->loading && !slice->dirty && !slice->committing) {
            list_remove(&slice->link);
            hash_remove(cache, slice);
            slice_free(cache, slice);
        }
    }
}

unsigned slice_commit_begin(struct slice_cache *cache, enum slice_kind kind)
{
    unsigned count = 0;

    assert(list_empty(&cache->committing[kind]));
    list_for_each(node, &cache->dirty[kind]) {
        struct slice *slice = list_entry(node, struct slice, link);
        slice->dirty = false;
        slice->committing = true;
        count++;
    }
    list_splice_back(&cache->committing[kind], &cache->dirty[kind]);
    cache->dirty_count[kind] = 0;
    return count;
}

static int compare_offsets(const void *left, const void *right)
{
    const struct slice *a = *(struct slice *const *)left;
    const struct slice *b = *(struct slice *const *)right;
    return a->offset.bytes < b->offset.bytes ? -1 : a->offset.bytes > b->offset.bytes;
}

/* The committing slices of a kind in file order. */
static struct slice **sorted_committing(struct slice_cache *cache, enum slice_kind kind,
                                        size_t *count)
{
    size_t total = 0;
    list_for_each(node, &cache->committing[kind]) {
        total++;
    }
    struct slice **sorted = malloc(MAX_OF(total, 1U) * sizeof(struct slice *));
    if (!sorted) {
        return NULL;
    }
    size_t at = 0;
    list_for_each(node, &cache->committing[kind]) {
        sorted[at++] = list_entry(node, struct slice, link);
    }
    qsort(sorted, total, sizeof(struct slice *), compare_offsets);
    *count = total;
    return sorted;
}

static void commit_done(struct slice_cache *cache, struct slice *slice)
{
    slice->committing = false;
    bytes_put(cache, slice->committing_bytes);
    slice->committing_bytes = NULL;
    list_remove(&slice->link);
    list_push_back(slice->dirty ? &cache->dirty[slice->kind] : &cache->clean, &slice->link);
}

int co_slice_commit_write(struct slice_cache *cache, enum slice_kind kind)
{
    size_t count;
    int ret = 0;

    if (list_empty(&cache->committing[kind])) {
        return 0;
    }
    struct slice **sorted = sorted_committing(cache, kind, &count);
    if (!sorted) {
        return -ENOMEM;
    }
    for (size_t first = 0; first < count && ret == 0;) {
        struct iovec iov[WRITE_RUN_MAX];
        int run = 0;
        uint64_t offset = sorted[first]->offset.bytes;
        while (run < WRITE_RUN_MAX && first + (size_t)run < count &&
               sorted[first + (size_t)run]->offset.bytes ==
                   offset + (uint64_t)run * cache->slice_bytes) {
            struct slice *slice = sorted[first + (size_t)run];
            /*
             * A slice whose write is under way counts as committing, so slice_modify() gives it new
             * bytes and leaves these alone until commit_done().
             */
            iov[run].iov_base = slice->committing_bytes ? slice->committing_bytes : slice->bytes;
            iov[run].iov_len = cache->slice_bytes;
            run++;
        }
        ret = cache->disk->ops->co_write(cache->disk, offset, iov, run);
        for (int i = 0; i < run && ret == 0; i++) {
            commit_done(cache, sorted[first + (size_t)i]);
        }
        first += (size_t)run;
    }
    free(sorted);
    return ret;
}
