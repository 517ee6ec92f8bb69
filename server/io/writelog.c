/* SPDX-License-Identifier: BSD-2-Clause */
/*
 * Entries that have their place and are not yet written are listed in the order of their places;
 * what lies before the first of them is whole. Nothing else is remembered of an entry, so the log
 * needs no memory that grows with it.
 */
#include "io/writelog.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "base/bytes.h"
#include "base/check.h"
#include "base/list.h"
#include "base/log.h"
#include "io/iov.h"
#include "sched/sync.h"

#define SECTOR      WRITELOG_SECTOR_BYTES
#define IOV_ENTRIES 8

struct writelog {
    struct disk *disk;
    bool holes_read_zero; /* a new file, not a device with old bytes */
    int error;            /* O8 */

    /* Only reserve() moves these. */
    uint64_t next_offset;
    uint64_t next_entry;

    struct list unfinished;    /* struct place, in the order of their offsets */
    uint64_t published;        /* entries that the super block counts */
    bool publishing;           /* by one coroutine at a time */
    struct wait_queue changed; /* unfinished, published, publishing, error */
};

/* Where one entry goes: fixed once and for all, on the stack of who writes it. */
struct place {
    struct list link;
    uint64_t offset; /* of the header; the data follows */
    uint64_t entry;
};

/*
 * O7. The one place where a position in the log is computed. It is reserved in the same step:
 * nothing in here waits, and nobody looks at next_offset again to find where his entry goes.
 */
static void reserve(struct writelog *log, uint64_t data_sectors, struct place *place)
{
    place->offset = log->next_offset;
    place->entry = log->next_entry;
    log->next_offset += (1 + data_sectors) * SECTOR;
    log->next_entry++;
    list_push_back(&log->unfinished, &place->link);
}

int writelog_error(const struct writelog *log)
{
    return log->error;
}

void writelog_break(struct writelog *log, int result, const char *why)
{
    assert(result < 0);
    if (log->error == 0) {
        log->error = result;
        log_error("%s: %s: %s; the log of writes ends here, and no more writes are accepted",
                  log->disk->path, why, strerror(-result));
    }
    wait_queue_wake_all(&log->changed);
}

/* The entry is written, or never will be. */
static int finish(struct writelog *log, struct place *place, int result)
{
    list_remove(&place->link);
    if (result < 0) {
        writelog_break(log, result, "cannot write an entry");
    } else {
        wait_queue_wake_all(&log->changed);
    }
    return result;
}

static uint64_t whole_entries(const struct writelog *log)
{
    return list_empty(&log->unfinished)
               ? log->next_entry
               : list_entry(log->unfinished.next, struct place, link)->entry;
}

static void put_header(uint8_t *header, uint64_t sector, uint64_t sectors, unsigned flags,
                       const char *mark)
{
    size_t mark_len = strnlen(mark, WRITELOG_MARK_MAX);

    memset(header, 0, SECTOR);
    put_le64(header, sector);
    put_le64(header + 8, sectors);
    put_le64(header + 16, flags);
    put_le64(header + 24, mark_len);
    memcpy(header + WRITELOG_HEADER_BYTES, mark, mark_len);
}

/* --- entries -------------------------------------------------------------------------------- */

/* An entry without data. */
static int co_append_header(struct writelog *log, uint64_t sector, uint64_t sectors, unsigned flags,
                            const char *mark)
{
    uint8_t header[SECTOR];
    struct place place;

    if (log->error) {
        return log->error;
    }
    put_header(header, sector, sectors, flags, mark);
    reserve(log, 0, &place);
    int result = co_disk_write(log->disk, place.offset, header, SECTOR);
    return finish(log, &place, result);
}

int co_writelog_data(struct writelog *log, uint64_t sector, const struct iovec *iov, int iov_count,
                     unsigned flags)
{
    uint64_t bytes = iov_total_bytes(iov, iov_count);
    struct iovec all[IOV_ENTRIES];
    uint8_t header[SECTOR];
    struct place place;

    assert(bytes > 0 && bytes % SECTOR == 0 && iov_count < IOV_ENTRIES);
    if (log->error) {
        return log->error;
    }
    put_header(header, sector, bytes / SECTOR, flags, "");
    all[0] = (struct iovec){header, SECTOR};
    memcpy(all + 1, iov, (size_t)iov_count * sizeof(*iov));
    reserve(log, bytes / SECTOR, &place);
    int result = log->disk->ops->co_write(log->disk, place.offset, all, 1 + iov_count);
    return finish(log, &place, result);
}

/*
 * Header and last sector are written, so that the file is as long as the entry says; between them a
 * new file has a hole, and a device is zeroed.
 */
static int co_write_zeroes(struct writelog *log, const struct place *place, const uint8_t *header,
                           uint64_t sectors)
{
    static const uint8_t zeroes[SECTOR];
    uint64_t data = place->offset + SECTOR;

    int result = co_disk_write(log->disk, place->offset, header, SECTOR);
    if (result == 0 && sectors > 1 && !log->holes_read_zero) {
        result = log->disk->ops->co_zero(log->disk, data, (sectors - 1) * SECTOR);
    }
    if (result == 0) {
        result = co_disk_write(log->disk, data + (sectors - 1) * SECTOR, zeroes, SECTOR);
    }
    return result;
}

int co_writelog_zeroes(struct writelog *log, uint64_t sector, uint64_t sectors, unsigned flags)
{
    uint8_t header[SECTOR];
    int result = 0;

    while (result == 0 && sectors > 0) {
        uint64_t piece = MIN_OF(sectors, WRITELOG_ZEROES_SECTORS);
        struct place place;
        if (log->error) {
            return log->error;
        }
        put_header(header, sector, piece, flags, "");
        reserve(log, piece, &place);
        result = co_write_zeroes(log, &place, header, piece);
        result = finish(log, &place, result);
        sector += piece;
        sectors -= piece;
    }
    return result;
}

int co_writelog_discard(struct writelog *log, uint64_t sector, uint64_t sectors, unsigned flags)
{
    int result = 0;

    while (result == 0 && sectors > 0) {
        uint64_t piece = MIN_OF(sectors, WRITELOG_DISCARD_SECTORS);
        result = co_append_header(log, sector, piece, WRITELOG_DISCARD | flags, "");
        sector += piece;
        sectors -= piece;
    }
    return result;
}

int co_writelog_flush(struct writelog *log)
{
    return co_append_header(log, 0, 0, WRITELOG_FLUSH, "");
}

int co_writelog_mark(struct writelog *log, const char *text)
{
    return co_append_header(log, 0, 0, WRITELOG_MARK, text);
}

/* --- the super block ------------------------------------------------------------------------ */

static int co_write_super(struct writelog *log, uint64_t entries)
{
    uint8_t super[SECTOR] = {0};

    put_le64(super, WRITELOG_MAGIC);
    put_le64(super + 8, WRITELOG_VERSION);
    put_le64(super + 16, entries);
    put_le32(super + 24, SECTOR);
    return co_disk_write(log->disk, 0, super, SECTOR);
}

/* Entries first, then the block that counts them. */
static void co_publish_once(struct writelog *log)
{
    uint64_t entries = whole_entries(log);

    log->publishing = true;
    int result = co_disk_flush(log->disk);
    if (result == 0) {
        result = co_write_super(log, entries);
    }
    log->publishing = false;
    if (result < 0) {
        writelog_break(log, result, "cannot update the super block");
        return;
    }
    log->published = entries;
    wait_queue_wake_all(&log->changed);
}

int co_writelog_publish(struct writelog *log)
{
    uint64_t wanted = log->next_entry;

    while (log->error == 0 && log->published < wanted) {
        if (log->publishing || whole_entries(log) < wanted) {
            co_wait(&log->changed);
        } else {
            co_publish_once(log);
        }
    }
    return log->error;
}

/* --- life ----------------------------------------------------------------------------------- */

/* What is there is never overwritten, unless it is a device: this option takes no second look at a
 * mistyped name. */
static int co_open_file(struct world *world, const char *path, struct disk **out,
                        struct errtext *err)
{
    int result = world->ops->co_disk_open(world, path, DISK_CREATE, out, err);
    if (result != -EEXIST) {
        return result;
    }
    result = world->ops->co_disk_open(world, path, DISK_WRITABLE, out, err);
    if (result < 0) {
        return result;
    }
    if (!(*out)->is_block_device && (*out)->size_bytes > 0) {
        disk_close(*out);
        return err_set(err, EEXIST,
                       "%s: cannot log writes here: the file is not empty; remove it, or choose "
                       "another name",
                       path);
    }
    return 0;
}

int co_writelog_create(struct world *world, const char *path, struct writelog **out,
                       struct errtext *err)
{
    struct disk *disk;
    int result = co_open_file(world, path, &disk, err);
    if (result < 0) {
        return result;
    }
    struct writelog *log = calloc(1, sizeof(*log));
    if (!log) {
        disk_close(disk);
        return err_set(err, ENOMEM, "%s: out of memory", path);
    }
    log->disk = disk;
    log->holes_read_zero = !disk->is_block_device;
    log->next_offset = SECTOR;
    list_init(&log->unfinished);
    wait_queue_init(&log->changed);
    result = co_write_super(log, 0);
    if (result < 0) {
        err_set(err, -result, "%s: cannot log writes here: %s", path, strerror(-result));
        disk_close(disk);
        free(log);
        return result;
    }
    *out = log;
    return 0;
}

int co_writelog_close(struct writelog *log, struct errtext *err)
{
    int result = co_writelog_publish(log);
    if (result == 0) {
        result = co_disk_flush(log->disk);
    }
    if (result < 0) {
        err_set(err, -result, "%s: the log of writes is not whole: %s", log->disk->path,
                strerror(-result));
    }
    assert(list_empty(&log->unfinished) && !log->publishing);
    disk_close(log->disk);
    free(log);
    return result;
}
