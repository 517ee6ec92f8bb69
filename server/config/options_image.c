/* SPDX-License-Identifier: BSD-2-Clause */
/* The options of create, check and info: they follow qemu-img. */
#include "config/option_group.h"

#include <errno.h>
#include <string.h>

#include "base/check.h"

/*
 * Cuts the next "OPTION=VALUE" off a list as qemu-img writes it: commas between, a doubled comma
 * for one inside a value. NULL at the end.
 */
static char *next_assignment(char **list)
{
    char *start = *list;
    if (!start) {
        return NULL;
    }
    char *to = start;
    char *from = start;
    while (*from != '\0' && (*from != ',' || from[1] == ',')) {
        from += *from == ',';
        *to++ = *from++;
    }
    *list = *from == ',' ? from + 1 : NULL;
    *to = '\0';
    return start;
}

static int take_create_list(struct config *config, char *value, struct errtext *err)
{
    for (char *one = next_assignment(&value); one; one = next_assignment(&value)) {
        int result = create_option_parse(&config->create.options, one, err);
        if (result < 0) {
            return result;
        }
        config->create.size_given |= strncmp(one, "size", 4) == 0;
    }
    return 0;
}

static int take_backing(struct config *config, char *value, struct errtext *err)
{
    (void)err;
    config->create.options.backing_name = value;
    return 0;
}

static int take_backing_format(struct config *config, char *value, struct errtext *err)
{
    (void)err;
    config->create.options.backing_format = value;
    return 0;
}

static int take_repair(struct config *config, char *value, struct errtext *err)
{
    if (strcmp(value, "leaks") == 0) {
        config->repair = CHECK_REPAIR_LEAKS;
    } else if (strcmp(value, "all") == 0) {
        config->repair = CHECK_REPAIR_ALL;
    } else {
        return option_refuse_value("--repair", value, "leaks or all", err);
    }
    return 0;
}

static int take_json(struct config *config, char *value, struct errtext *err)
{
    (void)value;
    (void)err;
    config->json = true;
    return 0;
}

static int finish_size(struct create_config *create, const char *size, struct errtext *err)
{
    if (create->size_given) {
        return err_set(err, EINVAL, "the size is given twice: drop '-o size' or '%s'", size);
    }
    int result = parse_size(size, &create->options.size_bytes);
    if (result < 0) {
        return option_refuse_value(
            "SIZE", size, "a number of bytes, with k, M, G, T, P or E for larger units", err);
    }
    create->size_given = true;
    return 0;
}

static int finish_create(struct config *config, struct errtext *err)
{
    struct create_config *create = &config->create;
    struct create_options *options = &create->options;
    if (config->operand_count == 2) {
        int result = finish_size(create, config->operands[1], err);
        if (result < 0) {
            return result;
        }
    }
    if (options->backing_name && *options->backing_name == '\0') {
        return option_refuse_value("--backing", "", "the path of a file", err);
    }
    if (options->backing_name && !options->backing_format) {
        return err_set(err, EINVAL,
                       "a backing file needs its format named with -F qcow2 or -F raw: it is never "
                       "guessed");
    }
    if (options->backing_format && !options->backing_name) {
        return err_set(err, EINVAL, "-F names the format of a backing file, but there is no -b");
    }
    if (options->encryption.luks && config->key_files.count == 0) {
        return err_set(err, EINVAL, "encrypt.format=luks needs a passphrase: --key-file FILE");
    }
    if (!create->size_given && !options->backing_name) {
        return err_set(err, EINVAL, "the size is missing: qcowd create IMAGE SIZE, like 10G");
    }
    return 0;
}

static const struct option_spec create_specs[] = {
    {"options", 'o', "OPTION=VALUE,...",
     "compat, cluster_size, refcount_bits, extended_l2,\n"
     "lazy_refcounts, compression_type, data_file,\n"
     "data_file_raw, encrypt.format=luks, encrypt.cipher-alg,\n"
     "-mode, .ivgen-alg, -hash-alg, .hash-alg, .iter-time,\n"
     "as qemu-img takes them",
     take_create_list},
    {"backing", 'b', "FILE", "the backing file; -F names its format, qcow2 or raw", take_backing},
    {"backing-format", 'F', "FORMAT", "the backing file's format: it is never guessed",
     take_backing_format},
    {"key-file", '\0', "FILE",
     "the passphrase, all of its bytes, of an encrypted image;\n"
     "as for serve, for its backing files as well",
     option_take_key_file},
};

static const struct option_spec check_specs[] = {
    {"repair", '\0', "leaks|all", "give leaked clusters back, or mend all that can be",
     take_repair},
};

static const struct option_spec info_specs[] = {
    {"json", '\0', NULL, "for programs", take_json},
};

const struct option_group create_options_group = {
    .title = "create",
    .options = create_specs,
    .count = ARRAY_LEN(create_specs),
    .footer = "  SIZE                        a number with an optional k, M, G, T, P or E;\n"
              "                              may be left out with -b: the backing file's size\n",
    .finish = finish_create,
};

const struct option_group check_options_group = {
    .title = "check",
    .options = check_specs,
    .count = ARRAY_LEN(check_specs),
    .footer =
        "                              exit status: 0 clean, 2 corrupt, 3 leaks only, 1 failed\n",
};

const struct option_group info_options_group = {
    .title = "info",
    .options = info_specs,
    .count = ARRAY_LEN(info_specs),
};
