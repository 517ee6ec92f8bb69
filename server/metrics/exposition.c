/* SPDX-License-Identifier: BSD-2-Clause */
/*
 * One metric after the other, each with its help and type and then all that have it, as the format
 * wants it. What a metric is stands in one row of a table.
 */
#include "metrics/exposition.h"

#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>

#include "base/check.h"
#include "export/statistics.h"

enum unit { COUNT, SECONDS }; /* SECONDS: from nanoseconds */

struct metric {
    const char *name;
    const char *type;
    const char *help;
    enum unit unit;
};

static void head(FILE *out, const char *name, const char *type, const char *help)
{
    fprintf(out, "# HELP %s %s\n# TYPE %s %s\n", name, help, name, type);
}

static void put_number(FILE *out, uint64_t value, enum unit unit)
{
    if (unit == SECONDS) {
        fprintf(out, " %" PRIu64 ".%09" PRIu64 "\n", value / 1000000000U, value % 1000000000U);
    } else {
        fprintf(out, " %" PRIu64 "\n", value);
    }
}

/* A label's value: any UTF-8 but for backslash, quote and line end, which are escaped. */
static void put_label(FILE *out, const char *name, const char *value)
{
    fprintf(out, "%s=\"", name);
    for (; *value; value++) {
        if (*value == '\n') {
            fputs("\\n", out);
        } else {
            fprintf(out, "%s%c", *value == '\\' || *value == '"' ? "\\" : "", *value);
        }
    }
    fputc('"', out);
}

static void put_export(FILE *out, const struct export_statistics *export)
{
    put_label(out, "export", export_label(export->name));
}

/* ---- The process ---- */

static void put_plain(FILE *out, const struct metric *metric, uint64_t value)
{
    head(out, metric->name, metric->type, metric->help);
    fputs(metric->name, out);
    put_number(out, value, metric->unit);
}

static void put_process(FILE *out, const struct server_statistics *s)
{
    head(out, "qcowd_build_info", "gauge", "The version that runs; always 1.");
    fputs("qcowd_build_info{version=\"" QCOWD_VERSION "\"} 1\n", out);
    const struct {
        struct metric metric;
        uint64_t value;
    } rows[] = {
        {{"qcowd_start_time_seconds", "gauge", "When the server started, since the epoch.", COUNT},
         s->started_seconds},
        {{"qcowd_cpu_seconds_total", "counter", "Processor time of all threads.", SECONDS},
         s->cpu_ns},
        {{"qcowd_memory_peak_bytes", "gauge", "The most memory that was resident.", COUNT},
         s->memory_peak_bytes},
        {{"qcowd_connections", "gauge", "Connections, those in the handshake as well.", COUNT},
         s->connections},
        {{"qcowd_connections_limit", "gauge", "Connections that there may be.", COUNT},
         s->connections_most},
    };
    for (unsigned i = 0; i < ARRAY_LEN(rows); i++) {
        put_plain(out, &rows[i].metric, rows[i].value);
    }
}

static void put_loops(FILE *out, const struct server_statistics *s)
{
    static const struct metric cpu = {"qcowd_loop_cpu_seconds_total", "counter",
                                      "Processor time of a loop's thread: how busy it is.",
                                      SECONDS};
    static const struct metric used = {"qcowd_loop_payload_bytes", "gauge",
                                       "Payload that requests of a loop hold.", COUNT};
    static const struct metric most = {"qcowd_loop_payload_limit_bytes", "gauge",
                                       "Payload that requests of a loop may hold.", COUNT};
    const struct metric *const metrics[] = {&cpu, &used, &most};
    for (unsigned m = 0; m < ARRAY_LEN(metrics); m++) {
        head(out, metrics[m]->name, metrics[m]->type, metrics[m]->help);
        for (unsigned i = 0; i < s->loop_count; i++) {
            const struct loop_statistics *loop = &s->loops[i];
            fprintf(out, "%s{loop=\"%u\"}", metrics[m]->name, i);
            put_number(out,
                       m == 0   ? loop->cpu_ns
                       : m == 1 ? loop->bytes_used
                                : loop->bytes_total,
                       metrics[m]->unit);
        }
    }
}

/* ---- Commands ---- */

static uint64_t requests_of(const struct command_counters *c)
{
    return c->requests;
}

static uint64_t errors_of(const struct command_counters *c)
{
    return c->errors;
}

static uint64_t bytes_of(const struct command_counters *c)
{
    return c->bytes;
}

static void put_command_labels(FILE *out, const struct export_statistics *export, unsigned command)
{
    put_export(out, export);
    fprintf(out, ",command=\"%s\"", counted_command_name(command));
}

static void put_durations(FILE *out, const struct export_statistics *export, unsigned command)
{
    const struct command_counters *counters = &export->counters.commands[command];
    uint64_t sum = 0;

    for (unsigned step = 0; step < COUNTED_STEPS; step++) {
        uint64_t end_ns = counted_step_end_ns(step);
        sum += counters->took[step];
        fputs("qcowd_request_duration_seconds_bucket{", out);
        put_command_labels(out, export, command);
        if (end_ns == UINT64_MAX) {
            fputs(",le=\"+Inf\"}", out);
        } else {
            fprintf(out, ",le=\"%.6f\"}", (double)end_ns / 1e9);
        }
        put_number(out, sum, COUNT);
    }
    fputs("qcowd_request_duration_seconds_sum{", out);
    put_command_labels(out, export, command);
    fputc('}', out);
    put_number(out, counters->took_ns, SECONDS);
    fputs("qcowd_request_duration_seconds_count{", out);
    put_command_labels(out, export, command);
    fputc('}', out);
    put_number(out, sum, COUNT);
}

static void put_commands(FILE *out, const struct server_statistics *s)
{
    static const struct {
        struct metric metric;
        uint64_t (*value)(const struct command_counters *counters);
    } rows[] = {
        {{"qcowd_requests_total", "counter", "Requests that were answered.", COUNT}, requests_of},
        {{"qcowd_request_errors_total", "counter", "Requests that were answered by an error.",
          COUNT},
         errors_of},
        {{"qcowd_request_bytes_total", "counter", "Bytes of the export that requests were about.",
          COUNT},
         bytes_of},
    };
    for (unsigned row = 0; row < ARRAY_LEN(rows); row++) {
        head(out, rows[row].metric.name, rows[row].metric.type, rows[row].metric.help);
        for (unsigned i = 0; i < s->export_count; i++) {
            for (unsigned command = 0; command < COUNTED_COMMANDS; command++) {
                fprintf(out, "%s{", rows[row].metric.name);
                put_command_labels(out, &s->exports[i], command);
                fputc('}', out);
                put_number(out, rows[row].value(&s->exports[i].counters.commands[command]), COUNT);
            }
        }
    }
    head(out, "qcowd_request_duration_seconds", "histogram",
         "From a request's coming in to its reply's leaving.");
    for (unsigned i = 0; i < s->export_count; i++) {
        for (unsigned command = 0; command < COUNTED_COMMANDS; command++) {
            put_durations(out, &s->exports[i], command);
        }
    }
}

/* ---- Exports and their images ---- */

#define IMAGE_VALUE(name, expression)                       \
    static uint64_t name(const struct export_statistics *e) \
    {                                                       \
        return (expression);                                \
    }
IMAGE_VALUE(in_flight, e->counters.in_flight)
IMAGE_VALUE(connections, e->connections)
IMAGE_VALUE(size_bytes, e->size_bytes)
IMAGE_VALUE(file_bytes, e->image.file_bytes)
IMAGE_VALUE(free_bytes, e->image.free_bytes)
IMAGE_VALUE(cluster_bytes, e->image.cluster_bytes)
IMAGE_VALUE(allocated, e->image.clusters_allocated)
IMAGE_VALUE(freed, e->image.clusters_freed)
IMAGE_VALUE(quarantined, e->image.clusters_quarantined)
IMAGE_VALUE(slices_dirty, e->image.slices_dirty)
IMAGE_VALUE(slices_cached, e->image.slices_cached)
IMAGE_VALUE(slices_most, e->image.slices_most)
IMAGE_VALUE(slice_hits, e->image.slice_hits)
IMAGE_VALUE(slice_misses, e->image.slice_misses)
IMAGE_VALUE(commits, e->image.commits)
IMAGE_VALUE(commit_ns, e->image.commit_ns)
IMAGE_VALUE(fsyncs, e->image.fsyncs)
IMAGE_VALUE(fsync_ns, e->image.fsync_ns)
IMAGE_VALUE(bitmaps, e->image.bitmaps)
IMAGE_VALUE(failed, e->image.failed)
IMAGE_VALUE(corrupt, e->image.corrupt)

static void put_exports(FILE *out, const struct server_statistics *s)
{
    static const struct {
        struct metric metric;
        uint64_t (*value)(const struct export_statistics *export);
    } rows[] = {
        {{"qcowd_requests_in_flight", "gauge", "Requests that are not answered yet.", COUNT},
         in_flight},
        {{"qcowd_export_connections", "gauge", "Connections that chose the export.", COUNT},
         connections},
        {{"qcowd_image_size_bytes", "gauge", "Of the disk.", COUNT}, size_bytes},
        {{"qcowd_image_file_bytes", "gauge", "Length of the image file.", COUNT}, file_bytes},
        {{"qcowd_image_host_free_bytes", "gauge",
          "Left in the file system of the image; absent where that is not known.", COUNT},
         free_bytes},
        {{"qcowd_image_cluster_bytes", "gauge", "A cluster's size.", COUNT}, cluster_bytes},
        {{"qcowd_image_clusters_allocated_total", "counter", "Clusters taken since it was opened.",
          COUNT},
         allocated},
        {{"qcowd_image_clusters_freed_total", "counter", "Clusters given back since then.", COUNT},
         freed},
        {{"qcowd_image_clusters_quarantined", "gauge",
          "Freed clusters that wait until a commit is durable and no request can touch them.",
          COUNT},
         quarantined},
        {{"qcowd_image_slices_dirty", "gauge", "Pieces of metadata that a commit will write.",
          COUNT},
         slices_dirty},
        {{"qcowd_image_slices_cached", "gauge", "Pieces of metadata in memory.", COUNT},
         slices_cached},
        {{"qcowd_image_slices_limit", "gauge", "Pieces of metadata that may be in memory.", COUNT},
         slices_most},
        {{"qcowd_image_slice_hits_total", "counter", "Look-ups that found metadata in memory.",
          COUNT},
         slice_hits},
        {{"qcowd_image_slice_misses_total", "counter", "Look-ups that had to read it.", COUNT},
         slice_misses},
        {{"qcowd_image_commits_total", "counter", "Commits that were finished.", COUNT}, commits},
        {{"qcowd_image_commit_seconds_total", "counter", "Time that they took.", SECONDS},
         commit_ns},
        {{"qcowd_image_fsyncs_total", "counter", "Calls of fsync.", COUNT}, fsyncs},
        {{"qcowd_image_fsync_seconds_total", "counter", "Time that they took.", SECONDS}, fsync_ns},
        {{"qcowd_image_bitmaps", "gauge", "Dirty bitmaps on offer.", COUNT}, bitmaps},
        {{"qcowd_image_failed", "gauge", "1: a write of metadata failed, no more are accepted.",
          COUNT},
         failed},
        {{"qcowd_image_corrupt", "gauge", "1: damage was met in the image.", COUNT}, corrupt},
    };
    for (unsigned row = 0; row < ARRAY_LEN(rows); row++) {
        head(out, rows[row].metric.name, rows[row].metric.type, rows[row].metric.help);
        for (unsigned i = 0; i < s->export_count; i++) {
            uint64_t value = rows[row].value(&s->exports[i]);
            if (value == UINT64_MAX) {
                continue;
            }
            fprintf(out, "%s{", rows[row].metric.name);
            put_export(out, &s->exports[i]);
            fputc('}', out);
            put_number(out, value, rows[row].metric.unit);
        }
    }
}

char *exposition(const struct server_statistics *statistics, size_t *len)
{
    char *text = NULL;
    FILE *out = open_memstream(&text, len);

    if (!out) {
        return NULL;
    }
    put_process(out, statistics);
    put_loops(out, statistics);
    put_exports(out, statistics);
    put_commands(out, statistics);
    if (fclose(out) != 0) {
        free(text);
        return NULL;
    }
    return text;
}
