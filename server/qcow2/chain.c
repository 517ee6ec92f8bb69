/* SPDX-License-Identifier: BSD-2-Clause */
/*
 * The name is a stranger's (O10): nothing of it is ever handed to a protocol, a shell or a URI
 * parser. Pure functions.
 */
#include "qcow2/chain.h"

#include <errno.h>
#include <stdbool.h>
#include <stdlib.h>
#include <string.h>

#include "base/limits.h"

#define FILE_PREFIX "file:"

static bool has_file_prefix(const char *name)
{
    return strncmp(name, FILE_PREFIX, strlen(FILE_PREFIX)) == 0;
}

int backing_name_check(const char *name, struct errtext *err)
{
    char shown[160];
    size_t len = strlen(name);
    const char *plain = has_file_prefix(name) ? name + strlen(FILE_PREFIX) : name;

    err_sanitise(shown, sizeof(shown), name, len);
    if (len > LIMIT_BACKING_NAME_BYTES) {
        return err_set(err, EINVAL, "backing file name has %zu bytes; at most %u are allowed", len,
                       LIMIT_BACKING_NAME_BYTES);
    }
    if (!*plain) {
        return err_set(err, EINVAL, "backing file name \"%s\" is empty; a path is needed", shown);
    }
    /* O10 */
    if (plain == name && name[strcspn(name, ":/")] == ':') {
        return err_set(err, EINVAL,
                       "backing file \"%s\" names a protocol; only a plain path is allowed (a file "
                       "whose name has a ':' is written ./name)",
                       shown);
    }
    return 0;
}

int backing_path_resolve(const char *image_path, const char *name, char **path, struct errtext *err)
{
    int ret = backing_name_check(name, err);
    if (ret < 0) {
        err_prefix(err, "%s", image_path);
        return ret;
    }
    const char *slash = strrchr(image_path, '/');
    size_t directory_len = slash ? (size_t)(slash - image_path) + 1 : 0;
    if (has_file_prefix(name)) {
        name += strlen(FILE_PREFIX);
        directory_len = 0;
    } else if (name[0] == '/') {
        directory_len = 0;
    }
    size_t name_bytes = strlen(name) + 1;
    char *joined = malloc(directory_len + name_bytes);
    if (!joined) {
        return err_set(err, ENOMEM, "%s: out of memory", image_path);
    }
    memcpy(joined, image_path, directory_len);
    memcpy(joined + directory_len, name, name_bytes);
    *path = joined;
    return 0;
}
