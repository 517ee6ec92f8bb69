/* SPDX-License-Identifier: BSD-2-Clause */
/*
 * libConfuse does the syntax. Each value is taken over at the moment at which it is parsed, as only
 * then the line is known; what libConfuse keeps of it is not looked at. Its callbacks carry no
 * argument, so who parses is in a variable of the thread.
 */
#include "config/config_file.h"

#include <confuse.h>
#include <errno.h>
#include <fcntl.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "base/check.h"
#include "base/limits.h"

#define FILE_BYTES_MAX (4 * MIB)
/*
 * libConfuse takes the end of the file for the end of an open section, and so half a file for a
 * whole one. This key is put behind the text: found anywhere but outside of all sections, or not at
 * all, it shows that something was not closed. Nobody types it by accident.
 */
#define END_KEY "\001"

struct parse {
    const char *path;
    struct export_configs *configs;
    struct export_config draft; /* the section at hand */
    bool has_draft;
    unsigned given; /* set of fields that it has had */
    bool ended;     /* the end key was found where it belongs */
    bool failed;    /* err is set: the first message counts */
    struct errtext *err;
};

static _Thread_local struct parse *parsing;

/* Puts where it is in front of a message. */
static void note_failure(const cfg_t *cfg)
{
    char shown[100];
    if (!parsing->failed) {
        parsing->failed = true;
        if (parsing->has_draft) {
            const char *name = parsing->draft.name;
            err_prefix(parsing->err, "export '%s'",
                       err_sanitise(shown, sizeof(shown), name, strlen(name)));
        }
        err_prefix(parsing->err, "%s:%d", parsing->path, cfg->line);
    }
}

static void fail(const cfg_t *cfg, const char *format, ...) __attribute__((format(printf, 2, 3)));

static void fail(const cfg_t *cfg, const char *format, ...)
{
    char text[512];
    va_list args;
    if (parsing->failed) {
        return;
    }
    va_start(args, format);
    vsnprintf(text, sizeof(text), format, args);
    va_end(args);
    err_set(parsing->err, EINVAL, "%s", text);
    note_failure(cfg);
}

/* What libConfuse has to say: syntax, unknown keys, double titles. */
__attribute__((format(printf, 2, 0))) static void on_error(cfg_t *cfg, const char *format,
                                                           va_list args)
{
    char text[256];
    char shown[256];
    vsnprintf(text, sizeof(text), format, args);
    fail(cfg, "%s", err_sanitise(shown, sizeof(shown), text, strlen(text)));
}

/* ---- Values ---- */

/* Those that parse_text() tells libConfuse of. */
static const char *const fields[] = {
    "image",
    "description",
    "read-only",
    "snapshot",
    "discard",
    "cache",
    "backing-format",
    "key-file",
    "tls",
    "allow",
    "tls-allow",
    "bytes-per-second",
    "operations-per-second",
};

static bool is_list(const char *field)
{
    return strcmp(field, "allow") == 0 || strcmp(field, "tls-allow") == 0 ||
           strcmp(field, "key-file") == 0;
}

static unsigned field_bit(const char *field)
{
    for (unsigned i = 0; i < ARRAY_LEN(fields); i++) {
        if (strcmp(fields[i], field) == 0) {
            return 1U << i;
        }
    }
    return 0;
}

/* The section's draft, with its name. NULL: failed. */
static struct export_config *draft_of(cfg_t *section)
{
    struct parse *parse = parsing;
    struct errtext why = {.text = ""};
    if (parse->has_draft) {
        return &parse->draft;
    }
    parse->given = 0;
    int result = export_config_init(&parse->draft);
    parse->has_draft = result == 0;
    if (result == 0) {
        result = export_config_set(&parse->draft, "name", "name", cfg_title(section), &why);
    }
    if (result < 0) {
        char shown[100];
        const char *name = cfg_title(section);
        parse->has_draft = false;
        export_config_free(&parse->draft);
        fail(section, "export '%s': %s", err_sanitise(shown, sizeof(shown), name, strlen(name)),
             result == -ENOMEM ? "out of memory" : why.text);
        return NULL;
    }
    return &parse->draft;
}

/* Paths of images and keys are relative to the file that names them. NULL: out of memory. */
static char *resolve(const char *field, const char *image)
{
    const char *slash = strrchr(parsing->path, '/');
    char *path = NULL;
    bool key = strcmp(field, "key-file") == 0;
    bool is_path = strcmp(field, "image") == 0 || (key && key_file_is_path(image));
    if (!is_path || !slash || *image == '/' || *image == '\0') {
        return strdup(image);
    }
    if (asprintf(&path, "%.*s/%s", (int)(slash - parsing->path), parsing->path, image) < 0) {
        return NULL;
    }
    return path;
}

static int on_value(cfg_t *section, cfg_opt_t *option, const char *value, void *result)
{
    const char *field = cfg_opt_name(option);
    unsigned bit = field_bit(field);
    struct export_config *draft = draft_of(section);
    if (!draft) {
        return -1;
    }
    if ((parsing->given & bit) && !is_list(field)) {
        fail(section, "%s is given twice", field);
        return -1;
    }
    parsing->given |= bit;
    char *resolved = resolve(field, value);
    int set = resolved ? export_config_set(draft, field, field, resolved, parsing->err)
                       : err_set(parsing->err, ENOMEM, "out of memory");
    free(resolved);
    if (set < 0) {
        note_failure(section);
        return -1;
    }
    *(const char **)result = value;
    return 0;
}

static int on_end(cfg_t *cfg, cfg_opt_t *option, const char *value, void *result)
{
    (void)option;
    if (cfg_title(cfg)) {
        if (draft_of(cfg)) {
            fail(cfg, "the section is not closed, '}' is missing");
        }
        return -1;
    }
    parsing->ended = true;
    *(const char **)result = value;
    return 0;
}

/* A section has ended. */
static int on_section(cfg_t *cfg, cfg_opt_t *option)
{
    cfg_t *section = cfg_opt_getnsec(option, cfg_opt_size(option) - 1);
    struct export_config *draft = draft_of(section);
    if (!draft) {
        return -1;
    }
    if (!draft->image) {
        fail(cfg, "the image is missing: image = \"/path/to/image.qcow2\"");
        return -1;
    }
    if (export_configs_add(parsing->configs, draft, parsing->err) < 0) {
        note_failure(cfg);
        return -1;
    }
    parsing->has_draft = false;
    return 0;
}

/* ---- The file ---- */

/* The descriptor, or -errno. */
static int open_file(const char *path, struct errtext *err)
{
    struct stat status;
    int fd =
        open(path, O_RDONLY | O_CLOEXEC | O_NONBLOCK | O_NOCTTY); /* a pipe makes nobody wait */
    int error = fd < 0 || fstat(fd, &status) < 0 ? errno : 0;
    if (error == 0 && !S_ISREG(status.st_mode)) {
        close(fd);
        return err_set(err, EINVAL, "%s: a configuration file must be a regular file", path);
    }
    if (error == 0 && status.st_size > (off_t)FILE_BYTES_MAX) {
        close(fd);
        return err_set(err, EFBIG, "%s: a configuration file has %llu bytes at most", path,
                       (unsigned long long)FILE_BYTES_MAX);
    }
    if (error != 0) {
        if (fd >= 0) {
            close(fd);
        }
        return err_set(err, error, "%s: cannot read the configuration: %s", path, strerror(error));
    }
    return fd;
}

/* The file's text with the end key behind it, to be freed. NULL: err says why. */
static char *read_text(const char *path, struct errtext *err)
{
    static const char end[] = "\n" END_KEY " = 1\n";
    int fd = open_file(path, err);
    char *text = fd < 0 ? NULL : malloc(FILE_BYTES_MAX + sizeof(end));
    size_t len = 0;
    ssize_t got = 1;
    if (fd < 0) {
        return NULL;
    }
    while (text && got > 0 && len < FILE_BYTES_MAX) {
        got = read(fd, text + len, FILE_BYTES_MAX - len);
        len += got > 0 ? (size_t)got : 0;
    }
    int error = !text ? ENOMEM : got < 0 ? errno : 0;
    close(fd);
    if (error == 0 && memchr(text, '\0', len)) {
        err_set(err, EINVAL, "%s: there are NUL bytes in it: this is no text", path);
        free(text);
        return NULL;
    }
    if (error != 0) {
        err_set(err, error, "%s: cannot read the configuration: %s", path, strerror(error));
        free(text);
        return NULL;
    }
    memcpy(text + len, end, sizeof(end));
    return text;
}

static int parse_text(const char *text)
{
    cfg_opt_t export_options[] = {
        CFG_STR_CB("image", NULL, CFGF_NODEFAULT, on_value),
        CFG_STR_CB("description", NULL, CFGF_NODEFAULT, on_value),
        CFG_STR_CB("read-only", NULL, CFGF_NODEFAULT, on_value),
        CFG_STR_CB("snapshot", NULL, CFGF_NODEFAULT, on_value),
        CFG_STR_CB("discard", NULL, CFGF_NODEFAULT, on_value),
        CFG_STR_CB("cache", NULL, CFGF_NODEFAULT, on_value),
        CFG_STR_CB("backing-format", NULL, CFGF_NODEFAULT, on_value),
        CFG_STR_LIST_CB("key-file", NULL, CFGF_NODEFAULT, on_value),
        CFG_STR_CB("tls", NULL, CFGF_NODEFAULT, on_value),
        CFG_STR_LIST_CB("allow", NULL, CFGF_NODEFAULT, on_value),
        CFG_STR_LIST_CB("tls-allow", NULL, CFGF_NODEFAULT, on_value),
        CFG_STR_CB("bytes-per-second", NULL, CFGF_NODEFAULT, on_value),
        CFG_STR_CB("operations-per-second", NULL, CFGF_NODEFAULT, on_value),
        CFG_STR_CB(END_KEY, NULL, CFGF_NODEFAULT, on_end),
        CFG_END(),
    };
    cfg_opt_t options[] = {
        CFG_SEC("export", export_options, CFGF_MULTI | CFGF_TITLE | CFGF_NO_TITLE_DUPES),
        CFG_STR_CB(END_KEY, NULL, CFGF_NODEFAULT, on_end),
        CFG_END(),
    };
    cfg_t *cfg = cfg_init(options, CFGF_NONE);
    if (!cfg) {
        return err_set(parsing->err, ENOMEM, "out of memory");
    }
    cfg_set_error_function(cfg, on_error);
    cfg_set_validate_func(cfg, "export", on_section);
    int result = cfg_parse_buf(cfg, text) == CFG_SUCCESS && !parsing->failed ? 0 : -EINVAL;
    if (result == 0 && !parsing->ended) {
        result = -EINVAL;
        fail(cfg, "the file ends in the middle of a comment");
    }
    if (result < 0) {
        fail(cfg, "the file cannot be understood");
    }
    cfg_free(cfg);
    return result;
}

int config_file_read(const char *path, struct export_configs *configs, struct errtext *err)
{
    struct parse parse = {.path = path, .configs = configs, .err = err};
    *configs = (struct export_configs){0};
    char *text = read_text(path, err);
    if (!text) {
        return -EINVAL;
    }
    parsing = &parse;
    int result = parse_text(text);
    parsing = NULL;
    free(text);
    if (parse.has_draft) {
        export_config_free(&parse.draft);
    }
    if (result == 0 && configs->count == 0) { /* a file that was emptied drops nobody */
        result = err_set(err, EINVAL, "%s: there is no export in it", path);
    }
    if (result < 0) {
        export_configs_free(configs);
    }
    return result;
}
