/* SPDX-License-Identifier: BSD-2-Clause */
/*
 * What an image is, for people and for programs.
 */
#ifndef QCOWD_QCOW2_INFO_H
#define QCOWD_QCOW2_INFO_H

#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>

#include "base/errtext.h"
#include "image.h"
#include "io/world.h"
#include "qcow2/header.h"

enum info_form {
    INFO_TEXT,
    INFO_JSON, /* one object, with the names that `qemu-img info --output=json` gives its members */
};

/* The space that the file takes is not known. */
#define INFO_ALLOCATED_UNKNOWN UINT64_MAX

/*
 * Describes the image to `out` (which may be memory: open_memstream). allocated_bytes is what the
 * file takes on its file system (st_blocks * 512). Names are a stranger's: text shows what is not
 * printable as \xNN, JSON is valid UTF-8 whatever they hold. -EIO and others when the bitmap
 * directory cannot be read or `out` not be written; something may have been printed then. May
 * suspend.
 */
int co_qcow2_info(struct disk *disk, const struct header *header, uint64_t allocated_bytes,
                  enum info_form form, FILE *out, struct errtext *err);

/*
 * Lists the bitmaps of an open image, with what is dirty in them: a line each, or as JSON an array
 * of objects. -EIO when `out` cannot be written, -ENOMEM. Does not suspend.
 */
int qcow2_bitmaps_put(struct image *image, enum info_form form, FILE *out, struct errtext *err);

#endif
