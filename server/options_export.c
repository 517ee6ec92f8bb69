/* SPDX-License-Identifier: BSD-2-Clause */
/* What is exported, and how. */
#include "option_group.h"

#include <errno.h>
#include <string.h>

#include "base/check.h"
#include "base/limits.h"

/* Well-formed UTF-8, as NBD wants names: no overlong forms, surrogates or values past U+10FFFF. */
static bool is_utf8(const char *text)
{
    const unsigned char *at = (const unsigned char *)text;
    while (*at != 0) {
        unsigned follow = *at < 0x80 ? 0 : *at < 0xe0 ? 1 : *at < 0xf0 ? 2 : 3;
        unsigned low = 0x80;
        unsigned high = 0xbf;
        if ((*at >= 0x80 && *at < 0xc2) || *at > 0xf4) {
            return false;
        }
        low = *at == 0xe0 ? 0xa0 : *at == 0xf0 ? 0x90 : low;
        high = *at == 0xed ? 0x9f : *at == 0xf4 ? 0x8f : high;
        at++;
        for (; follow > 0; follow--, at++) {
            if (*at < low || *at > high) {
                return false;
            }
            low = 0x80;
            high = 0xbf;
        }
    }
    return true;
}

static int take_name(struct config *config, char *value, struct errtext *err)
{
    if (strlen(value) > LIMIT_NBD_STRING_BYTES) {
        return err_set(err, EINVAL, "--export: the name has %zu bytes, at most %u are allowed",
                       strlen(value), LIMIT_NBD_STRING_BYTES);
    }
    if (!is_utf8(value)) {
        return option_refuse_value("--export", value, "UTF-8", err);
    }
    config->serve.export_name = value;
    return 0;
}

static int take_read_only(struct config *config, char *value, struct errtext *err)
{
    (void)value;
    (void)err;
    config->serve.read_only = true;
    return 0;
}

static int take_discard(struct config *config, char *value, struct errtext *err)
{
    if (strcmp(value, "unmap") == 0) {
        config->serve.trim = TRIM_UNMAP;
    } else if (strcmp(value, "ignore") == 0) {
        config->serve.trim = TRIM_IGNORE;
    } else {
        return option_refuse_value("--discard", value, "unmap or ignore", err);
    }
    return 0;
}

static int take_cache(struct config *config, char *value, struct errtext *err)
{
    if (strcmp(value, "writeback") == 0) {
        config->serve.direct = false;
    } else if (strcmp(value, "none") == 0) {
        config->serve.direct = true;
    } else {
        return option_refuse_value("--cache", value, "writeback or none", err);
    }
    return 0;
}

static int take_log_writes(struct config *config, char *value, struct errtext *err)
{
    if (*value == '\0') {
        return option_refuse_value("--log-writes", value, "the path of a file to make", err);
    }
    config->serve.log_writes = value;
    return 0;
}

static int finish_export(struct config *config, struct errtext *err)
{
    if (config->serve.log_writes && config->serve.read_only) {
        return err_set(err, EINVAL,
                       "--log-writes and --read-only cannot be combined: there are no writes");
    }
    return 0;
}

static const struct option_spec options[] = {
    {"export", 'e', "NAME", "the export's name (default: the empty name)", take_name},
    {"read-only", 'r', NULL, "refuse writes; the image is opened read-only", take_read_only},
    {"discard", '\0', "unmap|ignore", "give trimmed space back to the host (default), or keep it",
     take_discard},
    {"cache", '\0', "writeback|none", "use the host's page cache (default), or bypass it",
     take_cache},
    {"log-writes", '\0', "FILE", "log every guest write in FILE, in dm-log-writes format",
     take_log_writes},
};

const struct option_group export_options = {
    .options = options, .count = ARRAY_LEN(options), .finish = finish_export};
