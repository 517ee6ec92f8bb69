/* SPDX-License-Identifier: BSD-2-Clause */
/*
 * The export table: the images that are open, and the names under which clients find them. What is
 * wanted is given as a whole, at the start and whenever the configuration has changed; the table
 * finds out what that means for what there is.
 *
 *     a file         is opened once, however many exports show it: writable when one of them is;
 * once more for each of its snapshots an export      whose settings are the same goes on, with its
 * clients whose image stays as it is takes new settings over; clients whom its new rules do not
 * admit are told to leave whose image must be opened in another way, or that is gone, is taken off
 * the list; its clients finish what is in flight and leave a new file     is opened before anything
 * else happens: when one cannot be, nothing has changed a file to be opened in another way is
 * closed first, as it locks itself out
 *
 * All of it happens on the main loop; each image lives on a loop of its own choice (loops.h).
 */
#ifndef QCOWD_EXPORT_EXPORT_H
#define QCOWD_EXPORT_EXPORT_H

#include "base/errtext.h"
#include "config/export_config.h"
#include "config/options.h"
#include "proto/nbd.h"
#include "service/loops.h"

/* A file that is open, for all exports that show it. */
struct open_image {
    struct list link;
    char *path;
    dev_t device;
    ino_t inode;
    bool writable;
    bool direct;
    enum trim_policy trim;
    enum backing_format backing_format;
    struct key_files key_files;
    char *snapshot; /* the one that is shown; NULL: none */
    struct service_loop *loop;
    struct image *image; /* NULL: not open */
    unsigned exports;    /* that show it */
};

/* One export. The table holds it as long as it is in it, clients as long as they use it. */
struct served_export {
    struct list link;
    struct nbd_export nbd;
    struct export_config config;
    struct rate_limit rate;
    struct nbd_counters counters;
    struct open_image *shows; /* NULL: nothing yet, or nothing any more */
};

struct export_table {
    struct loops *loops;
    const struct serve_config *serve;
    struct list exports; /* in the order in which they are listed */
    struct list images;
    struct image *logged; /* the one whose writes are logged, NULL if there is none */
    bool stopping;        /* nothing is opened any more */
    bool close_failed;
};

/* What a change has meant. */
struct export_changes {
    unsigned added;
    unsigned changed;
    unsigned removed;
    unsigned lost;      /* of those wanted: their image could not be opened again */
    unsigned dismissed; /* clients whom the new rules of an export that goes on do not admit */
};

void export_table_init(struct export_table *table, struct loops *loops,
                       const struct serve_config *serve);

/*
 * Makes the table what is wanted. 0; or -errno, with err, and nothing has changed. Suspends until
 * all that had to be closed is: as long as the shutdown timeout, at most, for the clients, and what
 * closing takes. One call at a time.
 */
int co_export_table_apply(struct export_table *table, const struct export_configs *wanted,
                          struct export_changes *changes, struct errtext *err);

/* A co_export_table_apply() that is under way shall open nothing more. */
void export_table_stop(struct export_table *table);

/*
 * Closes every image, whatever happens. 0 only if all that was acknowledged is durable (O9), also
 * in images that were closed before; each failure is logged. No client may be there. May suspend.
 */
int co_export_table_close(struct export_table *table);

#endif
