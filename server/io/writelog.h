/* SPDX-License-Identifier: BSD-2-Clause */
/*
 * A log of writes in the on-disk format of the Linux kernel's dm-log-writes target, so that the
 * tools which replay those logs read ours:
 *
 *     sector 0      the super block: magic, version, number of entries, sector size
 *     from 1 on     the entries, one after another: a header sector, then as many sectors of data
 * as the header says; entries of the kinds discard, flush and mark have no data
 *
 * All numbers are little endian, all positions in sectors of 512 bytes.
 *
 * O7. The place of an entry is computed and reserved in one step, in which nothing waits; the entry
 * is then written to that place and to no other, whatever was reserved meanwhile. Entries are
 * written side by side and finish in any order; the order of the log is that of reservation, and
 * that is the order in which the functions below are called.
 *
 * The super block counts only entries that are whole and durable, and all before them: at every
 * moment, power cuts included, what it counts can be replayed.
 *
 * O8. After the first failed write or fsync the log is broken for good: it takes no more entries,
 * and its super block stays as it is.
 */
#ifndef QCOWD_IO_WRITELOG_H
#define QCOWD_IO_WRITELOG_H

#include <stdint.h>

#include "io/world.h"

struct writelog;

#define WRITELOG_SECTOR_BYTES 512U
#define WRITELOG_MAGIC        0x6a736677736872ULL
#define WRITELOG_VERSION      1U
#define WRITELOG_HEADER_BYTES 32U /* of an entry's first sector; then the text of a mark */
#define WRITELOG_MARK_MAX     (WRITELOG_SECTOR_BYTES - WRITELOG_HEADER_BYTES - 1U)
/* Longer runs of zeroes and discards are cut: tools read an entry's data into memory whole, and do
 * not emulate longer discards. */
#define WRITELOG_ZEROES_SECTORS  (32U * 1024U * 1024U / WRITELOG_SECTOR_BYTES)
#define WRITELOG_DISCARD_SECTORS (128U * 1024U * 1024U / WRITELOG_SECTOR_BYTES)

enum writelog_flags {
    WRITELOG_FLUSH = 1U << 0,
    WRITELOG_FUA = 1U << 1,
    WRITELOG_DISCARD = 1U << 2,
    WRITELOG_MARK = 1U << 3,
    WRITELOG_METADATA = 1U << 4, /* never set: nobody tells us what is metadata */
};

/*
 * Makes the file `path`, or takes an empty one or a block device, and starts an empty log in it. On
 * success *out is ended with co_writelog_close(). On failure err names the file and what to do.
 */
int co_writelog_create(struct world *world, const char *path, struct writelog **out,
                       struct errtext *err);

/* 0, or why the log takes no more entries. */
int writelog_error(const struct writelog *log);

/* Ends the log for a reason found elsewhere (result < 0): what happened cannot be told. */
void writelog_break(struct writelog *log, int result, const char *why);

/*
 * Append an entry (zeroes and discards: one or more), and return when it is written, which does not
 * mean durable. The place is reserved before the first suspension. Flags: 0 or WRITELOG_FUA.
 *
 * Data is a whole number of sectors. Zeroes are logged as data that is zero, by a hole in the file.
 * A mark's text is cut at WRITELOG_MARK_MAX.
 */
int co_writelog_data(struct writelog *log, uint64_t sector, const struct iovec *iov, int iov_count,
                     unsigned flags);
int co_writelog_zeroes(struct writelog *log, uint64_t sector, uint64_t sectors, unsigned flags);
int co_writelog_discard(struct writelog *log, uint64_t sector, uint64_t sectors, unsigned flags);
int co_writelog_flush(struct writelog *log);
int co_writelog_mark(struct writelog *log, const char *text);

/*
 * Returns when the super block counts every entry whose place was reserved before the call. Calls
 * at one time share the work. The entries are durable then; the super block is after the next
 * publish.
 */
int co_writelog_publish(struct writelog *log);

/* Publishes, makes the super block durable too, closes and frees, whatever happens. No other call
 * may be running. 0 only if the log is whole; else err says why. */
int co_writelog_close(struct writelog *log, struct errtext *err);

#endif
