/* SPDX-License-Identifier: BSD-2-Clause */
/* Well-formed UTF-8, as NBD wants names: no overlong forms, surrogates, values past U+10FFFF. */
#ifndef QCOWD_BASE_UTF8_H
#define QCOWD_BASE_UTF8_H

#include <stdbool.h>
#include <stddef.h>

/* Whether it is text on the wire: well formed, and without a NUL. */
bool utf8_is_text(const void *bytes, size_t len);

/* Bytes of the character that the text (len > 0) begins with, 0 when it is none. */
size_t utf8_sequence_bytes(const void *bytes, size_t len);

#endif
