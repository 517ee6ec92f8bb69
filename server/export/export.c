/* SPDX-License-Identifier: BSD-2-Clause */
/*
 * Exports and images by themselves: making, opening, offering, closing. What a new configuration
 * means is export_change.c's.
 */
#include "export/export.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "base/log.h"
#include "export/export_table.h"
#include "filter/logged.h"

void export_table_init(struct export_table *table, struct loops *loops,
                       const struct serve_config *serve)
{
    *table = (struct export_table){.loops = loops, .serve = serve};
    list_init(&table->exports);
    list_init(&table->images);
}

void export_table_stop(struct export_table *table)
{
    table->stopping = true;
}

struct nbd_service *export_table_service(const struct export_table *table)
{
    return &loops_main(table->loops)->service;
}

struct world *export_table_world(const struct export_table *table)
{
    return loops_main(table->loops)->runtime.world;
}

/* ---- Images ---- */

struct image_job {
    struct export_table *table;
    struct open_image *open;
    struct image *image;
    struct errtext *err;
    int result;
};

static int co_add_log(const struct image_job *job, struct world *world, struct image **image)
{
    struct logged_options logged = {.trim_ignored = job->open->trim == TRIM_IGNORE};
    struct errtext close_err = {.text = ""};
    struct image *inner = *image;
    int result =
        co_logged_open(world, inner, job->table->serve->log_writes, &logged, image, job->err);
    if (result < 0) {
        int closed = inner->ops->co_close(inner, &close_err);
        if (closed < 0) {
            log_error("%s", close_err.text);
        }
    }
    return result;
}

struct key_reading {
    const struct key_files *files;
    struct key_ring *ring;
    struct errtext *err;
    int result;
};

static void read_keys(void *arg)
{
    struct key_reading *reading = arg;
    reading->result = key_ring_read(reading->files, reading->ring, reading->err);
}

/* On the image's loop. */
static void co_open_there(void *arg)
{
    struct image_job *job = arg;
    struct world *world = job->open->loop->runtime.world;
    struct key_ring ring;
    struct key_reading reading = {&job->open->key_files, &ring, job->err, 0};
    world->ops->co_work(world, read_keys, &reading);
    job->result = reading.result;
    if (job->result < 0) {
        return;
    }
    struct qcow2_open_options options = {
        .read_only = !job->open->writable,
        .direct = job->open->direct,
        .trim = job->open->trim,
        .backing_format = job->open->backing_format,
        .snapshot = job->open->snapshot,
        .keys = ring.keys,
        .key_count = ring.count,
    };
    job->result = co_qcow2_open(world, job->open->path, &options, &job->image, job->err);
    key_ring_wipe(&ring);
    if (job->result == 0 && job->table->serve->log_writes) {
        job->result = co_add_log(job, world, &job->image);
    }
}

static void co_close_there(void *arg)
{
    struct image_job *job = arg;
    job->result = job->image->ops->co_close(job->image, job->err);
}

static void end_there(void *arg)
{
    struct image_job *job = arg;
    job->image->ending = true;
}

int co_open_image(struct export_table *table, struct open_image *open, struct errtext *err)
{
    struct image_job job = {.table = table, .open = open, .err = err};
    open->loop = loops_place(table->loops);
    co_loops_call_surely(open->loop, co_open_there, &job);
    if (job.result < 0) {
        loops_leave(open->loop);
        return job.result;
    }
    open->image = job.image;
    if (table->serve->log_writes) {
        table->logged = job.image;
    }
    return 0;
}

void co_close_image(struct export_table *table, struct open_image *open)
{
    struct errtext err = {.text = ""};
    struct image_job job = {.table = table, .open = open, .image = open->image, .err = &err};
    if (!open->image) {
        return;
    }
    if (table->logged == open->image) {
        table->logged = NULL; /* no more marks */
    }
    open->image = NULL;
    co_loops_call_surely(open->loop, co_close_there, &job);
    loops_leave(open->loop);
    if (job.result < 0) {
        log_error("%s", err.text);
        table->close_failed = true;
    }
}

void co_end_image(struct export_table *table, struct open_image *open)
{
    struct image_job job = {.table = table, .open = open, .image = open->image};
    co_loops_call_surely(open->loop, end_there, &job);
}

void open_image_free(struct open_image *open)
{
    if (open) {
        list_remove(&open->link);
        key_files_free(&open->key_files);
        free(open->snapshot);
        free(open->path);
        free(open);
    }
}

/* ---- Exports ---- */

static struct served_export *served_of(const struct nbd_export *nbd)
{
    return container_of(nbd, struct served_export, nbd);
}

static bool admits(const struct nbd_export *nbd, const struct stream *stream)
{
    return access_admits(&served_of(nbd)->config.access, stream->origin, stream->identity);
}

static void released(struct nbd_export *nbd)
{
    struct served_export *served = served_of(nbd);
    export_config_free(&served->config);
    free(served);
}

/* What the configuration says, as the protocol wants to know it. */
static void settle(struct served_export *served, const struct serve_limits *limits)
{
    const struct export_config *config = &served->config;
    struct nbd_export *nbd = &served->nbd;
    bool identities = config->access.identity_count > 0;
    nbd->name = config->name;
    nbd->description = config->description;
    nbd->tls_only = config->tls_only || identities;
    nbd->admits = config->access.origin_count > 0 || identities ? admits : NULL;
    rate_limit_set(&served->rate,
                   config->bytes_per_second ? config->bytes_per_second : limits->bytes_per_second,
                   config->operations_per_second ? config->operations_per_second
                                                 : limits->operations_per_second);
}

struct served_export *served_export_create(struct export_table *table,
                                           const struct export_config *config)
{
    struct served_export *served = calloc(1, sizeof(*served));
    if (!served || export_config_copy(&served->config, config) < 0) {
        free(served);
        return NULL;
    }
    list_init(&served->link);
    rate_limit_init(&served->rate, 0, 0);
    served->nbd.read_only = config->read_only;
    /* Safe: a flush on one connection covers what every other was told is written (O4). */
    served->nbd.multi_conn = true;
    served->nbd.rate = &served->rate;
    served->nbd.counters = &served->counters;
    served->nbd.released = released;
    settle(served, &table->serve->limits);
    nbd_export_hold(&served->nbd);
    return served;
}

void served_export_show(struct served_export *served, struct open_image *open)
{
    served->shows = open;
    served->nbd.image = open->image;
    served->nbd.home = &open->loop->service;
    open->exports++;
}

void served_export_drop(struct served_export *served)
{
    list_remove(&served->link);
    if (served->shows) {
        served->shows->exports--;
        served->shows = NULL;
    }
    nbd_export_release(&served->nbd);
}

void served_export_change(struct export_table *table, struct served_export *served,
                          struct export_config *config)
{
    struct export_config before = served->config;
    char *name = config->name;
    served->config = *config;
    /* It is the same text, at the address that others know. */
    served->config.name = before.name;
    before.name = name;
    settle(served, &table->serve->limits);
    export_config_free(&before);
    *config = (struct export_config){0};
}

struct nbd_export_list *export_table_list(const struct list *exports)
{
    unsigned count = 0;
    for (const struct list *link = exports->next; link != exports; link = link->next) {
        count++;
    }
    struct nbd_export **ready = calloc(count + 1, sizeof(*ready));
    count = 0;
    for (struct list *link = exports->next; link != exports && ready; link = link->next) {
        struct served_export *served = list_entry(link, struct served_export, link);
        if (served->shows) {
            ready[count++] = &served->nbd;
        }
    }
    struct nbd_export_list *list = ready ? nbd_export_list_create(ready, count) : NULL;
    free(ready);
    return list;
}

/* ---- The end ---- */

int co_export_table_close(struct export_table *table)
{
    nbd_service_offer(export_table_service(table), NULL);
    while (!list_empty(&table->exports)) {
        served_export_drop(list_entry(table->exports.next, struct served_export, link));
    }
    while (!list_empty(&table->images)) {
        struct open_image *open = list_entry(table->images.next, struct open_image, link);
        co_close_image(table, open);
        open_image_free(open);
    }
    return table->close_failed ? -EIO : 0;
}
