/* SPDX-License-Identifier: BSD-2-Clause */
/*
 * `qcowd bitmap`. Of the image nothing is opened but the file that has the bitmaps: what lies below
 * it, or where its data is, makes no difference to them.
 */
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/log.h"
#include "cmd/commands.h"
#include "qcow2/bitmaps.h"
#include "qcow2/info.h"
#include "qcow2/qcow2.h"
#include "service/runtime.h"

static enum bitmap_verb verb_of(enum bitmap_command command)
{
    switch (command) {
    case BITMAP_COMMAND_REMOVE:
        return BITMAP_REMOVE;
    case BITMAP_COMMAND_CLEAR:
        return BITMAP_CLEAR;
    case BITMAP_COMMAND_ENABLE:
        return BITMAP_ENABLE;
    case BITMAP_COMMAND_DISABLE:
        return BITMAP_DISABLE;
    case BITMAP_COMMAND_MERGE:
        return BITMAP_MERGE;
    case BITMAP_COMMAND_ADD:
    case BITMAP_COMMAND_LIST:
        break;
    }
    return BITMAP_ADD;
}

static int co_change(const struct config *config, struct image *image, struct image *source,
                     struct errtext *err)
{
    const struct bitmap_config *bitmap = &config->bitmap;
    bool merges = bitmap->command == BITMAP_COMMAND_MERGE;
    size_t count = bitmap->name_count - (merges ? 1 : 0);
    struct bitmap_change *changes = calloc(count, sizeof(*changes));
    if (!changes) {
        return err_set(err, ENOMEM, "out of memory");
    }
    for (size_t i = 0; i < count; i++) {
        changes[i] = (struct bitmap_change){
            .verb = verb_of(bitmap->command),
            .name = merges ? bitmap->names[0] : bitmap->names[i],
            .granularity_bits = bitmap->granularity_bits,
            .disabled = bitmap->disabled,
            .source = merges ? bitmap->names[i + 1] : NULL,
            .from = source,
        };
    }
    int result = co_qcow2_bitmap_change(image, changes, count, err);
    free(changes);
    return result;
}

static int co_open(struct world *world, const char *path, bool read_only, struct image **image,
                   struct errtext *err)
{
    const struct qcow2_open_options options = {.read_only = read_only, .bitmaps_only = true};
    return co_qcow2_open(world, path, &options, image, err);
}

static int co_with_images(const struct config *config, struct image *image, struct image *source,
                          struct errtext *err)
{
    return config->bitmap.command == BITMAP_COMMAND_LIST
               ? qcow2_bitmaps_put(image, config->json ? INFO_JSON : INFO_TEXT, stdout, err)
               : co_change(config, image, source, err);
}

static int co_bitmap(struct world *world, void *arg)
{
    const struct config *config = arg;
    struct errtext err;
    struct errtext close_err;
    struct image *image = NULL;
    struct image *source = NULL;
    bool lists = config->bitmap.command == BITMAP_COMMAND_LIST;
    int result = 0;
    if (config->bitmap.source_image) {
        result = co_open(world, config->bitmap.source_image, true, &source, &err);
    }
    if (result == 0) {
        result = co_open(world, config->image, lists, &image, &err);
    }
    if (result == 0) {
        result = co_with_images(config, image, source, &err);
    }
    if (image) {
        int closed = image->ops->co_close(image, &close_err);
        if (result == 0 && closed < 0) {
            result = closed;
            err = close_err;
        }
    }
    if (source) {
        source->ops->co_close(source, &close_err); /* read-only: nothing to lose */
    }
    if (result < 0) {
        fflush(stdout);
        log_error("%s", err.text);
        return EXIT_FAILURE;
    }
    return EXIT_SUCCESS;
}

int cmd_bitmap(const struct config *config)
{
    return runtime_run(co_bitmap, (void *)(uintptr_t)config);
}
