/* SPDX-License-Identifier: BSD-2-Clause */
/*
 * Reading compressed clusters: raw deflate (no zlib header, window of 4 KiB as the format says, up
 * to 32 KiB accepted) and zstd. Runs on workers, never on a coroutine's stack.
 */
#ifndef QCOWD_QCOW2_COMPRESS_H
#define QCOWD_QCOW2_COMPRESS_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "io/world.h"
#include "qcow2/ondisk.h"

/*
 * Inflates a whole cluster: exactly out_len bytes come out; bytes after the end of the stream in
 * [in, in + in_len) are ignored (they belong to the next cluster). A deflate stream that goes on
 * past out_len is cut there, a zstd frame that does is damaged: both as QEMU takes them. 0; -EIO
 * when the data is damaged or yields less; -ENOMEM; -ENOTSUP for a method that is not built in.
 * Pure; may use much stack, so only worker threads (or tests) call it.
 */
int inflate_cluster(enum qcow2_compression method, const uint8_t *in, size_t in_len, uint8_t *out,
                    size_t out_len);

/* The same on a worker of `world`. May suspend. The buffers must stay until it returns. */
int co_inflate_cluster(struct world *world, enum qcow2_compression method, const uint8_t *in,
                       size_t in_len, uint8_t *out, size_t out_len);

/* Whether a method is built in. */
bool compression_supported(enum qcow2_compression method);

#endif
