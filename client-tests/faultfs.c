/* SPDX-License-Identifier: BSD-2-Clause */
/*
 * A file system that passes one directory through, fails when it is told to, and records what is
 * done to the files. It stands below the server, as a disk does, so it sees what io_uring does,
 * too.
 *
 *     faultfs DIRECTORY MOUNTPOINT [LOG]
 *
 * The file ".faults" in the mount takes lines "KIND ERRNO SKIP TIMES": after SKIP more operations
 * of that kind the next TIMES fail (0: all). ERRNO 0 ends it. KIND is read, write, fsync, fallocate
 * or truncate; "delay MS" makes fsyncs take that long. Reading it gives lines "KIND COUNT":
 * operations seen so far.
 *
 * Pages are not cached (direct_io), so each operation of the server arrives here, in order, and a
 * read cannot be answered from memory. Operations are done and recorded one at a time; only an
 * fsync takes its time beside others, and is recorded twice, when it begins and when it ends: what
 * was recorded before it began is durable once it has ended. An fsync does nothing else, as a power
 * cut is made from the log.
 */
#define FUSE_USE_VERSION 31
#include <assert.h>
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <fuse.h>
#include <inttypes.h>
#include <pthread.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

#define CONTROL "/.faults"

enum kind { KIND_READ, KIND_WRITE, KIND_FSYNC, KIND_FALLOCATE, KIND_TRUNCATE, KINDS };

static const char *const kind_names[KINDS] = {"read", "write", "fsync", "fallocate", "truncate"};

struct fault {
    int error; /* 0: none */
    unsigned long skip;
    unsigned long times; /* 0: for good */
    unsigned long count; /* operations seen */
};

/* In the log, in the byte order of the machine; the bytes of a write follow. */
enum record_kind {
    RECORD_WRITE = 1,
    RECORD_TRUNCATE,
    RECORD_FALLOCATE,
    RECORD_FSYNC_BEGIN,
    RECORD_FSYNC_END,
};

struct record {
    uint64_t time_ns; /* CLOCK_MONOTONIC */
    uint64_t kind;
    uint64_t offset;
    uint64_t len;
    uint64_t detail; /* fallocate: the mode; fsync: its number */
};

static struct {
    int directory;
    FILE *log; /* NULL: nothing is recorded */
    pthread_mutex_t lock;
    struct fault faults[KINDS];
    unsigned delay_ms;
    uint64_t fsyncs;
} fs = {.lock = PTHREAD_MUTEX_INITIALIZER};

/* A path in the mount as one relative to the directory below. */
static const char *below(const char *path)
{
    return path[1] == '\0' ? "." : path + 1;
}

static bool is_control(const char *path)
{
    return strcmp(path, CONTROL) == 0;
}

/* Counts an operation; -errno if it is to fail. Call with the lock held. */
static int fault_of(enum kind kind)
{
    struct fault *fault = &fs.faults[kind];
    fault->count++;
    if (fault->error == 0) {
        return 0;
    }
    if (fault->skip > 0) {
        fault->skip--;
        return 0;
    }
    int error = fault->error;
    if (fault->times > 0 && --fault->times == 0) {
        fault->error = 0;
    }
    return -error;
}

/* Call with the lock held. A log that cannot be written is of no use to anybody. */
static void record(enum record_kind kind, uint64_t offset, uint64_t len, uint64_t detail,
                   const char *bytes)
{
    struct timespec now;
    if (!fs.log) {
        return;
    }
    clock_gettime(CLOCK_MONOTONIC, &now);
    struct record entry = {
        .time_ns = (uint64_t)now.tv_sec * 1000000000U + (uint64_t)now.tv_nsec,
        .kind = kind,
        .offset = offset,
        .len = len,
        .detail = detail,
    };
    if (fwrite(&entry, sizeof(entry), 1, fs.log) != 1 ||
        (bytes && len > 0 && fwrite(bytes, len, 1, fs.log) != 1) || fflush(fs.log) != 0) {
        perror("faultfs: the log");
        abort();
    }
}

static void *fs_init(struct fuse_conn_info *conn, struct fuse_config *config)
{
    (void)conn;
    config->direct_io = 1;
    config->attr_timeout = 0;
    config->entry_timeout = 0;
    return NULL;
}

static int fs_getattr(const char *path, struct stat *st, struct fuse_file_info *info)
{
    (void)info;
    if (is_control(path)) {
        memset(st, 0, sizeof(*st));
        st->st_mode = S_IFREG | 0600;
        st->st_nlink = 1;
        st->st_size = 4096;
        return 0;
    }
    return fstatat(fs.directory, below(path), st, AT_SYMLINK_NOFOLLOW) < 0 ? -errno : 0;
}

static int fs_readdir(const char *path, void *buf, fuse_fill_dir_t fill, off_t offset,
                      struct fuse_file_info *info, enum fuse_readdir_flags flags)
{
    (void)offset;
    (void)info;
    (void)flags;
    int fd = openat(fs.directory, below(path), O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    DIR *dir = fd < 0 ? NULL : fdopendir(fd);
    if (!dir) {
        return -errno;
    }
    for (struct dirent *entry = readdir(dir); entry; entry = readdir(dir)) {
        fill(buf, entry->d_name, NULL, 0, 0);
    }
    closedir(dir);
    return 0;
}

static int fs_open(const char *path, struct fuse_file_info *info)
{
    if (is_control(path)) {
        return 0;
    }
    int fd = openat(fs.directory, below(path), (info->flags & ~O_DIRECT) | O_CLOEXEC);
    if (fd < 0) {
        return -errno;
    }
    info->fh = (uint64_t)fd;
    return 0;
}

static int fs_create(const char *path, mode_t mode, struct fuse_file_info *info)
{
    int fd =
        openat(fs.directory, below(path), (info->flags & ~O_DIRECT) | O_CREAT | O_CLOEXEC, mode);
    if (fd < 0) {
        return -errno;
    }
    info->fh = (uint64_t)fd;
    return 0;
}

static int fs_unlink(const char *path)
{
    return unlinkat(fs.directory, below(path), 0) < 0 ? -errno : 0;
}

static int fs_release(const char *path, struct fuse_file_info *info)
{
    if (!is_control(path)) {
        close((int)info->fh);
    }
    return 0;
}

static int read_control(char *buf, size_t len, off_t offset)
{
    char text[512];
    int used = 0;
    pthread_mutex_lock(&fs.lock);
    for (int kind = 0; kind < KINDS; kind++) {
        used += snprintf(text + used, sizeof(text) - (size_t)used, "%s %lu\n", kind_names[kind],
                         fs.faults[kind].count);
    }
    pthread_mutex_unlock(&fs.lock);
    if (offset >= used) {
        return 0;
    }
    size_t rest = (size_t)(used - offset) < len ? (size_t)(used - offset) : len;
    memcpy(buf, text + offset, rest);
    return (int)rest;
}

static int set_fault(const char *name, int error, unsigned long skip, unsigned long times)
{
    for (int kind = 0; kind < KINDS; kind++) {
        if (strcmp(name, kind_names[kind]) == 0) {
            struct fault *fault = &fs.faults[kind];
            fault->error = error;
            fault->skip = skip;
            fault->times = times;
            return 0;
        }
    }
    if (strcmp(name, "delay") == 0) {
        fs.delay_ms = (unsigned)error;
        return 0;
    }
    return -EINVAL;
}

static int write_control(const char *buf, size_t len)
{
    char text[512];
    char *rest = NULL;
    int ret = 0;
    if (len >= sizeof(text)) {
        return -EINVAL;
    }
    memcpy(text, buf, len);
    text[len] = '\0';
    pthread_mutex_lock(&fs.lock);
    for (char *line = strtok_r(text, "\n", &rest); line && ret == 0;
         line = strtok_r(NULL, "\n", &rest)) {
        char name[16];
        int error = 0;
        unsigned long skip = 0, times = 0;
        int got = sscanf(line, "%15s %d %lu %lu", name, &error, &skip, &times);
        ret = got >= 2 ? set_fault(name, error, skip, times) : -EINVAL;
    }
    pthread_mutex_unlock(&fs.lock);
    return ret < 0 ? ret : (int)len;
}

static int fs_read(const char *path, char *buf, size_t len, off_t offset,
                   struct fuse_file_info *info)
{
    if (is_control(path)) {
        return read_control(buf, len, offset);
    }
    pthread_mutex_lock(&fs.lock);
    int ret = fault_of(KIND_READ);
    if (ret == 0) {
        ssize_t got = pread((int)info->fh, buf, len, offset);
        ret = got < 0 ? -errno : (int)got;
    }
    pthread_mutex_unlock(&fs.lock);
    return ret;
}

static int fs_write(const char *path, const char *buf, size_t len, off_t offset,
                    struct fuse_file_info *info)
{
    if (is_control(path)) {
        return write_control(buf, len);
    }
    pthread_mutex_lock(&fs.lock);
    int ret = fault_of(KIND_WRITE);
    if (ret == 0) {
        ssize_t put = pwrite((int)info->fh, buf, len, offset);
        ret = put < 0 ? -errno : (int)put;
        if (put > 0) {
            record(RECORD_WRITE, (uint64_t)offset, (uint64_t)put, 0, buf);
        }
    }
    pthread_mutex_unlock(&fs.lock);
    return ret;
}

static int fs_truncate(const char *path, off_t size, struct fuse_file_info *info)
{
    if (is_control(path)) {
        return 0;
    }
    pthread_mutex_lock(&fs.lock);
    int ret = fault_of(KIND_TRUNCATE);
    if (ret == 0) {
        int fd = info ? (int)info->fh : openat(fs.directory, below(path), O_WRONLY | O_CLOEXEC);
        ret = fd < 0 || ftruncate(fd, size) < 0 ? -errno : 0;
        if (!info && fd >= 0) {
            close(fd);
        }
        if (ret == 0) {
            record(RECORD_TRUNCATE, (uint64_t)size, 0, 0, NULL);
        }
    }
    pthread_mutex_unlock(&fs.lock);
    return ret;
}

static int fs_fallocate(const char *path, int mode, off_t offset, off_t len,
                        struct fuse_file_info *info)
{
    (void)path;
    pthread_mutex_lock(&fs.lock);
    int ret = fault_of(KIND_FALLOCATE);
    if (ret == 0) {
        ret = fallocate((int)info->fh, mode, offset, len) < 0 ? -errno : 0;
        if (ret == 0) {
            record(RECORD_FALLOCATE, (uint64_t)offset, (uint64_t)len, (uint64_t)mode, NULL);
        }
    }
    pthread_mutex_unlock(&fs.lock);
    return ret;
}

static int fs_fsync(const char *path, int data_only, struct fuse_file_info *info)
{
    (void)path;
    (void)data_only;
    (void)info;
    pthread_mutex_lock(&fs.lock);
    int ret = fault_of(KIND_FSYNC);
    uint64_t number = ++fs.fsyncs;
    unsigned delay_ms = fs.delay_ms;
    if (ret == 0) {
        record(RECORD_FSYNC_BEGIN, 0, 0, number, NULL);
    }
    pthread_mutex_unlock(&fs.lock);
    if (delay_ms > 0) {
        usleep(delay_ms * 1000);
    }
    if (ret == 0) {
        pthread_mutex_lock(&fs.lock);
        record(RECORD_FSYNC_END, 0, 0, number, NULL);
        pthread_mutex_unlock(&fs.lock);
    }
    return ret;
}

static const struct fuse_operations operations = {
    .init = fs_init,
    .getattr = fs_getattr,
    .readdir = fs_readdir,
    .open = fs_open,
    .create = fs_create,
    .unlink = fs_unlink,
    .release = fs_release,
    .read = fs_read,
    .write = fs_write,
    .truncate = fs_truncate,
    .fallocate = fs_fallocate,
    .fsync = fs_fsync,
};

int main(int argc, char **argv)
{
    if (argc < 3 || argc > 4) {
        fprintf(stderr, "usage: faultfs DIRECTORY MOUNTPOINT [LOG]\n");
        return EXIT_FAILURE;
    }
    fs.directory = open(argv[1], O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    fs.log = argc == 4 ? fopen(argv[3], "we") : NULL;
    if (fs.directory < 0 || (argc == 4 && !fs.log)) {
        perror("faultfs");
        return EXIT_FAILURE;
    }
    char program[] = "faultfs";
    char foreground[] = "-f";
    char *arguments[] = {program, foreground, argv[2], NULL};
    /* A warning about the number of idle threads is no news. */
    return fuse_main(3, arguments, &operations, NULL);
}
