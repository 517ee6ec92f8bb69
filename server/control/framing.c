/* SPDX-License-Identifier: BSD-2-Clause */
/* Brackets are counted, not matched: the parser finds out whether they fit. */
#include "control/framing.h"

static bool is_space(char byte)
{
    return byte == ' ' || byte == '\t' || byte == '\r' || byte == '\n';
}

static enum framing_result give_up(struct framing *framing, enum framing_result why)
{
    *framing = (struct framing){.skipping = true};
    return why;
}

/* One byte of an object, or its first. */
static enum framing_result take_byte(struct framing *framing, char byte)
{
    framing->len++;
    if (framing->len > CONTROL_OBJECT_BYTES_MAX) {
        return give_up(framing, FRAMING_TOO_LONG);
    }
    if (framing->in_string) {
        bool ends = byte == '"' && !framing->escaped;
        framing->escaped = byte == '\\' && !framing->escaped;
        framing->in_string = !ends;
        return FRAMING_MORE;
    }
    switch (byte) {
    case '"':
        framing->in_string = true;
        return FRAMING_MORE;
    case '{':
    case '[':
        framing->depth++;
        return framing->depth > CONTROL_DEPTH_MAX ? give_up(framing, FRAMING_TOO_DEEP)
                                                  : FRAMING_MORE;
    case '}':
    case ']':
        framing->depth--;
        if (framing->depth == 0) {
            *framing = (struct framing){0};
            return FRAMING_OBJECT;
        }
        return FRAMING_MORE;
    default:
        return FRAMING_MORE;
    }
}

enum framing_result framing_take(struct framing *framing, const char *bytes, size_t len,
                                 size_t *taken, size_t *object_len)
{
    *object_len = 0;
    for (*taken = 0; *taken < len;) {
        char byte = bytes[(*taken)++];
        if (framing->skipping) {
            framing->skipping = byte != '\n';
        } else if (framing->depth == 0 && is_space(byte)) {
            continue;
        } else if (framing->depth == 0 && byte != '{') {
            give_up(framing, FRAMING_STRAY);
            return FRAMING_STRAY;
        } else {
            ++*object_len;
            enum framing_result result = take_byte(framing, byte);
            if (result != FRAMING_MORE) {
                return result;
            }
        }
    }
    return FRAMING_MORE;
}
