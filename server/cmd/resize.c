/* SPDX-License-Identifier: BSD-2-Clause */
/*
 * `qcowd resize`. The image is opened as for serving, chain and all: what lies below decides what
 * must be written where a disk grows.
 */
#include <errno.h>
#include <inttypes.h>
#include <stdlib.h>

#include "base/check.h"
#include "base/log.h"
#include "cmd/commands.h"
#include "qcow2/qcow2.h"
#include "qcow2/resize.h"
#include "service/runtime.h"

#define SECTOR_BYTES 512U

/* The size that is asked for, rounded up to whole sectors as qemu-img does. */
static int find_size(const struct config *config, uint64_t old_bytes, uint64_t *size_bytes,
                     struct errtext *err)
{
    const struct resize_config *resize = &config->resize;
    uint64_t bytes = resize->bytes;
    if (resize->change == RESIZE_SUBTRACT) {
        if (bytes >= old_bytes) {
            return err_set(err, EINVAL,
                           "%s has %" PRIu64 " bytes: %" PRIu64 " less are not possible",
                           config->image, old_bytes, bytes);
        }
        bytes = old_bytes - bytes;
    } else if (resize->change == RESIZE_ADD && __builtin_add_overflow(bytes, old_bytes, &bytes)) {
        bytes = UINT64_MAX;
    }
    *size_bytes = bytes > UINT64_MAX - (SECTOR_BYTES - 1) ? round_down_to(bytes, SECTOR_BYTES)
                                                          : round_up_to(bytes, SECTOR_BYTES);
    if (*size_bytes < old_bytes && !resize->shrink) {
        return err_set(err, EINVAL,
                       "%s has %" PRIu64 " bytes: making it smaller, %" PRIu64
                       " bytes, loses what is beyond, and needs --shrink",
                       config->image, old_bytes, *size_bytes);
    }
    return 0;
}

static int co_resize_open(const struct config *config, struct image *image, struct errtext *err)
{
    uint64_t size_bytes = 0;
    int result = find_size(config, image->size_bytes, &size_bytes, err);
    return result < 0 ? result : co_qcow2_resize(image, size_bytes, err);
}

static int co_resize(struct world *world, void *arg)
{
    const struct config *config = arg;
    struct errtext err;
    struct errtext close_err;
    struct image *image;
    struct key_ring ring;
    int result = key_ring_read(&config->key_files, &ring, &err);
    if (result == 0) {
        const struct qcow2_open_options options = {
            .backing_format = config->resize.backing_format,
            .keys = ring.keys,
            .key_count = ring.count,
        };
        result = co_qcow2_open(world, config->image, &options, &image, &err);
        key_ring_wipe(&ring);
    }
    if (result < 0) {
        log_error("%s", err.text);
        return EXIT_FAILURE;
    }
    result = co_resize_open(config, image, &err);
    uint64_t size_bytes = image->size_bytes;
    int closed = image->ops->co_close(image, &close_err);
    if (result < 0 || closed < 0) {
        log_error("%s", result < 0 ? err.text : close_err.text);
        return EXIT_FAILURE;
    }
    log_info("%s has %" PRIu64 " bytes now", config->image, size_bytes);
    return EXIT_SUCCESS;
}

int cmd_resize(const struct config *config)
{
    return runtime_run(co_resize, (void *)(uintptr_t)config);
}
