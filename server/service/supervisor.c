/* SPDX-License-Identifier: BSD-2-Clause */
#include "service/supervisor.h"

#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/stat.h>
#include <unistd.h>

#include "base/log.h"
#include "io/account.h"

int supervisor_watch_parent(const struct supervisor *supervisor, struct errtext *err)
{
    if (!supervisor->config->service.exit_with_parent) {
        return 0;
    }
    if (prctl(PR_SET_PDEATHSIG, SIGTERM) < 0) {
        return err_set(err, errno, "--exit-with-parent: %s", strerror(errno));
    }
    /* Whoever ended before the call sends no signal any more. The first process takes in the
     * orphans; as a parent it does not end before us. */
    if (getppid() != supervisor->parent || supervisor->parent == 1) {
        return err_set(err, ESRCH, "--exit-with-parent: the parent process is gone already%s",
                       supervisor->parent == 1 ? ", or is process 1" : "");
    }
    return 0;
}

static int check_ready_fd(const struct supervisor *supervisor, struct errtext *err)
{
    int fd = supervisor->config->service.ready_fd;
    if (fd == 0) {
        return 0;
    }
    for (unsigned i = 0; i < supervisor->activation.count; i++) {
        if (supervisor->activation.sockets[i].fd == fd) {
            return err_set(err, EINVAL, "--ready-fd %d: that is an inherited socket (LISTEN_FDS)",
                           fd);
        }
    }
    if (fcntl(fd, F_SETFD, FD_CLOEXEC) < 0) {
        return err_set(err, EINVAL, "--ready-fd %d: cannot use this descriptor: %s", fd,
                       strerror(errno));
    }
    return 0;
}

static int resolve_file(struct net_socket_file *file, bool mode_given, mode_t mode,
                        const char *option, const char *owner_text, struct errtext *err)
{
    struct account owner = {(uid_t)-1, (gid_t)-1};
    int result = owner_text ? account_resolve(&owner, option, owner_text, err) : 0;
    *file = (struct net_socket_file){
        .mode_given = mode_given, .mode = mode, .uid = owner.uid, .gid = owner.gid};
    return result;
}

static int resolve_socket_files(struct supervisor *supervisor, struct errtext *err)
{
    const struct service_config *service = &supervisor->config->service;
    const struct control_config *control = &supervisor->config->control;
    int result = resolve_file(&supervisor->socket_file, service->socket_mode_given,
                              service->socket_mode, "--socket-owner", service->socket_owner, err);
    return result < 0 ? result
                      : resolve_file(&supervisor->control_file, true, control->mode,
                                     "--control-owner", control->owner, err);
}

int supervisor_begin(struct supervisor *supervisor, const struct serve_config *config,
                     struct errtext *err)
{
    memset(supervisor, 0, sizeof(*supervisor));
    supervisor->config = config;
    supervisor->pid_file_fd = -1;
    supervisor->parent = getppid();
    int result = activation_take(&supervisor->activation, err);
    notify_open(&supervisor->notify);
    if (result == 0) {
        result = supervisor_watch_parent(supervisor, err);
    }
    if (result == 0) {
        result = endpoints_check(&supervisor->activation, config, err);
    }
    if (result == 0) {
        result = check_ready_fd(supervisor, err);
    }
    if (result == 0) {
        result = resolve_socket_files(supervisor, err);
    }
    return result;
}

/* Writes it all, or fails. */
static int fill_pid_file(int fd)
{
    char text[32];
    int len = snprintf(text, sizeof(text), "%ld\n", (long)getpid());
    ssize_t written = write(fd, text, (size_t)len);
    if (written < 0 || fchmod(fd, 0644) < 0) {
        return -errno;
    }
    return written == len ? 0 : -ENOSPC;
}

/* The descriptor, or -errno. Whole or not there: it is written under another name. */
static int write_pid_file(const char *path)
{
    char *hidden;
    if (asprintf(&hidden, "%s.XXXXXX", path) < 0) {
        return -ENOMEM;
    }
    int fd = mkostemp(hidden, O_CLOEXEC);
    int result = fd < 0 ? -errno : fill_pid_file(fd);
    if (result == 0 && rename(hidden, path) < 0) {
        result = -errno;
    }
    if (result < 0 && fd >= 0) {
        close(fd);
        (void)unlink(hidden);
    }
    free(hidden);
    return result < 0 ? result : fd;
}

int supervisor_write_pid(struct supervisor *supervisor, struct errtext *err)
{
    const char *path = supervisor->config->service.pid_file;
    if (!path) {
        return 0;
    }
    int fd = write_pid_file(path);
    if (fd < 0) {
        return err_set(err, -fd, "--pidfile %s: cannot write it: %s", path, strerror(-fd));
    }
    supervisor->pid_file_fd = fd;
    return 0;
}

/* A line an export and endpoint. */
static int print_uris(const struct endpoints *endpoints, bool tls, const char *const *export_names,
                      unsigned export_count, struct errtext *err)
{
    for (unsigned i = 0; i < export_count; i++) {
        for (unsigned at = 0; at < endpoints->count; at++) {
            char *uri = endpoint_uri(&endpoints->items[at], tls, export_names[i]);
            if (!uri) {
                return err_set(err, ENOMEM, "out of memory");
            }
            if (*uri != '\0') {
                puts(uri);
            }
            free(uri);
        }
    }
    if (fflush(stdout) == EOF || ferror(stdout)) {
        return err_set(err, EIO, "--print-uri: cannot write to stdout: %s", strerror(errno));
    }
    return 0;
}

static int write_ready_line(int fd, struct errtext *err)
{
    static const char line[] = "ready\n";
    ssize_t written = write(fd, line, sizeof(line) - 1);
    int error = errno;
    close(fd);
    if (written < 0) {
        return err_set(err, error, "--ready-fd %d: cannot write to it: %s", fd, strerror(error));
    }
    return 0;
}

int supervisor_ready(struct supervisor *supervisor, const struct endpoints *endpoints,
                     const char *const *export_names, unsigned export_count, const char *status,
                     struct errtext *err)
{
    const struct service_config *service = &supervisor->config->service;
    bool tls = supervisor->config->tls_mode == NBD_TLS_REQUIRE;
    int result = supervisor_watch_parent(supervisor, err);
    if (result == 0 && service->print_uri) {
        result = print_uris(endpoints, tls, export_names, export_count, err);
    }
    if (result == 0 && service->ready_fd > 0) {
        result = write_ready_line(service->ready_fd, err);
    }
    if (result == 0) {
        notify_ready(&supervisor->notify, status);
    }
    return result;
}

static bool is_pid_file(const struct supervisor *supervisor, const char *path)
{
    struct stat there;
    struct stat ours;
    return lstat(path, &there) == 0 && fstat(supervisor->pid_file_fd, &ours) == 0 &&
           there.st_dev == ours.st_dev && there.st_ino == ours.st_ino;
}

/* The path may meanwhile name somebody else's file: a later server's, say. */
static void remove_pid_file(struct supervisor *supervisor)
{
    const char *path = supervisor->config->service.pid_file;
    if (supervisor->pid_file_fd < 0) {
        return;
    }
    /* Rights that it was made with may have been given up since: then it stays. */
    if (is_pid_file(supervisor, path) && unlink(path) < 0) {
        log_info("--pidfile %s: stays behind: %s", path, strerror(errno));
    }
    close(supervisor->pid_file_fd);
    supervisor->pid_file_fd = -1;
}

void supervisor_end(struct supervisor *supervisor)
{
    remove_pid_file(supervisor);
    notify_close(&supervisor->notify);
}
