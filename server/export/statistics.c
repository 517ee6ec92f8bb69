/* SPDX-License-Identifier: BSD-2-Clause */
/* Counts are copied where they are kept, so that nobody locks anything on a request's way. */
#include "export/statistics.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <time.h>

#include "export/export_table.h"

static uint64_t started_seconds;

void statistics_begin(void)
{
    started_seconds = (uint64_t)time(NULL);
}

const char *export_label(const char *export_name)
{
    return *export_name ? export_name : "default";
}

static uint64_t clock_ns(clockid_t clock)
{
    struct timespec now;
    return clock_gettime(clock, &now) == 0
               ? (uint64_t)now.tv_sec * 1000000000U + (uint64_t)now.tv_nsec
               : 0;
}

/* ---- On the loop of what is looked at ---- */

struct export_look {
    const struct served_export *served;
    struct export_statistics *out;
};

static void co_look_at_export(void *arg)
{
    const struct export_look *look = arg;
    const struct served_export *served = look->served;
    struct image *image = served->nbd.image;
    struct export_statistics *out = look->out;

    out->counters = served->counters;
    out->size_bytes = image->size_bytes;
    out->image.free_bytes = UINT64_MAX;
    if (image->ops->co_statistics) {
        image->ops->co_statistics(image, &out->image);
    }
}

struct loop_look {
    const struct service_loop *loop;
    struct loop_statistics *out;
};

static void look_at_loop(void *arg)
{
    const struct loop_look *look = arg;

    *look->out = (struct loop_statistics){
        .cpu_ns = clock_ns(CLOCK_THREAD_CPUTIME_ID),
        .bytes_used = look->loop->bytes_in_flight.used,
        .bytes_total = look->loop->bytes_in_flight.total,
    };
}

/* ---- On the main loop ---- */

static unsigned count_users(const struct nbd_export *nbd)
{
    unsigned count = 0;
    if (!nbd_export_is_used(nbd)) {
        return 0;
    }
    list_for_each(link, &nbd->users) {
        count++;
    }
    return count;
}

static int co_take_exports(struct export_table *table, struct server_statistics *out)
{
    unsigned count = 0;
    list_for_each(link, &table->exports) {
        count++;
    }
    out->exports = calloc(count + 1, sizeof(*out->exports));
    if (!out->exports) {
        return -ENOMEM;
    }
    list_for_each(link, &table->exports) {
        struct served_export *served = list_entry(link, struct served_export, link);
        struct export_statistics *taken = &out->exports[out->export_count];
        struct export_look look = {served, taken};
        if (!served->shows) {
            continue;
        }
        taken->name = strdup(served->config.name);
        out->export_count++;
        if (!taken->name || co_loops_call(served->shows->loop, co_look_at_export, &look) < 0) {
            return -ENOMEM;
        }
        taken->connections = count_users(&served->nbd);
    }
    return 0;
}

int co_statistics_take(struct desired *desired, const struct listeners *listeners,
                       struct server_statistics *out)
{
    struct export_table *table = desired->table;
    struct loops *loops = table->loops;
    struct rusage usage = {0};

    *out = (struct server_statistics){
        .loop_count = loops->count,
        .connections = listeners->admission.admitted,
        .connections_most = listeners->admission.most,
        .cpu_ns = clock_ns(CLOCK_PROCESS_CPUTIME_ID),
        .started_seconds = started_seconds,
    };
    getrusage(RUSAGE_SELF, &usage);
    out->memory_peak_bytes = (uint64_t)usage.ru_maxrss * 1024;
    for (unsigned i = 0; i < loops->count; i++) {
        struct loop_look look = {&loops->loops[i], &out->loops[i]};
        if (co_loops_call(&loops->loops[i], look_at_loop, &look) < 0) {
            return -ENOMEM;
        }
    }
    co_mutex_lock(&desired->changing); /* no image is closed meanwhile */
    int result = co_take_exports(table, out);
    co_mutex_unlock(&desired->changing);
    return result;
}

void statistics_free(struct server_statistics *statistics)
{
    for (unsigned i = 0; i < statistics->export_count; i++) {
        free(statistics->exports[i].name);
    }
    free(statistics->exports);
    *statistics = (struct server_statistics){0};
}

uint64_t counters_quantile_ns(const struct command_counters *counters, unsigned per_mille)
{
    uint64_t wanted = div_round_up(counters->requests * per_mille, 1000);
    uint64_t seen = 0;

    for (unsigned step = 0; step < COUNTED_STEPS && counters->requests > 0; step++) {
        seen += counters->took[step];
        if (seen >= wanted) {
            return counted_step_end_ns(step);
        }
    }
    return 0;
}
