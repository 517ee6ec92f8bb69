/* SPDX-License-Identifier: BSD-2-Clause */
/*
 * The raw system calls for capabilities: two of them are not worth a library.
 */
#include "sandbox/privileges.h"

#include <errno.h>
#include <grp.h>
#include <linux/capability.h>
#include <pwd.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "base/check.h"
#include "io/account.h"

/* What the databases know of the user, unless the caller named it. */
static int complete(struct identity *identity, struct errtext *err)
{
    const struct passwd *entry = getpwuid(identity->uid);
    if (!entry && identity->gid == (gid_t)-1) {
        return err_set(err, EINVAL,
                       "--user %u: no user has this number, so its group must be named, too: "
                       "--user %u:GROUP",
                       (unsigned)identity->uid, (unsigned)identity->uid);
    }
    if (entry && identity->gid == (gid_t)-1) {
        identity->gid = entry->pw_gid;
    }
    if (entry) {
        identity->name = strdup(entry->pw_name);
        if (!identity->name) {
            return err_set(err, ENOMEM, "out of memory");
        }
    }
    return 0;
}

int identity_find(struct identity *identity, const char *text, struct errtext *err)
{
    struct account account;
    *identity = (struct identity){.name = NULL};
    int result = account_resolve(&account, "--user", text, err);
    if (result < 0) {
        return result;
    }
    if (account.uid == (uid_t)-1 || account.uid == 0) {
        return err_set(err, EINVAL, "--user: names %s: name another user",
                       account.uid == 0 ? "root, who keeps all rights" : "no user");
    }
    if (geteuid() != 0) {
        return err_set(err, EPERM,
                       "--user: only root can become another user, and this is user %u: start "
                       "qcowd as that user, without --user",
                       (unsigned)geteuid());
    }
    identity->uid = account.uid;
    identity->gid = account.gid;
    return complete(identity, err);
}

void identity_free(struct identity *identity)
{
    free(identity->name);
    identity->name = NULL;
}

/* By all three user ids, and all three group ids. */
static bool is_now(const struct identity *identity)
{
    uid_t user[3];
    gid_t group[3];
    if (getresuid(&user[0], &user[1], &user[2]) < 0 ||
        getresgid(&group[0], &group[1], &group[2]) < 0) {
        return false;
    }
    for (int i = 0; i < 3; i++) {
        if (user[i] != identity->uid || group[i] != identity->gid) {
            return false;
        }
    }
    return true;
}

static bool can_go_back(const struct identity *identity)
{
    return setresuid(0, 0, 0) == 0 || setuid(0) == 0 || seteuid(0) == 0 ||
           (identity->gid != 0 && (setresgid(0, 0, 0) == 0 || setegid(0) == 0)) ||
           setgroups(0, NULL) == 0;
}

int identity_assume(const struct identity *identity, struct errtext *err)
{
    int failed = identity->name ? initgroups(identity->name, identity->gid) : setgroups(0, NULL);
    if (failed < 0) {
        return err_set(err, errno, "--user: cannot set the groups: %s", strerror(errno));
    }
    if (setresgid(identity->gid, identity->gid, identity->gid) < 0) {
        return err_set(err, errno, "--user: cannot become group %u: %s", (unsigned)identity->gid,
                       strerror(errno));
    }
    if (setresuid(identity->uid, identity->uid, identity->uid) < 0) {
        return err_set(err, errno, "--user: cannot become user %u: %s", (unsigned)identity->uid,
                       strerror(errno));
    }
    if (!is_now(identity) || can_go_back(identity)) {
        return err_set(err, EPERM, "--user: the rights of root could be had back: not serving");
    }
    return 0;
}

void capabilities_drop_bounding(void)
{
    for (unsigned long capability = 0; prctl(PR_CAPBSET_READ, capability, 0, 0, 0) >= 0;
         capability++) {
        if (prctl(PR_CAPBSET_DROP, capability, 0, 0, 0) < 0) {
            return; /* no CAP_SETPCAP: then there is little to give up either */
        }
    }
}

int capabilities_drop(bool keep_file_access)
{
    struct __user_cap_header_struct header = {.version = _LINUX_CAPABILITY_VERSION_3};
    struct __user_cap_data_struct data[_LINUX_CAPABILITY_U32S_3];
    const uint32_t kept = keep_file_access ? 1U << CAP_DAC_OVERRIDE | 1U << CAP_DAC_READ_SEARCH : 0;
    if (syscall(SYS_capget, &header, data) < 0) {
        return -errno;
    }
    uint32_t given_up = 0;
    for (unsigned i = 0; i < ARRAY_LEN(data); i++) {
        uint32_t permitted = data[i].permitted & (i == 0 ? kept : 0);
        given_up |= (data[i].permitted & ~permitted) | data[i].inheritable;
        data[i].permitted = permitted;
        data[i].effective &= permitted;
        data[i].inheritable = 0;
    }
    if (given_up == 0) {
        return 0; /* a service manager that took them all may have forbidden the call, too */
    }
    /* The ambient ones go with the permitted. */
    return syscall(SYS_capset, &header, data) < 0 ? -errno : 0;
}
