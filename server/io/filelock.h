/* SPDX-License-Identifier: BSD-2-Clause */
/*
 * The byte-range locks by which QEMU processes keep each other off an image (file-posix.c of QEMU:
 * OFD locks; byte 100 + p is held shared by who uses permission p, byte 200 + p by who does not let
 * others use it). Taken as QEMU's qcow2 driver takes them on its file, so that qcowd and QEMU
 * refuse each other exactly where two QEMUs would.
 */
#ifndef QCOWD_IO_FILELOCK_H
#define QCOWD_IO_FILELOCK_H

#include <stdbool.h>

#include "base/errtext.h"

/*
 * Locks the open file for a writer (uses consistent-read, write, resize; lets others do neither
 * write nor resize) or a reader (uses consistent-read; lets others neither write nor resize).
 * Released by close(). Never waits. -EAGAIN: somebody else holds it, err says which lock and what
 * to do. A file system without OFD locks: 0 with a warning. Does not suspend.
 */
int filelock_take(int fd, const char *path, bool writable, struct errtext *err);

#endif
