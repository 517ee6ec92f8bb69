/* SPDX-License-Identifier: BSD-2-Clause */
/*
 * The seccomp filter: a list of the system calls that a server needs once it has started. Those
 * that only an intruder would make (starting programs, debugging, mounting, new rings) end the
 * process, which the kernel's audit log tells; all others that are not on the list fail with EPERM,
 * as a library may try one and do without.
 */
#ifndef QCOWD_SANDBOX_SECCOMP_FILTER_H
#define QCOWD_SANDBOX_SECCOMP_FILTER_H

#include <stdbool.h>
#include <sys/types.h>

#include "base/errtext.h"

struct filter_needs {
    bool open;     /* open files; else open() fails with EACCES */
    bool remove;   /* remove files and directories */
    pid_t command; /* the process that may be signalled; 0: none */
    bool report;   /* for tests: say on stderr which call was refused */
};

struct sock_filter;

struct filter {
    struct sock_filter *instructions;
    unsigned short count;
};

/* 0; -errno: no filter can be had, and err says why. */
int filter_available(struct errtext *err);

/* Wants more stack than a coroutine has. 0; -errno with err. */
int filter_build(struct filter *filter, const struct filter_needs *needs, struct errtext *err);
void filter_free(struct filter *filter);

/* Filters the calling thread and those that it starts later. PR_SET_NO_NEW_PRIVS is set. */
int filter_enter(const struct filter *filter);

#endif
