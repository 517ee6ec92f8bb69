/* SPDX-License-Identifier: BSD-2-Clause */
/* The options of key; --key-file is also one of create and resize. */
#include "config/option_group.h"

#include <errno.h>
#include <string.h>

#include "base/check.h"
#include "base/limits.h"
#include "crypto/luks.h"

int option_take_key_file(struct config *config, char *value, struct errtext *err)
{
    return key_files_add(&config->key_files, "--key-file", value, err);
}

static int take_new_key_file(struct config *config, char *value, struct errtext *err)
{
    if (config->key.added.count > 0) {
        return err_set(err, EINVAL, "--new-key-file is given twice");
    }
    return key_files_add(&config->key.added, "--new-key-file", value, err);
}

static int take_slot(struct config *config, char *value, struct errtext *err)
{
    uint32_t slot;
    if (!option_parse_number(value, LUKS_SLOTS - 1, &slot)) {
        return option_refuse_value("--slot", value, "a number from 0 to 7", err);
    }
    config->key.slot = slot;
    config->key.slot_given = true;
    return 0;
}

static int take_iter_time(struct config *config, char *value, struct errtext *err)
{
    if (!option_parse_number(value, LIMIT_LUKS_ITER_TIME_MS, &config->key.iter_time_ms) ||
        config->key.iter_time_ms == 0) {
        return option_refuse_value("--iter-time", value, "milliseconds, from 1 to 60000", err);
    }
    return 0;
}

static int check_add(const struct config *config, struct errtext *err)
{
    if (config->key_files.count != 1 || config->key.added.count != 1) {
        return err_set(err, EINVAL,
                       "key add: --key-file, with a passphrase that opens the image, and "
                       "--new-key-file, with the one to add, are both needed, once");
    }
    return 0;
}

static int check_remove(const struct config *config, struct errtext *err)
{
    if (config->key.added.count > 0 || config->key.iter_time_ms > 0) {
        return err_set(err, EINVAL,
                       "key remove: --new-key-file and --iter-time are for key add only");
    }
    if (config->key_files.count + (config->key.slot_given ? 1U : 0U) != 1) {
        return err_set(err, EINVAL,
                       "key remove: say which: either --slot, or --key-file with the passphrase "
                       "that is to go");
    }
    return 0;
}

static int finish_key(struct config *config, struct errtext *err)
{
    const char *word = config->image;
    if (config->operand_count != 2) {
        return err_set(err, EINVAL, "key: qcowd key add|remove IMAGE");
    }
    if (strcmp(word, "add") != 0 && strcmp(word, "remove") != 0) {
        return option_refuse_value("key", word, "add or remove", err);
    }
    config->key.adds = strcmp(word, "add") == 0;
    config->image = config->operands[1];
    return config->key.adds ? check_add(config, err) : check_remove(config, err);
}

static const struct option_spec specs[] = {
    {"key-file", '\0', "FILE", "a passphrase that opens the image; to remove: the one that goes",
     option_take_key_file},
    {"new-key-file", '\0', "FILE", "add: the passphrase to add", take_new_key_file},
    {"slot", '\0', "NUMBER", "the key slot, 0 to 7, to fill or to destroy", take_slot},
    {"iter-time", '\0', "MS", "add: how long trying a passphrase takes (default 2000)",
     take_iter_time},
};

const struct option_group key_options_group = {
    .title = "key",
    .options = specs,
    .count = ARRAY_LEN(specs),
    .finish = finish_key,
};
