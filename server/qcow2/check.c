/* SPDX-License-Identifier: BSD-2-Clause */
/*
 * The order of a check: walk all references, compare, and if asked repair. Whatever was repaired is
 * judged by a second, fresh check, which is what the result then says: a repair that only believes
 * itself would be worth little.
 */
#include "qcow2/check.h"

#include <errno.h>
#include <inttypes.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/limits.h"
#include "qcow2/check_state.h"

#define FINDING_LINES_MAX 1000U

__attribute__((format(printf, 3, 0))) static void
say(struct check_state *state, const char *severity, const char *format, va_list args)
{
    char text[384];
    char line[448];

    if (state->quiet || !state->options->finding || state->finding_lines++ >= FINDING_LINES_MAX) {
        return;
    }
    vsnprintf(text, sizeof(text), format, args);
    snprintf(line, sizeof(line), "%s: %s", severity, text);
    state->options->finding(state->options->arg, line);
}

void check_corruption(struct check_state *state, const char *format, ...)
{
    va_list args;
    va_start(args, format);
    say(state, "error", format, args);
    va_end(args);
    state->result->corruptions++;
}

void check_leak(struct check_state *state, const char *format, ...)
{
    va_list args;
    va_start(args, format);
    say(state, "leak", format, args);
    va_end(args);
    state->result->leaks++;
}

void check_note(struct check_state *state, const char *line)
{
    if (state->options->finding) {
        state->options->finding(state->options->arg, line);
    }
}

void check_progress(struct check_state *state, unsigned from_permille, unsigned to_permille,
                    uint64_t done, uint64_t total)
{
    if (state->quiet || !state->options->progress || total == 0) {
        return;
    }
    double share = (double)done / (double)total;
    unsigned permille = from_permille + (unsigned)((double)(to_permille - from_permille) * share);
    if (permille > state->last_permille) {
        state->last_permille = permille;
        state->options->progress(state->options->arg, permille);
    }
}

int check_failed(struct check_state *state, int rc, const char *what)
{
    if (rc == -ENOMEM) {
        return err_set(state->err, ENOMEM,
                       "%s: cannot check: out of memory, or more than %llu GiB needed", state->path,
                       LIMIT_CHECK_BYTES / GIB);
    }
    return err_set(state->err, -rc, "%s: cannot check: %s: %s", state->path, what, strerror(-rc));
}

int co_check_read(struct check_state *state, uint64_t offset, void *buf, size_t len, bool *is_hole)
{
    struct disk *disk = state->disk;

    if (offset >= disk->size_bytes) {
        *is_hole = true;
        return 0;
    }
    if (offset < state->extent_start || offset >= state->extent_end) {
        bool extent_is_hole = false;
        uint64_t end = disk->size_bytes;
        int rc = disk->ops->co_next_extent(disk, offset, &extent_is_hole, &end);
        if (rc < 0) {
            extent_is_hole = false;
            end = disk->size_bytes;
        }
        state->extent_start = offset;
        state->extent_end = end;
        state->extent_is_hole = extent_is_hole;
    }
    *is_hole = state->extent_is_hole && state->extent_end >= MIN_OF(offset + len, disk->size_bytes);
    return *is_hole ? 0 : co_disk_read(disk, offset, buf, len);
}

static void state_init(struct check_state *state, struct disk *disk, struct header *header,
                       const struct check_options *options, struct check_result *result,
                       struct errtext *err)
{
    *state = (struct check_state){
        .disk = disk,
        .header = header,
        .geo = &header->geo,
        .options = options,
        .result = result,
        .err = err,
        .budget_bytes = LIMIT_CHECK_BYTES,
    };
    err_sanitise(state->path, sizeof(state->path), disk->path, strlen(disk->path));
    refmap_init(&state->refs, &state->budget_bytes);
    refmap_init(&state->exclusive, &state->budget_bytes);
    refmap_init(&state->tables, &state->budget_bytes);
    refmap_init(&state->active_tables, &state->budget_bytes);
    refmap_init(&state->table_places, &state->budget_bytes);
    refmap_init(&state->disk_counts, &state->budget_bytes);
    refmap_init(&state->dangling, &state->budget_bytes);
}

static void state_free(struct check_state *state)
{
    refmap_free(&state->refs);
    refmap_free(&state->exclusive);
    refmap_free(&state->tables);
    refmap_free(&state->active_tables);
    refmap_free(&state->table_places);
    refmap_free(&state->disk_counts);
    refmap_free(&state->dangling);
    free(state->reftable);
    free(state->block_states);
}

static void say_how_many_more(struct check_state *state)
{
    if (state->finding_lines > FINDING_LINES_MAX) {
        char line[96];
        snprintf(line, sizeof(line), "and %" PRIu64 " more findings",
                 state->finding_lines - FINDING_LINES_MAX);
        state->options->finding(state->options->arg, line);
    }
}

/* One whole judgement, nothing written. */
static int co_examine(struct check_state *state)
{
    *state->result = (struct check_result){
        .total_clusters = div_round_up(state->geo->size_bytes, state->geo->cluster_bytes),
    };
    int rc = co_check_walk(state);
    if (rc < 0) {
        return rc;
    }
    check_report_overlaps(state);
    rc = co_check_compare(state, COMPARE_REPORT);
    if (rc < 0) {
        return rc;
    }
    say_how_many_more(state);
    check_progress(state, 0, 1000, 1, 1);
    return 0;
}

/* Damaged bitmaps go first: what is left is examined anew, and their clusters are leaks. */
static int co_drop_bitmaps(struct check_state *state, bool *repaired)
{
    const struct check_state old = *state;
    uint32_t dropped = 0;
    int rc = co_check_drop_bitmaps(state, &dropped);
    if (rc < 0 || dropped == 0) {
        return rc;
    }
    char line[96];
    snprintf(line, sizeof(line), "%" PRIu32 " damaged bitmaps are dropped", dropped);
    check_note(state, line);
    *repaired = true;
    state_free(state);
    state_init(state, old.disk, old.header, old.options, old.result, old.err);
    state->quiet = true;
    return co_examine(state);
}

/* Examines; repairs what options ask for. *repaired: the image was written to. */
static int co_examine_and_repair(struct disk *disk, struct header *header,
                                 const struct check_options *options, struct check_result *result,
                                 struct errtext *err, bool *repaired)
{
    struct check_state state;

    state_init(&state, disk, header, options, result, err);
    int rc = co_examine(&state);
    struct check_result found = *result;
    if (rc == 0 && options->repair == CHECK_REPAIR_ALL && result->corruptions &&
        header->bitmap_count > 0) {
        rc = co_drop_bitmaps(&state, repaired);
    }
    if (rc == 0 && options->repair != CHECK_ONLY && (result->corruptions || result->leaks)) {
        *repaired = true;
        rc = co_check_repair(&state);
    }
    state_free(&state);
    /* What went with a bitmap is mended, too. */
    result->corruptions = MAX_OF(result->corruptions, found.corruptions);
    result->leaks = MAX_OF(result->leaks, found.leaks);
    return rc;
}

/* The verdict after a repair, by a check that knows nothing of the first one. */
static int co_judge_repair(struct disk *disk, struct header *header,
                           const struct check_options *options, struct check_result *result,
                           struct errtext *err)
{
    struct check_state state;
    struct check_result before = *result;

    state_init(&state, disk, header, options, result, err);
    state.quiet = true;
    int rc = co_examine(&state);
    state_free(&state);
    result->corruptions_fixed =
        before.corruptions > result->corruptions ? before.corruptions - result->corruptions : 0;
    result->leaks_fixed = before.leaks > result->leaks ? before.leaks - result->leaks : 0;
    return rc;
}

static int co_clear_damage_bits(struct disk *disk, struct header *header, struct errtext *err)
{
    uint64_t bits = QCOW2_INCOMPAT_DIRTY | QCOW2_INCOMPAT_CORRUPT;

    if (!(header->incompatible & bits)) {
        return 0;
    }
    int rc = co_header_set_features(disk, header, header->incompatible & ~bits, header->autoclear);
    if (rc == 0) {
        rc = co_disk_flush(disk);
    }
    return rc < 0
               ? err_set(err, -rc, "%s: cannot clear the dirty bit: %s", disk->path, strerror(-rc))
               : 0;
}

int co_qcow2_check(struct disk *disk, struct header *header, const struct check_options *options,
                   struct check_result *result, struct errtext *err)
{
    bool repaired = false;

    if (options->repair != CHECK_ONLY && !disk->writable) {
        return err_set(err, EROFS, "%s: cannot repair: the file is open read-only", disk->path);
    }
    int rc = co_examine_and_repair(disk, header, options, result, err, &repaired);
    if (rc == 0 && repaired) {
        rc = co_judge_repair(disk, header, options, result, err);
    }
    if (rc == 0 && options->repair == CHECK_REPAIR_ALL && result->corruptions == 0) {
        rc = co_clear_damage_bits(disk, header, err);
    }
    return rc;
}
