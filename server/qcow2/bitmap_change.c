/* SPDX-License-Identifier: BSD-2-Clause */
/*
 * Changes to bitmaps, each made on a plan: a copy of the directory, with the bits of those that
 * differ beside it. Once the plan is on disk, it is what is in memory, too.
 */
#include <assert.h>
#include <errno.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/check.h"
#include "base/limits.h"
#include "qcow2/bitmap_store.h"
#include "qcow2/bitmaps.h"
#include "qcow2/engine.h"

struct planned {
    uint64_t id; /* 0: a new one */
    bool has_bits;
    bool own_bits; /* `bits` is new, and to be written; else they are those of the live one */
    struct bitmap bits;
};

struct plan {
    struct qcow2 *q;
    struct bitmap_directory directory;
    struct planned *planned; /* directory.count of them, of room_for */
    uint32_t room_for;
    uint64_t bits_bytes;
    struct cluster_list taken;
    struct cluster_list gone;
};

static struct live_bitmap *find_live(const struct bitmaps *bitmaps, uint64_t id)
{
    for (uint32_t i = 0; i < bitmaps->directory.count; i++) {
        if (bitmaps->live[i].id == id) {
            return &bitmaps->live[i];
        }
    }
    return NULL;
}

static const struct bitmap *planned_bits(const struct plan *plan, const struct planned *planned)
{
    return planned->own_bits ? &planned->bits : &find_live(&plan->q->bitmaps, planned->id)->bits;
}

static int plan_init(struct plan *plan, struct qcow2 *q, size_t changes)
{
    const struct bitmaps *bitmaps = &q->bitmaps;
    *plan = (struct plan){.q = q, .bits_bytes = bitmaps->bits_bytes};
    plan->room_for = (uint32_t)(bitmaps->directory.count + changes);
    plan->directory.bitmaps = calloc(plan->room_for, sizeof(*plan->directory.bitmaps));
    plan->planned = calloc(plan->room_for, sizeof(*plan->planned));
    int ret = plan->directory.bitmaps && plan->planned ? 0 : -ENOMEM;
    for (uint32_t i = 0; ret == 0 && i < bitmaps->directory.count; i++) {
        ret = stored_bitmap_copy(&plan->directory.bitmaps[i], &bitmaps->directory.bitmaps[i]);
        if (ret == 0) {
            plan->planned[i].id = bitmaps->live[i].id;
            plan->planned[i].has_bits = bitmaps->live[i].has_bits;
            plan->directory.count++;
        }
    }
    return ret;
}

static void plan_free(struct plan *plan)
{
    for (uint32_t i = 0; plan->planned && i < plan->directory.count; i++) {
        if (plan->planned[i].own_bits) {
            bitmap_free(&plan->planned[i].bits);
        }
    }
    free(plan->planned);
    if (plan->directory.bitmaps) {
        bitmap_directory_free(&plan->directory);
    }
    cluster_list_free(&plan->taken);
    cluster_list_free(&plan->gone);
}

/* Bits of its own for a bitmap of the plan, all clear. */
static int plan_new_bits(struct plan *plan, uint32_t number, struct errtext *err)
{
    struct planned *planned = &plan->planned[number];
    struct qcow2 *q = plan->q;
    if (planned->own_bits) {
        bitmap_clear_whole(&planned->bits);
        return 0;
    }
    if (bitmap_init(&planned->bits, q->geo.size_bytes,
                    plan->directory.bitmaps[number].granularity_bits) < 0) {
        return err_set(err, ENOMEM, "%s: out of memory for a bitmap", q->path);
    }
    planned->own_bits = true;
    planned->has_bits = true;
    return 0;
}

/* The old place of a bitmap that gets another one, or goes. */
static int co_plan_leave(struct plan *plan, uint32_t number, struct errtext *err)
{
    const struct planned *planned = &plan->planned[number];
    if (planned->id == 0) {
        return 0; /* it has none */
    }
    if (planned->own_bits) {
        return 0; /* noted before */
    }
    return co_bitmap_collect(plan->q, &plan->directory.bitmaps[number], &plan->gone, err);
}

static int refuse_change(const struct plan *plan, int errno_value, const char *name,
                         const char *what, struct errtext *err)
{
    char shown[BITMAP_NAME_SHOWN_BYTES];
    return err_set(err, errno_value, "%s: bitmap '%s' %s", plan->q->path,
                   bitmap_name_shown(shown, name), what);
}

static int plan_find(const struct plan *plan, const char *name, uint32_t *number,
                     struct errtext *err)
{
    const struct stored_bitmap *stored = bitmap_directory_find(&plan->directory, name);
    if (!stored) {
        return refuse_change(plan, ENOENT, name, "does not exist", err);
    }
    *number = (uint32_t)(stored - plan->directory.bitmaps);
    return 0;
}

/* One that may be changed. */
static int plan_find_good(const struct plan *plan, const char *name, uint32_t *number,
                          struct errtext *err)
{
    int ret = plan_find(plan, name, number, err);
    if (ret < 0) {
        return ret;
    }
    const char *unknown = plan->directory.bitmaps[*number].unknown;
    if (unknown) {
        char text[80];
        snprintf(text, sizeof(text), "is one %s, and can only be removed", unknown);
        return refuse_change(plan, ENOTSUP, name, text, err);
    }
    if (!plan->planned[*number].has_bits) {
        return refuse_change(plan, EUCLEAN, name,
                             "is inconsistent, as it was not saved: it can only be removed", err);
    }
    return 0;
}

/* ---- One change on the plan ---- */

static uint8_t default_granularity_bits(const struct qcow2 *q)
{
    return (uint8_t)MIN_OF(MAX_OF(q->geo.cluster_bits, 12U), BITMAP_GRANULARITY_BITS);
}

static int plan_check_add(struct plan *plan, const struct bitmap_change *change, uint8_t bits,
                          struct errtext *err)
{
    int ret = bitmap_name_check(change->name, err);
    if (ret < 0) {
        return ret;
    }
    if (plan->q->header.version < 3) {
        return err_set(err, ENOTSUP, "%s: has version 2: bitmaps need version 3", plan->q->path);
    }
    if (bits < BITMAP_GRANULARITY_BITS_MIN || bits > BITMAP_GRANULARITY_BITS_MAX) {
        return refuse_change(plan, EINVAL, change->name,
                             "has a granularity that is none of 512 to 2G", err);
    }
    if (bitmap_directory_find(&plan->directory, change->name)) {
        return refuse_change(plan, EEXIST, change->name, "exists already", err);
    }
    if (plan->directory.count >= LIMIT_BITMAPS) {
        return err_set(err, EFBIG, "%s: has %u bitmaps: more are not allowed", plan->q->path,
                       plan->directory.count);
    }
    plan->bits_bytes += bitmap_bytes_needed(plan->q->geo.size_bytes, bits);
    if (plan->bits_bytes > LIMIT_BITMAP_BITS_BYTES) {
        return bitmaps_refuse_bits(plan->q, plan->bits_bytes, err);
    }
    return 0;
}

static int plan_add(struct plan *plan, const struct bitmap_change *change, struct errtext *err)
{
    uint8_t bits =
        change->granularity_bits ? change->granularity_bits : default_granularity_bits(plan->q);
    uint32_t number = plan->directory.count;
    int ret = plan_check_add(plan, change, bits, err);
    if (ret < 0) {
        return ret;
    }
    const struct stored_bitmap fresh = {
        .name = (char *)(uintptr_t)change->name,
        .type = QCOW2_BITMAP_TYPE_DIRTY,
        .granularity_bits = bits,
        .flags = change->disabled ? 0 : QCOW2_BITMAP_AUTO,
    };
    if (stored_bitmap_copy(&plan->directory.bitmaps[number], &fresh) < 0) {
        return err_set(err, ENOMEM, "%s: out of memory for a bitmap", plan->q->path);
    }
    plan->planned[number] = (struct planned){0};
    plan->directory.count++;
    ret = plan_new_bits(plan, number, err);
    if (ret == 0 && bitmap_directory_bytes(&plan->directory) > LIMIT_BITMAP_DIRECTORY_BYTES) {
        ret = err_set(err, EFBIG, "%s: its bitmap directory would have more than %llu bytes",
                      plan->q->path, LIMIT_BITMAP_DIRECTORY_BYTES);
    }
    return ret;
}

static int co_plan_remove(struct plan *plan, const struct bitmap_change *change,
                          struct errtext *err)
{
    uint32_t number = 0;
    int ret = plan_find(plan, change->name, &number, err);
    if (ret == 0) {
        ret = co_plan_leave(plan, number, err);
    }
    if (ret < 0) {
        return ret;
    }
    struct bitmap_directory *directory = &plan->directory;
    if (plan->planned[number].has_bits) {
        plan->bits_bytes -= bitmap_bytes_needed(plan->q->geo.size_bytes,
                                                directory->bitmaps[number].granularity_bits);
    }
    if (plan->planned[number].own_bits) {
        bitmap_free(&plan->planned[number].bits);
    }
    stored_bitmap_free(&directory->bitmaps[number]);
    uint32_t behind = --directory->count - number;
    memmove(&directory->bitmaps[number], &directory->bitmaps[number + 1],
            behind * sizeof(*directory->bitmaps));
    memmove(&plan->planned[number], &plan->planned[number + 1], behind * sizeof(*plan->planned));
    directory->bitmaps[directory->count] = (struct stored_bitmap){0};
    plan->planned[directory->count] = (struct planned){0};
    return 0;
}

static int co_plan_clear(struct plan *plan, const struct bitmap_change *change, struct errtext *err)
{
    uint32_t number = 0;
    int ret = plan_find_good(plan, change->name, &number, err);
    if (ret == 0) {
        ret = co_plan_leave(plan, number, err);
    }
    return ret < 0 ? ret : plan_new_bits(plan, number, err);
}

static int plan_enable(struct plan *plan, const struct bitmap_change *change, struct errtext *err)
{
    uint32_t number = 0;
    int ret = plan_find_good(plan, change->name, &number, err);
    if (ret == 0 && change->verb == BITMAP_ENABLE) {
        plan->directory.bitmaps[number].flags |= QCOW2_BITMAP_AUTO;
    } else if (ret == 0) {
        plan->directory.bitmaps[number].flags &= ~(uint32_t)QCOW2_BITMAP_AUTO;
    }
    return ret;
}

/* The bits of a bitmap of another image. */
static int find_foreign(const struct bitmap_change *change, const struct bitmap **bits,
                        struct errtext *err)
{
    struct qcow2 *from = qcow2_of(change->from);
    const struct bitmaps *bitmaps = &from->bitmaps;
    const struct stored_bitmap *stored = bitmap_directory_find(&bitmaps->directory, change->source);
    const struct live_bitmap *live =
        stored ? &bitmaps->live[stored - bitmaps->directory.bitmaps] : NULL;
    char shown[BITMAP_NAME_SHOWN_BYTES];
    if (!live || !live->has_bits) {
        return err_set(err, live ? EUCLEAN : ENOENT, "%s: bitmap '%s' %s", from->path,
                       bitmap_name_shown(shown, change->source),
                       !live             ? "does not exist"
                       : stored->unknown ? "is not known to this version"
                                         : "is inconsistent, as it was not saved");
    }
    *bits = &live->bits;
    return 0;
}

static int plan_find_source(struct plan *plan, const struct bitmap_change *change,
                            const struct bitmap **bits, struct errtext *err)
{
    uint32_t number;
    if (change->from) {
        if (change->from->size_bytes != plan->q->geo.size_bytes) {
            return err_set(err, EINVAL,
                           "%s: its disk has %" PRIu64 " bytes, that of %s %" PRIu64
                           ": bitmaps can be merged where they are equal",
                           change->from->path, change->from->size_bytes, plan->q->path,
                           plan->q->geo.size_bytes);
        }
        return find_foreign(change, bits, err);
    }
    int ret = plan_find_good(plan, change->source, &number, err);
    if (ret == 0) {
        *bits = planned_bits(plan, &plan->planned[number]);
    }
    return ret;
}

static int co_plan_merge(struct plan *plan, const struct bitmap_change *change, struct errtext *err)
{
    const struct bitmap *source = NULL;
    uint32_t number = 0;
    int ret = plan_find_good(plan, change->name, &number, err);
    if (ret == 0) {
        ret = plan_find_source(plan, change, &source, err);
    }
    struct planned *planned = ret == 0 ? &plan->planned[number] : NULL;
    if (ret == 0 && !planned->own_bits) {
        const struct bitmap *old = planned_bits(plan, planned);
        ret = co_plan_leave(plan, number, err);
        if (ret == 0) {
            ret = plan_new_bits(plan, number, err);
        }
        if (ret == 0) {
            bitmap_merge(&planned->bits, old);
        }
    }
    if (ret == 0 && source != &planned->bits) {
        bitmap_merge(&planned->bits, source);
    }
    return ret;
}

static int co_plan_change(struct plan *plan, const struct bitmap_change *change,
                          struct errtext *err)
{
    switch (change->verb) {
    case BITMAP_ADD:
        return plan_add(plan, change, err);
    case BITMAP_REMOVE:
        return co_plan_remove(plan, change, err);
    case BITMAP_CLEAR:
        return co_plan_clear(plan, change, err);
    case BITMAP_ENABLE:
    case BITMAP_DISABLE:
        return plan_enable(plan, change, err);
    case BITMAP_MERGE:
        return co_plan_merge(plan, change, err);
    }
    return -EINVAL;
}

/* ---- The plan comes true ---- */

static int co_plan_write(struct plan *plan, struct errtext *err)
{
    struct qcow2 *q = plan->q;
    int ret = 0;
    for (uint32_t i = 0; ret == 0 && i < plan->directory.count; i++) {
        if (plan->planned[i].own_bits) {
            ret = co_bitmap_save_new(q, &plan->directory.bitmaps[i], &plan->planned[i].bits,
                                     &plan->taken);
        }
    }
    if (ret < 0) {
        co_cluster_list_undo(q, &plan->taken);
    } else {
        ret = co_bitmap_directory_replace(q, &plan->directory, &plan->taken, &plan->gone);
    }
    return ret < 0 ? err_set(err, -ret, "%s: cannot write its bitmaps: %s", q->path,
                             ret == -ENOSPC ? "no room, in the file system or in the header"
                                            : strerror(-ret))
                   : 0;
}

/* In one step: what is in memory becomes what is on disk. */
static void plan_take_effect(struct plan *plan, struct live_bitmap *live)
{
    struct bitmaps *bitmaps = &plan->q->bitmaps;
    for (uint32_t i = 0; i < plan->directory.count; i++) {
        struct planned *planned = &plan->planned[i];
        live[i] = (struct live_bitmap){.id = planned->id, .has_bits = planned->has_bits};
        if (planned->id == 0) {
            live[i].id = bitmaps->next_id++;
        }
        if (planned->own_bits) {
            bitmap_snapshot(&planned->bits);
            bitmap_snapshot_done(&planned->bits, true);
            live[i].bits = planned->bits;
            planned->own_bits = false;
        } else if (planned->has_bits) {
            struct live_bitmap *old = find_live(bitmaps, planned->id);
            assert(old);
            live[i].bits = old->bits;
            old->has_bits = false;
        }
    }
    bitmaps_free(plan->q);
    bitmaps->directory = plan->directory;
    bitmaps->live = live;
    bitmaps->bits_bytes = plan->bits_bytes;
    plan->directory = (struct bitmap_directory){0};
}

static int co_change_locked(struct qcow2 *q, const struct bitmap_change *changes, size_t count,
                            struct errtext *err)
{
    struct plan plan;
    int ret = plan_init(&plan, q, count);
    struct live_bitmap *live = ret == 0 ? calloc((size_t)plan.room_for + 1, sizeof(*live)) : NULL;
    if (!live) {
        ret = err_set(err, ENOMEM, "%s: out of memory for its bitmaps", q->path);
    }
    for (size_t i = 0; ret == 0 && i < count; i++) {
        ret = co_plan_change(&plan, &changes[i], err);
    }
    if (ret == 0) {
        ret = co_plan_write(&plan, err);
    }
    if (ret == 0) {
        plan_take_effect(&plan, live);
        live = NULL;
    }
    free(live);
    plan_free(&plan);
    return ret;
}

/* ---- Saving what was recorded ---- */

static int co_plan_save(struct plan *plan, uint32_t number, bool in_use, struct errtext *err)
{
    struct qcow2 *q = plan->q;
    struct stored_bitmap *stored = &plan->directory.bitmaps[number];
    struct live_bitmap *live = &q->bitmaps.live[number];

    if (!live->has_bits) {
        return 0;
    }
    stored->flags &= ~(uint32_t)QCOW2_BITMAP_IN_USE;
    if (in_use && (stored->flags & QCOW2_BITMAP_AUTO)) {
        stored->flags |= QCOW2_BITMAP_IN_USE;
    }
    if (!bitmap_snapshot(&live->bits)) {
        return 0;
    }
    int ret = co_bitmap_collect(q, stored, &plan->gone, err);
    return ret < 0 ? ret : co_bitmap_save_new(q, stored, &live->bits, &plan->taken);
}

static int co_save_locked(struct qcow2 *q, bool in_use, struct errtext *err)
{
    struct bitmaps *bitmaps = &q->bitmaps;
    struct plan plan;
    int ret = plan_init(&plan, q, 0);

    for (uint32_t i = 0; ret == 0 && i < plan.directory.count; i++) {
        ret = co_plan_save(&plan, i, in_use, err);
    }
    if (ret == 0) {
        ret = co_bitmap_directory_replace(q, &plan.directory, &plan.taken, &plan.gone);
    } else if (!q->failed) {
        co_cluster_list_undo(q, &plan.taken);
    }
    for (uint32_t i = 0; i < bitmaps->directory.count; i++) {
        if (bitmaps->live[i].has_bits) {
            bitmap_snapshot_done(&bitmaps->live[i].bits, ret == 0);
        }
    }
    if (ret == 0) {
        struct bitmap_directory old = bitmaps->directory;
        bitmaps->directory = plan.directory;
        plan.directory = old;
    } else {
        err_set(err, -ret, "%s: cannot save its bitmaps: %s", q->path, strerror(-ret));
    }
    plan_free(&plan);
    return ret;
}

int co_bitmaps_save(struct qcow2 *q, bool in_use, struct errtext *err)
{
    co_mutex_lock(&q->bitmaps.lock);
    int ret = co_save_locked(q, in_use, err);
    co_mutex_unlock(&q->bitmaps.lock);
    return ret;
}

int co_qcow2_bitmap_change(struct image *image, const struct bitmap_change *changes, size_t count,
                           struct errtext *err)
{
    struct qcow2 *q = qcow2_of(image);
    if (image->read_only) {
        return err_set(err, EROFS, "%s: is open read-only", q->path);
    }
    if (q->failed) {
        return err_set(err, EIO, "%s: has failed, and takes no more changes", q->path); /* O8 */
    }
    assert(!q->recording.began || q->recording.count == 0);
    co_mutex_lock(&q->bitmaps.lock);
    int ret = co_change_locked(q, changes, count, err);
    co_mutex_unlock(&q->bitmaps.lock);
    return ret;
}

/* ---- Another size ---- */

int bitmaps_check_size(const struct qcow2 *q, uint64_t size_bytes, struct errtext *err)
{
    const struct bitmap_directory *directory = &q->bitmaps.directory;
    uint64_t bytes = 0;
    for (uint32_t i = 0; i < directory->count; i++) {
        const struct stored_bitmap *stored = &directory->bitmaps[i];
        char shown[BITMAP_NAME_SHOWN_BYTES];
        if (stored->unknown) {
            return err_set(err, ENOTSUP,
                           "%s: bitmap '%s' is one %s: remove it before the disk is resized",
                           q->path, bitmap_name_shown(shown, stored->name), stored->unknown);
        }
        if (q->bitmaps.live[i].has_bits) {
            bytes += bitmap_bytes_needed(size_bytes, stored->granularity_bits);
        }
    }
    return bytes > LIMIT_BITMAP_BITS_BYTES ? bitmaps_refuse_bits(q, bytes, err) : 0;
}

static int co_plan_resize(struct plan *plan, uint32_t number, struct errtext *err)
{
    struct planned *planned = &plan->planned[number];
    struct qcow2 *q = plan->q;
    if (!planned->has_bits) {
        return 0;
    }
    const struct bitmap *old = planned_bits(plan, planned);
    int ret = co_plan_leave(plan, number, err);
    if (ret < 0) {
        return ret;
    }
    ret = bitmap_init(&planned->bits, old->size_bytes, old->granularity_bits);
    if (ret == 0) {
        planned->own_bits = true;
        bitmap_merge(&planned->bits, old);
        ret = bitmap_resize(&planned->bits, q->geo.size_bytes);
    }
    return ret < 0 ? err_set(err, ENOMEM, "%s: out of memory for a bitmap", q->path) : 0;
}

int co_bitmaps_resize(struct qcow2 *q, struct errtext *err)
{
    struct bitmaps *bitmaps = &q->bitmaps;
    if (bitmaps->directory.count == 0) {
        return 0;
    }
    struct plan plan;
    co_mutex_lock(&bitmaps->lock);
    int ret = plan_init(&plan, q, 0);
    struct live_bitmap *live = ret == 0 ? calloc((size_t)plan.room_for + 1, sizeof(*live)) : NULL;
    if (!live) {
        ret = err_set(err, ENOMEM, "%s: out of memory for its bitmaps", q->path);
    }
    plan.bits_bytes = 0;
    for (uint32_t i = 0; ret == 0 && i < plan.directory.count; i++) {
        ret = co_plan_resize(&plan, i, err);
        plan.bits_bytes +=
            bitmap_bytes_needed(q->geo.size_bytes, plan.directory.bitmaps[i].granularity_bits);
    }
    if (ret == 0) {
        ret = co_plan_write(&plan, err);
    }
    if (ret == 0) {
        plan_take_effect(&plan, live);
        live = NULL;
    }
    free(live);
    plan_free(&plan);
    co_mutex_unlock(&bitmaps->lock);
    return ret;
}
