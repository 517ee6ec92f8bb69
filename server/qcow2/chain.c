/* SPDX-License-Identifier: BSD-2-Clause */
/*
 * The name is a stranger's (O10): nothing of it is ever handed to a protocol, a shell or a URI
 * parser. Pure functions.
 */
#include "qcow2/chain.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "base/limits.h"
#include "qcow2/json_name.h"

#define FILE_PREFIX "file:"
#define JSON_PREFIX "json:"

struct shown {
    char text[160];
};

static const char *show(struct shown *shown, const char *name)
{
    return err_sanitise(shown->text, sizeof(shown->text), name, strlen(name));
}

const char *backing_format_name(enum backing_format format)
{
    return format == BACKING_FORMAT_RAW ? "raw" : format == BACKING_FORMAT_QCOW2 ? "qcow2" : NULL;
}

enum backing_format backing_format_find(const char *name)
{
    return strcmp(name, "raw") == 0     ? BACKING_FORMAT_RAW
           : strcmp(name, "qcow2") == 0 ? BACKING_FORMAT_QCOW2
                                        : BACKING_FORMAT_UNNAMED;
}

static bool has_prefix(const char *name, const char *prefix)
{
    return strncmp(name, prefix, strlen(prefix)) == 0;
}

int plain_name_check(const char *what, const char *name, struct errtext *err)
{
    struct shown shown;
    size_t len = strlen(name);
    const char *plain = has_prefix(name, FILE_PREFIX) ? name + strlen(FILE_PREFIX) : name;

    if (len > LIMIT_BACKING_NAME_BYTES) {
        return err_set(err, EINVAL, "%s name has %zu bytes; at most %u are allowed", what, len,
                       LIMIT_BACKING_NAME_BYTES);
    }
    if (!*plain) {
        return err_set(err, EINVAL, "%s name \"%s\" is empty; a path is needed", what,
                       show(&shown, name));
    }
    /* O10 */
    if (plain == name && name[strcspn(name, ":/")] == ':') {
        return err_set(err, EINVAL,
                       "%s \"%s\" names a protocol; only a plain path is allowed (a file "
                       "whose name has a ':' is written ./name)",
                       what, show(&shown, name));
    }
    return 0;
}

static int read_json(const char *name, struct json_name **json, struct errtext *err)
{
    struct shown shown;
    int ret = json_name_read(name + strlen(JSON_PREFIX), json, err);
    if (ret < 0) {
        err_prefix(err, "backing file \"%s\"", show(&shown, name));
    }
    return ret;
}

int backing_name_check(const char *name, struct errtext *err)
{
    struct json_name *json;
    if (!has_prefix(name, JSON_PREFIX)) {
        return plain_name_check("backing file", name, err);
    }
    int ret = read_json(name, &json, err);
    if (ret == 0) {
        json_name_free(json);
    }
    return ret;
}

int plain_path_resolve(const char *what, const char *image_path, const char *name, char **path,
                       struct errtext *err)
{
    int ret = plain_name_check(what, name, err);
    if (ret < 0) {
        err_prefix(err, "%s", image_path);
        return ret;
    }
    const char *slash = strrchr(image_path, '/');
    size_t directory_len = slash ? (size_t)(slash - image_path) + 1 : 0;
    if (has_prefix(name, FILE_PREFIX)) {
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

/* The format that the header names; 0 with BACKING_FORMAT_UNNAMED if it names none. */
static int read_named(const char *image_path, const char *named, enum backing_format *format,
                      struct errtext *err)
{
    struct shown shown;
    *format = named ? backing_format_find(named) : BACKING_FORMAT_UNNAMED;
    if (named && *format == BACKING_FORMAT_UNNAMED) {
        return err_set(err, ENOTSUP, "%s: backing file format is '%s': allowed are qcow2 and raw",
                       image_path, show(&shown, named));
    }
    return 0;
}

/* Who says what the file is: its own description, the image's header, whoever opens the chain. */
static int settle_format(const char *image_path, enum backing_format described,
                         enum backing_format named, enum backing_format assumed,
                         struct backing_file *out, struct errtext *err)
{
    out->format = described != BACKING_FORMAT_UNNAMED ? described : named;
    if (out->format == BACKING_FORMAT_UNNAMED) {
        out->format_assumed = true;
        out->format = assumed;
    }
    if (out->format == BACKING_FORMAT_UNNAMED) {
        return err_set(err, EINVAL,
                       "%s: names a backing file but not its format, and guessing it is not safe: "
                       "say it with --backing-format raw or qcow2, or write it down once with "
                       "'qemu-img rebase -u -b BACKING -F FORMAT %s'",
                       image_path, image_path);
    }
    return 0;
}

void backing_file_free(struct backing_file *file)
{
    free(file->path);
    json_name_free(file->below);
    *file = (struct backing_file){0};
}

/* Makes *out of a description; what was taken out of that is gone from it. */
static int take_description(const char *image_path, struct json_name *json,
                            enum backing_format named, enum backing_format assumed,
                            struct backing_file *out, struct errtext *err)
{
    int ret = settle_format(image_path, json->format, named, assumed, out, err);
    if (ret < 0) {
        return ret;
    }
    if (json->below_given && out->format != BACKING_FORMAT_QCOW2) {
        return err_set(err, EINVAL, "%s: a raw backing file has nothing below it", image_path);
    }
    out->path = json->path;
    out->below_given = json->below_given;
    out->below = json->below;
    json->path = NULL;
    json->below = NULL;
    return 0;
}

static int resolve_json(const char *image_path, const char *name, enum backing_format named,
                        enum backing_format assumed, struct backing_file *out, struct errtext *err)
{
    struct json_name *json;
    int ret = read_json(name, &json, err);
    if (ret < 0) {
        err_prefix(err, "%s", image_path);
        return ret;
    }
    if (json->said != BACKING_FORMAT_UNNAMED && named != BACKING_FORMAT_UNNAMED &&
        json->said != named) {
        ret = err_set(err, EINVAL,
                      "%s: the header says that the backing file's format is %s, and its json: "
                      "name says %s: they must agree",
                      image_path, backing_format_name(named), backing_format_name(json->said));
    } else {
        ret = take_description(image_path, json, named, assumed, out, err);
    }
    json_name_free(json);
    return ret;
}

int backing_resolve(const char *image_path, const char *name, const char *named_format,
                    enum backing_format assumed, struct backing_file *out, struct errtext *err)
{
    enum backing_format named;
    *out = (struct backing_file){0};
    int ret = read_named(image_path, named_format, &named, err);
    if (ret < 0) {
        return ret;
    }
    if (has_prefix(name, JSON_PREFIX)) {
        return resolve_json(image_path, name, named, assumed, out, err);
    }
    ret = settle_format(image_path, BACKING_FORMAT_UNNAMED, named, assumed, out, err);
    return ret < 0 ? ret : plain_path_resolve("backing file", image_path, name, &out->path, err);
}

int backing_resolve_described(const char *image_path, struct json_name *described,
                              const char *named_format, enum backing_format assumed,
                              struct backing_file *out, struct errtext *err)
{
    enum backing_format named;
    *out = (struct backing_file){0};
    int ret = read_named(image_path, named_format, &named, err);
    if (ret == 0) {
        ret = take_description(image_path, described, named, assumed, out, err);
    }
    json_name_free(described);
    return ret;
}
