/* SPDX-License-Identifier: BSD-2-Clause */
/*
 * A raw file as an image: guest bytes are host bytes, so there is no mapping to guard and no order
 * to keep beyond O4 and O8. It serves as a backing file and as an export of its own.
 */
#include <errno.h>
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

#include "base/check.h"
#include "base/log.h"
#include "qcow2/qcow2.h"
#include "qcow2/raw.h"

#define PREFERRED_BYTES 4096U

struct raw_image {
    struct image image;
    struct disk *disk;
    /* O8: the error of the first fsync that failed; no change is accepted after it. */
    int flush_error;
};

static struct raw_image *raw_of(struct image *image)
{
    return container_of(image, struct raw_image, image);
}

/* Whether the image accepts changes: 0, -EROFS or -EIO. */
static int raw_admit_change(const struct raw_image *raw)
{
    if (raw->image.read_only) {
        return -EROFS;
    }
    return raw->flush_error ? -EIO : 0;
}

static int co_raw_read(struct image *image, uint64_t offset, void *buf, size_t len,
                       struct read_holes *holes)
{
    struct raw_image *raw = raw_of(image);
    if (holes) {
        holes->count = 0;
    }
    return co_disk_read(raw->disk, offset, buf, len);
}

static int co_raw_flush(struct image *image)
{
    struct raw_image *raw = raw_of(image);
    if (raw->image.read_only) {
        return 0;
    }
    if (raw->flush_error) {
        return -EIO;
    }
    int ret = co_disk_flush(raw->disk);
    /* The kernel tells of lost pages once only: a flush that failed meanwhile may have been told of
     * those that this one should have covered (O8). */
    if (ret < 0 && !raw->flush_error) {
        raw->flush_error = ret;
        log_error("%s: fsync failed: %s; no more writes are accepted", raw->image.path,
                  strerror(-ret));
    }
    return raw->flush_error ? -EIO : 0;
}

/* The end of every changing call. */
static int co_raw_finish(struct raw_image *raw, int ret, unsigned flags)
{
    if (ret < 0 || !(flags & IMAGE_FUA)) {
        return ret;
    }
    return co_raw_flush(&raw->image);
}

static int co_raw_write(struct image *image, uint64_t offset, const void *buf, size_t len,
                        unsigned flags)
{
    struct raw_image *raw = raw_of(image);
    int ret = raw_admit_change(raw);
    if (ret < 0) {
        return ret;
    }
    ret = co_disk_write(raw->disk, offset, buf, len);
    return co_raw_finish(raw, ret, flags);
}

static int co_raw_zero(struct image *image, uint64_t offset, uint64_t len, unsigned flags)
{
    struct raw_image *raw = raw_of(image);
    int ret = raw_admit_change(raw);
    if (ret < 0) {
        return ret;
    }
    /* Zeroing with the space kept may end in writing zeroes, which is never fast; a punch is, or it
     * is refused with nothing changed. */
    ret = flags & IMAGE_NO_HOLE ? -EOPNOTSUPP : raw->disk->ops->co_punch(raw->disk, offset, len);
    if (ret == -EOPNOTSUPP) {
        if (flags & IMAGE_FAST_ZERO) {
            return -ENOTSUP;
        }
        ret = raw->disk->ops->co_zero(raw->disk, offset, len);
    }
    return co_raw_finish(raw, ret, flags);
}

static int co_raw_trim(struct image *image, uint64_t offset, uint64_t len, unsigned flags)
{
    return co_raw_zero(image, offset, len, flags & IMAGE_FUA);
}

int co_raw_file_extents(struct disk *disk, uint64_t offset, uint64_t len, struct extent_list *list)
{
    uint64_t end = offset + len;

    assert(list->capacity > 0 && len > 0);
    list->count = 0;
    while (offset < end) {
        bool is_hole;
        uint64_t run_end;
        int ret = disk->ops->co_next_extent(disk, offset, &is_hole, &run_end);
        if (ret < 0) {
            return ret;
        }
        /* Somebody may have shortened the file under us: what is gone reads as zeroes. */
        if (run_end <= offset) {
            is_hole = true;
            run_end = end;
        }
        run_end = MIN_OF(run_end, end);
        uint32_t flags = is_hole ? EXTENT_HOLE | EXTENT_ZERO : 0;
        struct extent *last = list->count ? &list->extents[list->count - 1] : NULL;
        if (last && last->flags == flags) {
            last->len += run_end - offset;
        } else if (list->count < list->capacity) {
            list->extents[list->count++] = (struct extent){run_end - offset, flags, 1};
        } else {
            break;
        }
        offset = run_end;
    }
    return 0;
}

static int co_raw_extents(struct image *image, uint64_t offset, uint64_t len,
                          struct extent_list *list)
{
    return co_raw_file_extents(raw_of(image)->disk, offset, len, list);
}

struct disk *raw_image_disk(struct image *image)
{
    return raw_of(image)->disk;
}

static int co_raw_close(struct image *image, struct errtext *err)
{
    struct raw_image *raw = raw_of(image);
    int ret = co_raw_flush(image);
    if (ret < 0) {
        err_set(err, -ret, "%s: fsync failed (%s): acknowledged writes may be lost", image->path,
                strerror(-raw->flush_error));
    }
    disk_close(raw->disk);
    free(raw);
    return ret;
}

static const struct image_ops raw_image_ops = {
    .co_read = co_raw_read,
    .co_write = co_raw_write,
    .co_zero = co_raw_zero,
    .co_trim = co_raw_trim,
    .co_flush = co_raw_flush,
    .co_extents = co_raw_extents,
    .co_close = co_raw_close,
};

int co_raw_open(struct world *world, const char *path, bool read_only, bool direct,
                struct image **out, struct errtext *err)
{
    struct disk *disk;
    unsigned flags =
        (read_only ? DISK_READ_ONLY : DISK_WRITABLE) | (direct ? DISK_DIRECT : DISK_READ_ONLY);
    int ret = world->ops->co_disk_open(world, path, flags, &disk, err);
    if (ret < 0) {
        return ret;
    }
    struct raw_image *raw = calloc(1, sizeof(*raw));
    if (!raw) {
        disk_close(disk);
        return err_set(err, ENOMEM, "%s: out of memory", path);
    }
    raw->disk = disk;
    raw->image = (struct image){
        .ops = &raw_image_ops,
        .size_bytes = disk->size_bytes,
        .read_only = read_only,
        .can_zero_fast = !read_only,
        .preferred_bytes = PREFERRED_BYTES,
        .path = disk->path,
    };
    *out = &raw->image;
    return 0;
}
