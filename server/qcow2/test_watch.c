/* SPDX-License-Identifier: BSD-2-Clause */
/*
 * The disk gets a vtable of ours in place of its own; as one disk is watched at a time, what the
 * vtable belongs to is a static.
 */
#include "qcow2/test_watch.h"

#include <stddef.h>

#include "io/iov.h"

static const struct disk_ops *inner;
static watch_fn *watcher;
static void *watcher_arg;

static int look(enum rig_call call, uint64_t offset, uint64_t len)
{
    return watcher(watcher_arg, call, offset, len, NULL, 0);
}

static int co_read(struct disk *disk, uint64_t offset, const struct iovec *iov, int iov_count)
{
    int ret = look(RIG_READ, offset, iov_total_bytes(iov, iov_count));
    return ret < 0 ? ret : inner->co_read(disk, offset, iov, iov_count);
}

static int co_write(struct disk *disk, uint64_t offset, const struct iovec *iov, int iov_count)
{
    int ret =
        watcher(watcher_arg, RIG_WRITE, offset, iov_total_bytes(iov, iov_count), iov, iov_count);
    return ret < 0 ? ret : inner->co_write(disk, offset, iov, iov_count);
}

static int co_flush(struct disk *disk)
{
    int ret = look(RIG_FLUSH, 0, 0);
    return ret < 0 ? ret : inner->co_flush(disk);
}

static int co_zero(struct disk *disk, uint64_t offset, uint64_t len)
{
    int ret = look(RIG_ZERO, offset, len);
    return ret < 0 ? ret : inner->co_zero(disk, offset, len);
}

static int co_punch(struct disk *disk, uint64_t offset, uint64_t len)
{
    int ret = look(RIG_PUNCH, offset, len);
    return ret < 0 ? ret : inner->co_punch(disk, offset, len);
}

static int co_truncate(struct disk *disk, uint64_t size_bytes)
{
    int ret = look(RIG_TRUNCATE, size_bytes, 0);
    return ret < 0 ? ret : inner->co_truncate(disk, size_bytes);
}

static int co_next_extent(struct disk *disk, uint64_t offset, bool *is_hole, uint64_t *end)
{
    return inner->co_next_extent(disk, offset, is_hole, end);
}

static void close_disk(struct disk *disk)
{
    inner->close(disk);
}

static const struct disk_ops watching = {
    .co_read = co_read,
    .co_write = co_write,
    .co_flush = co_flush,
    .co_zero = co_zero,
    .co_punch = co_punch,
    .co_truncate = co_truncate,
    .co_next_extent = co_next_extent,
    .close = close_disk,
};

void watch_disk(struct disk *disk, watch_fn *look_fn, void *arg)
{
    inner = disk->ops;
    watcher = look_fn;
    watcher_arg = arg;
    disk->ops = &watching;
}
