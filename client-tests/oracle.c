/* SPDX-License-Identifier: BSD-2-Clause */
/*
 * qcowd-load, the oracle: drives any NBD server with overlapping requests on many connections, and
 * checks every byte that it reads against what some legal order of those requests allows. Exit
 * status 0: clean; 1: not, with each bad cell, what it should have shown and whose data it shows;
 * 2: wrong usage.
 */
#include <errno.h>
#include <getopt.h>
#include <inttypes.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#include "base/check.h"
#include "base/junit.h"
#include "oracle_load.h"
#include "oracle_workloads.h"

#define EXIT_USAGE      2
#define CONNECTIONS_MAX 64U

static const char usage[] =
    "usage: qcowd-load [WORKLOAD] [OPTIONS] URI\n"
    "       qcowd-load [WORKLOAD] [OPTIONS] -- COMMAND [ARG]...\n"
    "COMMAND serves NBD on the Unix socket {socket} (also $NBD_SOCKET), until SIGTERM, which must\n"
    "end it with status 0.\n"
    "workloads:\n"
    "  random             overlapping random requests (the default)\n"
    "  interleaved        writes of a 32nd of a cluster among unmapping zeroes of whole ones\n"
    "  overwrite-discard  a cluster overwritten and discarded, and a write elsewhere, at once\n"
    "  adjacent           adjacent writes around a discard, on 64 KiB clusters\n"
    "options:\n"
    "  --connections N          4\n"
    "  --depth N                requests in flight a connection: 64\n"
    "  --requests N             20000\n"
    "  --seconds N              stop sending after that; 0, the default: no bound\n"
    "  --region OFFSET:LEN      the part of the export to use; LEN 0: to its end\n"
    "  --align BYTES            of offsets and lengths: 512; other values than multiples of 512 "
    "or\n"
    "                           powers of two from 8 up track single bytes\n"
    "  --max-bytes BYTES        longest read or write: 65536\n"
    "  --mix NAME=WEIGHT,...    of read, write, trim, zero, nohole, fast, flush\n"
    "  --fua PERCENT            of the requests that change something: 5\n"
    "  --seed N                 the clock's\n"
    "  --trim hint|zero         what is trimmed reads zero or as before (hint), or zero\n"
    "  --initial read|zero      take what is there as it is (read), or demand zeroes\n"
    "  --cluster BYTES          65536\n"
    "  --rounds N               of overwrite-discard and adjacent: 200\n"
    "  --prefill yes|no         overwrite-discard writes each cluster first\n"
    "  --stall SECONDS          without a reply for this long the server hangs: 30\n"
    "  --reports N              bad cells and failures described: 20\n"
    "  --junit FILE             the verdict in JUnit's XML\n"
    "  --version\n"
    "sizes take K, M and G\n";

struct arguments {
    workload_fn *workload;
    struct load_options load;
    struct workload_options work;
    char **command;    /* NULL: a URI was given */
    const char *junit; /* NULL: no report is wanted */
};

/* --- options -------------------------------------------------------------------------------- */

static const struct {
    const char *name;
    workload_fn *run;
} workloads[] = {
    {"random", workload_random},
    {"interleaved", workload_interleaved},
    {"overwrite-discard", workload_overwrite_discard},
    {"adjacent", workload_adjacent},
};

static const char *const mix_names[MIX_KINDS] = {
    [MIX_READ] = "read",   [MIX_WRITE] = "write",         [MIX_TRIM] = "trim",
    [MIX_ZERO] = "zero",   [MIX_ZERO_NO_HOLE] = "nohole", [MIX_FAST_ZERO] = "fast",
    [MIX_FLUSH] = "flush",
};

static _Noreturn void die_of_usage(const char *what, const char *value)
{
    fprintf(stderr, "qcowd-load: %s: \"%s\"\n%s", what, value, usage);
    exit(EXIT_USAGE);
}

/* A number with an optional K, M or G; *rest is what follows it. */
static uint64_t parse_number(const char *text, const char **rest)
{
    char *end;
    unsigned long long value;

    errno = 0;
    value = strtoull(text, &end, 0);
    if (end == text || errno != 0 || text[0] == '-') {
        die_of_usage("not a number", text);
    }
    switch (*end) {
    case 'G':
        value <<= 10;
        __attribute__((fallthrough));
    case 'M':
        value <<= 10;
        __attribute__((fallthrough));
    case 'K':
        value <<= 10;
        end++;
        break;
    default:
        break;
    }
    *rest = end;
    return value;
}

static uint64_t parse_between(const char *text, uint64_t least, uint64_t most)
{
    const char *rest;
    uint64_t value = parse_number(text, &rest);

    if (*rest != '\0' || value < least || value > most) {
        die_of_usage("out of bounds, or not a number", text);
    }
    return value;
}

static bool parse_choice(const char *text, const char *yes, const char *no)
{
    if (strcmp(text, yes) == 0) {
        return true;
    }
    if (strcmp(text, no) != 0) {
        die_of_usage("not a choice that there is", text);
    }
    return false;
}

static void parse_mix(char *text, unsigned mix[MIX_KINDS])
{
    char *rest = text;
    char *item;

    memset(mix, 0, MIX_KINDS * sizeof(mix[0]));
    while ((item = strsep(&rest, ",")) != NULL) {
        char *weight = strchr(item, '=');
        unsigned kind = 0;

        if (weight == NULL) {
            die_of_usage("not NAME=WEIGHT", item);
        }
        *weight++ = '\0';
        while (kind < MIX_KINDS && strcmp(mix_names[kind], item) != 0) {
            kind++;
        }
        if (kind == MIX_KINDS) {
            die_of_usage("no such kind of request", item);
        }
        mix[kind] = (unsigned)parse_between(weight, 0, 1000000);
    }
}

static void parse_region(const char *text, struct load_options *load)
{
    const char *rest;

    load->region_offset = parse_number(text, &rest);
    if (*rest != ':') {
        die_of_usage("not OFFSET:LEN", text);
    }
    load->region_len = parse_between(rest + 1, 0, INT64_MAX);
}

enum option_code {
    OPTION_CONNECTIONS = 256,
    OPTION_DEPTH,
    OPTION_REQUESTS,
    OPTION_SECONDS,
    OPTION_REGION,
    OPTION_ALIGN,
    OPTION_MAX_BYTES,
    OPTION_MIX,
    OPTION_FUA,
    OPTION_SEED,
    OPTION_TRIM,
    OPTION_INITIAL,
    OPTION_CLUSTER,
    OPTION_ROUNDS,
    OPTION_PREFILL,
    OPTION_STALL,
    OPTION_REPORTS,
    OPTION_JUNIT,
    OPTION_VERSION,
    OPTION_HELP,
};

static const struct option long_options[] = {
    {"connections", required_argument, NULL, OPTION_CONNECTIONS},
    {"depth", required_argument, NULL, OPTION_DEPTH},
    {"requests", required_argument, NULL, OPTION_REQUESTS},
    {"seconds", required_argument, NULL, OPTION_SECONDS},
    {"region", required_argument, NULL, OPTION_REGION},
    {"align", required_argument, NULL, OPTION_ALIGN},
    {"max-bytes", required_argument, NULL, OPTION_MAX_BYTES},
    {"mix", required_argument, NULL, OPTION_MIX},
    {"fua", required_argument, NULL, OPTION_FUA},
    {"seed", required_argument, NULL, OPTION_SEED},
    {"trim", required_argument, NULL, OPTION_TRIM},
    {"initial", required_argument, NULL, OPTION_INITIAL},
    {"cluster", required_argument, NULL, OPTION_CLUSTER},
    {"rounds", required_argument, NULL, OPTION_ROUNDS},
    {"prefill", required_argument, NULL, OPTION_PREFILL},
    {"stall", required_argument, NULL, OPTION_STALL},
    {"reports", required_argument, NULL, OPTION_REPORTS},
    {"junit", required_argument, NULL, OPTION_JUNIT},
    {"version", no_argument, NULL, OPTION_VERSION},
    {"help", no_argument, NULL, OPTION_HELP},
    {NULL, 0, NULL, 0},
};

static void parse_option(int option, char *value, struct arguments *arguments)
{
    struct load_options *load = &arguments->load;
    struct workload_options *work = &arguments->work;

    switch (option) {
    case OPTION_CONNECTIONS:
        load->connections = (unsigned)parse_between(value, 1, CONNECTIONS_MAX);
        break;
    case OPTION_DEPTH:
        load->depth = (unsigned)parse_between(value, 1, 4096);
        break;
    case OPTION_REQUESTS:
        work->requests = parse_between(value, 0, UINT32_MAX - 1);
        break;
    case OPTION_SECONDS:
        work->seconds = (unsigned)parse_between(value, 0, 1000000);
        break;
    case OPTION_REGION:
        parse_region(value, load);
        break;
    case OPTION_ALIGN:
        load->align = (uint32_t)parse_between(value, 1, 1U << 30);
        break;
    case OPTION_MAX_BYTES:
        load->max_bytes = parse_between(value, 1, 32U << 20);
        break;
    case OPTION_MIX:
        parse_mix(value, work->mix);
        break;
    case OPTION_FUA:
        work->fua_percent = (unsigned)parse_between(value, 0, 100);
        break;
    case OPTION_SEED:
        work->seed = parse_between(value, 0, UINT64_MAX);
        break;
    case OPTION_TRIM:
        load->trim_is_hint = parse_choice(value, "hint", "zero");
        break;
    case OPTION_INITIAL:
        load->initially_zero = parse_choice(value, "zero", "read");
        break;
    case OPTION_CLUSTER:
        work->cluster_bytes = parse_between(value, 512, 1U << 30);
        break;
    case OPTION_ROUNDS:
        work->rounds = (unsigned)parse_between(value, 0, 1000000);
        break;
    case OPTION_PREFILL:
        work->prefill = parse_choice(value, "yes", "no");
        break;
    case OPTION_STALL:
        load->stall_seconds = (unsigned)parse_between(value, 1, 100000);
        break;
    case OPTION_REPORTS:
        load->reports = (unsigned)parse_between(value, 0, 1000000);
        break;
    case OPTION_JUNIT:
        arguments->junit = value;
        break;
    case OPTION_VERSION:
        puts("qcowd-load " QCOWD_VERSION);
        exit(EXIT_SUCCESS);
    case OPTION_HELP:
        fputs(usage, stdout);
        exit(EXIT_SUCCESS);
    default:
        fputs(usage, stderr);
        exit(EXIT_USAGE);
    }
}

static void parse_arguments(int argc, char **argv, struct arguments *arguments)
{
    bool is_command;
    int option;

    *arguments = (struct arguments){
        .workload = workload_random,
        .load = {.connections = 4,
                 .depth = 64,
                 .align = 512,
                 .max_bytes = 65536,
                 .trim_is_hint = true,
                 .stall_seconds = 30,
                 .reports = 20},
        .work = {.seed = (uint64_t)time(NULL),
                 .requests = 20000,
                 .mix = {[MIX_READ] = 30,
                         [MIX_WRITE] = 40,
                         [MIX_TRIM] = 8,
                         [MIX_ZERO] = 8,
                         [MIX_ZERO_NO_HOLE] = 4,
                         [MIX_FAST_ZERO] = 4,
                         [MIX_FLUSH] = 1},
                 .fua_percent = 5,
                 .rounds = 200,
                 .cluster_bytes = 65536,
                 .prefill = true},
    };
    if (argc > 1) {
        for (unsigned i = 0; i < ARRAY_LEN(workloads); i++) {
            if (strcmp(argv[1], workloads[i].name) == 0) {
                arguments->workload = workloads[i].run;
                argc--;
                argv++;
                break;
            }
        }
    }
    while ((option = getopt_long(argc, argv, "+", long_options, NULL)) != -1) {
        parse_option(option, optarg, arguments);
    }
    is_command = optind > 0 && strcmp(argv[optind - 1], "--") == 0;
    if (optind == argc || (!is_command && optind + 1 != argc)) {
        fputs(usage, stderr);
        exit(EXIT_USAGE);
    }
    if (is_command) {
        arguments->command = argv + optind;
    } else {
        arguments->load.uri = argv[optind];
    }
}

/* --- a server of our own -------------------------------------------------------------------- */

struct server {
    char directory[64];
    char socket[96];
    char uri[128];
    pid_t pid;
};

/* The socket is there before it listens; who connects too early is refused. */
static void wait_until_listening(const char *path)
{
    struct sockaddr_un address = {.sun_family = AF_UNIX};
    bool connected = false;

    strncpy(address.sun_path, path, sizeof(address.sun_path) - 1);
    for (unsigned tries = 0; tries < 1000 && !connected; tries++) {
        int probe = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);

        connected =
            probe >= 0 && connect(probe, (const struct sockaddr *)&address, sizeof(address)) == 0;
        if (probe >= 0) {
            close(probe);
        }
        if (!connected) {
            usleep(10000);
        }
    }
}

static bool server_start(struct server *server, char **command)
{
    strcpy(server->directory, "/tmp/qcowd-load-XXXXXX");
    if (mkdtemp(server->directory) == NULL) {
        perror("qcowd-load: /tmp/qcowd-load-XXXXXX");
        return false;
    }
    snprintf(server->socket, sizeof(server->socket), "%s/socket", server->directory);
    snprintf(server->uri, sizeof(server->uri), "nbd+unix:///?socket=%s", server->socket);
    for (char **argument = command; *argument != NULL; argument++) {
        if (strcmp(*argument, "{socket}") == 0) {
            *argument = server->socket;
        }
    }
    setenv("NBD_SOCKET", server->socket, 1);
    server->pid = fork();
    if (server->pid == 0) {
        execvp(command[0], command);
        perror(command[0]);
        _exit(127);
    }
    if (server->pid < 0) {
        perror("qcowd-load: fork");
        return false;
    }
    wait_until_listening(server->socket);
    return true;
}

/* Whether SIGTERM ended it with status 0. */
static bool server_stop(const struct server *server)
{
    int status = -1;
    bool ended_well;

    kill(server->pid, SIGTERM);
    ended_well = waitpid(server->pid, &status, 0) == server->pid && WIFEXITED(status) &&
                 WEXITSTATUS(status) == 0;
    if (!ended_well) {
        fprintf(stderr, "qcowd-load: the server ended with wait status 0x%x\n", (unsigned)status);
    }
    unlink(server->socket);
    rmdir(server->directory);
    return ended_well;
}

/* --- main ----------------------------------------------------------------------------------- */

static bool run(const struct arguments *arguments, FILE *report)
{
    struct load *load = load_open(&arguments->load);
    bool clean;

    if (load == NULL) {
        if (report) {
            junit_case(report, "connect", 0, "the export cannot be used; standard error says why");
        }
        return false;
    }
    clean = arguments->workload(load, &arguments->work);
    clean = load_conclude(load, report) && clean;
    if (!clean) {
        fprintf(stderr, "qcowd-load: NOT CLEAN, seed %" PRIu64 "\n", arguments->work.seed);
    }
    load_close(load);
    return clean;
}

static bool run_with_server(struct arguments *arguments, FILE *report)
{
    struct server server;
    bool clean;

    if (arguments->command == NULL) {
        return run(arguments, report);
    }
    if (!server_start(&server, arguments->command)) {
        return false;
    }
    arguments->load.uri = server.uri;
    clean = run(arguments, report);
    if (!server_stop(&server)) {
        clean = false;
        if (report) {
            junit_case(report, "the server's end", 0, "not with status 0 after SIGTERM");
        }
    }
    return clean;
}

int main(int argc, char **argv)
{
    struct arguments arguments;
    FILE *report = NULL;
    bool clean;

    parse_arguments(argc, argv, &arguments);
    if (arguments.junit) {
        report = junit_begin(arguments.junit, "qcowd-load");
        if (!report) {
            perror(arguments.junit);
            return EXIT_USAGE;
        }
    }
    clean = run_with_server(&arguments, report);
    if (report && junit_end(report) < 0) {
        fprintf(stderr, "qcowd-load: %s: not all of the report could be written\n",
                arguments.junit);
        clean = false;
    }
    return clean ? EXIT_SUCCESS : EXIT_FAILURE;
}
