/* SPDX-License-Identifier: BSD-2-Clause */
/*
 * Names of backing files, resolved as QEMU resolves them, and cut down to what O10 allows: a plain
 * path.
 */
#ifndef QCOWD_QCOW2_CHAIN_H
#define QCOWD_QCOW2_CHAIN_H

#include "base/errtext.h"

/*
 * Whether a backing file may have this name: 0, or -EINVAL with err. A ':' before the first '/'
 * makes it a protocol ("nbd://host", "json:{...}"), which is refused; "file:" alone is let through.
 * A plain file whose name has a ':' is written ./name or with its full path.
 */
int backing_name_check(const char *name, struct errtext *err);

/*
 * The path of a backing file: relative names are relative to the directory of the image that names
 * them, not to the current one; after "file:" a name is taken as it stands (QEMU's rule: relative
 * to the current directory). *path is malloc'ed. -EINVAL (see above), -ENOMEM; err names the image.
 */
int backing_path_resolve(const char *image_path, const char *name, char **path,
                         struct errtext *err);

#endif
