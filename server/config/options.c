/* SPDX-License-Identifier: BSD-2-Clause */
/*
 * Each command has its own groups of options, so that an option of another command is refused and
 * not silently ignored. getopt_long() does the cutting; its messages are replaced by ours, because
 * an error here is one line that also says what would have been right.
 */
#include "config/option_group.h"

#include <assert.h>
#include <errno.h>
#include <getopt.h>
#include <stdlib.h>
#include <string.h>

#include "base/check.h"
#include "base/limits.h"

/* getopt's value for the option in row `row` of a command's groups taken together. */
#define ROW_VALUE_BASE 256
/* getopt's value for an operand in its place. */
#define OPERAND_VALUE 1
#define OPTIONS_MAX   96U
/* Of ctl: the socket, the command, and what it may be given. */
#define CTL_OPERANDS_MAX    64
#define BITMAP_OPERANDS_MAX 1026 /* what is done, IMAGE, and a thousand names or so */
#define GROUPS_MAX          8U
#define HELP_TEXT_COLUMN    30
#define HELP_INDENT         "                              "

static_assert(sizeof(HELP_INDENT) - 1 == HELP_TEXT_COLUMN, "continued lines stand below the first");

static int take_verbose(struct config *config, char *value, struct errtext *err)
{
    (void)value;
    (void)err;
    config->log_level = config->log_level < LOG_LEVEL_INFO ? LOG_LEVEL_INFO : LOG_LEVEL_DEBUG;
    return 0;
}

static int take_quiet(struct config *config, char *value, struct errtext *err)
{
    (void)value;
    (void)err;
    config->log_level = LOG_LEVEL_ERROR;
    return 0;
}

static int take_help(struct config *config, char *value, struct errtext *err)
{
    (void)value;
    (void)err;
    config->command = COMMAND_HELP;
    return 0;
}

static int take_version(struct config *config, char *value, struct errtext *err)
{
    (void)value;
    (void)err;
    config->command = COMMAND_VERSION;
    return 0;
}

static const struct option_spec common_specs[] = {
    {"verbose", 'v', NULL, "say what happens; twice for more", take_verbose},
    {"quiet", 'q', NULL, "errors only", take_quiet},
    {"help", 'h', NULL, "this text", take_help},
    {"version", 'V', NULL, "the version", take_version},
};

static const struct option_group common_options = {
    .title = "everywhere", .options = common_specs, .count = ARRAY_LEN(common_specs)};

struct command_syntax {
    const char *word;
    enum command command;
    int most_operands;                             /* IMAGE included; of those that are left */
    const struct option_group *groups[GROUPS_MAX]; /* NULL behind the last; all but the common */
};

static const struct command_syntax syntaxes[] = {
    {"serve",
     COMMAND_SERVE,
     0,
     {&listen_options, &service_options, &control_options, &limits_options, &tls_options,
      &export_options, &sandbox_options}},
    {"create", COMMAND_CREATE, 2, {&create_options_group}},
    {"check", COMMAND_CHECK, 1, {&check_options_group}},
    {"info", COMMAND_INFO, 1, {&info_options_group}},
    {"ctl", COMMAND_CTL, CTL_OPERANDS_MAX, {&ctl_options}},
    {"resize", COMMAND_RESIZE, 2, {&resize_options_group}},
    {"bitmap", COMMAND_BITMAP, BITMAP_OPERANDS_MAX, {&bitmap_options_group}},
    {"key", COMMAND_KEY, 2, {&key_options_group}},
};

/* A command's options as getopt wants them. */
struct option_table {
    unsigned count;
    const struct option_spec *rows[OPTIONS_MAX];
    struct option long_options[OPTIONS_MAX + 1];
    char letters[2 * OPTIONS_MAX + 3];
    /* Operands go here in their place between the options; NULL: they are left to the end. */
    int (*take_operand)(struct config *config, char *value, struct errtext *err);
};

/* ---- Help ---- */

static void print_option(FILE *out, const struct option_spec *option)
{
    char letter[] = {'-', option->letter, ',', ' ', '\0'};
    int width = fprintf(out, "  %s--%s%s%s", option->letter ? letter : "    ", option->name,
                        option->argument ? " " : "", option->argument ? option->argument : "");
    const char *line = option->help;
    if (width >= HELP_TEXT_COLUMN - 1) {
        fprintf(out, "\n%s", HELP_INDENT);
    } else {
        fprintf(out, "%*s", HELP_TEXT_COLUMN - width, "");
    }
    for (const char *end = strchr(line, '\n'); end; end = strchr(line, '\n')) {
        fprintf(out, "%.*s\n%s", (int)(end - line), line, HELP_INDENT);
        line = end + 1;
    }
    fprintf(out, "%s\n", line);
}

static void print_group(FILE *out, const struct option_group *group)
{
    if (group->title) {
        fprintf(out, "%s\n", group->title);
    }
    for (unsigned i = 0; i < group->count; i++) {
        print_option(out, &group->options[i]);
    }
    if (group->footer) {
        fputs(group->footer, out);
    }
}

void options_print_help(FILE *out)
{
    fputs("Usage: qcowd [serve] [OPTIONS] IMAGE...\n"
          "       qcowd create [-o OPTION=VALUE,...] [-b BACKING -F FORMAT] IMAGE SIZE\n"
          "       qcowd check [--repair leaks|all] IMAGE\n"
          "       qcowd info [--json] IMAGE\n"
          "       qcowd ctl [--json] SOCKET COMMAND [NAME=VALUE...]\n"
          "       qcowd resize [--shrink] IMAGE SIZE\n"
          "       qcowd key add --key-file FILE --new-key-file FILE IMAGE\n"
          "       qcowd key remove --slot NUMBER|--key-file FILE IMAGE\n"
          "       qcowd bitmap add|remove|clear|enable|disable IMAGE NAME...\n"
          "       qcowd bitmap merge [-b FILE] IMAGE NAME SOURCE...\n"
          "       qcowd bitmap list [--json] IMAGE\n"
          "\n"
          "Serves qcow2 images over NBD, in the foreground, until SIGTERM.\n"
          "\n",
          out);
    for (unsigned i = 0; i < ARRAY_LEN(syntaxes); i++) {
        for (const struct option_group *const *group = syntaxes[i].groups; *group; group++) {
            print_group(out, *group);
        }
        fputs(i == 0 ? "\n" : "", out);
    }
    fputs("\n", out);
    print_group(out, &common_options);
    fputs("\nThe manual is qcowd(1).\n", out);
}

/* ---- Values ---- */

/* A quoted argument for a message, whatever bytes it has. */
struct shown {
    char text[100];
};

static const char *show(struct shown *shown, const char *argument)
{
    return err_sanitise(shown->text, sizeof(shown->text), argument, strlen(argument));
}

int option_refuse_value(const char *option, const char *value, const char *allowed,
                        struct errtext *err)
{
    struct shown shown;
    return err_set(err, EINVAL, "%s '%s': must be %s", option, show(&shown, value), allowed);
}

bool option_parse_number(const char *text, uint32_t most, uint32_t *number)
{
    uint64_t value = 0;
    const char *digit = text;
    for (; *digit >= '0' && *digit <= '9' && value <= most; digit++) {
        value = value * 10 + (uint64_t)(*digit - '0');
    }
    if (digit == text || *digit != '\0' || value > most) {
        return false;
    }
    *number = (uint32_t)value;
    return true;
}

/* ---- Parsing ---- */

static void add_group(struct option_table *table, const struct option_group *group)
{
    size_t letters = strlen(table->letters);
    for (unsigned i = 0; i < group->count; i++) {
        const struct option_spec *spec = &group->options[i];
        assert(table->count < OPTIONS_MAX);
        table->rows[table->count] = spec;
        table->long_options[table->count] = (struct option){
            .name = spec->name,
            .has_arg = spec->argument ? required_argument : no_argument,
            .val = spec->letter ? spec->letter : ROW_VALUE_BASE + (int)table->count,
        };
        table->count++;
        if (spec->letter) {
            table->letters[letters++] = spec->letter;
            if (spec->argument) {
                table->letters[letters++] = ':';
            }
        }
    }
}

static void make_table(struct option_table *table, const struct command_syntax *syntax)
{
    memset(table, 0, sizeof(*table));
    for (const struct option_group *const *group = syntax->groups; *group; group++) {
        table->take_operand = (*group)->take_operand ? (*group)->take_operand : table->take_operand;
    }
    /* An operand in its place is getopt's option 1; a missing value is told from an unknown option.
     */
    strcpy(table->letters, table->take_operand ? "-:" : ":");
    for (const struct option_group *const *group = syntax->groups; *group; group++) {
        add_group(table, *group);
    }
    add_group(table, &common_options);
}

static const struct option_spec *find_row(const struct option_table *table, int value)
{
    for (unsigned i = 0; i < table->count; i++) {
        if (table->long_options[i].val == value) {
            return table->rows[i];
        }
    }
    return NULL;
}

static int refuse_option(const struct option_table *table, const char *word, const char *argument,
                         struct errtext *err)
{
    struct shown shown;
    if (optopt == 0) {
        return err_set(err, EINVAL, "%s does not know the option '%s': see qcowd --help", word,
                       show(&shown, argument));
    }
    const struct option_spec *known = find_row(table, optopt);
    if (known && !known->argument) { /* "--stdio=x" */
        return err_set(err, EINVAL, "--%s takes no value, but was given one", known->name);
    }
    char letter[] = {(char)optopt, '\0'};
    return err_set(err, EINVAL, "%s does not know the option '-%s': see qcowd --help", word,
                   show(&shown, letter));
}

static bool only_tells(const struct config *config)
{
    return config->command == COMMAND_HELP || config->command == COMMAND_VERSION;
}

static int parse_options(struct config *config, const struct command_syntax *syntax, int argc,
                         char **argv, struct errtext *err)
{
    struct option_table table;
    make_table(&table, syntax);
    optind = 0; /* glibc: forget an earlier parse wholly */
    opterr = 0;
    while (!only_tells(config)) {
        struct shown shown;
        int value = getopt_long(argc, argv, table.letters, table.long_options, NULL);
        if (value == -1) {
            break;
        }
        if (value == '?') {
            return refuse_option(&table, syntax->word, argv[optind - 1], err);
        }
        if (value == ':') {
            return err_set(err, EINVAL, "the option '%s' needs a value: see qcowd --help",
                           show(&shown, argv[optind - 1]));
        }
        const struct option_spec *option = find_row(&table, value);
        assert(option || (value == OPERAND_VALUE && table.take_operand));
        int result =
            option ? option->take(config, optarg, err) : table.take_operand(config, optarg, err);
        if (result < 0) {
            return result;
        }
    }
    while (table.take_operand && !only_tells(config) && optind < argc) { /* behind "--" */
        int result = table.take_operand(config, argv[optind++], err);
        if (result < 0) {
            return result;
        }
    }
    return 0;
}

/* "-5G": the last word of a command that takes a size, and no option. */
static bool is_negative_size(const struct command_syntax *syntax, int argc, char **argv)
{
    const char *last = argv[argc - 1];
    return syntax->command == COMMAND_RESIZE && argc > 1 && last[0] == '-' && last[1] >= '0' &&
           last[1] <= '9';
}

static int take_operands(struct config *config, const struct command_syntax *syntax,
                         struct errtext *err)
{
    struct shown shown;
    if (syntax->most_operands == 0) {
        return 0; /* they were taken in their places */
    }
    if (config->operand_count < 1 || *config->operands[0] == '\0') {
        return err_set(err, EINVAL, "%s: no %s named: see qcowd --help", syntax->word,
                       syntax->command == COMMAND_CTL ? "socket" : "image");
    }
    if (config->operand_count > syntax->most_operands) {
        return err_set(err, EINVAL, "%s: one argument too many, '%s': see qcowd --help",
                       syntax->word, show(&shown, config->operands[syntax->most_operands]));
    }
    config->image = config->operands[0];
    return 0;
}

static int finish(struct config *config, const struct command_syntax *syntax, struct errtext *err)
{
    int result = 0;
    for (const struct option_group *const *group = syntax->groups; *group && result == 0; group++) {
        result = (*group)->finish ? (*group)->finish(config, err) : 0;
    }
    return result;
}

static void set_defaults(struct config *config)
{
    memset(config, 0, sizeof(*config));
    config->log_level = LOG_LEVEL_WARNING;
    config->serve.port = DEFAULT_NBD_PORT;
    config->serve.threads = 1;
    config->serve.shutdown_timeout_ms = LIMIT_SHUTDOWN_GRACE_MS;
    serve_limits_init(&config->serve.limits);
    config->repair = CHECK_ONLY;
    create_options_init(&config->create.options);
}

void options_free(struct config *config)
{
    export_options_free(&config->serve.exported);
    key_files_free(&config->key_files);
    key_files_free(&config->key.added);
}

int options_parse(struct config *config, int argc, char **argv, struct errtext *err)
{
    const struct command_syntax *syntax = &syntaxes[0];
    set_defaults(config);
    for (size_t i = 0; argc > 1 && i < ARRAY_LEN(syntaxes); i++) {
        if (strcmp(argv[1], syntaxes[i].word) == 0) {
            syntax = &syntaxes[i];
            /* getopt_long() skips the first word, so let that be the command's. */
            argv++;
            argc--;
            break;
        }
    }
    config->command = syntax->command;
    bool keeps_last = is_negative_size(syntax, argc, argv);
    int result = parse_options(config, syntax, argc - keeps_last, argv, err);
    if (result < 0 || only_tells(config)) {
        return result;
    }
    config->operands = argv + optind;
    config->operand_count = argc - optind;
    result = take_operands(config, syntax, err);
    return result < 0 ? result : finish(config, syntax, err);
}
