/* SPDX-License-Identifier: BSD-2-Clause */
#include "io/account.h"

#include <errno.h>
#include <grp.h>
#include <pwd.h>
#include <stdbool.h>
#include <stdlib.h>
#include <string.h>

/* The highest number means "none" to every call that takes one. */
static bool parse_id(const char *text, unsigned *id)
{
    char *end;
    if (*text < '0' || *text > '9') {
        return false;
    }
    unsigned long long value = strtoull(text, &end, 10);
    *id = (unsigned)value;
    return *end == '\0' && value < (unsigned)-1;
}

static bool find_user(const char *name, uid_t *uid)
{
    const struct passwd *user = getpwnam(name);
    if (user) {
        *uid = user->pw_uid;
    }
    return user || parse_id(name, uid);
}

static bool find_group(const char *name, gid_t *gid)
{
    const struct group *group = getgrnam(name);
    if (group) {
        *gid = group->gr_gid;
    }
    return group || parse_id(name, gid);
}

int account_resolve(struct account *account, const char *option, const char *text,
                    struct errtext *err)
{
    char shown[64];
    const char *colon = strchr(text, ':');
    const char *group = colon ? colon + 1 : NULL;
    char *user = strndup(text, strcspn(text, ":"));
    int result = 0;
    account->uid = (uid_t)-1;
    account->gid = (gid_t)-1;
    if (!user) {
        return err_set(err, ENOMEM, "out of memory");
    }
    if (*user == '\0' && (!group || *group == '\0')) {
        result =
            err_set(err, EINVAL, "%s: names nobody: must be USER, USER:GROUP or :GROUP", option);
    } else if (*user != '\0' && !find_user(user, &account->uid)) {
        result = err_set(err, EINVAL, "%s: there is no user '%s'", option,
                         err_sanitise(shown, sizeof(shown), user, strlen(user)));
    } else if (group && *group != '\0' && !find_group(group, &account->gid)) {
        result = err_set(err, EINVAL, "%s: there is no group '%s'", option,
                         err_sanitise(shown, sizeof(shown), group, strlen(group)));
    }
    free(user);
    return result;
}

void account_prepare(void)
{
    /* No such names: so all sources of names are asked. */
    (void)getpwnam(":");
    (void)getgrnam(":");
}
