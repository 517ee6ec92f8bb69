/* SPDX-License-Identifier: BSD-2-Clause */
/*
 * Marks and the look at the regions are one step, and so are the snapshot of the bits and that of
 * the regions' touched bits. So a change is either in the bits that are saved, or its region stays
 * open.
 */
#include "qcow2/bitmap_record.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "base/log.h"
#include "qcow2/bitmap_store.h"
#include "qcow2/bitmaps.h"
#include "qcow2/engine.h"
#include "sched/co.h"

#define CHECKPOINT_INTERVAL_DEFAULT_MS 60000U

void bitmap_record_init(struct qcow2 *q)
{
    q->recording = (struct bitmap_recording){0};
    co_mutex_init(&q->recording.lock);
    intent_init(&q->recording.intent);
}

void bitmap_record_free(struct qcow2 *q)
{
    free(q->recording.bits);
    q->recording.bits = NULL;
    q->recording.count = 0;
    intent_free(&q->recording.intent);
}

static bool is_recorded(const struct qcow2 *q, uint32_t number)
{
    const struct bitmaps *bitmaps = &q->bitmaps;
    return bitmaps->live[number].has_bits &&
           (bitmaps->directory.bitmaps[number].flags & QCOW2_BITMAP_AUTO);
}

/* ---- Autoclear bits ---- */

/* Of the bits that there are those in `kept` stay, and those in `set` come. */
static int co_change_autoclear(struct qcow2 *q, uint64_t kept, uint64_t set)
{
    int ret = 0;

    co_mutex_lock(&q->header_lock);
    uint64_t autoclear = (q->header.autoclear & kept) | set; /* O7: as it is under the lock */
    bool changes = autoclear != q->header.autoclear;
    if (changes) {
        ret = co_header_set_features(q->disk, &q->header, q->header.incompatible, autoclear);
    }
    co_mutex_unlock(&q->header_lock);
    if (ret == 0 && changes) {
        ret = co_disk_flush(q->disk);
    }
    return ret < 0 ? engine_fail(q, -ret, "writing autoclear features") : 0;
}

/* Who changes an image without keeping an autoclear feature clears its bit first. */
static uint64_t known_autoclear(const struct qcow2 *q)
{
    uint64_t known = QCOW2_AUTOCLEAR_RAW_DATA_FILE;
    if (q->header.bitmap_count > 0) {
        known |= QCOW2_AUTOCLEAR_BITMAPS;
    }
    return known;
}

/* ---- Beginning ---- */

static int collect_recorded(struct qcow2 *q, uint64_t *hashes, uint32_t *hash_count)
{
    struct bitmap_recording *recording = &q->recording;
    const struct bitmaps *bitmaps = &q->bitmaps;

    free(recording->bits);
    recording->count = 0;
    *hash_count = 0;
    recording->bits = calloc((size_t)bitmaps->directory.count + 1, sizeof(struct bitmap *));
    if (!recording->bits) {
        return -ENOMEM;
    }
    for (uint32_t i = 0; i < bitmaps->directory.count; i++) {
        if (is_recorded(q, i)) {
            recording->bits[recording->count++] = &bitmaps->live[i].bits;
            if (*hash_count < INTENT_NAMES_MAX) {
                hashes[(*hash_count)++] = intent_name_hash(bitmaps->directory.bitmaps[i].name);
            }
        }
    }
    return 0;
}

/* Enabled, and not to be recorded in: from the first change on it says what is not so. */
static bool is_left_behind(const struct qcow2 *q, uint32_t number)
{
    const struct stored_bitmap *stored = &q->bitmaps.directory.bitmaps[number];
    return stored->unknown && (stored->flags & QCOW2_BITMAP_AUTO) &&
           !(stored->flags & QCOW2_BITMAP_IN_USE);
}

static int co_mark_in_use(struct qcow2 *q)
{
    bool any = false;
    int ret = 0;

    co_mutex_lock(&q->bitmaps.lock);
    for (uint32_t i = 0; ret == 0 && i < q->bitmaps.directory.count; i++) {
        struct stored_bitmap *stored = &q->bitmaps.directory.bitmaps[i];
        if (is_recorded(q, i) || is_left_behind(q, i)) {
            ret = co_bitmap_set_flags(q->disk, stored, stored->flags | QCOW2_BITMAP_IN_USE);
            any = true;
        }
    }
    if (ret == 0 && any) {
        ret = co_disk_flush(q->disk);
    }
    co_mutex_unlock(&q->bitmaps.lock);
    return ret < 0 ? engine_fail(q, -ret, "marking bitmaps in use") : 0;
}

static int co_make_whole(struct qcow2 *q, struct errtext *err);

/* What a crash has left found no room when the image was opened: it must be saved before the header
 * forgets it. */
static int co_recover_first(struct qcow2 *q)
{
    struct errtext err = {.text = ""};
    if (!(q->header.autoclear & QCOW2_AUTOCLEAR_INTENT)) {
        return 0;
    }
    return co_make_whole(q, &err);
}

static int co_begin_recording(struct qcow2 *q)
{
    struct bitmap_recording *recording = &q->recording;
    uint64_t hashes[INTENT_NAMES_MAX];
    uint32_t hash_count = 0;
    uint32_t named;
    int ret = co_recover_first(q);

    if (ret == 0) {
        ret = collect_recorded(q, hashes, &hash_count);
    }
    if (ret == 0) {
        ret = co_change_autoclear(q, known_autoclear(q), 0);
    }
    if (ret < 0 || recording->count == 0) {
        return ret < 0 ? ret : co_mark_in_use(q);
    }
    ret = co_intent_begin(q, &recording->intent, hashes, hash_count, &named);
    if (ret < 0) {
        return ret == -ENOMEM ? ret : engine_fail(q, -ret, "writing the header");
    }
    if (named < recording->count) {
        log_warning("%s: its header has room for %u of its %u bitmaps: the others would not "
                    "survive a crash",
                    q->path, named, recording->count);
    }
    if (named > 0) {
        ret = co_change_autoclear(q, UINT64_MAX, QCOW2_AUTOCLEAR_INTENT);
    }
    return ret < 0 ? ret : co_mark_in_use(q);
}

static int co_prepare_first(struct qcow2 *q)
{
    struct bitmap_recording *recording = &q->recording;
    int ret = 0;

    co_mutex_lock(&recording->lock);
    if (!recording->began) {
        ret = q->failed ? -EIO : co_begin_recording(q);
        if (ret == 0) {
            recording->began = true;
            recording->settled = recording->count == 0;
        }
    }
    co_mutex_unlock(&recording->lock);
    return ret;
}

/* ---- Each change ---- */

static void arm_timer(struct qcow2 *q);

int co_bitmap_record_slowly(struct qcow2 *q, uint64_t offset, uint64_t len)
{
    struct bitmap_recording *recording = &q->recording;

    while (!recording->began) {
        int ret = co_prepare_first(q);
        if (ret < 0) {
            return ret;
        }
    }
    if (recording->settled) {
        return 0;
    }
    while (!intent_is_open(&recording->intent, offset, len)) {
        int ret = co_intent_open(q, &recording->intent, offset, len);
        if (ret < 0) {
            return ret;
        }
    }
    /* O11: no wait since the look. */
    intent_touch(&recording->intent, offset, len);
    for (uint32_t i = 0; i < recording->count; i++) {
        bitmap_set(recording->bits[i], offset, len);
    }
    if (!recording->timer_armed) {
        arm_timer(q);
    }
    return 0;
}

/* ---- Saving ---- */

int co_bitmap_checkpoint(struct qcow2 *q)
{
    struct bitmap_recording *recording = &q->recording;
    struct errtext err = {.text = ""};
    int ret = 0;

    co_mutex_lock(&recording->lock);
    if (recording->began && recording->count > 0 && !q->failed) {
        intent_forget_touched(&recording->intent);
        ret = co_bitmaps_save(q, true, &err);
        if (ret == 0) {
            ret = co_intent_close_idle(q, &recording->intent);
        } else if (!q->failed) {
            log_warning("%s: trying again later", err.text);
            ret = 0;
        }
    }
    co_mutex_unlock(&recording->lock);
    return ret;
}

static void co_timed_checkpoint(void *arg)
{
    struct qcow2 *q = arg;
    struct bitmap_recording *recording = &q->recording;

    /* What has been changed all the time would be open again at once: saving it gains nothing. */
    if (!q->failed && !q->closing && intent_count_idle(&recording->intent) > 0) {
        /* A failure for good is logged and kept where it happens. */
        (void)co_bitmap_checkpoint(q);
    } else {
        intent_forget_touched(&recording->intent);
    }
    if (!q->closing && intent_count_open(&recording->intent) > 0) {
        arm_timer(q);
    }
    group_leave(&q->background);
}

static void timer_fired(struct world_timer *timer)
{
    struct qcow2 *q = container_of(timer, struct qcow2, recording.timer);

    q->recording.timer_armed = false;
    group_enter(&q->background);
    if (coro_spawn(co_timed_checkpoint, q, "qcow2 bitmap checkpoint") < 0) {
        group_leave(&q->background);
    }
}

static void arm_timer(struct qcow2 *q)
{
    struct bitmap_recording *recording = &q->recording;
    uint64_t interval_ms = q->options.checkpoint_interval_ms ? q->options.checkpoint_interval_ms
                                                             : CHECKPOINT_INTERVAL_DEFAULT_MS;

    if (recording->timer_armed || q->closing) {
        return;
    }
    recording->timer_armed = true;
    recording->timer.fired = timer_fired;
    q->world->ops->timer_start(q->world, &recording->timer,
                               world_now_ns(q->world) + interval_ms * 1000000ULL);
}

/* The bits are saved and nobody's, durably; then the regions mean nothing any more. */
static int co_make_whole(struct qcow2 *q, struct errtext *err)
{
    int ret = co_bitmaps_save(q, false, err);
    return ret < 0 ? ret : co_change_autoclear(q, ~QCOW2_AUTOCLEAR_INTENT, 0);
}

int co_bitmap_record_end(struct qcow2 *q)
{
    struct bitmap_recording *recording = &q->recording;
    struct errtext err = {.text = ""};
    int ret = 0;

    q->world->ops->timer_stop(q->world, &recording->timer);
    recording->timer_armed = false;
    co_mutex_lock(&recording->lock);
    if (recording->began && recording->count > 0 && !q->failed) {
        ret = co_make_whole(q, &err);
        if (ret < 0 && !q->failed) {
            log_warning("%s: they will be found again, with more that is dirty, when the image is "
                        "opened next",
                        err.text);
            ret = 0;
        }
        recording->began = false;
    }
    co_mutex_unlock(&recording->lock);
    return ret;
}

int co_bitmap_recover(struct qcow2 *q, struct errtext *err)
{
    if (q->image.read_only || !(q->header.autoclear & QCOW2_AUTOCLEAR_INTENT)) {
        return 0;
    }
    if (q->bitmaps.directory.count == 0) {
        int ret = co_change_autoclear(q, ~QCOW2_AUTOCLEAR_INTENT, 0);
        return ret < 0 ? err_set(err, -ret, "%s: writing the header: %s", q->path, strerror(-ret))
                       : 0;
    }
    log_info("%s: its bitmaps were not saved; they go on from what was, and count what was being "
             "written to as dirty",
             q->path);
    int ret = co_make_whole(q, err);
    if (ret == -ENOSPC) {
        log_warning("%s: before the first change there must be room for it", err->text);
        ret = 0;
    }
    return ret;
}
