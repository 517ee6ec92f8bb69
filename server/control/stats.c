/* SPDX-License-Identifier: BSD-2-Clause */
/* qcowd-stats: what metrics show, for people and programs on the control socket. */
#include "control/commands.h"
#include "export/statistics.h"

static json_t *describe_command(const struct command_counters *counters)
{
    return json_pack("{s:I,s:I,s:I,s:I,s:I,s:I,s:I}", "requests", (json_int_t)counters->requests,
                     "errors", (json_int_t)counters->errors, "bytes", (json_int_t)counters->bytes,
                     "took-ns", (json_int_t)counters->took_ns, "p50-ns",
                     (json_int_t)counters_quantile_ns(counters, 500), "p99-ns",
                     (json_int_t)counters_quantile_ns(counters, 990), "p999-ns",
                     (json_int_t)counters_quantile_ns(counters, 999));
}

static json_t *describe_commands(const struct nbd_counters *counters)
{
    json_t *commands = json_object();

    for (unsigned i = 0; i < COUNTED_COMMANDS; i++) {
        if (json_object_set_new(commands, counted_command_name(i),
                                describe_command(&counters->commands[i])) < 0) {
            json_decref(commands);
            return NULL;
        }
    }
    return commands;
}

static json_t *describe_image(const struct image_statistics *image)
{
    json_t *described = json_pack(
        "{s:I,s:I,s:I,s:I,s:I,s:I,s:I,s:I,s:I,s:I,s:I,s:I,s:I,s:I,s:I,s:b,s:b}", "file-bytes",
        (json_int_t)image->file_bytes, "cluster-bytes", (json_int_t)image->cluster_bytes,
        "clusters-allocated", (json_int_t)image->clusters_allocated, "clusters-freed",
        (json_int_t)image->clusters_freed, "clusters-quarantined",
        (json_int_t)image->clusters_quarantined, "slices-dirty", (json_int_t)image->slices_dirty,
        "slices-cached", (json_int_t)image->slices_cached, "slices-limit",
        (json_int_t)image->slices_most, "slice-hits", (json_int_t)image->slice_hits, "slice-misses",
        (json_int_t)image->slice_misses, "commits", (json_int_t)image->commits, "commit-ns",
        (json_int_t)image->commit_ns, "fsyncs", (json_int_t)image->fsyncs, "fsync-ns",
        (json_int_t)image->fsync_ns, "bitmaps", (json_int_t)image->bitmaps, "failed", image->failed,
        "corrupt", image->corrupt);

    if (described && image->free_bytes != UINT64_MAX &&
        json_object_set_new(described, "host-free-bytes",
                            json_integer((json_int_t)image->free_bytes)) < 0) {
        json_decref(described);
        return NULL;
    }
    return described;
}

static json_t *describe_export(const struct export_statistics *export)
{
    return json_pack("{s:s,s:I,s:I,s:I,s:o,s:o}", "name", export_label(export->name), "size-bytes",
                     (json_int_t) export->size_bytes, "connections",
                     (json_int_t) export->connections, "in-flight",
                     (json_int_t) export->counters.in_flight, "commands",
                     describe_commands(&export->counters), "image", describe_image(&export->image));
}

static json_t *describe(const struct server_statistics *statistics)
{
    json_t *exports = json_array();
    json_t *loops = json_array();

    for (unsigned i = 0; i < statistics->export_count; i++) {
        json_array_append_new(exports, describe_export(&statistics->exports[i]));
    }
    for (unsigned i = 0; i < statistics->loop_count; i++) {
        const struct loop_statistics *loop = &statistics->loops[i];
        json_array_append_new(loops,
                              json_pack("{s:I,s:I,s:I}", "cpu-ns", (json_int_t)loop->cpu_ns,
                                        "payload-bytes", (json_int_t)loop->bytes_used,
                                        "payload-limit-bytes", (json_int_t)loop->bytes_total));
    }
    return json_pack("{s:s,s:I,s:I,s:I,s:I,s:I,s:o,s:o}", "version", QCOWD_VERSION,
                     "started-seconds", (json_int_t)statistics->started_seconds, "connections",
                     (json_int_t)statistics->connections, "connections-limit",
                     (json_int_t)statistics->connections_most, "cpu-ns",
                     (json_int_t)statistics->cpu_ns, "memory-peak-bytes",
                     (json_int_t)statistics->memory_peak_bytes, "loops", loops, "exports", exports);
}

int co_stats(struct control_call *call)
{
    struct server_statistics statistics;
    const struct control_host *host = &call->control->host;
    int result = co_statistics_take(host->desired, host->listeners, &statistics);

    call->result = result == 0 ? describe(&statistics) : NULL;
    statistics_free(&statistics);
    return call->result ? 0 : control_no_memory(call);
}
