/* SPDX-License-Identifier: BSD-2-Clause */
/*
 * Landlock and seccomp overlap on purpose: where the kernel has only one of them, that one still
 * refuses what it can see. Without Landlock, opening can be refused only altogether, and is, unless
 * something must still be opened.
 */
#include "sandbox/sandbox.h"

#include <assert.h>
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

#include "base/check.h"
#include "base/log.h"
#include "sandbox/privileges.h"
#include "sandbox/seccomp_filter.h"

/* Links of one directory that are followed. */
#define LINKS_MAX 64U
/* Landlock and seccomp. */
#define MISSING_MAX 2U

struct sandbox {
    bool off;
    bool sealed;
    bool report_refusals;
    unsigned access; /* all that was allowed, taken together */
    bool of_others;  /* and some of it only root's capabilities may reach */
    pid_t command;
    int landlock_abi; /* 0: there is none */
    int ruleset_fd;
    bool has_filter;
    struct filter filter;
    struct errtext missing[MISSING_MAX];
    unsigned missing_count;
};

/* What is missing: something to tell, or the end where all is required. */
static int miss(struct sandbox *sandbox, enum sandbox_mode mode, const char *what,
                const char *effect, const char *why, struct errtext *err)
{
    if (mode == SANDBOX_REQUIRE) {
        return err_set(err, ENOSYS, "--sandbox require: there is no %s here (%s)", what, why);
    }
    assert(sandbox->missing_count < MISSING_MAX);
    err_set(&sandbox->missing[sandbox->missing_count++], ENOSYS,
            "sandbox: there is no %s here (%s): %s", what, why, effect);
    return 0;
}

void sandbox_tell_missing(const struct sandbox *sandbox)
{
    for (unsigned i = 0; i < sandbox->missing_count; i++) {
        log_info("%s", sandbox->missing[i].text);
    }
}

static int create_ruleset(struct sandbox *sandbox, bool signals, int most_abi)
{
    int abi = most_abi < 0 ? -EOPNOTSUPP : landlock_abi();
    if (abi < 0) {
        return abi;
    }
    sandbox->landlock_abi = most_abi > 0 ? MIN_OF(abi, most_abi) : abi;
    sandbox->ruleset_fd = landlock_create(sandbox->landlock_abi, signals);
    if (sandbox->ruleset_fd < 0) {
        int error = sandbox->ruleset_fd;
        sandbox->ruleset_fd = -1;
        sandbox->landlock_abi = 0;
        return error;
    }
    return 0;
}

/* What instruments in the program want to read or leave behind at its end. */
static int allow_instruments(struct sandbox *sandbox, struct errtext *err)
{
    int result = 0;
#ifdef QCOWD_INSTRUMENTED
    static const char *const read[] = {"/proc", "/usr"};
    for (unsigned i = 0; i < ARRAY_LEN(read) && result == 0; i++) {
        result = sandbox_allow(sandbox, read[i], SANDBOX_READ, err);
    }
    if (result == 0) {
        result = sandbox_allow(sandbox, QCOWD_INSTRUMENTED,
                               SANDBOX_READ | SANDBOX_WRITE | SANDBOX_CREATE, err);
    }
    /* They are no reason to keep capabilities. */
    sandbox->access = 0;
    sandbox->of_others = false;
#else
    (void)sandbox;
    (void)err;
#endif
    return result;
}

static int find_means(struct sandbox *sandbox, enum sandbox_mode mode, bool signals,
                      const struct sandbox_simulation *simulation, struct errtext *err)
{
    struct errtext why;
    int result = create_ruleset(sandbox, signals, simulation->landlock_abi);
    if (result < 0) {
        result = miss(sandbox, mode, "Landlock", "files are not kept shut one by one",
                      result == -ENOSYS || result == -EOPNOTSUPP ? "the kernel has none"
                                                                 : strerror(-result),
                      err);
    }
    if (result < 0) {
        return result;
    }
    if (simulation->no_seccomp) {
        return miss(sandbox, mode, "seccomp filter", "all system calls stay open",
                    "the kernel has none", err);
    }
    sandbox->has_filter = filter_available(&why) == 0;
    return sandbox->has_filter
               ? 0
               : miss(sandbox, mode, "seccomp filter", "all system calls stay open", why.text, err);
}

int sandbox_create(struct sandbox **out, enum sandbox_mode mode, bool signals,
                   const struct sandbox_simulation *simulation, struct errtext *err)
{
    struct sandbox *sandbox = calloc(1, sizeof(*sandbox));
    if (!sandbox) {
        return err_set(err, ENOMEM, "out of memory");
    }
    sandbox->off = mode == SANDBOX_OFF;
    sandbox->ruleset_fd = -1;
    sandbox->report_refusals = simulation->report_refusals;
    int result = 0;
    if (!sandbox->off) {
        result = find_means(sandbox, mode, signals, simulation, err);
    }
    if (result == 0) {
        result = allow_instruments(sandbox, err);
    }
    if (result < 0) {
        sandbox_free(sandbox);
        return result;
    }
    *out = sandbox;
    return 0;
}

void sandbox_free(struct sandbox *sandbox)
{
    if (!sandbox) {
        return;
    }
    if (sandbox->ruleset_fd >= 0) {
        close(sandbox->ruleset_fd);
    }
    filter_free(&sandbox->filter);
    free(sandbox);
}

static int allow_descriptor(struct sandbox *sandbox, int fd, unsigned access)
{
    struct stat status;
    if (fstat(fd, &status) < 0) {
        return -errno;
    }
    sandbox->access |= access;
    sandbox->of_others |= status.st_uid != geteuid() || (access & (SANDBOX_READ | SANDBOX_WRITE));
    if (sandbox->ruleset_fd < 0) {
        return 0;
    }
    return landlock_allow(sandbox->ruleset_fd, sandbox->landlock_abi, fd, S_ISDIR(status.st_mode),
                          access);
}

int sandbox_allow(struct sandbox *sandbox, const char *path, unsigned access, struct errtext *err)
{
    assert(!sandbox->sealed);
    if (sandbox->off) {
        return 0;
    }
    int fd = open(path, O_PATH | O_CLOEXEC);
    int result = fd < 0 ? -errno : allow_descriptor(sandbox, fd, access);
    if (fd >= 0) {
        close(fd);
    }
    if (result < 0) {
        return err_set(err, -result, "%s: cannot be allowed in the sandbox: %s", path,
                       strerror(-result));
    }
    return 0;
}

/* The directory part of a path that names a file. */
static int allow_parent(struct sandbox *sandbox, const char *file, unsigned access,
                        struct errtext *err)
{
    const char *slash = strrchr(file, '/');
    if (!slash || slash == file) {
        return sandbox_allow(sandbox, slash ? "/" : ".", access, err);
    }
    char *directory = strndup(file, (size_t)(slash - file));
    if (!directory) {
        return err_set(err, ENOMEM, "out of memory");
    }
    int result = sandbox_allow(sandbox, directory, access, err);
    free(directory);
    return result;
}

int sandbox_allow_around(struct sandbox *sandbox, const char *file, unsigned access,
                         struct errtext *err)
{
    int result = allow_parent(sandbox, file, access, err);
    char *real = result == 0 && !sandbox->off ? realpath(file, NULL) : NULL;
    if (real) {
        result = allow_parent(sandbox, real, access, err);
    }
    free(real);
    return result;
}

static int allow_link(struct sandbox *sandbox, const char *directory, const char *name,
                      unsigned access, struct errtext *err)
{
    char *path;
    if (asprintf(&path, "%s/%s", directory, name) < 0) {
        return err_set(err, ENOMEM, "out of memory");
    }
    int result = sandbox_allow_around(sandbox, path, access, err);
    free(path);
    return result;
}

int sandbox_allow_links(struct sandbox *sandbox, const char *directory, unsigned access,
                        struct errtext *err)
{
    DIR *entries = sandbox->off ? NULL : opendir(directory);
    unsigned links = 0;
    int result = 0;
    if (!entries) {
        return sandbox->off ? 0 : err_set(err, errno, "%s: %s", directory, strerror(errno));
    }
    const struct dirent *entry = readdir(entries);
    while (entry && result == 0 && links < LINKS_MAX) {
        if (entry->d_type == DT_LNK) {
            links++;
            result = allow_link(sandbox, directory, entry->d_name, access, err);
        }
        entry = readdir(entries);
    }
    closedir(entries);
    return result;
}

void sandbox_signals_to(struct sandbox *sandbox, pid_t process)
{
    assert(!sandbox->sealed);
    sandbox->command = process;
}

int sandbox_seal(struct sandbox *sandbox, struct errtext *err)
{
    const unsigned removing = SANDBOX_REMOVE_FILES | SANDBOX_REMOVE_DIRECTORIES;
    const struct filter_needs needs = {
        .open = (sandbox->access & ~removing) != 0,
        .remove = (sandbox->access & removing) != 0,
        .command = sandbox->command,
        .report = sandbox->report_refusals,
    };
    sandbox->sealed = true;
    tzset(); /* syslog() writes local times: their file is read now, as it cannot be later */
    if (!sandbox->has_filter) {
        return 0;
    }
    return filter_build(&sandbox->filter, &needs, err);
}

static int enter(const struct sandbox *sandbox)
{
    /* Without this, the other two are root's alone. */
    int result = prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) < 0 ? -errno : 0;
    if (result == 0) {
        capabilities_drop_bounding();
        result = capabilities_drop(sandbox->of_others);
    }
    if (result == 0 && sandbox->ruleset_fd >= 0) {
        result = landlock_enter(sandbox->ruleset_fd);
    }
    if (result == 0 && sandbox->has_filter) {
        result = filter_enter(&sandbox->filter);
    }
    return result;
}

int sandbox_enter_thread(const struct sandbox *sandbox, struct errtext *err)
{
    assert(sandbox->sealed);
    int result = sandbox->off ? 0 : enter(sandbox);
    if (result < 0) {
        return err_set(err, -result, "cannot enter the sandbox: %s (--sandbox off does without it)",
                       strerror(-result));
    }
    return 0;
}
