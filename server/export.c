/* SPDX-License-Identifier: BSD-2-Clause */
#include "export.h"

#include <errno.h>
#include <stdlib.h>

#include "base/log.h"
#include "filter/logged.h"

static int co_open_image(struct world *world, const char *path, const struct serve_config *config,
                         struct image **out, struct errtext *err)
{
    struct qcow2_open_options options = {
        .read_only = config->read_only,
        .direct = config->direct,
        .trim = config->trim,
    };
    struct logged_options logged = {.trim_ignored = config->trim == TRIM_IGNORE};
    struct errtext close_err = {.text = ""};
    struct image *image;
    int result = co_qcow2_open(world, path, &options, &image, err);
    if (result < 0) {
        return result;
    }
    if (!config->log_writes) {
        *out = image;
        return 0;
    }
    result = co_logged_open(world, image, config->log_writes, &logged, out, err);
    if (result < 0) {
        int closed = image->ops->co_close(image, &close_err);
        if (closed < 0) {
            log_error("%s", close_err.text);
        }
    }
    return result;
}

int co_export_table_open(struct export_table *table, struct world *world, const char *image,
                         const struct serve_config *config, struct errtext *err)
{
    table->count = 0;
    table->logged = NULL;
    table->exports = calloc(1, sizeof(*table->exports));
    if (!table->exports) {
        return err_set(err, ENOMEM, "out of memory");
    }
    struct nbd_export *only = &table->exports[0];
    int result = co_open_image(world, image, config, &only->image, err);
    if (result < 0) {
        free(table->exports);
        table->exports = NULL;
        return result;
    }
    only->name = config->export_name;
    only->read_only = only->image->read_only;
    /* Safe: a flush on one connection covers what every other was told is written (O4). */
    only->multi_conn = true;
    rate_limit_init(&table->rate, config->limits.bytes_per_second,
                    config->limits.operations_per_second);
    only->rate = &table->rate;
    table->count = 1;
    table->logged = config->log_writes ? only->image : NULL;
    return 0;
}

int co_export_table_close(struct export_table *table)
{
    int first_error = 0;
    table->logged = NULL; /* no more marks */
    for (unsigned i = 0; i < table->count; i++) {
        struct image *image = table->exports[i].image;
        struct errtext err = {.text = ""};
        int result = image->ops->co_close(image, &err);
        if (result < 0) {
            log_error("%s", err.text);
            first_error = first_error ? first_error : result;
        }
    }
    free(table->exports);
    table->exports = NULL;
    table->count = 0;
    return first_error;
}
