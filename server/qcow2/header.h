/* SPDX-License-Identifier: BSD-2-Clause */
/*
 * The header of an image: read, validated, described, and the few fields of it that may change
 * changed in place. Everything here distrusts its input (O10): after co_header_read() has
 * succeeded, all tables named by the header lie inside the file, aligned, of sane size, and do not
 * overlap.
 */
#ifndef QCOWD_QCOW2_HEADER_H
#define QCOWD_QCOW2_HEADER_H

#include <stdbool.h>
#include <stdint.h>

#include "base/errtext.h"
#include "io/world.h"
#include "qcow2/geometry.h"

struct snapshot {
    host_off l1_offset;
    uint32_t l1_entries;
    char *id;   /* terminated; owned */
    char *name; /* terminated; owned; not sanitised */
    uint64_t
        disk_size_bytes; /* of the guest's disk when it was taken (extra data; else the image's) */
    bool disk_size_given;
    uint64_t vm_state_bytes;
    uint32_t date_sec;
};

struct header {
    uint32_t version;
    struct geometry geo;
    uint32_t crypt_method;
    host_off l1_offset;
    uint32_t l1_entries;
    host_off reftable_offset;
    uint32_t reftable_clusters;
    host_off snapshots_offset;
    uint64_t snapshots_len_bytes; /* of the snapshot table */
    uint32_t snapshot_count;
    struct snapshot *snapshots; /* owned */
    uint64_t incompatible;
    uint64_t compatible;
    uint64_t autoclear;
    uint32_t header_len_bytes;
    uint8_t compression;   /* enum qcow2_compression */
    char *backing_name;    /* NULL: none; owned; as the image gives it */
    char *backing_format;  /* NULL: not named; owned */
    char *data_file_name;  /* NULL: none; owned */
    uint32_t bitmap_count; /* from the bitmaps extension; 0: none */
    host_off bitmap_directory_offset;
    uint64_t bitmap_directory_len_bytes;
    host_off crypto_header_offset; /* from the encryption extension; length 0: none */
    uint64_t crypto_header_len_bytes;
    /*
     * What the feature name table calls the lowest unknown incompatible bit, sanitised; or "bit N".
     */
    char unknown_feature[64];
};

/* Why the image is opened decides how strict header_admit() is. */
enum header_purpose {
    HEADER_FOR_INFO,
    HEADER_FOR_CHECK,
    HEADER_FOR_BITMAPS, /* to change them, and nothing else */
    HEADER_FOR_READING,
    HEADER_FOR_WRITING,
};

/*
 * Reads and validates header, extensions and snapshot table. The caller ends *header with
 * header_free(), after success only. Errors: -EINVAL (not qcow2, or a field out of range), -ENOTSUP
 * (version), -EIO, -ENOMEM; err says file, field, value and what is allowed. May suspend.
 * Unknown incompatible bits are no error here, header_admit() refuses them by name.
 * Sections "Header", "Header extensions", "Snapshots".
 */
int co_header_read(struct disk *disk, struct header *header, struct errtext *err);

void header_free(struct header *header);

/*
 * Whether an image may be used for this purpose. Unknown incompatible features are refused by the
 * name that the image's feature name table gives them (co_header_read keeps the table's answer in
 * header->unknown_feature). AES encryption (method 1): -ENOTSUP for
 * writing; LUKS without its header: -EINVAL. An external data file
 * without a name, with snapshots, or raw and with a backing file: -EINVAL for reading and writing.
 * Corrupt bit: -EIO for writing and for changes to bitmaps, says to run `qcowd check --repair all`.
 * zstd without libzstd built in: -ENOTSUP. Info
 * and check see everything but unknown incompatible features (check) or all (info). Does not
 * suspend.
 */
int header_admit(const struct header *header, enum header_purpose purpose, const char *path,
                 struct errtext *err);

/*
 * Rewrites single fields inside the first 512 bytes of the file, in one write that keeps every
 * other byte. Not durable before the next flush. All update *header on success. May suspend.
 */
int co_header_set_features(struct disk *disk, struct header *header, uint64_t incompatible,
                           uint64_t autoclear);
int co_header_set_reftable(struct disk *disk, struct header *header, host_off offset,
                           uint32_t clusters);
int co_header_set_l1(struct disk *disk, struct header *header, host_off offset, uint32_t entries);
/* Of the guest's disk; header->geo has it afterwards. */
int co_header_set_size(struct disk *disk, struct header *header, uint64_t size_bytes);

#endif
