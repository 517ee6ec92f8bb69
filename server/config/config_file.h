/* SPDX-License-Identifier: BSD-2-Clause */
/*
 * The configuration file: one section for each export.
 *
 *     export "vm1" {
 *         image = "/disks/vm1.qcow2"
 *         read-only = true
 *     }
 */
#ifndef QCOWD_CONFIG_CONFIG_FILE_H
#define QCOWD_CONFIG_CONFIG_FILE_H

#include "base/errtext.h"
#include "config/export_config.h"

/*
 * Reads all of it; image paths are relative to the file's directory. 0, or -errno with *configs
 * empty; err names the file, the line, the field, the value and what is allowed. Blocks: on the
 * file, and on looking up users and groups. Needs a full-size stack. Does not check that exports
 * fit together, but for double names.
 */
int config_file_read(const char *path, struct export_configs *configs, struct errtext *err);

#endif
