/* SPDX-License-Identifier: BSD-2-Clause */
/*
 * Backing names of the form "json:{...}", as block jobs, libvirt and people leave them: the options
 * of QEMU's block drivers, nested or with dotted keys, in strings with double or single quotes.
 * Read where they describe a local file and nothing else; whatever would show other bytes than the
 * file's is refused by its name. QEMU: docs/interop/live-block-operations.rst, qapi/block-core.json
 * (BlockdevOptions).
 */
#ifndef QCOWD_QCOW2_JSON_NAME_H
#define QCOWD_QCOW2_JSON_NAME_H

#include <stdbool.h>

#include "base/errtext.h"
#include "qcow2/chain.h"

struct json_name {
    char *path;                 /* as it stands there; owned */
    enum backing_format format; /* what the file is; BACKING_FORMAT_UNNAMED: not said */
    enum backing_format said;   /* the outermost driver: what a header must agree with */
    /*
     * "backing" was given: what is below this image, whatever its header says. NULL then: nothing.
     * Block jobs write this whenever a header's name is not, letter by letter, the path that was
     * opened.
     */
    bool below_given;
    struct json_name *below; /* owned */
};

/*
 * Reads what stands behind "json:". -EINVAL (broken, too long, too deep, not a local file, an
 * option that is not allowed), -ENOMEM; err says what and where, for a caller who puts the name in
 * front. On success *out is the caller's, to be ended with json_name_free(). Does not suspend.
 */
int json_name_read(const char *text, struct json_name **out, struct errtext *err);

/* NULL is fine. */
void json_name_free(struct json_name *json);

#endif
