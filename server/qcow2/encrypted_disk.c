/* SPDX-License-Identifier: BSD-2-Clause */
/*
 * Whole sectors are decrypted where they were read to. What is written is encrypted into buffers of
 * our own, as the guest's may not change, under a budget. What takes longer than a request of the
 * loop should is done by a worker.
 */
#include "qcow2/encrypted_disk.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "base/check.h"
#include "base/limits.h"
#include "io/buffers.h"
#include "io/iov.h"
#include "sched/sync.h"
#include "sched/table.h"

#define SECTOR CRYPTO_SECTOR_BYTES
/* Written in pieces of this size: a multiple of every sector. */
#define PIECE_BYTES ((size_t)(1 * MIB))
/* Buffers of all writes together. */
#define BUFFERS_BYTES (32 * MIB)
/* What the loop does by itself, some tens of microseconds at most. */
#define AT_ONCE_QUICK_BYTES ((size_t)(64 * KIB))
#define AT_ONCE_SLOW_BYTES  ((size_t)(4 * KIB))

struct encrypted_disk {
    struct disk base;
    struct disk *inner;
    struct cipher *cipher;
    size_t at_once_bytes;
    struct request_table *sectors; /* writes, held as the header says */
    struct budget buffers;
};

static struct encrypted_disk *encrypted_of(struct disk *disk)
{
    return container_of(disk, struct encrypted_disk, base);
}

static int note_size(struct encrypted_disk *d, int result)
{
    d->base.size_bytes = d->inner->size_bytes;
    return result;
}

/* ---- The cipher ---- */

struct crypt_work {
    struct cipher_lane *lane;
    bool encrypt;
    uint64_t sector;
    const uint8_t *in;
    uint8_t *out;
    size_t len;
};

static void run_crypt(void *arg)
{
    struct crypt_work *work = arg;
    if (work->encrypt) {
        cipher_encrypt(work->lane, work->sector, work->in, work->out, work->len);
    } else {
        cipher_decrypt(work->lane, work->sector, work->in, work->out, work->len);
    }
}

/* len: whole sectors. */
static int co_crypt(struct encrypted_disk *d, bool encrypt, uint64_t offset, const uint8_t *in,
                    uint8_t *out, size_t len)
{
    struct cipher_lane *lane = cipher_lane_get(d->cipher);
    if (!lane) {
        return -ENOMEM;
    }
    struct crypt_work work = {lane, encrypt, offset / SECTOR, in, out, len};
    if (len <= d->at_once_bytes) {
        run_crypt(&work);
    } else {
        d->base.world->ops->co_work(d->base.world, run_crypt, &work);
    }
    cipher_lane_put(d->cipher, lane);
    return 0;
}

/* ---- Reading ---- */

static bool is_whole(uint64_t offset, const struct iovec *iov, int iov_count)
{
    uint64_t bits = offset;
    for (int i = 0; i < iov_count; i++) {
        bits |= iov[i].iov_len;
    }
    return bits % SECTOR == 0;
}

static int co_read_whole(struct encrypted_disk *d, uint64_t offset, uint64_t cipher_offset,
                         const struct iovec *iov, int iov_count)
{
    int ret = d->inner->ops->co_read(d->inner, offset, iov, iov_count);
    for (int i = 0; ret == 0 && i < iov_count; i++) {
        uint8_t *bytes = iov[i].iov_base;
        ret = co_crypt(d, false, cipher_offset, bytes, bytes, iov[i].iov_len);
        cipher_offset += iov[i].iov_len;
    }
    return ret;
}

static int co_read_sectors(struct encrypted_disk *d, uint64_t offset, uint64_t cipher_offset,
                           void *buf, size_t len)
{
    struct iovec iov = {buf, len};
    return co_read_whole(d, offset, cipher_offset, &iov, 1);
}

static int co_read_as(struct encrypted_disk *d, uint64_t offset, uint64_t cipher_offset,
                      const struct iovec *iov, int iov_count)
{
    if (is_whole(offset, iov, iov_count)) {
        return co_read_whole(d, offset, cipher_offset, iov, iov_count);
    }
    uint64_t total = iov_total_bytes(iov, iov_count);
    size_t head = (size_t)(offset % SECTOR);
    size_t capacity = (size_t)MIN_OF(round_up_to(head + total, SECTOR), PIECE_BYTES);
    uint8_t *bounce = total > 0 ? buffer_get(capacity) : NULL;
    int ret = bounce || total == 0 ? 0 : -ENOMEM;

    for (uint64_t done = 0; ret == 0 && done < total;) {
        size_t run = (size_t)MIN_OF(round_up_to(head + total - done, SECTOR), capacity);
        size_t part = (size_t)MIN_OF(run - head, total - done);
        ret = co_read_sectors(d, offset + done - head, cipher_offset + done - head, bounce, run);
        if (ret == 0) {
            iov_copy_in(iov, iov_count, done, bounce + head, part);
        }
        done += part;
        head = 0;
    }
    buffer_put(bounce, capacity);
    return ret;
}

static int co_encrypted_read(struct disk *disk, uint64_t offset, const struct iovec *iov,
                             int iov_count)
{
    struct encrypted_disk *d = encrypted_of(disk);
    return note_size(d, co_read_as(d, offset, offset, iov, iov_count));
}

int co_encrypted_disk_read_as(struct disk *disk, uint64_t offset, uint64_t cipher_offset, void *buf,
                              size_t len)
{
    struct iovec iov = {buf, len};
    assert((offset - cipher_offset) % SECTOR == 0);
    return co_read_as(encrypted_of(disk), offset, cipher_offset, &iov, 1);
}

/* ---- Writing; the sectors are held ---- */

/* The first and last sector of [at, at + run) keep what the write [offset, end) leaves of them. */
static int co_fill_edges(struct encrypted_disk *d, uint64_t at, uint8_t *bytes, size_t run,
                         uint64_t offset, uint64_t end)
{
    uint64_t last = at + run - SECTOR;
    int ret = 0;

    if (at < offset) {
        ret = co_read_sectors(d, at, at, bytes, SECTOR);
    }
    if (ret == 0 && last + SECTOR > end && (last != at || at >= offset)) {
        ret = co_read_sectors(d, last, last, bytes + (last - at), SECTOR);
    }
    return ret;
}

/* Encrypted into `bounce`: the run [at, at + run) of a write that begins at `offset`. */
static int co_encrypt_run(struct encrypted_disk *d, uint64_t at, uint8_t *bounce, size_t run,
                          uint64_t offset, const struct iovec *iov, int iov_count)
{
    uint64_t end = offset + iov_total_bytes(iov, iov_count);
    if (iov_count == 1 && at >= offset && at + run <= end) {
        const uint8_t *bytes = iov[0].iov_base;
        return co_crypt(d, true, at, bytes + (at - offset), bounce, run);
    }
    uint64_t from = MAX_OF(at, offset);
    int ret = co_fill_edges(d, at, bounce, run, offset, end);
    if (ret == 0) {
        iov_copy_out(iov, iov_count, from - offset, bounce + (from - at),
                     (size_t)(MIN_OF(at + run, end) - from));
        ret = co_crypt(d, true, at, bounce, bounce, run);
    }
    return ret;
}

static int co_write_runs(struct encrypted_disk *d, uint64_t offset, const struct iovec *iov,
                         int iov_count, uint64_t from, uint64_t to)
{
    size_t capacity = (size_t)MIN_OF(to - from, PIECE_BYTES);
    co_budget_take(&d->buffers, capacity);
    uint8_t *bounce = buffer_get(capacity);
    int ret = bounce ? 0 : -ENOMEM;

    for (uint64_t at = from; ret == 0 && at < to; at += capacity) {
        size_t run = (size_t)MIN_OF(to - at, capacity);
        ret = co_encrypt_run(d, at, bounce, run, offset, iov, iov_count);
        if (ret == 0) {
            ret = co_disk_write(d->inner, at, bounce, run);
        }
    }
    buffer_put(bounce, capacity);
    budget_give(&d->buffers, capacity);
    return ret;
}

static int co_encrypted_write(struct disk *disk, uint64_t offset, const struct iovec *iov,
                              int iov_count)
{
    struct encrypted_disk *d = encrypted_of(disk);
    uint64_t total = iov_total_bytes(iov, iov_count);
    uint64_t from = round_down_to(offset, SECTOR);
    uint64_t to = round_up_to(offset + total, SECTOR);
    bool whole = from == offset && to == offset + total;
    struct hold *hold;

    if (total == 0) {
        return 0;
    }
    int ret = co_hold(d->sectors, whole ? HOLD_SHARED : HOLD_EXCLUSIVE, from, to - from, &hold);
    if (ret < 0) {
        return ret;
    }
    ret = co_write_runs(d, offset, iov, iov_count, from, to);
    hold_release(hold);
    return note_size(d, ret);
}

/* ---- What the file does as it is ---- */

static int co_encrypted_flush(struct disk *disk)
{
    return co_disk_flush(encrypted_of(disk)->inner);
}

static int co_encrypted_zero(struct disk *disk, uint64_t offset, uint64_t len)
{
    struct encrypted_disk *d = encrypted_of(disk);
    return note_size(d, d->inner->ops->co_zero(d->inner, offset, len));
}

static int co_encrypted_punch(struct disk *disk, uint64_t offset, uint64_t len)
{
    struct encrypted_disk *d = encrypted_of(disk);
    return d->inner->ops->co_punch(d->inner, offset, len);
}

static int co_encrypted_truncate(struct disk *disk, uint64_t size_bytes)
{
    struct encrypted_disk *d = encrypted_of(disk);
    return note_size(d, d->inner->ops->co_truncate(d->inner, size_bytes));
}

static int co_encrypted_next_extent(struct disk *disk, uint64_t offset, bool *is_hole,
                                    uint64_t *end)
{
    struct encrypted_disk *d = encrypted_of(disk);
    return d->inner->ops->co_next_extent(d->inner, offset, is_hole, end);
}

static int co_encrypted_free_bytes(struct disk *disk, uint64_t *free_bytes)
{
    struct encrypted_disk *d = encrypted_of(disk);
    return d->inner->ops->co_free_bytes ? d->inner->ops->co_free_bytes(d->inner, free_bytes)
                                        : -EOPNOTSUPP;
}

static void encrypted_close(struct disk *disk)
{
    struct encrypted_disk *d = encrypted_of(disk);
    request_table_free(d->sectors);
    cipher_free(d->cipher);
    free(d);
}

static const struct disk_ops encrypted_ops = {
    .co_read = co_encrypted_read,
    .co_write = co_encrypted_write,
    .co_flush = co_encrypted_flush,
    .co_zero = co_encrypted_zero,
    .co_punch = co_encrypted_punch,
    .co_truncate = co_encrypted_truncate,
    .co_next_extent = co_encrypted_next_extent,
    .co_free_bytes = co_encrypted_free_bytes,
    .close = encrypted_close,
};

int encrypted_disk_create(struct disk *inner, struct cipher *cipher, const struct cipher_spec *spec,
                          struct disk **out)
{
    struct encrypted_disk *d = calloc(1, sizeof(*d));
    struct request_table *sectors = d ? request_table_create(NULL, NULL) : NULL;
    if (!sectors) {
        free(d);
        return -ENOMEM;
    }
    d->base = *inner;
    d->base.ops = &encrypted_ops;
    d->inner = inner;
    d->cipher = cipher;
    d->at_once_bytes = spec->alg->quick ? AT_ONCE_QUICK_BYTES : AT_ONCE_SLOW_BYTES;
    d->sectors = sectors;
    budget_init(&d->buffers, BUFFERS_BYTES);
    *out = &d->base;
    return 0;
}
