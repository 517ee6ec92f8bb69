/* SPDX-License-Identifier: BSD-2-Clause */
/*
 * What a client of the control socket says, up to where a command would be run. An input is the
 * bytes, taken in pieces whose length its first byte gives. Demanded: the same objects and errors
 * as in one piece, none longer or deeper than allowed, and nothing but JSON parsed.
 */
#include <jansson.h>
#include <string.h>

#include "control/commands.h"
#include "control/framing.h"
#include "control/qmp.h"
#include "fuzz/feed.h"
#include "fuzz/fuzz.h"

struct heard {
    unsigned count[FRAMING_TOO_LONG + 1];
    size_t object_bytes;
};

static void judge_object(const char *bytes, size_t len)
{
    struct qmp_command command;
    struct qmp_error error = {.desc = ""};
    json_t *said = json_loadb(bytes, len, JSON_REJECT_DUPLICATES, NULL);

    if (!said) {
        return;
    }
    demand(json_is_object(said), "what is no object was taken for one");
    if (qmp_parse(said, &command, &error) < 0) {
        fuzz_demand_line("an error", error.desc);
    } else {
        const struct control_command *known = control_command_find(command.name);
        if (known && qmp_check_arguments(command.arguments, known->arguments, known->argument_count,
                                         &error) < 0) {
            fuzz_demand_line("an error", error.desc);
        }
    }
    json_t *reply = qmp_error_reply(&error, command.id);
    json_decref(reply);
    json_decref(said);
}

static struct heard hear(const char *bytes, size_t len, size_t piece_bytes, bool judge)
{
    struct framing framing = {0};
    struct heard heard = {.object_bytes = 0};
    size_t object_start = 0, object_len = 0;

    for (size_t at = 0; at < len;) {
        size_t piece = len - at < piece_bytes ? len - at : piece_bytes;
        size_t taken, part;
        enum framing_result result = framing_take(&framing, bytes + at, piece, &taken, &part);
        demand(taken > 0 && taken <= piece && part <= taken, "%zu bytes taken of %zu", taken,
               piece);
        if (object_len == 0) {
            object_start = at + taken - part;
        }
        object_len += part;
        at += taken;
        demand(object_len <= CONTROL_OBJECT_BYTES_MAX + 1, "an object of %zu bytes", object_len);
        heard.count[result]++;
        if (result == FRAMING_OBJECT) {
            heard.object_bytes += object_len;
            if (judge) {
                judge_object(bytes + object_start, object_len);
            }
        }
        object_len = result == FRAMING_MORE ? object_len : 0;
    }
    heard.count[FRAMING_MORE] = 0;
    return heard;
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t len)
{
    struct feed feed = {data, len};
    size_t piece = 1 + feed_u8(&feed);
    const char *bytes = (const char *)feed.bytes;

    struct heard whole = hear(bytes, feed.left, feed.left + 1, true);
    struct heard pieces = hear(bytes, feed.left, piece, false);
    demand(memcmp(whole.count, pieces.count, sizeof(whole.count)) == 0 &&
               whole.object_bytes == pieces.object_bytes,
           "pieces of %zu bytes are heard otherwise", piece);
    return 0;
}
