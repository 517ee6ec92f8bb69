/* SPDX-License-Identifier: BSD-2-Clause */
/*
 * Rights that a kernel does not know must not be asked of it, so each has the ABI that brought it.
 * What is handled and not allowed is refused; descriptors that are open keep what they could do.
 */
#include "sandbox/landlock.h"

#include <errno.h>
#include <linux/landlock.h>
#include <stdint.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "base/check.h"

#ifndef LANDLOCK_ACCESS_FS_REFER
#define LANDLOCK_ACCESS_FS_REFER (1ULL << 13)
#endif
#ifndef LANDLOCK_ACCESS_FS_TRUNCATE
#define LANDLOCK_ACCESS_FS_TRUNCATE (1ULL << 14)
#endif
#ifndef LANDLOCK_ACCESS_FS_IOCTL_DEV
#define LANDLOCK_ACCESS_FS_IOCTL_DEV (1ULL << 15)
#endif
#ifndef LANDLOCK_ACCESS_NET_BIND_TCP
#define LANDLOCK_ACCESS_NET_BIND_TCP    (1ULL << 0)
#define LANDLOCK_ACCESS_NET_CONNECT_TCP (1ULL << 1)
#endif
#ifndef LANDLOCK_SCOPE_ABSTRACT_UNIX_SOCKET
#define LANDLOCK_SCOPE_ABSTRACT_UNIX_SOCKET (1ULL << 0)
#define LANDLOCK_SCOPE_SIGNAL               (1ULL << 1)
#endif

/* struct landlock_ruleset_attr as of ABI 6. Older kernels take it as long as the rest is zero. */
struct ruleset_attributes {
    uint64_t handled_access_fs;
    uint64_t handled_access_net;
    uint64_t scoped;
};

#define RIGHTS_OF_ABI_1 (LANDLOCK_ACCESS_FS_REFER - 1)
/* What can be allowed for something that is no directory. */
#define RIGHTS_OF_FILES                                                                          \
    (LANDLOCK_ACCESS_FS_EXECUTE | LANDLOCK_ACCESS_FS_WRITE_FILE | LANDLOCK_ACCESS_FS_READ_FILE | \
     LANDLOCK_ACCESS_FS_TRUNCATE | LANDLOCK_ACCESS_FS_IOCTL_DEV)

static uint64_t rights_of(int abi)
{
    uint64_t rights = RIGHTS_OF_ABI_1;
    rights |= abi >= 2 ? LANDLOCK_ACCESS_FS_REFER : 0;
    rights |= abi >= 3 ? LANDLOCK_ACCESS_FS_TRUNCATE : 0;
    rights |= abi >= 5 ? LANDLOCK_ACCESS_FS_IOCTL_DEV : 0;
    return rights;
}

static uint64_t rights_for(unsigned access)
{
    static const struct {
        unsigned access;
        uint64_t rights;
    } meanings[] = {
        {SANDBOX_READ, LANDLOCK_ACCESS_FS_READ_FILE | LANDLOCK_ACCESS_FS_READ_DIR},
        {SANDBOX_WRITE, LANDLOCK_ACCESS_FS_WRITE_FILE | LANDLOCK_ACCESS_FS_TRUNCATE |
                            LANDLOCK_ACCESS_FS_IOCTL_DEV},
        {SANDBOX_CREATE, LANDLOCK_ACCESS_FS_MAKE_REG},
        {SANDBOX_REMOVE_FILES, LANDLOCK_ACCESS_FS_REMOVE_FILE},
        {SANDBOX_REMOVE_DIRECTORIES, LANDLOCK_ACCESS_FS_REMOVE_DIR},
    };
    uint64_t rights = 0;
    for (unsigned i = 0; i < ARRAY_LEN(meanings); i++) {
        rights |= access & meanings[i].access ? meanings[i].rights : 0;
    }
    return rights;
}

int landlock_abi(void)
{
    long abi = syscall(SYS_landlock_create_ruleset, NULL, 0, LANDLOCK_CREATE_RULESET_VERSION);
    return abi < 0 ? -errno : (int)abi;
}

int landlock_create(int abi, bool signals)
{
    struct ruleset_attributes attributes = {.handled_access_fs = rights_of(abi)};
    if (abi >= 4) {
        attributes.handled_access_net =
            LANDLOCK_ACCESS_NET_BIND_TCP | LANDLOCK_ACCESS_NET_CONNECT_TCP;
    }
    if (abi >= 6) {
        attributes.scoped =
            LANDLOCK_SCOPE_ABSTRACT_UNIX_SOCKET | (signals ? 0 : LANDLOCK_SCOPE_SIGNAL);
    }
    long fd = syscall(SYS_landlock_create_ruleset, &attributes, sizeof(attributes), 0);
    return fd < 0 ? -errno : (int)fd;
}

int landlock_allow(int ruleset_fd, int abi, int path_fd, bool is_directory, unsigned access)
{
    struct landlock_path_beneath_attr rule = {.parent_fd = path_fd};
    rule.allowed_access = rights_for(access) & rights_of(abi);
    if (!is_directory) {
        rule.allowed_access &= RIGHTS_OF_FILES;
    }
    if (rule.allowed_access == 0) {
        return 0;
    }
    long ret = syscall(SYS_landlock_add_rule, ruleset_fd, LANDLOCK_RULE_PATH_BENEATH, &rule, 0);
    return ret < 0 ? -errno : 0;
}

int landlock_enter(int ruleset_fd)
{
    return syscall(SYS_landlock_restrict_self, ruleset_fd, 0) < 0 ? -errno : 0;
}
