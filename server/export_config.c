/* SPDX-License-Identifier: BSD-2-Clause */
#include "export_config.h"

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

static int refuse(const char *field, const char *value, const char *allowed, struct errtext *err)
{
    struct shown shown;
    return err_set(err, EINVAL, "%s '%s': must be %s", field, show(&shown, value), allowed);
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
    access_free(&config->access);
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
    to->name = to->image = to->description = NULL;
    to->access = (struct access){0};
    if (!copy_text(&to->name, from->name) || !copy_text(&to->image, from->image) ||
        !copy_text(&to->description, from->description) ||
        access_copy(&to->access, &from->access) < 0) {
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
           same_text(a->description, b->description) && a->read_only == b->read_only &&
           a->direct == b->direct && a->trim == b->trim && a->tls_only == b->tls_only &&
           a->bytes_per_second == b->bytes_per_second &&
           a->operations_per_second == b->operations_per_second &&
           access_equal(&a->access, &b->access);
}

/* ---- Fields ---- */

static int set_wire_text(char **to, const char *field, const char *value, struct errtext *err)
{
    size_t len = strlen(value);
    if (len > LIMIT_NBD_STRING_BYTES) {
        return err_set(err, EINVAL, "%s: it has %zu bytes, at most %u are allowed", field, len,
                       LIMIT_NBD_STRING_BYTES);
    }
    if (!utf8_is_text(value, len)) {
        return refuse(field, value, "UTF-8", err);
    }
    char *copy = strdup(value);
    if (!copy) {
        return out_of_memory(err);
    }
    free(*to);
    *to = copy;
    return 0;
}

static int set_name(struct export_config *config, const char *value, struct errtext *err)
{
    return set_wire_text(&config->name, "name", value, err);
}

static int set_description(struct export_config *config, const char *value, struct errtext *err)
{
    return set_wire_text(&config->description, "description", value, err);
}

static int set_image(struct export_config *config, const char *value, struct errtext *err)
{
    if (*value == '\0') {
        return refuse("image", value, "the path of a qcow2 image", err);
    }
    char *copy = strdup(value);
    if (!copy) {
        return out_of_memory(err);
    }
    free(config->image);
    config->image = copy;
    return 0;
}

static int set_read_only(struct export_config *config, const char *value, struct errtext *err)
{
    static const char *const yes[] = {"true", "yes", "on"};
    static const char *const no[] = {"false", "no", "off"};
    for (unsigned i = 0; i < ARRAY_LEN(yes); i++) {
        if (strcmp(value, yes[i]) == 0 || strcmp(value, no[i]) == 0) {
            config->read_only = strcmp(value, yes[i]) == 0;
            return 0;
        }
    }
    return refuse("read-only", value, "true or false", err);
}

static int set_discard(struct export_config *config, const char *value, struct errtext *err)
{
    if (strcmp(value, "unmap") == 0) {
        config->trim = TRIM_UNMAP;
    } else if (strcmp(value, "ignore") == 0) {
        config->trim = TRIM_IGNORE;
    } else {
        return refuse("discard", value, "unmap or ignore", err);
    }
    return 0;
}

static int set_cache(struct export_config *config, const char *value, struct errtext *err)
{
    if (strcmp(value, "writeback") != 0 && strcmp(value, "none") != 0) {
        return refuse("cache", value, "writeback or none", err);
    }
    config->direct = strcmp(value, "none") == 0;
    return 0;
}

static int set_tls(struct export_config *config, const char *value, struct errtext *err)
{
    if (strcmp(value, "on") != 0 && strcmp(value, "require") != 0) {
        return refuse("tls", value,
                      "on (as the server has it) or require (without TLS the export is not there)",
                      err);
    }
    config->tls_only = strcmp(value, "require") == 0;
    return 0;
}

static int add_origin(struct export_config *config, const char *value, struct errtext *err)
{
    return access_allow_origin(&config->access, value, err);
}

static int add_identity(struct export_config *config, const char *value, struct errtext *err)
{
    return access_allow_identity(&config->access, value, err);
}

static int set_bytes_per_second(struct export_config *config, const char *value,
                                struct errtext *err)
{
    if (parse_size(value, &config->bytes_per_second) < 0) {
        return refuse("bytes-per-second", value,
                      "a number of bytes, with k, M, G, T, P or E for larger units; 0: no limit",
                      err);
    }
    return 0;
}

static int set_operations_per_second(struct export_config *config, const char *value,
                                     struct errtext *err)
{
    uint64_t number = 0;
    const char *digit = value;
    for (; *digit >= '0' && *digit <= '9' && number <= UINT32_MAX; digit++) {
        number = number * 10 + (uint64_t)(*digit - '0');
    }
    if (digit == value || *digit != '\0' || number > UINT32_MAX) {
        return refuse("operations-per-second", value, "a number below 2^32; 0: no limit", err);
    }
    config->operations_per_second = number;
    return 0;
}

int export_config_set(struct export_config *config, const char *field, const char *value,
                      struct errtext *err)
{
    static const struct {
        const char *name;
        int (*set)(struct export_config *config, const char *value, struct errtext *err);
    } fields[] = {
        {"name", set_name},
        {"image", set_image},
        {"description", set_description},
        {"read-only", set_read_only},
        {"discard", set_discard},
        {"cache", set_cache},
        {"tls", set_tls},
        {"allow", add_origin},
        {"tls-allow", add_identity},
        {"bytes-per-second", set_bytes_per_second},
        {"operations-per-second", set_operations_per_second},
    };
    for (unsigned i = 0; i < ARRAY_LEN(fields); i++) {
        if (strcmp(field, fields[i].name) == 0) {
            return fields[i].set(config, value, err);
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
