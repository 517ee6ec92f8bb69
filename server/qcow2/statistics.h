/* SPDX-License-Identifier: BSD-2-Clause */
/* The engine's counts, as the seam wants them. */
#ifndef QCOWD_QCOW2_STATISTICS_H
#define QCOWD_QCOW2_STATISTICS_H

struct image;
struct image_statistics;

/* struct image_ops: co_statistics. */
void co_qcow2_statistics(struct image *image, struct image_statistics *out);

#endif
