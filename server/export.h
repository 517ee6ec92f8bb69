/* SPDX-License-Identifier: BSD-2-Clause */
/*
 * The export table: the images that are open, under the names that clients ask for.
 */
#ifndef QCOWD_EXPORT_H
#define QCOWD_EXPORT_H

#include "base/errtext.h"
#include "options.h"
#include "proto/nbd.h"

struct export_table {
    struct nbd_export *exports;
    unsigned count;
    struct rate_limit rate;
    struct image *logged; /* the one whose writes are logged, NULL if there is none */
};

/* Opens the image that the command line names. On failure nothing is open. May suspend. */
int co_export_table_open(struct export_table *table, struct world *world, const char *image,
                         const struct serve_config *config, struct errtext *err);

/*
 * Closes every image, whatever happens. 0 only if all that was acknowledged is durable (O9); each
 * failure is logged. No request may be running. May suspend.
 */
int co_export_table_close(struct export_table *table);

#endif
