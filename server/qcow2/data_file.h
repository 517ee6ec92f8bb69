/* SPDX-License-Identifier: BSD-2-Clause */
/*
 * External data files: standard clusters of the guest lie in a file of their own, each at its guest
 * offset (incompatible feature bit 2). So nothing is allocated or counted for them, no place is
 * ever another cluster's, and what is left of the laws is this:
 *
 *   O2  the data file's fsync comes before the second wave of a commit
 *   O3  a place that is given back is punched under the hold that changes its entry: a write to the
 *       same cluster comes to lie there again, and waits
 *   O6  padding fills subclusters whole, whatever old bytes the file may hold there
 *
 * With autoclear feature bit 1 the data file is raw: it is the guest's disk. It is read without a
 * look at the entries, zeroes are written through, and entries change only from "not there" to "in
 * the data file", so that programs which follow them see the same.
 */
#ifndef QCOWD_QCOW2_DATA_FILE_H
#define QCOWD_QCOW2_DATA_FILE_H

#include "base/errtext.h"

struct qcow2;

/*
 * Opens and locks the data files of a whole chain, that of `top` for writing if `top` is; they are
 * the layers' then. A data file is a plain path to a regular file or block device, relative to the
 * image that names it; as long as the disk or longer; and no other file of the chain. -EINVAL, and
 * what opening a file can return; err says which data file of which image. May suspend.
 */
int co_open_data_files(struct qcow2 *top, struct errtext *err);

#endif
