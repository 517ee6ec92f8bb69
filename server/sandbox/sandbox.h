/* SPDX-License-Identifier: BSD-2-Clause */
/*
 * The sandbox: what a server that has started, and may have been taken over by a client or an
 * image, can still do. No file can be opened but in the directories that are named here, nothing
 * executed, no connection made; no capabilities are left. The kernel keeps that by Landlock and
 * seccomp; the operations of io_uring are restricted with the ring (sched/ring_restrict.h).
 *
 * Confinement belongs to a thread and is inherited by those that it starts: sandbox_seal() prepares
 * it once, then each thread that is there enters.
 */
#ifndef QCOWD_SANDBOX_SANDBOX_H
#define QCOWD_SANDBOX_SANDBOX_H

#include <stdbool.h>
#include <sys/types.h>

#include "base/errtext.h"
#include "sandbox/landlock.h"

#define SANDBOX_ALLOWED_MAX 64U

enum sandbox_mode {
    SANDBOX_ON,      /* as far as the kernel has it */
    SANDBOX_OFF,     /* not at all */
    SANDBOX_REQUIRE, /* all of it, or no service */
};

struct sandbox_config {
    enum sandbox_mode mode;
    const char *user; /* "USER[:GROUP]", or NULL: stay who we are */
    const char *allowed[SANDBOX_ALLOWED_MAX];
    unsigned allowed_count;
};

/* For tests: a kernel that has less. Zeroes: the kernel as it is. */
struct sandbox_simulation {
    int landlock_abi; /* at most this one; -1: no Landlock */
    bool no_seccomp;
    bool report_refusals; /* system calls that the filter refuses are named on stderr */
};

struct sandbox;

/*
 * With `signals`, the sandbox will have to let sandbox_signals_to() a process. -ENOSYS with err
 * where the kernel has not all of what is required.
 */
int sandbox_create(struct sandbox **out, enum sandbox_mode mode, bool signals,
                   const struct sandbox_simulation *simulation, struct errtext *err);
void sandbox_free(struct sandbox *sandbox); /* NULL is fine */

/* Logs what the kernel has not, and what that means. */
void sandbox_tell_missing(const struct sandbox *sandbox);

/*
 * Access (SANDBOX_READ | ...) to a file, or to all beneath a directory. It follows the file or the
 * directory, not the name: what is put in its place later is another. -errno with err.
 */
int sandbox_allow(struct sandbox *sandbox, const char *path, unsigned access, struct errtext *err);
/* The directory that the file is in, for files that are replaced by renaming. Of a symbolic link
 * the directory that it leads to, too. */
int sandbox_allow_around(struct sandbox *sandbox, const char *file, unsigned access,
                         struct errtext *err);
/* Those directories, too, that symbolic links in `directory` lead to. */
int sandbox_allow_links(struct sandbox *sandbox, const char *directory, unsigned access,
                        struct errtext *err);
void sandbox_signals_to(struct sandbox *sandbox, pid_t process);

/* Nothing more is allowed from now on. Wants more stack than a coroutine has. */
int sandbox_seal(struct sandbox *sandbox, struct errtext *err);

/*
 * Confines the calling thread, for good, and those that it starts later. A thread that was started
 * by a confined one has entered already and must not call this. 0; -errno with err, and then the
 * thread may be confined in part.
 */
int sandbox_enter_thread(const struct sandbox *sandbox, struct errtext *err);

#endif
