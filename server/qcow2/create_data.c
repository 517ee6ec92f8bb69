/* SPDX-License-Identifier: BSD-2-Clause */
/*
 * A new data file is a hole as long as the disk. One that is found is not written to: its bytes are
 * the disk from now on, or (a block device) of no meaning.
 */
#include "qcow2/create_data.h"

#include <errno.h>
#include <inttypes.h>
#include <string.h>

#include "base/check.h"

#define SECTOR_BYTES 512U

/* Whether a file that is there already may become the data file of `image`. */
static int check_found_data(const struct disk *data, const struct disk *image,
                            const struct create_options *options, struct errtext *err)
{
    if (disk_is_same(data, image)) {
        return err_set(err, EINVAL, "%s: it is the image itself; give a file of its own",
                       data->path);
    }
    if (!options->data_file_raw && !data->is_block_device) {
        return err_set(err, EEXIST,
                       "%s: the file exists, and what it holds would be lost; give another name, "
                       "or data_file_raw=on to take it as the disk",
                       data->path);
    }
    if (data->size_bytes < options->size_bytes) {
        return err_set(err, EINVAL,
                       "%s: its size is %" PRIu64 " bytes; at least %" PRIu64
                       " are needed, the size of the disk",
                       data->path, data->size_bytes, options->size_bytes);
    }
    return 0;
}

/* Looks at a file that is there already, and asks for its lock. */
static int co_find_data_file(struct world *world, const char *path, const struct disk *image,
                             const struct create_options *options, struct errtext *err)
{
    struct disk *data;
    int ret = world->ops->co_disk_open(world, path, DISK_READ_ONLY | DISK_NO_LOCK, &data, err);
    if (ret < 0) {
        return ret;
    }
    ret = check_found_data(data, image, options, err);
    disk_close(data);
    if (ret == 0) {
        ret = world->ops->co_disk_open(world, path, DISK_WRITABLE, &data, err);
    }
    if (ret == 0) {
        disk_close(data);
    }
    return ret;
}

int co_prepare_data_file(struct world *world, const char *path, const struct disk *image,
                         const struct create_options *options, bool *made, struct errtext *err)
{
    struct disk *data;
    int ret = world->ops->co_disk_open(world, path, DISK_WRITABLE | DISK_CREATE, &data, err);
    *made = ret == 0;
    if (ret == -EEXIST) {
        return co_find_data_file(world, path, image, options, err);
    }
    if (ret < 0) {
        return ret;
    }
    ret = data->ops->co_truncate(data, round_up_to(options->size_bytes, SECTOR_BYTES));
    if (ret == 0) {
        ret = co_disk_flush(data);
    }
    disk_close(data);
    return ret < 0 ? err_set(err, -ret, "%s: cannot make the data file: %s", path, strerror(-ret))
                   : 0;
}
