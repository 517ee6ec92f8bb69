/* SPDX-License-Identifier: BSD-2-Clause */
/*
 * The external data file of an image that is being made.
 */
#ifndef QCOWD_QCOW2_CREATE_DATA_H
#define QCOWD_QCOW2_CREATE_DATA_H

#include <stdbool.h>

#include "base/errtext.h"
#include "io/world.h"
#include "qcow2/create.h"

/*
 * Makes the data file at `path` for `image`, which is open, or finds one that may be taken: see
 * co_qcow2_create(). *made: it is new, also on failure, and the caller's to remove. -EEXIST,
 * -EINVAL (too short, or the image itself), -EAGAIN (locked), and what making a file can return;
 * err names the file. May suspend.
 */
int co_prepare_data_file(struct world *world, const char *path, const struct disk *image,
                         const struct create_options *options, bool *made, struct errtext *err);

#endif
