/* SPDX-License-Identifier: BSD-2-Clause */
/*
 * qcowd-soak, the simulator: runs the engine that ships in a world in memory, by seeds. One seed is
 * one run, the same byte for byte on every machine; what fails is replayed with --seed N --trace.
 */
#include <errno.h>
#include <getopt.h>
#include <inttypes.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/random.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#include "base/junit.h"
#include "sched/co.h"
#include "simulator/run.h"

static const char usage[] =
    "usage: qcowd-soak [--seed N | --seeds FROM:COUNT | --seconds S] [OPTIONS]\n"
    "  --seed N             one run\n"
    "  --seeds FROM:COUNT   COUNT runs with seeds from FROM on\n"
    "  --seconds S          runs with random seeds for S seconds\n"
    "  --crashes N          stop after the run in which the power was cut for the Nth time\n"
    "  --trace              print requests, disk operations and commits\n"
    "  --hash               print a hash of each run's trace: the same on every machine\n"
    "  --keep-going         a process for each run; count failures and go on\n"
    "  --dump DIRECTORY     leave each run's last image in DIRECTORY/SEED/\n"
    "  --junit FILE         report each run as a case in JUnit's XML; goes on after findings\n"
    "  --version\n"
    "Exit status: 0 nothing found, 1 a finding, 2 wrong usage.\n";

struct settings {
    uint64_t first_seed;
    uint64_t seed_count;
    double seconds; /* 0: no bound */
    uint64_t power_cuts;
    bool random_seeds;
    bool trace;
    bool hash;
    bool keep_going;
    const char *dump_directory;
    FILE *report; /* NULL: none is wanted */
};

static volatile uint64_t running_seed;

/* An assert or a wild pointer: at least say which seed it was. */
static void on_fatal_signal(int number)
{
    char line[128];
    int len = snprintf(line, sizeof(line),
                       "seed %" PRIu64 ": FAILED: signal %d\n  replay: qcowd-soak --seed %" PRIu64
                       " --trace\n",
                       running_seed, number, running_seed);
    if (write(STDERR_FILENO, line, (size_t)len) < 0) {
        _exit(1);
    }
    signal(number, SIG_DFL);
    raise(number);
}

static void trace_print(void *arg, const char *line)
{
    (void)arg;
    puts(line);
}

static void trace_hash(void *arg, const char *line)
{
    uint64_t *hash = arg;
    for (; *line; line++) {
        *hash = (*hash ^ (uint8_t)*line) * 0x100000001b3ULL;
    }
}

static void run_one(const struct settings *settings, uint64_t seed,
                    struct run_statistics *statistics)
{
    uint64_t hash = 0xcbf29ce484222325ULL;
    struct run *run = calloc(1, sizeof(*run));
    if (!run) {
        abort();
    }
    run->seed = seed;
    run->statistics = statistics;
    run->dump_directory = settings->dump_directory;
    if (settings->trace) {
        run->trace = trace_print;
    } else if (settings->hash) {
        run->trace = trace_hash;
        run->trace_arg = &hash;
    }
    running_seed = seed;
    run_seed(run);
    free(run);
    if (settings->hash) {
        printf("seed %" PRIu64 " hash %016" PRIx64 "\n", seed, hash);
    }
}

/* Returns whether the run, in a process of its own, found nothing. */
static bool run_apart(const struct settings *settings, uint64_t seed,
                      struct run_statistics *statistics)
{
    int ends[2];
    int status;
    fflush(stdout);
    if (pipe(ends) < 0) {
        perror("pipe");
        exit(2);
    }
    pid_t child = fork();
    if (child < 0) {
        perror("fork");
        exit(2);
    }
    if (child == 0) {
        close(ends[0]);
        run_one(settings, seed, statistics);
        bool sent = write(ends[1], statistics, sizeof(*statistics)) == sizeof(*statistics);
        fflush(stdout);
        _exit(sent ? 0 : 2);
    }
    close(ends[1]);
    struct run_statistics after;
    if (read(ends[0], &after, sizeof(after)) == sizeof(after)) {
        *statistics = after;
    }
    close(ends[0]);
    while (waitpid(child, &status, 0) < 0 && errno == EINTR) {
    }
    return WIFEXITED(status) && WEXITSTATUS(status) == 0;
}

static double seconds_now(void)
{
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return (double)now.tv_sec + (double)now.tv_nsec / 1e9;
}

static bool run_and_report(const struct settings *settings, uint64_t seed,
                           struct run_statistics *statistics)
{
    char name[64];
    char failure[128];
    double started = seconds_now();
    bool passed = run_apart(settings, seed, statistics);

    if (settings->report) {
        snprintf(name, sizeof(name), "seed %" PRIu64, seed);
        snprintf(failure, sizeof(failure),
                 "a law is broken; replay: qcowd-soak --seed %" PRIu64 " --trace", seed);
        junit_case(settings->report, name, seconds_now() - started, passed ? NULL : failure);
    }
    return passed;
}

static uint64_t random_seed(void)
{
    uint64_t seed;
    if (getrandom(&seed, sizeof(seed), 0) != sizeof(seed)) {
        perror("getrandom");
        exit(2);
    }
    return seed;
}

static void print_statistics(const struct run_statistics *statistics, uint64_t failures,
                             double seconds)
{
    static const char *const kinds[REQUEST_KINDS] = {"reads", "writes",  "zeroes",
                                                     "trims", "flushes", "extents"};
    printf("%" PRIu64 " runs, %" PRIu64 " lives (%" PRIu64 " with faults), %" PRIu64
           " power cuts, %" PRIu64 " checks (%" PRIu64 " images with leaks), %" PRIu64
           " disk operations, %.1f s, %" PRIu64 " failures\n",
           statistics->runs, statistics->lives, statistics->faulty_lives, statistics->power_cuts,
           statistics->checks, statistics->leaky_images, statistics->disk_operations, seconds,
           failures);
    printf("%" PRIu64 " lives with just enough room, %" PRIu64 " of them in want of it meanwhile\n",
           statistics->tight_lives, statistics->pressed_lives);
    printf("%" PRIu64 " requests (%" PRIu64 " failed as they may):", statistics->requests,
           statistics->failed_requests);
    for (unsigned i = 0; i < REQUEST_KINDS; i++) {
        printf(" %" PRIu64 " %s", statistics->requests_by_kind[i], kinds[i]);
    }
    printf("\n%" PRIu64 " lives over the network: %" PRIu64 " connections (%" PRIu64
           " broken off), %" PRIu64 " drains\n"
           "%" PRIu64 " disks were resized under load\n",
           statistics->network_lives, statistics->connections, statistics->vanished_clients,
           statistics->drains, statistics->resizes);
}

static int run_all(const struct settings *settings)
{
    struct run_statistics statistics = {0};
    uint64_t failures = 0;
    double started = seconds_now();
    for (uint64_t i = 0; settings->random_seeds || i < settings->seed_count; i++) {
        if (settings->seconds > 0 && seconds_now() - started >= settings->seconds) {
            break;
        }
        if (settings->power_cuts != 0 && statistics.power_cuts >= settings->power_cuts) {
            break;
        }
        uint64_t seed = settings->random_seeds ? random_seed() : settings->first_seed + i;
        if (settings->keep_going) {
            failures += !run_and_report(settings, seed, &statistics);
        } else {
            run_one(settings, seed, &statistics);
        }
    }
    print_statistics(&statistics, failures, seconds_now() - started);
    coro_pool_drain();
    if (settings->report && junit_end(settings->report) < 0) {
        fputs("qcowd-soak: not all of the report could be written\n", stderr);
        return 1;
    }
    return failures == 0 ? 0 : 1;
}

static uint64_t parse_number(const char *text, char end, const char **rest)
{
    char *after;
    errno = 0;
    uint64_t value = strtoull(text, &after, 0);
    if (after == text || *after != end || errno != 0 || *text == '-') {
        fprintf(stderr, "qcowd-soak: not a number: %s\n%s", text, usage);
        exit(2);
    }
    if (rest) {
        *rest = after + 1;
    }
    return value;
}

static struct settings parse_options(int argc, char **argv)
{
    static const struct option options[] = {
        {"seed", required_argument, NULL, 's'},    {"seeds", required_argument, NULL, 'r'},
        {"seconds", required_argument, NULL, 'S'}, {"crashes", required_argument, NULL, 'c'},
        {"trace", no_argument, NULL, 't'},         {"hash", no_argument, NULL, 'h'},
        {"keep-going", no_argument, NULL, 'k'},    {"dump", required_argument, NULL, 'd'},
        {"junit", required_argument, NULL, 'j'},   {"version", no_argument, NULL, 'v'},
        {"help", no_argument, NULL, 'H'},          {NULL, 0, NULL, 0},
    };
    struct settings settings = {.first_seed = 1, .seed_count = 100};
    const char *rest;
    int option;
    while ((option = getopt_long(argc, argv, "", options, NULL)) != -1) {
        switch (option) {
        case 's':
            settings.first_seed = parse_number(optarg, '\0', NULL);
            settings.seed_count = 1;
            break;
        case 'r':
            settings.first_seed = parse_number(optarg, ':', &rest);
            settings.seed_count = parse_number(rest, '\0', NULL);
            break;
        case 'S':
            settings.seconds = (double)parse_number(optarg, '\0', NULL);
            settings.random_seeds = true;
            break;
        case 'c':
            settings.power_cuts = parse_number(optarg, '\0', NULL);
            settings.seed_count = UINT64_MAX;
            break;
        case 't':
            settings.trace = true;
            break;
        case 'h':
            settings.hash = true;
            break;
        case 'k':
            settings.keep_going = true;
            break;
        case 'd':
            settings.dump_directory = optarg;
            break;
        case 'j':
            settings.keep_going = true;
            settings.report = junit_begin(optarg, "qcowd-soak");
            if (!settings.report) {
                perror(optarg);
                exit(2);
            }
            break;
        case 'v':
            puts("qcowd-soak " QCOWD_VERSION);
            exit(0);
        case 'H':
            fputs(usage, stdout);
            exit(0);
        default:
            fputs(usage, stderr);
            exit(2);
        }
    }
    if (optind != argc) {
        fputs(usage, stderr);
        exit(2);
    }
    return settings;
}

int main(int argc, char **argv)
{
    struct settings settings = parse_options(argc, argv);
    signal(SIGABRT, on_fatal_signal);
    return run_all(&settings);
}
