/* SPDX-License-Identifier: BSD-2-Clause */
/*
 * Disks on files and block devices: opening, and all I/O through the page cache.
 *
 * What is only a copy to or from memory is done at once on the calling coroutine: a read that the
 * page cache can answer, and a write into the page cache. Through the ring such a write costs a
 * hand-over to a kernel worker, ten times the price of a small write itself. What could stop the
 * loop for long goes through the ring: reads that must wait for the device, large transfers, writes
 * while the kernel throttles this process for its dirty pages (seen by an inline write that was
 * slow), and all of fdatasync and fallocate.
 */
#include "io/disk_real.h"

#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <liburing.h>
#include <linux/fs.h>
#include <linux/magic.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <sys/statvfs.h>
#include <sys/vfs.h>
#include <time.h>
#include <unistd.h>

#include "base/check.h"
#include "base/limits.h"
#include "io/filelock.h"
#include "io/iov.h"
#include "sched/loop.h"
#include "sched/table.h"

/* Larger transfers are copied by a kernel worker instead; this much takes some 0.1 ms inline. */
#define INLINE_MAX_BYTES (512 * KIB)
/*
 * An inline write that took longer may have been throttled; or the thread has lost its processor to
 * another. For a while it is looked which of both it is when it happens again, and if it was
 * throttled, the ring is used for a while.
 */
#define INLINE_SLOW_NS  2000000U
#define SUSPECT_NS      1000000000U
#define RING_INSTEAD_NS 100000000U
/* Zeroing less than this is cheaper by writing than by fallocate. */
#define ZERO_BY_WRITING_BYTES (16 * KIB)
#define ZEROES_BYTES          65536U
/* How long a lock that somebody holds is waited for. */
#define LOCK_PATIENCE_NS (500ULL * 1000 * 1000)
#define LOCK_RETRY_NS    (20ULL * 1000 * 1000)
/* Entries of a transfer that goes on in the middle of its buffers. */
#define WINDOW_ENTRIES 32
/* Highest offset of a file less what rounding outward may add. */
#define RANGE_MAX ((uint64_t)INT64_MAX / 2)

static const unsigned char zeroes[ZEROES_BYTES] __attribute__((aligned(4096)));

static struct disk_real *to_real(struct disk *disk)
{
    return container_of(disk, struct disk_real, base);
}

bool disk_real_range_ok(uint64_t offset, uint64_t len)
{
    return range_inside(offset, len, RANGE_MAX);
}

void disk_real_note_end(struct disk_real *d, uint64_t end)
{
    if (!d->base.is_block_device && end > d->base.size_bytes) {
        d->base.size_bytes = end;
    }
}

/* Reading and writing through the ring. */

static int co_ring_transfer(struct disk_real *d, bool write, uint64_t offset,
                            const struct iovec *iov, int iov_count, bool by_worker)
{
    struct loop_op op = {0};
    struct io_uring_sqe *sqe = loop_sqe(d->loop);

    if (iov_count == 1 && write) {
        io_uring_prep_write(sqe, d->fd, iov->iov_base, (unsigned)iov->iov_len, offset);
    } else if (iov_count == 1) {
        io_uring_prep_read(sqe, d->fd, iov->iov_base, (unsigned)iov->iov_len, offset);
    } else if (write) {
        io_uring_prep_writev(sqe, d->fd, iov, (unsigned)iov_count, offset);
    } else {
        io_uring_prep_readv(sqe, d->fd, iov, (unsigned)iov_count, offset);
    }
    if (by_worker) {
        sqe->flags |= IOSQE_ASYNC;
    }
    loop_sqe_attach(sqe, &op);
    return co_loop_wait(d->loop, &op);
}

/*
 * One transfer of what lies from byte `done` on: the count, 0 at the end of the file, or -errno.
 * Interruptions are retried.
 */
static int co_transfer_from(struct disk_real *d, bool write, uint64_t offset,
                            const struct iovec *iov, int iov_count, uint64_t done)
{
    struct iovec window[WINDOW_ENTRIES];
    size_t bytes = 0;
    int result;

    if (done > 0 || iov_count > IOV_MAX) {
        iov_count = iov_window(iov, iov_count, done, window, WINDOW_ENTRIES, INT_MAX / 2, &bytes);
        iov = window;
    } else {
        bytes = (size_t)iov_total_bytes(iov, iov_count);
    }
    /* Direct I/O copies nothing: no worker needed. */
    bool by_worker = !d->direct && bytes > INLINE_MAX_BYTES;
    do {
        result = co_ring_transfer(d, write, offset + done, iov, iov_count, by_worker);
        if (result == -EAGAIN && !by_worker) {
            by_worker = true;
            result = -EINTR;
        }
    } while (result == -EINTR);
    return result;
}

int co_disk_real_read(struct disk_real *d, uint64_t offset, const struct iovec *iov, int iov_count,
                      uint64_t done)
{
    uint64_t total = iov_total_bytes(iov, iov_count);

    while (done < total) {
        if (offset + done >= d->base.size_bytes) {
            break;
        }
        int got = co_transfer_from(d, false, offset, iov, iov_count, done);
        if (got < 0) {
            return got;
        }
        done += (uint64_t)got;
        if (got == 0 || (d->direct && done % d->align_bytes != 0)) {
            break;
        }
    }
    iov_zero_from(iov, iov_count, done);
    return 0;
}

/* A quota and a limit of the file's size are as good as a full disk: waiting or asking the
 * administrator helps, and nothing is broken. */
int disk_real_no_room(int result)
{
    return result == -EFBIG || result == -EDQUOT ? -ENOSPC : result;
}

int co_disk_real_write(struct disk_real *d, uint64_t offset, const struct iovec *iov, int iov_count,
                       uint64_t done)
{
    uint64_t total = iov_total_bytes(iov, iov_count);

    while (done < total) {
        int put = co_transfer_from(d, true, offset, iov, iov_count, done);
        if (put <= 0) {
            return put < 0 ? disk_real_no_room(put) : -EIO;
        }
        done += (uint64_t)put;
    }
    return 0;
}

/* Through the page cache. */

/* What can be read without waiting for the device: the count, 0 for none. */
static uint64_t read_cached(struct disk_real *d, uint64_t offset, const struct iovec *iov,
                            int iov_count)
{
    ssize_t got = -1;

    iov_count = MIN_OF(iov_count, IOV_MAX);
    if (d->in_memory) {
        got = preadv(d->fd, iov, iov_count, (off_t)offset);
    } else if (d->cached_reads) {
        got = preadv2(d->fd, iov, iov_count, (off_t)offset, RWF_NOWAIT);
        if (got < 0 && errno == EOPNOTSUPP) {
            d->cached_reads = false;
        }
    }
    /* Errors come again, and are told, on the way through the ring. */
    return got > 0 ? (uint64_t)got : 0;
}

static int co_buffered_read(struct disk *disk, uint64_t offset, const struct iovec *iov,
                            int iov_count)
{
    struct disk_real *d = to_real(disk);
    uint64_t total = iov_total_bytes(iov, iov_count);
    uint64_t done = 0;

    if (!disk_real_range_ok(offset, total)) {
        return -EINVAL;
    }
    if (total <= INLINE_MAX_BYTES) {
        done = read_cached(d, offset, iov, iov_count);
        if (done == total) {
            return 0;
        }
    }
    return co_disk_real_read(d, offset, iov, iov_count, done);
}

static uint64_t clock_ns(void)
{
    struct timespec now;

    clock_gettime(CLOCK_MONOTONIC, &now);
    return (uint64_t)now.tv_sec * 1000000000U + (uint64_t)now.tv_nsec;
}

/* How often this thread has given up its processor by itself, to wait for something. */
static long waits_so_far(void)
{
    struct rusage usage;

    return getrusage(RUSAGE_THREAD, &usage) < 0 ? 0 : usage.ru_nvcsw;
}

/* Writes into the page cache as long as that is quick: the count. */
static uint64_t write_inline(struct disk_real *d, uint64_t offset, const struct iovec *iov,
                             int iov_count)
{
    uint64_t start_ns = clock_ns();

    if (start_ns < d->ring_until_ns || d->fallocates_running > 0) {
        return 0;
    }
    bool suspect = start_ns < d->suspect_until_ns;
    long waits = suspect ? waits_so_far() : 0;
    ssize_t put = pwritev(d->fd, iov, MIN_OF(iov_count, IOV_MAX), (off_t)offset);
    uint64_t end_ns = clock_ns();
    if (end_ns - start_ns > INLINE_SLOW_NS) {
        d->suspect_until_ns = end_ns + SUSPECT_NS;
        if (suspect && waits_so_far() > waits) {
            d->ring_until_ns = end_ns + RING_INSTEAD_NS;
        }
    }
    /* Errors come again, and are told, on the way through the ring. */
    return put > 0 ? (uint64_t)put : 0;
}

static int co_buffered_write(struct disk *disk, uint64_t offset, const struct iovec *iov,
                             int iov_count)
{
    struct disk_real *d = to_real(disk);
    uint64_t total = iov_total_bytes(iov, iov_count);
    uint64_t done = 0;

    if (!disk->writable) {
        return -EBADF;
    }
    if (!disk_real_range_ok(offset, total)) {
        return -EFBIG;
    }
    if (total <= INLINE_MAX_BYTES) {
        done = write_inline(d, offset, iov, iov_count);
    }
    int ret = co_disk_real_write(d, offset, iov, iov_count, done);
    if (ret == 0 && total > 0) {
        disk_real_note_end(d, offset + total);
    }
    return ret;
}

/* Flush. */

static int co_fsync(struct disk_real *d, int fd, unsigned flags)
{
    struct loop_op op = {0};
    struct io_uring_sqe *sqe = loop_sqe(d->loop);

    io_uring_prep_fsync(sqe, fd, flags);
    loop_sqe_attach(sqe, &op);
    return co_loop_wait(d->loop, &op);
}

/* A file made by us is durable only with its name. */
static int co_sync_name(struct disk_real *d)
{
    const char *slash = strrchr(d->path, '/');
    char *directory = slash == d->path ? strdup("/")
                      : slash          ? strndup(d->path, (size_t)(slash - d->path))
                                       : strdup(".");
    if (directory == NULL) {
        return -ENOMEM;
    }
    int fd = open(directory, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    int ret = fd < 0 ? -errno : 0;
    free(directory);
    if (ret == -EACCES) {
        /* One may write into a directory that one may not read, but not sync it. */
        d->name_unsynced = false;
        return 0;
    }
    if (ret == 0) {
        ret = co_fsync(d, fd, 0);
        close(fd);
    }
    if (ret == 0 || ret == -EINVAL) {
        /* EINVAL: a file system without syncing of directories. */
        d->name_unsynced = false;
        ret = 0;
    }
    return ret;
}

/* O4, O8: one fdatasync a call, its error told and never retried. */
static int co_flush(struct disk *disk)
{
    struct disk_real *d = to_real(disk);

    if (!disk->writable) {
        return 0;
    }
    /* In memory there is nothing to wait for, and handing it to a kernel worker is all the cost. */
    int ret = d->in_memory ? (fdatasync(d->fd) < 0 ? -errno : 0)
                           : co_fsync(d, d->fd, IORING_FSYNC_DATASYNC);
    if (ret == 0 && d->name_unsynced) {
        ret = co_sync_name(d);
    }
    return ret;
}

/* Zero and punch. */

static bool is_unsupported(int ret)
{
    return ret == -EOPNOTSUPP || ret == -ENOSYS || ret == -ENOTTY;
}

static int co_fallocate(struct disk_real *d, int mode, uint64_t offset, uint64_t len)
{
    int ret;

    d->fallocates_running++;
    do {
        struct loop_op op = {0};
        struct io_uring_sqe *sqe = loop_sqe(d->loop);
        /* As io_uring_prep_fallocate() does it, the types of which are not those of all versions.
         */
        io_uring_prep_rw(IORING_OP_FALLOCATE, sqe, d->fd, NULL, (unsigned)mode, offset);
        sqe->addr = len;
        loop_sqe_attach(sqe, &op);
        ret = co_loop_wait(d->loop, &op);
    } while (ret == -EINTR);
    d->fallocates_running--;
    /* EBUSY: a block device in use elsewhere whose cache cannot be dropped. */
    if (is_unsupported(ret) || (ret == -EBUSY && d->base.is_block_device)) {
        return -EOPNOTSUPP;
    }
    return disk_real_no_room(ret);
}

static int co_write_zeroes(struct disk_real *d, uint64_t offset, uint64_t len)
{
    struct iovec iov[16];
    int ret = 0;

    while (ret == 0 && len > 0) {
        int count = 0;
        uint64_t bytes = 0;
        while (count < (int)ARRAY_LEN(iov) && bytes < len) {
            size_t part = (size_t)MIN_OF(len - bytes, (uint64_t)ZEROES_BYTES);
            iov[count++] = (struct iovec){(void *)(uintptr_t)zeroes, part};
            bytes += part;
        }
        ret = d->base.ops->co_write(&d->base, offset, iov, count);
        offset += bytes;
        len -= bytes;
    }
    return ret;
}

/* -EOPNOTSUPP when it has to be written instead. */
static int co_zero_allocated(struct disk_real *d, uint64_t offset, uint64_t len)
{
    int ret = -EOPNOTSUPP;

    if (!d->zero_range_lacking) {
        ret = co_fallocate(d, FALLOC_FL_ZERO_RANGE, offset, len);
        d->zero_range_lacking = ret == -EOPNOTSUPP;
    }
    if (ret == -EOPNOTSUPP && !d->base.is_block_device) {
        ret = co_fallocate(d, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, offset, len);
        if (ret == 0) {
            ret = co_fallocate(d, 0, offset, len);
        }
    }
    return ret;
}

/*
 * The part of a range that fallocate may be asked for: all of it on a file, whole logical blocks on
 * a device. False when there is none.
 */
static bool inner_blocks(const struct disk_real *d, uint64_t offset, uint64_t len, uint64_t *from,
                         uint64_t *to)
{
    *from = round_up_to(offset, d->block_bytes);
    *to = round_down_to(offset + len, d->block_bytes);
    return *from < *to;
}

/* What inner_blocks() left out at both ends. */
static int co_zero_edges(struct disk_real *d, uint64_t offset, uint64_t len, uint64_t from,
                         uint64_t to)
{
    int ret = co_write_zeroes(d, offset, from - offset);
    if (ret == 0) {
        ret = co_write_zeroes(d, to, offset + len - to);
    }
    return ret;
}

static int co_zero(struct disk *disk, uint64_t offset, uint64_t len)
{
    struct disk_real *d = to_real(disk);
    struct hold *hold;
    uint64_t from;
    uint64_t to;

    if (!disk->writable) {
        return -EBADF;
    }
    if (!disk_real_range_ok(offset, len)) {
        return -EFBIG;
    }
    if ((len <= ZERO_BY_WRITING_BYTES && !d->direct) || !inner_blocks(d, offset, len, &from, &to)) {
        return co_write_zeroes(d, offset, len);
    }
    int ret = co_disk_direct_share(d, from, to - from, &hold);
    if (ret < 0) {
        return ret;
    }
    ret = co_zero_allocated(d, from, to - from);
    if (ret == 0) {
        disk_real_note_end(d, to);
    }
    disk_direct_release(hold);
    if (ret == -EOPNOTSUPP) {
        return co_write_zeroes(d, offset, len);
    }
    return ret < 0 ? ret : co_zero_edges(d, offset, len, from, to);
}

static int co_punch(struct disk *disk, uint64_t offset, uint64_t len)
{
    struct disk_real *d = to_real(disk);
    struct hold *hold;
    uint64_t from;
    uint64_t to;

    if (!disk->writable) {
        return -EBADF;
    }
    if (!disk_real_range_ok(offset, len)) {
        return -EINVAL;
    }
    if (len == 0) {
        return 0;
    }
    if (!inner_blocks(d, offset, len, &from, &to)) {
        return co_write_zeroes(d, offset, len);
    }
    int ret = co_disk_direct_share(d, from, to - from, &hold);
    if (ret < 0) {
        return ret;
    }
    ret = co_fallocate(d, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, from, to - from);
    disk_direct_release(hold);
    return ret < 0 ? ret : co_zero_edges(d, offset, len, from, to);
}

/* Size and extents. */

static int co_truncate(struct disk *disk, uint64_t size_bytes)
{
    struct disk_real *d = to_real(disk);
    struct hold *hold;

    if (!disk->writable) {
        return -EBADF;
    }
    if (disk->is_block_device) {
        return -EOPNOTSUPP;
    }
    if (!disk_real_range_ok(size_bytes, 0)) {
        return -EFBIG;
    }
    int ret = co_disk_direct_own_all(d, &hold);
    if (ret < 0) {
        return ret;
    }
    do {
        ret = ftruncate(d->fd, (off_t)size_bytes) < 0 ? disk_real_no_room(-errno) : 0;
    } while (ret == -EINTR);
    if (ret == 0) {
        disk->size_bytes = size_bytes;
    }
    disk_direct_release(hold);
    return ret;
}

static int co_next_extent(struct disk *disk, uint64_t offset, bool *is_hole, uint64_t *end)
{
    struct disk_real *d = to_real(disk);
    uint64_t size_bytes = disk->size_bytes;

    if (offset >= size_bytes) {
        return -EINVAL;
    }
    *is_hole = false;
    *end = size_bytes;
    off_t found = lseek(d->fd, (off_t)offset, SEEK_DATA);
    if (found < 0 && errno == ENXIO) {
        *is_hole = true;
        return 0;
    }
    if (found > (off_t)offset) {
        *is_hole = true;
    } else if (found >= 0) {
        found = lseek(d->fd, (off_t)offset, SEEK_HOLE);
    }
    if (found > (off_t)offset) {
        *end = MIN_OF((uint64_t)found, size_bytes);
    }
    return 0;
}

static void disk_real_free(struct disk_real *d)
{
    request_table_free(d->blocks);
    if (d->fd >= 0) {
        close(d->fd);
    }
    free(d->path);
    free(d);
}

static void real_close(struct disk *disk)
{
    struct disk_real *d = to_real(disk);

    assert(*d->open_disks > 0);
    (*d->open_disks)--;
    disk_real_free(d);
}

struct room_question {
    int fd;
    uint64_t free_bytes;
    int result;
};

static void ask_for_room(void *arg)
{
    struct room_question *question = arg;
    struct statvfs room;

    question->result = fstatvfs(question->fd, &room) < 0 ? -errno : 0;
    question->free_bytes = question->result == 0 ? (uint64_t)room.f_bavail * room.f_frsize : 0;
}

/* On a worker: a file system over a network may not answer. */
static int co_free_bytes(struct disk *disk, uint64_t *free_bytes)
{
    struct disk_real *d = to_real(disk);
    struct room_question question = {.fd = d->fd};

    if (disk->is_block_device) {
        return -EOPNOTSUPP;
    }
    co_loop_work(d->loop, ask_for_room, &question);
    *free_bytes = question.free_bytes;
    return question.result;
}

static const struct disk_ops buffered_ops = {
    .co_read = co_buffered_read,
    .co_write = co_buffered_write,
    .co_flush = co_flush,
    .co_zero = co_zero,
    .co_punch = co_punch,
    .co_truncate = co_truncate,
    .co_next_extent = co_next_extent,
    .co_free_bytes = co_free_bytes,
    .close = real_close,
};

static const struct disk_ops direct_ops = {
    .co_read = co_disk_direct_read,
    .co_write = co_disk_direct_write,
    .co_flush = co_flush,
    .co_zero = co_zero,
    .co_punch = co_punch,
    .co_truncate = co_truncate,
    .co_next_extent = co_next_extent,
    .co_free_bytes = co_free_bytes,
    .close = real_close,
};

/* Opening. */

/* O10: what a name may lead to. NULL when it is fine, else what it is. */
static const char *refused_kind(mode_t mode)
{
    if (S_ISREG(mode) || S_ISBLK(mode)) {
        return NULL;
    }
    return S_ISDIR(mode)    ? "a directory"
           : S_ISCHR(mode)  ? "a character device"
           : S_ISFIFO(mode) ? "a pipe"
           : S_ISSOCK(mode) ? "a socket"
                            : "no regular file";
}

static const char *advice(int errno_value, unsigned flags)
{
    switch (errno_value) {
    case ENOENT:
        return flags & DISK_CREATE ? ": make its directory first" : ": check the name";
    case EEXIST:
        return ": remove it or choose another name";
    case EACCES:
    case EPERM:
        return flags & DISK_CREATE     ? ": choose a directory that you may write"
               : flags & DISK_WRITABLE ? ": let this user write it, or open it with --read-only"
                                       : ": let this user read it";
    case EROFS:
        return flags & DISK_CREATE ? ": choose another directory" : ": open it with --read-only";
    case EAGAIN:
        return ": another process has a lease on it, try again";
    default:
        return "";
    }
}

static int refuse_open(struct errtext *err, int errno_value, const char *name, unsigned flags)
{
    const char *what =
        errno_value == ENOENT && !(flags & DISK_CREATE) ? "no such file" : strerror(errno_value);
    return err_set(err, errno_value, "%s: cannot %s: %s%s", name,
                   flags & DISK_CREATE ? "create" : "open", what, advice(errno_value, flags));
}

static int check_kind(const struct stat *st, const char *name, struct errtext *err)
{
    const char *kind = refused_kind(st->st_mode);

    if (kind) {
        return err_set(err, EINVAL, "%s: is %s: an image must be a regular file or a block device",
                       name, kind);
    }
    return 0;
}

/*
 * The descriptor, or -errno. Looks before it opens, as opening a device can already do something
 * (rewind a tape, start a watchdog), and again after, as the name may have moved on meanwhile;
 * O_NONBLOCK so that even then it does not wait on a pipe.
 */
static int open_plain(const char *path, const char *name, unsigned flags, struct stat *st,
                      struct errtext *err)
{
    int open_flags = O_CLOEXEC | O_NONBLOCK | O_NOCTTY;
    int ret = 0;

    if (flags & DISK_CREATE) {
        open_flags |= O_RDWR | O_CREAT | O_EXCL;
    } else {
        open_flags |= flags & DISK_WRITABLE ? O_RDWR : O_RDONLY;
        ret = stat(path, st) < 0 ? refuse_open(err, errno, name, flags) : check_kind(st, name, err);
    }
    if (ret < 0) {
        return ret;
    }
    int fd = open(path, open_flags, 0644);
    if (fd < 0) {
        return refuse_open(err, errno, name, flags);
    }
    ret = fstat(fd, st) < 0 ? refuse_open(err, errno, name, flags) : check_kind(st, name, err);
    if (ret < 0) {
        close(fd);
        return ret;
    }
    return fd;
}

/* Ring transfers on a non-blocking descriptor would give up instead of waiting: back to normal. */
static int set_mode(struct disk_real *d, const char *name, unsigned flags, struct errtext *err)
{
    if (fcntl(d->fd, F_SETFL, 0) < 0) {
        return err_set(err, errno, "%s: cannot open: %s", name, strerror(errno));
    }
    if (!(flags & DISK_DIRECT)) {
        return 0;
    }
    if (fcntl(d->fd, F_SETFL, O_DIRECT) < 0) {
        return err_set(err, errno,
                       "%s: the file system has no direct I/O (O_DIRECT): %s: use "
                       "--cache=writeback",
                       name, strerror(errno));
    }
    return disk_direct_prepare(d, err);
}

static int learn_block_device(struct disk_real *d, const char *name, struct errtext *err)
{
    uint64_t size_bytes;
    int block_bytes;

    if (ioctl(d->fd, BLKGETSIZE64, &size_bytes) < 0 || ioctl(d->fd, BLKSSZGET, &block_bytes) < 0) {
        return err_set(err, errno, "%s: cannot ask the block device for its size: %s", name,
                       strerror(errno));
    }
    if (block_bytes <= 0 || !is_power_of_two((uint64_t)block_bytes)) {
        return err_set(err, EINVAL,
                       "%s: the block device has logical blocks of %d bytes: a power of two is "
                       "needed",
                       name, block_bytes);
    }
    d->base.size_bytes = size_bytes;
    d->block_bytes = (uint32_t)block_bytes;
    return 0;
}

static int learn(struct disk_real *d, const struct stat *st, const char *name, struct errtext *err)
{
    struct statfs fs;

    d->block_bytes = 1;
    d->cached_reads = true;
    d->base.file_id[0] = (uint64_t)st->st_dev;
    d->base.file_id[1] = (uint64_t)st->st_ino;
    if (S_ISBLK(st->st_mode)) {
        /* Two nodes may name one device. */
        d->base.file_id[0] = (uint64_t)st->st_rdev;
        d->base.file_id[1] = UINT64_MAX;
        d->base.is_block_device = true;
        return learn_block_device(d, name, err);
    }
    d->base.size_bytes = (uint64_t)st->st_size;
    if (fstatfs(d->fd, &fs) == 0) {
        d->in_memory = (uint64_t)fs.f_type == TMPFS_MAGIC || (uint64_t)fs.f_type == RAMFS_MAGIC;
    }
    return 0;
}

/*
 * A server that was killed holds its locks for some milliseconds more, until the kernel has torn
 * down its ring: who restarts it at once should not be told that somebody has the image.
 */
static int co_take_lock(struct world *world, struct disk_real *d, const char *name,
                        struct errtext *err)
{
    uint64_t give_up_ns = world_now_ns(world) + LOCK_PATIENCE_NS;
    int ret = filelock_take(d->fd, name, d->base.writable, err);
    while (ret == -EAGAIN && world_now_ns(world) < give_up_ns) {
        co_sleep_ns(world, LOCK_RETRY_NS);
        ret = filelock_take(d->fd, name, d->base.writable, err);
    }
    return ret;
}

static int co_set_up(struct world *world, struct disk_real *d, unsigned flags,
                     const struct stat *st, const char *name, struct errtext *err)
{
    int ret = learn(d, st, name, err);
    if (ret == 0) {
        ret = set_mode(d, name, flags, err);
    }
    if (ret == 0 && !(flags & DISK_NO_LOCK)) {
        ret = co_take_lock(world, d, name, err);
    }
    return ret;
}

int co_disk_real_open(struct world *world, struct loop *loop, unsigned *open_disks,
                      const char *path, unsigned flags, struct disk **out, struct errtext *err)
{
    struct disk_real *d = calloc(1, sizeof(*d));
    char *path_copy = strdup(path);
    char name[512];
    struct stat st;

    /* The path may come from an image. */
    err_sanitise(name, sizeof(name), path, strlen(path));
    if (d == NULL || path_copy == NULL) {
        free(d);
        free(path_copy);
        return err_set(err, ENOMEM, "%s: out of memory", name);
    }
    d->path = path_copy;
    d->loop = loop;
    d->open_disks = open_disks;
    d->base.world = world;
    d->base.path = path_copy;
    d->base.writable = (flags & (DISK_WRITABLE | DISK_CREATE)) != 0;
    d->name_unsynced = (flags & DISK_CREATE) != 0;
    d->fd = open_plain(path, name, flags, &st, err);

    int ret = d->fd < 0 ? d->fd : 0;
    if (ret == 0) {
        ret = co_set_up(world, d, flags, &st, name, err);
    }
    if (ret < 0) {
        if (d->fd >= 0 && (flags & DISK_CREATE)) {
            (void)unlink(path);
        }
        disk_real_free(d);
        return ret;
    }
    d->base.ops = d->direct ? &direct_ops : &buffered_ops;
    (*open_disks)++;
    *out = &d->base;
    return 0;
}
