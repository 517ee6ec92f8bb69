/* SPDX-License-Identifier: BSD-2-Clause */
#include "config/key_files.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "base/check.h"
#include "base/limits.h"
#include "crypto/secret.h"

#define DESCRIPTOR_PREFIX "fd:"
#define CREDENTIAL_PREFIX "credential:"
#define DESCRIPTOR_MAX    1048576UL

static bool has_prefix(const char *text, const char *prefix)
{
    return strncmp(text, prefix, strlen(prefix)) == 0;
}

/* The number behind fd:, or -1. */
static int descriptor_of(const char *name)
{
    const char *digits = name + strlen(DESCRIPTOR_PREFIX);
    char *end;
    if (*digits < '0' || *digits > '9') {
        return -1;
    }
    unsigned long number = strtoul(digits, &end, 10);
    return *end == '\0' && number <= DESCRIPTOR_MAX ? (int)number : -1;
}

static int refuse(const char *called, const char *name, const char *allowed, struct errtext *err)
{
    char shown[100];
    return err_set(err, EINVAL, "%s '%s': must be %s", called,
                   err_sanitise(shown, sizeof(shown), name, strlen(name)), allowed);
}

int key_files_add(struct key_files *files, const char *called, const char *name,
                  struct errtext *err)
{
    if (*name == '\0') {
        return refuse(called, name, "a path, -, fd:NUMBER or credential:NAME", err);
    }
    if (has_prefix(name, DESCRIPTOR_PREFIX) && descriptor_of(name) < 0) {
        return refuse(called, name, "the number of a descriptor behind fd:", err);
    }
    const char *credential =
        has_prefix(name, CREDENTIAL_PREFIX) ? name + strlen(CREDENTIAL_PREFIX) : NULL;
    if (credential && (*credential == '\0' || strchr(credential, '/'))) {
        return refuse(called, name, "the name of a credential behind credential:", err);
    }
    if (files->count == IMAGE_KEYS_MAX) {
        return err_set(err, EINVAL, "%s: more than %u are given", called, IMAGE_KEYS_MAX);
    }
    char *copy = strdup(name);
    if (!copy) {
        return err_set(err, ENOMEM, "out of memory");
    }
    files->names[files->count++] = copy;
    return 0;
}

int key_files_copy(struct key_files *to, const struct key_files *from)
{
    *to = (struct key_files){.count = 0};
    for (unsigned i = 0; i < from->count; i++) {
        to->names[i] = strdup(from->names[i]);
        if (!to->names[i]) {
            key_files_free(to);
            return -ENOMEM;
        }
        to->count++;
    }
    return 0;
}

bool key_files_equal(const struct key_files *a, const struct key_files *b)
{
    bool equal = a->count == b->count;
    for (unsigned i = 0; i < a->count && equal; i++) {
        equal = strcmp(a->names[i], b->names[i]) == 0;
    }
    return equal;
}

void key_files_free(struct key_files *files)
{
    for (unsigned i = 0; i < files->count; i++) {
        free(files->names[i]);
    }
    *files = (struct key_files){.count = 0};
}

bool key_file_is_path(const char *name)
{
    return strcmp(name, "-") != 0 && !has_prefix(name, DESCRIPTOR_PREFIX) &&
           !has_prefix(name, CREDENTIAL_PREFIX);
}

char *key_file_path(const char *name)
{
    char *path = NULL;
    if (key_file_is_path(name)) {
        return strdup(name);
    }
    if (!has_prefix(name, CREDENTIAL_PREFIX)) {
        return NULL;
    }
    const char *directory = getenv("CREDENTIALS_DIRECTORY");
    if (!directory || asprintf(&path, "%s/%s", directory, name + strlen(CREDENTIAL_PREFIX)) < 0) {
        return NULL;
    }
    return path;
}

/* ---- Reading ---- */

static int open_key_file(const char *name, struct errtext *err)
{
    if (strcmp(name, "-") == 0 || has_prefix(name, DESCRIPTOR_PREFIX)) {
        int number = strcmp(name, "-") == 0 ? STDIN_FILENO : descriptor_of(name);
        int fd = fcntl(number, F_DUPFD_CLOEXEC, 3);
        return fd < 0 ? err_set(err, errno, "key file %s: %s", name, strerror(errno)) : fd;
    }
    char *path = key_file_path(name);
    if (!path && has_prefix(name, CREDENTIAL_PREFIX)) {
        return err_set(err, ENOENT,
                       "key file %s: CREDENTIALS_DIRECTORY is not set: systemd sets it where the "
                       "unit has LoadCredential=",
                       name);
    }
    if (!path) {
        return err_set(err, ENOMEM, "out of memory");
    }
    int fd = open(path, O_RDONLY | O_CLOEXEC | O_NOCTTY);
    int error = errno;
    free(path);
    return fd < 0 ? err_set(err, error, "key file %s: %s", name, strerror(error)) : fd;
}

/* Pipes and sockets are as secret as who made them has them. */
static int check_mode(int fd, const char *name, struct errtext *err)
{
    struct stat status;
    if (fstat(fd, &status) < 0) {
        return err_set(err, errno, "key file %s: %s", name, strerror(errno));
    }
    if (S_ISREG(status.st_mode) && (status.st_mode & (S_IRWXO | S_IWGRP))) {
        return err_set(err, EACCES,
                       "key file %s: its mode is %03o: it holds a secret, but others may read or "
                       "write it: chmod o-rwx,g-w",
                       name, (unsigned)(status.st_mode & 0777));
    }
    return 0;
}

static int read_passphrase(int fd, struct image_key *key, struct errtext *err)
{
    const size_t capacity = LIMIT_PASSPHRASE_BYTES + 1;
    while (key->len < capacity) {
        ssize_t got = read(fd, key->passphrase + key->len, capacity - key->len);
        if (got < 0 && errno == EINTR) {
            continue;
        }
        if (got < 0) {
            return err_set(err, errno, "key file %s: %s", key->name, strerror(errno));
        }
        if (got == 0) {
            break;
        }
        key->len += (size_t)got;
    }
    if (key->len == 0 || key->len == capacity) {
        return err_set(err, EINVAL, "key file %s: it %s: allowed are 1 to %u bytes", key->name,
                       key->len == 0 ? "is empty" : "is longer", LIMIT_PASSPHRASE_BYTES);
    }
    return 0;
}

static int read_key(const char *name, struct image_key *key, struct errtext *err)
{
    *key = (struct image_key){.name = name};
    int fd = open_key_file(name, err);
    if (fd < 0) {
        return fd;
    }
    int ret = check_mode(fd, name, err);
    if (ret == 0) {
        key->passphrase = secret_alloc(LIMIT_PASSPHRASE_BYTES + 1);
        ret =
            key->passphrase ? read_passphrase(fd, key, err) : err_set(err, ENOMEM, "out of memory");
    }
    close(fd);
    return ret;
}

int key_ring_read(const struct key_files *files, struct key_ring *ring, struct errtext *err)
{
    int ret = 0;
    *ring = (struct key_ring){.count = 0};
    for (unsigned i = 0; i < files->count && ret == 0; i++) {
        ret = read_key(files->names[i], &ring->keys[ring->count++], err);
    }
    if (ret < 0) {
        key_ring_wipe(ring);
    }
    return ret;
}

void key_ring_wipe(struct key_ring *ring)
{
    for (unsigned i = 0; i < ring->count; i++) {
        secret_free(ring->keys[i].passphrase);
    }
    *ring = (struct key_ring){.count = 0};
}
