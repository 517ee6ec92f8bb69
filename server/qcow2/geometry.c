/* SPDX-License-Identifier: BSD-2-Clause */
/* Refcounts narrower than a byte pack from the low bit up; wider ones are big endian. */
#include "qcow2/geometry.h"

#include "base/bytes.h"

/* One page: small enough to write back alone, large enough to amortise its bookkeeping. */
#define SLICE_BYTES_MAX 4096U

void geometry_init(struct geometry *geo, uint32_t cluster_bits, bool extended_l2, uint32_t version,
                   uint32_t refcount_order, uint64_t size_bytes)
{
    assert(cluster_bits >= QCOW2_CLUSTER_BITS_MIN && cluster_bits <= QCOW2_CLUSTER_BITS_MAX);
    assert(refcount_order <= QCOW2_REFCOUNT_ORDER_MAX);
    uint64_t cluster_bytes = 1ULL << cluster_bits;
    uint32_t l2_entry_bytes = extended_l2 ? 16 : 8;
    uint32_t slice_bytes = (uint32_t)MIN_OF(cluster_bytes, SLICE_BYTES_MAX);
    uint32_t subclusters = extended_l2 ? QCOW2_SUBCLUSTERS : 1;
    *geo = (struct geometry){
        .cluster_bits = cluster_bits,
        .cluster_bytes = cluster_bytes,
        .extended_l2 = extended_l2,
        .has_zero_flag = version >= 3,
        .l2_entry_bytes = l2_entry_bytes,
        .l2_entries = (uint32_t)(cluster_bytes / l2_entry_bytes),
        .l2_bits = cluster_bits - (extended_l2 ? 4 : 3),
        .slice_bytes = slice_bytes,
        .slice_l2_entries = slice_bytes / l2_entry_bytes,
        .refcount_order = refcount_order,
        .refcount_max = refcount_order == 6 ? UINT64_MAX : (1ULL << (1U << refcount_order)) - 1,
        .refblock_entries = (cluster_bytes * 8) >> refcount_order,
        .slice_refcounts = (slice_bytes * 8) >> refcount_order,
        .subcluster_bits = extended_l2 ? cluster_bits - 5 : cluster_bits,
        .subcluster_bytes = cluster_bytes / subclusters,
        .subclusters = subclusters,
        .size_bytes = size_bytes,
    };
}

uint64_t refcount_get(uint32_t order, const uint8_t *block, uint64_t index)
{
    switch (order) {
    case 0:
    case 1:
    case 2: {
        unsigned bits = 1U << order;
        uint64_t bit = index << order;
        return (uint64_t)(block[bit / 8] >> (bit % 8)) & ((1U << bits) - 1);
    }
    case 3:
        return block[index];
    case 4:
        return get_be16(block + index * 2);
    case 5:
        return get_be32(block + index * 4);
    default:
        assert(order == 6);
        return get_be64(block + index * 8);
    }
}

void refcount_set(uint32_t order, uint8_t *block, uint64_t index, uint64_t value)
{
    assert(order == 6 || value < 1ULL << (1U << order));
    switch (order) {
    case 0:
    case 1:
    case 2: {
        unsigned bits = 1U << order;
        unsigned shift = (unsigned)((index << order) % 8);
        uint8_t *byte = &block[(index << order) / 8];
        unsigned mask = ((1U << bits) - 1) << shift;
        *byte = (uint8_t)((*byte & ~mask) | ((unsigned)value << shift));
        break;
    }
    case 3:
        block[index] = (uint8_t)value;
        break;
    case 4:
        put_be16(block + index * 2, (uint16_t)value);
        break;
    case 5:
        put_be32(block + index * 4, (uint32_t)value);
        break;
    default:
        assert(order == 6);
        put_be64(block + index * 8, value);
        break;
    }
}
