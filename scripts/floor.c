/* SPDX-License-Identifier: BSD-2-Clause */
/*
 * What the kernel itself takes for the system calls that no server can do without: the floor under
 * the figures of scripts/bench, which runs this. One JSON object on stdout: name -> microseconds of
 * one operation, in processor time of this thread; names that end in _wall in time elapsed.
 *
 *     floor DIRECTORY
 */
#include <errno.h>
#include <fcntl.h>
#include <linux/falloc.h>
#include <signal.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#include "base/check.h"

#define KIB        1024UL
#define MIB        (1024UL * KIB)
#define FILE_BYTES (256UL * MIB)
#define RUN_NS     300000000ULL
#define REQUEST    28U

static unsigned char buffer[MIB] __attribute__((aligned(4096)));
static int file = -1;
static const char *separator = "";

static void must(bool good, const char *what)
{
    if (!good) {
        fprintf(stderr, "floor: %s: %s\n", what, strerror(errno));
        exit(1);
    }
}

static uint64_t clock_of(clockid_t id)
{
    struct timespec now;
    clock_gettime(id, &now);
    return (uint64_t)now.tv_sec * 1000000000U + (uint64_t)now.tv_nsec;
}

/* A place in the file, a multiple of len, the same ones in each run. */
static off_t random_place(size_t len)
{
    static uint64_t state = 88172645463325252U;
    state ^= state << 13;
    state ^= state >> 7;
    state ^= state << 17;
    return (off_t)(state % (FILE_BYTES / len) * len);
}

static void print(const char *name, uint64_t ns, uint64_t count)
{
    printf("%s\"%s\": %.3f", separator, name, (double)ns / 1e3 / (double)count);
    separator = ", ";
}

/* Calls step(number) for a while, at most `most` times. */
static void measure(const char *name, clockid_t id, uint64_t most, void (*step)(uint64_t number))
{
    uint64_t began = clock_of(CLOCK_MONOTONIC);
    uint64_t used = clock_of(id);
    uint64_t count = 0;
    while (count < most && clock_of(CLOCK_MONOTONIC) - began < RUN_NS) {
        for (int i = 0; i < 16 && count < most; i++) {
            step(count++);
        }
    }
    print(name, clock_of(id) - used, count);
}

static void put(off_t at, size_t len)
{
    must(pwrite(file, buffer, len, at) == (ssize_t)len, "pwrite");
}

static void read_4k(uint64_t number)
{
    (void)number;
    must(pread(file, buffer, 4 * KIB, random_place(4 * KIB)) > 0, "pread");
}

static void read_64k(uint64_t number)
{
    must(pread(file, buffer, 64 * KIB, (off_t)(number * 64 * KIB % FILE_BYTES)) > 0, "pread");
}

static void read_1m(uint64_t number)
{
    must(pread(file, buffer, MIB, (off_t)(number * MIB % FILE_BYTES)) > 0, "pread");
}

static void overwrite_4k(uint64_t number)
{
    (void)number;
    put(random_place(4 * KIB), 4 * KIB);
}

static void overwrite_1m(uint64_t number)
{
    put((off_t)(number * MIB % FILE_BYTES), MIB);
}

static void write_and_sync_4k(uint64_t number)
{
    overwrite_4k(number);
    must(fdatasync(file) == 0, "fdatasync");
}

static void append_64k(uint64_t number)
{
    put((off_t)(number * 64 * KIB), 64 * KIB);
}

static void append_1m(uint64_t number)
{
    put((off_t)(number * MIB), MIB);
}

/* One 4 KiB piece in each 64 KiB of a hole. */
static void write_into_hole_4k(uint64_t number)
{
    put((off_t)(number * 64 * KIB), 4 * KIB);
}

static void punch_64k(uint64_t number)
{
    must(fallocate(file, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, (off_t)(number * 64 * KIB),
                   64 * KIB) == 0,
         "fallocate");
}

static void measure_files(const char *path)
{
    must(ftruncate(file, 0) == 0, "ftruncate");
    measure("append_1m", CLOCK_THREAD_CPUTIME_ID, FILE_BYTES / MIB, append_1m);
    append_1m(FILE_BYTES / MIB - 1);
    for (uint64_t i = 0; i < FILE_BYTES / MIB; i++) {
        append_1m(i);
    }
    must(fsync(file) == 0, path);
    measure("read_4k", CLOCK_THREAD_CPUTIME_ID, UINT64_MAX, read_4k);
    measure("read_64k", CLOCK_THREAD_CPUTIME_ID, UINT64_MAX, read_64k);
    measure("read_1m", CLOCK_THREAD_CPUTIME_ID, UINT64_MAX, read_1m);
    measure("overwrite_4k", CLOCK_THREAD_CPUTIME_ID, UINT64_MAX, overwrite_4k);
    measure("overwrite_1m", CLOCK_THREAD_CPUTIME_ID, UINT64_MAX, overwrite_1m);
    must(fsync(file) == 0, path);
    measure("write_and_sync_4k_wall", CLOCK_MONOTONIC, UINT64_MAX, write_and_sync_4k);
    measure("punch_64k", CLOCK_THREAD_CPUTIME_ID, FILE_BYTES / (64 * KIB), punch_64k);
    must(ftruncate(file, 0) == 0 && fsync(file) == 0, path);
    measure("append_64k", CLOCK_THREAD_CPUTIME_ID, FILE_BYTES / (64 * KIB), append_64k);
    must(ftruncate(file, 0) == 0 && fsync(file) == 0, path);
    measure("write_into_hole_4k", CLOCK_THREAD_CPUTIME_ID, FILE_BYTES / (64 * KIB),
            write_into_hole_4k);
}

static int sock = -1;

static void take(int fd, size_t len)
{
    for (size_t done = 0; done < len;) {
        ssize_t got = recv(fd, buffer, MIN_OF(len - done, sizeof(buffer)), 0);
        must(got > 0, "recv");
        done += (size_t)got;
    }
}

static void give(int fd, size_t len)
{
    for (size_t done = 0; done < len;) {
        ssize_t sent = send(fd, buffer, len - done, MSG_NOSIGNAL);
        must(sent > 0, "send");
        done += (size_t)sent;
    }
}

static void send_4k(uint64_t number)
{
    (void)number;
    give(sock, 4 * KIB);
}

static void send_64k(uint64_t number)
{
    (void)number;
    give(sock, 64 * KIB);
}

static void send_1m(uint64_t number)
{
    (void)number;
    give(sock, MIB);
}

static void receive_64k(uint64_t number)
{
    (void)number;
    take(sock, 64 * KIB);
}

static void receive_1m(uint64_t number)
{
    (void)number;
    take(sock, MIB);
}

/* As a client with one request in flight sees it, of a server that has nothing to do. */
static void round_trip(uint64_t number)
{
    (void)number;
    give(sock, REQUEST);
    take(sock, 4 * KIB);
}

static void peer_drains(int fd)
{
    while (recv(fd, buffer, sizeof(buffer), 0) > 0) {
    }
}

static void peer_fills(int fd)
{
    while (send(fd, buffer, 64 * KIB, MSG_NOSIGNAL) > 0) {
    }
}

static void peer_answers(int fd)
{
    ssize_t got;
    while ((got = recv(fd, buffer, REQUEST, 0)) > 0) {
        for (size_t left = REQUEST - (size_t)got; left > 0 && got > 0;) {
            got = recv(fd, buffer, left, 0);
            left -= got > 0 ? (size_t)got : 0;
        }
        give(fd, 4 * KIB);
    }
}

/* With a process at the other end. */
static void with_peer(const char *name, clockid_t id, void (*peer)(int fd),
                      void (*step)(uint64_t number))
{
    int pair[2];
    must(socketpair(AF_UNIX, SOCK_STREAM, 0, pair) == 0, "socketpair");
    fflush(stdout);
    pid_t child = fork();
    must(child >= 0, "fork");
    if (child == 0) {
        close(pair[0]);
        peer(pair[1]);
        _exit(0);
    }
    close(pair[1]);
    sock = pair[0];
    measure(name, id, UINT64_MAX, step);
    close(sock);
    must(waitpid(child, NULL, 0) == child, "waitpid");
}

int main(int argc, char **argv)
{
    char path[4096];

    if (argc != 2 ||
        snprintf(path, sizeof(path), "%s/floor.XXXXXX", argv[1]) >= (int)sizeof(path)) {
        fprintf(stderr, "usage: floor DIRECTORY\n");
        return 2;
    }
    signal(SIGPIPE, SIG_IGN);
    memset(buffer, 0x5a, sizeof(buffer));
    file = mkstemp(path);
    must(file >= 0, path);
    must(unlink(path) == 0, path);
    printf("{");
    measure_files(path);
    with_peer("send_4k", CLOCK_THREAD_CPUTIME_ID, peer_drains, send_4k);
    with_peer("send_64k", CLOCK_THREAD_CPUTIME_ID, peer_drains, send_64k);
    with_peer("send_1m", CLOCK_THREAD_CPUTIME_ID, peer_drains, send_1m);
    with_peer("receive_64k", CLOCK_THREAD_CPUTIME_ID, peer_fills, receive_64k);
    with_peer("receive_1m", CLOCK_THREAD_CPUTIME_ID, peer_fills, receive_1m);
    with_peer("round_trip_wall", CLOCK_MONOTONIC, peer_answers, round_trip);
    printf("}\n");
    return 0;
}
