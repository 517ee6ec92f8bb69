/* SPDX-License-Identifier: BSD-2-Clause */
/*
 * What raw files have in common, be they an image (raw.c) or the raw data file of one.
 */
#ifndef QCOWD_QCOW2_RAW_H
#define QCOWD_QCOW2_RAW_H

#include <stdint.h>

#include "image.h"
#include "io/world.h"

/*
 * Data and holes of [offset, offset + len) of a disk, as co_extents() of image.h describes them,
 * all of depth 1. What lies past the end of the file is a hole. 0 or the disk's error. May suspend.
 */
int co_raw_file_extents(struct disk *disk, uint64_t offset, uint64_t len, struct extent_list *list);

/* The disk under an image that co_raw_open() has made. */
struct disk *raw_image_disk(struct image *image);

#endif
