/* SPDX-License-Identifier: BSD-2-Clause */
/*
 * From the exports that there are to those that are wanted.
 *
 *     plan      which files, opened how; which exports go on. Nothing is opened, nothing waits.
 *     open      files that are not open yet; and a look whether those can be that must be closed
 *               first. Up to here anything may fail, and nothing has happened.
 *     commit    new settings, new list: one step, without a wait (O7).
 *     retire    clients of what is gone finish and leave, its images are closed.
 *     reopen    files that had to be closed first.
 */
#include <errno.h>
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>

#include "base/check.h"
#include "base/log.h"
#include "export/export_table.h"

struct wanted_image {
    dev_t device;
    ino_t inode;
    bool found; /* else the path names nothing that can be looked at: opening says why */
    bool writable;
    const struct export_config *first; /* of the exports that show it */
    struct open_image *open;           /* in the table already, or made for it */
    struct open_image *in_the_way;     /* the same file, opened in another way */
};

struct wanted_export {
    struct export_config config;
    struct wanted_image *image;
    struct served_export *before; /* of the same name */
    struct served_export *served; /* it goes on, or is made */
};

struct change {
    struct export_table *table;
    struct wanted_export *exports;
    unsigned export_count;
    struct wanted_image *images;
    unsigned image_count;
    struct nbd_export_list *offer;
    struct list retired;
    struct export_changes *changes;
};

/* A name for a message. */
struct shown {
    char text[100];
};

static const char *show(struct shown *shown, const char *name)
{
    return err_sanitise(shown->text, sizeof(shown->text), name, strlen(name));
}

static int out_of_memory(struct errtext *err)
{
    return err_set(err, ENOMEM, "out of memory");
}

static bool goes_on(const struct wanted_export *wanted)
{
    return wanted->served && wanted->served == wanted->before;
}

/* Whether it is opened for this change: before anything else happens, or later. */
static bool is_new(const struct wanted_image *image)
{
    return !list_linked(&image->open->link);
}

/* ---- Plan ---- */

static void identify(struct wanted_image *image, const char *path)
{
    struct stat status;
    image->found = stat(path, &status) == 0;
    if (image->found && S_ISBLK(status.st_mode)) {
        image->device = status.st_rdev;
        image->inode = 0; /* whatever name the device has */
    } else if (image->found) {
        image->device = status.st_dev;
        image->inode = status.st_ino;
    }
}

static bool is_same_snapshot(const char *a, const char *b)
{
    return a && b ? strcmp(a, b) == 0 : a == b;
}

static bool is_same_image(const struct wanted_image *a, const struct wanted_image *b)
{
    return a->found && b->found && a->device == b->device && a->inode == b->inode &&
           is_same_snapshot(a->first->snapshot, b->first->snapshot);
}

static int find_image(struct change *change, struct wanted_export *wanted, struct errtext *err)
{
    const struct export_config *config = &wanted->config;
    struct wanted_image image = {.first = config};
    struct shown one, other;
    identify(&image, config->image);
    for (unsigned i = 0; i < change->image_count && !wanted->image; i++) {
        if (is_same_image(&image, &change->images[i])) {
            wanted->image = &change->images[i];
        }
    }
    if (!wanted->image) {
        wanted->image = &change->images[change->image_count++];
        *wanted->image = image;
    }
    const struct export_config *first = wanted->image->first;
    const char *differs = first->direct != config->direct                   ? "cache"
                          : first->trim != config->trim                     ? "discard"
                          : first->backing_format != config->backing_format ? "backing-format"
                          : !key_files_equal(&first->key_files, &config->key_files) ? "key-file"
                                                                                    : NULL;
    if (differs) {
        return err_set(err, EINVAL,
                       "the exports '%s' and '%s' show the same image, %s: they need the same %s",
                       show(&one, first->name), show(&other, config->name), config->image, differs);
    }
    wanted->image->writable |= !config->read_only;
    return 0;
}

static struct served_export *find_served(const struct export_table *table, const char *name)
{
    list_for_each(link, &table->exports) {
        struct served_export *served = list_entry(link, struct served_export, link);
        if (strcmp(served->config.name, name) == 0) {
            return served;
        }
    }
    return NULL;
}

static struct open_image *find_open(const struct export_table *table,
                                    const struct wanted_image *image)
{
    list_for_each(link, &table->images) {
        struct open_image *open = list_entry(link, struct open_image, link);
        if (image->found && open->device == image->device && open->inode == image->inode &&
            is_same_snapshot(open->snapshot, image->first->snapshot)) {
            return open;
        }
    }
    return NULL;
}

/* The export of the same name shows the same file in the same way, if that stays open. */
static bool could_go_on(const struct wanted_export *wanted, const struct open_image *open)
{
    return wanted->before && wanted->before->shows == open &&
           wanted->before->config.read_only == wanted->config.read_only;
}

/*
 * What is open for writing, and need not be any more, stays so while a read-only export of it goes
 * on: its clients have nothing to do with that.
 */
static bool is_open_as_wanted(const struct change *change, const struct wanted_image *image,
                              const struct open_image *open)
{
    if (open->direct != image->first->direct || open->trim != image->first->trim ||
        open->backing_format != image->first->backing_format ||
        !key_files_equal(&open->key_files, &image->first->key_files)) {
        return false;
    }
    bool enough = open->writable == image->writable;
    for (unsigned i = 0; i < change->export_count && !enough && open->writable; i++) {
        const struct wanted_export *wanted = &change->exports[i];
        enough = wanted->image == image && could_go_on(wanted, open);
    }
    return enough;
}

static struct open_image *open_image_create(const struct wanted_image *image)
{
    struct open_image *open = calloc(1, sizeof(*open));
    char *path = strdup(image->first->image);
    if (!open || !path) {
        free(open);
        free(path);
        return NULL;
    }
    *open = (struct open_image){
        .path = path,
        .device = image->device,
        .inode = image->inode,
        .writable = image->writable,
        .direct = image->first->direct,
        .trim = image->first->trim,
        .backing_format = image->first->backing_format,
    };
    list_init(&open->link);
    if (image->first->snapshot) {
        open->snapshot = strdup(image->first->snapshot);
    }
    if ((image->first->snapshot && !open->snapshot) ||
        key_files_copy(&open->key_files, &image->first->key_files) < 0) {
        open_image_free(open);
        return NULL;
    }
    return open;
}

static int plan_images(struct change *change, struct errtext *err)
{
    for (unsigned i = 0; i < change->image_count; i++) {
        struct wanted_image *image = &change->images[i];
        struct open_image *open = find_open(change->table, image);
        if (open && is_open_as_wanted(change, image, open)) {
            image->open = open;
            continue;
        }
        image->in_the_way = open;
        image->open = open_image_create(image);
        if (!image->open) {
            return out_of_memory(err);
        }
    }
    return 0;
}

static int plan_exports(struct change *change, struct errtext *err)
{
    for (unsigned i = 0; i < change->export_count; i++) {
        struct wanted_export *wanted = &change->exports[i];
        wanted->served = could_go_on(wanted, wanted->image->open)
                             ? wanted->before
                             : served_export_create(change->table, &wanted->config);
        if (!wanted->served) {
            return out_of_memory(err);
        }
    }
    return 0;
}

static int plan(struct change *change, const struct export_configs *configs, struct errtext *err)
{
    change->exports = calloc(configs->count, sizeof(*change->exports));
    change->images = calloc(configs->count, sizeof(*change->images));
    if (!change->exports || !change->images) {
        return out_of_memory(err);
    }
    for (unsigned i = 0; i < configs->count; i++) {
        struct wanted_export *wanted = &change->exports[i];
        if (export_config_copy(&wanted->config, &configs->list[i]) < 0) {
            return out_of_memory(err);
        }
        change->export_count++;
        wanted->before = find_served(change->table, wanted->config.name);
        int result = find_image(change, wanted, err);
        if (result < 0) {
            return result;
        }
    }
    int result = plan_images(change, err);
    return result < 0 ? result : plan_exports(change, err);
}

/* What has not been committed is undone, the rest was handed on. */
static void co_change_end(struct change *change)
{
    for (unsigned i = 0; i < change->export_count; i++) {
        struct wanted_export *wanted = &change->exports[i];
        if (wanted->served && !list_linked(&wanted->served->link)) {
            served_export_drop(wanted->served);
        }
        export_config_free(&wanted->config);
    }
    for (unsigned i = 0; i < change->image_count; i++) {
        struct wanted_image *image = &change->images[i];
        if (image->open && is_new(image)) {
            co_close_image(change->table, image->open);
            open_image_free(image->open);
        }
    }
    nbd_export_list_release(change->offer);
    free(change->exports);
    free(change->images);
}

/* ---- Open ---- */

/* With several exports it must be said whose the trouble is. */
static void say_export(const struct change *change, const struct wanted_image *image,
                       struct errtext *err)
{
    struct shown shown;
    if (change->export_count > 1) {
        err_prefix(err, "export '%s'", show(&shown, image->first->name));
    }
}

/* Once clients are served, it is not the file's permissions alone that count. */
static void say_sandbox(const struct change *change, int result, struct errtext *err)
{
    struct errtext why = *err;
    if (result == -EACCES && change->table->serve->sandbox.mode != SANDBOX_OFF &&
        !list_empty(&change->table->images)) {
        err_set(err, EACCES,
                "%s; and its directory must be one of the sandbox, see --sandbox-allow", why.text);
    }
}

/*
 * It is open in another way, and so locked: but whether it is there, and may be opened as wanted,
 * can be told before its clients are sent away.
 */
static int co_look_at(const struct change *change, const struct wanted_image *image,
                      struct errtext *err)
{
    struct world *world = export_table_world(change->table);
    struct disk *disk;
    unsigned flags = DISK_NO_LOCK | (image->writable ? (unsigned)DISK_WRITABLE : 0U) |
                     (image->first->direct ? (unsigned)DISK_DIRECT : 0U);
    int result = world->ops->co_disk_open(world, image->open->path, flags, &disk, err);
    if (result == 0) {
        disk_close(disk);
    }
    return result;
}

static int co_open_new(struct change *change, struct errtext *err)
{
    int result = 0;
    for (unsigned i = 0; i < change->image_count && result == 0; i++) {
        struct wanted_image *image = &change->images[i];
        if (!is_new(image)) {
            continue;
        }
        result = image->in_the_way ? co_look_at(change, image, err)
                                   : co_open_image(change->table, image->open, err);
        if (result < 0) {
            say_sandbox(change, result, err);
            say_export(change, image, err);
        } else if (change->table->stopping) {
            result = err_set(err, ECANCELED, "the server is stopping");
        }
    }
    return result;
}

/* ---- Commit ---- */

/* Of what can be served now. */
static int make_offer(struct change *change, struct errtext *err)
{
    struct nbd_export **ready = calloc(change->export_count, sizeof(*ready));
    unsigned count = 0;
    for (unsigned i = 0; i < change->export_count && ready; i++) {
        const struct wanted_export *wanted = &change->exports[i];
        if (wanted->image->open->image) {
            ready[count++] = &wanted->served->nbd;
        }
    }
    change->offer = ready ? nbd_export_list_create(ready, count) : NULL;
    free(ready);
    return change->offer ? 0 : out_of_memory(err);
}

static void say_served(const struct change *change, const struct served_export *served)
{
    struct shown shown;
    if (change->export_count == 1) {
        return; /* there is nothing to tell apart */
    }
    log_info("export '%s': %s%s", show(&shown, served->config.name), served->config.image,
             served->config.read_only ? ", read-only" : "");
}

static void commit_export(struct change *change, struct wanted_export *wanted)
{
    struct served_export *served = wanted->served;
    if (!goes_on(wanted)) {
        change->changes->added += !wanted->before;
        change->changes->changed += wanted->before != NULL;
    } else if (!export_config_equal(&served->config, &wanted->config)) {
        change->changes->changed++;
        served_export_change(change->table, served, &wanted->config);
    }
    list_remove(&served->link);
    list_push_back(&change->table->exports, &served->link);
    if (!served->shows && wanted->image->open->image) {
        served_export_show(served, wanted->image->open);
        say_served(change, served);
    }
}

static void commit(struct change *change)
{
    struct export_table *table = change->table;
    list_splice_back(&change->retired, &table->exports);
    for (unsigned i = 0; i < change->export_count; i++) {
        commit_export(change, &change->exports[i]);
    }
    for (unsigned i = 0; i < change->image_count; i++) {
        struct open_image *open = change->images[i].open;
        if (!list_linked(&open->link)) {
            list_push_back(&table->images, &open->link);
        }
    }
    list_for_each(link, &change->retired) {
        const struct served_export *served = list_entry(link, struct served_export, link);
        if (!find_served(table, served->config.name)) {
            change->changes->removed++;
        }
    }
    nbd_service_offer(export_table_service(table), change->offer);
}

/* ---- Retire ---- */

static bool is_wanted(const struct change *change, const struct open_image *open)
{
    for (unsigned i = 0; i < change->image_count; i++) {
        if (change->images[i].open == open) {
            return true;
        }
    }
    return false;
}

/* All are told at once, and have the same time. */
static void co_tell_clients(struct change *change, uint64_t grace_ns)
{
    struct nbd_service *service = export_table_service(change->table);
    list_for_each(link, &change->retired) {
        co_nbd_dismiss(service, &list_entry(link, struct served_export, link)->nbd, grace_ns);
    }
    for (unsigned i = 0; i < change->export_count; i++) {
        const struct wanted_export *wanted = &change->exports[i];
        if (goes_on(wanted)) {
            change->changes->dismissed +=
                co_nbd_dismiss_unadmitted(service, &wanted->served->nbd, grace_ns);
        }
    }
}

static void co_wait_for_clients(struct change *change, uint64_t deadline_ns)
{
    struct export_table *table = change->table;
    struct nbd_service *service = export_table_service(table);
    list_for_each(link, &change->retired) {
        struct served_export *served = list_entry(link, struct served_export, link);
        bool gone = co_nbd_wait_unused(service, &served->nbd, deadline_ns);
        if (!gone && !is_wanted(change, served->shows)) {
            co_end_image(table, served->shows);
        }
    }
    list_for_each(link, &change->retired) {
        struct served_export *served = list_entry(link, struct served_export, link);
        bool gone = co_nbd_wait_unused(service, &served->nbd, UINT64_MAX);
        assert(gone);
        (void)gone;
    }
}

static void co_retire(struct change *change)
{
    struct export_table *table = change->table;
    struct world *world = export_table_world(table);
    uint64_t grace_ns = table->serve->shutdown_timeout_ms * 1000000ULL;
    uint64_t deadline_ns = world_now_ns(world) + grace_ns;
    co_tell_clients(change, grace_ns);
    co_wait_for_clients(change, deadline_ns);
    while (!list_empty(&change->retired)) {
        served_export_drop(list_entry(change->retired.next, struct served_export, link));
    }
    /* Nobody else takes images from the list or puts them there meanwhile. */
    list_for_each_safe(link, after, &table->images) {
        struct open_image *open = list_entry(link, struct open_image, link);
        if (!is_wanted(change, open)) {
            assert(open->exports == 0);
            co_close_image(table, open);
            open_image_free(open);
        }
    }
}

/* ---- Reopen ---- */

static void offer_again(struct export_table *table)
{
    struct nbd_export_list *list = export_table_list(&table->exports);
    if (!list) {
        log_error("out of memory: exports that were opened again are not listed");
        return;
    }
    nbd_service_offer(export_table_service(table), list);
    nbd_export_list_release(list);
}

/* Its exports are there again, or are lost until the next change. */
static void note_reopened(struct change *change, const struct wanted_image *image)
{
    for (unsigned i = 0; i < change->export_count; i++) {
        struct wanted_export *wanted = &change->exports[i];
        if (wanted->image != image) {
            continue;
        }
        if (image->open->image) {
            served_export_show(wanted->served, image->open);
            say_served(change, wanted->served);
        } else {
            change->changes->lost++;
            served_export_drop(wanted->served);
            wanted->served = NULL;
        }
    }
}

static void co_reopen(struct change *change)
{
    struct export_table *table = change->table;
    for (unsigned i = 0; i < change->image_count; i++) {
        struct wanted_image *image = &change->images[i];
        struct errtext err = {.text = ""};
        if (image->open->image || table->stopping) {
            continue;
        }
        int result = co_open_image(table, image->open, &err);
        note_reopened(change, image);
        if (result < 0) {
            log_error("%s", err.text);
            open_image_free(image->open);
            image->open = NULL;
        } else {
            offer_again(table);
        }
    }
}

int co_export_table_apply(struct export_table *table, const struct export_configs *wanted,
                          struct export_changes *changes, struct errtext *err)
{
    struct change change = {.table = table, .changes = changes};
    *changes = (struct export_changes){0};
    list_init(&change.retired);
    int result = plan(&change, wanted, err);
    if (result == 0) {
        result = co_open_new(&change, err);
    }
    if (result == 0) {
        result = make_offer(&change, err);
    }
    if (result == 0) {
        commit(&change);
        co_retire(&change);
        co_reopen(&change);
    }
    co_change_end(&change);
    return result;
}
