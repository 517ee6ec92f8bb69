/* SPDX-License-Identifier: BSD-2-Clause */
/* In place of the configuration file where libConfuse was left out of the build. */
#include "config/config_file.h"

#include <errno.h>

int config_file_read(const char *path, struct export_configs *configs, struct errtext *err)
{
    (void)path;
    *configs = (struct export_configs){0};
    return err_set(err, ENOTSUP,
                   "this qcowd was built without --config: it needs libConfuse at build time");
}
