/* SPDX-License-Identifier: BSD-2-Clause */
/* Every change makes a new list, and only when that is applied it takes the place of the old. */
#include "export/desired.h"

#include <errno.h>
#include <string.h>

#include "export/export_table.h"

struct shown {
    char text[100];
};

static const char *show(struct shown *shown, const char *name)
{
    return err_sanitise(shown->text, sizeof(shown->text), name, strlen(name));
}

void desired_init(struct desired *desired, struct export_table *table,
                  const struct serve_config *serve, struct export_configs *first)
{
    *desired = (struct desired){.table = table, .serve = serve, .in_force = *first};
    *first = (struct export_configs){0};
    co_mutex_init(&desired->changing);
}

void desired_free(struct desired *desired)
{
    export_configs_free(&desired->in_force);
}

static bool has_name(const struct export_configs *configs, const char *name)
{
    for (unsigned i = 0; i < configs->count; i++) {
        if (strcmp(configs->list[i].name, name) == 0) {
            return true;
        }
    }
    return false;
}

/* Behind what is in *to, if keep() says so. */
static int copy_some(struct export_configs *to, const struct export_configs *from,
                     bool (*keep)(const struct export_configs *to, const struct export_config *one,
                                  const char *name),
                     const char *name, struct errtext *err)
{
    int result = 0;
    for (unsigned i = 0; i < from->count && result == 0; i++) {
        if (keep(to, &from->list[i], name)) {
            result = export_configs_add_copy(to, &from->list[i], err);
        }
    }
    return result;
}

static bool is_not_named(const struct export_configs *to, const struct export_config *one,
                         const char *name)
{
    (void)to;
    return !name || strcmp(one->name, name) != 0;
}

static bool was_added_and_is_missing(const struct export_configs *to,
                                     const struct export_config *one, const char *name)
{
    (void)name;
    return one->added_while_running && !has_name(to, one->name);
}

/* Applies a list, which then is in force, or is freed. */
static int co_apply(struct desired *desired, struct export_configs *wanted,
                    struct export_changes *changes, struct errtext *err)
{
    struct export_surroundings surroundings = serve_surroundings(desired->serve);
    int result = export_configs_check(wanted, &surroundings, err);
    if (result == 0) {
        result = co_export_table_apply(desired->table, wanted, changes, err);
    }
    if (result < 0) {
        export_configs_free(wanted);
        return result;
    }
    export_configs_free(&desired->in_force);
    desired->in_force = *wanted;
    return 0;
}

int co_desired_apply_first(struct desired *desired, struct errtext *err)
{
    struct export_changes changes;
    return co_export_table_apply(desired->table, &desired->in_force, &changes, err);
}

int co_desired_replace(struct desired *desired, struct export_configs *wanted,
                       struct export_changes *changes, struct errtext *err)
{
    co_mutex_lock(&desired->changing);
    int result = copy_some(wanted, &desired->in_force, was_added_and_is_missing, NULL, err);
    if (result < 0) {
        export_configs_free(wanted);
    } else {
        result = co_apply(desired, wanted, changes, err);
    }
    co_mutex_unlock(&desired->changing);
    return result;
}

static int co_add(struct desired *desired, struct export_config *config, struct errtext *err)
{
    struct export_configs wanted = {0};
    struct export_changes changes;
    struct shown shown;
    if (has_name(&desired->in_force, config->name)) {
        return err_set(err, EEXIST, "there is an export '%s' already", show(&shown, config->name));
    }
    int result = copy_some(&wanted, &desired->in_force, is_not_named, NULL, err);
    if (result == 0) {
        config->added_while_running = true;
        result = export_configs_add_copy(&wanted, config, err);
    }
    if (result < 0) {
        export_configs_free(&wanted);
        return result;
    }
    result = co_apply(desired, &wanted, &changes, err);
    if (result == 0) {
        export_config_free(config);
    }
    return result;
}

int co_desired_add(struct desired *desired, struct export_config *config, struct errtext *err)
{
    co_mutex_lock(&desired->changing);
    int result = co_add(desired, config, err);
    co_mutex_unlock(&desired->changing);
    return result;
}

struct served_export *desired_find(const struct desired *desired, const char *name)
{
    list_for_each(link, &desired->table->exports) {
        struct served_export *served = list_entry(link, struct served_export, link);
        if (served->shows && strcmp(served->config.name, name) == 0) {
            return served;
        }
    }
    return NULL;
}

static int co_remove(struct desired *desired, const char *name, bool hard, struct errtext *err)
{
    struct export_configs wanted = {0};
    struct export_changes changes;
    struct shown shown;
    if (!has_name(&desired->in_force, name)) {
        return err_set(err, ENOENT, "Export '%s' is not found", show(&shown, name));
    }
    struct served_export *served = desired_find(desired, name);
    if (!hard && served && nbd_export_is_used(&served->nbd)) {
        return err_set(err, EBUSY, "export '%s' still in use: mode 'hard' sends its clients away",
                       show(&shown, name));
    }
    int result = copy_some(&wanted, &desired->in_force, is_not_named, name, err);
    if (result < 0) {
        export_configs_free(&wanted);
        return result;
    }
    return co_apply(desired, &wanted, &changes, err);
}

int co_desired_remove(struct desired *desired, const char *name, bool hard, struct errtext *err)
{
    co_mutex_lock(&desired->changing);
    int result = co_remove(desired, name, hard, err);
    co_mutex_unlock(&desired->changing);
    return result;
}
