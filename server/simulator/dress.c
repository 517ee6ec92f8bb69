/* SPDX-License-Identifier: BSD-2-Clause */
/*
 * Compressed data is deflate's stored blocks: the oracle's patterns do not compress, and a
 * descriptor may name up to two clusters' worth of sectors.
 */
#include "simulator/dress.h"

#include <stdlib.h>
#include <string.h>

#include "base/bytes.h"
#include "base/check.h"
#include "io/sim.h"
#include "qcow2/ondisk.h"

#define STORED_BLOCK_MAX    65535U
#define STORED_HEADER_BYTES 5U

struct file_bytes {
    struct world *world;
    const char *path;
    uint8_t *bytes;
    uint64_t len;
    uint32_t cluster_bits;
    uint64_t cluster_bytes;
    uint32_t refcount_bits;
    bool extended_l2;
    uint64_t l1_offset;
    uint32_t l1_entries;
};

static void must(bool good)
{
    if (!good) {
        abort();
    }
}

static struct file_bytes take_bytes(struct world *world, const char *path)
{
    struct file_bytes file = {.world = world, .path = path};
    must(sim_file_get(world, path, (void **)&file.bytes, &file.len) == 0);
    const struct qcow2_disk_header *header = (const void *)file.bytes;
    file.cluster_bits = get_be32(&header->cluster_bits);
    file.cluster_bytes = 1ULL << file.cluster_bits;
    file.refcount_bits = 16;
    if (get_be32(&header->version) >= 3) {
        file.refcount_bits = 1U << get_be32(&header->refcount_order);
        file.extended_l2 =
            (get_be64(&header->incompatible_features) & QCOW2_INCOMPAT_EXTENDED_L2) != 0;
    }
    file.l1_offset = get_be64(&header->l1_table_offset);
    file.l1_entries = get_be32(&header->l1_size);
    return file;
}

static void put_bytes(struct file_bytes *file, const char *path)
{
    must(sim_file_put(file->world, path, file->bytes, file->len) == 0);
    free(file->bytes);
}

/* Room for `count` new clusters at the end; returns where. */
static uint64_t append_clusters(struct file_bytes *file, uint64_t count)
{
    uint64_t at = round_up_to(file->len, file->cluster_bytes);
    uint64_t len = at + count * file->cluster_bytes;
    file->bytes = realloc(file->bytes, (size_t)len);
    must(file->bytes != NULL);
    memset(file->bytes + file->len, 0, (size_t)(len - file->len));
    file->len = len;
    return at;
}

static uint64_t stored_bytes(uint64_t len)
{
    return len + div_round_up(len, STORED_BLOCK_MAX) * STORED_HEADER_BYTES;
}

static void write_stored(uint8_t *to, const uint8_t *from, uint64_t len)
{
    while (len > 0) {
        uint16_t part = (uint16_t)MIN_OF(len, STORED_BLOCK_MAX);
        to[0] = part == len; /* the final block */
        to[1] = (uint8_t)part;
        to[2] = (uint8_t)(part >> 8);
        to[3] = (uint8_t)~to[1];
        to[4] = (uint8_t)~to[2];
        memcpy(to + STORED_HEADER_BYTES, from, part);
        to += STORED_HEADER_BYTES + part;
        from += part;
        len -= part;
    }
}

/* Where the next compressed cluster goes: packed behind the last where counts can tell many users.
 */
static uint64_t place_compressed(struct file_bytes *file, uint64_t *packed_end)
{
    uint64_t len = stored_bytes(file->cluster_bytes);
    uint64_t at = *packed_end;
    bool fits = at != 0 && at % QCOW2_COMPRESSED_SECTOR_BYTES + len <= 2 * file->cluster_bytes;
    if (!fits || file->refcount_bits < 8) {
        at = append_clusters(file, div_round_up(len, file->cluster_bytes));
    } else if (at + len > file->len) {
        append_clusters(file, div_round_up(at + len - file->len, file->cluster_bytes));
    }
    *packed_end = at + len;
    return at;
}

static void compress_entry(struct file_bytes *file, uint64_t entry_offset, uint64_t *packed_end)
{
    uint64_t descriptor = get_be64(file->bytes + entry_offset);
    uint64_t host = descriptor & QCOW2_L2_OFFSET;
    bool whole = !file->extended_l2 ||
                 get_be64(file->bytes + entry_offset + 8) == (1ULL << QCOW2_SUBCLUSTERS) - 1;
    if (host == 0 || (descriptor & (QCOW2_COMPRESSED | QCOW2_ZERO)) || !whole ||
        sim_random_below(file->world, 3) == 0) {
        return;
    }
    uint64_t at = place_compressed(file, packed_end);
    if (host + file->cluster_bytes > file->len) {
        return;
    }
    write_stored(file->bytes + at, file->bytes + host, file->cluster_bytes);
    uint64_t last = at + stored_bytes(file->cluster_bytes) - 1;
    uint64_t more_sectors =
        last / QCOW2_COMPRESSED_SECTOR_BYTES - at / QCOW2_COMPRESSED_SECTOR_BYTES;
    put_be64(file->bytes + entry_offset,
             QCOW2_COMPRESSED | more_sectors << (62 - (file->cluster_bits - 8)) | at);
    if (file->extended_l2) {
        put_be64(file->bytes + entry_offset + 8, 0);
    }
}

void dress_compress(struct world *world, const char *path)
{
    struct file_bytes file = take_bytes(world, path);
    uint64_t entry_bytes = file.extended_l2 ? 16 : 8;
    uint64_t packed_end = 0;
    for (uint32_t i = 0; i < file.l1_entries; i++) {
        uint64_t table = get_be64(file.bytes + file.l1_offset + i * 8ULL) & QCOW2_L1_OFFSET;
        for (uint64_t at = 0; table != 0 && at < file.cluster_bytes; at += entry_bytes) {
            compress_entry(&file, table + at, &packed_end);
        }
    }
    put_bytes(&file, path);
}

void dress_snapshot(struct world *world, const char *path, struct dressed_snapshot *snapshot)
{
    static const char id[] = "1";
    static const char name[] = "before";
    struct file_bytes file = take_bytes(world, path);
    must(file.refcount_bits > 1);
    uint64_t l1_bytes = file.l1_entries * 8ULL;
    snapshot->l1_entries = file.l1_entries;
    snapshot->size_bytes = get_be64(&((const struct qcow2_disk_header *)file.bytes)->size);
    snapshot->l1_offset =
        append_clusters(&file, MAX_OF(div_round_up(l1_bytes, file.cluster_bytes), 1U));
    memcpy(file.bytes + snapshot->l1_offset, file.bytes + file.l1_offset, (size_t)l1_bytes);

    uint64_t table = append_clusters(&file, 1);
    struct qcow2_disk_header *header = (void *)file.bytes;
    struct qcow2_disk_snapshot *entry = (void *)(file.bytes + table);
    put_be64(&entry->l1_table_offset, snapshot->l1_offset);
    put_be32(&entry->l1_size, snapshot->l1_entries);
    put_be16(&entry->id_size, sizeof(id) - 1);
    put_be16(&entry->name_size, sizeof(name) - 1);
    put_be32(&entry->extra_data_size, 16);
    uint8_t *extra = file.bytes + table + sizeof(*entry);
    memcpy(extra + 8, &header->size, 8); /* the disk's size; the VM state's is zero */
    memcpy(extra + 16, id, sizeof(id) - 1);
    memcpy(extra + 16 + sizeof(id) - 1, name, sizeof(name) - 1);
    put_be32(&header->nb_snapshots, 1);
    put_be64(&header->snapshots_offset, table);
    put_bytes(&file, path);
}

void dress_copy_snapshot(struct world *world, const char *path,
                         const struct dressed_snapshot *snapshot, const char *copy)
{
    struct file_bytes file = take_bytes(world, path);
    struct qcow2_disk_header *header = (void *)file.bytes;
    put_be64(&header->l1_table_offset, snapshot->l1_offset);
    put_be32(&header->l1_size, snapshot->l1_entries);
    put_be64(&header->size, snapshot->size_bytes);
    put_be32(&header->nb_snapshots, 0);
    put_be64(&header->snapshots_offset, 0);
    put_bytes(&file, copy);
}
