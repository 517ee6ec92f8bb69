/* SPDX-License-Identifier: BSD-2-Clause */
#include "config/export_config.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "base/check.h"
#include "base/limits.h"
#include "base/utf8.h"
#include "qcow2/create.h"

struct shown {
    char text[100];
};

static const char *show(struct shown *shown, const char *text)
{
    return err_sanitise(shown->text, sizeof(shown->text), text, strlen(text));
}

static int out_of_memory(struct errtext *err)
{
    return err_set(err, ENOMEM, "out of memory");
}

/* A value, and what it is called where it was written. */
struct setting {
    const char *called;
    const char *value;
};

static int refuse(const struct setting *setting, const char *allowed, struct errtext *err)
{
    struct shown shown;
    return err_set(err, EINVAL, "%s '%s': must be %s", setting->called,
                   show(&shown, setting->value), allowed);
}

/* ---- The value ---- */

int export_config_init(struct export_config *config)
{
    *config = (struct export_config){.name = strdup(""), .trim = TRIM_UNMAP};
    return config->name ? 0 : -ENOMEM;
}

void export_config_free(struct export_config *config)
{
    free(config->name);
    free(config->image);
    free(config->description);
    free(config->snapshot);
    access_free(&config->access);
    key_files_free(&config->key_files);
    *config = (struct export_config){0};
}

/* NULL stays NULL. False: out of memory. */
static bool copy_text(char **to, const char *from)
{
    *to = from ? strdup(from) : NULL;
    return *to || !from;
}

int export_config_copy(struct export_config *to, const struct export_config *from)
{
    *to = *from;
    to->name = to->image = to->description = to->snapshot = NULL;
    to->access = (struct access){0};
    to->key_files = (struct key_files){.count = 0};
    if (!copy_text(&to->name, from->name) || !copy_text(&to->image, from->image) ||
        !copy_text(&to->description, from->description) ||
        !copy_text(&to->snapshot, from->snapshot) || access_copy(&to->access, &from->access) < 0 ||
        key_files_copy(&to->key_files, &from->key_files) < 0) {
        export_config_free(to);
        return -ENOMEM;
    }
    return 0;
}

static bool same_text(const char *a, const char *b)
{
    return a && b ? strcmp(a, b) == 0 : a == b;
}

bool export_config_equal(const struct export_config *a, const struct export_config *b)
{
    return same_text(a->name, b->name) && same_text(a->image, b->image) &&
           same_text(a->description, b->description) && same_text(a->snapshot, b->snapshot) &&
           a->read_only == b->read_only && a->direct == b->direct && a->trim == b->trim &&
           a->backing_format == b->backing_format && a->tls_only == b->tls_only &&
           a->bytes_per_second == b->bytes_per_second &&
           a->operations_per_second == b->operations_per_second &&
           access_equal(&a->access, &b->access) && key_files_equal(&a->key_files, &b->key_files);
}

/* ---- Fields ---- */

static int set_wire_text(char **to, const struct setting *setting, struct errtext *err)
{
    size_t len = strlen(setting->value);
    if (len > LIMIT_NBD_STRING_BYTES) {
        return err_set(err, EINVAL, "%s: it has %zu bytes, at most %u are allowed", setting->called,
                       len, LIMIT_NBD_STRING_BYTES);
    }
    if (!utf8_is_text(setting->value, len)) {
        return refuse(setting, "UTF-8", err);
    }
    char *copy = strdup(setting->value);
    if (!copy) {
        return out_of_memory(err);
    }
    free(*to);
    *to = copy;
    return 0;
}

static int set_name(struct export_config *config, const struct setting *setting,
                    struct errtext *err)
{
    return set_wire_text(&config->name, setting, err);
}

static int set_description(struct export_config *config, const struct setting *setting,
                           struct errtext *err)
{
    return set_wire_text(&config->description, setting, err);
}

static int set_image(struct export_config *config, const struct setting *setting,
                     struct errtext *err)
{
    if (*setting->value == '\0') {
        return refuse(setting, "the path of a qcow2 image", err);
    }
    char *copy = strdup(setting->value);
    if (!copy) {
        return out_of_memory(err);
    }
    free(config->image);
    config->image = copy;
    return 0;
}

/* Two words for a flag. */
static int set_flag(bool *flag, const char *yes, const char *no, const char *allowed,
                    const struct setting *setting, struct errtext *err)
{
    bool is_yes = strcmp(setting->value, yes) == 0;
    if (!is_yes && strcmp(setting->value, no) != 0) {
        return refuse(setting, allowed, err);
    }
    *flag = is_yes;
    return 0;
}

static int set_read_only(struct export_config *config, const struct setting *setting,
                         struct errtext *err)
{
    bool read_only = false;
    int result = set_flag(&read_only, "true", "false", "true or false", setting, err);
    if (result < 0) {
        return result;
    }
    if (!read_only && config->snapshot) {
        return refuse(setting, "true for a snapshot", err);
    }
    config->read_only = read_only;
    return 0;
}

static int set_snapshot(struct export_config *config, const struct setting *setting,
                        struct errtext *err)
{
    if (*setting->value == '\0') {
        return refuse(setting, "the name of an internal snapshot", err);
    }
    int result = set_wire_text(&config->snapshot, setting, err);
    config->read_only = config->read_only || result == 0;
    return result;
}

static int set_discard(struct export_config *config, const struct setting *setting,
                       struct errtext *err)
{
    bool ignore = false;
    int result = set_flag(&ignore, "ignore", "unmap", "unmap or ignore", setting, err);
    if (result == 0) {
        config->trim = ignore ? TRIM_IGNORE : TRIM_UNMAP;
    }
    return result;
}

static int set_cache(struct export_config *config, const struct setting *setting,
                     struct errtext *err)
{
    return set_flag(&config->direct, "none", "writeback", "writeback or none", setting, err);
}

static int set_backing_format(struct export_config *config, const struct setting *setting,
                              struct errtext *err)
{
    enum backing_format format = backing_format_find(setting->value);
    if (format == BACKING_FORMAT_UNNAMED) {
        return refuse(setting, "raw or qcow2", err);
    }
    config->backing_format = format;
    return 0;
}

static int add_key_file(struct export_config *config, const struct setting *setting,
                        struct errtext *err)
{
    return key_files_add(&config->key_files, setting->called, setting->value, err);
}

static int set_tls(struct export_config *config, const struct setting *setting, struct errtext *err)
{
    return set_flag(&config->tls_only, "require", "on",
                    "on (as the server has it) or require (without TLS it is not there)", setting,
                    err);
}

static int add_origin(struct export_config *config, const struct setting *setting,
                      struct errtext *err)
{
    return access_allow_origin(&config->access, setting->value, err);
}

static int add_identity(struct export_config *config, const struct setting *setting,
                        struct errtext *err)
{
    return access_allow_identity(&config->access, setting->value, err);
}

static int set_bytes_per_second(struct export_config *config, const struct setting *setting,
                                struct errtext *err)
{
    uint64_t bytes = 0;
    if (parse_size(setting->value, &bytes) < 0 || bytes > LIMIT_RATE_BYTES ||
        (bytes > 0 && bytes < KIB)) {
        return refuse(setting, "a size from 1k to 64G, or 0: as the server has it", err);
    }
    config->bytes_per_second = bytes;
    return 0;
}

static int set_operations_per_second(struct export_config *config, const struct setting *setting,
                                     struct errtext *err)
{
    uint64_t number = 0;
    const char *digit = setting->value;
    for (; *digit >= '0' && *digit <= '9' && number <= LIMIT_RATE_OPERATIONS; digit++) {
        number = number * 10 + (uint64_t)(*digit - '0');
    }
    if (digit == setting->value || *digit != '\0' || number > LIMIT_RATE_OPERATIONS) {
        return refuse(setting, "a number from 1 to 10000000, or 0: as the server has it", err);
    }
    config->operations_per_second = number;
    return 0;
}

int export_config_set(struct export_config *config, const char *field, const char *called,
                      const char *value, struct errtext *err)
{
    static const struct {
        const char *name;
        int (*set)(struct export_config *config, const struct setting *setting,
                   struct errtext *err);
    } fields[] = {
        {"name", set_name},
        {"image", set_image},
        {"description", set_description},
        {"read-only", set_read_only},
        {"snapshot", set_snapshot},
        {"discard", set_discard},
        {"cache", set_cache},
        {"backing-format", set_backing_format},
        {"key-file", add_key_file},
        {"tls", set_tls},
        {"allow", add_origin},
        {"tls-allow", add_identity},
        {"bytes-per-second", set_bytes_per_second},
        {"operations-per-second", set_operations_per_second},
    };
    const struct setting setting = {called, value};
    for (unsigned i = 0; i < ARRAY_LEN(fields); i++) {
        if (strcmp(field, fields[i].name) == 0) {
            return fields[i].set(config, &setting, err);
        }
    }
    return err_set(err, EINVAL, "an export has no '%s'", field);
}

/* ---- Several ---- */

int export_configs_add(struct export_configs *configs, struct export_config *config,
                       struct errtext *err)
{
    if (configs->count == EXPORTS_MAX) {
        return err_set(err, EINVAL, "more than %u exports", EXPORTS_MAX);
    }
    struct export_config *more =
        reallocarray(configs->list, configs->count + 1, sizeof(*configs->list));
    if (!more) {
        return out_of_memory(err);
    }
    configs->list = more;
    configs->list[configs->count++] = *config;
    *config = (struct export_config){0};
    return 0;
}

int export_configs_add_copy(struct export_configs *configs, const struct export_config *config,
                            struct errtext *err)
{
    struct export_config copy;
    if (export_config_copy(&copy, config) < 0) {
        return out_of_memory(err);
    }
    int result = export_configs_add(configs, &copy, err);
    if (result < 0) {
        export_config_free(&copy);
    }
    return result;
}

void export_configs_free(struct export_configs *configs)
{
    for (unsigned i = 0; i < configs->count; i++) {
        export_config_free(&configs->list[i]);
    }
    free(configs->list);
    *configs = (struct export_configs){0};
}

static int check_tls(const struct export_config *config,
                     const struct export_surroundings *surroundings, struct errtext *err)
{
    bool identities = config->access.identity_count > 0;
    struct shown shown;
    if ((config->tls_only || identities) && !surroundings->tls) {
        return err_set(err, EINVAL,
                       "export '%s': %s needs a server with --tls-certificates or --tls-psk",
                       show(&shown, config->name), identities ? "tls-allow" : "tls require");
    }
    if (identities && surroundings->certificates && !surroundings->verify_peer) {
        return err_set(err, EINVAL,
                       "export '%s': tls-allow needs --tls-verify-peer where there are "
                       "certificates: a client that shows none has no name",
                       show(&shown, config->name));
    }
    return 0;
}

int export_configs_check(const struct export_configs *configs,
                         const struct export_surroundings *surroundings, struct errtext *err)
{
    struct shown shown;
    for (unsigned i = 0; i < configs->count; i++) {
        const struct export_config *config = &configs->list[i];
        for (unsigned j = 0; j < i; j++) {
            if (strcmp(config->name, configs->list[j].name) == 0) {
                return err_set(err, EINVAL,
                               "two exports have the name '%s', of the images %s and %s: names "
                               "must differ",
                               show(&shown, config->name), configs->list[j].image, config->image);
            }
        }
        int result = check_tls(config, surroundings, err);
        if (result < 0) {
            return result;
        }
    }
    return 0;
}
