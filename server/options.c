/* SPDX-License-Identifier: BSD-2-Clause */
/*
 * Each command has its own table of options, so that an option of another command is refused and
 * not silently ignored. getopt_long() does the cutting; its messages are replaced by ours, because
 * an error here is one line that also says what would have been right.
 */
#include "options.h"

#include <errno.h>
#include <getopt.h>
#include <stdlib.h>
#include <string.h>

#include "base/check.h"
#include "base/limits.h"

const char options_help[] =
    "Usage: qcowd [serve] [OPTIONS] IMAGE\n"
    "       qcowd create [-o OPTION=VALUE,...] [-b BACKING -F FORMAT] IMAGE SIZE\n"
    "       qcowd check [--repair leaks|all] IMAGE\n"
    "       qcowd info [--json] IMAGE\n"
    "\n"
    "Serves a qcow2 image over NBD, in the foreground, until SIGTERM.\n"
    "\n"
    "  -U, --unix PATH             listen on a Unix socket\n"
    "  -p, --port N                listen on TCP port N (10809; 0 lets the kernel choose)\n"
    "  -i, --bind ADDR             listen on TCP at this address instead of loopback\n"
    "  -s, --stdio                 speak NBD on stdin and stdout to one client\n"
    "      --run COMMAND           serve while COMMAND runs, exit with its status;\n"
    "                              it finds $uri, $unixsocket, $port, $nbd and $exportname\n"
    "      --tls off|on|require    without TLS (default), as the client likes, or with TLS only;\n"
    "                              require is the default when the next two are given\n"
    "      --tls-certificates DIR  server-cert.pem, server-key.pem, ca-cert.pem, ca-crl.pem\n"
    "      --tls-psk FILE          pre-shared keys, lines USERNAME:HEXKEY\n"
    "      --tls-verify-peer       clients must show a certificate that ca-cert.pem has signed\n"
    "      --tls-allow NAME        let in only clients with this certificate's name (CN=...)\n"
    "                              or username; may be repeated\n"
    "  -e, --export NAME           the export's name (default: the empty name)\n"
    "  -r, --read-only             refuse writes; the image is opened read-only\n"
    "      --discard unmap|ignore  give trimmed space back to the host (default), or keep it\n"
    "      --cache writeback|none  use the host's page cache (default), or bypass it\n"
    "      --log-writes FILE       log every guest write in FILE, in dm-log-writes format\n"
    "      --shutdown-timeout N    when stopping, cut clients that hold on after N seconds (10)\n"
    "\n"
    "create\n"
    "  -o OPTION=VALUE,...         compat, cluster_size, refcount_bits, extended_l2,\n"
    "                              lazy_refcounts, compression_type, as qemu-img takes them\n"
    "  -b, --backing FILE          the backing file; -F names its format, qcow2 or raw\n"
    "  SIZE                        a number with an optional k, M, G, T, P or E;\n"
    "                              may be left out with -b: the backing file's size\n"
    "check\n"
    "      --repair leaks|all      give leaked clusters back, or mend all that can be\n"
    "                              exit status: 0 clean, 2 corrupt, 3 leaks only, 1 failed\n"
    "info\n"
    "      --json                  for programs\n"
    "\n"
    "everywhere\n"
    "  -v, --verbose               say what happens; twice for more\n"
    "  -q, --quiet                 errors only\n"
    "  -h, --help                  this text\n"
    "  -V, --version               the version\n"
    "\n"
    "The manual is qcowd(1).\n";

/* The message that refuses more names it, too. */
#define SHUTDOWN_TIMEOUT_MAX_S 3600U

/* Options without a letter. */
enum long_only {
    OPTION_RUN = 256,
    OPTION_DISCARD,
    OPTION_CACHE,
    OPTION_LOG_WRITES,
    OPTION_SHUTDOWN_TIMEOUT,
    OPTION_TLS,
    OPTION_TLS_CERTIFICATES,
    OPTION_TLS_PSK,
    OPTION_TLS_VERIFY_PEER,
    OPTION_TLS_ALLOW,
    OPTION_REPAIR,
    OPTION_JSON
};

#define COMMON_LETTERS "vqhV"
#define COMMON_OPTIONS                                                         \
    {"verbose", no_argument, NULL, 'v'}, {"quiet", no_argument, NULL, 'q'},    \
        {"help", no_argument, NULL, 'h'}, {"version", no_argument, NULL, 'V'}, \
    {                                                                          \
        NULL, 0, NULL, 0                                                       \
    }

static const struct option serve_options[] = {
    {"unix", required_argument, NULL, 'U'},
    {"port", required_argument, NULL, 'p'},
    {"bind", required_argument, NULL, 'i'},
    {"stdio", no_argument, NULL, 's'},
    {"run", required_argument, NULL, OPTION_RUN},
    {"tls", required_argument, NULL, OPTION_TLS},
    {"tls-certificates", required_argument, NULL, OPTION_TLS_CERTIFICATES},
    {"tls-psk", required_argument, NULL, OPTION_TLS_PSK},
    {"tls-verify-peer", no_argument, NULL, OPTION_TLS_VERIFY_PEER},
    {"tls-allow", required_argument, NULL, OPTION_TLS_ALLOW},
    {"export", required_argument, NULL, 'e'},
    {"read-only", no_argument, NULL, 'r'},
    {"discard", required_argument, NULL, OPTION_DISCARD},
    {"cache", required_argument, NULL, OPTION_CACHE},
    {"log-writes", required_argument, NULL, OPTION_LOG_WRITES},
    {"shutdown-timeout", required_argument, NULL, OPTION_SHUTDOWN_TIMEOUT},
    COMMON_OPTIONS,
};

static const struct option create_options_table[] = {
    {"options", required_argument, NULL, 'o'},
    {"backing", required_argument, NULL, 'b'},
    {"backing-format", required_argument, NULL, 'F'},
    COMMON_OPTIONS,
};

static const struct option check_options_table[] = {
    {"repair", required_argument, NULL, OPTION_REPAIR},
    COMMON_OPTIONS,
};

static const struct option info_options[] = {
    {"json", no_argument, NULL, OPTION_JSON},
    COMMON_OPTIONS,
};

/* A quoted argument for a message, whatever bytes it has. */
struct shown {
    char text[100];
};

static const char *show(struct shown *shown, const char *argument)
{
    return err_sanitise(shown->text, sizeof(shown->text), argument, strlen(argument));
}

static int refuse_value(const char *option, const char *value, const char *allowed,
                        struct errtext *err)
{
    struct shown shown;
    return err_set(err, EINVAL, "%s '%s': must be %s", option, show(&shown, value), allowed);
}

/* Decimal digits and nothing else, `most` or less. */
static bool parse_number(const char *text, uint32_t most, uint32_t *number)
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

static int parse_port(const char *text, uint16_t *port, struct errtext *err)
{
    uint32_t value;
    if (!parse_number(text, UINT16_MAX, &value)) {
        return refuse_value("--port", text, "a number from 0 to 65535", err);
    }
    *port = (uint16_t)value;
    return 0;
}

static int parse_shutdown_timeout(const char *text, uint32_t *timeout_ms, struct errtext *err)
{
    uint32_t seconds;
    if (!parse_number(text, SHUTDOWN_TIMEOUT_MAX_S, &seconds)) {
        return refuse_value("--shutdown-timeout", text, "seconds, a number from 0 to 3600", err);
    }
    *timeout_ms = seconds * 1000;
    return 0;
}

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

static int take_export_name(struct serve_config *serve, const char *name, struct errtext *err)
{
    if (strlen(name) > LIMIT_NBD_STRING_BYTES) {
        return err_set(err, EINVAL, "--export: the name has %zu bytes, at most %u are allowed",
                       strlen(name), LIMIT_NBD_STRING_BYTES);
    }
    if (!is_utf8(name)) {
        return refuse_value("--export", name, "UTF-8", err);
    }
    serve->export_name = name;
    return 0;
}

static int take_unix_path(struct serve_config *serve, const char *path, struct errtext *err)
{
    if (*path == '\0') {
        return refuse_value("--unix", path, "the path of a socket to make", err);
    }
    serve->unix_path = path;
    return 0;
}

static int take_discard(struct serve_config *serve, const char *value, struct errtext *err)
{
    if (strcmp(value, "unmap") == 0) {
        serve->trim = TRIM_UNMAP;
    } else if (strcmp(value, "ignore") == 0) {
        serve->trim = TRIM_IGNORE;
    } else {
        return refuse_value("--discard", value, "unmap or ignore", err);
    }
    return 0;
}

static int take_cache(struct serve_config *serve, const char *value, struct errtext *err)
{
    if (strcmp(value, "writeback") == 0) {
        serve->direct = false;
    } else if (strcmp(value, "none") == 0) {
        serve->direct = true;
    } else {
        return refuse_value("--cache", value, "writeback or none", err);
    }
    return 0;
}

static int take_tls_mode(struct serve_config *serve, const char *value, struct errtext *err)
{
    static const char *const names[] = {
        [NBD_TLS_OFF] = "off",
        [NBD_TLS_ON] = "on",
        [NBD_TLS_REQUIRE] = "require",
    };
    for (unsigned mode = 0; mode < ARRAY_LEN(names); mode++) {
        if (strcmp(value, names[mode]) == 0) {
            serve->tls_mode = (enum nbd_tls_mode)mode;
            serve->tls_mode_given = true;
            return 0;
        }
    }
    return refuse_value("--tls", value, "off, on or require", err);
}

static int take_tls_path(const char **path, const char *option, const char *value,
                         const char *allowed, struct errtext *err)
{
    if (*value == '\0') {
        return refuse_value(option, value, allowed, err);
    }
    *path = value;
    return 0;
}

static int take_tls_allowed(struct serve_config *serve, const char *value, struct errtext *err)
{
    if (*value == '\0') {
        return refuse_value("--tls-allow", value, "the name of a certificate or a username", err);
    }
    if (serve->tls.allowed_count == TLS_ALLOWED_MAX) {
        return err_set(err, EINVAL, "--tls-allow: more than %u names", TLS_ALLOWED_MAX);
    }
    serve->tls_allowed[serve->tls.allowed_count++] = value;
    return 0;
}

/* The options of TLS; a letter of another is none of its business. */
static int take_tls_option(struct serve_config *serve, int letter, const char *value,
                           struct errtext *err)
{
    switch (letter) {
    case OPTION_TLS:
        return take_tls_mode(serve, value, err);
    case OPTION_TLS_CERTIFICATES:
        return take_tls_path(&serve->tls.certificates, "--tls-certificates", value,
                             "the path of a directory", err);
    case OPTION_TLS_PSK:
        return take_tls_path(&serve->tls.psk_file, "--tls-psk", value, "the path of a file", err);
    case OPTION_TLS_VERIFY_PEER:
        serve->tls.verify_peer = true;
        return 0;
    default:
        assert(letter == OPTION_TLS_ALLOW);
        return take_tls_allowed(serve, value, err);
    }
}

static int take_serve_option(struct config *config, int letter, char *value, struct errtext *err)
{
    struct serve_config *serve = &config->serve;
    switch (letter) {
    case 'U':
        return take_unix_path(serve, value, err);
    case 'p':
        serve->tcp = true;
        return parse_port(value, &serve->port, err);
    case 'i':
        if (*value == '\0') {
            return refuse_value("--bind", value, "a host name or address", err);
        }
        serve->tcp = true;
        serve->bind = value;
        return 0;
    case 's':
        serve->stdio = true;
        return 0;
    case OPTION_RUN:
        serve->run = value;
        return 0;
    case OPTION_TLS:
    case OPTION_TLS_CERTIFICATES:
    case OPTION_TLS_PSK:
    case OPTION_TLS_VERIFY_PEER:
    case OPTION_TLS_ALLOW:
        return take_tls_option(serve, letter, value, err);
    case 'e':
        return take_export_name(serve, value, err);
    case 'r':
        serve->read_only = true;
        return 0;
    case OPTION_DISCARD:
        return take_discard(serve, value, err);
    case OPTION_LOG_WRITES:
        if (*value == '\0') {
            return refuse_value("--log-writes", value, "the path of a file to make", err);
        }
        serve->log_writes = value;
        return 0;
    case OPTION_SHUTDOWN_TIMEOUT:
        return parse_shutdown_timeout(value, &serve->shutdown_timeout_ms, err);
    default:
        assert(letter == OPTION_CACHE);
        return take_cache(serve, value, err);
    }
}

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

static int take_create_option(struct config *config, int letter, char *value, struct errtext *err)
{
    struct create_options *options = &config->create.options;
    switch (letter) {
    case 'o':
        for (char *one = next_assignment(&value); one; one = next_assignment(&value)) {
            int result = create_option_parse(options, one, err);
            if (result < 0) {
                return result;
            }
            config->create.size_given |= strncmp(one, "size", 4) == 0;
        }
        return 0;
    case 'b':
        options->backing_name = value;
        return 0;
    default:
        assert(letter == 'F');
        options->backing_format = value;
        return 0;
    }
}

static int take_check_option(struct config *config, int letter, char *value, struct errtext *err)
{
    assert(letter == OPTION_REPAIR);
    if (strcmp(value, "leaks") == 0) {
        config->repair = CHECK_REPAIR_LEAKS;
    } else if (strcmp(value, "all") == 0) {
        config->repair = CHECK_REPAIR_ALL;
    } else {
        return refuse_value("--repair", value, "leaks or all", err);
    }
    return 0;
}

static int take_info_option(struct config *config, int letter, char *value, struct errtext *err)
{
    (void)value;
    (void)err;
    assert(letter == OPTION_JSON);
    config->json = true;
    return 0;
}

/* What is asked of TLS must be able to happen, and must not be a check that checks nobody. */
static int finish_tls(struct serve_config *serve, struct errtext *err)
{
    bool credentials = serve->tls.certificates || serve->tls.psk_file;
    if (credentials && !serve->tls_mode_given) {
        serve->tls_mode = NBD_TLS_REQUIRE;
    }
    serve->tls.allowed = serve->tls_allowed;
    if (credentials && serve->tls_mode == NBD_TLS_OFF) {
        return err_set(err, EINVAL,
                       "--tls off needs no credentials: drop it, or --tls-certificates and "
                       "--tls-psk");
    }
    if (!credentials && serve->tls_mode != NBD_TLS_OFF) {
        return err_set(err, EINVAL,
                       "TLS needs credentials: --tls-certificates DIR, --tls-psk FILE, or both");
    }
    if (serve->tls.verify_peer && !serve->tls.certificates) {
        return err_set(err, EINVAL,
                       "--tls-verify-peer needs --tls-certificates DIR, where the CA's is");
    }
    if (serve->tls.allowed_count > 0 && !credentials) {
        return err_set(err, EINVAL, "--tls-allow needs --tls-certificates DIR or --tls-psk FILE");
    }
    if (serve->tls.allowed_count > 0 && serve->tls.certificates && !serve->tls.verify_peer) {
        return err_set(err, EINVAL,
                       "--tls-allow needs --tls-verify-peer where there are certificates: a "
                       "client that shows none has no name");
    }
    return 0;
}

static int finish_serve(struct config *config, char **operands, int count, struct errtext *err)
{
    struct serve_config *serve = &config->serve;
    (void)operands;
    (void)count;
    if (serve->stdio && (serve->unix_path || serve->tcp)) {
        return err_set(err, EINVAL,
                       "--stdio serves one client and listens nowhere: drop it, or --unix, --port "
                       "and --bind");
    }
    if (serve->stdio && serve->run) {
        return err_set(err, EINVAL, "--stdio and --run cannot be combined: drop one of them");
    }
    if (serve->log_writes && serve->read_only) {
        return err_set(err, EINVAL,
                       "--log-writes and --read-only cannot be combined: there are no writes");
    }
    if (!serve->stdio && !serve->unix_path && !serve->run) {
        serve->tcp = true;
    }
    return finish_tls(serve, err);
}

static int finish_create(struct config *config, char **operands, int count, struct errtext *err)
{
    struct create_config *create = &config->create;
    struct create_options *options = &create->options;
    if (count == 2) {
        if (create->size_given) {
            return err_set(err, EINVAL, "the size is given twice: drop '-o size' or '%s'",
                           operands[1]);
        }
        int result = parse_size(operands[1], &options->size_bytes);
        if (result < 0) {
            return refuse_value("SIZE", operands[1],
                                "a number of bytes, with k, M, G, T, P or E for larger units", err);
        }
        create->size_given = true;
    }
    if (options->backing_name && *options->backing_name == '\0') {
        return refuse_value("--backing", "", "the path of a file", err);
    }
    if (options->backing_name && !options->backing_format) {
        return err_set(err, EINVAL,
                       "a backing file needs its format named with -F qcow2 or -F raw: it is never "
                       "guessed");
    }
    if (options->backing_format && !options->backing_name) {
        return err_set(err, EINVAL, "-F names the format of a backing file, but there is no -b");
    }
    if (!create->size_given && !options->backing_name) {
        return err_set(err, EINVAL, "the size is missing: qcowd create IMAGE SIZE, like 10G");
    }
    return 0;
}

struct command_syntax {
    const char *word;
    enum command command;
    const char
        *letters; /* begins with ':', so that a missing value is told from an unknown option */
    const struct option *long_options;
    int most_operands; /* IMAGE included */
    int (*take)(struct config *config, int letter, char *value, struct errtext *err);
    int (*finish)(struct config *config, char **operands, int count, struct errtext *err);
};

static const struct command_syntax syntaxes[] = {
    {"serve", COMMAND_SERVE, ":U:p:i:se:r" COMMON_LETTERS, serve_options, 1, take_serve_option,
     finish_serve},
    {"create", COMMAND_CREATE, ":o:b:F:" COMMON_LETTERS, create_options_table, 2,
     take_create_option, finish_create},
    {"check", COMMAND_CHECK, ":" COMMON_LETTERS, check_options_table, 1, take_check_option, NULL},
    {"info", COMMAND_INFO, ":" COMMON_LETTERS, info_options, 1, take_info_option, NULL},
};

/*
 * The option that takes no value but got one ("--stdio=x"), or NULL if that is not what happened.
 */
static const struct option *option_with_needless_value(const struct command_syntax *syntax)
{
    for (const struct option *option = syntax->long_options; option->name; option++) {
        if (option->val == optopt && option->has_arg == no_argument) {
            return option;
        }
    }
    return NULL;
}

static int refuse_option(const struct command_syntax *syntax, const char *argument,
                         struct errtext *err)
{
    struct shown shown;
    if (optopt == 0) {
        return err_set(err, EINVAL, "%s does not know the option '%s': see qcowd --help",
                       syntax->word, show(&shown, argument));
    }
    const struct option *option = option_with_needless_value(syntax);
    if (option) {
        return err_set(err, EINVAL, "--%s takes no value, but was given one", option->name);
    }
    char letter[] = {(char)optopt, '\0'};
    return err_set(err, EINVAL, "%s does not know the option '-%s': see qcowd --help", syntax->word,
                   show(&shown, letter));
}

/* The options that every command has. False for others. */
static bool take_common_option(struct config *config, int letter)
{
    switch (letter) {
    case 'v':
        config->log_level = config->log_level < LOG_LEVEL_INFO ? LOG_LEVEL_INFO : LOG_LEVEL_DEBUG;
        return true;
    case 'q':
        config->log_level = LOG_LEVEL_ERROR;
        return true;
    case 'h':
        config->command = COMMAND_HELP;
        return true;
    case 'V':
        config->command = COMMAND_VERSION;
        return true;
    default:
        return false;
    }
}

static int parse_options(struct config *config, const struct command_syntax *syntax, int argc,
                         char **argv, struct errtext *err)
{
    optind = 0; /* glibc: forget an earlier parse wholly */
    opterr = 0;
    for (;;) {
        struct shown shown;
        int letter = getopt_long(argc, argv, syntax->letters, syntax->long_options, NULL);
        if (letter == -1) {
            return 0;
        }
        if (letter == '?') {
            return refuse_option(syntax, argv[optind - 1], err);
        }
        if (letter == ':') {
            return err_set(err, EINVAL, "the option '%s' needs a value: see qcowd --help",
                           show(&shown, argv[optind - 1]));
        }
        if (take_common_option(config, letter)) {
            if (config->command == COMMAND_HELP || config->command == COMMAND_VERSION) {
                return 0;
            }
            continue;
        }
        int result = syntax->take(config, letter, optarg, err);
        if (result < 0) {
            return result;
        }
    }
}

static int parse_operands(struct config *config, const struct command_syntax *syntax, int count,
                          char **operands, struct errtext *err)
{
    struct shown shown;
    if (count < 1 || *operands[0] == '\0') {
        return err_set(err, EINVAL, "%s: no image named: see qcowd --help", syntax->word);
    }
    if (count > syntax->most_operands) {
        return err_set(err, EINVAL, "%s: one argument too many, '%s': see qcowd --help",
                       syntax->word, show(&shown, operands[syntax->most_operands]));
    }
    config->image = operands[0];
    return syntax->finish ? syntax->finish(config, operands, count, err) : 0;
}

int options_parse(struct config *config, int argc, char **argv, struct errtext *err)
{
    const struct command_syntax *syntax = &syntaxes[0];
    memset(config, 0, sizeof(*config));
    config->log_level = LOG_LEVEL_WARNING;
    config->serve.port = DEFAULT_NBD_PORT;
    config->serve.export_name = "";
    config->serve.trim = TRIM_UNMAP;
    config->serve.shutdown_timeout_ms = LIMIT_SHUTDOWN_GRACE_MS;
    config->repair = CHECK_ONLY;
    create_options_init(&config->create.options);

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
    int result = parse_options(config, syntax, argc, argv, err);
    if (result < 0 || config->command == COMMAND_HELP || config->command == COMMAND_VERSION) {
        return result;
    }
    return parse_operands(config, syntax, argc - optind, argv + optind, err);
}
