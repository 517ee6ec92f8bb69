/* SPDX-License-Identifier: BSD-2-Clause */
/*
 * Payload buffers: page-aligned, recycled by size class, one pool a thread.
 *
 * Every READ and WRITE needs a buffer for a few microseconds. Fresh memory costs a page fault for
 * each 4 KiB, which is more than copying it; a recycled buffer costs a list operation. The pool
 * keeps a bounded number of bytes and hands the rest back. How many bytes may be in use is not its
 * business: callers hold a budget.
 */
#ifndef QCOWD_IO_BUFFERS_H
#define QCOWD_IO_BUFFERS_H

#include <stddef.h>

#define BUFFER_ALIGNMENT_BYTES 4096U

/* At least len bytes (len > 0), aligned, content undefined. NULL on out of memory. */
void *buffer_get(size_t len);

/* Gives it back; len is what was asked for. NULL is fine. */
void buffer_put(void *buffer, size_t len);

/* Bytes that lie unused in this thread's pool. */
size_t buffer_pool_bytes(void);

/* Frees this thread's pool (for leak checkers, and before a thread ends). */
void buffer_pool_drain(void);

#endif
