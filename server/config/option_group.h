/* SPDX-License-Identifier: BSD-2-Clause */
/*
 * Options come in groups, a file each: what an option is called, what its help says and what it
 * does stand in one row of the group's table. options.c makes getopt's tables and the text of
 * --help from them.
 */
#ifndef QCOWD_CONFIG_OPTION_GROUP_H
#define QCOWD_CONFIG_OPTION_GROUP_H

#include <stdbool.h>
#include <stdint.h>

#include "config/options.h"

struct option_spec {
    const char *name;     /* without the dashes */
    char letter;          /* '\0': none */
    const char *argument; /* as the help names it; NULL: the option takes none */
    const char *help;     /* one line or more, parted by '\n' */
    /* value may be cut in place; NULL when the option takes none. 0, or -EINVAL with err. */
    int (*take)(struct config *config, char *value, struct errtext *err);
};

struct option_group {
    const char *title; /* a line of the help, or NULL */
    const struct option_spec *options;
    unsigned count;
    const char *footer; /* lines of the help below the options, or NULL */
    /*
     * Takes each operand, in its place between the options; of one group of a command. NULL: they
     * are left in config->operands.
     */
    int (*take_operand)(struct config *config, char *value, struct errtext *err);
    /* Called when all options have been taken; NULL: nothing to do. 0, or -EINVAL with err. */
    int (*finish)(struct config *config, struct errtext *err);
};

extern const struct option_group listen_options;
extern const struct option_group service_options;
extern const struct option_group control_options;
extern const struct option_group limits_options;
extern const struct option_group tls_options;
extern const struct option_group export_options;
extern const struct option_group sandbox_options;
extern const struct option_group create_options_group;
extern const struct option_group check_options_group;
extern const struct option_group info_options_group;
extern const struct option_group ctl_options;
extern const struct option_group resize_options_group;
extern const struct option_group bitmap_options_group;
extern const struct option_group key_options_group;

/* "OPTION 'VALUE': must be ALLOWED", whatever bytes the value has. Returns -EINVAL. */
int option_refuse_value(const char *option, const char *value, const char *allowed,
                        struct errtext *err);

/* Decimal digits and nothing else, `most` or less. */
bool option_parse_number(const char *text, uint32_t most, uint32_t *number);

/* As chmod takes it: octal, 0 to 777. 0, or -EINVAL with err. */
int option_parse_mode(const char *option, const char *value, mode_t *mode, struct errtext *err);

/* --key-file of a command that has one image. */
int option_take_key_file(struct config *config, char *value, struct errtext *err);

/* The defaults. */
void serve_limits_init(struct serve_limits *limits);

void export_options_free(struct export_options *options);

#endif
