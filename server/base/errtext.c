/* SPDX-License-Identifier: BSD-2-Clause */
/* Bounded formatting only: an over-long message is cut, never an error of its own. */
#include "base/errtext.h"

#include <assert.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>

/* A file's name has a right to line breaks and escape sequences; a message has not. */
static void make_one_line(struct errtext *err)
{
    for (char *c = err->text; *c; c++) {
        if ((unsigned char)*c < 0x20 || *c == 0x7f) {
            *c = '?';
        }
    }
}

int err_set(struct errtext *err, int errno_value, const char *format, ...)
{
    assert(errno_value > 0);
    if (err) {
        va_list args;
        va_start(args, format);
        vsnprintf(err->text, sizeof(err->text), format, args);
        va_end(args);
        make_one_line(err);
    }
    return -errno_value;
}

void err_prefix(struct errtext *err, const char *format, ...)
{
    if (!err) {
        return;
    }
    struct errtext tail = *err;
    va_list args;
    va_start(args, format);
    int used = vsnprintf(err->text, sizeof(err->text), format, args);
    va_end(args);
    if (used >= 0 && (size_t)used < sizeof(err->text)) {
        size_t room = sizeof(err->text) - (size_t)used;
        int most = room > 3 ? (int)room - 3 : 0; /* what does not fit is cut, knowingly */
        snprintf(err->text + used, room, ": %.*s", most, tail.text);
    }
    make_one_line(err);
}

const char *err_sanitise(char *out, unsigned long out_bytes, const void *foreign, unsigned long len)
{
    static const char hex[] = "0123456789abcdef";
    const unsigned char *from = foreign;
    size_t used = 0;

    assert(out_bytes >= 8);
    for (size_t i = 0; i < len; i++) {
        size_t need = from[i] >= 0x20 && from[i] < 0x7f && from[i] != '\\' ? 1 : 4;
        /* "..." and the terminator must still fit behind anything but the last character. */
        if (used + need + (i + 1 < len ? 4 : 1) > out_bytes) {
            memcpy(out + used, "...", 3);
            used += 3;
            break;
        }
        if (need == 1) {
            out[used++] = (char)from[i];
        } else {
            out[used++] = '\\';
            out[used++] = 'x';
            out[used++] = hex[from[i] >> 4];
            out[used++] = hex[from[i] & 15];
        }
    }
    out[used] = '\0';
    return out;
}
