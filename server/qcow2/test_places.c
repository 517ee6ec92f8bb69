/* SPDX-License-Identifier: BSD-2-Clause */
/* A call that touches metadata is told from a guest's by the buffers it writes from. */
#include "qcow2/test_places.h"

#include "base/bytes.h"

static bool inside(uint64_t offset, uint64_t start, uint64_t len)
{
    return offset >= start && offset - start < len;
}

char rig_place_of(const struct qcow2 *q, uint64_t offset)
{
    uint64_t cluster_start = round_down_to(offset, q->geo.cluster_bytes);

    if (cluster_start == 0) {
        return RIG_HEADER;
    }
    if (inside(offset, q->header.l1_offset.bytes, (uint64_t)q->header.l1_entries * 8) ||
        inside(offset, q->l1.new_first << q->geo.cluster_bits,
               (uint64_t)q->l1.new_clusters << q->geo.cluster_bits)) {
        return RIG_L1;
    }
    for (uint64_t i = 0; i < q->l1.count; i++) {
        if ((q->l1.entries[i] & QCOW2_L1_OFFSET) == cluster_start) {
            return RIG_L2;
        }
    }
    for (uint64_t i = 0; i < q->reftable.count; i++) {
        if (q->reftable.entries[i] == cluster_start) {
            return RIG_REFBLOCK;
        }
    }
    /* A table on its way to its new place is not in the header yet, but in the map of metadata. */
    if (inside(offset, q->header.reftable_offset.bytes,
               (uint64_t)q->header.reftable_clusters << q->geo.cluster_bits) ||
        (q->metamap.slots && metamap_contains(&q->metamap, offset >> q->geo.cluster_bits))) {
        return RIG_REFTABLE;
    }
    return RIG_DATA;
}

/* A write to metadata must be the engine's own. */
static bool is_slice_write(struct qcow2 *q, uint64_t offset, const struct iovec *iov, int iov_count)
{
    uint64_t at = offset;
    for (int i = 0; i < iov_count; i++, at += q->geo.slice_bytes) {
        if (at % q->geo.slice_bytes != 0 || iov[i].iov_len != q->geo.slice_bytes) {
            return false;
        }
        struct slice *slice = slice_peek(&q->cache, (host_off){at});
        if (!slice || !slice->committing ||
            (iov[i].iov_base != slice->bytes && iov[i].iov_base != slice->committing_bytes)) {
            return false;
        }
    }
    return true;
}

static bool is_own_write(struct qcow2 *q, char place, uint64_t offset, uint64_t len,
                         const struct iovec *iov, int iov_count)
{
    switch ((enum rig_place)place) {
    case RIG_HEADER:
        return offset == 0 && len <= 512 && get_be32(iov[0].iov_base) == QCOW2_MAGIC;
    case RIG_L2:
    case RIG_REFBLOCK:
        return is_slice_write(q, offset, iov, iov_count);
    case RIG_L1:
    case RIG_REFTABLE:
        return q->commit.running;
    case RIG_DATA:
        return true;
    }
    return false;
}

/* Space for a blank part of the L1 table, or an L2 table that nobody names any more. */
static bool is_own_zero(const struct qcow2 *q, enum rig_call call, char place, uint64_t offset,
                        uint64_t len)
{
    uint64_t table = q->header.reftable_offset.bytes;
    uint64_t table_len = (uint64_t)q->header.reftable_clusters << q->geo.cluster_bits;
    if (call == RIG_PUNCH && place == RIG_REFTABLE) {
        return offset + len <= table || offset >= table + table_len;
    }
    if (call != RIG_ZERO || place != RIG_L1) {
        return false;
    }
    for (uint64_t at = 0; at < len; at += 8) {
        if (q->l1.entries[(offset - q->header.l1_offset.bytes + at) / 8] != 0) {
            return false;
        }
    }
    return true;
}

bool rig_call_changes(enum rig_call call)
{
    return call == RIG_WRITE || call == RIG_ZERO || call == RIG_PUNCH;
}

bool rig_harms_metadata(struct qcow2 *q, enum rig_call call, uint64_t offset, uint64_t len,
                        const struct iovec *iov, int iov_count, uint64_t *wrong)
{
    char first = rig_place_of(q, offset);
    bool own = call == RIG_WRITE ? is_own_write(q, first, offset, len, iov, iov_count)
                                 : is_own_zero(q, call, first, offset, len);
    uint64_t last = (offset + len - 1) >> q->geo.cluster_bits;

    for (uint64_t c = offset >> q->geo.cluster_bits; c <= last; c++) {
        char place = rig_place_of(q, MAX_OF(c << q->geo.cluster_bits, offset));
        if (place != RIG_DATA && (!own || first == RIG_DATA)) {
            *wrong = c;
            return true;
        }
    }
    return false;
}
