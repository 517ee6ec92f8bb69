/* SPDX-License-Identifier: BSD-2-Clause */
/*
 * Makes a new, empty image that qemu-img accepts as its own.
 */
#ifndef QCOWD_QCOW2_CREATE_H
#define QCOWD_QCOW2_CREATE_H

#include <stdbool.h>
#include <stdint.h>

#include "base/errtext.h"
#include "io/world.h"
#include "qcow2/key.h"
#include "qcow2/unlock.h"

struct create_options {
    /* Rounded up to a multiple of 512, as qemu-img does. 0 with a backing file means: its size; the
     * caller fills it in. */
    uint64_t size_bytes;
    uint32_t version;           /* 2 or 3; default 3 */
    uint64_t cluster_bytes;     /* 512 .. 2 MiB, a power of two; default 64 KiB */
    uint32_t refcount_bits;     /* 1 .. 64, a power of two; default 16; 16 only with version 2 */
    bool extended_l2;           /* version 3, clusters of 16 KiB and more */
    bool lazy_refcounts;        /* sets the compatible bit, as qemu-img does; version 3 */
    uint8_t compression;        /* enum qcow2_compression; version 3 */
    const char *backing_name;   /* NULL: none */
    const char *backing_format; /* must be given with backing_name: "qcow2" or "raw" */
    const char *data_file_name; /* NULL: none; version 3 */
    bool data_file_raw;         /* with a data file, and without a backing file */
    struct encryption_options encryption; /* not with data_file_raw, whose bytes are the guest's */
    const struct image_key *key;          /* the passphrase of an encrypted image */
};

void create_options_init(struct create_options *options);

/*
 * Parses one "OPTION=VALUE" of `qcowd create -o`: size, compat (0.10, 1.1, v2, v3), cluster_size,
 * refcount_bits, extended_l2, lazy_refcounts, compression_type, backing_file, backing_fmt,
 * data_file, data_file_raw, encrypt.format (luks), encrypt.cipher-alg, encrypt.cipher-mode,
 * encrypt.ivgen-alg, encrypt.ivgen-hash-alg, encrypt.hash-alg, encrypt.iter-time; names and values
 * as qemu-img takes them, sizes with suffixes k M G T P. Strings point into the argument. -EINVAL
 * with err naming option, value and what is allowed. Does not suspend.
 */
int create_option_parse(struct create_options *options, char *assignment, struct errtext *err);

/*
 * "10G" -> bytes: number with optional k K M G T P E, times 1024 each; "1.5G" too, cut to whole
 * bytes. -EINVAL, -ERANGE.
 */
int parse_size(const char *text, uint64_t *bytes);

/*
 * Whether an image with these options can be made; -EINVAL or -ENOTSUP, err names the option, its
 * value and what is allowed. Does not suspend.
 */
int create_options_check(const struct create_options *options, struct errtext *err);

/*
 * Checks the options and writes the image to `path`, which must not exist yet (-EEXIST), its
 * contents durable when it returns. On failure the file is removed if it was made here; what a
 * crash leaves behind is not a qcow2 image, as the header is written last.
 *
 * A data file is made, too, as long as the disk. One that is there already is taken as it is if it
 * is long enough and its bytes are not lost by it: if it is to be the disk (data_file_raw), or is a
 * block device; else -EEXIST. May suspend.
 */
int co_qcow2_create(struct world *world, const char *path, const struct create_options *options,
                    struct errtext *err);

#endif
