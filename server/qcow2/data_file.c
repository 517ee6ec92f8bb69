/* SPDX-License-Identifier: BSD-2-Clause */
/*
 * Data files are opened when all of the chain is known, so that none of them can be a file that
 * stands for something else in it.
 */
#include "qcow2/data_file.h"

#include <errno.h>
#include <inttypes.h>
#include <stdlib.h>

#include "qcow2/chain.h"
#include "qcow2/engine.h"
#include "qcow2/raw.h"

/* The layer in the chain of `top`, or its data file, that `disk` is; NULL when there is none. */
static const struct disk *find_same_file(const struct qcow2 *top, const struct disk *disk)
{
    for (const struct qcow2 *layer = top; layer; layer = layer->backing) {
        if (disk_is_same(layer->disk, disk)) {
            return layer->disk;
        }
        if (layer->data_file && disk_is_same(layer->data_file, disk)) {
            return layer->data_file;
        }
        if (layer->backing_raw && disk_is_same(raw_image_disk(layer->backing_raw), disk)) {
            return raw_image_disk(layer->backing_raw);
        }
    }
    return NULL;
}

/*
 * A data file that is also something else of the chain would be overwritten by it. Looked at before
 * its lock is asked for, which would only say that somebody has it.
 */
static int co_check_data_is_apart(struct qcow2 *top, struct qcow2 *layer, const char *path,
                                  struct errtext *err)
{
    struct disk *disk;
    int ret =
        top->world->ops->co_disk_open(top->world, path, DISK_READ_ONLY | DISK_NO_LOCK, &disk, err);
    if (ret < 0) {
        return ret;
    }
    const struct disk *same = find_same_file(top, disk);
    if (same) {
        ret = same == layer->disk
                  ? err_set(err, EINVAL, "%s: it is the image itself: allowed is a file of its own",
                            path)
                  : err_set(err, EINVAL,
                            "%s: it is %s of the same chain, too: allowed is a file of its own",
                            path, same->path);
    }
    disk_close(disk);
    return ret;
}

/* All that the disk needs must be there: what is missing of a data file is lost data. */
static int check_data_size(const struct qcow2 *layer, const struct disk *data, struct errtext *err)
{
    if (data->size_bytes < layer->geo.size_bytes) {
        return err_set(err, EINVAL,
                       "%s: its size is %" PRIu64 " bytes: allowed is at least %" PRIu64
                       ", the size of the disk",
                       data->path, data->size_bytes, layer->geo.size_bytes);
    }
    return 0;
}

static int co_open_data_file(struct qcow2 *top, struct qcow2 *layer, struct errtext *err)
{
    unsigned flags = (layer->image.read_only ? DISK_READ_ONLY : DISK_WRITABLE) |
                     (layer->options.direct ? DISK_DIRECT : 0);
    struct disk *data = NULL;
    char *path;

    int ret =
        plain_path_resolve("data file", layer->path, layer->header.data_file_name, &path, err);
    if (ret < 0) {
        return ret;
    }
    ret = co_check_data_is_apart(top, layer, path, err);
    if (ret == 0) {
        ret = top->world->ops->co_disk_open(top->world, path, flags, &data, err);
    }
    free(path);
    if (ret == 0) {
        ret = check_data_size(layer, data, err);
    }
    if (ret < 0) {
        disk_close(data);
        err_prefix(err, "the data file of %s", layer->path);
        return ret;
    }
    layer->data_file = layer->data = data;
    return 0;
}

int co_open_data_files(struct qcow2 *top, struct errtext *err)
{
    int ret = 0;
    for (struct qcow2 *layer = top; layer && ret == 0; layer = layer->backing) {
        if (layer->geo.data_file) {
            ret = co_open_data_file(top, layer, err);
        }
    }
    return ret;
}
