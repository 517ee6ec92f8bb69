/* SPDX-License-Identifier: BSD-2-Clause */
/*
 * A lock here is two sets of bytes, all held shared: "I use p" and "I do not let others use p".
 * Two processes get along when neither uses what the other forbids. Each first takes its own bytes
 * and then looks for a byte that forbids them: as both announce before they look, no order of
 * events lets two writers in (both may be refused when they come at the same instant). Open file
 * description locks, not POSIX ones: those would be lost when any descriptor of the file is closed.
 */
#include "io/filelock.h"

#include <errno.h>
#include <fcntl.h>
#include <string.h>

#include "base/check.h"
#include "base/log.h"

enum {
    LOCK_BASE_USED = 100,
    LOCK_BASE_FORBIDDEN = 200,
};

enum permission {
    PERMISSION_READ = 1U << 0,
    PERMISSION_WRITE = 1U << 1,
    PERMISSION_RESIZE = 1U << 3,
};

static const struct {
    unsigned index;
    const char *name;
} permissions[] = {
    {0, "consistent read"},
    {1, "write"},
    {3, "resize"},
};

static int lock_byte(int fd, short type, off_t byte)
{
    struct flock lock = {.l_type = type, .l_whence = SEEK_SET, .l_start = byte, .l_len = 1};
    return fcntl(fd, F_OFD_SETLK, &lock) < 0 ? -errno : 0;
}

/* -EAGAIN when a byte is held by anybody else, in any way. */
static int test_byte(int fd, off_t byte)
{
    struct flock lock = {.l_type = F_WRLCK, .l_whence = SEEK_SET, .l_start = byte, .l_len = 1};
    if (fcntl(fd, F_OFD_GETLK, &lock) < 0) {
        return -errno;
    }
    return lock.l_type == F_UNLCK ? 0 : -EAGAIN;
}

static int announce(int fd, unsigned used, unsigned forbidden, const char **conflict)
{
    for (size_t i = 0; i < ARRAY_LEN(permissions); i++) {
        unsigned bit = 1U << permissions[i].index;
        *conflict = permissions[i].name;
        int ret = 0;
        if (used & bit) {
            ret = lock_byte(fd, F_RDLCK, LOCK_BASE_USED + (off_t)permissions[i].index);
        }
        if (ret == 0 && (forbidden & bit)) {
            ret = lock_byte(fd, F_RDLCK, LOCK_BASE_FORBIDDEN + (off_t)permissions[i].index);
        }
        if (ret < 0) {
            return ret;
        }
    }
    return 0;
}

static int look_for_conflict(int fd, unsigned used, unsigned forbidden, const char **conflict)
{
    for (size_t i = 0; i < ARRAY_LEN(permissions); i++) {
        unsigned bit = 1U << permissions[i].index;
        *conflict = permissions[i].name;
        int ret = 0;
        if (used & bit) {
            ret = test_byte(fd, LOCK_BASE_FORBIDDEN + (off_t)permissions[i].index);
        }
        if (ret == 0 && (forbidden & bit)) {
            ret = test_byte(fd, LOCK_BASE_USED + (off_t)permissions[i].index);
        }
        if (ret < 0) {
            return ret;
        }
    }
    return 0;
}

/*
 * Best effort, on a path that already fails: whoever called closes fd, which unlocks for certain.
 */
static void withdraw(int fd)
{
    for (size_t i = 0; i < ARRAY_LEN(permissions); i++) {
        (void)lock_byte(fd, F_UNLCK, LOCK_BASE_USED + (off_t)permissions[i].index);
        (void)lock_byte(fd, F_UNLCK, LOCK_BASE_FORBIDDEN + (off_t)permissions[i].index);
    }
}

static int refuse(struct errtext *err, const char *path, bool writable, const char *lock)
{
    return err_set(err, EAGAIN,
                   "%s: locked by another process (lock \"%s\"): stop the server or guest that %s "
                   "the image%s",
                   path, lock, writable ? "uses" : "writes",
                   writable ? ", or serve it with --read-only if it only reads" : "");
}

int filelock_take(int fd, const char *path, bool writable, struct errtext *err)
{
    unsigned used = PERMISSION_READ;
    unsigned forbidden = PERMISSION_WRITE | PERMISSION_RESIZE;
    const char *conflict;

    if (writable) {
        used |= PERMISSION_WRITE | PERMISSION_RESIZE;
    }

    int ret = announce(fd, used, forbidden, &conflict);
    if (ret == 0) {
        ret = look_for_conflict(fd, used, forbidden, &conflict);
    }
    switch (ret) {
    case 0:
        return 0;
    case -EAGAIN:
    case -EACCES:
        withdraw(fd);
        return refuse(err, path, writable, conflict);
    case -EINVAL:
    case -ENOSYS:
    case -EOPNOTSUPP:
    case -ENOLCK:
        withdraw(fd);
        log_warning("%s: the file system cannot lock (%s): make sure that nothing else writes it",
                    path, strerror(-ret));
        return 0;
    default:
        withdraw(fd);
        return err_set(err, -ret, "%s: cannot lock: %s", path, strerror(-ret));
    }
}
