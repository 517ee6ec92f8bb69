/* SPDX-License-Identifier: BSD-2-Clause */
/*
 * `qcowd create`. A backing file is opened, whole chain and all, before the image that names it is
 * made: for its size, and because an overlay over nothing helps nobody.
 */
#include <errno.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/log.h"
#include "cmd/commands.h"
#include "qcow2/chain.h"
#include "qcow2/qcow2.h"
#include "service/runtime.h"

/* What is below it, and has no format in its header, is taken to be of the same format. */
static int co_open_backing(struct world *world, const struct backing_file *file,
                           const struct key_ring *ring, struct image **backing, struct errtext *err)
{
    if (file->format == BACKING_FORMAT_RAW) {
        return co_raw_open(world, file->path, true, false, backing, err);
    }
    struct qcow2_open_options options = {
        .read_only = true,
        .backing_format = file->format,
        .keys = ring->keys,
        .key_count = ring->count,
    };
    return co_qcow2_open(world, file->path, &options, backing, err);
}

static int co_measure_backing(struct world *world, const char *image_path,
                              const struct create_options *options, const struct key_ring *ring,
                              uint64_t *size_bytes, struct errtext *err)
{
    struct image *backing;
    struct backing_file file;
    int result = backing_resolve(image_path, options->backing_name, options->backing_format,
                                 BACKING_FORMAT_UNNAMED, &file, err);
    if (result < 0) {
        backing_file_free(&file);
        return result;
    }
    result = file.below_given ? err_set(err, ENOTSUP,
                                        "%s: its name says what is below it ('backing'): leave "
                                        "that to the header of that file",
                                        file.path)
                              : co_open_backing(world, &file, ring, &backing, err);
    backing_file_free(&file);
    if (result < 0) {
        err_prefix(err, "backing file");
        return result;
    }
    *size_bytes = backing->size_bytes;
    return backing->ops->co_close(backing, err);
}

/* The keys of the encrypted images below the new one. */
static struct key_ring keys_below(const struct key_ring *ring, bool encrypted)
{
    struct key_ring below = *ring;
    if (encrypted && ring->count > 1) {
        below.count--;
        memmove(&below.keys[0], &below.keys[1], below.count * sizeof(below.keys[0]));
    }
    return below;
}

static int co_create(struct world *world, void *arg)
{
    const struct config *config = arg;
    struct create_options options = config->create.options;
    struct errtext err;
    struct key_ring ring = {.count = 0};
    uint64_t backing_bytes = 0;
    int result = create_options_check(&options, &err);
    if (result == 0) {
        result = key_ring_read(&config->key_files, &ring, &err);
    }
    options.key = ring.count > 0 ? &ring.keys[0] : NULL;
    if (result == 0 && options.backing_name) {
        const struct key_ring below = keys_below(&ring, options.encryption.luks);
        result = co_measure_backing(world, config->image, &options, &below, &backing_bytes, &err);
    }
    if (result == 0) {
        if (!config->create.size_given) {
            options.size_bytes = backing_bytes;
        }
        result = co_qcow2_create(world, config->image, &options, &err);
    }
    key_ring_wipe(&ring);
    if (result < 0) {
        log_error("%s", err.text);
        return EXIT_FAILURE;
    }
    log_info("made %s, %" PRIu64 " bytes", config->image, options.size_bytes);
    return EXIT_SUCCESS;
}

int cmd_create(const struct config *config)
{
    return runtime_run(co_create, (void *)(uintptr_t)config);
}
