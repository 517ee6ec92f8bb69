/* SPDX-License-Identifier: BSD-2-Clause */
#include "service/captive.h"

#include <errno.h>
#include <spawn.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>

#include "base/log.h"

static int set_environment(const struct captive_address *address)
{
    int failed = 0;
    failed |= setenv("uri", address->uri, 1);
    failed |= setenv("unixsocket", address->unix_socket, 1);
    failed |= setenv("port", address->port, 1);
    failed |= setenv("nbd", address->old_uri, 1);
    failed |= setenv("exportname", address->export_name, 1);
    return failed ? -errno : 0;
}

int captive_start(struct captive *captive, const char *command,
                  const struct captive_address *address, const sigset_t *original_mask,
                  struct errtext *err)
{
    char shell[] = "sh";
    char option[] = "-c";
    char *argv[] = {shell, option, (char *)(uintptr_t)command, NULL};
    posix_spawnattr_t attributes;
    sigset_t defaults;
    int result = set_environment(address);
    if (result < 0) {
        return err_set(err, -result, "cannot set the environment of --run: %s", strerror(-result));
    }
    sigemptyset(&defaults);
    sigaddset(&defaults, SIGPIPE);
    sigaddset(&defaults, SIGXFSZ);
    result = -posix_spawnattr_init(&attributes);
    if (result == 0) {
        posix_spawnattr_setsigmask(&attributes, original_mask);
        posix_spawnattr_setsigdefault(&attributes, &defaults);
        posix_spawnattr_setflags(&attributes, POSIX_SPAWN_SETSIGMASK | POSIX_SPAWN_SETSIGDEF);
        result = -posix_spawn(&captive->pid, "/bin/sh", NULL, &attributes, argv, environ);
        posix_spawnattr_destroy(&attributes);
    }
    if (result < 0) {
        captive->pid = 0;
        return err_set(err, -result, "cannot start /bin/sh for --run: %s", strerror(-result));
    }
    captive->ended = false;
    return 0;
}

void captive_reap(struct captive *captive)
{
    int status;
    if (!captive_running(captive)) {
        return;
    }
    pid_t pid = waitpid(captive->pid, &status, WNOHANG);
    if (pid == 0 || (pid < 0 && errno == EINTR)) {
        return;
    }
    captive->ended = true;
    if (pid < 0) {
        log_error("cannot tell how the command of --run ended: %s", strerror(errno));
        captive->exit_status = EXIT_FAILURE;
    } else {
        captive->exit_status = WIFEXITED(status) ? WEXITSTATUS(status) : 128 + WTERMSIG(status);
    }
}

void captive_kill(const struct captive *captive, int signal_number)
{
    if (captive_running(captive)) {
        kill(captive->pid, signal_number);
    }
}

int captive_make_directory(char **directory, char **socket_path, struct errtext *err)
{
    const char *parent = getenv("TMPDIR");
    if (!parent || *parent != '/') {
        parent = "/tmp";
    }
    *directory = NULL;
    *socket_path = NULL;
    if (asprintf(directory, "%s/qcowdXXXXXX", parent) < 0) {
        *directory = NULL;
        return err_set(err, ENOMEM, "out of memory");
    }
    if (!mkdtemp(*directory)) {
        int error = errno;
        free(*directory);
        *directory = NULL;
        return err_set(err, error,
                       "cannot make a directory for the socket in %s: %s; set TMPDIR, or name a "
                       "socket with --unix",
                       parent, strerror(error));
    }
    if (asprintf(socket_path, "%s/socket", *directory) < 0) {
        *socket_path = NULL;
        captive_remove_directory(*directory, NULL);
        *directory = NULL;
        return err_set(err, ENOMEM, "out of memory");
    }
    return 0;
}

void captive_remove_directory(char *directory, char *socket_path)
{
    if (directory && rmdir(directory) < 0) {
        log_warning("cannot remove %s: %s", directory, strerror(errno));
    }
    free(directory);
    free(socket_path);
}
