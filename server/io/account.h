/* SPDX-License-Identifier: BSD-2-Clause */
/* Users and groups as people name them. */
#ifndef QCOWD_IO_ACCOUNT_H
#define QCOWD_IO_ACCOUNT_H

#include <sys/types.h>

#include "base/errtext.h"

struct account {
    uid_t uid; /* (uid_t)-1: none was named */
    gid_t gid; /* (gid_t)-1: none was named */
};

/*
 * "USER", "USER:GROUP" or ":GROUP", each a name or a number. 0, or -EINVAL with err, which begins
 * with `option`. The system's databases are asked: not on a coroutine's stack.
 */
int account_resolve(struct account *account, const char *option, const char *text,
                    struct errtext *err);

/* Loads what looks names up, for a process that will not be able to load code later. */
void account_prepare(void);

#endif
