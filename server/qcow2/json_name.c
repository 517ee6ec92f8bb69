/* SPDX-License-Identifier: BSD-2-Clause */
/*
 * Three steps. QEMU's relaxed JSON is made strict, and its length and depth are bounded before a
 * parser sees it. Jansson parses it. The tree is made flat, as QEMU does it, so that {"file":
 * {"filename": "a"}} and {"file.filename": "a"} are the same, and the drivers are gone through from
 * the outermost one inwards, each with its own set of options: every option must be known.
 */
#include "qcow2/json_name.h"

#include <errno.h>
#include <jansson.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/check.h"
#include "base/limits.h"

/* Objects in each other, and parts of a dotted key: an image that is below others takes one for
 * each. */
#define DEPTH_MAX 16U
/* A key of the flat tree: all keys of a name fit into it. */
#define KEY_BYTES_MAX (LIMIT_BACKING_NAME_BYTES + DEPTH_MAX + 1U)

struct shown {
    char text[100];
};

static const char *show(struct shown *shown, const char *text)
{
    return err_sanitise(shown->text, sizeof(shown->text), text, strlen(text));
}

/* ---- Relaxed to strict ---- */

/*
 * A string from its opening quote to behind its end, with double quotes and JSON's own escapes. A
 * string that does not end is left to the parser.
 */
static const char *copy_string(const char *from, char **to)
{
    char quote = *from++;
    *(*to)++ = '"';
    while (*from && *from != quote) {
        if (*from == '\\' && from[1] == '\'') {
            from++;
        } else if (*from == '\\' && from[1]) {
            *(*to)++ = *from++;
        } else if (*from == '"') {
            *(*to)++ = '\\';
        }
        *(*to)++ = *from++;
    }
    if (*from) {
        *(*to)++ = '"';
        from++;
    }
    return from;
}

/* `strict` has room for twice the length, and the end. */
static int make_strict(const char *text, char *strict, struct errtext *err)
{
    unsigned depth = 0;
    while (*text) {
        if (*text == '"' || *text == '\'') {
            text = copy_string(text, &strict);
            continue;
        }
        if (*text == '{' || *text == '[') {
            depth++;
        } else if ((*text == '}' || *text == ']') && depth > 0) {
            depth--;
        }
        if (depth > DEPTH_MAX) {
            return err_set(err, EINVAL, "its JSON is more than %u levels deep", DEPTH_MAX);
        }
        *strict++ = *text++;
    }
    *strict = '\0';
    return 0;
}

static int parse(const char *text, json_t **root, struct errtext *err)
{
    struct shown shown;
    json_error_t why;
    size_t len = strlen(text);
    if (len > LIMIT_BACKING_NAME_BYTES) {
        return err_set(err, EINVAL, "its JSON has %zu bytes; at most %u are allowed", len,
                       LIMIT_BACKING_NAME_BYTES);
    }
    char *strict = malloc(2 * len + 1);
    if (!strict) {
        return err_set(err, ENOMEM, "out of memory");
    }
    int ret = make_strict(text, strict, err);
    if (ret == 0) {
        *root = json_loads(strict, JSON_REJECT_DUPLICATES, &why);
        ret = *root ? 0
                    : err_set(err, EINVAL, "its JSON is broken, near byte %d: %s", why.position,
                              show(&shown, why.text));
    }
    free(strict);
    return ret;
}

/* ---- Nested to flat ---- */

static unsigned count_parts(const char *key)
{
    unsigned parts = 1;
    for (; *key; key++) {
        parts += *key == '.';
    }
    return parts;
}

/*
 * Adds what is in `from` to `flat`, its keys behind the first key_len bytes of `key`. Recursion no
 * deeper than make_strict() let through.
 */
static int flatten(json_t *flat, json_t *from, char *key, size_t key_len, struct errtext *err)
{
    struct shown shown;
    const char *name;
    json_t *value;
    json_object_foreach(from, name, value)
    {
        size_t name_len = strlen(name);
        int ret = 0;
        if (key_len + name_len + 2 > KEY_BYTES_MAX) {
            return err_set(err, EINVAL, "a key is too long");
        }
        memcpy(key + key_len, name, name_len + 1);
        if (count_parts(key) > DEPTH_MAX) {
            return err_set(err, EINVAL, "'%s' is more than %u levels deep", show(&shown, key),
                           DEPTH_MAX);
        }
        if (json_is_object(value) && json_object_size(value) > 0) {
            key[key_len + name_len] = '.';
            ret = flatten(flat, value, key, key_len + name_len + 1, err);
        } else if (json_object_get(flat, key)) {
            ret = err_set(err, EINVAL, "'%s' is given twice", show(&shown, key));
        } else if (json_object_set(flat, key, value) < 0) {
            ret = err_set(err, ENOMEM, "out of memory");
        }
        if (ret < 0) {
            return ret;
        }
    }
    return 0;
}

/* ---- Drivers ---- */

/* What changes nothing of what is read, and so is nobody's business here. */
static const char *const harmless_everywhere[] = {
    "node-name",     "read-only", "auto-read-only", "discard",
    "detect-zeroes", "cache",     "force-share",    "active",
};
static const char *const harmless_in_files[] = {
    "aio", "aio-max-batch", "locking", "pr-manager", "drop-cache", "x-check-cache-dropped",
};
/* Where a key is found is said by whoever opens the chain, and what it is for by the image. */
static const char *const harmless_in_qcow2[] = {
    "lazy-refcounts",      "pass-discard-request", "pass-discard-snapshot",
    "pass-discard-other",  "discard-no-unref",     "overlap-check",
    "cache-size",          "l2-cache-size",        "l2-cache-entry-size",
    "refcount-cache-size", "cache-clean-interval", "encrypt",
};

enum driver { DRIVER_NONE, DRIVER_FILE, DRIVER_RAW, DRIVER_QCOW2 };

/* Where in the flat tree we are: one driver, and the image that it is a part of. */
struct walk {
    json_t *flat;
    char prefix[KEY_BYTES_MAX]; /* of the driver's keys: "", "file.", "backing.file." ... */
    enum driver driver;
    const char *driver_name;
    struct errtext *err;
};

static bool is_among(const char *name, size_t len, const char *const *names, size_t count)
{
    for (size_t i = 0; i < count; i++) {
        if (strlen(names[i]) == len && memcmp(names[i], name, len) == 0) {
            return true;
        }
    }
    return false;
}

static bool is_harmless(enum driver driver, const char *name, size_t len)
{
    return is_among(name, len, harmless_everywhere, ARRAY_LEN(harmless_everywhere)) ||
           (driver == DRIVER_FILE &&
            is_among(name, len, harmless_in_files, ARRAY_LEN(harmless_in_files))) ||
           (driver == DRIVER_QCOW2 &&
            is_among(name, len, harmless_in_qcow2, ARRAY_LEN(harmless_in_qcow2)));
}

/* The value of an option of the driver, NULL if it is not given. */
static json_t *get(const struct walk *walk, const char *name)
{
    char key[KEY_BYTES_MAX + 16];
    snprintf(key, sizeof(key), "%s%s", walk->prefix, name);
    return json_object_get(walk->flat, key);
}

/* Whether options of what is called so are given, or it is a value. */
static bool has(const struct walk *walk, const char *name)
{
    size_t prefix_len = strlen(walk->prefix);
    size_t name_len = strlen(name);
    const char *key;
    json_t *value;
    json_object_foreach(walk->flat, key, value)
    {
        if (strncmp(key, walk->prefix, prefix_len) == 0 &&
            strncmp(key + prefix_len, name, name_len) == 0 &&
            (key[prefix_len + name_len] == '.' || key[prefix_len + name_len] == '\0')) {
            return true;
        }
    }
    return false;
}

static int find_driver(struct walk *walk, bool is_outermost)
{
    struct shown shown;
    json_t *value = get(walk, "driver");
    /* Below a format, QEMU takes a file for granted. Outermost, it would guess. */
    walk->driver = is_outermost ? DRIVER_NONE : DRIVER_FILE;
    walk->driver_name = is_outermost ? "unnamed" : "file";
    if (!value) {
        return 0;
    }
    if (!json_is_string(value)) {
        return err_set(walk->err, EINVAL, "'%sdriver' must be a string",
                       show(&shown, walk->prefix));
    }
    walk->driver_name = json_string_value(value);
    if (strcmp(walk->driver_name, "file") == 0 || strcmp(walk->driver_name, "host_device") == 0) {
        walk->driver = DRIVER_FILE;
    } else if (strcmp(walk->driver_name, "raw") == 0) {
        walk->driver = DRIVER_RAW;
    } else if (strcmp(walk->driver_name, "qcow2") == 0) {
        walk->driver = DRIVER_QCOW2;
    } else { /* O10 */
        return err_set(walk->err, EINVAL,
                       "it names the driver '%s': allowed are file, host_device, raw and qcow2",
                       show(&shown, walk->driver_name));
    }
    return 0;
}

static int check_option(const struct walk *walk, const char *name)
{
    struct shown shown;
    struct shown driver;
    size_t len = strcspn(name, ".");
    bool is_file = walk->driver == DRIVER_FILE;
    if (strcmp(name, "driver") == 0 || is_harmless(walk->driver, name, len) ||
        strcmp(name, is_file ? "filename" : "file") == 0 ||
        (!is_file && strncmp(name, "file.", len + 1) == 0) ||
        (walk->driver == DRIVER_QCOW2 && len == strlen("backing") &&
         memcmp(name, "backing", len) == 0)) {
        return 0;
    }
    return err_set(walk->err, EINVAL,
                   "it gives the %s driver the option '%s', which may change what is read: not "
                   "allowed",
                   show(&driver, walk->driver_name), show(&shown, name));
}

static int check_options(const struct walk *walk)
{
    size_t prefix_len = strlen(walk->prefix);
    const char *key;
    json_t *value;
    json_object_foreach(walk->flat, key, value)
    {
        if (strncmp(key, walk->prefix, prefix_len) == 0) {
            int ret = check_option(walk, key + prefix_len);
            if (ret < 0) {
                return ret;
            }
        }
    }
    return 0;
}

/* To what the driver's option `name` describes. */
static int go_down(struct walk *walk, const char *name)
{
    struct shown shown;
    size_t len = strlen(walk->prefix);
    size_t name_len = strlen(name);
    if (get(walk, name)) {
        return err_set(walk->err, EINVAL,
                       "'%s%s' must be an object that describes a file, not the name of a node",
                       show(&shown, walk->prefix), name);
    }
    /* No key is as long as that: nothing is there. */
    if (len + name_len + 2 > sizeof(walk->prefix)) {
        return err_set(walk->err, EINVAL, "a key is too long");
    }
    memcpy(walk->prefix + len, name, name_len);
    memcpy(walk->prefix + len + name_len, ".", 2);
    return 0;
}

static int take_path(const struct walk *walk, struct json_name *out)
{
    struct shown shown;
    json_t *value = get(walk, "filename");
    const char *path = json_string_value(value);
    if (!path || !*path) {
        return err_set(walk->err, EINVAL, "'%sfilename' %s: it must be the path of a file",
                       show(&shown, walk->prefix), value ? "is no path" : "is missing");
    }
    out->path = strdup(path);
    return out->path ? 0 : err_set(walk->err, ENOMEM, "out of memory");
}

/* raw passes on what is below it; below qcow2, or what may be qcow2, there must be a file. */
static int add_format(const struct walk *walk, bool is_outermost, struct json_name *out)
{
    if (is_outermost) {
        out->format = walk->driver == DRIVER_NONE    ? BACKING_FORMAT_UNNAMED
                      : walk->driver == DRIVER_QCOW2 ? BACKING_FORMAT_QCOW2
                                                     : BACKING_FORMAT_RAW;
        out->said = out->format;
        return 0;
    }
    if (walk->driver == DRIVER_QCOW2) {
        if (out->format != BACKING_FORMAT_RAW) {
            return err_set(walk->err, EINVAL, "it describes a qcow2 image inside of another image");
        }
        out->format = BACKING_FORMAT_QCOW2;
    }
    return 0;
}

static int read_image(struct walk *walk, struct json_name **out);

/* What the option "backing" of the driver says is below. Recursion: a part of the key each. */
static int take_below(struct walk *walk, struct json_name *out)
{
    size_t len = strlen(walk->prefix);
    json_t *value = get(walk, "backing");
    const char *text = json_string_value(value);
    if (walk->driver != DRIVER_QCOW2 || !has(walk, "backing")) {
        return 0;
    }
    out->below_given = true;
    if (json_is_null(value) || (text && !*text)) {
        return 0; /* nothing */
    }
    int ret = go_down(walk, "backing");
    if (ret == 0) {
        ret = read_image(walk, &out->below);
    }
    walk->prefix[len] = '\0';
    walk->driver = DRIVER_QCOW2;
    return ret;
}

/* The drivers of one image, from the outermost to its file. */
static int read_drivers(struct walk *walk, struct json_name *image)
{
    for (bool is_outermost = true;; is_outermost = false) {
        int ret = find_driver(walk, is_outermost);
        if (ret == 0) {
            ret = check_options(walk);
        }
        if (ret == 0) {
            ret = add_format(walk, is_outermost, image);
        }
        if (ret == 0) {
            ret = take_below(walk, image);
        }
        if (ret < 0) {
            return ret;
        }
        if (walk->driver == DRIVER_FILE) {
            return take_path(walk, image);
        }
        ret = go_down(walk, "file");
        if (ret < 0) {
            return ret;
        }
    }
}

static int read_image(struct walk *walk, struct json_name **out)
{
    struct json_name *image = calloc(1, sizeof(*image));
    if (!image) {
        return err_set(walk->err, ENOMEM, "out of memory");
    }
    int ret = read_drivers(walk, image);
    if (ret < 0) {
        json_name_free(image);
        return ret;
    }
    *out = image;
    return 0;
}

void json_name_free(struct json_name *json)
{
    while (json) {
        struct json_name *below = json->below;
        free(json->path);
        free(json);
        json = below;
    }
}

int json_name_read(const char *text, struct json_name **out, struct errtext *err)
{
    char key[KEY_BYTES_MAX];
    struct walk walk = {.prefix = "", .err = err};
    json_t *root;
    int ret = parse(text, &root, err);
    if (ret < 0) {
        return ret;
    }
    walk.flat = json_object();
    if (!walk.flat) {
        ret = err_set(err, ENOMEM, "out of memory");
    } else if (!json_is_object(root)) {
        ret = err_set(err, EINVAL, "its JSON must be an object");
    } else {
        ret = flatten(walk.flat, root, key, 0, err);
    }
    if (ret == 0) {
        ret = read_image(&walk, out);
    }
    json_decref(walk.flat);
    json_decref(root);
    return ret;
}
