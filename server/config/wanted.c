/* SPDX-License-Identifier: BSD-2-Clause */
#include "config/wanted.h"

#include <errno.h>

#include "config/config_file.h"

static int copy_all(struct export_configs *to, const struct export_configs *from,
                    struct errtext *err)
{
    int result = 0;
    for (unsigned i = 0; i < from->count && result == 0; i++) {
        result = export_configs_add_copy(to, &from->list[i], err);
    }
    return result;
}

static int add_file(const struct serve_config *serve, struct export_configs *wanted,
                    struct errtext *err)
{
    struct export_configs file;
    int result = config_file_read(serve->config_file, &file, err);
    if (result < 0) {
        return result;
    }
    result = copy_all(wanted, &file, err);
    export_configs_free(&file);
    if (result == 0) {
        struct export_surroundings surroundings = serve_surroundings(serve);
        result = export_configs_check(wanted, &surroundings, err);
    }
    if (result < 0) {
        err_prefix(err, "%s", serve->config_file);
    }
    return result;
}

int wanted_read(const struct serve_config *serve, struct export_configs *wanted,
                struct errtext *err)
{
    *wanted = (struct export_configs){0};
    int result = copy_all(wanted, &serve->exported.exports, err);
    if (result == 0 && serve->config_file) {
        result = add_file(serve, wanted, err);
    }
    if (result < 0) {
        export_configs_free(wanted);
    }
    return result;
}

struct reading {
    const struct serve_config *serve;
    struct export_configs *wanted;
    struct errtext *err;
    int result;
};

static void read_on_worker(void *arg)
{
    struct reading *reading = arg;
    reading->result = wanted_read(reading->serve, reading->wanted, reading->err);
}

int co_wanted_read(const struct serve_config *serve, struct world *world,
                   struct export_configs *wanted, struct errtext *err)
{
    struct reading reading = {serve, wanted, err, 0};
    world->ops->co_work(world, read_on_worker, &reading);
    return reading.result;
}
