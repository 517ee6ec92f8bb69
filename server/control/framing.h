/* SPDX-License-Identifier: BSD-2-Clause */
/*
 * Where a JSON object ends in a stream of bytes: QMP has no frames, and its clients send objects
 * with and without a line's end behind them. Pure, bounded in length and depth, safe on any bytes
 * (O10). Whether the object is good JSON is the parser's business, who then never sees one that is
 * too long or too deep.
 */
#ifndef QCOWD_CONTROL_FRAMING_H
#define QCOWD_CONTROL_FRAMING_H

#include <stdbool.h>
#include <stddef.h>

/* An object's bytes, and how deep its objects and arrays may nest. */
#define CONTROL_OBJECT_BYTES_MAX (256U * 1024U)
#define CONTROL_DEPTH_MAX        16U

struct framing {
    size_t len; /* of the object so far */
    unsigned depth;
    bool in_string;
    bool escaped;
    bool skipping; /* the rest of a line, after an error */
};

enum framing_result {
    FRAMING_MORE,     /* the object goes on behind these bytes */
    FRAMING_OBJECT,   /* it ends with the last byte that was taken */
    FRAMING_STRAY,    /* something else than an object: the rest of its line is skipped */
    FRAMING_TOO_DEEP, /* the same; */
    FRAMING_TOO_LONG, /* and the same */
};

/*
 * Takes bytes from the front: *taken says how many; of them, the last *object_len belong to the
 * object (or its beginning, or its next part), those before are white space. After anything but
 * FRAMING_MORE the next byte begins something new.
 */
enum framing_result framing_take(struct framing *framing, const char *bytes, size_t len,
                                 size_t *taken, size_t *object_len);

#endif
