/* SPDX-License-Identifier: BSD-2-Clause */
/* The options of resize: they follow qemu-img. */
#include "config/option_group.h"

#include <errno.h>
#include <string.h>

#include "base/check.h"
#include "qcow2/create.h"

static int take_shrink(struct config *config, char *value, struct errtext *err)
{
    (void)value;
    (void)err;
    config->resize.shrink = true;
    return 0;
}

static int take_backing_format(struct config *config, char *value, struct errtext *err)
{
    config->resize.backing_format = backing_format_find(value);
    if (config->resize.backing_format == BACKING_FORMAT_UNNAMED) {
        return option_refuse_value("--backing-format", value, "raw or qcow2", err);
    }
    return 0;
}

static int finish_resize(struct config *config, struct errtext *err)
{
    struct resize_config *resize = &config->resize;
    if (config->operand_count < 2) {
        return err_set(err, EINVAL,
                       "the size is missing: qcowd resize IMAGE SIZE, like 20G, +5G or -5G");
    }
    const char *size = config->operands[1];
    resize->change = *size == '+' ? RESIZE_ADD : *size == '-' ? RESIZE_SUBTRACT : RESIZE_SET;
    if (parse_size(size + (resize->change != RESIZE_SET), &resize->bytes) < 0) {
        return option_refuse_value("SIZE", size,
                                   "a number of bytes, with k, M, G, T, P or E for larger units, "
                                   "and + or - in front for more or less",
                                   err);
    }
    return 0;
}

static const struct option_spec specs[] = {
    {"shrink", '\0', NULL, "allow a smaller size: what is beyond it is lost", take_shrink},
    {"backing-format", '\0', "raw|qcow2", "what a backing file is whose format no header names",
     take_backing_format},
    {"key-file", '\0', "FILE", "as for serve", option_take_key_file},
};

const struct option_group resize_options_group = {
    .title = "resize",
    .options = specs,
    .count = ARRAY_LEN(specs),
    .footer = "  SIZE                        as for create; with + or - in front, so much more or "
              "less\n",
    .finish = finish_resize,
};
