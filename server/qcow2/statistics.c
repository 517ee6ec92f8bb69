/* SPDX-License-Identifier: BSD-2-Clause */
/* What is counted where it happens, put together. */
#include "qcow2/statistics.h"

#include "qcow2/engine.h"

void co_qcow2_statistics(struct image *image, struct image_statistics *out)
{
    struct qcow2 *q = qcow2_of(image);
    const struct slice_cache *cache = &q->cache;

    *out = (struct image_statistics){
        .file_bytes = q->disk->size_bytes,
        .cluster_bytes = q->geo.cluster_bytes,
        .clusters_allocated = q->counts.clusters_allocated,
        .clusters_freed = q->counts.clusters_freed,
        .clusters_quarantined = quarantine_clusters(&q->quarantine),
        .slices_dirty = (uint64_t)cache->dirty_count[SLICE_L2] + cache->dirty_count[SLICE_REFCOUNT],
        .slices_cached = cache->count,
        .slices_most = cache->capacity,
        .slice_hits = cache->hits,
        .slice_misses = cache->misses,
        .commits = q->commit.finished,
        .commit_ns = q->counts.commit_ns,
        .fsyncs = q->counts.fsyncs,
        .fsync_ns = q->counts.fsync_ns,
        .bitmaps = image->ops->bitmap_list ? image->ops->bitmap_list(image, NULL, 0) : 0,
        .failed = q->failed != 0,
        .corrupt = q->corrupt_logged > 0,
    };
    /* Of the file that grows; asked last, as it may take its time. */
    struct disk *grows = q->data;
    if (!grows->ops->co_free_bytes || grows->ops->co_free_bytes(grows, &out->free_bytes) < 0) {
        out->free_bytes = UINT64_MAX;
    }
}
