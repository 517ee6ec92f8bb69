/* SPDX-License-Identifier: BSD-2-Clause */
/*
 * Who the server is: the user that --user names, and no capabilities.
 */
#ifndef QCOWD_SANDBOX_PRIVILEGES_H
#define QCOWD_SANDBOX_PRIVILEGES_H

#include <stdbool.h>
#include <sys/types.h>

#include "base/errtext.h"

struct identity {
    uid_t uid;
    gid_t gid;
    char *name; /* the user's, for the groups that it is in; NULL: in no other */
};

/*
 * Looks up "USER[:GROUP]", names or numbers. -EINVAL, -ENOMEM with err; also when this process may
 * not become another user. Wants more stack than a coroutine has.
 */
int identity_find(struct identity *identity, const char *text, struct errtext *err);
void identity_free(struct identity *identity);

/*
 * All threads of the process become that user for good: no way back is left, which is tried. 0;
 * -errno with err. Wants more stack than a coroutine has.
 */
int identity_assume(const struct identity *identity, struct errtext *err);

/*
 * Gives up the capabilities of the calling thread and of those that it starts later; with
 * `keep_file_access`, root can still get at the files of others. 0 or -errno.
 */
int capabilities_drop(bool keep_file_access);
/* The same for those that a program could get by being executed. Does what it can. */
void capabilities_drop_bounding(void);

#endif
