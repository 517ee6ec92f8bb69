/* SPDX-License-Identifier: BSD-2-Clause */
/*
 * Direct I/O (O_DIRECT): the kernel wants offset, length and memory aligned. What is aligned passes
 * through; the rest goes through an aligned bounce buffer.
 *
 * A write that covers a block in part reads it, changes it and writes it back. Nobody else may
 * change the block meanwhile, or the old bytes would come back over the new ones: so it holds its
 * blocks exclusively in a request table of the disk's own, and all others that change bytes hold
 * theirs shared. Engine and guest keep overlapping requests apart themselves; this is about
 * neighbours in one block, who know nothing of each other.
 *
 * A partial write of the last block pads the file to a whole block; the exact size is then set
 * again. As no other write beyond may be in flight at that moment, it holds everything to the end
 * of all offsets. Power lost in between leaves up to a block of zeroes behind the end, which a raw
 * image's reader sees as a longer disk and a qcow2 reader as unused space: no byte that was there
 * changes.
 */
#include "io/disk_real.h"

#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/uio.h>
#include <unistd.h>

#include "base/check.h"
#include "base/limits.h"
#include "io/iov.h"
#include "sched/table.h"

#define BOUNCE_MAX_BYTES ((size_t)(1 * MIB))
/* What suits every file system; of use where the kernel does not say. */
#define ALIGN_DEFAULT_BYTES 4096U
#define ALIGN_MAX_BYTES     65536U
/* Above every offset that disk_real_range_ok() lets pass, and a multiple of every alignment. */
#define OFFSETS_END (1ULL << 62)

int disk_direct_prepare(struct disk_real *d, struct errtext *err)
{
    d->align_bytes = ALIGN_DEFAULT_BYTES;
    if (d->base.is_block_device) {
        d->align_bytes = d->block_bytes;
    }
#ifdef STATX_DIOALIGN
    struct statx st;
    if (statx(d->fd, "", AT_EMPTY_PATH, STATX_DIOALIGN, &st) == 0 &&
        (st.stx_mask & STATX_DIOALIGN)) {
        if (st.stx_dio_offset_align == 0) {
            return err_set(err, EINVAL,
                           "%s: this file cannot be read past the page cache (O_DIRECT): use "
                           "--cache=writeback",
                           d->path);
        }
        d->align_bytes = MAX_OF(st.stx_dio_offset_align, st.stx_dio_mem_align);
    }
#endif
    if (!is_power_of_two(d->align_bytes) || d->align_bytes > ALIGN_MAX_BYTES) {
        return err_set(err, EINVAL,
                       "%s: direct I/O would need an alignment of %u bytes, at most %u is "
                       "supported: use --cache=writeback",
                       d->path, d->align_bytes, ALIGN_MAX_BYTES);
    }
    d->blocks = request_table_create(NULL, NULL);
    if (d->blocks == NULL) {
        return err_set(err, ENOMEM, "%s: out of memory", d->path);
    }
    d->direct = true;
    return 0;
}

int co_disk_direct_share(struct disk_real *d, uint64_t offset, uint64_t len, struct hold **out)
{
    *out = NULL;
    if (!d->direct) {
        return 0;
    }
    uint64_t from = round_down_to(offset, d->align_bytes);
    uint64_t to = round_up_to(offset + len, d->align_bytes);
    return co_hold(d->blocks, HOLD_SHARED, from, to - from, out);
}

int co_disk_direct_own_all(struct disk_real *d, struct hold **out)
{
    *out = NULL;
    if (!d->direct) {
        return 0;
    }
    return co_hold(d->blocks, HOLD_EXCLUSIVE, 0, OFFSETS_END, out);
}

void disk_direct_release(struct hold *hold)
{
    if (hold) {
        hold_release(hold);
    }
}

static bool is_aligned(const struct disk_real *d, uint64_t offset, const struct iovec *iov,
                       int iov_count)
{
    uint64_t bits = offset;

    for (int i = 0; i < iov_count; i++) {
        bits |= (uint64_t)(uintptr_t)iov[i].iov_base | iov[i].iov_len;
    }
    return (bits & (d->align_bytes - 1)) == 0;
}

static void *bounce_alloc(const struct disk_real *d, uint64_t aligned_len)
{
    void *buf = NULL;
    size_t align = MAX_OF((size_t)d->align_bytes, (size_t)ALIGN_DEFAULT_BYTES);

    if (posix_memalign(&buf, align, (size_t)MIN_OF(aligned_len, (uint64_t)BOUNCE_MAX_BYTES)) != 0) {
        return NULL;
    }
    return buf;
}

static int co_read_block_run(struct disk_real *d, uint64_t offset, void *buf, size_t len)
{
    struct iovec iov = {buf, len};
    return co_disk_real_read(d, offset, &iov, 1, 0);
}

int co_disk_direct_read(struct disk *disk, uint64_t offset, const struct iovec *iov, int iov_count)
{
    struct disk_real *d = container_of(disk, struct disk_real, base);
    uint64_t total = iov_total_bytes(iov, iov_count);

    if (!disk_real_range_ok(offset, total)) {
        return -EINVAL;
    }
    if (total == 0) {
        return 0;
    }
    if (is_aligned(d, offset, iov, iov_count)) {
        return co_disk_real_read(d, offset, iov, iov_count, 0);
    }

    uint64_t end = round_up_to(offset + total, d->align_bytes);
    uint64_t at = round_down_to(offset, d->align_bytes);
    char *bounce = bounce_alloc(d, end - at);
    int ret = bounce ? 0 : -ENOMEM;
    uint64_t copied = 0;
    while (ret == 0 && at < end) {
        size_t run = (size_t)MIN_OF(end - at, (uint64_t)BOUNCE_MAX_BYTES);
        ret = co_read_block_run(d, at, bounce, run);
        if (ret == 0) {
            size_t head = (size_t)(offset + copied - at);
            size_t part = (size_t)MIN_OF((uint64_t)(run - head), total - copied);
            iov_copy_in(iov, iov_count, copied, bounce + head, part);
            copied += part;
            at += run;
        }
    }
    free(bounce);
    return ret;
}

/*
 * Takes the blocks of an unaligned write; *pads tells that it pads the file behind its end. The
 * size may have changed while it waited (O7): then it starts again.
 */
static int co_own_blocks(struct disk_real *d, uint64_t from, uint64_t to, struct hold **out,
                         bool *pads)
{
    for (;;) {
        *pads = !d->base.is_block_device && to > d->base.size_bytes;
        int ret = co_hold(d->blocks, HOLD_EXCLUSIVE, from, (*pads ? OFFSETS_END : to) - from, out);
        if (ret < 0) {
            return ret;
        }
        if (*pads || d->base.is_block_device || to <= d->base.size_bytes) {
            return 0;
        }
        hold_release(*out);
    }
}

/* The first and last block of a run keep what the write [offset, end) leaves of them. */
static int co_fill_edges(struct disk_real *d, uint64_t at, char *bounce, size_t run,
                         uint64_t offset, uint64_t end)
{
    uint64_t last = at + run - d->align_bytes;
    int ret = 0;

    if (at < offset) {
        ret = co_read_block_run(d, at, bounce, d->align_bytes);
    }
    if (ret == 0 && last + d->align_bytes > end && (last != at || at >= offset)) {
        ret = co_read_block_run(d, last, bounce + (last - at), d->align_bytes);
    }
    return ret;
}

static int co_write_runs(struct disk_real *d, uint64_t offset, const struct iovec *iov,
                         int iov_count, uint64_t total)
{
    uint64_t at = round_down_to(offset, d->align_bytes);
    uint64_t to = round_up_to(offset + total, d->align_bytes);
    char *bounce = bounce_alloc(d, to - at);
    uint64_t copied = 0;
    int ret = bounce ? 0 : -ENOMEM;

    while (ret == 0 && at < to) {
        size_t run = (size_t)MIN_OF(to - at, (uint64_t)BOUNCE_MAX_BYTES);
        ret = co_fill_edges(d, at, bounce, run, offset, offset + total);
        if (ret < 0) {
            break;
        }
        size_t head = (size_t)(offset + copied - at);
        size_t part = (size_t)MIN_OF((uint64_t)(run - head), total - copied);
        iov_copy_out(iov, iov_count, copied, bounce + head, part);
        struct iovec out = {bounce, run};
        ret = co_disk_real_write(d, at, &out, 1, 0);
        copied += part;
        at += run;
    }
    free(bounce);
    return ret;
}

static int co_write_unaligned(struct disk_real *d, uint64_t offset, const struct iovec *iov,
                              int iov_count, uint64_t total)
{
    uint64_t from = round_down_to(offset, d->align_bytes);
    uint64_t to = round_up_to(offset + total, d->align_bytes);
    struct hold *hold;
    bool pads;

    int ret = co_own_blocks(d, from, to, &hold, &pads);
    if (ret < 0) {
        return ret;
    }
    ret = co_write_runs(d, offset, iov, iov_count, total);
    if (ret == 0) {
        disk_real_note_end(d, offset + total);
    }
    if (pads && ftruncate(d->fd, (off_t)d->base.size_bytes) < 0 && ret == 0) {
        ret = disk_real_no_room(-errno);
    }
    hold_release(hold);
    return ret;
}

int co_disk_direct_write(struct disk *disk, uint64_t offset, const struct iovec *iov, int iov_count)
{
    struct disk_real *d = container_of(disk, struct disk_real, base);
    uint64_t total = iov_total_bytes(iov, iov_count);
    struct hold *hold;

    if (!disk->writable) {
        return -EBADF;
    }
    if (!disk_real_range_ok(offset, total)) {
        return -EFBIG;
    }
    if (total == 0) {
        return 0;
    }
    if (!is_aligned(d, offset, iov, iov_count)) {
        return co_write_unaligned(d, offset, iov, iov_count, total);
    }
    int ret = co_disk_direct_share(d, offset, total, &hold);
    if (ret < 0) {
        return ret;
    }
    ret = co_disk_real_write(d, offset, iov, iov_count, 0);
    if (ret == 0) {
        disk_real_note_end(d, offset + total);
    }
    disk_direct_release(hold);
    return ret;
}
