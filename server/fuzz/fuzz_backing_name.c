/* SPDX-License-Identifier: BSD-2-Clause */
/*
 * Names of backing files. An input is what the header and the caller say of the format, and the
 * name. Demanded: what is refused is refused in one line; what is let through is a path and one of
 * two formats, the header's if it names one; and a "json:" name that was read is read the same when
 * it is written down again plainly.
 */
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/limits.h"
#include "fuzz/feed.h"
#include "fuzz/fuzz.h"
#include "qcow2/chain.h"
#include "qcow2/json_name.h"

#define IMAGE_PATH "a/b/disk.qcow2"

struct described {
    char name[2 * LIMIT_BACKING_NAME_BYTES];
    const char *named;
    enum backing_format assumed;
};

static void take(struct described *described, struct feed *feed)
{
    static const char *const formats[] = {NULL, "raw", "qcow2", "vmdk"};
    uint8_t what = feed_u8(feed);
    size_t len;
    described->named = formats[what % 4];
    described->assumed = (enum backing_format)(what / 4 % 3);
    const uint8_t *bytes = feed_bytes(feed, sizeof(described->name) - 1, &len);
    memcpy(described->name, bytes, len);
    described->name[len] = '\0';
}

/* The name that would say the same. False: there is none, as its path cannot stand there as it is.
 */
static bool write_plainly(const struct backing_file *file, char *name, size_t name_bytes)
{
    for (const char *c = file->path; *c; c++) {
        if (*c == '"' || *c == '\\' || (unsigned char)*c < 0x20) {
            return false;
        }
    }
    int len =
        snprintf(name, name_bytes,
                 "json:{\"driver\":\"%s\",\"file\":{\"driver\":\"file\",\"filename\":\"%s\"}}",
                 backing_format_name(file->format), file->path);
    return len > 0 && (size_t)len < name_bytes &&
           (size_t)len <= LIMIT_BACKING_NAME_BYTES + strlen("json:");
}

static void judge_rewritten(const struct backing_file *file)
{
    char name[2 * LIMIT_BACKING_NAME_BYTES];
    struct backing_file again;
    struct errtext err = {""};
    if (!write_plainly(file, name, sizeof(name))) {
        return;
    }
    int rc = backing_resolve(IMAGE_PATH, name, NULL, BACKING_FORMAT_UNNAMED, &again, &err);
    demand(rc == 0, "%s: %s", name, err.text);
    demand(again.format == file->format && strcmp(again.path, file->path) == 0,
           "written down plainly it is another file");
    backing_file_free(&again);
}

static void judge(const struct described *described, const struct backing_file *file)
{
    bool is_json = strncmp(described->name, "json:", 5) == 0;
    demand(file->path && *file->path, "an empty path");
    demand(strlen(file->path) <= strlen(described->name) + strlen(IMAGE_PATH), "a longer path");
    demand(backing_format_name(file->format) != NULL, "no format");
    demand(described->named == NULL || !file->format_assumed, "the header was not heard");
    demand(!file->format_assumed || file->format == described->assumed, "a guess");
    if (described->named && !is_json) {
        demand(strcmp(backing_format_name(file->format), described->named) == 0,
               "the header says %s", described->named);
    }
    if (is_json) {
        judge_rewritten(file);
    }
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t len)
{
    static struct described described;
    struct feed feed = {data, len};
    struct backing_file file = {0};
    struct errtext err = {""};

    take(&described, &feed);
    int rc = backing_resolve(IMAGE_PATH, described.name, described.named, described.assumed, &file,
                             &err);
    fuzz_demand_line("a message", err.text);
    if (rc == 0) {
        judge(&described, &file);
        demand(backing_name_check(described.name, &err) == 0, "one says yes, the other no");
        backing_file_free(&file);
    } else {
        demand(rc == -EINVAL || rc == -ENOTSUP, "refused with %d", rc);
        demand(strncmp(err.text, IMAGE_PATH ": ", strlen(IMAGE_PATH ": ")) == 0, "whose? %s",
               err.text);
    }
    return 0;
}
