/* SPDX-License-Identifier: BSD-2-Clause */
/*
 * Scattered buffers as one run of bytes: length, a window into the middle, copying and zeroing.
 * Only iov_advance() changes the iovec array it is given.
 */
#ifndef QCOWD_IO_IOV_H
#define QCOWD_IO_IOV_H

#include <stddef.h>
#include <stdint.h>
#include <sys/uio.h>

uint64_t iov_total_bytes(const struct iovec *iov, int iov_count);

/*
 * Drops the first done_bytes, and empty entries in front of what is left: *iov_count is 0 when
 * nothing is. Asserts that they are there.
 */
void iov_advance(struct iovec **iov, int *iov_count, size_t done_bytes);

/*
 * Describes the bytes from `skip_bytes` on, as many as fit into `capacity` entries and max_bytes.
 * Returns the entries used; *bytes is their sum.
 */
int iov_window(const struct iovec *iov, int iov_count, uint64_t skip_bytes, struct iovec *window,
               int capacity, size_t max_bytes, size_t *bytes);

/* Copies len bytes between buf and the bytes from `at` on; asserts that they are there. */
void iov_copy_in(const struct iovec *iov, int iov_count, uint64_t at, const void *buf, size_t len);
void iov_copy_out(const struct iovec *iov, int iov_count, uint64_t at, void *buf, size_t len);

/* Zeroes everything from `at` on. */
void iov_zero_from(const struct iovec *iov, int iov_count, uint64_t at);

#endif
