/* SPDX-License-Identifier: BSD-2-Clause */
/*
 * An error for people beside the -errno for code: the message names the file, the field, the value
 * found and what was allowed. The innermost function that knows says it; callers pass it up.
 */
#ifndef QCOWD_BASE_ERRTEXT_H
#define QCOWD_BASE_ERRTEXT_H

struct errtext {
    char text[768];
};

/*
 * Sets the message (replacing an earlier one) and returns -errno_value, so that
 * `return err_set(err, EINVAL, "...")` is one line. errno_value > 0. err may be NULL. Control
 * characters, which paths may have, become '?'.
 */
int err_set(struct errtext *err, int errno_value, const char *format, ...)
    __attribute__((format(printf, 3, 4)));

/* Puts "prefix: " in front of the message there is. */
void err_prefix(struct errtext *err, const char *format, ...) __attribute__((format(printf, 2, 3)));

/*
 * Copies `len` bytes of foreign text to `out` (of out_bytes >= 8), as printable ASCII: everything
 * else becomes \xNN, and what does not fit ends in "...". Returns out. For names from images and
 * peers.
 */
const char *err_sanitise(char *out, unsigned long out_bytes, const void *foreign,
                         unsigned long len);

#endif
