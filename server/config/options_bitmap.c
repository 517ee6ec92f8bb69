/* SPDX-License-Identifier: BSD-2-Clause */
/* The options of bitmap: what qemu-img bitmap can do, a word for each. */
#include <errno.h>
#include <string.h>

#include "base/check.h"
#include "config/option_group.h"
#include "qcow2/bitmap_directory.h"

#define GRANULARITY_ALLOWED "a power of two, 512 to 2G"

static int take_granularity(struct config *config, char *value, struct errtext *err)
{
    uint64_t bytes;
    if (parse_size(value, &bytes) < 0 || bytes == 0 || (bytes & (bytes - 1)) != 0 ||
        bytes < 1ULL << BITMAP_GRANULARITY_BITS_MIN ||
        bytes > 1ULL << BITMAP_GRANULARITY_BITS_MAX) {
        return option_refuse_value("--granularity", value, GRANULARITY_ALLOWED, err);
    }
    config->bitmap.granularity_bits = (uint8_t)__builtin_ctzll(bytes);
    return 0;
}

static int take_disabled(struct config *config, char *value, struct errtext *err)
{
    (void)value;
    (void)err;
    config->bitmap.disabled = true;
    return 0;
}

static int take_source_file(struct config *config, char *value, struct errtext *err)
{
    if (*value == '\0') {
        return option_refuse_value("--source-file", value, "the image with the bitmaps to merge",
                                   err);
    }
    config->bitmap.source_image = value;
    return 0;
}

static const struct {
    const char *word;
    enum bitmap_command command;
    int least_operands; /* behind the word: IMAGE included */
    const char *syntax;
} verbs[] = {
    {"add", BITMAP_COMMAND_ADD, 2, "add IMAGE NAME..."},
    {"remove", BITMAP_COMMAND_REMOVE, 2, "remove IMAGE NAME..."},
    {"clear", BITMAP_COMMAND_CLEAR, 2, "clear IMAGE NAME..."},
    {"enable", BITMAP_COMMAND_ENABLE, 2, "enable IMAGE NAME..."},
    {"disable", BITMAP_COMMAND_DISABLE, 2, "disable IMAGE NAME..."},
    {"merge", BITMAP_COMMAND_MERGE, 3, "merge IMAGE NAME SOURCE..."},
    {"list", BITMAP_COMMAND_LIST, 1, "list IMAGE"},
};

static int check_options(const struct config *config, const char *word, struct errtext *err)
{
    const struct bitmap_config *bitmap = &config->bitmap;
    const char *option = NULL;
    if (bitmap->command != BITMAP_COMMAND_ADD) {
        option = bitmap->granularity_bits ? "--granularity"
                 : bitmap->disabled       ? "--disabled"
                                          : NULL;
    }
    if (bitmap->command != BITMAP_COMMAND_MERGE && bitmap->source_image) {
        option = "--source-file";
    }
    if (bitmap->command != BITMAP_COMMAND_LIST && config->json) {
        option = "--json";
    }
    return option
               ? err_set(err, EINVAL, "bitmap %s does not know the option '%s': see qcowd --help",
                         word, option)
               : 0;
}

static int finish_bitmap(struct config *config, struct errtext *err)
{
    struct bitmap_config *bitmap = &config->bitmap;
    for (size_t i = 0; i < ARRAY_LEN(verbs); i++) {
        if (strcmp(config->operands[0], verbs[i].word) != 0) {
            continue;
        }
        int count = config->operand_count - 1;
        bool too_many = verbs[i].command == BITMAP_COMMAND_LIST && count > 1;
        if (count < verbs[i].least_operands || too_many || *config->operands[1] == '\0') {
            return err_set(err, EINVAL, "bitmap %s: too %s arguments: qcowd bitmap %s",
                           verbs[i].word, too_many ? "many" : "few", verbs[i].syntax);
        }
        bitmap->command = verbs[i].command;
        config->image = config->operands[1];
        bitmap->names = config->operands + 2;
        bitmap->name_count = (size_t)count - 1;
        return check_options(config, verbs[i].word, err);
    }
    return option_refuse_value("bitmap", config->operands[0],
                               "add, remove, clear, enable, disable, merge or list", err);
}

static int take_json(struct config *config, char *value, struct errtext *err)
{
    (void)value;
    (void)err;
    config->json = true;
    return 0;
}

static const struct option_spec specs[] = {
    {"granularity", 'g', "SIZE",
     "add: bytes that one bit stands for; a power of two, 512 to 2G;\n"
     "otherwise the cluster size, within 4k to 64k",
     take_granularity},
    {"disabled", '\0', NULL, "add: nothing is recorded until it is enabled", take_disabled},
    {"source-file", 'b', "FILE", "merge: the image that has the SOURCEs; otherwise IMAGE",
     take_source_file},
    {"json", '\0', NULL, "list: as JSON", take_json},
};

const struct option_group bitmap_options_group = {
    .title = "bitmap",
    .options = specs,
    .count = ARRAY_LEN(specs),
    .finish = finish_bitmap,
};
