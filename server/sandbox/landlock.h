/* SPDX-License-Identifier: BSD-2-Clause */
/*
 * Landlock: which files may still be opened and which removed, and no TCP ports. The raw system
 * calls, with what newer kernels know and the installed headers may not.
 */
#ifndef QCOWD_SANDBOX_LANDLOCK_H
#define QCOWD_SANDBOX_LANDLOCK_H

#include <stdbool.h>

enum {
    SANDBOX_READ = 1,               /* read files, list directories */
    SANDBOX_WRITE = 2,              /* write files that exist */
    SANDBOX_CREATE = 4,             /* create files */
    SANDBOX_REMOVE_FILES = 8,       /* and sockets */
    SANDBOX_REMOVE_DIRECTORIES = 16 /* empty ones */
};

/* The kernel's Landlock, 1 or more; -errno when there is none, or none for us. */
int landlock_abi(void);

/*
 * A new ruleset as a descriptor: nothing may be opened that landlock_allow() does not name. With
 * `signals`, other processes may be signalled. -errno.
 */
int landlock_create(int abi, bool signals);

/* Allows `access` beneath the directory that path_fd is, or to the file that it is. 0 or -errno. */
int landlock_allow(int ruleset_fd, int abi, int path_fd, bool is_directory, unsigned access);

/* Confines the calling thread and those that it starts later. PR_SET_NO_NEW_PRIVS is set. */
int landlock_enter(int ruleset_fd);

#endif
