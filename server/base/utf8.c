/* SPDX-License-Identifier: BSD-2-Clause */
#include "base/utf8.h"

#include <stdint.h>

size_t utf8_sequence_bytes(const void *bytes, size_t len)
{
    const uint8_t *at = bytes;
    static const uint32_t least[] = {0, 0, 0x80, 0x800, 0x10000};
    size_t need = at[0] < 0x80           ? 1
                  : (at[0] >> 5) == 0x6  ? 2
                  : (at[0] >> 4) == 0xe  ? 3
                  : (at[0] >> 3) == 0x1e ? 4
                                         : 0;
    if (need <= 1 || need > len) {
        return need > len ? 0 : need;
    }
    uint32_t code = at[0] & (0x7fU >> need);
    for (size_t i = 1; i < need; i++) {
        if ((at[i] & 0xc0) != 0x80) {
            return 0;
        }
        code = code << 6 | (at[i] & 0x3fU);
    }
    bool surrogate = code >= 0xd800 && code <= 0xdfff;
    return code >= least[need] && code <= 0x10ffff && !surrogate ? need : 0;
}

bool utf8_is_text(const void *bytes, size_t len)
{
    const uint8_t *text = bytes;
    for (size_t at = 0; at < len;) {
        size_t sequence = text[at] == 0 ? 0 : utf8_sequence_bytes(text + at, len - at);
        if (sequence == 0) {
            return false;
        }
        at += sequence;
    }
    return true;
}
