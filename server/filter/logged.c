/* SPDX-License-Identifier: BSD-2-Clause */
#include "filter/logged.h"

#include <assert.h>
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "base/check.h"
#include "io/buffers.h"
#include "io/writelog.h"
#include "sched/table.h"

#define SECTOR WRITELOG_SECTOR_BYTES
/* What a failed request left behind is read and logged in pieces of this size. */
#define READ_BACK_BYTES (256U * 1024U)
/* Zeroing and trimming are done and logged in pieces of this size. */
#define PIECE_BYTES ((uint64_t)WRITELOG_ZEROES_SECTORS * SECTOR)

struct logged_image {
    struct image image;
    struct image *inner;
    struct writelog *log;
    struct request_table *ranges; /* in sectors' bytes: requests on their way into the log */
    bool trim_ignored;
};

static struct logged_image *logged_of(struct image *image)
{
    return container_of(image, struct logged_image, image);
}

/*
 * A range cut at sectors: a partial one at its head, whole ones, a partial one at its tail. Any of
 * the three may be missing. head and tail are what the image holds in the partial ones.
 */
struct sectors {
    bool has_head, has_tail;
    uint64_t head_start;
    uint64_t whole_start, whole_end;
    uint8_t head[SECTOR], tail[SECTOR];
};

static uint64_t first_byte(uint64_t offset)
{
    return round_down_to(offset, SECTOR);
}

static uint64_t end_byte(uint64_t offset, uint64_t len)
{
    return round_up_to(offset + len, SECTOR);
}

/* Fills buf with whole sectors of the image; what lies past its end is zero. */
static int co_read_back(struct logged_image *logged, uint64_t start, uint8_t *buf, size_t len)
{
    size_t inside = (size_t)MIN_OF(len, logged->image.size_bytes - start);

    memset(buf + inside, 0, len - inside);
    int result = logged->inner->ops->co_read(logged->inner, start, buf, inside, NULL);
    if (result < 0) {
        writelog_break(logged->log, result, "cannot read back what is to be logged");
    }
    return result;
}

/* The range must be held. */
static int co_cut_at_sectors(struct logged_image *logged, uint64_t offset, uint64_t len,
                             struct sectors *cut)
{
    int result = 0;

    cut->has_head = offset % SECTOR != 0;
    cut->head_start = first_byte(offset);
    cut->whole_start = round_up_to(offset, SECTOR);
    cut->whole_end = round_down_to(offset + len, SECTOR);
    cut->has_tail = (offset + len) % SECTOR != 0;
    if (cut->whole_end < cut->whole_start) { /* all in one sector */
        cut->whole_end = cut->whole_start;
        cut->has_tail = false;
    }
    if (cut->has_head) {
        result = co_read_back(logged, cut->head_start, cut->head, SECTOR);
    }
    if (result == 0 && cut->has_tail) {
        result = co_read_back(logged, cut->whole_end, cut->tail, SECTOR);
    }
    return result;
}

static unsigned entry_flags(unsigned image_flags)
{
    return image_flags & IMAGE_FUA ? WRITELOG_FUA : 0;
}

/* --- what happened, as entries; the range is held ------------------------------------------- */

static int co_log_write(struct logged_image *logged, uint64_t offset, const uint8_t *buf,
                        size_t len, unsigned flags)
{
    struct iovec iov[3];
    struct sectors cut;
    int count = 0;

    int result = co_cut_at_sectors(logged, offset, len, &cut);
    if (result < 0) {
        return result;
    }
    if (cut.has_head) {
        iov[count++] = (struct iovec){cut.head, SECTOR};
    }
    if (cut.whole_start < cut.whole_end) {
        const uint8_t *whole = buf + (cut.whole_start - offset);
        iov[count++] =
            (struct iovec){(void *)(uintptr_t)whole, (size_t)(cut.whole_end - cut.whole_start)};
    }
    if (cut.has_tail) {
        iov[count++] = (struct iovec){cut.tail, SECTOR};
    }
    return co_writelog_data(logged->log, cut.head_start / SECTOR, iov, count, entry_flags(flags));
}

static int co_log_partial(struct logged_image *logged, uint64_t start, uint8_t *sector,
                          unsigned flags)
{
    struct iovec iov = {sector, SECTOR};
    return co_writelog_data(logged->log, start / SECTOR, &iov, 1, entry_flags(flags));
}

static int co_log_zeroed(struct logged_image *logged, uint64_t offset, uint64_t len, bool discarded,
                         unsigned flags)
{
    struct sectors cut;

    int result = co_cut_at_sectors(logged, offset, len, &cut);
    if (result == 0 && cut.has_head) {
        result = co_log_partial(logged, cut.head_start, cut.head, flags);
    }
    if (result == 0 && cut.whole_start < cut.whole_end) {
        uint64_t sector = cut.whole_start / SECTOR;
        uint64_t sectors = (cut.whole_end - cut.whole_start) / SECTOR;
        result = discarded ? co_writelog_discard(logged->log, sector, sectors, entry_flags(flags))
                           : co_writelog_zeroes(logged->log, sector, sectors, entry_flags(flags));
    }
    if (result == 0 && cut.has_tail) {
        result = co_log_partial(logged, cut.whole_end, cut.tail, flags);
    }
    return result;
}

static bool all_zero(const uint8_t *buf, size_t len)
{
    return len == 0 || (buf[0] == 0 && memcmp(buf, buf + 1, len - 1) == 0);
}

static int co_log_piece_as_it_is(struct logged_image *logged, uint64_t start, uint8_t *buf,
                                 size_t len)
{
    struct iovec iov = {buf, len};

    int result = co_read_back(logged, start, buf, len);
    if (result < 0) {
        return result;
    }
    return all_zero(buf, len) ? co_writelog_zeroes(logged->log, start / SECTOR, len / SECTOR, 0)
                              : co_writelog_data(logged->log, start / SECTOR, &iov, 1, 0);
}

static bool nothing_was_changed(int failure)
{
    return failure == -ENOTSUP || failure == -EROFS;
}

/* After a failed request: whatever its range holds now. Returns the failure. */
static int co_log_failed(struct logged_image *logged, uint64_t offset, uint64_t len, int failure)
{
    uint64_t end = end_byte(offset, len);
    int result = 0;

    if (nothing_was_changed(failure) || writelog_error(logged->log) < 0) {
        return failure;
    }
    uint8_t *buf = buffer_get(READ_BACK_BYTES);
    if (!buf) {
        writelog_break(logged->log, -ENOMEM, "cannot read back what is to be logged");
        return failure;
    }
    for (uint64_t start = first_byte(offset); result == 0 && start < end;
         start += READ_BACK_BYTES) {
        size_t piece = (size_t)MIN_OF(end - start, (uint64_t)READ_BACK_BYTES);
        result = co_log_piece_as_it_is(logged, start, buf, piece);
    }
    buffer_put(buf, READ_BACK_BYTES);
    return failure;
}

/* --- requests ------------------------------------------------------------------------------- */

/* O5 for the log: whoever holds a sector's range is alone with it, in the image and in the log. */
static int co_begin(struct logged_image *logged, uint64_t offset, uint64_t len, struct hold **hold)
{
    uint64_t start = first_byte(offset);

    int result =
        co_hold(logged->ranges, HOLD_EXCLUSIVE, start, end_byte(offset, len) - start, hold);
    if (result < 0) {
        return result;
    }
    result = writelog_error(logged->log); /* O8 */
    if (result < 0) {
        hold_release(*hold);
    }
    return result;
}

static int co_end(struct logged_image *logged, struct hold *hold, int result, unsigned flags)
{
    hold_release(hold);
    if (result == 0 && (flags & IMAGE_FUA)) {
        result = co_writelog_publish(logged->log);
    }
    return result;
}

static int co_logged_write(struct image *image, uint64_t offset, const void *buf, size_t len,
                           unsigned flags)
{
    struct logged_image *logged = logged_of(image);
    struct hold *hold;

    int result = co_begin(logged, offset, len, &hold);
    if (result < 0) {
        return result;
    }
    result = logged->inner->ops->co_write(logged->inner, offset, buf, len, flags);
    if (result < 0) {
        result = co_log_failed(logged, offset, len, result);
    } else {
        result = co_log_write(logged, offset, buf, len, flags);
    }
    return co_end(logged, hold, result, flags);
}

struct zero_request {
    bool trim;
    unsigned flags;
};

static int co_zero_piece(struct logged_image *logged, uint64_t offset, uint64_t len,
                         const struct zero_request *request)
{
    const struct image_ops *ops = logged->inner->ops;
    struct hold *hold;

    int result = co_begin(logged, offset, len, &hold);
    if (result < 0) {
        return result;
    }
    result = request->trim ? ops->co_trim(logged->inner, offset, len, request->flags)
                           : ops->co_zero(logged->inner, offset, len, request->flags);
    if (result < 0) {
        result = co_log_failed(logged, offset, len, result);
    } else {
        result = co_log_zeroed(logged, offset, len, request->trim, request->flags);
    }
    return co_end(logged, hold, result, request->flags);
}

/*
 * In pieces, as image.h promises: those who want another part of a long range do not wait for all
 * of it, and when the image is to be closed it ends after the piece at hand. What must be fast is
 * done whole, because it must be refused whole.
 */
static int co_zero_or_trim(struct logged_image *logged, uint64_t offset, uint64_t len,
                           const struct zero_request *request)
{
    uint64_t unit = request->flags & IMAGE_FAST_ZERO ? UINT64_C(1) << 63 : PIECE_BYTES;
    uint64_t end = offset + len;

    while (offset < end) {
        uint64_t piece = MIN_OF(end - offset, unit - (offset & (unit - 1)));
        int result = co_zero_piece(logged, offset, piece, request);
        if (result < 0) {
            return result;
        }
        offset += piece;
        if (offset < end && logged->image.ending) {
            return -ESHUTDOWN; /* O9 */
        }
    }
    return 0;
}

static int co_logged_zero(struct image *image, uint64_t offset, uint64_t len, unsigned flags)
{
    struct zero_request request = {.trim = false, .flags = flags};
    return co_zero_or_trim(logged_of(image), offset, len, &request);
}

static int co_logged_trim(struct image *image, uint64_t offset, uint64_t len, unsigned flags)
{
    struct logged_image *logged = logged_of(image);
    struct zero_request request = {.trim = true, .flags = flags};

    if (logged->trim_ignored) {
        return logged->inner->ops->co_trim(logged->inner, offset, len, flags);
    }
    return co_zero_or_trim(logged, offset, len, &request);
}

/* The image is flushed even when the log is broken; but then nobody is told that all is well. */
static int co_logged_flush(struct image *image)
{
    struct logged_image *logged = logged_of(image);

    int result = logged->inner->ops->co_flush(logged->inner);
    if (result < 0) {
        return result;
    }
    result = co_writelog_flush(logged->log);
    if (result < 0) {
        return result;
    }
    return co_writelog_publish(logged->log);
}

static int co_logged_read(struct image *image, uint64_t offset, void *buf, size_t len,
                          struct read_holes *holes)
{
    struct image *inner = logged_of(image)->inner;
    return inner->ops->co_read(inner, offset, buf, len, holes);
}

static int co_logged_extents(struct image *image, uint64_t offset, uint64_t len,
                             struct extent_list *list)
{
    struct image *inner = logged_of(image)->inner;
    return inner->ops->co_extents(inner, offset, len, list);
}

static size_t logged_bitmap_list(struct image *image, struct image_bitmap *out, size_t capacity)
{
    struct image *inner = logged_of(image)->inner;
    return inner->ops->bitmap_list ? inner->ops->bitmap_list(inner, out, capacity) : 0;
}

static int co_logged_bitmap_extents(struct image *image, uint64_t bitmap_id, uint64_t offset,
                                    uint64_t len, struct extent_list *list)
{
    struct image *inner = logged_of(image)->inner;
    return inner->ops->co_bitmap_extents(inner, bitmap_id, offset, len, list);
}

static void co_logged_statistics(struct image *image, struct image_statistics *out)
{
    struct image *inner = logged_of(image)->inner;

    *out = (struct image_statistics){.free_bytes = UINT64_MAX};
    if (inner->ops->co_statistics) {
        inner->ops->co_statistics(inner, out);
    }
}

static int co_mark(struct logged_image *logged, const char *text)
{
    int result = co_writelog_mark(logged->log, text);
    if (result < 0) {
        return result;
    }
    return co_writelog_publish(logged->log);
}

static int co_logged_close(struct image *image, struct errtext *err)
{
    struct logged_image *logged = logged_of(image);
    struct errtext log_err = {.text = ""};

    int marked = co_mark(logged, "stop");
    int logged_all = co_writelog_close(logged->log, &log_err);
    assert(marked == 0 || logged_all < 0);
    int result = logged->inner->ops->co_close(logged->inner, err);
    if (result == 0 && logged_all < 0) {
        result = err_set(err, -logged_all, "%s", log_err.text);
    }
    request_table_free(logged->ranges);
    free(logged);
    return result;
}

static const struct image_ops logged_ops = {
    .co_read = co_logged_read,
    .co_write = co_logged_write,
    .co_zero = co_logged_zero,
    .co_trim = co_logged_trim,
    .co_flush = co_logged_flush,
    .co_extents = co_logged_extents,
    .bitmap_list = logged_bitmap_list,
    .co_bitmap_extents = co_logged_bitmap_extents,
    .co_statistics = co_logged_statistics,
    .co_close = co_logged_close,
};

int co_logged_mark(struct image *image, const char *text)
{
    assert(image->ops == &logged_ops);
    return co_mark(logged_of(image), text);
}

int co_logged_open(struct world *world, struct image *inner, const char *path,
                   const struct logged_options *options, struct image **out, struct errtext *err)
{
    struct errtext ignored;
    struct logged_image *logged = calloc(1, sizeof(*logged));
    struct request_table *ranges = request_table_create(NULL, NULL);
    int result = logged && ranges ? co_writelog_create(world, path, &logged->log, err)
                                  : err_set(err, ENOMEM, "out of memory");
    if (result < 0) {
        request_table_free(ranges);
        free(logged);
        return result;
    }
    logged->image = *inner;
    logged->image.ops = &logged_ops;
    logged->inner = inner;
    logged->ranges = ranges;
    logged->trim_ignored = options->trim_ignored;
    result = co_mark(logged, "start");
    if (result < 0) {
        int closed = co_writelog_close(logged->log, &ignored);
        assert(closed < 0);
        request_table_free(ranges);
        free(logged);
        return err_set(err, -result, "%s: cannot log writes here: %s", path, strerror(-result));
    }
    *out = &logged->image;
    return 0;
}
