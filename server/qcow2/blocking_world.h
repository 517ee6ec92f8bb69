/* SPDX-License-Identifier: BSD-2-Clause */
/*
 * For unit tests: a world of plain files whose calls never suspend, so that no loop is needed and
 * other programs can look at the files. Counts its calls, and fails the one it is told to.
 */
#ifndef QCOWD_QCOW2_BLOCKING_WORLD_H
#define QCOWD_QCOW2_BLOCKING_WORLD_H

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "base/check.h"
#include "io/world.h"

struct blocking_world {
    struct world world;
    unsigned calls;           /* that change a disk, flushes too */
    unsigned fail_from_call;  /* from this number on they fail (counting from 1); 0: none */
    int fail_with;            /* -errno */
    bool no_punch;            /* co_punch: -EOPNOTSUPP */
    bool header_before_flush; /* byte 0 was written while something was not flushed */
    unsigned unflushed_writes;
    unsigned zeroes, punches, flushes, works;
};

struct blocking_disk {
    struct disk disk;
    int fd;
    char *path;
};

static inline struct blocking_world *blocking_of(struct disk *disk)
{
    return container_of(disk->world, struct blocking_world, world);
}

static inline int blocking_fd(struct disk *disk)
{
    return container_of(disk, struct blocking_disk, disk)->fd;
}

static inline int blocking_count(struct disk *disk)
{
    struct blocking_world *world = blocking_of(disk);
    world->calls++;
    return world->fail_from_call && world->calls >= world->fail_from_call ? world->fail_with : 0;
}

static inline int blocking_read(struct disk *disk, uint64_t offset, const struct iovec *iov,
                                int iov_count)
{
    for (int i = 0; i < iov_count; i++) {
        memset(iov[i].iov_base, 0, iov[i].iov_len);
        if (pread(blocking_fd(disk), iov[i].iov_base, iov[i].iov_len, (off_t)offset) < 0) {
            return -errno;
        }
        offset += iov[i].iov_len;
    }
    return 0;
}

static inline int blocking_write(struct disk *disk, uint64_t offset, const struct iovec *iov,
                                 int iov_count)
{
    struct blocking_world *world = blocking_of(disk);
    int ret = blocking_count(disk);
    if (offset == 0 && world->unflushed_writes > 0) {
        world->header_before_flush = true;
    }
    world->unflushed_writes++;
    for (int i = 0; ret == 0 && i < iov_count; i++) {
        ssize_t done = pwrite(blocking_fd(disk), iov[i].iov_base, iov[i].iov_len, (off_t)offset);
        if (done != (ssize_t)iov[i].iov_len) {
            ret = done < 0 ? -errno : -ENOSPC;
        }
        offset += iov[i].iov_len;
    }
    disk->size_bytes = MAX_OF(disk->size_bytes, offset);
    return ret;
}

static inline int blocking_flush(struct disk *disk)
{
    int ret = blocking_count(disk);
    blocking_of(disk)->unflushed_writes = 0;
    blocking_of(disk)->flushes++;
    return ret;
}

static inline int blocking_punch(struct disk *disk, uint64_t offset, uint64_t len)
{
    if (blocking_of(disk)->no_punch) {
        return -EOPNOTSUPP;
    }
    int ret = blocking_count(disk);
    blocking_of(disk)->punches++;
    if (ret < 0) {
        return ret;
    }
    return fallocate(blocking_fd(disk), FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, (off_t)offset,
                     (off_t)len) < 0
               ? -errno
               : 0;
}

static inline int blocking_zero(struct disk *disk, uint64_t offset, uint64_t len)
{
    char *zeroes = calloc(1, len);
    struct iovec iov = {zeroes, len};
    int ret = zeroes ? blocking_write(disk, offset, &iov, 1) : -ENOMEM;
    blocking_of(disk)->zeroes++;
    free(zeroes);
    return ret;
}

static inline int blocking_truncate(struct disk *disk, uint64_t size_bytes)
{
    int ret = blocking_count(disk);
    blocking_of(disk)->unflushed_writes++;
    if (ret == 0 && ftruncate(blocking_fd(disk), (off_t)size_bytes) < 0) {
        ret = -errno;
    }
    if (ret == 0) {
        disk->size_bytes = size_bytes;
    }
    return ret;
}

static inline int blocking_next_extent(struct disk *disk, uint64_t offset, bool *is_hole,
                                       uint64_t *end)
{
    off_t data = lseek(blocking_fd(disk), (off_t)offset, SEEK_DATA);
    off_t hole = lseek(blocking_fd(disk), (off_t)offset, SEEK_HOLE);
    *is_hole = data != (off_t)offset;
    struct stat status;
    uint64_t size = fstat(blocking_fd(disk), &status) == 0 ? (uint64_t)status.st_size : 0;
    *end = !*is_hole ? (uint64_t)hole : data < 0 ? size : (uint64_t)data;
    return 0;
}

static inline void blocking_close(struct disk *disk)
{
    struct blocking_disk *blocking = container_of(disk, struct blocking_disk, disk);
    close(blocking->fd);
    free(blocking->path);
    free(blocking);
}

static inline int blocking_open(struct world *world, const char *path, unsigned flags,
                                struct disk **out, struct errtext *err)
{
    static const struct disk_ops ops = {
        .co_read = blocking_read,
        .co_write = blocking_write,
        .co_flush = blocking_flush,
        .co_zero = blocking_zero,
        .co_punch = blocking_punch,
        .co_truncate = blocking_truncate,
        .co_next_extent = blocking_next_extent,
        .close = blocking_close,
    };
    struct stat status;
    int open_flags = O_CLOEXEC | (flags & (DISK_WRITABLE | DISK_CREATE) ? O_RDWR : O_RDONLY) |
                     (flags & DISK_CREATE ? O_CREAT | O_EXCL : 0);
    int fd = open(path, open_flags, 0600);
    if (fd < 0) {
        return err_set(err, errno, "%s: %s", path, strerror(errno));
    }
    struct blocking_disk *blocking = calloc(1, sizeof(*blocking));
    char *copy = strdup(path);
    if (!blocking || !copy || fstat(fd, &status) < 0) {
        abort();
    }
    blocking->fd = fd;
    blocking->path = copy;
    blocking->disk = (struct disk){
        .ops = &ops,
        .world = world,
        .size_bytes = (uint64_t)status.st_size,
        .writable = flags & (DISK_WRITABLE | DISK_CREATE),
        .path = copy,
    };
    *out = &blocking->disk;
    return 0;
}

static inline int blocking_remove(struct world *world, const char *path)
{
    (void)world;
    return unlink(path) < 0 ? -errno : 0;
}

static inline void blocking_work(struct world *world, void (*fn)(void *arg), void *arg)
{
    container_of(world, struct blocking_world, world)->works++;
    fn(arg);
}

static inline void blocking_world_init(struct blocking_world *blocking)
{
    static const struct world_ops ops = {
        .co_work = blocking_work,
        .co_disk_open = blocking_open,
        .remove = blocking_remove,
    };
    *blocking = (struct blocking_world){.world.ops = &ops};
}

/* A directory for a test's files. */
static inline char *blocking_make_directory(void)
{
    const char *base = getenv("TMPDIR");
    char *path = NULL;
    if (asprintf(&path, "%s/qcowd-test-XXXXXX", base ? base : "/tmp") < 0 || !mkdtemp(path)) {
        abort();
    }
    return path;
}

#endif
