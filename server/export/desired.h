/* SPDX-License-Identifier: BSD-2-Clause */
/*
 * Which exports are wanted, as it changes while the server runs: the command line and the
 * configuration file say so at the start and at SIGHUP, the control socket adds and removes single
 * ones. One change at a time; each is applied to the export table as a whole.
 *
 * What the control socket added stays when the file is read again, unless the file has an export of
 * that name; what it removed and the file still has is there again then.
 */
#ifndef QCOWD_EXPORT_DESIRED_H
#define QCOWD_EXPORT_DESIRED_H

#include "export/export.h"
#include "sched/sync.h"

struct desired {
    struct export_table *table;
    const struct serve_config *serve;
    struct export_configs in_force;
    struct co_mutex changing;
};

/* Takes `first` over, which is not applied yet. */
void desired_init(struct desired *desired, struct export_table *table,
                  const struct serve_config *serve, struct export_configs *first);
void desired_free(struct desired *desired);

/*
 * All but the last return 0; or -errno with err, and all is as it was. They may suspend, until what
 * had to be closed is closed, and while another change is under way.
 */
int co_desired_apply_first(struct desired *desired, struct errtext *err);
/* SIGHUP: what the command line and the file say now, which is taken over, also on failure. */
int co_desired_replace(struct desired *desired, struct export_configs *wanted,
                       struct export_changes *changes, struct errtext *err);
/* Takes over what is in *config, on success. -EEXIST: there is one of that name. */
int co_desired_add(struct desired *desired, struct export_config *config, struct errtext *err);
/*
 * -ENOENT: there is none of that name. -EBUSY: clients use it, and `hard` is not set; with it they
 * finish what is in flight and leave.
 */
int co_desired_remove(struct desired *desired, const char *name, bool hard, struct errtext *err);

/* NULL: there is none of that name, or its image is just being opened. */
struct served_export *desired_find(const struct desired *desired, const char *name);

#endif
