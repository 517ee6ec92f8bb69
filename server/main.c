/* SPDX-License-Identifier: BSD-2-Clause */
#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "base/log.h"
#include "cmd/commands.h"
#include "config/options.h"
#include "serve.h"

/*
 * With one of the standard descriptors closed, the next file that is opened gets its number, and a
 * log line would land in the image.
 */
static bool standard_descriptors_are_open(void)
{
    for (int fd = STDIN_FILENO; fd <= STDERR_FILENO; fd++) {
        if (fcntl(fd, F_GETFD) < 0 && open("/dev/null", O_RDWR) != fd) {
            return false;
        }
    }
    return true;
}

static int run_command(const struct config *config)
{
    switch (config->command) {
    case COMMAND_SERVE:
        return serve(&config->serve);
    case COMMAND_CREATE:
        return cmd_create(config);
    case COMMAND_CHECK:
        return cmd_check(config);
    case COMMAND_INFO:
        return cmd_info(config);
    case COMMAND_CTL:
        return cmd_ctl(config);
    case COMMAND_KEY:
        return cmd_key(config);
    case COMMAND_RESIZE:
        return cmd_resize(config);
    case COMMAND_BITMAP:
        return cmd_bitmap(config);
    case COMMAND_HELP:
        options_print_help(stdout);
        return EXIT_SUCCESS;
    case COMMAND_VERSION:
        puts("qcowd " QCOWD_VERSION);
        return EXIT_SUCCESS;
    }
    return EXIT_FAILURE;
}

int main(int argc, char **argv)
{
    struct config config;
    struct errtext err;
    if (!standard_descriptors_are_open()) {
        return EXIT_FAILURE;
    }
    if (options_parse(&config, argc, argv, &err) < 0) {
        log_error("%s", err.text);
        options_free(&config);
        return EXIT_FAILURE;
    }
    log_set_level(config.log_level);
    log_set_output(config.log_format, config.log_target);
    /* A peer that is gone and a file that may not grow are errors of one request, and no end. */
    signal(SIGPIPE, SIG_IGN);
    signal(SIGXFSZ, SIG_IGN);
    int exit_status = run_command(&config);
    options_free(&config);
    log_tell_suppressed();
    /* What was printed is in a buffer: a full disk shows only now. */
    if (fflush(stdout) == EOF || ferror(stdout)) {
        log_error("cannot write to stdout: %s", strerror(errno));
        return EXIT_FAILURE;
    }
    return exit_status;
}
